//! Real servers for tests: each on free loopback ports, in a directory of its own, gone on drop.

pub mod s3;
