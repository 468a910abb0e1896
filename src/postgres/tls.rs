//! libpq's `sslmode` in rustls: what is checked about the server's certificate.
//!
//! | mode | checked |
//! |---|---|
//! | `prefer`, `require` | nothing; with a root certificate, the chain |
//! | `verify-ca` | the chain |
//! | `verify-full` | the chain, and the host name |
//!
//! Two things differ from OpenSSL and are bridged or said. A self-signed certificate that is itself
//! the trusted root works, although webpki would refuse a CA as a server. A certificate without a
//! subjectAltName never names a host here; libpq still falls back to the common name.
//! Deliberately absent: revocation lists, encrypted client keys.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Connection, SslMode};
use crate::error::{Error, Result};
use crate::pem;

/// `sslrootcert` that means the operating system's store, as in libpq.
const SYSTEM: &str = "system";

/// What is checked about a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// The TLS side of a connection; reads certificates and keys from disk.
pub fn connector(connection: &Connection) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let check = match connection.sslmode {
        SslMode::VerifyFull => Check::ChainAndName,
        SslMode::VerifyCa => Check::Chain,
        _ if connection.sslrootcert.is_some() => Check::Chain,
        _ => Check::Nothing,
    };
    let trusted = match (check, connection.sslrootcert.as_deref()) {
        (Check::Nothing, _) => Vec::new(),
        (_, Some(path)) if path != Path::new(SYSTEM) => pem::trusted_certificates(path, "root certificate")?,
        _ => pem::system_certificates("sslrootcert")?,
    };
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(trusted.iter().cloned());
    if check != Check::Nothing && roots.is_empty() {
        return Err(Error::new(format!("none of {unusable} root certificates can be used")));
    }
    let verifier = Verifier { check, roots, trusted, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::new(e).context("cannot set up TLS"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&connection.sslcert, &connection.sslkey) {
        (Some(cert), Some(key)) => {
            let chain = pem::trusted_certificates(cert, "client certificate")?;
            let key = pem::private_key(key)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| Error::new(e).context(format!("client certificate {}", cert.display())))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => {
            return Err(Error::usage("a client certificate needs both sslcert and sslkey"));
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
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
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match chain {
            Ok(()) => {}
            // Validity was checked before this is reported, and the peer proves that it holds the
            // key in the handshake's signature.
            Err(e) if is_ca_as_server(&e) && self.trusted.iter().any(|t| t == end_entity) => {}
            Err(e) => return Err(e),
        }
        if self.check == Check::ChainAndName {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
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

/// What to do about a failed handshake, where that is known.
pub fn hint(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError as C;
    let rustls::Error::InvalidCertificate(certificate) = error else {
        return Some("compare the TLS versions and client certificates that the server asks for");
    };
    Some(match certificate {
        C::UnknownIssuer | C::BadSignature => {
            "set sslrootcert to the certificate of the authority that signed the server's"
        }
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            "renew the server's certificate, or correct the clock of this host"
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => {
            "connect by a name in the certificate's subjectAltName (the common name is not looked at), \
             or use sslmode=verify-ca"
        }
        _ => "inspect the server's certificate; a version 3 certificate is needed",
    })
}
