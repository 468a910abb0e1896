//! A Redis server that announces more than anybody could hold, or never ends.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::hostile::{drip, measured, repeat, server};
use crate::support::opsd::{Opsd, quoted};

const TIME: Duration = Duration::from_secs(30);

/// A site that watches a server, and queues on it, which greets and then answers `beginning` and `piece`
/// for ever.
fn site(beginning: &'static [u8], piece: &'static [u8]) -> Opsd {
    let port = server(move |mut stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        stream.write_all(b"+PONG\r\n")?;
        let _ = stream.read(&mut request)?;
        stream.write_all(beginning)?;
        if piece.len() == 1 && beginning.is_empty() {
            return drip(&mut stream, piece, Duration::from_millis(100));
        }
        repeat(&mut stream, piece)
    });
    let mut opsd = Opsd::without_server();
    opsd.more = format!(
        "\n[redis.main]\nurl = {}\n\
         [monitor.cache]\nredis = \"main\"\ninterval = \"15s\"\ntimeout = \"5s\"\n\
         [monitor.jobs]\nqueue = {{ kind = \"sidekiq\", redis = \"main\" }}\ninterval = \"15s\"\ntimeout = \"5s\"\n",
        quoted(&format!("redis://127.0.0.1:{port}"))
    );
    opsd
}

#[test]
fn answers_without_end_are_refused() {
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"$1073741824\r\n", b"x", "a text of more than 4 MiB"),
        (b"*1073741824\r\n", b"*0\r\n", "a list of more than 200000 elements"),
        (b"+", b"x", "a line of more than 64 KiB"),
        // The crate itself gives up on what is nested that deep.
        (b"*3\r\n", b"*2\r\n*0\r\n", ""),
        (b"*3\r\n", b"*100000\r\n", ""),
        (b"*200000\r\n", b"$20\r\nxxxxxxxxxxxxxxxxxxxx\r\n", "answers that take more than 16 MiB to hold"),
        (b"+OK\r\n", b"+OK\r\n", ""),
    ];
    for (beginning, piece, words) in cases {
        let opsd = site(beginning, piece);
        for monitor in ["cache", "jobs"] {
            let what = format!("check {monitor} {}", String::from_utf8_lossy(beginning).trim());
            let run = measured(opsd.command(&["check", monitor]), TIME).expect_small(&what, TIME);
            assert_ne!(run.code, Some(0), "{run}");
            assert!(run.stdout.contains(words), "{words:?} is not in {run}");
        }
    }
}

#[test]
fn a_server_that_sends_a_byte_now_and_then_is_late() {
    let opsd = site(b"", b"+");
    let run = measured(opsd.command(&["check", "cache"]), TIME).expect_small("check cache", TIME);
    assert_ne!(run.code, Some(0), "{run}");
    assert!(run.stdout.contains("timeout"), "{run}");
}
