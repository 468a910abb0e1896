//! What several runs on one bucket agree by: the store's clock, versions of an object, and uploads
//! that nobody finished.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::attempt::{ANSWER, Attempt};
use super::bounded::Listed;
use super::retry::Patience;
use super::{S3Store, time};
use crate::store::{StoreError, Unfinished, Version, check_key};

/// Keeps the `Date` of an answer, which the SDK does not hand out.
#[derive(Debug, Clone, Default)]
struct DateHeader(Arc<Mutex<Option<String>>>);

impl Intercept for DateHeader {
    fn name(&self) -> &'static str {
        "date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}

impl S3Store {
    /// The time in the head of a fresh answer.
    pub(super) async fn clock(&self) -> Result<DateTime<Utc>, StoreError> {
        let date = DateHeader::default();
        let request =
            self.client.list_objects_v2().bucket(&self.bucket).prefix(self.full_key("")).max_keys(1);
        let doing = format!("list {}", self.place());
        let send = |attempt: Attempt| {
            attempt.send(ANSWER, request.clone().customize().interceptor(date.clone()).send())
        };
        self.retry(&doing, Patience::Full, send).await.map_err(|f| f.explain(self, &doing))?;
        let text = date.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let parsed = text.as_deref().and_then(|text| DateTime::parse_from_rfc2822(text).ok());
        parsed.map(|date| date.to_utc()).ok_or_else(|| {
            StoreError::Unsupported(format!("{} does not say what time it has", self.endpoint))
        })
    }

    pub(super) async fn list_unfinished(&self, prefix: &str) -> Result<Vec<Unfinished>, StoreError> {
        let own = self.full_key("");
        let mut found = Vec::new();
        let mut after: (Option<String>, Option<String>) = (None, None);
        let mut listed = Listed::default();
        loop {
            let request = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(self.full_key(prefix))
                .set_key_marker(after.0.clone())
                .set_upload_id_marker(after.1.clone());
            let doing = "list unfinished uploads";
            let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
            let page = self.retry(doing, Patience::Full, send).await.map_err(|f| f.explain(self, doing))?;
            let keys = page.uploads().iter().map(|upload| upload.key().unwrap_or_default());
            listed
                .page(keys)
                .map_err(|why| StoreError::Other(format!("cannot {doing}: {} {why}", self.endpoint)))?;
            for upload in page.uploads() {
                let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) else { continue };
                // Whose key is not ours was not begun by opsd, and some stores ignore the prefix.
                let Some(key) = key.strip_prefix(own.as_str()) else { continue };
                if check_key(key).is_ok() && key.starts_with(prefix) {
                    let started = time(upload.initiated());
                    found.push(Unfinished { key: key.to_owned(), id: id.to_owned(), started });
                }
            }
            let next = (
                page.next_key_marker().map(str::to_owned).filter(|m| !m.is_empty()),
                page.next_upload_id_marker().map(str::to_owned).filter(|m| !m.is_empty()),
            );
            if page.is_truncated() != Some(true) {
                break;
            }
            // It would answer the same for ever; half a list is not taken for a whole one.
            if next.0.is_none() || next == after {
                return Err(StoreError::Unsupported(format!(
                    "cannot {doing}: {} says that there are more, but not from where",
                    self.endpoint
                )));
            }
            after = next;
        }
        found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        found.dedup();
        Ok(found)
    }

    pub(super) async fn current_version(&self, key: &str) -> Result<Version, StoreError> {
        let request = self.client.head_object().bucket(&self.bucket).key(self.full_key(key));
        let doing = format!("look at {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        match self.retry(&doing, Patience::Full, send).await {
            Ok(head) => Ok(Version {
                tag: head.e_tag().unwrap_or_default().to_owned(),
                modified: time(head.last_modified()),
            }),
            Err(failure) => Err(self.reason(key, failure).await.explain(self, &doing)),
        }
    }

    /// PUT with `If-Match`. After a retry the refusal may be about our own first attempt.
    pub(super) async fn put_over(&self, key: &str, body: Bytes, version: &Version) -> Result<(), StoreError> {
        let doing = format!("replace {key}");
        let send = |attempt: Attempt| {
            let request = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .set_checksum_crc32(self.checksum(&body))
                .if_match(&version.tag)
                .body(ByteStream::from(body.clone()));
            attempt.send(ANSWER, request.send())
        };
        match self.retry(&doing, Patience::Full, send).await {
            Ok(_) => Ok(()),
            // Without an object there is nothing that could match.
            Err(failure)
                if failure.condition_failed()
                    || (failure.is_not_found() && failure.code != "NoSuchBucket") =>
            {
                let other = StoreError::Exists(format!("{key} is not what it was in {}", self.place()));
                if !failure.in_doubt {
                    return Err(other);
                }
                match self.holds(key, &body).await {
                    Some(true) => Ok(()),
                    Some(false) => Err(other),
                    None => Err(self.unanswered(key, failure)),
                }
            }
            Err(failure) if failure.in_doubt => match self.holds(key, &body).await {
                Some(true) => Ok(()),
                Some(false) => Err(failure.explain(self, &doing)),
                None => Err(self.unanswered(key, failure)),
            },
            Err(failure) => Err(failure.explain(self, &doing)),
        }
    }
}
