//! One attempt of a request, given up when nothing moves any more.
//!
//! The SDK bounds only an attempt as a whole, which for a large part over a slow link must be many
//! minutes. Here a body is handed to the connection in pieces, so that a stall is noticed while bytes
//! should flow, and the wait for the answer begins when all of them have left.
//!
//! Each further attempt of a request is given more time: a slow link or store must not be taken for
//! a stalled one for ever.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::{BoxError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::timeout;

use super::failure::{Failure, chain};
use crate::buffer_pool::BufferPool;

/// How long a connection may take no byte of a body, or deliver none.
const STALL: Duration = Duration::from_secs(20);

/// How long a store may think before it answers.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

/// The same when it puts an object together: AWS keeps the connection busy meanwhile, others say
/// nothing. It is safe to ask again.
pub(super) const ANSWER_TO_COMPLETE: Duration = Duration::from_secs(60);

/// The slowest link that opsd still works over, in bytes a second: together with [`ANSWER`] it
/// bounds an attempt whose bytes do move. A part of 8 MiB may take four minutes.
const SLOWEST_LINK: u64 = 32 * 1024;

/// How many times as long the last attempts may take as the first.
const MORE_TIME: u32 = 2;

/// What the connection is handed at once.
const PIECE: usize = 64 << 10;

/// An attempt, from 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt(u32);

impl Attempt {
    pub(super) fn new(number: u32) -> Self {
        Self(number)
    }

    /// What a first attempt is given `time` for.
    fn extended(self, time: Duration) -> Duration {
        time * self.0.min(MORE_TIME)
    }

    /// How long bytes may move until they must be through.
    fn limit(self, bytes: u64) -> Duration {
        self.extended(ANSWER + ANSWER_TO_COMPLETE + Duration::from_secs(bytes / SLOWEST_LINK))
    }

    /// Sends a request without a body and waits for the answer (as far as the SDK reads it).
    pub(super) async fn send<T, E>(
        self,
        answer: Duration,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        match timeout(self.extended(answer), request).await {
            Ok(result) => result.map_err(Failure::of),
            Err(_) => Err(Failure::broke(&no_answer(self.extended(answer)))),
        }
    }

    /// Sends a request with a body, which `request` gets as an interceptor to send it with.
    pub(super) async fn send_body<T, E, F>(
        self,
        body: &Bytes,
        request: impl FnOnce(MeteredBody) -> F,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let (sender, taken) = watch::channel(0);
        let request = request(MeteredBody { body: body.clone(), taken: sender });
        tokio::select! {
            result = timeout(self.limit(body.len() as u64), request) => match result {
                Ok(result) => result.map_err(Failure::of),
                Err(_) => Err(Failure::broke("is too slow")),
            },
            why = stalled(body.len(), taken, self.extended(STALL), self.extended(ANSWER)) => {
                Err(Failure::broke(&why))
            }
        }
    }

    /// The body of an answer that has begun, which should have this many bytes.
    pub(super) async fn collect(
        self,
        mut body: ByteStream,
        size: u64,
        pool: &BufferPool,
    ) -> Result<Bytes, Failure> {
        let patience = self.extended(STALL);
        let collecting = async {
            // The size is at most that of the range that was asked for.
            let mut bytes = pool.take(usize::try_from(size).unwrap_or_default());
            loop {
                let arrived = bytes.len() as u64;
                match timeout(patience, body.next()).await {
                    Ok(Some(Ok(piece))) if arrived + piece.len() as u64 > size => {
                        return Err(Failure::broke(&format!("sent more than {size} bytes")));
                    }
                    Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
                    Ok(Some(Err(error))) => {
                        return Err(Failure::broke(&format!(
                            "broke off after {arrived} of {size} bytes: {}",
                            chain(&error)
                        )));
                    }
                    Ok(None) if arrived == size => return Ok(bytes.freeze()),
                    Ok(None) => return Err(Failure::broke(&format!("sent {arrived} of {size} bytes"))),
                    Err(_) => {
                        return Err(Failure::broke(&format!("sent nothing for {} s", patience.as_secs())));
                    }
                }
            }
        };
        match timeout(self.limit(size), collecting).await {
            Ok(result) => result,
            Err(_) => Err(Failure::broke("is too slow")),
        }
    }
}

/// Ends when the connection has taken nothing of a body for `stall`, or when the answer has been
/// waited for.
async fn stalled(
    size: usize,
    mut taken: watch::Receiver<usize>,
    stall: Duration,
    answer: Duration,
) -> String {
    while *taken.borrow_and_update() < size {
        match timeout(stall, taken.changed()).await {
            Ok(Ok(())) => {}
            // The connection has no use for the rest: its answer is on the way.
            Ok(Err(_)) => break,
            Err(_) => return format!("took no byte for {} s", stall.as_secs()),
        }
    }
    tokio::time::sleep(answer).await;
    no_answer(answer)
}

fn no_answer(time: Duration) -> String {
    format!("did not answer for {} s", time.as_secs())
}

/// Puts a body that counts in the place of the same bytes, once they are signed.
#[derive(Debug)]
pub(super) struct MeteredBody {
    body: Bytes,
    taken: watch::Sender<usize>,
}

impl Intercept for MeteredBody {
    fn name(&self) -> &'static str {
        "metered body"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let pieces = Pieces { left: self.body.clone(), taken: self.taken.clone() };
        *context.request_mut().body_mut() = SdkBody::from_body_1_x(pieces);
        Ok(())
    }
}

/// Bytes a piece at a time.
struct Pieces {
    left: Bytes,
    taken: watch::Sender<usize>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.left.len().min(PIECE);
        if size == 0 {
            return Poll::Ready(None);
        }
        let piece = self.left.split_to(size);
        self.taken.send_modify(|taken| *taken += size);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_attempts_and_more_bytes_are_given_more_time() {
        assert_eq!(Attempt::new(1).limit(0), Duration::from_secs(90));
        assert_eq!(Attempt::new(1).limit(8 << 20), Duration::from_secs(90 + 256));
        assert_eq!(Attempt::new(2).limit(0), Duration::from_secs(180));
        assert_eq!(Attempt::new(9).limit(0), Duration::from_secs(180));
    }

    #[tokio::test]
    async fn a_body_that_nobody_takes_is_a_stall_and_a_taken_one_waits_for_its_answer() {
        let (short, long) = (Duration::from_millis(10), Duration::from_secs(3600));
        let (sender, taken) = watch::channel(0);
        assert_eq!(stalled(9, taken, short, long).await, "took no byte for 0 s");
        sender.send_replace(8);
        assert_eq!(stalled(9, sender.subscribe(), short, long).await, "took no byte for 0 s");
        sender.send_replace(9);
        assert_eq!(stalled(9, sender.subscribe(), long, short).await, "did not answer for 0 s");
        // Taken in the meantime, or given up because the answer is known already.
        sender.send_replace(0);
        let (taken, waiting) = (sender.subscribe(), sender);
        let (said, ()) = tokio::join!(stalled(9, taken, long, short), async {
            tokio::task::yield_now().await;
            waiting.send_replace(9);
        });
        assert_eq!(said, "did not answer for 0 s");
        let (sender, taken) = watch::channel(0);
        drop(sender);
        assert_eq!(stalled(9, taken, long, short).await, "did not answer for 0 s");
    }

    #[tokio::test]
    async fn a_body_of_another_size_than_announced_is_not_taken() {
        let pool = BufferPool::new(10);
        let collect =
            |bytes: &'static [u8], size| Attempt::new(1).collect(ByteStream::from_static(bytes), size, &pool);
        assert_eq!(collect(b"1234567890", 10).await.unwrap(), "1234567890");
        assert_eq!(pool.idle_count(), 1, "its memory is used again");
        assert_eq!(collect(b"123456", 6).await.unwrap(), "123456");
        assert_eq!(collect(b"12345", 6).await.unwrap_err().in_short(), "sent 5 of 6 bytes");
        assert_eq!(collect(b"12345", 4).await.unwrap_err().in_short(), "sent more than 4 bytes");
        assert!(collect(b"1234567890", 9).await.is_err());
        assert_eq!(pool.idle_count(), 1, "also after an attempt in vain");
    }
}
