//! What several runs on one directory agree by: its clock, versions of an object, and the
//! temporary files of uploads that nobody finished.
//!
//! A temporary file's name says which key it was for, as far as a file name has room. The clock is
//! the file system's own, which on a network is another machine's. Replacing takes an advisory lock
//! on one file, so that of several that saw the same version one wins.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustix::fs::{FlockOperation, OFlags, flock, renameat};
use rustix::io::Errno;

use super::{
    Root, TEMPORARY, Temporary, Unplaced, explain, in_doubt, is_held, modified, named, split, synced,
};
use crate::beneath;
use crate::store::{StoreError, Unfinished, Version};

/// What every temporary file begins with.
const PREFIX: &str = "upload-";

/// What parts the key from the random end of the name; no encoded key holds it.
const BEFORE_RANDOM: char = '~';

/// Bytes of the encoded key in a file's name, which may have 255.
const KEY_ROOM: usize = 200;

/// The file whose lock serialises [`replace`].
const LOCK: &str = "replace.lock";

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// How the name of a temporary file for `key` begins.
pub(super) fn temporary_prefix(key: &str) -> String {
    let mut encoded = utf8_percent_encode(key, KEPT).to_string();
    encoded.truncate(KEY_ROOM);
    // Not in the middle of an escape.
    if let Some(at) = encoded.rfind('%').filter(|at| at + 3 > encoded.len()) {
        encoded.truncate(at);
    }
    format!("{PREFIX}{encoded}{BEFORE_RANDOM}")
}

/// Whether a file beside them is a temporary one, and not the lock.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The key that a temporary file is for, or the beginning of a long one.
fn key_of(name: &str) -> Option<String> {
    let (encoded, _) = name.strip_prefix(PREFIX)?.rsplit_once(BEFORE_RANDOM)?;
    // A cut in the middle of a character leaves what is before it.
    let mut encoded = encoded;
    loop {
        match percent_decode_str(encoded).decode_utf8() {
            Ok(key) => return Some(key.into_owned()),
            Err(_) => encoded = &encoded[..encoded.rfind('%')?],
        }
    }
}

/// The time by the file system's clock: what it gives a file that is made now.
pub(super) fn now(root: &Root) -> Result<DateTime<Utc>, StoreError> {
    let file = Temporary::create(root, "")?;
    let modified = file.file.metadata().and_then(|m| m.modified());
    modified.map(DateTime::from).map_err(|e| explain(e, "look at", &file.path))
}

/// Temporary files for keys that begin with `prefix`.
pub(super) fn unfinished(root: &Root, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
    let failed = |e| explain(e, "list", &root.path.join(TEMPORARY));
    let folder = match beneath::folder(&root.directory, TEMPORARY) {
        Err(Errno::NOENT) => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    let mut found = Vec::new();
    for (id, stat) in beneath::list(&folder).map_err(failed)? {
        let Some(key) = key_of(&id).filter(|key| !key.is_empty() && key.starts_with(prefix)) else {
            continue;
        };
        // While its writer lives it is young, whatever the clocks say. Where nobody can tell, its time counts, and
        // what else its run writes.
        let started = if is_held(&folder, &id) == Some(true) { now(root)? } else { modified(&stat) };
        found.push(Unfinished { key, id, started });
    }
    found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
    Ok(found)
}

/// Removes one of them.
pub(super) fn abort(root: &Root, upload: &Unfinished) -> Result<(), StoreError> {
    if upload.id.contains('/') || key_of(&upload.id).is_none() {
        return Err(StoreError::Other(format!("{:?} is no unfinished upload", upload.id)));
    }
    let folder = beneath::folder(&root.directory, TEMPORARY);
    match folder.and_then(|folder| beneath::remove_file(folder, &upload.id)) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(explain(e, "delete", &root.path.join(TEMPORARY).join(&upload.id))),
    }
}

/// Which write of a file this is: every one makes another file. `None` where it is no file.
pub(super) fn version(folder: impl AsFd, name: &str) -> rustix::io::Result<Option<Version>> {
    let stat = beneath::look(folder, name)?;
    let tag = format!("{}-{}.{}-{}", stat.st_ino, stat.st_mtime, stat.st_mtime_nsec, stat.st_size);
    Ok(beneath::is_file(&stat).then(|| Version { tag, modified: modified(&stat) }))
}

/// Writes a file while its name still has this version.
pub(super) fn replace(root: &Root, key: &str, body: &[u8], expected: &Version) -> Result<(), StoreError> {
    let mut file = Temporary::create(root, key)?;
    file.file
        .write_all(body)
        .and_then(|()| file.file.sync_all())
        .map_err(|e| explain(e, "write", &file.path))?;
    // Held until it is dropped, or its process ends.
    let _lock = lock(root)?;
    let path = root.path.join(key);
    let other = || Err(StoreError::Exists(format!("{key} is not what it was in {}", root.describe())));
    let name = split(key).1;
    let folder = match root.folder_of(key) {
        Err(Errno::NOENT | Errno::NOTDIR) => return other(),
        opened => opened.map_err(|e| explain(e, "open the folder of", &path))?,
    };
    match version(&folder, name) {
        Ok(Some(found)) if found.tag == expected.tag => {}
        Ok(_) | Err(Errno::NOENT) => return other(),
        Err(e) => return Err(explain(e, "look at", &path)),
    }
    let rename = || renameat(&file.folder, &file.name, &folder, name);
    named(&file, &folder, name, rename).map_err(|unplaced| match unplaced {
        Unplaced::Refused(e) => explain(e, "write", &path),
        Unplaced::InDoubt(e) => in_doubt(e, &path),
    })?;
    synced(folder, &path)
}

/// Keeps other opsds from replacing an object of this repository as long as the file is open.
pub(super) fn lock(root: &Root) -> Result<File, StoreError> {
    let folder = root.temporary()?;
    let path = root.path.join(TEMPORARY).join(LOCK);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
    let file = beneath::open_file(folder, LOCK, flags).map_err(|e| explain(e, "open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| explain(e, "lock", &path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_files_name_tells_its_key() {
        for key in ["site/db/20261121T030000Z-7f3a/app/data-1.pgdump.zst.age", "a~b %/ü🦀", "x"] {
            assert_eq!(key_of(&format!("{}aB3", temporary_prefix(key))).as_deref(), Some(key));
        }
        let long = "ü".repeat(200);
        let name = format!("{}aB3xyz", temporary_prefix(&long));
        assert!(name.len() < 255);
        let key = key_of(&name).unwrap();
        assert!(long.starts_with(&key) && key.chars().count() > 20, "{key}");
        for foreign in ["upload-old", "replace.lock", "notes.txt", ""] {
            assert_eq!(key_of(foreign), None);
        }
    }
}
