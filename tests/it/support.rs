//! What the integration tests stand on: servers, the binary, fixtures, comparison.

pub mod postgres;
pub mod s3;
