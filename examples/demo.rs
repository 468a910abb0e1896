//! `make demo`: what opsd does, shown in half a minute on servers that exist only for it.
//!
//! A PostgreSQL of this machine's own binaries and an S3 endpoint inside this process, both below one
//! temporary directory; then the built `opsd`, run the way an operator runs it. Nothing of opsd's
//! library is used here: what is shown is what is shipped. Each step checks what it claims, and the
//! first one that fails ends the demo with exit 1. Whatever happens, the server is stopped and the
//! directory removed.
//!
//! `demo [OPSD]`: the binary to show; by default the one beside this example's own directory.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a demo talks")]
#![expect(clippy::disallowed_methods, reason = "an example has an environment of its own")]

#[path = "demo/servers.rs"]
mod servers;

use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use servers::{Postgres, S3};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// A step that failed says why; the demo ends there.
type Step<T = ()> = Result<T, String>;

/// Columns that the text is laid out for.
const WIDTH: usize = 78;
/// opsd cleans up after a signal; a scratch server takes a moment to go.
const GOODBYE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    let begun = Instant::now();
    let result = match directory() {
        // Dropped at the end of this arm, servers first.
        Ok(directory) => whole(directory.path()).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => {
            goodbye(begun.elapsed());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where everything lives. Other users' servers must get through; secrets in it have modes of their own.
fn directory() -> Step<tempfile::TempDir> {
    let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let directory = tempfile::Builder::new()
        .prefix("opsd-demo-")
        .permissions(PermissionsExt::from_mode(0o755))
        .tempdir_in(&base)
        .map_err(|e| format!("cannot create a directory in {}: {e}", base.display()))?;
    Ok(directory)
}

async fn whole(directory: &Path) -> Step {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut hangup = signal(SignalKind::hangup()).map_err(|e| e.to_string())?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let story = story(directory, stopped);
    tokio::pin!(story);
    tokio::select! {
        result = &mut story => return result,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    // An opsd that runs is told to stop, and awaited: it has something of its own to remove.
    stop.send_replace(true);
    tokio::select! {
        _ = story => {}
        () = tokio::time::sleep(GOODBYE) => {}
    }
    Err("stopped; everything is removed".into())
}

async fn story(directory: &Path, stopped: tokio::sync::watch::Receiver<bool>) -> Step {
    let opsd = binary()?;
    title("opsd: from an empty machine to a backup that is proven");
    say("Everything here is made up, lives in one temporary directory, and is gone at the end.");

    title("A database, and a place for backups");
    let begun = Instant::now();
    let postgres = Postgres::start(directory).await?;
    let s3 = S3::start(directory).await?;
    let site = Site::new(directory, opsd, stopped, &s3)?;
    let rows = site.unless_stopped(fill(&postgres)).await?;
    say(&format!(
        "PostgreSQL {} now holds the database \"shop\": {} rows of accounts, posts, JSON, arrays, pictures, \
         60 large objects, partitions, row security, a materialized view, and a table whose name is an \
         SQL injection. An S3 endpoint listens at {}. That took {:.1} s.",
        postgres.version,
        thousands(rows),
        s3.endpoint,
        begun.elapsed().as_secs_f64()
    ));

    title("1. Keys");
    site.opsd("keygen -o identity.txt", 0).await?;
    site.opsd("keygen -o spare.txt", 0).await?;
    site.opsd("keygen --sign -o sign.key", 0).await?;
    let secret = |name: &str| std::fs::metadata(site.path(name)).map(|m| m.permissions().mode() & 0o777);
    if !matches!((secret("identity.txt"), secret("sign.key")), (Ok(0o600), Ok(0o600))) {
        return Err("the keys can be read by others".into());
    }
    say("Printed are the public halves. Backups are encrypted for the first two, one of which belongs in a \
         safe; a host that only backs up holds neither secret, and cannot read its own backups. With the \
         third, nobody else's file passes for a backup.");

    title("2. Configuration");
    site.configure(&postgres, &s3)?;
    site.opsd("config check", 0).await?;
    say("One short file is one site. A mistake in it is shown with its line and what to do.");

    title("3. What can the store do?");
    site.opsd("repository probe", 0).await?;
    say("Found out by trying. What this store lacks stands there, and what opsd does instead.");

    title("4. Back up");
    site.opsd("backup", 0).await?;
    let set = site.newest().await?;
    let (plain, stored) = (number(&set, "plain_bytes")?, number(&set, "stored_bytes")?);
    if number(&set, "rows")? != rows {
        return Err(format!("the database has {rows} rows, the backup says {}", set["rows"]));
    }
    say(&format!(
        "{} rows, all of one moment, went compressed and encrypted to S3: {} became {}. No plaintext touched \
         the disk. The role that dumped may only read. Every row was fingerprinted on its way.",
        thousands(rows),
        megabytes(plain),
        megabytes(stored)
    ));

    title("5. What is there");
    site.opsd("backups list", 0).await?;
    say("The list is read from the store itself. It says \"not verified\", because nobody has tried yet.");

    title("6. Prove it");
    site.opsd("restore --verify", 0).await?;
    let proven = site.newest().await?;
    if proven["verified"]["verdict"] != "proven" {
        return Err(format!("the rehearsal ended with {}", proven["verified"]["verdict"]));
    }
    say(&format!(
        "opsd started a PostgreSQL of its own, restored everything into it, read back all {} rows of {} \
         tables, and compared fingerprints, large objects, sequences and definitions. Then it removed the \
         server. {:.1} s is how long a recovery takes here, measured. The signed result lies beside the set.",
        thousands(rows),
        number(&proven, "tables")?,
        proven["verified"]["seconds"].as_f64().unwrap_or_default()
    ));

    title("7. Break it");
    let broken = s3.flip_a_byte(set["id"].as_str().unwrap_or_default())?;
    say(&format!("A disk error, or somebody's hand: one byte of {broken} is now another."));
    site.opsd("restore --verify", 3).await?;
    site.opsd("backups list", 0).await?;
    if site.newest().await?["verified"]["verdict"] != "differs" {
        return Err("the damage is not on record".into());
    }
    say("Caught: the rehearsal names the object, exits 3, and puts it on record. A backup that nobody \
         restores would have looked just as good as yesterday.");

    postgres.stop().await
}

/// Fills the database and counts what a backup must have: every table's rows, however large its name.
async fn fill(postgres: &Postgres) -> Step<u64> {
    postgres.psql("postgres", "CREATE DATABASE shop").await?;
    postgres.psql("shop", include_str!("demo/data.sql")).await?;
    postgres.create_backup_role("shop").await?;
    let count = "SELECT sum((xpath('//c/text()', query_to_xml(format('SELECT count(*) AS c FROM ONLY %s', \
                 oid::regclass), false, true, '')))[1]::text::bigint) FROM pg_class \
                 WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, \
                 'information_schema'::regnamespace)";
    let text = postgres.psql("shop", count).await?;
    text.trim().parse().map_err(|_| format!("the rows could not be counted: {text}"))
}

/// The binary that is shown: an argument, or `opsd` of the same build.
fn binary() -> Step<PathBuf> {
    let path = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe().map_err(|e| e.to_string())?;
            // target/release/examples/demo and target/release/opsd
            own.ancestors().nth(2).unwrap_or(Path::new("/")).join("opsd")
        }
    };
    let absolute = path.canonicalize();
    absolute.map_err(|e| format!("{}: {e}; build it with `cargo build --release --bin opsd`", path.display()))
}

/// An operator's directory, and how opsd is run in it.
struct Site {
    directory: PathBuf,
    opsd: PathBuf,
    keys: [String; 2],
    stopped: tokio::sync::watch::Receiver<bool>,
}

impl Site {
    fn new(parent: &Path, opsd: PathBuf, stopped: tokio::sync::watch::Receiver<bool>, s3: &S3) -> Step<Site> {
        let directory = parent.join("site");
        std::fs::create_dir(&directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        Ok(Site { directory, opsd, keys: [s3.access_key.clone(), s3.secret_key.clone()], stopped })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes `opsd.toml` and shows it.
    fn configure(&self, postgres: &Postgres, s3: &S3) -> Step {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).map_err(|e| format!("{name}: {e}"));
        let recipient = |name: &str| {
            let public =
                read(name)?.lines().find_map(|l| l.strip_prefix("# public key: ").map(str::to_owned));
            public.ok_or_else(|| format!("{name} does not say its public key"))
        };
        let public_key = read("sign.key.pub")?.lines().nth(1).unwrap_or_default().to_owned();
        let text = format!(
            r#"site = "demo"

[repository]
url = "s3://{bucket}/demo"
endpoint = "{endpoint}"
path_style = true

[encryption]
recipients = [
  "{recipient}",
  "{spare}", # spare.txt
]
identity_file = "{site}/identity.txt"
sign_key_file = "{site}/sign.key"
trusted_keys = ["{public_key}"]

[postgres.main]
url = "host={socket} user={role} dbname=shop"

[backup.db]
source = {{ postgres = "main" }}
large_table = "4MiB"

[backup.db.verify]
scratch_dir = "{scratch}"
assert = ["select count(*) > 10000 from accounts"]
"#,
            recipient = recipient("identity.txt")?,
            spare = recipient("spare.txt")?,
            site = self.directory.display(),
            bucket = s3.bucket,
            endpoint = s3.endpoint,
            socket = postgres.socket_dir().display(),
            role = postgres.backup_role(),
            scratch = self.directory.with_file_name("scratch").display(),
        );
        prompt("cat opsd.toml");
        print!("{text}");
        // Whatever the mask: opsd warns of a configuration that others may write.
        let path = self.path("opsd.toml");
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)))
            .map_err(|e| format!("opsd.toml: {e}"))
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.opsd);
        command
            .args(arguments.split(' '))
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.directory)
            .env("OPSD_CONFIG", self.path("opsd.toml"))
            .env("AWS_ACCESS_KEY_ID", &self.keys[0])
            .env("AWS_SECRET_ACCESS_KEY", &self.keys[1])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            // Ctrl-C reaches this process alone, which then tells opsd once: twice would mean "at once".
            .process_group(0);
        for name in ["TERM", "COLUMNS", "NO_COLOR", "LANG", "LC_ALL"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Shows a command and runs it; its exit code must be `expected`.
    async fn opsd(&self, arguments: &str, expected: i32) -> Step {
        if *self.stopped.borrow() {
            return Err("stopped".into());
        }
        prompt(&format!("opsd {arguments}"));
        let mut command = self.command(arguments);
        if !on_terminal() {
            // One stream, so that a log has everything in its order.
            command.stderr(Stdio::from(std::io::stdout()));
        }
        let mut child = command.spawn().map_err(|e| format!("{}: {e}", self.opsd.display()))?;
        let mut stopped = self.stopped.clone();
        let status = tokio::select! {
            status = child.wait() => status,
            _ = stopped.wait_for(|stop| *stop) => {
                if let Some(pid) = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
                    // It may have ended by itself meanwhile.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
                child.wait().await
            }
        };
        let status = status.map_err(|e| e.to_string())?;
        if *self.stopped.borrow() {
            return Err("stopped".into());
        }
        if expected != 0 {
            println!("{}", dim(&format!("(exit code {})", status.code().unwrap_or(-1))));
        }
        match status.code() {
            Some(code) if code == expected => Ok(()),
            _ => Err(format!("`opsd {arguments}` ended with {status}, expected exit code {expected}")),
        }
    }

    /// What the repository says of the one set that there is.
    async fn newest(&self) -> Step<serde_json::Value> {
        let output = self.command("backups list --json").output().await.map_err(|e| e.to_string())?;
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|e| {
            format!("`opsd backups list --json`: {e}: {}", String::from_utf8_lossy(&output.stderr))
        })?;
        match document["sets"].as_array().map(Vec::as_slice) {
            Some([set]) if set["state"] == "complete" => Ok(set.clone()),
            _ => Err(format!("there should be one complete set: {document:#}")),
        }
    }

    /// Work that holds nothing to be cleaned up is dropped by a signal.
    async fn unless_stopped<T>(&self, work: impl Future<Output = Step<T>>) -> Step<T> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            result = work => result,
            _ = stopped.wait_for(|stop| *stop) => Err("stopped".into()),
        }
    }
}

fn number(set: &serde_json::Value, key: &str) -> Step<u64> {
    set[key].as_u64().ok_or_else(|| format!("the set's {key} is unknown"))
}

// ---- what is printed -------------------------------------------------------------------------

fn goodbye(took: Duration) {
    title(&format!("Done in {:.0} seconds; nothing is left running, nothing on disk", took.as_secs_f64()));
    say("What to try next, with your own database:");
    for line in [
        "opsd keygen -o identity.txt       a key; keep a copy away from this host",
        "opsd config init opsd.toml        a commented starter file",
        "opsd backup --dry-run             the plan, and what stands in its way",
        "opsd restore --help               into a server, instead of a scratch one",
    ] {
        println!("    {line}");
    }
    say("README.md goes on from here: \"Five minutes to a first real backup\", \"Every night\", \
         \"Restoring\" (also without opsd), and \"Security\", which says what a restore may do to you.");
}

fn on_terminal() -> bool {
    std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

fn styled(style: &str, text: &str) -> String {
    if on_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn dim(text: &str) -> String {
    styled("2", text)
}

fn title(text: &str) {
    println!("\n{}\n{}", styled("1", text), styled("2", &"─".repeat(text.chars().count())));
}

fn prompt(command: &str) {
    println!("\n{} {}", dim("$"), styled("1;36", command));
    let _ = std::io::stdout().flush();
}

/// A paragraph under what was shown.
fn say(text: &str) {
    let mut line = String::from(" ");
    println!();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            println!("{line}");
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(word);
    }
    println!("{line}");
    let _ = std::io::stdout().flush();
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
