//! Files that were named to be read: opened without waiting, and where opsd is root only if nobody else
//! decides what is in them.
//!
//! Whoever opens a pipe waits until somebody writes into it, perhaps for ever, and no timeout ends that.
//! Whoever may change what root reads (a configuration names programs to run) is root. That is the owner of
//! the file, those who may write it, and those who may put another in its place: the same of each directory
//! and link on the way. Deliberately absent: the configuration itself, which may come out of a pipe, and a
//! judgement for other users than root, who harm only themselves.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;

use crate::error::Error;

/// Links that are followed on the way to a file: the kernel's own bound.
const LINKS: usize = 40;

/// Opens a file for reading; what is none (a directory, a pipe, a device) is an error.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(refusal(Error::usage("not a regular file")));
    }
    Ok(file)
}

/// The same for a file that decides what opsd does: an error where opsd is root and somebody else decides.
pub fn open_trusted(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    trusted(path)?;
    Ok(file)
}

/// The same for a file that holds a secret: an error, too, when anybody but its owner may read it.
pub fn open_secret(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    let mode = file.metadata()?.mode();
    if mode & 0o077 != 0 {
        return Err(refusal(
            Error::usage(format!("mode {:04o} lets others read it", mode & 0o7777))
                .with_hint(format!("chmod 600 {}", path.display())),
        ));
    }
    trusted(path)?;
    Ok(file)
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
    let Some((place, why)) = why_untrusted(path)? else { return Ok(()) };
    let place = place.display();
    Err(refusal(
        Error::usage(format!("{place} {why}"))
            .with_hint(format!("opsd runs as root here, so: chown root {place} && chmod go-w {place}")),
    ))
}

/// Where somebody else decides what root finds at a path, and why; nothing where opsd is not root.
fn why_untrusted(path: &Path) -> io::Result<Option<(PathBuf, String)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let mut todo: VecDeque<OsString> = components(&std::path::absolute(path)?);
    let mut reached = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            reached.pop();
            continue;
        }
        let next = reached.join(&name);
        let meta = std::fs::symlink_metadata(&next)?;
        if let Some(why) = others_decide(&meta) {
            return Ok(Some((next, why)));
        }
        if !meta.is_symlink() {
            reached = next;
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(refusal(Error::usage("too many symbolic links")));
        }
        let target = std::fs::read_link(&next)?;
        if target.is_absolute() {
            reached = PathBuf::from("/");
        }
        for component in components(&target).into_iter().rev() {
            todo.push_front(component);
        }
    }
    Ok(None)
}

/// Names and `..`, without the root and without `.`.
fn components(path: &Path) -> VecDeque<OsString> {
    let is_step =
        |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|component| component.as_os_str().to_owned()).collect()
}

/// Whether another user than root decides about a file, a link, or what is in a directory.
fn others_decide(meta: &Metadata) -> Option<String> {
    const STICKY: u32 = 0o1000;
    if meta.uid() != 0 {
        return Some(format!("belongs to user {}, not to root", meta.uid()));
    }
    // A link's own mode means nothing. In a sticky directory nobody replaces what root owns.
    if meta.is_symlink() || (meta.is_dir() && meta.mode() & STICKY != 0) {
        return None;
    }
    (meta.mode() & 0o022 != 0)
        .then(|| format!("has mode {:04o}, which lets others write it", meta.mode() & 0o7777))
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
