//! Memory in pieces of megabytes that goes round.
//!
//! What an allocator gets back in such pieces, from another thread than asked for them, it seldom gives
//! to the system, and the next thread's request is met with fresh memory: what works one after another
//! would cost more than what works at a time. All buffers of a pool have one size, so that it holds as
//! much as was in use at once and no more. Deliberately absent: a limit, and waiting, which are for those
//! who ask.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers of one size that nobody uses at the moment; clones share them.
#[derive(Debug, Clone)]
pub struct BufferPool {
    size: usize,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl BufferPool {
    /// A pool of buffers with room for `size` bytes each; none is there yet.
    pub fn new(size: usize) -> Self {
        Self { size, idle: Arc::default() }
    }

    /// An empty buffer with room for this many bytes. One that would stay half empty, or does not do, is
    /// the allocator's and goes back there.
    pub fn take(&self, capacity: usize) -> Buffer {
        if capacity > self.size || capacity <= self.size / 2 {
            return Buffer { bytes: Vec::with_capacity(capacity), pool: None };
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = idle.unwrap_or_else(|| Vec::with_capacity(self.size));
        Buffer { bytes, pool: Some(self.clone()) }
    }

    /// How many buffers nobody uses.
    #[cfg(test)]
    pub fn idle_count(&self) -> usize {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Memory out of a pool, which goes back there when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    pool: Option<BufferPool>,
}

impl Buffer {
    /// What it holds, to be shared; its memory goes back with the last reference.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_the_last_reference_and_is_used_again() {
        let pool = BufferPool::new(100);
        let mut buffer = pool.take(100);
        let memory = buffer.as_ptr();
        buffer.extend_from_slice(b"rows");
        let shared = buffer.freeze();
        let part = shared.slice(1..);
        drop(shared);
        assert_eq!((&part[..], pool.idle_count()), (&b"ows"[..], 0));
        drop(part);
        let again = pool.take(51);
        assert!(again.is_empty() && again.as_ptr() == memory);
        drop(again);
        assert_eq!(pool.idle_count(), 1, "also what was never filled");
    }

    #[test]
    fn what_is_small_or_too_large_neither_takes_nor_leaves_a_buffer() {
        let pool = BufferPool::new(100);
        drop(pool.take(100));
        for capacity in [0, 50, 101] {
            let buffer = pool.take(capacity);
            assert!(buffer.capacity() >= capacity);
            assert_eq!(pool.idle_count(), 1);
            drop(buffer.freeze());
            assert_eq!(pool.idle_count(), 1);
        }
    }
}
