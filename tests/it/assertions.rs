//! What the queries of `verify.assert` can and cannot do: they look, as somebody without privileges, at
//! a server on which nobody of the source can log in.

use crate::support::opsd::{Opsd, quoted_list};
use crate::support::postgres::{Options, Server, default_major};
use crate::support::sets::result;

#[test]
fn assertions_run_read_only_without_privileges_among_roles_that_cannot_log_in() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "app",
        "CREATE ROLE clerk LOGIN SUPERUSER PASSWORD 'x' CREATEROLE; CREATE ROLE \"Odd ü\" LOGIN; CREATE ROLE quiet;
         CREATE TABLE accounts AS SELECT generate_series(1, 10) AS id; ALTER TABLE accounts OWNER TO clerk",
    );
    let mut opsd = Opsd::new(&server, &["app"]);
    let own = [
        "select current_setting('transaction_read_only') = 'on'",
        "select not rolsuper and not rolcreaterole and not rolcreatedb from pg_roles where rolname = current_user",
        "select count(*) = 3 from pg_roles where rolname in ('clerk', 'Odd ü', 'quiet')",
        "select not exists (select from pg_roles where rolname in ('clerk', 'Odd ü', 'quiet') and rolcanlogin)",
        "select count(*) = 10 from accounts",
    ];
    opsd.verify.set("assert", quoted_list(&own));
    opsd.ok(&["backup"]);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    // On the source each of them says something else: nothing here is true by itself.
    let there = "SELECT count(*) FROM pg_roles WHERE rolname IN ('clerk', 'Odd ü') AND rolcanlogin";
    assert_eq!(server.psql("app", there), "2");

    // What tries to write, or to be more, does not run, and says so with the server's SQLSTATE alone.
    for (query, code) in [
        ("with x as (insert into accounts values (11) returning 1) select true from x", "25006"),
        ("set transaction read write", "25001"),
        ("set role clerk", "42501"),
        ("select pg_read_file('/etc/passwd') is not null", "42501"),
    ] {
        // After a query, as the transaction's mode may be set before the first.
        opsd.verify.set("assert", quoted_list(&["select true", query]));
        let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(1);
        let told = result(&run);
        assert_eq!(told["verdict"], "failed", "{run}");
        let error = told["error"].as_str().unwrap();
        assert!(error.contains(&query[..12]) && error.contains(&format!("({code})")), "{query}: {run}");
    }
    opsd.verify.set("assert", quoted_list(&["select count(*) = 11 from accounts"]));
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_code(3);
    assert!(result(&run)["databases"][0]["differences"].to_string().contains("it is false"), "{run}");
}
