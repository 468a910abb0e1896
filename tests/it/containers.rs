//! Client tools behind `tool_prefix`: a `docker` of the tests' own, which gives a tool what a container
//! gives it and no more: the variables that are named, stdin, stdout and stderr, processes and a `/tmp`
//! of its own. What opsd shares with its own children does not exist there.

use crate::security::executable;
use crate::support::compare::{assert_same, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{PASSWORD, SUPERUSER, bin_dir, default_server, unique};
use crate::support::sets::result;

/// Takes `docker exec [-i] [-e NAME]… db PROGRAM ARGUMENTS…` apart and runs the program.
const DOCKER: &str = r#"#!/bin/bash
fail() { echo "docker: $1" >&2; exit 125; }
[ "$1" = exec ] || fail "not exec but $1"
shift
environment=(PATH=@BIN@:/usr/bin:/bin)
stdin=/dev/null
while [ "$1" != db ]; do
    case "$1" in
        -i) stdin=/dev/stdin; shift ;;
        -e) [[ "$2" =~ ^[A-Z_]+$ ]] || fail "not the name of a variable: $2"
            environment+=("$2=${!2}"); shift 2 ;;
        *) fail "unknown: $1" ;;
    esac
done
shift
for word in "$@"; do
    case "$word" in /* | *=/*) fail "a path of another machine: $word" ;; esac
done
echo "$1" >> @LOG@
run=(env -i "${environment[@]}" "$@")
# Where namespaces may be made: no process of the host is seen, nor any file below /tmp.
if unshare --mount --pid --fork --mount-proc true 2>/dev/null; then
    run=(unshare --mount --pid --fork --kill-child --mount-proc
        sh -c 'mount -t tmpfs none /tmp && exec "$@"' sh "${run[@]}")
fi
exec "${run[@]}" < "$stdin"
"#;

/// The programs that were run in the container, each once.
fn programs(opsd: &Opsd) -> Vec<String> {
    let log = std::fs::read_to_string(opsd.path("docker.log")).unwrap_or_default();
    let mut names: Vec<String> = log.lines().map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn a_server_in_a_container_is_backed_up_restored_and_rehearsed() {
    let server = default_server();
    let database = fixtures::database_with(
        server,
        "container",
        &[
            fixtures::ROLES,
            fixtures::CONSTRAINTS,
            fixtures::NAMES,
            fixtures::LARGE_OBJECTS,
            fixtures::SEQUENCES,
        ],
    );
    fixtures::rows(server, &database, "big", 2_000);
    server.psql(&database, "CREATE INDEX ON big (who); CREATE INDEX ON big USING gin (doc)");
    let mut opsd = Opsd::new(server, &[&database]);
    // Over TCP, where a password is asked for.
    opsd.postgres
        .set("url", quoted(&server.url(SUPERUSER, &database)))
        .unset("bin_dir")
        .set("tool_prefix", quoted_list(&["docker", "exec", "-i", "db"]));
    opsd.job.set("large_table", quoted("8KiB"));
    let directory = opsd.path("client");
    std::fs::create_dir(&directory).unwrap();
    let docker = DOCKER
        .replace("@BIN@", bin_dir(server.major).to_str().unwrap())
        .replace("@LOG@", opsd.path("docker.log").to_str().unwrap());
    executable(&directory.join("docker"), &docker);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", directory.display())).env("PGPASSWORD", PASSWORD);

    let run = opsd.ok(&["backup", "--json"]);
    assert_eq!(run.json()["sets"][0]["proof"], "complete", "{run}");
    assert_eq!(programs(&opsd), ["pg_dump", "pg_dumpall"]);

    let restored = unique("restored");
    opsd.ok(&["restore", "db", "--to", "main", "--database", &database, "--replace", "--yes", "--json"]);
    opsd.ok(&["restore", "db", "--to", &server.url(SUPERUSER, &restored), "--create", "--json"]);
    assert_eq!(programs(&opsd), ["pg_dump", "pg_dumpall", "pg_restore"]);
    let plain = plain_restore(db(server, &database));
    assert_same(db(server, &plain), db(server, &database));

    // The scratch server is started here, with programs that are here.
    let found = format!("{}:{}:/usr/bin:/bin", directory.display(), bin_dir(server.major).display());
    opsd.env("PATH", found);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    for name in [&database, &restored, &plain] {
        server.drop_database(name);
    }
}
