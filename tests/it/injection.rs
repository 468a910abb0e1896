//! What a set says is data: no identifier, statement or setting of an archive, a manifest or a script of
//! roles becomes SQL of the restore's own.

use crate::support::fixtures;
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{Options, Server, default_major, unique};
use crate::support::sets::{back_up, directory, forge, replace};

/// An archive of one table with no rows, as pg_dump 15 writes it, with this name and COPY statement.
fn archive(table: &str, copy: &str) -> Vec<u8> {
    let mut out = b"PGDMP".to_vec();
    // Version 1.14, integers of 4 and offsets of 8 bytes, the custom format.
    out.extend([1, 14, 0, 4, 8, 1]);
    let int = |out: &mut Vec<u8>, value: i32| {
        out.push(u8::from(value < 0));
        out.extend(value.wrapping_abs().to_le_bytes());
    };
    let string = |out: &mut Vec<u8>, text: Option<&str>| match text {
        None => int(out, -1),
        Some(text) => {
            int(out, i32::try_from(text.len()).unwrap());
            out.extend(text.as_bytes());
        }
    };
    for value in [0, 1, 2, 3, 4, 10, 126, 0] {
        int(&mut out, value);
    }
    for text in ["app", "15.1", "15.1"] {
        string(&mut out, Some(text));
    }
    int(&mut out, 2);
    let encoding = ("ENCODING", "ENCODING", "SET client_encoding = 'UTF8';\n", "", None);
    for (id, (tag, desc, defn, namespace, copy)) in
        [(1, encoding), (2, (table, "TABLE DATA", "", "public", Some(copy)))]
    {
        int(&mut out, id);
        int(&mut out, i32::from(copy.is_some()));
        for text in ["0", "0", tag, desc] {
            string(&mut out, Some(text));
        }
        int(&mut out, 3);
        string(&mut out, Some(defn));
        string(&mut out, None);
        string(&mut out, copy);
        for text in [namespace, "", "", "", "false"] {
            string(&mut out, Some(text));
        }
        string(&mut out, None);
        out.extend([0; 9]);
    }
    out.push(1);
    int(&mut out, 2);
    let rows = b"\\.\n\n\n";
    int(&mut out, rows.len() as i32);
    out.extend(rows);
    int(&mut out, 0);
    out
}

/// The holder of the signing key, at the worst: the archive is one that the manifest vouches for.
#[test]
fn a_statement_in_the_place_of_a_tables_name_is_not_executed() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    fixtures::rows(&server, "app", "t", 700);
    let mut opsd = Opsd::new(&server, &["app"]);
    opsd.job.set("large_table", quoted("64KiB"));
    let id = back_up(&opsd);
    let marker = server.subdirectory(&unique("marker")).join("ran");
    let key = "app/data-1.pgdump.zst.age";
    assert!(directory(&opsd, &id).join(key).exists());
    let program = format!("COPY(SELECT/**/1)TO/**/PROGRAM'touch${{IFS}}{}'", marker.display());
    for (index, table) in [
        format!("t;{program};--"),
        // In the list of columns, and after a name that is quoted.
        format!("t (id); {program}; COPY public.t"),
        format!("\"t\";{program};--"),
    ]
    .iter()
    .enumerate()
    {
        replace(&opsd, &id, key, &archive(table, &format!("COPY public.{table} (id) FROM stdin;\n")));
        let target = format!("target_{index}");
        let to = server.socket_url("postgres", &target);
        let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
        assert!(!marker.exists(), "{table} was executed: {run}");
        run.expect_failure(3, &["unexpected COPY statement"]);
        assert!(!server.databases().contains(&target));
    }
}

#[test]
fn a_statement_in_the_place_of_a_collations_provider_is_not_executed() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    let opsd = Opsd::new(&server, &["app"]);
    let id = back_up(&opsd);
    forge(&opsd, &id, |manifest| {
        manifest["databases"][0]["collations"] = serde_json::json!([{
            "provider": "libc, locale = 'C'); COMMIT; CREATE ROLE intruder SUPERUSER; --",
            "name": null, "locale": null, "collate": "C", "ctype": "C",
        }]);
    });
    let run = opsd.run(&["restore", "db", "--to", &server.socket_url("postgres", "target"), "--create"]);
    let made = server.psql("postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'intruder'");
    assert_eq!(made, "0", "{run}");
    run.expect_failure(3, &["provider"]);
}

/// Whoever may set his own role's settings, which is everybody, and whoever may make roles.
#[test]
fn settings_and_comments_of_roles_make_nobody_a_superuser() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql(
        "postgres",
        "CREATE ROLE clerk; ALTER ROLE clerk SET application_name = 'x SUPERUSER BYPASSRLS y';
         ALTER ROLE clerk SET search_path = 'a\"b', \"it's\", public;
         COMMENT ON ROLE clerk IS E'; ALTER ROLE clerk SUPERUSER; \\\\'' x';
         CREATE ROLE \"o'\"\"dd; ALTER ROLE clerk SUPERUSER; --\" LOGIN PASSWORD 'it''s' CONNECTION LIMIT 3
           VALID UNTIL '2031-02-03 04:05:06+00';
         CREATE ROLE chief CREATEDB CREATEROLE NOINHERIT REPLICATION BYPASSRLS SUPERUSER;
         GRANT clerk TO \"o'\"\"dd; ALTER ROLE clerk SUPERUSER; --\" WITH ADMIN OPTION; GRANT pg_monitor TO clerk",
    );
    server.psql("app", "CREATE TABLE t (i integer); ALTER TABLE t OWNER TO clerk");
    let opsd = Opsd::new(&server, &["app"]);
    back_up(&opsd);
    let other = Server::start(default_major(), &Options::default());
    let to = other.socket_url("postgres", "app");
    opsd.ok(&["restore", "db", "--to", &to, "--create", "--globals", "--json"]);
    // Everything of each role but the servers' own, passwords included, is what it was.
    for sql in [
        "SELECT jsonb_agg(to_jsonb(a) - 'oid' ORDER BY rolname) FROM pg_authid a WHERE rolname !~ '^(pg_|postgres$)'",
        "SELECT jsonb_agg(jsonb_build_array(setrole::regrole::text, setconfig) ORDER BY setrole::regrole::text) FROM pg_db_role_setting",
        "SELECT jsonb_agg(shobj_description(oid, 'pg_authid') ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'",
        "SELECT jsonb_agg(to_jsonb(m) - '{oid,roleid,member,grantor}'::text[] || jsonb_build_array(roleid::regrole::text, member::regrole::text) ORDER BY roleid::regrole::text) FROM pg_auth_members m WHERE member >= 16384",
    ] {
        assert_eq!(server.psql("postgres", sql), other.psql("postgres", sql), "{sql}");
    }
    opsd.ok(&["restore", "--verify"]);
}
