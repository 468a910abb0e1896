//! What decides what root does belongs to root: a configuration that somebody else may change names the
//! programs that root runs.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::process::geteuid;

use crate::support::certificates::{Authority, in_days};
use crate::support::opsd::{Opsd, Run, finish_child, quoted, write_private};
use crate::support::processes::until;

/// Another user than root, who need not exist.
const SOMEBODY: u32 = 4711;

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// A site whose configuration has no mistake and names no server.
fn site() -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted("postgres://u@127.0.0.1/d?sslmode=require"));
    opsd
}

/// Checks a configuration that the test wrote, changed and named itself.
fn check(opsd: &Opsd, config: &Path) -> Run {
    let mut command = opsd.command(&["config", "check"]);
    command.env("OPSD_CONFIG", config);
    crate::support::opsd::finish(command)
}

#[test]
fn root_follows_no_configuration_that_somebody_else_may_change() {
    if !geteuid().is_root() {
        return;
    }
    let opsd = site();
    let place = opsd.path("place");
    std::fs::create_dir(&place).unwrap();
    let config = place.join("named.toml");
    write_private(&config, &opsd.config());
    check(&opsd, &config).expect_code(0);
    let refused = |why: &str| {
        let run = check(&opsd, &config).expect_failure(2, &["named.toml", why, "hint: "]);
        assert_eq!(run.stdout, "", "nothing of it was followed: {run}");
    };

    for mode in [0o666, 0o660, 0o602] {
        chmod(&config, mode);
        refused(&format!("has mode {mode:04o}, which lets others write it"));
    }
    chmod(&config, 0o600);
    chown(&config, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
    chown(&config, Some(0), None).unwrap();

    // Whoever may write the directory puts another file in its place.
    chmod(&place, 0o777);
    refused("has mode 0777, which lets others write it");
    chmod(&place, 0o755);
    chown(&place, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
    chown(&place, Some(0), None).unwrap();

    // Whoever made the link chose the file.
    let target = place.join("target.toml");
    std::fs::rename(&config, &target).unwrap();
    symlink("target.toml", &config).unwrap();
    check(&opsd, &config).expect_code(0);
    std::os::unix::fs::lchown(&config, Some(SOMEBODY), None).unwrap();
    refused("belongs to user 4711");
}

/// Writes into a pipe once somebody reads it; who never does leaves a thread behind.
fn feed(pipe: &Path, text: String) {
    let pipe = pipe.to_owned();
    std::thread::spawn(move || std::fs::write(pipe, text));
}

/// What is in a pipe that has a name is up to whoever may write into it.
#[test]
fn root_follows_no_configuration_out_of_somebody_elses_pipe() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    if !geteuid().is_root() {
        return;
    }
    let opsd = site();
    let text = opsd.config();
    let place = opsd.path("place");
    std::fs::create_dir(&place).unwrap();
    let pipe = place.join("pipe.toml");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    feed(&pipe, text.clone());
    check(&opsd, &pipe).expect_code(0);

    let refused = |config: &Path, why: &str| {
        let run = check(&opsd, config).expect_failure(2, &["pipe.toml", why, "hint: "]);
        assert_eq!(run.stdout, "", "nothing of it was followed: {run}");
    };
    feed(&pipe, text.clone());
    chmod(&pipe, 0o622);
    refused(&pipe, "has mode 0622, which lets others write it");
    chmod(&pipe, 0o600);
    chown(&pipe, Some(SOMEBODY), None).unwrap();
    refused(&pipe, "belongs to user 4711");
    let link = opsd.path("link-to-pipe.toml");
    symlink(&pipe, &link).unwrap();
    refused(&link, "belongs to user 4711");
    chown(&pipe, Some(0), None).unwrap();
    chmod(&place, 0o777);
    refused(&pipe, "has mode 0777, which lets others write it");
}

/// Whoever waits for a pipe that nobody feeds, or that is never closed, can be ended like any command.
#[test]
fn a_configuration_that_never_comes_keeps_nobody_from_ending_opsd() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use rustix::process::{Pid, Signal, kill_process};
    let opsd = site();
    let pipe = opsd.path("pipe.toml");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for (signal, code, half) in
        [(Signal::TERM, 143, false), (Signal::INT, 130, false), (Signal::TERM, 143, true)]
    {
        for args in [&["config", "check"][..], &["backups", "list"], &["exporter"], &["check"]] {
            let mut command = opsd.command(&[&["--config", pipe.to_str().unwrap()], args].concat());
            let child = command.spawn().unwrap();
            let pid = Pid::from_child(&child);
            // Then it is open, and nothing comes.
            let writer = half.then(|| std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
            until("it listens for signals", || catches(pid, signal) && sleeps(pid));
            kill_process(pid, signal).unwrap();
            let ended = std::time::Instant::now();
            finish_child(child, args.join(" ")).expect_code(code);
            assert!(ended.elapsed() < std::time::Duration::from_secs(5), "{:?}", ended.elapsed());
            drop(writer);
        }
    }
}

/// Whether a process has a handler of its own for a signal.
fn catches(pid: rustix::process::Pid, signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    caught & (1 << (signal.as_raw() - 1)) != 0
}

/// Whether one of its threads waits in the pipe.
fn sleeps(pid: rustix::process::Pid) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.into_iter().any(|task| {
        let at = std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        at.contains("wait_for_partner") || at.contains("pipe")
    })
}

/// What whoever started opsd handed it: a pipe without a name, in each of the ways to name it.
#[test]
fn a_configuration_may_come_out_of_the_callers_own_pipe() {
    let opsd = site();
    let ways = [
        "cat opsd.toml | \"$0\" config check --config /dev/stdin",
        "cat opsd.toml | \"$0\" config check --config /dev/fd/0",
        "cat opsd.toml | \"$0\" config check --config /proc/self/fd/0",
        "\"$0\" config check --config <(cat opsd.toml)",
        "\"$0\" config check --config /dev/stdin <opsd.toml",
        "\"$0\" config check --config /dev/stdin <<<\"$(cat opsd.toml)\"",
    ];
    for script in ways {
        let command = opsd.command(&["config", "check"]);
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", script]).arg(command.get_program()).env_clear().env("PATH", "/usr/bin:/bin");
        shell.current_dir(opsd.path("")).stdin(std::process::Stdio::null());
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        crate::support::opsd::finish(shell).expect_code(0);
    }
    if geteuid().is_root() {
        // A file that is somebody else's stays one, however it is handed over.
        chown(opsd.path("opsd.toml"), Some(SOMEBODY), None).unwrap();
        let mut shell = std::process::Command::new(env!("CARGO_BIN_EXE_opsd"));
        shell.args(["config", "check", "--config", "/dev/stdin"]).env_clear();
        shell.stdin(std::fs::File::open(opsd.path("opsd.toml")).unwrap());
        shell.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let run = crate::support::opsd::finish(shell).expect_failure(2, &["belongs to user 4711"]);
        assert_eq!(run.stdout, "", "{run}");
    }
}

#[test]
fn root_reads_no_named_file_that_somebody_else_may_change() {
    if !geteuid().is_root() {
        return;
    }
    let mut opsd = site();
    let authority = Authority::new("authority", in_days(30));
    let own = |name: &str| opsd.path(name);
    authority.sign(&[], "client", in_days(30)).write(&own("client.crt"), &own("client.key"), &[]);
    authority.pair.write(&own("ca.crt"), &own("ca.key"), &[]);
    write_private(&own("recipients.txt"), &opsd.recipient);
    write_private(&own("redis.password"), "word");
    write_private(&own("services.conf"), "[here]\nhost=127.0.0.1\n");
    std::fs::create_dir(own("bin")).unwrap();
    write_private(&own("bin/pg_dump"), "#!/bin/sh\necho 'pg_dump (PostgreSQL) 17.1'\n");
    chmod(&own("bin/pg_dump"), 0o755);
    let at = |name: &str| opsd.path(name).display().to_string();
    let url = format!(
        "postgres://u@/d?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}&service=here&servicefile={}",
        at("ca.crt"),
        at("client.crt"),
        at("client.key"),
        at("services.conf"),
    );
    let (bin, recipients) = (at("bin"), at("recipients.txt"));
    let more = format!(
        "\n[redis.r]\nurl = \"rediss://127.0.0.1:1/0\"\npassword_file = {}\nca_file = {}\ncert_file = {}\nkey_file = {}\n",
        quoted(&at("redis.password")),
        quoted(&at("ca.crt")),
        quoted(&at("client.crt")),
        quoted(&at("client.key")),
    );
    opsd.postgres.set("url", quoted(&url)).set("bin_dir", quoted(&bin));
    opsd.encryption.unset("recipients").set("recipients_file", quoted(&recipients));
    opsd.more = more;
    opsd.ok(&["config", "check"]);

    let named = [
        "recipients.txt",
        "identity.txt",
        "sign.key",
        "ca.crt",
        "client.crt",
        "client.key",
        "redis.password",
        "services.conf",
        "bin",
        "bin/pg_dump",
    ];
    for name in named {
        let path = opsd.path(name);
        chown(&path, Some(SOMEBODY), None).unwrap();
        let run = opsd.run(&["config", "check"]);
        chown(&path, Some(0), None).unwrap();
        run.expect_failure(2, &["belongs to user 4711", "chown root"]);
        let before = std::fs::metadata(&path).unwrap().permissions().mode();
        chmod(&path, before | 0o022);
        let run = opsd.run(&["config", "check"]);
        chmod(&path, before);
        run.expect_failure(2, &["lets others"]);
    }
    opsd.ok(&["config", "check"]);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let opsd = site();
    for name in ["identity.txt", "sign.key"] {
        for mode in [0o644, 0o640, 0o604] {
            chmod(&opsd.path(name), mode);
            let why = format!("mode {mode:04o} lets others read it");
            opsd.run(&["config", "check"]).expect_failure(2, &[name, &why, "chmod 600"]);
        }
        chmod(&opsd.path(name), 0o600);
    }
    opsd.ok(&["config", "check"]);
}

#[test]
fn a_clients_key_that_others_may_read_is_refused_like_every_other_key() {
    let mut opsd = site();
    let authority = Authority::new("authority", in_days(30));
    let client = authority.sign(&[], "client", in_days(30));
    client.write(&opsd.path("client.crt"), &opsd.path("client.key"), &[]);
    let (cert, key) = (opsd.path("client.crt"), opsd.path("client.key"));
    let redis = format!(
        "\n[redis.r]\nurl = \"rediss://127.0.0.1:1/0\"\ncert_file = {}\nkey_file = {}\n",
        quoted(cert.to_str().unwrap()),
        quoted(key.to_str().unwrap()),
    );
    let url = format!(
        "postgres://u@127.0.0.1/d?sslmode=require&sslcert={}&sslkey={}",
        cert.display(),
        key.display()
    );
    for of_redis in [true, false] {
        if of_redis {
            opsd.more.clone_from(&redis);
        } else {
            opsd.more.clear();
            opsd.postgres.set("url", quoted(&url));
        }
        chmod(&key, 0o600);
        opsd.ok(&["config", "check"]);
        for mode in [0o644, 0o640, 0o604] {
            chmod(&key, mode);
            let why = format!("mode {mode:04o} lets others read it");
            opsd.run(&["config", "check"]).expect_failure(2, &["client.key", &why, "chmod 600"]);
        }
    }
}
