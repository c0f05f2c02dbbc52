//! Functions that make, move and remove names.

use std::ffi::{c_int, c_uint};

use libc::{AT_FDCWD, AT_REMOVEDIR, S_IFIFO, mode_t};

use super::promote::itself;
use super::{hook, take};
use crate::calls;
use crate::sys::{PathArg, Vector};

hook! {
    fn [unlink](path: PathArg) -> c_int, next => take(calls::unlink(AT_FDCWD, &path, 0), || next(path));
    fn [unlinkat](dirfd: c_int, path: PathArg, flags: c_int) -> c_int, next =>
        take(calls::unlink(dirfd, &path, flags), || next(dirfd, path, flags));
    fn [rmdir](path: PathArg) -> c_int, next =>
        take(calls::unlink(AT_FDCWD, &path, AT_REMOVEDIR), || next(path));
    fn [remove](path: PathArg) -> c_int, next => take(calls::remove(&path), || next(path));

    fn [rename](old: PathArg, new: PathArg) -> c_int, next =>
        take(calls::rename((AT_FDCWD, &old), (AT_FDCWD, &new), 0), || next(old, new));
    fn [renameat](olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg) -> c_int, next =>
        take(calls::rename((olddirfd, &old), (newdirfd, &new), 0), || next(olddirfd, old, newdirfd, new));
    fn [renameat2](olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg, flags: c_uint) -> c_int, next =>
        take(
            calls::rename((olddirfd, &old), (newdirfd, &new), flags),
            || next(olddirfd, old, newdirfd, new, flags),
        );

    fn [link](old: PathArg, new: PathArg) -> c_int, next =>
        take(calls::link((AT_FDCWD, &old), (AT_FDCWD, &new), 0), || next(old, new));
    fn [linkat](olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg, flags: c_int) -> c_int, next =>
        take(
            calls::link((olddirfd, &old), (newdirfd, &new), flags),
            || {
                let left = calls::link_flags(olddirfd, &old, flags);
                itself(olddirfd, &old, flags, || next(olddirfd, old, newdirfd, new, left))
            },
        );
    fn [symlink](target: PathArg, path: PathArg) -> c_int, next =>
        take(calls::symlink(&target, AT_FDCWD, &path), || next(target, path));
    fn [symlinkat](target: PathArg, dirfd: c_int, path: PathArg) -> c_int, next =>
        take(calls::symlink(&target, dirfd, &path), || next(target, dirfd, path));

    fn [mkdir](path: PathArg, mode: mode_t) -> c_int, next =>
        take(calls::mkdir(AT_FDCWD, &path, mode), || next(path, mode));
    fn [mkdirat](dirfd: c_int, path: PathArg, mode: mode_t) -> c_int, next =>
        take(calls::mkdir(dirfd, &path, mode), || next(dirfd, path, mode));
    fn [mkfifo](path: PathArg, mode: mode_t) -> c_int, next =>
        take(calls::mknod(AT_FDCWD, &path, mode | S_IFIFO, 0), || next(path, mode));
    fn [mkfifoat](dirfd: c_int, path: PathArg, mode: mode_t) -> c_int, next =>
        take(calls::mknod(dirfd, &path, mode | S_IFIFO, 0), || next(dirfd, path, mode));
    fn [mknod](path: PathArg, mode: mode_t, dev: libc::dev_t) -> c_int, next =>
        take(calls::mknod(AT_FDCWD, &path, mode, dev), || next(path, mode, dev));
    fn [mknodat](dirfd: c_int, path: PathArg, mode: mode_t, dev: libc::dev_t) -> c_int, next =>
        take(calls::mknod(dirfd, &path, mode, dev), || next(dirfd, path, mode, dev));
    fn [__xmknod](version: c_int, path: PathArg, mode: mode_t, dev: Vector<libc::dev_t, 1>) -> c_int, next =>
        match (version, dev.get()) {
            (0, Ok(Some([number]))) =>
                take(calls::mknod(AT_FDCWD, &path, mode, number), || next(version, path, mode, dev)),
            _ => next(version, path, mode, dev),
        };
    fn [__xmknodat](
        version: c_int, dirfd: c_int, path: PathArg, mode: mode_t, dev: Vector<libc::dev_t, 1>
    ) -> c_int, next =>
        match (version, dev.get()) {
            (0, Ok(Some([number]))) =>
                take(calls::mknod(dirfd, &path, mode, number), || next(version, dirfd, path, mode, dev)),
            _ => next(version, dirfd, path, mode, dev),
        };
}
