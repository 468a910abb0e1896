//! Connection settings the way libpq finds them, resolved once for tokio-postgres and for the
//! client tools alike.
//!
//! In order of precedence: the URL or key=value string, the service file, `PG*` variables, then
//! libpq's defaults; a password that none of them has comes from `~/.pgpass`. The supported keys are
//! [`SUPPORTED`]; every other key of libpq's is refused by name, because following half of a
//! security setting is worse than refusing it. Messages never quote what they could not parse: it
//! may be a piece of a password. Deliberately absent: LDAP service lookups, Kerberos, and different
//! passwords for different hosts of one connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::require_auth::{AuthMethod, ChannelBinding, RequireAuth};
use super::secret::Secret;
use super::units;
use super::walk::Env;
use super::{Connection, Route, SslMode};
use crate::error::{Error, Result};
use crate::regular_file;

mod dsn;
mod files;

/// Supported keys, each with its environment variable.
pub const SUPPORTED: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("dbname", "PGDATABASE"),
    ("sslmode", "PGSSLMODE"),
    ("require_auth", "PGREQUIREAUTH"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
];

/// Keys of libpq's that are refused, with their variable where it has one that matters. Variables
/// that only change a session's habits (`PGAPPNAME`, `PGTZ`, …) are ignored: opsd sets what matters
/// itself, and no client tool inherits them.
const REFUSED: &[(&str, &str)] = &[
    ("application_name", ""),
    ("client_encoding", ""),
    ("fallback_application_name", ""),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("gsslib", "PGGSSLIB"),
    ("hostaddr", "PGHOSTADDR"),
    ("keepalives", ""),
    ("keepalives_count", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION"),
    ("oauth_client_id", ""),
    ("oauth_client_secret", ""),
    ("oauth_issuer", ""),
    ("oauth_scope", ""),
    ("replication", ""),
    ("requirepeer", "PGREQUIREPEER"),
    ("requiressl", "PGREQUIRESSL"),
    ("scram_client_key", ""),
    ("scram_server_key", ""),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslkeylogfile", ""),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslpassword", ""),
    ("sslsni", "PGSSLSNI"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("tcp_user_timeout", ""),
];

/// Bound on connecting to one host where the operator names none (libpq would wait for ever).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What resolving found.
#[derive(Debug)]
pub struct Resolved {
    /// The settings.
    pub connection: Connection,
    /// What the operator should know: an ignored password file, for one.
    pub warnings: Vec<String>,
    /// Whether the password stood in the string itself.
    pub password_in_dsn: bool,
}

/// `dbname='…'` for tools that want a database on their command line (`pg_restore -d`), quoted so
/// that no name is taken for settings.
pub fn dbname_argument(dbname: &str) -> String {
    format!("dbname='{}'", dbname.replace('\\', "\\\\").replace('\'', "\\'"))
}

impl Connection {
    /// The same with the password that the password file has now, for whoever connects again after
    /// weeks. A file that has none any more leaves none: the server says that it wants one.
    pub fn with_current_password(&self) -> Connection {
        let mut connection = self.clone();
        if let Some(file) = &self.passfile {
            // What is wrong with the file was said when the configuration was read.
            let (issues, warnings) = (&mut Vec::new(), &mut Vec::new());
            connection.password = password_for(file, &self.hosts, &self.dbname, &self.user, issues, warnings);
        }
        connection
    }

    /// `host:port` as a password file names a server.
    pub fn password_file_server(&self, host: &str, port: u16) -> String {
        format!("{}:{port}", files::host_in_password_file(host).replace('\\', "\\\\").replace(':', "\\:"))
    }

    /// Settings from a URL or key=value string on the command line. A password in it is refused:
    /// everybody on the host can read command lines.
    pub fn from_arg(dsn: &str) -> Result<Resolved> {
        Self::from_arg_in(dsn, &super::environment)
    }

    fn from_arg_in(dsn: &str, env: Env<'_>) -> Result<Resolved> {
        let on = |e: Error| e.context("connection URL");
        let resolved = resolve(dsn, env).map_err(|issues| match issues.as_slice() {
            [only] => on(only.clone()),
            many => {
                let all: Vec<String> = many.iter().map(ToString::to_string).collect();
                on(Error::usage(all.join("; ")))
            }
        })?;
        if resolved.password_in_dsn {
            return Err(on(Error::usage(
                "a password on the command line is visible to everybody on the host",
            ))
            .with_hint("leave it out of the URL; give it by PGPASSWORD or ~/.pgpass"));
        }
        Ok(resolved)
    }

    /// Whether a command-line argument is a connection string rather than a name.
    pub fn looks_like_dsn(text: &str) -> bool {
        dsn::is_url(text) || text.contains('=')
    }

    /// The connection as a URL without anything secret, `postgres://user@host:5432/db`.
    pub fn describe(&self) -> String {
        const KEPT: &AsciiSet =
            &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'*');
        let encode = |text: &str| utf8_percent_encode(text, KEPT).to_string();
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|(host, port)| {
                if host.contains(':') {
                    format!("[{host}]:{port}")
                } else {
                    format!("{}:{port}", encode(host))
                }
            })
            .collect();
        format!("postgres://{}@{}/{}", encode(&self.user), hosts.join(","), encode(&self.dbname))
    }

    /// A host that is not this one, where no certificate is demanded that an authority signed: whoever stands
    /// between may answer in its place.
    pub fn unprotected_host(&self) -> Option<&str> {
        let mut hosts = self.hosts.iter().map(|(host, _)| host.as_str());
        hosts.find(|host| !self.demands_certificate() && !is_local(host))
    }

    /// Whether nobody said that a host may be sent the password in clear, and nothing shows who that host is.
    pub fn guards_password(&self, host: &str) -> bool {
        let is_allowed =
            self.names_sslmode && self.require_auth.as_ref().is_some_and(|r| r.names(AuthMethod::Password));
        !is_local(host) && !self.demands_certificate() && !is_allowed
    }

    /// The first host of those that [`Self::guards_password`] speaks of, where there is a password.
    pub fn guarded_host(&self) -> Option<&str> {
        let mut hosts = self.hosts.iter().map(|(host, _)| host.as_str());
        hosts.find(|host| self.password.is_some() && self.guards_password(host))
    }

    /// The first host that may have the password itself, whoever answers in its place: somebody said so, and
    /// there is no certificate that shows who that is.
    pub fn trusting_host(&self) -> Option<&str> {
        let mut hosts = self.hosts.iter().map(|(host, _)| host.as_str());
        hosts.find(|host| !is_local(host) && !self.demands_certificate() && !self.guards_password(host))
    }

    /// `require_auth` for the client tools, which know no other guard.
    pub fn require_auth_of_tools(&self) -> Option<RequireAuth> {
        if !self.hosts.iter().any(|(host, _)| self.guards_password(host)) {
            return self.require_auth.clone();
        }
        Some(RequireAuth::without(self.require_auth.as_ref(), AuthMethod::Password))
    }

    /// Whether there is no connection over the network but with a certificate that an authority signed. As in
    /// libpq, `require` checks where a root certificate is at hand; `prefer` goes on without TLS.
    fn demands_certificate(&self) -> bool {
        match self.sslmode {
            SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
            SslMode::Require => self.sslrootcert.is_some(),
            SslMode::VerifyCa | SslMode::VerifyFull => true,
        }
    }

    /// The same server, another database.
    pub fn with_dbname(&self, dbname: &str) -> Self {
        Self { dbname: dbname.to_string(), ..self.clone() }
    }
}

/// Whether a host is this one by its name alone. What a name is looked up as does not count: who stands between
/// may have answered that, too.
fn is_local(host: &str) -> bool {
    host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Settings by key, as written: one of them may be the password.
type Settings = BTreeMap<&'static str, Zeroizing<String>>;

/// Resolves a URL or key=value string, reading the environment and the files that libpq reads.
pub fn resolve(dsn: &str, env: Env<'_>) -> Result<Resolved, Vec<Error>> {
    resolve_at(dsn, None, env)
}

/// Resolves the URL of a server in a container, which is called `host` and whose address is looked up later.
pub fn resolve_in_container(dsn: &str, host: &str, env: Env<'_>) -> Result<Resolved, Vec<Error>> {
    let mut resolved = resolve_at(dsn, Some(host), env)?;
    resolved.connection.route = Route::Unfound;
    Ok(resolved)
}

fn resolve_at(dsn: &str, host: Option<&str>, env: Env<'_>) -> Result<Resolved, Vec<Error>> {
    let mut issues = Vec::new();
    let mut warnings = Vec::new();
    let mut settings = dsn::parse(dsn, &mut issues);
    let password_in_dsn = settings.get("password").is_some_and(|p| !p.is_empty());
    // A string that could not be read would only cause more complaints.
    if !issues.is_empty() {
        return Err(issues);
    }
    // What the environment or a service says is no word of who wrote the string.
    let names_dbname = settings.get("dbname").is_some_and(|name| !name.is_empty());
    let home = files::home(env);
    if let Some(service) =
        settings.get("service").map(|name| name.to_string()).or_else(|| nonempty(env("PGSERVICE")))
    {
        let file = settings.get("servicefile").map(|file| file.as_str());
        let places = files::service_files(file, home.as_deref(), env);
        match files::service(&service, &places) {
            Ok(found) => found.into_iter().for_each(|(key, value)| {
                settings.entry(key).or_insert(value);
            }),
            Err(found) => issues.extend(found),
        }
    }
    if let Some(host) = host
        && settings.insert("host", Zeroizing::new(host.to_owned())).is_some_and(|named| !named.is_empty())
    {
        issues.push(
            Error::usage("names a host, and the container is one already")
                .with_hint("leave the host out, as in postgres://USER@/DATABASE; opsd looks up the address"),
        );
    }
    for (key, variable) in SUPPORTED {
        if let Some(value) = env(variable).filter(|_| !settings.contains_key(key)) {
            settings.insert(key, Zeroizing::new(value));
        }
    }
    for (_, variable) in REFUSED.iter().filter(|(_, variable)| !variable.is_empty()) {
        if nonempty(env(variable)).is_some() {
            issues.push(
                Error::usage(format!("environment variable {variable} is set, which opsd does not support"))
                    .with_hint("unset it for opsd"),
            );
        }
    }
    let connection = build(&settings, home.as_deref(), &mut issues, &mut warnings);
    match connection {
        Some(connection) if issues.is_empty() => {
            Ok(Resolved { connection: Connection { names_dbname, ..connection }, warnings, password_in_dsn })
        }
        _ => Err(issues),
    }
}

fn nonempty(value: Option<String>) -> Option<String> {
    value.filter(|v| !v.is_empty())
}

fn build(
    settings: &Settings,
    home: Option<&Path>,
    issues: &mut Vec<Error>,
    warnings: &mut Vec<String>,
) -> Option<Connection> {
    let get = |key: &str| settings.get(key).filter(|v| !v.is_empty()).map(|v| v.as_str());
    let hosts = hosts(get("host"), get("port"), issues);
    let user = get("user").map(str::to_string).or_else(files::user_name);
    if user.is_none() {
        issues.push(Error::usage("names no user, and the system has no name for this one"));
    }
    let user = user.unwrap_or_default();
    let dbname = get("dbname").unwrap_or(&user).to_string();
    for (what, text) in [("user", &user), ("dbname", &dbname)] {
        if text.contains('\0') {
            issues.push(Error::usage(format!("{what} has a NUL in it")));
        }
    }
    let mut file = |key: &str, default: &str| -> Option<PathBuf> {
        match get(key) {
            Some("system") if key == "sslrootcert" => Some("system".into()),
            Some(path) if path.starts_with('/') => {
                let path = PathBuf::from(path);
                if path.is_file() {
                    issues.extend(regular_file::trusted(&path).err().map(Error::from));
                }
                Some(path)
            }
            Some(_) => {
                issues.push(Error::usage(format!("{key} must be an absolute path")));
                None
            }
            None => home.map(|h| h.join(".postgresql").join(default)).filter(|p| p.exists()),
        }
    };
    let sslrootcert = file("sslrootcert", "root.crt");
    let sslcert = file("sslcert", "postgresql.crt");
    let sslkey = file("sslkey", "postgresql.key");
    let sslmode = sslmode(get("sslmode"), sslrootcert.as_deref(), issues);
    let require_auth = get("require_auth").map(RequireAuth::parse).transpose().unwrap_or_else(|issue| {
        issues.push(issue);
        None
    });
    let channel_binding =
        get("channel_binding").map(ChannelBinding::parse).transpose().unwrap_or_else(|issue| {
            issues.push(issue);
            None
        });
    let over_network = hosts.iter().any(|(host, _)| !host.starts_with('/'));
    if over_network && matches!(sslmode, SslMode::VerifyCa | SslMode::VerifyFull) && sslrootcert.is_none() {
        issues.push(
            Error::usage(format!("sslmode={} needs a root certificate", sslmode.as_str())).with_hint(
                "add sslrootcert=/path/of/ca.crt, or sslrootcert=system for the system's authorities",
            ),
        );
    }
    let connect_timeout = match get("connect_timeout").map(|text| text.trim().parse::<u64>()) {
        None => CONNECT_TIMEOUT,
        Some(Ok(seconds @ 1..=86_400)) => Duration::from_secs(seconds.max(2)),
        Some(_) => {
            issues.push(
                Error::usage("connect_timeout must be a number of seconds from 1 to 86400")
                    .with_hint("libpq waits for ever at 0; opsd does not"),
            );
            CONNECT_TIMEOUT
        }
    };
    let (password, passfile) = match get("password") {
        Some(password) => (Some(Secret::new(password)), None),
        None => {
            let passfile = get("passfile").map(PathBuf::from).or_else(|| home.map(|h| h.join(".pgpass")));
            let find = |file: &PathBuf| password_for(file, &hosts, &dbname, &user, issues, warnings);
            (passfile.as_ref().and_then(find), passfile)
        }
    };
    if password.as_ref().is_some_and(|p| p.expose().contains('\0')) {
        issues.push(Error::usage("the password has a NUL in it"));
    }
    let options = get("options").map(str::to_string);
    Some(Connection {
        hosts,
        route: Route::Direct,
        user,
        password,
        passfile,
        dbname,
        sslmode,
        names_dbname: false, // the string alone decides
        names_sslmode: get("sslmode").is_some(),
        require_auth,
        channel_binding: channel_binding.unwrap_or(ChannelBinding::Prefer),
        sslrootcert,
        sslcert,
        sslkey,
        connect_timeout,
        options,
    })
}

fn sslmode(text: Option<&str>, root: Option<&Path>, issues: &mut Vec<Error>) -> SslMode {
    const MODES: [SslMode; 6] = [
        SslMode::Disable,
        SslMode::Allow,
        SslMode::Prefer,
        SslMode::Require,
        SslMode::VerifyCa,
        SslMode::VerifyFull,
    ];
    let system = root == Some(Path::new("system"));
    let Some(text) = text else {
        return if system { SslMode::VerifyFull } else { SslMode::Prefer };
    };
    let Some(mode) = MODES.into_iter().find(|mode| mode.as_str() == text) else {
        let hint = units::meant(text, MODES.iter().map(|m| m.as_str()));
        issues.push(Error::usage("unknown sslmode").with_hint(hint));
        return SslMode::VerifyFull;
    };
    if system && mode != SslMode::VerifyFull {
        issues.push(
            Error::usage("sslrootcert=system goes with sslmode=verify-full only")
                .with_hint("anybody can get a certificate from a public authority; only the name tells"),
        );
    }
    mode
}

/// Pairs hosts with ports; one port serves all hosts.
fn hosts(host: Option<&str>, port: Option<&str>, issues: &mut Vec<Error>) -> Vec<(String, u16)> {
    let names: Vec<&str> = host.unwrap_or_default().split(',').map(str::trim).collect();
    let ports: Vec<&str> = port.unwrap_or_default().split(',').map(str::trim).collect();
    if ports.len() != 1 && ports.len() != names.len() {
        issues.push(Error::usage(format!("{} ports for {} hosts", ports.len(), names.len())));
        return Vec::new();
    }
    let mut hosts = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let name = if name.is_empty() { files::default_socket_dir() } else { (*name).to_string() };
        if name.starts_with('@') {
            issues.push(Error::usage("abstract Unix sockets are not supported"));
        } else if name.contains(|c: char| c.is_control() || (c.is_whitespace() && !name.starts_with('/'))) {
            issues.push(Error::usage("host has a blank or a control character in it"));
        }
        let port = if ports.len() == 1 { ports[0] } else { ports[index] };
        let port = if port.is_empty() { Some(5432) } else { port.parse::<u16>().ok().filter(|p| *p > 0) };
        match port {
            Some(port) => hosts.push((name, port)),
            None => {
                // Not quoted: a password with a / or ? in it makes its first half look like a port.
                issues.push(Error::usage("port is not a number from 1 to 65535").with_hint(
                    "in a URL, percent-encode special characters of the password: / is %2F, @ is %40",
                ));
                return Vec::new();
            }
        }
    }
    hosts
}

fn password_for(
    file: &Path,
    hosts: &[(String, u16)],
    dbname: &str,
    user: &str,
    issues: &mut Vec<Error>,
    warnings: &mut Vec<String>,
) -> Option<Secret> {
    let entries = match files::password_file(file) {
        Ok(entries) => entries?,
        Err(why) => {
            warnings.push(format!("password file {} is ignored: {why}", file.display()));
            return None;
        }
    };
    let mut found = hosts.iter().map(|(host, port)| files::password(&entries, host, *port, dbname, user));
    let first = found.next()?;
    if found.any(|other| other != first) {
        issues.push(
            Error::usage(format!(
                "password file {} does not have the same password for all hosts",
                file.display()
            ))
            .with_hint("opsd sends one password to whichever host answers; give it by PGPASSWORD"),
        );
        return None;
    }
    first
}

/// The supported key of this name, or why there is none. Only names that libpq knows are repeated:
/// anything else may be a piece of a password.
fn supported(key: &str, position: &str) -> Result<&'static str> {
    if let Some((known, _)) = SUPPORTED.iter().find(|(known, _)| *known == key) {
        return Ok(known);
    }
    let all: Vec<&str> = SUPPORTED.iter().map(|(known, _)| *known).collect();
    if let Some((refused, _)) = REFUSED.iter().find(|(known, _)| *known == key) {
        let hint = match *refused {
            "hostaddr" => "write the address as the host".to_string(),
            "application_name" | "client_encoding" | "fallback_application_name" => {
                "leave it out: opsd sets it itself".to_string()
            }
            "requiressl" => "use sslmode=require".to_string(),
            _ => format!("supported are: {}", all.join(", ")),
        };
        return Err(Error::usage(format!("{refused} is not supported")).with_hint(hint));
    }
    let hint = units::meant(key, all);
    Err(Error::usage(format!("{position} has an unknown name")).with_hint(hint))
}

#[cfg(test)]
mod tests;
