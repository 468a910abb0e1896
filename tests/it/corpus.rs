//! Databases of the kinds that public reports about other tools tell of, each a file of `tests/fixtures/corpus/`: backed
//! up, rehearsed and restored, beside what plain `pg_dump` and `pg_restore` make of it.
//!
//! A file begins with what it is, and with what is expected where that is not the usual (a set that is complete, proven
//! and restored as plain `pg_restore` restores it):
//!
//! ```sql
//! -- Rows that their own CHECK no longer lets in.
//! -- alone
//! -- majors: 14- 18
//! -- job: include_extension_tables = ["mq.*"]
//! -- verify: differs: refused
//! -- restore: lacks: refused
//! -- plain: lossy
//! -- agrees: more
//! ```
//!
//! Files that are not `alone` keep to a schema and to roles of their own: by default all of them together are one
//! database of one server. Under torture, which `make corpus` is, each file is a database by itself, on every major
//! there is, and a table tells what became of it.

mod connections;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use crate::support::compare::{content_differences, db, differences, setting_differences};
use crate::support::opsd::Opsd;
use crate::support::postgres::{MAJORS, Options, SUPERUSER, Server, bin_dir, is_installed, run_with_input};
use crate::support::torture::torture;

/// What is told of an input, and what is usual.
const COLUMNS: [(&str, &str); 5] = [
    // Or `partial`, where not all has a proof, or `refused`.
    ("backup", "complete"),
    // The verdict.
    ("verify", "proven"),
    // Or `lacks`.
    ("restore", "whole"),
    // Or `lossy`, where pg_restore fails in part; or `refused`, where pg_dump does.
    ("plain", "whole"),
    // What opsd brought back is the `same` as what pg_restore did, or it is `more` than that, and the source's.
    ("agrees", "same"),
];

/// The major that is enough by default: the newest has what all others have.
const NEWEST: u32 = 18;

/// A file.
struct Input {
    name: String,
    sql: String,
    majors: Vec<u32>,
    is_alone: bool,
    /// A line of the job's configuration.
    job: Option<(String, String)>,
    /// A word each of [`COLUMNS`], and what must be said with it.
    expected: [(String, String); 5],
}

/// What became of an input: a word each of [`COLUMNS`], and what was said with it.
type Outcome = [(String, String); 5];

fn input(path: &Path) -> Input {
    let sql = std::fs::read_to_string(path).unwrap();
    let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut input = Input {
        name,
        majors: MAJORS.to_vec(),
        is_alone: false,
        job: None,
        expected: COLUMNS.map(|(_, usual)| (usual.to_owned(), String::new())),
        sql: String::new(),
    };
    for line in sql.lines().map_while(|line| line.strip_prefix("-- ")) {
        let (key, value) = line.split_once(": ").unwrap_or((line, ""));
        match key {
            "alone" => input.is_alone = true,
            "majors" => input.majors = majors(value),
            "job" => input.job = value.split_once(" = ").map(|(key, toml)| (key.to_owned(), toml.to_owned())),
            _ => {
                let Some(column) = COLUMNS.iter().position(|(name, _)| *name == key) else { continue };
                let (word, said) = value.split_once(": ").unwrap_or((value, ""));
                input.expected[column] = (word.to_owned(), said.to_owned());
                if word == "refused" && key == "backup" {
                    for later in [1, 2, 4] {
                        input.expected[later] = ("-".to_owned(), String::new());
                    }
                }
            }
        }
    }
    assert!(sql.starts_with("-- "), "{} does not say what it is", input.name);
    input.sql = sql;
    input
}

/// `15-` or `14 18`.
fn majors(text: &str) -> Vec<u32> {
    let is_wanted = |major: u32| {
        text.split(' ').any(|part| match part.strip_suffix('-') {
            Some(first) => first.parse::<u32>().unwrap() <= major,
            None => part.parse() == Ok(major),
        })
    };
    MAJORS.into_iter().filter(|major| is_wanted(*major)).collect()
}

fn inputs() -> Vec<Input> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/corpus");
    let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
    files.sort();
    files.iter().map(|path| input(path)).collect()
}

/// Where an input is, where opsd restores it to, and where pg_restore does.
struct Servers {
    source: Server,
    target: Server,
    plain: Server,
}

impl Servers {
    fn start(major: u32) -> Servers {
        let start = || Server::start(major, &Options::default());
        Servers { source: start(), target: start(), plain: start() }
    }

    fn each(&self) -> [&Server; 3] {
        [&self.source, &self.target, &self.plain]
    }

    /// What the inputs put into a database is gone, with their roles.
    fn clear(&self, database: &str) {
        for server in self.each() {
            server.drop_database(database);
            let roles = "SELECT format('DROP OWNED BY %I; DROP ROLE %I', rolname, rolname) FROM pg_roles WHERE oid >= 16384 \\gexec";
            server.psql("postgres", &format!("SELECT format('REVOKE %I FROM %I CASCADE', r.rolname, m.rolname) FROM pg_auth_members JOIN pg_roles r ON r.oid = roleid JOIN pg_roles m ON m.oid = member WHERE r.oid >= 16384 AND admin_option \\gexec\n{roles}"));
        }
    }
}

/// SQL of an input, whatever the database sets for its sessions by now.
fn load(server: &Server, database: &str, input: &Input) {
    let mut psql = server.client("psql");
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"])
        .env("PGDATABASE", database)
        .env("PGOPTIONS", "-c search_path=public -c quote_all_identifiers=off -c datestyle=ISO -c intervalstyle=postgres -c timezone=UTC");
    let output = run_with_input(psql, input.sql.as_bytes());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not load on PostgreSQL {}: {said}", input.name, server.major);
}

/// Everything that is done with a database of these inputs.
fn tried(servers: &Servers, database: &str, inputs: &[&Input]) -> Outcome {
    let Servers { source, target, plain } = servers;
    source.create_database(database);
    for input in inputs {
        load(source, database, input);
    }
    let mut opsd = Opsd::new(source, &[database]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(source.major).display()));
    for (key, toml) in inputs.iter().filter_map(|input| input.job.as_ref()) {
        opsd.job.set(key, toml);
    }
    let mut outcome = COLUMNS.map(|_| ("-".to_owned(), String::new()));
    outcome[3] = restored_plainly(source, plain, database);
    let backup = opsd.run(&["backup", "--json"]);
    if backup.code != Some(0) {
        outcome[0] = ("refused".to_owned(), backup.to_string());
        return outcome;
    }
    let set = &backup.json()["sets"][0];
    outcome[0] = (set["proof"].as_str().unwrap().to_owned(), backup.to_string());
    let rehearsal = opsd.run(&["restore", "--verify", "--json"]);
    let verdict = rehearsal.json()["results"][0]["verdict"].as_str().unwrap_or("none").to_owned();
    outcome[1] = (verdict, rehearsal.to_string());
    let (url, id) = (target.socket_url(SUPERUSER, database), set["id"].as_str().unwrap());
    // By its name: what differs is not restored otherwise.
    let restore =
        opsd.run(&["restore", "db", "--backup", id, "--to", &url, "--create", "--globals", "--json"]);
    let word = match restore.code {
        Some(0) => "whole",
        Some(1) if target.databases().iter().any(|name| name == database) => "lacks",
        _ => "failed",
    };
    outcome[2] = (word.to_owned(), restore.to_string());
    if word != "failed" {
        // What lacks rows lets nobody in, on purpose.
        let is_open = restore.json()["lost"].as_array().is_none_or(Vec::is_empty);
        outcome[4] = agreement(servers, database, outcome[3].0 == "refused", is_open);
    }
    outcome
}

/// What plain pg_dump, pg_dumpall and pg_restore make of a database.
fn restored_plainly(source: &Server, plain: &Server, database: &str) -> (String, String) {
    let roles = source.client("pg_dumpall").arg("--globals-only").output().unwrap();
    assert!(roles.status.success(), "pg_dumpall: {}", String::from_utf8_lossy(&roles.stderr));
    let mut psql = plain.client("psql");
    // The superuser is there already.
    psql.args(["-X", "-q", "-f", "-"]).env("PGDATABASE", "postgres");
    run_with_input(psql, &roles.stdout);
    let archive = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let mut dump = source.client("pg_dump");
    dump.args(["-Fc", "-Z0", "--file"]).arg(archive.path()).env("PGDATABASE", database);
    let dumped = dump.output().unwrap();
    if !dumped.status.success() {
        return ("refused".to_owned(), String::from_utf8_lossy(&dumped.stderr).into_owned());
    }
    let mut restore = plain.client("pg_restore");
    restore.args(["--create", "--dbname", "postgres"]).arg(archive.path());
    let restored = restore.output().unwrap();
    let word = if restored.status.success() { "whole" } else { "lossy" };
    (word.to_owned(), String::from_utf8_lossy(&restored.stderr).into_owned())
}

/// How what opsd brought back compares with what pg_restore did, and with the source.
fn agreement(servers: &Servers, database: &str, is_plain_refused: bool, is_open: bool) -> (String, String) {
    let Servers { source, target, plain } = servers;
    let compared = |to: &Server| {
        let (ours, other) = (db(target, database), db(to, database));
        let mut report = differences(ours, other);
        if is_open {
            report += &setting_differences(ours, other);
        }
        let (ours, others) = (roles(target), roles(to));
        if ours != others {
            write!(report, "roles:\n{ours}\nagainst\n{others}").unwrap();
        }
        report
    };
    let to_plain = if is_plain_refused { "there is none".to_owned() } else { compared(plain) };
    if to_plain.is_empty() {
        return ("same".to_owned(), String::new());
    }
    let mut to_source = content_differences(db(target, database), db(source, database));
    to_source += &setting_differences(db(target, database), db(source, database));
    if to_source.is_empty() && roles(target) == roles(source) {
        return ("more".to_owned(), to_plain);
    }
    ("less".to_owned(), format!("beside plain:\n{to_plain}\nbeside the source:\n{to_source}"))
}

/// Roles of the inputs, with all that they have.
fn roles(server: &Server) -> String {
    server.psql(
        "postgres",
        "SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit,
                rolpassword, rolvaliduntil, (SELECT setconfig FROM pg_db_role_setting WHERE setrole = a.oid AND setdatabase = 0),
                shobj_description(oid, 'pg_authid'),
                (SELECT string_agg(format('%s %s', member::regrole, admin_option), ',' ORDER BY member::regrole::text) FROM pg_auth_members WHERE roleid = a.oid)
           FROM pg_authid a WHERE oid >= 16384 ORDER BY rolname",
    )
}

/// What an outcome is not that it should be.
fn unexpected(title: &str, outcome: &Outcome, expected: &Outcome) -> Vec<String> {
    let columns = COLUMNS.iter().zip(outcome).zip(expected);
    let wrong = columns.filter(|((_, (word, said)), (wanted, part))| word != wanted || !said.contains(part));
    let text = |((name, _), (word, said)): (&(&str, &str), &(String, String)), wanted: &(String, String)| {
        format!("{title}: {} is {word:?} and should be {:?} {:?}:\n{said}", name, wanted.0, wanted.1)
    };
    wrong.map(|(((name, usual), got), wanted)| text((&(*name, *usual), got), wanted)).collect()
}

#[test]
fn databases_that_others_built_come_back_as_plain_pg_restore_brings_them() {
    let inputs = inputs();
    if torture() {
        each_alone(&inputs);
        return;
    }
    let together: Vec<&Input> = inputs.iter().filter(|i| !i.is_alone && i.majors.contains(&NEWEST)).collect();
    let servers = Servers::start(NEWEST);
    let outcome = tried(&servers, "together", &together);
    let usual = COLUMNS.map(|(_, usual)| (usual.to_owned(), String::new()));
    let wrong = unexpected("all together", &outcome, &usual);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Each input on each major, two majors at a time.
fn each_alone(inputs: &[Input]) {
    let only = std::env::var("OPSD_TEST_PG").ok().map(|text| text.parse::<u32>().expect("a major"));
    let named = std::env::var("OPSD_TEST_INPUT").ok();
    let majors =
        MAJORS.into_iter().filter(|major| only.is_none_or(|only| only == *major) && is_installed(*major));
    let queue = Mutex::new(majors);
    let done = Mutex::new((Vec::new(), Vec::new()));
    let work = || {
        while let Some(major) = { queue.lock().unwrap().next() } {
            let servers = Servers::start(major);
            let wanted =
                |i: &&Input| i.majors.contains(&major) && named.as_ref().is_none_or(|n| *n == i.name);
            for input in inputs.iter().filter(wanted) {
                let title = format!("{} on {major}", input.name);
                let run = std::panic::AssertUnwindSafe(|| tried(&servers, &input.name, &[input]));
                // The others are tried all the same; the reason stands above.
                let Ok(outcome) = std::panic::catch_unwind(run) else {
                    done.lock().unwrap().1.push(format!("{title}: could not be tried"));
                    servers.clear(&input.name);
                    continue;
                };
                let wrong = unexpected(&title, &outcome, &input.expected);
                let words: Vec<&str> = outcome.iter().map(|(word, _)| word.as_str()).collect();
                let verdict = if wrong.is_empty() { "" } else { "  NOT AS EXPECTED" };
                let row = format!(
                    "{:<24} {major:>5}  {:<9} {:<9} {:<8} {:<8} {:<6}{verdict}",
                    input.name, words[0], words[1], words[2], words[3], words[4]
                );
                eprintln!("{row}");
                let mut done = done.lock().unwrap();
                done.0.push(row);
                done.1.extend(wrong);
                drop(done);
                servers.clear(&input.name);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let (mut rows, wrong) = done.into_inner().unwrap();
    rows.sort();
    let head = format!(
        "{:<24} {:>5}  {:<9} {:<9} {:<8} {:<8} {:<6}",
        "input", "major", "backup", "verify", "restore", "plain", "opsd beside plain"
    );
    eprintln!("\n{head}\n{}", rows.join("\n"));
    assert!(!rows.is_empty(), "no input of that name");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A header that says nothing that anybody understands would expect the usual, and never fail.
#[test]
fn the_head_of_each_input_is_understood() {
    let keys = || COLUMNS.iter().map(|(name, _)| *name).chain(["majors", "job"]);
    let known = |line: &&str| *line == "alone" || keys().any(|key| line.starts_with(&format!("{key}: ")));
    for input in inputs() {
        let mut head =
            input.sql.lines().map_while(|line| line.strip_prefix("-- ")).skip_while(|line| !known(line));
        assert!(
            head.all(|line| known(&line)),
            "{}: a line after the first that is understood is not",
            input.name
        );
        assert!(!input.majors.is_empty(), "{}: no major", input.name);
        let is_usual = input.expected == COLUMNS.map(|(_, usual)| (usual.to_owned(), String::new()));
        assert!(input.is_alone || (is_usual && input.job.is_none()), "{} must be alone", input.name);
    }
}
