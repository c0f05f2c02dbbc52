//! What directories list, kept between two readings, for file systems that allow it ([`Bypass::keeps_listings`]).
//!
//! A listing goes with any change of a name in its directory, by either road, and with any change of the directory's
//! attributes. Whoever changes something counts that first ([`Cache::mark`]), and then forgets what is kept; a listing is kept only
//! if nothing was counted since before the file system was asked, which is looked at under the lock that the other needs to
//! forget it.
//!
//! [`Bypass::keeps_listings`]: crate::Bypass::keeps_listings
//! [`Cache::mark`]: crate::engine::cache::Cache::mark

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::engine::cache::{Inode, Instant};
use crate::mutant;

const SHARDS: usize = 16;
/// The most that is kept in one shard, in bytes. All shards together hold 64 MiB.
const ROOM: usize = 4 << 20;
/// How long a listing is kept: reading a directory changes its time of last access from time to time.
const KEPT_FOR: Duration = Duration::from_secs(60 * 60);
/// Where the length of a record of `struct linux_dirent64` is, and where the offset behind it.
const LENGTH_AT: usize = 16;
const OFFSET_AT: usize = 8;
const NAME_AT: usize = 19;
/// Names in a sample, at most: of long ones fewer.
const SAMPLE: usize = 8;

/// All that a directory lists: records as getdents64(2) shows them, no more than a client has read at once, so that nothing
/// need be held for listings that nobody reads to the end.
pub(crate) struct Listing {
    /// Of the inode: another directory may get the number.
    instance: u64,
    records: Box<[u8]>,
    expiry: Instant,
}

impl Listing {
    /// The records behind a position, as many as fit into so many bytes, and whether those are all. `None` if no record ends
    /// there: only the file system knows what that means.
    pub(crate) fn page(&self, position: u64, size: usize) -> Option<(&[u8], bool)> {
        let rest = match position {
            0 => &*self.records,
            _ => {
                let mut rest = &*self.records;
                loop {
                    let offset = word(rest, OFFSET_AT)?;
                    rest = rest.get(length(rest)?..)?;
                    if offset == position {
                        break rest;
                    }
                }
            }
        };
        if rest.len() <= size {
            return Some((rest, true));
        }
        let mut end = 0;
        while let Some(len) = rest.get(end..).and_then(length)
            && end + len <= size
        {
            end += len;
        }
        Some((rest.get(..end)?, false))
    }

    /// Some of the names, spread over the listing.
    pub(crate) fn sample(&self) -> impl Iterator<Item = &OsStr> {
        let mut rest = &*self.records;
        let records = std::iter::from_fn(move || {
            let (record, behind) = rest.split_at_checked(length(rest)?)?;
            rest = behind;
            Some(record)
        });
        // A record takes 24 bytes at least.
        let every = self.records.len() / (SAMPLE * 24) + 1;
        let names = records.step_by(every).filter_map(|record| {
            let name = record.get(NAME_AT..)?;
            Some(OsStr::from_bytes(name.split(|byte| *byte == 0).next()?))
        });
        names.filter(|name| *name != "." && *name != "..").take(SAMPLE)
    }
}

fn word(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?))
}

/// The length of the first record.
fn length(records: &[u8]) -> Option<usize> {
    let bytes = records.get(LENGTH_AT..LENGTH_AT + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?).into()).filter(|len| *len > 0)
}

#[derive(Default)]
struct Shard {
    kept: HashMap<u64, Arc<Listing>>,
    bytes: usize,
}

impl Shard {
    fn forget(&mut self, ino: u64) {
        if let Some(listing) = self.kept.remove(&ino) {
            self.bytes -= listing.records.len();
        }
    }
}

/// The listings that are kept of one mount.
#[derive(Default)]
pub(crate) struct Listings {
    /// There was one.
    any: AtomicBool,
    shards: [Mutex<Shard>; SHARDS],
}

impl Listings {
    fn shard(&self, ino: u64) -> &Mutex<Shard> {
        &self.shards[(ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as usize % SHARDS]
    }

    /// What a directory lists, if that is known.
    pub(crate) fn get(&self, directory: &Inode) -> Option<Arc<Listing>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let shard = self.shard(directory.ino).lock();
        let listing = shard.kept.get(&directory.ino)?;
        let good = listing.instance == directory.instance && listing.expiry > Instant::now();
        good.then(|| Arc::clone(listing))
    }

    /// Keeps all that a directory lists, if that is what it still lists.
    pub(super) fn keep(&self, directory: &Inode, records: &[u8], is_current: impl FnOnce() -> bool) {
        let (instance, expiry) = (directory.instance, Instant::now().after(KEPT_FOR));
        let listing = Arc::new(Listing { instance, records: records.into(), expiry });
        // Before it is asked whether something has changed: who changes something looks here after that was counted.
        self.any.store(true, Ordering::SeqCst);
        let mut shard = self.shard(directory.ino).lock();
        if !is_current() {
            return;
        }
        shard.forget(directory.ino);
        if shard.bytes + records.len() > ROOM {
            *shard = Shard::default();
        }
        shard.bytes += records.len();
        shard.kept.insert(directory.ino, listing);
    }

    /// A directory, or a name in it, has changed, which has been counted.
    pub(super) fn forget(&self, ino: u64) {
        if self.any.load(Ordering::SeqCst) && !mutant::leaves_out("cache: listings") {
            self.shard(ino).lock().forget(ino);
        }
    }

    /// Some directory has another one above it, which has been counted.
    pub(super) fn forget_all(&self) {
        if self.any.load(Ordering::SeqCst) {
            self.shards.iter().for_each(|shard| *shard.lock() = Shard::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64, len: u16) -> Vec<u8> {
        let mut record = vec![0; len.into()];
        record[OFFSET_AT..OFFSET_AT + 8].copy_from_slice(&offset.to_ne_bytes());
        record[LENGTH_AT..LENGTH_AT + 2].copy_from_slice(&len.to_ne_bytes());
        record
    }

    #[test]
    fn a_page_begins_behind_a_position_and_ends_between_records() {
        let records = [record(7, 24), record(3, 32), record(9, 24)].concat();
        let listing = Listing { instance: 1, records: records.clone().into(), expiry: Instant::EXPIRED };
        assert_eq!(listing.page(0, 80), Some((&records[..], true)));
        assert_eq!(listing.page(0, 79), Some((&records[..56], false)));
        assert_eq!(listing.page(0, 23), Some((&[][..], false)), "not even one fits");
        assert_eq!(listing.page(7, 56), Some((&records[24..], true)));
        assert_eq!(listing.page(7, 40), Some((&records[24..56], false)));
        assert_eq!(listing.page(9, 100), Some((&[][..], true)));
        assert_eq!(listing.page(4, 100), None);
    }

    #[test]
    fn a_sample_is_spread_over_the_listing() {
        let mut records = [record(1, 24), record(2, 24)].concat();
        records[NAME_AT] = b'.';
        records[24 + NAME_AT..][..2].copy_from_slice(b"..");
        let mut of = |names: std::ops::Range<u32>| {
            for number in names {
                let mut record = record(number.into(), 32);
                let name = format!("name-{number:03}");
                record[NAME_AT..][..name.len()].copy_from_slice(name.as_bytes());
                records.extend(record);
            }
            let listing = Listing { instance: 1, records: records.clone().into(), expiry: Instant::EXPIRED };
            listing.sample().map(|name| name.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(0..0), Vec::<String>::new());
        assert_eq!(of(0..3), ["name-000", "name-001", "name-002"]);
        let many = of(3..800);
        assert!((5..=SAMPLE).contains(&many.len()), "{many:?}");
        assert!(many.last().unwrap().as_str() > "name-600", "{many:?}");
    }
}
