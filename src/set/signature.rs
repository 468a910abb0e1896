//! minisign signatures of manifests and verification records.

use std::io::Cursor;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// Checks that one of the trusted keys signed these bytes.
pub fn verify(trusted_keys: &[String], bytes: &[u8], signature: &str) -> Result<()> {
    let signature = minisign::SignatureBox::from_string(signature)
        .map_err(|e| Error::differs(e).context("signature is damaged"))?;
    for key in trusted_keys {
        let key = minisign::PublicKey::from_base64(key)
            .map_err(|e| Error::usage(e).context(format!("trusted key {key:?}")))?;
        if minisign::verify(&key, &signature, Cursor::new(bytes), true, false, false).is_ok() {
            return Ok(());
        }
    }
    Err(Error::differs("no trusted key made the signature of these bytes"))
}

/// Signs with an unencrypted minisign secret key.
pub fn sign(secret_key_file: &Path, bytes: &[u8], trusted_comment: &str) -> Result<String> {
    let text = std::fs::read_to_string(secret_key_file)
        .with_context(|| format!("signing key {}", secret_key_file.display()))?;
    let key = minisign::SecretKeyBox::from_string(&text)
        .and_then(|k| k.into_unencrypted_secret_key())
        .map_err(|e| Error::usage(e).context(format!("signing key {}", secret_key_file.display())))?;
    let signed = minisign::sign(None, &key, Cursor::new(bytes), Some(trusted_comment), None)
        .map_err(|e| Error::new(e).context("signing"))?;
    Ok(signed.into_string())
}
