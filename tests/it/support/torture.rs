//! How much a test does: bounded in `make test`, more of the same in `make torture`.

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
