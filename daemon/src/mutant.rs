//! Parts of the coherence that the tests have the daemon leave out, to show that they would notice.

use std::sync::OnceLock;

/// Waits where a race is too short to be met, if the part that decides it is left out.
#[inline]
pub(crate) fn lingers(part: &str) {
    if leaves_out(part) {
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
}

/// Whether `FINESSE_MUTANT` in the daemon's environment, a list with commas, names this part. Never in a build without debug
/// assertions.
#[inline]
pub(crate) fn leaves_out(part: &str) -> bool {
    static PARTS: OnceLock<Vec<String>> = OnceLock::new();
    let parts = || {
        let left_out = std::env::var("FINESSE_MUTANT").unwrap_or_default();
        left_out.split(',').map(str::to_owned).collect()
    };
    cfg!(debug_assertions) && PARTS.get_or_init(parts).iter().any(|left_out| left_out == part)
}
