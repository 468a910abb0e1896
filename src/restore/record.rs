//! The record of a rehearsal: whether it is written, and whether it will count.

use std::sync::Arc;

use crate::config::{Config, Encryption};
use crate::error::{Error, Result};
use crate::set::catalog::Loaded;
use crate::set::signature::{self, Purpose};
use crate::set::verification::{self, Verdict, Verification};
use crate::store::{self, Store, object_lock};

/// Failures of a set in a row that are recorded. More would hide what an earlier rehearsal of it found: only so
/// many records are read.
pub(super) const MOST_FAILURES: usize = 16;

/// Whether the newest rehearsals of a set all failed.
pub(super) fn has_failed_often(set: &Loaded) -> bool {
    let newest = set.verifications.iter().rev().take(MOST_FAILURES);
    newest.filter(|record| record.verdict == Verdict::Failed).count() == MOST_FAILURES
}

/// Why this configuration does not believe the record that it makes.
pub(super) fn uncounted(encryption: &Encryption) -> Option<&'static str> {
    let trusted = &encryption.trusted;
    match &encryption.sign_key_file {
        _ if trusted.is_nobody() => None,
        None => Some("it is not signed, without encryption.sign_key_file"),
        Some(file) => {
            let is_trusted =
                signature::public_key(file).is_ok_and(|key| trusted.verifications.contains(&key));
            (!is_trusted)
                .then_some("the key that signs it is not among trusted_verify_keys (or trusted_keys)")
        }
    }
}

/// The record, signature first. In a task of its own, so that a signal leaves no signature of nothing.
pub(super) async fn write_record(
    config: &Config,
    store: Arc<dyn Store>,
    prefix: &str,
    record: &Verification,
) -> Result<()> {
    let bytes = record.to_bytes()?;
    let key = format!("{prefix}{}", verification::name(record.finished));
    let comment = Purpose::Verification.comment(&record.site, &record.job, &record.id);
    let sign_key = config.encryption.sign_key_file.as_deref();
    let signature = sign_key.map(|path| signature::sign(path, &bytes, &comment)).transpose()?;
    let store = object_lock::locking(&store, &config.repository).await?;
    let put = async move {
        if let Some(signature) = signature {
            let key = format!("{key}.minisig");
            store::put(store.as_ref(), &key, signature.into_bytes(), false).await?;
        }
        store::put(store.as_ref(), &key, bytes, true).await
    };
    tokio::spawn(put).await.map_err(|e| Error::new(e).context("the task that writes it died"))??;
    Ok(())
}
