//! zstd and age around a stream, and back.
//!
//! Writing: plaintext → zstd → age → parts of equal size → a bounded channel of [`Piece`]s that an
//! upload task drains ([`upload()`]). Reading is the mirror image ([`read_stream`]): ranges are fetched
//! ahead, and no more plaintext comes out than the manifest states.
//!
//! **No plaintext comes out that the backup did not write.** The manifest pins the header of each object,
//! nonce included ([`header`]); it is compared before anything is decrypted, and from then on each chunk
//! of 64 KiB authenticates itself, in its order, with a key that comes out of that header. Who can write
//! to the bucket, and only that, can make an object fail or end early, and nothing else. Who also holds
//! an identity of one of the recipients knows that key and can make chunks that decrypt: what he changed
//! is noticed at the end of the object, by the SHA-256 of all of it, when what he wrote has already come
//! out. A reader who must not act on such words waits for the end (definitions, roles and proofs are held
//! in memory until then; rows are not committed before). All of it is worth as much as the manifest:
//! signed, as the signature; unsigned, nothing against who can write to the bucket.
//!
//! Past `segment_limit` a stream goes on in another object. Each object is a complete age file, and
//! what they decrypt to, put together, are zstd frames, as `zstd -d` takes them. Each frame holds a block
//! that was compressed at once: feeding zstd piece by piece makes it copy all of them and look for
//! matches in two places, which costs up to a tenth more at the fast levels. Dropping a [`SealWriter`] means abort: the
//! end of the stream is only ever sent by [`SealWriter::finish`].

pub mod header;
mod parts;
mod upload;

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

pub use self::parts::PartBuffers;
use self::parts::PartWriter;
pub use self::upload::upload;
use super::manifest::{Header, Object, Stream};
use crate::buffer_pool::BufferPool;
use crate::error::{Context, Error, Kind, Result};
use crate::store::{self, Store};

/// Public keys a stream is encrypted to.
pub type Recipients = Arc<Vec<Box<dyn age::Recipient + Send + Sync>>>;
/// Secret keys a stream is decrypted with.
pub type Identities = Arc<Vec<Box<dyn age::Identity + Send + Sync>>>;

/// Bytes asked for at once when reading.
const READ_RANGE: u64 = store::READ_SIZE as u64;
/// Ranges being fetched while one is consumed.
const READ_AHEAD: usize = 2;
/// The largest window, as a power of two, that a frame may ask the reader to hold: 128 MiB, which is
/// what level 22 writes and what `zstd -d` accepts without being told.
const WINDOW_LOG_MAX: u32 = 27;

/// What the writing thread hands to the uploading task.
pub enum Piece {
    /// The next part of the current object.
    Part(Bytes),
    /// The current object is whole.
    End {
        /// Its size in bytes.
        size: u64,
        /// SHA-256 in hexadecimal.
        sha256: String,
        /// Its beginning.
        header: Header,
    },
    /// The stream is whole; a channel that closes without this was aborted.
    Finished,
}

/// How a stream is sealed.
#[derive(Clone)]
pub struct SealOptions {
    /// Who can read it.
    pub recipients: Recipients,
    /// zstd level.
    pub level: i32,
    /// Bytes in a part.
    pub part_size: usize,
    /// Most bytes in an object.
    pub segment_limit: u64,
    /// Memory of parts, which streams leave to those after them.
    pub pool: BufferPool,
}

/// The writing end: plaintext in, [`Piece`]s out. Runs on a blocking thread.
pub struct SealWriter {
    zstd: zstd::bulk::Compressor<'static>,
    /// What becomes the next frame, and its length then.
    block: Vec<u8>,
    block_size: usize,
    frame: Vec<u8>,
    segments: Segments,
    plain_size: u64,
}

/// Bytes that are compressed at once: several times the window of a level, so that what a frame cannot
/// refer to costs nothing that could be measured.
fn block_size(level: i32) -> usize {
    match level {
        ..=3 => 1 << 20,
        4..=9 => 4 << 20,
        _ => 16 << 20,
    }
}

impl SealOptions {
    /// Memory for one stream at a time, and for `more` that are begun and wait.
    pub fn buffers(&self, more: usize) -> PartBuffers {
        PartBuffers::new(self.part_size, self.pool.clone(), more)
    }
}

/// A writer, whose parts are of `buffers`, and the channel its pieces come out of.
pub fn seal(options: &SealOptions, buffers: PartBuffers) -> Result<(SealWriter, mpsc::Receiver<Piece>)> {
    let (sender, receiver) = mpsc::channel(parts::QUEUE);
    let parts = PartWriter::new(sender, buffers);
    let segments = Segments {
        recipients: options.recipients.clone(),
        // age adds 16 bytes to each 64 KiB, and a header of some hundred bytes a recipient. Tiny parts,
        // which only a directory takes, leave no room for a whole MiB of that.
        plain_limit: (options.segment_limit - options.segment_limit / 1024)
            .saturating_sub(1 << 20)
            .max(options.segment_limit / 2)
            .max(1),
        written: 0,
        age: None,
        parts: Some(parts),
    };
    let mut zstd = zstd::bulk::Compressor::new(options.level).context("cannot start zstd")?;
    let checksum = zstd::zstd_safe::CParameter::ChecksumFlag(true);
    zstd.set_parameter(checksum).context("cannot start zstd")?;
    let block_size = block_size(options.level);
    let writer =
        SealWriter { zstd, block: Vec::new(), block_size, frame: Vec::new(), segments, plain_size: 0 };
    Ok((writer, receiver))
}

impl SealWriter {
    /// Ends the stream: zstd, then age, then the last part, then the word that it is whole. Returns
    /// the bytes before compression. Call it only once the source is known to be complete.
    pub fn finish(mut self) -> Result<u64> {
        // An empty stream is a frame, too: without one `zstd -d` finds nothing to decompress.
        if !self.block.is_empty() || self.plain_size == 0 {
            self.end_block().context("cannot finish compression")?;
        }
        self.segments.finish()?;
        Ok(self.plain_size)
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.frame.clear();
        self.frame.reserve(zstd::zstd_safe::compress_bound(self.block.len()));
        self.zstd.compress_to_buffer(&self.block, &mut self.frame)?;
        self.block.clear();
        self.segments.write_all(&self.frame)
    }
}

impl Write for SealWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(self.block_size - self.block.len());
        self.block.extend_from_slice(&buf[..n]);
        self.plain_size += n as u64;
        if self.block.len() == self.block_size {
            self.end_block()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// age files one after another.
struct Segments {
    recipients: Recipients,
    plain_limit: u64,
    written: u64,
    age: Option<age::stream::StreamWriter<PartWriter>>,
    /// Between two age files.
    parts: Option<PartWriter>,
}

impl Segments {
    fn begin(&mut self) -> io::Result<()> {
        let parts = self.parts.take().ok_or_else(|| io::Error::other("stream was aborted"))?;
        let recipients = self.recipients.iter().map(|r| &**r as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        self.age = Some(encryptor.wrap_output(parts)?);
        self.written = 0;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some(age) = self.age.take() {
            let mut parts = age.finish()?;
            parts.end_object()?;
            self.parts = Some(parts);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.age.is_none() {
            self.begin()?; // an empty stream is still one object
        }
        self.end()?;
        if let Some(parts) = self.parts.take() {
            parts.send(Piece::Finished)?;
        }
        Ok(())
    }
}

impl Write for Segments {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.written >= self.plain_limit {
            self.end()?;
        }
        if self.age.is_none() {
            self.begin()?;
        }
        let room = usize::try_from(self.plain_limit - self.written).unwrap_or(usize::MAX);
        let Some(age) = &mut self.age else { return Err(io::Error::other("stream was aborted")) };
        let n = age.write(&buf[..buf.len().min(room)])?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Seals a small document held in memory.
pub async fn seal_bytes(
    store: &dyn Store,
    prefix: &str,
    key: &str,
    name: &str,
    bytes: Vec<u8>,
    options: &SealOptions,
) -> Result<Stream> {
    let started = std::time::Instant::now();
    let (mut writer, pieces) = seal(options, options.buffers(0))?;
    let thread = tokio::task::spawn_blocking(move || {
        writer.write_all(&bytes).context("cannot compress")?;
        writer.finish()
    });
    let uploaded = upload(store, prefix, key, pieces, |_| ()).await;
    let sealed = thread.await.map_err(|e| Error::new(format!("sealing stopped: {e}")))?;
    // When both fail, the writer only noticed that the store had.
    let objects = uploaded?;
    let plain_size = sealed?;
    let objects = objects.ok_or_else(|| Error::new("sealing stopped"))?;
    Ok(Stream {
        name: name.into(),
        plain_size,
        objects,
        seconds: started.elapsed().as_secs_f64(),
        locks: None,
    })
}

/// Ranges of a stream's objects, fetched ahead.
struct Source {
    chunks: mpsc::Receiver<Result<Bytes>>,
    chunk: Bytes,
    /// Bytes of the current object that are still to come.
    left: u64,
    sha256: Sha256,
}

/// One object's bytes; a handle because age keeps its input to itself.
#[derive(Clone)]
struct ObjectReader(Arc<Mutex<Source>>);

impl ObjectReader {
    fn lock(&self) -> MutexGuard<'_, Source> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is left of the object and compares its hash.
    fn check(&mut self, object: &Object) -> Result<()> {
        io::copy(self, &mut io::sink())?;
        let found = hex(&std::mem::take(&mut self.lock().sha256).finalize());
        if found == object.sha256 {
            return Ok(());
        }
        Err(changed(&object.key, &format!("its SHA-256 is {found}, the manifest says {}", object.sha256)))
    }
}

/// An object that is not what the manifest says, whoever or whatever did it.
pub fn changed(key: &str, how: &str) -> Error {
    Error::differs(format!("object {key} was changed since the backup wrote it: {how}")).with_hint(
        "somebody or something wrote to the repository; `opsd backups scrub` names all that was changed, and an \
         older set may be whole",
    )
}

impl Read for ObjectReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut source = self.lock();
        if source.left == 0 || buf.is_empty() {
            return Ok(0);
        }
        if source.chunk.is_empty() {
            source.chunk = match source.chunks.blocking_recv() {
                Some(chunk) => chunk?,
                None => return Err(Error::new("reading stopped").into()),
            };
        }
        let n = buf.len().min(source.chunk.len()).min(usize::try_from(source.left).unwrap_or(usize::MAX));
        buf[..n].copy_from_slice(&source.chunk[..n]);
        source.chunk.advance(n);
        source.left -= n as u64;
        source.sha256.update(&buf[..n]);
        Ok(n)
    }
}

/// Whether an error came up from the reader below rather than from the layer that reports it.
fn is_ours(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Error>())
}

/// An object's bytes once more, behind its header that was read already.
type Input = io::Chain<io::Cursor<Vec<u8>>, io::BufReader<ObjectReader>>;

/// The objects of a stream, decrypted one after another.
struct Decrypted {
    objects: std::vec::IntoIter<Object>,
    current: Option<(Object, age::stream::StreamReader<Input>)>,
    reader: ObjectReader,
    identities: Identities,
}

impl Decrypted {
    fn next_object(&mut self) -> Result<bool> {
        let Some(object) = self.objects.next() else { return Ok(false) };
        self.reader.lock().left = object.size;
        let mut input = io::BufReader::with_capacity(64 << 10, self.reader.clone());
        let header = header::read(&mut input, &object)?;
        let opened = age::Decryptor::new_buffered(Read::chain(io::Cursor::new(header), input))
            .and_then(|d| d.decrypt(self.identities.iter().map(|i| &**i as &dyn age::Identity)));
        match opened {
            Ok(stream) => {
                self.current = Some((object, stream));
                Ok(true)
            }
            Err(age::DecryptError::NoMatchingKeys) => {
                Err(Error::new(format!("no identity fits {}", object.key)).with_hint(
                    "encryption.identity_file must hold the secret key of one of the set's recipients",
                ))
            }
            Err(error) => Err(Error::differs(error).context(format!("cannot decrypt {}", object.key))),
        }
    }

    /// Reads what is left of all objects, and compares their hashes.
    fn check_rest(&mut self) -> Result<()> {
        if let Some((object, _)) = self.current.take() {
            self.reader.check(&object)?;
        }
        for object in self.objects.by_ref() {
            self.reader.lock().left = object.size;
            self.reader.check(&object)?;
        }
        Ok(())
    }
}

impl Read for Decrypted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some((object, stream)) = &mut self.current else {
                if self.next_object()? {
                    continue;
                }
                return Ok(0);
            };
            match stream.read(buf) {
                Ok(0) if !buf.is_empty() => {
                    self.reader.check(object)?;
                    self.current = None;
                }
                Ok(n) => return Ok(n),
                Err(error) if is_ours(&error) => return Err(error),
                Err(error) => {
                    return Err(
                        changed(&object.key, &format!("it does not decrypt any more ({error})")).into()
                    );
                }
            }
        }
    }
}

/// Plaintext of a stream; blocking, for a thread of its own. Its errors do not name the stream: whoever reads says
/// which one, and of which database.
pub struct Unsealed {
    zstd: zstd::stream::read::Decoder<'static, io::BufReader<Decrypted>>,
    name: String,
    left: u64,
    ended: bool,
    /// An error came out: why is known, and what is left of the stream tells nothing.
    failed: bool,
}

/// Opens a stream of the set under `prefix`. Must be called within the runtime; the result is read
/// outside it.
pub fn read_stream(
    store: Arc<dyn Store>,
    prefix: &str,
    stream: &Stream,
    identities: Identities,
    progress: impl Fn(u64) + Send + 'static,
) -> Result<Unsealed> {
    let (sender, chunks) = mpsc::channel(1);
    let objects: Vec<(String, u64)> =
        stream.objects.iter().map(|o| (format!("{prefix}{}", o.key), o.size)).collect();
    // One after another, never as a list: sizes are what a manifest claims.
    let ranges = objects.into_iter().flat_map(|(key, size)| {
        (0..size.div_ceil(READ_RANGE)).map(move |i| {
            let start = i * READ_RANGE;
            (key.clone(), start..size.min(start.saturating_add(READ_RANGE)))
        })
    });
    tokio::spawn(async move {
        let mut fetched = stream::iter(ranges)
            .map(|(key, range)| {
                let store = store.clone();
                async move { fetch(store.as_ref(), &key, range).await }
            })
            .buffered(READ_AHEAD);
        // A reader that went away ends the task.
        while let Some(chunk) = fetched.next().await {
            if let Ok(bytes) = &chunk {
                progress(bytes.len() as u64);
            }
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
    });
    let source = Source { chunks, chunk: Bytes::new(), left: 0, sha256: Sha256::new() };
    let decrypted = Decrypted {
        objects: stream.objects.clone().into_iter(),
        current: None,
        reader: ObjectReader(Arc::new(Mutex::new(source))),
        identities,
    };
    let mut zstd = zstd::stream::read::Decoder::new(decrypted).context("cannot start zstd")?;
    zstd.window_log_max(WINDOW_LOG_MAX).context("cannot start zstd")?;
    Ok(Unsealed { zstd, name: stream.name.clone(), left: stream.plain_size, ended: false, failed: false })
}

async fn fetch(store: &dyn Store, key: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
    let wanted = range.end - range.start;
    let bytes = store.read(key, range).await.map_err(|error| match error {
        // The manifest promised it.
        crate::store::StoreError::NotFound(what) => Error::differs(what),
        error => error.into(),
    })?;
    if bytes.len() as u64 != wanted {
        return Err(Error::differs(format!("object {key} is shorter than the manifest says")));
    }
    Ok(bytes)
}

impl Unsealed {
    fn read_checked(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.zstd.read(buf).map_err(|e| {
            // What zstd itself complains of is content that is not what the manifest says, although it
            // decrypts: another stream's object, or one that somebody else made.
            let error = if is_ours(&e) { Error::from(e) } else { self.cause(Error::differs(e)) };
            error.context("cannot be read")
        })?;
        if n as u64 > self.left || (n == 0 && self.left > 0) {
            let what = if n == 0 { "less" } else { "more" };
            let error = Error::differs(format!("holds {what} than the manifest says"));
            return Err(self.cause(error));
        }
        self.left -= n as u64;
        self.ended = n == 0;
        Ok(n)
    }

    /// Why something failed that was made of this stream: where one of its objects was changed, that is
    /// why, whatever came of it first. What is left is read for that; blocking, as reading is.
    pub fn cause(&mut self, error: Error) -> Error {
        if std::mem::replace(&mut self.failed, true) {
            return error;
        }
        match self.zstd.get_mut().get_mut().check_rest() {
            Err(changed) if changed.kind() == Kind::Differs => {
                tracing::info!("stream {}: {error}", self.name);
                changed
            }
            Err(other) => {
                tracing::debug!("stream {}: the rest of it was not compared: {other}", self.name);
                error
            }
            Ok(()) => error,
        }
    }
}

impl Read for Unsealed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ended || buf.is_empty() {
            return Ok(0);
        }
        let read = self.read_checked(buf);
        self.failed |= read.is_err();
        Ok(read?)
    }
}

/// [`Unsealed::cause`], for who has stopped reading and may not block.
pub async fn cause(mut source: Unsealed, error: Error) -> Error {
    let unknown = error.clone();
    tokio::task::spawn_blocking(move || source.cause(error)).await.unwrap_or(unknown)
}

/// Reads a small stream whole, refusing more than `limit` bytes.
pub async fn read_bytes(
    store: Arc<dyn Store>,
    prefix: &str,
    stream: &Stream,
    identities: Identities,
    limit: u64,
) -> Result<Vec<u8>> {
    if stream.plain_size > limit {
        return Err(Error::differs(format!("stream {} claims {} bytes", stream.name, stream.plain_size)));
    }
    let mut reader = read_stream(store, prefix, stream, identities, |_| ())?;
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok::<_, Error>(bytes)
    });
    let read = read.await.map_err(|e| Error::new(format!("reading stopped: {e}")))?;
    read.with_context(|| format!("stream {}", stream.name))
}

#[cfg(test)]
mod tests;
