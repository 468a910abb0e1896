//! Peers that try to exhaust opsd: each command stays within its memory and comes to an end.

mod postgres;
mod probes;
mod records;
mod redis;
mod s3;
