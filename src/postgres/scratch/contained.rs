//! How far a throw-away container contains what runs in it, as the kernel says inside of it.
//!
//! An engine is asked for all of it and may give less: without seccomp, or where the control groups are somebody else's, it
//! warns or says nothing, and starts the container.

use super::image::ASK_BOUND;
use crate::container;
use crate::process;
use crate::sandbox::{Containment, Limits, Ring};

/// Says what the kernel holds of the first process, what the network is, how the root is mounted, and the bounds of the
/// control group, of either version.
const ASK: &str = r#"while read -r line; do echo "status $line"; done < /proc/1/status
while read -r name _; do echo "route $name"; done < /proc/net/route
[ ! -r /proc/net/if_inet6 ] || while read -r _ _ _ _ _ name; do echo "route $name"; done < /proc/net/if_inet6
while read -r _ at _ options _; do [ "$at" != / ] || echo "root $options"; done < /proc/mounts
at=
while IFS=: read -r number _ path; do [ "$number" != 0 ] || at=$path; done < /proc/1/cgroup
for of in memory pids; do
    for file in $of.max $of/$of.limit_in_bytes $of/$of.max ${at#/}/$of.max; do
        [ ! -r /sys/fs/cgroup/$file ] || { read -r bound < /sys/fs/cgroup/$file; echo "$of $bound"; }
    done
done"#;

/// What the engine was asked for: every ring.
pub(super) fn asked_for() -> Containment {
    Containment {
        processes: Ring::Held,
        network: Ring::Held,
        files: Ring::Held,
        user: Ring::Held,
        kernel: Ring::Held,
        has_control_group: true,
    }
}

/// Asks inside of the container; `words` start a program there.
pub(super) async fn ask(words: &[String], limits: &Limits) -> Containment {
    let mut command = container::command(words);
    command.args(["sh", "-c", ASK]);
    match process::run("the container", command, ASK_BOUND).await {
        Ok((exit, said)) if exit.status.success() => judge(&said, limits),
        Ok((exit, _)) => unknown(&exit.describe()),
        Err(error) => unknown(&error.to_string()),
    }
}

/// Of a container that does not answer nobody knows anything.
fn unknown(why: &str) -> Containment {
    let network = Ring::Open(format!("nobody knows how far the container holds (asking in it: {why})"));
    Containment { network, has_control_group: false, ..asked_for() }
}

fn judge(said: &str, limits: &Limits) -> Containment {
    let lines = || said.lines().filter_map(|line| line.split_once(' '));
    let of = |topic: &'static str| lines().filter(move |(of, _)| *of == topic).map(|(_, what)| what.trim());
    let status = |key: &str| {
        let value =
            |line: &'_ str| Some(line.split_once(':').filter(|(k, _)| *k == key)?.1.trim().to_owned());
        of("status").find_map(value).unwrap_or_default()
    };
    let is_empty = |key: &str| u128::from_str_radix(&status(key), 16) == Ok(0);
    let is_bound = |topic, most: u64| of(topic).any(|bound| bound.parse().is_ok_and(|n: u64| n <= most));

    // The header of one file, and the loopback interface of the other.
    let foreign: Vec<&str> = of("route").filter(|name| !matches!(*name, "Iface" | "lo")).collect();
    let was_read = of("route").any(|name| name == "Iface");
    let network = match foreign.first() {
        None if was_read => Ring::Held,
        None => Ring::Open("nobody knows whether the network can be reached (/proc/net/route)".into()),
        Some(_) => Ring::Open("the network can be reached (the container has one)".into()),
    };
    let files = match of("root").any(|options| options.split(',').next() == Some("ro")) {
        true => Ring::Held,
        false => Ring::Weak("the image's own files can be written".into()),
    };
    let uids = status("Uid");
    let is_ordinary = !uids.is_empty() && uids.split_whitespace().all(|uid| uid != "0");
    let has_nothing = ["CapPrm", "CapEff", "CapBnd"].iter().all(|key| is_empty(key));
    let user = match is_ordinary && has_nothing && status("NoNewPrivs") == "1" {
        true => Ring::Held,
        false => Ring::Weak("it has privileges, or may get some".into()),
    };
    let has_filter = status("Seccomp") == "2";
    let has_control_group = is_bound("memory", limits.memory) && is_bound("pids", limits.tasks);
    let lacking = [
        (!has_filter).then_some("every system call can be made (the engine has no seccomp profile)"),
        (!has_control_group).then_some("nothing bounds its memory or its processes (no control group)"),
    ];
    let lacking: Vec<&str> = lacking.into_iter().flatten().collect();
    let kernel = if lacking.is_empty() { Ring::Held } else { Ring::Weak(lacking.join("; ")) };
    Containment { network, files, user, kernel, has_control_group, ..asked_for() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Level;

    const LIMITS: Limits = Limits { memory: 1 << 30, tasks: 4096, free_space: 0 };

    const HELD: &str = "status Name:\tsh\nstatus Uid:\t65534\t65534\t65534\t65534\n\
        status CapPrm:\t0000000000000000\nstatus CapEff:\t0000000000000000\nstatus CapBnd:\t0000000000000000\n\
        status NoNewPrivs:\t1\nstatus Seccomp:\t2\nroute Iface\nroute lo\nroot ro,relatime\nmemory 1073741824\npids 4096\n";

    #[test]
    fn full_is_said_where_all_of_it_holds() {
        assert_eq!(judge(HELD, &LIMITS), asked_for());
        let lacks = |from: &str, to: &str, word: &str| {
            assert!(HELD.contains(from), "{from}");
            let found = judge(&HELD.replace(from, to), &LIMITS);
            assert_eq!(found.lacking().len(), 1, "{from}: {found}");
            assert!(found.to_string().contains(word), "{found}");
            found.level()
        };
        for (from, to, word) in [
            ("Seccomp:\t2", "Seccomp:\t0", "system call"),
            ("status Seccomp:\t2\n", "", "system call"),
            ("memory 1073741824\n", "memory max\n", "memory"),
            ("memory 1073741824", "memory 9223372036854771712", "memory"),
            ("pids 4096\n", "", "processes"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "privileges"),
            ("CapEff:\t0000000000000000", "CapEff:\t00000000a80425fb", "privileges"),
            ("Uid:\t65534\t65534", "Uid:\t65534\t0", "privileges"),
            ("root ro", "root rw", "files"),
        ] {
            assert_eq!(lacks(from, to, word), Level::Partly);
        }
        assert_eq!(lacks("route lo", "route lo\nroute eth0", "network"), Level::No);
        assert_eq!(lacks("route Iface\n", "", "network"), Level::No);
        assert_eq!((judge("", &LIMITS).level(), unknown("why").level()), (Level::No, Level::No));
    }
}
