//! What is read from a repository: manifests, records of rehearsals, proofs. What is
//! accepted once is accepted again after it was written back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use opsd::set::manifest::Manifest;
use opsd::set::proof::Proof;
use opsd::set::verification::Verification;

const ID: &str = "20261121T030000Z-7f3a";

fuzz_target!(|data: &[u8]| {
    if let Ok(manifest) = Manifest::parse(data, "example", "db", ID) {
        let bytes = manifest.to_bytes().expect("what was read can be written");
        Manifest::parse(&bytes, "example", "db", ID).expect("what was written can be read");
        let _ = (manifest.stored_bytes(), manifest.plain_bytes(), manifest.proof());
    }
    let hash = "0".repeat(64);
    if let Ok(record) = Verification::parse(data, "example", "db", ID, &hash) {
        let bytes = record.to_bytes().expect("what was read can be written");
        Verification::parse(&bytes, "example", "db", ID, &hash).expect("what was written can be read");
        let _ = record.total_seconds();
    }
    let _ = serde_json::from_slice::<Proof>(data);
});
