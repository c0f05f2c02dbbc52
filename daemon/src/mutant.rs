//! Parts of the coherence that the tests have the daemon leave out, to show that they would notice.

use std::ffi::OsString;
use std::sync::OnceLock;

/// Waits where a race is too short to be met, if the part that decides it is left out.
#[inline]
pub(crate) fn lingers(part: &str) {
    if leaves_out(part) {
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
}

/// Whether `FINESSE_MUTANT` in the daemon's environment names this part. Never in a build without debug assertions.
#[inline]
pub(crate) fn leaves_out(part: &str) -> bool {
    static PART: OnceLock<Option<OsString>> = OnceLock::new();
    cfg!(debug_assertions)
        && PART.get_or_init(|| std::env::var_os("FINESSE_MUTANT")).as_ref().is_some_and(|left| left == part)
}
