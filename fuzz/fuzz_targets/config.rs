//! A configuration, a connection string, sizes and durations. A password never shows: the canary stands
//! where variables of the environment are expanded.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use opsd::config::{libpq, raw, units};

const CANARY: &str = "c4nary-of-the-environment";

fn environment(name: &str) -> Option<String> {
    // Files of libpq's would be looked for below it.
    match name {
        "HOME" => Some("/nonexistent".to_owned()),
        "PGPASSWORD" | "SECRET" => Some(CANARY.to_owned()),
        _ => None,
    }
}

/// Opening a device or a pipe may never return, and that is the operator's to know.
fn names_a_device(text: &str) -> bool {
    text.contains("/dev") || text.contains("/proc") || text.contains("/sys")
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // libFuzzer learns the canary from the comparison below; what stands in the file may be shown.
    if names_a_device(text) || text.contains(CANARY) {
        return;
    }
    let parsed = raw::parse(text, Path::new("opsd.toml"), &environment);
    assert_eq!(parsed.config.is_some(), parsed.mistakes.is_empty());
    let said = format!("{:?} {:?}", parsed.mistakes, parsed.warnings);
    assert!(!said.contains(CANARY), "{said}");
    match libpq::resolve(text, &environment) {
        Ok(resolved) => {
            let connection = &resolved.connection;
            let said = format!("{} {:?}", connection.describe(), connection.password);
            assert!(!said.contains(CANARY), "{said}");
        }
        Err(errors) => assert!(!format!("{errors:?}").contains(CANARY)),
    }
    let _ = (units::parse_size(text), units::parse_duration(text));
});
