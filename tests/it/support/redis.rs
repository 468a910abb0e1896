//! Redis and Valkey servers, and programs that work on them, which end with the test.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::postgres::{free_port, servers_directory};
use super::processes::until;

/// A process that ends when this value is dropped, or the test's process dies: a shell holds it and
/// waits for the end of its own input.
pub struct Kept {
    shell: Child,
}

impl Kept {
    /// Starts a program; what it says goes to `log`.
    pub fn start(
        program: &OsStr,
        args: &[String],
        env: &[(&str, &OsStr)],
        directory: &Path,
        log: &str,
    ) -> Kept {
        Kept::spawn("", program, args, env, directory, log)
    }

    /// The same in a directory that goes with it.
    pub fn start_in(program: &OsStr, args: &[String], directory: &Path, log: &str) -> Kept {
        Kept::spawn("cd /; rm -rf \"$HOME\"", program, args, &[], directory, log)
    }

    fn spawn(
        last: &str,
        program: &OsStr,
        args: &[String],
        env: &[(&str, &OsStr)],
        directory: &Path,
        log: &str,
    ) -> Kept {
        let log = std::fs::File::create(directory.join(log)).expect("create a log");
        let script = "\"$@\" </dev/null & child=$!; echo $child >pid-$$; read end; kill -9 $child; wait";
        let shell = Command::new("/bin/sh")
            .args(["-c", &format!("{script}; {last}"), "sh"])
            .arg(program)
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", directory)
            .env("LC_ALL", "C.UTF-8")
            .envs(env.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("start /bin/sh");
        Kept { shell }
    }

    /// Ends it with SIGKILL.
    pub fn kill(self) {}
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Software {
    /// The distribution's.
    Redis,
    /// The oldest that is watched; built for x86_64 only.
    Redis62,
    Valkey,
}

/// A running server in a directory of its own.
pub struct Redis {
    kept: Option<Kept>,
    pub directory: tempfile::TempDir,
    pub port: u16,
    pub password: String,
}

impl Redis {
    /// Starts one; `args` come after the usual ones.
    pub fn start(software: Software, args: &[&str]) -> Redis {
        Redis::start_with(software, &[], args)
    }

    /// The same with `first` before the usual arguments, where the server takes its file.
    pub fn start_with(software: Software, first: &[&str], args: &[&str]) -> Redis {
        let program = servers_directory().join(match software {
            Software::Redis => "redis/redis-server",
            Software::Redis62 => "redis62/redis-server",
            Software::Valkey => "valkey/valkey-server",
        });
        assert!(program.exists(), "{} is missing: run make setup", program.display());
        let directory =
            tempfile::Builder::new().prefix("opsd-it-redis-").tempdir_in("/var/tmp").expect("a directory");
        std::fs::create_dir(directory.path().join("data")).expect("create a directory");
        let port = free_port();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let usual = [
            ("--port", port.to_string()),
            ("--bind", "127.0.0.1".to_owned()),
            ("--dir", path("data")),
            ("--unixsocket", path("socket")),
            ("--save", String::new()),
            ("--daemonize", "no".to_owned()),
        ];
        let usual = usual.into_iter().flat_map(|(key, value)| [key.to_owned(), value]);
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let args: Vec<String> = owned(first).into_iter().chain(usual).chain(owned(args)).collect();
        let kept = Kept::start(program.as_os_str(), &args, &[], directory.path(), "server.log");
        let redis = Redis { kept: Some(kept), directory, port, password: String::new() };
        until("the server answers", || {
            let answer = redis.try_cli(&["PING"]);
            answer.contains("PONG") || answer.contains("NOAUTH")
        });
        redis
    }

    /// Ends the server; the directory stays.
    pub fn stop(&mut self) {
        self.kept = None;
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its URL with a database.
    pub fn url(&self, database: u32) -> String {
        format!("redis://127.0.0.1:{}/{database}", self.port)
    }

    /// What redis-cli prints, errors too.
    pub fn try_cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.path("socket")).args(args);
        // An empty password would be sent, too, and be refused.
        if !self.password.is_empty() {
            command.env("REDISCLI_AUTH", &self.password);
        }
        let output = command.output().expect("run redis-cli");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// What redis-cli prints; an error fails the test.
    pub fn cli(&self, args: &[&str]) -> String {
        let answer = self.try_cli(args);
        let error = ["ERR", "WRONG", "NOAUTH", "NOPERM", "OOM", "MISCONF"];
        assert!(!error.iter().any(|code| answer.starts_with(code)), "{args:?}: {answer}");
        answer
    }

    /// Puts `count` jobs into a list, whose payload is `before`, a number and `after`.
    pub fn push(&self, key: &str, count: u32, before: &str, after: &str) {
        const SCRIPT: &str =
            "for i=1,ARGV[1] do redis.call('LPUSH', KEYS[1], ARGV[2]..(i+ARGV[4])..ARGV[3]) end";
        let mut done = 0;
        while done < count {
            let some = (count - done).min(100_000);
            self.cli(&["EVAL", SCRIPT, "1", key, &some.to_string(), before, after, &done.to_string()]);
            done += some;
        }
    }

    /// How often each command was called since `CONFIG RESETSTAT`, but for those that ask.
    pub fn calls(&self) -> std::collections::BTreeMap<String, u64> {
        let stats = self.cli(&["INFO", "commandstats"]);
        let line = |line: &str| {
            let (name, rest) = line.trim().strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let asks = name == "info" || name.starts_with("config");
            (!asks).then(|| Some((name.to_owned(), rest.split(',').next()?.parse().ok()?)))?
        };
        stats.lines().filter_map(line).collect()
    }

    /// Runs a piece of Python that has the queue libraries; fails the test if it fails.
    pub fn python(&self, script: &str, args: &[&str]) {
        let output = Command::new("python3")
            .args(["-c", script])
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PYTHONPATH", servers_directory().join("python"))
            .env("REDIS_URL", self.url(0))
            .current_dir(self.directory.path())
            .output()
            .expect("run python3");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
