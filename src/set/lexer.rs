//! PostgreSQL's lexical rules, for the few statements of a set that opsd takes apart.
//!
//! Names and values come out without their quotes, so that whoever uses them must quote them again. The
//! work is linear in the text, whatever it holds. Deliberately absent: `U&''` and bit strings, which
//! neither pg_dump nor pg_dumpall writes; they come out as pieces that no statement has.

use crate::error::{Error, Result};

/// A piece of SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token<'a> {
    /// A keyword, or a name without quotes, as written.
    Word(&'a str),
    /// A name that stood in double quotes.
    Quoted(String),
    /// A value that stood in single quotes or between dollar signs.
    Text(String),
    /// Digits, with or without a point.
    Number(&'a str),
    /// Any other character.
    Symbol(char),
}

impl Token<'_> {
    /// Whether it is this keyword, given in capitals.
    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// The name that it is. Without quotes pg_dump and pg_dumpall leave only what needs none; other words,
    /// which a server would fold or take for something else, are no names here.
    pub fn name(&self) -> Option<String> {
        match self {
            Token::Quoted(name) => Some(name.clone()),
            Token::Word(word) => {
                let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                word.chars().all(is_plain).then(|| (*word).to_owned())
            }
            _ => None,
        }
    }
}

/// A statement: its pieces, and its text as it stands there, without the semicolon.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement<'a> {
    /// Its pieces.
    pub tokens: Vec<Token<'a>>,
    /// Its text.
    pub text: &'a str,
}

/// The statements of a script, one after another. Comments and lines that begin with a backslash, which
/// are psql's, are passed over. What no semicolon ends is an error, as is what no quote ends.
pub fn statements(sql: &str) -> impl Iterator<Item = Result<Statement<'_>>> {
    let mut lexer = Lexer { sql, at: 0 };
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let next = lexer.statement().transpose();
        is_over = !matches!(next, Some(Ok(_)));
        next
    })
}

struct Lexer<'a> {
    sql: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn statement(&mut self) -> Result<Option<Statement<'a>>> {
        let mut tokens = Vec::new();
        let mut start = None;
        loop {
            self.skip_blanks(tokens.is_empty())?;
            let begins = self.at;
            match self.token()? {
                Some(Token::Symbol(';')) if tokens.is_empty() => {}
                Some(Token::Symbol(';')) => {
                    let text = &self.sql[start.unwrap_or(begins)..begins];
                    return Ok(Some(Statement { tokens, text: text.trim_end() }));
                }
                Some(token) => {
                    start = start.or(Some(begins));
                    tokens.push(token);
                }
                None if tokens.is_empty() => return Ok(None),
                None => return Err(self.unfinished("a statement", start.unwrap_or(begins))),
            }
        }
    }

    fn rest(&self) -> &'a str {
        &self.sql[self.at..]
    }

    fn unfinished(&self, what: &str, at: usize) -> Error {
        Error::differs(format!("{what} that begins at byte {at} does not end"))
    }

    /// Passes over white space and comments, and over psql's commands where a statement may begin.
    fn skip_blanks(&mut self, is_between: bool) -> Result<()> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("--") || (is_between && trimmed.starts_with('\\')) {
                self.at += trimmed.find('\n').map_or(trimmed.len(), |end| end + 1);
            } else if trimmed.starts_with("/*") {
                self.skip_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    /// Passes over a comment between `/*` and `*/`, which may hold others.
    fn skip_comment(&mut self) -> Result<()> {
        let (begins, bytes) = (self.at, self.sql.as_bytes());
        let mut depth = 0usize;
        while let Some(pair) = bytes.get(self.at..self.at + 2) {
            match pair {
                b"/*" => depth += 1,
                b"*/" => depth -= 1,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return Ok(());
            }
        }
        Err(self.unfinished("a comment", begins))
    }

    fn token(&mut self) -> Result<Option<Token<'a>>> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        let token = match first {
            'e' | 'E' if rest[1..].starts_with('\'') => {
                self.at += 1;
                Token::Text(self.quoted('\'', true)?)
            }
            '\'' => Token::Text(self.quoted('\'', false)?),
            '"' => Token::Quoted(self.quoted('"', false)?),
            '$' => match self.dollar_quoted()? {
                Some(text) => Token::Text(text),
                None => self.symbol('$'),
            },
            c if is_word_start(c) => {
                let is_word = |c: char| is_word_start(c) || c.is_ascii_digit() || c == '$';
                Token::Word(self.cut(rest.find(|c| !is_word(c)).unwrap_or(rest.len())))
            }
            c if c.is_ascii_digit() => {
                let is_number = |c: char| c.is_ascii_digit() || c == '.';
                Token::Number(self.cut(rest.find(|c| !is_number(c)).unwrap_or(rest.len())))
            }
            c => self.symbol(c),
        };
        Ok(Some(token))
    }

    fn cut(&mut self, length: usize) -> &'a str {
        let text = &self.rest()[..length];
        self.at += length;
        text
    }

    fn symbol(&mut self, c: char) -> Token<'a> {
        self.at += c.len_utf8();
        Token::Symbol(c)
    }

    /// What stands between two quotes, of which a doubled one is one of the text.
    fn quoted(&mut self, quote: char, escapes: bool) -> Result<String> {
        let begins = self.at;
        let what = if quote == '"' { "a name" } else { "a value" };
        let mut text = String::new();
        let mut chars = self.rest()[1..].char_indices().peekable();
        while let Some((i, c)) = chars.next() {
            if c == '\\' && escapes {
                let escaped = chars.next().map(|(_, c)| c);
                text.push(escaped.and_then(unescaped).ok_or_else(|| {
                    Error::differs(format!("a value that begins at byte {begins} has an unknown escape"))
                })?);
            } else if c != quote {
                text.push(c);
            } else if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
                text.push(quote);
            } else {
                self.at += i + 2;
                return Ok(text);
            }
        }
        Err(self.unfinished(what, begins))
    }

    /// What stands between `$tag$` and the same again; `None` where it is just a dollar sign.
    fn dollar_quoted(&mut self) -> Result<Option<String>> {
        let rest = self.rest();
        let is_tag = |c: char| is_word_start(c) || c.is_ascii_digit();
        let tag = rest[1..].find(|c| !is_tag(c)).map_or("", |end| &rest[1..1 + end]);
        let length = tag.len() + 2;
        if !rest[1 + tag.len()..].starts_with('$') || tag.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(None);
        }
        let Some(end) = rest[length..].find(&rest[..length]) else {
            return Err(self.unfinished("a value", self.at));
        };
        self.at += length + end + length;
        Ok(Some(rest[length..length + end].to_owned()))
    }
}

fn is_word_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

/// What a character means after a backslash; those that need more characters are not written by anybody
/// here.
fn unescaped(c: char) -> Option<char> {
    match c {
        'b' => Some('\u{8}'),
        'f' => Some('\u{c}'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'x' | 'u' | 'U' | '0'..='7' => None,
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(sql: &str) -> Vec<&str> {
        statements(sql).map(|s| s.unwrap().text).collect()
    }

    fn tokens(sql: &str) -> Vec<Token<'_>> {
        statements(sql).next().unwrap().unwrap().tokens
    }

    #[test]
    fn statements_mind_quotes_comments_and_commands() {
        let sql = "--\n-- a; b\n\\restrict x'y;\n;SET a = 'it''s; --';\nCREATE ROLE \"b \"\"o;b\"; -- c;\n\
                   COMMENT ON ROLE b IS E'it''s \\'; x'; /* a /* ; */ ' */ DO $x$ ;'$$ $x$;\\unrestrict x\n";
        assert_eq!(
            texts(sql),
            [
                "SET a = 'it''s; --'",
                "CREATE ROLE \"b \"\"o;b\"",
                "COMMENT ON ROLE b IS E'it''s \\'; x'",
                "DO $x$ ;'$$ $x$"
            ]
        );
    }

    #[test]
    fn names_and_values_come_without_their_quotes() {
        assert_eq!(
            tokens("A \"b\"\"c\" 'd''e\\' E'\\\\f\\'\\n' $$g'$$ 1.5 -2 é$1;"),
            [
                Token::Word("A"),
                Token::Quoted("b\"c".into()),
                Token::Text("d'e\\".into()),
                Token::Text("\\f'\n".into()),
                Token::Text("g'".into()),
                Token::Number("1.5"),
                Token::Symbol('-'),
                Token::Number("2"),
                Token::Word("é$1"),
            ]
        );
    }

    #[test]
    fn what_does_not_end_is_an_error() {
        for sql in ["'a", "E'\\", "E'\\x41';", "\"א", "/* /* */", "$a$ $b$", "SELECT 1", "E'\\א"] {
            let found: Vec<_> = statements(sql).collect();
            assert!(found.len() == 1 && found[0].is_err(), "{sql}: {found:?}");
        }
        for nothing in ["", " \n", "-- a", "\\x", "\\א", "--א", ";;"] {
            assert_eq!(statements(nothing).count(), 0, "{nothing}");
        }
    }

    #[test]
    fn names_without_quotes_are_those_that_need_none() {
        assert_eq!(Token::Word("a_1").name().as_deref(), Some("a_1"));
        for word in ["A", "ключ", "a$"] {
            assert_eq!(Token::Word(word).name(), None);
        }
        assert_eq!(Token::Text("a".into()).name(), None);
    }

    proptest! {
        /// A quoted name or value is one piece, and comes out as it went in, whatever stands around it.
        #[test]
        fn quoting_is_undone(text in any::<String>()) {
            let (double, single) = (text.replace('"', "\"\""), text.replace('\'', "''"));
            let escaped = single.replace('\\', "\\\\");
            let sql = format!("A \"{double}\"'{single}' E'{escaped}';B;");
            let found = tokens(&sql);
            prop_assert_eq!(&found[1..], [
                Token::Quoted(text.clone()), Token::Text(text.clone()), Token::Text(text.clone()),
            ]);
            prop_assert_eq!(statements(&sql).count(), 2);
        }

        #[test]
        fn any_text_is_taken_apart(sql in r#"([\\\\'"é;\n$ -]|E'|\$a\$|/\*|\*/|.){0,60}"#) {
            for statement in statements(&sql).map_while(Result::ok) {
                prop_assert!(sql.contains(statement.text));
            }
        }
    }
}
