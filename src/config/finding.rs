//! What is wrong, or odd, in a configuration: where, what, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Error;

/// One remark about a configuration file. Never quotes a value that may hold a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where in the document, `backup.db.streams`; empty where it concerns the whole file.
    pub key: String,
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Line in it, counted from 1; absent where it concerns the whole file.
    pub line: Option<usize>,
    /// What is wrong: a lowercase fragment.
    pub message: String,
    /// The next step, where one is known.
    pub hint: Option<String>,
    /// Whether it is about what somebody may well have chosen, and explains no failure: told where it can be changed,
    /// and not by each command.
    #[serde(skip)]
    pub is_advice: bool,
}

/// A path that is not UTF-8 is still worth a report.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// A finding that makes the configuration unusable.
pub type Mistake = Finding;
/// A finding that the operator should know about.
pub type Warning = Finding;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// All mistakes as one error, one a line.
pub fn mistakes_error(path: &Path, mistakes: &[Mistake]) -> Error {
    let count = match mistakes.len() {
        1 => "1 mistake".to_string(),
        n => format!("{n} mistakes"),
    };
    let mut text = format!("{count} in {}", path.display());
    for mistake in mistakes {
        text.push_str("\n  ");
        text.push_str(&mistake.to_string());
    }
    Error::usage(text)
}
