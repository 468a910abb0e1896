//! From pg_dump's stdout to objects: one blocking thread a pg_dump, one upload a stream.
//!
//! A session that waits until its client reads cannot serve its server: DROP DATABASE waits for it in
//! whatever database it is, and on a standby the replay of WAL and a promotion do. So every pg_dump of a
//! database starts at once and is read from its first byte on. Until all of them hold their locks, and
//! nothing changed underneath, as much is read as keeps a session going, and nothing is committed.
//! Where the repository is slow, the last of the memory is filled at that pace, too.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::coordinator::{Coordinator, LOCK_TIMEOUT, MONETARY};
use super::drain::Movement;
use super::plan;
use crate::config::Connection;
use crate::error::{Context, Error, Result};
use crate::postgres::messages::{Dump as Failed, explain_dump, of_dump};
use crate::postgres::tools::{KEEPALIVES, Tools};
use crate::process::{self, Child, Exit, Input, Output};
use crate::progress::{Event, Progress};
use crate::set::archive::Entry;
use crate::set::archive::parser::{Contents, Parser};
use crate::set::archive::split::{Piece, Splitter, To};
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::{Object, Stream};
use crate::set::seal::{self, PartBuffers, SealOptions, SealWriter, seal, upload};
use crate::store::Store;

/// How long no pg_dump may make progress before all have written their first byte: no new query, no byte.
/// A database of many objects far away takes longer than this from the first query to the last.
const STILL: Duration = Duration::from_secs(600);
/// How often to look whether there was progress.
const LOOK: Duration = Duration::from_secs(10);
/// Bytes read from pg_dump at a time: the capacity its pipe is enlarged to.
const READ_SIZE: usize = 1 << 20;
/// As much as this, five times a second, keeps a session from waiting longer than a second to write. A Unix
/// socket holds 208 KiB and takes more only once three quarters of that were read (`unix_writable` in Linux).
const SLOW_READ: usize = 64 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(200);

/// A stream that is stored whole.
pub struct Dumped {
    /// Its entry in the manifest.
    pub stream: Stream,
    /// What the archive held.
    pub contents: Contents,
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

/// Whether what is read may be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Not every pg_dump holds its locks yet.
    Shut,
    /// Each does, on one snapshot.
    Open,
    /// All of it is given up.
    Stopped,
}

/// The pg_dumps of a database on their way. Dropping it ends them and aborts their uploads.
pub struct Running {
    /// The streams of one pg_dump, and what it said although it succeeded.
    tasks: JoinSet<Result<(Vec<Dumped>, Vec<String>)>>,
    gate: watch::Sender<Gate>,
}

/// Starts every pg_dump and waits until all of them hold their locks.
pub async fn start(dump: Dump<'_>, coordinator: &Coordinator, destination: &Destination) -> Result<Running> {
    let (gate, gated) = watch::channel(Gate::Shut);
    let mut running = Running { tasks: JoinSet::new(), gate };
    let holding = FuturesUnordered::new();
    for planned in &coordinator.plan.dumps {
        let (child, stdout) = spawn(dump, &coordinator.snapshot, &planned.args)?;
        let (holds, held) = oneshot::channel();
        holding.push(held);
        let reader = Reader {
            what: format!("pg_dump of {:?} ({})", dump.database, names(planned)),
            dump: planned.clone(),
            to: destination.clone(),
            gate: gated.clone(),
        };
        running.tasks.spawn(reader.run(child, stdout, holds));
    }
    match hold(&mut running, holding, coordinator).await {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

/// Returns when every pg_dump has written a byte: its catalog is read then, and its locks are held.
async fn hold(
    running: &mut Running,
    mut holding: FuturesUnordered<oneshot::Receiver<()>>,
    coordinator: &Coordinator,
) -> Result<()> {
    let mut look = tokio::time::interval(LOOK);
    let mut movement = Movement::new(String::new(), Instant::now());
    let mut left = holding.len();
    while left > 0 {
        tokio::select! {
            ended = running.tasks.join_next() => match ended {
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => return Err(Error::new(format!("a stream stopped: {error}"))),
                Some(Ok(Ok(_))) | None => return Err(Error::new("a pg_dump ended before the others began")),
            },
            // The task of a pg_dump that ends without a byte says why.
            Some(held) = holding.next() => left -= usize::from(held.is_ok()),
            _ = look.tick() => {
                let activity = format!("{left} {}", coordinator.activity().await);
                if movement.is_still(activity, Instant::now(), STILL) {
                    return Err(Error::new(format!(
                        "pg_dump of {:?} has made no progress for {} s", coordinator.plan.database, STILL.as_secs()
                    ))
                    .with_hint("pg_stat_activity tells what its session waits for"));
                }
            }
        }
    }
    Ok(())
}

fn names(dump: &plan::Dump) -> String {
    dump.streams().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn spawn(dump: Dump<'_>, snapshot: &str, args: &[String]) -> Result<(Child, File)> {
    let Dump { tools, connection, database, encoding, application_name } = dump;
    let mut connection = connection.clone();
    let own = connection.options.take().map(|own| format!("{own} ")).unwrap_or_default();
    // pg_dump's questions about many tables look worth compiling, and are not.
    connection.options = Some(format!("{own}-c lc_monetary={MONETARY} -c jit=off"));
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
    command.args(args);
    let mut child = process::spawn("pg_dump", command, Input::Null, Output::Pipe)?;
    let stdout = child.stdout.take().ok_or_else(|| Error::new("pg_dump has no stdout"))?;
    Ok((child, stdout))
}

impl Running {
    /// From now on everything is read as fast as it can be stored, and committed.
    pub fn open(&self) {
        self.gate.send_replace(Gate::Open);
    }

    /// The next pg_dump that is done: its streams, and what it said although it succeeded.
    pub async fn next(&mut self) -> Option<Result<(Vec<Dumped>, Vec<String>)>> {
        let ended = self.tasks.join_next().await?;
        Some(ended.unwrap_or_else(|error| Err(Error::new(format!("a stream stopped: {error}")))))
    }

    /// Ends every pg_dump, and returns when all of them are gone: their connections and locks are needed for
    /// the next attempt.
    pub async fn stop(mut self) {
        self.gate.send_replace(Gate::Stopped);
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::debug!("a pg_dump that was to be stopped: {error}");
            }
        }
    }
}

/// One pg_dump that is read.
struct Reader {
    /// What messages call it.
    what: String,
    dump: plan::Dump,
    to: Destination,
    gate: watch::Receiver<Gate>,
}

impl Reader {
    /// Reads one pg_dump into the store.
    ///
    /// The finish protocol: copy to the end → pg_dump exited 0 → the archive is complete → zstd, age and
    /// parts finish → the upload is committed. A table whose rows end before the archive does is committed
    /// then; without a manifest that makes no set. Whatever fails before leaves no object.
    async fn run(
        self,
        mut child: Child,
        stdout: File,
        holds: oneshot::Sender<()>,
    ) -> Result<(Vec<Dumped>, Vec<String>)> {
        let Self { what, dump, to, gate } = self;
        let (opened, opening) = mpsc::unbounded_channel();
        // A rest that waits for the end of a table holds a part.
        let more = usize::from(dump.rest.is_some() && !dump.tables.is_empty());
        let buffers = to.seal.buffers(more);
        let (open, ended, finished) = (Vec::new(), Vec::new(), Vec::new());
        let sinks =
            Sinks { dump, to: to.clone(), gate: gate.clone(), opened, buffers, open, ended, finished };
        let mut stopped = gate.clone();
        let work = async {
            let gate = gate.clone();
            let mut copied = tokio::task::spawn_blocking(move || copy(stdout, holds, gate, sinks));
            let copied = tokio::select! {
                copied = &mut copied => copied,
                // The end of pg_dump ends the copying, too.
                () = is_stopped(&mut stopped) => {
                    child.stop().await?;
                    return Err(Error::new("stopped"));
                }
            };
            let (copied, has_begun) = copied.map_err(|e| Error::new(format!("{what} stopped: {e}")))?;
            let exit = if copied.is_ok() { child.wait().await? } else { child.stop().await? };
            // A broken archive of a pg_dump that failed by itself is the lesser news.
            if copied.is_ok() || ended_by_itself(&exit) {
                exit.check().map_err(explain_dump).with_context(|| what.clone())?;
            }
            if !has_begun {
                return Err(Error::new(format!("{what} wrote nothing")));
            }
            let (splitter, sinks) = copied.with_context(|| what.clone())?;
            let finished = tokio::task::spawn_blocking(move || finish(splitter, sinks));
            let finished = finished.await.map_err(|e| Error::new(format!("{what} stopped: {e}")))?;
            Ok::<_, Error>((finished.with_context(|| what.clone())?, exit.stderr_lines()))
        };
        let (work, stored) = tokio::join!(work, store(&to, opening));
        // When both fail, pg_dump only lost its reader because the store had failed.
        let mut stored = stored?;
        let (finished, warnings) = work?;
        let dumped = finished.into_iter().map(|finished| {
            let Finished { name, plain_size, contents, seconds } = finished;
            let at = stored.iter().position(|(stored, _)| *stored == name);
            let (_, objects) = stored.swap_remove(at.ok_or_else(|| Error::new("stream was given up"))?);
            let locks = contents.header.is_some().then(|| locks(&contents.entries));
            Ok(Dumped { stream: Stream { name, plain_size, objects, seconds, locks }, contents })
        });
        Ok((dumped.collect::<Result<Vec<_>>>()?, warnings))
    }
}

async fn is_stopped(gate: &mut watch::Receiver<Gate>) {
    // Where the sender is gone this task is about to be.
    if gate.wait_for(|gate| *gate == Gate::Stopped).await.is_err() {
        std::future::pending().await
    }
}

/// A stream that begins: its name, and what goes into its objects.
type Opened = (String, mpsc::Receiver<seal::Piece>);

/// Uploads every stream of a pg_dump, each from when it begins.
async fn store(
    to: &Destination,
    mut opening: mpsc::UnboundedReceiver<Opened>,
) -> Result<Vec<(String, Vec<Object>)>> {
    let mut uploads = FuturesUnordered::new();
    let mut stored = Vec::new();
    let mut is_open = true;
    while is_open || !uploads.is_empty() {
        tokio::select! {
            next = opening.recv(), if is_open => match next {
                None => is_open = false,
                Some((name, pieces)) => uploads.push(async move {
                    let key = format!("{}{name}.pgdump.zst.age", to.folder);
                    let objects = upload(to.store.as_ref(), &to.prefix, &key, pieces, |_| ()).await?;
                    (to.progress)(Event::StreamFinished { name: format!("{}{name}", to.folder) });
                    Ok::<_, Error>((name, objects))
                }),
            },
            Some(ended) = uploads.next() => {
                let (name, objects) = ended?;
                // Without objects the writer gave up, and knows why.
                stored.extend(objects.map(|objects| (name, objects)));
            }
        }
    }
    Ok(stored)
}

/// A stream that is written.
struct Finished {
    name: String,
    plain_size: u64,
    contents: Contents,
    seconds: f64,
}

/// A stream that is being written.
struct Sink {
    name: String,
    parser: Parser,
    writer: SealWriter,
    begun: Instant,
}

/// Where the pieces of one archive go.
struct Sinks {
    dump: plan::Dump,
    to: Destination,
    gate: watch::Receiver<Gate>,
    opened: mpsc::UnboundedSender<Opened>,
    /// Of all streams of this archive.
    buffers: PartBuffers,
    /// Its rest, and one table after another.
    open: Vec<(To, Sink)>,
    /// Streams whose archive is whole while the gate is still shut: reading does not wait for it.
    ended: Vec<Sink>,
    finished: Vec<Finished>,
}

impl Sinks {
    fn take(&mut self, piece: Piece<'_>) -> Result<()> {
        let (to, bytes) = match piece {
            Piece::Bytes(to, bytes) => (to, bytes),
            Piece::End(table) => return self.end(To::Table(table)),
        };
        self.finish_ended()?;
        if !self.open.iter().any(|(of, _)| *of == to) {
            let planned = match to {
                To::Rest => self.dump.rest.as_ref(),
                To::Table(table) => self.dump.tables.get(table),
            };
            let planned = planned.ok_or_else(|| Error::new("an archive holds what was not asked for"))?;
            let (writer, pieces) = seal(&self.to.seal, self.buffers.clone())?;
            let name = format!("{}{}", self.to.folder, planned.name);
            (self.to.progress)(Event::StreamStarted { name: name.clone(), estimate: planned.estimate });
            // Nobody takes it where another upload failed, which its writer learns.
            let _ = self.opened.send((planned.name.clone(), pieces));
            let parser = Parser::new(&self.to.secret, false);
            self.open.push((to, Sink { name: planned.name.clone(), parser, writer, begun: Instant::now() }));
        }
        let Some((_, sink)) = self.open.iter_mut().find(|(of, _)| *of == to) else { return Ok(()) };
        sink.parser.feed(bytes).with_context(|| format!("stream {}{}", self.to.folder, sink.name))?;
        sink.writer.write_all(bytes)?;
        let name = format!("{}{}", self.to.folder, sink.name);
        (self.to.progress)(Event::StreamBytes { name, bytes: bytes.len() as u64 });
        Ok(())
    }

    /// Ends a stream, now or once that is allowed.
    fn end(&mut self, to: To) -> Result<()> {
        if let Some(at) = self.open.iter().position(|(of, _)| *of == to) {
            self.ended.push(self.open.swap_remove(at).1);
        }
        self.finish_ended()
    }

    /// Finishes what has ended, where that is allowed.
    fn finish_ended(&mut self) -> Result<()> {
        if *self.gate.borrow() == Gate::Open {
            for sink in std::mem::take(&mut self.ended) {
                self.finish_one(sink)?;
            }
        }
        Ok(())
    }

    fn finish_one(&mut self, sink: Sink) -> Result<()> {
        let Sink { name, parser, writer, begun } = sink;
        let stream = || format!("stream {}{name}", self.to.folder);
        let contents = parser.finish().with_context(stream)?;
        let plain_size = writer.finish().with_context(stream)?;
        self.finished.push(Finished { name, plain_size, contents, seconds: begun.elapsed().as_secs_f64() });
        Ok(())
    }
}

/// Copies until pg_dump ends, and says whether it wrote anything. What is still open then is whole only if
/// pg_dump says so.
fn copy(
    mut stdout: File,
    holds: oneshot::Sender<()>,
    mut gate: watch::Receiver<Gate>,
    mut sinks: Sinks,
) -> (Result<(Splitter, Sinks)>, bool) {
    let names = sinks.dump.tables.iter().filter_map(|s| s.table.clone()).collect();
    let mut splitter = match &sinks.dump.rest {
        Some(rest) if rest.name == "schema" => Splitter::of_schema(),
        rest => Splitter::new(names, rest.is_some()),
    };
    let mut holds = Some(holds);
    let mut buffer = vec![0; READ_SIZE];
    let mut size = READ_SIZE;
    let copied = loop {
        let n = match stdout.read(&mut buffer[..size]) {
            Ok(0) => break Ok((splitter, sinks)),
            Ok(n) => n,
            Err(error) => break Err(Error::from(error).context("cannot read from pg_dump")),
        };
        if let Some(holds) = holds.take() {
            let _ = holds.send(());
        }
        if let Err(error) = splitter.feed(&buffer[..n], &mut |piece| sinks.take(piece)) {
            break Err(error);
        }
        size = next_size(&mut gate, &sinks.buffers);
    };
    (copied, holds.is_none())
}

/// How much to read next; waits before it is little.
fn next_size(gate: &mut watch::Receiver<Gate>, buffers: &PartBuffers) -> usize {
    let is_shut = *gate.borrow() == Gate::Shut;
    let may_hurry = if is_shut {
        let opens = tokio::time::timeout(SLOW_PAUSE, gate.wait_for(|gate| *gate != Gate::Shut));
        tokio::runtime::Handle::current().block_on(opens).is_ok()
    } else {
        buffers.has_room(SLOW_PAUSE)
    };
    if may_hurry { READ_SIZE } else { SLOW_READ }
}

/// Ends the archive of a pg_dump that has ended well.
fn finish(splitter: Splitter, mut sinks: Sinks) -> Result<Vec<Finished>> {
    splitter.finish(&mut |piece| sinks.take(piece))?;
    sinks.end(To::Rest)?;
    let gate = tokio::runtime::Handle::current().block_on(sinks.gate.wait_for(|gate| *gate != Gate::Shut));
    if !gate.is_ok_and(|gate| *gate == Gate::Open) {
        return Err(Error::new("stopped"));
    }
    sinks.finish_ended()?;
    Ok(sinks.finished)
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
            Failed::Denied
            | Failed::LockTable
            | Failed::Lost
            | Failed::Rows
            | Failed::Authentication
            | Failed::Other => {
                return false;
            }
        }
        // Whichever pg_dump says it first.
        let words = said.find("pg_dump: error").map_or(said.as_str(), |at| &said[at..]);
        self.repeated = if words == self.last { self.repeated + 1 } else { 1 };
        self.last = words.to_owned();
        self.repeated < SAME_FAILURES
    }
}
