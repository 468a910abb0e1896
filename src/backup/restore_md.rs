//! `RESTORE.md`: how to restore this very set with age, zstd and pg_restore alone.
//!
//! It is stored in plain text beside the set, so it names objects and databases and nothing else.

use crate::set::manifest::{Manifest, Object, Stream};

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
    line("You need `age`, `zstd`, `psql` and `pg_restore` of that version or newer, this folder");
    line("downloaded whole, and an age identity (here `identity.txt`) for one of these recipients:");
    line("");
    for recipient in &manifest.recipients {
        line(&format!("- `{recipient}`"));
    }
    line("");
    line("Restoring runs code that the database's owners wrote. Do it on a server where that is");
    line("acceptable.");
    line("");
    line("## 1. Check what you downloaded");
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
        line("Roles that exist already are reported as errors; that is harmless.");
        line("");
        line("```sh");
        line(&format!("{} | psql -X -d postgres", unseal(globals)));
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
                "createdb -T template0 -E {} --lc-collate={} --lc-ctype={} -- {}",
                shell(&locale.encoding),
                shell(&locale.collate),
                shell(&locale.ctype),
                shell(&database.name)
            ));
        }
        line(&format!("export PGDATABASE={}", shell(&database.name)));
        line("```");
        line("");
        if locale.provider != "libc" {
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
        if let Some(full) = stream("full") {
            line(&format!("{} | {to}", unseal(full)));
        }
        if let Some(schema) = stream("schema") {
            line(&format!("{} > schema.pgdump", unseal(schema)));
            line(&format!("{to} --section=pre-data schema.pgdump"));
            for data in database.streams.iter().filter(|s| s.name != "schema") {
                line(&format!("{} | {to} --single-transaction", unseal(data)));
            }
            line(&format!("{to} --section=post-data --jobs=2 schema.pgdump"));
            line("rm schema.pgdump");
        }
        // A foreign table whose server cannot be reached ends it early.
        line("psql -X -c 'ANALYZE' || echo 'statistics are missing, and nothing else'");
        line("```");
        if stream("schema").is_some() {
            line("");
            line(
                "If the rows of a table are refused because a constraint looks into another table, run that",
            );
            line("line once more after the others, before `--section=post-data`: each is one transaction.");
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

fn unseal(stream: &Stream) -> String {
    let decrypt = |o: &Object| format!("age -d -i identity.txt {}", shell(&o.key));
    match stream.objects.as_slice() {
        [one] => format!("{} | zstd -dc", decrypt(one)),
        many => {
            let all: Vec<String> = many.iter().map(decrypt).collect();
            format!("{{ {}; }} | zstd -dc", all.join(" && "))
        }
    }
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

fn markdown_code(text: &str) -> String {
    format!("`` {} ``", text.replace('\n', " "))
}
