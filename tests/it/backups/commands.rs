//! `opsd backups` as people and scripts meet it.

use std::sync::Arc;

use opsd::set::verification::Verdict;
use opsd::set::{self, seal};
use opsd::store::fs::FsStore;

use super::{JOB, Repository, SITE, manifest};

/// A repository in a directory, its configuration, and the built `opsd`.
pub(super) struct Site {
    dir: tempfile::TempDir,
    recipient: String,
    pub(super) repository: Repository<'static>,
}

impl Site {
    pub(super) fn new(retention: &str, trusted_keys: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("repository");
        std::fs::create_dir(&path).expect("the repository's directory");
        let store = Arc::new(FsStore::open(&path).expect("a repository"));
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public();
        let identity_file = dir.path().join("identity.txt");
        let secret = age::secrecy::ExposeSecret::expose_secret(&identity.to_string()).to_owned();
        std::fs::write(&identity_file, secret).expect("an identity");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&identity_file, mode).expect("the identity's mode");
        let config = format!(
            "site = \"{SITE}\"\n[repository]\nurl = \"file://{}\"\n[encryption]\nrecipients = [\"{recipient}\"]\n\
             identity_file = {identity_file:?}\n\
             trusted_keys = {trusted_keys:?}\n[postgres.main]\nurl = \"postgres://opsd@127.0.0.1/app\"\n\
             [backup.db]\nsource = {{ postgres = \"main\" }}\n{retention}\n\
             [backup.shop]\nsource = {{ postgres = \"main\" }}\n",
            path.display()
        );
        std::fs::write(dir.path().join("opsd.toml"), config).expect("a configuration");
        Self { dir, recipient: recipient.to_string(), repository: Repository { store, keys: None } }
    }

    /// Runs `opsd backups …`: exit code, stdout, stderr.
    pub(super) fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_opsd"))
            .arg("--config")
            .arg(self.dir.path().join("opsd.toml"))
            .arg("backups")
            .args(args)
            .output()
            .expect("opsd");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
    }

    pub(super) fn json(&self, args: &[&str]) -> serde_json::Value {
        let (code, stdout, stderr) = self.run(&[args, &["--json"]].concat());
        assert_eq!(code, 0, "{stderr}");
        serde_json::from_str(&stdout).expect("one document")
    }
}

#[tokio::test]
async fn list_tells_of_every_set() {
    let site = Site::new("", &[]);
    let id = site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    site.repository.set("2026-11-02T03:00:00Z").await;
    site.repository.put("example/db/20261103T030000Z-0000/failed.json", "{}").await;
    site.repository.put("example/gone/20261104T030000Z-0000/app/x", "x").await;
    site.repository.put("example/db/20261105T030000Z-0000/manifest.json", "{\"format\": 3}").await;

    let document = site.json(&["list"]);
    let sets = document["sets"].as_array().unwrap();
    let states: Vec<_> =
        sets.iter().map(|s| (s["job"].as_str().unwrap(), s["state"].as_str().unwrap())).collect();
    assert_eq!(
        states,
        [("db", "complete"), ("db", "complete"), ("db", "failed"), ("db", "refused"), ("gone", "incomplete")]
    );
    let first = &sets[0];
    assert_eq!(first["id"], *id);
    assert_eq!(first["started"], "2026-11-01T03:00:00Z");
    assert_eq!(first["finished"], "2026-11-01T03:01:00Z");
    assert_eq!(first["databases"][0]["name"], "app");
    assert_eq!((&first["tables"], &first["rows"]), (&2.into(), &100.into()));
    assert_eq!(first["plain_bytes"], 4000);
    assert_eq!(first["proof"], "complete");
    assert_eq!(first["signature"], "unsigned");
    assert_eq!(first["verified"]["verdict"], "proven");
    assert_eq!(first["verified"]["time"], "2026-11-01T05:00:00Z");
    assert_eq!(first["verified"]["seconds"], 90.0);
    assert!(sets[1]["verified"].is_null());
    assert!(sets[2]["rows"].is_null(), "nobody knows: {}", sets[2]);
    assert!(sets[3]["error"].as_str().unwrap().contains("format 3"));

    let (code, stdout, stderr) = site.run(&["list"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("job db: 4 sets, 1 failed, 1 refused\n"), "{stdout}");
    assert!(stdout.contains("job shop: no sets yet\n"), "{stdout}");
    assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
    assert_eq!(site.json(&["list", "shop"])["sets"].as_array().unwrap().len(), 0);
    let (code, _, stderr) = site.run(&["list", "nosuch"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("\"nosuch\"") && stderr.contains("db, gone, shop"), "{stderr}");
}

#[tokio::test]
async fn show_tells_everything_about_one_set() {
    let site = Site::new("", &[]);
    let id = site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    site.repository.put(&format!("example/db/{id}/verified-x.json"), "{}").await;
    site.repository.put(&format!("example/db/{id}/notes.txt"), "mine").await;
    site.repository
        .put("example/db/20261103T030000Z-0000/failed.json", "{\"error\": \"disk \u{1b}[2J full\"}")
        .await;
    site.repository.put("example/db/20261105T030000Z-0000/manifest.json", "{\"format\": 3}").await;

    let (code, stdout, stderr) = site.run(&["show", "20261101"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for expected in [
        "complete, not signed",
        "proven in 1m 30s",
        "fetch 10s, restore 1m 20s",
        "app: 2 of 2 tables proven, 100 rows",
        "app/data-rest.pgdump.zst.age",
        "PostgreSQL 17.11",
        "verified-x.json does not count",
        "notes.txt",
    ] {
        assert!(stdout.contains(expected), "{expected:?} in\n{stdout}");
    }
    let document = site.json(&["show", &id]);
    assert_eq!(document["manifest"]["id"], *id);
    assert_eq!(document["verifications"][0]["seconds"]["restore"], 80.0);
    assert_eq!(document["foreign"][0], "notes.txt");

    let (code, stdout, _) = site.run(&["show", "20261103"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("disk \\u{1b}[2J full"), "{stdout}");
    // What is not believed is shown as far as the listing goes, and is an error.
    let (code, stdout, stderr) = site.run(&["show", "20261105"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("refused") && stderr.contains("format 3"), "{stdout}{stderr}");
    assert_eq!(site.run(&["show", "2026"]).0, 1);

    // Two jobs may have started in the same second.
    site.repository.put(&format!("example/shop/{id}/failed.json"), "{}").await;
    let (code, _, stderr) = site.run(&["show", &id]);
    assert!(code == 1 && stderr.contains("more than one set") && stderr.contains("JOB/ID"), "{stderr}");
    let document = site.json(&["show", &format!("shop/{id}")]);
    assert_eq!((&document["set"]["job"], &document["set"]["state"]), (&"shop".into(), &"failed".into()));
}

#[tokio::test]
async fn prune_prints_a_reason_for_each_set_and_only_then_removes() {
    let site = Site::new("retention = { last = 1 }", &[]);
    let old = site.repository.set("2026-11-01T03:00:00Z").await;
    let kept = site.repository.set("2026-11-02T03:00:00Z").await;
    let before = site.repository.keys().await;

    let (code, stdout, stderr) = site.run(&["prune", "--dry-run"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(
        stdout.contains("job db: 2 sets, 1 no longer kept (")
            && stdout.ends_with("nothing was removed (dry run)\n"),
        "{stdout}"
    );
    assert!(stdout.contains(&format!("remove  {old}  no rule keeps it\n")), "{stdout}");
    assert!(stdout.contains(&format!("keep    {kept}  newest complete set, one of the last\n")), "{stdout}");
    assert_eq!(site.repository.keys().await, before);

    let document = site.json(&["prune"]);
    let sets = document["jobs"][0]["sets"].as_array().unwrap();
    assert_eq!((&sets[0]["action"], &sets[0]["removed"]), (&"keep".into(), &serde_json::Value::Null));
    assert_eq!((&sets[1]["action"], &sets[1]["removed"]), (&"remove".into(), &true.into()));
    assert!(site.repository.keys().await.iter().all(|key| key.contains(&kept)));

    // For people: what was planned, and then what was done.
    site.repository.set("2026-11-03T03:00:00Z").await;
    let (code, stdout, _) = site.run(&["prune"]);
    assert!(code == 0 && stdout.starts_with("job db: 2 sets, 1 no longer kept ("), "{stdout}");
    assert!(stdout.lines().last().is_some_and(|line| line.starts_with("removed 1 set (")), "{stdout}");
    let (_, stdout, _) = site.run(&["prune"]);
    assert!(
        stdout.starts_with("job db: 1 set, all stay\n") && stdout.ends_with("\nnothing was removed\n"),
        "{stdout}"
    );

    for (job, expected) in [("shop", "no retention"), ("nosuch", "no job")] {
        let (code, _, stderr) = site.run(&["prune", job]);
        assert_eq!(code, 2);
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[tokio::test]
async fn a_frozen_prune_says_why_and_succeeds() {
    let site = Site::new("retention = { last = 1 }", &[]);
    site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.set("2026-11-02T03:00:00Z").await;
    site.repository.put("example/db/20261103T030000Z-0000/failed.json", "{}").await;
    let before = site.repository.keys().await;
    let (code, stdout, _) = site.run(&["prune"]);
    assert_eq!(code, 0);
    assert!(stdout.ends_with("nothing was removed\n"), "{stdout}");
    assert!(stdout.contains("nothing is removed") && stdout.contains("failed"), "{stdout}");
    let (code, stdout, stderr) = site.run(&["prune", "--quiet"]);
    assert!(code == 0 && stdout.is_empty() && stderr.contains("nothing is removed"), "{stdout}{stderr}");
    assert_eq!(site.repository.keys().await, before);
}

/// A backup that takes until the morning meets every prune of the night.
#[tokio::test]
async fn a_set_that_is_being_written_does_not_freeze_prune() {
    let site = Site::new("retention = { last = 1 }", &[]);
    let old = site.repository.set("2026-11-01T03:00:00Z").await;
    let newest = site.repository.set("2026-11-02T03:00:00Z").await;
    let running = "20261103T030000Z-0000";
    site.repository.put(&format!("example/db/{running}/app/x"), "x").await;
    let document = site.json(&["prune"]);
    let job = &document["jobs"][0];
    assert!(job["frozen"].is_null(), "{document}");
    let told =
        |at: usize| (job["sets"][at]["id"].as_str().unwrap(), job["sets"][at]["action"].as_str().unwrap());
    assert_eq!(
        [told(0), told(1), told(2)],
        [(running, "keep"), (newest.as_str(), "keep"), (old.as_str(), "remove")]
    );
    assert!(job["sets"][0]["reasons"][0].as_str().unwrap().contains("incomplete"), "{document}");
    // However often it meets one, what goes is what would have gone before that began.
    let (_, stdout, _) = site.run(&["prune"]);
    assert!(stdout.ends_with("nothing was removed\n"), "{stdout}");
    // It hides nothing that freezes: a run that failed before it, or a set that shrank.
    site.repository.put("example/db/20261102T040000Z-0000/failed.json", "{}").await;
    site.repository.set("2026-10-01T03:00:00Z").await;
    let document = site.json(&["prune"]);
    assert!(document["jobs"][0]["frozen"].as_str().unwrap().contains("20261102T040000Z-0000"), "{document}");
}

/// A set with one stream that is really sealed; its plaintext.
async fn sealed_set(site: &Site, id: &str) -> String {
    let plaintext = "COPY public.accounts (id) FROM stdin;\n".repeat(100_000);
    let recipients = opsd::config::keys::recipients(std::slice::from_ref(&site.recipient));
    let options = seal::SealOptions {
        recipients: Arc::new(recipients.expect("recipients")),
        level: 1,
        part_size: 64 << 10,
        segment_limit: 1 << 30,
        pool: opsd::buffer_pool::BufferPool::new(64 << 10),
    };
    let prefix = set::set_prefix(SITE, JOB, id);
    let mut manifest = manifest("2026-11-01T03:00:00Z", id);
    let key = manifest.databases[0].streams[0].objects[0].key.clone();
    site.repository.set_as(id, &manifest).await;
    let store = &*site.repository.store;
    let bytes = plaintext.clone().into_bytes();
    manifest.databases[0].streams[0] =
        seal::seal_bytes(store, &prefix, &key, "schema", bytes, &options).await.expect("sealed");
    site.repository.put(&format!("{prefix}manifest.json"), manifest.to_bytes().expect("bytes")).await;
    plaintext
}

#[tokio::test]
async fn cat_writes_the_plaintext_of_one_stream() {
    let site = Site::new("", &[]);
    let id = "20261101T030000Z-0000";
    let plaintext = sealed_set(&site, id).await;
    let (code, stdout, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout == plaintext);

    for (args, expected) in [
        (["cat", id, "app", "data-9"], "it has schema, data-rest, proof"),
        (["cat", id, "shop", "schema"], "it holds \"app\""),
        (["cat", "1999", "app", "schema"], "no set \"1999\""),
    ] {
        let (code, stdout, stderr) = site.run(&args);
        assert!(code != 0 && stdout.is_empty() && stderr.contains(expected), "{stderr}");
    }

    // Not this identity's.
    let other = Site::new("", &[]);
    let file = site.dir.path().join("identity.txt");
    std::fs::copy(other.dir.path().join("identity.txt"), &file).unwrap();
    let (code, stdout, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert!(code != 0 && stdout.is_empty() && stderr.contains("schema"), "{stderr}");
}

#[tokio::test]
async fn cat_of_a_damaged_stream_is_an_error() {
    let site = Site::new("", &[]);
    let id = "20261101T030000Z-0000";
    sealed_set(&site, id).await;
    let path = site.dir.path().join(format!("repository/{SITE}/{JOB}/{id}/app/schema.pgdump.zst.age"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (code, _, stderr) = site.run(&["cat", id, "app", "schema"]);
    assert_eq!(code, 3, "{stderr}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(site.run(&["cat", id, "app", "schema"]).0, 3);
}
