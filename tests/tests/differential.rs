//! Random scripts of file calls do the same on all roads.
//!
//! | variable | means |
//! | --- | --- |
//! | `FINESSE_DIFF_SEED` | the seed of the random part, which is otherwise made up and said |
//! | `FINESSE_DIFF_FIRST` | the number of its first script |
//! | `FINESSE_DIFF_SECONDS` | how long it makes scripts: `FINESSE_LONG_SECONDS`, or an hour |
//! | `FINESSE_DIFF_SUBJECT` | which of `SUBJECTS` alone, by its number |
//! | `FINESSE_DIFF_FAILURES` | how many failures it collects before it ends |
//! | `FINESSE_DIFF_BRIEF` | listings without the helpers that make them programs |

use std::fmt::Write;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use finesse_tests::differential::compare::{Difference, compare};
use finesse_tests::differential::performer;
use finesse_tests::differential::script::{Script, scripts};
use finesse_tests::differential::site::{Order, Outcome, Programs, Roads, Site, Subject};
use finesse_tests::needs;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestRng, TestRunner};

/// Longest search for the smallest script.
const SHRINKING: Duration = Duration::from_secs(90);

/// The passthrough with each way to decide which descriptors it grants and how long it is believed, also where unlinks are deferred, and
/// the file system in memory.
const SUBJECTS: [Subject; 8] = [
    ALWAYS,
    NEVER,
    LARGE,
    Subject::Memory,
    Subject::Passthrough(&["--cache=always", "-o", "grant=never"]),
    Subject::Passthrough(&["--cache=never"]),
    Subject::Passthrough(&["--cache=always", "-o", "unlink=deferred"]),
    Subject::Passthrough(&["--cache=always", "-o", "unlink=deferred,grant=never"]),
];
const ALWAYS: Subject = Subject::Passthrough(&[]);
/// Descriptors are virtual until it pays to have them granted.
const LARGE: Subject = Subject::Passthrough(&["-o", "grant=large"]);
/// All descriptors are virtual.
const NEVER: Subject = Subject::Passthrough(&["-o", "grant=never"]);

/// The places of one subject.
struct Sites {
    programs: Programs,
    sites: Vec<Site>,
    /// That scripts have made at each.
    calls: usize,
}

impl Sites {
    fn new(subject: Subject) -> Self {
        // No native directory is like the file system in memory: each has its own size and blocks of directories.
        let roads = Roads::ALL.iter().filter(|roads| subject != Subject::Memory || **roads != Roads::Native);
        Self {
            programs: Programs::new(),
            sites: roads.map(|roads| Site::new(*roads, subject)).collect(),
            calls: 0,
        }
    }

    /// What went differently, and how.
    fn differ(&mut self, script: &Script) -> Option<(Difference, Vec<Outcome>)> {
        let outcomes: Vec<_> =
            self.sites.iter_mut().map(|site| site.perform(&self.programs, script)).collect();
        self.calls += script.steps.len();
        compare(script, &outcomes).map(|difference| (difference, outcomes))
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// A runner whose script is a function of the seed and the script's number.
fn runner(seed: u64, script: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&script.to_le_bytes());
    let config = Config { failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn described(script: &Script, difference: &Difference, outcomes: &[Outcome]) -> String {
    let said = |index: usize| {
        let each: Vec<&str> = outcomes
            .iter()
            .map(|outcome| outcome.results.get(index).map_or("nothing", String::as_str))
            .collect();
        if each.iter().all(|said| *said == each[0]) {
            each[0].to_owned()
        } else {
            let mut text = String::from("DIFFERENT:");
            for (said, roads) in each.iter().rev().zip(Roads::ALL.into_iter().rev()) {
                let _ = write!(text, " {roads:?} {said};");
            }
            text
        }
    };
    format!(
        "{difference:?}\n\n{}\n{}\nthe same in the form that is kept:\n{script}",
        performer::steps(script, said),
        match std::env::var_os("FINESSE_DIFF_BRIEF") {
            Some(_) => String::new(),
            None => performer::listing(script, said),
        },
    )
}

/// Which scripts of a seed are performed.
struct Extent {
    first: u64,
    scripts: u64,
    time: Duration,
    failures: usize,
}

/// Performs a seed's scripts; says all failures, shrunk, and returns how many there were.
fn explore(sites: &mut Sites, seed: u64, extent: &Extent) -> usize {
    let start = Instant::now();
    let mut failures = 0;
    let mut performed = 0;
    while performed < extent.scripts && start.elapsed() < extent.time && failures < extent.failures {
        let number = extent.first + performed;
        performed += 1;
        let mut runner = runner(seed, number);
        let script = scripts().new_tree(&mut runner).expect("nothing is rejected").current();
        if let Some(failure) = sites.differ(&script) {
            let (script, (difference, outcomes)) = smallest(sites, script, failure);
            let text = described(&script, &difference, &outcomes);
            println!("FINESSE_DIFF_SEED={seed} FINESSE_DIFF_FIRST={number}: {text}\n");
            failures += 1;
        }
    }
    println!(
        "seed {seed}: {performed} scripts of {} calls in {} seconds, {failures} failures",
        sites.calls,
        start.elapsed().as_secs()
    );
    for site in sites.sites.iter().filter(|site| site.roads != Roads::Native) {
        let answered: u64 = site.place().mount().account().answered.values().sum();
        println!("{:?}: {answered} calls went through the ring", site.roads);
        // Otherwise roads were compared with themselves.
        assert_eq!(answered > performed, site.roads != Roads::Kernel, "{:?}", site.roads);
    }
    failures
}

/// The smallest script found that differs, and how.
fn smallest(
    sites: &mut Sites,
    mut script: Script,
    mut failure: (Difference, Vec<Outcome>),
) -> (Script, (Difference, Vec<Outcome>)) {
    // What comes after the first difference has no part in it.
    if let Some(step) = failure.0.step {
        script.steps.truncate(step + 1);
    }
    let start = Instant::now();
    let script = script.shrunk(|smaller| {
        let again = if start.elapsed() < SHRINKING { sites.differ(smaller) } else { None };
        let fails = again.is_some();
        failure = again.unwrap_or_else(|| failure.clone());
        fails
    });
    (script, failure)
}

/// Scripts that did different things once.
const FOUND: [&str; 13] = [
    // Who works in a directory that others remove, or replace, sees an empty one.
    "ordinary=00 preloaded=01\n0 unlinkat -1 :a 0\n0 mkdir :a 420\n10 chdir :a\n10 rmdir R/a\n10 mkdir :a 420\n10 stat :.",
    "ordinary=00 preloaded=10\n0 mkdir :n 493\n0 mkdir :n2 493\n10 chdir :n\n0 rename R/n2 R/n\n10 mkdir :a 420\n10 stat :.\n10 stat :a",
    // Whoever may not keep a set-group-ID bit writes directly to what was opened to be appended to.
    "ordinary=11 preloaded=01\n0 create 1 :n 1218 1517\n0 fcntl-setfl 1 0\n0 writev 1 1 5 5",
    // Not to wait is nothing that FUSE can.
    "ordinary=00 preloaded=01\n10 create 3 :a 17474 420\n10 pwritev2 3 1 5 5 0 8",
    // The kernel takes a granted descriptor and one of its own for ones of two file systems.
    "ordinary=00 preloaded=01\n0 open 1 :c 66 3583\n0 open 0 :c 2 420\n0 copy_file_range 0 1 0 5",
    // No descriptor is no stream's.
    "ordinary=00 preloaded=10\n0 opendir 1 :d/e\n0 lseek 0 0 0\n0 readdir 1",
    // What O_DIRECT demands is the source's affair, and with kernel passthrough for as long as the file is open.
    "ordinary=00 preloaded=01\n0 open 2 :a 16513 420\n0 fcntl-setfl 2 0\n0 pwrite 2 1 5 0",
    "ordinary=00 preloaded=10\n0 create 1 :a 17474 420\n0 write 1 1 5",
    // What is read through a granted descriptor is accessed, though the daemon does not see it.
    "ordinary=00 preloaded=01\n0 stat :b\n0 fgets R/d/../b\n0 stat :b",
    // Permission to write in a directory is judged before what the name stands for.
    "ordinary=01 preloaded=01\n0 chmod :m/ 457\n10 rename :a :d/e\n10 unlink :d/e\n10 rmdir :d/a",
    // Flags that exclude each other, or that nobody knows, are wrong whatever the names are.
    "ordinary=00 preloaded=10\n0 renameat2 -1 :a -1 :a 3\n0 renameat2 -1 :gone/x -1 :a 8",
    "ordinary=00 preloaded=10\n0 renameat2 -1 :a -1 :h 1\n0 renameat2 -1 :a -1 :d 2\n0 renameat2 -1 :a -1 :d 1",
    // Whoever has opened a descriptor matters only if the name is empty.
    "ordinary=10 preloaded=10\n0 create 1 :a 66 420\n0 linkat 1 :a -1 :a 4096",
];

/// The same with virtual descriptors.
const FOUND_VIRTUAL: [&str; 3] = [
    // An empty name stands for the file, not for the placeholder.
    "ordinary=00 preloaded=10\n0 open 0 :a 2 420\n0 linkat 0 : -1 :n 4096\n0 same 0 :n",
    // What the kernel reads is accessed for the bypass, too.
    "ordinary=00 preloaded=01\n10 open 0 :a 2 420\n0 create 0 :a 66 420\n0 pread 0 5 0\n10 fstat 0",
    // Not only the daemon's user may open the placeholder.
    "ordinary=10 preloaded=01\n0 open 0 :a 2 420",
];

/// The same in memory.
const FOUND_IN_MEMORY: [&str; 4] = [
    // What is made must not end with a slash, in a link's text either.
    "ordinary=00 preloaded=10\n10 symlink :gone/ :n\n10 create 0 :n 66 420\n10 symlink :b/ :n2\n10 create 0 :n2 66 420",
    // Direct writes of ordinary users take set-user-ID bits away.
    "ordinary=11 preloaded=10\n0 openat 0 -1 R/c 17474 2505\n0 writev 0 1 5 5",
    // That one directory is above the other is said before what they are, and what may be done with them.
    "ordinary=00 preloaded=10\n0 rename :d :d//a",
    "ordinary=00 preloaded=01\n10 rename :m/e/x :d/e",
];

/// The same where only large files are granted.
const FOUND_LARGE: [&str; 2] = [
    // A descriptor that was granted may be in use when nothing else is known of its file any more.
    "ordinary=00 preloaded=10\n0 open 0 :a 524288 420\n0 mkdirat -1 :a 420\n0 fcntl-lock 0 6 1 5 5\n0 open-directory 3 :a 4096\n0 preadv 0 5 5 0\n0 fstatat -1 :a 0",
    // What root writes takes no set-user-ID bits away, whoever opened the file first.
    "ordinary=01 preloaded=10\n10 create 0 :c 64 3583\n0 create 0 :a 263234 1444\n0 link :h :a\n0 print :../w/c :w+ 100",
];

#[test]
fn what_was_different_once_is_the_same() {
    if !needs::root("what_was_different_once_is_the_same") {
        return;
    }
    for (subject, found) in [
        (ALWAYS, &FOUND[..]),
        (NEVER, &FOUND_VIRTUAL),
        (LARGE, &FOUND_LARGE),
        (Subject::Memory, &FOUND_IN_MEMORY),
    ] {
        let mut sites = Sites::new(subject);
        for script in found.iter().map(|text| Script::parse(text)) {
            if let Some((difference, outcomes)) = sites.differ(&script) {
                panic!("{subject:?}: {}", described(&script, &difference, &outcomes));
            }
        }
    }
}

/// Several processes and threads at once, in no order: nothing that they append may be lost or torn, and of many that
/// make the same name one succeeds.
#[test]
fn what_many_do_at_once_is_done_once_and_completely() {
    const ACTORS: [usize; 4] = [0, 1, 10, 11];
    const ROUNDS: usize = 40;
    const RECORD: usize = 700;
    if !needs::root("what_many_do_at_once_is_done_once_and_completely") {
        return;
    }
    let append = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
    let exclusive = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let mut text = String::from("ordinary=00 preloaded=10\n");
    for (slot, actor) in ACTORS.iter().enumerate() {
        let _ = writeln!(text, "{actor} create {} :log {append} 420", slot % 2);
    }
    for round in 0..ROUNDS {
        for (slot, actor) in ACTORS.iter().enumerate() {
            let own = format!(":d/own{actor}");
            let _ = writeln!(
                text,
                "{actor} write {} {} {RECORD}\n{actor} create {} :once{round} {exclusive} 420\n\
                 {actor} mkdir :both{round} 493\n{actor} creat {} {own} 420\n{actor} rename {own} :d/moved\n\
                 {actor} close {}",
                slot % 2,
                slot + 1,
                slot % 2 + 2,
                slot % 2 + 4,
                slot % 2 + 4,
            );
        }
    }
    let script = Script::parse(&text);
    let mut sites = Sites::new(ALWAYS);
    for site in &mut sites.sites {
        let roads = site.roads;
        let outcome = site.perform_in(Order::None, &sites.programs, &script, |here| {
            let log = std::fs::read(here.join("log")).unwrap();
            assert_eq!(log.len(), ACTORS.len() * ROUNDS * RECORD, "{roads:?}: appended records");
            let mut counts = std::collections::BTreeMap::new();
            for record in log.chunks(RECORD) {
                *counts.entry(record.to_vec()).or_insert(0) += 1;
            }
            let counts: Vec<_> = counts.into_values().collect();
            assert_eq!(counts, [ROUNDS; ACTORS.len()], "{roads:?}: whole records of each");
        });
        let said = |what: &str| outcome.results.iter().filter(|result| *result == what).count();
        let losers = 2 * ROUNDS * (ACTORS.len() - 1);
        assert_eq!(said("-1 EEXIST"), losers, "{roads:?}: of those who make a name, all but one fail");
        assert_eq!(said("700"), ROUNDS * ACTORS.len(), "{roads:?}");
        let unforeseen: Vec<_> = script
            .steps
            .iter()
            .zip(&outcome.results)
            .filter(|(_, result)| !["-1 EEXIST", "700", "0"].contains(&result.as_str()))
            .collect();
        assert!(unforeseen.is_empty(), "{roads:?}: everything else succeeds: {unforeseen:?}");
        assert_eq!(outcome.results.len(), script.steps.len(), "{roads:?}: {:?}", outcome.results.last());
        assert_eq!(outcome.tree, outcome.source, "{roads:?}");
    }
}

#[test]
fn a_listing_is_a_program_that_does_what_the_script_did() {
    if !needs::root("a_listing_is_a_program_that_does_what_the_script_did") {
        return;
    }
    let script = Script::parse(
        "ordinary=01 preloaded=10
         0 openat 0 -1 R/b 66 420
         1 pread 0 100 4096
         10 chmod :a 384
         0 fork 2
         20 lseek 0 5 0
         0 write 0 7 4096
         10 list :
         20 exec
         21 renameat2 -1 :d/e -1 :gone/x 1
         0 fstat 0",
    );
    let mut native = Site::new(Roads::Native, ALWAYS);
    let outcome = native.perform(&Programs::new(), &script);
    assert_eq!(outcome.results.len(), script.steps.len(), "{:?}", outcome.results);

    let work = tempfile::tempdir().unwrap();
    std::fs::set_permissions(work.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let text = performer::listing(&script, |index| outcome.results[index].clone());
    let program = performer::compiled(work.path(), "listing", &text);
    let [place, turns, said] = ["place", "turns", "said"].map(|name| work.path().join(name));
    std::fs::write(&turns, [0; 4096]).unwrap();
    std::fs::set_permissions(&turns, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(Command::new(&program).arg("prepare").arg(&place).status().unwrap().success());
    let output = File::options().create(true).append(true).open(&said).unwrap();
    let processes = [(0, "0"), (1, "65534")].map(|(process, user)| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        command.arg(&program).arg(&place).arg(process.to_string()).arg(&turns);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).spawn().unwrap()
    });
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let said = std::fs::read_to_string(&said).unwrap();
    let said: Vec<_> = said.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(said, outcome.results);
}

/// The seed whose first scripts are performed in every run of the tests.
const FIXED: u64 = 1;
const FIXED_SCRIPTS: u64 = 120;

#[test]
fn scripts_do_the_same_on_all_roads() {
    if !needs::root("scripts_do_the_same_on_all_roads") {
        return;
    }
    // On a slow machine fewer.
    let extent = Extent { first: 0, scripts: FIXED_SCRIPTS, time: Duration::from_secs(100), failures: 1 };
    assert_eq!(explore(&mut Sites::new(ALWAYS), FIXED, &extent), 0);
}

/// Fewer, as what does not concern descriptors is the same as without the option.
const FIXED_VIRTUAL_SCRIPTS: u64 = 40;

#[test]
fn scripts_do_the_same_on_all_roads_when_nothing_is_granted() {
    if !needs::root("scripts_do_the_same_on_all_roads_when_nothing_is_granted") {
        return;
    }
    let extent =
        Extent { first: 0, scripts: FIXED_VIRTUAL_SCRIPTS, time: Duration::from_secs(40), failures: 1 };
    assert_eq!(explore(&mut Sites::new(NEVER), FIXED, &extent), 0);
}

#[test]
#[ignore = "random: make test-long"]
fn random_scripts_do_the_same_on_all_roads() {
    if !needs::root("random_scripts_do_the_same_on_all_roads") {
        return;
    }
    let seed = number("FINESSE_DIFF_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
        now.as_nanos() as u64 % 1_000_000_000
    });
    println!("FINESSE_DIFF_SEED={seed}");
    let seconds = number("FINESSE_DIFF_SECONDS").or(number("FINESSE_LONG_SECONDS")).unwrap_or(3600);
    let subjects = match number("FINESSE_DIFF_SUBJECT") {
        Some(index) => &SUBJECTS[index as usize..=index as usize],
        None => &SUBJECTS[..],
    };
    let extent = Extent {
        first: number("FINESSE_DIFF_FIRST").unwrap_or(0),
        scripts: u64::MAX,
        time: Duration::from_secs(seconds) / subjects.len() as u32,
        failures: number("FINESSE_DIFF_FAILURES").unwrap_or(1) as usize,
    };
    let mut failures = 0;
    for subject in subjects {
        println!("{subject:?}:");
        failures += explore(&mut Sites::new(*subject), seed, &extent);
    }
    assert_eq!(failures, 0, "scripts did different things on different roads");
}
