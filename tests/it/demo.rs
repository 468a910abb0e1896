//! `make demo`, with the binary of this build: it must go through, and leave nothing behind.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::opsd::finish_child;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where the demo may put things; it must be empty in the end.
fn playground() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("od-").tempdir_in("/var/tmp").expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
    directory
}

fn start(directory: &Path) -> Child {
    let opsd = Path::new(env!("CARGO_BIN_EXE_opsd"));
    let demo = opsd.with_file_name("examples").join("demo");
    assert!(demo.exists(), "{} is missing: cargo build --example demo", demo.display());
    let mut command = Command::new(demo);
    command.arg(opsd).env("TMPDIR", directory).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start the demo")
}

/// Processes whose command line or working directory has the directory in it.
fn processes_in(directory: &Path) -> Vec<String> {
    let needle = directory.to_str().expect("a UTF-8 path");
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| !p.ends_with(&own)).collect();
    let uses = |pid: &PathBuf| {
        let line = String::from_utf8_lossy(&std::fs::read(pid.join("cmdline")).ok()?).replace('\0', " ");
        let cwd = std::fs::read_link(pid.join("cwd")).unwrap_or_default();
        (line.contains(needle) || cwd.starts_with(directory)).then_some(line)
    };
    pids.iter().filter_map(uses).collect()
}

fn files_in(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).expect("read a directory").flatten().map(|e| e.path()).collect()
}

#[test]
fn the_demo_goes_through_and_leaves_nothing() {
    let directory = playground();
    let run = finish_child(start(directory.path()), "demo".into()).expect_code(0);
    for words in ["$ opsd restore --verify", "(exit code 3)", "  differs ", "nothing is left running"] {
        assert!(run.stdout.contains(words), "{words:?} is missing in {run}");
    }
    assert!(!run.stdout.contains('\u{1b}'), "colours in a pipe: {run}");
    assert_eq!(processes_in(directory.path()), [""; 0]);
    assert_eq!(files_in(directory.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let directory = playground();
    let child = start(directory.path());
    let deadline = Instant::now() + PATIENCE;
    // A server runs by now.
    while !processes_in(directory.path()).iter().any(|line| line.contains("postgres")) {
        assert!(Instant::now() < deadline, "the demo started no server");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signal");
    finish_child(child, "demo".into()).expect_failure(1, &["stopped"]);
    assert_eq!(processes_in(directory.path()), [""; 0]);
    assert_eq!(files_in(directory.path()), Vec::<PathBuf>::new());
}
