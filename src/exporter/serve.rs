//! The HTTP server's loop: so many connections and no more, each within bounds, all of them ended in order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Exporter;
use super::respond::respond;
use crate::config::monitoring;
use crate::shutdown::Shutdown;

/// What a request's head may take; Prometheus sends a few hundred bytes.
const HEAD_BYTES: usize = 16 << 10;
/// A client that reads nothing holds its connection no longer than this; whoever reads connects again.
const CONNECTION_BOUND: Duration = Duration::from_secs(600);
/// How long answers that were begun may take after a signal.
const DRAIN_BOUND: Duration = Duration::from_secs(5);
/// One peer gets so much of all connections: the others' are left when it takes all it can. A proxy in front
/// is one peer.
const SHARE: usize = 2;
/// Out of descriptors: nothing gets better by asking at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until a signal arrives, and then what was begun.
pub async fn serve(
    listener: TcpListener,
    exporter: Arc<Exporter>,
    settings: &monitoring::Exporter,
    shutdown: &Shutdown,
) {
    let room = Arc::new(Semaphore::new(settings.max_connections));
    let drain = CancellationToken::new();
    let mut connections = JoinSet::new();
    let mut peers: HashMap<IpAddr, usize> = HashMap::new();
    let share = settings.max_connections.div_ceil(SHARE);
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => break,
            // What has ended is forgotten while the next one is waited for.
            Some(ended) = connections.join_next() => {
                if let Ok(peer) = ended {
                    leave(&mut peers, peer);
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, address)) => (stream, network(address.ip())),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let taken = peers.get(&peer).copied().unwrap_or(0);
        let permit = room.clone().try_acquire_owned().ok().filter(|_| taken < share);
        let Some(permit) = permit else {
            exporter.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        peers.insert(peer, taken + 1);
        let answer = connection(stream, exporter.clone(), settings.header_timeout, drain.clone());
        connections.spawn(async move {
            let _permit = permit;
            // Whoever hangs up or talks nonsense is not worth a word.
            let _ = tokio::time::timeout(CONNECTION_BOUND, answer).await;
            peer
        });
    }
    drop(listener);
    drain.cancel();
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_BOUND, ended).await.is_err() {
        tracing::debug!("connections were still open after {} s", DRAIN_BOUND.as_secs());
    }
}

/// Who counts as one peer: an address, and of IPv6 the network that one host chooses its addresses from.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        v4 => v4,
    }
}

fn leave(peers: &mut HashMap<IpAddr, usize>, peer: IpAddr) {
    if let Entry::Occupied(mut taken) = peers.entry(peer) {
        *taken.get_mut() -= 1;
        if *taken.get() == 0 {
            taken.remove();
        }
    }
}

async fn connection(
    stream: TcpStream,
    exporter: Arc<Exporter>,
    header_timeout: Duration,
    drain: CancellationToken,
) {
    let service = service_fn(move |request| {
        let exporter = exporter.clone();
        async move { Ok::<_, Infallible>(respond(&exporter, &request)) }
    });
    let connection = http1::Builder::new()
        // A client that has shut down its side waits for the answer nevertheless.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::trace!("a connection ended: {error}");
    }
}
