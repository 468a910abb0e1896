//! Integration tests: one binary, real servers, everything through the built `opsd`.
//!
//! `make setup` installs the servers. `support` is shared; each other module is one subject.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "helpers of tests fail the way tests do; clippy's own exception covers only the tests themselves"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests have an environment of their own, and poll other processes"
)]

mod support;

mod alerts;
mod assertions;
mod aws_chain;
mod backups;
mod bad_input;
mod canary;
mod capacity;
mod cli;
mod complaints;
mod containers;
mod containment;
mod contract;
mod corpus;
mod dashboards;
mod databases;
mod demo;
mod dropped;
mod dry_run;
#[cfg(feature = "engine")]
mod engine;
mod exporter;
mod foreign_text;
mod forgery;
mod forget;
mod german;
mod globals;
mod guards;
mod harness;
mod hostile_peers;
mod identity;
mod injection;
mod integrity;
mod kill;
mod lacking;
mod large_objects;
mod lease;
mod listing;
mod locales;
mod locks;
mod machine;
mod majors;
mod minimal_role;
mod monitor_backups;
mod monitor_cascades;
mod monitor_networks;
mod monitor_pieces;
mod monitor_postgres;
mod monitor_probes;
mod monitor_queues;
mod monitor_redis;
mod monitor_standbys;
mod names;
mod object_lock;
mod ownership;
mod pings;
mod plain;
mod policies;
mod postgres;
mod postgres_faults;
mod proven;
mod readme;
mod regressions;
mod rehearsals;
mod reliance;
mod repository;
mod restore_md;
mod restores;
mod roundtrip;
mod runbooks;
mod s3;
mod s3_doubt;
mod s3_faults;
mod scarcity;
mod sections;
mod security;
mod selection;
mod served;
mod settings;
mod skipped;
mod standby;
mod states;
mod store;
mod store_habits;
mod surroundings;
mod sweep;
mod tablespaces;
mod talk;
mod terminal;
mod traps;
mod triggers;
mod trust;
mod undumped;
mod watching;
