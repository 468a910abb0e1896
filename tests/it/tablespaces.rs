//! Tablespaces of the set that a target has are used; of one that it lacks it is said, and none is.

use serde_json::Value;

use crate::support::compare::{assert_same_content, db};
use crate::support::fixtures;
use crate::support::opsd::Opsd;
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major};
use crate::support::sets::{back_up, manifest};

fn restore(opsd: &Opsd, server: &Server) -> (Value, String) {
    let url = server.socket_url(SUPERUSER, "again");
    let report = opsd.ok(&["restore", "db", "--to", &url, "--create", "--json"]).json();
    let spaces = "SELECT string_agg(coalesce(t.spcname, '-'), ' ' ORDER BY c.relname) FROM pg_class c
                    LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace WHERE c.relname LIKE 'spaced%'";
    (report["warnings"].clone(), server.psql("again", spaces))
}

#[test]
fn sets_of_one_archive_and_of_several_treat_tablespaces_alike() {
    // Without room for more locks there is one archive.
    let tight: &[(&str, &str)] = &[("max_locks_per_transaction", "10"), ("max_connections", "20")];
    for (settings, first) in [(tight, "full"), (&[], "schema")] {
        let options = Options { settings, ..Options::default() };
        let (server, other) =
            (Server::start(default_major(), &options), Server::start(default_major(), &options));
        server.create_database("app");
        fixtures::many_tables(&server, "app", 90);
        fixtures::tablespace(&server, "app", "Späce");
        // pg_dump does not know that the first one reads the last one.
        server.psql(
            "app",
            "CREATE MATERIALIZED VIEW z AS SELECT 7 AS n;
             CREATE FUNCTION of_z() RETURNS bigint LANGUAGE sql AS 'SELECT sum(n) FROM public.z';
             CREATE MATERIALIZED VIEW a AS SELECT of_z()",
        );
        let mut opsd = Opsd::new(&server, &["app"]);
        opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
        let id = back_up(&opsd);
        assert_eq!(manifest(&opsd, &id)["databases"][0]["streams"][0]["name"], first);
        assert_eq!(restore(&opsd, &server), (serde_json::json!([]), "Späce Späce".to_owned()), "{first}");
        let warned = serde_json::json!(["no tablespace Späce here: all is in the default one"]);
        assert_eq!(restore(&opsd, &other), (warned.clone(), "- -".to_owned()), "{first}");
        assert_same_content(db(&server, "app"), db(&other, "again"));
        let part = server.socket_url(SUPERUSER, "part");
        opsd.ok(&["restore", "db", "--to", &part, "--create", "--table", "many.t_7"]);
        assert_eq!(server.psql("part", "SELECT count(*) FROM many.t_7"), "3", "{first}");
        let rehearsal = opsd.ok(&["restore", "--verify", "--json"]).json();
        assert_eq!(rehearsal["results"][0]["verdict"], "proven", "{rehearsal}");
        assert_eq!(rehearsal["results"][0]["warnings"], warned, "{rehearsal}");
    }
}
