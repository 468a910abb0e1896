//! The TLS side of probes: whom to trust, and what a certificate says. Used by http, tls and mqtt.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use x509_cert::der::Decode;

use crate::error::{Error, Result};
use crate::pem;
use crate::trust::{Authorities, Check, Verifier};

/// The judge of an address' certificates, who trusts the authorities in a file, or the system's.
pub fn verifier(ca_file: Option<&Path>) -> Result<Arc<Verifier>> {
    Ok(Arc::new(Verifier::new(Check::ChainAndName, authorities(ca_file)?)))
}

/// The authorities in a file, or the system's.
pub fn authorities(ca_file: Option<&Path>) -> Result<Authorities> {
    let found = match ca_file {
        Some(path) => pem::trusted_certificates(path, "certificates")?,
        None => pem::system_certificates("ca_file")?,
    };
    Authorities::new(found).map_err(|error| {
        error.context("cannot set up TLS").with_hint("install the ca-certificates package, or set ca_file")
    })
}

/// How to speak TLS as a client, with or without a certificate of one's own.
pub fn client(ca_file: Option<&Path>, own: Option<&(PathBuf, PathBuf)>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(e).context("cannot set up TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(ca_file)?);
    let Some((cert, key)) = own else { return Ok(builder.with_no_client_auth()) };
    let chain = pem::trusted_certificates(cert, "client certificate")?;
    builder
        .with_client_auth_cert(chain, pem::private_key(key)?)
        .map_err(|e| Error::new(e).context(format!("client certificate {}", cert.display())))
}

/// What is shown of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its common name, or, without one, all of its subject.
    pub subject: String,
    /// Until when it is valid, since 1970.
    pub not_after: Duration,
}

/// Longest subject that becomes a label.
const SUBJECT_MAX: usize = 100;

/// Reads what is shown of a certificate.
pub fn shown(certificate: &CertificateDer<'_>) -> Result<Shown> {
    let parsed = x509_cert::Certificate::from_der(certificate)
        .map_err(|e| Error::new(e).context("a certificate is damaged"))?;
    let subject = parsed.tbs_certificate.subject.to_string();
    let name = subject.split([',', '+']).find_map(|part| part.trim().strip_prefix("CN="));
    let subject = name.unwrap_or(&subject).chars().take(SUBJECT_MAX).collect();
    Ok(Shown { subject, not_after: parsed.tbs_certificate.validity.not_after.to_unix_duration() })
}
