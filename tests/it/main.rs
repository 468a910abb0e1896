//! Tests against real servers.

mod store;
mod support;
