//! What a database is, apart from what is in it: as a manifest or a proof records it, and as a server says it or is
//! asked for it.

use serde::{Deserialize, Serialize};

/// How a database orders and encodes text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locale {
    /// `UTF8`, `SQL_ASCII`, ….
    pub encoding: String,
    /// LC_COLLATE.
    pub collate: String,
    /// LC_CTYPE.
    pub ctype: String,
    /// `libc`, `icu` or `builtin`.
    pub provider: String,
    /// ICU or builtin locale.
    pub locale: Option<String>,
    /// ICU rules.
    pub icu_rules: Option<String>,
    /// `lc_monetary` of the dumping session: money is written in it.
    pub monetary: String,
}

/// One row of pg_db_role_setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The role it is limited to; absent means everybody.
    pub role: Option<String>,
    /// `name=value`.
    pub setting: String,
}

/// What a security module knows of a database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The module.
    pub provider: String,
    /// Its label.
    pub label: String,
}
