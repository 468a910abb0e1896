//! libpq's `require_auth` and `channel_binding`: by which methods a server may ask who one is.

use super::units;
use crate::error::Error;

/// How a password is sent that may be. Servers that ask a directory (`ldap`, `pam`, `radius`) want it in clear.
pub const ALLOW_CLEAR: &str = "use sslmode=verify-full with sslrootcert; if whoever answers may have the password, \
     say so with both an sslmode and require_auth=password";

/// What a server asks for; libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// The password itself.
    Password,
    /// A hash that whoever listens can guess from.
    Md5,
    /// GSSAPI, which opsd does not speak.
    Gss,
    /// SSPI, which opsd does not speak.
    Sspi,
    /// SCRAM, with or without channel binding.
    ScramSha256,
    /// A bearer token, which opsd does not speak.
    OAuth,
    /// Nothing: the server trusts, or has recognised a certificate or the user of a socket.
    None,
}

impl AuthMethod {
    const ALL: [AuthMethod; 7] = [
        AuthMethod::Password,
        AuthMethod::Md5,
        AuthMethod::Gss,
        AuthMethod::Sspi,
        AuthMethod::ScramSha256,
        AuthMethod::OAuth,
        AuthMethod::None,
    ];

    /// Those that the first libpq with `require_auth` knows.
    const OF_LIBPQ_16: [AuthMethod; 6] = [
        AuthMethod::Password,
        AuthMethod::Md5,
        AuthMethod::Gss,
        AuthMethod::Sspi,
        AuthMethod::ScramSha256,
        AuthMethod::None,
    ];

    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Password => "password",
            AuthMethod::Md5 => "md5",
            AuthMethod::Gss => "gss",
            AuthMethod::Sspi => "sspi",
            AuthMethod::ScramSha256 => "scram-sha-256",
            AuthMethod::OAuth => "oauth",
            AuthMethod::None => "none",
        }
    }
}

/// A list of methods that a server may ask for, or of those that it may not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequireAuth {
    methods: Vec<AuthMethod>,
    is_negated: bool,
}

impl RequireAuth {
    /// Reads `scram-sha-256,md5` or `!password,!none`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let known = || AuthMethod::ALL.iter().map(|method| method.as_str());
        let mut methods = Vec::new();
        let mut negated = 0;
        for word in text.split(',').map(str::trim) {
            let name = word.strip_prefix('!').unwrap_or(word);
            negated += usize::from(name != word);
            let Some(method) = AuthMethod::ALL.into_iter().find(|method| method.as_str() == name) else {
                let hint = units::meant(name, known());
                return Err(Error::usage("require_auth has an unknown method").with_hint(hint));
            };
            if methods.contains(&method) {
                return Err(
                    Error::usage(format!("require_auth names {name} twice")).with_hint("leave one out")
                );
            }
            methods.push(method);
        }
        if negated != 0 && negated != methods.len() {
            return Err(Error::usage("require_auth mixes methods with and without !")
                .with_hint("name those that are allowed, or with ! those that are not"));
        }
        Ok(Self { methods, is_negated: negated != 0 })
    }

    /// Whether a server may ask for this.
    pub fn permits(&self, method: AuthMethod) -> bool {
        self.methods.contains(&method) != self.is_negated
    }

    /// A list, or every method where there is no list, without one of the methods.
    pub(super) fn without(list: Option<&Self>, method: AuthMethod) -> Self {
        let (mut methods, is_negated) = match list {
            Some(list) => (list.methods.clone(), list.is_negated),
            None => (Vec::new(), true),
        };
        methods.retain(|other| *other != method);
        if is_negated {
            methods.push(method);
        }
        if methods.is_empty() {
            // Nothing is left, and libpq takes an empty list for none.
            return Self { methods: AuthMethod::OF_LIBPQ_16.to_vec(), is_negated: true };
        }
        Self { methods, is_negated }
    }

    /// Whether the method itself is named as allowed.
    pub fn names(&self, method: AuthMethod) -> bool {
        !self.is_negated && self.methods.contains(&method)
    }
}

impl std::fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.is_negated { "!" } else { "" };
        let words: Vec<String> = self.methods.iter().map(|m| format!("{sign}{}", m.as_str())).collect();
        f.write_str(&words.join(","))
    }
}

/// libpq's `channel_binding`: whether SCRAM must be bound to the TLS connection that it goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where both ends can.
    Prefer,
    /// Always: whoever stands between with a certificate of its own cannot pass SCRAM on.
    Require,
}

impl ChannelBinding {
    const ALL: [ChannelBinding; 3] =
        [ChannelBinding::Disable, ChannelBinding::Prefer, ChannelBinding::Require];

    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelBinding::Disable => "disable",
            ChannelBinding::Prefer => "prefer",
            ChannelBinding::Require => "require",
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text).ok_or_else(|| {
            let hint = units::meant(text, Self::ALL.iter().map(|mode| mode.as_str()));
            Error::usage("unknown channel_binding").with_hint(hint)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_or_excluded_as_libpq_has_it() {
        let only = RequireAuth::parse("scram-sha-256, none").unwrap();
        assert!(only.permits(AuthMethod::ScramSha256) && only.permits(AuthMethod::None));
        assert!(!only.permits(AuthMethod::Password) && !only.permits(AuthMethod::Md5));
        assert_eq!(only.to_string(), "scram-sha-256,none");
        let but = RequireAuth::parse("!password,!md5").unwrap();
        assert!(but.permits(AuthMethod::ScramSha256) && !but.permits(AuthMethod::Md5));
        assert!(!but.names(AuthMethod::ScramSha256));
        assert_eq!(but.to_string(), "!password,!md5");
        for (list, left) in [
            (None, "!password"),
            (Some("!md5"), "!md5,!password"),
            (Some("!password"), "!password"),
            (Some("password,scram-sha-256"), "scram-sha-256"),
            (Some("scram-sha-256"), "scram-sha-256"),
            (Some("password"), "!password,!md5,!gss,!sspi,!scram-sha-256,!none"),
        ] {
            let list = list.map(|text| RequireAuth::parse(text).unwrap());
            let rest = RequireAuth::without(list.as_ref(), AuthMethod::Password);
            assert_eq!(rest.to_string(), left);
            assert!(!rest.permits(AuthMethod::Password));
        }
        for (text, expected) in [
            ("", "unknown method"),
            ("scram", "unknown method"),
            ("md5,!password", "mixes"),
            ("md5,md5", "twice"),
            ("!!md5", "unknown method"),
        ] {
            let error = RequireAuth::parse(text).unwrap_err();
            assert!(error.to_string().contains(expected) && error.hint().is_some(), "{text}: {error:?}");
        }
        assert_eq!(ChannelBinding::parse("require").unwrap(), ChannelBinding::Require);
        assert!(ChannelBinding::parse("requires").unwrap_err().hint().unwrap().contains("require"));
    }
}
