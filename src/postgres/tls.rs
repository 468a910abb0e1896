//! libpq's `sslmode` in rustls: what is checked about the server's certificate.
//!
//! | mode | checked |
//! |---|---|
//! | `prefer`, `require` | nothing; with a root certificate, the chain |
//! | `verify-ca` | the chain |
//! | `verify-full` | the chain, and the host name |
//!
//! How it is checked is [`crate::trust`]'s. A certificate without a subjectAltName never names a host
//! there; libpq still falls back to the common name. Deliberately absent: encrypted client keys.

use std::path::Path;
use std::sync::Arc;

use rustls::{CertificateError, ClientConfig};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Connection, SslMode};
use crate::error::{Error, Result};
use crate::pem;
use crate::trust::{self, Authorities, Check, Verifier};

/// `sslrootcert` that means the operating system's store, as in libpq.
const SYSTEM: &str = "system";

/// The TLS side of a connection; reads certificates and keys from disk.
pub fn connector(connection: &Connection) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let check = match connection.sslmode {
        SslMode::VerifyFull => Check::ChainAndName,
        SslMode::VerifyCa => Check::Chain,
        _ if connection.sslrootcert.is_some() => Check::Chain,
        _ => Check::Nothing,
    };
    let authorities = match (check, connection.sslrootcert.as_deref()) {
        (Check::Nothing, _) => Authorities::none(),
        (_, Some(path)) if path != Path::new(SYSTEM) => {
            Authorities::new(pem::trusted_certificates(path, "root certificate")?)?
        }
        _ => Authorities::new(pem::system_certificates("sslrootcert")?)?,
    };
    let verifier = Verifier::new(check, authorities);
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

/// What to do about a failed handshake, where that is known.
pub fn hint(error: &rustls::Error) -> Option<&'static str> {
    use CertificateError as C;
    if trust::is_version_1(error) {
        return Some("write subjectAltName=DNS:HOST into a file and give it to openssl x509 with -extfile");
    }
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
        _ => "inspect the server's certificate",
    })
}
