//! A store in a bucket: S3, or something that speaks its language.
//!
//! What differs between providers is not assumed but probed (`super::probe`) and remembered in the
//! repository; [`Options`] carries what was found. Every request goes through `S3Store::retry`
//! (`retry`) and is bounded, in time (`attempt`) and in what it answers (`bounded`); errors come out as sentences (`failure`); writing is in
//! `upload`, what locks objects in `lock`; what only the probe needs is in `trial`, what several runs agree by in `coordinate`.
//!
//! Deliberately absent: server-side encryption settings, storage classes and tags (the bucket's
//! defaults apply), and presigned URLs. This is the only code that knows the AWS SDK.

mod attempt;
mod bounded;
mod client;
mod coordinate;
mod credentials;
mod failure;
mod lock;
mod proxy;
mod retry;
mod trial;
mod upload;

pub use failure::ABOUT_CHECKSUMS;
pub use trial::{TrialChecksum, TrialUpload};

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::DateTime as SdkDateTime;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use self::attempt::{ANSWER, Attempt};
use self::bounded::{LISTING_TIME, Listed};
use self::failure::{Failure, display_endpoint};
use self::retry::Patience;
use super::object_lock::Retention;
use super::{ObjectMeta, READ_SIZE, Store, StoreError, Unfinished, Upload, Version, check_key};
use crate::buffer_pool::BufferPool;
use crate::config::secret::Secret;
use crate::config::{Location, Repository};

/// Whose credentials sign requests.
#[derive(Debug, Clone)]
pub enum Access {
    /// The standard AWS chain: environment, profile, container, instance.
    Chain,
    /// These, for tests that use several in one process.
    Static {
        /// Access key id.
        access_key: String,
        /// Secret access key.
        secret_key: Secret,
    },
}

/// Which checksum goes with the bytes of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checksums {
    /// CRC32, which the store checks and keeps. Buckets with object lock demand one.
    #[default]
    Crc32,
    /// None; the request's signature still covers the bytes.
    None,
}

/// What the probe found out about a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Which checksum it takes.
    pub checksums: Checksums,
}

/// A bucket and prefix; clones share the connections.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    prefix: String,
    /// For messages.
    endpoint: String,
    region: String,
    checksums: Checksums,
    /// What is asked for with each upload.
    lock: Option<Retention>,
    learned: Arc<Learned>,
    /// Memory of ranges that are read.
    ranges: BufferPool,
}

/// What requests have taught about this store and credential, so that it is asked once.
#[derive(Debug, Default)]
struct Learned {
    /// It has answered, and not been given up since.
    reached: AtomicBool,
    /// Whether it was waited for in vain.
    given_up: AtomicBool,
    /// Why credentials could not be loaded the first time: the SDK tells that only once, to whoever asked
    /// first, and to all others that it was told.
    no_credentials: OnceLock<String>,
    /// Whether the credentials that requests are signed with expire, so that there will be others.
    credentials_expire: Arc<AtomicBool>,
    /// `If-None-Match` is answered with 501.
    no_conditions: AtomicBool,
    /// HEAD is answered with 403: the credential may only write.
    may_not_read: AtomicBool,
    /// The bucket has no object lock.
    no_object_lock: AtomicBool,
    /// An object that was uploaded with a lock as one PUT has it.
    locks_single: AtomicBool,
    /// The same in parts.
    locks_multipart: AtomicBool,
}

/// Opens a repository in a bucket. Nothing is sent to the store yet, but finding the region may
/// ask an instance metadata service.
pub async fn open_with(
    repository: &Repository,
    access: &Access,
    options: Options,
) -> Result<S3Store, StoreError> {
    let Location::S3 { bucket, prefix } = &repository.location else {
        return Err(StoreError::Other("the repository is not in a bucket".to_owned()));
    };
    let proxy = proxy::of_environment(repository.endpoint.as_deref())?;
    let client::Built { client, region, credentials_expire } =
        client::build(repository, access, proxy.as_ref()).await?;
    let mut endpoint = display_endpoint(repository.endpoint.as_deref(), &region);
    if let Some(proxy) = proxy {
        endpoint = format!("{endpoint} (through the proxy {})", proxy.shown);
    }
    Ok(S3Store {
        client,
        bucket: bucket.clone(),
        prefix: prefix.trim_matches('/').to_owned(),
        endpoint,
        region,
        checksums: options.checksums,
        lock: None,
        learned: Arc::new(Learned { credentials_expire, ..Learned::default() }),
        ranges: BufferPool::new(READ_SIZE),
    })
}

/// By hand: the client's own is pages long, and holds the end point as it was configured.
impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({} at {})", self.place(), self.endpoint)
    }
}

impl S3Store {
    /// The same store, used with other options.
    pub fn with_options(mut self, options: Options) -> Self {
        self.checksums = options.checksums;
        self
    }

    /// How it is used.
    pub fn options(&self) -> Options {
        Options { checksums: self.checksums }
    }

    fn full_key(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }

    fn place(&self) -> String {
        if self.prefix.is_empty() {
            format!("s3://{}", self.bucket)
        } else {
            format!("s3://{}/{}", self.bucket, self.prefix)
        }
    }

    /// A HEAD response has no body, so what it failed of is asked again with a GET of one byte.
    async fn reason(&self, key: &str, failure: Failure) -> Failure {
        if failure.status.is_none() {
            return failure;
        }
        let request =
            self.client.get_object().bucket(&self.bucket).key(self.full_key(key)).range("bytes=0-0");
        match Attempt::new(1).send(ANSWER, request.send()).await {
            Err(reason) if !reason.code.is_empty() => reason,
            Err(_) | Ok(_) => failure,
        }
    }

    /// One GET of a range, body included. The outer error may pass, the inner one is final.
    async fn read_once(
        &self,
        attempt: Attempt,
        key: &str,
        range: &Range<u64>,
    ) -> Result<Result<Bytes, StoreError>, Failure> {
        let asked = range.end - range.start;
        let request = self.client.get_object().bucket(&self.bucket).key(self.full_key(key)).range(format!(
            "bytes={}-{}",
            range.start,
            range.end - 1
        ));
        let response = match attempt.send(ANSWER, request.send()).await {
            Ok(response) => response,
            // The range begins at or past the end.
            Err(failure) if failure.status == Some(416) => return Ok(Ok(Bytes::new())),
            Err(failure) => return Err(failure),
        };
        let length = response.content_length().and_then(|n| u64::try_from(n).ok());
        let expected = match response.content_range().map(parse_content_range) {
            Some(Some((start, total))) if start == range.start => total.saturating_sub(start).min(asked),
            Some(_) => {
                return Ok(Err(StoreError::Corrupt(format!(
                    "cannot read {key}: {} returned another range than asked",
                    self.endpoint
                ))));
            }
            // An answer without a range is the whole object: fine if that is what was asked.
            None => match length {
                Some(length) if range.start == 0 && length <= asked => length,
                _ => {
                    return Ok(Err(StoreError::Unsupported(format!(
                        "cannot read {key}: {} ignores ranges",
                        self.endpoint
                    ))));
                }
            },
        };
        attempt.collect(response.body, expected, &self.ranges).await.map(Ok)
    }

    async fn list_objects(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let own = self.full_key("");
        let mut found = Vec::new();
        let doing = format!("list {}/{prefix}", self.place());
        let request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.full_key(prefix));
        let mut token: Option<String> = None;
        let mut listed = Listed::default();
        loop {
            let page = request.clone().set_continuation_token(token.clone());
            let send = |attempt: Attempt| attempt.send(ANSWER, page.clone().send());
            let page = self
                .retry(&doing, Patience::Full, send)
                .await
                .map_err(|failure| failure.explain(self, &doing))?;
            let keys = page.contents().iter().map(|object| object.key().unwrap_or_default());
            listed
                .page(keys)
                .map_err(|why| StoreError::Other(format!("cannot {doing}: {} {why}", self.endpoint)))?;
            for object in page.contents() {
                // What is no valid key (another tool's folder markers) was not written by opsd.
                let Some(key) = object.key().and_then(|k| k.strip_prefix(own.as_str())) else { continue };
                if check_key(key).is_ok() {
                    found.push(ObjectMeta {
                        key: key.to_owned(),
                        size: size(object.size()),
                        modified: time(object.last_modified()),
                    });
                }
            }
            let next = next_page(page.is_truncated(), page.next_continuation_token(), token.as_deref());
            match next.map_err(|why| StoreError::Other(format!("cannot {doing}: {} {why}", self.endpoint)))? {
                Some(next) => token = Some(next),
                None => break,
            }
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// What takes several requests, each of which may be answered just before it is given up.
    async fn in_time<T>(
        &self,
        doing: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = || {
            let minutes = LISTING_TIME.as_secs() / 60;
            StoreError::Other(format!("cannot {doing}: {} takes longer than {minutes} min", self.endpoint))
        };
        tokio::time::timeout(LISTING_TIME, work).await.unwrap_or_else(|_| Err(late()))
    }
}

/// `bytes 0-9/100` as start and total.
fn parse_content_range(header: &str) -> Option<(u64, u64)> {
    let (range, total) = header.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Where a listing goes on. The same token again would go on for ever, and a listing that ends in the
/// middle would be believed: sets that it lacks do not exist.
fn next_page(
    is_truncated: Option<bool>,
    next: Option<&str>,
    last: Option<&str>,
) -> Result<Option<String>, &'static str> {
    match next {
        _ if is_truncated == Some(false) => Ok(None),
        Some(next) if !next.is_empty() && last != Some(next) => Ok(Some(next.to_owned())),
        _ if is_truncated == Some(true) => Err("says that there are more objects, but not from where"),
        _ => Ok(None),
    }
}

fn time(sdk: Option<&SdkDateTime>) -> DateTime<Utc> {
    sdk.and_then(|t| DateTime::from_timestamp(t.secs(), t.subsec_nanos())).unwrap_or_default()
}

fn size(sdk: Option<i64>) -> u64 {
    sdk.and_then(|n| u64::try_from(n).ok()).unwrap_or_default()
}

#[async_trait]
impl Store for S3Store {
    fn describe(&self) -> String {
        self.place()
    }

    async fn begin(&self, key: &str, if_absent: bool) -> Result<Box<dyn Upload>, StoreError> {
        check_key(key)?;
        Ok(Box::new(upload::S3Upload::new(self.clone(), key, if_absent)))
    }

    async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        check_key(key)?;
        if range.is_empty() {
            return self.head(key).await.map(|_| Bytes::new());
        }
        let doing = format!("read {key}");
        self.retry(&doing, Patience::Full, |attempt| self.read_once(attempt, key, &range))
            .await
            .map_err(|failure| failure.explain(self, &doing))?
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, StoreError> {
        check_key(key)?;
        let request = self.client.head_object().bucket(&self.bucket).key(self.full_key(key));
        let doing = format!("look at {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        match self.retry(&doing, Patience::Full, send).await {
            Ok(head) => Ok(ObjectMeta {
                key: key.to_owned(),
                size: size(head.content_length()),
                modified: time(head.last_modified()),
            }),
            Err(failure) => Err(self.reason(key, failure).await.explain(self, &doing)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.in_time("list objects", self.list_objects(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        let request = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key));
        let doing = format!("delete {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        match self.retry(&doing, Patience::Full, send).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.code == "NoSuchKey" => Ok(()),
            Err(failure) => Err(failure.explain(self, &doing)),
        }
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.clock().await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
        self.in_time("list unfinished uploads", self.list_unfinished(prefix)).await
    }

    async fn abort_unfinished(&self, upload: &Unfinished) -> Result<(), StoreError> {
        check_key(&upload.key)?;
        self.abort_multipart(&upload.key, &upload.id).await
    }

    async fn version(&self, key: &str) -> Result<Version, StoreError> {
        check_key(key)?;
        self.current_version(key).await
    }

    async fn replace(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        check_key(key)?;
        self.put_over(key, body, version).await
    }

    fn with_retention(&self, retention: Retention) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(self.locking(retention)))
    }

    async fn has_object_lock(&self) -> Result<bool, StoreError> {
        self.object_lock(Patience::Full).await.map(|lock| lock.is_some())
    }

    async fn locked_until(&self, key: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
        check_key(key)?;
        self.retained_until(key).await
    }
}

impl Learned {
    fn get(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }

    fn set(flag: &AtomicBool) {
        flag.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_is_cut_off_is_an_error_not_an_end() {
        let go_on = |token: &str| Ok(Some(token.to_owned()));
        assert_eq!(next_page(Some(true), Some("b"), Some("a")), go_on("b"));
        assert_eq!(next_page(None, Some("a"), None), go_on("a"));
        assert_eq!(next_page(Some(false), None, Some("a")), Ok(None));
        assert_eq!(next_page(None, None, None), Ok(None));
        for token in [None, Some(""), Some("a")] {
            assert!(next_page(Some(true), token, Some("a")).is_err(), "{token:?}");
        }
    }

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 5-9/100"), Some((5, 100)));
        assert_eq!(parse_content_range("bytes */100"), None);
        assert_eq!(parse_content_range("items 5-9/100"), None);
        assert_eq!(parse_content_range("bytes 5-9/*"), None);
    }
}
