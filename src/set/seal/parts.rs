//! Ciphertext in parts of equal size, in memory that goes round.
//!
//! Deliberately absent: any knowledge of where parts go.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError, mpsc as buffers};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Piece, hex};

/// Parts of a stream that exist at the same time: one is filled while two are on their way. This is what
/// a stream costs in memory; whoever fills waits until one comes back.
const PARTS: usize = 3;
/// How long to wait for a part's memory. An attempt that was given up, on a connection that nobody closes,
/// keeps its part; then there is one more.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether anybody still wants parts.
const LOOK: Duration = Duration::from_millis(100);

/// The memory of parts whose stream has ended, for the next one. What an allocator gets back in pieces of
/// megabytes from another thread it seldom gives to the system, and the next stream's thread would begin
/// anew: the streams of a run would cost more than those that run at a time.
#[derive(Clone, Default)]
pub struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// The memory of a stream's parts, which is used again and again.
struct Buffers {
    size: usize,
    spare: Spare,
    /// Not made yet.
    left: usize,
    returned: buffers::Receiver<Vec<u8>>,
    give_back: buffers::Sender<Vec<u8>>,
}

impl Buffers {
    fn new(size: usize, spare: Spare) -> Self {
        let (give_back, returned) = buffers::channel();
        Self { size, spare, left: PARTS, returned, give_back }
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
        self.spare.take().unwrap_or_else(|| Vec::with_capacity(self.size))
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        while let Ok(buffer) = self.returned.try_recv() {
            self.spare.put(buffer);
        }
    }
}

/// A filled part; its memory goes back to the stream's [`Buffers`] with the last reference to it, or to
/// the next stream.
struct Part {
    bytes: Vec<u8>,
    spare: Spare,
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
            self.spare.put(buffer);
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
    pub(super) fn new(sender: mpsc::Sender<Piece>, part_size: usize, spare: Spare) -> Self {
        let buffers = Buffers::new(part_size, spare);
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
            spare: self.buffers.spare.clone(),
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

    /// A connection that is neither read nor closed keeps what it was given: three of them, and a backup
    /// waited for ever.
    #[test]
    fn memory_that_does_not_come_back_is_not_waited_for_without_end() {
        let spare = Spare::default();
        let mut buffers = Buffers::new(10, spare.clone());
        let kept: Vec<Vec<u8>> = (0..PARTS).map(|_| buffers.take(PATIENCE, || true)).collect();
        assert_eq!(buffers.take(Duration::from_millis(1), || true).capacity(), 10);
        assert_eq!(buffers.take(PATIENCE, || false).capacity(), 10, "the upload has failed");
        let give_back = buffers.give_back.clone();
        let part = || Part { bytes: kept[0].clone(), spare: spare.clone(), give_back: give_back.clone() };
        let late = part();
        drop(part());
        assert!(buffers.take(PATIENCE, || true).is_empty());
        drop(buffers);
        assert!(spare.take().is_none());
        drop(late);
        assert!(spare.take().is_some(), "the next stream has it");
    }

    /// Each stream has a thread of its own; one after another they cost no more than one.
    #[test]
    fn a_stream_uses_the_memory_of_those_before_it() {
        let spare = Spare::default();
        for _ in 0..4 {
            let (sender, mut pieces) = mpsc::channel(1);
            let mut writer = PartWriter::new(sender, 1000, spare.clone());
            let filler = std::thread::spawn(move || {
                writer.write_all(&[7; 10_500]).unwrap();
                writer.end_object().unwrap();
            });
            while pieces.blocking_recv().is_some() {}
            filler.join().unwrap();
            let left = spare.0.lock().unwrap().len();
            assert!((1..=PARTS).contains(&left), "{left} buffers");
        }
    }
}
