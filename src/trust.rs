//! Whether a server's certificates hold: one judgement for PostgreSQL, HTTP, TLS, MQTT and Redis.
//!
//! webpki judges. Two things differ from OpenSSL and are bridged or said. A self-signed certificate that is itself
//! the trusted one works, although webpki would refuse an authority as a server. A certificate without a
//! subjectAltName never names a host; one of X.509 version 1 cannot have any, and is told so in words.
//! Deliberately absent: revocation lists.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use x509_cert::Version;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::BasicConstraints;

use crate::error::{Error, Result};

/// What is checked about a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    Nothing,
    /// That an authority signed it, and that it is valid now.
    Chain,
    /// The same, and that it is of the host that was meant.
    ChainAndName,
}

/// Whose signatures count.
#[derive(Debug)]
pub struct Authorities {
    trusted: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
}

impl Authorities {
    /// None of them at all can verify nothing.
    pub fn none() -> Self {
        Self { trusted: Vec::new(), roots: RootCertStore::empty() }
    }

    /// Those of these certificates that can be used; none is an error.
    pub fn new(trusted: Vec<CertificateDer<'static>>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let (_, unusable) = roots.add_parsable_certificates(trusted.iter().cloned());
        if roots.is_empty() {
            return Err(Error::new(format!("none of {unusable} root certificates can be used")));
        }
        Ok(Self { trusted, roots })
    }

    /// Whether the chain from a server's certificate leads to one that is trusted, and holds at a time.
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Result<(), rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity).map_err(|e| in_words(e, end_entity))?;
        let algorithms = algorithms().all;
        match verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            at,
            algorithms,
        ) {
            // Validity was checked before this is reported, and the peer proves that it holds the key in the
            // handshake's signature.
            Err(e) if is_ca_as_server(&e) && self.trusted.iter().any(|trusted| trusted == end_entity) => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Until when a server's certificate is verified if nobody changes anything: what ends the last way to a
    /// trusted authority, whose own end counts, too, because others look at it. None where no way holds now.
    ///
    /// A certificate beside the way, as one that cross-signs an authority which is trusted itself, does not matter.
    pub fn valid_until(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Option<Duration> {
        let now = Duration::from_secs(now.as_secs());
        let last = end(end_entity)?;
        let trusted: Vec<_> = self.trusted.iter().filter_map(|root| Some((root, end(root)?))).collect();
        let ends = intermediates.iter().filter_map(end).chain(trusted.iter().map(|(_, end)| *end));
        let mut times: Vec<Duration> =
            ends.filter(|end| (now..last).contains(end)).chain([now, last]).collect();
        times.sort_unstable();
        times.dedup();
        let holds = |at: &Duration| {
            let alive = trusted.iter().filter(|(_, end)| end >= at).map(|(root, _)| (*root).clone());
            let alive = Authorities::new(alive.collect()).ok();
            alive.is_some_and(|alive| {
                alive.verify(end_entity, intermediates, UnixTime::since_unix_epoch(*at)).is_ok()
            })
        };
        times.into_iter().take_while(holds).last().or_else(|| {
            // We do not look at an authority's own end, and others do: since then the way has been over.
            let now = UnixTime::since_unix_epoch(now);
            let leads_to = |root: &CertificateDer<'_>| {
                let one = Authorities::new(vec![root.clone().into_owned()]);
                one.is_ok_and(|one| one.verify(end_entity, intermediates, now).is_ok())
            };
            trusted.iter().filter(|(root, _)| leads_to(root)).map(|(_, end)| *end).max()
        })
    }
}

/// Until when a certificate is valid, since 1970.
fn end(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.validity.not_after.to_unix_duration())
}

/// Whether a certificate is one of an authority, and not of a server or a person.
pub fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    let Ok(parsed) = x509_cert::Certificate::from_der(certificate) else { return false };
    let constraints = parsed.tbs_certificate.get::<BasicConstraints>();
    constraints.ok().flatten().is_some_and(|(_, constraints)| constraints.ca)
}

/// Judges the certificates of a handshake.
#[derive(Debug)]
pub struct Verifier {
    check: Check,
    authorities: Authorities,
}

impl Verifier {
    /// A judge that checks so much, with those who are trusted.
    pub fn new(check: Check, authorities: Authorities) -> Self {
        Self { check, authorities }
    }

    /// Who is trusted.
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        self.authorities.verify(end_entity, intermediates, now)?;
        if self.check == Check::ChainAndName {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &algorithms()).map_err(|e| in_words(e, cert))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms()).map_err(|e| in_words(e, cert))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// A certificate of version 1, as `openssl x509 -req` without extensions signs it, and so many instructions for
/// brokers.
#[derive(Debug)]
struct Version1;

impl fmt::Display for Version1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the server's certificate is an X.509 version 1 certificate, which cannot name a server: \
             sign it anew with a subjectAltName (openssl x509 -req … -extfile)",
        )
    }
}

impl std::error::Error for Version1 {}

fn in_words(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    match x509_cert::Certificate::from_der(certificate) {
        Ok(parsed) if parsed.tbs_certificate.version == Version::V1 => {
            rustls::Error::Other(OtherError(Arc::new(Version1)))
        }
        _ => error,
    }
}

/// Whether the certificate is refused for its version alone.
pub fn is_version_1(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::Other(OtherError(why)) if why.is::<Version1>())
}

/// webpki's CaUsedAsEndEntity, which rustls passes on without a variant of its own.
fn is_ca_as_server(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            other.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}
