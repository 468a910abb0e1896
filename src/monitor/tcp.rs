//! A TCP port: whether it takes connections, and how fast. Says nothing and closes.

use std::time::Instant;

use async_trait::async_trait;
use tokio::net::TcpStream;

use super::{Collected, Failure, Monitor, Reason};
use crate::config::Threshold;
use crate::config::monitoring::{Bound, Tcp};
use crate::error::{Error, Result};
use crate::metrics::{self, Sample};

/// A handshake over half of the world takes a fifth of it.
pub static THRESHOLDS: &[Threshold] = &[Threshold::of(&metrics::TCP_CONNECT, Some(Bound::Above(1.0)), None)];

/// A monitor of one port.
pub struct Target {
    name: String,
    address: Tcp,
}

/// A monitor that has not connected yet.
pub fn open(name: &str, address: &Tcp) -> Target {
    Target { name: name.to_owned(), address: address.clone() }
}

/// Connects, to the first of the name's addresses that answers.
pub(super) async fn connect(address: &Tcp) -> Result<TcpStream, Failure> {
    TcpStream::connect((address.host.as_str(), address.port)).await.map_err(|error| {
        let error = Error::from(error).context(format!("cannot connect to {address}"));
        Failure::new(Reason::Unreachable, error)
    })
}

#[async_trait]
impl Monitor for Target {
    fn name(&self) -> &str {
        &self.name
    }

    async fn collect(&mut self) -> Result<Collected, Failure> {
        let started = Instant::now();
        connect(&self.address).await?;
        let took = started.elapsed().as_secs_f64();
        Ok(Collected { samples: vec![Sample::plain(&metrics::TCP_CONNECT, took)], concerns: Vec::new() })
    }
}

/// `connects in 3 ms`.
pub fn headline(samples: &[Sample]) -> String {
    let took = samples.iter().find(|sample| *sample.metric == metrics::TCP_CONNECT);
    took.map_or_else(String::new, |took| format!("connects in {:.0} ms", took.value * 1000.0))
}
