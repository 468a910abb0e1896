//! `opsd backups show`: everything about one set.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Summary, ago, entries, rows_known, time, warnings};
use crate::cli::output::{self, seconds, wrapped};
use crate::cli::restore::rehearsed_on;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::printable;
use crate::set::catalog::{self, Entry, Loaded, Signature, State};
use crate::set::manifest::{Database, Manifest, Stream};
use crate::set::verification::Verification;
use crate::set::{FAILED, set_prefix};
use crate::store::{self, Store};

/// Arguments of `opsd backups show`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Set, by its id, the beginning of it, or JOB/ID
    id: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    set: Summary,
    manifest: Option<&'a Manifest>,
    manifest_sha256: Option<&'a str>,
    verifications: &'a [Verification],
    objects: Vec<Object<'a>>,
    /// What lies there and is not opsd's.
    foreign: Vec<&'a str>,
    /// What the run that failed left behind.
    failure: Option<String>,
}

#[derive(Debug, Serialize)]
struct Object<'a> {
    key: &'a str,
    size: u64,
    modified: DateTime<Utc>,
}

/// Shows what is known. A set that is refused is still shown, and is still an error.
pub async fn run(args: &Args, config: &Config, store: &dyn Store, now: DateTime<Utc>) -> Result<()> {
    let entry = entry(config, store, &args.id).await?;
    let loaded = catalog::load_entry(store, &config.encryption.trusted, entry.clone()).await;
    let failure = if entry.state == State::Failed { Some(failure(store, &entry).await) } else { None };
    let set = loaded.as_ref().ok();
    if args.json {
        output::json(&Document {
            set: Summary::new(&entry, &loaded, now),
            manifest: set.map(|s| &s.manifest),
            manifest_sha256: set.map(|s| s.manifest_sha256.as_str()),
            verifications: set.map_or(&[], |s| &s.verifications),
            objects: entry
                .objects
                .iter()
                .map(|o| Object { key: &o.key, size: o.size, modified: o.modified })
                .collect(),
            foreign: set.map(Loaded::foreign).unwrap_or_default(),
            failure,
        })?;
    } else {
        if let Some(set) = set
            && set.signature == Signature::Unchecked
            && let Some(warning) = catalog::unauthenticated(store, set).await
        {
            output::note("warning: ", warning);
        }
        output::text(match set {
            Some(set) => describe(set, now),
            None => describe_entry(&entry, failure.as_deref(), now),
        })?;
    }
    match loaded {
        Err(error) if entry.state == State::Complete => Err(error),
        _ => Ok(()),
    }
}

/// The set of any job that an id, the beginning of just one id, or `JOB/ID` means.
pub async fn entry(config: &Config, store: &dyn Store, id: &str) -> Result<Entry> {
    if id == "latest" {
        return Err(Error::usage("which job's latest set is meant is not clear here")
            .with_hint("`opsd backups list` shows the ids; the beginning of one is enough"));
    }
    let (jobs, id) = match id.rsplit_once('/') {
        Some((job, id)) => (vec![job.to_owned()], id),
        None => (Vec::new(), id),
    };
    let all: Vec<Entry> = entries(config, store, &jobs).await?.into_values().flatten().collect();
    catalog::find_entry(&all, id).cloned()
}

/// What `failed.json` says, as far as it can be read.
async fn failure(store: &dyn Store, entry: &Entry) -> String {
    const LIMIT: u64 = 256 * 1024;
    let key = set_prefix(&entry.site, &entry.job, &entry.id) + FAILED;
    match store::get(store, &key, LIMIT).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{FAILED} cannot be read: {error}"),
    }
}

fn describe_entry(entry: &Entry, failure: Option<&str>, now: DateTime<Utc>) -> String {
    let mut out = heading(&entry.id, &entry.job, &entry.site);
    let state = match entry.state {
        State::Complete => "refused: it has a manifest that is not believed",
        State::Incomplete => "incomplete: no manifest; still being written, or its run was killed",
        State::Failed => "failed: the run that made it gave up",
    };
    field(&mut out, "state", state);
    field(&mut out, "started", &format!("{} ({})", time(entry.id_time()), ago(entry.id_time(), now)));
    let size = format!("{} in {} objects", output::size(entry.occupied_bytes()), entry.objects.len());
    field(&mut out, "size", &size);
    if let Some(failure) = failure {
        out.push_str("\nwhat the run said\n");
        for line in failure.lines() {
            out.push_str(&wrapped("  ", line));
        }
    }
    out.push_str("\nobjects\n");
    for object in &entry.objects {
        let _ = writeln!(out, "  {:>10}  {}", output::size(object.size), printable::line(&object.key));
    }
    out
}

fn describe(set: &Loaded, now: DateTime<Utc>) -> String {
    let manifest = &set.manifest;
    let mut out = heading(&set.entry.id, &set.entry.job, &set.entry.site);
    let vouched = match &set.signature {
        Signature::Trusted(key) => format!("complete, signed with trusted key {key}"),
        Signature::Unsigned => "complete, not signed".to_owned(),
        Signature::Unchecked => "complete, signed, but no key is trusted to check it with".to_owned(),
    };
    field(&mut out, "state", &vouched);
    let verified = match set.verified() {
        None => "never; `opsd restore --verify` proves that it restores".to_owned(),
        Some(v) => format!("{}, {} ({})", v.verdict, time(v.finished), ago(v.finished, now)),
    };
    field(&mut out, "verified", &verified);
    let reliance = set.reliance(now);
    if !reliance.is_sound() {
        field(&mut out, "doubt", &format!("it may not be relied on: {reliance}"));
    }
    let took = seconds((manifest.finished - manifest.started).as_seconds_f64());
    let started = format!("{} ({}), took {took}", time(manifest.started), ago(manifest.started, now));
    field(&mut out, "started", &started);
    field(&mut out, "previous", manifest.previous.as_deref().unwrap_or("none known"));
    let standby = if manifest.server.in_recovery { ", a standby" } else { "" };
    let versions = format!(
        "PostgreSQL {}{standby}; pg_dump {}, opsd {}",
        manifest.server.version, manifest.pg_dump_version, manifest.opsd_version
    );
    field(&mut out, "server", &versions);
    let size = format!(
        "{} as dumped, {} stored; {} in {} objects with manifest and records",
        output::size(manifest.plain_bytes()),
        output::size(manifest.stored_bytes()),
        output::size(set.entry.occupied_bytes()),
        set.entry.objects.len()
    );
    field(&mut out, "size", &size);
    field(&mut out, "readers", &manifest.recipients.join(" "));
    field(&mut out, "SHA-256", &set.manifest_sha256);

    for database in &manifest.databases {
        describe_database(&mut out, manifest, database);
    }
    if let Some(globals) = &manifest.globals {
        out.push_str("\nroles and settings of the cluster\n");
        describe_streams(&mut out, std::iter::once(globals));
    }
    out.push_str("\nrehearsals\n");
    if set.verifications.is_empty() {
        out.push_str("  none that counts\n");
    }
    for record in &set.verifications {
        describe_record(&mut out, record);
    }
    section(&mut out, "warnings", &warnings(set));
    section(&mut out, "not opsd's, and left alone", &set.foreign());
    out
}

fn describe_database(out: &mut String, manifest: &Manifest, database: &Database) {
    let _ = writeln!(out, "\ndatabase {}", printable::line(&database.name));
    let counts = if rows_known(manifest) {
        format!("{}, {}, ", output::counted(database.tables, "table"), output::counted(database.rows, "row"))
    } else {
        String::new()
    };
    let proof = format!("{:?}", database.proof).to_lowercase();
    field(out, "content", &format!("{counts}{}, proof {proof}", output::size(database.bytes)));
    let snapshot = format!("{} at {}", time(database.snapshot_time), database.snapshot_lsn);
    field(out, "snapshot", &snapshot);
    let locale = &database.locale;
    let name = locale.locale.as_deref().unwrap_or(&locale.collate);
    field(out, "locale", &format!("{}, {name} ({})", locale.encoding, locale.provider));
    if !database.extensions.is_empty() {
        let extensions: Vec<String> =
            database.extensions.iter().map(|e| format!("{} {}", e.name, e.version)).collect();
        field(out, "extensions", &extensions.join(", "));
    }
    describe_streams(out, database.streams.iter().chain(&database.proof_object));
}

fn describe_streams<'s>(out: &mut String, streams: impl Iterator<Item = &'s Stream>) {
    let _ = writeln!(out, "  {:<12}  {:>10}  {:>10}  {:>8}  OBJECTS", "STREAM", "DUMPED", "STORED", "TOOK");
    for stream in streams {
        let _ = writeln!(
            out,
            "  {:<12}  {:>10}  {:>10}  {:>8}  {}",
            printable::line(&stream.name),
            output::size(stream.plain_size),
            output::size(stream.objects.iter().map(|o| o.size).sum()),
            seconds(stream.seconds),
            match &stream.objects[..] {
                [only] => printable::line(&only.key).into_owned(),
                several => several.len().to_string(),
            }
        );
    }
}

fn describe_record(out: &mut String, record: &Verification) {
    let took = seconds(record.total_seconds());
    let _ = writeln!(out, "  {}  {} in {took}", time(record.finished), record.verdict);
    let phases: Vec<String> =
        record.seconds.0.iter().map(|(phase, took)| format!("{phase} {}", seconds(*took))).collect();
    if !phases.is_empty() {
        out.push_str(&wrapped("    ", &phases.join(", ")));
    }
    if let (Some(version), Some(place)) = (&record.server_version, &record.place) {
        out.push_str(&wrapped("    ", &rehearsed_on(version, place)));
    }
    for database in &record.databases {
        let proven = format!(
            "{}: {} of {} proven, {}",
            database.name,
            output::count(database.tables_proven),
            output::counted(database.tables_total, "table"),
            output::counted(database.rows, "row")
        );
        out.push_str(&wrapped("    ", &proven));
        for difference in &database.differences {
            out.push_str(&wrapped("      differs: ", difference));
        }
    }
    for difference in &record.differences {
        out.push_str(&wrapped("    differs: ", difference));
    }
    for scope in record.scope.iter().filter(|scope| !scope.covered) {
        out.push_str(&wrapped("    not covered: ", &scope.to_string()));
    }
    if let Some(reason) = &record.reason {
        out.push_str(&wrapped("    because: ", reason));
    }
    for warning in &record.warnings {
        out.push_str(&wrapped("    ! ", warning));
    }
}

fn heading(id: &str, job: &str, site: &str) -> String {
    format!("set {id} of job {}, site {}\n", printable::line(job), printable::line(site))
}

fn field(out: &mut String, name: &str, value: &str) {
    out.push_str(&wrapped(&format!("  {name:<10}  "), value));
}

fn section(out: &mut String, title: &str, lines: &[impl AsRef<str>]) {
    if !lines.is_empty() {
        let _ = writeln!(out, "\n{title}");
        for line in lines {
            out.push_str(&wrapped("  - ", line.as_ref()));
        }
    }
}
