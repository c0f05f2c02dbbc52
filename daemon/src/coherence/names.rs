//! Which names the kernel may have in its cache: those of every entry that it was sent, whether something stands
//! there or nothing.
//!
//! Of each name a fingerprint of 46 bits is kept, in [`BYTES`] bytes, so that four million names take less than
//! 64 MiB. The hash is keyed at random for each mount, so that nobody can choose names that collide; names that
//! collide cost an invalidation that was not needed. A name that is missing would show a program an old answer,
//! which is why a fingerprint goes only when the kernel has dropped the name, and only if it was entered once: what
//! was entered twice may stand for two names, or for an entry that is on its way.
//!
//! *A reply that is overtaken.* The kernel's question may be answered from before a change, and the answer sent after
//! it. So a change first happens, then takes the next number of the clock, then is noted in the name's shard,
//! where it sees all names entered so far; and an answer is entered in the shard first, together with a look at the number
//! of the last change there, which the kernel may not cache if it is greater than the clock was when the question
//! came.
//!
//! *A file that is being made.* The kernel may get to know a file that the bypass has just created before the daemon knows
//! that it is there, and open it: the change says how the file will be open, and inodes that the kernel is sent by its
//! name meanwhile are reserved for that, until the change ends.
//!
//! *Whose name it is.* Who removes a name needs its inode only if the kernel knows the name, and asks for that before.
//! What the kernel learns from then on until the name is gone, the change is told when it [ends](Names::end).

use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{Mutex, MutexGuard};

use super::Padded;

/// Of the hash the upper bits choose the shard, the lower ones are the fingerprint.
const SHARD_BITS: u32 = 8;
/// Bytes of a fingerprint.
const BYTES: usize = 6;
/// The name was entered more than once.
const SHARED: u64 = 1 << 47;
/// The kernel was told to ask before it uses the name again, and goes on to have it until it forgets the inode.
const EXPIRED: u64 = 1 << 46;
const FINGERPRINT: u64 = EXPIRED - 1;
/// The most fingerprints in one shard: as many as 32 768 buckets hold. All shards together hold seven million.
pub(super) const ROOM: usize = 28_672;

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Key {
    fn fingerprint(self) -> u64 {
        self.0 & FINGERPRINT
    }
}

/// A fingerprint, and whether it is [`SHARED`] and [`EXPIRED`].
#[derive(Clone, Copy)]
struct Print([u8; BYTES]);

impl Print {
    fn new(bits: u64) -> Self {
        let [a, b, c, d, e, f, ..] = bits.to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    fn bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }

    fn is(self, key: Key) -> bool {
        self.bits() & FINGERPRINT == key.fingerprint()
    }
}

/// Where a fingerprint goes in the table, which looks at the upper bits, too.
fn spread(fingerprint: u64) -> u64 {
    fingerprint.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What stands at a name that the kernel is to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stands {
    /// Nothing.
    #[default]
    Nothing,
    /// This inode.
    Inode(u64),
    /// An inode that the kernel knows already.
    Some,
}

/// What became of a name that the kernel is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It may be cached.
    Current,
    /// It has changed since the kernel asked.
    Overtaken,
    /// There is no room for it.
    Full,
}

/// Keeps the kernel from opening an inode in a way that the open file that is being made does not get on with. Says whether
/// that is to be taken back in the end.
pub(super) type Reserve<'a> = &'a dyn Fn(u64, Creation) -> bool;

/// How a file that is being made will be open on the bypass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creation {
    /// Virtually.
    Virtual,
    /// It is granted for writing.
    Granted,
}

/// What the kernel knew of a name that has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// It may have it in its cache.
    pub(super) named: bool,
    /// It was sent it by one answer, to a question that the directory's lock was held for.
    pub(super) once: bool,
    /// What it was sent while the change was under way.
    pub(super) sent: Stands,
    /// How often all names had been forgotten.
    pub(super) age: u64,
    /// The inodes that were reserved for the change.
    pub(super) reserved: Vec<u64>,
}

/// A change that is under way.
struct Change {
    key: Key,
    ticket: u64,
    /// The name was entered on account of this change.
    expected: bool,
    creation: Option<Creation>,
    sent: Stands,
    reserved: Vec<u64>,
}

#[derive(Default)]
struct Shard {
    /// The number of the last change.
    changed: u64,
    prints: HashTable<Print>,
    under_way: Vec<Change>,
}

impl Shard {
    fn find(&self, key: Key) -> Option<Print> {
        self.prints.find(spread(key.fingerprint()), |print| print.is(key)).copied()
    }

    /// The kernel is to know what stands at a name: notes that for changes that are under way.
    fn sends(&mut self, key: Key, stands: Stands, reserve: Reserve<'_>) {
        for change in self.under_way.iter_mut().filter(|change| change.key == key) {
            if let (Some(creation), Stands::Inode(ino)) = (change.creation, stands)
                && !change.reserved.contains(&ino)
                && reserve(ino, creation)
            {
                change.reserved.push(ino);
            }
            if stands != Stands::Nothing {
                change.sent = stands;
            }
        }
    }

    /// Enters a name; false if there is no room.
    fn enter(&mut self, key: Key, room: usize) -> bool {
        if self.prints.len() >= room && self.find(key).is_none() {
            return false;
        }
        let hash = spread(key.fingerprint());
        let rehash = |print: &Print| spread(print.bits() & FINGERPRINT);
        match self.prints.entry(hash, |print| print.is(key), rehash) {
            Entry::Occupied(mut there) => *there.get_mut() = Print::new(there.get().bits() | SHARED),
            Entry::Vacant(free) => drop(free.insert(Print::new(key.fingerprint()))),
        }
        true
    }

    /// Takes a name out if it has these flags and no other.
    fn remove(&mut self, key: Key, flags: u64) {
        let hash = spread(key.fingerprint());
        if let Ok(entry) = self.prints.find_entry(hash, |print| print.is(key))
            && entry.get().bits() & !FINGERPRINT == flags
        {
            entry.remove();
        }
    }

    fn expire(&mut self, key: Key) {
        let hash = spread(key.fingerprint());
        if let Some(print) = self.prints.find_mut(hash, |print| print.is(key)) {
            *print = Print::new(print.bits() | EXPIRED);
        }
    }
}

/// The names of one mount that the kernel may have cached.
pub(super) struct Names {
    hasher: DefaultHashBuilder,
    /// The most fingerprints in one shard.
    room: usize,
    shards: Box<[Padded<Mutex<Shard>>]>,
    /// How often all names were forgotten; changes under the locks of all shards.
    age: AtomicU64,
}

impl Names {
    /// No names, and room for so many in each of the 256 shards.
    pub(super) fn new(room: usize) -> Self {
        let shards = (0..1 << SHARD_BITS).map(|_| Padded::default()).collect();
        Self { hasher: DefaultHashBuilder::default(), room, shards, age: AtomicU64::new(0) }
    }

    pub(super) fn key(&self, parent: u64, name: &OsStr) -> Key {
        Key(self.hasher.hash_one((parent, name.as_bytes())))
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        self.shards[(key.0 >> (u64::BITS - SHARD_BITS)) as usize].0.lock()
    }

    /// The kernel is about to be sent the name, as it was asked for when the clock showed `mark`. `reserve` is called under the
    /// lock of the name's shard, for a name that is being [created](Self::create).
    pub(super) fn enter(&self, key: Key, stands: Stands, mark: u64, reserve: Reserve<'_>) -> Entered {
        let mut shard = self.shard(key);
        shard.sends(key, stands, reserve);
        let entered = shard.enter(key, self.room);
        if stands == Stands::Some {
            // What is moved brings along what is on its way to it.
            shard.enter(key, self.room);
        }
        match entered {
            false => Entered::Full,
            true if shard.changed > mark => Entered::Overtaken,
            true => Entered::Current,
        }
    }

    /// The kernel is about to open what stands at the name, of which it is [sent](Self::enter) the name then.
    pub(super) fn sends(&self, key: Key, stands: Stands, reserve: Reserve<'_>) {
        self.shard(key).sends(key, stands, reserve);
    }

    /// The name is about to change: whether the kernel may have it in its cache. With `expects` the name counts as the
    /// kernel's from now on; `None` if there is no room for that.
    pub(super) fn begin(&self, key: Key, ticket: u64, expects: bool) -> Option<bool> {
        self.note(key, ticket, expects, None)
    }

    /// As [`begin`](Self::begin), of a name at which a file is made and opened.
    pub(super) fn create(&self, key: Key, ticket: u64, creation: Creation) -> Option<bool> {
        self.note(key, ticket, false, Some(creation))
    }

    fn note(&self, key: Key, ticket: u64, expects: bool, creation: Option<Creation>) -> Option<bool> {
        let mut shard = self.shard(key);
        let named = shard.find(key).is_some();
        let fits = !expects || named || shard.enter(key, self.room);
        shard.under_way.push(Change {
            key,
            ticket,
            expected: expects && !named && fits,
            creation,
            sent: Stands::Nothing,
            reserved: Vec::new(),
        });
        fits.then_some(named)
    }

    /// The change that began with this ticket is over; `now` is its number, if it has happened. With `keeps` a name that
    /// was expected goes on to count as the kernel's.
    pub(super) fn end(&self, key: Key, ticket: u64, now: Option<u64>, keeps: bool) -> Known {
        let mut shard = self.shard(key);
        shard.changed = shard.changed.max(now.unwrap_or(0));
        let print = shard.find(key);
        let age = self.age.load(Ordering::Relaxed);
        let Some(at) = shard.under_way.iter().position(|change| change.ticket == ticket) else {
            return Known { named: print.is_some(), age, ..Known::default() };
        };
        let change = shard.under_way.swap_remove(at);
        let ours_alone = change.expected && print.is_some_and(|print| print.bits() & !FINGERPRINT == 0);
        if ours_alone && !keeps {
            shard.remove(key, 0);
        }
        let named = print.filter(|_| !ours_alone);
        let once = named.is_some_and(|print| print.bits() & !FINGERPRINT == 0);
        Known { named: named.is_some(), once, sent: change.sent, age, reserved: change.reserved }
    }

    /// The kernel has dropped the name that it had when names were of this age.
    pub(super) fn dropped(&self, key: Key, age: u64) {
        let mut shard = self.shard(key);
        if self.age.load(Ordering::Relaxed) == age {
            shard.remove(key, 0);
        }
    }

    /// The name has expired. It goes when its inode is [forgotten](Self::forgotten), and not before: what the kernel is sent by the
    /// same name until then counts as sent twice, so that no FORGET of the one takes out the other.
    pub(super) fn expired(&self, key: Key) {
        self.shard(key).expire(key);
    }

    /// The kernel has forgotten the inode of a name that had expired when names were of this age.
    pub(super) fn forgotten(&self, key: Key, age: u64) {
        let mut shard = self.shard(key);
        if self.age.load(Ordering::Relaxed) == age {
            shard.remove(key, EXPIRED);
        }
    }

    /// Forgets all names, if the kernel does: `epoch` is called while nobody can enter a name.
    pub(super) fn start_over(&self, epoch: impl FnOnce() -> bool) -> bool {
        let mut shards: Vec<_> = self.shards.iter().map(|shard| shard.0.lock()).collect();
        let forgotten = epoch();
        if forgotten {
            shards.iter_mut().for_each(|shard| shard.prints = HashTable::new());
            self.age.fetch_add(1, Ordering::Relaxed);
        }
        forgotten
    }

    /// How many names there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().prints.len()).sum()
    }

    /// How many bytes the names take.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().prints.allocation_size()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_FILE: Reserve<'static> = &|_, _| unreachable!("nothing is created");

    fn key(names: &Names, number: u64) -> Key {
        names.key(number / 1000, OsStr::new(&number.to_string()))
    }

    fn has(names: &Names, key: Key) -> bool {
        let named = names.begin(key, u64::MAX, false);
        names.end(key, u64::MAX, None, false);
        named == Some(true)
    }

    #[test]
    fn four_million_names_are_all_found_and_take_less_than_64_mebibytes() {
        let names = Names::new(ROOM);
        for number in 0..4_000_000 {
            assert_eq!(names.enter(key(&names, number), Stands::Inode(1), 0, NO_FILE), Entered::Current);
        }
        assert!(names.bytes() <= 64 << 20, "{} bytes", names.bytes());
        assert!((0..4_000_000).all(|number| has(&names, key(&names, number))));
        let wrong = (4_000_000..5_000_000).filter(|number| has(&names, key(&names, *number))).count();
        assert!(wrong < 10, "{wrong} of a million other names seem to be known");
    }

    #[test]
    fn a_name_goes_when_the_kernel_has_dropped_it_unless_it_was_entered_twice() {
        let names = Names::new(ROOM);
        let (once, twice) = (key(&names, 1), key(&names, 2));
        for key in [once, twice, twice] {
            names.enter(key, Stands::Nothing, 0, NO_FILE);
        }
        names.dropped(once, 0);
        names.dropped(twice, 0);
        assert!(!has(&names, once) && has(&names, twice));
    }

    #[test]
    fn an_expired_name_goes_with_its_inode_unless_it_was_sent_again() {
        let names = Names::new(ROOM);
        let (gone, again) = (key(&names, 1), key(&names, 2));
        for key in [gone, again] {
            names.enter(key, Stands::Inode(5), 0, NO_FILE);
            names.expired(key);
            names.dropped(key, 0);
            assert!(has(&names, key), "its inode is not forgotten yet");
        }
        names.enter(again, Stands::Inode(6), 0, NO_FILE);
        for key in [gone, again] {
            names.forgotten(key, 0);
        }
        assert!(!has(&names, gone) && has(&names, again));
    }

    #[test]
    fn an_answer_that_a_change_has_overtaken_may_not_be_cached() {
        let names = Names::new(ROOM);
        let key = key(&names, 1);
        names.begin(key, 1, false);
        assert_eq!(names.end(key, 1, Some(8), false), Known::default());
        assert_eq!(names.enter(key, Stands::Inode(5), 7, NO_FILE), Entered::Overtaken);
        assert!(has(&names, key), "the kernel knows the inode by this name even so");
        assert_eq!(names.enter(key, Stands::Inode(5), 8, NO_FILE), Entered::Current);
    }

    #[test]
    fn a_change_hears_of_the_inode_that_the_kernel_gets_meanwhile() {
        let names = Names::new(ROOM);
        let key = key(&names, 1);
        assert_eq!(names.begin(key, 1, false), Some(false));
        names.enter(key, Stands::Inode(5), 0, NO_FILE);
        names.enter(key, Stands::Nothing, 0, NO_FILE);
        let sent_twice = Known { named: true, sent: Stands::Inode(5), ..Known::default() };
        assert_eq!(names.end(key, 1, Some(1), false), sent_twice);
        names.begin(key, 2, false);
        assert_eq!(names.end(key, 2, None, false), Known { sent: Stands::Nothing, ..sent_twice });
    }

    #[test]
    fn what_the_kernel_is_sent_by_the_name_of_a_file_that_is_made_is_reserved_once_until_the_end() {
        let names = Names::new(ROOM);
        let key = key(&names, 1);
        let reserved = std::cell::RefCell::default();
        let reserve: Reserve<'_> = &|ino, creation| {
            Vec::push(&mut reserved.borrow_mut(), (ino, creation));
            ino != 6
        };
        names.create(key, 1, Creation::Granted);
        names.enter(key, Stands::Nothing, 0, reserve);
        names.sends(key, Stands::Inode(5), reserve);
        names.enter(key, Stands::Inode(5), 0, reserve);
        names.enter(key, Stands::Inode(6), 0, reserve);
        assert_eq!(names.end(key, 1, Some(1), false).reserved, [5], "of 6 nothing is to be taken back");
        names.enter(key, Stands::Inode(7), 0, reserve);
        assert_eq!(reserved.into_inner(), [(5, Creation::Granted), (6, Creation::Granted)]);
    }

    #[test]
    fn a_name_was_sent_once_unless_another_answer_may_be_on_its_way() {
        let names = Names::new(ROOM);
        let once = |number: u64, stands: &[Stands]| {
            let key = key(&names, number);
            for stands in stands {
                names.enter(key, *stands, 0, NO_FILE);
            }
            names.begin(key, number, false);
            names.end(key, number, Some(1), false).once
        };
        assert!(!once(1, &[]) && once(2, &[Stands::Inode(5)]));
        assert!(!once(3, &[Stands::Inode(5), Stands::Inode(5)]));
        assert!(!once(4, &[Stands::Some]), "an answer may come along with what is moved");
    }

    #[test]
    fn an_expected_name_is_not_taken_for_one_that_the_kernel_has() {
        let names = Names::new(ROOM);
        let key = key(&names, 1);
        assert_eq!(names.begin(key, 1, true), Some(false));
        assert!(has(&names, key), "for others it counts");
        assert!(!names.end(key, 1, Some(1), true).named);
        assert!(has(&names, key));
        names.dropped(key, 0);
        assert_eq!(names.begin(key, 2, true), Some(false));
        names.end(key, 2, Some(2), false);
        assert!(!has(&names, key));
        assert_eq!(names.begin(key, 3, true), Some(false));
        names.enter(key, Stands::Inode(5), 2, NO_FILE);
        assert!(names.end(key, 3, Some(3), false).named);
    }

    #[test]
    fn a_full_filter_takes_no_name_until_all_are_forgotten() {
        let names = Names::new(20);
        let full = (0..u64::MAX)
            .find(|number| names.enter(key(&names, *number), Stands::Nothing, 0, NO_FILE) == Entered::Full);
        let full = key(&names, full.unwrap());
        assert!((20..=20 << SHARD_BITS).contains(&names.len()), "{}", names.len());
        assert!(!names.start_over(|| false) && !has(&names, full));
        assert_eq!(names.begin(full, 1, true), None);
        assert!(!names.end(full, 1, None, true).named);
        assert!(names.start_over(|| true));
        assert_eq!(names.len(), 0);
        assert_eq!(names.enter(full, Stands::Nothing, 0, NO_FILE), Entered::Current);
        names.dropped(full, 0);
        assert!(has(&names, full), "another one was dropped");
        names.dropped(full, 1);
        assert!(!has(&names, full));
    }
}
