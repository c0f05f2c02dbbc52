//! Functions that change attributes.

use std::ffi::c_int;

use libc::{AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, gid_t, mode_t, off_t, uid_t};

use super::promote::with;
use super::{hook, take};
use crate::calls::{self, Road, Times, names_descriptor};
use crate::changes;
use crate::files;
use crate::sys::{Data, PathArg, Vector};

/// Runs a call that changes a descriptor's attributes: a virtual one's past the kernel, by `road`.
fn by_descriptor(fd: c_int, road: Road<()>, next: impl Fn(c_int) -> c_int) -> c_int {
    take(road, || changing(fd, next))
}

fn changing(fd: c_int, next: impl Fn(c_int) -> c_int) -> c_int {
    changes::changing(fd, |result| *result != 0, next)
}

/// Runs a call that changes what a path is of.
fn by_path(path: PathArg, road: Road<()>, next: impl Fn(PathArg) -> c_int) -> c_int {
    take(road, || changes::changing_at(path, |result| *result != 0, next))
}

/// Runs a call that changes what a path is of, or what a descriptor is of, with an empty path.
fn by_either(
    (dirfd, path): (c_int, PathArg),
    flags: c_int,
    road: impl Fn() -> Road<()>,
    next: impl Fn(c_int, PathArg) -> c_int,
) -> c_int {
    match flags & AT_EMPTY_PATH != 0 && names_descriptor(&path) {
        true => with(dirfd, || changing(dirfd, |dirfd| next(dirfd, path))),
        false => by_path(path, road(), |path| next(dirfd, path)),
    }
}

hook! {
    fn [chmod](path: PathArg, mode: mode_t) -> c_int, next =>
        by_path(path, calls::chmod(AT_FDCWD, &path, mode, 0), |path| next(path, mode));
    fn [lchmod](path: PathArg, mode: mode_t) -> c_int, next =>
        take(calls::chmod(AT_FDCWD, &path, mode, AT_SYMLINK_NOFOLLOW), || next(path, mode));
    fn [fchmodat](dirfd: c_int, path: PathArg, mode: mode_t, flags: c_int) -> c_int, next =>
        by_either(
            (dirfd, path), flags,
            || calls::chmod(dirfd, &path, mode, flags),
            |dirfd, path| next(dirfd, path, mode, flags),
        );
    fn [chown](path: PathArg, uid: uid_t, gid: gid_t) -> c_int, next =>
        by_path(path, calls::chown(AT_FDCWD, &path, uid, gid, 0), |path| next(path, uid, gid));
    fn [lchown](path: PathArg, uid: uid_t, gid: gid_t) -> c_int, next =>
        take(calls::chown(AT_FDCWD, &path, uid, gid, AT_SYMLINK_NOFOLLOW), || next(path, uid, gid));
    fn [fchownat](dirfd: c_int, path: PathArg, uid: uid_t, gid: gid_t, flags: c_int) -> c_int, next =>
        by_either(
            (dirfd, path), flags,
            || calls::chown(dirfd, &path, uid, gid, flags),
            |dirfd, path| next(dirfd, path, uid, gid, flags),
        );
    fn [truncate, truncate64](path: PathArg, size: off_t) -> c_int, next =>
        by_path(path, calls::truncate(&path, size), |path| next(path, size));

    fn [setxattr](path: PathArg, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int, next =>
        by_path(
            path,
            calls::set_xattr(&path, &name, value, size, flags, 0),
            |path| next(path, name, value, size, flags),
        );
    fn [lsetxattr](path: PathArg, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int, next =>
        take(
            calls::set_xattr(&path, &name, value, size, flags, AT_SYMLINK_NOFOLLOW),
            || next(path, name, value, size, flags),
        );
    fn [removexattr](path: PathArg, name: PathArg) -> c_int, next =>
        by_path(path, calls::remove_xattr(&path, &name, 0), |path| next(path, name));
    fn [lremovexattr](path: PathArg, name: PathArg) -> c_int, next =>
        take(calls::remove_xattr(&path, &name, AT_SYMLINK_NOFOLLOW), || next(path, name));

    fn [utime](path: PathArg, times: Vector<libc::utimbuf, 1>) -> c_int, next =>
        by_path(path, calls::utimens(AT_FDCWD, &path, Times::seconds(times), 0), |path| next(path, times));
    fn [utimes](path: PathArg, times: Vector<libc::timeval, 2>) -> c_int, next =>
        by_path(path, calls::utimens(AT_FDCWD, &path, Times::coarse(times), 0), |path| next(path, times));
    fn [lutimes](path: PathArg, times: Vector<libc::timeval, 2>) -> c_int, next =>
        take(calls::utimens(AT_FDCWD, &path, Times::coarse(times), AT_SYMLINK_NOFOLLOW), || next(path, times));
    // A null path means the descriptor.
    fn [futimesat](dirfd: c_int, path: PathArg, times: Vector<libc::timeval, 2>) -> c_int, next =>
        match path.is_null() {
            true => by_descriptor(
                dirfd,
                files::utimens(dirfd, &Times::coarse(times)),
                |dirfd| next(dirfd, path, times),
            ),
            false => by_path(
                path,
                calls::utimens(dirfd, &path, Times::coarse(times), 0),
                |path| next(dirfd, path, times),
            ),
        };
    fn [utimensat](dirfd: c_int, path: PathArg, times: Vector<libc::timespec, 2>, flags: c_int) -> c_int, next =>
        match path.is_null() {
            // `EINVAL`, by libc.
            true => next(dirfd, path, times, flags),
            false => by_either(
                (dirfd, path), flags,
                || calls::utimens(dirfd, &path, Times::precise(times), flags),
                |dirfd, path| next(dirfd, path, times, flags),
            ),
        };

    fn [fchmod](fd: c_int, mode: mode_t) -> c_int, next => by_descriptor(fd, files::chmod(fd, mode), |fd| next(fd, mode));
    fn [fchown](fd: c_int, uid: uid_t, gid: gid_t) -> c_int, next =>
        by_descriptor(fd, files::chown(fd, uid, gid), |fd| next(fd, uid, gid));
    fn [futimens](fd: c_int, times: Vector<libc::timespec, 2>) -> c_int, next =>
        by_descriptor(fd, files::utimens(fd, &Times::precise(times)), |fd| next(fd, times));
    fn [futimes](fd: c_int, times: Vector<libc::timeval, 2>) -> c_int, next =>
        by_descriptor(fd, files::utimens(fd, &Times::coarse(times)), |fd| next(fd, times));
    fn [fsetxattr](fd: c_int, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int, next =>
        by_descriptor(
            fd,
            files::set_xattr(fd, &name, value, size, flags),
            |fd| next(fd, name, value, size, flags),
        );
    fn [fremovexattr](fd: c_int, name: PathArg) -> c_int, next =>
        by_descriptor(fd, files::remove_xattr(fd, &name), |fd| next(fd, name));
}
