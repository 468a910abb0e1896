//! Bytes under keys: the narrow contract between opsd and whatever keeps its sets.
//!
//! What every implementation promises, and the conformance suite in `tests/it/store.rs` checks:
//! - **Whole or not at all.** An object is visible only after [`Upload::commit`] returned `Ok`, and
//!   then with every byte. Dropping an upload, or aborting it, leaves nothing visible.
//! - **Durable.** After `commit` a crash of this host loses nothing.
//! - **Keys** are relative to the repository, `/`-separated, and validated ([`check_key`]).
//! - **Retries are inside.** A transient failure is retried by the store within bounds of its own;
//!   what comes out is final.
//!
//! Deliberately absent: renames, appends, streaming reads (a long GET under back-pressure dies;
//! readers ask for ranges), and metadata of our own on objects (providers differ).

pub mod faulty;
pub mod fs;
pub mod lease;
pub mod memory;
pub mod object_lock;
pub mod probe;
pub mod s3;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use self::object_lock::Retention;
use crate::config::{ADD_REPOSITORY, Location, Repository};
use crate::error::{Context, Error, Kind, Result};

/// Bytes of an object that are best read at once. Large enough that a round trip is amortised, small
/// enough that several in flight stay well within the memory budget.
pub const READ_SIZE: usize = 4 << 20;

/// Why a store refused. Callers branch on the variant; the text is for people.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No object under this key (or no such bucket: the message says which).
    #[error("{0}")]
    NotFound(String),
    /// `if_absent` was asked for and the key holds an object already.
    #[error("{0}")]
    Exists(String),
    /// The credential may not do this.
    #[error("{0}")]
    Denied(String),
    /// The store cannot do this at all.
    #[error("{0}")]
    Unsupported(String),
    /// What arrived is not what was sent.
    #[error("{0}")]
    Corrupt(String),
    /// It may have been written: the bytes were sent, no answer says what became of them, and what is there
    /// cannot be read.
    #[error("{0}")]
    InDoubt(String),
    /// Everything else, after retries.
    #[error("{0}")]
    Other(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let kind = if matches!(error, StoreError::InDoubt(_)) { Kind::InDoubt } else { Kind::Failed };
        Error::new(error).with_kind(kind)
    }
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Key relative to the repository.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// When the store says it was written.
    pub modified: DateTime<Utc>,
}

/// An upload that was begun and neither committed nor aborted: under way, or left by a run that was
/// killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The key it would become, relative to the repository.
    pub key: String,
    /// What the store calls it.
    pub id: String,
    /// When it began, or, in a directory, was last written to; by the store's clock.
    pub started: DateTime<Utc>,
}

/// One write of an object, told from every other write of the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What the store tells it by.
    pub tag: String,
    /// When the store says it was written.
    pub modified: DateTime<Utc>,
}

/// A place that keeps objects: a bucket and prefix, a directory, memory.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Where this is, for messages: `s3://bucket/prefix`. Never holds a credential.
    fn describe(&self) -> String;

    /// Starts an object. Nothing is visible under `key` until the upload is committed. With
    /// `if_absent` the commit fails with [`StoreError::Exists`] where the key holds an object and
    /// the store can tell.
    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError>;

    /// The bytes of a range; shorter than asked only where the object ends. Callers bound the
    /// range: it is held in memory, which for ranges of [`READ_SIZE`] stays with the store for the next.
    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    /// Size and time of one object.
    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError>;

    /// Every object whose key starts with `prefix`, sorted by key.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError>;

    /// Removes an object; removing what is absent succeeds.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// The time by the clock that [`ObjectMeta::modified`] is by.
    async fn now(&self) -> Result<DateTime<Utc>, StoreError>;

    /// Unfinished uploads to keys that start with `prefix`, sorted by key; what the store does not
    /// keep once its process has ended is none. [`StoreError::Unsupported`] where it cannot tell.
    async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError>;

    /// Removes an unfinished upload; removing what is finished or gone succeeds and does nothing.
    async fn abort_unfinished(&self, upload: &Unfinished) -> Result<(), StoreError>;

    /// Which write of a key it holds now.
    async fn version(&self, key: &str) -> Result<Version, StoreError>;

    /// Writes a small object while its key still holds `version`; [`StoreError::Exists`] where it
    /// holds another, or nothing.
    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError>;

    /// The same store, which locks every object that is uploaded through it; [`StoreError::Unsupported`]
    /// where there are no locks.
    fn with_retention(&self, _: Retention) -> Result<Arc<dyn Store>, StoreError> {
        Err(StoreError::Unsupported(format!("{} cannot lock objects", self.describe())))
    }

    /// Whether objects can be locked.
    async fn has_object_lock(&self) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Until when what a key holds now is locked; `None` where it is not.
    async fn locked_until(&self, _: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
        Ok(None)
    }
}

/// One object being written. Dropping it without [`Upload::commit`] means abort (best effort on the
/// server's side; never visible).
#[async_trait]
pub trait Upload: Send {
    /// Appends a part. All parts but the last have the same size. May return before the part is
    /// stored; `commit` reports what failed meanwhile.
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError>;

    /// Makes the object visible after checking that the store holds exactly `size` bytes.
    async fn commit(self: Box<Self>, size: u64) -> Result<(), StoreError>;

    /// Gives up and removes what was sent.
    async fn abort(self: Box<Self>);
}

/// Opens the configured repository; a bucket is used as its last probe found it to be.
pub async fn open(repository: &Repository) -> Result<Arc<dyn Store>> {
    match &repository.location {
        Location::S3 { .. } => Ok(Arc::new(open_s3(repository, &s3::Access::Chain).await?)),
        Location::File(path) => Ok(Arc::new(fs::FsStore::open(path)?)),
        Location::Nowhere => Err(nowhere()),
    }
}

/// After a run that failed because a bucket refuses checksums, or the lack of one: finds out what it takes, remembers
/// it, and opens the repository anew. `None` where the failure was another one, or the answer is known already.
pub async fn open_as_found_out(repository: &Repository, failure: &Error) -> Result<Option<Arc<dyn Store>>> {
    if !failure.to_string().contains(s3::ABOUT_CHECKSUMS) {
        return Ok(None);
    }
    let store = open(repository).await?;
    // A credential that may not read the report would not learn anything.
    if !matches!(store.read(probe::REPORT_KEY, 0..1).await, Err(StoreError::NotFound(_))) {
        return Ok(None);
    }
    tracing::info!("{} refuses what it was sent: {failure}; finding out what it takes", store.describe());
    probe::probe(repository).await.context("cannot find out what the repository can do")?;
    Ok(Some(open(repository).await?))
}

/// What is said where a command needs a repository and the configuration names none.
fn nowhere() -> Error {
    Error::usage("the configuration has no [repository]").with_hint(ADD_REPOSITORY)
}

/// [`open`] for buckets, with credentials of the caller's choice.
pub async fn open_s3(repository: &Repository, access: &s3::Access) -> Result<s3::S3Store> {
    let store = s3::open_with(repository, access, s3::Options::default()).await?;
    let known = probe::remembered(&store).await.context("cannot open the repository")?;
    // Nobody signs a report, and whoever can write to the bucket can write one: what asks for less care than
    // opsd takes without it is tried again.
    Ok(match known.map(|report| report.options()) {
        Some(s3::Options { checksums: s3::Checksums::None }) if !probe::refuses_checksums(&store).await => {
            tracing::warn!(
                "{} says that {} refuses checksums, and it takes them: they are sent; find out who wrote that, and \
                 run `opsd repository probe` again",
                probe::REPORT_KEY,
                store.describe()
            );
            store
        }
        Some(options) => store.with_options(options),
        None => store,
    })
}

/// Writes a small object whole.
pub async fn put(
    store: &dyn Store,
    key: &str,
    body: impl Into<Bytes>,
    if_absent: bool,
) -> Result<(), StoreError> {
    let body = body.into();
    let size = body.len() as u64;
    let mut upload = store.begin(key, if_absent).await?;
    upload.put_part(body).await?;
    upload.commit(size).await
}

/// During what a write of an object failed; where it is in doubt, that it failed is not said.
pub fn writing(store: &dyn Store, key: &str, error: &StoreError) -> String {
    let cannot = if matches!(error, StoreError::InDoubt(_)) { "writing" } else { "cannot write" };
    format!("{cannot} {}/{key}", store.describe())
}

/// Reads a small object whole; refuses one larger than `limit` bytes instead of holding it.
pub async fn get(store: &dyn Store, key: &str, limit: u64) -> Result<Bytes, StoreError> {
    let bytes = store.read(key, 0..limit + 1).await?;
    if bytes.len() as u64 > limit {
        return Err(StoreError::Other(format!("{key} is larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// What `commit` fails with when the store holds another number of bytes than were sent.
fn size_mismatch(key: &str, expected: u64, found: u64) -> StoreError {
    StoreError::Corrupt(format!("{key} should have {expected} bytes, but {found} arrived"))
}

/// Refuses keys that could leave the repository or mean different things to different stores:
/// empty, absolute, with empty, `.` or `..` components, control characters, or over 900 bytes.
pub fn check_key(key: &str) -> Result<(), StoreError> {
    let bad = key.is_empty()
        || key.len() > 900
        || key.chars().any(char::is_control)
        || key.contains('\\')
        || key.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    if bad { Err(StoreError::Other(format!("invalid object key {key:?}"))) } else { Ok(()) }
}
