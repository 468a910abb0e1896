//! `[redis.NAME]`: where a Redis or Valkey server is, who opsd is there, and whom it trusts.
//!
//! Files are named here and read by whoever connects. Deliberately absent: clusters and Sentinels; a
//! monitor watches one server, by its own address.

use std::path::PathBuf;

use super::super::raw;
use super::super::secret::Secret;
use super::super::walk::{Section, Walk};
use super::SecretSource;

/// One `[redis.NAME]`.
#[derive(Debug, Clone)]
pub struct Redis {
    /// Name in the configuration.
    pub name: String,
    /// Where it is.
    pub address: RedisAddress,
    /// Number of the database.
    pub database: u32,
    /// ACL user; absent means `default`.
    pub user: Option<String>,
    /// Its password, from the URL or `password_file`.
    pub password: Option<SecretSource>,
    /// Certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether it is a cache, whose misses matter; absent means that its policy tells.
    pub cache: Option<bool>,
}

/// Where a Redis server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAddress {
    /// `redis://` or `rediss://` (with TLS).
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
        /// Whether the connection is encrypted.
        tls: bool,
    },
    /// `unix:///path`.
    Unix(PathBuf),
}

/// `host:port`, or the socket's path.
impl std::fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RedisAddress::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            RedisAddress::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Reads one `[redis.NAME]`.
pub(in crate::config) fn redis(walk: &mut Walk<'_>, section: &Section<'_>, name: &str) -> Option<Redis> {
    const FORMS: &str =
        "as in redis://HOST:6379/0, rediss://USER:${PASSWORD}@HOST:6380/0 or unix:///run/redis.sock";
    walk.only(section, &["url", "user", "password_file", "ca_file", "cert_file", "key_file", "cache"]);
    let password_file = walk.secret_file(section, "password_file");
    let cache = walk.boolean(section, "cache");
    let Some(mut url) = walk.filled(section, "url") else {
        if !section.has("url") {
            walk.missing(section, "url", FORMS);
        }
        return None;
    };
    let value = url.take();
    let Some(parts) = RedisUrl::parse(&value) else {
        walk.mistake(&url.place, "is no URL of a Redis server", FORMS);
        return None;
    };
    let (mut user, mut password) = (parts.user, None);
    if let Some(name) = walk.filled(section, "user") {
        if user.is_some() {
            walk.mistake(&name.place, "stands beside the URL's user", "give one of the two");
        }
        user = Some(name.value);
    }
    if let Some(text) = parts.password {
        if url.literal {
            walk.advise(
                &url.place,
                raw::PASSWORD_STANDS_HERE,
                Some("keep it in a ${VARIABLE} or in password_file"),
            );
        }
        password = Some(SecretSource::Value(Secret::new(text)));
    }
    if let Some((place, path)) = password_file {
        if password.is_some() {
            walk.mistake(&place, "stands beside the URL's password", "give one of the two");
        }
        password = Some(SecretSource::File(path));
    }
    if let (Some(_), None) = (&user, &password) {
        walk.mistake(
            &url.place,
            "names a user without a password",
            "add password_file, or USER:${PASSWORD}@",
        );
    }
    let tls = matches!(parts.address, RedisAddress::Tcp { tls: true, .. });
    for key in ["ca_file", "cert_file", "key_file"] {
        if section.has(key) && !tls {
            let place = walk.place(section, key);
            walk.mistake(&place, "has no meaning without TLS", "write the URL as rediss://…, or remove it");
        }
    }
    let ca_file = walk.path(section, "ca_file").map(|(_, path)| path);
    let client = match (walk.path(section, "cert_file"), walk.secret_file(section, "key_file")) {
        (Some((_, cert)), Some((_, key))) => Some((cert, key)),
        (None, None) => None,
        (Some((place, _)), None) | (None, Some((place, _))) => {
            walk.mistake(&place, "stands alone", "a client certificate needs both cert_file and key_file");
            None
        }
    };
    Some(Redis {
        name: name.into(),
        address: parts.address,
        database: parts.database,
        user,
        password,
        ca_file,
        client,
        cache,
    })
}

struct RedisUrl {
    address: RedisAddress,
    database: u32,
    user: Option<String>,
    password: Option<String>,
}

impl RedisUrl {
    fn parse(url: &str) -> Option<Self> {
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
        };
        if let Some(path) = url.strip_prefix("unix://") {
            let (path, database) = match path.split_once("?db=") {
                Some((path, number)) => (path, number.parse().ok()?),
                None => (path, 0),
            };
            let plain = path.starts_with('/') && !path.contains(['?', '@', '\0']);
            let address = plain.then(|| RedisAddress::Unix(path.into()))?;
            return Some(Self { address, database, user: None, password: None });
        }
        let (rest, tls) = match url.strip_prefix("rediss://") {
            Some(rest) => (rest, true),
            None => (url.strip_prefix("redis://")?, false),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let database = if path.is_empty() { 0 } else { path.parse().ok()? };
        let (user, password, place) = match authority.rsplit_once('@') {
            None => (None, None, authority),
            Some((info, place)) => {
                let (user, password) = info.split_once(':').unwrap_or(("", info));
                (Some(decode(user)?), Some(decode(password)?), place)
            }
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (place, 6379),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || "?#/".contains(c))
        {
            return None;
        }
        Some(Self {
            address: RedisAddress::Tcp { host: host.into(), port, tls },
            database,
            user: user.filter(|user| !user.is_empty()),
            password: password.filter(|password| !password.is_empty()),
        })
    }
}
