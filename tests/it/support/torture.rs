//! How much a test does: bounded in `make test`, more of the same in `make torture`.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Whether this is `make torture`, which sets `OPSD_TORTURE=1`.
pub fn torture() -> bool {
    std::env::var_os("OPSD_TORTURE").is_some_and(|value| value == "1")
}

/// How many rounds to go: `bounded` usually, `long` under torture.
pub fn rounds(bounded: usize, long: usize) -> usize {
    if torture() { long } else { bounded }
}

/// What random choices of a test start from: `OPSD_TEST_SEED`, or anything. Printed, so that a failure
/// can be had again.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("OPSD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    eprintln!("{test}: OPSD_TEST_SEED={seed}");
    seed
}

/// How much longer a run is taken to be after one that was struck.
const LONGER: f64 = 1.1;

/// Random moments of something whose duration changes with what else the machine does: spread evenly
/// over what a run takes, as far as the runs before tell.
pub struct Moments {
    random: StdRng,
    whole: Duration,
    rounds: usize,
    struck: usize,
    wanted: usize,
}

impl Moments {
    /// As many moments as [`rounds`] says of runs that take about `whole`.
    pub fn new(test: &str, whole: Duration, bounded: usize, long: usize) -> Self {
        let random = StdRng::seed_from_u64(seed(test));
        Self { random, whole, rounds: 0, struck: 0, wanted: rounds(bounded, long) }
    }

    /// The next one; `None` when enough runs were struck.
    pub fn next(&mut self) -> Option<Duration> {
        assert!(self.rounds < self.wanted * 5 + 10, "only {} of {} were struck", self.struck, self.rounds);
        self.rounds += 1;
        (self.struck < self.wanted).then(|| self.whole.mul_f64(self.random.random_range(0.0..1.05)))
    }

    /// Whether the run was struck, and if not, how long it took.
    pub fn tell(&mut self, was_struck: bool, took: Duration) {
        self.struck += usize::from(was_struck);
        self.whole = if was_struck { self.whole.mul_f64(LONGER) } else { self.whole.min(took) };
    }
}
