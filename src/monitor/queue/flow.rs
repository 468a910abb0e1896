//! How a queue moves: rates and when it will be empty, from how it stood at each collection. Pure.
//!
//! Whether a queue empties needs its depth alone. How much comes in needs somebody who counts; what
//! goes out follows from both.

use std::collections::VecDeque;

/// Figures are about this much of the past, in seconds: long enough to even out, short enough to tell
/// of now.
const WINDOW: f64 = 300.0;
/// Points that are kept; where collections are less than five seconds apart, that is less of the past.
const POINTS_MAX: usize = 64;

/// A queue at one collection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Seconds on a clock that never goes back.
    pub at: f64,
    /// Jobs that waited.
    pub waiting: f64,
    /// Jobs that came in since the point before, where that is known.
    pub arrived: Option<f64>,
}

/// What becomes of a queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Emptying {
    /// Nothing waits.
    Empty,
    /// In so many seconds.
    In(f64),
    /// It stands or grows.
    Never,
    /// It was seen once.
    Unknown,
}

impl Emptying {
    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Emptying::Empty => "empty",
            Emptying::In(_) => "emptying",
            Emptying::Never => "never",
            Emptying::Unknown => "unknown",
        }
    }

    /// Seconds until it is empty.
    pub fn seconds(self) -> Option<f64> {
        match self {
            Emptying::Empty => Some(0.0),
            Emptying::In(seconds) => Some(seconds),
            Emptying::Never | Emptying::Unknown => None,
        }
    }
}

/// The last minutes of a queue.
#[derive(Debug, Default)]
pub struct Flow {
    points: VecDeque<Point>,
}

impl Flow {
    /// Adds how it stands now.
    pub fn push(&mut self, point: Point) {
        self.points.push_back(point);
        // Two stay, however long ago the first one was: an interval may be longer than the window.
        while self.points.len() > POINTS_MAX
            || (self.points.len() > 2 && self.points.front().is_some_and(|p| point.at - p.at > WINDOW))
        {
            self.points.pop_front();
        }
    }

    /// Jobs per second in and out, over the longest time up to now in which all of them were counted.
    pub fn rates(&self) -> Option<(f64, f64)> {
        let last = self.points.back()?;
        let counted = self.points.iter().rev().take_while(|point| point.arrived.is_some()).count();
        // The one before the first that was counted is where counting began.
        let counted = counted.min(self.points.len() - 1);
        let first = self.points.get(self.points.len() - 1 - counted)?;
        let span = last.at - first.at;
        if counted == 0 || span <= 0.0 {
            return None;
        }
        let arrived: f64 = self.points.iter().rev().take(counted).filter_map(|point| point.arrived).sum();
        let drained = arrived - (last.waiting - first.waiting);
        Some((arrived / span, drained.max(0.0) / span))
    }

    /// What becomes of it if this goes on.
    pub fn emptying(&self) -> Emptying {
        let (Some(first), Some(last)) = (self.points.front(), self.points.back()) else {
            return Emptying::Unknown;
        };
        if last.waiting <= 0.0 {
            return Emptying::Empty;
        }
        let span = last.at - first.at;
        if span <= 0.0 {
            return Emptying::Unknown;
        }
        let shrinks = (first.waiting - last.waiting) / span;
        if shrinks > 0.0 { Emptying::In(last.waiting / shrinks) } else { Emptying::Never }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_outlook_is_a_label() {
        let all = [Emptying::Empty, Emptying::In(1.0), Emptying::Never, Emptying::Unknown];
        assert_eq!(all.map(Emptying::as_str), crate::metrics::QUEUE_EMPTYING_STATE.states);
    }

    fn flow(points: &[(f64, f64, Option<f64>)]) -> Flow {
        let mut flow = Flow::default();
        for &(at, waiting, arrived) in points {
            flow.push(Point { at, waiting, arrived });
        }
        flow
    }

    #[test]
    fn a_queue_that_shrinks_is_empty_some_day() {
        let flow = flow(&[(0.0, 1000.0, None), (10.0, 900.0, Some(50.0))]);
        assert_eq!(flow.emptying(), Emptying::In(90.0));
        assert_eq!(flow.rates(), Some((5.0, 15.0)));
    }

    #[test]
    fn one_that_stands_or_grows_never_is() {
        assert_eq!(flow(&[(0.0, 5.0, None), (10.0, 5.0, Some(7.0))]).emptying(), Emptying::Never);
        assert_eq!(flow(&[(0.0, 5.0, None), (10.0, 6.0, None)]).emptying(), Emptying::Never);
        assert_eq!(flow(&[(0.0, 5.0, None), (10.0, 0.0, None)]).emptying(), Emptying::Empty);
        assert_eq!(flow(&[(0.0, 5.0, None)]).emptying(), Emptying::Unknown);
        assert_eq!(Flow::default().emptying(), Emptying::Unknown);
    }

    #[test]
    fn rates_are_of_the_time_in_which_arrivals_were_counted() {
        let flow = flow(&[
            (0.0, 0.0, Some(9.0)),
            (10.0, 9.0, None),
            (20.0, 9.0, Some(10.0)),
            (30.0, 4.0, Some(5.0)),
        ]);
        assert_eq!(flow.rates(), Some((0.75, 1.0)));
        assert_eq!(self::flow(&[(0.0, 1.0, None), (10.0, 1.0, None)]).rates(), None);
        assert_eq!(self::flow(&[(0.0, 1.0, Some(4.0))]).rates(), None);
    }

    #[test]
    fn the_past_is_forgotten() {
        let flow = flow(&[(0.0, 1000.0, None), (301.0, 10.0, Some(0.0)), (311.0, 20.0, Some(10.0))]);
        assert_eq!(flow.emptying(), Emptying::Never);
        assert_eq!(flow.rates(), Some((1.0, 0.0)));
    }

    proptest! {
        #[test]
        fn figures_are_finite_and_not_negative(
            points in prop::collection::vec((0.0f64..50.0, 0u32..1000, prop::option::of(0u32..1000)), 0..200)
        ) {
            let mut flow = Flow::default();
            let mut at = 0.0;
            for (later, waiting, arrived) in points {
                at += later;
                flow.push(Point { at, waiting: waiting.into(), arrived: arrived.map(f64::from) });
                prop_assert!(flow.points.len() <= POINTS_MAX);
                if let Some((arrivals, drained)) = flow.rates() {
                    prop_assert!(arrivals >= 0.0 && drained >= 0.0 && (arrivals + drained).is_finite());
                }
                prop_assert!(flow.emptying().seconds().is_none_or(|s| s >= 0.0 && s.is_finite()));
            }
        }
    }
}
