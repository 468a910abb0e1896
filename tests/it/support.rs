//! What the integration tests stand on: servers, the binary, fixtures, comparison.

pub mod alerting;
pub mod certificates;
pub mod compare;
#[cfg(feature = "engine")]
pub mod engine;
pub mod exporter;
pub mod fixtures;
pub mod hostile;
pub mod inside;
pub mod many_sets;
pub mod mosquitto;
pub mod opsd;
pub mod postgres;
pub mod postgres_proxy;
pub mod processes;
pub mod prometheus;
pub mod redis;
pub mod s3;
pub mod s3_proxy;
pub mod sets;
pub mod torture;
