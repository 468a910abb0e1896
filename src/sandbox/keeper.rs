//! The process that watches a sandbox from outside, and outlives both opsd and whatever runs inside.
//!
//! opsd holds the other end of the keeper's stdin. When it closes, opsd is gone or wants the end. Then
//! every process of the sandbox ends, for certain, and its directory goes.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, getegid, geteuid, getpid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::cgroup::ControlGroup;
use super::{Inner, Said, Sandbox, own_stdin, read_line, remove_directory};
use crate::error::{Context, Error, Result};

/// This program again.
const INIT: [&str; 2] = ["/proc/self/exe", "scratch-init"];
/// How often the disk is looked at.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Where init asks its program to end, and does not end itself.
const STOP_BOUND: Duration = Duration::from_secs(8);
/// A killed process that is still there is stuck in the kernel.
const KILL_BOUND: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// Keeps one sandbox: reads its description from stdin, runs it, ends and removes it. The exit code is
/// init's.
pub fn keep() -> Result<u8> {
    let Some(line) = read_line(own_stdin()?)? else { return Ok(1) };
    let sandbox: Sandbox = serde_json::from_slice(&line)?;
    let directory = sandbox.directory.clone();
    rustix::process::set_child_subreaper(Some(getpid()))
        .map_err(std::io::Error::from)
        .context("cannot become the parent of orphans")?;
    let kept = run(sandbox);
    let ended = end_descendants();
    let removed = remove_directory(&directory);
    let code = kept?;
    ended?;
    removed?;
    Ok(code)
}

fn run(sandbox: Sandbox) -> Result<u8> {
    let name = sandbox.directory.file_name().and_then(|n| n.to_str()).unwrap_or("opsd-sandbox").to_owned();
    let (directory, free_space) = (sandbox.directory.clone(), sandbox.limits.free_space);
    let group = ControlGroup::create(&name, sandbox.limits);
    let (no_pid_namespace, has_user_namespace) = namespaces();
    let is_pids_own = no_pid_namespace.is_none();
    let has_control_group = group.as_ref().is_some_and(|g| g.is_limited);
    let inner = Inner { sandbox, no_pid_namespace, has_user_namespace, has_control_group };
    let mut init = Command::new(INIT[0])
        .arg(INIT[1])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start a sandbox")?;
    // Other processes of this process's user must not write to opsd in its name, through `/proc/PID/fd`.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(std::io::Error::from)
        .context("cannot close this process")?;
    let mut stdin = init.stdin.take();
    let result = start(&init, stdin.as_mut(), group.as_ref(), &inner)
        .and_then(|()| watch(&mut init, &mut stdin, &directory, free_space));
    drop(stdin);
    if !is_pids_own {
        await_end(&mut init, STOP_BOUND)?;
    }
    let _ = init.kill();
    if let Some(group) = &group {
        group.kill();
    }
    let status = init.wait().context("cannot wait for the sandbox")?;
    end_descendants()?;
    result?;
    Ok(status.code().and_then(|code| code.try_into().ok()).unwrap_or(1))
}

/// A PID namespace for what is started from here on, in a user namespace where that takes one. Returns
/// why there is no PID namespace, and whether there is a user namespace.
fn namespaces() -> (Option<String>, bool) {
    if geteuid().is_root() {
        return (unshare(CloneFlags::CLONE_NEWPID).err().map(|errno| errno.desc().to_owned()), false);
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    match unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID) {
        Ok(()) => {
            let write = |file: &str, text: String| std::fs::write(format!("/proc/self/{file}"), text);
            let mapped = write("setgroups", "deny".to_owned())
                .and_then(|()| write("uid_map", format!("{uid} {uid} 1")))
                .and_then(|()| write("gid_map", format!("{gid} {gid} 1")))
                .and_then(|()| pass_on_mounting().map_err(std::io::Error::from));
            (None, mapped.is_ok())
        }
        Err(errno) => (Some(errno.desc().to_owned()), false),
    }
}

/// Within its own user namespace, init may mount and make namespaces although it is not root there.
fn pass_on_mounting() -> rustix::io::Result<()> {
    let mount = CapabilitySet::SYS_ADMIN;
    let own = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: mount, ..own })?;
    rustix::thread::configure_capability_in_ambient_set(mount, true)
}

/// Describes the sandbox to init, which has waited for it.
fn start(
    init: &Child,
    stdin: Option<&mut ChildStdin>,
    group: Option<&ControlGroup>,
    inner: &Inner,
) -> Result<()> {
    if let Some(group) = group {
        group.add(Pid::from_child(init)).context("cannot limit the sandbox")?;
    }
    let mut line = serde_json::to_vec(inner)?;
    line.push(b'\n');
    stdin
        .ok_or_else(|| Error::new("the sandbox has no stdin"))?
        .write_all(&line)
        .context("cannot describe the sandbox")
}

/// Passes opsd's words on until opsd is gone, init has ended, or the disk is nearly full.
fn watch(init: &mut Child, stdin: &mut Option<ChildStdin>, directory: &Path, free_space: u64) -> Result<()> {
    let handle = rustix::process::pidfd_open(Pid::from_child(init), PidfdFlags::empty())
        .map_err(std::io::Error::from)
        .context("cannot watch the sandbox")?;
    let mut own = own_stdin()?;
    loop {
        let mut waited = [PollFd::new(&own, PollFlags::IN), PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut waited, Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).context("cannot wait"),
        }
        let [is_told, has_ended] = waited.map(|fd| !fd.revents().is_empty());
        if is_told {
            let mut word = [0; 64];
            let n = own.read(&mut word).context("cannot read opsd's words")?;
            match stdin {
                Some(stdin) if n > 0 => stdin.write_all(&word[..n]).context("cannot reach the sandbox")?,
                _ => return Ok(()),
            }
        }
        if has_ended {
            return Ok(());
        }
        let free = rustix::fs::statvfs(directory).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        if free.is_ok_and(|free| free < free_space) {
            let full = format!(
                "the disk of {} is nearly full: less than {} MiB free",
                directory.display(),
                free_space >> 20
            );
            std::io::stdout().write_all(&Said::Failed(full, None).line()?)?;
            return Ok(());
        }
    }
}

fn await_end(init: &mut Child, bound: Duration) -> Result<()> {
    let begun = Instant::now();
    while init.try_wait().context("cannot wait for the sandbox")?.is_none() && begun.elapsed() < bound {
        pause();
    }
    Ok(())
}

/// Ends all descendants until there is none. Orphans come to this process: it is their subreaper.
fn end_descendants() -> Result<()> {
    let begun = Instant::now();
    loop {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(errno) => {
                    return Err(std::io::Error::from(errno))
                        .context("cannot wait for the sandbox's processes");
                }
            }
        }
        let left = descendants();
        if begun.elapsed() > KILL_BOUND {
            let pids: Vec<String> = left.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
            return Err(Error::new(format!("processes {} of a sandbox do not end", pids.join(", "))));
        }
        // What stands still starts nothing.
        for signal in [Signal::STOP, Signal::KILL] {
            left.iter().for_each(|pid| signal_child(*pid, &left, signal));
        }
        pause();
    }
}

/// Signals a process that was found to be a descendant, if its number is not another one's by now.
fn signal_child(pid: Pid, descendants: &[Pid], signal: Signal) {
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    let raw = pid.as_raw_nonzero().get();
    let is_ours =
        parent_of(raw).and_then(Pid::from_raw).is_some_and(|p| p == getpid() || descendants.contains(&p));
    if is_ours {
        // A process that is gone is what is wanted.
        let _ = rustix::process::pidfd_send_signal(&handle, signal);
    }
}

/// Children, their children, and so on.
fn descendants() -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let parents: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, parent_of(pid)?))
        })
        .collect();
    let mut found = vec![getpid().as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(&of) = found.get(next) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    found.into_iter().skip(1).filter_map(Pid::from_raw).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat).into_owned();
    // The name, in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "the keeper is a process of one thread, without a runtime")]
fn pause() {
    std::thread::sleep(POLL);
}
