//! What a monitor of backups says of real sets: missing, fresh, stale, shrunk, proven, for other keys,
//! and not signed.

use serde_json::json;

use crate::support::alerting::watched;
use crate::support::exporter::{Scrape, collected};
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{self, Server};
use crate::support::sets::{back_up, directory, forge, manifest, next_second, result};

/// A site with one job, a database of a thousand rows, and a monitor of its backups.
fn site(options: &str) -> (&'static Server, Opsd, String) {
    let server = postgres::default_server();
    let database = server.fresh_database("watched");
    server.psql(
        &database,
        "CREATE TABLE numbers (n integer PRIMARY KEY, text text);
         INSERT INTO numbers SELECT n, repeat('x', 100) FROM generate_series(1, 1000) n",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("rpo", quoted("26h"));
    opsd.more = format!("[monitor.backups]\nbackups = {{ {options} }}\n");
    (server, opsd, database)
}

fn one(scrape: &Scrape, metric: &str) -> Option<f64> {
    scrape.one(&format!("opsd_backup_{metric}"), &["backup=\"db\""])
}

fn state(scrape: &Scrape, metric: &str) -> Option<String> {
    scrape.state(&format!("opsd_backup_{metric}"), &["backup=\"db\""])
}

/// The verdict of `opsd check`, which must say `words`.
fn check(opsd: &Opsd, code: i32, words: &str) {
    let run = opsd.run(&["check"]).expect_code(code);
    assert!(run.stdout.contains(words), "{words:?} is not in {run}");
}

#[test]
fn missing_fresh_and_proven() {
    let (server, mut opsd, database) = site("");
    let scrape = collected(&opsd);
    assert_eq!(scrape.up("backups"), Some(1.0), "{}", scrape.text);
    assert_eq!(state(&scrape, "recovery_point_state").as_deref(), Some("missing"));
    assert_eq!(state(&scrape, "rehearsal_state").as_deref(), Some("none"));
    for absent in ["recovery_point_timestamp_seconds", "last_rows", "proven_timestamp_seconds", "recipients"]
    {
        assert_eq!(one(&scrape, absent), None, "{absent}");
    }
    check(&opsd, 2, "backup_recovery_point_state is missing (backup \"db\")");

    let id = back_up(&opsd);
    let scrape = collected(&opsd);
    let manifest = manifest(&opsd, &id);
    let started: chrono::DateTime<chrono::Utc> = manifest["started"].as_str().unwrap().parse().unwrap();
    let point = one(&scrape, "recovery_point_timestamp_seconds").unwrap();
    assert!((point - started.timestamp_millis() as f64 / 1000.0).abs() < 0.002, "{point} is not {started}");
    assert_eq!(state(&scrape, "recovery_point_state").as_deref(), Some("fresh"));
    assert_eq!(state(&scrape, "signature_state").as_deref(), Some("trusted"));
    assert_eq!(one(&scrape, "rpo_seconds"), Some(26.0 * 3600.0));
    assert_eq!(one(&scrape, "last_rows"), Some(1000.0));
    assert_eq!(one(&scrape, "objects_missing"), Some(0.0));
    assert_eq!((one(&scrape, "recipients"), one(&scrape, "recipients_expected")), (Some(1.0), Some(1.0)));
    let of_database = format!("database=\"{database}\"");
    assert_eq!(scrape.one("opsd_backup_database_rows", &[&of_database]), Some(1000.0));
    // There is no history to compare with.
    assert_eq!(scrape.one("opsd_backup_database_rows_ratio", &[&of_database]), None);
    let size: u64 = std::fs::read_dir(directory(&opsd, &id))
        .unwrap()
        .chain(std::fs::read_dir(directory(&opsd, &id).join(&database)).unwrap())
        .map(|file| file.unwrap().metadata().unwrap())
        .filter(|file| file.is_file())
        .map(|file| file.len())
        .sum();
    assert_eq!(one(&scrape, "stored_bytes"), Some(size as f64));
    assert_eq!(one(&scrape, "last_stored_bytes"), Some(size as f64));
    let sets =
        |scrape: &Scrape, state: &str| scrape.one("opsd_backup_sets", &[&format!("state=\"{state}\"")]);
    assert_eq!(["complete", "incomplete"].map(|state| sets(&scrape, state)), [Some(1.0), Some(0.0)]);
    check(&opsd, 0, "OPSD OK");

    opsd.ok(&["restore", "--verify"]);
    // A run that was killed.
    let killed = directory(&opsd, "20260101T000000Z-0000");
    std::fs::create_dir(&killed).unwrap();
    std::fs::write(killed.join("globals.sql.zst.age"), "x").unwrap();
    let scrape = collected(&opsd);
    assert_eq!(state(&scrape, "rehearsal_state").as_deref(), Some("proven"));
    assert_eq!(one(&scrape, "proven_point_timestamp_seconds"), Some(point));
    assert!(one(&scrape, "proven_timestamp_seconds").unwrap() > point);
    let total = one(&scrape, "recovery_seconds").unwrap();
    let phases = scrape.of("opsd_backup_recovery_phase_seconds", &[]);
    let sum: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    assert!(phases.len() > 2 && sum > 0.0 && (sum - total).abs() < 0.001, "{phases:?} of {total}");
    assert_eq!(["complete", "incomplete"].map(|state| sets(&scrape, state)), [Some(1.0), Some(1.0)]);
    opsd.more.push_str("interval = \"1s\"\n");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("the first collection", |scrape| scrape.up("backups") == Some(1.0));
    exporter.until_quiet();
    let run = opsd.ok(&["status"]);
    assert!(run.stdout.contains("db fresh, 1 set, proven 20"), "{run}");
    server.drop_database(&database);
}

#[test]
fn stale_shrunk_and_gone() {
    let (server, mut opsd, database) = site("");
    opsd.more.push_str("interval = \"1s\"\n");
    let exporter = watched(&mut opsd, "");
    let first = back_up(&opsd);
    next_second();
    server.psql(&database, "DELETE FROM numbers WHERE n > 400");
    let second = back_up(&opsd);
    let scrape = collected(&opsd);
    assert_eq!(scrape.one("opsd_backup_database_rows_ratio", &[]), Some(0.4));
    let bytes = scrape.one("opsd_backup_database_bytes_ratio", &[]).unwrap();
    assert!((0.3..0.5).contains(&bytes), "{bytes}");
    check(&opsd, 2, "backup_database_rows_ratio (backup \"db\"");
    exporter.until_alerts(&["BackupShrunk{backup=db}"]);

    // The newest one lost an object, so the one before it is what there is.
    let object = manifest(&opsd, &second)["databases"][0]["streams"][0]["objects"][0]["key"].clone();
    std::fs::remove_file(directory(&opsd, &second).join(object.as_str().unwrap())).unwrap();
    let scrape = collected(&opsd);
    assert_eq!((one(&scrape, "objects_missing"), one(&scrape, "last_rows")), (Some(1.0), Some(1000.0)));
    check(&opsd, 2, "backup_objects_missing (backup \"db\") is 1");
    exporter.until_alerts(&["BackupObjectsMissing{backup=db}"]);

    // And that is two days old.
    std::fs::remove_dir_all(directory(&opsd, &second)).unwrap();
    let past = (chrono::Utc::now() - chrono::TimeDelta::hours(48)).to_rfc3339();
    forge(&opsd, &first, |manifest| manifest["started"] = json!(past));
    let scrape = collected(&opsd);
    assert_eq!(state(&scrape, "recovery_point_state").as_deref(), Some("overdue"));
    let age =
        chrono::Utc::now().timestamp() as f64 - one(&scrape, "recovery_point_timestamp_seconds").unwrap();
    assert!((age - 48.0 * 3600.0).abs() < 300.0, "{age}");
    check(&opsd, 2, "backup_recovery_point_state is overdue");
    exporter.until_alerts(&["BackupOverdue{backup=db}"]);
    exporter.until_over(&["BackupShrunk", "BackupObjectsMissing"]);

    // A database that was in all sets before is gone.
    next_second();
    back_up(&opsd);
    next_second();
    let last = back_up(&opsd);
    forge(&opsd, &last, |manifest| manifest["databases"][0]["name"] = json!("other"));
    let scrape = collected(&opsd);
    let present = |name: &str| scrape.one("opsd_backup_database_present", &[&format!("database=\"{name}\"")]);
    assert_eq!((present(&database), present("other")), (Some(0.0), Some(1.0)), "{}", scrape.text);
    exporter.until_alerts(&["BackupDatabaseVanished{backup=db}"]);
    server.drop_database(&database);
}

/// No server programs, no room and no identity: the set may be as good as ever, but nothing proves it any more.
#[test]
fn a_rehearsal_that_cannot_run_is_recorded_and_raises_its_alert() {
    let (server, mut opsd, database) = site("");
    opsd.more.push_str("interval = \"1s\"\n");
    let id = back_up(&opsd);
    let exporter = watched(&mut opsd, "");
    let identity = opsd.encryption.clone();
    let rehearsal = |opsd: &Opsd, code: i32, reason: &str| {
        let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(code, &[reason]);
        assert_eq!(result(&run)["verdict"], "failed", "{run}");
        let shown = opsd.ok(&["backups", "show", &id, "--json"]).json();
        let newest = shown["verifications"].as_array().unwrap().last().expect("a record").clone();
        assert_eq!(newest["verdict"], "failed", "{newest}");
        assert!(newest["reason"].as_str().unwrap().contains(reason), "{newest}");
        assert!(newest["seconds"]["unfinished"].as_f64().is_none_or(|seconds| seconds > 0.0), "{newest}");
        let list = opsd.ok(&["backups", "list"]);
        assert!(list.stdout.contains(" failed: ") && list.stdout.contains("tried "), "{list}");
        let show = opsd.ok(&["backups", "show", &id]);
        assert!(show.stdout.contains("    because: "), "{show}");
    };
    opsd.encryption.set("identity_file", quoted("/nonexistent/identity.txt"));
    rehearsal(&opsd, 1, "identity.txt");
    opsd.encryption = identity;
    next_second();
    let scratch_dir = opsd.path("taken");
    std::fs::write(&scratch_dir, "a file").unwrap();
    let verify = opsd.verify.clone();
    opsd.verify.set("scratch_dir", quoted(scratch_dir.to_str().unwrap()));
    rehearsal(&opsd, 1, "taken");
    opsd.verify = verify;
    next_second();
    let version = manifest(&opsd, &id)["server"]["version_num"].clone();
    forge(&opsd, &id, |manifest| manifest["server"]["version_num"] = 990_001.into());
    // Those before were of another manifest.
    rehearsal(&opsd, 1, "needs PostgreSQL 99 or newer");
    exporter.until_alerts(&["BackupRehearsalFailed{backup=db}"]);
    check(&opsd, 1, "backup_rehearsal_state is failed (backup \"db\")");
    let run = opsd.ok(&["status"]);
    assert!(run.stdout.contains("rehearsal_state is failed"), "{run}");

    // It does not take a proof away, and a proof ends it.
    next_second();
    forge(&opsd, &id, |manifest| manifest["server"]["version_num"] = version);
    opsd.ok(&["restore", "--verify"]);
    exporter.until_over(&["BackupRehearsalFailed{backup=db}"]);
    next_second();
    opsd.verify.set("scratch_dir", quoted(scratch_dir.to_str().unwrap()));
    opsd.run(&["restore", "--verify"]).expect_code(1);
    let scrape = collected(&opsd);
    assert_eq!(state(&scrape, "rehearsal_state").as_deref(), Some("failed"), "{}", scrape.text);
    assert!(one(&scrape, "proven_timestamp_seconds").is_some(), "{}", scrape.text);
    let list = opsd.ok(&["backups", "list"]);
    assert!(list.stdout.contains("proven ") && list.stdout.contains(" failed: "), "{list}");
    server.drop_database(&database);
}

/// What nothing could make would be an alert that never fires.
#[test]
fn rehearsals_and_sets_come_to_whatever_the_catalogue_names() {
    let (server, mut opsd, database) = site("");
    let id = back_up(&opsd);
    // Nobody's word for the rows.
    forge(&opsd, &id, |manifest| manifest["databases"][0]["proof"] = "none".into());
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(state(&collected(&opsd), "rehearsal_state").as_deref(), Some("unproven"));
    next_second();
    let object = directory(&opsd, &id).join(&database).join("schema.pgdump.zst.age");
    let mut bytes = std::fs::read(&object).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&object, bytes).unwrap();
    opsd.run(&["restore", "--verify"]).expect_code(3);
    assert_eq!(state(&collected(&opsd), "rehearsal_state").as_deref(), Some("differs"));

    let sets =
        |scrape: &Scrape, state: &str| scrape.one("opsd_backup_sets", &[&format!("state=\"{state}\"")]);
    next_second();
    // A row that COPY cannot write.
    let broken = server.fresh_database("watched_broken");
    server.psql(
        &broken,
        "CREATE TYPE colour AS ENUM ('red', 'blue'); CREATE TABLE car AS SELECT 'blue'::colour AS colour;
         DELETE FROM pg_enum WHERE enumlabel = 'blue'",
    );
    opsd.job.set("source", format!("{{ postgres = \"main\", databases = {} }}", quoted_list(&[&broken])));
    opsd.run(&["backup"]).expect_code(1);
    assert_eq!(sets(&collected(&opsd), "failed"), Some(1.0));
    let trusted = opsd.encryption.clone();
    opsd.encryption.set("trusted_keys", "[]");
    assert_eq!(state(&collected(&opsd), "signature_state").as_deref(), Some("unchecked"));
    opsd.encryption = trusted;
    opsd.encryption.set("trusted_keys", quoted_list(&[&Opsd::without_server().public_key]));
    opsd.encryption.unset("sign_key_file");
    assert_eq!(sets(&collected(&opsd), "refused"), Some(1.0));
    server.drop_database(&broken);
    server.drop_database(&database);
}

#[test]
fn other_keys_and_no_signature() {
    let (server, mut opsd, database) = site("");
    back_up(&opsd);
    next_second();
    let ours = opsd.recipient.clone();
    let theirs = age::x25519::Identity::generate().to_public().to_string();
    opsd.encryption.set("recipients", quoted_list(&[&ours, &theirs]));
    let id = back_up(&opsd);
    let scrape = collected(&opsd);
    let recipients = |scrape: &Scrape| {
        ["recipients", "recipients_changed", "recipients_expected"].map(|metric| one(scrape, metric))
    };
    assert_eq!(recipients(&scrape), [Some(2.0), Some(1.0), Some(1.0)]);
    check(&opsd, 1, "backup_recipients_changed (backup \"db\") is 1");
    opsd.encryption.set("recipients", quoted_list(&[&ours]));
    assert_eq!(recipients(&collected(&opsd)), [Some(2.0), Some(1.0), Some(0.0)]);

    // Whoever can write to the repository can remove a signature.
    std::fs::remove_file(directory(&opsd, &id).join("manifest.json.minisig")).unwrap();
    let scrape = collected(&opsd);
    assert_eq!(state(&scrape, "signature_state").as_deref(), Some("refused"));
    assert_eq!(scrape.one("opsd_backup_sets", &["state=\"refused\""]), Some(1.0));
    assert_eq!(one(&scrape, "recipients"), Some(1.0));
    check(&opsd, 2, "backup_signature_state is refused");
    // Where no key is trusted, that is told and no alarm.
    opsd.encryption.unset("trusted_keys");
    let scrape = collected(&opsd);
    assert_eq!(state(&scrape, "signature_state").as_deref(), Some("unsigned"));
    assert_eq!(one(&scrape, "recipients"), Some(2.0));
    server.drop_database(&database);
}

#[test]
fn a_host_without_jobs_watches_those_of_others() {
    let (server, opsd, database) = site("");
    back_up(&opsd);
    server.drop_database(&database);
    let mut watcher = Opsd::without_server();
    watcher.repository.set("url", quoted(&format!("file://{}", opsd.path("repository").display())));
    watcher.encryption.set("trusted_keys", quoted_list(&[&opsd.public_key]));
    watcher.more = "[monitor.backups]\nbackups = {}\n".to_owned();
    let scrape = collected(&watcher);
    assert_eq!(state(&scrape, "recovery_point_state").as_deref(), Some("unbounded"));
    assert_eq!(state(&scrape, "signature_state").as_deref(), Some("trusted"));
    watcher.more = "[monitor.backups]\nbackups = { jobs = [\"db\", \"files\"], rpo = \"1h\" }\n".to_owned();
    let scrape = collected(&watcher);
    assert_eq!(state(&scrape, "recovery_point_state").as_deref(), Some("fresh"));
    let files = scrape.state("opsd_backup_recovery_point_state", &["backup=\"files\""]);
    assert_eq!(files.as_deref(), Some("missing"));
    check(&watcher, 2, "backup \"files\"");
}

/// Seen by hand: a wrong directory was `ok`.
#[test]
fn nothing_to_watch_is_not_ok() {
    let mut watcher = Opsd::without_server();
    watcher.more = "[monitor.backups]\nbackups = {}\n".to_owned();
    let scrape = collected(&watcher);
    assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"jobs\""]), Some(0.0), "{}", scrape.text);
    check(&watcher, 3, "no job is configured here");
    let nowhere = watcher.path("nowhere");
    watcher.repository.set("url", quoted(&format!("file://{}", nowhere.display())));
    check(&watcher, 3, "nowhere");
    watcher.more.push_str("interval = \"1s\"\n");
    let exporter = watched(&mut watcher, "");
    exporter.until_alerts(&["OpsdPieceFailing{concern=jobs}"]);
    let run = watcher.ok(&["status"]);
    assert!(run.stdout.starts_with("test: unknown"), "{run}");
}

#[test]
fn an_exporter_follows_the_repository() {
    let (server, mut opsd, database) = site("");
    opsd.more.push_str("interval = \"1s\"\n");
    let exporter = watched(&mut opsd, "");
    let is = |scrape: &Scrape, wanted: &str| state(scrape, "recovery_point_state").as_deref() == Some(wanted);
    exporter.scrape_until("no backup", |scrape| is(scrape, "missing"));
    exporter.until_alerts(&["BackupMissing{backup=db}"]);
    let id = back_up(&opsd);
    exporter.scrape_until("a backup", |scrape| is(scrape, "fresh"));
    exporter.until_over(&["BackupMissing"]);
    std::fs::remove_dir_all(directory(&opsd, &id)).unwrap();
    exporter.scrape_until("no backup again", |scrape| is(scrape, "missing"));
    server.drop_database(&database);
}

#[test]
fn mistakes_are_all_told_at_once() {
    let (server, mut opsd, database) = site("jobs = [\"a/b\", \"db\", \"db\"], rpo = \"0s\", job = 1");
    opsd.run(&["config", "check"]).expect_failure(
        2,
        &[
            "jobs[0]: is no valid name",
            "listed twice",
            "rpo: must be more than nothing",
            "did you mean jobs?",
        ],
    );
    opsd.more = "[monitor.backups]\nbackups = true\n".to_owned();
    opsd.run(&["config", "check"]).expect_failure(2, &["must be a table"]);
    server.drop_database(&database);
}
