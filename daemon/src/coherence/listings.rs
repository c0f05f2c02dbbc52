//! Which directories' listings the kernel may have in its page cache.
//!
//! A file system that opens a directory with `FOPEN_CACHE_DIR` lets the kernel keep what it lists, with
//! `FOPEN_KEEP_CACHE` for longer than it is open. What the kernel itself changes in a directory, it notices
//! (`fuse_dir_changed`). What the bypass changes it must be told, by a notification about pages, whose loss makes it list
//! anew from the next beginning on (`fuse_readdir_cached`); one about attributes helps only if the directory's time of
//! modification is another one.
//!
//! The kernel fills its cache by requests, all of which are counted here. So a directory that it has not read since it was
//! last told costs a change nothing.
//!
//! Where directories need not be opened at all (`fc->no_opendir`), the kernel may keep every listing that it reads.

use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;

use super::{Shards, shard, shards};

/// A directory that the kernel has opened with `FOPEN_CACHE_DIR`, or read without opening it.
#[derive(Debug, Default)]
struct Listing {
    /// How often the kernel has begun to read it.
    reads: u64,
    /// How often it had, when it was last told to forget.
    told: u64,
    /// The kernel has moved it, so that `..` is another directory, which is no change that it notices. From then on it is to
    /// read the directory anew each time that it opens it: which of several that do so gets its answer first, is not known.
    moved: bool,
}

/// All of them, by inode.
pub(super) struct Listings {
    /// There was one.
    any: AtomicBool,
    /// The kernel opens directories without asking.
    unopened: AtomicBool,
    known: Shards<HashMap<u64, Listing>>,
}

impl Listings {
    /// None.
    pub(super) fn new() -> Self {
        Self { any: AtomicBool::new(false), unopened: AtomicBool::new(false), known: shards() }
    }

    /// Whether the kernel may keep listings.
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    /// What to do with a directory's listing, if there is any.
    fn of<R>(&self, directory: u64, act: impl FnOnce(&mut Listing) -> R) -> Option<R> {
        if !self.any() {
            return None;
        }
        shard(&self.known, directory).lock().get_mut(&directory).map(act)
    }

    /// The kernel is about to open a directory and may cache what it lists. Whether it may go by what it has.
    pub(super) fn opens(&self, directory: u64) -> bool {
        self.any.store(true, Ordering::SeqCst);
        let mut known = shard(&self.known, directory).lock();
        !known.entry(directory).or_default().moved
    }

    /// From now on the kernel opens directories without asking, and goes by what it has.
    pub(super) fn opens_no_more(&self) {
        self.unopened.store(true, Ordering::SeqCst);
        self.any.store(true, Ordering::SeqCst);
    }

    /// The kernel reads a directory. To be called before the file system is asked.
    pub(super) fn reads(&self, directory: u64) {
        if self.unopened.load(Ordering::SeqCst) {
            self.opens(directory);
        }
        self.of(directory, |listing| listing.reads += 1);
    }

    /// Whether the kernel may have something of a listing: what to hand to [`told`](Self::told).
    pub(super) fn held(&self, directory: u64) -> Option<u64> {
        self.of(directory, |listing| (listing.reads != listing.told).then_some(listing.reads))?
    }

    /// The kernel was told to forget what it had read when [`held`](Self::held) was asked.
    pub(super) fn told(&self, directory: u64, reads: u64) {
        self.of(directory, |listing| listing.told = listing.told.max(reads));
    }

    /// The kernel has moved a directory. Whether it must be told to forget what it lists, as it does not ask when it opens it.
    #[must_use]
    pub(super) fn moved(&self, directory: u64) -> bool {
        let is_known = self.of(directory, |listing| listing.moved = true).is_some();
        is_known && self.unopened.load(Ordering::SeqCst)
    }

    /// The kernel has given up the inode, and its pages.
    pub(super) fn forget(&self, directory: u64) {
        if self.any() {
            shard(&self.known, directory).lock().remove(&directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_since_the_kernel_was_told_is_held() {
        let listings = Listings::new();
        listings.reads(5);
        assert!(!listings.any() && listings.held(5).is_none(), "the kernel may not keep it");
        assert!(listings.opens(5));
        assert_eq!(listings.held(5), None, "it was not read");
        listings.reads(5);
        let held = listings.held(5).unwrap();
        listings.reads(5);
        listings.told(5, held);
        let held = listings.held(5).expect("it was read meanwhile");
        listings.told(5, held);
        assert_eq!(listings.held(5), None);
        listings.reads(5);
        listings.forget(5);
        assert_eq!(listings.held(5), None);
    }

    #[test]
    fn a_moved_directory_is_read_anew_until_the_kernel_forgets_it() {
        let listings = Listings::new();
        assert!(listings.opens(5));
        assert!(!listings.moved(5), "the kernel asks when it opens it");
        assert!(!listings.opens(5) && !listings.opens(5));
        listings.forget(5);
        assert!(listings.opens(5));
    }

    #[test]
    fn what_is_read_without_being_opened_is_held_and_must_be_forgotten_if_it_is_moved() {
        let listings = Listings::new();
        listings.opens_no_more();
        assert!(listings.held(5).is_none() && !listings.moved(5), "it was not read");
        listings.reads(5);
        assert!(listings.held(5).is_some());
        assert!(listings.moved(5));
    }
}
