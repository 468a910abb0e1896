//! A TCP proxy in front of PostgreSQL that delays, cuts and refuses connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes moved at a time.
const PIECE: usize = 64 << 10;

/// A running proxy; it ends, and cuts every connection, when dropped.
pub struct PostgresProxy {
    /// Where it listens on 127.0.0.1.
    pub port: u16,
    behaviour: Arc<Behaviour>,
    cut: watch::Sender<u64>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Behaviour {
    delay_ms: AtomicU64,
    refuses: AtomicBool,
    accepted: AtomicUsize,
}

impl PostgresProxy {
    /// Starts a proxy that passes everything on to a port of 127.0.0.1.
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let port = listener.local_addr().expect("address").port();
        let behaviour = Arc::new(Behaviour::default());
        let (cut, cuts) = watch::channel(0);
        let shared = behaviour.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if shared.refuses.load(Ordering::Relaxed) {
                    continue;
                }
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                let (behaviour, mut cuts) = (shared.clone(), cuts.clone());
                cuts.mark_unchanged();
                connections.spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    tokio::select! {
                        () = async {
                            tokio::join!(
                                pass(&mut from_client, &mut to_server, &behaviour),
                                pass(&mut from_server, &mut to_client, &behaviour),
                            );
                        } => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { port, behaviour, cut, task }
    }

    /// From now on every piece, in either direction, takes so much longer.
    pub fn delay(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).expect("a short time");
        self.behaviour.delay_ms.store(millis, Ordering::Relaxed);
    }

    /// Ends every connection there is.
    pub fn cut(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.behaviour.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Connections that were let through so far.
    pub fn accepted(&self) -> usize {
        self.behaviour.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn pass(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    behaviour: &Behaviour,
) {
    let mut piece = vec![0; PIECE];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        let delay = behaviour.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
