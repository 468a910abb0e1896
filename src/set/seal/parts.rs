//! Ciphertext in parts of equal size, in memory that goes round.
//!
//! Deliberately absent: any knowledge of where parts go.

use std::io::{self, Write};
use std::sync::mpsc as buffers;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Piece, hex};
use crate::buffer_pool::BufferPool;

/// Parts of a stream that exist at the same time: one is filled while two are on their way. This is what
/// a stream costs in memory; whoever fills waits until one comes back.
const PARTS: usize = 3;
/// How long to wait for a part's memory. An attempt that was given up, on a connection that nobody closes,
/// keeps its part; then there is one more.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether anybody still wants parts.
const LOOK: Duration = Duration::from_millis(100);

/// The memory of a stream's parts, which is used again and again.
struct Buffers {
    size: usize,
    /// Where it comes from, and goes when the stream has ended: to the next one.
    pool: BufferPool,
    /// Not taken yet.
    left: usize,
    returned: buffers::Receiver<Vec<u8>>,
    give_back: buffers::Sender<Vec<u8>>,
}

impl Buffers {
    fn new(size: usize, pool: BufferPool) -> Self {
        let (give_back, returned) = buffers::channel();
        Self { size, pool, left: PARTS, returned, give_back }
    }

    /// An empty buffer; waits for one, but neither for ever nor for nobody.
    fn take(&mut self, patience: Duration, is_wanted: impl Fn() -> bool) -> Vec<u8> {
        if let Ok(buffer) = self.returned.try_recv() {
            return buffer;
        }
        let begun = Instant::now();
        while self.left == 0 && begun.elapsed() < patience && is_wanted() {
            if let Ok(buffer) = self.returned.recv_timeout(LOOK.min(patience)) {
                return buffer;
            }
        }
        self.left = self.left.saturating_sub(1);
        self.pool.take(self.size)
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        while let Ok(buffer) = self.returned.try_recv() {
            self.pool.put(buffer);
        }
    }
}

/// A filled part; its memory goes back to the stream's [`Buffers`] with the last reference to it, or to
/// the next stream.
struct Part {
    bytes: Vec<u8>,
    pool: BufferPool,
    give_back: buffers::Sender<Vec<u8>>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        buffer.clear();
        if let Err(buffers::SendError(buffer)) = self.give_back.send(buffer) {
            self.pool.put(buffer);
        }
    }
}

/// Cuts ciphertext into parts and hashes it.
pub(super) struct PartWriter {
    sender: mpsc::Sender<Piece>,
    buffers: Buffers,
    part_size: usize,
    part: Vec<u8>,
    sha256: Sha256,
    size: u64,
}

impl PartWriter {
    pub(super) fn new(sender: mpsc::Sender<Piece>, part_size: usize, pool: BufferPool) -> Self {
        let buffers = Buffers::new(part_size, pool);
        Self { sender, buffers, part_size, part: Vec::new(), sha256: Sha256::new(), size: 0 }
    }

    pub(super) fn send(&self, piece: Piece) -> io::Result<()> {
        // The receiver is gone only when the upload failed; its error is the one that is reported.
        self.sender
            .blocking_send(piece)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "upload stopped"))
    }

    fn send_part(&mut self) -> io::Result<()> {
        let part = Part {
            bytes: std::mem::take(&mut self.part),
            pool: self.buffers.pool.clone(),
            give_back: self.buffers.give_back.clone(),
        };
        self.sha256.update(&part.bytes);
        self.send(Piece::Part(Bytes::from_owner(part)))
    }

    pub(super) fn end_object(&mut self) -> io::Result<()> {
        if !self.part.is_empty() {
            self.send_part()?;
        }
        let sha256 = hex(&std::mem::take(&mut self.sha256).finalize());
        let size = std::mem::take(&mut self.size);
        self.send(Piece::End { size, sha256 })
    }
}

impl Write for PartWriter {
    /// Takes all of it, however many parts that makes: age writes its header by a writer that takes a
    /// short write for an error.
    fn write(&mut self, mut buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len();
        while !buf.is_empty() {
            if self.part.capacity() == 0 {
                self.part = self.buffers.take(PATIENCE, || !self.sender.is_closed());
            }
            let (now, later) = buf.split_at(buf.len().min(self.part_size - self.part.len()));
            self.part.extend_from_slice(now);
            self.size += now.len() as u64;
            if self.part.len() == self.part_size {
                self.send_part()?;
            }
            buf = later;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1 << 20;

    /// A connection that is neither read nor closed keeps what it was given: three of them, and a backup
    /// waited for ever.
    #[test]
    fn memory_that_does_not_come_back_is_not_waited_for_without_end() {
        let pool = BufferPool::default();
        let mut buffers = Buffers::new(SIZE, pool.clone());
        let mut kept: Vec<Vec<u8>> = (0..PARTS).map(|_| buffers.take(PATIENCE, || true)).collect();
        assert_eq!(buffers.take(Duration::from_millis(1), || true).capacity(), SIZE);
        assert_eq!(buffers.take(PATIENCE, || false).capacity(), SIZE, "the upload has failed");
        let give_back = buffers.give_back.clone();
        let mut part =
            || Part { bytes: kept.pop().unwrap(), pool: pool.clone(), give_back: give_back.clone() };
        let late = part();
        drop(part());
        assert!(buffers.take(PATIENCE, || true).is_empty());
        drop(buffers);
        assert_eq!(pool.len(), 0);
        drop(late);
        assert_eq!(pool.len(), 1, "the next stream has it");
    }

    /// Each stream has a thread of its own; one after another they cost no more than one.
    #[test]
    fn a_stream_uses_the_memory_of_those_before_it() {
        let pool = BufferPool::default();
        for _ in 0..4 {
            let (sender, mut pieces) = mpsc::channel(1);
            let mut writer = PartWriter::new(sender, SIZE, pool.clone());
            let filler = std::thread::spawn(move || {
                writer.write_all(&vec![7; 10 * SIZE + 500]).unwrap();
                writer.end_object().unwrap();
            });
            while pieces.blocking_recv().is_some() {}
            filler.join().unwrap();
            let left = pool.len();
            assert!((1..=PARTS).contains(&left), "{left} buffers");
        }
    }
}
