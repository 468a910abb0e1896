//! A TCP port: whether it takes connections, and how fast. Says nothing and closes.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::{Collected, Failure, Monitor, Reason};
use crate::config::Threshold;
use crate::config::monitoring::{Bound, Tcp};
use crate::error::{Error, Result};
use crate::metrics::{self, Sample};
use crate::tcp;

/// A handshake over half of the world takes a fifth of it.
pub static THRESHOLDS: &[Threshold] = &[Threshold::of(&metrics::TCP_CONNECT, Some(Bound::Above(1.0)), None)];

/// A monitor of one port.
pub struct Target {
    name: String,
    address: Tcp,
    timeout: Duration,
}

/// A monitor that has not connected yet.
pub fn open(name: &str, address: &Tcp, timeout: Duration) -> Target {
    Target { name: name.to_owned(), address: address.clone(), timeout }
}

/// Connects, to the first of the name's addresses that answers, within a collection's time.
pub(super) async fn connect(address: &Tcp, timeout: Duration) -> Result<TcpStream, Failure> {
    tcp::connect(&address.host, address.port, timeout)
        .await
        .map_err(|error| unreachable(error, &address.to_string()))
}

/// Nobody could be reached: what became of each address, and in how much time.
pub(super) fn unreachable(error: std::io::Error, address: &str) -> Failure {
    let reason = if error.kind() == ErrorKind::TimedOut { Reason::Timeout } else { Reason::Unreachable };
    Failure::new(reason, Error::from(error).context(format!("cannot connect to {address}")))
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let started = Instant::now();
        connect(&self.address, self.timeout).await?;
        let took = started.elapsed().as_secs_f64();
        Ok(Collected { samples: vec![Sample::plain(&metrics::TCP_CONNECT, took)], concerns: Vec::new() })
    }
}

/// `connects in 3 ms`.
pub fn headline(samples: &[Sample]) -> String {
    let took = samples.iter().find(|sample| *sample.metric == metrics::TCP_CONNECT);
    took.map_or_else(String::new, |took| format!("connects in {:.0} ms", took.value * 1000.0))
}
