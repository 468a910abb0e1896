//! The AWS SDK's client as opsd wants it: TLS, credentials, region, connections.
//!
//! Its retries, and its bounds on requests, are off: `super::retry` and `super::attempt` have them.
//! Deliberately absent: dual-stack and FIPS end points, and anything that the SDK's own
//! environment variables already decide.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::future;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, ProvideCredentials, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::{Connector, tls};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Access;
use super::bounded::bounded;
use super::proxy::Proxy;
use crate::config::Repository;
use crate::store::StoreError;

/// A host that does not answer a SYN for this long is down, or the packets are dropped.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that were idle for longer are not used again: after a fail-over nobody may be at their
/// other end, and every attempt on one of them is lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Finding credentials may ask an instance metadata service that does not exist; it must not take
/// long to find that out.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(8);

/// How long before they expire credentials are asked for anew, of which the SDK takes between a half and all.
/// The store's clock decides when they have expired, and may be ahead of this machine's; and a part may be on
/// its way for a while.
const REFRESH_BEFORE: Duration = Duration::from_secs(120);

/// What stores other than AWS sign for when they are not told.
const DEFAULT_REGION: &str = "us-east-1";

/// Whoever has the credentials, and a note whether the last ones expire: then he has others later.
#[derive(Debug)]
struct Noting {
    inner: SharedCredentialsProvider,
    expire: Arc<AtomicBool>,
}

impl ProvideCredentials for Noting {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let credentials = self.inner.provide_credentials().await?;
            self.expire.store(credentials.expiry().is_some(), Ordering::Relaxed);
            Ok(credentials)
        })
    }
}

/// A client as it was built.
pub(super) struct Built {
    pub client: Client,
    /// The region that it signs for.
    pub region: String,
    /// Whether the credentials that it has now expire.
    pub credentials_expire: Arc<AtomicBool>,
}

/// A client for the repository's store.
pub(super) async fn build(
    repository: &Repository,
    access: &Access,
    proxy: Option<&Proxy>,
) -> Result<Built, StoreError> {
    let http = bounded(http_client(proxy)?);
    let identities =
        IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT).buffer_time(REFRESH_BEFORE).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .identity_cache(identities);
    // Some S3-compatible stores refuse checksums: they are sent where the probe says so, not
    // because the SDK's defaults do.
    loader = loader
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    loader = match (&repository.region, &repository.endpoint) {
        (Some(region), _) => loader.region(Region::new(region.clone())),
        // Without the last word the SDK would ask an instance metadata service for the region.
        (None, Some(_)) => loader.region(
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(ProfileFileRegionProvider::new())
                .or_else(Region::new(DEFAULT_REGION)),
        ),
        (None, None) => loader,
    };
    if let Access::Static { access_key, secret_key } = access {
        loader = loader.credentials_provider(Credentials::new(
            access_key,
            secret_key.expose(),
            None,
            None,
            "opsd-static",
        ));
    }
    let shared = loader.load().await;
    let Some(region) = shared.region().map(ToString::to_string) else {
        return Err(StoreError::Other(
            "no region: set repository.region, AWS_REGION, or region in the AWS profile".to_owned(),
        ));
    };
    let mut config = aws_sdk_s3::config::Builder::from(&shared).force_path_style(repository.path_style);
    if let Some(endpoint) = &repository.endpoint {
        // The SDK puts the bucket's name right behind it.
        config = config.endpoint_url(format!("{}/", endpoint.trim_end_matches('/')));
    }
    let credentials_expire = Arc::new(AtomicBool::new(false));
    if let Some(inner) = shared.credentials_provider() {
        config = config.credentials_provider(Noting { inner, expire: credentials_expire.clone() });
    }
    Ok(Built { client: Client::from_conf(config.build()), region, credentials_expire })
}

/// HTTP over rustls with the certificate authorities of `AWS_CA_BUNDLE` if it is set (and only
/// those, as the other AWS tools do), else those of the system.
fn http_client(proxy: Option<&Proxy>) -> Result<SharedHttpClient, StoreError> {
    let bundle = crate::config::environment("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
    let trust = match bundle {
        Some(path) => {
            let pem = std::fs::read(&path)
                .map_err(|e| StoreError::Other(format!("cannot read AWS_CA_BUNDLE {path}: {e}")))?;
            check_bundle(&pem).map_err(|why| StoreError::Other(format!("AWS_CA_BUNDLE {path}: {why}")))?;
            tls::TrustStore::empty().with_pem_certificate(pem)
        }
        None => {
            // The SDK insists on finding some; a machine without any can still use plain HTTP.
            let any = !rustls_native_certs::load_native_certs().certs.is_empty();
            tls::TrustStore::default().with_native_roots(any)
        }
    };
    let context = tls::TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| StoreError::Other(format!("cannot set up TLS: {e}")))?;
    let proxy = proxy.map_or_else(ProxyConfig::disabled, |proxy| proxy.config.clone());
    // A builder of clients takes no proxy, one of connectors does.
    Ok(aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .tls_context(context.clone())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .proxy_config(proxy.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.build()
    }))
}

/// The SDK panics on certificates that it cannot read, so they are read here first.
fn check_bundle(pem: &[u8]) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("not PEM: {e}"))?;
        roots.add(certificate).map_err(|e| format!("not a certificate: {e}"))?;
    }
    if roots.is_empty() { Err("no certificate in it".to_owned()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_none_is_refused() {
        assert!(check_bundle(b"").is_err());
        assert!(check_bundle(b"hello").is_err());
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(check_bundle(junk).is_err());
    }
}
