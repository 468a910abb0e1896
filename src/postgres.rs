//! Talking to PostgreSQL: connecting, its client tools, scratch servers. Nothing here knows what a
//! backup is.

mod bounded;
pub mod computed;
pub mod connect;
mod dial;
pub mod ident;
pub mod large_objects;
pub mod libraries;
pub mod limits;
pub mod locale;
pub mod messages;
pub mod pattern;
pub mod properties;
pub mod reach;
mod relay;
mod require_auth;
pub mod scratch;
pub mod settings;
pub mod sql;
pub mod tls;
pub mod tools;
