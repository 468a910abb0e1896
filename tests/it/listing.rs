//! Listing a repository of many sets on S3: everything is there, and memory stays small.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, stream};
use opsd::set::{self, seal, signature, verification};
use opsd::store::{Store, open_s3, put};
use serde_json::{Value, json};

use crate::support::opsd::Opsd;
use crate::support::s3::SeaweedFs;
use crate::support::torture::rounds;

/// Resident memory that listing may take, in kibibytes.
const MEMORY: u64 = 64 << 10;

/// A manifest as a nightly backup of two databases writes it.
fn manifest(id: &str, started: DateTime<Utc>, previous: Option<&str>) -> Vec<u8> {
    let object = |key: &str| json!({ "key": key, "size": 64, "sha256": seal::sha256_hex(key.as_bytes()) });
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
    let document = json!({
        "format": 1, "site": "test", "job": "db", "id": id,
        "started": started, "finished": started + TimeDelta::minutes(4), "previous": previous,
        "opsd_version": "0.1.0",
        "server": { "version_num": 170_011, "version": "17.11", "in_recovery": false },
        "pg_dump_version": "17.11",
        "recipients": ["age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"],
        "globals": stream("globals", "globals.sql.zst.age".into()),
        "databases": [database("app"), database("shop")],
        "restore_md": object("RESTORE.md"),
        "warnings": ["app: the table public.sessions is saved without its rows"],
    });
    serde_json::to_vec_pretty(&document).expect("JSON")
}

fn record(id: &str, manifest: &[u8], finished: DateTime<Utc>) -> Vec<u8> {
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
fn repository(opsd: &Opsd, sets: usize) -> Vec<(String, Vec<u8>)> {
    let first: DateTime<Utc> = "2024-01-01T03:00:00Z".parse().expect("a time");
    let sign =
        |bytes: &[u8]| signature::sign(&opsd.path("sign.key"), bytes, "test").expect("signed").into_bytes();
    let mut objects = Vec::new();
    let mut previous: Option<String> = None;
    for n in 0..sets {
        let started = first + TimeDelta::days(n as i64);
        let id = format!("{}-{:04x}", started.format("%Y%m%dT%H%M%SZ"), n % 65_536);
        let prefix = set::set_prefix("test", "db", &id);
        let bytes = manifest(&id, started, previous.as_deref());
        let parsed = set::manifest::Manifest::parse(&bytes, "test", "db", &id).expect("a manifest");
        for object in parsed.objects() {
            objects.push((format!("{prefix}{}", object.key), vec![7; object.size as usize]));
        }
        if n % 7 == 0 {
            let finished = started + TimeDelta::hours(2);
            let bytes = record(&id, &bytes, finished);
            let key = prefix.clone() + &verification::name(finished);
            objects.push((format!("{key}.minisig"), sign(&bytes)));
            objects.push((key, bytes));
        }
        objects.push((format!("{prefix}manifest.json.minisig"), sign(&bytes)));
        objects.push((format!("{prefix}manifest.json"), bytes));
        previous = Some(id);
    }
    objects
}

/// Runs a command to its end: its output, the most memory it had in KiB, and how long it took.
fn measured(mut command: std::process::Command) -> (Value, u64, Duration) {
    let clock = Instant::now();
    let mut child = command.spawn().expect("opsd");
    let mut stdout = child.stdout.take().expect("stdout");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).expect("read");
        text
    });
    let mut peak = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let now = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let took = clock.elapsed();
    assert!(status.success(), "{status}");
    (serde_json::from_str(&reader.join().expect("read")).expect("JSON"), peak, took)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sets_are_listed_in_little_memory() {
    let sets = rounds(100, 1_000);
    let server = SeaweedFs::start().await;
    let mut opsd = Opsd::without_server();
    opsd.use_s3("s3://backups/p", &server.endpoint, &server.admin.access_key, &server.admin.secret_key);
    let store: Arc<dyn Store> =
        Arc::new(open_s3(&server.repository("p"), &server.admin.access()).await.unwrap());
    stream::iter(repository(&opsd, sets))
        .map(|(key, bytes)| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { put(store.as_ref(), &key, bytes, false).await.unwrap() })
        })
        .buffer_unordered(16)
        .for_each(|done| async move { done.unwrap() })
        .await;
    for _ in 0..rounds(1, 5) {
        let (document, peak, took) = measured(opsd.command(&["backups", "list", "--json"]));
        eprintln!("listing {sets} sets: {took:?}, {} MiB", peak >> 10);
        let listed = document["sets"].as_array().unwrap();
        assert_eq!(listed.len(), sets);
        assert!(listed.iter().all(|s| s["state"] == "complete" && s["signature"] == "trusted"), "{document}");
        let proven = listed.iter().filter(|s| s["verified"]["verdict"] == "proven").count();
        assert_eq!(proven, sets.div_ceil(7));
        assert!(peak > 0 && peak < MEMORY, "{peak} KiB");
    }
}

/// What a manifest holds is up to whoever writes it: only what a list shows is kept of it.
#[test]
fn large_manifests_are_listed_in_little_memory() {
    let opsd = Opsd::without_server();
    let first: DateTime<Utc> = "2024-01-01T03:00:00Z".parse().unwrap();
    for n in 0..12 {
        let started = first + TimeDelta::days(n);
        let id = format!("{}-0000", started.format("%Y%m%dT%H%M%SZ"));
        let mut document: Value = serde_json::from_slice(&manifest(&id, started, None)).unwrap();
        document["warnings"] = json!(vec!["a table was left out ".repeat(50); 6000]);
        let bytes = serde_json::to_vec(&document).unwrap();
        let set = opsd.path("repository").join(set::set_prefix("test", "db", &id));
        std::fs::create_dir_all(&set).unwrap();
        let signature = signature::sign(&opsd.path("sign.key"), &bytes, "test").unwrap();
        std::fs::write(set.join("manifest.json.minisig"), signature).unwrap();
        std::fs::write(set.join("manifest.json"), bytes).unwrap();
    }
    let (document, peak, _) = measured(opsd.command(&["backups", "list", "--json"]));
    eprintln!("listing 12 manifests of 6 MiB: {} MiB", peak >> 10);
    let listed = document["sets"].as_array().unwrap();
    assert!(listed.len() == 12 && listed.iter().all(|s| s["state"] == "complete"), "{}", listed.len());
    let warnings = listed[0]["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|w| w.as_str().is_some_and(|w| w.contains("more: `opsd backups show"))));
    assert!(peak > 0 && peak < 2 * MEMORY, "{peak} KiB");
}
