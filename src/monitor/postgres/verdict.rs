//! One verdict on a pair of servers, from the pieces of both ends.
//!
//! Neither end knows alone. `now() - pg_last_xact_replay_timestamp()` grows while the primary is idle,
//! and the usual cure (no lag where received = replayed) hides a cut link. [`decide`] is pure; the
//! [`Board`] is where monitors of one process leave their end for each other. A verdict compares its
//! own fresh end with the other's older one in the one direction in which that is no mistake: a
//! standby that has not replayed what the primary wrote a while ago is behind.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Facts;
use crate::metrics::{self, Sample};

/// A pair that is busy always has some bytes under way.
const CAUGHT_UP_BYTES: f64 = (1 << 20) as f64;
/// What a monitor said is believed for so many of its intervals.
const BELIEVED_INTERVALS: u32 = 3;

/// What is the matter with a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All is replayed, and more keeps coming.
    CaughtUp,
    /// The standby is behind, and connected.
    Replaying,
    /// No WAL gets through.
    LinkCut,
    /// All is replayed, and the primary writes nothing.
    SourceIdle,
    /// Somebody paused replay.
    Paused,
    /// The pieces do not tell.
    Unknown,
}

impl State {
    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            State::CaughtUp => "caught_up",
            State::Replaying => "replaying",
            State::LinkCut => "link_cut",
            State::SourceIdle => "source_idle",
            State::Paused => "paused",
            State::Unknown => "unknown",
        }
    }
}

/// A standby as the sending server sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sender {
    /// Whether somebody reads.
    pub connected: bool,
    /// Up to where there is WAL.
    pub position: Option<f64>,
    /// Up to where the standby says that it has replayed.
    pub replayed: Option<f64>,
    /// Whether WAL was written since the collection before.
    pub moved: Option<bool>,
    /// Up to where there was WAL then.
    pub before: Option<f64>,
}

/// A standby as it sees itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Receiver {
    /// Whether it is to stream at all; one that reads an archive has no link.
    pub configured: Option<bool>,
    /// Whether its receiver streams and has heard something lately.
    pub connected: bool,
    /// Up to where it has, or knows of, WAL.
    pub end: Option<f64>,
    /// Up to where it has replayed.
    pub replayed: Option<f64>,
    /// Whether replay is paused.
    pub paused: bool,
    /// Whether WAL arrived since the collection before.
    pub moved: Option<bool>,
    /// Up to where it had WAL then.
    pub before: Option<f64>,
    /// Whether it has replayed something since then.
    pub replays: bool,
}

/// The verdict; an end that nobody watches is absent.
pub fn decide(sender: Option<&Sender>, receiver: Option<&Receiver>) -> State {
    // As long as its archive has WAL, a standby does not even try to connect.
    if receiver.is_some_and(|r| !r.connected && r.replays) {
        return State::Replaying;
    }
    let no_reader = sender.is_some_and(|s| !s.connected);
    let no_stream = receiver.is_some_and(|r| !r.connected && r.configured != Some(false));
    if no_reader || no_stream {
        return State::LinkCut;
    }
    if receiver.is_some_and(|r| r.paused) {
        return State::Paused;
    }
    let replayed = receiver.and_then(|r| r.replayed).or(sender.and_then(|s| s.replayed));
    let ends = [sender.and_then(|s| s.position), receiver.and_then(|r| r.end)];
    let (Some(replayed), Some(end)) = (replayed, ends.into_iter().flatten().reduce(f64::max)) else {
        return State::Unknown;
    };
    // A busy primary is always ahead of what it sent a moment ago; what it had written at the collection
    // before should be replayed by now.
    let before = [sender.and_then(|s| s.before), receiver.and_then(|r| r.before)];
    let due = before.into_iter().flatten().reduce(f64::max).unwrap_or(end);
    if end - replayed > CAUGHT_UP_BYTES && replayed < due {
        return State::Replaying;
    }
    let moved = [sender.and_then(|s| s.moved), receiver.and_then(|r| r.moved)];
    match moved.into_iter().flatten().reduce(|a, b| a || b) {
        Some(false) => State::SourceIdle,
        // Before the second collection nobody knows whether anything is written.
        Some(true) | None => State::CaughtUp,
    }
}

/// Where the PostgreSQL monitors of one process leave what they saw.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<HashMap<Pair, Ends>>>);

/// Identifier of the cluster, and what the standby is called.
type Pair = (String, String);

#[derive(Default)]
struct Ends {
    sender: Option<(Sender, Instant)>,
    receiver: Option<(Receiver, Instant)>,
}

/// One monitor's part in the verdicts.
pub struct Pairs {
    board: Board,
    /// How long others may believe it.
    believed: Duration,
    /// The end of WAL at the collection before.
    before: Option<f64>,
    /// How far replay was then.
    replayed: Option<f64>,
}

impl Pairs {
    /// A monitor that collects so often.
    pub fn new(board: Board, interval: Duration) -> Self {
        Self { board, believed: interval.saturating_mul(BELIEVED_INTERVALS), before: None, replayed: None }
    }

    /// The verdicts on every pair that this server is an end of.
    pub fn judge(
        &mut self,
        facts: &Facts,
        senders: Vec<(String, String, Sender)>,
        receiver: Option<(String, Receiver)>,
    ) -> Vec<Sample> {
        let now = facts.position.or(receiver.as_ref().and_then(|(_, r)| r.end));
        let before = std::mem::replace(&mut self.before, now);
        let moved = before.zip(now).map(|(before, now)| now > before);
        let replayed = receiver.as_ref().and_then(|(_, r)| r.replayed);
        let replayed_before = std::mem::replace(&mut self.replayed, replayed);
        let replays = replayed_before.zip(replayed).is_some_and(|(before, now)| now > before);
        let mut samples = Vec::new();
        let mut say = |standby: &str, client: &str, state: State| {
            let metric = &metrics::POSTGRES_REPLICATION_STATE;
            samples.extend(metrics::states(metric, &[standby, client], state.as_str()));
        };
        let expires = Instant::now() + self.believed;
        let mut board = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.retain(|_, ends| fresh(&ends.sender).is_some() || fresh(&ends.receiver).is_some());
        let key = |standby: &str| facts.system_identifier.clone().map(|id| (id, standby.to_owned()));
        let names: Vec<String> = senders.iter().map(|(standby, _, _)| standby.clone()).collect();
        // Of two that are called the same, nobody knows which one left its end.
        let is_one = |standby: &str| names.iter().filter(|name| *name == standby).count() == 1;
        for (standby, client, sender) in senders {
            let sender = Sender { moved, before, ..sender };
            let ends = key(&standby).filter(|_| is_one(&standby)).map(|key| board.entry(key).or_default());
            // What it replayed was true a while ago; the standby's own report to this server is newer.
            let other = ends.as_ref().and_then(|ends| fresh(&ends.receiver)).map(|receiver| Receiver {
                replayed: sender.replayed.or(receiver.replayed),
                end: None,
                ..receiver
            });
            say(&standby, &client, decide(Some(&sender), other.as_ref()));
            if let Some(ends) = ends {
                ends.sender = Some((sender, expires));
            }
        }
        if let Some((standby, receiver)) = receiver {
            let receiver = Receiver { moved, before, replays, ..receiver };
            let ends = key(&standby).map(|key| board.entry(key).or_default());
            let other = ends.as_ref().and_then(|ends| fresh(&ends.sender));
            say(&standby, "", decide(other.as_ref(), Some(&receiver)));
            if let Some(ends) = ends {
                ends.receiver = Some((receiver, expires));
            }
        }
        samples
    }
}

fn fresh<T: Clone>(end: &Option<(T, Instant)>) -> Option<T> {
    end.as_ref().filter(|(_, expires)| *expires > Instant::now()).map(|(end, _)| end.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    fn sender() -> Sender {
        Sender {
            connected: true,
            position: Some(100.0 * MIB),
            replayed: Some(100.0 * MIB),
            moved: Some(true),
            before: Some(100.0 * MIB),
        }
    }

    fn receiver() -> Receiver {
        Receiver {
            configured: Some(true),
            connected: true,
            end: Some(100.0 * MIB),
            replayed: Some(100.0 * MIB),
            paused: false,
            moved: Some(true),
            before: Some(100.0 * MIB),
            replays: false,
        }
    }

    fn both(sender: &Sender, receiver: &Receiver) -> [State; 3] {
        [decide(Some(sender), Some(receiver)), decide(Some(sender), None), decide(None, Some(receiver))]
    }

    #[test]
    fn a_healthy_pair() {
        assert_eq!(both(&sender(), &receiver()), [State::CaughtUp; 3]);
        let first = (Sender { moved: None, ..sender() }, Receiver { moved: None, ..receiver() });
        assert_eq!(both(&first.0, &first.1), [State::CaughtUp; 3]);
    }

    #[test]
    fn an_idle_primary_is_no_lag() {
        let idle = (Sender { moved: Some(false), ..sender() }, Receiver { moved: Some(false), ..receiver() });
        assert_eq!(both(&idle.0, &idle.1), [State::SourceIdle; 3]);
        // The other end, which looked later, saw something.
        assert_eq!(decide(Some(&sender()), Some(&idle.1)), State::CaughtUp);
    }

    #[test]
    fn a_cut_link_although_all_that_was_received_is_replayed() {
        let cut = Receiver { connected: false, moved: Some(false), ..receiver() };
        assert_eq!(decide(None, Some(&cut)), State::LinkCut);
        assert_eq!(decide(Some(&sender()), Some(&cut)), State::LinkCut);
        let away = Sender { connected: false, replayed: None, ..sender() };
        assert_eq!(decide(Some(&away), None), State::LinkCut);
        assert_eq!(decide(Some(&away), Some(&receiver())), State::LinkCut);
        // A cut link is worse than a pause.
        assert_eq!(decide(None, Some(&Receiver { paused: true, ..cut })), State::LinkCut);
    }

    #[test]
    fn a_pause_shows_although_nothing_is_missing() {
        let paused = Receiver { paused: true, ..receiver() };
        assert_eq!(decide(None, Some(&paused)), State::Paused);
        assert_eq!(decide(Some(&sender()), Some(&paused)), State::Paused);
    }

    #[test]
    fn behind_as_either_end_can_see_it() {
        let behind = Sender { replayed: Some(90.0 * MIB), ..sender() };
        assert_eq!(decide(Some(&behind), None), State::Replaying);
        let slow = Receiver { replayed: Some(90.0 * MIB), ..receiver() };
        assert_eq!(decide(None, Some(&slow)), State::Replaying);
        // Received and replayed alike, and yet the primary has more.
        let short = Receiver { end: Some(90.0 * MIB), replayed: Some(90.0 * MIB), ..receiver() };
        assert_eq!(decide(None, Some(&short)), State::CaughtUp);
        assert_eq!(decide(Some(&sender()), Some(&short)), State::Replaying);
        let nearly = Receiver { replayed: Some(99.5 * MIB), ..receiver() };
        assert_eq!(decide(None, Some(&nearly)), State::CaughtUp);
    }

    #[test]
    fn a_busy_primary_is_ahead_of_what_it_sent_a_moment_ago() {
        let busy = Sender { position: Some(150.0 * MIB), replayed: Some(101.0 * MIB), ..sender() };
        assert_eq!(decide(Some(&busy), None), State::CaughtUp);
        assert_eq!(decide(Some(&Sender { replayed: Some(99.0 * MIB), ..busy }), None), State::Replaying);
    }

    #[test]
    fn a_standby_that_reads_the_archive_is_on_its_way() {
        let reads = Receiver { connected: false, replays: true, ..receiver() };
        let away = Sender { connected: false, replayed: None, ..sender() };
        assert_eq!(decide(None, Some(&reads)), State::Replaying);
        assert_eq!(decide(Some(&away), Some(&reads)), State::Replaying);
    }

    #[test]
    fn of_two_with_one_name_neither_hears_of_the_other() {
        let board = Board::default();
        let [mut primary, mut standby] = [(); 2].map(|()| Pairs::new(board.clone(), Duration::from_secs(15)));
        let paused = Receiver { paused: true, ..receiver() };
        standby.judge(&facts(None), Vec::new(), Some(("walreceiver".into(), paused)));
        let two = ["10.0.0.2", "10.0.0.3"].map(|at| ("walreceiver".into(), at.into(), sender()));
        let found = primary.judge(&facts(sender().position), two.to_vec(), None);
        assert_eq!(said(&found), [("walreceiver", "caught_up"); 2]);
    }

    #[test]
    fn what_the_pieces_do_not_tell_is_unknown() {
        assert_eq!(decide(None, None), State::Unknown);
        let archive = Receiver { configured: Some(false), connected: false, end: None, ..receiver() };
        assert_eq!(decide(None, Some(&archive)), State::Unknown);
        assert_eq!(decide(Some(&Sender { replayed: None, ..sender() }), None), State::Unknown);
        let hidden = Receiver { configured: None, connected: false, ..receiver() };
        assert_eq!(decide(None, Some(&hidden)), State::LinkCut);
    }

    #[test]
    fn every_state_is_a_label() {
        let states = [
            State::CaughtUp,
            State::Replaying,
            State::LinkCut,
            State::SourceIdle,
            State::Paused,
            State::Unknown,
        ];
        assert_eq!(states.map(State::as_str), metrics::POSTGRES_REPLICATION_STATE.states);
    }

    fn facts(position: Option<f64>) -> Facts {
        Facts {
            version: 170_000,
            version_text: "17.0".into(),
            system_identifier: Some("7".into()),
            in_recovery: position.is_none(),
            monitor_role: true,
            started: 0.0,
            position,
            database: "postgres".into(),
            ahead: 0.0,
        }
    }

    fn said(samples: &[Sample]) -> Vec<(&str, &str)> {
        let on = samples.iter().filter(|sample| sample.value == 1.0);
        on.map(|s| (s.label("standby").unwrap(), s.label("state").unwrap())).collect()
    }

    #[test]
    fn each_end_hears_of_the_other() {
        let board = Board::default();
        let mut primary = Pairs::new(board.clone(), Duration::from_secs(15));
        let mut standby = Pairs::new(board.clone(), Duration::from_secs(15));
        let mut stale = Pairs::new(board, Duration::ZERO);
        let see = |pairs: &mut Pairs, sender: Sender| {
            pairs.judge(&facts(sender.position), vec![("s".into(), "local".into(), sender)], None)
        };
        assert_eq!(said(&see(&mut primary, sender())), [("s", "caught_up")]);
        assert_eq!(said(&see(&mut primary, sender())), [("s", "source_idle")]);
        // The standby has all that it knows of, and hears from the primary that there is more.
        let short = Receiver { end: Some(90.0 * MIB), replayed: Some(90.0 * MIB), ..receiver() };
        let found = standby.judge(&facts(None), Vec::new(), Some(("s".into(), short)));
        assert_eq!(said(&found), [("s", "replaying")]);
        let paused = Receiver { paused: true, ..receiver() };
        let found = standby.judge(&facts(None), Vec::new(), Some(("s".into(), paused.clone())));
        assert_eq!(said(&found), [("s", "paused")]);
        assert_eq!(said(&see(&mut primary, sender())), [("s", "paused")]);
        // Another standby is none of its business, and what is old is not believed.
        let other = vec![("t".into(), "local".into(), sender())];
        assert_eq!(said(&primary.judge(&facts(sender().position), other, None)), [("t", "source_idle")]);
        stale.judge(&facts(None), Vec::new(), Some(("s".into(), paused)));
        assert_eq!(said(&see(&mut primary, sender())), [("s", "source_idle")]);
    }
}
