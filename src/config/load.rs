//! Finding and opening the configuration file, and the one place that reads the environment.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use zeroize::Zeroizing;

use super::Config;
use super::finding::{Finding, Warning, mistakes_error};
use super::raw::{self, Parsed};
use super::walk::Env;
use crate::error::{Context, Error, Kind, Result};
use crate::regular_file;

/// Where the system's configuration is.
const SYSTEM_FILE: &str = "/etc/opsd/opsd.toml";
/// What is tried last, under a condition.
const LOCAL_FILE: &str = "opsd.toml";
/// A configuration larger than this is something else.
const MAX_FILE: u64 = 4 << 20;

/// A variable of the environment; one that is not UTF-8 counts as not set.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads the configuration: `explicit` (`--config`), `OPSD_CONFIG`, `/etc/opsd/opsd.toml`, or
/// `./opsd.toml` where nobody else may write it. All mistakes together are one error.
pub fn load(explicit: Option<&Path>) -> Result<(Config, Vec<Warning>)> {
    let (path, Parsed { config, mistakes, warnings, .. }) = read(explicit)?;
    match config {
        Some(config) => Ok((config, warnings)),
        None => Err(mistakes_error(&path, &mistakes)),
    }
}

/// The same with the findings one by one, for `config check`.
pub fn read(explicit: Option<&Path>) -> Result<(PathBuf, Parsed)> {
    let found = locate(explicit, &environment, Path::new(SYSTEM_FILE), Path::new(LOCAL_FILE))?;
    read_found(found, &environment)
}

struct Found {
    path: PathBuf,
    file: File,
}

fn locate(explicit: Option<&Path>, env: Env<'_>, system: &Path, local: &Path) -> Result<Found> {
    const HINT: &str = "write one with `opsd config init FILE`, name it with --config FILE";
    let named = match explicit {
        Some(path) => Some((path.to_path_buf(), "--config")),
        None => env("OPSD_CONFIG").filter(|v| !v.is_empty()).map(|v| (PathBuf::from(v), "OPSD_CONFIG")),
    };
    if let Some((path, by)) = named {
        let file = regular_file::open_any_trusted(&path).map_err(|e| {
            unopened(e, HINT).context(format!("configuration {} (from {by})", path.display()))
        })?;
        return Ok(Found { path, file });
    }
    match regular_file::open_any_trusted(system) {
        Ok(file) => return Ok(Found { path: system.into(), file }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(unopened(e, HINT).context(format!("configuration {}", system.display()))),
    }
    let none = format!("no configuration: neither --config nor OPSD_CONFIG, and no {}", system.display());
    let ignored = match regular_file::open(local) {
        Ok(file) => match why_untrusted(&file, local)? {
            // Of what root follows, every step on the way is judged, too.
            None => match if geteuid().is_root() { regular_file::open_trusted(local) } else { Ok(file) } {
                Ok(file) => return Ok(Found { path: local.into(), file }),
                Err(e) => e.to_string(),
            },
            Some(why) => why,
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::usage(format!("{none} or ./{LOCAL_FILE}")).with_hint(HINT));
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            return Err(unopened(e, HINT).context(format!("configuration ./{LOCAL_FILE}")));
        }
        Err(e) => e.to_string(),
    };
    Err(Error::usage(format!("{none}; ./{LOCAL_FILE} was ignored: {ignored}")).with_hint(format!(
        "let nobody else write it or its directory, or, if you trust it and are not root, say --config {LOCAL_FILE}"
    )))
}

/// An error of the command line's; what has a hint of its own keeps it.
fn unopened(error: std::io::Error, hint: &str) -> Error {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => {
            "it is there for somebody else: run opsd as its owner, or as root, with sudo"
        }
        _ => hint,
    };
    Error::from(error).with_kind(Kind::Usage).with_hint(hint)
}

/// Why a file that merely lies in the working directory must not be followed.
fn why_untrusted(file: &File, path: &Path) -> Result<Option<String>> {
    let caller = geteuid().as_raw();
    let meta = file.metadata().with_context(|| path.display().to_string())?;
    // A symbolic link is as trustworthy as whoever made it.
    let link = std::fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    for owner in [meta.uid(), link.uid()] {
        if owner != caller && owner != 0 {
            return Ok(Some(format!("it belongs to user {owner}, neither to you nor to root")));
        }
    }
    Ok(writable_by_others(meta.mode()))
}

fn writable_by_others(mode: u32) -> Option<String> {
    (mode & 0o022 != 0).then(|| format!("mode {:04o} lets others write it", mode & 0o7777))
}

fn read_found(found: Found, env: Env<'_>) -> Result<(PathBuf, Parsed)> {
    let Found { path, mut file } = found;
    let on = || format!("configuration {}", path.display());
    let meta = file.metadata().with_context(on)?;
    if meta.is_dir() {
        return Err(Error::usage("is a directory").context(on()));
    }
    // What outgrew its memory would leave a copy behind, and passwords may stand in it.
    let room = if meta.is_file() { meta.len().min(MAX_FILE) } else { MAX_FILE } + 2;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    (&mut file).take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(Error::usage).with_context(on)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::usage("is too large to be a configuration").context(on()));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::usage("is not UTF-8 text").context(on()))?;
    let mut parsed = raw::parse(text, &path, env);
    let whole_file = |message: String, hint: String| Finding {
        key: String::new(),
        path: path.clone(),
        line: None,
        message,
        hint: Some(hint),
        is_advice: false,
    };
    // A pipe or /dev/stdin has no mode worth a remark.
    if let Some(why) = writable_by_others(meta.mode()).filter(|_| meta.is_file()) {
        let hint = format!("chmod go-w {}", path.display());
        parsed.warnings.insert(0, whole_file(why, hint));
    }
    if meta.is_file() && meta.mode() & 0o044 != 0 {
        for warning in parsed.warnings.iter_mut().filter(|w| w.message == raw::PASSWORD_STANDS_HERE) {
            let mode = meta.mode() & 0o7777;
            warning.message.push_str(&format!(", and mode {mode:04o} lets others read it"));
            warning.is_advice = false;
        }
    }
    Ok((path, parsed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("tempdir") }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.path(name);
            std::fs::write(&path, format!("site = \"{name}\"\n")).expect("write");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            path
        }

        /// The name of the file that is chosen, or why none is.
        fn locate(&self, explicit: Option<&str>, variable: Option<&str>) -> Result<String, Error> {
            let variable = variable.map(|name| self.path(name).display().to_string());
            let env = |name: &str| variable.clone().filter(|_| name == "OPSD_CONFIG");
            let explicit = explicit.map(|name| self.path(name));
            let found = locate(explicit.as_deref(), &env, &self.path("system"), &self.path("local"))?;
            Ok(found.path.file_name().expect("a name").to_string_lossy().into_owned())
        }
    }

    #[test]
    fn the_first_of_four_places_counts() {
        let place = Place::new();
        assert_eq!(place.locate(None, None).expect_err("none").kind(), Kind::Usage);
        place.write("local", 0o644);
        assert_eq!(place.locate(None, None).expect("local"), "local");
        place.write("system", 0o644);
        assert_eq!(place.locate(None, None).expect("system"), "system");
        place.write("variable", 0o644);
        assert_eq!(place.locate(None, Some("variable")).expect("variable"), "variable");
        place.write("explicit", 0o644);
        assert_eq!(place.locate(Some("explicit"), Some("variable")).expect("explicit"), "explicit");
        // What was named and is not there is an error, never a reason to look elsewhere.
        for (explicit, variable, by) in
            [(Some("absent"), None, "--config"), (None, Some("absent"), "OPSD_CONFIG")]
        {
            let error = place.locate(explicit, variable).expect_err("absent").to_string();
            assert!(error.contains("absent") && error.contains(by), "{error}");
        }
    }

    #[test]
    fn a_local_file_that_others_may_write_is_ignored_and_said_so() {
        let place = Place::new();
        for mode in [0o664, 0o646, 0o666] {
            place.write("local", mode);
            let error = place.locate(None, None).expect_err("ignored");
            assert_eq!(error.kind(), Kind::Usage);
            let (ignored, why) = (error.to_string(), format!("mode {mode:04o}"));
            assert!(ignored.contains("was ignored: ") && ignored.contains(&why), "{error}");
            assert!(error.hint().is_some_and(|h| h.contains("--config")), "{error:?}");
        }
        said_explicitly(&place);
    }

    /// What was named is followed by whoever it can harm alone.
    fn said_explicitly(place: &Place) {
        let located = place.locate(Some("local"), None);
        assert_eq!(located.is_err(), rustix::process::geteuid().is_root(), "{located:?}");
    }

    /// Only root can give a file away; others cannot be shown one that is somebody else's.
    #[test]
    fn a_local_file_of_another_user_is_ignored_and_one_of_root_or_the_caller_is_not() {
        let place = Place::new();
        let path = place.write("local", 0o644);
        assert_eq!(place.locate(None, None).expect("the caller's own"), "local");
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let refused = |whose: &str| {
            let error = place.locate(None, None).expect_err(whose);
            assert_eq!(error.kind(), Kind::Usage);
            let text = error.to_string();
            assert!(text.contains("was ignored: ") && text.contains("belongs to user 65534"), "{text}");
        };
        std::os::unix::fs::chown(&path, Some(65534), None).expect("chown");
        refused("the file");
        said_explicitly(&place);
        // A link of somebody else's to a file of root's: who made it chose the file.
        std::fs::remove_file(&path).expect("remove");
        let target = place.write("target", 0o644);
        std::os::unix::fs::symlink(&target, &path).expect("link");
        assert_eq!(place.locate(None, None).expect("the caller's own link"), "local");
        std::os::unix::fs::lchown(&path, Some(65534), None).expect("chown");
        refused("the link");
    }

    #[test]
    fn a_file_that_others_may_write_is_refused_by_root_and_warned_about_otherwise() {
        let place = Place::new();
        for (mode, told) in [(0o644, false), (0o664, true), (0o646, true)] {
            place.write("c", mode);
            let found = locate(Some(&place.path("c")), &|_| None, &place.path("none"), &place.path("none"));
            let said = match found.and_then(|found| read_found(found, &|_| None)) {
                Ok((_, parsed)) => {
                    assert!(!told || !rustix::process::geteuid().is_root(), "root followed it");
                    parsed.warnings.iter().any(|w| w.message.contains("lets others write"))
                }
                Err(refused) => refused.to_string().contains("lets others write"),
            };
            assert_eq!(said, told, "{mode:o}");
        }
    }

    #[test]
    fn a_password_that_others_may_read_is_warned_about() {
        let place = Place::new();
        for (mode, warned) in [(0o600, false), (0o640, true), (0o644, true), (0o604, true)] {
            let path = place.write("c", mode);
            let text = "site = \"c\"\n[postgres.main]\nurl = \"postgres://u:s3cret@h/d\"\n";
            std::fs::write(&path, text).expect("write");
            let file = File::open(&path).expect("open");
            let (_, parsed) = read_found(Found { path, file }, &|_| None).expect("read");
            let said: Vec<&str> = parsed.warnings.iter().map(|w| w.message.as_str()).collect();
            assert_eq!(said.iter().filter(|m| m.contains("the password stands in this file")).count(), 1);
            assert_eq!(said.iter().any(|m| m.contains("lets others read it")), warned, "{mode:o}: {said:?}");
        }
    }

    #[test]
    fn a_file_that_is_there_for_others_is_not_to_be_written_anew() {
        let hint = |kind: ErrorKind| {
            let error = unopened(std::io::Error::from(kind), "write one with `opsd config init FILE`");
            assert_eq!(error.kind(), Kind::Usage);
            error.hint().expect("a hint").to_owned()
        };
        assert!(hint(ErrorKind::NotFound).contains("config init"));
        assert!(hint(ErrorKind::PermissionDenied).contains("sudo"));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let place = Place::new();
        let path = place.write("c", 0o600);
        std::fs::write(&path, [0xff, 0x00]).expect("write");
        let read = |path: &Path| {
            let file = File::open(path).expect("open");
            read_found(Found { path: path.to_path_buf(), file }, &|_| None).expect_err("refused").to_string()
        };
        assert!(read(&path).contains("not UTF-8"));
        assert!(read(place.dir.path()).contains("is a directory"));
        let big = File::create(&path).expect("create");
        big.set_len(MAX_FILE + 1).expect("set_len");
        assert!(read(&path).contains("too large"));
    }
}
