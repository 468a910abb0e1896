//! Code that comes with a dump and runs while it is restored: what it leaves in the data directory of the
//! scratch server can be read from outside, and nothing else of it.

use std::path::{Path, PathBuf};

use super::postgres::Server;
use super::processes::until;

/// SQL that restores nothing but runs `statements` (of PL/pgSQL) in every scratch server, and nowhere else.
pub fn runs_in_scratch(name: &str, statements: &str) -> String {
    format!(
        "CREATE FUNCTION {name}(integer) RETURNS boolean LANGUAGE plpgsql AS $opsd$ BEGIN
           IF current_user = 'opsd_scratch' THEN {statements} END IF;
           RETURN true; END $opsd$;
         CREATE TABLE {name}_bait (id integer CHECK ({name}(id))); INSERT INTO {name}_bait VALUES (1)"
    )
}

/// Waits until [`go`] says so, within a restore.
pub const WAIT: &str = "WHILE (pg_stat_file('go', true)).size IS NULL LOOP PERFORM pg_sleep(0.02); END LOOP;";

/// Leaves a file `reached`, and [`WAIT`]s.
pub fn reach_and_wait() -> String {
    format!(
        "EXECUTE format('COPY (SELECT 1) TO %L', current_setting('data_directory') || '/reached'); {WAIT}"
    )
}

/// A database whose restore into a scratch server runs a script with `sh`, in the data directory.
pub fn database_that_runs(server: &Server, script: &str) -> String {
    let database = server.fresh_database("hostile");
    let run = format!("EXECUTE format('COPY (SELECT WHERE false) TO PROGRAM %L', $script${script}$script$);");
    server.psql(&database, &runs_in_scratch("attack", &run));
    database
}

/// A file in the data directory of the one scratch server that runs below `scratch_dir`.
pub fn data_file(scratch_dir: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(scratch_dir).ok()?;
    entries.filter_map(|e| Some(e.ok()?.path().join("data").join(name))).find(|path| path.exists())
}

/// Waits until restored code has left a file, and returns what is in it.
pub fn await_file(scratch_dir: &Path, name: &str) -> String {
    let mut found = None;
    until(&format!("restored code leaves {name:?}"), || {
        found = data_file(scratch_dir, name).and_then(|path| std::fs::read(path).ok());
        found.is_some()
    });
    String::from_utf8_lossy(&found.unwrap_or_default()).into_owned()
}

/// Lets restored code go on that [`WAIT`]s.
pub fn go(scratch_dir: &Path) {
    let data = data_file(scratch_dir, "PG_VERSION").expect("a scratch server").with_file_name("go");
    std::fs::write(data, "").expect("write into the data directory");
}
