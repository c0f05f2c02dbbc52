//! Changes by descriptors of files that the program has got past the kernel's mount: granted ones, of which the daemon is told, and those that were opened
//! in a directory that was lent, on a mount that nothing can be changed on (`EROFS`).

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};
use std::time::{Duration, Instant};

use finesse_ipc::frame::{Fallback, Op, PATH_MAX, Request};
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::FdFlags;

use crate::calls::{self, granted, granted_inode};
use crate::connection::{self, Guard};
use crate::files;
use crate::locks;
use crate::process::{self, FDS};
use crate::sys::{self, PathArg};

/// Runs a call that changes what a descriptor is of, and that the kernel serves: the daemon is told of what was changed by a granted one.
pub(crate) fn changing<R>(fd: RawFd, failed: impl Fn(&R) -> bool, next: impl Fn(RawFd) -> R) -> R {
    let result = despite_lending(fd, &failed, next);
    if !failed(&result) {
        attributes_changed(fd);
    }
    result
}

/// As [`changing`], for a call that changes what a path is of: it may be that of a descriptor (`/proc/self/fd/N`).
pub(crate) fn changing_at<R>(path: PathArg, failed: impl Fn(&R) -> bool, next: impl Fn(PathArg) -> R) -> R {
    let result = despite_lending_at(path, &failed, next);
    if !failed(&result)
        && let Some(fd) = granted_at(path)
    {
        attributes_changed(fd);
    }
    result
}

/// The granted descriptor that a path is of.
fn granted_at(path: PathArg) -> Option<RawFd> {
    let fd = files::descriptor_at(path.get()?.bytes())?;
    granted(fd).map(|_| fd)
}

/// As [`despite_lending`], for a call by a path.
pub(crate) fn despite_lending_at<R>(
    path: PathArg,
    failed: impl Fn(&R) -> bool,
    next: impl Fn(PathArg) -> R,
) -> R {
    let Some(fd) = granted_at(path) else { return next(path) };
    despite_lending(fd, failed, |given| match descriptor_path(given, &mut [0; DESCRIPTOR_PATH]) {
        Some(other) if given != fd => sys::with_path(other, |path| next(*path)),
        _ => next(path),
    })
}

/// Runs a call that may change what a descriptor is of. By one that was opened in a directory that was lent nothing can be changed (`EROFS`): by one
/// that the daemon gives for it, everything can.
pub(crate) fn despite_lending<R>(fd: RawFd, failed: impl Fn(&R) -> bool, next: impl Fn(RawFd) -> R) -> R {
    let result = next(fd);
    if !failed(&result) || sys::errno() != libc::EROFS {
        return result;
    }
    if let Some(exchanged) = exchanged(fd)
        && let Some(other) = exchanged.fd()
    {
        return next(other.as_raw_fd());
    }
    sys::set_errno(libc::EROFS);
    result
}

/// A descriptor of the same file on a mount that can be written to, from the daemon; `None` if it was opened on one, or if the daemon has none.
fn exchanged(fd: RawFd) -> Option<locks::Beside> {
    let (dev, _) = granted(fd)?;
    let file = sys::borrow(fd).filter(|file| is_read_only(*file))?;
    let same = rustix::fs::fstat(file).ok()?;
    let is_same = |other: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(other);
        stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (same.st_dev, same.st_ino))
            && !is_read_only(other)
    };
    if let Some(left_over) = locks::left_over(same.st_ino, is_same) {
        return Some(left_over);
    }
    let exchanged = insist(dev, |mount| match mount.client().exchange(file) {
        // For want of a number: natively none is needed.
        Err(Fallback::NotGranted) if !sys::has_free_number(file) && connection::spare_numbers() => {
            Err(Fallback::NoSlot)
        }
        Err(Fallback::NotGranted) => Ok(None),
        answer => answer.map(Some),
    });
    exchanged.flatten().map(|file| locks::Beside::new(sys::Hidden::new(file)))
}

/// Whether a file is on a mount that is read-only, as what is lent is.
fn is_read_only(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatvfs(file).is_ok_and(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// A descriptor of the program's is about to be opened again by its own path, to write. If it was opened in a directory that was lent, it becomes one by which that
/// can be done.
pub(crate) fn prepare_to_write(fd: RawFd) {
    let Some(old) = sys::borrow(fd).filter(|old| granted(fd).is_some() && is_read_only(*old)) else { return };
    let Ok(flags) = rustix::io::fcntl_getfd(old) else { return };
    let become_this = |new: BorrowedFd<'_>| {
        sys::replace(new.as_raw_fd(), fd, flags.contains(FdFlags::CLOEXEC));
    };
    if let Some(shown) = shown_file(fd) {
        // What is opened by it is the mount's.
        FDS.clear(fd);
        let _: Option<()> = shown.fd().map(become_this);
        return;
    }
    if let Some(exchanged) = exchanged_if_removed(fd) {
        let _: Option<()> = exchanged.fd().map(become_this);
    }
}

/// An `O_PATH` descriptor of a file that was opened in a directory that was lent, by the path that the kernel shows for it, if that leads to it.
fn shown_file(fd: RawFd) -> Option<sys::Hidden> {
    let known = granted_inode(fd)?;
    let file = sys::try_open_hidden(CWD, shown_path(fd, &mut [0; PATH_MAX + 1])?, OFlags::PATH).ok()?;
    let stat = rustix::fs::fstat(file.fd()?).ok()?;
    ((stat.st_dev, stat.st_ino) == known).then_some(file)
}

/// A granted descriptor of a file that has no name any more: what is written by it is nobody else's business.
fn exchanged_if_removed(fd: RawFd) -> Option<locks::Beside> {
    let stat = rustix::fs::fstat(sys::borrow(fd)?).ok()?;
    if stat.st_nlink == 0 { exchanged(fd) } else { None }
}

/// The path that the kernel shows for a descriptor.
fn shown_path(fd: RawFd, buffer: &mut [u8; PATH_MAX + 1]) -> Option<&CStr> {
    let len =
        sys::read_link(descriptor_path(fd, &mut [0; DESCRIPTOR_PATH])?, buffer.get_mut(..PATH_MAX)?).ok()?;
    CStr::from_bytes_with_nul(buffer.get(..=len)?).ok()
}

/// Longest path of a descriptor, with its NUL.
const DESCRIPTOR_PATH: usize = 32;

/// The path of a descriptor of this process.
fn descriptor_path(fd: RawFd, buffer: &mut [u8; DESCRIPTOR_PATH]) -> Option<&CStr> {
    use std::io::Write;
    write!(&mut buffer[..], "/proc/self/fd/{fd}\0").ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

/// A granted file's attributes were changed through its descriptor, unseen by the daemon: makes it look.
fn attributes_changed(fd: RawFd) {
    let Some((dev, ino)) = granted_inode(fd) else { return };
    let request = Request { base: ino, ..Request::default() };
    // A daemon that is gone has nothing cached.
    insist(dev, |mount| mount.client().call(Op::Changed, &request, &[], &[]).map(drop));
}

/// Asks the daemon of the mount of this device for what the kernel cannot do in its place: a connection that is busy with itself for a moment, because
/// the mount table has changed for instance, or with other threads, is tried again. `None` if the daemon is gone, or the bypass off.
fn insist<T>(dev: u64, ask: impl Fn(&Guard) -> Result<T, Fallback>) -> Option<T> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let began = Instant::now();
    while process::is_on() {
        let index = connection::by_dev((libc::major(dev), libc::minor(dev)))?;
        match connection::enter_at_once(index).map(|mount| ask(&mount)) {
            Some(Ok(answer)) => return Some(answer),
            Some(Err(Fallback::Disconnected)) => return None,
            Some(Err(_)) | None if began.elapsed() < PATIENCE => rustix::thread::sched_yield(),
            Some(Err(_)) | None => return None,
        }
    }
    None
}

/// A path of one of the process's descriptors (`/proc/self/fd/N`) has led to a file that was opened in a directory that was lent, which cannot be opened
/// for writing: the kernel opens it by the path that it shows, on the mount; if that leads to it no longer, by a descriptor that the daemon grants.
#[cold]
pub(crate) fn open_despite_lending(path: &PathArg, flags: i32) -> Result<RawFd, i32> {
    let fd = path.get().and_then(|path| files::descriptor_at(path.bytes())).ok_or(libc::EROFS)?;
    let flags = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW);
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    let again = |file: BorrowedFd<'_>| {
        let mut path = [0; DESCRIPTOR_PATH];
        let path = descriptor_path(file.as_raw_fd(), &mut path).ok_or(libc::EROFS)?;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        opened.map(IntoRawFd::into_raw_fd).map_err(|errno| errno.raw_os_error())
    };
    // Nothing is opened, and cut, before it is known to be the same file.
    if let Some(shown) = shown_file(fd) {
        let opened = again(shown.fd().ok_or(libc::EROFS)?)?;
        calls::opened(opened, flags.bits().cast_signed(), None);
        return Ok(opened);
    }
    let exchanged = exchanged_if_removed(fd);
    let opened = again(exchanged.as_ref().and_then(locks::Beside::fd).ok_or(libc::EROFS)?)?;
    // It is the source's file, as the other one is.
    FDS.set(opened, FDS.get(fd));
    Ok(opened)
}
