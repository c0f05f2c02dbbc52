//! Files of which clients have descriptors of the source's: they are read, and written to, where nobody sees it.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fuser::FileAttr;
use log::debug;

use super::{Coherence, shard};

/// Above this many inodes with grants every regular file counts as one that can be written to.
pub(super) const GRANT_LIMIT: usize = 1_000_000;

/// What clients have, or may have, of one file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Granted {
    /// How often something was granted.
    times: u32,
    /// Milliseconds since some moment: when it was looked last whether that has ended; 0 is never.
    looked: u32,
    /// Some can write.
    writes: bool,
    /// Some were handed over; what is about to be is not read yet.
    reads: bool,
}

/// Stands for what was granted of a file up to some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u32);

/// How often it is looked, at most, whether nobody has a file any more, in milliseconds: it takes some system calls, in vain while somebody
/// writes a log.
const LOOK_EVERY: u32 = 100;

impl Coherence {
    /// A client gets, or may get at any time, a writable descriptor of the backing file: from now on the
    /// file's size, times and contents change unseen.
    pub(crate) fn note_granted_write(&self, ino: u64) {
        self.note(ino, |granted| granted.writes = true);
    }

    /// Whether a regular file may change unseen. Meaningless for other kinds of file.
    pub(crate) fn is_granted_write(&self, ino: u64) -> bool {
        self.is_noted(ino, |granted| granted.writes)
    }

    /// Whether a file may be read unseen, as it was [granted](Self::note_granted).
    pub(crate) fn is_granted(&self, ino: u64) -> bool {
        self.is_noted(ino, |granted| granted.reads)
    }

    /// A client gets a descriptor of the backing file: from now on it may be read unseen.
    pub(crate) fn note_granted(&self, ino: u64) {
        let before = self.note(ino, |granted| granted.reads = true);
        if before.is_some_and(|before| !before.reads) {
            if let Some(cache) = self.cache() {
                cache.unseen(ino);
            }
            self.changed_attr(ino);
        }
    }

    /// What was granted of a file, if it is worth looking whether [that has ended](Self::end_grants): not while the kernel has the file open,
    /// or pages of it from before, which it would go on to believe.
    pub(crate) fn outstanding(&self, ino: u64) -> Option<Ticket> {
        if matches!(self.granted_count.load(Ordering::Relaxed), 0 | GRANT_LIMIT..) {
            return None;
        }
        let opens = self.kernel_opens(ino);
        if !opens.is_over() {
            return None;
        }
        let now = (self.began.elapsed().as_millis() as u32).wrapping_add(1);
        let mut shard = shard(&self.granted, ino).lock();
        let granted = shard.get_mut(&ino)?;
        if granted.looked != 0 && now.wrapping_sub(granted.looked) < LOOK_EVERY {
            return None;
        }
        granted.looked = now;
        Some(Ticket(granted.times))
    }

    /// Nobody has a file open of which this was granted, which was looked at since: from here on it changes only where that is seen, unless
    /// something was granted meanwhile.
    pub(crate) fn end_grants(&self, ino: u64, Ticket(times): Ticket) {
        // First what is known: it may be from before the last change.
        if let Some(cache) = self.cache() {
            cache.attr(ino);
        }
        self.changed_attr(ino);
        let mut shard = shard(&self.granted, ino).lock();
        let is_same = shard.get(&ino).is_some_and(|granted| granted.times == times);
        if is_same && self.granted_count.load(Ordering::Relaxed) < GRANT_LIMIT {
            shard.remove(&ino);
            self.granted_count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Notes something of an inode; what was noted before, unless they are too many.
    fn note(&self, ino: u64, grant: impl FnOnce(&mut Granted)) -> Option<Granted> {
        if self.granted_count.load(Ordering::Relaxed) >= GRANT_LIMIT {
            return None;
        }
        let mut shard = shard(&self.granted, ino).lock();
        let granted = shard.entry(ino).or_default();
        let before = *granted;
        granted.times = granted.times.wrapping_add(1);
        grant(granted);
        // Under the lock: who ends it counts down.
        if before.times == 0 && self.granted_count.fetch_add(1, Ordering::Relaxed) + 1 == GRANT_LIMIT {
            debug!("{GRANT_LIMIT} files have grants; all regular files count as such now");
        }
        Some(before)
    }

    fn is_noted(&self, ino: u64, what: impl FnOnce(&Granted) -> bool) -> bool {
        match self.granted_count.load(Ordering::Relaxed) {
            0 => false,
            GRANT_LIMIT.. => true,
            _ => shard(&self.granted, ino).lock().get(&ino).is_some_and(what),
        }
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
