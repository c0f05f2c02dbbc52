//! The staleness hunt: preloaded and unmodified processes change a small tree; after every change that has been answered, each
//! looks whether it shows, in every way in which a program can look, and compares that with a directory without Finesse.
//!
//! `actor.c` is one such process. [`hunt`] starts them on a mount and says what they have found.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::guest;
use crate::mount::{self, Options, said};
use crate::road::{self, Place, Road};

/// What is hunted on.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'s> {
    /// What it is called.
    pub name: &'s str,
    /// The file system in memory, or else the passthrough.
    pub memory: bool,
    /// Arguments of the mount.
    pub arguments: &'s [&'s str],
    /// What the mount is started with: `env` and variables.
    pub wrapper: &'s [&'s str],
    /// Epochs come all the time. A directory of an old one is taken out of the kernel's cache when it is looked up, and has
    /// no path until that is answered (`fuse_dentry_revalidate`, `d_invalidate`).
    pub epochs: bool,
}

/// Who hunts.
#[derive(Clone, Copy, Debug)]
pub struct Party<'p> {
    /// The road of each actor, `k` or `b`.
    pub roads: &'p str,
    /// Unmodified processes that ask all the time, and that nobody waits for.
    pub disturbers: usize,
    /// What they do otherwise than usual: variables that `actor.c` looks for.
    pub habits: &'p [&'p str],
}

/// Two that hunt, and one that disturbs them.
pub const PARTY: Party<'static> = Party { roads: "kb", disturbers: 1, habits: &[] };

/// How long a hunt lasts: until one of these is reached.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Chooses what is done.
    pub seed: u64,
    /// How many checks.
    pub checks: u64,
    /// How long.
    pub time: Duration,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Changes that succeeded, by kind: on the kernel road, on the bypass.
    pub changes: Vec<(String, [u64; 2])>,
    /// Checks, likewise.
    pub checks: Vec<(String, [u64; 2])>,
    /// Looks on the kernel road that saw old attributes once, while the kernel took in new ones.
    pub torn: u64,
    /// Calls that the metadata table answered.
    pub from_table: u64,
}

impl Tally {
    fn parse(text: &str) -> Option<Self> {
        let mut tally = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[of, kind, kernel, bypass] = &words[..] else { return None };
            let counts = (kind.to_owned(), [kernel.parse().ok()?, bypass.parse().ok()?]);
            match of {
                "change" => tally.changes.push(counts),
                "check" => tally.checks.push(counts),
                "torn" => tally.torn = counts.1[0],
                _ => return None,
            }
        }
        (tally.checks() > 0).then_some(tally)
    }

    /// Adds another hunt's counts.
    pub fn add(&mut self, other: &Self) {
        self.from_table += other.from_table;
        self.torn += other.torn;
        for (all, more) in [(&mut self.changes, &other.changes), (&mut self.checks, &other.checks)] {
            for (kind, counts) in more {
                match all.iter_mut().find(|(known, _)| known == kind) {
                    Some((_, sums)) => sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count),
                    None => all.push((kind.clone(), *counts)),
                }
            }
        }
    }

    /// How many changes succeeded.
    pub fn changes(&self) -> u64 {
        self.changes.iter().flat_map(|(_, counts)| counts).sum()
    }

    /// How many checks were made.
    pub fn checks(&self) -> u64 {
        self.checks.iter().flat_map(|(_, counts)| counts).sum()
    }
}

/// How long actors may be quiet beyond their time, on a busy machine; longer than they wait for each other.
const PATIENCE: Duration = Duration::from_secs(120);

/// A tmpfs that keeps access times as they are set. Unmounted when dropped.
struct Memory(TempDir);

impl Memory {
    fn new() -> Self {
        let place = tempfile::Builder::new().prefix("finesse-hunt-").tempdir().unwrap();
        let options = Some(c"mode=755");
        rustix::mount::mount("tmpfs", place.path(), "tmpfs", MountFlags::NOATIME, options).unwrap();
        Self(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        mount::unmount(self.0.path());
    }
}

/// The program of an actor.
const ACTOR: &str = "hunt-actor";

/// Compiles the actor into a directory. A guest, which has no compiler, has it already.
///
/// # Panics
/// The compiler is missing or fails.
pub fn compile(directory: &Path) -> PathBuf {
    if guest::inside() {
        return Path::new("/usr/bin").join(ACTOR);
    }
    let (source, program) = (directory.join("actor.c"), directory.join(ACTOR));
    fs::write(&source, include_str!("actor.c")).unwrap();
    let options = ["-O1", "-Wall", "-Wno-unused-result", "-o"];
    let output = Command::new("gcc").args(options).args([&program, &source]).output();
    let output = output.expect("gcc is installed");
    assert!(output.status.success(), "{}", said(&output));
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    program
}

/// The directories that changes begin with.
fn fill(root: &Path) {
    for directory in ["p/s", "q"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
}

/// Hunts. The error is the report of what was stale: seed, change, what was seen and what was expected.
///
/// # Errors
/// The report.
///
/// # Panics
/// The mount fails, or the bypass was not used. Needs root.
pub fn hunt(subject: Subject<'_>, party: Party<'_>, extent: Extent) -> Result<Tally, String> {
    let memory = Memory::new();
    let options = Options { arguments: subject.arguments, wrapper: subject.wrapper, ..Options::default() };
    let place = if subject.memory {
        let place = Place::of_memory(Road::Bypass, &options);
        fill(place.path());
        place
    } else {
        Place::below(memory.0.path(), Road::Bypass, &options, fill)
    };
    // Beside the mount, so that `..` leads to the same place from both.
    let twin = place.path().with_file_name("twin");
    fs::create_dir(&twin).unwrap();
    fill(&twin);
    let shared = memory.0.path().join("shared");
    File::create(&shared).unwrap().set_len(1 << 20).unwrap();
    let program = compile(memory.0.path());
    let (mut ends, held) = std::io::pipe().unwrap();
    let mut actors: Vec<Child> = (0..party.roads.len() + party.disturbers)
        .map(|number| {
            let preloaded = party.roads.as_bytes().get(number) == Some(&b'b');
            let mut command = if preloaded { place.command(&program) } else { Command::new(&program) };
            road::environment(&mut command);
            command.arg(number.to_string()).arg(party.roads).arg(extent.seed.to_string());
            command.arg(extent.checks.to_string()).arg(extent.time.as_secs().to_string());
            command.arg(&shared).arg(place.path()).arg(&twin);
            if !subject.memory {
                command.arg(place.source());
            }
            let loses_paths = subject.epochs.then_some(&"LOSES_PATHS");
            command.envs(party.habits.iter().chain(loses_paths).map(|habit| (*habit, "1")));
            command.current_dir("/").stdin(Stdio::null()).stdout(held.try_clone().unwrap());
            command.stderr(Stdio::from(held.try_clone().unwrap())).process_group(0);
            command.spawn().expect("the actor runs")
        })
        .collect();
    drop(held);
    let mut text = Vec::new();
    let patience = extent.time + PATIENCE;
    let mut poll = [PollFd::new(&ends, PollFlags::IN)];
    let limit = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
    // All say what they have to say at their end.
    let quiet = rustix::event::poll(&mut poll, Some(&limit)) == Ok(0);
    if quiet {
        for actor in &actors {
            // Fails if it has ended.
            let _ = rustix::process::kill_process_group(Pid::from_child(actor), Signal::KILL);
        }
    }
    ends.read_to_end(&mut text).unwrap();
    let statuses: Vec<_> = actors.iter_mut().map(|actor| actor.wait().expect("a child")).collect();
    let text = String::from_utf8_lossy(&text).into_owned();
    let tally = Tally::parse(&text).filter(|_| !quiet && statuses.iter().all(|status| status.success()));
    let mut tally = tally.ok_or_else(|| {
        let report = if quiet { "the actors hang" } else { "" };
        format!("{}: {report}{text}\n{statuses:?}\n{}", subject.name, place.mount().log())
    })?;
    let account = place.mount().account();
    tally.from_table = account.from_table.values().sum();
    let answered: u64 = account.answered.values().sum();
    assert!(answered > tally.checks() / 10, "the bypass was used: {answered} answers, {tally:?}");
    Ok(tally)
}
