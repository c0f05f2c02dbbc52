//! What a test needs of the machine. Where that is missing it says so, in the form that `make test` counts.

use std::io::Write;

/// Says that a test is skipped, and why, past the test runner's capture.
pub fn skipped(test: &str, why: &str) {
    // In one piece, as other tests write too. A closed standard error leaves nobody to tell.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {why}\n").as_bytes());
}

/// Whether this process is root; if not, says that the test is skipped.
pub fn root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped(test, "needs root, to mount and to become other users");
    }
    root
}
