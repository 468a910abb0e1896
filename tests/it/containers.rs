//! Client tools behind `tool_prefix`: a `docker` of the tests' own, which gives a tool what a container
//! gives it and no more: the variables that are named, stdin, stdout and stderr, processes and a `/tmp`
//! of its own. What opsd shares with its own children does not exist there.

use std::path::PathBuf;

use serde_json::json;

use crate::security::executable;
use crate::support::compare::{assert_same, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted, quoted_list};
use crate::support::postgres::{PASSWORD, SUPERUSER, Server, bin_dir, default_server, unique};
use crate::support::sets::result;

/// Takes `docker exec [-i] [-e NAME]… db PROGRAM ARGUMENTS…` apart and runs the program. What is asked of containers is
/// answered out of files of the test's.
const DOCKER: &str = r#"#!/bin/bash
fail() { echo "docker: $1" >&2; exit 125; }
[ -f @DIR@/fault ] && { cat @DIR@/fault >&2; exit 1; }
case "$1" in
    exec) shift ;;
    info) echo false; exit ;;
    context) echo unix:///var/run/docker.sock; exit ;;
    ps) case "$*" in
            *Names*) echo site_db_1; echo site_web_1 ;;
            *label=com.docker.compose.project=site\ *label=com.docker.compose.service=db*) echo db0 ;;
        esac
        exit ;;
    container) [ "$2" = inspect ] || fail "not inspect but $2"
        case "$3" in db0 | site_db_1) cat @DIR@/inspect; exit ;; esac
        echo "Error: No such container: $3" >&2; exit 1 ;;
    *) fail "unknown: $1" ;;
esac
environment=(PATH=@BIN@:/usr/bin:/bin)
stdin=/dev/null
while [ "$1" != db ] && [ "$1" != db0 ]; do
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

/// Puts the client into a directory of its own.
fn install(opsd: &Opsd, server: &Server) -> PathBuf {
    let directory = opsd.path("client");
    std::fs::create_dir(&directory).unwrap();
    let docker = DOCKER
        .replace("@BIN@", bin_dir(server.major).to_str().unwrap())
        .replace("@DIR@", directory.to_str().unwrap())
        .replace("@LOG@", opsd.path("docker.log").to_str().unwrap());
    executable(&directory.join("docker"), &docker);
    directory
}

/// A site whose server is in the container `site_db_1`, whose addresses the client tells.
struct Site {
    opsd: Opsd,
    client: PathBuf,
    port: u16,
}

impl Site {
    fn new(server: &Server, database: &str) -> Site {
        let mut opsd = Opsd::new(server, &[database]);
        let url = format!("postgres://{SUPERUSER}@:{}/{database}", server.port);
        opsd.postgres.set("url", quoted(&url)).set("container", quoted("site_db_1")).unset("bin_dir");
        let client = install(&opsd, server);
        opsd.env("PATH", format!("{}:/usr/bin:/bin", client.display())).env("PGPASSWORD", PASSWORD);
        let site = Site { opsd, client, port: server.port };
        site.is_at("127.0.0.1");
        site
    }

    /// What the client says of the container from now on.
    fn says(&self, state: &str, address: &str, published: &str) {
        let networks = match address {
            "" => json!({}),
            address => json!({ "site_default": { "IPAddress": address, "IPPrefixLen": 8 } }),
        };
        let ports = match published {
            "" => json!({}),
            port => json!({ format!("{}/tcp", self.port): [{ "HostIp": "0.0.0.0", "HostPort": port }] }),
        };
        let inspect = json!([{
            "Id": "db0", "Name": "/site_db_1", "Image": "sha256:77", "State": { "Status": state },
            "Config": { "Image": "postgres:17", "Labels": null },
            "NetworkSettings": { "Networks": networks, "Ports": ports },
        }]);
        std::fs::write(self.client.join("inspect"), inspect.to_string()).unwrap();
    }

    fn is_at(&self, address: &str) {
        self.says("running", address, "");
    }
}

#[test]
fn a_container_is_found_by_each_of_its_ways() {
    let server = default_server();
    let database = server.fresh_database("found");
    server.psql(&database, "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let mut site = Site::new(server, &database);
    let port = server.port;

    let ways = [
        ("127.0.0.1", "", format!("container site_db_1, at 127.0.0.1:{port} (network site_default)")),
        ("", &*port.to_string(), format!("container site_db_1, at 127.0.0.1:{port} (its published port)")),
        // This host is not on that network, whoever answers there.
        ("198.51.100.1", "", "container site_db_1, through docker exec".to_owned()),
    ];
    for (address, published, way) in &ways {
        site.says("running", address, published);
        let run = site.opsd.ok(&["backup", "--dry-run", "--json"]);
        assert_eq!(run.json()["plans"][0]["way"], **way, "{run}");
        let run = site.opsd.ok(&["config", "check"]);
        assert!(run.stdout.contains(&format!("postgres main: {way}")), "{run}");
    }
    // The last of them goes through the container with all that there is to do.
    let run = site.opsd.ok(&["-v", "backup"]);
    assert!(run.stderr.contains(&format!("postgres main: {}; pg_dump", ways[2].2)), "{run}");
    let restored = unique("through");
    let restore = ["restore", "db", "--to", "main", "--as", &restored];
    let run = site.opsd.ok(&[&restore[..], &["--dry-run"]].concat());
    assert!(run.stdout.contains("through docker exec") && run.stdout.contains("of the container"), "{run}");
    site.opsd.ok(&restore);
    assert_same(db(server, &restored), db(server, &database));
    assert_eq!(programs(&site.opsd), ["pg_dump", "pg_dumpall", "pg_restore", "sh"]);
    site.opsd.more = "[monitor.main]\npostgres = \"main\"\n".to_owned();
    let run = site.opsd.ok(&["status"]);
    assert!(run.stdout.contains("primary"), "{run}");

    // Podman is asked and used the same way.
    std::fs::rename(site.client.join("docker"), site.client.join("podman")).unwrap();
    site.opsd.postgres.set("container_client", quoted("podman"));
    let run = site.opsd.ok(&["backup", "--dry-run", "--json"]);
    assert_eq!(run.json()["plans"][0]["way"], "container site_db_1, through podman exec", "{run}");
    site.opsd.ok(&["backup"]);
    site.opsd.postgres.unset("container_client");
    std::fs::rename(site.client.join("podman"), site.client.join("docker")).unwrap();

    // Programs of this host that fit are taken where they can connect.
    let found = format!("{}:{}:/usr/bin:/bin", site.client.display(), bin_dir(server.major).display());
    site.opsd.env("PATH", found);
    for (address, of) in [("127.0.0.1", " in /"), ("", " of the container")] {
        site.is_at(address);
        let run = site.opsd.ok(&["backup", "--dry-run", "--json"]);
        assert!(run.json()["plans"][0]["pg_dump"].as_str().unwrap().contains(of), "{run}");
    }
    for name in [&database, &restored] {
        server.drop_database(name);
    }
}

#[test]
fn a_container_that_cannot_be_found_is_said_so() {
    let server = default_server();
    let mut site = Site::new(server, "postgres");
    let fails = |site: &Site, code: i32, words: &[&str]| {
        site.opsd.run(&["backup", "--dry-run"]).expect_failure(code, words);
    };
    site.says("exited", "", "");
    fails(
        &site,
        1,
        &["container site_db_1: site_db_1 does not run: it is exited", "hint: docker start site_db_1"],
    );
    site.is_at("127.0.0.1");
    site.opsd.postgres.set("container", quoted("site-db-1"));
    fails(&site, 1, &["container site-db-1: there is none", "hint: containers here: site_db_1, site_web_1"]);
    let run = site.opsd.ok(&["config", "check"]);
    assert!(run.stderr.contains("postgres.main: container site-db-1: there is none"), "{run}");

    site.opsd.postgres.unset("container").set("compose", "{ project = \"site\", service = \"web\" }");
    fails(&site, 1, &["service web of Compose project site: there is none"]);
    site.opsd.postgres.set("compose", "{ project = \"site\", service = \"db\" }");
    site.opsd.ok(&["backup", "--dry-run"]);
    let shown = site.opsd.ok(&["config", "show"]).stdout;
    assert!(shown.contains("compose = { project = \"site\", service = \"db\" }"), "{shown}");

    let denied = "permission denied while trying to connect to the Docker daemon socket";
    std::fs::write(site.client.join("fault"), denied).unwrap();
    fails(&site, 1, &[denied, "hint: run opsd as root"]);
    site.opsd.postgres.set("container_client", quoted("podman"));
    site.opsd.env("PATH", site.client.display().to_string());
    fails(&site, 1, &["podman is not on PATH"]);

    let url = format!("postgres://{SUPERUSER}@db:5432/postgres");
    site.opsd.postgres.set("url", quoted(&url)).set("container", quoted("--privileged"));
    site.opsd.postgres.set("tool_prefix", quoted_list(&["docker", "exec", "-i", "db"]));
    fails(
        &site,
        2,
        &["names a host", "leave the host out", "stands beside container", "is no name that it could have"],
    );
}

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
    let directory = install(&opsd, server);
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
