//! One archive of several tables, cut into archives of one table each while its bytes pass.
//!
//! One pg_dump holds one session. Where each large table had a pg_dump of its own, most of them waited for
//! their turn, and a session that waits to write blocks others (`backup::streams` says how). So a pg_dump
//! takes several large tables, and its archive is cut between their data blocks. Every piece is a complete
//! archive, which pg_restore reads: the header, the entries that belong to it as pg_dump wrote them, and
//! its data. What is not a chosen table stays in the archive it came in, called the rest here.
//!
//! An archive of definitions is not cut, but mended ([`Splitter::of_schema`]). Whoever restores a part of an archive
//! drops the other entries and their data ([`Splitter::without`]).
//!
//! An archive of a version that is not known cannot be cut; all of it is the rest, or the first table's.
//! Deliberately absent: what rows mean (`parser`), and where pieces go.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Entry, Header, ReadError, Section, Start, decode_int, move_behind_rows, read_entry, read_start};
use crate::error::{Error, Result};

/// Most bytes of an entry or of the header; [`super::parser`] has the same bound.
pub(super) const MAX_ENTRY: usize = 256 << 20;

const BLOCK_DATA: u8 = 1;
const BLOCK_BLOBS: u8 = 3;

/// Entries that every archive begins with, because the others are written under what they set.
pub const EVERYWHERE: [&str; 3] = ["ENCODING", "STDSTRINGS", "SEARCHPATH"];

/// Which piece of an archive bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// All that is no chosen table's.
    Rest,
    /// The chosen table of this index.
    Table(usize),
}

/// What a [`Splitter`] hands on.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The next bytes of a piece.
    Bytes(To, &'a [u8]),
    /// A table's piece is whole. The rest ends with the archive.
    End(usize),
}

enum State {
    Header,
    Toc {
        left: i64,
    },
    BlockType,
    BlockId {
        kind: u8,
    },
    /// Between the chunks of a data block.
    ChunkLen,
    Chunk {
        left: u64,
    },
    BlobOid,
    BlobLen,
    BlobChunk {
        left: u64,
    },
    /// Nothing more to be cut.
    Through(To),
}

struct Table {
    schema: String,
    name: String,
    dump_id: Option<i32>,
    /// Its entry, as it was written.
    entry: Vec<u8>,
    is_done: bool,
}

/// The splitter. Feed it everything, in pieces of any size, then finish it.
pub struct Splitter {
    state: State,
    has_rest: bool,
    tables: Vec<Table>,
    header: Option<Header>,
    /// The header up to the number of entries.
    start: Vec<u8>,
    /// The entries that each table's piece begins with, as they were written, and how many they are.
    common: (Vec<u8>, i64),
    /// Bytes of a value that is split between pieces.
    carry: Vec<u8>,
    /// Not worth trying again before the carry is this long.
    retry_at: usize,
    /// Whose block it is; nobody's where its entry is dropped.
    to: Option<To>,
    /// Entries that are dropped with their data, and how many of them are still to come.
    dropped: HashSet<i32>,
    undropped: usize,
    /// In an archive of definitions: the entries so far that come after the rows.
    behind_rows: Option<HashSet<i32>>,
}

impl Splitter {
    /// Cuts these tables (schema and name) out of an archive. Without `has_rest` nothing else may hold data;
    /// one table alone is then the archive as it is.
    pub fn new(tables: Vec<(String, String)>, has_rest: bool) -> Self {
        let state = match (tables.len(), has_rest) {
            (0, _) => State::Through(To::Rest),
            (1, false) => State::Through(To::Table(0)),
            _ => State::Header,
        };
        let table = |(schema, name)| Table { schema, name, dump_id: None, entry: Vec::new(), is_done: false };
        Self {
            state,
            has_rest,
            tables: tables.into_iter().map(table).collect(),
            header: None,
            start: Vec::new(),
            common: (Vec::new(), 0),
            carry: Vec::new(),
            retry_at: 0,
            to: Some(To::Rest),
            dropped: HashSet::new(),
            undropped: 0,
            behind_rows: None,
        }
    }

    /// Drops these entries, by dump id, and their data; everything else is the rest. All of them must be there.
    pub fn without(dropped: HashSet<i32>) -> Self {
        match dropped.len() {
            0 => Self::new(Vec::new(), true),
            undropped => Self { state: State::Header, dropped, undropped, ..Self::new(Vec::new(), true) },
        }
    }

    /// Mends an archive of definitions, all of which is the rest. pg_dump moves a materialized view that groups by
    /// a primary key behind the rows, where the key is made; what is made of that view, such as a function that
    /// returns its rows, stays marked as being before them. Restored section by section it would not find the
    /// view. So an entry that depends on one behind the rows is marked as being there, too.
    pub fn of_schema() -> Self {
        Self { state: State::Header, behind_rows: Some(HashSet::new()), ..Self::new(Vec::new(), true) }
    }

    /// The next bytes of the archive.
    pub fn feed(&mut self, bytes: &[u8], out: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        if matches!(self.state, State::Header | State::Toc { .. }) {
            self.carry.extend_from_slice(bytes);
            if self.carry.len() < self.retry_at {
                return Ok(());
            }
            let carry = std::mem::take(&mut self.carry);
            let used = self.contents(&carry, out)?;
            if matches!(self.state, State::Header | State::Toc { .. }) {
                self.carry = carry[used..].to_vec();
                if self.carry.len() > MAX_ENTRY {
                    return Err(damaged(format!("an entry of more than {MAX_ENTRY} bytes")));
                }
                self.retry_at = self.carry.len() * 2;
                return Ok(());
            }
            return self.data(&carry[used..], out);
        }
        self.data(bytes, out)
    }

    /// Ends the archive: between two blocks, with each table's data behind it.
    pub fn finish(mut self, out: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        self.retry_at = 0;
        if matches!(self.state, State::Header | State::Toc { .. }) {
            self.feed(&[], out)?;
        }
        match self.state {
            State::Through(To::Table(0)) => out(Piece::End(0)),
            State::Through(_) => Ok(()),
            State::BlockType => match self.tables.iter().find(|t| !t.is_done) {
                None => Ok(()),
                Some(table) => Err(Error::new(format!(
                    "archive ends before the data of table {}.{}",
                    table.schema, table.name
                ))),
            },
            _ => Err(Error::new("archive ends in the middle")),
        }
    }

    /// Header and entries, as far as they are whole; says how many bytes that were.
    fn contents(&mut self, bytes: &[u8], out: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<usize> {
        let mut at = 0;
        loop {
            match self.state {
                State::Header => match read_start(&bytes[at..]) {
                    Ok((Start::Unknown { .. }, _)) if self.undropped != 0 => {
                        return Err(Error::new("the archive is of a version that this opsd does not know"));
                    }
                    Ok((Start::Unknown { .. }, _)) => {
                        self.state = State::Through(if self.has_rest { To::Rest } else { To::Table(0) });
                        return Ok(at);
                    }
                    Ok((Start::Known(header, count), used)) => {
                        let end = at + used - 1 - usize::from(header.int_size);
                        self.start = bytes[at..end].to_vec();
                        if self.has_rest {
                            let rest = count - (self.tables.len() + self.undropped) as i64;
                            let count = encode_int(rest, header.int_size)
                                .filter(|_| rest >= 0)
                                .ok_or_else(|| damaged("it has too few entries".into()))?;
                            out(Piece::Bytes(To::Rest, &self.start))?;
                            out(Piece::Bytes(To::Rest, &count))?;
                        }
                        self.header = Some(header);
                        self.state = State::Toc { left: count };
                        at += used;
                    }
                    Err(ReadError::Incomplete) => return Ok(at),
                    Err(ReadError::Malformed(what)) => return Err(damaged(what)),
                },
                State::Toc { left: 0 } => {
                    if let Some(table) = self.tables.iter().find(|t| t.dump_id.is_none()) {
                        return Err(Error::new(format!(
                            "the archive does not hold table {}.{}",
                            table.schema, table.name
                        )));
                    }
                    if self.undropped != 0 {
                        return Err(damaged(format!(
                            "{} entries that were to be dropped are missing",
                            self.undropped
                        )));
                    }
                    self.state = State::BlockType;
                    return Ok(at);
                }
                State::Toc { left } => {
                    let Some(header) = &self.header else { return Err(damaged("no header".into())) };
                    match read_entry(&bytes[at..], header) {
                        Ok((entry, used)) => {
                            self.entry(&entry, &bytes[at..at + used], out)?;
                            self.state = State::Toc { left: left - 1 };
                            at += used;
                        }
                        Err(ReadError::Incomplete) => return Ok(at),
                        Err(ReadError::Malformed(what)) => return Err(damaged(what)),
                    }
                }
                _ => return Ok(at),
            }
        }
    }

    fn entry(
        &mut self,
        entry: &Entry,
        raw: &[u8],
        out: &mut impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.dropped.contains(&entry.dump_id) {
            self.undropped = self
                .undropped
                .checked_sub(1)
                .ok_or_else(|| damaged(format!("entry {} twice", entry.dump_id)))?;
            return Ok(());
        }
        let is_of = |t: &&mut Table| t.schema == entry.namespace && t.name == entry.tag;
        if entry.desc == "TABLE DATA"
            && let Some(table) = self.tables.iter_mut().find(is_of)
        {
            if table.dump_id.replace(entry.dump_id).is_some() {
                return Err(damaged(format!("the rows of {}.{} twice", entry.namespace, entry.tag)));
            }
            table.entry = raw.to_vec();
            // A table without a block of its own has no piece; pg_dump writes one for each.
            if !entry.has_data {
                return Err(damaged(format!("no rows of {}.{}", entry.namespace, entry.tag)));
            }
            return Ok(());
        }
        if self.has_rest {
            out(Piece::Bytes(To::Rest, &self.mended(entry, raw)?))?;
        }
        if !self.has_rest && entry.has_data {
            return Err(Error::new(format!(
                "the archive holds {} {}.{}, which was not asked for",
                entry.desc.to_lowercase(),
                entry.namespace,
                entry.tag
            )));
        }
        if !self.has_rest || EVERYWHERE.contains(&entry.desc.as_str()) {
            self.common.0.extend_from_slice(raw);
            self.common.1 += 1;
        }
        Ok(())
    }

    /// An entry with the section that it belongs to. The ids that it depends on stand before it.
    fn mended<'a>(&mut self, entry: &Entry, raw: &'a [u8]) -> Result<Cow<'a, [u8]>> {
        let (Some(behind), Some(header)) = (&mut self.behind_rows, &self.header) else {
            return Ok(Cow::Borrowed(raw));
        };
        let depends = || entry.dependencies.iter().any(|id| behind.contains(id));
        let is_moved = entry.section == Section::PreData && depends();
        if is_moved || entry.section == Section::PostData {
            behind.insert(entry.dump_id);
        }
        if !is_moved {
            return Ok(Cow::Borrowed(raw));
        }
        let mut raw = raw.to_vec();
        move_behind_rows(&mut raw, header).map_err(|_| damaged(format!("entry {}", entry.dump_id)))?;
        Ok(Cow::Owned(raw))
    }

    /// Data blocks.
    fn data(&mut self, bytes: &[u8], out: &mut impl FnMut(Piece<'_>) -> Result<()>) -> Result<()> {
        // What lies before `from` was handed on, and all up to `at` belongs to `self.to`.
        let (mut from, mut at) = (0, 0);
        let hand_on = |to: Option<To>, bytes: &[u8], out: &mut dyn FnMut(Piece<'_>) -> Result<()>| match to {
            Some(to) if !bytes.is_empty() => out(Piece::Bytes(to, bytes)),
            _ => Ok(()),
        };
        while at < bytes.len() {
            match self.state {
                State::Header | State::Toc { .. } => return Err(damaged("no header".into())),
                State::Through(to) => {
                    self.to = Some(to);
                    at = bytes.len();
                }
                State::BlockType => {
                    self.state = State::BlockId { kind: bytes[at] };
                    at += 1;
                    from = at;
                }
                State::BlockId { kind } => {
                    let value = self.int(bytes, &mut at)?;
                    from = at;
                    if let Some(id) = value {
                        self.begin_block(kind, id, out)?;
                    }
                }
                State::ChunkLen => match self.int(bytes, &mut at)? {
                    None => {}
                    Some(0) => {
                        hand_on(self.to, &bytes[from..at], out)?;
                        from = at;
                        self.state = State::BlockType;
                        if let Some(To::Table(table)) = self.to {
                            self.tables[table].is_done = true;
                            out(Piece::End(table))?;
                        }
                    }
                    Some(n) if n > 0 => self.state = State::Chunk { left: n.unsigned_abs() },
                    Some(n) => return Err(damaged(format!("chunk of {n} bytes"))),
                },
                State::Chunk { left } => {
                    let left = pass(left, bytes.len(), &mut at);
                    self.state = if left == 0 { State::ChunkLen } else { State::Chunk { left } };
                }
                State::BlobOid => match self.int(bytes, &mut at)? {
                    None => {}
                    Some(0) => {
                        hand_on(self.to, &bytes[from..at], out)?;
                        from = at;
                        self.state = State::BlockType;
                    }
                    Some(_) => self.state = State::BlobLen,
                },
                State::BlobLen => match self.int(bytes, &mut at)? {
                    None => {}
                    Some(0) => self.state = State::BlobOid,
                    Some(n) if n > 0 => self.state = State::BlobChunk { left: n.unsigned_abs() },
                    Some(n) => return Err(damaged(format!("chunk of {n} bytes"))),
                },
                State::BlobChunk { left } => {
                    let left = pass(left, bytes.len(), &mut at);
                    self.state = if left == 0 { State::BlobLen } else { State::BlobChunk { left } };
                }
            }
        }
        hand_on(self.to, &bytes[from..at], out)
    }

    /// A block's beginning is written anew: whose it is was only known behind it.
    fn begin_block(
        &mut self,
        kind: u8,
        id: i64,
        out: &mut impl FnMut(Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let size = self.int_size();
        let raw_id = encode_int(id, size).ok_or_else(|| damaged(format!("data block {id}")))?;
        let table = self.tables.iter().position(|t| t.dump_id.is_some_and(|of| i64::from(of) == id));
        self.to = match table {
            Some(table) if kind == BLOCK_DATA && !self.tables[table].is_done => Some(To::Table(table)),
            Some(_) => return Err(damaged(format!("data for entry {id} twice"))),
            None if i32::try_from(id).is_ok_and(|id| self.dropped.contains(&id)) => None,
            None if self.has_rest => Some(To::Rest),
            None => return Err(damaged(format!("data for entry {id}, which was not asked for"))),
        };
        if let Some(table) = table {
            let count =
                encode_int(self.common.1 + 1, size).ok_or_else(|| damaged("too many entries".into()))?;
            for bytes in [&self.start, &count, &self.common.0, &self.tables[table].entry] {
                out(Piece::Bytes(To::Table(table), bytes))?;
            }
        }
        if let Some(to) = self.to {
            out(Piece::Bytes(to, &[kind]))?;
            out(Piece::Bytes(to, &raw_id))?;
        }
        self.state = match kind {
            BLOCK_DATA => State::ChunkLen,
            BLOCK_BLOBS => State::BlobOid,
            other => return Err(damaged(format!("block of unknown type {other}"))),
        };
        Ok(())
    }

    fn int_size(&self) -> u8 {
        self.header.as_ref().map_or(4, |h| h.int_size)
    }

    /// An integer that may be split between pieces, once it is whole.
    fn int(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<i64>> {
        let size = 1 + usize::from(self.int_size());
        let bad = || damaged("integer out of range".into());
        if self.carry.is_empty() && bytes.len() - *at >= size {
            let raw = &bytes[*at..*at + size];
            *at += size;
            return decode_int(raw).map(Some).ok_or_else(bad);
        }
        let used = (size - self.carry.len()).min(bytes.len() - *at);
        self.carry.extend_from_slice(&bytes[*at..*at + used]);
        *at += used;
        if self.carry.len() < size {
            return Ok(None);
        }
        let value = decode_int(&self.carry).ok_or_else(bad)?;
        self.carry.clear();
        Ok(Some(value))
    }
}

/// Moves `at` over as much of `left` bytes as there is; says how much is left.
fn pass(left: u64, length: usize, at: &mut usize) -> u64 {
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(length - *at);
    *at += here;
    left - here as u64
}

/// A sign byte and a magnitude; `None` where that does not fit into 32 bits.
pub(super) fn encode_int(value: i64, int_size: u8) -> Option<Vec<u8>> {
    let magnitude = u32::try_from(value.unsigned_abs()).ok()?;
    let mut raw = vec![u8::from(value < 0)];
    raw.extend(magnitude.to_le_bytes());
    raw.resize(1 + usize::from(int_size), 0);
    Some(raw)
}

fn damaged(what: String) -> Error {
    Error::new(format!("archive is damaged: {what}"))
}

#[cfg(test)]
mod tests;
