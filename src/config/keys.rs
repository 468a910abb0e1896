//! age recipients and identities, minisign public keys, and the files that hold secret keys.
//!
//! Recipients are X25519 (`age1…`) and SSH (`ssh-ed25519`, `ssh-rsa`) public keys. A file with a
//! secret key is refused when others may read it, as ssh does. Deliberately absent: passphrases and
//! plugins; a rehearsal at night has nobody who could type or touch anything.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use age::secrecy::ExposeSecret;
use age::ssh;

use super::secret::Secret;
use crate::error::{Context, Error, Result};

/// Key files larger than this are something else.
const MAX_KEY_FILE: u64 = 1 << 20;

/// A public key that sets can be encrypted to.
#[derive(Clone)]
pub enum Recipient {
    /// `age1…`
    X25519(age::x25519::Recipient),
    /// `ssh-ed25519 …` or `ssh-rsa …`
    Ssh(ssh::Recipient),
}

impl Recipient {
    /// The key without a comment; equal keys give equal texts.
    pub fn canonical(&self) -> String {
        match self {
            Recipient::X25519(key) => key.to_string(),
            Recipient::Ssh(key) => key.to_string(),
        }
    }
}

/// What opens sets; may move to a blocking thread.
pub type Identities = Vec<Box<dyn age::Identity + Send + Sync>>;

/// Reads one recipient. The error never repeats the text: it may be a secret key by mistake.
pub fn parse_recipient(text: &str) -> Result<Recipient> {
    let text = text.trim();
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
        return Err(Error::usage("this is a secret identity, not a recipient").with_hint(
            "print its recipient with `age-keygen -y FILE`, and replace the key: it has leaked here",
        ));
    }
    if text.starts_with("ssh-") || text.starts_with("sk-") || text.starts_with("ecdsa-") {
        let reason = match text.parse::<ssh::Recipient>() {
            Ok(key) => return Ok(Recipient::Ssh(key)),
            Err(ssh::ParseRecipientKeyError::RsaModulusTooLarge) => "RSA key is larger than 4096 bits",
            Err(ssh::ParseRecipientKeyError::RsaModulusTooSmall) => "RSA key is smaller than 2048 bits",
            Err(ssh::ParseRecipientKeyError::Unsupported(_) | ssh::ParseRecipientKeyError::Ignore) => {
                "this kind of SSH key cannot encrypt"
            }
            Err(_) => "not a valid SSH public key",
        };
        return Err(Error::usage(reason).with_hint("use an ssh-ed25519 or ssh-rsa public key, or age1…"));
    }
    if text.starts_with("age1") {
        if let Ok(key) = text.parse::<age::x25519::Recipient>() {
            return Ok(Recipient::X25519(key));
        }
        let plugin = text.rfind('1').is_some_and(|at| at > 3);
        return Err(if plugin {
            Error::usage("keys of age plugins are not supported")
        } else {
            Error::usage("not a valid age public key: the checksum does not match")
        }
        .with_hint("copy the whole line that `opsd keygen` printed, age1 and 58 letters"));
    }
    Err(Error::usage("not an age or SSH public key")
        .with_hint("recipients start with age1, ssh-ed25519 or ssh-rsa; `opsd keygen` makes one"))
}

/// Recipients as age wants them.
pub fn recipients(texts: &[String]) -> Result<Vec<Box<dyn age::Recipient + Send + Sync>>> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| -> Result<Box<dyn age::Recipient + Send + Sync>> {
            Ok(match parse_recipient(text).with_context(|| format!("recipient {}", index + 1))? {
                Recipient::X25519(key) => Box::new(key),
                Recipient::Ssh(key) => Box::new(key),
            })
        })
        .collect()
}

/// Checks a minisign public key (`RW…`).
pub fn parse_trusted_key(text: &str) -> Result<minisign::PublicKey> {
    minisign::PublicKey::from_base64(text.trim()).map_err(|_| {
        Error::usage("not a minisign public key")
            .with_hint("it is the line of 56 characters that starts with RW; `opsd keygen --sign` prints it")
    })
}

/// The identities in a file: age's own format, or one OpenSSH private key without a passphrase.
pub fn identities(path: &Path) -> Result<Identities> {
    let text = read_secret_file(path)?;
    parse_identities(text.expose()).with_context(|| format!("identity file {}", path.display()))
}

/// The recipients that belong to the identities in a file, in canonical form.
pub fn identity_recipients(path: &Path) -> Result<Vec<String>> {
    let text = read_secret_file(path)?;
    let text = text.expose();
    if text.trim_start().starts_with("-----BEGIN ") {
        let key = ssh_identity(text.trim_start())?;
        return Ok(ssh::Recipient::try_from(key).map(|r| r.to_string()).into_iter().collect());
    }
    let identities = text.lines().filter_map(|line| line.trim().parse::<age::x25519::Identity>().ok());
    Ok(identities.map(|identity| identity.to_public().to_string()).collect())
}

fn parse_identities(text: &str) -> Result<Identities> {
    let text = text.trim_start_matches('\u{feff}');
    let start = text.trim_start();
    if start.starts_with("age-encryption.org/") || start.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") {
        return Err(Error::usage("the file is itself encrypted with age")
            .with_hint("opsd has nobody to ask for a passphrase: decrypt it into a file with mode 0600"));
    }
    if start.starts_with("-----BEGIN ") {
        return Ok(vec![Box::new(ssh_identity(start)?)]);
    }
    let mut found: Identities = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let identity = line.parse::<age::x25519::Identity>().map_err(|_| {
            // The line itself may be most of a secret key.
            let message = if line.to_ascii_uppercase().starts_with("AGE-PLUGIN-") {
                format!("line {} is an identity of an age plugin, which is not supported", index + 1)
            } else {
                format!("line {} is no age identity", index + 1)
            };
            Error::usage(message).with_hint("identities start with AGE-SECRET-KEY-1")
        })?;
        found.push(Box::new(identity));
    }
    if found.is_empty() {
        return Err(Error::usage("no identity in it").with_hint("`opsd keygen -o FILE` makes one"));
    }
    Ok(found)
}

fn ssh_identity(text: &str) -> Result<ssh::Identity> {
    let identity = ssh::Identity::from_buffer(text.as_bytes(), None)
        .map_err(|_| Error::usage("not a readable SSH private key"))?;
    let message = match &identity {
        ssh::Identity::Unencrypted(_) => return Ok(identity),
        ssh::Identity::Encrypted(_) => "the SSH key is protected by a passphrase",
        ssh::Identity::Unsupported(unsupported) => match unsupported {
            ssh::UnsupportedKey::EncryptedPem | ssh::UnsupportedKey::EncryptedSsh(_) => {
                "the SSH key is protected by a passphrase"
            }
            ssh::UnsupportedKey::Hardware(_) => "the SSH key lives on a hardware token",
            ssh::UnsupportedKey::Type(_) => {
                "this kind of SSH key cannot decrypt; ssh-ed25519 and ssh-rsa can"
            }
        },
    };
    Err(Error::usage(message)
        .with_hint("opsd has nobody to ask: use an age identity (`opsd keygen`) or a key without passphrase"))
}

/// A new age identity: the text of its file, and its recipient.
pub fn generate_identity(now: chrono::DateTime<chrono::Utc>) -> (Secret, String) {
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let text = format!(
        "# created: {}\n# public key: {recipient}\n{}\n",
        now.format("%Y-%m-%dT%H:%M:%SZ"),
        identity.to_string().expose_secret(),
    );
    (Secret::new(text), recipient)
}

/// Reads a file that holds a secret key; refuses it when anybody but its owner may.
pub fn read_secret_file(path: &Path) -> Result<Secret> {
    let on = || format!("key file {}", path.display());
    let mut file = File::open(path).with_context(on)?;
    let meta = file.metadata().with_context(on)?;
    if !meta.is_file() {
        return Err(Error::usage("not a regular file").context(on()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(Error::usage(format!("mode {:04o} lets others read it", meta.mode() & 0o7777))
            .context(on())
            .with_hint(format!("chmod 600 {}", path.display())));
    }
    let mut text = String::new();
    let read = (&mut file).take(MAX_KEY_FILE + 1).read_to_string(&mut text);
    read.map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::usage("not a text file"),
        _ => e.into(),
    })
    .with_context(on)?;
    if text.len() as u64 > MAX_KEY_FILE {
        return Err(Error::usage("too large to be a key").context(on()));
    }
    Ok(Secret::new(text))
}

/// Writes a secret key to a new file with mode 0600; never over an existing one.
pub fn create_secret_file(path: &Path, contents: &Secret) -> Result<()> {
    create_new(path, contents.expose(), 0o600)
}

/// Writes a public key to a new file with mode 0644; never over an existing one.
pub fn create_public_file(path: &Path, contents: &str) -> Result<()> {
    create_new(path, contents, 0o644)
}

fn create_new(path: &Path, contents: &str, mode: u32) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|e| {
        let error = match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::usage("it exists already, and keys are never overwritten")
                    .with_hint("choose another name, or move the old file away if you are sure")
            }
            _ => e.into(),
        };
        error.context(format!("cannot create {}", path.display()))
    })?;
    file.write_all(contents.as_bytes())
        .and_then(|()| file.sync_all())
        .inspect_err(|_| {
            // Half a key must not look like one.
            let _ = std::fs::remove_file(path);
        })
        .with_context(|| format!("cannot write {}", path.display()))
}
