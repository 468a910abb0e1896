//! Tables that pg_dump leaves out, as an archive of our own: definitions, rows, values of sequences.
//!
//! A table may be one that `CREATE EXTENSION` makes, or one that became a member later, which nothing makes again.
//! So the archive makes what is missing and empties what is there, before it fills it: `pg_restore` restores it
//! after `pre-data`, as one transaction. A definition is put together by the server, with its own functions:
//! columns, constraints, indexes, and the membership. Deliberately absent: storage parameters, triggers and
//! comments, which an extension's script gives to what it makes.

use std::collections::HashSet;
use std::pin::pin;

use bytes::Bytes;
use chrono::Utc;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::Undumped;
use crate::backup::coordinator::Coordinator;
use crate::backup::inventory::{is_replaced, quoted};
use crate::backup::streams::{Destination, Dumped};
use crate::error::{Context, Error, Result};
use crate::postgres::connect::error;
use crate::postgres::ident::Name;
use crate::postgres::sql::Sql;
use crate::progress::Event;
use crate::set::EXTENSION_TABLES;
use crate::set::archive::parser::{Contents, Parser};
use crate::set::archive::{Entry, Section, write};
use crate::set::manifest::Stream;
use crate::set::seal::{seal, upload};

/// Bytes of rows in one chunk of the archive.
const CHUNK: usize = 128 << 10;

/// How long a table may be locked by others: most of them the coordinator holds already.
const LOCK_PATIENCE: &str = "600s";

/// What makes a table, or does nothing where it is there: SQL, owner, what follows the rows.
const DEFINITION: &str = r"
SELECT
  coalesce((SELECT string_agg(format('CREATE SEQUENCE IF NOT EXISTS %s AS %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s;',
                s.seqrelid::regclass, format_type(s.seqtypid, NULL), s.seqincrement, s.seqmin, s.seqmax, s.seqstart,
                s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END)
              || coalesce((SELECT format(E'\nDO %L;', format('BEGIN ALTER EXTENSION %I ADD SEQUENCE %s; EXCEPTION WHEN object_not_in_prerequisite_state OR insufficient_privilege THEN NULL; END', x.extname, s.seqrelid::regclass))
                    FROM pg_depend xd JOIN pg_extension x ON x.oid = xd.refobjid
                   WHERE xd.classid = 'pg_class'::regclass AND xd.objid = s.seqrelid AND xd.deptype = 'e'), ''), E'\n') || E'\n'
     FROM (SELECT DISTINCT d.refobjid AS oid FROM pg_attrdef ad JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
            WHERE ad.adrelid = c.oid AND d.refclassid = 'pg_class'::regclass) used
     JOIN pg_sequence s ON s.seqrelid = used.oid), '')
  || format('CREATE %sTABLE IF NOT EXISTS %s', CASE WHEN c.relpersistence = 'u' THEN 'UNLOGGED ' ELSE '' END, c.oid::regclass)
  || CASE WHEN c.relispartition
       THEN format(' PARTITION OF %s', (SELECT inhparent::regclass FROM pg_inherits WHERE inhrelid = c.oid))
            || coalesce(' (' || k.text || ')', '') || ' ' || pg_get_expr(c.relpartbound, c.oid)
       ELSE ' (' || concat_ws(', ', a.text, k.text) || ')'
            || coalesce((SELECT ' INHERITS (' || string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno) || ')' FROM pg_inherits WHERE inhrelid = c.oid), '')
     END
  || CASE WHEN c.relkind = 'p' THEN ' PARTITION BY ' || pg_get_partkeydef(c.oid) ELSE '' END || E';\n'
  || coalesce(format(E'DO %L;\n', format('BEGIN ALTER EXTENSION %I ADD TABLE %s; EXCEPTION WHEN object_not_in_prerequisite_state OR insufficient_privilege THEN NULL; END', e.extname, c.oid::regclass)), '')
  || CASE WHEN c.relkind = 'r' THEN format(E'DELETE FROM ONLY %s;\n', c.oid::regclass) ELSE '' END,
  pg_get_userbyid(c.relowner),
  (SELECT string_agg(regexp_replace(replace(pg_get_indexdef(i.indexrelid), ' ON ONLY ' || c.oid::regclass || ' USING ', ' ON ' || c.oid::regclass || ' USING '),
            '^CREATE( UNIQUE)? INDEX ', 'CREATE\1 INDEX IF NOT EXISTS ') || E';\n', '' ORDER BY i.indexrelid)
     FROM pg_index i WHERE i.indrelid = c.oid
      AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = c.oid AND o.contype IN ('p', 'u', 'x'))
      AND NOT EXISTS (SELECT FROM pg_inherits p WHERE p.inhrelid = i.indexrelid)),
  (SELECT string_agg(format(E'DO %L;\n', format('BEGIN ALTER TABLE %s ADD CONSTRAINT %I %s; EXCEPTION WHEN duplicate_object THEN NULL; END',
            c.oid::regclass, o.conname, pg_get_constraintdef(o.oid))), '' ORDER BY o.conname)
     FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'f' AND o.conparentid = 0)
FROM pg_class c
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
LEFT JOIN pg_extension e ON e.oid = d.refobjid
CROSS JOIN LATERAL (
  SELECT string_agg(format('%I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
      CASE WHEN a.attcollation <> t.typcollation THEN format(' COLLATE %I.%I', cn.nspname, co.collname) ELSE '' END,
      CASE WHEN a.attidentity <> '' THEN (
             SELECT format(' GENERATED %s AS IDENTITY (SEQUENCE NAME %s INCREMENT BY %s MINVALUE %s MAXVALUE %s START WITH %s CACHE %s%s)',
                      CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, s.seqrelid::regclass, s.seqincrement,
                      s.seqmin, s.seqmax, s.seqstart, s.seqcache, CASE WHEN s.seqcycle THEN ' CYCLE' ELSE '' END)
               FROM pg_depend sd JOIN pg_sequence s ON s.seqrelid = sd.objid
              WHERE sd.classid = 'pg_class'::regclass AND sd.refclassid = 'pg_class'::regclass AND sd.refobjid = c.oid
                AND sd.refobjsubid = a.attnum AND sd.deptype = 'i')
           WHEN a.attgenerated = 's' THEN format(' GENERATED ALWAYS AS (%s) STORED', pg_get_expr(ad.adbin, ad.adrelid))
           WHEN a.attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s)', pg_get_expr(ad.adbin, ad.adrelid))
           WHEN ad.oid IS NOT NULL THEN ' DEFAULT ' || pg_get_expr(ad.adbin, ad.adrelid) ELSE '' END,
      CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END), ', ' ORDER BY a.attnum) AS text
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
    LEFT JOIN pg_collation co ON co.oid = a.attcollation LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) a
CROSS JOIN LATERAL (
  SELECT string_agg(format('CONSTRAINT %I %s', o.conname, pg_get_constraintdef(o.oid)), ', ' ORDER BY o.conname) AS text
    FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype IN ('p', 'u', 'c', 'x') AND o.conparentid = 0 AND o.coninhcount = 0) k
WHERE c.oid = $1";

/// Sequences that a table owns or takes its defaults from, other than those whose values an extension has pg_dump take.
const SEQUENCES: &str = "
SELECT DISTINCT n.nspname, s.relname FROM pg_depend d
  JOIN pg_class s ON s.oid = CASE WHEN d.classid = 'pg_attrdef'::regclass THEN d.refobjid ELSE d.objid END AND s.relkind = 'S'
  JOIN pg_namespace n ON n.oid = s.relnamespace
 WHERE (d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype IN ('a', 'i')
        OR d.classid = 'pg_attrdef'::regclass AND d.refclassid = 'pg_class'::regclass
           AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = $1))
   AND NOT EXISTS (SELECT FROM pg_extension e WHERE s.oid = ANY (e.extconfig))
 ORDER BY 1, 2";

/// Dumps what is taken along, under the coordinator's snapshot; `archives` are the other archives of the database.
pub async fn dump(
    coordinator: &Coordinator,
    server_version: &str,
    to: &Destination,
    archives: &[(String, Contents)],
) -> Result<Option<Dumped>> {
    let tables = &coordinator.plan.along;
    if tables.is_empty() {
        return Ok(None);
    }
    let client = coordinator.client();
    let patience = Sql::new("SET LOCAL lock_timeout = ").literal(LOCK_PATIENCE);
    patience.run(client).await.map_err(error)?;
    let encoding = &coordinator.inventory.encoding;
    let taken: HashSet<(&str, &str)> = archives
        .iter()
        .flat_map(|(_, contents)| &contents.entries)
        .filter(|entry| entry.desc == "SEQUENCE SET")
        .map(|entry| (entry.namespace.as_str(), entry.tag.as_str()))
        .collect();
    let entries = entries(client, tables, encoding, &taken).await?;
    let text =
        |entry: &Entry| is_replaced(&entry.defn) || is_replaced(&entry.copy) || is_replaced(&entry.owner);
    let is_plain = |entry: &Entry| entry.defn.is_ascii() && entry.copy.is_ascii() && entry.owner.is_ascii();
    let is_exact = matches!(encoding.as_str(), "UTF8" | "SQL_ASCII");
    if let Some(entry) = entries.iter().find(|e| text(e) || !(is_exact || is_plain(e))) {
        return Err(Error::usage(format!(
            "include_extension_tables: {}.{} cannot be defined again in encoding {encoding}",
            entry.namespace, entry.tag
        )));
    }
    let name = format!("{}{EXTENSION_TABLES}", to.folder);
    (to.progress)(Event::StreamStarted { name: name.clone(), estimate: 0 });
    let begun = std::time::Instant::now();
    let (sender, mut receiver) = mpsc::channel::<Piece>(1);
    let (mut writer, pieces) = seal(&to.seal, to.seal.buffers(0))?;
    let secret = to.secret.clone();
    let writing = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut parser = Parser::new(&secret, false);
        while let Some(piece) = receiver.blocking_recv() {
            match piece {
                Piece::Bytes(bytes) => {
                    parser.feed(&bytes)?;
                    writer.write_all(&bytes)?;
                }
                Piece::End => return Ok::<_, Error>(Some((parser.finish()?, writer.finish()?))),
            }
        }
        Ok(None)
    });
    let key = format!("{}{EXTENSION_TABLES}.pgdump.zst.age", to.folder);
    let reading = async move {
        let contents = write::contents(server_version, Utc::now(), &entries);
        if sender.send(Piece::Bytes(contents.into())).await.is_err() {
            return Ok(());
        }
        let with_rows = tables.iter().filter(|t| !t.is_partitioned);
        for (table, entry) in with_rows.zip(entries.iter().filter(|e| e.has_data)) {
            let read = rows(client, table, encoding, entry.dump_id, &sender);
            read.await.with_context(|| format!("cannot read table {}", table.display()))?;
        }
        let _ = sender.send(Piece::End).await; // the writer says why it does not listen
        Ok::<_, Error>(())
    };
    let stored = upload(to.store.as_ref(), &to.prefix, &key, pieces, |_| ());
    let (read, stored, written) = tokio::join!(reading, stored, writing);
    let written = written.map_err(|e| Error::new(format!("{name} stopped: {e}")))?;
    let stored = stored.with_context(|| name.clone())?;
    read?;
    let (Some(objects), Some((contents, plain_size))) = (stored, written.with_context(|| name.clone())?)
    else {
        return Err(Error::new(format!("{name} was given up")));
    };
    (to.progress)(Event::StreamFinished { name });
    let stream = Stream {
        name: EXTENSION_TABLES.to_owned(),
        plain_size,
        objects,
        seconds: begun.elapsed().as_secs_f64(),
        locks: Some(contents.entries.len() as u64),
    };
    Ok(Some(Dumped { stream, contents }))
}

/// What the archive is written of.
enum Piece {
    Bytes(Bytes),
    /// All of it was read.
    End,
}

/// The table of contents.
async fn entries(
    client: &Client,
    tables: &[Undumped],
    encoding: &str,
    taken: &HashSet<(&str, &str)>,
) -> Result<Vec<Entry>> {
    let setting = |desc: &str, defn: String| Entry {
        tag: desc.into(),
        desc: desc.into(),
        defn,
        section: Section::PreData,
        ..Entry::default()
    };
    let mut definitions = vec![
        setting("ENCODING", format!("SET client_encoding = '{encoding}';\n")),
        setting("STDSTRINGS", "SET standard_conforming_strings = 'on';\n".to_owned()),
        setting("SEARCHPATH", "SELECT pg_catalog.set_config('search_path', '', false);\n".to_owned()),
    ];
    let (mut data, mut indexes, mut foreign_keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut sequences: Vec<Entry> = Vec::new();
    for table in tables {
        let row = client.query_one(DEFINITION, &[&table.oid]).await.map_err(error);
        let row = row.with_context(|| format!("cannot see how table {} is defined", table.display()))?;
        let owner = row.get::<_, Name>(1).0;
        let of = |desc: &str, section, defn: String| Entry {
            tag: table.name.clone(),
            desc: desc.into(),
            defn,
            namespace: table.schema.clone(),
            owner: owner.clone(),
            section,
            ..Entry::default()
        };
        definitions.push(of("TABLE", Section::PreData, row.get::<_, Name>(0).0));
        if !table.is_partitioned {
            let columns = table.columns.iter().map(|name| Sql::new("").ident(name));
            let columns = match table.columns.is_empty() {
                true => Sql::new(""),
                false => Sql::new("(").join(columns, ", ").then(")"),
            };
            let copy = format!("COPY {} {columns} FROM stdin;\n", quoted(&table.schema, &table.name));
            data.push(Entry { copy, has_data: true, ..of("TABLE DATA", Section::Data, String::new()) });
        }
        indexes.extend(row.get::<_, Option<Name>>(2).map(|sql| of("INDEX", Section::PostData, sql.0)));
        foreign_keys
            .extend(row.get::<_, Option<Name>>(3).map(|sql| of("FK CONSTRAINT", Section::PostData, sql.0)));
        let found =
            client.query(SEQUENCES, &[&table.oid]).await.map_err(error).context("cannot list sequences")?;
        for row in found {
            let (schema, name) = (row.get::<_, Name>(0).0, row.get::<_, Name>(1).0);
            let is_told = sequences.iter().any(|s| (&s.namespace, &s.tag) == (&schema, &name));
            if is_told || taken.contains(&(schema.as_str(), name.as_str())) {
                continue;
            }
            let value = Sql::new("SELECT last_value, is_called FROM ").qualified(&schema, &name);
            let value = value.query_one(client).await.map_err(error);
            let value = value.with_context(|| format!("cannot read sequence {schema}.{name}"))?;
            let (last_value, is_called): (i64, bool) = (value.get(0), value.get(1));
            let defn = Sql::new("SELECT pg_catalog.setval(")
                .literal(&quoted(&schema, &name))
                .then(", ")
                .number(last_value);
            let defn = defn.then(if is_called { ", true);\n" } else { ", false);\n" }).to_string();
            sequences.push(Entry {
                tag: name,
                desc: "SEQUENCE SET".into(),
                defn,
                namespace: schema,
                owner: owner.clone(),
                section: Section::Data,
                ..Entry::default()
            });
        }
    }
    let all = [definitions, data, sequences, indexes, foreign_keys].into_iter().flatten();
    Ok(all.zip(1..).map(|(entry, dump_id)| Entry { dump_id, ..entry }).collect())
}

/// Reads a table, and finds out whether it is still the one that the snapshot has: a rewritten one is empty to it.
async fn rows(
    client: &Client,
    table: &Undumped,
    encoding: &str,
    dump_id: i32,
    sender: &mpsc::Sender<Piece>,
) -> Result<()> {
    let columns = table.columns.iter().map(|name| Sql::new("").ident(name));
    let sql = Sql::new("COPY ").qualified(&table.schema, &table.name);
    let sql = match table.columns.is_empty() {
        true => sql,
        false => sql.then(" (").join(columns, ", ").then(")"),
    };
    let sql = sql.then(" TO STDOUT (ENCODING ").literal(encoding).then(")");
    let mut copied = pin!(sql.copy_out(client).await.map_err(error)?);
    let mut begin = Vec::new();
    write::begin_rows(&mut begin, dump_id);
    let (mut text, mut out) = (Vec::new(), begin);
    while let Some(row) = copied.next().await {
        text.extend_from_slice(&row.map_err(error)?);
        if text.len() >= CHUNK {
            write::rows(&mut out, &text);
            text.clear();
            if sender.send(Piece::Bytes(std::mem::take(&mut out).into())).await.is_err() {
                return Ok(());
            }
        }
    }
    write::rows(&mut out, &text);
    write::end_rows(&mut out);
    let _ = sender.send(Piece::Bytes(out.into())).await; // the writer says why it does not listen
    let row = client
        .query_opt(
            "SELECT pg_relation_filenode(oid) IS NOT DISTINCT FROM relfilenode FROM pg_class WHERE oid = $1",
            &[&table.oid],
        )
        .await
        .map_err(error)?;
    match row.is_some_and(|row| row.get(0)) {
        true => Ok(()),
        false => {
            Err(Error::new("it was rewritten while the snapshot was taken").with_hint("run the backup again"))
        }
    }
}
