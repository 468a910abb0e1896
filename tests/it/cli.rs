//! The command line as people meet it: transcripts under `tests/cmd`, and that no secret shows.
//!
//! A transcript is a list of commands for `sh`, each with what it must print:
//!
//! ```text
//! # a comment, up to the first command and between blank lines
//! $ opsd config check --config bad.toml
//! > continues the command line
//! a line of stdout
//! 2| a line of stderr
//! [exit 2]
//! ```
//!
//! `[..]` stands for anything within a line, and a line `...` for any number of lines. stdout comes
//! first. Commands run in an empty directory, which is their HOME, with `opsd` in their PATH.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::opsd::{Opsd, Run, finish, quoted, write_private};

/// Runs a shell line in `directory` with nothing of the developer's environment.
fn shell(directory: &Path, line: &str, env: &[(&str, &str)]) -> Run {
    let opsd = Path::new(env!("CARGO_BIN_EXE_opsd")).parent().expect("a directory");
    let mut command = Command::new("sh");
    command
        // Files are as they are under root's mask: some distributions let a user's group write.
        .args(["-c", &format!("umask 022\n{line}")])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", opsd.display()))
        .env("HOME", directory)
        .envs(env.iter().copied())
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    finish(command)
}

struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
}

fn steps(transcript: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (index, line) in transcript.lines().enumerate() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: index + 1, command: command.into(), expected: Vec::new() });
        } else if let Some(step) = steps.last_mut() {
            match line.strip_prefix("> ").or((line == ">").then_some("")) {
                Some(more) if step.expected.is_empty() => {
                    step.command.push('\n');
                    step.command.push_str(more);
                }
                _ => step.expected.push(line.into()),
            }
        }
    }
    for step in &mut steps {
        // Comments and blank lines before the next command belong to the reader.
        while step.expected.last().is_some_and(|l| l.is_empty() || l.starts_with("# ")) {
            step.expected.pop();
        }
    }
    steps
}

fn printed(run: &Run) -> Vec<String> {
    let mut lines: Vec<String> = run.stdout.lines().map(str::to_string).collect();
    lines.extend(run.stderr.lines().map(|l| format!("2| {l}")));
    if run.code != Some(0) {
        lines.push(format!("[exit {}]", run.code.map_or("by signal".into(), |c| c.to_string())));
    }
    lines
}

fn lines_match(expected: &[String], found: &[String]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=found.len()).any(|skipped| lines_match(rest, &found[skipped..]))
        }
        (Some((pattern, expected)), Some((line, found))) => {
            line_matches(pattern, line) && lines_match(expected, found)
        }
        _ => false,
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let Some((start, mut rest)) = pattern.split_once("[..]") else { return pattern == line };
    let Some(mut line) = line.strip_prefix(start) else { return false };
    while let Some((middle, after)) = rest.split_once("[..]") {
        let Some(at) = line.find(middle) else { return false };
        line = &line[at + middle.len()..];
        rest = after;
    }
    line.ends_with(rest)
}

fn follow(name: &str, transcript: &str) {
    let directory = tempfile::Builder::new().prefix("opsd-it-cmd-").tempdir().expect("create a directory");
    let steps = steps(transcript);
    assert!(!steps.is_empty(), "{name} has no command");
    for step in steps {
        let run = shell(directory.path(), &step.command, &[]);
        let found = printed(&run);
        assert!(
            lines_match(&step.expected, &found),
            "tests/cmd/{name}:{}: $ {}\n--- expected\n{}\n--- printed\n{}\n---",
            step.line,
            step.command,
            step.expected.join("\n"),
            found.join("\n"),
        );
    }
}

#[test]
fn transcripts_are_told_apart() {
    let found = |pattern: &[&str], lines: &[&str]| {
        let owned = |l: &[&str]| l.iter().map(ToString::to_string).collect::<Vec<_>>();
        lines_match(&owned(pattern), &owned(lines))
    };
    assert!(found(&["a[..]c", "..."], &["abc", "d", "e"]) && found(&["..."], &[]));
    assert!(found(&["a[..]b[..]c"], &["a1b2c"]) && found(&["...", "z"], &["a", "z"]));
    assert!(!found(&["a"], &["a", "b"]) && !found(&["a", "b"], &["a"]) && !found(&["a[..]c"], &["abd"]));
    assert!(!found(&["...", "z"], &["z", "a"]) && !found(&["[..]b[..]a"], &["ab"]));
    let steps = steps("# c\n$ one\n> two\nout\n2| err\n\n# c\n$ three\n");
    assert_eq!((steps[0].command.as_str(), steps[0].expected.len()), ("one\ntwo", 2));
    assert_eq!((steps[1].line, steps[1].expected.len()), (8, 0));
}

#[test]
fn keygen() {
    follow("keygen.txt", include_str!("../cmd/keygen.txt"));
}

#[test]
fn config() {
    follow("config.txt", include_str!("../cmd/config.txt"));
}

#[test]
fn mistakes() {
    follow("mistakes.txt", include_str!("../cmd/mistakes.txt"));
}

#[test]
fn command_line() {
    follow("command-line.txt", include_str!("../cmd/command-line.txt"));
}

/// minisign verifies what opsd signed, and notices a change.
#[test]
fn minisign_verifies_our_signatures() {
    let directory = tempfile::tempdir().expect("create a directory");
    let pair = opsd::set::signature::generate().expect("generate");
    let path = |name: &str| directory.path().join(name);
    write_private(&path("sign.key"), pair.secret_box.expose());
    std::fs::write(path("manifest.json"), "{}\n").expect("write");
    let signature = opsd::set::signature::sign(&path("sign.key"), b"{}\n", "site=x job=y").expect("sign");
    std::fs::write(path("manifest.json.minisig"), &signature).expect("write");
    let verify = format!("minisign -Vm manifest.json -P {}", pair.public);
    let run = shell(directory.path(), &verify, &[]).expect_code(0);
    assert!(run.stdout.contains("Trusted comment: site=x job=y"), "{run}");
    std::fs::write(path("manifest.json"), "{ }\n").expect("write");
    shell(directory.path(), &verify, &[]).expect_code(1);
    // And the other way round: opsd verifies what minisign signed, and signs with minisign's key.
    shell(directory.path(), "minisign -G -W -p m.pub -s m.key && chmod 600 m.key", &[]).expect_code(0);
    shell(directory.path(), "minisign -Sm manifest.json -s m.key -t 'c d' -x by-minisign", &[])
        .expect_code(0);
    let public = opsd::set::signature::public_key(&path("m.key")).expect("minisign's key");
    let by_minisign = std::fs::read_to_string(path("by-minisign")).expect("read");
    opsd::set::signature::verify(std::slice::from_ref(&public), "c d", b"{ }\n", &by_minisign)
        .expect("verify");
    let ours = opsd::set::signature::sign(&path("m.key"), b"{}\n", "c").expect("sign");
    opsd::set::signature::verify(&[public], "c", b"{}\n", &ours).expect("verify");
}

/// SSH keys as age uses them: sealed by the `age` tool, opened by opsd's identities.
#[test]
fn ssh_keys_are_recipients_and_identities() {
    use std::io::Read as _;
    let directory = tempfile::tempdir().expect("create a directory");
    let path = |name: &str| directory.path().join(name);
    for (kind, more) in [("ed25519", ""), ("rsa", "-b 2048"), ("rsa", "-b 2048 -m PEM")] {
        let make = format!("rm -f k k.pub x.age; ssh-keygen -q -t {kind} {more} -N '' -C me@host -f k");
        shell(directory.path(), &make, &[]).expect_code(0);
        shell(directory.path(), "echo text | age -R k.pub > x.age", &[]).expect_code(0);
        let identities = opsd::config::keys::identities(&path("k")).expect("identities");
        let sealed = std::fs::read(path("x.age")).expect("read");
        let opened = age::Decryptor::new(&sealed[..])
            .expect("header")
            .decrypt(identities.iter().map(|i| &**i as &dyn age::Identity));
        let mut text = String::new();
        opened.expect("decrypt").read_to_string(&mut text).expect("read");
        assert_eq!(text, "text\n", "{kind} {more}");
        let public = std::fs::read_to_string(path("k.pub")).expect("read");
        let canonical = opsd::config::keys::parse_recipient(&public).expect("recipient").canonical();
        assert!(public.starts_with(&canonical), "the comment is left out");
        assert_eq!(opsd::config::keys::identity_recipients(&path("k")).expect("recipients"), [canonical]);
    }
    for (make, expected) in [
        ("ssh-keygen -q -t ed25519 -N secret1 -f k2", "protected by a passphrase"),
        ("ssh-keygen -q -t rsa -b 2048 -m PEM -N secret1 -f k2", "protected by a passphrase"),
        ("ssh-keygen -q -t ecdsa -N '' -f k2", "this kind of SSH key cannot decrypt"),
    ] {
        shell(directory.path(), &format!("rm -f k2 k2.pub; {make}"), &[]).expect_code(0);
        let error = opsd::config::keys::identities(&path("k2")).err().expect("refused");
        assert!(error.to_string().contains(expected), "{make}: {error:?}");
        assert!(error.hint().is_some(), "{error:?}");
    }
    let weak =
        "rm -f k2 k2.pub; ssh-keygen -q -t rsa -b 1024 -N '' -f k2; ssh-keygen -q -t ecdsa -N '' -f k3";
    shell(directory.path(), weak, &[]).expect_code(0);
    for (file, expected) in [("k2.pub", "smaller than 2048"), ("k3.pub", "cannot encrypt")] {
        let public = std::fs::read_to_string(path(file)).expect("read");
        let error = opsd::config::keys::parse_recipient(&public).err().expect("refused");
        assert!(error.to_string().contains(expected), "{error:?}");
    }
}

/// A password in every form that libpq knows, and in malformed ones, shows in nothing that opsd
/// prints, however talkative.
#[test]
fn no_password_shows() {
    const CANARY: &str = "c4n@ry/:%?#&= '\"\\$end";
    let pieces = ["c4n", "ry/", "ry%", "$end", "%24end"];
    let percent: String = CANARY.bytes().map(|b| format!("%{b:02X}")).collect();
    let escaped = CANARY.replace('\\', "\\\\").replace('\'', "\\'");
    let in_file = CANARY.replace('\\', "\\\\").replace(':', "\\:");
    let forms = [
        (format!("postgres://u:{percent}@h/db"), 0),
        (format!("postgres://u@h/db?password={percent}"), 0),
        (format!("host=h user=u dbname=db password='{escaped}'"), 0),
        ("postgres://u:${PERCENT}@h/db".into(), 0),
        ("host=h user=u password='${ESCAPED}'".into(), 0),
        ("postgres://u@fromfile/db".into(), 0),
        ("postgres:///db?service=svc".into(), 0),
        ("postgres://u@h/db".into(), 0), // PGPASSWORD
        (format!("postgres://u:{CANARY}@h/db"), 2),
        (format!("postgres://u@h/db?password={CANARY}"), 2),
        (format!("postgres://u@h/db?pasword={percent}"), 2),
        (format!("host=h user=u password={CANARY}"), 2),
        (format!("host=h user=u password '{escaped}'"), 2),
        (format!("host=h user=u password='{CANARY}"), 2),
    ];
    let directory = tempfile::tempdir().expect("create a directory");
    let path = |name: &str| directory.path().join(name);
    write_private(&path(".pgpass"), &format!("fromfile:*:*:*:{in_file}\n"));
    write_private(&path(".pg_service.conf"), &format!("[svc]\nhost=h\nuser=u\npassword={CANARY}\n"));
    let (_, recipient) = opsd::config::keys::generate_identity(chrono::DateTime::UNIX_EPOCH);
    let mut with_password = 0;
    for (index, (form, code)) in forms.iter().enumerate() {
        let mut text = String::from("site = \"x\"\n[repository]\nurl = \"file:///r\"\n");
        writeln!(text, "[encryption]\nrecipients = [{}]", quoted(&recipient)).expect("write");
        writeln!(text, "[postgres.main]\nurl = {}", quoted(form)).expect("write");
        std::fs::write(path("opsd.toml"), text).expect("write");
        let mut env = vec![("PERCENT", percent.as_str()), ("ESCAPED", escaped.as_str())];
        env.extend((index == 7).then_some(("PGPASSWORD", CANARY)));
        env.push(("OPSD_LOG", "trace"));
        for args in ["config show", "config show --json", "config check", "config check --json"] {
            let run =
                shell(directory.path(), &format!("opsd --config opsd.toml {args}"), &env).expect_code(*code);
            let all = format!("{}{}", run.stdout, run.stderr);
            for piece in pieces {
                assert!(!all.contains(piece), "{piece} of {form} shows in {run}");
            }
            if args == "config show --json" && *code == 0 {
                with_password += 1;
                assert_eq!(
                    run.json()["postgres"]["main"]["password"],
                    "***",
                    "{form} was not understood: {run}"
                );
            }
        }
    }
    assert_eq!(with_password, 8);
}

/// What stands in the file is right, and a run would fail all the same.
#[test]
fn config_check_says_what_a_run_would_miss_on_this_host() {
    let mut opsd = Opsd::without_server();
    let certificate = opsd.path("ca.crt");
    let url = format!("postgres://u@h/db?sslmode=verify-full&sslrootcert={}", certificate.display());
    opsd.postgres.set("url", quoted(&url));
    opsd.job.set("source", "{ postgres = \"main\" }");
    let place = |opsd: &Opsd, name: &str| quoted(opsd.path(name).to_str().expect("a UTF-8 path"));
    let scratch = place(&opsd, "opsd.toml/scratch");
    opsd.verify.set("scratch_dir", scratch);
    let run = opsd.ok(&["config", "check"]);
    for warning in [
        format!("postgres.main.url: cannot read root certificate {}: No such file", certificate.display()),
        format!(
            "backup.db.verify.scratch_dir: scratch directory {}",
            opsd.path("opsd.toml/scratch").display()
        ),
        "opsd.toml is no directory".to_owned(),
    ] {
        assert!(run.stderr.contains(&warning), "{warning}: {run}");
    }
    std::fs::write(&certificate, "no certificate").expect("write");
    let run = opsd.ok(&["config", "check"]);
    assert!(run.stderr.contains("ca.crt holds no PEM certificate"), "{run}");
    std::fs::create_dir(opsd.path("open")).expect("create a directory");
    std::fs::set_permissions(opsd.path("open"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    let scratch = place(&opsd, "open");
    opsd.verify.set("scratch_dir", scratch);
    let run = opsd.ok(&["config", "check"]);
    assert!(run.stderr.contains("others may write to it (chmod go-w "), "{run}");
    // What is not there yet is made; who cannot decrypt rehearses nothing.
    let scratch = place(&opsd, "new/scratch");
    opsd.verify.set("scratch_dir", scratch);
    opsd.postgres.set("url", quoted("postgres://u@h/db?sslmode=verify-full&sslrootcert=system"));
    let run = opsd.ok(&["config", "check"]);
    assert!(!run.stderr.contains("scratch") && !run.stderr.contains("certificate"), "{run}");
    assert!(!opsd.path("new").exists());
}
