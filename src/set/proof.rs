//! `proof.json`: what a rehearsal must find again. Sealed like the data, because row counts and
//! definitions of settings are the operator's business alone.

use serde::{Deserialize, Serialize};

pub use crate::database::{Label, Setting};

/// Everything that was fingerprinted in one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Format of this document.
    pub format: u32,
    /// 192 random bytes that key the row hashes (XXH3-128 "with secret"), base64.
    pub secret: String,
    /// `client_encoding` the COPY text was written in.
    pub encoding: String,
    /// One entry a COPY statement; partitions loaded through their root are summed under it.
    pub tables: Vec<Table>,
    /// All large objects together.
    pub large_objects: Fingerprint,
    /// Their owners, privileges and comments, one row an object; absent where there is no object, and in
    /// sets of before this was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_object_properties: Option<Fingerprint>,
    /// Sequence values as the archive sets them.
    pub sequences: Vec<Sequence>,
    /// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`, as rows of pg_db_role_setting.
    pub settings: Vec<Setting>,
    /// Owner of the database.
    pub owner: String,
    /// Its privileges, `datacl` as text; absent means the default.
    pub acl: Option<String>,
    /// Its comment.
    pub comment: Option<String>,
    /// Its connection limit, where there is one.
    pub connection_limit: Option<i32>,
    /// Whether it is a template.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_template: bool,
    /// The tablespace it was in, unless that was the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tablespace: Option<String>,
    /// Its security labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// Tables whose rows were left out because the configuration says so.
    pub excluded: Vec<String>,
    /// What a restore computes anew, as it was at the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub computed: Vec<Computed>,
}

/// Generated columns of a table, or a materialized view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Computed {
    /// How it is read.
    pub kind: ComputedKind,
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// The columns that were read.
    pub columns: Vec<String>,
    /// What was in them; absent where they could not be read, or not in time.
    pub fingerprint: Option<Fingerprint>,
}

/// How computed content is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputedKind {
    /// A table alone.
    Table,
    /// A partitioned table with its partitions.
    Root,
    /// A materialized view.
    View,
    /// A table that pg_dump leaves out, or some of its rows.
    Undumped,
}

/// Rows written by one COPY statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Schema of the table that COPY names.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The archive's COPY statement, `COPY public.t (a, b) FROM stdin;`.
    pub copy: String,
    /// Entries of the archive that were written by it: several where partitions load through a root.
    pub entries: u64,
    /// What was in it.
    pub fingerprint: Fingerprint,
    /// Whether the rows that an extension brings itself are among them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_whole: bool,
}

/// An order-independent summary of rows (or large objects).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// How many.
    pub rows: u64,
    /// Bytes of COPY text, newlines included (of content, for large objects).
    pub bytes: u64,
    /// Sum modulo 2^128 of the rows' keyed hashes, in hexadecimal.
    #[serde(with = "hex128")]
    pub sum: u128,
}

impl Fingerprint {
    /// Adds another summary to this one.
    pub fn add(&mut self, other: Fingerprint) {
        self.rows += other.rows;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// A sequence's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
    /// `last_value`.
    pub last_value: i64,
    /// `is_called`.
    pub is_called: bool,
}

mod hex128 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{value:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        let text = String::deserialize(d)?;
        u128::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}
