//! What a rehearsal covers of a set, and what it does not: one list, in the record, in `--json` and in
//! `docs/proven.md`.
//!
//! "Proven" is said of what was restored and compared. Whatever else a set or its database has stands here by its
//! kind, with the reason, so that nobody takes it for proven.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Names in a note; the rest is counted.
const NAMED: usize = 10;
/// Most characters of a name in a note; PostgreSQL's own have 63 bytes, with a schema twice that.
const NAME_MAX: usize = 160;

/// A kind of things that belong to a set, or to what it was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Databases, as wholes.
    Databases,
    /// Tables, with every row.
    Rows,
    /// Tables whose rows the configuration leaves out.
    ExcludedRows,
    /// Large objects.
    LargeObjects,
    /// Values of sequences.
    Sequences,
    /// Definitions.
    Definitions,
    /// Objects of extended statistics.
    StatisticsObjects,
    /// Extensions, at their version.
    ExtensionVersions,
    /// Columns that are generated and stored.
    GeneratedColumns,
    /// Materialized views, with every row.
    MaterializedViewRows,
    /// Rows of tables that pg_dump leaves out.
    UndumpedRows,
    /// Foreign tables' rows, which no dump has.
    ForeignTableRows,
    /// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`.
    DatabaseSettings,
    /// What a database has beside settings.
    DatabaseProperties,
    /// Tablespaces.
    Tablespaces,
    /// Roles and their attributes.
    Roles,
    /// Memberships.
    Memberships,
    /// `ALTER ROLE … SET`.
    RoleSettings,
    /// Passwords of roles.
    Passwords,
    /// What the globals hold beside roles.
    OtherGlobals,
}

impl What {
    /// All of them, in the order in which they are told: name, what is compared, and what never is or where it is not.
    pub const ALL: [(What, &'static str, &'static str, &'static str); 20] = [
        (
            What::Databases,
            "databases",
            "",
            "databases that `[\"*\"]` passes over, because nobody can connect to them (`ALLOW_CONNECTIONS false`, an interrupted `DROP DATABASE`); each is named, every backup warns of it, and the verdict stays",
        ),
        (
            What::Rows,
            "rows",
            "number, bytes and content of every row of every table in the set, each column that COPY writes",
            "rows whose table has no fingerprint (the set's proof is then `partial` or `none`, and the verdict `unproven`)",
        ),
        (
            What::ExcludedRows,
            "excluded-rows",
            "the definition",
            "rows that `exclude_table_data` leaves out; the tables are named",
        ),
        (What::LargeObjects, "large-objects", "number, OID, content, owner, privileges, comment", ""),
        (What::Sequences, "sequences", "`last_value` and `is_called`", ""),
        (
            What::Definitions,
            "definitions",
            "every entry of a fresh schema dump: owner, privileges, comments, table access method and SQL",
            "where the scratch server has another major than the source, they are compared, but only reported",
        ),
        (
            What::StatisticsObjects,
            "statistics-objects",
            "`CREATE STATISTICS`, as definitions are",
            "what ANALYZE computed is in no set; `restore --to` runs ANALYZE",
        ),
        (
            What::ExtensionVersions,
            "extension-versions",
            "each extension is installed at the set's version where the scratch server has it",
            "an extension of which the scratch server has only another version; both versions are named",
        ),
        (
            What::GeneratedColumns,
            "generated-columns",
            "values of `GENERATED ALWAYS AS … STORED` columns, which a restore computes anew",
            "columns whose values differ from the source's: their function was changed since they were stored, or depends on a time zone, or this host's locales are others. The tables are named, with a warning, and the verdict is `unproven`. Tables that were not read when the set was taken (not in time, locked, a foreign partition) are named",
        ),
        (
            What::MaterializedViewRows,
            "materialized-view-rows",
            "a view that came back with the rows it had",
            "a view whose rows differ: it was stale when it was dumped, or its query depends on the time or on chance. A dump holds no rows of it, but the order to fill it; nobody can tell a stale one from a lost row. It is named, and the verdict stays",
        ),
        (
            What::UndumpedRows,
            "undumped-rows",
            "tables of an extension that came back with the rows that they had, because its script makes them",
            "rows that pg_dump leaves out and no restore makes: of tables that are members of an extension, of rows that an extension brings itself and somebody changed, of tables in `information_schema` and `pg_catalog`. The tables are named, with a warning, and the verdict is `unproven`. `include_extension_tables` takes them along; they are then in the set, and among `rows`",
        ),
        (
            What::ForeignTableRows,
            "foreign-table-rows",
            "the definition",
            "rows of foreign tables: they are on another server; the tables are named",
        ),
        (
            What::DatabaseSettings,
            "database-settings",
            "`ALTER DATABASE … SET`, `ALTER ROLE … IN DATABASE … SET`",
            "a setting that the scratch server refuses (a locale, a library that this host lacks); it is named",
        ),
        (
            What::DatabaseProperties,
            "database-properties",
            "encoding and locale",
            "the database's own owner, privileges, comment, connection limit, security labels: `restore --to` applies them, and says what it cannot",
        ),
        (
            What::Tablespaces,
            "tablespaces",
            "",
            "where tables and indexes lie: a scratch server has one tablespace",
        ),
        (What::Roles, "roles", "each role, its attributes, when its password ends, its comment", ""),
        (
            What::Memberships,
            "memberships",
            "each membership with its options, and who granted it, where he could on any server: the first superuser of the source has another name elsewhere",
            "memberships in predefined roles that the scratch server does not have",
        ),
        (
            What::RoleSettings,
            "role-settings",
            "`ALTER ROLE … SET`",
            "a setting that the scratch server refuses; it is named",
        ),
        (
            What::Passwords,
            "passwords",
            "",
            "hashes of passwords: they are never put where code of the dump runs",
        ),
        (
            What::OtherGlobals,
            "other-globals",
            "privileges of roles on parameters",
            "tablespaces and security labels in the globals, which are counted by their kind, and privileges on parameters that the scratch server refuses, which are named",
        ),
    ];

    /// For people: what it is that was compared, or was not.
    pub fn words(self) -> &'static str {
        match self {
            What::Databases => "databases",
            What::Rows => "tables with their rows",
            What::ExcludedRows => "rows of tables that exclude_table_data names",
            What::LargeObjects => "large objects",
            What::Sequences => "sequences",
            What::Definitions => "definitions",
            What::StatisticsObjects => "statistics objects",
            What::ExtensionVersions => "versions of extensions",
            What::GeneratedColumns => "generated columns",
            What::MaterializedViewRows => "rows of materialized views",
            What::UndumpedRows => "rows that pg_dump leaves out",
            What::ForeignTableRows => "rows of foreign tables",
            What::DatabaseSettings => "settings of the database",
            What::DatabaseProperties => {
                "the database's own owner, privileges, comment, connection limit and security labels"
            }
            What::Tablespaces => "tablespaces",
            What::Roles => "roles",
            What::Memberships => "memberships of roles",
            What::RoleSettings => "settings of roles",
            What::Passwords => "passwords of roles",
            What::OtherGlobals => "what the server has beside databases and roles",
        }
    }

    /// As in JSON.
    pub fn as_str(self) -> &'static str {
        What::ALL.into_iter().find(|(what, ..)| *what == self).map_or("", |(_, name, ..)| name)
    }
}

/// What was compared of one kind, or was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// The kind.
    pub what: What,
    /// The database; absent for what belongs to all of them.
    pub database: Option<String>,
    /// Whether it was compared.
    pub covered: bool,
    /// How many.
    pub count: u64,
    /// Which, or why not.
    pub note: Option<String>,
}

impl Scope {
    /// What was compared; nothing where there was none of it.
    pub fn covered(what: What, database: Option<&str>, count: u64) -> Option<Self> {
        let database = database.map(str::to_owned);
        (count > 0).then_some(Self { what, database, covered: true, count, note: None })
    }

    /// What was not; nothing where there was none of it.
    pub fn uncovered(
        what: What,
        database: Option<&str>,
        count: u64,
        note: impl Into<String>,
    ) -> Option<Self> {
        let (database, note) = (database.map(str::to_owned), note.into());
        let note = (!note.is_empty()).then_some(note);
        (count > 0).then_some(Self { what, database, covered: false, count, note })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(database) = &self.database {
            write!(f, "{database}: ")?;
        }
        f.write_str(self.what.words())?;
        // A database has one of each of those.
        if self.what != What::DatabaseProperties {
            write!(f, " ({})", self.count)?;
        }
        match &self.note {
            Some(note) => write!(f, ": {note}"),
            None => Ok(()),
        }
    }
}

/// The first of some names, and how many more there are.
pub fn named<S: AsRef<str>>(names: &[S]) -> String {
    let short = |name: &S| crate::printable::bounded(name.as_ref(), NAME_MAX).into_owned();
    let mut text = names.iter().take(NAMED).map(short).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_name_and_stands_in_the_documentation() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/proven.md")).unwrap();
        for (what, name, covered, not) in What::ALL {
            assert_eq!(serde_json::to_value(what).unwrap(), name);
            let row = format!("| `{name}` | {} | {} |", dash(covered), dash(not));
            assert!(page.contains(&row), "docs/proven.md lacks:\n{row}");
        }
    }

    /// `database-properties` is a key, and no English.
    #[test]
    fn people_read_words() {
        for (what, name, ..) in What::ALL {
            assert!(!what.words().contains('-'), "{name}");
            let line = Scope::uncovered(what, Some("app"), 3, "").unwrap().to_string();
            assert!(line.starts_with(&format!("app: {}", what.words())), "{line}");
        }
    }

    fn dash(text: &str) -> &str {
        if text.is_empty() { "–" } else { text }
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
        assert!(named(&names).ends_with("t9 and 2 more"));
        assert_eq!(named(&names[..2]), "t0, t1");
        assert_eq!(Scope::covered(What::Rows, None, 0), None);
    }
}
