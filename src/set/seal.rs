//! zstd and age around a stream, and back.
