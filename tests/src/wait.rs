//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Longest wait for something that must happen, in a debug build on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, looking every few milliseconds.
///
/// # Panics
/// It does not hold after [`PATIENCE`]; `what` says what was expected.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
