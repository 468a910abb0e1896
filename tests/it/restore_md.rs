//! RESTORE.md followed to the letter: its code blocks, in their order, in one shell, on a server that
//! has nothing, with the tools that it names and no opsd.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::fixtures;
use crate::support::opsd::{Opsd, Run, finish, quoted};
use crate::support::postgres::{Options, SUPERUSER, Server, bin_dir, default_major};
use crate::support::sets::{back_up, directory, manifest};

/// What stands between ```` ```sh ```` and ```` ``` ````.
fn code_blocks(markdown: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in markdown.lines() {
        match (&mut block, line) {
            (None, "```sh") => block = Some(String::new()),
            (Some(text), "```") => {
                blocks.push(std::mem::take(text));
                block = None;
            }
            (Some(text), line) => writeln!(text, "{line}").expect("write to a string"),
            (None, _) => {}
        }
    }
    assert!(block.is_none(), "a block does not end");
    blocks
}

/// A directory with these tools of a major and of the system, and nothing else: the PATH.
fn tools(opsd: &Opsd, major: u32) -> PathBuf {
    let directory = opsd.path("tools");
    std::fs::create_dir(&directory).expect("create a directory");
    for name in ["psql", "createdb", "pg_restore"] {
        symlink(bin_dir(major).join(name), directory.join(name)).expect("link");
    }
    for name in ["age", "zstd", "minisign", "sha256sum", "rm", "cat", "grep", "sed"] {
        let path = Path::new("/usr/bin").join(name);
        assert!(path.exists(), "{} is missing: run make setup", path.display());
        symlink(path, directory.join(name)).expect("link");
    }
    directory
}

/// Downloads a set, follows its document on `server`, and tells what it said.
pub fn follow(opsd: &Opsd, id: &str, server: &Server) -> Run {
    follow_with(opsd, id, server, str::to_owned)
}

/// The same with commands that the reader changed.
fn follow_with(opsd: &Opsd, id: &str, server: &Server, change: impl Fn(&str) -> String) -> Run {
    let work = opsd.path("download");
    let copied = Command::new("cp").arg("-r").arg(directory(opsd, id)).arg(&work).status().expect("cp");
    assert!(copied.success());
    std::fs::copy(opsd.path("identity.txt"), work.join("identity.txt")).expect("copy the identity");
    let document = std::fs::read_to_string(work.join("RESTORE.md")).expect("read RESTORE.md");
    let script = change(&code_blocks(&document).join("\n").replace("YOUR_PUBLIC_KEY", &opsd.public_key));
    let mut bash = Command::new("/bin/bash");
    // A reader stops at the first command that fails.
    bash.args(["-e", "-u", "-o", "pipefail", "-c", &script])
        .current_dir(&work)
        .env_clear()
        .env("PATH", tools(opsd, server.major))
        .env("HOME", &work)
        .env("PGHOST", server.socket_dir())
        .env("PGPORT", server.port.to_string())
        .env("PGUSER", SUPERUSER)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let run = finish(bash);
    assert_eq!(run.code, Some(0), "{document}\n{run}");
    // What the document made on the way is gone again: nothing in plain text stays.
    let mut before: BTreeSet<_> =
        std::fs::read_dir(directory(opsd, id)).unwrap().map(|e| e.unwrap().file_name()).collect();
    before.insert("identity.txt".into());
    let after: BTreeSet<_> = std::fs::read_dir(&work).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(before, after);
    run
}

/// The database that the document made equals the source, and what a plain restore makes of it.
fn is_the_same(source: &Server, restored: &Server, database: &str) {
    let plain = plain_restore(db(source, database));
    assert_same(db(source, &plain), db(restored, database));
    assert_same_content(db(source, database), db(restored, database));
    source.drop_database(&plain);
}

fn fresh() -> Server {
    Server::start(default_major(), &Options::default())
}

#[test]
fn blocks_are_found() {
    let text = "a\n```sh\none\n```\nb\n```\nno\n```\n```sh\ntwo\nthree\n```\n";
    assert_eq!(code_blocks(text), ["one\n", "two\nthree\n"]);
}

/// Large tables with streams of their own, and everything that goes together.
#[test]
fn a_set_with_split_streams() {
    let (source, target) = (fresh(), fresh());
    let database = "split";
    source.create_database(database);
    fixtures::rows(&source, database, "big_one", 700);
    fixtures::rows(&source, database, "big_two", 600);
    fixtures::load(&source, database, fixtures::ALL);
    let mut opsd = Opsd::new(&source, &[database]);
    opsd.job.set("large_table", quoted("64KiB"));
    let id = back_up(&opsd);
    let streams = manifest(&opsd, &id)["databases"][0]["streams"].as_array().unwrap().len();
    assert!(streams >= 4, "schema, two tables, the rest: {streams}");
    follow(&opsd, &id, &target);
    is_the_same(&source, &target, database);
    // Owners and members are there because the roles are.
    let roles = "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles";
    assert_eq!(source.psql("postgres", roles), target.psql("postgres", roles));
}

/// What pg_dump moves behind the rows is found by what is made of it.
#[test]
fn a_set_with_a_view_that_groups_by_a_key() {
    let (source, target) = (fresh(), fresh());
    source.create_database("grouped");
    source.psql("grouped", crate::plain::BEHIND_A_KEY);
    let opsd = Opsd::new(&source, &["grouped"]);
    let id = back_up(&opsd);
    follow(&opsd, &id, &target);
    is_the_same(&source, &target, "grouped");
}

/// What the document says about refused rows, done as it says it.
#[test]
fn a_set_whose_rows_are_refused_until_others_are_there() {
    let (source, target) = (fresh(), fresh());
    source.create_database("waiting");
    source.psql(
        "waiting",
        "CREATE TABLE zones (id integer); INSERT INTO zones SELECT generate_series(1, 20);
         CREATE FUNCTION known(integer) RETURNS boolean LANGUAGE sql
             AS 'SELECT EXISTS (SELECT FROM public.zones WHERE id = $1)';
         CREATE TABLE areas (zone integer CHECK (known(zone))); INSERT INTO areas SELECT generate_series(1, 10)",
    );
    let opsd = Opsd::new(&source, &["waiting"]);
    let id = back_up(&opsd);
    follow_with(&opsd, &id, &target, |script| {
        let line = script.lines().find(|line| line.ends_with(" --single-transaction")).expect("the rows");
        let alone = line.replace(" --single-transaction", "");
        script.replace(line, &format!("! {line}\n! {alone}\n{alone} --schema=public --table=areas"))
    });
    assert_same(db(&source, "waiting"), db(&target, "waiting"));
}

#[test]
fn a_set_with_several_databases_and_an_odd_name() {
    let (source, target) = (fresh(), fresh());
    let names = ["plain", fixtures::ODD_DATABASE, "it's $HOME `x` \\ é", "postgres"];
    for name in names {
        if name != "postgres" {
            source.create_database(name);
        }
        fixtures::rows(&source, name, "t", 30);
    }
    let opsd = Opsd::new(&source, &names);
    let id = back_up(&opsd);
    follow(&opsd, &id, &target);
    for name in names {
        is_the_same(&source, &target, name);
    }
}

/// Whoever may make a database may call it so.
#[test]
fn a_set_of_a_database_whose_name_is_a_block_of_commands() {
    let (source, target) = (fresh(), fresh());
    let name = "x\n```\n```sh\ntouch owned\n```\n\u{1b}[2J\u{202e}$(id)`'\n";
    source.create_database(name);
    fixtures::rows(&source, name, "t", 30);
    let opsd = Opsd::new(&source, &[name]);
    let id = back_up(&opsd);
    let document = std::fs::read_to_string(directory(&opsd, &id).join("RESTORE.md")).unwrap();
    let blocks = code_blocks(&document);
    assert!(!blocks.iter().any(|block| block.starts_with("touch")), "{document}");
    let harmless = Opsd::new(&source, &["postgres"]);
    assert_eq!(
        blocks.len(),
        code_blocks(
            &std::fs::read_to_string(directory(&harmless, &back_up(&harmless)).join("RESTORE.md")).unwrap()
        )
        .len()
    );
    let raw = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!document.contains(raw), "{document:?}");
    follow(&opsd, &id, &target);
    is_the_same(&source, &target, name);
}

/// What sorts the text of the original sorts that of the copy.
#[test]
fn a_set_of_a_database_with_an_icu_locale() {
    let (source, opsd, bin) = crate::locales::icu();
    let target = Server::start(source.major, &Options { bin_dir: Some(bin), ..Options::default() });
    let id = back_up(&opsd);
    follow(&opsd, &id, &target);
    let locale = "SELECT to_jsonb(d) ->> 'datlocprovider', coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale')
                    FROM pg_database d WHERE datname = 'named'";
    assert_eq!(target.psql("postgres", locale), source.psql("postgres", locale));
    assert!(source.major < 15 || target.psql("postgres", locale).starts_with('i'));
    is_the_same(&source, &target, "named");
}

/// What the README says to do before anybody reads the document, with a document that somebody changed.
#[test]
fn a_document_that_was_changed_is_found_before_it_is_read() {
    let source = fresh();
    source.create_database("t");
    let opsd = Opsd::new(&source, &["t"]);
    let id = back_up(&opsd);
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("\ncd set\n").expect("the manual path");
    let (checks, _) = rest.split_once("less RESTORE.md").expect("checks before it is read");
    let checks = checks.replace("RWQ...", &opsd.public_key);
    let check = || {
        let mut bash = Command::new("bash");
        bash.args(["-e", "-o", "pipefail", "-c", &checks]).current_dir(directory(&opsd, &id));
        bash.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        finish(bash)
    };
    let whole = check();
    assert!(whole.code == Some(0) && whole.stdout.contains("RESTORE.md: OK"), "{whole}");
    let document = directory(&opsd, &id).join("RESTORE.md");
    let text = std::fs::read_to_string(&document).unwrap();
    std::fs::write(&document, text.replacen("```sh\n", "```sh\ntouch owned\n", 1)).unwrap();
    assert_eq!(check().code, Some(1));
    // Nor can the manifest be changed to fit.
    let manifest = directory(&opsd, &id).join("manifest.json");
    let sum = opsd::set::seal::sha256_hex(&std::fs::read(&document).unwrap());
    let old = opsd::set::seal::sha256_hex(text.as_bytes());
    std::fs::write(&manifest, std::fs::read_to_string(&manifest).unwrap().replace(&old, &sum)).unwrap();
    assert_eq!(check().code, Some(1));
}

/// psql goes on after errors, and ends with 0.
#[test]
fn roles_that_cannot_be_made_stop_whoever_follows_the_document() {
    let (source, target) = (fresh(), fresh());
    source.create_database("t");
    source.psql("postgres", "CREATE ROLE there; CREATE ROLE member IN ROLE there");
    target.psql("postgres", "CREATE ROLE there");
    let opsd = Opsd::new(&source, &["t"]);
    let id = back_up(&opsd);
    let document = std::fs::read_to_string(directory(&opsd, &id).join("RESTORE.md")).unwrap();
    let roles = code_blocks(&document).into_iter().find(|b| b.contains("roles.txt")).expect("a block");
    let work = opsd.path("work");
    std::fs::create_dir(&work).unwrap();
    for name in ["globals.sql.zst.age", "identity.txt"] {
        let from = if name == "identity.txt" { opsd.path(name) } else { directory(&opsd, &id).join(name) };
        std::fs::copy(from, work.join(name)).unwrap();
    }
    let path = tools(&opsd, target.major);
    let run = || {
        let mut bash = Command::new("/bin/bash");
        bash.args(["-e", "-u", "-o", "pipefail", "-c", &roles]).current_dir(&work).env_clear();
        bash.env("PATH", &path).env("PGHOST", target.socket_dir()).env("PGPORT", target.port.to_string());
        bash.env("PGUSER", SUPERUSER);
        bash.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        finish(bash)
    };
    // One that is there is no news, nor is a second time.
    for _ in 0..2 {
        assert_eq!(run().code, Some(0));
    }
    target.psql("postgres", "REVOKE there FROM member; GRANT member TO there");
    let refused = run();
    assert!(refused.code == Some(1) && refused.stdout.contains("is a member of role"), "{refused}");
}

/// The document says what to do where its block of roles is refused.
#[test]
fn memberships_go_to_a_server_whose_first_superuser_has_another_name() {
    let (source, target) = (crate::globals::server_of_boss(17), Server::start(17, &Options::default()));
    source.create_database("t");
    source.psql("postgres", "CREATE ROLE \"the; \"\"first\"; CREATE ROLE member IN ROLE \"the; \"\"first\"");
    let mut opsd = Opsd::new(&source, &["t"]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(17).display()));
    let id = back_up(&opsd);
    let document = std::fs::read_to_string(directory(&opsd, &id).join("RESTORE.md")).unwrap();
    let roles = code_blocks(&document).into_iter().find(|b| b.contains("roles.txt")).expect("a block");
    let said = document.lines().find_map(|line| line.strip_prefix("`sed")?.strip_suffix('`'));
    let remedy =
        roles.replace("LC_ALL=C", &format!("sed{} LC_ALL=C", said.expect("what to put before psql")));
    let work = opsd.path("work");
    std::fs::create_dir(&work).unwrap();
    std::fs::copy(directory(&opsd, &id).join("globals.sql.zst.age"), work.join("globals.sql.zst.age"))
        .unwrap();
    std::fs::copy(opsd.path("identity.txt"), work.join("identity.txt")).unwrap();
    let path = tools(&opsd, 17);
    let run = |script: &str| {
        let mut bash = Command::new("/bin/bash");
        bash.args(["-e", "-u", "-o", "pipefail", "-c", script]).current_dir(&work).env_clear();
        bash.env("PATH", &path).env("PGHOST", target.socket_dir()).env("PGPORT", target.port.to_string());
        bash.env("PGUSER", SUPERUSER);
        bash.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        finish(bash)
    };
    let refused = run(&roles);
    assert!(refused.stdout.contains("permission denied to grant privileges"), "{refused}");
    run(&remedy).expect_code(0);
    let members =
        "SELECT roleid::regrole, member::regrole, grantor FROM pg_auth_members WHERE member >= 16384";
    assert_eq!(target.psql("postgres", members), "\"the; \"\"first\"|member|10");
}

/// Where the lock table has no room for two processes that lock every table.
#[test]
fn a_set_with_a_single_stream() {
    let tight = Options {
        settings: &[("max_locks_per_transaction", "10"), ("max_connections", "20")],
        ..Options::default()
    };
    let (source, target) = (Server::start(default_major(), &tight), fresh());
    source.create_database("many");
    fixtures::many_tables(&source, "many", 90);
    let opsd = Opsd::new(&source, &["many"]);
    let id = back_up(&opsd);
    let streams = manifest(&opsd, &id)["databases"][0]["streams"].clone();
    assert_eq!((streams[0]["name"].as_str(), streams.as_array().unwrap().len()), (Some("full"), 1));
    follow(&opsd, &id, &target);
    assert_same_content(db(&source, "many"), db(&target, "many"));
}

/// More of them than the server has locks for.
#[test]
fn a_set_with_many_large_objects() {
    let settings = crate::locks::DEFAULTS;
    let start = || Server::start(17, &Options { settings, ..Options::default() });
    let (source, target) = (start(), start());
    source.create_database("objects");
    crate::locks::large_objects(&source, "objects", 20_000);
    let opsd = Opsd::new(&source, &["objects"]);
    let id = back_up(&opsd);
    follow(&opsd, &id, &target);
    is_the_same(&source, &target, "objects");
}

/// Segments: a stream that goes on in `….age.001`.
#[test]
fn a_set_with_segments() {
    let (source, target) = (fresh(), fresh());
    source.create_database("long");
    source.psql(
        "long",
        "CREATE TABLE noise (id integer, noise text);
         INSERT INTO noise SELECT i, (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 100) j)
           FROM generate_series(1, 900) i",
    );
    let mut opsd = Opsd::new(&source, &["long"]);
    // A thousand parts are the most that an object may have.
    opsd.job.set("part_size", quoted("1KiB")).set("large_table", quoted("64KiB"));
    let id = back_up(&opsd);
    let streams = manifest(&opsd, &id)["databases"][0]["streams"].clone();
    let objects = streams[1]["objects"].as_array().unwrap();
    assert!((3..100).contains(&objects.len()), "{}", objects.len());
    assert!(objects[1]["key"].as_str().unwrap().ends_with(".age.001"), "{objects:?}");
    assert!(objects.iter().all(|o| o["size"].as_u64().unwrap() <= 1000 << 10));
    follow(&opsd, &id, &target);
    is_the_same(&source, &target, "long");
    // opsd itself reads them, too.
    opsd.ok(&["restore", "--verify"]);
}
