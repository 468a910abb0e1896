//! What belongs to a database as a whole: owner, privileges, settings and the like, which no pg_dump archive
//! gives back under another name.
//!
//! A database that is being filled is closed: only its owner and superusers may connect. Privileges to connect
//! are therefore the last that it gets, and come back as statements for whoever opens it.

use tokio_postgres::{Client, Row};

pub use crate::database::{Label, Setting};
use crate::error::{Context, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;

/// What belongs to a database rather than to what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Owner.
    pub owner: String,
    /// `datacl` as text; absent means the default privileges.
    pub acl: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
    /// Its connection limit, where there is one.
    pub connection_limit: Option<i32>,
    /// Its own settings.
    pub settings: Vec<Setting>,
    /// Whether any role with CREATEDB may copy it, and nobody may drop it.
    pub is_template: bool,
    /// Where its files are, unless that is the server's default.
    pub tablespace: Option<String>,
    /// Its security labels, sorted.
    pub labels: Vec<Label>,
}

/// What came of giving a database its properties.
#[derive(Debug, Default)]
pub struct Applied {
    /// What the server would not take, a line each.
    pub refused: Vec<String>,
    /// What opens the database to those who may connect.
    pub opening: Vec<Sql>,
}

/// What a database knows of privileges, CONNECT aside.
const PRIVILEGES: [&str; 2] = ["CREATE", "TEMPORARY"];

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

/// The properties of a database of the session's server.
pub async fn read(client: &Client, database: &str) -> Result<Properties> {
    let row = client
        .query_one(
            "SELECT pg_get_userbyid(datdba)::text, datacl::text, shobj_description(oid, 'pg_database'),
                    nullif(datconnlimit, -1), datistemplate,
                    (SELECT spcname FROM pg_tablespace t WHERE t.oid = dattablespace AND spcname <> 'pg_default')
               FROM pg_database WHERE datname = $1",
            &[&database],
        )
        .await
        .map_err(error)
        .context("cannot read the database's owner and privileges")?;
    let settings = client
        .query(
            "SELECT r.rolname::text, s.setting FROM pg_db_role_setting d
               CROSS JOIN LATERAL unnest(d.setconfig) WITH ORDINALITY AS s (setting, n)
               LEFT JOIN pg_roles r ON r.oid = d.setrole
              WHERE d.setdatabase = (SELECT oid FROM pg_database WHERE datname = $1)
                AND (d.setrole = 0 OR r.oid IS NOT NULL)
              ORDER BY r.rolname NULLS FIRST, s.n",
            &[&database],
        )
        .await
        .map_err(error)
        .context("cannot read the database's settings")?;
    let labels = client
        .query(
            "SELECT provider, label FROM pg_shseclabel WHERE classoid = 'pg_database'::regclass
                AND objoid = (SELECT oid FROM pg_database WHERE datname = $1) ORDER BY provider",
            &[&database],
        )
        .await
        .map_err(error)
        .context("cannot read the database's security labels")?;
    let text = |row: &Row, i: usize| row.get::<_, Option<Name>>(i).map(|name| name.0);
    let label = |row: &Row| Label {
        provider: text(row, 0).unwrap_or_default(),
        label: text(row, 1).unwrap_or_default(),
    };
    let setting = |row: &Row| Setting { role: text(row, 0), setting: text(row, 1).unwrap_or_default() };
    Ok(Properties {
        owner: text(&row, 0).unwrap_or_default(),
        acl: text(&row, 1),
        comment: text(&row, 2),
        connection_limit: row.get(3),
        settings: settings.iter().map(setting).collect(),
        is_template: row.get(4),
        tablespace: text(&row, 5),
        labels: labels.iter().map(label).collect(),
    })
}

/// Takes from everybody but its owner the right to connect to a database that was just made, and lets the owner in.
pub fn close(database: &str) -> Sql {
    Sql::new("REVOKE CONNECT ON DATABASE ")
        .ident(database)
        .then(" FROM PUBLIC; ALTER DATABASE ")
        .ident(database)
        .then(" ALLOW_CONNECTIONS true")
}

/// What a database that [`close`] closed gets where nothing is known of its privileges.
pub fn open(database: &str) -> Sql {
    Sql::new("GRANT CONNECT ON DATABASE ").ident(database).then(" TO PUBLIC")
}

/// Gives a closed database these properties, one after another whatever becomes of the others. Its tablespace
/// is where it was made. `name`: what it is called when it is opened.
pub async fn apply(client: &Client, database: &str, name: &str, properties: &Properties) -> Applied {
    let mut warnings = apply_settings(client, database, &properties.settings).await;
    let owner = Sql::new("ALTER DATABASE ").ident(database).then(" OWNER TO ").ident(&properties.owner);
    if let Err(failure) = owner.run(client).await {
        warnings.push(format!("owner {:?} was not set: {}", properties.owner, error(failure)));
    }
    let mut opening = Vec::new();
    match apply_acl(client, database, name, properties, &mut opening).await {
        Ok(refused) => warnings.extend(refused),
        Err(failure) => warnings.push(failure.to_string()),
    }
    if let Some(limit) = properties.connection_limit {
        let sql = Sql::new("ALTER DATABASE ").ident(database).then(" CONNECTION LIMIT ").number(limit);
        if let Err(failure) = sql.run(client).await {
            warnings.push(format!("the connection limit {limit} was not set: {}", error(failure)));
        }
    }
    if let Some(comment) = &properties.comment {
        let sql = Sql::new("COMMENT ON DATABASE ").ident(database).then(" IS ").literal(comment);
        if let Err(failure) = sql.run(client).await {
            warnings.push(format!("the database's comment was not set: {}", error(failure)));
        }
    }
    for Label { provider, label } in &properties.labels {
        let sql = Sql::new("SECURITY LABEL FOR ").ident(provider).then(" ON DATABASE ").ident(database);
        if let Err(failure) = sql.then(" IS ").literal(label).run(client).await {
            warnings.push(format!("the security label of {provider:?} was not set: {}", error(failure)));
        }
    }
    if properties.is_template {
        let sql = Sql::new("ALTER DATABASE ").ident(database).then(" IS_TEMPLATE true");
        if let Err(failure) = sql.run(client).await {
            warnings.push(format!("the database was not made a template: {}", error(failure)));
        }
    }
    Applied { refused: warnings, opening }
}

/// What a database has other than it should, although no statement was refused; privileges aside.
pub fn differences(wanted: &Properties, found: &Properties) -> Vec<&'static str> {
    let sorted = |settings: &[Setting]| {
        let mut all: Vec<_> = settings.iter().map(|s| (s.role.clone(), s.setting.clone())).collect();
        all.sort();
        all
    };
    let pairs = [
        ("its owner", wanted.owner == found.owner),
        ("its comment", wanted.comment == found.comment),
        ("its connection limit", wanted.connection_limit == found.connection_limit),
        ("its settings", sorted(&wanted.settings) == sorted(&found.settings)),
        ("being a template", wanted.is_template == found.is_template),
        ("its tablespace", wanted.tablespace == found.tablespace),
        ("its security labels", wanted.labels == found.labels),
    ];
    pairs.into_iter().filter(|(_, is_same)| !is_same).map(|(what, _)| what).collect()
}

/// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET` alone.
pub async fn apply_settings(client: &Client, database: &str, settings: &[Setting]) -> Vec<String> {
    let mut warnings = Vec::new();
    for setting in settings {
        let Some(sql) = statement(database, setting) else { continue };
        if let Err(failure) = sql.run(client).await {
            // Values may be secrets, and the server repeats those that it refuses.
            let name = setting.setting.split('=').next().unwrap_or_default();
            let code = failure.code().map_or("no SQLSTATE", |code| code.code());
            warnings.push(format!("setting {name:?} was not applied (SQLSTATE {code})"));
        }
    }
    warnings
}

/// Privileges on the database. The server takes the text apart, item by item: a role that is missing
/// here would make all of it unreadable. Those to connect are put to `opening`, under `name`.
async fn apply_acl(
    client: &Client,
    database: &str,
    name: &str,
    properties: &Properties,
    opening: &mut Vec<Sql>,
) -> Result<Vec<String>> {
    let Some(acl) = properties.acl.as_deref() else {
        opening.push(open(name));
        return Ok(Vec::new());
    };
    let mut warnings = Vec::new();
    let items = client
        .query("SELECT unnest($1::text::text[])", &[&acl])
        .await
        .map_err(error)
        .context("cannot read the database's privileges")?;
    // An owner has all of them until some are taken, which somebody may have done.
    for whom in [Sql::new("PUBLIC"), Sql::new("").ident(&properties.owner)] {
        let revoke = Sql::new("REVOKE ALL ON DATABASE ").ident(database).then(" FROM ").sql(&whom);
        revoke.run(client).await.map_err(error).context("cannot set the database's privileges")?;
    }
    for item in items {
        let item: String = item.get(0);
        let granted = client
            .query(
                "SELECT r.rolname, a.privilege_type, a.is_grantable
                   FROM aclexplode(ARRAY[$1::text::aclitem]) a LEFT JOIN pg_roles r ON r.oid = a.grantee",
                &[&item],
            )
            .await;
        let granted = match granted {
            Ok(rows) => rows,
            Err(failure) => {
                warnings.push(format!("privilege {item:?} was not granted: {}", error(failure)));
                continue;
            }
        };
        for row in granted {
            let (grantee, privilege): (Option<Name>, String) = (row.get(0), row.get(1));
            let grantee = match grantee {
                Some(Name(role)) => Sql::new("").ident(&role),
                None => Sql::new("PUBLIC"),
            };
            let grant = |privilege: &'static str, database: &str| {
                let sql = Sql::new("GRANT ").then(privilege).then(" ON DATABASE ").ident(database);
                let sql = sql.then(" TO ").sql(&grantee);
                if row.get(2) { sql.then(" WITH GRANT OPTION") } else { sql }
            };
            if privilege == "CONNECT" {
                opening.push(grant("CONNECT", name));
                continue;
            }
            let Some(privilege) = PRIVILEGES.into_iter().find(|known| *known == privilege) else {
                warnings.push(format!("privilege {item:?} was not granted: it is not known"));
                continue;
            };
            if let Err(failure) = grant(privilege, database).run(client).await {
                warnings.push(format!("privilege {item:?} was not granted: {}", error(failure)));
            }
        }
    }
    Ok(warnings)
}

/// Name and values of `name=value`: of a list several.
pub fn values(setting: &str) -> Option<(&str, Vec<String>)> {
    let (name, value) = setting.split_once('=')?;
    let values = match LISTS.contains(&name.to_lowercase().as_str()) {
        true => split_list(value),
        false => vec![value.to_owned()],
    };
    Some((name, values))
}

/// `ALTER DATABASE … SET` or `ALTER ROLE … IN DATABASE … SET`; `None` for a text that is no setting.
pub fn statement(database: &str, setting: &Setting) -> Option<Sql> {
    let (name, values) = values(&setting.setting)?;
    let target = match &setting.role {
        None => Sql::new("DATABASE ").ident(database),
        Some(role) => Sql::new("ROLE ").ident(role).then(" IN DATABASE ").ident(database),
    };
    Some(Sql::new("ALTER ").sql(&target).then(" SET ").sql(&assignment(name, &values)))
}

/// `"name" TO 'value'`, of which a list has several; none is an empty list.
pub fn assignment(name: &str, values: &[String]) -> Sql {
    // Extensions' settings have a dot in their names.
    let name = Sql::new("").join(name.split('.').map(|part| Sql::new("").ident(part)), ".");
    match values {
        [] => name.then(" TO ''"),
        values => name.then(" TO ").join(values.iter().map(|value| Sql::new("").literal(value)), ", "),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_statements() {
        let of = |role: Option<&str>, setting: &str| {
            statement("a\"b", &Setting { role: role.map(Into::into), setting: setting.into() })
                .unwrap()
                .to_string()
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
