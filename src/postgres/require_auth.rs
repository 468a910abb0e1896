//! What a server may ask for, looked at before it is answered: tokio-postgres sends a password in whatever
//! way it is asked, and whoever stands between may ask for it in clear.
//!
//! The look is at the first authentication message, in the stream below the protocol's codec: over TLS in what
//! comes out of it, else in what the socket brings. A message that is refused never reaches the codec, so that
//! nothing is sent. What follows the first one tokio-postgres checks itself.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::bounded::Bounded;
use super::dial::Stream;
use crate::config::Connection;
use crate::config::require_auth::{ALLOW_CLEAR, AuthMethod, RequireAuth};
use crate::error::Error;

/// Type, length and code of an authentication message.
const HEAD: usize = 9;

/// Which methods a connection allows.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    require: Option<RequireAuth>,
    /// Whether a password in clear may get to somebody else, and nobody said that it may.
    guards_clear: bool,
}

impl Rule {
    pub(super) fn new(connection: &Connection, host: &str) -> Self {
        Self { require: connection.require_auth.clone(), guards_clear: connection.guards_password(host) }
    }

    fn judge(&self, code: u32) -> Result<(), Error> {
        let method = match code {
            0 => AuthMethod::None,
            3 => AuthMethod::Password,
            5 => AuthMethod::Md5,
            7 | 8 => AuthMethod::Gss,
            9 => AuthMethod::Sspi,
            10 => AuthMethod::ScramSha256,
            // tokio-postgres speaks none of the others, and says so.
            _ => return Ok(()),
        };
        if let Some(require) = self.require.as_ref().filter(|require| !require.permits(method)) {
            let asked = match method {
                AuthMethod::None => "the server lets everybody in without asking".to_owned(),
                method => format!("the server asks for {}", method.as_str()),
            };
            return Err(Error::usage(format!("{asked}, and require_auth={require} does not allow it"))
                .with_hint(
                    "if that is right for this server, allow it in require_auth; else find out who answers",
                ));
        }
        if self.guards_clear && method == AuthMethod::Password {
            return Err(Error::usage(
                "the server wants the password in clear, and no certificate shows that it is the server",
            )
            .with_hint(ALLOW_CLEAR));
        }
        Ok(())
    }
}

/// A stream whose first authentication message is looked at.
pub(super) struct Inspected<S> {
    inner: S,
    rule: Rule,
    state: State,
}

enum State {
    /// One byte says whether TLS follows, or the protocol as it is.
    TlsAnswer,
    /// The beginning of a message.
    Head(Vec<u8>),
    /// So much of a message before authentication begins.
    Skip(usize),
    /// Nothing is looked at any more.
    Done,
}

impl<S> Inspected<S> {
    /// `asks_for_tls`: whether an SSLRequest is the first thing that is sent.
    pub(super) fn new(inner: S, rule: Rule, asks_for_tls: bool) -> Self {
        let state = if asks_for_tls { State::TlsAnswer } else { State::Head(Vec::new()) };
        Self { inner, rule, state }
    }

    fn look_at(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Done => return Ok(()),
                State::TlsAnswer => {
                    // tokio-postgres goes on without TLS after whatever else a server says.
                    self.state = if *first == b'S' { State::Done } else { State::Head(Vec::new()) };
                    bytes = rest;
                }
                State::Skip(left) => {
                    let skipped = bytes.len().min(*left);
                    *left -= skipped;
                    if *left == 0 {
                        self.state = State::Head(Vec::new());
                    }
                    bytes = &bytes[skipped..];
                }
                State::Head(head) => {
                    head.push(*first);
                    bytes = rest;
                    let length = |head: &[u8]| {
                        head.get(1..5).map(|l| u32::from_be_bytes([l[0], l[1], l[2], l[3]]) as usize)
                    };
                    match (head.first(), length(head)) {
                        (Some(b'R'), Some(_)) if head.len() == HEAD => {
                            let code = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                            self.state = State::Done;
                            self.rule.judge(code)?;
                        }
                        (Some(b'R'), _) | (_, None) => {}
                        // A length counts itself; one that does not is the codec's to refuse.
                        (_, Some(length)) => {
                            self.state = match length.saturating_sub(4) {
                                0 => State::Head(Vec::new()),
                                left => State::Skip(left),
                            };
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Inspected<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        Poll::Ready(this.look_at(&buf.filled()[before..]).map_err(io::Error::from))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Inspected<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Inspected<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// TLS whose stream is looked at, too.
pub(super) struct InspectedTls {
    tls: Rustls,
    rule: Rule,
}

/// What TLS goes over.
type Plain = Inspected<Bounded<Stream>>;
type Rustls = <MakeRustlsConnect as MakeTlsConnect<Plain>>::TlsConnect;
type Encrypted = <Rustls as TlsConnect<Plain>>::Stream;

impl InspectedTls {
    pub(super) fn new(mut tls: MakeRustlsConnect, host: &str, rule: Rule) -> Result<Self, Error> {
        let tls = MakeTlsConnect::<Plain>::make_tls_connect(&mut tls, host)
            .map_err(|e| Error::new(e).context("cannot set up TLS"))?;
        Ok(Self { tls, rule })
    }
}

impl TlsConnect<Plain> for InspectedTls {
    type Stream = Inspected<Bounded<Encrypted>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, stream: Plain) -> Self::Future {
        let InspectedTls { tls, rule } = self;
        let connecting = tls.connect(stream);
        Box::pin(async move { Ok(Inspected::new(Bounded::plain(connecting.await?), rule, false)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inspected(require: &str, guards_clear: bool, asks_for_tls: bool) -> Inspected<()> {
        let env = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let dsn = format!("host=h user=u require_auth={require}");
        let require = crate::config::libpq::resolve(&dsn, &env).unwrap().connection.require_auth;
        Inspected::new((), Rule { require, guards_clear }, asks_for_tls)
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &u32::try_from(body.len() + 4).unwrap().to_be_bytes(), body].concat()
    }

    proptest! {
        /// However the bytes are cut, and whatever notices come before.
        #[test]
        fn the_first_question_is_found(
            notices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3),
            code in 0u32..12, asks_for_tls in any::<bool>(), cuts in prop::collection::vec(1usize..7, 1..40),
        ) {
            let mut bytes: Vec<u8> = if asks_for_tls { vec![b'N'] } else { Vec::new() };
            notices.iter().for_each(|notice| bytes.extend(message(b'N', notice)));
            bytes.extend(message(b'R', &[&code.to_be_bytes()[..], b"salt"].concat()));
            let mut stream = inspected("scram-sha-256", true, asks_for_tls);
            let mut rest = bytes.as_slice();
            let mut cuts = cuts.iter().cycle();
            let mut outcome = Ok(());
            while !rest.is_empty() && outcome.is_ok() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                outcome = stream.look_at(now);
                rest = later;
            }
            prop_assert_eq!(outcome.is_err(), matches!(code, 0 | 3 | 5 | 7..=9), "{}", code);
        }
    }

    /// tokio-postgres goes on without TLS after every answer but `S`, and so does the look.
    #[test]
    fn whatever_refuses_tls_is_followed_by_a_look() {
        let clear = message(b'R', &[0, 0, 0, 3]);
        for refusal in (0..=255_u8).filter(|byte| *byte != b'S') {
            let mut stream = inspected("scram-sha-256", true, true);
            stream.look_at(&[refusal]).unwrap();
            assert!(stream.look_at(&clear).is_err(), "after {:?}", char::from(refusal));
        }
    }

    #[test]
    fn what_tls_hides_is_not_looked_at() {
        let mut stream = inspected("scram-sha-256", true, true);
        stream.look_at(b"S").unwrap();
        stream.look_at(&message(b'R', &[0, 0, 0, 3])).unwrap();
    }

    #[test]
    fn a_password_in_clear_is_refused_where_it_could_be_read() {
        let clear = message(b'R', &[0, 0, 0, 3]);
        assert!(inspected("password", true, false).look_at(&clear).is_err());
        assert!(inspected("password", false, false).look_at(&clear).is_ok());
        assert!(inspected("password,md5", true, false).look_at(&message(b'R', &[0, 0, 0, 5])).is_ok());
    }
}
