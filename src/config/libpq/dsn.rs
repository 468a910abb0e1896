//! Connection strings: URLs and key=value. No message here quotes the string.

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::{Settings, supported};
use crate::error::{Error, Result};

pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Reads either form; what is wrong goes to `issues`.
pub(super) fn parse(text: &str, issues: &mut Vec<Error>) -> Settings {
    let mut settings = Settings::new();
    let result = if is_url(text) {
        url(text, &mut settings, issues)
    } else if text.contains('=') {
        key_value(text, &mut settings, issues)
    } else {
        Err(Error::usage("is neither a postgres:// URL nor key=value settings")
            .with_hint("as in postgres://user@host:5432/database"))
    };
    issues.extend(result.err());
    settings
}

/// libpq's own reading: everything up to the first @ that comes before a / is user and password.
fn url(text: &str, settings: &mut Settings, issues: &mut Vec<Error>) -> Result<()> {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let authority_end = rest.find(['@', '/']).unwrap_or(rest.len());
    let rest = if rest[authority_end..].starts_with('@') {
        let (user, password) = match rest[..authority_end].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&rest[..authority_end], None),
        };
        insert(settings, "user", decode(user, "user")?);
        if let Some(password) = password {
            insert(settings, "password", decode(password, "password")?);
        }
        &rest[authority_end + 1..]
    } else {
        rest
    };
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (rest, None),
    };
    let (authority, dbname) = match before_query.split_once('/') {
        Some((authority, dbname)) => (authority, Some(dbname)),
        None => (before_query, None),
    };
    // libpq would take what stands here for host and database; nearly always it is the rest of a
    // password, and it would be shown as a host.
    if before_query.contains('@') || dbname.is_some_and(|d| d.contains('/')) {
        return Err(Error::usage("has an unescaped @ or / in the password or database name")
            .with_hint("percent-encode special characters: @ is %40, / is %2F"));
    }
    hosts(authority, settings)?;
    if let Some(dbname) = dbname {
        insert(settings, "dbname", decode(dbname, "database name")?);
    }
    for (index, pair) in query.into_iter().flat_map(|q| q.split('&')).enumerate() {
        let position = format!("parameter {} after the ?", index + 1);
        if let Err(issue) = parameter(pair, &position, settings) {
            issues.push(issue);
        }
    }
    Ok(())
}

fn hosts(authority: &str, settings: &mut Settings) -> Result<()> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for part in authority.split(',') {
        let (host, port) = if let Some(inner) = part.strip_prefix('[') {
            let (host, after) = inner
                .split_once(']')
                .ok_or_else(|| Error::usage("an IPv6 address has no closing bracket"))?;
            if host.is_empty() {
                return Err(Error::usage("an IPv6 address is empty"));
            }
            match after.strip_prefix(':') {
                Some(port) => (host, port),
                None if after.is_empty() => (host, ""),
                None => return Err(Error::usage("something unexpected follows an IPv6 address")),
            }
        } else {
            part.split_once(':').unwrap_or((part, ""))
        };
        let host = decode(host, "host")?;
        // The lists are joined with commas below, as libpq keeps them.
        if host.contains(',') {
            return Err(Error::usage("host has a comma in it"));
        }
        names.push(host);
        ports.push(decode(port, "port")?);
    }
    if names.iter().any(|n| !n.is_empty()) {
        insert(settings, "host", joined(&names));
    }
    if ports.iter().any(|p| !p.is_empty()) {
        insert(settings, "port", joined(&ports));
    }
    Ok(())
}

fn parameter(pair: &str, position: &str, settings: &mut Settings) -> Result<()> {
    let Some((key, value)) = pair.split_once('=') else {
        return Err(Error::usage(format!("{position} has no =")));
    };
    let (key, value) = (decode(key, position)?, decode(value, position)?);
    // JDBC's spelling, which libpq understands too.
    if *key == "ssl" && *value == "true" {
        insert(settings, "sslmode", Zeroizing::new("require".into()));
        return Ok(());
    }
    let key = supported(&key, position)?;
    insert(settings, key, value);
    Ok(())
}

/// An empty value says nothing, as with libpq's URLs.
fn insert(settings: &mut Settings, key: &'static str, value: Zeroizing<String>) {
    if !value.is_empty() {
        settings.insert(key, value);
    }
}

fn joined(texts: &[Zeroizing<String>]) -> Zeroizing<String> {
    Zeroizing::new(texts.iter().map(|text| text.as_str()).collect::<Vec<_>>().join(","))
}

/// What may be a password leaves no other copy: nothing here outgrows its memory.
fn decode(text: &str, what: &str) -> Result<Zeroizing<String>> {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit());
        if byte == b'%' && !(hex(bytes.next()) && hex(bytes.next())) {
            return Err(Error::usage(format!("{what} has a % that two hexadecimal digits do not follow"))
                .with_hint("a literal % is written %25"));
        }
    }
    let mut decoded = Zeroizing::new(Vec::with_capacity(text.len()));
    decoded.extend(percent_decode_str(text));
    let decoded = std::str::from_utf8(&decoded)
        .map_err(|_| Error::usage(format!("{what} is not UTF-8 once its % codes are decoded")))?;
    if decoded.contains('\0') {
        return Err(Error::usage(format!("{what} has a NUL (%00) in it")));
    }
    Ok(Zeroizing::new(decoded.to_owned()))
}

fn key_value(text: &str, settings: &mut Settings, issues: &mut Vec<Error>) -> Result<()> {
    let mut rest = text.trim_start();
    let mut index = 0;
    while !rest.is_empty() {
        index += 1;
        let position = format!("setting {index}");
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let key = &rest[..end];
        let Some(after) = rest[end..].trim_start().strip_prefix('=') else {
            return Err(Error::usage(format!("{position} has no ="))
                .with_hint("a value with blanks stands in single quotes: password='a b'"));
        };
        let (value, after) = value(after.trim_start(), &position)?;
        match supported(key, &position) {
            Ok(key) => {
                settings.insert(key, value);
            }
            Err(issue) => issues.push(issue),
        }
        rest = after.trim_start();
    }
    Ok(())
}

/// A value, quoted or not, where a backslash takes the next character as it is.
fn value<'a>(text: &'a str, position: &str) -> Result<(Zeroizing<String>, &'a str)> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = Zeroizing::new(String::with_capacity(body.len()));
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &body[at..])),
            '\0' => return Err(Error::usage(format!("{position} has a NUL in it"))),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(Error::usage(format!("{position} has no closing quote")));
    }
    Ok((value, ""))
}
