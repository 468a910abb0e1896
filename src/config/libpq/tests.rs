//! Connection settings, checked against what libpq documents.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

/// An environment that has exactly these variables.
fn env<'a>(variables: &[(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + use<'a> {
    let map: HashMap<&str, &str> = variables.iter().copied().collect();
    // Not the developer's own ~/.pgpass.
    move |name| map.get(name).or((name == "HOME").then_some(&"/nonexistent")).map(ToString::to_string)
}

fn ok(dsn: &str) -> Connection {
    resolve(dsn, &env(&[])).unwrap_or_else(|e| panic!("{dsn}: {e:?}")).connection
}

fn issues(dsn: &str, variables: &[(&str, &str)]) -> String {
    let found = resolve(dsn, &env(variables)).expect_err(dsn);
    found.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>().join("\n")
}

fn hosts_of(connection: &Connection) -> Vec<(&str, u16)> {
    connection.hosts.iter().map(|(host, port)| (host.as_str(), *port)).collect()
}

fn password(connection: &Connection) -> Option<&str> {
    connection.password.as_ref().map(Secret::expose)
}

#[test]
fn urls() {
    let c = ok("postgres://u:p%40w@h1:1,h2/db?sslmode=require&connect_timeout=5&options=-c%20a%3Db");
    assert_eq!(hosts_of(&c), [("h1", 1), ("h2", 5432)]);
    assert_eq!((c.user.as_str(), password(&c), c.dbname.as_str()), ("u", Some("p@w"), "db"));
    assert_eq!(c.sslmode, SslMode::Require);
    assert_eq!(c.connect_timeout, Duration::from_secs(5));
    assert_eq!(c.options.as_deref(), Some("-c a=b"));

    let c = ok("postgresql://u@%2Frun%2Fpostgresql/db");
    assert_eq!(hosts_of(&c), [("/run/postgresql", 5432)]);
    let c = ok("postgres://u@[::1]:6543,[fe80::1]/");
    assert_eq!(hosts_of(&c), [("::1", 6543), ("fe80::1", 5432)]);
    assert_eq!(c.dbname, "u", "the database is the user's name where none is given");
    let c = ok("postgres:///db?host=/tmp&port=5433&user=u&password=a%26b");
    assert_eq!((hosts_of(&c), password(&c)), (vec![("/tmp", 5433)], Some("a&b")));
    let c = ok("postgres://u@h/b%C3%BC%20%22x%22%2F..?ssl=true");
    assert_eq!((c.dbname.as_str(), c.sslmode), ("bü \"x\"/..", SslMode::Require));
    // Only @, / and % need escaping in a password.
    assert_eq!(password(&ok("postgres://u:a:b?c=d&e@h/db")), Some("a:b?c=d&e"));
    assert_eq!(ok("postgres://u@/db").hosts[0].0, files::default_socket_dir());
}

#[test]
fn key_value_strings() {
    let c = ok(r"host=h1,h2 port=1 user = u password='a b\'c\\' dbname=d\ b options=''");
    assert_eq!(hosts_of(&c), [("h1", 1), ("h2", 1)]);
    assert_eq!((password(&c), c.dbname.as_str(), c.options.as_deref()), (Some(r"a b'c\"), "d b", None));
}

#[test]
fn environment_fills_what_the_string_leaves_out() {
    let variables = [
        ("PGHOST", "envhost"),
        ("PGPORT", "7"),
        ("PGUSER", "envuser"),
        ("PGPASSWORD", "envpw"),
        ("PGDATABASE", "envdb"),
        ("PGSSLMODE", "disable"),
        ("PGCONNECT_TIMEOUT", "9"),
        ("PGOPTIONS", "-c x=y"),
        ("PGAPPNAME", "ignored"),
    ];
    let c = resolve("postgres://", &env(&variables)).expect("resolve").connection;
    assert_eq!(hosts_of(&c), [("envhost", 7)]);
    assert_eq!((c.user.as_str(), password(&c), c.dbname.as_str()), ("envuser", Some("envpw"), "envdb"));
    assert_eq!((c.sslmode, c.connect_timeout.as_secs()), (SslMode::Disable, 9));
    assert_eq!(c.options.as_deref(), Some("-c x=y"));
    let found = resolve("postgres://u:p@h:1/d?sslmode=require", &env(&variables)).expect("resolve");
    let c = found.connection;
    assert_eq!(hosts_of(&c), [("h", 1)]);
    assert_eq!((c.user.as_str(), password(&c), c.dbname.as_str()), ("u", Some("p"), "d"));
    assert_eq!(c.sslmode, SslMode::Require);
    assert!(found.password_in_dsn);
}

/// What a fuzzer found: a URL behind the wrong word, and all of it in the error.
#[test]
fn a_url_that_is_taken_for_a_service_or_its_file_is_not_repeated() {
    for dsn in ["service=[u:S3CRET@h:5432,[::1]/d", "service=a servicefile=u:S3CRET@h"] {
        let text = issues(dsn, &[("HOME", "/nonexistent")]);
        assert!(text.contains("service") && !text.contains("S3CRET"), "{text}");
    }
}

#[test]
fn services_stand_between_string_and_environment() {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("services");
    let text = "# comment\n[other]\nhost=wrong\n\n[mine]\nhost=svchost\nuser=svcuser\npassword=svc pw\nuser=second\n[mine]\nport=99\n";
    std::fs::write(&file, text).expect("write");
    let file = file.to_str().expect("utf-8");
    let variables = [("PGSERVICEFILE", file), ("PGSERVICE", "mine"), ("PGHOST", "envhost"), ("PGPORT", "7")];
    let c = resolve("postgres:///urldb", &env(&variables)).expect("resolve").connection;
    assert_eq!(hosts_of(&c), [("svchost", 7)], "the service wins over PGHOST and has no port");
    assert_eq!((c.user.as_str(), password(&c), c.dbname.as_str()), ("svcuser", Some("svc pw"), "urldb"));
    let c = resolve("service=mine user=me", &env(&variables)).expect("resolve").connection;
    assert_eq!((c.user.as_str(), hosts_of(&c)), ("me", vec![("svchost", 7)]));

    // A home's file, then the system's.
    let home = dir.path().join("home");
    let system = dir.path().join("system");
    for (folder, name, content) in
        [(&home, ".pg_service.conf", "[a]\nhost=ha\n"), (&system, "pg_service.conf", "[b]\nhost=hb\n")]
    {
        std::fs::create_dir(folder).expect("mkdir");
        std::fs::write(folder.join(name), content).expect("write");
    }
    let variables =
        [("HOME", home.to_str().expect("utf-8")), ("PGSYSCONFDIR", system.to_str().expect("utf-8"))];
    for (name, host) in [("a", "ha"), ("b", "hb")] {
        let c = resolve(&format!("service={name}"), &env(&variables)).expect("resolve").connection;
        assert_eq!(hosts_of(&c), [(host, 5432)]);
    }
    let text = issues("service=c", &variables);
    assert!(text.contains("the service that it names is not defined"), "{text}");
    assert!(text.contains(".pg_service.conf"), "{text}");
    let named: Vec<_> = [("PGSERVICEFILE", "/nonexistent/x")].into_iter().chain(variables).collect();
    assert!(issues("service=a", &named).contains("service file /nonexistent/x: "));

    std::fs::write(home.join(".pg_service.conf"), "[a]\nhots=h\nsslcrl=/x\nservice=b\nnonsense\n")
        .expect("write");
    let text = issues("service=a", &variables);
    for part in [
        "line 2 has an unknown name",
        "did you mean host?",
        "sslcrl is not supported",
        "name another",
        "line 5 has no =",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn password_file() {
    let home = tempfile::tempdir().expect("tempdir");
    let file = home.path().join(".pgpass");
    let text = "# comment:*:*:*:no\n\
                h1:5432:db:u:one\n\
                *:7:*:u:wild\n\
                ho\\:st:*:d\\\\b:*:pass\\:wo\\\\rd:ignored tail\n\
                \\*:*:*:*:never\n\
                localhost:*:*:*:local\n\
                broken line\n";
    std::fs::write(&file, text).expect("write");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let home = home.path().to_str().expect("utf-8");
    let find = |dsn: &str, more: &[(&'static str, &'static str)]| {
        let mut variables: Vec<(&str, &str)> = vec![("HOME", home), ("PGUSER", "u")];
        variables.extend(more);
        let resolved = resolve(dsn, &env(&variables)).unwrap_or_else(|e| panic!("{dsn}: {e:?}"));
        assert_eq!(resolved.warnings, Vec::<String>::new());
        resolved.connection.password.map(|p| p.expose().to_string())
    };
    assert_eq!(find("postgres://h1/db", &[]).as_deref(), Some("one"));
    assert_eq!(find("postgres://h1/other", &[]), None);
    assert_eq!(find("postgres://anything:7/x", &[]).as_deref(), Some("wild"));
    assert_eq!(find(r"host=ho:st dbname=d\\b", &[]).as_deref(), Some(r"pass:wo\rd"));
    assert_eq!(find("host='' dbname=x", &[]).as_deref(), Some("local"), "the local socket");
    assert_eq!(find("postgres://h1/db", &[("PGPASSWORD", "env")]).as_deref(), Some("env"));
    assert_eq!(find("postgres://h1/db", &[("PGPASSFILE", "/nonexistent/pgpass")]), None);

    // A server in a container has its own name there, or its service's.
    let inside = |name: &str| {
        let env = env(&[("HOME", home), ("PGUSER", "u")]);
        resolve_in_container("postgres:///db", name, &env).expect("resolve").connection
    };
    assert_eq!(password(&inside("h1")), Some("one"));
    assert_eq!(password(&inside("site_db_1")), None);
    let named = |host: &str| inside("h1").password_file_server(host, 5432);
    assert_eq!([named("site_db_1"), named("::1")], ["site_db_1:5432", r"\:\:1:5432"]);
    assert_eq!(named(&files::default_socket_dir()), "localhost:5432");

    let text = issues("postgres://h1:5432,h2:7/db", &[("HOME", home), ("PGUSER", "u")]);
    assert!(text.contains("same password for all hosts"), "{text}");

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).expect("chmod");
    let resolved = resolve("postgres://u@h1/db", &env(&[("HOME", home)])).expect("resolve");
    assert_eq!(password(&resolved.connection), None);
    assert!(resolved.warnings[0].contains("mode 0640") && resolved.warnings[0].contains("chmod 600"));
}

#[test]
fn certificates() {
    let home = tempfile::tempdir().expect("tempdir");
    std::fs::create_dir(home.path().join(".postgresql")).expect("mkdir");
    let root = home.path().join(".postgresql/root.crt");
    std::fs::write(&root, "").expect("write");
    let variables = [("HOME", home.path().to_str().expect("utf-8"))];
    let c = resolve("postgres://u@h/db?sslmode=verify-full", &env(&variables)).expect("resolve").connection;
    assert_eq!(c.sslrootcert, Some(root));
    let c = ok("postgres://u@h/db?sslrootcert=system");
    assert_eq!((c.sslmode, c.sslrootcert), (SslMode::VerifyFull, Some("system".into())));
    assert!(issues("postgres://u@h/db?sslrootcert=system&sslmode=require", &[]).contains("verify-full only"));
    assert!(issues("postgres://u@h/db?sslmode=verify-ca", &[]).contains("needs a root certificate"));
    assert!(issues("postgres://u@h/db?sslcert=client.crt", &[]).contains("sslcert must be an absolute path"));
    // No TLS over a Unix socket, so nothing to verify.
    assert_eq!(ok("postgres://u@%2Ftmp/db?sslmode=verify-full").sslrootcert, None);
}

#[test]
fn refusals_name_the_key_and_the_next_step() {
    for (dsn, expected) in [
        ("app", "neither a postgres:// URL nor key=value"),
        ("mysql://u@h/db", "neither"),
        ("postgres://u@h/db?target_session_attrs=any", "target_session_attrs is not supported"),
        ("postgres://u@h/db?hostaddr=1.2.3.4", "write the address as the host"),
        (
            "postgres://u@h/db?sslmod=require",
            "parameter 1 after the ? has an unknown name (hint: did you mean sslmode?)",
        ),
        ("postgres://u@h/db?a=b&sslcrl=/x", "sslcrl is not supported"),
        ("postgres://u@h/db?sslmode", "has no ="),
        ("postgres://u@h/db?sslmode=tls", "known are: disable, allow, prefer"),
        ("postgres://u@h:0/db", "port is not a number"),
        ("postgres://u@h:65536/db", "port is not a number"),
        ("postgres://u@h1:1,h2:2/db?port=1,2,3", "3 ports for 2 hosts"),
        ("postgres://u@[::1/db", "no closing bracket"),
        ("postgres://u@[::1]x/db", "follows an IPv6 address"),
        ("postgres://u@h/%zz", "database name has a %"),
        ("postgres://u@h/%00", "NUL"),
        ("postgres://u@h/%ff", "not UTF-8"),
        ("postgres://u@h/db?connect_timeout=0", "libpq waits for ever at 0"),
        ("postgres://u@%40abstract/db", "abstract"),
        ("postgres://u:p@w@h/db", "@ is %40"),
        ("postgres://u@h/a/b", "/ is %2F"),
        ("host=h user=u password='a b", "setting 3 has no closing quote"),
        ("host=h user=u password=a b", "setting 4 has no ="),
    ] {
        let text = issues(dsn, &[]);
        assert!(text.contains(expected), "{dsn}: {text}");
    }
    let text = issues("postgres://u@h/db", &[("PGGSSENCMODE", "require"), ("PGHOSTADDR", "")]);
    assert_eq!(
        text,
        "environment variable PGGSSENCMODE is set, which opsd does not support (hint: unset it for opsd)"
    );
    // All at once.
    let text = issues("postgres://u@h:x/db?sslmode=no&connect_timeout=soon", &[]);
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn describe_is_a_url_without_secrets() {
    assert_eq!(
        ok("postgres://u:pw@h1:1,[::1]:2/a%2Fb?password=x").describe(),
        "postgres://u@h1:1,[::1]:2/a%2Fb"
    );
    assert_eq!(ok("postgres://u%40x@%2Ftmp/db").describe(), "postgres://u%40x@%2Ftmp:5432/db");
    assert_eq!(ok("postgres://u@h/db").with_dbname("x y").describe(), "postgres://u@h:5432/x%20y");
}

#[test]
fn a_password_on_the_command_line_is_refused() {
    for dsn in ["postgres://u:pw@h/db", "postgres://u@h/db?password=pw", "host=h user=u password=pw"] {
        let error = Connection::from_arg_in(dsn, &env(&[])).expect_err(dsn);
        assert_eq!(error.kind(), crate::error::Kind::Usage);
        assert!(error.hint().expect("hint").contains("PGPASSWORD"), "{error:?}");
        assert!(!format!("{error:?}").contains("pw"), "{error:?}");
    }
    let c = Connection::from_arg_in("postgres://u@h/db", &env(&[("PGPASSWORD", "pw")]))
        .expect("from environment");
    assert_eq!(password(&c.connection), Some("pw"));
    assert!(Connection::looks_like_dsn("postgres://h/db") && Connection::looks_like_dsn("host=h"));
    assert!(!Connection::looks_like_dsn("main"));
}

/// Percent-encodes everything, so that any text is legal in a URL.
fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// Quotes as key=value strings want it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC{0,60}") {
        for dsn in [text.clone(), format!("postgres://{text}"), format!("host={text}"), format!("postgres://u@h/d?{text}")] {
            let _ = resolve(&dsn, &env(&[]));
        }
    }

    #[test]
    fn structured_noise_never_panics(text in "[a-z@:/?&=%,'\\[\\] \\\\0-9]{0,40}") {
        for dsn in [format!("postgres://{text}"), format!("user={text}")] {
            let _ = resolve(&dsn, &env(&[]));
        }
    }

    #[test]
    fn any_text_round_trips(user in "[^\\x00]{1,12}", pw in "[^\\x00]{1,12}", db in "[^\\x00]{1,12}") {
        let url = format!("postgres://{}:{}@h/{}", encoded(&user), encoded(&pw), encoded(&db));
        let settings = format!("host=h user={} password={} dbname={}", quoted(&user), quoted(&pw), quoted(&db));
        for dsn in [url, settings] {
            let c = ok(&dsn);
            prop_assert_eq!(&ok(&format!("host=h user=u {}", dbname_argument(&db))).dbname, &db);
            prop_assert_eq!((c.user.as_str(), password(&c), c.dbname.as_str()), (user.as_str(), Some(pw.as_str()), db.as_str()));
            // What describe prints can be read again.
            let again = ok(&c.describe());
            prop_assert_eq!((again.user, again.dbname, again.hosts), (c.user, c.dbname, c.hosts));
        }
    }

    /// The password in every form, whole or so malformed that parsing goes wrong inside it.
    #[test]
    fn a_password_never_shows(odd in "[@:/?#&=%,'\" \\\\\\[\\]]{0,4}") {
        let pw = format!("k4n{odd}ary{odd}s3cret");
        let forms = [
            format!("postgres://u:{}@h/db", encoded(&pw)),
            format!("postgres://u:{pw}@h/db"),
            format!("postgres://u@h/db?password={pw}"),
            format!("postgres://u@h/db?pasword={pw}"),
            format!("postgres://u:{pw}"),
            format!("host=h user=u password={}", quoted(&pw)),
            format!("host=h user=u password={pw}"),
            format!("host=h user=u password {pw}"),
            format!("host=h user=u password='{pw}"),
        ];
        for dsn in forms {
            let shown = match resolve(&dsn, &env(&[])) {
                Ok(found) => format!("{found:?} {}", found.connection.describe()),
                Err(issues) => format!("{issues:?}"),
            };
            for piece in ["k4n", "ary", "s3cret"] {
                prop_assert!(!shown.contains(piece), "{} of {} in {}", piece, dsn, shown);
            }
        }
    }
}

/// Who writes a URL looks there.
#[test]
fn readme_and_the_starter_file_list_the_supported_keys() {
    let after = |text: &str, mark: &str| text.split_once(mark).expect(mark).1.to_owned();
    let keys = |text: String| -> Vec<String> {
        text.replace("and ", ", ")
            .split(',')
            .map(|word| word.trim_matches(|c: char| !c.is_ascii_lowercase()).to_owned())
            .filter(|word| !word.is_empty())
            .collect()
    };
    let readme = after(include_str!("../../../README.md"), "Of libpq's settings ");
    let readme = keys(readme.split_once(" are supported").expect("its end").0.to_owned());
    let starter = after(include_str!("../../cli/config/starter.toml"), " Known are ");
    let starter = keys(starter.split_once(';').expect("its end").0.to_owned());
    let known: Vec<&str> = SUPPORTED.iter().map(|(key, _)| *key).collect();
    assert_eq!(readme, known);
    assert_eq!(starter, known);
}
