//! ICU and money: what depends on how a server was built, and on the locales of its host.
//!
//! The servers of `make setup` have no ICU; the distribution's package, which it installs too, has.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::compare::{assert_same, assert_same_content, db, plain_restore};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::{
    self, Options, SUPERUSER, Server, bin_dir, distribution, expect_success, unique,
};
use crate::support::sets::{back_up, complete, directory, listed, result};

/// A site of one database on a server with ICU.
pub fn icu() -> (Server, Opsd, PathBuf) {
    let (major, bin) = distribution();
    let server = Server::start(major, &Options { bin_dir: Some(bin.clone()), ..Options::default() });
    let provider = if major >= 15 { "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE'" } else { "" };
    server.psql("postgres", &format!("CREATE DATABASE plain TEMPLATE template0 {provider}"));
    server.psql("postgres", &format!("CREATE DATABASE named TEMPLATE template0 {provider}"));
    server.psql(
        "plain",
        "CREATE TABLE t (word text UNIQUE); INSERT INTO t VALUES ('Äpfel'), ('Zebra'), ('apfel')",
    );
    server.psql(
        "named",
        r#"CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
           CREATE TABLE words (word text COLLATE "de-x-icu" PRIMARY KEY, folded text COLLATE ci UNIQUE);
           INSERT INTO words VALUES ('Äpfel', 'ÄPFEL'), ('apfel', 'Straße'), ('Zebra', 'zebra');
           INSERT INTO words SELECT 'w' || i, 'F' || i FROM generate_series(1, 500) i;
           CREATE INDEX ON words (word COLLATE "sv-x-icu");
           CREATE TABLE parts (word text COLLATE "de-x-icu") PARTITION BY RANGE (word);
           CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('a') TO ('o');
           CREATE TABLE parts_o PARTITION OF parts FOR VALUES FROM ('o') TO (MAXVALUE);
           INSERT INTO parts VALUES ('ähnlich'), ('öffentlich'), ('zahl')"#,
    );
    let mut opsd = Opsd::new(&server, &["named"]);
    opsd.postgres.set("bin_dir", quoted(bin.to_str().unwrap()));
    opsd.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    (server, opsd, bin)
}

#[test]
fn icu_collations_come_back_where_there_is_icu() {
    let (server, opsd, _) = icu();
    back_up(&opsd);
    let run = opsd.ok(&["restore", "--verify", "--json"]);
    assert_eq!(result(&run)["verdict"], "proven", "{run}");
    opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, "again"), "--create"]);
    let plain = plain_restore(db(&server, "named"));
    assert_same(db(&server, &plain), db(&server, "again"));
    assert_same_content(db(&server, "named"), db(&server, "again"));
    let locale = "SELECT to_jsonb(d) ->> 'datlocprovider', coalesce(to_jsonb(d) ->> 'daticulocale', to_jsonb(d) ->> 'datlocale')
                    FROM pg_database d WHERE datname = current_database()";
    assert_eq!(server.psql("again", locale), server.psql("named", locale));
    assert_eq!(server.psql("again", "SELECT count(*) FROM words WHERE folded = 'äpfel'"), "1");
}

#[test]
fn a_host_without_icu_says_so_and_accuses_nobody() {
    let (server, mut opsd, bin) = icu();
    let id = back_up(&opsd);
    opsd.postgres.set("bin_dir", quoted(bin_dir(server.major).to_str().unwrap()));
    let fragments = ["needs collation", "\"de-x-icu\" (icu)", "\"und-u-ks-level2\" (icu)", "ICU", "bin_dir"];
    let run = opsd.run(&["restore", "--verify", "--json"]).expect_failure(1, &fragments);
    assert_eq!(result(&run)["verdict"], "failed", "{run}");
    assert_eq!(listed(&opsd)[0].verdict.as_deref(), Some("failed"), "nothing is said of the set");
    assert_eq!(complete(&opsd), [id]);
    let target = postgres::shared(server.major);
    let name = unique("no_icu");
    let to = target.socket_url(SUPERUSER, &name);
    let run = opsd.run(&["restore", "db", "--to", &to, "--create"]);
    if server.major >= 15 {
        run.expect_failure(1, &["locale \"de-DE\" of provider icu", "ICU", "hint: ", "empty database"]);
    } else {
        run.expect_failure(1, &fragments);
    }
    assert!(!target.databases().contains(&name));
    // Another locale of the database's own is the operator's choice; a collation by name is not.
    target.create_database(&name);
    opsd.run(&["restore", "db", "--to", &to]).expect_failure(1, &fragments);
    target.drop_database(&name);

    // A database's own locale falls back, and the report says so.
    if server.major >= 15 {
        opsd.job.set("source", "{ postgres = \"main\", databases = [\"plain\"] }");
        // A pg_dump of an older release than its server carries what no older server understands.
        opsd.postgres.set("bin_dir", quoted(bin.to_str().unwrap()));
        back_up(&opsd);
        opsd.postgres.set("bin_dir", quoted(bin_dir(server.major).to_str().unwrap()));
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        let result = result(&run);
        assert_eq!(result["verdict"], "proven", "{run}");
        let warnings = result["warnings"].to_string();
        assert!(warnings.contains("of provider icu is not available") && warnings.contains("de-DE"), "{run}");
    }
}

/// Makes locales in a directory of the test's own, where the host has the sources; else it has them all.
pub fn locales(directory: &Path, names: &[&str]) {
    for name in names {
        let language = name.split('.').next().unwrap();
        if Path::new("/usr/share/i18n/locales").join(language).exists() {
            let mut make = Command::new("localedef");
            make.args(["--no-archive", "-i", language, "-f", "UTF-8"]);
            expect_success(make.arg(directory.join(name)));
        }
    }
}

/// Money is text in the locale of whoever reads it: neither the sign, nor the point, nor the number of
/// digits behind it may get in the way on a host that knows none of these locales.
#[test]
fn money_of_any_locale_is_proven_and_comes_back() {
    let made = tempfile::tempdir().unwrap();
    std::fs::set_permissions(made.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    locales(made.path(), &["de_DE.UTF-8", "ja_JP.UTF-8"]);
    let env = [("LOCPATH", made.path().to_str().unwrap())];
    let options = Options { env: &env, initdb: &["--locale=C"], ..Options::default() };
    let server = Server::start(postgres::default_major(), &options);
    for (locale, sign) in [("de_DE.UTF-8", "€"), ("ja_JP.UTF-8", "￥")] {
        let (name, again) = (unique("money"), unique("again"));
        server.create_database(&name);
        server.psql(&name, &format!("ALTER DATABASE {name} SET lc_monetary = '{locale}'"));
        server.psql(
            &name,
            "CREATE TABLE prices (id serial, price money DEFAULT '1234' CHECK (price > '-92233720368547'));
             INSERT INTO prices DEFAULT VALUES;
             INSERT INTO prices (price) SELECT (i * 1234.56)::numeric::money FROM generate_series(-300, 300) i;
             INSERT INTO prices (price) VALUES (NULL), (9e14::numeric::money);
             CREATE INDEX ON prices (price) WHERE price > '5'",
        );
        assert!(server.psql(&name, "SELECT price FROM prices WHERE id = 1").contains(sign));
        let mut opsd = Opsd::new(&server, &[&name]);
        opsd.env("PATH", format!("{}:/usr/bin:/bin", bin_dir(server.major).display()));
        let id = back_up(&opsd);
        let run = opsd.ok(&["restore", "--verify", "--json"]);
        assert_eq!(result(&run)["verdict"], "proven", "{run}");
        opsd.ok(&["restore", "db", "--to", &server.socket_url(SUPERUSER, &again), "--create"]);
        assert_same_content(db(&server, &name), db(&server, &again));
        let look = "SELECT sum(price), count(*), current_setting('lc_monetary') FROM prices";
        assert_eq!(server.psql(&again, look), server.psql(&name, look));
        server.psql(&again, "INSERT INTO prices DEFAULT VALUES");
        let first =
            "SELECT DISTINCT price FROM prices WHERE id IN (SELECT max(id) FROM prices UNION SELECT 1)";
        assert_eq!(server.psql(&again, first), server.psql(&name, "SELECT price FROM prices WHERE id = 1"));
        let restore_md = std::fs::read_to_string(directory(&opsd, &id).join("RESTORE.md")).unwrap();
        assert!(
            restore_md.contains(
                "export PGOPTIONS='-c array_nulls=on -c transform_null_equals=off -c lc_monetary=C'"
            ),
            "{restore_md}"
        );
    }
}
