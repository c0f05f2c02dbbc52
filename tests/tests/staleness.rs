//! The staleness hunt: when a call has returned on one road, no later call on the other shows the old state.
//!
//! | variable | means |
//! | --- | --- |
//! | `FINESSE_HUNT_SEED` | the seed of the long hunt, which is otherwise made up and said |
//! | `FINESSE_HUNT_CHECKS` | how many checks the long hunt makes: 10 000 000 on all subjects together |
//! | `FINESSE_HUNT_SUBJECT` | which of `SUBJECTS` alone, by its number |
//! | `FINESSE_HUNT_MUTANT` | which of `MUTANTS` alone, by its number |

use std::time::Duration;

use finesse_tests::guest::{self, Kernel};
use finesse_tests::hunt::{self, Extent, PARTY, Party, Subject, Tally};
use finesse_tests::needs;
use finesse_tests::uring::Offer;

const fn passthrough<'s>(name: &'s str, arguments: &'s [&'s str]) -> Subject<'s> {
    Subject { name, memory: false, arguments, wrapper: &[], epochs: false }
}

/// The daemon's filter of names is full all the time: what it knows the kernel has is forgotten by an epoch, or has no lifetime.
const fn crowded(name: &'static str, wrapper: &'static [&'static str], epochs: bool) -> Subject<'static> {
    Subject { name, memory: false, arguments: &["--cache=always"], wrapper, epochs }
}

const SUBJECTS: [Subject<'static>; 10] = [
    passthrough("cache=always", &["--cache=always"]),
    passthrough("cache=always, grant=never", &["--cache=always", "-o", "grant=never"]),
    passthrough("cache=always, grant=large", &["--cache=always", "-o", "grant=large"]),
    passthrough("cache=auto", &["--cache=auto"]),
    passthrough("cache=never", &["--cache=never"]),
    Subject { name: "in memory", memory: true, arguments: &[], wrapper: &[], epochs: false },
    crowded("room for few names", &["env", "FINESSE_MUTANT=room for names"], true),
    crowded("room for few names, no epochs", &["env", "FINESSE_MUTANT=room for names,epochs"], false),
    passthrough("cache=always, unlink=deferred", &["--cache=always", "-o", "unlink=deferred"]),
    DEFERRED,
];

/// Names are known by listing from the first unlink in a directory on.
const DEFERRED: Subject<'static> = Subject {
    wrapper: &["env", "FINESSE_MUTANT=deferred: looks"],
    ..passthrough(
        "cache=always, unlink=deferred, grant=never",
        &["--cache=always", "-o", "unlink=deferred,grant=never"],
    )
};

/// A part of the daemon that keeps the roads coherent. Left out, something stale is seen.
#[derive(Clone, Copy, Debug)]
struct Mutant {
    /// As `daemon/src/mutant.rs` is asked for it; or several, with commas, the first of which is meant.
    parts: &'static str,
    /// What needs it.
    subject: Subject<'static>,
    /// Who hunts.
    party: Party<'static>,
}

const fn mutant(parts: &'static str) -> Mutant {
    Mutant { parts, subject: SUBJECTS[0], party: PARTY }
}

const LOOKS_SELDOM: Party<'static> = Party { habits: &["LOOKS_SELDOM"], ..PARTY };
const LOOKS_SELDOM_MAKES_NO_LINKS: Party<'static> =
    Party { habits: &["LOOKS_SELDOM", "MAKES_NO_LINKS"], ..PARTY };

const MUTANTS: [Mutant; 25] = [
    mutant("kernel road: names"),
    mutant("kernel road: attributes"),
    // What the kernel moves something to it has looked up before, and if it was told that nothing is there, the name is known
    // from that: not where it is not told so, as on Linux 6.19 and later.
    mutant("kernel road: moves,absent names"),
    mutant("kernel road: versions"),
    mutant("answers: mark"),
    mutant("bypass: names"),
    mutant("bypass: attributes"),
    Mutant { party: LOOKS_SELDOM_MAKES_NO_LINKS, ..mutant("bypass: inodes of names") },
    mutant("cache: names"),
    mutant("cache: attributes"),
    mutant("cache: extended attributes"),
    mutant("cache: mark"),
    Mutant { party: LOOKS_SELDOM, ..mutant("cache: hard links") },
    mutant("bypass: written unseen"),
    mutant("grants: writers"),
    mutant("bypass: directories in the kernel"),
    Mutant { subject: SUBJECTS[1], ..mutant("bypass: pages") },
    // Whatever the kernel has looked up in a directory makes it list that anew once the name is dropped.
    Mutant { party: Party { disturbers: 0, ..LOOKS_SELDOM }, ..mutant("bypass: listings") },
    mutant("kernel road: moved listings"),
    mutant("table: names"),
    mutant("table: attributes"),
    mutant("table: mark"),
    mutant("table: marks"),
    mutant("cache: listings"),
    mutant("walk: parent"),
];

/// The kernel answers for files without extended attributes by itself, where it can.
const WITH_BPF: Subject<'static> = passthrough("cache=always, bpf", &["--cache=always", "-o", "bpf"]);

/// Requests come through FUSE over io_uring.
const WITH_RINGS: Subject<'static> =
    passthrough("cache=always, transport=uring", &["--cache=always", "-o", "transport=uring"]);

#[test]
fn nothing_stale_is_seen_through_rings() {
    let Some(_offer) = Offer::set(true, "nothing_stale_is_seen_through_rings") else { return };
    let subject = Mutant { subject: WITH_RINGS, ..mutant("kernel road: names") };
    is_caught(subject, Extent { seed: 1, checks: u64::MAX, time: Duration::from_secs(60) });
    let auto = passthrough("cache=auto, transport=uring", &["--cache=auto", "-o", "transport=uring"]);
    are_clean(&[WITH_RINGS, auto], Extent { seed: 1, checks: 400_000, time: Duration::from_secs(6) });
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Hunts for as long as the extent says on each subject, and finds nothing; each with a seed of its own.
fn are_clean(subjects: &[Subject<'_>], extent: Extent) -> Tally {
    let mut all = Tally::default();
    for (seed, subject) in (extent.seed..).zip(subjects) {
        let tally = hunt::hunt(*subject, PARTY, Extent { seed, ..extent });
        let tally = tally.unwrap_or_else(|report| panic!("{report}"));
        println!(
            "{}: {} changes, {} checks ({} torn in the kernel), {} calls answered by the table, nothing stale",
            subject.name,
            tally.changes(),
            tally.checks(),
            tally.torn,
            tally.from_table
        );
        // With lifetimes of zero there is nothing in it.
        let never = subject.arguments.contains(&"--cache=never");
        assert_eq!(tally.from_table == 0, never, "the table was looked through: {tally:?}");
        all.add(&tally);
    }
    for (kind, counts) in all.changes.iter().chain(&all.checks) {
        println!("  {kind}: {} on the kernel road, {} on the bypass", counts[0], counts[1]);
    }
    let unlooked = all.checks.iter().find(|(_, counts)| counts.contains(&0));
    assert!(unlooked.is_none(), "looked at on both roads: {unlooked:?}");
    all
}

/// Hunts until something stale is seen.
fn is_caught(mutant: Mutant, extent: Extent) {
    let Mutant { parts, subject, party } = mutant;
    let variable = format!("FINESSE_MUTANT={parts}");
    let wrapper = ["env", variable.as_str()];
    let subject = Subject { wrapper: &wrapper, ..subject };
    let report =
        hunt::hunt(subject, party, extent).map_or_else(|report| report, |tally| format!("{tally:?}"));
    // Not a daemon that dies.
    assert!(report.contains("expected:"), "{parts}, left out on {}, is not noticed: {report}", subject.name);
    let mut lines = report.lines().filter(|line| !line.starts_with("  round"));
    let lines: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("it holds")).collect();
    println!("{parts}: {}", lines.join("\n    "));
}

#[test]
fn nothing_stale_is_seen() {
    if !needs::root("nothing_stale_is_seen") {
        return;
    }
    // Otherwise nothing might be looked at.
    for parts in ["kernel road: names", "bypass: attributes"] {
        is_caught(mutant(parts), Extent { seed: 1, checks: u64::MAX, time: Duration::from_secs(60) });
    }
    // On a slow machine fewer checks.
    are_clean(&SUBJECTS, Extent { seed: 1, checks: 400_000, time: Duration::from_secs(4) });
}

#[test]
#[ignore = "long: make mutants"]
fn every_part_that_is_left_out_is_noticed() {
    if !needs::root("every_part_that_is_left_out_is_noticed") {
        return;
    }
    let mut survivors = Vec::new();
    let mutants = match number("FINESSE_HUNT_MUTANT") {
        Some(index) => &MUTANTS[index as usize..=index as usize],
        None => &MUTANTS,
    };
    for mutant in mutants.iter().copied() {
        let extent = Extent { seed: 1, checks: u64::MAX, time: Duration::from_secs(600) };
        if std::panic::catch_unwind(|| is_caught(mutant, extent)).is_err() {
            survivors.push(mutant.parts);
        }
    }
    assert!(survivors.is_empty(), "not noticed: {survivors:?}");
}

#[test]
#[ignore = "long: make test-long LONG=staleness"]
fn nothing_stale_is_seen_in_ten_million_checks() {
    if !needs::root("nothing_stale_is_seen_in_ten_million_checks") {
        return;
    }
    let seed = number("FINESSE_HUNT_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later");
        now.as_nanos() as u64 % 1_000_000_000
    });
    println!("FINESSE_HUNT_SEED={seed}");
    let subjects = match number("FINESSE_HUNT_SUBJECT") {
        Some(index) => &SUBJECTS[index as usize..=index as usize],
        None => &SUBJECTS,
    };
    let wanted = number("FINESSE_HUNT_CHECKS").unwrap_or(10_000_000);
    let checks = wanted / subjects.len() as u64 + 1;
    let all = are_clean(subjects, Extent { seed, checks, time: Duration::from_secs(24 * 3600) });
    let unchanged = all.changes.iter().find(|(_, counts)| counts.contains(&0));
    assert!(unchanged.is_none(), "changed on both roads: {unchanged:?}");
    println!("{} checks, nothing stale", all.checks());
    assert!(all.checks() >= wanted, "{} checks", all.checks());
}

/// In a guest this is the mixed-road test of the BPF programs, which few other kernels load all of.
#[test]
#[ignore = "long: make test-long LONG=staleness; in guests: `guests`"]
fn nothing_stale_is_seen_with_bpf() {
    if !needs::root("nothing_stale_is_seen_with_bpf") {
        return;
    }
    if guest::inside() {
        let mutant = Mutant { subject: WITH_BPF, ..mutant("bpf: attributes") };
        is_caught(mutant, Extent { seed: 1, checks: u64::MAX, time: Duration::from_secs(600) });
    }
    let checks = if guest::inside() { 10_000 } else { 1_000_000 };
    are_clean(&[WITH_BPF], Extent { seed: 1, checks, time: Duration::from_secs(24 * 3600) });
}

/// Here, for guests with kernels that load all BPF programs.
mod guests {
    use super::*;

    fn nothing_stale_is_seen_on(series: &str) {
        if guest::inside() || !needs::root("staleness") {
            return;
        }
        let Some(kernel) = Kernel::of_series(series, "staleness") else { return };
        let place = tempfile::tempdir().unwrap();
        let actor = hunt::compile(place.path());
        let this = std::env::current_exe().unwrap();
        let arguments = ["--exact", "nothing_stale_is_seen_with_bpf", "--include-ignored", "--nocapture"];
        let (printed, status) = kernel.run(&this, &arguments, &[actor.to_str().unwrap()]);
        assert!(status == 0 && printed.contains("nothing stale"), "{printed}");
        assert!(!printed.contains("skipped: "), "{printed}");
        for line in
            printed.lines().filter(|line| line.contains("nothing stale") || line.contains("expected:"))
        {
            println!("Linux {series}: {line}");
        }
    }

    #[test]
    fn nothing_stale_is_seen_on_linux_6_12() {
        nothing_stale_is_seen_on("6.12");
    }

    #[test]
    fn nothing_stale_is_seen_on_linux_7_0() {
        nothing_stale_is_seen_on("7.0");
    }
}
