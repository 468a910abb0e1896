//! What work says while it runs. The library knows no terminal; `cli` draws bars or stays silent.

use std::sync::Arc;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new phase began; a fragment for people.
    Phase(String),
    /// Of what the phase does one by one, so much is done.
    Done {
        /// How many.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// A stream began; `estimate` is the bytes to expect, 0 where nobody knows.
    StreamStarted {
        /// `database/stream`.
        name: String,
        /// Bytes to expect.
        estimate: u64,
    },
    /// A stream moved on.
    StreamBytes {
        /// `database/stream`.
        name: String,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A stream ended.
    StreamFinished {
        /// `database/stream`.
        name: String,
    },
}

/// Where events go.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// For whoever does not care.
pub fn silent() -> Progress {
    Arc::new(|_| ())
}
