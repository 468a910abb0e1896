//! Reaching a server: a TCP connection or a Unix socket, before anything is said.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// A coordinator sits idle for hours while others stream; firewalls forget such connections
/// after minutes, and the kernel's default is to ask after two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;

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
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_RETRIES)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    Ok(Either::Left(stream))
}
