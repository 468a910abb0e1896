//! A database's own settings, owner and privileges, which no pg_dump archive gives back under another
//! name.

use tokio_postgres::Client;

use crate::error::{Context, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::{Name, quote_ident, quote_literal};

/// One row of pg_db_role_setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The role it is limited to; absent means everybody.
    pub role: Option<String>,
    /// `name=value`.
    pub setting: String,
}

/// Settings whose value is a list of names, each quoted by itself (`GUC_LIST_QUOTE` in PostgreSQL's
/// `guc_tables.c`).
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// Applies `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`; says what could not be applied.
pub async fn apply(client: &Client, database: &str, settings: &[Setting]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for setting in settings {
        let Some(sql) = statement(database, setting) else { continue };
        if let Err(failure) = client.batch_execute(&sql).await {
            warnings.push(format!("setting {:?} was not applied: {}", setting.setting, error(failure)));
        }
    }
    Ok(warnings)
}

fn statement(database: &str, setting: &Setting) -> Option<String> {
    let (name, value) = setting.setting.split_once('=')?;
    let value = if LISTS.contains(&name.to_lowercase().as_str()) {
        let names = split_list(value);
        if names.is_empty() {
            "''".into()
        } else {
            names.iter().map(|n| quote_literal(n)).collect::<Vec<_>>().join(", ")
        }
    } else {
        quote_literal(value)
    };
    // Extensions' settings have a dot in their names.
    let name = name.split('.').map(quote_ident).collect::<Vec<_>>().join(".");
    let target = match &setting.role {
        None => format!("DATABASE {}", quote_ident(database)),
        Some(role) => format!("ROLE {} IN DATABASE {}", quote_ident(role), quote_ident(database)),
    };
    Some(format!("ALTER {target} SET {name} TO {value}"))
}

/// The names in `"$user", public`.
fn split_list(value: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                push(&mut names, '"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            c if c.is_whitespace() && !quoted => {}
            c => push(&mut names, c),
        }
    }
    if names == [""] { Vec::new() } else { names }
}

fn push(names: &mut [String], c: char) {
    if let Some(last) = names.last_mut() {
        last.push(c);
    }
}

/// The settings that a database has now.
pub async fn read(client: &Client) -> Result<Vec<Setting>> {
    let rows = client
        .query(
            "SELECT r.rolname::text, s.setting FROM pg_db_role_setting d
               CROSS JOIN LATERAL unnest(d.setconfig) WITH ORDINALITY AS s (setting, n)
               LEFT JOIN pg_roles r ON r.oid = d.setrole
              WHERE d.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND (d.setrole = 0 OR r.oid IS NOT NULL)
              ORDER BY r.rolname NULLS FIRST, s.n",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the database's settings")?;
    Ok(rows
        .iter()
        .map(|row| Setting {
            role: row.get::<_, Option<Name>>(0).map(|r| r.0),
            setting: row.get::<_, Name>(1).0,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_statements() {
        let of = |role: Option<&str>, setting: &str| {
            statement("a\"b", &Setting { role: role.map(Into::into), setting: setting.into() }).unwrap()
        };
        assert_eq!(
            of(None, "search_path=\"$user\", public, \"x,\"\"y\""),
            "ALTER DATABASE \"a\"\"b\" SET \"search_path\" TO '$user', 'public', 'x,\"y'"
        );
        assert_eq!(of(None, "search_path="), "ALTER DATABASE \"a\"\"b\" SET \"search_path\" TO ''");
        assert_eq!(
            of(Some("r"), "my.setting=it's"),
            "ALTER ROLE \"r\" IN DATABASE \"a\"\"b\" SET \"my\".\"setting\" TO 'it''s'"
        );
    }
}
