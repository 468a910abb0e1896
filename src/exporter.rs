//! Serves what the monitors found: `/metrics`, `/live`, `/ready`, and a plain index at `/`.
//!
//! Every answer is made from snapshots in memory, so that none waits for a target. OpenMetrics and
//! the text format are written from one [`page::Page`]. Deliberately absent: TLS (a proxy's work, as
//! with other exporters), HTTP/2, and anything that a request could change.

pub mod auth;
mod openmetrics;
pub mod page;
pub mod respond;
mod serve;
mod text;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use tokio::net::TcpListener;

use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::monitor::{self, Watch, driver};
use crate::shutdown::Shutdown;

/// What answers are made from.
pub struct Exporter {
    /// The site's name, a label of every series.
    site: String,
    /// The monitors, in the order of their names.
    watches: Vec<Arc<Watch>>,
    /// Who may read.
    gate: auth::Gate,
    started: SystemTime,
    scrapes: AtomicU64,
    refused: AtomicU64,
}

/// Watches and serves until a signal arrives.
pub async fn run(config: &Config, shutdown: &Shutdown, listening: impl FnOnce(&str)) -> Result<()> {
    let settings = &config.exporter;
    let gate = auth::Gate::open(&settings.auth).context("[exporter]")?;
    let targets = monitor::open(config, &[])?;
    let listener = TcpListener::bind(settings.listen).await.map_err(|e| {
        let hint = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                "is an exporter running already? [exporter] listen = \"ADDRESS:PORT\" moves it"
            }
            std::io::ErrorKind::AddrNotAvailable => {
                "this host has no such address; 0.0.0.0 and [::] stand for all that it has"
            }
            _ => "[exporter] listen = \"ADDRESS:PORT\" says where",
        };
        Error::from(e).context(format!("cannot listen on {}", settings.listen)).with_hint(hint)
    })?;
    let exporter = Arc::new(Exporter {
        site: config.site.clone(),
        watches: targets.iter().map(|target| target.watch.clone()).collect(),
        gate,
        started: SystemTime::now(),
        scrapes: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    listening(&listener.local_addr()?.to_string());
    // Dropped at the end, and every collection with it.
    let monitors = driver::start(targets);
    serve::serve(listener, exporter, settings, shutdown).await;
    drop(monitors);
    Ok(())
}

/// Collects once and replaces `file` by the result, for node_exporter's textfile collector.
pub async fn textfile(config: &Config, file: &Path, shutdown: &Shutdown) -> Result<()> {
    let mut targets = monitor::open(config, &[])?;
    let collected = async { Ok(driver::collect_once(&mut targets).await) };
    let views = shutdown.guard(collected).await?;
    let watches = targets.iter().map(|target| &*target.watch);
    let text = text::encode(&page::Page::of_one_collection(&config.site, watches.zip(views)));
    write_atomically(file, &text).with_context(|| format!("cannot write {}", file.display()))
}

/// A reader sees the old file or the new one. What is written first has no name that the collector reads.
fn write_atomically(file: &Path, text: &str) -> Result<()> {
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut new = tempfile::Builder::new().prefix(".opsd-").suffix(".tmp").tempfile_in(directory)?;
    new.write_all(text.as_bytes())?;
    // Whoever runs node_exporter is somebody else.
    new.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|e| e.error)?;
    Ok(())
}
