//! `finesse-bench unlink`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use finesse_bench::{Shape, median};
use finesse_ipc::frame::Op;
use serde_json::{Value, json};

use crate::daemon::{self, Daemon, Road};
use crate::place::{Need, Place, TMPFS};
use crate::ways::{self, Ways, in_turns};
use crate::{Outcome, machine, screen, tree};

/// Remove a large tree natively, through the kernel, and past it.
///
/// An unmodified program calls unlink(2) for every file of a tree that was made beforehand in the backing
/// directory. What is timed is the calls, from the first to the last; connecting to the daemon is inside. Every round
/// makes the tree anew and starts a new daemon; the order of the roads changes from round to round. The kernel
/// road is the same daemon at its best: everything may be cached, no bypass client is connected. "known" is the bypass after
/// an unmodified program has looked at every file, so that the kernel must be told of each that goes.
#[derive(Debug, Args)]
pub(crate) struct Unlink {
    /// Files in the tree.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=99_999_999))]
    files: u64,
    /// Directories they are spread over [default: one per 1000 files].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=999_999))]
    dirs: Option<u64>,
    /// Bytes in each file.
    #[arg(long, default_value_t = 4096)]
    size: u64,
    /// The directory to make the tree in, or "tmpfs" or "ext4" for a private one (root only).
    #[arg(long, value_name = "DIR", default_value = TMPFS)]
    backing: PathBuf,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// The roads to compare.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "native,kernel,bypass,known")]
    roads: Vec<Way>,
    /// Do not measure the daemon's memory per known inode afterwards.
    #[arg(long)]
    no_memory: bool,
    /// Also write everything to this file, for machines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How long files may take to go after their removal has been acknowledged.
const GONE: Duration = Duration::from_secs(600);

/// How the files are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// In the backing directory: no FUSE at all.
    Native,
    /// On the mount, through the kernel.
    Kernel,
    /// On the mount, preloaded.
    Bypass,
    /// On the mount, preloaded, while the kernel has all names and attributes in its caches.
    Known,
}

impl Way {
    /// All of them, in the order of the tables.
    const ALL: [Self; 4] = [Self::Native, Self::Kernel, Self::Bypass, Self::Known];
    /// One for each road.
    pub(crate) const ROADS: [Self; 3] = [Self::Native, Self::Kernel, Self::Bypass];

    fn way(self) -> ways::Way {
        match self {
            Self::Native => ways::Way::NATIVE,
            Self::Kernel => ways::Way::KERNEL,
            Self::Bypass | Self::Known => ways::Way::BYPASS,
        }
    }

    fn name(self) -> &'static str {
        if self == Self::Known { "known" } else { self.way().name }
    }
}

impl Unlink {
    /// Runs the benchmark.
    pub(crate) fn run(self) -> Outcome {
        let shape = Shape { files: self.files, dirs: self.dirs.unwrap_or(self.files.div_ceil(1000)) };
        if shape.dirs > shape.files {
            return Err(format!("--dirs {}: more directories than files", shape.dirs));
        }
        let place = Place::new(&self.backing, Need { inodes: shape.files + shape.dirs, size: self.size })?;
        screen::say(machine::line());
        let runs = compare(&place, shape, self.size, self.rounds, &self.roads)?;
        let memory = match self.no_memory {
            true => None,
            false => Some(memory(&place, shape)?),
        };
        print!("{}", runs.to_text());
        if let Some(memory) = &memory {
            println!("\n{}", memory.line());
        }
        let Some(file) = &self.json else { return Ok(()) };
        let report = json!({
            "benchmark": "unlink",
            "machine": machine::describe(),
            "options": {
                "files": shape.files,
                "dirs": shape.dirs,
                "size_bytes": self.size,
                "backing": self.backing.to_string_lossy(),
                "tmpfs": place.is_tmpfs(),
                "rounds": self.rounds,
            },
            "results": runs.to_json(),
            "memory": memory.map(|memory| memory.to_json()),
        });
        std::fs::write(file, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", file.display()))
    }
}

/// Everything that was timed.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    files: u64,
    /// Round, way, seconds.
    timed: Vec<(u32, Way, f64)>,
}

/// Times every road in every round.
pub(crate) fn compare(place: &Place, shape: Shape, size: u64, rounds: u32, ways: &[Way]) -> Outcome<Runs> {
    let mut runs = Runs { files: shape.files, timed: Vec::new() };
    let known = Ways::known()?;
    for (round, way) in in_turns(rounds, ways) {
        let name = format!("round {}/{rounds} {}", round + 1, way.name());
        let removal = Removal::time(place, shape, size, &known, way.way(), way == Way::Known, &name)?;
        let seconds = removal.returned;
        screen::say(format!("{name}: {seconds:.3} s, {:.0} files/s", shape.files as f64 / seconds));
        runs.timed.push((round, way, seconds));
    }
    Ok(runs)
}

/// How long it took to remove a tree's files, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removal {
    /// The calls.
    pub(crate) returned: f64,
    /// Until all are gone from the backing directory, and its file system is synced.
    pub(crate) gone: f64,
}

impl Removal {
    /// Makes a tree, mounts it, and has its files removed; `is_known` by the kernel before, if so wanted.
    pub(crate) fn time(
        place: &Place,
        shape: Shape,
        size: u64,
        ways: &Ways,
        way: ways::Way,
        is_known: bool,
        name: &str,
    ) -> Outcome<Self> {
        let (backing, root) = (place.backing(), way.root(place));
        tree::make(&backing, shape, size, &screen::bar(&format!("{name}: making"), shape.files))?;
        let mounted = ways.mount(way, place)?;
        if let (true, Some(daemon)) = (is_known, mounted.daemon()) {
            calls("stat", Road::Kernel, &root, shape, &format!("{name}: stat"))?;
            let known = daemon.report()?.mount.known_inodes;
            if known < shape.files {
                return Err(format!(
                    "the kernel knows {known} inodes of {} files: too little memory?",
                    shape.files
                ));
            }
        }
        let returned = calls("unlink", way.road, &root, shape, &format!("{name}: unlink"))?;
        let end = Instant::now();
        // What is acknowledged need not be done.
        let mut emptied = tree::Emptied::new(&backing, shape);
        daemon::within(GONE, "the files' going", || emptied.is_so())?;
        tree::sync(&backing)?;
        let gone = returned + end.elapsed().as_secs_f64();
        if let Some(daemon) = mounted.daemon() {
            were_bypassed(daemon, way.road, shape)?;
        }
        mounted.stop()?;
        tree::remove(&backing, shape)?;
        Ok(Self { returned, gone })
    }
}

/// An error unless all unlinks took the road that they should have taken.
fn were_bypassed(daemon: &Daemon, road: Road, shape: Shape) -> Outcome {
    let counts = daemon.report_at_rest()?.mount.counts;
    let bypassed = counts.served().find(|(op, _)| *op == Op::Unlink).map_or(0, |(_, count)| count);
    let expected = if road == Road::Bypass { shape.files } else { 0 };
    if bypassed == expected {
        return Ok(());
    }
    let reasons: Vec<_> =
        counts.fell_back().map(|(reason, count)| format!("{} {count}", reason.name())).collect();
    Err(format!(
        "{bypassed} of {expected} unlinks were bypassed on the {} road; left to the kernel: {}",
        road.name(),
        if reasons.is_empty() { "none is counted".to_owned() } else { reasons.join(", ") }
    ))
}

/// Runs the measured program over a whole tree; returns the seconds that it took.
pub(crate) fn calls(call: &str, road: Road, root: &Path, shape: Shape, title: &str) -> Outcome<f64> {
    let mut command = daemon::calls(road)?;
    command.arg(call).arg(root).args([shape.dirs.to_string(), shape.files.to_string()]);
    let bar = screen::bar(title, shape.files);
    let mut nanos = None;
    daemon::run(command, |line| match line.split_once(' ') {
        Some(("progress", count)) => bar.set_position(count.parse().unwrap_or(0)),
        Some(("elapsed", time)) => nanos = time.parse::<f64>().ok(),
        _ => {}
    })?;
    bar.finish_and_clear();
    nanos.map(|nanos| nanos / 1e9).ok_or_else(|| format!("{title}: the program did not say how long it took"))
}

impl Runs {
    fn of(&self, way: Way) -> Vec<f64> {
        self.timed.iter().filter(|(_, timed, _)| *timed == way).map(|(.., seconds)| *seconds).collect()
    }

    fn median(&self, way: Way) -> Option<f64> {
        let seconds = self.of(way);
        (!seconds.is_empty()).then(|| median(&seconds))
    }

    /// One road's median in units of another's.
    fn ratio(&self, way: Way, other: Way) -> Option<f64> {
        Some(self.median(way)? / self.median(other)?)
    }

    /// A table for people.
    pub(crate) fn to_text(&self) -> String {
        let cell = |ratio: Option<f64>| ratio.map_or("".to_owned(), |ratio| format!("{ratio:.2} ×"));
        let row = |way: Way| {
            let (seconds, median) = (self.of(way), self.median(way)?);
            Some(vec![
                way.name().to_owned(),
                format!("{median:.3}"),
                format!("{:.3}", seconds.iter().copied().fold(f64::INFINITY, f64::min)),
                format!("{:.3}", seconds.iter().copied().fold(0.0, f64::max)),
                format!("{:.2}", median * 1e6 / self.files as f64),
                cell(self.ratio(way, Way::Native)),
                cell(self.ratio(way, Way::Kernel)),
            ])
        };
        let rows: Vec<_> = Way::ALL.into_iter().filter_map(row).collect();
        let mut text = format!("\nunlink of {} files\n", self.files);
        text += &screen::table(
            &["road", "median s", "min s", "max s", "µs/file", "of native", "of kernel"],
            &rows,
        );
        if let Some(ratio) = self.ratio(Way::Bypass, Way::Kernel) {
            text += &format!("The bypass saves {:.1} % of the kernel road's time.\n", (1.0 - ratio) * 100.0);
        }
        if let (Some(known), Some(bypass)) = (self.median(Way::Known), self.median(Way::Bypass)) {
            let micros = (known - bypass) * 1e6 / self.files as f64;
            text += &format!("What the kernel has cached costs the bypass {micros:.2} µs for each file.\n");
        }
        text
    }

    fn to_json(&self) -> Value {
        let runs: Vec<_> = self
            .timed
            .iter()
            .map(|(round, way, seconds)| json!({ "round": round, "road": way.name(), "seconds": seconds }))
            .collect();
        let medians: serde_json::Map<_, _> = Way::ALL
            .into_iter()
            .filter_map(|way| Some((way.name().to_owned(), self.median(way)?.into())))
            .collect();
        json!({
            "runs": runs,
            "median_seconds": medians,
            "bypass_of_kernel": self.ratio(Way::Bypass, Way::Kernel),
            "bypass_of_native": self.ratio(Way::Bypass, Way::Native),
            "kernel_of_native": self.ratio(Way::Kernel, Way::Native),
        })
    }
}

/// What a daemon needs for the inodes that it knows.
#[derive(Debug)]
struct Memory {
    before: u64,
    after: u64,
    known: u64,
}

impl Memory {
    fn per_inode(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64 / self.known.max(1) as f64
    }

    fn line(&self) -> String {
        format!(
            "daemon: {:.1} MiB with {} known inodes, {:.1} MiB with none: {:.0} bytes per known inode",
            self.after as f64 / f64::from(1 << 20),
            self.known,
            self.before as f64 / f64::from(1 << 20),
            self.per_inode()
        )
    }

    fn to_json(&self) -> Value {
        json!({
            "resident_bytes_before": self.before,
            "resident_bytes": self.after,
            "known_inodes": self.known,
            "bytes_per_known_inode": self.per_inode(),
        })
    }
}

/// Lets the kernel look at every file of a tree, so that it holds a reference to each, and asks the daemon.
/// The files are empty, to leave the memory to those who remember them.
fn memory(place: &Place, shape: Shape) -> Outcome<Memory> {
    let backing = place.backing();
    tree::make(&backing, shape, 0, &screen::bar("memory: making", shape.files))?;
    let daemon = Daemon::start(&backing, &place.mountpoint())?;
    let before = daemon.report()?.mount.resident_bytes;
    calls("stat", Road::Kernel, &place.mountpoint(), shape, "memory: stat")?;
    let status = daemon.report()?.mount;
    daemon.stop()?;
    tree::remove(&backing, shape)?;
    Ok(Memory { before, after: status.resident_bytes, known: status.known_inodes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_medians() {
        let timed = [
            (0, Way::Native, 1.0),
            (0, Way::Kernel, 4.0),
            (0, Way::Bypass, 1.0),
            (1, Way::Native, 1.0),
            (1, Way::Kernel, 4.0),
            (1, Way::Bypass, 9.0),
            (2, Way::Bypass, 1.0),
        ];
        let runs = Runs { files: 1_000_000, timed: timed.into() };
        let text = runs.to_text();
        assert!(text.contains("saves 75.0 %"), "{text}");
        assert!(text.contains("4.00 ×"), "{text}");
        assert_eq!(runs.to_json()["bypass_of_native"], 1.0);
    }

    #[test]
    fn what_the_kernel_has_cached_costs_what_the_bypass_takes_longer() {
        let timed = vec![(0, Way::Bypass, 5.0), (0, Way::Known, 11.5)];
        let text = Runs { files: 1_000_000, timed }.to_text();
        assert!(text.contains("costs the bypass 6.50 µs for each file"), "{text}");
    }

    #[test]
    fn a_road_that_was_not_taken_is_left_out() {
        let runs = Runs { files: 1, timed: vec![(0, Way::Native, 1.0)] };
        assert!(!runs.to_text().contains("kernel  "));
        assert_eq!(runs.to_json()["bypass_of_kernel"], Value::Null);
    }
}
