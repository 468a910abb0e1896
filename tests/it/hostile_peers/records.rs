//! Documents in a repository that somebody else may write: records of rehearsals, and manifests.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use opsd::set::{self, verification};

use crate::support::hostile::measured;
use crate::support::many_sets;
use crate::support::opsd::{Opsd, Run};
use crate::support::{postgres, sets};

const TIME: Duration = Duration::from_secs(60);

/// Of whose pg_dump the set says it is.
pub(super) const MAJOR: u32 = 17;

/// A site with one signed set, and where that lies.
pub(super) fn site_with_a_set() -> (Opsd, PathBuf) {
    let opsd = Opsd::new(postgres::default_server(), &["postgres"]);
    let started: DateTime<Utc> = "2026-11-21T03:00:00Z".parse().unwrap();
    let id = "20261121T030000Z-7f3a";
    let manifest = many_sets::manifest(id, started, None);
    let set = opsd.path("repository").join(set::set_prefix("test", "db", id));
    std::fs::create_dir_all(&set).unwrap();
    let parsed = set::manifest::Manifest::parse(&manifest, "test", "db", id).unwrap();
    let document = (&parsed.restore_md.key, parsed.restore_md.size);
    for (key, size) in parsed.objects().map(|object| (&object.key, object.size)).chain([document]) {
        let path = set.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().set_len(size).unwrap();
    }
    let signed = sets::sign(&opsd.path("sign.key"), &format!("test/db/{id}/manifest.json"), &manifest);
    std::fs::write(set.join("manifest.json.minisig"), signed).unwrap();
    std::fs::write(set.join("manifest.json"), manifest).unwrap();
    (opsd, set)
}

/// Names of records, one a day.
fn names(count: i64) -> impl Iterator<Item = String> {
    let first: DateTime<Utc> = "2026-11-22T03:00:00Z".parse().unwrap();
    (0..count).map(move |day| verification::name(first + TimeDelta::minutes(day)))
}

/// Text that is many values when it is parsed.
fn many_values(bytes: usize) -> Vec<u8> {
    let mut text = br#"{"format":1,"warnings":[""#.to_vec();
    while text.len() < bytes {
        text.extend_from_slice(br#"","","","","","","",""#);
    }
    text.extend_from_slice(br#""]}"#);
    text
}

/// Commands that read the sets of a job.
fn each_command(opsd: &Opsd) -> Vec<Run> {
    let commands: [&[&str]; 4] = [
        &["backups", "list", "--json"],
        &["backups", "show", "20261121T030000Z-7f3a", "--json"],
        &["backups", "prune", "db", "--dry-run"],
        &["backup", "db", "--dry-run"],
    ];
    commands.map(|args| measured(opsd.command(args), TIME).expect_small(&args.join(" "), TIME)).into()
}

#[test]
fn sixty_large_records_cost_little_and_are_said() {
    let (opsd, set) = site_with_a_set();
    for name in names(60) {
        // Nothing but zeros, and a signature that is none: a writer of the bucket has no key.
        File::create(set.join(&name)).unwrap().set_len(16 << 20).unwrap();
        std::fs::write(set.join(name + ".minisig"), "untrusted comment: x\nx\n").unwrap();
    }
    let runs = each_command(&opsd);
    assert!(runs[0].stdout.contains("\"complete\""), "{}", runs[0]);
    assert!(runs[1].stdout.contains("it has 16777216 bytes"), "{}", runs[1]);
    assert!(runs[1].stdout.contains("the rest of the verification records (28)"), "{}", runs[1]);
}

#[test]
fn many_records_of_many_values_cost_little() {
    let (mut opsd, set) = site_with_a_set();
    opsd.encryption.unset("trusted_keys");
    let text = many_values(200 << 10);
    for name in names(500) {
        std::fs::write(set.join(name), &text).unwrap();
    }
    let runs = each_command(&opsd);
    assert!(runs[1].stdout.contains("the rest of the verification records (468)"), "{}", runs[1]);
}

#[test]
fn the_newest_records_are_those_that_count() {
    let (opsd, set) = site_with_a_set();
    let manifest = std::fs::read(set.join("manifest.json")).unwrap();
    let names: Vec<String> = names(40).collect();
    for (at, name) in names.iter().enumerate() {
        let finished = format!("2026-11-22T03:{at:02}:00Z").parse().unwrap();
        let record = many_sets::record("20261121T030000Z-7f3a", &manifest, finished);
        let key = format!("test/db/20261121T030000Z-7f3a/{name}");
        let signed = sets::sign(&opsd.path("sign.key"), &key, &record);
        std::fs::write(set.join(format!("{name}.minisig")), signed).unwrap();
        std::fs::write(set.join(name), record).unwrap();
    }
    let shown = opsd.ok(&["backups", "show", "20261121T030000Z-7f3a", "--json"]).json();
    let read = shown["verifications"].as_array().unwrap();
    assert_eq!(read.len(), 32, "{shown}");
    assert_eq!(read[31]["finished"], "2026-11-22T03:39:00Z");
    assert!(shown.to_string().contains("the rest of the verification records (8)"), "{shown}");
}

#[test]
fn a_manifest_of_many_values_is_refused() {
    let (mut opsd, set) = site_with_a_set();
    opsd.encryption.unset("trusted_keys");
    File::create(set.join("manifest.json")).unwrap().write_all(&many_values(15 << 20)).unwrap();
    let runs = each_command(&opsd);
    assert!(runs[0].stdout.contains("more than 500000 values"), "{}", runs[0]);
}

#[test]
fn a_large_word_of_a_run_that_failed_is_not_shown() {
    let (opsd, set) = site_with_a_set();
    std::fs::remove_file(set.join("manifest.json")).unwrap();
    File::create(set.join("failed.json")).unwrap().set_len(16 << 30).unwrap();
    each_command(&opsd);
}
