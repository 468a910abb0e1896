//! What belongs to large objects beside their content: a rehearsal sees what a restore loses of it.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{self, Server, bin_dir, unique};
use crate::support::sets::{back_up, result};

const SAID: &str = "large objects: owners, privileges or comments are not what they were";

/// The server's own programs, but for a pg_restore that is given one more option.
fn careless_programs(opsd: &Opsd, major: u32, option: &str) -> String {
    let directory = opsd.path(&format!("bin{option}"));
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
    let real = bin_dir(major);
    for program in ["postgres", "initdb", "pg_dump", "pg_dumpall"] {
        symlink(real.join(program), directory.join(program)).unwrap();
    }
    let script = format!("#!/bin/sh\nexec {}/pg_restore {option} \"$@\"\n", real.display());
    std::fs::write(directory.join("pg_restore"), script).unwrap();
    std::fs::set_permissions(directory.join("pg_restore"), PermissionsExt::from_mode(0o755)).unwrap();
    directory.to_str().unwrap().to_owned()
}

fn differences(opsd: &Opsd) -> String {
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(3);
    let result = result(&run);
    assert_eq!(result["verdict"], "differs", "{run}");
    result["databases"][0]["differences"].to_string()
}

/// From 17 on the archive's definitions do not name large objects at all.
#[test]
fn an_owner_a_privilege_or_a_comment_that_is_lost_is_a_difference() {
    for (major, options) in
        [(18, &["--no-owner", "--no-privileges", "--no-comments"][..]), (15, &["--no-owner"])]
    {
        let server = postgres::shared(major);
        let database = fixtures::database_with(server, "lost", &[fixtures::ROLES, fixtures::LARGE_OBJECTS]);
        // Their definitions would tell by themselves.
        server.psql(&database, "DROP SCHEMA lob CASCADE");
        let mut opsd = Opsd::new(server, &[&database]);
        back_up(&opsd);
        opsd.ok(&["restore", "--verify"]);
        for option in options {
            let programs = careless_programs(&opsd, major, option);
            opsd.postgres.set("bin_dir", quoted(&programs));
            let differences = differences(&opsd);
            assert!(differences.contains(SAID), "{major} {option}: {differences}");
        }
        server.drop_database(&database);
    }
}

#[test]
fn many_large_objects_of_others_are_proven_for_a_role_that_only_reads() {
    let server: &Server = postgres::default_server();
    let database = fixtures::database_with(server, "many_lo", &[fixtures::ROLES, fixtures::LARGE_OBJECTS]);
    let role = unique("lo_reader");
    server.psql(
        &database,
        &format!(
            "CREATE ROLE {role} LOGIN BYPASSRLS IN ROLE pg_read_all_data;
             ALTER DATABASE {database} SET lo_compat_privileges = on"
        ),
    );
    // A batch a transaction: each object made is a lock.
    let batch = "SELECT count(lo_from_bytea(100000 + $1 * 500 + i, 'x')) FROM generate_series(1, 500) i;";
    let script: String = (0..10).map(|n| batch.replace("$1", &n.to_string())).collect();
    server.psql(&database, &script);
    // Set to what they are anyway, and in another order than they will be granted in again.
    server.psql(
        &database,
        "REVOKE ALL ON LARGE OBJECT 100001 FROM postgres; GRANT ALL ON LARGE OBJECT 100001 TO postgres;
         REVOKE ALL ON LARGE OBJECT 100002 FROM postgres;
         GRANT UPDATE ON LARGE OBJECT 100003 TO PUBLIC; GRANT SELECT ON LARGE OBJECT 100003 TO fixture_reader;
         COMMENT ON LARGE OBJECT 100004 IS E'two\\nlines\\tand a \\\\'",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("url", quoted(&server.socket_url(&role, &database)));
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    server.drop_database(&database);
    server.psql("postgres", &format!("DROP ROLE {role}"));
}
