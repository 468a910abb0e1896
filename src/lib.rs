//! opsd: encrypted PostgreSQL backups that prove themselves by restoring.
//!
//! Modules, from the outside in; each may import only what stands below it, never a peer:
//!
//! - `main` parses, starts the runtime and maps errors to exit codes;
//! - [`cli`]: one file a command, the only code that knows clap; `cli::output` alone prints;
//! - [`exporter`]: serves what was collected;
//! - [`check`]: thresholds, from figures to a verdict;
//! - [`backup`], [`restore`], [`monitor`]: the work;
//! - [`set`], [`postgres`], [`rules`]: what a set is; how to talk to PostgreSQL and its tools; what
//!   Prometheus's rules need;
//! - [`store`]: bytes under keys; [`container`]: where one is;
//! - [`buffer_pool`], [`config`], [`pem`], [`process`], [`progress`], [`shutdown`]: what the rest stands on;
//! - [`metrics`]: the catalogue of what is measured, which the configuration's thresholds name, too;
//!   [`regular_file`]: files that were named to be read; [`trust`]: whether a server's certificates hold;
//! - [`beneath`] (paths that no link leads out of), [`database`] (what one is, apart from what is in it),
//!   [`error`], [`printable`] and [`tcp`] (names with several addresses) below all.
//!
//! `tests/architecture.rs` holds the code to this list. `ARCHITECTURE.md` says why.

pub mod backup;
pub mod beneath;
pub mod buffer_pool;
pub mod check;
pub mod cli;
pub mod config;
pub mod container;
pub mod database;
pub mod error;
pub mod exporter;
pub mod metrics;
pub mod monitor;
pub mod pem;
pub mod postgres;
pub mod printable;
pub mod process;
pub mod progress;
pub mod regular_file;
pub mod restore;
pub mod rules;
pub mod sandbox;
pub mod set;
pub mod shutdown;
pub mod store;
pub mod tcp;
pub mod trust;
