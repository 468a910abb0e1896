//! One verdict on a pair of servers, from the pieces of both ends.
//!
//! Neither end knows alone. `now() - pg_last_xact_replay_timestamp()` grows while the primary is idle,
//! and the usual cure (no lag where received = replayed) hides a cut link. [`decide`] is pure; the
//! [`Board`] is where monitors of one process leave their end for each other. A verdict compares its
//! own fresh end with the other's older one in the one direction in which that is no mistake: a
//! standby that has not replayed what the primary wrote a while ago is behind.
//!
//! Two ends belong together when they are the ends of one connection. Names do not tell: all levels of a cascade may
//! share one. Addresses do not either: proxies, names and containers stand between. When the connection began does,
//! because both ends know it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Facts;
use crate::metrics::{self, Sample};

/// A pair that is busy always has some bytes under way.
const CAUGHT_UP_BYTES: f64 = (1 << 20) as f64;
/// What a monitor said is believed for so many of its intervals.
const BELIEVED_INTERVALS: u32 = 3;
/// A receiver connects at once when it is started: the server that it reaches serves it this many seconds later at most,
/// or seems to have served it so much earlier where the clocks differ by what nobody notices.
const CONNECTS_WITHIN: f64 = 5.0;
const CLOCKS_WITHIN: f64 = 0.5;
/// A slot without a reader that somebody moves on follows within a segment of WAL (16 MiB); one that was left further
/// behind waits for a standby that is away.
const FOLLOWS_WITHIN_BYTES: f64 = (16 << 20) as f64;

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
    /// The standby is behind on purpose: `recovery_min_apply_delay`.
    Delayed,
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
            State::Delayed => "delayed",
            State::Unknown => "unknown",
        }
    }
}

/// A standby as the sending server sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sender {
    /// Whether somebody reads.
    pub connected: bool,
    /// When the reader connected, by this host's clock.
    pub since: Option<f64>,
    /// From where on WAL is kept for it; only of a slot that nobody reads.
    pub kept: Option<f64>,
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
    /// When its receiver was started, by this host's clock; the last one where there is none now.
    pub since: Option<f64>,
    /// Whether it is to be late.
    pub delayed: bool,
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
        let delayed = receiver.is_some_and(|r| r.delayed);
        return if delayed { State::Delayed } else { State::Replaying };
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
pub struct Board(Arc<Mutex<Vec<End>>>);

/// One end of a pair, as a monitor saw it last.
struct End {
    /// Identifier of the cluster; whose is not known is nobody's counterpart.
    cluster: Option<String>,
    /// Which monitor saw it.
    monitor: String,
    /// What the standby is called, and on the sending server where it connects from.
    standby: String,
    client: String,
    seen: Seen,
    expires: Instant,
}

enum Seen {
    Sender(Sender),
    Receiver(Receiver),
}

/// How many seconds lie between the beginnings of a connection at both of its ends; none where these two are not
/// the ends of one. Of a slot that nobody reads only the name is known, as of a receiver that has no connection.
fn distance(sender: &Sender, receiver: &Receiver) -> Option<f64> {
    match (sender.since, receiver.since) {
        (Some(served), Some(started)) => {
            let later = served - started;
            (-CLOCKS_WITHIN..=CONNECTS_WITHIN).contains(&later).then_some(later.abs())
        }
        (None, _) => (!sender.connected && !receiver.connected).then_some(0.0),
        (Some(_), None) => None,
    }
}

impl End {
    /// How far another end is from this one, where they may belong together.
    fn distance(&self, other: &End) -> Option<f64> {
        let is_other = self.monitor != other.monitor;
        let is_cluster = self.cluster.is_some() && self.cluster == other.cluster;
        let is_same = is_cluster && self.standby == other.standby;
        match (&self.seen, &other.seen) {
            (Seen::Sender(sender), Seen::Receiver(receiver))
            | (Seen::Receiver(receiver), Seen::Sender(sender))
                if is_other && is_same =>
            {
                distance(sender, receiver)
            }
            _ => None,
        }
    }

    /// The one that is nearest to this end; none where two are equally near.
    fn nearest<'a>(&self, ends: &'a [End]) -> Option<&'a End> {
        let mut near: Vec<(f64, &End)> =
            ends.iter().filter_map(|end| Some((self.distance(end)?, end))).collect();
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        match near.as_slice() {
            [(_, only)] => Some(only),
            [(first, nearest), (second, _), ..] if first < second => Some(nearest),
            _ => None,
        }
    }

    /// The other end of this one's connection: each is the nearest to the other.
    fn counterpart<'a>(&self, ends: &'a [End]) -> Option<&'a Seen> {
        let other = self.nearest(ends)?;
        let back = other.nearest(ends)?;
        std::ptr::eq(back, self).then_some(&other.seen)
    }
}

/// A slot without a reader at the collection before.
struct Idle {
    kept: f64,
    /// Up to where there was WAL when it was last seen to move on.
    moved: Option<f64>,
}

/// One monitor's part in the verdicts.
pub struct Pairs {
    board: Board,
    monitor: String,
    /// How long others may believe it.
    believed: Duration,
    /// The end of WAL at the collection before.
    before: Option<f64>,
    /// How far replay was then.
    replayed: Option<f64>,
    /// When the receiver was started that was seen last.
    since: Option<f64>,
    idle: HashMap<String, Idle>,
}

impl Pairs {
    /// A monitor of this name that collects so often.
    pub fn new(board: Board, monitor: &str, interval: Duration) -> Self {
        Self {
            board,
            monitor: monitor.to_owned(),
            believed: interval.saturating_mul(BELIEVED_INTERVALS),
            before: None,
            replayed: None,
            since: None,
            idle: HashMap::new(),
        }
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
        let senders = self.without_moved_slots(senders);
        if let Some((_, receiver)) = &receiver {
            self.since = receiver.since.or(self.since);
        }
        let end = |standby: String, client: String, seen: Seen| End {
            cluster: facts.system_identifier.clone(),
            monitor: self.monitor.clone(),
            standby,
            client,
            seen,
            expires: Instant::now() + self.believed,
        };
        let mut own: Vec<End> = Vec::new();
        for (standby, client, sender) in senders {
            own.push(end(standby, client, Seen::Sender(Sender { moved, before, ..sender })));
        }
        if let Some((standby, receiver)) = receiver {
            let receiver = Receiver { moved, before, replays, since: self.since, ..receiver };
            own.push(end(standby, String::new(), Seen::Receiver(receiver)));
        }
        let mut board = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        board.retain(|end| end.monitor != self.monitor && end.expires > Instant::now());
        board.extend(own);
        drop(board);
        self.verdicts()
    }

    /// The same with what others have seen since.
    pub fn verdicts(&self) -> Vec<Sample> {
        let board = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut samples = Vec::new();
        for end in board.iter().filter(|end| end.monitor == self.monitor) {
            let state = verdict(&end.seen, end.counterpart(&board));
            let metric = &metrics::POSTGRES_REPLICATION_STATE;
            samples.extend(metrics::states(metric, &[&end.standby, &end.client], state.as_str()));
        }
        samples
    }

    /// A slot without a reader is a standby that is away, unless somebody moves it on: cluster managers keep such
    /// slots for members that read elsewhere.
    fn without_moved_slots(
        &mut self,
        senders: Vec<(String, String, Sender)>,
    ) -> Vec<(String, String, Sender)> {
        let known = std::mem::take(&mut self.idle);
        let mut kept = Vec::new();
        for (standby, client, sender) in senders {
            let Some(at) = sender.kept.filter(|_| !sender.connected) else {
                kept.push((standby, client, sender));
                continue;
            };
            let end = sender.position.unwrap_or(at);
            let moved = match known.get(&standby) {
                Some(idle) if at > idle.kept => Some(end),
                Some(idle) => idle.moved,
                None => None,
            };
            self.idle.insert(standby.clone(), Idle { kept: at, moved });
            if moved.is_none_or(|moved| end - moved > FOLLOWS_WITHIN_BYTES) {
                kept.push((standby, client, sender));
            }
        }
        kept
    }
}

/// What one end says, with the other where it is known.
fn verdict(own: &Seen, other: Option<&Seen>) -> State {
    match (own, other) {
        (Seen::Sender(sender), Some(Seen::Receiver(receiver))) => {
            // What it replayed was true a while ago; the standby's own report to this server is newer.
            let replayed = sender.replayed.or(receiver.replayed);
            decide(Some(sender), Some(&Receiver { replayed, end: None, ..receiver.clone() }))
        }
        (Seen::Sender(sender), _) => decide(Some(sender), None),
        (Seen::Receiver(receiver), Some(Seen::Sender(sender))) => decide(Some(sender), Some(receiver)),
        (Seen::Receiver(receiver), _) => decide(None, Some(receiver)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::Privileges;
    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    fn sender() -> Sender {
        Sender {
            connected: true,
            since: Some(1_000.1),
            kept: None,
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
            since: Some(1_000.0),
            delayed: false,
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
    fn a_standby_that_is_late_on_purpose_is_not_behind() {
        let late = Receiver { replayed: Some(9.0 * MIB), delayed: true, ..receiver() };
        assert_eq!(decide(None, Some(&late)), State::Delayed);
        assert_eq!(
            decide(Some(&Sender { replayed: Some(9.0 * MIB), ..sender() }), Some(&late)),
            State::Delayed
        );
        assert_eq!(decide(None, Some(&Receiver { delayed: true, ..receiver() })), State::CaughtUp);
        assert_eq!(decide(None, Some(&Receiver { connected: false, ..late })), State::LinkCut);
    }

    fn pairs(board: &Board, monitor: &str) -> Pairs {
        Pairs::new(board.clone(), monitor, Duration::from_secs(15))
    }

    #[test]
    fn of_two_with_one_name_each_hears_of_its_own() {
        let board = Board::default();
        let [mut primary, mut standby] = ["primary", "standby"].map(|name| pairs(&board, name));
        let paused = Receiver { paused: true, ..receiver() };
        standby.judge(&facts(None), Vec::new(), Some(("walreceiver".into(), paused)));
        let see = |primary: &mut Pairs, since: [f64; 2]| {
            let two = since
                .map(|at| ("walreceiver".into(), at.to_string(), Sender { since: Some(at), ..sender() }));
            let found = primary.judge(&facts(sender().position), two.to_vec(), None);
            said(&found).into_iter().map(|(_, state)| state.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(see(&mut primary, [500.0, 1_000.1]), ["caught_up", "paused"]);
        assert_eq!(see(&mut primary, [1_000.2, 1_000.1]), ["source_idle", "paused"]);
        // Where two are as near, and where none is near, nobody is told of it.
        assert_eq!(see(&mut primary, [1_000.1, 1_000.1]), ["source_idle"; 2]);
        assert_eq!(see(&mut primary, [990.0, 1_010.0]), ["source_idle"; 2]);
    }

    #[test]
    fn a_slot_that_somebody_moves_on_is_no_standby_until_it_is_left_behind() {
        let mut primary = pairs(&Board::default(), "primary");
        let mut see = |kept: f64, end: f64| {
            let slot = Sender {
                connected: false,
                since: None,
                kept: Some(kept * MIB),
                position: Some(end * MIB),
                replayed: None,
                ..sender()
            };
            let found = primary.judge(&facts(slot.position), vec![("s".into(), String::new(), slot)], None);
            said(&found).first().map(|(_, state)| (*state).to_owned())
        };
        let cut = Some("link_cut".to_owned());
        assert_eq!((see(1.0, 9.0), see(1.0, 9.0)), (cut.clone(), cut.clone()));
        assert_eq!((see(2.0, 9.0), see(2.0, 9.0), see(2.0, 25.0)), (None, None, None));
        assert_eq!((see(2.0, 26.0), see(25.0, 26.0)), (cut, None));
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
            State::Delayed,
            State::Unknown,
        ];
        assert_eq!(states.map(State::as_str), metrics::POSTGRES_REPLICATION_STATE.states);
    }

    fn facts(position: Option<f64>) -> Facts {
        Facts {
            version: 170_000,
            version_text: "17.0".into(),
            system_identifier: Some("7".into()),
            started: None,
            in_recovery: position.is_none(),
            position,
            knows_positions: true,
            may: Privileges::default(),
            database: "postgres".into(),
            ahead: 0.0,
            slack: 0.0,
        }
    }

    fn said(samples: &[Sample]) -> Vec<(&str, &str)> {
        let on = samples.iter().filter(|sample| sample.value == 1.0);
        on.map(|s| (s.label("standby").unwrap(), s.label("state").unwrap())).collect()
    }

    #[test]
    fn each_end_hears_of_the_other() {
        let board = Board::default();
        let [mut primary, mut standby] = ["primary", "standby"].map(|name| pairs(&board, name));
        let mut stale = Pairs::new(board, "standby", Duration::ZERO);
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
