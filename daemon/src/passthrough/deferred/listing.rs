//! Names known by listing: where many names of a directory are removed, it is read, a piece at a time, so that their unlinks need no look
//! at each.
//!
//! A name stays listed until it is removed or changes by other means. Whoever changes it announces that ([`Change`](super::Change)), and
//! takes it out of the list when it is done, while the announcement still stands: so neither what was read before the change nor what was
//! read meanwhile is believed. A read of the directory itself is atomic beside such changes, because the kernel locks the directory. What
//! others do to the source is believed for the mount's time to live, as everywhere.
//!
//! The worker that removes the file looks at it first, in any case. All that a listing cannot tell is left to that: a file that
//! must not be removed (immutable, a mount point) stays, and comes back.

#![deny(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Mode, OFlags, RawDir, StatxTimestamp, fstatfs, ioctl_getflags, openat};
use rustix::io::Result;
use rustix::time::ClockId;

use super::known::{Known, OVERHEAD};
use super::{Directory, Inner, PassthroughFs, Rights, Shared, attributes, credentials, stat_of};
use crate::{Request, mutant};

/// After so many looks at names of a directory it is listed.
pub(super) const LOOKS: usize = 16;
/// Where something speaks against it, after so many.
const MANY_LOOKS: usize = 1_000_000;
/// Most names of a directory that are listed at a time.
pub(super) const NAMES_MAX: usize = if cfg!(test) { 2000 } else { 1_000_000 };
/// Most directories with a list at a time. The oldest one gives way.
pub(super) const LISTS_MAX: usize = 64;
/// About how much memory all lists together may take, in bytes.
pub(super) const MEMORY_MAX: usize = if cfg!(test) { 1 << 20 } else { 128 << 20 };
/// How much is read at a time, in bytes: little, and then more as long as what was read is of use.
const PIECE_MIN: usize = 1024;
const PIECE_MAX: usize = 32 * 1024;
/// Types of file system (`f_type`) whose directories tell the inode numbers that statx(2) tells: ext4, XFS, Btrfs, tmpfs, F2FS,
/// bcachefs.
const TELL_INODES: [i64; 6] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0xca45_1a4e];
/// `FS_CASEFOLD_FL`: a name stands for others, too.
const CASEFOLD: u32 = 0x4000_0000;

/// What is known by listing of a directory.
pub(super) struct List {
    /// Where it is read on; `None`: it was read to its end.
    stream: Option<OwnedFd>,
    /// How much is read next.
    piece: usize,
    /// Names that were read.
    read: usize,
    /// Those of them that are listed still.
    unused: usize,
    /// How many were of use since it was read on.
    hits: usize,
    memory: usize,
    /// Until when it is believed.
    until: u64,
    /// Every file in it had been born by then.
    latest: i64,
}

/// How a directory's looks and its list go.
pub(super) struct Looks {
    list: Option<List>,
    /// Looks at names since a list began or ended.
    count: usize,
    /// At how many it is listed.
    due: usize,
    /// The latest birth that was seen.
    latest: i64,
}

impl Default for Looks {
    fn default() -> Self {
        Self { list: None, count: 0, due: looks_before(), latest: 0 }
    }
}

impl Looks {
    /// A file was looked at that was born then.
    pub(super) fn saw(&mut self, born: i64) {
        self.latest = self.latest.max(born);
    }

    /// When all listed files had been born.
    pub(super) fn latest(&self) -> i64 {
        self.list.as_ref().map_or(0, |list| list.latest)
    }

    /// A name that was listed is not any more, because it is removed.
    pub(super) fn used(&mut self) {
        if let Some(list) = &mut self.list {
            list.unused -= 1;
            list.hits += 1;
        }
    }

    pub(super) fn has_list(&self) -> bool {
        self.list.is_some()
    }

    fn is_used_up(&self) -> bool {
        self.list.as_ref().is_some_and(|list| list.unused == 0 && list.stream.is_none())
    }
}

/// [`LOOKS`]; none, so that tests meet many lists.
fn looks_before() -> usize {
    if mutant::leaves_out("deferred: looks") { 0 } else { LOOKS }
}

/// The time by which the births of files are told.
fn clock() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    now.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec)
}

fn nanoseconds(time: StatxTimestamp) -> i64 {
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(time.tv_nsec))
}

/// Opens a directory to list it, as the daemon, if a listing says all that is asked of it.
fn open(fs: &PassthroughFs, directory: &Directory) -> Option<OwnedFd> {
    credentials::become_daemon().ok()?;
    // Nobody is to see that it was read.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
    let stream = fs.with_spare_descriptors(|| openat(&directory.fd, c".", flags, Mode::empty())).ok()?;
    let tells = fstatfs(&stream).is_ok_and(|found| TELL_INODES.contains(&found.f_type));
    let folds = ioctl_getflags(&stream).is_ok_and(|flags| flags.bits() & CASEFOLD != 0);
    (tells && !folds).then_some(stream)
}

impl Shared {
    /// The list is not believed any more, nor anything that was begun on it.
    pub(super) fn end_list(&self, directory: &Directory, inner: &mut Inner) {
        let Some(list) = inner.looks.list.take() else { return };
        inner.looks.count = 0;
        inner.looks.due = looks_before();
        if list.unused > 0 {
            inner.names.retain(|known| !matches!(known, Known::Listed(_)));
        }
        self.listed.fetch_sub(list.memory, Ordering::Relaxed);
        self.lists.lock().retain(|other| !std::ptr::eq(&**other, directory));
        self.list_count.fetch_sub(1, Ordering::SeqCst);
    }

    /// A list was wrong, or cannot be had.
    pub(super) fn avoid_list(&self, directory: &Directory, inner: &mut Inner) {
        self.end_list(directory, inner);
        inner.looks.count = 0;
        inner.looks.due = MANY_LOOKS;
    }

    /// Ends the list if it is too old.
    pub(super) fn check_list(&self, directory: &Directory, inner: &mut Inner, now: u64) {
        if inner.looks.list.as_ref().is_some_and(|list| list.until <= now) {
            self.end_list(directory, inner);
        }
    }

    /// A name has changed by other means.
    pub(super) fn forget_listed(&self, directory: &Directory, inner: &mut Inner, name: &[u8]) {
        if inner.names.forget(name, |known| matches!(known, Known::Listed(_))).is_some() {
            if let Some(list) = &mut inner.looks.list {
                list.unused -= 1;
            }
            self.end_used_up(directory, inner);
        }
    }

    /// Ends a list of which nothing is left, so that another may begin.
    pub(super) fn end_used_up(&self, directory: &Directory, inner: &mut Inner) {
        if inner.looks.is_used_up() {
            self.end_list(directory, inner);
        }
    }

    /// A name is to be looked at that is not listed: reads on in its directory if that is worth it. Whether more is listed now.
    ///
    /// # Errors
    /// The thread, which acted as the caller, does so no more.
    pub(super) fn list_on(
        &self,
        fs: &PassthroughFs,
        req: &Request,
        directory: &Arc<Directory>,
        inner: &mut Inner,
        now: u64,
    ) -> Result<bool> {
        if self.ttl == 0 {
            return Ok(false);
        }
        inner.looks.count += 1;
        if inner.looks.list.as_ref().is_none_or(|list| list.stream.is_none()) {
            if inner.looks.count <= inner.looks.due {
                return Ok(false);
            }
            self.end_list(directory, inner);
            inner.looks.count = 0;
            if !self.make_room(directory) {
                return Ok(false);
            }
            match open(fs, directory) {
                Some(stream) => self.begin_list(directory, inner, stream, now),
                None => self.avoid_list(directory, inner),
            }
            fs.act(req, Rights::Checked)?;
        }
        Ok(inner.looks.has_list() && self.make_room(directory) && self.read_on(directory, inner))
    }

    fn begin_list(&self, directory: &Arc<Directory>, inner: &mut Inner, stream: OwnedFd, now: u64) {
        self.lists.lock().push_back(Arc::clone(directory));
        // Before anything is read, so that whoever changes a name looks for the list.
        self.list_count.fetch_add(1, Ordering::SeqCst);
        inner.looks.list = Some(List {
            stream: Some(stream),
            piece: PIECE_MIN,
            read: 0,
            unused: 0,
            hits: 1,
            memory: 0,
            until: now.saturating_add(self.ttl),
            latest: inner.looks.latest,
        });
    }

    /// Ends lists of other directories, the oldest first, until there is room for more.
    fn make_room(&self, directory: &Arc<Directory>) -> bool {
        loop {
            let oldest = {
                let mut lists = self.lists.lock();
                if lists.len() < LISTS_MAX && self.listed.load(Ordering::Relaxed) < MEMORY_MAX {
                    return true;
                }
                let other = lists.iter().position(|other| !Arc::ptr_eq(other, directory));
                let Some(oldest) = other.and_then(|other| lists.remove(other)) else { return false };
                oldest
            };
            // Whose lock must not be waited for under this one's.
            let Some(mut inner) = oldest.inner.try_lock() else {
                self.lists.lock().push_back(oldest);
                return false;
            };
            self.end_list(&oldest, &mut inner);
        }
    }

    /// Reads a piece of the directory; whether there was more.
    fn read_on(&self, directory: &Directory, inner: &mut Inner) -> bool {
        let Inner { names, looks, .. } = inner;
        let Some(list) = &mut looks.list else { return false };
        let Some(stream) = &list.stream else { return false };
        if list.unused >= NAMES_MAX {
            return false;
        }
        list.piece = match std::mem::take(&mut list.hits) {
            0 => PIECE_MIN,
            _ => (list.piece * 2).min(PIECE_MAX),
        };
        let mut buffer = [MaybeUninit::uninit(); PIECE_MAX];
        let mut entries = RawDir::new(stream, &mut buffer[..list.piece]);
        let (unused, memory) = (list.unused, list.memory);
        let mut more = true;
        loop {
            let Some(Ok(entry)) = entries.next() else {
                more = false;
                break;
            };
            // What is a directory, or may be one, is looked at.
            if !matches!(entry.file_type(), FileType::Directory | FileType::Unknown) {
                let name = entry.file_name().to_bytes();
                list.read += 1;
                if names.list(name, entry.ino()) {
                    list.unused += 1;
                    list.memory += name.len() + OVERHEAD;
                } else {
                    // Already removed: the next may be the next to be.
                    list.hits += 1;
                }
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        self.listed.fetch_add(list.memory - memory, Ordering::Relaxed);
        // What others' clocks, or this one before it was set, say of the directory was said of the files that were made in it.
        let stat = stat_of(&directory.fd);
        let latest = stat.map(|stat| {
            nanoseconds(stat.stx_ctime).max(nanoseconds(stat.stx_mtime)).max(attributes::born(&stat))
        });
        list.latest = list.latest.max(latest.unwrap_or(0)).max(clock());
        let found = list.unused > unused;
        if !more {
            list.stream = None;
            // Names that are made from now on are not listed; they are when there are as many.
            looks.due = looks_before() + list.read;
            looks.count = 0;
        }
        self.end_used_up(directory, inner);
        found
    }
}
