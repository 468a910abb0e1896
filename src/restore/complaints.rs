//! What a restore's complaints mean, and what of them may be repeated.
//!
//! pg_restore goes on after an error and exits with 1, so what it says is taken apart: a few complaints
//! are known to be harmless, every other one is a failure. A server's messages quote rows, statements and
//! the passwords in them, and some of that is recorded unencrypted. So this is an allow-list: the object,
//! the first line of the server's message with everything quoted masked (names that follow what they
//! are a name of aside), and how many there are. What a message means is
//! [`messages`]'s to say. Deliberately absent: SQLSTATEs, which pg_restore does
//! not tell.

pub use crate::error::Fault;
use crate::error::{Error, Kind, Result};
pub use crate::postgres::messages::HARMLESS_TIMEOUT;
use crate::postgres::messages::{self, HARMLESS, RAISED};
use crate::process::Exit;
use crate::set::archive::Entry;

/// Where the rest of it is.
pub const HINT: &str = "rows and statements are left out here; the server's log has them";

/// [`HINT`] for a rehearsal, whose server's log goes with the server.
const HINT_OF_REHEARSAL: &str =
    "rows and statements are left out here; the log of a server that `restore --to` goes to has them";

/// An error of a rehearsal, which points to no log that is gone.
pub fn of_rehearsal(error: Error) -> Error {
    if error.hint() != Some(HINT) {
        return error;
    }
    let kind = error.kind();
    Error::new(error).with_kind(kind).with_hint(HINT_OF_REHEARSAL)
}

/// One error that pg_restore told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// The entry's id in the archive, where it is known.
    pub id: Option<i32>,
    /// `INDEX items_pkey`, or what the statement begins with; empty where neither is known.
    pub object: String,
    /// What may be repeated of the message.
    pub message: String,
    /// Whose fault it is.
    pub fault: Fault,
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.object.as_str() {
            "" => f.write_str(&self.message)?,
            object => write!(f, "{object}: {}", self.message)?,
        }
        match self.fault {
            Fault::Trouble => f.write_str(" (what was to follow may be missing, too)"),
            Fault::Refused | Fault::Elsewhere => Ok(()),
        }
    }
}

/// Whether the server refused a statement, as opposed to a connection, a disk or a key that failed.
pub fn is_sql_error(error: &Error) -> bool {
    error.kind() == Kind::Failed && error.fault() == Some(Fault::Refused)
}

/// Whether rows were refused for the lack of what this host cannot have: see [`lacking`].
pub fn is_lacking(error: &Error) -> bool {
    error.fault() == Some(Fault::Elsewhere)
}

/// A failure of rows where something before them is not there because this host cannot have it: that may be why, so
/// it says nothing of the set.
pub fn lacking(error: Error, forgiven: &[Complaint]) -> Error {
    match forgiven.iter().find(|c| c.fault == Fault::Elsewhere) {
        Some(first) if is_sql_error(&error) => Error::new(error)
            .context(first)
            .context("rows need what cannot be restored here")
            .with_fault(Fault::Elsewhere)
            .with_hint(HINT),
        _ => error,
    }
}

/// A complaint about rows as an error.
pub fn of_rows(complaint: &Complaint) -> Error {
    refused_if(Error::new(complaint), Some(complaint))
}

/// An error with the fault of the complaint that it was made of, where a sound server refused a statement.
fn refused_if(error: Error, complaint: Option<&Complaint>) -> Error {
    match complaint {
        Some(Complaint { fault: Fault::Refused, .. }) => error.with_fault(Fault::Refused),
        Some(_) | None => error,
    }
}

/// For a rehearsal: a statement of the set that a sound server refuses is a difference.
pub fn blame(error: Error) -> Error {
    if is_sql_error(&error) { differs(error) } else { error }
}

/// What a rehearsal says then.
pub fn differs(what: impl std::fmt::Display) -> Error {
    Error::differs(what).context("the set does not restore")
}

/// Nouns that a name follows in quotes; what else is quoted may be of a row.
const NOUNS: [&str; 41] = [
    "access method",
    "aggregate",
    "attribute",
    "collation",
    "column",
    "configuration",
    "constraint",
    "conversion",
    "database",
    "dictionary",
    "domain",
    "encoding",
    "event trigger",
    "extension",
    "family",
    "file",
    "foreign-data wrapper",
    "function",
    "index",
    "language",
    "library",
    "object",
    "operator class",
    "parameter",
    "parser",
    "partition",
    "policy",
    "publication",
    "relation",
    "role",
    "rule",
    "schema",
    "sequence",
    "server",
    "table",
    "tablespace",
    "template",
    "trigger",
    "type",
    "user",
    "view",
];

/// The first line of a server's message as it may be repeated. A name stays where its noun stands before
/// it. Anything else is masked from its first to the line's last quote, because values that hold
/// quotes are not escaped; bytes that could not be converted are masked, too.
pub fn masked(message: &str) -> String {
    let line: String =
        message.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    let mut out = String::new();
    let mut rest = line.as_str();
    while let Some(at) = rest.find(['"', '\'', '»', '„', '«', '“']) {
        let (before, quoted) = rest.split_at(at);
        out.push_str(before);
        let is_name = quoted.starts_with('"') && before.ends_with(' ') && {
            let before = before.trim_end();
            NOUNS.iter().any(|noun| {
                before.strip_suffix(noun).is_some_and(|b| !b.ends_with(|c: char| c.is_alphanumeric()))
            }) || before.ends_with("server at")
                || before.ends_with("on socket")
        };
        if is_name && let Some(end) = quoted[1..].find('"') {
            out.push_str(&quoted[..end + 2]);
            rest = &quoted[end + 2..];
            continue;
        }
        out.push_str("\"…\"");
        let last = quoted.char_indices().rfind(|(i, c)| *i > 0 && "\"'»“«”".contains(*c));
        rest = last.map_or("", |(i, c)| &quoted[i + c.len_utf8()..]);
    }
    out.push_str(rest);
    let words = out.split(' ').map(|word| if word.starts_with("0x") { "0x…" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// [`masked`], where names of objects are known: a message that begins with such a name in quotes shows it. Further on it may be
/// a value's beginning.
fn masked_but(message: &str, entries: &[Entry]) -> String {
    let name = message.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    match name {
        Some((name, rest)) if rest.starts_with(" is ") && entries.iter().any(|entry| entry.tag == name) => {
            format!("\"{name}\"{}", masked(rest))
        }
        Some(_) | None => masked(message),
    }
}

/// The same for a message whose context is known: what a function raises is of its author's choosing,
/// and usually has values in it.
pub fn masked_in(message: &str, context: &str) -> String {
    if messages::is_raised(context) { RAISED.to_owned() } else { masked(message) }
}

/// Added where code of the database's did not find what it names: usually that, and the text of the error is its own.
const UNKNOWN_NAME: &str = "; search_path is empty in a restore: the function may name something without its schema \
     (ALTER FUNCTION … SET search_path helps at the source)";

/// What libpq and pg_restore write before what a server said of a connection or of a query.
const FAILED: &str = "failed: ";

/// The same for what pg_restore quotes, with the lines that follow. A server that does not speak English
/// is not understood, and not repeated.
fn masked_text(text: &str, details: &str, entries: &[Entry]) -> String {
    // Of a statement, of a connection (`connection to server … failed: `), or of a query of pg_restore's own.
    let said = messages::servers_words(text).or_else(|| {
        let at = text.find(FAILED).map(|at| at + FAILED.len()).or_else(|| text.find("ERROR:  "))?;
        Some((at, &text[at..]))
    });
    let Some((at, said)) = said else { return masked(text) };
    let before = masked(&text[..at]);
    match messages::severity(said) {
        Some((severity @ ("ERROR" | "FATAL" | "PANIC"), said)) => {
            // What it says of rows comes first, and may hold any line.
            let begin = details.lines().position(|line| line.starts_with("CONTEXT:  "));
            let context = begin.map_or_else(String::new, |begin| {
                let lines = details.lines().skip(begin);
                let lines = lines.map(|line| line.strip_prefix("CONTEXT:  ").unwrap_or(line));
                lines.collect::<Vec<_>>().join("\n")
            });
            let is_cut = details.lines().any(|l| l.starts_with("… ") && l.ends_with(" bytes left out …"));
            let is_raised = is_cut || messages::is_raised(&context);
            let shown = if is_raised { RAISED.to_owned() } else { masked_but(said, entries) };
            let is_of_code = is_raised || context.lines().any(|line| line.starts_with("SQL function \""));
            let hint = if is_of_code && messages::is_unknown_name(said) { UNKNOWN_NAME } else { "" };
            format!("{before}{severity}:  {shown}{hint}")
        }
        Some(_) if messages::of_restore(text, details) == Fault::Trouble => {
            format!("{before}{}", messages::FOREIGN_END)
        }
        Some(_) => format!("{before}{}", messages::FOREIGN),
        None => format!("{before}{}", masked(said)),
    }
}

/// Every error in what pg_restore wrote, in order. What follows an error's own line belongs to it until
/// pg_restore speaks again, and none of that is kept; but the statement tells which of `entries` it was.
pub fn complaints(stderr: &str, entries: &[Entry]) -> Vec<Complaint> {
    taken_apart(stderr, entries).1
}

/// The same, behind what it complained of and is harmless.
fn taken_apart(stderr: &str, entries: &[Entry]) -> (Vec<String>, Vec<Complaint>) {
    const ERROR: &str = "pg_restore: error: ";
    let lines: Vec<&str> = stderr.lines().collect();
    let (lines, warnings) = without_harmless(&lines);
    let mut found = Vec::new();
    let mut lines = lines.into_iter().peekable();
    while let Some(line) = lines.next() {
        let Some(text) = line.strip_prefix(ERROR) else {
            // The error that it belongs to was taken for a harmless one.
            if let Some(command) = line.strip_prefix(COMMAND) {
                let (id, object) = object_of(command, entries);
                let message = "what pg_restore said of it is not understood".to_owned();
                found.push(Complaint { id, object, message, fault: Fault::Trouble });
            }
            continue;
        };
        let mut rest = String::new();
        while let Some(more) = lines.next_if(|next| !next.starts_with("pg_restore: ")) {
            rest.push_str(more);
            rest.push('\n');
        }
        // The last one: what a function raises may have such a line, too. A COPY has none.
        let at = if text.starts_with(messages::ROWS) {
            None
        } else {
            format!("\n{rest}").rfind("\nCommand was: ")
        };
        let (details, command) = rest.split_at(at.unwrap_or(rest.len()));
        let command = command.strip_prefix(COMMAND).unwrap_or_default();
        let message = masked_text(text, details, entries);
        // Of an extension a set has the name alone: its script and its library are the host's.
        let fault = match messages::of_restore(text, details) {
            Fault::Refused if command.starts_with(MAKE_EXTENSION) => Fault::Elsewhere,
            Fault::Trouble if command.starts_with(MAKE_EXTENSION) && messages::lacks_library(text) => {
                Fault::Elsewhere
            }
            fault => fault,
        };
        let (id, object) = object_of(command, entries);
        found.push(Complaint { id, object, message, fault });
    }
    // One that is made of what could not be filled either.
    if found.iter().any(|c| c.fault == Fault::Elsewhere) {
        for complaint in found.iter_mut().filter(|c| c.message.contains("has not been populated")) {
            complaint.fault = Fault::Elsewhere;
        }
    }
    (warnings, found)
}

/// The entry that a statement makes, else the statement's first words, which are SQL's.
fn object_of(command: &str, entries: &[Entry]) -> (Option<i32>, String) {
    let command = command.trim();
    let is_made_by = |entry: &&Entry| !command.is_empty() && entry.defn.trim() == command;
    if let Some(entry) = entries.iter().find(is_made_by) {
        let name: String = entry.tag.chars().filter(|c| !c.is_control()).collect();
        return (Some(entry.dump_id), format!("{} {name}", entry.desc));
    }
    let is_keyword = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase());
    (None, command.split(' ').take(4).take_while(is_keyword).collect::<Vec<_>>().join(" "))
}

/// One complaint for several.
pub fn and_more(first: &Complaint, more: usize) -> String {
    match more {
        0 => first.to_string(),
        1 => format!("{first}; 1 more error"),
        _ => format!("{first}; {more} more errors"),
    }
}

/// An exit that is not success as an error that may be repeated.
fn failure(exit: &Exit, entries: &[Entry]) -> Error {
    let found = complaints(&exit.stderr, entries);
    let first = found.iter().find(|c| c.fault == Fault::Trouble).or(found.first());
    let why = match first {
        Some(first) => and_more(first, found.len() - 1),
        // It never began: a loader's or a container's own words.
        None if !exit.stderr.contains("pg_restore: ") => {
            let said: Vec<&str> = exit.stderr.lines().filter(|l| !l.trim().is_empty()).take(5).collect();
            if said.is_empty() { "it wrote nothing to stderr".to_owned() } else { said.join("\n") }
        }
        None => {
            let said = exit.stderr.lines().find(|line| line.starts_with("pg_restore: error: "));
            masked(said.unwrap_or("it did not say why"))
        }
    };
    let error = refused_if(Error::new(why).context(format!("pg_restore {}", exit.describe())), first);
    match found.first() {
        None => error,
        Some(_) if messages::is_lock_table_full(&exit.stderr) => error.with_hint(messages::LOCK_TABLE_HINT),
        Some(_) => error.with_hint(HINT),
    }
}

/// What failed beside the rows of a rehearsal: what a sound server refuses, which are differences, and what this host
/// cannot have. An error where the server was in trouble: nobody knows then.
pub fn told_apart(failed: &[Complaint]) -> Result<(Vec<String>, Vec<String>)> {
    if let Some(trouble) = failed.iter().find(|c| c.fault == Fault::Trouble) {
        return Err(Error::new(trouble).with_hint(HINT));
    }
    let (refused, elsewhere): (Vec<_>, Vec<_>) = failed.iter().partition(|c| c.fault == Fault::Refused);
    let refused = refused.into_iter().map(|c| format!("does not restore: {c}")).collect();
    Ok((refused, elsewhere.into_iter().map(|c| format!("cannot be restored here: {c}")).collect()))
}

/// Lines of a server's log that are kept.
const LOG_LINES: usize = 10;

/// The last lines of a scratch server's log that tell of an end: of a session, a process or the server. What its
/// statements logged is not among them, and nothing quoted is.
pub fn log_lines(log: &str) -> Vec<String> {
    let mut found: Vec<String> = log
        .lines()
        // A message's further lines begin with a tab, and are of whoever raised it.
        .filter(|line| !line.starts_with('\t'))
        .filter_map(|line| {
            let said = line.split_once("] ").map_or(line, |(_, said)| said);
            let is_end = ["FATAL:  ", "PANIC:  ", "LOG:  server process (PID "]
                .iter()
                .any(|begin| said.starts_with(begin));
            (is_end && !said.ends_with("is starting up")).then(|| masked(said))
        })
        .collect();
    found.drain(..found.len().saturating_sub(LOG_LINES));
    found
}

/// What stands before the statement that failed.
const COMMAND: &str = "Command was: ";
/// What an extension is made with.
const MAKE_EXTENSION: &str = "CREATE EXTENSION ";

/// Success, harmless complaints as warnings, or an error with what may be repeated of pg_restore's.
pub fn judge(exit: &Exit, entries: &[Entry]) -> Result<Vec<String>> {
    let lines = exit.stderr_lines();
    if exit.status.success() && !lines.iter().any(|l| l.starts_with("pg_restore: error:")) {
        let warnings = lines.iter().filter(|l| l.starts_with("pg_restore: warning: "));
        return Ok(warnings.map(|l| masked(l)).collect());
    }
    if exit.status.code() == Some(1)
        && let Some(complaints) = harmless(&lines)
    {
        return Ok(complaints);
    }
    Err(failure(exit, entries))
}

/// The same where some failures are the caller's to judge: if `may_fail` says so of all that pg_restore
/// complained of, they are no error.
pub fn judge_all(
    exit: &Exit,
    entries: &[Entry],
    may_fail: impl FnOnce(&[Complaint]) -> bool,
) -> Result<(Vec<String>, Vec<Complaint>)> {
    let error = match judge(exit, entries) {
        Ok(warnings) => return Ok((warnings, Vec::new())),
        Err(error) => error,
    };
    let (warnings, mut found) = taken_apart(&exit.stderr, entries);
    if exit.is_cut {
        let message = "pg_restore complained of more than is kept, and rows may be among it".to_owned();
        found.push(Complaint { id: None, object: String::new(), message, fault: Fault::Trouble });
    }
    if exit.status.code() == Some(1) && !found.is_empty() && may_fail(&found) {
        return Ok((warnings, found));
    }
    Err(error)
}

/// The same where every failure is the caller's to judge, whatever it was: the rows are in.
pub fn judge_after_rows(exit: &Exit, entries: &[Entry]) -> (Vec<String>, Vec<Complaint>) {
    match judge_all(exit, entries, |_| true) {
        Ok(judged) => judged,
        Err(error) => {
            let message = error.to_string();
            (Vec::new(), vec![Complaint { id: None, object: String::new(), message, fault: Fault::Trouble }])
        }
    }
}

/// The complaints, if each of them is known to be harmless. Every line must be understood, because an
/// error's text may be of the dumped database's choosing. How many errors pg_restore counted says
/// nothing: with `--jobs` it leaves out what its workers met while they connected.
fn harmless(lines: &[String]) -> Option<Vec<String>> {
    let (last, lines) = lines.split_last()?;
    last.strip_prefix("pg_restore: warning: errors ignored on restore: ")?.parse::<u32>().ok()?;
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (rest, mut complaints) = without_harmless(&lines);
    for line in rest {
        if line.starts_with("pg_restore: warning: ") {
            complaints.push(masked(line));
        } else if !line.starts_with("pg_restore: while ") && !line.starts_with("pg_restore: from TOC entry ")
        {
            return None;
        }
    }
    Some(complaints)
}

/// What is left without harmless errors and as many of their commands, and those errors. Text of the
/// database's choosing that looks like both leaves the command that it really was.
fn without_harmless<'l>(lines: &[&'l str]) -> (Vec<&'l str>, Vec<String>) {
    let (mut rest, mut complaints) = (lines.to_vec(), Vec::new());
    for harmless in HARMLESS {
        let errors = lines.iter().filter(|line| harmless.is_error(line)).count();
        let pairs = errors.min(lines.iter().filter(|line| **line == harmless.command).count());
        let (mut errors, mut commands) = (pairs, pairs);
        rest.retain(|line| {
            let left = match *line {
                line if harmless.is_error(line) => &mut errors,
                line if line == harmless.command => &mut commands,
                _ => return true,
            };
            let is_one = *left > 0;
            *left = left.saturating_sub(1);
            !is_one
        });
        complaints.extend(std::iter::repeat_n(harmless.error.to_owned(), pairs));
    }
    (rest, complaints)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn exit(code: i32, stderr: &str) -> Exit {
        Exit {
            name: "pg_restore".into(),
            status: std::process::ExitStatus::from_raw(code << 8),
            stderr: stderr.into(),
            is_cut: false,
        }
    }

    const REFUSED: &str = "could not execute query: ERROR:";
    const TIMEOUT: &str = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n";
    const PUBLIC: &str = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\nCommand was: CREATE SCHEMA public;\n\n\n";

    /// Under load, one process of pg_restore wrote between another's error and its command.
    #[test]
    fn a_harmless_complaint_in_the_middle_of_another_is_taken_out() {
        let (error, command) = TIMEOUT.split_at(TIMEOUT.find("Command").unwrap());
        let other = "pg_restore: error: could not execute query: ERROR:  relation \"x\" already exists\n";
        let theirs = "Command was: CREATE INDEX x ON t (id);\n";
        let said = format!("{error}{other}{command}{theirs}{}", ignored(2));
        let (warnings, found) = judge_after_rows(&exit(1, &said), &[]);
        assert_eq!((warnings.len(), found.len()), (1, 1), "{found:?}");
        assert_eq!(found[0].object, "CREATE INDEX");
        assert_eq!(
            judge_after_rows(&exit(1, &format!("{error}{error}{command}{command}{}", ignored(1))), &[]).1,
            []
        );
        // A function that raises the words of a harmless complaint does not get away with it.
        let forged = format!("{error}{command}{theirs}{}", ignored(1));
        assert!(judge(&exit(1, &forged), &[]).is_err());
        let (_, found) = judge_after_rows(&exit(1, &forged), &[]);
        assert_eq!(
            (found.len(), found[0].fault, found[0].object.as_str()),
            (1, Fault::Trouble, "CREATE INDEX")
        );
    }

    fn ignored(n: u32) -> String {
        format!("pg_restore: warning: errors ignored on restore: {n}\n")
    }

    /// What pg_restore 13, 17 and 18 really wrote, into 13, 14 and 17.
    #[test]
    fn harmless_complaints_are_warnings() {
        let (error, command) = TIMEOUT.split_at(TIMEOUT.find("Command").unwrap());
        let cases = [
            (format!("{TIMEOUT}{}", ignored(1)), 1),
            (format!("{PUBLIC}{}", ignored(1)), 1),
            (format!("{TIMEOUT}{PUBLIC}{}", ignored(2)), 2),
            // With --jobs=3 five are said and two are counted.
            (format!("{}{}", TIMEOUT.repeat(5), ignored(2)), 5),
            // Two at once.
            (format!("{error}{error}{command}{command}{}", ignored(1)), 2),
            (
                format!(
                    "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 3; 2615 2200 SCHEMA public postgres\n{PUBLIC}{}",
                    ignored(1)
                ),
                1,
            ),
        ];
        for (stderr, complaints) in cases {
            assert_eq!(judge(&exit(1, &stderr), &[]).unwrap().len(), complaints, "{stderr}");
            assert!(judge(&exit(2, &stderr), &[]).is_err());
            assert!(judge(&exit(0, &stderr), &[]).is_err(), "errors and success do not go together");
        }
        assert!(judge(&exit(0, ""), &[]).unwrap().is_empty());
        assert_eq!(judge(&exit(0, "pg_restore: warning: x\n"), &[]).unwrap(), ["pg_restore: warning: x"]);
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
                let error = judge(&exit(1, &stderr), &[]).unwrap_err();
                assert_eq!(error.kind(), Kind::Failed);
                assert!(error.to_string().contains("exited with status 1"), "{error}");
            }
        }
        // It stopped at once (--single-transaction), lost its connection, or said nothing.
        let lost =
            "pg_restore: error: error returned by PQputCopyData: server closed the connection unexpectedly\n";
        for stderr in [TIMEOUT, lost, "", "pg_restore: error: a worker process died unexpectedly\n"] {
            assert!(judge(&exit(1, stderr), &[]).is_err(), "{stderr}");
        }
        let killed = Exit { status: std::process::ExitStatus::from_raw(9), ..exit(0, &ignored(1)) };
        assert!(judge(&killed, &[]).is_err());
    }

    /// What pg_restore 15 really wrote, but for the values.
    const FAILED: &str = "pg_restore: error: COPY failed for table \"rows\": ERROR:  new row for relation \"rows\" violates check constraint \"rows_check\"
DETAIL:  Failing row contains (1, c4nary
c4nary
DETAIL: c4nary).
CONTEXT:  COPY rows, line 1: \"1\tc4nary\"
pg_restore: error: could not execute query: ERROR:  invalid option \"c4nary\"
HINT:  c4nary
Command was: CREATE USER MAPPING FOR bob SERVER far OPTIONS (
    password 'c4nary
c4nary'
);


pg_restore: error: could not execute query: ERROR:  c4nary is no number
CONTEXT:  PL/pgSQL function public.f(text) line 1 at RAISE
Command was: ALTER TABLE ONLY public.child
    ADD CONSTRAINT child_fkey FOREIGN KEY (id) REFERENCES public.parent(id);


pg_restore: warning: errors ignored on restore: 3
";

    #[test]
    fn only_objects_and_masked_messages_are_kept() {
        let entries = [Entry {
            dump_id: 3204,
            desc: "FK CONSTRAINT".into(),
            tag: "child child_fkey".into(),
            defn: "ALTER TABLE ONLY public.child\n    ADD CONSTRAINT child_fkey FOREIGN KEY (id) REFERENCES public.parent(id);\n".into(),
            ..Entry::default()
        }];
        let found = complaints(FAILED, &entries);
        let said: Vec<String> = found.iter().map(Complaint::to_string).collect();
        assert_eq!(
            said,
            [
                "COPY failed for table \"rows\": ERROR:  new row for relation \"rows\" violates check constraint \"rows_check\"",
                "CREATE USER MAPPING FOR: could not execute query: ERROR:  invalid option \"…\"",
                "FK CONSTRAINT child child_fkey: could not execute query: ERROR:  raised by a function of the database",
            ]
        );
        assert_eq!(found.iter().map(|c| c.id).collect::<Vec<_>>(), [None, None, Some(3204)]);
        let error = judge(&exit(1, FAILED), &entries).unwrap_err();
        assert!(!format!("{error:?}").contains("c4nary") && error.to_string().ends_with("; 2 more errors"));
        assert!(
            and_more(&found[0], 1).ends_with("; 1 more error") && !and_more(&found[0], 0).contains("more")
        );
        assert!(is_sql_error(&error));
        assert_eq!(blame(error).kind(), Kind::Differs);
    }

    #[test]
    fn values_are_masked_and_names_are_not() {
        for (message, expected) in [
            ("role \"bob\" does not exist", "role \"bob\" does not exist"),
            (
                "invalid input syntax for type integer: \"s3\"x\"",
                "invalid input syntax for type integer: \"…\"",
            ),
            ("value \"9\" is out of range for type integer", "value \"…\" is out of range for type integer"),
            ("syntax error at or near \"s3", "syntax error at or near \"…\""),
            (
                "invalid input value for enum mood: \"s3\nrelation \"x\"",
                "invalid input value for enum mood: \"…\"",
            ),
            (
                "character with byte sequence 0xe2 0x82 in encoding \"UTF8\"",
                "character with byte sequence 0x… 0x… in encoding \"UTF8\"",
            ),
            ("index row \"s3\" of relation \"s3\" is odd", "index row \"…\" is odd"),
            ("type \"mood\" does not exist", "type \"mood\" does not exist"),
            ("trigger \"t\" for table \"u\" does not exist", "trigger \"t\" for table \"u\" does not exist"),
            ("operator class \"o\" does not exist", "operator class \"o\" does not exist"),
            (
                "connection to server at \"db\", port 1 failed",
                "connection to server at \"db\", port 1 failed",
            ),
        ] {
            assert_eq!(masked(message), expected);
        }
    }

    #[test]
    fn a_message_that_begins_with_a_name_of_the_set_shows_it() {
        let entries = [Entry { desc: "INDEX".into(), tag: "orders_pkey".into(), ..Entry::default() }];
        let said = |message: &str| {
            let stderr = format!("pg_restore: error: could not execute query: ERROR:  {message}\n");
            complaints(&stderr, &entries)[0].message.replace("could not execute query: ERROR:  ", "")
        };
        assert_eq!(said("\"orders_pkey\" is an index"), "\"orders_pkey\" is an index");
        assert_eq!(said("\"c4nary\" is an index"), "\"…\" is an index");
        assert_eq!(said("\"orders_pkey\" is no \"c4nary\""), "\"orders_pkey\" is no \"…\"");
        assert_eq!(said("bad value: \"orders_pkey\" is c4nary\""), "bad value: \"…\"");
    }

    #[test]
    fn a_log_tells_of_ends_and_of_nothing_that_a_statement_logged() {
        let log = "2026-11-30 18:08:48.670 UTC [19] FATAL:  the database system is starting up\n\
            2026-11-30 18:08:49.559 UTC [27] LOG:  there is c4nary 1\n\
            2026-11-30 18:08:49.559 UTC [27] CONTEXT:  PL/pgSQL function public.f() line 1 at RAISE\n\
            2026-11-30 18:08:49.560 UTC [27] FATAL:  password of \"c4nary\" is odd\n\
            2026-11-30 18:08:49.561 UTC [15] LOG:  server process (PID 27) was terminated by signal 9: Killed\n\
            2026-11-30 18:08:49.561 UTC [15] DETAIL:  Failed process was running: SELECT 'c4nary'\n";
        assert_eq!(
            log_lines(log),
            [
                "FATAL:  password of \"…\" is odd",
                "LOG:  server process (PID 27) was terminated by signal 9: Killed"
            ]
        );
        assert_eq!(log_lines(&"[1] PANIC:  x\n".repeat(30)).len(), LOG_LINES);
    }

    /// As PostgreSQL 15 says it of functions in each language, of a server in German, and cut.
    #[test]
    fn what_a_function_says_is_never_repeated() {
        const ASSERT: &str = "PL/pgSQL function public.f(text) line 1 at ASSERT";
        let query = "could not execute query: ";
        for (message, details) in [
            ("ERROR:  bad email c4nary", format!("CONTEXT:  {ASSERT}")),
            ("ERROR:  bad email c4nary", format!("CONTEXT:  SQL function \"g\" statement 1\n{ASSERT}")),
            ("ERROR:  bad email c4nary", format!("DETAIL:  x\nCommand was: JOHN C4NARY\nCONTEXT:  {ASSERT}")),
            ("ERROR:  bad email c4nary", format!("DETAIL:  x\nCONTEXT:  COPY t\nCONTEXT:  {ASSERT}")),
            (
                "ERROR:  ValueError: bad email c4nary",
                "CONTEXT:  Traceback (most recent call last):\n  PL/Python function \"f\", line 1, in <module>\n\
                    raise ValueError(c4nary)\nPL/Python function \"f\"".into(),
            ),
            ("ERROR:  bad email c4nary at line 1.", "CONTEXT:  PL/Perl function \"f\"".into()),
            ("ERROR:  c4nary", "CONTEXT:  c4nary\n    while executing\n\"error c4nary\"".into()),
            ("FEHLER:  c4nary", "CONTEXT:  PL/pgSQL-Funktion public.f(text) Zeile 1 bei RAISE".into()),
            ("FEHLER:  c4nary ERROR:  c4nary", "ZUSAMMENHANG:  PL/pgSQL-Funktion f() Zeile 1".into()),
            ("ERROR:  bad email c4nary", "DETAIL:  x\n… 100 bytes left out …".into()),
        ] {
            for (before, after) in [(query, "\nCommand was: CREATE INDEX i ON public.t;\n"), ("COPY failed for table \"t\": ", "\n")] {
                let stderr = format!("pg_restore: error: {before}{message}\n{details}{after}");
                let found = complaints(&stderr, &[]);
                assert_eq!(found.len(), 1, "{stderr}");
                let said = found[0].to_string();
                assert!(!said.to_lowercase().contains("c4nary"), "{said}: {stderr}");
                assert_eq!(said.starts_with("CREATE INDEX"), before == query, "{said}");
            }
        }
        // A trigger on logins, of a server in English and in German.
        for said in ["FATAL:  c4nary", "FEHLER:  c4nary"] {
            let stderr = format!(
                "pg_restore: error: connection to server on socket \"/s/.s.PGSQL.1\" failed: {said}\n\
                 CONTEXT:  PL/pgSQL function public.f() line 1 at RAISE\n"
            );
            let told = complaints(&stderr, &[])[0].to_string();
            assert!(
                !told.contains("c4nary") && told.contains("on socket \"/s/.s.PGSQL.1\" failed: "),
                "{told}"
            );
        }
        let plain = "CONTEXT:  COPY t, line 1, column a: \"c4nary\"\nSQL function \"f\" during startup";
        let stderr =
            format!("pg_restore: error: COPY failed for table \"t\": ERROR:  value too long\n{plain}\n");
        assert!(complaints(&stderr, &[])[0].message.ends_with("ERROR:  value too long"));
        let lost = "pg_restore: error: could not execute query: server closed the connection unexpectedly\n";
        assert!(complaints(lost, &[])[0].message.ends_with("server closed the connection unexpectedly"));
    }

    #[test]
    fn what_no_dump_holds_is_nobodys_fault() {
        let fault = |message: &str| complaints(&format!("pg_restore: error: {message}\n"), &[])[0].fault;
        let sql = |message: &str| fault(&format!("could not execute query: ERROR:  {message}"));
        assert_eq!(sql("could not connect to server \"far\""), Fault::Elsewhere);
        assert_eq!(sql("could not open stop-word file \"/x.stop\": No such file"), Fault::Elsewhere);
        assert_eq!(sql("could not open extension control file \"/x\": No such file"), Fault::Trouble);
        assert_eq!(sql("could not extend file \"base/1\": No space left on device"), Fault::Trouble);
        let reading = "\" for reading: No such file or directory";
        assert_eq!(sql(&format!("could not open file \"/far/rows.csv{reading}")), Fault::Elsewhere);
        assert_eq!(sql("could not open file \"/usr/tsearch_data/x.rules\": No such file"), Fault::Elsewhere);
        let making =
            |message: &str| sql(&format!("{message}\nCommand was: CREATE EXTENSION IF NOT EXISTS x;\n"));
        assert_eq!(making("unrecognized configuration parameter \"x.y\""), Fault::Elsewhere);
        assert_eq!(
            making("could not access file \"$libdir/x\": No such file or directory"),
            Fault::Elsewhere
        );
        assert_eq!(making("could not extend file \"base/1\": No space left on device"), Fault::Trouble);
        assert_eq!(sql("unrecognized configuration parameter \"x.y\""), Fault::Refused);
        assert_eq!(sql("relation \"x\" does not exist"), Fault::Refused);
        assert_eq!(fault("could not execute query: server closed the connection"), Fault::Trouble);
        assert_eq!(sql("materialized view \"a\" has not been populated"), Fault::Refused);
        let one = "pg_restore: error: could not execute query: ERROR:  ";
        let both = format!(
            "{one}could not connect to server \"far\"\n{one}materialized view \"a\" has not been populated\n"
        );
        assert!(complaints(&both, &[]).iter().all(|c| c.fault == Fault::Elsewhere));
    }

    #[test]
    fn a_host_in_trouble_is_not_what_a_dump_lacks() {
        for said in [
            "could not open file \"base/1/2\": Input/output error",
            "could not open file \"pg_wal/0001\": Permission denied",
            "could not open file \"pg_tblspc/1/PG_15/1\" for reading: No such file or directory",
            "could not open file \"global/1\": No such file or directory",
            "could not open temporary file \"i1of2.p0.0\" from BufFile \"x\": No such file or directory",
            "could not open file \"/far/rows.csv\" for reading: Too many open files",
            "could not open stop-word file \"/x.stop\": Too many open files in system",
        ] {
            let line = format!("could not execute query: ERROR:  {said}");
            let found = complaints(&format!("pg_restore: error: {line}\n"), &[]);
            assert_eq!(found[0].fault, Fault::Trouble, "{said}");
            let error = judge(&exit(1, &format!("pg_restore: error: {line}\n")), &[]).unwrap_err();
            assert_eq!(blame(error).kind(), Kind::Failed, "{said}");
        }
        let file = format!("pg_restore: error: {REFUSED}  could not open relation \"file\"\n");
        assert_eq!(blame(judge(&exit(1, &file), &[]).unwrap_err()).kind(), Kind::Differs);
    }

    #[test]
    fn what_is_harmless_is_told_beside_what_is_forgiven() {
        let one = "pg_restore: error: could not execute query: ERROR:  could not open stop-word file \"/x.stop\": No such file\nCommand was: CREATE TEXT SEARCH DICTIONARY public.d;\n\n\n";
        let stderr = format!("{TIMEOUT}{one}{}", ignored(2));
        let (warnings, failed) = judge_all(&exit(1, &stderr), &[], |_| true).unwrap();
        assert_eq!((warnings.as_slice(), failed.len()), (&[HARMLESS_TIMEOUT.to_owned()][..], 1));
    }

    #[test]
    fn rows_that_need_what_was_forgiven_are_no_difference() {
        let mut forgiven = complaints(FAILED, &[]);
        let said = format!("pg_restore: error: {REFUSED}  relation \"public.docs\" does not exist\n");
        let refused = || judge(&exit(1, &said), &[]).unwrap_err();
        assert_eq!(blame(lacking(refused(), &[])).kind(), Kind::Differs);
        forgiven.iter_mut().for_each(|c| c.fault = Fault::Refused);
        assert_eq!(blame(lacking(refused(), &forgiven)).kind(), Kind::Differs, "the set refuses both");
        forgiven[0].fault = Fault::Elsewhere;
        let error = blame(lacking(refused(), &forgiven));
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().contains(&forgiven[0].to_string()), "{error}");
        assert_eq!(lacking(Error::new("x"), &forgiven).to_string(), "x");
    }

    /// A restore was given up for it, or a loss was called none of the set's.
    #[test]
    fn a_name_that_reads_like_our_own_words_decides_nothing() {
        for name in ["rows need what cannot be restored here", "terminating connection", "out of memory"] {
            let said = format!(
                "pg_restore: error: COPY failed for table \"{name}\": ERROR:  new row for relation \"{name}\" violates \
                 check constraint \"c\"\nCONTEXT:  COPY {name}, line 1\n"
            );
            let error = judge(&exit(1, &said), &[]).unwrap_err();
            assert!(is_sql_error(&error) && !is_lacking(&error), "{error}");
            assert_eq!(blame(error.context(name)).kind(), Kind::Differs);
        }
    }

    #[test]
    fn what_was_cut_is_trouble() {
        let cut = Exit { is_cut: true, ..exit(1, FAILED) };
        let is_trouble = |found: &[Complaint]| found.iter().any(|c| c.fault == Fault::Trouble);
        assert!(!is_trouble(&judge_after_rows(&exit(1, FAILED), &[]).1));
        assert!(is_trouble(&judge_after_rows(&cut, &[]).1));
        assert!(judge_all(&cut, &[], |found| !is_trouble(found)).is_err());
    }

    #[test]
    fn failures_after_the_rows_are_told_whatever_they_are() {
        assert_eq!(judge_after_rows(&exit(1, FAILED), &[]).1.len(), 3);
        assert_eq!(judge_after_rows(&exit(0, ""), &[]).1, []);
        let killed = Exit { status: std::process::ExitStatus::from_raw(9), ..exit(0, "") };
        assert_eq!(judge_after_rows(&killed, &[]).1[0].fault, Fault::Trouble);
        assert!(judge_all(&exit(1, FAILED), &[], |_| false).is_err());
        // What never began is told as it is: there was no server to quote anything.
        let error =
            judge(&exit(127, "Error response from daemon: No such container: db\n"), &[]).unwrap_err();
        assert!(error.to_string().ends_with("No such container: db"), "{error}");
    }
}
