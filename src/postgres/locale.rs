//! Creating a database with a given encoding and locale, on a host that may lack the locale.
//!
//! The encoding is never given up: other bytes would be another database. Locales fall back towards
//! C where that is allowed, which changes how text sorts and folds, and what is said to the operator.

pub use crate::database::Locale;
use crate::error::{Context, Error, Result};
use crate::postgres::connect::Session;
use crate::postgres::sql::Sql;

/// Whether another locale than the one that is wanted will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// The nearest that there is: the database is looked at, and dropped.
    Nearest,
    /// No: people will work in it.
    Refused,
}

/// Creates an empty database from template0 with these further `options`, as close to `wanted` as this server
/// can; returns what had to be substituted, a line each.
pub async fn create_database(
    session: &Session,
    name: &str,
    wanted: &Locale,
    options: &Sql,
    fallback: Fallback,
) -> Result<Vec<String>> {
    let mut candidates = candidates(wanted);
    if session.major() < 15 {
        // The statement could not even name another provider.
        candidates.retain(|candidate| candidate.provider == "libc");
    }
    if fallback == Fallback::Refused {
        candidates.retain(|candidate| candidate == wanted);
        if candidates.is_empty() {
            return Err(lacks(name, wanted, &Error::new("PostgreSQL 15 brought other providers")));
        }
    }
    let last = candidates.len() - 1;
    for (i, candidate) in candidates.iter().enumerate() {
        let sql = statement(name, candidate, session.major()).sql(options);
        match sql.run(&session.client).await {
            Ok(()) => return Ok(substitutions(name, wanted, candidate, &session.server_version)),
            Err(e) if i < last && is_about_locales(&e) => {
                tracing::debug!(database = name, ?candidate, "locale is not available");
            }
            Err(e) if fallback == Fallback::Refused && is_about_locales(&e) => {
                return Err(lacks(name, wanted, &e.into()));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot create database {name:?}")),
        }
    }
    Ok(Vec::new())
}

/// That it cannot be made as it was.
fn lacks(name: &str, wanted: &Locale, why: &Error) -> Error {
    let mut locale = format!("LC_COLLATE {:?}, LC_CTYPE {:?}", wanted.collate, wanted.ctype);
    if let Some(named) = &wanted.locale {
        locale.push_str(&format!(", locale {named:?} of provider {}", wanted.provider));
    }
    Error::new(format!("database {name:?} needs {locale}, which this server does not have: {why}")).with_hint(
        format!(
            "install the locale on the server's host{}, or create an empty database in {} yourself, with the \
             locale of your choice, and name it: text may then sort differently",
            if wanted.provider == "icu" { " (a PostgreSQL built with ICU)" } else { "" },
            wanted.encoding
        ),
    )
}

/// What an existing database has instead of `wanted`, a line each.
pub async fn differences(session: &Session, name: &str, wanted: &Locale) -> Result<Vec<String>> {
    let row = session
        .client
        .query_one(
            "SELECT datcollate::text, datctype::text, coalesce(to_jsonb(d) ->> 'datlocprovider', 'c'),
                    coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale')
               FROM pg_database d WHERE datname = current_database()",
            &[],
        )
        .await
        .context("cannot read the database's locale")?;
    let provider = match row.get::<_, String>(2).as_str() {
        "i" => "icu",
        "b" => "builtin",
        _ => "libc",
    };
    let (collate, ctype, locale): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(3));
    let pairs = [
        ("LC_COLLATE", wanted.collate.as_str(), collate.as_str()),
        ("LC_CTYPE", &wanted.ctype, &ctype),
        ("locale provider", &wanted.provider, provider),
        ("locale", wanted.locale.as_deref().unwrap_or_default(), locale.as_deref().unwrap_or_default()),
    ];
    let differing = pairs.into_iter().filter(|(_, wanted, found)| wanted != found);
    let line = |(what, wanted, found): (&str, &str, &str)| {
        format!(
            "database {name:?} has {what} {found:?}, the set's was {wanted:?}: text may sort and fold differently"
        )
    };
    Ok(differing.map(line).collect())
}

/// What to try, in order.
fn candidates(wanted: &Locale) -> Vec<Locale> {
    let mut all = Vec::new();
    let mut providers = vec![wanted.provider.as_str()];
    if wanted.provider != "libc" {
        providers.push("libc");
    }
    for provider in providers {
        let mut names = vec![(wanted.collate.as_str(), wanted.ctype.as_str())];
        if wanted.encoding == "UTF8" {
            names.push(("C.UTF-8", "C.UTF-8"));
        }
        names.push(("C", "C"));
        names.dedup();
        for (collate, ctype) in names {
            let mut candidate = Locale {
                provider: provider.into(),
                collate: collate.into(),
                ctype: ctype.into(),
                ..wanted.clone()
            };
            if provider == "libc" {
                (candidate.locale, candidate.icu_rules) = (None, None);
            }
            all.push(candidate);
        }
    }
    all
}

fn statement(name: &str, locale: &Locale, major: u32) -> Sql {
    let mut sql = Sql::new("CREATE DATABASE ")
        .ident(name)
        .then(" TEMPLATE template0 ENCODING ")
        .literal(&locale.encoding)
        .then(" LC_COLLATE ")
        .literal(&locale.collate)
        .then(" LC_CTYPE ")
        .literal(&locale.ctype);
    if major >= 15 {
        sql = sql.then(" LOCALE_PROVIDER ").ident(&locale.provider);
        let name = if locale.provider == "builtin" { " BUILTIN_LOCALE " } else { " ICU_LOCALE " };
        for (option, value) in [(name, &locale.locale), (" ICU_RULES ", &locale.icu_rules)] {
            if let Some(value) = value {
                sql = sql.then(option).literal(value);
            }
        }
    }
    sql
}

/// No such locale, no such provider in this build, or one that does not fit the encoding.
fn is_about_locales(e: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::SqlState;
    e.code().is_some_and(|code| {
        [
            SqlState::WRONG_OBJECT_TYPE,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::INVALID_OBJECT_DEFINITION,
        ]
        .contains(code)
    })
}

fn substitutions(name: &str, wanted: &Locale, got: &Locale, version: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if wanted.provider != got.provider {
        lines.push(format!(
            "database {name:?}: locale {:?} of provider {} is not available in PostgreSQL {version} here, \
             libc is used; text may sort differently",
            wanted.locale.as_deref().unwrap_or_default(),
            wanted.provider,
        ));
    }
    for (what, wanted, got) in
        [("LC_COLLATE", &wanted.collate, &got.collate), ("LC_CTYPE", &wanted.ctype, &got.ctype)]
    {
        if wanted != got {
            lines.push(format!(
                "database {name:?}: {what} {wanted:?} is not installed on this host, {got:?} is used; text \
                 may sort and fold differently"
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn icu() -> Locale {
        Locale {
            encoding: "UTF8".into(),
            collate: "de_DE.UTF-8".into(),
            ctype: "de_DE.UTF-8".into(),
            provider: "icu".into(),
            locale: Some("de-DE".into()),
            icu_rules: None,
            monetary: "C".into(),
        }
    }

    #[test]
    fn the_encoding_is_never_given_up() {
        let all = candidates(&icu());
        assert!(all.iter().all(|c| c.encoding == "UTF8"));
        let tried: Vec<_> = all.iter().map(|c| (c.provider.as_str(), c.collate.as_str())).collect();
        let names = ["de_DE.UTF-8", "C.UTF-8", "C"];
        let expected: Vec<_> = ["icu", "libc"].iter().flat_map(|p| names.map(|n| (*p, n))).collect();
        assert_eq!(tried, expected);
        let latin = Locale {
            encoding: "LATIN1".into(),
            provider: "libc".into(),
            collate: "C".into(),
            ctype: "C".into(),
            ..icu()
        };
        assert_eq!(candidates(&latin).len(), 1);
    }

    #[test]
    fn statements_fit_the_version() {
        let said = |name: &str, locale: &Locale, major| statement(name, locale, major).to_string();
        let libc = Locale { provider: "libc".into(), locale: None, ..icu() };
        assert!(!said("a\"b", &libc, 14).contains("PROVIDER"));
        assert!(said("a\"b", &libc, 14).starts_with("CREATE DATABASE \"a\"\"b\" TEMPLATE template0"));
        assert!(said("a", &icu(), 16).ends_with("LOCALE_PROVIDER \"icu\" ICU_LOCALE 'de-DE'"));
        let builtin = Locale { provider: "builtin".into(), locale: Some("C.UTF-8".into()), ..icu() };
        assert!(said("a", &builtin, 17).ends_with("LOCALE_PROVIDER \"builtin\" BUILTIN_LOCALE 'C.UTF-8'"));
    }
}
