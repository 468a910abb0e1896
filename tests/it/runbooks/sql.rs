//! Every SQL statement of the pages on a primary and its standby: those that look as a role with no more
//! than `pg_monitor`, while there is something to see, and those that act as a superuser.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use super::page::{Kind, LOOK, Snippet, replaced, statements};
use crate::support::postgres::{self, MAJORS, Options, SUPERUSER, Server};
use crate::support::processes::until;

/// Statements that may find nothing here, and why.
const FINDS_NOTHING: &[(&str, &str)] = &[
    ("checksum_failures > 0", "no page is damaged"),
    ("pg_stat_progress_vacuum", "no vacuum takes long enough to be met"),
    ("subscription", "nobody subscribes here; monitor_cascades has a subscriber"),
];

/// Statements for the standby, wherever they stand.
const STANDBY: &[&str] = &["pg_stat_wal_receiver", "pg_is_wal_replay_paused", "pg_wal_replay_resume"];

/// Settings of a server that has everything the pages speak of.
const SETTINGS: &[(&str, &str)] =
    &[("max_prepared_transactions", "10"), ("archive_mode", "on"), ("archive_command", "/bin/false")];

/// Tables, sequences and indexes that a page may name.
const SCHEMA: &str = "CREATE TABLE orders (id serial PRIMARY KEY, note text);
    ALTER TABLE orders SET (autovacuum_enabled = off);
    INSERT INTO orders (note) SELECT repeat('x', 100) FROM generate_series(1, 1000); DELETE FROM orders WHERE id < 500;
    CREATE INDEX orders_note ON orders (note);
    CREATE TABLE held (id int); ALTER TABLE held SET (autovacuum_enabled = off)";

/// A session of psql that stays open.
pub struct Session {
    child: Child,
    /// Its backend.
    pub pid: u32,
}

impl Session {
    /// Opens one and starts `sql` in it; returns before that has ended.
    pub fn start(server: &Server, database: &str, sql: &str) -> Session {
        let mut psql = server.client("psql");
        psql.args(["-X", "-q", "-A", "-t"]).env("PGDATABASE", database);
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start psql");
        let stdin = child.stdin.as_mut().expect("stdin");
        writeln!(stdin, "SELECT pg_backend_pid();\n{sql};").expect("write");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("stdout")).read_line(&mut line).expect("read");
        Session { child, pid: line.trim().parse().expect("a process id") }
    }

    /// Ends the backend, whatever it waits for.
    fn end(self, server: &Server) {
        server.psql("postgres", &format!("SELECT pg_terminate_backend({})", self.pid));
        until("the session ends", || {
            server
                .psql("postgres", &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {}", self.pid))
                == "0"
        });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Majors whose catalogs differ: the first, the usual and the last one, or the one that is asked for.
pub fn majors() -> Vec<u32> {
    if std::env::var_os("OPSD_TEST_PG").is_some() {
        return vec![postgres::default_major()];
    }
    let few = [MAJORS[0], 15, MAJORS[5]];
    few.into_iter().filter(|major| postgres::is_installed(*major)).collect()
}

/// A primary and its standby, with the tables of [`SCHEMA`] in the database `app`.
pub fn pair(major: u32) -> (Server, Server) {
    let hba = ["local replication all trust", "host replication all 127.0.0.1/32 trust"];
    let primary = Server::start(major, &Options { settings: SETTINGS, hba: &hba, ..Options::default() });
    let standby = primary.standby(&[]);
    primary.create_database("app");
    primary.psql("app", SCHEMA);
    primary.psql(
        "app",
        "CREATE ROLE watcher LOGIN; GRANT pg_monitor TO watcher; CREATE ROLE app LOGIN;
         CREATE ROLE opsd LOGIN; CREATE ROLE replicator LOGIN REPLICATION",
    );
    standby.catch_up(&primary);
    (primary, standby)
}

/// What is to be put in the place of a name in capitals; where something is needed for that, it is made.
fn filled(statement: &Snippet, text: &str, primary: &Server, sessions: &mut Vec<Session>) -> String {
    let mut text = text.to_owned();
    let page = statement.page.as_str();
    let is_index = text.starts_with("REINDEX");
    let fixed = [
        ("SCHEMA.SEQUENCE", "public.orders_id_seq"),
        ("NAME", if is_index { "orders_note" } else { "orders_id_seq" }),
        ("TABLE_NAME", "orders"),
        ("ROLE_NAME", "app"),
        ("COLUMN_NAME", "id"),
        ("STATEMENT", "SELECT count(*) FROM orders"),
    ];
    for (name, value) in fixed {
        text = replaced(&text, name, value);
    }
    if page == "postgres-checksums" {
        text = replaced(&text, "FILENODE", &primary.psql("app", "SELECT pg_relation_filenode('orders')"));
    }
    if text.contains("'SLOT'") {
        let slot = postgres::unique("slot");
        primary.psql("app", &format!("SELECT pg_create_physical_replication_slot('{slot}', true)"));
        text = replaced(&text, "SLOT", &slot);
    }
    if text.contains("'GID'") {
        let gid = postgres::unique("gid");
        let sql = format!("BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION '{gid}'");
        primary.psql("app", &sql);
        text = replaced(&text, "GID", &gid);
    }
    for name in ["PID", "BLOCKER"] {
        if replaced(&text, name, "") != text {
            let session = Session::start(primary, "app", "SELECT pg_sleep(600)");
            text = replaced(&text, name, &session.pid.to_string());
            sessions.push(session);
        }
    }
    text
}

/// Runs one statement; its output.
fn run(server: &Server, role: &str, text: &str) -> Result<String, String> {
    let mut psql = server.client("psql");
    psql.env("PGUSER", role).env("PGDATABASE", "app");
    // Nothing here may wait for long.
    psql.env("PGOPTIONS", "-c statement_timeout=20s");
    psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
    let output = psql.output().expect("run psql");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || stderr.contains("WARNING") {
        return Err(stderr);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs all statements of the pages on one major; what went wrong.
pub fn run_all(major: u32, snippets: &[Snippet]) -> Vec<String> {
    let (primary, standby) = pair(major);
    let mut wrong = Vec::new();
    let sql = snippets.iter().filter(|snippet| snippet.kind == Kind::Sql);
    let (look, act): (Vec<_>, Vec<_>) = sql.partition(|snippet| snippet.section == LOOK);
    assert!(look.len() > 25 && act.len() > 20, "{} and {}", look.len(), act.len());
    let server_of = |snippet: &Snippet| {
        let is_there =
            snippet.around.starts_with("On the standby") || STANDBY.iter().any(|w| snippet.text.contains(w));
        if is_there { &standby } else { &primary }
    };

    // Something to see: a transaction that is open, one that waits for it, one that is prepared, one that
    // keeps its snapshot; a slot; WAL that is not archived; figures of tables.
    primary.psql("app", "SELECT pg_create_physical_replication_slot('kept', true); SELECT pg_switch_wal()");
    primary.psql("app", "BEGIN; INSERT INTO held VALUES (1); PREPARE TRANSACTION 'kept'");
    let holder = Session::start(&primary, "app", "BEGIN; LOCK TABLE held IN ROW EXCLUSIVE MODE");
    let snapshot =
        Session::start(&primary, "app", "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders");
    let waiter = Session::start(&primary, "app", "BEGIN; LOCK TABLE held");
    let blocked = format!("SELECT cardinality(pg_blocking_pids({})) > 0", waiter.pid);
    until("a session waits", || primary.psql("app", &blocked) == "t");
    let xmin = format!("SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = {}", snapshot.pid);
    until("a snapshot is held", || primary.psql("app", &xmin) == "t");
    let counted = "SELECT n_dead_tup > 0 FROM pg_stat_user_tables WHERE relname = 'orders'";
    until("dead rows are counted", || primary.psql("app", counted) == "t");
    let receives = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    until("the standby receives", || standby.psql("postgres", receives) == "1");
    for snippet in look {
        let text = filled(snippet, &snippet.text, &primary, &mut Vec::new());
        // Who may, the line before the block says.
        let role = match (snippet.around.contains("pg_monitor"), snippet.around.contains("same role")) {
            (false, false) if snippet.around.contains("superuser") || !snippet.in_block => SUPERUSER,
            (false, false) => {
                wrong.push(format!("{snippet}\n  the line before does not say who may"));
                continue;
            }
            _ => "watcher",
        };
        match run(server_of(snippet), role, &text) {
            Err(error) => wrong.push(format!("{snippet}\n  as {role}: {error}")),
            Ok(found) => {
                let may_be_empty = FINDS_NOTHING.iter().any(|(part, _)| text.contains(part));
                if (found.is_empty() || found == "0") && !may_be_empty {
                    wrong.push(format!("{snippet}\n  finds nothing, and there is something"));
                }
                if found.contains("insufficient privilege") {
                    wrong.push(format!("{snippet}\n  pg_monitor does not see all of it: {found}"));
                }
            }
        }
    }
    for session in [waiter, holder, snapshot] {
        session.end(&primary);
    }
    primary.psql("app", "ROLLBACK PREPARED 'kept'");

    for snippet in act {
        let mut sessions = Vec::new();
        for statement in statements(&snippet.text) {
            let text = filled(snippet, &statement, &primary, &mut sessions);
            if let Err(error) = run(server_of(snippet), SUPERUSER, &text) {
                wrong.push(format!("{snippet}\n  {error}"));
            }
        }
    }
    wrong
}
