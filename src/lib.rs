//! opsd: encrypted PostgreSQL backups that prove themselves by restoring.
//!
//! Modules, from the outside in; each may import only what stands below it, never a peer:
//!
//! - `main` parses, starts the runtime and maps errors to exit codes;
//! - [`cli`]: one file a command, the only code that knows clap; `cli::output` alone prints;
//! - [`backup`], [`restore`]: the work;
//! - [`set`], [`postgres`]: what a set is; how to talk to PostgreSQL and its tools;
//! - [`store`]: bytes under keys;
//! - [`config`], [`process`], [`progress`], [`shutdown`], and [`error`] below all: what the rest
//!   stands on.
//!
//! `tests/architecture.rs` holds the code to this list. `ARCHITECTURE.md` says why.

pub mod backup;
pub mod cli;
pub mod config;
pub mod error;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod restore;
pub mod set;
pub mod shutdown;
pub mod store;
