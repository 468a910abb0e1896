//! Integration tests: one binary, real servers, everything through the built `opsd`.
//!
//! `make setup` installs the servers. `support` is shared; each other module is one subject.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests have an environment of their own, and poll other processes"
)]

mod support;

mod harness;
