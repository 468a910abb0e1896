//! A PostgreSQL monitor on real servers of every major.
