//! A push parser that fingerprints an archive as its bytes pass, and decides whether it is complete.
//!
//! The archive has no end marker. It is complete when every entry that promised data had exactly one
//! block and nothing follows; [`Parser::finish`] says so or says what is missing. Memory grows only with
//! bytes that were really fed, whatever lengths they claim, and is bounded by the table of contents:
//! one entry (at most `MAX_ENTRY`) waits until it is whole, a row never does. A 100 MB value is hashed
//! as it streams.

use std::collections::HashMap;

use super::{Entry, Header, ReadError, Start, decode_int, read_entry, read_start};
use crate::error::{Error, Result};
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::Fingerprint;

const BLOCK_DATA: u8 = 1;
const BLOCK_BLOBS: u8 = 3;
/// An entry larger than this is damage. It holds one SQL statement, which the server that takes it must
/// hold whole; the largest in use, functions with a program inside, are a few megabytes.
const MAX_ENTRY: usize = 256 << 20;

/// What was found in one archive.
#[derive(Debug, Default)]
pub struct Contents {
    /// `None` where the archive's version is unknown; everything else is then empty.
    pub header: Option<Header>,
    /// Version found, known or not.
    pub version: (u8, u8),
    /// The table of contents; without definitions, only the entries that a proof needs.
    pub entries: Vec<Entry>,
    /// Fingerprints of data blocks by dump id.
    pub data: HashMap<i32, Fingerprint>,
    /// All large objects.
    pub large_objects: Fingerprint,
    /// Ids of entries whose blocks were large objects.
    pub blob_blocks: u64,
}

enum State {
    Header,
    Toc { left: i64 },
    BlockType,
    BlockId { blobs: bool },
    ChunkLen,
    Chunk { left: u64 },
    BlobOid,
    BlobLen,
    BlobChunk { left: u64 },
    Unknown,
}

/// A data block that the table of contents announced.
struct Promise {
    /// Large objects rather than rows.
    blobs: bool,
    seen: bool,
}

/// The parser. Feed it everything, in pieces of any size, then finish it.
pub struct Parser {
    state: State,
    contents: Contents,
    /// Bytes of a value that is split between pieces.
    carry: Vec<u8>,
    /// Not worth trying again before the carry is this long (keeps a huge entry linear).
    retry_at: usize,
    promised: HashMap<i32, Promise>,
    keep_definitions: bool,
    current: i32,
    hasher: RowHasher,
    /// The `\.` line was seen; only newlines may follow in this block.
    copy_ended: bool,
    /// First bytes of a row that arrives in pieces, to recognise `\.`.
    head: Vec<u8>,
    position: u64,
}

impl Parser {
    /// A parser whose row hashes are keyed by `secret`. Definitions are megabytes in a large schema, and
    /// up to pg_dump 16 each large object is an entry; without `keep_definitions` only entries that a
    /// proof, or the choice of tablespaces, needs stay in memory: those with data or in a tablespace,
    /// sequences' values and the encoding.
    pub fn new(secret: &RowSecret, keep_definitions: bool) -> Self {
        Self {
            state: State::Header,
            contents: Contents::default(),
            carry: Vec::new(),
            retry_at: 0,
            promised: HashMap::new(),
            keep_definitions,
            current: 0,
            hasher: RowHasher::new(secret),
            copy_ended: false,
            head: Vec::new(),
            position: 0,
        }
    }

    /// The next bytes of the archive.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<()> {
        let total = bytes.len();
        while !bytes.is_empty() {
            let used = self.step(bytes).map_err(|what| {
                let at = self.position + (total - bytes.len()) as u64;
                Error::new(format!("archive is damaged near byte {at}: {what}"))
            })?;
            bytes = &bytes[used..];
        }
        self.position += total as u64;
        Ok(())
    }

    /// The table of contents, as soon as it is whole.
    pub fn contents(&self) -> Option<&[Entry]> {
        let is_whole = !matches!(self.state, State::Header | State::Toc { .. });
        is_whole.then_some(self.contents.entries.as_slice())
    }

    /// Ends the archive: complete, or an error that says what is missing.
    pub fn finish(mut self) -> Result<Contents> {
        // An entry may be whole in the carry, waiting for its next attempt.
        self.retry_at = 0;
        if matches!(self.state, State::Header | State::Toc { .. }) {
            self.parse_carry().map_err(|what| Error::new(format!("archive is damaged: {what}")))?;
        }
        match self.state {
            State::Unknown => Ok(self.contents),
            State::BlockType => {
                let mut missing: Vec<i32> =
                    self.promised.iter().filter(|(_, promise)| !promise.seen).map(|(id, _)| *id).collect();
                missing.sort_unstable();
                if let Some(id) = missing.first() {
                    let name = self.contents.entries.iter().find(|e| e.dump_id == *id);
                    return Err(Error::new(format!(
                        "archive ends before the data of {} ({} of {} blocks missing)",
                        name.map_or_else(
                            || id.to_string(),
                            |e| format!("{} {:?}", e.desc.to_lowercase(), e.tag)
                        ),
                        missing.len(),
                        self.promised.len()
                    )));
                }
                Ok(self.contents)
            }
            _ => Err(Error::new(format!("archive ends in the middle, at byte {}", self.position))),
        }
    }

    /// Handles a prefix of `bytes` and says how long it was; always more than nothing.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, String> {
        match self.state {
            State::Unknown => Ok(bytes.len()),
            State::Header | State::Toc { .. } => {
                // All of it goes into the carry: what the table of contents leaves over is replayed.
                self.carry.extend_from_slice(bytes);
                if self.carry.len() >= self.retry_at {
                    self.parse_carry()?;
                }
                Ok(bytes.len())
            }
            State::BlockType => {
                let blobs = match bytes[0] {
                    BLOCK_DATA => false,
                    BLOCK_BLOBS => true,
                    other => return Err(format!("block of unknown type {other}")),
                };
                self.state = State::BlockId { blobs };
                Ok(1)
            }
            State::BlockId { blobs } => {
                let (value, used) = self.int(bytes)?;
                if let Some(id) = value {
                    self.begin_block(id, blobs)?;
                }
                Ok(used)
            }
            State::ChunkLen => {
                let (value, used) = self.int(bytes)?;
                match value {
                    None => {}
                    Some(0) => self.end_copy()?,
                    Some(n) if n > 0 => self.state = State::Chunk { left: n.unsigned_abs() },
                    Some(n) => return Err(format!("chunk of {n} bytes")),
                }
                Ok(used)
            }
            State::Chunk { left } => {
                let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.copy_text(&bytes[..n])?;
                self.state = match left - n as u64 {
                    0 => State::ChunkLen,
                    left => State::Chunk { left },
                };
                Ok(n)
            }
            State::BlobOid => {
                let (value, used) = self.int(bytes)?;
                match value {
                    None => {}
                    Some(0) => {
                        let found = self.hasher.take();
                        self.contents.large_objects.add(found);
                        self.contents.blob_blocks += 1;
                        self.state = State::BlockType;
                    }
                    // OIDs are unsigned; above 2^31 they are written as negative numbers.
                    Some(oid) => {
                        let oid = large_object_id(oid)?;
                        self.hasher.piece(&oid.to_le_bytes());
                        self.state = State::BlobLen;
                    }
                }
                Ok(used)
            }
            State::BlobLen => {
                let (value, used) = self.int(bytes)?;
                match value {
                    None => {}
                    Some(0) => {
                        self.hasher.end_row();
                        self.state = State::BlobOid;
                    }
                    Some(n) if n > 0 => self.state = State::BlobChunk { left: n.unsigned_abs() },
                    Some(n) => return Err(format!("chunk of {n} bytes")),
                }
                Ok(used)
            }
            State::BlobChunk { left } => {
                let n = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.hasher.piece(&bytes[..n]);
                self.state = match left - n as u64 {
                    0 => State::BlobLen,
                    left => State::BlobChunk { left },
                };
                Ok(n)
            }
        }
    }

    /// Header and entries out of the carry; the rest is replayed as data.
    fn parse_carry(&mut self) -> Result<(), String> {
        let carry = std::mem::take(&mut self.carry);
        let mut at = 0;
        loop {
            let outcome = match &self.state {
                State::Header => read_start(&carry[at..]).map(|(start, used)| {
                    match start {
                        Start::Known(header, left) => {
                            self.contents.version = header.version;
                            self.contents.header = Some(header);
                            self.state = if left == 0 { State::BlockType } else { State::Toc { left } };
                        }
                        Start::Unknown { version } => {
                            self.contents.version = version;
                            self.state = State::Unknown;
                        }
                    }
                    used
                }),
                State::Toc { left } => {
                    let left = *left;
                    let Some(header) = &self.contents.header else { return Err("no header".into()) };
                    match read_entry(&carry[at..], header) {
                        Ok((entry, used)) => {
                            self.add_entry(entry)?;
                            self.state =
                                if left == 1 { State::BlockType } else { State::Toc { left: left - 1 } };
                            Ok(used)
                        }
                        Err(e) => Err(e),
                    }
                }
                _ => {
                    // What follows the table of contents is data.
                    let mut rest = &carry[at..];
                    while !rest.is_empty() {
                        let used = self.step(rest)?;
                        rest = &rest[used..];
                    }
                    return Ok(());
                }
            };
            match outcome {
                Ok(used) => at += used,
                Err(ReadError::Malformed(what)) => return Err(what),
                Err(ReadError::Incomplete) => {
                    if carry.len() - at > MAX_ENTRY {
                        return Err(format!("an entry of more than {MAX_ENTRY} bytes"));
                    }
                    self.carry.extend_from_slice(&carry[at..]);
                    self.retry_at = self.carry.len() * 2;
                    return Ok(());
                }
            }
        }
    }

    fn add_entry(&mut self, mut entry: Entry) -> Result<(), String> {
        let promise = Promise { blobs: entry.desc == "BLOBS", seen: false };
        if entry.has_data && self.promised.insert(entry.dump_id, promise).is_some() {
            return Err(format!("two entries with dump id {}", entry.dump_id));
        }
        if !self.keep_definitions {
            let has_value = matches!(entry.desc.as_str(), "SEQUENCE SET" | "ENCODING");
            // How many large objects there are, `BLOB METADATA` tells without data of its own.
            let counts = entry.desc == "BLOB METADATA";
            if !has_value && !counts && !entry.has_data && entry.tablespace.is_empty() {
                return Ok(());
            }
            if !has_value {
                entry.defn = String::new();
            }
            entry.dependencies = Vec::new();
        }
        self.contents.entries.push(entry);
        Ok(())
    }

    fn begin_block(&mut self, id: i64, blobs: bool) -> Result<(), String> {
        let id = i32::try_from(id).map_err(|_| format!("data block {id}"))?;
        match self.promised.get_mut(&id) {
            None => return Err(format!("data for entry {id}, which promised none")),
            Some(promise) if promise.blobs != blobs => {
                return Err(format!("data for entry {id} is of the wrong kind"));
            }
            Some(promise) if promise.seen => return Err(format!("data for entry {id} twice")),
            Some(promise) => promise.seen = true,
        }
        self.current = id;
        self.copy_ended = false;
        self.state = if blobs { State::BlobOid } else { State::ChunkLen };
        Ok(())
    }

    fn end_copy(&mut self) -> Result<(), String> {
        if !self.copy_ended {
            return Err(format!("rows of entry {} end without \\.", self.current));
        }
        let found = self.hasher.take();
        self.contents.data.insert(self.current, found);
        self.state = State::BlockType;
        Ok(())
    }

    /// COPY text: rows end at newlines, which never occur inside a row; chunks mean nothing.
    fn copy_text(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.copy_ended {
                return if bytes.iter().all(|b| *b == b'\n') { Ok(()) } else { Err("rows after \\.".into()) };
            }
            let Some(end) = memchr_newline(bytes) else {
                self.piece(bytes);
                return Ok(());
            };
            let (row, rest) = bytes.split_at(end + 1);
            if self.hasher.pending() == 0 {
                if row == b"\\.\n" {
                    self.copy_ended = true;
                } else {
                    self.hasher.row(row);
                }
            } else {
                self.piece(row);
                if self.hasher.pending() == 3 && self.head == b"\\.\n" {
                    self.hasher.discard_row();
                    self.copy_ended = true;
                } else {
                    self.hasher.end_row();
                }
                self.head.clear();
            }
            bytes = rest;
        }
        Ok(())
    }

    fn piece(&mut self, bytes: &[u8]) {
        let room = 3usize.saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.hasher.piece(bytes);
    }

    /// An integer that may be split between pieces: the value once it is whole, and bytes used.
    #[inline]
    fn int(&mut self, bytes: &[u8]) -> Result<(Option<i64>, usize), String> {
        let size = 1 + usize::from(self.contents.header.as_ref().map_or(4, |h| h.int_size));
        let bad = || "integer out of range".to_string();
        if self.carry.is_empty() && bytes.len() >= size {
            return Ok((Some(decode_int(&bytes[..size]).ok_or_else(bad)?), size));
        }
        let used = (size - self.carry.len()).min(bytes.len());
        self.carry.extend_from_slice(&bytes[..used]);
        if self.carry.len() < size {
            return Ok((None, used));
        }
        let value = decode_int(&self.carry).ok_or_else(bad)?;
        self.carry.clear();
        Ok((Some(value), used))
    }
}

/// An OID as the archive writes it: a C `int`, so values from 2^31 on come out negative.
fn large_object_id(value: i64) -> Result<u32, String> {
    let bad = || format!("large object {value}");
    if value < 0 {
        i32::try_from(value).map(i32::cast_unsigned).map_err(|_| bad())
    } else {
        u32::try_from(value).map_err(|_| bad())
    }
}

#[inline]
fn memchr_newline(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes)
}

#[cfg(test)]
mod tests;
