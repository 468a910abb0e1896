//! Streams into a database: pre-data, then every data stream (as many at once as there are jobs),
//! then post-data in parallel.
//!
//! Each data stream is one transaction, so that running it again cannot double its rows. A stream
//! that fails beside others is run once more alone at the end: a CHECK whose function reads another
//! table only holds once that table is loaded. The schema archive waits in anonymous memory, because
//! pg_restore needs to seek in it and plaintext does not belong on a disk.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::config::Connection;
use crate::config::libpq::dbname_argument;
use crate::error::{Context, Error, Result};
use crate::postgres::tools::Tools;
use crate::process::{self, Exit, Input, Output};
use crate::progress::{Event, Progress};
use crate::set::archive::Entry;
use crate::set::archive::parser::Parser;
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::{Database, Stream};
use crate::set::seal::{Identities, read_stream};
use crate::store::Store;

/// Bytes moved at a time towards pg_restore.
const COPY_SIZE: usize = 256 << 10;
/// Triggers that the dump brings along must not fire while it is restored.
const NO_TRIGGERS: &str = "-c session_replication_role=replica";

/// Where a database is restored to.
#[derive(Clone)]
pub struct Target {
    /// pg_restore, and how it is started.
    pub tools: Tools,
    /// The server.
    pub connection: Connection,
    /// The database, which exists and is empty.
    pub dbname: String,
    /// Streams and index builds at the same time.
    pub jobs: usize,
    /// Whether our role may set what only superusers may.
    pub is_superuser: bool,
    /// Whether tablespaces of the source are to be ignored.
    pub no_tablespaces: bool,
}

/// Where a set's streams come from.
#[derive(Clone)]
pub struct Origin {
    /// The repository.
    pub store: Arc<dyn Store>,
    /// The set's prefix.
    pub prefix: String,
    /// Who can read it.
    pub identities: Identities,
    /// Who listens.
    pub progress: Progress,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The schema's table of contents, with definitions.
    pub schema: Vec<Entry>,
    /// Seconds by phase.
    pub seconds: Vec<(&'static str, f64)>,
    /// What pg_restore complained of and is harmless.
    pub warnings: Vec<String>,
}

/// Restores one database of a set.
pub async fn load(origin: &Origin, database: &Database, target: &Target) -> Result<Loaded> {
    let mut loaded = Loaded::default();
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    if let Some(full) = stream("full") {
        let begun = std::time::Instant::now();
        let (entries, warnings) = run_stream(origin, database, full, target, &[], true).await?;
        loaded.schema = entries;
        loaded.warnings = warnings;
        loaded.seconds.push(("data", begun.elapsed().as_secs_f64()));
        return Ok(loaded);
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let mut clock = std::time::Instant::now();
    let mut lap = |loaded: &mut Loaded, phase| {
        loaded.seconds.push((phase, clock.elapsed().as_secs_f64()));
        clock = std::time::Instant::now();
    };

    (origin.progress)(Event::Phase(format!("{}: schema", database.name)));
    let (archive, entries) = fetch_schema(origin, schema).await?;
    loaded.schema = entries;
    loaded.warnings.extend(run_schema(target, &archive, "pre-data", 1).await?);
    lap(&mut loaded, "schema");

    (origin.progress)(Event::Phase(format!("{}: rows", database.name)));
    let mut data: Vec<&Stream> = database.streams.iter().filter(|s| s.name != "schema").collect();
    data.sort_by_key(|s| std::cmp::Reverse(s.plain_size));
    loaded.warnings.extend(load_data(origin, database, &data, target).await?);
    lap(&mut loaded, "data");

    (origin.progress)(Event::Phase(format!("{}: indexes and constraints", database.name)));
    loaded.warnings.extend(run_schema(target, &archive, "post-data", target.jobs).await?);
    lap(&mut loaded, "post-data");
    Ok(loaded)
}

/// Restores the definitions alone.
pub async fn load_schema(origin: &Origin, database: &Database, target: &Target) -> Result<()> {
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    if let Some(full) = stream("full") {
        let sections = ["--section=pre-data", "--section=post-data"];
        run_stream(origin, database, full, target, &sections, false).await?;
        return Ok(());
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let (archive, _) = fetch_schema(origin, schema).await?;
    run_schema(target, &archive, "pre-data", 1).await?;
    run_schema(target, &archive, "post-data", target.jobs).await?;
    Ok(())
}

async fn load_data(
    origin: &Origin,
    database: &Database,
    streams: &[&Stream],
    target: &Target,
) -> Result<Vec<String>> {
    let mut waiting = streams.iter().map(|s| (*s).clone());
    let mut running = tokio::task::JoinSet::new();
    let mut warnings = Vec::new();
    let mut again: Vec<(Stream, Error)> = Vec::new();
    let arguments = ["--section=data", "--single-transaction"];
    loop {
        while running.len() < target.jobs.max(1)
            && let Some(stream) = waiting.next()
        {
            let (origin, database, target) = (origin.clone(), database.clone(), target.clone());
            running.spawn(async move {
                let result = run_stream(&origin, &database, &stream, &target, &arguments, false).await;
                (stream, result)
            });
        }
        match running.join_next().await {
            None => break,
            Some(Err(error)) => return Err(Error::new(format!("a stream stopped: {error}"))),
            Some(Ok((_, Ok((_, said))))) => warnings.extend(said),
            // Damage does not go away by trying again.
            Some(Ok((_, Err(error)))) if error.kind() != crate::error::Kind::Failed => return Err(error),
            Some(Ok((stream, Err(error)))) => again.push((stream, error)),
        }
    }
    for (stream, error) in again {
        tracing::info!("{error}; trying once more, after the others");
        let (_, said) = run_stream(origin, database, &stream, target, &arguments, false).await?;
        warnings.extend(said);
    }
    Ok(warnings)
}

/// Feeds one stream to a pg_restore's stdin.
async fn run_stream(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    arguments: &[&str],
    keep_entries: bool,
) -> Result<(Vec<Entry>, Vec<String>)> {
    let name = format!("{}/{}", database.name, stream.name);
    (origin.progress)(Event::StreamStarted { name: name.clone(), estimate: stream.plain_size });
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, stream, origin.identities.clone(), |_| ())?;
    let mut command = target.command()?;
    command.args(arguments);
    let mut child = process::spawn("pg_restore", command, Input::Pipe, Output::Null)?;
    let mut stdin = child.stdin.take().ok_or_else(|| Error::new("pg_restore has no stdin"))?;
    let (progress, shown) = (origin.progress.clone(), name.clone());
    let fed = tokio::task::spawn_blocking(move || {
        let mut parser = keep_entries.then(|| Parser::new(&RowSecret::generate(), true));
        let mut buffer = vec![0; COPY_SIZE];
        let mut listening = true;
        loop {
            let n = source.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if let Some(parser) = &mut parser {
                parser.feed(&buffer[..n])?;
            }
            // A pg_restore that stopped reading says why by itself; the rest is read all the same,
            // because damage further on would be the better news.
            listening = listening && stdin.write_all(&buffer[..n]).is_ok();
            progress(Event::StreamBytes { name: shown.clone(), bytes: n as u64 });
        }
        drop(stdin);
        match parser {
            None => Ok(Vec::new()),
            Some(parser) => Ok(parser.finish()?.entries),
        }
    });
    let fed: Result<Vec<Entry>> = fed.await.map_err(|e| Error::new(format!("stream {name} stopped: {e}")))?;
    let exit = match &fed {
        Ok(_) => child.wait().await?,
        // Not end-of-file but an end: what was cut off must not be committed.
        Err(_) => child.stop().await?,
    };
    (origin.progress)(Event::StreamFinished { name: name.clone() });
    let entries = fed.with_context(|| format!("stream {name}"))?;
    let warnings = judge(&exit).with_context(|| format!("stream {name}"))?;
    Ok((entries, warnings))
}

/// The schema archive in anonymous memory, and its table of contents.
async fn fetch_schema(origin: &Origin, schema: &Stream) -> Result<(File, Vec<Entry>)> {
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, schema, origin.identities.clone(), |_| ())?;
    let fetched = tokio::task::spawn_blocking(move || {
        let memory = rustix::fs::memfd_create("opsd-schema", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(std::io::Error::from)
            .context("cannot allocate memory for the schema")?;
        let mut file = File::from(memory);
        let mut parser = Parser::new(&RowSecret::generate(), true);
        let mut buffer = vec![0; COPY_SIZE];
        loop {
            let n = source.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            parser.feed(&buffer[..n])?;
            file.write_all(&buffer[..n])?;
        }
        Ok::<_, Error>((file, parser.finish()?.entries))
    });
    fetched.await.map_err(|e| Error::new(format!("reading the schema stopped: {e}")))?
}

async fn run_schema(target: &Target, archive: &File, section: &str, jobs: usize) -> Result<Vec<String>> {
    let mut command = target.command()?;
    command.arg(format!("--section={section}"));
    if jobs > 1 {
        command.arg(format!("--jobs={jobs}"));
    }
    // Opened anew by the child, at the beginning, for each of its workers.
    command.arg(format!("/proc/{}/fd/{}", std::process::id(), archive.as_raw_fd()));
    let mut child = process::spawn("pg_restore", command, Input::Null, Output::Null)?;
    let exit = child.wait().await?;
    judge(&exit).with_context(|| section.to_owned())
}

impl Target {
    fn command(&self) -> Result<tokio::process::Command> {
        let mut connection = self.connection.clone();
        if self.is_superuser {
            let options = connection.options.take().map(|o| format!("{o} ")).unwrap_or_default();
            connection.options = Some(format!("{options}{NO_TRIGGERS}"));
        }
        let mut command = self.tools.command("pg_restore", &connection, &self.dbname, "opsd restore")?;
        command.arg(format!("--dbname={}", dbname_argument(&self.dbname)));
        command.args(["--no-password"]);
        if self.no_tablespaces {
            command.arg("--no-tablespaces");
        }
        Ok(command)
    }
}

/// Success, harmless complaints as warnings, or an error with the first real complaints.
///
/// pg_restore goes on after an error and exits with 1. What is harmless is told by name: a setting
/// that a newer pg_dump sends and an older server does not know, and what every new database has.
fn judge(exit: &Exit) -> Result<Vec<String>> {
    let lines = exit.stderr_lines();
    if exit.status.success() {
        return Ok(lines.into_iter().filter(|l| l.contains("warning:")).collect());
    }
    let is_error = |line: &&String| line.starts_with("pg_restore: error:");
    let errors: Vec<&String> = lines.iter().filter(is_error).collect();
    let reported = lines.iter().rev().find_map(|l| {
        l.split_once("errors ignored on restore: ").and_then(|(_, n)| n.trim().parse::<usize>().ok())
    });
    let harmless = errors.iter().filter(|l| is_harmless(l)).count();
    if exit.status.code() == Some(1) && reported == Some(harmless) && errors.len() == harmless && harmless > 0
    {
        return Ok(errors.into_iter().map(|l| l.trim().to_owned()).collect());
    }
    exit.check()?;
    Err(Error::new("pg_restore failed"))
}

fn is_harmless(line: &str) -> bool {
    line.contains("unrecognized configuration parameter \"transaction_timeout\"")
        || line.contains("schema \"public\" already exists")
}
