//! Reading, writing and positions: of virtual descriptors, everything else is libc's.

use std::ffi::{c_int, c_uint, c_void};

use libc::off_t;

use super::{fail, hook, take, take_with};
use crate::calls::Road;
use crate::dirstreams;
use crate::files::{self, At};
use crate::process::FDS;
use crate::sys::{self, Buffers, Data, Iovecs, NO_PLACES};

/// What serves a transfer: [`files::read`] or [`files::write`].
type Transfer = fn(c_int, At, Buffers<'_>) -> Road<usize>;

/// A transfer with one buffer.
#[inline]
fn one(
    fd: c_int,
    at: Option<At>,
    data: Data,
    len: usize,
    how: Transfer,
    next: impl FnOnce() -> isize,
) -> isize {
    if !FDS.is_virtual(fd) {
        return next();
    }
    sys::cancellation_point();
    // `ksys_pread64` looks at the offset first.
    let Some(at) = at else { return fail(libc::EINVAL) };
    let buffer = data.buffer(len);
    take_with(how(fd, at, Buffers::one(&buffer)), |done| done as isize, next)
}

/// A transfer with several.
#[inline]
fn several(
    fd: c_int,
    at: Option<At>,
    (buffers, count): (Iovecs, c_int),
    how: Transfer,
    next: impl FnOnce() -> isize,
) -> isize {
    if !FDS.is_virtual(fd) {
        return next();
    }
    sys::cancellation_point();
    let Some(at) = at else { return fail(libc::EINVAL) };
    let mut places = NO_PLACES;
    let road = match buffers.get(count, &mut places) {
        Some(buffers) => how(fd, at, buffers),
        None => files::kernel(fd),
    };
    take_with(road, |done| done as isize, next)
}

/// The place that `preadv2` and `pwritev2` name.
fn own_or(offset: off_t) -> Option<At> {
    if offset == -1 { Some(At::Own) } else { At::given(offset) }
}

/// The same with flags, which the kernel knows best.
fn with_flags(
    fd: c_int,
    offset: off_t,
    buffers: (Iovecs, c_int),
    flags: c_int,
    how: Transfer,
    next: impl FnOnce() -> isize,
) -> isize {
    match flags {
        0 => several(fd, own_or(offset), buffers, how, next),
        _ => take_with(files::kernel::<usize>(fd), |done| done as isize, next),
    }
}

hook! {
    fn [read, __read](fd: c_int, out: Data, len: usize) -> isize, next =>
        one(fd, Some(At::Own), out, len, files::read, || next(fd, out, len));
    fn [pread, pread64, __pread64](fd: c_int, out: Data, len: usize, offset: off_t) -> isize, next =>
        one(fd, At::given(offset), out, len, files::read, || next(fd, out, len, offset));
    fn [write, __write](fd: c_int, data: Data, len: usize) -> isize, next =>
        one(fd, Some(At::Own), data, len, files::write, || next(fd, data, len));
    fn [pwrite, pwrite64, __pwrite64](fd: c_int, data: Data, len: usize, offset: off_t) -> isize, next =>
        one(fd, At::given(offset), data, len, files::write, || next(fd, data, len, offset));

    // Fortified: glibc aborts the program if the buffer is smaller than it says.
    fn [__read_chk](fd: c_int, out: Data, len: usize, room: usize) -> isize, next =>
        match len > room {
            true => next(fd, out, len, room),
            false => one(fd, Some(At::Own), out, len, files::read, || next(fd, out, len, room)),
        };
    fn [__pread_chk, __pread64_chk](fd: c_int, out: Data, len: usize, offset: off_t, room: usize) -> isize, next =>
        match len > room {
            true => next(fd, out, len, offset, room),
            false => one(fd, At::given(offset), out, len, files::read, || next(fd, out, len, offset, room)),
        };

    fn [readv](fd: c_int, out: Iovecs, count: c_int) -> isize, next =>
        several(fd, Some(At::Own), (out, count), files::read, || next(fd, out, count));
    fn [writev](fd: c_int, data: Iovecs, count: c_int) -> isize, next =>
        several(fd, Some(At::Own), (data, count), files::write, || next(fd, data, count));
    fn [preadv, preadv64](fd: c_int, out: Iovecs, count: c_int, offset: off_t) -> isize, next =>
        several(fd, At::given(offset), (out, count), files::read, || next(fd, out, count, offset));
    fn [pwritev, pwritev64](fd: c_int, data: Iovecs, count: c_int, offset: off_t) -> isize, next =>
        several(fd, At::given(offset), (data, count), files::write, || next(fd, data, count, offset));
    fn [preadv2, preadv64v2](fd: c_int, out: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize, next =>
        with_flags(fd, offset, (out, count), flags, files::read, || next(fd, out, count, offset, flags));
    fn [pwritev2, pwritev64v2](fd: c_int, data: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize, next =>
        with_flags(fd, offset, (data, count), flags, files::write, || next(fd, data, count, offset, flags));

    fn [lseek, lseek64, __lseek](fd: c_int, offset: off_t, whence: c_int) -> off_t, next => {
        dirstreams::used_directly(fd);
        take_with(files::seek(fd, offset, whence), |offset| offset, || next(fd, offset, whence))
    };
    fn [ftruncate, ftruncate64](fd: c_int, size: off_t) -> c_int, next =>
        take(files::truncate(fd, size), || next(fd, size));
    fn [fsync](fd: c_int) -> c_int, next => take(synced(fd, false), || next(fd));
    fn [fdatasync](fd: c_int) -> c_int, next => take(synced(fd, true), || next(fd));
    fn [fallocate, fallocate64](fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int, next =>
        take(files::allocate(fd, mode, offset, len), || next(fd, mode, offset, len));
    // These answer the errno.
    fn [posix_fallocate, posix_fallocate64](fd: c_int, offset: off_t, len: off_t) -> c_int, next =>
        answered(files::reserve(fd, offset, len), || next(fd, offset, len));
    fn [posix_fadvise, posix_fadvise64](fd: c_int, offset: off_t, len: off_t, advice: c_int) -> c_int, next =>
        answered(
            files::advise(fd, len >= 0 && (0..=libc::POSIX_FADV_NOREUSE).contains(&advice)),
            || next(fd, offset, len, advice),
        );
    fn [sync_file_range](fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int, next =>
        take(
            files::advise(
                fd,
                offset >= 0 && len >= 0 && offset.checked_add(len).is_some() && flags & !SYNC_RANGE_FLAGS == 0,
            ),
            || next(fd, offset, len, flags),
        );
    fn [readahead](fd: c_int, offset: off_t, len: usize) -> isize, next =>
        take_with(files::read_ahead(fd), |()| 0, || next(fd, offset, len));

    fn [isatty](fd: c_int) -> c_int, next => match files::terminal(fd) {
        Road::Bypass(_) => {
            sys::set_errno(libc::ENOTTY);
            0
        }
        Road::Kernel => next(fd),
    };
    fn [tcgetattr](fd: c_int, out: *mut c_void) -> c_int, next => take(files::terminal(fd), || next(fd, out));
}

/// `SYNC_FILE_RANGE_WAIT_BEFORE`, `_WRITE`, `_WAIT_AFTER`.
const SYNC_RANGE_FLAGS: c_uint = 7;

fn synced(fd: c_int, data_only: bool) -> Road<()> {
    if FDS.is_virtual(fd) {
        sys::cancellation_point();
    }
    files::sync(fd, data_only)
}

/// 0 or the errno, as the function's own result.
fn answered(road: Road<()>, next: impl FnOnce() -> c_int) -> c_int {
    match road {
        Road::Bypass(Ok(())) => 0,
        Road::Bypass(Err(errno)) => errno,
        Road::Kernel => next(),
    }
}
