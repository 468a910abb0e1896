//! SIGINT and SIGTERM as an argument: work receives a token and ends by itself.
//!
//! The first signal cancels the token; whoever holds it stops, cleans up and returns. The second
//! signal ends the process at once, without cleaning up.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// Cancelled by the first SIGINT or SIGTERM, and knows which it was.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    terminated: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Shutdown {
    /// Starts listening. `second` is called on the second signal and should not return.
    pub fn listen(second: impl Fn(Kind) + Send + 'static) -> Result<Self> {
        let shutdown = Self::default();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let own = shutdown.clone();
        tokio::spawn(async move {
            loop {
                let kind = tokio::select! {
                    _ = interrupt.recv() => Kind::Interrupted,
                    _ = terminate.recv() => Kind::Terminated,
                };
                if own.token.is_cancelled() {
                    second(kind);
                }
                own.terminated.store(kind == Kind::Terminated, std::sync::atomic::Ordering::SeqCst);
                own.token.cancel();
            }
        });
        Ok(shutdown)
    }

    /// Whether a signal has arrived.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns when a signal has arrived.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// The error that work ends with after a signal.
    pub fn error(&self) -> Error {
        if self.terminated.load(std::sync::atomic::Ordering::SeqCst) {
            Error::new("terminated").with_kind(Kind::Terminated)
        } else {
            Error::new("interrupted").with_kind(Kind::Interrupted)
        }
    }

    /// Runs `work` until it is done or a signal arrives; dropping it must clean up.
    pub async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.requested() => Err(self.error()),
            result = work => result,
        }
    }
}

/// Does what blocks in a thread, and does not give it up when whoever waits does: opsd goes when its tasks
/// have ended, and a thread alone is none. So what is being made or removed is whole, or gone again.
pub async fn unabandoned<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, tokio::task::JoinError> {
    tokio::spawn(async { tokio::task::spawn_blocking(work).await }).await.flatten()
}
