//! Rings that a process closes around itself and passes on to all that it starts: no privileges, fewer
//! system calls, fewer files, limits.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::{Account, Limits, Sandbox, view};
use crate::error::{Context, Error, Result};

/// The newest Landlock that is asked for; an older kernel gives what it has.
const LANDLOCK: ABI = ABI::V6;
/// Names of users, where the sandbox has no view of its own.
const NAMES: &[&str] = &["/etc/passwd", "/etc/group", "/etc/nsswitch.conf"];

/// Limits for each process, which hold with and without a control group.
pub(super) fn limit(limits: Limits) -> Result<()> {
    let set = |resource, value: u64| {
        // A limit is never raised.
        let now = rustix::process::getrlimit(resource);
        let value = now.maximum.map_or(value, |maximum| maximum.min(value));
        let new = Rlimit { current: Some(value), maximum: Some(value) };
        rustix::process::setrlimit(resource, new).map_err(io::Error::from)
    };
    set(Resource::Core, 0).context("cannot forbid core files")?;
    set(Resource::Data, limits.memory).context("cannot limit memory")?;
    set(Resource::Nproc, limits.tasks).context("cannot limit processes")?;
    Ok(())
}

/// Becomes another user, for good.
pub(super) fn become_user(user: &Account) -> Result<()> {
    let failed = |errno: rustix::io::Errno| {
        Error::from(io::Error::from(errno))
            .context(format!("opsd may not change to user {:?}", user.name))
            .with_hint("in a container, add the capabilities CAP_SETUID and CAP_SETGID")
    };
    rustix::thread::set_thread_groups(&[]).map_err(failed)?;
    let gid = rustix::process::Gid::from_raw(user.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    let uid = rustix::process::Uid::from_raw(user.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)
}

/// Gives up all capabilities, and what a program with a set-user-id bit could bring back.
pub(super) fn drop_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from).context("cannot give up privileges")?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)
        .map_err(io::Error::from)
        .context("cannot give up capabilities")
}

/// What this kernel's Landlock forbids beside the reading and writing of files.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Landlock {
    /// The kernel has Landlock, and it is in force.
    pub is_there: bool,
    /// Cutting off files by path: from Linux 6.2 on.
    pub truncation: bool,
    /// Signals to processes outside: from Linux 6.12 on.
    pub signals: bool,
}

/// Forbids files but those that the sandbox names, TCP, abstract sockets and signals to outside, as far as
/// the kernel does.
pub(super) fn landlock(sandbox: &Sandbox, has_view: bool) -> Result<Landlock> {
    let failed = |e: landlock::RulesetError| Error::new(e).context("cannot set up Landlock");
    let read = AccessFs::from_read(LANDLOCK);
    let all = AccessFs::from_all(LANDLOCK);
    let device = AccessFs::ReadFile | AccessFs::WriteFile;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(failed)?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)
        .map_err(failed)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)
        .map_err(failed)?
        .create()
        .map_err(failed)?;
    let readable: Vec<&Path> = if has_view {
        vec![Path::new("/")]
    } else {
        let system = view::SYSTEM.iter().chain(NAMES).map(Path::new);
        system.chain(sandbox.readable.iter().map(|p| p.as_path())).chain([&*sandbox.directory]).collect()
    };
    let mut writable: Vec<&Path> = sandbox.writable.iter().map(|p| p.as_path()).collect();
    if has_view {
        writable.extend([Path::new("/tmp"), Path::new("/dev/shm")]);
    }
    ruleset = ruleset.add_rules(path_beneath_rules(readable, read)).map_err(failed)?;
    ruleset = ruleset.add_rules(path_beneath_rules(writable, all)).map_err(failed)?;
    for path in view::DEVICES {
        if let Ok(file) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(file, device)).map_err(failed)?;
        }
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    let is_there = status.ruleset != RulesetStatus::NotEnforced;
    let strict = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    Ok(Landlock {
        is_there,
        truncation: is_there && strict().handle_access(AccessFs::Truncate).is_ok(),
        signals: is_there && strict().scope(Scope::Signal).is_ok(),
    })
}

/// Leaves the system calls that ordinary programs make. All others do not exist.
///
/// With `guards_attributes`, changes of modes, owners and times by path are taken and do nothing: Landlock says
/// nothing of them, and the paths of the programs' own user are more than the sandbox's.
pub(super) fn seccomp(guards_attributes: bool, may_truncate: bool) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(e).context("cannot limit system calls");
    let arch = std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| failed(&e))?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    if !may_truncate {
        rules.remove(&libc::SYS_truncate);
    }
    let only = |index, operator, value: i32| {
        let value = u64::try_from(value).unwrap_or_default();
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| failed(&e))
    };
    // A socket within the host, and nothing that leaves it.
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        rules.insert(call, vec![only(0, SeccompCmpOp::Eq, libc::AF_UNIX)?]);
    }
    // Processes and threads, but in no namespaces of their own. `clone3` hides its flags behind a pointer;
    // where it does not exist, the C library takes `clone`.
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(NAMESPACES), 0)?]);
    let missing = SeccompAction::Errno(u32::try_from(libc::ENOSYS).unwrap_or_default());
    if guards_attributes {
        // Of two filters the stricter one decides.
        let rules = ATTRIBUTES.iter().map(|call| (*call, Vec::new())).collect();
        let ignored = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(0), arch)
            .map_err(|e| failed(&e))?;
        let program: BpfProgram = ignored.try_into().map_err(|e: seccompiler::BackendError| failed(&e))?;
        seccompiler::apply_filter(&program).map_err(|e| failed(&e))?;
    }
    let filter = SeccompFilter::new(rules, missing, SeccompAction::Allow, arch).map_err(|e| failed(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| failed(&e))?;
    seccompiler::apply_filter(&program).map_err(|e| failed(&e))
}

/// System calls that change modes, owners and times of what a path names. What a descriptor names was opened, and
/// Landlock had its say.
const ATTRIBUTES: &[i64] = &[
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// The flags of `clone` that make namespaces: `CLONE_NEWNS`, `CGROUP`, `UTS`, `IPC`, `USER`, `PID`, `NET`.
const NAMESPACES: u64 = 0x7e02_0000;

/// System calls of ordinary programs. Left out are, among others, those for mounts, namespaces, tracing,
/// keys, modules, clocks, BPF, io_uring, and descriptors by handle: each is either a privilege or a part of
/// the kernel in which holes are found often.
#[rustfmt::skip]
const CALLS: &[i64] = &[
    // Files.
    libc::SYS_openat, libc::SYS_openat2, libc::SYS_close, libc::SYS_close_range, libc::SYS_read,
    libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_getdents64, libc::SYS_fcntl, libc::SYS_flock, libc::SYS_ftruncate, libc::SYS_truncate,
    libc::SYS_fallocate, libc::SYS_fadvise64, libc::SYS_readahead, libc::SYS_fsync, libc::SYS_fdatasync,
    libc::SYS_sync_file_range, libc::SYS_syncfs, libc::SYS_mkdirat, libc::SYS_unlinkat,
    libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_symlinkat, libc::SYS_readlinkat,
    libc::SYS_fchmod, libc::SYS_fchmodat, libc::SYS_fchown, libc::SYS_fchownat, libc::SYS_faccessat,
    libc::SYS_faccessat2, libc::SYS_utimensat, libc::SYS_umask, libc::SYS_getcwd, libc::SYS_chdir,
    libc::SYS_fchdir, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2, libc::SYS_ioctl,
    libc::SYS_copy_file_range, libc::SYS_sendfile, libc::SYS_splice, libc::SYS_tee,
    libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr, libc::SYS_listxattr,
    libc::SYS_llistxattr, libc::SYS_flistxattr, libc::SYS_memfd_create, libc::SYS_mknodat,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise,
    libc::SYS_msync, libc::SYS_mincore, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_brk,
    libc::SYS_membarrier, libc::SYS_get_mempolicy,
    libc::SYS_shmget, libc::SYS_shmat, libc::SYS_shmdt, libc::SYS_shmctl, libc::SYS_semget,
    libc::SYS_semop, libc::SYS_semtimedop, libc::SYS_semctl,
    // Processes and threads.
    libc::SYS_execve, libc::SYS_execveat, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4,
    libc::SYS_waitid, libc::SYS_kill, libc::SYS_tkill, libc::SYS_tgkill, libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal, libc::SYS_getpid, libc::SYS_getppid, libc::SYS_gettid, libc::SYS_setpgid,
    libc::SYS_getpgid, libc::SYS_setsid, libc::SYS_getsid, libc::SYS_getuid, libc::SYS_geteuid,
    libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getgroups,
    libc::SYS_setuid, libc::SYS_setgid, libc::SYS_setreuid, libc::SYS_setregid, libc::SYS_setresuid,
    libc::SYS_setresgid, libc::SYS_setgroups, libc::SYS_capget, libc::SYS_capset,
    libc::SYS_prctl, libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list,
    libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity, libc::SYS_sched_getparam,
    libc::SYS_sched_setparam, libc::SYS_sched_getscheduler, libc::SYS_sched_setscheduler,
    libc::SYS_sched_get_priority_max, libc::SYS_sched_get_priority_min, libc::SYS_getpriority,
    libc::SYS_setpriority, libc::SYS_ioprio_get, libc::SYS_ioprio_set, libc::SYS_getcpu,
    libc::SYS_getrusage, libc::SYS_times, libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_prlimit64,
    libc::SYS_personality, libc::SYS_restart_syscall,
    // Signals and time.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigqueueinfo, libc::SYS_sigaltstack,
    libc::SYS_signalfd4, libc::SYS_eventfd2, libc::SYS_timerfd_create, libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime, libc::SYS_getitimer, libc::SYS_setitimer, libc::SYS_timer_create,
    libc::SYS_timer_settime, libc::SYS_timer_gettime, libc::SYS_timer_getoverrun, libc::SYS_timer_delete,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime, libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Waiting, and sockets that are there already.
    libc::SYS_ppoll, libc::SYS_pselect6, libc::SYS_epoll_create1, libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_inotify_init1, libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4,
    libc::SYS_connect, libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt,
    libc::SYS_setsockopt, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_sendmmsg, libc::SYS_recvmmsg, libc::SYS_shutdown,
    // The machine.
    libc::SYS_uname, libc::SYS_sysinfo, libc::SYS_getrandom,
    // What older programs call the same.
    #[cfg(target_arch = "x86_64")] libc::SYS_open,
    #[cfg(target_arch = "x86_64")] libc::SYS_creat,
    #[cfg(target_arch = "x86_64")] libc::SYS_stat,
    #[cfg(target_arch = "x86_64")] libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")] libc::SYS_access,
    #[cfg(target_arch = "x86_64")] libc::SYS_getdents,
    #[cfg(target_arch = "x86_64")] libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")] libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_rename,
    #[cfg(target_arch = "x86_64")] libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")] libc::SYS_link,
    #[cfg(target_arch = "x86_64")] libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")] libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")] libc::SYS_chown,
    #[cfg(target_arch = "x86_64")] libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")] libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")] libc::SYS_utime,
    #[cfg(target_arch = "x86_64")] libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")] libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")] libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")] libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")] libc::SYS_poll,
    #[cfg(target_arch = "x86_64")] libc::SYS_select,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")] libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")] libc::SYS_inotify_init,
    #[cfg(target_arch = "x86_64")] libc::SYS_eventfd,
    #[cfg(target_arch = "x86_64")] libc::SYS_signalfd,
    #[cfg(target_arch = "x86_64")] libc::SYS_alarm,
    #[cfg(target_arch = "x86_64")] libc::SYS_pause,
    #[cfg(target_arch = "x86_64")] libc::SYS_time,
    #[cfg(target_arch = "x86_64")] libc::SYS_getpgrp,
    // No flags: neither can make a namespace.
    #[cfg(target_arch = "x86_64")] libc::SYS_fork,
    #[cfg(target_arch = "x86_64")] libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")] libc::SYS_arch_prctl,
    #[cfg(target_arch = "aarch64")] libc::SYS_renameat,
];
