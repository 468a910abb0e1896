//! What a restore computes anew instead of taking it from a dump: values of stored generated columns, and rows of
//! materialized views. They are read when a set is taken, and again when it is restored.
//!
//! Rows are read as COPY writes them, of generated columns alone: the others are in the dump. Partitions are read
//! through their root, because a restore may put rows into another one.

use std::pin::pin;

use futures_util::StreamExt;
use tokio_postgres::Client;

use super::connect::error;
use super::ident::Name;
use super::sql::Sql;
use crate::error::{Context, Result};

/// How a relation's rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A table's generated columns, without the tables that inherit from it.
    Table,
    /// Those of a partitioned table and all its partitions.
    Root,
    /// A materialized view.
    View,
}

/// Something whose content is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its OID.
    pub oid: u32,
    /// How it is read.
    pub kind: Kind,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// Columns that are read, by name.
    pub columns: Vec<String>,
}

/// Relations with computed content that our role may read. A partitioned table with a foreign partition is left out,
/// because reading it would ask another server.
pub async fn list(client: &Client) -> Result<Vec<Relation>> {
    let rows = client
        .query(
            "SELECT c.oid, c.relkind::text, n.nspname, c.relname,
                    ARRAY(SELECT a.attname FROM pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                             AND (c.relkind = 'm' OR a.attgenerated = 's') ORDER BY a.attname COLLATE pg_catalog.\"C\")
               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                AND (c.relkind = 'm' AND c.relispopulated
                     OR c.relkind IN ('r', 'p') AND NOT c.relispartition
                        AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated = 's'))
                AND has_table_privilege(c.oid, 'SELECT')
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                                   AND d.objid = c.oid AND d.deptype = 'e')
                AND NOT (c.relkind = 'p' AND EXISTS (
                    SELECT FROM pg_partition_tree(c.oid) t JOIN pg_class l ON l.oid = t.relid WHERE l.relkind = 'f'))
              ORDER BY n.nspname, c.relname",
            &[],
        )
        .await
        .map_err(error)
        .context("cannot list generated columns and materialized views")?;
    let relation = |row: &tokio_postgres::Row| Relation {
        oid: row.get(0),
        kind: match row.get::<_, String>(1).as_str() {
            "m" => Kind::View,
            "p" => Kind::Root,
            _ => Kind::Table,
        },
        schema: row.get::<_, Name>(2).0,
        name: row.get::<_, Name>(3).0,
        columns: row.get::<_, Vec<Name>>(4).into_iter().map(|name| name.0).collect(),
    };
    Ok(rows.iter().map(relation).collect())
}

/// Hands every row to `each`, a long one in pieces, in any order.
pub async fn rows(client: &Client, relation: &Relation, mut each: impl FnMut(&[u8])) -> Result<()> {
    let columns = relation.columns.iter().map(|name| Sql::new("").ident(name));
    let from = if relation.kind == Kind::Table { " FROM ONLY " } else { " FROM " };
    let sql = Sql::new("COPY (SELECT ").join(columns, ", ").then(from);
    let sql = sql.qualified(&relation.schema, &relation.name).then(") TO STDOUT");
    let mut rows = pin!(sql.copy_out(client).await.map_err(error)?);
    while let Some(row) = rows.next().await {
        each(&row.map_err(error)?);
    }
    Ok(())
}
