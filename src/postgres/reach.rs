//! The way to a server in a container, found anew by each command: its address changes whenever it is made anew.
//!
//! In this order: an address of the container's own, a port that it publishes on this host, and through the container,
//! by its client's `exec`. The first that leads there is taken, and said. What programs are used depends on it: those
//! of this host where they fit and the network leads to the server, else the container's own.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::relay;
use super::tools::{self, Tools};
use crate::config::{Client, Connection, Postgres, Route};
use crate::container::{self, Address, Container};
use crate::error::{Error, Result};

/// How long an address of this host's networks may take to answer. On another one nobody does.
const PROBE_BOUND: Duration = Duration::from_secs(2);

/// How long a shell in the container may take until it is connected.
const RELAY_BOUND: Duration = Duration::from_secs(20);

/// A server, and the way to it.
#[derive(Debug, Clone)]
pub struct Reached {
    /// Its settings, with the way.
    pub connection: Connection,
    /// The container, where it runs in one.
    pub container: Option<Container>,
    /// The way, for people; absent where the host's name says all.
    pub way: Option<String>,
    tool_prefix: Vec<String>,
}

/// Finds a server of the configuration.
pub async fn reach(server: &Postgres) -> Result<Reached> {
    let reached = |connection, container, way| Reached {
        connection,
        container,
        way,
        tool_prefix: server.tool_prefix.clone(),
    };
    let connection = server.connection.clone();
    let Some(wanted) = &server.container else { return Ok(reached(connection, None, None)) };
    let container = container::find(wanted).await?;
    let port = connection.hosts.first().map_or(DEFAULT_PORT, |(_, port)| *port);
    let (route, how) = way(&container, port).await?;
    let way = format!("container {}, {how}", container.name);
    tracing::debug!("postgres {}: {way}", server.name);
    Ok(reached(Connection { route, ..connection }, Some(container), Some(way)))
}

/// What libpq takes where nobody names one.
const DEFAULT_PORT: u16 = 5432;

/// An address that may lead to the server.
struct Candidate {
    at: SocketAddr,
    how: String,
    /// Whether it is the container's own, so that a refusal comes from there. What listens on a published port may
    /// be Docker's proxy, which takes every connection.
    is_own: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Open,
    /// Somebody is there, and nobody listens: the server starts, or listens elsewhere.
    Refused,
    Silent,
}

async fn way(container: &Container, port: u16) -> Result<(Route, String)> {
    let client = container.client;
    let candidates = if container::is_here(client).await { candidates(container, port) } else { Vec::new() };
    let answers = join_all(candidates.iter().map(|candidate| probe(candidate.at))).await;
    let first = |wanted: Answer, is_own: bool| {
        let mut both = candidates.iter().zip(&answers);
        both.find(|(one, answer)| **answer == wanted && one.is_own == is_own).map(|(one, _)| one)
    };
    let at = |candidate: &Candidate| (Route::At(candidate.at), candidate.how.clone());
    let refused = first(Answer::Refused, true);
    let published = first(Answer::Open, false);
    if let Some(open) = first(Answer::Open, true).or(published.filter(|_| refused.is_none())) {
        return Ok(at(open));
    }
    let words = container.exec();
    let relayed = match timeout(RELAY_BOUND, relay::open(&words, port)).await {
        Ok(relayed) => relayed.map(drop),
        Err(_) => Err(io::Error::other(format!("no answer within {} s", RELAY_BOUND.as_secs()))),
    };
    let through = || (Route::Through { words: words.clone() }, format!("through {} exec", client.program()));
    match relayed {
        Ok(()) => Ok(through()),
        // The server starts. Whoever waits for it does so where the network leads there.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Ok(refused.map_or_else(through, at))
        }
        Err(error) => match published.or(refused) {
            Some(candidate) => Ok(at(candidate)),
            None => Err(unreachable(container, port, &candidates, error)),
        },
    }
}

fn candidates(container: &Container, port: u16) -> Vec<Candidate> {
    let own = container.addresses.iter().filter(|address| address.is_on_link()).map(|address| {
        let at = SocketAddr::new(address.ip, port);
        Candidate { at, how: format!("at {at} (network {})", address.network), is_own: true }
    });
    // In a container beside, a port of the loopback address is one of that container's.
    let gateways = || container.addresses.iter().filter(|address| address.gateway.is_some());
    let is_on_host = gateways().next().is_none() || gateways().any(Address::is_on_host);
    let published = container.published.iter().filter(|(inside, _)| is_on_host && *inside == port);
    let published = published.map(|(_, at)| Candidate {
        at: *at,
        how: format!("at {at} (its published port)"),
        is_own: false,
    });
    own.chain(published).collect()
}

async fn probe(at: SocketAddr) -> Answer {
    match timeout(PROBE_BOUND, TcpStream::connect(at)).await {
        Ok(Ok(_)) => Answer::Open,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Refused,
        Ok(Err(_)) | Err(_) => Answer::Silent,
    }
}

fn unreachable(container: &Container, port: u16, tried: &[Candidate], error: io::Error) -> Error {
    let tried: Vec<String> = tried.iter().map(|candidate| candidate.at.to_string()).collect();
    let tried = match tried.as_slice() {
        [] => "it has no address that is reached from here".to_owned(),
        all => format!("no answer from {}", all.join(", ")),
    };
    let why = Error::from(error);
    Error::new(format!("{tried}; through {} exec: {why}", container.client.program()))
        .context(format!("no way leads to port {port} of container {}", container.name))
        .with_hint(match container.client {
            Client::Docker => "connect opsd to the container's network, or publish the port on 127.0.0.1",
            Client::Podman => "publish the port on 127.0.0.1",
        })
}

impl Reached {
    /// Gives a connection to another database, or with other settings, the way to the same server.
    pub fn lead(&self, connection: &Connection) -> Connection {
        Connection { route: self.connection.route.clone(), ..connection.clone() }
    }

    /// Client tools for a server of this major.
    pub async fn tools(&self, major: u32, bin_dir: Option<&Path>) -> Result<Tools> {
        let Some(container) = &self.container else {
            return tools::find(major, bin_dir, &self.tool_prefix).await;
        };
        if matches!(self.connection.route, Route::At(_)) {
            match tools::find(major, bin_dir, &[]).await {
                Ok(tools) => return Ok(tools),
                // Somebody wants these and no others.
                Err(error) if bin_dir.is_some() => return Err(error),
                Err(error) => tracing::debug!("{error}; those in the container are used"),
            }
        }
        tools::find_inside(major, &container.exec()).await
    }
}
