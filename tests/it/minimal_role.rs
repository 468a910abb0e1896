//! The role that the README tells people to make is enough, on every major; and what it does not see
//! without more is named before anything is dumped.

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{self, MAJORS, Options, Server, identifier, literal, unique};
use crate::support::sets::{self, back_up};
use crate::support::torture::torture;

/// A server for each major worth asking: the oldest, which lacks `pg_read_all_data`, and the newest;
/// under torture all. Not the shared ones, for others would find these roles in their globals.
fn for_majors(test: impl Fn(&Server)) {
    let usual = |major: &u32| torture() || [13, 18].contains(major);
    for major in MAJORS.into_iter().filter(|major| usual(major) && postgres::is_installed(*major)) {
        eprintln!("PostgreSQL {major}");
        test(&Server::start(major, &Options::default()));
    }
}

/// Tables of several owners and schemas, one of them behind row security, sequences, large objects,
/// materialized views, partitions.
fn database(server: &Server) -> String {
    let database = fixtures::database_with(
        server,
        "minimal",
        &[
            fixtures::ROLES,
            fixtures::PARTITIONS,
            fixtures::SEQUENCES,
            fixtures::LARGE_OBJECTS,
            fixtures::VIEWS,
        ],
    );
    server.psql(
        &database,
        "CREATE SCHEMA private; CREATE TABLE private.rows (id integer, note text);
         INSERT INTO private.rows SELECT i, 'row' FROM generate_series(1, 40) i;
         ALTER TABLE private.rows ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON private.rows USING (id < 3)",
    );
    database
}

/// The statements of the README.
fn make_role(server: &Server, database: &str, role: &str) {
    let (name, in_database) = (identifier(role), identifier(database));
    server.psql(
        database,
        &format!(
            "CREATE ROLE {name} LOGIN BYPASSRLS PASSWORD 'x';
             ALTER DATABASE {in_database} SET lo_compat_privileges = on"
        ),
    );
    if server.major >= 14 {
        server.psql(database, &format!("GRANT pg_read_all_data TO {name}"));
        return;
    }
    // psql's \gexec runs each line that the query makes.
    server.psql(
        database,
        &format!(
            "SELECT format('GRANT USAGE ON SCHEMA %I TO {name}; GRANT SELECT ON ALL TABLES IN SCHEMA %I TO {name}; GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO {name}', nspname, nspname, nspname)
               FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' \\gexec"
        ),
    );
}

fn as_role(server: &Server, database: &str, role: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.postgres.set("url", quoted(&server.socket_url(role, database)));
    opsd
}

#[test]
fn it_is_enough_for_a_set_that_is_proven() {
    for_majors(|server| {
        let database = database(server);
        let role = unique("minimal");
        make_role(server, &database, &role);
        let opsd = as_role(server, &database, &role);
        let id = back_up(&opsd);
        let manifest = sets::manifest(&opsd, &id);
        assert_eq!(manifest["databases"][0]["proof"], "complete", "{manifest}");
        let warnings = manifest["warnings"].to_string();
        // Password hashes are in pg_authid, which pg_read_all_data covers and no grant of ours does.
        assert_eq!(warnings.contains("without their passwords"), server.major < 14, "{warnings}");
        assert!(manifest["globals"]["plain_size"].as_u64().is_some_and(|size| size > 100), "{manifest}");
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(sets::result(&run)["verdict"], "proven", "{run}");
    });
}

/// Each thing that the role lacks is named by the dry run, before anything is stored.
#[test]
fn what_it_lacks_is_named_before_the_backup_starts() {
    for_majors(|server| {
        let database = database(server);
        let role = unique("lacking");
        make_role(server, &database, &role);
        let opsd = as_role(server, &database, &role);
        let name = identifier(&role);
        let refused = |fragments: &[&str]| {
            for args in [&["backup", "--dry-run"][..], &["backup"]] {
                opsd.run(args).expect_failure(1, fragments);
            }
            assert!(opsd.repository_files().is_empty());
        };
        let sql = |text: &str| server.psql(&database, text);
        sql(&format!("ALTER ROLE {name} NOBYPASSRLS"));
        refused(&["row security would hide rows of table private.rows", "BYPASSRLS"]);
        sql(&format!("ALTER ROLE {name} BYPASSRLS"));

        let in_database = identifier(&database);
        sql(&format!("ALTER DATABASE {in_database} RESET lo_compat_privileges"));
        refused(&["no SELECT privilege on", "large objects", "lo_compat_privileges"]);
        sql(&format!("ALTER DATABASE {in_database} SET lo_compat_privileges = on"));

        let (take, give, hint) = if server.major >= 14 {
            (
                format!("REVOKE pg_read_all_data FROM {name}"),
                format!("GRANT pg_read_all_data TO {name}"),
                "pg_read_all_data",
            )
        } else {
            (
                format!("REVOKE USAGE ON SCHEMA private FROM {name}"),
                format!("GRANT USAGE ON SCHEMA private TO {name}"),
                "SELECT and USAGE on what is named",
            )
        };
        sql(&take);
        refused(&["no USAGE privilege on schema", "private", hint]);
        sql(&give);
        back_up(&opsd);
    });
}

/// What only a superuser sees is left out by pg_dump, and said beforehand as well as in the set.
#[test]
fn what_only_a_superuser_sees_is_said() {
    for_majors(|server| {
        let database = server.fresh_database("lost");
        fixtures::load(server, &database, &[fixtures::SUBSCRIPTION]);
        server.psql(
            &database,
            "CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nowhere;
             CREATE USER MAPPING FOR postgres SERVER elsewhere OPTIONS (password 'c4nary')",
        );
        let role = unique("modest");
        make_role(server, &database, &role);
        let mut opsd = as_role(server, &database, &role);
        let run = opsd.ok(&["backup", "--dry-run"]);
        let said = format!("{}{}", run.stdout, run.stderr);
        for expected in ["subscriptions are left out", "user mappings"] {
            assert!(said.contains(expected), "{expected:?} is not in {run}");
        }
        let id = back_up(&opsd);
        let warnings = sets::manifest(&opsd, &id)["warnings"].to_string();
        assert!(warnings.contains("subscriptions are left out"), "{warnings}");
        assert!(warnings.contains("user mappings"), "{warnings}");
        // A superuser loses nothing, and hears nothing of it.
        opsd.postgres.set("url", quoted(&server.socket_url(postgres::SUPERUSER, &database)));
        let id = back_up(&opsd);
        let warnings = sets::manifest(&opsd, &id)["warnings"].to_string();
        assert!(!warnings.contains("left out"), "{warnings}");
    });
}

/// Hashes of passwords are the cluster's: where the role may not read them, the roles are saved all the
/// same, and the set says so.
#[test]
fn roles_are_saved_without_their_passwords_where_these_cannot_be_read() {
    let server = &Server::start(postgres::default_major(), &Options::default());
    let database = server.fresh_database("hashless");
    server.psql(&database, "CREATE TABLE t AS SELECT 1 AS id");
    let (role, other) = (unique("hashless"), unique("with_password"));
    let name = identifier(&role);
    server.psql(
        &database,
        &format!(
            "CREATE ROLE {name} LOGIN; GRANT SELECT ON t TO {name}; GRANT USAGE ON SCHEMA public TO {name};
             CREATE ROLE {other} LOGIN PASSWORD {}",
            literal("s3cret")
        ),
    );
    let mut opsd = as_role(server, &database, &role);
    opsd.job.set("source", format!("{{ postgres = \"main\", databases = {} }}", quoted_list(&[&database])));
    let run = opsd.ok(&["backup", "--json"]);
    let warnings = run.json()["sets"][0]["warnings"].to_string();
    assert!(warnings.contains("roles are saved without their passwords"), "{run}");
    let id = run.json()["sets"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(sets::manifest(&opsd, &id)["warnings"], run.json()["sets"][0]["warnings"]);
    let globals = opsd.ok(&["backups", "cat", &id, &database, "globals"]).stdout;
    assert!(globals.contains(&other) && !globals.contains("SCRAM-SHA-256"), "{globals}");
}

/// pg_dump reads what an extension calls its configuration: who may not read that is told so at once, and what to do.
#[test]
fn a_table_of_an_extension_that_the_role_may_not_read_is_named_at_once() {
    let server = postgres::default_server();
    let database = server.fresh_database("members");
    let role = unique("grants");
    server.psql(
        &database,
        &format!(
            "CREATE TABLE mine (i integer); CREATE EXTENSION hstore; CREATE TABLE theirs (i integer);
             ALTER EXTENSION hstore ADD TABLE theirs; CREATE ROLE {role} LOGIN; GRANT SELECT ON mine TO {role};
             SET allow_system_table_mods = on;
             UPDATE pg_extension SET extconfig = ARRAY['theirs'::regclass::oid], extcondition = ARRAY['']
              WHERE extname = 'hstore'"
        ),
    );
    let mut opsd = as_role(server, &database, &role);
    opsd.env("OPSD_LOG", "info");
    let run = opsd.run(&["backup"]);
    assert_eq!(run.stderr.matches("starting over").count(), 0, "{run}");
    run.expect_failure(1, &["theirs", "SELECT", "pg_read_all_data"]);
    server.psql(&database, &format!("GRANT SELECT ON theirs TO {role}"));
    back_up(&opsd);
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {role}"));
}
