//! What to do about a connection that was not made.

use std::error::Error as _;
use std::io;

use tokio_postgres::error::{DbError, SqlState};

use super::{Target, rustls_cause, tls};
use crate::config::Route;

/// Hints go by SQLSTATE; texts are looked at only where one state means several things, and only for
/// words that no translation changes.
pub(super) fn server_hint(db: &DbError, target: &Target<'_>) -> Option<String> {
    let code = db.code();
    let message = db.message();
    let user = &target.connection.user;
    let hint = if *code == SqlState::INVALID_PASSWORD {
        match target.connection.password {
            Some(_) => "check the password in the URL, PGPASSWORD or the password file".to_owned(),
            None => "give a password in the URL (${VAR} expands), PGPASSWORD or the password file".to_owned(),
        }
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        if message.contains("pg_hba.conf") {
            format!(
                "allow role {user:?} from this host in the server's pg_hba.conf and reload it; \
                 a line for `hostssl` needs sslmode=require, one for `hostnossl` sslmode=disable"
            )
        } else {
            format!(
                "create role {user:?} on the server, or name another one; with peer authentication \
                 the operating system's user must match"
            )
        }
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        format!("create database {:?}, or correct its name", target.dbname)
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        "raise max_connections or the role's connection limit, or end idle sessions".to_owned()
    } else if *code == SqlState::CANNOT_CONNECT_NOW {
        "the server is starting, stopping or recovering; try again when it is ready".to_owned()
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        format!("GRANT CONNECT ON DATABASE to role {user:?}")
    } else if message.contains("unsupported startup parameter") {
        "this is PgBouncer; connect to the server itself: opsd and pg_dump need a session and settings of their \
         own, which transaction pooling does not keep"
            .to_owned()
    } else {
        return None;
    };
    Some(hint)
}

/// Where a password was looked for, by which name, and what would have been found there: a server in a container has a
/// name that stands in no URL.
pub(super) fn password_hint(target: &Target<'_>) -> String {
    let ways = "give one in the URL (${VAR} expands), PGPASSWORD or the password file";
    let Some(file) = &target.connection.passfile else { return ways.to_owned() };
    let server = target.connection.password_file_server(target.host, target.port);
    let missing = if file.exists() { "" } else { " (there is no such file)" };
    format!(
        "{ways}: looked for {server} in {}{missing}, where a line would be {server}:*:{}:PASSWORD",
        file.display(),
        target.connection.user
    )
}

pub(super) fn client_hint(e: &tokio_postgres::Error, target: &Target<'_>) -> Option<String> {
    if let Some(tls) = rustls_cause(e) {
        return tls::hint(tls).map(str::to_owned);
    }
    if e.is_closed() {
        return Some(HUNG_UP.to_owned());
    }
    let cause = e.source()?;
    let text = cause.to_string();
    if text == "server does not support TLS" {
        return Some(
            "turn on ssl on the server, or connect over a private path with sslmode=prefer".to_owned(),
        );
    }
    if text == "server did not use channel binding" {
        return Some("channel_binding=require needs TLS and scram-sha-256 on the server".to_owned());
    }
    socket_hint(cause.downcast_ref::<io::Error>()?, target)
}

const HUNG_UP: &str = "the other end hung up: check that it is PostgreSQL, and its log";

pub(super) fn socket_hint(e: &io::Error, target: &Target<'_>) -> Option<String> {
    use std::io::ErrorKind as Io;
    let hint = match e.kind() {
        Io::ConnectionRefused if target.is_socket() => {
            "a socket is left over, but no server listens on it; start the server"
        }
        Io::ConnectionRefused if target.connection.route != Route::Direct => {
            "the container runs and its server does not listen: see its log, the port of the URL, listen_addresses"
        }
        Io::ConnectionRefused => "start the server, or check host, port and listen_addresses",
        Io::NotFound if target.is_socket() => {
            "no server has its socket there; start it, or check unix_socket_directories and the port"
        }
        Io::PermissionDenied => "let the user that opsd runs as reach the socket's directory",
        Io::TimedOut | Io::HostUnreachable | Io::NetworkUnreachable => {
            "check the host, the port and the firewall between"
        }
        Io::UnexpectedEof | Io::ConnectionReset => HUNG_UP,
        Io::InvalidData => "what answers there is no PostgreSQL, or it means harm",
        _ if target.host.parse::<std::net::IpAddr>().is_err() && !target.is_socket() => {
            "check that the host's name resolves here"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
