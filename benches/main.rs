//! `make bench`: opsd beside what people use today, on the same server, the same bucket, in one run.
//!
//! `cargo bench -- [web] [indexed] [many] [wide] [lobs] [tables] [list] [exporter] [big] [--skip-big] [--rounds N]
//! [--major N] [--json FILE]`; without names all of them. Contenders take turns within a round, so that what disturbs the machine disturbs
//! them all; what is reported are medians and ratios. `README.md` beside this file says what is
//! measured, and what came out. `--dump FILE` only writes the data as `pg_dump -Fc -Z0` does, for a
//! profile of the data path alone.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark is no part of the product: it talks, panics, waits and has an environment"
)]
// Only part of what the tests share is used here.
#![allow(clippy::allow_attributes, dead_code, reason = "the tests use the rest")]

mod contenders;
mod data;
mod exporter;
mod measure;
mod report;
/// What the tests stand on, as far as it is needed here.
#[path = "../tests/it/support"]
mod support {
    pub mod exporter;
    pub mod many_sets;
    pub mod opsd;
    pub mod postgres;
    pub mod processes;
    pub mod redis;
    pub mod s3;
    pub mod sets;
    pub mod torture;
}

use std::path::PathBuf;
use std::sync::Arc;

use contenders::Site;
use opsd::store::{Store, open_s3};
use report::Report;
use support::many_sets;
use support::opsd::Opsd;
use support::postgres::default_major;
use support::s3::SeaweedFs;

/// Sets that are listed.
const SETS: usize = 1_000;

/// What there is to measure.
const NAMES: [&str; 9] = ["web", "indexed", "many", "wide", "lobs", "tables", "list", "exporter", "big"];

/// Disk for `big`: the database, its set, and twice the database for the rehearsal.
const BIG_NEEDS: u64 = 36 << 30;

/// What one run does.
struct Plan {
    names: Vec<String>,
    rounds: usize,
    /// PostgreSQL's.
    major: u32,
    json: PathBuf,
    dump: Option<PathBuf>,
}

fn main() {
    let plan = plan();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut report = Report::default();
    for name in &plan.names {
        eprintln!("{name}: making what is measured");
        // What is stored has a store of its own and goes with it. It answers over the network; only starting
        // it needs a runtime.
        let start = || runtime.block_on(SeaweedFs::start());
        match name.as_str() {
            "list" => list(&runtime, &start(), plan.rounds, &mut report),
            "exporter" => exporter::measure(&mut report),
            _ => data_path(name, &start(), &plan, &mut report),
        }
    }
    println!("{report}");
    std::fs::write(&plan.json, report.to_json()).expect("write the figures");
    println!("as JSON: {}", plan.json.display());
}

/// Backups, restores, rehearsals of one database.
fn data_path(name: &str, weed: &SeaweedFs, plan: &Plan, report: &mut Report) {
    let mut site = Site::new(name, plan.major, weed);
    if let Some(file) = &plan.dump {
        site.dump_to(file);
        return;
    }
    match name {
        "web" => web(&mut site, plan.rounds, report),
        "indexed" => indexed(&mut site, plan.rounds, report),
        "lobs" | "tables" => objects(&mut site, plan.rounds, report),
        "many" | "wide" => backups(&mut site, plan.rounds, report),
        "big" => big(&mut site, report),
        _ => unreachable!("plan() lets nothing else through"),
    }
}

fn plan() -> Plan {
    let mut plan = Plan {
        names: Vec::new(),
        rounds: 3,
        major: default_major(),
        json: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench.json"),
        dump: None,
    };
    let mut skip_big = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {} // cargo says so
            "--rounds" => plan.rounds = arguments.next().and_then(|n| n.parse().ok()).expect("--rounds N"),
            "--major" => plan.major = arguments.next().and_then(|n| n.parse().ok()).expect("--major N"),
            "--json" => plan.json = arguments.next().expect("--json FILE").into(),
            "--dump" => plan.dump = Some(arguments.next().expect("--dump FILE").into()),
            "--skip-big" => skip_big = true,
            name if NAMES.contains(&name) => plan.names.push(argument),
            _ => panic!(
                "unknown argument {argument}: [{}] [--skip-big] [--rounds N] [--major N] [--json FILE]",
                NAMES.join("] [")
            ),
        }
    }
    if plan.names.is_empty() {
        plan.names = NAMES.map(str::to_owned).to_vec();
    }
    plan.names.retain(|name| !(skip_big && name == "big"));
    let free = rustix::fs::statvfs(std::env::temp_dir()).map_or(u64::MAX, |fs| fs.f_bavail * fs.f_frsize);
    assert!(
        !plan.names.iter().any(|name| name == "big") || free >= BIG_NEEDS,
        "big needs {} GiB in {}, and {} are free: give TMPDIR, or --skip-big",
        BIG_NEEDS >> 30,
        std::env::temp_dir().display(),
        free >> 30
    );
    plan
}

/// Everything: backups, restores, rehearsals.
fn web(site: &mut Site, rounds: usize, report: &mut Report) {
    for round in 1..=rounds {
        eprintln!("web: round {round} of {rounds}");
        report.add("web", "floor", site.floor());
        report.add("web", "pipe", site.pipe());
        report.add("web", "opsd backup", site.opsd_backup());
        report.add("web", "opsd backup, to a directory", site.opsd_backup_to_directory());
        report.add("web", "the store alone (rclone)", site.store_alone());
        report.add("web", "pg_dump -Fd -j2", site.dump_directory());
        if let Some(cost) = site.pgbackrest() {
            report.add("web", "pgbackrest", cost);
        }
        report.add("web", "pg_restore -j2", site.restore_directory());
        let (whole, without_analyze) = site.opsd_restore();
        report.add("web", "opsd restore --to, with ANALYZE", whole);
        report.add("web", "opsd restore", without_analyze);
        report.add("web", "opsd restore --verify", site.opsd_verify());
    }
    report.stored("web", "pipe", site.stored_by_pipe());
    report.stored("web", "opsd backup", site.stored_by_opsd());
    report.plain("web", site.plain_bytes());
    report.ratio("backup ÷ pipe", "web", "opsd backup", "pipe", 0.72);
    report.ratio("backup ÷ floor", "web", "opsd backup", "floor", 1.15);
    report.stored_ratio("stored ÷ pipe's", "web", "opsd backup", "pipe", 1.03);
    report.cpu_per_gb("CPU-seconds of opsd a GB", "web", "opsd backup", 4.0);
    report.ratio("restore ÷ pg_restore -j2", "web", "opsd restore", "pg_restore -j2", 1.05);
    report.ratio("restore --verify ÷ restore", "web", "opsd restore --verify", "opsd restore", 1.35);
    report.peak("peak memory, backup", "web", "opsd backup", 96 << 20);
    report.peak("peak memory, restore", "web", "opsd restore", 96 << 20);
    report.peak("peak memory, rehearsal", "web", "opsd restore --verify", 96 << 20);
}

/// Restores of data on which the indexes are most of the work.
fn indexed(site: &mut Site, rounds: usize, report: &mut Report) {
    site.opsd_backup();
    site.dump_directory();
    for round in 1..=rounds {
        eprintln!("indexed: round {round} of {rounds}");
        report.add("indexed", "pg_restore -j2, with ANALYZE", site.restore_directory_and_analyze());
        report.add("indexed", "opsd restore --to, with ANALYZE", site.opsd_restore().0);
        report.add("indexed", "opsd restore --verify", site.opsd_verify());
    }
    report.plain("indexed", site.plain_bytes());
    let (theirs, ours) = ("pg_restore -j2, with ANALYZE", "opsd restore --to, with ANALYZE");
    report.ratio("restore ÷ pg_restore -j2", "indexed", ours, theirs, 0.85);
    report.ratio("restore --verify ÷ restore", "indexed", "opsd restore --verify", ours, 1.30);
    report.peak("peak memory, restore", "indexed", ours, 96 << 20);
    report.peak("peak memory, rehearsal", "indexed", "opsd restore --verify", 96 << 20);
}

/// More objects than one transaction may lock: there and back, and proven.
fn objects(site: &mut Site, rounds: usize, report: &mut Report) {
    let name = site.name.clone();
    for round in 1..=rounds {
        eprintln!("{name}: round {round} of {rounds}");
        report.add(&name, "opsd backup", site.opsd_backup());
        report.add(&name, "opsd restore --to, with ANALYZE", site.opsd_restore().0);
        report.add(&name, "opsd restore --verify", site.opsd_verify());
    }
    report.stored(&name, "opsd backup", site.stored_by_opsd());
    report.plain(&name, site.plain_bytes());
}

/// Backups beside the floor.
fn backups(site: &mut Site, rounds: usize, report: &mut Report) {
    let name = site.name.clone();
    for round in 1..=rounds {
        eprintln!("{name}: round {round} of {rounds}");
        report.add(&name, "floor", site.floor());
        report.add(&name, "pipe", site.pipe());
        report.add(&name, "opsd backup", site.opsd_backup());
        report.add(&name, "opsd backup, to a directory", site.opsd_backup_to_directory());
        report.add(&name, "the store alone (rclone)", site.store_alone());
    }
    report.stored(&name, "pipe", site.stored_by_pipe());
    report.stored(&name, "opsd backup", site.stored_by_opsd());
    report.plain(&name, site.plain_bytes());
    let target = if name == "many" { 1.3 } else { 1.5 };
    report.ratio("backup ÷ floor", &name, "opsd backup", "floor", target);
    report.peak("peak memory, backup", &name, "opsd backup", 96 << 20);
}

/// What `backups list` takes for three years of nightly sets.
fn list(runtime: &tokio::runtime::Runtime, weed: &SeaweedFs, rounds: usize, report: &mut Report) {
    let mut opsd = Opsd::without_server();
    let keys = &weed.admin;
    opsd.use_s3(&format!("s3://{}/list", weed.bucket), &weed.endpoint, &keys.access_key, &keys.secret_key);
    runtime.block_on(async {
        let store = open_s3(&weed.repository("list"), &keys.access()).await.expect("the store");
        many_sets::fill(&(Arc::new(store) as Arc<dyn Store>), &opsd, SETS).await;
    });
    for round in 1..=rounds {
        eprintln!("list: round {round} of {rounds}");
        let (json, cost) = measure::run(&mut opsd.command(&["backups", "list", "--json"]));
        let document: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(document["sets"].as_array().map(Vec::len), Some(SETS), "all of them are listed");
        report.add("list", "opsd backups list", cost);
    }
    report.seconds("wall time, 1,000 sets", "list", "opsd backups list", 2.0);
    report.peak("peak memory, 1,000 sets", "list", "opsd backups list", 64 << 20);
}

/// The memory line alone: once each way.
fn big(site: &mut Site, report: &mut Report) {
    eprintln!("big: one round");
    report.add("big", "opsd backup", site.opsd_backup());
    report.add("big", "opsd restore --verify", site.opsd_verify());
    report.stored("big", "opsd backup", site.stored_by_opsd());
    report.plain("big", site.plain_bytes());
    report.peak("peak memory, backup", "big", "opsd backup", 96 << 20);
    report.peak("peak memory, rehearsal", "big", "opsd restore --verify", 96 << 20);
    report.peak_ratio("peak memory, backup, big ÷ web", "opsd backup", 1.1);
    report.peak_ratio("peak memory, rehearsal, big ÷ web", "opsd restore --verify", 1.1);
}
