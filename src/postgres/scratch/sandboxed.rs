//! A scratch server in a sandbox of this host.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::sync::oneshot;

use super::place::{MARK, Place};
use super::{Begun, Last, SUPERUSER, blocking, contained_enough, end, ended};
use crate::error::{Context, Error, Result};
use crate::postgres::tools::ServerBinaries;
use crate::process::{self, Child, Input, Output};
use crate::sandbox::{self, Account, Containment, Limits, Program, Ring, Said, Sandbox};

/// The sandbox is made within this time. Slow disks and emulators are included.
const SANDBOX_BOUND: Duration = Duration::from_secs(60);

/// Closes a sandbox around the programs and lets them go.
pub(super) async fn begin(
    mut keeper: Child,
    binaries: &ServerBinaries,
    place: &Place,
    (own, user): (&Account, Option<Account>),
    limits: Limits,
    uncontained: bool,
) -> Result<Begun> {
    let sandbox = Sandbox {
        directory: place.root().to_owned(),
        writable: vec![place.data(), place.sockets()],
        readable: binaries.directories().await?,
        accounts: user.iter().cloned().chain([own.clone()]).collect(),
        user,
        programs: programs(binaries, place)?,
        limits,
    };
    let (containment, said) = contain(&mut keeper, &sandbox).await?;
    let go = async {
        contained_enough(&containment, uncontained)?;
        let alone = match containment.processes {
            Ring::Held => None,
            Ring::Weak(_) | Ring::Open(_) => Some(place.lock_user()?),
        };
        send(&mut keeper, sandbox::GO).await?;
        Ok(alone)
    };
    let alone = match go.await {
        Ok(alone) => alone,
        Err(error) => {
            end(keeper).await?;
            return Err(error);
        }
    };
    Ok(Begun { keeper, containment, said, alone, held: None })
}

/// Starts a keeper that has no sandbox yet. It ends with its stdin.
pub(super) fn spawn_keeper(words: &[String]) -> Result<Child> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::new("the keeper has no program"))?;
    let mut command = Command::new(program);
    command.env_clear().args(arguments).current_dir("/");
    process::spawn_stopped_by("the sandbox", command, Input::Pipe, Output::Pipe, Signal::KILL)
}

/// Hands a keeper its sandbox, and waits until the sandbox says how far it holds.
async fn contain(keeper: &mut Child, sandbox: &Sandbox) -> Result<(Containment, Last)> {
    let mut line = serde_json::to_vec(sandbox)?;
    line.push(b'\n');
    send(keeper, &line).await?;
    let stdout = keeper.stdout.take().ok_or_else(|| Error::new("the sandbox has no stdout"))?;
    let said = Last::default();
    let (first, containment) = oneshot::channel();
    let last = said.clone();
    // A thread that ends with the sandbox.
    tokio::task::spawn_blocking(move || listen(stdout, first, &last));
    match tokio::time::timeout(SANDBOX_BOUND, containment).await {
        Ok(Ok(containment)) => Ok((containment, said)),
        Ok(Err(_)) => Err(ended(keeper, &said).await),
        Err(_) => Err(Error::new(format!("it is not made after {} s", SANDBOX_BOUND.as_secs()))),
    }
}

/// Hears what the sandbox says, until its end.
fn listen(stdout: File, first: oneshot::Sender<Containment>, last: &Last) {
    let mut first = Some(first);
    while let Ok(Some(line)) = sandbox::read_line(&stdout) {
        match serde_json::from_slice(&line) {
            Ok(Said::Contained(containment)) => {
                if let Some(first) = first.take() {
                    let _ = first.send(containment);
                }
            }
            Ok(said) => *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(said),
            Err(error) => tracing::debug!("the sandbox says what nobody understands: {error}"),
        }
    }
}

async fn send(keeper: &mut Child, bytes: &[u8]) -> Result<()> {
    let stdin = keeper.stdin.as_ref().ok_or_else(|| Error::new("the sandbox has no stdin"))?;
    let mut stdin = stdin.try_clone().context("cannot reach the sandbox")?;
    let bytes = bytes.to_owned();
    blocking(move || stdin.write_all(&bytes).context("cannot reach the sandbox")).await
}

/// What runs in the sandbox, with nothing of opsd's in its environment. Both set their umask to 077.
fn programs(binaries: &ServerBinaries, place: &Place) -> Result<Vec<Program>> {
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| Error::usage(format!("{} is not UTF-8", path.display())))
    };
    let data = text(&place.data())?;
    let mut environment = binaries.environment();
    for (name, value) in [("HOME", data.clone()), ("TZ", "UTC".into()), (MARK, text(place.root())?)] {
        environment.push((name.to_owned(), value));
    }
    let bin = binaries.real_bin_dir()?;
    let program = |name: &str, arguments: Vec<String>| Program {
        name: name.to_owned(),
        path: bin.join(name),
        arguments,
        environment: environment.clone(),
        directory: place.data(),
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut initdb = words(&["--pgdata", &data, "--username", SUPERUSER, "--auth", "reject", "--no-sync"]);
    initdb.extend(words(&["--encoding", "UTF8", "--locale", "C"]));
    if binaries.major >= 18 {
        initdb.push("--no-data-checksums".to_owned());
    }
    let config = format!("config_file={}", text(&place.root().join("postgresql.conf"))?);
    let postgres = words(&["-D", &data, "-c", &config]);
    Ok(vec![program("initdb", initdb), program("postgres", postgres)])
}
