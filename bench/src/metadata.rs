//! `finesse-bench metadata`.

use std::path::PathBuf;

use clap::Args;
use finesse_bench::{Shape, median};
use rustix::process::Pid;
use serde_json::{Value, json};

use crate::bindfs::Bindfs;
use crate::daemon::{self, Daemon, Road};
use crate::place::{Need, Place};
use crate::{Outcome, machine, screen, tree};

/// Time calls on names, by one thread and by several at once, on all roads, and the processor time that they take.
///
/// The calls: lstat(2) of files and of names that do not exist; open and close; open, read 4 KiB and close; rename; a listing of
/// a directory; create, write 4 KiB and close; unlink. Each is made by an unmodified program of so many threads, all in
/// one directory ("shared") or each in its own ("private"); the time is what one thread waits for one call, the
/// processor time is that of the program and the daemon together, for one call. Every round makes a tree and
/// starts a daemon for each road; the order of the roads changes from round to round. bindfs is compared with if it is
/// installed. The daemon, and bindfs, let the kernel cache everything.
#[derive(Debug, Args)]
pub(crate) struct Metadata {
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2,8", value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: Vec<u64>,
    /// Calls of all threads together; a hundredth of that for listings.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    calls: u64,
    /// Files in each directory.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(64..=1_000_000))]
    files: u64,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The directory to make the trees in, or "tmpfs" for a private one (root only).
    #[arg(long, value_name = "DIR", default_value = crate::place::TMPFS)]
    backing: PathBuf,
    /// Also write everything to this file, for machines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The operations, as `finesse-bench-calls` knows them, in an order in which the last removes what the last but one makes.
const OPS: [(&str, &str); 8] = [
    ("stat", "stat"),
    ("absent", "stat, ENOENT"),
    ("open", "open, close"),
    ("read", "open, read 4 KiB, close"),
    ("rename", "rename"),
    ("list", "list the directory"),
    ("create", "create, write 4 KiB, close"),
    ("remove", "unlink"),
];
/// In each file, in bytes.
const SIZE: u64 = 4096;

/// A file system, and how a program gets there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Finesse(Road),
    Bindfs,
}

impl Way {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Finesse(Road::Native)];
        if Bindfs::is_installed() {
            all.push(Self::Bindfs);
        } else {
            screen::say("bindfs is not installed, and not compared with");
        }
        all.extend([Road::Kernel, Road::Bypass].map(Self::Finesse));
        all
    }

    fn name(self) -> &'static str {
        match self {
            Self::Finesse(road) => road.name(),
            Self::Bindfs => "bindfs",
        }
    }
}

/// What is mounted; it ends on drop.
enum Mounted {
    Nothing,
    Finesse(Daemon),
    Bindfs(Bindfs),
}

impl Mounted {
    fn new(way: Way, place: &Place) -> Outcome<Self> {
        let (source, mountpoint) = (place.backing(), place.mountpoint());
        Ok(match way {
            Way::Finesse(Road::Native) => Self::Nothing,
            Way::Finesse(_) => Self::Finesse(Daemon::start(&source, &mountpoint)?),
            Way::Bindfs => Self::Bindfs(Bindfs::start(&source, &mountpoint, Bindfs::LONG)?),
        })
    }

    fn pid(&self) -> Option<Pid> {
        match self {
            Self::Nothing => None,
            Self::Finesse(daemon) => daemon.pid(),
            Self::Bindfs(bindfs) => bindfs.pid(),
        }
    }

    fn stop(self) -> Outcome {
        match self {
            Self::Finesse(daemon) => daemon.stop(),
            Self::Nothing | Self::Bindfs(_) => Ok(()),
        }
    }
}

/// What was measured of one kind of call, in nanoseconds for each.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    /// What a thread waits.
    time: f64,
    /// Processor time of program and daemon.
    cpu: f64,
}

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    /// Index of [`OPS`].
    op: usize,
    threads: u64,
    shared: bool,
}

impl Kind {
    fn title(self) -> String {
        let place = match (self.threads, self.shared) {
            (1, _) => "",
            (_, true) => ", shared",
            (_, false) => ", private",
        };
        format!("{}{place}", OPS[self.op].1)
    }
}

#[derive(Debug, Default)]
struct Costs(Vec<(Kind, Way, Cost)>);

impl Costs {
    /// The medians of all rounds.
    fn of(&self, kind: Kind, way: Way) -> Option<Cost> {
        let all = || self.0.iter().filter(|(k, w, _)| (*k, *w) == (kind, way)).map(|(_, _, cost)| *cost);
        let median_of = |part: fn(Cost) -> f64| median(&all().map(part).collect::<Vec<_>>());
        all().next().map(|_| Cost { time: median_of(|cost| cost.time), cpu: median_of(|cost| cost.cpu) })
    }

    fn to_text(&self, kinds: &[Kind], ways: &[Way]) -> String {
        let table = |part: fn(Cost) -> f64, of: &str| {
            let mut head = vec![of, "threads"];
            head.extend(ways.iter().map(|way| way.name()));
            let rows: Vec<Vec<String>> = kinds
                .iter()
                .map(|kind| {
                    let native = self.of(*kind, ways[0]).map(part);
                    let cells = ways.iter().map(|way| match (self.of(*kind, *way).map(part), native) {
                        (Some(cost), Some(native)) if *way != ways[0] && native > 0.0 => {
                            format!("{:.2} ({:.2} ×)", cost / 1000.0, cost / native)
                        }
                        (Some(cost), _) => format!("{:.2}", cost / 1000.0),
                        (None, _) => String::new(),
                    });
                    [kind.title(), kind.threads.to_string()].into_iter().chain(cells).collect()
                })
                .collect();
            screen::table(&head, &rows)
        };
        format!(
            "{}\n{}",
            table(|cost| cost.time, "µs for one call"),
            table(|cost| cost.cpu, "processor µs for one call")
        )
    }

    fn to_json(&self, kinds: &[Kind], ways: &[Way]) -> Value {
        let of = |kind: &Kind| {
            let ways: serde_json::Map<_, _> = ways
                .iter()
                .filter_map(|way| Some((way.name().to_owned(), self.of(*kind, *way)?)))
                .map(|(name, cost)| (name, json!({ "time_ns": cost.time, "cpu_ns": cost.cpu })))
                .collect();
            json!({ "op": OPS[kind.op].1, "threads": kind.threads, "shared": kind.shared, "roads": ways })
        };
        Value::Array(kinds.iter().map(of).collect())
    }
}

impl Metadata {
    /// Runs the benchmark.
    pub(crate) fn run(self) -> Outcome {
        let dirs = self.threads.iter().copied().max().unwrap_or(1);
        let shape = Shape { dirs, files: dirs * self.files };
        let need = Need { inodes: shape.files + dirs + 2 * self.calls, size: SIZE };
        let place = Place::new(&self.backing, need)?;
        let ways = Way::all();
        screen::say(machine::line());
        let kinds: Vec<Kind> = self
            .threads
            .iter()
            .flat_map(|threads| [false, true].map(|shared| (*threads, shared)))
            .filter(|(threads, shared)| *threads > 1 || *shared)
            .flat_map(|(threads, shared)| (0..OPS.len()).map(move |op| Kind { op, threads, shared }))
            .collect();
        let bar = screen::bar("calls", u64::from(self.rounds) * (kinds.len() * ways.len()) as u64);
        let mut costs = Costs::default();
        for round in 0..self.rounds {
            for turn in 0..ways.len() {
                let way = ways[(turn + round as usize) % ways.len()];
                // A tree of its own: a file system may believe for ever what it has seen.
                let name = format!("{}-{round}", way.name());
                let root = place.backing().join(&name);
                std::fs::create_dir(&root).map_err(|error| format!("{}: {error}", root.display()))?;
                tree::make(&root, shape, SIZE, &indicatif::ProgressBar::hidden())?;
                let mounted = Mounted::new(way, &place)?;
                for kind in &kinds {
                    costs.0.push((*kind, way, self.measure(&place, &name, way, &mounted, *kind)?));
                    bar.inc(1);
                }
                mounted.stop()?;
                tree::remove(&root, shape)?;
            }
        }
        bar.finish_and_clear();
        print!("{}", costs.to_text(&kinds, &ways));
        let Some(file) = &self.json else { return Ok(()) };
        let report = json!({
            "benchmark": "metadata",
            "machine": machine::describe(),
            "options": {
                "calls": self.calls,
                "files": self.files,
                "rounds": self.rounds,
                "backing": self.backing.to_string_lossy(),
                "tmpfs": place.is_tmpfs(),
            },
            "results": costs.to_json(&kinds, &ways),
        });
        std::fs::write(file, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", file.display()))
    }

    fn measure(&self, place: &Place, tree: &str, way: Way, mounted: &Mounted, kind: Kind) -> Outcome<Cost> {
        let (op, _) = OPS[kind.op];
        let (road, root) = match way {
            Way::Finesse(Road::Native) => (Road::Native, place.backing()),
            Way::Finesse(road) => (road, place.mountpoint()),
            Way::Bindfs => (Road::Kernel, place.mountpoint()),
        };
        let of_each = (self.calls / if op == "list" { 100 } else { 1 }).div_ceil(kind.threads);
        let mut command = daemon::command(road, &daemon::program("finesse-bench-calls")?)?;
        command.args(["threads", op]).arg(root.join(tree));
        command.args([self.files.to_string(), of_each.to_string()]);
        command.args([if kind.shared { "shared" } else { "private" }, &kind.threads.to_string()]);
        let before = processor_time(mounted.pid())?;
        let mut took = None;
        daemon::run(command, |line| {
            let mut words = line.strip_prefix("took ").unwrap_or("").split(' ').map(str::parse::<f64>);
            if let (Some(Ok(elapsed)), Some(Ok(cpu))) = (words.next(), words.next()) {
                took = Some((elapsed, cpu));
            }
        })?;
        let (elapsed, cpu) = took.ok_or_else(|| format!("{op}: the program did not say how long it took"))?;
        let served = processor_time(mounted.pid())?.saturating_sub(before) as f64;
        Ok(Cost { time: elapsed / of_each as f64, cpu: (cpu + served) / (of_each * kind.threads) as f64 })
    }
}

/// Processor time of all threads of a process so far, in nanoseconds (`/proc/PID/task/*/schedstat`); 0 of none.
fn processor_time(pid: Option<Pid>) -> Outcome<u64> {
    let Some(pid) = pid else { return Ok(0) };
    let path = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
    // A thread that has just ended is gone.
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("schedstat")).ok();
    let times = tasks.flatten().filter_map(of_task);
    Ok(times.filter_map(|times| times.split(' ').next()?.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_shown_beside_the_native_ones() {
        let kind = Kind { op: 0, threads: 2, shared: false };
        let (native, bypass) = (Way::Finesse(Road::Native), Way::Finesse(Road::Bypass));
        let cost = |time| Cost { time, cpu: 2.0 * time };
        let costs = Costs(vec![
            (kind, native, cost(1000.0)),
            (kind, native, cost(9000.0)),
            (kind, native, cost(2000.0)),
            (kind, bypass, cost(500.0)),
        ]);
        let text = costs.to_text(&[kind], &[native, bypass]);
        let words: Vec<_> = text.split_whitespace().collect();
        for expected in [["2.00", "0.50", "(0.25"], ["4.00", "1.00", "(0.25"]] {
            assert!(words.windows(3).any(|window| window == expected), "{text}");
        }
        assert!(text.contains("stat, private"), "{text}");
        let json = costs.to_json(&[kind], &[native, Way::Bindfs]);
        assert_eq!(json[0]["roads"], json!({ "native": { "time_ns": 2000.0, "cpu_ns": 4000.0 } }));
    }

    #[test]
    fn the_processor_time_of_a_process_grows_with_its_work() {
        let ours = || processor_time(Some(rustix::process::getpid())).unwrap();
        let before = ours();
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(50) {}
        assert!(ours() > before);
        assert_eq!(processor_time(None), Ok(0));
    }
}
