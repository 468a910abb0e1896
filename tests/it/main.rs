//! Integration tests: one binary, real servers, everything through the built `opsd`.
//!
//! `make setup` installs the servers. `support` is shared; each other module is one subject.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail the way tests do; clippy's own exception covers only the tests themselves"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests have an environment of their own, and poll other processes"
)]

mod support;

mod backups;
mod bad_input;
mod canary;
mod cli;
mod demo;
mod harness;
mod kill;
mod machine;
mod minimal_role;
mod postgres;
mod postgres_faults;
mod regressions;
mod repository;
mod restore_md;
mod roundtrip;
mod s3;
mod security;
mod store;
mod traps;
