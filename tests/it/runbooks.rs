//! What the pages in `runbooks/` tell a tired person to type is run on real servers of the kind that it is
//! for; what they name must exist. That each page has its sections, and that its links lead somewhere, is
//! told by the tests of the alerts.

mod page;
mod shell;
mod sql;
mod words;

use std::collections::BTreeSet;

use opsd::metrics;
use opsd::rules::promql;
use page::{ACT, Kind, LOOK, OVER, Snippet, pages, snippets};

fn all() -> Vec<Snippet> {
    let all = snippets(shell::is_program);
    assert!(all.len() > 300, "{}", all.len());
    all
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} are wrong:\n\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn every_statement_runs_where_it_is_to_be_typed() {
    let all = all();
    let run = |major: u32| {
        let of_major = |wrong: String| format!("PostgreSQL {major}: {wrong}");
        sql::run_all(major, &all).into_iter().map(of_major).collect::<Vec<_>>()
    };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = sql::majors().into_iter().map(|major| scope.spawn(move || run(major))).collect();
        runs.into_iter().flat_map(|run| run.join().unwrap()).collect()
    });
    assert_none(&wrong);
}

#[test]
fn every_command_runs_where_it_is_to_be_typed() {
    assert_none(&shell::run_all(&all()));
}

#[test]
fn every_name_is_known_to_whom_it_belongs() {
    assert_none(&words::unknown(&all()));
}

/// What ends, removes or gives up something.
const COSTS: &[&str] = &[
    "ALTER SYSTEM",
    "COMMIT PREPARED",
    "ROLLBACK PREPARED",
    "aws s3 rm",
    "docker compose restart",
    "docker system prune",
    "docker image prune",
    "docker service update --force",
    "kill PID",
    "mv ",
    "opsd backups prune",
    "opsd backups sweep",
    "pg_cancel_backend",
    "pg_drop_replication_slot",
    "pg_promote",
    "pg_terminate_backend",
    "redis-check-aof --fix",
    "redis-cli unlink",
    "replicaof no one",
    "stop-writes-on-bgsave-error no",
    "--vacuum-size",
    "systemctl disable",
    "config set timeout",
];

#[test]
fn what_ends_or_removes_something_says_what_it_costs() {
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::<&str>::new());
    for snippet in
        all().iter().filter(|snippet| snippet.kind != Kind::Word && !snippet.text.contains("--dry-run"))
    {
        let dear: Vec<&str> = COSTS.iter().copied().filter(|part| snippet.text.contains(part)).collect();
        seen.extend(&dear);
        if !dear.is_empty() && !snippet.around.contains("Cost: ") {
            wrong.push(format!("{snippet}\n  what does it cost?"));
        }
    }
    wrong.extend(
        COSTS.iter().filter(|part| !seen.contains(*part)).map(|part| format!("no page has {part:?}")),
    );
    assert_none(&wrong);
}

#[test]
fn every_page_has_commands_to_look_and_to_act_and_a_sign_of_the_end() {
    let all = all();
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        let has = |section: &str, is_it: &dyn Fn(&Snippet) -> bool| {
            all.iter().any(|snippet| snippet.page == page && snippet.section == section && is_it(snippet))
        };
        let is_command = |snippet: &Snippet| snippet.kind != Kind::Word;
        if !has(LOOK, &|snippet| is_command(snippet) && snippet.in_block) {
            wrong.push(format!("{page}.md shows no command to look with"));
        }
        if !has(ACT, &is_command) {
            wrong.push(format!("{page}.md shows no command to act with"));
        }
        let over = text.split(OVER).nth(1).unwrap_or_default();
        let is_sign = |snippet: &Snippet| is_command(snippet) || snippet.text.starts_with("opsd_");
        let points = ["query above", "query's", "panel"].iter().any(|word| over.contains(word));
        if !has(OVER, &is_sign) && !points {
            wrong.push(format!("{page}.md does not say where to see that it is over"));
        }
        if text.lines().filter(|line| !line.starts_with(page::IN_COMPOSE)).count() > 55 {
            wrong.push(format!("{page}.md is long for three in the morning"));
        }
    }
    for snippet in all.iter().filter(|snippet| snippet.kind == Kind::Promql) {
        match promql::parse(&snippet.text) {
            Err(error) => wrong.push(format!("{snippet}\n  {error}")),
            Ok(expr) => {
                for name in expr.selectors().into_iter().filter_map(|selector| selector.name.clone()) {
                    if metrics::find(&name).is_none_or(|metric| metric.series() != name) {
                        wrong.push(format!("{snippet}\n  opsd has no metric {name}"));
                    }
                }
            }
        }
    }
    assert_none(&wrong);
}

/// The rows of the table in `docs/docker.md`: what begins a command on the host, and what it is in Compose.
fn in_compose() -> Vec<(String, String)> {
    let page = std::fs::read_to_string("docs/docker.md").unwrap();
    let table = page.split("| on the host | in Compose |\n").nth(1).unwrap();
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| `")?.strip_suffix("` |"));
    let rows = rows.map(|row| row.split_once("` | `").unwrap());
    rows.map(|(host, compose)| (host.to_owned(), compose.to_owned())).collect()
}

/// The recipe for one table has commands of the table's, too.
#[test]
fn the_recipe_for_one_table_says_what_its_commands_are_in_compose() {
    let (page, table) = (std::fs::read_to_string("docs/one-table.md").unwrap(), in_compose());
    let form = |host: &str| {
        let (_, compose) = table.iter().find(|(name, _)| name == host).unwrap();
        // What the functions of the page are made of.
        let function = format!("{host}() {{ {} \"$@\"; }}", compose.replacen("exec", "exec -T", 1));
        assert!(page.lines().any(|line| line == function), "docs/one-table.md lacks:\n{function}");
        format!("`{host}` is `{compose}`")
    };
    let line = format!("{}{}.", page::IN_COMPOSE, ["opsd", "psql", "pg_dump", "dropdb"].map(form).join(", "));
    assert!(page.lines().any(|found| found == line), "docs/one-table.md lacks:\n{line}");
}

/// What only a host has, and a site in Compose does not.
const OF_THE_HOST: &[&str] =
    &["systemctl", "journalctl -u", "sudo -u postgres", "tail -n 50 /var/log", "tail -n 100 /var/log"];

#[test]
fn each_page_says_what_its_commands_are_in_compose() {
    let (all, table) = (all(), in_compose());
    assert!(table.len() > 20, "{table:?}");
    let mut wrong = Vec::new();
    for (name, text) in pages() {
        let (mut used, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        let of_page = |snippet: &&Snippet| {
            // Who has certbot has it on the host.
            snippet.page == name && snippet.kind == Kind::Shell && !snippet.text.contains("certbot")
        };
        for snippet in all.iter().filter(of_page) {
            let command = snippet.text.split(" #").next().unwrap();
            for part in command.split(['|', ';']).map(str::trim) {
                let begins = |prefix: &str| part == prefix || part.starts_with(&format!("{prefix} "));
                let row = table.iter().position(|(host, _)| begins(host));
                used.extend(row);
                let is_said =
                    row.is_some() || snippet.text.contains("docker") || snippet.around.contains("docker");
                if !is_said && OF_THE_HOST.iter().any(|prefix| part.starts_with(prefix)) {
                    unknown.insert(part.to_owned());
                }
            }
        }
        for command in unknown {
            wrong.push(format!("{name}.md: {command:?} has no row in docs/docker.md"));
        }
        if used.is_empty() {
            continue;
        }
        let forms: Vec<_> =
            used.iter().map(|row| format!("`{}` is `{}`", table[*row].0, table[*row].1)).collect();
        let line = format!("{}{}.", page::IN_COMPOSE, forms.join(", "));
        if !text.lines().any(|found| found == line) {
            wrong.push(format!("{name}.md lacks:\n  {line}"));
        }
    }
    assert_none(&wrong);
}
