//! Archives for tests, made byte by byte, so that every kind of damage can be made too.

use super::FORMAT_CUSTOM;

/// What stands behind an entry.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    None,
    /// Chunks of a DATA block, as they are.
    Rows(Vec<Vec<u8>>),
    /// Large objects and their chunks.
    Blobs(Vec<(u32, Vec<Vec<u8>>)>),
}

/// An entry and its data.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub id: i32,
    pub desc: &'static str,
    pub tag: String,
    pub body: Body,
}

pub(crate) fn item(id: i32, desc: &'static str, tag: &str, body: Body) -> Item {
    Item { id, desc, tag: tag.into(), body }
}

pub(crate) fn int(out: &mut Vec<u8>, value: i32) {
    out.push(u8::from(value < 0));
    // As pg_dump does it: the smallest integer stays what it is.
    out.extend(value.wrapping_abs().to_le_bytes());
}

pub(crate) fn string(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => int(out, -1),
        Some(text) => {
            int(out, i32::try_from(text.len()).unwrap());
            out.extend(text.as_bytes());
        }
    }
}

pub(crate) fn header(minor: u8, entries: i32) -> Vec<u8> {
    let mut out = b"PGDMP".to_vec();
    out.extend([1, minor, 0, 4, 8, FORMAT_CUSTOM]);
    if minor >= 15 {
        out.push(0);
    } else {
        int(&mut out, 0);
    }
    for part in [1, 2, 3, 4, 10, 126, 0] {
        int(&mut out, part);
    }
    for text in ["shop", "17.11", "17.11"] {
        string(&mut out, Some(text));
    }
    int(&mut out, entries);
    out
}

pub(crate) fn entry(minor: u8, item: &Item) -> Vec<u8> {
    let mut out = Vec::new();
    let copy = format!("COPY public.{} (a) FROM stdin;\n", item.tag);
    int(&mut out, item.id);
    int(&mut out, i32::from(!matches!(item.body, Body::None)));
    string(&mut out, Some("0"));
    string(&mut out, Some("16384"));
    string(&mut out, Some(&item.tag));
    string(&mut out, Some(item.desc));
    int(&mut out, 3);
    string(&mut out, Some("CREATE SOMETHING;\n"));
    string(&mut out, None);
    string(&mut out, matches!(item.body, Body::Rows(_)).then_some(copy.as_str()));
    for text in [Some("public"), None, Some("heap")] {
        string(&mut out, text);
    }
    if minor >= 16 {
        int(&mut out, 114);
    }
    string(&mut out, Some("owner"));
    string(&mut out, Some("false"));
    for dependency in ["7", "9"] {
        string(&mut out, Some(dependency));
    }
    string(&mut out, None);
    out.push(1);
    out.extend([0; 8]);
    out
}

pub(crate) fn block(item: &Item) -> Vec<u8> {
    let mut out = Vec::new();
    let chunks = |out: &mut Vec<u8>, chunks: &[Vec<u8>]| {
        for chunk in chunks {
            int(out, i32::try_from(chunk.len()).unwrap());
            out.extend(chunk);
        }
        int(out, 0);
    };
    match &item.body {
        Body::None => {}
        Body::Rows(rows) => {
            out.push(1);
            int(&mut out, item.id);
            chunks(&mut out, rows);
        }
        Body::Blobs(blobs) => {
            out.push(3);
            int(&mut out, item.id);
            for (oid, content) in blobs {
                int(&mut out, oid.cast_signed());
                chunks(&mut out, content);
            }
            int(&mut out, 0);
        }
    }
    out
}

pub(crate) fn archive(minor: u8, items: &[Item]) -> Vec<u8> {
    let mut out = header(minor, i32::try_from(items.len()).unwrap());
    items.iter().for_each(|item| out.extend(entry(minor, item)));
    items.iter().for_each(|item| out.extend(block(item)));
    out
}

/// Chunks of a block with these rows, cut every `cut` bytes.
pub(crate) fn rows(rows: &[&[u8]], cut: usize) -> Body {
    let mut text = Vec::new();
    for row in rows {
        text.extend_from_slice(row);
        text.push(b'\n');
    }
    text.extend(b"\\.\n\n\n");
    Body::Rows(text.chunks(cut).map(<[u8]>::to_vec).collect())
}
