//! The rows of an archive that holds one table, to be fed to a COPY.
//!
//! A stream of its own for a large table is such an archive. Whoever restores it can then do without
//! pg_restore: the rows go to the server as they come, in a transaction of the reader's own making.
//! Nothing is hashed here: the objects were checked on the way, and the proof looks at the server.

use std::io::Read;

use super::copy::CopyStatement;
use super::{Entry, Header, ReadError, Start, decode_int, read_entry, read_start};
use crate::error::{Context, Error, Result};

const BLOCK_DATA: u8 = 1;
/// Bytes read at first; the table of contents of one table is smaller.
const FIRST_READ: usize = 64 << 10;
/// A table of contents that is larger is no table's; in memory it takes several times as much.
const MAX_CONTENTS: usize = 4 << 20;

/// An archive of one table, opened at its rows.
pub struct TableRows<R> {
    /// The table's `TABLE DATA` entry.
    pub entry: Entry,
    /// Its COPY statement, which names the table itself.
    pub statement: CopyStatement,
    /// Encoding of names and rows, as the archive says.
    pub encoding: String,
    source: R,
    int_size: u8,
    /// Bytes read past the table of contents.
    head: Vec<u8>,
    head_at: usize,
    /// Bytes of the current chunk that are still to come; `None` once the last one was read.
    left: Option<u64>,
}

/// Opens an archive. `None`: it is not one table's, or names something that cannot be said again
/// exactly, and pg_restore has to read it, from the beginning.
pub fn open<R: Read>(mut source: R) -> Result<Option<TableRows<R>>> {
    let mut head = Vec::new();
    let (header, entries, used) = loop {
        let before = head.len();
        let wanted = before.max(FIRST_READ) as u64;
        (&mut source).take(wanted).read_to_end(&mut head).context("cannot read the archive")?;
        match read_contents(&head) {
            Ok(Some(contents)) => break contents,
            Ok(None) => return Ok(None),
            Err(ReadError::Incomplete) if head.len() >= MAX_CONTENTS => return Ok(None),
            Err(ReadError::Incomplete) if head.len() > before => {}
            Err(ReadError::Incomplete) => {
                return Err(Error::differs("archive ends inside its table of contents"));
            }
            Err(ReadError::Malformed(what)) => {
                return Err(Error::differs(format!("archive is damaged: {what}")));
            }
        }
    };
    let encoding = entries.iter().find(|e| e.desc == "ENCODING").map(|e| e.defn.as_str());
    let Some(encoding) = encoding.and_then(super::copy::parse_encoding).map(str::to_owned) else {
        return Ok(None);
    };
    let mut promised = entries.into_iter().filter(|e| e.has_data);
    let (Some(entry), None) = (promised.next(), promised.next()) else { return Ok(None) };
    if entry.desc != "TABLE DATA" || !is_exact(&entry, &encoding) {
        return Ok(None);
    }
    let statement = super::copy::parse_copy(&entry.copy)?;
    // Some partitions are loaded through their root, which cannot be truncated alone.
    if (&statement.schema, &statement.table) != (&entry.namespace, &entry.tag) {
        return Ok(None);
    }
    let mut rows = TableRows {
        entry,
        statement,
        encoding,
        source,
        int_size: header.int_size,
        head,
        head_at: used,
        left: Some(0),
    };
    rows.begin()?;
    Ok(Some(rows))
}

/// Whether the text of the entry's COPY statement is what pg_dump wrote, byte for byte.
fn is_exact(entry: &Entry, encoding: &str) -> bool {
    entry.copy.is_ascii() || (encoding == "UTF8" && !entry.copy.contains('\u{fffd}'))
}

type Parsed = Option<(Header, Vec<Entry>, usize)>;

fn read_contents(bytes: &[u8]) -> std::result::Result<Parsed, ReadError> {
    let (start, mut at) = read_start(bytes)?;
    let Start::Known(header, count) = start else { return Ok(None) };
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, used) = read_entry(&bytes[at..], &header)?;
        at += used;
        entries.push(entry);
    }
    Ok(Some((header, entries, at)))
}

impl<R: Read> TableRows<R> {
    fn begin(&mut self) -> Result<()> {
        let mut kind = [0];
        self.exact(&mut kind)?;
        let id = self.int()?;
        if kind[0] != BLOCK_DATA || id != i64::from(self.entry.dump_id) {
            return Err(Error::differs(format!("archive has no rows for table {:?}", self.entry.tag)));
        }
        Ok(())
    }

    /// Appends rows as COPY text to `buffer`, its end marker included, until it holds `limit` bytes or
    /// the rows end; says whether more may come. Nothing may follow the rows in the archive.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, limit: usize) -> Result<bool> {
        while buffer.len() < limit {
            match self.left {
                None => return Ok(false),
                Some(0) => self.left = self.next_chunk()?,
                Some(left) => {
                    let n = (limit - buffer.len()).min(usize::try_from(left).unwrap_or(usize::MAX));
                    let at = buffer.len();
                    buffer.resize(at + n, 0);
                    self.exact(&mut buffer[at..])?;
                    self.left = Some(left - n as u64);
                }
            }
        }
        Ok(true)
    }

    /// Bytes of the next chunk; `None` at the end of the block, which must be the archive's.
    fn next_chunk(&mut self) -> Result<Option<u64>> {
        match self.int()? {
            0 => {}
            n if n > 0 => return Ok(Some(n.unsigned_abs())),
            n => return Err(Error::differs(format!("archive is damaged: a chunk of {n} bytes"))),
        }
        let rest = self.head.len() - self.head_at;
        if rest > 0 || self.source.read(&mut [0]).context("cannot read the archive")? > 0 {
            return Err(Error::differs("archive goes on after its rows"));
        }
        Ok(None)
    }

    fn int(&mut self) -> Result<i64> {
        let mut raw = [0; 9];
        let raw = &mut raw[..1 + usize::from(self.int_size)];
        self.exact(raw)?;
        decode_int(raw).ok_or_else(|| Error::differs("archive is damaged: integer out of range"))
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        let n = buffer.len().min(self.head.len() - self.head_at);
        buffer[..n].copy_from_slice(&self.head[self.head_at..self.head_at + n]);
        self.head_at += n;
        self.source.read_exact(&mut buffer[n..]).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::differs("archive ends in the middle of its rows"),
            _ => e.into(),
        })
    }
}
