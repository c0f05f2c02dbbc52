//! Sessions of real programs do on a mount what they do on a native directory: same output, same exit status,
//! same files afterwards; and the library changes nothing where no mount is.
//!
//! A session is a shell script of `tests/programs`. It must succeed natively, so that a program that is missing is not
//! taken for one that agrees. Sessions of large programs are run where those are installed, and sessions that take minutes
//! if `FINESSE_LONG` is set; `make programs-deps` installs what they need, and `make programs` runs all of them and
//! prints how much of each was bypassed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use finesse_tests::account::Calls;
use finesse_tests::mount::Options;
use finesse_tests::road::{CONNECT_AFTER, Place, Road, environment};
use finesse_tests::tree::{self, Times, Tree};
use finesse_tests::{build, needs};

/// Set if every session is wanted.
const LONG: &str = "FINESSE_LONG";
/// How long a session may take before it is killed and has failed, in seconds.
const LIMIT: &str = "900";

/// A file of the package with Python's own tests, for the Python of Debian 12.
const PYTHON_TEST_SUITE: &str = "/usr/lib/python3.11/test/test_os.py";

/// A script, and how it is run.
#[derive(Clone, Copy)]
struct Session {
    /// The script, without `.sh`.
    script: &'static str,
    /// What must be installed.
    programs: &'static [&'static str],
    /// A script that runs at the same time in the same directory, never preloaded; only where files are granted: what two roads
    /// change in one page of a file, one of them through a mapping, may be lost.
    other: Option<&'static str>,
    /// Whether its programs are too large to be asked for in every run.
    large: bool,
    /// Why it is not for every run.
    long: Option<&'static str>,
    /// How much of its path calls is bypassed at least, in percent, opening directories aside.
    least: f64,
    /// Whether it makes access control lists, which the file system in memory does not have.
    acls: bool,
}

const fn session(script: &'static str, programs: &'static [&'static str], least: f64) -> Session {
    Session { script, programs, other: None, large: false, long: None, least, acls: false }
}

impl Session {
    const fn with(mut self, other: &'static str) -> Self {
        self.other = Some(other);
        self
    }

    const fn with_acls(mut self) -> Self {
        self.acls = true;
        self
    }

    const fn large(mut self) -> Self {
        self.large = true;
        self
    }

    const fn long(mut self, why: &'static str) -> Self {
        self.long = Some(why);
        self
    }
}

const REDIRECTIONS: Session = session("redirections", &["bash"], 97.0);
const COREUTILS: Session = session("coreutils", &["ls", "setfattr"], 95.0);
const FIND: Session = session("find", &["find", "xargs"], 98.0);
/// It gives each file an access control list, which is left to the kernel.
const TAR: Session = session("tar", &["tar", "setfacl", "setfattr"], 92.0).with_acls();
const RSYNC: Session = session("rsync", &["rsync", "setfacl", "setfattr"], 96.0).with_acls();
const GIT: Session = session("git", &["git"], 95.0);
const SQLITE: Session = session("sqlite", &["sqlite3"], 97.0);
const SQLITE_TOGETHER: Session = session("sqlite-together", &["sqlite3"], 97.0).with("sqlite-other");
const PYTHON: Session = session("python", &["/usr/bin/python3", "setfattr"], 95.0);
const PERL: Session = session("perl", &["perl", "patch"], 98.0);
const GCC: Session = session("gcc", &["gcc", "make"], 95.0);
const VIM: Session = session("vim", &["vim", "tmux"], 95.0);
const DPKG: Session = session("dpkg", &["dpkg-deb"], 98.0);
const CARGO: Session = session("cargo", &["cargo"], 95.0).long("takes minutes");
const NODE: Session = session("node", &["node"], 98.0).large();
const JAVA: Session = session("java", &["java", "javac", "jar", "setfattr"], 98.0).large();
const APT: Session = session("apt", &["apt-get", "dpkg"], 90.0).long("downloads packages");
const PYTHON_TESTS: Session = session("python-tests", &["/usr/bin/python3", PYTHON_TEST_SUITE], 96.0)
    .long("takes minutes and needs Python's tests");

/// What a session did on a road.
struct Run {
    status: Option<i32>,
    output: String,
    tree: Tree,
    took: Duration,
    calls: Option<Calls>,
}

/// How a session is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// As the place's road says. On the bypass every process connects at once.
    Plainly,
    /// The same as users start them: a process connects once that pays.
    AsUsersDo,
    /// With the library, where no mount is.
    PreloadedInVain,
}

/// The file that holds a script.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name).with_extension("sh")
}

/// Where a program is, if it is installed.
fn installed(program: &str) -> bool {
    let found = |path: &Path| path.join(program).is_file();
    if program.starts_with('/') {
        return Path::new(program).is_file();
    }
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|path| found(&path)))
}

/// Runs a session in a place.
fn run(session: &Session, place: &Place, start: Start) -> Run {
    let limited = |mut command: Command, name: &str| {
        command
            .args(["-k", "5", LIMIT, "bash"])
            .arg(script(name))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let home = std::env::var_os("HOME").unwrap_or_default();
        for (variable, directory) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            command
                .env(variable, std::env::var_os(variable).unwrap_or(Path::new(&home).join(directory).into()));
        }
        command.env("FINESSE_WORKSPACE", build::workspace());
        if start == Start::AsUsersDo {
            command.env_remove(CONNECT_AFTER);
        }
        command
    };
    let mut command = place.command("timeout");
    if start == Start::PreloadedInVain {
        command.env("LD_PRELOAD", build::directory().join(build::LIBRARY)).env("FINESSE_MOUNTS", "");
    }
    let before = place.is_mounted().then(|| place.mount().account());
    let begin = Instant::now();
    let other = session.other.map(|other| {
        let mut command = Command::new("timeout");
        environment(&mut command);
        command.current_dir(place.path()).stdin(Stdio::null());
        limited(command, other).spawn().unwrap()
    });
    let output = limited(command, session.script).output().unwrap();
    let mut said = vec![(output.status.code(), output.stdout, output.stderr)];
    if let Some(other) = other {
        let output = other.wait_with_output().unwrap();
        said.push((output.status.code(), output.stdout, output.stderr));
    }
    let took = begin.elapsed();
    let calls = before.map(|before| place.mount().account().since(&before));
    let status = said.iter().map(|(code, ..)| *code).find(|code| *code != Some(0)).unwrap_or(Some(0));
    let output: Vec<_> =
        said.iter().flat_map(|(_, out, err)| [place.neutral(out), place.neutral(err)]).collect();
    // The test is not preloaded: it sees a mount through the kernel.
    Run { status, output: output.join("\n"), tree: tree::read(place.path(), Times::Ignored), took, calls }
}

/// How a session's output differs from the native one, at most the first lines.
fn difference(native: &str, here: &str) -> String {
    let (native, here): (Vec<_>, Vec<_>) = (native.lines().collect(), here.lines().collect());
    let (mut at, mut at_here) = (0, 0);
    let mut lines = Vec::new();
    while lines.len() < 20 && (at, at_here) != (native.len(), here.len()) {
        let (left, right) = (&native[at..], &here[at_here..]);
        // Lines that only one of them has, up to the nearest that both have.
        let nearest = (0..left.len() + right.len()).find_map(|skipped| {
            (0..=skipped).map(|skip| (skip, skipped - skip)).find(|(skip, skip_here)| {
                left.get(*skip).is_some_and(|line| right.get(*skip_here) == Some(line))
            })
        });
        let (skip, skip_here) = nearest.unwrap_or((left.len(), right.len()));
        let only = |lines: &[&str], number: usize, who: &str| {
            let numbered = lines.iter().enumerate();
            numbered.map(|(index, line)| format!("{who} {}: {line}", number + index + 1)).collect::<Vec<_>>()
        };
        lines.extend(only(&left[..skip], at, "native"));
        lines.extend(only(&right[..skip_here], at_here, "here  "));
        at += skip + usize::from(nearest.is_some());
        at_here += skip_here + usize::from(nearest.is_some());
    }
    lines.truncate(20);
    lines.join("\n")
}

/// Whether a session is to be run; says why not.
///
/// # Panics
/// A program is missing that is to be there.
fn wanted(session: &Session) -> bool {
    let missing = session.programs.iter().find(|program| !installed(program));
    let why = match (std::env::var_os(LONG), session.long, missing) {
        (None, Some(why), _) => format!("{why}: `make programs`, or set {LONG}"),
        (None, None, Some(program)) if session.large => {
            format!("{program}, which is large, is not installed: `make programs-deps`")
        }
        (_, _, Some(program)) => panic!("{program} is not installed: `make deps programs-deps`"),
        (_, _, None) => return true,
    };
    needs::skipped(&format!("the session {}", session.script), &why);
    false
}

/// Runs a session natively, preloaded where no mount is, and on both roads of each variant; compares. On the bypass, at
/// least the share of the path calls that the session names is bypassed, if processes connect at once.
fn agrees(session: &Session) {
    if !wanted(session) {
        return;
    }
    let place = Place::new(Road::Native, &Options::default(), |_| ());
    let native = run(session, &place, Start::Plainly);
    assert_eq!(native.status, Some(0), "{} fails natively: {}", session.script, native.output);
    let mut failures = Vec::new();
    let compare = |failures: &mut Vec<String>, how: &str, run: &Run| {
        if run.status != native.status {
            failures.push(format!("{how}: status {:?}", run.status));
        }
        if run.output != native.output {
            failures.push(format!("{how}: output differs\n{}", difference(&native.output, &run.output)));
        }
        let difference = tree::difference(&native.tree, &run.tree);
        if !difference.is_empty() {
            failures.push(format!("{how}: files differ\n{difference}"));
        }
    };
    let place = Place::new(Road::Native, &Options::default(), |_| ());
    compare(&mut failures, "preloaded without a mount", &run(session, &place, Start::PreloadedInVain));
    drop(place);
    let suits = |variant: &&Variant| {
        (variant.has_acls || !session.acls) && (variant.grants || session.other.is_none())
    };
    for variant in VARIANTS.iter().filter(suits) {
        let [kernel, bypass] = [Road::Kernel, Road::Bypass].map(|road| {
            let found = run(session, &(variant.place)(road), Start::Plainly);
            compare(&mut failures, &format!("{road}{}", variant.name), &found);
            found
        });
        if variant.grants {
            let found = run(session, &(variant.place)(Road::Bypass), Start::AsUsersDo);
            compare(&mut failures, &format!("bypass{}, as users start it", variant.name), &found);
        }
        let calls = bypass.calls.unwrap_or_default();
        println!("\n{}", row(session, variant, &calls, &[native.took, kernel.took, bypass.took]));
        if calls.total_answered() == 0 || calls.bypassed() < session.least {
            failures.push(format!("{}: only {:.1} % bypassed: {calls:?}", variant.name, calls.bypassed()));
        }
    }
    assert!(failures.is_empty(), "{}: {}", session.script, failures.join("\n"));
}

/// A line of the table that `make programs` prints.
fn row(session: &Session, variant: &Variant, calls: &Calls, took: &[Duration]) -> String {
    let left: u64 = calls.to_kernel.values().sum();
    let all = calls.total_answered() + left;
    let mut reasons: Vec<_> = calls.to_kernel.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let share = |count: u64| count as f64 * 100.0 / all.max(1) as f64;
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, count)| format!("{reason} {:.1}", share(**count))).collect();
    let seconds: Vec<_> = took.iter().map(|took| format!("{:.1}", took.as_secs_f64())).collect();
    format!(
        "| {}{} | {all} | {:.1} | {} | {} |",
        session.script,
        variant.name,
        share(calls.total_answered()),
        reasons.join(", "),
        seconds.join(" | ")
    )
}

/// What is mounted.
struct Variant {
    /// What a line of the table calls it.
    name: &'static str,
    place: fn(Road) -> Place,
    has_acls: bool,
    grants: bool,
}

/// Files are granted; they stay in the daemon until only the kernel can go on; there is nothing to grant.
const VARIANTS: [Variant; 3] = [
    Variant { name: "", place: |road| passthrough(road, &[]), has_acls: true, grants: true },
    Variant {
        name: ", grant=never",
        place: |road| passthrough(road, &["-o", "grant=never"]),
        has_acls: true,
        grants: false,
    },
    Variant {
        name: ", in memory",
        place: |road| Place::of_memory(road, &Options::default()),
        has_acls: false,
        grants: false,
    },
];

fn passthrough(road: Road, arguments: &[&str]) -> Place {
    Place::new(road, &Options { arguments, ..Options::default() }, |_| ())
}

macro_rules! sessions {
    ($($name:ident: $session:expr;)*) => {
        $(#[test]
        fn $name() {
            agrees(&$session);
        })*
    };
}

sessions! {
    bash_redirects_as_natively: REDIRECTIONS;
    coreutils_agree: COREUTILS;
    find_and_xargs_agree: FIND;
    tar_keeps_what_files_have: TAR;
    rsync_keeps_what_files_have: RSYNC;
    git_agrees: GIT;
    sqlite_agrees: SQLITE;
    sqlite_agrees_beside_a_process_that_is_not_preloaded: SQLITE_TOGETHER;
    python_agrees: PYTHON;
    perl_agrees: PERL;
    gcc_and_make_build_the_same: GCC;
    vim_edits_in_a_terminal: VIM;
    dpkg_builds_and_installs_the_same: DPKG;
    cargo_builds_and_tests: CARGO;
    node_agrees: NODE;
    java_agrees: JAVA;
    apt_packages_unpack_intact: APT;
    pythons_own_tests_give_the_native_verdicts: PYTHON_TESTS;
}
