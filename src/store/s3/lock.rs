//! Object Lock as S3 has it: what goes with a write, and what is asked of a bucket and of an object.

use aws_sdk_s3::primitives::DateTime as SdkDateTime;
use aws_sdk_s3::types::ObjectLockMode;
use chrono::{DateTime, Utc};

use super::attempt::{ANSWER, Attempt};
use super::failure::Failure;
use super::retry::Patience;
use super::{Checksums, Learned, S3Store, time};
use crate::config::LockMode;
use crate::store::StoreError;
use crate::store::object_lock::Retention;

impl S3Store {
    /// The same store, which locks what is uploaded. S3 takes no locked object without a checksum.
    pub(super) fn locking(&self, retention: Retention) -> Self {
        Self { lock: Some(retention), checksums: Checksums::Crc32, ..self.clone() }
    }

    /// `x-amz-object-lock-mode`.
    pub(super) fn lock_mode(&self) -> Option<ObjectLockMode> {
        self.lock.map(|lock| match lock.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        })
    }

    /// `x-amz-object-lock-retain-until-date`.
    pub(super) fn lock_until(&self) -> Option<SdkDateTime> {
        self.lock.map(|lock| SdkDateTime::from_secs(lock.until.timestamp()))
    }

    /// Whether the bucket has Object Lock, and its default retention in words.
    pub(super) async fn object_lock(&self, patience: Patience) -> Result<Option<String>, StoreError> {
        let request = self.client.get_object_lock_configuration().bucket(&self.bucket);
        let doing = "read the bucket's object lock";
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        let answer = match self.retry(doing, patience, send).await {
            Ok(answer) => answer,
            Err(failure) if is_without_lock(&failure) => return Ok(None),
            Err(failure) => return Err(failure.explain(self, doing)),
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

    /// Until when an object is locked. `GetObjectRetention` rather than HEAD: HEAD leaves the date out where
    /// the credential may not know it, and wants the right to read the object itself.
    pub(super) async fn retained_until(&self, key: &str) -> Result<Option<DateTime<Utc>>, StoreError> {
        if Learned::get(&self.learned.no_object_lock) {
            return Ok(None);
        }
        let request = self.client.get_object_retention().bucket(&self.bucket).key(self.full_key(key));
        let doing = format!("read the lock of {key}");
        let send = |attempt: Attempt| attempt.send(ANSWER, request.clone().send());
        match self.retry(&doing, Patience::Full, send).await {
            Ok(answer) => Ok(answer.retention().and_then(|r| r.retain_until_date()).map(|t| time(Some(t)))),
            // The bucket has none, or the store does not know what that is: it says the same of every object.
            Err(failure) if failure.code == "InvalidRequest" || is_unknown(&failure) => {
                Learned::set(&self.learned.no_object_lock);
                Ok(None)
            }
            Err(failure) if is_without_lock(&failure) || failure.code == "NoSuchKey" => Ok(None),
            Err(failure) => {
                let is_refusal = matches!(failure.status, Some(400..=499));
                Err(match failure.explain(self, &doing) {
                    // Something like a store, which takes the question for another one.
                    StoreError::Other(why) if is_refusal => StoreError::Unsupported(why),
                    error => error,
                })
            }
        }
    }

    /// What a write failed of. A bucket without Object Lock does not say so by a code of its own.
    pub(super) fn explain_write(&self, failure: Failure, doing: &str) -> StoreError {
        let refused = failure.code == "InvalidRequest" || is_without_lock(&failure);
        let error = failure.explain(self, doing);
        if self.lock.is_none() || !refused {
            return error;
        }
        StoreError::Unsupported(format!("{error}: does bucket {:?} have Object Lock?", self.bucket))
    }

    /// Whether the first object of its kind that was uploaded with a lock has it: some stores take the headers
    /// and do nothing about them. A credential that may not ask believes the store's answer.
    pub(super) async fn confirm_lock(&self, key: &str, is_multipart: bool) -> Result<(), StoreError> {
        let learned = if is_multipart { &self.learned.locks_multipart } else { &self.learned.locks_single };
        let Some(lock) = self.lock.filter(|_| !Learned::get(learned)) else { return Ok(()) };
        match self.retained_until(key).await {
            Ok(Some(until)) if until >= lock.until => {}
            Err(StoreError::Denied(why)) => tracing::debug!("whether {key} is locked is not known: {why}"),
            Err(error) => {
                return Err(StoreError::InDoubt(format!(
                    "{key} was written, and whether it is locked as it should be cannot be told: {error}"
                )));
            }
            Ok(found) => {
                let found = found.map_or_else(|| "not at all".to_owned(), |until| format!("until {until}"));
                return Err(StoreError::Unsupported(format!(
                    "{} took {key} to be locked until {}, and locked it {found}",
                    self.endpoint, lock.until
                )));
            }
        }
        Learned::set(learned);
        Ok(())
    }
}

/// Whether a bucket, or an object, has no lock. AWS and SeaweedFS differ in the code.
fn is_without_lock(failure: &Failure) -> bool {
    matches!(failure.code.as_str(), "ObjectLockConfigurationNotFoundError" | "NoSuchObjectLockConfiguration")
}

/// Whether the store does not know the request.
fn is_unknown(failure: &Failure) -> bool {
    failure.not_implemented() || failure.code == "MethodNotAllowed"
}
