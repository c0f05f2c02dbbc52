//! `syscall`: programs and language runtimes that name system calls by their numbers mean the same files.
//!
//! A call that libc has a function for takes the road of that function; what the kernel serves is passed on by `syscall`
//! itself, so that nothing becomes a cancellation point or affects other threads that was not and did not.
//!
//! The function is variadic. It is defined with as many arguments as a system call can have: those that the program
//! did not pass are registers, and one word of the stack, with any content, which the kernel ignores as well.

use std::ffi::c_int;

use libc::{AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, S_IFIFO, S_IFMT};

use super::descriptors::{close_others, control, duplicated, onto};
use super::open::{CREAT, open_at};
use super::process::{credentials_of_this_thread, elsewhere};
use super::stat::{stat_at, stat_open, statx_at};
use super::{hook, take_with};
use crate::calls::{self, Road, Times};
use crate::changes;
use crate::connection::is_own;
use crate::copies;
use crate::dirstreams::{self, Before};
use crate::files::{self, At};
use crate::process::{self, FDS};
use crate::route;
use crate::sys::{Buffers, PathArg, Word};
use crate::virtuals;
use crate::watch;

/// A descriptor that is closed.
fn closed(fd: c_int) -> Road<()> {
    match is_own(fd) {
        true => Road::Bypass(Err(libc::EBADF)),
        false => files::close(fd),
    }
}

/// Takes a call's road: 0, or -1 and errno.
fn take(road: Road<()>, next: impl FnOnce() -> Word) -> Word {
    take_with(road, |()| Word(0), next)
}

/// Takes the road of a call that answers a number of bytes.
fn count(road: Road<usize>, next: impl FnOnce() -> Word) -> Word {
    take_with(road, |len| Word(len as i64), next)
}

fn word(result: c_int) -> Word {
    Word(result.into())
}

fn make(dirfd: c_int, path: PathArg, mode: u32, dev: u32, next: impl FnOnce() -> Word) -> Word {
    // Without a type it is a regular file, and a fifo has no number.
    let dev = if mode & S_IFMT == S_IFIFO { 0 } else { dev.into() };
    take(calls::mknod(dirfd, &path, mode, dev), next)
}

hook! {
    fn [syscall](number: Word, a: Word, b: Word, c: Word, d: Word, e: Word, f: Word) -> Word, next =>
        route_call(number, [a, b, c, d, e, f], |number, [a, b, c, d, e, f]| next(number, a, b, c, d, e, f));
}

fn route_call(number: Word, all: [Word; 6], pass: impl Fn(Word, [Word; 6]) -> Word) -> Word {
    let [a, b, c, d, e, _] = all;
    let next = || pass(number, all);
    let next_int = || pass(number, all).int();
    let by_path = |at, road| by_path(number, (all, at), road, &pass);
    if virtuals::any()
        && let Some(served) = by_number(number, all, next)
    {
        return served;
    }
    match number.0 {
        libc::SYS_openat => word(open_at(a.int(), b.path(), c.int(), d.unsigned(), |flags| {
            pass(number, [a, b, Word(flags.into()), d, e, all[5]]).int()
        })),
        libc::SYS_statx => word(statx_at(a.int(), b.path(), c.int(), d.unsigned(), e.out(), next_int)),
        libc::SYS_newfstatat => word(stat_at(a.int(), b.path(), c.out(), d.int(), next_int)),
        libc::SYS_fstat => word(stat_open(a.int(), b.out(), next_int)),
        libc::SYS_faccessat => take(calls::access(a.int(), &b.path(), c.int(), 0), next),
        libc::SYS_faccessat2 => take(calls::access(a.int(), &b.path(), c.int(), d.int()), next),
        libc::SYS_readlinkat => count(calls::readlink(a.int(), &b.path(), c.data(), d.size()), next),
        libc::SYS_unlinkat => take(calls::unlink(a.int(), &b.path(), c.int()), next),
        libc::SYS_renameat2 => {
            take(calls::rename((a.int(), &b.path()), (c.int(), &d.path()), e.unsigned()), next)
        }
        libc::SYS_mkdirat => take(calls::mkdir(a.int(), &b.path(), c.unsigned()), next),
        libc::SYS_mknodat => make(a.int(), b.path(), c.unsigned(), d.unsigned(), next),
        libc::SYS_linkat => take(calls::link((a.int(), &b.path()), (c.int(), &d.path()), e.int()), next),
        libc::SYS_symlinkat => take(calls::symlink(&a.path(), b.int(), &c.path()), next),
        libc::SYS_fchmodat => by_path(1, calls::chmod(a.int(), &b.path(), c.unsigned(), 0)),
        libc::SYS_fchownat if is_itself(b.path(), e.int()) => changing(number, all, pass),
        libc::SYS_utimensat if is_itself(b.path(), d.int()) => changing(number, all, pass),
        libc::SYS_fchmodat2 if is_itself(b.path(), d.int()) => changing(number, all, pass),
        libc::SYS_fchmodat2 => by_path(1, calls::chmod(a.int(), &b.path(), c.unsigned(), d.int())),
        libc::SYS_ioctl => {
            let again = |fd: c_int| pass(number, [Word(fd.into()), b, c, d, e, all[5]]);
            changes::despite_lending(a.int(), |result: &Word| result.0 == -1, again)
        }
        libc::SYS_fchownat => {
            by_path(1, calls::chown(a.int(), &b.path(), c.unsigned(), d.unsigned(), e.int()))
        }
        libc::SYS_truncate => by_path(0, calls::truncate(&a.path(), b.0)),
        // A null path means the descriptor.
        libc::SYS_utimensat if !b.path().is_null() => {
            by_path(1, calls::utimens(a.int(), &b.path(), Times::precise(c.vector()), d.int()))
        }
        libc::SYS_getxattr => count(calls::xattr(&a.path(), Some(&b.path()), c.data(), d.size(), 0), next),
        libc::SYS_lgetxattr => {
            let (path, name) = (a.path(), b.path());
            count(calls::xattr(&path, Some(&name), c.data(), d.size(), AT_SYMLINK_NOFOLLOW), next)
        }
        libc::SYS_listxattr => count(calls::xattr(&a.path(), None, b.data(), c.size(), 0), next),
        libc::SYS_llistxattr => {
            count(calls::xattr(&a.path(), None, b.data(), c.size(), AT_SYMLINK_NOFOLLOW), next)
        }
        libc::SYS_setxattr => {
            by_path(0, calls::set_xattr(&a.path(), &b.path(), c.data(), d.size(), e.int(), 0))
        }
        libc::SYS_lsetxattr => {
            let (path, name) = (a.path(), b.path());
            take(calls::set_xattr(&path, &name, c.data(), d.size(), e.int(), AT_SYMLINK_NOFOLLOW), next)
        }
        libc::SYS_removexattr => by_path(0, calls::remove_xattr(&a.path(), &b.path(), 0)),
        libc::SYS_lremovexattr => take(calls::remove_xattr(&a.path(), &b.path(), AT_SYMLINK_NOFOLLOW), next),

        libc::SYS_close => take(closed(a.int()), || {
            FDS.clear(a.int());
            next()
        }),
        libc::SYS_close_range => word(close_others(a.unsigned(), b.unsigned(), c.int(), |first, last| {
            let (first, last) = (Word(first.into()), Word(last.into()));
            pass(number, [first, last, c, d, e, all[5]]).int()
        })),
        libc::SYS_dup => word(duplicated(a.int(), next_int)),
        libc::SYS_dup3 => word(onto(a.int(), b.int(), next_int)),
        libc::SYS_fcntl => word(control(a.int(), b.int(), c.0, next_int)),
        libc::SYS_getdents64 | libc::SYS_lseek => {
            dirstreams::used_directly(a.int());
            next()
        }
        libc::SYS_chdir => {
            dirstreams::settle(Before::Directory);
            let path = a.path();
            let target = route::locate(AT_FDCWD, &path);
            let result = next();
            if result.0 == 0 {
                route::entered(target.as_ref());
            }
            result
        }
        libc::SYS_fchdir => {
            dirstreams::settle(Before::Directory);
            let result = next();
            if result.0 == 0 {
                route::entered_fd(a.int());
            }
            result
        }
        libc::SYS_inotify_add_watch => word(watch::add(a.int(), &b.path(), c.unsigned(), next_int)),
        libc::SYS_inotify_rm_watch => word(watch::remove(a.int(), b.int(), next_int)),
        libc::SYS_fanotify_mark => word(watch::mark(b.unsigned(), d.int(), &e.path(), next_int)),
        libc::SYS_umask => Word(process::set_mask(a.unsigned(), || next_int() as u32).into()),
        libc::SYS_setuid
        | libc::SYS_setgid
        | libc::SYS_setreuid
        | libc::SYS_setregid
        | libc::SYS_setresuid
        | libc::SYS_setresgid
        | libc::SYS_setgroups
        | libc::SYS_capset => credentials_of_this_thread(next),
        libc::SYS_setfsuid | libc::SYS_setfsgid | libc::SYS_seccomp => {
            files::promote_what_can_be();
            process::switch_off();
            next()
        }
        libc::SYS_prctl if a.int() == libc::PR_SET_SECCOMP => {
            files::promote_what_can_be();
            process::switch_off();
            next()
        }
        libc::SYS_chroot | libc::SYS_pivot_root | libc::SYS_unshare | libc::SYS_setns => {
            word(elsewhere(next_int))
        }
        libc::SYS_fchmod
        | libc::SYS_fchown
        | libc::SYS_utimensat
        | libc::SYS_fsetxattr
        | libc::SYS_fremovexattr => changing(number, all, pass),
        libc::SYS_copy_file_range => {
            let copy = copies::range((a.int(), b.out()), (c.int(), d.out()), e.size(), || next().0 as isize);
            Word(copy as i64)
        }
        _ => historical(number, all, pass),
    }
}

/// Whether a call is about its descriptor.
fn is_itself(path: PathArg, flags: c_int) -> bool {
    flags & libc::AT_EMPTY_PATH != 0 && calls::names_descriptor(&path)
}

/// A call that changes what its first argument, a descriptor, is of.
fn changing(number: Word, all: [Word; 6], pass: impl Fn(Word, [Word; 6]) -> Word) -> Word {
    let [fd, b, c, d, e, f] = all;
    changes::changing(
        fd.int(),
        |result: &Word| result.0 != 0,
        |fd| pass(number, [Word(fd.into()), b, c, d, e, f]),
    )
}

/// A call that changes what one of its arguments, a path, is of.
fn by_path(
    number: Word,
    (all, at): ([Word; 6], usize),
    road: Road<()>,
    pass: impl Fn(Word, [Word; 6]) -> Word,
) -> Word {
    let path = all.get(at).map_or(PathArg::NULL, |path| path.path());
    take(road, || {
        changes::changing_at(
            path,
            |result: &Word| result.0 != 0,
            |path| {
                let mut all = all;
                if let Some(word) = all.get_mut(at) {
                    *word = Word::of(path);
                }
                pass(number, all)
            },
        )
    })
}

/// Calls on virtual descriptors: those that transfer data as the functions of their names, all others by the kernel, to
/// which everything that could be such a descriptor is given over. `None` leaves the call to others.
fn by_number(number: Word, all: [Word; 6], next: impl FnOnce() -> Word) -> Option<Word> {
    let [a, b, c, d, ..] = all;
    let buffer = b.data().buffer(c.size());
    let buffers = Buffers::one(&buffer);
    match number.0 {
        libc::SYS_read => Some(count(files::read(a.int(), At::Own, buffers), next)),
        libc::SYS_write => Some(count(files::write(a.int(), At::Own, buffers), next)),
        libc::SYS_pread64 if d.0 >= 0 => Some(count(files::read(a.int(), At::given(d.0)?, buffers), next)),
        libc::SYS_pwrite64 if d.0 >= 0 => Some(count(files::write(a.int(), At::given(d.0)?, buffers), next)),
        libc::SYS_lseek if FDS.is_virtual(a.int()) => {
            Some(take_with(files::seek(a.int(), b.0, c.int()), Word, next))
        }
        libc::SYS_ftruncate => Some(take(files::truncate(a.int(), b.0), next)),
        libc::SYS_fsync => Some(take(files::sync(a.int(), false), next)),
        libc::SYS_fdatasync => Some(take(files::sync(a.int(), true), next)),
        // No descriptors, or followed by number.
        libc::SYS_futex
        | libc::SYS_fstat
        | libc::SYS_close
        | libc::SYS_close_range
        | libc::SYS_dup
        | libc::SYS_dup3
        | libc::SYS_fcntl => None,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_dup2 => None,
        // Another process, or the kernel itself, takes any.
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork | libc::SYS_vfork => everything(),
        libc::SYS_clone
        | libc::SYS_clone3
        | libc::SYS_execve
        | libc::SYS_execveat
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_io_submit
        | libc::SYS_io_uring_enter
        | libc::SYS_io_uring_register
        | libc::SYS_ppoll
        | libc::SYS_pselect6 => everything(),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_select => everything(),
        _ => {
            for word in all {
                if FDS.is_virtual(word.int())
                    && let Road::Bypass(Err(errno)) = files::kernel::<()>(word.int())
                {
                    return Some(super::fail(errno));
                }
            }
            None
        }
    }
}

/// Everything becomes the kernel's; the call goes on.
fn everything() -> Option<Word> {
    files::promote_all().err().map(super::fail)
}

/// Calls that newer machines do not have.
#[cfg(target_arch = "x86_64")]
fn historical(number: Word, all: [Word; 6], pass: impl Fn(Word, [Word; 6]) -> Word) -> Word {
    let [a, b, c, d, e, f] = all;
    let next = || pass(number, all);
    let next_int = || pass(number, all).int();
    let by_path = |at, road| by_path(number, (all, at), road, &pass);
    match number.0 {
        libc::SYS_open => word(open_at(AT_FDCWD, a.path(), b.int(), c.unsigned(), |flags| {
            pass(number, [a, Word(flags.into()), c, d, e, f]).int()
        })),
        libc::SYS_creat => word(open_at(AT_FDCWD, a.path(), CREAT, b.unsigned(), |_| next_int())),
        libc::SYS_stat => word(stat_at(AT_FDCWD, a.path(), b.out(), 0, next_int)),
        libc::SYS_lstat => word(stat_at(AT_FDCWD, a.path(), b.out(), AT_SYMLINK_NOFOLLOW, next_int)),
        libc::SYS_access => take(calls::access(AT_FDCWD, &a.path(), b.int(), 0), next),
        libc::SYS_readlink => count(calls::readlink(AT_FDCWD, &a.path(), b.data(), c.size()), next),
        libc::SYS_unlink => take(calls::unlink(AT_FDCWD, &a.path(), 0), next),
        libc::SYS_rmdir => take(calls::unlink(AT_FDCWD, &a.path(), AT_REMOVEDIR), next),
        libc::SYS_rename => take(calls::rename((AT_FDCWD, &a.path()), (AT_FDCWD, &b.path()), 0), next),
        libc::SYS_renameat => take(calls::rename((a.int(), &b.path()), (c.int(), &d.path()), 0), next),
        libc::SYS_mkdir => take(calls::mkdir(AT_FDCWD, &a.path(), b.unsigned()), next),
        libc::SYS_mknod => make(AT_FDCWD, a.path(), b.unsigned(), c.unsigned(), next),
        libc::SYS_link => take(calls::link((AT_FDCWD, &a.path()), (AT_FDCWD, &b.path()), 0), next),
        libc::SYS_symlink => take(calls::symlink(&a.path(), AT_FDCWD, &b.path()), next),
        libc::SYS_chmod => by_path(0, calls::chmod(AT_FDCWD, &a.path(), b.unsigned(), 0)),
        libc::SYS_chown => by_path(0, calls::chown(AT_FDCWD, &a.path(), b.unsigned(), c.unsigned(), 0)),
        libc::SYS_lchown => {
            let path = a.path();
            take(calls::chown(AT_FDCWD, &path, b.unsigned(), c.unsigned(), AT_SYMLINK_NOFOLLOW), next)
        }
        libc::SYS_utime => by_path(0, calls::utimens(AT_FDCWD, &a.path(), Times::seconds(b.vector()), 0)),
        libc::SYS_utimes => by_path(0, calls::utimens(AT_FDCWD, &a.path(), Times::coarse(b.vector()), 0)),
        libc::SYS_futimesat if !b.path().is_null() => {
            by_path(1, calls::utimens(a.int(), &b.path(), Times::coarse(c.vector()), 0))
        }
        libc::SYS_dup2 => word(onto(a.int(), b.int(), next_int)),
        _ => next(),
    }
}

/// Calls that newer machines do not have.
#[cfg(not(target_arch = "x86_64"))]
fn historical(number: Word, all: [Word; 6], pass: impl Fn(Word, [Word; 6]) -> Word) -> Word {
    pass(number, all)
}
