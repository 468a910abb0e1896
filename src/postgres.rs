//! Talking to PostgreSQL: connecting, its client tools, scratch servers. Nothing here knows what a
//! backup is.

pub mod connect;
pub mod scratch;
pub mod tools;
