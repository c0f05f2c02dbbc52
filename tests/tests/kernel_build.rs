//! A Linux kernel, built on the mount: the build succeeds on both roads, and what it makes is bit for bit what a
//! native build makes.
//!
//! `make linux` gets the sources; without them this test says so and does nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use finesse_tests::build;
use finesse_tests::mount::{Mount, Options, said, text, unmount};
use finesse_tests::needs;
use finesse_tests::road::{Road, environment};

/// The variable that names an unpacked tree.
const TREE: &str = "FINESSE_LINUX_TREE";
/// The share of path calls that must be bypassed, in percent.
const BYPASSED: f64 = 95.0;
/// What the build must make alike on all roads.
const MADE: [&str; 3] = [".config", "System.map", "vmlinux"];
/// The smallest configuration, without what would differ between two builds of one tree.
const BUILD: &str = "make -s tinyconfig && exec make -s -j4 vmlinux";

/// A directory at one path for all roads, because paths are part of what a build makes.
struct Place {
    mount: Option<Mount>,
    at: PathBuf,
}

impl Place {
    fn new(road: Road, source: &Path, at: &Path) -> Self {
        let mount = match road {
            Road::Native => {
                rustix::mount::mount_bind(source, at).expect("root may bind-mount");
                None
            }
            Road::Kernel | Road::Bypass => Some(Mount::new(source, at, &Options::default())),
        };
        Self { mount, at: at.to_owned() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mount.is_none() {
            unmount(&self.at);
        }
    }
}

fn shell(road: Road, directory: &Path, script: &str) -> Command {
    let mut command = match road {
        Road::Bypass => {
            let mut command = Command::new(build::command());
            command.args(["run", "--", "bash"]);
            command
        }
        _ => Command::new("bash"),
    };
    command.args(["-ec", script]).current_dir(directory);
    environment(&mut command);
    command.env("KBUILD_BUILD_TIMESTAMP", "2024-01-02 03:04:05 UTC");
    command
        .env("KBUILD_BUILD_USER", "user")
        .env("KBUILD_BUILD_HOST", "host")
        .env("KBUILD_BUILD_VERSION", "1");
    command
}

#[test]
fn a_kernel_built_on_the_mount_is_the_native_one() {
    let test = "a_kernel_built_on_the_mount_is_the_native_one";
    let Some(source) = std::env::var_os(TREE).map(PathBuf::from) else {
        needs::skipped(
            test,
            &format!("needs an unpacked Linux source tree: `make linux`, or name one in {TREE}"),
        );
        return;
    };
    if !needs::root(test) {
        return;
    }
    let source = source.canonicalize().expect(TREE);
    // Beside the tree: on the same file system, which has the room.
    let parent = source.parent().expect("a Linux tree is not the root directory");
    let work = tempfile::Builder::new().prefix("finesse-kernel-").tempdir_in(parent).unwrap();
    let (copy, at) = (work.path().join("source"), work.path().join("linux"));
    fs::create_dir(&at).unwrap();
    let mut native: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut failures = Vec::new();
    for road in Road::ALL {
        let copied = Command::new("cp").arg("-a").args([&source, &copy]).output().unwrap();
        assert!(copied.status.success(), "{}", said(&copied));
        let place = Place::new(road, &copy, &at);
        let before = place.mount.as_ref().map(Mount::account);
        let start = Instant::now();
        let output = shell(road, &at, BUILD).output().unwrap();
        let seconds = start.elapsed().as_secs_f64();
        println!("{road}: {seconds:.1} s");
        assert!(output.status.success(), "the build on the {road}: {}", text(&output.stderr));
        if let (Some(mount), Some(before), Road::Bypass) = (&place.mount, before, road) {
            let calls = mount.account().since(&before);
            println!(
                "{:.2} % of {} path calls bypassed; {calls:?}",
                calls.bypassed(),
                calls.total_answered()
            );
            if calls.total_answered() < 100_000 || calls.bypassed() < BYPASSED {
                failures.push(format!("{:.2} % bypassed: {calls:?}", calls.bypassed()));
            }
        }
        for name in MADE {
            let made = fs::read(at.join(name)).unwrap();
            assert!(!made.is_empty(), "{name} on the {road}");
            if *native.entry(name).or_insert_with(|| made.clone()) != made {
                failures.push(format!("{name} differs on the {road}"));
            }
        }
        drop(place);
        fs::remove_dir_all(&copy).unwrap();
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
