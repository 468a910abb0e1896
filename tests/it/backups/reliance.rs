//! Which sets may be relied on, and that every command has the same answer.

use opsd::config::Trusted;
use opsd::error::Kind;
use opsd::set::catalog::{self, Selector};
use opsd::set::verification::{self, Verdict};
use opsd::store;
use opsd::store::StoreError;
use opsd::store::faulty::{Fault, FaultyStore, Operation, Rule};

use super::commands::Site;
use super::{JOB, Keys, Repository, SITE, find, last, plan, time};

const LOST: &str = "table public.accounts: 1 row instead of 2";

async fn verified(repository: &Repository<'_>, trusted: &Trusted, id: &str) -> Option<Verdict> {
    let set = catalog::load(&*repository.store, trusted, SITE, JOB, id).await.expect("the set");
    set.verified().map(|v| v.verdict)
}

/// Seen on real servers: two sets that differ were the last two, and the two good ones before them went.
#[tokio::test]
async fn sets_that_differ_push_no_good_ones_out() {
    let site = Site::new("retention = { last = 2 }", &[]);
    let repository = &site.repository;
    let good = [repository.set("2026-11-01T03:00:00Z").await, repository.set("2026-11-02T03:00:00Z").await];
    let bad = [repository.set("2026-11-03T03:00:00Z").await, repository.set("2026-11-04T03:00:00Z").await];
    for id in &bad {
        repository.verify_saying(id, "2026-11-04T05:00:00Z", Verdict::Differs, &[LOST]).await;
    }
    let before = repository.keys().await;
    let document = site.json(&["prune"]);
    assert_eq!(repository.keys().await, before, "{document}");
    let job = &document["jobs"][0];
    let frozen = job["frozen"].as_str().unwrap_or_default();
    for words in [bad[1].as_str(), LOST, "2026-11-04 05:00:00 UTC", "nobody signed"] {
        assert!(frozen.contains(words), "{words:?} is not in {frozen:?}");
    }
    assert!(job["sets"][0]["reasons"][0].as_str().unwrap().contains("differs"), "{job}");
    let (code, stdout, _) = site.run(&["prune"]);
    assert!(code == 0 && stdout.contains("nothing is removed") && stdout.contains("accounts"), "{stdout}");

    // A newer one that is proven ends it. Those that differ take nobody's place, and stay as long as the rules
    // keep a set of their time.
    let proven = repository.set("2026-11-05T03:00:00Z").await;
    let (_, stdout, _) = site.run(&["prune"]);
    assert!(stdout.contains("nothing is removed"), "one that nobody rehearsed says nothing: {stdout}");
    repository.verify(&proven, "2026-11-05T05:00:00Z", Verdict::Proven).await;
    let document = site.json(&["prune"]);
    assert!(document["jobs"][0]["frozen"].is_null(), "{document}");
    let removed = |document: &serde_json::Value| {
        let sets = document["jobs"][0]["sets"].as_array().unwrap().iter();
        sets.filter(|s| s["removed"] == true)
            .map(|s| s["id"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(removed(&document), [good[0].as_str()]);
    repository.set("2026-11-06T03:00:00Z").await;
    let document = site.json(&["prune"]);
    assert_eq!(removed(&document), [bad[1].as_str(), bad[0].as_str(), good[1].as_str()], "{document}");
}

#[tokio::test]
async fn the_latest_is_no_set_that_differs_or_lacks_something() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let good = repository.set("2026-11-01T03:00:00Z").await;
    let bad = repository.set("2026-11-02T03:00:00Z").await;
    let differs =
        ["table public.accounts: 1 row instead of 2", "sequence public.ids: 7 instead of 9", "and more"];
    repository.verify_saying(&bad, "2026-11-02T05:00:00Z", Verdict::Differs, &differs).await;
    let error = find(&repository, &trusted, "latest").await.expect_err("a set that differs was the latest");
    assert_eq!(error.kind(), Kind::Differs, "{error}");
    let said = format!("{error:?}");
    for words in [&bad, &good, LOST, "2 more", "2026-11-02 05:00:00 UTC", &keys.public, "--backup"] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let at = async |text: &str| {
        let found = Selector::At(time(text));
        catalog::find(&*repository.store, &trusted, SITE, JOB, &found, catalog::Use::Restore)
            .await
            .map(|set| set.entry.id)
    };
    assert_eq!(at("2026-11-03T03:00:00Z").await.unwrap_err().kind(), Kind::Differs);
    assert_eq!(at("2026-11-01T12:00:00Z").await.unwrap(), good);
    assert_eq!(find(&repository, &trusted, &bad).await.unwrap(), bad, "by its id it is the operator's");

    // A later rehearsal that proves it takes that back; the newest record that counts decides.
    repository.verify(&bad, "2026-11-02T06:00:00Z", Verdict::Unproven).await;
    assert!(find(&repository, &trusted, "latest").await.is_err());
    repository.verify(&bad, "2026-11-02T07:00:00Z", Verdict::Proven).await;
    assert_eq!(find(&repository, &trusted, "latest").await.unwrap(), bad);

    // Nor is one that has lost an object since.
    repository.store.delete(&format!("{SITE}/{JOB}/{bad}/app/schema.pgdump.zst.age")).await.unwrap();
    let error =
        find(&repository, &trusted, "latest").await.expect_err("a set was the latest that lacks an object");
    assert!(error.to_string().contains("app/schema.pgdump.zst.age"), "{error}");
    assert_eq!(error.kind(), Kind::Differs, "{error}");
}

/// Whoever can write to the repository can put any number of records there, and has no key.
#[tokio::test]
async fn junk_records_hide_no_older_one() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let good = repository.set("2026-11-01T03:00:00Z").await;
    let bad = repository.set("2026-11-02T03:00:00Z").await;
    repository.verify_saying(&bad, "2026-11-02T05:00:00Z", Verdict::Differs, &[LOST]).await;
    for minute in 0..40 {
        let name = format!("{SITE}/{JOB}/{bad}/verified-20261103T05{minute:02}00.000000Z.json");
        repository.put(&name, "{}").await;
        repository.put(&format!("{name}.minisig"), "untrusted comment: x\nx\n").await;
    }
    assert_eq!(verified(&repository, &trusted, &bad).await, Some(Verdict::Differs));
    let planned = plan(&repository, &trusted, last(1)).await;
    assert!(planned.removals.is_empty() && planned.plan.frozen.is_some(), "{good} goes: {planned:?}");

    // So many that they are not all read: then nobody knows what the others say.
    for number in 0..400 {
        let name = format!(
            "{SITE}/{JOB}/{bad}/verified-20261104T05{:02}{:02}.000000Z.json",
            number / 60,
            number % 60
        );
        repository.put(&name, "{}").await;
        repository.put(&format!("{name}.minisig"), "untrusted comment: x\nx\n").await;
    }
    let planned = plan(&repository, &trusted, last(1)).await;
    let frozen = planned.plan.frozen.expect("frozen");
    assert!(frozen.contains("records") && planned.removals.is_empty(), "{frozen}");
    assert!(find(&repository, &trusted, "latest").await.is_err());
}

/// A signature says nothing of a name: an old record could be put there again as the newest, as often as it
/// takes to hide the ones between.
#[tokio::test]
async fn an_old_record_under_a_new_name_does_not_count() {
    let keys = Keys::new();
    let repository = Repository::signed(&keys);
    let trusted = keys.trusted();
    let id = repository.set("2026-11-02T03:00:00Z").await;
    let old = repository.verify(&id, "2026-11-02T04:00:00Z", Verdict::Proven).await;
    repository.verify_saying(&id, "2026-11-02T05:00:00Z", Verdict::Differs, &[LOST]).await;
    let at = async |key: &str| store::get(&*repository.store, key, 1 << 20).await.unwrap();
    for minute in 0..40 {
        let finished = time(&format!("2026-11-03T05:{minute:02}:00Z"));
        let name = format!("{SITE}/{JOB}/{id}/{}", verification::name(finished));
        repository.put(&name, at(&old).await).await;
        repository.put(&format!("{name}.minisig"), at(&format!("{old}.minisig")).await).await;
    }
    assert_eq!(verified(&repository, &trusted, &id).await, Some(Verdict::Differs));
}

/// A request that fails is no word for a set.
#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_taken_for_none() {
    let repository = Repository::memory();
    let good = repository.set("2026-11-01T03:00:00Z").await;
    let bad = repository.set("2026-11-02T03:00:00Z").await;
    repository.verify_saying(&bad, "2026-11-02T05:00:00Z", Verdict::Differs, &[LOST]).await;
    let fails = Fault::Fail(StoreError::Other("the line is cut".into()));
    let rule = Rule::new(Operation::Read, 0, fails).on_keys_with("verified-");
    let cut = Repository {
        store: std::sync::Arc::new(FaultyStore::new(repository.store.clone(), vec![rule])),
        keys: None,
    };
    let planned = plan(&cut, &Trusted::default(), last(1)).await;
    assert!(planned.removals.is_empty(), "{good} goes: {planned:?}");
    assert!(planned.plan.frozen.is_some_and(|why| why.contains("the line is cut")));
    let error = find(&cut, &Trusted::default(), "latest").await.expect_err("nobody knows whether it differs");
    assert!(error.to_string().contains("the line is cut"), "{error}");
}

#[tokio::test]
async fn list_tells_which_sets_may_be_relied_on_and_why_others_may_not() {
    let site = Site::new("rpo = \"1h\"", &[]);
    let repository = &site.repository;
    let good = repository.set("2026-11-01T03:00:00Z").await;
    let differs = repository.set("2026-11-02T03:00:00Z").await;
    repository.verify_saying(&differs, "2026-11-02T05:00:00Z", Verdict::Differs, &[LOST]).await;
    let lacking = repository.set("2026-11-03T03:00:00Z").await;
    repository.store.delete(&format!("{SITE}/{JOB}/{lacking}/RESTORE.md")).await.unwrap();
    repository.put("example/db/20261104T030000Z-0000/failed.json", "{}").await;
    repository.put("example/db/20261105T030000Z-0000/app/x", "x").await;
    repository.put("example/db/20261106T030000Z-0000/manifest.json", "{}").await;
    repository.set("2099-11-01T03:00:00Z").await;
    let document = site.json(&["list"]);
    let sets = document["sets"].as_array().unwrap();
    let told: Vec<&str> = sets.iter().map(|s| s["reliance"].as_str().unwrap_or("-")).collect();
    assert_eq!(
        told,
        ["sound", "differs", "lacking", "failed", "incomplete", "refused", "ahead"],
        "{document}"
    );
    assert!(sets[0]["doubt"].is_null() && sets[1]["doubt"].as_str().unwrap().contains(LOST), "{document}");
    assert!(sets[2]["doubt"].as_str().unwrap().contains("RESTORE.md"), "{document}");
    assert_eq!(document["jobs"][0]["newest"], "2026-11-01T03:00:00Z", "{document}");
    let (_, stdout, _) = site.run(&["list"]);
    assert!(stdout.contains("accounts") && stdout.contains("lacking"), "{stdout}");
    assert!(stdout.lines().all(|line| line.chars().count() <= 80), "{stdout}");
    let (_, stdout, _) = site.run(&["show", &differs]);
    assert!(stdout.contains("may not be relied on"), "{stdout}");
    let (_, stdout, _) = site.run(&["show", &good]);
    assert!(!stdout.contains("may not be relied on"), "{stdout}");
}

/// A clock that was ahead must not keep the newest set from being read again.
#[tokio::test]
async fn the_latest_to_scrub_is_none_from_the_future() {
    let site = Site::new("", &[]);
    let real = site.repository.set("2026-11-01T03:00:00Z").await;
    site.repository.set("2099-11-01T03:00:00Z").await;
    // What lies there is not what the manifests made by hand say.
    let (code, stdout, _) = site.run(&["scrub", "--backup", "latest", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &document["results"][0]["id"]), (3, &real.as_str().into()), "{document}");
}
