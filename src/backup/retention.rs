//! What prune keeps and why: a pure function.
