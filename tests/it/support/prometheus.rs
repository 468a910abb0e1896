//! A real Prometheus that scrapes one address every second.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::exporter::request;
use super::postgres::{free_port, servers_directory};
use super::processes::until;

/// A program of Debian's package `prometheus`, as `make setup` unpacked it.
pub fn program(name: &str) -> PathBuf {
    let program = servers_directory().join("prometheus").join(name);
    assert!(program.exists(), "{} is missing: run make setup", program.display());
    program
}

/// A running Prometheus; it ends, and its data with it, when dropped.
pub struct Prometheus {
    child: Child,
    address: String,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts it; `target` is `host:port`.
    pub fn start(target: &str) -> Prometheus {
        let directory =
            tempfile::Builder::new().prefix("opsd-it-prometheus-").tempdir().expect("a directory");
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n- job_name: opsd\n  \
             static_configs: [{{targets: [\"{target}\"]}}]\n"
        );
        std::fs::write(&config, text).expect("write");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program("prometheus"));
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("start prometheus");
        let prometheus = Prometheus { child, address, _directory: directory };
        until("Prometheus listens", || std::net::TcpStream::connect(&prometheus.address).is_ok());
        prometheus
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The series that an expression returns now, with their labels.
    pub fn query(&self, expression: &str) -> Vec<serde_json::Value> {
        let encoded = percent_encoding::utf8_percent_encode(expression, percent_encoding::NON_ALPHANUMERIC);
        // HTTP/1.0 semantics: the answer may come in chunks, of which only the JSON counts.
        let (_, _, body) = request(&self.address, "GET", &format!("/api/v1/query?query={encoded}"), &[]);
        let json = body.find('{').map_or("", |start| &body[start..]);
        let json = json.rfind('}').map_or("", |end| &json[..=end]);
        let answer: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
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

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
