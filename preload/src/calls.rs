//! The calls that the bypass serves: what is asked of the daemon, and when the kernel must be asked instead.
//!
//! Each function says in its result which road the call takes. It counts the call, once, if the path was ours.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};

use finesse_ipc::client::Call;
use finesse_ipc::environment::MOUNT_PATH_MAX;
use finesse_ipc::frame::{
    Attr, Fallback, NOT_VIRTUAL, Op, Outcome, REPLY_GRANT, REPLY_GRANTABLE, REPLY_KERNELS, REPLY_QUIET,
    REPLY_VIRTUAL, ROOT, Request, Statfs, Time,
};
use finesse_ipc::layout::DATA_BYTES;
use finesse_ipc::table::{self, Clock, Lending, Walked};
use libc::{AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW};
use rustix::io::FdFlags;
use rustix::process::Resource;

use crate::attr::{self, MountFacts};
use crate::connection::{self, Guard};
use crate::fds::{self, Kind};
use crate::files;
use crate::locks;
use crate::process::{self, FDS};
use crate::route::{self, Target, locate};
use crate::sys::{self, Data, PathArg, Vector};
use crate::virtuals;

/// The road that a call takes.
pub(crate) enum Road<T> {
    /// Served; the errno that the program shall see if it failed.
    Bypass(Result<T, i32>),
    /// The kernel serves it.
    Kernel,
}

/// `AT_NO_AUTOMOUNT`: FUSE has no automounts.
const AT_NO_AUTOMOUNT: i32 = libc::AT_NO_AUTOMOUNT;

/// Whether a call is about the name in a directory rather than about what it names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Name,
    Object,
}

/// One round trip for a call with one path.
#[inline]
fn serve<T>(
    op: Op,
    about: About,
    dirfd: RawFd,
    path: &PathArg,
    request: Request,
    read: impl Fn(&Guard, &Call<'_>) -> T,
) -> Road<T> {
    serve_with(op, about, dirfd, path, &[], request, read)
}

/// The same with a second string: a link's target, an attribute's name.
#[inline]
fn serve_with<T>(
    op: Op,
    about: About,
    dirfd: RawFd,
    path: &PathArg,
    with: &[u8],
    request: Request,
    read: impl Fn(&Guard, &Call<'_>) -> T,
) -> Road<T> {
    exchange(op, about, (dirfd, path), with, &[], request, |_| None, read)
}

/// As [`serve`], unless the mount's metadata table knows.
#[inline(always)]
pub(crate) fn serve_or_look_up<T>(
    op: Op,
    (dirfd, path): (RawFd, &PathArg),
    request: Request,
    look_up: impl Fn(&Target<'_>) -> Option<Result<T, i32>>,
    read: impl Fn(&Guard, &Call<'_>) -> T,
) -> Road<T> {
    exchange(op, About::Object, (dirfd, path), &[], &[], request, look_up, read)
}

/// The same with data besides: an attribute's value.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn exchange<T>(
    op: Op,
    about: About,
    (dirfd, path): (RawFd, &PathArg),
    with: &[u8],
    data: &[u8],
    request: Request,
    look_up: impl Fn(&Target<'_>) -> Option<Result<T, i32>>,
    read: impl Fn(&Guard, &Call<'_>) -> T,
) -> Road<T> {
    for attempt in 0..2 {
        // Used where it is: moving it would cost more than finding it.
        let located = locate(dirfd, path);
        let Some(target) = &located else { return Road::Kernel };
        if let Some(known) = look_up(target) {
            target.mount.client().counters().looked_up(op);
            return Road::Bypass(known);
        }
        if about == About::Name && target.is_root() {
            target.fell_back(Fallback::KernelByChoice);
            return Road::Kernel;
        }
        let request = Request { base: target.base, ..request };
        let filled = target.mount.client().call_with(op, &request, target.path(), with, |buffer| {
            if !data.is_empty() {
                buffer.append(data);
            }
        });
        match filled {
            Ok(call) => match call.reply.outcome() {
                Outcome::Kernel(Fallback::UnknownBase) if attempt == 0 && target.forget_proof() => {}
                Outcome::Kernel(reason) => return fell_back(target, reason),
                outcome => return finish(op, &target.mount, outcome, || read(&target.mount, &call)),
            },
            Err(reason) => return lost(target, reason),
        }
    }
    Road::Kernel
}

fn finish<T>(op: Op, mount: &Guard, outcome: Outcome, read: impl FnOnce() -> T) -> Road<T> {
    mount.client().counters().served(op);
    match outcome {
        Outcome::Errno(errno) => Road::Bypass(Err(errno)),
        _ => Road::Bypass(Ok(read())),
    }
}

#[cold]
fn fell_back<T>(target: &Target<'_>, reason: Fallback) -> Road<T> {
    target.fell_back(reason);
    Road::Kernel
}

#[cold]
fn lost<T>(target: &Target<'_>, reason: Fallback) -> Road<T> {
    target.fell_back(reason);
    if reason == Fallback::Disconnected {
        target.mount.is_lost();
    }
    Road::Kernel
}

/// The kernel serves the call, though the path may be ours.
#[cold]
fn decline<T>(dirfd: RawFd, path: &PathArg, reason: Fallback) -> Road<T> {
    if let Some(target) = locate(dirfd, path) {
        target.fell_back(reason);
    }
    Road::Kernel
}

/// The kernel serves the call because of what it does besides.
pub(crate) fn by_choice(path: &PathArg) {
    let _: Road<()> = decline(AT_FDCWD, path, Fallback::KernelByChoice);
}

/// One round trip for a call with two paths, both on one mount.
fn serve_two(
    op: Op,
    (dirfd, path): (RawFd, &PathArg),
    (dirfd2, path2): (RawFd, &PathArg),
    request: Request,
) -> Road<()> {
    for attempt in 0..2 {
        let (from, to) = match (locate(dirfd, path), locate(dirfd2, path2)) {
            (Some(from), Some(to)) => (from, to),
            (Some(one), None) | (None, Some(one)) => return fell_back(&one, Fallback::CrossesMount),
            (None, None) => return Road::Kernel,
        };
        if from.mount.index() != to.mount.index() {
            return fell_back(&from, Fallback::CrossesMount);
        }
        if from.is_root() || to.is_root() {
            return fell_back(&from, Fallback::KernelByChoice);
        }
        let request = Request { base: from.base, base2: to.base, ..request };
        match from.mount.client().call(op, &request, from.path(), to.path()) {
            Ok(call) => match call.reply.outcome() {
                Outcome::Kernel(Fallback::UnknownBase)
                    if attempt == 0 && (from.forget_proof() | to.forget_proof()) => {}
                Outcome::Kernel(reason) => return fell_back(&from, reason),
                outcome => return finish(op, &from.mount, outcome, || ()),
            },
            Err(reason) => return lost(&from, reason),
        }
    }
    Road::Kernel
}

// --- attributes, read ---

/// Attributes with what the kernel adds to them.
pub(crate) struct Found {
    pub(crate) attr: Attr,
    pub(crate) mount: MountFacts,
}

/// What becomes of attributes that were found.
pub(crate) trait Receive {
    /// What the caller gets.
    type Made;

    /// Makes it. What the metadata table has is not copied before.
    fn receive(&self, attr: &Attr, mount: &MountFacts) -> Self::Made;
}

/// All there is.
pub(crate) struct All;

impl Receive for All {
    type Made = Found;

    fn receive(&self, attr: &Attr, mount: &MountFacts) -> Found {
        Found { attr: *attr, mount: *mount }
    }
}

/// `fstatat` and relatives; also `statx`, whose synchronisation flags it knows.
#[inline(always)]
pub(crate) fn stat<R: Receive>(dirfd: RawFd, path: &PathArg, flags: i32, receiver: R) -> Road<R::Made> {
    let sync = flags & libc::AT_STATX_SYNC_TYPE;
    let known = AT_SYMLINK_NOFOLLOW
        | AT_EMPTY_PATH
        | AT_NO_AUTOMOUNT
        | libc::AT_STATX_FORCE_SYNC
        | libc::AT_STATX_DONT_SYNC;
    if flags & !known != 0 || sync == libc::AT_STATX_SYNC_TYPE {
        return decline(dirfd, path, Fallback::Unsupported);
    }
    if flags & AT_EMPTY_PATH != 0 && names_descriptor(path) {
        return match stat_fd(dirfd) {
            Road::Bypass(found) => {
                Road::Bypass(found.map(|found| receiver.receive(&found.attr, &found.mount)))
            }
            Road::Kernel => Road::Kernel,
        };
    }
    let passed = flags & (AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC);
    let request = Request { flags: passed as u32, ..Request::default() };
    let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
    let forced = flags & libc::AT_STATX_FORCE_SYNC != 0;
    let look_up = |target: &Target<'_>| {
        if forced {
            return None;
        }
        let table = target.mount.client().table()?;
        let found = |attr: &Attr| receiver.receive(attr, &target.mount.facts());
        match table.stat(target.base, target.path(), follow, &mut Clock::default(), found) {
            Walked::Found(made) => Some(Ok(made)),
            Walked::Absent => Some(Err(libc::ENOENT)),
            Walked::Unclear => None,
        }
    };
    serve_or_look_up(Op::Stat, (dirfd, path), request, look_up, |mount, call| {
        receiver.receive(&call.reply.to_attr(), &mount.facts())
    })
}

/// What the metadata table knows to be at the end of a path, a last symbolic link not followed.
#[inline]
fn probe(target: &Target<'_>) -> Walked<table::Kind> {
    match target.mount.client().table() {
        Some(table) => table.probe(target.base, target.path(), &mut Clock::default()),
        None => Walked::Unclear,
    }
}

/// `ENOENT`, if the metadata table knows that nothing is at the end of a path.
#[inline]
pub(crate) fn absent<T>(target: &Target<'_>) -> Option<Result<T, i32>> {
    matches!(probe(target), Walked::Absent).then_some(Err(libc::ENOENT))
}

/// Whether a path with `AT_EMPTY_PATH` means the descriptor itself (a null pointer does since Linux 6.11).
pub(crate) fn names_descriptor(path: &PathArg) -> bool {
    path.is_null() || path.get().is_some_and(|path| path.first() == 0)
}

/// `fstat` of a directory of ours. What is not accepted by the daemon yet is left to the kernel.
pub(crate) fn stat_fd(fd: RawFd) -> Road<Found> {
    if let road @ Road::Bypass(_) = files::stat(fd) {
        return road;
    }
    let Some((node, mount)) = route::known_directory(fd) else { return Road::Kernel };
    let request = Request { base: node, flags: AT_EMPTY_PATH as u32, ..Request::default() };
    let counters = mount.client().counters();
    match mount.client().call(Op::Stat, &request, &[], &[]) {
        Ok(call) => match call.reply.outcome() {
            Outcome::Kernel(reason) => counters.fell_back(reason),
            outcome => {
                let found = || Found { attr: call.reply.to_attr(), mount: mount.facts() };
                return finish(Op::Stat, &mount, outcome, found);
            }
        },
        Err(reason) => counters.fell_back(reason),
    }
    Road::Kernel
}

/// The mount's names for a granted descriptor: device and inode number, which may be [`fds::ITS_OWN`].
#[inline]
pub(crate) fn granted(fd: RawFd) -> Option<(u64, u64)> {
    match FDS.get(fd) {
        Kind::Granted { dev, ino, .. } => Some((dev, ino)),
        _ => None,
    }
}

/// As [`granted`], with a number that the descriptor is asked for if need be.
pub(crate) fn granted_inode(fd: RawFd) -> Option<(u64, u64)> {
    let (dev, ino) = granted(fd)?;
    match ino {
        fds::ITS_OWN => Some((dev, rustix::fs::fstat(sys::borrow(fd)?).ok()?.st_ino)),
        ino => Some((dev, ino)),
    }
}

/// What the kernel says about the mount of a device, for a granted descriptor's `statx`.
pub(crate) fn facts_of(dev: u64) -> Option<MountFacts> {
    connection::facts_of((libc::major(dev), libc::minor(dev)))
}

/// `statfs` and `statvfs`: the daemon's numbers and the kernel's flags.
pub(crate) fn statfs(path: &PathArg) -> Road<(Statfs, i64)> {
    let flags = match locate(AT_FDCWD, path).map(|target| (target.mount.statfs_flags(), target)) {
        None => return Road::Kernel,
        Some((None, target)) => return fell_back(&target, Fallback::Unsupported),
        Some((Some(flags), _)) => flags,
    };
    serve(Op::Statfs, About::Object, AT_FDCWD, path, Request::default(), |_, call| {
        (call.reply.to_statfs(), flags)
    })
}

/// `fstatfs` and `fstatvfs` of a granted descriptor: the kernel would describe the backing file system.
pub(crate) fn fstatfs(fd: RawFd) -> Road<(Statfs, i64)> {
    if let road @ Road::Bypass(_) = files::statfs(fd) {
        return road;
    }
    let Some((dev, _)) = granted(fd) else { return Road::Kernel };
    let Some(mount) =
        connection::by_dev((libc::major(dev), libc::minor(dev))).and_then(connection::enter_at_once)
    else {
        return Road::Kernel;
    };
    let Some(flags) = mount.statfs_flags() else { return Road::Kernel };
    let request = Request { base: ROOT, ..Request::default() };
    match mount.client().call(Op::Statfs, &request, b".", &[]) {
        Ok(call) => match call.reply.outcome() {
            Outcome::Kernel(_) => Road::Kernel,
            outcome => finish(Op::Statfs, &mount, outcome, || (call.reply.to_statfs(), flags)),
        },
        Err(_) => Road::Kernel,
    }
}

/// Runs `f` with the path of the mount that a granted descriptor is on: what libc says of a file system by a descriptor, it
/// would say of the backing one.
pub(crate) fn on_mount_of<R>(fd: RawFd, f: impl FnOnce(&PathArg) -> R) -> Option<R> {
    let (dev, _) = granted(fd)?;
    let index = connection::by_dev((libc::major(dev), libc::minor(dev)))?;
    let mut buffer = [0; MOUNT_PATH_MAX + 1];
    if !connection::table().path_of(index, &mut buffer) {
        return None;
    }
    Some(sys::with_path(CStr::from_bytes_until_nul(&buffer).ok()?, f))
}

/// `faccessat` and relatives.
pub(crate) fn access(dirfd: RawFd, path: &PathArg, mode: i32, flags: i32) -> Road<()> {
    let known = libc::AT_EACCESS | AT_SYMLINK_NOFOLLOW;
    if flags & !known != 0 || mode & !(libc::R_OK | libc::W_OK | libc::X_OK) != 0 {
        return decline(dirfd, path, Fallback::Unsupported);
    }
    if flags & libc::AT_EACCESS == 0 {
        // The daemon knows the effective ids only.
        match locate(dirfd, path) {
            None => return Road::Kernel,
            Some(target) if !target.mount.has_same_ids() => return fell_back(&target, Fallback::Unsupported),
            Some(_) => {}
        }
    }
    let request = Request { mode: mode as u32, flags: flags as u32, ..Request::default() };
    let look_up = |target: &Target<'_>| match probe(target) {
        Walked::Absent => Some(Err(libc::ENOENT)),
        // Whoever may look for it finds that it is there.
        Walked::Found(kind) if mode == libc::F_OK => {
            (kind != table::Kind::Symlink || flags & AT_SYMLINK_NOFOLLOW != 0).then_some(Ok(()))
        }
        _ => None,
    };
    serve_or_look_up(Op::Access, (dirfd, path), request, look_up, |_, _| ())
}

/// `readlinkat`; the number of bytes.
pub(crate) fn readlink(dirfd: RawFd, path: &PathArg, mut out: Data, size: usize) -> Road<usize> {
    // The kernel takes it as an `int` that must be positive.
    if !(1..=i32::MAX as usize).contains(&size) || out.get(size).is_none() {
        return decline(dirfd, path, Fallback::BadPath);
    }
    let request = Request { size: size as u64, ..Request::default() };
    let look_up = |target: &Target<'_>| {
        let table = target.mount.client().table()?;
        if target.is_root() {
            return Some(Err(libc::EINVAL));
        }
        let mut buffer = [0; table::TARGET_MAX];
        match table.read_link(target.base, target.path(), &mut buffer, &mut Clock::default()) {
            // Programs that resolve paths by themselves look at each name.
            Walked::Found(None) => Some(Err(libc::EINVAL)),
            Walked::Found(Some(found)) => {
                let mut out = out;
                let len = found.len().min(size);
                out.get(size)?.get_mut(..len)?.copy_from_slice(found.get(..len)?);
                Some(Ok(len))
            }
            Walked::Absent => Some(Err(libc::ENOENT)),
            Walked::Unclear => None,
        }
    };
    serve_or_look_up(Op::Readlink, (dirfd, path), request, look_up, |_, call| {
        let mut out = out;
        out.get(size).map_or(0, |out| call.data(out).len())
    })
}

/// `getxattr`, `lgetxattr` (by `flags`) for a name, `listxattr`, `llistxattr` for none; the number of bytes.
pub(crate) fn xattr(
    path: &PathArg,
    name: Option<&PathArg>,
    mut out: Data,
    size: usize,
    flags: i32,
) -> Road<usize> {
    let (op, name) = match name.map(PathArg::get) {
        None => (Op::Listxattr, &[][..]),
        Some(Some(name)) => (Op::Getxattr, name.bytes()),
        Some(None) => return decline(AT_FDCWD, path, Fallback::BadPath),
    };
    if size != 0 && out.get(size).is_none() {
        return decline(AT_FDCWD, path, Fallback::BadPath);
    }
    let request = Request { size: size as u64, flags: flags as u32, ..Request::default() };
    let look_up = |target: &Target<'_>| {
        if op == Op::Getxattr && !is_xattr_name(name) {
            return None;
        }
        let table = target.mount.client().table()?;
        let follow = flags & AT_SYMLINK_NOFOLLOW == 0;
        match table.absent_xattrs(target.base, target.path(), follow, &mut Clock::default()) {
            Walked::Found(absent) => absent.answer((op == Op::Getxattr).then_some(name)),
            Walked::Absent => Some(Err(libc::ENOENT)),
            Walked::Unclear => None,
        }
    };
    exchange(op, About::Object, (AT_FDCWD, path), name, &[], request, look_up, |_, call| {
        let mut out = out;
        match out.get(size) {
            Some(out) => call.data(out).len(),
            None => call.reply.len as usize,
        }
    })
}

/// `setxattr`, `lsetxattr` (by `at`).
pub(crate) fn set_xattr(
    path: &PathArg,
    name: &PathArg,
    value: Data,
    size: usize,
    flags: i32,
    at: i32,
) -> Road<()> {
    let (Some(name), Some(value)) = (name.get(), value.contents(size)) else {
        return decline(AT_FDCWD, path, Fallback::BadPath);
    };
    if value.len() > DATA_BYTES || !is_xattr_name(name.bytes()) {
        return decline(AT_FDCWD, path, Fallback::Unsupported);
    }
    let request =
        Request { mode: size as u32, size: flags as u32 as u64, flags: at as u32, ..Request::default() };
    let place = (AT_FDCWD, path);
    exchange(Op::Setxattr, About::Object, place, name.bytes(), value, request, |_| None, |_, _| ())
}

/// `removexattr`, `lremovexattr` (by `at`).
pub(crate) fn remove_xattr(path: &PathArg, name: &PathArg, at: i32) -> Road<()> {
    let Some(name) = name.get() else { return decline(AT_FDCWD, path, Fallback::BadPath) };
    if !is_xattr_name(name.bytes()) {
        return decline(AT_FDCWD, path, Fallback::Unsupported);
    }
    let request = Request { flags: at as u32, ..Request::default() };
    serve_with(Op::Removexattr, About::Object, AT_FDCWD, path, name.bytes(), request, |_, _| ())
}

/// Others are `ERANGE` (`import_xattr_name`), before the path is looked at.
fn is_xattr_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len())
}

// --- names ---

/// `unlinkat`.
pub(crate) fn unlink(dirfd: RawFd, path: &PathArg, flags: i32) -> Road<()> {
    let op = match flags {
        0 => Op::Unlink,
        AT_REMOVEDIR => Op::Rmdir,
        _ => return decline(dirfd, path, Fallback::Unsupported),
    };
    serve(op, About::Name, dirfd, path, Request::default(), |_, _| ())
}

/// `remove`: `unlink`, and `rmdir` for what turns out to be a directory.
pub(crate) fn remove(path: &PathArg) -> Road<()> {
    match unlink(AT_FDCWD, path, 0) {
        Road::Bypass(Err(libc::EISDIR)) => unlink(AT_FDCWD, path, AT_REMOVEDIR),
        road => road,
    }
}

/// `renameat2`.
pub(crate) fn rename(from: (RawFd, &PathArg), to: (RawFd, &PathArg), flags: u32) -> Road<()> {
    serve_two(Op::Rename, from, to, Request { flags, ..Request::default() })
}

/// `linkat`.
pub(crate) fn link(from: (RawFd, &PathArg), to: (RawFd, &PathArg), flags: i32) -> Road<()> {
    if flags & !AT_SYMLINK_FOLLOW != 0 {
        return decline(to.0, to.1, Fallback::Unsupported);
    }
    serve_two(Op::Link, from, to, Request { flags: flags as u32, ..Request::default() })
}

/// The flags of a `linkat` that is left to the kernel. With `AT_EMPTY_PATH` it looks who has opened the descriptor, even if
/// the path is not empty (`path_init`): a granted one was opened by the daemon.
pub(crate) fn link_flags(dirfd: RawFd, path: &PathArg, flags: i32) -> i32 {
    match granted(dirfd).is_some() && !names_descriptor(path) {
        true => flags & !AT_EMPTY_PATH,
        false => flags,
    }
}

/// `symlinkat`.
pub(crate) fn symlink(target: &PathArg, dirfd: RawFd, path: &PathArg) -> Road<()> {
    let Some(content) = target.get().filter(|content| content.first() != 0) else {
        return decline(dirfd, path, Fallback::BadPath);
    };
    serve_with(Op::Symlink, About::Name, dirfd, path, content.bytes(), Request::default(), |_, _| ())
}

/// `mkdirat`.
pub(crate) fn mkdir(dirfd: RawFd, path: &PathArg, mode: u32) -> Road<()> {
    make(Op::Mkdir, dirfd, path, mode, 0)
}

/// `mknodat`.
pub(crate) fn mknod(dirfd: RawFd, path: &PathArg, mode: u32, dev: u64) -> Road<()> {
    make(Op::Mknod, dirfd, path, mode, dev)
}

fn make(op: Op, dirfd: RawFd, path: &PathArg, mode: u32, dev: u64) -> Road<()> {
    // Looks at the path first: only then the mask is of interest.
    match locate(dirfd, path) {
        None => Road::Kernel,
        Some(target) => match process::mask() {
            None => fell_back(&target, Fallback::Unsupported),
            Some(umask) => {
                drop(target);
                let request = Request { mode, umask, size: dev, ..Request::default() };
                serve(op, About::Name, dirfd, path, request, |_, _| ())
            }
        },
    }
}

// --- attributes, written ---

/// `fchmodat`. With `AT_SYMLINK_NOFOLLOW`, the daemon leaves links to libc, which refuses to change them.
pub(crate) fn chmod(dirfd: RawFd, path: &PathArg, mode: u32, flags: i32) -> Road<()> {
    if flags & !AT_SYMLINK_NOFOLLOW != 0 {
        return decline(dirfd, path, Fallback::Unsupported);
    }
    let request = Request { mode: mode & 0o7777, flags: flags as u32, ..Request::default() };
    serve(Op::Chmod, About::Object, dirfd, path, request, |_, _| ())
}

/// `fchownat`.
pub(crate) fn chown(dirfd: RawFd, path: &PathArg, uid: u32, gid: u32, flags: i32) -> Road<()> {
    if flags & !AT_SYMLINK_NOFOLLOW != 0 {
        return decline(dirfd, path, Fallback::Unsupported);
    }
    let request = Request { uid, gid, flags: flags as u32, ..Request::default() };
    serve(Op::Chown, About::Object, dirfd, path, request, |_, _| ())
}

/// `truncate`.
pub(crate) fn truncate(path: &PathArg, size: i64) -> Road<()> {
    let Ok(size) = u64::try_from(size) else { return decline(AT_FDCWD, path, Fallback::Unsupported) };
    let Some(target) = locate(AT_FDCWD, path) else { return Road::Kernel };
    // Beyond the limit, the kernel also sends SIGXFSZ.
    if rustix::process::getrlimit(Resource::Fsize).current.is_some_and(|limit| size > limit) {
        return fell_back(&target, Fallback::Unsupported);
    }
    drop(target);
    serve(Op::Truncate, About::Object, AT_FDCWD, path, Request { size, ..Request::default() }, |_, _| ())
}

/// The times of `utimensat` and its older relatives.
pub(crate) enum Times {
    /// Set both, each perhaps to `UTIME_NOW` or `UTIME_OMIT`.
    Set([Time; 2]),
    /// Only the kernel can judge them.
    Unclear,
}

impl Times {
    const NOW: Self = {
        let now = Time { sec: 0, nsec: libc::UTIME_NOW };
        Self::Set([now, now])
    };

    /// Of `utimensat`.
    pub(crate) fn precise(times: Vector<libc::timespec, 2>) -> Self {
        match times.get() {
            Ok(None) => Self::NOW,
            Ok(Some(times)) => Self::valid(times.map(|time| Time { sec: time.tv_sec, nsec: time.tv_nsec })),
            Err(_) => Self::Unclear,
        }
    }

    /// Of `utimes`.
    pub(crate) fn coarse(times: Vector<libc::timeval, 2>) -> Self {
        match times.get() {
            Ok(None) => Self::NOW,
            // The special values of nanoseconds mean nothing here.
            Ok(Some(times)) if times.iter().any(|time| !(0..1_000_000).contains(&time.tv_usec)) => {
                Self::Unclear
            }
            Ok(Some(times)) => {
                Self::valid(times.map(|time| Time { sec: time.tv_sec, nsec: time.tv_usec * 1000 }))
            }
            Err(_) => Self::Unclear,
        }
    }

    /// Of `utime`.
    pub(crate) fn seconds(times: Vector<libc::utimbuf, 1>) -> Self {
        match times.get() {
            Ok(None) => Self::NOW,
            Ok(Some([times])) => Self::valid([times.actime, times.modtime].map(|sec| Time { sec, nsec: 0 })),
            Err(_) => Self::Unclear,
        }
    }

    fn valid(times: [Time; 2]) -> Self {
        let is_valid =
            |time: &Time| matches!(time.nsec, 0..1_000_000_000 | libc::UTIME_NOW | libc::UTIME_OMIT);
        if times.iter().all(is_valid) { Self::Set(times) } else { Self::Unclear }
    }
}

/// `utimensat`.
pub(crate) fn utimens(dirfd: RawFd, path: &PathArg, times: Times, flags: i32) -> Road<()> {
    match times {
        Times::Set(times) if flags & !AT_SYMLINK_NOFOLLOW == 0 => {
            let request = Request { times, flags: flags as u32, ..Request::default() };
            serve(Op::Utimens, About::Object, dirfd, path, request, |_, _| ())
        }
        _ => decline(dirfd, path, Fallback::Unsupported),
    }
}

// --- open ---

/// How an `open` goes on.
pub(crate) enum Opening<'p> {
    /// The daemon granted this descriptor, or refused with this errno.
    Done(Result<RawFd, i32>),
    /// The kernel opens it, with these flags; [`Opening::opened`] is to be told.
    Kernel(i32, Option<Target<'p>>),
}

/// What kind of descriptor will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Any,
    /// One of the kernel's: it is used by calls that are not hooked.
    Kernels,
}

/// `openat`.
#[inline]
pub(crate) fn open(dirfd: RawFd, path: &PathArg, flags: i32, mode: u32) -> Opening<'_> {
    open_as(Wanted::Any, dirfd, path, flags, mode)
}

/// As [`open`], for a certain kind of descriptor.
#[inline]
pub(crate) fn open_as(wanted: Wanted, dirfd: RawFd, path: &PathArg, flags: i32, mode: u32) -> Opening<'_> {
    for attempt in 0..2 {
        let located = locate(dirfd, path);
        if flags & !READS == 0
            && let Some(target) = &located
        {
            match look_and_open(target, flags) {
                Walked::Found(fd) => return Opening::Done(Ok(fd)),
                Walked::Absent => return Opening::Done(Err(libc::ENOENT)),
                Walked::Unclear => {}
            }
        }
        let Some(target) = located else { return Opening::Kernel(flags, None) };
        match open_target(&target, wanted, flags, mode) {
            Ok(done) => return done,
            Err(Fallback::UnknownBase) if attempt == 0 && target.forget_proof() => {}
            Err(reason) => {
                target.fell_back(reason);
                if reason == Fallback::Disconnected {
                    target.mount.is_lost();
                    return Opening::Kernel(flags, None);
                }
                // Opening a fifo may take forever, and holds no directory.
                let target = (reason != Fallback::OpenSpecial).then_some(target);
                return Opening::Kernel(flags, target);
            }
        }
    }
    Opening::Kernel(flags, None)
}

/// What may be asked for besides reading (`O_RDONLY` is 0) for a file to be opened without the daemon.
const READS: i32 =
    libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOATIME | O_LARGEFILE;
/// As the kernel knows it; libc's is 0 where files are large anyway.
const O_LARGEFILE: i32 = 0o100_000;

/// What the metadata table knows to be at the end of a path, and if it is a file that may be opened without the daemon, its descriptor.
#[inline]
fn look_and_open(target: &Target<'_>, flags: i32) -> Walked<RawFd> {
    let client = target.mount.client();
    let Some(table) = client.table() else { return Walked::Unclear };
    let lending = table.lending();
    if lending == Lending::Nothing || !client.welcome().backing_attrs {
        return Walked::Unclear;
    }
    let lending = if flags & libc::O_NOATIME != 0 { Lending::Everything } else { lending };
    let is_lent = |attr: &Attr| attr::is_lent(attr, lending);
    let open = |place| target.mount.open_lent(target.base, target.text, place, flags);
    match table.by_path(target.base, target.path(), &mut Clock::default(), is_lent, open) {
        Walked::Found(file) => match remember(target, file) {
            Some(fd) => {
                client.counters().looked_up(Op::Open);
                Walked::Found(fd)
            }
            None => Walked::Unclear,
        },
        Walked::Absent => {
            client.counters().looked_up(Op::Open);
            Walked::Absent
        }
        _ => Walked::Unclear,
    }
}

/// A file has been opened in a directory that was lent: its number.
fn remember(target: &Target<'_>, file: locks::Beside) -> Option<RawFd> {
    let dev = attr::dev_t(target.mount.facts().dev);
    let fd = file.fd()?.as_raw_fd();
    // Its inode number it says itself: the name may lead to another file than a moment ago.
    let is_known = FDS.set(fd, Kind::Granted { dev, ino: fds::ITS_OWN, nofollow: false });
    if is_known { file.into_fd().map(IntoRawFd::into_raw_fd) } else { None }
}

fn open_target(
    target: &Target<'_>,
    wanted: Wanted,
    flags: i32,
    mode: u32,
) -> Result<Opening<'static>, Fallback> {
    // O_TMPFILE contains O_DIRECTORY.
    if flags & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) == 0 && absent::<()>(target).is_some() {
        target.mount.client().counters().looked_up(Op::Open);
        return Ok(Opening::Done(Err(libc::ENOENT)));
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(Fallback::OpenDirectory);
    }
    if flags & libc::O_PATH != 0 {
        return Err(Fallback::Unsupported);
    }
    if target.is_root() {
        return Err(Fallback::OpenDirectory);
    }
    let client = target.mount.client();
    let may_be_virtual = wanted == Wanted::Any && target.mount.has_virtual();
    if !client.welcome().backing_attrs && !may_be_virtual {
        return Err(Fallback::NotGranted);
    }
    let creates = flags & libc::O_CREAT != 0;
    let umask = if creates { process::mask().ok_or(Fallback::Unsupported)? } else { 0 };
    let mode = if creates { mode } else { 0 };
    // Natively nothing is created or truncated before the number is found (`do_sys_openat2`).
    let reserves = flags & (libc::O_CREAT | libc::O_TRUNC) != 0;
    let closes_by_exec = flags & libc::O_CLOEXEC != 0;
    let reserved = Reserved::new(target, reserves && may_be_virtual, closes_by_exec)?;
    if reserves && reserved.0.is_none() && !sys::has_free_number(client.as_fd()) {
        client.counters().served(Op::Open);
        return Ok(Opening::Done(Err(libc::EMFILE)));
    }
    let base2 = if wanted == Wanted::Kernels { NOT_VIRTUAL } else { 0 };
    let request =
        Request { base: target.base, base2, flags: flags as u32, mode, umask, ..Request::default() };
    let call = client.call(Op::Open, &request, target.path(), &[])?;
    match call.reply.outcome() {
        Outcome::Kernel(reason) => return Err(reason),
        Outcome::Errno(errno) => {
            client.counters().served(Op::Open);
            return Ok(Opening::Done(Err(errno)));
        }
        Outcome::Ok => {}
    }
    if call.reply.flags & REPLY_VIRTUAL != 0 {
        let opened = virtuals::Opened {
            file: call.reply.file(),
            ino: call.reply.to_attr().ino,
            flags,
            is_grantable: call.reply.flags & REPLY_GRANTABLE != 0,
            is_quiet: call.reply.flags & REPLY_QUIET != 0,
            is_the_kernels: call.reply.flags & REPLY_KERNELS != 0,
        };
        drop(call);
        client.counters().served(Op::Open);
        target.mount.opened_virtually(true);
        return Ok(Opening::Done(files::opened(&target.mount, &opened, reserved.number())));
    }
    drop(reserved);
    if wanted == Wanted::Any {
        target.mount.opened_virtually(false);
    }
    if call.reply.flags & REPLY_GRANT == 0 {
        return Err(Fallback::NotGranted);
    }
    let fd = match call.take_grant() {
        Ok(fd) => fd,
        Err(Fallback::NotGranted) => {
            client.counters().served(Op::Open);
            return Ok(Opening::Done(Err(libc::EMFILE)));
        }
        Err(reason) => return Err(reason),
    };
    let granted = Kind::Granted {
        dev: attr::dev_t(target.mount.facts().dev),
        ino: call.reply.to_attr().ino,
        nofollow: flags & libc::O_NOFOLLOW != 0,
    };
    let fd = fd.into_raw_fd();
    if !FDS.set(fd, granted) {
        // A number that is not remembered: `fstat` on it would tell of the backing file. What the flags ask
        // for besides opening has been done.
        sys::close(fd);
        client.counters().fell_back(Fallback::NotGranted);
        return Ok(Opening::Kernel(flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC), None));
    }
    client.counters().served(Op::Open);
    if flags & libc::O_CLOEXEC == 0
        && let Some(fd) = sys::borrow(fd)
    {
        // Cannot fail on a descriptor that was just received.
        let _ = rustix::io::fcntl_setfd(fd, FdFlags::empty());
    }
    Ok(Opening::Done(Ok(fd)))
}

/// The number of a virtual descriptor that may come of an `open`: made before, where the file may be created or cut, because
/// the kernel has a number, or fails for want of one, before it does that.
struct Reserved(Option<RawFd>);

impl Reserved {
    fn new(target: &Target<'_>, wanted: bool, closes_by_exec: bool) -> Result<Self, Fallback> {
        if !wanted || !target.mount.opens_virtually() {
            return Ok(Self(None));
        }
        match target.mount.virtual_number(closes_by_exec) {
            Ok(number) => Ok(Self(Some(number))),
            // The kernel has no number either.
            Err(_) => Err(Fallback::Unsupported),
        }
    }

    fn number(mut self) -> Option<RawFd> {
        self.0.take()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(number) = self.0.take() {
            sys::close(number);
        }
    }
}

/// The kernel has opened what the bypass did not.
pub(crate) fn opened(fd: RawFd, flags: i32, target: Option<&Target<'_>>) {
    if fd < 0 {
        return;
    }
    match target {
        Some(target) if flags & libc::O_PATH == 0 => route::opened(fd, target),
        // Directories are looked at when they are used: links lead to our mounts from anywhere.
        _ if flags & (libc::O_DIRECTORY | libc::O_PATH) != 0 => FDS.clear(fd),
        _ if process::has_inherited() => drop(FDS.set(fd, Kind::Other)),
        _ => FDS.clear(fd),
    }
}
