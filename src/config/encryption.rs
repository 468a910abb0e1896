//! `[encryption]`: who can read what is written, and whose signatures are believed.

use std::collections::BTreeSet;

use super::keys;
use super::raw::ONE_RECIPIENT;
use super::walk::{Place, Section, Walk};
use super::{Encryption, Trusted};
use crate::error::Error;
use crate::regular_file;

/// Resolves the section.
pub(super) fn encryption(walk: &mut Walk<'_>, section: &Section<'_>) -> Option<Encryption> {
    walk.only(
        section,
        &[
            "recipients",
            "recipients_file",
            "identity_file",
            "sign_key_file",
            "trusted_keys",
            "trusted_backup_keys",
            "trusted_verify_keys",
        ],
    );
    let mut seen = BTreeSet::new();
    let mut recipients = Vec::new();
    let mut add = |walk: &mut Walk<'_>, place: &Place, text: &str| match keys::parse_recipient(text) {
        Ok(key) if !seen.insert(key.canonical()) => {
            walk.mistake(
                place,
                "this recipient is listed twice",
                "a second recipient is there for the day the first key is lost",
            );
        }
        Ok(_) => recipients.push(text.trim().to_string()),
        Err(error) => walk.mistake_from(place, &error, "`opsd keygen` makes a key"),
    };
    let mut place = section.place.clone();
    if let Some((list, texts)) = walk.strings(section, "recipients") {
        place = list;
        for text in texts {
            add(walk, &text.place, &text.value);
        }
    }
    if let Some((file_place, file)) = walk.path(section, "recipients_file") {
        if section.has("recipients") {
            walk.mistake(&file_place, "stands beside recipients", "give one of the two");
        }
        match regular_file::read_to_string(&file) {
            Ok(text) => {
                for (index, line) in text.lines().enumerate() {
                    if line.trim().is_empty() || line.trim_start().starts_with('#') {
                        continue;
                    }
                    let before = walk.mistakes.len();
                    add(walk, &Place { key: file_place.key.clone(), line: index + 1 }, line);
                    for mistake in &mut walk.mistakes[before..] {
                        mistake.path.clone_from(&file);
                    }
                }
            }
            Err(error) => walk.mistake_from(
                &file_place,
                &Error::from(error).context("cannot read it"),
                "a text file with one public key a line, readable by whoever runs opsd",
            ),
        }
        place = file_place;
    }
    let identity_file = walk.secret_file(section, "identity_file").map(|(_, path)| path);
    let sign_key_file = walk.secret_file(section, "sign_key_file").map(|(_, path)| path);
    let trusted = trusted(walk, section);
    let spoken_of = walk.mistakes.iter().any(|m| m.key.starts_with("encryption.recipients"));
    match recipients.len() {
        0 if spoken_of => {}
        0 if identity_file.is_none() => {
            walk.mistake(&place, "no recipient", "recipients = [\"age1…\"]; `opsd keygen` makes a key");
        }
        0 => walk.advise(&place, "no recipient: this host can restore but not back up", None),
        1 if !spoken_of => {
            let hint =
                Some("add a second one whose identity is kept elsewhere, on paper or with a colleague");
            walk.advise(&place, ONE_RECIPIENT, hint);
        }
        n if n > keys::MAX_RECIPIENTS => walk.mistake(
            &place,
            format!("{n} recipients, where at most {} are allowed", keys::MAX_RECIPIENTS),
            "who restores needs one of the keys, and each can read everything",
        ),
        _ => {}
    }
    Some(Encryption { recipients, identity_file, sign_key_file, trusted })
}

/// Keys that may sign both, backups alone, and records of rehearsals alone.
fn trusted(walk: &mut Walk<'_>, section: &Section<'_>) -> Trusted {
    let keys = |walk: &mut Walk<'_>, name: &str| -> Vec<String> {
        let mut keys = Vec::new();
        for text in walk.strings(section, name).into_iter().flat_map(|(_, texts)| texts) {
            match keys::parse_trusted_key(&text.value) {
                Ok(_) => keys.push(text.value.trim().to_string()),
                Err(error) => walk.mistake_from(&text.place, &error, "`opsd keygen --sign` makes a pair"),
            }
        }
        keys
    };
    let mut trusted = Trusted::with_keys(keys(walk, "trusted_keys"));
    if section.has("trusted_keys")
        && (section.has("trusted_backup_keys") || section.has("trusted_verify_keys"))
    {
        let both = "trusted_keys stands beside a list for one kind, and its keys may sign both";
        walk.advise(&section.place, both, Some("remove trusted_keys, if each key is to sign one kind"));
    }
    for (name, list) in
        [("trusted_backup_keys", &mut trusted.backups), ("trusted_verify_keys", &mut trusted.verifications)]
    {
        for key in keys(walk, name) {
            if !list.contains(&key) {
                list.push(key);
            }
        }
    }
    if !trusted.backups.is_empty() && trusted.verifications.is_empty() {
        let place = walk.place(section, "trusted_backup_keys");
        walk.warn(
            &place,
            "no key is trusted for records of rehearsals, so none of them counts: nothing is ever proven, and \
             nothing is known to differ",
            Some("name the key that signs the records in trusted_verify_keys; it may be the same"),
        );
    }
    if trusted.backups.is_empty() && !trusted.verifications.is_empty() {
        let place = walk.place(section, "trusted_verify_keys");
        walk.mistake(
            &place,
            "no key is trusted for backups, and a record is worth no more than the backup that it is about",
            "name the key that signs the backups in trusted_backup_keys",
        );
    }
    trusted
}
