//! The rows of an archive of one table: whatever arrives, and however little of it at once, nothing
//! panics, no more comes out than went in, and the pieces do not change what comes out.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use opsd::set::archive::rows;

/// Gives a few bytes at a time.
struct Slowly<'a>(&'a [u8], usize);

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.1.min(buffer.len());
        (&mut self.0).take(count as u64).read(buffer)
    }
}

fn read(bytes: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut table = rows::open(Slowly(bytes, piece)).ok()??;
    let mut out = Vec::new();
    loop {
        let limit = out.len() + piece;
        if !table.fill(&mut out, limit).ok()? {
            return Some(out);
        }
        assert!(out.len() <= bytes.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    assert_eq!(read(bytes, usize::from(*first).max(1)), read(bytes, 1 << 16));
});
