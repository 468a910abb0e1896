//! Throw-away servers that rehearsals restore into.
//!
//! What is restored is code that the dumped database's users wrote, and a restoring superuser runs
//! it. So the server runs in a [sandbox](crate::sandbox): where opsd is root as a user with nothing to steal, and
//! wherever the machine allows it with processes, files and a network of its own. It has an empty
//! environment, one Unix socket, and lets in opsd's own user alone, as the kernel tells it. It and
//! its directory go when the rehearsal ends, however it ends: the sandbox's keeper sees to it, even
//! when opsd is killed. If the keeper was killed too, there is a directory whose lock is free, and the
//! next run [`sweep`]s it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::geteuid;

use super::connect::{self, Session};
use super::sql::Sql;
use super::tools::ServerBinaries;
use crate::config::require_auth::ChannelBinding;
use crate::config::{Connection, Route, SslMode};
use crate::error::{Context, Error, Kind, Result};
use crate::process::Child;
use crate::sandbox::{Containment, Level, Limits, Ring, Said};
use crate::shutdown;

mod contained;
pub mod image;
mod place;
mod sandboxed;
mod settings;
mod user;

use image::Image;
use place::Place;

/// The role that opsd restores as.
pub const SUPERUSER: &str = "opsd_scratch";
/// A role that may read everything and change nothing it does not own, for assertions.
pub const READER: &str = "opsd_reader";

/// Part of the socket's name and nothing else.
const PORT: u16 = 5432;

/// initdb has run and the server answers within this time. Slow disks and emulators are included.
const START_BOUND: Duration = Duration::from_secs(300);
/// The keeper asks the server to end, ends it, and removes its directory.
const STOP_BOUND: Duration = Duration::from_secs(60);
/// A container ends with its stdin. One that has not begun, or does not end, is removed after this time.
const CONTAINER_STOP_BOUND: Duration = Duration::from_secs(10);
/// The client of a container engine hears within this time that its container is gone.
const LOST_BOUND: Duration = Duration::from_secs(20);
/// A container that is being ended has nobody left who listens within this time.
const GOING_BOUND: Duration = Duration::from_secs(2);
/// Processes and threads of one server with everything that it starts.
const MAX_TASKS: u64 = 4096;
/// This much of the disk stays free, as a part of it and at most in bytes: what else is there goes on.
const FREE_PART: u64 = 50;
const MAX_FREE: u64 = 1 << 30;
const POLL: Duration = Duration::from_millis(20);

/// Where the programs of a scratch server are.
#[derive(Debug, Clone)]
pub enum Programs {
    /// On this host: they run in a sandbox.
    Host(ServerBinaries),
    /// In an image: they run in a throw-away container of it.
    Image(Image),
}

impl Programs {
    /// The server's major.
    pub fn major(&self) -> u32 {
        match self {
            Programs::Host(binaries) => binaries.major,
            Programs::Image(image) => image.major,
        }
    }

    /// The server's version, `17.11`.
    pub fn version(&self) -> &str {
        match self {
            Programs::Host(binaries) => &binaries.version,
            Programs::Image(image) => &image.version,
        }
    }
}

/// What a scratch server should be.
#[derive(Debug, Clone)]
pub struct ScratchOptions {
    /// Where its directory is made.
    pub scratch_dir: PathBuf,
    /// Whom it runs as when opsd is root; absent means `opsd-scratch` if it exists, else `nobody`.
    pub user: Option<String>,
    /// The programs.
    pub programs: Programs,
    /// Connections that restore at the same time.
    pub jobs: usize,
    /// Tables, indexes and sequences that there will be, roughly: a dump of all locks them, and the lock table is
    /// made for twice as many, within bounds.
    pub objects: u64,
    /// Bytes of memory to plan with; absent means what is available.
    pub memory: Option<u64>,
    /// Lines of postgresql.conf beside the usual ones.
    pub settings: Vec<(&'static str, String)>,
    /// opsd again, with the arguments that make it a sandbox's keeper.
    pub keeper: Vec<String>,
    /// Whether the server may run where the machine contains it too little.
    pub uncontained: bool,
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
    /// How far what runs in it is contained.
    pub containment: Containment,
    // Before the place: the keeper removes the directory, and the place looks after it.
    keeper: Mutex<Child>,
    place: Place,
    said: Last,
    held: Option<Held>,
    /// Keeps others from running as the same user where they would see each other.
    _user: Option<File>,
}

/// Whether servers can be started in a directory, as far as a look tells; nothing is made.
pub fn usable(scratch_dir: &Path) -> Result<()> {
    place::usable(scratch_dir).with_context(|| format!("scratch directory {}", scratch_dir.display()))
}

/// What the sandbox said last.
type Last = Arc<Mutex<Option<Said>>>;

/// Starts a server and waits until it answers.
pub async fn start(options: ScratchOptions) -> Result<Scratch> {
    let version = options.programs.version().to_owned();
    start_server(options)
        .await
        .with_context(|| format!("cannot start a scratch server, PostgreSQL {version}"))
}

async fn start_server(options: ScratchOptions) -> Result<Scratch> {
    let (user, mut warnings) = user::server_user(options.user.as_deref())?;
    if let Programs::Image(image) = &options.programs {
        // In a container of its own it meets nobody else of that user.
        warnings.clear();
        tracing::info!("the scratch server runs in a throw-away container of image {}", image.name);
    }
    if user.is_some() {
        user::can_serve_as_another()?;
    }
    let own_uid = geteuid().as_raw();
    let own = place::user_by_uid(own_uid).ok_or_else(|| {
        Error::new(format!("user id {own_uid}, which opsd runs as, has no name"))
            .with_hint("PostgreSQL needs one: add the user to /etc/passwd")
    })?;
    if let Programs::Host(binaries) = &options.programs
        && let Some(user) = &user
        && let Some(dir) = place::blocked_at(user, &binaries.bin_dir)
    {
        return Err(Error::new(format!(
            "user {:?} cannot run the programs in {}: {} is closed",
            user.name,
            binaries.bin_dir.display(),
            dir.display()
        ))
        .with_hint(format!("chmod o+x {}, or name another bin_dir", dir.display())));
    }
    // Before there is a directory: from then on there is little time in which nobody would remove it.
    let mut keeper = match &options.programs {
        Programs::Host(_) => Some(sandboxed::spawn_keeper(&options.keeper)?),
        Programs::Image(_) => None,
    };
    let place = {
        let (dir, user) = (options.scratch_dir.clone(), user.clone());
        blocking(move || Place::create(&dir, user.as_ref())).await?
    };
    let memory = options.memory.unwrap_or_else(settings::available_memory);
    let sizing = settings::Sizing {
        major: options.programs.major(),
        jobs: options.jobs,
        objects: options.objects,
        memory,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let conf = settings::postgresql_conf(place.root(), sizing, &options.settings);
    place.write("postgresql.conf", &conf, user.as_ref())?;
    place.write("pg_hba.conf", &settings::pg_hba_conf(), user.as_ref())?;
    let may_connect = match (&options.programs, &user) {
        // Client tools that this host lacks run beside the server, as its user.
        (Programs::Image(_), Some(user)) => vec![own.name.as_str(), &user.name],
        _ => vec![own.name.as_str()],
    };
    place.write("pg_ident.conf", &settings::pg_ident_conf(&may_connect), user.as_ref())?;
    let limits = Limits { memory, tasks: MAX_TASKS, free_space: free_at_least(place.root())? };
    let begun = match (&options.programs, keeper.take()) {
        (Programs::Host(binaries), Some(keeper)) => {
            sandboxed::begin(keeper, binaries, &place, (&own, user), limits, options.uncontained).await?
        }
        (Programs::Host(_), None) => return Err(Error::new("the sandbox has no keeper")),
        (Programs::Image(image), _) => {
            let keeper = image::start(image, &place, (&own, user.as_ref().unwrap_or(&own)), &limits)?;
            let said = Last::default();
            let watched =
                image::watch_disk(image.clone(), place.root().to_owned(), limits.free_space, said.clone());
            let held = Held { image: image.clone(), watch: tokio::spawn(watched) };
            let containment = contained::asked_for();
            Begun { keeper, containment, said, alone: None, held: Some(held) }
        }
    };
    let Begun { keeper, containment, said, alone, held } = begun;
    tracing::debug!(
        "a scratch server of PostgreSQL {} starts in {}",
        options.programs.version(),
        place.root().display()
    );
    let mut scratch = Scratch {
        warnings,
        version: options.programs.version().to_owned(),
        major: options.programs.major(),
        containment,
        keeper: Mutex::new(keeper),
        place,
        said,
        held,
        _user: alone,
    };
    let session = scratch.ready().await?;
    if let Some(held) = &scratch.held {
        // Nothing of the set has run yet that could answer in the container's place.
        let words = image::exec(&held.image, scratch.place.root());
        scratch.containment = contained::ask(&words, &limits).await;
        contained_enough(&scratch.containment, options.uncontained)?;
    }
    let containment = &scratch.containment;
    tracing::debug!("the scratch server is contained {containment}");
    if containment.level() != Level::Full {
        scratch.warnings.push(format!("the scratch server is contained {containment}"));
    }
    // A PID namespace ends with its keeper, and numbers its processes by itself.
    if scratch.containment.processes != Ring::Held {
        scratch.place.record_server()?;
    }
    let mut roles = Sql::new("CREATE ROLE ").ident(READER).then(" LOGIN BYPASSRLS");
    // Before that, a restore must grant by itself.
    if scratch.major >= 14 {
        roles = roles.then("; GRANT pg_read_all_data TO ").ident(READER);
    }
    roles.run(&session.client).await.context("cannot create its roles")?;
    session.close().await;
    Ok(scratch)
}

/// What holds a server that is about to start.
struct Begun {
    /// The server ends with its stdin.
    keeper: Child,
    containment: Containment,
    said: Last,
    /// Keeps others from running as the same user.
    alone: Option<File>,
    held: Option<Held>,
}

/// The container that a server runs in.
#[derive(Debug)]
struct Held {
    image: Image,
    /// Looks after the disk until it is aborted.
    watch: tokio::task::JoinHandle<()>,
}

/// Whether foreign code may run there.
fn contained_enough(containment: &Containment, uncontained: bool) -> Result<()> {
    if containment.level() != Level::No || uncontained {
        return Ok(());
    }
    let lacking = containment.lacking().join("; ");
    let what = "a rehearsal runs code of the database's users, and this machine does not contain it";
    Err(Error::new(format!("{what}: {lacking}")).with_hint(
        "rehearse as root, or where user namespaces are allowed; --uncontained rehearses all the same",
    ))
}

/// Tells the keeper that nobody needs the sandbox any more, and waits until all of it is gone.
async fn end(mut keeper: Child) -> Result<()> {
    keeper.stdin = None;
    match tokio::time::timeout(STOP_BOUND, keeper.wait()).await {
        Ok(exit) => exit.map(|_| ()),
        Err(_) => keeper.stop().await.map(|_| ()),
    }
}

/// Why a sandbox that nobody ended is gone.
async fn ended(keeper: &mut Child, said: &Last) -> Error {
    let exit = match keeper.wait().await {
        Ok(exit) => exit,
        Err(error) => return error,
    };
    let stderr = match exit.stderr.trim() {
        "" => "it said nothing",
        text => text,
    };
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    match said {
        Some(Said::Ended(program, how)) => Error::new(stderr).context(format!("{program} {how}")),
        Some(Said::Failed(why, Some(hint))) => Error::new(why).with_hint(hint),
        Some(Said::Failed(why, None)) => Error::new(why),
        Some(Said::Contained(_)) | None => {
            Error::new(stderr).context(format!("its keeper {}", exit.describe()))
        }
    }
}

/// What must stay free on the disk of a directory.
fn free_at_least(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)
        .map_err(std::io::Error::from)
        .with_context(|| format!("cannot ask for the size of the disk of {}", path.display()))?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize) / FREE_PART).min(MAX_FREE))
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
            route: Route::Direct,
            user: role.to_owned(),
            password: None,
            passfile: None,
            dbname: dbname.to_owned(),
            sslmode: SslMode::Disable,
            names_dbname: true,
            names_sslmode: false,
            require_auth: None,
            channel_binding: ChannelBinding::Prefer,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_secs(30),
            options: None,
        }
    }

    /// The words that start a program where the server runs, which is in a container of this image.
    pub fn exec(&self, image: &Image) -> Vec<String> {
        image::exec(image, self.place.root())
    }

    /// Its directory, for free space and for messages.
    pub fn directory(&self) -> &Path {
        self.place.root()
    }

    /// Returns when the server is gone although nobody stopped it, and says why.
    pub async fn ended(&mut self) -> Error {
        self.why_ended().await.context("the scratch server ended")
    }

    async fn why_ended(&mut self) -> Error {
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        match &self.held {
            Some(held) => image::ended(keeper, &self.said, held.image.client).await,
            None => ended(keeper, &self.said).await,
        }
    }

    /// What it logged, as far as that is kept. Rows may be quoted there.
    pub fn log(&self) -> String {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).stderr()
    }

    /// Why something failed on this server: the sandbox's own reason for ending it, where there is one.
    pub async fn cause(&self, error: Error) -> Error {
        // What was found in the set stays found, whatever ended the server.
        if error.kind() == Kind::Differs {
            return error;
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match said {
            Some(Said::Failed(why, hint)) => {
                let ended = Error::new(why).context("the scratch server was ended");
                match hint {
                    Some(hint) => ended.with_hint(hint),
                    None => ended,
                }
            }
            Some(Said::Ended(..) | Said::Contained(_)) | None => self.lost_container().await.unwrap_or(error),
        }
    }

    /// What became of a server's container, where it is gone. Its client hears of that a moment later than a session does.
    /// Nothing is repeated of what it logged: statements stand there, and code of the set may have written it.
    async fn lost_container(&self) -> Option<Error> {
        self.held.as_ref()?;
        let socket = self.place.sockets().join(format!(".s.PGSQL.{PORT}"));
        let begun = Instant::now();
        loop {
            // Whoever listens may be about to go, too: the end of a container reaches one process after the other. It may
            // also be code of the set, which never accepts.
            let asked = tokio::time::timeout(POLL, tokio::net::UnixStream::connect(&socket)).await;
            let is_there = match asked {
                Ok(Err(error)) => error.kind() == std::io::ErrorKind::WouldBlock,
                Ok(Ok(_)) | Err(_) => true,
            };
            let status = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).status();
            if let Ok(Some(status)) = status {
                return Some(image::lost(status, "").context("the scratch server was ended"));
            }
            if begun.elapsed() > if is_there { GOING_BOUND } else { LOST_BOUND } {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends the server and removes its directory.
    pub async fn stop(mut self) -> Result<()> {
        let bound = self.stop_bound();
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        keeper.stdin = None;
        let ended = match tokio::time::timeout(bound, keeper.wait()).await {
            // Its stderr is the server's log, which may quote rows.
            Ok(Ok(exit)) if !exit.status.success() => {
                Err(Error::new(format!("its keeper {}", exit.describe())))
            }
            Ok(exit) => exit.map(|_| ()),
            Err(_) => Err(Error::new(format!("its keeper does not end within {} s", bound.as_secs()))),
        };
        if let Err(error) = ended {
            tracing::debug!("{error}");
        }
        if let Some(Held { image, watch }) = self.held.take() {
            watch.abort();
            // Code of the set may have ended what ends the container.
            image::remove(&image, self.place.root()).await?;
        }
        blocking(move || self.place.take_away()).await
    }

    /// How long whatever holds the server may take to end it.
    fn stop_bound(&self) -> Duration {
        if self.held.is_some() { CONTAINER_STOP_BOUND } else { STOP_BOUND }
    }

    /// The first session that works.
    async fn ready(&mut self) -> Result<Session> {
        let connection = self.connection("postgres");
        let deadline = Instant::now() + START_BOUND;
        loop {
            if self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).has_ended()? {
                return Err(self.why_ended().await);
            }
            match connect::connect(&connection, None, "opsd").await {
                Ok(session) => return Ok(session),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!(
                        "it does not answer after {} s; it said {:?}",
                        START_BOUND.as_secs(),
                        self.log().trim()
                    )));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// What a sweep found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Directories that were removed, with the servers that still ran in them.
    pub removed: Vec<PathBuf>,
    /// Those that could not be removed, and why.
    pub left: Vec<Error>,
}

/// Removes what rehearsals that were killed have left in `scratch_dir`, running servers included, and
/// never what is in use.
pub async fn sweep(scratch_dir: &Path) -> Result<Swept> {
    let dir = scratch_dir.to_owned();
    blocking(move || place::sweep(&dir)).await
}

/// Bytes that an unprivileged user can still write at `path`, or where it would be created.
pub fn free_space(path: &Path) -> Result<u64> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing)
        .map_err(std::io::Error::from)
        .with_context(|| format!("cannot ask for the free space at {}", path.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

impl Drop for Scratch {
    /// The keeper ends and removes everything; this waits for it. [`Scratch::stop`] does so without
    /// blocking the thread.
    fn drop(&mut self) {
        let bound = self.stop_bound();
        let keeper = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner);
        keeper.stdin = None;
        if let Some(Held { image, watch }) = self.held.take() {
            watch.abort();
            image::start_to_remove(&image, self.place.root());
        }
        let begun = Instant::now();
        while self.place.is_there() && begun.elapsed() < bound && !keeper.has_ended().unwrap_or(true) {
            place::pause();
        }
    }
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
}
