//! `RESTORE.md`: how to restore this very set with age, zstd and pg_restore alone.
//!
//! It is stored in plain text beside the set, so it names objects and databases and nothing else.

use crate::set::manifest::{Locale, Manifest, Object, Stream};

/// Databases that initdb makes.
const EVERYWHERE: [&str; 2] = ["postgres", "template1"];

/// The document for a set whose manifest is final but for `restore_md` itself.
pub fn render(manifest: &Manifest) -> String {
    let mut text = String::new();
    let mut line = |l: &str| {
        text.push_str(l);
        text.push('\n');
    };
    line(&format!("# Restoring backup {} of {}/{} without opsd", manifest.id, manifest.site, manifest.job));
    line("");
    line(&format!(
        "Taken {} UTC from PostgreSQL {} with pg_dump {}.",
        manifest.started.format("%Y-%m-%d %H:%M:%S"),
        manifest.server.version,
        manifest.pg_dump_version
    ));
    line("You need `age`, `zstd`, `grep`, `psql` and `pg_restore` of that version or newer, this folder");
    line("downloaded whole, and an age identity (here `identity.txt`) for one of these recipients:");
    line("");
    for recipient in &manifest.recipients {
        line(&format!("- `{recipient}`"));
    }
    line("");
    line("`psql`, `createdb` and `pg_restore` connect as PGHOST, PGPORT and PGUSER say: name the server to");
    line("restore to, and a superuser there, before you begin.");
    line("");
    line("Restoring runs code that the database's owners wrote. Do it on a server where that is");
    line("acceptable.");
    line("");
    line("## 1. Check what you downloaded");
    line("");
    line("A stream that breaks must not look whole:");
    line("");
    line("```sh");
    line("set -o pipefail");
    line("```");
    line("");
    line("If the set is signed (there is a `manifest.json.minisig`), check it with your public key:");
    line("");
    line("```sh");
    line("minisign -Vm manifest.json -P YOUR_PUBLIC_KEY");
    line("```");
    line("");
    line("Then the objects, against the sums in `manifest.json`:");
    line("");
    line("```sh");
    line("sha256sum -c <<'EOF'");
    for object in manifest.objects().filter(|o| o.key != crate::set::RESTORE_MD) {
        line(&format!("{}  {}", object.sha256, object.key));
    }
    line("EOF");
    line("```");
    if let Some(globals) = &manifest.globals {
        line("");
        line("## 2. Roles");
        line("");
        line("On a new server. Roles that exist already get the attributes and passwords of the backup, the");
        line(
            "superuser's too: on a server that is in use, look first (put `less` in the place of `psql`) and",
        );
        line(
            "take only what is missing. Every other error is shown, and is one: a tablespace, for instance,",
        );
        line("whose directory is missing.");
        line("");
        line("```sh");
        line(&format!("{} |", unseal(globals)));
        line("  LC_ALL=C PGOPTIONS='-c lc_messages=C' psql -X -d postgres 2> roles.txt ||");
        line("  { cat roles.txt; false; }");
        line("errors=$(grep -E 'ERROR|FATAL' roles.txt | grep -v ' already exists$') || true");
        line("rm roles.txt");
        line("test -z \"$errors\" || { echo \"$errors\"; false; }");
        line("```");
    }
    for database in &manifest.databases {
        line("");
        line(&format!("## Database {}", markdown_code(&database.name)));
        line("");
        let locale = &database.locale;
        if EVERYWHERE.contains(&database.name.as_str()) {
            line("Every server has this database already; see that it is empty:");
            line("");
            line("```sh");
        } else {
            line("An empty database with the same encoding and locale:");
            line("");
            line("```sh");
            line(&format!(
                "createdb -T template0 -E {} --lc-collate={} --lc-ctype={}{} -- {}",
                shell(&locale.encoding),
                shell(&locale.collate),
                shell(&locale.ctype),
                provider(locale, manifest.server.version_num),
                shell(&database.name)
            ));
        }
        line(&format!("export PGDATABASE={}", shell(&database.name)));
        let monetary = locale.monetary.as_str();
        if !monetary.is_empty() {
            // Columns of type money are written in it.
            let option = format!("-c lc_monetary={}", monetary.replace('\\', "\\\\").replace(' ', "\\ "));
            line(&format!("export PGOPTIONS={}", shell(&option)));
        }
        line("```");
        line("");
        if locale.provider != "libc" && EVERYWHERE.contains(&database.name.as_str()) {
            line(&format!(
                "(The original used the {} locale {}.)",
                locale.provider,
                locale.locale.as_deref().unwrap_or("of the cluster")
            ));
            line("");
        }
        let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
        line("```sh");
        let to = format!("pg_restore -d {}", shell(&format!("dbname='{}'", conninfo(&database.name))));
        let atomic = if is_newer_dump(manifest) { "" } else { " --single-transaction" };
        if let Some(full) = stream("full") {
            line(&format!("{} | {to}", unseal(full)));
        }
        if let Some(schema) = stream("schema") {
            line(&format!("{} > schema.pgdump", unseal(schema)));
            line(&format!("{to} --section=pre-data schema.pgdump"));
            for data in database.streams.iter().filter(|s| s.name != "schema") {
                line(&format!("{} | {to}{atomic}", unseal(data)));
            }
            line(&format!("{to} --section=post-data --jobs=2 schema.pgdump"));
            line("rm schema.pgdump");
        }
        // A foreign table whose server cannot be reached ends it early.
        line("psql -X -c 'ANALYZE' || echo 'statistics are missing, and nothing else'");
        line("```");
        if is_newer_dump(manifest) {
            line("");
            line(
                "pg_restore of 17 or newer complains of `transaction_timeout` on a server older than 17, once a",
            );
            line("connection, and ends with 1; that is harmless. Anything else it says is not.");
        } else if stream("schema").is_some() {
            line("");
            line(
                "If the rows of a table are refused because a constraint looks into another table, run that",
            );
            line("line once more after the others, before `--section=post-data`: each is one transaction.");
        }
        line("");
        line(
            "Where the server lacks a tablespace of the original, add `--no-tablespaces` to each `pg_restore`.",
        );
        if !database.excluded.is_empty() {
            line("");
            line("Left out, as configured, were the rows of:");
            line("");
            for table in &database.excluded {
                line(&format!("- {}", markdown_code(table)));
            }
        }
        if !database.extensions.is_empty() {
            line("");
            let names: Vec<String> =
                database.extensions.iter().map(|e| format!("{} {}", e.name, e.version)).collect();
            line(&format!("Extensions that must be installed on the server: {}.", names.join(", ")));
        }
        if let Some(proof) = &database.proof_object {
            line("");
            line("Settings of the database (`ALTER DATABASE … SET`), its owner and privileges, and the row");
            line("count of every table stand in:");
            line("");
            line("```sh");
            line(&unseal(proof));
            line("```");
        }
    }
    if !manifest.warnings.is_empty() {
        line("");
        line("## What the backup warned about");
        line("");
        for warning in &manifest.warnings {
            line(&format!("- {}", warning.replace('\n', " ")));
        }
    }
    text
}

/// createdb's options for what sorts a database's text, as far as the server's major has a choice. Without
/// them the new database has whatever the new server's template has.
fn provider(locale: &Locale, version_num: u32) -> String {
    if version_num < 150_000 {
        return String::new();
    }
    let mut options = format!(" --locale-provider={}", shell(&locale.provider));
    let mut add = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            options.push_str(&format!(" --{name}={}", shell(value)));
        }
    };
    match locale.provider.as_str() {
        "icu" => {
            add("icu-locale", &locale.locale);
            add("icu-rules", &locale.icu_rules);
        }
        "builtin" => add("builtin-locale", &locale.locale),
        _ => {}
    }
    options
}

/// Whether pg_dump's major sends a setting that the source's own major does not know, and with which
/// `--single-transaction` therefore ends at once.
fn is_newer_dump(manifest: &Manifest) -> bool {
    let major = manifest.pg_dump_version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major >= 17) && manifest.server.version_num < 170_000
}

fn unseal(stream: &Stream) -> String {
    let decrypt = |o: &Object| format!("age -d -i identity.txt {}", shell(&path(&o.key)));
    match stream.objects.as_slice() {
        [one] => format!("{} | zstd -dc", decrypt(one)),
        many => {
            let all: Vec<String> = many.iter().map(decrypt).collect();
            format!("{{ {}; }} | zstd -dc", all.join(" && "))
        }
    }
}

/// A file below the working directory, which no program takes for an option.
fn path(key: &str) -> String {
    if key.starts_with('-') { format!("./{key}") } else { key.into() }
}

/// A word for the shell.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./%:=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A value inside quotes of a connection string.
fn conninfo(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "\\'")
}

/// Between more backticks than the text holds in a row.
fn markdown_code(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    format!("{fence} {} {fence}", text.replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::set::manifest::tests::manifest;

    /// What a shell makes of a script; it must succeed.
    fn bash(arguments: &[&str], script: &str) -> Vec<u8> {
        let output = std::process::Command::new("bash").args(arguments).arg(script).output().unwrap();
        assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn blocks(document: &str) -> Vec<String> {
        let mut lines = document.lines();
        let mut blocks = Vec::new();
        while lines.by_ref().any(|line| line == "```sh") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(block.join("\n"));
        }
        blocks
    }

    /// A manifest of one database called this.
    fn named(name: &str) -> Manifest {
        let mut manifest = manifest();
        manifest.databases.truncate(1);
        let database = &mut manifest.databases[0];
        let folder = crate::set::database_component(name);
        for stream in database.streams.iter_mut().chain(&mut database.proof_object) {
            for object in &mut stream.objects {
                object.key = object.key.replacen("shop", &folder, 1);
            }
        }
        database.name = name.into();
        manifest
    }

    const ODD: [&str; 14] = [
        "shop",
        "",
        "../x \"y\"",
        "it's",
        "'; touch owned; '",
        "$HOME $(id) `id`",
        "a\nb",
        "-rf",
        "--help",
        "\\",
        "\\'",
        "~",
        "!! * ? [a] {b,c} #x & | < >",
        "é\u{202e}",
    ];

    #[test]
    fn words_reach_a_program_as_they_are() {
        for word in ODD {
            assert_eq!(bash(&["-c"], &format!("printf %s {}", shell(&path(word)))), path(word).as_bytes());
            assert_eq!(
                bash(&["-c"], &format!("printf '%s\\0' -- {}", shell(word))),
                format!("--\0{word}\0").as_bytes()
            );
        }
    }

    #[test]
    fn every_command_is_one_that_a_shell_understands() {
        for name in ODD {
            let document = render(&named(name));
            let blocks = blocks(&document);
            assert!(blocks.len() >= 5, "{document}");
            for block in blocks {
                bash(&["-n", "-c"], &block);
            }
        }
    }

    /// The commands, with stand-ins that say what they were given.
    #[test]
    fn programs_are_given_the_sets_objects_and_databases() {
        const STAND_INS: &str = r#"
            age() { [ "$1 $2 $3" = "-d -i identity.txt" ] && [ $# = 4 ] && printf 'age %s\n' "$4"; }
            zstd() { cat; }
            createdb() { printf 'createdb <%s> ' "${@: -1}"; printf '%s ' "${@:1:$#-1}"; echo; }
            pg_restore() { printf 'pg_restore <%s> <%s>\n' "$2" "${*:3}"; case "$*" in *schema.pgdump) cat schema.pgdump;; *) cat;; esac; }
            psql() { printf 'psql %s <%s>\n' "$*" "$PGDATABASE"; }
            rm() { command rm "$@" && echo "rm $*"; }
        "#;
        for name in ODD {
            let manifest = named(name);
            let document = render(&manifest);
            let block = blocks(&document).iter().skip(4).take(2).cloned().collect::<Vec<_>>().join("\n");
            let directory = tempfile::tempdir().unwrap();
            let script = format!("cd {}\n{STAND_INS}\n{block}", shell(directory.path().to_str().unwrap()));
            let said = String::from_utf8(bash(&["-c"], &script)).unwrap();
            let folder = path(&crate::set::database_component(name));
            let to = format!("<dbname='{}'>", conninfo(name));
            let expected = format!(
                "createdb <{name}> -T template0 -E UTF8 --lc-collate=C.UTF-8 --lc-ctype=C.UTF-8 --locale-provider=libc -- \n\
                 pg_restore {to} <--section=pre-data schema.pgdump>\n\
                 age {folder}/schema.pgdump.zst.age\n\
                 pg_restore {to} <--single-transaction>\n\
                 age {folder}/data-rest.pgdump.zst.age\n\
                 age {folder}/data-rest.pgdump.zst.age.001\n\
                 pg_restore {to} <--section=post-data --jobs=2 schema.pgdump>\n\
                 age {folder}/schema.pgdump.zst.age\n\
                 rm schema.pgdump\n\
                 psql -X -c ANALYZE <{name}>\n"
            );
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn a_database_is_made_with_what_sorts_its_text() {
        let locale = |provider: &str, locale: Option<&str>, rules: Option<&str>| Locale {
            provider: provider.into(),
            locale: locale.map(str::to_owned),
            icu_rules: rules.map(str::to_owned),
            ..manifest().databases[0].locale.clone()
        };
        let icu = locale("icu", Some("de-DE"), None);
        assert_eq!(provider(&icu, 140_000), "");
        assert_eq!(provider(&icu, 150_000), " --locale-provider=icu --icu-locale=de-DE");
        let rules = locale("icu", Some("und"), Some("&a < 'b'"));
        assert_eq!(
            provider(&rules, 160_000),
            format!(" --locale-provider=icu --icu-locale=und --icu-rules={}", shell("&a < 'b'"))
        );
        let builtin = locale("builtin", Some("C.UTF-8"), None);
        assert_eq!(provider(&builtin, 170_000), " --locale-provider=builtin --builtin-locale=C.UTF-8");
        assert_eq!(provider(&locale("libc", None, None), 180_000), " --locale-provider=libc");
    }

    #[test]
    fn sums_are_checked_for_every_object_but_the_document_itself() {
        let manifest = manifest();
        let document = render(&manifest);
        for object in manifest.objects().filter(|o| o.key != crate::set::RESTORE_MD) {
            assert!(document.contains(&format!("\n{}  {}\n", object.sha256, object.key)), "{}", object.key);
        }
        assert!(!document.contains("  RESTORE.md\n"));
    }

    #[test]
    fn a_name_does_not_end_its_own_code_span() {
        assert_eq!(markdown_code("shop"), "` shop `");
        assert_eq!(markdown_code("a``b\n# c"), "``` a``b # c ```");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn any_word_reaches_a_program_as_it_is(word in "[^\0]{0,20}") {
            prop_assert_eq!(bash(&["-c"], &format!("printf %s x{}", shell(&word))), format!("x{word}").into_bytes());
        }
    }
}
