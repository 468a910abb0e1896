//! What a parser finds in made archives, whole and damaged in every way.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::set::archive::MAX_STRING;
use crate::set::archive::made::{Body, Item, archive, block, entry, header, int, item, rows};

/// Everything there is, in one archive.
fn sample(minor: u8) -> Vec<u8> {
    let odd: Vec<&[u8]> = vec![b"1\tone", b"", b"\\\\.", b"\\.x", b"x\\.", b"\\N\t\xff\xfe"];
    archive(
        minor,
        &[
            item(1, "ENCODING", "ENCODING", Body::None),
            item(2, "TABLE", "t", Body::None),
            item(3, "TABLE DATA", "t", rows(&odd, 1000)),
            item(4, "TABLE DATA", "split", rows(&odd, 2)),
            item(5, "TABLE DATA", "empty", rows(&[], 1000)),
            item(6, "TABLE DATA", "no_columns", rows(&[b"", b"", b""], 1)),
            item(7, "BLOBS", "BLOBS", Body::Blobs(vec![(1, vec![]), (0x8000_0000, vec![b"ab".to_vec()])])),
            item(8, "BLOBS", "BLOBS", Body::Blobs(vec![(u32::MAX, vec![vec![7; 300], vec![8]])])),
        ],
    )
}

fn secret() -> RowSecret {
    RowSecret::from_base64(&base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [5; 192]))
        .unwrap()
}

fn parse(bytes: &[u8], piece: usize) -> Result<Contents> {
    let mut parser = Parser::new(&secret(), true);
    for piece in bytes.chunks(piece.max(1)) {
        parser.feed(piece)?;
    }
    parser.finish()
}

fn sum(rows: &[&[u8]]) -> Fingerprint {
    let mut hasher = RowHasher::new(&secret());
    rows.iter().for_each(|row| hasher.row(row));
    hasher.take()
}

/// What [`Contents`] says, for comparisons.
fn told(c: &Contents) -> String {
    let data: std::collections::BTreeMap<_, _> = c.data.iter().collect();
    format!("{:?} {:?} {:?} {data:?} {:?} {}", c.header, c.version, c.entries, c.large_objects, c.blob_blocks)
}

fn reason(bytes: &[u8]) -> String {
    parse(bytes, usize::MAX).unwrap_err().to_string()
}

#[test]
fn each_version_is_read_in_pieces_of_any_size() {
    for minor in [14, 15, 16] {
        let bytes = sample(minor);
        let whole = parse(&bytes, usize::MAX).unwrap();
        assert_eq!(whole.version, (1, minor));
        assert_eq!(whole.header.as_ref().unwrap().database, "shop");
        assert_eq!(whole.entries.len(), 8);
        let tags: Vec<&str> = whole.entries.iter().map(|e| e.owner.as_str()).collect();
        assert_eq!(tags, ["owner"; 8]);
        let expected = sum(&[b"1\tone\n", b"\n", b"\\\\.\n", b"\\.x\n", b"x\\.\n", b"\\N\t\xff\xfe\n"]);
        assert_eq!(whole.data[&3], expected);
        assert_eq!(whole.data[&4], expected, "chunks mean nothing");
        assert_eq!(whole.data[&5], Fingerprint::default());
        assert_eq!(whole.data[&6], sum(&[b"\n", b"\n", b"\n"]));
        let mut last = u32::MAX.to_le_bytes().to_vec();
        last.extend([7; 300]);
        last.push(8);
        let blobs: [&[u8]; 3] = [&1u32.to_le_bytes(), &[0, 0, 0, 0x80, b'a', b'b'], &last];
        assert_eq!(whole.large_objects, sum(&blobs));
        assert_eq!(whole.blob_blocks, 2);
        for piece in 1..200 {
            assert_eq!(told(&parse(&bytes, piece).unwrap()), told(&whole), "pieces of {piece}");
        }
        let (header, entries) = crate::set::archive::read_toc(&bytes).unwrap();
        assert_eq!((Some(header), entries), (whole.header, whole.entries));
    }
}

#[test]
fn an_archive_that_ends_early_is_refused_wherever_it_ends() {
    for minor in [14, 15, 16] {
        let bytes = sample(minor);
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end], usize::MAX).is_err(), "{end} of {} bytes", bytes.len());
            assert!(parse(&bytes[..end], 7).is_err(), "{end} of {} bytes, in pieces", bytes.len());
        }
    }
    let schema = archive(16, &[item(1, "TABLE", "t", Body::None)]);
    assert!(parse(&schema, usize::MAX).is_ok());
    for end in 0..schema.len() {
        assert!(parse(&schema[..end], usize::MAX).is_err());
        assert_eq!(crate::set::archive::read_toc(&schema[..end]).unwrap_err().kind(), Kind::Differs);
    }
}

#[test]
fn what_is_missing_is_named() {
    let items = [
        item(3, "TABLE DATA", "a", rows(&[b"1"], 100)),
        item(4, "TABLE DATA", "b", rows(&[b"1"], 100)),
        item(5, "TABLE DATA", "c", rows(&[b"1"], 100)),
    ];
    let whole = archive(16, &items);
    let end = whole.len() - block(&items[1]).len() - block(&items[2]).len();
    assert_eq!(
        reason(&whole[..end]),
        "archive ends before the data of table data \"b\" (2 of 3 blocks missing)"
    );
}

#[test]
fn blocks_that_do_not_fit_the_table_of_contents_are_refused() {
    let data = item(3, "TABLE DATA", "t", rows(&[b"1"], 100));
    let blobs = item(4, "BLOBS", "BLOBS", Body::Blobs(vec![(9, vec![b"x".to_vec()])]));
    let toc = |items: &[Item]| {
        let mut out = header(16, i32::try_from(items.len()).unwrap());
        items.iter().for_each(|i| out.extend(entry(16, i)));
        out
    };
    let with = |mut out: Vec<u8>, more: Vec<u8>| {
        out.extend(more);
        out
    };
    let whole = archive(16, std::slice::from_ref(&data));
    assert!(reason(&with(whole.clone(), block(&data))).contains("data for entry 3 twice"));
    assert!(reason(&with(whole.clone(), block(&blobs))).contains("entry 4, which promised none"));
    for junk in [&b"\0"[..], b"\x01", b"\x03", b"\n", b"PGDMP", b"\x02\0\0\0\0\0"] {
        assert!(parse(&with(whole.clone(), junk.to_vec()), usize::MAX).is_err(), "{junk:?}");
    }
    // A second archive behind the first, as somebody's `cat` would leave it.
    assert!(parse(&with(whole.clone(), whole), usize::MAX).is_err());
    // Rows where large objects are promised, and the other way round.
    let wrong = Item { body: Body::Blobs(vec![]), ..data.clone() };
    assert!(reason(&with(toc(std::slice::from_ref(&data)), block(&wrong))).contains("of the wrong kind"));
    let wrong = Item { body: rows(&[b"1"], 100), ..blobs.clone() };
    assert!(reason(&with(toc(&[blobs]), block(&wrong))).contains("of the wrong kind"));
    assert!(reason(&toc(&[data.clone(), data])).contains("two entries with dump id 3"));
}

#[test]
fn rows_end_with_a_dot_line_and_nothing_follows_it() {
    let table = |chunks: &[&[u8]]| {
        let body = Body::Rows(chunks.iter().map(|c| c.to_vec()).collect());
        archive(15, &[item(3, "TABLE DATA", "t", body)])
    };
    let without: [&[&[u8]]; 5] = [&[], &[b"1\n"], &[b"\\."], &[b"1\\.\n"], &[b"1\n", b"\\\\.\n"]];
    for bad in without {
        assert!(reason(&table(bad)).contains("end without \\."), "{bad:?}");
    }
    for bad in [&[&b"\\.\n1\n"[..]][..], &[b"\\.\n", b"1\n"], &[b"\\.\n\n\n", b"\\.\n"], &[b"\\.\n \n"]] {
        assert!(reason(&table(bad)).contains("rows after \\."), "{bad:?}");
    }
    for good in [&[&b"\\.\n"[..]][..], &[b"\\", b".", b"\n", b"\n"], &[b"1\n\\", b".\n\n\n"]] {
        assert!(parse(&table(good), usize::MAX).is_ok(), "{good:?}");
    }
}

#[test]
fn an_unknown_version_is_no_error_and_the_rest_is_ignored() {
    for version in [(1, 13), (1, 17), (1, 255), (2, 0), (0, 16)] {
        let mut bytes = sample(16);
        (bytes[5], bytes[6]) = version;
        for piece in [1, 3, 100, usize::MAX] {
            let contents = parse(&bytes, piece).unwrap();
            assert!(contents.header.is_none() && contents.entries.is_empty() && contents.data.is_empty());
            assert_eq!(contents.version, version);
        }
        assert!(parse(&bytes[..7], 1).is_err(), "even its version must be whole");
        let error = crate::set::archive::read_toc(&bytes).unwrap_err();
        assert!(error.to_string().contains("is unknown to this opsd"), "{error}");
    }
}

#[test]
fn headers_that_no_pg_dump_of_ours_writes_are_refused() {
    let change = |at: usize, to: u8| {
        let mut bytes = sample(16);
        bytes[at] = to;
        reason(&bytes)
    };
    assert!(change(0, b'p').contains("not a custom-format archive"));
    assert!(change(8, 9).contains("integers of 9"));
    assert!(change(9, 0).contains("offsets of 0"));
    assert!(change(10, 3).contains("not a custom-format archive"), "tar");
    assert!(change(11, 1).contains("compressed inside"));
}

/// Up to pg_dump 16 each large object is an entry, and there may be millions.
#[test]
fn only_the_entries_and_definitions_that_a_proof_needs_are_kept() {
    let items = [
        item(1, "TABLE", "t", Body::None),
        item(2, "SEQUENCE SET", "s", Body::None),
        item(3, "ENCODING", "ENCODING", Body::None),
        item(4, "BLOB", "16400", Body::None),
        item(5, "TABLE DATA", "t", rows(&[], 100)),
    ];
    let mut parser = Parser::new(&secret(), false);
    parser.feed(&archive(14, &items)).unwrap();
    let entries = parser.finish().unwrap().entries;
    let kept: Vec<_> = entries.iter().map(|e| (e.desc.as_str(), !e.defn.is_empty())).collect();
    assert_eq!(kept, [("SEQUENCE SET", true), ("ENCODING", true), ("TABLE DATA", false)]);
}

#[test]
fn a_length_that_is_only_claimed_takes_no_memory() {
    let claims = |length: i32| {
        let mut bytes = header(16, 1);
        int(&mut bytes, 1);
        int(&mut bytes, 1);
        int(&mut bytes, length);
        bytes
    };
    assert!(reason(&claims(i32::MAX)).contains("a string of 2147483647 bytes"));
    // The largest that is believed: what is held stays in proportion to what came.
    let mut parser = Parser::new(&secret(), true);
    parser.feed(&claims(i32::try_from(MAX_STRING).unwrap())).unwrap();
    let mut fed = 0;
    for _ in 0..200 {
        parser.feed(&[b'x'; 1000]).unwrap();
        fed += 1000;
        assert!(parser.carry.capacity() <= 4 * fed + 1000, "{} for {fed}", parser.carry.capacity());
    }
    // A count of entries is not believed either, before they are there.
    let mut parser = Parser::new(&secret(), true);
    parser.feed(&header(16, 50_000_000)).unwrap();
    assert!(parser.contents.entries.capacity() == 0 && parser.promised.capacity() == 0);
    assert!(reason(&header(16, 50_000_001)).contains("50000001 entries"));
    assert!(reason(&header(16, -1)).contains("-1 entries"));
}

#[test]
fn a_row_is_never_held() {
    let mut parser = Parser::new(&secret(), true);
    parser.feed(&header(16, 1)).unwrap();
    let table = item(3, "TABLE DATA", "t", rows(&[], 100));
    parser.feed(&entry(16, &table)).unwrap();
    let mut start = vec![BLOCK_DATA];
    int(&mut start, 3);
    int(&mut start, 64 << 20);
    parser.feed(&start).unwrap();
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..63 {
        parser.feed(&piece).unwrap();
    }
    parser.feed(&piece[1..]).unwrap();
    let mut end = b"\n".to_vec();
    int(&mut end, 5);
    end.extend(b"\\.\n\n\n");
    int(&mut end, 0);
    parser.feed(&end).unwrap();
    assert!(parser.carry.capacity() < 4096 && parser.head.capacity() < 64);
    let contents = parser.finish().unwrap();
    assert_eq!((contents.data[&3].rows, contents.data[&3].bytes), (1, 64 << 20));
}

/// Rows as COPY writes them: no newline inside, and never the end mark.
fn any_row() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>().prop_map(|b| if b == b'\n' { b'n' } else { b }), 0..40)
        .prop_filter("the end mark", |row| row != b"\\.")
}

fn any_items() -> impl Strategy<Value = Vec<Item>> {
    let table = (vec(any_row(), 0..12), 1usize..60).prop_map(|(text, cut)| {
        let text: Vec<&[u8]> = text.iter().map(Vec::as_slice).collect();
        ("TABLE DATA", rows(&text, cut))
    });
    let blob = (1u32.., vec(vec(any::<u8>(), 1..40), 0..4));
    let blobs = vec(blob, 0..4).prop_map(|blobs| ("BLOBS", Body::Blobs(blobs)));
    let other = Just(("TABLE", Body::None));
    let bodies = vec(prop_oneof![table, blobs, other], 0..6);
    bodies.prop_map(|bodies| {
        bodies.into_iter().zip(1..).map(|((desc, body), id)| item(id, desc, "t", body)).collect()
    })
}

proptest! {
    #[test]
    fn any_archive_is_understood_whole_and_in_pieces(
        items in any_items(), minor in 14u8..=16, piece in 1usize..300, keep in any::<prop::sample::Index>(),
        junk in vec(any::<u8>(), 1..30),
    ) {
        let bytes = archive(minor, &items);
        let whole = parse(&bytes, usize::MAX).unwrap();
        prop_assert_eq!(told(&parse(&bytes, piece).unwrap()), told(&whole));
        for item in &items {
            if let Body::Rows(chunks) = &item.body {
                let text = chunks.concat();
                let text = text.strip_suffix(b"\\.\n\n\n").unwrap();
                let rows: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
                prop_assert_eq!(whole.data[&item.id], sum(&rows));
            }
        }
        prop_assert!(parse(&bytes[..keep.index(bytes.len())], piece).is_err());
        let longer = [bytes, junk].concat();
        prop_assert!(parse(&longer, piece).is_err());
    }

    #[test]
    fn damage_never_panics_and_means_the_same_in_pieces(
        minor in 14u8..=16, piece in 1usize..300,
        flips in vec((any::<prop::sample::Index>(), 1u8..), 1..4),
    ) {
        let good = sample(minor);
        let mut bad = good.clone();
        for (at, with) in &flips {
            let at = at.index(bad.len());
            bad[at] ^= with;
        }
        let whole = parse(&bad, usize::MAX).map(|c| told(&c)).map_err(|_| ());
        prop_assert_eq!(&parse(&bad, piece).map(|c| told(&c)).map_err(|_| ()), &whole);
    }

    #[test]
    fn noise_is_refused(noise in vec(any::<u8>(), 0..300), minor in 14u8..=16, behind in any::<bool>()) {
        let mut bytes = if behind { header(minor, 3) } else { Vec::new() };
        bytes.extend(noise);
        prop_assert!(parse(&bytes, 64).is_err());
    }
}
