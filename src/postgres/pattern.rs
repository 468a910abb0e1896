//! Patterns that name tables.

/// `schema.table`, or `table` in whatever schema. Names may hold dots, so each may be the one between.
pub fn matches_pattern(pattern: &str, schema: &str, name: &str) -> bool {
    let mut splits = pattern.match_indices('.').peekable();
    if splits.peek().is_none() {
        return glob(pattern, name);
    }
    splits.any(|(dot, _)| glob(&pattern[..dot], schema) && glob(&pattern[dot + 1..], name))
}

/// `*` any run, `?` any character; everything else itself. When something does not fit, the last `*`
/// takes one more character, so it is never worse than pattern times text.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Behind the last `*`, and how far it reaches.
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                p += 1;
                star = Some((p, t));
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((behind, reach)) = star else { return false };
                (p, t) = (behind, reach + 1);
                star = Some((behind, reach + 1));
            }
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a pattern means, found by trying everything.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| naive(rest, &text[n..])),
            Some((c, rest)) => {
                text.split_first().is_some_and(|(t, text)| (*c == '?' || c == t) && naive(rest, text))
            }
        }
    }

    proptest! {
        #[test]
        fn patterns_mean_what_they_say(pattern in "[abé*?]{0,8}", text in "[abé]{0,8}") {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            prop_assert_eq!(glob(&pattern, &text), naive(&chars(&pattern), &chars(&text)));
        }
    }
}
