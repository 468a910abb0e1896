//! The sets of a job, read from the repository itself.
