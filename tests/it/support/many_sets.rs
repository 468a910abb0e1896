//! A repository of many sets, signed and some of them rehearsed, without a backup being made.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use opsd::set::signature::{self, Purpose};
use opsd::set::{self, seal, verification};
use opsd::store::{Store, put};
use serde_json::json;

use super::opsd::Opsd;

/// A manifest as a nightly backup of two databases writes it.
pub fn manifest(id: &str, started: DateTime<Utc>, previous: Option<&str>) -> Vec<u8> {
    let document = |key: &str| json!({ "key": key, "size": 64, "sha256": seal::sha256_hex(key.as_bytes()) });
    let object = |key: &str| {
        let mut object = document(key);
        object["header"] = json!({ "size": 32, "sha256": object["sha256"] });
        object
    };
    let stream = |name: &str, key: String| json!({ "name": name, "plain_size": 1_000_000, "objects": [object(&key)], "seconds": 1.5 });
    let database = |name: &str| {
        json!({
            "name": name,
            "locale": { "encoding": "UTF8", "collate": "C.UTF-8", "ctype": "C.UTF-8", "provider": "libc",
                        "locale": null, "icu_rules": null, "monetary": "C" },
            "snapshot_lsn": "0/16B3748",
            "snapshot_time": started,
            "extensions": [{ "name": "pgcrypto", "version": "1.3" }, { "name": "plpgsql", "version": "1.0" }],
            "excluded": ["public.sessions"],
            "streams": [
                stream("schema", format!("{name}/schema.pgdump.zst.age")),
                stream("data-rest", format!("{name}/data-rest.pgdump.zst.age")),
                stream("data-1", format!("{name}/data-1.pgdump.zst.age")),
            ],
            "proof_object": stream("proof", format!("{name}/proof.json.zst.age")),
            "proof": "complete", "tables": 40, "rows": 1_234_567, "bytes": 987_654_321,
        })
    };
    let whole = json!({
        "format": 2, "site": "test", "job": "db", "id": id,
        "started": started, "finished": started + TimeDelta::minutes(4), "previous": previous,
        "opsd_version": "0.1.0",
        "server": { "version_num": 170_011, "version": "17.11", "in_recovery": false },
        "pg_dump_version": "17.11",
        "recipients": ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"],
        "globals": stream("globals", "globals.sql.zst.age".into()),
        "databases": [database("app"), database("shop")],
        "restore_md": document("RESTORE.md"),
        "warnings": ["app: the table public.sessions is saved without its rows"],
    });
    serde_json::to_vec_pretty(&whole).expect("JSON")
}

/// A record of a rehearsal that proved it.
pub fn record(id: &str, manifest: &[u8], finished: DateTime<Utc>) -> Vec<u8> {
    let database = |name: &str| json!({ "name": name, "tables_total": 40, "tables_proven": 40, "rows": 1_234_567, "differences": [] });
    let document = json!({
        "format": 1, "site": "test", "job": "db", "id": id,
        "manifest_sha256": seal::sha256_hex(manifest), "verdict": "proven",
        "started": finished - TimeDelta::minutes(9), "finished": finished,
        "seconds": { "fetch": 20.5, "restore": 400.0, "prove": 100.0 },
        "databases": [database("app"), database("shop")],
        "warnings": [], "server_version": "17.11", "opsd_version": "0.1.0",
    });
    serde_json::to_vec_pretty(&document).expect("JSON")
}

/// Nightly sets, signed, each seventh rehearsed, as the objects of a repository.
fn repository(opsd: &Opsd, count: usize) -> Vec<(String, Vec<u8>)> {
    let first: DateTime<Utc> = "2024-01-01T03:00:00Z".parse().expect("a time");
    let sign = |purpose: Purpose, id: &str, bytes: &[u8]| {
        let comment = purpose.comment("test", "db", id);
        signature::sign(&opsd.path("sign.key"), bytes, &comment).expect("signed").into_bytes()
    };
    let mut objects = Vec::new();
    let mut previous: Option<String> = None;
    for n in 0..count {
        let started = first + TimeDelta::days(n as i64);
        let id = format!("{}-{:04x}", started.format("%Y%m%dT%H%M%SZ"), n % 65_536);
        let prefix = set::set_prefix("test", "db", &id);
        let bytes = manifest(&id, started, previous.as_deref());
        let parsed = set::manifest::Manifest::parse(&bytes, "test", "db", &id).expect("a manifest");
        for object in parsed.stored() {
            objects.push((format!("{prefix}{}", object.key), vec![7; object.size as usize]));
        }
        if n % 7 == 0 {
            let finished = started + TimeDelta::hours(2);
            let bytes = record(&id, &bytes, finished);
            let key = prefix.clone() + &verification::name(finished);
            objects.push((format!("{key}.minisig"), sign(Purpose::Verification, &id, &bytes)));
            objects.push((key, bytes));
        }
        let key = format!("{prefix}manifest.json");
        objects.push((format!("{key}.minisig"), sign(Purpose::Manifest, &id, &bytes)));
        objects.push((key, bytes));
        previous = Some(id);
    }
    objects
}

/// Puts nightly sets of the job `db` into a store.
pub async fn fill(store: &Arc<dyn Store>, opsd: &Opsd, sets: usize) {
    stream::iter(repository(opsd, sets))
        .map(|(key, bytes)| {
            let store = Arc::clone(store);
            tokio::spawn(async move { put(store.as_ref(), &key, bytes, false).await.expect("stored") })
        })
        .buffer_unordered(16)
        .for_each(|done| async move { done.expect("stored") })
        .await;
}
