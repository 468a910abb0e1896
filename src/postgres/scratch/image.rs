//! A scratch server in a throw-away container, for hosts without PostgreSQL's server programs.
//!
//! The container has no network, no volume and no privilege; of the host it sees the scratch directory alone, at the path
//! that it has here, so that its socket leads in and its room is that of `scratch_dir`. It may write the server's data and
//! its socket, and nothing else.
//!
//! Its first process is a shell that ends with its stdin, so that a killed opsd takes the container along. The kernel lets
//! nothing inside kill or stop that process. opsd itself watches the disk and removes the container, and the next
//! rehearsal removes what a killed one left, before or after it began.
//!
//! Deliberately absent: pulling an image. A rehearsal takes what the host has, which is what the site runs.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use rustix::process::{Signal, geteuid};
use tokio::process::Command;

use super::place::Place;
use super::{Last, SUPERUSER, free_space as free_space_at};
use crate::config::Client;
use crate::container;
use crate::error::{Context, Error, Result};
use crate::postgres::tools;
use crate::printable;
use crate::process::{self, Child, Input, Output};
use crate::sandbox::{Account, Limits, Said};

/// How long a container may take that looks at an image, or that is removed.
const LOOK_BOUND: Duration = Duration::from_secs(60);
/// A container answers at once, on an engine that has much to do within this time.
pub(super) const ASK_BOUND: Duration = Duration::from_secs(30);
/// Characters of what a client complains of that are shown.
const COMPLAINT_MAX: usize = 400;
/// What a client exits with where the engine did not start the container, or was lost.
const ENGINE_FAILED: i32 = 125;
/// Where a signal ended the first process: this and the signal's number.
const BY_SIGNAL: i32 = 128;
/// On each container that looks at an image: when it is nobody's any more, in seconds since 1970.
const LOOK_LABEL: &str = "opsd.look";
/// Much longer than [`LOOK_BOUND`]: whoever looks is gone by then.
const LOOK_KEPT: Duration = Duration::from_secs(600);
/// On each container, with the directory that it serves.
const LABEL: &str = "opsd.scratch";
/// And with the device and the inode of what that is in: an engine may have several hosts, and a host several file systems
/// with one path.
const SCRATCH_DIR: &str = "opsd.scratch_dir";
/// How often the disk is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// What keeps every container of an image away from everything.
const ALONE: [&str; 13] = [
    "--rm",
    // The shell is the first process.
    "--init=false",
    "--pull=never",
    "--network=none",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    // Where SELinux is on, it would keep the container out of the scratch directory.
    "--security-opt=label=disable",
    "--log-driver=none",
    "--ulimit=core=0",
    "--tmpfs=/tmp",
    "--workdir=/",
    "--entrypoint=sh",
];

/// Says the version, and what libraries there are.
const LOOK: &str = r#"postgres --version && { ls "$(pg_config --pkglibdir)" || true; }"#;

/// Makes a cluster and serves it until its stdin ends: then the first process ends, and all others with it. `$1` is the
/// directory, `$2` an option of initdb or nothing, `$3` the superuser.
const SERVE: &str = r#"umask 077
export HOME="$1/data" TZ=UTC LC_ALL=C
initdb --pgdata "$1/data" --username "$3" --auth reject --no-sync --encoding UTF8 --locale C $2 < /dev/null > /dev/null ||
    exit
trap 'exit 1' TERM
{ postgres -D "$1/data" -c "config_file=$1/postgresql.conf" < /dev/null; kill -TERM $$; } &
while read -r _; do :; done"#;

/// An image that is here, and what is in it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Whom to ask for containers.
    pub client: Client,
    /// Its name or id.
    pub name: String,
    /// Major of the server in it.
    pub major: u32,
    /// `17.11`.
    pub version: String,
    /// Files beside the server's libraries.
    libraries: Vec<String>,
    /// Where it wants volumes, which it does not get: a container could fill the engine's disk there.
    volumes: Vec<String>,
}

impl Image {
    /// Whether a library is there that a server may load.
    pub fn has_library(&self, name: &str) -> bool {
        self.libraries.iter().any(|file| file.strip_suffix(".so") == Some(name))
    }
}

/// Looks into an image.
pub async fn look(client: Client, name: &str) -> Result<Image> {
    let look = async {
        let volumes = volumes(client, name).await?;
        let said = look_inside(client, name, &volumes).await?;
        let (major, version) = tools::parse_version(&said)
            .ok_or_else(|| Error::new("it does not say which version of PostgreSQL it holds"))?;
        let libraries = said.lines().skip(1).map(str::to_owned).collect();
        Ok::<_, Error>(Image { client, name: name.to_owned(), major, version, libraries, volumes })
    };
    look.await.with_context(|| format!("cannot run a container of image {name}"))
}

async fn look_inside(client: Client, image: &str, volumes: &[String]) -> Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let looking = Looking { client, name: format!("opsd-look-{:016x}", rand::random::<u64>()) };
    let mut command = run(client);
    command.args(ALONE).args(volumes.iter().map(|path| no_volume(path)));
    command.args([
        format!("--name={}", looking.name),
        format!("--label={LOOK_LABEL}={}", (now + LOOK_KEPT).as_secs()),
    ]);
    command.args(["--memory=512m", "--pids-limit=64", "--user=65534:65534", image, "-c", LOOK]);
    let (exit, said) = process::run(client.program(), command, LOOK_BOUND).await?;
    if !exit.status.success() {
        // What follows the first line is advice about the client's options.
        return Err(complaint_alone(&exit.stderr));
    }
    // The engine has removed it.
    looking.let_go();
    Ok(said)
}

/// A container that looks at an image. Dropping it removes the container, which a client that is ended at the wrong
/// moment leaves behind, made and not started.
struct Looking {
    client: Client,
    name: String,
}

impl Looking {
    fn let_go(mut self) {
        self.name.clear();
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            start_to_remove_named(self.client, &self.name);
        }
    }
}

/// The line of a client's or a server's stderr that says why it ended, within bounds. What a server logs of its work
/// says nothing of that.
fn complaint(stderr: &str) -> Option<String> {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let begins =
        |line: &&str| ["docker:", "podman:", "Error", "error"].iter().any(|word| line.starts_with(word));
    let of_server =
        |line: &&str| [" FATAL:  ", " PANIC:  ", "initdb: error"].iter().any(|word| line.contains(word));
    let rest = || lines().find(|line| !line.contains(" LOG:  "));
    let found = lines().find(begins).or_else(|| lines().rfind(of_server)).or_else(rest);
    found.map(|line| printable::bounded(line, COMPLAINT_MAX).into_owned())
}

/// The same for what has nothing else to say.
fn complaint_alone(stderr: &str) -> Error {
    Error::new(complaint(stderr).unwrap_or_else(|| "it said nothing".to_owned()))
}

/// The paths that an image declares as volumes.
async fn volumes(client: Client, name: &str) -> Result<Vec<String>> {
    let program = client.program();
    let mut command = container::command(&[program.to_owned()]);
    command.args([
        "image",
        "inspect",
        "--format",
        "{{range $path, $_ := .Config.Volumes}}{{println $path}}{{end}}",
        name,
    ]);
    let (exit, said) = process::run(program, command, LOOK_BOUND).await?;
    if !exit.status.success() {
        return Err(complaint_alone(&exit.stderr));
    }
    let volumes: Vec<String> = said.lines().filter(|path| !path.is_empty()).map(str::to_owned).collect();
    match volumes.iter().find(|path| !path.starts_with('/') || path.contains([':', ','])) {
        Some(path) => Err(Error::new(format!("it wants a volume at {path:?}, which is no plain path"))),
        None => Ok(volumes),
    }
}

/// An empty directory in a volume's place, which nobody writes to.
fn no_volume(path: &str) -> String {
    format!("--tmpfs={path}:ro,size=4k")
}

/// The device and the inode of a directory, which no other has.
fn identity(directory: &Path) -> Result<String> {
    use std::os::unix::fs::MetadataExt;
    let found = directory.metadata().with_context(|| format!("cannot look at {}", directory.display()))?;
    Ok(format!("{}:{}", found.dev(), found.ino()))
}

fn run(client: Client) -> Command {
    container::command(&[client.program().to_owned(), "run".to_owned()])
}

/// A container that starts a server in this place. It ends with the child's stdin.
pub(super) fn start(
    image: &Image,
    place: &Place,
    accounts: (&Account, &Account),
    limits: &Limits,
) -> Result<Child> {
    let (own, user) = accounts;
    let root = place.root();
    let text = root.to_str().ok_or_else(|| Error::usage(format!("{} is not UTF-8", root.display())))?;
    // A comma would end the value; scratch directories are named by opsd, below one of the operator's choosing.
    if text.contains([',', ':']) {
        return Err(Error::usage(format!(
            "scratch_dir {} has a comma or a colon in its name",
            root.display()
        )));
    }
    let mut passwd = String::new();
    for account in [own, user] {
        if !passwd.lines().any(|line| line.split(':').next() == Some(&account.name)) {
            passwd += &format!("{}:x:{}:{}::/:/bin/sh\n", account.name, account.uid, account.gid);
        }
    }
    place.write("passwd", &passwd, Some(user))?;
    let mut command = run(image.client);
    command.arg("--interactive").args(ALONE);
    command.args([
        format!("--name={}", name(root)),
        format!("--label={LABEL}={text}"),
        format!("--label={SCRATCH_DIR}={}", identity(root.parent().unwrap_or(root))?),
        format!("--user={}:{}", user.uid, user.gid),
        format!("--memory={}", limits.memory),
        format!("--pids-limit={}", limits.tasks),
        // Unlike --volume this makes nothing where nothing is.
        format!("--mount=type=bind,source={text},target={text},readonly"),
        format!("--mount=type=bind,source={text}/data,target={text}/data"),
        format!("--mount=type=bind,source={text}/s,target={text}/s"),
        format!("--mount=type=bind,source={text}/passwd,target=/etc/passwd,readonly"),
    ]);
    command.args(image.volumes.iter().map(|path| no_volume(path)));
    if image.client == Client::Podman && !geteuid().is_root() {
        // An ordinary user has the same number inside.
        command.arg("--userns=keep-id");
    }
    let checksums = if image.major >= 18 { "--no-data-checksums" } else { "" };
    command.args([&image.name, "-c", SERVE, "opsd", text, checksums, SUPERUSER]);
    process::spawn_stopped_by("the container", command, Input::Pipe, Output::Null, Signal::KILL)
}

/// What the container of a scratch directory is called.
fn name(root: &Path) -> String {
    root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The words that start a program in the container of a scratch directory.
pub(super) fn exec(image: &Image, root: &Path) -> Vec<String> {
    [image.client.program(), "exec", "-i", &name(root)].map(str::to_owned).to_vec()
}

/// The words that remove a container, whatever still runs in it.
fn remove_words(client: Client, name: &str) -> Vec<String> {
    [client.program(), "rm", "--force", "--volumes", name].map(str::to_owned).to_vec()
}

/// Removes the container of a scratch directory, if it is still there.
pub(super) async fn remove(image: &Image, root: &Path) -> Result<()> {
    let command = container::command(&remove_words(image.client, &name(root)));
    let (exit, _) = process::run(image.client.program(), command, LOOK_BOUND).await?;
    // The engine may be about to remove it by itself.
    let is_gone = |said: &str| said.contains("no such container") || said.contains("already in progress");
    match exit.check() {
        Err(error) if !is_gone(&error.message().to_ascii_lowercase()) => Err(error),
        _ => Ok(()),
    }
}

/// Starts the client that removes the container, for a server that is dropped: nobody can wait for it there.
pub(super) fn start_to_remove(image: &Image, root: &Path) {
    start_to_remove_named(image.client, &name(root));
}

fn start_to_remove_named(client: Client, name: &str) {
    let command = container::command(&remove_words(client, name));
    let mut command = command.into_std();
    let null = std::process::Stdio::null;
    if let Err(error) = command.stdin(null()).stdout(null()).stderr(null()).spawn() {
        tracing::error!("cannot remove container {name}: {error}");
    }
}

/// Why the container of a server that nobody stopped is gone.
pub(super) async fn ended(run: &mut Child, said: &Last, client: Client) -> Error {
    let exit = match run.wait().await {
        Ok(exit) => exit,
        Err(error) => return error,
    };
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Said::Failed(why, hint)) = said {
        let error = Error::new(why);
        return match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        };
    }
    let error = lost(exit.status, &exit.stderr);
    let lower = exit.stderr.to_ascii_lowercase();
    let is_denied =
        ["permission denied", "operation not permitted"].iter().any(|words| lower.contains(words));
    if is_denied && renumbers_users(client).await {
        return error.with_hint(
            "this engine gives users other numbers (rootless, or userns-remap), and nobody in its containers owns a \
             directory of opsd's user: install the server's programs on this host, for a rehearsal without a container",
        );
    }
    error
}

/// What became of a container, as its client's end tells it.
pub(super) fn lost(status: ExitStatus, stderr: &str) -> Error {
    const KILLED: i32 = BY_SIGNAL + 9;
    let how = match status.code() {
        Some(ENGINE_FAILED) => "the container engine did not start the container, or was lost".to_owned(),
        Some(KILLED) => "its container was killed: somebody removed it, or the memory was used up".to_owned(),
        Some(code) if code > BY_SIGNAL => format!("its container was ended by signal {}", code - BY_SIGNAL),
        Some(code) => format!("its container ended with status {code}"),
        None => "the container engine's client was killed, and the container with it".to_owned(),
    };
    match complaint(stderr) {
        Some(line) => Error::new(line).context(how),
        None => Error::new(how),
    }
}

/// Whether user numbers inside of this engine's containers are others outside.
async fn renumbers_users(client: Client) -> bool {
    let format = match client {
        Client::Docker => "{{.SecurityOptions}}",
        Client::Podman => "{{if .Host.Security.Rootless}}rootless{{end}}",
    };
    let mut command = container::command(&[client.program().to_owned()]);
    command.args(["info", "--format", format]);
    let said = process::run(client.program(), command, LOOK_BOUND).await;
    said.is_ok_and(|(_, said)| said.contains("rootless") || said.contains("userns"))
}

/// Removes the container when the disk is nearly full, and says why: what else is there goes on.
pub(super) async fn watch_disk(image: Image, root: PathBuf, free_space: u64, said: Last) {
    loop {
        tokio::time::sleep(WATCH).await;
        if free_space_at(&root).is_ok_and(|free| free < free_space) {
            let why = format!("the disk of {} is nearly full", root.display());
            let hint = "choose a scratch_dir on a larger disk".to_owned();
            *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(Said::Failed(why, Some(hint)));
            if let Err(error) = remove(&image, &root).await {
                tracing::error!("cannot remove container {}: {error}", name(&root));
            }
            return;
        }
    }
}

/// Removes containers whose directory in this `scratch_dir` is gone, of rehearsals that were killed, and those that
/// looked at an image for somebody who is gone.
pub async fn sweep(client: Client, scratch_dir: &Path) -> Result<()> {
    let program = client.program();
    let ask = async |words: &[&str]| {
        let mut command = container::command(&[program.to_owned()]);
        command.args(words);
        let (exit, said) = process::run(program, command, LOOK_BOUND).await?;
        exit.check().map(|()| said)
    };
    let label = async |id: &str, label: &str| {
        let format = format!("{{{{index .Config.Labels \"{label}\"}}}}");
        // It may have ended by itself meanwhile.
        ask(&["container", "inspect", "--format", &format, id])
            .await
            .ok()
            .map(|said| said.trim_end().to_owned())
    };
    // Another rehearsal may remove the same one; one that stays keeps no other from being removed.
    let remove_left = async |id: &str| {
        if let Err(error) = ask(&["rm", "--force", "--volumes", id]).await
            && label(id, LABEL).await.is_some()
        {
            tracing::warn!("cannot remove container {id}, which an earlier rehearsal left: {error}");
        }
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let looks = format!("label={LOOK_LABEL}");
    let ids = ask(&["ps", "--all", "--no-trunc", "--filter", &looks, "--format", "{{.ID}}"]).await?;
    for id in ids.lines().filter(|id| container::is_id(id)) {
        if label(id, LOOK_LABEL)
            .await
            .and_then(|until| until.parse().ok())
            .is_some_and(|until: u64| until < now)
        {
            remove_left(id).await;
        }
    }
    // Nothing was ever started in a directory that is not there.
    let Ok(scratch_dir) = scratch_dir.canonicalize() else { return Ok(()) };
    let (ours, here) = (format!("label={LABEL}"), format!("label={SCRATCH_DIR}={}", identity(&scratch_dir)?));
    let ids =
        ask(&["ps", "--all", "--no-trunc", "--filter", &ours, "--filter", &here, "--format", "{{.ID}}"])
            .await?;
    for id in ids.lines().filter(|id| container::is_id(id)) {
        let Some(directory) = label(id, LABEL).await else { continue };
        let directory = PathBuf::from(directory);
        // What cannot be seen may be somebody else's.
        if directory.parent() == Some(&scratch_dir) && matches!(directory.try_exists(), Ok(false)) {
            remove_left(id).await;
        }
    }
    Ok(())
}
