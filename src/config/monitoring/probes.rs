//! The keys of monitors that need no server of the configuration: `backups`, and the probes.

use std::path::PathBuf;
use std::time::Duration;

use super::Auth;
use crate::config::raw;
use crate::config::secret::Secret;
use crate::config::walk::{Place, Section, Walk};

/// `backups = { … }`.
#[derive(Debug, Clone, Default)]
pub struct Backups {
    /// Which jobs; empty means every job of the configuration and of the repository.
    pub jobs: Vec<String>,
    /// How old the newest set of a job may be whose own configuration does not say it.
    pub rpo: Option<Duration>,
}

pub(super) fn backups(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Backups> {
    let section = walk.section(monitor, "backups")?;
    walk.only(&section, &["jobs", "rpo"]);
    let mut backups = Backups::default();
    if let Some((place, jobs)) = walk.strings(&section, "jobs") {
        if jobs.is_empty() {
            walk.mistake(&place, "is an empty list", "leave it out for every job");
        }
        for job in jobs {
            if backups.jobs.contains(&job.value) {
                walk.mistake(&job.place, "this job is listed twice", "leave one of them out");
            } else if raw::name(walk, &job.place, &job.value) {
                backups.jobs.push(job.value);
            }
        }
    }
    if let Some((place, rpo)) = walk.duration(&section, "rpo") {
        super::positive(walk, &place, rpo);
        backups.rpo = Some(rpo);
    }
    Some(backups)
}

/// `http = { … }`.
#[derive(Debug, Clone)]
pub struct Http {
    /// What is asked for; its query may hold a token.
    pub url: Secret,
    /// The same without its query, for messages.
    pub shown: String,
    /// Who asks.
    pub auth: Auth,
    /// Statuses that are right.
    pub expect_status: Vec<u16>,
    /// What the body must hold.
    pub expect_body: Option<String>,
    /// JSON pointers and the value that must stand there, as text.
    pub expect_json: Vec<(String, String)>,
    /// JSON pointer to the object whose members are components; empty means the document itself.
    pub components: Option<String>,
    /// Redirects that are followed.
    pub max_redirects: usize,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// `tcp = { … }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `tls = { … }`.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Where a handshake is made.
    pub address: Option<Tcp>,
    /// Which name is asked for, and must be in the certificate.
    pub server_name: Option<String>,
    /// Authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files with certificates on disk.
    pub files: Vec<PathBuf>,
}

/// `host = { … }`.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Paths whose disks are watched, beside those that opsd needs.
    pub disks: Vec<PathBuf>,
}

/// Far above what any site needs; browsers stop at 20.
const REDIRECTS_MAX: i64 = 20;

pub(super) fn http(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Http> {
    const FORMS: &str = "as in \"https://example.org/health\"";
    let section = walk.section(monitor, "http")?;
    walk.only(
        &section,
        &[
            "url",
            "user",
            "password",
            "password_file",
            "bearer_token",
            "bearer_token_file",
            "expect_status",
            "expect_body",
            "expect_json",
            "components",
            "max_redirects",
            "ca_file",
        ],
    );
    let mut address = None;
    match walk.filled(&section, "url") {
        None if !section.has("url") => walk.missing(&section, "url", FORMS),
        None => {}
        Some(text) => match reqwest::Url::parse(&text.value) {
            Ok(url) if !["http", "https"].contains(&url.scheme()) || !url.has_host() => {
                walk.mistake(&text.place, "is neither http:// nor https://", FORMS);
            }
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                let hint = "write user and password_file, or bearer_token_file, beside it";
                walk.mistake(&text.place, "credentials do not belong into the URL", hint);
            }
            Ok(mut url) => {
                let whole = Secret::new(url.as_str());
                url.set_query(None);
                url.set_fragment(None);
                address = Some((whole, url.to_string()));
            }
            Err(error) => walk.mistake(&text.place, format!("is no URL: {error}"), FORMS),
        },
    }
    let auth = http_auth(walk, &section);
    let expect_status = statuses(walk, &section);
    let mut expect_json = Vec::new();
    if let Some(table) = walk.section(&section, "expect_json") {
        for key in table.names() {
            let place = walk.place(&table, &key);
            pointer(walk, &place, &key);
            if let Some(text) = walk.string(&table, &key) {
                expect_json.push((key, text.value));
            }
        }
    }
    let components = walk.filled(&section, "components").map(|text| {
        pointer(walk, &text.place, &text.value);
        if text.value == "/" { String::new() } else { text.value }
    });
    let expect_body = walk.filled(&section, "expect_body").map(|text| text.value);
    let redirects = walk.integer(&section, "max_redirects", 0..=REDIRECTS_MAX).unwrap_or(5);
    let ca_file = walk.path(&section, "ca_file").map(|(_, path)| path);
    let (url, shown) = address?;
    Some(Http {
        url,
        shown,
        auth,
        expect_status,
        expect_body,
        expect_json,
        components,
        max_redirects: usize::try_from(redirects).unwrap_or(0),
        ca_file,
    })
}

fn http_auth(walk: &mut Walk<'_>, section: &Section<'_>) -> Auth {
    let user = walk.filled(section, "user");
    let password = super::secret(walk, section, "password", "password_file");
    let bearer = super::secret(walk, section, "bearer_token", "bearer_token_file");
    match (user, password, bearer) {
        (None, None, Some(token)) => Auth::Bearer(token),
        (Some(user), Some(password), None) => Auth::Basic { user: user.value, password },
        (None, None, None) => Auth::None,
        (_, _, Some(_)) => {
            let place = walk.place(section, "bearer_token");
            walk.mistake(&place, "stands beside user and password", "give one of the two");
            Auth::None
        }
        (user, _, None) => {
            let missing = if user.is_some() { "password_file" } else { "user" };
            walk.missing(section, missing, "basic authentication needs user, and password or password_file");
            Auth::None
        }
    }
}

/// One number, or several as strings: `200`, or `["200", "204"]`.
fn statuses(walk: &mut Walk<'_>, section: &Section<'_>) -> Vec<u16> {
    if !section.is_list("expect_status") {
        let status = walk.integer(section, "expect_status", 100..=599).unwrap_or(200);
        return vec![u16::try_from(status).unwrap_or(200)];
    }
    let mut statuses = Vec::new();
    for text in walk.strings(section, "expect_status").into_iter().flat_map(|(_, texts)| texts) {
        match text.value.parse() {
            Ok(status) if (100..=599).contains(&status) => statuses.push(status),
            _ => walk.mistake(&text.place, "is no HTTP status", "as in [\"200\", \"204\"]"),
        }
    }
    statuses
}

fn pointer(walk: &mut Walk<'_>, place: &Place, text: &str) {
    if !text.starts_with('/') {
        walk.mistake(place, "is no JSON pointer", "as in \"/checks\" or \"/status\"; \"/\" is the document");
    }
}

pub(super) fn tcp(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Tcp> {
    let section = walk.section(monitor, "tcp")?;
    walk.only(&section, &["address"]);
    if !section.has("address") {
        walk.missing(&section, "address", "address = \"HOST:PORT\"");
    }
    address(walk, &section, "address")
}

fn address(walk: &mut Walk<'_>, section: &Section<'_>, key: &str) -> Option<Tcp> {
    let text = walk.filled(section, key)?;
    let found = host_and_port(&text.value);
    if found.is_none() {
        walk.mistake(&text.place, "is no host and port", "as in \"example.org:443\" or \"[::1]:443\"");
    }
    found
}

pub(super) fn host_and_port(text: &str) -> Option<Tcp> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || "/?#@[]".contains(c);
    (!host.is_empty() && !host.contains(is_odd)).then(|| Tcp { host: host.to_owned(), port })
}

pub(super) fn tls(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Tls> {
    let section = walk.section(monitor, "tls")?;
    walk.only(&section, &["address", "server_name", "ca_file", "files"]);
    let server_name = walk.filled(&section, "server_name");
    if let Some(name) = &server_name
        && rustls::pki_types::ServerName::try_from(name.value.as_str()).is_err()
    {
        walk.mistake(&name.place, "is no name of a server", "as in \"example.org\"");
    }
    let ca_file = walk.path(&section, "ca_file").map(|(_, path)| path);
    let files = walk.paths(&section, "files");
    if !section.has("address") {
        if !section.has("files") {
            walk.missing(&section, "address", "address = \"HOST:PORT\", or files = [\"/path/of/a.pem\"]");
        }
        if section.has("server_name") {
            let place = walk.place(&section, "server_name");
            walk.mistake(&place, "has no meaning without an address", "add address, or remove it");
        }
    }
    let address = address(walk, &section, "address");
    Some(Tls { address, server_name: server_name.map(|name| name.value), ca_file, files })
}

pub(super) fn host(walk: &mut Walk<'_>, monitor: &Section<'_>) -> Option<Host> {
    let section = walk.section(monitor, "host")?;
    walk.only(&section, &["disks"]);
    Some(Host { disks: walk.paths(&section, "disks") })
}
