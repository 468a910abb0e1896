//! Integration tests: one binary, real servers, everything through the built `opsd`.
//!
//! `make setup` installs the servers. `support` is shared; each other module is one subject.

#![expect(clippy::expect_used, reason = "a helper that cannot go on fails its test")]

mod support;

mod backups;
mod harness;
mod postgres;
mod store;
