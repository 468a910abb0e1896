//! Mistakes, each with its line, key and hint; and noise, which never panics.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::keys;
use crate::config::secret::Secret;

/// Lines are counted in the tables below: change it only at the end.
const BASE: &str = r#"site = "example"
[repository]
url = "s3://bucket/prefix"
[encryption]
recipients = ["KEY1", "KEY2"]
[postgres.main]
url = "postgres://opsd@db.internal/app"
[backup.db]
source = { postgres = "main" }
"#;

fn keys() -> (String, String) {
    static KEYS: std::sync::OnceLock<(String, String)> = std::sync::OnceLock::new();
    let make = || keys::generate_identity(chrono::DateTime::UNIX_EPOCH).1;
    KEYS.get_or_init(|| (make(), make())).clone()
}

fn env(name: &str) -> Option<String> {
    match name {
        "HOME" => Some("/nonexistent".into()),
        "PW" => Some("v4riable".into()),
        "SITE" => Some("fromenv".into()),
        _ => None,
    }
}

fn parsed(text: &str) -> Parsed {
    let (one, two) = keys();
    parse(&text.replace("KEY1", &one).replace("KEY2", &two), Path::new("opsd.toml"), &env)
}

fn config(text: &str) -> Config {
    let parsed = parsed(text);
    assert_eq!(parsed.mistakes, [], "{text}");
    parsed.config.expect("no mistakes, so a configuration")
}

/// Findings as `line key: message (hint)`.
fn lines(findings: &[Finding]) -> Vec<String> {
    findings
        .iter()
        .map(|f| {
            let hint = f.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
            format!("{} {}: {}{hint}", f.line.unwrap_or(0), f.key, f.message)
        })
        .collect()
}

#[test]
fn defaults() {
    let config = config(BASE);
    assert_eq!(config.site, "example");
    let Repository { location, endpoint, region, path_style, lock } = config.repository;
    assert_eq!(location, Location::S3 { bucket: "bucket".into(), prefix: "prefix".into() });
    assert_eq!((endpoint, region, path_style, lock), (None, None, false, None));
    let job = &config.backup["db"];
    assert_eq!((job.name.as_str(), job.postgres.as_str()), ("db", "main"));
    assert_eq!(job.databases, Databases::Url);
    assert_eq!((job.streams, job.compression), (2, 1));
    assert_eq!((job.part_size, job.large_table), (8 << 20, 64 << 20));
    assert_eq!((job.rpo, job.retention), (None, None));
    assert!(job.verify.scratch_dir.starts_with("/var/tmp"));
    assert_eq!(job.verify.scratch_user, None);
    assert_eq!(config.postgres["main"].connection.sslmode, crate::config::SslMode::Prefer);
}

#[test]
fn everything() {
    let config = config(
        r#"
site = "${SITE}"
[repository]
url = "s3://bucket/a/b/"
endpoint = "https://s3.example.org/"
region = "eu-1"
path_style = true
lock = { mode = "compliance", days = 30 }
[encryption]
recipients = ["KEY1", "KEY2"]
identity_file = "/etc/opsd/identity.txt"
sign_key_file = "/etc/opsd/sign.key"
trusted_keys = ["RWSB2Sl4XWvI/Aa6B1kq6bKh0lVf6DxcD7u1xhxibTo4jiiFXaDNR9xn"]
[postgres.main]
url = "postgres://opsd:${PW}@db.internal:5432/app"
bin_dir = "/usr/lib/postgresql/17/bin"
[postgres.boxed]
url = "host=/run/postgresql user=opsd dbname='$${x}'"
tool_prefix = ["docker", "exec", "-i", "db"]
[backup.db]
source = { postgres = "main", databases = ["app", "../x \"y\""] }
streams = 4
compression = 1
part_size = "16MiB"
large_table = "1GiB"
exclude_table_data = ["public.sessions", "log*.?"]
include_extension_tables = ["mq.q_*"]
rpo = "1d12h"
retention = { last = 3, daily = 30, weekly = 8, monthly = 12, yearly = 2 }
[backup.db.verify]
scratch_dir = "/srv/scratch"
scratch_user = "opsd-scratch"
assert = ["select count(*) > 0 from accounts where price = '$5'"]
[backup."all.of-it"]
source.postgres = "boxed"
source.databases = ["*"]
"#,
    );
    assert_eq!(config.site, "fromenv");
    assert_eq!(config.repository.location, Location::S3 { bucket: "bucket".into(), prefix: "a/b".into() });
    assert_eq!(config.repository.endpoint.as_deref(), Some("https://s3.example.org"));
    assert!(config.repository.path_style);
    assert_eq!(config.repository.lock, Some(ObjectLock { mode: LockMode::Compliance, days: 30 }));
    assert_eq!(config.encryption.trusted.backups.len(), 1);
    assert_eq!(config.encryption.trusted.verifications, config.encryption.trusted.backups);
    let password = config.postgres["main"].connection.password.as_ref().map(Secret::expose);
    assert_eq!(password, Some("v4riable"));
    assert_eq!(config.postgres["boxed"].connection.dbname, "${x}");
    assert_eq!(config.postgres["boxed"].tool_prefix, ["docker", "exec", "-i", "db"]);
    let job = &config.backup["db"];
    assert_eq!(job.databases, Databases::Named(vec!["app".into(), "../x \"y\"".into()]));
    assert_eq!(job.rpo, Some(Duration::from_secs(36 * 3600)));
    assert_eq!(job.retention, Some(Retention { last: 3, daily: 30, weekly: 8, monthly: 12, yearly: 2 }));
    assert_eq!(job.exclude_table_data, ["public.sessions", "log*.?"]);
    assert_eq!(job.include_extension_tables, ["mq.q_*"]);
    assert_eq!(job.verify.assert, ["select count(*) > 0 from accounts where price = '$5'"]);
    assert_eq!(config.backup["all.of-it"].databases, Databases::All);
    assert_eq!(
        parsed(&BASE.replace("s3://bucket/prefix", "file:///var/backups/opsd/"))
            .config
            .expect("a file repository")
            .repository
            .location,
        Location::File("/var/backups/opsd".into())
    );
}

/// One change of the base configuration each, and the mistake it must cause: line, key, what, hint.
#[test]
fn each_mistake_has_its_line_and_a_hint() {
    const RECIPIENTS: &str = r#"recipients = ["KEY1", "KEY2"]"#;
    const SOURCE: &str = r#"source = { postgres = "main" }"#;
    const S3: &str = r#""s3://bucket/prefix""#;
    const URL: &str = r#""postgres://opsd@db.internal/app""#;
    let job = |line: &str| format!("{SOURCE}\n{line}");
    let table: &[(&str, &str, &str)] = &[
        // site and names
        (r#"site = "example""#, "", "1 site: missing (site = \"NAME\" at the top"),
        (r#""example""#, "3", "1 site: must be a string, not an integer"),
        (r#""example""#, r#""""#, "1 site: is empty (names are ASCII letters"),
        (r#""example""#, r#""a/b""#, "1 site: is no valid name"),
        (r#""example""#, r#"".hidden""#, "1 site: is no valid name"),
        (r#""example""#, r#""verified-1""#, "1 site: may not start with verified-"),
        (r#""example""#, r#""CHANGE-ME""#, "1 site: CHANGE-ME is still to be filled in"),
        ("[backup.db]", "[backup.\"a b\"]", "8 backup.\"a b\": is no valid name"),
        ("[backup.db]", "[backup.verified-x]", "8 backup.verified-x: may not start with verified-"),
        // unknown keys and tables
        ("[backup.db]", "[runbook.main]\n[backup.db]", "8 runbook: unknown key (known are: site, repository"),
        ("[backup.db]", "[schedule.x]\n[backup.db]", "8 schedule: unknown key"),
        ("[backup.db]", "[backups.db]", "8 backups: unknown key (did you mean backup?)"),
        (SOURCE, &job("steams = 3"), "10 backup.db.steams: unknown key (did you mean streams?)"),
        (
            SOURCE,
            r#"source = { postgres = "main", database = ["x"] }"#,
            "9 backup.db.source.database: unknown key (did you mean databases?)",
        ),
        // repository
        ("[repository]\nurl = \"s3://bucket/prefix\"", "", "1 repository: missing"),
        ("url = \"s3://bucket/prefix\"", "", "2 repository.url: missing"),
        (S3, r#""gs://x/y""#, "3 repository.url: is neither s3:// nor file://"),
        (S3, r#""s3://""#, "3 repository.url: has no valid bucket name"),
        (S3, r#""s3://b/a//c""#, "3 repository.url: prefix has an empty"),
        (S3, r#""s3://b/../c""#, "3 repository.url: prefix has an empty, . or .."),
        (S3, r#""s3://AKIA:s3cret@b/c""#, "3 repository.url: credentials and options do not belong"),
        (S3, r#""file://var/x""#, "3 repository.url: must be file:// and an absolute path"),
        (S3, r#""file:///""#, "3 repository.url: must be file:// and an absolute path"),
        (S3, "\"file:///x\"\nregion = \"r\"", "4 repository.region: has no meaning for a file://"),
        (S3, "\"s3://b\"\nendpoint = \"s3.example.org\"", "4 repository.endpoint: must start with https://"),
        (
            S3,
            "\"s3://b\"\nendpoint = \"https://k:s3cret@h\"",
            "4 repository.endpoint: credentials and options",
        ),
        (
            S3,
            "\"s3://b\"\npath_style = \"yes\"",
            "4 repository.path_style: must be true or false, not a string",
        ),
        (S3, "\"s3://b\"\nlock = 30", "4 repository.lock: must be a table, not an integer"),
        (
            S3,
            "\"s3://b\"\nlock = { mode = \"governance\" }",
            "4 repository.lock.days: missing (lock = { mode = \"governance\", days = 30 })",
        ),
        (S3, "\"s3://b\"\nlock = { days = 3 }", "4 repository.lock.mode: missing (lock = {"),
        (
            S3,
            "\"s3://b\"\nlock = { mode = \"forever\", days = 3 }",
            "4 repository.lock.mode: is no mode of Object Lock (governance",
        ),
        (
            S3,
            "\"s3://b\"\nlock = { mode = \"governance\", days = 0 }",
            "4 repository.lock.days: must be from 1 to 36500",
        ),
        (
            S3,
            "\"file:///b\"\nlock = { mode = \"governance\", days = 3 }",
            "4 repository.lock: a file:// repository locks nothing",
        ),
        // encryption
        (RECIPIENTS, "", "4 encryption: no recipient (recipients = [\"age1…\"]"),
        (RECIPIENTS, "recipients = []", "5 encryption.recipients: no recipient"),
        (
            RECIPIENTS,
            "recipients = \"KEY1\"",
            "5 encryption.recipients: must be a list of strings, not a string",
        ),
        (
            RECIPIENTS,
            "recipients = [\n  \"KEY1\",\n  \"age1xyz\",\n]",
            "7 encryption.recipients[1]: not a valid age public key",
        ),
        (
            RECIPIENTS,
            "recipients = [\"KEY1\", \"KEY1\"]",
            "5 encryption.recipients[1]: this recipient is listed twice",
        ),
        (
            RECIPIENTS,
            "recipients = [\"KEY1\", \"AGE-SECRET-KEY-1S3CRET\"]",
            "5 encryption.recipients[1]: this is a secret identity",
        ),
        (
            RECIPIENTS,
            "recipients = [\"KEY1\", \"ssh-dss AAAA\"]",
            "5 encryption.recipients[1]: not a valid SSH public key",
        ),
        (
            RECIPIENTS,
            "recipients = [\"KEY1\", \"nonsense\"]",
            "5 encryption.recipients[1]: not an age or SSH public key",
        ),
        (
            RECIPIENTS,
            "recipients = [\"KEY1\"]\nrecipients_file = \"/nonexistent/x\"",
            "6 encryption.recipients_file: cannot read it",
        ),
        (
            "KEY2\"]",
            "KEY2\"]\nidentity_file = \"identity.txt\"",
            "6 encryption.identity_file: must be an absolute path",
        ),
        (
            "KEY2\"]",
            "KEY2\"]\nsign_key_file = \"~/sign.key\"",
            "6 encryption.sign_key_file: must be an absolute path (~ is not expanded",
        ),
        (
            "KEY2\"]",
            "KEY2\"]\ntrusted_keys = [\"RWx\"]",
            "6 encryption.trusted_keys[0]: not a minisign public key",
        ),
        // postgres
        (URL, r#""""#, "7 postgres.main.url: is empty"),
        (&format!("url = {URL}"), "", "6 postgres.main.url: missing"),
        (URL, r#""postgres://opsd@h:port/app""#, "7 postgres.main.url: port is not a number"),
        (
            URL,
            r#""postgres://opsd@h/app?sslnegotiation=direct""#,
            "7 postgres.main.url: sslnegotiation is not supported",
        ),
        (
            URL,
            r#""postgres://opsd:${MISSING}@h/app""#,
            "7 postgres.main.url: environment variable MISSING is not set",
        ),
        (
            URL,
            r#""postgres://opsd:${PW@h/app""#,
            "7 postgres.main.url: ${ without } (write $${ for a literal ${)",
        ),
        (
            URL,
            r#""postgres://opsd:${a-b}@h/app""#,
            "7 postgres.main.url: what stands in ${…} is not the name",
        ),
        (
            URL,
            "\"postgres://opsd@h/app\"\nbin_dir = \"bin\"",
            "8 postgres.main.bin_dir: must be an absolute path",
        ),
        (
            URL,
            "\"postgres://opsd@h/app\"\nbin_dir = \"/b\"\ntool_prefix = [\"x\"]",
            "9 postgres.main.tool_prefix: stands beside bin_dir",
        ),
        (
            URL,
            "\"postgres://opsd@h/app\"\ntool_prefix = [\"env\", \"PGPASSWORD=s3cret\"]",
            "8 postgres.main.tool_prefix: a password on a command line",
        ),
        // backup
        (SOURCE, "", "8 backup.db.source: missing"),
        (SOURCE, "source = {}", "9 backup.db.source.postgres: missing"),
        (SOURCE, "source = \"main\"", "9 backup.db.source: must be a table, not a string"),
        (
            SOURCE,
            r#"source = { postgres = "mian" }"#,
            "9 backup.db.source.postgres: there is no such [postgres.…] (did you mean main?)",
        ),
        (SOURCE, r#"source = { postgres = "other" }"#, "(known are: main)"),
        (
            SOURCE,
            r#"source = { postgres = "main", databases = [] }"#,
            "9 backup.db.source.databases: is an empty list",
        ),
        (
            SOURCE,
            r#"source = { postgres = "main", databases = ["a", "a"] }"#,
            "9 backup.db.source.databases[1]: this database is listed twice",
        ),
        (
            SOURCE,
            r#"source = { postgres = "main", databases = ["*", "a"] }"#,
            "9 backup.db.source.databases: \"*\" already means every database",
        ),
        (
            SOURCE,
            r#"source = { postgres = "main", databases = [""] }"#,
            "9 backup.db.source.databases[0]: is empty",
        ),
        (
            SOURCE,
            r#"source = { postgres = "main", databases = ["a\u0000"] }"#,
            "9 backup.db.source.databases[0]: is no valid database name",
        ),
        (SOURCE, &job("streams = 0"), "10 backup.db.streams: must be from 1 to 64"),
        (SOURCE, &job("streams = 2.5"), "10 backup.db.streams: must be a whole number, not a float"),
        (SOURCE, &job("compression = 0"), "10 backup.db.compression: must be from 1 to 22"),
        (SOURCE, &job("compression = 23"), "10 backup.db.compression: must be from 1 to 22"),
        (SOURCE, &job("part_size = \"4MiB\""), "10 backup.db.part_size: is below 5MiB"),
        (SOURCE, &job("part_size = \"6GiB\""), "10 backup.db.part_size: is above 5GiB"),
        (
            SOURCE,
            &job("part_size = 8388608"),
            "10 backup.db.part_size: must be a size in quotes, as in \"8MiB\", not an integer",
        ),
        (SOURCE, &job("large_table = \"64MB\""), "10 backup.db.large_table: unknown unit of size"),
        (
            SOURCE,
            &job("exclude_table_data = [\"sessions\"]"),
            "10 backup.db.exclude_table_data[0]: must name schema and table (as in \"public.sessions\"",
        ),
        (SOURCE, &job("rpo = \"1 fortnight\""), "10 backup.db.rpo: not a duration"),
        (SOURCE, &job("rpo = \"24\""), "10 backup.db.rpo: a duration needs a unit"),
        (SOURCE, &job("rpo = \"0h\""), "10 backup.db.rpo: must be more than nothing"),
        (SOURCE, &job("retention = {}"), "10 backup.db.retention: keeps nothing"),
        (
            SOURCE,
            &job("retention = { daily = -1 }"),
            "10 backup.db.retention.daily: must be from 0 to 100000",
        ),
        (
            SOURCE,
            &job("retention = { dayly = 1, last = 1 }"),
            "10 backup.db.retention.dayly: unknown key (did you mean daily?)",
        ),
        (
            SOURCE,
            &job("[backup.db.verify]\nscratch_dir = \"tmp\""),
            "11 backup.db.verify.scratch_dir: must be an absolute path",
        ),
        (
            SOURCE,
            &job("[backup.db.verify]\nassert = \"select true\""),
            "11 backup.db.verify.assert: must be a list of strings",
        ),
        // TOML itself
        (SOURCE, "source = ", "9 : not valid TOML"),
        (SOURCE, &job(SOURCE), "10 : not valid TOML: duplicate key"),
    ];
    for (from, to, expected) in table {
        assert!(BASE.contains(from), "{from}");
        let parsed = parsed(&BASE.replacen(from, to, 1));
        let found = lines(&parsed.mistakes);
        assert!(
            found.iter().any(|f| f.contains(expected)),
            "{from} -> {to}\n  want {expected}\n  have {found:#?}"
        );
        // A hint may repeat nothing of the value, and one mistake must not cause a crowd.
        assert!(found.len() <= 2, "{to}: {found:#?}");
        assert!(!found.join(" ").to_lowercase().contains("s3cret"), "{found:#?}");
        assert!(parsed.config.is_none());
        for mistake in &parsed.mistakes {
            // What is no TOML has no keys.
            let has_key = !mistake.key.is_empty() || mistake.message.starts_with("not valid TOML");
            let has_hint = mistake.hint.as_ref().is_some_and(|hint| !hint.is_empty());
            assert!(has_key && mistake.line.is_some() && has_hint, "{mistake:?}");
        }
    }
}

#[test]
fn all_mistakes_at_once_in_the_order_of_the_file() {
    let parsed = parsed(
        r#"site = "a b"
[repository]
[encryption]
recipients = ["nonsense"]
[postgres.main]
url = "nonsense"
[backup.one]
source = { postgres = "nonsense" }
streams = 0
[backup.two]
streams = 0
[restore]
refresh_timeout = "0s"
[restore.settings]
"no setting" = "x"
"#,
    );
    let places: Vec<String> =
        parsed.mistakes.iter().map(|m| format!("{} {}", m.line.unwrap_or(0), m.key)).collect();
    assert_eq!(
        places,
        [
            "1 site",
            "2 repository.url",
            "4 encryption.recipients[0]",
            "6 postgres.main.url",
            "8 backup.one.source.postgres",
            "9 backup.one.streams",
            "10 backup.two.source",
            "11 backup.two.streams",
            "13 restore.refresh_timeout",
            "15 restore.settings.\"no setting\"",
        ]
    );
    let error = crate::config::finding::mistakes_error(Path::new("opsd.toml"), &parsed.mistakes);
    assert_eq!(error.kind(), crate::error::Kind::Usage);
    assert!(error.to_string().starts_with("10 mistakes in opsd.toml\n  opsd.toml:1: site: "), "{error}");
}

#[test]
fn recipients_file_is_read_and_its_mistakes_have_its_lines() {
    let file = tempfile::NamedTempFile::new().expect("tempfile");
    let (one, two) = keys();
    let text =
        BASE.replace(r#"recipients = ["KEY1", "KEY2"]"#, &format!("recipients_file = {:?}", file.path()));
    std::fs::write(file.path(), format!("# ours\n{one}\n\n{two}\n")).expect("write");
    assert_eq!(config(&text).encryption.recipients, [one.clone(), two]);
    std::fs::write(file.path(), format!("{one}\n\nnonsense\n")).expect("write");
    let found = parsed(&text).mistakes;
    assert_eq!((found.len(), found[0].line, found[0].path.as_path()), (1, Some(3), file.path()));
    std::fs::write(file.path(), "# nobody\n").expect("write");
    assert!(lines(&parsed(&text).mistakes)[0].starts_with("5 encryption.recipients_file: no recipient"));
}

#[test]
fn warnings() {
    let table = [
        ("", "", None),
        (r#"["KEY1", "KEY2"]"#, r#"["KEY1"]"#, Some("5 encryption.recipients: one recipient alone")),
        (
            r#"["KEY1", "KEY2"]"#,
            "[]\nidentity_file = \"/x\"",
            Some("5 encryption.recipients: no recipient: this host can restore"),
        ),
        (
            "?sslmode=verify-full&sslrootcert=system",
            "",
            Some("7 postgres.main.url: sslmode=prefer: whoever is between here and"),
        ),
        (
            "?sslmode=verify-full&sslrootcert=system",
            "?sslmode=require",
            Some(
                "7 postgres.main.url: sslmode=require: whoever is between here and db.internal may answer in its place",
            ),
        ),
        (
            "opsd@db.internal/app?sslmode=verify-full&sslrootcert=system",
            "opsd:${PW}@db.internal/app?sslmode=require",
            Some(
                "7 postgres.main.url: sslmode=require: whoever is between here and db.internal may answer in its \
                 place, because nobody checks its certificate (sslmode=verify-full with \
                 sslrootcert=/path/of/ca.crt; client tools whose libpq is older than 16 send the password in clear",
            ),
        ),
        (
            "opsd@db.internal/app?sslmode=verify-full&sslrootcert=system",
            "opsd:${PW}@db.internal/app?sslmode=require&require_auth=scram-sha-256,password",
            Some(
                "7 postgres.main.url: sslmode=require: whoever is between here and db.internal may answer in its \
                 place, because nobody checks its certificate, and is handed the password itself, which \
                 require_auth allows (sslmode=verify-full with sslrootcert=/path/of/ca.crt)",
            ),
        ),
        ("?sslmode=verify-full&sslrootcert=system", "?sslmode=require&sslrootcert=/x", None),
        ("db.internal/app?sslmode=verify-full&sslrootcert=system", "localhost/app?sslmode=require", None),
        ("opsd@db", "opsd:s3cret@db", Some("7 postgres.main.url: the password stands in this file")),
        ("opsd@db", "opsd:${PW}@db", None),
        (
            r#"source = { postgres = "main" }"#,
            "source = { postgres = \"main\" }\npart_size = \"1GiB\"",
            Some("10 backup.db.part_size: about 6 GiB of memory"),
        ),
    ];
    let base = BASE.replacen("/app\"", "/app?sslmode=verify-full&sslrootcert=system\"", 1);
    for (from, to, expected) in table {
        let parsed = parsed(&base.replacen(from, to, 1));
        assert!(parsed.config.is_some(), "{:?}", parsed.mistakes);
        let found = lines(&parsed.warnings);
        match expected {
            None => assert!(found.is_empty(), "{found:?}"),
            Some(expected) => assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}"),
        }
        assert!(!found.join(" ").contains("s3cret"));
    }
}

#[test]
fn secrets_never_show_in_debug() {
    let config = config(&BASE.replace("opsd@db", "opsd:s3cr%40t${PW}@db"));
    let shown = format!("{config:?}");
    assert!(!shown.contains("s3cr") && !shown.contains("v4riable"), "{shown}");
}

proptest! {
    #[test]
    fn noise_never_panics(text in "\\PC{0,80}", at in 0usize..300) {
        parsed(&text);
        // Noise inside an otherwise good file.
        let at = (0..=at.min(BASE.len())).rev().find(|i| BASE.is_char_boundary(*i)).unwrap_or(0);
        parsed(&format!("{}{text}{}", &BASE[..at], &BASE[at..]));
    }

    /// Any TOML value under any key: findings, no panic, and never a configuration from nonsense.
    #[test]
    fn any_value_anywhere(
        section in prop::sample::select(vec!["", "[repository]", "[encryption]", "[postgres]", "[postgres.x]", "[backup]", "[backup.x]", "[backup.x.source]", "[backup.x.verify]", "[backup.x.retention]"]),
        key in prop::sample::select(vec!["site", "url", "endpoint", "recipients", "recipients_file", "trusted_keys", "bin_dir", "tool_prefix", "source", "databases", "postgres", "streams", "part_size", "rpo", "retention", "last", "assert", "x", "\"\""]),
        value in prop::sample::select(vec!["1", "-1", "9223372036854775807", "1.5", "nan", "true", "\"\"", "\"${\"", "\"${PW}\"", "\"x\"", "[]", "[[1]]", "[\"\"]", "[{a=1}]", "{}", "{a=1}", "2026-01-01", "[\"*\", \"a\"]"]),
    ) {
        let parsed = parsed(&format!("{section}\n{key} = {value}\n"));
        prop_assert!(parsed.config.is_none() && !parsed.mistakes.is_empty());
    }
}
