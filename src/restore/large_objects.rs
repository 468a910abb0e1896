//! Whether restored large objects have the owner, the privileges and the comment that they had.
//!
//! Deliberately absent: their content, which is `prove`'s.

use tokio_postgres::Client;

use crate::error::Result;
use crate::postgres::large_objects;
use crate::set::fingerprint::{RowHasher, RowSecret};
use crate::set::proof::Proof;

/// A line if they differ; nothing where the proof, being of an older opsd, does not say.
pub async fn check_properties(client: &Client, proof: &Proof, secret: &RowSecret) -> Result<Option<String>> {
    let Some(expected) = proof.large_object_properties else { return Ok(None) };
    let mut hasher = RowHasher::new(secret);
    large_objects::properties(client, |line| hasher.copied(line)).await?;
    let found = hasher.take();
    // Missing objects are a difference of their own.
    let differs = found.rows == expected.rows && found != expected;
    Ok(differs.then(|| "large objects: owners, privileges or comments are not what they were".to_owned()))
}
