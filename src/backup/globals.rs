//! Roles, their memberships and settings: dumped beside the first database's snapshot, and where there
//! are several databases once more beside the last one's.
//!
//! Databases are dumped one after another, over hours, and each may name a role that was made or dropped
//! meanwhile. The later dump is kept; roles that only the earlier one has are added to it, because the
//! first database may need them.
//!
//! Statements are told apart as PostgreSQL does: a role's name may hold lines that look like others.

use std::collections::BTreeSet;
use std::time::Duration;

use super::source::Source;
use crate::config::libpq::dbname_argument;
use crate::error::{Context, Result};
use crate::postgres::connect::error;
use crate::postgres::messages::explain_dump;
use crate::postgres::settings;
use crate::process;
use crate::set::lexer::{Statement, statements};

/// How long pg_dumpall may take for roles alone.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How often roles are dumped at most. pg_dumpall has no snapshot: it reads first which roles there are, and then what is
/// said of them, so that one that is made in between is spoken of and not made.
const ATTEMPTS: u32 = 3;
/// Between two of them: who makes roles makes several.
const PAUSE: Duration = Duration::from_secs(1);
/// Bytes of role definitions that are held in memory; a hundred thousand roles fit.
const LIMIT: u64 = 64 << 20;

/// Roles and their settings. A role that may not read passwords still saves the rest.
pub(super) async fn dump(source: &Source, warnings: &mut Vec<String>) -> Result<Vec<u8>> {
    let row = source
        .session
        .client
        .query_one("SELECT has_column_privilege('pg_catalog.pg_authid', 'rolpassword', 'SELECT')", &[])
        .await
        .map_err(error)
        .context("cannot ask for the role's privileges")?;
    let may_read: bool = row.get(0);
    let more: &[&str] = if may_read { &[] } else { &["--no-role-passwords"] };
    if !may_read {
        let warning = "roles are saved without their passwords: the role may not read pg_authid";
        add(warnings, warning.to_owned());
    }
    let mut attempt = 1;
    loop {
        let (sql, said) = pg_dumpall(source, more).await.context("cannot dump roles")?;
        let unmade = unmade(&String::from_utf8_lossy(&sql)).unwrap_or_else(|error| {
            add(warnings, format!("what was dumped of roles is not looked at: {error}"));
            BTreeSet::new()
        });
        if unmade.is_empty() || attempt == ATTEMPTS {
            said.into_iter().for_each(|warning| add(warnings, warning));
            let names: Vec<String> = unmade.iter().map(|name| format!("{name:?}")).collect();
            if !names.is_empty() {
                let warning = "roles came while they were dumped, and are not made by what is stored";
                add(warnings, format!("{warning}: {}", names.join(", ")));
            }
            return Ok(sql);
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Dumped twice, warned once.
fn add(warnings: &mut Vec<String>, warning: String) {
    if !warnings.contains(&warning) {
        warnings.push(warning);
    }
}

async fn pg_dumpall(source: &Source, more: &[&str]) -> Result<(Vec<u8>, Vec<String>)> {
    let mut connection = source.connection.clone();
    // Unlike pg_dump it leaves this to the server, and another one reads the day on which a password ends as its own
    // settings say.
    let iso = settings::option("datestyle", "ISO");
    connection.options = Some(connection.options.map_or(iso.clone(), |own| format!("{own} {iso}")));
    let mut command =
        source.tools.command("pg_dumpall", &connection, &connection.dbname, &source.application_name)?;
    command.args(["--globals-only", "--no-password"]);
    command.arg(format!("--encoding={}", source.encoding));
    // pg_dumpall reads this as a connection string, so an odd name must be quoted within one.
    command.arg(format!("--database={}", dbname_argument(&connection.dbname)));
    command.args(more);
    let (exit, sql) = process::output("pg_dumpall", command, TIMEOUT, LIMIT).await?;
    exit.check().map_err(explain_dump)?;
    Ok((sql, exit.stderr_lines()))
}

/// The later dump, and what the earlier one says of roles that are gone since.
pub(super) fn merged(earlier: &[u8], later: Vec<u8>) -> Result<Vec<u8>> {
    let earlier = String::from_utf8_lossy(earlier);
    let still = created(&String::from_utf8_lossy(&later))?;
    let gone: BTreeSet<String> = created(&earlier)?.difference(&still).cloned().collect();
    if gone.is_empty() {
        return Ok(later);
    }
    let mut sql = later;
    sql.extend_from_slice(b"\n-- Dropped while the backup was made, after the first database's snapshot:\n");
    for statement in statements(&earlier) {
        let statement = statement?;
        if role(&statement, &["CREATE", "ALTER"]).is_some_and(|name| gone.contains(&name)) {
            sql.extend_from_slice(statement.text.as_bytes());
            sql.extend_from_slice(b";\n");
        }
    }
    Ok(sql)
}

/// Roles that a script of pg_dumpall's changes, makes members or gives members, and does not make.
fn unmade(sql: &str) -> Result<BTreeSet<String>> {
    let (made, mut named) = (created(sql)?, BTreeSet::new());
    for statement in statements(sql) {
        let statement = statement?;
        match &statement.tokens[..] {
            [verb, group, to, member, ..] if verb.is("GRANT") && to.is("TO") => {
                named.extend(group.name().into_iter().chain(member.name()));
            }
            _ => named.extend(role(&statement, &["ALTER"])),
        }
    }
    // PostgreSQL's own are in every cluster, and nobody else's may be called like that.
    Ok(named.into_iter().filter(|name| !made.contains(name) && !name.starts_with("pg_")).collect())
}

/// Names of the roles that a script makes.
fn created(sql: &str) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for statement in statements(sql) {
        names.extend(role(&statement?, &["CREATE"]));
    }
    Ok(names)
}

/// The role that a statement with one of these verbs is about.
fn role(statement: &Statement<'_>, verbs: &[&str]) -> Option<String> {
    match &statement.tokens[..] {
        [verb, what, name, ..] if what.is("ROLE") && verbs.iter().any(|known| verb.is(known)) => name.name(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_came_while_they_were_dumped_are_found() {
        let sql = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nGRANT pg_monitor TO app GRANTED BY app;\n\
                   GRANT SET ON PARAMETER work_mem TO app;\nALTER ROLE app IN DATABASE d SET a TO 'b';\n";
        assert!(unmade(sql).unwrap().is_empty());
        let late =
            format!("{sql}GRANT \"team 1\" TO app;\nGRANT app TO new;\nALTER ROLE newer SET a TO 'b';\n");
        assert_eq!(unmade(&late).unwrap().into_iter().collect::<Vec<_>>(), ["new", "newer", "team 1"]);
    }

    #[test]
    fn a_role_made_or_dropped_between_two_databases_is_saved() {
        let earlier = "\\restrict a\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nCREATE ROLE \"o\"\"ld one\";\n\
                       ALTER ROLE \"o\"\"ld one\" WITH NOLOGIN;\n\\unrestrict a\n";
        let later = "\\restrict b\nCREATE ROLE app;\nALTER ROLE app WITH NOLOGIN;\nCREATE ROLE new;\n\\unrestrict b\n";
        let both = String::from_utf8(merged(earlier.as_bytes(), later.into()).unwrap()).unwrap();
        let added = both.strip_prefix(later).unwrap();
        let statements: Vec<&str> = added.lines().filter(|l| !l.is_empty() && !l.starts_with("--")).collect();
        assert_eq!(statements, ["CREATE ROLE \"o\"\"ld one\";", "ALTER ROLE \"o\"\"ld one\" WITH NOLOGIN;"]);
        // Nothing vanished: the later one as it is.
        assert_eq!(merged(b"CREATE ROLE app;\n", later.into()).unwrap(), later.as_bytes());
    }

    /// Whoever may make a role may give it any name, and drop it while the backup is made.
    #[test]
    fn a_role_whose_name_is_a_script_adds_nothing_else() {
        let name = "\"x\nCREATE ROLE evil;\nALTER ROLE evil WITH SUPERUSER;\n\"";
        let earlier = format!("CREATE ROLE {name};\nALTER ROLE {name} WITH LOGIN;\n");
        let both = merged(earlier.as_bytes(), b"CREATE ROLE app;\n".to_vec()).unwrap();
        let roles = crate::set::globals::Globals::parse(&String::from_utf8(both).unwrap()).unwrap().roles;
        let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
        assert_eq!(names, ["app", "x\nCREATE ROLE evil;\nALTER ROLE evil WITH SUPERUSER;\n"]);
    }
}
