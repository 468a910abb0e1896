//! A rehearsal in a throw-away container: where the host has no server that fits, and however it ends.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::security::executable;
use crate::support::engine::{Engine, engine};
use crate::support::fixtures;
use crate::support::inside::database_that_runs;
use crate::support::opsd::{Opsd, behind, finish, finish_child, quoted, quoted_list};
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
    let opsd = site_of(engine, server, &database, verify);
    (server, opsd, database)
}

/// The same with a database that is there.
fn site_of(engine: &Engine, server: &'static Server, database: &str, verify: &[(&str, String)]) -> Opsd {
    let mut opsd = Opsd::new(server, &[database]);
    opsd.verify.set("image", quoted(&engine.postgres_image(MAJOR)));
    for (key, value) in verify {
        opsd.verify.set(key, value.clone());
    }
    back_up(&opsd);
    opsd.postgres.unset("bin_dir");
    opsd.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("DOCKER_HOST", engine.host());
    opsd
}

/// Puts a client before Docker's own, a script that may change what it is asked for.
fn with_client(opsd: &mut Opsd, script: &str) {
    let directory = opsd.path("client");
    std::fs::create_dir_all(&directory).unwrap();
    executable(&directory.join("docker"), &format!("#!/bin/bash\n{script}\nexec /usr/bin/docker \"$@\"\n"));
    opsd.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", directory.display()));
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
    // They looked at an image, one for somebody who is long gone.
    let looked = ["1", "99999999999"]
        .map(|until| engine.docker(&["create", "--label", &format!("opsd.look={until}"), &image]));
    let mine = engine.docker(&["create", "--label", "somebody=else", &engine.postgres_image(MAJOR)]);
    assert_eq!(containers(engine, &opsd).len(), 2);
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(containers(engine, &opsd).len(), 1);
    assert_eq!(engine.try_docker(&["inspect", &looked[0]]).code, Some(1));
    engine.docker(&["rm", "-v", &mine, &elsewhere, &others, &looked[1]]);
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

/// An engine may hold less than it is asked for: without seccomp or control groups, or as its operator set it up.
#[test]
fn a_container_is_called_contained_as_far_as_the_kernel_says_so_in_it() {
    let engine = engine();
    let (server, mut opsd, database) = site(engine, &[]);
    let script = |without: &str, with: &str| {
        format!(
            "if [ \"$1 $2\" = 'run --interactive' ]; then words=()
                 for word in \"${{@:2}}\"; do case \"$word\" in {without}) ;; *) words+=(\"$word\") ;; esac; done
                 set -- run {with} \"${{words[@]}}\"
             fi"
        )
    };
    let without = "--cap-drop=*|--security-opt=no-new*|--memory=*|--pids-limit=*|--read-only";
    with_client(&mut opsd, &script(without, "--security-opt=seccomp=unconfined"));
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let contained = result(&run)["contained"].as_str().unwrap().to_owned();
    assert!(contained.starts_with("partly: "), "{contained}");
    for lacking in ["seccomp profile", "control group", "may get some", "can be written"] {
        assert!(contained.contains(lacking), "{contained}");
    }
    // The container of this one reaches others.
    with_client(&mut opsd, &script("--network=none", ""));
    let run = opsd.run(&["restore", "--verify"]);
    run.expect_failure(1, &["does not contain it: the network can be reached"]);
    assert!(containers(engine, &opsd).is_empty());
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}

#[test]
fn the_end_of_a_container_is_told_in_words_of_containers() {
    let engine = engine();
    let (server, mut opsd, database) =
        site(engine, &[("assert", quoted_list(&["SELECT pg_sleep(600) IS NOT NULL"]))]);
    let child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
    until("the assertion runs", || containers(engine, &opsd).iter().any(|id| runs_a_query(engine, id)));
    engine.docker(&["rm", "--force", &containers(engine, &opsd)[0]]);
    let run = finish_child(child, "restore --verify".into());
    run.expect_failure(1, &["its container was killed: somebody removed it, or the memory was used up"]);
    // Of what the engine says it is the first line, and not the client's advice.
    with_client(
        &mut opsd,
        "if [ \"$1 $2\" = 'run --interactive' ]; then set -- run --volumes-from=nowhere \"${@:2}\"; fi",
    );
    let run = opsd.run(&["restore", "--verify"]);
    let run = run.expect_failure(1, &["the container engine did not start the container", "nowhere"]);
    assert!(!run.stderr.contains("--help"), "{run}");
    // What belongs to opsd's user here belongs to somebody else there, as with an engine without root.
    with_client(
        &mut opsd,
        "case \"$1\" in info) echo '[name=seccomp,profile=default name=userns]'; exit ;; esac
         for word in \"$@\"; do case \"$word\" in
             --label=opsd.scratch=*) chown -R 1234:1234 \"${word#--label=opsd.scratch=}/data\" ;;
         esac; done",
    );
    let run = opsd.run(&["restore", "--verify"]);
    run.expect_failure(1, &["ended with status 1", "ermission denied", "gives users other numbers"]);
    assert!(containers(engine, &opsd).is_empty());
    assert_eq!(left(&opsd), 0);
    server.drop_database(&database);
}

/// The Engine keeps what it made and never started, and a client that is killed in between removes nothing.
#[test]
fn a_container_that_was_made_and_not_started_goes_with_ctrl_c() {
    let engine = engine();
    let (server, mut opsd, database) = site(engine, &[]);
    let made = opsd.path("made");
    for (does, kind) in [("!=", "that looks at the image"), ("=", "of the server")] {
        with_client(
            &mut opsd,
            &format!(
                "if [ \"$1\" = run ] && [ \"$2\" {does} --interactive ]; then
                     /usr/bin/docker create \"${{@:2}}\" > {0}.new; mv {0}.new {0}; exec sleep 600
                 fi",
                made.display()
            ),
        );
        let child = opsd.command(&["restore", "--verify", "--json"]).spawn().unwrap();
        until(kind, || made.exists());
        let id = std::fs::read_to_string(&made).unwrap();
        std::fs::remove_file(&made).unwrap();
        assert_eq!(engine.inspect(id.trim(), "{{.State.Status}}"), "created");
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        finish_child(child, "restore --verify".into()).expect_code(130);
        until(kind, || engine.try_docker(&["inspect", id.trim()]).code == Some(1));
        assert_eq!(left(&opsd), 0);
    }
    server.drop_database(&database);
}

/// What code of a set does to whatever may watch from inside.
const STOP_THE_OTHERS: &str = "for p in /proc/[0-9]*; do n=${p#/proc/}
     case $(readlink $p/exe) in */postgres) ;; *) [ $n = $$ ] || kill -STOP $n;; esac; done; ";

#[test]
fn code_that_stops_all_that_watches_it_does_not_fill_the_disk() {
    let engine = engine();
    let server = default_server();
    let fill = "i=0; while :; do i=$((i + 1)); head -c 8000000 /dev/zero > fill.$i || sleep 1; done";
    let database = database_that_runs(server, &format!("{STOP_THE_OTHERS} {fill}"));
    let opsd = site_of(engine, server, &database, &[]);
    let scratch = opsd.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=600m,mode=755 tmpfs {0} || exit 99\n\"$@\"\ncode=$?\nls {0}\numount {0}\nexit $code",
        scratch.display()
    );
    // Where the Engine sees the same disk.
    let command = behind(&["sh", "-c", &script, "sh"], &opsd.command(&["restore", "--verify"]));
    let run = finish(engine.among_its_mounts(&command));
    let run = run.expect_failure(1, &["the disk of", "is nearly full", "on a larger disk"]);
    assert!(!run.stdout.contains("opsd-scratch"), "{run}");
    assert!(containers(engine, &opsd).is_empty());
    server.drop_database(&database);
}

/// opsd in a container that has the Engine's socket, or as a service with `PrivateTmp=`.
#[test]
fn a_scratch_directory_that_the_engine_does_not_see_is_named_and_not_made_there() {
    let engine = engine();
    let (server, mut opsd, database) = site(engine, &[]);
    let scratch = opsd.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let script = format!("mount -t tmpfs -o mode=755 tmpfs {} && exec \"$@\"", scratch.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let run = finish(behind(&wrapper, &opsd.command(&["restore", "--verify"])));
    run.expect_failure(1, &["source path does not exist", "a directory that the engine sees"]);
    assert_eq!(left(&opsd), 0);

    // Some distributions have pg_config in a package of its own.
    let whole = engine.postgres_image(MAJOR);
    let program = format!("/usr/lib/postgresql/{MAJOR}/bin/pg_config");
    let made = engine.docker(&["create", "--entrypoint", "rm", &whole, &program]);
    engine.docker(&["start", "--attach", &made]);
    engine.docker(&["commit", &made, "without-pg-config"]);
    engine.docker(&["rm", "-v", &made]);
    opsd.verify.set("image", quoted("without-pg-config"));
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert!(result(&run)["server_version"].as_str().unwrap().starts_with("18."), "{run}");
    server.drop_database(&database);
}
