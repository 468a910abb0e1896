//! Programs that run foreign code, and find nothing, reach nobody and leave nothing.
//!
//! A dump holds code of the database's users, and a rehearsal runs that code by design. So the server
//! of a rehearsal runs in a sandbox of two processes:
//!
//! ```text
//! opsd ── keeper ([`keep`], outside)  ── init ([`init`], inside) ── initdb, then postgres ── …
//! ```
//!
//! The *keeper* watches opsd, the time and the disk from outside. When opsd is gone, or wants the end,
//! the keeper ends every process of the sandbox and removes its directory. It is the subreaper of all
//! of them: a process that leaves its parent becomes the keeper's child, so that none gets away. The
//! *init* closes one ring after the other around itself, tells opsd which of them hold
//! ([`Containment`]), waits for a word, and runs the programs.
//!
//! What each ring holds, from the outside in:
//!
//! | ring | where the machine allows it | else |
//! |---|---|---|
//! | processes | a PID namespace: none is seen from inside, and all die with init | the subreaper ends them |
//! | network | a network namespace without any interface | seccomp refuses sockets that are not Unix sockets |
//! | files | a mount namespace that holds the programs and the sandbox's directory alone | Landlock |
//! | user | another user than opsd's, or a namespace in which opsd's own user owns nothing | |
//! | kernel | seccomp, no capabilities, `no_new_privs` | |
//!
//! Landlock and the limits on resources come on top. Deliberately absent: images, a runtime for
//! containers, virtual machines, and any knowledge of PostgreSQL.

mod cgroup;
mod confine;
mod init;
mod keeper;
mod remove;
mod view;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::init::init;
pub use self::keeper::keep;
pub use self::remove::{remove_directory, remove_directory_in};
use crate::error::{Context, Error, Result};

/// The most bytes of a line between opsd, the keeper and init: a description of some hundred paths.
const MAX_LINE: usize = 1 << 20;
/// The word that init waits for before it runs the programs.
pub const GO: &[u8] = b"go\n";

/// What is to run, where, and within which limits. One line of JSON on the keeper's stdin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sandbox {
    /// The sandbox's own directory. The keeper removes it at the end.
    pub directory: PathBuf,
    /// What the programs may write: directories below [`Sandbox::directory`].
    pub writable: Vec<PathBuf>,
    /// What the programs may read and run besides the system's own programs and libraries.
    pub readable: Vec<PathBuf>,
    /// Whom the programs run as; absent means the keeper's own user.
    pub user: Option<Account>,
    /// The only users that have a name inside.
    pub accounts: Vec<Account>,
    /// What runs, one after the other. A program that fails ends the sandbox.
    pub programs: Vec<Program>,
    /// Limits on resources.
    pub limits: Limits,
}

/// A user of the operating system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The user id.
    pub uid: u32,
    /// The id of the user's own group.
    pub gid: u32,
}

/// One program, with all of its environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    /// What messages call it.
    pub name: String,
    /// Its absolute path.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, and nothing else.
    pub environment: Vec<(String, String)>,
    /// Where it runs.
    pub directory: PathBuf,
}

/// What a sandbox may use up.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory: of all processes together where there is a control group, else of each one.
    pub memory: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Bytes that must stay free on the directory's disk.
    pub free_space: u64,
}

/// How far one ring holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ring {
    /// It holds.
    Held,
    /// Another, weaker mechanism stands in for it; what is not held.
    Weak(String),
    /// Nothing stands in for it; what is not held.
    Open(String),
}

/// Which rings hold on this machine. Init says so before anything foreign runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Containment {
    /// Whether processes can be seen, and can outlive the sandbox.
    pub processes: Ring,
    /// Whether anything can be reached over a network.
    pub network: Ring,
    /// Whether files and sockets outside can be reached.
    pub files: Ring,
    /// Whether the programs run as a user who owns something.
    pub user: Ring,
    /// Whether the kernel's whole interface is open.
    pub kernel: Ring,
    /// Whether a control group bounds memory and tasks of all processes together.
    pub has_control_group: bool,
}

/// What [`Containment`] comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every ring holds.
    Full,
    /// Every ring holds or has another mechanism in its place.
    Partly,
    /// The code can reach the network, or the files of the user whom opsd runs as.
    No,
}

impl Containment {
    /// What it comes to.
    pub fn level(&self) -> Level {
        let rings = self.rings();
        if rings.iter().any(|ring| matches!(ring, Ring::Open(_))) {
            Level::No
        } else if rings.iter().all(|ring| **ring == Ring::Held) {
            Level::Full
        } else {
            Level::Partly
        }
    }

    /// What is not held, a line each.
    pub fn lacking(&self) -> Vec<&str> {
        let lack = |ring| match ring {
            &Ring::Held => None,
            Ring::Weak(what) | Ring::Open(what) => Some(what.as_str()),
        };
        self.rings().into_iter().filter_map(lack).collect()
    }

    fn rings(&self) -> [&Ring; 5] {
        [&self.processes, &self.network, &self.files, &self.user, &self.kernel]
    }
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lacking = self.lacking().join("; ");
        match self.level() {
            Level::Full => f.write_str("full"),
            Level::Partly => write!(f, "partly: {lacking}"),
            Level::No => write!(f, "no: {lacking}"),
        }
    }
}

/// What init gets: the sandbox, and what the keeper found out while it made it.
#[derive(Debug, Serialize, Deserialize)]
struct Inner {
    sandbox: Sandbox,
    /// Why there is no PID namespace; absent where there is one.
    no_pid_namespace: Option<String>,
    has_user_namespace: bool,
    has_control_group: bool,
}

/// What init and the keeper write to stdout, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// The rings are closed.
    Contained(Containment),
    /// A program has ended, and with it the sandbox: its name and how (`exited with status 1`).
    Ended(String, String),
    /// Init or the keeper ended the sandbox: why, and what to do about it where that is known.
    Failed(String, Option<String>),
}

impl Said {
    fn failed(error: &Error) -> Self {
        Said::Failed(error.to_string(), error.hint().map(str::to_owned))
    }

    /// One line of JSON.
    fn line(&self) -> Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// This process's stdin without a buffer, which would read ahead of what [`read_line`] and `poll` see.
fn own_stdin() -> Result<File> {
    let own = std::io::stdin().as_fd().try_clone_to_owned().context("cannot read from stdin")?;
    Ok(File::from(own))
}

/// Reads one line and not a byte more, so that what follows stays in the pipe. `None` is the end.
pub fn read_line(mut from: impl Read) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) if byte[0] == b'\n' => return Ok(Some(line)),
            Ok(_) if line.len() == MAX_LINE => return Err(Error::new("a line is too long")),
            Ok(_) => line.push(byte[0]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("cannot read a line"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> Containment {
        Containment {
            processes: Ring::Held,
            network: Ring::Held,
            files: Ring::Held,
            user: Ring::Held,
            kernel: Ring::Held,
            has_control_group: false,
        }
    }

    #[test]
    fn the_weakest_ring_decides() {
        assert_eq!(held().to_string(), "full");
        let weak = Containment { processes: Ring::Weak("others can be seen".into()), ..held() };
        assert_eq!(weak.to_string(), "partly: others can be seen");
        let open = Containment { network: Ring::Open("the network can be reached".into()), ..weak };
        assert_eq!((open.level(), open.lacking().len()), (Level::No, 2));
        assert_eq!(open.to_string(), "no: others can be seen; the network can be reached");
    }

    #[test]
    fn a_line_is_read_and_not_a_byte_more() {
        let mut input = &b"one\ntwo"[..];
        assert_eq!(read_line(&mut input).unwrap(), Some(b"one".to_vec()));
        assert_eq!(input, b"two");
        assert_eq!(read_line(&mut input).unwrap(), None, "a line that does not end is none");
        assert!(read_line(std::io::repeat(b'x')).is_err(), "nor one without end");
    }
}
