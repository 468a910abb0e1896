//! TCP connections to a name that stands for several addresses: happy eyeballs, as in RFC 8305.
//!
//! An address may hang: IPv6 that is announced and leads nowhere is the usual case. So the next address is tried
//! beside it after a moment, each has a bound of its own, and the first that answers is taken. Where none does,
//! each is named with what became of it. HTTP has the same of its own client. Deliberately absent: the order of
//! addresses, which is the system's (RFC 6724), and looking up both families at once.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

/// How long an address has before the next one is tried beside it.
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// A name of a service has a few; whoever answers a thousand wants a thousand connections.
const ADDRESSES_MAX: usize = 16;
/// Whoever sets no bound waits about as long for one address as the system would.
const UNBOUNDED: Duration = Duration::from_secs(120);

/// Connects to the first of a host's addresses that answers. `whole` is the time for all that is to be done there;
/// two thirds of it are the bound of each address, so that its failure is told and not only that time is over.
pub async fn connect(host: &str, port: u16, whole: Duration) -> Result<TcpStream> {
    let bound = if whole.is_zero() { UNBOUNDED } else { whole * 2 / 3 };
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.take(ADDRESSES_MAX).collect();
    let attempts = Attempts { is_literal: host.parse::<IpAddr>().is_ok(), ..Attempts::default() };
    attempts.first_of(found, bound).await
}

#[derive(Default)]
struct Attempts {
    /// Whether the host is an address, which whoever reads the error knows.
    is_literal: bool,
    failures: Vec<(SocketAddr, Error)>,
}

impl Attempts {
    async fn first_of(mut self, addresses: Vec<SocketAddr>, bound: Duration) -> Result<TcpStream> {
        let mut waiting = in_turn(addresses);
        let mut running = FuturesUnordered::new();
        loop {
            match waiting.pop_front() {
                Some(address) => running.push(async move { (address, attempt(address, bound).await) }),
                None if running.is_empty() => return Err(self.error()),
                None => {}
            }
            let ended = match waiting.is_empty() {
                true => running.next().await,
                false => tokio::time::timeout(NEXT_AFTER, running.next()).await.ok().flatten(),
            };
            match ended {
                Some((_, Ok(stream))) => return Ok(stream),
                Some((address, Err(error))) => self.failures.push((address, error)),
                None => {}
            }
        }
    }

    /// What became of each address.
    fn error(mut self) -> Error {
        // Where one refused, a host is there.
        let kind = self.failures.iter().map(|(_, error)| error.kind());
        let kind = kind.min_by_key(|kind| *kind != ErrorKind::ConnectionRefused);
        match (self.failures.pop(), kind) {
            (Some((_, error)), Some(kind)) if self.is_literal && kind != ErrorKind::TimedOut => error,
            (Some(last), Some(kind)) => {
                self.failures.push(last);
                let said = self.failures.iter().map(|(address, error)| format!("{address}: {error}"));
                Error::new(kind, said.collect::<Vec<_>>().join("; "))
            }
            _ => Error::new(ErrorKind::NotFound, "the name has no address"),
        }
    }
}

async fn attempt(address: SocketAddr, bound: Duration) -> Result<TcpStream> {
    match tokio::time::timeout(bound, TcpStream::connect(address)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let why = format!("no answer within {:.1} s", bound.as_secs_f64());
            Err(Error::new(ErrorKind::TimedOut, why.replace(".0 s", " s")))
        }
    }
}

/// The two families by turns, as they came otherwise: many addresses of one that leads nowhere must not keep the
/// other waiting.
fn in_turn(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let is_first = addresses.first().map(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| Some(address.is_ipv6()) == is_first);
    let (mut one, mut other) = (VecDeque::from(one), VecDeque::from(other));
    let mut turns = VecDeque::new();
    while !(one.is_empty() && other.is_empty()) {
        turns.extend(one.pop_front());
        turns.extend(other.pop_front());
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let found = ["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"].map(at).to_vec();
        assert_eq!(in_turn(found), ["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"].map(at));
        assert_eq!(in_turn(Vec::new()), []);
    }

    #[tokio::test]
    async fn every_address_is_named_with_what_became_of_it() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Attempts::default().first_of(vec![closed], Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(error.to_string().starts_with(&format!("{closed}: Connection refused")), "{error}");
        let error = Attempts::default().first_of(Vec::new(), Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(error.to_string(), "the name has no address");
    }

    #[tokio::test]
    async fn one_that_refuses_does_not_keep_the_next_waiting() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = vec![closed, open.local_addr().unwrap()];
        assert!(Attempts::default().first_of(addresses, Duration::from_secs(60)).await.is_ok());
    }
}
