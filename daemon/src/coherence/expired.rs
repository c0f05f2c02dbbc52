//! Names of files that the bypass has taken away, and that the kernel was told to ask for again rather than to drop.
//!
//! To drop a name (`d_invalidate`) is to drop the inode, unless it is in use, and with that comes a FORGET, for which the
//! kernel wakes a thread of the daemon. For every file that is removed that takes several times as long as the removal. With
//! `FUSE_EXPIRE_ONLY` (Linux 6.2) the name stays and is good for nothing. A thread has the kernel drop the inodes
//! later, many at a time (`FUSE_NOTIFY_PRUNE`, Linux 6.18), which spares those in use: their FORGETs come in batches.
//!
//! A name that has expired stays in the filter of [names](super::names) until its inode is forgotten, which is when the
//! kernel has it no more: if it is sent again before that, it was entered twice, and is dropped the next time.

use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use hashbrown::HashMap;
use log::warn;
use parking_lot::RwLock;

use super::names::Key;
use super::notify::{OUT_HEADER, gone, send};
use super::{Shards, shard, shards};

/// `FUSE_NOTIFY_PRUNE`.
const NOTIFY_PRUNE: i32 = 9;
/// Size of `struct fuse_notify_prune_out`.
const PRUNE_OUT: usize = 16;
/// When nothing has come for about this long, the kernel has time.
const QUIET: Duration = Duration::from_millis(100);
/// So many inodes do not wait for that. In the kernel they take 100 MB.
const LIMIT: usize = 100_000;
/// The most inodes in one notification: as many as the kernel reads at once (`fuse_notify_prune`).
const BATCH: usize = 512;

/// The names, by the inodes that they stood for, and how old the filter was.
pub(super) struct Expired {
    names: Shards<HashMap<u64, (Key, u64)>>,
    /// There was one.
    any: AtomicBool,
    /// Inodes to be dropped; `None` if the kernel cannot be asked for that.
    sweeper: RwLock<Option<Sender<u64>>>,
}

impl Expired {
    /// None.
    pub(super) fn new() -> Self {
        Self { names: shards(), any: AtomicBool::new(false), sweeper: RwLock::new(None) }
    }

    /// Has the kernel drop inodes by way of this /dev/fuse descriptor, if it can.
    pub(super) fn attach(&self, device: &Weak<OwnedFd>) {
        let Some(kernel) = device.upgrade() else { return };
        if send(&kernel, NOTIFY_PRUNE, &mut message(&[])).is_err() {
            return;
        }
        let (sender, inodes) = mpsc::channel();
        let device = Weak::clone(device);
        match thread::Builder::new().name("sweeper".into()).spawn(move || sweep(&inodes, &device)) {
            Ok(_) => *self.sweeper.write() = Some(sender),
            Err(error) => warn!("the kernel will be told of each file that is removed by itself: {error}"),
        }
    }

    /// There is no kernel any more.
    pub(super) fn detach(&self) {
        *self.sweeper.write() = None;
    }

    /// Whether names may expire.
    pub(super) fn are_swept(&self) -> bool {
        self.sweeper.read().is_some()
    }

    /// A name has expired that stood for this inode, which nobody has open.
    pub(super) fn expired(&self, ino: u64, key: Key, age: u64) {
        self.any.store(true, Ordering::SeqCst);
        shard(&self.names, ino).lock().insert(ino, (key, age));
        if let Some(sweeper) = &*self.sweeper.read() {
            // It has ended if the kernel has.
            let _ = sweeper.send(ino);
        }
    }

    /// The kernel has given up the inode. The name by which it had it, if that has expired, and how old the filter was then.
    pub(super) fn forget(&self, ino: u64) -> Option<(Key, u64)> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        shard(&self.names, ino).lock().remove(&ino)
    }
}

/// Has the kernel drop what comes, when it has time, until nothing will come any more.
fn sweep(inodes: &Receiver<u64>, device: &Weak<OwnedFd>) {
    while let Ok(first) = inodes.recv() {
        let mut all = vec![first];
        loop {
            thread::sleep(QUIET);
            let before = all.len();
            all.extend(inodes.try_iter());
            if all.len() == before || all.len() >= LIMIT {
                break;
            }
        }
        for batch in all.chunks(BATCH) {
            let Some(device) = device.upgrade() else { return };
            if let Err(error) = send(&device, NOTIFY_PRUNE, &mut message(batch))
                && gone(error)
            {
                return;
            }
        }
    }
}

/// A notification that names these inodes.
fn message(inodes: &[u64]) -> Vec<u8> {
    let mut message = vec![0; OUT_HEADER + PRUNE_OUT];
    message[OUT_HEADER..OUT_HEADER + 4].copy_from_slice(&(inodes.len() as u32).to_ne_bytes());
    message.extend(inodes.iter().flat_map(|ino| ino.to_ne_bytes()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_counted_in_their_notification() {
        let none = message(&[]);
        assert_eq!(none.len(), OUT_HEADER + PRUNE_OUT);
        let two = message(&[7, 1 << 40]);
        assert_eq!(two[OUT_HEADER..OUT_HEADER + 4], 2u32.to_ne_bytes());
        assert_eq!(two[none.len()..], [7u64.to_ne_bytes(), (1u64 << 40).to_ne_bytes()].concat());
    }

    #[test]
    fn a_name_is_kept_until_its_inode_is_forgotten() {
        let expired = Expired::new();
        let names = crate::coherence::names::Names::new(20);
        let key = names.key(1, "a".as_ref());
        assert!(!expired.are_swept());
        assert_eq!(expired.forget(5), None);
        expired.expired(5, key, 1);
        assert_eq!((expired.forget(6), expired.forget(5), expired.forget(5)), (None, Some((key, 1)), None));
    }
}
