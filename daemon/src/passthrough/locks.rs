//! File locks, taken on the backing file, so that programs on both roads and programs that use the source
//! directly exclude each other.
//!
//! A POSIX lock belongs to a process, or rather to what the kernel calls its lock owner; the daemon is one
//! process. So each pair of inode and owner gets an open file description of its own, and its locks are
//! open-file-description locks on that. Closing it releases them all, which is what POSIX wants of any `close`.
//! flock(2) locks belong to the open file and are taken on its own descriptor.
//!
//! FUSE tells flock(2) apart by a flag that fuser 0.18 does not pass on, and open-file-description locks not at all. But a
//! thread that waits for its lock is inside the system call that asks for it, and `/proc/PID/syscall` names that
//! ([`Caller::kind`]).
//!
//! Nobody blocks in the kernel for a lock: requests that have to wait are tried again by one thread, which also notices
//! when a signal is pending for the waiting program. fuser ignores FUSE's INTERRUPT, and a program that waits
//! for ever could not even be killed. The price is a delay of up to [`SLOW`], and first come first served is not
//! kept. The kernel looks for deadlocks among its own POSIX locks only; [`deadlocks`](super::deadlocks) does for these.

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
use super::deadlocks::{self, Waits};
use super::handles::OpenFile;
use super::sys::{self, FileLock};
use crate::{LockOwner, ReplyEmpty, processes};

/// How often a fresh request is tried again, and for how long it counts as fresh.
const FAST: Duration = Duration::from_millis(1);
const FRESH: Duration = Duration::from_millis(100);
/// How often an old one is.
const SLOW: Duration = Duration::from_millis(10);
/// How often a waiting program is looked at for pending signals.
const SIGNALS: Duration = Duration::from_millis(50);

/// The kinds of file lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// fcntl(2) `F_SETLK`: a byte range, owned by a process.
    Posix,
    /// fcntl(2) `F_OFD_SETLK`: a byte range, owned by an open file.
    Description,
    /// flock(2): a whole file, owned by an open file.
    Flock,
}

/// The program's thread that asks for a lock, as the kernel names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Its process; 0 if it gives a lock up.
    pub(super) pid: u32,
    /// Itself; 0 if it is not known.
    pub(super) tid: u32,
}

impl Caller {
    /// What it asked for, if it waits for the answer. Unknown counts as [`Kind::Posix`]: then the kinds conflict with each
    /// other where they should not, but each still excludes its own.
    fn kind(self) -> Kind {
        if self.tid == 0 || credentials::become_daemon().is_err() {
            return Kind::Posix;
        }
        processes::system_call(self.tid, kind_of_call).unwrap_or(Kind::Posix)
    }
}

/// What a line of `/proc/PID/syscall` asks for (number, arguments, stack, program counter); `None` if the thread runs.
fn kind_of_call(line: &str) -> Option<Kind> {
    // On machines that run 32-bit programs too, their flock(2) has number 143 (x86 and Arm alike), which is
    // no locking call of a 64-bit program.
    const COMPAT_FLOCK: i64 = 143;
    let mut words = line.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    if number == libc::SYS_flock || number == COMPAT_FLOCK {
        return Some(Kind::Flock);
    }
    let command = words.nth(1).and_then(|word| i32::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    Some(match command {
        Some(libc::F_OFD_SETLK | libc::F_OFD_SETLKW) => Kind::Description,
        _ => Kind::Posix,
    })
}

/// Whether a request's kind can be found out here. Without the capability, that goes for the daemon's own user, to whom alone
/// the mount is shown then, unless Yama keeps him from tracing what is not his child.
fn can_be_told_apart() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let unrestricted = || match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(scope) => scope.trim() == "0",
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    let may_trace = sys::has_capability(CAP_SYS_PTRACE) || unrestricted();
    may_trace && std::fs::read_to_string("/proc/self/syscall").is_ok()
}

/// Who has byte-range locks on an inode, or waits for them.
pub(super) struct Owner {
    /// Holds the locks.
    pub(super) fd: OwnedFd,
    /// The owning process; 0 if it is an open file.
    pub(super) pid: u32,
    /// Requests of this owner that wait.
    waiting: AtomicUsize,
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

impl Waiter {
    /// Answers; what was tried is over before anybody sees that.
    fn finish(self, outcome: Result<()>) {
        if let Attempt::Posix(owner, _) = &self.attempt {
            owner.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        drop(self.attempt);
        match outcome {
            Ok(()) => self.reply.ok(),
            Err(errno) => self.reply.error(super::errno(errno)),
        }
    }
}

#[derive(Default)]
struct Waiting {
    waiters: Vec<Waiter>,
    running: bool,
}

/// By inode and lock owner.
type Owners = Mutex<HashMap<(u64, u64), Arc<Owner>>>;

/// All locks that were taken through the mount.
pub(super) struct Locks {
    owners: Arc<Owners>,
    /// The number of `owners`, so that a `flush` where nobody locks anything costs one load.
    count: AtomicUsize,
    waiting: Arc<Mutex<Waiting>>,
    /// Whether it can be found out what kind of lock a program asks for.
    tells_kinds: bool,
}

impl Locks {
    /// No locks.
    pub(super) fn new() -> Self {
        let tells_kinds = can_be_told_apart();
        Self { owners: Arc::default(), count: AtomicUsize::new(0), waiting: Arc::default(), tells_kinds }
    }

    /// Whether flock(2) can be served beside other locks.
    pub(super) fn tell_kinds(&self) -> bool {
        self.tells_kinds
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
        let owners = &self.owners;
        Ok(found.map(|(found, pid)| match u32::try_from(pid) {
            Ok(pid) => (found, pid),
            Err(_) => (found, deadlocks::holder(&owners_of(owners, Some(file.id)), found)),
        }))
    }

    /// Takes, changes or releases a lock, and replies: at once, or when the lock is there.
    pub(super) fn set(
        &self,
        file: Arc<OpenFile>,
        owner: LockOwner,
        caller: Caller,
        lock: FileLock,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let attempt = match self.attempt(file, owner, caller, lock) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => return reply.ok(),
            Err(errno) => return reply.error(super::errno(errno)),
        };
        let result = attempt.try_now();
        if result == Err(Errno::AGAIN) && sleep {
            return self.wait(attempt, caller.tid, reply);
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
        caller: Caller,
        lock: FileLock,
    ) -> Result<Option<Attempt>> {
        let key = (file.id, owner.0);
        let gives_up = lock.kind == libc::F_UNLCK;
        let known = self.owners.lock().get(&key).cloned();
        // Only flock(2) always means the whole file.
        let kind = match lock.is_whole() || known.is_none() && !gives_up {
            true if self.tells_kinds => caller.kind(),
            _ => Kind::Posix,
        };
        if kind == Kind::Flock {
            file.own()?;
            let operation = match lock.kind {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            return Ok(Some(Attempt::Flock(file, operation)));
        }
        if !gives_up {
            let mut lockers = file.lockers.lock();
            if !lockers.contains(&owner) {
                lockers.push(owner);
            }
        }
        if let Some(known) = known {
            return Ok(Some(Attempt::Posix(known, lock)));
        }
        if gives_up {
            return Ok(None);
        }
        let fd = description(&file)?;
        let pid = if kind == Kind::Posix { caller.pid } else { 0 };
        let mut owners = self.owners.lock();
        let owner =
            owners.entry(key).or_insert_with(|| Arc::new(Owner { fd, pid, waiting: AtomicUsize::new(0) }));
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
        let key = (id, owner.0);
        let Some(owner) = owners.get(&key).cloned() else { return };
        // Whoever waits in another thread gets his lock afterwards all the same, and keeps it.
        if owner.waiting.load(Ordering::Acquire) == 0 {
            owners.remove(&key);
            self.count.store(owners.len(), Ordering::Release);
        }
        drop(owners);
        // To close it is not enough: somebody may be looking at it. Fails only where there is nothing to release.
        let _ = sys::set_lock(&owner.fd, FileLock { kind: libc::F_UNLCK, ..FileLock::WHOLE });
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
        if let Attempt::Posix(owner, _) = &attempt {
            owner.waiting.fetch_add(1, Ordering::AcqRel);
        }
        let waiter = Waiter { attempt, tid, since: Instant::now(), looked: Instant::now(), reply };
        let mut waiting = self.waiting.lock();
        waiting.waiters.push(waiter);
        if !waiting.running {
            let (shared, owners) = (Arc::clone(&self.waiting), Arc::clone(&self.owners));
            let thread = std::thread::Builder::new().name("finesse-locks".into());
            if thread.spawn(move || keep_trying(&shared, &owners)).is_err() {
                let waiter = waiting.waiters.pop();
                drop(waiting);
                if let Some(waiter) = waiter {
                    waiter.finish(Err(Errno::NOLCK));
                }
                return;
            }
            waiting.running = true;
        }
    }
}

/// The owners of locks, on one inode or on all.
fn owners_of(owners: &Owners, id: Option<u64>) -> Vec<Arc<Owner>> {
    let owners = owners.lock();
    owners
        .iter()
        .filter(|(key, _)| id.is_none_or(|id| id == key.0))
        .map(|(_, owner)| Arc::clone(owner))
        .collect()
}

/// Tries all waiting requests until none is left.
fn keep_trying(shared: &Mutex<Waiting>, owners: &Owners) {
    // The thread that started this one may have been acting as somebody else.
    let _ = credentials::become_daemon();
    loop {
        let mut waiting = shared.lock();
        let now = Instant::now();
        let mut done = Vec::new();
        let mut overdue = false;
        let mut index = 0;
        while let Some(waiter) = waiting.waiters.get_mut(index) {
            let outcome = match waiter.attempt.try_now() {
                Err(Errno::AGAIN) if now.duration_since(waiter.looked) < SIGNALS => None,
                Err(Errno::AGAIN) => {
                    waiter.looked = now;
                    overdue = true;
                    signal_pending(waiter.tid).then_some(Err(Errno::INTR))
                }
                outcome => Some(outcome),
            };
            match outcome {
                Some(outcome) => done.push((waiting.waiters.remove(index), outcome)),
                None => index += 1,
            }
        }
        if overdue && let Some(index) = deadlocked(&waiting.waiters, owners) {
            done.push((waiting.waiters.remove(index), Err(Errno::DEADLK)));
        }
        let fresh = waiting.waiters.iter().any(|waiter| now.duration_since(waiter.since) < FRESH);
        let finished = waiting.waiters.is_empty();
        if finished {
            waiting.running = false;
        }
        drop(waiting);
        for (waiter, outcome) in done {
            waiter.finish(outcome);
        }
        if finished {
            return;
        }
        std::thread::sleep(if fresh { FAST } else { SLOW });
    }
}

/// One of those who wait for each other in a circle: the one who came last.
fn deadlocked(waiters: &[Waiter], owners: &Owners) -> Option<usize> {
    let posix = |waiter: &Waiter| match &waiter.attempt {
        Attempt::Posix(owner, lock) if owner.pid != 0 => Some((Arc::clone(owner), *lock)),
        _ => None,
    };
    let here: Vec<_> = waiters.iter().filter_map(posix).collect();
    if here.is_empty() {
        return None;
    }
    let waits = Waits::new(&here, &owners_of(owners, None));
    waiters.iter().rposition(|waiter| posix(waiter).is_some_and(|(owner, _)| waits.are_circular(owner.pid)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_tell_the_kind_of_lock() {
        let fcntl =
            |command: i32| format!("{} 0x3 {command:#x} 0x7ffc 0x0 0x0 0x0 0x7ffd 0x7f00", libc::SYS_fcntl);
        assert_eq!(kind_of_call("running\n"), None);
        assert_eq!(kind_of_call(&fcntl(libc::F_SETLK)), Some(Kind::Posix));
        assert_eq!(kind_of_call(&fcntl(libc::F_SETLKW)), Some(Kind::Posix));
        assert_eq!(kind_of_call(&fcntl(libc::F_OFD_SETLK)), Some(Kind::Description));
        assert_eq!(kind_of_call(&fcntl(libc::F_OFD_SETLKW)), Some(Kind::Description));
        assert_eq!(kind_of_call(&format!("{} 0x3 0x26 0x0", libc::SYS_flock)), Some(Kind::Flock));
    }
}
