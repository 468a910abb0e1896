//! age recipients and identities, minisign public keys, and the files that hold secret keys.
//!
//! Recipients are X25519 (`age1…`) and SSH (`ssh-ed25519`, `ssh-rsa`) public keys. A file with a
//! secret key is refused when others may read it, as ssh does. Deliberately absent: passphrases and
//! plugins; a rehearsal at night has nobody who could type or touch anything.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use age::secrecy::ExposeSecret;
use age::ssh;
use zeroize::Zeroizing;

use super::secret::Secret;
use crate::error::{Context, Error, Result};
use crate::regular_file;

/// Files larger than this are something else than a secret.
const MAX_SECRET_FILE: u64 = 1 << 20;

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

/// Most recipients of a repository: the header of an object for so many with the largest SSH keys is as
/// large as a reader accepts.
pub const MAX_RECIPIENTS: usize = 20;

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

/// Reads a file that holds a secret; refuses it when anybody but its owner may.
pub fn read_secret_file(path: &Path) -> Result<Secret> {
    let on = || format!("secret file {}", path.display());
    let mut file = regular_file::open_secret(path).with_context(on)?;
    // What outgrew its memory would leave a copy behind.
    let room = file.metadata().map_or(0, |meta| meta.len()).min(MAX_SECRET_FILE) + 1;
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(room).unwrap_or(0)));
    let read = (&mut file).take(MAX_SECRET_FILE + 1).read_to_string(&mut text);
    read.map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => Error::usage("not a text file"),
        _ => e.into(),
    })
    .with_context(on)?;
    if text.len() as u64 > MAX_SECRET_FILE {
        return Err(Error::usage("larger than 1 MiB").context(on()));
    }
    Ok(Secret::new(std::mem::take(&mut *text)))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::{FileType, Mode};

    use super::*;
    use crate::error::Kind;

    fn file_with(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("tempfile");
        std::fs::write(file.path(), text).expect("write");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("chmod");
        file
    }

    fn new_key() -> (Secret, String) {
        generate_identity(chrono::DateTime::UNIX_EPOCH)
    }

    fn seal(recipients: &[String], text: &[u8]) -> Vec<u8> {
        let keys = super::recipients(recipients).expect("recipients");
        let encryptor = age::Encryptor::with_recipients(keys.iter().map(|k| &**k as &dyn age::Recipient))
            .expect("encryptor");
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).expect("wrap");
        writer.write_all(text).expect("write");
        writer.finish().expect("finish");
        sealed
    }

    fn open(identities: &Identities, sealed: &[u8]) -> Option<Vec<u8>> {
        let decryptor = age::Decryptor::new(sealed).expect("header");
        let identities = identities.iter().map(|i| &**i as &dyn age::Identity);
        let mut text = Vec::new();
        decryptor.decrypt(identities).ok()?.read_to_end(&mut text).ok()?;
        Some(text)
    }

    #[test]
    fn any_identity_of_a_file_opens_what_its_recipient_sealed() {
        let ((one, to_one), (two, to_two), (_, to_other)) = (new_key(), new_key(), new_key());
        let file = file_with(&format!("{}\r\n\n  # second\n{}", one.expose(), two.expose()), 0o600);
        let own = identities(file.path()).expect("identities");
        assert_eq!(own.len(), 2);
        assert_eq!(identity_recipients(file.path()).expect("recipients"), [to_one.clone(), to_two.clone()]);
        for recipient in [to_one, to_two] {
            assert_eq!(
                open(&own, &seal(&[recipient, to_other.clone()], b"text")).as_deref(),
                Some(&b"text"[..])
            );
        }
        assert_eq!(open(&own, &seal(&[to_other], b"text")), None);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let (key, _) = new_key();
        for mode in [0o604, 0o640, 0o644, 0o620, 0o601] {
            let file = file_with(key.expose(), mode);
            let error = identities(file.path()).err().expect("refused");
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
            assert_eq!(error.hint(), Some(format!("chmod 600 {}", file.path().display()).as_str()));
        }
        assert!(identities(file_with(key.expose(), 0o400).path()).is_ok());
    }

    #[test]
    fn what_is_no_identity_is_refused_without_being_shown() {
        for (text, expected) in [
            ("", "no identity in it"),
            ("# only a comment\n", "no identity in it"),
            ("# c\nAGE-SECRET-KEY-1S3CRET", "line 2 is no age identity"),
            ("AGE-PLUGIN-YUBIKEY-1S3CRET", "line 1 is an identity of an age plugin"),
            ("age-encryption.org/v1\n-> scrypt S3CRET", "itself encrypted with age"),
            ("-----BEGIN AGE ENCRYPTED FILE-----\nS3CRET", "itself encrypted with age"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nS3CRET", "not a readable SSH private key"),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nS3CRET",
                "not a readable SSH private key",
            ),
        ] {
            let error = identities(file_with(text, 0o600).path()).err().expect(text);
            let shown = format!("{error:?}");
            assert!(shown.contains(expected) && !shown.contains("S3CRET"), "{shown}");
        }
        let binary = file_with("", 0o600);
        std::fs::write(binary.path(), [0xff, 0xfe]).expect("write");
        assert!(identities(binary.path()).err().expect("binary").to_string().contains("not a text file"));
    }

    #[test]
    fn a_pipe_for_a_secret_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
        for path in [dir.path(), &pipe] {
            let error = identities(path).err().expect("refused");
            assert!(error.to_string().contains("not a regular file"), "{error}");
            assert_eq!(error.kind(), Kind::Usage);
        }
    }

    #[test]
    fn recipients_are_told_apart_and_secrets_are_not_shown() {
        let (_, good) = new_key();
        assert!(matches!(parse_recipient(&format!(" {good} \n")), Ok(Recipient::X25519(_))));
        let mut damaged = good.clone();
        damaged.pop();
        damaged.push('b');
        for (text, expected) in [
            (damaged.as_str(), "checksum"),
            ("age1yubikey1qwertz", "plugins are not supported"),
            ("AGE-SECRET-KEY-1S3CRET", "secret identity, not a recipient"),
            ("age-secret-key-1s3cret", "secret identity, not a recipient"),
            ("sk-ssh-ed25519@openssh.com AAAA", "not a valid SSH public key"),
            ("S3CRET", "not an age or SSH public key"),
            ("", "not an age or SSH public key"),
        ] {
            let error = parse_recipient(text).err().expect(text);
            let shown = format!("{error:?}");
            assert!(shown.contains(expected) && !shown.to_uppercase().contains("S3CRET"), "{text}: {shown}");
        }
    }

    #[test]
    fn keys_are_created_privately_and_never_overwritten() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("key");
        create_secret_file(&path, &Secret::new("first")).expect("create");
        assert_eq!(std::fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o600);
        let error = create_secret_file(&path, &Secret::new("second")).expect_err("exists");
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(read_secret_file(&path).expect("read").expose(), "first");
        // Not even through a link that leads nowhere.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("target"), &link).expect("symlink");
        assert!(create_secret_file(&link, &Secret::new("x")).is_err());
    }
}
