//! The files that a sandbox sees: a root of its own in memory, into which the system's programs, those
//! that were named and the sandbox's directory are mounted under their own paths.
//!
//! Everything else of the host is not hidden but absent: home directories, `/etc/opsd`, other scratch
//! directories, the sockets of other services. Names of users are those of the accounts alone.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::{Account, Sandbox};
use crate::error::{Context, Error, Result};

/// What programs of any distribution need to run: themselves, libraries, locales, time zones, and what
/// the packages of PostgreSQL link to. Nothing of it is secret.
pub(super) const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/timezone",
    "/var/cache/postgresql",
];
/// Devices that lead nowhere.
pub(super) const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Where the new root is mounted while it is made, within the sandbox's directory.
pub const MOUNT_POINT: &str = "view";
/// Memory of the root's own files, of `/tmp` and of `/dev/shm`; more belongs into the sandbox's directory.
const ROOT_SIZE: &str = "4m";
const TEMPORARY_SIZE: &str = "64m";

/// Makes the view and moves into it. The caller has a mount namespace of its own.
pub(super) fn enter(sandbox: &Sandbox, with_proc: bool) -> Result<()> {
    let root = sandbox.directory.join(MOUNT_POINT);
    let unbound = || "cannot keep mounts to the sandbox".to_owned();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).on(unbound)?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    tmpfs(&root, ROOT_SIZE, "755", plain)?;
    let system = SYSTEM.iter().map(Path::new).filter(|path| path.symlink_metadata().is_ok());
    for path in system.chain(sandbox.readable.iter().map(PathBuf::as_path)) {
        show(&root, path).with_context(|| format!("cannot show {}", path.display()))?;
    }
    let within = |path: &str| root.join(path.trim_start_matches('/'));
    for device in DEVICES.iter().map(Path::new).filter(|device| device.exists()) {
        bind_file(&root, device).with_context(|| format!("cannot show {}", device.display()))?;
    }
    tmpfs(&within("dev/shm"), TEMPORARY_SIZE, "1777", plain)?;
    tmpfs(&within("tmp"), TEMPORARY_SIZE, "1777", plain)?;
    for (link, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        symlink(format!("/proc/self/{target}"), within("dev").join(link)).context("cannot fill /dev")?;
    }
    names(&root, &sandbox.accounts).context("cannot write /etc/passwd")?;
    let own = join(&root, &sandbox.directory);
    directory(&own).context("cannot show the sandbox's directory")?;
    mount_bind(&sandbox.directory, &own).on(|| format!("cannot show {}", sandbox.directory.display()))?;
    restrict(&own, plain).context("cannot restrict the sandbox's directory")?;
    let proc = within("proc");
    directory(&proc).context("cannot make /proc")?;
    if with_proc {
        // Some containers forbid it; nothing that runs inside needs it.
        let _ = mount("proc", &proc, "proc", plain | MountFlags::NOEXEC, None);
    }

    let turned = || "cannot change to the sandbox's root".to_owned();
    std::env::set_current_dir(&root).with_context(turned)?;
    // The old root lands on top of the new one, and is let go with all that was mounted in it.
    rustix::process::pivot_root(".", ".").on(turned)?;
    unmount(".", UnmountFlags::DETACH).on(turned)?;
    std::env::set_current_dir("/").with_context(turned)?;
    mount_remount("/", MountFlags::BIND | plain | MountFlags::RDONLY, "").on(turned)
}

/// Mounts a directory or a file of the host under its own path, to be read. Links are made again.
fn show(root: &Path, path: &Path) -> Result<()> {
    let meta = path.symlink_metadata()?;
    let at = join(root, path);
    if meta.is_symlink() {
        let target = std::fs::read_link(path)?;
        parent(&at)?;
        match symlink(&target, &at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => {}
        }
        let real = path.canonicalize()?;
        // `/lib` leads into `/usr`, which is shown anyway.
        return if SYSTEM.iter().any(|shown| real.starts_with(shown) && Path::new(shown) != path) {
            Ok(())
        } else {
            show(root, &real)
        };
    }
    if !meta.is_dir() {
        return bind_file(root, path);
    }
    if at.exists() && SYSTEM.iter().any(|shown| path.starts_with(shown) && Path::new(shown) != path) {
        return Ok(());
    }
    directory(&at)?;
    mount_bind_recursive(path, &at).on(|| "cannot mount it".to_owned())?;
    restrict(&at, MountFlags::RDONLY | MountFlags::NOSUID)
}

fn bind_file(root: &Path, path: &Path) -> Result<()> {
    let at = join(root, path);
    parent(&at)?;
    File::create(&at)?;
    mount_bind(path, &at).on(|| "cannot mount it".to_owned())
}

/// Adds flags to a mount, and keeps those that it has: in a user namespace they are locked.
fn restrict(at: &Path, more: MountFlags) -> Result<()> {
    let has = statvfs(at).map_err(io::Error::from)?.f_flag;
    let mut flags = MountFlags::BIND | more;
    for (flag, kept) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(flag) {
            flags |= kept;
        }
    }
    mount_remount(at, flags, "").on(|| "cannot restrict the mount".to_owned())
}

fn tmpfs(at: &Path, size: &str, mode: &str, flags: MountFlags) -> Result<()> {
    let on = || format!("cannot mount memory at {}", at.display());
    directory(at).with_context(on)?;
    let data = std::ffi::CString::new(format!("size={size},mode={mode}")).map_err(Error::new)?;
    mount("tmpfs", at, "tmpfs", flags, data.as_c_str()).on(on)
}

/// Who has a name inside; nothing is asked for any other.
fn names(root: &Path, accounts: &[Account]) -> Result<()> {
    let etc = root.join("etc");
    directory(&etc)?;
    let line = |a: &Account| format!("{}:x:{}:{}::/:/bin/false\n", a.name, a.uid, a.gid);
    let group = |a: &Account| format!("{}:x:{}:\n", a.name, a.gid);
    std::fs::write(etc.join("passwd"), accounts.iter().map(line).collect::<String>())?;
    std::fs::write(etc.join("group"), accounts.iter().map(group).collect::<String>())?;
    std::fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\n")?;
    Ok(())
}

fn join(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Everybody may pass: what is inside says who may read it.
fn directory(path: &Path) -> Result<()> {
    Ok(DirBuilder::new().recursive(true).mode(0o755).create(path)?)
}

fn parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), directory)
}

/// Errors of the kernel with what was tried.
trait On<T> {
    fn on(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> On<T> for rustix::io::Result<T> {
    fn on(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::from(io::Error::from(errno)).context(what()))
    }
}
