//! What the pages name: metrics, alerts, panels, keys of the configuration, states, reasons, and the names of
//! PostgreSQL, Redis and others. Each must be known to whoever it belongs to.

use std::collections::BTreeSet;
use std::path::Path;

use opsd::metrics;
use opsd::monitor::Reason;
use serde_json::Value;

use super::page::{Kind, Snippet, pages};
use super::sql::majors;
use crate::support::opsd::Opsd;
use crate::support::postgres;
use crate::support::redis::{Redis, Software};

/// Words of others that nobody here can be asked for, and whose they are.
const OTHERS: &[(&str, &[&str])] = &[
    ("the repository's format", &["failed.json"]),
    ("options of opsd's, beside the commands that take them", &["--jobs", "--dry-run"]),
    ("opsd as the name of a session, and pg_dump", &["opsd", "pg_dump", "lsof", "ps"]),
    (
        "files of the system",
        &["/etc/docker/daemon.json", "/etc/sysctl.d/", "pg_wal", ".ready", "base/DATABASE-OID/FILENODE"],
    ),
    ("Docker", &["max-size", "mem_limit:", "--volumes"]),
    ("systemd", &["LimitNOFILE="]),
    (
        "Rails, Puma and Sidekiq",
        &["DB_POOL", "PUMA_WORKERS", "SIDEKIQ_CONCURRENCY", "-q NAME", "--concurrency"],
    ),
    ("Celery", &["visibility_timeout", "-Q NAME", "eta", "countdown"]),
    ("BullMQ", &["job.retry()", "queue.resume()"]),
    ("Mastodon's queues", &["default", "push", "ingress", "mailers", "pull", "scheduler", "fasp"]),
    ("Mosquitto", &["max_queued_messages", "persistent_client_expiration 7d"]),
    ("certbot", &["fullchain.pem", "cert.pem"]),
    ("columns of what a command prints", &["available", "behind", "kept", "blocker", "lacks"]),
    ("values in pg_stat_activity", &["active", "idle", "idle in transaction", "AccessExclusiveLock"]),
    ("statements in words", &["VACUUM FULL", "autovacuum_enabled=false", "KEYS *"]),
    ("types", &["integer", "bigint", "template0"]),
    ("what Redis answers", &["OOM command not allowed", "MISCONF", "noeviction", "online", "appendonlydir"]),
    ("PostgreSQL, since 15", &["archive_library"]),
    ("Redis, while it loads", &["loading_eta_seconds"]),
];

/// Words of PostgreSQL on one major: settings, relations, columns, functions.
fn of_postgres(major: u32) -> BTreeSet<String> {
    let sql = "SELECT name FROM pg_settings UNION SELECT relname FROM pg_class UNION SELECT attname FROM pg_attribute
        UNION SELECT proname FROM pg_proc UNION SELECT rolname FROM pg_roles";
    postgres::shared(major).psql("postgres", sql).lines().map(str::to_owned).collect()
}

fn of_redis() -> BTreeSet<String> {
    let redis = Redis::start(Software::Redis, &["--replicaof", "127.0.0.1", "1"]);
    let settings = redis.cli(&["CONFIG", "GET", "*"]);
    let info = redis.cli(&["INFO", "everything"]);
    let fields = info.lines().filter_map(|line| line.split(':').next());
    settings.lines().chain(fields).map(|name| name.trim().to_owned()).collect()
}

/// Tables and keys of the configuration, as the binary tells them to whoever writes an unknown one.
fn of_configuration() -> BTreeSet<String> {
    let mut opsd = Opsd::without_server();
    opsd.repository.set("zzz", "1");
    opsd.encryption.set("zzz", "1");
    opsd.postgres.set("zzz", "1");
    opsd.job.set("zzz", "1");
    opsd.verify.set("zzz", "1");
    opsd.more =
        "[redis.a]\nzzz = 1\n[exporter]\nzzz = 1\n[monitor.a]\nhost = {}\nzzz = 1\n[zzz]\n".to_owned();
    let run = opsd.run(&["config", "check"]).expect_code(2);
    let said = format!("{}{}", run.stdout, run.stderr);
    let mut keys = BTreeSet::new();
    for known in said.split("known are: ").skip(1) {
        let names = known.split([')', '\n']).next().unwrap_or_default();
        keys.extend(names.split(", ").map(str::to_owned));
    }
    assert!(keys.len() > 50, "{keys:?} of {run}");
    keys
}

fn panels() -> BTreeSet<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards");
    let mut titles = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let panels = json["panels"].as_array().unwrap().iter();
        titles.extend(panels.map(|panel| panel["title"].as_str().unwrap().to_owned()));
    }
    titles
}

/// All files below a directory that end so.
fn texts(directory: &str, ending: &str) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&texts(path.to_str().unwrap(), ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    text
}

/// The words and panels that nobody knows.
pub fn unknown(snippets: &[Snippet]) -> Vec<String> {
    let configuration = of_configuration();
    let redis = of_redis();
    let postgres: Vec<_> = majors().into_iter().map(of_postgres).collect();
    let alerts = texts("alerts", "yml");
    let states = texts("src", "rs");
    let is_known = |word: &str| {
        let bare = word.trim_end_matches("()");
        let (first, value) = word.split_once([' ', '=', ':', '{']).unwrap_or((word, ""));
        let first = first.trim_end();
        if word.starts_with("opsd_") {
            return metrics::find(first).is_some_and(|metric| metric.series() == first);
        }
        if let Some((table, key)) = word.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let table = table.trim_end_matches(".NAME");
            return configuration.contains(table) && (key.is_empty() || configuration.contains(key.trim()));
        }
        OTHERS.iter().any(|(_, words)| words.contains(&word))
            || Reason::ALL.iter().any(|reason| reason.as_str() == word)
            || configuration.contains(word)
            || metrics::all().any(|metric| metric.labels.contains(&word))
            // A state that a monitor tells, or an alert.
            || states.contains(&format!("\"{word}\""))
            || alerts.contains(&format!("alert: {word}\n"))
            || postgres.iter().all(|known| known.contains(bare) || (!value.is_empty() && known.contains(first)))
            || redis.contains(first)
            || (word.contains('/') && Path::new(env!("CARGO_MANIFEST_DIR")).join(word).is_file())
    };
    let words = snippets.iter().filter(|snippet| snippet.kind == Kind::Word);
    let mut wrong: Vec<String> = words
        .filter(|snippet| !is_known(&snippet.text))
        .map(|snippet| format!("{snippet}\n  whose word is it?"))
        .collect();

    // Units are made as README says.
    let readme = include_str!("../../../README.md");
    for snippet in snippets.iter().filter(|snippet| snippet.kind == Kind::Shell) {
        let words = snippet.text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        for unit in words.filter(|word| word.starts_with("opsd-")) {
            if !readme.contains(&format!("`{unit}`")) && !readme.contains(&format!("/{unit}.service`")) {
                wrong.push(format!("{snippet}\n  README makes no unit {unit}"));
            }
        }
    }

    let titles = panels();
    for (page, text) in pages() {
        let text = text.replace('\n', " ").replace("  ", " ");
        for rest in text.split("the panel \"").skip(1) {
            let title = rest.split('"').next().unwrap_or_default();
            if !titles.contains(title) {
                wrong.push(format!("{page}.md: no dashboard has a panel {title:?}"));
            }
        }
    }
    wrong
}
