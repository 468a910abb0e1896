//! One connection to a Redis or Valkey server: TCP, TLS or a Unix socket, as an ACL user.
//!
//! The socket is opened and the user authenticated here rather than by the crate: that tells a refused
//! name from a refused password, and TLS is that of the rest of opsd. Commands go in one write and are
//! answered one by one, so that one that is refused takes only itself down. Nothing here writes.
//! Dropping a link closes its connection, and with it whatever was under way.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisConnectionInfo, RedisError, Value};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::super::{Failure, Reason, trust};
use super::bounded::{Bounded, Refused};
use crate::config::{Redis, RedisAddress};
use crate::error::{Context, Error, Result};
use crate::tcp;
use crate::trust::is_version_1;

/// What the connection is called in `CLIENT LIST`.
const CLIENT_NAME: &str = "opsd-monitor";
/// The first answer is a line that is shorter.
const GREETING_MAX: usize = 1_000;

/// What a command was answered, or why it was refused.
pub type Reply = Result<Value, Failure>;

/// A connection.
pub struct Link {
    connection: MultiplexedConnection,
    refused: Refused,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    /// Connects, authenticates and selects the database. The password's file is read each time, so
    /// that a new password needs no restart.
    pub async fn connect(server: &Redis, timeout: Duration) -> Result<Link, Failure> {
        let on = || format!("cannot connect to {}", server.address);
        let mut link = match &server.address {
            RedisAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                Link::over(stream.with_context(on).map_err(unreachable)?).await?
            }
            RedisAddress::Tcp { host, port, tls } => {
                let stream = tcp::connect(host, *port, timeout).await;
                let stream = stream
                    .map_err(|error| super::super::tcp::unreachable(error, &server.address.to_string()))?;
                let _ = stream.set_nodelay(true);
                if *tls {
                    Link::over(secure(server, host, stream).await?).await?
                } else {
                    Link::over(stream).await?
                }
            }
        };
        let mut commands = Vec::new();
        if let Some(password) = &server.password {
            let password = password.read().map_err(|error| Failure::new(Reason::Authentication, error))?;
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = &server.user {
                auth.arg(user);
            }
            auth.arg(password.expose());
            commands.push(auth);
        }
        let mut name = redis::cmd("CLIENT");
        name.arg("SETNAME").arg(CLIENT_NAME);
        commands.push(name);
        let named = commands.len() - 1;
        let mut select = redis::cmd("SELECT");
        select.arg(server.database);
        commands.push(select);
        for (at, reply) in link.ask(commands).await?.into_iter().enumerate() {
            match reply {
                Err(failure) if failure.reason == Reason::Authentication => return Err(failure),
                // Roles that may not name themselves, or need no other database, do without.
                Err(failure) if at != named && !(at > named && server.database == 0) => {
                    return Err(failure);
                }
                _ => {}
            }
        }
        Ok(link)
    }

    async fn over<S>(mut stream: S) -> Result<Link, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        greet(&mut stream).await?;
        let (stream, refused) = Bounded::new(stream);
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        // No answer is late by itself: the whole collection has a deadline.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&settings, stream, config).await.map_err(broken)?;
        Ok(Link { connection, refused, driver: tokio::spawn(driver) })
    }

    /// Sends commands together. Fails as a whole only if the connection does.
    pub async fn ask(&mut self, commands: Vec<Cmd>) -> Result<Vec<Reply>, Failure> {
        let count = commands.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(count);
        for command in commands {
            pipeline.add_command(command);
        }
        let values = match self.connection.req_packed_commands(&pipeline, 0, count).await {
            Ok(values) => values,
            Err(error) => {
                return Err(match self.refused.get() {
                    Some(why) => super::protocol(why),
                    None => broken(error),
                });
            }
        };
        if values.len() != count {
            let error = Error::new(format!("{count} commands had {} answers", values.len()));
            return Err(Failure::new(Reason::Protocol, error));
        }
        let reply = |value| match value {
            Value::ServerError(error) => Err(refused(error.code(), error.details().unwrap_or_default())),
            value => Ok(value),
        };
        values.into_iter().map(reply).map(whole).collect()
    }
}

/// Whether Redis answers at all. A server that has no connection left says so unasked and hangs up,
/// which the crate would take for a broken connection; and so it would whatever else listens there.
async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), Failure> {
    // What was said before a server hung up can still be read.
    let _ = stream.write_all(b"*1\r\n$4\r\nPING\r\n").await;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < GREETING_MAX {
        let byte = stream.read_u8().await.context("the connection broke").map_err(unreachable)?;
        line.push(byte);
    }
    let line = String::from_utf8_lossy(&line);
    let Some(error) = line.strip_prefix('-') else {
        let pong = line.starts_with('+');
        return if pong { Ok(()) } else { Err(super::protocol("the answer is not Redis' protocol")) };
    };
    let (code, details) = error.trim_end().split_once(' ').unwrap_or((error.trim_end(), ""));
    let failure = refused(code, details);
    match failure.reason {
        Reason::TooManyConnections | Reason::Refused => Err(failure),
        // Who we are comes next, and what else there is to say is said of the commands themselves.
        _ => Ok(()),
    }
}

/// An answer that tells something of the server rather than of the command fails everything.
fn whole(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Err(failure) if failure.reason == Reason::TooManyConnections => Err(failure),
        reply => Ok(reply),
    }
}

/// An error that the server answered. Its text may quote what was sent, so only known texts are kept.
fn refused(code: &str, details: &str) -> Failure {
    let (reason, hint) = match code {
        "WRONGPASS" | "NOAUTH" => (Reason::Authentication, Some("compare user and password with ACL LIST")),
        "ERR" if details.contains("AUTH") => {
            (Reason::Authentication, Some("the server has no password for this user: leave it out"))
        }
        "NOPERM" => (Reason::Permission, Some("ACL SETUSER gives the right to run it")),
        "ERR" if details.starts_with("unknown command") || details.starts_with("unknown subcommand") => {
            (Reason::NotOffered, Some("the server has it removed or renamed; what it tells is left out"))
        }
        "LOADING" | "MASTERDOWN" | "BUSY" | "CLUSTERDOWN" => (Reason::NotReady, None),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            (Reason::Refused, Some("name the member that has the key as a [redis.NAME] of its own"))
        }
        "ERR" if details.contains("max number of clients") => (Reason::TooManyConnections, None),
        "DENIED" => (Reason::Refused, Some("protected mode: the server wants a password or a bind address")),
        _ => (Reason::Refused, None),
    };
    if reason == Reason::NotOffered {
        // Further on the text quotes what was sent.
        let name = details.split(['\'', '`', '"', '|']).nth(1).unwrap_or_default();
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let error = Error::new(format!("{} is not offered by the server", name.to_ascii_uppercase()));
        return Failure::new(reason, hint.into_iter().fold(error, Error::with_hint));
    }
    let details: Cow<'_, str> = match code {
        // `MOVED 12182 10.0.0.1:6379`, which holds nothing of ours.
        "MOVED" | "ASK" => {
            let at = details.rsplit(' ').next().unwrap_or_default();
            format!("(the key is at {at}): it is a member of a cluster, and clusters are not followed").into()
        }
        "CROSSSLOT" => "(several keys): it is a member of a cluster, and clusters are not followed".into(),
        "WRONGPASS" | "NOAUTH" | "LOADING" | "MASTERDOWN" | "BUSY" | "WRONGTYPE" | "NOPERM" => details.into(),
        "ERR" if reason != Reason::Refused => details.into(),
        _ => "".into(),
    };
    let text = format!("the server answered {code} {details}");
    let error = Error::new(text.trim_end());
    Failure::new(
        reason,
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        },
    )
}

fn unreachable(error: Error) -> Failure {
    Failure::new(Reason::Unreachable, error)
}

/// What the crate reports of the connection itself.
fn broken(error: RedisError) -> Failure {
    if let Some(code) = error.code() {
        return refused(code, error.detail().unwrap_or_default());
    }
    let reason = if error.is_timeout() {
        Reason::Timeout
    } else if error.is_io_error() || error.is_connection_dropped() {
        Reason::Unreachable
    } else {
        Reason::Protocol
    };
    let text = if reason == Reason::Protocol {
        "the answer is not Redis' protocol".to_owned()
    } else {
        format!("the connection broke: {error}")
    };
    Failure::new(reason, Error::new(text))
}

async fn secure(
    server: &Redis,
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Failure> {
    let tls = |error: Error| Failure::new(Reason::Tls, error);
    let config = trust::client(server.ca_file.as_deref(), server.client.as_ref()).map_err(tls)?;
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| tls(Error::new(format!("{host} is no name that a certificate can bear"))))?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await;
    stream.map_err(|error| {
        let is_known = error.get_ref().and_then(|why| why.downcast_ref()).is_some_and(is_version_1);
        let error = Error::from(error).context(format!("no TLS with {host}"));
        tls(match is_known {
            true => error,
            false => {
                error.with_hint("set ca_file to the certificate of the authority that signed the server's")
            }
        })
    })
}
