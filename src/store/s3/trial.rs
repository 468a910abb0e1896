//! Single requests for the probe: each tries one thing and says what the store answered, without
//! any of the work-arounds that the store itself has.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketVersioningStatus, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;

use super::attempt::{ANSWER, ANSWER_TO_COMPLETE, Attempt};
use super::retry::Patience;
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
        let doing = format!("write {key}");
        let send = |attempt: Attempt| {
            // A body is no part of what can be sent again.
            let request = self
                .client
                .put_object()
                .bucket(&self.bucket)
                .key(self.full_key(key))
                .set_checksum_crc32(crc32.clone())
                .set_if_none_match(if_absent.then(|| "*".to_owned()))
                .body(ByteStream::from_static(body));
            attempt.send(ANSWER, request.send())
        };
        match self.retry(&doing, Patience::Full, send).await {
            Ok(_) => Ok(()),
            Err(failure) if if_absent && failure.condition_failed() => {
                Err(StoreError::Exists(format!("{key} exists already")))
            }
            Err(failure) => Err(failure.explain(self, &doing)),
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
            done.push(store.put_part(&upload.key, &upload.id, number, part.clone()).await?.part);
        }
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(&upload.key))
            .upload_id(&upload.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(done)).build())
            .set_if_none_match(if_absent.then(|| "*".to_owned()));
        let doing = format!("complete {}", upload.key);
        let send = |attempt: Attempt| attempt.send(ANSWER_TO_COMPLETE, request.clone().send());
        match self.retry(&doing, Patience::Full, send).await {
            Ok(_) => Ok(()),
            Err(failure) if if_absent && failure.condition_failed() => {
                Err(StoreError::Exists(format!("{} exists already", upload.key)))
            }
            Err(failure) => Err(failure.explain(self, &doing)),
        }
    }

    /// Aborts a multipart upload.
    pub async fn trial_abort(&self, upload: &TrialUpload) -> Result<(), StoreError> {
        self.abort_multipart(&upload.key, &upload.id).await
    }

    /// Whether deleted and replaced objects are kept as old versions.
    pub async fn trial_versioning(&self) -> Result<bool, StoreError> {
        let request = self.client.get_bucket_versioning().bucket(&self.bucket);
        let doing = "read the bucket's versioning";
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        let answer = self.retry(doing, Patience::Brief, send).await.map_err(|f| f.explain(self, doing))?;
        Ok(answer.status() == Some(&BucketVersioningStatus::Enabled))
    }

    /// The bucket's object lock: `None` where it has none, else its default retention in words.
    pub async fn trial_object_lock(&self) -> Result<Option<String>, StoreError> {
        self.object_lock(Patience::Brief).await
    }
}
