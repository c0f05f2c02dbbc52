//! `open` and its relatives.

use std::ffi::{c_int, c_uint};

use libc::{AT_FDCWD, O_CREAT, O_TRUNC, O_WRONLY};

use super::{fail, hook};
use crate::calls::{self, Opening};
use crate::changes;
use crate::sys::{self, PathArg};

#[inline]
pub(super) fn open_at(
    dirfd: c_int,
    path: PathArg,
    flags: c_int,
    mode: c_uint,
    next: impl FnOnce(c_int) -> c_int,
) -> c_int {
    match calls::open(dirfd, &path, flags, mode) {
        Opening::Done(Ok(fd)) => fd,
        Opening::Done(Err(errno)) => fail(errno),
        Opening::Kernel(flags, target) => {
            let fd = next(flags);
            if fd == -1 && sys::errno() == libc::EROFS {
                return changes::open_despite_lending(&path, flags).unwrap_or_else(fail);
            }
            calls::opened(fd, flags, target.as_ref());
            fd
        }
    }
}

/// As [`open_at`], for functions that are cancellation points.
#[inline]
fn open_point(
    dirfd: c_int,
    path: PathArg,
    flags: c_int,
    mode: c_uint,
    next: impl FnOnce(c_int) -> c_int,
) -> c_int {
    sys::test_cancellation();
    open_at(dirfd, path, flags, mode, next)
}

/// `creat`'s flags; the kernel gets them from the function's name.
pub(super) const CREAT: c_int = O_CREAT | O_WRONLY | O_TRUNC;

hook! {
    fn [open, open64, __open, __open64](path: PathArg, flags: c_int, mode: c_uint) -> c_int, next =>
        open_point(AT_FDCWD, path, flags, mode, |flags| next(path, flags, mode));
    fn [openat, openat64](dirfd: c_int, path: PathArg, flags: c_int, mode: c_uint) -> c_int, next =>
        open_point(dirfd, path, flags, mode, |flags| next(dirfd, path, flags, mode));
    fn [creat, creat64](path: PathArg, mode: c_uint) -> c_int, next =>
        open_point(AT_FDCWD, path, CREAT, mode, |_| next(path, mode));
}

// Fortified: glibc aborts the program if the flags ask for a mode that was not passed.
hook! {
    fn [__open_2, __open64_2](path: PathArg, flags: c_int) -> c_int, next =>
        match needs_mode(flags) {
            true => next(path, flags),
            false => open_point(AT_FDCWD, path, flags, 0, |flags| next(path, flags)),
        };
    fn [__openat_2, __openat64_2](dirfd: c_int, path: PathArg, flags: c_int) -> c_int, next =>
        match needs_mode(flags) {
            true => next(dirfd, path, flags),
            false => open_point(dirfd, path, flags, 0, |flags| next(dirfd, path, flags)),
        };
}

fn needs_mode(flags: c_int) -> bool {
    flags & O_CREAT != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE
}
