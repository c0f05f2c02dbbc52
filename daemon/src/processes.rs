//! What `/proc` tells of other processes and threads.

#![deny(unsafe_code)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Whether set-user-ID and set-group-ID bits survive a change of the contents by whoever holds it, a bit of the masks here.
pub(crate) const CAP_FSETID: u64 = 1 << 4;

/// Whether a process has the same thing as this one in a place of /proc/PID. What cannot be looked at is another one.
pub(crate) fn shares(pid: u32, what: &str) -> bool {
    let look = |of: &str| fs::metadata(format!("/proc/{of}/{what}")).map(|thing| (thing.dev(), thing.ino()));
    matches!((look(&pid.to_string()), look("self")), (Ok(theirs), Ok(ours)) if theirs == ours)
}

/// The line `CapEff:` of /proc/PID/status; no capabilities if there is none.
pub(crate) fn effective_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether a thread that waits for us inside a system call holds all of these capabilities where the daemon would
/// (`capable`): not if it cannot be looked at (pid 0, another PID name space), or is in another user name space.
pub(crate) fn holds(pid: u32, capabilities: u64) -> bool {
    let status = || fs::read_to_string(format!("/proc/{pid}/status"));
    pid != 0
        && shares(pid, "ns/user")
        && status().is_ok_and(|status| effective_capabilities(&status) & capabilities == capabilities)
}

/// What `/proc/PID/syscall` says (number, arguments, stack, program counter) of a thread that waits for us inside a system call,
/// as soon as `understand` makes something of it; `None` if it cannot be looked at.
pub(crate) fn system_call<T>(thread: u32, understand: impl Fn(&str) -> Option<T>) -> Option<T> {
    /// How long to wait for the thread to fall asleep.
    const PERSEVERANCE: Duration = Duration::from_secs(2);
    let start = Instant::now();
    while thread != 0 && start.elapsed() < PERSEVERANCE {
        let text = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
        if let Some(understood) = understand(&text) {
            return Some(understood);
        }
        // "running": it has sent the request but not yet gone to sleep, for which it may have to wait on a busy machine.
        std::thread::sleep(Duration::from_micros(50));
    }
    None
}

/// The number in a line of `/proc/PID/syscall`; `None` if the thread runs.
pub(crate) fn number_of_call(line: &str) -> Option<i64> {
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_be_looked_at_shares_nothing() {
        for what in ["ns/user", "ns/mnt", "root"] {
            assert!(shares(std::process::id(), what));
            assert!(!shares(0, what));
        }
    }

    #[test]
    fn capabilities_are_read_from_proc() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), 0x1ff_ffff_ffff);
        assert_eq!(effective_capabilities("Name:\tx\n"), 0);
    }
}
