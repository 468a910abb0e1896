//! Retention's rules and freezes, by example and as properties.

use super::*;
use proptest::prelude::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn set(time: &str) -> Candidate {
    Candidate { id: time.to_owned(), time: at(time), standing: complete(false) }
}

fn complete(proven: bool) -> Standing {
    holding(proven, &[("app", 1000, Some(100))])
}

fn holding(proven: bool, databases: &[(&str, u64, Option<u64>)]) -> Standing {
    let amounts = databases
        .iter()
        .map(|(name, bytes, rows)| ((*name).to_owned(), Amount { bytes: *bytes, rows: *rows }));
    Standing::Complete { proven, databases: amounts.collect() }
}

fn rules(last: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Retention {
    Retention { last, daily, weekly, monthly, yearly }
}

fn kept(plan: &Plan) -> Vec<&str> {
    plan.decisions.iter().filter(|d| d.keep).map(|d| d.id.as_str()).collect()
}

const NOW: &str = "2026-11-21T12:00:00Z";

fn run(sets: &[Candidate], rules: Retention) -> Plan {
    plan(sets, &rules, at(NOW), false)
}

#[test]
fn last_counts_sets() {
    let sets = [set("2026-11-01T03:00:00Z"), set("2026-11-02T03:00:00Z"), set("2026-11-03T03:00:00Z")];
    let plan = run(&sets, rules(2, 0, 0, 0, 0));
    assert_eq!(kept(&plan), ["2026-11-03T03:00:00Z", "2026-11-02T03:00:00Z"]);
    assert_eq!(plan.decisions[0].reasons, [Reason::NewestComplete, Reason::Last]);
    assert_eq!(plan.decisions[2].reasons, [Reason::Unneeded]);
    assert_eq!(plan.removed().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["2026-11-01T03:00:00Z"]);
}

#[test]
fn daily_keeps_the_newest_of_each_day() {
    let sets = [
        set("2026-11-01T03:00:00Z"),
        set("2026-11-01T23:59:59Z"),
        set("2026-11-02T00:00:00Z"),
        set("2026-11-02T01:00:00Z"),
    ];
    assert_eq!(kept(&run(&sets, rules(0, 5, 0, 0, 0))), ["2026-11-02T01:00:00Z", "2026-11-01T23:59:59Z"]);
}

#[test]
fn gaps_do_not_use_up_days_and_an_owner_who_was_away_loses_nothing() {
    let sets = [set("2021-01-01T03:00:00Z"), set("2023-06-01T03:00:00Z"), set("2024-02-29T03:00:00Z")];
    assert_eq!(kept(&run(&sets, rules(0, 3, 0, 0, 0))).len(), 3);
}

#[test]
fn days_are_utc_days_on_the_night_the_clocks_change() {
    // Local clocks in Europe went back at 01:00 UTC; both sets were "02:30" there.
    let sets = [
        set("2026-10-24T23:59:00Z"),
        set("2026-10-25T00:30:00Z"),
        set("2026-10-25T01:30:00Z"),
        set("2026-10-26T00:30:00Z"),
    ];
    assert_eq!(
        kept(&run(&sets, rules(0, 9, 0, 0, 0))),
        ["2026-10-26T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-24T23:59:00Z"]
    );
}

#[test]
fn weeks_are_iso_weeks_across_new_year() {
    // 2021-01-03 (Sunday) still belongs to 2020-W53; 2021-01-04 opens 2021-W01.
    let sets = [
        set("2020-12-28T03:00:00Z"),
        set("2020-12-31T03:00:00Z"),
        set("2021-01-03T03:00:00Z"),
        set("2021-01-04T03:00:00Z"),
    ];
    let plan = run(&sets, rules(0, 0, 9, 0, 0));
    assert_eq!(kept(&plan), ["2021-01-04T03:00:00Z", "2021-01-03T03:00:00Z"]);
    assert_eq!(plan.decisions[1].reasons, [Reason::Weekly(2020, 53)]);
    assert_eq!(plan.decisions[1].reasons[0].to_string(), "newest of week 2020-W53");
}

#[test]
fn months_and_years() {
    let sets = [set("2024-12-31T03:00:00Z"), set("2025-01-01T03:00:00Z"), set("2025-01-31T03:00:00Z")];
    assert_eq!(kept(&run(&sets, rules(0, 0, 0, 2, 0))), ["2025-01-31T03:00:00Z", "2024-12-31T03:00:00Z"]);
    assert_eq!(kept(&run(&sets, rules(0, 0, 0, 0, 1))), ["2025-01-31T03:00:00Z"]);
}

#[test]
fn the_newest_proven_set_survives_every_rule() {
    let mut sets =
        vec![set("2020-01-01T03:00:00Z"), set("2020-01-02T03:00:00Z"), set("2026-11-20T03:00:00Z")];
    sets[0].standing = complete(true);
    sets[1].standing = complete(true);
    let plan = run(&sets, rules(1, 0, 0, 0, 0));
    assert_eq!(kept(&plan), ["2026-11-20T03:00:00Z", "2020-01-02T03:00:00Z"]);
    assert_eq!(plan.decisions[1].reasons, [Reason::NewestProven]);
}

#[test]
fn only_complete_sets_count() {
    let mut sets =
        vec![set("2026-11-01T03:00:00Z"), set("2026-11-02T03:00:00Z"), set("2026-11-03T03:00:00Z")];
    sets[1].standing = Standing::NotCounted("failed".to_owned());
    let plan = run(&sets, rules(2, 0, 0, 0, 0));
    assert_eq!(plan.frozen, None);
    assert_eq!(kept(&plan).len(), 3);
    assert_eq!(plan.decisions[1].reasons, [Reason::NotCounted("failed".to_owned())]);
}

#[test]
fn freezes_when_the_newest_is_not_complete() {
    let mut sets =
        vec![set("2026-11-01T03:00:00Z"), set("2026-11-02T03:00:00Z"), set("2026-11-03T03:00:00Z")];
    sets[2].standing = Standing::NotCounted("failed".to_owned());
    let plan = run(&sets, rules(1, 0, 0, 0, 0));
    assert!(plan.frozen.as_deref().unwrap().contains("2026-11-03T03:00:00Z"), "{plan:?}");
    assert_eq!(kept(&plan).len(), 3);
    assert_eq!(plan.decisions[2].reasons, [Reason::Frozen]);
}

/// What differs says that something may be wrong with all that came after it, too.
#[test]
fn a_set_that_differs_freezes_until_a_newer_one_is_proven() {
    let mut sets: Vec<_> = (1..=5).map(|day| set(&format!("2026-11-0{day}T03:00:00Z"))).collect();
    sets[2].standing = Standing::Differs("it differs: one row".to_owned());
    let says = |sets: &[Candidate]| run(sets, rules(1, 0, 0, 0, 0)).frozen.unwrap_or_default();
    assert!(says(&sets).contains("2026-11-03") && says(&sets).contains("one row"), "{}", says(&sets));
    sets[1].standing = complete(true);
    assert!(!says(&sets).is_empty(), "an older one that is proven says nothing of it");
    sets[3].standing = complete(true);
    assert_eq!(says(&sets), "");
    // The set that differs takes nobody's place, and goes when the rules keep no set of its time.
    assert_eq!(
        kept(&run(&sets, rules(3, 0, 0, 0, 0))),
        [5, 4, 3, 2].map(|day| format!("2026-11-0{day}T03:00:00Z"))
    );
    assert_eq!(kept(&run(&sets, rules(1, 0, 0, 0, 0))).len(), 2, "the newest and the newest proven one");
}

#[test]
fn a_set_that_is_being_written_changes_nothing_for_the_others() {
    let mut sets: Vec<_> = (1..=3).map(|day| set(&format!("2026-11-0{day}T03:00:00Z"))).collect();
    let before = run(&sets, rules(1, 0, 0, 0, 0));
    sets.push(Candidate {
        standing: Standing::Unfinished("incomplete".to_owned()),
        ..set("2026-11-04T03:00:00Z")
    });
    let plan = run(&sets, rules(1, 0, 0, 0, 0));
    assert_eq!((plan.frozen, &plan.decisions[1..]), (None, &before.decisions[..]));
    assert!(plan.decisions[0].keep);
}

#[test]
fn no_rule_removes_nothing() {
    let sets = [set("2026-11-01T03:00:00Z"), set("2026-11-02T03:00:00Z")];
    let plan = run(&sets, Retention::default());
    assert_eq!(kept(&plan).len(), 2);
    assert!(plan.frozen.unwrap().contains("no rule"));
}

#[test]
fn sets_of_the_future_are_kept_and_take_nobodys_place() {
    let sets = [
        set("2026-11-01T03:00:00Z"),
        set("2026-11-20T03:00:00Z"),
        set("2099-01-01T03:00:00Z"),
        set("2099-01-02T03:00:00Z"),
    ];
    let plan = run(&sets, rules(1, 0, 0, 0, 0));
    assert_eq!(kept(&plan), ["2099-01-02T03:00:00Z", "2099-01-01T03:00:00Z", "2026-11-20T03:00:00Z"]);
    assert_eq!(plan.decisions[0].reasons, [Reason::Future]);
}

#[test]
fn ties_are_decided_by_the_id_whatever_the_order_of_listing() {
    let mut a = set("2026-11-01T03:00:00Z");
    let mut b = a.clone();
    a.id = "20261101T030000Z-aaaa".to_owned();
    b.id = "20261101T030000Z-bbbb".to_owned();
    let one = run(&[a.clone(), b.clone()], rules(1, 0, 0, 0, 0));
    assert_eq!(one, run(&[b, a], rules(1, 0, 0, 0, 0)));
    assert_eq!(kept(&one), ["20261101T030000Z-bbbb"]);
}

#[test]
fn order_is_by_time_not_by_name() {
    // The clock went back between the two runs that these ids were made from.
    let mut older = set("2026-11-01T03:00:00Z");
    older.id = "20261231T000000Z-0000".to_owned();
    let mut newer = set("2026-11-02T03:00:00Z");
    newer.id = "20261102T030000Z-0000".to_owned();
    assert_eq!(kept(&run(&[older, newer], rules(1, 0, 0, 0, 0))), ["20261102T030000Z-0000"]);
}

#[test]
fn a_set_that_shrank_freezes_until_it_is_accepted_or_usual() {
    let sized = |day: u32, bytes: u64, rows: Option<u64>| {
        let mut c = set(&format!("2026-11-{day:02}T03:00:00Z"));
        c.standing = holding(false, &[("app", bytes, rows)]);
        c
    };
    let mut sets: Vec<_> = (1..=9).map(|day| sized(day, 1000, Some(100))).collect();
    sets.push(sized(10, 400, Some(100)));
    let frozen = run(&sets, rules(1, 0, 0, 0, 0));
    assert!(frozen.frozen.as_deref().unwrap().contains("400 bytes"), "{frozen:?}");
    assert_eq!(kept(&frozen).len(), 10);
    assert_eq!(kept(&plan(&sets, &rules(1, 0, 0, 0, 0), at(NOW), true)).len(), 1);

    sets[9] = sized(10, 900, Some(10));
    assert!(run(&sets, rules(1, 0, 0, 0, 0)).frozen.unwrap().contains("10 rows"));
    // Rows that nobody counted are unknown, not zero.
    sets[9] = sized(10, 900, None);
    assert_eq!(run(&sets, rules(1, 0, 0, 0, 0)).frozen, None);

    sets[9] = sized(10, 400, Some(100));
    sets.extend((11..=14).map(|day| sized(day, 400, Some(100))));
    assert_eq!(run(&sets, rules(1, 0, 0, 0, 0)).frozen, None, "the change lasted");
}

#[test]
fn a_small_database_that_shrank_or_vanished_beside_a_large_one_freezes() {
    const LARGE: (&str, u64, Option<u64>) = ("warehouse", 1_000_000, Some(100_000));
    let of = |day: u32, databases: &[(&str, u64, Option<u64>)]| {
        let mut c = set(&format!("2026-11-{day:02}T03:00:00Z"));
        c.standing = holding(false, databases);
        c
    };
    let mut sets: Vec<_> = (1..=9).map(|day| of(day, &[LARGE, ("app", 1000, Some(100))])).collect();
    let says = |sets: &[Candidate]| run(sets, rules(1, 0, 0, 0, 0)).frozen.unwrap_or_default();
    sets.push(of(10, &[LARGE]));
    assert!(says(&sets).contains("lacks database \"app\", which 7 of the 7 before it have"));
    assert_eq!(plan(&sets, &rules(1, 0, 0, 0, 0), at(NOW), true).frozen, None, "accepted");
    sets[9] = of(10, &[LARGE, ("app", 400, Some(100))]);
    assert!(says(&sets).contains("400 bytes of database \"app\""));
    sets[9] = of(10, &[LARGE, ("app", 1000, Some(10))]);
    assert!(says(&sets).contains("10 rows of database \"app\""));
    sets[9] = of(10, &[LARGE, ("app", 1000, None), ("new", 1, Some(0))]);
    assert_eq!(says(&sets), "");
    // One that was there once or twice, a copy that somebody looked at, is not missed.
    sets[8] = of(9, &[LARGE, ("app", 1000, Some(100)), ("copy", 5, None)]);
    assert_eq!(says(&sets), "");
}

#[test]
fn what_is_dated_in_the_future_neither_freezes_nor_hides_what_does() {
    let mut sets =
        vec![set("2026-11-01T03:00:00Z"), set("2026-11-02T03:00:00Z"), set("2099-11-03T03:00:00Z")];
    sets[2].standing = Standing::NotCounted("failed".to_owned());
    let plan = run(&sets, rules(1, 0, 0, 0, 0));
    assert_eq!(plan.frozen, None);
    assert_eq!(kept(&plan), ["2099-11-03T03:00:00Z", "2026-11-02T03:00:00Z"]);
    assert_eq!(plan.ahead().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["2099-11-03T03:00:00Z"]);
    // A newest set that shrank, and a failed run, are found behind it.
    sets[2].standing = complete(false);
    sets[1].standing = holding(false, &[("app", 1, Some(1))]);
    assert!(run(&sets, rules(1, 0, 0, 0, 0)).frozen.is_some_and(|why| why.contains("2026-11-02")));
    sets[1].standing = Standing::NotCounted("failed".to_owned());
    assert!(run(&sets, rules(1, 0, 0, 0, 0)).frozen.is_some_and(|why| why.contains("2026-11-02")));
}

#[test]
fn nothing_to_decide() {
    assert_eq!(run(&[], rules(1, 1, 1, 1, 1)), Plan { frozen: None, decisions: vec![] });
}

/// The rules once more, said in the plainest way: quadratic, with periods as formatted text.
fn naive_keeps(sets: &[Candidate], index: usize, rules: &Retention, now: DateTime<Utc>) -> bool {
    let counts = |c: &Candidate| matches!(c.standing, Standing::Complete { .. }) && c.time <= now;
    let me = &sets[index];
    let differs = matches!(me.standing, Standing::Differs(_)) && me.time <= now;
    if !counts(me) && !differs {
        return true;
    }
    let newer: Vec<&Candidate> =
        sets.iter().filter(|c| counts(c) && (c.time, &c.id) > (me.time, &me.id)).collect();
    let proven = |c: &Candidate| matches!(c.standing, Standing::Complete { proven: true, .. });
    if (newer.is_empty() && !differs) || (proven(me) && !newer.iter().any(|c| proven(c))) {
        return true;
    }
    let period = |format: &str, limit: u32| {
        let name = |c: &Candidate| c.time.format(format).to_string();
        let periods: std::collections::HashSet<String> = newer.iter().map(|c| name(c)).collect();
        !periods.contains(&name(me)) && periods.len() < limit as usize
    };
    newer.len() < rules.last as usize
        || period("%Y-%m-%d", rules.daily)
        || period("%G-W%V", rules.weekly)
        || period("%Y-%m", rules.monthly)
        || period("%Y", rules.yearly)
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    // Hours over about four years around now, dense enough for ties and crowded days.
    let hours = prop_oneof![-80i64..20, -30_000i64..2_000];
    let standing = prop_oneof![
        6 => Just(complete(false)),
        2 => Just(complete(true)),
        1 => Just(Standing::NotCounted("failed".to_owned())),
        1 => Just(Standing::Unfinished("incomplete".to_owned())),
        1 => Just(Standing::Differs("it differs".to_owned())),
    ];
    proptest::collection::vec((hours, 0u16..4, standing), 0..60).prop_map(|sets| {
        let mut seen = std::collections::HashSet::new();
        sets.into_iter()
            .map(|(hours, tail, standing)| {
                let time = at(NOW) + chrono::TimeDelta::hours(hours);
                Candidate { id: format!("{}-{tail:04x}", time.format("%Y%m%dT%H%M%SZ")), time, standing }
            })
            .filter(|c| seen.insert(c.id.clone()))
            .collect()
    })
}

fn any_rules() -> impl Strategy<Value = Retention> {
    (0u32..6, 0u32..40, 0u32..10, 0u32..14, 0u32..4).prop_map(|(a, b, c, d, e)| rules(a, b, c, d, e))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn agrees_with_the_naive_model(sets in candidates(), rules in any_rules()) {
        let plan = run(&sets, rules);
        prop_assert_eq!(plan.decisions.len(), sets.len());
        let is_finished = |c: &&Candidate| !matches!(c.standing, Standing::Unfinished(_));
        let newest = sets.iter().filter(is_finished).filter(|c| c.time <= at(NOW)).max_by_key(|c| (c.time, c.id.clone()));
        let order = |c: &&Candidate| (c.time, c.id.clone());
        let past = || sets.iter().filter(|c| c.time <= at(NOW));
        let proven = past().filter(|c| matches!(c.standing, Standing::Complete { proven: true, .. })).max_by_key(order);
        let differs = past().filter(|c| matches!(c.standing, Standing::Differs(_))).max_by_key(order);
        let freezes = rules == Retention::default()
            || newest.is_some_and(|c| matches!(c.standing, Standing::NotCounted(_)))
            || differs.is_some_and(|d| proven.is_none_or(|p| order(&p) < order(&d)));
        prop_assert_eq!(plan.frozen.is_some(), freezes);
        for (index, set) in sets.iter().enumerate() {
            let decision = plan.decisions.iter().find(|d| d.id == set.id).unwrap();
            prop_assert!(!decision.reasons.is_empty());
            prop_assert_eq!(
                decision.keep,
                freezes || naive_keeps(&sets, index, &rules, at(NOW)),
                "{:?}", decision
            );
        }
    }

    #[test]
    fn the_order_of_listing_changes_nothing(sets in candidates(), rules in any_rules(), by in 0usize..60) {
        let mut turned = sets.clone();
        if !turned.is_empty() {
            let by = by % turned.len();
            turned.rotate_left(by);
        }
        prop_assert_eq!(run(&sets, rules), run(&turned, rules));
    }

    #[test]
    fn the_newest_complete_and_the_newest_proven_set_always_stay(
        sets in candidates(), rules in any_rules(), accept_shrink in any::<bool>(),
    ) {
        let plan = plan(&sets, &rules, at(NOW), accept_shrink);
        let newest = |is: fn(&Standing) -> bool| {
            sets.iter().filter(|c| is(&c.standing)).max_by_key(|c| (c.time, c.id.clone()))
        };
        let kinds: [fn(&Standing) -> bool; 2] = [
            |s| matches!(s, Standing::Complete { .. }),
            |s| matches!(s, Standing::Complete { proven: true, .. }),
        ];
        for set in kinds.into_iter().filter_map(newest) {
            prop_assert!(plan.decisions.iter().any(|d| d.id == set.id && d.keep), "{}", set.id);
        }
    }

    /// Whatever the others do: what one database lost, or the whole of it, is noticed.
    #[test]
    fn no_database_goes_unnoticed(
        amounts in proptest::collection::btree_map("[a-d]", (2u64..1_000_000, 2u64..1000), 1..5),
        history in 1usize..12, victim in any::<prop::sample::Index>(), how in 0..3,
    ) {
        let full: BTreeMap<String, Amount> =
            amounts.iter().map(|(n, (bytes, rows))| (n.clone(), Amount { bytes: *bytes, rows: Some(*rows) })).collect();
        let victim = victim.get(&full.keys().cloned().collect::<Vec<_>>()).clone();
        let candidate = |index: usize, databases: &BTreeMap<String, Amount>| Candidate {
            id: format!("{index:04}"),
            time: at(NOW) - chrono::TimeDelta::hours(24 * (20 - index as i64)),
            standing: Standing::Complete { proven: false, databases: databases.clone() },
        };
        let mut sets: Vec<Candidate> = (0..history).map(|index| candidate(index, &full)).collect();
        let mut newest = full.clone();
        sets.push(candidate(history, &newest));
        prop_assert_eq!(run(&sets, rules(1, 0, 0, 0, 0)).frozen, None);
        match how {
            0 => drop(newest.remove(&victim)),
            1 => newest.get_mut(&victim).unwrap().bytes = full[&victim].bytes / 2 - 1,
            _ => newest.get_mut(&victim).unwrap().rows = Some(full[&victim].rows.unwrap() / 2 - 1),
        }
        sets[history] = candidate(history, &newest);
        let frozen = run(&sets, rules(1, 0, 0, 0, 0)).frozen;
        prop_assert!(frozen.as_ref().is_some_and(|why| why.contains(&format!("{victim:?}"))), "{:?}", frozen);
        prop_assert_eq!(plan(&sets, &rules(1, 0, 0, 0, 0), at(NOW), true).frozen, None);
    }

    #[test]
    fn pruning_twice_removes_nothing_more(sets in candidates(), rules in any_rules()) {
        let first = run(&sets, rules);
        let left: Vec<Candidate> =
            sets.into_iter().filter(|c| first.decisions.iter().any(|d| d.keep && d.id == c.id)).collect();
        prop_assert_eq!(run(&left, rules).removed().count(), 0);
    }
}
