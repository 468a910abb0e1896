//! Traps of PostgreSQL and of pg_dump, each as a test named after it.
