//! A list that is a queue: its length, the job that is next, and how many came in, each in O(1).
//!
//! What came in is counted by where the newest job of the last collection stands now. Redis looks at
//! [`LOOK`] elements for it and no more; where more came in, or that job was taken, nobody knows.

use std::collections::HashMap;

use redis::{Cmd, Value};

use super::super::Failure;
use super::super::redis::link::Reply;
use super::super::redis::protocol;
use crate::config::monitoring::End;

/// How far Redis looks for a job: a fraction of a millisecond.
const LOOK: usize = 2_000;
/// A job larger than this is not remembered, nor sent back to be looked for.
const MARK_MAX: usize = 4 << 10;

/// The newest job of each list.
pub type Marks = HashMap<String, Vec<u8>>;

/// A list as it stands.
#[derive(Debug, Default)]
pub struct State {
    /// Jobs.
    pub length: i64,
    /// The job that is next.
    pub head: Option<Vec<u8>>,
    /// Jobs that came in since the last collection.
    pub arrived: Option<f64>,
}

/// The commands whose answers [`read`] takes, with the same marks.
pub fn commands(key: &str, end: End, marks: &Marks) -> Vec<Cmd> {
    let command = |name: &str| {
        let mut command = redis::cmd(name);
        command.arg(key);
        command
    };
    let (head, newest, rank) = match end {
        End::Right => (-1, 0, 1),
        End::Left => (0, -1, -1),
    };
    let mut commands = vec![command("LLEN"), command("LINDEX"), command("LINDEX")];
    commands[1].arg(head);
    commands[2].arg(newest);
    if let Some(mark) = marks.get(key) {
        let mut find = command("LPOS");
        // Two, because a job that is there twice tells nothing.
        find.arg(mark.as_slice()).arg("RANK").arg(rank).arg("COUNT").arg(2).arg("MAXLEN").arg(LOOK);
        commands.push(find);
    }
    commands
}

/// Reads the answers to [`commands`], and remembers the newest job.
pub fn read(
    key: &str,
    end: End,
    replies: &mut impl Iterator<Item = Reply>,
    marks: &mut Marks,
) -> Result<State, Failure> {
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let (length, head, newest) = (next(), next(), next());
    let found = if marks.remove(key).is_some() { next() } else { Ok(Value::Nil) };
    let length = integer(length?)?;
    // Whoever may not ask for it has no rates, and all the rest.
    let arrived = match found {
        Ok(Value::Array(found)) => arrived(end, length, &found),
        _ => None,
    };
    if let Some(newest) = bytes(newest?)?.filter(|job| job.len() <= MARK_MAX) {
        marks.insert(key.to_owned(), newest);
    }
    Ok(State { length, head: bytes(head?)?, arrived })
}

fn arrived(end: End, length: i64, found: &[Value]) -> Option<f64> {
    let [Value::Int(at)] = found else { return None };
    let before = match end {
        End::Right => *at,
        End::Left => length - 1 - at,
    };
    (before >= 0).then_some(before as f64)
}

/// A whole number.
pub fn integer(value: Value) -> Result<i64, Failure> {
    match value {
        Value::Int(number) => Ok(number),
        _ => Err(protocol("a count is no number")),
    }
}

/// A string; nil is none.
pub fn bytes(value: Value) -> Result<Option<Vec<u8>>, Failure> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(bytes)),
        Value::SimpleString(text) => Ok(Some(text.into_bytes())),
        Value::Int(number) => Ok(Some(number.to_string().into_bytes())),
        _ => Err(protocol("a value is no string")),
    }
}

/// A string that is a number; nil is none, and so is another text.
pub fn number(value: Value) -> Result<Option<f64>, Failure> {
    let text = bytes(value)?;
    let number = text.and_then(|text| std::str::from_utf8(&text).ok()?.trim().parse::<f64>().ok());
    Ok(number.filter(|number| number.is_finite()))
}

/// The score of `ZRANGE key 0 0 WITHSCORES`; none for an empty set.
pub fn lowest_score(value: Value) -> Result<Option<f64>, Failure> {
    match value {
        Value::Array(mut pair) if pair.len() == 2 => match pair.pop() {
            Some(score) => number(score),
            None => Ok(None),
        },
        Value::Array(none) if none.is_empty() => Ok(None),
        _ => Err(protocol("a range is no member with its score")),
    }
}

/// `ZCARD` and the lowest member.
pub fn set_commands(key: &str) -> [Cmd; 2] {
    let mut commands = [redis::cmd("ZCARD"), redis::cmd("ZRANGE")];
    commands[0].arg(key);
    commands[1].arg(key).arg(0).arg(0).arg("WITHSCORES");
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_what_stands_before_the_mark() {
        let found = |at: &[i64]| at.iter().map(|n| Value::Int(*n)).collect::<Vec<_>>();
        assert_eq!(arrived(End::Right, 10, &found(&[3])), Some(3.0));
        assert_eq!(arrived(End::Left, 10, &found(&[3])), Some(6.0));
        assert_eq!(arrived(End::Right, 10, &found(&[])), None, "taken, or too far");
        assert_eq!(arrived(End::Right, 10, &found(&[0, 4])), None, "there twice");
        assert_eq!(arrived(End::Left, 2, &found(&[3])), None, "the list changed meanwhile");
    }

    #[test]
    fn a_large_job_is_not_remembered() {
        for (size, kept) in [(MARK_MAX, 1), (MARK_MAX + 1, 0)] {
            let mut marks = Marks::new();
            let job = Value::BulkString(vec![b'x'; size]);
            let replies = [Value::Int(1), job.clone(), job].map(Ok);
            let state = read("q", End::Right, &mut replies.into_iter(), &mut marks).unwrap();
            assert_eq!((state.length, marks.len(), state.arrived), (1, kept, None));
        }
    }

    #[test]
    fn the_lowest_of_a_set() {
        let pair =
            |score: &str| Value::Array(vec![Value::BulkString(b"m".into()), Value::BulkString(score.into())]);
        assert_eq!(lowest_score(pair("1700000000.25")).unwrap(), Some(1_700_000_000.25));
        assert_eq!(lowest_score(pair("inf")).unwrap(), None);
        assert_eq!(lowest_score(Value::Array(vec![])).unwrap(), None);
        assert!(lowest_score(Value::Okay).is_err());
    }
}
