//! `opsd keygen`: an age identity, or a minisign key pair.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Global, output};
use crate::config::keys;
use crate::error::{Error, Result};
use crate::set::signature;

/// Arguments of `opsd keygen`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  opsd keygen -o /etc/opsd/identity.txt\n  opsd keygen --sign -o /etc/opsd/sign.key"
)]
pub struct Args {
    /// Write the secret key to a new file with mode 0600 instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make a minisign key pair; the public key goes to FILE.pub as well
    #[arg(long)]
    sign: bool,
    /// Print what was made as one JSON document, without the secret
    #[arg(long, requires = "output")]
    json: bool,
}

#[derive(Serialize)]
struct Made<'a> {
    /// `age` or `minisign`.
    kind: &'static str,
    public_key: &'a str,
    secret_key_file: &'a Path,
}

fn print(made: &Made, json: bool) -> Result<()> {
    if json { output::json(made) } else { output::text(made.public_key) }
}

/// Makes the key. With a file, the public half goes to stdout; without, the secret half does.
pub fn run(args: Args, global: &Global) -> Result<()> {
    if args.sign {
        return signing_key(args.output, args.json);
    }
    identity(args.output, args.json)?;
    if global.is_watched() {
        output::note("note: ", ONE_ALONE);
    }
    Ok(())
}

/// What `config check` warns of, said where it is still easy to do.
const ONE_ALONE: &str = "whoever loses the only identity loses every backup: make a second one, keep it \
                         elsewhere, and name both as recipients";

fn identity(file: Option<PathBuf>, json: bool) -> Result<()> {
    let (secret, recipient) = keys::generate_identity(chrono::Utc::now());
    match file {
        Some(file) => {
            keys::create_secret_file(&file, &secret)?;
            print(&Made { kind: "age", public_key: &recipient, secret_key_file: &file }, json)
        }
        None => {
            output::say(format!("public key: {recipient}"));
            output::text(secret.expose())
        }
    }
}

fn signing_key(file: Option<PathBuf>, json: bool) -> Result<()> {
    let pair = signature::generate()?;
    let Some(file) = file else {
        output::say(format!("public key: {}", pair.public));
        return output::text(pair.secret_box.expose());
    };
    let mut public_file = file.clone().into_os_string();
    public_file.push(".pub");
    let public_file = PathBuf::from(public_file);
    if public_file.exists() {
        return Err(Error::usage("it exists already, and keys are never overwritten")
            .context(format!("cannot create {}", public_file.display()))
            .with_hint("choose another name, or move the old file away if you are sure"));
    }
    keys::create_secret_file(&file, &pair.secret_box)?;
    keys::create_public_file(&public_file, &pair.public_box)?;
    print(&Made { kind: "minisign", public_key: &pair.public, secret_key_file: &file }, json)
}
