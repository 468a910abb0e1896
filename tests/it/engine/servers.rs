//! PostgreSQL in a container: found by its name or its Compose labels, over the network or through the container.
//!
//! The Engine is in a network of its own, so opsd has the container's addresses where it is started there, and where it
//! is not, no way but through the container.

use std::path::Path;
use std::process::Command;

use crate::support::engine::{Compose, Engine, engine};
use crate::support::exporter::Exporter;
use crate::support::opsd::{Opsd, Run, finish, quoted};
use crate::support::postgres::{bin_dir, unique};
use crate::support::processes::until;
use crate::support::sets::{complete, result};

/// No distribution that the tests run on has programs of this one.
const MAJOR: u32 = 17;

/// The password of every container of these tests.
const PASSWORD: &str = "secret";

/// Rows that a backup takes a while with.
const MANY: &str =
    "CREATE TABLE many AS SELECT i AS id, repeat(md5(i::text), 9) AS text FROM generate_series(1, 200000) i";

/// Programs in a container, but for those that are PostgreSQL's own.
fn strangers(engine: &Engine, container: &str) -> Vec<String> {
    let listed = engine.docker(&["top", container, "-o", "pid,args"]);
    let others = listed.lines().skip(1).filter(|line| !line.contains(" postgres"));
    others.map(str::to_owned).collect()
}

/// Nothing of opsd's is left in a container, and its server never lost a session to it: the postmaster, which is the
/// first process there, takes an orphan that ends by a signal for one of its own.
fn left_alone(engine: &Engine, container: &str) {
    until("nothing is left in the container", || strangers(engine, container).is_empty());
    let log = engine.try_docker(&["logs", container]).stderr;
    assert!(!log.contains("terminated by signal") && !log.contains("reinitializing"), "{log}");
}

fn psql(engine: &Engine, container: &str, database: &str, sql: &str) -> String {
    engine.docker(&[
        "exec",
        container,
        "psql",
        "-X",
        "-A",
        "-t",
        "-h",
        "127.0.0.1",
        "-U",
        "site",
        "-c",
        sql,
        database,
    ])
}

/// A container of PostgreSQL that is up.
fn started(engine: &Engine, name: &str, options: &[&str]) {
    let image = engine.postgres_image(MAJOR);
    let environment = ["-e", "POSTGRES_USER=site", "-e", &format!("POSTGRES_PASSWORD={PASSWORD}")];
    engine.docker(&[&["run", "-d", "--name", name], options, &environment, &[image.as_str()]].concat());
    is_up(engine, name);
}

fn is_up(engine: &Engine, name: &str) {
    let asks = ["exec", name, "psql", "-h", "127.0.0.1", "-U", "site", "-c", "SELECT 1", "site"];
    until("the server answers", || engine.try_docker(&asks).code == Some(0));
}

/// A site whose server is in a container, on a host without programs of PostgreSQL.
fn site(engine: &Engine, key: &str, toml: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.postgres.set("url", quoted("postgres://site@/site")).set(key, toml);
    opsd.job.set("source", "{ postgres = \"main\" }");
    opsd.env("DOCKER_HOST", engine.host()).env("PGPASSWORD", PASSWORD);
    // The distribution's server is on PATH on machines that have it.
    opsd.env("PATH", only(&opsd, &["docker"]));
    opsd
}

/// A directory with these programs and no others.
fn only(opsd: &Opsd, programs: &[&str]) -> String {
    let directory = opsd.path("programs");
    std::fs::create_dir_all(&directory).unwrap();
    for program in programs {
        let place =
            ["/usr/local/bin", "/usr/bin"].iter().map(|d| Path::new(d).join(program)).find(|p| p.exists());
        std::os::unix::fs::symlink(place.unwrap(), directory.join(program)).unwrap();
    }
    directory.display().to_string()
}

/// Runs opsd where the Engine's networks are.
fn beside(engine: &Engine, opsd: &Opsd, args: &[&str]) -> Run {
    finish(by_path(engine.inside(&opsd.command(args)))).expect_code(0)
}

/// A wrapper is looked for on the PATH of what it wraps.
fn by_path(command: Command) -> Command {
    let mut found = Command::new(Path::new("/usr/bin").join(command.get_program()));
    found.args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            found.env(name, value);
        }
    }
    if let Some(directory) = command.get_current_dir() {
        found.current_dir(directory);
    }
    found.stdin(std::process::Stdio::null());
    found.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    found
}

fn way(run: &Run) -> String {
    run.json()["plans"][0]["way"].as_str().unwrap().to_owned()
}

#[test]
fn a_service_of_compose_is_found_again_at_another_address() {
    for compose in Compose::BOTH {
        is_found_again(compose);
    }
}

fn is_found_again(version: Compose) {
    let engine = engine();
    let project = unique("servers").replace('_', "-");
    let opsd = site(engine, "compose", &format!("{{ project = {}, service = \"db\" }}", quoted(&project)));
    let image = engine.postgres_image(MAJOR);
    let file = format!(
        "version: '2.4'\nservices:\n  first:\n    image: {image}\n    environment: {{ POSTGRES_HOST_AUTH_METHOD: trust }}\n    \
         networks: [back]\n  db:\n    image: {image}\n    environment: {{ POSTGRES_USER: site, POSTGRES_PASSWORD: {PASSWORD} }}\n    \
         networks: [back]\n    volumes: ['data:/var/lib/postgresql/data']\nvolumes: {{ data: {{}} }}\n\
         networks: {{ back: {{ internal: true }} }}\n"
    );
    let directory = opsd.path("compose");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("docker-compose.yml"), file).unwrap();
    let compose = |args: &[&str]| engine.compose(version, &directory, &[&["-p", &project], args].concat());
    let container = version.container(&project, "db");
    let address = || engine.inspect(&container, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");

    compose(&["up", "-d", "db"]);
    is_up(engine, &container);
    psql(engine, &container, "site", "CREATE TABLE accounts AS SELECT generate_series(1, 99) AS id");
    let before = address();
    let run = beside(engine, &opsd, &["backup", "--dry-run", "--json"]);
    assert_eq!(way(&run), format!("container {container}, at {before}:5432 (network {project}_back)"));
    assert!(run.json()["plans"][0]["pg_dump"].as_str().unwrap().ends_with(" of the container"), "{run}");
    // A command that was started in a container of the service's kind is not the service.
    compose(&["run", "-d", "--no-deps", "db", "sleep", "600"]);
    beside(engine, &opsd, &["backup"]);

    compose(&["down", "--remove-orphans"]);
    // What comes first has the address from now on.
    compose(&["up", "-d", "first"]);
    compose(&["up", "-d", "db"]);
    is_up(engine, &container);
    assert_ne!(address(), before);
    let run = beside(engine, &opsd, &["backup", "--dry-run", "--json"]);
    assert!(way(&run).contains(&format!("at {}:5432", address())), "{run}");
    beside(engine, &opsd, &["backup"]);
    assert_eq!(complete(&opsd).len(), 2);
    beside(engine, &opsd, &["restore", "db", "--to", "main", "--as", "rescue"]);
    assert_eq!(psql(engine, &container, "rescue", "SELECT count(*) FROM accounts"), "99");

    // Programs of this host are taken where they fit; `--replace` goes the same way.
    let mut opsd = opsd;
    let both = format!("{}:{}", opsd.path("programs").display(), bin_dir(MAJOR).display());
    opsd.env("PATH", both);
    let run = beside(engine, &opsd, &["backup", "--dry-run", "--json"]);
    assert!(!run.json()["plans"][0]["pg_dump"].as_str().unwrap().contains("container"), "{run}");
    beside(engine, &opsd, &["backup"]);
    beside(engine, &opsd, &["restore", "db", "--to", "main", "--replace", "--yes"]);
    left_alone(engine, &container);

    // A rehearsal needs the image of the service, and not its server.
    compose(&["stop", "db"]);
    opsd.env("PATH", opsd.path("programs").display().to_string());
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    let found = result(&run);
    assert_eq!((&found["verdict"], &found["contained"]), (&"proven".into(), &"full".into()), "{run}");
    compose(&["down", "-v"]);
}

#[test]
fn a_server_that_no_network_leads_to_is_reached_through_its_container() {
    let engine = engine();
    let name = unique("servers");
    started(engine, &name, &["--network", "none"]);
    psql(engine, &name, "site", MANY);
    let opsd = site(engine, "container", &quoted(&name));

    let run = opsd.ok(&["backup", "--dry-run", "--json"]);
    assert_eq!(way(&run), format!("container {name}, through docker exec"));
    opsd.ok(&["backup"]);
    opsd.ok(&["restore", "db", "--to", "main", "--as", "rescue"]);
    let sum = "SELECT count(*), sum(id), md5(string_agg(text, '' ORDER BY id)) FROM many";
    assert_eq!(psql(engine, &name, "rescue", sum), psql(engine, &name, "site", sum));
    left_alone(engine, &name);

    // A run that is killed leaves nobody behind, neither a relay nor a pg_dump. An image without bash has nc.
    for relay in ["dd ", "nc 127.0.0.1"] {
        let mut child = opsd.command(&["backup"]).spawn().unwrap();
        until("a pg_dump runs", || strangers(engine, &name).iter().any(|line| line.contains("pg_dump")));
        assert!(strangers(engine, &name).iter().any(|line| line.contains(relay)));
        child.kill().unwrap();
        child.wait().unwrap();
        left_alone(engine, &name);
        engine.docker(&["exec", "-u", "0", &name, "rm", "-f", "/usr/bin/bash"]);
    }
    let before = complete(&opsd).len();
    opsd.ok(&["backup"]);
    assert_eq!(complete(&opsd).len(), before + 1);
    left_alone(engine, &name);
    engine.docker(&["rm", "-f", "-v", &name]);
}

/// Where opsd is on the Engine's host, and not on the container's network: a route of the host's own leads there.
#[test]
fn a_published_port_is_taken_where_no_address_of_the_containers_own_is() {
    let engine = engine();
    let name = unique("servers");
    started(engine, &name, &["-p", "127.0.0.1:5440:5432"]);
    let opsd = site(engine, "container", &quoted(&name));
    let address = engine.inspect(&name, "{{.NetworkSettings.IPAddress}}");
    let ip = |words: &str| {
        let mut ip = Command::new("busybox");
        ip.arg("ip").args(words.split(' '));
        finish(engine.inside(&ip)).expect_code(0);
    };
    let plan = || way(&beside(engine, &opsd, &["backup", "--dry-run", "--json"]));
    assert!(plan().contains(&format!("at {address}:5432 (network ")), "{}", plan());
    ip("addr add 198.51.100.7/32 dev lo");
    ip(&format!("route add {address}/32 dev docker0 src 198.51.100.7"));
    assert_eq!(plan(), format!("container {name}, at 127.0.0.1:5440 (its published port)"));
    beside(engine, &opsd, &["backup"]);
    assert_eq!(complete(&opsd).len(), 1);
    engine.docker(&["rm", "-f", "-v", &name]);
    ip(&format!("route del {address}/32"));
}

#[test]
fn an_exporter_finds_a_container_that_was_made_anew() {
    let engine = engine();
    let name = unique("servers");
    let options = ["--network", "none"];
    started(engine, &name, &options);
    let mut opsd = site(engine, "container", &quoted(&name));
    opsd.more = "\n[monitor.main]\npostgres = \"main\"\ninterval = \"5s\"\ntimeout = \"5s\"\n".to_owned();
    let exporter = Exporter::start(&mut opsd, "");
    exporter.scrape_until("the server is up", |scrape| scrape.up("main") == Some(1.0));
    engine.docker(&["rm", "-f", "-v", &name]);
    exporter.scrape_until("the server is down", |scrape| scrape.up("main") == Some(0.0));
    started(engine, &name, &options);
    exporter.scrape_until("the server is up again", |scrape| scrape.up("main") == Some(1.0));
    exporter.stop();
    left_alone(engine, &name);
    engine.docker(&["rm", "-f", "-v", &name]);
}

/// Whoever restores has often just started the server: an image makes its cluster first, with nobody on the network.
#[test]
fn a_restore_waits_for_a_container_that_makes_its_cluster() {
    let engine = engine();
    let name = unique("servers");
    started(engine, &name, &[]);
    psql(engine, &name, "site", "CREATE TABLE accounts AS SELECT generate_series(1, 99) AS id");
    let opsd = site(engine, "container", &quoted(&name));
    beside(engine, &opsd, &["backup"]);
    for is_beside in [true, false] {
        engine.docker(&["rm", "-f", "-v", &name]);
        let image = engine.postgres_image(MAJOR);
        let password = format!("POSTGRES_PASSWORD={PASSWORD}");
        engine.docker(&["run", "-d", "--name", &name, "-e", "POSTGRES_USER=site", "-e", &password, &image]);
        let restore = ["restore", "db", "--to", "main", "--as", "site"];
        match is_beside {
            true => beside(engine, &opsd, &restore),
            false => opsd.ok(&restore),
        };
        assert_eq!(psql(engine, &name, "site", "SELECT count(*) FROM accounts"), "99");
    }
    left_alone(engine, &name);
    engine.docker(&["rm", "-f", "-v", &name]);
}
