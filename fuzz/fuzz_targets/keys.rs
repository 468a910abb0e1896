//! Recipients, trusted keys and signatures. The input is cut at its first zero byte: a key (or a
//! signature) before it, what was signed after it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opsd::config::keys;
use opsd::set::signature;

fuzz_target!(|data: &[u8]| {
    let (first, rest) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, data),
    };
    let Ok(text) = std::str::from_utf8(first) else { return };
    if let Ok(recipient) = keys::parse_recipient(text) {
        let canonical = recipient.canonical();
        let again = keys::parse_recipient(&canonical).unwrap_or_else(|e| panic!("{canonical}: {e}"));
        assert_eq!(again.canonical(), canonical);
    }
    let _ = keys::parse_trusted_key(text);
    // Of a key that nobody has: nothing is ever signed with it.
    let trusted = ["RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".to_owned()];
    assert!(signature::verify(&trusted, "", rest, text).is_err(), "a signature was made up");
    let _ = signature::verify(&[text.to_owned()], "", rest, &String::from_utf8_lossy(rest));
});
