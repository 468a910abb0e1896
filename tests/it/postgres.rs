//! Connecting, client tools and scratch servers against real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod connect;
pub mod fake;
mod scratch;
mod tls;
mod tools;

use std::time::Duration;

use opsd::config::require_auth::ChannelBinding;
use opsd::config::secret::Secret;
use opsd::config::{Connection, Route, SslMode};

use crate::support::postgres::{PASSWORD, SUPERUSER, Server};

/// Settings for a server over TCP, as the superuser.
fn connection(server: &Server) -> Connection {
    connection_to("127.0.0.1", server.port)
}

fn connection_to(host: &str, port: u16) -> Connection {
    Connection {
        route: Route::Direct,
        hosts: vec![(host.to_owned(), port)],
        user: SUPERUSER.to_owned(),
        password: Some(Secret::new(PASSWORD)),
        passfile: None,
        dbname: "postgres".to_owned(),
        sslmode: SslMode::Prefer,
        names_dbname: true,
        names_sslmode: false,
        require_auth: None,
        channel_binding: ChannelBinding::Prefer,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        connect_timeout: Duration::from_secs(10),
        options: None,
    }
}
