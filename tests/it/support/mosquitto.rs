//! A Mosquitto of a test's own, on a free port; it ends with its value.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::processes::until;

/// A running broker.
pub struct Mosquitto {
    child: Child,
}

impl Mosquitto {
    /// Starts one that listens on this port of loopback; `settings` follow its `listener` line.
    pub fn start(directory: &Path, port: u16, settings: &str) -> Mosquitto {
        let file = directory.join(format!("mosquitto-{port}.conf"));
        // Root's broker would become another user, who cannot read the test's files.
        let text = format!("user root\nsys_interval 1\nlistener {port} 127.0.0.1\n{settings}\n");
        std::fs::write(&file, text).expect("write the configuration");
        let child = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start mosquitto; scripts/setup installs it");
        let mut broker = Mosquitto { child };
        until("mosquitto", || {
            assert!(broker.child.try_wait().expect("wait").is_none(), "mosquitto ended at once");
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        broker
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
