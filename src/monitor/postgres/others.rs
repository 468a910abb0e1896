//! Databases other than the URL's, which local figures are wanted from, each in its turn.
//!
//! A connection costs a server more than all that is asked over it. So a collection visits each
//! database that was not visited yet, and then a few of those whose turn it is; in between, a database's
//! figures are those of its last visit. One that cannot be visited takes the local concerns down until
//! it can, and no more.

use std::collections::BTreeMap;

use super::{CONCERNS, Facts, Pass, Scope, Target, no_time};
use crate::metrics::Sample;
use crate::monitor::Concern;

/// Databases that a collection visits again.
const VISITS: usize = 10;

/// What the last visit of each found.
#[derive(Default)]
pub(super) struct Others {
    known: BTreeMap<String, Known>,
    visits: u64,
}

struct Known {
    /// The number of the visit.
    visit: u64,
    samples: Vec<Sample>,
    concerns: Vec<Concern>,
}

impl Others {
    /// Who is to be visited: those that are not known, and those whose visit is the longest ago. Databases
    /// that are no longer asked for are forgotten.
    fn due(&mut self, names: &[String]) -> Vec<String> {
        self.known.retain(|name, _| names.contains(name));
        let (known, unknown): (Vec<_>, Vec<_>) =
            names.iter().cloned().partition(|name| self.known.contains_key(name));
        let mut known = known;
        known.sort_by_key(|name| self.known.get(name).map(|known| known.visit));
        unknown.into_iter().chain(known.into_iter().take(VISITS)).collect()
    }

    fn note(&mut self, name: String, samples: Vec<Sample>, concerns: Vec<Concern>) {
        self.visits += 1;
        self.known.insert(name, Known { visit: self.visits, samples, concerns });
    }
}

impl Target {
    /// Visits those whose turn it is, one transient connection after the other, as long as there is time,
    /// and adds what is known of all of them.
    pub(super) async fn visit(&mut self, pass: &mut Pass, names: Vec<String>, facts: &Facts) {
        let local = || CONCERNS.iter().filter(|concern| concern.scope == Scope::Database);
        for name in self.others.due(&names) {
            if pass.is_late() {
                break;
            }
            let mut visit = Pass::new(pass.started, self.timeout);
            match self.connect(Some(&name)).await {
                Ok(session) => {
                    let facts = Facts { database: name.clone(), ..facts.clone() };
                    for concern in local() {
                        // A connection that broke is this database's trouble.
                        if let Err(failure) = visit.ask(concern, &session, &facts).await {
                            visit.note(concern.name, Some(failure));
                        }
                    }
                    session.close().await;
                }
                Err(failure) => local().for_each(|c| visit.note(c.name, Some(failure.clone()))),
            }
            self.others.note(name, visit.found.samples, visit.concerns);
        }
        for name in names {
            match self.others.known.get(&name) {
                Some(known) => {
                    pass.found.samples.extend(known.samples.iter().cloned());
                    known.concerns.iter().for_each(|c| pass.note(c.name, c.failure.clone()));
                }
                None => local().for_each(|concern| pass.note(concern.name, Some(no_time()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn everybody_has_a_turn(count in 0usize..60, late in 1usize..20) {
            let names: Vec<String> = (0..count).map(|i| format!("db{i}")).collect();
            let mut others = Others::default();
            // The first ones are slow: only so many are visited before time is over.
            while others.known.len() < count {
                let due = others.due(&names);
                prop_assert_eq!(due.len(), count - others.known.len() + others.known.len().min(VISITS));
                due.into_iter().take(late).for_each(|name| others.note(name, Vec::new(), Vec::new()));
            }
            let before = others.visits;
            for _ in 0..count.div_ceil(VISITS) {
                let due = others.due(&names);
                prop_assert!(due.len() <= VISITS);
                due.into_iter().for_each(|name| others.note(name, Vec::new(), Vec::new()));
            }
            prop_assert!(others.known.values().all(|known| known.visit > before));
        }
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut others = Others::default();
        let names = ["a", "b"].map(str::to_owned);
        names.iter().for_each(|name| others.note(name.clone(), Vec::new(), Vec::new()));
        assert_eq!(others.due(&names[1..]), ["b"]);
        assert_eq!(others.due(&names), ["a", "b"]);
    }
}
