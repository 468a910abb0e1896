//! Streams into a database: pre-data, then every data stream (as many at once as there are jobs),
//! then post-data in parallel.
//!
//! Each data stream is one transaction (where the server lets pg_restore have one), so that running it
//! again cannot double its rows. Streams in which a statement failed are run again alone at the end,
//! as long as one of them gets through: a CHECK whose function reads another table only holds once
//! that table is loaded. The schema archive waits in anonymous memory, because pg_restore needs to
//! seek in it and plaintext does not belong on a disk.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::config::Connection;
use crate::config::libpq::dbname_argument;
use crate::error::{Context, Error, Kind, Result};
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
/// Where one that the set needs is not there.
const NO_TABLESPACES: &str = "--no-tablespaces";
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
    /// Tablespaces there; where the set needs another, all of it goes into the default one.
    pub tablespaces: Vec<String>,
    /// `lc_monetary` that the set's money is written in; absent where the server does not have it.
    pub monetary: Option<String>,
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
        let entries = fetch_contents(origin, full).await?;
        loaded.warnings.extend(no_tablespaces(&entries, target));
        // None at all: an archive version that the parser does not know.
        let is_known = loaded.warnings.is_empty() && !entries.is_empty();
        let arguments: &[&str] = if is_known { &[] } else { &[NO_TABLESPACES] };
        let (entries, warnings) = run_stream(origin, database, full, target, arguments, true).await?;
        loaded.schema = entries;
        loaded.warnings.extend(warnings);
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
    loaded.warnings.extend(no_tablespaces(&entries, target));
    let schema_args: &[&str] = if loaded.warnings.is_empty() { &[] } else { &[NO_TABLESPACES] };
    loaded.warnings.extend(run_schema(target, &archive, "pre-data", 1, schema_args).await?);
    loaded.schema = entries;
    lap(&mut loaded, "schema");

    (origin.progress)(Event::Phase(format!("{}: rows", database.name)));
    let mut data: Vec<&Stream> = database.streams.iter().filter(|s| s.name != "schema").collect();
    data.sort_by_key(|s| std::cmp::Reverse(s.plain_size));
    // --single-transaction also ends at the first error, and on an older server pg_restore 17 begins
    // with one. There a stream cannot be run again: its rows would double.
    let is_atomic = !loaded.warnings.iter().any(|warning| warning == HARMLESS[0].0);
    loaded.warnings.extend(load_data(origin, database, &data, target, is_atomic).await?);
    lap(&mut loaded, "data");

    (origin.progress)(Event::Phase(format!("{}: indexes and constraints", database.name)));
    loaded.warnings.extend(run_schema(target, &archive, "post-data", target.jobs, schema_args).await?);
    lap(&mut loaded, "post-data");
    Ok(loaded)
}

/// What to say where the target lacks a tablespace: then none is used.
fn no_tablespaces(entries: &[Entry], target: &Target) -> Option<String> {
    let mut spaces: Vec<&str> =
        entries.iter().map(|e| e.tablespace.as_str()).filter(|t| !t.is_empty()).collect();
    spaces.retain(|space| !target.tablespaces.iter().any(|t| t == space));
    spaces.sort_unstable();
    spaces.dedup();
    let names = spaces.join(", ");
    (!spaces.is_empty()).then(|| format!("no tablespace {names} here: all is in the default one"))
}

/// Restores the definitions alone.
pub async fn load_schema(origin: &Origin, database: &Database, target: &Target) -> Result<()> {
    let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
    if let Some(full) = stream("full") {
        let sections = ["--section=pre-data", "--section=post-data", NO_TABLESPACES];
        run_stream(origin, database, full, target, &sections, false).await?;
        return Ok(());
    }
    let schema = stream("schema").ok_or_else(|| Error::differs("the set has no schema stream"))?;
    let (archive, _) = fetch_schema(origin, schema).await?;
    run_schema(target, &archive, "pre-data", 1, &[NO_TABLESPACES]).await?;
    run_schema(target, &archive, "post-data", target.jobs, &[NO_TABLESPACES]).await?;
    Ok(())
}

async fn load_data(
    origin: &Origin,
    database: &Database,
    streams: &[&Stream],
    target: &Target,
    is_atomic: bool,
) -> Result<Vec<String>> {
    let mut waiting = streams.iter().map(|s| (*s).clone());
    let mut running = tokio::task::JoinSet::new();
    let mut warnings = Vec::new();
    let mut again: Vec<(Stream, Error)> = Vec::new();
    let arguments: &'static [&'static str] =
        if is_atomic { &["--section=data", "--single-transaction"] } else { &["--section=data"] };
    loop {
        while running.len() < target.jobs.max(1)
            && let Some(stream) = waiting.next()
        {
            let (origin, database, target) = (origin.clone(), database.clone(), target.clone());
            running.spawn(async move {
                let result = run_stream(&origin, &database, &stream, &target, arguments, false).await;
                (stream, result)
            });
        }
        match running.join_next().await {
            None => break,
            Some(Err(error)) => return Err(Error::new(format!("a stream stopped: {error}"))),
            Some(Ok((_, Ok((_, said))))) => warnings.extend(said),
            // Only a statement that failed was certainly rolled back, and may succeed later.
            Some(Ok((_, Err(error)))) if !is_atomic || !is_sql_error(&error) => return Err(error),
            Some(Ok((stream, Err(error)))) => again.push((stream, error)),
        }
    }
    // One stream may wait for another of these: as long as one succeeds, the rest gets another turn.
    while !again.is_empty() {
        let before = again.len();
        let mut still = Vec::new();
        for (stream, error) in again {
            tracing::info!("{error}; trying once more, after the others");
            match run_stream(origin, database, &stream, target, arguments, false).await {
                Ok((_, said)) => warnings.extend(said),
                Err(error) if !is_sql_error(&error) => return Err(error),
                Err(error) => still.push((stream, error)),
            }
        }
        again = still;
        if again.len() == before {
            let first = again.into_iter().next();
            return Err(first.map_or_else(|| Error::new("a stream failed"), |(_, error)| error));
        }
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
        let mut feed = || -> Result<bool> {
            loop {
                let n = source.read(&mut buffer)?;
                if n == 0 {
                    return Ok(true);
                }
                if let Some(parser) = &mut parser {
                    parser.feed(&buffer[..n])?;
                }
                // A pg_restore that stopped reading says why by itself.
                if stdin.write_all(&buffer[..n]).is_err() {
                    return Ok(false);
                }
                progress(Event::StreamBytes { name: shown.clone(), bytes: n as u64 });
            }
        };
        match feed() {
            Ok(true) => Ok(parser),
            Ok(false) => Ok(None),
            // The pipe stays open: to pg_restore its end would look like the end of the archive, and
            // what was cut off would be committed.
            Err(error) => Err((error, stdin)),
        }
    });
    let fed = fed.await.map_err(|e| Error::new(format!("stream {name} stopped: {e}")))?;
    let (fed, exit) = match fed {
        Ok(parser) => (Ok(parser), child.wait().await?),
        Err((error, stdin)) => {
            let exit = child.stop().await?;
            drop(stdin);
            (Err(error), exit)
        }
    };
    (origin.progress)(Event::StreamFinished { name: name.clone() });
    let parser = fed.with_context(|| format!("stream {name}"))?;
    let warnings = judge(&exit).with_context(|| format!("stream {name}"))?;
    let entries = match parser {
        None => Vec::new(),
        Some(parser) => parser.finish().with_context(|| format!("stream {name}"))?.entries,
    };
    Ok((entries, warnings))
}

/// A stream's table of contents, without reading what follows it.
async fn fetch_contents(origin: &Origin, stream: &Stream) -> Result<Vec<Entry>> {
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, stream, origin.identities.clone(), |_| ())?;
    let fetched = tokio::task::spawn_blocking(move || {
        let mut parser = Parser::new(&RowSecret::generate(), false);
        let mut buffer = vec![0; COPY_SIZE];
        loop {
            if let Some(entries) = parser.contents() {
                return Ok::<_, Error>(entries.to_vec());
            }
            match source.read(&mut buffer)? {
                0 => return Ok(parser.finish()?.entries),
                n => parser.feed(&buffer[..n])?,
            }
        }
    });
    let fetched = fetched.await.map_err(|e| Error::new(format!("reading a stream stopped: {e}")))?;
    fetched.with_context(|| format!("stream {}", stream.name))
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

async fn run_schema(
    target: &Target,
    archive: &File,
    section: &str,
    jobs: usize,
    arguments: &[&str],
) -> Result<Vec<String>> {
    let mut command = target.command()?;
    command.arg(format!("--section={section}")).args(arguments);
    let path = format!("/proc/{}/fd/{}", std::process::id(), archive.as_raw_fd());
    let stdin = if target.tools.run_here() {
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        // Opened anew by the child, at the beginning, for each of its workers.
        command.arg(path);
        Input::Null
    } else {
        // In a container the path means nothing, and from stdin there is one job.
        Input::File(File::open(path).context("cannot read the schema again")?)
    };
    let mut child = process::spawn("pg_restore", command, stdin, Output::Null)?;
    let exit = child.wait().await?;
    judge(&exit).with_context(|| section.to_owned())
}

impl Target {
    fn command(&self) -> Result<tokio::process::Command> {
        let mut connection = self.connection.clone();
        let mut options: Vec<String> = connection.options.take().into_iter().collect();
        if self.is_superuser {
            options.push(NO_TRIGGERS.to_owned());
        }
        if let Some(monetary) = &self.monetary {
            let escaped = monetary.replace('\\', "\\\\").replace(' ', "\\ ");
            options.push(format!("-c lc_monetary={escaped}"));
        }
        connection.options = (!options.is_empty()).then(|| options.join(" "));
        let mut command = self.tools.command("pg_restore", &connection, &self.dbname, "opsd restore")?;
        command.arg(format!("--dbname={}", dbname_argument(&self.dbname)));
        command.args(["--no-password"]);
        Ok(command)
    }
}

/// Whether the server refused a statement, as opposed to a connection, a disk or a key that failed.
fn is_sql_error(error: &Error) -> bool {
    let said = error.to_string();
    error.kind() == Kind::Failed
        && (said.contains("could not execute query: ERROR:") || said.contains("COPY failed for table"))
        && !ENVIRONMENT.iter().any(|needle| said.contains(needle))
}

/// What a server says when it is in trouble itself.
const ENVIRONMENT: [&str; 8] = [
    "No space left on device",
    "could not extend file",
    "could not open extension control file",
    "could not access file",
    "could not load library",
    "out of memory",
    "out of shared memory",
    "terminating connection",
];

/// For a rehearsal: a statement of the set that a sound server refuses is a difference. Rows are left
/// out of what is recorded.
pub fn blame(error: Error) -> Error {
    if !is_sql_error(&error) {
        return error;
    }
    let said = error.to_string();
    let kept = said.lines().filter(|line| {
        let line = line.trim_start();
        !["DETAIL:", "CONTEXT:", "Command was:", "pg_restore: detail:"].iter().any(|p| line.starts_with(p))
    });
    Error::differs(kept.take(MAX_BLAME).collect::<Vec<_>>().join("\n")).context("the set does not restore")
}

/// Lines of pg_restore's complaints that are recorded.
const MAX_BLAME: usize = 10;

/// What pg_restore may complain of although everything is restored, with the command that it names: a
/// setting that its majors from 17 on send and an older server does not know, and a schema that every
/// new database has.
const HARMLESS: [(&str, &str); 2] = [
    (
        "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"",
        "Command was: SET transaction_timeout = 0;",
    ),
    (
        "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists",
        "Command was: CREATE SCHEMA public;",
    ),
];

/// Success, harmless complaints as warnings, or an error with what pg_restore said.
///
/// pg_restore goes on after an error and exits with 1.
fn judge(exit: &Exit) -> Result<Vec<String>> {
    let lines = exit.stderr_lines();
    if exit.status.success() && !lines.iter().any(|l| l.starts_with("pg_restore: error:")) {
        return Ok(lines.into_iter().filter(|l| l.contains("warning:")).collect());
    }
    if exit.status.code() == Some(1)
        && let Some(complaints) = harmless(&lines)
    {
        return Ok(complaints);
    }
    exit.check()?;
    Err(Error::new(exit.stderr.trim()).context("pg_restore complained"))
}

/// The complaints, if each of them is known to be harmless. Every line must be understood, because an
/// error's text may be of the dumped database's choosing. How many errors pg_restore counted says
/// nothing: with `--jobs` it leaves out what its workers met while they connected.
fn harmless(lines: &[String]) -> Option<Vec<String>> {
    let (last, lines) = lines.split_last()?;
    last.strip_prefix("pg_restore: warning: errors ignored on restore: ")?.parse::<u32>().ok()?;
    let mut complaints = Vec::new();
    let mut lines = lines.iter().map(String::as_str);
    while let Some(line) = lines.next() {
        if let Some((_, command)) = HARMLESS.iter().find(|(error, _)| *error == line) {
            if lines.next() != Some(command) {
                return None;
            }
            complaints.push(line.to_owned());
        } else if line.starts_with("pg_restore: warning: ") {
            complaints.push(line.to_owned());
        } else if !line.starts_with("pg_restore: while ") && !line.starts_with("pg_restore: from TOC entry ")
        {
            return None;
        }
    }
    Some(complaints)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::error::Kind;

    fn exit(code: i32, stderr: &str) -> Exit {
        Exit {
            name: "pg_restore".into(),
            status: std::process::ExitStatus::from_raw(code << 8),
            stderr: stderr.into(),
        }
    }

    const TIMEOUT: &str = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n";
    const PUBLIC: &str = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\nCommand was: CREATE SCHEMA public;\n\n\n";

    fn ignored(n: u32) -> String {
        format!("pg_restore: warning: errors ignored on restore: {n}\n")
    }

    /// What pg_restore 13, 17 and 18 really wrote, into 13, 14 and 17.
    #[test]
    fn harmless_complaints_are_warnings() {
        let cases = [
            (format!("{TIMEOUT}{}", ignored(1)), 1),
            (format!("{PUBLIC}{}", ignored(1)), 1),
            (format!("{TIMEOUT}{PUBLIC}{}", ignored(2)), 2),
            // With --jobs=3 five are said and two are counted.
            (format!("{}{}", TIMEOUT.repeat(5), ignored(2)), 5),
            (
                format!(
                    "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 3; 2615 2200 SCHEMA public postgres\n{PUBLIC}{}",
                    ignored(1)
                ),
                1,
            ),
        ];
        for (stderr, complaints) in cases {
            assert_eq!(judge(&exit(1, &stderr)).unwrap().len(), complaints, "{stderr}");
            assert!(judge(&exit(2, &stderr)).is_err());
            assert!(judge(&exit(0, &stderr)).is_err(), "errors and success do not go together");
        }
        assert!(judge(&exit(0, "")).unwrap().is_empty());
        assert_eq!(judge(&exit(0, "pg_restore: warning: x\n")).unwrap(), ["pg_restore: warning: x"]);
    }

    #[test]
    fn a_real_error_is_never_called_harmless() {
        let copy = "pg_restore: error: COPY failed for table \"u\": ERROR:  schema \"public\" already exists\nCONTEXT:  PL/pgSQL function public.f(integer) line 1 at RAISE\nCOPY u, line 1: \"1\t1\"\n";
        let role = "pg_restore: error: could not execute query: ERROR:  role \"nobodyhere\" does not exist\nCommand was: ALTER TABLE public.t OWNER TO nobodyhere;\n\n";
        let keys = "pg_restore: error: could not execute query: ERROR:  multiple primary keys for table \"t\" are not allowed\nCommand was: ALTER TABLE ONLY public.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);\n\n\n";
        // A name, or what a function raises, is of somebody else's choosing.
        let name = "pg_restore: error: could not execute query: ERROR:  relation \"a: schema \"public\" already exists\" does not exist\nCommand was: CREATE SCHEMA public;\n";
        let raised = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\nCONTEXT:  PL/pgSQL function public.f(integer) line 1 at RAISE\nCommand was: CREATE INDEX ui ON public.u USING btree (public.f(b));\n";
        let forged = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\nCommand was: CREATE SCHEMA public;\nCONTEXT:  PL/pgSQL function public.f(integer) line 1 at RAISE\nCommand was: CREATE INDEX ui ON public.u USING btree (public.f(b));\n";
        let cut = "pg_restore: error: could not exe\n[… 100 bytes …]\nSET transaction_timeout = 0;\n";
        for real in [copy, role, keys, name, raised, forged, cut] {
            for stderr in [
                format!("{real}{}", ignored(1)),
                format!("{TIMEOUT}{real}{}", ignored(2)),
                format!("{real}{TIMEOUT}{}", ignored(2)),
                format!("{TIMEOUT}{real}{}", ignored(1)),
            ] {
                let error = judge(&exit(1, &stderr)).unwrap_err();
                assert_eq!(error.kind(), Kind::Failed);
                assert!(error.to_string().contains("exited with status 1"), "{error}");
            }
        }
        // It stopped at once (--single-transaction), lost its connection, or said nothing.
        let lost =
            "pg_restore: error: error returned by PQputCopyData: server closed the connection unexpectedly\n";
        for stderr in [TIMEOUT, lost, "", "pg_restore: error: a worker process died unexpectedly\n"] {
            assert!(judge(&exit(1, stderr)).is_err(), "{stderr}");
        }
        let killed = Exit { status: std::process::ExitStatus::from_raw(9), ..exit(0, &ignored(1)) };
        assert!(judge(&killed).is_err());
    }
}
