//! Some entries of an archive, as an archive of their own.
//!
//! pg_restore takes a list of entries from a file, which it would not find where it runs in a container. An
//! archive that holds nothing else needs no list. Deliberately absent: data, which such an archive has none of.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use super::split::{EVERYWHERE, MAX_ENTRY, encode_int};
use super::{Header, ReadError, Start, read_entry, read_start, with_definition};
use crate::error::{Context, Error, Result};

/// Bytes read at a time.
const READ_SIZE: usize = 256 << 10;

/// An archive with these entries of `archive` alone, in its order, and those that every archive begins with.
pub fn select(archive: impl Read, ids: &HashSet<i32>) -> Result<Vec<u8>> {
    select_with(archive, |id| ids.contains(&id), |_| None)
}

/// An archive of these entries, made by other SQL than they were.
pub fn rewrite(archive: impl Read, definitions: &HashMap<i32, String>) -> Result<Vec<u8>> {
    select_with(archive, |id| definitions.contains_key(&id), |id| definitions.get(&id))
}

fn select_with<'a>(
    archive: impl Read,
    is_wanted: impl Fn(i32) -> bool,
    definition: impl Fn(i32) -> Option<&'a String>,
) -> Result<Vec<u8>> {
    let mut bytes = Buffer { archive, read: Vec::new(), at: 0 };
    let start = bytes.next(read_start)?;
    let (Start::Known(header, count), raw) = start else {
        return Err(Error::new("the archive is of a version that this opsd does not know"));
    };
    let int_size = 1 + usize::from(header.int_size);
    let mut selected = raw[..raw.len() - int_size].to_vec();
    let mut entries = Vec::new();
    let mut found: i64 = 0;
    for _ in 0..count {
        let (entry, raw) = bytes.next(|bytes| read_entry(bytes, &header))?;
        if is_wanted(entry.dump_id) || EVERYWHERE.contains(&entry.desc.as_str()) {
            match definition(entry.dump_id) {
                None => entries.extend_from_slice(&raw),
                Some(defn) => entries.extend(with_definition(&raw, &header, defn).map_err(damaged)?),
            }
            found += 1;
        }
    }
    selected.extend(count_of(found, &header)?);
    selected.append(&mut entries);
    Ok(selected)
}

fn count_of(entries: i64, header: &Header) -> Result<Vec<u8>> {
    encode_int(entries, header.int_size).ok_or_else(|| Error::new(format!("{entries} entries")))
}

fn damaged(why: ReadError) -> Error {
    match why {
        ReadError::Incomplete => Error::differs("archive ends inside its table of contents"),
        ReadError::Malformed(what) => Error::differs(format!("archive is damaged: {what}")),
    }
}

/// What was read of an archive, and how much of that was used.
struct Buffer<R> {
    archive: R,
    read: Vec<u8>,
    at: usize,
}

impl<R: Read> Buffer<R> {
    /// The next value, and its bytes.
    fn next<T>(
        &mut self,
        parse: impl Fn(&[u8]) -> std::result::Result<(T, usize), ReadError>,
    ) -> Result<(T, Vec<u8>)> {
        loop {
            match parse(&self.read[self.at..]) {
                Ok((value, used)) => {
                    let raw = self.read[self.at..self.at + used].to_vec();
                    self.at += used;
                    return Ok((value, raw));
                }
                Err(ReadError::Incomplete) => self.more()?,
                Err(malformed) => return Err(damaged(malformed)),
            }
        }
    }

    fn more(&mut self) -> Result<()> {
        self.read.drain(..self.at);
        self.at = 0;
        // As much again as there is, so that a large entry is not looked at too often.
        let wanted = self.read.len().max(READ_SIZE) as u64;
        let n = (&mut self.archive)
            .take(wanted)
            .read_to_end(&mut self.read)
            .context("cannot read the archive")?;
        if n == 0 {
            return Err(damaged(ReadError::Incomplete));
        }
        if self.read.len() > MAX_ENTRY * 2 {
            return Err(damaged(ReadError::Malformed(format!("an entry of more than {MAX_ENTRY} bytes"))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::archive::made::{Body, archive, item};
    use crate::set::archive::{Entry, read_toc};

    #[test]
    fn what_is_selected_is_an_archive_of_its_own() {
        for minor in [14, 15, 16] {
            let items = [
                item(1, "ENCODING", "ENCODING", Body::None),
                item(2, "TABLE", "a", Body::None),
                item(3, "INDEX", "a_x", Body::None),
                item(4, "INDEX", &"long".repeat(100_000), Body::None),
            ];
            let whole = archive(minor, &items);
            let (header, entries) = read_toc(&whole).unwrap();
            let ids = HashSet::from([4, 3, 99]);
            let (found_header, found) = read_toc(&select(&whole[..], &ids).unwrap()).unwrap();
            assert_eq!(found_header, header);
            assert_eq!(found, [entries[0].clone(), entries[2].clone(), entries[3].clone()]);
            let other = "ALTER TABLE x ADD y NOT VALID;\n".to_owned();
            let rewritten = rewrite(&whole[..], &HashMap::from([(3, other.clone())])).unwrap();
            let (_, found) = read_toc(&rewritten).unwrap();
            assert_eq!(found, [entries[0].clone(), Entry { defn: other, ..entries[2].clone() }]);
            for end in [0, 10, 400, 100_000, whole.len() - 1] {
                assert!(select(&whole[..end], &ids).is_err(), "cut off at {end}");
            }
        }
    }
}
