//! A scratch server's directory: who owns what, who may still be in it, how it goes away.
//!
//! ```text
//! scratch_dir/                    opsd's user; 0711 where the server runs as another one
//!   opsd-scratch-x1Yz…/           opsd's user, 0710 for the scratch user's group (else 0700)
//!     lock                        held (flock) as long as the owner lives
//!     postgresql.conf, pg_*.conf  the server may read, not write them
//!     server                      its number and start time, where it has no PID namespace
//!     data/  s/                   the scratch user's, 0700
//! ```
//! The server's user owns nothing that opsd later follows: code that came with a dump may run as
//! that user, and must not be able to swap a directory for a link under opsd's hands. Where opsd is root,
//! nobody else may own or write what the scratch directory lies in, and what opsd makes and removes there is
//! named beneath directories that it holds open ([`beneath`]).

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Access, AtFlags, Gid, Mode, OFlags, Stat, Uid, access};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid};

use super::Swept;
use crate::error::{Context, Error, Kind, Result};
use crate::sandbox::{self, Account};
use crate::{beneath, regular_file};

const PREFIX: &str = "opsd-scratch-";
/// The server's own directories.
const DATA: &str = "data";
const SOCKETS: &str = "s";
/// Number and start time of the server, where they mean the same to whoever comes later.
const SERVER: &str = "server";
/// Generations between a server and what it started; PostgreSQL's own are two.
const MAX_DESCENT: usize = 64;
/// Before it is locked a directory has this name, so that nobody takes it for an abandoned one.
const NEW_PREFIX: &str = ".opsd-scratch-";
/// A directory that kept the new name this long was never finished.
const NEW_BOUND: Duration = Duration::from_secs(600);
/// In the environment of everything that a scratch server starts.
pub(super) const MARK: &str = "OPSD_SCRATCH";

/// What a Unix socket's address can hold, without its final zero.
const SOCKET_PATH_MAX: usize = 107;

/// Immediate shutdown takes the postmaster at most five seconds, then it kills its children.
const QUIT_BOUND: Duration = Duration::from_secs(6);
/// A killed process that is still there is stuck in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// The user of this name.
pub(super) fn user_by_name(name: &str) -> Option<Account> {
    lookup(name, |user| user.name == name)
}

/// The user with this id.
pub(super) fn user_by_uid(uid: u32) -> Option<Account> {
    lookup(&uid.to_string(), |user| user.uid == uid)
}

/// The local file, else whatever the system is set up to ask.
fn lookup(key: &str, is_it: impl Fn(&Account) -> bool) -> Option<Account> {
    let find = |text: &str| text.lines().filter_map(parse_user).find(&is_it);
    let local = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    find(&local).or_else(|| {
        let output = std::process::Command::new("/usr/bin/getent").args(["passwd", key]).output().ok()?;
        find(&String::from_utf8_lossy(&output.stdout))
    })
}

fn parse_user(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { name, uid, gid })
}

/// The first directory on the way to `path` that a user cannot enter. Access lists are not looked at:
/// this only explains.
pub(super) fn blocked_at(user: &Account, path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let mut ancestors: Vec<&Path> = real.ancestors().collect();
    ancestors.reverse();
    let blocks = |dir: &&Path| {
        let Ok(meta) = dir.metadata() else { return true };
        let bit = match (meta.uid() == user.uid, meta.gid() == user.gid) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        meta.mode() & bit == 0
    };
    ancestors.into_iter().find(blocks).map(Path::to_owned)
}

/// A locked directory of one scratch server; [`Place::take_away`] or dropping it removes everything.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    name: String,
    /// The directory, and what it is in.
    directory: OwnedFd,
    scratch_dir: OwnedFd,
    /// The lock lasts as long as this file is open.
    _lock: File,
    cleared: bool,
}

impl Place {
    /// Creates a directory that `server_user` (absent: opsd's own user) can run a server in.
    pub(super) fn create(scratch_dir: &Path, server_user: Option<&Account>) -> Result<Self> {
        let on = || format!("cannot use scratch_dir {}", scratch_dir.display());
        let scratch_dir = ensure(scratch_dir, server_user.is_some()).with_context(on)?;
        let name_length = PREFIX.len() + 8;
        let socket = scratch_dir.as_os_str().len() + "//s/.s.PGSQL.".len() + 4 + name_length;
        if socket > SOCKET_PATH_MAX {
            let excess = socket - SOCKET_PATH_MAX;
            return Err(Error::usage(format!(
                "its path is {excess} bytes too long for a Unix socket below it"
            ))
            .context(on())
            .with_hint("choose a shorter scratch_dir, such as /var/tmp/opsd"));
        }
        let new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .rand_bytes(8)
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir_in(&scratch_dir)
            .with_context(on)?;
        let held = |path: &Path| beneath::hold(path).map_err(std::io::Error::from);
        let (directory, parent) = (held(new.path()).with_context(on)?, held(&scratch_dir).with_context(on)?);
        let lock = open_lock(&directory, true).with_context(on)?;
        lock.try_lock().map_err(std::io::Error::from).with_context(on)?;
        let new_name = new.path().file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let name = new_name.trim_start_matches('.').to_owned();
        rustix::fs::renameat(&parent, new_name, &parent, &name)
            .map_err(std::io::Error::from)
            .with_context(on)?;
        // What was made under the new name is this place's from here on, and nothing else's.
        let _ = new.keep();
        let root = scratch_dir.join(&name);
        let place = Self { root, name, directory, scratch_dir: parent, _lock: lock, cleared: false };
        place.furnish(server_user).map_err(std::io::Error::from).with_context(on)?;
        if let Some(user) = server_user
            && let Some(dir) = blocked_at(user, &place.data())
        {
            return Err(Error::new(format!("user {:?} cannot enter {}", user.name, dir.display()))
                .context(on())
                .with_hint(format!("chmod o+x {}, or choose a scratch_dir outside of it", dir.display())));
        }
        Ok(place)
    }

    /// Makes what the server writes to, and lets its user in.
    fn furnish(&self, server_user: Option<&Account>) -> rustix::io::Result<()> {
        let user = server_user.map(|user| (Uid::from_raw(user.uid), Gid::from_raw(user.gid)));
        for dir in [DATA, SOCKETS] {
            rustix::fs::mkdirat(&self.directory, dir, Mode::RWXU)?;
            if let Some((uid, gid)) = user {
                let own = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(&self.directory, dir, Some(uid), Some(gid), own)?;
            }
        }
        if let Some((_, gid)) = user {
            rustix::fs::chownat(&self.directory, ".", None, Some(gid), AtFlags::empty())?;
            rustix::fs::chmodat(&self.directory, ".", Mode::RWXU | Mode::XGRP, AtFlags::empty())?;
        }
        Ok(())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join(DATA)
    }

    pub(super) fn sockets(&self) -> PathBuf {
        self.root.join(SOCKETS)
    }

    /// Writes a file that the server may read and not change.
    pub(super) fn write(&self, name: &str, text: &str, server_user: Option<&Account>) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut file = beneath::open_file(&self.directory, name, flags)?;
            file.write_all(text.as_bytes())?;
            if let Some(user) = server_user {
                std::os::unix::fs::fchown(&file, None, Some(user.gid))?;
                file.set_permissions(PermissionsExt::from_mode(0o640))?;
            }
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", self.root.join(name).display()))
    }

    /// Writes down which process the server is, for whoever must end it without having seen it start. That is
    /// asked of the server itself, before anything that was dumped has run in it.
    pub(super) fn record_server(&self) -> Result<()> {
        match postmaster(&self.root).and_then(Process::read) {
            Some(Process { pid, started, .. }) => self.write(SERVER, &format!("{pid} {started}\n"), None),
            None => Ok(()),
        }
    }

    /// Whether the directory is still there.
    pub(super) fn is_there(&self) -> bool {
        beneath::look(&self.scratch_dir, &self.name).is_ok()
    }

    /// Keeps other servers out of the same scratch directory, whose user they would share, while this
    /// one runs. For machines on which they would see each other.
    pub(super) fn lock_user(&self) -> Result<File> {
        let dir = self.root.parent().unwrap_or(Path::new("/"));
        let lock = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::WouldBlock) => Err(Error::new(format!(
                "another rehearsal runs in {}, and this machine cannot keep two apart (it has no PID namespaces)",
                dir.display()
            ))
            .with_kind(Kind::LockHeld)),
            Err(TryLockError::Error(e)) => {
                Err(Error::from(e).context(format!("cannot lock {}", dir.display())))
            }
        }
    }

    /// Ends whatever still runs here, and removes what the keeper left of the directory.
    pub(super) fn take_away(&mut self) -> Result<()> {
        self.cleared = true;
        clear(&self.root, &self.scratch_dir, &self.name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.cleared
            && let Err(error) = clear(&self.root, &self.scratch_dir, &self.name)
        {
            tracing::error!("a scratch server is left behind, and the next rehearsal removes it: {error}");
        }
    }
}

/// Removes what rehearsals that were killed have left, servers that still run included; never what
/// is in use.
pub(super) fn sweep(scratch_dir: &Path) -> Result<Swept> {
    let on = || format!("cannot look for abandoned scratch servers in {}", scratch_dir.display());
    let real = match scratch_dir.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Swept::default()),
        Err(e) => return Err(Error::from(e).context(on())),
    };
    regular_file::trusted(&real).with_context(on)?;
    let held = beneath::hold(&real).map_err(std::io::Error::from).with_context(on)?;
    let entries = beneath::list(&held).map_err(std::io::Error::from).with_context(on)?;
    let mut swept = Swept::default();
    for (name, stat) in entries {
        if let Some(_lock) = abandoned(&held, &name, &stat) {
            let root = real.join(&name);
            match clear(&root, &held, &name) {
                Ok(()) => swept.removed.push(root),
                Err(error) => swept.left.push(error.context("an abandoned scratch server")),
            }
        }
    }
    Ok(swept)
}

/// Whether a directory is a scratch server's, ours, and nobody's any more. Whoever gets the lock owns it;
/// without a lock file it was half removed.
fn abandoned(scratch_dir: &OwnedFd, name: &str, stat: &Stat) -> Option<Option<File>> {
    if !beneath::is_directory(stat) || stat.st_uid != geteuid().as_raw() {
        return None;
    }
    let age = || {
        let modified = u64::try_from(stat.st_mtime).ok()?;
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(modified)).ok()
    };
    let finished = name.starts_with(PREFIX);
    let stale = name.starts_with(NEW_PREFIX) && age().is_some_and(|age| age > NEW_BOUND);
    if !finished && !stale {
        return None;
    }
    let lock = beneath::folder(scratch_dir, name).ok().and_then(|root| open_lock(&root, false).ok());
    match lock.as_ref().map(File::try_lock) {
        Some(Err(TryLockError::WouldBlock)) => None,
        _ => Some(lock),
    }
}

/// The scratch directory, created where missing, as a real path.
fn ensure(scratch_dir: &Path, for_another_user: bool) -> Result<PathBuf> {
    if !scratch_dir.is_absolute() {
        return Err(Error::usage("it must be an absolute path"));
    }
    // Another user's server must pass through, and see nothing else.
    let mode = if for_another_user { 0o711 } else { 0o700 };
    if !scratch_dir.exists() {
        DirBuilder::new().recursive(true).mode(mode).create(scratch_dir)?;
        // Whatever the umask was.
        std::fs::set_permissions(scratch_dir, PermissionsExt::from_mode(mode))?;
    }
    let real = scratch_dir.canonicalize()?;
    check(&real)?;
    Ok(real)
}

/// Whether a scratch directory can be used, or made: what a rehearsal would find out, without making anything.
pub(super) fn usable(scratch_dir: &Path) -> Result<()> {
    let there = scratch_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if there == scratch_dir {
        check(&there.canonicalize()?)?;
    }
    if !there.is_dir() {
        return Err(Error::usage(format!("{} is no directory", there.display())));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|e| Error::new(e).context(format!("cannot write to {}", there.display())))
}

/// Refuses a directory in which somebody else could put something.
fn check(real: &Path) -> Result<()> {
    let meta = real.metadata()?;
    let (owner, mode) = (meta.uid(), meta.mode());
    let sticky = mode & 0o1000 != 0;
    if !meta.is_dir() {
        return Err(Error::usage("it is no directory"));
    }
    if owner != 0 && owner != geteuid().as_raw() {
        return Err(Error::new(format!(
            "it belongs to user id {owner}, who could swap what opsd puts there"
        ))
        .with_hint("choose a directory that root or opsd's user owns"));
    }
    if mode & 0o022 != 0 && !sticky {
        return Err(Error::new("others may write to it").with_hint(format!("chmod go-w {}", real.display())));
    }
    // The owner of what the directory lies in may put another in its place.
    regular_file::trusted(real)?;
    Ok(())
}

fn open_lock(directory: &OwnedFd, create: bool) -> std::io::Result<File> {
    let flags = if create { OFlags::RDWR | OFlags::CREATE | OFlags::EXCL } else { OFlags::RDONLY };
    Ok(beneath::open_file(directory, "lock", flags)?)
}

fn clear(root: &Path, scratch_dir: &OwnedFd, name: &str) -> Result<()> {
    end_processes(root)?;
    sandbox::remove_directory_in(scratch_dir.as_fd(), name)
        .with_context(|| format!("cannot remove {}", root.display()))
}

/// Ends the server of a directory: by immediate shutdown, which frees its shared memory, then surely.
fn end_processes(root: &Path) -> Result<()> {
    // Once the server is gone, nobody tells whose children its orphans were.
    let family = processes(root);
    let began = Instant::now();
    let said = recorded(root).or_else(|| Process::read(postmaster(root)?));
    if let Some(postmaster) = said.filter(|process| belongs(root, process)) {
        postmaster.signal(Signal::QUIT);
        while postmaster.is_there() && began.elapsed() < QUIT_BOUND {
            pause();
        }
    }
    let began = Instant::now();
    loop {
        let mut left = processes(root);
        left.extend(family.iter().filter(|process| process.is_there()));
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > KILL_BOUND {
            left.sort_unstable_by_key(|process| process.pid);
            left.dedup_by_key(|process| process.pid);
            let pids: Vec<String> = left.iter().map(|process| process.pid.to_string()).collect();
            return Err(
                Error::new(format!("processes {} do not end", pids.join(", "))).context(root.display())
            );
        }
        for process in left {
            process.signal(Signal::KILL);
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "dropping a scratch server cannot await its end")]
pub(super) fn pause() {
    std::thread::sleep(POLL);
}

/// What the server says about itself; whether it is true, [`belongs`] finds out.
fn postmaster(root: &Path) -> Option<i32> {
    // While initdb runs it is negative, and it is not to be believed anyway.
    let text = short_file(&root.join("data/postmaster.pid"))?;
    text.lines().next()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A few lines that another user may have put there.
fn short_file(path: &Path) -> Option<String> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    let mut text = String::new();
    let file = options.open(path).ok()?;
    std::io::Read::read_to_string(&mut std::io::Read::take(file, 4096), &mut text).ok()?;
    Some(text)
}

/// A process, told from a later one with the same number by its start time. Everybody may read both, whatever
/// a container withholds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// In ticks since the machine's start.
    started: u64,
}

impl Process {
    /// Reads a process that runs; a dead one that waits to be reaped does not count.
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let stat = String::from_utf8_lossy(&stat).into_owned();
        // The name, in parentheses, may hold anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, parent, started })
    }

    fn is_there(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Signals it only if it is still the one that was meant.
    fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
        if self.is_there() {
            // A process that is gone is what is wanted.
            let _ = rustix::process::pidfd_send_signal(&handle, signal);
        }
    }
}

/// The server that opsd started here, as [`Place::record_server`] wrote it down, if it still runs.
fn recorded(root: &Path) -> Option<Process> {
    let text = short_file(&root.join(SERVER))?;
    let (pid, started) = text.trim().split_once(' ')?;
    let started: u64 = started.parse().ok()?;
    Process::read(pid.parse().ok()?).filter(|process| process.started == started)
}

fn processes(root: &Path) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|process| belongs(root, process))
        .collect()
}

/// Whether a process was started by the server of this directory: it runs as the data directory's owner, and
/// works there, carries the mark, or descends from the server. Without CAP_SYS_PTRACE, which containers lack,
/// its descent is all that can be seen of another user's process.
fn belongs(root: &Path, process: &Process) -> bool {
    let Ok(data) = root.join(DATA).symlink_metadata() else { return false };
    let proc = PathBuf::from(format!("/proc/{}", process.pid));
    let status = std::fs::read_to_string(proc.join("status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let uid = uids.and_then(|uids| uids.split_whitespace().next());
    if uid != Some(data.uid().to_string().as_str()) {
        return false;
    }
    let mark = format!("{MARK}={}", root.display());
    let is_marked = || {
        let environ = std::fs::read(proc.join("environ")).unwrap_or_default();
        environ.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
    };
    std::fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == root.join(DATA))
        || is_marked()
        || descends(root, process)
}

/// Whether a process is the server of this directory, or one of its descendants.
fn descends(root: &Path, process: &Process) -> bool {
    let Some(server) = recorded(root) else { return false };
    let mut ancestor = Some(*process);
    for _ in 0..MAX_DESCENT {
        match ancestor {
            Some(one) if (one.pid, one.started) == (server.pid, server.started) => return true,
            Some(one) => ancestor = Process::read(one.parent),
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(dir: &Path) -> Place {
        Place::create(dir, None).unwrap()
    }

    #[test]
    fn a_place_goes_when_it_is_dropped_and_cleared() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        let one = place(&dir);
        assert_eq!(one.root().metadata().unwrap().mode() & 0o777, 0o700);
        let two = place(&dir);
        drop(one);
        let mut two = two;
        two.take_away().unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn a_postmaster_s_file_may_say_anything() {
        let tmp = tempfile::tempdir().unwrap();
        let place = place(&tmp.path().join("scratch"));
        let own = std::process::id();
        let said =
            ["", "-1", "0", "-2147483648", "99999999999", "x", &format!("-{own}"), &format!("{own}\nmore")];
        for text in said {
            std::fs::write(place.data().join("postmaster.pid"), text).unwrap();
            assert_eq!(postmaster(place.root()).is_some(), text.ends_with("more"), "{text}");
        }
        // Our own process does not belong to it, and survives.
        let mut place = place;
        place.take_away().unwrap();
    }

    #[test]
    fn a_process_is_known_by_its_start_time_and_its_descent() {
        let tmp = tempfile::tempdir().unwrap();
        let place = place(&tmp.path().join("scratch"));
        let own = Process::read(std::process::id().cast_signed()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let of_child = Process::read(child.id().cast_signed()).unwrap();
        assert_eq!(of_child.parent, own.pid);
        let record = |pid, started: u64| {
            std::fs::write(place.root().join(SERVER), format!("{pid} {started}\n")).unwrap();
            descends(place.root(), &of_child)
        };
        assert!(record(own.pid, own.started) && record(of_child.pid, of_child.started));
        assert!(!record(own.pid, own.started + 1), "another process had this number");
        assert!(!record(0, 0));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!of_child.is_there());
    }

    #[test]
    fn sweep_takes_what_is_free_and_leaves_the_rest() {
        let tmp = tempfile::tempdir().unwrap();
        // Whatever the mask: some distributions let a user's group write.
        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let used = place(tmp.path());
        let mut left = place(tmp.path());
        left.cleared = true;
        let abandoned = left.root().to_owned();
        drop(left);
        let half_removed = tmp.path().join("opsd-scratch-half");
        let being_made = tmp.path().join(".opsd-scratch-new");
        let not_ours = tmp.path().join("precious");
        for dir in [&half_removed, &being_made, &not_ours] {
            std::fs::create_dir(dir).unwrap();
        }
        let outside = tmp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, tmp.path().join("opsd-scratch-link")).unwrap();
        let mut report = sweep(tmp.path()).unwrap().removed;
        // A process that another thread is starting has all our files, locks included, until it is itself.
        let begun = std::time::Instant::now();
        while abandoned.exists() && begun.elapsed().as_secs() < 30 {
            report.extend(sweep(tmp.path()).unwrap().removed);
        }
        assert_eq!(report.len(), 2, "{report:?}");
        assert!(!abandoned.exists() && !half_removed.exists());
        assert!(used.root().exists() && being_made.exists() && not_ours.exists() && outside.exists());
        assert!(sweep(&tmp.path().join("nothing")).unwrap().removed.is_empty());
    }

    #[test]
    fn a_directory_that_others_could_tamper_with_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let refused = |dir: &Path| Place::create(dir, None).unwrap_err();
        let open = tmp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(refused(&open).to_string().ends_with("others may write to it"));
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o1777)).unwrap();
        drop(place(&open));
        assert!(refused(Path::new("relative")).to_string().ends_with("must be an absolute path"));
        let long = tmp.path().join("x".repeat(100));
        let long = refused(&long);
        assert!(long.to_string().contains("too long for a Unix socket"), "{long}");
    }

    #[test]
    fn root_uses_no_directory_that_lies_in_somebody_elses() {
        if !geteuid().is_root() {
            return;
        }
        let tmp = tempfile::tempdir().unwrap();
        let theirs = tmp.path().join("theirs");
        let dir = theirs.join("scratch");
        std::fs::create_dir_all(&dir).unwrap();
        drop(place(&dir));
        std::os::unix::fs::chown(&theirs, Some(4711), None).unwrap();
        for error in [Place::create(&dir, None).unwrap_err(), sweep(&dir).unwrap_err()] {
            assert!(error.to_string().contains("belongs to user 4711, not to root"), "{error}");
        }
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let root = user_by_uid(0).unwrap();
        assert_eq!(user_by_name(&root.name), Some(root));
        assert_eq!(user_by_name("no-such-user-here"), None);
        let nobody = Account { name: "x".into(), uid: 65_533, gid: 65_533 };
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(blocked_at(&nobody, tmp.path()), None);
        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(blocked_at(&nobody, tmp.path()), Some(tmp.path().canonicalize().unwrap()));
        assert_eq!(blocked_at(&nobody, Path::new("/usr/bin")), None);
    }
}
