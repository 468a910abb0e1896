//! What every session is given, whatever a role, a database or a server sets for it.
//!
//! `ALTER ROLE … SET` and `ALTER DATABASE … SET` reach our sessions and those of PostgreSQL's own tools. Some of
//! these settings would end a session that waits for others, some stall it, and some change what it reads, writes
//! or runs. What a session says for itself is stronger than either, so it says all of these. What only a superuser
//! may set cannot be said here; a plan looks at the two of them that lose rows.
//!
//! `tests/it/settings.rs` goes through everything that the servers of all majors know, and fails where something
//! is neither pinned here nor judged there.

use super::sql::Sql;

/// The oldest major that is talked to: what it knows is sent before anybody knows which one answers.
const OLDEST: u32 = 13;

/// How long a connection is quiet before either end asks for the other, in seconds: firewalls forget such
/// connections after minutes, and systems ask after two hours.
pub const KEEPALIVE_IDLE: u32 = 60;
/// Seconds between two questions.
pub const KEEPALIVE_INTERVAL: u32 = 10;
/// Questions without an answer, after which the other end is gone.
pub const KEEPALIVE_COUNT: u32 = 6;

/// A setting, its value, and the major that brought it: older servers refuse a session that names it.
#[derive(Debug, Clone, Copy)]
pub struct Pin {
    /// Its name.
    pub name: &'static str,
    /// The value that sessions get.
    pub value: &'static str,
    since: u32,
}

const fn pin(name: &'static str, value: &'static str) -> Pin {
    since(OLDEST, name, value)
}

const fn since(since: u32, name: &'static str, value: &'static str) -> Pin {
    Pin { name, value, since }
}

/// For our own sessions and for the tools'.
pub const PINNED: &[Pin] = &[
    // They end a session that takes its time, or waits for others. Where one is wanted, its session says so.
    pin("statement_timeout", "0"),
    pin("lock_timeout", "0"),
    pin("idle_in_transaction_session_timeout", "0"),
    since(14, "idle_session_timeout", "0"),
    since(17, "transaction_timeout", "0"),
    since(14, "client_connection_check_interval", "0"),
    // Where the repository is slow a pg_dump reads slowly, and the kernel may count that as data which does not arrive.
    pin("tcp_user_timeout", "0"),
    // The server's questions are ours: a host that died holds its job's lock no longer than two minutes.
    pin("tcp_keepalives_idle", "60"),
    pin("tcp_keepalives_interval", "10"),
    pin("tcp_keepalives_count", "6"),
    // A statement that failed is an answer.
    pin("exit_on_error", "off"),
    // Restores write, and none of several at once may fail for another's sake.
    pin("default_transaction_read_only", "off"),
    pin("default_transaction_isolation", "read committed"),
    pin("default_transaction_deferrable", "off"),
    // How text is read and written: definitions, and rows on their way in.
    pin("standard_conforming_strings", "on"),
    pin("array_nulls", "on"),
    pin("transform_null_equals", "off"),
    pin("timezone", "UTC"),
    pin("bytea_output", "hex"),
    pin("quote_all_identifiers", "off"),
    // Materialized views are filled with all rows, by way of others' views too.
    pin("gin_fuzzy_search_limit", "0"),
    since(17, "restrict_nonsystem_relation_kind", ""),
    // A collation that is only spelled oddly is restored.
    since(16, "icu_validation_level", "warning"),
    // ANALYZE after a restore does not pause.
    pin("vacuum_cost_delay", "0"),
    // What pg_dump writes to stderr is kept as warnings of a set.
    pin("client_min_messages", "warning"),
];

/// For our own sessions alone: the tools say these for themselves, and a restored definition that depends on
/// one of them is to find what its database sets.
pub const OWN: &[Pin] = &[
    // So that no function of a dumped database is picked up by name.
    pin("search_path", ""),
    pin("datestyle", "ISO"),
    pin("intervalstyle", "postgres"),
    pin("extra_float_digits", "3"),
    pin("row_security", "off"),
];

/// What a session of ours sends with its first packet: the operator's own options, then what is pinned, then
/// what this session wants otherwise. The last one of a name wins.
pub fn of_session(operators: Option<&str>, wanted: &[(&str, &str)]) -> String {
    let known = OWN.iter().chain(PINNED).filter(|pin| pin.since <= OLDEST);
    let pinned = known.map(|pin| option(pin.name, pin.value));
    let wanted = wanted.iter().map(|(name, value)| option(name, value));
    let options: Vec<String> = operators.map(str::to_owned).into_iter().chain(pinned).chain(wanted).collect();
    options.join(" ")
}

/// The rest of it, when it is known who answered: what only a server of this major knows.
pub fn once_known(major: u32, wanted: &[(&str, &str)]) -> Option<Sql> {
    let newer = OWN.iter().chain(PINNED).filter(|pin| pin.since > OLDEST && pin.since <= major);
    let unsaid = newer.filter(|pin| !wanted.iter().any(|(name, _)| *name == pin.name));
    let statements: Vec<Sql> =
        unsaid.map(|pin| Sql::new("SET ").then(pin.name).then(" = ").literal(pin.value)).collect();
    (!statements.is_empty()).then(|| Sql::new("").join(statements, "; "))
}

/// `PGOPTIONS` of a tool that talks to a server of this major: the operator's own options, then what is pinned.
pub fn of_tool(operators: Option<&str>, major: u32) -> String {
    let pinned = PINNED.iter().filter(|pin| pin.since <= major).map(|pin| option(pin.name, pin.value));
    let options: Vec<String> = operators.map(str::to_owned).into_iter().chain(pinned).collect();
    options.join(" ")
}

/// What a session of ours finds for a setting, unless it wants it otherwise.
pub fn value(name: &str) -> Option<&'static str> {
    OWN.iter().chain(PINNED).find(|pin| pin.name == name).map(|pin| pin.value)
}

/// `-c name=value`, of which the server makes one setting whatever the value is.
pub fn option(name: &str, value: &str) -> String {
    let mut option = format!("-c {name}=");
    for c in value.chars() {
        // What C calls white space ends an option.
        if c == '\\' || c.is_ascii_whitespace() || c == '\u{b}' {
            option.push('\\');
        }
        option.push(c);
    }
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_pin_after_the_operators_own_and_escape() {
        let options = of_session(Some("-c search_path=evil"), &[("a", "b c\\d")]);
        assert!(options.starts_with("-c search_path=evil -c search_path= -c datestyle=ISO"), "{options}");
        assert!(options.ends_with(r"-c a=b\ c\\d"), "{options}");
        assert!(options.contains(r"-c default_transaction_isolation=read\ committed"), "{options}");
        assert!(!options.contains("transaction_timeout=0 "), "a server of 13 would refuse it: {options}");
    }

    #[test]
    fn each_server_is_told_what_it_knows() {
        assert!(once_known(13, &[]).is_none());
        let said = once_known(14, &[("idle_session_timeout", "7")]).map(|sql| sql.to_string());
        assert_eq!(said.as_deref(), Some("SET client_connection_check_interval = '0'"));
        assert!(
            once_known(17, &[]).is_some_and(|sql| sql.to_string().contains("SET transaction_timeout = '0'"))
        );
        assert!(!of_tool(None, 16).contains("transaction_timeout"));
        let options = of_tool(Some("-c work_mem=8MB"), 17);
        assert!(
            options.starts_with("-c work_mem=8MB -c statement_timeout=0")
                && options.contains("-c transaction_timeout=0")
        );
    }

    #[test]
    fn both_ends_ask_equally_often() {
        for (name, number) in [
            ("tcp_keepalives_idle", KEEPALIVE_IDLE),
            ("tcp_keepalives_interval", KEEPALIVE_INTERVAL),
            ("tcp_keepalives_count", KEEPALIVE_COUNT),
        ] {
            assert_eq!(value(name), Some(number.to_string().as_str()));
        }
    }

    #[test]
    fn nothing_is_pinned_twice() {
        let mut names: Vec<&str> = OWN.iter().chain(PINNED).map(|pin| pin.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
