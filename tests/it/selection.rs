//! A part of a set: tables, schemas, sections; and where it goes.

use std::process::{Command, Stdio};

use crate::security::executable;
use crate::support::compare::{assert_same, assert_same_content, db};
use crate::support::opsd::{Opsd, Run, finish_child, quoted};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, default_server, expect_success, for_some_majors,
    unique,
};
use crate::support::processes::until;
use crate::support::sets::back_up;

/// Tables that refer to each other across schemas, with all that makes a table one.
const SHOP: &str = "CREATE SCHEMA shop; CREATE SCHEMA audit;
    CREATE TYPE shop.state AS ENUM ('new', 'paid');
    CREATE FUNCTION shop.touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TABLE shop.accounts (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
    CREATE TABLE shop.orders (id serial PRIMARY KEY, account integer REFERENCES shop.accounts, state shop.state, note text);
    CREATE INDEX orders_account ON shop.orders (account);
    CREATE TRIGGER touched BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touched();
    COMMENT ON TABLE shop.orders IS 'what was ordered'; GRANT SELECT ON shop.orders TO PUBLIC;
    CREATE TABLE audit.log (at integer, what text) PARTITION BY RANGE (at);
    CREATE TABLE audit.log_1 PARTITION OF audit.log FOR VALUES FROM (0) TO (500);
    CREATE TABLE audit.log_2 PARTITION OF audit.log FOR VALUES FROM (500) TO (2000);
    CREATE INDEX log_what ON audit.log (what);
    CREATE VIEW shop.paid AS SELECT * FROM shop.orders WHERE state = 'paid';
    CREATE MATERIALIZED VIEW shop.totals AS SELECT account, count(*) AS n FROM shop.paid GROUP BY account;
    INSERT INTO shop.accounts (name) SELECT 'account ' || i FROM generate_series(1, 100) i;
    INSERT INTO shop.orders (account, state, note)
        SELECT 1 + i % 100, CASE WHEN i % 3 = 0 THEN 'paid' ELSE 'new' END::shop.state, repeat('x', 40) || i
          FROM generate_series(1, 3000) i;
    INSERT INTO audit.log SELECT i, 'event ' || i FROM generate_series(1, 1500) i;
    REFRESH MATERIALIZED VIEW shop.totals;
    SELECT lo_from_bytea(4711, 'a large object');";

/// Everything that belongs to a table, as the catalogue tells it.
const BELONGINGS: &str = "SELECT string_agg(what, '; ' ORDER BY what) FROM (
        SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'shop.orders'::regclass AND contype <> 'n'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'shop' AND tablename = 'orders'
        UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'shop.orders'::regclass AND NOT tgisinternal
        UNION ALL SELECT obj_description('shop.orders'::regclass) || relacl::text FROM pg_class WHERE oid = 'shop.orders'::regclass
        UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'shop.orders'::regclass
        UNION ALL SELECT last_value::text FROM shop.orders_id_seq
    ) AS belongings (what)";
const ROWS: &str = "SELECT count(*) || md5(string_agg(t::text, ',' ORDER BY t::text)) FROM shop.orders t";
const TABLES: &str =
    "SELECT coalesce(string_agg(n.nspname || '.' || c.relname, ' ' ORDER BY n.nspname, c.relname), '')
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname IN ('shop', 'audit')";

/// How many streams a set has: all in one archive, or a stream for each large table and one for the rest.
fn sites(server: &Server) -> Vec<(Opsd, String)> {
    [1, 4].map(|streams| site(server, streams)).into()
}

fn site(server: &Server, streams: usize) -> (Opsd, String) {
    let database = server.fresh_database("part");
    server.psql(&database, SHOP);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("streams", streams.to_string()).set("large_table", quoted("64KiB"));
    back_up(&opsd);
    (opsd, database)
}

fn restored(opsd: &Opsd, arguments: &[&str]) -> (String, Run) {
    let name = unique("rescue");
    let to = ["restore", "db", "--to", "main", "--as", &name, "--json"];
    let run = opsd.ok(&[&to[..], arguments].concat());
    assert_eq!(run.json()["restored_as"], name.as_str(), "{run}");
    (name, run)
}

fn warnings(run: &Run) -> String {
    run.json()["warnings"].to_string()
}

#[test]
fn one_table_comes_back_beside_the_live_database_with_all_that_makes_it_one() {
    for_some_majors(|server| {
        let all_ways = if server.major == default_major() { sites(server) } else { vec![site(server, 4)] };
        for (opsd, database) in all_ways {
            let (name, run) = restored(&opsd, &["--table", "shop.orders"]);
            assert_eq!(server.psql(&name, TABLES), "shop.orders");
            assert_eq!(server.psql(&name, ROWS), server.psql(&database, ROWS));
            let of_source = server.psql(&database, BELONGINGS);
            let key = "FOREIGN KEY (account) REFERENCES shop.accounts(id); ";
            assert!(of_source.contains(key), "{of_source}");
            assert_eq!(server.psql(&name, BELONGINGS), of_source.replace(key, ""));
            assert!(warnings(&run).contains("fk constraint shop.orders orders_account_fkey"), "{run}");
            assert_eq!(server.psql(&name, "SELECT count(*) FROM pg_largeobject_metadata"), "0");
            // With what the key refers to, nothing is missing.
            let (both, run) = restored(&opsd, &["--table", "shop.orders", "--table", "acc*ts"]);
            assert_eq!(server.psql(&both, BELONGINGS), of_source);
            assert_eq!(warnings(&run), "[]");
            server.psql(&both, "INSERT INTO shop.accounts (name) VALUES ('next')");
            assert_eq!(server.psql(&both, "SELECT max(id) FROM shop.accounts"), "101");
            [name, both, database].iter().for_each(|name| server.drop_database(name));
        }
    });
}

#[test]
fn a_schema_comes_alone_and_what_is_excluded_stays_away_with_what_needs_it() {
    let server = default_server();
    for (opsd, database) in sites(server) {
        let (audit, run) = restored(&opsd, &["--schema", "audit"]);
        assert_eq!(server.psql(&audit, TABLES), "audit.log audit.log_1 audit.log_2");
        let rows = "SELECT count(*) || md5(string_agg(what, ',' ORDER BY at)) FROM audit.log";
        assert_eq!(server.psql(&audit, rows), server.psql(&database, rows));
        assert_eq!(warnings(&run), "[]");

        let (rest, run) = restored(&opsd, &["--exclude", "shop.orders"]);
        assert_eq!(server.psql(&rest, TABLES), "audit.log audit.log_1 audit.log_2 shop.accounts");
        for what in ["view shop.paid", "materialized view shop.totals"] {
            assert!(warnings(&run).contains(what), "{run}");
        }
        assert_eq!(server.psql(&rest, "SELECT count(*) FROM pg_largeobject_metadata"), "1");
        // A view without the rows that it shows would show something else.
        let (view, run) = restored(&opsd, &["--table", "totals"]);
        assert_eq!(server.psql(&view, "SELECT relispopulated FROM pg_class WHERE relname = 'totals'"), "f");
        assert!(warnings(&run).contains("table shop.orders"), "{run}");
        let (parts, _) = restored(&opsd, &["--table", "audit.log", "--exclude", "log_2"]);
        assert_eq!(server.psql(&parts, TABLES), "audit.log audit.log_1");
        assert_eq!(server.psql(&parts, "SELECT count(*) FROM audit.log"), "499");
        [audit, rest, view, parts, database].iter().for_each(|name| server.drop_database(name));
    }
}

#[test]
fn definitions_come_without_rows_and_nothing_goes_into_a_database_in_use() {
    let server = default_server();
    for (opsd, database) in sites(server) {
        let (shape, _) = restored(&opsd, &["--section", "pre-data", "--section", "post-data"]);
        // The first of them is the sequence's value, which is a row's.
        let definitions = |name: &str| server.psql(name, BELONGINGS).split_once("; ").unwrap().1.to_owned();
        assert_eq!(definitions(&shape), definitions(&database));
        assert_eq!(server.psql(&shape, "SELECT count(*) FROM shop.orders"), "0");
        assert_eq!(server.psql(&shape, "SELECT count(*) FROM pg_largeobject_metadata"), "0");
        let (rows, _) = restored(&opsd, &["--section", "pre-data", "--section", "data"]);
        assert_eq!(server.psql(&rows, ROWS), server.psql(&database, ROWS));
        assert_eq!(server.psql(&rows, "SELECT count(*) FROM pg_indexes WHERE schemaname = 'shop'"), "0");
        for section in ["data", "post-data"] {
            opsd.run(&["restore", "db", "--to", "main", "--as", &shape, "--section", section])
                .expect_failure(2, &["without section pre-data", "--section pre-data", "RESTORE.md"]);
        }
        [shape, rows, database].iter().for_each(|name| server.drop_database(name));
    }
}

#[test]
fn names_that_mean_nothing_and_parts_that_would_replace_a_whole_are_refused() {
    let server = default_server();
    let (opsd, database) = site(server, 4);
    let run = |arguments: &[&str]| {
        opsd.run(&[&["restore", "db", "--to", "main", "--as", "never_made"], arguments].concat())
    };
    run(&["--table", "shop.Orders"])
        .expect_failure(2, &["--table \"shop.Orders\"", "nothing of that name", "hint: "]);
    run(&["--schema", "shops"]).expect_failure(2, &["--schema \"shops\""]);
    run(&["--exclude", "nothing*"]).expect_failure(2, &["--exclude \"nothing*\""]);
    run(&["--section", "pre"]).expect_failure(2, &["pre-data, data or post-data"]);
    run(&["--table", "orders", "--replace"]).expect_failure(2, &["cannot be used with"]);
    opsd.run(&["restore", "--verify", "--table", "orders"]).expect_failure(2, &["cannot be used with"]);
    assert!(!server.databases().contains(&"never_made".to_owned()));
    server.drop_database(&database);
}

/// A URL of the configuration once meant a server alone, and the live database was replaced instead of the one that it
/// names.
#[test]
fn the_database_that_a_servers_url_names_is_the_target() {
    let server = default_server();
    let [live, staging] = ["live", "staging"].map(|name| server.fresh_database(name));
    server.psql(&live, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    server.psql(&staging, "CREATE TABLE old (id integer)");
    let mut opsd = Opsd::new(server, &[&live]);
    opsd.more = format!("[postgres.staging]\nurl = {}\n", quoted(&server.socket_url(SUPERUSER, &staging)));
    back_up(&opsd);
    server.psql(&live, "INSERT INTO a VALUES (10)");
    let replace = ["restore", "db", "--to", "staging", "--replace", "--yes"];
    let run = opsd.ok(&[&replace[..], &["--json"]].concat());
    assert_eq!(run.json()["restored_as"], staging.as_str(), "{run}");
    let count = |database: &str| server.psql(database, "SELECT count(*) FROM a");
    assert_eq!((count(&staging).as_str(), count(&live).as_str()), ("9", "10"));
    let old = run.json()["old_database"].as_str().unwrap().to_owned();
    // What contradicts itself is refused.
    opsd.run(&[&replace[..], &["--database", &live]].concat())
        .expect_failure(2, &["names database", &staging, "--as NAME"]);
    let url = server.socket_url(SUPERUSER, &staging);
    opsd.run(&["restore", "db", "--to", &url, "--as", &live, "--replace", "--yes"])
        .expect_failure(2, &["--to names database", &staging]);
    // One connects to `postgres` in order to make others, and PGDATABASE is no word about a restore.
    let side = unique("side");
    opsd.env("PGDATABASE", &staging);
    for url in [server.socket_url(SUPERUSER, "postgres"), server.socket_url(SUPERUSER, "")] {
        let run = opsd.ok(&["restore", "db", "--to", &url, "--as", &side, "--json"]);
        assert_eq!(run.json()["restored_as"], side.as_str(), "{run}");
        opsd.run(&["restore", "db", "--to", &url])
            .expect_failure(1, &[&format!("database {live:?} is not empty")]);
        server.drop_database(&side);
    }
    let run = opsd.ok(&[&replace[..], &["--as", &live, "--json"]].concat());
    assert_eq!((run.json()["restored_as"].as_str(), count(&live).as_str()), (Some(live.as_str()), "9"));
    let older = run.json()["old_database"].as_str().unwrap().to_owned();
    [live, staging, old, older].iter().for_each(|name| server.drop_database(name));
}

/// Runs opsd at a terminal, where somebody types this.
fn at_a_terminal(opsd: &Opsd, arguments: &[&str], typed: &str) -> Run {
    let command = opsd.command(arguments);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_clear().env("TERM", "xterm");
    terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = terminal.spawn().expect("start script");
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), typed.as_bytes()).unwrap();
    finish_child(child, line)
}

#[test]
fn a_database_is_replaced_once_its_name_was_typed() {
    let server = default_server();
    let database = server.fresh_database("asked");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = Opsd::new(server, &[&database]);
    let id = back_up(&opsd);
    server.psql(&database, "INSERT INTO a VALUES (10)");
    let replace = ["restore", "db", "--to", "main", "--replace"];
    let rows = || server.psql(&database, "SELECT count(*) FROM a");
    // Nobody is there to be asked.
    opsd.run(&replace).expect_failure(2, &["would be replaced", &database, "--yes"]);
    assert_eq!(rows(), "10");
    for wrong in ["\n", "yes\n", "asked\n"] {
        let run = at_a_terminal(&opsd, &replace, wrong).expect_code(2);
        assert!(run.stdout.contains("that is not its name"), "{run}");
    }
    assert_eq!(rows(), "10");
    let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'");
    until("nobody is connected", || server.psql("postgres", &sessions) == "0");
    let run = at_a_terminal(&opsd, &replace, &format!("{database}\n")).expect_code(0);
    let said = run.stdout.replace("\r\n", "\n");
    for expected in [
        &format!("this replaces database {database:?}"),
        "1 table, view or sequence, made 20",
        "0 sessions now",
        &id,
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(rows(), "9");
    let old =
        server.databases().into_iter().find(|name| name.starts_with(&format!("{database}_before_"))).unwrap();
    [database, old].iter().for_each(|name| server.drop_database(name));
}

/// The page's commands under a heading, as somebody would paste them; in Compose after the block that is for it, with
/// a client that runs what the container would.
fn pasted(opsd: &Opsd, server: &Server, live: &str, heading: &str, in_compose: bool) {
    let page = std::fs::read_to_string("docs/one-table.md").unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect(heading);
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mut script = blocks.collect::<String>().replace("-d app ", &format!("-d {live} "));
    let docker = opsd.path("docker");
    if in_compose {
        let functions = page.split("```sh compose\n").nth(1).unwrap().split("```").next().unwrap();
        script.insert_str(0, functions);
        let words = "#!/bin/sh\n[ \"$1 $2 $3\" = 'compose exec -T' ] || exit 9\nshift 4\nexec \"$@\"\n";
        std::fs::create_dir_all(&docker).unwrap();
        executable(&docker.join("docker"), words);
    }
    let mut shell = server.client("psql");
    let environment: Vec<_> =
        shell.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
    shell = Command::new("/bin/bash");
    shell.args(["-e", "-o", "pipefail", "-c", &script]).env_clear();
    shell.envs(environment.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let own = std::path::Path::new(env!("CARGO_BIN_EXE_opsd")).parent().unwrap();
    let bin = bin_dir(server.major);
    shell.env("PATH", format!("{}:{}:{}:/usr/bin:/bin", docker.display(), own.display(), bin.display()));
    let config = opsd.command(&["restore"]);
    let config = config.get_envs().find(|(name, _)| *name == "OPSD_CONFIG").unwrap().1.unwrap();
    shell.env("OPSD_CONFIG", config).current_dir(opsd.path("")).stdin(Stdio::null());
    expect_success(&mut shell);
}

#[test]
fn the_page_brings_one_table_back_whatever_happened_to_it() {
    // `rescue` and `shape` are names that another test may not have on this server.
    let server = Server::start(default_major(), &Options::default());
    let live = server.fresh_database("live");
    server.psql(
        &live,
        "CREATE TABLE accounts (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text);
         CREATE INDEX accounts_name ON accounts (name); GRANT SELECT ON accounts TO PUBLIC;
         CREATE TABLE orders (id serial PRIMARY KEY, account integer REFERENCES accounts);
         INSERT INTO accounts (name) SELECT 'account ' || i FROM generate_series(1, 100) i;
         INSERT INTO orders (account) SELECT i FROM generate_series(1, 20) i",
    );
    let mut opsd = Opsd::new(&server, &[&live]);
    opsd.more = format!("[postgres.admin]\nurl = {}\n", quoted(&server.socket_url(SUPERUSER, "")));
    back_up(&opsd);
    let source = server.fresh_database("source");
    server.psql("postgres", &format!("DROP DATABASE {source}"));
    server.psql("postgres", &format!("CREATE DATABASE {source} TEMPLATE {live}"));
    let same = || {
        assert_same(db(&server, &live), db(&server, &source));
        assert_same_content(db(&server, &live), db(&server, &source));
    };
    for (accident, heading, in_compose) in [
        ("DELETE FROM accounts WHERE id > 50", "2a.", false),
        ("UPDATE accounts SET name = 'oops' WHERE id < 10", "2b.", true),
        ("DROP TABLE accounts CASCADE", "2c.", true),
    ] {
        server.psql(&live, accident);
        for step in ["1.", heading, "3."] {
            pasted(&opsd, &server, &live, step, in_compose);
        }
        same();
    }
}
