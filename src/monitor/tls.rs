//! Certificates: those that a server shows in a handshake, and those in files.
//!
//! The handshake goes through whatever is wrong with the certificates, so that each of them is seen;
//! whether they hold is a figure of its own. Nothing is sent after it.
//! Files are read by one thread at a time: on a disk that hangs, it hangs.
//! Deliberately absent: revocation lists, STARTTLS, and weak versions of TLS, which rustls does not speak.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::{Collected, Concern, Failure, Monitor, Reason, tcp, trust};
use crate::config::Threshold;
use crate::config::monitoring::{Bound, Tls};
use crate::error::{Error, Result};
use crate::metrics::{self, Metric, Sample, states};
use crate::pem;
use crate::trust::{Authorities, Verifier, is_authority, is_version_1};

const DAY: f64 = 86_400.0;

/// certbot renews thirty days before; whoever has not in ten will not by itself.
pub static THRESHOLDS: &[Threshold] = &[
    Threshold::of(
        &metrics::TLS_EXPIRY_TIMESTAMP,
        Some(Bound::Below(20.0 * DAY)),
        Some(Bound::Below(7.0 * DAY)),
    ),
    bad("expired"),
    bad("not_yet_valid"),
    bad("unknown_issuer"),
    bad("wrong_name"),
    bad("version_1"),
    bad("invalid"),
    Threshold::of(&metrics::TLS_FILE_UP, None, Some(Bound::Below(0.5))),
];

const fn bad(state: &'static str) -> Threshold {
    Threshold {
        metric: &metrics::TLS_VERIFICATION_STATE,
        state: Some(std::borrow::Cow::Borrowed(state)),
        warning: None,
        critical: Some(Bound::Above(0.5)),
    }
}

/// A file, and when what stands in it expires.
type Read = (String, Result<Vec<Sample>>);

/// A monitor of certificates.
pub struct Target {
    name: String,
    tls: Tls,
    timeout: Duration,
    reading: Option<JoinHandle<Vec<Read>>>,
}

/// A monitor that has seen nothing yet.
pub fn open(name: &str, tls: &Tls, timeout: Duration) -> Target {
    Target { name: name.to_owned(), tls: tls.clone(), timeout, reading: None }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let (mut samples, mut concerns) = (Vec::new(), Vec::new());
        if !self.tls.files.is_empty() {
            let failure = self.files(&mut samples).await.err();
            if let Some(failure) =
                failure.as_ref().filter(|_| samples.is_empty() && self.tls.address.is_none())
            {
                return Err(failure.clone());
            }
            concerns.push(Concern { name: "files", failure });
        }
        if self.tls.address.is_some() {
            match self.handshake().await {
                Ok(found) => {
                    samples.extend(found);
                    concerns.push(Concern { name: "handshake", failure: None });
                }
                // Files tell something also while the server is down.
                Err(failure) if samples.is_empty() => return Err(failure),
                Err(failure) => concerns.push(Concern { name: "handshake", failure: Some(failure) }),
            }
        }
        Ok(Collected { samples, concerns })
    }
}

impl Target {
    /// What the files say; outside, what is the matter with the first one that is broken.
    async fn files(&mut self, samples: &mut Vec<Sample>) -> Result<(), Failure> {
        if self.reading.as_ref().is_some_and(|reading| !reading.is_finished()) {
            let error = Error::new("a file has not been read since the last time; its disk hangs");
            return Err(Failure::new(Reason::Timeout, error));
        }
        let (files, ca_file) = (self.tls.files.clone(), self.tls.ca_file.clone());
        let reading = self.reading.insert(tokio::task::spawn_blocking(move || {
            // Without them, every certificate of a file counts.
            let authorities = trust::authorities(ca_file.as_deref()).ok();
            let read = |file: PathBuf| {
                let source = file.display().to_string();
                let found = pem::certificates(&file, "certificates");
                let found = found.and_then(|found| of_file(&source, &found, authorities.as_ref()));
                (source, found)
            };
            files.into_iter().map(read).collect()
        }));
        let read = reading.await.map_err(|e| Failure::new(Reason::Internal, Error::new(e)));
        self.reading = None;
        let mut broken = Ok(());
        for (source, found) in read? {
            match found {
                Ok(found) => {
                    samples.push(Sample::new(&metrics::TLS_FILE_UP, [&source], 1.0));
                    samples.extend(found);
                }
                Err(error) => {
                    samples.push(Sample::new(&metrics::TLS_FILE_UP, [&source], 0.0));
                    broken = broken.and(Err(Failure::new(Reason::Refused, error)));
                }
            }
        }
        broken
    }

    async fn handshake(&self) -> Result<Vec<Sample>, Failure> {
        let Some(address) = &self.tls.address else { return Ok(Vec::new()) };
        let internal = |error: Error| Failure::new(Reason::Internal, error);
        let inner = trust::verifier(self.tls.ca_file.as_deref()).map_err(internal)?;
        let witness = Arc::new(Witness { inner: inner.clone(), seen: Mutex::default() });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| internal(Error::new(e)))?
            .dangerous()
            .with_custom_certificate_verifier(witness.clone())
            .with_no_client_auth();
        // A resumed session shows no certificate.
        config.resumption = rustls::client::Resumption::disabled();
        let name = self.tls.server_name.as_deref().unwrap_or(&address.host).to_owned();
        let name = ServerName::try_from(name).map_err(|e| internal(Error::new(e)))?;
        let started = Instant::now();
        let stream = tcp::connect(address, self.timeout).await?;
        let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        let took = started.elapsed().as_secs_f64();
        let seen = witness.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut samples = Vec::new();
        match (&shaken, &seen) {
            // A server that wants a client's certificate has shown its own all the same.
            (Err(error), None) => {
                let error = Error::new(error).context(format!("cannot shake hands with {address}"));
                return Err(Failure::new(Reason::Tls, error));
            }
            (Err(_), Some(_)) => {}
            (Ok(stream), _) => {
                samples.push(Sample::plain(&metrics::TLS_HANDSHAKE, took));
                if let Some(version) = stream.get_ref().1.protocol_version() {
                    let version = version.as_str().unwrap_or("unknown").replace("TLSv1_", "1.");
                    samples.push(Sample::new(&metrics::TLS_PROTOCOL, [&version], 1.0));
                }
            }
        }
        if let Some((chain, state)) = seen {
            samples.extend(states(&metrics::TLS_VERIFICATION_STATE, &[], state));
            let found = of_chain("handshake", &chain, Some(inner.authorities()), |_| false);
            samples.extend(found.map_err(|error| Failure::new(Reason::Protocol, error))?);
        }
        Ok(samples)
    }
}

/// Those of a file, in which other certificates than the first may be somebody's own, too.
fn of_file(
    source: &str,
    chain: &[CertificateDer<'_>],
    authorities: Option<&Authorities>,
) -> Result<Vec<Sample>> {
    of_chain(source, chain, authorities, |certificate| !is_authority(certificate))
}

/// Expiry of each certificate, and of what is verified of them: where the first one is, what ends that, and of the
/// others those that count by themselves. Where nothing is, the first to expire.
fn of_chain(
    source: &str,
    chain: &[CertificateDer<'_>],
    authorities: Option<&Authorities>,
    counts: impl Fn(&CertificateDer<'_>) -> bool,
) -> Result<Vec<Sample>> {
    let verified = chain
        .split_first()
        .zip(authorities)
        .and_then(|((own, others), authorities)| authorities.valid_until(own, others, UnixTime::now()));
    let mut samples = Vec::new();
    let mut first = verified.map_or(f64::INFINITY, |until| until.as_secs_f64());
    for (position, certificate) in chain.iter().enumerate() {
        let shown = trust::shown(certificate)?;
        let expiry = shown.not_after.as_secs_f64();
        if verified.is_none() || counts(certificate) {
            first = first.min(expiry);
        }
        let labels = [source, &position.to_string(), &shown.subject];
        samples.push(Sample::new(&metrics::TLS_CERTIFICATE_EXPIRY_TIMESTAMP, labels, expiry));
    }
    samples.push(Sample::new(&metrics::TLS_EXPIRY_TIMESTAMP, [source], first));
    Ok(samples)
}

/// Looks at the certificates, remembers what is thought of them, and lets the handshake go on.
#[derive(Debug)]
struct Witness {
    inner: Arc<Verifier>,
    seen: Mutex<Option<(Vec<CertificateDer<'static>>, &'static str)>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let chain = std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned());
        let state = verdict.as_ref().map_or_else(state, |_| "verified");
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((chain.collect(), state));
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

fn state(error: &rustls::Error) -> &'static str {
    use CertificateError as C;
    if is_version_1(error) {
        return "version_1";
    }
    let rustls::Error::InvalidCertificate(certificate) = error else { return "invalid" };
    match certificate {
        C::Expired | C::ExpiredContext { .. } => "expired",
        C::NotValidYet | C::NotValidYetContext { .. } => "not_yet_valid",
        C::UnknownIssuer => "unknown_issuer",
        C::NotValidForName | C::NotValidForNameContext { .. } => "wrong_name",
        _ => "invalid",
    }
}

/// `verified, expires 2026-11-21`.
pub fn headline(samples: &[Sample]) -> String {
    let of = |metric: &'static Metric| samples.iter().filter(move |sample| sample.metric == metric);
    let state = of(&metrics::TLS_VERIFICATION_STATE).find(|sample| sample.value == 1.0);
    let mut parts: Vec<String> =
        state.and_then(|s| s.label("state")).map(str::to_owned).into_iter().collect();
    let first = of(&metrics::TLS_EXPIRY_TIMESTAMP).map(|sample| sample.value).reduce(f64::min);
    if let Some(time) = first.and_then(|time| chrono::DateTime::from_timestamp(time as i64, 0)) {
        parts.push(format!("first expires {}", time.format("%Y-%m-%d")));
    }
    parts.join(", ")
}
