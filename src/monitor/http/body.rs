//! What a body says, however it was sent: gzip is undone, and a byte order mark is no part of it. Pure.

use std::fmt;
use std::io::Read as _;
use std::time::Duration;

use flate2::read::MultiGzDecoder;

/// A health page is a few kilobytes; what follows is not read, nor what a compressed one holds beyond that.
pub(super) const MAX: usize = 1 << 20;

/// A body, as far as it was read.
pub(super) struct Body {
    pub(super) text: Vec<u8>,
    /// Why that is not all of it.
    pub(super) flaw: Option<Flaw>,
}

/// What keeps a body from being read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// It is longer than anybody looks at.
    TooLong,
    /// It had not ended when its time was over.
    Endless(Duration),
    /// It is compressed otherwise than it says, or in a way that nobody asked for.
    Encoding,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::TooLong => write!(f, "the body is longer than {} MiB", MAX >> 20),
            Flaw::Endless(bound) => write!(f, "the body had not ended after {:.1} s", bound.as_secs_f64()),
            Flaw::Encoding => {
                f.write_str("the body is not what its Content-Encoding says, or neither gzip nor plain")
            }
        }
    }
}

/// Undoes what stands between a body and its text.
pub(super) fn read(bytes: Vec<u8>, encoding: Option<&[u8]>, flaw: Option<Flaw>) -> Body {
    let encoding = encoding.unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let (bytes, flaw) = match encoding.as_slice() {
        b"" | b"identity" => (bytes, flaw),
        b"gzip" | b"x-gzip" => unzip(&bytes, flaw),
        _ => (Vec::new(), flaw.or(Some(Flaw::Encoding))),
    };
    Body { text: without_mark(bytes), flaw }
}

/// What has come of a body that was cut is unpacked as far as it goes.
fn unzip(bytes: &[u8], flaw: Option<Flaw>) -> (Vec<u8>, Option<Flaw>) {
    let mut text = Vec::new();
    let outcome = MultiGzDecoder::new(bytes).take(MAX as u64 + 1).read_to_end(&mut text);
    let found = match outcome {
        _ if text.len() > MAX => Some(Flaw::TooLong),
        Ok(_) => None,
        Err(_) => Some(Flaw::Encoding),
    };
    text.truncate(MAX);
    (text, flaw.or(found))
}

/// UTF-8 without its mark, also where UTF-16 was sent with one.
fn without_mark(bytes: Vec<u8>) -> Vec<u8> {
    let utf16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let units = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        let text: String =
            char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        text.into_bytes()
    };
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, rest @ ..] => rest.to_vec(),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_are_no_text_and_strange_encodings_are_said() {
        let read = |bytes: &[u8], encoding| {
            let body = read(bytes.to_vec(), encoding, None);
            (String::from_utf8(body.text).unwrap(), body.flaw)
        };
        assert_eq!(read(b"\xef\xbb\xbf{}", None), ("{}".into(), None));
        assert_eq!(read(b"\xff\xfe{\0}\0", Some(b"identity")), ("{}".into(), None));
        assert_eq!(read(b"\xfe\xff\0{\0}", None), ("{}".into(), None));
        assert_eq!(read(b"{}", Some(b"br")), (String::new(), Some(Flaw::Encoding)));
        assert_eq!(read(b"{}", Some(b"GZIP")).1, Some(Flaw::Encoding));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_is_more_than_bearable(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for encoding in [None, Some(&b"gzip"[..])] {
                prop_assert!(read(bytes.clone(), encoding, None).text.len() <= MAX);
            }
        }
    }
}
