//! `opsd keygen`: an age identity, or a minisign key pair.

use std::path::PathBuf;

use super::output;
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
}

/// Makes the key. With a file, the public half goes to stdout; without, the secret half does.
pub fn run(args: Args) -> Result<()> {
    if args.sign { signing_key(args.output) } else { identity(args.output) }
}

fn identity(file: Option<PathBuf>) -> Result<()> {
    let (secret, recipient) = keys::generate_identity(chrono::Utc::now());
    match file {
        Some(file) => {
            keys::create_secret_file(&file, &secret)?;
            output::text(recipient)
        }
        None => {
            output::say(format!("public key: {recipient}"));
            output::text(secret.expose())
        }
    }
}

fn signing_key(file: Option<PathBuf>) -> Result<()> {
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
    output::text(pair.public)
}
