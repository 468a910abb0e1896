//! pg_dump's custom archive (`-Fc`): header, table of contents, and where each byte belongs.
//!
//! The format is PostgreSQL's own, known from `pg_backup_archiver.c` and `pg_backup_custom.c`:
//! integers are a sign byte and `intSize` bytes, little-endian; strings a length (-1 for NULL) and
//! bytes. Versions 1.14 (pg_dump 12 to 15), 1.15 (16) and 1.16 (17, 18) are understood; any other
//! is [`Error`]-free but unknown, and a caller then does without a proof. Deliberately absent:
//! compressed archives (opsd compresses outside), the directory and tar formats, and interpreting
//! SQL beyond the few statements a proof needs.

pub mod copy;
pub mod cut;
#[cfg(test)]
mod made;
pub mod parser;
pub mod rows;
pub mod select;
pub mod split;
pub mod write;

use crate::error::{Error, Result};

/// `pg_dump -Fc`'s format byte.
const FORMAT_CUSTOM: u8 = 1;
/// A single name or definition that claims more than this is damage, not data.
const MAX_STRING: usize = 256 << 20;
/// More entries than this is damage, not a database. Up to pg_dump 16 each large object is an entry.
const MAX_ENTRIES: i64 = 50_000_000;

/// What stands before the table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Major and minor archive version.
    pub version: (u8, u8),
    /// Bytes in an integer.
    pub int_size: u8,
    /// Bytes in a file offset.
    pub off_size: u8,
    /// Database the archive was made from.
    pub database: String,
    /// `server_version` of its server.
    pub server_version: String,
    /// pg_dump's version.
    pub dump_version: String,
}

/// When an entry is restored: `teSection`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Section {
    /// With what stands before it: comments and privileges.
    #[default]
    None,
    /// Before the rows.
    PreData,
    /// Rows, large objects, sequences' values.
    Data,
    /// After the rows: indexes, constraints, triggers.
    PostData,
}

/// One entry of the table of contents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Id that data blocks refer to.
    pub dump_id: i32,
    /// Whether the archive holds a data block for it.
    pub has_data: bool,
    /// Name without schema.
    pub tag: String,
    /// `TABLE`, `TABLE DATA`, `SEQUENCE SET`, ….
    pub desc: String,
    /// SQL that makes it.
    pub defn: String,
    /// `COPY … FROM stdin;`
    pub copy: String,
    /// Schema; empty where it has none.
    pub namespace: String,
    /// Tablespace; empty means the default.
    pub tablespace: String,
    /// Table access method; empty where it has none.
    pub table_am: String,
    /// Owner.
    pub owner: String,
    /// When it is restored.
    pub section: Section,
    /// Dump ids of the entries that must be there first.
    pub dependencies: Vec<i32>,
}

/// A cursor over bytes that may end before the value does.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    int_size: usize,
}

/// Why a value could not be read yet, or ever.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// More bytes are needed.
    Incomplete,
    /// No more bytes can help.
    Malformed(String),
}

type Read<T> = std::result::Result<T, ReadError>;

fn malformed<T>(what: impl Into<String>) -> Read<T> {
    Err(ReadError::Malformed(what.into()))
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8], int_size: u8) -> Self {
        Self { bytes, at: 0, int_size: usize::from(int_size) }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        let end = self.at.checked_add(n).ok_or(ReadError::Malformed("length overflows".into()))?;
        let slice = self.bytes.get(self.at..end).ok_or(ReadError::Incomplete)?;
        self.at = end;
        Ok(slice)
    }

    fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn int(&mut self) -> Read<i64> {
        let raw = self.take(1 + self.int_size)?;
        decode_int(raw).ok_or_else(|| ReadError::Malformed("integer with an impossible sign".into()))
    }

    fn string(&mut self) -> Read<Option<String>> {
        let length = self.int()?;
        if length < 0 {
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_STRING {
            return malformed(format!("a string of {length} bytes"));
        }
        // Names and definitions are in the archive's encoding, which need not be UTF-8; they are
        // compared and shown, never sent back, so lossy is enough outside COPY statements.
        Ok(Some(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    fn text(&mut self) -> Read<String> {
        Ok(self.string()?.unwrap_or_default())
    }
}

/// A sign byte and little-endian magnitude; `None` where the sign is neither 0 nor 1 or the value
/// is wider than 32 bits (`intSize` above 4 only pads).
pub(crate) fn decode_int(raw: &[u8]) -> Option<i64> {
    let (sign, magnitude) = raw.split_first()?;
    let mut value: i64 = 0;
    for (i, byte) in magnitude.iter().enumerate() {
        if i >= 4 && *byte != 0 {
            return None;
        }
        if i < 4 {
            value |= i64::from(*byte) << (8 * i);
        }
    }
    match sign {
        0 => Some(value),
        1 => Some(-value),
        _ => None,
    }
}

/// What the header says: a version that is understood, or one that is not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Known(Header, i64),
    Unknown { version: (u8, u8) },
}

pub(crate) fn read_start(bytes: &[u8]) -> Read<(Start, usize)> {
    let mut c = Cursor::new(bytes, 4);
    if c.take(5)? != b"PGDMP" {
        return malformed("not a custom-format archive");
    }
    let version = (c.byte()?, c.byte()?);
    c.byte()?; // revision: never meant anything
    if version.0 != 1 || !(14..=16).contains(&version.1) {
        return Ok((Start::Unknown { version }, c.position()));
    }
    let int_size = c.byte()?;
    let off_size = c.byte()?;
    if !(4..=8).contains(&int_size) || !(4..=8).contains(&off_size) {
        return malformed(format!("integers of {int_size} and offsets of {off_size} bytes"));
    }
    c.int_size = usize::from(int_size);
    if c.byte()? != FORMAT_CUSTOM {
        return malformed("not a custom-format archive");
    }
    let compression = if version.1 >= 15 { i64::from(c.byte()?) } else { c.int()? };
    if compression != 0 {
        return malformed(format!("archive is compressed inside ({compression})"));
    }
    for _ in 0..7 {
        c.int()?; // creation time
    }
    let header = Header {
        version,
        int_size,
        off_size,
        database: c.text()?,
        server_version: c.text()?,
        dump_version: c.text()?,
    };
    let entries = c.int()?;
    if !(0..=MAX_ENTRIES).contains(&entries) {
        return malformed(format!("{entries} entries"));
    }
    Ok((Start::Known(header, entries), c.position()))
}

pub(crate) fn read_entry(bytes: &[u8], header: &Header) -> Read<(Entry, usize)> {
    let mut c = Cursor::new(bytes, header.int_size);
    let dump_id = i32::try_from(c.int()?).map_err(|_| ReadError::Malformed("dump id".into()))?;
    if dump_id <= 0 {
        return malformed(format!("dump id {dump_id}"));
    }
    let has_data = c.int()? != 0;
    c.string()?; // catalog's oid
    c.string()?; // object's oid
    let tag = c.text()?;
    let desc = c.text()?;
    let section = match c.int()? {
        2 => Section::PreData,
        3 => Section::Data,
        4 => Section::PostData,
        _ => Section::None,
    };
    let defn = c.text()?;
    c.string()?; // how to drop it
    let copy = c.text()?;
    let namespace = c.text()?;
    let tablespace = c.text()?;
    let table_am = c.text()?;
    if header.version.1 >= 16 {
        c.int()?; // relkind
    }
    let owner = c.text()?;
    c.string()?; // WITH OIDS, long gone
    let mut dependencies = Vec::new();
    while let Some(id) = c.string()? {
        dependencies.extend(id.parse::<i32>());
    }
    c.take(1 + usize::from(header.off_size))?; // where the data is: unknown in a pipe
    let entry = Entry {
        dump_id,
        has_data,
        tag,
        desc,
        defn,
        copy,
        namespace,
        tablespace,
        table_am,
        owner,
        section,
        dependencies,
    };
    Ok((entry, c.position()))
}

/// Marks an entry, as it was written, as one that is restored after the rows.
pub(crate) fn move_behind_rows(raw: &mut [u8], header: &Header) -> Read<()> {
    let at = section_at(raw, header)?;
    raw[at..at + 2].copy_from_slice(&[0, 4]);
    raw[at + 2..at + 1 + usize::from(header.int_size)].fill(0);
    Ok(())
}

/// An entry, as it was written, with other SQL that makes it.
pub(crate) fn with_definition(raw: &[u8], header: &Header, defn: &str) -> Read<Vec<u8>> {
    let mut c = Cursor::new(raw, header.int_size);
    c.take(section_at(raw, header)?)?;
    c.int()?;
    let at = c.position();
    c.string()?;
    let length = i64::try_from(defn.len()).ok().and_then(|n| split::encode_int(n, header.int_size));
    let length = length.ok_or_else(|| ReadError::Malformed("a definition is too long".into()))?;
    Ok([&raw[..at], &length, defn.as_bytes(), &raw[c.position()..]].concat())
}

/// Where an entry's section stands.
fn section_at(raw: &[u8], header: &Header) -> Read<usize> {
    let mut c = Cursor::new(raw, header.int_size);
    c.int()?; // dump id
    c.int()?; // whether it has data
    for _ in 0..4 {
        c.string()?; // the catalog's oid, the object's, tag, desc
    }
    let at = c.position();
    c.int()?;
    Ok(at)
}

/// Header and table of contents of an archive held in memory.
pub fn read_toc(bytes: &[u8]) -> Result<(Header, Vec<Entry>)> {
    let fail = |e: ReadError| match e {
        ReadError::Incomplete => Error::differs("archive ends inside its table of contents"),
        ReadError::Malformed(what) => Error::differs(format!("archive is damaged: {what}")),
    };
    let (start, mut at) = read_start(bytes).map_err(fail)?;
    let (header, count) = match start {
        Start::Known(header, count) => (header, count),
        Start::Unknown { version: (major, minor) } => {
            return Err(Error::new(format!("archive version {major}.{minor} is unknown to this opsd")));
        }
    };
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, used) = read_entry(&bytes[at..], &header).map_err(fail)?;
        at += used;
        entries.push(entry);
    }
    Ok((header, entries))
}
