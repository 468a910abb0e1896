//! A store in a directory: one file an object, the key its path.
//!
//! An object is written to a temporary file beside the others, synced, and only then renamed to
//! its name (linked, where the name must be free, or on a file system without links renamed so that
//! nothing is replaced), after which the directory is synced too.
//! Temporary files live in a folder of their own that is never listed; what a killed run left
//! there is removed by a later one.
//!
//! Deliberately absent: locking of objects (names are the only shared state, and they change atomically;
//! a lock on a temporary file only tells that its writer lives) and following of symbolic links below
//! the root: what is behind one is not there, and nothing is written or removed through one, also where
//! somebody swaps a folder for a link meanwhile ([`beneath`]).

mod coordinate;

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::{AtFlags, OFlags, RenameFlags, Stat, linkat, renameat, renameat_with};
use rustix::io::Errno;

use super::{
    ObjectMeta, READ_SIZE, Store, StoreError, Unfinished, Upload, Version, check_key, size_mismatch,
};
use crate::buffer_pool::BufferPool;
use crate::{beneath, shutdown};

/// Folder of unfinished uploads, in the root so that a rename never crosses file systems.
const TEMPORARY: &str = ".opsd-tmp";

/// Unfinished uploads untouched for this long, and locked by nobody, belong to a run that was killed.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a directory is created again that a concurrent delete removed as empty.
const PLACE_ATTEMPTS: usize = 10;

/// A directory of objects.
#[derive(Debug, Clone)]
pub struct FsStore {
    root: Arc<Root>,
    /// Memory of ranges that are read.
    ranges: BufferPool,
}

/// The directory of a repository. It is held open, so that a run stays in the directory that it began in.
#[derive(Debug)]
struct Root {
    directory: OwnedFd,
    /// For messages.
    path: PathBuf,
}

impl FsStore {
    /// Opens a directory, creating it (mode 0700) where only its last component is missing: a whole
    /// missing path rather means that a file system is not mounted.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let made = match DirBuilder::new().mode(0o700).create(root) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            other => other,
        };
        made.map_err(|e| explain(e, "create the repository directory", root))?;
        let directory = match beneath::hold(root) {
            Err(Errno::NOTDIR) => {
                return Err(StoreError::Other(format!("{} is not a directory", root.display())));
            }
            opened => opened.map_err(|e| explain(e, "open the repository directory", root))?,
        };
        let root = Root { directory, path: root.to_owned() };
        Ok(Self { root: Arc::new(root), ranges: BufferPool::new(READ_SIZE) })
    }
}

impl Root {
    fn describe(&self) -> String {
        format!("file://{}", self.path.display())
    }

    /// The folder of an object, open.
    fn folder_of(&self, key: &str) -> rustix::io::Result<OwnedFd> {
        beneath::folder(&self.directory, split(key).0)
    }

    /// The folder of unfinished uploads, open.
    fn temporary(&self) -> Result<OwnedFd, StoreError> {
        beneath::create_folder(&self.directory, TEMPORARY)
            .map_err(|e| explain(e, "create", &self.path.join(TEMPORARY)))
    }

    fn no_object(&self, key: &str) -> StoreError {
        StoreError::NotFound(format!("no object {key} in {}", self.describe()))
    }

    fn absent_or(&self, error: impl Into<io::Error>, what: &str, key: &str) -> StoreError {
        let error = error.into();
        if is_absent(&error) { self.no_object(key) } else { explain(error, what, &self.path.join(key)) }
    }
}

/// Refuses what is no key, or not an object's.
fn object_key(key: &str) -> Result<(), StoreError> {
    check_key(key)?;
    if key.split('/').next() == Some(TEMPORARY) {
        return Err(StoreError::Other(format!("key {key:?} is reserved for unfinished uploads")));
    }
    Ok(())
}

/// The folder of a key or a folder, empty for the root, and the name in it.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

/// Whether nothing that could be an object is there: a link is none, and neither is what it leads to.
fn is_absent(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|e| matches!(e, Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

fn explain(error: impl Into<io::Error>, what: &str, path: &Path) -> StoreError {
    let error = error.into();
    let text = format!("cannot {what} {}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => StoreError::NotFound(text),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::Denied(text),
        _ => StoreError::Other(text),
    }
}

/// Files block: the runtime's own threads never wait for them.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    shutdown::unabandoned(work)
        .await
        .unwrap_or_else(|e| Err(StoreError::Other(format!("file operation did not finish: {e}"))))
}

#[async_trait]
impl Store for FsStore {
    fn describe(&self) -> String {
        self.root.describe()
    }

    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError> {
        object_key(key)?;
        let (root, name) = (self.root.clone(), key.to_owned());
        let file = blocking(move || {
            let file = Temporary::create(&root, &name)?;
            // By the clock that dates the files: ours may be a day ahead of it, and another upload's
            // file is not locked in the moment when it appears.
            if let Ok(now) = file.file.metadata().and_then(|m| m.modified()) {
                sweep(&file.folder, now);
            }
            Ok(file)
        })
        .await?;
        let root = self.root.clone();
        Ok(Box::new(FsUpload { root, key: key.to_owned(), if_absent, file: Some(file), written: 0 }))
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        object_key(key)?;
        let (root, ranges, key) = (self.root.clone(), self.ranges.clone(), key.to_owned());
        blocking(move || {
            let opened = root
                .folder_of(&key)
                .and_then(|folder| beneath::open_file(folder, split(&key).1, OFlags::RDONLY));
            let failed = |e| root.absent_or(e, "read", &key);
            let file = opened.map_err(|e| failed(e.into()))?;
            let metadata = file.metadata().map_err(failed)?;
            // What is no file is no object.
            if !metadata.is_file() {
                return Err(root.no_object(&key));
            }
            let end = range.end.min(metadata.len());
            let length = usize::try_from(end.saturating_sub(range.start))
                .map_err(|_| StoreError::Other(format!("range of {key} is too large")))?;
            let mut bytes = ranges.take(length);
            // Memory that is filled anew is not filled with zeros before.
            (&file).seek(SeekFrom::Start(range.start)).map_err(failed)?;
            let read = (&file).take(length as u64).read_to_end(&mut bytes).map_err(failed)?;
            if read < length {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(bytes.freeze())
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        object_key(key)?;
        let (root, key) = (self.root.clone(), key.to_owned());
        blocking(move || {
            let found = root.folder_of(&key).and_then(|folder| beneath::look(folder, split(&key).1));
            let stat = found.map_err(|e| root.absent_or(e, "look at", &key))?;
            if beneath::is_file(&stat) { Ok(object_meta(key, &stat)) } else { Err(root.no_object(&key)) }
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        // Only the folder that the prefix names for sure is walked.
        let folder = split(prefix).0.to_owned();
        if !folder.is_empty() {
            check_key(&folder)?;
        }
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        blocking(move || {
            let mut found = walk(&root, folder)?;
            found.retain(|object| object.key.starts_with(&prefix));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        object_key(key)?;
        let (root, key) = (self.root.clone(), key.to_owned());
        blocking(move || {
            let removed = root.folder_of(&key).and_then(|folder| beneath::remove_file(folder, split(&key).1));
            match removed.map_err(io::Error::from) {
                Ok(()) => {}
                Err(e) if is_absent(&e) => return Ok(()),
                Err(e) => return Err(explain(e, "delete", &root.path.join(&key))),
            }
            // Folders are no objects: those that became empty go too, the rest refuses by itself.
            let mut folder = split(&key).0;
            while !folder.is_empty() {
                let (parent, name) = split(folder);
                let parent_folder = beneath::folder(&root.directory, parent);
                if parent_folder.and_then(|parent| beneath::remove_folder(parent, name)).is_err() {
                    break;
                }
                folder = parent;
            }
            let left = beneath::folder(&root.directory, folder).and_then(beneath::sync);
            match left.map_err(io::Error::from) {
                // Another delete was first: nothing is left that must survive.
                Err(e) if is_absent(&e) => Ok(()),
                synced => synced.map_err(|e| explain(e, "sync", &root.path.join(folder))),
            }
        })
        .await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        let root = self.root.clone();
        blocking(move || coordinate::now(&root)).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        blocking(move || coordinate::unfinished(&root, &prefix)).await
    }

    async fn abort_unfinished(&self, upload: &Unfinished) -> Result<(), StoreError> {
        let (root, upload) = (self.root.clone(), upload.clone());
        blocking(move || coordinate::abort(&root, &upload)).await
    }

    async fn version(&self, key: &str) -> Result<Version, StoreError> {
        object_key(key)?;
        let (root, key) = (self.root.clone(), key.to_owned());
        blocking(move || {
            let found = root.folder_of(&key).and_then(|folder| coordinate::version(folder, split(&key).1));
            let version = found.map_err(|e| root.absent_or(e, "look at", &key))?;
            version.ok_or_else(|| root.no_object(&key))
        })
        .await
    }

    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        object_key(key)?;
        let (root, key, version) = (self.root.clone(), key.to_owned(), version.clone());
        blocking(move || coordinate::replace(&root, &key, &body, &version)).await
    }
}

fn object_meta(key: String, stat: &Stat) -> ObjectMeta {
    ObjectMeta { key, size: stat.st_size.cast_unsigned(), modified: modified(stat) }
}

/// When a file was written last.
fn modified(stat: &Stat) -> DateTime<Utc> {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    DateTime::from_timestamp(stat.st_mtime, nanoseconds).unwrap_or_default()
}

/// Every regular file below `folder`, a key prefix without its slash.
fn walk(root: &Root, folder: String) -> Result<Vec<ObjectMeta>, StoreError> {
    let mut found = Vec::new();
    // Neither a call nor a descriptor a level: somebody else may have nested them.
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        let listed = beneath::folder(&root.directory, &folder).and_then(beneath::list);
        let entries = match listed.map_err(io::Error::from) {
            Ok(entries) => entries,
            Err(e) if is_absent(&e) && !folder.is_empty() => continue,
            Err(e) => return Err(explain(e, "list", &root.path.join(&folder))),
        };
        for (name, stat) in entries {
            if folder.is_empty() && name == TEMPORARY {
                continue;
            }
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if beneath::is_file(&stat) {
                found.push(object_meta(key, &stat));
            } else if beneath::is_directory(&stat) && check_key(&key).is_ok() {
                folders.push(key);
            }
        }
    }
    Ok(found)
}

/// The file of an unfinished upload. Dropping it removes the name that it has as such.
#[derive(Debug)]
struct Temporary {
    folder: OwnedFd,
    name: String,
    file: File,
    /// For messages.
    path: PathBuf,
}

impl Temporary {
    /// A file for an upload to `key`, whose name says so.
    fn create(root: &Root, key: &str) -> Result<Self, StoreError> {
        let folder = root.temporary()?;
        let name = format!("{}{:016x}", coordinate::temporary_prefix(key), rand::random::<u64>());
        let path = root.path.join(TEMPORARY).join(&name);
        let file = beneath::open_file(&folder, &name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
            .map_err(|e| explain(e, "create", &path))?;
        // Some file systems have no locks; the file's age alone tells then.
        if let Err(error) = file.try_lock() {
            tracing::debug!(?path, %error, "an upload's file cannot be locked");
        }
        Ok(Self { folder, name, file, path })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A file that was renamed has another name by now, and what cannot be removed is swept later.
        let _ = beneath::remove_file(&self.folder, &self.name);
    }
}

/// Whether a writer that lives holds the file: clocks jump, and a file may look old that is not. `None` where
/// nobody can tell, as on a file system without locks.
fn is_held(folder: &OwnedFd, name: &str) -> Option<bool> {
    match beneath::open_file(folder, name, OFlags::RDONLY).ok()?.try_lock() {
        Ok(()) => Some(false),
        Err(TryLockError::WouldBlock) => Some(true),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Best effort: what cannot be removed now is in nobody's way.
fn sweep(folder: &OwnedFd, now: SystemTime) {
    for (name, stat) in beneath::list(folder).unwrap_or_default() {
        if !coordinate::is_temporary(&name) || !beneath::is_file(&stat) {
            continue;
        }
        let age = now.duration_since(modified(&stat).into());
        if age.is_ok_and(|age| age > ABANDONED_AFTER) && is_held(folder, &name) == Some(false) {
            match beneath::remove_file(folder, &name) {
                Ok(()) => tracing::debug!(name, "removed an abandoned upload"),
                Err(error) => tracing::debug!(name, %error, "an abandoned upload stays"),
            }
        }
    }
}

struct FsUpload {
    root: Arc<Root>,
    key: String,
    if_absent: bool,
    /// Taken by the thread that works on it; gone for good after a failure. Dropping it removes it.
    file: Option<Temporary>,
    written: u64,
}

#[async_trait]
impl Upload for FsUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let mut file = self.file.take().ok_or_else(|| failed_before(&self.key))?;
        let length = part.len() as u64;
        let file = blocking(move || {
            file.file.write_all(&part).map_err(|e| explain(e, "write", &file.path))?;
            Ok(file)
        })
        .await?;
        self.file = Some(file);
        self.written += length;
        Ok(())
    }

    async fn commit(self: Box<Self>, size: u64) -> Result<(), StoreError> {
        let Self { root, key, if_absent, file, written } = *self;
        let file = file.ok_or_else(|| failed_before(&key))?;
        if written != size {
            return Err(size_mismatch(&key, size, written));
        }
        blocking(move || {
            let sync = |f: &File| f.sync_all().and_then(|()| f.metadata()).map(|m| m.len());
            let stored = sync(&file.file).map_err(|e| explain(e, "sync", &file.path))?;
            if stored != size {
                return Err(size_mismatch(&key, size, stored));
            }
            let path = root.path.join(&key);
            let folder = place(&root, &file, &key, if_absent).map_err(|unplaced| match unplaced {
                Unplaced::Refused(e) if if_absent && e.kind() == ErrorKind::AlreadyExists => {
                    StoreError::Exists(format!("{key} exists already in {}", root.describe()))
                }
                Unplaced::Refused(e) => explain(e, "write", &path),
                Unplaced::InDoubt(e) => in_doubt(e, &path),
            })?;
            synced(folder, &path)
        })
        .await
    }

    async fn abort(self: Box<Self>) {}
}

fn failed_before(key: &str) -> StoreError {
    StoreError::Other(format!("upload of {key} failed or was interrupted before"))
}

/// What is said where a file may have got its name, and nobody can look.
fn in_doubt(error: impl Into<io::Error>, path: &Path) -> StoreError {
    StoreError::InDoubt(format!("cannot tell whether {} was written: {}", path.display(), error.into()))
}

/// Makes the names in a folder durable. The object is there already, so that what fails here leaves a doubt.
fn synced(folder: impl AsFd, path: &Path) -> Result<(), StoreError> {
    beneath::sync(folder).map_err(|e| {
        StoreError::InDoubt(format!(
            "{} is there, and whether it would outlast a crash cannot be told: cannot sync its folder: {}",
            path.display(),
            io::Error::from(e)
        ))
    })
}

/// Why a file did not get its name.
#[derive(Debug)]
enum Unplaced {
    /// It certainly has not.
    Refused(io::Error),
    /// It may have.
    InDoubt(io::Error),
}

impl From<Errno> for Unplaced {
    fn from(error: Errno) -> Self {
        Unplaced::Refused(error.into())
    }
}

/// What a failure to give a file its name means. A file system on a network repeats a request whose answer it
/// lost, and then says that the name is taken, or that the file is gone, by its own doing; or it gives up while
/// the server still works. So the name itself is asked.
fn settled(file: &Temporary, folder: &OwnedFd, name: &str, error: Errno) -> Result<(), Unplaced> {
    let is_lost = [Errno::IO, Errno::TIMEDOUT, Errno::INTR, Errno::CONNRESET, Errno::REMOTEIO, Errno::STALE]
        .contains(&error);
    let is_ours = match (beneath::look(folder, name), file.file.metadata()) {
        (Ok(found), Ok(own)) => Some(found.st_ino == own.ino() && found.st_dev == own.dev()),
        (Err(Errno::NOENT), _) => Some(false),
        _ => None,
    };
    match is_ours {
        Some(true) => {
            tracing::debug!(path = ?file.path, %error, "the file has its name, whatever was said");
            Ok(())
        }
        _ if is_lost => Err(Unplaced::InDoubt(error.into())),
        None if error == Errno::EXIST => Err(Unplaced::InDoubt(error.into())),
        _ => Err(Unplaced::Refused(error.into())),
    }
}

/// Gives the finished file its name, and returns the folder that it is in. Its temporary name disappears with
/// the rename, or, where the name must be free, when the caller drops it.
fn place(root: &Root, file: &Temporary, key: &str, if_absent: bool) -> Result<OwnedFd, Unplaced> {
    let (folder, name) = split(key);
    let mut attempt = 0;
    loop {
        attempt += 1;
        let placed =
            beneath::create_folder(&root.directory, folder).map_err(Unplaced::from).and_then(|folder| {
                if if_absent {
                    let link = || linkat(&file.folder, &file.name, &folder, name, AtFlags::empty());
                    place_new(root, file, &folder, name, link)?;
                } else {
                    named(file, &folder, name, || renameat(&file.folder, &file.name, &folder, name))?;
                }
                Ok(folder)
            });
        match placed {
            Err(Unplaced::Refused(e)) if e.kind() == ErrorKind::NotFound && attempt < PLACE_ATTEMPTS => {}
            other => return other,
        }
    }
}

/// Gives a file a name that must be free. A link refuses one that is taken. Where the file system has
/// no links (FAT, some network and FUSE file systems) a rename that replaces nothing does the same, and
/// where it has not even that, the lock that [`coordinate::replace`] takes keeps other opsds out.
fn place_new(
    root: &Root,
    file: &Temporary,
    folder: &OwnedFd,
    name: &str,
    link: impl Fn() -> rustix::io::Result<()>,
) -> Result<(), Unplaced> {
    let cannot =
        |e: Errno| [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTTY].contains(&e);
    match link() {
        Err(e) if cannot(e) => {}
        other => return named(file, folder, name, || other),
    }
    match renameat_with(&file.folder, &file.name, folder, name, RenameFlags::NOREPLACE) {
        Err(e) if cannot(e) => {}
        other => return named(file, folder, name, || other),
    }
    let _lock = coordinate::lock(root).map_err(|e| Unplaced::Refused(io::Error::other(e)))?;
    match beneath::look(folder, name) {
        Ok(_) => Err(Errno::EXIST.into()),
        Err(Errno::NOENT) => named(file, folder, name, || renameat(&file.folder, &file.name, folder, name)),
        Err(e) => Err(e.into()),
    }
}

/// Whether the file has the name that `give` should have given it.
fn named(
    file: &Temporary,
    folder: &OwnedFd,
    name: &str,
    give: impl FnOnce() -> rustix::io::Result<()>,
) -> Result<(), Unplaced> {
    give().or_else(|error| settled(file, folder, name, error))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::CWD;

    use super::*;
    use crate::store::put;

    #[test]
    fn without_hard_links_a_name_that_is_taken_is_still_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = FsStore::open(directory.path()).unwrap().root;
        let folder = beneath::hold(directory.path()).unwrap();
        let file = |text: &str| {
            let mut file = Temporary::create(&root, "manifest.json").unwrap();
            file.file.write_all(text.as_bytes()).unwrap();
            file
        };
        let refuse = || Err(Errno::PERM);
        place_new(&root, &file("first"), &folder, "manifest.json", refuse).unwrap();
        let taken = place_new(&root, &file("second"), &folder, "manifest.json", refuse).unwrap_err();
        assert!(matches!(taken, Unplaced::Refused(e) if e.kind() == ErrorKind::AlreadyExists));
        assert_eq!(fs::read_to_string(directory.path().join("manifest.json")).unwrap(), "first");
        // What a link refuses for another reason stays refused.
        let full = || Err(Errno::NOSPC);
        let full = place_new(&root, &file("third"), &folder, "free", full).unwrap_err();
        assert!(matches!(full, Unplaced::Refused(e) if e.kind() == ErrorKind::StorageFull));
    }

    /// NFS sends a request again whose answer was lost, and then it is refused for what the first one did.
    #[test]
    fn a_link_that_fails_although_it_was_made_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let root = FsStore::open(directory.path()).unwrap().root;
        let folder = beneath::hold(directory.path()).unwrap();
        for (number, error) in [Errno::EXIST, Errno::IO, Errno::TIMEDOUT].into_iter().enumerate() {
            let name = format!("manifest-{number}.json");
            let file = Temporary::create(&root, &name).unwrap();
            let link = || {
                linkat(&file.folder, &file.name, &folder, &name, AtFlags::empty())?;
                Err(error)
            };
            place_new(&root, &file, &folder, &name, link).unwrap();
            // Somebody else's stays somebody else's.
            let other = Temporary::create(&root, &name).unwrap();
            let refused = place_new(&root, &other, &folder, &name, || Err(Errno::EXIST)).unwrap_err();
            assert!(matches!(refused, Unplaced::Refused(e) if e.kind() == ErrorKind::AlreadyExists));
        }
        // Where nobody answers the server may still be at work.
        let file = Temporary::create(&root, "late.json").unwrap();
        let late = place_new(&root, &file, &folder, "late.json", || Err(Errno::TIMEDOUT)).unwrap_err();
        assert!(matches!(late, Unplaced::InDoubt(_)), "{late:?}");
    }

    #[tokio::test]
    async fn nothing_is_read_written_or_removed_through_a_symbolic_link() {
        use std::os::unix::fs::symlink;
        let (outside, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        fs::create_dir(directory.path().join("site")).unwrap();
        symlink(outside.path(), directory.path().join("site/db")).unwrap();
        symlink(outside.path().join("secret"), directory.path().join("site/file")).unwrap();
        for key in ["site/db/secret", "site/file"] {
            assert!(matches!(store.read(key, 0..9).await, Err(StoreError::NotFound(_))), "{key}");
            assert!(matches!(store.head(key).await, Err(StoreError::NotFound(_))), "{key}");
            store.delete(key).await.unwrap();
        }
        assert!(store.list("site/db/").await.unwrap().is_empty());
        assert!(put(&store, "site/db/new", "x", false).await.is_err());
        assert!(put(&store, "site/db/sub/new", "x", true).await.is_err());
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["secret"]);
    }

    /// A user who may write in a repository swaps one of its folders for a link and back, as fast as the kernel
    /// does it, while objects in that folder are written, read, listed and deleted.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_that_is_swapped_for_a_link_leads_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        const OBJECTS: usize = 50;
        let (outside, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for number in 0..OBJECTS {
            fs::write(outside.path().join(format!("object-{number}")), "precious").unwrap();
        }
        let store = FsStore::open(&directory.path().join("repository")).unwrap();
        put(&store, "site/db/stays", "x", false).await.unwrap();
        let (folder, link) = (directory.path().join("repository/site/db"), directory.path().join("link"));
        std::os::unix::fs::symlink(outside.path(), &link).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let swapping = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut swaps = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                    swaps += 1;
                }
                swaps
            }
        });
        let (mut released, mut listed) = (0, 0);
        for round in 0..40 {
            for number in 0..OBJECTS {
                let key = format!("site/db/object-{number}");
                // Either succeeds in the folder or fails: what counts is what happens outside of it.
                let _ =
                    put(&store, &format!("site/db/new-{round}-{number}"), "foreign", round % 2 == 0).await;
                released +=
                    usize::from(store.read(&key, 0..8).await.is_ok_and(|bytes| &bytes[..] == b"precious"));
                listed += usize::from(store.head(&key).await.is_ok());
                let _ = store.delete(&key).await;
            }
            let found = store.list("site/").await.unwrap_or_default();
            listed += found.iter().filter(|object| object.key.contains("/object-")).count();
        }
        stop.store(true, Ordering::Relaxed);
        let swaps = swapping.join().unwrap();
        let left: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        let new = left.iter().filter(|name| name.as_encoded_bytes().starts_with(b"new-")).count();
        let lost = OBJECTS + new - left.len();
        assert_eq!([lost, new, released, listed], [0; 4], "lost, new, released, listed; after {swaps} swaps");
        assert!(swaps > 1000, "{swaps}");
    }

    #[tokio::test]
    async fn ranges_are_read_into_memory_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        let size = READ_SIZE as u64;
        put(&store, "first", vec![1; READ_SIZE], false).await.unwrap();
        put(&store, "second", vec![2; READ_SIZE - 1], false).await.unwrap();
        let memory = store.read("first", 0..size).await.unwrap().as_ptr();
        let again = store.read("second", 0..size).await.unwrap();
        assert_eq!((again.as_ptr(), again.len()), (memory, READ_SIZE - 1));
        assert!(again.iter().all(|byte| *byte == 2), "nothing of what was there");
        assert_ne!(store.read("first", 0..size).await.unwrap().as_ptr(), memory, "that is still in use");
    }

    #[tokio::test]
    async fn a_pipe_is_no_object_and_is_not_waited_for() {
        use rustix::fs::{FileType, Mode, mknodat};
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        mknodat(CWD, directory.path().join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(matches!(store.read("pipe", 0..9).await, Err(StoreError::NotFound(_))));
    }

    #[tokio::test]
    async fn files_are_private_and_temporary_ones_disappear() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("repository");
        let store = FsStore::open(&root).unwrap();
        put(&store, "a/b/c", "x", false).await.unwrap();
        put(&store, "a/b/d", "y", true).await.unwrap();
        let mode = |p: &str| fs::metadata(root.join(p)).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(""), mode("a"), mode("a/b"), mode(TEMPORARY)], [0o700; 4]);
        assert_eq!([mode("a/b/c"), mode("a/b/d")], [0o600; 2]);
        drop(store.begin("a/b/e", false).await.unwrap());
        assert_eq!(fs::read_dir(root.join(TEMPORARY)).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn abandoned_uploads_are_removed_and_young_ones_kept() {
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        drop(store.begin("a", false).await.unwrap());
        let (old, young) = (
            directory.path().join(TEMPORARY).join("upload-old"),
            directory.path().join(TEMPORARY).join("upload-young"),
        );
        let long_ago = SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(60);
        File::create(&old).unwrap().set_modified(long_ago).unwrap();
        File::create(&young).unwrap();
        drop(store.begin("a", false).await.unwrap());
        assert!(!old.exists() && young.exists());
    }

    /// The clock went a day ahead in the middle of a backup.
    #[tokio::test]
    async fn an_upload_under_way_is_kept_however_old_it_looks() {
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        let mut upload = store.begin("a", false).await.unwrap();
        upload.put_part(Bytes::from_static(b"x")).await.unwrap();
        let mut files = fs::read_dir(directory.path().join(TEMPORARY)).unwrap();
        let file = files.next().unwrap().unwrap().path();
        let long_ago = SystemTime::now() - ABANDONED_AFTER - Duration::from_secs(60);
        File::options().append(true).open(&file).unwrap().set_modified(long_ago).unwrap();
        drop(store.begin("b", false).await.unwrap());
        upload.commit(1).await.unwrap();
        assert_eq!(store.head("a").await.unwrap().size, 1);
    }

    #[tokio::test]
    async fn deleting_the_last_object_removes_its_folders_but_not_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        put(&store, "a/b/c", "x", false).await.unwrap();
        store.delete("a/b/c").await.unwrap();
        assert!(!directory.path().join("a").exists() && directory.path().exists());
    }

    #[test]
    fn a_missing_parent_is_not_created() {
        let directory = tempfile::tempdir().unwrap();
        let error = FsStore::open(&directory.path().join("not-mounted/repository")).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    }

    #[tokio::test]
    async fn the_folder_of_unfinished_uploads_is_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let store = FsStore::open(directory.path()).unwrap();
        assert!(store.read(".opsd-tmp/upload-1", 0..1).await.is_err());
        assert!(store.begin(".opsd-tmp/x", false).await.is_err());
    }
}
