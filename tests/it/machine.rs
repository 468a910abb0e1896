//! The machine fails: a full disk, no file descriptors, a clock that jumps, no home. A clear error, or
//! a set; never something in between.

use std::process::Stdio;

use rustix::process::geteuid;

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, behind, finish, quoted};
use crate::support::postgres::{Server, default_server};
use crate::support::sets::{self, back_up, complete};
use crate::support::torture::rounds;

fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("machine");
    fixtures::rows(server, &database, "accounts", 1_000);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("64KiB"));
    (server, opsd, database)
}

/// It ended with a code of its own, and not by panicking.
fn ended_well(run: &Run) {
    assert!(run.code.is_some_and(|code| code != 101), "{run}");
    assert!(!run.stderr.contains("panicked"), "{run}");
}

/// The disk of the repository is a little larger each time, so that every write is once the one for
/// which there is no room.
#[test]
fn a_full_disk_at_any_write_is_an_error_and_leaves_no_set() {
    let (server, mut opsd, database) = site();
    let disk = opsd.path("disk");
    std::fs::create_dir(&disk).unwrap();
    // How large a set is, on a disk that has room.
    back_up(&opsd);
    let size: u64 =
        sets::contents(&opsd).values().map(|bytes| bytes.len() as u64 / 4096 + 1).sum::<u64>() * 4;
    opsd.repository.set("url", quoted(&format!("file://{}/repository", disk.display())));
    let namespace: &[&str] = if geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-root-user", "--mount"]
    };
    let (mut full, mut made) = (0, 0);
    let steps = rounds(8, 60) as u64;
    for step in 1..=steps {
        // From next to nothing to twice of what is needed: temporary files and folders count too.
        let kib = (size * 2 * step / steps).max(8);
        let script = format!(
            "mount -t tmpfs -o size={kib}k tmpfs {0} && \"$@\"; code=$?; cd {0}; find . -type f; exit $code",
            disk.display()
        );
        let wrapper: Vec<&str> = namespace.iter().copied().chain(["sh", "-c", &script, "sh"]).collect();
        let run = finish(behind(&wrapper, &opsd.command(&["backup"])));
        ended_well(&run);
        let has_set = run.stdout.contains("/manifest.json\n");
        if run.code == Some(0) {
            made += 1;
            assert!(has_set, "{kib} KiB: {run}");
        } else {
            full += 1;
            assert_eq!(run.code, Some(1), "{kib} KiB: {run}");
            assert!(run.stderr.contains("No space left on device"), "{kib} KiB: {run}");
            assert!(!has_set, "{kib} KiB: {run}");
            // What there is room for again is used for nothing but to say so. Once the manifest was on its
            // way, though, nothing is touched: `opsd backups sweep` takes it.
            let left: Vec<&str> = run.stdout.lines().filter(|l| !l.ends_with("/failed.json")).collect();
            let was_publishing = left.iter().any(|l| l.ends_with("/manifest.json.minisig"));
            assert!(left.is_empty() || was_publishing, "{kib} KiB: {left:?} in {run}");
        }
    }
    assert!(full > 1 && made > 0, "{full} of {steps} were full");
    server.drop_database(&database);
}

#[test]
fn too_few_file_descriptors_are_an_error_and_leave_no_set() {
    let (server, opsd, database) = site();
    back_up(&opsd);
    let mut refused = 0;
    for limit in (10..).step_by(rounds(12, 1)).take_while(|limit| *limit < 64) {
        let before = complete(&opsd).len();
        let nofile = format!("--nofile={limit}");
        for args in [&["backup"][..], &["restore", "--verify"]] {
            let run = finish(behind(&["prlimit", &nofile], &opsd.command(args)));
            ended_well(&run);
            if run.code != Some(0) {
                refused += 1;
                // Ours, or those of the server that the rehearsal starts.
                let said = ["Too many open files", "file descriptors"];
                assert!(said.iter().any(|text| run.stderr.contains(text)), "{limit}: {run}");
            }
            let after = complete(&opsd).len();
            assert_eq!(after > before, run.code == Some(0) || after > before, "{limit}: {run}");
        }
        assert!(
            opsd.path("scratch").read_dir().is_ok_and(|mut d| d.next().is_none())
                || !opsd.path("scratch").exists()
        );
    }
    assert!(refused > 0, "every limit was enough");
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
    server.drop_database(&database);
}

/// What `args` does when the clock is off by so much.
fn at(opsd: &Opsd, offset: &str, args: &[&str]) -> Run {
    let mut command = behind(&["faketime", "-f", offset], &opsd.command(args));
    // Only the wall clock jumps; files tell the time of the disk's host.
    command.env("DONT_FAKE_MONOTONIC", "1").env("NO_FAKE_STAT", "1");
    let run = finish(command);
    ended_well(&run);
    run
}

#[test]
fn a_clock_that_jumps_makes_whole_sets_and_prunes_nothing_wrong() {
    let (server, mut opsd, database) = site();
    opsd.job.set("retention", "{ last = 1 }");
    let real = back_up(&opsd);
    let made = |run: &Run| run.json()["sets"][0]["id"].as_str().unwrap().to_owned();
    let ahead = made(&at(&opsd, "+1d", &["backup", "--json"]).expect_code(0));
    let behind = made(&at(&opsd, "-1d", &["backup", "--json"]).expect_code(0));
    assert!(behind < real && real < ahead, "{behind} {real} {ahead}");
    assert_eq!(complete(&opsd).len(), 3);
    // The set of tomorrow is not the newest before the next day; nor does a clock that is behind make any
    // other come from the future, because the store's is asked, too.
    for (offset, latest) in [("-2d", &real), ("+0d", &real), ("+2d", &ahead)] {
        for args in [&["backups", "list"][..], &["backups", "prune", "--dry-run"]] {
            at(&opsd, offset, args).expect_code(0);
        }
        let run = at(&opsd, offset, &["restore", "--verify", "--json"]).expect_code(0);
        let result = sets::result(&run);
        assert_eq!(
            (&result["verdict"], result["id"].as_str()),
            (&"proven".into(), Some(latest.as_str())),
            "{run}"
        );
        assert!(result["total_seconds"].as_f64().is_some_and(|s| (0.0..300.0).contains(&s)), "{run}");
    }
    // By a clock that is right, the set of tomorrow stays and takes nobody's place.
    opsd.ok(&["backups", "prune"]);
    let left = complete(&opsd);
    assert!(left.contains(&real) && left.contains(&ahead), "{left:?}");
    // A backup by the right clock is made although a newer one seems to be there.
    let next = back_up(&opsd);
    assert!(next > real);
    // The clock went back while the site slept: everything is in the future, nothing is removed.
    let before = complete(&opsd);
    at(&opsd, "-3d", &["backups", "prune"]).expect_code(0);
    assert_eq!(complete(&opsd), before);
    server.drop_database(&database);
}

#[test]
fn no_home_and_a_home_that_cannot_be_written_are_no_hindrance() {
    let (server, opsd, database) = site();
    let read_only = opsd.path("read-only");
    std::fs::create_dir(&read_only).unwrap();
    std::fs::set_permissions(&read_only, std::os::unix::fs::PermissionsExt::from_mode(0o500)).unwrap();
    let homes = [Some("/nonexistent"), Some("/proc"), read_only.to_str(), Some(""), None];
    for (index, home) in homes.iter().enumerate() {
        for args in [&["backup"][..], &["config", "check"], &["restore", "--verify"]] {
            // One of each kind is enough for what takes long.
            if args[0] == "restore" && index < 2 {
                continue;
            }
            let mut command = opsd.command(args);
            match home {
                Some(home) => command.env("HOME", home),
                None => command.env_remove("HOME"),
            };
            command.stdin(Stdio::null());
            finish(command).expect_code(0);
        }
        assert_eq!(complete(&opsd).len(), index + 1);
    }
    assert!(read_only.read_dir().unwrap().next().is_none());
    server.drop_database(&database);
}
