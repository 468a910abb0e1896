//! Order-independent, keyed summaries of COPY text.
//!
//! Each row (its bytes with the newline) is hashed with XXH3-128 under a random secret, and the
//! hashes are added modulo 2^128: rows may come back in any order, but a changed, missing or doubled
//! row moves the sum. The hash is fast, not cryptographic: it guards against accident and tampering
//! of content whose secret is sealed, not against somebody who holds the secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_secret};

use super::proof::Fingerprint;
use crate::error::{Error, Result};

/// Bytes of key material: XXH3's own secret size.
pub const SECRET_SIZE: usize = 192;

/// The key of one database's row hashes.
#[derive(Clone)]
pub struct RowSecret([u8; SECRET_SIZE]);

impl RowSecret {
    /// A fresh random key.
    pub fn generate() -> Self {
        let mut secret = [0; SECRET_SIZE];
        rand::fill(&mut secret);
        Self(secret)
    }

    /// The key as the proof stores it.
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// The key from a proof.
    pub fn from_base64(text: &str) -> Result<Self> {
        let bytes = STANDARD.decode(text).map_err(|e| Error::new(e).context("proof's secret"))?;
        let secret = bytes.try_into().map_err(|_| Error::new("proof's secret has the wrong length"))?;
        Ok(Self(secret))
    }
}

impl std::fmt::Debug for RowSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowSecret(***)")
    }
}

/// Adds rows to a [`Fingerprint`], whole or in pieces.
pub struct RowHasher {
    secret: RowSecret,
    pieces: Xxh3,
    pieces_len: u64,
    total: Fingerprint,
}

impl RowHasher {
    /// An empty summary.
    pub fn new(secret: &RowSecret) -> Self {
        let pieces = xxhash_rust::xxh3::Xxh3Builder::new().with_secret(secret.0).build();
        Self { secret: secret.clone(), pieces, pieces_len: 0, total: Fingerprint::default() }
    }

    /// A whole row at once, newline included.
    #[inline]
    pub fn row(&mut self, row: &[u8]) {
        self.total.rows += 1;
        self.total.bytes += row.len() as u64;
        self.total.sum = self.total.sum.wrapping_add(xxh3_128_with_secret(row, &self.secret.0));
    }

    /// The next bytes of a row that arrives in pieces.
    pub fn piece(&mut self, bytes: &[u8]) {
        self.pieces.update(bytes);
        self.pieces_len += bytes.len() as u64;
    }

    /// Ends a row that arrived in pieces.
    pub fn end_row(&mut self) {
        self.total.rows += 1;
        self.total.bytes += self.pieces_len;
        self.total.sum = self.total.sum.wrapping_add(self.pieces.digest128());
        self.discard_row();
    }

    /// Forgets the pieces since the last row.
    pub fn discard_row(&mut self) {
        self.pieces.reset();
        self.pieces_len = 0;
    }

    /// A message of COPY: a row, or a piece of a long one, whose last ends with the row's newline.
    #[inline]
    pub fn copied(&mut self, message: &[u8]) {
        let is_end = message.last() == Some(&b'\n');
        if is_end && self.pieces_len == 0 {
            return self.row(message);
        }
        self.piece(message);
        if is_end {
            self.end_row();
        }
    }

    /// Bytes of the unfinished row.
    pub fn pending(&self) -> u64 {
        self.pieces_len
    }

    /// What was added since the last call.
    pub fn take(&mut self) -> Fingerprint {
        self.discard_row();
        std::mem::take(&mut self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_of_copy_that_comes_in_pieces_is_one_row() {
        let secret = RowSecret::generate();
        let sum = |messages: &[&[u8]]| {
            let mut hasher = RowHasher::new(&secret);
            messages.iter().for_each(|message| hasher.copied(message));
            hasher.take()
        };
        let whole = sum(&[b"1\tone\n", b"2\ttwo\n", b"\n"]);
        assert_eq!(whole.rows, 3);
        assert_eq!(whole, sum(&[b"1\to", b"n", b"e\n", b"2\ttwo", b"\n", b"\n"]));
    }

    proptest! {
        #[test]
        fn pieces_and_whole_rows_agree(rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 0..20), cut in 1usize..50) {
            let secret = RowSecret::generate();
            let (mut whole, mut pieces) = (RowHasher::new(&secret), RowHasher::new(&secret));
            for row in &rows {
                whole.row(row);
                row.chunks(cut).for_each(|c| pieces.piece(c));
                pieces.end_row();
            }
            prop_assert_eq!(whole.take(), pieces.take());
        }

        #[test]
        fn order_does_not_matter_but_content_does(mut rows in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 1..20), flip in any::<prop::sample::Index>()) {
            let secret = RowSecret::generate();
            let sum = |rows: &[Vec<u8>]| { let mut h = RowHasher::new(&secret); rows.iter().for_each(|r| h.row(r)); h.take() };
            let original = sum(&rows);
            rows.reverse();
            prop_assert_eq!(original, sum(&rows));
            let at = flip.index(rows.len());
            rows[at][0] ^= 1;
            prop_assert_ne!(original, sum(&rows));
        }
    }

    #[test]
    fn the_secret_survives_base64() {
        let secret = RowSecret::generate();
        assert_eq!(RowSecret::from_base64(&secret.to_base64()).unwrap().0, secret.0);
        assert!(RowSecret::from_base64("AAAA").is_err());
    }
}
