//! POSIX locks that this process may have. Closing any descriptor of a file ends the process's locks on it (`locks_remove_posix`),
//! but the kernel does not see a virtual one being closed. So the files that the process has locked are remembered, and a virtual
//! descriptor of one of those is promoted before it is closed.
//!
//! For the same reason the library itself must close no descriptor of such a file: the one that a promotion leaves over, or that was
//! opened in vain ([`Beside`]), is kept until the program closes one.

#![forbid(unsafe_code)]

use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::connection;
use crate::fds::{ITS_OWN, Kind};
use crate::process::FDS;
use crate::{sys, virtuals};

/// One bit for each 64th of all inode numbers. To be mistaken costs a promotion.
static LOCKED: AtomicU64 = AtomicU64::new(0);

fn bit(ino: u64) -> u64 {
    // Fibonacci hashing: the upper bits are the best.
    1 << (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

/// The process is about to lock a part of an open file.
pub(crate) fn taken(fd: RawFd) {
    if connection::table().is_empty() {
        return;
    }
    if let Some(ino) = inode(fd) {
        LOCKED.fetch_or(bit(ino), Ordering::SeqCst);
        // Who has not seen that may be about to close one. A signal handler may have interrupted him.
        for _ in 0..PATIENCE {
            if CLOSING.load(Ordering::SeqCst) == 0 {
                break;
            }
            rustix::thread::sched_yield();
        }
    }
}

/// How long whoever takes a lock waits for others to have closed, in turns.
const PATIENCE: u32 = 1000;
/// How many descriptors the library is about to close.
static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// The inode number of an open file on a mount; of others, the one that it has elsewhere.
fn inode(fd: RawFd) -> Option<u64> {
    let known = match FDS.get(fd) {
        Kind::Granted { ino, .. } if ino != ITS_OWN => Some(ino),
        Kind::Virtual(_) => virtuals::pin(fd).map(|pin| pin.ino()),
        _ => None,
    };
    known.or_else(|| Some(rustix::fs::fstat(sys::borrow(fd)?).ok()?.st_ino))
}

/// Whether the process may have a lock on the file of this inode number.
pub(crate) fn may_be_on(ino: u64) -> bool {
    LOCKED.load(Ordering::SeqCst) & bit(ino) != 0
}

/// Descriptors that are left over.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A descriptor is left over, which stays open if closing it would end locks.
pub(crate) fn keep(file: sys::Hidden, ino: u64) {
    CLOSING.fetch_add(1, Ordering::SeqCst);
    if may_be_on(ino) {
        CLOSING.fetch_sub(1, Ordering::SeqCst);
        if let Some(file) = file.fd() {
            // Cannot fail on a descriptor of ours.
            let _ = rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC);
        }
        // With a number beyond the table it stays open for good: a lock too long is better than none.
        if let Some(fd) = file.into_fd().map(IntoRawFd::into_raw_fd)
            && FDS.set(fd, Kind::Kept { ino })
        {
            COUNT.fetch_add(1, Ordering::AcqRel);
        }
    } else {
        drop(file);
        CLOSING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// In a forked child nobody closes what another thread of the parent was about to close, and nothing is locked.
pub(crate) fn after_fork() {
    CLOSING.store(0, Ordering::SeqCst);
}

/// One of the descriptors that are left over of a file, if it is as wanted; it is the caller's then.
pub(crate) fn left_over(ino: u64, is_wanted: impl Fn(BorrowedFd<'_>) -> bool) -> Option<Beside> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let mut found = FDS.kept().filter(|(fd, kept)| *kept == ino && FDS.take_kept(*fd));
    found.find_map(|(fd, _)| {
        COUNT.fetch_sub(1, Ordering::AcqRel);
        let file = Beside::new(sys::take(fd));
        file.fd().is_some_and(&is_wanted).then_some(file)
    })
}

/// A descriptor that the library has opened beside the program's, perhaps of the same file.
pub(crate) struct Beside(Option<sys::Hidden>);

impl Beside {
    pub(crate) fn new(file: sys::Hidden) -> Self {
        Self(Some(file))
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref()?.fd()
    }

    /// The descriptor, for somebody else to close.
    pub(crate) fn into_fd(mut self) -> Option<OwnedFd> {
        self.0.take()?.into_fd()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(file) = self.0.take()
            && let Some(ino) = file.fd().and_then(|fd| rustix::fs::fstat(fd).ok()).map(|stat| stat.st_ino)
        {
            keep(file, ino);
        }
    }
}

/// The program is about to close a descriptor: what has been kept of its file goes as well.
#[inline]
pub(crate) fn closing(fd: RawFd) {
    if COUNT.load(Ordering::Acquire) != 0 {
        let_go(fd);
    }
}

#[cold]
fn let_go(fd: RawFd) {
    let Some(ino) = inode(fd) else { return };
    for (fd, _) in FDS.kept().filter(|(_, kept)| *kept == ino) {
        // Otherwise another thread closes it.
        if FDS.take_kept(fd) {
            COUNT.fetch_sub(1, Ordering::AcqRel);
            sys::close(fd);
        }
    }
}
