//! What of a request opsd reads itself, once hyper has taken it apart: `Authorization` and `Accept`. Nothing
//! panics, and nobody without the token is let in.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opsd::exporter::auth::Gate;
use opsd::exporter::respond::wants_openmetrics;

fuzz_target!(|data: &[u8]| {
    for gate in [Gate::Basic([7; 32]), Gate::Bearer([7; 32])] {
        assert!(!gate.admits(Some(data)), "nothing hashes to that");
        assert!(!gate.admits(None));
    }
    assert!(Gate::Open.admits(Some(data)));
    let _ = wants_openmetrics(&String::from_utf8_lossy(data));
});
