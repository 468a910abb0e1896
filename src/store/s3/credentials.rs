//! Why there are no credentials, in the words of who knows.
//!
//! The SDK asks one provider after the other, tells of those that were never set up as of those that were,
//! passes over files that it cannot read, and does not name others. What helps is picked out here, and
//! the files are tried. Nothing that stands in them is ever repeated.

use std::fs::File;
use std::io::{ErrorKind, Read};

use crate::config::environment;

/// Where the files with profiles and tokens are, and what they are called where nobody says it.
const FILES: [(&str, Option<&str>); 3] = [
    ("AWS_CONFIG_FILE", Some(".aws/config")),
    ("AWS_SHARED_CREDENTIALS_FILE", Some(".aws/credentials")),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", None),
];

/// What providers say that nobody set up.
const NOT_SET_UP: [&str; 4] = [
    "environment variable not set",
    "$AWS_WEB_IDENTITY_TOKEN_FILE was not set",
    "ECS provider not configured",
    "IMDS disabled by",
];

/// Names that the SDK gives to its layers.
const LAYERS: [&str; 7] = [
    "an error occurred while loading credentials",
    "the credentials provider was not properly configured",
    "the credential provider was not enabled",
    "unexpected credentials error",
    "ProfileFile provider could not be built",
    "no credentials found in chain",
    "no providers in chain provided credentials",
];

/// The same text with only those of all attempts that say something.
pub(super) fn in_brief(said: &str) -> String {
    let Some((head, attempts)) = said.split_once("Attempted:") else { return said.to_owned() };
    let mut text = head.trim_end_matches([' ', '.', '\n']).to_owned();
    for attempt in attempts.lines() {
        let why = attempt.trim().split_once(": ").map_or("", |(_, why)| why_of(why));
        if !why.is_empty() && !NOT_SET_UP.iter().any(|known| why.starts_with(known)) {
            text.push_str(": ");
            text.push_str(why);
        }
    }
    text
}

/// What is left of a text once the layers' names are gone.
fn why_of(said: &str) -> &str {
    let mut rest = said;
    while let Some(inner) = LAYERS.iter().find_map(|layer| rest.strip_prefix(layer)) {
        rest = inner.trim_start_matches([':', '.', ' ']);
    }
    rest
}

/// `: ` and why there are none, as far as that is known: what was said, and files that cannot be read.
pub(super) fn because(said: &str) -> String {
    let mut text = String::new();
    let files = unreadable(&environment);
    for why in files.iter().map(String::as_str).chain([why_of(said)]).filter(|why| !why.is_empty()) {
        text.push_str(": ");
        text.push_str(why);
    }
    text
}

fn unreadable(env: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let home = env("HOME").unwrap_or_default();
    let why = |(variable, default): (&str, Option<&str>)| {
        let named = env(variable).filter(|path| !path.is_empty());
        let path = match (&named, default) {
            (Some(path), _) => path.strip_prefix("~/").map_or(path.clone(), |rest| format!("{home}/{rest}")),
            (None, Some(name)) => format!("{home}/{name}"),
            (None, None) => return None,
        };
        match File::open(&path).and_then(|mut file| file.read(&mut [0])) {
            Ok(_) => None,
            Err(e) if named.is_none() && e.kind() == ErrorKind::NotFound => None,
            Err(e) => Some(format!("cannot read {path}: {e}")),
        }
    };
    FILES.into_iter().filter_map(why).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_attempts_those_are_told_that_say_something() {
        let said = "the credential provider was not enabled: no credentials found in chain. Attempted:\n  \
                    Environment: the credential provider was not enabled: environment variable not set\n  \
                    Profile: the credential provider was not enabled: profile `x` was not defined: no\n  \
                    Ec2InstanceMetadata: the credential provider was not enabled: IMDS disabled by AWS_X\n";
        let brief = in_brief(said);
        assert_eq!(
            brief,
            "the credential provider was not enabled: no credentials found in chain: profile `x` was not defined: no"
        );
        assert_eq!(why_of(&brief), "profile `x` was not defined: no");
        assert_eq!(in_brief("an error"), "an error");
        assert_eq!(why_of("an error occurred while loading credentials"), "");
    }

    #[test]
    fn files_that_cannot_be_read_are_named_and_those_that_nobody_named_may_be_missing() {
        let home = tempfile::tempdir().unwrap();
        let path = |name: &str| home.path().join(name).display().to_string();
        let with = |pairs: &[(&str, String)]| {
            let all: Vec<(String, String)> = [("HOME", home.path().display().to_string())]
                .iter()
                .chain(pairs)
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect();
            unreadable(&move |name| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
        };
        assert_eq!(with(&[]), Vec::<String>::new());
        let named =
            with(&[("AWS_WEB_IDENTITY_TOKEN_FILE", path("token")), ("AWS_CONFIG_FILE", "~/c".into())]);
        assert_eq!(named.len(), 2, "{named:?}");
        assert!(named[0].starts_with(&format!("cannot read {}: No such file", path("c"))), "{named:?}");
        assert!(named[1].starts_with(&format!("cannot read {}: ", path("token"))), "{named:?}");
        std::fs::create_dir_all(path(".aws/credentials")).unwrap();
        let found = with(&[]);
        assert!(found.len() == 1 && found[0].contains(".aws/credentials: Is a directory"), "{found:?}");
    }
}
