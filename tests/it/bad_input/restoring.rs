//! Restores into a server that is there: what is refused, what is swapped, and that whatever fails
//! leaves everything as it was.

use super::{site, site_on};
use crate::support::compare::{assert_same, assert_same_content, assert_same_settings, db};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, Server, default_major, default_server, identifier, unique};
use crate::support::processes::until;
use crate::support::sets::{self, back_up, contents, directory, forge};

/// A database of the target with something in it that must not be lost, owned by somebody.
fn precious(server: &Server) -> String {
    let name = server.fresh_database("precious");
    server.psql(&name, "CREATE TABLE precious (id integer); INSERT INTO precious VALUES (1), (2), (3)");
    name
}

fn is_untouched(server: &Server, name: &str) {
    assert_eq!(server.psql(name, "SELECT count(*), sum(id) FROM precious"), "3|6");
    let others = server.databases().into_iter().filter(|d| d != name && d.contains(name));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<String>::new(), "a stray database was left");
    assert_eq!(
        server.psql(name, "SELECT datallowconn FROM pg_database WHERE datname = current_database()"),
        "t"
    );
}

#[test]
fn a_database_that_is_not_empty_is_refused_and_untouched() {
    let (server, opsd, _) = site();
    back_up(&opsd);
    let target = precious(server);
    let to = server.socket_url("postgres", &target);
    for more in [&[][..], &["--create"], &["--globals"]] {
        let args = [&["restore", "db", "--to", to.as_str()], more].concat();
        opsd.run(&args)
            .expect_failure(1, &[&target, "is not empty", "holds 1 tables", "--replace", "--create"]);
        is_untouched(server, &target);
    }
    // A lone view, sequence or large object is content too.
    for content in ["CREATE VIEW v AS SELECT 1", "CREATE SEQUENCE s", "SELECT lo_from_bytea(0, 'x')"] {
        let name = server.fresh_database("alone");
        server.psql(&name, content);
        let to = server.socket_url("postgres", &name);
        opsd.run(&["restore", "db", "--to", &to]).expect_failure(1, &["is not empty"]);
    }
}

#[test]
fn a_target_that_is_missing_or_unknown_is_told() {
    let (server, opsd, source) = site();
    back_up(&opsd);
    let target = unique("absent");
    let to = server.socket_url("postgres", &target);
    opsd.run(&["restore", "db", "--to", &to]).expect_failure(1, &[&target, "does not exist", "--create"]);
    assert!(!server.databases().contains(&target));
    opsd.run(&["restore", "db", "--to", "nosuch"]).expect_failure(
        2,
        &["\"nosuch\" is neither a postgres:// URL nor a [postgres.NAME]", "servers in ", "main"],
    );
    opsd.run(&["restore", "db"]).expect_code(2);
    let port = crate::support::postgres::free_port();
    // A server that starts is waited for, six times as long as for a connection.
    let unreachable = format!("postgres://postgres@127.0.0.1:{port}/x?connect_timeout=1");
    opsd.run(&["restore", "db", "--to", &unreachable]).expect_failure(1, &["cannot connect to"]);
    // With --create it is made, and equals the source.
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert_eq!(run.json()["restored_as"], target.as_str(), "{run}");
    assert_same(db(server, &source), db(server, &target));
    assert_same_settings(db(server, &source), db(server, &target));
    server.drop_database(&target);
}

#[test]
fn a_url_with_a_password_is_refused_with_a_hint() {
    let (server, opsd, database) = site();
    back_up(&opsd);
    let port = server.port;
    for to in [
        format!("postgres://postgres:c4nary@127.0.0.1:{port}/{database}"),
        format!("postgres://postgres@127.0.0.1:{port}/{database}?password=c4nary"),
        format!("host=127.0.0.1 port={port} user=postgres password=c4nary dbname={database}"),
    ] {
        let run = opsd
            .run(&["restore", "db", "--to", &to, "--replace", "--yes"])
            .expect_failure(2, &["password", "hint: "]);
        assert!(!run.stderr.contains("c4nary"), "{run}");
    }
}

/// What is restored takes the place of what was there; what was there is kept, and told of. Owner,
/// privileges and settings are those of the place, not of the set.
#[test]
fn replace_swaps_and_carries_over_what_belongs_to_the_place() {
    let (server, opsd, source) = site();
    back_up(&opsd);
    let target = precious(server);
    let (owner, guest) = (unique("owner"), unique("guest"));
    let quoted_target = identifier(&target);
    server.psql(
        "postgres",
        &format!(
            "CREATE ROLE {owner}; CREATE ROLE {guest};
             ALTER DATABASE {quoted_target} OWNER TO {owner};
             REVOKE ALL ON DATABASE {quoted_target} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {quoted_target} TO {guest} WITH GRANT OPTION;
             ALTER DATABASE {quoted_target} SET work_mem = '7MB';
             ALTER DATABASE {quoted_target} SET search_path = public, \"odd, one\";
             ALTER ROLE {guest} IN DATABASE {quoted_target} SET statement_timeout = '9s';
             ALTER DATABASE {quoted_target} CONNECTION LIMIT 17;
             COMMENT ON DATABASE {quoted_target} IS 'it''s the place'"
        ),
    );
    // A database of the same settings, to compare with afterwards.
    let twin = unique("twin");
    let twin_quoted = identifier(&twin);
    server.psql(
        "postgres",
        &format!(
            "CREATE DATABASE {twin_quoted} TEMPLATE template0 OWNER {owner};
             REVOKE ALL ON DATABASE {twin_quoted} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {twin_quoted} TO {guest} WITH GRANT OPTION;
             ALTER DATABASE {twin_quoted} SET work_mem = '7MB';
             ALTER DATABASE {twin_quoted} SET search_path = public, \"odd, one\";
             ALTER ROLE {guest} IN DATABASE {twin_quoted} SET statement_timeout = '9s';
             ALTER DATABASE {twin_quoted} CONNECTION LIMIT 17;
             COMMENT ON DATABASE {twin_quoted} IS 'it''s the place'"
        ),
    );
    // Somebody is connected, and idle in a transaction at that.
    let mut session = server.client("psql");
    session.env("PGDATABASE", &target).stdin(std::process::Stdio::piped());
    session.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut session = session.args(["-X", "-A", "-t"]).spawn().unwrap();
    let mut input = session.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"BEGIN; SELECT * FROM precious;\n").unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(session.stdout.as_mut().unwrap(), &mut first).unwrap();

    let to = server.socket_url("postgres", &target);
    let run = opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes", "--json"]);
    drop(input);
    session.wait().unwrap();
    let document = run.json();
    assert_eq!(document["restored_as"], target.as_str(), "{run}");
    assert_eq!(document["warnings"], serde_json::json!([]), "{run}");
    let old = document["old_database"].as_str().expect("what became of the old one").to_owned();
    assert_ne!(old, target);
    assert_same(db(server, &source), db(server, &target));
    assert_same_settings(db(server, &twin), db(server, &target));
    is_kept(server, &old);
    // Nothing else is left, and nobody is locked out.
    let left: Vec<_> = server.databases().into_iter().filter(|d| d.contains(&target)).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // Without --json the operator is told all the same, whether or not there is a terminal.
    let run = opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes"]);
    assert!(format!("{}{}", run.stdout, run.stderr).contains("is kept as"), "{run}");
    for name in server.databases().into_iter().filter(|d| d.contains(&target) || *d == twin) {
        server.drop_database(&name);
    }
}

fn is_kept(server: &Server, old: &str) {
    assert_eq!(server.psql(old, "SELECT count(*), sum(id) FROM precious"), "3|6");
}

#[test]
fn a_replace_of_a_damaged_set_leaves_the_old_database() {
    let (server, opsd, database) = site();
    let id = back_up(&opsd);
    let target = precious(server);
    let to = server.socket_url("postgres", &target);
    let folder = directory(&opsd, &id).join(&database);
    for name in ["schema", "data-rest", "data-1"] {
        let file = folder.join(format!("{name}.pgdump.zst.age"));
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        std::fs::write(&file, bad).unwrap();
        opsd.run(&["restore", "db", "--to", &to, "--replace", "--yes"])
            .expect_failure(3, &[&format!("database {target:?} is as it was"), name]);
        is_untouched(server, &target);
        std::fs::write(&file, good).unwrap();
    }
    // A new database is not left half full either, nor an empty one that was there.
    let file = folder.join("data-1.pgdump.zst.age");
    let mut bad = std::fs::read(&file).unwrap();
    bad[0] ^= 1;
    std::fs::write(&file, bad).unwrap();
    let absent = unique("absent");
    let to = server.socket_url("postgres", &absent);
    opsd.run(&["restore", "db", "--to", &to, "--create"]).expect_code(3);
    assert!(!server.databases().contains(&absent));
    let empty = server.fresh_database("empty");
    let to = server.socket_url("postgres", &empty);
    opsd.run(&["restore", "db", "--to", &to]).expect_failure(3, &["data-1", &empty, "part of the set"]);
}

#[test]
fn a_replace_that_lacks_an_extension_or_a_role_leaves_the_old_database() {
    let server = &Server::start(default_major(), &Options::default());
    let (opsd, database) = site_on(server);
    let role = unique("gone");
    server.psql(&database, &format!("CREATE ROLE {role}; ALTER TABLE notes OWNER TO {role}"));
    let id = back_up(&opsd);
    server.psql(&database, &format!("DROP TABLE notes; DROP ROLE {role}"));
    let target = precious(server);
    let to = server.socket_url("postgres", &target);
    let replace = ["restore", "db", "--to", &to, "--replace", "--yes"];
    opsd.run(&replace).expect_failure(1, &["the server lacks roles of the set: ", &role, "--globals"]);
    is_untouched(server, &target);
    let mut good = serde_json::Value::Null;
    forge(&opsd, &id, |m| {
        good = m.clone();
        let extension = serde_json::json!({"name": "no_such_extension", "version": "1.0"});
        m["databases"][0]["extensions"].as_array_mut().unwrap().push(extension);
    });
    opsd.run(&replace).expect_failure(1, &["extension no_such_extension is not available", "hint: "]);
    is_untouched(server, &target);
    // A rehearsal cannot run then, which says nothing against the set.
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &["no_such_extension"]);
    assert_eq!(sets::result(&run)["verdict"], "failed");
    // With the role made from the set, it goes through.
    forge(&opsd, &id, |m| *m = good.clone());
    let run = opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes", "--globals", "--json"]);
    assert!(run.json()["roles_created"].as_array().unwrap().contains(&role.as_str().into()), "{run}");
    let owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'notes'";
    assert_eq!(server.psql(&target, owner), role);
}

/// An operator who loses patience, or a service manager.
#[test]
fn a_replace_that_is_interrupted_leaves_the_old_database() {
    let (server, opsd, database) = site();
    // Restoring waits in this function until the file `go` is there.
    let hold = server.subdirectory(&unique("hold"));
    let here = hold.display();
    server.psql(
        &database,
        &format!(
            "CREATE FUNCTION hold(integer) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               IF current_database() <> '{database}' THEN
                 EXECUTE 'COPY (SELECT 1) TO ''{here}/reached''';
                 WHILE (pg_stat_file('{here}/go', true)).size IS NULL LOOP PERFORM pg_sleep(0.02); END LOOP;
               END IF;
               RETURN true; END $$;
             CREATE TABLE held (id integer CHECK (hold(id))); INSERT INTO held VALUES (1)"
        ),
    );
    back_up(&opsd);
    let target = precious(server);
    let to = server.socket_url("postgres", &target);
    for (signal, code) in [(rustix::process::Signal::TERM, 143), (rustix::process::Signal::INT, 130)] {
        let _ = std::fs::remove_file(hold.join("reached"));
        let child = opsd.command(&["restore", "db", "--to", &to, "--replace", "--yes"]).spawn().unwrap();
        until("restoring has begun", || hold.join("reached").exists());
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        crate::support::opsd::finish_child(child, "restore --replace".into()).expect_code(code);
        is_untouched(server, &target);
    }
    std::fs::write(hold.join("go"), "").unwrap();
    opsd.ok(&["restore", "db", "--to", &to, "--replace", "--yes"]);
    assert_same_content(db(server, &database), db(server, &target));
}

#[test]
fn a_database_of_several_is_chosen_by_name() {
    let server = &Server::start(default_major(), &Options::default());
    let names = [unique("one"), fixtures::ODD_DATABASE.to_owned()];
    for name in &names {
        server.create_database(name);
        fixtures::rows(server, name, "t", 20);
    }
    server.psql(&names[1], "CREATE TABLE only_here (i integer)");
    let opsd = Opsd::new(server, &names);
    back_up(&opsd);
    let target = unique("chosen");
    let to = server.socket_url("postgres", &target);
    let restore = ["restore", "db", "--to", to.as_str(), "--create"];
    opsd.run(&restore).expect_failure(2, &["several databases", &names[0], "--database"]);
    let other = [&restore[..], &["--database", "nosuch"]].concat();
    opsd.run(&other).expect_failure(2, &["the set holds no database \"nosuch\"", "it holds "]);
    assert!(!server.databases().contains(&target));
    let odd = [&restore[..], &["--database", &names[1]]].concat();
    opsd.ok(&odd);
    assert_same(db(server, &names[1]), db(server, &target));
}

#[test]
fn at_selects_the_set_by_the_time_of_its_data() {
    let (server, opsd, database) = site();
    let mut times = Vec::new();
    for value in ["first", "second"] {
        server.psql(&database, &format!("UPDATE notes SET note = '{value}'"));
        let id = back_up(&opsd);
        let time = sets::manifest(&opsd, &id)["databases"][0]["snapshot_time"].as_str().unwrap().to_owned();
        times.push((time, id));
    }
    let before = contents(&opsd);
    for ((time, id), value) in times.iter().zip(["first", "second"]) {
        let target = unique("at");
        let to = server.socket_url("postgres", &target);
        let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--at", time, "--json"]);
        assert_eq!(run.json()["id"], id.as_str(), "{run}");
        assert_eq!(server.psql(&target, "SELECT note FROM notes"), value);
        server.drop_database(&target);
    }
    let to = server.socket_url("postgres", &unique("at"));
    opsd.run(&["restore", "db", "--to", &to, "--create", "--at", "2001-01-01T00:00:00Z"])
        .expect_failure(1, &["no complete set from 2001-01-01"]);
    opsd.run(&["restore", "db", "--to", &to, "--at", "yesterday"])
        .expect_failure(2, &["\"yesterday\" is no point in time"]);
    opsd.run(&["restore", "db", "--to", &to, "--at", "2001-01-01", "--backup", "latest"]).expect_code(2);
    assert!(contents(&opsd) == before, "restoring writes nothing to the repository");
    // No set at all.
    let mut empty = Opsd::new(server, &[&database]);
    std::fs::create_dir(empty.path("other")).unwrap();
    empty.repository.set("url", quoted(&format!("file://{}", empty.path("other").display())));
    empty.run(&["restore", "--verify"]).expect_failure(1, &["no set of job \"db\"", "hint: "]);
}

/// A foreign server that cannot be reached ends an ANALYZE of everything, and must not end a restore.
#[test]
fn a_foreign_table_that_cannot_be_read_does_not_fail_a_restore() {
    let server = default_server();
    let database = fixtures::database_with(server, "far", &[fixtures::ROLES, fixtures::FOREIGN]);
    fixtures::rows(server, &database, "near", 100);
    let opsd = Opsd::new(server, &[&database]);
    back_up(&opsd);
    let target = unique("far_copy");
    let to = server.socket_url("postgres", &target);
    let run = opsd.ok(&["restore", "db", "--to", &to, "--create", "--json"]);
    assert!(run.json()["warnings"].to_string().contains("was not analyzed"), "{run}");
    assert_same_content(db(server, &database), db(server, &target));
    let analyzed = "SELECT reltuples FROM pg_class WHERE oid = 'near'::regclass";
    assert_eq!(server.psql(&target, analyzed), "100", "what can be analyzed is");
    server.drop_database(&target);
}
