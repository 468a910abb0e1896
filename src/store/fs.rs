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
//! the root: what is behind one is not there, and nothing is written or removed through one.

mod coordinate;

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::NamedTempFile;

use super::{
    ObjectMeta, READ_SIZE, Store, StoreError, Unfinished, Upload, Version, check_key, size_mismatch,
};
use crate::buffer_pool::BufferPool;
use crate::{regular_file, shutdown};

/// Folder of unfinished uploads, in the root so that a rename never crosses file systems.
const TEMPORARY: &str = ".opsd-tmp";

/// Unfinished uploads untouched for this long belong to a run that was killed: a live one writes
/// every few seconds, and no part takes a day.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// How often a directory is created again that a concurrent delete removed as empty.
const PLACE_ATTEMPTS: usize = 10;

/// A directory of objects.
#[derive(Debug, Clone)]
pub struct FsStore {
    root: PathBuf,
    /// Memory of ranges that are read.
    ranges: BufferPool,
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
        let metadata = fs::metadata(root).map_err(|e| explain(e, "open the repository directory", root))?;
        if !metadata.is_dir() {
            return Err(StoreError::Other(format!("{} is not a directory", root.display())));
        }
        Ok(Self { root: root.to_owned(), ranges: BufferPool::new(READ_SIZE) })
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        check_key(key)?;
        if key.split('/').next() == Some(TEMPORARY) {
            return Err(StoreError::Other(format!("key {key:?} is reserved for unfinished uploads")));
        }
        Ok(self.root.join(key))
    }

    /// Whether a symbolic link stands anywhere in the path of a key.
    fn is_behind_link(&self, path: &Path) -> bool {
        let is_link = |p: &Path| fs::symlink_metadata(p).is_ok_and(|m| m.file_type().is_symlink());
        path.ancestors().take_while(|p| *p != self.root).any(is_link)
    }

    fn no_object(&self, key: &str) -> StoreError {
        StoreError::NotFound(format!("no object {key} in {}", self.describe()))
    }

    fn absent_or(&self, error: io::Error, what: &str, key: &str, path: &Path) -> StoreError {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => self.no_object(key),
            _ => explain(error, what, path),
        }
    }
}

fn explain(error: io::Error, what: &str, path: &Path) -> StoreError {
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
        format!("file://{}", self.root.display())
    }

    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError> {
        let target = self.path(key)?;
        let root = self.root.clone();
        let name = key.to_owned();
        let file = blocking(move || {
            let file = temporary_file(&root, &name)?;
            // By the clock that dates the files: ours may be a day ahead of it, and another upload's
            // file is not locked in the moment when it appears.
            if let Ok(now) = file.as_file().metadata().and_then(|m| m.modified()) {
                sweep(&root.join(TEMPORARY), now);
            }
            Ok(file)
        })
        .await?;
        let root = self.root.clone();
        Ok(Box::new(FsUpload { root, target, key: key.to_owned(), if_absent, file: Some(file), written: 0 }))
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path(key)?;
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || {
            let failed = |e| store.absent_or(e, "read", &key, &path);
            if store.is_behind_link(&path) {
                return Err(store.no_object(&key));
            }
            let file = match regular_file::open(&path) {
                // What is no file is no object.
                Err(e) if e.kind() == ErrorKind::InvalidInput => return Err(store.no_object(&key)),
                opened => opened.map_err(failed)?,
            };
            let end = range.end.min(file.metadata().map_err(failed)?.len());
            let length = usize::try_from(end.saturating_sub(range.start))
                .map_err(|_| StoreError::Other(format!("range of {key} is too large")))?;
            let mut bytes = store.ranges.take(length);
            bytes.resize(length, 0);
            file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
            Ok(bytes.freeze())
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        let path = self.path(key)?;
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || {
            if store.is_behind_link(&path) {
                return Err(store.no_object(&key));
            }
            let metadata =
                fs::symlink_metadata(&path).map_err(|e| store.absent_or(e, "look at", &key, &path))?;
            if metadata.is_file() { Ok(object_meta(key, &metadata)) } else { Err(store.no_object(&key)) }
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        // Only the folder that the prefix names for sure is walked.
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        if !folder.is_empty() {
            check_key(&folder)?;
        }
        let (store, prefix) = (self.clone(), prefix.to_owned());
        blocking(move || {
            let mut found = Vec::new();
            if !store.is_behind_link(&store.root.join(&folder)) {
                walk(&store.root, &folder, &mut found)?;
            }
            found.retain(|object| object.key.starts_with(&prefix));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key)?;
        let store = self.clone();
        blocking(move || {
            let root = &store.root;
            if store.is_behind_link(&path) {
                return Ok(());
            }
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
                Err(e) => return Err(explain(e, "delete", &path)),
            }
            // Folders are no objects: those that became empty go too, the rest refuses by itself.
            let mut folder = path.parent();
            while let Some(parent) = folder.filter(|f| f != root) {
                if fs::remove_dir(parent).is_err() {
                    break;
                }
                folder = parent.parent();
            }
            let folder = folder.unwrap_or(root);
            sync_directory(folder).map_err(|e| explain(e, "sync", folder))
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
        let path = self.path(key)?;
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || {
            let found = coordinate::version(&path).map_err(|e| store.absent_or(e, "look at", &key, &path))?;
            found.ok_or_else(|| store.no_object(&key))
        })
        .await
    }

    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        let path = self.path(key)?;
        let (root, key, version) = (self.root.clone(), key.to_owned(), version.clone());
        blocking(move || coordinate::replace(&root, &key, &path, &body, &version)).await
    }
}

fn object_meta(key: String, metadata: &fs::Metadata) -> ObjectMeta {
    let modified = metadata.modified().map(DateTime::<Utc>::from).unwrap_or_default();
    ObjectMeta { key, size: metadata.len(), modified }
}

/// Adds every regular file below `folder` (a key prefix without its slash) to `found`.
fn walk(root: &Path, folder: &str, found: &mut Vec<ObjectMeta>) -> Result<(), StoreError> {
    let directory = root.join(folder);
    let gone = |e: &io::Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if gone(&e) && !folder.is_empty() => return Ok(()),
        Err(e) => return Err(explain(e, "list", &directory)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| explain(e, "list", &directory))?;
        // A name that is not UTF-8 cannot have come from a key.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if folder.is_empty() && name == TEMPORARY {
            continue;
        }
        let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(root, &key, found)?,
            Ok(metadata) if metadata.is_file() => found.push(object_meta(key, &metadata)),
            Ok(_) => {}
            Err(e) if gone(&e) => {}
            Err(e) => return Err(explain(e, "look at", &entry.path())),
        }
    }
    Ok(())
}

/// A file for an upload to `key`, whose name says so.
fn temporary_file(root: &Path, key: &str) -> Result<NamedTempFile, StoreError> {
    let folder = root.join(TEMPORARY);
    make_directories(root, &folder).map_err(|e| explain(e, "create", &folder))?;
    let file = tempfile::Builder::new()
        .prefix(&coordinate::temporary_prefix(key))
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(&folder)
        .map_err(|e| explain(e, "create a file in", &folder))?;
    // Some file systems have no locks; the file's age alone tells then.
    if let Err(error) = file.as_file().try_lock() {
        tracing::debug!(file = ?file.path(), %error, "an upload's file cannot be locked");
    }
    Ok(file)
}

/// Whether a writer that lives holds the file: clocks jump, and a file may look old that is not.
fn is_held(path: &Path) -> bool {
    let lock = File::open(path).map(|file| file.try_lock());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

/// Best effort: what cannot be removed now is in nobody's way.
fn sweep(folder: &Path, now: SystemTime) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !coordinate::is_temporary(&entry.file_name()) {
            continue;
        }
        let modified = entry.metadata().and_then(|m| m.modified());
        let age = modified.ok().and_then(|m| now.duration_since(m).ok());
        if age.is_some_and(|age| age > ABANDONED_AFTER) && !is_held(&entry.path()) {
            match fs::remove_file(entry.path()) {
                Ok(()) => tracing::debug!(file = ?entry.path(), "removed an abandoned upload"),
                Err(error) => tracing::debug!(file = ?entry.path(), %error, "abandoned upload stays"),
            }
        }
    }
}

/// Creates `folder` and what is missing between it and `root`, each synced into its parent.
fn make_directories(root: &Path, folder: &Path) -> io::Result<()> {
    if folder == root {
        return Ok(());
    }
    match fs::symlink_metadata(folder) {
        Ok(metadata) if metadata.file_type().is_symlink() => {
            return Err(io::Error::other("a symbolic link is in the way"));
        }
        // What it lies in is only looked at.
        Ok(metadata) if metadata.is_dir() => {
            return folder.parent().map_or(Ok(()), |parent| make_directories(root, parent));
        }
        Ok(_) | Err(_) => {}
    }
    if let Some(parent) = folder.parent() {
        make_directories(root, parent)?;
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => sync_directory(parent)?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory).and_then(|d| d.sync_all()) {
        // Removed meanwhile by a concurrent delete: nothing left that must survive.
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

struct FsUpload {
    root: PathBuf,
    target: PathBuf,
    key: String,
    if_absent: bool,
    /// Taken by the thread that works on it; gone for good after a failure. Dropping it removes it.
    file: Option<NamedTempFile>,
    written: u64,
}

#[async_trait]
impl Upload for FsUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let mut file = self.file.take().ok_or_else(|| failed_before(&self.key))?;
        let length = part.len() as u64;
        let file = blocking(move || {
            file.as_file_mut().write_all(&part).map_err(|e| explain(e, "write", file.path()))?;
            Ok(file)
        })
        .await?;
        self.file = Some(file);
        self.written += length;
        Ok(())
    }

    async fn commit(self: Box<Self>, size: u64) -> Result<(), StoreError> {
        let Self { root, target, key, if_absent, file, written } = *self;
        let file = file.ok_or_else(|| failed_before(&key))?;
        if written != size {
            return Err(size_mismatch(&key, size, written));
        }
        blocking(move || {
            let sync = |f: &File| f.sync_all().and_then(|()| f.metadata()).map(|m| m.len());
            let stored = sync(file.as_file()).map_err(|e| explain(e, "sync", file.path()))?;
            if stored != size {
                return Err(size_mismatch(&key, size, stored));
            }
            let folder = target.parent().unwrap_or(&root);
            place(&root, folder, &file, &target, if_absent).map_err(|e| match e.kind() {
                ErrorKind::AlreadyExists if if_absent => {
                    StoreError::Exists(format!("{key} exists already in file://{}", root.display()))
                }
                _ => explain(e, "write", &target),
            })?;
            sync_directory(folder).map_err(|e| explain(e, "sync", folder))
        })
        .await
    }

    async fn abort(self: Box<Self>) {}
}

fn failed_before(key: &str) -> StoreError {
    StoreError::Other(format!("upload of {key} failed or was interrupted before"))
}

/// Gives the finished file its name. Its temporary name disappears with the rename, or, where the
/// name must be free, when the caller drops it.
fn place(root: &Path, folder: &Path, file: &NamedTempFile, target: &Path, if_absent: bool) -> io::Result<()> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        make_directories(root, folder)?;
        let placed = if if_absent {
            place_new(root, file.path(), target, |from, to| fs::hard_link(from, to))
        } else {
            fs::rename(file.path(), target)
        };
        match placed {
            Err(e) if e.kind() == ErrorKind::NotFound && attempt < PLACE_ATTEMPTS => {}
            other => return other,
        }
    }
}

/// Gives a file a name that must be free. A link refuses one that is taken. Where the file system has
/// no links (FAT, some network and FUSE file systems) a rename that replaces nothing does the same, and
/// where it has not even that, the lock that [`coordinate::replace`] takes keeps other opsds out.
fn place_new(
    root: &Path,
    from: &Path,
    target: &Path,
    link: impl Fn(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let cannot = |e: &io::Error| {
        use rustix::io::Errno;
        let no = [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTTY];
        Errno::from_io_error(e).is_some_and(|errno| no.contains(&errno))
    };
    match link(from, target) {
        Err(e) if cannot(&e) => {}
        other => return other,
    }
    match renameat_with(CWD, from, CWD, target, RenameFlags::NOREPLACE).map_err(io::Error::from) {
        Err(e) if cannot(&e) => {}
        other => return other,
    }
    let _lock = coordinate::lock(root).map_err(io::Error::other)?;
    match fs::symlink_metadata(target) {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(e) if e.kind() == ErrorKind::NotFound => fs::rename(from, target),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::put;

    #[test]
    fn without_hard_links_a_name_that_is_taken_is_still_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let file = |name: &str| {
            fs::write(root.join(name), name).unwrap();
            root.join(name)
        };
        let target = root.join("manifest.json");
        let refuse = |_: &Path, _: &Path| Err(io::Error::from(rustix::io::Errno::PERM));
        place_new(root, &file("first"), &target, refuse).unwrap();
        let error = place_new(root, &file("second"), &target, refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&target).unwrap(), "first");
        // What a link refuses for another reason stays refused.
        let full = |_: &Path, _: &Path| Err(io::Error::from(rustix::io::Errno::NOSPC));
        let error = place_new(root, &file("third"), &root.join("free"), full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
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
