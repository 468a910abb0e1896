//! A scratch server in a throw-away container, for hosts without PostgreSQL's server programs.
//!
//! The container has no network, no volume of anybody's and no privilege; of the host it sees the scratch directory
//! alone, at the path that it has here, so that its socket leads in and its room is that of `scratch_dir`. Its first
//! process is a shell that ends with its stdin: whoever is killed, opsd or the client of the container engine, takes the
//! container along, and the engine removes it. What was made and never started is removed by the next rehearsal.
//!
//! Deliberately absent: pulling an image. A rehearsal takes what the host has, which is what the site runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;

use super::SUPERUSER;
use super::place::Place;
use crate::config::Client;
use crate::container;
use crate::error::{Context, Error, Result};
use crate::postgres::tools;
use crate::process::{self, Child, Input, Output};
use crate::sandbox::{Account, Containment, Limits, Ring};

/// How long a container may take that looks at an image, or that is removed.
const LOOK_BOUND: Duration = Duration::from_secs(60);
/// On each container, with the directory that it serves.
const LABEL: &str = "opsd.scratch";
/// What keeps every container of an image away from everything.
const ALONE: [&str; 11] = [
    "--rm",
    "--pull=never",
    "--network=none",
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--log-driver=none",
    "--ulimit=core=0",
    "--tmpfs=/tmp",
    "--workdir=/",
    "--entrypoint=sh",
];

/// Says the version, and what libraries there are.
const LOOK: &str = r#"postgres --version && ls "$(pg_config --pkglibdir)""#;

/// Makes a cluster and serves it until its stdin ends. A shell starts what it does not wait for with this signal ignored,
/// until the server has its own handler: hence more than once. `$1` is the directory, `$2` an option of initdb or nothing, `$3` the superuser, `$4` the
/// KiB of the disk that stay free: what else is there goes on.
const SERVE: &str = r#"umask 077
export HOME="$1/data" TZ=UTC LC_ALL=C
initdb --pgdata "$1/data" --username "$3" --auth reject --no-sync --encoding UTF8 --locale C $2 > /dev/null || exit
exec 3<&0
postgres -D "$1/data" -c "config_file=$1/postgresql.conf" < /dev/null &
server=$!
{ cat > /dev/null; while kill -QUIT "$server"; do sleep 1; done; } <&3 &
{
    while sleep 1; do
        set -- "$1" "$2" "$3" "$4" $(df -Pk "$1" | tail -n 1)
        [ "${8:-$4}" -ge "$4" ] 2> /dev/null || break
    done
    echo "opsd: the disk is nearly full" >&2
    kill -QUIT "$server"
} &
wait "$server""#;

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
}

impl Image {
    /// Whether a library is there that a server may load.
    pub fn has_library(&self, name: &str) -> bool {
        self.libraries.iter().any(|file| file.strip_suffix(".so") == Some(name))
    }
}

/// Looks into an image.
pub async fn look(client: Client, name: &str) -> Result<Image> {
    let mut command = run(client);
    command.args(ALONE).args(["--user=65534:65534", name, "-c", LOOK]);
    let program = client.program();
    let look = async {
        let (exit, said) = process::run(program, command, LOOK_BOUND).await?;
        if !exit.status.success() {
            // What follows the first line is advice about the client's options.
            let stderr = exit.stderr_lines();
            let said = stderr.iter().map(|line| line.trim()).find(|line| !line.is_empty());
            return Err(Error::new(said.unwrap_or("it said nothing")));
        }
        let (major, version) = tools::parse_version(&said)
            .ok_or_else(|| Error::new("it does not say which version of PostgreSQL it holds"))?;
        let libraries = said.lines().skip(1).map(str::to_owned).collect();
        Ok::<_, Error>(Image { client, name: name.to_owned(), major, version, libraries })
    };
    look.await.with_context(|| format!("cannot run a container of image {name}"))
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
        if !passwd.contains(&format!("{}:", account.name)) {
            passwd += &format!("{}:x:{}:{}::/:/bin/sh\n", account.name, account.uid, account.gid);
        }
    }
    place.write("passwd", &passwd, Some(user))?;
    let mut command = run(image.client);
    command.arg("--interactive").args(ALONE);
    command.args([
        format!("--name={}", name(root)),
        format!("--label={LABEL}={text}"),
        format!("--user={}:{}", user.uid, user.gid),
        format!("--memory={}", limits.memory),
        format!("--pids-limit={}", limits.tasks),
        format!("--volume={text}:{text}"),
        format!("--volume={text}/passwd:/etc/passwd:ro"),
    ]);
    if image.client == Client::Podman {
        // Whoever is not root has its own number inside, too.
        command.arg("--userns=keep-id");
    }
    let checksums = if image.major >= 18 { "--no-data-checksums" } else { "" };
    command.args([&image.name, "-c", SERVE, "opsd", text, checksums, SUPERUSER]);
    command.arg((limits.free_space >> 10).to_string());
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

/// How far a container contains what runs in it.
pub(super) fn containment() -> Containment {
    Containment {
        processes: Ring::Held,
        network: Ring::Held,
        files: Ring::Held,
        user: Ring::Held,
        kernel: Ring::Held,
        has_control_group: true,
    }
}

/// Removes containers whose directory is gone: of rehearsals that were killed before theirs had begun.
pub async fn sweep(client: Client) -> Result<()> {
    let program = client.program();
    let ask = async |words: &[&str]| {
        let mut command = container::command(&[program.to_owned()]);
        command.args(words);
        let (exit, said) = process::run(program, command, LOOK_BOUND).await?;
        exit.check().map(|()| said)
    };
    let filter = format!("label={LABEL}");
    let format = format!("{{{{.ID}}}} {{{{.Label \"{LABEL}\"}}}}");
    let said = match client {
        Client::Docker => {
            ask(&["ps", "--all", "--no-trunc", "--filter", &filter, "--format", &format]).await?
        }
        // Its formats know no labels by name. What is left there is as it was before.
        Client::Podman => return Ok(()),
    };
    for (id, directory) in said.lines().filter_map(|line| line.split_once(' ')) {
        if id.bytes().all(|b| b.is_ascii_hexdigit()) && !PathBuf::from(directory).exists() {
            ask(&["rm", "--force", "--volumes", id]).await?;
        }
    }
    Ok(())
}
