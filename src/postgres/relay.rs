//! A connection through a container's own client: a shell in it that passes bytes on to a port of its loopback address.
//!
//! Nobody can end a process in a container but by its stdin: whoever started it may be killed, and the client with him.
//! So the shell ends when either side closes, and takes what it started along.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use crate::container;
use crate::error::Error;
use crate::process::{self, Child, Input, Output};

/// What the shell exits with where nobody listens; the number of that error on Linux.
const REFUSED: i32 = 111;

/// How long the client may take to end once the stream is closed.
const END_BOUND: Duration = Duration::from_secs(5);

/// Says `+` once it is connected. bash connects by itself, and the images of PostgreSQL have it; others have nc, which is
/// one process.
///
/// Nothing may outlive this shell. Whoever is left without a parent becomes a child of the container's first process,
/// which is mostly the postmaster, and one of its children that ends by a signal has it restart every session (until 17).
/// One nc knows how to look whether somebody listens, and another one has no such option: it connects, and says nothing.
/// dd reads and writes; cat may have the kernel do both, which holds on to what was written until more of it comes.
const SCRIPT: &str = r#"export LC_ALL=C
if command -v bash > /dev/null && command -v dd > /dev/null; then
    exec bash -c '
        { exec 3<> "/dev/tcp/127.0.0.1/$1"; } || exit 111
        exec 4<&0
        printf +
        dd bs=65536 <&4 >&3 2> /dev/null &
        dd bs=65536 <&3 2> /dev/null &
        wait -n
        kill $(jobs -rp) 2> /dev/null
        wait
    ' relay "$1"
fi
command -v nc > /dev/null || { echo "there is neither bash nor nc in the container" >&2; exit 126; }
nc -z 127.0.0.1 "$1" 2> /dev/null || nc -w 5 127.0.0.1 "$1" < /dev/null > /dev/null 2>&1 || exit 111
printf +
exec nc 127.0.0.1 "$1""#;

/// Both directions of such a connection. Dropping it ends what passes them on.
pub struct Relay {
    from: pipe::Receiver,
    /// Absent once it is closed.
    to: Option<pipe::Sender>,
    child: Option<Child>,
}

/// Connects: `words` start a program in the container.
pub(super) async fn open(words: &[String], port: u16) -> io::Result<Relay> {
    let mut command = container::command(words);
    command.args(["sh", "-c", SCRIPT, "relay", &port.to_string()]);
    let client = words.first().map_or("client", String::as_str);
    let mut child = process::spawn(client, command, Input::Pipe, Output::Pipe)?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("the client has no pipes"));
    };
    let (to, mut from) = (pipe::Sender::from_file(stdin)?, pipe::Receiver::from_file(stdout)?);
    let mut word = [0];
    match from.read_exact(&mut word).await {
        Ok(_) if word == *b"+" => Ok(Relay { from, to: Some(to), child: Some(child) }),
        Ok(_) => Err(io::Error::other("what answers in the container is no relay of opsd's")),
        Err(_) => {
            let exit = child.wait().await?;
            match exit.status.code() {
                Some(REFUSED) => Err(io::Error::from_raw_os_error(REFUSED)),
                _ => Err(io::Error::other(
                    exit.check().err().unwrap_or_else(|| Error::new("it ended at once")),
                )),
            }
        }
    }
}

impl AsyncRead for Relay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.from).poll_read(context, out)
    }
}

impl AsyncWrite for Relay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.to {
            Some(to) => Pin::new(to).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe has nothing to flush.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.to = None;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Relay {
    /// The pipes close with this value, and the client ends by that. One that does not is ended.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(END_BOUND, child.wait()).await;
            });
        }
    }
}
