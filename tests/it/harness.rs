//! The ground itself is tested: servers start and vanish, fixtures load, comparisons can fail.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::compare::{
    assert_same, assert_same_content, assert_same_settings, create_like, db, plain_restore,
};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, finish, quoted};
use crate::support::postgres::{self, Options, Server};

#[test]
fn every_major_starts_and_answers() {
    postgres::for_each_major(|server| {
        let version: u32 = server.psql("postgres", "SHOW server_version_num").parse().unwrap();
        assert_eq!(version / 10_000, server.major);
    });
}

#[test]
fn tcp_needs_the_password() {
    let server = postgres::default_server();
    let run = |password: &str| {
        let mut psql = server.client("psql");
        psql.env("PGHOST", "127.0.0.1").env("PGPASSWORD", password).args(["-X", "-At", "-c", "SELECT 1"]);
        psql.output().unwrap().status.success()
    };
    assert!(run(postgres::PASSWORD));
    assert!(!run("wrong"));
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = Server::start(
        postgres::default_major(),
        &Options { settings: &[("work_mem", "77MB")], ..Default::default() },
    );
    assert_eq!(server.psql("postgres", "SHOW work_mem"), "77MB");
    let directory = PathBuf::from(server.socket_dir());
    assert!(server.data_dir().join("PG_VERSION").exists());
    assert!(server.log().contains("ready to accept connections"));
    let port = server.port;
    drop(server);
    assert!(!directory.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn fixtures_load_and_a_plain_restore_brings_them_back() {
    postgres::for_some_majors(|server| {
        let source = fixtures::database_with(server, "all", fixtures::ALL);
        let once = plain_restore(db(server, &source));
        let again = plain_restore(db(server, &source));
        assert_same(db(server, &once), db(server, &again));
        assert_same_content(db(server, &source), db(server, &once));
        for name in [&source, &once, &again] {
            server.drop_database(name);
        }
    });
}

#[test]
fn comparing_sees_each_kind_of_difference() {
    let server = postgres::default_server();
    let source = fixtures::database_with(
        server,
        "differ",
        &[
            fixtures::ROLES,
            fixtures::PARTITIONS,
            fixtures::SEQUENCES,
            fixtures::LARGE_OBJECTS,
            fixtures::VIEWS,
            fixtures::CONSTRAINTS,
            fixtures::COLUMNS,
        ],
    );
    // The fixture whose definition changes in a restore would hide what is looked for here.
    server.psql(&source, "DROP TABLE con.listed");
    let changes = [
        ("UPDATE vw.base SET name = 'changed' WHERE id = 50", "table vw.base: 100 rows against 100"),
        ("DELETE FROM part.by_hash WHERE id = 7", "table part.by_hash: 300 rows against 299"),
        ("INSERT INTO col.none DEFAULT VALUES", "table col.\"none\": 17 rows against 18"),
        ("SELECT nextval('seq.standalone')", "seq.standalone"),
        ("SELECT setval('seq.uncalled', 77, true)", "seq.uncalled"),
        ("ALTER TABLE con.child DROP CONSTRAINT to_parent", "ADD CONSTRAINT to_parent FOREIGN KEY"),
        ("DROP INDEX con.ix_gin", "CREATE INDEX ix_gin"),
        ("ALTER TABLE col.empty OWNER TO fixture_owner", "ALTER TABLE col.empty OWNER TO fixture_owner"),
        ("SELECT lo_put(70001, 0, 'S')", "large object, only left: 70001"),
        ("COMMENT ON LARGE OBJECT 70002 IS 'new'", "large object, only left: 70002"),
        ("SELECT lo_unlink(70004)", "large object, only left: 70004"),
        ("REFRESH MATERIALIZED VIEW vw.totals WITH NO DATA", "vw.totals, not populated"),
        ("DROP TABLE col.none_and_empty", "col.none_and_empty"),
        ("CREATE TABLE col.new (id integer)", "col.new"),
        (
            "CREATE ACCESS METHOD second TYPE TABLE HANDLER heap_tableam_handler;
             DROP TABLE col.empty; CREATE TABLE col.empty () USING second",
            "access method, only right: col.empty second",
        ),
    ];
    for (change, expected) in changes {
        let copy = plain_restore(db(server, &source));
        server.psql(&copy, change);
        let report = failure(|| assert_same(db(server, &source), db(server, &copy)));
        assert!(report.contains(expected), "{change}: the report lacks {expected:?}:\n{report}");
        server.drop_database(&copy);
    }
    server.drop_database(&source);
}

#[test]
fn comparing_sees_settings_of_the_database() {
    let server = postgres::default_server();
    let source = fixtures::database_with(server, "settings", &[fixtures::ROLES, fixtures::DATABASE]);
    let copy = postgres::unique("settings_copy");
    create_like(db(server, &source), &copy);
    let report = failure(|| assert_same_settings(db(server, &source), db(server, &copy)));
    for expected in [
        "Asia/Kathmandu",
        "set fixture_reader statement_timeout",
        "owner fixture_owner",
        "connections 90",
        "comment a database's",
    ] {
        assert!(report.contains(expected), "the report lacks {expected:?}:\n{report}");
    }
    fixtures::load(server, &copy, &[fixtures::DATABASE]);
    assert_same_settings(db(server, &source), db(server, &copy));
    server.drop_database(&source);
    server.drop_database(&copy);
}

#[test]
fn comparing_reads_other_encodings() {
    let server = postgres::default_server();
    for (encoding, value) in [
        ("LATIN1", "convert_from('\\xe9f6', 'LATIN1')"),
        ("SQL_ASCII", "convert_from('\\xff80e9', 'SQL_ASCII')"),
    ] {
        let name = postgres::unique("encoded");
        server.create_database_in(&name, encoding);
        server.psql(&name, &format!("CREATE TABLE t (v text); INSERT INTO t VALUES ({value}), ('plain')"));
        let copy = plain_restore(db(server, &name));
        assert_same(db(server, &name), db(server, &copy));
        assert_eq!(server.psql(&copy, "SHOW server_encoding"), encoding);
        server.psql(&copy, "UPDATE t SET v = v || 'x' WHERE v <> 'plain'");
        assert!(
            failure(|| assert_same_content(db(server, &name), db(server, &copy))).contains("table public.t")
        );
        server.drop_database(&name);
        server.drop_database(&copy);
    }
}

#[test]
fn large_fixtures_load() {
    let server = postgres::default_server();
    let name = server.fresh_database("large");
    fixtures::rows(server, &name, "bulk", 2000);
    fixtures::many_tables(server, &name, 140);
    fixtures::wide_table(server, &name);
    fixtures::huge_value(server, &name, 3_000_001);
    let count = |sql: &str| server.psql(&name, sql);
    assert_eq!(count("SELECT count(*), count(DISTINCT doc) FROM bulk"), "2000|2000");
    assert_eq!(count("SELECT count(*) FROM pg_tables WHERE schemaname = 'many'"), "140");
    assert_eq!(count("SELECT count(*) FROM many.t_7"), "3");
    assert_eq!(count("SELECT c_1600 FROM wide ORDER BY 1"), "-1\n1600");
    assert_eq!(count("SELECT max(length(value)) FROM huge"), "3000001");
    let copy = plain_restore(db(server, &name));
    assert_same(db(server, &name), db(server, &copy));
    server.drop_database(&name);
    server.drop_database(&copy);
}

#[test]
fn what_belongs_to_the_cluster_loads_on_a_server_of_its_own() {
    let server = Server::start(postgres::default_major(), &Options::default());
    server.create_database(fixtures::ODD_DATABASE);
    assert_eq!(server.databases(), [fixtures::ODD_DATABASE, "postgres"]);
    fixtures::tablespace(&server, fixtures::ODD_DATABASE, "Späce");
    fixtures::load(&server, fixtures::ODD_DATABASE, &[fixtures::SUBSCRIPTION]);
    let copy = plain_restore(db(&server, fixtures::ODD_DATABASE));
    assert_same(db(&server, fixtures::ODD_DATABASE), db(&server, &copy));
    assert!(server.url("me", fixtures::ODD_DATABASE).ends_with("/%2E%2E%2Fx%20%22y%22"));
}

#[test]
fn a_server_that_cannot_start_says_why_and_leaves_nothing() {
    let broken = Options { settings: &[("shared_buffers", "no number")], ..Default::default() };
    let report = failure(|| {
        Server::start(postgres::default_major(), &broken);
    });
    assert!(report.contains("shared_buffers"), "{report}");
}

#[test]
fn a_site_is_a_configuration_that_parses() {
    let server = postgres::default_server();
    let mut site = Opsd::new(server, &["app", fixtures::ODD_DATABASE]);
    site.job.set("streams", "3").set("part_size", quoted("5MiB"));
    let config: toml_edit::DocumentMut = site.config().parse().unwrap();
    let source = &config["backup"]["db"]["source"];
    assert_eq!(source["databases"][1].as_str(), Some(fixtures::ODD_DATABASE));
    assert_eq!(config["backup"]["db"]["streams"].as_integer(), Some(3));
    assert!(config["encryption"]["recipients"][0].as_str().unwrap().starts_with("age1"));
    assert_eq!(config["encryption"]["trusted_keys"][0].as_str(), Some(site.public_key.as_str()));
    assert_eq!(config["backup"]["db"]["verify"]["scratch_dir"].as_str(), site.path("scratch").to_str());
    // A site without a job has no table of it at all.
    site.job.unset("source").unset("streams").unset("part_size");
    assert!(!site.config().contains("backup"));

    std::fs::create_dir_all(site.path("repository/a/b")).unwrap();
    std::fs::write(site.path("repository/a/b/c"), "").unwrap();
    assert_eq!(site.repository_files(), ["a/b/c"]);
    assert_eq!(site.recipient, site.identity().to_public().to_string());
    site.use_s3("s3://bucket/prefix", "http://127.0.0.1:1", "key", "secret");
    let config: toml_edit::DocumentMut = site.config().parse().unwrap();
    assert_eq!(config["repository"]["path_style"].as_bool(), Some(true));
    assert!(!site.config().contains("secret"));
    let text = "a \"quote\", a \\ and\na line\u{7}";
    let parsed: toml_edit::DocumentMut = format!("x = {}", quoted(text)).parse().unwrap();
    assert_eq!(parsed["x"].as_str(), Some(text));
}

#[test]
fn opsd_runs_in_an_environment_of_the_tests_making() {
    let mut site = Opsd::without_server();
    site.env("AWS_REGION", "nowhere-1");
    let command = site.command(&["--help"]);
    let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_str().unwrap()).collect();
    assert_eq!(names, ["AWS_REGION", "HOME", "OPSD_CONFIG", "PATH"]);
    assert!(site.path("opsd.toml").exists());
    site.ok(&["--help"]);
}

#[test]
fn a_run_is_told_as_it_was() {
    let shell = |script: &str| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(command)
    };
    let run = shell(r#"echo '{"a": [1]}'; echo sorry >&2; exit 3"#).expect_failure(3, &["sorry"]);
    assert_eq!(run.json()["a"][0], 1);
    assert_eq!(shell("kill -TERM $$").code, None);
    let report = failure(|| {
        shell("echo why >&2; exit 1").expect_code(0);
    });
    assert!(report.contains("why"), "{report}");
    // More than a pipe holds, on both at once.
    let run = shell("head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' y >&2");
    assert_eq!((run.stdout.len(), run.stderr.len()), (300_000, 300_000));
}

/// The message that `check` panics with; it must.
fn failure(check: impl FnOnce()) -> String {
    let panic =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).expect_err("no difference was seen");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}
