//! What the catalog finds, believes and refuses.

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt;
use opsd::config::Trusted;
use opsd::error::Kind;
use opsd::set;
use opsd::set::catalog::{self, Selector, Signature, State};
use opsd::set::verification::Verdict;
use opsd::store;
use opsd::store::faulty::{Fault, FaultyStore, Operation, Rule};

use super::{JOB, Keys, Repository, SITE, find, last, manifest, plan, stream, time};
use crate::support::sets::sign;

#[tokio::test]
async fn the_catalog_is_what_the_repository_holds() {
    let repository = Repository::memory();
    let complete = repository.set("2026-11-01T03:00:00Z").await;
    repository.put("example/db/20261102T030000Z-0000/app/schema.pgdump.zst.age", "x").await;
    repository.put("example/db/20261103T030000Z-0000/failed.json", "{}").await;
    // None of these is a set of this job.
    repository.put("example/db/lease.json", "{}").await;
    repository.put("example/db/notes/manifest.json", "{}").await;
    repository.put("example/db-two/20261104T030000Z-0000/manifest.json", "{}").await;
    repository.put("other/db/20261104T030000Z-0000/manifest.json", "{}").await;

    let sets = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    let states: Vec<_> = sets.iter().map(|s| (s.id.as_str(), s.state)).collect();
    assert_eq!(
        states,
        [
            (complete.as_str(), State::Complete),
            ("20261102T030000Z-0000", State::Incomplete),
            ("20261103T030000Z-0000", State::Failed),
        ]
    );
    assert_eq!(sets[0].objects.len(), 6);
    assert_eq!(sets[1].occupied_bytes(), 1);
    let jobs = catalog::jobs(&*repository.store, SITE).await.unwrap();
    assert_eq!(jobs.keys().collect::<Vec<_>>(), ["db", "db-two"]);
    assert_eq!(jobs["db"], sets);

    for (id, expected) in [("20261102", "is incomplete"), ("20261103", "run that failed")] {
        let error = find(&repository, &Trusted::default(), id).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_set_is_found_by_id_by_its_beginning_or_as_the_latest() {
    let repository = Repository::memory();
    let error = find(&repository, &Trusted::default(), "latest").await.unwrap_err();
    assert!(error.to_string().contains("no set of job \"db\""), "{error}");
    let first = repository.set("2026-11-01T03:00:00Z").await;
    let second = repository.set("2026-11-02T03:00:00Z").await;
    // A newer id without a manifest is not the latest backup.
    repository.put("example/db/20261105T030000Z-0000/app/x", "x").await;

    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), second);
    assert_eq!(find(&repository, &Trusted::default(), &first).await.unwrap(), first);
    assert_eq!(find(&repository, &Trusted::default(), "20261101").await.unwrap(), first);
    let ambiguous = find(&repository, &Trusted::default(), "202611").await.unwrap_err().to_string();
    assert!(ambiguous.contains("more than one set") && ambiguous.contains(&first), "{ambiguous}");
    let missing = find(&repository, &Trusted::default(), "1999").await.unwrap_err().to_string();
    assert!(missing.contains("no set \"1999\"") && missing.contains(&second), "{missing}");
}

#[tokio::test]
async fn the_latest_is_by_the_manifests_time_not_by_name() {
    let repository = Repository::memory();
    repository.set("2026-11-02T03:00:00Z").await;
    // The clock was wrong when this id was made, and its manifest says when it really was.
    let old = "20291231T000000Z-0000";
    repository.set_as(old, &manifest("2026-11-01T03:00:00Z", old)).await;
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), "20261102T030000Z-0000");
}

/// The clock of the host was once ahead: that set was the latest for ever.
#[tokio::test]
async fn a_set_from_the_future_is_the_latest_only_where_there_is_no_other() {
    let repository = Repository::memory();
    let started = |time: DateTime<Utc>| time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let later = repository.set(&started(Utc::now() + TimeDelta::days(90))).await;
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), later);
    let real = repository.set(&started(Utc::now() - TimeDelta::hours(3))).await;
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), real);
    assert_eq!(find(&repository, &Trusted::default(), &later).await.unwrap(), later);
    let entries = catalog::sets(&*repository.store, SITE, JOB).await.unwrap();
    let newest = catalog::newest_complete(&entries, Utc::now());
    let ahead: Vec<&String> = newest.ahead.iter().map(|entry| &entry.id).collect();
    assert_eq!((newest.entry.map(|e| &e.id), ahead), (Some(&real), vec![&later]));
    // Refused, and dated like that: it does not stand in the way of the others either.
    let id = format!("{}-0000", (Utc::now() + TimeDelta::days(91)).format("%Y%m%dT%H%M%SZ"));
    repository.put(&format!("{SITE}/{JOB}/{id}/manifest.json"), "{}").await;
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), real);
    // Clocks differ by a little: that is no future.
    let young = repository.set(&started(Utc::now() + TimeDelta::minutes(2))).await;
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), young);
}

#[tokio::test]
async fn at_a_time_only_older_data_is_found() {
    let repository = Repository::memory();
    let first = repository.set("2026-11-01T03:00:00Z").await;
    let second = repository.set("2026-11-02T03:00:00Z").await;
    let at = async |time: &str| {
        let selector = Selector::from_options(None, Some(time)).unwrap();
        let found = catalog::find(
            &*repository.store,
            &Trusted::default(),
            SITE,
            JOB,
            &selector,
            catalog::Use::Restore,
        )
        .await;
        found.map(|set| set.entry.id)
    };
    assert_eq!(at("2026-11-01T04:00:00+01:00").await.unwrap_err().kind(), Kind::Failed);
    // Its snapshot was taken two seconds after it started.
    assert!(at("2026-11-01T03:00:01Z").await.unwrap_err().to_string().contains("from 2026-11-01"));
    assert_eq!(at("2026-11-01 03:00:02").await.unwrap(), first);
    assert_eq!(at("2026-11-02T03:00:01Z").await.unwrap(), first);
    assert_eq!(at("2026-11-02T03:00").await.unwrap(), first);
    assert_eq!(at("2030-01-01T00:00:00Z").await.unwrap(), second);
    for bad in ["yesterday", "2026-11-02", "2026-11-31 00:00"] {
        let error = Selector::from_options(None, Some(bad)).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
    }
    assert_eq!(
        Selector::from_options(Some(&first), Some("2026-11-02T03:00Z")).unwrap_err().kind(),
        Kind::Usage
    );
}

#[tokio::test]
async fn a_manifest_edited_by_hand_is_refused_and_not_passed_over() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let older = repository.set("2026-11-01T03:00:00Z").await;
    let edited = repository.set("2026-11-02T03:00:00Z").await;
    assert_eq!(find(&repository, &trusted, "latest").await.unwrap(), edited);
    let set = catalog::load(&*repository.store, &trusted, SITE, JOB, &edited).await.unwrap();
    assert_eq!(set.signature, Signature::Trusted(keys.public.clone()));

    let key = format!("example/db/{edited}/manifest.json");
    let bytes = store::get(&*repository.store, &key, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap().replace("\"rows\": 100", "\"rows\": 101");
    repository.put(&key, text).await;
    for selector in ["latest", edited.as_str()] {
        let error = find(&repository, &trusted, selector).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Differs, "{error}");
        assert!(error.to_string().contains(&edited), "{error}");
    }
    // What is older stays usable, by name and by time, and the error says so.
    let error = find(&repository, &trusted, "latest").await.unwrap_err().to_string();
    assert!(error.contains(&older), "{error}");
    assert_eq!(find(&repository, &trusted, &older).await.unwrap(), older);
    let before = Selector::At(time("2026-11-01T12:00:00Z"));
    catalog::find(&*repository.store, &trusted, SITE, JOB, &before, catalog::Use::Restore).await.unwrap();
    // Without trusted keys nobody can tell.
    assert_eq!(find(&repository, &Trusted::default(), "latest").await.unwrap(), edited);
}

#[tokio::test]
async fn unsigned_and_foreign_signatures_are_refused_where_keys_are_trusted() {
    let keys = Keys::new();
    let other = Keys::new();
    let unsigned = Repository::memory();
    let id = unsigned.set("2026-11-01T03:00:00Z").await;
    let error = find(&unsigned, &keys.trusted(), &id).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("not signed"), "{error}");
    let set = catalog::load(&*unsigned.store, &Trusted::default(), SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Unsigned);

    let signed = Repository::signed(&other);
    let id = signed.set("2026-11-01T03:00:00Z").await;
    assert_eq!(find(&signed, &keys.trusted(), &id).await.unwrap_err().kind(), Kind::Refused);
    let set = catalog::load(&*signed.store, &Trusted::default(), SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Unchecked);
    // One of several trusted keys is enough, and is named.
    let both = Trusted::with_keys(vec![keys.public.clone(), other.public.clone()]);
    let set = catalog::load(&*signed.store, &both, SITE, JOB, &id).await.unwrap();
    assert_eq!(set.signature, Signature::Trusted(other.public.clone()));
}

#[tokio::test]
async fn a_manifest_of_a_newer_version_is_refused() {
    let repository = Repository::memory();
    repository.set("2026-11-01T03:00:00Z").await;
    let id = "20261102T030000Z-0000";
    let mut newer = manifest("2026-11-02T03:00:00Z", id);
    newer.format = 3;
    repository.set_as(id, &newer).await;
    let error = find(&repository, &Trusted::default(), "latest").await.unwrap_err();
    assert!(error.to_string().contains("format 3"), "{error}");
    assert!(error.hint().unwrap().contains("opsd version"));

    // It is the newest: nothing is removed until somebody has looked.
    let plan = plan(&repository, &Trusted::default(), last(1)).await;
    assert!(plan.plan.frozen.unwrap().contains("format 3"));
    assert!(plan.removals.is_empty());
}

#[tokio::test]
async fn a_set_of_another_job_moved_here_is_refused() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let id = "20261102T030000Z-0000";
    let mut moved = manifest("2026-11-02T03:00:00Z", id);
    moved.job = "shop".into();
    repository.set_as(id, &moved).await;
    let error = find(&repository, &keys.trusted(), "latest").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Differs);
    assert!(error.to_string().contains("example/shop/"), "{error}");
}

#[tokio::test]
async fn only_records_of_this_manifest_count() {
    let repository = Repository::memory();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let proven = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let load = async || catalog::load(&*repository.store, &Trusted::default(), SITE, JOB, &id).await.unwrap();
    assert!(load().await.is_proven());

    // A rehearsal that could not run takes no proof away; a difference does; a new proof restores it.
    repository.verify(&id, "2026-11-02T05:00:00Z", Verdict::Failed).await;
    assert!(load().await.is_proven());
    repository.verify(&id, "2026-11-03T05:00:00Z", Verdict::Differs).await;
    assert!(!load().await.is_proven());
    assert_eq!(load().await.verified().unwrap().verdict, Verdict::Differs);
    repository.verify(&id, "2026-11-04T05:00:00Z", Verdict::Proven).await;
    assert!(load().await.is_proven());
    assert_eq!(load().await.verifications.len(), 4);

    // The manifest changes: what was proven was another one.
    let mut manifest = manifest("2026-11-01T03:00:00Z", &id);
    manifest.warnings.push("edited".into());
    let key = format!("example/db/{id}/manifest.json");
    repository.put(&key, manifest.to_bytes().unwrap()).await;
    let set = load().await;
    assert!(!set.is_proven() && set.verifications.is_empty());
    assert_eq!(set.ignored.len(), 4);
    // The newest is read first.
    let (name, why) = set.ignored.last().unwrap();
    assert!(proven.ends_with(name.as_str()), "{name}");
    assert!(set.ignored.iter().all(|(_, why)| why.to_string().contains("another manifest")), "{why}");
}

#[tokio::test]
async fn a_record_edited_by_hand_does_not_count() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let key = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Unproven).await;
    let load = async || catalog::load(&*repository.store, &trusted, SITE, JOB, &id).await.unwrap();
    assert_eq!(load().await.verified().unwrap().verdict, Verdict::Unproven);

    let bytes = store::get(&*repository.store, &key, 1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap().replace("unproven", "proven");
    repository.put(&key, text.clone()).await;
    let set = load().await;
    assert!(!set.is_proven() && set.verifications.is_empty());
    assert_eq!(set.ignored[0].1.kind(), Kind::Differs);

    // The same without a signature: planted.
    repository.store.delete(&format!("{key}.minisig")).await.unwrap();
    let set = load().await;
    assert!(!set.is_proven() && set.ignored[0].1.to_string().contains("not signed"));
}

/// A host that rehearses signs what it found, and nothing else that it signs is believed.
#[tokio::test]
async fn a_key_for_records_signs_no_manifest_and_the_other_way_round() {
    let (backups, rehearsals) = (Keys::new(), Keys::new());
    let trusted =
        Trusted { backups: vec![backups.public.clone()], verifications: vec![rehearsals.public.clone()] };
    let repository = Repository::signed(&backups);
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let load = async || catalog::load(&*repository.store, &trusted, SITE, JOB, &id).await;
    // The record is signed with the key for backups.
    let key = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let set = load().await.unwrap();
    assert!(!set.is_proven() && set.ignored[0].1.to_string().contains("not among"), "{:?}", set.ignored);
    let record = store::get(&*repository.store, &key, 1 << 20).await.unwrap();
    repository.put(&format!("{key}.minisig"), sign(&rehearsals.secret, &key, &record)).await;
    assert!(load().await.unwrap().is_proven());
    // Whoever is trusted for nothing but backups believes no record, and is told why.
    let alone = Trusted { verifications: Vec::new(), ..trusted.clone() };
    let set = catalog::load(&*repository.store, &alone, SITE, JOB, &id).await.unwrap();
    assert!(!set.is_proven());
    assert!(set.ignored[0].1.hint().unwrap().contains("trusted_verify_keys"), "{:?}", set.ignored);
    // A manifest that the rehearsing host signed is refused.
    let manifest_key = format!("{}manifest.json", set::set_prefix(SITE, JOB, &id));
    let manifest = store::get(&*repository.store, &manifest_key, 1 << 20).await.unwrap();
    let theirs = sign(&rehearsals.secret, &manifest_key, &manifest);
    repository.put(&format!("{manifest_key}.minisig"), theirs).await;
    let error = load().await.unwrap_err();
    assert!(error.kind() == Kind::Refused && error.to_string().contains("not among"), "{error}");
}

/// With one key for both, a signature of the one is none of the other.
#[tokio::test]
async fn a_signature_that_was_moved_to_another_document_is_refused() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let id = repository.set("2026-11-01T03:00:00Z").await;
    let key = repository.verify(&id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let prefix = set::set_prefix(SITE, JOB, &id);
    let at = async |key: &str| store::get(&*repository.store, key, 1 << 20).await.unwrap();
    let manifest = format!("{prefix}manifest.json");
    let good = [at(&manifest).await, at(&format!("{manifest}.minisig")).await];
    // A record in the place of the manifest, with its signature.
    repository.put(&manifest, at(&key).await).await;
    repository.put(&format!("{manifest}.minisig"), at(&format!("{key}.minisig")).await).await;
    let error = find(&repository, &keys.trusted(), &id).await.unwrap_err();
    let moved = "made for \"opsd verification example/db/";
    assert!(error.kind() == Kind::Differs && error.to_string().contains(moved), "{error}");
    // And the other way round.
    let [document, signature] = good;
    repository.put(&manifest, document.clone()).await;
    repository.put(&format!("{manifest}.minisig"), signature.clone()).await;
    repository.put(&key, document).await;
    repository.put(&format!("{key}.minisig"), signature).await;
    let set = catalog::load(&*repository.store, &keys.trusted(), SITE, JOB, &id).await.unwrap();
    let why = set.ignored[0].1.to_string();
    assert!(!set.is_proven() && why.contains("made for \"opsd manifest example/db/"), "{why}");
}

#[tokio::test]
async fn a_proof_of_some_databases_only_does_not_count() {
    let repository = Repository::memory();
    let id = "20261101T030000Z-0000";
    let mut manifest = manifest("2026-11-01T03:00:00Z", id);
    let mut second = manifest.databases[0].clone();
    second.name = "shop".into();
    (second.streams, second.proof_object) = (vec![stream("schema", "shop/schema.pgdump.zst.age")], None);
    manifest.databases.push(second);
    repository.set_as(id, &manifest).await;
    repository.verify(id, "2026-11-01T05:00:00Z", Verdict::Proven).await;
    let set = catalog::load(&*repository.store, &Trusted::default(), SITE, JOB, id).await.unwrap();
    assert!(!set.is_proven());
    assert!(set.ignored[0].1.to_string().contains("\"shop\""));
}

#[tokio::test]
async fn missing_and_foreign_objects_are_told_from_the_listing() {
    let repository = Repository::memory();
    let id = repository.set("2026-11-01T03:00:00Z").await;
    repository.store.delete(&format!("example/db/{id}/app/schema.pgdump.zst.age")).await.unwrap();
    repository.put(&format!("example/db/{id}/app/data-rest.pgdump.zst.age"), "short").await;
    repository.put(&format!("example/db/{id}/notes.txt"), "mine").await;
    let set = catalog::load(&*repository.store, &Trusted::default(), SITE, JOB, &id).await.unwrap();
    assert_eq!(set.missing(), ["app/schema.pgdump.zst.age", "app/data-rest.pgdump.zst.age"]);
    assert_eq!(set.foreign(), ["notes.txt"]);
    // Such a set restores nothing, so it must not push good ones out.
    let older = repository.set("2026-10-01T03:00:00Z").await;
    let plan = plan(&repository, &Trusted::default(), last(1)).await;
    assert!(plan.plan.frozen.unwrap().contains("app/schema.pgdump.zst.age"));
    assert!(plan.plan.decisions.iter().any(|d| d.id == older && d.keep));
}

#[tokio::test]
async fn a_thousand_sets_are_one_listing_and_what_they_say_of_themselves() {
    let repository = Repository::memory();
    for n in 0..1000 {
        let started = time("2024-01-01T03:00:00Z") + TimeDelta::hours(n * 24);
        let id = repository.set(&started.to_rfc3339()).await;
        repository.verify(&id, &(started + TimeDelta::hours(1)).to_rfc3339(), Verdict::Proven).await;
    }
    // Rules that never come true count.
    let never = |operation| Rule::new(operation, u64::MAX, Fault::LoseResponse);
    let store = FaultyStore::new(
        repository.store.clone(),
        [Operation::List, Operation::Read, Operation::Head].map(never).to_vec(),
    );
    let entries = catalog::sets(&store, SITE, JOB).await.unwrap();
    let sets: Vec<_> = catalog::load_each(&store, &Trusted::default(), entries).collect().await;
    assert_eq!(sets.len(), 1000);
    // A manifest and a record each, and nothing of the other objects.
    assert_eq!(store.calls(), [1, 2000, 0]);
    assert!(sets.iter().all(|(_, set)| set.as_ref().is_ok_and(|s| s.is_proven())));
}
