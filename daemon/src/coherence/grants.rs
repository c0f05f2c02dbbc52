//! Files of which clients have descriptors of the source's: they are read, and written to, where nobody sees it.
//!
//! Nobody tells of the last close, which may be another process's, or the end of a mapping. Whether a file can still be written to the
//! kernel knows: it is asked when somebody wants to know the file's attributes, and if not, they are believed again.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::FileAttr;
use hashbrown::HashMap;
use log::debug;
use rustix::time::ClockId;

use super::opens::OpenInode;
use super::{Coherence, Shards, shard, shards};
use crate::mutant;

/// Above this many inodes with grants every regular file counts as one, for good.
pub(super) const GRANT_LIMIT: usize = 1_000_000;

/// A file that can still be written to is not asked about again for so long, in milliseconds.
const PATIENCE: u64 = 10;

/// A file of which descriptors were granted.
#[derive(Debug, Default)]
struct Grant {
    /// For writing.
    writes: bool,
    /// For reading alone.
    reads: bool,
    /// How many descriptors are being made, which nobody has open yet.
    pending: u32,
    /// It is being created, and the kernel knows it already.
    reserved: bool,
    /// The number of the last one that was granted, which no other has.
    last: u64,
    /// When it was last asked whether the file can be written to, in milliseconds.
    asked: u64,
}

/// What was granted, by inode.
pub(super) struct Grants {
    files: Shards<HashMap<u64, Grant>>,
    count: AtomicUsize,
    /// The number of the next grant.
    next: AtomicU64,
    /// There were too many, so that some are not noted.
    full: AtomicBool,
}

impl Grants {
    pub(super) fn new() -> Self {
        Self {
            files: shards(),
            count: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            full: AtomicBool::new(false),
        }
    }

    /// Notes a grant of an inode; whether there may have been none before.
    fn note(&self, ino: u64, what: impl FnOnce(&mut Grant)) -> bool {
        let last = self.next.fetch_add(1, Ordering::Relaxed);
        let mut files = shard(&self.files, ino).lock();
        if let Some(grant) = files.get_mut(&ino) {
            grant.last = last;
            what(grant);
            return false;
        }
        if self.full.load(Ordering::Relaxed) {
            return true;
        }
        what(files.entry(ino).insert(Grant { last, ..Grant::default() }).into_mut());
        if self.count.fetch_add(1, Ordering::Relaxed) + 1 == GRANT_LIMIT {
            debug!("{GRANT_LIMIT} files have grants; all regular files count as such now");
            self.full.store(true, Ordering::Relaxed);
        }
        true
    }

    fn is(&self, ino: u64, what: impl FnOnce(&Grant) -> bool) -> bool {
        if self.full.load(Ordering::Relaxed) {
            return true;
        }
        self.count.load(Ordering::Relaxed) != 0 && shard(&self.files, ino).lock().get(&ino).is_some_and(what)
    }
}

/// A writable descriptor that is being made: until this is dropped, that nobody has one means nothing.
#[derive(Debug)]
#[must_use]
pub(crate) struct PendingGrant<'c> {
    coherence: &'c Coherence,
    ino: u64,
}

impl Drop for PendingGrant<'_> {
    fn drop(&mut self) {
        if let Some(grant) = shard(&self.coherence.grants.files, self.ino).lock().get_mut(&self.ino) {
            grant.pending -= 1;
        }
    }
}

impl Coherence {
    /// A client gets a writable descriptor of the backing file, which is open: from now on the file's size, times and contents
    /// change unseen.
    pub(crate) fn note_granted_write(&self, ino: u64) {
        self.grants.note(ino, |grant| (grant.writes, grant.reserved) = (true, false));
    }

    /// As [`note_granted_write`](Self::note_granted_write), before the file is opened.
    pub(crate) fn grants_write(&self, ino: u64) -> PendingGrant<'_> {
        self.grants.note(ino, |grant| {
            grant.writes = true;
            grant.pending += 1;
        });
        PendingGrant { coherence: self, ino }
    }

    /// As [`note_granted_write`](Self::note_granted_write), of a file that is being created, before its creator
    /// notes it.
    pub(super) fn reserve_granted_write(&self, ino: u64) {
        self.grants.note(ino, |grant| (grant.writes, grant.reserved) = (true, true));
    }

    /// Whether a regular file may change unseen. Meaningless for other kinds of file.
    pub(crate) fn is_granted_write(&self, ino: u64) -> bool {
        self.grants.is(ino, |grant| grant.writes)
    }

    /// Whether a file may be read unseen, as it was granted.
    pub(crate) fn is_granted(&self, ino: u64) -> bool {
        self.grants.is(ino, |_| true)
    }

    /// A client gets a descriptor of the backing file, which is open, to read: from now on that happens unseen.
    pub(crate) fn note_granted_read(&self, ino: u64) {
        if self.grants.note(ino, |grant| grant.reads = true) {
            if let Some(cache) = self.cache() {
                cache.unseen(ino);
            }
            self.changed_attr(ino);
        }
    }

    /// Looks whether a file that was granted for writing can still be written to, and believes its attributes again if not; whether it
    /// does from here on. May be called on either road: it waits for no more than `can_be_written` does.
    pub(crate) fn review_grants(&self, ino: u64, can_be_written: impl FnOnce() -> bool) -> bool {
        let now = rustix::time::clock_gettime(ClockId::MonotonicCoarse);
        let now = now.tv_sec.cast_unsigned() * 1000 + now.tv_nsec.cast_unsigned() / 1_000_000;
        let last = {
            let mut files = shard(&self.grants.files, ino).lock();
            let Some(grant) = files.get_mut(&ino).filter(|grant| grant.writes) else { return false };
            if grant.pending > 0 || grant.reserved || now < grant.asked + PATIENCE {
                return false;
            }
            grant.asked = now;
            grant.last
        };
        // The kernel would go on as it has opened the file.
        let is_open =
            |opens: &HashMap<u64, OpenInode>| opens.get(&ino).is_some_and(|open| !open.opens.is_closed());
        if is_open(&shard(&self.opens, ino).lock())
            || (can_be_written() && !mutant::leaves_out("grants: writers"))
        {
            return false;
        }
        // What was learned before goes while the file still counts as changing unseen, so that nobody uses it in between.
        if let Some(cache) = self.cache() {
            cache.attr(ino);
        }
        self.kernel_changed_attr(ino);
        let mut opens = shard(&self.opens, ino).lock();
        let mut files = shard(&self.grants.files, ino).lock();
        let Some(grant) = files.get_mut(&ino) else { return false };
        if is_open(&opens) || grant.last != last || grant.pending > 0 {
            return false;
        }
        // Pages that it was to keep from before: the next one to open the file is to keep none.
        opens.remove(&ino);
        grant.writes = false;
        if !grant.reads {
            files.remove(&ino);
            self.grants.count.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }
}

/// After this time reading a file changes when it was last accessed in any case (`relatime_need_update`).
const ATIME_LASTS: Duration = Duration::from_secs(24 * 60 * 60);

/// For how long reading a file does not change when it was last accessed; `None` if it does at once.
pub(crate) fn unread_for(attr: &FileAttr, now: SystemTime) -> Option<Duration> {
    match reading_changes_atime(attr, now) {
        true => None,
        // A time that is yet to come counts as this moment.
        false => ATIME_LASTS.checked_sub(now.duration_since(attr.atime).unwrap_or_default()),
    }
}

/// Whether reading a file changes when it was last accessed, as file systems are mounted by default, with `relatime`
/// (`relatime_need_update`).
pub(crate) fn reading_changes_atime(attr: &FileAttr, now: SystemTime) -> bool {
    attr.atime <= attr.mtime
        || attr.atime <= attr.ctime
        || now.duration_since(attr.atime).is_ok_and(|age| age >= ATIME_LASTS)
}
