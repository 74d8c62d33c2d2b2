//! The workspace of a decoding thread, reused from image to image: the JPEG decoder, the resizer
//! and the buffer of a whole image, which is expensive to allocate again.

use std::cell::Cell;
use std::mem;

use fast_image_resize::Resizer;
use turbojpeg::Decompressor;

use crate::error::Result;

/// Largest buffer that is kept, in bytes.
const MAX_KEPT_BYTES: usize = 64 << 20;

#[derive(Default)]
pub struct Workspace {
    pub decompressor: Option<Decompressor>,
    pub resizer: Resizer,
    pixels: Vec<u8>,
}

thread_local! {
    static KEPT: Cell<Option<Workspace>> = const { Cell::new(None) };
}

/// Calls `work` with this thread's workspace. After an error or a panic the workspace is dropped.
pub fn with<T>(work: impl FnOnce(&mut Workspace) -> Result<T>) -> Result<T> {
    let mut workspace = KEPT.take().unwrap_or_default();
    let result = work(&mut workspace)?;
    if workspace.resizer.size_of_internal_buffers() > MAX_KEPT_BYTES {
        workspace.resizer.reset_internal_buffers();
    }
    KEPT.set(Some(workspace));
    Ok(result)
}

impl Workspace {
    /// A buffer of `length` bytes, which may hold an earlier image.
    pub fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut kept = mem::take(&mut self.pixels);
        if kept.capacity() < length {
            drop(kept);
            return vec![0; length];
        }
        kept.resize(length, 0);
        kept
    }

    /// Keeps `buffer` for the next image.
    pub fn return_buffer(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= MAX_KEPT_BYTES && buffer.capacity() > self.pixels.capacity() {
            self.pixels = buffer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_reused_unless_it_is_huge() {
        let mut workspace = Workspace::default();
        let first = workspace.take_buffer(1000);
        let address = first.as_ptr();
        workspace.return_buffer(first);
        let second = workspace.take_buffer(500);
        assert_eq!((second.as_ptr(), second.len()), (address, 500));
        workspace.return_buffer(vec![0; MAX_KEPT_BYTES + 1]);
        assert_eq!(workspace.pixels.capacity(), 0);
    }

    #[test]
    fn nothing_is_kept_after_an_error() {
        let keep = |workspace: &mut Workspace| {
            workspace.return_buffer(vec![1; 100]);
            Ok(())
        };
        let kept = || with(|workspace| Ok(workspace.pixels.len())).unwrap();
        with(keep).unwrap();
        assert_eq!(kept(), 100);
        let error = crate::error::Error::new(crate::error::ErrorKind::CorruptImage, "broken");
        with(|_| Err::<(), _>(error)).unwrap_err();
        assert_eq!(kept(), 0);
    }
}
