//! A bounded cache of directory descriptors.
//!
//! Nearly every operation starts from a directory, and to open one takes longer than what is done in it.
//! `O_PATH` descriptors, evicted by the CLOCK algorithm: a hit sets a bit under a shared lock, and what was not hit since the
//! hand last came by goes first. A newcomer starts without the bit, so a walk through a tree does not drive out what is
//! in use.

#![deny(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;
use parking_lot::RwLock;

const SHARDS: usize = 16;

struct Slot {
    id: u64,
    fd: Arc<OwnedFd>,
    used: AtomicBool,
}

#[derive(Default)]
struct Shard {
    index: HashMap<u64, usize>,
    slots: Vec<Slot>,
    hand: usize,
}

/// The cache: node id → descriptor.
pub(super) struct Directories {
    shards: Box<[RwLock<Shard>]>,
    shard_capacity: usize,
}

impl Directories {
    /// A cache of at most `capacity` descriptors (at least one per shard).
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            shard_capacity: (capacity / SHARDS).max(1),
        }
    }

    fn shard(&self, id: u64) -> &RwLock<Shard> {
        // Fibonacci hashing: directories' numbers tend to share their low bits.
        &self.shards[(id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS]
    }

    /// The descriptor of directory `id`, if it is here.
    pub(super) fn get(&self, id: u64) -> Option<Arc<OwnedFd>> {
        let shard = self.shard(id).read();
        let slot = &shard.slots[*shard.index.get(&id)?];
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&slot.fd))
    }

    /// Keeps `fd` for directory `id`, in the place of one that was not used for long.
    pub(super) fn insert(&self, id: u64, fd: &Arc<OwnedFd>) {
        let mut guard = self.shard(id).write();
        let shard = &mut *guard;
        let slot = Slot { id, fd: Arc::clone(fd), used: AtomicBool::new(false) };
        if let Some(&index) = shard.index.get(&id) {
            shard.slots[index] = slot;
            return;
        }
        if shard.slots.len() < self.shard_capacity {
            shard.index.insert(id, shard.slots.len());
            shard.slots.push(slot);
            return;
        }
        let index = loop {
            let index = shard.hand % shard.slots.len();
            shard.hand = index + 1;
            if !std::mem::take(shard.slots[index].used.get_mut()) {
                break index;
            }
        };
        let old = std::mem::replace(&mut shard.slots[index], slot);
        shard.index.remove(&old.id);
        shard.index.insert(id, index);
        // The last reference closes the descriptor: not under the lock.
        drop(guard);
        drop(old);
    }

    /// Drops the descriptor of `id`.
    pub(super) fn remove(&self, id: u64) {
        let mut guard = self.shard(id).write();
        let shard = &mut *guard;
        let Some(index) = shard.index.remove(&id) else { return };
        let old = shard.slots.swap_remove(index);
        if let Some(moved) = shard.slots.get(index) {
            shard.index.insert(moved.id, index);
        }
        drop(guard);
        drop(old);
    }

    /// Drops every descriptor that nobody is using at the moment.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut *shard.write());
            drop(old);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> Arc<OwnedFd> {
        Arc::new(std::fs::File::open("/").unwrap().into())
    }

    #[test]
    fn holds_no_more_than_its_capacity_and_keeps_what_is_used() {
        let cache = Directories::new(64);
        cache.insert(0, &fd());
        for id in 1..1000 {
            assert!(cache.get(0).is_some(), "lost at {id}");
            cache.insert(id, &fd());
        }
        let held = (0..1000).filter(|id| cache.get(*id).is_some()).count();
        assert!(held <= 64, "{held}");
    }

    #[test]
    fn a_removed_descriptor_is_gone_and_the_others_stay() {
        let cache = Directories::new(1024);
        for id in 0..200 {
            cache.insert(id, &fd());
        }
        for id in (0..200).step_by(3) {
            cache.remove(id);
        }
        for id in 0..200 {
            assert_eq!(cache.get(id).is_some(), id % 3 != 0, "{id}");
        }
        cache.clear();
        assert!((0..200).all(|id| cache.get(id).is_none()));
    }
}
