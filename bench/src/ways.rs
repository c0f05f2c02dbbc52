//! What is compared: a file system, its options, and the road by which a program gets there.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;

use crate::bindfs::Bindfs;
use crate::daemon::{self, Daemon, Road};
use crate::place::Place;
use crate::{Outcome, screen};

/// A way to the files of the backing directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// The name in tables and reports.
    pub(crate) name: &'static str,
    /// What it is, for the report.
    pub(crate) what: &'static str,
    /// How a program gets there.
    pub(crate) road: Road,
    mounted: Mounts,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mounts {
    Nothing,
    Bindfs,
    /// Finesse with these mount options.
    Finesse(&'static [Word]),
}

/// A mount option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// The way is nothing without it.
    Needed(&'static str),
    /// Says explicitly what a daemon that does not know the option does anyway.
    IfKnown(&'static str),
}

impl Word {
    fn text(self) -> &'static str {
        match self {
            Self::Needed(text) | Self::IfKnown(text) => text,
        }
    }

    /// Whether the help of `finesse mount` knows it.
    fn is_known(self, help: &str) -> bool {
        let known = |word: &str| help.split([' ', ',', '\n']).any(|other| other.starts_with(word));
        match self.text().split_once('=') {
            Some((key, _)) => known(&format!("{key}=")),
            None => known(self.text()),
        }
    }
}

const CLASSIC: Word = Word::IfKnown("transport=classic");
/// Round trips only: what the metadata table answers is a way of its own.
const NO_TABLE: Word = Word::IfKnown("table=0");

impl Way {
    const fn finesse(name: &'static str, what: &'static str, road: Road, words: &'static [Word]) -> Self {
        Self { name, what, road, mounted: Mounts::Finesse(words) }
    }

    /// No FUSE at all.
    pub(crate) const NATIVE: Self = Self {
        name: "native",
        what: "the backing directory itself",
        road: Road::Native,
        mounted: Mounts::Nothing,
    };
    /// Another FUSE file system.
    pub(crate) const BINDFS: Self = Self {
        name: "bindfs",
        what: "bindfs with lifetimes of a day",
        road: Road::Kernel,
        mounted: Mounts::Bindfs,
    };
    /// Plain FUSE.
    pub(crate) const KERNEL: Self = Self::finesse(
        "kernel",
        "plain FUSE: our daemon with --cache=always, unmodified programs",
        Road::Kernel,
        &[CLASSIC],
    );
    /// Plain FUSE with BPF programs.
    pub(crate) const BPF: Self = Self::finesse(
        "kernel, bpf",
        "the same with BPF programs (-o bpf), as far as the kernel loads them",
        Road::Kernel,
        &[CLASSIC, Word::Needed("bpf")],
    );
    /// FUSE over io_uring.
    pub(crate) const URING: Self = Self::finesse(
        "kernel, io_uring",
        "the same by FUSE over io_uring (-o transport=uring)",
        Road::Kernel,
        &[Word::Needed("transport=uring")],
    );
    /// Plain FUSE whose data pass through the daemon.
    pub(crate) const KERNEL_NO_GRANT: Self = Self::finesse(
        "kernel, no grant",
        "the kernel road without FUSE passthrough (-o grant=never): data pass through the daemon",
        Road::Kernel,
        &[CLASSIC, Word::Needed("grant=never")],
    );
    /// The bypass by round trips.
    pub(crate) const BYPASS: Self = Self::finesse(
        "bypass",
        "preloaded programs, a round trip in shared memory for each call",
        Road::Bypass,
        &[CLASSIC, NO_TABLE],
    );
    /// The bypass with the metadata table.
    pub(crate) const TABLE: Self = Self::finesse(
        "bypass, table",
        "the bypass with the metadata table (-o table=256M): lookups without a round trip",
        Road::Bypass,
        &[CLASSIC, Word::Needed("table=256M")],
    );
    /// The bypass with unlinks that are acknowledged before they are done.
    pub(crate) const DEFERRED: Self = Self::finesse(
        "bypass, deferred",
        "the bypass with deferred unlink (-o unlink=deferred)",
        Road::Bypass,
        &[CLASSIC, Word::Needed("unlink=deferred")],
    );
    /// The bypass with small files kept in the daemon.
    pub(crate) const LARGE: Self = Self::finesse(
        "bypass, grant large",
        "the bypass that grants when transfers become large (-o grant=large)",
        Road::Bypass,
        &[CLASSIC, NO_TABLE, Word::Needed("grant=large")],
    );
    /// The bypass with all data in the ring.
    pub(crate) const RING: Self = Self::finesse(
        "bypass, no grant",
        "the bypass without grants (-o grant=never): data pass through the ring",
        Road::Bypass,
        &[CLASSIC, NO_TABLE, Word::Needed("grant=never")],
    );

    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 11] = [
        Self::NATIVE,
        Self::BINDFS,
        Self::KERNEL,
        Self::BPF,
        Self::URING,
        Self::KERNEL_NO_GRANT,
        Self::BYPASS,
        Self::TABLE,
        Self::LARGE,
        Self::RING,
        Self::DEFERRED,
    ];

    /// The mount options, as far as the daemon knows them.
    fn options(self, help: &str) -> Vec<&'static str> {
        match self.mounted {
            Mounts::Finesse(words) => {
                words.iter().filter(|word| word.is_known(help)).map(|word| word.text()).collect()
            }
            Mounts::Nothing | Mounts::Bindfs => Vec::new(),
        }
    }

    /// Why it cannot be taken on this machine; `help` is that of `finesse mount`.
    fn obstacle(self, help: &str) -> Option<String> {
        match self.mounted {
            Mounts::Nothing => None,
            Mounts::Bindfs => (!Bindfs::is_installed()).then(|| "bindfs is not installed".to_owned()),
            Mounts::Finesse(words) => {
                let unknown =
                    words.iter().find(|word| matches!(word, Word::Needed(_)) && !word.is_known(help));
                unknown.map(|word| format!("this daemon knows no mount option {}", word.text()))
            }
        }
    }

    /// Where a program finds the backing's files.
    pub(crate) fn root(self, place: &Place) -> PathBuf {
        if self.mounted == Mounts::Nothing { place.backing() } else { place.mountpoint() }
    }
}

/// The ways that this machine and this build have.
#[derive(Debug)]
pub(crate) struct Ways {
    help: String,
    /// Those that cannot be taken, and why.
    pub(crate) left_out: Vec<(Way, String)>,
}

impl Ways {
    /// Those whose options the daemon knows; whether they can be mounted shows when they are.
    pub(crate) fn known() -> Outcome<Self> {
        let help = Command::new(daemon::program("finesse")?).args(["mount", "--help"]).output();
        let help = help.map_err(|error| format!("finesse mount --help: {error}"))?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let obstacles = Way::ALL.into_iter().filter_map(|way| Some((way, way.obstacle(&help)?)));
        Ok(Self { left_out: obstacles.collect(), help })
    }

    /// Those that can be mounted, which is found out by mounting an empty directory.
    pub(crate) fn probe() -> Outcome<Self> {
        let mut ways = Self::known()?;
        let scratch =
            tempfile::Builder::new().prefix("finesse-bench-").tempdir().map_err(|error| error.to_string())?;
        let (source, mountpoint) = (scratch.path().join("source"), scratch.path().join("mnt"));
        for directory in [&source, &mountpoint] {
            std::fs::create_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        for way in ways.among(&Way::ALL) {
            let mounted = ways.mount_at(way, &source, &mountpoint).and_then(Mounted::stop);
            screen::go_on()?;
            if let Err(why) = mounted {
                ways.left_out.push((way, why));
            }
        }
        Ok(ways)
    }

    /// Those of `wanted` that can be taken.
    pub(crate) fn among(&self, wanted: &[Way]) -> Vec<Way> {
        let left_out = |way: &Way| self.left_out.iter().any(|(other, _)| other == way);
        wanted.iter().copied().filter(|way| !left_out(way)).collect()
    }

    /// Mounts a place's backing the way it is to be taken.
    pub(crate) fn mount(&self, way: Way, place: &Place) -> Outcome<Mounted> {
        self.mount_at(way, &place.backing(), &place.mountpoint())
    }

    fn mount_at(&self, way: Way, source: &Path, mountpoint: &Path) -> Outcome<Mounted> {
        Ok(match way.mounted {
            Mounts::Nothing => Mounted::Nothing,
            Mounts::Bindfs => Mounted::Bindfs(Bindfs::start(source, mountpoint, Bindfs::LONG)?),
            Mounts::Finesse(_) => {
                Mounted::Finesse(Daemon::start_as(source, mountpoint, &way.options(&self.help))?)
            }
        })
    }

    /// The command that mounts it so, for people.
    pub(crate) fn command(&self, way: Way) -> String {
        match way.mounted {
            Mounts::Nothing => String::new(),
            Mounts::Bindfs => format!("bindfs -o {} SOURCE MOUNTPOINT", Bindfs::LONG),
            Mounts::Finesse(_) => {
                let options = way.options(&self.help);
                let list =
                    if options.is_empty() { String::new() } else { format!("-o {} ", options.join(",")) };
                format!("finesse mount --cache=always {list}SOURCE MOUNTPOINT")
            }
        }
    }
}

/// What is mounted; it ends on drop.
#[derive(Debug)]
pub(crate) enum Mounted {
    Nothing,
    Finesse(Daemon),
    Bindfs(Bindfs),
}

impl Mounted {
    /// The process that serves it.
    pub(crate) fn pid(&self) -> Option<Pid> {
        match self {
            Self::Nothing => None,
            Self::Finesse(daemon) => daemon.pid(),
            Self::Bindfs(bindfs) => bindfs.pid(),
        }
    }

    /// The daemon, if it is ours.
    pub(crate) fn daemon(&self) -> Option<&Daemon> {
        match self {
            Self::Finesse(daemon) => Some(daemon),
            Self::Nothing | Self::Bindfs(_) => None,
        }
    }

    /// Processor time of whoever serves it so far, in nanoseconds.
    pub(crate) fn processor_time(&self) -> Outcome<u64> {
        processor_time(self.pid())
    }

    /// Resident memory of whoever serves it, in bytes (`VmRSS` of /proc/PID/status).
    pub(crate) fn resident_bytes(&self) -> Outcome<Option<u64>> {
        let Some(pid) = self.pid() else { return Ok(None) };
        let path = format!("/proc/{pid}/status");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(kib.and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib * 1024))
    }

    /// Unmounts.
    pub(crate) fn stop(self) -> Outcome {
        match self {
            Self::Finesse(daemon) => daemon.stop(),
            Self::Nothing | Self::Bindfs(_) => Ok(()),
        }
    }
}

/// Processor time of all threads of a process so far, in nanoseconds (`/proc/PID/task/*/schedstat`); 0 of none.
pub(crate) fn processor_time(pid: Option<Pid>) -> Outcome<u64> {
    let Some(pid) = pid else { return Ok(0) };
    let path = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?;
    // A thread that has just ended is gone.
    let of_task = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("schedstat")).ok();
    let times = tasks.flatten().filter_map(of_task);
    Ok(times.filter_map(|times| times.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// Every way in every round; who begins changes from round to round.
pub(crate) fn in_turns<T: Copy>(rounds: u32, ways: &[T]) -> impl Iterator<Item = (u32, T)> + '_ {
    (0..rounds).flat_map(move |round| {
        (0..ways.len()).map(move |turn| (round, ways[(turn + round as usize) % ways.len()]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "Mount options:\n  cache=never|auto|always   as --cache\n  bpf    load BPF programs\n  \
                        unlink=now|deferred  when\n";

    #[test]
    fn an_option_is_known_if_the_help_has_it() {
        assert!(Word::Needed("unlink=deferred").is_known(HELP));
        assert!(Word::Needed("bpf").is_known(HELP));
        assert!(!Word::Needed("table=1M").is_known(HELP));
        assert!(!Word::Needed("link=1").is_known(HELP));
    }

    #[test]
    fn a_way_that_needs_an_unknown_option_says_so() {
        assert_eq!(Way::DEFERRED.obstacle(HELP), None);
        let why = Way::TABLE.obstacle(HELP).unwrap();
        assert!(why.contains("table="), "{why}");
        assert_eq!(Way::BYPASS.obstacle(HELP), None);
        assert!(Way::BYPASS.options(HELP).is_empty(), "what is not known is not said");
        assert_eq!(Way::BPF.options(HELP), ["bpf"]);
    }

    #[test]
    fn names_are_different() {
        let mut names = Way::ALL.map(|way| way.name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn everybody_begins_once() {
        let order: Vec<_> = in_turns(3, &['a', 'b', 'c']).collect();
        let first: Vec<_> = order.iter().step_by(3).map(|(_, way)| *way).collect();
        assert_eq!((order.len(), first), (9, vec!['a', 'b', 'c']));
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
