//! Queue monitors on real servers, with real producers and workers where there are any to be had.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::alerting::watched;
use crate::support::exporter::{Exporter, Scrape};
use crate::support::opsd::{Opsd, quoted};
use crate::support::postgres::servers_directory;
use crate::support::processes::until;
use crate::support::redis::{Kept, Redis, Software};

/// A monitor named `jobs` of `queue`, which is what stands in `{ }` beside `redis`.
fn watching(redis: &Redis, queue: &str) -> Opsd {
    let mut opsd = Opsd::without_server();
    opsd.more = format!(
        "\n[redis.main]\nurl = {}\n[monitor.jobs]\nqueue = {{ redis = \"main\", {queue} }}\ninterval = \"1s\"\n",
        quoted(&redis.url(0))
    );
    opsd
}

fn waiting(scrape: &Scrape, queue: &str) -> Option<f64> {
    of(scrape, "opsd_queue_waiting", queue)
}

fn of(scrape: &Scrape, metric: &str, queue: &str) -> Option<f64> {
    scrape.one(metric, &[&format!("queue=\"{queue}\"")])
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A Sidekiq worker of `queues`, whose jobs sleep, fail or work.
pub(crate) fn sidekiq(redis: &Redis, queues: &[&str]) -> Kept {
    const JOBS: &str = "class Work\n  include Sidekiq::Worker\n  sidekiq_options retry: 3\n  sidekiq_retry_in { 3600 }\n\
        def perform(what)\n    sleep 3600 if what == 'sleep'\n    raise 'no' if what == 'fail'\n  end\nend\n";
    std::fs::write(redis.path("jobs.rb"), JOBS).unwrap();
    let mut args = vec!["-r", "./jobs.rb", "-c", "2", "-t", "1"];
    args.extend(queues.iter().flat_map(|queue| ["-q", queue]));
    let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    let url = redis.url(0);
    let env = [("REDIS_URL", OsStr::new(&url))];
    Kept::start(OsStr::new("/usr/bin/sidekiq"), &args, &env, redis.directory.path(), "sidekiq.log")
}

fn sidekiq_push(redis: &Redis, queue: &str, what: &str, count: u32) {
    // One that may not be tried again is dead when it fails.
    let (what, more) = if what == "die" { ("fail", ", 'retry' => 0") } else { (what, "") };
    let script = format!(
        "require 'sidekiq'; require './jobs'; {count}.times {{ \
         Sidekiq::Client.push('class' => 'Work', 'queue' => '{queue}', 'args' => ['{what}']{more}) }}"
    );
    let output = std::process::Command::new("ruby")
        .args(["-e", &script])
        .env("REDIS_URL", redis.url(0))
        .env("RUBYLIB", redis.directory.path())
        .current_dir(redis.directory.path())
        .output()
        .expect("run ruby");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn sidekiq_from_the_first_job_to_a_killed_worker() {
    let redis = Redis::start(Software::Redis, &[]);
    let mut opsd = watching(&redis, "kind = \"sidekiq\", queues = [\"default\", \"lonely\"]");
    let exporter = watched(&mut opsd, "");
    // Nothing is there yet: configured queues are 0.
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs").is_some());
    assert_eq!((waiting(&scrape, "default"), waiting(&scrape, "lonely")), (Some(0.0), Some(0.0)));
    assert_eq!(of(&scrape, "opsd_queue_unread", "lonely"), Some(0.0));
    let state = |scrape: &Scrape, queue: &str| {
        scrape.state("opsd_queue_emptying_state", &[&format!("queue=\"{queue}\"")]).unwrap()
    };
    assert_eq!(state(&scrape, "default"), "empty");

    let worker = sidekiq(&redis, &["default"]);
    exporter.scrape_until("the worker is seen", |scrape| {
        of(scrape, "opsd_queue_consumers", "default") == Some(1.0)
    });
    exporter.until_quiet();
    sidekiq_push(&redis, "default", "work", 5);
    sidekiq_push(&redis, "default", "fail", 1);
    sidekiq_push(&redis, "default", "die", 11);
    sidekiq_push(&redis, "default", "sleep", 2);
    sidekiq_push(&redis, "default", "work", 3);
    sidekiq_push(&redis, "lonely", "work", 4);
    // Both threads sleep, and three jobs wait behind them.
    let scrape = exporter.scrape_until("the worker is busy", |scrape| {
        of(scrape, "opsd_queue_active", "default") == Some(2.0)
            && waiting(scrape, "lonely") == Some(4.0)
            && scrape.one("opsd_queues_processed_total", &[]) == Some(17.0)
    });
    assert_eq!(waiting(&scrape, "default"), Some(3.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "default"), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "lonely"), Some(4.0));
    assert_eq!(of(&scrape, "opsd_queue_consumers", "lonely"), Some(0.0));
    assert_eq!(scrape.one("opsd_queues_retrying", &[]), Some(1.0));
    assert_eq!(scrape.one("opsd_queues_dead", &[]), Some(11.0));
    assert_eq!(scrape.one("opsd_queues_failed_total", &[]), Some(12.0));
    assert_eq!(scrape.one("opsd_queues_concurrency", &[]), Some(2.0));
    let oldest = of(&scrape, "opsd_queue_oldest_job_timestamp_seconds", "default").unwrap();
    assert!(oldest <= now() && oldest > now() - 300.0, "{oldest}");
    let scrape = exporter.scrape_until("the queue stands", |scrape| state(scrape, "default") == "never");
    assert_eq!(of(&scrape, "opsd_queue_until_empty_seconds", "default"), None);
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queue_unread (queue \"lonely\") is 4"), "{run}");
    exporter.until_alerts(&["QueueUnread{queue=lonely}", "QueueDeadGrowing"]);
    exporter.until_alert_with("QueueRetryingMany", "> 1000", "> 0");

    // Killed, it stays listed; without a heartbeat (which would take a minute) it is lost.
    worker.kill();
    let id = redis.cli(&["SRANDMEMBER", "processes"]);
    redis.cli(&["DEL", &id]);
    let scrape = exporter.scrape_until("the worker is lost", |scrape| {
        scrape.one("opsd_queues_workers_lost", &[]) == Some(1.0)
    });
    assert_eq!(scrape.one("opsd_queues_workers", &[]), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "default"), Some(3.0));
    assert_eq!(redis.cli(&["SCARD", "processes"]), "1", "nothing was cleaned up");
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queue_unread (queue \"default\") is 3"), "{run}");
    exporter.until_alerts(&["QueueWorkersLost", "QueueWorkersGone", "QueueUnread{queue=default}"]);
}

#[test]
fn sidekiq_of_both_formats_in_a_namespace_with_its_own_list() {
    let redis = Redis::start(Software::Valkey, &[]);
    let (seconds, millis) = (1_700_000_000.25, 1_700_000_000_250u64);
    let job = |at: &str| format!("{{\"class\":\"W\",\"args\":[],\"jid\":\"{at}\",\"enqueued_at\":{at}}}");
    redis.cli(&["SADD", "app:queues", "six", "eight", "empty"]);
    redis.cli(&["LPUSH", "app:queue:six", &job(&seconds.to_string()), &job("1700000009.5")]);
    redis.cli(&["LPUSH", "app:queue:eight", &job(&millis.to_string())]);
    redis.cli(&["SADD", "app:paused", "eight"]);
    redis.cli(&["ZADD", "app:schedule", "1700000001.5", "{}", "9999999999", "{\"a\":1}"]);
    let mut opsd = watching(&redis, "kind = \"sidekiq\", namespace = \"app\"");
    let exporter = watched(&mut opsd, "");
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs") == Some(1.0));
    for queue in ["six", "eight"] {
        assert_eq!(of(&scrape, "opsd_queue_oldest_job_timestamp_seconds", queue), Some(seconds));
    }
    assert_eq!(waiting(&scrape, "empty"), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_paused", "eight"), Some(1.0));
    assert_eq!(of(&scrape, "opsd_queue_paused", "six"), Some(0.0));
    assert_eq!(scrape.one("opsd_queues_scheduled", &[]), Some(2.0));
    let overdue = scrape.one("opsd_queues_overdue_timestamp_seconds", &["set=\"schedule\""]);
    assert_eq!(overdue, Some(1_700_000_001.5));
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queues_overdue_timestamp_seconds (set \"schedule\")"), "{run}");

    exporter.until_alerts(&[
        "QueueVeryLate{queue=six}",
        "QueueVeryLate{queue=eight}",
        "QueueScheduleOverdue{set=schedule}",
    ]);

    // A key of another type is this queue's trouble alone: absent, not 0.
    redis.cli(&["DEL", "app:queue:six"]);
    redis.cli(&["SET", "app:queue:six", "x"]);
    let scrape = exporter.scrape_until("it is unreadable", |scrape| waiting(scrape, "six").is_none());
    assert_eq!(waiting(&scrape, "eight"), Some(1.0));
    assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"queues\""]), Some(0.0));
    assert_eq!(scrape.up("jobs"), Some(1.0));
}

pub(crate) const CELERY: &str = "import os, time\nfrom celery import Celery\n\
    app = Celery('tasks', broker=os.environ['REDIS_URL'])\n\
    app.conf.broker_transport_options = {'queue_order_strategy': 'priority'}\n\
    app.conf.task_acks_late = True\n\
    app.conf.worker_prefetch_multiplier = 1\n\
    @app.task(name='work')\ndef work(seconds):\n    time.sleep(seconds)\n\
    @app.task(name='fail')\ndef fail(): raise Exception('no')\n\
    @app.task(name='retry', bind=True)\ndef retry(self): raise self.retry(countdown=3600)\n";

fn celery_push(redis: &Redis, seconds: u32, priority: u32, count: u32) {
    let script =
        format!("{CELERY}\nfor _ in range({count}): work.apply_async(({seconds},), priority={priority})");
    redis.python(&script, &[]);
}

#[test]
fn celery_with_priorities_and_a_killed_worker() {
    let redis = Redis::start(Software::Redis, &[]);
    let mut opsd = watching(&redis, "kind = \"celery\", queues = [\"celery\"]");
    celery_push(&redis, 0, 9, 3);
    celery_push(&redis, 0, 0, 2);
    assert_eq!(redis.cli(&["LLEN", "celery"]), "2", "the rest is elsewhere");
    let exporter = watched(&mut opsd, "");
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs") == Some(1.0));
    assert_eq!(waiting(&scrape, "celery"), Some(5.0));
    assert_eq!(scrape.one("opsd_queues_workers", &[]), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "celery"), Some(5.0));
    assert_eq!(of(&scrape, "opsd_queue_oldest_job_timestamp_seconds", "celery"), None, "nobody records it");
    exporter.scrape_until("the second look", |scrape| {
        of(scrape, "opsd_queue_head_since_timestamp_seconds", "celery").is_some()
    });
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queue_unread (queue \"celery\") is 5"), "{run}");
    exporter.until_alerts(&["QueueUnread{queue=celery}", "QueueWorkersGone"]);
    // Celery records no time: the head's is that of the first look, which no test waits half an hour after.
    exporter.until_alert_with("QueueStuck", "> 1800", "> 0");
    // What comes in is counted, in the same list and in another.
    celery_push(&redis, 0, 9, 4);
    exporter.scrape_until("arrivals are counted", |scrape| {
        waiting(scrape, "celery") == Some(9.0)
            && of(scrape, "opsd_queue_arrival_rate", "celery").is_some_and(|rate| rate > 0.0)
            && of(scrape, "opsd_queue_drain_rate", "celery") == Some(0.0)
    });

    std::fs::write(redis.path("tasks.py"), CELERY).unwrap();
    let url = redis.url(0);
    let python = servers_directory().join("python");
    let env = [("REDIS_URL", OsStr::new(&url)), ("PYTHONPATH", python.as_os_str())];
    let args =
        ["-m", "celery", "-A", "tasks", "worker", "--pool=solo", "--concurrency=1", "--without-mingle"];
    let args: Vec<String> = args.map(str::to_owned).to_vec();
    let path = which("python3");
    let worker = Kept::start(path.as_os_str(), &args, &env, redis.directory.path(), "celery.log");
    let scrape = exporter.scrape_until("the queue is empty", |scrape| waiting(scrape, "celery") == Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "celery"), Some(0.0));
    // Redis has no key for it any more, and that is 0.
    assert_eq!(redis.cli(&["EXISTS", "celery"]), "0");
    exporter.until_over(&["QueueUnread", "QueueWorkersGone"]);
    // One that fails is done with, as Celery sees it; one that is to be tried again in an hour is kept by the
    // worker, and acknowledged then.
    redis.python(&format!("{CELERY}\nfail.delay(); retry.delay()"), &[]);
    exporter.scrape_until("one waits for its next attempt", |scrape| {
        waiting(scrape, "celery") == Some(0.0) && scrape.one("opsd_queues_unacknowledged", &[]) == Some(1.0)
    });
    celery_push(&redis, 3_600, 0, 5);
    let scrape = exporter.scrape_until("a task is being done", |scrape| {
        scrape.one("opsd_queues_unacknowledged", &[]).is_some_and(|tasks| tasks >= 2.0)
    });
    assert!(waiting(&scrape, "celery").unwrap() >= 3.0, "{}", scrape.text);
    assert_eq!(scrape.one("opsd_queues_workers", &[]), Some(1.0), "{}", scrape.text);
    assert_eq!(of(&scrape, "opsd_queue_consumers", "celery"), None, "it may read another queue");
    let taken = scrape.one("opsd_queues_oldest_unacknowledged_timestamp_seconds", &[]).unwrap();
    assert!(taken <= now() && taken > now() - 300.0);
    worker.kill();
    let scrape = exporter
        .scrape_until("no worker is left", |scrape| scrape.one("opsd_queues_workers", &[]) == Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "celery"), waiting(&scrape, "celery"));
    assert_eq!(scrape.one("opsd_queues_oldest_unacknowledged_timestamp_seconds", &[]), Some(taken));
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queue_unread (queue \"celery\") is "), "{run}");
    exporter.until_alerts(&["QueueUnread{queue=celery}", "QueueWorkersGone"]);
    exporter.until_alert_with("QueueUnacknowledgedOld", "> 3600", "> 0");
}

/// A program by its whole path, as `PATH` of this process finds it.
pub(crate) fn which(program: &str) -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.exists());
    found.unwrap_or_else(|| panic!("{program} is not installed"))
}

#[test]
fn bullmq_with_delayed_failed_and_urgent_jobs() {
    const PRODUCE: &str = "import asyncio, os\nfrom bullmq import Queue\nasync def main():\n\
        \x20 q = Queue('mail', {'connection': os.environ['REDIS_URL']})\n\
        \x20 for i in range(11): await q.add('f', {'i': 1})\n\
        \x20 await q.add('r', {'i': 1}, {'attempts': 3, 'backoff': {'type': 'fixed', 'delay': 3600000}})\n\
        \x20 for i in range(6): await q.add('a', {'i': i})\n\
        \x20 await q.add('b', {}, {'delay': 3600000})\n\
        \x20 await q.add('c', {}, {'priority': 5})\n\
        \x20 await q.close()\nasyncio.run(main())\n";
    const WORK: &str = "import asyncio, os\nfrom bullmq import Worker\n\
        async def process(job, token):\n\
        \x20 if job.data.get('i') == 1: raise Exception('no')\n\
        \x20 if job.data.get('i') == 4: await asyncio.sleep(3600)\n\
        async def main():\n\
        \x20 w = Worker('mail', process, {'connection': os.environ['REDIS_URL'], 'metrics': {'maxDataPoints': 60}})\n\
        \x20 await asyncio.sleep(3600)\nasyncio.run(main())\n";
    let redis = Redis::start(Software::Redis, &[]);
    let mut opsd = watching(&redis, "kind = \"bullmq\", queues = [\"mail\", \"none\"]");
    redis.python(PRODUCE, &[]);
    let exporter = watched(&mut opsd, "");
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs") == Some(1.0));
    assert_eq!(
        (waiting(&scrape, "mail"), waiting(&scrape, "none")),
        (Some(19.0), Some(0.0)),
        "{}",
        scrape.text
    );
    assert_eq!(of(&scrape, "opsd_queue_delayed", "mail"), Some(1.0));
    assert_eq!(of(&scrape, "opsd_queue_overdue_timestamp_seconds", "mail"), None);
    assert_eq!(of(&scrape, "opsd_queue_unread", "mail"), Some(19.0));
    exporter.until_alerts(&["QueueUnread{queue=mail}"]);
    let oldest = of(&scrape, "opsd_queue_oldest_job_timestamp_seconds", "mail").unwrap();
    assert!(oldest <= now() && oldest > now() - 300.0, "{oldest}");

    let url = redis.url(0);
    let python = servers_directory().join("python");
    let env = [("REDIS_URL", OsStr::new(&url)), ("PYTHONPATH", python.as_os_str())];
    let args = ["-c".to_owned(), WORK.to_owned()];
    let worker = Kept::start(which("python3").as_os_str(), &args, &env, redis.directory.path(), "bullmq.log");
    let scrape = exporter.scrape_until("a job sleeps, and others have failed", |scrape| {
        of(scrape, "opsd_queue_active", "mail") == Some(1.0)
            && of(scrape, "opsd_queue_kept_failed", "mail") == Some(12.0)
            && waiting(scrape, "mail") == Some(2.0)
    });
    assert!(of(&scrape, "opsd_queue_consumers", "mail").is_some_and(|n| n >= 1.0), "{}", scrape.text);
    assert_eq!(of(&scrape, "opsd_queue_consumers", "none"), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_delayed", "mail"), Some(2.0), "one is to be tried again");
    exporter.until_alerts(&["QueueKeptFailed{queue=mail}"]);
    exporter.until_over(&["QueueUnread"]);
    assert_eq!(of(&scrape, "opsd_queue_unread", "mail"), Some(0.0));
    worker.kill();
    exporter.scrape_until("nobody reads", |scrape| of(scrape, "opsd_queue_unread", "mail") == Some(2.0));
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("queue_unread (queue \"mail\") is 2"), "{run}");
    exporter.until_alerts(&["QueueUnread{queue=mail}"]);
    // One whose time has come, and nobody moves it on.
    redis.cli(&["ZADD", "bull:mail:delayed", &(1_700_000_000_250u64 * 4096).to_string(), "8"]);
    exporter.scrape_until("it is overdue", |scrape| {
        of(scrape, "opsd_queue_overdue_timestamp_seconds", "mail") == Some(1_700_000_000.25)
    });
    exporter.until_alerts(&["QueueDelayedOverdue{queue=mail}"]);
    // A marker of version 4 is no job.
    redis.cli(&["DEL", "bull:mail:wait"]);
    redis.cli(&["RPUSH", "bull:mail:wait", "0:0"]);
    let only_urgent =
        exporter.scrape_until("a marker is there", |scrape| waiting(scrape, "mail") == Some(1.0));
    assert_eq!(of(&only_urgent, "opsd_queue_oldest_job_timestamp_seconds", "mail"), None);
}

#[test]
fn a_million_jobs_cost_as_many_commands_as_one() {
    let sources = [
        ("kind = \"sidekiq\", queues = [\"q\"]", "queue:q"),
        ("kind = \"celery\", queues = [\"q\"]", "q"),
        ("kind = \"bullmq\", queues = [\"q\"]", "bull:q:wait"),
        ("kind = \"list\", queues = [\"q\"]", "q"),
    ];
    let constant = [
        "auth",
        "client",
        "client|list",
        "client|setname",
        "exec",
        "exists",
        "get",
        "hexists",
        "hget",
        "hlen",
        "hmget",
        "hvals",
        "lindex",
        "llen",
        "ping",
        "scard",
        "select",
        "sismember",
        "smembers",
        "xinfo",
        "zcard",
        "zrange",
    ];
    let redis = Redis::start(Software::Redis, &[]);
    let payload = format!("\",\"padding\":\"{}\",\"enqueued_at\":1700000000.5}}", "x".repeat(100));
    for (kind, key) in sources {
        let opsd = watching(&redis, kind);
        let cost = |count: u32| -> BTreeMap<String, u64> {
            redis.cli(&["FLUSHALL"]);
            redis.push(key, count, "{\"jid\":\"", &payload);
            redis.cli(&["CONFIG", "RESETSTAT"]);
            let file = opsd.path("opsd.prom");
            opsd.ok(&["exporter", "--textfile", file.to_str().unwrap()]);
            let calls = redis.calls();
            let scrape = Scrape::parse(&std::fs::read_to_string(&file).unwrap());
            assert_eq!(waiting(&scrape, "q"), Some(f64::from(count)), "{kind}");
            calls
        };
        let (one, million) = (cost(1), cost(1_000_000));
        assert_eq!(one, million, "{kind}");
        let other: Vec<_> = million.keys().filter(|name| !constant.contains(&name.as_str())).collect();
        assert!(other.is_empty(), "{kind}: {other:?}");
        assert!(million.values().sum::<u64>() < 60, "{kind}: {million:?}");
    }
    // The second collection looks for the newest job of the first, at most so far as it says.
    let mut opsd = watching(&redis, "kind = \"list\", queues = [\"q\"]");
    let exporter = Exporter::start(&mut opsd, "");
    exporter.scrape_until("a million", |scrape| waiting(scrape, "q") == Some(1_000_000.0));
    redis.push("q", 7, "{\"more\":\"", "\"}");
    let scrape = exporter.scrape_until("seven more", |scrape| {
        waiting(scrape, "q") == Some(1_000_007.0)
            && of(scrape, "opsd_queue_arrival_rate", "q").is_some_and(|rate| rate > 0.0)
    });
    assert_eq!(of(&scrape, "opsd_queue_drain_rate", "q"), Some(0.0), "{}", scrape.text);
}

#[test]
fn lists_sorted_sets_and_streams() {
    let redis = Redis::start(Software::Redis, &[]);
    redis.cli(&["RPUSH", "left", "a", "b", "c"]);
    redis.cli(&["ZADD", "due", "1700000000", "job", "9999999999", "later"]);
    redis.cli(&["ZADD", "later", "9999999999", "job"]);
    redis.cli(&["XADD", "log", "1700000000000-0", "f", "v"]);
    redis.cli(&["XADD", "log", "1700000001000-0", "f", "v"]);
    redis.cli(&["XADD", "log", "1700000002000-0", "f", "v"]);
    redis.cli(&["XGROUP", "CREATE", "log", "mailers", "0"]);
    redis.cli(&["XGROUP", "CREATE", "log", "nobody", "0"]);
    redis.cli(&["XREADGROUP", "GROUP", "mailers", "one", "COUNT", "1", "STREAMS", "log", ">"]);
    let mut opsd = watching(&redis, "kind = \"list\", queues = [\"left\"], take_from = \"left\"");
    opsd.more.push_str("[monitor.due]\nqueue = { kind = \"zset\", redis = \"main\", queues = [\"due\", \"later\"], scores = \"seconds\" }\ninterval = \"1s\"\n");
    opsd.more.push_str("[monitor.log]\nqueue = { kind = \"stream\", redis = \"main\", queues = [\"log\", \"none\"] }\ninterval = \"1s\"\n");
    let exporter = watched(&mut opsd, "");
    // Since when a job is next, the second look tells.
    let first = exporter.scrape_until("the first collection", |scrape| scrape.up("due").is_some());
    let looks = first.one("opsd_monitor_collections_total", &["monitor=\"due\""]);
    let is_known = of(&first, "opsd_queue_head_since_timestamp_seconds", "due").is_some();
    assert!(looks > Some(1.0) || !is_known, "{}", first.text);
    let scrape = exporter.scrape_until("all have collected", |scrape| {
        ["jobs", "due", "log"].iter().all(|name| scrape.up(name) == Some(1.0))
            && of(scrape, "opsd_queue_head_since_timestamp_seconds", "due").is_some()
    });
    assert_eq!(waiting(&scrape, "left"), Some(3.0));
    assert_eq!(waiting(&scrape, "due"), Some(2.0));
    // Nobody waits for the list, but somebody may look into it now and then; and a job whose time has not
    // come is next for as long as that takes. Neither is an alarm.
    assert_eq!(scrape.of("opsd_queues_workers", &[]), []);
    let since = |queue: &str| of(&scrape, "opsd_queue_head_since_timestamp_seconds", queue);
    assert_eq!((since("due").is_some(), since("later")), (true, None));
    assert_eq!(of(&scrape, "opsd_queue_overdue_timestamp_seconds", "due"), Some(1_700_000_000.0));
    assert_eq!((waiting(&scrape, "log/mailers"), waiting(&scrape, "log/nobody")), (Some(2.0), Some(3.0)));
    assert_eq!(waiting(&scrape, "none"), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_active", "log/mailers"), Some(1.0));
    let oldest = |metric: &str| of(&scrape, metric, "log/mailers");
    assert_eq!(oldest("opsd_queue_oldest_job_timestamp_seconds"), Some(1_700_000_001.0));
    assert_eq!(oldest("opsd_queue_oldest_active_timestamp_seconds"), Some(1_700_000_000.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "log/mailers"), Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_unread", "log/nobody"), Some(3.0));
    // Nobody waits for the list, and its head stays.
    exporter
        .scrape_until("the list is unread", |scrape| of(scrape, "opsd_queue_unread", "left") == Some(3.0));
    exporter.until_alerts(&[
        "QueueUnread{queue=left}",
        "QueueUnread{queue=log/nobody}",
        "QueueDelayedOverdue{queue=due}",
    ]);

    // Two are taken, one put in, between two collections: it will be empty.
    redis.cli(&["EVAL", "redis.call('LPOP', 'left', '2'); redis.call('RPUSH', 'left', 'd')", "0"]);
    let scrape = exporter.scrape_until("it moves", |scrape| {
        of(scrape, "opsd_queue_until_empty_seconds", "left").is_some_and(|seconds| seconds > 0.0)
    });
    assert_eq!(waiting(&scrape, "left"), Some(2.0));
    let state = scrape.state("opsd_queue_emptying_state", &["queue=\"left\""]);
    assert_eq!(state.as_deref(), Some("emptying"));
    let rates =
        ["opsd_queue_arrival_rate", "opsd_queue_drain_rate"].map(|rate| of(&scrape, rate, "left").unwrap());
    assert!(rates[0] > 0.0 && (rates[1] / rates[0] - 2.0).abs() < 0.01, "{rates:?}");
    redis.cli(&["DEL", "left"]);
    let scrape = exporter.scrape_until("it is gone", |scrape| waiting(scrape, "left") == Some(0.0));
    assert_eq!(of(&scrape, "opsd_queue_until_empty_seconds", "left"), Some(0.0));
}

/// Redis 6.2 does not say how far behind a group is, and no version does once entries were deleted. That
/// something waits, since when, and that nobody reads it, is known all the same.
#[test]
fn a_group_whose_lag_nobody_knows_has_all_but_its_depth() {
    let deleted = |redis: &Redis| redis.cli(&["XDEL", "log", "1700000001000-0"]);
    for software in [Software::Redis62, Software::Redis] {
        if software == Software::Redis62 && cfg!(not(target_arch = "x86_64")) {
            continue; // there is none
        }
        let redis = Redis::start(software, &[]);
        for id in ["1700000000000-0", "1700000001000-0", "1700000002000-0"] {
            redis.cli(&["XADD", "log", id, "f", "v"]);
        }
        redis.cli(&["XGROUP", "CREATE", "log", "mailers", "0"]);
        redis.cli(&["XREADGROUP", "GROUP", "mailers", "one", "COUNT", "1", "STREAMS", "log", ">"]);
        redis.cli(&["XGROUP", "DELCONSUMER", "log", "mailers", "one"]);
        deleted(&redis);
        let mut opsd = watching(&redis, "kind = \"stream\", queues = [\"log\"]");
        let exporter = Exporter::start(&mut opsd, "");
        let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs").is_some());
        let figure = |metric: &str| of(&scrape, metric, "log/mailers");
        assert_eq!(waiting(&scrape, "log/mailers"), None, "{}", scrape.text);
        assert_eq!(figure("opsd_queue_oldest_job_timestamp_seconds"), Some(1_700_000_002.0));
        assert_eq!((figure("opsd_queue_consumers"), figure("opsd_queue_unread")), (Some(0.0), Some(1.0)));
        assert_eq!(scrape.one("opsd_monitor_concern_up", &["concern=\"queues\""]), Some(1.0));
        let run = opsd.run(&["check"]).expect_code(2);
        assert!(run.stdout.contains("queue_unread (queue \"log/mailers\") is 1"), "{run}");
    }
}

#[test]
fn a_broker_that_goes_leaves_nothing_behind() {
    let mut redis = Redis::start(Software::Redis, &[]);
    redis.push("q", 3, "job", "");
    let mut opsd = watching(&redis, "kind = \"list\", queues = [\"q\"]");
    let exporter = watched(&mut opsd, "");
    exporter.scrape_until("it is seen", |scrape| waiting(scrape, "q") == Some(3.0));
    redis.stop();
    exporter.scrape_until("it is gone", |scrape| {
        scrape.up("jobs") == Some(0.0) && waiting(scrape, "q").is_none()
    });
    let run = opsd.run(&["check"]).expect_code(2);
    assert!(run.stdout.contains("jobs: down, unreachable"), "{run}");
    exporter.until_alerts(&["QueueSourceDown"]);
    until("nothing listens", || std::net::TcpStream::connect(("127.0.0.1", redis.port)).is_err());
}

#[test]
fn a_role_that_may_read_nothing_yields_nothing() {
    let mut redis = Redis::start(Software::Redis, &["--requirepass", "admin"]);
    redis.password = "admin".into();
    redis.cli(&["ACL", "SETUSER", "watcher", "on", ">secret", "~mine", "+@read", "+select"]);
    redis.cli(&["RPUSH", "mine", "a"]);
    redis.cli(&["RPUSH", "theirs", "a"]);
    let mut opsd = watching(&redis, "kind = \"list\", queues = [\"mine\", \"theirs\"]");
    opsd.more = opsd.more.replace("redis://", "redis://watcher:${REDIS_PASSWORD}@");
    opsd.env("REDIS_PASSWORD", "secret");
    let exporter = Exporter::start(&mut opsd, "");
    let scrape = exporter.scrape_until("the first collection", |scrape| scrape.up("jobs") == Some(1.0));
    assert_eq!((waiting(&scrape, "mine"), waiting(&scrape, "theirs")), (Some(1.0), None));
    for concern in ["queues", "workers"] {
        let labels = [format!("concern=\"{concern}\""), "reason=\"permission\"".to_owned()];
        let failure = scrape.one("opsd_monitor_concern_failure", &[&labels[0], &labels[1]]);
        assert_eq!(failure, Some(1.0), "{}", scrape.text);
    }
}
