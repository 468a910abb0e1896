//! Bounds on what a server may answer, below the crate: that reads a text of any announced length, and
//! lists of as many elements, before it hands anything out.
//!
//! What is read is looked at as it passes: lines, texts of an announced length, and the number of
//! elements that a list announces. All answers to what was written last share one budget, because they
//! are held until the last of them is there.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of a text: the arguments of a job, or `INFO`, which has ten thousand.
const TEXT_MAX: u64 = 4 << 20;

/// Bytes of a line: a number, a status, or an error.
const LINE_MAX: u64 = 64 << 10;

/// Elements that a list may announce. Queues are asked for their ends, never for all of their jobs.
const ELEMENTS_MAX: u64 = 200_000;

/// What the answers to one request may cost to hold.
const ANSWERS_MAX: u64 = 16 << 20;

/// What an element costs beside its bytes.
const ELEMENT_COST: u64 = 64;

/// Why a server was given up: the crate does not pass on what its stream fails of.
pub(super) type Refused = Arc<OnceLock<&'static str>>;

/// A connection to a server that answers no more than is bearable.
pub(super) struct Bounded<S> {
    inner: S,
    answers: Answers,
    refused: Refused,
}

impl<S> Bounded<S> {
    /// Over a connection on which nothing was begun, and where it says why it was given up.
    pub(super) fn new(inner: S) -> (Self, Refused) {
        let refused = Refused::default();
        (Self { inner, answers: Answers::default(), refused: refused.clone() }, refused)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, out))?;
        let read = out.filled().get(before..).unwrap_or_default();
        Poll::Ready(
            this.answers.pass(read).map_err(|what| {
                io::Error::new(io::ErrorKind::InvalidData, *this.refused.get_or_init(|| what))
            }),
        )
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answers.cost = 0;
        Pin::new(&mut this.inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

/// Where in its answers a server is, and what they have cost.
#[derive(Debug, Default)]
struct Answers {
    cost: u64,
    /// Bytes of a text and of the end of its line that are still to come.
    text: u64,
    /// What the line under way begins with.
    kind: Option<u8>,
    /// Bytes of the line under way.
    line: u64,
    /// The number that it tells, if it announces a length.
    length: u64,
    is_none: bool,
}

impl Answers {
    /// Looks at what was read.
    fn pass(&mut self, mut read: &[u8]) -> Result<(), &'static str> {
        self.cost += read.len() as u64;
        while let [byte, rest @ ..] = read {
            if self.text > 0 {
                let count = self.text.min(read.len() as u64);
                self.text -= count;
                read = read.get(count as usize..).unwrap_or_default();
                continue;
            }
            self.byte(*byte)?;
            read = rest;
        }
        if self.cost > ANSWERS_MAX {
            return Err("the server sent answers that take more than 16 MiB to hold");
        }
        Ok(())
    }

    /// The next byte of a line.
    fn byte(&mut self, byte: u8) -> Result<(), &'static str> {
        let Some(kind) = self.kind else {
            self.cost += ELEMENT_COST;
            *self = Self { cost: self.cost, kind: Some(byte), ..Self::default() };
            return Ok(());
        };
        self.line += 1;
        if self.line > LINE_MAX {
            return Err("the server sent a line of more than 64 KiB");
        }
        if byte == b'\n' {
            self.kind = None;
            return self.announced(kind);
        }
        if let b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' | b'|' = kind {
            match byte {
                b'0'..=b'9' => {
                    self.length = self.length.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
                }
                b'-' => self.is_none = true,
                b'\r' => {}
                _ => return Err("the server sent a length that is no number"),
            }
        }
        Ok(())
    }

    /// What the line that has ended announces.
    fn announced(&mut self, kind: u8) -> Result<(), &'static str> {
        match kind {
            _ if self.is_none => Ok(()),
            b'$' | b'=' | b'!' if self.length > TEXT_MAX => Err("the server sent a text of more than 4 MiB"),
            b'$' | b'=' | b'!' => {
                self.text = self.length + 2;
                Ok(())
            }
            b'*' | b'~' | b'>' | b'%' | b'|' if self.length > ELEMENTS_MAX => {
                Err("the server sent a list of more than 200000 elements")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pass(pieces: &[&[u8]]) -> Result<u64, &'static str> {
        let mut answers = Answers::default();
        pieces.iter().try_for_each(|piece| answers.pass(piece))?;
        Ok(answers.cost)
    }

    #[test]
    fn answers_of_all_kinds_pass() {
        let answers = b"+OK\r\n-ERR no\r\n:12\r\n$-1\r\n*-1\r\n$0\r\n\r\n$5\r\n*9\r\n$\r\n*2\r\n$1\r\na\r\n%1\r\n+a\r\n_\r\n";
        for at in 1..20 {
            let pieces: Vec<&[u8]> = answers.chunks(at).collect();
            assert_eq!(pass(&pieces), Ok(answers.len() as u64 + 12 * ELEMENT_COST), "{at}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let many = b"*0\r\n".repeat(300_000);
        let cases: [(&[u8], &str); 6] = [
            (b"$4194305\r\n", "a text of more than 4 MiB"),
            (b"$99999999999999999999999999\r\n", "a text of more than 4 MiB"),
            (b"*200001\r\n", "a list of more than 200000 elements"),
            (b"$x\r\n", "a length that is no number"),
            (&[b'+'; 70_000], "a line of more than 64 KiB"),
            (&many, "answers that take more than 16 MiB to hold"),
        ];
        for (answer, words) in cases {
            assert_eq!(pass(&[answer]).unwrap_err(), format!("the server sent {words}"));
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_nothing_panics(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = pass(&pieces);
        }
    }
}
