//! Reaching a server: a TCP connection, a Unix socket, or a relay in a container, before anything is said.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::relay::{self, Relay};
use super::settings::{KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL};
use crate::config::Route;
use crate::tcp;

/// A connection of any kind.
pub(super) type Stream = Either<TcpStream, Either<UnixStream, Relay>>;

/// Connects; `whole` is the time for the whole way to a session.
pub(super) async fn dial(host: &str, port: u16, route: &Route, whole: Duration) -> io::Result<Stream> {
    match route {
        Route::Direct => {}
        Route::At(address) => return over_tcp(TcpStream::connect(address).await?),
        Route::Through { words } => return Ok(Either::Right(Either::Right(relay::open(words, port).await?))),
        Route::Unfound => return Err(io::Error::other("nobody has looked where the container is")),
    }
    if host.starts_with('/') {
        let socket = UnixStream::connect(Path::new(host).join(format!(".s.PGSQL.{port}"))).await?;
        return Ok(Either::Right(Either::Left(socket)));
    }
    over_tcp(tcp::connect(host, port, whole).await?)
}

fn over_tcp(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    sockopt::set_tcp_keepidle(&stream, seconds(KEEPALIVE_IDLE))?;
    sockopt::set_tcp_keepintvl(&stream, seconds(KEEPALIVE_INTERVAL))?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    Ok(Either::Left(stream))
}
