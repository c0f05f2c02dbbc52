//! Descriptors of files that were read a moment ago, for whoever opens them next.
//!
//! To open a file again costs several system calls, by handle or by name, and most programs that open a file only to read it
//! soon open it again, or another one does. So what bypass clients have opened to read stays open for a moment after it was closed,
//! and further opens share the descriptor. That cannot be seen: the daemon reads by offset, and whoever needs an open file
//! description of his own ([`OpenFile::own`](super::handles::OpenFile::own), a grant) gets one.
//!
//! What is shared was opened by the same user with the same groups. Ordinary users may have lost the permission since, but not
//! without a change of the inode ([`Reader::is_still_allowed`]).
//!
//! An open file keeps its inode from being used again, and its blocks from being freed. So descriptors go with the last
//! reference to the node, and at the latest [`STAYS`] after the last open.

#![deny(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};
use rustix::fs::Statx;

const SHARDS: usize = 16;
/// How often is looked for what was not opened again.
const LOOK: Duration = Duration::from_millis(250);
/// For how many looks a descriptor stays: a second in all.
const STAYS: u32 = 4;
/// Users of one file whose descriptors stay.
const READERS_MAX: usize = 4;
/// Files of which the one that was not opened for longest makes room for another one.
const CANDIDATES: usize = 16;
/// How old a change of the inode must be when the file is opened, to tell it from one after that: many kernels note the time of a
/// change in ticks.
const SETTLED: Duration = Duration::from_secs(1);

/// Who has opened a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// User 0.
    Root,
    /// Anybody else.
    User {
        /// User and group.
        ids: (u32, u32),
        /// Supplementary groups.
        groups: Box<[u32]>,
        /// When the inode was last changed (`st_ctime`) before the file was opened.
        changed: (i64, u32),
    },
}

impl Reader {
    /// An ordinary user who opens an inode that was like this; `None` if it was changed too short a time ago to notice later
    /// that it is again.
    pub(super) fn user(uid: u32, gid: u32, groups: &[u32], stat: &Statx) -> Option<Self> {
        let changed = (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
        let then = UNIX_EPOCH.checked_add(Duration::new(u64::try_from(changed.0).ok()?, changed.1))?;
        let is_settled = SystemTime::now().duration_since(then).is_ok_and(|age| age > SETTLED);
        is_settled.then(|| Self::User { ids: (uid, gid), groups: groups.into(), changed })
    }

    fn is(&self, uid: u32, gid: u32, groups: &[u32]) -> bool {
        match self {
            Self::Root => uid == 0,
            Self::User { ids, groups: own, .. } => uid != 0 && *ids == (uid, gid) && **own == *groups,
        }
    }

    /// Whether the permission to open the file cannot have been lost since: all that decides about it counts as a change of
    /// the inode. User 0 needs none.
    pub(super) fn is_still_allowed(&self, stat: &Statx) -> bool {
        match self {
            Self::Root => true,
            Self::User { changed, .. } => *changed == (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }
    }

    fn replaces(&self, other: &Self) -> bool {
        match self {
            Self::Root => other.is(0, 0, &[]),
            Self::User { ids, groups, .. } => other.is(ids.0, ids.1, groups),
        }
    }
}

/// A descriptor that may be shared.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) fd: Arc<OwnedFd>,
    /// Who has opened it.
    pub(super) reader: Reader,
    /// The inode's generation.
    generation: u64,
    /// The look after which it was last opened.
    used: u32,
}

#[derive(Default)]
struct State {
    ended: bool,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    shards: [Mutex<HashMap<u64, Vec<Shared>>>; SHARDS],
    per_shard: usize,
    /// Descriptors in all.
    count: AtomicUsize,
    /// Counts the looks.
    look: AtomicU32,
    state: Mutex<State>,
    changed: Condvar,
}

/// The descriptors, by node.
pub(super) struct Hot(Arc<Inner>);

impl Hot {
    /// None yet, and never more than `capacity` files.
    pub(super) fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner {
            shards: std::array::from_fn(|_| Mutex::default()),
            per_shard: capacity / SHARDS,
            count: AtomicUsize::new(0),
            look: AtomicU32::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Whether anything is ever kept.
    pub(super) fn keeps(&self) -> bool {
        self.0.per_shard != 0
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Vec<Shared>>> {
        &self.0.shards[(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS]
    }

    /// What a user has opened of the node, if it still is of this generation.
    pub(super) fn get(&self, id: u64, generation: u64, uid: u32, gid: u32, groups: &[u32]) -> Option<Shared> {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut shard = self.shard(id).lock();
        let found = shard.get_mut(&id)?.iter_mut().find(|shared| shared.reader.is(uid, gid, groups))?;
        if found.generation != generation {
            return None;
        }
        found.used = self.0.look.load(Ordering::Relaxed);
        Some(found.clone())
    }

    /// Keeps what was opened to read, perhaps in the place of what was not opened for longer.
    pub(super) fn keep(&self, id: u64, generation: u64, fd: &Arc<OwnedFd>, reader: Reader) {
        let inner = &*self.0;
        if inner.per_shard == 0 {
            return;
        }
        let used = inner.look.load(Ordering::Relaxed);
        let kept = Shared { fd: Arc::clone(fd), reader, generation, used };
        // To be closed when no lock is held any more.
        let mut dropped = Vec::new();
        let mut shard = self.shard(id).lock();
        if !shard.contains_key(&id) && shard.len() >= inner.per_shard {
            let age = |readers: &[Shared]| {
                readers.iter().map(|shared| used.wrapping_sub(shared.used)).min().unwrap_or(u32::MAX)
            };
            let oldest =
                shard.iter().take(CANDIDATES).max_by_key(|(_, readers)| age(readers)).map(|(id, _)| *id);
            dropped.extend(oldest.and_then(|oldest| shard.remove(&oldest)).into_iter().flatten());
        }
        let readers = shard.entry(id).or_default();
        if let Some(index) = readers.iter().position(|other| kept.reader.replaces(&other.reader)) {
            dropped.push(readers.swap_remove(index));
        } else if readers.len() >= READERS_MAX {
            dropped.push(readers.swap_remove(0));
        }
        readers.push(kept);
        let before = inner.count.fetch_add(1, Ordering::SeqCst);
        inner.count.fetch_sub(dropped.len(), Ordering::SeqCst);
        drop(shard);
        if before == 0 {
            self.wake();
        }
    }

    /// Drops what there is of a node.
    pub(super) fn remove(&self, id: u64) {
        if self.0.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut shard = self.shard(id).lock();
        let Some(dropped) = shard.remove(&id) else { return };
        self.0.count.fetch_sub(dropped.len(), Ordering::SeqCst);
        drop(shard);
        drop(dropped);
    }

    /// Drops everything that nobody has open.
    pub(super) fn clear(&self) {
        self.0.drop_where(|_| true);
    }

    /// There is something to look after. The thread is started only then, in the process that serves.
    fn wake(&self) {
        let mut state = self.0.state.lock();
        if state.thread.is_none() && !state.ended {
            let inner = Arc::clone(&self.0);
            match std::thread::Builder::new().name("hot-files".into()).spawn(move || inner.look_after()) {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => {
                    tracing::warn!(%error, "files that were read are not kept open for a moment");
                    drop(state);
                    self.clear();
                    return;
                }
            }
        }
        self.0.changed.notify_one();
    }
}

impl Inner {
    fn drop_where(&self, goes: impl Fn(&Shared) -> bool) {
        for shard in &self.shards {
            let mut dropped = Vec::new();
            let mut shard = shard.lock();
            shard.retain(|_, readers| {
                dropped.extend(readers.extract_if(.., |shared| goes(shared)));
                !readers.is_empty()
            });
            self.count.fetch_sub(dropped.len(), Ordering::SeqCst);
            drop(shard);
            drop(dropped);
        }
    }

    /// Closes what was not opened again, as long as there is anything; otherwise sleeps.
    fn look_after(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            if self.count.load(Ordering::SeqCst) == 0 {
                self.changed.wait(&mut state);
                continue;
            }
            self.changed.wait_for(&mut state, LOOK);
            drop(state);
            let now = self.look.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            self.drop_where(|shared| now.wrapping_sub(shared.used) > STAYS);
            state = self.state.lock();
        }
    }
}

impl Drop for Hot {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.ended = true;
        let thread = state.thread.take();
        drop(state);
        self.0.changed.notify_one();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that closes files that were read panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::time::Instant;

    fn file() -> Arc<OwnedFd> {
        Arc::new(tempfile::tempfile().unwrap().into())
    }

    fn user(uid: u32, groups: &[u32]) -> Reader {
        Reader::User { ids: (uid, uid), groups: groups.into(), changed: (0, 0) }
    }

    #[test]
    fn a_descriptor_is_shared_by_those_with_the_same_user_and_groups_only() {
        let hot = Hot::new(1024);
        let (of_root, of_user) = (file(), file());
        hot.keep(7, 1, &of_root, Reader::Root);
        hot.keep(7, 1, &of_user, user(5, &[8, 9]));
        let found = |generation, uid, groups: &[u32]| {
            hot.get(7, generation, uid, uid, groups).map(|shared| shared.fd.as_raw_fd())
        };
        assert_eq!(found(1, 0, &[]), Some(of_root.as_raw_fd()));
        assert_eq!(found(1, 5, &[8, 9]), Some(of_user.as_raw_fd()));
        assert_eq!(found(1, 5, &[8]), None, "fewer groups");
        assert_eq!(found(1, 6, &[8, 9]), None, "another user");
        assert_eq!(hot.get(7, 1, 5, 6, &[8, 9]).map(drop), None, "another group");
        assert_eq!(found(2, 0, &[]), None, "another inode");
        assert!(hot.get(8, 1, 0, 0, &[]).is_none());
        hot.remove(7);
        assert_eq!(found(1, 0, &[]), None);
        assert_eq!(Arc::strong_count(&of_root), 1);
    }

    #[test]
    fn there_are_never_more_than_the_capacity() {
        let hot = Hot::new(2 * SHARDS);
        let files: Vec<_> = (0..1000).map(|_| file()).collect();
        for (id, fd) in files.iter().enumerate() {
            hot.keep(id as u64, 1, fd, Reader::Root);
        }
        let kept = files.iter().filter(|fd| Arc::strong_count(fd) > 1).count();
        assert!((1..=2 * SHARDS).contains(&kept), "{kept}");
        assert_eq!(hot.0.count.load(Ordering::SeqCst), kept);
        hot.clear();
        assert!(files.iter().all(|fd| Arc::strong_count(fd) == 1));
        let none = Hot::new(0);
        none.keep(1, 1, &files[0], Reader::Root);
        assert!(none.get(1, 1, 0, 0, &[]).is_none());
    }

    #[test]
    fn what_is_not_opened_again_is_closed_after_a_moment() {
        let hot = Hot::new(1024);
        let fd = file();
        let start = Instant::now();
        hot.keep(7, 1, &fd, Reader::Root);
        while Arc::strong_count(&fd) > 1 {
            assert!(start.elapsed() < Duration::from_secs(30));
            std::thread::yield_now();
        }
        assert!(start.elapsed() >= LOOK * (STAYS - 1));
        hot.keep(7, 1, &fd, Reader::Root);
        assert!(hot.get(7, 1, 0, 0, &[]).is_some(), "the thread goes on");
    }

    #[test]
    fn a_permission_may_be_lost_by_any_change_of_the_inode() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stat = || super::super::inodes::stat_of(&file).unwrap();
        assert_eq!(Reader::user(5, 5, &[], &stat()), None, "changed just now");
        let before = stat();
        let reader = Reader::User {
            ids: (5, 5),
            groups: Box::default(),
            changed: (before.stx_ctime.tv_sec - 5, before.stx_ctime.tv_nsec),
        };
        assert!(!reader.is_still_allowed(&before));
        assert!(Reader::Root.is_still_allowed(&before));
        let mut old = before;
        old.stx_ctime.tv_sec -= 5;
        let reader = Reader::user(5, 5, &[], &old).unwrap();
        assert!(reader.is_still_allowed(&old) && !reader.is_still_allowed(&before));
    }
}
