//! Signing a set of before signing began, so that it is believed again.
//!
//! A date before which nothing need be signed would be somebody else's to claim: whoever can write to the repository
//! can date a set back. So each set is adopted by itself, by somebody who knows it, and only what is there now.
//!
//! Unsigned means that no signature is listed: whoever can write to the repository may also have removed one, and
//! changed the set. So something from elsewhere has to vouch for the manifest, which names every object by its
//! SHA-256: a rehearsal that proved it, whose record a trusted key signed, or the manifest's own SHA-256, as the backup
//! or a rehearsal told it then.

use std::sync::Arc;

use crate::config::{Config, Trusted};
use crate::error::{Context, Error, Result};
use crate::set::catalog::{self, Entry, Loaded, Signature};
use crate::set::manifest;
use crate::set::seal::sha256_hex;
use crate::set::signature::{self, Purpose};
use crate::set::{MANIFEST, MANIFEST_SIGNATURE, set_prefix};
use crate::store::object_lock;
use crate::store::{self, Store};

/// The set as whoever trusts nobody's manifests reads it, if it may be adopted. `known` are SHA-256s of manifests, in
/// hexadecimal, that somebody vouches for.
pub async fn look(store: &dyn Store, config: &Config, entry: Entry, known: &[String]) -> Result<Loaded> {
    let encryption = &config.encryption;
    let Some(sign_key_file) = &encryption.sign_key_file else {
        return Err(Error::usage("encryption.sign_key_file is not set, and a set is adopted by signing it"));
    };
    if !encryption.trusted.backups.contains(&signature::public_key(sign_key_file)?) {
        return Err(Error::usage(
            "the key that would sign is not among trusted_keys (or trusted_backup_keys)",
        )
        .with_hint("a set that it signs would be refused as before"));
    }
    let id = entry.id.clone();
    let verifications = encryption.trusted.verifications.clone();
    let has_keys = !verifications.is_empty();
    let trusted = Trusted { backups: Vec::new(), verifications };
    let set = catalog::load_entry(store, &trusted, entry).await?;
    if set.signature != Signature::Unsigned {
        return Err(Error::refused(format!("set {id} is signed already")).with_hint(
            "where its signature is refused, the signer's key is missing from trusted_keys, or somebody else made it",
        ));
    }
    // Records name the manifest that they are about by its SHA-256, too.
    let is_proven = has_keys && set.is_proven();
    if !is_proven && !known.iter().any(|known| known.eq_ignore_ascii_case(&set.manifest_sha256)) {
        return Err(Error::refused(format!(
            "nothing shows that set {id} is as opsd wrote it: its manifest has SHA-256 {}",
            set.manifest_sha256
        ))
        .with_hint(
            "compare that with what the backup told then (`manifest_sha256` of `opsd backup --json`), and vouch for it \
             with --manifest-sha256; a set that nobody knows goes with `opsd backups forget`",
        ));
    }
    if let Some(missing) = set.missing().first() {
        return Err(Error::differs(format!("set {id} lacks object {missing}")));
    }
    Ok(set)
}

/// Signs the manifest of a set that [`look`] has read, and nothing else that may be there by now.
pub async fn adopt(store: &Arc<dyn Store>, config: &Config, set: &Loaded) -> Result<()> {
    let Some(sign_key_file) = &config.encryption.sign_key_file else {
        return Err(Error::usage("encryption.sign_key_file is not set"));
    };
    let Entry { site, job, id, .. } = &set.entry;
    let prefix = set_prefix(site, job, id);
    let bytes = store::get(store.as_ref(), &format!("{prefix}{MANIFEST}"), manifest::SIZE_MAX).await?;
    if sha256_hex(&bytes) != set.manifest_sha256 {
        return Err(Error::differs(format!("the manifest of set {id} was changed meanwhile")));
    }
    let signed = signature::sign(sign_key_file, &bytes, &Purpose::Manifest.comment(site, job, id))?;
    let locking = object_lock::locking(store, &config.repository).await?;
    store::put(locking.as_ref(), &format!("{prefix}{MANIFEST_SIGNATURE}"), signed.into_bytes(), true)
        .await
        .with_context(|| format!("cannot write the signature of set {id}"))
}
