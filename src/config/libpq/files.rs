//! What libpq reads from disk: the password file, service files, and the system's user list.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Env, Settings, nonempty, supported};
use crate::config::secret::Secret;
use crate::error::{Error, Kind, Result};
use crate::regular_file;

/// Where Debian's packages look for the system's service file.
const SYSCONFDIR: &str = "/etc/postgresql-common";

/// `$HOME`, else what the user list says.
pub(super) fn home(env: Env<'_>) -> Option<PathBuf> {
    nonempty(env("HOME")).or_else(|| passwd_field(5)).map(PathBuf::from).filter(|h| h.is_absolute())
}

/// The name of the user this process runs as.
pub(super) fn user_name() -> Option<String> {
    passwd_field(0)
}

fn passwd_field(field: usize) -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let list = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = list.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').nth(field).filter(|v| !v.is_empty()).map(str::to_string)
}

/// Where servers on this host listen: Debian's directory if it is there, else upstream's default.
pub(super) fn default_socket_dir() -> String {
    let debian = "/var/run/postgresql";
    if Path::new(debian).is_dir() { debian.into() } else { "/tmp".into() }
}

/// One line of a password file; `None` matches anything.
pub(super) struct Entry {
    host: Option<String>,
    port: Option<String>,
    dbname: Option<String>,
    user: Option<String>,
    password: Secret,
}

/// Reads a password file; `None` where there is none, an error where it must be ignored.
pub(super) fn password_file(path: &Path) -> Result<Option<Vec<Entry>>, String> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    if !meta.is_file() {
        return Err("it is not a plain file".into());
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!(
            "mode {:04o} lets others at it; chmod 600 {}",
            meta.mode() & 0o777,
            path.display()
        ));
    }
    let text = Zeroizing::new(regular_file::read_to_string(path).map_err(|e| e.to_string())?);
    Ok(Some(text.lines().filter_map(entry).collect()))
}

fn entry(line: &str) -> Option<Entry> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = Some(line);
    let mut field = || -> Option<(Zeroizing<String>, bool)> {
        let current = rest.take()?;
        let wildcard = current == "*" || current.starts_with("*:");
        // With room for all, so that none of it is left behind.
        let mut text = Zeroizing::new(String::with_capacity(current.len()));
        let mut chars = current.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => text.extend(chars.next().map(|(_, c)| c)),
                ':' => {
                    rest = Some(&current[at + 1..]);
                    break;
                }
                c => text.push(c),
            }
        }
        Some((text, wildcard))
    };
    let mut pattern = || field().map(|(text, wildcard)| (!wildcard).then(|| text.to_string()));
    let (host, port, dbname, user) = (pattern()?, pattern()?, pattern()?, pattern()?);
    let (password, _) = field()?;
    let password = Secret::new(password.as_str());
    Some(Entry { host, port, dbname, user, password }).filter(|e| !e.password.expose().is_empty())
}

/// The local server is called localhost in password files.
pub(super) fn host_in_password_file(host: &str) -> &str {
    if host == default_socket_dir() { "localhost" } else { host }
}

/// The first entry that fits.
pub(super) fn password(entries: &[Entry], host: &str, port: u16, dbname: &str, user: &str) -> Option<Secret> {
    let host = host_in_password_file(host);
    let port = port.to_string();
    let fits = |pattern: &Option<String>, value: &str| pattern.as_ref().is_none_or(|p| p == value);
    let entry = entries.iter().find(|e| {
        fits(&e.host, host) && fits(&e.port, &port) && fits(&e.dbname, dbname) && fits(&e.user, user)
    });
    entry.map(|e| e.password.clone())
}

/// A file that may define services.
pub(super) struct ServiceFile {
    path: PathBuf,
    /// What it is called in errors. What a URL names is not repeated: of one that is written wrongly it may
    /// be the password.
    called: String,
    must_exist: bool,
}

/// Service files in the order they are searched; `named` is what the URL, or else the environment, names.
pub(super) fn service_files(
    named: Option<&str>,
    home: Option<&Path>,
    env: Env<'_>,
) -> [Option<ServiceFile>; 2] {
    let file = |path: PathBuf, must_exist| {
        let called = format!("service file {}", path.display());
        ServiceFile { path, called, must_exist }
    };
    let of_environment = nonempty(env("PGSERVICEFILE"));
    let own = match (named, of_environment, home) {
        (Some(path), _, _) => {
            let called = "the file that servicefile names".to_owned();
            Some(ServiceFile { path: path.into(), called, must_exist: true })
        }
        (None, Some(path), _) => Some(file(path.into(), true)),
        (None, None, home) => home.map(|home| file(home.join(".pg_service.conf"), false)),
    };
    let system = nonempty(env("PGSYSCONFDIR")).unwrap_or_else(|| SYSCONFDIR.into());
    [own, Some(file(Path::new(&system).join("pg_service.conf"), false))]
}

/// The settings of a service, from the first file that has it. Its name is not repeated either.
pub(super) fn service(name: &str, files: &[Option<ServiceFile>]) -> Result<Settings, Vec<Error>> {
    let files = || files.iter().flatten();
    for file in files() {
        let text = match regular_file::read_to_string(&file.path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !file.must_exist => continue,
            Err(e) => return Err(vec![Error::from(e).with_kind(Kind::Usage).context(&file.called)]),
        };
        if let Some(found) = section(&text, name, &file.called) {
            return found;
        }
    }
    let searched: Vec<&str> = files().map(|file| file.called.as_str()).collect();
    Err(vec![
        Error::usage("the service that it names is not defined")
            .with_hint(format!("searched for [SERVICE]: {}", searched.join(", "))),
    ])
}

fn section(text: &str, name: &str, called: &str) -> Option<Result<Settings, Vec<Error>>> {
    let mut settings = Settings::new();
    let mut issues = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if inside {
                break;
            }
            inside = header.strip_suffix(']') == Some(name);
            continue;
        }
        if !inside {
            continue;
        }
        let position = format!("line {}", index + 1);
        let result = match line.split_once('=') {
            None if line.starts_with("ldap") => {
                Err(Error::usage(format!("{position}: LDAP is not supported")))
            }
            None => Err(Error::usage(format!("{position} has no ="))),
            Some(("service" | "servicefile", _)) => {
                Err(Error::usage(format!("{position}: a service cannot name another")))
            }
            Some((key, value)) => supported(key, &position).map(|key| {
                // The first of two equal keys counts, as with libpq.
                settings.entry(key).or_insert_with(|| Zeroizing::new(value.to_string()));
            }),
        };
        issues.extend(result.err().map(|e| e.context(called)));
    }
    if !inside {
        return None;
    }
    Some(if issues.is_empty() { Ok(settings) } else { Err(issues) })
}
