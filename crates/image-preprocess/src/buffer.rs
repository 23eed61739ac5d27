//! Large buffers that a thread reuses for the next image: to get new pages from the kernel takes
//! more time than to fill a buffer.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Maximal number of buffers that a thread keeps.
const MAX_BUFFERS: usize = 8;
/// Maximal size of a buffer that is kept, in bytes: larger images are rare.
const MAX_BUFFER_BYTES: usize = 8 << 20;

thread_local! {
    /// Buffers of this thread that are not in use.
    static FREE_BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A byte buffer. Its initial content is arbitrary: it may come from an earlier use.
pub struct Buffer(Vec<u8>);

impl Buffer {
    pub fn new(length: usize) -> Self {
        let mut bytes = FREE_BUFFERS.with_borrow_mut(|free| {
            let large_enough = free.iter().position(|bytes| bytes.capacity() >= length);
            large_enough.map(|index| free.swap_remove(index)).or_else(|| free.pop()).unwrap_or_default()
        });
        bytes.resize(length, 0);
        Self(bytes)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() <= MAX_BUFFER_BYTES {
            // Fails if the thread is ending; then the buffer is freed.
            _ = FREE_BUFFERS.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < MAX_BUFFERS {
                    free.push(std::mem::take(&mut self.0));
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
    fn a_thread_reuses_buffers_except_very_large_ones() {
        let address = {
            let mut first = Buffer::new(3000);
            first.fill(7);
            first.as_ptr()
        };
        let reused = Buffer::new(2000);
        assert_eq!((reused.len(), reused.as_ptr()), (2000, address));
        assert!(Buffer::new(4000).iter().all(|&byte| byte == 0), "the first buffer is in use");
        let large = Buffer::new(MAX_BUFFER_BYTES + 1).as_ptr();
        assert!(FREE_BUFFERS.with_borrow(|free| free.iter().all(|bytes| bytes.as_ptr() != large)));
    }
}
