//! Directory streams of our own: a `DIR` that lists through the ring, without a descriptor unless somebody asks for one.
//!
//! A stream is on one of two roads. On the *ring*, it is a number of the daemon's and a position; nothing of it is known
//! to the kernel. On the *kernel's* road it is a descriptor that the kernel has positioned, as in libc's streams. It
//! changes from the first to the second, at the position where it is, when the first is no longer there: in a forked child,
//! after a change of credentials, when the daemon is gone, when the program uses the descriptor behind the stream's back. It
//! never changes back.
//!
//! A child that shares our memory ([`vforks`]) has no ring, but the stream in common with its parent, as in libc's: it reads by
//! the descriptor, from where the stream is, and leaves it on the road on which it was.
//!
//! The descriptor ([`descriptor`]) is opened by the path that the stream was opened by, and must turn out to be the same
//! directory. So that this cannot come too late, it is done before a fork and a change of credentials, and for relative
//! paths before a change of the current directory ([`settle`]).

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use finesse_ipc::frame::PATH_MAX;
use libc::AT_FDCWD;
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::FdFlags;
use zerocopy::{FromZeros, IntoBytes};

use crate::calls::{self, Road};
use crate::connection;
use crate::fds::{Directory, Kind};
use crate::listing::{self, Page};
use crate::process::{self, FDS};
use crate::route;
use crate::sys::arena::{Arena, Found, Guard, Locked};
use crate::sys::{self, Object, PathArg};
use crate::vforks;

/// Bytes of a page: what libc reads at a time, too.
const PAGE: usize = 32_768;
/// `struct linux_dirent64` without the name.
const RECORD: usize = 19;
/// Room for a name in `struct dirent`.
pub(crate) const NAME_ROOM: usize = 256;
/// How often a lock is looked at before a call on a stream gives up: practically never.
const PATIENT: u32 = u32::MAX;
/// The same for what is done on the way to something else, which must not wait for a slow file system: 0.1 s.
const HASTY: u32 = 20;

/// A directory that the daemon has open for us, or opens when something is read.
#[derive(Clone, Copy, Debug, FromZeros)]
pub(crate) struct Opened {
    /// Index of the mount.
    pub(crate) mount: usize,
    /// The connection, unique in the process.
    pub(crate) connection: u32,
    /// How often the process had been forked.
    pub(crate) forks: u32,
    /// The directory's number there, if it is open.
    pub(crate) number: u32,
    pub(crate) is_open: bool,
    /// `st_dev` of the mount.
    pub(crate) dev: [u32; 2],
    /// Node id.
    pub(crate) node: u64,
}

/// What a stream is.
#[derive(FromZeros)]
pub(crate) struct State {
    opened: Opened,
    /// On the ring.
    ring: bool,
    /// No entry follows those in the page.
    ended: bool,
    /// Where `telldir` says that the stream is.
    position: u64,
    /// Where the page behind this one begins.
    behind: u64,
    /// The next record in the page.
    next: usize,
    /// Bytes in the page.
    fill: usize,
    /// What `readdir_r` is to answer at the end.
    error: i32,
    /// The descriptor; negative if there is none.
    fd: RawFd,
    /// What the path is relative to.
    dirfd: RawFd,
    path_len: usize,
    path: [u8; PATH_MAX + 1],
    page: [u64; PAGE / 8],
}

/// A stream, which the program knows as a `DIR`.
pub(crate) type Stream = Locked<State>;
/// An entry in the stream's memory, valid until the next call on the stream.
pub(crate) type Entry = *mut libc::dirent64;

static STREAMS: Arena<State> = Arena::new();
/// Streams on the ring: while there are none, nothing must be settled.
static ON_RING: AtomicU32 = AtomicU32::new(0);

/// Whose a `DIR` is.
pub(crate) enum Whose {
    Ours(&'static Stream),
    /// Ours and closed.
    Closed,
    Libc,
}

/// Finds out whose a `DIR` is; looks at no memory of libc's.
#[inline]
pub(crate) fn whose(directory: *mut libc::DIR) -> Whose {
    match STREAMS.find(directory.addr()) {
        Found::Object(stream) => Whose::Ours(stream),
        Found::Dead => Whose::Closed,
        Found::Foreign => Whose::Libc,
    }
}

/// The stream as the program knows it.
pub(crate) fn pointer(stream: &'static Stream) -> *mut libc::DIR {
    (&raw const *stream).cast_mut().cast()
}

/// `opendir`, relative to a directory.
pub(crate) fn open(dirfd: RawFd, path: &PathArg) -> Road<&'static Stream> {
    let name = match path.get() {
        Some(path) => path,
        None => return Road::Kernel,
    };
    route::will_list(dirfd, Some(name));
    // The stream may be opened by this path later, when the descriptor is another one.
    if route::through_descriptor(name).is_some() {
        calls::by_choice(path);
        return Road::Kernel;
    }
    match listing::open_directory(dirfd, path) {
        Road::Kernel => Road::Kernel,
        Road::Bypass(Err(errno)) => Road::Bypass(Err(errno)),
        Road::Bypass(Ok(opened)) => start(opened, -1, dirfd, name.bytes()),
    }
}

/// `fdopendir` of a directory that nobody has read from yet.
pub(crate) fn from_descriptor(fd: RawFd) -> Road<&'static Stream> {
    // Switched off, the library makes no system call.
    if connection::table().is_empty() || !process::is_on() {
        return Road::Kernel;
    }
    route::will_list(fd, None);
    if route::directory_of(fd).is_none() {
        return Road::Kernel;
    }
    let Some(borrowed) = sys::borrow(fd) else { return Road::Kernel };
    let readable = rustix::fs::fcntl_getfl(borrowed)
        .is_ok_and(|flags| !flags.contains(OFlags::PATH) && flags & OFlags::RWMODE == OFlags::RDONLY);
    if !readable || rustix::fs::seek(borrowed, SeekFrom::Current(0)) != Ok(0) {
        return Road::Kernel;
    }
    match listing::open_descriptor(fd) {
        Road::Bypass(Ok(opened)) => {
            let started = start(opened, fd, AT_FDCWD, &[]);
            if matches!(started, Road::Bypass(Ok(_))) {
                // As libc does (`__alloc_dir`).
                let _ = rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC);
            }
            started
        }
        _ => Road::Kernel,
    }
}

fn start(opened: Opened, fd: RawFd, dirfd: RawFd, path: &[u8]) -> Road<&'static Stream> {
    let stream = match path.len() <= PATH_MAX {
        true => STREAMS.claim(),
        false => None,
    };
    // Left locked by a signal handler that did not return: lost.
    let Some((stream, mut state)) = stream.and_then(|stream| Some((stream, stream.lock(HASTY)?))) else {
        listing::decline_directory(&opened);
        return Road::Kernel;
    };
    state.opened = opened;
    state.ring = true;
    state.fd = fd;
    state.dirfd = dirfd;
    state.error = 0;
    state.path_len = path.len();
    if let Some(place) = state.path.get_mut(..path.len()) {
        place.copy_from_slice(path);
    }
    if let Some(end) = state.path.get_mut(path.len()) {
        *end = 0;
    }
    state.go_to(0);
    ON_RING.fetch_add(1, Ordering::Relaxed);
    Road::Bypass(Ok(stream))
}

fn enter(stream: &'static Stream) -> Result<Guard<'static, State>, i32> {
    stream.lock(PATIENT).ok_or(libc::EDEADLK)
}

/// `readdir`: the next entry, if there is one.
pub(crate) fn read(stream: &'static Stream) -> Result<Option<Entry>, i32> {
    enter(stream)?.take_record().map(|record| record.map(|(entry, ..)| entry))
}

/// `readdir_r`: passes the next entry and the length of its name to `copy`; whether there was one.
pub(crate) fn read_into(stream: &'static Stream, copy: impl FnOnce(Entry, usize)) -> Result<bool, i32> {
    let mut state = enter(stream)?;
    loop {
        match state.take_record() {
            Ok(Some((entry, name))) if name < NAME_ROOM => {
                copy(entry, name);
                return Ok(true);
            }
            // Does not fit into a `struct dirent`.
            Ok(Some(_)) => state.error = libc::ENAMETOOLONG,
            Ok(None) if state.error == 0 => return Ok(false),
            Ok(None) => return Err(state.error),
            Err(errno) => {
                state.error = errno;
                return Err(errno);
            }
        }
    }
}

/// `rewinddir` (to 0) and `seekdir`.
pub(crate) fn seek(stream: &'static Stream, position: u64) -> Result<(), i32> {
    let mut state = enter(stream)?;
    if position == 0 {
        state.error = 0;
    }
    state.go_to(position);
    if !state.ring {
        state.place_descriptor();
    }
    Ok(())
}

/// `telldir`.
pub(crate) fn tell(stream: &'static Stream) -> Result<u64, i32> {
    Ok(enter(stream)?.position)
}

/// `dirfd`: opens the directory by the kernel, if that has not been done.
pub(crate) fn descriptor(stream: &'static Stream) -> Result<RawFd, i32> {
    enter(stream)?.settle()
}

/// `closedir`.
pub(crate) fn close(stream: &'static Stream) -> Result<(), i32> {
    // A signal handler that jumped out of a call on the stream has left it locked.
    stream.seize();
    let mut state = enter(stream)?;
    let opened = state.opened;
    let fd = state.fd;
    if state.ring && fd >= 0 {
        // Duplicates of the descriptor are where the stream is.
        state.place_descriptor();
    }
    let ring = state.leave_ring();
    state.fd = -1;
    drop(state);
    STREAMS.release(stream);
    let is_parents = vforks::is_child();
    if ring && !is_parents {
        listing::close_directory(&opened);
    }
    if fd < 0 {
        return Ok(());
    }
    if !is_parents {
        FDS.clear(fd);
    }
    sys::try_close(fd)
}

/// The program reads from, or positions, a descriptor: a stream on it goes on where that leads, as libc's does.
pub(crate) fn used_directly(fd: RawFd) {
    // A stream without a descriptor has number -1.
    if fd < 0 || ON_RING.load(Ordering::Relaxed) == 0 {
        return;
    }
    for stream in STREAMS.claimed() {
        if let Some(mut state) = stream.lock(HASTY)
            && state.ring
            && state.fd == fd
        {
            state.place_descriptor();
            abandon(&mut state);
        }
    }
}

/// The stream lives on without the ring.
fn abandon(state: &mut State) {
    if state.leave_ring() {
        listing::close_directory(&state.opened);
    }
}

/// What is about to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// The process forks, or becomes another user, or goes to another root.
    Process,
    /// The current directory changes.
    Directory,
}

/// Opens the descriptors of streams for which it would be too late, or another one, afterwards. A stream for which that
/// fails lives on without.
#[inline]
pub(crate) fn settle(before: Before) {
    if ON_RING.load(Ordering::Relaxed) != 0 {
        settle_all(before);
    }
}

#[cold]
fn settle_all(before: Before) {
    for stream in STREAMS.claimed() {
        if let Some(mut state) = stream.lock(HASTY)
            && state.ring
            && state.fd < 0
            && (before == Before::Process || state.path.first() != Some(&b'/'))
        {
            let _ = state.settle();
        }
    }
}

/// In a forked child: streams that other threads were reading are where they last were for certain.
pub(crate) fn after_fork() {
    for stream in STREAMS.claimed() {
        if stream.free_after_fork()
            && let Some(mut state) = stream.lock(0)
        {
            let position = state.position;
            state.go_to(position);
        }
    }
}

impl State {
    /// Forgets the page.
    fn go_to(&mut self, position: u64) {
        self.position = position;
        self.behind = position;
        self.next = 0;
        self.fill = 0;
        self.ended = false;
    }

    /// Whether it was on the ring.
    fn leave_ring(&mut self) -> bool {
        let ring = std::mem::take(&mut self.ring);
        if ring {
            ON_RING.fetch_sub(1, Ordering::Relaxed);
        }
        ring
    }

    /// The next record and the length of its name.
    fn take_record(&mut self) -> Result<Option<(Entry, usize)>, i32> {
        if self.next >= self.fill {
            // Whoever asks again behind the end wants to know anew.
            if std::mem::take(&mut self.ended) || !self.read_page()? {
                return Ok(None);
            }
        }
        let record = self.page.as_mut_bytes().get_mut(self.next..self.fill).ok_or(libc::EIO)?;
        let len = usize::from(word(record, 16));
        let name = record
            .get(RECORD..len)
            .and_then(|name| name.iter().position(|byte| *byte == 0))
            .ok_or(libc::EIO)?;
        if !len.is_multiple_of(8) {
            return Err(libc::EIO);
        }
        let position = long(record, 8);
        let entry: Entry = record.as_mut_ptr().cast();
        self.position = position;
        self.next += len;
        Ok(Some((entry, name)))
    }

    /// Reads the next page; whether there is one.
    fn read_page(&mut self) -> Result<bool, i32> {
        self.next = 0;
        self.fill = 0;
        let by_ring = self.ring && !vforks::is_child();
        if by_ring {
            match listing::read_directory(&mut self.opened, self.behind, self.page.as_mut_bytes()) {
                Page::Read { len, ended } => {
                    self.fill = len;
                    self.ended = ended && len != 0;
                }
                // As libc: the directory is no more.
                Page::Failed(libc::ENOENT) => return Ok(false),
                Page::Failed(errno) => return Err(errno),
                Page::Gone => {
                    // Perhaps the directory has been moved: then it is there, but not here.
                    self.settle()
                        .map_err(|errno| if errno == libc::ENOENT { libc::ESTALE } else { errno })?;
                    self.place_descriptor();
                    abandon(self);
                }
            }
        }
        if !by_ring && self.ring {
            self.place_descriptor();
        }
        if !by_ring || !self.ring {
            match sys::read_directory(self.fd, self.page.as_mut_bytes()) {
                Ok(len) => self.fill = len,
                Err(libc::ENOENT) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        let mut at = 0;
        let page = self.page.as_bytes();
        while let Some(record) = page.get(at..self.fill).filter(|record| record.len() > RECORD) {
            self.behind = long(record, 8);
            at += usize::from(word(record, 16)).max(1);
        }
        Ok(self.fill != 0)
    }

    /// Puts the descriptor to where the next page begins.
    fn place_descriptor(&self) {
        if let Some(fd) = sys::borrow(self.fd) {
            // Fails only for a descriptor that the program has closed, or for positions that are none.
            let _ = rustix::fs::seek(fd, SeekFrom::Start(self.behind));
        }
    }

    /// The descriptor, opened by the kernel.
    fn settle(&mut self) -> Result<RawFd, i32> {
        if self.fd >= 0 {
            return Ok(self.fd);
        }
        // Its parent has tried before; what a child opens is not its parent's.
        if vforks::is_child() {
            return Err(libc::EBADF);
        }
        let path = self.path.get(..=self.path_len).unwrap_or(&[0]);
        let fd = sys::open_directory(self.dirfd, path)?;
        let same = sys::identify(Object::Fd(fd)).is_some_and(|found| {
            found.ino == self.opened.node && found.dev == (self.opened.dev[0], self.opened.dev[1])
        });
        if !same {
            sys::close(fd);
            return Err(libc::ENOENT);
        }
        let proven = if self.ring { self.opened.connection } else { 0 };
        FDS.set(fd, Kind::Directory(Directory { mount: self.opened.mount, node: self.opened.node, proven }));
        self.fd = fd;
        Ok(fd)
    }
}

fn word(record: &[u8], at: usize) -> u16 {
    record.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn long(record: &[u8], at: usize) -> u64 {
    record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
}
