//! A real Prometheus that scrapes one address every second, or does what a test's configuration says.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::exporter::request;
use super::postgres::{free_port, run_with_input, servers_directory};
use super::processes::until;
use super::redis::Kept;

/// A program of Debian's package `prometheus`, as `make setup` unpacked it.
pub fn program(name: &str) -> PathBuf {
    let program = servers_directory().join("prometheus").join(name);
    assert!(program.exists(), "{} is missing: run make setup", program.display());
    program
}

/// A running Prometheus; it ends, and its data with it, when dropped or with the test's process.
pub struct Prometheus {
    _kept: Kept,
    address: String,
}

impl Prometheus {
    /// Starts it; `target` is `host:port`.
    pub fn start(target: &str) -> Prometheus {
        Prometheus::with_config(&format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: opsd\n  \
             static_configs: [{{targets: [\"{target}\"]}}]\n"
        ))
    }

    /// Starts it with a configuration of its own.
    pub fn with_config(text: &str) -> Prometheus {
        let directory =
            tempfile::Builder::new().prefix("opsd-it-prometheus-").tempdir().expect("a directory").keep();
        let config = directory.join("prometheus.yml");
        std::fs::write(&config, text).expect("write");
        let address = format!("127.0.0.1:{}", free_port());
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", directory.join("data").display()),
            format!("--web.listen-address={address}"),
        ];
        let kept = Kept::start_in(program("prometheus").as_os_str(), &args, &directory, "log");
        until("Prometheus listens", || std::net::TcpStream::connect(&address).is_ok());
        Prometheus { _kept: kept, address }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The series that an expression returns now, with their labels; none while it cannot be asked.
    pub fn query(&self, expression: &str) -> Vec<serde_json::Value> {
        self.answer(expression).unwrap_or_default()
    }

    /// The same; an expression that fails is an error.
    pub fn answer(&self, expression: &str) -> Result<Vec<serde_json::Value>, String> {
        let encoded = percent_encoding::utf8_percent_encode(expression, percent_encoding::NON_ALPHANUMERIC);
        let answer = self.get(&format!("/api/v1/query?query={encoded}"));
        answer["data"]["result"].as_array().cloned().ok_or_else(|| answer.to_string())
    }

    /// What a path of its API answers; null where that is no JSON.
    pub fn get(&self, path: &str) -> serde_json::Value {
        let (_, head, body) = request(&self.address, "GET", path, &[]);
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if is_chunked { joined(&body) } else { body };
        serde_json::from_str(&body).unwrap_or_default()
    }

    /// Waits until an expression returns something.
    pub fn until_some(&self, expression: &str) -> Vec<serde_json::Value> {
        let mut found = Vec::new();
        until(expression, || {
            found = self.query(expression);
            !found.is_empty()
        });
        found
    }
}

/// What promtool says against a page in the text format.
pub fn complaints(page: &str) -> Option<String> {
    let mut command = Command::new(program("promtool"));
    command.args(["check", "metrics"]).stdin(Stdio::piped());
    let output = run_with_input(command, page.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success() || !said.is_empty()).then_some(said)
}

/// What chunks hold.
fn joined(body: &str) -> String {
    let (mut text, mut rest) = (String::new(), body);
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        text.push_str(&after[..size]);
        rest = &after[(size + 2).min(after.len())..];
    }
    text
}
