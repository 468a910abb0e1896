//! Restoring a set, and proving it.
