//! Sizes and durations as people write them, and the nearest known word to a misspelt one.

use std::time::Duration;

/// Bytes in a mebibyte.
pub const MIB: u64 = 1 << 20;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1 << 30;

/// Reads `8MiB`; binary units only, because `8MB` means two things to two people.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => MIB,
        "GiB" => GIB,
        "TiB" => 1 << 40,
        "" => return Err("a size needs a unit: B, KiB, MiB, GiB or TiB, as in \"8MiB\"".into()),
        _ => return Err("unknown unit of size; known are: B, KiB, MiB, GiB, TiB, as in \"8MiB\"".into()),
    };
    number.checked_mul(factor).ok_or_else(|| "size is too large".into())
}

/// Reads `24h` and `1d12h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    let mut seconds = 0u64;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        if end != rest.len() {
            return Err("not a duration; write it like \"24h\" or \"1d12h\"".into());
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        let (number, unit) = split_number(&rest[..unit_end])?;
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            "" => return Err("a duration needs a unit: s, m, h, d or w, as in \"24h\"".into()),
            _ => return Err("unknown unit of time; known are: s, m, h, d, w, as in \"24h\"".into()),
        };
        seconds = number
            .checked_mul(factor)
            .and_then(|n| n.checked_add(seconds))
            // The bound keeps sums of instants and durations far from overflow.
            .filter(|n| *n <= 100 * 366 * 86_400)
            .ok_or("duration is longer than a hundred years")?;
        rest = &rest[unit_end..];
        if rest.is_empty() {
            return Ok(Duration::from_secs(seconds));
        }
    }
}

fn split_number(text: &str) -> Result<(u64, &str), String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits == 0 {
        return Err("does not start with a whole number".into());
    }
    let number = text[..digits].parse().map_err(|_| "number is too large".to_string())?;
    Ok((number, text[digits..].trim_start()))
}

/// The known word that `word` was probably meant to be; none where two are as near.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).min(3);
    let mut near: Vec<(usize, &str)> =
        known.into_iter().map(|k| (distance(word, k), k)).filter(|(d, _)| *d <= allowed).collect();
    near.sort_by_key(|(d, _)| *d);
    match near.as_slice() {
        [(d, word), rest @ ..] if rest.first().is_none_or(|(other, _)| other > d) => Some(word),
        _ => None,
    }
}

/// What to say of a word that is none of the `known` ones: the one that was probably meant, or else all.
pub fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// Levenshtein distance where swapping neighbours counts once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    if a.len().abs_diff(b.len()) > 3 {
        return usize::MAX;
    }
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("8MiB"), Ok(8 << 20));
        assert_eq!(parse_size(" 5 GiB "), Ok(5 << 30));
        assert_eq!(parse_size("0B"), Ok(0));
        for bad in ["", "8", "8MB", "8mib", "MiB", "-1B", "1.5GiB", "99999999999999999999B", "9999999999TiB"]
        {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("1d12h30m5s"), Ok(Duration::from_secs(131_405)));
        assert_eq!(parse_duration("2w"), Ok(Duration::from_secs(1_209_600)));
        for bad in ["", "24", "h", "1h2", "1x", "-1h", "1h 30m", "99999999999w", "1 day"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_word() {
        let known = ["streams", "compression", "retention"];
        assert_eq!(nearest("stream", known), Some("streams"));
        assert_eq!(nearest("comprssion", known), Some("compression"));
        assert_eq!(nearest("retentoin", known), Some("retention"));
        assert_eq!(nearest("schedule", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("db", ["db1", "a"]), None, "half of it would be another");
        assert_eq!(nearest("db3", ["db1", "db2"]), None, "either may be meant");
        assert_eq!(nearest("Db2", ["db1", "db2"]), Some("db2"));
    }

    #[test]
    fn what_to_say_of_an_unknown_word() {
        assert_eq!(meant("mian", ["main", "other"]), "did you mean main?");
        assert_eq!(meant("db3", ["db1", "db2"]), "known are: db1, db2");
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in "\\PC{0,12}", other in "\\PC{0,12}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
            let _ = nearest(&text, [other.as_str()]);
        }

        #[test]
        fn whole_units_round_trip(n in 0u64..10_000) {
            prop_assert_eq!(parse_size(&format!("{n}MiB")), Ok(n << 20));
            prop_assert_eq!(parse_duration(&format!("{n}m")), Ok(Duration::from_secs(n * 60)));
        }
    }
}
