//! Single requests for the probe: each tries one thing and says what the store answered, without
//! any of the work-arounds that the store itself has.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::failure::Failure;
use super::upload::crc32;
use super::{Checksums, Options, S3Store};
use crate::store::StoreError;

/// Which checksum a trial sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialChecksum {
    /// None.
    None,
    /// The right one.
    Right,
    /// One that belongs to other bytes.
    Wrong,
}

/// An upload begun by a trial.
#[derive(Debug, Clone)]
pub struct TrialUpload {
    /// Its key.
    pub key: String,
    /// The store's id for it.
    pub id: String,
}

impl S3Store {
    /// PUT; with `if_absent` conditionally, where [`StoreError::Exists`] means that it was honoured.
    pub async fn trial_put(
        &self,
        key: &str,
        body: &'static [u8],
        checksum: TrialChecksum,
        if_absent: bool,
    ) -> Result<(), StoreError> {
        let crc32 = match checksum {
            TrialChecksum::None => None,
            TrialChecksum::Right => Some(crc32(body)),
            TrialChecksum::Wrong => Some(crc32(b"other bytes")),
        };
        let sent = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .set_checksum_crc32(crc32)
            .set_if_none_match(if_absent.then(|| "*".to_owned()))
            .body(ByteStream::from_static(body))
            .send()
            .await
            .map_err(Failure::of);
        match sent {
            Ok(_) => Ok(()),
            Err(failure) if if_absent && failure.condition_failed() => {
                Err(StoreError::Exists(format!("{key} exists already")))
            }
            Err(failure) => Err(failure.explain(self, &format!("write {key}"))),
        }
    }

    /// Starts a multipart upload.
    pub async fn trial_begin(&self, key: &str, checksums: Checksums) -> Result<TrialUpload, StoreError> {
        let id = self.clone().with_options(Options { checksums }).create_multipart(key).await?;
        Ok(TrialUpload { key: key.to_owned(), id })
    }

    /// Sends the parts and completes; with `if_absent` conditionally, as in [`Self::trial_put`].
    pub async fn trial_complete(
        &self,
        upload: &TrialUpload,
        parts: &[Bytes],
        checksums: Checksums,
        if_absent: bool,
    ) -> Result<(), StoreError> {
        let store = self.clone().with_options(Options { checksums });
        let mut done: Vec<CompletedPart> = Vec::new();
        for (number, part) in (1..).zip(parts) {
            done.push(store.put_part(&upload.key, &upload.id, number, part.clone()).await?);
        }
        let sent = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(&upload.key))
            .upload_id(&upload.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(done)).build())
            .set_if_none_match(if_absent.then(|| "*".to_owned()))
            .send()
            .await
            .map_err(Failure::of);
        match sent {
            Ok(_) => Ok(()),
            Err(failure) if if_absent && failure.condition_failed() => {
                Err(StoreError::Exists(format!("{} exists already", upload.key)))
            }
            Err(failure) => Err(failure.explain(self, &format!("complete {}", upload.key))),
        }
    }

    /// Aborts a multipart upload.
    pub async fn trial_abort(&self, upload: &TrialUpload) -> Result<(), StoreError> {
        self.abort_multipart(&upload.key, &upload.id).await
    }

    /// Whether this unfinished upload is among those that the store lists.
    pub async fn trial_lists_upload(&self, upload: &TrialUpload) -> Result<bool, StoreError> {
        let answer = self
            .client
            .list_multipart_uploads()
            .bucket(&self.bucket)
            .prefix(self.full_key(&upload.key))
            .send()
            .await
            .map_err(|e| Failure::of(e).explain(self, "list unfinished uploads"))?;
        Ok(answer.uploads().iter().any(|u| u.upload_id() == Some(upload.id.as_str())))
    }

    /// Whether deleted and replaced objects are kept as old versions.
    pub async fn trial_versioning(&self) -> Result<bool, StoreError> {
        let answer = self
            .client
            .get_bucket_versioning()
            .bucket(&self.bucket)
            .send()
            .await
            .map_err(|e| Failure::of(e).explain(self, "read the bucket's versioning"))?;
        Ok(answer.status() == Some(&BucketVersioningStatus::Enabled))
    }

    /// The bucket's object lock: `None` where it has none, else its default retention in words.
    pub async fn trial_object_lock(&self) -> Result<Option<String>, StoreError> {
        let request = self.client.get_object_lock_configuration().bucket(&self.bucket);
        let answer = match request.send().await.map_err(Failure::of) {
            Ok(answer) => answer,
            Err(failure) if failure.code == "ObjectLockConfigurationNotFoundError" => return Ok(None),
            Err(failure) => return Err(failure.explain(self, "read the bucket's object lock")),
        };
        let Some(lock) = answer.object_lock_configuration().filter(|l| l.object_lock_enabled().is_some())
        else {
            return Ok(None);
        };
        let retention = lock.rule().and_then(|rule| rule.default_retention());
        Ok(Some(match retention {
            None => "enabled, no default retention".to_owned(),
            Some(retention) => {
                let mode = retention.mode().map_or("unknown mode", |m| m.as_str()).to_lowercase();
                match (retention.days(), retention.years()) {
                    (Some(days), _) => format!("{mode}, {days} days"),
                    (None, Some(years)) => format!("{mode}, {years} years"),
                    (None, None) => mode,
                }
            }
        }))
    }
}
