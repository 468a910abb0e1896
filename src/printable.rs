//! Text that others wrote, made fit to be shown: the one place that decides what a terminal, a log line, a
//! label or a page gets to see of it.
//!
//! Names of databases, messages of servers and files of repositories may hold anything: sequences that drive
//! a terminal, line breaks after which a false `error:` begins, overrides that turn the direction of text.
//! What is shown escaped is still legible, so that an operator sees what there is.

use std::borrow::Cow;

/// Text for one line: nothing in it moves the cursor or ends the line.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_plain)
}

/// Text of several lines: nothing in it moves the cursor, and every line but the first is indented, so that
/// none begins where `error:` and `hint:` stand. A tab, which pg_dump indents with, is four spaces.
pub fn lines(text: &str) -> Cow<'_, str> {
    let text = escaped(text, |c| matches!(c, '\n' | '\t') || is_plain(c));
    let text = if text.contains('\t') { Cow::Owned(text.replace('\t', "    ")) } else { text };
    if !text.contains('\n') {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 2);
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            shown.push('\n');
            if !line.is_empty() && !line.starts_with("  ") {
                shown.push_str("  ");
            }
        }
        shown.push_str(line);
    }
    Cow::Owned(shown)
}

/// Text that opsd laid out itself, in which only what moves the cursor is escaped.
pub fn page(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t') || is_plain(c))
}

/// A JSON document, in which the same is escaped as JSON escapes it: its values are what they were. Outside of
/// strings JSON has nothing to escape.
pub fn json(document: &str) -> Cow<'_, str> {
    escaped_as(
        document,
        |c| c == '\n' || is_plain(c),
        |c, shown| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        },
    )
}

/// Text for one line of at most `most` characters; what was cut off is marked.
pub fn bounded(text: &str, most: usize) -> Cow<'_, str> {
    let Some((end, _)) = text.char_indices().nth(most) else { return line(text) };
    Cow::Owned(format!("{}…", line(&text[..end])))
}

/// A word of a command line or of a configuration that may be repeated in an error. What could be a URL or
/// settings, however mistyped, could hold a password, and is not.
pub fn word(text: &str) -> Cow<'_, str> {
    if text.contains([':', '@', '=', '/', '?', '%', '&', '\\']) {
        return Cow::Borrowed("(not repeated: it may hold a password)");
    }
    Cow::Owned(format!("{text:?}"))
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    escaped_as(text, is_kept, |c, shown| shown.extend(c.escape_default()))
}

fn escaped_as(
    text: &str,
    is_kept: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if text.chars().all(&is_kept) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_kept(c) {
            shown.push(c);
        } else {
            escape(c, &mut shown);
        }
    }
    Cow::Owned(shown)
}

/// Neither a control character nor one that changes the direction of text or breaks a line.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_moves_the_cursor_is_shown_as_what_it_is() {
        assert_eq!(line("a\u{1b}[2Jb\r\n\u{202e}c\u{9b}1m"), "a\\u{1b}[2Jb\\r\\n\\u{202e}c\\u{9b}1m");
        assert_eq!(line("grüße, 数据库"), "grüße, 数据库");
        assert_eq!(lines("no\nerror: forged\n  own\n\n\u{1b}c"), "no\n  error: forged\n  own\n\n  \\u{1b}c");
        assert_eq!(lines("no\n\terror: forged\tand"), "no\n    error: forged    and");
        assert_eq!(page("a\n\tb\u{7}"), "a\n\tb\\u{7}");
        assert_eq!(bounded("abcd", 4), "abcd");
        assert_eq!(bounded("abc\nd", 4), "abc\\n…");
    }

    proptest! {
        #[test]
        fn no_line_begins_at_the_margin_and_none_has_a_control_character(text in any::<String>()) {
            let shown = lines(&text);
            prop_assert!(shown.split('\n').skip(1).all(|l| l.is_empty() || l.starts_with("  ")));
            prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'));
            prop_assert!(!line(&text).contains(char::is_control));
        }

        #[test]
        fn json_keeps_its_values_and_shows_none_of_them_raw(text in any::<String>(), more in "[\u{7f}-\u{9f}\u{202a}-\u{202e}\u{61c}\u{1b}\"\\\\]{0,9}") {
            let value = serde_json::json!({ (text.clone() + &more): [more.clone() + &text] });
            let document = serde_json::to_string_pretty(&value).unwrap();
            let shown = json(&document).into_owned();
            prop_assert!(shown.chars().all(|c| c == '\n' || is_plain(c)), "{:?}", shown);
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }

        /// Every way to mistype a connection string around a password.
        #[test]
        fn no_near_miss_of_a_url_is_repeated_with_its_password(
            before in prop::sample::select(vec![
                "POSTGRES://u:", " postgres://u:", "postgres:/u:", "postgres:u:", "postgress://u:", "mysql://u:",
                "redis://:", "u:", "//u:", "http://u:", "postgres;//u:", "user=u password=", "PASSWORD = ",
                "jdbc:postgresql://h/d?user=u&password=", "\u{feff}postgres://u:", "postgres:\\\\u:",
            ]),
            password in "[a-z0-9]{6,20}",
            after in prop::sample::select(vec!["@h:5432/d", "@h", "@", "", "@h/d?sslmode=require", " host=h"]),
        ) {
            let password = format!("c4nary{password}");
            let shown = word(&format!("{before}{password}{after}")).into_owned();
            prop_assert!(!shown.contains(&password), "{}", shown);
        }
    }
}
