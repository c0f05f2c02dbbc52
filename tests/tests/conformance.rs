//! pjdfstest and fsx, from crates.io, on all roads: what passes natively passes through Finesse.
//!
//! `FINESSE_LONG=1` makes fsx do a million operations on each road of each file system, with every policy of caching.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use finesse_tests::account::Calls;
use finesse_tests::build;
use finesse_tests::mount::{Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::uring::Offer;
use tempfile::TempDir;

const PJDFSTEST: (&str, &str) = ("pjdfstest", "0.2.2");
const FSX: (&str, &str) = ("fsx", "0.3.2");

/// Installs a program from crates.io into the target directory, unless it is there.
///
/// # Panics
/// Without a network the first time.
fn tool((name, version): (&str, &str)) -> PathBuf {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let root = build::target().join("tools");
    let program = root.join("bin").join(name);
    let installed = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    if program.is_file() && installed.contains(&format!("{name} {version} ")) {
        return program;
    }
    let output = build::cargo()
        .args(["install", "--quiet", "--locked", "--version", version, name, "--root"])
        .arg(&root)
        .arg("--target-dir")
        .arg(root.join("build"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{name} {version} could not be installed from crates.io; is there a network? {}",
        said(&output)
    );
    program
}

/// Where the files are, natively and behind the passthrough: in memory, because fsx waits for each of its changes to be written
/// back. Of links there may be as many as on a mount, which is unlimited to pathconf(3) as well: that goes by the file
/// system's type (`__statfs_link_max`), and a mount's is FUSE's (`convert_fuse_statfs`).
const SCRATCH: &str = "/dev/shm";

/// A file system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The passthrough, with options and a policy of caching.
    Passthrough(&'static [&'static str], &'static str),
    /// The file system in memory.
    Memory,
}

impl Subject {
    /// A place on it. Set-user-ID bits and devices count, as they do natively.
    fn place(self, road: Road) -> Place {
        match self {
            Self::Passthrough(more, cache) => {
                let arguments = [&["-o", "suid,dev", cache], more].concat();
                let options = Options { arguments: &arguments, ..Options::default() };
                Place::below(Path::new(SCRATCH), road, &options, |_| {})
            }
            Self::Memory if road == Road::Native => {
                Place::below(Path::new(SCRATCH), road, &Options::default(), |_| {})
            }
            Self::Memory => {
                let arguments = ["-o", "suid,dev", "--size", "1G"];
                Place::of_memory(road, &Options { arguments: &arguments, ..Options::default() })
            }
        }
    }
}

/// Runs something in a place and says what was counted meanwhile.
fn counted(place: &Place, run: impl FnOnce()) -> Calls {
    let before = place.mount().account();
    run();
    place.mount().account().since(&before)
}

fn answered(calls: &Calls, operation: &str) -> u64 {
    calls.answered.get(operation).copied().unwrap_or(0)
}

// --- pjdfstest ---

/// How one of its tests ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Passed,
    /// Because of what the configuration or the file system lacks.
    Skipped,
    /// And what it said.
    Failed(String),
}

type Results = BTreeMap<String, Verdict>;

/// Runs all tests; again, if something could not be unmounted: programs that begin meanwhile look at every FUSE mount, and what is
/// looked at is busy.
fn pjdfstest(place: &Place) -> Results {
    let was_busy = |verdict: &Verdict| matches!(verdict, Verdict::Failed(said) if said.contains("umount"));
    let mut results = pjdfstest_once(place);
    for _ in 0..2 {
        if results.values().any(was_busy) {
            results = pjdfstest_once(place);
        }
    }
    results
}

fn pjdfstest_once(place: &Place) -> Results {
    let tools: TempDir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let configuration = tools.path().join("pjdfstest.toml");
    // File flags and NFSv4 lists are not Linux's, and birth times not stat(2)'s; remounting would be for all tests.
    fs::write(
        &configuration,
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\
         [settings]\nnaptime = 0.02\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n",
    )
    .unwrap();
    let mut command = place.command(tool(PJDFSTEST));
    command.arg("--configuration-file").arg(&configuration).arg("--path").arg(place.path());
    command.arg("--secondary-fs").arg(other.path()).env("NO_COLOR", "1");
    let output = command.output().unwrap();
    let mut results = Results::new();
    let mut last = None;
    for line in text(&output.stdout).lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let verdict = match words[..] {
            [name, "ok"] if name.contains("::") => Verdict::Passed,
            [name, "skipped"] if name.contains("::") => Verdict::Skipped,
            [name, "FAILED"] if name.contains("::") => Verdict::Failed(String::new()),
            _ => {
                let last = last.as_ref().and_then(|name| results.get_mut(name));
                if let Some(Verdict::Failed(said)) = last {
                    *said += &format!("{line}\n");
                }
                continue;
            }
        };
        results.insert(words[0].to_owned(), verdict);
        last = Some(words[0].to_owned());
    }
    assert!(text(&output.stdout).contains("Summary"), "pjdfstest: {}", said(&output));
    results
}

/// Checks the road's results against those that count: there are no exceptions, and nothing else is skipped.
fn no_worse(what: &str, expected: &Results, found: &Results) {
    let is_worse = |(name, verdict): &(&String, &Verdict)| match verdict {
        Verdict::Failed(_) => false,
        verdict => found.get(*name) != Some(verdict),
    };
    let worse: Vec<_> = expected
        .iter()
        .filter(is_worse)
        .map(|(name, verdict)| format!("{name}: {verdict:?}, here {:?}", found.get(name)))
        .collect();
    assert!(worse.is_empty(), "{what}: {} tests end differently:\n{}", worse.len(), worse.join("\n"));
}

/// Fewer would mean that something was not tested.
const PJDFSTESTS: usize = 370;

fn passed(results: &Results) -> usize {
    results.values().filter(|verdict| **verdict == Verdict::Passed).count()
}

fn conforms(subject: Subject, test: &str) {
    if !needs::root(test) {
        return;
    }
    let native = pjdfstest(&subject.place(Road::Native));
    assert!(passed(&native) >= PJDFSTESTS, "only {} tests pass natively: {native:?}", passed(&native));
    let kernel = pjdfstest(&subject.place(Road::Kernel));
    no_worse(&format!("{subject:?}, kernel road"), &native, &kernel);
    let place = subject.place(Road::Bypass);
    let mut bypass = Results::new();
    let calls = counted(&place, || bypass = pjdfstest(&place));
    no_worse(&format!("{subject:?}, bypass"), &native, &bypass);
    for operation in [
        "open", "stat", "unlink", "rmdir", "mkdir", "mknod", "rename", "link", "symlink", "chmod", "chown",
        "truncate", "utimens",
    ] {
        assert!(answered(&calls, operation) > 0, "no {operation} was bypassed: {calls:?}");
    }
    println!("{subject:?}: {} pass, {:.1} % bypassed: {calls:?}", passed(&bypass), calls.bypassed());
    assert!(calls.bypassed() > 50.0, "{calls:?}");
}

#[test]
fn the_passthrough_passes_every_pjdfstest_that_the_source_directory_passes() {
    conforms(
        Subject::Passthrough(&[], "--cache=auto"),
        "the_passthrough_passes_every_pjdfstest_that_the_source_directory_passes",
    );
}

#[test]
fn through_rings_the_passthrough_passes_every_pjdfstest_that_the_source_directory_passes() {
    let test = "through_rings_the_passthrough_passes_every_pjdfstest_that_the_source_directory_passes";
    let Some(_offer) = Offer::set(true, test) else { return };
    let subject = Subject::Passthrough(&["-o", "transport=uring"], "--cache=auto");
    let native = pjdfstest(&subject.place(Road::Native));
    assert!(passed(&native) >= PJDFSTESTS, "only {} tests pass natively: {native:?}", passed(&native));
    no_worse("through rings", &native, &pjdfstest(&subject.place(Road::Kernel)));
}

#[test]
fn the_file_system_in_memory_passes_every_pjdfstest_that_a_plain_directory_passes() {
    let test = "the_file_system_in_memory_passes_every_pjdfstest_that_a_plain_directory_passes";
    conforms(Subject::Memory, test);
}

// --- fsx ---

/// All that it can do. Nothing is of length 0, which `posix_fallocate` refuses everywhere (`vfs_fallocate`).
const OPERATIONS: &str = "\
flen = 262144
[opsize]
min = 1
max = 65536
[weights]
close_open = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
truncate = 10
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 2
sendfile = 3
posix_fadvise = 2
copy_file_range = 3
";

/// Without what makes a file leave the ring for good.
const READS_AND_WRITES: &str = "\
flen = 262144
[opsize]
min = 1
max = 65536
[weights]
close_open = 2
read = 10
write = 10
mapread = 0
mapwrite = 0
truncate = 10
fsync = 1
fdatasync = 1
posix_fallocate = 2
punch_hole = 2
";

fn is_long() -> bool {
    std::env::var_os("FINESSE_LONG").is_some_and(|long| long == "1")
}

/// Who serves what fsx does with its file on the bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opens {
    /// The kernel, through a granted descriptor.
    Granted,
    /// The ring, until a descriptor is promoted.
    Ring,
}

/// One run: any difference between the file and what was written to it ends it.
#[derive(Clone, Copy, Debug)]
struct Run {
    configuration: &'static str,
    seed: u64,
    operations: u64,
}

impl Run {
    /// A run on a road to a place's files; the place's own or another.
    fn check(&self, place: &Place, road: Road) {
        let Self { configuration, seed, operations } = *self;
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("fsx.toml");
        fs::write(&file, configuration).unwrap();
        let mut command = place.command_on(road, tool(FSX));
        command.arg("-f").arg(&file).arg("-P").arg(home.path()).args(["-q", "-q"]);
        command.args(["-S", &seed.to_string(), "-N", &operations.to_string()]);
        // Each run has a file of its own, and leaves none.
        let name = place.path().join(format!("fsx-{}-{seed}", if road == Road::Bypass { "b" } else { "k" }));
        let start = Instant::now();
        let output = command.arg(&name).output().unwrap();
        assert!(
            output.status.success() && text(&output.stdout).contains("A-OK"),
            "fsx of {operations} operations, seed {seed}, {road}:\n{configuration}\n{}",
            said(&output)
        );
        // Unlinked on the mount, or else the kernel's name would be counted as another's.
        fs::remove_file(&name).unwrap();
        println!("  seed {seed}, {road}: {:.1} s", start.elapsed().as_secs_f64());
    }

    /// What a run by the bypass must have left in the counters.
    fn assert_bypassed(&self, calls: &Calls, opens: Opens) {
        println!("  seed {}: {calls:?}", self.seed);
        assert!(answered(calls, "open") > 0, "fsx ran without the library: {calls:?}");
        if opens == Opens::Ring && self.configuration == READS_AND_WRITES {
            // Out of 38 operations 20 read or write.
            let moved = answered(calls, "read") + answered(calls, "write");
            assert!(moved > self.operations / 4, "{calls:?}");
        }
    }
}

/// What one run does. fsx leaves a mapping behind for each that it has read (`domapread`), and whatever changes a file's size
/// looks at all of its mappings: a long run takes time by the square, and ends at `vm.max_map_count`. So many are made.
const OPERATIONS_OF_A_RUN: u64 = 5_000;
const RUNS_IN_CI: u64 = 4;
const RUNS_AT_LENGTH: u64 = 1_000_000 / OPERATIONS_OF_A_RUN;

/// A file system's mounts.
struct Places {
    native: Place,
    kernel: Place,
    bypass: Place,
    /// For both roads.
    both: Place,
}

impl Places {
    fn new(subject: Subject) -> Self {
        let [kernel, bypass, both] =
            [Road::Kernel, Road::Bypass, Road::Bypass].map(|road| subject.place(road));
        Self { native: subject.place(Road::Native), kernel, bypass, both }
    }

    /// fsx by each road on a mount of its own, at the same time, and then by both roads in one mount.
    fn pass(&self, run: &Run, opens: Opens) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let calls = counted(&self.kernel, || run.check(&self.kernel, Road::Kernel));
                assert_eq!(calls.total_answered(), 0, "{calls:?}");
            });
            let calls = counted(&self.bypass, || run.check(&self.bypass, Road::Bypass));
            run.assert_bypassed(&calls, opens);
        });
        std::thread::scope(|scope| {
            scope.spawn(|| run.check(&self.both, Road::Kernel));
            let calls = counted(&self.both, || run.check(&self.both, Road::Bypass));
            run.assert_bypassed(&calls, opens);
        });
    }
}

/// Runs on each file system in turn; in CI on the first alone. The first seed is always the same, the others never are.
fn exercised(subjects: &[Subject], opens: Opens) {
    let (subjects, runs) = match is_long() {
        true => (subjects, RUNS_AT_LENGTH),
        false => (&subjects[..1], RUNS_IN_CI),
    };
    println!("{subjects:?}: {runs} runs of {OPERATIONS_OF_A_RUN} operations each");
    let places: Vec<_> = subjects.iter().map(|subject| Places::new(*subject)).collect();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let configurations = [OPERATIONS, READS_AND_WRITES];
    for number in 0..runs {
        let seeds = number / configurations.len() as u64;
        let run = Run {
            configuration: configurations[number as usize % configurations.len()],
            seed: if seeds == 0 { 1 } else { u64::from(now.subsec_nanos()) + seeds },
            operations: OPERATIONS_OF_A_RUN,
        };
        let places = &places[seeds as usize % places.len()];
        if number < RUNS_IN_CI {
            run.check(&places.native, Road::Native);
        }
        places.pass(&run, opens);
    }
}

/// The passthrough with options, and those that change how long anything is remembered.
fn passthrough(options: &'static [&'static str]) -> [Subject; 3] {
    ["--cache=auto", "--cache=never", "--cache=always"].map(|cache| Subject::Passthrough(options, cache))
}

#[test]
fn fsx_finds_nothing_in_files_that_are_granted() {
    exercised(&passthrough(&[]), Opens::Granted);
}

#[test]
fn fsx_finds_nothing_in_files_that_are_never_granted() {
    exercised(&passthrough(&["-o", "grant=never"]), Opens::Ring);
}

#[test]
fn fsx_finds_nothing_in_files_that_are_granted_when_it_pays() {
    exercised(&passthrough(&["-o", "grant=large"]), Opens::Granted);
}

#[test]
fn fsx_finds_nothing_in_memory() {
    exercised(&[Subject::Memory], Opens::Ring);
}
