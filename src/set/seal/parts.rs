//! Ciphertext in parts of equal size, in memory that goes round.
//!
//! Deliberately absent: any knowledge of where parts go.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
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
/// Bytes of a stream's parts that are held beyond those while none comes back. Rows are then read at 320 KiB/s
/// (`backup::streams`), and a store that stands still is waited for some 240 s (`store::s3::retry`, with its last attempt):
/// that is 75 MiB of rows that cannot be compressed. A writer that waited before would keep the server's session in a
/// write.
const HELD: usize = 80 << 20;
/// Most parts that these are: as many as S3's smallest make.
const MOST_HELD: usize = 16;
/// How long to wait for a part's memory. An attempt that was given up, on a connection that nobody closes,
/// keeps its part; then there is one more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pieces that wait for the upload. Memory is bounded by the parts; a writer that has one left must not wait for
/// an upload that is being begun or committed, or that stands still.
pub(super) const QUEUE: usize = PARTS + MOST_HELD + 1;
/// How often to look whether anybody still wants parts.
const LOOK: Duration = Duration::from_millis(100);

/// The memory of parts, which is used again and again. Streams that are written one after another share
/// one, so that a stream begins while the last parts of the one before it are still on their way. Clones
/// share it, too. When all are gone, the memory is the pool's again.
#[derive(Clone)]
pub struct PartBuffers(Arc<Shared>);

struct Shared {
    size: usize,
    pool: BufferPool,
    state: Mutex<State>,
    returned: Condvar,
}

struct State {
    /// Not taken yet.
    left: usize,
    idle: Vec<Buffer>,
    /// How many there are beyond those.
    extra: usize,
}

impl PartBuffers {
    /// Memory for one stream at a time, and for `more` parts of others that are begun and not written.
    pub fn new(size: usize, pool: BufferPool, more: usize) -> Self {
        let state = State { left: PARTS + more, idle: Vec::new(), extra: 0 };
        Self(Arc::new(Shared { size, pool, state: Mutex::new(state), returned: Condvar::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a part could be begun now. Waits for that, at most `bound`.
    pub fn has_room(&self, bound: Duration) -> bool {
        let has_room = |state: &State| state.left > 0 || !state.idle.is_empty();
        let (state, _) = self
            .0
            .returned
            .wait_timeout_while(self.state(), bound, |state| !has_room(state))
            .unwrap_or_else(PoisonError::into_inner);
        has_room(&state)
    }

    fn most_held(&self) -> usize {
        HELD.div_ceil(self.0.size.max(1)).clamp(1, MOST_HELD)
    }

    /// A buffer beyond those that go round, unless there are as many of these already.
    fn take_extra(&self, most: usize) -> Option<Buffer> {
        let mut state = self.state();
        if state.extra >= most {
            return None;
        }
        state.extra += 1;
        Some(self.0.pool.take(self.0.size))
    }

    /// Takes an empty buffer, one beyond those that go round where none of them comes back. Where there is neither, waits
    /// as long as `may_wait` allows, by how long it has waited; then there is one more.
    fn take(&self, may_wait: impl Fn(Duration) -> bool) -> Buffer {
        let begun = Instant::now();
        while !self.has_room(LOOK) {
            if let Some(extra) = self.take_extra(self.most_held()) {
                return extra;
            }
            if !may_wait(begun.elapsed()) {
                break;
            }
        }
        let mut state = self.state();
        if let Some(buffer) = state.idle.pop() {
            return buffer;
        }
        state.left = state.left.saturating_sub(1);
        self.0.pool.take(self.0.size)
    }

    /// Takes a stream's first buffer, which does not wait for the last ones of the stream before.
    fn take_first(&self, may_wait: impl Fn(Duration) -> bool) -> Buffer {
        let extra = if self.has_room(Duration::ZERO) { None } else { self.take_extra(1) };
        extra.unwrap_or_else(|| self.take(may_wait))
    }
}

/// A filled part; its memory goes back to its [`PartBuffers`] with the last reference to it, or to the pool
/// where those are gone.
struct Part {
    buffer: Option<Buffer>,
    buffers: Weak<Shared>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], Vec::as_slice)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let (Some(mut buffer), Some(buffers)) = (self.buffer.take(), self.buffers.upgrade()) else { return };
        buffer.clear();
        let mut state = buffers.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.extra > 0 {
            state.extra -= 1;
        } else {
            state.idle.push(buffer);
            buffers.returned.notify_all();
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
    buffers: PartBuffers,
    part_size: usize,
    /// The part that is being filled.
    part: Option<Buffer>,
    sha256: Sha256,
    size: u64,
    beginning: Beginning,
}

impl PartWriter {
    pub(super) fn new(sender: mpsc::Sender<Piece>, buffers: PartBuffers) -> Self {
        let part_size = buffers.0.size;
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
        let part = Part { buffer: Some(buffer), buffers: Arc::downgrade(&self.buffers.0) };
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
                None => {
                    // Parts that wait for the upload will come back, those of a hung connection will not.
                    let is_queued = || self.sender.capacity() < self.sender.max_capacity();
                    let may_wait = |waited| !self.sender.is_closed() && (waited < PATIENCE || is_queued());
                    if self.size == 0 {
                        self.buffers.take_first(may_wait)
                    } else {
                        self.buffers.take(may_wait)
                    }
                }
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
        let buffers = PartBuffers::new(10, pool.clone(), 0);
        let mut kept: Vec<Buffer> =
            (0..PARTS + MOST_HELD).map(|_| buffers.take(|_| panic!("it waits"))).collect();
        assert!(!buffers.has_room(Duration::ZERO));
        assert_eq!(buffers.take(|waited| waited < LOOK * 2).capacity(), 10);
        assert_eq!(buffers.take(|_| false).capacity(), 10, "the upload has failed");
        let mut part = || Part { buffer: kept.pop(), buffers: Arc::downgrade(&buffers.0) };
        let late = part();
        (0..MOST_HELD).for_each(|_| drop(part()));
        assert!(
            !buffers.has_room(Duration::ZERO),
            "the first that come back are those beyond the ones that go round"
        );
        drop(part());
        assert!(buffers.has_room(Duration::ZERO));
        assert!(buffers.take(|_| true).is_empty());
        drop(buffers);
        let before = pool.idle_count();
        drop(late);
        assert_eq!(pool.idle_count(), before + 1, "the next stream has it");
    }

    /// The last parts of a stream are still on their way when the next one begins.
    #[test]
    fn a_stream_begins_without_waiting_for_the_one_before() {
        let pool = BufferPool::new(10);
        let buffers = PartBuffers::new(10, pool.clone(), 0);
        let kept: Vec<Buffer> = (0..PARTS).map(|_| buffers.take(|_| true)).collect();
        let first = buffers.take_first(|_| panic!("it waits"));
        assert!(!buffers.has_room(Duration::ZERO));
        // One of these is the pool's, so that no more than before go round.
        kept.into_iter().for_each(|b| drop(Part { buffer: Some(b), buffers: Arc::downgrade(&buffers.0) }));
        assert_eq!((buffers.state().idle.len(), pool.idle_count()), (PARTS - 1, 1));
        drop(first);
    }

    /// Each stream has a thread of its own; one after another they cost no more than one.
    #[test]
    fn a_stream_uses_the_memory_of_those_before_it() {
        let pool = BufferPool::new(1000);
        for _ in 0..4 {
            let (sender, mut pieces) = mpsc::channel(1);
            let buffers = PartBuffers::new(1000, pool.clone(), 0);
            let mut writer = PartWriter::new(sender, buffers.clone());
            let filler = std::thread::spawn(move || {
                writer.write_all(b"age-encryption.org/v1\n--- \n").unwrap();
                writer.write_all(&[7; 10_500]).unwrap();
                writer.end_object().unwrap();
            });
            while pieces.blocking_recv().is_some() {}
            filler.join().unwrap();
            drop(buffers);
            let left = pool.idle_count();
            assert!((1..=PARTS).contains(&left), "{left} buffers");
        }
    }
}
