//! Thin: parse, tracing, runtime, exit code.

fn main() {}
