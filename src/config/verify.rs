//! `[backup.NAME.verify]`: how rehearsals run, and whom runs tell how they go.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::geteuid;

use super::raw::timeout;
use super::secret::Secret;
use super::walk::{Section, Walk};
use super::{Ping, Verify};

/// A database of terabytes comes back within a day; code in a dump that never ends would run for ever.
const REHEARSAL_TIMEOUT: Duration = Duration::from_hours(24);

/// How a job is rehearsed that nothing is said of.
pub(super) fn default_verify() -> Verify {
    Verify {
        scratch_dir: default_scratch_dir(geteuid().as_raw()),
        scratch_user: None,
        image: None,
        assert: Vec::new(),
        timeout: REHEARSAL_TIMEOUT,
        ping: Ping::default(),
    }
}

/// Resolves the section of a job.
pub(super) fn verify(walk: &mut Walk<'_>, job: &Section<'_>, mut verify: Verify) -> Verify {
    let Some(section) = walk.section(job, "verify") else { return verify };
    walk.only(&section, &["scratch_dir", "scratch_user", "image", "assert", "timeout", "ping_url"]);
    verify.timeout = timeout(walk, &section, verify.timeout, "a rehearsal");
    if let Some((_, dir)) = walk.path(&section, "scratch_dir") {
        verify.scratch_dir = dir;
    }
    verify.ping = ping(walk, &section);
    verify.scratch_user = walk.filled(&section, "scratch_user").map(|text| text.value);
    if let Some(image) = walk.filled(&section, "image") {
        // The name becomes a word of a command line.
        if image.value.starts_with('-') || image.value.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            walk.mistake(&image.place, "is no name of an image", "as in image = \"postgres:17\"");
        } else {
            verify.image = Some(image.value);
        }
    }
    if let Some((_, queries)) = walk.strings(&section, "assert") {
        verify.assert = queries.into_iter().map(|q| q.value).collect();
    }
    verify
}

/// Where scratch servers live. Root's directory is nobody else's to use, so every other user has one of its own.
fn default_scratch_dir(uid: u32) -> PathBuf {
    match uid {
        0 => PathBuf::from("/var/tmp/opsd"),
        uid => PathBuf::from(format!("/var/tmp/opsd-{uid}")),
    }
}

/// Whom a run tells how it goes.
pub(super) fn ping(walk: &mut Walk<'_>, of: &Section<'_>) -> Ping {
    const FORMS: &str =
        "as in ping_url = { start = \"https://hc-ping.com/UUID/start\", success = \"…\", fail = \"…\" }";
    let Some(section) = walk.section(of, "ping_url") else { return Ping::default() };
    walk.only(&section, &["start", "success", "fail"]);
    if !["start", "success", "fail"].iter().any(|key| section.has(key)) {
        walk.mistake(&section.place, "names no URL", FORMS);
    }
    let mut url = |key| {
        let text = walk.filled(&section, key)?;
        match reqwest::Url::parse(&text.value) {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => {
                Some(Secret::new(url.as_str()))
            }
            _ => {
                walk.mistake(&text.place, "is no http:// or https:// URL", FORMS);
                None
            }
        }
    };
    Ping { start: url("start"), success: url("success"), fail: url("fail") }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn nobody_is_led_into_roots_directory() {
        assert_eq!(default_scratch_dir(0), Path::new("/var/tmp/opsd"));
        assert_eq!(default_scratch_dir(1000), Path::new("/var/tmp/opsd-1000"));
    }
}
