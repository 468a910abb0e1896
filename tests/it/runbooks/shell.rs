//! Every command for a shell, run on a host where a primary and a standby, a Redis with its replica and its
//! queues, a broker, a Celery worker, an exporter and a Prometheus are; and the commands that no test may
//! run, with the reason.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::page::{ACT, Kind, LOOK, OVER, Snippet, placeholders, programs, replaced, uncommented};
use super::sql::pair;
use crate::security::executable;
use crate::support::certificates::{Authority, in_days};
use crate::support::exporter::Exporter;
use crate::support::mosquitto::Mosquitto;
use crate::support::opsd::{Opsd, finish, quoted, write_private};
use crate::support::postgres::{
    self, SUPERUSER, Server, bin_dir, default_major, free_port, servers_directory,
};
use crate::support::processes::until;
use crate::support::prometheus::Prometheus;
use crate::support::redis::{Kept, Redis, Software};
use crate::support::sets::back_up;

/// Programs that every machine has on which the tests run.
const HERE: &[&str] = &[
    "age-keygen",
    "awk",
    "cat",
    "celery",
    "curl",
    "cut",
    "date",
    "df",
    "du",
    "echo",
    "getent",
    "grep",
    "head",
    "kill",
    "ls",
    "mosquitto_passwd",
    "mosquitto_sub",
    "mv",
    "openssl",
    "opsd",
    "pg_amcheck",
    "pg_basebackup",
    "pg_isready",
    "psql",
    "redis-check-aof",
    "redis-cli",
    "sort",
    "tail",
    "timeout",
    "uniq",
    "vacuumdb",
];

/// Programs that look and that a small machine may lack; where they are, they are run.
const PERHAPS_HERE: &[&str] = &["free", "lsof", "ps", "pstree", "ss", "uptime"];

/// Programs that no test runs: the shell reads their lines, and no more.
const NOT_RUN: &[(&str, &str)] = &[
    ("aws", "asks a provider; the tests' store is a directory"),
    ("certbot", "certificates of a real name on a real host"),
    ("chown", "changes owners, which only root may"),
    ("dmesg", "the log of the kernel, which a container may not read"),
    ("docker", "there is no daemon, and no container of these names"),
    ("journalctl", "the journal of systemd, which a container lacks"),
    ("nft", "needs the right to administer the network"),
    ("ping", "needs a host beyond this one"),
    ("resize2fs", "grows a real file system"),
    ("smartctl", "asks a real disk"),
    ("sudo", "becomes another user; what is typed then is run"),
    ("sysctl", "settings of the kernel of the machine that tests run on"),
    ("systemctl", "units of systemd, which a container lacks"),
    ("timedatectl", "the clock of the machine that tests run on"),
    ("traceroute", "needs a host beyond this one"),
    ("xfs_growfs", "grows a real file system"),
];

/// Commands of programs that are here which are not run, by a part of theirs.
const LINES_NOT_RUN: &[(&str, &str)] =
    &[("127.0.0.1:8404", "there is no HAProxy; its page is not opsd's matter")];

/// Commands to look with that may print nothing.
const PRINTS_NOTHING: &[(&str, &str)] = &[
    ("lsof -nP +L1", "nothing may be deleted and open"),
    ("invalid page", "no page is damaged"),
    ("deadlock detected", "nobody has deadlocked"),
];

/// What ends something that others still need: run at the very end.
const AT_LAST: &[&str] = &["pg_promote", "replicaof no one", "unlink"];

/// Words in capitals that the reader is to fill in; [`Host::filled`] does here.
const PLACEHOLDERS: &[&str] = &[
    "APP",
    "BUCKET",
    "COUNT",
    "DATABASE",
    "DATADIR",
    "DEVICE",
    "DOMAIN",
    "FILE",
    "HOST",
    "ID",
    "JOB",
    "KEY",
    "NAME",
    "PASSWORD",
    "PATH",
    "PID",
    "PORT",
    "PREFIX",
    "PRIMARY",
    "PROCESS",
    "PROMETHEUS",
    "REPLICA",
    "S3-ENDPOINT",
    "SERVICE",
    "SITE",
    "SLOT",
    "TASK",
    "URL",
    "USER",
];

/// Capitals that are no placeholders.
const CAPITALS: &[&str] = &["SELECT", "FROM", "ORDER", "BY", "DESC", "LIMIT", "HUP", "TTIN", "L1"];

/// Whether a program's name begins a command.
pub fn is_program(name: &str) -> bool {
    HERE.contains(&name)
        || PERHAPS_HERE.contains(&name)
        || NOT_RUN.iter().any(|(program, _)| *program == name)
}

/// What a child of a test's own is ended with.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host that the commands are run on.
struct Host {
    opsd: Opsd,
    /// The newest set.
    id: String,
    primary: Server,
    standby: Server,
    redis: Redis,
    replica: Redis,
    exporter: Exporter,
    prometheus: Prometheus,
    mqtt: (u16, u16),
    _brokers: [Mosquitto; 2],
    _celery: Kept,
}

const SIDEKIQ: &str = r#"{"class":"Work","args":[1],"jid":"b4","queue":"default","created_at":1700000000.5,"enqueued_at":ENQUEUED,"error_class":"Net::ReadTimeout","error_message":"no"}"#;

fn seed(redis: &Redis) {
    let now = chrono::Utc::now().timestamp();
    let job = SIDEKIQ.replace("ENQUEUED", &format!("{now}.5"));
    redis.cli(&["SADD", "queues", "default"]);
    redis.cli(&["LPUSH", "queue:default", &job]);
    redis.cli(&["LPUSH", "queue:old", &job]);
    redis.cli(&["SADD", "paused", "old"]);
    redis.cli(&["SADD", "processes", "worker:1:abc"]);
    let info = r#"{"hostname":"worker","started_at":1700000000.5,"pid":1,"tag":"","concurrency":5,"queues":["default"],"labels":[],"identity":"worker:1:abc"}"#;
    redis.cli(&["HSET", "worker:1:abc", "info", info, "busy", "0", "beat", &format!("{now}.5")]);
    for set in ["retry", "dead", "schedule"] {
        redis.cli(&["ZADD", set, &format!("{}.5", now + 3600), &job]);
    }
    redis.cli(&["LPUSH", "bull:mail:wait", "1"]);
    redis.cli(&["ZADD", "bull:mail:failed", "1700000000000", "1"]);
    redis.cli(&["ZADD", "bull:mail:delayed", "6963200000000000", "2"]);
    redis.cli(&["HSET", "bull:mail:1", "failedReason", "no"]);
    redis.cli(&["HSET", "bull:mail:meta", "paused", "1"]);
    redis.cli(&["ZADD", "unacked_index", "1700000000.5", "tag"]);
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    redis.cli(&["SET", "cache:1", "x"]);
    redis.cli(&["GET", "cache:1"]);
}

const CELERY: &str = "import os\nfrom celery import Celery\napp = Celery('app', broker=os.environ['REDIS_URL'])\n\
    @app.task(name='mail')\ndef mail(): pass\n";

fn celery(redis: &Redis) -> Kept {
    std::fs::write(redis.path("app.py"), CELERY).unwrap();
    // A database of its own: it moves what it finds under `unacked_index`.
    let url = redis.url(1);
    let libraries = servers_directory().join("python");
    let env = [("REDIS_URL", OsStr::new(&url)), ("PYTHONPATH", libraries.as_os_str())];
    let args = "-m celery -A app worker --pool=solo --without-mingle --without-gossip";
    let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
    Kept::start(python().as_os_str(), &args, &env, redis.directory.path(), "celery.log")
}

/// The Python that the libraries were installed for.
fn python() -> std::path::PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|directory| directory.join("python3"));
    found.find(|program| program.exists()).expect("python3")
}

impl Host {
    fn new() -> Host {
        let redis = Redis::start(Software::Redis, &["--appendonly", "yes"]);
        let celery = celery(&redis);
        let replica = Redis::start(Software::Redis, &["--replicaof", "127.0.0.1", &redis.port.to_string()]);
        seed(&redis);
        let (primary, standby) = pair(default_major());
        let mut opsd = Opsd::new(&primary, &["app"]);
        opsd.job.set("retention", "{ last = 10 }");

        let authority = Authority::new("Test CA", in_days(900));
        let server = authority.sign(&["localhost", "127.0.0.1"], "broker", in_days(90));
        let client = authority.sign(&[], "client", in_days(90));
        server.write(&opsd.path("server.pem"), &opsd.path("server.key"), &[&authority.pair]);
        client.write(&opsd.path("client.pem"), &opsd.path("client.key"), &[]);
        std::fs::write(opsd.path("ca.pem"), authority.pair.certificate.pem()).unwrap();
        write_private(&opsd.path("passwords"), "");
        let made = Command::new("mosquitto_passwd")
            .args(["-b", opsd.path("passwords").to_str().unwrap(), "user", "secret"])
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let mqtt = (free_port(), free_port());
        let file = |name: &str| opsd.path(name).display().to_string();
        let plain = format!("allow_anonymous true\npassword_file {}\n", file("passwords"));
        let mutual = format!(
            "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n",
            file("ca.pem"),
            file("server.pem"),
            file("server.key")
        );
        let site = opsd.path("");
        let brokers = [Mosquitto::start(&site, mqtt.0, &plain), Mosquitto::start(&site, mqtt.1, &mutual)];
        let prometheus = Prometheus::start("127.0.0.1:1");

        opsd.more = format!(
            "[redis.main]\nurl = {}\n[monitor.main]\npostgres = \"main\"\n[monitor.cache]\nredis = \"main\"\n\
             [monitor.jobs]\nqueue = {{ kind = \"sidekiq\", redis = \"main\", queues = [\"default\"] }}\n\
             [monitor.site]\nhttp = {{ url = \"{}/-/healthy\" }}\n[monitor.broker]\nmqtt = {{ url = \"mqtt://127.0.0.1:{}\" }}\n\
             [monitor.backups]\nbackups = {{}}\n",
            quoted(&redis.url(0)),
            prometheus.url(),
            mqtt.0,
        );
        let exporter = Exporter::start(&mut opsd, "");
        std::fs::create_dir(opsd.path("bin")).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_opsd"), opsd.path("bin/opsd")).unwrap();
        let wrapper = |name: &str, line: String| {
            executable(&opsd.path("bin").join(name), &format!("#!/bin/sh\n{line} \"$@\"\n"));
        };
        // Where a host's own Redis is asked, none of the environment says its port.
        wrapper("redis-cli", format!("exec /usr/bin/redis-cli -p {}", redis.port));
        wrapper("celery", format!("exec {} -m celery", python().display()));
        // It has tried its target, which is not there.
        prometheus.until_some("up == 0");
        // This writes the configuration, too.
        let id = back_up(&opsd);
        Host {
            opsd,
            id,
            primary,
            standby,
            redis,
            replica,
            exporter,
            prometheus,
            mqtt,
            _brokers: brokers,
            _celery: celery,
        }
    }

    /// The command as it would be typed here; `sleeper` is ended by a command that ends a process.
    fn filled(&self, snippet: &Snippet, sleeper: &Sleeper) -> String {
        let mut text = uncommented(&snippet.text);
        let page = snippet.page.as_str();
        let local = |redis: &Redis| format!("-h 127.0.0.1 -p {}", redis.port);
        let restored = self.primary.socket_url(SUPERUSER, &postgres::unique("app_before"));
        let prometheus = self.prometheus.url();
        let exporter = self.exporter.address.as_str();
        let site = self.opsd.path("").display().to_string();
        let ports = if page.starts_with("redis") || page.starts_with("queue") {
            [("-h HOST -p 6379", local(&self.redis)), ("-h HOST", local(&self.redis))]
        } else {
            [
                ("-h HOST -p 5432", format!("-h {}", self.primary.socket_dir().display())),
                ("-h HOST -p", "-h 127.0.0.1 -p".into()),
            ]
        };
        for (part, value) in ports {
            text = text.replace(part, &value);
        }
        let parts = [
            ("-h REPLICA", local(&self.replica)),
            ("postgres://admin@host/app_before", restored),
            ("https://example.org/health", format!("{prometheus}/-/healthy")),
            ("http://127.0.0.1:3000/health", format!("{prometheus}/-/healthy")),
            ("https://S3-ENDPOINT", prometheus.clone()),
            ("http://PROMETHEUS:9090", prometheus.clone()),
            ("127.0.0.1:9911", exporter.to_owned()),
            ("127.0.0.1 9911", exporter.replace(':', " ")),
            ("-p 1883 ", format!("-p {} ", self.mqtt.0)),
            ("-p 8884 ", format!("-p {} ", self.mqtt.1)),
            ("HOST:443", format!("127.0.0.1:{}", self.mqtt.1)),
            ("-servername HOST", "-servername localhost".to_owned()),
            ("/etc/opsd/", site.clone()),
            ("/var/lib/prometheus/node-exporter/opsd.prom", format!("{site}identity.txt")),
            (
                "/var/log/postgresql/*.log",
                self.primary.data_dir().with_file_name("log").display().to_string(),
            ),
            ("/var/log/redis/redis-server.log", self.redis.path("server.log").display().to_string()),
            ("/var/log/mosquitto/mosquitto.log", format!("{site}mosquitto-{}.conf", self.mqtt.0)),
            ("/var/log/nginx/error.log", format!("{site}opsd.toml")),
            ("/var/lib/redis", self.redis.path("data").display().to_string()),
            ("/var/lib/postgresql", self.primary.data_dir().display().to_string()),
        ];
        for (part, value) in parts {
            text = text.replace(part, &value);
        }
        let address = (prometheus.trim_start_matches("http://")).split_once(':').unwrap();
        let data = self.opsd.path(&postgres::unique("data"));
        if programs(&text).iter().any(|program| program == "mv") {
            std::fs::create_dir(&data).unwrap();
        }
        let is_mqtt = page == "probe-mqtt";
        let file = match page {
            "probe-tls" => "server.pem",
            "probe-mqtt" => "passwords",
            _ => "",
        };
        let file = match page {
            "redis-down" => {
                self.redis.path("data/appendonlydir/appendonly.aof.manifest").display().to_string()
            }
            _ => site.clone() + file,
        };
        let fill = [
            ("APP", "app".to_owned()),
            // Less than the open files that a machine allows an ordinary process.
            ("COUNT", "500".to_owned()),
            ("DATABASE", "app".to_owned()),
            ("DATADIR", data.display().to_string()),
            ("FILE", file),
            ("HOST", address.0.to_owned()),
            ("ID", if page.starts_with("queue") { "1".to_owned() } else { self.id.clone() }),
            ("JOB", "db".to_owned()),
            ("KEY", "queue:default".to_owned()),
            ("PASSWORD", if is_mqtt { "secret" } else { "''" }.to_owned()),
            ("PATH", site.clone()),
            ("PID", sleeper.0.id().to_string()),
            ("PORT", address.1.to_owned()),
            ("PREFIX", "queue".to_owned()),
            ("PROCESS", "worker:1:abc".to_owned()),
            ("TASK", "mail".to_owned()),
            ("URL", format!("{prometheus}/-/healthy")),
            ("USER", "user".to_owned()),
        ];
        for (name, value) in fill {
            text = replaced(&text, name, &value);
        }
        if page.starts_with("redis") {
            text = text.replace("-h PRIMARY", &local(&self.redis));
        } else {
            text = text.replace("-h PRIMARY", &format!("-h {}", self.primary.socket_dir().display()));
        }
        text = replaced(&text, "SLOT", &postgres::unique("slot"));
        let name = match page {
            page if page.starts_with("queue") && text.contains("queue:") => "old",
            page if page.starts_with("queue") => "mail",
            "probe-tls" | "probe-tcp" => "site",
            _ => "main",
        };
        replaced(&text, "NAME", name)
    }

    /// A shell on this host that is about to run `text`.
    fn bash(&self, text: &str) -> Command {
        let server = if text.contains("pg_promote") { &self.standby } else { &self.primary };
        let tools = bin_dir(server.major);
        let bin = self.opsd.path("bin");
        // Whoever waits longer for a command at night believes that it hangs.
        let mut bash = Command::new("timeout");
        bash.args(["90", "/bin/bash", "-o", "pipefail", "-c", text])
            .env_clear()
            .env("PATH", format!("{}:{}:/usr/bin:/bin:/usr/sbin:/sbin", bin.display(), tools.display()))
            .env("HOME", self.opsd.path(""))
            .env("LC_ALL", "C.UTF-8")
            .env("OPSD_CONFIG", self.opsd.path("opsd.toml"))
            .env("PGHOST", server.socket_dir())
            .env("PGPORT", server.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", "app")
            .env("DATABASE_URL", server.socket_url(SUPERUSER, "app"))
            .env("REDIS_URL", self.redis.url(1))
            .env("PYTHONPATH", servers_directory().join("python"))
            .current_dir(self.redis.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if programs(text).iter().any(|program| program == "age-keygen") {
            bash.current_dir(self.opsd.path(""));
        }
        if text.contains("mosquitto") {
            bash.current_dir(self.opsd.path(""));
        }
        bash
    }

    /// Runs a command in bash; what is wrong with it.
    fn run(&self, snippet: &Snippet) -> Result<(), String> {
        let sleeper =
            Sleeper(Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("start sleep"));
        let text = self.filled(snippet, &sleeper);
        let mut run = finish(self.bash(&text));
        if text.contains("celery") && run.code == Some(69) {
            // A busy worker had no second to answer in.
            until("the worker answers", || {
                run = finish(self.bash(&text));
                run.code == Some(0)
            });
        }
        let finds_nothing = PRINTS_NOTHING.iter().any(|(part, _)| snippet.text.contains(part));
        // `head` closes the pipe, and `grep` says that there is nothing by its exit code.
        let accepted = match run.code {
            Some(0) => true,
            Some(141) => text.contains("| head"),
            Some(1) => finds_nothing || text.contains("opsd check"),
            // Its verdict, which is not what is tested here.
            Some(2) => text.contains("opsd check"),
            _ => false,
        };
        let own = programs(&text).iter().any(|program| program == "opsd");
        let complains = !own && !run.stderr.is_empty() && !text.contains("2>/dev/null") && !may_talk(&text);
        let refused = ["ERR ", "WRONGTYPE", "NOAUTH", "NOPERM", "(error)", "Could not connect"];
        if !accepted || complains || refused.iter().any(|word| run.stdout.contains(word)) {
            return Err(run.to_string());
        }
        let silent = run.stdout.trim().is_empty() && (!own || run.stderr.is_empty());
        if snippet.section == LOOK && silent && !finds_nothing {
            return Err(format!("prints nothing: {run}"));
        }
        if text.contains("pg_basebackup") {
            // Without a standby that reads it, its slot is an alert.
            let unread =
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
            self.primary.psql("app", unread);
        }
        Ok(())
    }
}

/// Programs that say how far they are on stderr.
fn may_talk(text: &str) -> bool {
    ["vacuumdb", "pg_basebackup", "redis-check-aof", "openssl s_client"]
        .iter()
        .any(|program| text.contains(program))
}

/// The reason why a command is not run.
fn excused(command: &str) -> Option<&'static str> {
    let text = uncommented(command);
    let line = LINES_NOT_RUN.iter().find(|(part, _)| text.contains(part));
    let names = programs(&text);
    let program = NOT_RUN.iter().find(|(program, _)| names.iter().any(|name| name == program));
    let absent = |name: &str| {
        PERHAPS_HERE.contains(&name)
            && !["/usr/bin", "/bin", "/usr/sbin"].iter().any(|d| Path::new(d).join(name).exists())
    };
    let lacking = names.iter().any(|name| absent(name));
    line.or(program).map(|(_, reason)| *reason).or(lacking.then_some("not on this machine"))
}

/// What is wrong with a command before it is run.
fn read(snippet: &Snippet) -> Result<(), String> {
    for name in programs(&snippet.text) {
        if !is_program(&name) {
            return Err(format!("nobody knows the program {name:?}"));
        }
    }
    let text = uncommented(&snippet.text);
    for word in placeholders(&text) {
        if !PLACEHOLDERS.contains(&word.as_str()) && !CAPITALS.contains(&word.as_str()) {
            return Err(format!("nobody knows what to put for {word}"));
        }
    }
    let mut bash = Command::new("/bin/bash");
    bash.args(["-n", "-c", &text]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = finish(bash);
    if run.code == Some(0) { Ok(()) } else { Err(format!("{run}")) }
}

/// Runs all shell commands of the pages; what went wrong.
pub fn run_all(snippets: &[Snippet]) -> Vec<String> {
    let host = Host::new();
    until("the replica is there", || host.redis.cli(&["INFO", "replication"]).contains("state=online"));
    let mut commands: Vec<&Snippet> = snippets.iter().filter(|snippet| snippet.kind == Kind::Shell).collect();
    let mut wrong = stale(&commands);
    let rank = |snippet: &&Snippet| {
        let last = AT_LAST.iter().any(|part| snippet.text.contains(part));
        let section = [LOOK, ACT, OVER].iter().position(|section| *section == snippet.section);
        (last, section)
    };
    commands.sort_by_key(rank);
    // What changes databases and sets, and everything else, which shares nothing with it.
    let changes =
        |snippet: &&Snippet| ["backup", "host", "postgres"].iter().any(|p| snippet.page.starts_with(p));
    let (first, second): (Vec<_>, Vec<_>) = commands.into_iter().partition(changes);
    std::thread::scope(|scope| {
        let lanes = [first, second].map(|lane| scope.spawn(|| run_lane(&host, lane)));
        wrong.extend(lanes.into_iter().flat_map(|lane| lane.join().unwrap()));
    });
    wrong
}

fn run_lane(host: &Host, lane: Vec<&Snippet>) -> Vec<String> {
    let mut done = BTreeSet::new();
    let mut wrong = Vec::new();
    for snippet in lane {
        let subject = snippet.page.split('-').next().unwrap_or_default();
        let is_new = done.insert((subject, uncommented(&snippet.text)));
        let result = read(snippet);
        let run = result.is_ok() && is_new && excused(&snippet.text).is_none();
        if let Err(error) = if run { host.run(snippet) } else { result } {
            wrong.push(format!("{snippet}\n  {error}"));
        }
    }
    wrong
}

/// Entries of the tables that no page needs any more.
fn stale(commands: &[&Snippet]) -> Vec<String> {
    let names: BTreeSet<String> = commands.iter().flat_map(|snippet| programs(&snippet.text)).collect();
    let parts =
        LINES_NOT_RUN.iter().chain(PRINTS_NOTHING).map(|(part, _)| *part).chain(AT_LAST.iter().copied());
    let parts = parts.chain(PLACEHOLDERS.iter().copied());
    let used = |part: &str| commands.iter().any(|snippet| snippet.text.contains(part));
    let programs =
        HERE.iter().chain(PERHAPS_HERE).copied().chain(NOT_RUN.iter().map(|(program, _)| *program));
    let unused = parts.filter(|part| !used(part)).chain(programs.filter(|name| !names.contains(*name)));
    unused.map(|entry| format!("no page has {entry:?} any more: take it out of the table")).collect()
}
