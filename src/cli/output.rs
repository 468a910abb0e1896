//! The only code that prints: results to stdout, talk to stderr.
//!
//! A reader that goes away (`opsd … | head`) is not an error: what it did not want is dropped.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Duration;

use indicatif::MultiProgress;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::printable;

/// Columns that text is laid out for.
pub const WIDTH: usize = 80;

/// Prints text to stdout, with a newline at its end.
pub fn text(text: impl AsRef<str>) -> Result<()> {
    let text = printable::page(text.as_ref());
    let newline = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    quiet_when_closed(bytes(format!("{text}{newline}").as_bytes()))
}

/// Prints one JSON document to stdout.
pub fn json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document)?;
    quiet_when_closed(bytes(format!("{}\n", printable::json(&text)).as_bytes()))
}

/// Copies binary data to stdout, to its end; blocking. A source that fails is an error, a reader that
/// has seen enough is not.
pub fn copy(from: &mut impl Read) -> Result<()> {
    let mut out = io::stdout().lock();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        let written = if n == 0 { out.flush() } else { out.write_all(&buffer[..n]) };
        if n == 0 || written.is_err() {
            return quiet_when_closed(written);
        }
    }
}

/// A closed pipe is the reader's decision, not a failure.
fn quiet_when_closed(result: io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Error::from(e).context("cannot write to stdout")),
    }
}

fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Says a line to the person at the terminal (stderr), whether or not it is one.
pub fn say(text: impl AsRef<str>) {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{}", printable::lines(text.as_ref()));
}

/// Says what is wrong with a command line, laid out already.
pub fn usage(text: &str) {
    let _ = write!(io::stderr().lock(), "{}", printable::page(text));
}

/// Says a paragraph: wrapped under `first` at a terminal, as it is elsewhere, where programs read it.
pub fn note(first: &str, text: impl AsRef<str>) {
    let text = printable::lines(text.as_ref());
    if !is_terminal() {
        return say(format!("{first}{text}"));
    }
    for (i, line) in text.lines().enumerate() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let first = if i == 0 { first } else { indent };
        say(wrapped(first, words).trim_end());
    }
}

/// Lines for stdout of a name and what there is to say, at a terminal wrapped under themselves.
pub fn entry(first: &str, text: impl AsRef<str>) -> String {
    let text = printable::line(text.as_ref());
    let entry = if is_stdout_terminal() { wrapped(first, &text) } else { format!("{first}{text}") };
    entry.trim_end().to_owned()
}

/// Reports the error that ends the process.
pub fn error(error: &Error) {
    note("error: ", error.to_string());
    if let Some(hint) = error.hint() {
        note("hint: ", hint);
    }
}

/// Where log lines go: one event a write, of which nothing but its own first line begins at the margin. Bars make room
/// for it.
pub struct Log(pub MultiProgress);

impl Write for Log {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = printable::lines(text.strip_suffix('\n').unwrap_or(&text));
        self.0.suspend(|| writeln!(io::stderr().lock(), "{text}"))?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether stderr is a terminal, where progress and colours make sense.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether stdout is one, where nothing binary belongs.
pub fn is_stdout_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether there is a person who can be asked: one who sees the question and can type.
pub fn can_ask() -> bool {
    is_terminal() && io::stdin().is_terminal()
}

/// Asks, and waits for a line. Nobody waits for the thread that reads it: a signal ends the process without an answer.
pub async fn ask(question: &str) -> io::Result<String> {
    let mut stderr = io::stderr().lock();
    write!(stderr, "{}", printable::line(question))?;
    stderr.flush()?;
    drop(stderr);
    let (answered, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        let _ = answered.send(read.map(|_| line));
    });
    answer.await.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))
}

/// Columns of the terminal that stdout is; absent where it is none, and nothing needs to be cut.
pub fn columns() -> Option<usize> {
    columns_of(io::stdout())
}

/// Columns of the terminal that stderr is.
pub fn progress_columns() -> usize {
    columns_of(io::stderr()).unwrap_or(WIDTH)
}

fn columns_of(terminal: impl std::os::fd::AsFd) -> Option<usize> {
    // Some terminals have no size.
    let size = rustix::termios::tcgetwinsize(terminal).ok()?;
    Some(if size.ws_col == 0 { WIDTH } else { usize::from(size.ws_col) })
}

/// `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would print as 1024.0 of the smaller unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `0.4s`, `12s`, `3m 12s`, `2h 05m`, `3d 04h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => {
            let tenths = duration.as_millis() / 100;
            format!("{}.{}s", tenths / 10, tenths % 10)
        }
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// The same for seconds as they are recorded.
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// `1 set`, `2 sets`.
pub fn counted(number: u64, one: &str) -> String {
    format!("{} {one}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text in lines of [`WIDTH`], the first after `first`, the others indented as far.
pub fn wrapped(first: &str, text: &str) -> String {
    let indent = first.chars().count();
    let mut out = first.to_owned();
    let mut column = indent;
    for word in printable::line(text).trim_end().split(' ') {
        let width = word.chars().count();
        if column > indent && column + 1 + width > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > indent {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1_048_575), "1.0 MiB");
        assert_eq!(size(1_288_490_189), "1.2 GiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn durations_for_people() {
        assert_eq!(duration(Duration::from_millis(449)), "0.4s");
        assert_eq!(duration(Duration::from_millis(9_990)), "9.9s");
        assert_eq!(duration(Duration::from_secs(12)), "12s");
        assert_eq!(duration(Duration::from_secs(192)), "3m 12s");
        assert_eq!(duration(Duration::from_secs(7_500)), "2h 05m");
        assert_eq!(duration(Duration::from_secs(273_600)), "3d 04h");
    }

    #[test]
    fn counts_for_people() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(0, "table"), "0 tables");
        assert_eq!(counted(1, "table"), "1 table");
        assert_eq!(counted(1_000, "table"), "1,000 tables");
    }

    #[test]
    fn a_closed_pipe_is_quiet_and_a_full_disk_is_not() {
        assert!(quiet_when_closed(Err(io::Error::from(io::ErrorKind::BrokenPipe))).is_ok());
        assert!(quiet_when_closed(Err(io::Error::from(io::ErrorKind::StorageFull))).is_err());
    }

    #[test]
    fn text_wraps_under_itself_and_cannot_drive_the_terminal() {
        let text = wrapped("  - ", &format!("{} \u{1b}[2Jend", "word ".repeat(20).trim()));
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(text.lines().nth(1).unwrap().starts_with("    word"));
        assert!(text.ends_with("\\u{1b}[2Jend\n"), "{text}");
    }
}
