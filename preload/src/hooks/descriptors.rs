//! Functions that duplicate and close descriptors.

use std::ffi::{c_int, c_long, c_uint};

use super::{fail, hook, take, take_with};
use crate::calls::Road;
use crate::connection::{self, is_own};
use crate::fds::Kind;
use crate::files;
use crate::locks;
use crate::process::FDS;
use crate::sys;
use crate::vforks;
use crate::virtuals;

/// Duplicates onto a number, which may be one of ours: then ours moves.
pub(super) fn onto(from: c_int, to: c_int, next: impl Fn() -> c_int) -> c_int {
    if is_own(from) {
        return fail(libc::EBADF);
    }
    if from == to {
        return next();
    }
    if is_own(to)
        && let Err(errno) = connection::vacate(to)
    {
        return fail(errno);
    }
    if FDS.is_virtual(from) || FDS.is_virtual(to) {
        return files::duplicate_onto(from, to, next);
    }
    locks::closing(to);
    let before = FDS.get(to);
    FDS.clear(to);
    let result = next();
    match result {
        0.. => FDS.copy(from, to),
        // Nothing was closed.
        _ => drop(FDS.set(to, before)),
    }
    result
}

/// Closes a descriptor.
pub(super) fn close_one(fd: c_int, next: impl FnOnce() -> c_int) -> c_int {
    if is_own(fd) {
        return fail(libc::EBADF);
    }
    if FDS.is_virtual(fd) {
        sys::cancellation_point();
    }
    take(files::close(fd), || {
        FDS.clear(fd);
        next()
    })
}

/// Duplicates a descriptor onto a number of the kernel's choice.
pub(super) fn duplicated(fd: c_int, next: impl Fn() -> c_int) -> c_int {
    if is_own(fd) {
        return fail(libc::EBADF);
    }
    match FDS.is_virtual(fd) {
        true => files::duplicate(fd, next),
        false => copied(fd, next()),
    }
}

fn copied(from: c_int, result: c_int) -> c_int {
    if result >= 0 {
        FDS.copy(from, result);
    }
    result
}

pub(super) fn control(fd: c_int, command: c_int, argument: c_long, next: impl Fn() -> c_int) -> c_int {
    if is_own(fd) {
        return fail(libc::EBADF);
    }
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicated(fd, next),
        libc::F_GETFD | libc::F_SETFD => next(),
        libc::F_GETFL => match (files::status_flags(fd), FDS.get(fd)) {
            (Road::Kernel, Kind::Granted { nofollow: true, .. }) => match next() {
                -1 => -1,
                flags => flags | libc::O_NOFOLLOW,
            },
            (road, _) => take_with(road, |flags| flags, next),
        },
        libc::F_SETFL => take(files::set_status_flags(fd, argument as c_int), next),
        libc::F_SETLK | libc::F_SETLKW => take(files::kernel(fd), || {
            locks::taken(fd);
            next()
        }),
        // Other locks, leases, owners, hints: what the kernel has of an open file.
        _ => take(files::kernel(fd), next),
    }
}

hook! {
    fn [close, __close](fd: c_int) -> c_int, next => close_one(fd, || next(fd));
    fn [dup](fd: c_int) -> c_int, next => duplicated(fd, || next(fd));
    fn [dup2, __dup2](from: c_int, to: c_int) -> c_int, next => onto(from, to, || next(from, to));
    fn [dup3](from: c_int, to: c_int, flags: c_int) -> c_int, next => onto(from, to, || next(from, to, flags));
    fn [fcntl, fcntl64, __fcntl](fd: c_int, command: c_int, argument: c_long) -> c_int, next =>
        control(fd, command, argument, || next(fd, command, argument));
    fn [close_range](first: c_uint, last: c_uint, flags: c_int) -> c_int, next =>
        close_others(first, last, flags, |first, last| next(first, last, flags));
}

/// Closes a range of descriptors except our own ones.
pub(super) fn close_others(
    first: c_uint,
    last: c_uint,
    flags: c_int,
    next: impl Fn(c_uint, c_uint) -> c_int,
) -> c_int {
    if first > last {
        return next(first, last);
    }
    let only_marks = flags & CLOSE_RANGE_CLOEXEC != 0;
    if virtuals::any() && !only_marks && flags == 0 {
        let first = c_int::try_from(first).unwrap_or(c_int::MAX);
        for (fd, _) in FDS.virtuals(first).take_while(|(fd, _)| *fd as c_uint <= last) {
            // What it fails by is lost with the descriptor.
            let _ = files::close(fd);
        }
    } else if virtuals::any()
        && flags & CLOSE_RANGE_UNSHARE != 0
        && let Err(errno) = files::promote_all()
    {
        // Other threads keep a table of descriptors of their own.
        return fail(errno);
    }
    let begin = c_int::try_from(first).unwrap_or(c_int::MAX);
    let mut from = first;
    for own in FDS.own(begin).map(|own| own as c_uint).take_while(|own| *own <= last) {
        if from < own {
            let result = close_part(from, own - 1, only_marks, &next);
            if result != 0 {
                return result;
            }
        }
        from = own + 1;
    }
    if from > last {
        return 0;
    }
    close_part(from, last, only_marks, &next)
}

const CLOSE_RANGE_UNSHARE: c_int = 2;
const CLOSE_RANGE_CLOEXEC: c_int = 4;

fn close_part(
    first: c_uint,
    last: c_uint,
    only_marks: bool,
    next: &impl Fn(c_uint, c_uint) -> c_int,
) -> c_int {
    if !only_marks {
        let end = last.min(FDS.end() as c_uint);
        for fd in first..=end {
            FDS.clear(fd as c_int);
        }
    }
    next(first, last)
}

/// Closes all descriptors from a number on, except our own ones: what it may not close it leaves, and it reports
/// nothing.
///
/// # Safety
/// As the function of this name of libc.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C-unwind" fn closefrom(first: c_int) {
    let first = first.max(0) as c_uint;
    if vforks::is_child() {
        // Its own ones: ours are its parent's.
        // SAFETY: the program asks for its descriptors to be closed.
        if unsafe { crate::next::close_range(first, c_uint::MAX, 0) } != 0 {
            (first..FDS.end() as c_uint).for_each(|fd| sys::close(fd as c_int));
        }
        return;
    }
    let part = |first: c_uint, last: c_uint| {
        // SAFETY: the program asks for its descriptors to be closed.
        unsafe { crate::next::close_range(first, last, 0) }
    };
    if close_others(first, c_uint::MAX, 0, part) != 0 {
        // A kernel without `close_range` (before 5.9).
        for fd in first..FDS.end() as c_uint {
            let fd = fd as c_int;
            if !is_own(fd) && matches!(files::close(fd), Road::Kernel) {
                FDS.clear(fd);
                sys::close(fd);
            }
        }
    }
}
