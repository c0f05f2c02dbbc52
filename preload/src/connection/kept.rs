//! Descriptors of the library's own that come and go.

#![forbid(unsafe_code)]

use std::os::fd::{IntoRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::first_fd;
use crate::fds::Kind;
use crate::process::FDS;
use crate::sys;

/// A descriptor that is opened when it is first needed and may become another one: its number (-1 if there is none), and in the
/// upper half how often it has changed.
pub(super) struct Kept(AtomicU64);

/// A [`Kept`] descriptor at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Now(u64);

impl Now {
    pub(super) fn fd(self) -> Option<RawFd> {
        Some(self.0 as u32 as RawFd).filter(|fd| *fd >= 0)
    }
}

impl Kept {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(u32::MAX as u64))
    }

    pub(super) fn now(&self) -> Now {
        Now(self.0.load(Ordering::Acquire))
    }

    /// Makes it another one, unless somebody else has done so since.
    pub(super) fn change(&self, since: Now, fd: RawFd) -> bool {
        let changes = (since.0 >> 32).wrapping_add(1) << 32;
        let next = changes | u64::from(fd.cast_unsigned());
        self.0.compare_exchange(since.0, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Keeps a descriptor: at a number above those that programs expect to own, if there is one.
    pub(super) fn keep(&self, since: Now, low: sys::Hidden, first: RawFd) -> Result<(), i32> {
        let high = low.fd().and_then(|low| rustix::io::fcntl_dupfd_cloexec(low, first).ok());
        let fd = high.or_else(|| low.into_fd()).ok_or(libc::EBADF)?;
        self.put(since, fd.into_raw_fd());
        Ok(())
    }

    /// Makes it this descriptor, which is closed if another thread was faster.
    pub(super) fn put(&self, since: Now, fd: RawFd) {
        FDS.set(fd, Kind::Own);
        if !self.change(since, fd) {
            FDS.clear(fd);
            sys::close(fd);
        }
    }

    /// Moves it elsewhere, because the program wants its number.
    pub(super) fn leave(&self, fd: RawFd) -> Result<(), i32> {
        let now = self.now();
        if let Some(old) = now.fd().filter(|now| *now == fd).and_then(sys::borrow) {
            let new =
                rustix::io::fcntl_dupfd_cloexec(old, first_fd()).map_err(|errno| errno.raw_os_error())?;
            self.put(now, new.into_raw_fd());
            FDS.clear(fd);
        }
        Ok(())
    }

    /// Closes it; whether there was one.
    pub(super) fn give_up(&self) -> bool {
        let now = self.now();
        let Some(fd) = now.fd().filter(|_| self.change(now, -1)) else { return false };
        FDS.clear(fd);
        sys::close(fd);
        true
    }
}
