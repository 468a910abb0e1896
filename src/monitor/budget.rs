//! How many series a monitor may have, and which are refused: one sick target must not fill, or spoil,
//! the page of all.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::metrics::Sample;
use crate::printable;

/// Characters of a label: names of PostgreSQL end at 63 bytes, and a page of many long ones is read by nobody.
const LABEL_MAX: usize = 200;

/// The samples that may be served, and how many may not: above the limit, doubled (a page with one
/// series twice is refused as a whole), or malformed.
pub fn admit(samples: Vec<Sample>, limit: usize) -> (Vec<Sample>, u64) {
    let offered = samples.len();
    let mut seen = HashSet::with_capacity(offered.min(limit));
    let mut admitted = Vec::with_capacity(offered.min(limit));
    for mut sample in samples {
        if admitted.len() == limit {
            break;
        }
        for label in &mut sample.labels {
            if let Cow::Owned(shown) = printable::bounded(label, LABEL_MAX) {
                *label = shown;
            }
        }
        if sample.is_whole() && seen.insert((sample.metric.name, sample.labels.clone())) {
            admitted.push(sample);
        }
    }
    let dropped = (offered - admitted.len()) as u64;
    (admitted, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{MONITOR_CONCERN_UP, MONITOR_UP};
    use proptest::prelude::*;

    fn sample(label: &str, value: f64) -> Sample {
        Sample::new(&MONITOR_CONCERN_UP, [label], value)
    }

    #[test]
    fn the_first_ones_stay_and_the_rest_is_counted() {
        let samples = vec![sample("a", 1.0), sample("b", 2.0), sample("c", 3.0)];
        let (kept, dropped) = admit(samples.clone(), 2);
        assert_eq!((kept.as_slice(), dropped), (&samples[..2], 1));
        assert_eq!(admit(samples.clone(), 3), (samples, 0));
    }

    #[test]
    fn doubled_and_malformed_series_are_left_out() {
        let bad = vec![
            sample("a", 1.0),
            sample("a", 2.0),
            sample("b", f64::NAN),
            Sample::plain(&MONITOR_CONCERN_UP, 1.0),
            Sample::plain(&MONITOR_UP, 1.0),
        ];
        let (kept, dropped) = admit(bad, 10);
        assert_eq!(kept, [sample("a", 1.0), Sample::plain(&MONITOR_UP, 1.0)]);
        assert_eq!(dropped, 3);
    }

    #[test]
    fn labels_are_bounded_and_cannot_drive_a_terminal() {
        let long = "x".repeat(900_000);
        let (kept, dropped) = admit(vec![sample(&long, 1.0), sample("a\u{1b}[2J\n", 1.0)], 10);
        assert_eq!(dropped, 0);
        assert_eq!(kept[0].labels[0].chars().count(), LABEL_MAX + 1);
        assert_eq!(kept[1].labels[0], "a\\u{1b}[2J\\n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_uncounted(labels in prop::collection::vec("[a-c]", 0..20), limit in 0usize..10) {
            let offered = labels.len() as u64;
            let (kept, dropped) = admit(labels.iter().map(|l| sample(l, 0.0)).collect(), limit);
            prop_assert!(kept.len() <= limit);
            prop_assert_eq!(kept.len() as u64 + dropped, offered);
        }
    }
}
