//! Large buffers that a thread reuses for the next image: getting fresh pages from the kernel takes
//! longer than filling them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Maximal number of buffers that a thread keeps.
const MAX_BUFFERS: usize = 8;
/// Maximal size of a buffer that is kept: larger images are rare.
const MAX_BUFFER_BYTES: usize = 8 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer with arbitrary initial content.
pub struct Buffer(Vec<u8>);

impl Buffer {
    pub fn new(length: usize) -> Self {
        let mut bytes = KEPT.with_borrow_mut(|kept| {
            let fits = kept.iter().position(|bytes| bytes.capacity() >= length);
            fits.map(|at| kept.swap_remove(at)).or_else(|| kept.pop()).unwrap_or_default()
        });
        bytes.resize(length, 0);
        Self(bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() <= MAX_BUFFER_BYTES {
            // Fails if the thread is ending; then the buffer is freed.
            _ = KEPT.try_with(|kept| {
                let mut kept = kept.borrow_mut();
                if kept.len() < MAX_BUFFERS {
                    kept.push(std::mem::take(&mut self.0));
                }
            });
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_uses_buffers_again_but_for_very_large_ones() {
        let place = {
            let mut first = Buffer::new(3000);
            first.fill(7);
            first.as_ptr()
        };
        let again = Buffer::new(2000);
        assert_eq!((again.len(), again.as_ptr()), (2000, place));
        assert!(Buffer::new(4000).iter().all(|&byte| byte == 0), "the first is taken");
        let large = Buffer::new(MAX_BUFFER_BYTES + 1).as_ptr();
        assert!(KEPT.with_borrow(|kept| kept.iter().all(|bytes| bytes.as_ptr() != large)));
    }
}
