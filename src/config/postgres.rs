//! `[postgres.NAME]`: how a server is reached, and with which programs.

use std::io::ErrorKind;
use std::path::Path;

use super::container::{Client, Place as At, Wanted};
use super::raw::PASSWORD_STANDS_HERE;
use super::walk::{Place, Section, Text, Walk};
use super::{Postgres, SslMode, libpq};
use crate::error::Error;
use crate::regular_file;

pub(super) fn postgres(walk: &mut Walk<'_>, section: &Section<'_>, name: &str) -> Option<Postgres> {
    walk.only(section, &["url", "bin_dir", "tool_prefix", "container", "compose", "container_client"]);
    let container = container(walk, section);
    let bin_dir = walk.path(section, "bin_dir").map(|(place, path)| {
        program(walk, &place, &path.join("pg_dump"));
        path
    });
    let mut tool_prefix = Vec::new();
    if let Some((place, words)) = walk.strings(section, "tool_prefix") {
        if words.iter().any(|word| word.value.contains("PGPASSWORD=")) {
            walk.mistake(
                &place,
                "a password on a command line is visible to everybody on the host",
                "opsd hands it on by environment: with docker, \"-e\", \"PGPASSWORD\" without a value",
            );
        }
        for key in ["bin_dir", "container", "compose"] {
            if section.has(key) {
                walk.mistake(&place, format!("stands beside {key}"), "give one of the two");
            }
        }
        if let Some(first) = words.first().filter(|word| word.value.starts_with('/')) {
            program(walk, &first.place, Path::new(&first.value));
        }
        tool_prefix = words.into_iter().map(|word| word.value).collect();
    }
    let Some(mut url) = walk.filled(section, "url") else {
        if !section.has("url") {
            walk.missing(
                section,
                "url",
                "url = \"postgres://USER@HOST:5432/DATABASE\"; what it leaves out comes from PG* variables",
            );
        }
        return None;
    };
    let value = url.take();
    let resolved = match &container {
        None => libpq::resolve(&value, walk.env()),
        Some(wanted) => libpq::resolve_in_container(&value, wanted.place.host(), walk.env()),
    };
    match resolved {
        Ok(resolved) => {
            for warning in &resolved.warnings {
                walk.warn(&url.place, warning.as_str(), None);
            }
            // What goes to a container is on no line but this host's own.
            if let Some(host) = resolved.connection.unprotected_host().filter(|_| container.is_none()) {
                let mode = resolved.connection.sslmode;
                let may = match mode {
                    SslMode::Require => "answer in its place, because nobody checks its certificate",
                    _ => "read and change all of it",
                };
                let password = match resolved.connection.trusting_host() {
                    None => "",
                    Some(_) => ", and is handed the password itself, which require_auth allows",
                };
                let message = format!(
                    "sslmode={}: whoever is between here and {host} may {may}{password}",
                    mode.as_str()
                );
                let hint = match resolved.connection.guarded_host() {
                    None => "sslmode=verify-full with sslrootcert=/path/of/ca.crt",
                    Some(_) => {
                        "sslmode=verify-full with sslrootcert=/path/of/ca.crt; client tools whose libpq is older \
                         than 16 send the password in clear to whoever asks"
                    }
                };
                walk.advise(&url.place, message, Some(hint));
            }
            if let Some(key) = &resolved.connection.sslkey {
                walk.secret_files.push((url.place.clone(), key.clone()));
            }
            if resolved.password_in_dsn && url.literal {
                walk.advise(
                    &url.place,
                    PASSWORD_STANDS_HERE,
                    Some("keep it in ~/.pgpass, PGPASSWORD or a ${VARIABLE}"),
                );
            }
            let connection = resolved.connection;
            Some(Postgres { name: name.into(), connection, bin_dir, tool_prefix, container })
        }
        Err(issues) => {
            for issue in issues {
                walk.mistake_from(&url.place, &issue, "as in postgres://USER@HOST:5432/DATABASE");
            }
            None
        }
    }
}

/// Root runs no program that somebody else may change. One that is missing is found out when it is needed.
fn program(walk: &mut Walk<'_>, place: &Place, path: &Path) {
    match regular_file::trusted(path) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            walk.mistake_from(place, &Error::from(error), "name a program of root's");
        }
        _ => {}
    }
}

/// Where the server is, where that is a container.
fn container(walk: &mut Walk<'_>, section: &Section<'_>) -> Option<Wanted> {
    let client = walk.filled(section, "container_client").and_then(|text| {
        let client = Client::parse(&text.value);
        if client.is_none() {
            walk.mistake(&text.place, "is no container client that opsd knows", "docker or podman");
        }
        client
    });
    if section.has("container") && section.has("compose") {
        let place = walk.place(section, "compose");
        walk.mistake(&place, "stands beside container", "give one of the two");
    }
    if section.has("container_client") && !section.has("container") && !section.has("compose") {
        let place = walk.place(section, "container_client");
        walk.mistake(&place, "goes with container or compose", "remove it, or say container = \"NAME\"");
    }
    let named = walk.filled(section, "container").and_then(|text| container_name(walk, text));
    let place = if section.has("compose") {
        let compose = walk.section(section, "compose")?;
        walk.only(&compose, &["project", "service"]);
        let mut name = |key| {
            if !compose.has(key) {
                walk.missing(&compose, key, "compose = { project = \"site\", service = \"db\" }");
            }
            let text = walk.filled(&compose, key)?;
            container_name(walk, text)
        };
        let (project, service) = (name("project"), name("service"));
        At::Compose { project: project?, service: service? }
    } else {
        At::Named(named?)
    };
    Some(Wanted { place, client })
}

/// A name that a container, a project or a service may have, and that no client takes for an option.
fn container_name(walk: &mut Walk<'_>, text: Text) -> Option<String> {
    let is_name = text.value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !is_name {
        walk.mistake(&text.place, "is no name that it could have", "letters, digits, _ . and -");
    }
    is_name.then_some(text.value)
}
