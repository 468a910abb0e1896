//! Memory in pieces of megabytes that goes round.
//!
//! What an allocator gets back in such pieces, from another thread than asked for them, it seldom gives
//! to the system, and the next thread's request is met with fresh memory: what works one after another
//! would cost more than what works at a time. Small pieces are left to the allocator, which is good at
//! them. Deliberately absent: a limit, and waiting. There are as many buffers as were ever in use at once;
//! whoever asks for them knows how many that may be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Bytes from which on a buffer is kept.
const LARGE: usize = 1 << 20;

/// Buffers that nobody uses at the moment; clones share them.
#[derive(Debug, Clone, Default)]
pub struct BufferPool(Arc<Mutex<Vec<Vec<u8>>>>);

impl BufferPool {
    /// An empty buffer with room for this many bytes.
    pub fn take(&self, capacity: usize) -> Vec<u8> {
        if capacity < LARGE {
            return Vec::with_capacity(capacity);
        }
        let mut idle = self.idle();
        match idle.iter().position(|buffer| buffer.capacity() >= capacity) {
            Some(index) => idle.swap_remove(index),
            None => {
                // One that is too small makes place, so that their number does not grow.
                idle.pop();
                Vec::with_capacity(capacity)
            }
        }
    }

    /// Takes a buffer back.
    pub fn put(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() >= LARGE {
            buffer.clear();
            self.idle().push(buffer);
        }
    }

    /// What a buffer holds, to be shared; it comes back with the last reference.
    pub fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: self.clone() })
    }

    /// How many are idle.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.idle().len()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: BufferPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back_with_the_last_reference() {
        let pool = BufferPool::default();
        let mut buffer = pool.take(2 * LARGE);
        let memory = buffer.as_ptr();
        buffer.extend_from_slice(b"rows");
        let lent = pool.lend(buffer);
        let part = lent.slice(1..);
        drop(lent);
        assert_eq!((&part[..], pool.len()), (&b"ows"[..], 0));
        drop(part);
        let again = pool.take(LARGE);
        assert!(again.is_empty() && again.as_ptr() == memory);
    }

    #[test]
    fn what_is_too_small_makes_place() {
        let pool = BufferPool::default();
        pool.put(Vec::with_capacity(LARGE));
        assert!(pool.take(2 * LARGE).capacity() >= 2 * LARGE);
        assert_eq!(pool.len(), 0);
    }

    #[test]
    fn a_small_document_neither_takes_nor_leaves_a_buffer() {
        let pool = BufferPool::default();
        pool.put(Vec::with_capacity(LARGE));
        drop(pool.lend(pool.take(LARGE - 1)));
        assert_eq!(pool.len(), 1);
    }
}
