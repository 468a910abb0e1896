//! Tests against real servers.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail the way tests do; clippy's own exception covers only the tests themselves"
)]

mod store;
mod support;
