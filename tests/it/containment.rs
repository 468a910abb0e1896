//! What a rehearsal runs finds nothing, reaches nobody and leaves nothing: attacks by code that comes with
//! a dump, on every rung of the ladder that `src/sandbox.rs` describes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, geteuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::support::inside::{WAIT, await_file, database_that_runs, go, runs_in_scratch};
use crate::support::opsd::{Opsd, Run, behind, finish, finish_child, quoted};
use crate::support::postgres::{default_server, unique};
use crate::support::processes::{self, until};
use crate::support::sets::{back_up, contents, result};

/// System calls that a container's runtime refuses by default.
const NAMESPACES: &[i64] = &[
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
];
const LANDLOCK: &[i64] =
    &[libc::SYS_landlock_create_ruleset, libc::SYS_landlock_add_rule, libc::SYS_landlock_restrict_self];

/// Whom opsd runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum User {
    /// The tests' own.
    Own,
    /// One without privileges, to whom the site belongs.
    Ordinary,
}

/// What one attack found.
struct Attack {
    run: Run,
    /// What the code of the dump said.
    report: String,
    /// The line `Name:` of `/proc/PID/status` of a process that it started.
    status: BTreeMap<String, String>,
    contained: String,
}

/// Starts a command with system calls that fail, as in a container.
fn spawn_without(mut command: Command, denied: &[&[i64]]) -> Child {
    let rules = denied.concat().into_iter().map(|call| (call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    // A filter belongs to a thread, and to what that thread starts.
    let start = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        command.spawn().unwrap()
    });
    start.join().unwrap()
}

/// Gives the site to a user without privileges, and lets opsd run as that user.
fn as_ordinary(opsd: &Opsd, command: &Command) -> Command {
    let site = opsd.path("");
    // Wherever the tests were built may be closed to others.
    let program = opsd.path("opsd");
    if !program.exists() {
        // By a process of its own: what this one has open for writing, children of other threads may have, too,
        // and nothing runs that is open for writing.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_opsd")).arg(&program).status().unwrap();
        assert!(copied.success());
    }
    let given = Command::new("chown").args(["-R", "nobody:nogroup"]).arg(&site).status().unwrap();
    assert!(given.success());
    let wrapped = behind(
        &["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", program.to_str().unwrap()],
        command,
    );
    // Without the program's own name, which `behind` puts first.
    let mut bare = Command::new(wrapped.get_program());
    let arguments: Vec<_> = wrapped.get_args().filter(|a| *a != env!("CARGO_BIN_EXE_opsd")).collect();
    bare.args(arguments).env_clear().current_dir(&site);
    bare.envs(wrapped.get_envs().filter_map(|(name, value)| Some((name, value?))));
    bare.stdin(std::process::Stdio::null());
    bare.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    bare
}

fn rehearse(opsd: &Opsd, user: User, denied: &[&[i64]], args: &[&str]) -> Child {
    let command = opsd.command(&[&["restore", "--verify", "--json"], args].concat());
    let mut command = match user {
        User::Ordinary if geteuid().is_root() => as_ordinary(opsd, &command),
        User::Ordinary | User::Own => command,
    };
    if denied.is_empty() { command.spawn().unwrap() } else { spawn_without(command, denied) }
}

/// Rehearses a set whose code looks around, calls home, hides, and stays.
fn attack(user: User, denied: &[&[i64]], args: &[&str]) -> Attack {
    let server = default_server();
    let opsd = Opsd::without_server();
    let site = opsd.path("").display().to_string();
    let site = site.trim_end_matches('/');
    let home = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = home.local_addr().unwrap().port();
    let name = unique("planted");
    // The number tells its processes from those of other tests.
    let marker = format!("1{}", port);
    let script = format!(
        "exec > report.new 2>&1; d=$PWD
         for p in /proc/[0-9]*; do echo \"process $(tr '\\0' ' ' < $p/cmdline)\"; tr '\\0' '\\n' < $p/environ; done
         cat {site}/identity.txt {site}/sign.key {site}/opsd.toml
         ls {site}/repository && echo \"saw the repository\"
         cat {site}/scratch/neighbour/rows && echo \"saw a neighbour\"
         for f in {site}/identity.txt {site}/opsd.toml {site}/sign.key; do echo x >> $f; done
         rm -rf {site}/repository/test
         chmod 0666 {site}/identity.txt; chmod 000 {site}/sign.key; chmod 0777 {site}/repository
         touch -d 2001-01-01 {site}/opsd.toml {site}/identity.txt; chown 12345 {site}/sign.key
         ls /home/* /root /etc/opsd && echo \"saw a home\"
         bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port} && echo connected'
         for at in /tmp /dev/shm /var/tmp {site}/scratch {site}; do echo x > $at/{name}; done
         (cd /; env -i setsid sleep {marker} < /dev/null > /dev/null 2>&1 &)
         (cd /; env -i setsid sh -c 'setsid sleep {marker} &' < /dev/null > /dev/null 2>&1 &)
         cd \"$d\"; mv report.new report
         while [ ! -e go ]; do sleep 0.05; done"
    );
    let database = database_that_runs(server, &script);
    let mut opsd = opsd;
    opsd.postgres
        .set("url", quoted(&server.socket_url(crate::support::postgres::SUPERUSER, &database)))
        .set("bin_dir", quoted(crate::support::postgres::bin_dir(server.major).to_str().unwrap()));
    opsd.job.set("source", "{ postgres = \"main\" }");
    opsd.env("AWS_SECRET_ACCESS_KEY", "c4nary-of-the-environment");
    back_up(&opsd);
    let before = contents(&opsd);
    let keys = || ["identity.txt", "sign.key"].map(|name| std::fs::read(opsd.path(name)).unwrap());
    let keys_before = keys();
    let attributes = || {
        ["identity.txt", "sign.key", "opsd.toml", "repository"].map(|name| {
            let meta = opsd.path(name).metadata().unwrap();
            (name, meta.mode(), meta.uid(), meta.mtime())
        })
    };
    let scratch = opsd.path("scratch");
    std::fs::create_dir_all(scratch.join("neighbour")).unwrap();
    std::fs::write(scratch.join("neighbour/rows"), "rows of another job").unwrap();
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o711)).unwrap();

    let child = rehearse(&opsd, user, denied, args);
    // The site changes hands for an ordinary user, so this is what it is once opsd runs.
    let attributes_before = attributes();
    let report = await_file(&scratch, "report");
    let ours = || -> Vec<u32> {
        let all = processes::all().into_iter();
        all.filter(|p| p.command_line().trim_end() == format!("sleep {marker}")).map(|p| p.pid).collect()
    };
    until("what it started runs", || ours().len() == 2);
    let status = std::fs::read_to_string(format!("/proc/{}/status", ours()[0])).unwrap();
    let status = status.lines().filter_map(|line| line.split_once(":\t"));
    let status = status.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    go(&scratch);
    let run = finish_child(child, format!("restore --verify as {user:?}"));
    let contained = result(&run)["contained"].as_str().unwrap_or_default().to_owned();

    // Nothing of it stays, and nobody heard of it.
    assert_eq!(ours(), Vec::<u32>::new(), "it outlived its rehearsal: {run}");
    home.set_nonblocking(true).unwrap();
    assert!(home.accept().is_err(), "it called home: {run}");
    for at in ["/tmp", "/dev/shm", "/var/tmp", site, scratch.to_str().unwrap()] {
        assert!(!Path::new(at).join(&name).exists(), "it wrote to {at}: {run}");
    }
    let left: Vec<_> = scratch.read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["neighbour"], "{run}");
    for secret in [
        "c4nary-of-the-environment",
        "AGE-SECRET-KEY",
        "[encryption]",
        "untrusted comment",
        "rows of another job",
    ] {
        assert!(!report.contains(secret), "the code of a dump found {secret:?}:\n{report}\n{run}");
    }
    // Its own script shows in its list of processes, but not as a line.
    for said in ["saw the repository", "saw a neighbour", "connected"] {
        assert!(!report.lines().any(|line| line == said), "the code of a dump {said}:\n{report}\n{run}");
    }
    let after = contents(&opsd);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)), "a stored object changed");
    assert_eq!(keys(), keys_before, "a key changed");
    assert_eq!(attributes(), attributes_before, "a mode, an owner or a time changed");
    server.drop_database(&database);
    Attack { run, report, status, contained }
}

/// It gave up all that a process can give up.
fn has_no_privileges(attack: &Attack) {
    let status = |name: &str| attack.status.get(name).map(String::as_str);
    assert_eq!(status("CapEff"), Some("0000000000000000"));
    assert_eq!(status("CapPrm"), Some("0000000000000000"));
    assert_eq!(status("NoNewPrivs"), Some("1"));
    assert_eq!(status("Seccomp"), Some("2"));
    assert!(!status("Uid").unwrap().split_whitespace().any(|uid| uid == "0"), "{:?}", attack.status);
}

/// With namespaces: nothing of the host is there at all.
fn is_alone(attack: &Attack) {
    assert_eq!(attack.contained, "full", "{}", attack.run);
    assert!(!attack.report.lines().any(|line| line == "saw a home"), "{}", attack.report);
    let seen: Vec<&str> = attack.report.lines().filter(|line| line.starts_with("process ")).collect();
    assert!(!seen.is_empty(), "a /proc of its own: {}", attack.report);
    assert!(!seen.iter().any(|line| line.contains("keep-scratch") || line.contains("--verify")), "{seen:?}");
}

#[test]
fn what_a_rehearsal_runs_finds_nothing_reaches_nobody_and_leaves_nothing() {
    let attack = attack(User::Own, &[], &[]);
    let run = attack.run.command.clone();
    assert_eq!(result(&attack.run)["verdict"], "proven", "{run}: {}", attack.run);
    has_no_privileges(&attack);
    is_alone(&attack);
}

#[test]
fn nor_as_an_ordinary_user_with_user_namespaces() {
    let attack = attack(User::Ordinary, &[], &[]);
    assert_eq!(result(&attack.run)["verdict"], "proven", "{}", attack.run);
    has_no_privileges(&attack);
    is_alone(&attack);
}

/// A container's runtime refuses namespaces; then another user, Landlock, seccomp and the subreaper hold.
#[test]
fn nor_in_a_container_without_namespaces() {
    for user in [User::Own, User::Ordinary] {
        let attack = attack(user, &[NAMESPACES], &[]);
        assert_eq!(result(&attack.run)["verdict"], "proven", "{}", attack.run);
        has_no_privileges(&attack);
        assert!(attack.contained.starts_with("partly: "), "{}", attack.run);
        for lacking in ["no PID namespace", "no mount namespace"] {
            assert!(attack.contained.contains(lacking), "{}", attack.contained);
        }
        let hints = result(&attack.run)["hints"].to_string();
        assert!(hints.contains("contained partly"), "the operator is told: {hints}");
    }
}

/// What Docker leaves root, without CAP_SYS_PTRACE: neither environment nor directory of another user's process
/// can be read.
const DOCKER: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
    +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";

fn in_docker(command: &Command) -> Command {
    let (bounding, inheritable) = (format!("--bounding-set={DOCKER}"), format!("--inh-caps={DOCKER}"));
    behind(&["setpriv", &bounding, &inheritable], command)
}

/// A server that opsd could not find was not told to end: its directory went from under it after a minute, and
/// that minute counted as recovery.
#[test]
fn a_rehearsal_in_a_container_ends_at_once_and_its_phases_are_what_it_took() {
    if !geteuid().is_root() {
        return;
    }
    let server = default_server();
    let database = server.fresh_database("contained");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let begun = std::time::Instant::now();
    let command = in_docker(&opsd.command(&["restore", "--verify", "--json"]));
    let run = finish(command).expect_code(0);
    let took = begun.elapsed().as_secs_f64();
    let found = result(&run);
    assert_eq!(found["verdict"], "proven", "{run}");
    let seconds = found["seconds"].as_object().unwrap();
    let sum: f64 = seconds.values().map(|phase| phase.as_f64().unwrap()).sum();
    let total = found["total_seconds"].as_f64().unwrap();
    assert!((sum - total).abs() < 0.001 && total <= took, "{sum} of {total}, {took} in all");
    assert!(took - total < 20.0, "what is no phase took {} s: {run}", took - total);
    assert_eq!(processes::of_scratch(&opsd.path("scratch")), []);
    // Root that may not even enter a directory of another's waited five minutes for its server.
    let command = opsd.command(&["restore", "--verify", "--json"]);
    let command = behind(
        &["setpriv", "--bounding-set=-all,+chown,+setgid,+setuid", "--inh-caps=-all,+chown,+setgid,+setuid"],
        &command,
    );
    finish(command).expect_failure(1, &["without the capabilities DAC_OVERRIDE, KILL", "cap_add"]);
    server.drop_database(&database);
}

/// Without a PID namespace a server outlives its keeper, and whoever tidies up may not look into it.
#[test]
fn the_next_rehearsal_in_a_container_ends_a_server_that_was_left() {
    if !geteuid().is_root() {
        return;
    }
    let server = default_server();
    let database = server.fresh_database("left");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    server.psql(&database, &runs_in_scratch("hold", &crate::support::inside::reach_and_wait()));
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let scratch = opsd.path("scratch");
    let child = in_docker(&opsd.command(&["restore", "--verify"])).spawn().unwrap();
    await_file(&scratch, "reached");
    let family = processes::descendants(child.id());
    let keeper = family.iter().find(|process| process.command_line().contains("keep-scratch")).unwrap();
    let kill = |pid: u32, signal: Signal| {
        rustix::process::kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    };
    // It must not see that its owner dies before it.
    kill(keeper.pid, Signal::STOP);
    kill(child.id(), Signal::KILL);
    assert_eq!(finish_child(child, "restore --verify".into()).code, None);
    kill(keeper.pid, Signal::KILL);
    let left = processes::of_scratch(&scratch);
    assert!(left.iter().any(processes::Process::lives), "nothing outlived the keeper, so this shows nothing");
    let reached = crate::support::inside::data_file(&scratch, "reached").unwrap();
    std::fs::remove_file(reached).unwrap();

    let child = in_docker(&opsd.command(&["restore", "--verify", "--json"])).spawn().unwrap();
    await_file(&scratch, "reached");
    // The server itself notices after a minute that its directory is gone.
    assert!(!left.iter().any(processes::Process::lives), "a server lives that has no directory any more");
    go(&scratch);
    let run = finish_child(child, "restore --verify".into()).expect_code(0);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert!(scratch.read_dir().unwrap().next().is_none());
    server.drop_database(&database);
}

/// Where opsd's own user would run the code, and nothing stands between it and the identity.
#[test]
fn a_machine_that_contains_nothing_is_refused_unless_the_operator_says_otherwise() {
    let server = default_server();
    let database = database_that_runs(server, "true");
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let denied = &[NAMESPACES, LANDLOCK];
    let run = finish_child(rehearse(&opsd, User::Ordinary, denied, &[]), "restore --verify".into());
    let run = run.expect_failure(1, &["does not contain it", "no Landlock", "--uncontained"]);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    assert!(opsd.path("scratch").read_dir().unwrap().next().is_none(), "{run}");
    let run = finish_child(
        rehearse(&opsd, User::Ordinary, denied, &["--uncontained"]),
        "restore --verify --uncontained".into(),
    );
    let run = run.expect_code(0);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert!(result(&run)["contained"].as_str().unwrap().starts_with("no: "), "{run}");
    server.drop_database(&database);
}

/// Too many of them overflowed the stack of whatever removed them: 40,000 where the unit test of
/// `sandbox::remove` makes as many; fewer here, as making them takes the longer the deeper they are.
#[test]
fn nested_directories_are_removed_however_deep() {
    let server = default_server();
    let script = "perl -e 'for (1 .. 15000) { mkdir \"d\" or die; chdir \"d\" or die }'";
    let database = database_that_runs(server, script);
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    assert!(opsd.path("scratch").read_dir().unwrap().next().is_none(), "{run}");
    server.drop_database(&database);
}

/// It ends its own server, and nobody else.
#[test]
fn a_dump_that_kills_all_that_it_can_harms_its_own_rehearsal_alone() {
    let server = default_server();
    let database = database_that_runs(server, "kill -9 -1");
    for (user, denied) in [(User::Own, &[][..]), (User::Ordinary, &[]), (User::Ordinary, &[NAMESPACES])] {
        let opsd = Opsd::new(server, &[&database]);
        back_up(&opsd);
        let mut neighbour = Command::new("setpriv")
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "sleep", "600"])
            .spawn()
            .unwrap();
        let run = finish_child(rehearse(&opsd, user, denied, &[]), format!("restore --verify as {user:?}"));
        let lives = neighbour.try_wait().unwrap().is_none();
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();
        let run = run.expect_code(1);
        assert_eq!(result(&run)["verdict"], "failed", "{run}");
        assert!(lives || !geteuid().is_root(), "another process of the same user was ended: {run}");
        assert!(opsd.path("scratch").read_dir().unwrap().next().is_none(), "{run}");
    }
    server.drop_database(&database);
}

/// The processes of a sandbox answer opsd over their stdout.
#[test]
fn what_the_code_of_a_dump_says_in_opsds_name_is_not_heard() {
    let server = default_server();
    let script =
        "for p in /proc/[0-9]*; do echo '{\"failed\":[\"a forged reason\",null]}' >> $p/fd/1; done; exit 1";
    let database = database_that_runs(server, script);
    for user in [User::Own, User::Ordinary] {
        let opsd = Opsd::new(server, &[&database]);
        back_up(&opsd);
        let run = finish_child(rehearse(&opsd, user, &[], &[]), format!("restore --verify as {user:?}"));
        let run = run.expect_code(3);
        assert_eq!(result(&run)["verdict"], "differs", "{run}");
        assert!(!run.to_string().contains("a forged reason"), "the code of a dump spoke for opsd: {run}");
    }
    server.drop_database(&database);
}

/// A service's mask is often stricter than a shell's.
#[test]
fn a_rehearsal_works_whatever_the_mask_is() {
    let server = default_server();
    let database = database_that_runs(server, "true");
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let wrapper = ["sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let run = finish(behind(&wrapper, &opsd.command(&["restore", "--verify", "--json"]))).expect_code(0);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    server.drop_database(&database);
}

#[test]
fn a_rehearsal_that_never_ends_is_ended() {
    let server = default_server();
    let database = server.fresh_database("endless");
    server.psql(&database, &runs_in_scratch("endless", WAIT));
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.verify.set("timeout", quoted("20s"));
    back_up(&opsd);
    let run = opsd.run(&["restore", "--verify", "--json"]);
    let run = run.expect_failure(1, &["did not end within 20 s", "verify.timeout"]);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    assert!(opsd.path("scratch").read_dir().unwrap().next().is_none(), "{run}");
    server.drop_database(&database);
}

/// The rest of the host needs room as well.
#[test]
fn a_disk_is_not_filled() {
    let server = default_server();
    // It fails to write more once it is ended, and never by itself.
    let script = "i=0; while :; do i=$((i + 1)); head -c 8000000 /dev/zero > fill.$i || sleep 1; done";
    let database = database_that_runs(server, script);
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let scratch = opsd.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o755)).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=600m,mode=755 tmpfs {0} || exit 99\n\"$@\"\ncode=$?\nls {0}\nexit $code",
        scratch.display()
    );
    let namespace: &[&str] = if geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    };
    let wrapper: Vec<&str> = namespace.iter().copied().chain(["sh", "-c", &script, "sh"]).collect();
    let run = finish(behind(&wrapper, &opsd.command(&["restore", "--verify"])));
    let run = run.expect_failure(1, &["the disk of", "is nearly full"]);
    assert!(!run.stdout.contains("opsd-scratch"), "{run}");
    server.drop_database(&database);
}
