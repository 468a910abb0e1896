//! From pg_dump's stdout to an object: one blocking thread and one upload task a stream.
//!
//! All pg_dumps of a database start at once and are left unread: the first byte of each means that
//! its catalog is read and its locks are held, and from then on neither a dropped view nor a waiting
//! ACCESS EXCLUSIVE lock can harm the set. Then as many are drained at a time as the job has streams.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::coordinator::{LOCK_TIMEOUT, MONETARY};
use super::plan::Archive;
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::messages::{Dump as Failed, explain_dump, of_dump};
use crate::postgres::tools::{KEEPALIVES, Tools};
use crate::process::{self, Child, Exit, Input, Output};
use crate::progress::{Event, Progress};
use crate::set::archive::Entry;
use crate::set::archive::parser::{Contents, Parser};
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::Stream;
use crate::set::seal::{SealOptions, SealWriter, seal, upload};
use crate::store::Store;

/// How long a pg_dump may take to read the catalog and get its locks. Ten thousand tables take
/// seconds; a lock wait is bounded by [`LOCK_TIMEOUT`]; what takes longer than this is stuck.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes read from pg_dump at a time: the capacity its pipe is enlarged to.
const READ_SIZE: usize = 1 << 20;

/// A pg_dump that holds its locks and waits to be read.
pub struct Started {
    archive: Archive,
    child: Child,
    stdout: File,
}

/// A stream that is stored whole.
pub struct Dumped {
    /// Its entry in the manifest.
    pub stream: Stream,
    /// What the archive held.
    pub contents: Contents,
    /// What pg_dump said although it succeeded.
    pub warnings: Vec<String>,
}

/// How a pg_dump is started.
#[derive(Clone, Copy)]
pub struct Dump<'a> {
    /// Which pg_dump.
    pub tools: &'a Tools,
    /// On which server.
    pub connection: &'a Connection,
    /// Of which database.
    pub database: &'a str,
    /// Its encoding: a role may have another one set for what it reads.
    pub encoding: &'a str,
    /// What pg_stat_activity shows.
    pub application_name: &'a str,
}

/// Starts a pg_dump for each archive and waits until all of them hold their locks.
pub async fn start(dump: Dump<'_>, snapshot: &str, archives: &[Archive]) -> Result<Vec<Started>> {
    let Dump { tools, connection, database, encoding, application_name } = dump;
    let mut connection = connection.clone();
    let own = connection.options.take().map(|own| format!("{own} ")).unwrap_or_default();
    // pg_dump's questions about many tables look worth compiling, and are not.
    connection.options = Some(format!("{own}-c lc_monetary={MONETARY} -c jit=off"));
    let mut children = Vec::new();
    for archive in archives {
        let mut command = tools.command("pg_dump", &connection, database, application_name)?;
        command.args(["--format=custom", "--compress=0", "--no-password"]);
        // The database's name stays in the environment.
        command.arg(format!("--dbname={KEEPALIVES}"));
        command.arg(format!("--snapshot={snapshot}"));
        command.arg(format!("--encoding={encoding}"));
        command.arg(format!("--lock-wait-timeout={LOCK_TIMEOUT}"));
        if tools.major >= 18 {
            // Statistics come from ANALYZE after a restore; dumped ones double and lose some.
            command.arg("--no-statistics");
        }
        command.args(&archive.args);
        let mut child = process::spawn("pg_dump", command, Input::Null, Output::Pipe)?;
        let stdout = child.stdout.take().ok_or_else(|| Error::new("pg_dump has no stdout"))?;
        children.push((archive.clone(), child, stdout));
    }
    let mut started: Vec<Started> =
        children.into_iter().map(|(archive, child, stdout)| Started { archive, child, stdout }).collect();
    for next in &mut started {
        if let Err(error) = holds_locks(next, database).await {
            stop(started).await;
            return Err(error);
        }
    }
    Ok(started)
}

/// Returns when a pg_dump has written its first byte.
async fn holds_locks(started: &mut Started, database: &str) -> Result<()> {
    let Started { archive, child, stdout } = started;
    let ready = tokio::time::timeout(FIRST_BYTE_TIMEOUT, process::first_byte(stdout)).await;
    let what = format!("pg_dump of {database:?} ({})", archive.name);
    match ready {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => {
            let exit = child.wait().await?;
            exit.check().map_err(explain_dump).context(what)?;
            Err(Error::new("pg_dump wrote nothing"))
        }
        Ok(Err(error)) => Err(error.context(what)),
        Err(_) => Err(Error::new(format!("{what} produced nothing for {} s", FIRST_BYTE_TIMEOUT.as_secs()))),
    }
}

/// Ends pg_dumps that nobody will read, and returns when all of them are gone: their connections and
/// locks are needed for the next attempt.
pub async fn stop(started: Vec<Started>) {
    let ends = started.into_iter().map(|Started { child, stdout, .. }| {
        drop(stdout);
        child.stop()
    });
    for end in futures_util::future::join_all(ends).await {
        if let Err(error) = end {
            tracing::debug!("a pg_dump that was to be stopped: {error}");
        }
    }
}

/// Everything a stream needs beside its pg_dump.
#[derive(Clone)]
pub struct Destination {
    /// Where objects go.
    pub store: Arc<dyn Store>,
    /// The set's prefix.
    pub prefix: String,
    /// `<database>/`, percent-encoded.
    pub folder: String,
    /// Compression, encryption, parts.
    pub seal: SealOptions,
    /// Key of the row hashes.
    pub secret: RowSecret,
    /// Who listens.
    pub progress: Progress,
}

/// Drains one pg_dump into the store.
///
/// The finish protocol: copy to the end → pg_dump exited 0 → the archive is complete → zstd, age and
/// parts finish → the upload is committed. Whatever fails before the last step leaves no object.
pub async fn drain(started: Started, to: Destination) -> Result<Dumped> {
    let Started { archive, mut child, stdout } = started;
    let begun = Instant::now();
    let display = format!("{}{}", to.folder, archive.name);
    (to.progress)(Event::StreamStarted { name: display.clone(), estimate: archive.estimate });
    let (writer, pieces) = seal(&to.seal)?;
    let parser = Parser::new(&to.secret, false);

    let dump = async {
        let (progress, name) = (to.progress.clone(), display.clone());
        let copied = tokio::task::spawn_blocking(move || {
            copy(stdout, parser, writer, |bytes| progress(Event::StreamBytes { name: name.clone(), bytes }))
        });
        let copied = copied.await.map_err(|e| Error::new(format!("stream {display} stopped: {e}")))?;
        let exit = if copied.is_ok() { child.wait().await? } else { child.stop().await? };
        // A broken archive of a pg_dump that failed by itself is the lesser news.
        if copied.is_ok() || ended_by_itself(&exit) {
            exit.check().map_err(explain_dump).with_context(|| format!("stream {display}"))?;
        }
        let (parser, writer) = copied.with_context(|| format!("stream {display}"))?;
        let finished = tokio::task::spawn_blocking(move || {
            let contents = parser.finish()?;
            Ok::<_, Error>((contents, writer.finish()?))
        });
        let finished = finished.await.map_err(|e| Error::new(format!("stream {display} stopped: {e}")))?;
        let (contents, plain_size) = finished.with_context(|| format!("stream {display}"))?;
        Ok::<_, Error>((contents, plain_size, exit))
    };
    let key = format!("{}{}.pgdump.zst.age", to.folder, archive.name);
    let (dump, uploaded) = tokio::join!(dump, upload(to.store.as_ref(), &to.prefix, &key, pieces, |_| ()));
    (to.progress)(Event::StreamFinished { name: display });
    // When both fail, pg_dump only lost its reader because the store had failed.
    let objects = uploaded?;
    let (contents, plain_size, exit) = dump?;
    let objects = objects.ok_or_else(|| Error::new("stream was given up"))?;
    Ok(Dumped {
        stream: Stream {
            name: archive.name,
            plain_size,
            objects,
            seconds: begun.elapsed().as_secs_f64(),
            locks: contents.header.is_some().then(|| locks(&contents.entries)),
        },
        contents,
        warnings: exit.stderr_lines(),
    })
}

/// Objects that restoring these entries in one transaction locks. From pg_dump 17 on, an entry stands for up to a
/// thousand large objects (`MAX_BLOBS_PER_ARCHIVE_ENTRY` in its source), and giving each its owner is a lock. Its
/// tag is their one id, or the first and the last.
fn locks(entries: &[Entry]) -> u64 {
    let of = |entry: &Entry| {
        if entry.desc != "BLOB METADATA" {
            return 1;
        }
        let ids = entry.tag.split_once("..").and_then(|(first, last)| {
            Some(last.parse::<u64>().ok()?.checked_sub(first.parse::<u64>().ok()?)?.saturating_add(1))
        });
        ids.unwrap_or(1).min(1_000)
    };
    entries.iter().map(of).sum()
}

/// Whether the exit is pg_dump's own news, and not the consequence of our having stopped reading.
fn ended_by_itself(exit: &Exit) -> bool {
    exit.status.code().is_some_and(|code| code != 0) && !exit.stderr.contains("Broken pipe")
}

/// What may be started over, of the failures of pg_dumps that have not written anything yet.
#[derive(Default)]
pub struct Failures {
    last: String,
    repeated: u32,
}

/// How often in a row a query may fail with the same words: what somebody changes does not stay the same.
const SAME_FAILURES: u32 = 3;

impl Failures {
    /// Whether another snapshot may help: somebody locks or changes what pg_dump looks at, or ended the session
    /// whose snapshot it was to use. The plan, which is made anew, says whether privileges and room for locks are
    /// what is missing.
    pub fn may_start_over(&mut self, error: &Error) -> bool {
        let said = error.to_string();
        match of_dump(&said) {
            Failed::Locked | Failed::Snapshot => return true,
            Failed::Query => {}
            Failed::LockTable | Failed::Lost | Failed::Rows | Failed::Authentication | Failed::Other => {
                return false;
            }
        }
        self.repeated = if said == self.last { self.repeated + 1 } else { 1 };
        self.last = said;
        self.repeated < SAME_FAILURES
    }
}

fn copy(
    mut stdout: File,
    mut parser: Parser,
    mut writer: SealWriter,
    progress: impl Fn(u64),
) -> Result<(Parser, SealWriter)> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let n = stdout.read(&mut buffer).context("cannot read from pg_dump")?;
        if n == 0 {
            return Ok((parser, writer));
        }
        parser.feed(&buffer[..n])?;
        writer.write_all(&buffer[..n])?;
        progress(n as u64);
    }
}
