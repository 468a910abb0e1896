//! `[exporter]`, `[redis.NAME]` and `[monitor.NAME]`: what is watched, how it is served, and when it is bad.
//!
//! A kind of monitor is a key of `[monitor.NAME]`: one variant of [`MonitorKind`], one word in
//! [`KINDS`] and one arm in `kind`. Secrets in files are read by whoever needs them, not here: a
//! backup must not fail because it may not read the exporter's token.

mod mqtt;
mod probes;
mod queue;
mod redis;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use super::walk::{Place, Section, Text, Walk};
use super::{Databases, keys, raw, units};
use crate::error::{Context, Result};
use crate::metrics::{self, Metric, Unit};
pub use queue::{End, Queue, QueueKind, Scores};
pub(super) use redis::redis;
pub use redis::{Redis, RedisAddress};

pub use mqtt::Mqtt;
pub use probes::{Backups, Host, Http, Tcp, Tls};

/// What a monitor can watch: the keys of which `[monitor.NAME]` has exactly one.
pub const KINDS: &[&str] = &["postgres", "backups", "redis", "queue", "http", "tcp", "tls", "host", "mqtt"];
/// A bucket that is listed more often than this is listed for nothing.
const OFTEN: Duration = Duration::from_secs(60);
/// Keys that every kind has.
const COMMON: &[&str] = &["interval", "timeout", "max_series", "thresholds"];

/// Where the exporter listens unless told otherwise; not a port that Prometheus' list gives away.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9911);
/// Prometheus, a person and a few probes; each costs a task and its buffers.
const MAX_CONNECTIONS: i64 = 64;
/// Nobody sends a request's head for longer in good faith.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Prometheus scrapes about as often.
const INTERVAL: Duration = Duration::from_secs(15);
/// Prometheus gives a scrape as long; a healthy target takes a hundredth of it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Sets change once an hour at the most, and every listing of a bucket costs money.
const BACKUPS_INTERVAL: Duration = Duration::from_secs(300);
/// A bucket with a thousand sets is read within seconds, a distant one in a minute.
const BACKUPS_TIMEOUT: Duration = Duration::from_secs(120);
/// Certificates are renewed weeks before they expire.
const TLS_INTERVAL: Duration = Duration::from_secs(60);
/// Longer than a day is no monitoring.
const INTERVAL_MAX: Duration = Duration::from_secs(86_400);
/// 200 databases with a dozen series each, and room.
const MAX_SERIES: i64 = 5_000;

/// `[exporter]`.
#[derive(Debug, Clone)]
pub struct Exporter {
    /// Where it listens; beyond loopback only with authentication.
    pub listen: SocketAddr,
    /// Who may read.
    pub auth: Auth,
    /// Connections that may be open at the same time.
    pub max_connections: usize,
    /// Bound on receiving the head of a request.
    pub header_timeout: Duration,
}

impl Default for Exporter {
    fn default() -> Self {
        let max_connections = usize::try_from(MAX_CONNECTIONS).unwrap_or(1);
        Self { listen: LISTEN, auth: Auth::None, max_connections, header_timeout: HEADER_TIMEOUT }
    }
}

/// Who may read what the exporter serves.
#[derive(Debug, Clone)]
pub enum Auth {
    /// Whoever reaches it, which is this host alone.
    None,
    /// HTTP basic authentication.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: SecretSource,
    },
    /// A bearer token.
    Bearer(SecretSource),
}

/// A secret, or the file that holds it.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// From the configuration, usually by `${VAR}`.
    Value(Secret),
    /// A file that others may not read.
    File(PathBuf),
}

impl SecretSource {
    /// The secret; a file's ends before its last newline.
    pub fn read(&self) -> Result<Secret> {
        match self {
            SecretSource::Value(secret) => Ok(secret.clone()),
            SecretSource::File(path) => {
                let text = keys::read_secret_file(path)?;
                let secret = text.expose().trim_end_matches(['\r', '\n']);
                if secret.is_empty() {
                    return Err(crate::error::Error::usage("is empty"))
                        .with_context(|| format!("secret file {}", path.display()));
                }
                Ok(Secret::new(secret))
            }
        }
    }
}

/// One `[monitor.NAME]`.
#[derive(Debug, Clone)]
pub struct Monitor {
    /// Name in the configuration, and label of every series.
    pub name: String,
    /// What it watches.
    pub kind: MonitorKind,
    /// How often it collects.
    pub interval: Duration,
    /// When a collection is given up.
    pub timeout: Duration,
    /// Series that it may have.
    pub max_series: usize,
    /// When its figures are bad. A metric that is named here has none of its usual thresholds.
    pub thresholds: Vec<Threshold>,
    /// Metrics whose usual thresholds do not hold.
    pub replaced: Vec<&'static Metric>,
}

/// What a monitor watches.
#[derive(Debug, Clone)]
pub enum MonitorKind {
    /// A PostgreSQL server.
    Postgres {
        /// Which `[postgres.NAME]`.
        server: String,
        /// Where figures local to a database come from.
        databases: Databases,
        /// Of all databases, those where they do not come from.
        excluded: Vec<String>,
    },
    /// The sets in the repository.
    Backups(Backups),
    /// An HTTP server.
    Http(Box<Http>),
    /// A TCP port.
    Tcp(Tcp),
    /// Certificates, of a server and on disk.
    Tls(Tls),
    /// This host.
    Host(Host),
    /// An MQTT broker.
    Mqtt(Box<Mqtt>),
    /// A Redis or Valkey server.
    Redis {
        /// Which `[redis.NAME]`.
        server: String,
    },
    /// Queues that are kept in Redis.
    Queue(Queue),
}

impl MonitorKind {
    /// What the names of its metrics begin with.
    fn prefix(&self) -> &'static str {
        match self {
            MonitorKind::Postgres { .. } => "opsd_postgres_",
            MonitorKind::Backups(_) => "opsd_backup_",
            MonitorKind::Http(_) => "opsd_http_",
            MonitorKind::Tcp(_) => "opsd_tcp_",
            MonitorKind::Tls(_) => "opsd_tls_",
            MonitorKind::Host(_) => "opsd_host_",
            MonitorKind::Mqtt(_) => "opsd_mqtt_",
            MonitorKind::Redis { .. } => "opsd_redis_",
            // Of one queue, and of all.
            MonitorKind::Queue(_) => "opsd_queue",
        }
    }

    /// Its key in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            MonitorKind::Postgres { .. } => "postgres",
            MonitorKind::Backups(_) => "backups",
            MonitorKind::Http(_) => "http",
            MonitorKind::Tcp(_) => "tcp",
            MonitorKind::Tls(_) => "tls",
            MonitorKind::Host(_) => "host",
            MonitorKind::Mqtt(_) => "mqtt",
            MonitorKind::Redis { .. } => "redis",
            MonitorKind::Queue(_) => "queue",
        }
    }

    fn interval(&self) -> Duration {
        match self {
            MonitorKind::Postgres { .. } => INTERVAL,
            MonitorKind::Backups(_) => BACKUPS_INTERVAL,
            MonitorKind::Redis { .. }
            | MonitorKind::Queue(_)
            | MonitorKind::Http(_)
            | MonitorKind::Tcp(_)
            | MonitorKind::Host(_)
            | MonitorKind::Mqtt(_) => INTERVAL,
            MonitorKind::Tls(_) => TLS_INTERVAL,
        }
    }

    fn timeout(&self) -> Duration {
        match self {
            MonitorKind::Backups(_) => BACKUPS_TIMEOUT,
            _ => TIMEOUT,
        }
    }
}

/// When a metric is bad. A timestamp is judged by its age in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// Which metric.
    pub metric: &'static Metric,
    /// Which of its states; the sample of another one is not judged.
    pub state: Option<std::borrow::Cow<'static, str>>,
    /// From where on it is a warning.
    pub warning: Option<Bound>,
    /// From where on it is critical.
    pub critical: Option<Bound>,
}

impl Threshold {
    /// Of a number that is no state.
    pub const fn of(metric: &'static Metric, warning: Option<Bound>, critical: Option<Bound>) -> Self {
        Self { metric, state: None, warning, critical }
    }
}

/// A side of a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Bad above this.
    Above(f64),
    /// Bad below this.
    Below(f64),
}

/// What a monitor may refer to.
pub(super) struct Known<'a> {
    pub(super) postgres: &'a [String],
    pub(super) redis: &'a [String],
    pub(super) repository: bool,
}

pub(super) fn exporter(walk: &mut Walk<'_>, section: &Section<'_>) -> Exporter {
    walk.only(
        section,
        &["listen", "basic_auth", "bearer_token", "bearer_token_file", "max_connections", "header_timeout"],
    );
    let mut exporter = Exporter::default();
    let before = walk.mistakes.len();
    let mut place = section.place.clone();
    if let Some(text) = walk.filled(section, "listen") {
        match text.value.parse() {
            Ok(address) => exporter.listen = address,
            Err(_) => walk.mistake(
                &text.place,
                "is no address and port",
                "as in \"127.0.0.1:9911\" or \"[::1]:9911\"; names are not looked up",
            ),
        }
        place = text.place;
    }
    let basic = walk.section(section, "basic_auth");
    let bearer = secret(walk, section, "bearer_token", "bearer_token_file");
    if let (Some(basic), Some(_)) = (&basic, &bearer) {
        walk.mistake(&basic.place, "stands beside a bearer token", "give one of the two");
    }
    if let Some(basic) = basic {
        walk.only(&basic, &["user", "password", "password_file"]);
        let user = walk.filled(&basic, "user");
        if !basic.has("user") {
            walk.missing(&basic, "user", "user = \"prometheus\"");
        }
        if let Some(user) = user.as_ref().filter(|user| user.value.contains(':')) {
            walk.mistake(&user.place, "has a colon, which HTTP does not allow", "choose another name");
        }
        let password = secret(walk, &basic, "password", "password_file");
        if !basic.has("password") && !basic.has("password_file") {
            walk.missing(&basic, "password", "password = \"${VAR}\", or password_file = \"/path\"");
        }
        if let (Some(user), Some(password)) = (user, password) {
            exporter.auth = Auth::Basic { user: user.value, password };
        }
    } else if let Some(bearer) = bearer {
        exporter.auth = Auth::Bearer(bearer);
    }
    if let Some(number) = walk.integer(section, "max_connections", 1..=10_000) {
        exporter.max_connections = usize::try_from(number).unwrap_or(1);
    }
    if let Some((place, timeout)) = walk.duration(section, "header_timeout") {
        exporter.header_timeout = timeout;
        positive(walk, &place, timeout);
    }
    let open = matches!(exporter.auth, Auth::None) && !exporter.listen.ip().is_loopback();
    if open && walk.mistakes.len() == before {
        walk.mistake(
            &place,
            "listens beyond this host, and anybody could read it",
            "add bearer_token_file, or basic_auth = { user, password_file }; or listen on 127.0.0.1",
        );
    }
    exporter
}

/// A secret under `key`, or in the file under `file_key`.
fn secret(walk: &mut Walk<'_>, section: &Section<'_>, key: &str, file_key: &str) -> Option<SecretSource> {
    let value = walk.filled(section, key);
    let file = walk.secret_file(section, file_key);
    if let (true, Some((place, _))) = (section.has(key), &file) {
        walk.mistake(place, format!("stands beside {key}"), "give one of the two");
    }
    if let Some(text) = value {
        if text.literal {
            let hint = format!("keep it in a ${{VARIABLE}} or in {file_key}");
            walk.advise(&text.place, raw::PASSWORD_STANDS_HERE, Some(&hint));
        }
        return Some(SecretSource::Value(Secret::new(text.value)));
    }
    file.map(|(_, path)| SecretSource::File(path))
}

pub(super) fn monitor(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    name: &str,
    known: &Known<'_>,
) -> Option<Monitor> {
    let kinds: Vec<&str> = KINDS.iter().copied().filter(|kind| section.has(kind)).collect();
    let own: &[&str] = if kinds == ["postgres"] { &["databases", "exclude_databases"] } else { &[] };
    let keys: Vec<&str> = KINDS.iter().chain(COMMON).chain(own).copied().collect();
    walk.only(section, &keys);
    let kind = match kinds.as_slice() {
        [] => {
            walk.mistake(&section.place, "watches nothing", &format!("add one of: {}", KINDS.join(", ")));
            None
        }
        [one] => kind(walk, section, one, known),
        several => {
            let message = format!("watches several things: {}", several.join(", "));
            walk.mistake(&section.place, message, "give each a [monitor.NAME] of its own");
            None
        }
    };
    let mut interval = kind.as_ref().map_or(INTERVAL, MonitorKind::interval);
    if let Some((place, given)) = walk.duration(section, "interval") {
        if given > INTERVAL_MAX {
            walk.mistake(&place, "is longer than a day", "as in \"15s\"");
        }
        positive(walk, &place, given);
        if matches!(kind, Some(MonitorKind::Backups(_))) && given < OFTEN {
            let hint = "every listing is paid for; a few minutes are often enough";
            walk.advise(&place, "reads the repository more often than once a minute", Some(hint));
        }
        interval = given;
    }
    let mut timeout = kind.as_ref().map_or(TIMEOUT, MonitorKind::timeout).min(interval);
    if let Some((place, given)) = walk.duration(section, "timeout") {
        if given > interval {
            walk.mistake(&place, "is longer than the interval", "a collection must end before the next one");
        }
        positive(walk, &place, given);
        timeout = given;
    }
    let max_series = walk.integer(section, "max_series", 1..=1_000_000).unwrap_or(MAX_SERIES);
    let max_series = usize::try_from(max_series).unwrap_or(1);
    let (mut thresholds, mut replaced) = (Vec::new(), Vec::new());
    if let Some(table) = walk.section(section, "thresholds") {
        for key in table.names() {
            let place = walk.place(&table, &key);
            let Some(metric) = metrics::find(&key) else {
                let names = metrics::all().map(|metric| metric.name);
                let hint = match units::nearest(&key, names) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "`opsd metrics` lists them".to_owned(),
                };
                walk.mistake(&place, "there is no such metric", &hint);
                continue;
            };
            if let Some(kind) = kind.as_ref().filter(|kind| !metric.name.starts_with(kind.prefix())) {
                let message = format!("a {} monitor has no such figure", kind.as_str());
                walk.mistake(&place, message, &format!("its own begin with {}", kind.prefix()));
                continue;
            }
            replaced.push(metric);
            if let Some(bounds) = walk.section(&table, &key) {
                threshold(walk, &bounds, metric, &mut thresholds);
            }
        }
    }
    Some(Monitor { name: name.into(), kind: kind?, interval, timeout, max_series, thresholds, replaced })
}

fn kind(walk: &mut Walk<'_>, section: &Section<'_>, key: &str, known: &Known<'_>) -> Option<MonitorKind> {
    match key {
        "postgres" => {
            let databases = match walk.strings(section, "databases") {
                None => Databases::Url,
                Some((place, names)) => raw::databases(walk, &place, names),
            };
            let excluded = match walk.strings(section, "exclude_databases") {
                None => Vec::new(),
                Some((place, _)) if databases != Databases::All => {
                    walk.mistake(
                        &place,
                        "leaves out some of all",
                        "databases = [\"*\"] beside it, or leave it out",
                    );
                    Vec::new()
                }
                Some((place, names)) => match raw::databases(walk, &place, names) {
                    Databases::Named(names) => names,
                    Databases::Url | Databases::All => {
                        walk.mistake(&place, "leaves out all", "name the databases that are not to be asked");
                        Vec::new()
                    }
                },
            };
            let server = walk.filled(section, "postgres")?;
            let server = reference(walk, server, known.postgres, "postgres")?;
            Some(MonitorKind::Postgres { server, databases, excluded })
        }
        "backups" if !known.repository => {
            let place = walk.place(section, "backups");
            walk.mistake(&place, "there is no repository to read", super::ADD_REPOSITORY);
            None
        }
        "backups" => probes::backups(walk, section).map(MonitorKind::Backups),
        "http" => probes::http(walk, section).map(|http| MonitorKind::Http(Box::new(http))),
        "tcp" => probes::tcp(walk, section).map(MonitorKind::Tcp),
        "tls" => probes::tls(walk, section).map(MonitorKind::Tls),
        "host" => probes::host(walk, section).map(MonitorKind::Host),
        "mqtt" => mqtt::mqtt(walk, section).map(|mqtt| MonitorKind::Mqtt(Box::new(mqtt))),
        "redis" => {
            let server = walk.filled(section, "redis")?;
            let server = reference(walk, server, known.redis, "redis")?;
            Some(MonitorKind::Redis { server })
        }
        "queue" => {
            let section = walk.section(section, "queue")?;
            queue::queue(walk, &section, known.redis).map(MonitorKind::Queue)
        }
        _ => None,
    }
}

/// The name of a `[TABLE.NAME]` that must be there.
pub(super) fn reference(walk: &mut Walk<'_>, name: Text, known: &[String], table: &str) -> Option<String> {
    if known.contains(&name.value) {
        return Some(name.value);
    }
    let hint = match known {
        [] => format!("add [{table}.NAME] with its url"),
        known => units::meant(&name.value, known.iter().map(String::as_str)),
    };
    walk.mistake(&name.place, format!("there is no such [{table}.…]"), &hint);
    None
}

/// `{ warning = 0.8, critical = 0.95 }`; for a state lists of states. An empty table means none.
fn threshold(walk: &mut Walk<'_>, section: &Section<'_>, metric: &'static Metric, into: &mut Vec<Threshold>) {
    if metric.labels.contains(&"state") {
        walk.only(section, &["warning", "critical"]);
        for key in ["warning", "critical"] {
            for state in walk.strings(section, key).into_iter().flat_map(|(_, states)| states) {
                if !metric.states.contains(&state.value.as_str()) {
                    let hint = units::meant(&state.value, metric.states.iter().copied());
                    walk.mistake(&state.place, "there is no such state", &hint);
                    continue;
                }
                let bound = Some(Bound::Above(0.5));
                let (warning, critical) = if key == "warning" { (bound, None) } else { (None, bound) };
                into.push(Threshold { metric, state: Some(state.value.into()), warning, critical });
            }
        }
        return;
    }
    walk.only(section, &["warning", "critical", "warning_below", "critical_below"]);
    let mut bound = |above: &str, below: &str| {
        let over = number(walk, section, above, metric.unit);
        let under = number(walk, section, below, metric.unit);
        if let (Some(_), Some((place, _))) = (&over, &under) {
            walk.mistake(place, format!("stands beside {above}"), "give one of the two");
        }
        over.map(|(_, n)| Bound::Above(n)).or(under.map(|(_, n)| Bound::Below(n)))
    };
    let warning = bound("warning", "warning_below");
    let critical = bound("critical", "critical_below");
    let wrong = match (warning, critical) {
        (Some(Bound::Above(warning)), Some(Bound::Above(critical))) => critical < warning,
        (Some(Bound::Below(warning)), Some(Bound::Below(critical))) => critical > warning,
        (Some(_), Some(_)) => true,
        _ => false,
    };
    if wrong {
        walk.mistake(
            &section.place,
            "is critical before it is a warning",
            "where less is worse, write warning_below and critical_below",
        );
    }
    if warning.is_some() || critical.is_some() {
        into.push(Threshold { metric, state: None, warning, critical });
    }
}

fn number(walk: &mut Walk<'_>, section: &Section<'_>, key: &str, unit: Unit) -> Option<(Place, f64)> {
    if !section.is_text(key) {
        return walk.number(section, key);
    }
    match unit {
        Unit::Bytes => walk.size(section, key).map(|(place, bytes)| (place, bytes as f64)),
        Unit::Seconds | Unit::Timestamp | Unit::Deadline => {
            walk.duration(section, key).map(|(place, duration)| (place, duration.as_secs_f64()))
        }
        Unit::None | Unit::Ratio => walk.number(section, key),
    }
}

fn positive(walk: &mut Walk<'_>, place: &Place, duration: Duration) {
    if duration.is_zero() {
        walk.mistake(place, "must be more than nothing", "as in \"15s\"");
    }
}

/// `[redis.NAME]` and `[monitor.NAME]`, each by its name.
pub(super) fn named<T>(
    walk: &mut Walk<'_>,
    root: &Section<'_>,
    table: &str,
    mut read: impl FnMut(&mut Walk<'_>, &Section<'_>, &str) -> Option<T>,
) -> (Vec<String>, BTreeMap<String, T>) {
    let mut found = BTreeMap::new();
    let Some(section) = walk.section(root, table) else { return (Vec::new(), found) };
    let names = section.names();
    for key in &names {
        let place = walk.place(&section, key);
        raw::name(walk, &place, key);
        if let Some(value) = walk.section(&section, key).and_then(|s| read(walk, &s, key)) {
            found.insert(key.clone(), value);
        }
    }
    (names, found)
}

#[cfg(test)]
mod tests;
