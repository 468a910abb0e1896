//! What a dry run promises, and hosts whose configuration says little.

use std::io::{BufRead, BufReader};

use rustix::process::Signal;

use crate::security::executable;
use crate::support::opsd::{Opsd, quoted_list};
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major, default_server, unique};
use crate::support::sets::{back_up, result};

/// opsd's own session gets through, and a program behind this prefix does not.
fn misled(opsd: &mut Opsd) {
    let prefix = opsd.path("elsewhere");
    let script = "#!/bin/sh\nfor word; do shift; case $word in PGPORT=*) word=PGPORT=1;; esac; set -- \"$@\" \"$word\"; done\nexec \"$@\"\n";
    executable(&prefix, script);
    opsd.postgres.set("tool_prefix", quoted_list(&[prefix.to_str().unwrap()])).unset("bin_dir");
    let bin = bin_dir(default_server().major);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
}

#[test]
fn a_dry_run_tries_the_programs_of_the_real_one() {
    let server = default_server();
    let database = server.fresh_database("tried");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let run = opsd.ok(&["backup", "--dry-run"]);
    assert!(run.stdout.contains("ok: pg_dump gets through"), "{run}");
    let name = unique("never_made");
    let restore = ["restore", "db", "--to", "main", "--as", &name, "--dry-run"];
    let run = opsd.ok(&restore);
    for expected in [&format!("database    {name:?} would be made"), "gets through", "nothing was restored"] {
        assert!(run.stdout.contains(expected), "{expected}: {run}");
    }
    let run = opsd.ok(&["restore", "db", "--to", "main", "--replace", "--dry-run", "--json"]);
    assert_eq!(run.json()["replaces"]["objects"], 1, "{run}");
    opsd.run(&["restore", "db", "--to", "main", "--dry-run"]).expect_failure(1, &["is not empty"]);
    opsd.run(&["restore", "db", "--to", "main", "--as", &name, "--table", "b", "--dry-run"])
        .expect_failure(2, &["--table \"b\""]);

    misled(&mut opsd);
    opsd.run(&["backup"]).expect_code(1);
    opsd.run(&["backup", "--dry-run"]).expect_failure(1, &["pg_dump", "hint: ", "tool_prefix"]);
    opsd.run(&restore).expect_failure(1, &["pg_restore", "hint: ", "tool_prefix"]);
    assert!(!server.databases().contains(&name));
    server.drop_database(&database);
}

/// Whoever restores has often just started the server.
#[test]
fn a_restore_waits_for_a_server_that_is_starting() {
    let mut server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(&server, &["app"]);
    back_up(&opsd);
    server.crash(Signal::QUIT);
    let mut child = opsd.command(&["-v", "restore", "db", "--to", "main", "--as", "again"]).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let waits = said.find(|line| line.as_ref().unwrap().contains("waiting for the server for up to"));
    assert!(waits.is_some());
    server.restart();
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    assert_eq!(server.psql("again", "SELECT count(*) FROM a"), "9");
}

/// On its worst day a host has the bucket and the key, and nothing else.
#[test]
fn a_host_with_the_repository_and_the_key_alone_restores() {
    let server = default_server();
    let database = server.fresh_database("moved");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(server, &[&database]);
    let id = back_up(&opsd);
    let mut host = Opsd::without_server();
    host.repository = opsd.repository.clone();
    host.encryption = opsd.encryption.clone();
    host.encryption.unset("recipients").unset("sign_key_file");
    host.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));

    let run = host.ok(&["restore"]);
    assert!(run.stdout.contains(&format!("site test, job db: 1 complete set, the newest {id}")), "{run}");
    assert_eq!(host.ok(&["restore", "--json"]).json()["jobs"][0]["latest"], id.as_str());
    host.run(&["restore", "db"]).expect_failure(2, &["where to restore to", "--to NAME|URL"]);
    let name = unique("moved");
    let url = server.socket_url(SUPERUSER, &name);
    host.ok(&["restore", "db", "--to", &url, "--create"]);
    assert_eq!(server.psql(&name, "SELECT count(*) FROM a"), "9");
    assert_eq!(result(&host.ok(&["restore", "--verify", "--json"]))["verdict"], "proven");
    host.run(&["restore", "db", "--as", "x"]).expect_failure(2, &["backs up no server", "--to NAME|URL"]);
    host.run(&["restore", "dv", "--to", &url]).expect_failure(2, &["unknown job \"dv\"", "has sets of: db"]);
    let mut wrong = host.config().replace("site = \"test\"", "site = \"tset\"");
    wrong.push('\n');
    let config = host.path("wrong.toml");
    crate::support::opsd::write_private(&config, &wrong);
    host.run(&["--config", config.to_str().unwrap(), "restore", "db", "--to", &url])
        .expect_failure(2, &["unknown job \"db\"", "these sites: test"]);
    [database, name].iter().for_each(|name| server.drop_database(name));
}
