//! A PostgreSQL server that never ends what it sends, or announces more than anybody could hold.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::records;
use crate::postgres::fake::{message, welcome};
use crate::support::hostile::{Measured, drip, measured, repeat, server};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::bin_dir;

/// More than the `connect_timeout` of the sites here.
const TIME: Duration = Duration::from_secs(90);

/// A busy machine needs seconds to take in what is too much.
const PATIENT: &str = "connect_timeout=30";

fn url(port: u16, parameters: &str) -> String {
    format!("postgres://postgres:x@127.0.0.1:{port}/postgres?{parameters}")
}

/// A site whose server it is: it backs it up, and watches it.
fn site(port: u16, parameters: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted(&url(port, parameters)));
    opsd.job.set("source", "{ postgres = \"main\", databases = [\"postgres\"] }");
    opsd.more = "\n[monitor.main]\npostgres = \"main\"\ninterval = \"60s\"\ntimeout = \"60s\"\n".to_owned();
    opsd
}

/// Runs each command that talks to a server of PostgreSQL.
fn each_command(port: u16, parameters: &str) -> Vec<(String, Measured)> {
    let opsd = site(port, parameters);
    let commands: [&[&str]; 4] =
        [&["backup", "db"], &["backup", "db", "--dry-run"], &["check", "main"], &["status"]];
    let restore: &[&str] = &["restore", "db", "--to", "main", "--database", "app", "--replace", "--yes"];
    // There is a set to restore; the server that it is to go to is the hostile one.
    let mut with_a_set = records::site_with_a_set().0;
    let tools = bin_dir(records::MAJOR);
    with_a_set
        .postgres
        .set("url", quoted(&url(port, parameters)))
        .set("bin_dir", quoted(&tools.to_string_lossy()));
    commands
        .map(|args| (&opsd, args))
        .into_iter()
        .chain([(&with_a_set, restore)])
        .map(|(opsd, args)| (args.join(" "), measured(opsd.command(args), TIME)))
        .collect()
}

/// Every command fails, in little memory, within the time, and says so in these words.
fn expect_refused(port: u16, parameters: &str, words: &str) {
    for (command, measured) in each_command(port, parameters) {
        let run = measured.expect_small(&command, TIME);
        // What `status` finds is what it succeeds in telling, in lines of its own length.
        assert!(run.code != Some(0) || command == "status", "{run}");
        let said =
            [&run.stderr, &run.stdout].map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(said.iter().any(|text| text.contains(words)), "{words:?} is not in {run}");
    }
}

/// Answers the startup packet with `startup`, and everything after it with what `then` writes.
fn after_startup(
    startup: Vec<u8>,
    then: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> u16 {
    server(move |mut stream| {
        loop {
            let mut packet = [0; 4096];
            let read = stream.read(&mut packet)?;
            if read == 0 {
                return Ok(());
            }
            // A request for TLS has a length of 8.
            if packet[..4] == [0, 0, 0, 8] {
                stream.write_all(b"N")?;
                continue;
            }
            stream.write_all(&startup)?;
            return then(&mut stream);
        }
    })
}

/// Waits for a query, and answers it with what `answer` writes.
fn to_a_query(answer: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> u16 {
    after_startup(welcome(), move |stream| {
        let mut query = [0; 4096];
        if stream.read(&mut query)? == 0 { Ok(()) } else { answer(stream) }
    })
}

/// `ParameterStatus` messages, each of another name.
fn parameters(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut count = 0_u64;
    loop {
        let mut block = Vec::new();
        for _ in 0..4096 {
            count += 1;
            block.extend(message(b'S', format!("p{count}\0v\0").as_bytes()));
        }
        stream.write_all(&block)?;
    }
}

/// The header of a message that has a body of `length` bytes.
fn header(kind: u8, length: u32) -> Vec<u8> {
    [&[kind][..], &(length + 4).to_be_bytes()].concat()
}

#[test]
fn an_endless_first_answer_is_refused() {
    let authenticated = || message(b'R', &0_u32.to_be_bytes());
    let port = after_startup(authenticated(), parameters);
    expect_refused(port, PATIENT, "more than");
    let notice = message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0");
    let port = after_startup(authenticated(), move |stream| repeat(stream, &notice));
    expect_refused(port, PATIENT, "more than");
}

#[test]
fn an_error_message_without_end_is_refused() {
    let port = after_startup(header(b'E', 0x7fff_0000), |stream| repeat(stream, b"x"));
    expect_refused(port, PATIENT, "more than");
    let port = to_a_query(|stream| {
        stream.write_all(&header(b'E', 0x7fff_0000))?;
        repeat(stream, b"x")
    });
    expect_refused(port, PATIENT, "more than");
}

#[test]
fn an_endless_answer_to_a_query_is_refused() {
    // Rows of little that take much to hold: a field that is null has four bytes.
    for fields in [0_u16, 1, 1600] {
        let count = fields.to_be_bytes();
        let field = [&b"c\0"[..], &[0; 18]].concat();
        let description = message(b'T', &[&count[..], &field.repeat(fields.into())].concat());
        let nulls = message(b'D', &[&count[..], &[0xff; 4].repeat(fields.into())].concat());
        let port = to_a_query(move |stream| {
            stream.write_all(&description)?;
            repeat(stream, &nulls)
        });
        expect_refused(port, PATIENT, "more than");
    }
    let port = to_a_query(|stream| {
        stream.write_all(&header(b'D', 0x3fff_0000))?;
        repeat(stream, b"x")
    });
    expect_refused(port, PATIENT, "more than");
}

#[test]
fn parameters_without_end_are_refused_in_an_open_session() {
    expect_refused(to_a_query(parameters), PATIENT, "more than");
}

#[test]
fn a_server_that_sends_a_byte_a_second_is_late() {
    // A notice of a kilobyte, then the answer to the first query.
    let notice = message(b'N', &[b"SNOTICE\0".to_vec(), vec![b'x'; 1 << 10]].concat());
    let slow = Duration::from_millis(500);
    let piece = notice.clone();
    let port = after_startup(message(b'R', &[0; 4]), move |stream| drip(stream, &piece, slow));
    expect_refused(port, "connect_timeout=3", "no answer within");
    let port = to_a_query(move |stream| drip(stream, &notice, slow));
    expect_refused(port, "connect_timeout=3", "no answer within");
}

#[test]
fn a_handshake_of_tls_without_end_is_refused() {
    let port = server(|mut stream| {
        let mut packet = [0; 4096];
        let _ = stream.read(&mut packet)?;
        stream.write_all(b"S")?;
        let _ = stream.read(&mut packet)?;
        // Records of a handshake with a message of 16 MiB.
        let record = [&[22, 3, 3, 0x40, 0][..], &[11, 0xff, 0xff, 0xff], &[0; 0x4000 - 4]].concat();
        repeat(&mut stream, &record)
    });
    expect_refused(port, "connect_timeout=30&sslmode=require", "TLS");
}
