//! An archive of opsd's own making, in pg_dump's custom format: what pg_dump cannot be asked for, for pg_restore.
//!
//! Its version is 1.14, which pg_restore reads from its major 12 on, and its rows are not compressed.

use chrono::{DateTime, Datelike, Timelike, Utc};

use super::{Entry, FORMAT_CUSTOM, Section};

/// What pg_dump writes behind the rows of a table.
const END_OF_ROWS: &[u8] = b"\\.\n\n\n";
/// Where an entry's data is: not known in a pipe, or it has none.
const OFFSET_NOT_SET: u8 = 1;
const OFFSET_NO_DATA: u8 = 3;
/// Bytes of an offset.
const OFFSET_SIZE: u8 = 8;
/// Bytes of an integer, its sign aside.
const INT_SIZE: u8 = 4;
/// A block of a table's rows.
const BLOCK_DATA: u8 = 1;

/// Header and table of contents. `has_data` and `dump_id` of each entry say which blocks have to follow, in
/// the order of the entries.
pub fn contents(server_version: &str, time: DateTime<Utc>, entries: &[Entry]) -> Vec<u8> {
    let mut out = b"PGDMP".to_vec();
    out.extend([1, 14, 0, INT_SIZE, OFFSET_SIZE, FORMAT_CUSTOM]);
    int(&mut out, 0); // not compressed
    let date = [time.second(), time.minute(), time.hour(), time.day(), time.month0()];
    date.into_iter().for_each(|part| int(&mut out, part.cast_signed()));
    int(&mut out, time.year() - 1900);
    int(&mut out, 0); // no summer time
    // The database's name is not needed to restore into another.
    for text in ["", server_version, server_version] {
        string(&mut out, Some(text));
    }
    int(&mut out, i32::try_from(entries.len()).unwrap_or(i32::MAX));
    entries.iter().for_each(|one| entry(&mut out, one));
    out
}

fn entry(out: &mut Vec<u8>, entry: &Entry) {
    let or_null = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    int(out, entry.dump_id);
    int(out, i32::from(entry.has_data));
    string(out, Some("0"));
    string(out, Some("0"));
    string(out, Some(&entry.tag));
    string(out, Some(&entry.desc));
    int(
        out,
        match entry.section {
            Section::None => 1,
            Section::PreData => 2,
            Section::Data => 3,
            Section::PostData => 4,
        },
    );
    string(out, Some(&entry.defn));
    string(out, Some("")); // nothing drops it
    string(out, or_null(&entry.copy).as_deref());
    for text in [&entry.namespace, &entry.tablespace, &entry.table_am] {
        string(out, or_null(text).as_deref());
    }
    string(out, Some(&entry.owner));
    string(out, Some("false"));
    entry.dependencies.iter().for_each(|id| string(out, Some(&id.to_string())));
    string(out, None);
    out.push(if entry.has_data { OFFSET_NOT_SET } else { OFFSET_NO_DATA });
    out.extend([0; OFFSET_SIZE as usize]);
}

/// Begins the rows of the entry with this id.
pub fn begin_rows(out: &mut Vec<u8>, dump_id: i32) {
    out.push(BLOCK_DATA);
    int(out, dump_id);
}

/// Some rows as COPY writes them, or a part of one.
pub fn rows(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(i32::MAX as usize) {
        int(out, i32::try_from(chunk.len()).unwrap_or(i32::MAX));
        out.extend_from_slice(chunk);
    }
}

/// Ends them.
pub fn end_rows(out: &mut Vec<u8>) {
    rows(out, END_OF_ROWS);
    int(out, 0);
}

/// A sign byte and a magnitude.
fn int(out: &mut Vec<u8>, value: i32) {
    out.push(u8::from(value < 0));
    out.extend(value.unsigned_abs().to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => int(out, -1),
        Some(text) => {
            int(out, i32::try_from(text.len()).unwrap_or(i32::MAX));
            out.extend(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parser::Parser;
    use super::super::read_toc;
    use super::*;
    use crate::set::fingerprint::RowSecret;

    #[test]
    fn what_is_written_is_read_again() {
        let entries = [
            Entry {
                dump_id: 1,
                tag: "q".into(),
                desc: "TABLE".into(),
                defn: "CREATE TABLE IF NOT EXISTS x.q (a integer);\n".into(),
                namespace: "x".into(),
                owner: "o".into(),
                section: Section::PreData,
                ..Entry::default()
            },
            Entry {
                dump_id: 2,
                has_data: true,
                tag: "q".into(),
                desc: "TABLE DATA".into(),
                copy: "COPY x.q (a) FROM stdin;\n".into(),
                namespace: "x".into(),
                owner: "o".into(),
                section: Section::Data,
                dependencies: vec![1],
                ..Entry::default()
            },
        ];
        let mut archive = contents("17.11", Utc::now(), &entries);
        assert_eq!(read_toc(&archive).unwrap().1, entries);
        begin_rows(&mut archive, 2);
        rows(&mut archive, b"1\n2");
        rows(&mut archive, b"3\n");
        end_rows(&mut archive);
        let mut parser = Parser::new(&RowSecret::generate(), true);
        parser.feed(&archive).unwrap();
        let contents = parser.finish().unwrap();
        assert_eq!((contents.data[&2].rows, contents.data[&2].bytes), (2, 5));
    }
}
