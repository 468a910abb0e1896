//! Certificates of the tests' own making, expiring when a test wants it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::opsd::write_private;

/// A certificate with its key.
pub struct Pair {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

/// An authority, and what it signs.
pub struct Authority {
    params: CertificateParams,
    pub pair: Pair,
}

/// Days from now, as seconds since 1970.
pub fn in_days(days: i64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    now.checked_add_signed(days * 86_400).expect("a time")
}

fn params(names: &[&str], subject: &str, not_after: u64) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).expect("names");
    // It begins long ago, which is a number to count from.
    let since = not_after.checked_add_signed(-params.not_before.unix_timestamp()).expect("a time");
    params.not_after = params.not_before + Duration::from_secs(since);
    params.distinguished_name.push(DnType::CommonName, subject);
    params
}

impl Authority {
    /// An authority that expires then.
    pub fn new(subject: &str, not_after: u64) -> Authority {
        let mut params = params(&[], subject, not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        Authority { params, pair: Pair { certificate, key } }
    }

    /// A certificate for these names, or for a client where there is none, that expires then.
    pub fn sign(&self, names: &[&str], subject: &str, not_after: u64) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.pair.key);
        let certificate = params(names, subject, not_after).signed_by(&key, &issuer).expect("signed");
        Pair { certificate, key }
    }
}

impl Authority {
    /// A certificate for these names that begins to hold then, for a year.
    pub fn sign_from(&self, names: &[&str], subject: &str, not_before: u64) -> Pair {
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.pair.key);
        let mut params = params(names, subject, not_before);
        params.not_before = params.not_after;
        params.not_after += Duration::from_secs(365 * 86_400);
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        Pair { certificate, key }
    }
}

impl Authority {
    /// The same authority, name and key, as another one signed it.
    pub fn cross_signed(&self, by: &Authority, not_after: u64) -> Pair {
        let key = KeyPair::from_pem(&self.pair.key.serialize_pem()).expect("a key");
        let issuer = Issuer::from_params(&by.params, &by.pair.key);
        let mut params = self.params.clone();
        params.not_after = params.not_before
            + Duration::from_secs(
                not_after.checked_add_signed(-params.not_before.unix_timestamp()).expect("a time"),
            );
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        Pair { certificate, key }
    }
}

impl Pair {
    /// Writes the certificate, with those that follow it in its chain, and the key.
    pub fn write(&self, certificate: &Path, key: &Path, chain: &[&Pair]) {
        let others: String = chain.iter().map(|pair| pair.certificate.pem()).collect();
        std::fs::write(certificate, self.certificate.pem() + &others).expect("write a certificate");
        write_private(key, &self.key.serialize_pem());
    }
}
