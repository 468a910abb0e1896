//! A store that never ends a listing, an error, a head or an object.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::support::hostile::{measured, read_to, repeat, server};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres;

/// What is too much is too much at once: nothing is tried again.
const TIME: Duration = Duration::from_secs(60);

/// Sweeping goes by the store's clock.
const DATE: &str = "Date: Sat, 28 Nov 2026 03:00:00 GMT\r\n";

/// A site in the bucket of a store whose only object is none, and which answers what else is asked for.
fn site(answer: impl Fn(&mut TcpStream, &str) -> std::io::Result<()> + Send + Sync + 'static) -> Opsd {
    let port = server(move |mut stream| {
        loop {
            let head = read_to(&mut stream, b"\r\n\r\n")?;
            let head = String::from_utf8_lossy(&head).to_lowercase();
            if head.contains("opsd-probe.json") {
                let body = "<Error><Code>NoSuchKey</Code></Error>";
                let length = body.len();
                write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: {length}\r\n\r\n{body}")?;
                continue;
            }
            answer(&mut stream, &head)?;
        }
    });
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", "\"postgres://postgres@127.0.0.1:1/postgres\"");
    opsd.job.set("source", "{ postgres = \"main\", databases = [\"postgres\"] }");
    opsd.job.set("retention", "{ last = 1 }");
    opsd.use_s3("s3://backups/p", &format!("http://127.0.0.1:{port}"), "key", "secret");
    opsd
}

/// A set that a command may ask for.
const ID: &str = "20261121T030000Z-7f3a";

/// Commands that read a repository.
const READERS: [&[&str]; 8] = [
    &["backups", "list", "--json"],
    &["backups", "show", ID],
    &["backups", "cat", ID, "app", "data-1"],
    &["backups", "scrub"],
    &["backups", "prune"],
    &["backups", "sweep"],
    &["restore", "db", "--verify"],
    &["restore", "db", "--to", "main"],
];

/// Commands each of which must fail and say so.
fn expect_refused(opsd: &Opsd, commands: &[&[&str]], words: &str) {
    for args in commands {
        let run = measured(opsd.command(args), TIME).expect_small(&args.join(" "), TIME);
        assert_ne!(run.code, Some(0), "{run}");
        assert!(run.stderr.contains(words), "{words:?} is not in {run}");
    }
}

/// Commands that read a repository, and the one that finds out what a store can do.
fn expect_all_refused(opsd: &Opsd, words: &str) {
    expect_refused(opsd, &READERS, words);
    expect_refused(opsd, &[&["repository", "probe"]], words);
}

/// A backup of a server that is there, into that store.
fn expect_backup_refused(mut opsd: Opsd, words: &str) {
    let server = postgres::default_server();
    // One of its own: a job's lock is of its database, and all of these tests have a job of one name.
    let database = server.fresh_database("hostile");
    opsd.postgres
        .set("url", quoted(&server.socket_url(postgres::SUPERUSER, &database)))
        .set("bin_dir", quoted(&postgres::bin_dir(server.major).to_string_lossy()));
    expect_refused(&opsd, &[&["backup", "db"]], words);
    server.drop_database(&database);
}

/// The head of an answer whose body ends with the connection.
fn begin(stream: &mut TcpStream, status: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n\r\n")
}

#[test]
fn a_listing_without_end_is_refused() {
    for piece in ["x", "<Contents/>", "<Contents><Key>p/test/db/x</Key></Contents>"] {
        let opsd = site(move |stream, _| {
            begin(stream, "200 OK")?;
            stream.write_all(b"<ListBucketResult><IsTruncated>false</IsTruncated><Name>")?;
            if piece != "x" {
                stream.write_all(b"</Name>")?;
            }
            repeat(stream, piece.as_bytes())
        });
        expect_all_refused(&opsd, "sent more than");
        expect_backup_refused(opsd, "sent more than");
    }
}

#[test]
fn an_error_without_end_is_refused() {
    for status in ["403 Forbidden", "500 Internal Server Error"] {
        let opsd = site(move |stream, _| {
            begin(stream, status)?;
            stream.write_all(b"<Error><Code>AccessDenied</Code><Message>")?;
            repeat(stream, b"x")
        });
        expect_all_refused(&opsd, "sent more than");
        expect_backup_refused(opsd, "sent more than");
    }
}

#[test]
fn pages_without_end_are_refused() {
    let key = "<Contents><Key>p/test/db/20261121T030000Z-7f3a/app/data-1.pgdump.zst.age</Key></Contents>";
    // All readers list in one way, and a listing's bound takes a while to reach: two of them show it.
    let some: [&[&str]; 2] = [READERS[0], READERS[7]];
    for (keys, readers) in [(0, &READERS[..]), (1000, &some[..])] {
        let opsd = site(move |stream, head| {
            // Never the same token twice in a row.
            let next = if head.contains("continuation-token=a") { "b" } else { "a" };
            let body = format!(
                "<ListBucketResult><IsTruncated>true</IsTruncated>\
                 <NextContinuationToken>{next}</NextContinuationToken>{}</ListBucketResult>",
                key.repeat(keys)
            );
            let length = body.len();
            write!(stream, "HTTP/1.1 200 OK\r\n{DATE}Content-Length: {length}\r\n\r\n{body}")
        });
        expect_refused(&opsd, readers, "sent more than");
        // A backup does without the set before it, and looks at what it wrote.
        expect_backup_refused(opsd, "but holds");
    }
}

#[test]
fn a_head_without_end_is_refused() {
    let opsd = site(|stream, _| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        repeat(stream, b"x-amz-meta-more: and more\r\n")
    });
    expect_all_refused(&opsd, "message head is too large");
    expect_backup_refused(opsd, "message head is too large");
}

#[test]
fn an_object_without_end_is_refused() {
    let opsd = site(move |stream, head| {
        if head.contains("list-type=2") {
            let keys = ["manifest.json", "manifest.json.minisig", "verified-20261121T040000.000000Z.json"];
            let contents = keys
                .map(|key| format!("<Contents><Key>p/test/db/{ID}/{key}</Key><Size>500</Size></Contents>"));
            let body = format!("<ListBucketResult>{}</ListBucketResult>", contents.concat());
            let length = body.len();
            return write!(stream, "HTTP/1.1 200 OK\r\n{DATE}Content-Length: {length}\r\n\r\n{body}");
        }
        // The range that was asked for, and more.
        let range = head.lines().find_map(|l| l.strip_prefix("range: bytes=")).unwrap_or("0-1");
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}/99999999999\r\nConnection: close\r\n\r\n"
        )?;
        repeat(stream, b"x")
    });
    // Of each set that it cannot read, a list says so, and succeeds.
    for args in [&["backups", "list"][..]].into_iter().chain(READERS[1..7].iter().copied()) {
        let run = measured(opsd.command(args), TIME).expect_small(&args.join(" "), TIME);
        assert!(run.stdout.contains("sent more than") || run.stderr.contains("sent more than"), "{run}");
    }
}
