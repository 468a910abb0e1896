//! Requests that only the probe makes.
