//! The header of an age file, with the nonce of its payload: what a manifest pins of each object.
//!
//! It holds the file's key, encrypted to each recipient, and a random nonce; from both comes the key that
//! each chunk of the payload is encrypted and authenticated with. Anybody can make an age file for a
//! public recipient, but with a file key of his own. Where the header is the one that the backup wrote,
//! only who knows its file key can make a chunk that decrypts: the backup, which forgot the key when it
//! was done, and the holders of identities.
//!
//! A header is compared, and held to bounds, before age's parser sees it: that reads it anew with every
//! line, so that a few ten KiB of nonsense are minutes of work.

use std::io::Read;

use super::{changed, sha256_hex};
use crate::error::{Error, Result};
use crate::set::manifest::{Header, MAX_HEADER, Object};

/// Most stanzas in a header: one a recipient, of which a configuration names no more than
/// [`MAX_RECIPIENTS`](crate::config::keys::MAX_RECIPIENTS), and one that age adds at random. Each costs an
/// identity a multiplication on a curve.
const MAX_STANZAS: usize = 32;
/// Most lines: as many as so many stanzas have whose bodies, in lines of 64, fill the largest header.
const MAX_LINES: usize = 384;
/// Bytes of the nonce that follows the last line.
const NONCE_SIZE: usize = 16;

/// Where the header at the beginning of an age file ends, nonce included. `None`: it goes on.
pub fn end(bytes: &[u8]) -> Result<Option<usize>> {
    let (mut at, mut lines, mut stanzas) = (0, 0, 0);
    loop {
        if lines > MAX_LINES || stanzas > MAX_STANZAS || at as u64 > MAX_HEADER {
            return Err(Error::differs(format!(
                "the header has more than {MAX_STANZAS} recipients, {MAX_LINES} lines or {MAX_HEADER} bytes"
            )));
        }
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            // A line that does not end is no header's, however it goes on.
            return if bytes.len() as u64 > MAX_HEADER {
                Err(too_large(bytes.len() as u64))
            } else {
                Ok(None)
            };
        };
        at += length + 1;
        lines += 1;
        stanzas += usize::from(rest.starts_with(b"-> "));
        // Neither a stanza's first line nor its body in base64 begins like this.
        if rest.starts_with(b"---") {
            let end = at + NONCE_SIZE;
            return if end as u64 > MAX_HEADER {
                Err(too_large(end as u64))
            } else {
                Ok((bytes.len() >= end).then_some(end))
            };
        }
    }
}

fn too_large(size: u64) -> Error {
    Error::differs(format!("the header has {size} bytes or more, where at most {MAX_HEADER} are allowed"))
}

/// What a manifest says of a header.
pub fn pin(header: &[u8]) -> Header {
    Header { size: header.len() as u64, sha256: sha256_hex(header) }
}

/// Reads the header of an object, and returns it if it is the one that the manifest pins.
pub(super) fn read(input: &mut impl Read, object: &Object) -> Result<Vec<u8>> {
    // The manifest's word; it was held to the bound when it was read.
    let pinned = object.header.size.min(MAX_HEADER);
    let mut header = Vec::new();
    input.take(pinned).read_to_end(&mut header)?;
    if pin(&header) != object.header {
        return Err(changed(&object.key, "its header is not the one that the manifest pins"));
    }
    match end(&header) {
        Ok(Some(end)) if end == header.len() => Ok(header),
        Ok(_) => Err(Error::differs("what the manifest pins is not the header of an age file")),
        Err(error) => Err(error),
    }
    .map_err(|error| error.context(format!("object {}", object.key)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(stanzas: &str) -> Vec<u8> {
        let mut file = format!("age-encryption.org/v1\n{stanzas}--- {}\n", "A".repeat(43)).into_bytes();
        file.extend([7; NONCE_SIZE]);
        file
    }

    /// What age's parser leaves of a file, where it takes the header.
    fn left_by_age(file: &[u8]) -> Option<usize> {
        let mut input = file;
        let is_taken = age::Decryptor::new_buffered(&mut input).is_ok();
        is_taken.then_some(input.len())
    }

    #[test]
    fn a_header_ends_where_age_says() {
        let body = format!("{}\n", "A".repeat(64));
        for stanzas in [
            "-> a\n\n".into(),
            "-> a b c\nAAAA\n".into(),
            format!("-> a\n{}\n", body.repeat(5)),
            "-> a\n\n".repeat(32),
        ] {
            let mut file = with(&stanzas);
            let size = file.len();
            file.extend(b"a chunk");
            assert_eq!(end(&file).unwrap(), Some(size), "{stanzas}");
            assert_eq!(left_by_age(&file), Some(7), "{stanzas}");
            for cut in 0..size {
                assert_eq!(end(&file[..cut]).unwrap(), None, "{stanzas}, {cut}");
            }
        }
    }

    #[test]
    fn what_would_cost_the_parser_much_is_refused() {
        let limit = usize::try_from(MAX_HEADER).unwrap();
        for bad in [
            with(&"-> a\n\n".repeat(33)),
            with(&format!("-> a\n{}", "A\n".repeat(400))),
            with(&format!("-> {}\n\n", "a".repeat(limit))),
            with(&format!("-> a\n{}\n", format!("{}\n", "A".repeat(64)).repeat(300))),
            vec![b'-'; limit + 1],
            b"\n".repeat(400),
        ] {
            let error = end(&bad).unwrap_err();
            assert!(error.to_string().contains("the header has"), "{error}");
            // However little of it is there: a reader need not wait for the rest.
            assert!(end(&[&bad[..], b"more"].concat()).is_err());
        }
    }

    proptest! {
        /// Damaged headers, too: what is pinned is all that comes before the chunks, or nothing is read.
        #[test]
        fn age_never_reads_past_what_is_pinned(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), count in 1usize..4, width in 0usize..70,
        ) {
            let mut file = with(&format!("-> a b\n{}\n", "A".repeat(width)).repeat(count));
            let at = at.index(file.len());
            file[at] = byte;
            file.extend(b"payload");
            if let Ok(Some(end)) = end(&file)
                && let Some(left) = left_by_age(&file)
            {
                prop_assert_eq!(file.len() - left, end);
            }
        }
    }
}
