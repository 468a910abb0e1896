//! How large a manifest may be: who can write to the bucket decides what is read, and all of it is held.

use crate::error::{Error, Result};

/// Largest manifest that is written, and read; a thousand times what one usually needs.
pub const SIZE_MAX: u64 = 16 * 1024 * 1024;

/// JSON values of a manifest: fifteen times as many as those of a thousand databases. An empty text takes
/// three bytes in a document and ten times as much when it is parsed.
const VALUES_MAX: usize = 500_000;

/// Refuses a manifest that is larger than what is held. What writes one asks, too: nobody could read the set.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > SIZE_MAX {
        return Err(Error::new(format!("manifest has more than {} MiB", SIZE_MAX >> 20)));
    }
    let (mut values, mut is_text, mut is_escaped) = (0, false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            // Each value but the first follows one of these.
            b',' | b'{' | b'[' if !is_text => values += 1,
            _ => {}
        }
    }
    if values > VALUES_MAX {
        return Err(Error::new(format!("manifest has more than {VALUES_MAX} values")));
    }
    Ok(())
}

/// The sum, if there can be so much.
pub(super) fn total(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0, u64::checked_add)
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::super::tests::manifest;
    use super::*;

    #[test]
    fn what_nobody_could_read_is_not_written() {
        let mut manifest = manifest();
        // Punctuation within a text is no value.
        manifest.warnings = vec![",{[\\\"".repeat(200_000)];
        let bytes = manifest.to_bytes().unwrap();
        Manifest::parse(&bytes, &manifest.site, &manifest.job, &manifest.id).unwrap();
        for warnings in [vec![String::new(); VALUES_MAX], vec!["x".repeat(17 << 20)]] {
            manifest.warnings = warnings;
            let error = manifest.to_bytes().unwrap_err();
            assert!(error.to_string().contains("manifest has more than"), "{error}");
        }
    }
}
