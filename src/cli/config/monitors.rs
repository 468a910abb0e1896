//! What `opsd config show` says of what is watched: each kind as it can be configured, secrets masked.

use serde_json::{Map, Value, json};

use super::show::exact_duration;
use crate::config::monitoring::{Auth, End, Http, Mqtt, Scores, SecretSource, Tls};
use crate::config::{Databases, Monitor, MonitorKind, Queue, QueueKind};

/// The keys of one `[monitor.NAME]`.
pub(super) fn monitor(monitor: &Monitor) -> Vec<(&'static str, Value)> {
    let mut entries = kind(&monitor.kind);
    let metrics: Vec<&str> = monitor.replaced.iter().map(|metric| metric.name).collect();
    entries.extend([
        ("interval", json!(exact_duration(monitor.interval.as_secs()))),
        ("timeout", json!(exact_duration(monitor.timeout.as_secs()))),
        ("max_series", json!(monitor.max_series)),
        ("thresholds_changed", json!(Some(metrics).filter(|names| !names.is_empty()))),
    ]);
    entries
}

fn kind(kind: &MonitorKind) -> Vec<(&'static str, Value)> {
    match kind {
        MonitorKind::Postgres { server, databases, excluded } => {
            let databases = match databases {
                Databases::Url => Value::Null,
                Databases::All => json!(["*"]),
                Databases::Named(names) => json!(names),
            };
            let excluded = Some(excluded).filter(|names| !names.is_empty());
            vec![
                ("postgres", json!(server)),
                ("databases", databases),
                ("exclude_databases", json!(excluded)),
            ]
        }
        MonitorKind::Redis { server } => vec![("redis", json!(server))],
        MonitorKind::Queue(queue) => vec![("queue", self::queue(queue))],
        MonitorKind::Backups(backups) => {
            let rpo = backups.rpo.map(|rpo| exact_duration(rpo.as_secs()));
            let jobs = Some(&backups.jobs).filter(|jobs| !jobs.is_empty());
            vec![("backups", table([("jobs", json!(jobs)), ("rpo", json!(rpo))]))]
        }
        MonitorKind::Http(http) => vec![("http", self::http(http))],
        MonitorKind::Tcp(tcp) => vec![("tcp", json!(tcp.to_string()))],
        MonitorKind::Tls(tls) => vec![("tls", self::tls(tls))],
        MonitorKind::Host(host) => {
            let disks = Some(&host.disks).filter(|disks| !disks.is_empty());
            vec![("host", table([("disks", json!(disks))]))]
        }
        MonitorKind::Mqtt(mqtt) => vec![("mqtt", self::mqtt(mqtt))],
    }
}

fn queue(queue: &Queue) -> Value {
    let (mut namespace, mut key_prefix, mut prefix) = (None, None, None);
    let (mut separator, mut take_from, mut scores) = (None, None, None);
    match &queue.kind {
        QueueKind::Sidekiq { prefix } => namespace = Some(prefix.trim_end_matches(':')),
        QueueKind::BullMq { prefix: all } => prefix = Some(all),
        QueueKind::Celery { prefix, separator: between } => {
            (key_prefix, separator) = (Some(prefix), Some(between));
        }
        QueueKind::List { take_from: End::Left } => take_from = Some("left"),
        QueueKind::List { take_from: End::Right } => take_from = Some("right"),
        QueueKind::SortedSet { scores: Scores::Numbers } => scores = Some("numbers"),
        QueueKind::SortedSet { scores: Scores::Seconds } => scores = Some("seconds"),
        QueueKind::SortedSet { scores: Scores::Milliseconds } => scores = Some("milliseconds"),
        QueueKind::Stream => {}
    }
    table([
        ("kind", json!(queue.kind.as_str())),
        ("redis", json!(queue.server)),
        ("queues", json!(Some(&queue.queues).filter(|names| !names.is_empty()))),
        ("namespace", json!(namespace.filter(|name| !name.is_empty()))),
        ("key_prefix", json!(key_prefix.filter(|prefix| !prefix.is_empty()))),
        ("prefix", json!(prefix)),
        ("separator", json!(separator)),
        ("take_from", json!(take_from)),
        ("scores", json!(scores)),
    ])
}

fn http(http: &Http) -> Value {
    let (mut user, mut password, mut token) = (None, None, None);
    match &http.auth {
        Auth::None => {}
        Auth::Basic { user: name, password: secret } => (user, password) = (Some(name), Some(secret)),
        Auth::Bearer(secret) => token = Some(secret),
    }
    let expected: Map<String, Value> =
        http.expect_json.iter().map(|(at, is)| (at.clone(), json!(is))).collect();
    table([
        ("url", json!(http.shown)),
        ("user", json!(user)),
        ("password", value(password)),
        ("password_file", file(password)),
        ("bearer_token", value(token)),
        ("bearer_token_file", file(token)),
        ("expect_status", json!(http.expect_status)),
        ("expect_body", json!(http.expect_body)),
        ("expect_json", json!(Some(expected).filter(|expected| !expected.is_empty()))),
        ("components", json!(http.components)),
        ("max_redirects", json!(http.max_redirects)),
        ("ca_file", json!(http.ca_file)),
    ])
}

fn tls(tls: &Tls) -> Value {
    table([
        ("address", json!(tls.address.as_ref().map(ToString::to_string))),
        ("server_name", json!(tls.server_name)),
        ("ca_file", json!(tls.ca_file)),
        ("files", json!(Some(&tls.files).filter(|files| !files.is_empty()))),
    ])
}

fn mqtt(mqtt: &Mqtt) -> Value {
    let scheme = if mqtt.tls { "mqtts" } else { "mqtt" };
    let password = mqtt.password.as_ref();
    table([
        ("url", json!(format!("{scheme}://{}", mqtt.address))),
        ("client_id", json!(mqtt.client_id)),
        ("user", json!(mqtt.user)),
        ("password", value(password)),
        ("password_file", file(password)),
        ("ca_file", json!(mqtt.ca_file)),
        ("cert_file", json!(mqtt.client.as_ref().map(|(cert, _)| cert))),
        ("key_file", json!(mqtt.client.as_ref().map(|(_, key)| key))),
        ("server_name", json!(mqtt.server_name)),
        ("topic", json!(mqtt.topic)),
        ("sys", json!(mqtt.sys)),
    ])
}

fn value(secret: Option<&SecretSource>) -> Value {
    match secret {
        Some(SecretSource::Value(secret)) => json!(secret.to_string()),
        Some(SecretSource::File(_)) | None => Value::Null,
    }
}

fn file(secret: Option<&SecretSource>) -> Value {
    match secret {
        Some(SecretSource::File(file)) => json!(file),
        Some(SecretSource::Value(_)) | None => Value::Null,
    }
}

/// What is not set is left out.
fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    entries
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
