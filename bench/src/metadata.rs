//! `finesse-bench metadata`.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use finesse_bench::{Shape, median};
use serde_json::{Value, json};

use crate::daemon;
use crate::place::{Need, Place};
use crate::ways::{Mounted, Way, Ways, in_turns};
use crate::{Outcome, machine, screen, tree};

/// Time calls on names, by one thread and by several at once, on all roads, and the processor time that they take.
///
/// The calls: lstat(2) of files, for the first time and again, and of names that do not exist; open and close, in a directory and
/// five levels deep; open, read 4 KiB and close; rename; a listing; create and close; create, write 4 KiB and close; unlink. Each is made
/// by an unmodified program of so many threads, all in one directory ("shared") or each in its own ("private"); the time is what one
/// thread waits for one call, the processor time is that of the program and the daemon together, for one call. Every round makes
/// a tree and starts a daemon for each road; the order of the roads changes from round to round. bindfs is compared with if it is
/// installed. The daemon, and bindfs, let the kernel cache everything.
#[derive(Debug, Args)]
pub(crate) struct Metadata {
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2,8", value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: Vec<u64>,
    /// Calls of all threads together; fewer where a call takes long.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000))]
    calls: u64,
    /// Files in each directory.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(64..=1_000_000))]
    files: u64,
    /// Files in each directory that is listed.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    listed: u64,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The directory to make the trees in, or "tmpfs" or "ext4" for a private one (root only).
    #[arg(long, value_name = "DIR", default_value = crate::place::TMPFS)]
    backing: PathBuf,
    /// Also write everything to this file, for machines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Numbers of threads.
    pub(crate) threads: Vec<u64>,
    /// Calls of all threads together.
    pub(crate) calls: u64,
    /// Files in each directory.
    pub(crate) files: u64,
    /// Files in each directory that is listed.
    pub(crate) listed: u64,
    /// How often everything is measured.
    pub(crate) rounds: u32,
}

/// An operation.
#[derive(Debug)]
struct Op {
    /// As `finesse-bench-calls` knows it.
    call: &'static str,
    title: &'static str,
    tree: Tree,
    /// FxMark's names for it, as RFUSE uses them: in private directories, in a shared one, on one file.
    fxmark: [Option<&'static str>; 3],
}

/// Which tree it is performed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    /// Files in directories.
    Flat,
    /// The same, of which nothing has been looked at since the file system was mounted.
    Cold,
    /// Files five levels deep, as FxMark has them.
    Deep,
    /// Many files, in directories that are listed.
    Listed,
}

const NONE: [Option<&str>; 3] = [None; 3];

/// In an order in which what is made is removed next.
const OPS: [Op; 12] = [
    Op { call: "cold", title: "stat, cold", tree: Tree::Cold, fxmark: NONE },
    Op { call: "stat", title: "stat, hot", tree: Tree::Flat, fxmark: NONE },
    Op { call: "absent", title: "stat, ENOENT", tree: Tree::Flat, fxmark: NONE },
    Op { call: "open", title: "open, close", tree: Tree::Flat, fxmark: NONE },
    Op {
        call: "open",
        title: "open, close, five levels deep",
        tree: Tree::Deep,
        fxmark: [Some("MRPL"), Some("MRPM"), Some("MRPH")],
    },
    Op { call: "read", title: "open, read 4 KiB, close", tree: Tree::Flat, fxmark: NONE },
    Op { call: "rename", title: "rename", tree: Tree::Flat, fxmark: NONE },
    Op {
        call: "list",
        title: "list the directory",
        tree: Tree::Listed,
        fxmark: [Some("MRDL"), Some("MRDM"), None],
    },
    Op { call: "make", title: "create, close", tree: Tree::Flat, fxmark: [Some("MWCL"), Some("MWCM"), None] },
    Op {
        call: "remove",
        title: "unlink, empty file",
        tree: Tree::Flat,
        fxmark: [Some("MWUL"), Some("MWUM"), None],
    },
    Op { call: "create", title: "create, write 4 KiB, close", tree: Tree::Flat, fxmark: NONE },
    Op { call: "remove", title: "unlink, 4 KiB", tree: Tree::Flat, fxmark: NONE },
];
/// In each file, in bytes.
const SIZE: u64 = 4096;
/// Where the deep tree begins below the tree's root, and how many files it has in a directory.
const DEEP: &str = "1/2/3";
const DEEP_FILES: u64 = 64;
/// Where the directories are that are listed, and how many there are at most: they are large.
const LISTED: &str = "listed";
const MOST_LISTED: u64 = 8;
/// Drops what the kernel has cached when something is written to it (`drop_caches_sysctl_handler`).
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// What was measured of one kind of call, in nanoseconds for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    /// What a thread waits.
    pub(crate) time: f64,
    /// Processor time of the program.
    pub(crate) program: f64,
    /// Processor time of the daemon.
    pub(crate) daemon: f64,
}

impl Cost {
    fn cpu(self) -> f64 {
        self.program + self.daemon
    }
}

/// In which directories threads are at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Private,
    Shared,
    Same,
}

/// One kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Index of [`OPS`].
    op: usize,
    /// Threads that make it.
    pub(crate) threads: u64,
    place: Where,
}

impl Kind {
    /// All that a plan asks for.
    fn all(plan: &Plan) -> Vec<Self> {
        let of = |threads: u64| {
            let places = [Where::Private, Where::Shared, Where::Same];
            let kinds = places
                .into_iter()
                .flat_map(move |place| (0..OPS.len()).map(move |op| Self { op, threads, place }));
            kinds.filter(move |kind| kind.makes_sense())
        };
        plan.threads.iter().flat_map(|threads| of(*threads)).collect()
    }

    fn makes_sense(&self) -> bool {
        let op = &OPS[self.op];
        match (op.tree, self.place) {
            // One thread is always alone, wherever it is.
            (_, place) if self.threads == 1 => place == Where::Shared,
            // What another thread has looked at is not cold.
            (Tree::Cold, place) => place == Where::Private,
            (Tree::Listed, Where::Private) => self.threads <= MOST_LISTED,
            (_, Where::Same) => op.fxmark[2].is_some(),
            _ => true,
        }
    }

    /// What it is.
    pub(crate) fn title(self) -> String {
        let place = match (self.threads, self.place) {
            (1, _) => "",
            (_, Where::Private) => ", private",
            (_, Where::Shared) => ", shared",
            (_, Where::Same) => ", one file",
        };
        format!("{}{place}", OPS[self.op].title)
    }

    /// FxMark's name for it.
    pub(crate) fn fxmark(self) -> Option<&'static str> {
        OPS[self.op].fxmark[self.place as usize]
    }
}

/// What was measured, by round.
#[derive(Debug, Default)]
pub(crate) struct Costs(pub(crate) Vec<(u32, Kind, Way, Cost)>);

impl Costs {
    /// The medians of all rounds.
    fn of(&self, kind: Kind, way: Way) -> Option<Cost> {
        let all = || self.0.iter().filter(|(_, k, w, _)| (*k, *w) == (kind, way)).map(|(.., cost)| *cost);
        let median_of = |part: fn(Cost) -> f64| median(&all().map(part).collect::<Vec<_>>());
        all().next().map(|_| Cost {
            time: median_of(|cost| cost.time),
            program: median_of(|cost| cost.program),
            daemon: median_of(|cost| cost.daemon),
        })
    }

    /// The kinds, in the order of the tables.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for (_, kind, ..) in &self.0 {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        kinds
    }

    fn to_text(&self, ways: &[Way]) -> String {
        let kinds = self.kinds();
        let table = |part: fn(Cost) -> f64, of: &str| {
            let mut head = vec![of, "threads"];
            head.extend(ways.iter().map(|way| way.name));
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
            table(Cost::cpu, "processor µs for one call")
        )
    }

    fn to_json(&self, ways: &[Way]) -> Value {
        let of = |kind: &Kind| {
            let ways: serde_json::Map<_, _> = ways
                .iter()
                .filter_map(|way| Some((way.name.to_owned(), self.of(*kind, *way)?)))
                .map(|(name, cost)| (name, json!({ "time_ns": cost.time, "cpu_ns": cost.cpu() })))
                .collect();
            json!({
                "op": kind.title(),
                "fxmark": kind.fxmark(),
                "threads": kind.threads,
                "shared": kind.place != Where::Private,
                "roads": ways,
            })
        };
        Value::Array(self.kinds().iter().map(of).collect())
    }
}

impl Metadata {
    /// Runs the benchmark.
    pub(crate) fn run(self) -> Outcome {
        let plan = Plan {
            threads: self.threads,
            calls: self.calls,
            files: self.files,
            listed: self.listed,
            rounds: self.rounds,
        };
        let place = Place::new(&self.backing, plan.need())?;
        let ways = Ways::probe()?;
        for (way, why) in &ways.left_out {
            screen::say(format!("without {}: {why}", way.name));
        }
        screen::say(machine::line());
        let among = ways.among(&[Way::NATIVE, Way::BINDFS, Way::KERNEL, Way::BYPASS, Way::TABLE]);
        let costs =
            plan.measure(&place, &ways, &among, |what, why| screen::say(format!("without {what}: {why}")))?;
        print!("{}", costs.to_text(&among));
        let Some(file) = &self.json else { return Ok(()) };
        let report = json!({
            "benchmark": "metadata",
            "machine": machine::describe(),
            "options": {
                "calls": plan.calls,
                "files": plan.files,
                "listed": plan.listed,
                "rounds": plan.rounds,
                "backing": self.backing.to_string_lossy(),
                "tmpfs": place.is_tmpfs(),
            },
            "results": costs.to_json(&among),
        });
        std::fs::write(file, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", file.display()))
    }
}

impl Plan {
    fn dirs(&self) -> u64 {
        self.threads.iter().copied().max().unwrap_or(1)
    }

    /// The trees, by where they begin below the root, with the size of their files.
    fn trees(&self) -> [(&'static str, Shape, u64); 3] {
        let shape = |dirs: u64, files: u64| Shape { dirs, files: dirs * files };
        [
            ("", shape(self.dirs(), self.files), SIZE),
            (DEEP, shape(self.dirs(), DEEP_FILES), SIZE),
            (LISTED, shape(self.dirs().min(MOST_LISTED), self.listed), 0),
        ]
    }

    /// What it needs.
    pub(crate) fn need(&self) -> Need {
        let trees: u64 = self.trees().iter().map(|(_, shape, _)| shape.files + shape.dirs + 8).sum();
        Need { inodes: trees + 2 * self.calls, size: SIZE }
    }

    /// Measures everything that can be; `leave_out` hears of what cannot, and why.
    pub(crate) fn measure(
        &self,
        place: &Place,
        ways: &Ways,
        among: &[Way],
        mut leave_out: impl FnMut(&str, &str),
    ) -> Outcome<Costs> {
        let mut kinds = Kind::all(self);
        if let Err(why) = drop_caches() {
            leave_out("cold calls", &why);
            kinds.retain(|kind| OPS[kind.op].tree != Tree::Cold);
        }
        let bar = screen::bar("calls", u64::from(self.rounds) * (kinds.len() * among.len()) as u64);
        let mut costs = Costs::default();
        for (round, way) in in_turns(self.rounds, among) {
            // A tree of its own: a file system may believe for ever what it has seen.
            let name = format!("{}-{round}", way.name.replace(", ", "-"));
            let root = place.backing().join(&name);
            for (below, shape, size) in self.trees() {
                let root = root.join(below);
                std::fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
                tree::make(&root, shape, size, &indicatif::ProgressBar::hidden())?;
            }
            let mut mounted = ways.mount(way, place)?;
            for kind in &kinds {
                if OPS[kind.op].tree == Tree::Cold {
                    mounted.stop()?;
                    drop_caches()?;
                    mounted = ways.mount(way, place)?;
                }
                match self.measure_one(&way.root(place).join(&name), way, &mounted, *kind) {
                    Ok(cost) => costs.0.push((round, *kind, way, cost)),
                    // It closes files late, and has no room for more then.
                    Err(why) if way == Way::BINDFS => {
                        screen::go_on()?;
                        // What the program said.
                        let why = why.rsplit_once(": ").map_or(&*why, |(_, why)| why);
                        leave_out(&format!("{}: {} @{}", way.name, kind.title(), kind.threads), why);
                    }
                    Err(why) => return Err(why),
                }
                bar.inc(1);
            }
            mounted.stop()?;
            std::fs::remove_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        }
        bar.finish_and_clear();
        Ok(costs)
    }

    fn measure_one(&self, root: &Path, way: Way, mounted: &Mounted, kind: Kind) -> Outcome<Cost> {
        let op = &OPS[kind.op];
        let of_each = |calls: u64| calls.div_ceil(kind.threads);
        let (root, files, of_each) = match op.tree {
            // There and back.
            Tree::Flat => (root.to_owned(), self.files, of_each(self.calls).next_multiple_of(2)),
            Tree::Cold => (root.to_owned(), self.files, of_each(self.calls).min(self.files)),
            Tree::Deep => (root.join(DEEP), DEEP_FILES, of_each(self.calls)),
            // Of as many names in all.
            Tree::Listed => (root.join(LISTED), self.listed, of_each((4 * self.calls).div_ceil(self.listed))),
        };
        let place = match kind.place {
            Where::Private => "private",
            Where::Shared => "shared",
            Where::Same => "same",
        };
        let mut command = daemon::calls(way.road)?;
        command.args(["threads", op.call]).arg(root);
        command.args([&files.to_string(), &of_each.to_string(), place, &kind.threads.to_string()]);
        time(command, mounted, of_each, kind.threads)
    }
}

/// Runs a program that says how long its calls `took`: so many in each of so many threads or processes.
pub(crate) fn time(command: Command, mounted: &Mounted, of_each: u64, threads: u64) -> Outcome<Cost> {
    time_watched(command, mounted, of_each, threads, || ())
}

/// The same, and calls `ready` when the program says that it is about to begin.
pub(crate) fn time_watched(
    command: Command,
    mounted: &Mounted,
    of_each: u64,
    threads: u64,
    mut ready: impl FnMut(),
) -> Outcome<Cost> {
    let what = format!("{command:?}");
    let before = mounted.processor_time()?;
    let mut took = None;
    daemon::run(command, |line| {
        if line == "ready" {
            ready();
        }
        let mut words = line.strip_prefix("took ").unwrap_or("").split(' ').map(str::parse::<f64>);
        if let (Some(Ok(elapsed)), Some(Ok(cpu))) = (words.next(), words.next()) {
            took = Some((elapsed, cpu));
        }
    })?;
    let (elapsed, cpu) = took.ok_or_else(|| format!("{what}: the program did not say how long it took"))?;
    let served = mounted.processor_time()?.saturating_sub(before) as f64;
    let calls = (of_each * threads) as f64;
    Ok(Cost { time: elapsed / of_each as f64, program: cpu / calls, daemon: served / calls })
}

/// Has the kernel drop names, attributes and contents that it need not keep, and writes back before what is on its way to
/// the disk.
pub(crate) fn drop_caches() -> Outcome {
    rustix::fs::sync();
    std::fs::write(DROP_CACHES, "3").map_err(|error| format!("{DROP_CACHES}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_shown_beside_the_native_ones() {
        let kind = Kind { op: 1, threads: 2, place: Where::Private };
        let cost = |time| Cost { time, program: time, daemon: time };
        let costs = Costs(vec![
            (0, kind, Way::NATIVE, cost(1000.0)),
            (1, kind, Way::NATIVE, cost(9000.0)),
            (2, kind, Way::NATIVE, cost(2000.0)),
            (0, kind, Way::BYPASS, cost(500.0)),
        ]);
        let text = costs.to_text(&[Way::NATIVE, Way::BYPASS]);
        let words: Vec<_> = text.split_whitespace().collect();
        for expected in [["2.00", "0.50", "(0.25"], ["4.00", "1.00", "(0.25"]] {
            assert!(words.windows(3).any(|window| window == expected), "{text}");
        }
        assert!(text.contains("stat, hot, private"), "{text}");
        let json = costs.to_json(&[Way::NATIVE, Way::BINDFS]);
        assert_eq!(json[0]["roads"], json!({ "native": { "time_ns": 2000.0, "cpu_ns": 4000.0 } }));
    }

    #[test]
    fn every_benchmark_of_fxmark_that_rfuse_runs_on_metadata_is_there() {
        let plan = Plan { threads: vec![2], calls: 1, files: 1, listed: 1, rounds: 1 };
        let mut names: Vec<_> = Kind::all(&plan).into_iter().filter_map(Kind::fxmark).collect();
        names.sort_unstable();
        assert_eq!(names, ["MRDL", "MRDM", "MRPH", "MRPL", "MRPM", "MWCL", "MWCM", "MWUL", "MWUM"]);
    }

    #[test]
    fn one_thread_is_measured_once() {
        let plan = Plan { threads: vec![1], calls: 1, files: 1, listed: 1, rounds: 1 };
        let titles: Vec<_> = Kind::all(&plan).into_iter().map(Kind::title).collect();
        assert_eq!(titles.len(), OPS.len(), "{titles:?}");
    }
}
