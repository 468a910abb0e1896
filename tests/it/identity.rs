//! What belongs to a database rather than to what is in it: `--replace` keeps it, or says what it does not.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::opsd::{Opsd, finish_child};
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, for_each_major, for_some_majors, identifier, literal,
};
use crate::support::processes::until;
use crate::support::sets::back_up;

/// What becomes of a column, or of a catalog that names a database, when a database is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    /// The new database has what the old one had.
    Kept,
    /// The new one has what the set had, and a difference is said.
    OfTheSet,
    /// It stays with the old database, and that is said.
    Said,
    /// PostgreSQL finds it out, or counts it anew: nobody chose it.
    Found,
    /// What is going on at the moment; it ends with the sessions of the old database, or keeps it from being renamed.
    Passing,
}
use Judged::{Found, Kept, OfTheSet, Passing, Said};

/// Each column of what describes a database, in any major.
const COLUMNS: &[(&str, &[(&str, Judged)])] = &[
    (
        "pg_database",
        &[
            ("oid", Found),
            ("datname", Kept),
            ("datdba", Kept),
            ("encoding", OfTheSet),
            ("datlocprovider", OfTheSet),
            ("datistemplate", Kept),
            ("datallowconn", Kept),
            ("dathasloginevt", Found),
            ("datconnlimit", Kept),
            ("datlastsysoid", Found),
            ("datfrozenxid", Found),
            ("datminmxid", Found),
            ("dattablespace", Kept),
            ("datcollate", OfTheSet),
            ("datctype", OfTheSet),
            ("daticulocale", OfTheSet),
            ("datlocale", OfTheSet),
            ("daticurules", OfTheSet),
            ("datcollversion", Found),
            ("datacl", Kept),
        ],
    ),
    ("pg_db_role_setting", &[("setdatabase", Kept), ("setrole", Kept), ("setconfig", Kept)]),
    ("pg_shdescription", &[("objoid", Kept), ("classoid", Kept), ("description", Kept)]),
    ("pg_shseclabel", &[("objoid", Kept), ("classoid", Kept), ("provider", Kept), ("label", Kept)]),
    (
        "pg_shdepend",
        &[
            ("dbid", Found),
            ("classid", Found),
            ("objid", Found),
            ("objsubid", Found),
            ("refclassid", Found),
            ("refobjid", Found),
            ("deptype", Found),
        ],
    ),
    // A subscription is one of the set's definitions, disabled as pg_dump writes it; the old database's is disabled.
    (
        "pg_subscription",
        &[
            ("oid", Found),
            ("subdbid", Said),
            ("subskiplsn", Said),
            ("subname", OfTheSet),
            ("subowner", OfTheSet),
            ("subenabled", Said),
            ("subbinary", OfTheSet),
            ("substream", OfTheSet),
            ("subtwophasestate", OfTheSet),
            ("subdisableonerr", OfTheSet),
            ("subpasswordrequired", OfTheSet),
            ("subrunasowner", OfTheSet),
            ("subfailover", OfTheSet),
            ("subconninfo", OfTheSet),
            ("subslotname", OfTheSet),
            ("subsynccommit", OfTheSet),
            ("subpublications", OfTheSet),
            ("suborigin", OfTheSet),
        ],
    ),
    // A logical slot reads one database's changes, from a place in the log that the new one was not there at.
    (
        "pg_replication_slots",
        &[
            ("slot_name", Said),
            ("plugin", Said),
            ("slot_type", Said),
            ("datoid", Said),
            ("database", Said),
            ("temporary", Said),
            ("active", Passing),
            ("active_pid", Passing),
            ("xmin", Said),
            ("catalog_xmin", Said),
            ("restart_lsn", Said),
            ("confirmed_flush_lsn", Said),
            ("wal_status", Said),
            ("safe_wal_size", Said),
            ("two_phase", Said),
            ("two_phase_at", Said),
            ("inactive_since", Said),
            ("conflicting", Said),
            ("invalidation_reason", Said),
            ("failover", Said),
            ("synced", Said),
        ],
    ),
];

/// Everything in the catalog that names a database, in any major; a file of the server's (`pg_hba_file_rules`)
/// goes on naming the same.
const CATALOGS: &[(&str, Judged)] = &[
    ("pg_database", Kept),
    ("pg_db_role_setting", Kept),
    ("pg_subscription", Said),
    ("pg_replication_slots", Said),
    ("pg_shdepend", Found),
    ("pg_hba_file_rules", Kept),
    ("pg_locks", Passing),
    ("pg_prepared_xacts", Passing),
    ("pg_stat_activity", Passing),
    ("pg_stat_database", Found),
    ("pg_stat_database_conflicts", Found),
    ("pg_stat_progress_analyze", Passing),
    ("pg_stat_progress_basebackup", Passing),
    ("pg_stat_progress_cluster", Passing),
    ("pg_stat_progress_copy", Passing),
    ("pg_stat_progress_create_index", Passing),
    ("pg_stat_progress_vacuum", Passing),
];

#[test]
fn every_column_that_describes_or_names_a_database_has_been_judged() {
    for_each_major(|server| {
        for (catalog, judged) in COLUMNS {
            let sql = format!(
                "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_catalog.{catalog}'::regclass
                    AND attnum > 0 AND NOT attisdropped"
            );
            for column in server.psql("postgres", &sql).lines() {
                assert!(
                    judged.iter().any(|(known, _)| *known == column),
                    "nobody has judged {catalog}.{column} of PostgreSQL {}",
                    server.major
                );
            }
        }
        // By what columns are called, and by what the server itself says that they point to.
        let references = match server.major {
            ..14 => "",
            _ => {
                "UNION SELECT fktable::regclass::text FROM pg_get_catalog_foreign_keys() WHERE pktable = 'pg_database'::regclass"
            }
        };
        let sql = format!(
            "SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
              WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0
                AND a.attname IN ('database', 'datid', 'datname', 'datoid', 'dbid', 'setdatabase', 'subdbid')
             {references}"
        );
        for catalog in server.psql("postgres", &sql).lines() {
            assert!(
                CATALOGS.iter().any(|(known, _)| *known == catalog),
                "nobody has judged {catalog} of PostgreSQL {}",
                server.major
            );
        }
        // What belongs to any object of the cluster, by class and object.
        let sql = "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
                    WHERE c.relisshared AND c.relkind = 'r' AND a.attname = 'classoid' ORDER BY 1";
        assert_eq!(server.psql("postgres", sql), "pg_shdescription\npg_shseclabel");
    });
}

/// The columns of `app`'s row that are to be kept, privileges sorted.
fn kept(server: &Server) -> BTreeMap<String, String> {
    let (_, columns) = COLUMNS[0];
    let is_there =
        server.psql("postgres", "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_database'::regclass");
    let column = |column: &str| {
        let value = match column {
            "datacl" => "ARRAY(SELECT unnest(datacl)::text ORDER BY 1)",
            other => other,
        };
        server.psql("postgres", &format!("SELECT {value} FROM pg_database WHERE datname = 'app'"))
    };
    let mut found: BTreeMap<String, String> = columns
        .iter()
        .filter(|(name, judged)| *judged == Kept && is_there.lines().any(|there| there == *name))
        .map(|(name, _)| ((*name).to_owned(), column(name)))
        .collect();
    let others = [
        (
            "settings",
            "SELECT setrole::regrole, setconfig FROM pg_db_role_setting
              WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = 'app') ORDER BY 1",
        ),
        ("comment", "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'app'"),
    ];
    found.extend(others.map(|(name, sql)| (name.to_owned(), server.psql("postgres", sql))));
    found
}

fn site(server: &Server) -> Opsd {
    let mut opsd = Opsd::new(server, &["app"]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Rows that take three seconds to go in.
const SLOW: &str = "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN true; END';
    CREATE TABLE slow (id integer CHECK (public.slow())); INSERT INTO slow SELECT generate_series(1, 150);";

#[test]
fn a_replaced_database_keeps_its_identity_and_what_cannot_be_kept_is_said() {
    for_some_majors(|shared| {
        let server = &Server::start(shared.major, &Options::default());
        let place = server.subdirectory("space");
        server.psql(
            "postgres",
            &format!("CREATE TABLESPACE space LOCATION {}", literal(place.to_str().unwrap())),
        );
        server.psql("postgres", "CREATE ROLE keeper; CREATE ROLE clerk LOGIN; CREATE ROLE stranger LOGIN");
        server.psql("postgres", "CREATE DATABASE app OWNER keeper TEMPLATE template0 TABLESPACE space");
        server.psql(
            "postgres",
            "ALTER DATABASE app CONNECTION LIMIT 7; COMMENT ON DATABASE app IS 'ours';
             REVOKE ALL ON DATABASE app FROM PUBLIC; REVOKE ALL ON DATABASE app FROM keeper;
             GRANT CONNECT ON DATABASE app TO clerk WITH GRANT OPTION; GRANT TEMPORARY ON DATABASE app TO keeper;
             ALTER DATABASE app SET work_mem = '5MB'; ALTER ROLE clerk IN DATABASE app SET search_path = a, \"b c\"",
        );
        server.create_database("publisher");
        let table = "CREATE TABLE fed (id integer PRIMARY KEY);";
        server.psql("publisher", &format!("{table} CREATE PUBLICATION feed FOR TABLE fed"));
        server.psql("publisher", "SELECT pg_create_logical_replication_slot('feeds', 'pgoutput')");
        server.psql("app", &format!("{table} {SLOW}"));
        let connection = format!(
            "host={} port={} user={SUPERUSER} dbname=publisher",
            server.socket_dir().display(),
            server.port
        );
        server.psql(
            "app",
            &format!(
                "CREATE SUBSCRIPTION \"it's fed\" CONNECTION {} PUBLICATION feed
                   WITH (create_slot = false, slot_name = 'feeds', copy_data = false)",
                literal(&connection)
            ),
        );
        server.psql("app", "SELECT pg_create_logical_replication_slot('decoder', 'pgoutput')");
        let opsd = site(server);
        back_up(&opsd);
        server.psql("publisher", "INSERT INTO fed SELECT generate_series(1, 5)");
        until("rows are replicated", || server.psql("app", "SELECT count(*) FROM fed") == "5");
        server.psql("postgres", "ALTER DATABASE app IS_TEMPLATE true");
        let before = kept(server);

        let to = server.socket_url(SUPERUSER, "app");
        let child =
            opsd.command(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]).spawn().unwrap();
        let loads = "SELECT datname FROM pg_stat_activity WHERE datname LIKE 'app\\_restoring%' AND query LIKE 'COPY %'";
        until("rows go in", || !server.psql("postgres", loads).is_empty());
        let beside = server.psql("postgres", loads);
        let visit = |role: &str, database: &str| {
            let mut psql = server.client("psql");
            psql.args(["-X", "-c", "SELECT 1", &server.socket_url(role, database)]);
            String::from_utf8_lossy(&psql.output().unwrap().stderr).into_owned()
        };
        let refused = visit("stranger", beside.lines().next().unwrap());
        let run = finish_child(child, "restore --replace".into()).expect_code(0);
        assert!(refused.contains("permission denied for database"), "{}: {refused}", server.major);

        assert_eq!(kept(server), before, "PostgreSQL {}", server.major);
        assert_eq!(visit("clerk", "app"), "");
        assert!(visit("stranger", "app").contains("permission denied for database"));
        let old = run.json()["old_database"].as_str().unwrap().to_owned();
        let warnings = run.json()["warnings"].to_string();
        for said in ["logical slot \\\"decoder\\\"", "subscription \\\"it's fed\\\" is disabled", &old] {
            assert!(warnings.contains(said), "{said}: {run}");
        }
        // Nothing more goes where nobody looks.
        let enabled = "SELECT d.datname, s.subname, s.subenabled FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
                        ORDER BY d.datname";
        assert_eq!(server.psql("postgres", enabled), format!("app|it's fed|f\n{old}|it's fed|f"));
        until("the slot is let go", || {
            server.psql("postgres", "SELECT active FROM pg_replication_slots WHERE slot_name = 'feeds'")
                == "f"
        });
        assert_eq!(server.psql(&old, "SELECT count(*) FROM fed"), "5");
        assert_eq!(server.psql("app", "SELECT count(*) FROM fed"), "0");
    });
}

#[test]
fn a_subscription_goes_on_where_the_names_were_not_swapped() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.create_database("publisher");
    let table = "CREATE TABLE fed (id integer PRIMARY KEY);";
    server.psql("publisher", &format!("{table} CREATE PUBLICATION feed FOR TABLE fed"));
    server.psql("publisher", "SELECT pg_create_logical_replication_slot('feeds', 'pgoutput')");
    server.psql("app", table);
    let opsd = site(server);
    back_up(&opsd);
    let connection = format!(
        "host={} port={} user={SUPERUSER} dbname=publisher",
        server.socket_dir().display(),
        server.port
    );
    server.psql(
        "app",
        &format!(
            "CREATE SUBSCRIPTION fed CONNECTION {} PUBLICATION feed
               WITH (create_slot = false, slot_name = 'feeds', copy_data = false)",
            literal(&connection)
        ),
    );
    let mut locker = crate::traps::Psql::new(server, "postgres");
    locker.send_within("BEGIN; COMMENT ON DATABASE app IS 'held';");
    let to = server.socket_url(SUPERUSER, "app");
    let child = opsd.command(&["restore", "db", "--to", &to, "--replace", "--yes"]).spawn().unwrap();
    until("the swap waits", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%RENAME TO%'
                      AND pid <> pg_backend_pid()";
        server.psql("postgres", sql) == "1"
    });
    assert_eq!(server.psql("postgres", "SELECT subenabled FROM pg_subscription"), "f");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    let run = finish_child(child, "restore --replace".into());
    locker.end("COMMIT;");
    let run = run.expect_failure(130, &["did not take the place of \"app\", which is as it was"]);
    assert!(run.stderr.contains("GRANT CONNECT"), "{run}");
    assert_eq!(server.psql("postgres", "SELECT subenabled FROM pg_subscription"), "t");
    server.psql("publisher", "INSERT INTO fed SELECT generate_series(1, 5)");
    until("rows are replicated", || server.psql("app", "SELECT count(*) FROM fed") == "5");
}

#[test]
fn a_security_label_that_no_provider_takes_does_not_swap() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = site(server);
    back_up(&opsd);
    // No provider can be had for these servers; the catalog is what a provider would have written.
    server.psql(
        "postgres",
        "INSERT INTO pg_shseclabel SELECT oid, 'pg_database'::regclass, 'absent', 'secret' FROM pg_database WHERE datname = 'app'",
    );
    server.psql("app", "DELETE FROM a");
    let to = server.socket_url(SUPERUSER, "app");
    let run = opsd.run(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]).expect_code(1);
    assert!(run.json()["failed"].to_string().contains("security label of \\\"absent\\\""), "{run}");
    assert_eq!(run.json()["old_database"], json!(null), "{run}");
    assert_eq!(server.psql("app", "SELECT count(*) FROM a"), "0");
    let made = run.json()["restored_as"].as_str().unwrap().to_owned();
    assert_eq!(server.psql(&made, "SELECT count(*) FROM a"), "9");
    // Nobody else was let in on the way.
    let acl = "SELECT has_database_privilege('pg_monitor', current_database(), 'CONNECT')";
    assert_eq!(server.psql(&made, acl), "f");
}

/// A new database is as pg_dump -C would make it, and closed until it is filled.
#[test]
fn a_created_database_has_the_sets_identity() {
    let (server, bare) = (
        &Server::start(default_major(), &Options::default()),
        &Server::start(default_major(), &Options::default()),
    );
    let place = server.subdirectory("space");
    server
        .psql("postgres", &format!("CREATE TABLESPACE space LOCATION {}", literal(place.to_str().unwrap())));
    server.psql("postgres", "CREATE DATABASE app TEMPLATE template0 TABLESPACE space CONNECTION LIMIT 9");
    server.psql("app", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let opsd = site(server);
    back_up(&opsd);
    let found = |server: &Server| {
        let sql = "SELECT spcname, datconnlimit, has_database_privilege('pg_monitor', 'again', 'CONNECT')
                     FROM pg_database d JOIN pg_tablespace t ON t.oid = dattablespace WHERE datname = 'again'";
        server.psql("postgres", sql)
    };
    let run =
        opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create", "--json"]);
    assert_eq!((found(server).as_str(), &run.json()["warnings"]), ("space|9|t", &json!([])), "{run}");
    let run = opsd.ok(&["restore", "db", "--to", &bare.socket_url(SUPERUSER, "again"), "--create", "--json"]);
    assert_eq!(found(bare), "pg_default|9|t", "{run}");
    assert!(run.json()["warnings"].to_string().contains("tablespace \\\"space\\\""), "{run}");
}

/// A database that has a subscription cannot be dropped.
#[test]
fn what_was_restored_of_a_subscription_is_dropped_with_its_database() {
    let server = &Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE FUNCTION lazy(integer) RETURNS integer IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.1); RETURN $1; END';
         CREATE TABLE lazy (id integer); INSERT INTO lazy SELECT generate_series(1, 40);
         CREATE INDEX ON lazy (public.lazy(id));
         CREATE SUBSCRIPTION fed CONNECTION 'host=127.0.0.1 port=1' PUBLICATION feed WITH (connect = false)",
    );
    let opsd = site(server);
    back_up(&opsd);
    let to = server.socket_url(SUPERUSER, "target");
    let child = opsd.command(&["restore", "db", "--to", &to, "--create"]).spawn().unwrap();
    until("it is analyzed", || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'target' AND state = 'active' AND query LIKE 'ANALYZE%'";
        server.psql("postgres", sql) != "0"
    });
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)
        .unwrap();
    finish_child(child, "restore --create".into()).expect_code(130);
    assert_eq!(server.databases(), ["app", "postgres"], "{}", identifier("target"));
}
