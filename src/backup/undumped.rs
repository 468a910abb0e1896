//! Rows that pg_dump takes into no dump, whatever it is asked for: of tables that are members of an extension, of
//! those that an extension fills itself, and of tables in a system's schema.
//!
//! `CREATE EXTENSION` is all that a dump holds of an extension, so rows come back where its script makes them, and
//! only as it makes them. A backup says which tables have others. A job may take such tables along
//! ([`along`]); of the rest the proof holds a fingerprint, and a rehearsal finds out what came back by itself.

pub mod along;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::plan::list;
use crate::config::{BackupJob, Databases};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::Name;
use crate::postgres::pattern::matches_pattern;
use crate::postgres::sql::Sql;

/// How long such a table may be locked by others, or be searched for rows that nobody makes again.
const LOCK_TIMEOUT: &str = "500ms";
const SEARCH_TIMEOUT: &str = "30s";
/// How long all such tables may be searched together: the coordinator's locks are held meanwhile.
const SEARCH_BOUND: Duration = Duration::from_secs(120);

/// A table that pg_dump leaves out, or some of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Undumped {
    /// Its OID.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// The extension that it is a member of; absent in a system's schema.
    pub extension: Option<String>,
    /// Which rows pg_dump takes, where it takes some: the extension says that this is the user's part.
    pub condition: Option<String>,
    /// The columns that COPY writes.
    pub columns: Vec<String>,
    /// Whether it has no rows of its own.
    pub is_partitioned: bool,
    /// The table that it is a partition of.
    pub partition_of: Option<u32>,
    /// Whether our role may read it.
    pub is_readable: bool,
    /// Whether policies would hide rows from our role.
    pub has_active_row_security: bool,
    /// Whether a standby cannot read it.
    pub is_unlogged: bool,
}

impl Undumped {
    /// `schema.name` for people.
    pub fn display(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    fn relation(&self) -> Sql {
        Sql::new("").qualified(&self.schema, &self.name)
    }
}

/// All such tables of the session's database. Those of `information_schema` that PostgreSQL's own script makes may
/// have been made again by a superuser, as some release notes say.
pub async fn read(client: &Client) -> Result<Vec<Undumped>> {
    let rows = client
        .query(
            "SELECT c.oid, n.nspname, c.relname, e.extname, x.condition,
                    ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
                             AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum),
                    c.relkind = 'p',
                    (SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition),
                    has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
                    row_security_active(c.oid), c.relpersistence = 'u'
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
                                    AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
               LEFT JOIN pg_extension e ON e.oid = d.refobjid
               LEFT JOIN LATERAL (SELECT u.condition FROM unnest(e.extconfig, e.extcondition) AS u (relation, condition)
                                   WHERE u.relation = c.oid LIMIT 1) x ON true
              WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND c.relpersistence <> 't'
                AND CASE WHEN e.oid IS NOT NULL THEN x.condition IS DISTINCT FROM ''
                         WHEN n.nspname = 'information_schema'
                         THEN c.relname NOT IN ('sql_features', 'sql_implementation_info', 'sql_languages', 'sql_packages',
                                                'sql_parts', 'sql_sizing', 'sql_sizing_profiles')
                         ELSE n.nspname ~ '^pg_' AND n.nspname !~ '^pg_(temp|toast)' END
              ORDER BY n.nspname, c.relname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list what pg_dump leaves out")?;
    let table = |row: &tokio_postgres::Row| Undumped {
        oid: row.get(0),
        schema: row.get::<_, Name>(1).0,
        name: row.get::<_, Name>(2).0,
        extension: row.get::<_, Option<Name>>(3).map(|name| name.0),
        condition: row.get::<_, Option<Name>>(4).map(|text| text.0),
        columns: row.get::<_, Vec<Name>>(5).into_iter().map(|name| name.0).collect(),
        is_partitioned: row.get(6),
        partition_of: row.get(7),
        // A table that was dropped meanwhile has neither.
        is_readable: row.get::<_, Option<bool>>(8).unwrap_or(false),
        has_active_row_security: row.get::<_, Option<bool>>(9).unwrap_or(false),
        is_unlogged: row.get(10),
    };
    Ok(rows.iter().map(table).collect())
}

/// What is taken along, a partitioned table before its partitions, and what is not.
pub fn divide(
    all: &[Undumped],
    dumped: impl Iterator<Item = (String, String)>,
    excluded: &HashSet<u32>,
    job: &BackupJob,
) -> Result<(Vec<Undumped>, Vec<Undumped>)> {
    let patterns = &job.include_extension_tables;
    let mut taken: HashSet<u32> = HashSet::new();
    let dumped: Vec<(String, String)> = if patterns.is_empty() { Vec::new() } else { dumped.collect() };
    for pattern in patterns {
        let hits = all.iter().filter(|t| matches_pattern(pattern, &t.schema, &t.name));
        let before = taken.len();
        taken.extend(hits.map(|t| t.oid));
        // Of many databases, not each needs to have such a table; what is left out by mistake is told.
        let is_only = !matches!(&job.databases, Databases::All)
            && !matches!(&job.databases, Databases::Named(names) if names.len() > 1);
        let is_dumped = dumped.iter().any(|(schema, name)| matches_pattern(pattern, schema, name));
        if taken.len() == before && (is_only || is_dumped) {
            let why = if is_dumped { "only tables that pg_dump takes anyway" } else { "no table" };
            return Err(Error::usage(format!("include_extension_tables {pattern:?} matches {why}"))
                .with_hint("it is for tables that are members of an extension; patterns are schema.table with * and ?"));
        }
    }
    taken.retain(|oid| !excluded.contains(oid));
    // A partition comes with the tables above it, and a table with its partitions.
    loop {
        let more: Vec<u32> = all
            .iter()
            .filter(|t| {
                let is_above = all.iter().any(|p| taken.contains(&p.oid) && p.partition_of == Some(t.oid));
                let is_below = t.partition_of.is_some_and(|parent| taken.contains(&parent));
                !taken.contains(&t.oid) && !excluded.contains(&t.oid) && (is_above || is_below)
            })
            .map(|t| t.oid)
            .collect();
        if more.is_empty() {
            break;
        }
        taken.extend(more);
    }
    let depth = |table: &Undumped| {
        std::iter::successors(table.partition_of, |oid| {
            all.iter().find(|t| t.oid == *oid).and_then(|t| t.partition_of)
        })
        .count()
    };
    let rest = all.iter().filter(|t| !excluded.contains(&t.oid));
    let (mut taken, rest): (Vec<Undumped>, Vec<Undumped>) =
        rest.cloned().partition(|t| taken.contains(&t.oid));
    taken.sort_by_key(depth);
    let hint = "grant pg_read_all_data to the role, or SELECT and USAGE on what is named";
    if let Some(table) = taken.iter().find(|t| !t.is_readable) {
        return Err(Error::new(format!("no SELECT privilege on table {}", table.display())).with_hint(hint));
    }
    if let Some(table) = taken.iter().find(|t| t.has_active_row_security) {
        return Err(Error::new(format!("row security would hide rows of table {}", table.display()))
            .with_hint("ALTER ROLE … BYPASSRLS for the role that backs up"));
    }
    Ok((taken, rest))
}

/// Which of these hold rows that no restore makes, a sentence for each kind. Within a transaction.
pub async fn told(client: &Client, tables: &[Undumped]) -> Result<Vec<String>> {
    let (mut members, mut changed, mut system, mut unread) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let until = Instant::now() + SEARCH_BOUND;
    for table in tables.iter().filter(|t| !t.is_partitioned) {
        let name = table.display();
        let may_look = table.is_readable && !table.has_active_row_security && Instant::now() < until;
        let found = match may_look {
            false => None,
            true => holds_others(client, table).await?,
        };
        match (found, &table.extension, &table.condition) {
            (Some(false), ..) => {}
            (Some(true), None, _) => system.push(name),
            (Some(true), Some(_), Some(_)) => changed.push(name),
            (Some(true), Some(_), None) => members.push(name),
            (None, ..) => unread.push(name),
        }
    }
    const KEYS: &str = "include_extension_tables takes them along, exclude_table_data leaves them out";
    let line = |names: Vec<String>, why: &str| {
        (!names.is_empty()).then(|| format!("rows of {} are not in this set: {why}; {KEYS}", list(names)))
    };
    let lines = [
        line(members, "pg_dump leaves out tables that are members of an extension"),
        line(changed, "pg_dump leaves out what an extension brings itself, and some of it was changed"),
        line(system, "pg_dump leaves out the system's own schemas"),
        line(unread, "pg_dump leaves them out, and whether there are any could not be seen"),
    ];
    Ok(lines.into_iter().flatten().collect())
}

/// Whether a table holds rows that no extension's script makes; nothing where that cannot be seen.
///
/// A script's rows have its transaction's id: that of the extension itself, until somebody updates the extension.
/// Rows that an extension calls its own differ from what it brought where not all have the same one. That is what a
/// backup can see at once; a rehearsal compares.
async fn holds_others(client: &Client, table: &Undumped) -> Result<Option<bool>> {
    let begin = Sql::new("SAVEPOINT undumped; SET LOCAL lock_timeout = ")
        .literal(LOCK_TIMEOUT)
        .then("; SET LOCAL statement_timeout = ")
        .literal(SEARCH_TIMEOUT);
    begin.run(client).await.map_err(error)?;
    let sql = match (&table.extension, &table.condition) {
        (None, _) => Sql::new("SELECT EXISTS (SELECT FROM ONLY ").sql(&table.relation()).then(")"),
        (Some(extension), None) => Sql::new("SELECT EXISTS (SELECT FROM ONLY ")
            .sql(&table.relation())
            .then(" t WHERE t.xmin <> (SELECT e.xmin FROM pg_catalog.pg_extension e WHERE e.extname = ")
            .literal(extension)
            .then("))"),
        (Some(_), Some(condition)) => Sql::new("SELECT count(DISTINCT t.xmin::text) > 1 FROM ONLY ")
            .sql(&table.relation())
            .then(" t JOIN (SELECT ctid FROM ONLY ")
            .sql(&table.relation())
            .then(" EXCEPT (SELECT ctid FROM ONLY ")
            .sql(&table.relation())
            .then(" ")
            .sql(&Sql::of_catalog(condition))
            .then(")) own ON own.ctid = t.ctid"),
    };
    let found = sql.query_one(client).await;
    let end = if found.is_ok() { "RELEASE SAVEPOINT undumped" } else { "ROLLBACK TO SAVEPOINT undumped" };
    Sql::new(end).run(client).await.map_err(error)?;
    Ok(match found {
        Ok(row) => Some(row.get(0)),
        Err(failure) => {
            tracing::info!("{}: {}", table.display(), error(failure));
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::plan::tests::job;

    fn table(oid: u32, name: &str, partition_of: Option<u32>) -> Undumped {
        let (schema, name) = ("mq".to_owned(), name.to_owned());
        Undumped { oid, schema, name, partition_of, is_readable: true, ..Undumped::default() }
    }

    #[test]
    fn a_partition_comes_with_its_table_and_behind_it() {
        let all = [
            table(1, "part_of_part", Some(2)),
            table(2, "part", Some(3)),
            table(3, "whole", None),
            table(4, "q", None),
        ];
        let divided = |patterns: &[&str], excluded: &[u32]| {
            let patterns = patterns.iter().map(|p| (*p).to_owned()).collect();
            let job = BackupJob { include_extension_tables: patterns, ..job(&[]) };
            let dumped = [("public".to_owned(), "plain".to_owned())].into_iter();
            let names =
                |tables: Vec<Undumped>| tables.into_iter().map(|t| t.name).collect::<Vec<_>>().join(" ");
            divide(&all, dumped, &excluded.iter().copied().collect(), &job)
                .map(|(along, rest)| (names(along), names(rest)))
                .map_err(|e| e.to_string())
        };
        let both = |along: &str, rest: &str| Ok((along.to_owned(), rest.to_owned()));
        assert_eq!(divided(&["mq.part_of_part"], &[]), both("whole part part_of_part", "q"));
        assert_eq!(divided(&["mq.whole"], &[]), both("whole part part_of_part", "q"));
        assert_eq!(divided(&["mq.*"], &[4]), both("whole part part_of_part", ""));
        assert_eq!(divided(&[], &[]), both("", "part_of_part part whole q"));
        assert!(divided(&["public.plain"], &[]).is_err_and(|e| e.contains("takes anyway")));
        assert!(divided(&["mq.none"], &[]).is_err_and(|e| e.contains("no table")));
    }
}
