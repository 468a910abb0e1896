//! What a page tells people to type: fenced blocks by their language, and `spans` of its text.

use std::path::{Path, PathBuf};

/// The section with commands that only look.
pub const LOOK: &str = "How to look";
/// The section with commands that may change something.
pub const ACT: &str = "What to do";
/// The section that says when to stop.
pub const OVER: &str = "It is over when";

/// How the line begins that says what a page's commands are in Compose; it comes out of a table, which is compared.
pub const IN_COMPOSE: &str = "In Compose: ";

/// Programs and statements that begin a command; what else stands in a span is a name.
const STATEMENTS: &[&str] = &[
    "ALTER", "ANALYZE", "COMMIT", "DROP", "EXPLAIN", "GRANT", "REINDEX", "ROLLBACK", "SELECT", "SET", "SHOW",
    "VACUUM",
];

/// How something is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One line for a shell.
    Shell,
    /// One statement.
    Sql,
    Promql,
    /// A name, a value, a message: whatever is neither of these.
    Word,
}

/// One command, or one word, and where it stands.
#[derive(Debug, Clone)]
pub struct Snippet {
    /// The page's name without `.md`.
    pub page: String,
    pub section: String,
    /// The paragraph that it stands in, or the one before its block.
    pub around: String,
    pub kind: Kind,
    /// Whether it stands in a fenced block.
    pub in_block: bool,
    pub text: String,
}

impl std::fmt::Display for Snippet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.md, {}: {}", self.page, self.section, self.text)
    }
}

/// Every page with its name, in order.
pub fn pages() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

/// Everything that stands in the blocks and spans of all pages. `is_program` tells commands from words.
pub fn snippets(is_program: impl Fn(&str) -> bool) -> Vec<Snippet> {
    let all = pages();
    let kind_of = |text: &str| {
        let first = text.split(' ').next().unwrap_or_default();
        if STATEMENTS.contains(&first) && text.contains(' ') {
            Kind::Sql
        } else if is_program(first) && (text.contains(' ') || first == "uptime") {
            Kind::Shell
        } else {
            Kind::Word
        }
    };
    let found = all.iter().flat_map(|(page, text)| of_page(page, text, &kind_of));
    found.filter(|snippet| !snippet.around.starts_with(IN_COMPOSE)).collect()
}

fn of_page(page: &str, text: &str, kind_of: &impl Fn(&str) -> Kind) -> Vec<Snippet> {
    let mut found = Vec::new();
    let (mut section, mut around) = (String::new(), String::new());
    let mut block: Option<(&str, String)> = None;
    let mut add = |section: &str, around: &str, kind, in_block, text: &str| {
        let (page, section) = (page.to_owned(), section.to_owned());
        let (around, text) = (around.to_owned(), text.to_owned());
        found.push(Snippet { page, section, around, kind, in_block, text });
    };
    // One more empty line ends the last paragraph.
    for line in text.lines().chain([""]) {
        let trimmed = line.trim_start();
        match (&mut block, trimmed.strip_prefix("```")) {
            (None, Some(language)) => {
                spans(&around).for_each(|span| add(&section, &around, kind_of(span), false, span));
                block = Some((language, String::new()));
            }
            (Some((language, content)), Some(_)) => {
                let (kind, commands) = match *language {
                    "sh" => (Kind::Shell, lines(content)),
                    "sql" => (Kind::Sql, statements(content)),
                    "promql" => (Kind::Promql, vec![content.clone()]),
                    other => panic!("{page}: nobody knows how to run a block of {other:?}"),
                };
                commands.iter().for_each(|command| add(&section, &around, kind, true, command));
                block = None;
                around.clear();
            }
            (Some((_, content)), None) => content.push_str(&format!("{trimmed}\n")),
            (None, None) => {
                let begins = trimmed.is_empty()
                    || ["- ", "|", "#"].iter().any(|sign| trimmed.starts_with(sign))
                    || trimmed.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
                if begins {
                    spans(&around).for_each(|span| add(&section, &around, kind_of(span), false, span));
                    // What stands before a block of the same section belongs to it.
                    around.clear();
                }
                if let Some(title) = trimmed.strip_prefix("## ") {
                    title.clone_into(&mut section);
                } else {
                    around.push_str(if around.is_empty() { "" } else { " " });
                    around.push_str(trimmed);
                }
            }
        }
    }
    assert!(block.is_none(), "{page}: a block without an end");
    found
}

/// What stands between backticks.
fn spans(paragraph: &str) -> impl Iterator<Item = &str> {
    assert!(paragraph.matches('`').count().is_multiple_of(2), "an odd number of backticks: {paragraph}");
    paragraph.split('`').skip(1).step_by(2)
}

/// The commands of a block for a shell; one that ends in a backslash goes on in the next line.
fn lines(block: &str) -> Vec<String> {
    let whole = block.replace("\\\n", "");
    whole.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// What a shell command or an SQL text is made of: `pieces` between `separators`, quotes respected,
/// comments left out.
fn split(text: &str, comment: &str, separators: &[&str]) -> Vec<String> {
    let (mut pieces, mut piece, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        if let Some(open) = quote {
            if c == open {
                quote = None;
            }
            piece.push(c);
        } else if c == '\'' || c == '"' {
            quote = Some(c);
            piece.push(c);
        } else if rest.starts_with(comment) && piece.chars().last().is_none_or(char::is_whitespace) {
            taken = rest.find('\n').unwrap_or(rest.len());
        } else if let Some(separator) = separators.iter().find(|separator| rest.starts_with(**separator)) {
            pieces.push(std::mem::take(&mut piece));
            taken = separator.len();
        } else {
            piece.push(c);
        }
        rest = &rest[taken..];
    }
    pieces.push(piece);
    pieces.iter().map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

/// The statements of an SQL text.
pub fn statements(text: &str) -> Vec<String> {
    split(text, "--", &[";"])
}

/// The programs that a shell command starts.
pub fn programs(command: &str) -> Vec<String> {
    let pieces = split(command, "#", &["&&", "||", "|", ";"]);
    pieces.iter().map(|piece| piece.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// The shell command without its comment.
pub fn uncommented(command: &str) -> String {
    split(command, "#", &[]).concat()
}

/// Words that stand in capitals where no shell would want them: what the reader is to fill in.
pub fn placeholders(command: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-$%{@".contains(c);
    let words = command.split(|c: char| !is_part(c));
    let capitals = |word: &&str| {
        word.len() > 1
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "_-".contains(c))
    };
    words.filter(capitals).map(str::to_owned).collect()
}

/// Puts `value` where `name` stands as a word of its own.
pub fn replaced(text: &str, name: &str, value: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(name) {
        let (before, after) = (&rest[..at], &rest[at + name.len()..]);
        let whole = !before.ends_with(is_part) && !after.starts_with(is_part);
        out.push_str(before);
        out.push_str(if whole { value } else { name });
        rest = after;
    }
    out + rest
}
