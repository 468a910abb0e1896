//! `opsd config`: a starter file, every mistake at once, the resolved settings.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Advice, Global, output};
use crate::config::finding::{Finding, mistakes_error};
use crate::config::monitoring::SecretSource;
use crate::config::raw::{Parsed, SecretFile};
use crate::config::{Config, Connection, Encryption, Location, keys, load};
use crate::error::{Context, Error, Result};
use crate::postgres::reach::reach;
use crate::postgres::scratch;
use crate::set::signature;
use crate::shutdown::Shutdown;
use crate::{pem, regular_file};

mod monitors;
mod show;

pub(super) use show::exact_duration;

/// A commented configuration to start from; `CHANGE-ME` stands wherever nobody can guess.
const STARTER: &str = include_str!("config/starter.toml");

/// Arguments of `opsd config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Write a commented starter file
    #[command(after_help = "Example:\n  opsd config init /etc/opsd/opsd.toml")]
    Init {
        /// Where to; an existing file is never overwritten, and - means stdout
        #[arg(default_value = "opsd.toml")]
        path: PathBuf,
    },
    /// Report every mistake in the configuration
    #[command(after_help = "Example:\n  opsd config check --config opsd.toml")]
    Check {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Show the resolved configuration, secrets masked
    #[command(after_help = "Example:\n  opsd config show --json | jq .backup")]
    Show {
        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
pub async fn run(args: Args, global: &Global, shutdown: &Shutdown) -> Result<()> {
    match args.action {
        Action::Init { path } => init(&path),
        Action::Check { json } => check(global, json, shutdown).await,
        Action::Show { json } => {
            global.with_config(Advice::LeftOut, shutdown, async |config| show::run(&config, json)).await
        }
    }
}

fn init(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return output::text(STARTER);
    }
    // Not for everybody's eyes: sooner or later somebody writes a password into it.
    let created = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
    let mut file = created.map_err(|e| {
        let error = match e.kind() {
            ErrorKind::AlreadyExists => {
                Error::usage("it exists already").with_hint("choose another name; init never overwrites")
            }
            ErrorKind::NotFound => {
                Error::usage(e).with_hint("create the directory first, with `install -d -m 750 DIR`")
            }
            _ => e.into(),
        };
        error.context(format!("cannot create {}", path.display()))
    })?;
    file.write_all(STARTER.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    output::say(format!(
        "wrote {0}; fill in what says CHANGE-ME, then run: opsd config check --config {0}",
        path.display()
    ));
    Ok(())
}

async fn check(global: &Global, json: bool, shutdown: &Shutdown) -> Result<()> {
    let (path, mut parsed) = global.read_config(shutdown, load::read).await?;
    if let Some(config) = &parsed.config {
        let (mistakes, warnings) = secret_files(&path, &config.encryption, &parsed.secret_files);
        parsed.mistakes.extend(mistakes);
        parsed.warnings.extend(warnings);
        parsed.warnings.extend(surroundings(&path, config));
        if config.encryption.trusted.is_nobody() && config.repository.location != Location::Nowhere {
            parsed.warnings.push(trusts_nobody(&path));
        }
    }
    let (ways, lost) = match &parsed.config {
        Some(config) => shutdown.guard(async { Ok(ways(&path, config).await) }).await?,
        None => (BTreeMap::new(), Vec::new()),
    };
    parsed.warnings.extend(lost);
    let Parsed { config, mistakes, warnings, .. } = parsed;
    if json {
        output::json(&json!({
            "path": path.to_string_lossy(),
            "valid": mistakes.is_empty(),
            "ways": ways,
            "mistakes": mistakes,
            "warnings": warnings,
        }))?;
    } else if !global.quiet {
        for warning in &warnings {
            output::note("warning: ", warning.to_string());
        }
    }
    match config.filter(|_| mistakes.is_empty()) {
        None => Err(mistakes_error(&path, &mistakes)),
        Some(_) if json => Ok(()),
        Some(config) => output::text(summary(&config, &ways, global.config.is_some())),
    }
}

/// The ways to servers in containers, and the containers that none was found to. Those may run elsewhere, or later.
async fn ways(path: &Path, config: &Config) -> (BTreeMap<String, String>, Vec<Finding>) {
    let (mut ways, mut lost) = (BTreeMap::new(), Vec::new());
    for (name, server) in config.postgres.iter().filter(|(_, server)| server.container.is_some()) {
        match reach(server).await {
            Ok(reached) => ways.extend(reached.way.map(|way| (name.clone(), way))),
            Err(error) => lost.push(finding(path, format!("postgres.{name}"), &error)),
        }
    }
    (ways, lost)
}

fn finding(path: &Path, key: String, error: &Error) -> Finding {
    Finding {
        key,
        path: path.to_path_buf(),
        line: None,
        message: error.to_string(),
        hint: error.hint().map(str::to_owned),
        is_advice: false,
    }
}

/// What the configuration names and a run would miss on this host: certificates, the place of rehearsals. The
/// check may run elsewhere, so none of it is a mistake.
fn surroundings(path: &Path, config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, server) in &config.postgres {
        let Connection { sslrootcert, sslcert, .. } = &server.connection;
        let root = sslrootcert.as_deref().filter(|root| *root != Path::new("system"));
        for (file, what) in [(root, "root certificate"), (sslcert.as_deref(), "client certificate")] {
            if let Some(Err(error)) = file.map(|file| pem::trusted_certificates(file, what)) {
                found.push(finding(path, format!("postgres.{name}.url"), &error));
            }
        }
    }
    // Whoever cannot decrypt rehearses nothing.
    let rehearsing = config.encryption.identity_file.as_ref().map(|_| &config.backup);
    for (name, job) in rehearsing.into_iter().flatten() {
        if let Err(error) = scratch::usable(&job.verify.scratch_dir) {
            found.push(finding(path, format!("backup.{name}.verify.scratch_dir"), &error));
        }
    }
    found
}

/// Nothing else about a repository is worth much then.
fn trusts_nobody(path: &Path) -> Finding {
    Finding {
        key: "encryption.trusted_keys".into(),
        path: path.to_path_buf(),
        line: None,
        message:
            "nobody is trusted: whoever can write to the repository can plant a backup, which runs code \
                  where it is restored"
                .into(),
        hint: Some("`opsd keygen --sign` makes a key for sign_key_file; its public half goes here".into()),
        is_advice: false,
    }
}

/// What it says, what that is worth, and what tells more.
fn summary(config: &Config, ways: &BTreeMap<String, String>, is_named: bool) -> String {
    let names = |what: &str, names: Vec<&String>| match names.as_slice() {
        [] => format!("no {what}"),
        names => {
            let list: Vec<&str> = names.iter().map(|n| n.as_str()).collect();
            format!("{what} {}", list.join(", "))
        }
    };
    let likewise = if is_named { " (same --config)" } else { "" };
    let mut said = vec![
        format!("site {}", config.site),
        names("postgres", config.postgres.keys().collect()),
        names("backup", config.backup.keys().collect()),
    ];
    if !config.monitor.is_empty() {
        said.push(names("monitor", config.monitor.keys().collect()));
    }
    let next = match (config.backup.is_empty(), config.monitor.is_empty()) {
        (true, false) => "opsd status",
        _ => "opsd repository probe, then opsd backup --dry-run",
    };
    let mut lines = vec![output::entry("", format!("{}: ok: {}", config.path.display(), said.join(", ")))];
    lines.extend(ways.iter().map(|(name, way)| output::entry("  ", format!("postgres {name}: {way}"))));
    let looked = match config.postgres.values().any(|server| server.container.is_some()) {
        false => "only the file was read, and nothing was connected to",
        true => "the file was read, and containers were looked for; no server was asked",
    };
    lines.extend([output::entry("  ", looked), output::entry("  next: ", format!("{next}{likewise}"))]);
    lines.join("\n")
}

/// Mistakes and warnings about the files with secrets. A file that this user cannot open is only a
/// warning: the check may run where the secrets are not.
fn secret_files(path: &Path, encryption: &Encryption, files: &[SecretFile]) -> (Vec<Finding>, Vec<Finding>) {
    let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
    for SecretFile { key, line, path: file } in files {
        let finding = |message: String, hint: Option<&str>| Finding {
            key: key.clone(),
            path: path.to_path_buf(),
            line: Some(*line),
            message,
            hint: hint.map(str::to_string),
            is_advice: false,
        };
        if let Err(error) = regular_file::open(file)
            && error.kind() != ErrorKind::InvalidInput
        {
            warnings.push(finding(format!("cannot open {}: {error}", file.display()), None));
            continue;
        }
        let (read, hint) = match key.as_str() {
            "encryption.identity_file" => (identity(file, encryption), "`opsd keygen -o FILE` makes one"),
            "encryption.sign_key_file" => {
                (signing_key(file, encryption), "`opsd keygen --sign -o FILE` makes one")
            }
            key if key.ends_with(".key_file") || key.ends_with(".url") => {
                (pem::private_key(file).map(|_| None), "a private key in PEM, not encrypted")
            }
            _ => (SecretSource::File(file.clone()).read().map(|_| None), "write the secret on its one line"),
        };
        match read {
            Ok(None) => {}
            Ok(Some(odd)) => warnings.push(finding(odd.into(), None)),
            Err(error) => {
                mistakes.push(finding(error.to_string(), Some(error.hint().unwrap_or(hint))));
            }
        }
    }
    (mistakes, warnings)
}

/// What is odd about the identity.
fn identity(file: &Path, encryption: &Encryption) -> Result<Option<&'static str>> {
    keys::identities(file)?;
    let own = keys::identity_recipients(file)?;
    let fits = encryption
        .recipients
        .iter()
        .any(|text| keys::parse_recipient(text).is_ok_and(|key| own.contains(&key.canonical())));
    Ok((!fits && !encryption.recipients.is_empty())
        .then_some("its identity belongs to none of the recipients"))
}

/// What is odd about the signing key.
fn signing_key(file: &Path, encryption: &Encryption) -> Result<Option<&'static str>> {
    let public = signature::public_key(file)?;
    let trusted = &encryption.trusted;
    let is_known = trusted.backups.contains(&public) || trusted.verifications.contains(&public);
    Ok((!trusted.is_nobody() && !is_known).then_some(
        "its public key is in none of the lists of trusted keys, so this host refuses what it signs itself",
    ))
}
