//! Databases other than the URL's, which local figures are wanted from, each in its turn.
//!
//! A connection costs a server more than all that is asked over it. So a collection visits each
//! database that was not visited yet, and then a few of those whose turn it is; in between, a database's
//! figures are those of its last visit. One that cannot be visited takes the local concerns down until
//! it can, and no more. A connection to a database that somebody has locked hangs, in a server process
//! that notices nobody's leaving: those are not even tried, and one that hung all the same is left alone
//! for a while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::{CONCERNS, Facts, Pass, Scope, Target, alone, databases, get, no_time, whole};
use crate::config::Databases;
use crate::error::Error;
use crate::metrics::Sample;
use crate::monitor::{Concern, Failure, Reason};
use crate::postgres::connect::{self, Session};

/// Databases that a collection visits again.
const VISITS: usize = 10;

/// Whoever is visited before this part of the time is over has had enough of it.
const FAIR_START: f64 = 0.3;

/// A database whose connection hung is left alone for a minute, then two, and so on to about an hour.
const REST: Duration = Duration::from_secs(60);
const RESTS_MAX: u32 = 6;

/// Databases with a lock that a new session waits for: somebody renames, moves, copies or drops them.
const LOCKED: &str = "
    SELECT DISTINCT d.datname::text AS name FROM pg_locks l JOIN pg_database d ON d.oid = l.objid
     WHERE l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::regclass AND l.granted
       AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')";

/// What is known of the other databases.
#[derive(Default)]
pub(super) struct Others {
    /// All that are to be visited, as they were listed last.
    names: Vec<String>,
    /// Of those, the ones that nobody may connect to now.
    locked: Vec<String>,
    known: BTreeMap<String, Known>,
    /// Those whose connection hung: how often in a row, and until when they are left alone.
    resting: BTreeMap<String, (u32, Instant)>,
    visits: u64,
}

struct Known {
    /// The number of the visit.
    visit: u64,
    samples: Vec<Sample>,
    concerns: Vec<Concern>,
}

impl Others {
    /// What was found goes; who hung is remembered.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }

    /// Who is to be visited: those that are not known, and those whose visit is the longest ago. Databases
    /// that are no longer asked for are forgotten.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let Self { names, locked, known, resting, .. } = self;
        known.retain(|name, _| names.contains(name));
        resting.retain(|name, _| names.contains(name));
        let rests = |name: &String| resting.get(name).is_some_and(|(_, until)| *until > now);
        let (known, unknown): (Vec<_>, Vec<_>) = names
            .iter()
            .filter(|name| !locked.contains(name) && !rests(name))
            .cloned()
            .partition(|name| known.contains_key(name));
        let mut known = known;
        known.sort_by_key(|name| self.known.get(name).map(|known| known.visit));
        unknown.into_iter().chain(known.into_iter().take(VISITS)).collect()
    }

    fn note(&mut self, name: String, samples: Vec<Sample>, concerns: Vec<Concern>) {
        self.visits += 1;
        self.known.insert(name, Known { visit: self.visits, samples, concerns });
    }

    /// Whether its connection hung; if so it rests.
    fn hung(&mut self, name: &str, hung: bool, now: Instant) {
        if hung {
            let times = self.resting.get(name).map_or(0, |(times, _)| *times);
            let until = now + REST * (1 << times);
            self.resting.insert(name.to_owned(), (RESTS_MAX.min(times + 1), until));
        } else {
            self.resting.remove(name);
        }
    }
}

impl Target {
    /// Finds out which other databases there are, and which of them are locked. What cannot be found out
    /// is as it was, and takes the local concerns down.
    pub(super) async fn list_others(&mut self, pass: &mut Pass, session: &Session) -> Result<(), Failure> {
        let mut names = match &self.databases {
            Databases::Url => return Ok(()),
            Databases::Named(names) => names.clone(),
            Databases::All => match session.client.query_typed(databases::NAMES, &[]).await {
                Ok(rows) => listed(&rows),
                Err(error) => {
                    let reason = alone(&error).ok_or_else(|| whole(connect::error(error)))?;
                    let failure = Failure::new(reason, Error::new("the databases cannot be listed"));
                    local().for_each(|name| pass.note(name, Some(failure.clone())));
                    self.others.names.clone()
                }
            },
        };
        names.retain(|name| *name != self.connection.dbname && !self.excluded.contains(name));
        self.others.names = names;
        if !self.others.names.is_empty() {
            self.others.locked = match session.client.query_typed(LOCKED, &[]).await {
                Ok(rows) => listed(&rows),
                // Then each is tried, and whoever hangs rests.
                Err(error) if alone(&error).is_some() => Vec::new(),
                Err(error) => return Err(whole(connect::error(error))),
            };
        }
        Ok(())
    }

    /// Visits those whose turn it is, one transient connection after the other, as long as there is time,
    /// and adds what is known of all of them.
    pub(super) async fn visit(&mut self, pass: &mut Pass, facts: &Facts) {
        for (number, name) in self.others.due(Instant::now()).into_iter().enumerate() {
            if pass.is_late() {
                break;
            }
            let mut visit = Pass::new(pass.started, self.timeout);
            let had_time = pass.started.elapsed() < self.timeout.mul_f64(FAIR_START);
            match self.connect(Some(&name)).await {
                Ok(session) => {
                    self.others.hung(&name, false, Instant::now());
                    let facts = Facts { database: name.clone(), ..facts.clone() };
                    for concern in CONCERNS.iter().filter(|concern| concern.scope == Scope::Database) {
                        // A connection that broke is this database's trouble.
                        if let Err(failure) = visit.ask(concern, &session, &facts).await {
                            visit.note(concern.name, Some(failure));
                        }
                    }
                    session.close().await;
                }
                Err(failure) => {
                    self.others.hung(&name, failure.reason == Reason::Timeout, Instant::now());
                    local().for_each(|concern| visit.note(concern, Some(failure.clone())));
                }
            }
            // Cut short by those before it, it has not had its turn; cut short by itself, it has.
            if had_time || number == 0 || !visit.is_cut {
                self.others.note(name, visit.found.samples, visit.concerns);
            }
        }
        for name in &self.others.names {
            let locked = || Failure::new(Reason::Locked, Error::new(format!("database {name:?} is locked")));
            match self.others.known.get(name) {
                _ if self.others.locked.contains(name) => {
                    local().for_each(|concern| pass.note(concern, Some(locked())));
                }
                Some(known) => {
                    pass.found.samples.extend(known.samples.iter().cloned());
                    known.concerns.iter().for_each(|c| pass.note(c.name, c.failure.clone()));
                }
                None => local().for_each(|concern| pass.note(concern, Some(no_time()))),
            }
        }
    }
}

/// Names of databases; one that is no text cannot be connected to.
fn listed(rows: &[Row]) -> Vec<String> {
    rows.iter().filter_map(|row| get(row, "name").ok().flatten()).collect()
}

/// Concerns that are local to a database.
fn local() -> impl Iterator<Item = &'static str> {
    CONCERNS.iter().filter(|concern| concern.scope == Scope::Database).map(|concern| concern.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(names: &[String]) -> Others {
        Others { names: names.to_vec(), ..Others::default() }
    }

    proptest! {
        #[test]
        fn everybody_has_a_turn(count in 0usize..60, late in 1usize..20) {
            let names: Vec<String> = (0..count).map(|i| format!("db{i}")).collect();
            let (mut others, now) = (of(&names), Instant::now());
            // The first ones are slow: only so many are visited before time is over.
            while others.known.len() < count {
                let due = others.due(now);
                prop_assert_eq!(due.len(), count - others.known.len() + others.known.len().min(VISITS));
                due.into_iter().take(late).for_each(|name| others.note(name, Vec::new(), Vec::new()));
            }
            let before = others.visits;
            for _ in 0..count.div_ceil(VISITS) {
                let due = others.due(now);
                prop_assert!(due.len() <= VISITS);
                due.into_iter().for_each(|name| others.note(name, Vec::new(), Vec::new()));
            }
            prop_assert!(others.known.values().all(|known| known.visit > before));
        }
    }

    #[test]
    fn who_is_gone_is_forgotten_and_who_hung_rests() {
        let names = ["a", "b"].map(str::to_owned);
        let (mut others, now) = (of(&names), Instant::now());
        names.iter().for_each(|name| others.note(name.clone(), Vec::new(), Vec::new()));
        others.names.remove(0);
        assert_eq!(others.due(now), ["b"]);
        others.names = names.to_vec();
        assert_eq!(others.due(now), ["a", "b"]);
        others.locked = vec!["b".into()];
        assert_eq!(others.due(now), ["a"]);
        others.locked.clear();
        for rest in [1, 2, 4, 8, 16, 32, 64, 64] {
            others.hung("a", true, now);
            assert_eq!(others.due(now + REST * rest - Duration::from_secs(1)), ["b"]);
            assert_eq!(others.due(now + REST * rest), ["a", "b"]);
        }
        others.hung("a", false, now);
        assert_eq!(others.due(now), ["a", "b"]);
    }
}
