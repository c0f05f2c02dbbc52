//! What libc does by calls of its own, without the functions that programs call: streams, temporary files, `realpath`, `glob`,
//! trees, system calls by their numbers. A C program says what it gets of each; it gets the same on all roads, and on the
//! bypass the calls are bypassed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use finesse_tests::account::Calls;
use finesse_tests::mount::{Options, said};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::tree::{self, Times};
use tempfile::TempDir;

/// The program, compiled once: optimised and fortified, so that it calls the checked variants.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(PathBuf, TempDir)> = OnceLock::new();
    let (program, _) = PROGRAM.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("finesse-helpers-").tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/helpers.c");
        let program = directory.path().join("helpers");
        let output = Command::new("cc")
            .args(["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-w", "-o"])
            .arg(&program)
            .arg(source)
            .output()
            .expect("a C compiler");
        assert!(output.status.success(), "{}", said(&output));
        (program, directory)
    });
    program
}

fn fill(root: &Path) {
    for directory in ["directory", "deep/a/b/c", "many", "private"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in ["file", "directory/inner", "deep/a/b/c/last", "deep/a/first", ".hidden"] {
        fs::write(root.join(file), file).unwrap();
    }
    fs::set_permissions(root.join("private"), PermissionsExt::from_mode(0o700)).unwrap();
    for (target, link) in [
        ("file", "link"),
        ("directory", "dirlink"),
        ("nowhere", "dangling"),
        ("loop", "loop"),
        ("/etc", "away"),
        ("..", "up"),
        ("file", "chain0"),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    for number in 1..=42 {
        symlink(format!("chain{}", number - 1), root.join(format!("chain{number}"))).unwrap();
    }
    // By its name on the mount, which is where the native directory's is not.
    let mountpoint = root.parent().unwrap().join("mnt");
    symlink(mountpoint.join("directory"), root.join("absolute")).unwrap();
    let fifo = root.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
}

/// Runs a story on all roads and compares; what was counted on the bypass.
fn agrees(story: &str) -> Calls {
    let places = Place::on_all_roads(&Options::default(), fill);
    let mut native = None;
    let mut counted = Calls::default();
    for place in &places {
        if place.road() == Road::Native {
            // Its own directory is where the others have their mount.
            fs::remove_file(place.path().join("absolute")).unwrap();
            symlink(place.path().join("directory"), place.path().join("absolute")).unwrap();
        }
        let before = (place.road() == Road::Bypass).then(|| place.mount().account());
        let output = place.command(program()).arg(story).output().unwrap();
        assert!(output.status.success(), "{story} on the {}: {}", place.road(), said(&output));
        if let Some(before) = before {
            counted = place.mount().account().since(&before);
        }
        let home = place.path().parent().unwrap().to_string_lossy();
        let text = place.neutral(&output.stdout).replace(&*home, "HOME");
        let mut left = tree::read(place.source(), Times::Ignored);
        left.remove(Path::new("absolute"));
        // Names that nobody can foresee.
        left.retain(|path, _| !path.starts_with("many"));
        let Some((native_text, native_left)) = &native else {
            assert!(text.lines().count() > 20, "{text}");
            native = Some((text, left));
            continue;
        };
        let differences: Vec<_> = text
            .lines()
            .zip(native_text.lines())
            .filter(|(here, native)| here != native)
            .map(|(here, native)| format!("native: {native}\nhere:   {here}"))
            .take(20)
            .collect();
        assert!(
            differences.is_empty() && text.lines().count() == native_text.lines().count(),
            "{story} on the {}:\n{}\n{}",
            place.road(),
            differences.join("\n"),
            said(&output),
        );
        let difference = tree::difference(native_left, &left);
        assert!(difference.is_empty(), "{story} leaves other files on the {}:\n{difference}", place.road());
    }
    counted
}

/// Checks that at least so many calls of these kinds were bypassed. Fewer than there are: while others change the mount
/// table, a call may take the other road.
fn bypassed(calls: &Calls, least: &[(&str, u64)]) {
    for (operation, least) in least {
        let count = calls.answered.get(*operation).copied().unwrap_or(0);
        assert!(count >= *least, "{operation}: {count} bypassed, expected {least}: {calls:?}");
    }
}

#[test]
fn streams_are_opened_past_the_kernel() {
    bypassed(&agrees("streams"), &[("open", 70)]);
}

#[test]
fn temporary_files_are_made_past_the_kernel() {
    bypassed(&agrees("temporary"), &[("open", 90), ("mkdir", 2)]);
}

#[test]
fn paths_are_resolved_past_the_kernel() {
    bypassed(&agrees("resolve"), &[("readlink", 400), ("access", 20)]);
}

#[test]
fn who_is_in_a_directory_sees_it_moved_and_removed() {
    bypassed(&agrees("place"), &[("rmdir", 3), ("mkdir", 3)]);
}

#[test]
fn patterns_are_expanded_past_the_kernel() {
    bypassed(&agrees("globs"), &[("stat", 40)]);
}

#[test]
fn trees_are_walked_alike() {
    agrees("trees");
}

#[test]
fn system_calls_by_number_are_bypassed_and_followed() {
    let calls = agrees("numbers");
    let kinds = [
        "open",
        "stat",
        "access",
        "readlink",
        "unlink",
        "rmdir",
        "rename",
        "mkdir",
        "mknod",
        "link",
        "symlink",
        "chmod",
        "chown",
        "truncate",
        "utimens",
        "getxattr",
        "listxattr",
    ];
    let bypassed = kinds.iter().filter(|kind| calls.answered.contains_key(**kind)).count();
    assert!(bypassed >= kinds.len() - 2 && calls.total_answered() > 40, "{calls:?}");
}

#[test]
fn extended_attributes_are_changed_past_the_kernel() {
    bypassed(&agrees("attributes"), &[("setxattr", 4), ("removexattr", 3)]);
}

#[test]
fn another_user_meets_the_same_refusals() {
    if needs::root("another_user_meets_the_same_refusals") {
        bypassed(&agrees("stranger"), &[("readlink", 20), ("open", 6), ("access", 6)]);
    }
}

#[test]
fn modes_are_changed_alike_and_old_names_of_functions_are_known() {
    bypassed(&agrees("modes"), &[("chmod", 4), ("open", 2)]);
}
