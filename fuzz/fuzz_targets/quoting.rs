//! Text of others in RESTORE.md: one line of harmless characters, which a shell turns into what it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opsd::backup::restore_md::quoting::{export, markdown, shell};

/// What a shell makes of a word without variables.
fn unquoted(word: &str) -> String {
    match word.strip_prefix('\'') {
        Some(rest) => rest.strip_suffix('\'').expect("a closing quote").replace("'\\''", "'"),
        None => word.to_owned(),
    }
}

/// What `printf '%b'` makes of octal escapes.
fn printed(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '\\' {
            let digits = rest[1..].strip_prefix('0').and_then(|rest| rest.get(..3)).expect("three digits");
            bytes.push(u8::from_str_radix(digits, 8).expect("a byte"));
            rest = &rest[5..];
        } else {
            bytes.push(u8::try_from(c).expect("ASCII"));
            rest = &rest[1..];
        }
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = markdown(text);
    assert_eq!(shown.matches('`').count(), 2);
    assert!(!shown.contains(char::is_control));
    if text.contains('\0') {
        return; // no argument, and no name of PostgreSQL's, can hold it
    }
    let (before, word) = shell("w", text);
    for line in [before.clone().unwrap_or_default(), word.clone(), export("w", text)] {
        assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{line:?}");
    }
    match before {
        None => assert_eq!(unquoted(&word), text),
        Some(line) => {
            let octal = line.strip_prefix("w=$(printf '%b.' '").and_then(|l| l.strip_suffix("'); w=${w%.}"));
            assert_eq!(printed(octal.expect("an assignment")), text.as_bytes());
            assert_eq!(word, "\"$w\"");
        }
    }
});
