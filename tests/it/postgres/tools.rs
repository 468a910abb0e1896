//! The tools of every major, started with a connection in their environment.

use opsd::postgres::tools;

use super::connection;
use crate::support::postgres::{self, bin_dir};

#[test]
fn tools_connect_by_environment_alone() {
    postgres::for_each_major(|server| {
        // A name that a connection string would be read from, were it an argument.
        let name = postgres::unique("host=evil \"x\" ../y");
        server.create_database(&name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = bin_dir(server.major);
            let found = tools::find(server.major, Some(&dir), &[]).await.unwrap();
            assert_eq!(found.major, server.major);
            assert!(found.version.starts_with(&format!("{}.", server.major)), "{}", found.version);
            let mut psql = found.command("psql", &connection(server), &name, "opsd tools").unwrap();
            let sql =
                "SELECT current_database(), current_setting('timezone'), current_setting('application_name')";
            let output = psql.args(["-XAt", "-c", sql]).output().await.unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(
                text.trim_end(),
                format!("{name}|UTC|opsd tools"),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let mut dump = found.command("pg_dump", &connection(server), &name, "opsd").unwrap();
            let output = dump.arg("-Fc").output().await.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout.starts_with(b"PGDMP"));
        });
        server.drop_database(&name);
    });
}
