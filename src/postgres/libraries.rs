//! Libraries that a server loads when it starts, because an extension cannot be made without.
//!
//! A scratch server gets those of the source that belong to an extension of the set and that this host has. Others
//! change nothing of what a set holds. No background worker of a library runs there: a restored job (of pg_cron,
//! say) would change the rows that are to be proven.

use std::path::Path;

use super::scratch::Programs;
use crate::error::Result;

/// Extensions that refuse to be made where their library was not loaded at the start: for a set whose server did
/// not tell what it loads.
const KNOWN: [&str; 6] = ["citus", "pg_cron", "pgaudit", "pgsodium", "supabase_vault", "timescaledb"];
/// Where a build has its libraries, beside the directory of its programs.
const DIRECTORIES: [&str; 4] = ["lib", "lib/postgresql", "lib64", "lib64/pgsql"];

/// The extension that is made in one database alone, and the setting that names it.
pub const CRON: (&str, &str) = ("pg_cron", "cron.database_name");

/// The names in `shared_preload_libraries`, without directory and ending.
pub fn listed(setting: &str) -> Vec<String> {
    let name = |word: &str| {
        let word = word.trim().trim_matches('"');
        let file = word.rsplit('/').next().unwrap_or(word);
        file.strip_suffix(".so").unwrap_or(file).to_owned()
    };
    setting.split(',').map(name).filter(|name| !name.is_empty()).collect()
}

/// Which of them a server of these programs is to load for databases with these extensions.
pub fn wanted(preloaded: Option<&[String]>, extensions: &[&str], programs: &Programs) -> Result<Vec<String>> {
    let known: Vec<String> = KNOWN.map(str::to_owned).to_vec();
    let home = match programs {
        Programs::Host(binaries) => binaries.real_bin_dir()?.parent().map(Path::to_owned),
        Programs::Image(_) => None,
    };
    let is_here = |name: &String| match programs {
        Programs::Image(image) => image.has_library(name),
        Programs::Host(_) => home
            .iter()
            .any(|home| DIRECTORIES.iter().any(|dir| home.join(dir).join(format!("{name}.so")).exists())),
    };
    // The list is somebody else's word.
    let is_name = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let wanted = preloaded.unwrap_or(&known).iter();
    let wanted = wanted.filter(|name| extensions.contains(&name.as_str()) && is_name(name) && is_here(name));
    Ok(wanted.cloned().collect())
}

/// Lines of postgresql.conf for these libraries; `cron` is the database that pg_cron is to be made in.
pub fn settings(libraries: &[String], cron: Option<&str>) -> Vec<(&'static str, String)> {
    if libraries.is_empty() {
        return Vec::new();
    }
    let mut settings =
        vec![("shared_preload_libraries", libraries.join(",")), ("max_worker_processes", "0".to_owned())];
    let (extension, database) = CRON;
    if libraries.iter().any(|name| name == extension) {
        settings.extend(cron.map(|name| (database, name.to_owned())));
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_server_loads() {
        assert_eq!(listed(""), Vec::<String>::new());
        assert_eq!(listed("pg_cron"), ["pg_cron"]);
        assert_eq!(
            listed(r#"auto_explain, "$libdir/pgaudit" ,/opt/x/pg_cron.so"#),
            ["auto_explain", "pgaudit", "pg_cron"]
        );
    }

    #[test]
    fn no_worker_runs_beside_a_library() {
        assert!(settings(&[], Some("app")).is_empty());
        let settings = settings(&["pg_cron".to_owned()], Some("app"));
        assert!(settings.contains(&("max_worker_processes", "0".to_owned())));
        assert!(settings.contains(&("cron.database_name", "app".to_owned())));
    }
}
