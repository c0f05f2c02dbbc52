//! Who waits for whose lock.
//!
//! A deadlock may have parts in both tables of locks: here, where requests of the kernel road wait, and in the kernel, where
//! programs wait that have the source's file open, as bypass clients do. `/proc/locks` shows the latter. The kernel's own
//! search (`posix_locks_deadlock`) stops at open-file-description locks, and so at everything that the daemon holds.

#![deny(unsafe_code)]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::locks::Owner;
use super::sys::{self, FileLock};

/// The process behind a lock that the daemon holds for it; 0 if it belongs to an open file, or the daemon does not hold it.
pub(super) fn holder(owners: &[Arc<Owner>], lock: FileLock) -> u32 {
    let holds = |owner: &&Arc<Owner>| held(owner).lines().any(|line| covers(line, lock));
    owners.iter().find(holds).map_or(0, |owner| owner.pid)
}

/// The `lock:` lines of the owner's descriptor: `lock:\t1: OFDLCK ADVISORY WRITE -1 fd:00:1234 0 EOF`.
fn held(owner: &Owner) -> String {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", owner.fd.as_raw_fd())).unwrap_or_default()
}

/// A lock as the kernel writes it (`lock_get_status`): what follows its number, `->` aside.
struct Written<'t> {
    family: &'t str,
    kind: &'t str,
    pid: i64,
    /// Device and inode, first and last byte.
    place: [&'t str; 3],
}

impl<'t> Written<'t> {
    fn parse(line: &'t str) -> Option<Self> {
        let (_, rest) = line.trim_start_matches("lock:").split_once(':')?;
        let mut words = rest.split_ascii_whitespace().filter(|word| *word != "->");
        let (family, _, kind) = (words.next()?, words.next()?, words.next()?);
        let pid = words.next()?.parse().ok()?;
        Some(Self { family, kind, pid, place: [words.next()?, words.next()?, words.next()?] })
    }
}

/// Whether a `lock:` line is an open-file-description lock of that kind that meets that range.
fn covers(line: &str, lock: FileLock) -> bool {
    let Some(Written { family: "OFDLCK", kind, place: [_, start, end], .. }) = Written::parse(line) else {
        return false;
    };
    let Ok(start) = start.parse::<u64>() else { return false };
    let end = if end == "EOF" { i64::MAX as u64 } else { end.parse().unwrap_or(0) };
    let kind_matches = (kind == "WRITE") == (lock.kind == libc::F_WRLCK);
    kind_matches && start <= lock.end && end >= lock.start
}

/// Which process waits for which: pairs of both.
pub(super) struct Waits(Vec<(u32, u32)>);

impl Waits {
    /// Of the requests that wait `here`, and of whoever waits in the kernel for a lock.
    pub(super) fn new(here: &[(Arc<Owner>, FileLock)], owners: &[Arc<Owner>]) -> Self {
        let mut pairs: Vec<_> = here
            .iter()
            .filter_map(|(owner, lock)| {
                let (found, pid) = sys::get_lock(&owner.fd, *lock).ok()??;
                Some((owner.pid, u32::try_from(pid).unwrap_or_else(|_| holder(owners, found))))
            })
            .collect();
        let table = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let behind = |lock: &Written<'_>| {
            let is_it = |line: &str| Written::parse(line).is_some_and(|line| line.place == lock.place);
            let owner = owners.iter().find(|owner| held(owner).lines().any(is_it));
            owner.map_or(0, |owner| owner.pid)
        };
        pairs.extend(waits_in_kernel(&table, behind));
        Self(pairs)
    }

    /// Whether a process waits for itself, by way of others.
    pub(super) fn are_circular(&self, pid: u32) -> bool {
        let mut reached = Vec::new();
        let mut next = vec![pid];
        while let Some(from) = next.pop() {
            for (_, to) in self.0.iter().filter(|(waiter, to)| *waiter == from && *to != 0) {
                if *to == pid {
                    return true;
                }
                if !reached.contains(to) {
                    reached.push(*to);
                    next.push(*to);
                }
            }
        }
        false
    }
}

/// The waits of processes for POSIX locks in `/proc/locks`, where those who wait (`->`) follow the lock that they wait for.
/// `behind` names the process for which the daemon holds an open-file-description lock.
fn waits_in_kernel(table: &str, behind: impl Fn(&Written<'_>) -> u32) -> Vec<(u32, u32)> {
    let mut pairs = Vec::new();
    let mut in_the_way: Option<Written<'_>> = None;
    for line in table.lines() {
        let Some(lock) = Written::parse(line) else { continue };
        if !line.contains("->") {
            in_the_way = Some(lock);
            continue;
        }
        let Some(blocker) = in_the_way.as_ref().filter(|_| lock.family == "POSIX") else { continue };
        let blocker = match blocker.family {
            "POSIX" => u32::try_from(blocker.pid).unwrap_or(0),
            "OFDLCK" => behind(blocker),
            _ => 0,
        };
        if let Ok(waiter) = u32::try_from(lock.pid) {
            pairs.push((waiter, blocker));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_lines_are_understood() {
        let lock = |kind, start, end| FileLock { kind, start, end };
        let line = "lock:\t1: OFDLCK ADVISORY  WRITE -1 fe:00:1052 100 199";
        assert!(covers(line, lock(libc::F_WRLCK, 100, 199)));
        assert!(covers(line, lock(libc::F_WRLCK, 0, i64::MAX as u64)));
        assert!(!covers(line, lock(libc::F_WRLCK, 200, 300)));
        assert!(!covers(line, lock(libc::F_RDLCK, 100, 199)));
        assert!(!covers("lock:\t1: FLOCK  ADVISORY  WRITE 12 fe:00:1052 0 EOF", lock(libc::F_WRLCK, 0, 1)));
        assert!(covers("lock:\t2: OFDLCK ADVISORY  READ -1 fe:00:1052 0 EOF", lock(libc::F_RDLCK, 5, 5)));
    }

    #[test]
    fn circles_are_found_through_both_tables() {
        let table = "1: POSIX  ADVISORY  WRITE 10 fe:00:1052 0 0
1: -> POSIX  ADVISORY  WRITE 11 fe:00:1052 0 0
1:  -> POSIX  ADVISORY  READ 12 fe:00:1052 0 0
2: OFDLCK ADVISORY  WRITE -1 fe:00:1053 7 9
2: -> POSIX  ADVISORY  WRITE 13 fe:00:1053 7 7
2: -> OFDLCK ADVISORY  WRITE -1 fe:00:1053 8 8
3: FLOCK  ADVISORY  WRITE 14 fe:00:1052 0 EOF
3: -> FLOCK  ADVISORY  WRITE 15 fe:00:1052 0 EOF
";
        let mut pairs = waits_in_kernel(table, |lock| {
            assert_eq!(lock.place, ["fe:00:1053", "7", "9"]);
            20
        });
        assert_eq!(pairs, [(11, 10), (12, 10), (13, 20)]);
        assert!(!Waits(pairs.clone()).are_circular(11));
        pairs.extend([(20, 11), (10, 13)]);
        let waits = Waits(pairs);
        for (pid, is_circular) in [(10, true), (11, true), (12, false), (13, true), (20, true), (14, false)] {
            assert_eq!(waits.are_circular(pid), is_circular, "{pid}");
        }
    }
}
