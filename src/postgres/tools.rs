//! Which client tools to use, and how they are started.
//!
//! pg_dump refuses a server newer than itself, so of the tools at hand those of the server's major
//! are chosen, else the next newer. They get their connection by environment, never by argv, and
//! nothing else of opsd's environment. Deliberately absent: what the tools are asked to do.
//!
//! A `tool_prefix` puts words before every tool. `docker exec …`, `docker run …` and podman's are given the
//! variables by name (`-e PGPASSWORD`), so that no value shows in a process list; the client then
//! passes them on. Other prefixes (`sudo -u postgres`, `kubectl exec …`) get them as words of `env`,
//! which anybody on the host may read, and are therefore refused when there is a password.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::messages::explain_dump;
use super::settings;
use crate::config::{Connection, Route, SslMode, path};
use crate::error::{Context, Error, Result};
use crate::{printable, process, regular_file};

/// A tool says its version at once, unless it is behind a container client that hangs.
const VERSION_BOUND: Duration = Duration::from_secs(30);
/// How long pg_dump may take to connect and to read the catalogue. With a million tables that is minutes.
const TRY_BOUND: Duration = Duration::from_secs(600);

/// Where packages put the tools besides PATH; `*` stands for one directory.
const USUAL_PLACES: &[&str] = &["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql*/bin"];

/// Directories that tools themselves may need.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// Bundles of the system's root certificates, for tools that know no `sslrootcert=system`.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// pg_dump and its siblings of one version.
#[derive(Debug, Clone)]
pub struct Tools {
    /// Major version.
    pub major: u32,
    /// Version as the manifest states it, `17.11`.
    pub version: String,
    /// Major of the server that they talk to, which may be older.
    pub server_major: u32,
    /// Where they are; absent means that the prefix's PATH decides.
    pub bin_dir: Option<PathBuf>,
    prefix: Vec<String>,
    /// Whether they are in the server's own container, where it is on the loopback address.
    is_inside: bool,
}

/// Server programs for a scratch server, with client tools beside them.
#[derive(Debug, Clone)]
pub struct ServerBinaries {
    /// Where `initdb`, `postgres`, `pg_restore` and `pg_dump` are.
    pub bin_dir: PathBuf,
    /// Major version.
    pub major: u32,
    /// `17.11`.
    pub version: String,
}

/// Finds client tools for a server: in `bin_dir` alone where it is given, else on PATH and in the
/// usual places, or whatever `tool_prefix` reaches.
pub async fn find(server_major: u32, bin_dir: Option<&Path>, tool_prefix: &[String]) -> Result<Tools> {
    let mut broken = Vec::new();
    let found = if tool_prefix.is_empty() {
        let mut found = Vec::new();
        for dir in directories(bin_dir, &["pg_dump"])? {
            match version_of(&dir, "pg_dump").await {
                Ok((major, version)) => {
                    let bin_dir = Some(dir);
                    let prefix = Vec::new();
                    found.push(Tools { major, version, server_major, bin_dir, prefix, is_inside: false });
                }
                Err(e) => broken.push(format!("{}: {e}", dir.display())),
            }
        }
        found
    } else {
        let mut tools = Tools {
            major: 0,
            version: String::new(),
            server_major,
            bin_dir: bin_dir.map(Path::to_owned),
            prefix: tool_prefix.to_owned(),
            is_inside: false,
        };
        let command = tools.bare("pg_dump", &[])?;
        (tools.major, tools.version) =
            ask_version("pg_dump", command).await.context("tool_prefix does not lead to pg_dump")?;
        vec![tools]
    };
    let described: Vec<String> = found
        .iter()
        .map(|t| match &t.bin_dir {
            Some(dir) => format!("{} in {}", t.version, dir.display()),
            None => format!("{} behind {}", t.version, t.prefix.join(" ")),
        })
        .collect();
    tracing::debug!("pg_dump for PostgreSQL {server_major}: found {}", described.join(", "));
    best(found, server_major, |t| (t.major, &t.version)).ok_or_else(|| {
        let error = if described.is_empty() && !broken.is_empty() {
            Error::new(broken.join("; ")).context("no pg_dump works")
        } else if described.is_empty() {
            Error::new(format!("no pg_dump found for a PostgreSQL {server_major} server"))
        } else {
            Error::new(format!(
                "every pg_dump found is older than the server, which is PostgreSQL {server_major}: {}",
                described.join(", ")
            ))
        };
        error.with_hint(format!(
            "apt-get install postgresql-client-{server_major} (from apt.postgresql.org where the \
             distribution has none), or set bin_dir"
        ))
    })
}

/// The tools in the server's own container; `words` start a program there.
pub async fn find_inside(server_major: u32, words: &[String]) -> Result<Tools> {
    let mut tools = Tools {
        major: 0,
        version: String::new(),
        server_major,
        bin_dir: None,
        prefix: words.to_vec(),
        is_inside: true,
    };
    let on_host = || {
        format!(
            "with postgresql-client-{server_major} on this host opsd uses its programs, where a network leads to the \
             container"
        )
    };
    let command = tools.bare("pg_dump", &[])?;
    let found = ask_version("pg_dump", command).await.context("the container has no pg_dump that works");
    (tools.major, tools.version) = found.map_err(|error| error.with_hint(on_host()))?;
    if tools.major < server_major {
        let old =
            format!("the container has pg_dump {}, and PostgreSQL {server_major} is needed", tools.version);
        return Err(Error::new(old).with_hint(on_host()));
    }
    Ok(tools)
}

/// Finds server programs of at least `min_major`, the lowest major that will do.
pub async fn find_server(min_major: u32, bin_dir: Option<&Path>) -> Result<ServerBinaries> {
    let (mut found, mut broken) = (Vec::new(), Vec::new());
    for dir in directories(bin_dir, &["postgres", "initdb", "pg_restore", "pg_dump"])? {
        match version_of(&dir, "postgres").await {
            Ok((major, version)) => found.push(ServerBinaries { bin_dir: dir, major, version }),
            Err(e) => broken.push(format!("{}: {e}", dir.display())),
        }
    }
    let described: Vec<String> =
        found.iter().map(|b| format!("{} in {}", b.version, b.bin_dir.display())).collect();
    best(found, min_major, |b| (b.major, &b.version)).ok_or_else(|| {
        let error = if described.is_empty() && !broken.is_empty() {
            Error::new(broken.join("; ")).context("no PostgreSQL server works")
        } else if described.is_empty() {
            Error::new("no PostgreSQL server programs found for a scratch server")
        } else {
            Error::new(format!(
                "a scratch server needs PostgreSQL {min_major} or newer, found only {}",
                described.join(", ")
            ))
        };
        error.with_hint(format!(
            "apt-get install postgresql-{min_major} (its own cluster may stay stopped), or set bin_dir"
        ))
    })
}

impl ServerBinaries {
    /// The client tools beside the server.
    pub fn tools(&self) -> Tools {
        Tools {
            major: self.major,
            version: self.version.clone(),
            server_major: self.major,
            bin_dir: Some(self.bin_dir.clone()),
            prefix: Vec::new(),
            is_inside: false,
        }
    }

    /// What the programs need in their environment, and nothing else.
    pub fn environment(&self) -> Vec<(String, String)> {
        base_env(Some(&self.bin_dir))
    }

    /// Where the programs really are, whatever links lead to them.
    pub fn real_bin_dir(&self) -> Result<PathBuf> {
        let program = self.bin_dir.join("postgres");
        let real = program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?;
        Ok(real.parent().map_or(self.bin_dir.clone(), Path::to_owned))
    }

    /// Directories of the programs, of what they read, and of their libraries: for a view of the file system
    /// that holds little else.
    pub async fn directories(&self) -> Result<Vec<PathBuf>> {
        let bin = self.real_bin_dir()?;
        let mut found = vec![bin.parent().unwrap_or(&bin).to_owned()];
        // A build of somebody's own may have libraries anywhere; the loader knows where it finds them.
        let mut ldd = Command::new("ldd");
        ldd.env_clear()
            .envs(self.environment())
            .args(["postgres", "initdb"].map(|program| bin.join(program)));
        if let Ok((exit, text)) = process::run("ldd", ldd, VERSION_BOUND).await
            && exit.status.success()
        {
            let libraries = text.lines().filter_map(|line| line.split_once("=> ")?.1.split_once(" ("));
            let real = libraries.filter_map(|(path, _)| Path::new(path).canonicalize().ok());
            found.extend(real.filter_map(|path| path.parent().map(Path::to_owned)));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

impl Tools {
    /// The same tools for a server of another major than the one that they were found for.
    #[must_use]
    pub fn for_server(mut self, major: u32) -> Self {
        self.server_major = major;
        self
    }

    /// Their version and where they are, for people.
    pub fn describe(&self) -> String {
        match &self.bin_dir {
            _ if self.is_inside => format!("{} of the container", self.version),
            Some(dir) => format!("{} in {}", self.version, dir.display()),
            None => self.version.clone(),
        }
    }

    /// Whether they see this host's files; behind a prefix they do not.
    pub fn run_here(&self) -> bool {
        self.prefix.is_empty()
    }

    /// `tool` with the connection in its environment, ready for arguments.
    pub fn command(
        &self,
        tool: &str,
        connection: &Connection,
        dbname: &str,
        application_name: &str,
    ) -> Result<Command> {
        let inside = self.is_inside.then(|| inside(connection));
        let connection = inside.as_ref().unwrap_or(connection);
        self.bare(tool, &child_env(connection, self.server_major, dbname, application_name))
    }

    /// Whether pg_dump gets through to a database, in the way that a backup will ask it to. Nothing is dumped.
    pub async fn try_dump(&self, connection: &Connection, dbname: &str) -> Result<()> {
        let mut command = self.command("pg_dump", connection, dbname, "opsd backup")?;
        command.args(["--no-password", "--schema-only", "--exclude-schema=*"]);
        let (exit, _) = process::run("pg_dump", command, TRY_BOUND).await?;
        exit.check().map_err(|error| self.explain_prefix(explain_dump(error), connection))
    }

    /// Adds to an error of a tool that is started behind a prefix what is often wrong there.
    pub fn explain_prefix(&self, error: Error, connection: &Connection) -> Error {
        let Some(program) = self.prefix.first() else { return error };
        if self.is_inside {
            return error.with_hint(
                "this program runs in the container, and connects to the server on 127.0.0.1 there",
            );
        }
        let hosts: Vec<&str> = connection.hosts.iter().map(|(host, _)| host.as_str()).collect();
        error.with_hint(format!(
            "opsd connects from here, and this program from where tool_prefix ({} …) starts it: host {} must mean the \
             same server there, on the same port",
            printable::word(program),
            hosts.join(", ")
        ))
    }

    /// What an operator should know before a password is given to tools whose libpq sends it in whatever way it
    /// is asked. opsd's own sessions do not, but who stands between may let those pass.
    pub async fn password_warning(&self, connection: &Connection) -> Result<Option<String>> {
        let Some(host) = connection.guarded_host().filter(|_| !self.is_inside) else { return Ok(None) };
        Ok((!self.know_require_auth().await?).then(|| {
            format!(
                "pg_dump {} does not know require_auth: whoever is between here and {host} can have it send the \
                 password in clear; use sslmode=verify-full, or client tools of PostgreSQL 16 or newer",
                self.version
            )
        }))
    }

    /// Whether the tools' libpq, which may be newer than they are, heeds `require_auth`: one that does refuses
    /// a method that does not exist, before it looks for a server.
    async fn know_require_auth(&self) -> Result<bool> {
        if self.major >= 16 {
            return Ok(true);
        }
        let env = [("PGREQUIREAUTH", "none-such"), ("PGHOST", "/dev/null/none"), ("PGCONNECT_TIMEOUT", "2")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut command = self.bare("pg_dump", &env)?;
        command.args(["--no-password", "--schema-only"]);
        let (exit, _) = process::run("pg_dump", command, VERSION_BOUND).await?;
        Ok(exit.stderr.contains("require_auth"))
    }

    fn bare(&self, tool: &str, env: &[(String, String)]) -> Result<Command> {
        let program = match &self.bin_dir {
            Some(dir) => dir.join(tool),
            None => PathBuf::from(tool),
        };
        let Some((first, rest)) = self.prefix.split_first() else {
            let mut command = Command::new(program);
            command.env_clear().envs(base_env(self.bin_dir.as_deref())).envs(env.iter().cloned());
            return Ok(command);
        };
        let mut command = Command::new(first);
        command.env_clear().env("PATH", joined_search_path()).envs(path::container_client());
        let locale = [("LC_ALL".to_owned(), "C".to_owned())];
        let env = || locale.iter().chain(env);
        match container_command(first, rest) {
            Some(at) => {
                command.args(rest.iter().take(at + 1));
                for (name, value) in env() {
                    command.env(name, value).arg("-e").arg(name);
                }
                command.args(rest.iter().skip(at + 1)).arg(program);
            }
            None if first.rsplit('/').next() == Some("ssh") => {
                return Err(Error::usage(
                    "tool_prefix cannot be ssh: a remote shell would take the words apart",
                )
                .with_hint("run opsd on that host, or connect to the server over the network"));
            }
            None if env().any(|(name, _)| name == "PGPASSWORD") => {
                return Err(Error::usage(format!(
                    "tool_prefix {first:?} cannot be given a password without showing it in the process list"
                ))
                .with_hint(
                    "use `docker exec`, `docker run` or podman's, or authentication without a password",
                ));
            }
            None => {
                command.args(rest).arg("env").args(env().map(|(n, v)| format!("{n}={v}"))).arg(program);
            }
        }
        Ok(command)
    }
}

/// Where `exec` or `run` stands among the words after `docker` or `podman`. Both take `-e NAME`, and with it the
/// value from the client's own environment, where nobody else sees it.
fn container_command(first: &str, rest: &[String]) -> Option<usize> {
    let client = first.rsplit('/').next().unwrap_or(first);
    if !matches!(client, "docker" | "podman") || rest.iter().any(|word| word == "compose") {
        return None;
    }
    rest.iter().position(|word| word == "exec" || word == "run")
}

/// Without these a client waits for about two hours for a server whose host died without a word. libpq
/// has no variables for them, so they go into the argument that names a database; nothing in them is
/// secret. About two minutes, as for opsd's own sessions.
pub const KEEPALIVES: &str =
    "keepalives_idle=60 keepalives_interval=10 keepalives_count=6 tcp_user_timeout=120000";

/// The same server as its own container sees it: on the loopback address, which nobody else is on. The certificates
/// that the configuration names are files of this host, and no certificate names that address: what is left of
/// `verify-ca` and `verify-full` there is `require`. opsd's own session checks the certificate whatever the way.
fn inside(connection: &Connection) -> Connection {
    let port = connection.hosts.first().map_or(5432, |(_, port)| *port);
    Connection {
        hosts: vec![("127.0.0.1".to_owned(), port)],
        route: Route::Direct,
        sslmode: match connection.sslmode {
            SslMode::VerifyCa | SslMode::VerifyFull => SslMode::Require,
            mode => mode,
        },
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        ..connection.clone()
    }
}

/// The connection as libpq's environment variables. An odd database name is safe here: PGDATABASE
/// is never read as a connection string, unlike an argument.
fn child_env(
    connection: &Connection,
    server_major: u32,
    dbname: &str,
    application_name: &str,
) -> Vec<(String, String)> {
    let join = |words: Vec<String>| words.join(",");
    let mut env = vec![
        ("PGHOST", join(connection.hosts.iter().map(|(host, _)| host.clone()).collect())),
        ("PGPORT", join(connection.hosts.iter().map(|(_, port)| port.to_string()).collect())),
        ("PGUSER", connection.user.clone()),
        ("PGDATABASE", dbname.to_owned()),
        ("PGSSLMODE", connection.sslmode.as_str().to_owned()),
        ("PGCHANNELBINDING", connection.channel_binding.as_str().to_owned()),
        ("PGAPPNAME", application_name.to_owned()),
        ("PGCONNECT_TIMEOUT", connect_timeout(connection.connect_timeout).to_string()),
        ("PGOPTIONS", settings::of_tool(connection.options.as_deref(), server_major)),
        // Connection settings are resolved once, and so is the password; a path below a file never
        // exists, and libpq is silent about that.
        ("PGPASSFILE", "/dev/null/none".to_owned()),
    ];
    if let Route::At(address) = connection.route {
        // The host's name stays what a certificate has to name.
        env.retain(|(name, _)| *name != "PGPORT");
        env.push(("PGHOSTADDR", address.ip().to_string()));
        env.push(("PGPORT", address.port().to_string()));
    }
    // libpq knows it from 16 on; older ones do not look at it.
    if let Some(require) = connection.require_auth_of_tools() {
        env.push(("PGREQUIREAUTH", require.to_string()));
    }
    if let Some(password) = &connection.password {
        env.push(("PGPASSWORD", password.expose().to_owned()));
    }
    let verifies = matches!(connection.sslmode, SslMode::VerifyCa | SslMode::VerifyFull);
    match &connection.sslrootcert {
        Some(file) if file != Path::new("system") => env.push(("PGSSLROOTCERT", file.display().to_string())),
        None if !verifies => {}
        _ => env.push(("PGSSLROOTCERT", system_bundle())),
    }
    let files = [("PGSSLCERT", &connection.sslcert), ("PGSSLKEY", &connection.sslkey)];
    for (name, file) in files {
        if let Some(file) = file {
            env.push((name, file.display().to_string()));
        }
    }
    env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// libpq counts whole seconds, takes 1 as 2, and 0 as for ever.
fn connect_timeout(bound: Duration) -> u64 {
    if bound.is_zero() { 0 } else { bound.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1) }
}

/// libpq knows `system` from 16 on and with verify-full alone; a file works everywhere.
fn system_bundle() -> String {
    SYSTEM_BUNDLES.iter().find(|path| Path::new(path).is_file()).copied().unwrap_or("system").to_owned()
}

/// PATH, an untranslated stderr that can be classified, and a private build's own libpq.
fn base_env(bin_dir: Option<&Path>) -> Vec<(String, String)> {
    let mut env = vec![("LC_ALL".to_owned(), "C".to_owned())];
    let own = bin_dir.map(|dir| format!("{}:", dir.display())).unwrap_or_default();
    env.push(("PATH".to_owned(), format!("{own}{SYSTEM_PATH}")));
    let lib = bin_dir.and_then(Path::parent).map(|root| root.join("lib"));
    if let Some(lib) = lib
        && lib != Path::new("/usr/lib")
        && lib.join("libpq.so.5").exists()
    {
        env.push(("LD_LIBRARY_PATH".to_owned(), lib.display().to_string()));
    }
    env
}

fn joined_search_path() -> String {
    let own: Vec<String> = path::search_path().iter().map(|dir| dir.display().to_string()).collect();
    if own.is_empty() { SYSTEM_PATH.to_owned() } else { own.join(":") }
}

/// Directories that hold all of `programs`, each real directory once.
fn directories(bin_dir: Option<&Path>, programs: &[&str]) -> Result<Vec<PathBuf>> {
    let lacks = |dir: &Path| programs.iter().find(|program| !is_program(&dir.join(program))).copied();
    if let Some(dir) = bin_dir {
        return match lacks(dir) {
            None => {
                for program in programs {
                    regular_file::trusted(&dir.join(program)).context("bin_dir")?;
                }
                Ok(vec![dir.to_owned()])
            }
            Some(program) => Err(Error::usage(format!("bin_dir {} has no {program}", dir.display()))
                .with_hint("bin_dir is the directory that holds PostgreSQL's programs")),
        };
    }
    let mut found: Vec<PathBuf> = Vec::new();
    let candidates = path::search_path().into_iter().chain(USUAL_PLACES.iter().flat_map(|p| expand(p)));
    for dir in candidates.filter(|dir| lacks(dir).is_none()) {
        // PATH may name one directory in several ways, or hold links into another.
        let real = dir.join(programs.first().unwrap_or(&"pg_dump")).canonicalize().ok();
        let real = real.as_deref().and_then(Path::parent).map_or(dir.clone(), Path::to_owned);
        if !found.contains(&real) && lacks(&real).is_none() {
            found.push(real);
        }
    }
    Ok(found)
}

/// Executable, and not Debian's wrapper, which picks a version by itself on every call.
fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let Ok(real) = path.canonicalize() else { return false };
    let executable = real.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    executable && real.file_name().is_some_and(|name| name != "pg_wrapper")
}

/// A pattern with one `*` in one component, newest name first.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![PathBuf::from(pattern)] };
    let (parent, start) = before.rsplit_once('/').unwrap_or(("", before));
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(start))
        .map(|name| PathBuf::from(format!("{parent}/{name}{after}")))
        .collect();
    found.sort();
    found.reverse();
    found
}

/// The lowest major that is enough, its newest minor, the first found of equals.
fn best<T>(found: Vec<T>, at_least: u32, version: impl Fn(&T) -> (u32, &str)) -> Option<T> {
    let rank = |t: &T| {
        let (major, text) = version(t);
        let minor: u32 = text.rsplit('.').next().and_then(|m| m.parse().ok()).unwrap_or(0);
        (major, std::cmp::Reverse(minor))
    };
    found.into_iter().filter(|t| version(t).0 >= at_least).min_by_key(rank)
}

async fn version_of(dir: &Path, program: &str) -> Result<(u32, String)> {
    let mut command = Command::new(dir.join(program));
    command.env_clear().envs(base_env(Some(dir)));
    ask_version(program, command).await
}

async fn ask_version(program: &str, mut command: Command) -> Result<(u32, String)> {
    command.arg("--version");
    let (exit, text) = process::run(program, command, VERSION_BOUND).await?;
    exit.check()?;
    parse_version(&text).ok_or_else(|| Error::new(format!("{program} --version says {:?}", text.trim())))
}

/// `pg_dump (PostgreSQL) 17.11 (Debian 17.11-1)`, `postgres (PostgreSQL) 19beta1`.
pub(super) fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split_once("(PostgreSQL) ")?.1.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::require_auth::ChannelBinding;
    use crate::config::secret::Secret;

    fn connection() -> Connection {
        Connection {
            hosts: vec![("a".into(), 5432), ("/run/pg".into(), 5433)],
            route: Route::Direct,
            user: "u".into(),
            password: Some(Secret::new("s3cret")),
            passfile: None,
            dbname: "db".into(),
            sslmode: SslMode::Prefer,
            names_dbname: true,
            names_sslmode: false,
            require_auth: None,
            channel_binding: ChannelBinding::Prefer,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_millis(1500),
            options: Some("-c work_mem=8MB".into()),
        }
    }

    fn fake(dir: &Path, version: &str, programs: &[&str]) {
        std::fs::create_dir_all(dir).unwrap();
        for program in programs {
            let file = dir.join(program);
            std::fs::write(&file, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    fn behind(prefix: &[&str]) -> Tools {
        let prefix = prefix.iter().map(|word| (*word).to_owned()).collect();
        Tools { major: 17, version: "17.1".into(), server_major: 17, bin_dir: None, prefix, is_inside: false }
    }

    fn words(command: &Command) -> Vec<String> {
        let command = command.as_std();
        std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|w| w.to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn versions_of_all_sorts() {
        assert_eq!(parse_version("pg_dump (PostgreSQL) 17.11\n"), Some((17, "17.11".into())));
        assert_eq!(
            parse_version("postgres (PostgreSQL) 15.19 (Debian 15.19-0+deb12u1)"),
            Some((15, "15.19".into()))
        );
        assert_eq!(parse_version("pg_dump (PostgreSQL) 19beta1"), Some((19, "19beta1".into())));
        assert_eq!(parse_version("perl: warning"), None);
    }

    #[test]
    fn the_servers_major_wins_then_the_next_newer_then_nothing() {
        let found = || vec![(18, "18.6"), (15, "15.1"), (15, "15.19"), (17, "17.2")];
        let pick = |major| best(found(), major, |t| (t.0, t.1)).map(|t| t.1);
        assert_eq!(pick(15), Some("15.19"));
        assert_eq!(pick(16), Some("17.2"));
        assert_eq!(pick(13), Some("15.19"));
        assert_eq!(pick(19), None);
    }

    #[tokio::test]
    async fn bin_dir_alone_counts_and_errors_say_what_to_install() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("bin");
        fake(&dir, "14.2", &["pg_dump"]);
        let tools = find(13, Some(&dir), &[]).await.unwrap();
        assert_eq!((tools.major, tools.version.as_str()), (14, "14.2"));
        let old = find(17, Some(&dir), &[]).await.unwrap_err();
        assert!(old.to_string().contains("which is PostgreSQL 17: 14.2 in"), "{old}");
        assert!(old.hint().unwrap().contains("postgresql-client-17"));
        let none = find(17, Some(tmp.path()), &[]).await.unwrap_err();
        assert!(none.to_string().ends_with("has no pg_dump"), "{none}");
        let server = find_server(14, Some(&dir)).await.unwrap_err();
        assert!(server.to_string().ends_with("has no postgres"), "{server}");
        fake(&dir, "14.2", &["postgres", "initdb", "pg_restore"]);
        assert_eq!(find_server(14, Some(&dir)).await.unwrap().major, 14);
        let newer = find_server(15, Some(&dir)).await.unwrap_err();
        assert!(newer.to_string().contains("needs PostgreSQL 15 or newer, found only 14.2"), "{newer}");
        assert!(newer.hint().unwrap().contains("postgresql-15"));
    }

    #[test]
    fn the_wrapper_that_picks_versions_is_not_a_program() {
        let tmp = tempfile::tempdir().unwrap();
        fake(tmp.path(), "15.1", &["pg_wrapper"]);
        std::os::unix::fs::symlink(tmp.path().join("pg_wrapper"), tmp.path().join("pg_dump")).unwrap();
        assert!(!is_program(&tmp.path().join("pg_dump")));
    }

    #[test]
    fn the_environment_is_the_connection_and_nothing_else() {
        let tools = Tools { bin_dir: Some("/b".into()), ..behind(&[]) };
        let command = tools.command("pg_dump", &connection(), "host=evil", "opsd").unwrap();
        assert_eq!(words(&command), ["/b/pg_dump"]);
        let env: std::collections::BTreeMap<_, _> = command
            .as_std()
            .get_envs()
            .map(|(k, v)| (k.to_string_lossy().into_owned(), v.unwrap().to_string_lossy().into_owned()))
            .collect();
        assert_eq!(env["PGHOST"], "a,/run/pg");
        assert_eq!(env["PGPORT"], "5432,5433");
        assert_eq!(env["PGDATABASE"], "host=evil");
        assert_eq!(env["PGPASSWORD"], "s3cret");
        assert_eq!(env["PGCONNECT_TIMEOUT"], "2");
        assert_eq!(env["LC_ALL"], "C");
        assert!(env["PGOPTIONS"].starts_with("-c work_mem=8MB -c statement_timeout=0"));
        assert!(!env.contains_key("LD_LIBRARY_PATH"));
    }

    /// What the configuration asks for is kept as far as it can be: there is no certificate there to check with.
    #[test]
    fn in_the_servers_container_encryption_is_asked_for_where_it_is_here() {
        let mode = |asked: SslMode| {
            let connection = Connection { sslmode: asked, ..connection() };
            let tools = Tools { is_inside: true, ..behind(&["docker", "exec", "-i", "db"]) };
            let command = tools.command("pg_dump", &connection, "app", "opsd").unwrap();
            let value = command.as_std().get_envs().find(|(name, _)| *name == "PGSSLMODE").unwrap().1;
            value.unwrap().to_str().unwrap().to_owned()
        };
        let kept = [SslMode::Disable, SslMode::Prefer, SslMode::Require].map(mode);
        assert_eq!(kept, ["disable", "prefer", "require"]);
        assert_eq!([SslMode::VerifyCa, SslMode::VerifyFull].map(mode), ["require", "require"]);
    }

    #[test]
    fn a_container_client_gets_names_and_no_values() {
        let prefix = ["docker", "--host", "h", "exec", "-i", "db"];
        let tools = behind(&prefix);
        let command = tools.command("pg_dump", &connection(), "db", "opsd").unwrap();
        let words = words(&command);
        assert_eq!(words[..4], ["docker", "--host", "h", "exec"]);
        assert_eq!(words[words.len() - 3..], ["-i", "db", "pg_dump"]);
        assert!(words.windows(2).any(|w| w == ["-e", "PGPASSWORD"]));
        let run = behind(&["podman", "run", "--rm", "-i", "--network", "site", "postgres:17"]);
        let of_run = self::words(&run.command("pg_dump", &connection(), "db", "opsd").unwrap());
        assert_eq!(of_run[..2], ["podman", "run"]);
        assert!(of_run.windows(2).any(|w| w == ["-e", "PGPASSWORD"]), "{of_run:?}");
        assert_eq!(of_run[of_run.len() - 2..], ["postgres:17", "pg_dump"]);
        assert!(!of_run.iter().any(|w| w.contains("s3cret")));
        assert!(!words.iter().any(|w| w.contains("s3cret")));
        let passed = command.as_std().get_envs().any(|(k, v)| k == "PGPASSWORD" && v.is_some());
        assert!(passed);
    }

    #[test]
    fn other_prefixes_are_refused_a_password() {
        let sudo = behind(&["sudo", "-u", "postgres"]);
        let refused = sudo.command("pg_dump", &connection(), "db", "opsd").unwrap_err();
        assert!(!refused.to_string().contains("s3cret"));
        let open = Connection { password: None, ..connection() };
        let words = words(&sudo.command("pg_dump", &open, "db", "opsd").unwrap());
        assert_eq!(words[..4], ["sudo", "-u", "postgres", "env"]);
        assert!(behind(&["ssh", "h"]).command("pg_dump", &open, "db", "opsd").is_err());
        assert!(behind(&["docker", "compose", "exec", "db"]).command("x", &connection(), "", "").is_err());
    }

    #[tokio::test]
    async fn a_prefix_leads_to_its_own_pg_dump() {
        let tmp = tempfile::tempdir().unwrap();
        fake(tmp.path(), "16.4", &["pg_dump"]);
        let tools = find(16, Some(tmp.path()), &["/usr/bin/nice".to_owned()]).await.unwrap();
        assert_eq!(tools.version, "16.4");
    }
}
