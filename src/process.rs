//! Child processes: process groups, bounded stderr, an end that is certain.
