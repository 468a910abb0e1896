//! A PostgreSQL server, version 13 to 18: one connection, one query a concern, each failing alone.
//!
//! A concern is a file in `postgres/` and a line in `CONCERNS`. The server itself ends a statement
//! that takes too long or waits for a lock, so that a late collection leaves nothing behind; the
//! connection is kept between collections, and given up with one that was dropped. Only who does not say its version,
//! whether it is in recovery and what its clock says is down; all else is a piece. Everything works for a role with only
//! `pg_monitor`. What a piece needs is tried as a privilege, whatever role it came with, and not asked for without.
//! Deliberately absent: query texts and ids, client ports, process ids, index names; pools.

mod activity;
mod archiver;
mod checkpointer;
mod connections;
mod databases;
mod others;
mod replication;
mod sequences;
mod server;
mod slots;
mod standby;
mod subscriptions;
mod summary;
mod vacuum;
pub mod verdict;
mod wraparound;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::try_join;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, Type};

use super::{Collected, Failure, Monitor, Reason};
use crate::config::{self, Connection, Databases, Postgres};
use crate::error::{Context, Error, Result};
use crate::metrics::{self, Sample};
use crate::postgres::connect::{self, Session};
use crate::postgres::reach::reach;
use crate::postgres::sql::Sql;

use others::Others;
use server::Facts;
pub use summary::{THRESHOLDS, headline, is_meant};
pub use verdict::Board;

/// In the order in which they are collected: where time or series run out, the first ones are there.
const CONCERNS: &[&Concern] = &[
    &connections::CONCERN,
    &replication::CONCERN,
    &standby::CONCERN,
    &slots::CONCERN,
    &subscriptions::CONCERN,
    &activity::CONCERN,
    &activity::PREPARED,
    &archiver::CONCERN,
    &archiver::BACKLOG,
    &wraparound::CONCERN,
    &checkpointer::CONCERN,
    &databases::CONCERN,
    &databases::SIZE,
    &vacuum::CONCERN,
    &sequences::CONCERN,
];

/// What these sessions are called in `pg_stat_activity`.
const APPLICATION: &str = "opsd monitor";

/// Where collections are rare, not even one is left out after this time.
const PAUSE_MAX: Duration = Duration::from_secs(120);

/// A statement may take this part of a collection's time, and wait for a lock for a tenth of it.
const STATEMENT_PART: u32 = 3;
const LOCK_PART: u32 = 10;
/// No statement is begun later than this part of the time: it would end too late.
const LAST_START: f64 = 0.6;
/// Connecting to one database of many may take this part.
const CONNECT_PART: u32 = 5;
/// After so many attempts in a row that did not end, no more collections are left out: seven.
const LATE_MAX: u32 = 4;
/// A server that has a statement for longer is to stop, however patient the monitor is.
const STATEMENT_MAX: Duration = Duration::from_secs(10);
/// Whoever wants an exclusive lock queues behind one that waits.
const LOCK_MAX: Duration = Duration::from_secs(1);

/// What the page after this one begins after; none after the last.
type Next = fn(&[Row]) -> Option<i64>;

/// One query and what is made of its rows.
struct Concern {
    /// A label's value.
    name: &'static str,
    /// Without what it would show too little, or be refused.
    need: Need,
    /// Where it is asked.
    scope: Scope,
    /// The query for this server; none where it has nothing to answer.
    sql: fn(&Facts) -> Option<Sql>,
    /// Where it takes several statements, whose `$1` is what a page begins after.
    pages: Option<Next>,
    /// What the rows say.
    read: fn(&Facts, &[Row], &mut Found) -> Result<()>,
}

/// A privilege that a concern lives by. The others are tried by asking.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// None.
    Nothing,
    /// Other sessions' figures.
    Statistics,
    /// Who the cluster is.
    ControlSystem,
    /// What waits to be archived.
    ArchiveStatus,
}

impl Need {
    /// What of it this role has not.
    fn lacking(self, may: server::Privileges) -> Option<&'static str> {
        let (has, what) = match self {
            Need::Nothing => return None,
            Need::Statistics => (may.statistics, "the privileges of pg_read_all_stats"),
            Need::ControlSystem => (may.control_system, "EXECUTE on pg_control_system()"),
            Need::ArchiveStatus => (may.archive_status, "EXECUTE on pg_ls_archive_statusdir()"),
        };
        (!has).then_some(what)
    }
}

/// Where a concern is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Once a server.
    Server,
    /// In each database of the configuration.
    Database,
}

/// What a collection has found so far.
#[derive(Default)]
struct Found {
    samples: Vec<Sample>,
    kept: server::Kept,
    position: Option<f64>,
    knows_positions: bool,
    senders: Vec<(String, String, verdict::Sender)>,
    receiver: Option<(String, verdict::Receiver)>,
}

/// A monitor of one server.
pub struct Target {
    name: String,
    server: Postgres,
    /// The server's settings, with the way to it that was found last.
    connection: Connection,
    databases: Databases,
    excluded: Vec<String>,
    timeout: Duration,
    /// Absent while a collection has it, and after one that failed or was dropped.
    session: Option<Session>,
    kept: server::Kept,
    others: Others,
    /// Attempts to connect in a row that did not end, collections that are to pass before the next, and when
    /// the last one began.
    late: u32,
    pause: u32,
    tried: Option<Instant>,
    pairs: verdict::Pairs,
}

/// A monitor that is not connected yet.
pub fn open(
    monitor: &config::Monitor,
    server: &Postgres,
    databases: &Databases,
    excluded: &[String],
    board: &Board,
) -> Target {
    Target {
        name: monitor.name.clone(),
        server: server.clone(),
        connection: server.connection.clone(),
        databases: databases.clone(),
        excluded: excluded.to_vec(),
        timeout: monitor.timeout,
        session: None,
        kept: server::Kept::default(),
        others: Others::default(),
        late: 0,
        pause: 0,
        tried: None,
        pairs: verdict::Pairs::new(board.clone(), &monitor.name, monitor.interval),
    }
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let started = Instant::now();
        let session = match self.session.take().filter(|session| !session.client.is_closed()) {
            Some(session) => session,
            None => {
                // It may be long ago that they were asked.
                self.others.forget();
                self.kept = server::Kept::default();
                self.reconnect().await?
            }
        };
        let mut pass = Pass::new(started, self.timeout);
        // Asked together, they take one way to the server and back.
        let database = self.connection.dbname.clone();
        let (mut facts, may) =
            try_join(server::facts(&session, database), server::privileges(&session)).await.map_err(whole)?;
        facts.may = may;
        let pieces = [
            (&server::IDENTITY, self.kept.identifier.is_some()),
            (&server::START, self.kept.started.is_some()),
            (&server::WAL_POSITION, false),
        ];
        for (piece, is_kept) in pieces {
            if is_kept {
                pass.note(piece.name, None);
            } else {
                pass.ask(piece, &session, &facts).await?;
            }
        }
        self.kept.identifier = self.kept.identifier.take().or(pass.found.kept.identifier.take());
        self.kept.started = self.kept.started.or(pass.found.kept.started);
        (facts.system_identifier, facts.started) = (self.kept.identifier.clone(), self.kept.started);
        (facts.position, facts.knows_positions) = (pass.found.position, pass.found.knows_positions);
        pass.found.samples.splice(0..0, server::samples(&facts));
        let own = self.has_own_database();
        for concern in CONCERNS.iter().filter(|c| c.scope == Scope::Server || own) {
            pass.ask(concern, &session, &facts).await?;
        }
        let (senders, receiver) = (std::mem::take(&mut pass.found.senders), pass.found.receiver.take());
        let verdicts = self.pairs.judge(&facts, senders, receiver);
        // The first ones stay where there is room for so many only.
        pass.found.samples.splice(0..0, verdicts);
        self.list_others(&mut pass, &session).await?;
        // It stays, whatever becomes of the visits.
        self.session = Some(session);
        self.visit(&mut pass, &facts).await;
        let mut samples = pass.found.samples;
        server::set_clock(&mut samples, &facts);
        Ok(Collected { samples, concerns: pass.concerns })
    }

    /// Who looks once has not heard of the other end where that one answered later.
    fn settle(&self, samples: &[Sample]) -> Option<Vec<Sample>> {
        let others = samples.iter().filter(|sample| sample.metric != &metrics::POSTGRES_REPLICATION_STATE);
        let verdicts = Some(self.pairs.verdicts()).filter(|verdicts| !verdicts.is_empty())?;
        Some(verdicts.into_iter().chain(others.cloned()).collect())
    }
}

impl Target {
    /// Connects. A server process that hangs before it asks for the password notices nobody's leaving: an
    /// attempt that did not end in time is followed by none in the next collections, the more of them the
    /// more such attempts there were, so that they do not pile up.
    async fn reconnect(&mut self) -> Result<Session, Failure> {
        let is_recent = self.tried.is_some_and(|tried| tried.elapsed() < PAUSE_MAX);
        if self.pause > 0 && is_recent {
            self.pause -= 1;
            let error =
                Error::new("the last attempts to connect did not end in time; the next one follows soon");
            return Err(Failure::new(Reason::Timeout, error));
        }
        self.tried = Some(Instant::now());
        self.late = (self.late + 1).min(LATE_MAX);
        self.pause = (1 << (self.late - 1)) - 1;
        // A container that was made anew has another address.
        let found = reach(&self.server).await;
        let connected = match found.map(|reached| self.connection = reached.connection) {
            Ok(()) => self.connect(None).await,
            Err(error) => Err(Failure::new(Reason::Unreachable, error)),
        };
        if !connected.as_ref().is_err_and(|failure| failure.reason == Reason::Timeout) {
            (self.late, self.pause) = (0, 0);
        }
        connected
    }

    async fn connect(&self, database: Option<&str>) -> Result<Session, Failure> {
        let bound = |part: u32, max: Duration| (self.timeout / part).min(max).as_millis().max(1).to_string();
        let settings = [
            ("statement_timeout", &*bound(STATEMENT_PART, STATEMENT_MAX)),
            ("lock_timeout", &*bound(LOCK_PART, LOCK_MAX)),
            // A collector's own queries have no business in parallel workers.
            ("max_parallel_workers_per_gather", "0"),
            ("jit", "off"),
        ];
        let mut connection = self.connection.with_current_password();
        // One host that hangs leaves time for the others, and a database for the rest of the collection.
        let parts = if database.is_some() { CONNECT_PART } else { 1 + connection.hosts.len() as u32 };
        connection.connect_timeout = connection.connect_timeout.min(self.timeout / parts);
        let connected = connect::connect_with(&connection, database, APPLICATION, &settings).await;
        connected.map_err(|error| Failure::new(reason(&error).unwrap_or(Reason::Unreachable), error))
    }

    /// Whether figures local to a database are wanted from the URL's.
    fn has_own_database(&self) -> bool {
        match &self.databases {
            Databases::Url => true,
            Databases::All => !self.excluded.contains(&self.connection.dbname),
            Databases::Named(names) => names.contains(&self.connection.dbname),
        }
    }
}

/// One collection under way.
struct Pass {
    started: Instant,
    timeout: Duration,
    found: Found,
    concerns: Vec<super::Concern>,
    /// Whether there was no time for something.
    is_cut: bool,
}

impl Pass {
    fn new(started: Instant, timeout: Duration) -> Self {
        Self { started, timeout, found: Found::default(), concerns: Vec::new(), is_cut: false }
    }

    fn is_late(&self) -> bool {
        self.started.elapsed() > self.timeout.mul_f64(LAST_START)
    }

    fn run_out(&mut self, name: &'static str) {
        self.is_cut = true;
        self.note(name, Some(no_time()));
    }

    /// Asks one concern. Only a connection that is gone fails the collection.
    async fn ask(&mut self, concern: &Concern, session: &Session, facts: &Facts) -> Result<(), Failure> {
        let Some(sql) = (concern.sql)(facts) else { return Ok(()) };
        if let Some(lacking) = concern.need.lacking(facts.may) {
            let error = Error::new(format!("needs {lacking}"))
                .with_hint("GRANT pg_monitor TO the role that opsd connects as");
            self.note(concern.name, Some(Failure::new(Reason::Permission, error)));
            return Ok(());
        }
        if self.is_late() {
            self.run_out(concern.name);
            return Ok(());
        }
        let mut answer = self.rows(concern, session, &sql).await;
        // Names that are stored in another encoding than the database's: they come as they are from now on.
        if answer.as_ref().is_err_and(is_about_encoding) {
            let whole_session = session.client.batch_execute("SET client_encoding = 'SQL_ASCII'").await;
            answer = match whole_session {
                Ok(()) => self.rows(concern, session, &sql).await,
                Err(error) => Err(error),
            };
        }
        let failure = match answer {
            Ok(None) => {
                self.run_out(concern.name);
                return Ok(());
            }
            Ok(Some(rows)) => {
                let kept = self.found.samples.len();
                let read = (concern.read)(facts, &rows, &mut self.found);
                read.err().map(|error| {
                    // Half of a piece is no piece.
                    self.found.samples.truncate(kept);
                    Failure::new(reason(&error).unwrap_or(Reason::Protocol), error)
                })
            }
            Err(error) => match alone(&error) {
                Some(reason) => Some(Failure::new(reason, connect::error(error))),
                None => return Err(whole(connect::error(error))),
            },
        };
        self.note(concern.name, failure);
        Ok(())
    }

    /// A concern's rows; none where there is no time for all of them.
    async fn rows(
        &self,
        concern: &Concern,
        session: &Session,
        sql: &Sql,
    ) -> Result<Option<Vec<Row>>, tokio_postgres::Error> {
        match concern.pages {
            None => sql.query_typed(&session.client, &[]).await.map(Some),
            Some(next) => self.pages(session, sql, next).await,
        }
    }

    /// All pages of a query that is asked page by page; none where there is no time for all of them.
    async fn pages(
        &self,
        session: &Session,
        sql: &Sql,
        next: Next,
    ) -> Result<Option<Vec<Row>>, tokio_postgres::Error> {
        let (mut rows, mut after) = (Vec::new(), Some(0));
        while let Some(from) = after {
            if self.is_late() {
                return Ok(None);
            }
            let page = sql.query_typed(&session.client, &[(&from, Type::INT8)]).await?;
            after = next(&page);
            rows.extend(page);
        }
        Ok(Some(rows))
    }

    /// A concern is asked in several databases, and is up if it could be read in all. Of several failures the
    /// worst is kept: what is not permitted is somebody's decision, and hides nothing else.
    fn note(&mut self, name: &'static str, failure: Option<Failure>) {
        let is_decided = |failure: &Option<Failure>| {
            failure.as_ref().is_none_or(|failure| failure.reason == Reason::Permission)
        };
        match self.concerns.iter_mut().find(|concern| concern.name == name) {
            Some(known) if known.failure.is_none() => known.failure = failure,
            Some(known) if is_decided(&known.failure) && !is_decided(&failure) => known.failure = failure,
            Some(_) => {}
            None => self.concerns.push(super::Concern { name, failure }),
        }
    }
}

fn no_time() -> Failure {
    Failure::new(Reason::Timeout, Error::new("no time was left for it"))
}

/// Why a statement failed, if it alone did: the server answered, and the session goes on.
fn alone(error: &tokio_postgres::Error) -> Option<Reason> {
    let code = error.code()?.code();
    (!code.starts_with("57P") && !error.is_closed()).then(|| by_state(code))
}

/// Whether the server could not put a text into the client's encoding.
fn is_about_encoding(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::CHARACTER_NOT_IN_REPERTOIRE, SqlState::UNTRANSLATABLE_CHARACTER];
    error.code().is_some_and(|code| codes.contains(code))
}

/// A failure that leaves nothing of the collection.
fn whole(error: Error) -> Failure {
    Failure::new(reason(&error).unwrap_or(Reason::Unreachable), error)
}

fn reason(error: &Error) -> Option<Reason> {
    if connect::is_late(error) {
        return Some(Reason::Timeout);
    }
    if connect::is_without_password(error) {
        return Some(Reason::Authentication);
    }
    // It answered.
    if connect::is_about_pooler(error) {
        return Some(Reason::Refused);
    }
    if connect::is_about_tls(error) {
        return Some(Reason::Tls);
    }
    connect::sqlstate(error).map(by_state)
}

fn by_state(code: &str) -> Reason {
    match code {
        "28P01" | "28000" => Reason::Authentication,
        "42501" => Reason::Permission,
        "53300" => Reason::TooManyConnections,
        "57014" => Reason::Timeout,
        "55P03" => Reason::Locked,
        code if code.starts_with("57P") => Reason::NotReady,
        _ => Reason::Refused,
    }
}

/// A column's value; NULL is none.
fn get<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<Option<T>> {
    row.try_get::<_, Option<T>>(column).map_err(connect::error).with_context(|| format!("column {column}"))
}

/// A number that must be there; queries cast what they count to float8.
fn number(row: &Row, column: &str) -> Result<f64> {
    get(row, column)?.ok_or_else(|| Error::new(format!("column {column} is null")))
}

/// A text that must be there. Bytes that are no UTF-8 are shown as `\xE9`: a database's name is stored in the encoding
/// of the database that it was made from.
fn text(row: &Row, column: &str) -> Result<String> {
    let Text(text) = get(row, column)?.ok_or_else(|| Error::new(format!("column {column} is null")))?;
    Ok(text)
}

/// A text of any bytes.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let mut text = String::with_capacity(raw.len());
        for chunk in raw.utf8_chunks() {
            text.push_str(chunk.valid());
            chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02X}")));
        }
        Ok(Self(text))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::NAME | Type::TEXT)
    }
}

impl Found {
    fn plain(&mut self, metric: &'static crate::metrics::Metric, value: Option<f64>) {
        self.samples.extend(value.map(|value| Sample::plain(metric, value)));
    }

    fn add<const N: usize>(
        &mut self,
        metric: &'static crate::metrics::Metric,
        labels: [&str; N],
        value: Option<f64>,
    ) {
        self.samples.extend(value.map(|value| Sample::new(metric, labels, value)));
    }
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
