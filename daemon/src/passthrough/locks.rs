//! File locks, taken on the backing file, so that programs on both roads and programs that use the source
//! directly exclude each other.
//!
//! A POSIX lock belongs to a process, or rather to what the kernel calls its lock owner; the daemon is one
//! process. So each pair of inode and owner gets an open file description of its own, and its locks are
//! open-file-description locks on that. Closing it releases them all, which is what POSIX wants of any `close`.
//! flock(2) locks belong to the open file and are taken on its own descriptor.
//!
//! FUSE tells the two kinds apart by a flag that fuser 0.18 does not pass on, but a thread that waits for its lock is
//! inside the system call that asks for it, and `/proc/PID/syscall` names that ([`Kind::asked_by`]).
//!
//! Nobody blocks in the kernel for a lock: requests that have to wait are tried again by one thread, which also notices
//! when a signal is pending for the waiting program. fuser ignores FUSE's INTERRUPT, and a program that waits
//! for ever could not even be killed. The price is a delay of up to [`SLOW`], first come first served is not
//! kept, and deadlocks between owners are not detected (`EDEADLK`), as for all open-file-description locks.

#![deny(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::{Errno, Result};

use super::credentials;
use super::handles::OpenFile;
use super::sys::{self, FileLock};
use crate::{LockOwner, ReplyEmpty};

/// How often a fresh request is tried again, and for how long it counts as fresh.
const FAST: Duration = Duration::from_millis(1);
const FRESH: Duration = Duration::from_millis(100);
/// How often an old one is.
const SLOW: Duration = Duration::from_millis(10);
/// How long to wait for a thread to fall asleep, to see what it asks for.
const PERSEVERANCE: Duration = Duration::from_secs(2);
/// How often a waiting program is looked at for pending signals.
const SIGNALS: Duration = Duration::from_millis(50);

/// The two kinds of file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// fcntl(2) `F_SETLK`: a byte range, owned by a process.
    Posix,
    /// flock(2): a whole file, owned by an open file.
    Flock,
}

impl Kind {
    /// What the thread `tid`, which waits for an answer, asked for. Unknown counts as [`Kind::Posix`]: then the two
    /// kinds conflict with each other where they should not, but each still excludes its own.
    pub(super) fn asked_by(tid: u32) -> Self {
        // On machines that run 32-bit programs too, their flock(2) has number 143 (x86 and Arm alike), which is
        // no locking call of a 64-bit program.
        const COMPAT_FLOCK: i64 = 143;
        if tid == 0 || credentials::become_daemon().is_err() {
            return Self::Posix;
        }
        let start = Instant::now();
        while start.elapsed() < PERSEVERANCE {
            let Ok(text) = std::fs::read_to_string(format!("/proc/{tid}/syscall")) else {
                return Self::Posix;
            };
            match text.split_ascii_whitespace().next().map(str::parse::<i64>) {
                Some(Ok(number)) if number == libc::SYS_flock || number == COMPAT_FLOCK => {
                    return Self::Flock;
                }
                Some(Ok(_)) => return Self::Posix,
                // "running": it has sent the request but not yet gone to sleep, for which it may have to wait on a busy
                // machine.
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        Self::Posix
    }

    /// Whether [`asked_by`](Self::asked_by) works here.
    pub(super) fn can_be_told_apart() -> bool {
        const CAP_SYS_PTRACE: u32 = 19;
        sys::has_capability(CAP_SYS_PTRACE) && std::fs::read_to_string("/proc/self/syscall").is_ok()
    }
}

struct Owner {
    fd: OwnedFd,
    pid: u32,
}

/// Something that a lock can be tried on.
enum Attempt {
    Posix(Arc<Owner>, FileLock),
    Flock(Arc<OpenFile>, FlockOperation),
}

impl Attempt {
    fn try_now(&self) -> Result<()> {
        match self {
            Self::Posix(owner, lock) => match sys::set_lock(&owner.fd, *lock) {
                Err(Errno::ACCESS) => Err(Errno::AGAIN),
                other => other,
            },
            Self::Flock(file, operation) => {
                file.flocked.store(true, Ordering::Relaxed);
                flock(&**file, *operation)
            }
        }
    }
}

struct Waiter {
    attempt: Attempt,
    tid: u32,
    since: Instant,
    looked: Instant,
    reply: ReplyEmpty,
}

#[derive(Default)]
struct Waiting {
    waiters: Vec<Waiter>,
    running: bool,
}

/// All locks that were taken through the mount.
pub(super) struct Locks {
    owners: Mutex<HashMap<(u64, u64), Arc<Owner>>>,
    /// The number of `owners`, so that a `flush` where nobody locks anything costs one load.
    count: AtomicUsize,
    waiting: Arc<Mutex<Waiting>>,
}

impl Locks {
    /// No locks.
    pub(super) fn new() -> Self {
        Self { owners: Mutex::default(), count: AtomicUsize::new(0), waiting: Arc::default() }
    }

    /// The lock that stands in the way of `lock`, and its process.
    pub(super) fn test(
        &self,
        file: &Arc<OpenFile>,
        owner: LockOwner,
        lock: FileLock,
    ) -> Result<Option<(FileLock, u32)>> {
        let known = self.owners.lock().get(&(file.id, owner.0)).cloned();
        let found = match known {
            Some(owner) => sys::get_lock(&owner.fd, lock)?,
            // A fresh description, because `file` itself may hold locks of other owners.
            None => sys::get_lock(description(file)?, lock)?,
        };
        Ok(found.map(|(found, pid)| match u32::try_from(pid) {
            Ok(pid) => (found, pid),
            Err(_) => (found, self.holder(file.id, found)),
        }))
    }

    /// The process behind a lock that the daemon holds for it; 0 if there is none.
    fn holder(&self, id: u64, lock: FileLock) -> u32 {
        let owners: Vec<Arc<Owner>> = self
            .owners
            .lock()
            .iter()
            .filter(|(key, _)| key.0 == id)
            .map(|(_, owner)| Arc::clone(owner))
            .collect();
        let holds = |owner: &Owner| {
            let path = format!("/proc/self/fdinfo/{}", owner.fd.as_raw_fd());
            std::fs::read_to_string(path).is_ok_and(|text| {
                text.lines().filter(|line| line.starts_with("lock:")).any(|line| covers(line, lock))
            })
        };
        owners.iter().find(|owner| holds(owner)).map_or(0, |owner| owner.pid)
    }

    /// Takes, changes or releases a lock, and replies: at once, or when the lock is there.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn set(
        &self,
        file: Arc<OpenFile>,
        owner: LockOwner,
        kind: Kind,
        lock: FileLock,
        pid: u32,
        tid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let attempt = match self.attempt(file, owner, kind, lock, pid) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => return reply.ok(),
            Err(errno) => return reply.error(super::errno(errno)),
        };
        let result = attempt.try_now();
        if result == Err(Errno::AGAIN) && sleep {
            return self.wait(attempt, tid, reply);
        }
        // Whoever sees the reply may release the owner, and then nothing may be left of it.
        drop(attempt);
        match result {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(super::errno(errno)),
        }
    }

    fn attempt(
        &self,
        file: Arc<OpenFile>,
        owner: LockOwner,
        kind: Kind,
        lock: FileLock,
        pid: u32,
    ) -> Result<Option<Attempt>> {
        if kind == Kind::Flock {
            let operation = match lock.kind {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            return Ok(Some(Attempt::Flock(file, operation)));
        }
        let key = (file.id, owner.0);
        if lock.kind != libc::F_UNLCK {
            let mut lockers = file.lockers.lock();
            if !lockers.contains(&owner) {
                lockers.push(owner);
            }
        }
        if let Some(owner) = self.owners.lock().get(&key) {
            return Ok(Some(Attempt::Posix(Arc::clone(owner), lock)));
        }
        if lock.kind == libc::F_UNLCK {
            return Ok(None);
        }
        let fd = description(&file)?;
        let mut owners = self.owners.lock();
        let owner = owners.entry(key).or_insert_with(|| Arc::new(Owner { fd, pid }));
        let owner = Arc::clone(owner);
        self.count.store(owners.len(), Ordering::Release);
        Ok(Some(Attempt::Posix(owner, lock)))
    }

    /// A process, `owner`, closes a descriptor of the file: all POSIX locks that it has on the inode go.
    pub(super) fn closed(&self, id: u64, file: Option<&OpenFile>, owner: LockOwner) {
        if let Some(file) = file {
            file.lockers.lock().retain(|locker| *locker != owner);
        }
        self.release(id, owner);
    }

    /// The last descriptor of a file is closed. The kernel says nothing of open-file-description locks then; all other
    /// owners have flushed (`fuse_prepare_release`).
    pub(super) fn ended(&self, file: &OpenFile) {
        for owner in std::mem::take(&mut *file.lockers.lock()) {
            self.release(file.id, owner);
        }
        Self::release_flock(file);
    }

    /// Releases all byte-range locks that `owner` has on the inode.
    pub(super) fn release(&self, id: u64, owner: LockOwner) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut owners = self.owners.lock();
        let gone = owners.remove(&(id, owner.0));
        self.count.store(owners.len(), Ordering::Release);
        drop(owners);
        drop(gone);
    }

    /// Releases the flock(2) locks of a file that is closed. To close its descriptor is not enough: the kernel may hold on
    /// to the open file description for passthrough, for as long as the inode has other openers
    /// (`fuse_backing_open`).
    fn release_flock(file: &OpenFile) {
        if file.flocked.load(Ordering::Relaxed) {
            // Fails only where there is nothing to release.
            let _ = flock(file, FlockOperation::NonBlockingUnlock);
        }
    }

    fn wait(&self, attempt: Attempt, tid: u32, reply: ReplyEmpty) {
        let waiter = Waiter { attempt, tid, since: Instant::now(), looked: Instant::now(), reply };
        let mut waiting = self.waiting.lock();
        waiting.waiters.push(waiter);
        if waiting.running {
            return;
        }
        let shared = Arc::clone(&self.waiting);
        let thread =
            std::thread::Builder::new().name("finesse-locks".into()).spawn(move || keep_trying(&shared));
        match thread {
            Ok(_) => waiting.running = true,
            Err(_) => {
                if let Some(waiter) = waiting.waiters.pop() {
                    waiter.reply.error(crate::Errno::ENOLCK);
                }
            }
        }
    }
}

/// Tries all waiting requests until none is left.
fn keep_trying(shared: &Mutex<Waiting>) {
    // The thread that started this one may have been acting as somebody else.
    let _ = credentials::become_daemon();
    loop {
        let mut waiting = shared.lock();
        let now = Instant::now();
        let mut index = 0;
        let mut done = Vec::new();
        while let Some(waiter) = waiting.waiters.get_mut(index) {
            let outcome = match waiter.attempt.try_now() {
                Err(Errno::AGAIN) if now.duration_since(waiter.looked) < SIGNALS => None,
                Err(Errno::AGAIN) => {
                    waiter.looked = now;
                    signal_pending(waiter.tid).then_some(Err(Errno::INTR))
                }
                outcome => Some(outcome),
            };
            match outcome {
                Some(outcome) => done.push((waiting.waiters.remove(index), outcome)),
                None => index += 1,
            }
        }
        let fresh = waiting.waiters.iter().any(|waiter| now.duration_since(waiter.since) < FRESH);
        let finished = waiting.waiters.is_empty();
        if finished {
            waiting.running = false;
        }
        drop(waiting);
        for (Waiter { attempt, reply, .. }, outcome) in done {
            drop(attempt);
            match outcome {
                Ok(()) => reply.ok(),
                Err(errno) => reply.error(super::errno(errno)),
            }
        }
        if finished {
            return;
        }
        std::thread::sleep(if fresh { FAST } else { SLOW });
    }
}

/// Whether a signal would end the system call in which the thread waits, or the thread is gone.
fn signal_pending(tid: u32) -> bool {
    if tid == 0 {
        return false;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{tid}/status")) else { return true };
    let mask = |key| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
        u64::from_str_radix(value.trim(), 16).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:") & !mask("SigIgn:") != 0
}

/// An open file description of the file of its own, for every kind of lock that can be had. The kernel has checked
/// the program's own access mode (`fcntl_setlk`).
fn description(file: &Arc<OpenFile>) -> Result<OwnedFd> {
    credentials::become_daemon()?;
    let path = format!("/proc/self/fd/{}", (**file).as_fd().as_raw_fd());
    let open = |mode: OFlags| {
        rustix::fs::openat(CWD, &*path, mode | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
    };
    let own = if file.writable { OFlags::WRONLY } else { OFlags::RDONLY };
    open(OFlags::RDWR).or_else(|_| open(own))
}

/// Whether a `lock:` line of `/proc/PID/fdinfo/FD` is a lock of that kind that meets that range:
/// `lock: 1: OFDLCK ADVISORY WRITE -1 fd:00:1234 0 EOF`.
fn covers(line: &str, lock: FileLock) -> bool {
    let mut words = line.split_ascii_whitespace().skip(2);
    let (Some("OFDLCK"), Some(_), Some(kind)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    let (Some(start), Some(end)) = (words.nth(2), words.next()) else { return false };
    let Ok(start) = start.parse::<u64>() else { return false };
    let end = if end == "EOF" { i64::MAX as u64 } else { end.parse().unwrap_or(0) };
    let kind_matches = (kind == "WRITE") == (lock.kind == libc::F_WRLCK);
    kind_matches && start <= lock.end && end >= lock.start
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
}
