//! The ground itself is tested: servers start and vanish, fixtures load, comparisons can fail.

use std::path::PathBuf;

use crate::support::compare::{assert_same, assert_same_content, assert_same_settings, db, plain_restore};
use crate::support::fixtures;
use crate::support::postgres::{self, Options, Server};

#[test]
fn every_major_starts_and_answers() {
    postgres::for_each_major(|server| {
        let version: u32 = server.psql("postgres", "SHOW server_version_num").parse().unwrap();
        assert_eq!(version / 10_000, server.major);
    });
}

#[test]
fn tcp_needs_the_password() {
    let server = postgres::default_server();
    let run = |password: &str| {
        let mut psql = server.client("psql");
        psql.env("PGHOST", "127.0.0.1").env("PGPASSWORD", password).args(["-X", "-At", "-c", "SELECT 1"]);
        psql.output().unwrap().status.success()
    };
    assert!(run(postgres::PASSWORD));
    assert!(!run("wrong"));
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = Server::start(
        postgres::default_major(),
        &Options { settings: &[("work_mem", "77MB")], ..Default::default() },
    );
    assert_eq!(server.psql("postgres", "SHOW work_mem"), "77MB");
    let directory = PathBuf::from(server.socket_dir());
    let port = server.port;
    drop(server);
    assert!(!directory.exists());
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn fixtures_load_and_a_plain_restore_brings_them_back() {
    postgres::for_each_major(|server| {
        let source = fixtures::database_with(server, "all", fixtures::ALL);
        let once = plain_restore(db(server, &source));
        let again = plain_restore(db(server, &source));
        assert_same(db(server, &once), db(server, &again));
        assert_same_content(db(server, &source), db(server, &once));
        for name in [&source, &once, &again] {
            server.drop_database(name);
        }
    });
}
