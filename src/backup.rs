//! `create`: the linear story of one backup.

pub mod retention;
