//! pg_restore: how it is started and fed, and what its complaints mean.
//!
//! A stream comes by stdin. The schema archive waits in anonymous memory, because pg_restore needs to
//! seek in it and plaintext does not belong on a disk. pg_restore goes on after an error and exits with
//! 1, so what it says is read line by line: a few complaints are known to be harmless, every other one
//! is a failure. Deliberately absent: any order of things, which is `load`'s.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use super::{Origin, Target};
use crate::config::libpq::dbname_argument;
use crate::error::{Context, Error, Kind, Result};
use crate::process::{self, Exit, Input, Output};
use crate::progress::Event;
use crate::set::archive::Entry;
use crate::set::archive::parser::Parser;
use crate::set::fingerprint::RowSecret;
use crate::set::manifest::{Database, Stream};
use crate::set::seal::read_stream;

/// Bytes moved at a time towards pg_restore.
const COPY_SIZE: usize = 256 << 10;

/// Feeds one stream to a pg_restore's stdin.
pub async fn run_stream(
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
            Ok(whole) => Ok((parser, whole)),
            // The pipe stays open: to pg_restore its end would look like the end of the archive, and
            // what was cut off would be committed.
            Err(error) => Err((error, stdin)),
        }
    });
    let fed = fed.await.map_err(|e| Error::new(format!("stream {name} stopped: {e}")))?;
    let (fed, exit) = match fed {
        Ok(fed) => (Ok(fed), child.wait().await?),
        Err((error, stdin)) => {
            let exit = child.stop().await?;
            drop(stdin);
            (Err(error), exit)
        }
    };
    (origin.progress)(Event::StreamFinished { name: name.clone() });
    let (parser, whole) = fed.with_context(|| format!("stream {name}"))?;
    let warnings = judge(&exit).with_context(|| format!("stream {name}"))?;
    if !whole {
        return Err(Error::new(format!(
            "stream {name}: pg_restore stopped reading, and called it a success"
        )));
    }
    let entries = match parser {
        None => Vec::new(),
        Some(parser) => parser.finish().with_context(|| format!("stream {name}"))?.entries,
    };
    Ok((entries, warnings))
}

/// A stream's table of contents, without reading what follows it.
pub async fn fetch_contents(origin: &Origin, stream: &Stream) -> Result<Vec<Entry>> {
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
pub async fn fetch_schema(origin: &Origin, schema: &Stream) -> Result<(File, Vec<Entry>)> {
    let mut source =
        read_stream(origin.store.clone(), &origin.prefix, schema, origin.identities.clone(), |_| ())?;
    let fetched = tokio::task::spawn_blocking(move || {
        let mut file = anonymous_file("opsd-schema")?;
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

/// Which entries of the schema archive are restored.
pub enum Part<'a> {
    /// `pre-data` or `post-data`.
    Section(&'a str),
    /// These, by dump id, in this order.
    Entries(&'a [i32]),
}

/// Restores a part of the schema archive, with this many connections.
pub async fn run_schema(
    target: &Target,
    archive: &File,
    part: Part<'_>,
    jobs: usize,
    arguments: &[&str],
) -> Result<Vec<String>> {
    let mut command = target.command()?;
    command.args(arguments);
    let mut list = None;
    let what = match part {
        Part::Section(section) => {
            command.arg(format!("--section={section}"));
            section
        }
        Part::Entries(ids) => {
            let lines: String = ids.iter().map(|id| format!("{id};\n")).collect();
            let mut file = anonymous_file("opsd-list")?;
            file.write_all(lines.as_bytes()).context("cannot write a list of entries")?;
            command.arg(format!("--use-list={}", path_of(&file)));
            list = Some(file);
            "indexes and constraints"
        }
    };
    let stdin = if target.tools.run_here() {
        if jobs > 1 {
            command.arg(format!("--jobs={jobs}"));
        }
        // Opened anew by the child, at the beginning, for each of its workers.
        command.arg(path_of(archive));
        Input::Null
    } else {
        // In a container the path means nothing, and from stdin there is one job.
        Input::File(File::open(path_of(archive)).context("cannot read the schema again")?)
    };
    let mut child = process::spawn("pg_restore", command, stdin, Output::Null)?;
    let exit = child.wait().await?;
    drop(list); // read by now
    judge(&exit).with_context(|| what.to_owned())
}

/// A file in memory: plaintext does not belong on a disk.
fn anonymous_file(name: &str) -> Result<File> {
    let memory = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC);
    Ok(File::from(memory.map_err(std::io::Error::from).context("cannot allocate memory")?))
}

/// Where a child can open a file of ours.
fn path_of(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

impl Target {
    fn command(&self) -> Result<tokio::process::Command> {
        let mut connection = self.connection.clone();
        let mut options: Vec<String> = connection.options.take().into_iter().collect();
        if self.is_superuser {
            let (setting, value) = super::NO_TRIGGERS;
            options.push(format!("-c {setting}={value}"));
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
pub fn is_sql_error(error: &Error) -> bool {
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

/// Of a server older than pg_restore.
pub const HARMLESS_TIMEOUT: &str = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"";

/// What pg_restore may complain of although everything is restored, with the command that it names: a
/// setting that its majors from 17 on send and an older server does not know, and a schema that every
/// new database has.
const HARMLESS: [(&str, &str); 2] = [
    (HARMLESS_TIMEOUT, "Command was: SET transaction_timeout = 0;"),
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
