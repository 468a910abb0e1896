//! The schema of `opsd.toml`: TOML text in, [`Config`] out, or every mistake at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::Document;

use super::finding::{Finding, Mistake, Warning};
use super::monitoring::{self, Known, named};
use super::postgres::postgres;
use super::units::{GIB, MIB};
use super::verify::{ping, verify};
use super::walk::{self, Env, Place, Section, Text, Walk};
use super::{
    BackupJob, Config, Databases, Encryption, Location, LockMode, ObjectLock, Repository, Retention,
    SECTIONS, encryption, restore,
};

/// S3's bounds on the parts of a multipart upload (the last one may be smaller).
const S3_PART_MIN: u64 = 5 * MIB;
/// The largest part S3 takes.
const PART_MAX: u64 = 5 * GIB;
/// Streams that wait in parallel hold a connection and memory each.
const STREAMS_MAX: i64 = 64;
/// Parts that a stream holds at the same time: one filling, two in flight.
const PARTS_HELD: u64 = 3;
/// Above this much buffer memory (part size × [`PARTS_HELD`] × streams) a warning is due.
const MEMORY_WARNING: u64 = 2 * GIB;

/// What reading a file found. There is a configuration exactly when there are no mistakes.
#[derive(Debug)]
pub struct Parsed {
    /// The configuration.
    pub config: Option<Config>,
    /// What makes it unusable, in the order of the file.
    pub mistakes: Vec<Mistake>,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// The files with secrets that it names: they are not read here, and whoever reads them has mistakes
    /// to report, too.
    pub secret_files: Vec<SecretFile>,
}

/// A file with a secret, and where the configuration names it.
#[derive(Debug)]
pub struct SecretFile {
    /// As in `encryption.identity_file`.
    pub key: String,
    /// The line of the key, counted from 1.
    pub line: usize,
    /// The file.
    pub path: PathBuf,
}

/// The warning about a key without a second one: for whoever configures or backs up, not for readers.
pub const ONE_RECIPIENT: &str = "one recipient alone: if its identity is lost, so is every backup";

/// The warning about a password that is written out; worse where others may read the file.
pub const PASSWORD_STANDS_HERE: &str = "the password stands in this file";

/// Reads a configuration. `env` is the environment; `path` is for messages and ends up in the
/// result. Files that it names (recipients, password and service files) are read, secret keys not.
pub fn parse(text: &str, path: &Path, env: Env<'_>) -> Parsed {
    let mut walk = Walk::new(path, text, env);
    let config = match Document::parse(text) {
        Ok(document) => {
            let config = site(&mut walk, document.as_table(), path);
            walk::forget(document.into_item());
            config
        }
        Err(error) => {
            let line = error.span().map_or(1, |span| walk.line_at(span.start));
            let place = Place { key: String::new(), line };
            // Only the message: the error's own Display quotes the line, which may hold a secret.
            walk.mistake(
                &place,
                format!("not valid TOML: {}", error.message()),
                "put strings in quotes, and every table's [name] on a line of its own",
            );
            None
        }
    };
    let Walk { mut mistakes, mut warnings, secret_files, .. } = walk;
    let in_order = |f: &Finding| (f.path != path, f.line, f.key.clone());
    mistakes.sort_by_cached_key(in_order);
    warnings.sort_by_cached_key(in_order);
    let secret_files = secret_files.into_iter();
    let secret_files =
        secret_files.map(|(Place { key, line }, path)| SecretFile { key, line, path }).collect();
    Parsed { config: config.filter(|_| mistakes.is_empty()), mistakes, warnings, secret_files }
}

fn site(walk: &mut Walk<'_>, table: &toml_edit::Table, path: &Path) -> Option<Config> {
    let root = walk.root(table);
    walk.only(&root, &SECTIONS);

    let site = match walk.string(&root, "site") {
        Some(text) => name(walk, &text.place, &text.value).then_some(text.value),
        None if root.has("site") => None,
        None => {
            walk.missing(
                &root,
                "site",
                "site = \"NAME\" at the top; it is the first folder in the repository",
            );
            None
        }
    };
    let only_watches = root.has("monitor") && !root.has("backup");
    let has_repository = root.has("repository");
    let repository = match walk.section(&root, "repository") {
        Some(section) => repository(walk, &section),
        None if has_repository => None,
        None if only_watches => Some(Repository::default()),
        None => {
            walk.missing(&root, "repository", super::ADD_REPOSITORY);
            None
        }
    };
    let encryption = match walk.section(&root, "encryption") {
        Some(section) => encryption::encryption(walk, &section),
        None if root.has("encryption") => None,
        None if only_watches => Some(Encryption::default()),
        None => {
            walk.missing(
                &root,
                "encryption",
                "add [encryption] with recipients = [\"age1…\"]; `opsd keygen` makes a key",
            );
            None
        }
    };

    let (server_names, servers) = named(walk, &root, "postgres", postgres);
    let s3 = matches!(&repository, Some(Repository { location: Location::S3 { .. }, .. }));
    let (_, jobs) =
        named(walk, &root, "backup", |walk, section, key| job(walk, section, key, &server_names, s3));
    let (restore_settings, refresh_timeout) = restore::restore(walk, &root);
    let (redis_names, redis) = named(walk, &root, "redis", monitoring::redis);
    let exporter = walk.section(&root, "exporter").map(|section| monitoring::exporter(walk, &section));
    let known = Known { postgres: &server_names, redis: &redis_names, repository: has_repository };
    let (_, monitors) =
        named(walk, &root, "monitor", |walk, section, key| monitoring::monitor(walk, section, key, &known));
    Some(Config {
        path: path.to_path_buf(),
        site: site?,
        repository: repository?,
        encryption: encryption?,
        postgres: servers,
        backup: jobs,
        restore_settings,
        refresh_timeout,
        redis,
        exporter: exporter.unwrap_or_default(),
        monitor: monitors,
    })
}

/// Sites and jobs become folders in the repository, so their names are narrow.
pub(super) fn name(walk: &mut Walk<'_>, place: &Place, name: &str) -> bool {
    let message = if name.is_empty() {
        "is empty"
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    {
        "is no valid name"
    } else if name.starts_with("verified-") {
        "may not start with verified-"
    } else if name.len() > 100 {
        "is longer than 100 characters"
    } else {
        return true;
    };
    walk.mistake(
        place,
        message,
        "names are ASCII letters, digits, _ . and -, and start with a letter or digit",
    );
    false
}

fn repository(walk: &mut Walk<'_>, section: &Section<'_>) -> Option<Repository> {
    walk.only(section, &["url", "endpoint", "region", "path_style", "lock"]);
    let location = match walk.filled(section, "url") {
        Some(url) => location(walk, &url),
        None if section.has("url") => None,
        None => {
            walk.missing(section, "url", "url = \"s3://bucket/prefix\" or \"file:///path\"");
            None
        }
    };
    let endpoint = walk.filled(section, "endpoint").and_then(|text| endpoint(walk, text));
    let region = walk.filled(section, "region").map(|text| text.value);
    let path_style = walk.boolean(section, "path_style").unwrap_or(false);
    let lock = section.has("lock").then(|| lock(walk, section));
    if matches!(location, Some(Location::File(_))) {
        for key in ["endpoint", "region", "path_style"] {
            if section.has(key) {
                let place = walk.place(section, key);
                walk.mistake(&place, "has no meaning for a file:// repository", "remove it");
            }
        }
        if section.has("lock") {
            let place = walk.place(section, "lock");
            walk.mistake(
                &place,
                "a file:// repository locks nothing: whoever may write to the directory may delete there",
                "remove it, or keep the sets in a bucket with Object Lock",
            );
        }
    }
    let lock = match lock {
        Some(lock) => Some(lock?),
        None => None,
    };
    Some(Repository { location: location?, endpoint, region, path_style, lock })
}

/// The longest retention that S3 takes: a hundred years.
const LOCK_DAYS_MAX: i64 = 36_500;

fn lock(walk: &mut Walk<'_>, repository: &Section<'_>) -> Option<ObjectLock> {
    const FORM: &str = "lock = { mode = \"governance\", days = 30 }";
    let section = walk.section(repository, "lock")?;
    walk.only(&section, &["mode", "days"]);
    for key in ["mode", "days"] {
        if !section.has(key) {
            walk.missing(&section, key, FORM);
        }
    }
    let days = walk.integer(&section, "days", 1..=LOCK_DAYS_MAX).and_then(|days| u32::try_from(days).ok());
    let mode = walk.filled(&section, "mode")?;
    let mode = match mode.value.as_str() {
        "governance" => LockMode::Governance,
        "compliance" => LockMode::Compliance,
        _ => {
            walk.mistake(
                &mode.place,
                "is no mode of Object Lock",
                "governance (some credentials may end it) or compliance (nobody may, before its time)",
            );
            return None;
        }
    };
    Some(ObjectLock { mode, days: days? })
}

fn location(walk: &mut Walk<'_>, url: &Text) -> Option<Location> {
    const FORMS: &str = "write s3://bucket/prefix or file:///path";
    let clean = |path: &str| {
        !path.split('/').any(|part| part.is_empty() || part == "." || part == "..")
            && !path.chars().any(char::is_control)
            && !path.contains('\\')
    };
    if let Some(rest) = url.value.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if bucket.contains('@') || rest.contains('?') {
            walk.mistake(&url.place, "credentials and options do not belong into the URL",
                "credentials come from AWS_ACCESS_KEY_ID or a profile; endpoint and region are keys of [repository]");
        } else if bucket.is_empty()
            || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            walk.mistake(&url.place, "has no valid bucket name", FORMS);
        } else if !prefix.is_empty() && !clean(prefix) {
            walk.mistake(
                &url.place,
                "prefix has an empty, . or .. component or a character that keys may not have",
                FORMS,
            );
        } else {
            return Some(Location::S3 { bucket: bucket.into(), prefix: prefix.into() });
        }
        return None;
    }
    if let Some(path) = url.value.strip_prefix("file://") {
        let inner = path.trim_end_matches('/').strip_prefix('/');
        if inner.is_some_and(clean) {
            return Some(Location::File(PathBuf::from(path.trim_end_matches('/'))));
        }
        walk.mistake(
            &url.place,
            "must be file:// and an absolute path below /",
            "as in file:///var/backups/opsd",
        );
        return None;
    }
    walk.mistake(&url.place, "is neither s3:// nor file://", FORMS);
    None
}

fn endpoint(walk: &mut Walk<'_>, text: Text) -> Option<String> {
    let rest = text.value.strip_prefix("https://").or_else(|| text.value.strip_prefix("http://"));
    let message = match rest {
        None => "must start with https:// or http://",
        Some(rest) if rest.contains(['@', '?', '#']) => {
            "credentials and options do not belong into the endpoint"
        }
        Some(rest) if rest.starts_with('/') || rest.is_empty() => "names no host",
        Some(rest) if rest.contains(|c: char| c.is_whitespace() || c.is_control()) => "is no valid URL",
        Some(_) => return Some(text.value.trim_end_matches('/').to_string()),
    };
    walk.mistake(&text.place, message, "as in https://s3.example.org");
    None
}

fn job(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    name: &str,
    servers: &[String],
    s3: bool,
) -> Option<BackupJob> {
    walk.only(
        section,
        &[
            "source",
            "streams",
            "compression",
            "part_size",
            "large_table",
            "exclude_table_data",
            "include_extension_tables",
            "timeout",
            "rpo",
            "retention",
            "verify",
            "ping_url",
        ],
    );
    let source = match walk.section(section, "source") {
        Some(source_section) => source(walk, &source_section, servers),
        None if section.has("source") => None,
        None => {
            walk.missing(
                section,
                "source",
                "source = { postgres = \"NAME\" } with the NAME of a [postgres.NAME]",
            );
            None
        }
    };
    let default = BackupJob::named(name);
    let streams = walk.integer(section, "streams", 1..=STREAMS_MAX).unwrap_or(default.streams as i64);
    let compression = walk.integer(section, "compression", 1..=22);
    let mut part_size = default.part_size;
    if let Some((place, size)) = walk.size(section, "part_size") {
        if size == 0 {
            walk.mistake(&place, "must be more than nothing", "as in \"8MiB\"");
        } else if s3 && size < S3_PART_MIN {
            walk.mistake(&place, "is below 5MiB, the least that S3 takes", "as in \"8MiB\"");
        } else if size > PART_MAX {
            walk.mistake(&place, "is above 5GiB, the most that S3 takes", "as in \"8MiB\"");
        } else if size.saturating_mul(PARTS_HELD).saturating_mul(streams.unsigned_abs()) > MEMORY_WARNING {
            walk.advise(
                &place,
                format!(
                    "about {} GiB of memory for buffers ({PARTS_HELD} parts a stream)",
                    size.saturating_mul(PARTS_HELD).saturating_mul(streams.unsigned_abs()) / GIB
                ),
                None,
            );
        }
        part_size = size;
    }
    let large_table = walk.size(section, "large_table").map_or(default.large_table, |(_, size)| size);
    let exclude_table_data = walk.table_patterns(section, "exclude_table_data");
    let include_extension_tables = walk.table_patterns(section, "include_extension_tables");
    let timeout = timeout(walk, section, default.timeout, "a backup");
    let rpo = walk.duration(section, "rpo").and_then(|(place, duration)| {
        if duration.is_zero() {
            walk.mistake(&place, "must be more than nothing", "as in \"24h\"");
        }
        Some(duration).filter(|d| !d.is_zero())
    });
    let retention = walk.section(section, "retention").map(|s| retention(walk, &s));
    let verify = verify(walk, section, default.verify);
    let ping = ping(walk, section);
    let (postgres, databases) = source?;
    Some(BackupJob {
        name: name.into(),
        postgres,
        databases,
        streams: usize::try_from(streams).unwrap_or(1),
        compression: compression.and_then(|n| i32::try_from(n).ok()).unwrap_or(default.compression),
        part_size,
        large_table,
        exclude_table_data,
        include_extension_tables,
        timeout,
        rpo,
        retention,
        verify,
        ping,
    })
}

fn source(walk: &mut Walk<'_>, section: &Section<'_>, servers: &[String]) -> Option<(String, Databases)> {
    walk.only(section, &["postgres", "databases"]);
    let databases = match walk.strings(section, "databases") {
        None => Databases::Url,
        Some((place, names)) => databases(walk, &place, names),
    };
    let Some(server) = walk.filled(section, "postgres") else {
        if !section.has("postgres") {
            walk.missing(section, "postgres", "postgres = \"NAME\" with the NAME of a [postgres.NAME]");
        }
        return None;
    };
    Some((monitoring::reference(walk, server, servers, "postgres")?, databases))
}

pub(super) fn databases(walk: &mut Walk<'_>, place: &Place, names: Vec<Text>) -> Databases {
    if names.is_empty() {
        walk.mistake(place, "is an empty list", "leave it out for the URL's database, or [\"*\"] for all");
    }
    if names.len() > 1 && names.iter().any(|n| n.value == "*") {
        walk.mistake(place, "\"*\" already means every database", "leave the other names out");
    }
    let mut seen = BTreeSet::new();
    for name in &names {
        if !seen.insert(name.value.as_str()) {
            walk.mistake(&name.place, "this database is listed twice", "leave one of them out");
        }
        if name.value.contains('\0') || name.value.len() > 63 {
            walk.mistake(&name.place, "is no valid database name", "at most 63 bytes");
        }
    }
    match names.as_slice() {
        [only] if only.value == "*" => Databases::All,
        _ => Databases::Named(names.into_iter().map(|n| n.value).collect()),
    }
}

fn retention(walk: &mut Walk<'_>, section: &Section<'_>) -> Retention {
    walk.only(section, &["last", "daily", "weekly", "monthly", "yearly"]);
    let before = walk.mistakes.len();
    let mut rule = |key| {
        let number = walk.integer(section, key, 0..=100_000).unwrap_or(0);
        u32::try_from(number).unwrap_or(0)
    };
    let retention = Retention {
        last: rule("last"),
        daily: rule("daily"),
        weekly: rule("weekly"),
        monthly: rule("monthly"),
        yearly: rule("yearly"),
    };
    if retention == Retention::default() && walk.mistakes.len() == before {
        walk.mistake(
            &section.place,
            "keeps nothing",
            "as in { last = 3, daily = 30 }; leave it out to never prune",
        );
    }
    retention
}

/// How long something may take as a whole, in the section's `timeout`.
pub(super) fn timeout(
    walk: &mut Walk<'_>,
    section: &Section<'_>,
    default: Duration,
    of_what: &str,
) -> Duration {
    let Some((place, timeout)) = walk.duration(section, "timeout") else { return default };
    if timeout.is_zero() {
        walk.mistake(&place, format!("leaves no time for {of_what}"), "as in \"12h\"");
    }
    timeout
}

#[cfg(test)]
mod tests;
