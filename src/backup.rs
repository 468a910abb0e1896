//! `create`: the linear story of one backup.

pub mod prune;
pub mod retention;
