//! `finesse-bench upcalls`.

mod stat_cost;
mod subject;
mod trace;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use finesse_bench::{Shape, median};
use serde_json::{Value, json};

use crate::place::{Need, Place};
use crate::{Outcome, daemon, machine, screen, tree};
use stat_cost::StatCost;
use subject::Subject;
use trace::{Requests, Trace};

/// Count what unmodified programs ask of a FUSE file system: requests by kind, for usual sequences of calls.
///
/// The mounts: `finesse mount --cache=always` without clients and with one that is connected and idle, the same of
/// another build if --before names one, and bindfs, if it is installed, with its usual lifetimes and with long
/// ones. Each starts with cold caches. Then `stat` of cached files is timed, in turns without clients and with one that is
/// connected and idle. With --linux, a kernel is configured and built on each as well, and timed beside a native
/// build, the mounts taking turns. Counting needs root, and counts no FORGETs. What preloaded programs elsewhere on the
/// machine ask of all mounts is counted, too; `unshare -m` hides these mounts from them.
#[derive(Debug, Args)]
pub(crate) struct Upcalls {
    /// Files in the tree that the sequences are performed on.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    files: u64,
    /// A `finesse` command of another build, to compare with.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
    /// An unpacked Linux source tree, to build in its smallest configuration.
    #[arg(long, value_name = "DIR")]
    linux: Option<PathBuf>,
    /// Only these mounts, by the names in the report (may be given several times): `finesse`, `finesse, client`, `before`,
    /// `before, client`, `bindfs`, `bindfs, long`.
    #[arg(long = "on", value_name = "NAME")]
    only: Vec<String>,
    /// How often the build is timed; the first build is counted and not timed.
    #[arg(long, default_value_t = 3, requires = "linux", value_parser = clap::value_parser!(u32).range(0..=100))]
    rounds: u32,
    /// The directory to work in.
    #[arg(long, value_name = "DIR")]
    backing: Option<PathBuf>,
    /// Also write everything to this file, for machines.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is performed, in this order, in a directory with a tree of files `tree` and a repository of it, `repository`.
const SEQUENCES: &[(&str, &str)] = &[
    ("stat", "$CALLS stat tree $SHAPE"),
    ("stat, again", "$CALLS stat tree $SHAPE"),
    ("open, read, close", "$CALLS read tree $SHAPE"),
    ("open, read, close, again", "$CALLS read tree $SHAPE"),
    ("create, write, close", "$CALLS write new $SHAPE"),
    ("ls -lR", "ls -lR repository"),
    // Asks once for the time of last access of what the first has read, as does `git status` below.
    ("ls -lR, again", "ls -lR repository"),
    ("ls -lR, a third time", "ls -lR repository"),
    ("git status", "git -C repository status"),
    ("git status, again", "git -C repository status"),
    ("git status, a third time", "git -C repository status"),
    ("cp -a", "cp -a repository copy"),
    ("tar --xattrs --acls", "tar --xattrs --acls -cf - tree | wc -c"),
    ("rm -r", "rm -r copy"),
];

/// What is built, out of its tree, so that a build needs no other preparation than an empty directory.
const BUILD: &str = "make -s -C \"$PWD/linux\" O=\"$PWD/made\" tinyconfig && \
                     make -s -C \"$PWD/linux\" O=\"$PWD/made\" -j4 vmlinux";

/// One sequence's requests on each mount.
#[derive(Debug)]
struct Row {
    sequence: String,
    requests: Vec<(String, Requests)>,
}

impl Upcalls {
    /// Runs the benchmark.
    pub(crate) fn run(self) -> Outcome {
        let shape = Shape { dirs: self.files.div_ceil(100), files: self.files };
        let found =
            |linux: &PathBuf| linux.canonicalize().map_err(|error| format!("{}: {error}", linux.display()));
        let linux = self.linux.as_ref().map(found).transpose()?;
        let backing = self.backing.clone().unwrap_or_else(std::env::temp_dir);
        let place = Place::new(&backing, Need { inodes: 8 * shape.files, size: 4096 })?;
        let subjects = self.subjects()?;
        screen::say(machine::line());
        // Printed as soon as it is known: a build takes its time.
        let mut rows = sequences(&place, shape, &subjects)?;
        rows.iter().for_each(|row| print!("{}", row.to_text()));
        let costs = StatCost::of(&place, shape, &subjects)?;
        print!("{}", StatCost::to_text(&costs));
        let mut builds = Vec::new();
        if let Some(linux) = &linux {
            shell(&place.backing(), "cp -a \"$LINUX\" linux", &[("LINUX", linux.as_os_str())])?;
            let counted = counted_builds(&place, &subjects)?;
            print!("{}", counted.to_text());
            rows.push(counted);
            builds = timed_builds(&place, &subjects, self.rounds)?;
            print!("{}", builds_to_text(&builds));
        }
        let Some(file) = &self.json else { return Ok(()) };
        let report = json!({
            "benchmark": "upcalls",
            "machine": machine::describe(),
            "options": { "files": shape.files, "dirs": shape.dirs, "rounds": self.rounds },
            "requests": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "stat": costs.iter().map(StatCost::to_json).collect::<Vec<_>>(),
            "build_seconds": builds.iter().map(|(name, seconds)| json!({ "on": name, "seconds": seconds })).collect::<Vec<_>>(),
        });
        std::fs::write(file, format!("{report:#}\n")).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// The mounts that are asked for.
    fn subjects(&self) -> Outcome<Vec<Subject>> {
        let mut subjects = Subject::all(self.before.as_deref());
        if let Some(unknown) =
            self.only.iter().find(|name| !subjects.iter().any(|subject| subject.name() == *name))
        {
            let known: Vec<_> = subjects.iter().map(Subject::name).collect();
            return Err(format!("--on {unknown:?}: there is no such mount here, but {}", known.join("; ")));
        }
        subjects
            .retain(|subject| self.only.is_empty() || self.only.iter().any(|name| name == subject.name()));
        Ok(subjects)
    }
}

impl Row {
    fn to_text(&self) -> String {
        let width = self.requests.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let line = |(name, requests): &(String, Requests)| {
            let kinds: Vec<_> = requests.by_kind().map(|(kind, count)| format!("{kind} {count}")).collect();
            format!("  {name:width$}  {:>8}  {}", requests.total, kinds.join(", ")).trim_end().to_owned()
                + "\n"
        };
        let lines: String = self.requests.iter().map(line).collect();
        format!("{}\n{lines}", self.sequence)
    }

    fn to_json(&self) -> Value {
        let on = |(name, requests): &(String, Requests)| {
            let kinds: serde_json::Map<_, _> =
                requests.by_kind().map(|(kind, count)| (kind.to_owned(), json!(count))).collect();
            json!({ "on": name, "total": requests.total, "kinds": kinds })
        };
        json!({ "sequence": self.sequence, "requests": self.requests.iter().map(on).collect::<Vec<_>>() })
    }
}

/// Runs a script in a directory, without the user's settings.
fn shell(directory: &Path, script: &str, environment: &[(&str, &std::ffi::OsStr)]) -> Outcome {
    let mut command = Command::new("bash");
    command
        .args(["-e", "-o", "pipefail", "-c", script])
        .current_dir(directory)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // `git status` would write the index when it finds that it could be written better.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .envs(environment.iter().copied());
    daemon::run(command, |_| {})
}

fn sequences(place: &Place, shape: Shape, subjects: &[Subject]) -> Outcome<Vec<Row>> {
    let calls = daemon::program("finesse-bench-calls")?;
    let numbers = format!("{} {}", shape.dirs, shape.files);
    let environment = [("CALLS", calls.as_os_str()), ("SHAPE", numbers.as_ref())];
    let mut rows: Vec<_> = SEQUENCES
        .iter()
        .map(|(name, _)| Row { sequence: (*name).to_owned(), requests: Vec::new() })
        .collect();
    for subject in subjects {
        let root = place.backing().join("sequences");
        let prepared = root.join("tree");
        std::fs::create_dir_all(&prepared).map_err(|error| format!("{}: {error}", prepared.display()))?;
        let bar = screen::bar(subject.name(), SEQUENCES.len() as u64);
        tree::make(&prepared, shape, 4096, &indicatif::ProgressBar::hidden())?;
        shell(
            &root,
            "cp -r tree repository; mkdir new; (cd tree; ls) | sed s.^.new/. | xargs mkdir; cd repository; \
             find . -exec touch -d '1 hour ago' {} +; git init -q; git add .; git -c user.name=bench -c user.email=bench@example.org commit -q -m files",
            &environment,
        )?;
        let mount = subject.mount(&root, &place.mountpoint())?;
        let trace = Trace::of(&place.mountpoint())?;
        for ((_, script), row) in SEQUENCES.iter().zip(&mut rows) {
            trace.take()?;
            shell(&place.mountpoint(), script, &environment)?;
            row.requests.push((subject.name().to_owned(), trace.take()?));
            bar.inc(1);
        }
        drop(trace);
        mount.stop()?;
        std::fs::remove_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        bar.finish_and_clear();
    }
    Ok(rows)
}

/// Builds where `linux` is and removes what was made; returns the seconds that the build took.
fn build(directory: &Path, native: &Path) -> Outcome<f64> {
    let start = Instant::now();
    shell(directory, BUILD, &[])?;
    let seconds = start.elapsed().as_secs_f64();
    let made = native.join("made");
    std::fs::remove_dir_all(&made).map_err(|error| format!("{}: {error}", made.display()))?;
    Ok(seconds)
}

fn counted_builds(place: &Place, subjects: &[Subject]) -> Outcome<Row> {
    let mut requests = Vec::new();
    for subject in subjects {
        let mount = subject.mount(&place.backing(), &place.mountpoint())?;
        let trace = Trace::of(&place.mountpoint())?;
        screen::say(format!("building on {}, counted …", subject.name()));
        build(&place.mountpoint(), &place.backing())?;
        requests.push((subject.name().to_owned(), trace.take()?));
        drop(trace);
        mount.stop()?;
    }
    Ok(Row { sequence: "Linux, tinyconfig".to_owned(), requests })
}

/// Seconds by name; the native build is the first.
fn timed_builds(place: &Place, subjects: &[Subject], rounds: u32) -> Outcome<Vec<(String, Vec<f64>)>> {
    let mut times = vec![("native".to_owned(), Vec::new())];
    times.extend(subjects.iter().map(|subject| (subject.name().to_owned(), Vec::new())));
    for round in 0..rounds {
        for ((name, seconds), subject) in
            times.iter_mut().zip(std::iter::once(None).chain(subjects.iter().map(Some)))
        {
            let mount =
                subject.map(|subject| subject.mount(&place.backing(), &place.mountpoint())).transpose()?;
            let directory = if mount.is_some() { place.mountpoint() } else { place.backing() };
            let taken = build(&directory, &place.backing())?;
            screen::say(format!("round {}/{rounds}, build on {name}: {taken:.1} s", round + 1));
            seconds.push(taken);
            mount.map(subject::Mounted::stop).transpose()?;
        }
    }
    Ok(times)
}

fn builds_to_text(builds: &[(String, Vec<f64>)]) -> String {
    let Some((_, native)) = builds.first().filter(|(_, seconds)| !seconds.is_empty()) else {
        return String::new();
    };
    let native = median(native);
    let row = |(name, seconds): &(String, Vec<f64>)| {
        let seconds = median(seconds);
        vec![name.clone(), format!("{seconds:.1}"), format!("{:+.1}", (seconds / native - 1.0) * 100.0)]
    };
    screen::table(&["Linux, tinyconfig", "s", "% over native"], &builds.iter().map(row).collect::<Vec<_>>())
}
