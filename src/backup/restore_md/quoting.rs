//! Text of others in a document that is read in a terminal, rendered as Markdown, and pasted into a shell.
//!
//! A name may hold any character: newlines and fences that end a block of commands, sequences that a
//! terminal obeys, marks that turn around how a line is shown. None of them is written as it is.

/// Text for people, as a code span: one line, in which nothing means anything to Markdown or a terminal.
pub fn markdown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        let is_plain = (c.is_ascii_graphic() && !matches!(c, '`' | '\\')) || c == ' ';
        if is_plain || (!c.is_ascii() && c.is_alphanumeric()) {
            shown.push(c);
        } else {
            shown.push_str(&c.escape_unicode().to_string());
        }
    }
    // Nothing, or blanks alone, would be no code span.
    if shown.trim().is_empty() { format!("`\"{shown}\"`") } else { format!("`{shown}`") }
}

/// A word of a command, in one line of printable ASCII. What cannot be said in such a line is first put into
/// a shell variable by a command, which is returned beside the word.
pub fn shell(variable: &str, word: &str) -> (Option<String>, String) {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./%:=".contains(c);
    let is_printable = |c: char| c.is_ascii_graphic() || c == ' ';
    if !word.is_empty() && word.chars().all(is_plain) {
        (None, word.to_owned())
    } else if word.chars().all(is_printable) {
        (None, format!("'{}'", word.replace('\'', "'\\''")))
    } else {
        (Some(assignment(variable, word)), format!("\"${variable}\""))
    }
}

/// The line that sets a variable of the environment.
pub fn export(variable: &str, value: &str) -> String {
    match shell(variable, value) {
        (None, word) => format!("export {variable}={word}"),
        (Some(assignment), _) => format!("{assignment}; export {variable}"),
    }
}

/// A shell takes newlines off the end of what a command prints, so a point stands behind them meanwhile.
fn assignment(variable: &str, value: &str) -> String {
    let mut bytes = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b' ' {
            bytes.push(char::from(byte));
        } else {
            // In octal, as every `printf` takes it.
            bytes.push_str(&format!("\\0{byte:03o}"));
        }
    }
    format!("{variable}=$(printf '%b.' '{bytes}'); {variable}=${{{variable}%.}}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a shell makes of a script.
    fn run(shell: &str, script: &str) -> Vec<u8> {
        let output = std::process::Command::new(shell).args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}\n{script}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn is_printable(text: &str) -> bool {
        text.chars().all(|c| c.is_ascii_graphic() || c == ' ')
    }

    fn said(shell_program: &str, word: &str) {
        let (before, quoted) = shell("w", word);
        let before = before.map(|line| line + "\n").unwrap_or_default();
        assert!(is_printable(before.trim_end()) && is_printable(&quoted), "{before}{quoted}");
        let script = format!("{before}printf '%s\\0' {quoted}");
        assert_eq!(run(shell_program, &script), format!("{word}\0").as_bytes(), "{script}");
        let script = format!("{}\nprintenv W; printf .", export("W", word));
        assert_eq!(run(shell_program, &script), format!("{word}\n.").as_bytes(), "{script}");
    }

    const ODD: [&str; 18] = [
        "shop",
        "",
        "../x \"y\"",
        "it's",
        "'; touch owned; '",
        "$HOME $(id) `id`",
        "a\nb",
        "\n\n",
        "x\n```\n\n```sh\ntouch owned\n```\n",
        "-rf",
        "\\",
        "\\0101\\c",
        "%s%n\n%",
        "~",
        "!! * ? [a] {b,c} #x & | < >",
        "é\u{202e}",
        "\u{1b}]0;x\u{7}\u{9b}2J\r",
        "\t 7\u{1}7",
    ];

    #[test]
    fn words_reach_a_program_as_they_are() {
        for word in ODD {
            for program in ["sh", "bash"] {
                said(program, word);
            }
        }
    }

    #[test]
    fn text_has_no_meaning_left() {
        assert_eq!(markdown("shop"), "`shop`");
        assert_eq!(markdown("ключ é 1"), "`ключ é 1`");
        assert_eq!(markdown("a``b\n# c\\"), "`a\\u{60}\\u{60}b\\u{a}# c\\u{5c}`");
        assert_eq!(markdown("\u{1b}[2J\u{202e}\u{200b}"), "`\\u{1b}[2J\\u{202e}\\u{200b}`");
        assert_eq!((markdown("").as_str(), markdown(" ").as_str()), ("`\"\"`", "`\" \"`"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn any_word_reaches_a_program_as_it_is(word in "[^\0]{0,20}") {
            said("sh", &word);
        }

        #[test]
        fn any_text_is_one_code_span(text in any::<String>()) {
            let shown = markdown(&text);
            prop_assert_eq!(shown.matches('`').count(), 2);
            prop_assert!(shown.len() > 2 && shown.starts_with('`') && shown.ends_with('`'));
            let is_hidden = |c: char| c.is_control() || ('\u{200b}'..='\u{206f}').contains(&c);
            prop_assert!(!shown.contains(is_hidden));
        }
    }
}
