//! The first process inside a sandbox. Closes the rings around itself, says which of them hold, waits for
//! the word, then runs the programs and reaps whatever they leave behind.
//!
//! Everything here happens in a process with one thread, as namespaces and credentials belong to threads.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use super::{Containment, GO, Inner, Program, Ring, Said, confine, own_stdin, read_line, view};
use crate::error::{Context, Error, Result};

/// An immediate shutdown takes a postmaster at most five seconds, then it kills its children.
const STOP_BOUND: Duration = Duration::from_secs(6);
/// How often processes are reaped that nobody else reaps.
const REAP_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Runs a sandbox from inside. The exit code is 0 where every program went well.
pub fn init() -> Result<u8> {
    let mut stdin = own_stdin()?;
    // Without the keeper nobody would end this process. A keeper that has gone already closed the pipe.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(std::io::Error::from)
        .context("cannot bind the sandbox to its keeper")?;
    let Some(line) = read_line(&mut stdin)? else { return Ok(1) };
    let inner: Inner = serde_json::from_slice(&line)?;
    let said = match enclose(&inner) {
        Ok(containment) => Said::Contained(containment),
        Err(error) => {
            say(&Said::failed(&error))?;
            return Ok(1);
        }
    };
    say(&said)?;
    let mut word = [0; GO.len()];
    if stdin.read_exact(&mut word).is_err() || word != GO {
        return Ok(1);
    }
    for program in &inner.sandbox.programs {
        match run(program, &stdin) {
            Ok(Some(status)) if status.exit_status() == Some(0) => {}
            Ok(Some(status)) => {
                say(&Said::Ended(program.name.clone(), describe(status)))?;
                return Ok(1);
            }
            Ok(None) => return Ok(0),
            Err(error) => {
                say(&Said::failed(&error))?;
                return Ok(1);
            }
        }
    }
    Ok(0)
}

fn say(said: &Said) -> Result<()> {
    std::io::stdout().write_all(&said.line()?).context("cannot say so")
}

/// Closes every ring that this machine allows, the outermost first.
fn enclose(inner: &Inner) -> Result<Containment> {
    let sandbox = &inner.sandbox;
    // What is made for the programs' user to pass through is open to that user, whatever opsd's own mask is.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let own = |what: CloneFlags| unshare(what).map_err(|errno| errno.desc().to_owned());
    let mounts = own(CloneFlags::CLONE_NEWNS);
    let network = own(CloneFlags::CLONE_NEWNET);
    // Shared memory, semaphores and the host's name: of no use to anybody, so they are not reported.
    let ipc = own(CloneFlags::CLONE_NEWIPC);
    let _ = own(CloneFlags::CLONE_NEWUTS);
    let _ = own(CloneFlags::CLONE_NEWCGROUP);
    let has_pids = inner.no_pid_namespace.is_none();
    let view = mounts.and_then(|()| view::enter(sandbox, has_pids).map_err(|e| e.to_string()));
    let has_view = view.is_ok();

    confine::limit(sandbox.limits)?;
    if let Some(user) = &sandbox.user {
        confine::become_user(user)?;
        // What was bound to the old user is forgotten.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(std::io::Error::from)
            .context("cannot bind the sandbox to its keeper")?;
    }
    confine::drop_privileges()?;
    let landlock = confine::landlock(sandbox, has_view)?;
    let shares_files = sandbox.user.is_none() && !has_view;
    let seccomp = confine::seccomp(shares_files, landlock.truncation || !shares_files);

    let processes = match &inner.no_pid_namespace {
        None if ipc.is_ok() => Ring::Held,
        None => Ring::Weak("shared memory of other processes can be reached (no IPC namespace)".into()),
        Some(why) => without_pid_namespace(why, sandbox.user.is_some(), landlock.signals),
    };
    let network = match (network, &seccomp) {
        (Ok(()), _) | (_, Ok(())) => Ring::Held,
        (Err(why), Err(_)) => Ring::Open(format!("the network can be reached (no network namespace: {why})")),
    };
    let files = match view {
        Ok(_) => Ring::Held,
        Err(why) if landlock.is_there && (!shares_files || seccomp.is_ok()) => {
            Ring::Weak(format!("Unix sockets of this host can be reached (no mount namespace: {why})"))
        }
        Err(why) if sandbox.user.is_some() => Ring::Weak(format!(
            "files that everybody may read can be read (no mount namespace: {why}; no Landlock)"
        )),
        Err(why) if landlock.is_there => Ring::Open(format!(
            "modes and owners of files of opsd's own user can be changed (no mount namespace: {why}; no seccomp)"
        )),
        Err(why) => Ring::Open(format!(
            "files of opsd's own user can be read (no mount namespace: {why}; no Landlock)"
        )),
    };
    let user = match sandbox.user {
        Some(_) => Ring::Held,
        None if inner.has_user_namespace && has_view && has_pids => Ring::Held,
        None => Ring::Weak("it runs as opsd's own user".into()),
    };
    let kernel = match seccomp {
        Ok(()) => Ring::Held,
        Err(why) => Ring::Weak(format!("every system call can be made ({why})")),
    };
    // What runs inside must not write to opsd in this process's name, through `/proc/PID/fd`.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(std::io::Error::from)
        .context("cannot close this process")?;
    Ok(Containment { processes, network, files, user, kernel, has_control_group: inner.has_control_group })
}

/// Who shares a user with opsd may end opsd, and the keeper that would end it.
fn without_pid_namespace(why: &str, is_another_user: bool, signals_stay_inside: bool) -> Ring {
    if is_another_user || signals_stay_inside {
        Ring::Weak(format!("other processes can be seen (no PID namespace: {why})"))
    } else {
        Ring::Open(format!(
            "processes of opsd's own user can be ended, its keeper among them (no PID namespace: {why}; this \
             kernel's Landlock knows no signals)"
        ))
    }
}

/// Runs one program to its end. `None` means that the keeper wants the end.
fn run(program: &Program, stdin: &File) -> Result<Option<WaitStatus>> {
    let child = Command::new(&program.path)
        .args(&program.arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.name))?;
    let pid = Pid::from_child(&child);
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
    let mut stopped: Option<Instant> = None;
    loop {
        let mut waited = vec![PollFd::new(&handle, PollFlags::IN)];
        if stopped.is_none() {
            waited.push(PollFd::new(stdin, PollFlags::IN));
        }
        match poll(&mut waited, Some(&REAP_INTERVAL)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(std::io::Error::from(errno)).context("cannot wait"),
        }
        let is_over = waited.get(1).is_some_and(|fd| !fd.revents().is_empty());
        if let Some(status) = reap(pid)? {
            return Ok(stopped.is_none().then_some(status));
        }
        if is_over {
            // For a server of PostgreSQL that is an immediate shutdown, which frees its shared memory.
            let _ = rustix::process::pidfd_send_signal(&handle, Signal::QUIT);
            stopped = Some(Instant::now());
        }
        if stopped.is_some_and(|since| since.elapsed() > STOP_BOUND) {
            return Ok(None);
        }
    }
}

/// Reaps everything that has ended; says how `pid` did, if it is among them.
fn reap(pid: Pid) -> Result<Option<WaitStatus>> {
    let mut found = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if ended == pid => found = Some(status),
            Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(found),
            Err(errno) => return Err(Error::from(std::io::Error::from(errno))).context("cannot wait"),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Landlock has scopes for signals from Linux 6.12 on; the machine of a test is what it is.
    #[test]
    fn who_shares_opsds_user_and_may_signal_it_is_not_contained() {
        for (another, inside, is_open) in [(true, false, false), (false, true, false), (false, false, true)] {
            let ring = without_pid_namespace("not permitted", another, inside);
            assert_eq!(matches!(ring, Ring::Open(_)), is_open, "{ring:?}");
        }
    }
}
