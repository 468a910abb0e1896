//! `mqtt = { … }`: how to reach a broker, and with what.

use std::path::PathBuf;

use super::SecretSource;
use super::probes::{Tcp, host_and_port};
use crate::config::walk::{Section, Walk};

/// `mqtt = { … }`.
#[derive(Debug, Clone)]
pub struct Mqtt {
    /// Where it is.
    pub address: Tcp,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// What the client is called; absent means another name each time.
    pub client_id: Option<String>,
    /// User name.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<SecretSource>,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Which name must be in the broker's certificate, where it is not the host's.
    pub server_name: Option<String>,
    /// Where a message is published and read back; absent means that none is.
    pub topic: Option<String>,
    /// Whether the broker's own figures are read.
    pub sys: bool,
}

/// Where round trips are made unless told otherwise; the client's own name follows.
const TOPIC: &str = "opsd/probe";

pub(super) fn mqtt(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Mqtt> {
    const FORMS: &str = "as in \"mqtt://HOST:1883\", or \"mqtts://HOST:8883\" with TLS";
    let section = walk.section(monitor, "mqtt")?;
    walk.only(
        &section,
        &[
            "url",
            "client_id",
            "user",
            "password",
            "password_file",
            "ca_file",
            "cert_file",
            "key_file",
            "server_name",
            "topic",
            "round_trip",
            "sys",
        ],
    );
    let user = walk.filled(&section, "user").map(|text| text.value);
    let password = super::secret(walk, &section, "password", "password_file");
    if password.is_some() && !section.has("user") {
        walk.missing(&section, "user", "a password needs the name of its user");
    }
    let ca_file = walk.path(&section, "ca_file").map(|(_, path)| path);
    let cert = walk.path(&section, "cert_file").map(|(_, path)| path);
    let key = walk.secret_file(&section, "key_file").map(|(_, path)| path);
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if section.has(one) && !section.has(other) {
            walk.missing(&section, other, "a client certificate needs cert_file and key_file");
        }
    }
    let server_name = walk.filled(&section, "server_name");
    if let Some(name) = &server_name
        && rustls::pki_types::ServerName::try_from(name.value.as_str()).is_err()
    {
        walk.mistake(&name.place, "is no name of a server", "as in \"broker.example.org\"");
    }
    let mut topic = TOPIC.to_owned();
    if let Some(text) = walk.filled(&section, "topic") {
        if text.value.contains(['#', '+', '\0']) || text.value.starts_with('$') || text.value.len() > 1000 {
            walk.mistake(&text.place, "is no topic that one can publish to", "as in \"opsd/probe\"");
        }
        topic = text.value;
    }
    let client_id = walk.filled(&section, "client_id");
    if let Some(text) = client_id.as_ref().filter(|text| text.value.len() > 1000 || text.value.contains('\0'))
    {
        walk.mistake(&text.place, "is no name of a client", "as in \"opsd-site-1\"");
    }
    let round_trip = walk.boolean(&section, "round_trip").unwrap_or(true);
    let sys = walk.boolean(&section, "sys").unwrap_or(true);
    let Some(url) = walk.filled(&section, "url") else {
        if !section.has("url") {
            walk.missing(&section, "url", FORMS);
        }
        return None;
    };
    let (rest, tls) = match url.value.strip_prefix("mqtts://") {
        Some(rest) => (rest, true),
        None => (url.value.strip_prefix("mqtt://").unwrap_or_default(), false),
    };
    let rest = rest.trim_end_matches('/');
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let whole = match (has_port, tls) {
        (true, _) => rest.to_owned(),
        (false, true) => format!("{rest}:8883"),
        (false, false) => format!("{rest}:1883"),
    };
    let address = if rest.contains('@') {
        let hint = "write user and password_file beside it";
        walk.mistake(&url.place, "credentials do not belong into the URL", hint);
        None
    } else {
        let address = host_and_port(&whole);
        if address.is_none() {
            walk.mistake(&url.place, "is no URL of a broker", FORMS);
        }
        address
    };
    if !tls {
        for key in ["ca_file", "cert_file", "server_name"] {
            if section.has(key) {
                let place = walk.place(&section, key);
                walk.mistake(&place, "has no meaning without TLS", "write mqtts:// instead of mqtt://");
            }
        }
    }
    Some(Mqtt {
        address: address?,
        tls,
        client_id: client_id.map(|text| text.value),
        user,
        password,
        ca_file,
        client: cert.zip(key),
        server_name: server_name.map(|name| name.value),
        topic: round_trip.then_some(topic),
        sys,
    })
}
