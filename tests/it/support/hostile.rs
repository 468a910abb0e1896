//! Servers that mean harm, and how much memory a command takes that talks to one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::opsd::{Run, finish_child};

/// Resident memory that any command may take whatever its peer sends, in KiB.
pub const MEMORY: u64 = 100 << 10;

/// A command that took as much is ended, so that a test that fails does not take the machine with it.
const KILLED_AT: u64 = 400 << 10;

/// Listens on a free port of 127.0.0.1 and gives every connection a thread of its own. What it writes
/// fails once opsd has hung up, which ends the connection.
pub fn server(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                serve(stream)
            });
        }
    });
    port
}

/// Writes the same bytes again and again, until the other end hangs up.
pub fn repeat(stream: &mut impl Write, piece: &[u8]) -> std::io::Result<()> {
    let block = piece.repeat((256 << 10) / piece.len() + 1);
    loop {
        stream.write_all(&block)?;
    }
}

/// Writes one byte of `text` each `pause`, and after its end the last one for ever.
pub fn drip(stream: &mut impl Write, text: &[u8], pause: Duration) -> std::io::Result<()> {
    for at in 0.. {
        let byte = text.get(at).or(text.last()).copied().unwrap_or_default();
        stream.write_all(&[byte])?;
        std::thread::sleep(pause);
    }
    Ok(())
}

/// Reads until `end`, or until the other end hangs up.
pub fn read_to(stream: &mut impl Read, end: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        read.push(byte[0]);
    }
    Ok(read)
}

/// How a command ended, and what it took.
pub struct Measured {
    /// Its end.
    pub run: Run,
    /// The most resident memory it had, in KiB.
    pub peak: u64,
    /// How long it ran.
    pub time: Duration,
}

impl Measured {
    /// Fails where it took more than [`MEMORY`], or longer than `time`.
    pub fn expect_small(self, what: &str, time: Duration) -> Run {
        eprintln!("{what}: {} MiB in {:.1} s", self.peak >> 10, self.time.as_secs_f64());
        assert!(self.peak > 0, "{what}: nothing was measured of {}", self.run);
        assert!(self.peak <= MEMORY, "{what}: {} MiB in {:?}: {}", self.peak >> 10, self.time, self.run);
        assert!(self.time <= time, "{what}: it took {:?}: {}", self.time, self.run);
        self.run
    }
}

/// Runs a command to its end, or until it is clear that it fails the test.
pub fn measured(mut command: Command, patience: Duration) -> Measured {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let child = command.spawn().expect("opsd starts");
    let (pid, started) = (child.id(), Instant::now());
    let watcher = std::thread::spawn(move || {
        let mut peak = 0;
        while lives(pid) {
            // While a program is being loaded, there is no figure.
            peak = peak.max(resident(pid).unwrap_or(0));
            if peak > KILLED_AT || started.elapsed() > patience {
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        (peak, started.elapsed())
    });
    let run = finish_child(child, words.join(" "));
    let (peak, time) = watcher.join().expect("watched");
    Measured { run, peak, time }
}

/// Whether a process has not ended yet.
fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .is_some_and(|s| !s.trim().starts_with(['Z', 'X']))
}

/// The most memory that a process has had, in KiB; none once it has ended.
pub fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
