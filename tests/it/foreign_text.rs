//! Text that others wrote is shown so that it does nothing: no line is forged, no terminal driven, no password
//! repeated, and no page filled.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::postgres::fake;
use crate::support::exporter::collected;
use crate::support::opsd::{Opsd, Run, quoted};
use crate::support::postgres::{bin_dir, default_major, default_server};
use crate::support::sets::back_up;

/// Characters that change the direction of text.
const TURNS: [char; 4] = ['\u{202e}', '\u{2066}', '\u{200f}', '\u{61c}'];

/// Nothing that drives a terminal, and no `error:` or `hint:` but opsd's own.
fn is_harmless(run: &Run) {
    for text in [&run.stdout, &run.stderr] {
        let drives = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || TURNS.contains(&c);
        assert!(!text.contains(drives), "{run:?}");
        assert!(
            !text.lines().any(|line| line.contains("forged")
                && !line.starts_with("  ")
                && ["error:", "hint:", "warning:"].iter().any(|word| line.starts_with(word))
                && line.trim_end().ends_with("forged")),
            "{run}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_servers_message_forges_no_line_and_drives_no_terminal() {
    let text = "no\nerror: forged\nhint: forged\n\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\rwarning: forged";
    let port = fake::server(fake::fatal("28000", text), Vec::new()).await;
    let mut opsd = Opsd::new(default_server(), &["postgres"]);
    opsd.postgres.set("url", quoted(&format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable")));
    opsd.more = "\n[monitor.main]\npostgres = \"main\"\n".into();
    for args in [&["backup"][..], &["-vvv", "backup"], &["backup", "--dry-run"], &["status"], &["check"]] {
        let run = opsd.run(args);
        assert!(run.stderr.contains("forged") || run.stdout.contains("forged"), "{run}");
        is_harmless(&run);
    }
}

#[test]
fn a_databases_name_drives_no_terminal() {
    let server = default_server();
    let database = server.fresh_database("esc\u{1b}[2J\u{7}\nerror: forged");
    server.psql(&database, "CREATE TABLE \"t\u{1b}[31m\" AS SELECT 1 AS i");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("bin_dir", quoted(bin_dir(default_major()).to_str().unwrap()));
    let id = back_up(&opsd);
    for args in [
        &["-vvv", "backup"][..],
        &["backup", "--dry-run"],
        &["backups", "list"],
        &["backups", "show", &id],
        &["-vvv", "restore", "--verify", "db"],
        &["-v", "restore", "db", "--to", "main", "--replace", "--yes"],
    ] {
        is_harmless(&opsd.ok(args));
    }
}

/// JSON need not escape what drives a terminal; opsd does, and a parser gets the same name.
#[test]
fn a_databases_name_drives_no_terminal_in_json_either() {
    let server = default_server();
    let database = server.fresh_database("esc\u{9b}31m\u{7f}\u{202e}\u{2066}\u{61c}\u{1b}c");
    server.psql(&database, "CREATE TABLE \"t\u{9b}31m\" AS SELECT 1 AS i");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.postgres.set("bin_dir", quoted(bin_dir(default_major()).to_str().unwrap()));
    opsd.more = "\n[monitor.main]\npostgres = \"main\"\n".into();
    let id = back_up(&opsd);
    let mut named = 0;
    for args in [
        &["backup", "--json"][..],
        &["backup", "--dry-run", "--json"],
        &["backups", "list", "--json"],
        &["backups", "show", &id, "--json"],
        &["backups", "scrub", "--json"],
        &["config", "check", "--json"],
        &["config", "show", "--json"],
        &["restore", "--verify", "db", "--json"],
        &["restore", "db", "--to", "main", "--replace", "--yes", "--json"],
        &["status", "--json"],
        &["check", "--json"],
    ] {
        let run = opsd.run(args);
        is_harmless(&run);
        named += usize::from(holds(&run.json(), &database));
    }
    assert!(named >= 6, "{named} documents name the database as it is");
}

/// Whoever can write to a repository names objects there as they like.
#[test]
fn a_repositorys_names_forge_no_line_and_drive_no_terminal() {
    let server = default_server();
    let mut opsd = Opsd::new(server, &["postgres"]);
    opsd.job.set("retention", "{ last = 1 }");
    let ids = [back_up(&opsd), back_up(&opsd)];
    let name = "x\u{1b}[2J\u{9b}31m\u{202e}\nerror: forged";
    let job = opsd.path("repository/test/db");
    for id in &ids {
        std::fs::write(job.join(id).join(name), "x").unwrap();
    }
    std::fs::create_dir(job.join(format!("20261103T030000Z-aaaa{name}"))).unwrap();
    std::fs::write(job.join(format!("20261103T030000Z-aaaa{name}")).join("y"), "x").unwrap();
    std::fs::write(job.join(name), "x").unwrap();
    let mut said = 0;
    for args in [
        &["backups", "list"][..],
        &["backups", "show", &ids[1]],
        &["backups", "scrub"],
        &["backups", "sweep", "--dry-run"],
        &["backups", "prune", "--dry-run"],
        &["-vvv", "backups", "prune"],
        &["-vvv", "backups", "sweep"],
    ] {
        for json in [&[][..], &["--json"]] {
            let run = opsd.run(&[args, json].concat());
            said += usize::from(run.stdout.contains("forged") || run.stderr.contains("forged"));
            is_harmless(&run);
        }
    }
    assert!(said >= 2, "{said} commands name what opsd did not write");
}

/// Whether a string is somewhere in a document.
fn holds(value: &serde_json::Value, text: &str) -> bool {
    match value {
        serde_json::Value::String(string) => string.contains(text),
        serde_json::Value::Array(values) => values.iter().any(|value| holds(value, text)),
        serde_json::Value::Object(map) => map.values().any(|value| holds(value, text)),
        _ => false,
    }
}

#[test]
fn a_mistyped_url_is_not_repeated_with_its_password() {
    let server = default_server();
    let database = server.fresh_database("typo");
    let mut opsd = Opsd::new(server, &[&database]);
    opsd.more = "\n[monitor.main]\npostgres = \"main\"\n".into();
    back_up(&opsd);
    for form in [
        "POSTGRES://u:c4nary@h/d",
        " postgres://u:c4nary@h/d",
        "postgres:/u:c4nary@h/d",
        "postgres:u:c4nary@h",
        "mysql://u:c4nary@h/d",
        "u:c4nary@h",
        "u:c4nary@h/d?sslmode=require",
        "postgres//u:c4nary@h",
        "PGPASSWORD=c4nary",
    ] {
        for args in [
            &["restore", "db", "--to", form][..],
            &["restore", "db", "--to", "main", "--database", form],
            &["restore", "--verify", form],
            &["restore", "--verify", "--at", form],
            &["restore", "--verify", "--backup", form],
            &["backup", form],
            &["check", form],
            &["status", form],
            &["exporter", form],
            &["backups", "list", form],
            &["backups", "cat", form],
            &["keygen", "-o", "/dev/null/x", form],
            &[form],
        ] {
            let run = opsd.run(args);
            assert!(!matches!(run.code, Some(0)), "{run}");
            assert!(!run.stderr.contains("c4nary") && !run.stdout.contains("c4nary"), "{run}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_out_of_a_health_page_is_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = format!("{{\"all\":{{\"{}\":true,\"a\\u001b[2Jb\":false}}}}", "x".repeat(900_000));
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes()).await;
        }
    });
    let mut opsd = Opsd::without_server();
    opsd.more =
        format!("[monitor.page]\nhttp = {{ url = \"http://127.0.0.1:{port}/\", components = \"/all\" }}\n");
    let scrape = collected(&opsd);
    let found = scrape.of("opsd_http_component_up", &[]);
    assert_eq!(found.len(), 2);
    let longest = scrape.text.lines().map(str::len).max().unwrap();
    assert!(longest < 1000, "a line of {longest} bytes");
    assert!(!scrape.text.contains('\u{1b}'), "an escape sequence is on the page");
    is_harmless(&opsd.run(&["status"]));
}
