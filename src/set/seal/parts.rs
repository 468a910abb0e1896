//! Ciphertext in parts of equal size, in memory that goes round.
//!
//! Deliberately absent: any knowledge of where parts go.

use std::io::{self, Write};
use std::sync::mpsc as buffers;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Piece, header, hex};
use crate::buffer_pool::{Buffer, BufferPool};
use crate::error::{Error, Kind};
use crate::set::manifest::Header;

/// Parts of a stream that exist at the same time: one is filled while two are on their way. This is what
/// a stream costs in memory; whoever fills waits until one comes back.
const PARTS: usize = 3;
/// How long to wait for a part's memory. An attempt that was given up, on a connection that nobody closes,
/// keeps its part; then there is one more.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often to look whether anybody still wants parts.
const LOOK: Duration = Duration::from_millis(100);

/// The memory of a stream's parts, which is used again and again; when the stream has ended, it is the
/// pool's again, for the next one.
struct Buffers {
    size: usize,
    pool: BufferPool,
    /// Not taken yet.
    left: usize,
    returned: buffers::Receiver<Buffer>,
    give_back: buffers::Sender<Buffer>,
}

impl Buffers {
    fn new(size: usize, pool: BufferPool) -> Self {
        let (give_back, returned) = buffers::channel();
        Self { size, pool, left: PARTS, returned, give_back }
    }

    /// An empty buffer; waits for one, but neither for ever nor for nobody.
    fn take(&mut self, patience: Duration, is_wanted: impl Fn() -> bool) -> Buffer {
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

/// A filled part; its memory goes back to the stream's [`Buffers`] with the last reference to it.
struct Part {
    buffer: Option<Buffer>,
    give_back: buffers::Sender<Buffer>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(mut buffer) = self.buffer.take() {
            buffer.clear();
            // The stream may have ended. What cannot be given back is dropped, and so the pool's.
            let _ = self.give_back.send(buffer);
        }
    }
}

/// The beginning of an object, as it is written.
enum Beginning {
    /// The bytes so far.
    Open(Vec<u8>),
    /// What the manifest says of it.
    Whole(Header),
}

impl Beginning {
    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self::Open(held) = self else { return Ok(()) };
        held.extend_from_slice(bytes);
        // A reader holds headers to bounds: a set that nobody can read must not come into being.
        let end = header::end(held).map_err(|error| error.with_kind(Kind::Failed))?;
        if let Some(end) = end {
            *self = Self::Whole(header::pin(&held[..end]));
        }
        Ok(())
    }

    /// Leaves the beginning of the next object.
    fn take(&mut self) -> io::Result<Header> {
        match std::mem::replace(self, Self::Open(Vec::new())) {
            Self::Whole(header) => Ok(header),
            Self::Open(_) => Err(Error::new("the header of an age file did not end").into()),
        }
    }
}

/// Cuts ciphertext into parts and hashes it.
pub(super) struct PartWriter {
    sender: mpsc::Sender<Piece>,
    buffers: Buffers,
    part_size: usize,
    /// The part that is being filled.
    part: Option<Buffer>,
    sha256: Sha256,
    size: u64,
    beginning: Beginning,
}

impl PartWriter {
    pub(super) fn new(sender: mpsc::Sender<Piece>, part_size: usize, pool: BufferPool) -> Self {
        let buffers = Buffers::new(part_size, pool);
        let beginning = Beginning::Open(Vec::new());
        Self { sender, buffers, part_size, part: None, sha256: Sha256::new(), size: 0, beginning }
    }

    pub(super) fn send(&self, piece: Piece) -> io::Result<()> {
        // The receiver is gone only when the upload failed; its error is the one that is reported.
        self.sender
            .blocking_send(piece)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "upload stopped"))
    }

    fn send_part(&mut self, buffer: Buffer) -> io::Result<()> {
        self.sha256.update(&*buffer);
        let part = Part { buffer: Some(buffer), give_back: self.buffers.give_back.clone() };
        self.send(Piece::Part(Bytes::from_owner(part)))
    }

    pub(super) fn end_object(&mut self) -> io::Result<()> {
        if let Some(part) = self.part.take() {
            self.send_part(part)?;
        }
        let sha256 = hex(&std::mem::take(&mut self.sha256).finalize());
        let size = std::mem::take(&mut self.size);
        let header = self.beginning.take()?;
        self.send(Piece::End { size, sha256, header })
    }
}

impl Write for PartWriter {
    /// Takes all of it, however many parts that makes: age writes its header by a writer that takes a
    /// short write for an error.
    fn write(&mut self, mut buf: &[u8]) -> io::Result<usize> {
        let taken = buf.len();
        self.beginning.add(buf)?;
        while !buf.is_empty() {
            let mut part = match self.part.take() {
                Some(part) => part,
                None => self.buffers.take(PATIENCE, || !self.sender.is_closed()),
            };
            let (now, later) = buf.split_at(buf.len().min(self.part_size - part.len()));
            part.extend_from_slice(now);
            self.size += now.len() as u64;
            if part.len() == self.part_size {
                self.send_part(part)?
            } else {
                self.part = Some(part)
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
        let pool = BufferPool::new(10);
        let mut buffers = Buffers::new(10, pool.clone());
        let mut kept: Vec<Buffer> = (0..PARTS).map(|_| buffers.take(PATIENCE, || true)).collect();
        assert_eq!(buffers.take(Duration::from_millis(1), || true).capacity(), 10);
        assert_eq!(buffers.take(PATIENCE, || false).capacity(), 10, "the upload has failed");
        let give_back = buffers.give_back.clone();
        let mut part = || Part { buffer: kept.pop(), give_back: give_back.clone() };
        let late = part();
        drop(part());
        assert!(buffers.take(PATIENCE, || true).is_empty());
        drop(buffers);
        let before = pool.idle_count();
        drop(late);
        assert_eq!(pool.idle_count(), before + 1, "the next stream has it");
    }

    /// Each stream has a thread of its own; one after another they cost no more than one.
    #[test]
    fn a_stream_uses_the_memory_of_those_before_it() {
        let pool = BufferPool::new(1000);
        for _ in 0..4 {
            let (sender, mut pieces) = mpsc::channel(1);
            let mut writer = PartWriter::new(sender, 1000, pool.clone());
            let filler = std::thread::spawn(move || {
                writer.write_all(b"age-encryption.org/v1\n--- \n").unwrap();
                writer.write_all(&[7; 10_500]).unwrap();
                writer.end_object().unwrap();
            });
            while pieces.blocking_recv().is_some() {}
            filler.join().unwrap();
            let left = pool.idle_count();
            assert!((1..=PARTS).contains(&left), "{left} buffers");
        }
    }
}
