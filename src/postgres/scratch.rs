//! Throw-away servers that rehearsals restore into.
//!
//! What is restored is code that the dumped database's users wrote, and a restoring superuser runs
//! it. So where opsd is root the server runs as a user with nothing to steal; it has an empty
//! environment, one Unix socket, and lets in opsd's own user alone, as the kernel tells it. It and
//! its directory go when the rehearsal ends, however it ends. If opsd is killed, a second process of
//! its own, the [`keep`]er, ends the server and removes the directory; and if that was killed too,
//! there is a directory whose lock is free, and the next run [`sweep`]s it.
//!
//! Deliberately absent: containers, namespaces, resource limits. A hostile dump can fill the disk of
//! `scratch_dir` and use the network as the scratch user; the README says so.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Signal, geteuid};
use tokio::process::Command;

use super::connect::{self, Session};
use super::tools::ServerBinaries;
use crate::config::{Connection, SslMode};
use crate::error::{Context, Error, Result};
use crate::process::{self, Child, Exit, Input, Output};
use crate::shutdown;

mod place;
mod settings;

use place::{MARK, Place, User};

/// The role that opsd restores as.
pub const SUPERUSER: &str = "opsd_scratch";
/// A role that may read everything and change nothing it does not own, for assertions.
pub const READER: &str = "opsd_reader";

/// Part of the socket's name and nothing else.
const PORT: u16 = 5432;

/// Users to run as where opsd is root, in order of preference.
const DEFAULT_USERS: [&str; 2] = ["opsd-scratch", "nobody"];

/// Slow disks and emulators included.
const INITDB_BOUND: Duration = Duration::from_secs(180);
const START_BOUND: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// What a scratch server should be.
#[derive(Debug, Clone)]
pub struct ScratchOptions {
    /// Where its directory is made.
    pub scratch_dir: PathBuf,
    /// Whom it runs as when opsd is root; absent means `opsd-scratch` if it exists, else `nobody`.
    pub user: Option<String>,
    /// The programs.
    pub binaries: ServerBinaries,
    /// Connections that restore at the same time.
    pub jobs: usize,
    /// Objects that one transaction may lock; the lock table is made for twice as many.
    pub objects: u64,
    /// Bytes of memory to plan with; absent means what is available.
    pub memory: Option<u64>,
    /// A program that, given the server's directory, [`keep`]s it; absent means that nobody does.
    pub keeper: Option<Vec<String>>,
}

/// A running scratch server. Dropping it ends and removes it; [`Scratch::stop`] also says whether
/// that worked, and does not block the thread.
#[derive(Debug)]
pub struct Scratch {
    /// What the operator should know about how it runs.
    pub warnings: Vec<String>,
    /// Its version, for errors and reports.
    pub version: String,
    /// Its major.
    pub major: u32,
    // Before the process: dropping the place ends the server, then the process is reaped.
    place: Place,
    server: Child,
    keeper: Option<Child>,
}

/// Starts a server and waits until it answers.
pub async fn start(options: ScratchOptions) -> Result<Scratch> {
    let version = options.binaries.version.clone();
    start_server(options)
        .await
        .with_context(|| format!("cannot start a scratch server, PostgreSQL {version}"))
}

async fn start_server(options: ScratchOptions) -> Result<Scratch> {
    let (user, warnings) = server_user(options.user.as_deref())?;
    let own_uid = geteuid().as_raw();
    let own = User::by_uid(own_uid).ok_or_else(|| {
        Error::new(format!("user id {own_uid}, which opsd runs as, has no name"))
            .with_hint("PostgreSQL needs one: add the user to /etc/passwd")
    })?;
    let binaries = &options.binaries;
    if let Some(user) = &user
        && let Some(dir) = user.blocked_at(&binaries.bin_dir)
    {
        return Err(Error::new(format!(
            "user {:?} cannot run the programs in {}: {} is closed",
            user.name,
            binaries.bin_dir.display(),
            dir.display()
        ))
        .with_hint(format!("chmod o+x {}, or name another bin_dir", dir.display())));
    }
    let place = {
        let (dir, user) = (options.scratch_dir.clone(), user.clone());
        blocking(move || Place::create(&dir, user.as_ref())).await?
    };
    let keeper = options.keeper.map(|words| start_keeper(&words, &place)).transpose()?;
    let run_as = |program: &str| command(binaries, program, &place, user.as_ref());

    let mut initdb = run_as("initdb");
    initdb.arg("--pgdata").arg(place.data());
    initdb.args(["--username", SUPERUSER, "--auth", "reject", "--encoding", "UTF8", "--locale", "C"]);
    initdb.arg("--no-sync");
    if binaries.major >= 18 {
        initdb.arg("--no-data-checksums");
    }
    let (exit, _) = process::run("initdb", initdb, INITDB_BOUND).await.map_err(may_run_as(user.as_ref()))?;
    exit.check()?;

    let sizing = settings::Sizing {
        major: binaries.major,
        jobs: options.jobs,
        objects: options.objects,
        memory: options.memory.unwrap_or_else(settings::available_memory),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let conf = settings::postgresql_conf(place.root(), sizing);
    place.write("postgresql.conf", &conf, user.as_ref())?;
    place.write("pg_hba.conf", &settings::pg_hba_conf(), user.as_ref())?;
    place.write("pg_ident.conf", &settings::pg_ident_conf(&own.name), user.as_ref())?;

    let mut postgres = run_as("postgres");
    postgres.arg("-D").arg(place.data());
    postgres.arg("-c").arg(format!("config_file={}", place.root().join("postgresql.conf").display()));
    // SIGQUIT is immediate shutdown: nothing here is worth a checkpoint.
    let server = process::spawn_stopped_by("postgres", postgres, Input::Null, Output::Null, Signal::QUIT)?;
    let mut scratch =
        Scratch { warnings, version: binaries.version.clone(), major: binaries.major, place, server, keeper };
    let session = scratch.ready().await?;
    let grant = match scratch.major {
        // A restore must grant by itself there.
        ..14 => String::new(),
        _ => format!("; GRANT pg_read_all_data TO {READER}"),
    };
    let roles = format!("CREATE ROLE {READER} LOGIN BYPASSRLS{grant}");
    session.client.batch_execute(&roles).await.context("cannot create its roles")?;
    session.close().await;
    Ok(scratch)
}

impl Scratch {
    /// How to connect as the superuser, with tokio-postgres and with the client tools alike.
    pub fn connection(&self, dbname: &str) -> Connection {
        self.connection_as(SUPERUSER, dbname)
    }

    /// How to connect as a role that only reads.
    pub fn reader(&self, dbname: &str) -> Connection {
        self.connection_as(READER, dbname)
    }

    fn connection_as(&self, role: &str, dbname: &str) -> Connection {
        Connection {
            hosts: vec![(self.place.sockets().display().to_string(), PORT)],
            user: role.to_owned(),
            password: None,
            passfile: None,
            dbname: dbname.to_owned(),
            sslmode: SslMode::Disable,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_secs(30),
            options: None,
        }
    }

    /// Its directory, for free space and for messages.
    pub fn directory(&self) -> &Path {
        self.place.root()
    }

    /// Its process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.id()
    }

    /// Returns when the server is gone although nobody stopped it, and says why.
    pub async fn ended(&mut self) -> Error {
        match self.server.wait().await {
            Ok(exit) => ended(&exit),
            Err(error) => error,
        }
    }

    /// Ends the server and removes its directory.
    pub async fn stop(self) -> Result<()> {
        let Scratch { place, mut server, keeper, .. } = self;
        let cleared = blocking(move || place.clear()).await;
        server.wait().await?;
        if let Some(keeper) = keeper {
            keeper.stop().await?;
        }
        cleared
    }

    /// The first session that works.
    async fn ready(&mut self) -> Result<Session> {
        let connection = self.connection("postgres");
        let deadline = Instant::now() + START_BOUND;
        loop {
            if self.server.has_ended()? {
                return Err(self.ended().await);
            }
            match connect::connect(&connection, None, "opsd").await {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "it does not answer after {} s; it said {:?}",
                        START_BOUND.as_secs(),
                        self.server.stderr().trim()
                    )));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// Removes what rehearsals that were killed have left in `scratch_dir`, running servers included, and
/// never what is in use. Returns a line for each.
pub async fn sweep(scratch_dir: &Path) -> Result<Vec<String>> {
    let dir = scratch_dir.to_owned();
    blocking(move || place::sweep(&dir)).await
}

/// Waits for the end of `owner`, a pipe whose other end the owner of a scratch server holds open, then
/// removes what is left of that server. An owner that ended as it should has left nothing.
pub fn keep(mut owner: impl std::io::Read, root: &Path) -> Result<()> {
    std::io::copy(&mut owner, &mut std::io::sink()).context("cannot wait for the server's owner")?;
    place::wait_until_free(root)?;
    if let Some(done) = place::sweep_one(root) {
        tracing::info!("{done}");
    }
    Ok(())
}

/// The keeper has a process group of its own, and needs no environment. It may be killed at any time.
fn start_keeper(words: &[String], place: &Place) -> Result<Child> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::new("the keeper has no program"))?;
    let mut command = Command::new(program);
    command.env_clear().args(arguments).arg(place.root()).current_dir("/");
    process::spawn_stopped_by("scratch keeper", command, Input::Pipe, Output::Null, Signal::KILL)
}

/// Bytes that an unprivileged user can still write at `path`, or where it would be created.
pub fn free_space(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(std::io::Error::from)
        .with_context(|| format!("cannot ask for the free space at {}", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whom the server runs as (absent: opsd's own user), and what to say about that.
fn server_user(wanted: Option<&str>) -> Result<(Option<User>, Vec<String>)> {
    if !geteuid().is_root() {
        let own = "the scratch server runs as opsd's own user: code in the restored database can read what \
                   that user can; run rehearsals as root, or as a user that holds nothing else";
        return Ok((None, vec![own.to_owned()]));
    }
    let missing = |name: &str| {
        Error::usage(format!("scratch_user {name:?} does not exist"))
            .with_hint(format!("useradd --system --no-create-home --shell /usr/sbin/nologin {name}"))
    };
    let user = match wanted {
        Some(name) => User::by_name(name).ok_or_else(|| missing(name))?,
        None => DEFAULT_USERS
            .iter()
            .find_map(|name| User::by_name(name))
            .ok_or_else(|| missing(DEFAULT_USERS[0]))?,
    };
    if user.uid == 0 {
        return Err(Error::usage(format!("scratch_user {:?} is root", user.name))
            .with_hint("a restored database's code runs as this user; name one without privileges"));
    }
    let mut warnings = Vec::new();
    if wanted.is_none() && user.name != DEFAULT_USERS[0] {
        warnings.push(format!(
            "the scratch server runs as {:?}, whom other services may share; create user {:?} for it alone",
            user.name, DEFAULT_USERS[0]
        ));
    }
    Ok((Some(user), warnings))
}

/// A program in the server's environment: as its user, in its directory, with nothing of opsd's.
/// initdb and postgres set their umask to 077 themselves.
fn command(binaries: &ServerBinaries, program: &str, place: &Place, user: Option<&User>) -> Command {
    let mut command = binaries.command(program);
    command.env("HOME", place.data()).env("TZ", "UTC").env(MARK, place.root()).current_dir(place.data());
    if let Some(user) = user {
        // Setting the user drops opsd's supplementary groups too.
        command.uid(user.uid).gid(user.gid);
    }
    command
}

fn may_run_as(user: Option<&User>) -> impl Fn(Error) -> Error {
    let name = user.map(|user| user.name.clone());
    move |error| match &name {
        Some(name) if error.to_string().contains("os error 1)") => {
            error.with_hint(format!("opsd may not change to user {name:?}; in a container, add CAP_SETUID"))
        }
        _ => error,
    }
}

fn ended(exit: &Exit) -> Error {
    let said = match exit.stderr.trim() {
        "" => "it said nothing",
        text => text,
    };
    Error::new(said).context(format!("the scratch server {}", exit.describe()))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    shutdown::unabandoned(work).await.map_err(|e| Error::new(e).context("a task died"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_of_what_does_not_exist_yet() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(free_space(&tmp.path().join("a/b/c")).unwrap() > 0);
    }

    #[test]
    fn root_is_refused_and_missing_users_are_named() {
        if geteuid().is_root() {
            let root = server_user(Some("root")).unwrap_err();
            assert_eq!(root.to_string(), "scratch_user \"root\" is root");
            assert!(server_user(Some("no-such-user-here")).is_err());
            let (user, _) = server_user(None).unwrap();
            assert_ne!(user.unwrap().uid, 0);
        } else {
            let (user, warnings) = server_user(None).unwrap();
            assert!(user.is_none() && warnings.len() == 1);
        }
    }
}
