//! `ping_url`: who is told that a run begins, and how it ended. The listener is a test's own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{default_server, unique};
use crate::support::processes::until;

/// What is in no message and no process list.
const TOKEN: &str = "c4nary-of-the-ping";

/// A watcher elsewhere: paths that it was asked for, in order. One that is `silent` never answers.
fn watcher(is_silent: bool) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            seen.lock().unwrap().push(path);
            if is_silent {
                held.push(stream);
            } else {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .unwrap();
            }
        }
    });
    (port, asked)
}

fn urls(port: u16, of: &str) -> String {
    let url = |what| format!("{what} = \"http://127.0.0.1:{port}/{TOKEN}/{of}/{what}\"");
    format!("{{ {} }}", ["start", "success", "fail"].map(url).join(", "))
}

#[test]
fn a_watcher_is_told_of_each_run_and_delays_none() {
    let server = default_server();
    let database = server.fresh_database("pinged");
    server.psql(&database, "CREATE TABLE t AS SELECT generate_series(1, 10) AS id");
    let mut opsd = Opsd::new(server, &[&database]);
    let (port, asked) = watcher(false);
    opsd.job.set("ping_url", urls(port, "backup"));
    opsd.verify.set("ping_url", urls(port, "verify"));
    let told = |expected: [&str; 2]| {
        let expected = expected.map(|path| format!("/{TOKEN}/{path}"));
        let found = std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(found, expected);
    };
    let run = opsd.ok(&["backup"]);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    told(["backup/start", "backup/success"]);
    opsd.ok(&["restore", "--verify"]);
    told(["verify/start", "verify/success"]);
    let shown = opsd.ok(&["config", "show"]);
    assert!(shown.stdout.contains("not shown") && !shown.stdout.contains(TOKEN), "{shown}");
    let scratch = opsd.verify.clone();
    opsd.verify.set("scratch_dir", quoted(opsd.path("opsd.toml").to_str().unwrap()));
    opsd.run(&["restore", "--verify"]).expect_code(1);
    told(["verify/start", "verify/fail"]);
    opsd.verify = scratch;
    let source = |name: &str| format!("{{ postgres = \"main\", databases = [{}] }}", quoted(name));
    opsd.job.set("source", source(&unique("absent")));
    opsd.run(&["backup"]).expect_code(1);
    told(["backup/start", "backup/fail"]);

    // Nobody who does not answer holds a backup back for long, or makes it fail.
    opsd.job.set("source", source(&database));
    let (port, asked) = watcher(true);
    opsd.job.set("ping_url", format!("{{ success = \"http://127.0.0.1:{port}/{TOKEN}\" }}"));
    let begun = Instant::now();
    let run = opsd.ok(&["backup"]);
    assert!(run.stderr.contains("ping_url.success was not taken") && !run.stderr.contains(TOKEN), "{run}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    until("it was asked", || asked.lock().unwrap().len() == 1);
    // Nor does one that is not there.
    opsd.job.set("ping_url", urls(1, "absent"));
    let run = opsd.ok(&["backup"]);
    assert!(run.stderr.contains("refused") && !run.stderr.contains(TOKEN), "{run}");
    opsd.job.set("ping_url", "{ start = \"ftp://example.org/\" }");
    opsd.run(&["backup"]).expect_failure(2, &["ping_url.start: is no http:// or https:// URL"]);
    server.drop_database(&database);
}
