//! `opsd config show`: everything resolved, nothing secret.
//!
//! One list of sections is the source of both forms, so that they cannot disagree.

use serde_json::{Map, Value, json};

use super::monitors::monitor;
use crate::cli::output;
use crate::config::monitoring::{Auth, RedisAddress, SecretSource};
use crate::config::{
    BackupJob, Client, Config, Connection, Databases, Exporter, Location, Ping, Place, Postgres, Redis,
};
use crate::error::Result;

/// Where a section stands, and its keys in the order they are shown.
struct Section {
    path: Vec<String>,
    entries: Vec<(&'static str, Value)>,
}

pub(super) fn run(config: &Config, json: bool) -> Result<()> {
    let sections = sections(config);
    if json { output::json(&document(&sections)) } else { output::text(text(config, &sections)) }
}

fn sections(config: &Config) -> Vec<Section> {
    let at =
        |path: &[&str], entries| Section { path: path.iter().map(ToString::to_string).collect(), entries };
    let url = config.repository.location.describe();
    let encryption = &config.encryption;
    let mut sections = vec![at(&[], vec![("site", json!(config.site))])];
    if config.repository.location != Location::Nowhere {
        sections.push(at(
            &["repository"],
            vec![
                ("url", json!(url)),
                ("endpoint", json!(config.repository.endpoint)),
                ("region", json!(config.repository.region)),
                ("path_style", json!(config.repository.path_style)),
                (
                    "lock",
                    json!(config.repository.lock.map(|l| json!({ "mode": l.mode.as_str(), "days": l.days }))),
                ),
            ],
        ));
        sections.push(at(
            &["encryption"],
            vec![
                ("recipients", json!(encryption.recipients)),
                ("identity_file", json!(encryption.identity_file)),
                ("sign_key_file", json!(encryption.sign_key_file)),
                ("trusted_backup_keys", json!(encryption.trusted.backups)),
                ("trusted_verify_keys", json!(encryption.trusted.verifications)),
            ],
        ));
    }
    sections.extend(config.postgres.iter().map(|(name, server)| at(&["postgres", name], postgres(server))));
    for (name, job) in &config.backup {
        sections.push(at(&["backup", name], backup(job)));
        sections.push(at(
            &["backup", name, "verify"],
            vec![
                ("scratch_dir", json!(job.verify.scratch_dir)),
                ("scratch_user", json!(job.verify.scratch_user)),
                ("image", json!(job.verify.image)),
                ("assert", json!(job.verify.assert)),
                ("timeout", json!(exact_duration(job.verify.timeout.as_secs()))),
                ("ping_url", ping(&job.verify.ping)),
            ],
        ));
    }
    let mut restore = vec![("refresh_timeout", json!(exact_duration(config.refresh_timeout.as_secs())))];
    if !config.restore_settings.is_empty() {
        restore.push(("settings", json!(config.restore_settings)));
    }
    sections.push(at(&["restore"], restore));
    sections.extend(config.redis.iter().map(|(name, server)| at(&["redis", name], redis(server))));
    if !config.monitor.is_empty() {
        sections.push(at(&["exporter"], exporter(&config.exporter)));
    }
    sections.extend(config.monitor.iter().map(|(name, one)| at(&["monitor", name], monitor(one))));
    sections
}

fn exporter(exporter: &Exporter) -> Vec<(&'static str, Value)> {
    let mut entries = vec![
        ("listen", json!(exporter.listen.to_string())),
        ("max_connections", json!(exporter.max_connections)),
        ("header_timeout", json!(exact_duration(exporter.header_timeout.as_secs()))),
    ];
    match &exporter.auth {
        Auth::None => {}
        Auth::Basic { user, password: SecretSource::File(file) } => {
            entries.push(("basic_auth", json!({ "user": user, "password_file": file })));
        }
        Auth::Basic { user, password: SecretSource::Value(secret) } => {
            entries.push(("basic_auth", json!({ "user": user, "password": secret.to_string() })));
        }
        Auth::Bearer(SecretSource::File(file)) => entries.push(("bearer_token_file", json!(file))),
        Auth::Bearer(SecretSource::Value(secret)) => {
            entries.push(("bearer_token", json!(secret.to_string())))
        }
    }
    entries
}

fn redis(server: &Redis) -> Vec<(&'static str, Value)> {
    let url = match &server.address {
        RedisAddress::Tcp { host, port, tls } => {
            let scheme = if *tls { "rediss" } else { "redis" };
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            format!("{scheme}://{host}:{port}/{}", server.database)
        }
        RedisAddress::Unix(path) => format!("unix://{}?db={}", path.display(), server.database),
    };
    let mut entries = vec![("url", json!(url)), ("user", json!(server.user))];
    match &server.password {
        None => {}
        Some(SecretSource::File(file)) => entries.push(("password_file", json!(file))),
        Some(SecretSource::Value(secret)) => entries.push(("password", json!(secret.to_string()))),
    }
    entries.push(("ca_file", json!(server.ca_file)));
    if let Some((cert, key)) = &server.client {
        entries.extend([("cert_file", json!(cert)), ("key_file", json!(key))]);
    }
    entries.extend(server.cache.map(|is_cache| ("cache", json!(is_cache))));
    entries
}

fn postgres(server: &Postgres) -> Vec<(&'static str, Value)> {
    let connection = &server.connection;
    let url = match &server.container {
        None => connection.describe(),
        // The container is the host, and stands in a key of its own.
        Some(_) => {
            let hosts = connection.hosts.iter().map(|(_, port)| (String::new(), *port)).collect();
            Connection { hosts, ..connection.clone() }.describe()
        }
    };
    let mut entries = vec![
        ("url", json!(url)),
        // Whether there is one is worth knowing; nothing else about it is.
        ("password", json!(connection.password.as_ref().map(ToString::to_string))),
        ("sslmode", json!(connection.sslmode.as_str())),
        ("require_auth", json!(connection.require_auth.as_ref().map(ToString::to_string))),
        ("channel_binding", json!(connection.channel_binding.as_str())),
        ("sslrootcert", json!(connection.sslrootcert)),
        ("sslcert", json!(connection.sslcert)),
        ("sslkey", json!(connection.sslkey)),
        ("connect_timeout", json!(format!("{}s", connection.connect_timeout.as_secs()))),
        ("options", json!(connection.options)),
        ("bin_dir", json!(server.bin_dir)),
        ("tool_prefix", json!(server.tool_prefix)),
    ];
    let Some(wanted) = &server.container else { return entries };
    entries.push(match &wanted.place {
        Place::Named(name) => ("container", json!(name)),
        Place::Compose { project, service } => ("compose", json!({ "project": project, "service": service })),
    });
    entries.push(("container_client", json!(wanted.client.map(Client::program))));
    entries
}

fn backup(job: &BackupJob) -> Vec<(&'static str, Value)> {
    let mut source = json!({ "postgres": job.postgres });
    match &job.databases {
        Databases::Url => {}
        Databases::All => source["databases"] = json!(["*"]),
        Databases::Named(names) => source["databases"] = json!(names),
    }
    let retention = job.retention.map(|r| {
        json!({
            "last": r.last, "daily": r.daily, "weekly": r.weekly, "monthly": r.monthly, "yearly": r.yearly,
        })
    });
    vec![
        ("source", source),
        ("streams", json!(job.streams)),
        ("compression", json!(job.compression)),
        ("part_size", json!(exact_size(job.part_size))),
        ("large_table", json!(exact_size(job.large_table))),
        ("exclude_table_data", json!(job.exclude_table_data)),
        ("include_extension_tables", json!(job.include_extension_tables)),
        ("timeout", json!(exact_duration(job.timeout.as_secs()))),
        ("rpo", json!(job.rpo.map(|d| exact_duration(d.as_secs())))),
        ("retention", json!(retention)),
    ]
}

/// A size that the configuration reads back as the same number.
fn exact_size(bytes: u64) -> String {
    let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.into_iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// Which of a run's pings are there. All of such a URL is the secret.
fn ping(ping: &Ping) -> Value {
    let all = [("start", &ping.start), ("success", &ping.success), ("fail", &ping.fail)];
    let set: Map<String, Value> = all
        .into_iter()
        .filter(|(_, url)| url.is_some())
        .map(|(key, _)| (key.to_owned(), json!("(set, and not shown)")))
        .collect();
    if set.is_empty() { Value::Null } else { Value::Object(set) }
}

/// The same for durations.
pub fn exact_duration(seconds: u64) -> String {
    match seconds {
        s if s.is_multiple_of(3600) => format!("{}h", s / 3600),
        s if s.is_multiple_of(60) => format!("{}m", s / 60),
        s => format!("{s}s"),
    }
}

fn document(sections: &[Section]) -> Value {
    let mut root = json!({ "postgres": {}, "backup": {}, "redis": {}, "monitor": {} });
    for section in sections {
        let mut at = &mut root;
        for part in &section.path {
            at = &mut at[part.as_str()];
        }
        let entries: Map<String, Value> =
            section.entries.iter().map(|(key, value)| ((*key).to_string(), value.clone())).collect();
        match at {
            Value::Object(existing) => existing.extend(entries),
            other => *other = Value::Object(entries),
        }
    }
    root
}

/// As TOML; what is not set is left out.
fn text(config: &Config, sections: &[Section]) -> String {
    let mut text = format!("# resolved from {}\n", config.path.display());
    for section in sections {
        if !section.path.is_empty() {
            let path: Vec<String> = section.path.iter().map(|part| toml_key(part)).collect();
            text.push_str(&format!("\n[{}]\n", path.join(".")));
        }
        for (key, value) in section.entries.iter().filter(|(_, value)| !value.is_null()) {
            text.push_str(&format!("{key} = {}\n", toml_value(value)));
        }
    }
    text
}

fn toml_key(key: &str) -> String {
    let bare = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { key.to_string() } else { json!(key).to_string() }
}

/// JSON's strings, numbers and booleans are TOML's; lists and tables differ in blanks and signs.
fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(toml_value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(entries) if entries.is_empty() => "{}".to_owned(),
        Value::Object(entries) => {
            let entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("{} = {}", toml_key(key), toml_value(value)))
                .collect();
            format!("{{ {} }}", entries.join(", "))
        }
        // TOML has no escape for DEL that JSON would use, but wants one.
        Value::String(text) => json!(text).to_string().replace('\u{7f}', "\\u007F").replace("${", "$${"),
        other => other.to_string(),
    }
}
