//! Traps of what is dropped: a sequence in the middle of a dump, and options that pg_dump may not see.

use rustix::process::Signal;

use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major, default_server, unique};
use crate::support::sets::{back_up, contents, next_second, result};
use crate::traps::{paused, slow_database};

#[test]
fn a_sequence_dropped_in_the_middle_is_in_the_set_with_its_value() {
    let server = default_server();
    let database = slow_database(server);
    server.psql(&database, "CREATE SEQUENCE counter; SELECT setval('counter', 4711)");
    let mut opsd = Opsd::new(server, &[&database]);
    let mut run = paused(server, &database, &mut opsd);
    // Locks of tables do not stop it.
    server.psql(&database, "DROP SEQUENCE counter");
    run.signal(Signal::CONT);
    let run = run.finish().expect_code(0);
    assert_eq!(run.json()["sets"][0]["proof"], "complete", "{run}");
    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &restored), "--create"]);
    assert_eq!(server.psql(&restored, "SELECT last_value FROM counter"), "4711");
    let verified = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&verified)["verdict"], "proven", "{verified}");
    server.drop_database(&restored);
    server.drop_database(&database);
}

#[test]
fn options_of_a_user_mapping_are_dropped_for_roles_that_may_not_see_them_and_come_back_otherwise() {
    // Roles that own servers belong to the cluster.
    let server = Server::start(default_major(), &Options::default());
    let database = "app";
    server.create_database(database);
    server.psql(
        database,
        "CREATE EXTENSION postgres_fdw;
         CREATE ROLE reader LOGIN IN ROLE pg_read_all_data; CREATE ROLE mapped;
         CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'far.example.org');
         CREATE USER MAPPING FOR mapped SERVER far OPTIONS (user 'me', password 'fdw-s3cret');
         CREATE TABLE t AS SELECT generate_series(1, 10) AS id",
    );
    let mut opsd = Opsd::new(&server, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    let schema = |opsd: &Opsd| {
        let schema = opsd.ok(&["backups", "cat", &back_up(opsd), database, "schema"]).stdout;
        assert!(schema.contains("CREATE USER MAPPING FOR mapped SERVER far"));
        schema
    };
    // pg_dump says nothing of it, at exit 0.
    opsd.postgres.set("url", quoted(&server.socket_url("reader", database)));
    assert!(!schema(&opsd).contains("fdw-s3cret"), "the trap is not set");

    next_second();
    opsd.postgres.set("url", quoted(&server.socket_url(SUPERUSER, database)));
    assert!(schema(&opsd).contains("fdw-s3cret"));
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "restored"), "--create"]);
    let options = "SELECT string_agg(o, ' ' ORDER BY o) FROM pg_user_mappings, unnest(umoptions) o";
    assert_eq!(server.psql("restored", options), "password=fdw-s3cret user=me");
    // The password is nowhere but in the sealed schema.
    for (name, bytes) in contents(&opsd) {
        assert!(!String::from_utf8_lossy(&bytes).contains("fdw-s3cret"), "{name}");
    }
}
