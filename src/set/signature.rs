//! minisign signatures of manifests and verification records.
//!
//! The secret key has no passphrase (a backup at night has nobody to ask); its file's mode protects
//! it. Signatures are what `minisign -Vm FILE -P KEY` verifies. Deliberately absent: the legacy
//! algorithm without a hash, which minisign itself no longer writes.

use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, SecretKeyBox, SignatureBox};
use zeroize::Zeroizing;

use crate::config::keys::{parse_trusted_key, read_secret_file};
use crate::config::secret::Secret;
use crate::error::{Context, Error, Result};

/// A new signing key.
#[derive(Debug)]
pub struct SigningKey {
    /// Content of the secret key's file.
    pub secret_box: Secret,
    /// Content of the public key's file, as `minisign -p` reads it.
    pub public_box: String,
    /// The public key alone, `RW…`, for `trusted_keys` and `minisign -P`.
    pub public: String,
}

/// Makes a key pair.
pub fn generate() -> Result<SigningKey> {
    let failed = |e: minisign::PError| Error::new(e).context("cannot make a signing key");
    let pair = KeyPair::generate_unencrypted_keypair().map_err(failed)?;
    let secret_box = pair.sk.to_box(Some("opsd signing key, keep secret")).map_err(failed)?;
    Ok(SigningKey {
        secret_box: Secret::new(secret_box.into_string()),
        public_box: pair.pk.to_box().map_err(failed)?.into_string(),
        public: pair.pk.to_base64(),
    })
}

/// The public key (`RW…`) that belongs to a secret key's file.
pub fn public_key(secret_key_file: &Path) -> Result<String> {
    Ok(public_half(&secret_key(secret_key_file)?, secret_key_file)?.to_base64())
}

fn public_half(secret: &minisign::SecretKey, file: &Path) -> Result<minisign::PublicKey> {
    minisign::PublicKey::from_secret_key(secret)
        .map_err(|e| Error::usage(e).context(format!("signing key {}", file.display())))
}

/// Signs `bytes`; the trusted comment is signed too and must be one line.
pub fn sign(secret_key_file: &Path, bytes: &[u8], trusted_comment: &str) -> Result<String> {
    // The format is made of lines, and readers trim them.
    if trusted_comment.trim() != trusted_comment || trusted_comment.contains(char::is_control) {
        return Err(Error::new("trusted comment of a signature must be one trimmed line"));
    }
    let secret = secret_key(secret_key_file)?;
    let public = public_half(&secret, secret_key_file)?;
    // Given the public half, minisign verifies what it has just signed: a damaged key shows here.
    let signed = minisign::sign(
        Some(&public),
        &secret,
        Cursor::new(bytes),
        Some(trusted_comment),
        Some("signed by opsd"),
    );
    let signature = signed.map_err(|e| Error::new(e).context("cannot sign"))?;
    Ok(signature.into_string())
}

/// What a signature is for. The comment that is signed with the document says it, and of which set it is, so
/// that a signature of one kind is never taken for that of another, whatever the same key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A set's manifest.
    Manifest,
    /// The record of a rehearsal.
    Verification,
}

impl Purpose {
    /// The comment that is signed.
    pub fn comment(self, site: &str, job: &str, id: &str) -> String {
        let what = match self {
            Purpose::Manifest => "manifest",
            Purpose::Verification => "verification",
        };
        format!("opsd {what} {site}/{job}/{id}")
    }

    /// What the keys that may sign it are listed in.
    pub fn lists(self) -> &'static str {
        match self {
            Purpose::Manifest => "trusted_keys (or trusted_backup_keys)",
            Purpose::Verification => "trusted_keys (or trusted_verify_keys)",
        }
    }
}

/// Characters of a public key (`RW…`) that its id alone decides: two bytes of algorithm and eight of id.
const BEGINNING: usize = 13;

/// Which key signed, as its public key begins in a configuration: `RWQf6LRCGA9i5…`. Nothing is checked: whoever
/// wrote the signature may have written the id of any key.
pub fn claimed_key(signature: &str) -> Option<String> {
    parse(signature).ok().map(|signature| beginning(signature.keynum()))
}

fn beginning(keynum: &[u8]) -> String {
    let text = STANDARD.encode([b"Ed", keynum].concat());
    format!("{}…", text.get(..BEGINNING).unwrap_or(&text))
}

/// Checks that one of the trusted keys signed exactly these bytes, with this comment.
pub fn verify(trusted_keys: &[String], comment: &str, bytes: &[u8], signature: &str) -> Result<()> {
    let signature = parse(signature).map_err(|why| Error::differs(why).context("signature is damaged"))?;
    let keys = trusted_keys.iter().map(|k| parse_trusted_key(k)).collect::<Result<Vec<_>>>()?;
    let by_signer: Vec<_> = keys.iter().filter(|k| k.keynum() == signature.keynum()).collect();
    if by_signer.is_empty() {
        return Err(Error::refused(format!(
            "signed with key {}, which is not among the trusted keys",
            beginning(signature.keynum())
        )));
    }
    // Key ids are not secret and not unique: any of the keys with this id may be the one.
    let fits = by_signer
        .iter()
        .any(|key| minisign::verify(key, &signature, Cursor::new(bytes), true, false, false).is_ok());
    if !fits {
        let what = format!("signature by key {} does not fit the content", beginning(signature.keynum()));
        return Err(Error::differs(what).with_hint("the content or the signature was changed after signing"));
    }
    let signed = signature.trusted_comment().map_err(Error::differs)?;
    if signed != comment {
        return Err(Error::differs(format!("signature was made for {signed:?}, not for {comment:?}"))
            .with_hint("a signature was moved here from another document"));
    }
    Ok(())
}

/// Whether a signature's text is as opsd, or minisign without being told otherwise, writes it.
/// [`verify`] does not care for the first comment and for white space; a change of those is no forgery,
/// but it is damage.
pub fn is_as_written(text: &str) -> bool {
    let lines: Vec<&str> = text.split('\n').collect();
    let [comment, signature, trusted, global, ""] = lines[..] else { return false };
    let known = ["signed by opsd", "signature from minisign secret key"];
    let is_clean = |line: &&str| line.trim() == *line && !line.contains(char::is_control);
    comment.strip_prefix("untrusted comment: ").is_some_and(|c| known.contains(&c))
        && trusted.starts_with("trusted comment:")
        && [signature, global].iter().all(is_clean)
}

/// Checks lengths before minisign's parser, which takes a global signature of any length and panics
/// on a short one when it verifies.
fn parse(text: &str) -> Result<SignatureBox, String> {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() != 4 {
        return Err(format!("{} lines instead of 4", lines.len()));
    }
    for (line, expected) in [(1, 74), (3, 64)] {
        let decoded = STANDARD.decode(lines[line].trim());
        if decoded.map_err(|_| format!("line {} is not base64", line + 1))?.len() != expected {
            return Err(format!("line {} has the wrong length", line + 1));
        }
    }
    let signature = SignatureBox::from_string(text).map_err(|e| e.to_string())?;
    if !signature.is_prehashed() {
        return Err("legacy signatures without a hash are not accepted".into());
    }
    Ok(signature)
}

fn secret_key(path: &Path) -> Result<minisign::SecretKey> {
    let on = || format!("signing key {}", path.display());
    let text = read_secret_file(path)?;
    // Layout: 2 bytes algorithm, 2 bytes key derivation (zero: no passphrase), ….
    let decoded = text.expose().lines().nth(1).and_then(|line| STANDARD.decode(line.trim()).ok());
    let Some(decoded) = decoded.map(Zeroizing::new).filter(|d| d.len() == 158) else {
        return Err(
            Error::usage("not a minisign secret key").with_hint("`opsd keygen --sign -o FILE` makes one")
        )
        .with_context(on);
    };
    if decoded[2..4] != [0, 0] {
        return Err(Error::usage("the key is protected by a passphrase")
            .with_hint("opsd has nobody to ask: use `opsd keygen --sign`, or `minisign -G -W`"))
        .with_context(on);
    }
    // minisign itself leaves the checksum of a key without passphrase empty (`minisign -G -W`).
    let mut checked = minisign::SecretKey::from_bytes(&decoded);
    if decoded[126..] != [0; 32] {
        checked =
            SecretKeyBox::from_string(text.expose()).and_then(SecretKeyBox::into_unencrypted_secret_key);
    }
    checked.map_err(Error::usage).with_context(on)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::keys::create_secret_file;
    use crate::error::Kind;

    struct Key {
        _dir: tempfile::TempDir,
        file: std::path::PathBuf,
        public: String,
    }

    fn key() -> Key {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("sign.key");
        let pair = generate().expect("generate");
        create_secret_file(&file, &pair.secret_box).expect("create");
        Key { _dir: dir, file, public: pair.public }
    }

    #[test]
    fn signed_bytes_verify_with_any_of_the_trusted_keys() {
        let (one, two) = (key(), key());
        assert_eq!(public_key(&one.file).expect("public key"), one.public);
        for bytes in [&b""[..], b"manifest", &[0u8; 100_000]] {
            let signature = sign(&one.file, bytes, "site=x id=y ü").expect("sign");
            assert!(signature.contains("trusted comment: site=x id=y ü\n"));
            verify(&[two.public.clone(), one.public.clone()], "site=x id=y ü", bytes, &signature)
                .expect("verify");
        }
    }

    #[test]
    fn a_signature_as_written_is_told_from_one_that_still_verifies() {
        let key = key();
        let signature = sign(&key.file, b"manifest", "site x").expect("sign");
        assert!(is_as_written(&signature), "{signature}");
        for changed in [
            signature.replace("signed by opsd", "signed by opsx"),
            format!("{signature}\n"),
            signature.trim_end().to_owned(),
            signature.replacen('\n', " \n", 2),
            signature.replace('\n', "\r\n"),
        ] {
            assert!(!is_as_written(&changed), "{changed:?}");
        }
        let other_comment = signature.replace("signed by opsd", "signed by opsx");
        verify(&[key.public], "site x", b"manifest", &other_comment).expect("it verifies all the same");
    }

    #[test]
    fn what_does_not_fit_differs() {
        let (one, two) = (key(), key());
        let signature = sign(&one.file, b"manifest", "comment").expect("sign");
        let trusted = [one.public.clone()];
        for (trusted, bytes, signature, expected) in [
            (&trusted[..], &b"manifesto"[..], signature.clone(), "does not fit the content"),
            (&[two.public][..], b"manifest", signature.clone(), "not among the trusted keys"),
            (&[][..], b"manifest", signature.clone(), "not among the trusted keys"),
            (
                &trusted[..],
                b"manifest",
                signature.replace("comment: comment", "comment: other"),
                "does not fit",
            ),
            (&trusted[..], b"manifest", String::new(), "0 lines instead of 4"),
            (&trusted[..], b"manifest", signature.replace("RU", "!!"), "not base64"),
            (&trusted[..], b"manifest", shorten(&signature, 1), "line 2 has the wrong length"),
            // minisign's own verifier panics on this one.
            (&trusted[..], b"manifest", shorten(&signature, 3), "line 4 has the wrong length"),
        ] {
            let error = verify(trusted, "comment", bytes, &signature).expect_err(expected);
            // Whom this host trusts says nothing about what is stored.
            let kind = if expected.starts_with("not among") { Kind::Refused } else { Kind::Differs };
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn a_signature_is_good_for_one_purpose_and_one_set() {
        let key = key();
        let trusted = [key.public.clone()];
        let comment = |purpose: Purpose, id: &str| purpose.comment("site", "db", id);
        let signature = sign(&key.file, b"{}", &comment(Purpose::Verification, "one")).expect("sign");
        verify(&trusted, &comment(Purpose::Verification, "one"), b"{}", &signature).expect("verify");
        for other in [comment(Purpose::Manifest, "one"), comment(Purpose::Verification, "two"), String::new()]
        {
            let error = verify(&trusted, &other, b"{}", &signature).expect_err("moved");
            assert_eq!(error.kind(), Kind::Differs);
            assert!(error.to_string().contains("made for \"opsd verification site/db/one\""), "{error}");
        }
        // As the key stands in a configuration: what can be compared.
        for public in [&key.public, &generate().expect("generate").public] {
            let claimed = claimed_key(&signature).expect("an id");
            let beginning = claimed.strip_suffix('…').expect("it goes on");
            assert_eq!((beginning.len(), public.starts_with(beginning)), (13, *public == key.public));
        }
        assert_eq!(claimed_key("x"), None);
    }

    /// Leaves four characters of a line.
    fn shorten(signature: &str, line: usize) -> String {
        let mut lines: Vec<&str> = signature.lines().collect();
        lines[line] = &lines[line][..4];
        lines.join("\n")
    }

    #[test]
    fn trusted_comments_are_one_trimmed_line() {
        let key = key();
        for comment in ["two\nlines", " blank", "blank ", "\u{7}"] {
            assert!(sign(&key.file, b"x", comment).is_err(), "{comment:?}");
        }
        // An empty comment is readable by nobody but allowed by everybody.
        let signature = sign(&key.file, b"x", "").expect("sign");
        verify(&[key.public], "", b"x", &signature).expect("verify");
    }

    #[test]
    fn bad_secret_keys_are_refused_without_being_shown() {
        let dir = tempfile::tempdir().expect("tempdir");
        let encrypted = KeyPair::generate_unencrypted_keypair().expect("generate");
        let plain = encrypted.sk.to_box(None).expect("box").into_string();
        let line = plain.lines().nth(1).expect("key line");
        let mut bytes = STANDARD.decode(line).expect("base64");
        bytes[2..4].copy_from_slice(b"Sc");
        let with_passphrase = format!("untrusted comment: x\n{}\n", STANDARD.encode(&bytes));
        bytes[2..4].copy_from_slice(&[0, 0]);
        bytes[100] ^= 1;
        let damaged = format!("untrusted comment: x\n{}\n", STANDARD.encode(&bytes));
        for (index, (text, expected)) in [
            (with_passphrase.as_str(), "protected by a passphrase"),
            (damaged.as_str(), "Corrupted key"),
            ("S3CRET", "not a minisign secret key"),
            ("a\nS3CRET", "not a minisign secret key"),
        ]
        .into_iter()
        .enumerate()
        {
            let file = dir.path().join(index.to_string());
            create_secret_file(&file, &Secret::new(text)).expect("create");
            let shown = format!("{:?}", sign(&file, b"x", "c").expect_err(expected));
            assert!(shown.contains(expected), "{shown}");
            assert!(!shown.contains("S3CRET") && !shown.contains(&line[20..40]), "{shown}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// One changed byte anywhere in a signature: refused, or it is the untrusted comment.
        #[test]
        fn one_changed_byte_is_noticed(at in 0usize..1000, to in 0u8..128) {
            static KEY: std::sync::LazyLock<(Key, String)> = std::sync::LazyLock::new(|| {
                let key = key();
                let signature = sign(&key.file, b"manifest", "comment").expect("sign");
                (key, signature)
            });
            let (key, signature) = &*KEY;
            let mut bytes = signature.clone().into_bytes();
            let at = at % bytes.len();
            let free = signature.find('\n').expect("a line");
            prop_assume!(at > free && bytes[at] != to);
            // Line ends and blanks at a line's ends mean nothing.
            prop_assume!(!bytes[at].is_ascii_whitespace() && !to.is_ascii_whitespace());
            bytes[at] = to;
            let changed = String::from_utf8(bytes).expect("ascii");
            prop_assert!(verify(std::slice::from_ref(&key.public), "comment", b"manifest", &changed).is_err());
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,200}") {
            let key = "RWSB2Sl4XWvI/Aa6B1kq6bKh0lVf6DxcD7u1xhxibTo4jiiFXaDNR9xn".to_string();
            prop_assert!(verify(&[key], "comment", b"manifest", &text).is_err());
        }
    }
}
