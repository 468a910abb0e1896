//! What PostgreSQL and its tools mean by what they say: the one place that takes their messages apart.
//!
//! A server speaks the language that somebody set for it, and pg_dump and pg_restore pass on what it says. So its
//! text decides nothing here. Where opsd speaks the protocol itself, the SQLSTATE does. Of what a tool writes,
//! its own words do, libpq's (both run with `LC_ALL=C`), the statement that it names, and names that no
//! translation changes. What is beyond these is asked of the server by whoever decides.
//!
//! Why a sound server refused a statement of a restore ([`Fault::Elsewhere`], and some of [`Fault::Trouble`]) is
//! read in English alone: a rehearsal's server speaks it, and one whose superuser restores is told to. In another
//! language what the server refused is refused, whatever the reason, and none of it is forgiven.

use tokio_postgres::error::SqlState;

use crate::config::require_auth::ALLOW_CLEAR;
use crate::error::{Error, Fault};

/// What keeps a standby from ending our sessions for what its primary did meanwhile.
pub const STANDBY_HINT: &str = "raise max_standby_streaming_delay beyond the time a backup takes, and set \
     hot_standby_feedback = on against VACUUM on the primary";

/// What to do about a full lock table.
pub const LOCK_TABLE_HINT: &str =
    "its lock table is full: raise max_locks_per_transaction on that server, and restart it";

/// The parameter that a server names, in whatever language, when its lock table is full.
const LOCK_TABLE: &str = "max_locks_per_transaction";

/// Why a pg_dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dump {
    /// A table was not to be locked: somebody else has it, wants it, or dropped it.
    Locked,
    /// The role may not read a table.
    Denied,
    /// The server had no room for a lock.
    LockTable,
    /// The session that held the snapshot is gone.
    Snapshot,
    /// The connection is gone.
    Lost,
    /// Another query failed: usually because somebody changed what it asked about.
    Query,
    /// The rows of a table stopped.
    Rows,
    /// libpq refused the way in which the server asks for a password.
    Authentication,
    /// Whatever else: it never came so far as to ask, or stumbled over something of its own.
    Other,
}

/// As a server says it in English; in another language the plan, which is made anew, finds out what may not be read.
const DENIED: &str = "query failed: ERROR:  permission denied for ";

/// Why a pg_dump or pg_dumpall that wrote this to stderr ended.
pub fn of_dump(said: &str) -> Dump {
    // Up to 14 it writes "query was".
    let asked = |statement: &str| {
        ["Query was: ", "query was: "].iter().any(|begin| said.contains(&format!("{begin}{statement}")))
    };
    let has_failed = said.contains("query failed: ");
    if said.contains("authentication method requirement") {
        Dump::Authentication
    } else if is_lock_table_full(said) {
        Dump::LockTable
    } else if has_failed && asked("SET TRANSACTION SNAPSHOT ") {
        Dump::Snapshot
    } else if is_lost(said) {
        Dump::Lost
    } else if has_failed && said.contains(DENIED) && (asked("LOCK TABLE ") || asked("COPY ")) {
        Dump::Denied
    } else if has_failed && asked("LOCK TABLE ") {
        Dump::Locked
    } else if has_failed {
        Dump::Query
    } else if said.contains("Dumping the contents of table ") {
        Dump::Rows
    } else {
        Dump::Other
    }
}

/// Adds the next step to why a pg_dump or pg_dumpall ended.
pub fn explain_dump(error: Error) -> Error {
    let hint = match of_dump(&error.to_string()) {
        Dump::Authentication => ALLOW_CLEAR.to_owned(),
        Dump::Locked => {
            "another session held or wanted ACCESS EXCLUSIVE on a table for longer than pg_dump waits, \
                         or dropped it"
                .to_owned()
        }
        Dump::Denied => {
            "grant SELECT on that table and USAGE on its schema to the role, or pg_read_all_data (PostgreSQL 14 or \
             newer): pg_dump reads also what an extension calls its configuration"
                .to_owned()
        }
        Dump::LockTable => LOCK_TABLE_HINT.to_owned(),
        Dump::Snapshot => {
            format!(
                "the session that held the snapshot is gone; see the server's log. On a standby: {STANDBY_HINT}"
            )
        }
        Dump::Lost | Dump::Query | Dump::Rows | Dump::Other => return error,
    };
    error.with_hint(hint)
}

/// A standby cancels or disconnects whoever is in the way of what its primary did: what to do about that, where
/// the failure may have been one.
pub fn explain_conflict(error: Error) -> Error {
    let said = error.to_string();
    let is_of_dump =
        matches!(of_dump(&said), Dump::Locked | Dump::Snapshot | Dump::Lost | Dump::Query | Dump::Rows);
    // Ours: a conflict has the first two, and what ends a session the others.
    let is_ours =
        ["40001", "40P01", "57P01", "57P04"].iter().any(|code| said.contains(&format!("(SQLSTATE {code})")));
    if is_of_dump || is_ours || said.contains("connection closed") {
        return error.with_hint(format!("the source is a standby: {STANDBY_HINT}"));
    }
    error
}

/// What may be said of a message that is of somebody's own choosing.
pub const RAISED: &str = "raised by a function of the database";

/// What a server's context begins with where none but its own words are in the message: any other line
/// (`PL/pgSQL function …`, a traceback, another language's word for the same) tells of code of the
/// database's.
const PLAIN: [&str; 8] = [
    "COPY ",
    "JSON data, line ",
    "SQL function \"",
    "SQL statement \"",
    "line ",
    "parallel worker",
    "portal \"",
    "while ",
];

/// Whether a message whose context this is may have been raised by code of the database's: then it is of its
/// author's choosing, and usually has values in it.
pub fn is_raised(context: &str) -> bool {
    context.lines().map(str::trim_end).any(|line| {
        let is_plain = line.is_empty() || PLAIN.iter().any(|begin| line.starts_with(begin));
        !is_plain
    })
}

/// Whether a server, in English, says that it does not know what is named.
pub fn is_unknown_name(said: &str) -> bool {
    let line = said.lines().next().unwrap_or_default();
    let kinds = ["relation ", "function ", "type ", "operator ", "text search ", "collation "];
    kinds.iter().any(|kind| line.starts_with(kind)) && line.ends_with(" does not exist")
}

/// What libpq says where nobody is at the other end any more.
const LOST: [&str; 6] = [
    "server closed the connection unexpectedly",
    "SSL connection has been closed unexpectedly",
    "could not receive data from server",
    "could not send data to server",
    "no connection to the server",
    "SSL SYSCALL error",
];

fn is_lost(said: &str) -> bool {
    LOST.iter().any(|words| said.contains(words))
}

/// Whether a server advises to make its lock table larger: `HINT` is libpq's word, and the parameter's name stays
/// in every language. A statement does not begin like that.
pub fn is_lock_table_full(said: &str) -> bool {
    said.lines().any(|line| line.starts_with("HINT:  ") && line.contains(LOCK_TABLE))
}

/// What pg_restore writes before what a server said of a statement.
pub const QUERY: &str = "could not execute query: ";
/// The same for rows, with the table's name and a colon between.
pub const ROWS: &str = "COPY failed for table";
/// In the place of what a server said in another language.
pub const FOREIGN: &str = "an error in another language than English";
/// The same where it ended the session with it.
pub const FOREIGN_END: &str = "the session was ended, in another language than English";

/// Where a server's own words begin, and these, in what pg_restore says of a statement or of rows.
pub fn servers_words(text: &str) -> Option<(usize, &str)> {
    if let Some(said) = text.strip_prefix(QUERY) {
        return Some((QUERY.len(), said));
    }
    // A table's name may hold what ends it, and so may what a server says.
    let mut ends =
        text.strip_prefix(ROWS)?.match_indices("\": ").map(|(at, end)| ROWS.len() + at + end.len());
    let first = ends.clone().next()?;
    let at = ends.find(|at| severity(&text[*at..]).is_some()).unwrap_or(first);
    Some((at, &text[at..]))
}

/// How grave a server calls what it says, in its language, and the rest. libpq puts a colon and two spaces between.
pub fn severity(said: &str) -> Option<(&str, &str)> {
    let (word, rest) = said.split_once(":  ")?;
    (!word.is_empty() && !word.contains(char::is_whitespace)).then_some((word, rest))
}

/// Whether a word of that kind means that the session goes on.
fn goes_on(severity: &str) -> bool {
    // Those of the other languages differ, and libpq says beside them that the connection is gone.
    !matches!(severity, "FATAL" | "PANIC" | "PANIK" | "ВАЖНО" | "ПАНИКА")
}

/// Whose fault it is, of the first line of what pg_restore wrote and the lines that follow.
pub fn of_restore(text: &str, details: &str) -> Fault {
    let Some((_, said)) = servers_words(text) else { return Fault::Trouble };
    let is_refused = severity(said).is_some_and(|(severity, _)| goes_on(severity));
    let said = &without_names(said);
    // libpq begins a line with it, before what the server tells beside its message: there a row may have any line.
    let of_server =
        |line: &&str| ["DETAIL:  ", "HINT:  ", "CONTEXT:  "].iter().any(|word| line.starts_with(word));
    let mut of_libpq = details.lines().take_while(|line| !of_server(line));
    let is_lost = is_lost(said) || of_libpq.any(|line| LOST.iter().any(|words| line.starts_with(words)));
    if !is_refused || is_lost || is_lock_table_full(details) || is_trouble(said) {
        Fault::Trouble
    } else if is_elsewhere(said) {
        Fault::Elsewhere
    } else {
        Fault::Refused
    }
}

/// Whose fault it is that the server refused rows of our own sending.
pub fn of_rows(code: &SqlState) -> Fault {
    // A connection, resources, an operator, the system, the server itself.
    let is_trouble = ["08", "53", "57", "58", "F0", "XX"].iter().any(|class| code.code().starts_with(class));
    if is_trouble { Fault::Trouble } else { Fault::Refused }
}

/// What a server says in English when it is in trouble itself.
const TROUBLE: [&str; 7] = [
    "No space left on device",
    "Too many open files",
    "could not extend file",
    "out of memory",
    "out of shared memory",
    "temporary file",
    "terminating connection",
];

/// What it says where a part of an extension is not installed.
const LIBRARY: [&str; 3] =
    ["could not open extension control file", "could not access file", "could not load library"];

/// A server's words without what stands between its first and its last quote: a table may be called whatever another
/// message says. Where a message begins with what opens a file, the file's path stays, which is no name of the
/// database's; so does the parameter that an extension wants set.
fn without_names(said: &str) -> String {
    const PRELOAD: &str = "\"shared_preload_libraries\"";
    let (Some(first), Some(last)) = (said.find('"'), said.rfind('"')) else { return said.to_owned() };
    let opens = severity(said).is_some_and(|(_, words)| words.starts_with("could not open "));
    if opens || said.find(PRELOAD) == Some(first) && said.ends_with(PRELOAD) {
        return said.to_owned();
    }
    format!("{}\"…{}", &said[..first], &said[last..])
}

/// Whether a part of an extension is not installed.
pub fn lacks_library(said: &str) -> bool {
    LIBRARY.iter().any(|needle| said.contains(needle))
}

/// Whether the server is in trouble itself; a file that it cannot open and that a set does not need is
/// one of its own.
fn is_trouble(said: &str) -> bool {
    TROUBLE.iter().any(|needle| said.contains(needle))
        || lacks_library(said)
        || (unopened(said).is_some() && !is_elsewhere(said))
}

/// What it says where something is missing that is not part of a database.
fn is_elsewhere(said: &str) -> bool {
    const DICTIONARIES: [&str; 6] = ["affix", "dictionary", "stop-word", "synonym", "thesaurus", "unaccent"];
    // The last is a parameter that an extension names which must be loaded at the start.
    [
        "could not connect to server",
        "could not establish connection",
        "password is required",
        "shared_preload_libraries",
    ]
    .iter()
    .any(|needle| said.contains(needle))
        || unopened(said).is_some_and(|(kind, path)| {
            DICTIONARIES.contains(&kind)
                || path.contains("/tsearch_data/")
                // As file_fdw says it.
                || (kind.is_empty() && path.starts_with('/') && path.contains("\" for reading: "))
        })
}

/// The kind of a file that cannot be opened, and its path with what follows.
fn unopened(said: &str) -> Option<(&str, &str)> {
    let (what, path) = said.split_once("could not open ")?.1.split_once('"')?;
    Some((what.trim_end().strip_suffix("file")?.trim_end(), path))
}

/// Something that pg_restore may complain of although everything is restored.
#[derive(Debug, Clone, Copy)]
pub struct Harmless {
    /// The line with the error, as it is in English.
    pub error: &'static str,
    /// The command that it names.
    pub command: &'static str,
    /// What the error names in every language.
    names: &'static str,
}

/// Of a server older than pg_restore, whose majors from 17 on send a setting that it does not know.
pub const HARMLESS_TIMEOUT: &str = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"";

/// That setting, and a schema that every new database has.
pub const HARMLESS: [Harmless; 2] = [
    Harmless {
        error: HARMLESS_TIMEOUT,
        command: "Command was: SET transaction_timeout = 0;",
        names: "transaction_timeout",
    },
    Harmless {
        error: "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists",
        command: "Command was: CREATE SCHEMA public;",
        names: "public",
    },
];

impl Harmless {
    /// Whether a line is its error, in whatever language. Whether it is harmless is for the command to say.
    pub fn is_error(&self, line: &str) -> bool {
        let foreign = || {
            let (severity, said) = severity(line.strip_prefix("pg_restore: error: ")?.strip_prefix(QUERY)?)?;
            Some(severity != "ERROR" && goes_on(severity) && said.contains(self.names))
        };
        line == self.error || foreign().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pg_dump 14, 15 and 17 really wrote, under `LC_ALL=C`, of servers in English and in German.
    const SAID: &[(Dump, &str)] = &[
        (
            Dump::Locked,
            "pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout\n\
             pg_dump: error: query was: LOCK TABLE public.aa IN ACCESS SHARE MODE",
        ),
        (
            Dump::Locked,
            "pg_dump: error: query failed: FEHLER:  storniere Anfrage wegen Zeitüberschreitung der Anfrage\n\
             pg_dump: detail: Query was: LOCK TABLE public.aa, public.bb IN ACCESS SHARE MODE",
        ),
        (
            Dump::Locked,
            "pg_dump: error: query failed: FEHLER:  Relation »public.aa« existiert nicht\n\
             pg_dump: detail: Query was: LOCK TABLE public.aa IN ACCESS SHARE MODE",
        ),
        (
            Dump::Locked,
            "pg_dump: error: query failed: FEHLER:  Verklemmung (Deadlock) entdeckt\nDETAIL:  Prozess 1 wartet auf x\n\
             HINT:  Einzelheiten zur Anfrage finden Sie im Serverlog.\n\
             pg_dump: detail: Query was: LOCK TABLE public.aa IN ACCESS SHARE MODE",
        ),
        (
            Dump::LockTable,
            "pg_dump: error: query failed: FEHLER:  Shared Memory aufgebraucht\n\
             HINT:  Sie müssen möglicherweise max_locks_per_transaction erhöhen.\n\
             pg_dump: detail: Query was: LOCK TABLE public.aa IN ACCESS SHARE MODE",
        ),
        // A table may have any name.
        (
            Dump::Locked,
            "pg_dump: error: query failed: ERROR:  canceling statement due to statement timeout\n\
             pg_dump: detail: Query was: LOCK TABLE public.max_locks_per_transaction IN ACCESS SHARE MODE",
        ),
        (
            Dump::Denied,
            "pg_dump: error: query failed: ERROR:  permission denied for table theirs\n\
             pg_dump: detail: Query was: LOCK TABLE public.theirs IN ACCESS SHARE MODE",
        ),
        (
            Dump::Denied,
            "pg_dump: error: query failed: ERROR:  permission denied for table theirs\n\
             pg_dump: error: query was: COPY public.theirs (i) TO stdout;",
        ),
        (
            Dump::Snapshot,
            "pg_dump: error: query failed: FEHLER:  ungültiger Snapshot-Bezeichner: »00000003-00000010-1«\n\
             pg_dump: detail: Query was: SET TRANSACTION SNAPSHOT '00000003-00000010-1'",
        ),
        (
            Dump::Snapshot,
            "pg_dump: error: query failed: ERROR:  snapshot \"00000003-00000010-1\" does not exist\n\
             pg_dump: detail: Query was: SET TRANSACTION SNAPSHOT '00000003-00000010-1'",
        ),
        (
            Dump::Query,
            "pg_dump: error: query failed: FEHLER:  konnte Relation mit OID 16385 nicht öffnen\n\
             pg_dump: detail: Query was: SELECT pg_catalog.pg_get_viewdef('16385'::pg_catalog.oid) AS viewdef",
        ),
        (
            Dump::Lost,
            "pg_dump: error: query failed: FATAL:  Verbindung wird abgebrochen aufgrund von Anweisung des Administrators\n\
             server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n\
             \tbefore or while processing the request.\npg_dump: detail: Query was: LOCK TABLE public.aa IN ACCESS SHARE MODE",
        ),
        (
            Dump::Rows,
            "pg_dump: error: Dumping the contents of table \"aa\" failed: PQgetResult() failed.\n\
             pg_dump: detail: Error message from server: FEHLER:  storniere Anfrage wegen Konflikt mit der Wiederherstellung\n\
             pg_dump: detail: Command was: COPY public.aa (id) TO stdout;",
        ),
        (
            Dump::Other,
            "pg_dump: error: connection to server on socket \"/run/.s.PGSQL.5432\" failed: FATAL:  tut mir leid, schon zu \
             viele Verbindungen",
        ),
        (
            Dump::Authentication,
            "pg_dump: error: connection to server at \"db\" (10.0.0.1), port 5432 failed: authentication method requirement \
             \"scram-sha-256\" failed: server requested a cleartext password",
        ),
        (Dump::Other, "pg_dump: error: no matching tables were found"),
    ];

    #[test]
    fn why_a_pg_dump_ended_is_told_in_no_language() {
        for (expected, said) in SAID {
            assert_eq!(of_dump(said), *expected, "{said}");
        }
    }

    #[test]
    fn a_standby_is_blamed_for_what_it_may_have_ended() {
        let hint = |said: &str| explain_conflict(Error::new(said)).hint().is_some();
        let of_standbys = [Dump::Locked, Dump::Snapshot, Dump::Lost, Dump::Query, Dump::Rows];
        for (meaning, said) in SAID {
            assert_eq!(hint(said), of_standbys.contains(meaning), "{said}");
        }
        assert!(hint("breche Verbindung ab wegen Konflikt mit der Wiederherstellung (SQLSTATE 40001)"));
        assert!(hint("lost the connection to db:5432: connection closed"));
        assert!(!hint("cannot write to s3://bucket: 403"));
    }

    #[test]
    fn what_a_server_refuses_is_refused_in_any_language() {
        for (expected, text, details) in [
            (Fault::Refused, "could not execute query: ERROR:  relation \"x\" does not exist", ""),
            (Fault::Refused, "could not execute query: FEHLER:  Relation »x« existiert nicht", ""),
            (
                Fault::Refused,
                "COPY failed for table \"t\": FEHLER:  neue Zeile verletzt »t_check«",
                "DETAIL:  x",
            ),
            (Fault::Refused, "COPY failed for table \"a\": b\": ERREUR:  valeur trop longue", ""),
            (Fault::Trouble, "could not execute query: FATAL:  Verbindung wird abgebrochen", ""),
            (
                Fault::Trouble,
                "could not execute query: ОТКАЗ:  подключение прерывается",
                "server closed the connection unexpectedly\n\tThis probably means",
            ),
            (Fault::Trouble, "could not execute query: server closed the connection unexpectedly", ""),
            (
                Fault::Trouble,
                "could not execute query: FEHLER:  Shared Memory aufgebraucht",
                "HINT:  Sie müssen möglicherweise max_locks_per_transaction erhöhen.",
            ),
            (Fault::Trouble, "could not execute query: ERROR:  could not extend file \"base/1\"", ""),
            (Fault::Elsewhere, "could not execute query: ERROR:  could not connect to server \"far\"", ""),
            (Fault::Trouble, "a worker process died unexpectedly", ""),
        ] {
            assert_eq!(of_restore(text, details), expected, "{text}");
        }
        let lost = format!("{ROWS} \"t\": server closed the connection unexpectedly");
        assert_eq!(of_restore(&lost, ""), Fault::Trouble);
        assert_eq!(of_rows(&SqlState::DISK_FULL), Fault::Trouble);
        assert_eq!(of_rows(&SqlState::QUERY_CANCELED), Fault::Trouble);
        assert_eq!(of_rows(&SqlState::CHECK_VIOLATION), Fault::Refused);
    }

    #[test]
    fn a_name_that_reads_like_a_message_decides_nothing() {
        for name in [
            "could not connect to server",
            "could not open file \"/x\" for reading: ",
            "could not access file",
            "out of memory",
            "shared_preload_libraries",
            "terminating connection",
            "server closed the connection unexpectedly",
        ] {
            for said in [
                format!(
                    "{ROWS} \"{name}\": ERROR:  new row for relation \"{name}\" violates check constraint \"c\""
                ),
                format!("{QUERY}ERROR:  relation \"{name}\" already exists"),
            ] {
                let context =
                    format!("DETAIL:  Failing row contains (1,\n{name}).\nCONTEXT:  COPY {name}, line 1");
                assert_eq!(of_restore(&said, &context), Fault::Refused, "{said}");
            }
        }
        let preload = format!("{QUERY}ERROR:  x must be loaded via \"shared_preload_libraries\"");
        assert_eq!(of_restore(&preload, ""), Fault::Elsewhere);
    }

    #[test]
    fn what_is_harmless_is_so_in_any_language() {
        let [timeout, public] = HARMLESS;
        let error = "pg_restore: error: could not execute query: ";
        assert!(timeout.is_error(timeout.error) && public.is_error(public.error));
        assert!(
            timeout.is_error(&format!(
                "{error}FEHLER:  unbekannter Konfigurationsparameter »transaction_timeout«"
            ))
        );
        assert!(public.is_error(&format!("{error}FEHLER:  Schema »public« existiert bereits")));
        for other in [
            format!("{error}ERROR:  permission denied for database public"),
            format!("{error}FEHLER:  keine Berechtigung für Datenbank app"),
            format!("{error}FATAL:  transaction_timeout public"),
            "pg_restore: error: COPY failed for table \"public\": FEHLER:  transaction_timeout".to_owned(),
        ] {
            assert!(!timeout.is_error(&other) && !public.is_error(&other), "{other}");
        }
    }
}
