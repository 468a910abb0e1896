//! A rehearsal in a throw-away container: where the host has no server that fits, and however it ends.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::engine::{Engine, engine};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, finish_child, quoted, quoted_list};
use crate::support::postgres::{Server, default_server};
use crate::support::processes::until;
use crate::support::sets::{back_up, result};

/// Stops every process of a container but the shell that does it.
const STOP_ALL: &str = "for p in $(pidof postgres sh cat); do [ $p = $$ ] || kill -STOP $p; done";

/// Newer than the servers that tests use otherwise, and than what a distribution has.
const MAJOR: u32 = 18;

/// A site with a set, and a host that finds no program of PostgreSQL but those that a distribution put there.
fn site(engine: &Engine, verify: &[(&str, String)]) -> (&'static Server, Opsd, String) {
    let server = default_server();
    let contents = [fixtures::ROLES, fixtures::CONSTRAINTS, fixtures::NAMES, fixtures::LARGE_OBJECTS];
    let database = fixtures::database_with(server, "image", &contents);
    fixtures::rows(server, &database, "big", 2_000);
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.verify.set("image", quoted(&engine.postgres_image(MAJOR)));
    for (key, value) in verify {
        opsd.verify.set(key, value.clone());
    }
    back_up(&opsd);
    opsd.postgres.unset("bin_dir");
    opsd.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("DOCKER_HOST", engine.host());
    (server, opsd, database)
}

/// Containers of rehearsals of this site, whether they run or not.
fn containers(engine: &Engine, opsd: &Opsd) -> Vec<String> {
    let said = engine.docker(&["ps", "-a", "--format", "{{.ID}} {{.Label \"opsd.scratch\"}}"]);
    let scratch = opsd.path("scratch").display().to_string();
    said.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, at)| at.starts_with(&scratch))
        .map(|(id, _)| id.to_owned())
        .collect()
}

/// Whether code of the set is at work in a container.
fn runs_a_query(engine: &Engine, id: &str) -> bool {
    // It may be gone, or not there yet.
    engine.try_docker(&["top", id]).stdout.contains("SELECT")
}

fn left(opsd: &Opsd) -> usize {
    std::fs::read_dir(opsd.path("scratch")).map_or(0, Iterator::count)
}

#[test]
fn a_set_is_proven_in_a_container_that_has_nothing_and_leaves_nothing() {
    let engine = engine();
    let (server, opsd, database) = site(engine, &[]);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let found = result(&run);
    assert_eq!(found["verdict"], "proven", "{run}");
    assert!(found["server_version"].as_str().unwrap().starts_with("18."), "{run}");
    assert_eq!(found["contained"], "full", "{run}");
    assert!(containers(engine, &opsd).is_empty());
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}

/// What the Engine says of the container, while code of the set runs in it.
#[test]
fn the_container_has_no_network_no_volume_and_bounds() {
    let engine = engine();
    let (server, opsd, database) =
        site(engine, &[("assert", quoted_list(&["SELECT pg_sleep(600) IS NOT NULL"]))]);
    let child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
    until("the assertion runs", || containers(engine, &opsd).iter().any(|id| runs_a_query(engine, id)));
    let id = containers(engine, &opsd).remove(0);
    let host = engine.inspect(
        &id,
        "{{.HostConfig.NetworkMode}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.HostConfig.LogConfig.Type}}",
    );
    assert_eq!(host, "none true [ALL] [no-new-privileges label=disable] none");
    let bounds = engine.inspect(&id, "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}");
    assert!(bounds.split(' ').all(|bound| bound.parse::<u64>().unwrap() > 0), "{bounds}");
    let user = engine.docker(&["exec", &id, "id", "-u"]);
    assert_ne!(user, "0");
    let mounts = engine.inspect(&id, "{{range .Mounts}}{{.Type}} {{.Source}}\n{{end}}");
    let scratch = opsd.path("scratch").display().to_string();
    let foreign: Vec<&str> =
        mounts.lines().filter(|line| line.starts_with("bind ") && !line.contains(&scratch)).collect();
    assert_eq!(foreign, Vec::<&str>::new());
    assert!(!mounts.contains("volume "), "{mounts}");
    // Of all that is mounted it writes to its data, its socket and its own /tmp alone.
    let script = r#"while read -r _ path _; do
            [ -d "$path" ] && touch "$path/tried" 2>/dev/null && echo "$path"
        done < /proc/mounts; true"#;
    let tried = engine.docker(&["exec", &id, "sh", "-c", script]);
    let own = |path: &str| path.starts_with(&scratch) && (path.ends_with("/data") || path.ends_with("/s"));
    let written: Vec<&str> =
        tried.lines().filter(|p| !own(p) && !["/tmp", "/dev/shm", "/dev/mqueue"].contains(p)).collect();
    assert_eq!(written, Vec::<&str>::new(), "{tried}");
    // Code of the set stops all that it may.
    engine.try_docker(&["exec", &id, "sh", "-c", STOP_ALL]);
    // Ctrl-C.
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    finish_child(child, "restore --verify".into()).expect_code(130);
    assert!(containers(engine, &opsd).is_empty());
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}

#[test]
fn a_rehearsal_that_is_killed_takes_its_container_along() {
    let engine = engine();
    let (server, mut opsd, database) =
        site(engine, &[("assert", quoted_list(&["SELECT pg_sleep(600) IS NOT NULL"]))]);
    // Early, while the container is made, and late.
    for moment in ["opsd-scratch", "SELECT"] {
        let mut child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
        until("its moment", || {
            let there = containers(engine, &opsd);
            there.iter().any(|id| moment != "SELECT" || runs_a_query(engine, id))
        });
        // Code of the set stops all that it may; nothing may stop the container's first process.
        containers(engine, &opsd).iter().filter(|_| moment == "SELECT").for_each(|id| {
            engine.try_docker(&["exec", id, "sh", "-c", STOP_ALL]);
        });
        child.kill().unwrap();
        child.wait().unwrap();
        until("the container is gone", || containers(engine, &opsd).is_empty());
    }
    assert!(left(&opsd) > 0, "nobody was there to remove it");
    opsd.verify.unset("assert");
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}

/// Made and never started, by an Engine whose client was killed at the wrong moment.
#[test]
fn the_next_rehearsal_removes_a_container_that_never_began() {
    let engine = engine();
    let (server, opsd, database) = site(engine, &[]);
    let directory = opsd.path("scratch").join("opsd-scratch-gone");
    let label = format!("opsd.scratch={}", directory.display());
    std::fs::create_dir_all(opsd.path("scratch")).unwrap();
    let found = std::fs::metadata(opsd.path("scratch")).unwrap();
    let here = format!("opsd.scratch_dir={}:{}", found.dev(), found.ino());
    let image = engine.postgres_image(MAJOR);
    engine.docker(&["create", "--label", &label, "--label", &here, &image]);
    // Of another scratch directory, and of one that has the same path elsewhere (another host, or a private /var/tmp).
    let elsewhere =
        engine.docker(&["create", "--label", "opsd.scratch=/nowhere/x", "--label", &here, &image]);
    let far = label.replace("gone", "far");
    let others = engine.docker(&["create", "--label", &far, "--label", "opsd.scratch_dir=1:2", &image]);
    let mine = engine.docker(&["create", "--label", "somebody=else", &engine.postgres_image(MAJOR)]);
    assert_eq!(containers(engine, &opsd).len(), 2);
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(containers(engine, &opsd).len(), 1);
    engine.docker(&["rm", "-v", &mine, &elsewhere, &others]);
    server.drop_database(&database);
}

#[test]
fn an_image_that_is_named_is_meant_and_the_servers_own_may_be_replaced_by_the_hosts_programs() {
    let engine = engine();
    let (server, mut opsd, database) = site(engine, &[("image", quoted("no/such:image"))]);
    opsd.run(&["restore", "--verify"])
        .expect_failure(1, &["no throw-away container", "no/such:image", "verify.image"]);
    opsd.verify.unset("image");
    opsd.postgres
        .set("container", quoted("nowhere"))
        .set("url", quoted(&format!("postgres://postgres@/{database}")));
    // The distribution's server is of the default major or newer.
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let found = result(&run);
    assert_eq!(found["verdict"], "proven", "{run}");
    let warnings = found["warnings"].to_string();
    assert!(warnings.contains("container nowhere") && warnings.contains("of this host are used"), "{run}");
    server.drop_database(&database);
}

/// It is held by its stdin, whoever holds that.
#[test]
fn a_container_ends_with_its_client() {
    let engine = engine();
    let (server, opsd, database) =
        site(engine, &[("assert", quoted_list(&["SELECT pg_sleep(600) IS NOT NULL"]))]);
    let child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
    until("the assertion runs", || containers(engine, &opsd).iter().any(|id| runs_a_query(engine, id)));
    let clients = crate::support::processes::descendants(child.id());
    let client = clients.iter().find(|process| process.command_line().contains("run")).expect("docker run");
    let killed = Command::new("kill").arg("-9").arg(client.pid.to_string()).status().unwrap();
    assert!(killed.success());
    let run = finish_child(child, "restore --verify".into());
    assert_eq!(run.code, Some(1), "{run}");
    until("the container is gone", || containers(engine, &opsd).is_empty());
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}
