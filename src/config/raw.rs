//! TOML into spans; every mistake at once.
