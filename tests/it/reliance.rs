//! What becomes of a set that a rehearsal found to differ, on a real server.

use crate::support::exporter::collected;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{SUPERUSER, default_server, unique};
use crate::support::sets::{back_up, next_second, record_differences, result};

const LOST: &str = "table public.numbers: 1 row instead of 2";

/// Seen on real servers: `restore --to` took such a set without a word.
#[test]
fn a_set_that_differs_is_restored_by_its_id_alone_and_loudly() {
    let server = default_server();
    let database = server.fresh_database("relied");
    server.psql(&database, "CREATE TABLE numbers AS SELECT 1 AS n");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("rpo", quoted("26h"));
    opsd.more = "[monitor.backups]\nbackups = {}\n".to_owned();
    let first = back_up(&opsd);
    next_second();
    server.psql(&database, "INSERT INTO numbers VALUES (2)");
    let second = back_up(&opsd);
    record_differences(&opsd, &second, &[LOST, "index numbers_n: missing"]);

    let target = unique("relied_on");
    let to = server.socket_url(SUPERUSER, &target);
    let restore = ["restore", "db", "--to", to.as_str(), "--create", "--json"];
    let run = opsd.run(&restore).expect_failure(3, &[&second, &first, LOST, "1 more", "--backup"]);
    assert!(!server.databases().contains(&target), "{run}");
    // The monitor's newest usable set is the one before it.
    let scrape = collected(&opsd);
    assert_eq!(scrape.one("opsd_backup_last_rows", &["backup=\"db\""]), Some(1.0), "{}", scrape.text);

    let loudly = [&second, "may not be relied on", LOST, "1 more", &opsd.public_key];
    // Before anything is done: here nothing can be.
    let run = opsd.run(&["restore", "db", "--to", &to, "--backup", &second]);
    let run = run.expect_failure(1, &[&loudly[..], &["does not exist"]].concat());
    assert!(run.stderr.find("may not be relied on") < run.stderr.find("does not exist"), "{run}");
    let run = opsd.ok(&[&restore[..], &["--backup", &second]].concat());
    let doubt = run.json()["doubt"].to_string();
    for words in loudly {
        assert!(run.stderr.contains(words) && doubt.contains(words), "{words:?} is not in {run}");
    }
    assert_eq!(server.psql(&target, "SELECT count(*) FROM numbers"), "2");
    server.drop_database(&target);

    // A rehearsal is of the newest set all the same: what it finds now is what counts from now on.
    next_second();
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!((&result(&run)["id"], &result(&run)["verdict"]), (&second.as_str().into(), &"proven".into()));
    let run = opsd.ok(&restore);
    assert_eq!(run.json()["id"], second.as_str(), "{run}");
    assert!(run.json()["doubt"].is_null() && !run.stderr.contains("relied on"), "{run}");
    server.drop_database(&target);
    server.drop_database(&database);
}
