//! Who may read: nobody else's requests are answered. Compared in constant time, by hashes, so that
//! neither the secret's text nor its length shows in how long it takes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::config::monitoring::Auth;
use crate::error::Result;

/// What a request must bring.
pub enum Gate {
    /// Nothing.
    Open,
    /// `Authorization: Basic …` of these credentials.
    Basic([u8; 32]),
    /// `Authorization: Bearer …` of this token.
    Bearer([u8; 32]),
}

impl Gate {
    /// Reads the secrets; a file that cannot be read is an error now, not at the first request.
    pub fn open(auth: &Auth) -> Result<Self> {
        Ok(match auth {
            Auth::None => Gate::Open,
            Auth::Basic { user, password } => {
                Gate::Basic(hash(format!("{user}:{}", password.read()?.expose()).as_bytes()))
            }
            Auth::Bearer(token) => Gate::Bearer(hash(token.read()?.expose().as_bytes())),
        })
    }

    /// Whether a request with this `Authorization` may pass.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let (scheme, wanted) = match self {
            Gate::Open => return true,
            Gate::Basic(wanted) => ("basic", wanted),
            Gate::Bearer(wanted) => ("bearer", wanted),
        };
        let Some(given) = authorization.and_then(|text| credentials(text, scheme)) else { return false };
        let given = match self {
            Gate::Basic(_) => match BASE64.decode(given) {
                Ok(given) => hash(&given),
                Err(_) => return false,
            },
            _ => hash(given),
        };
        given.ct_eq(wanted).into()
    }

    /// What a refused client is told to bring.
    pub fn challenge(&self) -> &'static str {
        match self {
            Gate::Basic(_) => "Basic realm=\"opsd\", charset=\"UTF-8\"",
            _ => "Bearer realm=\"opsd\"",
        }
    }
}

/// What follows the scheme, whose name has no case.
fn credentials<'a>(header: &'a [u8], scheme: &str) -> Option<&'a [u8]> {
    let (name, rest) = header.split_at_checked(scheme.len())?;
    (name.eq_ignore_ascii_case(scheme.as_bytes()) && rest.starts_with(b" ")).then(|| rest.trim_ascii())
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::monitoring::SecretSource;
    use crate::config::secret::Secret;

    fn value(text: &str) -> SecretSource {
        SecretSource::Value(Secret::new(text))
    }

    #[test]
    fn only_the_right_credentials_pass() {
        let basic = Gate::open(&Auth::Basic { user: "u".into(), password: value("p:w") }).unwrap();
        let header = |text: &str| format!("Basic {}", BASE64.encode(text)).into_bytes();
        assert!(basic.admits(Some(&header("u:p:w"))));
        assert!(basic.admits(Some(&[b"bAsIc ", BASE64.encode("u:p:w").as_bytes()].concat())));
        for bad in ["u:p", "u:p:w ", "v:p:w", "", "u"] {
            assert!(!basic.admits(Some(&header(bad))), "{bad}");
        }
        for bad in [&b"Basic"[..], b"Basic ", b"Basic !!!", b"Bearer p:w", b""] {
            assert!(!basic.admits(Some(bad)));
        }
        assert!(!basic.admits(None));

        let bearer = Gate::open(&Auth::Bearer(value("token"))).unwrap();
        assert!(bearer.admits(Some(b"Bearer token")));
        assert!(!bearer.admits(Some(b"Bearer toke")));
        assert!(!bearer.admits(Some(b"Bearertoken")));
        assert!(!bearer.admits(Some(b"token")) && !bearer.admits(None));
        assert!(Gate::Open.admits(None));
    }
}
