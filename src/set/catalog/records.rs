//! Which of a set's verification records are read: whoever may write to the repository may put there as
//! many, and as large ones, as they please.

use super::Entry;
use crate::error::Error;
use crate::set::verification;

/// Largest verification record that is read: a line for each of thousands of tables.
pub(super) const RECORD_LIMIT: u64 = verification::SIZE_MAX as u64;

/// Rehearsals of a set that are looked at, the newest by their names: a set that is rehearsed each night
/// for a month has as many, and what is older decides nothing.
const RECORDS: usize = 32;

/// Bytes of all records of a set that are read. What is parsed takes several times as much.
pub(super) const RECORDS_LIMIT: u64 = 2 * RECORD_LIMIT;

/// The records that are read, newest first, and why others are not.
pub(super) fn to_read(entry: &Entry) -> (Vec<&str>, Vec<(String, Error)>) {
    let (mut read, mut passed_over) = (Vec::new(), Vec::new());
    let mut older = 0_u64;
    let mut left = RECORDS_LIMIT;
    for object in entry.objects.iter().rev().filter(|o| verification::is_name(&o.key)) {
        if object.size > RECORD_LIMIT {
            let why = format!("it has {} bytes, and a record at most {RECORD_LIMIT}", object.size);
            passed_over.push((object.key.clone(), Error::new(why)));
        } else if read.len() == RECORDS || object.size > left {
            older += 1;
            left = 0;
        } else {
            left -= object.size;
            read.push(object.key.as_str());
        }
    }
    // However many there are: what is said of them has an end as well.
    let more = passed_over.len().saturating_sub(RECORDS) as u64;
    passed_over.truncate(RECORDS);
    if older + more > 0 {
        let why = format!("only the newest {RECORDS} of at most {} KiB are read", RECORDS_LIMIT >> 10);
        let rest = format!("the rest of the verification records ({})", older + more);
        passed_over.push((rest, Error::new(why)));
    }
    (read, passed_over)
}
