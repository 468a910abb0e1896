//! Connecting with tokio-postgres under resolved libpq settings.
//!
//! Every connection pins the settings that end a session, or change what a server answers or runs
//! ([`settings`](super::settings)). They travel in the startup packet, and one query checks that they
//! arrived: a pooler that drops them must not go unnoticed. Deliberately absent: pools, retries, `target_session_attrs`.

mod hints;

use std::error::Error as _;
use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::{self, SslMode as Tls};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use self::hints::{client_hint, password_hint, server_hint, socket_hint};
use super::bounded::Bounded;
use super::require_auth::{Inspected, InspectedTls, Rule};
use super::{dial, messages, settings as pinned, tls};
use crate::config::require_auth::ChannelBinding;
use crate::config::{Connection, Route, SslMode};
use crate::error::{Error, Result};

/// Who answered, and with which of the settings that are pinned.
const WHO_ANSWERS: &str = "SELECT pg_catalog.current_setting('server_version_num'),
    pg_catalog.current_setting('server_version'), pg_catalog.current_setting('search_path'),
    pg_catalog.current_setting('extra_float_digits'), pg_catalog.pg_backend_pid()";

/// How long a clean goodbye may take before the connection is cut.
const CLOSE_BOUND: Duration = Duration::from_secs(5);

/// An open connection and the task that drives it; dropping it cuts the connection.
pub struct Session {
    /// For queries.
    pub client: Client,
    /// `server_version_num`, 170011.
    pub server_version_num: u32,
    /// The server's process at the other end, as pg_stat_activity names it.
    pub backend: i32,
    /// `server_version`, as the server words it.
    pub server_version: String,
    /// `host:port` (or the socket) it is connected to.
    pub host: String,
    driver: Driver,
    lost: watch::Receiver<Option<Error>>,
}

impl Session {
    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    /// Returns when the connection is gone, and says why; whoever holds a snapshot or a lock on this
    /// session waits for it beside the work.
    pub async fn lost(&self) -> Error {
        let mut lost = self.lost.clone();
        let reason = match lost.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        reason
            .unwrap_or_else(|| Error::new("connection closed"))
            .context(format!("lost the connection to {}", self.host))
    }

    /// Lets text come and go as it is stored, in a database whose encoding is SQL_ASCII: the server
    /// refuses to send as UTF-8 what is none. Whoever asks for this reads names as
    /// [`Name`](super::ident::Name).
    pub async fn without_conversion(self) -> Result<Self> {
        let row =
            self.client.query_one("SELECT current_setting('server_encoding')", &[]).await.map_err(error)?;
        if row.get::<_, String>(0) == "SQL_ASCII" {
            self.client.batch_execute("SET client_encoding = 'SQL_ASCII'").await.map_err(error)?;
        }
        Ok(self)
    }

    /// Says goodbye, and returns when the server has closed.
    pub async fn close(self) {
        let Session { client, mut driver, .. } = self;
        drop(client);
        // A server that does not answer is cut off when the driver is dropped.
        let _ = tokio::time::timeout(CLOSE_BOUND, &mut driver.0).await;
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "session with PostgreSQL {} at {}", self.server_version, self.host)
    }
}

struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a server that does not answer is said to have done.
const NO_ANSWER: &str = "no answer within";

/// Connects under the pinned settings.
pub async fn connect(
    connection: &Connection,
    dbname: Option<&str>,
    application_name: &str,
) -> Result<Session> {
    connect_with(connection, dbname, application_name, &[]).await
}

/// Connects with more settings, or other values for the pinned ones: timeouts belong here.
pub async fn connect_with(
    connection: &Connection,
    dbname: Option<&str>,
    application_name: &str,
    settings: &[(&str, &str)],
) -> Result<Session> {
    let dbname = dbname.unwrap_or(&connection.dbname);
    let mut failures = Vec::new();
    for (host, port) in &connection.hosts {
        let target = Target { connection, dbname, host, port: *port };
        match target.connect(application_name, settings).await {
            Ok(session) => return Ok(session),
            // As libpq: a server that answered decides, unless it is only not ready.
            Err(Failure { answered: true, error }) => return Err(error),
            Err(Failure { answered: false, error }) => failures.push(error),
        }
    }
    let mut failures = failures.into_iter();
    match (failures.next(), failures.len()) {
        (None, _) => Err(Error::usage("no host to connect to")),
        (Some(only), 0) => Err(only),
        (Some(first), _) => {
            let hint = first.hint().unwrap_or("start one of the servers").to_owned();
            let all: Vec<String> = std::iter::once(first).chain(failures).map(|e| e.to_string()).collect();
            Err(Error::new(all.join("; ")).context("no host can be reached").with_hint(hint))
        }
    }
}

struct Failure {
    /// Whether a server answered, so that trying the next host would be wrong.
    answered: bool,
    error: Error,
}

/// One host of a connection, and what is wanted there.
struct Target<'a> {
    connection: &'a Connection,
    dbname: &'a str,
    host: &'a str,
    port: u16,
}

impl Target<'_> {
    fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    fn label(&self) -> String {
        match &self.connection.route {
            Route::Direct | Route::Unfound => {}
            Route::At(address) => return format!("{} ({address})", self.host),
            Route::Through { words } => {
                let client = words.first().map_or("", String::as_str);
                return format!("{}:{} (through {client} exec)", self.host, self.port);
            }
        }
        if self.is_socket() {
            format!("{}/.s.PGSQL.{}", self.host.trim_end_matches('/'), self.port)
        } else if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The whole way to a session, first answers included, within `connect_timeout`: a server that sends
    /// a byte now and then is as late as one that sends none.
    async fn connect(&self, application_name: &str, settings: &[(&str, &str)]) -> Result<Session, Failure> {
        let bound = self.connection.connect_timeout;
        let opening = self.open(application_name, settings);
        if bound.is_zero() {
            return opening.await;
        }
        match tokio::time::timeout(bound, opening).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure {
                answered: false,
                error: Error::new(format!("{NO_ANSWER} {} s", bound.as_secs_f64()))
                    .context(self.what())
                    .with_hint("check the host, the port and the firewall between"),
            }),
        }
    }

    async fn open(&self, application_name: &str, settings: &[(&str, &str)]) -> Result<Session, Failure> {
        let config = self.config(application_name, settings);
        // libpq ignores sslmode on a socket, and falls back from TLS where it is only preferred.
        let mode = if self.is_socket() { SslMode::Disable } else { self.connection.sslmode };
        let attempt = match mode {
            SslMode::Disable => self.attempt(&config, Tls::Disable).await,
            SslMode::Allow | SslMode::Prefer => match self.attempt(&config, Tls::Prefer).await {
                Err(e) if worth_plaintext(&e) => match self.attempt(&config, Tls::Disable).await {
                    Err(Attempt::Server(_) | Attempt::Dial(_)) => Err(e),
                    plain => plain,
                },
                outcome => outcome,
            },
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
                self.attempt(&config, Tls::Require).await
            }
        };
        let opened = match attempt {
            Ok(opened) => opened,
            Err(e) => return Err(self.failure(e)),
        };
        self.check(opened, settings).await.map_err(|error| Failure { answered: true, error })
    }

    fn config(&self, application_name: &str, settings: &[(&str, &str)]) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.connection.user)
            .dbname(self.dbname)
            .application_name(application_name)
            .channel_binding(match self.connection.channel_binding {
                ChannelBinding::Disable => config::ChannelBinding::Disable,
                ChannelBinding::Prefer => config::ChannelBinding::Prefer,
                ChannelBinding::Require => config::ChannelBinding::Require,
            })
            .options(pinned::of_session(self.connection.options.as_deref(), settings));
        if let Some(password) = &self.connection.password {
            config.password(password.expose());
        }
        config
    }

    async fn attempt(&self, config: &tokio_postgres::Config, mode: Tls) -> Result<Opened, Attempt> {
        let mut config = config.clone();
        config.ssl_mode(mode);
        let stream =
            dial::dial(self.host, self.port, &self.connection.route, self.connection.connect_timeout)
                .await
                .map_err(Attempt::Dial)?;
        let rule = Rule::new(self.connection, self.host);
        if mode == Tls::Disable {
            let stream = Inspected::new(Bounded::plain(stream), rule, false);
            let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(Attempt::Server)?;
            return Ok(drive(client, connection));
        }
        let stream = Inspected::new(Bounded::negotiating(stream), rule.clone(), true);
        let tls = tls::connector(self.connection)
            .and_then(|tls| InspectedTls::new(tls, self.host, rule))
            .map_err(Attempt::Setup)?;
        let (client, connection) = config.connect_raw(stream, tls).await.map_err(Attempt::Server)?;
        Ok(drive(client, connection))
    }

    /// Asks who answered, and whether the pinned settings are in force.
    async fn check(&self, opened: Opened, settings: &[(&str, &str)]) -> Result<Session> {
        let on = || format!("cannot use the connection to {}", self.label());
        // First of all: some timeouts count already.
        if let Some(rest) = opened.major.and_then(|major| pinned::once_known(major, settings))
            && let Err(e) = rest.run(&opened.client).await
        {
            return Err(opened.why(e).await.context(on()));
        }
        let rows = match opened.client.simple_query(WHO_ANSWERS).await {
            Ok(rows) => rows,
            Err(e) => return Err(opened.why(e).await.context(on())),
        };
        let row = rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let column = |i: usize| row.and_then(|row| row.try_get(i).ok().flatten()).unwrap_or_default();
        let Ok(server_version_num) = column(0).parse() else {
            return Err(Error::new("the server does not say which version it is").context(on()));
        };
        tracing::debug!(
            "connected to {} as {:?}: PostgreSQL {server_version_num}",
            self.label(),
            self.connection.user
        );
        let wanted = |name: &str| {
            let own = settings.iter().rfind(|(n, _)| *n == name).map(|(_, value)| *value);
            own.or(pinned::value(name)).unwrap_or_default()
        };
        let found = [("search_path", column(2)), ("extra_float_digits", column(3))];
        if let Some((name, value)) = found.iter().find(|(name, value)| wanted(name) != *value) {
            return Err(Error::new(format!("{ASKED} {name}={:?}, the server uses {value:?}", wanted(name)))
                .context(on())
                .with_hint(
                    "a connection pooler drops session settings, as with transaction pooling; \
                     connect to the server itself",
                ));
        }
        let Ok(backend) = column(4).parse() else {
            return Err(Error::new("the server does not say which process serves it").context(on()));
        };
        Ok(Session {
            server_version_num,
            backend,
            server_version: column(1).to_owned(),
            host: self.label(),
            client: opened.client,
            driver: opened.driver,
            lost: opened.lost,
        })
    }

    fn what(&self) -> String {
        format!(
            "cannot connect to {} as {:?} (database {:?})",
            self.label(),
            self.connection.user,
            self.dbname
        )
    }

    fn failure(&self, attempt: Attempt) -> Failure {
        let what = self.what();
        match attempt {
            Attempt::Setup(error) => Failure { answered: true, error: error.context(what) },
            Attempt::Dial(e) => {
                let error = Error::new(&e).context(CANNOT_REACH);
                let error = match socket_hint(&e, self) {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                };
                Failure { answered: false, error: error.context(what) }
            }
            Attempt::Server(e) => Failure {
                answered: is_password_missing(&e)
                    || refused(&e).is_some()
                    || e.code()
                        .is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW && code.code() != "57P05"),
                error: explain(e, self).context(what),
            },
        }
    }
}

enum Attempt {
    /// Certificates or keys could not be read.
    Setup(Error),
    /// Nobody could be reached.
    Dial(io::Error),
    /// What came back.
    Server(tokio_postgres::Error),
}

struct Opened {
    client: Client,
    /// What the server said that it is, on its own account.
    major: Option<u32>,
    driver: Driver,
    lost: watch::Receiver<Option<Error>>,
}

impl Opened {
    /// Why a query failed: one whose connection is gone does not know it itself.
    async fn why(&self, e: tokio_postgres::Error) -> Error {
        let mut lost = self.lost.clone();
        let reason = if e.is_closed() { lost.wait_for(Option::is_some).await.ok() } else { None };
        reason.and_then(|reason| reason.clone()).unwrap_or_else(|| error(e))
    }
}

fn drive<S, T>(client: Client, connection: tokio_postgres::Connection<S, T>) -> Opened
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let version = connection.parameter("server_version").unwrap_or_default();
    let major = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    let (sender, lost) = watch::channel(None);
    let driver = tokio::spawn(async move {
        let reason = match connection.await {
            Ok(()) => Error::new("connection closed"),
            Err(e) => {
                let cause = e.source().and_then(|cause| cause.downcast_ref::<io::Error>());
                let is_refused = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData);
                let reason = error(e);
                // A query of this session is only told that the connection is closed, so the reason is said here,
                // to whoever sees that.
                if is_refused {
                    tracing::error!("a connection to PostgreSQL is given up: {reason}");
                }
                reason
            }
        };
        sender.send_replace(Some(reason));
    });
    Opened { client, major, driver: Driver(driver), lost }
}

/// Whether libpq would try again without TLS: the handshake failed, or pg_hba.conf has no line for
/// encrypted connections.
fn worth_plaintext(attempt: &Attempt) -> bool {
    match attempt {
        Attempt::Server(e) => {
            rustls_cause(e).is_some() || e.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
        }
        Attempt::Setup(_) | Attempt::Dial(_) => false,
    }
}

fn rustls_cause(e: &tokio_postgres::Error) -> Option<&rustls::Error> {
    e.source()?.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>()
}

/// Whether a server answered, and asked for what nobody configured.
fn is_password_missing(e: &tokio_postgres::Error) -> bool {
    e.source().is_some_and(|cause| cause.to_string() == "password missing")
}

/// What is wrong with the way in which a server asks who one is.
fn refused(e: &tokio_postgres::Error) -> Option<&Error> {
    e.source()?.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref::<Error>()
}

/// Why a connection was not made, in the operator's words.
fn explain(e: tokio_postgres::Error, target: &Target<'_>) -> Error {
    if is_password_missing(&e) {
        return Error::usage(NO_PASSWORD).with_hint(password_hint(target));
    }
    if let Some(refused) = refused(&e) {
        return refused.clone();
    }
    let hint = match e.as_db_error() {
        Some(db) if is_raised(db) => None,
        Some(db) => server_hint(db, target),
        None => client_hint(&e, target),
    };
    match hint {
        Some(hint) => Error::new(message(&e)).with_hint(hint),
        None => error(e),
    }
}

/// A client's or server's error in this crate's form: message, SQLSTATE, the server's hint, and the
/// detail where it cannot hold a row; nothing of what a function of the database raised. Statements and their parameters are never part of it.
pub fn error(e: tokio_postgres::Error) -> Error {
    let error = Error::new(message(&e));
    match e.as_db_error().filter(|db| !is_raised(db)).and_then(DbError::hint) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// Whether a function of a database chose the words.
fn is_raised(db: &DbError) -> bool {
    db.where_().is_some_and(messages::is_raised)
}

fn message(e: &tokio_postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        if is_raised(db) {
            return format!("{} (SQLSTATE {})", messages::RAISED, db.code().code());
        }
        let mut message = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        if let Some(detail) = db.detail().filter(|_| !detail_quotes_rows(db.code())) {
            message.push_str("; detail: ");
            message.push_str(detail);
        }
        return message;
    }
    let mut message = e.to_string();
    let mut cause = e.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // io::Error repeats what it wraps.
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = inner.source();
    }
    message
}

/// The SQLSTATE that an error of this module's names.
pub fn sqlstate(error: &Error) -> Option<&str> {
    let text = error.message();
    let code = text.rsplit_once("(SQLSTATE ")?.1.get(..5)?;
    code.bytes().all(|b| b.is_ascii_alphanumeric()).then_some(code)
}

/// What an error begins with where no server answered at all.
const CANNOT_REACH: &str = "error connecting to server";

/// Whether an error says what a server that is starting says: nothing yet (nobody listens, there is no socket), or that
/// it is not ready (`cannot_connect_now`).
pub fn is_starting(error: &Error) -> bool {
    let said = error.to_string();
    let is_nobody = ["(os error 111)", "(os error 2)"].iter().any(|code| said.ends_with(code));
    sqlstate(error) == Some("57P03") || (is_nobody && said.contains(CANNOT_REACH))
}

/// Whether an error says that a server did not answer in time.
pub fn is_late(error: &Error) -> bool {
    error.message().starts_with(NO_ANSWER)
}

/// What a session without its settings is said to be.
const ASKED: &str = "asked for";

/// Whether an error says that a pooler answered, and gave no session of its own.
pub fn is_about_pooler(error: &Error) -> bool {
    error.message().starts_with(ASKED)
}

/// Whether an error says that a server asked for a password that nobody gave.
pub fn is_without_password(error: &Error) -> bool {
    error.message().contains(NO_PASSWORD)
}

/// Whether an error says that there is a server, and no agreement on TLS with it.
pub fn is_about_tls(error: &Error) -> bool {
    error.message().contains("error performing TLS handshake")
}

const NO_PASSWORD: &str = "the server asks for a password, and none is configured";

/// Data exceptions and violated constraints quote the row in their detail.
fn detail_quotes_rows(code: &SqlState) -> bool {
    code.code().starts_with("22") || code.code().starts_with("23")
}

impl From<tokio_postgres::Error> for Error {
    fn from(e: tokio_postgres::Error) -> Self {
        error(e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_details_are_left_out() {
        assert!(detail_quotes_rows(&SqlState::UNIQUE_VIOLATION));
        assert!(detail_quotes_rows(&SqlState::INVALID_TEXT_REPRESENTATION));
        assert!(!detail_quotes_rows(&SqlState::UNDEFINED_TABLE));
    }
}
