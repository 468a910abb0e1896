//! The archive parser: whatever arrives, and in whatever pieces, it must not panic, and the pieces must
//! not change what it finds. The first byte of the input decides how long they are.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opsd::error::Result;
use opsd::set::archive::copy;
use opsd::set::archive::parser::{Contents, Parser};
use opsd::set::archive::read_toc;
use opsd::set::archive::split::{Piece, Splitter};
use opsd::set::fingerprint::RowSecret;

fn parse(secret: &RowSecret, bytes: &[u8], piece: usize) -> Result<Contents> {
    let mut parser = Parser::new(secret, true);
    for piece in bytes.chunks(piece) {
        parser.feed(piece)?;
    }
    parser.finish()
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    // 192 zeros in base64: sums must be comparable.
    let Ok(secret) = RowSecret::from_base64(&"A".repeat(256)) else { panic!("a key of the right length") };
    let whole = parse(&secret, bytes, usize::MAX);
    let pieces = parse(&secret, bytes, usize::from(*first).max(1));
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole.entries, pieces.entries);
            assert_eq!(whole.data, pieces.data);
            assert_eq!(whole.large_objects, pieces.large_objects);
        }
        (Err(_), Err(_)) => {}
        (whole, pieces) => panic!("whole: {:?}, in pieces: {:?}", whole.is_ok(), pieces.is_ok()),
    }
    let _ = read_toc(bytes);
    let mut splitter = Splitter::new(vec![("public".to_owned(), "t".to_owned())], true);
    let mut out = |_: Piece<'_>| Ok(());
    let fed = bytes.chunks(usize::from(*first).max(1)).try_for_each(|piece| splitter.feed(piece, &mut out));
    if fed.is_ok() {
        let _ = splitter.finish(&mut out);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = copy::parse_copy(text);
        let _ = copy::parse_setval(text);
        let _ = copy::parse_encoding(text);
    }
});
