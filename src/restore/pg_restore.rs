//! pg_restore: how it is started and fed.
//!
//! A stream comes by stdin. The schema archive waits in anonymous memory, because pg_restore needs to
//! seek in it and plaintext does not belong on a disk. Deliberately absent: any order of things, which is
//! `load`'s, and what its complaints mean, which is `complaints`'.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use chrono::Utc;
use tokio::process::Command;

use super::complaints::{Complaint, Fault, judge, judge_after_rows, judge_all};
use super::{Origin, Target};
use crate::config::Connection;
use crate::config::libpq::dbname_argument;
use crate::error::{Context, Error, Result};
use crate::postgres::settings;
use crate::postgres::tools::Tools;
use crate::process::{self, Exit, Input, Output};
use crate::progress::Event;
use crate::set::archive::parser::Parser;
use crate::set::archive::select::{rewrite, select};
use crate::set::archive::split::{EVERYWHERE, Piece, Splitter, To};
use crate::set::archive::{Entry, Section, write};
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::{Database, Stream};
use crate::set::seal::{Unsealed, cause, read_stream};

/// Bytes moved at a time towards pg_restore.
const COPY_SIZE: usize = 256 << 10;

/// How long pg_restore may take to connect, and to do nothing.
const TRY_BOUND: Duration = Duration::from_secs(60);

/// What pg_restore made of a stream.
#[derive(Debug, Default)]
pub struct Restored {
    /// Its table of contents, where that was asked for.
    pub entries: Vec<Entry>,
    /// What may be said of a success.
    pub warnings: Vec<String>,
    /// What the server refused.
    pub failed: Vec<Complaint>,
}

/// Feeds one stream to a pg_restore's stdin, but for the entries `without`, by dump id. Where its entries are
/// asked for, what the server refuses is no error, and told.
pub async fn run_stream(
    origin: &Origin,
    database: &Database,
    stream: &Stream,
    target: &Target,
    arguments: &[impl AsRef<OsStr>],
    without: HashSet<i32>,
    keep_entries: bool,
) -> Result<Restored> {
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
        let mut splitter = Splitter::without(without);
        let mut buffer = vec![0; COPY_SIZE];
        let mut feed = || -> Result<bool> {
            loop {
                let n = source.read(&mut buffer)?;
                if n == 0 {
                    return Ok(true);
                }
                if let Some(parser) = &mut parser {
                    parser.feed(&buffer[..n])?;
                }
                let mut is_read = true;
                splitter.feed(&buffer[..n], &mut |piece| {
                    if let Piece::Bytes(To::Rest, bytes) = piece {
                        is_read &= stdin.write_all(bytes).is_ok();
                    }
                    Ok(())
                })?;
                // A pg_restore that stopped reading says why by itself.
                if !is_read {
                    return Ok(false);
                }
                progress(Event::StreamBytes { name: shown.clone(), bytes: n as u64 });
            }
        };
        let whole = feed();
        // What the pipe's other end is told depends on how it went: so it stays open.
        (whole, parser, stdin, source)
    });
    let (whole, parser, stdin, source) =
        fed.await.map_err(|e| Error::new(format!("stream {name} stopped: {e}")))?;
    let exit = if whole.is_ok() {
        drop(stdin);
        child.wait().await?
    } else {
        // To pg_restore the end of its input would look like the end of the archive, and what was cut off
        // would be committed.
        let exit = child.stop().await?;
        drop(stdin);
        exit
    };
    (origin.progress)(Event::StreamFinished { name: name.clone() });
    match whole.and_then(|whole| restored(whole, parser, &exit)) {
        Ok(restored) => Ok(restored),
        Err(error) => Err(cause(source, error).await.context(format!("stream {name}"))),
    }
}

/// What pg_restore made of a stream that could be read, at least as far as it wanted to.
fn restored(is_whole: bool, parser: Option<Parser>, exit: &Exit) -> Result<Restored> {
    let entries = match parser {
        Some(parser) if is_whole => parser.finish()?.entries,
        _ => Vec::new(),
    };
    let (warnings, mut failed) = judge_all(exit, &entries, |failed| goes_on(&entries, failed))?;
    if !is_whole {
        return Err(Error::new("pg_restore stopped reading, and called it a success"));
    }
    if failed.iter().any(|c| c.fault == Fault::Elsewhere && !is_after_rows(&entries, c)) {
        failed.iter_mut().for_each(|c| c.fault = Fault::Elsewhere);
    }
    Ok(Restored { entries, warnings, failed })
}

/// Whether the rest is there all the same. Where the entries are not known, nobody could tell what failed.
fn goes_on(entries: &[Entry], failed: &[Complaint]) -> bool {
    !entries.is_empty() && failed.iter().all(|c| c.fault != Fault::Trouble || is_after_rows(entries, c))
}

fn is_after_rows(entries: &[Entry], complaint: &Complaint) -> bool {
    after_rows(entries).any(|e| Some(e.dump_id) == complaint.id)
}

/// Entries that pg_restore counts among post-data: what has no section of its own (comments,
/// privileges) belongs to what stands before it.
pub fn after_rows(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    let mut section = Section::PreData;
    entries.iter().filter(move |entry| {
        if entry.section != Section::None {
            section = entry.section;
        }
        section == Section::PostData
    })
}

/// An archive of what comes after the rows, in anonymous memory, out of a table of contents with definitions.
pub fn later_in_memory(entries: &[Entry]) -> Result<File> {
    let first = entries.iter().filter(|e| EVERYWHERE.contains(&e.desc.as_str()));
    let later: Vec<Entry> = first.chain(after_rows(entries)).cloned().collect();
    in_file(&write::contents("", Utc::now(), &later))
}

/// A stream's table of contents, without reading what follows it. A stream that holds definitions comes with them.
pub async fn fetch_contents(origin: &Origin, stream: &Stream) -> Result<Vec<Entry>> {
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, stream, origin.identities.clone(), |_| ())?;
    let has_definitions = stream.name == "full";
    let fetched = tokio::task::spawn_blocking(move || {
        contents(&mut source, has_definitions).map_err(|error| source.cause(error))
    });
    let fetched = fetched.await.map_err(|e| Error::new(format!("reading a stream stopped: {e}")))?;
    fetched.with_context(|| format!("stream {}", stream.name))
}

fn contents(source: &mut Unsealed, keep_definitions: bool) -> Result<Vec<Entry>> {
    let mut parser = Parser::new(&RowSecret::generate(), keep_definitions);
    let mut buffer = vec![0; COPY_SIZE];
    loop {
        if let Some(entries) = parser.contents() {
            return Ok(entries.to_vec());
        }
        match source.read(&mut buffer)? {
            0 => return Ok(parser.finish()?.entries),
            n => parser.feed(&buffer[..n])?,
        }
    }
}

/// Most bytes of definitions that are held in memory: millions of tables fit. What a manifest claims is
/// no reason to fill a host's memory.
const MAX_SCHEMA: u64 = 4 << 30;

/// The schema archive in anonymous memory, and its table of contents.
pub async fn fetch_schema(origin: &Origin, schema: &Stream) -> Result<(File, Vec<Entry>)> {
    if schema.plain_size > MAX_SCHEMA {
        return Err(Error::new(format!(
            "the definitions have {} MiB, and no more than {} MiB are held in memory",
            schema.plain_size >> 20,
            MAX_SCHEMA >> 20
        ))
        .with_hint("restore this set as its RESTORE.md says"));
    }
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, schema, origin.identities.clone(), |_| ())?;
    let fetched =
        tokio::task::spawn_blocking(move || in_memory(&mut source).map_err(|error| source.cause(error)));
    let fetched = fetched.await.map_err(|e| Error::new(format!("reading the schema stopped: {e}")))?;
    fetched.with_context(|| format!("stream {}", schema.name))
}

fn in_memory(source: &mut Unsealed) -> Result<(File, Vec<Entry>)> {
    let mut file = anonymous_file("opsd-schema")?;
    let mut parser = Parser::new(&RowSecret::generate(), true);
    let mut buffer = vec![0; COPY_SIZE];
    loop {
        let n = source.read(&mut buffer)?;
        if n == 0 {
            return Ok((file, parser.finish()?.entries));
        }
        parser.feed(&buffer[..n])?;
        file.write_all(&buffer[..n])?;
    }
}

/// Which entries of the schema archive are restored.
pub enum Part<'a> {
    /// `pre-data` or `post-data`.
    Section(&'a str),
    /// These, by dump id, in the archive's order.
    Entries(&'a HashSet<i32>),
    /// These, made by other SQL than they were.
    Rewritten(&'a HashMap<i32, String>),
}

impl<'a> Part<'a> {
    fn name(&self) -> &'a str {
        match self {
            Part::Section(section) => section,
            Part::Entries(_) | Part::Rewritten(_) => "indexes and constraints",
        }
    }
}

/// Restores a part of the schema archive, with this many connections; every failure is an error.
pub async fn run_schema(
    target: &Target,
    archive: &File,
    part: Part<'_>,
    jobs: usize,
    arguments: &[&str],
) -> Result<Vec<String>> {
    let what = part.name();
    let exit = restore_part(target, archive, part, jobs, arguments).await?;
    judge(&exit, &[]).context(what)
}

/// Restores what the rows need. What fails is told, and no error: rows may do without. Where something is not there
/// because this host cannot have it, all else may have failed for the lack of that.
pub async fn run_before_rows(
    target: &Target,
    archive: &File,
    entries: &[Entry],
    part: Part<'_>,
    arguments: &[&str],
) -> Result<(Vec<String>, Vec<Complaint>)> {
    let exit = restore_part(target, archive, part, 1, arguments).await?;
    let may_fail = |failed: &[Complaint]| failed.iter().all(|c| c.fault != Fault::Trouble);
    let (warnings, mut failed) = judge_all(&exit, entries, may_fail).context("pre-data")?;
    if failed.iter().any(|c| c.fault == Fault::Elsewhere) {
        failed.iter_mut().for_each(|c| c.fault = Fault::Elsewhere);
    }
    Ok((warnings, failed))
}

/// Restores what comes after the rows, with this many connections, and tells what failed: the rows are in.
pub async fn run_after_rows(
    target: &Target,
    archive: &File,
    entries: &[Entry],
    part: Part<'_>,
    jobs: usize,
    arguments: &[&str],
) -> Result<(Vec<String>, Vec<Complaint>)> {
    let exit = restore_part(target, archive, part, jobs, arguments).await?;
    Ok(judge_after_rows(&exit, entries))
}

async fn restore_part(
    target: &Target,
    archive: &File,
    part: Part<'_>,
    jobs: usize,
    arguments: &[&str],
) -> Result<Exit> {
    let mut command = target.command()?;
    command.args(arguments);
    let archive = match part {
        Part::Section(section) => {
            command.arg(format!("--section={section}"));
            again(archive)?
        }
        Part::Entries(ids) => in_file(&select(again(archive)?, ids)?)?,
        Part::Rewritten(definitions) => in_file(&rewrite(again(archive)?, definitions)?)?,
    };
    // In a container a path means nothing, and from stdin there is one job.
    let jobs = if target.tools.run_here() { jobs } else { 1 };
    if target.tools.run_here() {
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        // Opened anew, at the beginning, for each of its workers. The path is the child's own: while keys
        // are loaded, nobody may look into this process, its children included.
        command.arg("/proc/self/fd/0");
    }
    let stdin = Input::File(archive);
    let mut child = if jobs > 1 {
        process::spawn_apart("pg_restore", command, stdin, Output::Null)?
    } else {
        process::spawn("pg_restore", command, stdin, Output::Null)?
    };
    let exit = child.wait().await?;
    Ok(exit)
}

/// Whether pg_restore gets through to a database, in the way that a restore will ask it to: it restores an archive of
/// nothing.
pub async fn try_connection(tools: &Tools, connection: &Connection, dbname: &str) -> Result<()> {
    let mut command = tools.command("pg_restore", connection, dbname, "opsd restore")?;
    command.arg(format!("--dbname={}", dbname_argument(dbname))).arg("--no-password");
    let nothing = in_file(&write::contents("", Utc::now(), &[]))?;
    let mut child = process::spawn("pg_restore", command, Input::File(nothing), Output::Null)?;
    let exit = tokio::time::timeout(TRY_BOUND, child.wait()).await;
    let exit = exit
        .map_err(|_| Error::new(format!("pg_restore did not connect within {} s", TRY_BOUND.as_secs())))??;
    exit.check().map_err(|error| tools.explain_prefix(error, connection))
}

fn in_file(archive: &[u8]) -> Result<File> {
    let mut file = anonymous_file("opsd-entries")?;
    file.write_all(archive).context("cannot hold a part of the schema")?;
    again(&file)
}

/// A file in memory: plaintext does not belong on a disk.
fn anonymous_file(name: &str) -> Result<File> {
    let memory = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    Ok(File::from(memory.map_err(std::io::Error::from).context("cannot allocate memory")?))
}

/// A file in memory once more, from its beginning.
fn again(file: &File) -> Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).context("cannot read the schema again")
}

impl Target {
    fn command(&self) -> Result<Command> {
        let mut connection = self.connection.clone();
        let mut options: Vec<String> = connection.options.take().into_iter().collect();
        options.extend(self.settings().map(|(name, value)| settings::option(name, value)));
        connection.options = (!options.is_empty()).then(|| options.join(" "));
        let mut command = self.tools.command("pg_restore", &connection, &self.dbname, "opsd restore")?;
        command.arg(format!("--dbname={}", dbname_argument(&self.dbname)));
        command.arg("--no-password").args(self.left_out.arguments());
        Ok(command)
    }
}
