//! How much of a production server a backup takes, and what it knows of how much there is.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rustix::process::Signal;

use crate::locks::DEFAULTS;
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major, identifier, unique};
use crate::support::processes::until;
use crate::support::sets::{back_up, directory, manifest, result};
use crate::traps::Background;

/// Locks of the lock table that opsd and its tools hold.
fn held(server: &Server) -> u64 {
    let sql = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                WHERE application_name LIKE 'opsd%' AND NOT fastpath";
    server.psql("postgres", sql).parse().unwrap()
}

#[test]
fn a_backup_takes_a_quarter_of_the_lock_table_beyond_what_a_plain_pg_dump_takes() {
    let server = Server::start(default_major(), &Options { settings: DEFAULTS, ..Options::default() });
    for tables in [500, 1_000, 1_700] {
        let database = server.fresh_database("many");
        fixtures::rows(&server, &database, "big", 40_000);
        fixtures::many_tables(&server, &database, tables);
        let mut opsd = Opsd::new(&server, &[&database]);
        opsd.job.set("large_table", quoted("4MiB"));
        // Larger than a pipe, so that no pg_dump comes to its end while nobody reads.
        server.psql(&database, "SELECT format('COMMENT ON TABLE big IS %L', repeat('x', 2000000)) \\gexec");
        let plain = u64::from(tables) + 20;
        let mut run = Background::start(&opsd);
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opsd%'";
        until("the dumps to begin", || server.psql("postgres", sessions).parse::<u32>().unwrap() >= 3);
        run.signal(Signal::STOP);
        let busy = format!("{sessions} AND state = 'active' AND wait_event IS DISTINCT FROM 'ClientWrite'");
        let (mut most, mut last, mut quiet) = (0, 0, 0);
        until("every lock to be held", || {
            let now = held(&server);
            let is_quiet = now > 0 && now == last && server.psql("postgres", &busy) == "0";
            quiet = if is_quiet { quiet + 1 } else { 0 };
            (most, last) = (most.max(now), now);
            quiet == 10
        });
        run.signal(Signal::CONT);
        assert!(most >= u64::from(tables), "{tables} tables: {most}");
        assert!(most <= plain + 6_400 / 4, "{tables} tables: {most} locks are held");
        let run = run.finish().expect_code(0);
        let is_single = run.json().to_string().contains("a quarter of the server's lock table");
        assert_eq!(is_single, tables > 1_600, "{run}");
        server.drop_database(&database);
    }
}

/// A role that may read everything, and nothing else.
fn reader(server: &Server, attributes: &str) -> String {
    let role = unique("reader");
    server.psql(
        "postgres",
        &format!("CREATE ROLE {role} LOGIN BYPASSRLS {attributes}; GRANT pg_read_all_data TO {role}"),
    );
    role
}

fn site(server: &Server, role: &str, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.postgres.set("url", quoted(&server.socket_url(role, database)));
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// A database with three large tables.
fn three_large(server: &Server) -> String {
    let database = server.fresh_database("three");
    for table in ["a", "b", "c"] {
        fixtures::rows(server, &database, table, 3_000);
    }
    database
}

#[test]
fn a_connection_limit_of_the_role_or_the_database_is_kept() {
    let server = Server::start(default_major(), &Options::default());
    let database = three_large(&server);
    for (what, name) in [("ROLE", reader(&server, "")), ("DATABASE", database.clone())] {
        let role = if what == "ROLE" { name.clone() } else { reader(&server, "") };
        let mut opsd = site(&server, &role, &database);
        opsd.job.set("streams", "4");
        let limit = |n: i32| {
            server.psql("postgres", &format!("ALTER {what} {} CONNECTION LIMIT {n}", identifier(&name)))
        };
        // The lock's session, the coordinator's, and one pg_dump while pg_dumpall asks for the roles.
        limit(4);
        let id = back_up(&opsd);
        assert!(directory(&opsd, &id).join(&database).join("full.pgdump.zst.age").exists());
        // The schema's, the rows' and the roles' beside the two; and as many more for rows as there is room.
        for (room, processes) in [(5, "1 of 4"), (6, "2 of 4")] {
            limit(room);
            let id = back_up(&opsd);
            assert!(directory(&opsd, &id).join(&database).join("data-3.pgdump.zst.age").exists());
            let warnings = manifest(&opsd, &id)["warnings"].to_string();
            assert!(warnings.contains(&format!("rows are read by {processes} pg_dumps")), "{warnings}");
        }
        limit(3);
        let said = format!("CONNECTION LIMIT of the {}", what.to_lowercase());
        opsd.run(&["backup", "--dry-run"]).expect_failure(1, &["needs 2 more connections", &said]);
        limit(-1);
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{run}");
    }
}

/// What the dry run says there is, against what is really to be had: others are connected, whose sessions a role
/// without privileges hardly sees, and some connections are kept for others.
#[test]
fn connections_are_counted_as_our_role_finds_them() {
    for major in [15, 16] {
        let mut settings = vec![("max_connections", "30"), ("superuser_reserved_connections", "4")];
        if major >= 16 {
            settings.push(("reserved_connections", "5"));
        }
        let server = Server::start(major, &Options { settings: &settings, ..Options::default() });
        let database = three_large(&server);
        let (role, other) = (reader(&server, ""), reader(&server, ""));
        // Whether it is let in is what it says itself: whoever asks the server for that has a connection, too.
        let connect = |role: &str| -> Option<std::process::Child> {
            let mut command = server.client("psql");
            command.args(["-X", "-q", "-A", "-t", "-c", "SELECT 'in'", "-c", "SELECT pg_sleep(600)"]);
            command.env("PGUSER", role).env("PGDATABASE", &database).env("PGAPPNAME", "holds");
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut said = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
            if said == "in\n" {
                return Some(child);
            }
            child.wait().unwrap();
            None
        };
        let mut sessions: Vec<_> = (0..7).map(|_| connect(&other).unwrap()).collect();
        let opsd = site(&server, &role, &database);
        let said = opsd.ok(&["backup", "--dry-run"]).stdout;
        let free = said.split("connections needed, ").nth(1).unwrap();
        let free: usize = free.split(' ').next().unwrap().parse().unwrap();
        let gone = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'opsd%'";
        until("opsd's own sessions are gone", || server.psql("postgres", gone) == "0");
        let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        until("nobody else is connected", || server.psql("postgres", others) == "8");
        // As many as there are to be had. The server may take a moment to see that the last one who asked is gone.
        let mut had = 0;
        let mut refused = 0;
        while refused < 20 {
            match connect(&role) {
                Some(child) => {
                    sessions.push(child);
                    had += 1;
                }
                None => refused += 1,
            }
        }
        // Two are opsd's own while it looks, and five are left for others.
        assert_eq!(free + 2 + 5, had, "PostgreSQL {major}: {said}");
        server.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holds'",
        );
        for mut child in sessions {
            child.wait().unwrap();
        }
        until("all of them are gone", || server.psql("postgres", others) == "1");
        // A superuser may have all of them.
        let said = site(&server, SUPERUSER, &database).ok(&["backup", "--dry-run"]).stdout;
        assert!(said.contains(&format!("connections needed, {} free", 30 - 2 - 5)), "{said}");
    }
}

/// Some hosts show a role its own sessions alone: `numbackends` still counts everybody's.
#[test]
fn sessions_that_our_role_does_not_see_are_counted() {
    for major in [14, 18] {
        let settings = [("max_connections", "30"), ("superuser_reserved_connections", "3")];
        let server = Server::start(major, &Options { settings: &settings, ..Options::default() });
        let database = three_large(&server);
        let (role, other) = (reader(&server, ""), reader(&server, ""));
        server.psql(
            &database,
            "SET allow_system_table_mods = on; ALTER VIEW pg_catalog.pg_stat_activity RENAME TO all_activity;
             CREATE VIEW pg_catalog.pg_stat_activity AS SELECT * FROM pg_catalog.all_activity WHERE usename = current_user;
             GRANT SELECT ON pg_catalog.pg_stat_activity TO PUBLIC",
        );
        let mut holders: Vec<_> = (0..10)
            .map(|_| {
                let mut command = server.client("psql");
                command.args(["-X", "-q", "-c", "SELECT pg_sleep(600)"]);
                command.env("PGUSER", &other).env("PGDATABASE", &database).env("PGAPPNAME", "holds");
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        let held =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holds' AND state = 'active'";
        until("the others to be there", || server.psql("postgres", held) == "10");
        let opsd = site(&server, &role, &database);
        let said = opsd.ok(&["backup", "--dry-run"]).stdout;
        // 30, of which 3 are a superuser's, 10 the others', 2 our own and 5 left for others.
        assert!(said.contains("connections needed, 10 free"), "PostgreSQL {major}: {said}");
        // The database's limit counts everybody, too.
        server.psql("postgres", &format!("ALTER DATABASE {database} CONNECTION LIMIT 18"));
        let said = opsd.ok(&["backup", "--dry-run"]).stdout;
        assert!(said.contains("connections needed, 6 free"), "PostgreSQL {major}: {said}");
        server.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holds'",
        );
        for holder in &mut holders {
            holder.wait().unwrap();
        }
    }
}

/// A connection counts for the role that logs in, whatever role its sessions go on as.
#[test]
fn the_limit_of_the_role_that_logs_in_is_kept() {
    let server = Server::start(default_major(), &Options::default());
    let database = three_large(&server);
    let (login, other) = (reader(&server, "CONNECTION LIMIT 5"), reader(&server, ""));
    server.psql("postgres", &format!("GRANT {other} TO {login}; ALTER ROLE {login} SET role = {other}"));
    let mut opsd = site(&server, &login, &database);
    opsd.job.set("streams", "4");
    let said = opsd.ok(&["backup", "--dry-run"]).stdout;
    assert!(said.contains("connections needed, 3 free"), "{said}");
    back_up(&opsd);
}
