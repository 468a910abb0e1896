//! What is said, to whom, and when: to somebody at a terminal, to whoever asked for more, and to the mail
//! that cron sends when something fails.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::opsd::{Opsd, Run, finish, quoted, write_private};
use crate::support::postgres::{Options, PASSWORD, SUPERUSER, Server, default_server, for_some_majors};
use crate::support::sets::back_up;
use crate::terminal::at_terminal;
use crate::traps;

const ONE_KEY: &str = "one recipient alone";

fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("talk");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    let opsd = Opsd::new(server, &[&database]);
    (server, opsd, database)
}

/// Words, however the terminal wrapped them.
fn words(run: &Run) -> String {
    format!("{} {}", run.stdout, run.stderr).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The password file that libpq ignores, because others may read it: nobody hears of it while nothing is
/// wrong, and whoever is told that a password is missing hears why.
#[test]
fn what_may_explain_a_failure_is_said_with_it() {
    let (server, mut opsd, database) = site();
    opsd.postgres.set("url", quoted(&server.url(SUPERUSER, &database)));
    let passfile = opsd.path(".pgpass");
    write_private(&passfile, &format!("*:*:*:{SUPERUSER}:{PASSWORD}\n"));
    let run = opsd.ok(&["backup"]);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));

    std::fs::set_permissions(&passfile, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ignored = [".pgpass is ignored: ", "mode 0644", "chmod 600"];
    let missing = ["the server asks for a password, and none is configured", "hint: give one in the URL"];
    for arguments in [&["backup"][..], &["--quiet", "backup"], &["backup", "--dry-run"]] {
        let run = opsd.run(arguments).expect_failure(2, &ignored).expect_failure(2, &missing);
        assert!(run.stderr.find("is ignored") < run.stderr.find("asks for a password"), "{run}");
        assert_eq!(run.stderr.matches("is ignored").count(), 1, "{run}");
        assert!(!run.stderr.contains(PASSWORD) && !run.stderr.contains(ONE_KEY), "{run}");
    }
    // Where it was looked for, and as what; a line that can be copied.
    let looked = format!(
        "looked for 127.0.0.1:{} in {}, where a line would be 127.0.0.1:{0}:*:{SUPERUSER}:PASSWORD",
        server.port,
        passfile.display()
    );
    opsd.run(&["backup"]).expect_failure(2, &[&looked]);
    // A URL on the command line finds the same file.
    let to = server.url(SUPERUSER, "elsewhere");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
    let run = run.expect_failure(2, &ignored).expect_failure(2, &missing);
    assert!(!run.stderr.contains(ONE_KEY), "{run}");
    // Nothing fails here, and a terminal is told all the same.
    assert_eq!(opsd.ok(&["backups", "list"]).stderr, "");
    assert!(words(&at_terminal(&opsd, "backups list").expect_code(0)).contains(".pgpass is ignored"));
    server.drop_database(&database);
}

/// That one key is easily lost, or that a password stands in the configuration, is said where keys are made, configured
/// and used to write, there once a day, and by no other command.
#[test]
fn advice_is_given_where_it_can_be_followed() {
    const WRITTEN_OUT: &str = "the password stands in this file";
    let (server, mut opsd, database) = site();
    let password = percent_encoding::utf8_percent_encode(PASSWORD, percent_encoding::NON_ALPHANUMERIC);
    let url = server.url(SUPERUSER, &database).replacen('@', &format!(":{password}@"), 1);
    opsd.postgres.set("url", quoted(&url));
    opsd.more = "[monitor.host]\nhost = {}\n".to_owned();
    let first = at_terminal(&opsd, "backup").expect_code(0);
    let second = at_terminal(&opsd, "backup").expect_code(0);
    let day = |run: &Run| words(run).split("db 2").nth(1).unwrap()[..7].to_owned();
    for advice in [ONE_KEY, WRITTEN_OUT] {
        assert!(words(&first).contains(advice), "{first}");
        // Unless midnight went by.
        assert!(!words(&second).contains(advice) || day(&first) != day(&second), "{second}");
    }
    let id = back_up(&opsd);
    for (arguments, is_said) in [
        ("config check", true),
        ("repository probe", true),
        ("status", false),
        ("backup --dry-run", false),
        ("config show", false),
        ("backups list", false),
        (&format!("backups show {id}"), false),
        (&format!("backups cat {id} {database} globals"), false),
        ("restore --verify", false),
    ] {
        let run = at_terminal(&opsd, arguments).expect_code(0);
        for advice in [ONE_KEY, WRITTEN_OUT] {
            assert_eq!(words(&run).contains(advice), is_said, "{arguments}: {run}");
        }
    }
    // A daemon's log begins with what concerns it, and keys do not.
    opsd.more.push_str("[exporter]\nlisten = \"127.0.0.1:0\"\n");
    let mut exporter = opsd.command(&["exporter"]).spawn().unwrap();
    let log = BufReader::new(exporter.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said = log.take_while(|line| !line.starts_with("serving ")).collect::<Vec<_>>().join(" ");
    exporter.kill().unwrap();
    exporter.wait().unwrap();
    assert!(said.contains(WRITTEN_OUT) && !said.contains(ONE_KEY), "{said}");
    let run = at_terminal(&opsd, "keygen -o new.txt").expect_code(0);
    assert!(words(&run).contains("make a second one, keep it elsewhere"), "{run}");
    assert_eq!(opsd.ok(&["keygen", "-o", "newer.txt"]).stderr, "");
    assert!(!opsd.run(&["backups", "show", "1999"]).expect_code(1).stderr.contains(ONE_KEY));
    server.drop_database(&database);
}

/// Asked for, the summary is told without a terminal too.
#[test]
fn who_asks_for_more_gets_the_summary_without_a_terminal() {
    let (server, opsd, database) = site();
    let run = opsd.ok(&["backup", "-v"]);
    for said in ["stored and signed in ", &format!("{database}: 1 table, 100 rows"), "to prove the set"] {
        assert!(run.stderr.contains(said), "{said}: {run}");
    }
    assert_eq!(run.stdout, "");
    let run = opsd.ok(&["-v", "restore", "--verify"]);
    assert!(run.stderr.contains("PROVEN, every row came back") && run.stderr.contains(" in all: "), "{run}");
    assert!(run.stderr.contains(&format!("{database}: 1 of 1 table proven, 100 rows\n")), "{run}");
    let run = opsd.ok(&["backups", "show", &crate::support::sets::complete(&opsd)[0]]);
    assert!(run.stdout.contains(" 1 table, 100 rows, "), "{run}");
    assert!(run.stdout.contains(&format!("{database}: 1 of 1 table proven, 100 rows\n")), "{run}");
    let target = format!("{database}_back");
    let to = server.socket_url(SUPERUSER, &target);
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "-v"]);
    assert!(run.stderr.contains(&format!("restored as {target:?}")), "{run}");
    for arguments in [&["backup"][..], &["restore", "--verify"]] {
        let run = opsd.ok(arguments);
        assert_eq!(run.stdout, "");
        // Whoever is not root rehearses as themselves, which is a warning.
        assert!(!run.stderr.contains(" in all: ") || !rustix::process::geteuid().is_root(), "{run}");
    }
    server.drop_database(&target);
    server.drop_database(&database);
}

/// An archive garbles a terminal; what is text does not, and a pipe takes both.
#[test]
fn an_archive_is_not_written_to_a_terminal() {
    let (server, opsd, database) = site();
    let id = back_up(&opsd);
    let run = at_terminal(&opsd, &format!("backups cat {id} {database} schema")).expect_code(2);
    let said = words(&run);
    assert!(said.contains("stream schema is binary, and stdout is a terminal"), "{run}");
    assert!(said.contains("> FILE") && said.contains("| pg_restore -l"), "{run}");
    assert!(!run.stdout.contains("PGDMP"), "{run}");
    let run = at_terminal(&opsd, &format!("backups cat {id} {database} globals")).expect_code(0);
    assert!(run.stdout.contains("CREATE ROLE"), "{run}");
    // stderr may be a terminal: what counts is where the bytes go.
    let run =
        at_terminal(&opsd, &format!("backups cat {id} {database} schema > schema.pgdump")).expect_code(0);
    assert_eq!(run.stdout, "");
    assert!(std::fs::read(opsd.path("schema.pgdump")).unwrap().starts_with(b"PGDMP"));
    server.drop_database(&database);
}

/// Nobody sees a prepared transaction: it has no session, and holds its locks until somebody ends it.
#[test]
fn who_holds_a_table_is_named_after_seconds() {
    for_some_majors(|shared| {
        let settings = [("max_prepared_transactions", "5")];
        let server = &Server::start(shared.major, &Options { settings: &settings, ..Options::default() });
        server.create_database("app");
        server.psql("app", "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
        let opsd = traps::site(server, "app");
        for args in [&["-v", "backup", "--dry-run"][..], &["-v", "backup"]] {
            server.psql("app", "BEGIN; LOCK TABLE t; PREPARE TRANSACTION 'left behind'");
            let mut child = opsd.command(args).spawn().unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
            let ended = AtomicBool::new(false);
            let end = || {
                if !ended.swap(true, Ordering::SeqCst) {
                    server.psql("app", "ROLLBACK PREPARED 'left behind'");
                }
            };
            let said = std::thread::scope(|scope| {
                // One that says nothing waits for ten minutes.
                scope.spawn(|| {
                    let begun = Instant::now();
                    while !ended.load(Ordering::SeqCst) && begun.elapsed() < Duration::from_secs(30) {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    end();
                });
                let said: Vec<String> =
                    lines.by_ref().take_while(|line| !line.contains("left behind")).collect();
                let named = !ended.load(Ordering::SeqCst);
                end();
                assert!(named, "nobody was named: {said:?}");
                lines.collect::<Vec<_>>()
            });
            assert!(child.wait().unwrap().success(), "{args:?}: {said:?}");
        }
    });
}

/// The words are those of the line that names it.
#[test]
fn a_prepared_transaction_is_named_with_its_role_and_what_ends_it() {
    let settings = [("max_prepared_transactions", "5")];
    let server =
        &Server::start(default_server().major, &Options { settings: &settings, ..Options::default() });
    server.create_database("app");
    server.psql("app", "CREATE TABLE t (id integer); BEGIN; LOCK TABLE t; PREPARE TRANSACTION 'left behind'");
    let opsd = traps::site(server, "app");
    let mut child = opsd.command(&["-v", "backup", "--dry-run"]).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let line = lines.into_iter().find(|line| line.contains("left behind")).unwrap_or_default();
    child.kill().unwrap();
    child.wait().unwrap();
    for words in [
        "table public.t is locked by",
        "prepared transaction 'left behind' of role postgres",
        "ROLLBACK PREPARED 'left behind'",
    ] {
        assert!(line.contains(words), "{words}: {line}");
    }
}

/// Each of a backup's connections to such a database warns of it.
#[test]
fn what_every_pg_dump_warns_of_is_said_once() {
    let server = &Server::start(16, &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE t AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i");
    server
        .psql("postgres", "UPDATE pg_database SET datcollversion = '0' WHERE datname IN ('app', 'postgres')");
    let mut opsd = traps::site(server, "app");
    opsd.job.set("large_table", quoted("64KiB"));
    let run = opsd.ok(&["backup", "--json"]);
    let warnings = run.json()["sets"][0]["warnings"].to_string();
    assert_eq!(warnings.matches("no actual collation version").count(), 1, "{run}");
}

/// A proxy's port in the place of the server's is a mistake of the first day.
#[test]
fn what_answers_in_the_place_of_a_server_is_named() {
    use std::io::{Read as _, Write as _};
    let answers: [(&[u8], &str); 2] = [
        (b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n", "answers in HTTP: a web server or a proxy"),
        (b"-ERR unknown command\r\n", "answers like Redis"),
    ];
    let (server, mut opsd, database) = site();
    for (answer, words) in answers {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1000]);
                let _ = stream.write_all(answer);
            }
        });
        for mode in ["prefer", "disable", "require"] {
            opsd.postgres.set("url", quoted(&format!("postgres://u@127.0.0.1:{port}/app?sslmode={mode}")));
            opsd.run(&["backup", "--dry-run"]).expect_failure(1, &[words, "is no PostgreSQL"]);
        }
    }
    server.drop_database(&database);
}

#[test]
fn asked_twice_it_says_more_and_once_a_day_is_often_enough_for_advice() {
    let (server, opsd, database) = site();
    let once = opsd.ok(&["backup", "-v"]);
    let again = opsd.ok(&["backup", "-vv"]);
    assert!(once.stderr.contains(ONE_KEY), "{once}");
    for more in ["connected to ", "found "] {
        assert!(again.stderr.contains(more) && !once.stderr.contains(more), "{more:?}: {again}");
    }
    // Unless midnight went by.
    let day = |run: &Run| run.stderr.split("db 2").nth(1).unwrap()[..7].to_owned();
    if day(&once) == day(&again) {
        assert!(!again.stderr.contains(ONE_KEY), "{again}");
    }
    server.drop_database(&database);
}

/// It is there, and whoever writes another one in its place has two.
#[test]
fn a_configuration_that_may_not_be_read_is_not_to_be_written_anew() {
    let opsd = Opsd::without_server();
    let program = opsd.path("opsd");
    // By a process of its own: nothing runs that is open for writing.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_opsd")).arg(&program).status().unwrap();
    assert!(copied.success());
    let file = opsd.path("opsd.toml");
    write_private(&file, "site = \"test\"\n");
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o000)).unwrap();
    }
    for arguments in [&["config", "check"][..], &["config", "check", "--config", "opsd.toml"]] {
        let mut command = Command::new(if is_root { Path::new("setpriv") } else { &program });
        if is_root {
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(&program);
        }
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").current_dir(opsd.path(""));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = finish(command).expect_failure(2, &["opsd.toml", "Permission denied", "as its owner"]);
        assert!(!run.stderr.contains("config init") && !run.stderr.contains("nobody else write"), "{run}");
    }
}
