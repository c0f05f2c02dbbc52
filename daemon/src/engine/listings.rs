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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// Where what is in a record of `struct linux_dirent64`: the length is the record's, the offset that behind it.
const INO_AT: usize = 0;
const OFFSET_AT: usize = 8;
const LENGTH_AT: usize = 16;
const TYPE_AT: usize = 18;
const NAME_AT: usize = 19;
/// Names in a sample, at most: of long ones fewer.
const SAMPLE: usize = 8;
/// The longest listing that is kept, in bytes.
const LISTING_MAX: usize = 1 << 20;
/// What is held of listings that are being read, in bytes, for all together.
const GATHERED_MAX: usize = 16 << 20;

/// All that a directory lists: records as getdents64(2) shows them.
pub(crate) struct Listing {
    /// Of the inode: another directory may get the number.
    instance: u64,
    records: Box<[u8]>,
    expiry: Instant,
    /// The last position behind which records were asked for next, and where they begin.
    last: Mutex<(u64, usize)>,
}

/// What was read of a directory so far, from its beginning on, without a gap.
pub(super) struct Gathering {
    /// Nothing was counted since then ([`Cache::mark`](crate::engine::cache::Cache::mark)), but by this reader.
    pub(super) mark: u64,
    /// Where it goes on.
    next: u64,
    records: Vec<u8>,
    /// What all gatherings hold: their capacities, in bytes.
    all: Arc<AtomicUsize>,
}

impl Gathering {
    /// Whether the records at a position are what comes next.
    pub(super) fn goes_on_at(&self, position: u64) -> bool {
        self.next == position
    }

    /// Adds records, behind which is the position `next`. `None` if that would be too much.
    pub(super) fn with(mut self, records: &[u8], next: u64) -> Option<Self> {
        if self.records.len() + records.len() > LISTING_MAX {
            return None;
        }
        let held = self.records.capacity();
        self.records.extend_from_slice(records);
        let more = self.records.capacity() - held;
        self.next = next;
        let others = self.all.fetch_add(more, Ordering::Relaxed);
        (others + more <= GATHERED_MAX).then_some(self)
    }

    /// All of them.
    pub(super) fn records(&self) -> &[u8] {
        &self.records
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.all.fetch_sub(self.records.capacity(), Ordering::Relaxed);
    }
}

impl Listing {
    /// The records behind a position, as many as fit into so many bytes, and whether those are all. `None` if no record ends
    /// there: only the file system knows what that means.
    pub(crate) fn page(&self, position: u64, size: usize) -> Option<(&[u8], bool)> {
        let begin = if position == 0 { 0 } else { self.behind(position)? };
        let rest = self.records.get(begin..)?;
        if rest.len() <= size {
            return Some((rest, true));
        }
        let (mut end, mut next) = (0, None);
        while let Some(len) = rest.get(end..).and_then(length)
            && end + len <= size
        {
            next = word(rest.get(end..)?, OFFSET_AT);
            end += len;
        }
        if let Some(next) = next {
            *self.last.lock() = (next, begin + end);
        }
        Some((rest.get(..end)?, false))
    }

    /// Where the records behind a position begin.
    fn behind(&self, position: u64) -> Option<usize> {
        let (last, begin) = *self.last.lock();
        if last == position {
            return Some(begin);
        }
        let mut begin = 0;
        loop {
            let record = self.records.get(begin..)?;
            begin += length(record)?;
            if word(record, OFFSET_AT)? == position {
                return Some(begin);
            }
        }
    }

    /// Some of the names, spread over the listing.
    pub(crate) fn sample(&self) -> impl Iterator<Item = &OsStr> {
        // A record takes 24 bytes at least.
        let every = self.records.len() / (SAMPLE * 24) + 1;
        let names = each(&self.records).step_by(every).filter_map(|record| {
            let name = record.get(NAME_AT..)?;
            Some(OsStr::from_bytes(name.split(|byte| *byte == 0).next()?))
        });
        names.filter(|name| *name != "." && *name != "..").take(SAMPLE)
    }
}

/// One record after another.
fn each(mut records: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (record, behind) = records.split_at_checked(length(records)?)?;
        records = behind;
        Some(record)
    })
}

/// The numbers of the regular files among what records list.
pub(super) fn regular_files(records: &[u8]) -> impl Iterator<Item = u64> {
    let is_regular = |record: &&[u8]| record.get(TYPE_AT) == Some(&libc::DT_REG);
    each(records).filter(is_regular).filter_map(|record| word(record, INO_AT))
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
    /// What is held of those that are being read, in bytes.
    gathered: Arc<AtomicUsize>,
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

    /// The beginning of a directory, of which nothing was read yet.
    pub(super) fn gather(&self, mark: u64) -> Gathering {
        Gathering { mark, next: 0, records: Vec::new(), all: Arc::clone(&self.gathered) }
    }

    /// Keeps all that a directory lists, if that is what it still lists.
    pub(super) fn keep(&self, directory: &Inode, records: &[u8], is_current: impl FnOnce() -> bool) {
        let (instance, expiry) = (directory.instance, Instant::now().after(KEPT_FOR));
        let listing = Arc::new(Listing { instance, records: records.into(), expiry, last: Mutex::default() });
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

    fn listing(records: &[u8]) -> Listing {
        Listing { instance: 1, records: records.into(), expiry: Instant::EXPIRED, last: Mutex::default() }
    }

    #[test]
    fn a_page_begins_behind_a_position_and_ends_between_records() {
        let records = [record(7, 24), record(3, 32), record(9, 24)].concat();
        let listing = listing(&records);
        assert_eq!(listing.page(0, 80), Some((&records[..], true)));
        assert_eq!(listing.page(0, 79), Some((&records[..56], false)));
        assert_eq!(listing.page(0, 23), Some((&[][..], false)), "not even one fits");
        assert_eq!(listing.page(7, 56), Some((&records[24..], true)));
        assert_eq!(listing.page(7, 40), Some((&records[24..56], false)));
        assert_eq!(listing.page(9, 100), Some((&[][..], true)));
        assert_eq!(listing.page(4, 100), None);
        // Once more, after a page that ended somewhere else.
        assert_eq!(listing.page(7, 40), Some((&records[24..56], false)));
        assert_eq!(listing.page(3, 24), Some((&records[56..], true)));
        assert_eq!(listing.page(7, 56), Some((&records[24..], true)));
    }

    #[test]
    fn a_listing_is_gathered_without_gaps_up_to_what_all_may_hold() {
        let listings = Listings::default();
        let record = record(5, 32);
        let gathering = listings.gather(0);
        assert!(gathering.goes_on_at(0));
        let gathering = gathering.with(&record, 5).unwrap();
        assert!(gathering.goes_on_at(5) && !gathering.goes_on_at(0));
        let gathering = gathering.with(&record, 6).unwrap();
        assert_eq!(gathering.records(), [&record[..], &record].concat());
        assert!(gathering.with(&vec![0; LISTING_MAX], 7).is_none(), "too long");
        assert_eq!(listings.gathered.load(Ordering::Relaxed), 0);
        let page = vec![0; LISTING_MAX];
        let full: Vec<_> =
            (0..GATHERED_MAX / LISTING_MAX).map(|_| listings.gather(0).with(&page, 1).unwrap()).collect();
        assert!(listings.gather(0).with(&record, 5).is_none(), "no room");
        drop(full);
        assert!(listings.gather(0).with(&record, 5).is_some());
        assert_eq!(listings.gathered.load(Ordering::Relaxed), 0);
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
            listing(&records).sample().map(|name| name.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of(0..0), Vec::<String>::new());
        assert_eq!(of(0..3), ["name-000", "name-001", "name-002"]);
        let many = of(3..800);
        assert!((5..=SAMPLE).contains(&many.len()), "{many:?}");
        assert!(many.last().unwrap().as_str() > "name-600", "{many:?}");
    }
}
