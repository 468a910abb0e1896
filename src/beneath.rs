//! Paths beneath a directory that is held open, so that no symbolic link leads out of it.
//!
//! A user who may write somewhere in a directory may swap a folder in it for a symbolic link, in the instant
//! between a look at the folder and its use. So no path is looked at first: each step is opened beneath the
//! step before, no step is a link, and what is done in a folder is done beneath its descriptor. That is what
//! `openat2` does with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`; the walk here does it with calls that
//! older kernels have and that containers' filters let through.
//!
//! Paths here are relative: names, each parted from the next by one slash. The caller sees to it that none
//! is `.` or `..`. Deliberately absent: protection from whoever may change the directories above the one
//! that is held open, and from a folder that is moved elsewhere after it was opened.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// A descriptor that stands for a directory. It needs no right to list what is in it.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A descriptor of a directory whose names can be read.
const READABLE: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Holds the directory open that a path names; links on the way are followed, the last one, too.
pub fn hold(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY, Mode::empty())
}

/// Opens a folder beneath a directory; an empty path is the directory itself.
///
/// # Errors
/// [`Errno::NOTDIR`] where a step is a file or a symbolic link.
pub fn folder(directory: impl AsFd, path: &str) -> Result<OwnedFd> {
    let mut reached = rustix::fs::openat(directory, c".", DIRECTORY, Mode::empty())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        reached = step(&reached, name)?;
    }
    Ok(reached)
}

/// Opens a folder beneath a directory, creating what is missing on the way with mode 0700, each synced into
/// its parent.
pub fn create_folder(directory: impl AsFd, path: &str) -> Result<OwnedFd> {
    let mut reached = rustix::fs::openat(directory, c".", DIRECTORY, Mode::empty())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        reached = match step(&reached, name) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&reached, name, Mode::RWXU) {
                    Ok(()) => sync(&reached)?,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                step(&reached, name)?
            }
            opened => opened?,
        };
    }
    Ok(reached)
}

fn step(parent: &OwnedFd, name: &str) -> Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens the file of a name in a folder, without waiting for a pipe's other end.
///
/// # Errors
/// [`Errno::LOOP`] where the name is a symbolic link.
pub fn open_file(folder: impl AsFd, name: impl Arg, flags: OFlags) -> Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// What a name in a folder stands for; a symbolic link is itself.
pub fn look(folder: impl AsFd, name: &str) -> Result<Stat> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Every name in a folder with what it stands for. A name that is no UTF-8, and one that goes away meanwhile,
/// is left out.
pub fn list(folder: impl AsFd) -> Result<Vec<(String, Stat)>> {
    let folder = rustix::fs::openat(folder, c".", READABLE, Mode::empty())?;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name == "." || name == ".." {
            continue;
        }
        match look(&folder, name) {
            Ok(stat) => found.push((name.to_owned(), stat)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

/// Removes a file's name from a folder; a symbolic link's, not what it leads to.
pub fn remove_file(folder: impl AsFd, name: &str) -> Result<()> {
    rustix::fs::unlinkat(folder, name, AtFlags::empty())
}

/// Removes an empty folder from a folder.
pub fn remove_folder(folder: impl AsFd, name: &str) -> Result<()> {
    rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// Makes the names in a folder durable. A folder that was removed meanwhile has nothing that must survive.
pub fn sync(folder: impl AsFd) -> Result<()> {
    match rustix::fs::openat(folder, c".", READABLE, Mode::empty()) {
        Err(Errno::NOENT) => Ok(()),
        opened => rustix::fs::fsync(opened?),
    }
}

/// Whether this is a regular file.
pub fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Whether this is a directory.
pub fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn no_step_is_a_link_wherever_it_leads() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("root/a/b")).unwrap();
        std::fs::write(tmp.path().join("root/a/b/file"), "x").unwrap();
        let link = |to: &str, at: &str| symlink(to, tmp.path().join(at)).unwrap();
        link("a", "root/inside");
        link("../..", "root/a/out");
        link("file", "root/a/b/alias");
        let root = hold(&tmp.path().join("root")).unwrap();
        let b = folder(&root, "a/b").unwrap();
        open_file(&b, "file", OFlags::RDONLY).unwrap();
        assert_eq!(open_file(&b, "alias", OFlags::RDONLY).unwrap_err(), Errno::LOOP);
        for path in ["inside", "inside/b", "a/out", "a/out/root", "a/b/file"] {
            assert_eq!(folder(&root, path).unwrap_err(), Errno::NOTDIR, "{path}");
            assert_eq!(create_folder(&root, path).unwrap_err(), Errno::NOTDIR, "{path}");
        }
        assert_eq!(folder(&root, "a/c").unwrap_err(), Errno::NOENT);
        create_folder(&root, "a/c/d").unwrap();
        assert!(tmp.path().join("root/a/c/d").is_dir());
        let names = |path: &str| {
            let mut names: Vec<_> =
                list(folder(&root, path).unwrap()).unwrap().into_iter().map(|(name, _)| name).collect();
            names.sort();
            names
        };
        assert_eq!(names(""), ["a", "inside"]);
        assert_eq!(names("a/b"), ["alias", "file"]);
    }
}
