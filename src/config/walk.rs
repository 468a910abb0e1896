//! Reading a TOML document by hand, with the line of everything: typed getters that report what is
//! wrong and go on, so that one look shows every mistake.
//!
//! Deliberately not serde: its errors stop at the first mistake and lose the place. Messages never
//! quote values, because any of them may hold a secret by mistake.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml_edit::{Item, TableLike, Value};
use zeroize::{Zeroize as _, Zeroizing};

use super::finding::{Finding, Mistake, Warning};
use super::units;
use crate::error::Error;
use crate::regular_file;

/// What stands in the starter file where nobody can guess.
const PLACEHOLDER: &str = "CHANGE-ME";

/// The environment, as an argument.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Collects findings while a document is read.
pub(super) struct Walk<'a> {
    path: &'a Path,
    text: &'a str,
    env: Env<'a>,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Warning>,
    /// The files with secrets that the document names.
    pub(super) secret_files: Vec<(Place, PathBuf)>,
}

/// Where something stands in the document.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: String,
    pub(super) line: usize,
}

/// A table and where it stands.
#[derive(Clone)]
pub(super) struct Section<'d> {
    pub(super) place: Place,
    table: &'d dyn TableLike,
}

/// A string with its variables expanded. Whoever reads a password takes it out by [`Text::take`].
#[derive(Debug)]
pub(super) struct Text {
    pub(super) place: Place,
    pub(super) value: String,
    /// Whether it stood in the document as it is, without variables.
    pub(super) literal: bool,
}

impl Text {
    /// The string, which is zeroed in the end.
    pub(super) fn take(&mut self) -> Zeroizing<String> {
        Zeroizing::new(std::mem::take(&mut self.value))
    }
}

impl Section<'_> {
    /// Names of the entries, for tables whose keys are names.
    pub(super) fn names(&self) -> Vec<String> {
        self.table.iter().map(|(key, _)| key.to_string()).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether the value is a string, for keys that take numbers, too.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(Item::is_str)
    }

    /// Whether the value is a list, for keys that take one value, too.
    pub(super) fn is_list(&self, key: &str) -> bool {
        self.table.get(key).is_some_and(Item::is_array)
    }

    fn key_path(&self, key: &str) -> String {
        let bare =
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let key = if bare { key.to_string() } else { format!("{key:?}") };
        if self.place.key.is_empty() { key } else { format!("{}.{key}", self.place.key) }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(path: &'a Path, text: &'a str, env: Env<'a>) -> Self {
        Self { path, text, env, mistakes: Vec::new(), warnings: Vec::new(), secret_files: Vec::new() }
    }

    pub(super) fn env(&self) -> Env<'a> {
        self.env
    }

    pub(super) fn root<'d>(&self, table: &'d toml_edit::Table) -> Section<'d> {
        Section { place: Place { key: String::new(), line: 1 }, table }
    }

    /// The line that holds a byte, counted from 1.
    pub(super) fn line_at(&self, byte: usize) -> usize {
        let end = byte.min(self.text.len());
        1 + self.text.as_bytes()[..end].iter().filter(|b| **b == b'\n').count()
    }

    fn finding(&self, place: &Place, message: impl Into<String>, hint: Option<&str>) -> Finding {
        Finding {
            key: place.key.clone(),
            path: self.path.to_path_buf(),
            line: Some(place.line),
            message: message.into(),
            hint: hint.map(str::to_string),
            is_advice: false,
        }
    }

    /// No mistake goes without a next step, so the hint is not optional.
    pub(super) fn mistake(&mut self, place: &Place, message: impl Into<String>, hint: &str) {
        let finding = self.finding(place, message, Some(hint));
        self.mistakes.push(finding);
    }

    /// A mistake that is an error of the value's own reader; `hint` counts where it has none.
    pub(super) fn mistake_from(&mut self, place: &Place, error: &Error, hint: &str) {
        self.mistake(place, error.to_string(), error.hint().unwrap_or(hint));
    }

    pub(super) fn warn(&mut self, place: &Place, message: impl Into<String>, hint: Option<&str>) {
        let finding = self.finding(place, message, hint);
        self.warnings.push(finding);
    }

    /// A warning that explains no failure, and that somebody may hear once and leave at that.
    pub(super) fn advise(&mut self, place: &Place, message: impl Into<String>, hint: Option<&str>) {
        let finding = self.finding(place, message, hint);
        self.warnings.push(Finding { is_advice: true, ..finding });
    }

    /// Where `key` of a section stands, or would have to stand.
    pub(super) fn place(&self, section: &Section<'_>, key: &str) -> Place {
        let span = section.table.get_key_value(key).and_then(|(k, item)| k.span().or_else(|| item.span()));
        let line = span.map_or(section.place.line, |span| self.line_at(span.start));
        Place { key: section.key_path(key), line }
    }

    /// Reports keys that are not in `known`.
    pub(super) fn only(&mut self, section: &Section<'_>, known: &[&str]) {
        for key in section.names() {
            if known.contains(&key.as_str()) {
                continue;
            }
            let hint = units::meant(&key, known.iter().copied());
            let place = self.place(section, &key);
            self.mistake(&place, "unknown key", &hint);
        }
    }

    /// Reports that `key` is missing.
    pub(super) fn missing(&mut self, section: &Section<'_>, key: &str, hint: &str) {
        let place = self.place(section, key);
        self.mistake(&place, "missing", hint);
    }

    pub(super) fn section<'d>(&mut self, parent: &Section<'d>, key: &str) -> Option<Section<'d>> {
        let item = parent.table.get(key)?;
        let place = self.place(parent, key);
        match item.as_table_like() {
            Some(table) => Some(Section { place, table }),
            None => {
                self.wrong_type(&place, "a table", item.type_name());
                None
            }
        }
    }

    fn wrong_type(&mut self, place: &Place, wanted: &str, found: &str) {
        let hint = match wanted {
            "a table" => "write it as [NAME] with its keys below, or as { key = value }",
            "a string" => "put it in quotes",
            "a list of strings" => "write it as [\"one\", \"two\"]",
            "a whole number" | "a number" => "write digits, without quotes",
            "true or false" => "write it without quotes",
            _ => "put it in quotes, with its unit",
        };
        let found = match found {
            "integer" | "array" | "array of tables" | "inline table" => format!("an {found}"),
            other => format!("a {other}"),
        };
        self.mistake(place, format!("must be {wanted}, not {found}"), hint);
    }

    fn value<'d, T>(
        &mut self,
        section: &Section<'d>,
        key: &str,
        wanted: &str,
        read: impl Fn(&'d Item) -> Option<T>,
    ) -> Option<(Place, T)> {
        let item = section.table.get(key)?;
        let place = self.place(section, key);
        match read(item) {
            Some(value) => Some((place, value)),
            None => {
                self.wrong_type(&place, wanted, item.type_name());
                None
            }
        }
    }

    pub(super) fn string(&mut self, section: &Section<'_>, key: &str) -> Option<Text> {
        let (place, text) = self.value(section, key, "a string", Item::as_str)?;
        self.expand(place, text)
    }

    /// A string that must not be empty.
    pub(super) fn filled(&mut self, section: &Section<'_>, key: &str) -> Option<Text> {
        let text = self.string(section, key)?;
        if text.value.trim().is_empty() {
            self.mistake(&text.place, "is empty", "give it a value, or leave it out");
            return None;
        }
        Some(text)
    }

    /// A list of strings that must not be empty; elements that are wrong are reported and left out.
    pub(super) fn strings(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, Vec<Text>)> {
        let (place, array) = self.value(section, key, "a list of strings", Item::as_array)?;
        let mut texts = Vec::new();
        for (index, value) in array.iter().enumerate() {
            let line = value.span().map_or(place.line, |span| self.line_at(span.start));
            let at = Place { key: format!("{}[{index}]", place.key), line };
            match value {
                Value::String(text) => {
                    let Some(text) = self.expand(at, text.value()) else { continue };
                    if text.value.trim().is_empty() {
                        self.mistake(&text.place, "is empty", "give it a value, or leave it out");
                    } else {
                        texts.push(text);
                    }
                }
                other => self.wrong_type(&at, "a string", other.type_name()),
            }
        }
        Some((place, texts))
    }

    /// Patterns of tables, each with a schema.
    pub(super) fn table_patterns(&mut self, section: &Section<'_>, key: &str) -> Vec<String> {
        let mut patterns = Vec::new();
        for pattern in self.strings(section, key).into_iter().flat_map(|(_, texts)| texts) {
            match pattern.value.split_once('.') {
                Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                    patterns.push(pattern.value);
                }
                _ => self.mistake(
                    &pattern.place,
                    "must name schema and table",
                    "as in \"public.sessions\"; * and ? match anything",
                ),
            }
        }
        patterns
    }

    pub(super) fn integer(
        &mut self,
        section: &Section<'_>,
        key: &str,
        range: std::ops::RangeInclusive<i64>,
    ) -> Option<i64> {
        let (place, number) = self.value(section, key, "a whole number", Item::as_integer)?;
        if range.contains(&number) {
            return Some(number);
        }
        let hint = if number < *range.start() { "write a larger number" } else { "write a smaller number" };
        self.mistake(&place, format!("must be from {} to {}", range.start(), range.end()), hint);
        None
    }

    /// A whole number or one with a point.
    pub(super) fn number(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, f64)> {
        let read = |item: &Item| item.as_float().or_else(|| item.as_integer().map(|n| n as f64));
        let (place, number) = self.value(section, key, "a number", read)?;
        if !number.is_finite() {
            self.mistake(&place, "is no finite number", "write digits, without quotes");
            return None;
        }
        Some((place, number))
    }

    pub(super) fn boolean(&mut self, section: &Section<'_>, key: &str) -> Option<bool> {
        Some(self.value(section, key, "true or false", Item::as_bool)?.1)
    }

    pub(super) fn size(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, u64)> {
        self.unit(section, key, "a size in quotes, as in \"8MiB\"", units::parse_size)
    }

    pub(super) fn duration(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, Duration)> {
        self.unit(section, key, "a duration in quotes, as in \"24h\"", units::parse_duration)
    }

    fn unit<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<(Place, T)> {
        let (place, text) = self.value(section, key, wanted, Item::as_str)?;
        let text = self.expand(place, text)?;
        match parse(&text.value) {
            Ok(value) => Some((text.place, value)),
            Err(message) => {
                self.mistake(&text.place, message, &format!("write {wanted}"));
                None
            }
        }
    }

    /// An absolute path: opsd runs from cron, where nobody knows the working directory.
    pub(super) fn path(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, PathBuf)> {
        let text = self.filled(section, key)?;
        let (place, path) = self.absolute(text)?;
        let trusted = if path.is_file() { regular_file::trusted(&path) } else { Ok(()) };
        match trusted {
            // Whoever opens a file that cannot be looked at has more to say about it.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                self.mistake_from(&place, &Error::from(error), "name a file of root's");
                None
            }
            _ => Some((place, path)),
        }
    }

    /// The path of a file with a secret, which is not read here.
    pub(super) fn secret_file(&mut self, section: &Section<'_>, key: &str) -> Option<(Place, PathBuf)> {
        let found = self.path(section, key)?;
        self.secret_files.push(found.clone());
        Some(found)
    }

    /// Absolute paths.
    pub(super) fn paths(&mut self, section: &Section<'_>, key: &str) -> Vec<PathBuf> {
        let Some((_, texts)) = self.strings(section, key) else { return Vec::new() };
        texts.into_iter().filter_map(|text| self.absolute(text)).map(|(_, path)| path).collect()
    }

    fn absolute(&mut self, text: Text) -> Option<(Place, PathBuf)> {
        if !text.value.starts_with('/') || text.value.contains('\0') {
            let hint = if text.value.starts_with('~') {
                "~ is not expanded; write ${HOME}/…"
            } else {
                "start it with /"
            };
            self.mistake(&text.place, "must be an absolute path", hint);
            return None;
        }
        Some((text.place, PathBuf::from(text.value)))
    }

    /// `${NAME}` becomes the variable's value; `$${` is a literal `${`.
    fn expand(&mut self, place: Place, text: &str) -> Option<Text> {
        let mut value = Zeroizing::new(String::with_capacity(text.len()));
        let mut literal = true;
        let mut failed = false;
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            value.push_str(&rest[..dollar]);
            rest = &rest[dollar..];
            if let Some(after) = rest.strip_prefix("$${") {
                value.push_str("${");
                rest = after;
            } else if let Some(after) = rest.strip_prefix("${") {
                literal = false;
                let Some((name, after)) = after.split_once('}') else {
                    self.mistake(&place, "${ without }", "write $${ for a literal ${");
                    return None;
                };
                rest = after;
                if !is_variable_name(name) {
                    let hint = "letters, digits and _; write $${ for a literal ${";
                    self.mistake(&place, "what stands in ${…} is not the name of a variable", hint);
                    failed = true;
                } else if let Some(found) = (self.env)(name).map(Zeroizing::new) {
                    // Into new memory: what is outgrown would stay behind as it is.
                    let room = value.len() + found.len() + rest.len();
                    let before = std::mem::replace(&mut value, Zeroizing::new(String::with_capacity(room)));
                    value.push_str(&before);
                    value.push_str(&found);
                } else {
                    let hint =
                        format!("set it for whatever starts opsd, or write $${{{name}}} for the text itself");
                    self.mistake(&place, format!("environment variable {name} is not set"), &hint);
                    failed = true;
                }
            } else {
                value.push('$');
                rest = &rest[1..];
            }
        }
        value.push_str(rest);
        if text.contains(PLACEHOLDER) {
            let hint = "put your own in its place; the comments above it say what";
            self.mistake(&place, format!("{PLACEHOLDER} is still to be filled in"), hint);
            return None;
        }
        (!failed).then(|| Text { place, value: std::mem::take(&mut *value), literal })
    }
}

/// Zeroes the strings of a document, which hold passwords where those are written out.
pub(super) fn forget(item: Item) {
    match item {
        Item::None => {}
        Item::Value(value) => forget_value(value),
        Item::Table(table) => table.into_iter().for_each(|(_, item)| forget(item)),
        Item::ArrayOfTables(tables) => tables.into_iter().for_each(|table| forget(Item::Table(table))),
    }
}

fn forget_value(value: Value) {
    match value {
        Value::String(text) => text.into_value().zeroize(),
        Value::Array(values) => values.into_iter().for_each(forget_value),
        Value::InlineTable(table) => table.into_iter().for_each(|(_, value)| forget_value(value)),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
