//! The header of an age file: where ours ends, age's parser ends too, so that what a manifest pins is all
//! that comes before the first chunk; and what we let through costs that parser little.

#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use opsd::set::manifest::MAX_HEADER;
use opsd::set::seal::header;

/// What comes behind the header, and age must leave for its chunks.
const PAYLOAD: &[u8] = b"payload";

fuzz_target!(|data: &[u8]| {
    let end = match header::end(data) {
        Ok(Some(end)) => end,
        // Whatever comes behind it, it stays refused.
        Err(_) => {
            assert!(header::end(&[data, data].concat()).is_err(), "more bytes made it acceptable");
            return;
        }
        Ok(None) => return,
    };
    assert!(end <= data.len() && end as u64 <= MAX_HEADER);
    assert_eq!(header::end(&data[..end]).expect("it is the same header"), Some(end));
    assert!(header::end(&data[..end - 1]).expect("its beginning").is_none());
    let whole = [&data[..end], PAYLOAD].concat();
    let mut input = &whole[..];
    if age::Decryptor::new_buffered(&mut input).is_ok() {
        let mut rest = Vec::new();
        input.read_to_end(&mut rest).expect("memory can be read");
        assert_eq!(rest, PAYLOAD, "age read past the end, or not up to it");
    }
});
