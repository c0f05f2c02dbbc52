//! `finesse-bench latency`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use clap::{Args, ValueEnum};
use finesse_bench::{Shape, Summary, clock_cost, median, nanos};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, Request};
use finesse_ipc::segment::Segment;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use crate::daemon::{self, Daemon, Road};
use crate::place::{Need, Place};
use crate::{Outcome, machine, screen, tree};

/// Time single calls, and an empty round trip beside a bare ping-pong of one cache line.
///
/// The ping-pong is two processes that spin on a word of shared memory each: what the machine allows. The empty
/// round trip goes through a real daemon. Rounds of both alternate. "Pinned" puts the caller on one CPU and the
/// other side on another; unpinned the scheduler decides.
#[derive(Debug, Args)]
pub(crate) struct Latency {
    /// Whether programs and daemon are tied to CPUs.
    #[arg(long, value_enum, default_value = "both", num_args = 0..=1, default_missing_value = "yes")]
    pin: Pin,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Round trips per round.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..))]
    calls: u32,
    /// The directory that is mounted.
    #[arg(long, value_name = "DIR")]
    backing: Option<PathBuf>,
    /// What programs on the bypass get when they open a file; by default what the mount does by default.
    #[arg(long, value_name = "always|large|never")]
    grant: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pin {
    Yes,
    No,
    Both,
}

/// A row of the report.
#[derive(Debug)]
struct Row {
    what: String,
    pinned: bool,
    rounds: Vec<Summary>,
}

const PING_PONG: &str = "cache-line ping-pong";
const ROUND_TRIP: &str = "empty round trip";
/// Files that single calls are timed on: each unlink needs one of its own.
const TREE: Shape = Shape { dirs: 8, files: 4000 };

/// Bytes in each of them.
const BLOCK: u64 = 4096;
/// What is timed of programs, and what it is called.
const OPERATIONS: [(&str, &str); 5] = [
    ("stat", "stat"),
    ("open", "open+close"),
    ("read", "open+read 4 KiB+close"),
    ("create", "create+write 4 KiB+close"),
    ("unlink", "unlink"),
];
/// How often each file is opened and read: what counts is not the first time.
const AGAIN: u64 = 3;

impl Row {
    fn p50(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.p50).collect::<Vec<_>>())
    }

    fn p99(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.p99).collect::<Vec<_>>())
    }
}

impl Latency {
    /// Runs the benchmark.
    pub(crate) fn run(self) -> Outcome {
        let modes: &[bool] = match self.pin {
            Pin::Yes => &[true],
            Pin::No => &[false],
            Pin::Both => &[true, false],
        };
        if modes.contains(&true) && machine::cpus() < 2 {
            return Err("--pin needs two CPUs; use --pin=no".to_owned());
        }
        let backing = self.backing.clone().unwrap_or_else(std::env::temp_dir);
        let need = Need { inodes: 3 * TREE.files, size: BLOCK };
        let place = Place::new(&backing, need)?;
        screen::say(machine::line());
        let mut rows = Vec::new();
        let cpus = Cpus::of_this_process()?;
        for pinned in modes {
            let sides = pinned.then_some(&cpus.sides);
            let outcome = self.mode(&place, sides, &mut rows);
            pin(None, &cpus.all)?;
            outcome?;
        }
        if self.json {
            let list: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "what": row.what,
                        "pinned": row.pinned,
                        "p50_ns": row.p50(),
                        "p99_ns": row.p99(),
                    })
                })
                .collect();
            let report = json!({
                "benchmark": "latency",
                "machine": machine::describe(),
                "options": { "rounds": self.rounds, "calls": self.calls, "grant": self.grant },
                "results": list,
                "round_trip_of_ping_pong": ratio(&rows, true),
                "round_trip_of_ping_pong_unpinned": ratio(&rows, false),
            });
            println!("{report:#}");
            return Ok(());
        }
        let cells = |row: &Row| {
            vec![
                row.what.clone(),
                (if row.pinned { "pinned" } else { "free" }).to_owned(),
                format!("{:.0}", row.p50()),
                format!("{:.0}", row.p99()),
            ]
        };
        let cells: Vec<_> = rows.iter().map(cells).collect();
        print!("{}", screen::table(&["nanoseconds", "CPUs", "p50", "p99"], &cells));
        for (pinned, name) in [(true, "pinned"), (false, "free")] {
            if let Some(ratio) = ratio(&rows, pinned) {
                println!("{name}: an empty round trip costs {ratio:.2} × the bare ping-pong");
            }
        }
        Ok(())
    }

    fn mode(&self, place: &Place, sides: Option<&[CpuSet; 2]>, rows: &mut Vec<Row>) -> Outcome {
        let (backing, pinned) = (place.backing(), sides.is_some());
        let bar = screen::bar(if pinned { "pinned" } else { "free" }, u64::from(self.rounds) * 2);
        let grant = self.grant.as_ref().map(|grant| format!("grant={grant}"));
        let options: Vec<&str> = grant.as_deref().into_iter().collect();
        let daemon = Daemon::start_as(&backing, &place.mountpoint(), &options)?;
        let (mut bare, mut whole) = (Vec::new(), Vec::new());
        let clock = clock_cost();
        {
            let client = Client::connect(daemon.socket(), "finesse-bench", 3)
                .map_err(|error| format!("cannot connect to the daemon: {error}"))?;
            let pong = Pong::start()?;
            if let Some([ours, theirs]) = sides {
                pin(None, ours)?;
                pin(Some(pong.pid()?), theirs)?;
                pin_daemon(&daemon, theirs)?;
            }
            for _ in 0..self.rounds {
                screen::go_on()?;
                bare.push(samples(self.calls, clock, || pong.ping())?);
                whole.push(samples(self.calls, clock, || {
                    client.call(Op::Noop, &Request::default(), b"", b"").map(drop).map_err(|reason| {
                        format!("an empty round trip was left to the kernel: {}", reason.name())
                    })
                })?);
                bar.inc(1);
            }
        }
        rows.push(Row { what: PING_PONG.to_owned(), pinned, rounds: bare });
        rows.push(Row { what: ROUND_TRIP.to_owned(), pinned, rounds: whole });
        daemon.report_at_rest()?;
        let first = rows.len();
        for (_, what) in OPERATIONS {
            for road in Road::ALL {
                let what = format!("{what}, {}", road.name());
                rows.push(Row { what, pinned, rounds: Vec::new() });
            }
        }
        for round in 0..self.rounds {
            let mut row = first;
            for (op, _) in OPERATIONS {
                let calls = TREE.files * if matches!(op, "open" | "read") { AGAIN } else { 1 };
                for road in Road::ALL {
                    screen::go_on()?;
                    // A tree of its own for each: the daemon may believe for ever what it has seen.
                    let name =
                        format!("{op}-{}-{round}-{}", road.name(), if pinned { "pinned" } else { "free" });
                    let tree = backing.join(&name);
                    std::fs::create_dir(&tree).map_err(|error| format!("{}: {error}", tree.display()))?;
                    tree::make(&tree, TREE, BLOCK, &indicatif::ProgressBar::hidden())?;
                    if let Some([_, theirs]) = sides {
                        pin_daemon(&daemon, theirs)?;
                    }
                    let root = if road == Road::Native { &backing } else { &place.mountpoint() };
                    rows[row].rounds.push(each(road, &root.join(&name), op, TREE, calls)?);
                    daemon.report_at_rest()?;
                    tree::remove(&tree, TREE)?;
                    std::fs::remove_dir(&tree).map_err(|error| format!("{}: {error}", tree.display()))?;
                    row += 1;
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        daemon.stop()
    }
}

/// Calls that come before those that are timed: the first find everybody asleep.
pub(crate) const WARM_UP: u32 = 100;

/// Times so many calls; `clock` is what reading the clock costs.
pub(crate) fn samples(calls: u32, clock: u64, mut call: impl FnMut() -> Outcome) -> Outcome<Summary> {
    let mut samples = Vec::with_capacity(calls as usize);
    for _ in 0..WARM_UP {
        call()?;
    }
    for _ in 0..calls {
        let mut outcome = Ok(());
        samples.push(nanos(|| outcome = call()));
        outcome?;
    }
    Ok(Summary::of(&mut samples, clock))
}

/// Times one kind of call by an unmodified program, which inherits our CPUs: so many calls on the files of a tree.
pub(crate) fn each(road: Road, root: &Path, op: &str, shape: Shape, calls: u64) -> Outcome<Summary> {
    let mut command = daemon::calls(road)?;
    command.args(["each", op]).arg(root);
    command.args([shape.dirs, shape.files, calls].map(|number| number.to_string()));
    let mut summary = None;
    daemon::run(command, |line| {
        let mut words = line.split(' ');
        let mut number = || words.next()?.parse::<f64>().ok();
        if line.starts_with("summary ") {
            let _ = number();
            summary = Some((number(), number()));
        }
    })?;
    match summary {
        Some((Some(p50), Some(p99))) => Ok(Summary { p50, p99 }),
        _ => Err(format!("{op}: the program did not say how long it took")),
    }
}

fn ratio(rows: &[Row], pinned: bool) -> Option<f64> {
    let p50 = |what: &str| rows.iter().find(|row| row.what == what && row.pinned == pinned).map(Row::p50);
    Some(p50(ROUND_TRIP)? / p50(PING_PONG)?.max(1.0))
}

/// The CPUs that this process may use.
#[derive(Debug)]
pub(crate) struct Cpus {
    pub(crate) all: CpuSet,
    /// One for the caller, another for the other side.
    pub(crate) sides: [CpuSet; 2],
}

impl Cpus {
    pub(crate) fn of_this_process() -> Outcome<Self> {
        let all = sched_getaffinity(None).map_err(|errno| format!("cannot read the CPUs: {errno}"))?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu));
        let sides = [(); 2].map(|()| {
            let mut side = CpuSet::new();
            usable.next().into_iter().for_each(|cpu| side.set(cpu));
            side
        });
        Ok(Self { all, sides })
    }
}

pub(crate) fn pin(pid: Option<Pid>, cpus: &CpuSet) -> Outcome {
    sched_setaffinity(pid, cpus).map_err(|errno| format!("cannot choose CPUs: {errno}"))
}

/// All threads of the daemon.
pub(crate) fn pin_daemon(daemon: &Daemon, cpus: &CpuSet) -> Outcome {
    let Some(pid) = daemon.pid() else { return Ok(()) };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| error.to_string())?;
    for task in tasks.flatten() {
        let id = task.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        // A thread that has just ended need not be pinned.
        let _ = id.map(|id| sched_setaffinity(Some(id), cpus));
    }
    Ok(())
}

/// A process that answers each ping in shared memory; ends on drop. The memory is a segment like a
/// client's.
pub(crate) struct Pong {
    segment: Segment,
    child: Child,
}

/// Turns of spinning after which the CPU is offered to somebody else: an answer takes some hundred at most, if
/// both sides run.
const TURNS: u32 = 10_000;

impl Pong {
    pub(crate) fn start() -> Outcome<Self> {
        let (segment, memory) = Segment::create().map_err(|errno| format!("shared memory: {errno}"))?;
        let executable = std::env::current_exe().map_err(|error| error.to_string())?;
        let child = Command::new(executable)
            .arg("pong")
            .stdin(Stdio::from(memory))
            .spawn()
            .map_err(|error| format!("finesse-bench pong: {error}"))?;
        Ok(Self { segment, child })
    }

    pub(crate) fn pid(&self) -> Outcome<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| "no process".to_owned())
    }

    pub(crate) fn ping(&self) -> Outcome {
        let words = Words::of(&self.segment);
        let turn = words.ping.load(Ordering::Relaxed).wrapping_add(1);
        words.ping.store(turn, Ordering::Release);
        match spin_until(&words, || words.pong.load(Ordering::Acquire) == turn) {
            true => Ok(()),
            false => screen::go_on(),
        }
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        Words::of(&self.segment).end.store(1, Ordering::Release);
        // It ends by itself.
        let _ = self.child.wait();
    }
}

/// The words of the ping-pong: three slots' state words, each in a cache line of its own.
struct Words<'s> {
    ping: &'s AtomicU32,
    pong: &'s AtomicU32,
    end: &'s AtomicU32,
}

impl<'s> Words<'s> {
    fn of(segment: &'s Segment) -> Self {
        let word = |slot| &segment.slot(slot).state;
        Self { ping: word(0), pong: word(1), end: word(2) }
    }
}

/// `false` when the other side has ended it, or the user wants to stop.
fn spin_until(words: &Words<'_>, condition: impl Fn() -> bool) -> bool {
    loop {
        for _ in 0..TURNS {
            if condition() {
                return true;
            }
            std::hint::spin_loop();
        }
        if words.end.load(Ordering::Acquire) != 0 || screen::go_on().is_err() {
            return false;
        }
        std::thread::yield_now();
    }
}

/// The other side of the ping-pong: shared memory is standard input.
pub(crate) fn pong() -> Outcome {
    let memory = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let segment = Segment::open(&memory).map_err(|errno| format!("standard input is no segment: {errno}"))?;
    let words = Words::of(&segment);
    let mut turn = 0;
    while spin_until(&words, || words.ping.load(Ordering::Acquire) != turn) {
        turn = words.ping.load(Ordering::Acquire);
        words.pong.store(turn, Ordering::Release);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_compares_medians_of_one_mode() {
        let row = |what: &str, pinned, p50: &[f64]| Row {
            what: what.to_owned(),
            pinned,
            rounds: p50.iter().map(|p50| Summary { p50: *p50, p99: 0.0 }).collect(),
        };
        let rows = [
            row(PING_PONG, true, &[100.0, 900.0, 100.0]),
            row(ROUND_TRIP, true, &[250.0]),
            row(ROUND_TRIP, false, &[1.0]),
        ];
        assert_eq!(ratio(&rows, true), Some(2.5));
        assert_eq!(ratio(&rows, false), None);
    }
}
