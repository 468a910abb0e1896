//! A store in memory: the reference that the others are compared with, and what unit tests use.
//!
//! Deliberately absent: durability, and any bound on what it holds.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{ObjectMeta, Store, StoreError, Unfinished, Upload, Version, check_key, size_mismatch};

type Objects = BTreeMap<String, (Bytes, DateTime<Utc>)>;

fn version_of((bytes, modified): &(Bytes, DateTime<Utc>)) -> Version {
    let nanoseconds = modified.timestamp_nanos_opt().unwrap_or_default();
    Version { tag: format!("{nanoseconds}-{:08x}", crc32fast::hash(bytes)), modified: *modified }
}

/// Objects in a map; clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
    locks: Arc<Mutex<BTreeMap<String, DateTime<Utc>>>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the bytes of an object behind everybody's back, for tests of damage.
    pub fn overwrite(&self, key: &str, bytes: impl Into<Bytes>) {
        self.lock().insert(key.to_owned(), (bytes.into(), Utc::now()));
    }

    /// Makes an object look as old as it is told, for tests of what depends on age.
    pub fn set_modified(&self, key: &str, modified: DateTime<Utc>) {
        if let Some(object) = self.lock().get_mut(key) {
            object.1 = modified;
        }
    }

    /// Makes an object look locked, for tests of what respects that.
    pub fn set_locked(&self, key: &str, until: DateTime<Utc>) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), until);
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        // The map is never left half changed, so a panic elsewhere does not spoil it.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_found(key: &str) -> StoreError {
    StoreError::NotFound(format!("no object {key} in memory"))
}

#[async_trait]
impl Store for MemoryStore {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError> {
        check_key(key)?;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_owned(), if_absent, buffer: Vec::new() }))
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        check_key(key)?;
        let objects = self.lock();
        let (bytes, _) = objects.get(key).ok_or_else(|| not_found(key))?;
        let clamp = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let (start, end) = (clamp(range.start), clamp(range.end));
        Ok(bytes.slice(start..end.max(start)))
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        check_key(key)?;
        let objects = self.lock();
        let (bytes, modified) = objects.get(key).ok_or_else(|| not_found(key))?;
        Ok(ObjectMeta { key: key.to_owned(), size: bytes.len() as u64, modified: *modified })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        Ok(self
            .lock()
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (bytes, modified))| ObjectMeta {
                key: key.clone(),
                size: bytes.len() as u64,
                modified: *modified,
            })
            .collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        self.lock().remove(key);
        Ok(())
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        Ok(Utc::now())
    }

    async fn unfinished(&self, _: &str) -> Result<Vec<Unfinished>, StoreError> {
        // An upload is a buffer of its own and dies with whoever holds it.
        Ok(Vec::new())
    }

    async fn abort_unfinished(&self, _: &Unfinished) -> Result<(), StoreError> {
        Ok(())
    }

    async fn version(&self, key: &str) -> Result<Version, StoreError> {
        check_key(key)?;
        self.lock().get(key).map(version_of).ok_or_else(|| not_found(key))
    }

    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        check_key(key)?;
        let mut objects = self.lock();
        if objects.get(key).map(version_of).as_ref() != Some(version) {
            return Err(StoreError::Exists(format!("{key} is not what it was")));
        }
        objects.insert(key.to_owned(), (body, Utc::now()));
        Ok(())
    }

    async fn locked_until(&self, key: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
        Ok(self.locks.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied())
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: String,
    if_absent: bool,
    buffer: Vec<u8>,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.buffer.extend_from_slice(&part);
        Ok(())
    }

    async fn commit(self: Box<Self>, size: u64) -> Result<(), StoreError> {
        if self.buffer.len() as u64 != size {
            return Err(size_mismatch(&self.key, size, self.buffer.len() as u64));
        }
        let mut objects = self.store.lock();
        if self.if_absent && objects.contains_key(&self.key) {
            return Err(StoreError::Exists(format!("{} exists already", self.key)));
        }
        objects.insert(self.key, (Bytes::from(self.buffer), Utc::now()));
        Ok(())
    }

    async fn abort(self: Box<Self>) {}
}
