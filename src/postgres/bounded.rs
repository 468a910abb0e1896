//! Bounds on what a server may send, below tokio-postgres: that holds a message whole, the rows of an
//! answer until its end, and every parameter of a session, however many a server sends.
//!
//! A stream that is read through [`Bounded`] is looked at message by message. What is too much is an
//! error of the stream, which ends the session. Rows of COPY may have a gigabyte: they are handed on in
//! pieces, as messages of their own, so that nobody holds one whole. Whoever reads them finds their ends
//! by the newlines.
//!
//! Deliberately absent: bounds on time, which `connect` has for the first answers and each command for
//! its work; and notices in an open session, which nobody keeps.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Bytes until a session is open: some twenty parameters, and what a trigger on logins may say.
const STARTUP_MAX: u64 = 256 << 10;

/// Bytes of an error or a notice. Both are held several times over, and are for people to read.
const ERROR_MAX: u32 = 1 << 20;

/// Bytes of any other message. The largest that opsd asks for is a megabyte of a large object.
const MESSAGE_MAX: u32 = 8 << 20;

/// What an answer may cost to hold: the list of 100,000 tables takes most of it.
const ANSWER_MAX: u64 = 56 << 20;

/// What holding a message costs beside its bytes.
const MESSAGE_COST: u64 = 160;

/// What holding a field of a row costs beside its bytes.
const FIELD_COST: u64 = 24;

/// Bytes of parameters over the life of a session; a setting that changes is reported each time.
const PARAMETERS_MAX: u64 = 1 << 20;

/// Bytes of a row of COPY in a message that is handed on.
const PIECE: u32 = 64 << 10;

/// Bytes read from the server at once.
const INPUT: usize = 32 << 10;

/// A connection to a server that sends no more than is bearable.
pub struct Bounded<S> {
    inner: S,
    /// Room for what is read at once, of which so much is filled, and so much of that was handed on.
    input: Vec<u8>,
    filled: usize,
    at: usize,
    phase: Phase,
}

enum Phase {
    /// The first byte tells whether the rest is TLS, whose plain text is bounded instead.
    Negotiating,
    /// TLS, or what is said before it.
    Opaque,
    Messages(Messages),
}

impl<S> Bounded<S> {
    /// Over a connection without TLS.
    pub fn plain(inner: S) -> Self {
        Self::new(inner, Phase::Messages(Messages::default()))
    }

    /// Over a connection on which TLS is asked for first.
    pub fn negotiating(inner: S) -> Self {
        Self::new(inner, Phase::Negotiating)
    }

    fn new(inner: S, phase: Phase) -> Self {
        Self { inner, input: Vec::new(), filled: 0, at: 0, phase }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let messages = match &mut this.phase {
            Phase::Opaque => return Pin::new(&mut this.inner).poll_read(context, out),
            Phase::Negotiating => {
                let before = out.filled().len();
                ready!(Pin::new(&mut this.inner).poll_read(context, out))?;
                // One byte is asked for: what is not the word for TLS is followed by plain messages.
                match out.filled().get(before) {
                    None => {}
                    Some(b'S') => this.phase = Phase::Opaque,
                    // No; or an error, of a server that knows no such question.
                    Some(b'N' | b'E') => this.phase = Phase::Messages(Messages::default()),
                    Some(byte) => return Poll::Ready(Err(stranger(*byte))),
                }
                return Poll::Ready(Ok(()));
            }
            Phase::Messages(messages) => messages,
        };
        let before = out.filled().len();
        loop {
            this.at += messages.pass(this.input.get(this.at..this.filled).unwrap_or_default(), out)?;
            if out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            // All of it was taken, and there was nothing to hand on yet.
            this.input.resize(INPUT, 0);
            let mut read = ReadBuf::new(&mut this.input);
            let polled = Pin::new(&mut this.inner).poll_read(context, &mut read);
            this.filled = if polled.is_ready() { read.filled().len() } else { 0 };
            this.at = 0;
            ready!(polled)?;
            if this.filled == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Bounded<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// Where in the sequence of messages a stream is, and what they have cost.
#[derive(Default)]
struct Messages {
    /// The beginning of a message: its kind, its length, and of a row the number of fields.
    header: [u8; 7],
    gathered: usize,
    /// What of the header is still to be handed on.
    ready: Vec<u8>,
    /// Bytes of the message that belong to the header that was handed on.
    passing: u32,
    /// Bytes of a row of COPY for which no header was handed on yet.
    uncut: u32,
    is_open: bool,
    /// Whether a server's first byte was looked at.
    is_known: bool,
    answer: u64,
    parameters: u64,
}

impl Messages {
    /// Hands on what there is room for; returns how much of the input was taken.
    fn pass(&mut self, input: &[u8], out: &mut ReadBuf<'_>) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            let rest = input.get(taken..).unwrap_or_default();
            if !self.ready.is_empty() {
                let count = self.ready.len().min(out.remaining());
                out.put_slice(&self.ready[..count]);
                self.ready.drain(..count);
                if !self.ready.is_empty() {
                    return Ok(taken);
                }
            } else if self.passing > 0 {
                let count = rest.len().min(out.remaining()).min(self.passing as usize);
                if count == 0 {
                    return Ok(taken);
                }
                out.put_slice(&rest[..count]);
                taken += count;
                self.passing -= count as u32;
            } else if self.uncut > 0 {
                self.cut();
            } else {
                let Some(byte) = rest.first() else { return Ok(taken) };
                // What a server begins with: authentication, an error, a notice, another version, a parameter.
                if !self.is_known && !b"RENvS".contains(byte) {
                    return Err(stranger(*byte));
                }
                self.is_known = true;
                self.header[self.gathered] = *byte;
                self.gathered += 1;
                taken += 1;
                if self.gathered == self.header_size() {
                    self.begin()?;
                }
            }
        }
    }

    fn header_size(&self) -> usize {
        if self.header[0] == b'D' { 7 } else { 5 }
    }

    /// The next piece of a row of COPY.
    fn cut(&mut self) {
        self.passing = self.uncut.min(PIECE);
        self.uncut -= self.passing;
        self.ready.push(b'd');
        self.ready.extend_from_slice(&(self.passing + 4).to_be_bytes());
    }

    /// Looks at a header that is complete.
    fn begin(&mut self) -> io::Result<()> {
        let [kind, l1, l2, l3, l4, f1, f2] = self.header;
        let size = std::mem::take(&mut self.gathered) as u32;
        let length = u32::from_be_bytes([l1, l2, l3, l4]);
        let Some(body) =
            (length.checked_sub(4)).filter(|body| *body >= size - 5 && length <= i32::MAX as u32)
        else {
            return Err(refused(format!("a message has an impossible length of {length} bytes")));
        };
        if kind == b'd' && self.is_open {
            self.uncut = body;
            if body == 0 {
                self.cut();
            }
            return Ok(());
        }
        self.count(kind, body, u16::from_be_bytes([f1, f2]))?;
        self.ready.extend_from_slice(&self.header[..size as usize]);
        self.passing = body - (size - 5);
        Ok(())
    }

    fn count(&mut self, kind: u8, body: u32, fields: u16) -> io::Result<()> {
        let (what, most) = match kind {
            b'E' => ("an error message", ERROR_MAX),
            b'N' => ("a notice", ERROR_MAX),
            _ => ("a message", MESSAGE_MAX),
        };
        if body > most {
            return Err(refused(format!("{what} of more than {} MiB", most >> 20)));
        }
        let (length, fields) = (u64::from(body), if kind == b'D' { u64::from(fields) } else { 0 });
        if !self.is_open {
            self.answer += length + 5;
            if self.answer > STARTUP_MAX {
                return Err(refused(format!(
                    "more than {} KiB before the session is open",
                    STARTUP_MAX >> 10
                )));
            }
        }
        match kind {
            b'S' => {
                self.parameters += length + 5;
                if self.parameters > PARAMETERS_MAX {
                    return Err(refused(format!("more than {} MiB of parameters", PARAMETERS_MAX >> 20)));
                }
            }
            b'N' | b'A' => {}
            b'Z' => (self.is_open, self.answer) = (true, 0),
            _ if self.is_open => {
                self.answer += length + MESSAGE_COST + fields * FIELD_COST;
                if self.answer > ANSWER_MAX {
                    return Err(refused(format!(
                        "an answer that takes more than {} MiB to hold",
                        ANSWER_MAX >> 20
                    )));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// An error for whoever answers in another protocol, of which the first byte tells as much as can be known.
fn stranger(first: u8) -> io::Error {
    let what = match first {
        b'H' => "it answers in HTTP: a web server or a proxy listens there",
        b'-' => "it answers like Redis",
        b'2' | b'4' | b'5' => "it answers like a mail server or FTP",
        0x15 => "it answers in TLS from the first byte on",
        _ => "it answers in a protocol that is not PostgreSQL's",
    };
    refused(what.to_owned())
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    /// What comes out of a session in which these bytes came in, `at_once` at a time.
    fn through(input: &[u8], at_once: usize) -> Result<Vec<u8>, String> {
        let mut messages = Messages::default();
        let (mut taken, mut all) = (0, Vec::new());
        loop {
            let mut space = vec![0; at_once];
            let mut out = ReadBuf::new(&mut space);
            let end = input.len().min(taken + at_once);
            let count = messages.pass(&input[taken..end], &mut out).map_err(|e| e.to_string())?;
            taken += count;
            all.extend_from_slice(out.filled());
            if out.filled().is_empty() && taken == input.len() {
                return Ok(all);
            }
        }
    }

    fn opened(more: &[Vec<u8>]) -> Vec<u8> {
        [message(b'R', &[0; 4]), message(b'Z', b"I"), more.concat()].concat()
    }

    proptest! {
        #[test]
        fn messages_pass_unchanged_however_they_arrive(
            messages in proptest::collection::vec((prop::sample::select(&b"TCDdEN1Z"[..]), proptest::collection::vec(any::<u8>(), 2..200)), 0..30),
            at_once in 1_usize..300,
        ) {
            let input = opened(&messages.iter().map(|(kind, body)| message(*kind, body)).collect::<Vec<_>>());
            prop_assert_eq!(through(&input, at_once).unwrap(), input);
        }

        #[test]
        fn whatever_arrives_nothing_panics(input in proptest::collection::vec(any::<u8>(), 0..500), at_once in 1_usize..50) {
            let _ = through(&input, at_once);
        }
    }

    #[test]
    fn rows_of_copy_are_cut_and_lose_nothing() {
        let piece = PIECE as usize;
        for size in [0, 1, piece - 1, piece, piece + 1, 3 * piece, 3 * piece + 7] {
            let row: Vec<u8> = (0..size).map(|i| i as u8).collect();
            let input = opened(&[message(b'd', &row), message(b'c', b"")]);
            let expected: Vec<Vec<u8>> = match size {
                0 => vec![message(b'd', b"")],
                _ => row.chunks(piece).map(|piece| message(b'd', piece)).collect(),
            };
            let expected = opened(&[expected.concat(), message(b'c', b"")]);
            assert!(through(&input, 1000).unwrap() == expected, "{size}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let startup = vec![message(b'S', &[b'x'; 1000]); 300].concat();
        assert_eq!(
            through(&startup, 4096).unwrap_err(),
            "the server sent more than 256 KiB before the session is open"
        );
        let announced =
            |kind: u8, length: u32| opened(&[[&[kind][..], &length.to_be_bytes(), b"xx"].concat()]);
        let cases = [
            (announced(b'E', 2 << 20), "an error message of more than 1 MiB"),
            (announced(b'N', 2 << 20), "a notice of more than 1 MiB"),
            (announced(b'D', 9 << 20), "a message of more than 8 MiB"),
            (announced(b'D', 5), "a message has an impossible length of 5 bytes"),
            (announced(b'd', u32::MAX), "a message has an impossible length of 4294967295 bytes"),
            (announced(b'C', 3), "a message has an impossible length of 3 bytes"),
            (opened(&vec![message(b'S', &[b'x'; 1000]); 1100]), "more than 1 MiB of parameters"),
            (opened(&vec![message(b'D', &[0; 2]); 400_000]), "an answer that takes more than 56 MiB to hold"),
        ];
        for (input, words) in cases {
            assert_eq!(through(&input, 4096).unwrap_err(), format!("the server sent {words}"));
        }
        // An answer is over when the server is ready for the next.
        let answers = vec![[vec![message(b'D', &[0; 2]); 200_000].concat(), message(b'Z', b"I")].concat(); 3];
        assert!(through(&opened(&answers), 4096).is_ok());
    }

    #[tokio::test]
    async fn tls_is_left_alone_and_a_refusal_of_it_is_not() {
        let errors = message(b'E', &vec![b'x'; 3 << 20]);
        for (first, is_refused) in [(b'S', false), (b'N', true)] {
            let bytes = [&[first][..], &errors].concat();
            let mut stream = Bounded::negotiating(bytes.as_slice());
            assert_eq!(stream.read_u8().await.unwrap(), first);
            let mut rest = Vec::new();
            assert_eq!(stream.read_to_end(&mut rest).await.is_err(), is_refused);
        }
    }
}
