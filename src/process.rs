//! Child processes: process groups, bounded stderr, an end that is certain.
//!
//! A child leads its own process group, so that Ctrl-C reaches opsd alone and opsd decides. Its
//! stderr is drained all the time and kept within bounds, because a child that cannot write there
//! stands still. Pipes for data are plain blocking files: the data path is threads, not tasks.
//! Deliberately absent: shells, environments (whoever builds the command decides), and the names of
//! arguments in any message.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{ChildStderr, Command};
use tokio::task::JoinHandle;

use crate::error::{Context, Error, Result};

/// Keeps this process's memory out of core dumps, and from other processes of its user: it is going to hold
/// keys. Children begin without the second, and keep the first: they get passwords.
pub fn keep_memory_private() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// The beginning says what went wrong first, the end says what went wrong last.
const STDERR_HEAD: usize = 8 * 1024;
const STDERR_TAIL: usize = 32 * 1024;

/// After its leader is gone, how long a group's other members may keep stderr open.
const DRAIN_BOUND: Duration = Duration::from_secs(2);

/// Processes of one child whose stderr is kept apart; more than a machine restores with.
const WRITERS: usize = 64;

/// Between the polite signal and SIGKILL.
const STOP_BOUND: Duration = Duration::from_secs(5);

/// Fewer switches between pg_dump and the reader; what an unprivileged process may ask for.
const PIPE_CAPACITY: usize = 1024 * 1024;

/// Output that [`run`] keeps; what is asked for there is a version or a word.
const RUN_OUTPUT: u64 = 256 * 1024;

/// Where a child reads from.
#[derive(Debug)]
pub enum Input {
    /// Nothing.
    Null,
    /// A pipe; [`Child::stdin`] is its other end.
    Pipe,
    /// This.
    File(File),
}

/// Where a child writes to.
#[derive(Debug)]
pub enum Output {
    /// Nowhere.
    Null,
    /// A pipe; [`Child::stdout`] is its other end.
    Pipe,
}

/// A running child. Dropping it ends its whole group.
#[derive(Debug)]
pub struct Child {
    /// The writing end of its stdin, for a blocking thread; closing it is end-of-file.
    pub stdin: Option<File>,
    /// The reading end of its stdout, for a blocking thread.
    pub stdout: Option<File>,
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    child: tokio::process::Child,
    group: Pid,
    polite: Signal,
    stderr: Arc<Mutex<Stderr>>,
    drain: JoinHandle<()>,
    ended: bool,
}

/// How a child ended.
#[derive(Debug)]
pub struct Exit {
    /// What it was called.
    pub name: String,
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote to stderr, cut in the middle where it was long.
    pub stderr: String,
    /// Whether it was long.
    pub is_cut: bool,
}

impl Exit {
    /// `exited with status 1`, `killed by signal 9`.
    pub fn describe(&self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        }
    }

    /// What it wrote to stderr, a line each, blank ones aside.
    pub fn stderr_lines(&self) -> Vec<String> {
        self.stderr.lines().map(str::trim_end).filter(|l| !l.is_empty()).map(str::to_owned).collect()
    }

    /// Success, or an error with the end of stderr.
    pub fn check(&self) -> Result<()> {
        if self.status.success() {
            return Ok(());
        }
        let why = match self.stderr.trim() {
            "" => Error::new("it wrote nothing to stderr"),
            text => Error::new(text),
        };
        Err(why.context(format!("{} {}", self.name, self.describe())))
    }
}

/// Starts `command` as the leader of a group of its own. `name` is what messages call it.
pub fn spawn(name: &str, command: Command, stdin: Input, stdout: Output) -> Result<Child> {
    spawn_stopped_by(name, command, stdin, stdout, Signal::TERM)
}

/// The same for a program whose polite signal is another one.
pub fn spawn_stopped_by(
    name: &str,
    mut command: Command,
    stdin: Input,
    stdout: Output,
    polite: Signal,
) -> Result<Child> {
    command.stderr(Stdio::piped());
    let (mut child, own_stdin, own_stdout) = start(name, command, stdin, stdout)?;
    let stderr = Arc::default();
    let drain = tokio::spawn(drain(child.stderr.take(), Arc::clone(&stderr)));
    Child::of(name, child, polite, stderr, drain, (own_stdin, own_stdout))
}

/// The same for a program of several processes that write to stderr at once, a word at a time
/// (pg_restore with `--jobs`): what each of them wrote stays together, its leader's at the end.
///
/// Their stderr is a socket that tells the writer of every byte. Such a one cannot be opened again as
/// `/dev/stderr`, which is why other programs have a pipe.
pub fn spawn_apart(name: &str, mut command: Command, stdin: Input, stdout: Output) -> Result<Child> {
    let (read, write) = socket_pair().context("cannot make a socket for stderr")?;
    command.stderr(write);
    let (child, own_stdin, own_stdout) = start(name, command, stdin, stdout)?;
    let stderr = Arc::default();
    let drain = tokio::spawn(drain_apart(read, Arc::clone(&stderr)));
    Child::of(name, child, Signal::TERM, stderr, drain, (own_stdin, own_stdout))
}

type Started = (tokio::process::Child, Option<File>, Option<File>);

/// Starts it with its ends of the pipes; the others come back.
fn start(name: &str, mut command: Command, stdin: Input, stdout: Output) -> Result<Started> {
    let (child_stdin, own_stdin) = match stdin {
        Input::Null => (Stdio::null(), None),
        Input::File(file) => (file.into(), None),
        Input::Pipe => {
            let (read, write) = pipe()?;
            (read.into(), Some(write))
        }
    };
    let (child_stdout, own_stdout) = match stdout {
        Output::Null => (Stdio::null(), None),
        Output::Pipe => {
            let (read, write) = pipe()?;
            (write.into(), Some(read))
        }
    };
    let child = command
        .stdin(child_stdin)
        .stdout(child_stdout)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // The command holds the child's ends of the pipes; kept open, end-of-file would never come.
    drop(command);
    Ok((child, own_stdin, own_stdout))
}

/// Runs `command` to its end within `bound` and returns what it wrote to stdout, as text and cut at a
/// bound: for versions and words.
pub async fn run(name: &str, command: Command, bound: Duration) -> Result<(Exit, String)> {
    let (exit, bytes) = output_up_to(name, command, bound, RUN_OUTPUT).await?;
    Ok((exit, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Runs `command` to its end within `bound` and returns all it wrote to stdout; more than `limit`
/// bytes are an error.
pub async fn output(name: &str, command: Command, bound: Duration, limit: u64) -> Result<(Exit, Vec<u8>)> {
    let (exit, bytes) = output_up_to(name, command, bound, limit + 1).await?;
    if bytes.len() as u64 > limit {
        return Err(Error::new(format!("{name} wrote more than {limit} bytes")));
    }
    Ok((exit, bytes))
}

async fn output_up_to(name: &str, command: Command, bound: Duration, limit: u64) -> Result<(Exit, Vec<u8>)> {
    let mut child = spawn(name, command, Input::Null, Output::Pipe)?;
    let stdout = child.stdout.take();
    let read = tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut text = Vec::new();
        if let Some(mut stdout) = stdout {
            let kept = stdout.by_ref().take(limit).read_to_end(&mut text);
            kept.and_then(|_| std::io::copy(&mut stdout, &mut std::io::sink()))?;
        }
        Ok::<_, std::io::Error>(text)
    });
    match tokio::time::timeout(bound, child.wait()).await {
        Ok(exit) => {
            let exit = exit?;
            // A grandchild may hold the pipe, so this end is bounded too.
            child.end_group();
            let text = match tokio::time::timeout(DRAIN_BOUND, read).await {
                Ok(Ok(text)) => text.with_context(|| format!("cannot read what {name} says"))?,
                Ok(Err(_)) | Err(_) => {
                    return Err(Error::new(format!(
                        "{name} left a process behind that keeps its output open"
                    )));
                }
            };
            Ok((exit, text))
        }
        Err(_) => {
            let exit = child.stop().await?;
            let late = format!("{name} did not end within {} s", bound.as_secs_f64());
            Err(match exit.stderr.trim() {
                "" => Error::new(late),
                text => Error::new(text).context(late),
            })
        }
    }
}

fn pipe() -> Result<(File, File)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
        .map_err(std::io::Error::from)
        .context("cannot make a pipe")?;
    // Best effort: a user over its pipe quota gets the default size.
    let _ = rustix::pipe::fcntl_setpipe_size(&read, PIPE_CAPACITY);
    Ok((read.into(), write.into()))
}

/// A stream whose reading end is told who wrote, and in which no two writers' bytes are read as one.
fn socket_pair() -> std::io::Result<(UnixStream, OwnedFd)> {
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    rustix::net::sockopt::set_socket_passcred(&read, true)?;
    read.set_nonblocking(true)?;
    Ok((UnixStream::from_std(read)?, write.into()))
}

impl Child {
    fn of(
        name: &str,
        child: tokio::process::Child,
        polite: Signal,
        stderr: Arc<Mutex<Stderr>>,
        drain: JoinHandle<()>,
        (stdin, stdout): (Option<File>, Option<File>),
    ) -> Result<Child> {
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::new(format!("{name} ended before it began")))?;
        let name = name.to_owned();
        let inner = Inner { name, child, group, polite, stderr, drain, ended: false };
        Ok(Child { stdin, stdout, inner: Some(inner) })
    }

    /// Its process id, which is its group's.
    pub fn id(&self) -> Option<u32> {
        self.inner.as_ref().and_then(|inner| inner.child.id())
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.inner.as_ref().map(|inner| lock(&inner.stderr).text(inner.group)).unwrap_or_default()
    }

    /// Whether it has ended already, without waiting.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.inner.is_none() || self.status()?.is_some())
    }

    /// How it ended, if it has, without waiting.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.inner {
            Some(inner) => Ok(inner.child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Waits for its end. Cancelling this loses nothing. Other members of its group that hold
    /// stderr open are given a moment, then ended.
    pub async fn wait(&mut self) -> Result<Exit> {
        match &mut self.inner {
            Some(inner) => inner.wait().await,
            None => Err(Error::new("waited for a child that is gone")),
        }
    }

    /// Ends it and its group: politely, then surely.
    pub async fn stop(mut self) -> Result<Exit> {
        self.stdin = None;
        self.stdout = None;
        match self.inner.take() {
            Some(mut inner) => inner.stop().await,
            None => Err(Error::new("stopped a child that is gone")),
        }
    }

    /// Ends whatever is left of the group after its leader.
    fn end_group(&self) {
        if let Some(inner) = &self.inner {
            inner.signal(Signal::KILL);
        }
    }
}

impl Inner {
    async fn wait(&mut self) -> Result<Exit> {
        let status = self.child.wait().await.with_context(|| format!("cannot wait for {}", self.name))?;
        if !self.ended {
            if tokio::time::timeout(DRAIN_BOUND, &mut self.drain).await.is_err() {
                self.signal(Signal::KILL);
                self.drain.abort();
            }
            self.ended = true;
        }
        let kept = lock(&self.stderr);
        let (stderr, is_cut) = (kept.text(self.group), kept.is_cut());
        Ok(Exit { name: self.name.clone(), status, stderr, is_cut })
    }

    async fn stop(&mut self) -> Result<Exit> {
        if !self.ended {
            self.signal(self.polite);
            if tokio::time::timeout(STOP_BOUND, self.child.wait()).await.is_err() {
                self.signal(Signal::KILL);
            }
            // Members that ignored the polite signal outlive their leader.
            let exit = self.wait().await;
            self.signal(Signal::KILL);
            return exit;
        }
        self.wait().await
    }

    fn signal(&self, signal: Signal) {
        // ESRCH: the group is empty, which is what is wanted.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::KILL);
        }
        self.drain.abort();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        // Once its leader is reaped, the group's number may belong to somebody else.
        if inner.ended || inner.child.id().is_none() {
            inner.ended = true;
            return;
        }
        inner.signal(inner.polite);
        // pg_dump uses the moment to cancel its query on the server. If the runtime ends first, the
        // task is dropped, and with it `Inner`, which kills the group.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = inner.stop().await;
            });
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn drain(stderr: Option<ChildStderr>, kept: Arc<Mutex<Stderr>>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => lock(&kept).push(None, buffer.get(..n).unwrap_or_default()),
        }
    }
}

async fn drain_apart(stderr: UnixStream, kept: Arc<Mutex<Stderr>>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if stderr.readable().await.is_err() {
            return;
        }
        match stderr.try_io(Interest::READABLE, || receive(&stderr, &mut buffer)) {
            Ok((_, 0)) => return,
            Ok((writer, n)) => lock(&kept).push(writer, buffer.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Some bytes of one writer, and who that is.
fn receive(stderr: &UnixStream, buffer: &mut [u8]) -> std::io::Result<(Option<Pid>, usize)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let read = rustix::net::recvmsg(stderr, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let writer = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.pid),
        _ => None,
    });
    Ok((writer, read.bytes))
}

/// What a child's processes wrote, by who wrote it where that is known.
#[derive(Debug, Default)]
struct Stderr(Vec<(Option<Pid>, Kept)>);

impl Stderr {
    fn push(&mut self, writer: Option<Pid>, bytes: &[u8]) {
        let at = self.0.iter().position(|(known, _)| *known == writer).unwrap_or_else(|| {
            if self.0.len() < WRITERS {
                self.0.push((writer, Kept::default()));
            }
            self.0.len() - 1
        });
        if let Some((_, kept)) = self.0.get_mut(at) {
            kept.push(bytes);
        }
    }

    /// In the order in which they began to write, the leader last: it says how it ended.
    fn text(&self, leader: Pid) -> String {
        let (last, first): (Vec<_>, Vec<_>) = self.0.iter().partition(|(writer, _)| *writer == Some(leader));
        first.into_iter().chain(last).map(|(_, kept)| kept.text()).collect()
    }

    fn is_cut(&self) -> bool {
        self.0.iter().any(|(_, kept)| kept.dropped > 0)
    }
}

/// The first and the last bytes of a stream.
#[derive(Debug, Default)]
struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(STDERR_HEAD - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(STDERR_TAIL);
        self.tail.drain(..excess);
        self.dropped += excess as u64;
    }

    /// Whole lines on both sides of the gap.
    fn text(&self) -> String {
        let tail: Vec<u8> = self.tail.iter().copied().collect();
        if self.dropped == 0 {
            let all: Vec<u8> = self.head.iter().copied().chain(tail).collect();
            return String::from_utf8_lossy(&all).into_owned();
        }
        let head_end = self.head.iter().rposition(|&b| b == b'\n').map_or(self.head.len(), |i| i + 1);
        let tail_start = tail.iter().position(|&b| b == b'\n').map_or(0, |i| i + 1);
        let missing = self.dropped + (self.head.len() - head_end) as u64 + tail_start as u64;
        let head = String::from_utf8_lossy(self.head.get(..head_end).unwrap_or_default()).into_owned();
        let tail = String::from_utf8_lossy(tail.get(tail_start..).unwrap_or_default()).into_owned();
        format!("{}\n… {missing} bytes left out …\n{tail}", head.trim_end_matches('\n'))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    fn is_alive(group: &str) -> bool {
        let pid = Pid::from_raw(group.trim().parse().unwrap()).unwrap();
        rustix::process::test_kill_process(pid).is_ok()
            && !std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
                .unwrap_or_default()
                .contains(") Z ")
    }

    async fn until_gone(pid: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while is_alive(pid) {
            assert!(Instant::now() < deadline, "process {pid} is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn exit_codes_and_signals_read_well() {
        let mut child = spawn("tool", sh("echo why >&2; exit 3"), Input::Null, Output::Null).unwrap();
        let exit = child.wait().await.unwrap();
        assert_eq!(exit.check().unwrap_err().to_string(), "tool exited with status 3: why");
        let mut child = spawn("tool", sh("kill -9 $$"), Input::Null, Output::Null).unwrap();
        let exit = child.wait().await.unwrap();
        assert_eq!(exit.describe(), "killed by signal 9");
        let again = child.wait().await.unwrap();
        assert_eq!(again.describe(), "killed by signal 9");
    }

    #[tokio::test]
    async fn a_flood_on_stderr_neither_blocks_nor_grows() {
        let script = "echo first >&2; i=0; while [ $i -lt 20000 ]; do echo \"line $i of noise\"; \
                      i=$((i+1)); done >&2; echo last >&2; exit 1";
        let mut child = spawn("tool", sh(script), Input::Null, Output::Null).unwrap();
        let exit = child.wait().await.unwrap();
        assert!(exit.stderr.starts_with("first\n"), "{}", &exit.stderr[..20]);
        assert!(exit.stderr.ends_with("last\n"));
        assert!(exit.is_cut && exit.stderr.contains("bytes left out"));
        assert!(exit.stderr.len() <= STDERR_HEAD + STDERR_TAIL + 64);
        let noise = |l: &&str| l.starts_with("line ") && l.ends_with(" of noise");
        let mut rest = exit.stderr.lines().filter(|l| *l != "first" && !l.contains("left out"));
        let odd = rest.find(|l| !noise(l));
        assert_eq!(odd, Some("last"), "lines are whole");
    }

    /// As pg_restore's workers write: a word at a time, all to one stderr.
    #[tokio::test]
    async fn what_processes_write_at_once_stays_apart() {
        let script = "say() { for i in $(seq 200); do for word in 'tool: ' 'error: ' \"$1\" ' and ' \"$1\"; do \
                      printf '%s' \"$word\"; done; echo; done >&2; }; \
                      say a & say b & say c & say d & wait; echo 'tool: 4 errors' >&2; exit 1";
        let mut child = spawn_apart("tool", sh(script), Input::Null, Output::Null).unwrap();
        let exit = child.wait().await.unwrap();
        assert_eq!(exit.status.code(), Some(1));
        let lines: Vec<&str> = exit.stderr.lines().collect();
        assert_eq!((lines.len(), lines.last()), (801, Some(&"tool: 4 errors")));
        for of_one in lines[..800].chunks(200) {
            let begin = of_one[0].strip_prefix("tool: error: ").unwrap();
            assert!(["a and a", "b and b", "c and c", "d and d"].contains(&begin), "{begin}");
            assert!(of_one.iter().all(|line| *line == of_one[0]), "{of_one:?}");
        }
        // The same through a pipe is not: without that this test says nothing.
        // A busy machine may run one process after the other, now and then.
        for _ in 0..50 {
            let together =
                spawn("tool", sh(script), Input::Null, Output::Null).unwrap().wait().await.unwrap();
            if together.stderr != exit.stderr {
                return;
            }
        }
        panic!("nothing was ever mixed");
    }

    #[tokio::test]
    async fn a_flood_from_many_processes_neither_blocks_nor_grows() {
        let script = "for i in $(seq 100); do (i=0; while [ $i -lt 300 ]; do \
                      echo \"line $i of noise that is long enough to fill what is kept of one of them, \
                      and of all the others, too, and more than once\"; i=$((i+1)); done >&2) & done; \
                      wait; echo last >&2";
        let mut child = spawn_apart("tool", sh(script), Input::Null, Output::Null).unwrap();
        let exit = child.wait().await.unwrap();
        assert!(exit.is_cut && exit.status.success());
        assert!(exit.stderr.len() <= WRITERS * (STDERR_HEAD + STDERR_TAIL + 64), "{}", exit.stderr.len());
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_polite_signal_is_killed() {
        let script = "trap '' TERM; echo $$; while :; do sleep 1; done";
        let mut child = spawn("tool", sh(script), Input::Null, Output::Pipe).unwrap();
        let mut pid = String::new();
        read_line(child.stdout.as_mut().unwrap(), &mut pid);
        let began = Instant::now();
        let exit = child.stop().await.unwrap();
        assert_eq!(exit.describe(), "killed by signal 9");
        assert!(began.elapsed() >= STOP_BOUND);
        until_gone(&pid).await;
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_stderr_open_does_not_hold_us() {
        let script = "sh -c 'trap \"\" TERM HUP; echo $$; exec sleep 600' & read x; exit 0";
        let mut child = spawn("tool", sh(script), Input::Pipe, Output::Pipe).unwrap();
        let mut pid = String::new();
        read_line(child.stdout.as_mut().unwrap(), &mut pid);
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let exit = child.wait().await.unwrap();
        assert!(exit.status.success());
        until_gone(&pid).await;
    }

    #[tokio::test]
    async fn dropping_ends_the_whole_group() {
        let script = "sh -c 'echo $$; exec sleep 600' & echo $$; wait";
        let mut child = spawn("tool", sh(script), Input::Null, Output::Pipe).unwrap();
        let (mut one, mut two) = (String::new(), String::new());
        read_line(child.stdout.as_mut().unwrap(), &mut one);
        read_line(child.stdout.as_mut().unwrap(), &mut two);
        assert!(is_alive(&one) && is_alive(&two));
        drop(child);
        until_gone(&one).await;
        until_gone(&two).await;
    }

    #[tokio::test]
    async fn run_returns_output_and_ends_what_is_late() {
        let (exit, text) = run("tool", sh("echo hi"), Duration::from_secs(10)).await.unwrap();
        assert!(exit.status.success());
        assert_eq!(text, "hi\n");
        let late = run("tool", sh("exec sleep 600"), Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(late.to_string(), "tool did not end within 0.1 s");
        let missing = run("tool", Command::new("/nonexistent/tool"), Duration::from_secs(1)).await;
        assert!(missing.unwrap_err().to_string().starts_with("cannot start tool: No such file"));
    }

    /// One byte at a time, so that nothing behind the line is taken.
    fn read_line(file: &mut File, line: &mut String) {
        let mut byte = [0];
        while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0] as char);
        }
    }
}
