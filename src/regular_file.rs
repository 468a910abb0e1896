//! Files that were named to be read: opened without waiting, and where opsd is root only if nobody else
//! decides what is in them.
//!
//! Whoever opens a pipe waits until somebody writes into it, perhaps for ever, and no timeout ends that.
//! Whoever may change what root reads (a configuration names programs to run) is root. That is the owner of
//! the file, those who may write it, and those who may put another in its place: the same of each directory
//! and link on the way. The configuration may come out of a pipe, too, for which the same holds, but for one
//! that whoever started opsd opened. Deliberately absent: a judgement for other users than root, who harm only
//! themselves.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::process::geteuid;

use crate::beneath;
use crate::error::Error;

/// Links that are followed on the way to a file: the kernel's own bound.
const LINKS: usize = 40;

/// Where Docker and Podman mount the secrets of a container, which cannot change their mode.
const CONTAINER_SECRETS: &str = "/run/secrets";

/// Opens a file for reading; what is none (a directory, a pipe, a device) is an error.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    check(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
}

fn check(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(refusal(Error::usage("not a regular file"))) }
}

/// [`open`] for a file that decides what opsd does: an error where opsd is root and somebody else decides
/// what is in the file.
pub fn open_trusted(path: &Path) -> io::Result<File> {
    if !geteuid().is_root() {
        return open(path);
    }
    let (folder, name) = walk(path)?;
    check(beneath::open_file(folder, &name, OFlags::RDONLY)?)
}

/// [`open_trusted`] for what need not be a file, and is waited for: a pipe that has a name is judged by its path.
/// What `path` names as a descriptor of this process (`/dev/stdin`, `/dev/fd/N`, `/proc/self/fd/N`) was opened
/// by whoever started opsd; of that, a file alone is judged.
pub fn open_any_trusted(path: &Path) -> io::Result<File> {
    if !geteuid().is_root() {
        return File::open(path);
    }
    if is_descriptor(path) {
        let file = File::open(path)?;
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        return match others_decide(&stat).filter(|_| is_file) {
            Some(why) => Err(refused(path, &why)),
            None => Ok(file),
        };
    }
    let (folder, name) = walk(path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(openat(folder, name, flags, Mode::empty())?))
}

/// Whether a path names an open descriptor of this process.
fn is_descriptor(path: &Path) -> bool {
    let is_number = |name: &OsStr| name.as_bytes().iter().all(u8::is_ascii_digit);
    let of = |folder: &str| path.strip_prefix(folder).is_ok_and(|name| is_number(name.as_os_str()));
    path == Path::new("/dev/stdin") || of("/dev/fd") || of("/proc/self/fd")
}

/// [`open_trusted`] for a file that holds a secret: an error, too, when anybody but its owner may read it.
pub fn open_secret(path: &Path) -> io::Result<File> {
    // The plainest complaint comes first: `chmod 600` also mends what the other one names.
    private(&open(path)?, path)?;
    let file = open_trusted(path)?;
    private(&file, path)?;
    Ok(file)
}

fn private(file: &File, path: &Path) -> io::Result<()> {
    let mode = file.metadata()?.mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let hint = if path.starts_with(CONTAINER_SECRETS) {
        "a secret of Compose has the owner and the mode of its file on the host: chown it to the container's user and \
         chmod 400 it there; one of a Swarm is given both beside its name: uid, and mode: 0400"
            .to_owned()
    } else {
        format!("chmod 600 {}", path.display())
    };
    Err(refusal(Error::usage(format!("mode {:04o} lets others read it", mode & 0o7777)).with_hint(hint)))
}

/// What is wrong with the file itself; the error that is made of it keeps its kind and its hint.
fn refusal(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// The text of a file that decides what opsd does.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_trusted(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// An error where opsd is root and somebody else decides what lies at a path.
pub fn trusted(path: &Path) -> io::Result<()> {
    if geteuid().is_root() { walk(path).map(drop) } else { Ok(()) }
}

/// The folder that holds what a path leads to, and its name there. Each step is opened beneath the step before
/// and judged by its descriptor: what was judged is what the next step, and the file, is opened in.
fn walk(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let mut todo: VecDeque<OsString> = components(&std::path::absolute(path)?);
    let root = || beneath::hold(Path::new("/"));
    let (mut folder, mut reached) = (root()?, PathBuf::from("/"));
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            folder =
                openat(&folder, c"..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            reached.pop();
            continue;
        }
        let next = reached.join(&name);
        let step = openat(&folder, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&step)?;
        if let Some(why) = others_decide(&stat) {
            return Err(refused(&next, &why));
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            if todo.is_empty() {
                return Ok((folder, name));
            }
            (folder, reached) = (step, next);
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(refusal(Error::usage("too many symbolic links")));
        }
        let target = readlinkat(&step, c"", Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
        if target.is_absolute() {
            (folder, reached) = (root()?, PathBuf::from("/"));
        }
        for component in components(target).into_iter().rev() {
            todo.push_front(component);
        }
    }
    Ok((folder, ".".into()))
}

fn refused(path: &Path, why: &str) -> io::Error {
    let place = path.display();
    refusal(
        Error::usage(format!("{place} {why}"))
            .with_hint(format!("opsd runs as root here, so: chown root {place} && chmod go-w {place}")),
    )
}

/// Names and `..`, without the root and without `.`.
fn components(path: &Path) -> VecDeque<OsString> {
    let is_step =
        |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|component| component.as_os_str().to_owned()).collect()
}

/// Whether another user than root decides about a file, a link, or what is in a directory.
fn others_decide(stat: &Stat) -> Option<String> {
    const STICKY: u32 = 0o1000;
    if stat.st_uid != 0 {
        return Some(format!("belongs to user {}, not to root", stat.st_uid));
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    // A link's own mode means nothing, and a device's says who may talk to it (`/dev/tty`, `/dev/null`). In a
    // sticky directory nobody replaces what root owns.
    if matches!(kind, FileType::Symlink | FileType::CharacterDevice)
        || (kind == FileType::Directory && stat.st_mode & STICKY != 0)
    {
        return None;
    }
    (stat.st_mode & 0o022 != 0)
        .then(|| format!("has mode {:04o}, which lets others write it", stat.st_mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
        for path in [dir.path(), &pipe, Path::new("/dev/zero")] {
            assert_eq!(open(path).expect_err("refused").to_string(), "not a regular file");
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "text").expect("write");
        assert_eq!(read_to_string(&file).expect("read"), "text");
    }
}
