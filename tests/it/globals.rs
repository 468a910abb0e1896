//! Roles, their memberships and settings: on a server whose first superuser has another name, and in a rehearsal.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::opsd::Opsd;
use crate::support::postgres::{
    Options, SUPERUSER, Server, bin_dir, default_major, expect_success, for_some_majors,
};
use crate::support::sets::back_up;

/// A server that initdb made for `boss`, where `postgres` is one superuser among others.
pub fn server_of_boss(major: u32) -> Server {
    let server = Server::start(major, &Options { initdb: &["--username=boss"], ..Options::default() });
    let mut psql: Command = server.client("psql");
    psql.env("PGUSER", "boss").args([
        "-X",
        "-q",
        "-d",
        "postgres",
        "-c",
        "CREATE ROLE postgres SUPERUSER LOGIN",
    ]);
    expect_success(&mut psql);
    server
}

fn site(server: &Server) -> Opsd {
    let mut opsd = Opsd::new(server, &["app"]);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
    opsd
}

/// Each membership of the test's roles, and on 16 and newer its options and who granted it.
fn memberships(server: &Server) -> String {
    let sql = "SELECT roleid::regrole, member::regrole, admin_option, to_jsonb(m) ->> 'inherit_option',
                      to_jsonb(m) ->> 'set_option',
                      CASE WHEN current_setting('server_version_num')::int < 160000 THEN '' WHEN grantor = 10 THEN 'first' ELSE grantor::regrole::text END
                 FROM pg_auth_members m WHERE member >= 16384 ORDER BY roleid::regrole::text, member::regrole::text, 6";
    server.psql("postgres", sql)
}

fn rehearse(opsd: &Opsd) -> Value {
    let run = opsd.run(&["restore", "--verify", "--json"]);
    run.json()["results"][0].clone()
}

const ROLES: &str =
    "CREATE ROLE parent; CREATE ROLE leader; CREATE ROLE child NOINHERIT; CREATE ROLE second SUPERUSER;
    GRANT parent TO leader WITH ADMIN OPTION; GRANT pg_monitor TO child;
    SET ROLE leader; GRANT parent TO child; RESET ROLE;
    ALTER ROLE child SET work_mem = '5MB'; ALTER ROLE child VALID UNTIL '2031-02-03 04:05:06+00';
    COMMENT ON ROLE child IS 'x'; ALTER ROLE child IN DATABASE app SET search_path = a, \"b c\"";

#[test]
fn roles_go_to_a_server_whose_first_superuser_has_another_name() {
    for_some_majors(|shared| {
        let (from, to) = (server_of_boss(shared.major), Server::start(shared.major, &Options::default()));
        from.create_database("app");
        from.psql("app", "CREATE TABLE t (id integer)");
        from.psql("postgres", ROLES);
        if shared.major >= 16 {
            from.psql("postgres", "GRANT parent TO second WITH INHERIT FALSE, SET FALSE");
        }
        let opsd = site(&from);
        back_up(&opsd);
        let url = to.socket_url(SUPERUSER, "app");
        let run = opsd.ok(&["restore", "db", "--to", &url, "--create", "--globals", "--json"]);
        assert_eq!(run.json()["warnings"], json!([]), "{run}");
        assert_eq!(memberships(&to), memberships(&from), "PostgreSQL {}", shared.major);
        assert_eq!(
            to.psql("postgres", "SELECT rolsuper, oid = 10 FROM pg_roles WHERE rolname = 'boss'"),
            "t|f"
        );
        let result = rehearse(&opsd);
        assert_eq!((&result["verdict"], &result["warnings"]), (&json!("proven"), &json!([])), "{result}");
    });
}

/// Until 15, whoever granted was written down, whether he could or not.
#[test]
fn memberships_of_an_older_server_are_granted_on_a_newer_one() {
    let (from, to) = (server_of_boss(15), Server::start(18, &Options::default()));
    from.create_database("app");
    from.psql("postgres", &format!("{ROLES}; SET ROLE second; GRANT parent TO second"));
    let mut opsd = site(&from);
    back_up(&opsd);
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(18).display()));
    let url = to.socket_url(SUPERUSER, "app");
    opsd.ok(&["restore", "db", "--to", &url, "--create", "--globals", "--json"]);
    let granted = "SELECT roleid::regrole, member::regrole, admin_option, CASE grantor WHEN 10 THEN 'first' ELSE grantor::regrole::text END
                     FROM pg_auth_members WHERE member >= 16384 ORDER BY roleid::regrole::text, member::regrole::text";
    assert_eq!(
        to.psql("postgres", granted),
        "parent|child|f|leader\nparent|leader|t|first\nparent|second|f|first\npg_monitor|child|f|first"
    );
}

/// Roles that are there are left alone; who may not grant there does not keep others from being members.
#[test]
fn a_role_that_is_there_without_its_grantors_right_gets_its_members() {
    let (from, to) = (Server::start(17, &Options::default()), Server::start(17, &Options::default()));
    from.create_database("app");
    from.psql("postgres", ROLES);
    to.psql("postgres", "CREATE ROLE parent; CREATE ROLE leader");
    let opsd = site(&from);
    back_up(&opsd);
    let url = to.socket_url(SUPERUSER, "app");
    let run = opsd.ok(&["restore", "db", "--to", &url, "--create", "--globals", "--json"]);
    let warnings = run.json()["warnings"].to_string();
    assert!(warnings.contains("\\\"child\\\"") && warnings.contains("\\\"leader\\\""), "{run}");
    assert_eq!(memberships(&to), "parent|child|f|false|true|first\npg_monitor|child|f|false|true|first");
}

/// A server writes times as its settings say, and another reads them as its own say.
#[test]
fn passwords_end_on_the_same_day_whatever_the_servers_date_style() {
    let options = Options { settings: &[("datestyle", "SQL, DMY")], ..Options::default() };
    let (from, to) =
        (Server::start(default_major(), &options), Server::start(default_major(), &Options::default()));
    from.create_database("app");
    from.psql("postgres", "CREATE ROLE clerk VALID UNTIL '2031-02-03 04:05:06+00'");
    let opsd = site(&from);
    back_up(&opsd);
    opsd.ok(&["restore", "db", "--to", &to.socket_url(SUPERUSER, "app"), "--create", "--globals"]);
    let ends = "SELECT extract(epoch FROM rolvaliduntil)::int8 FROM pg_roles WHERE rolname = 'clerk'";
    assert_eq!(to.psql("postgres", ends), from.psql("postgres", ends));
}

/// A pg_dumpall that says more, or something else, than the server did.
fn dumped_by(script: &str) -> (Server, Opsd) {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE t (id integer)");
    server.psql("postgres", "CREATE ROLE clerk LOGIN PASSWORD 'x'; CREATE ROLE chief; GRANT chief TO clerk");
    let mut opsd = site(&server);
    crate::guards::programs(&mut opsd, "pg_dumpall", &format!("REAL \"$@\" || exit\n{script}"));
    back_up(&opsd);
    (server, opsd)
}

#[test]
fn a_rehearsal_finds_roles_that_do_not_come_back_as_the_set_says() {
    for (script, said) in [
        ("echo 'GRANT chief TO nobody_there;'", "membership of \"nobody_there\" in \"chief\""),
        ("echo \"ALTER ROLE clerk WITH LOGIN VALID UNTIL 'the day after';\"", "role \"clerk\""),
    ] {
        let (_server, opsd) = dumped_by(script);
        let result = rehearse(&opsd);
        assert_eq!(result["verdict"], "differs", "{script}: {result}");
        let differences = result["differences"].to_string();
        assert!(differences.contains(&said.replace('"', "\\\"")), "{said}: {result}");
        assert!(!differences.contains("the day after"), "{result}");
        let run = opsd.run(&["restore", "--verify"]).expect_failure(3, &["differs: ", said]);
        drop(run);
    }
}

/// What this host lacks is no fault of the set's, and is not called proven either.
#[test]
fn a_setting_that_the_scratch_server_refuses_is_named_as_not_covered() {
    let (_server, opsd) = dumped_by("echo \"ALTER ROLE clerk SET lc_messages TO 'xx_XX.secret';\"");
    let result = rehearse(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    let settings: Vec<&Value> =
        result["scope"].as_array().unwrap().iter().filter(|s| s["what"] == "role-settings").collect();
    let refused = settings.iter().find(|s| s["covered"] == false).unwrap_or_else(|| panic!("{result}"));
    assert!(refused["note"].as_str().unwrap().contains("lc_messages"), "{result}");
    assert!(!result.to_string().contains("xx_XX"), "{result}");
}

/// What a rehearsal says of roles: how many were compared, and what never comes near the scratch server.
#[test]
fn a_rehearsal_says_what_it_compared_of_roles_and_what_it_did_not() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    let place = server.subdirectory("space");
    server.psql(
        "postgres",
        &format!(
            "CREATE TABLESPACE space LOCATION '{}'; GRANT CREATE ON TABLESPACE space TO PUBLIC",
            place.display()
        ),
    );
    server.psql("postgres", &format!("{ROLES}; ALTER ROLE child PASSWORD 'secret'"));
    let opsd = site(&server);
    let id = back_up(&opsd);
    let result = rehearse(&opsd);
    assert_eq!(result["verdict"], "proven", "{result}");
    let row = |what: &str, covered: bool| {
        let rows = result["scope"].as_array().unwrap();
        rows.iter().find(|r| r["what"] == what && r["covered"] == covered).map(|r| r["count"].clone())
    };
    assert_eq!(row("roles", true), Some(json!(5)), "{result}");
    assert_eq!(row("memberships", true), Some(json!(3)), "{result}");
    assert_eq!(row("role-settings", true), Some(json!(1)), "{result}");
    assert_eq!(row("database-settings", true), Some(json!(1)), "{result}");
    // The first superuser has one, too.
    assert_eq!(row("passwords", false), Some(json!(2)), "{result}");
    assert_eq!(row("other-globals", false), Some(json!(2)), "{result}");
    // The record beside the set says the same.
    let records: Vec<String> = opsd
        .repository_files()
        .into_iter()
        .filter(|f| f.contains(&id) && f.contains("verified-") && f.ends_with(".json"))
        .collect();
    let record: Value =
        serde_json::from_slice(&std::fs::read(opsd.path("repository").join(&records[0])).unwrap()).unwrap();
    assert_eq!(record["scope"], result["scope"]);
}

/// PostgreSQL 15 lets roles set what only superusers may: a role comes with what it may set.
#[test]
fn privileges_on_parameters_come_with_the_roles_that_have_them() {
    for major in [15, 18] {
        let (from, to) =
            (Server::start(major, &Options::default()), Server::start(major, &Options::default()));
        from.create_database("app");
        from.psql(
            "postgres",
            "CREATE ROLE clerk; CREATE ROLE chief; GRANT SET ON PARAMETER log_statement TO clerk;
             GRANT SET, ALTER SYSTEM ON PARAMETER work_mem TO chief WITH GRANT OPTION; GRANT ALL ON PARAMETER my.own TO chief",
        );
        let opsd = site(&from);
        back_up(&opsd);
        let result = rehearse(&opsd);
        assert_eq!(result["verdict"], "proven", "{result}");
        let rows: Vec<&Value> =
            result["scope"].as_array().unwrap().iter().filter(|s| s["what"] == "other-globals").collect();
        assert_eq!(
            rows.iter().map(|r| (&r["covered"], &r["count"])).collect::<Vec<_>>(),
            [(&json!(true), &json!(3))]
        );
        let url = to.socket_url(SUPERUSER, "app");
        let run = opsd.ok(&["restore", "db", "--to", &url, "--create", "--globals", "--json"]);
        assert!(!run.json()["warnings"].to_string().contains("parameter"), "{run}");
        let acl = "SELECT parname, paracl FROM pg_parameter_acl ORDER BY parname";
        assert_eq!(to.psql("postgres", acl), from.psql("postgres", acl), "PostgreSQL {major}");
        assert_eq!(to.psql("postgres", "SELECT count(*) FROM pg_parameter_acl"), "3");
    }
}

/// A role that was there already lost its settings in silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_roles_that_exist_lack_is_found_and_given() {
    let server = Server::start(default_major(), &Options::default());
    server.psql(
        "postgres",
        "CREATE ROLE bare; CREATE ROLE parent; CREATE ROLE other; ALTER ROLE bare SET lock_timeout = '1s'",
    );
    let script = "CREATE ROLE bare;\nALTER ROLE bare WITH NOSUPERUSER INHERIT CREATEDB LOGIN CONNECTION LIMIT 3 \
        VALID UNTIL '2031-02-03 04:05:06+00';\nALTER ROLE bare SET work_mem TO '5MB';\n\
        ALTER ROLE bare SET search_path TO 'a', 'b c';\nCOMMENT ON ROLE bare IS 'x';\nCREATE ROLE parent;\n\
        GRANT parent TO bare;\nCREATE ROLE absent;\nALTER ROLE absent SET work_mem TO '5MB';\n";
    let globals = opsd::set::globals::Globals::parse(script).unwrap();
    let url = server.socket_url(SUPERUSER, "postgres");
    let connection = opsd::config::Connection::from_arg(&url).unwrap().connection;
    let admin = opsd::postgres::connect::connect(&connection, None, "opsd test").await.unwrap();
    let existing = ["bare", "parent", "other"].map(str::to_owned).into();
    let lacking = async || opsd::restore::role_updates::lacking(&admin, &globals, &existing).await.unwrap();
    let updates = lacking().await;
    assert_eq!(updates.len(), 8, "{updates:#?}");
    for update in &updates {
        update.sql.run(&admin.client).await.unwrap();
    }
    assert_eq!(lacking().await, []);
    admin.close().await;
    let settings = server.psql("postgres", "SELECT rolconfig FROM pg_roles WHERE rolname = 'bare'");
    assert!(settings.contains("lock_timeout=1s") && settings.contains("work_mem=5MB"), "{settings}");
}

/// A role that was there already lost its `work_mem` in silence.
#[test]
fn what_existing_roles_and_a_database_that_is_there_lack_is_named_and_given_where_that_is_asked_for() {
    let server = Server::start(default_major(), &Options::default());
    server.create_database("app");
    server.psql("app", "CREATE TABLE a AS SELECT generate_series(1, 9) AS id");
    let set = "ALTER ROLE mastodon SET work_mem = '5MB'; ALTER ROLE mastodon CREATEDB;
               ALTER DATABASE app SET statement_timeout = '7s'";
    for statement in ["CREATE ROLE mastodon LOGIN", set] {
        server.psql("postgres", statement);
    }
    let opsd = Opsd::new(&server, &["app"]);
    back_up(&opsd);
    server.psql("postgres", "ALTER ROLE mastodon RESET work_mem; ALTER ROLE mastodon NOCREATEDB");
    let to = |name: &str, more: &[&str]| {
        server.create_database(name);
        opsd.ok(&[&["restore", "db", "--to", "main", "--as", name, "--json"], more].concat())
    };
    let role =
        || server.psql("postgres", "SELECT rolcreatedb, rolconfig FROM pg_roles WHERE rolname = 'mastodon'");
    for more in [&[][..], &["--globals"]] {
        let run = to(if more.is_empty() { "one" } else { "two" }, more);
        let warnings = run.json()["warnings"].to_string();
        for expected in
            ["lacks its setting work_mem", "SET \\\"work_mem\\\" TO '5MB'", "CREATEDB", "statement_timeout"]
        {
            assert!(warnings.contains(expected), "{expected}: {run}");
        }
        assert_eq!(role(), "f|");
    }
    let run = to("three", &["--globals=update"]);
    assert_eq!(role(), "t|{work_mem=5MB}", "{run}");
    let of_database = "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase
                        WHERE datname = 'three'";
    assert_eq!(server.psql("postgres", of_database), "{statement_timeout=7s}");
    assert!(!to("four", &[]).json()["warnings"].to_string().contains("mastodon"));
    // One that is replaced keeps its own, and the set may have more.
    let replace = |more: &[&str]| {
        let run = ["restore", "db", "--to", "main", "--as", "four", "--replace", "--yes", "--json"];
        opsd.ok(&[&run, more].concat()).json()["warnings"].to_string()
    };
    let of_four = of_database.replace("three", "four");
    server.psql("postgres", "ALTER DATABASE four SET lock_timeout = '3s'");
    assert!(replace(&[]).contains("statement_timeout"));
    assert_eq!(server.psql("postgres", &of_four), "{lock_timeout=3s}");
    assert!(!replace(&["--globals=update"]).contains("statement_timeout"));
    assert_eq!(server.psql("postgres", &of_four), "{lock_timeout=3s,statement_timeout=7s}");
    opsd.run(&["restore", "db", "--to", "main", "--as", "five", "--globals=all"])
        .expect_failure(2, &["make or update"]);
}
