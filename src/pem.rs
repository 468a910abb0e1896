//! Certificates and keys out of PEM files, and the system's authorities: for whoever speaks TLS.

use std::io::Read as _;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::error::{Context, Error, Result};
use crate::regular_file;

/// Every certificate in a file, in its order; none is an error. `what` it is called in errors.
pub fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    let on = || format!("cannot read {what} {}", path.display());
    let mut text = Vec::new();
    regular_file::open(path).and_then(|mut file| file.read_to_end(&mut text)).with_context(on)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(Error::new)
        .with_context(on)?;
    if found.is_empty() {
        return Err(Error::new(format!("{what} {} holds no PEM certificate", path.display())));
    }
    Ok(found)
}

/// The same for certificates that opsd trusts, or shows as its own: where opsd is root, nobody else decides
/// what the file holds.
pub fn trusted_certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>> {
    regular_file::trusted(path).with_context(|| format!("cannot read {what} {}", path.display()))?;
    certificates(path, what)
}

/// The first key in a file, which is refused when others may read it. The reader's errors name what is missing, never what the file holds.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let on = || format!("cannot read client key {}", path.display());
    // The file's size is known, so that the text does not outgrow its memory and leave a copy behind.
    let mut text = Zeroizing::new(Vec::new());
    regular_file::open_secret(path).and_then(|mut file| file.read_to_end(&mut text)).with_context(on)?;
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|e| Error::new(e).with_hint("the key must be PEM and not encrypted"))
        .with_context(on)
}

/// The authorities that this host trusts; none is an error, whose hint names `setting`.
pub fn system_certificates(setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(Error::new(why)
            .context("cannot read the system's root certificates")
            .with_hint(format!("install the ca-certificates package, or set {setting}")));
    }
    Ok(found.certs)
}
