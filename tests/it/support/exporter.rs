//! A running `opsd exporter`, and what a scrape of it says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::opsd::{Opsd, quoted};
use super::postgres::Server;
use super::processes::until;

/// Tables for a monitor of a PostgreSQL server, which become part of a site's configuration.
pub fn postgres_monitor(name: &str, url: &str, more: &str) -> String {
    format!(
        "\n[postgres.{name}]\nurl = {}\n[monitor.{name}]\npostgres = {}\ninterval = \"1s\"\ntimeout = \"1s\"\n{more}\n",
        quoted(url),
        quoted(name)
    )
}

/// A site that watches one server as its superuser.
pub fn site(server: &Server) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = postgres_monitor("main", &server.socket_url(super::postgres::SUPERUSER, "postgres"), "");
    opsd
}

/// A running exporter; it ends with this value.
pub struct Exporter {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// `127.0.0.1:port`.
    pub address: String,
    /// The name of its site in the Prometheus of `alerting`, where that scrapes it.
    pub site: Option<String>,
}

impl Exporter {
    /// Starts it on a free port; `settings` are further keys of `[exporter]`.
    pub fn start(opsd: &mut Opsd, settings: &str) -> Exporter {
        Exporter::start_at(opsd, "127.0.0.1:0", settings)
    }

    /// Starts it on an address.
    pub fn start_at(opsd: &mut Opsd, listen: &str, settings: &str) -> Exporter {
        let before = opsd.more.len();
        opsd.more.push_str(&format!("\n[exporter]\nlisten = {}\n{settings}\n", quoted(listen)));
        let mut child = opsd.command(&["exporter"]).spawn().expect("start opsd exporter");
        opsd.more.truncate(before);
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        // Tests read the repository more often than anybody should.
        while line.is_empty() || line.starts_with("warning: ") {
            line.clear();
            if stderr.read_line(&mut line).expect("read") == 0 {
                break;
            }
        }
        let address = line.trim().strip_prefix("serving http://").and_then(|l| l.strip_suffix("/metrics"));
        let Some(address) = address.map(str::to_owned) else {
            let _ = child.kill();
            stderr.read_to_string(&mut line).expect("read");
            panic!("the exporter did not start: {line}");
        };
        Exporter { child, stderr, address, site: None }
    }

    /// One GET; status, head and body.
    pub fn get(&self, path: &str, headers: &[&str]) -> (u16, String, String) {
        request(&self.address, "GET", path, headers)
    }

    /// A scrape in the text format.
    pub fn scrape(&self) -> Scrape {
        let (status, _, body) = self.get("/metrics", &[]);
        assert_eq!(status, 200, "{body}");
        Scrape::parse(&body)
    }

    /// Scrapes until it is as it should be.
    pub fn scrape_until(&self, what: &str, mut is_so: impl FnMut(&Scrape) -> bool) -> Scrape {
        let mut scrape = self.scrape();
        let mut tries = 0;
        until(what, || {
            tries += 1;
            if tries % 20 == 1 {
                scrape = self.scrape();
            }
            if tries == 6000 {
                panic!("waited for ever: {what}\n{}", scrape.text);
            }
            is_so(&scrape)
        });
        scrape
    }

    /// Scrapes after every monitor has collected once more, beginning now.
    pub fn next_scrape(&self, monitor: &str) -> Scrape {
        let count = |scrape: &Scrape| {
            scrape.value(&format!("opsd_monitor_collections_total{{site=\"test\",monitor=\"{monitor}\"}}"))
        };
        let before = count(&self.scrape()).expect("collections");
        // The one that is under way may have begun before.
        self.scrape_until("another collection", |scrape| count(scrape) >= Some(before + 2.0))
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends SIGTERM and returns the exit code and what it said.
    pub fn stop(mut self) -> (Option<i32>, String) {
        kill_process(self.pid(), Signal::TERM).expect("kill");
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("read");
        (self.child.wait().expect("wait").code(), said)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request over a connection of its own.
pub fn request(address: &str, method: &str, path: &str, headers: &[&str]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n")
        .expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, head.to_owned(), body.to_owned())
}

/// The series of a page in the text format.
pub struct Scrape {
    /// The page.
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads a page; a series that stands there twice fails the test.
    pub fn parse(text: &str) -> Scrape {
        let mut series = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line}"));
            let doubled = series.insert(name.to_owned(), value.parse().expect("a number"));
            assert!(doubled.is_none(), "doubled: {name}");
        }
        Scrape { text: text.to_owned(), series }
    }

    /// The value of exactly this series.
    pub fn value(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }

    /// All series of a metric whose labels hold all of `parts`.
    pub fn of(&self, metric: &str, parts: &[&str]) -> Vec<(&str, f64)> {
        let matches = |series: &str| {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            name == metric && parts.iter().all(|part| labels.contains(part))
        };
        self.series
            .iter()
            .filter(|(name, _)| matches(name))
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }

    /// The one series of a metric whose labels hold all of `parts`; none where there is none.
    pub fn one(&self, metric: &str, parts: &[&str]) -> Option<f64> {
        let found = self.of(metric, parts);
        assert!(found.len() <= 1, "{metric} {parts:?} is several: {found:?}");
        found.first().map(|(_, value)| *value)
    }

    /// `opsd_monitor_up` of a monitor.
    pub fn up(&self, monitor: &str) -> Option<f64> {
        self.value(&format!("opsd_monitor_up{{site=\"test\",monitor=\"{monitor}\"}}"))
    }

    /// The state that a metric with a `state` label is in.
    pub fn state(&self, metric: &str, parts: &[&str]) -> Option<String> {
        let on: Vec<_> = self.of(metric, parts).into_iter().filter(|(_, value)| *value == 1.0).collect();
        assert!(on.len() <= 1, "{metric} {parts:?} is in several states: {on:?}");
        let labels = on.first()?.0;
        Some(labels.split("state=\"").nth(1)?.split('"').next()?.to_owned())
    }
}

/// Collects once, as `exporter --textfile` does.
pub fn collected(opsd: &Opsd) -> Scrape {
    let file = opsd.path("collected.prom");
    opsd.ok(&["exporter", "--textfile", file.to_str().expect("a UTF-8 path")]);
    Scrape::parse(&std::fs::read_to_string(&file).expect("read the textfile"))
}
