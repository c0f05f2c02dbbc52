//! What Finesse costs where it has nothing to do.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use finesse_bench::{Shape, as_nanos, median};
use rustix::process::Pid;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::daemon::{self, Road};
use crate::place::{Need, Place, TMPFS};
use crate::ways::{Way, in_turns, processor_time};
use crate::{Outcome, screen, tree};

pub(in crate::suite) const ABOUT: &str = "\
Starting: a program is started and waited for, many times in turns with the others; the median. \"native\" is true(1) without the library, \
\"connecting\" is with FINESSE_CONNECT_AFTER=0. \
Idle: some clients have looked at the mount and do nothing more; two seconds later the context switches and the processor time of all threads \
of the daemon, and of the clients, are counted for a while.";

pub(in crate::suite) const WAYS: [Way; 4] = [Way::BYPASS, Way::TABLE, Way::URING, Way::DEFERRED];

/// What is started, as it is called in the report.
pub(in crate::suite) const STARTS: [&str; 5] = [
    "native",
    "true, preloaded, not on the mount",
    "test -e, native",
    "test -e on the mount, preloaded",
    "test -e on the mount, preloaded, connecting",
];
pub(in crate::suite) const START: &str = "a program's start and end";
pub(in crate::suite) const SWITCHES: [&str; 2] =
    ["context switches of the daemon", "context switches of the clients"];
pub(in crate::suite) const TIMES: [&str; 2] =
    ["processor time of the daemon", "processor time of the clients"];
const CLIENTS: usize = 4;
/// What is left to do after the last call is done by then.
const SETTLED: Duration = Duration::from_secs(2);

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    // Where the files lie makes no difference.
    let backing = context.backings.first().map_or(Path::new(TMPFS), |backing| backing);
    let shape = Shape { dirs: 1, files: 1 };
    let place = Place::new(backing, Need { inodes: 16, size: 0 })?;
    tree::make(&place.backing(), shape, 0, &indicatif::ProgressBar::hidden())?;
    let among = context.ways(Part::Rest);
    for (round, way) in in_turns(context.rounds, &among) {
        let mounted = context.ways.mount(way, &place)?;
        if way == Way::BYPASS {
            start_programs(context, &place, round, cases)?;
        }
        idle(context, &place, way, round, mounted.pid(), cases)?;
        mounted.stop()?;
    }
    Ok(())
}

fn start_programs(context: &Context, place: &Place, round: u32, cases: &mut Cases) -> Outcome {
    let file = "d000000/f00000000";
    let (on_mount, native) = (place.mountpoint().join(file), place.backing().join(file));
    let preloaded = preloaded_environment()?;
    let command = |index: usize| {
        let mut command = match index {
            0 | 1 => Command::new("/bin/true"),
            _ => Command::new("/usr/bin/test"),
        };
        match index {
            2 => drop(command.arg("-e").arg(&native)),
            3 | 4 => drop(command.arg("-e").arg(&on_mount)),
            _ => {}
        }
        if matches!(index, 1 | 3 | 4) {
            command.envs(preloaded.iter().cloned());
        }
        match index {
            4 => command.env(daemon::CONNECT_AFTER, "0"),
            _ => command.env_remove(daemon::CONNECT_AFTER),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut times: [Vec<f64>; STARTS.len()] = Default::default();
    for _ in 0..context.sizes.starts {
        screen::go_on()?;
        for (index, times) in times.iter_mut().enumerate() {
            let mut command = command(index);
            let start = Instant::now();
            let status = command.status().map_err(|error| format!("{}: {error}", STARTS[index]))?;
            times.push(as_nanos(start.elapsed()) as f64);
            if !status.success() {
                return Err(format!("{}: {status}", STARTS[index]));
            }
        }
    }
    for (name, times) in STARTS.iter().zip(&times) {
        cases.add(Case::new("starting", START, Unit::Nanoseconds), name, Sample::of(round, median(times)));
    }
    Ok(())
}

/// What `finesse run` sets.
fn preloaded_environment() -> Outcome<Vec<(String, String)>> {
    let mut variables = Vec::new();
    daemon::run(daemon::command(Road::Bypass, Path::new("env"))?, |line| {
        let variable =
            line.split_once('=').filter(|(key, _)| *key == "LD_PRELOAD" || key.starts_with("FINESSE_"));
        variables.extend(variable.map(|(key, value)| (key.to_owned(), value.to_owned())));
    })?;
    if variables.iter().any(|(key, _)| key == "LD_PRELOAD") {
        Ok(variables)
    } else {
        Err("finesse run preloads nothing".to_owned())
    }
}

/// A client that has looked at the mount and does nothing more. It ends on drop.
struct Idle(Child);

impl Idle {
    fn start(mountpoint: &Path) -> Outcome<Self> {
        let mut command = daemon::calls(Road::Bypass)?;
        let child = command.arg("idle").arg(mountpoint).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut idle = Self(child.map_err(|error| format!("finesse run: {error}"))?);
        let mut line = String::new();
        if let Some(stdout) = idle.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| error.to_string())?;
        }
        if line == "ready\n" { Ok(idle) } else { Err("a client did not get ready".to_owned()) }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn idle(
    context: &Context,
    place: &Place,
    way: Way,
    round: u32,
    daemon: Option<Pid>,
    cases: &mut Cases,
) -> Outcome {
    let clients = (0..CLIENTS).map(|_| Idle::start(&place.mountpoint())).collect::<Outcome<Vec<_>>>()?;
    let clients: Vec<_> = clients.iter().filter_map(Idle::pid).zip(&clients).collect();
    let pids = [daemon.into_iter().collect(), clients.iter().map(|(pid, _)| *pid).collect::<Vec<_>>()];
    let count = |pids: &Vec<Pid>| -> Outcome<(u64, u64)> {
        let mut sum = (0, 0);
        for pid in pids {
            sum.0 += context_switches(*pid)?;
            sum.1 += processor_time(Some(*pid))?;
        }
        Ok(sum)
    };
    pause(SETTLED)?;
    let before = [count(&pids[0])?, count(&pids[1])?];
    pause(Duration::from_millis(context.sizes.idle_ms))?;
    let group = format!("idle for {} s", context.sizes.idle_ms as f64 / 1000.0);
    for (side, before) in before.into_iter().enumerate() {
        let after = count(&pids[side])?;
        let mut add = |name: &str, unit, value: u64| {
            cases.add(Case::new(&group, name, unit), way.name, Sample::of(round, value as f64));
        };
        add(SWITCHES[side], Unit::Count, after.0 - before.0);
        add(TIMES[side], Unit::Nanoseconds, after.1 - before.1);
    }
    Ok(())
}

fn pause(duration: Duration) -> Outcome {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        screen::go_on()?;
        std::thread::sleep(Duration::from_millis(20).min(duration));
    }
    Ok(())
}

/// How often a process's threads have been given a CPU, in all (`/proc/PID/task/*/status`).
fn context_switches(pid: Pid) -> Outcome<u64> {
    let path = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).ok();
    let of_line = |line: &str| -> Option<u64> {
        let (key, value) = line.split_once(':')?;
        key.ends_with("voluntary_ctxt_switches").then(|| value.trim().parse().ok())?
    };
    Ok(tasks.flatten().filter_map(of_task).map(|text| text.lines().filter_map(of_line).sum::<u64>()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_and_wakes_is_seen() {
        let ours = || context_switches(rustix::process::getpid()).unwrap();
        let before = ours();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(ours() >= before + 5);
    }
}
