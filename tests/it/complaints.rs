//! What pg_restore complains of after the rows, as real servers say it: what a function of the database
//! says is not repeated, in no language; what a server or a host cannot know is not the set's fault.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::rehearsals::no_canary;
use crate::support::compare::{assert_same_content, db};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, default_server, expect_success, identifier, shared,
    unique,
};
use crate::support::sets::{back_up, directory, manifest, result};

/// Says yes while the rows are made, and what it was asked later, in three places after the rows.
const TALKERS: &str = "CREATE TABLE words (note text);
    INSERT INTO words SELECT 'c4nary ' || i FROM generate_series(1, 20) i;
    CREATE FUNCTION asserts(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION raises(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION refuses(words) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
    CREATE INDEX asserting ON words (asserts(note));
    CREATE MATERIALIZED VIEW raising AS SELECT public.raises(note) FROM words;
    ALTER TABLE words ADD CONSTRAINT refusing CHECK (refuses(words.*));
    CREATE OR REPLACE FUNCTION asserts(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
      $$ BEGIN ASSERT length($1) < 3, 'relation \"' || $1 || '\"'; RETURN $1; END $$;
    CREATE OR REPLACE FUNCTION raises(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION E'role \"%\" is odd\\nCommand was: %', $1, $1 USING DETAIL = $1, HINT = $1; END $$;
    CREATE OR REPLACE FUNCTION refuses(words) RETURNS boolean LANGUAGE plpgsql AS
      $$ BEGIN RAISE EXCEPTION USING MESSAGE = 'CONTEXT:  ' || $1.note, ERRCODE = 'P0001'; END $$;";

/// What of them fails, as pg_dump names it.
const FAIL: [&str; 3] =
    ["INDEX asserting", "MATERIALIZED VIEW DATA raising", "CHECK CONSTRAINT words refusing"];

fn site(server: &Server, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.env("OPSD_LOG", "opsd=debug");
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(default_major()).display()));
    opsd
}

/// All rows are kept, what failed is named, and nothing of it is repeated.
fn assert_kept(opsd: &Opsd, run: Run, server: &Server, target: &str, said: &str) {
    let run = run.expect_failure(1, &[&format!("database {target:?} holds all rows"), "3 statements failed"]);
    no_canary(opsd, &run);
    let document = run.json();
    let failed: Vec<&str> =
        document["failed"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert_eq!(failed.len(), 3, "{run}");
    for entry in FAIL {
        assert!(failed.iter().any(|f| f.starts_with(entry) && f.contains(said)), "{entry}: {failed:?}");
        assert!(run.stderr.contains(entry), "{entry}: {run}");
    }
    let rows = "SELECT count(*), count(DISTINCT note), bool_and(note ~ '^c4nary [0-9]+$') FROM words";
    assert_eq!(server.psql(target, rows), "20|20|t");
}

#[test]
fn what_functions_raise_after_the_rows_costs_no_row_and_is_not_repeated() {
    let server = default_server();
    let database = server.fresh_database("talkers");
    server.psql(&database, TALKERS);
    let opsd = site(server, &database);
    let id = back_up(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]);
    let run =
        run.expect_failure(3, &["does not restore", "raised by a function", "INDEX asserting", "refusing"]);
    no_canary(&opsd, &run);
    assert_eq!(result(&run)["verdict"], "differs", "{run}");
    let target = unique("kept");
    let to = server.socket_url(SUPERUSER, &target);
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id, "--json"]);
    assert_kept(&opsd, run, server, &target, "ERROR:  raised by a function of the database");
    server.drop_database(&target);
    server.drop_database(&database);
}

#[test]
fn an_archive_of_everything_keeps_its_rows_and_repeats_nothing() {
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "20")];
    let server = Server::start(default_major(), &Options { settings: &settings, ..Default::default() });
    server.create_database("app");
    fixtures::many_tables(&server, "app", 90);
    server.psql("app", TALKERS);
    let opsd = site(&server, "app");
    let id = back_up(&opsd);
    assert!(directory(&opsd, &id).join("app/full.pgdump.zst.age").exists());
    let run = opsd.run(&["restore", "--verify", "--json"]);
    let run =
        run.expect_failure(3, &["does not restore", "raised by a function", "INDEX asserting", "refusing"]);
    no_canary(&opsd, &run);
    assert_eq!(result(&run)["verdict"], "differs", "{run}");
    let to = server.socket_url(SUPERUSER, "again");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id, "--json"]);
    assert_kept(&opsd, run, &server, "again", "ERROR:  raised by a function of the database");
    assert_eq!(server.psql("again", "SELECT count(*) FROM pg_tables WHERE schemaname = 'many'"), "90");
}

/// Each pg_restore of 17 or newer begins with settings that 15 has not heard of.
#[test]
fn sets_of_newer_servers_restore_into_an_older_one_without_complaint() {
    let older = shared(15);
    for major in [17, 18] {
        let server = shared(major);
        let database = server.fresh_database("newer");
        fixtures::rows(server, &database, "large", 3_000);
        server.psql(
            &database,
            "CREATE TABLE small (id serial PRIMARY KEY, note text UNIQUE CHECK (note <> ''));
             INSERT INTO small (note) SELECT 'n' || i FROM generate_series(1, 50) i;
             CREATE TABLE child (of integer REFERENCES small); INSERT INTO child SELECT id FROM small;
             CREATE INDEX ON small (lower(note)); CREATE VIEW seen AS SELECT id FROM small;
             CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM small;
             SELECT lo_from_bytea(0, 'content')",
        );
        let mut opsd = site(server, &database);
        opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(major).display()));
        opsd.job.set("large_table", quoted("32KiB"));
        let id = back_up(&opsd);
        let version = manifest(&opsd, &id)["pg_dump_version"].as_str().unwrap().to_owned();
        assert!(version.starts_with(&format!("{major}.")), "{version}");
        let target = unique("older");
        let to = older.socket_url(SUPERUSER, &target);
        let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--json"]);
        assert_eq!(run.json()["failed"], json!([]), "{run}");
        let warnings = run.json()["warnings"].clone();
        let (newer, others): (Vec<_>, Vec<_>) = warnings
            .as_array()
            .unwrap()
            .iter()
            .partition(|w| w.to_string().contains("the set is of PostgreSQL"));
        assert_eq!(newer.len(), 1, "{run}");
        assert!(newer[0].to_string().contains(&format!("PostgreSQL {major}, and the server is 15")), "{run}");
        for warning in others {
            let warning = warning.as_str().unwrap();
            assert!(
                warning.ends_with("unrecognized configuration parameter \"transaction_timeout\""),
                "{run}"
            );
        }
        assert_same_content(db(server, &database), db(older, &target));
        older.drop_database(&target);
        server.drop_database(&database);
    }
}

/// The programs of a major, with one file more for text search than the host's own have.
fn installation_with(name: &str, synonyms: &str) -> tempfile::TempDir {
    let original = bin_dir(default_major()).parent().unwrap().to_owned();
    let copy = tempfile::Builder::new().prefix("opsd-it-programs-").tempdir().unwrap();
    let readable = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    readable(copy.path());
    let mut cp = std::process::Command::new("cp");
    cp.arg("-rL").arg(original.join("share")).arg(copy.path());
    expect_success(&mut cp);
    std::fs::create_dir(copy.path().join("bin")).unwrap();
    readable(&copy.path().join("bin"));
    // A program looks for its share beside itself, where no link leads.
    for program in ["postgres", "initdb", "psql"] {
        let to = copy.path().join("bin").join(program);
        std::fs::copy(original.join("bin").join(program), &to).unwrap();
        readable(&to);
    }
    symlink(original.join("lib"), copy.path().join("lib")).unwrap();
    let file: PathBuf = copy.path().join("share/tsearch_data").join(format!("{name}.syn"));
    std::fs::write(&file, synonyms).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    copy
}

/// A dictionary's file is part of a host, not of a dump: on one without it, what needs the dictionary is
/// missing, and that is said of the host.
#[test]
fn a_dictionary_whose_file_only_the_source_has_is_no_difference() {
    let name = unique("opsd_words");
    let copy = installation_with(&name, "database archive\n");
    let bin = Some(copy.path().join("bin"));
    let source = Server::start(default_major(), &Options { bin_dir: bin, ..Default::default() });
    let here = default_server();
    let dictionary = format!(
        "CREATE TEXT SEARCH DICTIONARY words (TEMPLATE = synonym, SYNONYMS = '{name}');
         CREATE TEXT SEARCH CONFIGURATION conf (COPY = simple);
         ALTER TEXT SEARCH CONFIGURATION conf ALTER MAPPING FOR asciiword WITH words, simple;
         CREATE TABLE docs (id integer, body text);
         INSERT INTO docs SELECT i, 'a database ' || i FROM generate_series(1, 30) i;"
    );
    for (database, more, needs_rows) in [
        ("indexed", "CREATE INDEX found ON docs USING gin (to_tsvector('public.conf', body))", false),
        (
            "generated",
            "ALTER TABLE docs ADD v tsvector GENERATED ALWAYS AS (to_tsvector('public.conf', body)) STORED",
            true,
        ),
    ] {
        source.create_database(database);
        source.psql(database, &format!("{dictionary}{more}"));
        assert_eq!(
            source.psql(database, "SELECT to_tsvector('public.conf', 'database')::text"),
            "'archive':1"
        );
        let opsd = site(&source, database);
        back_up(&opsd);
        let target = unique("lacks");
        let to = here.socket_url(SUPERUSER, &target);
        let file = "could not open synonym file";
        let verify = opsd.run(&["restore", "--verify", "--json"]);
        let restore = opsd.run(&["restore", "db", "--to", &to, "--create", "--json"]);
        let restore = restore.expect_failure(1, &[file]);
        let verify = verify.expect_code(0);
        let judged = result(&verify);
        assert_eq!(judged["verdict"], "unproven", "{verify}");
        assert_eq!(judged["databases"][0]["differences"], json!([]), "{verify}");
        assert!(verify.stdout.contains(file), "{verify}");
        if needs_rows {
            // The table itself cannot be made here.
            assert!(restore.json()["lost"].to_string().contains("docs"), "{restore}");
        } else {
            assert_eq!(judged["databases"][0]["tables_proven"], 1, "{verify}");
            let failed = restore.json()["failed"].to_string();
            assert!(failed.contains("INDEX found"), "{restore}");
            assert_eq!(here.psql(&target, "SELECT count(*), sum(id) FROM docs"), "30|465");
        }
        here.drop_database(&target);
    }
}

/// A role that may not choose the server's language gets what it says in another one. The system's own
/// PostgreSQL speaks it, where it is installed with its translations.
#[test]
fn a_server_in_another_language_is_not_understood_and_not_repeated() {
    let made = tempfile::tempdir().unwrap();
    std::fs::set_permissions(made.path(), PermissionsExt::from_mode(0o755)).unwrap();
    crate::locales::locales(made.path(), &["de_DE.UTF-8"]);
    let system = PathBuf::from("/usr/lib/postgresql/15/bin");
    let bin = system.join("postgres").exists().then_some(system);
    let env = [("LOCPATH", made.path().to_str().unwrap())];
    let options = Options { env: &env, bin_dir: bin, ..Default::default() };
    let server = Server::start(15, &options);
    server.psql("postgres", "CREATE ROLE maker LOGIN CREATEDB");
    server.psql("postgres", "CREATE DATABASE app OWNER maker TEMPLATE template0");
    server.psql("app", &format!("SET ROLE maker; {TALKERS}"));
    let mut opsd = site(&server, "app");
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(15).display()));
    back_up(&opsd);
    let speaks = made.path().join("de_DE.UTF-8").exists();
    if speaks {
        server.psql("postgres", "ALTER ROLE maker SET lc_messages = 'de_DE.UTF-8'");
    }
    let german = "SET lc_messages = 'de_DE.UTF-8'; SELECT 1 / 0";
    let is_german = speaks && server.try_psql("postgres", german).unwrap_err().contains("durch Null");
    let said = if is_german { "in another language than English" } else { "raised by a function" };
    let to = server.socket_url("maker", "again");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert_kept(&opsd, run, &server, "again", said);
    // A superuser's pg_restore is answered in English, whatever the server's language.
    if speaks {
        server.psql("postgres", "ALTER DATABASE app SET lc_messages = 'de_DE.UTF-8'");
        server.psql(
            "postgres",
            &format!("ALTER ROLE {} SET lc_messages = 'de_DE.UTF-8'", identifier(SUPERUSER)),
        );
    }
    let to = server.socket_url(SUPERUSER, "more");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert_kept(&opsd, run, &server, "more", "ERROR:  raised by a function of the database");
}

/// What is made of functions that name objects without their schema, as they do where nobody restores them.
const UNQUALIFIED: &str = "CREATE TABLE users (id integer); INSERT INTO users VALUES (1), (2);
    CREATE TYPE mood AS ENUM ('c4nary');
    CREATE FUNCTION counted() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM users); END';
    CREATE FUNCTION felt() RETURNS text LANGUAGE sql SET check_function_bodies = off AS $$ SELECT 'c4nary'::mood::text $$;
    CREATE MATERIALIZED VIEW numbers AS SELECT public.counted();
    CREATE MATERIALIZED VIEW moods AS SELECT public.felt();";

#[test]
fn a_name_that_search_path_hides_is_shown_with_what_to_do() {
    let server = default_server();
    let database = server.fresh_database("hidden");
    server.psql(&database, UNQUALIFIED);
    let opsd = site(server, &database);
    let id = back_up(&opsd);
    let target = unique("hidden");
    let to = server.socket_url(SUPERUSER, &target);
    let run = opsd.run(&["restore", "db", "--to", &to, "--create", "--backup", &id, "--json"]);
    let run = run.expect_failure(1, &["2 statements failed"]);
    no_canary(&opsd, &run);
    let failed = run.json()["failed"].to_string();
    assert!(failed.contains("type \\\"mood\\\" does not exist"), "{run}");
    assert_eq!(failed.matches("search_path is empty").count(), 2, "{run}");
    for name in [&database, &target] {
        server.drop_database(name);
    }
}

/// An index that cannot be built is one difference; what the rows are is another question, and answered.
#[test]
fn an_index_that_fails_leaves_the_tables_proven() {
    let server = default_server();
    let database = server.fresh_database("failing");
    server.psql(
        &database,
        "CREATE TABLE words AS SELECT i AS id, 'c4nary ' || i AS note FROM generate_series(1, 20) i;
         CREATE TABLE other AS SELECT generate_series(1, 30) AS id;
         CREATE FUNCTION f(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1';
         CREATE INDEX odd ON words (f(id));
         CREATE OR REPLACE FUNCTION f(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 0'",
    );
    let opsd = site(server, &database);
    back_up(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]);
    let run = run.expect_failure(3, &["INDEX odd: ", "division by zero"]);
    no_canary(&opsd, &run);
    let result = result(&run);
    assert_eq!(result["verdict"], "differs", "{run}");
    assert_eq!(result["databases"][0]["tables_proven"], 2, "{run}");
    assert_eq!(result["databases"][0]["rows"], 50, "{run}");
    server.drop_database(&database);
}

/// The log goes with its server, so what it says of an end is told.
#[test]
fn what_the_scratch_server_logged_is_told_with_a_failure() {
    let server = default_server();
    let database = server.fresh_database("ended");
    server.psql(
        &database,
        "CREATE TABLE words AS SELECT i AS id, 'c4nary ' || i AS note FROM generate_series(1, 20) i;
         CREATE FUNCTION f() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         CREATE MATERIALIZED VIEW ending AS SELECT public.f() AS f;
         CREATE OR REPLACE FUNCTION f() RETURNS boolean LANGUAGE plpgsql AS
           $$ BEGIN RAISE LOG 'there is %', (SELECT min(note) FROM public.words);
                    RETURN pg_terminate_backend(pg_backend_pid()); END $$",
    );
    let opsd = site(server, &database);
    back_up(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(1);
    no_canary(&opsd, &run);
    let line = "the scratch server's log: FATAL:  terminating connection due to administrator command";
    assert_eq!(result(&run)["warnings"], json!([line]), "{run}");
    assert!(!run.stderr.contains("; the server's log has them"), "{run}");
    server.drop_database(&database);
}

/// A standby takes no restore, and says so before anything else does.
#[test]
fn a_target_that_is_a_standby_is_refused_by_name() {
    let primary = Server::start(default_major(), &Options::default());
    primary.create_database("app");
    primary.psql("app", "CREATE TABLE t (i integer)");
    let opsd = site(&primary, "app");
    back_up(&opsd);
    let standby = primary.standby(&[]);
    let to = standby.socket_url(SUPERUSER, "again");
    let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
    run.expect_failure(1, &["is a standby", "read-only", "primary"]);
}
