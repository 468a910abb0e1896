//! Runs the built `opsd` the way an operator does: a configuration file, an environment, arguments.
//!
//! The environment is cleared, so nothing of the developer's machine (credentials, `PG*`, `AWS_*`)
//! reaches a test. Keys are made with the `age` and `minisign` crates, not by opsd.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret;

use super::postgres::{Server, bin_dir};

/// How long one run may take before the test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(300);

/// Keys of one table of the configuration with their values as TOML.
#[derive(Default, Clone)]
pub struct Section(BTreeMap<String, String>);

impl Section {
    /// Sets a key to a piece of TOML: `set("streams", "2")`, `set("url", quoted("…"))`.
    pub fn set(&mut self, key: &str, toml: impl Into<String>) -> &mut Self {
        self.0.insert(key.to_owned(), toml.into());
        self
    }

    /// Removes a key.
    pub fn unset(&mut self, key: &str) -> &mut Self {
        self.0.remove(key);
        self
    }
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => write!(out, "\\u{:04X}", u32::from(c)).expect("write to a string"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML array of strings.
pub fn quoted_list<S: AsRef<str>>(texts: &[S]) -> String {
    format!("[{}]", texts.iter().map(|t| quoted(t.as_ref())).collect::<Vec<_>>().join(", "))
}

/// One site: its configuration, its keys, and the environment that opsd is run in. The file is
/// written anew before every run, so a test changes fields in between as it likes.
pub struct Opsd {
    /// Everything that the site keeps; removed with this value.
    directory: tempfile::TempDir,
    /// `[repository]`; at first a directory of files.
    pub repository: Section,
    /// `[encryption]`; at first one recipient, its identity, signing and trusting keys.
    pub encryption: Section,
    /// `[postgres.main]`.
    pub postgres: Section,
    /// `[backup.db]`.
    pub job: Section,
    /// `[backup.db.verify]`.
    pub verify: Section,
    /// Further tables, as TOML.
    pub more: String,
    /// The environment of every run, beside `PATH` and `HOME`.
    pub env: BTreeMap<OsString, OsString>,
    /// The age recipient (`age1…`).
    pub recipient: String,
    /// The minisign public key (`RW…`).
    pub public_key: String,
}

impl Opsd {
    /// A site with keys and a repository of files, whose job `db` backs up `databases` of `server`
    /// over its Unix socket.
    pub fn new<S: AsRef<str>>(server: &Server, databases: &[S]) -> Opsd {
        let mut opsd = Opsd::without_server();
        let first = databases.first().map_or("postgres", AsRef::as_ref);
        opsd.postgres
            .set("url", quoted(&server.socket_url(super::postgres::SUPERUSER, first)))
            .set("bin_dir", quoted(bin_dir(server.major).to_str().expect("a UTF-8 path")));
        opsd.job.set("source", format!("{{ postgres = \"main\", databases = {} }}", quoted_list(databases)));
        opsd
    }

    /// A site that has no server and no job yet.
    pub fn without_server() -> Opsd {
        let directory =
            tempfile::Builder::new().prefix("opsd-it-site-").tempdir().expect("create a directory");
        let path = directory.path();
        // A scratch server runs as somebody else and must get through here; keys are 0600.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");

        let identity = age::x25519::Identity::generate();
        write_private(&path.join("identity.txt"), identity.to_string().expose_secret());
        let recipient = identity.to_public().to_string();
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("generate a signing key");
        write_private(&path.join("sign.key"), &pair.sk.to_box(None).expect("box the key").to_string());
        let public_key = pair.pk.to_base64();

        let in_site = |name: &str| quoted(path.join(name).to_str().expect("a UTF-8 path"));
        let mut repository = Section::default();
        repository.set("url", quoted(&format!("file://{}", path.join("repository").display())));
        std::fs::create_dir(path.join("repository")).expect("create the repository");
        let mut encryption = Section::default();
        encryption
            .set("recipients", quoted_list(&[&recipient]))
            .set("identity_file", in_site("identity.txt"))
            .set("sign_key_file", in_site("sign.key"))
            .set("trusted_keys", quoted_list(&[&public_key]));
        let mut verify = Section::default();
        verify.set("scratch_dir", in_site("scratch"));
        Opsd {
            repository,
            encryption,
            postgres: Section::default(),
            job: Section::default(),
            verify,
            more: String::new(),
            env: BTreeMap::new(),
            recipient,
            public_key,
            directory,
        }
    }

    /// The identity that reads what was written for [`Opsd::recipient`].
    pub fn identity(&self) -> age::x25519::Identity {
        let text = std::fs::read_to_string(self.path("identity.txt")).expect("read the identity");
        text.trim().parse().expect("an identity")
    }

    /// A path in the site's directory: `opsd.toml`, `identity.txt`, `sign.key`, `repository/`, `scratch/`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Every file of the repository, relative to it, sorted.
    pub fn repository_files(&self) -> Vec<String> {
        let root = self.path("repository");
        let mut files = Vec::new();
        collect_files(&root, &root, &mut files);
        // What serialises replacements in a directory is no object, and stays.
        files.retain(|name| name != ".opsd-tmp/replace.lock");
        files.sort();
        files
    }

    /// Moves the repository to an S3 server, whose credentials come by the environment.
    pub fn use_s3(&mut self, url: &str, endpoint: &str, access_key: &str, secret_key: &str) {
        self.repository
            .set("url", quoted(url))
            .set("endpoint", quoted(endpoint))
            .set("region", quoted("us-east-1"))
            .set("path_style", "true");
        self.env("AWS_ACCESS_KEY_ID", access_key).env("AWS_SECRET_ACCESS_KEY", secret_key);
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.env.insert(name.into(), value.as_ref().into());
        self
    }

    /// The configuration as it stands.
    pub fn config(&self) -> String {
        let mut text = String::from("site = \"test\"\n");
        let sections = [
            ("repository", &self.repository),
            ("encryption", &self.encryption),
            ("postgres.main", &self.postgres),
            ("backup.db", &self.job),
            ("backup.db.verify", &self.verify),
        ];
        for (name, section) in sections {
            // A site without a job has no [backup.db.verify] either.
            if section.0.is_empty() || (name.starts_with("backup.db") && self.job.0.is_empty()) {
                continue;
            }
            writeln!(text, "\n[{name}]").expect("write to a string");
            for (key, value) in &section.0 {
                writeln!(text, "{key} = {value}").expect("write to a string");
            }
        }
        text + &self.more
    }

    /// The command with its configuration written and its environment set, for tests that start it
    /// themselves. Global arguments stand before `args`.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        write_private(&self.path("opsd.toml"), &unhurried(self.config(), args));
        let mut command = Command::new(env!("CARGO_BIN_EXE_opsd"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("OPSD_CONFIG", self.path("opsd.toml"))
            .envs(&self.env)
            .current_dir(self.directory.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `opsd args…` to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        finish(self.command(args))
    }

    /// Runs `opsd args…`, which must exit 0.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        self.run(args).expect_code(0)
    }
}

/// Monitors of tests collect every second. A command that collects once has no second chance: it gets the
/// time that a busy machine needs.
fn unhurried<S: AsRef<OsStr>>(config: String, args: &[S]) -> String {
    let once = ["check", "status", "--textfile"];
    if !args.iter().any(|arg| once.iter().any(|word| arg.as_ref() == *word)) {
        return config;
    }
    config.replace("interval = \"1s\"", "interval = \"30s\"").replace("timeout = \"1s\"", "timeout = \"10s\"")
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Run {
    /// The run itself if it exited with `code`; otherwise the test fails and shows all of it.
    pub fn expect_code(self, code: i32) -> Run {
        assert_eq!(self.code, Some(code), "exit code of {self}");
        self
    }

    /// The same, for runs that must fail and say all of `fragments` on stderr.
    pub fn expect_failure(self, code: i32, fragments: &[&str]) -> Run {
        let run = self.expect_code(code);
        for fragment in fragments {
            assert!(run.stderr.contains(fragment), "stderr lacks {fragment:?} of {run}");
        }
        run
    }

    /// The one JSON document on stdout.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|e| panic!("stdout is not one JSON document ({e}) of {self}"))
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run { command, code, stdout, stderr } = self;
        write!(f, "{command}\nexit: {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

/// The same command behind a program that changes its surroundings: `prlimit`, `faketime`, `unshare`.
pub fn behind<S: AsRef<OsStr>>(wrapper: &[S], command: &Command) -> Command {
    let mut wrapped = Command::new(wrapper[0].as_ref());
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            wrapped.env(name, value);
        }
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    wrapped
}

/// Runs a command to its end, but no longer than the patience of the tests.
pub fn finish(mut command: Command) -> Run {
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let text = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {text}: {e}"));
    finish_child(child, text)
}

/// The same for a child that a test started itself (with stdout and stderr piped).
pub fn finish_child(mut child: Child, command: String) -> Run {
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        let stdout = scope.spawn(move || read_all(&mut stdout));
        let stderr = scope.spawn(move || read_all(&mut stderr));
        let (status, late) = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break (status, false);
            }
            if Instant::now() > deadline {
                child.kill().expect("kill");
                break (child.wait().expect("wait"), true);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let run = Run {
            command,
            code: status.code(),
            stdout: stdout.join().expect("read stdout"),
            stderr: stderr.join().expect("read stderr"),
        };
        assert!(!late, "killed after {PATIENCE:?}: {run}");
        run
    })
}

fn read_all(stream: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).expect("write");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
}

fn collect_files(root: &Path, directory: &Path, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("read a directory") {
        let path = entry.expect("read a directory").path();
        if path.is_dir() {
            collect_files(root, &path, files);
        } else {
            let relative = path.strip_prefix(root).expect("below the root");
            files.push(relative.to_str().expect("a UTF-8 path").to_owned());
        }
    }
}
