//! Foreign keys, made without a look at the rows, and then validated side by side.
//!
//! `ADD FOREIGN KEY` locks both tables for as long as it compares their rows, so that the keys of one table wait
//! for each other. `NOT VALID` takes a moment, and `VALIDATE CONSTRAINT` leaves the other table to the others. A
//! key whose rows disagree is dropped again, and made as it is defined after all others: what PostgreSQL says of
//! it then is what is told. Deliberately absent: keys of partitioned tables, which cannot be made like that, and
//! those that nobody validated at the source either.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use super::Target;
use super::pg_restore::{Part, run_after_rows};
use crate::error::{Error, Result};
use crate::postgres::connect::{Session, error};
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;
use crate::set::archive::Entry;

/// A key to be validated: the table's schema and name, and its own.
type Key = (String, String, String);

/// Makes and validates what can be made like that of the entries `left`. Returns the ids of the keys that are
/// valid, and what pg_restore warned of.
pub async fn build(
    target: &Target,
    archive: &File,
    entries: &[Entry],
    left: &HashSet<i32>,
    arguments: &[&str],
) -> Result<(HashSet<i32>, Vec<String>)> {
    let mut unchecked: HashMap<i32, String> = entries
        .iter()
        .filter(|e| left.contains(&e.dump_id) && e.dependencies.iter().all(|id| !left.contains(id)))
        .filter_map(|e| Some((e.dump_id, not_valid(e)?)))
        .collect();
    if unchecked.len() < 2 || target.jobs < 2 {
        return Ok((HashSet::new(), Vec::new()));
    }
    let part = Part::Rewritten(&unchecked);
    let (warnings, failed) = run_after_rows(target, archive, entries, part, 1, arguments).await?;
    for complaint in &failed {
        tracing::info!("{complaint}; made as it is defined, after the others");
        unchecked.retain(|id, _| Some(*id) != complaint.id);
    }
    // A tag is the table's name and the key's.
    let tagged = |e: &Entry| ((e.namespace.clone(), e.tag.clone()), e.dump_id);
    let ids: HashMap<(String, String), i32> =
        entries.iter().filter(|e| unchecked.contains_key(&e.dump_id)).map(tagged).collect();
    let keys = made(target, |schema, tag| ids.contains_key(&(schema.to_owned(), tag.to_owned()))).await?;
    let valid = validate(target, keys).await?;
    let id = |(schema, table, key): Key| ids.get(&(schema, format!("{table} {key}"))).copied();
    Ok((valid.into_iter().filter_map(id).collect(), warnings))
}

/// The definition of a foreign key as one whose rows nobody looked at. `None`: it is none, or cannot be one.
fn not_valid(entry: &Entry) -> Option<String> {
    let statement = entry.defn.trim_end().strip_suffix(';')?;
    let is_plain = entry.desc == "FK CONSTRAINT"
        && statement.starts_with("ALTER TABLE ONLY ")
        && !["NOT VALID", "NOT ENFORCED", "\u{fffd}"].iter().any(|word| statement.contains(word));
    is_plain.then(|| format!("{statement} NOT VALID;\n"))
}

/// Keys that are there and to be validated, those of the largest tables last.
async fn made(target: &Target, is_ours: impl Fn(&str, &str) -> bool) -> Result<Vec<Key>> {
    let session = target.connect(&[]).await?;
    let rows = session
        .client
        .query(
            // A key to a partitioned table has one beneath it for each partition, which VALIDATE does not reach up to 17.
            "SELECT n.nspname::text, r.relname::text, k.conname::text, f.relkind = 'p' FROM pg_constraint k
               JOIN pg_class r ON r.oid = k.conrelid JOIN pg_namespace n ON n.oid = r.relnamespace
               JOIN pg_class f ON f.oid = k.confrelid
              WHERE k.contype = 'f' AND NOT k.convalidated AND k.conparentid = 0 ORDER BY pg_relation_size(r.oid)",
            &[],
        )
        .await
        .map_err(error);
    let name = |row: &tokio_postgres::Row, column| row.get::<_, Name>(column).0;
    let mut keys = Vec::new();
    for row in rows? {
        let key = (name(&row, 0), name(&row, 1), name(&row, 2));
        if !is_ours(&key.0, &format!("{} {}", key.1, key.2)) {
            continue;
        }
        match row.get(3) {
            true => drop_key(&session, &key).await,
            false => keys.push(key),
        }
    }
    session.close().await;
    Ok(keys)
}

/// Takes a key away again, which is made as it is defined after all others. Where that fails, making it will.
async fn drop_key(session: &Session, (schema, table, key): &Key) {
    let drop = Sql::new("ALTER TABLE ONLY ").qualified(schema, table).then(" DROP CONSTRAINT ").ident(key);
    if let Err(failure) = drop.run(&session.client).await {
        tracing::info!("foreign key {key:?} cannot be dropped: {}", error(failure));
    }
}

/// Validates keys, as many at a time as there are jobs, and returns those that are valid.
async fn validate(target: &Target, keys: Vec<Key>) -> Result<Vec<Key>> {
    let sessions = target.jobs.min(keys.len());
    let keys = Arc::new(Mutex::new(keys));
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..sessions {
        let (target, keys) = (target.clone(), keys.clone());
        running.spawn(async move {
            let session = target.connect(&[]).await?;
            let valid = validate_some(&session, &keys).await;
            session.close().await;
            valid
        });
    }
    let mut valid = Vec::new();
    while let Some(done) = running.join_next().await {
        valid.extend(done.map_err(|e| Error::new(format!("validating foreign keys stopped: {e}")))??);
    }
    Ok(valid)
}

async fn validate_some(session: &Session, keys: &Mutex<Vec<Key>>) -> Result<Vec<Key>> {
    let mut valid = Vec::new();
    loop {
        let next = keys.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(key) = next else { return Ok(valid) };
        let table = Sql::new("ALTER TABLE ONLY ").qualified(&key.0, &key.1);
        match table.then(" VALIDATE CONSTRAINT ").ident(&key.2).run(&session.client).await {
            Ok(()) => valid.push(key),
            Err(failure) if failure.as_db_error().is_some() && !session.client.is_closed() => {
                drop_key(session, &key).await;
            }
            Err(failure) => return Err(error(failure)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_foreign_key_is_made_without_a_look() {
        let made = |desc: &str, defn: &str| {
            not_valid(&Entry { desc: desc.into(), defn: defn.into(), ..Entry::default() })
        };
        let key = "ALTER TABLE ONLY public.a\n    ADD CONSTRAINT k FOREIGN KEY (b) REFERENCES public.b(id) DEFERRABLE";
        assert_eq!(made("FK CONSTRAINT", &format!("{key};\n")), Some(format!("{key} NOT VALID;\n")));
        for (desc, defn) in [
            ("CONSTRAINT", format!("{key};\n")),
            ("FK CONSTRAINT", format!("{key} NOT VALID;\n")),
            ("FK CONSTRAINT", format!("{key} NOT ENFORCED;\n")),
            ("FK CONSTRAINT", key.to_owned()),
            ("FK CONSTRAINT", format!("{};\n", key.replace("ONLY ", ""))),
        ] {
            assert_eq!(made(desc, &defn), None, "{desc} {defn}");
        }
    }
}
