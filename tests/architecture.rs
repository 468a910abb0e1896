//! Holds the code to the plan: who may import whom, and who alone may do what.
//!
//! The rules read the text of `src/` without comments, strings and test modules. That is enough to
//! catch a slip; it is no defence against somebody who hides one. Each rule is tried on a snippet
//! that breaks it, because a rule that cannot fail holds nothing.

#![expect(clippy::unwrap_used, reason = "what cannot be read fails the test")]

use std::path::{Path, PathBuf};

/// From the outside in. A module imports what stands in lower rows, never its own row.
const TIERS: &[&[&str]] = &[
    &["main"],
    &["cli"],
    &["exporter"],
    &["check"],
    &["backup", "restore", "monitor"],
    &["set", "postgres", "rules"],
    &["container", "store"],
    &["buffer_pool", "config", "pem", "process", "progress", "sandbox", "shutdown"],
    &["metrics", "regular_file", "trust"],
    &["beneath", "database", "error", "printable", "tcp"],
];

/// Lines of a file without its tests. Past this, look for the seam.
const MAX_LINES: usize = 600;

/// A source file: its path below `src`, and its text.
struct Source {
    path: String,
    text: String,
}

type Rule = fn(&Source) -> Vec<String>;

const RULES: &[Rule] = &[
    imports_point_downward,
    only_cli_knows_clap,
    only_s3_knows_the_aws_sdk,
    only_output_prints,
    only_config_reads_the_environment,
    only_main_exits,
    only_the_sql_module_runs_what_was_built,
    only_named_places_take_sql_of_others,
    files_stay_short,
    files_say_what_they_are_for,
];

#[test]
fn the_code_keeps_to_the_plan() {
    let sources = sources();
    assert!(sources.len() > 20, "only {} files found: the rules would hold nothing", sources.len());
    let broken: Vec<String> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(|rule| rule(source))).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn every_module_has_a_row() {
    let lib = std::fs::read_to_string(src().join("lib.rs")).unwrap();
    for line in lib.lines().filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))) {
        let module = line.trim_end_matches(';');
        assert!(tier(module).is_some(), "give the module {module} a row in TIERS");
    }
}

fn imports_point_downward(source: &Source) -> Vec<String> {
    let own = top_module(&source.path);
    let Some(own_tier) = tier(own) else { return Vec::new() };
    let code = code(&source.text);
    imported(source, &code)
        .into_iter()
        .filter(|module| *module != own && tier(module).is_some_and(|tier| tier <= own_tier))
        .map(|module| {
            format!("{}: {own} may not import {module}, which does not stand below it", source.path)
        })
        .collect()
}

fn only_cli_knows_clap(source: &Source) -> Vec<String> {
    let may = within(&source.path, "cli");
    forbid(source, may, "only cli knows clap", |words, i| matches!(words[i], "clap" | "clap_complete"))
}

fn only_s3_knows_the_aws_sdk(source: &Source) -> Vec<String> {
    let may = within(&source.path, "store/s3");
    forbid(source, may, "only store::s3 knows the AWS SDK", |words, i| words[i].starts_with("aws_"))
}

fn only_output_prints(source: &Source) -> Vec<String> {
    // The processes of a sandbox talk to opsd over their stdout, which is a pipe.
    let may = within(&source.path, "cli/output") || within(&source.path, "sandbox");
    forbid(source, may, "only cli::output prints", |words, i| match words[i] {
        "println" | "print" | "eprintln" | "eprint" => words.get(i + 1) == Some(&"!"),
        // `io::stdout`, or a bare `stdout()`; not the `.stdout(…)` of a command.
        "stdout" => {
            words.get(i + 1) == Some(&"(") && words.get(i + 2) == Some(&")") && previous(words, i) != "."
        }
        "Stdout" => true,
        _ => false,
    })
}

fn only_config_reads_the_environment(source: &Source) -> Vec<String> {
    let may = within(&source.path, "config");
    forbid(source, may, "only config reads the environment", |words, i| {
        words[i] == "env"
            && words.get(i + 1) == Some(&"::")
            && matches!(
                words.get(i + 2),
                Some(
                    &("var"
                        | "var_os"
                        | "vars"
                        | "vars_os"
                        | "set_var"
                        | "remove_var"
                        | "home_dir"
                        | "{"
                        | "*")
                )
            )
    })
}

fn only_main_exits(source: &Source) -> Vec<String> {
    let may = source.path == "main.rs";
    forbid(source, may, "only main exits", |words, i| {
        words[i] == "process"
            && words.get(i + 1) == Some(&"::")
            && matches!(words.get(i + 2), Some(&("exit" | "abort")))
    })
}

/// Methods of tokio-postgres that take a statement as text.
const TAKE_SQL: &[&str] = &[
    "batch_execute",
    "copy_in",
    "copy_out",
    "execute",
    "execute_raw",
    "execute_typed",
    "prepare",
    "prepare_typed",
    "query",
    "query_one",
    "query_opt",
    "query_raw",
    "query_typed",
    "query_typed_raw",
    "simple_query",
    "simple_query_raw",
];

/// Elsewhere they are given a literal, of which nothing is left here, or a constant. `Sql` has methods of the
/// same names, which are given a client.
fn only_the_sql_module_runs_what_was_built(source: &Source) -> Vec<String> {
    let may = source.path == "postgres/sql.rs";
    forbid(source, may, "only postgres::sql runs SQL that is no literal", |words, i| {
        let before = previous(words, i);
        if !TAKE_SQL.contains(&words[i]) || words.get(i + 1) != Some(&"(") || !matches!(before, "." | "::") {
            return false;
        }
        let argument: Vec<&str> =
            words[i + 2..].iter().copied().take_while(|word| !matches!(*word, "," | "(" | ")")).collect();
        let Some(last) = argument.last() else { return false };
        let is_constant = last.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        let is_of_sql = before == "." && *last == "client";
        !(is_constant || is_of_sql)
    })
}

/// Text of the operator, and clauses of a catalog.
fn only_named_places_take_sql_of_others(source: &Source) -> Vec<String> {
    let may = ["postgres/sql.rs", "restore/assertions.rs", "restore/prove.rs", "backup/undumped.rs"]
        .contains(&source.path.as_str());
    forbid(source, may, "only assertions and extensions' filters are SQL of others", |words, i| {
        words[i] == "Sql"
            && words.get(i + 1) == Some(&"::")
            && matches!(words.get(i + 2), Some(&("configured" | "of_catalog")))
    })
}

fn files_stay_short(source: &Source) -> Vec<String> {
    let lines = without_tests(&source.text).lines().count();
    if lines <= MAX_LINES {
        return Vec::new();
    }
    vec![format!("{}: {lines} lines without tests, more than {MAX_LINES}: look for the seam", source.path)]
}

fn files_say_what_they_are_for(source: &Source) -> Vec<String> {
    let says =
        source.text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > "//! ".len());
    if says { Vec::new() } else { vec![format!("{}: begins without //! saying what it is for", source.path)] }
}

// ---- the rules can fail ----------------------------------------------------------------------

/// Whether a rule objects to a file with this path and text.
fn caught(rule: Rule, path: &str, text: &str) -> bool {
    !rule(&Source { path: path.into(), text: text.into() }).is_empty()
}

#[test]
fn imports_upward_and_sideways_are_caught() {
    let rule: Rule = imports_point_downward;
    assert!(caught(rule, "store.rs", "use crate::backup::create;"));
    assert!(caught(rule, "store/fs.rs", "fn f() { crate::cli::output::line(); }"));
    assert!(caught(rule, "set/seal.rs", "use crate::{error::Error, postgres::{self, connect}};"));
    assert!(caught(
        rule,
        "backup.rs",
        "pub(crate) use crate::{\n    error::{Error, Result},\n    restore,\n};"
    ));
    assert!(caught(rule, "error.rs", "impl From<crate::config::Config> for Error {}"));
    assert!(caught(rule, "restore/plan.rs", "use super::super::backup::plan;"));
    assert!(caught(rule, "set.rs", "use super::postgres::connect;"));
    assert!(caught(rule, "cli/backup.rs", "use opsd::main::run; fn f() -> crate::main::X { }"));
    assert!(caught(rule, "config.rs", "use crate::shutdown::Shutdown;"));

    assert!(!caught(
        rule,
        "store/s3.rs",
        "use crate::config::Repository; use crate::store::Store; use super::Upload;"
    ));
    assert!(!caught(rule, "main.rs", "use opsd::{cli, error::Error};"));
    assert!(!caught(rule, "set/seal.rs", "// see crate::postgres\nconst X: &str = \"crate::backup\";"));
    assert!(!caught(
        rule,
        "set/seal.rs",
        "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::backup::create;\n}\n"
    ));
    assert!(!caught(
        rule,
        "set/seal.rs",
        "/// A `crate::cli` in documentation.\nfn f<'a>(x: &'a str) -> char { '\"' }"
    ));
}

#[test]
fn clap_outside_cli_is_caught() {
    assert!(caught(only_cli_knows_clap, "config.rs", "#[derive(clap::Args)] struct A;"));
    assert!(caught(only_cli_knows_clap, "main.rs", "use clap_complete::Shell;"));
    assert!(!caught(only_cli_knows_clap, "cli/backup.rs", "use clap::Args;"));
}

#[test]
fn the_aws_sdk_outside_s3_is_caught() {
    assert!(caught(only_s3_knows_the_aws_sdk, "store.rs", "use aws_sdk_s3::Client;"));
    assert!(caught(only_s3_knows_the_aws_sdk, "store/s3_like.rs", "use aws_config::load;"));
    assert!(!caught(only_s3_knows_the_aws_sdk, "store/s3.rs", "use aws_sdk_s3::Client;"));
    assert!(!caught(only_s3_knows_the_aws_sdk, "store/s3/upload.rs", "use aws_sdk_s3::Client;"));
}

#[test]
fn printing_outside_output_is_caught() {
    let rule: Rule = only_output_prints;
    for text in [
        "fn f() { println!(); }",
        "fn f() { eprint!(\"x\"); }",
        "fn f() { std::io::stdout().lock(); }",
        "use std::io::stdout; fn f() { stdout().flush(); }",
        "fn f(out: std::io::Stdout) {}",
    ] {
        assert!(caught(rule, "backup.rs", text), "{text}");
        assert!(!caught(rule, "cli/output.rs", text), "{text}");
    }
    assert!(!caught(rule, "process.rs", "fn f() { command.stdout(Stdio::piped()); child.stdout.take(); }"));
}

#[test]
fn reading_the_environment_outside_config_is_caught() {
    let rule: Rule = only_config_reads_the_environment;
    for text in [
        "fn f() { std::env::var(\"X\"); }",
        "use std::env; fn f() { env::vars_os(); }",
        "use std::env::{args, var};",
    ] {
        assert!(caught(rule, "store/s3.rs", text), "{text}");
        assert!(!caught(rule, "config/raw.rs", text), "{text}");
    }
    assert!(!caught(
        rule,
        "cli.rs",
        "const V: &str = env!(\"CARGO_PKG_VERSION\"); fn f() { std::env::args_os(); }"
    ));
}

#[test]
fn exiting_outside_main_is_caught() {
    assert!(caught(only_main_exits, "cli.rs", "fn f() { std::process::exit(1) }"));
    assert!(caught(only_main_exits, "shutdown.rs", "fn f() { process::abort() }"));
    assert!(!caught(only_main_exits, "main.rs", "fn f() { std::process::exit(1) }"));
}

#[test]
fn sql_that_is_no_literal_is_caught() {
    let rule: Rule = only_the_sql_module_runs_what_was_built;
    for text in [
        "fn f() { client.batch_execute(&sql) }",
        "fn f() { client.batch_execute(&format!(\"DROP TABLE {name}\")) }",
        "fn f() { session.client.query(sql.as_str(), &[]) }",
        "fn f() { client.query_one(&selects.join(\" UNION \"), &[]) }",
        "fn f() { client.copy_in(&copy) }",
        "fn f() { Client::simple_query(&client, text) }",
        "fn f() { transaction\n    .execute(statement, &[]) }",
    ] {
        assert!(caught(rule, "restore/copy.rs", text), "{text}");
        assert!(!caught(rule, "postgres/sql.rs", text), "{text}");
    }
    for text in [
        "fn f() { client.batch_execute(\"ROLLBACK\") }",
        "fn f() { client\n    .query(\n        \"SELECT 1\",\n        &[],\n    ) }",
        "fn f() { client.copy_out(QUERY) }",
        "fn f() { client.query_typed(databases::NAMES, &[]) }",
        "fn f() { Sql::new(\"SELECT \").ident(name).query(&session.client, &[]) }",
        "fn f() { sql.copy_out(client) }",
    ] {
        assert!(!caught(rule, "restore/copy.rs", text), "{text}");
    }
    let rule: Rule = only_named_places_take_sql_of_others;
    assert!(caught(rule, "restore/copy.rs", "fn f() { Sql::of_catalog(text) }"));
    assert!(caught(rule, "backup/plan.rs", "fn f() { Sql::configured(text) }"));
    assert!(!caught(rule, "restore/prove.rs", "fn f() { Sql::of_catalog(text) }"));
}

#[test]
fn long_files_are_caught_and_tests_do_not_count() {
    let long = "fn f() {}\n".repeat(MAX_LINES + 1);
    assert!(caught(files_stay_short, "set.rs", &long));
    let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert!(!caught(files_stay_short, "set.rs", &tested));
    // What follows the tests does count.
    assert!(caught(files_stay_short, "set.rs", &format!("{tested}{long}")));
}

#[test]
fn files_without_a_purpose_are_caught() {
    assert!(caught(files_say_what_they_are_for, "set.rs", "use std::fs;\n"));
    assert!(caught(files_say_what_they_are_for, "set.rs", "//! \nuse std::fs;\n"));
    assert!(caught(files_say_what_they_are_for, "set.rs", ""));
}

// ---- reading the code ------------------------------------------------------------------------

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    let mut directories = vec![src()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let relative = path.strip_prefix(src()).unwrap().to_str().unwrap().to_owned();
                sources.push(Source { path: relative, text: std::fs::read_to_string(&path).unwrap() });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn tier(module: &str) -> Option<usize> {
    TIERS.iter().position(|row| row.contains(&module))
}

/// `store/s3.rs` is in `store`, and so is `store.rs`. `lib.rs` is in none.
fn top_module(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Whether a file is a module's own or below it: `cli/output.rs` for `cli` and for `cli/output`.
fn within(path: &str, module: &str) -> bool {
    path.trim_end_matches(".rs")
        .strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Complains about each line in which `bad` finds something, unless the file `may`.
fn forbid(source: &Source, may: bool, rule: &str, bad: impl Fn(&[&str], usize) -> bool) -> Vec<String> {
    if may {
        return Vec::new();
    }
    let code = code(&source.text);
    let words = words(&code);
    let found = (0..words.len()).find(|&i| bad(&words, i));
    found
        .map(|i| {
            format!("{}: {rule}, yet here is `{}`", source.path, words[i..words.len().min(i + 4)].join(""))
        })
        .into_iter()
        .collect()
}

/// First components of all paths from the crate's root.
fn imported<'a>(source: &Source, code: &'a str) -> Vec<&'a str> {
    let words = words(code);
    let depth = source.path.split('/').count();
    let mut modules = Vec::new();
    for i in 0..words.len() {
        let root = match words[i] {
            "crate" => true,
            // The binary sees the library by its name.
            "opsd" => previous(&words, i) != "::",
            // `super::super::x` from two levels down is `crate::x`.
            "super" => {
                let supers =
                    words[..=i].rchunks(2).take_while(|pair| pair[pair.len() - 1] == "super").count();
                supers >= depth && words.get(i + 2) != Some(&"super")
            }
            _ => false,
        };
        if !root || words.get(i + 1) != Some(&"::") {
            continue;
        }
        match words.get(i + 2) {
            Some(&"{") => modules.extend(first_components(&words[i + 3..])),
            Some(module) => modules.push(module),
            None => {}
        }
    }
    modules
}

/// The first word of each branch of `{a::b, c::{d, e}}`, whose opening brace is already read.
fn first_components<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let (mut found, mut depth, mut at_start) = (Vec::new(), 0, true);
    for &word in words {
        match word {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => at_start = true,
            _ if at_start => {
                found.push(word);
                at_start = false;
            }
            _ => {}
        }
    }
    found
}

fn previous<'a>(words: &[&'a str], i: usize) -> &'a str {
    i.checked_sub(1).map_or("", |i| words[i])
}

/// Identifiers, `::`, and every other visible character on its own.
fn words(code: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_word(c) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        if !c.is_whitespace() {
            words.push(&rest[..length]);
        }
        rest = &rest[length..];
    }
    words
}

/// The text without test modules, comments and the content of strings.
fn code(text: &str) -> String {
    without_comments_and_strings(&without_tests(text))
}

/// The text without its `#[cfg(test)] mod … { }` blocks, which rustfmt ends with a `}` in the column
/// in which they begin.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let starts_tests = line.trim() == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.trim_start().starts_with("mod ") && next.ends_with('{'));
        if starts_tests {
            let end = format!("{indent}}}");
            for line in lines.by_ref() {
                if line == end {
                    break;
                }
            }
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn without_comments_and_strings(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) =
            raw_string(rest).filter(|_| !kept.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        {
            length
        } else if c == '"' {
            1 + quoted(&rest[1..], '"')
        } else if c == '\'' && is_char_literal(rest) {
            1 + quoted(&rest[1..], '\'')
        } else {
            kept.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        kept.push(' ');
        rest = &rest[skipped..];
    }
    kept
}

/// Length of `r"…"`, `r#"…"#`, `br"…"`, … at the beginning of the text.
fn raw_string(text: &str) -> Option<usize> {
    let body = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let body = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len();
    Some(start + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

/// Length up to and with the closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn is_char_literal(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}
