//! opsd is killed, terminated and interrupted at random moments of whatever it does: nothing that is
//! left passes for a set, runs on, holds plaintext or blocks the next run.
//!
//! Moments are spread evenly over what a run takes, so every phase is hit; the seed is printed. Sets are judged by reading the repository, not by asking opsd.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use opsd::backup::sweep;
use opsd::store::open_s3;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{SUPERUSER, Server, bin_dir, default_major, default_server, unique};
use crate::support::processes::{self, until};
use crate::support::s3::SeaweedFs;
use crate::support::sets::{self, back_up, complete, directory, forge};
use crate::support::torture::Moments;

/// The youngest orphans that `opsd backups sweep` takes.
const SWEPT: Duration = Duration::from_secs(3600);

/// A site with a database in which every row holds a marker.
struct Site {
    server: &'static Server,
    opsd: Opsd,
    database: String,
    marker: String,
}

fn site() -> Site {
    let server = default_server();
    let database = server.fresh_database("kill");
    let marker = format!("m4rker-{:032x}", rand::random::<u128>());
    fixtures::rows(server, &database, "accounts", 3_000);
    server.psql(
        &database,
        &format!(
            "CREATE TABLE marked (id integer PRIMARY KEY, note text);
             INSERT INTO marked SELECT i, '{marker} ' || i FROM generate_series(1, 500) i;
             CREATE TABLE notes AS SELECT * FROM marked; CREATE INDEX ON notes (note)"
        ),
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("32KiB")).set("part_size", quoted("5MiB"));
    let tmp = opsd.path("tmp");
    std::fs::create_dir(&tmp).unwrap();
    opsd.env("TMPDIR", tmp);
    Site { server, opsd, database, marker }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.server.drop_database(&self.database);
    }
}

/// Runs `opsd args…` and sends a signal after a while. Says whether it had not ended by itself, and how
/// long it took.
fn strike(opsd: &Opsd, args: &[&str], after: Duration, signal: Signal) -> (Run, bool, Duration) {
    let begun = Instant::now();
    let mut child = opsd.command(args).spawn().unwrap();
    let mut ended = None;
    while ended.is_none() && begun.elapsed() < after {
        std::thread::sleep(after.saturating_sub(begun.elapsed()).min(Duration::from_millis(2)));
        ended = child.try_wait().unwrap();
    }
    let took = begun.elapsed();
    if ended.is_none() {
        kill_process(Pid::from_child(&child), signal).unwrap();
    }
    (finish_child(child, format!("{args:?}, {signal:?} after {after:?}")), ended.is_none(), took)
}

/// How long an undisturbed run takes. It must succeed.
fn measure(opsd: &Opsd, args: &[&str]) -> Duration {
    let begun = Instant::now();
    opsd.ok(args);
    begun.elapsed()
}

/// Nothing that a run started is there any more: no session, no lock, no client program, no scratch
/// server. A killed run's children notice that it is gone when they write, so this may take a moment.
fn nothing_runs(site: &Site, databases: &[&str], what: &str) {
    let names: Vec<String> = databases.iter().map(|d| format!("'{d}'")).collect();
    let names = names.join(", ");
    let sql = format!(
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname IN ({names}))
              + (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                  WHERE l.locktype = 'advisory' AND d.datname IN ({names}))"
    );
    until(&format!("no session or lock is left after {what}"), || site.server.psql("postgres", &sql) == "0");
    for database in databases {
        let mark = format!("PGDATABASE={database}");
        until(&format!("no client program is left after {what}"), || {
            processes::with_environment(&mark).is_empty()
        });
    }
    let scratch = site.opsd.path("scratch");
    until(&format!("no scratch server is left after {what}"), || {
        processes::of_scratch(&scratch).is_empty()
            && scratch.read_dir().map_or(0, std::iter::Iterator::count) == 0
    });
}

/// The marker is in no file below the site: repository, scratch directory, TMPDIR.
fn no_plaintext(site: &Site, what: &str) {
    let mut directories = vec![site.opsd.path("")];
    let mut looked_at = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            looked_at += 1;
            let bytes = std::fs::read(&path).unwrap_or_default();
            let found = memchr::memmem::find(&bytes, site.marker.as_bytes()).is_some();
            assert!(!found, "{} holds plaintext after {what}", path.display());
        }
    }
    assert!(looked_at > 3, "nothing was looked at");
}

/// Every set that is listed as complete has every object that its manifest names, byte by byte.
fn complete_sets_are_whole(opsd: &Opsd, what: &str) -> Vec<String> {
    let ids = complete(opsd);
    for id in &ids {
        let set = directory(opsd, id);
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(set.join("manifest.json")).unwrap()).unwrap();
        let objects = objects(&manifest);
        assert!(objects.len() >= 4, "{manifest}");
        for (key, hash) in objects {
            let bytes = std::fs::read(set.join(&key));
            let bytes = bytes.unwrap_or_else(|e| panic!("{id}/{key} after {what}: {e}"));
            let found: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(found, hash, "{id}/{key} after {what}");
        }
    }
    ids
}

/// Every key and hash that a manifest names, wherever it stands.
fn objects(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::Object(map) => {
            let text = |name: &str| map.get(name).and_then(Value::as_str).map(str::to_owned);
            let own = text("key").zip(text("sha256"));
            own.into_iter().chain(map.values().flat_map(objects)).collect()
        }
        Value::Array(list) => list.iter().flat_map(objects).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_backup_killed_at_any_moment_leaves_nothing_that_passes_for_one() {
    let site = site();
    back_up(&site.opsd);
    let whole = measure(&site.opsd, &["backup"]);
    let mut moments = Moments::new("killed backup", whole, 9, 70);
    let mut sets = complete(&site.opsd).len();
    while let Some(after) = moments.next() {
        let (run, was_running, took) = strike(&site.opsd, &["backup"], after, Signal::KILL);
        let what = run.to_string();
        if !was_running {
            assert_eq!(run.code, Some(0), "{what}");
        }
        moments.tell(was_running, took);
        let listed = complete_sets_are_whole(&site.opsd, &what).len();
        assert!(listed - sets <= 1, "{what}");
        sets = listed;
        nothing_runs(&site, &[&site.database], &what);
        no_plaintext(&site, &what);
    }
    // At once after a kill, without waiting for anything to end.
    let (killed, ..) = strike(&site.opsd, &["backup"], whole / 2, Signal::KILL);
    let sets = complete(&site.opsd).len();
    back_up(&site.opsd);
    assert_eq!(complete_sets_are_whole(&site.opsd, &killed.command).len(), sets + 1);
    let run = site.opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
    // What the killed ones left goes by itself, and nothing else does. They may all have been too early to
    // leave anything: one more that ended right before its manifest.
    let (whole_set, orphan) = (directory(&site.opsd, &complete(&site.opsd)[0]), "20260101T000000Z-dead");
    std::fs::create_dir(directory(&site.opsd, orphan)).unwrap();
    for name in ["RESTORE.md", "globals.sql.zst.age"] {
        std::fs::copy(whole_set.join(name), directory(&site.opsd, orphan).join(name)).unwrap();
    }
    let files = || site.opsd.repository_files().into_iter().collect::<BTreeSet<String>>();
    let before = files();
    let sets = complete(&site.opsd);
    let stays = |file: &String| {
        sets.iter().any(|id| file.starts_with(&format!("test/db/{id}/"))) || file == ".opsd-tmp/replace.lock"
    };
    for file in &before {
        let file =
            std::fs::File::options().append(true).open(site.opsd.path("repository").join(file)).unwrap();
        file.set_modified(SystemTime::now() - 2 * SWEPT).unwrap();
    }
    site.opsd.ok(&["backups", "sweep", "--older-than", "1h"]);
    let expected: BTreeSet<String> = before.iter().filter(|file| stays(file)).cloned().collect();
    assert!(expected.len() < before.len(), "nothing was left behind: {before:?}");
    assert_eq!(files(), expected);
    complete_sets_are_whole(&site.opsd, "sweep");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_to_s3_killed_at_any_moment_leaves_nothing_that_passes_for_one() {
    let weed = SeaweedFs::start().await;
    let mut site = site();
    let keys = weed.admin.clone();
    site.opsd.use_s3(&format!("s3://{}/p", weed.bucket), &weed.endpoint, &keys.access_key, &keys.secret_key);
    let whole = measure(&site.opsd, &["backup"]);
    let mut moments = Moments::new("killed backup to S3", whole, 4, 30);
    let mut known: BTreeSet<String> = complete(&site.opsd).into_iter().collect();
    while let Some(after) = moments.next() {
        let (run, was_running, took) = strike(&site.opsd, &["backup"], after, Signal::KILL);
        moments.tell(was_running, took);
        let what = run.to_string();
        nothing_runs(&site, &[&site.database], &what);
        // A set counts only with every object that its manifest names.
        for id in complete(&site.opsd).into_iter().filter(|id| known.insert(id.clone())) {
            let shown = site.opsd.ok(&["backups", "show", &id, "--json"]).json();
            let missing =
                shown["set"]["missing"].as_array().or(shown["missing"].as_array()).map_or(0, Vec::len);
            assert_eq!(missing, 0, "{what}: {shown}");
        }
    }
    let id = back_up(&site.opsd);
    let sets_before = complete(&site.opsd);
    // Nobody can make a bucket's objects look older: the clock that is looked at goes on instead.
    let store = open_s3(&weed.repository("p"), &keys.access()).await.unwrap();
    let orphans = async || {
        let mut found = sweep::find(&store, "test").await.unwrap();
        found.now += 2 * SWEPT;
        let mut items = sweep::plan(&found, "test", &[], SWEPT);
        items.retain(sweep::Item::goes);
        items
    };
    for item in orphans().await {
        sweep::remove(&store, &item).await.unwrap();
    }
    assert_eq!(complete(&site.opsd), sets_before);
    assert_eq!(orphans().await.len(), 0);
    let run = site.opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!((&sets::result(&run)["verdict"], &sets::result(&run)["id"]), (&"proven".into(), &id.into()));
}

#[test]
fn a_rehearsal_killed_at_any_moment_leaves_no_server_and_no_rows() {
    let site = site();
    let id = back_up(&site.opsd);
    let whole = measure(&site.opsd, &["restore", "--verify"]);
    let mut moments = Moments::new("killed rehearsal", whole, 8, 50);
    let mut recorded = records(&site.opsd, &id);
    while let Some(after) = moments.next() {
        let (run, was_running, took) = strike(&site.opsd, &["restore", "--verify"], after, Signal::KILL);
        let what = run.to_string();
        moments.tell(was_running, took);
        if !was_running {
            assert_eq!(run.code, Some(0), "{what}");
        }
        nothing_runs(&site, &[&site.database], &what);
        no_plaintext(&site, &what);
        // A record is there whole, or not at all.
        let now = records(&site.opsd, &id);
        assert!(now - recorded <= 1, "{what}");
        recorded = now;
        complete_sets_are_whole(&site.opsd, &what);
    }
    let run = site.opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
}

/// Records of rehearsals in a set's folder, each of which must be readable.
fn records(opsd: &Opsd, id: &str) -> usize {
    let names = std::fs::read_dir(directory(opsd, id)).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let records: Vec<String> =
        names.filter(|name| name.starts_with("verified-") && name.ends_with(".json")).collect();
    for name in &records {
        let bytes = std::fs::read(directory(opsd, id).join(name)).unwrap();
        let record: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(record["verdict"], "proven");
    }
    records.len()
}

#[test]
fn a_restore_killed_at_any_moment_leaves_the_old_database_or_the_new_one() {
    let site = site();
    let server = site.server;
    back_up(&site.opsd);
    let target = unique("target");
    let to = server.socket_url(SUPERUSER, &target);
    let args = ["restore", "db", "--to", &to, "--replace", "--yes", "--create"];
    let make_old = || {
        server.drop_database(&target);
        server.create_database(&target);
        server.psql(&target, "CREATE TABLE old (id integer); INSERT INTO old VALUES (1), (2)");
    };
    make_old();
    let whole = measure(&site.opsd, &args);
    let mut moments = Moments::new("killed restore", whole, 6, 45);
    while let Some(after) = moments.next() {
        make_old();
        let (run, was_running, took) = strike(&site.opsd, &args, after, Signal::KILL);
        moments.tell(was_running, took);
        let what = run.to_string();
        nothing_runs(&site, &[&target], &what);
        // The server may be in the middle of the swap, which is one transaction.
        let swapping = format!(
            "SELECT count(*) FROM pg_stat_activity
              WHERE pid <> pg_backend_pid() AND state <> 'idle' AND strpos(query, '{target}') > 0"
        );
        until("the server is done with the swap", || server.psql("postgres", &swapping) == "0");
        let what_is_there = server.psql(
            &target,
            "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
        );
        match what_is_there.as_str() {
            "old" => assert_eq!(server.psql(&target, "SELECT count(*) FROM old"), "2", "{what}"),
            "accounts marked notes" => {
                assert_eq!(server.psql(&target, "SELECT count(*) FROM notes"), "500", "{what}");
            }
            other => panic!("{other:?} is in the target after {what}"),
        }
        for name in server.databases().iter().filter(|name| name.starts_with(&target)) {
            server.drop_database(name);
        }
    }
    make_old();
    site.opsd.ok(&args);
    assert_eq!(server.psql(&target, "SELECT count(*) FROM notes"), "500");
    for name in server.databases().iter().filter(|name| name.starts_with(&target)) {
        server.drop_database(name);
    }
}

/// Sets that only retention looks at: copies of one, each a day older.
fn old_sets(opsd: &Opsd, id: &str, count: u32) {
    let newest = chrono::Utc::now();
    for day in 1..=count {
        let started = newest - chrono::Duration::days(day.into());
        let copy = format!("{}-{day:04x}", started.format("%Y%m%dT%H%M%SZ"));
        copy_directory(&directory(opsd, id), &directory(opsd, &copy));
        forge(opsd, &copy, |manifest| {
            manifest["id"] = copy.clone().into();
            manifest["started"] = started.to_rfc3339().into();
            manifest["previous"] = Value::Null;
        });
    }
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_directory(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn a_prune_killed_at_any_moment_leaves_whole_sets_or_none() {
    let mut site = site();
    site.opsd.job.set("retention", "{ last = 1 }");
    let id = back_up(&site.opsd);
    let many = 12;
    old_sets(&site.opsd, &id, many);
    assert_eq!(complete(&site.opsd).len(), many as usize + 1);
    let whole = measure(&site.opsd, &["backups", "prune"]);
    assert_eq!(complete(&site.opsd), [id.as_str()]);
    let mut moments = Moments::new("killed prune", whole, 6, 35);
    while let Some(after) = moments.next() {
        old_sets(&site.opsd, &id, many);
        let (run, was_running, took) = strike(&site.opsd, &["backups", "prune"], after, Signal::KILL);
        moments.tell(was_running, took);
        let what = run.to_string();
        let left = complete_sets_are_whole(&site.opsd, &what);
        assert!(left.contains(&id), "{what}");
        site.opsd.ok(&["backups", "prune"]);
        assert_eq!(complete(&site.opsd), [id.as_str()], "{what}");
    }
    let run = site.opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
}

#[test]
fn a_signal_at_any_moment_leaves_at_most_the_word_that_it_failed() {
    let site = site();
    let id = back_up(&site.opsd);
    let works: [&[&str]; 2] = [&["backup"], &["restore", "--verify"]];
    for args in works {
        let whole = measure(&site.opsd, args);
        let mut moments = Moments::new("signals", whole, 4, 30);
        let mut signals = [(Signal::TERM, 143), (Signal::INT, 130)].into_iter().cycle();
        while let Some(after) = moments.next() {
            let before: BTreeSet<String> = site.opsd.repository_files().into_iter().collect();
            let (signal, code) = signals.next().unwrap();
            let (run, was_running, took) = strike(&site.opsd, args, after, signal);
            moments.tell(was_running, took);
            let what = run.to_string();
            let is_done = run.code == Some(0);
            // Before it listens for signals, a signal ends it as it ends any process.
            assert!(is_done || run.code.is_none_or(|c| c == code), "{what}");
            assert!(is_done || (was_running && run.stdout.is_empty()), "{what}");
            let scratch = site.opsd.path("scratch");
            assert_eq!(scratch.read_dir().map_or(0, std::iter::Iterator::count), 0, "{what}");
            assert_eq!(processes::of_scratch(&scratch), [], "{what}");
            let after: BTreeSet<String> = site.opsd.repository_files().into_iter().collect();
            // What a rehearsal has found out it may still write down, whole.
            let is_record = |name: &str| {
                name.contains("/verified-") && after.contains(&format!("{name}.minisig"))
                    || name.strip_suffix(".minisig").is_some_and(|of| after.contains(of))
            };
            let word = |name: &&String| name.ends_with("/failed.json") || is_record(name);
            let mut left = after.difference(&before).filter(|name| !word(name));
            assert!(is_done || left.next().is_none(), "{what}: {:?}", after.difference(&before));
            nothing_runs(&site, &[&site.database], &what);
        }
    }
    let sets = complete_sets_are_whole(&site.opsd, "signals");
    assert!(sets.contains(&id));
}

#[test]
fn a_second_interrupt_is_immediate() {
    let Site { opsd, server, database, .. } = &mut site();
    // A pg_dump that ignores the polite signal: opsd waits for its end, but not if asked twice.
    let fake = opsd.path("stubborn");
    std::fs::create_dir(&fake).unwrap();
    let real = bin_dir(default_major());
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) exec {0}/pg_dump --version;; esac\n\
         trap '' TERM\necho $$ >> {1}/pids\nwhile :; do sleep 1; done\n",
        real.display(),
        fake.display()
    );
    std::fs::write(fake.join("pg_dump"), script).unwrap();
    std::fs::set_permissions(fake.join("pg_dump"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    opsd.postgres.set("bin_dir", quoted(fake.to_str().unwrap()));
    let mut child = opsd.command(&["backup"]).spawn().unwrap();
    until("pg_dump runs", || fake.join("pids").exists());
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    until("the first is taken", || opsd.repository_files().iter().any(|f| f.ends_with("/failed.json")));
    assert!(child.try_wait().unwrap().is_none(), "it waits for pg_dump");
    kill_process(pid, Signal::INT).unwrap();
    finish_child(child, "backup".into()).expect_code(130);
    let pids = std::fs::read_to_string(fake.join("pids")).unwrap();
    let groups: Vec<Pid> = pids.lines().map(|l| Pid::from_raw(l.parse().unwrap()).unwrap()).collect();
    let lives = |pid: &Pid| rustix::process::test_kill_process(*pid).is_ok();
    assert!(groups.iter().any(lives), "it did not wait");
    for group in groups {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    server.drop_database(database);
}
