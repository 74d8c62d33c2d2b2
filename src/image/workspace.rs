//! What a thread that decodes keeps from one image to the next: the JPEG decoder, the resizer and
//! the buffer of a whole image, whose pages are dear to have anew each time.

use std::cell::Cell;
use std::mem;

use fast_image_resize::Resizer;
use turbojpeg::Decompressor;

use crate::error::Result;

/// Most bytes of one kind that are kept.
const LARGEST: usize = 64 << 20;

#[derive(Default)]
pub struct Workspace {
    pub decompressor: Option<Decompressor>,
    pub resizer: Resizer,
    pixels: Vec<u8>,
}

thread_local! {
    static KEPT: Cell<Option<Workspace>> = const { Cell::new(None) };
}

/// Does `work` with what this thread has kept. After an error or a panic nothing is kept.
pub fn with<T>(work: impl FnOnce(&mut Workspace) -> Result<T>) -> Result<T> {
    let mut workspace = KEPT.take().unwrap_or_default();
    let done = work(&mut workspace)?;
    if workspace.resizer.size_of_internal_buffers() > LARGEST {
        workspace.resizer.reset_internal_buffers();
    }
    KEPT.set(Some(workspace));
    Ok(done)
}

impl Workspace {
    /// A buffer of `length` bytes, to be overwritten: it may hold an earlier image.
    pub fn buffer(&mut self, length: usize) -> Vec<u8> {
        let mut kept = mem::take(&mut self.pixels);
        if kept.capacity() < length {
            drop(kept);
            return vec![0; length];
        }
        kept.resize(length, 0);
        kept
    }

    /// Keeps `buffer` for the next image.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= LARGEST && buffer.capacity() > self.pixels.capacity() {
            self.pixels = buffer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_unless_it_is_huge() {
        let mut workspace = Workspace::default();
        let first = workspace.buffer(1000);
        let place = first.as_ptr();
        workspace.give_back(first);
        let second = workspace.buffer(500);
        assert_eq!((second.as_ptr(), second.len()), (place, 500));
        workspace.give_back(vec![0; LARGEST + 1]);
        assert_eq!(workspace.pixels.capacity(), 0);
    }

    #[test]
    fn nothing_is_kept_after_an_error() {
        let keep = |workspace: &mut Workspace| {
            workspace.give_back(vec![1; 100]);
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
