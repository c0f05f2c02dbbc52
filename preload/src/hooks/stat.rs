//! `stat` and its relatives, `statfs`, `access`, `readlink`, reads of extended attributes.

use std::ffi::{c_int, c_long, c_uint};

use finesse_ipc::frame::Attr;
use libc::{AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};

use super::promote::{itself, with};
use super::{fail, hook, take, take_with};
use crate::attr::{self, MountFacts};
use crate::calls::{self, All, Found, Receive, Road};
use crate::changes;
use crate::connection::is_own;
use crate::files;
use crate::next::StatOut;
use crate::process::{self, FDS};
use crate::route;
use crate::sys::{Data, Out, PathArg};

#[inline]
pub(super) fn stat_at(
    dirfd: c_int,
    path: PathArg,
    out: StatOut,
    flags: c_int,
    next: impl FnOnce() -> c_int,
) -> c_int {
    if flags & AT_EMPTY_PATH != 0 && calls::names_descriptor(&path) {
        return stat_open(dirfd, out, next);
    }
    if out.is_unusual() {
        return next();
    }
    // `fstatat` has no synchronisation flags.
    if flags & libc::AT_STATX_SYNC_TYPE != 0 {
        return next();
    }
    take(calls::stat(dirfd, &path, flags, Put(out)), next)
}

/// Puts a `struct stat` where the program wants it.
struct Put(StatOut);

impl Receive for Put {
    type Made = ();

    #[inline(always)]
    fn receive(&self, attr: &Attr, mount: &MountFacts) {
        self.0.fill(|stat| attr::fill_stat(stat, attr, mount));
    }
}

/// Puts a `struct statx` where the program wants it.
struct PutExtended(Out<libc::statx>);

impl Receive for PutExtended {
    type Made = ();

    #[inline(always)]
    fn receive(&self, attr: &Attr, mount: &MountFacts) {
        self.0.fill(|statx| attr::fill_statx(statx, attr, mount));
    }
}

fn answer(road: Road<Found>, out: StatOut, next: impl FnOnce() -> c_int) -> c_int {
    let served = |found: Found| {
        out.put(attr::stat(&found.attr, &found.mount));
        0
    };
    take_with(road, served, next)
}

#[inline]
pub(super) fn stat_open(fd: c_int, out: StatOut, next: impl FnOnce() -> c_int) -> c_int {
    if is_own(fd) {
        return fail(libc::EBADF);
    }
    if FDS.is_virtual(fd) && !out.is_suspicious() {
        return answer(files::stat(fd), out, || stat_kernel(fd, out, next));
    }
    stat_kernel(fd, out, next)
}

fn stat_kernel(fd: c_int, out: StatOut, next: impl FnOnce() -> c_int) -> c_int {
    if let Road::Bypass(Err(errno)) = files::kernel::<()>(fd) {
        return fail(errno);
    }
    if let Some((dev, ino)) = calls::granted(fd) {
        let result = next();
        if result == 0 {
            out.update(|stat| attr::rename_stat(stat, dev, ino));
        }
        return result;
    }
    if process::has_inherited() {
        let result = next();
        if result == 0 {
            out.update(|stat| {
                if let Some((dev, ino)) = process::adopt(fd, stat.st_dev, stat.st_ino) {
                    attr::rename_stat(stat, dev, ino);
                }
            });
        }
        return result;
    }
    if out.is_suspicious() {
        return next();
    }
    answer(calls::stat_fd(fd), out, || {
        let result = next();
        if result == 0 {
            out.look(|stat| route::seen(fd, stat.st_dev, stat.st_mode));
        }
        result
    })
}

/// Versions of `struct stat` that are the kernel's own (`_STAT_VER_KERNEL`, `_STAT_VER_LINUX`): on x86-64 both, elsewhere
/// the first.
fn is_current(version: c_int) -> bool {
    version == 0 || (cfg!(target_arch = "x86_64") && version == 1)
}

/// Asks what may be done with what a path leads to.
fn accessible(path: PathArg, road: Road<()>, next: impl Fn(PathArg) -> c_int) -> c_int {
    take(road, || changes::despite_lending_at(path, |result| *result != 0, next))
}

hook! {
    fn [stat, stat64](path: PathArg, out: StatOut) -> c_int, next =>
        stat_at(AT_FDCWD, path, out, 0, || next(path, out));
    fn [lstat, lstat64](path: PathArg, out: StatOut) -> c_int, next =>
        stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW, || next(path, out));
    fn [fstat, fstat64](fd: c_int, out: StatOut) -> c_int, next => stat_open(fd, out, || next(fd, out));
    fn [fstatat, fstatat64](dirfd: c_int, path: PathArg, out: StatOut, flags: c_int) -> c_int, next =>
        stat_at(dirfd, path, out, flags, || next(dirfd, path, out, flags));

    fn [__xstat, __xstat64](version: c_int, path: PathArg, out: StatOut) -> c_int, next =>
        match is_current(version) {
            true => stat_at(AT_FDCWD, path, out, 0, || next(version, path, out)),
            false => next(version, path, out),
        };
    fn [__lxstat, __lxstat64](version: c_int, path: PathArg, out: StatOut) -> c_int, next =>
        match is_current(version) {
            true => stat_at(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW, || next(version, path, out)),
            false => next(version, path, out),
        };
    fn [__fxstat, __fxstat64](version: c_int, fd: c_int, out: StatOut) -> c_int, next =>
        match is_current(version) {
            true => stat_open(fd, out, || next(version, fd, out)),
            false => next(version, fd, out),
        };
    fn [__fxstatat, __fxstatat64](
        version: c_int, dirfd: c_int, path: PathArg, out: StatOut, flags: c_int
    ) -> c_int, next =>
        match is_current(version) {
            true => stat_at(dirfd, path, out, flags, || next(version, dirfd, path, out, flags)),
            false => next(version, dirfd, path, out, flags),
        };

    fn [statx](dirfd: c_int, path: PathArg, flags: c_int, mask: c_uint, out: Out<libc::statx>) -> c_int, next =>
        statx_at(dirfd, path, flags, mask, out, || next(dirfd, path, flags, mask, out));
}

pub(super) fn statx_at(
    dirfd: c_int,
    path: PathArg,
    flags: c_int,
    mask: c_uint,
    out: Out<libc::statx>,
    next: impl FnOnce() -> c_int,
) -> c_int {
    if flags & AT_EMPTY_PATH != 0 && calls::names_descriptor(&path) {
        if FDS.is_virtual(dirfd) && attr::can_fill(mask) && !out.is_suspicious() {
            let served = |found: Found| {
                out.put(attr::statx(&found.attr, &found.mount));
                0
            };
            if let road @ Road::Bypass(_) = calls::stat(dirfd, &path, flags, All) {
                return take_with(road, served, next);
            }
        }
        if let Road::Bypass(Err(errno)) = files::kernel::<()>(dirfd) {
            return fail(errno);
        }
        let known = calls::granted(dirfd);
        if known.is_some() || process::has_inherited() {
            let result = next();
            if result == 0 {
                out.update(|statx| {
                    let dev = libc::makedev(statx.stx_dev_major, statx.stx_dev_minor);
                    if let Some((dev, ino)) = known.or_else(|| process::adopt(dirfd, dev, statx.stx_ino)) {
                        attr::rename_statx(statx, dev, ino, calls::facts_of(dev).as_ref());
                    }
                });
            }
            return result;
        }
    }
    if !attr::can_fill(mask) || out.is_unusual() {
        return next();
    }
    take(calls::stat(dirfd, &path, flags, PutExtended(out)), next)
}

hook! {
    fn [statfs, statfs64, __statfs](path: PathArg, out: Out<libc::statfs64>) -> c_int, next =>
        match out.is_suspicious() {
            true => next(path, out),
            false => {
                let served = |(found, flags)| {
                    out.put(attr::statfs(&found, flags));
                    0
                };
                take_with(calls::statfs(&path), served, || next(path, out))
            }
        };
    fn [statvfs, statvfs64](path: PathArg, out: Out<libc::statvfs>) -> c_int, next =>
        match out.is_suspicious() {
            true => next(path, out),
            false => {
                let served = |(found, flags)| {
                    out.put(attr::statvfs(&found, flags));
                    0
                };
                take_with(calls::statfs(&path), served, || next(path, out))
            }
        };
    fn [fstatfs, fstatfs64](fd: c_int, out: Out<libc::statfs64>) -> c_int, next =>
        match out.is_suspicious() {
            true => next(fd, out),
            false => {
                let served = |(found, flags)| {
                    out.put(attr::statfs(&found, flags));
                    0
                };
                take_with(calls::fstatfs(fd), served, || next(fd, out))
            }
        };
    fn [fstatvfs, fstatvfs64](fd: c_int, out: Out<libc::statvfs>) -> c_int, next =>
        match out.is_suspicious() {
            true => next(fd, out),
            false => {
                let served = |(found, flags)| {
                    out.put(attr::statvfs(&found, flags));
                    0
                };
                take_with(calls::fstatfs(fd), served, || next(fd, out))
            }
        };

    fn [fpathconf](fd: c_int, name: c_int) -> c_long, next => {
        let of_mount = calls::on_mount_of(fd, |path| {
            // SAFETY: a C string.
            unsafe { crate::next::pathconf(*path, name) }
        });
        of_mount.unwrap_or_else(|| with(fd, || next(fd, name)))
    };
    fn [fgetxattr](fd: c_int, name: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(files::xattr(fd, Some(&name), out, size), |len| len as isize, || next(fd, name, out, size));
    fn [flistxattr](fd: c_int, out: Data, size: usize) -> isize, next =>
        take_with(files::xattr(fd, None, out, size), |len| len as isize, || next(fd, out, size));

    fn [access](path: PathArg, mode: c_int) -> c_int, next =>
        accessible(path, calls::access(AT_FDCWD, &path, mode, 0), |path| next(path, mode));
    fn [eaccess, euidaccess](path: PathArg, mode: c_int) -> c_int, next =>
        accessible(path, calls::access(AT_FDCWD, &path, mode, AT_EACCESS), |path| next(path, mode));
    fn [faccessat](dirfd: c_int, path: PathArg, mode: c_int, flags: c_int) -> c_int, next =>
        itself(
            dirfd, &path, flags,
            || {
                let road = calls::access(dirfd, &path, mode, flags);
                accessible(path, road, |path| next(dirfd, path, mode, flags))
            },
        );

    fn [readlink](path: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(calls::readlink(AT_FDCWD, &path, out, size), |len| len as isize, || next(path, out, size));
    fn [readlinkat](dirfd: c_int, path: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(calls::readlink(dirfd, &path, out, size), |len| len as isize, || next(dirfd, path, out, size));

    fn [getxattr](path: PathArg, name: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(
            calls::xattr(&path, Some(&name), out, size, 0),
            |len| len as isize,
            || next(path, name, out, size),
        );
    fn [lgetxattr](path: PathArg, name: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(
            calls::xattr(&path, Some(&name), out, size, AT_SYMLINK_NOFOLLOW),
            |len| len as isize,
            || next(path, name, out, size),
        );
    fn [listxattr](path: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(calls::xattr(&path, None, out, size, 0), |len| len as isize, || next(path, out, size));
    fn [llistxattr](path: PathArg, out: Data, size: usize) -> isize, next =>
        take_with(
            calls::xattr(&path, None, out, size, AT_SYMLINK_NOFOLLOW),
            |len| len as isize,
            || next(path, out, size),
        );

    // Fortified: glibc aborts the program if the buffer is smaller than it says.
    fn [__readlink_chk](path: PathArg, out: Data, size: usize, room: usize) -> isize, next =>
        match size > room {
            true => next(path, out, size, room),
            false => take_with(
                calls::readlink(AT_FDCWD, &path, out, size),
                |len| len as isize,
                || next(path, out, size, room),
            ),
        };
    fn [__readlinkat_chk](dirfd: c_int, path: PathArg, out: Data, size: usize, room: usize) -> isize, next =>
        match size > room {
            true => next(dirfd, path, out, size, room),
            false => take_with(
                calls::readlink(dirfd, &path, out, size),
                |len| len as isize,
                || next(dirfd, path, out, size, room),
            ),
        };
}
