//! What README tells people to copy: systemd units, cron lines, commands. They are taken from the file
//! and run, with other paths and nothing else changed.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::geteuid;

use crate::support::opsd::{Opsd, Run, finish};
use crate::support::postgres::{Options, Server, default_major};
use crate::support::sets::{back_up, complete};

const README: &str = include_str!("../../README.md");

/// The fenced block of this language (or of none) that holds `text`.
fn block(language: &str, text: &str) -> String {
    let (mut found, mut open): (Vec<String>, Option<(String, String)>) = (Vec::new(), None);
    for line in README.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => {
                let (kind, content) = open.take().unwrap();
                if kind == language && content.contains(text) {
                    found.push(content);
                }
            }
            (None, Some((_, content))) => content.push_str(&format!("{line}\n")),
            (None, None) => {}
        }
    }
    assert_eq!(found.len(), 1, "blocks with {text:?}");
    found.remove(0)
}

fn on_path(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

fn run(mut command: Command) -> Run {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(command)
}

/// What a unit must not do without: `packaging/systemd` gives opsd no more than it needs.
const HARDENED: &[&str] = &[
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "CapabilityBoundingSet=",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "SystemCallFilter=@system-service",
    "LimitCORE=0",
];

#[test]
fn systemd_understands_the_units() {
    let directory = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        if name.ends_with(".service") {
            let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/opsd "));
            let words = start.expect("a command of opsd").split(' ').chain(["--help"]);
            let mut help = Command::new(env!("CARGO_BIN_EXE_opsd"));
            help.args(words);
            run(help).expect_code(0);
            for line in HARDENED {
                assert!(text.lines().any(|l| l.starts_with(line)), "{name} lacks {line}");
            }
        }
        let text = text.replace("/usr/local/bin/opsd", env!("CARGO_BIN_EXE_opsd"));
        std::fs::write(directory.path().join(&name), text).unwrap();
        names.push(name);
    }
    names.sort();
    let expected = ["backup.service", "backup.timer", "exporter.service", "verify.service", "verify.timer"];
    assert_eq!(names, expected.map(|name| format!("opsd-{name}")));
    // Where there is no systemd, nobody can be asked.
    if on_path("systemd-analyze") {
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no", "--recursive-errors=no"]);
        verify.args(names.iter().map(|name| directory.path().join(name)));
        let run = run(verify).expect_code(0);
        assert!(!run.stderr.contains("opsd-"), "{run}");
    }
}

/// Each claim of `docs/security.md` names tests, and each of these exists.
#[test]
fn what_protects_from_what_is_tested() {
    let mut sources = String::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut directories = vec![root.join("tests/it"), root.join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                sources.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let page = include_str!("../../docs/security.md");
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        for name in row.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() > 2) {
            named += 1;
            let begins = name.trim_end_matches('…');
            assert!(sources.contains(&format!("fn {begins}")), "no test is called {name}");
        }
    }
    assert!(named > 40, "{named} tests are named");
}

/// Runs a line's command as cron does: its own few variables, those of the file, `/bin/sh`.
fn as_cron(opsd: &Opsd, path: &str, command: &str) -> Run {
    // For its configuration to be written.
    opsd.command(&["--help"]);
    let mut shell = Command::new("/bin/sh");
    shell
        .env_clear()
        .env("HOME", opsd.path(""))
        .env("LOGNAME", "root")
        .env("SHELL", "/bin/sh")
        .env("PATH", path)
        .env("OPSD_CONFIG", opsd.path("opsd.toml"))
        .current_dir(opsd.path(""))
        .args(["-c", command]);
    run(shell)
}

#[test]
fn cron_lines_are_silent_on_success_and_clear_on_failure() {
    let file = block("", "opsd backup\n");
    let path = file.lines().find_map(|line| line.strip_prefix("PATH=")).expect("PATH");
    assert!(path.split(':').any(|dir| dir == "/usr/local/bin"), "where README installs it: {path}");
    let server = Server::start(default_major(), &Options::default());
    server.psql("postgres", "CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    let mut opsd = Opsd::new(&server, &["postgres"]);
    opsd.job.set("retention", "{ last = 3 }");
    std::fs::create_dir(opsd.path("local")).unwrap();
    symlink(env!("CARGO_BIN_EXE_opsd"), opsd.path("local/opsd")).unwrap();
    let path = path.replace("/usr/local/bin", opsd.path("local").to_str().unwrap());

    let mut commands = Vec::new();
    for line in file.lines().filter(|line| !line.contains('=')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Five of the time, the user, the command.
        let is_time = |field: &&str| *field == "*" || field.parse::<u8>().is_ok();
        assert!(fields.len() > 6 && fields[..5].iter().all(is_time) && fields[5] == "root", "{line}");
        commands.push(fields[6..].join(" "));
    }
    let sweep = "opsd --quiet backups sweep";
    assert_eq!(commands, ["opsd backup", "opsd --quiet backups prune", "opsd restore --verify", sweep]);
    for command in &commands {
        let run = as_cron(&opsd, &path, command).expect_code(0);
        assert_eq!(run.stdout, "", "{run}");
        assert_eq!(run.stderr, "", "{run}");
    }
    assert_eq!(complete(&opsd).len(), 1);
    drop(server);
    let run = as_cron(&opsd, &path, &commands[0]).expect_failure(1, &["cannot connect", "hint: "]);
    assert_eq!((run.stdout.as_str(), run.stderr.matches("error: ").count()), ("", 1), "{run}");
}

/// In a tree of its own, with the files that a system has.
#[test]
fn the_scratch_user_is_made_by_the_line_that_says_so() {
    let block = block("sh", "useradd");
    let line = block.lines().find(|line| line.contains("useradd")).unwrap();
    let line = line.strip_prefix("sudo ").expect("sudo");
    let known = run({
        let mut help = Command::new("/usr/sbin/useradd");
        help.arg("--help");
        help
    });
    for option in line.split(' ').filter(|word| word.starts_with("--")) {
        assert!(known.stdout.contains(option), "{option}: {known}");
    }
    // Only root may write a password file, wherever it is.
    if geteuid().is_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        for (name, text) in [
            ("passwd", "root:x:0:0::/root:/bin/sh\n"),
            ("group", "root:x:0:\n"),
            ("shadow", "root:*:::::::\n"),
        ] {
            std::fs::write(root.path().join("etc").join(name), text).unwrap();
        }
        let mut command = Command::new("/bin/sh");
        let line = line.replace("useradd", &format!("/usr/sbin/useradd --prefix {}", root.path().display()));
        command.args(["-c", &line]);
        run(command).expect_code(0);
        let users = std::fs::read_to_string(root.path().join("etc/passwd")).unwrap();
        let user = users.lines().find(|line| line.starts_with("opsd-scratch:")).expect("the user");
        assert!(user.ends_with(":/usr/sbin/nologin"), "{user}");
    }
}

/// With a copy in the place of the download, which is what `aws s3 cp --recursive` makes of a prefix.
#[test]
fn the_way_back_without_opsd_is_one() {
    let block = block("sh", "aws s3 cp");
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE accounts AS SELECT generate_series(1, 100) AS id");
    let opsd = Opsd::new(&server, &["app"]);
    let id = back_up(&opsd);
    let mut lines = block.lines();
    let download = lines.next().unwrap();
    let words: Vec<&str> = download.split(' ').collect();
    let [aws, s3, cp, recursive, from, to] = words[..] else { panic!("{download}") };
    assert_eq!([aws, s3, cp, recursive, to], ["aws", "s3", "cp", "--recursive", "set"]);
    // Bucket and prefix, then site, job and set.
    assert_eq!(from.trim_start_matches("s3://").split('/').count(), 5, "{from}");
    let from = opsd.path("repository/test/db").join(&id);
    let script = lines.collect::<Vec<_>>().join("\n");
    let script = script.replace("RWQ...", &opsd.public_key).replace("less ", "cat ");
    let script = format!(
        "set -e\ncp -r {} set\ncp identity.txt set/\n{script}\npg_restore -l schema.pgdump | grep -c 'TABLE public accounts'",
        from.display()
    );
    let mut command = Command::new("/bin/bash");
    let bin = crate::support::postgres::bin_dir(server.major);
    command.env("PATH", format!("{}:/usr/bin:/bin", bin.display())).current_dir(opsd.path(""));
    command.args(["-o", "pipefail", "-c", &script]);
    let run = run(command).expect_code(0);
    assert!(
        run.stdout.contains("Signature and comment signature verified") && run.stdout.ends_with("\n1\n"),
        "{run}"
    );
}

/// A word that ends with `_` stands for all that begin with it.
#[test]
fn documents_name_metrics_that_exist() {
    let others = include_str!("../../docs/other-exporters.md");
    let names: Vec<String> = opsd::metrics::all().map(|metric| metric.series()).collect();
    for (file, text) in [("README.md", README), ("docs/other-exporters.md", others)] {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("opsd_"));
        let mut count = 0;
        for word in words {
            let begins = |name: &String| word.ends_with('_') && name.starts_with(word);
            assert!(names.iter().any(|name| *name == word || begins(name)), "{file}: {word}");
            count += 1;
        }
        assert!(count > 3, "{file} names {count}");
    }
}
