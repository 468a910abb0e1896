//! The tests' own images behave as the official ones do, as far as the other tests build on it.

use crate::support::engine::engine;
use crate::support::opsd::finish;
use crate::support::postgres::{default_major, default_server, unique};
use crate::support::processes::until;

#[test]
fn the_postgres_image_makes_a_cluster_as_the_official_one_does() {
    let engine = engine();
    let (name, image) = (unique("images"), engine.postgres_image(default_major()));
    engine.docker(&[
        "run",
        "-d",
        "--name",
        &name,
        "-p",
        "127.0.0.1:5439:5432",
        "-e",
        "POSTGRES_USER=site",
        "-e",
        "POSTGRES_PASSWORD=p@ss'word",
        "-e",
        "POSTGRES_DB=forum",
        &image,
    ]);
    let query = |url: &str| {
        let mut psql = default_server().client("psql");
        psql.args(["-X", "-A", "-t", "-c", "SELECT current_user, inet_server_port()", url]);
        psql.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        finish(engine.inside(&psql))
    };
    let address = engine.inspect(&name, "{{.NetworkSettings.IPAddress}}");
    let by_address = format!("postgres://site:p%40ss%27word@{address}:5432/forum");
    until("the server answers", || query(&by_address).code == Some(0));
    assert_eq!(query(&by_address).stdout, "site|5432\n");
    assert_eq!(query("postgres://site:p%40ss%27word@127.0.0.1:5439/forum").code, Some(0));
    query(&format!("postgres://site:wrong@{address}:5432/forum"))
        .expect_failure(2, &["password authentication failed"]);
    let inside =
        engine.docker(&["exec", "-u", "postgres", &name, "psql", "-U", "site", "-Atc", "SELECT 1", "forum"]);
    assert_eq!(inside, "1");
    assert_eq!(engine.docker(&["exec", &name, "id", "-u", "postgres"]), "999");
    engine.docker(&["rm", "-f", "-v", &name]);
}

#[test]
fn the_redis_image_takes_options_as_its_command() {
    let engine = engine();
    let (name, image) = (unique("images"), engine.redis_image());
    engine.docker(&["run", "-d", "--name", &name, &image, "--requirepass", "secret"]);
    let ping = |password: &str| {
        engine.try_docker(&["exec", &name, "redis-cli", "--no-auth-warning", "-a", password, "PING"]).stdout
    };
    until("the server answers", || ping("secret") == "PONG\n");
    assert_ne!(ping("wrong"), "PONG\n");
    engine.docker(&["rm", "-f", "-v", &name]);
}
