//! Owner, privileges and comment of every large object, as text that is the same wherever the same
//! objects are: what is asked when a set is taken, and again when it is restored.
//!
//! The catalogs that hold them can be read by everybody. Deliberately absent: content, which the
//! archives hold and which is read back by itself.

use std::pin::pin;

use futures_util::StreamExt;
use tokio_postgres::Client;

use super::connect::error;
use crate::error::{Context, Result};

/// A line an object. Privileges that were never changed and such that were set to the same are the
/// same, as they are to pg_dump; their order says nothing, and is that of the C locale on any host.
const QUERY: &str = r#"COPY (
    SELECT m.oid, pg_get_userbyid(m.lomowner),
           (SELECT string_agg(p.text, ' ' ORDER BY p.text COLLATE pg_catalog."C")
              FROM (SELECT format('%s %s %L by %L', a.privilege_type, a.is_grantable,
                                  CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END,
                                  pg_get_userbyid(a.grantor)) AS text
                      FROM aclexplode(coalesce(m.lomacl, acldefault('L', m.lomowner))) a) p),
           d.description
      FROM pg_largeobject_metadata m
      LEFT JOIN pg_description d
             ON d.classoid = 'pg_largeobject'::regclass AND d.objoid = m.oid AND d.objsubid = 0
) TO STDOUT"#;

/// Hands every object's line to `each`, a long one in pieces, in any order, in the encoding of the session (which should be
/// that of the database).
pub async fn properties(client: &Client, mut each: impl FnMut(&[u8])) -> Result<()> {
    let what = "cannot read the large objects' owners and privileges";
    let mut lines = pin!(client.copy_out(QUERY).await.map_err(error).context(what)?);
    while let Some(line) = lines.next().await {
        each(&line.map_err(error).context(what)?);
    }
    Ok(())
}
