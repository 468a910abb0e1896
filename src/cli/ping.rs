//! `ping_url`: tells a watcher elsewhere that a run has begun, and how it ended.
//!
//! A push to somebody who expects it is what says on a small site that a backup did not even begin. One GET each,
//! within a bound, and never a reason for the run itself to fail. The URL is never shown, redirects are not followed,
//! and proxies of the environment are not used.

use std::time::Duration;

use super::{Global, output};
use crate::config::Ping;
use crate::config::secret::Secret;
use crate::error::{Context, Error, Result};
use crate::monitor::trust;

/// A run waits no longer than this for somebody to take note of its begin, and of its end.
const BOUND: Duration = Duration::from_secs(5);

/// Does work whose beginning and end are told. `is_good` judges what came of it.
pub async fn around<T>(
    ping: &Ping,
    global: &Global,
    work: impl Future<Output = Result<T>>,
    is_good: impl FnOnce(&T) -> bool,
) -> Result<T> {
    let (_, result) = tokio::join!(tell("start", ping.start.as_ref(), global), work);
    match &result {
        Ok(done) if is_good(done) => tell("success", ping.success.as_ref(), global).await,
        Ok(_) | Err(_) => tell("fail", ping.fail.as_ref(), global).await,
    }
    result
}

async fn tell(what: &str, url: Option<&Secret>, global: &Global) {
    let Some(url) = url else { return };
    if let Err(error) = get(url.expose()).await
        && !global.quiet
    {
        output::note("warning: ", format!("ping_url.{what} was not taken: {error}"));
    }
}

async fn get(url: &str) -> Result<()> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(trust::client(None, None)?)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(BOUND)
        .user_agent(concat!("opsd/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| Error::new(error.without_url()).context("cannot set up HTTP"))?;
    let response = client.get(url).send().await.map_err(|error| {
        let why = if error.is_timeout() {
            format!("no answer within {} s", BOUND.as_secs())
        } else {
            innermost(&error.without_url())
        };
        Error::new(why)
    });
    let status = response.context("GET")?.status();
    if status.is_success() { Ok(()) } else { Err(Error::new(format!("GET: status {}", status.as_u16()))) }
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}
