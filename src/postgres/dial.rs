//! Reaching a server: a TCP connection or a Unix socket, before anything is said.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

use super::settings::{KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL};

/// A connection of either kind.
pub(super) type Stream = Either<TcpStream, UnixStream>;

/// Connects.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<Stream> {
    if host.starts_with('/') {
        let socket = UnixStream::connect(Path::new(host).join(format!(".s.PGSQL.{port}"))).await?;
        return Ok(Either::Right(socket));
    }
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    sockopt::set_tcp_keepidle(&stream, seconds(KEEPALIVE_IDLE))?;
    sockopt::set_tcp_keepintvl(&stream, seconds(KEEPALIVE_INTERVAL))?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    Ok(Either::Left(stream))
}
