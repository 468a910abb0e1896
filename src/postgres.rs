//! Talking to PostgreSQL: connecting, its client tools, scratch servers. Nothing here knows what a
//! backup is.

pub mod connect;
pub mod ident;
pub mod large_objects;
pub mod locale;
pub mod properties;
pub mod scratch;
pub mod sql;
pub mod tls;
pub mod tools;
