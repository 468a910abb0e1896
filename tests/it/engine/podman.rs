//! Podman, which has no daemon: containers of the tests' own, in a store of their own.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::security::executable;
use crate::support::engine::engine;
use crate::support::opsd::{Opsd, Run, finish, quoted, quoted_list};
use crate::support::processes::until;
use crate::support::sets::result;

/// Newer than what a distribution has.
const MAJOR: u32 = 17;

/// Podman with everything that it keeps in a directory. More open files and processes than these may be more than whoever
/// runs the tests may give.
const PODMAN: &str = r#"#!/bin/sh
export CONTAINERS_CONF=@DIR@/containers.conf
if [ "$1" = run ]; then shift; set -- run --ulimit=nofile=1024:1024 --ulimit=nproc=4096:4096 "$@"; fi
exec /usr/bin/podman --root @DIR@/root --runroot @DIR@/run --tmpdir @DIR@/tmp --storage-driver @DRIVER@ --runtime runc "$@"
"#;

const CONF: &str =
    "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nlock_type = \"file\"\n";

struct Podman {
    directory: tempfile::TempDir,
}

impl Podman {
    fn new() -> Podman {
        let directory = tempfile::Builder::new().prefix("opsd-it-podman-").tempdir_in("/var/tmp").unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::create_dir(directory.path().join("bin")).unwrap();
        std::fs::write(directory.path().join("containers.conf"), CONF).unwrap();
        let program = PODMAN.replace("@DIR@", path);
        let podman = Podman { directory };
        // The first copies nothing, and does not work on every file system.
        let works = |driver: &str| {
            executable(&podman.program(), &program.replace("@DRIVER@", driver));
            podman.run(&["info"]).code == Some(0)
        };
        assert!(["overlay", "vfs"].iter().any(|driver| works(driver)), "podman has no storage");
        podman
    }

    fn program(&self) -> std::path::PathBuf {
        self.directory.path().join("bin/podman")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program());
        command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.directory.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        finish(self.command(args))
    }

    fn ok(&self, args: &[&str]) -> String {
        self.run(args).expect_code(0).stdout.trim_end().to_owned()
    }

    /// Takes an image over from the Engine; its id.
    fn image(&self, name: &str) -> String {
        let mut save = engine().client("docker", &["save", name]).spawn().unwrap();
        let mut load = self.command(&["load", "--quiet"]);
        load.stdin(save.stdout.take().unwrap());
        finish(load).expect_code(0);
        assert!(save.wait().unwrap().success());
        self.ok(&["images", "--quiet", "--no-trunc"]).trim_start_matches("sha256:").to_owned()
    }

    fn containers(&self) -> Vec<String> {
        self.ok(&["ps", "--all", "--format", "{{.Names}}"]).lines().map(str::to_owned).collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.run(&["rm", "--all", "--force", "--volumes", "--time", "0"]);
        let mounted = self.directory.path().join("root/overlay");
        let _ = Command::new("umount").arg("--lazy").arg(mounted).stderr(Stdio::null()).status();
        // Somebody else's are not empty, and stay.
        let mut groups = Command::new("find");
        groups.args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", "*/libpod_parent*"]);
        groups.args(["-exec", "rmdir", "{}", "+"]).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = groups.status();
    }
}

#[test]
fn podman_backs_up_through_a_container_and_rehearses_in_one_of_its_image() {
    let podman = Podman::new();
    let image = podman.image(&engine().postgres_image(MAJOR));
    let run = ["run", "-d", "--name", "site-db", "--network", "none", "-e", "POSTGRES_USER=site"];
    podman.ok(&[&run[..], &["-e", "POSTGRES_PASSWORD=secret", &image]].concat());
    let psql = ["exec", "site-db", "psql", "-h", "127.0.0.1", "-U", "site", "-c"];
    until("the server answers", || podman.run(&[&psql[..], &["SELECT 1"]].concat()).code == Some(0));
    podman.ok(&[&psql[..], &["CREATE TABLE accounts AS SELECT generate_series(1, 999) AS id"]].concat());

    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted("postgres://site@/site")).set("container", quoted("site-db"));
    opsd.postgres.set("container_client", quoted("podman"));
    opsd.job.set("source", "{ postgres = \"main\" }");
    let path = with_podman_alone(&opsd, &podman.program());
    opsd.env("PGPASSWORD", "secret").env("PATH", path);
    let plan = opsd.ok(&["backup", "--dry-run", "--json"]);
    assert_eq!(plan.json()["plans"][0]["way"], "container site-db, through podman exec", "{plan}");
    opsd.ok(&["backup"]);
    let top = podman.ok(&["top", "site-db", "args"]);
    assert!(!top.contains("pg_dump") && !top.contains("dd "), "{top}");

    // The image of a container that is stopped will do.
    podman.ok(&["stop", "--time", "60", "site-db"]);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let found = result(&run);
    assert_eq!((&found["verdict"], &found["contained"]), (&"proven".into(), &"full".into()), "{run}");
    assert!(found["server_version"].as_str().unwrap().starts_with("17."), "{run}");
    assert_eq!(podman.containers(), ["site-db"]);
    let left = || std::fs::read_dir(opsd.path("scratch")).map_or(0, Iterator::count);
    assert_eq!(left(), 0);

    // Whoever is killed takes the container along, and the next one removes the directory.
    opsd.verify.set("assert", quoted_list(&["SELECT pg_sleep(600) IS NOT NULL"]));
    let mut child = opsd.command(&["restore", "--verify"]).spawn().unwrap();
    let runs_a_query = |name: &String| podman.run(&["top", name, "args"]).stdout.contains("SELECT");
    until("the assertion runs", || podman.containers().iter().any(runs_a_query));
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    until("the container is gone", || podman.containers() == ["site-db"]);
    opsd.verify.unset("assert");
    opsd.ok(&["restore", "--verify"]);
    assert_eq!(podman.containers(), ["site-db"]);
    assert_eq!(std::fs::read_dir(opsd.path("scratch")).unwrap().count(), 0);
}

/// A PATH without anything of PostgreSQL's: the wrapper's own programs are found by its shell.
fn with_podman_alone(opsd: &Opsd, podman: &Path) -> String {
    let directory = opsd.path("programs");
    std::fs::create_dir(&directory).unwrap();
    std::os::unix::fs::symlink(podman, directory.join("podman")).unwrap();
    directory.display().to_string()
}
