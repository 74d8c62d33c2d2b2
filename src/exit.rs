//! The end of the process, without exit handlers.
//!
//! OpenSSL's exit handler frees memory that ending threads free too: about one in two hundred
//! orderly shutdowns crashed with "double free or corruption". All work is complete at this point,
//! so no exit handler is needed.

use std::io::Write;

/// Ends the process at once with `code`. The system closes open files; nothing else runs.
pub fn exit(code: u8) -> ! {
    // A closed stdout can't be reported anywhere.
    let _ = std::io::stdout().flush();
    // SAFETY: `_exit` accepts any code and does not return.
    unsafe { libc::_exit(code.into()) }
}
