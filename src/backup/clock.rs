//! Whether this host's clock is right, as far as others can tell.
//!
//! A set's id and its place among the others come from the local clock. One that is made while the clock
//! is ahead would be the newest for as long. So the clock is compared with those of the database's server
//! and of the bucket before anything is dumped: when both say that it is wrong, nothing is written; when
//! one says so, that is a warning, because the one may be wrong itself. A directory is no witness: it is
//! usually on this very host.

use chrono::{DateTime, Utc};

use super::source::Source;
use crate::config::{Config, Location};
use crate::error::{Error, Result};
use crate::postgres::sql::Sql;
use crate::set::catalog::CLOCK_TOLERANCE;
use crate::store::Store;

/// What there is to warn of; an error where the clock is certainly wrong.
pub(super) async fn check(config: &Config, store: &dyn Store, source: &Source) -> Result<Option<String>> {
    let mut witnesses = Vec::new();
    let now = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::int8";
    if let Ok(row) = Sql::new(now).query_one(&source.session.client).await
        && let Some(time) = DateTime::from_timestamp_millis(row.get(0))
    {
        witnesses.push(Witness { name: "the database's server", time, local: Utc::now() });
    }
    if matches!(config.repository.location, Location::S3 { .. }) {
        // A credential that may only write cannot ask.
        match store.now().await {
            Ok(time) => witnesses.push(Witness { name: "the repository", time, local: Utc::now() }),
            Err(error) => tracing::debug!("the repository does not tell its time: {error}"),
        }
    }
    judge(&witnesses)
}

/// What somebody else's clock said, and the local one just after.
struct Witness {
    name: &'static str,
    time: DateTime<Utc>,
    local: DateTime<Utc>,
}

fn judge(witnesses: &[Witness]) -> Result<Option<String>> {
    let is_off = |w: &&Witness| (w.local - w.time).abs() > CLOCK_TOLERANCE;
    let off: Vec<&Witness> = witnesses.iter().filter(is_off).collect();
    let Some(first) = off.first() else { return Ok(None) };
    let say = |w: &Witness| format!("{} has {}", w.name, w.time.format("%Y-%m-%d %H:%M:%S UTC"));
    let said: Vec<String> = off.iter().map(|w| say(w)).collect();
    let what = format!(
        "this host's clock says {}, {}",
        first.local.format("%Y-%m-%d %H:%M:%S UTC"),
        said.join(", ")
    );
    if off.len() > 1 {
        return Err(Error::new(format!("the clock is wrong: {what}"))
            .with_hint("set the clock: a backup with a wrong date would hide others or be hidden by them"));
    }
    Ok(Some(format!("one of the clocks is wrong: {what}")))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    fn witness(name: &'static str, minutes: i64) -> Witness {
        let local: DateTime<Utc> = "2026-11-21T12:00:00Z".parse().unwrap();
        Witness { name, time: local + TimeDelta::minutes(minutes), local }
    }

    #[test]
    fn two_witnesses_stop_a_backup_and_one_makes_a_warning() {
        assert_eq!(judge(&[]).unwrap(), None);
        assert_eq!(judge(&[witness("a", 4), witness("b", -4)]).unwrap(), None);
        for minutes in [6, -6] {
            let warning = judge(&[witness("a", minutes), witness("b", 0)]).unwrap().unwrap();
            assert!(warning.contains("a has 2026-11-21") && !warning.contains("b has"), "{warning}");
            assert!(judge(&[witness("a", minutes)]).unwrap().is_some());
            let error = judge(&[witness("a", minutes), witness("b", minutes)]).unwrap_err();
            assert!(error.to_string().contains("clock is wrong") && error.hint().is_some(), "{error}");
        }
    }
}
