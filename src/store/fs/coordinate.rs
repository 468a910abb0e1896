//! What several runs on one directory agree by: its clock, versions of an object, and the
//! temporary files of uploads that nobody finished.
//!
//! A temporary file's name says which key it was for, as far as a file name has room. The clock is
//! the file system's own, which on a network is another machine's. Replacing takes an advisory lock
//! on one file, so that of several that saw the same version one wins.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use chrono::{DateTime, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustix::fs::{FlockOperation, flock};

use super::{TEMPORARY, explain, make_directories, sync_directory, temporary_file};
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
pub(super) fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
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
pub(super) fn now(root: &Path) -> Result<DateTime<Utc>, StoreError> {
    let file = temporary_file(root, "")?;
    let modified = file.as_file().metadata().and_then(|m| m.modified());
    modified.map(DateTime::from).map_err(|e| explain(e, "look at", file.path()))
}

/// Temporary files for keys that begin with `prefix`.
pub(super) fn unfinished(root: &Path, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
    let folder = root.join(TEMPORARY);
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| explain(e, "list", &folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| explain(e, "list", &folder))?;
        let Ok(id) = entry.file_name().into_string() else { continue };
        let Some(key) = key_of(&id).filter(|key| !key.is_empty() && key.starts_with(prefix)) else {
            continue;
        };
        // One that was finished meanwhile has no time any more.
        let Ok(modified) = entry.metadata().and_then(|m| m.modified()) else { continue };
        // While its writer lives it is young, whatever the clocks say.
        let started = if super::is_held(&entry.path()) { now(root)? } else { modified.into() };
        found.push(Unfinished { key, id, started });
    }
    found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
    Ok(found)
}

/// Removes one of them.
pub(super) fn abort(root: &Path, upload: &Unfinished) -> Result<(), StoreError> {
    if upload.id.contains('/') || key_of(&upload.id).is_none() {
        return Err(StoreError::Other(format!("{:?} is no unfinished upload", upload.id)));
    }
    let path = root.join(TEMPORARY).join(&upload.id);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(explain(e, "delete", &path)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Which write of a file this is: every one makes another file. `None` where it is a folder.
pub(super) fn version(path: &Path) -> io::Result<Option<Version>> {
    let metadata = fs::symlink_metadata(path)?;
    let tag =
        format!("{}-{}.{}-{}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size());
    let modified = metadata.modified()?.into();
    Ok(metadata.is_file().then_some(Version { tag, modified }))
}

/// Writes a file while its name still has this version.
pub(super) fn replace(
    root: &Path,
    key: &str,
    path: &Path,
    body: &[u8],
    expected: &Version,
) -> Result<(), StoreError> {
    let mut file = temporary_file(root, key)?;
    file.write_all(body)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| explain(e, "write", file.path()))?;
    // Held until it is dropped, or its process ends.
    let _lock = lock(root)?;
    let other = || Err(StoreError::Exists(format!("{key} is not what it was in file://{}", root.display())));
    match version(path) {
        Ok(Some(found)) if found.tag == expected.tag => {}
        Ok(_) => return other(),
        Err(e) if e.kind() == ErrorKind::NotFound => return other(),
        Err(e) => return Err(explain(e, "look at", path)),
    }
    fs::rename(file.path(), path).map_err(|e| explain(e, "write", path))?;
    let folder = path.parent().unwrap_or(root);
    sync_directory(folder).map_err(|e| explain(e, "sync", folder))
}

pub(super) fn lock(root: &Path) -> Result<File, StoreError> {
    let folder = root.join(TEMPORARY);
    make_directories(root, &folder).map_err(|e| explain(e, "create", &folder))?;
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    let file = file.map_err(|e| explain(e, "open", &path))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| explain(e.into(), "lock", &path))?;
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
