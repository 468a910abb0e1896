//! Sets of more objects than a server has locks for come back on a server whose settings nobody changed.

use crate::support::compare::{assert_same_content, db};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{MAJORS, Options, SUPERUSER, Server, bin_dir, is_installed};
use crate::support::sets::{back_up, manifest, result};
use crate::support::torture::torture;

/// What a server has where nobody says otherwise: room for 6,400 locks, and a little that is shared with others.
pub const DEFAULTS: &[(&str, &str)] = &[("max_locks_per_transaction", "64"), ("max_connections", "100")];

fn server(major: u32, settings: &[(&str, &str)]) -> Server {
    Server::start(major, &Options { settings, ..Options::default() })
}

/// These majors; all of them under torture.
fn majors(some: &[u32]) -> Vec<u32> {
    MAJORS.into_iter().filter(|major| is_installed(*major) && (torture() || some.contains(major))).collect()
}

/// A site whose restores find the tools of this major.
fn site(server: &Server, database: &str) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.job.set("large_table", quoted("32KiB"));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Makes large objects, a bounded number in a transaction.
pub fn large_objects(server: &Server, database: &str, count: usize) {
    let batch = "SELECT count(lo_from_bytea((100000 + $1 * 1000 + i)::oid, convert_to('object ' || $1 * 1000 + i, 'UTF8'))) FROM generate_series(1, 1000) i;\n";
    let script: String = (0..count / 1000).map(|n| batch.replace("$1", &n.to_string())).collect();
    server.psql(database, &script);
}

const DIGEST: &str = "SELECT count(*), md5(string_agg(format('%s %s %s', oid, lomowner::regrole, lo_get(oid)), ',' ORDER BY oid)) FROM pg_largeobject_metadata";

#[test]
fn many_large_objects_come_back_at_the_default_lock_limit() {
    let count = if torture() { 100_000 } else { 20_000 };
    for major in majors(&[17]) {
        let server = server(major, DEFAULTS);
        server.create_database("objects");
        large_objects(&server, "objects", count);
        // Others own some: each of these is a lock where the owner is set.
        server.psql("postgres", "CREATE ROLE keeper");
        let owners: String =
            (0..100).map(|n| format!("ALTER LARGE OBJECT {} OWNER TO keeper;", 100_001 + n * 7)).collect();
        server.psql("objects", &owners);
        let opsd = site(&server, "objects");
        back_up(&opsd);
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{major}: {run}");
        opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create"]);
        let said = server.psql("objects", DIGEST);
        assert!(said.starts_with(&format!("{count}|")), "{said}");
        assert_eq!(server.psql("again", DIGEST), said, "{major}");
    }
}

#[test]
fn more_tables_than_the_server_has_locks_come_back() {
    // 1,600 locks; under torture the 6,400 of the defaults.
    let few: &[(&str, &str)] = &[("max_locks_per_transaction", "16"), ("max_connections", "100")];
    let (count, limits) = if torture() { (50_000, DEFAULTS) } else { (2_250, few) };
    for major in majors(&[17]) {
        // pg_dump locks every table of the source, which needs room there.
        let source = server(major, &[("max_locks_per_transaction", "1024"), ("max_connections", "100")]);
        let target = server(major, limits);
        source.create_database("tables");
        let tables = format!(
            "SELECT format('CREATE TABLE t_%s (id integer, note text)', i) FROM generate_series(1, {count}) i \\gexec
             SELECT format('INSERT INTO t_%s VALUES (%s, ''row'')', i, i) FROM generate_series(1, {count}, 3) i \\gexec
             CREATE TABLE large AS SELECT i, md5(i::text) FROM generate_series(1, 5000) i"
        );
        source.psql("tables", &tables);
        let opsd = site(&source, "tables");
        let id = back_up(&opsd);
        let streams = manifest(&opsd, &id)["databases"][0]["streams"].to_string();
        assert!(streams.contains("data-rest"), "{streams}");
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{major}: {run}");
        opsd.ok(&["restore", "db", "--to", &target.socket_url(SUPERUSER, "again"), "--create"]);
        assert_same_content(db(&source, "tables"), db(&target, "again"));
    }
}

/// A CHECK refuses the rows of the last table when they come for the first time, as one does that reads a table
/// which is loaded later. By then other tables, and large objects, are there already.
#[test]
fn what_a_stream_of_several_transactions_has_restored_does_not_come_twice() {
    // More than a transaction takes.
    let tables = if torture() { 1_500 } else { 1_050 };
    for major in majors(&[15, 17]) {
        let server = server(major, DEFAULTS);
        server.create_database("checked");
        large_objects(&server, "checked", 2_000);
        server.psql(
            "checked",
            &format!("SELECT format('CREATE TABLE t_%s (id integer)', i) FROM generate_series(1, {tables}) i \\gexec
             SELECT format('INSERT INTO t_%s VALUES (1), (2)', i) FROM generate_series(1, {tables}) i \\gexec
             CREATE SEQUENCE tries;
             SELECT nextval('tries');
             CREATE TABLE u_checked (n integer CHECK (nextval('public.tries') > 1));
             INSERT INTO u_checked VALUES (1), (2)"),
        );
        let opsd = site(&server, "checked");
        back_up(&opsd);
        let run =
            opsd.ok(&["-v", "restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create"]);
        assert!(run.stderr.contains("trying once more, after the others"), "{run}");
        assert_same_content(db(&server, "checked"), db(&server, "again"));
        assert_eq!(server.psql("again", DIGEST), server.psql("checked", DIGEST), "{major}");
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{major}: {run}");
    }
}

/// A load that runs out of locks after hours is known to before the first.
#[test]
fn a_target_without_room_for_locks_is_refused_before_anything_is_made() {
    let source = Server::start(17, &Options::default());
    let database = source.fresh_database("objects");
    large_objects(&source, &database, 2_000);
    let opsd = site(&source, &database);
    back_up(&opsd);
    let settings = [("max_locks_per_transaction", "10"), ("max_connections", "40")];
    let target = Server::start(17, &Options { settings: &settings, ..Options::default() });
    let url = target.socket_url(SUPERUSER, "again");
    let to = ["restore", "db", "--to", url.as_str(), "--create", "--globals"];
    opsd.run(&to).expect_failure(
        1,
        &[
            "loading takes up to 1",
            "the server has room for",
            "(400 in all)",
            "max_locks_per_transaction",
            "--jobs 1",
        ],
    );
    assert!(!target.databases().contains(&"again".to_owned()));
    let url = source.socket_url(SUPERUSER, "again");
    opsd.ok(&["restore", "db", "--to", &url, "--create"]);
    assert_eq!(source.psql("again", DIGEST), source.psql(&database, DIGEST));
}
