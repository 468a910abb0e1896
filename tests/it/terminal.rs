//! What somebody at a terminal sees: a bar for each stream with bytes, rate and time left, and words at
//! the end that need no second look. `script`, which every Debian has, is the terminal.

use std::process::{Command, Stdio};

use crate::security::executable;
use crate::support::opsd::{Opsd, Run, finish, finish_child, quoted};
use crate::support::postgres::{Server, bin_dir, default_server};
use crate::support::processes::{descendants, until};

const COLUMNS: usize = 80;

/// Two tables whose rows take a moment to be checked when they are loaded, and one small one.
fn site() -> (&'static Server, Opsd, String) {
    let server = default_server();
    let database = server.fresh_database("tty");
    server.psql(
        &database,
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.0005); RETURN true; END';
         CREATE TABLE a (id integer, note text, CHECK (public.slow()));
         CREATE TABLE b (id integer, note text, CHECK (public.slow()));
         INSERT INTO a SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 1200) i;
         INSERT INTO b SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 1200) i;
         CREATE TABLE small AS SELECT generate_series(1, 10) AS id",
    );
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.job.set("large_table", quoted("64KiB")).set("streams", "2");
    (server, opsd, database)
}

/// pg_dump as it is over a slow line: the rows come in pieces. All other programs are as they are.
fn slow_line(opsd: &mut Opsd, server: &Server) {
    let (real, directory) = (bin_dir(server.major), opsd.path("bin"));
    std::fs::create_dir(&directory).unwrap();
    for program in std::fs::read_dir(&real).unwrap().map(|entry| entry.unwrap()) {
        if program.file_name() != "pg_dump" {
            std::os::unix::fs::symlink(program.path(), directory.join(program.file_name())).unwrap();
        }
    }
    let script = format!(
        "#!/bin/bash\nset -o pipefail\nreal={}/pg_dump\ncase \"$*\" in\n*--table=*) ;;\n*) exec $real \"$@\" ;;\nesac\n\
         $real \"$@\" | {{ for piece in 1 2 3 4 5; do head -c 200000; sleep 0.25; done; cat; }}\n",
        real.display()
    );
    executable(&directory.join("pg_dump"), &script);
    opsd.postgres.set("bin_dir", quoted(directory.to_str().unwrap()));
}

/// Runs opsd in a terminal of 80 columns; what was written to it is on stdout.
pub fn at_terminal(opsd: &Opsd, arguments: &str) -> Run {
    finish(terminal(opsd, arguments))
}

/// A terminal of 80 columns with opsd in it. What is typed goes to stdin, where there is one.
fn terminal(opsd: &Opsd, arguments: &str) -> Command {
    let inner = opsd.command::<&str>(&[]);
    let program = inner.get_program().to_str().unwrap();
    let mut script = Command::new("/usr/bin/script");
    script
        .env_clear()
        .envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .current_dir(opsd.path(""))
        .arg("-qec")
        .arg(format!("stty cols {COLUMNS} rows 24; exec {program} {arguments}"))
        .arg("/dev/null")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    script
}

/// Every line that stood on a terminal of 80 columns, at any moment, in order.
fn lines(run: &Run) -> Vec<String> {
    let (mut seen, screen) = drawn(run);
    for line in screen {
        if !line.is_empty() && seen.last() != Some(&line) {
            seen.push(line);
        }
    }
    seen
}

/// The lines that stand there in the end.
fn screen(run: &Run) -> Vec<String> {
    drawn(run).1
}

/// Every line that was cleared, in order, and those that were left.
///
/// Bars are not ended by a newline: they are filled up with blanks, and the next one begins because the
/// terminal wraps. A line that is longer than the terminal would push all that follows out of place.
fn drawn(run: &Run) -> (Vec<String>, Vec<String>) {
    let (mut seen, mut screen, mut row, mut column) = (Vec::new(), vec![String::new()], 0, 0);
    let mut see = |line: &str| {
        let line = line.trim_end();
        if !line.is_empty() && seen.last().is_none_or(|last| last != line) {
            seen.push(line.to_owned());
        }
    };
    let mut rest = run.stdout.chars();
    while let Some(c) = rest.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            // ESC [ number letter: rows up and down, and lines that are cleared before they are drawn anew.
            '\u{1b}' => {
                assert_eq!(rest.next(), Some('['), "an escape sequence of another kind: {run}");
                let mut number = String::new();
                let letter = loop {
                    match rest.next().expect("the end of an escape sequence") {
                        digit if digit.is_ascii_digit() => number.push(digit),
                        letter => break letter,
                    }
                };
                let n: usize = number.parse().unwrap_or(1);
                match letter {
                    'A' => row -= n,
                    'B' => row += n,
                    'K' => {
                        see(&screen[row]);
                        screen[row].clear();
                    }
                    'm' => {}
                    other => panic!("what is ESC[{number}{other}? {run}"),
                }
            }
            c => {
                if column == COLUMNS {
                    (row, column) = (row + 1, 0);
                }
                screen.resize(screen.len().max(row + 1), String::new());
                let mut line: Vec<char> = screen[row].chars().collect();
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                screen[row] = line.into_iter().collect();
                column += 1;
            }
        }
        screen.resize(screen.len().max(row + 1), String::new());
    }
    (seen, screen.iter().map(|line| line.trim_end().to_owned()).collect())
}

/// A bar's parts: `  db/data-1   ███░░░   1.2 MiB  300 KiB/s   4s left`.
struct Bar {
    /// Of 14 boxes.
    filled: usize,
    bytes: f64,
    has_rate: bool,
}

impl Bar {
    fn parse(line: &str) -> Option<Bar> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, boxes, number, unit, rate, rate_unit, left, "left"] = words[..] else { return None };
        assert_eq!(boxes.chars().count(), 14, "{line}");
        left.strip_suffix(['s', 'm', 'h'])?.parse::<u32>().ok()?;
        let factor = match unit {
            "B" => 1.0,
            "KiB" => 1024.0,
            _ => 1_048_576.0,
        };
        let has_rate = rate.parse::<f64>().is_ok_and(|rate| rate > 0.0) && rate_unit.ends_with("B/s");
        let filled = boxes.chars().filter(|c| *c == '█').count();
        Some(Bar { filled, bytes: number.parse::<f64>().ok()? * factor, has_rate })
    }
}

/// Each large table has a bar that moves, and is as full as its bytes are of `size`.
fn assert_bars(run: &Run, database: &str, size: impl Fn(&str) -> f64) {
    let lines = lines(run);
    for line in lines.iter().filter(|line| line.contains("B/s")) {
        assert!(line.starts_with(&format!("  {database}/")), "{line:?} begins elsewhere: {run}");
    }
    for (stream, table) in [("data-1", "a"), ("data-2", "b")] {
        let name = format!("{database}/{stream}");
        assert!(name.len() <= 24, "{name} does not fit");
        let of_stream = lines.iter().filter(|line| line.trim_start().starts_with(&name));
        let bars: Vec<Bar> = of_stream.clone().filter_map(|line| Bar::parse(line)).collect();
        assert_eq!(bars.len(), of_stream.count(), "bars without a time left: {lines:#?}");
        assert!(bars.iter().any(|bar| bar.bytes > 0.0 && bar.has_rate), "{name}: {lines:#?}");
        let size = size(table);
        for bar in bars {
            let expected = (bar.bytes / size * 14.0).min(14.0);
            assert!(
                (bar.filled as f64 - expected).abs() <= 1.5,
                "{} of 14 at {} of {size}",
                bar.filled,
                bar.bytes
            );
        }
    }
}

fn size(server: &Server, database: &str, sql: &str) -> f64 {
    server.psql(database, &format!("SELECT {sql}")).parse().unwrap()
}

#[test]
fn a_backup_draws_a_bar_for_each_stream_and_ends_with_a_summary() {
    let (server, mut opsd, database) = site();
    slow_line(&mut opsd, server);
    let run = at_terminal(&opsd, "backup").expect_code(0);
    // What remains is reckoned from the tables' sizes.
    assert_bars(&run, &database, |table| size(server, &database, &format!("pg_table_size('{table}')")));
    let lines = lines(&run);
    let said =
        |text: &str| lines.iter().position(|l| l.contains(text)).unwrap_or_else(|| panic!("{text}: {run}"));
    assert!(lines[0].contains("connecting to main"), "the first thing to be seen says nothing: {run}");
    assert!(said("dumping ") < said("stored and signed in "), "{run}");
    let stored = &lines[said("stored and signed in ")];
    assert!(stored.starts_with("db 20") && stored.contains(" MiB as "), "{stored}");
    assert!(
        said(&format!("{database}: 3 tables, 2,410 rows")) < said("to prove the set: opsd restore --verify")
    );
    // The screen is cleared of bars before the summary.
    assert!(!lines[said("stored and signed in ")..].iter().any(|line| line.contains("left")), "{run}");
    // Asked for silence, it is silent there too.
    assert_eq!(at_terminal(&opsd, "backup --quiet").expect_code(0).stdout, "");
    server.drop_database(&database);
}

#[test]
fn a_rehearsal_draws_a_bar_for_each_stream_and_ends_with_the_verdict() {
    let (server, opsd, database) = site();
    opsd.ok(&["backup"]);
    let run = at_terminal(&opsd, "restore --verify").expect_code(0);
    // Here from the streams' own sizes, which are those of the rows and a little more.
    assert_bars(&run, &database, |table| {
        size(server, &database, &format!("(SELECT sum(length(a::text)) FROM {table} a)"))
    });
    let lines = lines(&run);
    let said =
        |text: &str| lines.iter().position(|l| l.contains(text)).unwrap_or_else(|| panic!("{text}: {run}"));
    assert!(lines[0].contains("looking for the set"), "{run}");
    // Where it came back, without being asked.
    let place = said(&format!("on PostgreSQL {}.", server.major));
    assert!(said("PROVEN") < place && lines[place].contains("(programs of this host,"), "{run}");
    for phase in ["checking the set", "starting a scratch server", ": rows", ": proving"] {
        assert!(said(phase) < said("PROVEN, every row came back"), "{phase}: {run}");
    }
    assert!(said("PROVEN") < said(&format!("{database}: 3 of 3 tables proven, 2,410 rows")), "{run}");
    assert!(said(" in all: check ") > said("PROVEN"), "{run}");
    server.drop_database(&database);
}

/// Lines that a terminal breaks where it ends, in the middle of a word.
#[test]
fn no_line_is_longer_than_the_terminal() {
    let (server, mut opsd, database) = site();
    opsd.more = (1..=6).map(|n| format!("[monitor.a_monitor_with_a_name_{n}]\nhost = {{}}\n")).collect();
    opsd.job.set("exclude_table_data", "[\"public.a\", \"public.b\", \"public.small\", \"pu*.a\", \"p*.b\"]");
    for arguments in ["config check", "backup --dry-run"] {
        let run = at_terminal(&opsd, arguments).expect_code(0);
        for line in run.stdout.lines().map(str::trim_end) {
            let word = line.trim_start().rsplit("  ").next().unwrap();
            assert!(line.chars().count() <= COLUMNS || !word.contains(' '), "{line:?}: {run}");
        }
    }
    // Without a terminal nothing is broken for whoever reads it.
    let plain = opsd.ok(&["config", "check"]);
    assert!(plain.stdout.lines().any(|line| line.chars().count() > COLUMNS), "{plain}");
    server.drop_database(&database);
}

/// The last of the bars stayed on the screen beside each of them.
#[test]
fn lines_of_the_log_stand_between_the_bars_and_leave_none_behind() {
    let (server, mut opsd, database) = site();
    slow_line(&mut opsd, server);
    let run = at_terminal(&opsd, "backup -vv").expect_code(0);
    let lines = screen(&run);
    let log: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("DEBUG ")).collect();
    assert!(log.len() >= 3, "{run}");
    for line in &lines {
        assert!(
            !line.contains("B/s") && !line.starts_with(|c| ('\u{2800}'..='\u{28ff}').contains(&c)),
            "{line:?} of {lines:#?}"
        );
    }
    server.drop_database(&database);
}

/// A line that was logged while bars were drawn kept the last of them on the screen.
#[test]
fn nothing_is_left_of_the_bars_after_ctrl_c() {
    use std::io::Write as _;
    let (server, mut opsd, database) = site();
    slow_line(&mut opsd, server);
    let mut script = terminal(&opsd, "backup");
    let mut child = script.stdin(Stdio::piped()).spawn().unwrap();
    until("rows are dumped", || {
        descendants(child.id()).iter().any(|process| process.command_line().contains("--table="))
    });
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let run = finish_child(child, "backup".into()).expect_code(130);
    let (_, after) = run.stdout.rsplit_once("^C").expect("what was typed");
    let (between, error) = after.split_once("error: ").expect("an error");
    assert!(error.contains("interrupted"), "{run}");
    // Whatever is drawn until then is cleared from where it stands.
    assert!(!between.contains('\n') && between.ends_with("\r\u{1b}[2K"), "{after:?}");
    server.drop_database(&database);
}
