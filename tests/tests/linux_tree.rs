//! A whole Linux source tree: `find`, `git status`, `tar`, `cp -r` and `rm -rf` give the native result on both
//! roads, and on the bypass at least 95 % of the path calls, opening directories aside, are bypassed.
//!
//! `make test-linux` gets such a tree; without one this test says so and does nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use finesse_tests::mount::{Options, said};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road, environment};
use finesse_tests::tree::{self, Times, Tree};

/// The variable that names an unpacked tree.
const TREE: &str = "FINESSE_LINUX_TREE";
/// The share of path calls that must be bypassed, in percent.
const BYPASSED: f64 = 95.0;

/// What is done, in this order, in a place with the tree in `linux`.
const STEPS: [(&str, &str); 9] = [
    ("find", "find linux | sort | md5sum && find linux -type f -size +20k | sort | md5sum"),
    ("git status, first", "git -C linux status --porcelain"),
    (
        "git status, changed",
        "cd linux && echo >> Makefile && rm COPYING && echo > new && chmod +x README && git status --porcelain",
    ),
    ("tar c", "tar cf - --sort=name --exclude-vcs linux/kernel linux/drivers | md5sum"),
    ("tar x", "mkdir x && tar cf - linux/kernel linux/drivers linux/arch | tar xf - -C x"),
    ("cp -r", "cp -r linux copy"),
    ("rm -rf, copy", "rm -rf copy"),
    ("rm -rf, extracted", "rm -rf x"),
    ("rm -rf, all", "rm -rf linux"),
];

/// After which step the trees are compared: the last that makes something.
const COMPARED_AFTER: &str = "cp -r";

struct Found {
    outputs: Vec<(Option<i32>, String, String)>,
    tree: Tree,
}

#[test]
fn a_linux_source_tree_is_worked_on_as_natively() {
    let Some(source) = std::env::var_os(TREE).map(PathBuf::from) else {
        let why = format!("needs an unpacked Linux source tree: `make test-linux`, or name one in {TREE}");
        needs::skipped("a_linux_source_tree_is_worked_on_as_natively", &why);
        return;
    };
    let source = source.canonicalize().expect(TREE);
    // Beside the tree: on the same file system, which has the room.
    let parent = source.parent().expect("a Linux tree is not the root directory");
    let work = tempfile::Builder::new().prefix("finesse-linux-").tempdir_in(parent).unwrap();
    let template = work.path().join("linux");
    native(work.path(), &format!("cp -a {} {}", quoted(&source), quoted(&template)));
    native(
        &template,
        "rm -rf .git && git init -q -b main . && git config gc.auto 0 && git add -A -f && git commit -q -m tree",
    );
    let mut native_found: Option<Found> = None;
    let mut failures = Vec::new();
    let mut times: Vec<(&str, Vec<f64>)> = STEPS.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for road in Road::ALL {
        let place = Place::below(work.path(), road, &Options::default(), |root| {
            native(root, &format!("cp -a {} linux", quoted(&template)));
        });
        let mut found = Found { outputs: Vec::new(), tree: Tree::new() };
        for (step, (name, script)) in STEPS.iter().enumerate() {
            let before = place.is_mounted().then(|| place.mount().account());
            let start = Instant::now();
            let output = place.bash("", script);
            times[step].1.push(start.elapsed().as_secs_f64());
            let stderr = place.neutral(&output.stderr);
            found.outputs.push((output.status.code(), place.neutral(&output.stdout), stderr));
            if let (Some(before), Road::Bypass) = (before, road) {
                let calls = place.mount().account().since(&before);
                println!("{name}: {:.2} % bypassed; {calls:?}", calls.bypassed());
                if calls.total_answered() < 1000 || calls.bypassed() < BYPASSED {
                    failures.push(format!("{name}: {:.2} % bypassed: {calls:?}", calls.bypassed()));
                }
            }
            if *name == COMPARED_AFTER {
                // The index and what git caches hold times and inode numbers.
                found.tree = tree::read(place.source(), Times::Ignored);
                found.tree.retain(|path, _| !path.iter().any(|component| component == ".git"));
            }
        }
        if place.is_mounted() {
            let account = place.mount().account();
            println!(
                "{road}: {} known inodes, {:.1} MiB resident",
                account.known_inodes,
                account.resident_bytes as f64 / f64::from(1 << 20)
            );
        }
        assert!(fs::read_dir(place.source()).unwrap().next().is_none(), "{road}: all is removed");
        let Some(expected) = &native_found else {
            assert!(found.tree.len() > 100_000, "two Linux trees have more than {} files", found.tree.len());
            native_found = Some(found);
            continue;
        };
        for (step, (name, _)) in STEPS.iter().enumerate() {
            if found.outputs[step] != expected.outputs[step] {
                failures.push(format!(
                    "{name} on the {road}: {:?} instead of {:?}",
                    found.outputs[step], expected.outputs[step]
                ));
            }
        }
        let difference = tree::difference(&expected.tree, &found.tree);
        if !difference.is_empty() {
            failures.push(format!("the files differ on the {road}:\n{difference}"));
        }
    }
    println!("{:<22}{:>10}{:>10}{:>10}   seconds", "", "native", "kernel", "bypass");
    for (name, times) in &times {
        println!("{name:<22}{:>10.2}{:>10.2}{:>10.2}", times[0], times[1], times[2]);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn native(directory: &Path, script: &str) {
    let mut command = Command::new("bash");
    command.args(["-ec", script]).current_dir(directory);
    environment(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{script}: {}", said(&output));
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}
