//! `RESTORE.md`: how to restore this very set with age, zstd and pg_restore alone.
//!
//! It is stored in plain text beside the set, so it names objects and databases and nothing else. Text of
//! others stands in it quoted, by `quoting` alone: whatever a database is called, the commands are the same.

pub mod quoting;

use quoting::{export, markdown, shell};

use crate::postgres::settings;
use crate::set::manifest::{Extension, Locale, Manifest, Object, Stream, TRANSACTION_SIZE};

/// Takes off who granted a membership; a role's name may be anything, but ends where its quote does.
const WITHOUT_GRANTORS: &str = r#"sed -E '/^GRANT /s/ GRANTED BY ("([^"]|"")*"|[a-z0-9_]+);$/;/'"#;

/// Databases that initdb makes.
const EVERYWHERE: [&str; 2] = ["postgres", "template1"];

/// Compares the document with the manifest, which JSON keeps from saying the key in another place.
pub const CHECK_THIS_FILE: &str = r#"sed -n '/^  "restore_md": {/,/}/s/.*"sha256": "\([0-9a-f]*\)".*/\1  RESTORE.md/p' manifest.json | sha256sum -c"#;

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
        markdown(&manifest.server.version),
        markdown(&manifest.pg_dump_version)
    ));
    line("You need `age`, `zstd`, `grep`, `psql` and `pg_restore` of that version or newer, this folder");
    line("downloaded whole, and an age identity (here `identity.txt`) for one of these recipients:");
    line("");
    for recipient in &manifest.recipients {
        line(&format!("- {}", markdown(recipient)));
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
    line("The commands are for bash: another shell may not know this one, without which a stream that");
    line("breaks looks whole:");
    line("");
    line("```sh");
    line("set -o pipefail");
    line("```");
    line("");
    line("If the set is signed (there is a `manifest.json.minisig`), check it with your public key. Whoever");
    line("can write to the repository may have written a set that is not signed, and this file:");
    line("");
    line("```sh");
    line("minisign -Vm manifest.json -P YOUR_PUBLIC_KEY");
    line("```");
    line("");
    line("Then this file, against its sum in `manifest.json`, before you follow it any further:");
    line("");
    line("```sh");
    line(CHECK_THIS_FILE);
    line("```");
    line("");
    line("And the objects:");
    line("");
    line("```sh");
    line("sha256sum -c <<'EOF'");
    for object in manifest.objects() {
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
        line("PostgreSQL 16 and newer refuses memberships that another superuser than its first one granted");
        line(
            "(`permission denied to grant privileges`): where the first superuser of the new server has another",
        );
        line("name than the old one's, put this before `psql`, and he grants them all:");
        line(&format!("`{WITHOUT_GRANTORS} |`"));
        line("");
        line("```sh");
        line(&format!("{} |", unseal(globals)));
        line("  LC_ALL=C PGOPTIONS='-c lc_messages=C' psql -X -d postgres 2> roles.txt ||");
        line("  { cat -v roles.txt; false; }");
        line("errors=$(grep -E 'ERROR|FATAL' roles.txt | grep -v ' already exists$') || true");
        line("rm roles.txt");
        line("test -z \"$errors\" || { printf '%s\\n' \"$errors\" | cat -v; false; }");
        line("```");
    }
    for database in &manifest.databases {
        line("");
        line(&format!("## Database {}", markdown(&database.name)));
        line("");
        let locale = &database.locale;
        if EVERYWHERE.contains(&database.name.as_str()) {
            line("Every server has this database already; see that it is empty:");
            line("");
        } else {
            line(
                "An empty database with the same encoding and locale. `createdb` is given its name, and the",
            );
            line("other programs find it in PGDATABASE, with `pg_restore -d ''`, too:");
            line("");
        }
        line("```sh");
        line(&export("PGDATABASE", &database.name));
        if !EVERYWHERE.contains(&database.name.as_str()) {
            let mut command = "createdb -T template0".to_owned();
            for (option, variable, value) in create_options(locale, manifest.server.version_num) {
                let (before, word) = shell(variable, value);
                before.iter().for_each(|assignment| line(assignment));
                command.push_str(&format!(" {option}{word}"));
            }
            line(&format!("{command} -- \"$PGDATABASE\""));
        }
        // How pg_restore's sessions read rows and definitions, whatever the server sets: arrays with NULL in them, and
        // comparisons with it.
        let mut options =
            vec![settings::option("array_nulls", "on"), settings::option("transform_null_equals", "off")];
        let monetary = locale.monetary.as_str();
        if !monetary.is_empty() {
            // Columns of type money are written in it.
            options.push(settings::option("lc_monetary", monetary));
        }
        line(&export("PGOPTIONS", &options.join(" ")));
        line("```");
        line("");
        if locale.provider != "libc" && EVERYWHERE.contains(&database.name.as_str()) {
            line(&format!(
                "(The original used the {} locale {}.)",
                markdown(&locale.provider),
                locale.locale.as_deref().map_or("of the cluster".to_owned(), markdown)
            ));
            line("");
        }
        let stream = |name: &str| database.streams.iter().find(|s| s.name == name);
        line("```sh");
        // A name would be taken for a whole connection string, if it looks like one.
        let to = "pg_restore -d ''";
        let is_bundled = |data: &Stream| !is_newer_dump(manifest) && data.is_one_transaction();
        let bundle = |data: &Stream| match is_bundled(data) {
            true => " --single-transaction".to_owned(),
            false if is_newer_dump(manifest) || manifest.dump_major() < 17 => String::new(),
            // Each object is a lock, and a server has room for so many.
            false => format!(" --transaction-size={TRANSACTION_SIZE}"),
        };
        if let Some(full) = stream("full") {
            line(&format!("{} | {to}", unseal(full)));
            for extra in database.streams.iter().filter(|s| s.name != "full") {
                line(&format!("{} | {to}{}", unseal(extra), bundle(extra)));
            }
        }
        if let Some(schema) = stream("schema") {
            line(&format!("{} > schema.pgdump", unseal(schema)));
            line(&format!("{to} --section=pre-data schema.pgdump"));
            for data in database.streams.iter().filter(|s| s.name != "schema") {
                line(&format!("{} | {to}{}", unseal(data), bundle(data)));
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
            line("line again, before `--section=post-data`, without `--single-transaction` or");
            line("`--transaction-size`: each table is then loaded by itself, and those that are refused are");
            line("named. Then run it with `--schema=SCHEMA --table=NAME` for each of those, until none is");
            line("refused. If some tables were loaded before, empty them first, or their rows come twice.");
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
                line(&format!("- {}", markdown(table)));
            }
        }
        if !database.extensions.is_empty() {
            line("");
            let named = |e: &Extension| markdown(&format!("{} {}", e.name, e.version));
            let names: Vec<String> = database.extensions.iter().map(named).collect();
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
    if !manifest.lacking.is_empty() {
        line("");
        line("## What this set lacks");
        line("");
        line("These databases could not be dumped:");
        line("");
        for database in &manifest.lacking {
            line(&format!("- {}: {}", markdown(&database.name), markdown(&database.why)));
        }
    }
    if !manifest.warnings.is_empty() {
        line("");
        line("## What the backup warned about");
        line("");
        for warning in &manifest.warnings {
            line(&format!("- {}", markdown(warning)));
        }
    }
    text
}

/// createdb's options for what orders and encodes a database's text, each with the variable that its value
/// stands in where it must: as far as the server's major has a choice. Without them the new database has
/// whatever the new server's template has.
fn create_options(locale: &Locale, version_num: u32) -> Vec<(&'static str, &'static str, &str)> {
    let mut options = vec![
        ("-E ", "encoding", locale.encoding.as_str()),
        ("--lc-collate=", "lc_collate", &locale.collate),
        ("--lc-ctype=", "lc_ctype", &locale.ctype),
    ];
    if version_num < 150_000 {
        return options;
    }
    options.push(("--locale-provider=", "provider", &locale.provider));
    let mut add = |option, variable, value| {
        if let Some(value) = value {
            options.push((option, variable, value));
        }
    };
    match locale.provider.as_str() {
        "icu" => {
            add("--icu-locale=", "icu_locale", locale.locale.as_deref());
            add("--icu-rules=", "icu_rules", locale.icu_rules.as_deref());
        }
        "builtin" => add("--builtin-locale=", "builtin_locale", locale.locale.as_deref()),
        _ => {}
    }
    options
}

/// Whether pg_dump's major sends a setting that the source's own major does not know, and with which
/// `--single-transaction` therefore ends at once.
fn is_newer_dump(manifest: &Manifest) -> bool {
    manifest.dump_major() >= 17 && manifest.server.version_num < 170_000
}

fn unseal(stream: &Stream) -> String {
    let decrypt = |o: &Object| format!("age -d -i identity.txt {}", path(&o.key));
    match stream.objects.as_slice() {
        [one] => format!("{} | zstd -dc", decrypt(one)),
        many => {
            let all: Vec<String> = many.iter().map(decrypt).collect();
            format!("{{ {}; }} | zstd -dc", all.join(" && "))
        }
    }
}

/// A file below the working directory, which no program takes for an option or a shell for a home. Keys are
/// made of letters, digits and characters that mean nothing to a shell (`set::database_component`).
fn path(key: &str) -> String {
    if key.starts_with(['-', '~']) { format!("./{key}") } else { key.to_owned() }
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

    const ODD: [&str; 17] = [
        "shop",
        "",
        "../x \"y\"",
        "it's",
        "'; touch owned; '",
        "$HOME $(id) `id`",
        "a\nb",
        "x\n```\n\n```sh\ntouch owned\n```\n",
        "\u{1b}[2J\r\u{9b}",
        "-rf",
        "--help",
        "\\",
        "\\'",
        "~",
        "host=example.org dbname=x",
        "!! * ? [a] {b,c} #x & | < >",
        "é\u{202e}",
    ];

    #[test]
    fn every_command_is_one_that_a_shell_understands() {
        for name in ODD {
            for block in blocks(&render(&named(name))) {
                bash(&["-n", "-c"], &block);
            }
        }
    }

    /// The commands but for the one that says which database; the folder's name is letters and digits.
    fn commands(manifest: &Manifest) -> Vec<String> {
        let folder = crate::set::database_component(&manifest.databases[0].name);
        let is_name =
            |line: &&str| line.starts_with("export PGDATABASE=") || line.starts_with("PGDATABASE=$(printf ");
        blocks(&render(manifest))
            .iter()
            .map(|block| {
                let lines = block.lines().filter(|line| !is_name(line));
                // A folder may begin like an option.
                let folders = [format!(" ./{folder}/"), format!(" {folder}/")];
                lines
                    .map(|line| folders.iter().fold(line.to_owned(), |l, f| l.replace(f, " FOLDER/")))
                    .collect::<Vec<_>>()
                    .join("\n")
            })
            .collect()
    }

    fn has_only_harmless_characters(document: &str) -> bool {
        document
            .chars()
            .all(|c| c == '\n' || c.is_ascii_graphic() || c == ' ' || c.is_alphanumeric() || c == '…')
    }

    #[test]
    fn text_of_others_is_shown_and_says_nothing() {
        let hostile = "`x`\n```\n\n```sh\ntouch owned\n```\n# x <img src=x> [x](http://x)\u{1b}[2J\u{202e}";
        let mut manifest = named("shop");
        let harmless = commands(&manifest);
        manifest.server.version = hostile.into();
        manifest.pg_dump_version = hostile.into();
        manifest.recipients.push(hostile.into());
        manifest.warnings.push(hostile.into());
        let database = &mut manifest.databases[0];
        database.excluded.push(hostile.into());
        database.extensions.push(Extension {
            name: hostile.into(),
            version: hostile.into(),
            schema: Some(hostile.into()),
        });
        assert_eq!(commands(&manifest), harmless);
        let document = render(&manifest);
        assert!(has_only_harmless_characters(&document), "{document:?}");
        // Lines with text of others hold it between two backticks, and no other line has any of it.
        for line in document.lines().filter(|line| line.contains("touch owned")) {
            let (_, rest) = line.split_once('`').unwrap();
            let pieces: Vec<&str> = rest.split('`').collect();
            assert!(pieces.iter().skip(1).step_by(2).all(|outside| !outside.contains("touch")), "{line}");
        }
    }

    #[test]
    fn locales_are_words_as_well() {
        let mut manifest = named("shop");
        let locale = &mut manifest.databases[0].locale;
        locale.provider = "icu".into();
        locale.locale = Some("x\n```\n'$(touch owned)".into());
        locale.icu_rules = Some("&a < b\n```\n".into());
        locale.collate = "a b\n".into();
        locale.monetary = "a b\nc\\".into();
        manifest.server.version_num = 170_000;
        let document = render(&manifest);
        assert!(has_only_harmless_characters(&document), "{document:?}");
        let block = blocks(&document).into_iter().find(|block| block.contains("createdb")).unwrap();
        let said = bash(
            &["-c"],
            &format!("createdb() {{ printf '<%s>' \"$@\"; }}\n{block}\nprintf '%s' \"$PGOPTIONS\""),
        );
        let expected = "<-T><template0><-E><UTF8><--lc-collate=a b\n><--lc-ctype=C.UTF-8><--locale-provider=icu>\
            <--icu-locale=x\n```\n'$(touch owned)><--icu-rules=&a < b\n```\n><--><shop>-c array_nulls=on -c transform_null_equals=off -c lc_monetary=a\\ b\\\nc\\\\";
        assert_eq!(String::from_utf8(said).unwrap(), expected);
    }

    /// The commands, with stand-ins that say what they were given.
    #[test]
    fn programs_are_given_the_sets_objects_and_databases() {
        const STAND_INS: &str = r#"
            age() { [ "$1 $2 $3" = "-d -i identity.txt" ] && [ $# = 4 ] && printf 'age %s\n' "$4"; }
            zstd() { cat; }
            createdb() { printf 'createdb <%s> ' "${@: -1}"; printf '%s ' "${@:1:$#-1}"; echo; }
            pg_restore() { printf 'pg_restore <%s> <%s> <%s>\n' "$2" "$PGDATABASE" "${*:3}"; case "$*" in *schema.pgdump) cat schema.pgdump;; *) cat;; esac; }
            psql() { printf 'psql %s <%s>\n' "$*" "$PGDATABASE"; }
            rm() { command rm "$@" && echo "rm $*"; }
        "#;
        for name in ODD {
            let manifest = named(name);
            let document = render(&manifest);
            let block = blocks(&document).iter().skip(5).take(2).cloned().collect::<Vec<_>>().join("\n");
            let directory = tempfile::tempdir().unwrap();
            let script = format!("cd {}\n{STAND_INS}\n{block}", directory.path().display());
            let said = String::from_utf8(bash(&["-c"], &script)).unwrap();
            let folder = path(&crate::set::database_component(name));
            let to = format!("<> <{name}>");
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
        let said = |locale: &Locale, version| {
            let options = create_options(locale, version).into_iter().skip(3);
            options.map(|(option, _, value)| format!(" {option}{value}")).collect::<String>()
        };
        assert_eq!(said(&icu, 140_000), "");
        assert_eq!(said(&icu, 150_000), " --locale-provider=icu --icu-locale=de-DE");
        let rules = locale("icu", Some("und"), Some("&a < 'b'"));
        assert_eq!(said(&rules, 160_000), " --locale-provider=icu --icu-locale=und --icu-rules=&a < 'b'");
        let builtin = locale("builtin", Some("C.UTF-8"), None);
        assert_eq!(said(&builtin, 170_000), " --locale-provider=builtin --builtin-locale=C.UTF-8");
        assert_eq!(said(&locale("libc", None, None), 180_000), " --locale-provider=libc");
    }

    #[test]
    fn sums_are_checked_for_every_object_but_the_document_itself() {
        let manifest = manifest();
        let document = render(&manifest);
        for object in manifest.objects() {
            assert!(document.contains(&format!("\n{}  {}\n", object.sha256, object.key)), "{}", object.key);
        }
        assert!(!document.contains("  RESTORE.md\n"));
    }

    /// The document's own sum stands in the manifest, and nowhere that somebody else could write it.
    #[test]
    fn the_document_is_compared_with_the_manifest() {
        let directory = tempfile::tempdir().unwrap();
        let mut manifest = named("shop");
        let forged = crate::set::seal::sha256_hex(b"forged");
        for text in [forged.clone(), format!("\"restore_md\": {{ \"sha256\": \"{forged}\" }}")] {
            manifest.warnings.push(format!("x\n  {text}\n"));
        }
        let document = render(&manifest);
        manifest.restore_md.sha256 = crate::set::seal::sha256_hex(document.as_bytes());
        std::fs::write(directory.path().join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
        let check = |content: Option<&str>| {
            let path = directory.path().join("RESTORE.md");
            match content {
                Some(content) => std::fs::write(path, content).unwrap(),
                None => std::fs::remove_file(path).unwrap(),
            }
            let mut bash = std::process::Command::new("bash");
            bash.args(["-c", &format!("set -o pipefail; {CHECK_THIS_FILE}")]).current_dir(directory.path());
            bash.output().unwrap().status.success()
        };
        assert!(document.contains(&format!("\n{CHECK_THIS_FILE}\n")), "{document}");
        assert!(include_str!("../../README.md").contains(&format!("\n{CHECK_THIS_FILE}\n")));
        assert!(check(Some(&document)));
        assert!(!check(Some("forged")) && !check(None));
        std::fs::write(directory.path().join("manifest.json"), "").unwrap();
        assert!(!check(Some("forged")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever a database is called, its commands are those of one with a harmless name.
        #[test]
        fn a_name_changes_no_command(name in "[^\0]{0,20}", fence in prop::bool::ANY) {
            let name = if fence { format!("{name}\n```\n```sh\n{name}") } else { name };
            prop_assume!(!["postgres", "template1"].contains(&name.as_str()));
            let document = render(&named(&name));
            prop_assert!(has_only_harmless_characters(&document), "{:?}", document);
            prop_assert_eq!(commands(&named(&name)), commands(&named("shop")));
        }
    }
}
