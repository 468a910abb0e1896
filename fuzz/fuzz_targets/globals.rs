//! SQL that opsd takes apart: pg_dumpall's roles, and COPY statements. Whatever it says, no name that comes
//! out leaves its quotes again.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use opsd::restore::roles;
use opsd::set::archive::copy;
use opsd::set::globals::Globals;
use opsd::set::lexer::statements;

fuzz_target!(|data: &[u8]| {
    let Ok(sql) = std::str::from_utf8(data) else { return };
    for statement in statements(sql).map_while(Result::ok) {
        assert!(sql.contains(statement.text));
    }
    if let Ok(globals) = Globals::parse(sql) {
        // What is made of the parts is as many statements as there are, each of which is understood again.
        let made = roles::missing(&globals, &BTreeSet::new(), 18);
        let again: String = made.iter().map(|sql| format!("{sql};\n")).collect();
        assert_eq!(statements(&again).filter(Result::is_ok).count(), made.len());
        for role in &globals.roles {
            assert_eq!(statements(&format!("{};", roles::stub(role))).filter(Result::is_ok).count(), 1);
        }
    }
    if let Ok(statement) = copy::parse_copy(sql) {
        let quoted = |name: &String| format!("\"{}\"", name.replace('"', "\"\""));
        let columns: Vec<String> = statement.columns.iter().map(quoted).collect();
        let list = if columns.is_empty() { String::new() } else { format!("({})", columns.join(", ")) };
        let again = format!("COPY {}.{} {list} FROM stdin;", quoted(&statement.schema), quoted(&statement.table));
        assert_eq!(copy::parse_copy(&again).expect("what was understood is understood again"), statement);
    }
});
