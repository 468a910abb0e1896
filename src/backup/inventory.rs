//! What is in a database, as far as a plan and a proof need to know: tables, sequences, settings,
//! locale, extensions, and what our role may not read.
//!
//! Every query is schema-qualified by an empty search_path and works from PostgreSQL 13 on.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use tokio_postgres::Client;

use super::undumped::{self, Undumped};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::Name;
use crate::postgres::properties;
use crate::postgres::sql::{Sql, quote_ident};
use crate::set::manifest::{Collation, Extension, Locale};

/// A table (or partitioned root) that pg_dump would look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Its OID.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Has no rows of its own.
    pub is_partitioned: bool,
    /// Rows vanish in a crash, and are not on a standby.
    pub is_unlogged: bool,
    /// Belongs to an extension, which makes it again.
    pub is_extension_member: bool,
    /// The table it is a partition of.
    pub partition_of: Option<u32>,
    /// Bytes on disk, TOAST included, indexes not.
    pub size: u64,
    /// Whether our role may read it.
    pub is_readable: bool,
    /// Whether policies would hide rows from our role.
    pub has_active_row_security: bool,
}

impl Table {
    /// `"schema"."name"`: what SQL and pg_dump's patterns both read as exactly this table.
    pub fn quoted(&self) -> String {
        quoted(&self.schema, &self.name)
    }

    /// `schema.name` for people.
    pub fn display(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// A sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// Its OID.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// The table whose column owns it.
    pub owned_by: Option<u32>,
    /// Belongs to an extension, or is an identity column's of a table that does.
    pub is_extension_member: bool,
    /// Its value vanishes in a crash, and is not on a standby.
    pub is_unlogged: bool,
    /// Whether our role may read it.
    pub is_readable: bool,
}

impl Sequence {
    /// `"schema"."name"`.
    pub fn quoted(&self) -> String {
        quoted(&self.schema, &self.name)
    }
}

impl Inventory {
    /// Whether pg_dump finds what `text` names in a pattern: its arguments are read in the database's
    /// encoding, and ours are UTF-8. A name that did not come as UTF-8 cannot be asked for at all.
    pub fn has_exact(&self, text: &str) -> bool {
        text.is_ascii() || (matches!(self.encoding.as_str(), "UTF8" | "SQL_ASCII") && !is_replaced(text))
    }
}

/// Whether a name holds U+FFFD, which stands for bytes that are no UTF-8.
pub fn is_replaced(name: &str) -> bool {
    name.contains('\u{fffd}')
}

/// `"a"."b"` with quotes doubled.
pub fn quoted(schema: &str, name: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(name))
}

/// The lists a plan is made of.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// Our role, by its name.
    pub role: String,
    /// Encoding of names and values.
    pub encoding: String,
    /// Tables outside the system's schemas.
    pub tables: Vec<Table>,
    /// Sequences outside the system's schemas.
    pub sequences: Vec<Sequence>,
    /// Large objects.
    pub large_objects: u64,
    /// Large objects that our role may not read.
    pub unreadable_large_objects: u64,
    /// Schemas with tables in them that our role may not use.
    pub unusable_schemas: Vec<String>,
    /// Foreign keys: the table that has one, and the table it points to.
    pub foreign_keys: Vec<(u32, u32)>,
    /// Tables that pg_dump leaves out.
    pub undumped: Vec<Undumped>,
    /// What pg_dump leaves out because our role is no superuser, a sentence each.
    pub superusers_only: Vec<String>,
}

/// What a database is, apart from its content.
#[derive(Debug, Clone)]
pub struct Properties {
    /// Encoding and locale.
    pub locale: Locale,
    /// Installed extensions, plpgsql too.
    pub extensions: Vec<Extension>,
    /// Collations that definitions name.
    pub collations: Vec<Collation>,
    /// Owner, privileges and settings.
    pub own: properties::Properties,
}

/// Tables and sequences, as the session's snapshot (or, outside a transaction, now) has them. Sizes of
/// tables that are known already are not asked for again: the server looks at several files for each.
pub async fn read(client: &Client, known: Option<&Inventory>) -> Result<Inventory> {
    let sizes: HashMap<u32, u64> =
        known.into_iter().flat_map(|k| &k.tables).map(|table| (table.oid, table.size)).collect();
    let tables = client
        .query(
            "SELECT c.oid, n.nspname, c.relname, c.relkind = 'p', c.relpersistence = 'u',
                    EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                            AND d.objid = c.oid AND d.deptype = 'e'),
                    (SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition),
                    CASE WHEN $1 THEN coalesce(pg_relation_size(c.oid), 0)
                              + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) ELSE 0 END,
                    has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
              ORDER BY n.nspname, c.relname",
            &[&known.is_none()],
        )
        .await
        .map_err(error)
        .context("cannot list tables")?;
    let tables = tables
        .iter()
        .map(|row| Table {
            oid: row.get(0),
            schema: row.get::<_, Name>(1).0,
            name: row.get::<_, Name>(2).0,
            is_partitioned: row.get(3),
            is_unlogged: row.get(4),
            is_extension_member: row.get(5),
            partition_of: row.get(6),
            // What was made since then is small.
            size: sizes
                .get(&row.get::<_, u32>(0))
                .copied()
                .unwrap_or_else(|| u64::try_from(row.get::<_, i64>(7)).unwrap_or(0)),
            // A table dropped meanwhile has neither privileges nor policies; the lists are compared later.
            is_readable: row.get::<_, Option<bool>>(8).unwrap_or(true),
            has_active_row_security: row.get::<_, Option<bool>>(9).unwrap_or(false),
        })
        .collect();
    let sequences = client
        .query(
            "SELECT c.oid, n.nspname, c.relname,
                    (SELECT d.refobjid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') LIMIT 1),
                    EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                            AND d.objid = c.oid AND d.deptype = 'e')
                    OR EXISTS (SELECT FROM pg_depend d JOIN pg_depend m ON m.classid = d.refclassid AND m.objid = d.refobjid
                               WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
                                 AND d.objid = c.oid AND d.deptype = 'i' AND m.deptype = 'e'),
                    c.relpersistence = 'u', has_sequence_privilege(c.oid, 'SELECT')
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'S' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
              ORDER BY n.nspname, c.relname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list sequences")?;
    let sequences = sequences
        .iter()
        .map(|row| Sequence {
            oid: row.get(0),
            schema: row.get::<_, Name>(1).0,
            name: row.get::<_, Name>(2).0,
            owned_by: row.get(3),
            is_extension_member: row.get(4),
            is_unlogged: row.get(5),
            is_readable: row.get::<_, Option<bool>>(6).unwrap_or(true),
        })
        .collect();
    let large_objects = client
        .query_one(
            "SELECT count(*),
                    count(*) FILTER (WHERE current_setting('lo_compat_privileges') = 'off'
                      AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
                      AND NOT pg_has_role(lomowner, 'USAGE')
                      AND NOT EXISTS (SELECT FROM aclexplode(lomacl) a WHERE a.privilege_type = 'SELECT'
                                       AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))))
               FROM pg_largeobject_metadata",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot count large objects")?;
    let unusable = client
        .query(
            "SELECT n.nspname FROM pg_namespace n
              WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                AND NOT has_schema_privilege(n.oid, 'USAGE')
                AND EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'S'))",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list schemas")?;
    let whole = client
        .query_one(
            "SELECT pg_encoding_to_char(encoding)::text, current_user FROM pg_database WHERE datname = current_database()",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the database's encoding")?;
    let foreign_keys = client
        .query("SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f'", &[])
        .await
        .map_err(error)
        .context("cannot list foreign keys")?;
    Ok(Inventory {
        undumped: undumped::read(client).await?,
        superusers_only: superusers_only(client).await?,
        foreign_keys: foreign_keys.iter().map(|row| (row.get(0), row.get(1))).collect(),
        role: whole.get::<_, Name>(1).0,
        encoding: whole.get(0),
        tables,
        sequences,
        large_objects: u64::try_from(large_objects.get::<_, i64>(0)).unwrap_or(0),
        unreadable_large_objects: u64::try_from(large_objects.get::<_, i64>(1)).unwrap_or(0),
        unusable_schemas: unusable.iter().map(|row| row.get::<_, Name>(0).0).collect(),
    })
}

/// pg_dump skips these with a warning, or without one; who plans should know before.
async fn superusers_only(client: &Client) -> Result<Vec<String>> {
    let row = client
        .query_one(
            "SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
                    (SELECT count(*) FROM pg_subscription
                      WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())),
                    (SELECT count(*) FROM pg_user_mappings WHERE umoptions IS NULL)",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot look for what only superusers see")?;
    let mut lost = Vec::new();
    if !row.get::<_, bool>(0) {
        let (subscriptions, mappings): (i64, i64) = (row.get(1), row.get(2));
        if subscriptions > 0 {
            lost.push(format!("{subscriptions} subscriptions are left out: only a superuser may read them"));
        }
        if mappings > 0 {
            lost.push(format!(
                "options of {mappings} user mappings (passwords) are left out where they have any: only their \
                 owner or a superuser may read them"
            ));
        }
    }
    Ok(lost)
}

/// Tables whose rows pg_dump would not see as the snapshot does: rewritten or truncated (or renamed, or
/// dropped) between the snapshot and the lock. Neither is undone by MVCC, so such a dump is silently empty or wrong.
///
/// relfilenode is read under the snapshot, pg_relation_filenode() looks at the present. Nothing here
/// waits for a lock: once a pg_dump holds its own, somebody may wait for ACCESS EXCLUSIVE behind it,
/// and whoever asks for a table's size then waits behind that.
pub async fn rewritten(client: &Client) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                AND (c.relkind = 'r' AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.relfilenode
                     OR c.oid::regclass::text <> format('%I.%I', n.nspname, c.relname))
              ORDER BY n.nspname, c.relname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot look for rewritten tables")?;
    Ok(rows.iter().map(|row| format!("{}.{}", row.get::<_, Name>(0).0, row.get::<_, Name>(1).0)).collect())
}

/// What is in `now` and not in `before`.
pub fn newcomers<'a>(before: &Inventory, now: &'a Inventory) -> Vec<&'a Table> {
    let known: HashSet<u32> = before.tables.iter().map(|t| t.oid).collect();
    now.tables.iter().filter(|t| !known.contains(&t.oid)).collect()
}

/// Refuses a session that would read damaged pages as empty ones, or as they are. Only a superuser may set either,
/// for a role, a database or the server, and only then no session may set it back.
pub async fn check_settings(client: &Client) -> Result<()> {
    let found = client
        .query_opt(
            "SELECT name FROM pg_settings
              WHERE name IN ('ignore_checksum_failure', 'zero_damaged_pages') AND setting = 'on' LIMIT 1",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the session's settings")?;
    let Some(row) = found else { return Ok(()) };
    let name: String = row.get(0);
    Err(Error::new(format!("{name} is on, so rows could be lost or damaged without an error")).with_hint(
        format!(
            "ALTER DATABASE … RESET {name} (or ALTER ROLE, or the server's configuration); damage is for \
         pg_amcheck and an older set"
        ),
    ))
}

/// Locale, extensions, settings, owner and privileges of the session's database.
pub async fn properties(client: &Client, server_version_num: u32) -> Result<Properties> {
    let provider = match server_version_num {
        ..150_000 => "'c', NULL, NULL",
        150_000..160_000 => "d.datlocprovider::text, d.daticulocale, NULL",
        160_000..170_000 => "d.datlocprovider::text, d.daticulocale, d.daticurules",
        _ => "d.datlocprovider::text, d.datlocale, d.daticurules",
    };
    let sql = Sql::template(
        "SELECT pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text, {provider},
                current_setting('lc_monetary'), d.datname::text
           FROM pg_database d WHERE d.datname = current_database()",
        &[("provider", provider.into())],
    );
    let row = sql.query_one(client).await.map_err(error).context("cannot read the database's properties")?;
    let locale = Locale {
        encoding: row.get(0),
        collate: row.get(1),
        ctype: row.get(2),
        provider: match row.get::<_, String>(3).as_str() {
            "i" => "icu",
            "b" => "builtin",
            _ => "libc",
        }
        .into(),
        locale: row.get(4),
        icu_rules: row.get(5),
        monetary: row.get(6),
    };
    let own = properties::read(client, &row.get::<_, String>(7)).await?;
    let extensions = client
        .query("SELECT extname::text, extversion, nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace ORDER BY extname", &[])
        .await
        .map_err(error)
        .context("cannot list extensions")?
        .iter()
        .map(|row| Extension { name: row.get(0), version: row.get(1), schema: Some(row.get::<_, Name>(2).0) })
        .collect();
    let collations = collations(client, server_version_num).await?;
    Ok(Properties { locale, extensions, collations, own })
}

/// Collations of the database's own, and those of the server that something in it depends on.
async fn collations(client: &Client, server_version_num: u32) -> Result<Vec<Collation>> {
    let icu_locale = match server_version_num {
        ..150_000 => "c.collcollate::text",
        150_000..170_000 => "c.colliculocale::text",
        _ => "c.colllocale::text",
    };
    let sql = Sql::new(
        "SELECT CASE WHEN c.collnamespace = 'pg_catalog'::regnamespace THEN c.collname END,
                c.collprovider = 'i', c.collcollate::text, c.collctype::text, ",
    )
    .then(icu_locale)
    .then(
        " FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace
          WHERE c.collprovider IN ('c', 'i') AND c.collname NOT IN ('C', 'POSIX') AND n.nspname !~ '^pg_(temp|toast)'
            AND CASE WHEN n.nspname = 'pg_catalog'
                     THEN EXISTS (SELECT FROM pg_depend d WHERE d.refclassid = 'pg_collation'::regclass AND d.refobjid = c.oid)
                     ELSE n.nspname <> 'information_schema' END
          ORDER BY n.nspname, c.collname",
    );
    let rows = sql.query(client, &[]).await.map_err(error).context("cannot list collations")?;
    let text = |row: &tokio_postgres::Row, i: usize| row.get::<_, Option<Name>>(i).map(|name| name.0);
    let collation = |row: &tokio_postgres::Row| {
        let is_icu: bool = row.get(1);
        Collation {
            provider: if is_icu { "icu" } else { "libc" }.into(),
            name: text(row, 0),
            locale: text(row, 4).filter(|_| is_icu),
            collate: text(row, 2).unwrap_or_default(),
            ctype: text(row, 3).unwrap_or_default(),
        }
    };
    Ok(rows.iter().map(collation).collect())
}

/// Position and time of the session's snapshot.
pub async fn position(client: &Client) -> Result<(String, DateTime<Utc>)> {
    let row = client
        .query_one(
            "SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                          ELSE pg_current_wal_insert_lsn() END)::text,
                    (extract(epoch FROM clock_timestamp()) * 1000)::int8",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot read the WAL position")?;
    let time = DateTime::from_timestamp_millis(row.get(1)).unwrap_or_default();
    Ok((row.get::<_, Option<String>>(0).unwrap_or_default(), time))
}
