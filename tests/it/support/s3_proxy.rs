//! A proxy between opsd and an S3 server, which goes wrong as it is told.
//!
//! A plan looks at the head of every request and says what becomes of it ([`Fate`]). What is random
//! comes from the proxy's seed and the request's number, so that a run can be repeated as far as the
//! order of its requests can. Signatures stay right: they cover the `Host` header, which passes
//! unchanged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Fate {
    /// The server answers.
    Forward,
    /// The server never sees it; this is the whole answer.
    Answer(String),
    /// After this many bytes of the request the connection is reset; the server got so many.
    CutRequest(usize),
    /// The server does it; after this many bytes of its answer the connection is reset.
    CutAnswer(usize),
    /// The server does it, but only this many bytes of the answer's body (modulo its length) arrive.
    TruncateAnswer(usize),
    /// After this many bytes of the request nothing moves any more.
    StallRequest(usize),
    /// After this many bytes of the answer nothing moves any more.
    StallAnswer(usize),
    /// A bit of this byte of the request's body flips.
    DamageRequest(usize),
    /// A bit of this byte of the answer's body flips.
    DamageAnswer(usize),
    /// The answer has another `ETag`, this whole value of the header.
    AnswerEtag(&'static str),
}

/// A request, as far as a plan needs it.
pub struct Request<'a> {
    /// Request line and headers in small letters.
    pub head: &'a str,
    /// Bytes of head and body.
    pub size: usize,
    /// Bytes of the body.
    pub body: usize,
}

impl Request<'_> {
    /// Whether it reads an object whose key has this in it (a listing is none).
    pub fn reads(&self, key: &str) -> bool {
        self.head.starts_with("get ") && self.head.contains("x-id=getobject") && self.head.contains(key)
    }

    /// Whether it carries bytes of an object.
    pub fn writes(&self) -> bool {
        self.head.starts_with("put ") && self.body > 0
    }
}

/// Decides about requests.
type Plan = dyn Fn(&Request<'_>, &mut StdRng) -> Fate + Send + Sync;

/// An answer of S3's that tells of an error.
pub fn error(status: u16, code: &str) -> Fate {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>The proxy says so.</Message></Error>"
    );
    Fate::Answer(format!(
        "HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

struct Shared {
    server: String,
    seed: u64,
    plan: Box<Plan>,
    /// Before a request reaches the server.
    delay: Duration,
    requests: AtomicU64,
    faults: AtomicU64,
}

/// A running proxy; ends when it is dropped. Must be started on a runtime.
pub struct Proxy {
    /// Where it listens: `http://127.0.0.1:…`.
    pub endpoint: String,
    shared: Arc<Shared>,
    alive: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy before `server` (`http://host:port`).
    pub async fn start(
        server: &str,
        seed: u64,
        delay: Duration,
        plan: impl Fn(&Request<'_>, &mut StdRng) -> Fate + Send + Sync + 'static,
    ) -> Proxy {
        let listener = listen(bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("free port"));
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            server: server.trim_start_matches("http://").to_owned(),
            seed,
            plan: Box::new(plan),
            delay,
            requests: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        });
        let (alive, life) = watch::channel(true);
        let task = tokio::spawn(serve(listener, address, Arc::clone(&shared), life));
        Proxy { endpoint: format!("http://{address}"), shared, alive, task }
    }

    /// `false` resets every connection and refuses new ones, `true` accepts them again.
    pub fn alive(&self) -> watch::Sender<bool> {
        self.alive.clone()
    }

    /// Requests of which something became that is not [`Fate::Forward`].
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
    mut life: watch::Receiver<bool>,
) {
    loop {
        // Ended with this turn of the loop, or with the proxy.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((client, _)) = accepted else { continue };
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        let _ = converse(client, &shared).await;
                    });
                }
                _ = life.wait_for(|alive| !alive) => break,
            }
        }
        drop(connections);
        drop(listener);
        // A socket that is bound but does not listen refuses connections, and keeps the port. A process
        // that was just started has the old one, until it runs its own program.
        let deadline = Instant::now() + Duration::from_secs(10);
        let socket = loop {
            match bind(address) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "cannot keep the port: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        if life.wait_for(|alive| *alive).await.is_err() {
            return;
        }
        listener = listen(socket);
    }
}

/// Small buffers, so that a proxy that reads no more is felt soon.
fn bind(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(64 << 10)?;
    socket.bind(address)?;
    Ok(socket)
}

fn listen(socket: TcpSocket) -> TcpListener {
    socket.listen(1024).expect("listen")
}

/// Requests of one connection, one after another.
async fn converse(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    // Whatever ends the conversation ends it with a reset; what hangs, hangs as long as the proxy.
    client.set_zero_linger()?;
    let mut server = TcpStream::connect(&shared.server).await?;
    loop {
        let Some((head, mut bytes, size)) = read_head(&mut client, false).await? else { return Ok(()) };
        let number = shared.requests.fetch_add(1, Ordering::SeqCst);
        let whole = size.unwrap_or(bytes.len());
        let body = whole - start_of_body(&bytes).unwrap_or(whole);
        let request = Request { head: &head, size: whole, body };
        let mut random = StdRng::seed_from_u64(shared.seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
        let fate = (shared.plan)(&request, &mut random);
        if !matches!(fate, Fate::Forward) {
            shared.faults.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(shared.delay).await;
        match fate {
            Fate::CutRequest(at) => {
                read_until(&mut client, &mut bytes, at).await?;
                server.write_all(&bytes[..at.min(bytes.len())]).await?;
                return Ok(());
            }
            Fate::StallRequest(at) => {
                read_until(&mut client, &mut bytes, at).await?;
                return std::future::pending().await;
            }
            _ => read_until(&mut client, &mut bytes, whole).await?,
        }
        if let Fate::Answer(answer) = &fate {
            client.write_all(answer.as_bytes()).await?;
            continue;
        }
        if let Fate::DamageRequest(at) = fate {
            flip(&mut bytes, at);
        }
        server.write_all(&bytes).await?;
        let mut answer = read_answer(&mut server, head.starts_with("head ")).await?;
        match fate {
            Fate::CutAnswer(at) => return send_part(&mut client, &answer, at).await,
            Fate::StallAnswer(at) => {
                send_part(&mut client, &answer, at).await?;
                return std::future::pending().await;
            }
            Fate::TruncateAnswer(at) => {
                let start = start_of_body(&answer).unwrap_or_default();
                let at = start + at % (answer.len() - start).max(1);
                send_part(&mut client, &answer, at).await?;
                // An end, not a reset: only the length tells that something is missing.
                client.shutdown().await?;
                return std::future::pending().await;
            }
            Fate::DamageAnswer(at) => flip(&mut answer, at),
            Fate::AnswerEtag(etag) => set_etag(&mut answer, etag),
            _ => {}
        }
        client.write_all(&answer).await?;
    }
}

fn set_etag(answer: &mut Vec<u8>, etag: &str) {
    let start = start_of_body(answer).unwrap_or_default();
    let head = String::from_utf8_lossy(&answer[..start]).into_owned();
    let line = |line: &str| match line.to_lowercase().starts_with("etag:") {
        true => format!("ETag: {etag}"),
        false => line.to_owned(),
    };
    let head = head.split("\r\n").map(line).collect::<Vec<_>>().join("\r\n");
    answer.splice(..start, head.into_bytes());
}

async fn send_part(client: &mut TcpStream, bytes: &[u8], at: usize) -> std::io::Result<()> {
    client.write_all(&bytes[..at.min(bytes.len())]).await?;
    client.flush().await
}

/// Flips a bit of a byte of the body, if there is one.
fn flip(message: &mut [u8], at: usize) {
    let start = start_of_body(message).unwrap_or(message.len());
    let body = &mut message[start..];
    if !body.is_empty() {
        body[at % body.len()] ^= 1;
    }
}

fn start_of_body(message: &[u8]) -> Option<usize> {
    message.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads until the head is whole: the head in small letters, all bytes so far, and how many the
/// message has; `None` where it comes in chunks.
async fn read_head(
    stream: &mut TcpStream,
    without_body: bool,
) -> std::io::Result<Option<(String, Vec<u8>, Option<usize>)>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(start) = start_of_body(&bytes) {
            let head = String::from_utf8_lossy(&bytes[..start]).to_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |l| l.trim().parse().expect("a length"));
            let chunked = head.contains("transfer-encoding: chunked") && !without_body;
            let size = if without_body { start } else { start + length };
            return Ok(Some((head, bytes, (!chunked).then_some(size))));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

async fn read_answer(server: &mut TcpStream, to_head: bool) -> std::io::Result<Vec<u8>> {
    let Some((_, mut bytes, size)) = read_head(server, to_head).await? else {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    };
    match size {
        Some(size) => read_until(server, &mut bytes, size).await?,
        None => {
            while !bytes.ends_with(b"\r\n0\r\n\r\n") {
                if server.read_buf(&mut bytes).await? == 0 {
                    break;
                }
            }
        }
    }
    Ok(bytes)
}

async fn read_until(stream: &mut TcpStream, bytes: &mut Vec<u8>, size: usize) -> std::io::Result<()> {
    while bytes.len() < size {
        if stream.read_buf(bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
