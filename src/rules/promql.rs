//! PromQL, as much of it as it takes to know which selectors an expression needs.
//!
//! A small recursive-descent parser: what it keeps is the selectors and whether their absence leaves
//! the expression without a result. Functions, aggregations and arithmetic are not checked (Prometheus
//! does that when it loads a rule), and nothing is evaluated.

use crate::error::{Error, Result};

/// How an expression depends on series.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// Series of its own.
    Selector(Selector),
    /// Always there: a number, `time()`, `vector(1)`, and `absent(…)`, which is there when nothing else is.
    Always,
    /// There only if all of these are: arithmetic, comparisons, `and`, the arguments of functions.
    All(Vec<Expr>),
    /// There if one of these is: `or`.
    Any(Vec<Expr>),
    /// There if the first is; the second is only looked at: `unless`, and what `absent` is about.
    Aside(Box<Expr>, Box<Expr>),
}

/// A selector, without its range and offset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// The metric's name, where it is given in front of the braces or as `__name__="…"`.
    pub name: Option<String>,
    /// The labels that it speaks of.
    pub labels: Vec<String>,
    /// As Prometheus takes it.
    pub text: String,
}

impl Expr {
    /// Every selector in it, in the order in which they stand there.
    pub fn selectors(&self) -> Vec<&Selector> {
        match self {
            Expr::Selector(selector) => vec![selector],
            Expr::Always => Vec::new(),
            Expr::All(parts) | Expr::Any(parts) => parts.iter().flat_map(Expr::selectors).collect(),
            Expr::Aside(first, second) => [first, second].into_iter().flat_map(|e| e.selectors()).collect(),
        }
    }

    /// Whether it can have a result, where `exists` says which selectors can.
    pub fn can_return(&self, exists: &impl Fn(&Selector) -> bool) -> bool {
        match self {
            Expr::Selector(selector) => exists(selector),
            Expr::Always => true,
            Expr::All(parts) => parts.iter().all(|part| part.can_return(exists)),
            Expr::Any(parts) => parts.iter().any(|part| part.can_return(exists)),
            Expr::Aside(first, _) => first.can_return(exists),
        }
    }
}

/// Reads an expression.
pub fn parse(text: &str) -> Result<Expr> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let expr = parser.binary(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(token) => Err(unexpected(token)),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A name or a keyword.
    Word(String),
    /// A number or a duration.
    Number,
    Text(String),
    /// `{…}` as it stands there, and the labels in it.
    Matchers(String),
    /// `[…]`.
    Range,
    /// An operator, a parenthesis, a comma or `@`.
    Sign(&'static str),
}

const SIGNS: &[&str] =
    &["==", "!=", ">=", "<=", "=~", "!~", "(", ")", ",", "+", "-", "*", "/", "%", "^", ">", "<", "@", "="];

/// The loosest first.
const LEVELS: &[&[&str]] = &[
    &["or"],
    &["and", "unless"],
    &["==", "!=", ">=", "<=", ">", "<"],
    &["+", "-"],
    &["*", "/", "%", "atan2"],
    &["^"],
];
/// Deeper than people write, and safely within the stack.
const DEPTH_MAX: usize = 64;

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let taken = if first == '#' {
            rest.find('\n').unwrap_or(rest.len())
        } else if first.is_ascii_digit()
            || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
        {
            tokens.push(Token::Number);
            number(rest)
        } else if is_word(first) {
            let end = rest.find(|c: char| !is_word(c) && !c.is_ascii_digit()).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else if matches!(first, '"' | '\'' | '`') {
            let end = string(rest)?;
            tokens.push(Token::Text(rest[1..end - 1].to_owned()));
            end
        } else if first == '{' {
            let end = enclosed(rest, '}')?;
            tokens.push(Token::Matchers(rest[..end].to_owned()));
            end
        } else if first == '[' {
            tokens.push(Token::Range);
            enclosed(rest, ']')?
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| Error::new(format!("{first:?} is not PromQL")))?;
            tokens.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[taken..].trim_start();
    }
    Ok(tokens)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

/// The end of `1.5e-3`, `0x1f` or `1h30m`.
fn number(text: &str) -> usize {
    let mut before = ' ';
    let is_hex = text.starts_with("0x");
    let end = text.find(|c: char| {
        let exponent = !is_hex && matches!(before, 'e' | 'E') && matches!(c, '+' | '-');
        before = c;
        !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || exponent)
    });
    end.unwrap_or(text.len())
}

/// The end of a quoted string.
fn string(text: &str) -> Result<usize> {
    let mut chars = text.char_indices();
    let quote = chars.next().map(|(_, c)| c);
    while let Some((at, c)) = chars.next() {
        if c == '\\' && quote != Some('`') {
            chars.next();
        } else if Some(c) == quote {
            return Ok(at + 1);
        }
    }
    Err(Error::new("a string does not end"))
}

/// The end of what `close` closes; strings inside may hold it.
fn enclosed(text: &str, close: char) -> Result<usize> {
    let mut at = 1;
    while let Some(c) = text[at..].chars().next() {
        match c {
            '"' | '\'' | '`' => at += string(&text[at..])?,
            c if c == close => return Ok(at + 1),
            c => at += c.len_utf8(),
        }
    }
    Err(Error::new(format!("{close:?} is missing")))
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    /// Takes the sign or the word, whatever its case, if it comes next.
    fn eat(&mut self, wanted: &str) -> bool {
        let is_it = match self.peek() {
            Some(Token::Sign(sign)) => *sign == wanted,
            Some(Token::Word(word)) => word.eq_ignore_ascii_case(wanted),
            _ => false,
        };
        self.at += usize::from(is_it);
        is_it
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        match (self.eat(sign), self.peek()) {
            (true, _) => Ok(()),
            (false, Some(token)) => Err(unexpected(token)),
            (false, None) => Err(Error::new(format!("{sign:?} is missing at the end"))),
        }
    }

    fn binary(&mut self, level: usize) -> Result<Expr> {
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.eat(operator)) {
            self.matching()?;
            let right = self.binary(level + 1)?;
            left = match *operator {
                "or" => Expr::Any(vec![left, right]),
                "unless" => Expr::Aside(Box::new(left), Box::new(right)),
                _ => Expr::All(vec![left, right]),
            };
        }
        Ok(left)
    }

    /// `bool`, `on (…)`, `ignoring (…)`, `group_left (…)`, `group_right (…)`.
    fn matching(&mut self) -> Result<()> {
        self.eat("bool");
        if self.eat("on") || self.eat("ignoring") {
            self.labels()?;
        }
        if (self.eat("group_left") || self.eat("group_right")) && self.peek() == Some(&Token::Sign("(")) {
            self.labels()?;
        }
        Ok(())
    }

    fn labels(&mut self) -> Result<()> {
        self.expect("(")?;
        while !self.eat(")") {
            match self.take() {
                Some(Token::Word(_) | Token::Text(_) | Token::Sign(",")) => {}
                Some(token) => return Err(unexpected(&token)),
                None => return Err(Error::new("a list of labels does not end")),
            }
        }
        Ok(())
    }

    fn unary(&mut self) -> Result<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Error::new("the expression is nested too deeply"));
        }
        while self.eat("-") || self.eat("+") {}
        let expr = self.primary()?;
        self.modifiers()?;
        self.depth -= 1;
        Ok(expr)
    }

    fn primary(&mut self) -> Result<Expr> {
        match self.take() {
            Some(Token::Number | Token::Text(_)) => Ok(Expr::Always),
            Some(Token::Matchers(matchers)) => selector(None, &matchers),
            Some(Token::Sign("(")) => {
                let expr = self.binary(0)?;
                self.expect(")")?;
                Ok(expr)
            }
            Some(Token::Word(word)) => self.named(word),
            Some(token) => Err(unexpected(&token)),
            None => Err(Error::new("the expression ends too early")),
        }
    }

    /// A function, an aggregation, a number in words, or a metric.
    fn named(&mut self, word: String) -> Result<Expr> {
        if matches!(word.to_ascii_lowercase().as_str(), "inf" | "nan") {
            return Ok(Expr::Always);
        }
        let grouped = self.eat("by") || self.eat("without");
        if grouped {
            self.labels()?;
        }
        if grouped || self.peek() == Some(&Token::Sign("(")) {
            return self.call(&word);
        }
        match self.peek().cloned() {
            Some(Token::Matchers(matchers)) => {
                self.at += 1;
                selector(Some(word), &matchers)
            }
            _ => selector(Some(word), ""),
        }
    }

    fn call(&mut self, name: &str) -> Result<Expr> {
        self.expect("(")?;
        let mut arguments = Vec::new();
        while !self.eat(")") {
            arguments.push(self.binary(0)?);
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        if self.eat("by") || self.eat("without") {
            self.labels()?;
        }
        let all = Expr::All(arguments);
        // These have a result when their argument has none.
        let regardless = name.starts_with("absent") || matches!(name, "vector" | "scalar" | "time");
        Ok(if regardless { Expr::Aside(Box::new(Expr::Always), Box::new(all)) } else { all })
    }

    /// Ranges, `offset` and `@`, in any order.
    fn modifiers(&mut self) -> Result<()> {
        loop {
            if self.peek() == Some(&Token::Range) {
                self.at += 1;
            } else if self.eat("offset") {
                self.eat("-");
                self.at += 1;
            } else if self.eat("@") {
                self.unary()?;
            } else {
                return Ok(());
            }
        }
    }
}

fn unexpected(token: &Token) -> Error {
    let text = match token {
        Token::Word(text) | Token::Matchers(text) | Token::Text(text) => text,
        Token::Sign(sign) => *sign,
        Token::Number => "a number",
        Token::Range => "a range",
    };
    Error::new(format!("{text:?} does not belong there"))
}

/// A selector from its name and `{…}`.
fn selector(name: Option<String>, matchers: &str) -> Result<Expr> {
    let inner = matchers.strip_prefix('{').and_then(|m| m.strip_suffix('}')).unwrap_or_default();
    let mut labels = Vec::new();
    let mut within = None;
    let tokens = tokens(inner)?;
    for (at, token) in tokens.iter().enumerate() {
        let (Token::Word(label) | Token::Text(label)) = token else { continue };
        // In version 3 a quoted name may stand alone: {"metric", label="x"}.
        match (tokens.get(at + 1), at.checked_sub(1).and_then(|before| tokens.get(before))) {
            (Some(Token::Sign("=")), _) if label == "__name__" => {
                if let Some(Token::Text(value)) = tokens.get(at + 2) {
                    within = Some(value.clone());
                }
            }
            (Some(Token::Sign("=" | "!=" | "=~" | "!~")), _) if label != "__name__" => {
                labels.push(label.clone())
            }
            (None | Some(Token::Sign(",")), None | Some(Token::Sign(","))) => within = Some(label.clone()),
            _ => {}
        }
    }
    let text = format!("{}{matchers}", name.as_deref().unwrap_or_default());
    Ok(Expr::Selector(Selector { name: name.or(within), labels, text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selectors(text: &str) -> Vec<String> {
        parse(text).unwrap().selectors().iter().map(|selector| selector.text.clone()).collect()
    }

    #[test]
    fn selectors_are_found_and_nothing_else() {
        assert_eq!(selectors("up == 0"), ["up"]);
        assert_eq!(
            selectors("sum by (site, up) (rate(a_total{x=\"}\",y=~'b'}[5m:1m] offset -1h)) > 1e-3"),
            ["a_total{x=\"}\",y=~'b'}"]
        );
        assert_eq!(
            selectors("sum(a) without (b) / on (c) group_left (d) e:f # g\n or h @ end()"),
            ["a", "e:f", "h"]
        );
        assert_eq!(
            selectors("histogram_quantile(0.95, sum by (le) (x_bucket)) >= bool 2^-Inf"),
            ["x_bucket"]
        );
        assert_eq!(
            selectors("{__name__=\"a\",b=\"c\"} AND ignoring() -d"),
            ["{__name__=\"a\",b=\"c\"}", "d"]
        );
        assert_eq!(selectors("label_replace(a, \"b\", \"$1\", \"c\", \"(.*)\")"), ["a"]);
        assert_eq!(selectors("time() - a > 0x1f * 1h30m"), ["a"]);
    }

    #[test]
    fn names_and_labels_are_known() {
        let one = |text| parse(text).unwrap().selectors()[0].clone();
        let found = one("a{b=\"c\", d!~\"e\"}");
        assert_eq!((found.name.as_deref(), found.labels), (Some("a"), vec!["b".to_owned(), "d".to_owned()]));
        assert_eq!(one("{__name__=\"a\",b=\"c\"}").name.as_deref(), Some("a"));
        assert_eq!(one("{\"a\", b=\"c\"}").name.as_deref(), Some("a"));
        assert_eq!(one("{__name__=~\"a.*\"}").name, None);
        assert_eq!(one("{b=\"c\"}").name, None);
    }

    #[test]
    fn absence_is_followed_through_operators() {
        let can =
            |text: &str| parse(text).unwrap().can_return(&|s: &Selector| s.name.as_deref() == Some("is"));
        for text in
            ["is", "is > 1", "is or no", "no or is", "is unless no", "absent(no)", "vector(1)", "1 - is"]
        {
            assert!(can(text), "{text}");
        }
        for text in
            ["no", "is and no", "is * on (a) no", "no unless is", "rate(no[5m])", "sum(no) > 1", "no or no"]
        {
            assert!(!can(text), "{text}");
        }
        assert!(can("is and (no or is) unless no"));
        assert!(!can("(is or no) and no"));
    }

    #[test]
    fn what_is_no_promql_is_refused() {
        for text in ["", "a b", "a{", "a[5m", "sum(a", "\"x", "a ;", "a ==", "sum by (a", ")", "a{b=\"c}"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"(".repeat(100_000)).is_err());
        assert!(parse(&"-".repeat(100_000)).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn anything_like_promql_is_answered(text in "([a-z_]{1,4}|[0-9.e+-]{1,4}|[\\]\\[{}()\"'`,#=~!<>@ \n]|by|on|or){0,20}") {
            let _ = parse(&text);
        }
    }
}
