//! Files of which clients have descriptors of the source's: they are read, and written to, where nobody sees it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::FileAttr;
use hashbrown::HashSet;
use log::debug;

use super::{Coherence, Shards, shard};

/// Above this many inodes with writable grants every regular file counts as one.
pub(super) const GRANT_LIMIT: usize = 1_000_000;

impl Coherence {
    /// A client gets, or may get at any time, a writable descriptor of the backing file: from now on the
    /// file's size, times and contents change unseen.
    pub(crate) fn note_granted_write(&self, ino: u64) {
        note(&self.granted, &self.granted_count, ino);
    }

    /// Whether a regular file may change unseen. Meaningless for other kinds of file.
    pub(crate) fn is_granted_write(&self, ino: u64) -> bool {
        is_noted(&self.granted, &self.granted_count, ino)
    }

    /// Whether a file may be read unseen, as it was [granted](Self::note_granted).
    pub(crate) fn is_granted(&self, ino: u64) -> bool {
        is_noted(&self.read, &self.read_count, ino)
    }

    /// A client gets a descriptor of the backing file: from now on it may be read unseen.
    pub(crate) fn note_granted(&self, ino: u64) {
        if note(&self.read, &self.read_count, ino) {
            if let Some(cache) = self.cache() {
                cache.unseen(ino);
            }
            self.changed_attr(ino);
        }
    }
}

/// Notes an inode; whether it was not noted before.
fn note(noted: &Shards<HashSet<u64>>, count: &AtomicUsize, ino: u64) -> bool {
    if count.load(Ordering::Relaxed) >= GRANT_LIMIT || !shard(noted, ino).lock().insert(ino) {
        return false;
    }
    if count.fetch_add(1, Ordering::Relaxed) + 1 == GRANT_LIMIT {
        debug!("{GRANT_LIMIT} files have grants; all regular files count as such now");
    }
    true
}

fn is_noted(noted: &Shards<HashSet<u64>>, count: &AtomicUsize, ino: u64) -> bool {
    match count.load(Ordering::Relaxed) {
        0 => false,
        GRANT_LIMIT.. => true,
        _ => shard(noted, ino).lock().contains(&ino),
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
