//! Sessions of real programs do on a mount what they do on a native directory: same output, same exit status,
//! same files afterwards; and the library changes nothing where no mount is.
//!
//! A session is a shell script of `tests/programs`. It must succeed natively, so that a program that is missing is not
//! taken for one that agrees. Sessions of programs that are too large for every run, or take minutes, are
//! run if `FINESSE_LONG` is set; `make programs-deps` installs what they need, and `make programs` runs all of them and
//! prints how much of each was bypassed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use finesse_tests::account::Calls;
use finesse_tests::mount::Options;
use finesse_tests::road::{Place, Road, environment};
use finesse_tests::tree::{self, Times, Tree};
use finesse_tests::{build, needs};

/// Set if sessions that are too long or too large for every run are wanted.
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
    /// A script that runs at the same time in the same directory, never preloaded.
    other: Option<&'static str>,
    /// Why it is not for every run.
    long: Option<&'static str>,
}

const fn session(script: &'static str, programs: &'static [&'static str]) -> Session {
    Session { script, programs, other: None, long: None }
}

impl Session {
    const fn with(mut self, other: &'static str) -> Self {
        self.other = Some(other);
        self
    }

    const fn long(mut self, why: &'static str) -> Self {
        self.long = Some(why);
        self
    }
}

const REDIRECTIONS: Session = session("redirections", &["bash"]);
const COREUTILS: Session = session("coreutils", &["ls", "setfattr"]);
const FIND: Session = session("find", &["find", "xargs"]);
const TAR: Session = session("tar", &["tar", "setfacl", "setfattr"]);
const RSYNC: Session = session("rsync", &["rsync", "setfacl", "setfattr"]);
const GIT: Session = session("git", &["git"]);
const SQLITE: Session = session("sqlite", &["sqlite3"]).with("sqlite-other");
const PYTHON: Session = session("python", &["/usr/bin/python3", "setfattr"]);
const PERL: Session = session("perl", &["perl", "patch"]);
const GCC: Session = session("gcc", &["gcc", "make"]);
const VIM: Session = session("vim", &["vim", "tmux"]);
const DPKG: Session = session("dpkg", &["dpkg-deb"]);
const CARGO: Session = session("cargo", &["cargo"]).long("takes minutes");
const NODE: Session = session("node", &["node"]).long("needs Node.js, which is large");
const JAVA: Session =
    session("java", &["java", "javac", "jar", "setfattr"]).long("needs a JDK, which is large");
const APT: Session = session("apt", &["apt-get", "dpkg"]).long("downloads packages");
const PYTHON_TESTS: Session = session("python-tests", &["/usr/bin/python3", PYTHON_TEST_SUITE])
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
    /// As the place's road says.
    Plainly,
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
    let mut lines = Vec::new();
    let (mut native, mut here) = (native.lines(), here.lines());
    for number in 1.. {
        match (native.next(), here.next()) {
            (None, None) => break,
            (native, here) if native != here => {
                lines.push(format!(
                    "line {number}:\n  native {}\n  here   {}",
                    native.unwrap_or("-"),
                    here.unwrap_or("-")
                ));
            }
            _ => {}
        }
        if lines.len() == 10 {
            break;
        }
    }
    lines.join("\n")
}

/// Whether a session can be run; says why not.
fn wanted(session: &Session) -> bool {
    if let (Some(why), None) = (session.long, std::env::var_os(LONG)) {
        needs::skipped(
            &format!("the session {}", session.script),
            &format!("{why}: `make programs`, or set {LONG}"),
        );
        return false;
    }
    for program in session.programs {
        assert!(installed(program), "{program} is not installed: `make deps programs-deps`");
    }
    true
}

/// Runs a session natively, preloaded where no mount is, and in mounted places; compares. On the bypass at least a
/// share of the path calls is bypassed, in percent, opening directories aside.
fn agrees(session: &Session, variant: &str, least: f64, mounted: impl Fn(Road) -> Place) {
    if !wanted(session) {
        return;
    }
    let options = Options::default();
    let place = Place::new(Road::Native, &options, |_| ());
    let native = run(session, &place, Start::Plainly);
    assert_eq!(native.status, Some(0), "{} fails natively: {}", session.script, native.output);
    let mut failures = Vec::new();
    let mut took = vec![native.took];
    let mut compare = |how: &str, run: &Run| {
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
    let place = Place::new(Road::Native, &options, |_| ());
    compare("preloaded without a mount", &run(session, &place, Start::PreloadedInVain));
    drop(place);
    let mut calls = Calls::default();
    for road in [Road::Kernel, Road::Bypass] {
        let place = mounted(road);
        let found = run(session, &place, Start::Plainly);
        compare(&road.to_string(), &found);
        took.push(found.took);
        if road == Road::Bypass {
            calls = found.calls.unwrap_or_default();
        }
    }
    println!("\n{}", row(session, variant, &calls, &took));
    if calls.total_answered() == 0 || calls.bypassed() < least {
        failures.push(format!("only {:.1} % bypassed: {calls:?}", calls.bypassed()));
    }
    assert!(failures.is_empty(), "{}{variant}: {}", session.script, failures.join("\n"));
}

/// A line of the table that `make programs` prints.
fn row(session: &Session, variant: &str, calls: &Calls, took: &[Duration]) -> String {
    let left: u64 = calls.to_kernel.values().sum();
    let all = calls.total_answered() + left;
    let mut reasons: Vec<_> = calls.to_kernel.iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let share = |count: u64| count as f64 * 100.0 / all.max(1) as f64;
    let reasons: Vec<_> =
        reasons.iter().map(|(reason, count)| format!("{reason} {:.1}", share(**count))).collect();
    let seconds: Vec<_> = took.iter().map(|took| format!("{:.1}", took.as_secs_f64())).collect();
    format!(
        "| {}{variant} | {all} | {:.1} | {} | {} |",
        session.script,
        share(calls.total_answered()),
        reasons.join(", "),
        seconds.join(" | ")
    )
}

/// A passthrough file system with the options that it has by default.
fn passthrough(road: Road) -> Place {
    Place::new(road, &Options::default(), |_| ())
}

/// A file system in memory, which has no backing descriptors to give away.
fn memory(road: Road) -> Place {
    Place::of_memory(road, &Options::default())
}

macro_rules! sessions {
    ($variant:literal, $least:expr, $place:expr; $($name:ident: $session:expr;)*) => {
        $(#[test]
        fn $name() {
            agrees(&$session, $variant, $least, $place);
        })*
    };
}

sessions! {
    "", 80.0, passthrough;
    bash_redirects_as_natively: REDIRECTIONS;
    coreutils_agree: COREUTILS;
    find_and_xargs_agree: FIND;
    tar_keeps_what_files_have: TAR;
    rsync_keeps_what_files_have: RSYNC;
    git_agrees: GIT;
    sqlite_agrees_beside_a_process_that_is_not_preloaded: SQLITE;
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

sessions! {
    // Files are opened through the kernel.
    ", in memory", 10.0, memory;
    bash_redirects_as_natively_in_memory: REDIRECTIONS;
    git_agrees_in_memory: GIT;
    sqlite_agrees_beside_a_process_that_is_not_preloaded_in_memory: SQLITE;
    python_agrees_in_memory: PYTHON;
    perl_agrees_in_memory: PERL;
    dpkg_builds_and_installs_the_same_in_memory: DPKG;
}
