//! Whom a scratch server runs as.

use rustix::process::geteuid;
use rustix::thread::CapabilitySet;

use super::place;
use crate::error::{Context, Error, Result};
use crate::sandbox::Account;

/// Users to run as where opsd is root, in order of preference.
const DEFAULT_USERS: [&str; 2] = ["opsd-scratch", "nobody"];

/// Whom the server runs as (absent: opsd's own user), and what to say about that.
pub(super) fn server_user(wanted: Option<&str>) -> Result<(Option<Account>, Vec<String>)> {
    if !geteuid().is_root() {
        return Ok((None, Vec::new()));
    }
    let missing = |name: &str| {
        Error::usage(format!("scratch_user {name:?} does not exist"))
            .with_hint(format!("useradd --system --no-create-home --shell /usr/sbin/nologin {name}"))
    };
    let user = match wanted {
        Some(name) => place::user_by_name(name).ok_or_else(|| missing(name))?,
        None => DEFAULT_USERS
            .iter()
            .find_map(|name| place::user_by_name(name))
            .ok_or_else(|| missing(DEFAULT_USERS[0]))?,
    };
    if user.uid == 0 {
        return Err(Error::usage(format!("scratch_user {:?} is root", user.name))
            .with_hint("a restored database's code runs as this user; name one without privileges"));
    }
    let mut warnings = Vec::new();
    if wanted.is_none() && user.name != DEFAULT_USERS[0] {
        warnings.push(format!(
            "the scratch server runs as {:?}, whom other services may share; create user {:?} for it alone",
            user.name, DEFAULT_USERS[0]
        ));
    }
    Ok((Some(user), warnings))
}

/// Whether root is root enough to run a server as somebody else, reach its socket and end it: a container may
/// withhold that.
pub(super) fn can_serve_as_another() -> Result<()> {
    let needed = [
        (CapabilitySet::CHOWN, "CHOWN"),
        (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
        (CapabilitySet::KILL, "KILL"),
        (CapabilitySet::SETGID, "SETGID"),
        (CapabilitySet::SETUID, "SETUID"),
    ];
    let own = rustix::thread::capabilities(None).map_err(std::io::Error::from);
    let own = own.context("cannot ask for this process's capabilities")?.effective;
    let lacking: Vec<&str> =
        needed.iter().filter(|(one, _)| !own.contains(*one)).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let lacking = lacking.join(", ");
    Err(Error::new(format!("opsd runs as root without the capabilities {lacking}"))
        .with_hint(format!("run it as an ordinary user, or with them (in Compose, cap_add: [{lacking}])")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_refused_and_missing_users_are_named() {
        if geteuid().is_root() {
            let root = server_user(Some("root")).unwrap_err();
            assert_eq!(root.to_string(), "scratch_user \"root\" is root");
            assert!(server_user(Some("no-such-user-here")).is_err());
            let (user, _) = server_user(None).unwrap();
            assert_ne!(user.unwrap().uid, 0);
        } else {
            let (user, warnings) = server_user(None).unwrap();
            assert!(user.is_none() && warnings.is_empty());
        }
    }
}
