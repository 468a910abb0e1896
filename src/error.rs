//! The one error type above the storage layer: what failed, on what, why, and the next step.
//!
//! An [`Error`] is a chain of lowercase fragments, outermost first, a [`Kind`] that decides the
//! exit code, the [`Fault`] of a statement of a restore, and an optional hint. Layers that callers branch on (the store) have closed enums of
//! their own and convert into this one. Deliberately absent: backtraces and source downcasting;
//! nobody at three in the morning reads them, and nobody should decide by them.

use std::fmt;

/// Result with [`Error`] unless said otherwise.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error means to the caller of the process; `main` maps it to the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work could not be done (exit 1).
    Failed,
    /// The command line or the configuration is wrong (exit 2).
    Usage,
    /// Something stored or restored disagrees with what was recorded (exit 3).
    Differs,
    /// What is stored is not believed: nobody who is trusted vouches for it (exit 3, too).
    Refused,
    /// Another run holds the lock (exit 5).
    LockHeld,
    /// Nobody here can tell whether it was done (exit 6).
    InDoubt,
    /// Ctrl-C (exit 130).
    Interrupted,
    /// SIGTERM (exit 143).
    Terminated,
}

/// Whose fault it is that a statement of a restore failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A sound server refuses what is in the set.
    Refused,
    /// It needs what no dump holds and this host or network does not have: a foreign server, a
    /// dictionary's file.
    Elsewhere,
    /// The server, the connection or pg_restore itself is in trouble.
    Trouble,
}

/// What failed, on what, why, and what to do next.
#[derive(Clone)]
pub struct Error {
    kind: Kind,
    /// Of a statement of a restore, where it is known. Its text holds names of the dumped database's choosing, so
    /// nobody should find that out by searching it.
    fault: Option<Fault>,
    /// Outermost first.
    chain: Vec<String>,
    hint: Option<String>,
}

impl Error {
    /// An error of [`Kind::Failed`].
    pub fn new(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Failed, fault: None, chain: vec![message.to_string()], hint: None }
    }

    /// An error of [`Kind::Usage`].
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(message).with_kind(Kind::Usage)
    }

    /// An error of [`Kind::Differs`].
    pub fn differs(message: impl fmt::Display) -> Self {
        Self::new(message).with_kind(Kind::Differs)
    }

    /// An error of [`Kind::Refused`].
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::new(message).with_kind(Kind::Refused)
    }

    /// The same error with another kind.
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Says whose fault it is that the statement failed.
    pub fn with_fault(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Adds the next step, unless an inner layer already knew a better one.
    pub fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint.get_or_insert_with(|| hint.to_string());
        self
    }

    /// Says on what, or during what, the error happened.
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.chain.insert(0, context.to_string());
        self
    }

    /// The innermost fragment: why, without on what.
    pub fn message(&self) -> &str {
        self.chain.last().map_or("", String::as_str)
    }

    /// What it means to the process.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whose fault it is, where a statement of a restore failed and that is known.
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// The next step, where one is known.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(": "))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        // Readers and writers of ours travel through `std::io`; what they said is kept whole.
        error.downcast::<Error>().unwrap_or_else(Self::new)
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::new(error)
    }
}

/// `.context(…)` on results whose error converts into [`Error`].
pub trait Context<T> {
    /// Adds what was being done, or on what.
    fn context(self, context: impl fmt::Display) -> Result<T>;
    /// The same, built only when it is needed.
    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(context))
    }

    fn with_context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| e.into().context(context()))
    }
}
