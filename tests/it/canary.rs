//! The secrets canary: passwords and keys full of odd characters, in every form in which they can be
//! given, through everything that can go wrong; and then in no output, no process list, no file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use rustix::process::{Signal, kill_process};

use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, finish_child, quoted, write_private};
use crate::support::postgres::{Options, Server, bin_dir, default_major, free_port, literal};
use crate::support::processes::{self, Process, until};
use crate::support::s3::SeaweedFs;
use crate::support::sets;
use crate::support::torture::torture;

/// Quotes, a backslash, percent, at, colon, slash, space, a dollar, and letters beyond ASCII.
const PASSWORD: &str = "c4n'a\"r\\y%41 @:/?#&=${HOME}-ключ-ß";
/// The same for S3, whose keys are ASCII.
const S3_SECRET: &str = "s3-c4n'a\"r\\y%41 @:/?#&=+$-key";
/// Pieces that appear nowhere else, should a form be cut up.
const PIECES: &[&str] = &["c4n'a", "ключ", "-ß"];

fn percent(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        write!(out, "%{byte:02X}").unwrap();
        out
    })
}

/// Every form in which a secret might come out.
fn forms(secret: &str) -> Vec<String> {
    let encode = |engine: &base64::engine::GeneralPurpose| engine.encode(secret);
    let escaped = format!("{secret:?}");
    let mut forms = vec![
        secret.to_owned(),
        percent(secret),
        percent(secret).to_lowercase(),
        percent_encoding::utf8_percent_encode(secret, percent_encoding::NON_ALPHANUMERIC).to_string(),
        encode(&base64::engine::general_purpose::STANDARD),
        encode(&base64::engine::general_purpose::URL_SAFE),
        escaped.trim_matches('"').to_owned(),
        serde_json::to_string(secret).unwrap().trim_matches('"').to_owned(),
        secret.replace('\\', "\\\\").replace('\'', "\\'"),
        secret.replace('\\', "\\\\").replace(':', "\\:"),
        secret.bytes().map(|b| format!("{b:02x}")).collect(),
        format!("{:?}", secret.as_bytes()),
    ];
    forms.extend(PIECES.iter().filter(|piece| secret.contains(**piece)).map(|piece| (*piece).to_owned()));
    forms
}

/// What was seen, and what must not be in it.
struct Watch {
    forms: Vec<String>,
    runs: usize,
    command_lines: usize,
}

impl Watch {
    fn new(secrets: &[&str]) -> Self {
        Self { forms: secrets.iter().flat_map(|secret| forms(secret)).collect(), runs: 0, command_lines: 0 }
    }

    fn is_clean(&self, what: &str, text: &[u8]) {
        // A megabyte of ciphertext holds any three bytes one time in sixteen.
        let is_text = std::str::from_utf8(text).is_ok();
        for form in self.forms.iter().filter(|form| is_text || form.len() > 4) {
            if let Some(at) = memchr::memmem::find(text, form.as_bytes()) {
                let around = &text[at.saturating_sub(200)..text.len().min(at + 200)];
                panic!("{form:?} is in {what}: {}", String::from_utf8_lossy(around));
            }
        }
    }

    /// Runs opsd, with something done to it on the way, and looks at all it says, and at the arguments
    /// of all it starts.
    fn run(&mut self, opsd: &Opsd, args: &[&str], meanwhile: impl FnOnce()) -> Run {
        let child = opsd.command(args).spawn().unwrap();
        let pid = child.id();
        let done = AtomicBool::new(false);
        let (run, seen) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !done.load(Ordering::Relaxed) {
                    seen.extend(processes::descendants(pid).iter().map(Process::command_line));
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                seen
            });
            meanwhile();
            let run = finish_child(child, args.join(" "));
            done.store(true, Ordering::Relaxed);
            (run, watcher.join().unwrap())
        });
        self.runs += 1;
        self.command_lines += seen.len();
        self.is_clean(&format!("stdout of {args:?}"), run.stdout.as_bytes());
        self.is_clean(&format!("stderr of {args:?}"), run.stderr.as_bytes());
        seen.iter().for_each(|line| self.is_clean("a process list", line.as_bytes()));
        assert!(!run.stderr.contains("panicked"), "{run}");
        run
    }

    /// Looks at every file below some directories, but for those that hold the secret by intent.
    fn files(&self, directories: &[PathBuf], but: &[PathBuf]) -> usize {
        let (mut directories, mut looked_at) = (directories.to_vec(), 0);
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    directories.push(path);
                } else if !but.contains(&path) {
                    looked_at += 1;
                    let bytes = std::fs::read(&path).unwrap_or_default();
                    self.is_clean(&path.display().to_string(), &bytes);
                }
            }
        }
        looked_at
    }
}

/// How a password is given: the URL, and where else it stands.
struct Form {
    name: &'static str,
    url: String,
    env: Vec<(&'static str, String)>,
    file: Option<(&'static str, String)>,
}

fn password_forms(role: &str, port: u16, database: &str) -> Vec<Form> {
    let at = format!("127.0.0.1:{port}/{database}");
    let form = |name, url| Form { name, url, env: Vec::new(), file: None };
    let quoted_value = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    let in_passfile = PASSWORD.replace('\\', "\\\\").replace(':', "\\:");
    // $${ stands for ${ in the configuration.
    let literal_dollar = |text: &str| text.replace("${", "$${");
    vec![
        form("url", format!("postgres://{role}:{}@{at}", percent(PASSWORD))),
        form("query", format!("postgres://{role}@{at}?password={}", percent(PASSWORD))),
        form(
            "key=value",
            literal_dollar(&format!(
                "host=127.0.0.1 port={port} user={role} dbname={database} password='{quoted_value}'"
            )),
        ),
        Form {
            env: vec![("CANARY", percent(PASSWORD))],
            ..form("variable", format!("postgres://{role}:${{CANARY}}@{at}"))
        },
        Form {
            env: vec![("PGPASSWORD", PASSWORD.into())],
            ..form("PGPASSWORD", format!("postgres://{role}@{at}"))
        },
        Form {
            file: Some((".pgpass", format!("127.0.0.1:*:*:{role}:{in_passfile}\n"))),
            ..form(".pgpass", format!("postgres://{role}@{at}"))
        },
        Form {
            file: Some((
                ".pg_service.conf",
                format!(
                    "[canary]\nhost=127.0.0.1\nport={port}\nuser={role}\ndbname={database}\npassword={PASSWORD}\n"
                ),
            )),
            ..form("service", "service=canary".to_owned())
        },
    ]
}

#[test]
fn a_password_in_any_form_shows_in_nothing_whatever_fails() {
    let server = Server::start(default_major(), &Options::default());
    let database = server.fresh_database("canary");
    fixtures::rows(&server, &database, "accounts", 3_000);
    let role = "canary_role";
    server.psql("postgres", &format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD {}", literal(PASSWORD)));
    let mut watch = Watch::new(&[PASSWORD]);
    let mut looked_at = 0;
    for form in password_forms(role, server.port, &database) {
        let mut opsd = Opsd::new(&server, &[&database]);
        let configure = |opsd: &mut Opsd, url: &str| {
            opsd.postgres.set("url", quoted(url));
        };
        configure(&mut opsd, &form.url);
        opsd.job.set("large_table", quoted("1B"));
        opsd.env("OPSD_LOG", "trace").env("RUST_BACKTRACE", "full");
        for (name, value) in &form.env {
            opsd.env(name, value);
        }
        let mut but = vec![opsd.path("opsd.toml")];
        if let Some((name, text)) = &form.file {
            write_private(&opsd.path(name), text);
            but.push(opsd.path(name));
        }
        // It is the password that is used, whatever its characters.
        watch.run(&opsd, &["backup", "--json"], || ()).expect_code(0);
        for args in [
            &["config", "check"][..],
            &["config", "check", "--json"],
            &["config", "show"],
            &["config", "show", "--json"],
            &["backup", "--dry-run", "--json"],
            &["backups", "list", "-vv"],
        ] {
            watch.run(&opsd, args, || ()).expect_code(0);
        }
        // A pg_dump that fails.
        let fake = opsd.path("fake");
        std::fs::create_dir(&fake).unwrap();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *--version*) exec {}/pg_dump --version;; esac\necho \"failing: $*\" >&2; exit 1\n",
            bin_dir(server.major).display()
        );
        std::fs::write(fake.join("pg_dump"), script).unwrap();
        std::fs::set_permissions(fake.join("pg_dump"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let real = quoted(bin_dir(server.major).to_str().unwrap());
        opsd.postgres.set("bin_dir", quoted(fake.to_str().unwrap()));
        watch.run(&opsd, &["backup", "--json"], || ()).expect_failure(1, &["failing"]);
        opsd.postgres.set("bin_dir", real);
        // Nobody there, nobody of that name, no such database.
        let port = server.port.to_string();
        let database_gone = |url: &str| url.replace(&database, "no_such_database");
        for url in [
            form.url.replace(&port, &free_port().to_string()),
            form.url.replace(role, "no_such_role"),
            database_gone(&form.url),
            format!("{}&nonsense=1", form.url),
        ] {
            configure(&mut opsd, &url);
            let run = watch.run(&opsd, &["backup", "-vv"], || ());
            // A service file says the rest by itself.
            assert!(
                run.code != Some(0) || form.name == "service" || form.file.is_some(),
                "{}: {url}: {run}",
                form.name
            );
            watch.run(&opsd, &["config", "show"], || ());
        }
        configure(&mut opsd, &form.url);
        // Restored with it, too: into a server, and by a rehearsal that fails for want of programs.
        if torture() {
            watch
                .run(&opsd, &["restore", "db", "--to", "main", "--replace", "--yes", "--json"], || ())
                .expect_code(0);
            watch.run(&opsd, &["restore", "--verify", "--json"], || ()).expect_code(0);
        }
        looked_at += watch.files(&[opsd.path("")], &but);
        assert!(opsd.repository_files().iter().any(|name| name.ends_with("/failed.json")));
    }
    // The password is wrong now: the server says so, and not which it was.
    server.psql("postgres", &format!("ALTER ROLE {role} PASSWORD 'another'"));
    for form in password_forms(role, server.port, &database) {
        let mut opsd = Opsd::new(&server, &[&database]);
        opsd.postgres.set("url", quoted(&form.url));
        opsd.env("OPSD_LOG", "trace");
        for (name, value) in &form.env {
            opsd.env(name, value);
        }
        if let Some((name, text)) = &form.file {
            write_private(&opsd.path(name), text);
        }
        watch.run(&opsd, &["backup"], || ()).expect_failure(1, &["password authentication failed"]);
    }
    // The server is killed under a backup.
    server.psql("postgres", &format!("ALTER ROLE {role} PASSWORD {}", literal(PASSWORD)));
    let form = password_forms(role, server.port, &database).remove(0);
    let mut opsd = Opsd::new(&server, &[&database]);
    opsd.postgres.set("url", quoted(&form.url));
    opsd.env("OPSD_LOG", "trace");
    let postmaster = server.postmaster();
    let run = watch.run(&opsd, &["backup", "--json"], || {
        until("a session of opsd", || {
            let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
            server.psql("postgres", &sql) != "0"
        });
        kill_process(postmaster, Signal::QUIT).unwrap();
    });
    assert_eq!(run.code, Some(1), "{run}");
    watch.files(&[opsd.path("repository"), opsd.path("scratch")], &[]);
    assert!(
        watch.command_lines > 20 && watch.runs > 80 && looked_at > 100,
        "{} {looked_at}",
        watch.command_lines
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_key_shows_in_nothing_whatever_the_store_says() {
    let weed = SeaweedFs::start().await;
    let server = crate::support::postgres::default_server();
    let database = server.fresh_database("s3canary");
    fixtures::rows(server, &database, "accounts", 100);
    let mut opsd = Opsd::new(server, &[&database]);
    let right = weed.admin.clone();
    let mut watch = Watch::new(&[S3_SECRET, &right.secret_key]);
    let url = format!("s3://{}/p", weed.bucket);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    opsd.env("OPSD_LOG", "trace");
    let cases = [
        (url.as_str(), weed.endpoint.as_str(), right.access_key.as_str(), right.secret_key.as_str(), 0),
        (&url, &weed.endpoint, &right.access_key, S3_SECRET, 1),
        (&url, &weed.endpoint, "no-such-key", S3_SECRET, 1),
        ("s3://no-such-bucket/p", &weed.endpoint, &right.access_key, &right.secret_key, 1),
        (&url, &nobody, &right.access_key, S3_SECRET, 1),
    ];
    for (url, endpoint, access_key, secret_key, code) in cases {
        opsd.use_s3(url, endpoint, access_key, secret_key);
        let is_unreachable = endpoint == nobody;
        for args in [
            &["backup", "--json"][..],
            &["backups", "list", "-vv"],
            &["repository", "probe"],
            &["config", "show"],
        ] {
            // Long retries of a dead endpoint are another test's; one command shows what it says.
            if is_unreachable && args[0] != "backups" && args[0] != "config" {
                continue;
            }
            let run = watch.run(&opsd, args, || ());
            let expected = if args[0] == "config" { 0 } else { code };
            assert_eq!(run.code, Some(expected), "{run}");
        }
    }
    opsd.use_s3(&url, &weed.endpoint, &right.access_key, &right.secret_key);
    for set in sets::listed(&opsd) {
        let shown = opsd.ok(&["backups", "show", &set.id, "--json"]);
        watch.is_clean("a manifest", shown.stdout.as_bytes());
    }
    // From files, as the AWS tools have them.
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        opsd.env.remove(std::ffi::OsStr::new(name));
    }
    let file = opsd.path("credentials");
    for (secret, code) in [(right.secret_key.as_str(), 0), (S3_SECRET, 1)] {
        write_private(
            &file,
            &format!(
                "[default]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n",
                right.access_key
            ),
        );
        opsd.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_EC2_METADATA_DISABLED", "true");
        let run = watch.run(&opsd, &["backup", "-vv"], || ());
        assert_eq!(run.code, Some(code), "{run}");
    }
    watch.files(&[opsd.path("")], &[file]);
    server.drop_database(&database);
}
