//! Event triggers of a database, and what they raise: a rehearsal and a restore into a server that is there meet the
//! same of them, and no text of theirs is repeated.

use serde_json::json;

use crate::rehearsals::no_canary;
use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::{self, SUPERUSER, Server, literal, shared, unique};
use crate::support::sets::{back_up, result};

/// Rows, and a materialized view that is filled last of all.
const ROWS: &str = "CREATE TABLE words (note text);
    INSERT INTO words SELECT 'c4nary ' || i FROM generate_series(1, 20) i;
    CREATE INDEX ON words (note);
    CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM words;";

fn site(server: &Server, sql: &str) -> (Opsd, String) {
    let database = server.fresh_database("triggers");
    server.psql(&database, sql);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.env("OPSD_LOG", "opsd=debug");
    opsd.env("PATH", format!("{}:/usr/bin:/bin", postgres::bin_dir(server.major).display()));
    (opsd, database)
}

/// A restore into a new database, and that database.
fn restore(opsd: &Opsd, server: &Server, id: &str) -> (Run, String) {
    let target = unique("triggered");
    let to = server.socket_url(SUPERUSER, &target);
    (opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", id, "--json"]), target)
}

/// A guard that fires whatever the session's role in replication is, and quotes a row.
#[test]
fn a_guard_against_changes_is_met_by_a_rehearsal_and_a_restore_alike() {
    postgres::for_some_majors(|server| {
        let guard = "CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS
              $$ BEGIN RAISE EXCEPTION 'no % while there is %', tg_tag, (SELECT min(note) FROM public.words); END $$;
            CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION guard();
            ALTER EVENT TRIGGER guard ENABLE ALWAYS";
        let (opsd, database) = site(server, &format!("{ROWS} {guard}"));
        let id = back_up(&opsd);
        let rehearsal = opsd.run(&["restore", "--verify", "--json"]);
        no_canary(&opsd, &rehearsal);
        let (restored, target) = restore(&opsd, server, &id);
        no_canary(&opsd, &restored);
        let failed = restored.json()["failed"].clone();
        // Where nothing turns them off (16 and older), they come last of all.
        assert_eq!(result(&rehearsal)["verdict"], "proven", "{rehearsal}");
        assert_eq!(failed, json!([]), "{restored}");
        assert_same_content(db(server, &database), db(server, &target));
        for name in [&database, &target] {
            server.drop_database(name);
        }
    });
}

/// Each session that pg_restore opens after the trigger is there would leave a row.
#[test]
fn a_trigger_on_logins_writes_nothing_while_its_database_is_restored() {
    for major in [17, 18] {
        let server = shared(major);
        let log = "CREATE TABLE logins (at timestamptz, who text, what text);
            CREATE FUNCTION note() RETURNS event_trigger SECURITY DEFINER LANGUAGE plpgsql AS
              $$ BEGIN INSERT INTO public.logins VALUES (clock_timestamp(), session_user, current_setting('application_name')); END $$;
            CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note();
            ALTER EVENT TRIGGER note ENABLE ALWAYS";
        let (mut opsd, database) = site(server, &format!("{ROWS} {log}"));
        // More than one archive, so that there is a pg_restore after the others.
        opsd.job.set("large_table", quoted("8KiB"));
        let id = back_up(&opsd);
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{run}");
        let (run, target) = restore(&opsd, server, &id);
        run.expect_code(0);
        // Asked for without a login of its own in the log.
        let quiet = |name: &str| {
            let mut psql = server.client("psql");
            psql.args([
                "-X",
                "-A",
                "-t",
                "-c",
                "SELECT count(*) FROM logins WHERE what LIKE 'opsd restore%'",
            ]);
            psql.env("PGDATABASE", name).env("PGOPTIONS", "-c event_triggers=off");
            String::from_utf8(postgres::expect_success(&mut psql)).unwrap().trim().to_owned()
        };
        assert_eq!(quiet(&target), "0", "PostgreSQL {major}");
        for name in [&database, &target] {
            server.drop_database(name);
        }
    }
}

/// Whoever logs in to the restored database is refused: neither a rehearsal nor a restore is whoever.
#[test]
fn a_trigger_that_refuses_logins_keeps_no_restore_out_and_is_not_repeated() {
    let server = shared(17);
    let (opsd, database) = site(server, ROWS);
    let refuse = format!(
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
           $$ BEGIN IF current_database() <> {} OR current_setting('app.closed', true) = 'yes'
                    THEN RAISE EXCEPTION 'not while there is %', (SELECT min(note) FROM public.words); END IF; END $$;
         CREATE EVENT TRIGGER refuse ON login EXECUTE FUNCTION refuse();
         ALTER EVENT TRIGGER refuse ENABLE ALWAYS",
        literal(&database)
    );
    server.psql(&database, &refuse);
    let id = back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    let (run, target) = restore(&opsd, server, &id);
    let run = run.expect_code(0);
    assert_eq!(run.json()["failed"], json!([]), "{run}");
    no_canary(&opsd, &run);
    // Once more, in the place of what now refuses everybody.
    let to = server.socket_url(SUPERUSER, &target);
    let run = opsd.run(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]);
    no_canary(&opsd, &run);
    let run = run.expect_code(0);
    let old = run.json()["old_database"].as_str().unwrap().to_owned();
    // A backup that is refused says that it is, and nothing of what it was told.
    server.psql("postgres", &format!("ALTER DATABASE {database} SET app.closed = 'yes'"));
    let run = opsd.run(&["backup"]);
    no_canary(&opsd, &run);
    run.expect_failure(1, &["raised by a function of the database"]);
    for name in [&database, &target, &old] {
        server.drop_database(name);
    }
}

/// An empty database may have a guard of its own.
#[test]
fn what_a_guard_of_the_target_raises_is_not_repeated() {
    for major in [15, 18] {
        let server = shared(major);
        let (opsd, database) = site(server, ROWS);
        back_up(&opsd);
        let target = server.fresh_database("guarded");
        server.psql(
            &target,
            "CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'c4nary is not to be changed by %', tg_tag USING HINT = 'c4nary'; END $$;
             CREATE EVENT TRIGGER guard ON ddl_command_start EXECUTE FUNCTION guard();
             ALTER EVENT TRIGGER guard ENABLE ALWAYS",
        );
        let run = opsd.run(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &target), "--json"]);
        no_canary(&opsd, &run);
        if major >= 17 {
            run.expect_code(0);
        } else {
            run.expect_failure(1, &["raised by a function of the database"]);
        }
        for name in [&database, &target] {
            server.drop_database(name);
        }
    }
}
