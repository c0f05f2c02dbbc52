//! Which road a path takes: the first of two decisions (the second, what can be asked of the daemon, is in
//! [`crate::calls`]).

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;

use finesse_ipc::environment::MOUNT_PATH_MAX;
use finesse_ipc::frame::{Fallback, Op, PATH_MAX, ROOT, Request};
use rustix::fs::OFlags;

use crate::connection::{self, Attempt, Entry, Guard};
use crate::fds::{Directory, Kind, Moment, Outside};
use crate::files;
use crate::mounts::{Prefix, Version};
use crate::process::{self, CWD, FDS};
use crate::sys::{self, CPath, Hidden, Identity, Object, PathArg};
use crate::virtuals;

/// Where a path begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Root,
    Cwd,
    Fd(RawFd),
}

/// A path on a mount of ours.
pub(crate) struct Target<'p> {
    pub(crate) mount: Guard,
    /// Node id of the directory that the path is relative to.
    pub(crate) base: u64,
    pub(crate) text: &'p CStr,
    start: Start,
}

/// The path of a mount's root, relative to it.
const HERE: &CStr = c".";

impl<'p> Target<'p> {
    /// The path, relative to the base.
    #[inline]
    pub(crate) fn path(&self) -> &'p [u8] {
        self.text.to_bytes()
    }

    /// Whether this is the mount's root itself, named by a path from above: a mount point, which cannot be
    /// removed, renamed, created.
    pub(crate) fn is_root(&self) -> bool {
        self.start == Start::Root && self.text == HERE
    }

    /// The daemon does not know the base (any more): whether it makes sense to prove it again.
    pub(crate) fn forget_proof(&self) -> bool {
        let unproven = |directory| Kind::Directory(Directory { proven: 0, ..directory });
        match self.start {
            Start::Root => return false,
            Start::Cwd => {
                if let (Kind::Directory(directory), moment) = CWD.get() {
                    CWD.set(moment, unproven(directory));
                }
            }
            Start::Fd(fd) => {
                if let Kind::Directory(directory) = FDS.get(fd) {
                    FDS.set(fd, unproven(directory));
                }
            }
        }
        true
    }

    /// Whether it begins with a descriptor, be it the link of one.
    pub(crate) fn is_by_descriptor(&self) -> bool {
        matches!(self.start, Start::Fd(_))
    }

    /// Counts that the kernel serves the call.
    pub(crate) fn fell_back(&self, reason: Fallback) {
        self.mount.client().counters().fell_back(reason);
    }
}

/// Finds out whether a path is on a mount of ours; `None` sends the call to the kernel.
#[inline(always)]
pub(crate) fn locate(dirfd: RawFd, path: &PathArg) -> Option<Target<'_>> {
    let path = path.get()?;
    match path.first() {
        0 => None,
        b'/' => locate_below_root(path),
        // Switched off, the library makes no system call: they may be forbidden (seccomp(2)).
        _ if connection::table().is_empty() || !process::is_on() => None,
        _ => locate_relative(dirfd, path),
    }
}

/// A path that is on no mount of ours may still lead there by a descriptor, or name an open file of ours (`/proc/self/fd`).
fn elsewhere(path: CPath<'_>) -> Option<Target<'_>> {
    if let Some((fd, rest)) = through_descriptor(path)
        && !connection::table().is_empty()
        && process::is_on()
        && let target @ Some(_) = locate_relative(fd, rest)
    {
        return target;
    }
    if virtuals::any() {
        files::named_by(path.bytes());
    }
    None
}

/// `/proc/self/fd/N/path`, by which programs without `llistxattrat` and its like do as if there were one (gnulib, and so `tar`): the
/// descriptor, and the path relative to it.
#[inline]
pub(crate) fn through_descriptor(path: CPath<'_>) -> Option<(RawFd, CPath<'_>)> {
    let number = path.strip(b"/proc/self/fd/".iter().copied())?;
    let digits = number.bytes().split(|byte| *byte == b'/').next()?;
    let mut rest = number.strip(digits.iter().copied())?;
    while let Some(next) = rest.strip(std::iter::once(b'/')) {
        rest = next;
    }
    let (before, text) = path.text_from(rest);
    // The descriptor itself is another matter, and one of them may be too long.
    let is_below = !text.is_empty() && before + text.count_bytes() <= PATH_MAX;
    if is_below { Some((files::descriptor(digits)?, rest)) } else { None }
}

/// A place in the list of mounts: the mount, the rest of the path, and which list it is.
type Found<'p> = (usize, CPath<'p>, Version);

/// Tries what succeeds nearly always, in line.
#[inline(always)]
fn locate_below_root(path: CPath<'_>) -> Option<Target<'_>> {
    let Some((index, rest, version)) = connection::table().find(path) else { return elsewhere(path) };
    if let Some(mount) = connection::enter_now(index)
        && connection::table().is_current(version)
    {
        let (before, rest) = path.text_from(rest);
        if before + rest.count_bytes() <= PATH_MAX {
            let text = if rest.is_empty() { HERE } else { rest };
            return Some(Target { mount, base: ROOT, text, start: Start::Root });
        }
    }
    locate_patiently(path, || connection::table().find(path))
}

#[cold]
#[inline(never)]
fn locate_patiently<'p>(path: CPath<'p>, mut find: impl FnMut() -> Option<Found<'p>>) -> Option<Target<'p>> {
    for attempt in Attempt::ALL {
        let Some((index, rest, version)) = find() else { return elsewhere(path) };
        match connection::try_enter(index, attempt) {
            // The place of a mount may be another one's in a later list.
            Entry::Inside(_) if !connection::table().is_current(version) => {}
            Entry::Inside(mount) => {
                let (before, rest) = path.text_from(rest);
                if before + rest.count_bytes() > PATH_MAX {
                    // ENAMETOOLONG, although what remains would fit.
                    mount.client().counters().fell_back(Fallback::BadPath);
                    return None;
                }
                let text = if rest.is_empty() { HERE } else { rest };
                return Some(Target { mount, base: ROOT, text, start: Start::Root });
            }
            Entry::Relisted => {}
            Entry::Outside => return None,
        }
    }
    None
}

fn locate_relative(dirfd: RawFd, path: CPath<'_>) -> Option<Target<'_>> {
    let (start, directory, mount) = match dirfd {
        libc::AT_FDCWD => match current_directory() {
            Current::Ours(directory, mount) => (Start::Cwd, directory, mount),
            Current::Above(prefix, of) => {
                let mut known = Some((prefix, of));
                return locate_patiently(path, || match known.take() {
                    Some((prefix, of)) => connection::table().find_below(prefix, of, path),
                    None => find_below(path),
                });
            }
            Current::Elsewhere => return None,
        },
        fd => {
            let (directory, mount) = directory_of(fd)?;
            (Start::Fd(fd), directory, mount)
        }
    };
    Some(Target { mount, base: directory.node, text: path.text(), start })
}

/// The mount that a relative path falls on if the current directory is on none.
fn find_below(path: CPath<'_>) -> Option<Found<'_>> {
    match current_directory() {
        Current::Above(prefix, of) => connection::table().find_below(prefix, of, path),
        Current::Ours(..) | Current::Elsewhere => None,
    }
}

/// A descriptor that is a directory of ours, accepted as a base by the daemon.
pub(crate) fn directory_of(fd: RawFd) -> Option<(Directory, Guard)> {
    let (directory, mount) = match FDS.get(fd) {
        Kind::Directory(directory) => (directory, connection::enter(directory.mount)?),
        Kind::Unknown => {
            let (kind, mount) = classify(Object::Fd(fd))?;
            FDS.set(fd, kind);
            match (kind, mount) {
                (Kind::Directory(directory), Some(mount)) => (directory, mount),
                _ => return None,
            }
        }
        _ => return None,
    };
    if directory.proven == mount.connection() {
        return Some((directory, mount));
    }
    match prove(directory, &mount, sys::borrow(fd)?) {
        Proof::Given(proven) => {
            FDS.set(fd, Kind::Directory(proven));
            return Some((proven, mount));
        }
        Proof::Refused => drop(FDS.set(fd, Kind::Other)),
        Proof::NotHeard => {}
    }
    None
}

/// The process is about to list a directory: it will make many calls there, and what the kernel lists it knows, so that
/// each change of it would cost the bypass a notification. So it connects now rather than later ([`connection::connect_now`]).
pub(crate) fn will_list(dirfd: RawFd, path: Option<CPath<'_>>) {
    if connection::table().is_empty() || !process::is_on() || connection::is_connected_to_all() {
        return;
    }
    let index = match path {
        Some(path) if path.first() == b'/' => connection::table().find(path).map(|(index, ..)| index),
        _ => {
            let (kind, object) = match dirfd {
                libc::AT_FDCWD => (CWD.get().0, Object::Cwd),
                fd => (FDS.get(fd), Object::Fd(fd)),
            };
            let below = || path.filter(|_| dirfd == libc::AT_FDCWD).and_then(find_below);
            match kind {
                Kind::Directory(directory) => Some(directory.mount),
                Kind::Unknown | Kind::Outside(_) if let Some((index, ..)) = below() => Some(index),
                Kind::Unknown => sys::identify(object).and_then(|it| connection::by_dev(it.dev)),
                _ => None,
            }
        }
    };
    if let Some(index) = index {
        connection::connect_now(index);
    }
}

/// What the current directory is.
enum Current {
    /// On a mount of ours, accepted as a base by the daemon.
    Ours(Directory, Guard),
    /// On none, but above one, in that list of mounts.
    Above(Prefix, Version),
    /// Neither; or there is no way to find out.
    Elsewhere,
}

fn current_directory() -> Current {
    let (kind, moment) = CWD.get();
    let ours = match kind {
        Kind::Directory(directory) => connection::enter(directory.mount).map(|mount| (directory, mount)),
        Kind::Outside(outside) if connection::table().is_current(outside.version) => {
            return match outside.below {
                Some(prefix) => Current::Above(prefix, outside.version),
                None => Current::Elsewhere,
            };
        }
        Kind::Unknown | Kind::Outside(_) => match classify(Object::Cwd) {
            Some((Kind::Directory(directory), mount)) => mount.map(|mount| (directory, mount)),
            Some(_) => return outside(moment),
            None => None,
        },
        _ => None,
    };
    let Some((directory, mount)) = ours else { return Current::Elsewhere };
    if directory.proven == mount.connection() {
        return Current::Ours(directory, mount);
    }
    let here = sys::open_hidden(c".", OFlags::PATH | OFlags::DIRECTORY);
    let Some(here) = here.as_ref().and_then(Hidden::fd) else { return Current::Elsewhere };
    match prove(directory, &mount, here) {
        Proof::Given(proven) => {
            CWD.set(moment, Kind::Directory(proven));
            return Current::Ours(proven, mount);
        }
        Proof::Refused => CWD.set(moment, Kind::Other),
        Proof::NotHeard => {}
    }
    Current::Elsewhere
}

/// The current directory is on no mount of ours: finds out whether any is below it. Its buffer is not for the stacks of other calls.
#[cold]
#[inline(never)]
fn outside(moment: Moment) -> Current {
    let mut buffer = [0; MOUNT_PATH_MAX + 1];
    // One with a longer path, or without any, is above none that is in the list.
    let path = sys::current_directory(&mut buffer).and_then(|len| buffer.get(..len)).unwrap_or(&[]);
    let (below, version) = connection::table().prefix(path);
    // Something else may be mounted there, which the mount is below.
    let is_there = || {
        let path = CStr::from_bytes_until_nul(&buffer).ok()?;
        Some(sys::identify(Object::Path(path))? == sys::identify(Object::Cwd)?)
    };
    let below = below.filter(|_| is_there() == Some(true));
    CWD.set(moment, Kind::Outside(Outside { below, version }));
    match below {
        Some(prefix) => Current::Above(prefix, version),
        None => Current::Elsewhere,
    }
}

/// Looks at a directory that nobody has looked at; `None` if that must be done again.
fn classify(object: Object<'_>) -> Option<(Kind, Option<Guard>)> {
    let identity = sys::identify(object)?;
    if !identity.is_directory {
        // Perhaps a granted descriptor of an earlier program in this process.
        return None;
    }
    let Some(index) = connection::by_dev(identity.dev) else { return Some((Kind::Other, None)) };
    let mount = connection::enter(index)?;
    match mount.holds(&identity) {
        true => {
            Some((Kind::Directory(Directory { mount: index, node: identity.ino, proven: 0 }), Some(mount)))
        }
        false => Some((Kind::Other, None)),
    }
}

/// What came of an attempt to prove a directory.
enum Proof {
    Given(Directory),
    /// It is not what it seems to be.
    Refused,
    /// This time there was no way to ask.
    NotHeard,
}

/// Proves to the daemon that the process has a directory, by its descriptor.
fn prove(directory: Directory, mount: &Guard, fd: std::os::fd::BorrowedFd<'_>) -> Proof {
    match mount.client().prove(fd) {
        Ok(node) if node == directory.node => {
            Proof::Given(Directory { proven: mount.connection(), ..directory })
        }
        Ok(_) => Proof::Refused,
        Err(reason) => {
            mount.client().counters().fell_back(reason);
            match reason {
                Fallback::NoSlot | Fallback::Disconnected => Proof::NotHeard,
                _ => Proof::Refused,
            }
        }
    }
}

/// What a directory is that was just opened, or entered, by a path on a mount of ours. The path proves it, which is cheaper
/// than its descriptor, if it still leads to the same directory.
fn identify_by_path(target: &Target<'_>, identity: &Identity) -> Kind {
    if !identity.is_directory || !target.mount.holds(identity) {
        return if identity.is_directory { Kind::Unknown } else { Kind::Other };
    }
    let request = Request { base: target.base, ..Request::default() };
    let proven = match target.mount.client().call(Op::ResolveDir, &request, target.path(), &[]) {
        Ok(call)
            if call.reply.outcome() == finesse_ipc::frame::Outcome::Ok
                && call.reply.to_attr().ino == identity.ino =>
        {
            target.mount.connection()
        }
        _ => 0,
    };
    Kind::Directory(Directory { mount: target.mount.index(), node: identity.ino, proven })
}

/// A directory was opened by this path.
pub(crate) fn opened(fd: RawFd, target: &Target<'_>) {
    if let Some(identity) = sys::identify(Object::Fd(fd)) {
        FDS.set(fd, identify_by_path(target, &identity));
    }
}

/// The process has entered a directory by this path.
pub(crate) fn entered(target: Option<&Target<'_>>) {
    CWD.changed();
    let (_, moment) = CWD.get();
    if let Some(target) = target
        && let Some(identity) = sys::identify(Object::Cwd)
    {
        CWD.set(moment, identify_by_path(target, &identity));
    }
}

/// The process has entered the directory of a descriptor.
pub(crate) fn entered_fd(fd: RawFd) {
    CWD.changed();
    let (_, moment) = CWD.get();
    if let kind @ Kind::Directory(_) = FDS.get(fd) {
        CWD.set(moment, kind);
    }
}

/// The program has looked at a descriptor: perhaps we need not.
#[inline]
pub(crate) fn seen(fd: RawFd, dev: u64, mode: u32) {
    if mode & libc::S_IFMT == libc::S_IFDIR
        && !connection::table().is_empty()
        && FDS.get(fd) == Kind::Unknown
        && connection::by_dev((libc::major(dev), libc::minor(dev))).is_none()
    {
        FDS.set(fd, Kind::Other);
    }
}

/// A descriptor that is a directory of ours and that the daemon accepts already.
pub(crate) fn known_directory(fd: RawFd) -> Option<(u64, Guard)> {
    let Kind::Directory(directory) = FDS.get(fd) else { return None };
    let mount = connection::enter(directory.mount)?;
    (directory.proven == mount.connection()).then_some((directory.node, mount))
}
