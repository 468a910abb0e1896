//! What happened to a repository behind opsd's back, and what `backups scrub` finds of it.

use std::path::{Path, PathBuf};

use opsd::progress::silent;
use opsd::set::catalog;
use opsd::set::scrub::{self, Report};
use opsd::store::fs::FsStore;
use serde_json::Value;

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, quoted, quoted_list};
use crate::support::postgres::{Server, bin_dir, default_major, default_server};
use crate::support::sets::{self, back_up, directory};
use crate::support::torture::rounds;

/// A site with a small database, two jobs that back it up, and a set that was rehearsed.
fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("integrity");
    fixtures::rows(server, &database, "accounts", 400);
    server.psql(&database, "CREATE TABLE notes (id int); INSERT INTO notes VALUES (1)");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("64KiB"));
    opsd.more = format!(
        "\n[backup.other]\nsource = {{ postgres = \"main\", databases = {} }}\n",
        quoted_list(&[&database])
    );
    let id = back_up(&opsd);
    (server, opsd, id)
}

fn results(run: &Run) -> Vec<Value> {
    run.json()["results"].as_array().unwrap().clone()
}

/// Scrubs the job `db`, which must differ in the set `id` and say `what`.
fn differs(opsd: &Opsd, id: &str, what: &str) {
    let run = opsd.run(&["backups", "scrub", "db", "--json"]).expect_failure(3, &[what, id]);
    for result in results(&run) {
        let differences = result["differences"].as_array().unwrap();
        assert_eq!(differences.is_empty(), result["id"] != id, "{run}");
    }
}

fn is_whole(opsd: &Opsd) -> Vec<Value> {
    let run = opsd.ok(&["backups", "scrub", "--json"]);
    assert_eq!(run.stderr, "", "{run}");
    let results = results(&run);
    assert!(results.iter().all(|r| r["differences"].as_array().unwrap().is_empty()), "{run}");
    results
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(std::fs::copy(entry.path(), target))
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[tokio::test]
async fn any_changed_byte_of_any_object_is_found() {
    let (_, opsd, id) = site();
    opsd.ok(&["restore", "db", "--verify"]);
    let set = directory(&opsd, &id);
    let objects = files(&set);
    // Two documents with their signatures, RESTORE.md, roles, and the database's five.
    assert!(objects.len() >= 10, "{objects:?}");
    let store = FsStore::open(&opsd.path("repository")).unwrap();
    let trusted = opsd::config::Trusted::with_keys(vec![opsd.public_key.clone()]);
    let scrubbed = async || -> opsd::error::Result<Report> {
        let entries = catalog::sets(&store, "test", "db").await?;
        scrub::scrub(&store, &trusted, &entries[0], &entries, &silent()).await
    };
    let whole = scrubbed().await.unwrap();
    assert!(whole.differences.is_empty() && whole.notes.is_empty(), "{whole:?}");
    assert_eq!(whole.objects as usize, objects.len());
    assert_eq!(whole.bytes, objects.iter().map(|f| f.metadata().unwrap().len()).sum::<u64>());

    let change = async |file: &Path, at: usize, by: u8| {
        let good = std::fs::read(file).unwrap();
        let mut bad = good.clone();
        bad[at] ^= by;
        std::fs::write(file, &bad).unwrap();
        let found = scrubbed().await;
        std::fs::write(file, &good).unwrap();
        let report = found.unwrap_or_else(|e| panic!("{}, byte {at} ^ {by}: {e}", file.display()));
        let name = file.file_name().unwrap().to_str().unwrap().trim_end_matches(".minisig");
        assert!(
            report.differences.iter().any(|d| d.contains(name)),
            "{}, byte {at} ^ {by}: {report:?}",
            file.display()
        );
    };
    // The ends of every object, then anywhere.
    for file in &objects {
        let size = file.metadata().unwrap().len() as usize;
        for at in [0, size - 1] {
            change(file, at, 1).await;
        }
    }
    for _ in 0..rounds(60, 2_000) {
        let file = &objects[rand::random_range(0..objects.len())];
        let size = file.metadata().unwrap().len() as usize;
        change(file, rand::random_range(0..size), rand::random_range(1..=255)).await;
    }
    assert!(scrubbed().await.unwrap().differences.is_empty());
}

#[test]
fn what_is_deleted_cut_or_grown_is_named() {
    let (_, opsd, id) = site();
    opsd.ok(&["restore", "db", "--verify"]);
    let set = directory(&opsd, &id);
    let whole = is_whole(&opsd);
    assert_eq!(whole.len(), 1);
    assert_eq!((&whole[0]["job"], &whole[0]["id"]), (&"db".into(), &id.clone().into()));
    for file in files(&set) {
        let name = file.strip_prefix(&set).unwrap().to_str().unwrap().to_owned();
        let good = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        match name.as_str() {
            // Without it there is no set, and nobody says that there is one.
            "manifest.json" => {
                opsd.run(&["backups", "scrub", "--backup", &id]).expect_failure(1, &["is incomplete"]);
            }
            // Nothing of the set is known to differ then, and nobody vouches for it.
            "manifest.json.minisig" => {
                let scrub = ["backups", "scrub", "--backup", &id];
                let run = opsd.run(&scrub).expect_failure(3, &["manifest.json is not signed"]);
                assert!(run.stdout.contains("  refused\n"), "{run}");
            }
            // An unsigned record does not count; one that is gone was never there.
            record if record.starts_with("verified-") && !record.ends_with(".minisig") => {
                differs(&opsd, &id, "a signature of something that is missing");
            }
            signature if signature.ends_with(".minisig") => {
                differs(&opsd, &id, signature.trim_end_matches(".minisig"));
            }
            object => differs(&opsd, &id, object),
        }
        let signed = name.trim_end_matches(".minisig");
        for changed in [&good[..good.len() / 2], &[], &[&good[..], b"x"].concat()] {
            std::fs::write(&file, changed).unwrap();
            differs(&opsd, &id, signed);
        }
        std::fs::write(&file, &good).unwrap();
    }
    is_whole(&opsd);
}

#[test]
fn what_is_swapped_rolled_back_or_replayed_is_found() {
    let (server, opsd, older) = site();
    let database =
        server.databases().into_iter().find(|d| directory(&opsd, &older).join(d).exists()).unwrap();
    sets::next_second();
    server.psql(&database, "INSERT INTO notes VALUES (2)");
    let newer = back_up(&opsd);
    let other = opsd.ok(&["backup", "other", "--json"]).json()["sets"][0]["id"].as_str().unwrap().to_owned();
    let jobs = opsd.path("repository/test");
    assert_eq!(is_whole(&opsd).len(), 3);
    let (old_set, new_set) = (directory(&opsd, &older), directory(&opsd, &newer));
    let with = |files: &[(&Path, &Path)], check: &dyn Fn()| {
        let kept: Vec<_> = files.iter().map(|(_, to)| std::fs::read(to).unwrap()).collect();
        for (from, to) in files {
            std::fs::copy(from, to).unwrap();
        }
        check();
        for ((_, to), good) in files.iter().zip(kept) {
            std::fs::write(to, good).unwrap();
        }
    };
    let verify_differs = |job: &str, id: &str| {
        opsd.run(&["restore", job, "--verify", "--backup", id]).expect_code(3);
    };
    // One set's object under another's name: each stream decrypts with the same key.
    for name in ["schema", "data-1", "data-rest"] {
        let key = format!("{database}/{name}.pgdump.zst.age");
        with(&[(&old_set.join(&key), &new_set.join(&key))], &|| differs(&opsd, &newer, &key));
    }
    // Within one set: two streams change places.
    let (one, two) =
        (format!("{database}/data-1.pgdump.zst.age"), format!("{database}/data-rest.pgdump.zst.age"));
    with(&[(&new_set.join(&one), &new_set.join(&two))], &|| {
        differs(&opsd, &newer, &two);
        verify_differs("db", &newer);
    });
    // An old manifest with its good signature over the new set, alone and with all of its objects.
    let manifest = |set: &Path| (set.join("manifest.json"), set.join("manifest.json.minisig"));
    let ((old_m, old_s), (new_m, new_s)) = (manifest(&old_set), manifest(&new_set));
    with(&[(&old_m, &new_m), (&old_s, &new_s)], &|| {
        differs(&opsd, &newer, "signature was made for");
        verify_differs("db", &newer);
    });
    with(&[(&old_m, &new_m)], &|| differs(&opsd, &newer, "does not fit the content"));
    // An older set once more under a new id, so that it passes for the newest.
    let replayed = "20991231T235959Z-ffff";
    copy(&old_set, &jobs.join("db").join(replayed));
    differs(&opsd, replayed, &older);
    verify_differs("db", replayed);
    std::fs::remove_dir_all(jobs.join("db").join(replayed)).unwrap();
    // Another job's set.
    copy(&jobs.join("other").join(&other), &jobs.join("db").join(&other));
    differs(&opsd, &other, "test/other/");
    std::fs::remove_dir_all(jobs.join("db").join(&other)).unwrap();
    // A rehearsal's record of another set.
    opsd.ok(&["restore", "db", "--verify", "--backup", &older]);
    let records: Vec<PathBuf> =
        files(&old_set).into_iter().filter(|f| f.to_str().unwrap().contains("/verified-")).collect();
    assert_eq!(records.len(), 2);
    for record in &records {
        std::fs::copy(record, new_set.join(record.file_name().unwrap())).unwrap();
    }
    differs(&opsd, &newer, "does not count");
    for record in &records {
        std::fs::remove_file(new_set.join(record.file_name().unwrap())).unwrap();
    }
    is_whole(&opsd);
}

#[test]
fn one_set_is_chosen_and_a_gap_is_told() {
    let (_, opsd, first) = site();
    sets::next_second();
    let second = back_up(&opsd);
    let ids = |args: &[&str]| -> Vec<String> {
        let run = opsd.ok(&[&["backups", "scrub", "--json"], args].concat());
        results(&run).iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&[]), [first.clone(), second.clone()]);
    assert_eq!(ids(&["db", "--backup", "latest"]), [second.as_str()]);
    assert_eq!(ids(&["--backup", &first]), [first.as_str()]);
    assert_eq!(ids(&["--backup", &format!("db/{first}")]), [first.as_str()]);
    assert_eq!(ids(&["other"]), [""; 0]);
    opsd.run(&["backups", "scrub", "--backup", "1999"]).expect_failure(1, &["no set \"1999\""]);
    opsd.run(&["backups", "scrub", "nosuch"]).expect_failure(2, &["no job \"nosuch\""]);
    // An older set that was refused does not hide in the crowd.
    let damaged = directory(&opsd, &first).join("manifest.json");
    std::fs::write(&damaged, "{}").unwrap();
    opsd.run(&["backups", "scrub"]).expect_failure(3, &[&first, "hint: "]);
    // No identity and no signing key are needed; text for people fits the terminal.
    std::fs::remove_dir_all(directory(&opsd, &first)).unwrap();
    std::fs::remove_file(opsd.path("identity.txt")).unwrap();
    std::fs::remove_file(opsd.path("sign.key")).unwrap();
    let run = opsd.ok(&["backups", "scrub"]);
    assert!(
        run.stdout.contains("as written, ") && run.stdout.contains(&format!("{first}, is gone")),
        "{run}"
    );
    assert!(run.stdout.lines().all(|line| line.chars().count() <= 80), "{run}");
    let quiet = opsd.ok(&["--quiet", "backups", "scrub"]);
    assert!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{quiet}");
}

/// A table that cannot be read once the backup runs: the run fails after it began, and says so.
#[test]
fn a_run_that_fails_freezes_pruning_until_one_succeeds() {
    let (_, mut opsd, first) = site();
    opsd.job.set("retention", "{ last = 1 }");
    sets::next_second();
    let second = back_up(&opsd);
    let good = bin_dir(default_major()).to_str().unwrap().to_owned();
    let fake = failing_programs(&opsd, &good);
    sets::next_second();
    opsd.postgres.set("bin_dir", quoted(fake.to_str().unwrap()));
    opsd.run(&["backup", "db"]).expect_failure(1, &["the disk is on fire"]);
    opsd.postgres.set("bin_dir", quoted(&good));
    let failed = sets::listed(&opsd).into_iter().find(|s| s.state == "failed").expect("failed.json");
    let run = opsd.ok(&["backups", "prune"]);
    assert!(run.stdout.contains(&format!("{}, does not count: failed", failed.id)), "{run}");
    assert_eq!(sets::complete(&opsd), [first.clone(), second]);
    // However old: sweeping keeps what freezes.
    let word = sets::directory(&opsd, &failed.id).join("failed.json");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    std::fs::File::options().append(true).open(word).unwrap().set_modified(long_ago).unwrap();
    opsd.ok(&["backups", "sweep", "--older-than", "1h"]);
    assert!(opsd.ok(&["backups", "prune"]).stdout.contains("nothing is removed"));
    sets::next_second();
    let newest = back_up(&opsd);
    let run = opsd.ok(&["backups", "prune"]);
    assert!(run.stdout.contains("removed 2 sets"), "{run}");
    assert_eq!(sets::complete(&opsd), [newest]);
    // Now it is no longer the newest.
    opsd.ok(&["backups", "sweep", "--older-than", "1h"]);
    assert!(!opsd.repository_files().iter().any(|f| f.contains(&failed.id)));
}

/// PostgreSQL's programs, of which pg_dump fails after it has written everything.
fn failing_programs(opsd: &Opsd, real: &str) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let fake = opsd.path("bin");
    std::fs::create_dir(&fake).unwrap();
    symlink(Path::new(real).join("pg_dumpall"), fake.join("pg_dumpall")).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*|*section=pre-data*) exec {real}/pg_dump \"$@\";; esac\n\
         {real}/pg_dump \"$@\"; echo 'pg_dump: error: the disk is on fire' >&2; exit 1\n",
    );
    std::fs::write(fake.join("pg_dump"), script).unwrap();
    std::fs::set_permissions(fake.join("pg_dump"), PermissionsExt::from_mode(0o755)).unwrap();
    fake
}
