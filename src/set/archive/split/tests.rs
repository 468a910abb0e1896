//! What is cut out of made archives, against what the parser finds in the archive and in its pieces.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::section_at;
use super::*;
use crate::set::archive::made::{Body, Item, archive, block, entry, header, item, rows};
use crate::set::archive::parser::{Contents, Parser};
use crate::set::fingerprint::RowSecret;

const ENCODING: &str = "ENCODING";

/// Each piece's bytes, the rest's under `None`.
type Pieces = BTreeMap<Option<usize>, Vec<u8>>;

fn split(bytes: &[u8], tables: &[&str], has_rest: bool, piece: usize) -> Result<Pieces> {
    let tables = tables.iter().map(|t| ("public".to_owned(), (*t).to_owned())).collect();
    let mut splitter = Splitter::new(tables, has_rest);
    let mut found = Pieces::new();
    let mut ended = Vec::new();
    let mut out = |piece: Piece<'_>| {
        match piece {
            Piece::Bytes(to, bytes) => {
                let to = match to {
                    To::Rest => None,
                    To::Table(table) => Some(table),
                };
                assert!(to.is_none_or(|t| !ended.contains(&t)), "nothing comes behind an end");
                found.entry(to).or_default().extend_from_slice(bytes);
            }
            Piece::End(table) => ended.push(table),
        }
        Ok(())
    };
    for piece in bytes.chunks(piece.max(1)) {
        splitter.feed(piece, &mut out)?;
    }
    splitter.finish(&mut out)?;
    let whole: Vec<usize> = found.keys().flatten().copied().collect();
    ended.sort_unstable();
    assert_eq!(ended, whole, "each table's piece ends once");
    Ok(found)
}

fn secret() -> RowSecret {
    RowSecret::from_base64(&"A".repeat(256)).unwrap()
}

fn parse(bytes: &[u8]) -> Contents {
    let mut parser = Parser::new(&secret(), true);
    parser.feed(bytes).unwrap();
    parser.finish().unwrap()
}

fn tags(contents: &Contents) -> Vec<&str> {
    contents.entries.iter().map(|e| e.tag.as_str()).collect()
}

/// Small tables, large ones, large objects and a sequence, in the order that pg_dump would not choose.
fn sample() -> Vec<Item> {
    let some: Vec<&[u8]> = vec![b"1\tone", b"", b"\\\\.", b"\\N"];
    vec![
        item(1, ENCODING, ENCODING, Body::None),
        item(2, "STDSTRINGS", "STDSTRINGS", Body::None),
        item(3, "TABLE DATA", "small", rows(&some, 3)),
        item(4, "TABLE DATA", "large", rows(&some, 1000)),
        item(5, "SEQUENCE SET", "s", Body::None),
        item(6, "BLOBS", "BLOBS", Body::Blobs(vec![(7, vec![b"ab".to_vec()]), (9, vec![])])),
        item(8, "TABLE DATA", "larger", rows(&[b"2"], 1)),
        item(9, "TABLE DATA", "empty", rows(&[], 1000)),
    ]
}

#[test]
fn tables_are_cut_out_and_everything_else_stays() {
    for minor in [14, 15, 16] {
        let bytes = archive(minor, &sample());
        let whole = parse(&bytes);
        let expected = split(&bytes, &["larger", "large"], true, usize::MAX).unwrap();
        for piece in 1..150 {
            assert_eq!(split(&bytes, &["larger", "large"], true, piece).unwrap(), expected, "of {piece}");
        }
        let rest = parse(&expected[&None]);
        assert_eq!(tags(&rest), ["ENCODING", "STDSTRINGS", "small", "s", "BLOBS", "empty"]);
        assert_eq!(rest.large_objects, whole.large_objects);
        let larger = parse(&expected[&Some(0)]);
        assert_eq!(tags(&larger), ["ENCODING", "STDSTRINGS", "larger"]);
        let large = parse(&expected[&Some(1)]);
        assert_eq!(tags(&large), ["ENCODING", "STDSTRINGS", "large"]);
        for (contents, id) in [(&rest, 3), (&rest, 9), (&larger, 8), (&large, 4)] {
            assert_eq!(contents.data[&id], whole.data[&id]);
        }
        assert_eq!(large.header, whole.header);
    }
}

#[test]
fn an_archive_that_needs_no_cut_is_passed_as_it_is() {
    let all = archive(16, &sample());
    assert_eq!(split(&all, &[], true, 7).unwrap(), Pieces::from([(None, all.clone())]));
    let one = archive(16, &sample()[..3]);
    assert_eq!(split(&one, &["small"], false, 7).unwrap(), Pieces::from([(Some(0), one.clone())]));
    let mut unknown = all;
    unknown[6] = 17;
    for (tables, has_rest, to) in [(&["large"][..], true, None), (&["large", "larger"], false, Some(0))] {
        for piece in [1, 100, usize::MAX] {
            let found = split(&unknown, tables, has_rest, piece).unwrap();
            assert_eq!(found, Pieces::from([(to, unknown.clone())]), "version 1.17");
        }
    }
}

#[test]
fn an_archive_of_tables_alone_has_no_rest() {
    let sample = sample();
    let items = [sample[0].clone(), sample[3].clone(), sample[6].clone()];
    let found = split(&archive(16, &items), &["large", "larger"], false, 9).unwrap();
    assert_eq!(tags(&parse(&found[&Some(0)])), ["ENCODING", "large"]);
    assert_eq!(tags(&parse(&found[&Some(1)])), ["ENCODING", "larger"]);
    assert_eq!(found.len(), 2);
    let reason =
        |items: &[Item]| split(&archive(16, items), &["large", "larger"], false, 9).unwrap_err().to_string();
    assert!(reason(&sample).contains("holds table data public.small, which was not asked for"));
    assert!(reason(&items[..2]).contains("does not hold table public.larger"));
}

#[test]
fn an_archive_that_ends_early_or_is_damaged_is_refused() {
    let sample = sample();
    let bytes = archive(16, &sample);
    let last = block(&sample[7]).len();
    for end in 0..bytes.len() - last {
        assert!(split(&bytes[..end], &["large", "larger"], true, 11).is_err(), "{end} of {}", bytes.len());
    }
    // What the rest lacks, the rest's parser knows.
    let rest = split(&bytes[..bytes.len() - last], &["large", "larger"], true, 11).unwrap();
    let mut parser = Parser::new(&secret(), true);
    parser.feed(&rest[&None]).unwrap();
    assert!(parser.finish().is_err());
    let reason = |more: &[u8]| split(&[&bytes, more].concat(), &["large"], true, 11).unwrap_err().to_string();
    assert!(reason(&block(&sample[3])).contains("entry 4 twice"));
    assert!(reason(b"\x07\0\x01\0\0\0").contains("block of unknown type 7"));
    let twice = [sample[3].clone(), sample[3].clone()];
    assert!(split(&archive(16, &twice), &["large"], true, 9).unwrap_err().to_string().contains("twice"));
    let promised = [&header(16, 1)[..], &entry(16, &item(1, "TABLE DATA", "large", Body::None))].concat();
    assert!(split(&promised, &["large"], true, 9).unwrap_err().to_string().contains("no rows"));
    assert!(split(&header(16, 0), &["large"], true, 9).unwrap_err().to_string().contains("too few entries"));
}

proptest! {
    /// Whatever is chosen, every table's rows are in one piece, and no bytes of a row are lost.
    #[test]
    fn each_table_is_in_one_piece(
        tables in proptest::collection::vec((any::<bool>(), proptest::collection::vec("[a-z]{0,30}", 0..6)), 1..8),
        piece in 1usize..200,
    ) {
        let mut items = vec![item(1, ENCODING, ENCODING, Body::None)];
        for (i, (_, lines)) in tables.iter().enumerate() {
            let lines: Vec<&[u8]> = lines.iter().map(|l| l.as_bytes()).collect();
            items.push(item(i32::try_from(i).unwrap() + 2, "TABLE DATA", &format!("t{i}"), rows(&lines, 7)));
        }
        let bytes = archive(16, &items);
        let chosen: Vec<String> =
            (0..tables.len()).filter(|i| tables[*i].0).map(|i| format!("t{i}")).collect();
        let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
        let whole = parse(&bytes);
        let pieces = split(&bytes, &chosen, true, piece).unwrap();
        let mut data = BTreeMap::new();
        for bytes in pieces.values() {
            for (id, found) in parse(bytes).data {
                prop_assert!(data.insert(id, found).is_none());
            }
        }
        prop_assert_eq!(data, whole.data.into_iter().collect::<BTreeMap<_, _>>());
    }
}

#[test]
fn an_entry_that_is_moved_behind_the_rows_stays_what_it_is() {
    for minor in [14, 15, 16] {
        let (start, _) = read_start(&header(minor, 1)).unwrap();
        let Start::Known(header, _) = start else { panic!("a known version") };
        let mut raw = entry(minor, &item(5, "FUNCTION", "f", Body::None));
        let (before, _) = read_entry(&raw, &header).unwrap();
        move_behind_rows(&mut raw, &header).unwrap();
        let (after, used) = read_entry(&raw, &header).unwrap();
        assert_eq!((after, used), (Entry { section: Section::PostData, ..before }, raw.len()));
    }
}

/// Its dependencies, 7 and 9, are what the made entries have.
#[test]
fn what_depends_on_an_entry_behind_the_rows_is_moved_there() {
    let (Start::Known(known, _), _) = read_start(&header(16, 1)).unwrap() else { panic!("a known version") };
    let behind = |id| {
        let mut raw = entry(16, &item(id, "CONSTRAINT", "behind", Body::None));
        move_behind_rows(&mut raw, &known).unwrap();
        raw
    };
    let mended = |archive: &[u8]| {
        let mut splitter = Splitter::of_schema();
        let mut found = Vec::new();
        let mut out = |piece: Piece<'_>| {
            if let Piece::Bytes(To::Rest, bytes) = piece {
                found.extend_from_slice(bytes);
            }
            Ok(())
        };
        archive.chunks(7).for_each(|bytes| splitter.feed(bytes, &mut out).unwrap());
        splitter.finish(&mut out).unwrap();
        found
    };
    let mut before = entry(16, &item(3, "VIEW", "v", Body::None));
    let at = section_at(&before, &known).unwrap();
    before[at + 1] = 2; // before the rows
    let archive = |id| [header(16, 2), behind(id), before.clone()].concat();
    let sections = |bytes: &[u8]| parse(bytes).entries.iter().map(|e| e.section).collect::<Vec<_>>();
    assert_eq!(sections(&mended(&archive(7))), [Section::PostData, Section::PostData]);
    assert_eq!(mended(&archive(8)), archive(8), "it depends on another");
}

fn dropped(bytes: &[u8], ids: &[i32], piece: usize) -> Result<Vec<u8>> {
    let mut splitter = Splitter::without(ids.iter().copied().collect());
    let mut found = Vec::new();
    let mut out = |piece: Piece<'_>| {
        let Piece::Bytes(To::Rest, bytes) = piece else { panic!("there is only the rest") };
        found.extend_from_slice(bytes);
        Ok(())
    };
    for piece in bytes.chunks(piece) {
        splitter.feed(piece, &mut out)?;
    }
    splitter.finish(&mut out)?;
    Ok(found)
}

#[test]
fn what_is_dropped_goes_with_its_data_and_the_rest_stays_as_it_is() {
    let items = sample();
    for minor in [14, 15, 16] {
        let whole = archive(minor, &items);
        for gone in &items {
            let left: Vec<Item> = items.iter().filter(|item| item.id != gone.id).cloned().collect();
            for piece in [1, 7, 4096] {
                assert_eq!(
                    dropped(&whole, &[gone.id], piece).unwrap(),
                    archive(minor, &left),
                    "{}",
                    gone.tag
                );
            }
        }
        assert_eq!(dropped(&whole, &[], 9).unwrap(), whole);
        let all: Vec<i32> = items.iter().map(|item| item.id).collect();
        assert_eq!(dropped(&whole, &all, 9).unwrap(), archive(minor, &[]));
        assert!(dropped(&whole, &[items[0].id, 99_999], 9).is_err(), "one is not there");
        assert!(dropped(&whole[..whole.len() - 1], &[items[0].id], 9).is_err(), "cut off");
    }
}
