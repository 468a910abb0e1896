//! How hard a test tries: bounded in `make test`, longer in `make torture`.
//!
//! No test is skipped without it; it only does fewer rounds.

/// Whether this run is to take its time: `OPSD_TORTURE=1`, which `make torture` sets.
pub fn torture() -> bool {
    std::env::var_os("OPSD_TORTURE").is_some_and(|value| value == "1")
}

/// How often to try: the first number in `make test`, the second in `make torture`.
pub fn rounds(bounded: usize, long: usize) -> usize {
    if torture() { long } else { bounded }
}
