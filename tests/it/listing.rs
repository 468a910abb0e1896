//! Listing a repository of many sets on S3: everything is there, and memory stays small. How long it
//! takes is measured by `make bench`.

use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use opsd::set;
use opsd::store::{Store, open_s3};
use serde_json::{Value, json};

use crate::support::many_sets;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{SUPERUSER, default_server, unique};
use crate::support::s3::{SeaweedFs, s3s_fs};
use crate::support::s3_proxy::{Fate, Proxy};
use crate::support::sets::{back_up, next_second, sign};
use crate::support::torture::rounds;

/// Resident memory that listing may take, in kibibytes.
const MEMORY: u64 = 64 << 10;

/// Runs a command to its end: its output, and the most memory it had in KiB.
fn measured(mut command: std::process::Command) -> (Value, u64) {
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
    assert!(status.success(), "{status}");
    (serde_json::from_str(&reader.join().expect("read")).expect("JSON"), peak)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sets_are_listed_in_little_memory() {
    let sets = rounds(100, 1_000);
    let server = SeaweedFs::start().await;
    let mut opsd = Opsd::without_server();
    opsd.use_s3("s3://backups/p", &server.endpoint, &server.admin.access_key, &server.admin.secret_key);
    let store: Arc<dyn Store> =
        Arc::new(open_s3(&server.repository("p"), &server.admin.access()).await.unwrap());
    many_sets::fill(&store, &opsd, sets).await;
    for _ in 0..rounds(1, 5) {
        let (document, peak) = measured(opsd.command(&["backups", "list", "--json"]));
        eprintln!("listing {sets} sets: {} MiB", peak >> 10);
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
        let mut document: Value = serde_json::from_slice(&many_sets::manifest(&id, started, None)).unwrap();
        document["warnings"] = json!(vec!["a table was left out ".repeat(50); 6000]);
        let bytes = serde_json::to_vec(&document).unwrap();
        let prefix = set::set_prefix("test", "db", &id);
        let set = opsd.path("repository").join(&prefix);
        std::fs::create_dir_all(&set).unwrap();
        let signature = sign(&opsd.path("sign.key"), &format!("{prefix}manifest.json"), &bytes);
        std::fs::write(set.join("manifest.json.minisig"), signature).unwrap();
        std::fs::write(set.join("manifest.json"), bytes).unwrap();
    }
    let (document, peak) = measured(opsd.command(&["backups", "list", "--json"]));
    eprintln!("listing 12 manifests of 6 MiB: {} MiB", peak >> 10);
    let listed = document["sets"].as_array().unwrap();
    assert!(listed.len() == 12 && listed.iter().all(|s| s["state"] == "complete"), "{}", listed.len());
    let warnings = listed[0]["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|w| w.as_str().is_some_and(|w| w.contains("more: `opsd backups show"))));
    assert!(peak > 0 && peak < 2 * MEMORY, "{peak} KiB");
}

/// A repository of a thousand sets is ten thousand keys, and ten requests for each listing of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_listing_of_a_job_is_read_once_a_run() {
    let s3 = s3s_fs().await;
    let listed: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = listed.clone();
    let proxy = Proxy::start(&s3.endpoint, 1, Duration::ZERO, move |request, _| {
        let line = request.head.lines().next().unwrap_or_default();
        let options: Vec<&str> = line.split(['?', '&', ' ']).collect();
        let prefix = options.iter().find_map(|o| o.strip_prefix("prefix=")).map(|p| p.replace("%2f", "/"));
        // To ask for the time is a listing of one key.
        if let Some(prefix) = prefix
            && options.contains(&"list-type=2")
            && !options.contains(&"max-keys=1")
        {
            seen.lock().unwrap().push(prefix);
        }
        Fate::Forward
    });
    let proxy = proxy.await;
    let server = default_server();
    let database = server.fresh_database("listed");
    server.psql(&database, "CREATE TABLE t AS SELECT 1 AS n");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.use_s3("s3://backups/p", &proxy.endpoint, &s3.keys.access_key, &s3.keys.secret_key);
    opsd.job.set("retention", "{ last = 1 }").set("rpo", quoted("26h"));
    opsd.more = "[monitor.backups]\nbackups = {}\n".to_owned();
    let target = unique("listed_back");
    let to = server.socket_url(SUPERUSER, &target);
    let id = tokio::task::block_in_place(|| back_up(&opsd));
    let commands: [&[&str]; 8] = [
        &["backup"],
        &["backups", "list"],
        &["backups", "show", &id],
        &["backups", "scrub"],
        &["check"],
        &["restore", "--verify"],
        &["restore", "db", "--to", &to, "--create"],
        &["backups", "prune"],
    ];
    for command in commands {
        tokio::task::block_in_place(next_second);
        listed.lock().unwrap().clear();
        tokio::task::block_in_place(|| opsd.ok(command));
        let listed = listed.lock().unwrap().clone();
        // What a run lists of its own set is another matter.
        let of_job = listed.iter().filter(|prefix| ["p/test/", "p/test/db/"].contains(&prefix.as_str()));
        assert_eq!(of_job.count(), 1, "{command:?} lists {listed:?}");
    }
    server.drop_database(&target);
    server.drop_database(&database);
}
