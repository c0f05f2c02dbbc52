//! The metadata table of a mount: names and attributes that clients look up without a round trip.
//!
//! It lies in one memfd that the daemon alone writes and every client maps read-only. Everything in it is an atomic word, so that
//! readers may race with the writer without undefined behaviour; everything here is generic over the atomics, so that `loom`
//! runs the very code.
//!
//! ```text
//! 0        header: magic, version, seed, generation, what is lent, whether the daemon lives
//! 512      sets of names   (parent, name) → (node id, type), or "does not exist"
//! …        sets of attributes  node id → the fields of `struct stat`, and the extended attributes that are not there
//! …        sets of link targets  node id → a short symbolic link's target
//! …        sets of marks   node id → "all names of this directory are in the table", and
//!                          node id → the directory that this one is in, perhaps, and its name there
//! ```
//!
//! *A set* is a line of tags, a lock and a clock hand that only the daemon uses, and [`WAYS`] entries: what is not in the table
//! costs one cache line to find out, whoever looks. The CLOCK algorithm evicts within the set. Readers cannot set its bits, as they
//! cannot write: an entry counts as used when it is published again.
//!
//! *An entry* begins with its seqlock word: a sequence number, odd while the entry is written, and in the upper half the
//! [`Expiry`]. Readers load every word with acquire ordering and the writer stores with release ordering. So whoever has seen any
//! word of a later version finds another sequence number, without a fence.
//!
//! *Generation.* Every entry carries the number of the table's [`Generation`]. A new one takes all entries out at once.
//!
//! *Growth.* At first only the first sets of each kind are used, so that a few thousand names lie close together: what is looked at is in
//! the caches, and no page is touched for a single entry. When entries are evicted, a new generation uses four times as many sets.
//!
//! *Changes.* What must not be published any more is counted by the daemon before it is taken out. [`Table::publish_name`] and
//! its like show the tag first, then ask whether anything has been counted, and only then end the write. So either the
//! publisher hears of the change, or whoever changes finds the tag, and takes the entry out under the set's lock ([`write`]).
//! Both must read and modify the same count for that.

mod absent;
mod walk;
mod write;

use std::ops::Range;
use std::sync::atomic::Ordering;

pub use self::absent::AbsentXattrs;
pub use self::walk::{Clock, InDirectory, Walked};
use crate::frame::{Attr, Time};
use crate::ring::Atomic;

/// Marks a table of ours ("FINTABLE", little endian).
pub const MAGIC: u64 = u64::from_le_bytes(*b"FINTABLE");
/// Entries in a set.
pub const WAYS: usize = 8;
/// Longest name in the table, in bytes.
pub const NAME_MAX: usize = 32;
/// Longest target of a symbolic link in the table, in bytes.
pub const TARGET_MAX: usize = (WIDE - 3) * 8;
/// Smallest table, in bytes.
pub const BYTES_MIN: usize = 1 << 20;
/// Largest table, in bytes.
pub const BYTES_MAX: usize = 1 << 36;

/// Words of a cache line.
const LINE: usize = 8;
/// Words of a name's entry, and of a mark's.
const NARROW: usize = 8;
/// Words of the entry of attributes, and of a target.
const WIDE: usize = 16;
/// Words of the header: one page.
const HEADER: usize = 512;
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const SEED_AT: usize = 2;
const GENERATION_AT: usize = LINE;
/// The number of a [`Lending`].
const LENDING_AT: usize = LINE + 1;
/// Entries that were evicted in this generation; the daemon's.
const EVICTED_AT: usize = 3 * LINE;
/// The word whose lower half is a robust futex that a thread of the daemon's holds (set_robust_list(2)).
pub const HOLDER_AT: usize = 2 * LINE;
/// The thread in a futex word (`FUTEX_TID_MASK`): the kernel takes it out when the thread ends.
const HOLDER: u64 = 0x3fff_ffff;
/// Sets of names for each set of targets, and of marks.
const NAMES_PER_RARE: usize = 8;
/// At least so many sets of targets are used: about 1 MiB of everything.
const RARE_MIN: usize = 64;
/// How many times as many sets are used after the table has grown, as a power of two.
const GROWTH: u32 = 2;
/// After one eviction per so many sets of names it is looked whether the table should grow.
const SETS_PER_EVICTION: u64 = 32;
/// It should if more entries are in the average set: of those that are put into sets by chance, one in a hundred finds its own full then.
const FULL: usize = 4;
/// Most bytes of sets in use whose entries move when it grows: that takes a tenth of a second.
const MOVED_MAX: usize = 64 << 20;
/// So many sets tell the average, to a fortieth.
const SAMPLES: usize = 256;

const SET_NARROW: usize = LINE + WAYS * NARROW;
const SET_WIDE: usize = LINE + WAYS * WIDE;

/// Word of a set that is locked.
const LOCK: usize = 4;
/// Word of a set with the clock's hand (8 bits) and the bits of what was used (8 bits).
const CLOCK: usize = 5;

const _: () = {
    assert!(size_of::<Attr>() == 96 && WAYS == 8 && LINE * 8 == 64);
    assert!(
        HOLDER_AT < HEADER
            && EVICTED_AT < HEADER
            && SET_NARROW.is_multiple_of(LINE)
            && SET_WIDE.is_multiple_of(LINE)
    );
    assert!(NAME_MAX == 8 * 4 && TARGET_MAX == 104);
};

/// When an entry ends: by the coarse monotonic clock, in units of 2^24 ns (17 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(u32);

impl Expiry {
    /// It does not end by itself.
    pub const NEVER: Self = Self(u32::MAX);

    /// The last moment that can be told, at or before a time in nanoseconds.
    pub fn at(nanoseconds: u64) -> Self {
        Self(u32::try_from(nanoseconds >> 24).map_or(u32::MAX - 1, |units| units.min(u32::MAX - 1)))
    }
}

/// What is in the table at a time: the entries of one number, in so many sets. It tells besides how often everything was taken out
/// because it might be wrong, and whether the table grows at the moment: then nothing is in it. The default one is no table's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(u64);

impl Generation {
    const NUMBER_BITS: u32 = 32;
    const GROWTHS_BITS: u32 = 4;
    /// The table grows.
    const MOVING: u64 = 1 << (Self::NUMBER_BITS + Self::GROWTHS_BITS);
    const ERA_SHIFT: u32 = Self::NUMBER_BITS + Self::GROWTHS_BITS + 1;
    /// The last number: the table ends with it, because entries of the first ones may still be there.
    const LAST: u32 = u32::MAX;

    /// The first one, of a table that can grow so many times.
    fn first(growths: u32) -> Self {
        Self(1 | u64::from(growths) << Self::NUMBER_BITS)
    }

    /// The number that its entries carry.
    #[inline]
    pub(crate) fn number(self) -> u32 {
        self.0 as u32
    }

    /// How many times the table can grow.
    #[inline]
    pub fn growths(self) -> u32 {
        (self.0 >> Self::NUMBER_BITS) as u32 & ((1 << Self::GROWTHS_BITS) - 1)
    }

    /// How often everything was taken out because it might be wrong, up to 2^27. Unlike the number it is the same after growth.
    #[inline]
    pub fn era(self) -> u32 {
        (self.0 >> Self::ERA_SHIFT) as u32
    }

    /// Whether the table grows: what was in it is on its way.
    #[inline]
    pub(crate) fn is_moving(self) -> bool {
        self.0 & Self::MOVING != 0
    }

    fn of(number: u32, growths: u32, era: u32) -> Self {
        let growths = u64::from(growths) << Self::NUMBER_BITS;
        Self(u64::from(number) | growths | u64::from(era) << Self::ERA_SHIFT)
    }

    /// The one after everything was taken out; `None` if there is none. It skips the number that has been given to entries on their way.
    fn renewed(self) -> Option<Self> {
        let numbers = if self.is_moving() { 2 } else { 1 };
        let number = self.number().checked_add(numbers).filter(|number| *number < Self::LAST)?;
        let era = self.era() + 1;
        (era >> (64 - Self::ERA_SHIFT) == 0).then(|| Self::of(number, self.growths(), era))
    }

    /// The one while the table grows, and the one afterwards; `None` if it cannot.
    fn growing(self) -> Option<(Self, Self)> {
        let growths = self.growths().checked_sub(1).filter(|_| !self.is_moving())?;
        let number = self.number().checked_add(2).filter(|number| *number < Self::LAST)?;
        let moving = Self::of(number - 1, growths, self.era()).0 | Self::MOVING;
        Some((Self(moving), Self::of(number, growths, self.era())))
    }
}

/// Which files clients may open to read by themselves, in directories that were lent to them
/// ([`crate::frame::Op::Lend`]): there, reading changes no time of last access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Lending {
    /// None.
    #[default]
    Nothing = 0,
    /// Those whose time of last access reading would not change elsewhere, either, as `relatime` decides.
    Unchanged = 1,
    /// Any: reading never changes it.
    Everything = 2,
}

impl Lending {
    fn from_word(word: u64) -> Self {
        match word {
            1 => Self::Unchanged,
            2 => Self::Everything,
            _ => Self::Nothing,
        }
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Nothing: the name does not exist.
    Absent = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// Anything else.
    Other = 3,
}

impl Kind {
    fn from_bits(bits: u64) -> Self {
        match bits {
            0 => Self::Absent,
            1 => Self::Directory,
            2 => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// Sets of one kind of entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sets {
    /// First word.
    start: usize,
    /// How many sets.
    count: usize,
}

impl Sets {
    /// How many sets a generation uses.
    #[inline]
    fn used(self, generation: Generation) -> usize {
        self.count >> (GROWTH * generation.growths())
    }
}

/// Where everything lies in a table of a certain size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    names: Sets,
    attrs: Sets,
    links: Sets,
    marks: Sets,
    /// What hashes begin with.
    seed: u64,
}

impl Shape {
    /// How many times a table that is new can grow.
    fn growths(&self) -> u32 {
        let times = |growths: &u32| self.marks.count >> (GROWTH * growths) >= RARE_MIN;
        (1..1 << Generation::GROWTHS_BITS).take_while(times).count() as u32
    }

    /// The shape of a table of so many bytes, which both sides compute alike.
    fn of(bytes: usize, seed: u64) -> Self {
        // For each set of names one of attributes; fewer of the others.
        let group = NAMES_PER_RARE * (SET_NARROW + SET_WIDE) + SET_WIDE + SET_NARROW;
        let rare = ((bytes / 8).saturating_sub(HEADER) / group).max(1);
        let common = rare * NAMES_PER_RARE;
        let names = Sets { start: HEADER, count: common };
        let attrs = Sets { start: names.start + common * SET_NARROW, count: common };
        let links = Sets { start: attrs.start + common * SET_WIDE, count: rare };
        let marks = Sets { start: links.start + rare * SET_WIDE, count: rare };
        Self { names, attrs, links, marks, seed }
    }
}

/// A table: its words, and where everything lies among them.
#[derive(Debug)]
pub struct Table<'t, A> {
    words: &'t [A],
    shape: Shape,
}

impl<A> Clone for Table<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Table<'_, A> {}

/// A multiplication whose halves are put together: every bit of the factors decides about every bit of the result.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

const MIX: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];

/// How a name is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    generation: Generation,
    parent: u64,
    /// The generation's number (32 bits) and the name's length (8 bits).
    head: u64,
    /// The name, padded with zeros.
    name: [u64; 4],
    hash: u64,
}

/// The bits of a name's head that are the kind's.
const KIND_SHIFT: u32 = 56;
const KIND: u64 = 0xff << KIND_SHIFT;

/// Up to eight bytes as a number, the first one lowest. Does without a copy in memory, whose bytes could not be read as a word at once.
#[inline]
fn word_of(bytes: &[u8]) -> u64 {
    let four = |bytes: &[u8; 4]| u64::from(u32::from_le_bytes(*bytes));
    match (bytes.first_chunk(), bytes.first_chunk(), bytes.last_chunk()) {
        (Some(all), _, _) => u64::from_le_bytes(*all),
        // They may overlap.
        (None, Some(first), Some(last)) => four(first) | four(last) << (8 * (bytes.len() - 4)),
        _ => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// An entry as it was seen: what was read of it held while its seqlock word stays as it is.
#[derive(Debug)]
struct Seen<'t, A> {
    seqlock: &'t A,
    was: u64,
}

impl<A: Atomic<u64>> Seen<'_, A> {
    /// Whether nobody has written to it since it was read.
    #[inline]
    fn is_unchanged(&self) -> bool {
        self.seqlock.load(Ordering::Acquire) == self.was
    }

    #[inline]
    fn expiry(&self) -> Expiry {
        Expiry((self.was >> 32) as u32)
    }
}

/// What came of looking for an entry.
#[derive(Debug)]
enum Looked<'t, A, R> {
    /// What was read of it.
    Found(Seen<'t, A>, R),
    /// It was not there all the time.
    Missing,
    /// Somebody writes.
    Unclear,
}

/// The tag of a hash: never 0, which says that there is no entry.
#[inline]
fn tag(hash: u64) -> u32 {
    hash as u32 | 1
}

impl<'t, A: Atomic<u64>> Table<'t, A> {
    /// The table in these words; `None` if they hold none of this version.
    pub fn new(words: &'t [A], version: u32) -> Option<Self> {
        let word = |at: usize| words.get(at).map(|word| word.load(Ordering::Acquire));
        if word(MAGIC_AT)? != MAGIC || word(VERSION_AT)? != u64::from(version) {
            return None;
        }
        Some(Self { words, shape: Shape::of(words.len() * 8, word(SEED_AT)?) })
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The table in words that were found to hold one of this shape.
    #[inline]
    pub fn again(words: &'t [A], shape: Shape) -> Self {
        Self { words, shape }
    }

    /// The bytes of the table that the present generation uses, besides its header.
    pub fn used_bytes(&self) -> [Range<usize>; 4] {
        self.used_bytes_of(self.generation())
    }

    fn used_bytes_of(&self, generation: Generation) -> [Range<usize>; 4] {
        let shape = self.shape;
        let of = |sets: Sets, set: usize| {
            let words = sets.start..sets.start + sets.used(generation) * set;
            words.start * size_of::<u64>()..words.end * size_of::<u64>()
        };
        [
            of(shape.names, SET_NARROW),
            of(shape.attrs, SET_WIDE),
            of(shape.links, SET_WIDE),
            of(shape.marks, SET_NARROW),
        ]
    }

    /// The generation of what is good.
    #[inline]
    pub fn generation(&self) -> Generation {
        Generation(self.words[GENERATION_AT].load(Ordering::Acquire))
    }

    /// Whether the daemon lives and keeps the table.
    #[inline]
    pub fn is_kept(&self) -> bool {
        self.words[HOLDER_AT].load(Ordering::Acquire) & HOLDER != 0
    }

    /// What clients may open by themselves.
    #[inline]
    pub fn lending(&self) -> Lending {
        Lending::from_word(self.words[LENDING_AT].load(Ordering::Acquire))
    }

    /// How a name is looked for in a generation; `None` if it is too long to be in the table, or empty.
    #[inline]
    pub fn key(&self, generation: Generation, parent: u64, name: &[u8]) -> Option<Key> {
        if name.is_empty() || name.len() > NAME_MAX {
            return None;
        }
        let (head, mut hash) = self.begin_key(generation, parent, name.len());
        let mut words = [0; 4];
        for (word, part) in words.iter_mut().zip(name.chunks(8)) {
            *word = word_of(part);
            hash = fold(hash ^ *word, MIX[1]);
        }
        Some(Key { generation, parent, head, name: words, hash })
    }

    /// As [`key`](Self::key) for a name that was one before.
    fn key_again(&self, generation: Generation, parent: u64, len: usize, name: [u64; 4]) -> Key {
        let (head, hash) = self.begin_key(generation, parent, len);
        let hash = name.iter().take(len.div_ceil(8)).fold(hash, |hash, word| fold(hash ^ word, MIX[1]));
        Key { generation, parent, head, name, hash }
    }

    /// A key's head, and what its hash begins with.
    #[inline]
    fn begin_key(&self, generation: Generation, parent: u64, len: usize) -> (u64, u64) {
        let (number, len) = (u64::from(generation.number()), (len as u64) << 32);
        let begin = u64::from(generation.era()) | len;
        (number | len, fold(fold(self.shape.seed ^ parent, MIX[0]) ^ begin, MIX[1]))
    }

    /// The same after growth, so that what is in a set lies in neighbouring ones then.
    #[inline]
    fn hash_of(&self, generation: Generation, ino: u64) -> u64 {
        fold(fold(self.shape.seed ^ ino, MIX[0]) ^ u64::from(generation.era()), MIX[1])
    }

    /// Of where a directory may be.
    #[inline]
    fn hash_of_parent(&self, generation: Generation, directory: u64) -> u64 {
        fold(self.hash_of(generation, directory), MIX[0])
    }

    #[inline]
    fn set(&self, generation: Generation, sets: Sets, hash: u64, words: usize) -> &'t [A] {
        let index = (((hash >> 32) * sets.used(generation) as u64) >> 32) as usize;
        &self.words[sets.start + index * words..][..words]
    }

    /// Looks for an entry of which `read` makes something, if it is the one.
    #[inline(always)]
    fn find<const W: usize, R>(
        &self,
        generation: Generation,
        sets: Sets,
        hash: u64,
        read: impl Fn(&[A; W]) -> Option<R>,
    ) -> Looked<'t, A, R> {
        let set = self.set(generation, sets, hash, LINE + WAYS * W);
        let tag = tag(hash);
        let mut from = 0;
        while let Some(way) = way_with(set, tag, from) {
            from = way + 1;
            let Some(cells) = set[LINE + way * W..].first_chunk::<W>() else { break };
            match read_entry(cells, &read) {
                None => return Looked::Unclear,
                Some((seen, Some(what))) => return Looked::Found(seen, what),
                Some((_, None)) => {}
            }
        }
        Looked::Missing
    }

    /// Looks a name up: what it stands for.
    #[inline]
    fn find_name(&self, key: &Key) -> Looked<'t, A, (Kind, u64)> {
        self.find(key.generation, self.shape.names, key.hash, |cells: &[A; NARROW]| {
            let word = |at: usize| cells[at].load(Ordering::Acquire);
            let head = word(2);
            // Without a branch for each word.
            let mut differ = (word(1) ^ key.parent) | ((head & !KIND) ^ key.head);
            for (at, part) in key.name.iter().enumerate() {
                differ |= word(3 + at) ^ part;
            }
            (differ == 0).then(|| (Kind::from_bits(head >> KIND_SHIFT), word(7)))
        })
    }

    /// Whether a name is in the table, whatever it stands for.
    pub fn holds(&self, key: &Key) -> bool {
        matches!(self.find_name(key), Looked::Found(..))
    }

    /// Where a directory was once: the name that stood for it.
    fn find_parent(&self, generation: Generation, directory: u64) -> Looked<'t, A, Key> {
        let hash = self.hash_of_parent(generation, directory);
        self.find(generation, self.shape.marks, hash, |cells: &[A; NARROW]| {
            let words: [u64; NARROW] = std::array::from_fn(|at| cells[at].load(Ordering::Acquire));
            is_parent_of(&words, generation, directory).then(|| {
                let [_, _, head, parent, one, two, three, four] = words;
                self.key_again(generation, parent, name_len(head), [one, two, three, four])
            })
        })
    }

    /// Whether a directory is said to be found under this name.
    pub fn holds_parent(&self, key: &Key, directory: u64) -> bool {
        match self.find_parent(key.generation, directory) {
            Looked::Found(_, known) => {
                (known.parent, known.head, known.name) == (key.parent, key.head, key.name)
            }
            Looked::Missing | Looked::Unclear => false,
        }
    }

    /// Whether a directory is marked complete.
    pub fn is_marked(&self, generation: Generation, directory: u64) -> bool {
        matches!(self.find_mark(generation, directory), Looked::Found(..))
    }

    /// Looks the entry of a node id's attributes up, of which `read` makes something.
    #[inline(always)]
    fn find_attr<R>(
        &self,
        generation: Generation,
        ino: u64,
        read: impl Fn(&[A; WIDE]) -> R,
    ) -> Looked<'t, A, R> {
        self.find(generation, self.shape.attrs, self.hash_of(generation, ino), |cells: &[A; WIDE]| {
            is_cell_of(cells, generation, ino).then(|| read(cells))
        })
    }

    fn find_link(&self, generation: Generation, ino: u64) -> Looked<'t, A, [u64; WIDE]> {
        self.find(generation, self.shape.links, self.hash_of(generation, ino), |cells: &[A; WIDE]| {
            is_cell_of(cells, generation, ino)
                .then(|| std::array::from_fn(|at| cells[at].load(Ordering::Acquire)))
        })
    }

    fn find_mark(&self, generation: Generation, ino: u64) -> Looked<'t, A, ()> {
        self.find(generation, self.shape.marks, self.hash_of(generation, ino), |cells: &[A; NARROW]| {
            let is_mark =
                is_cell_of(cells, generation, ino) && name_len(cells[2].load(Ordering::Acquire)) == 0;
            is_mark.then_some(())
        })
    }
}

/// The first way from one on whose entry has a tag. It is found by branches, which processors foresee, so that they read the entry meanwhile.
#[inline(always)]
fn way_with<A: Atomic<u64>>(set: &[A], tag: u32, from: usize) -> Option<usize> {
    (from..WAYS).find(|way| (set[way / 2].load(Ordering::Acquire) >> (32 * (way % 2))) as u32 == tag)
}

/// Reads an entry; `None` if somebody writes to it.
#[inline(always)]
fn read_entry<'t, A: Atomic<u64>, const W: usize, R>(
    cells: &'t [A; W],
    read: impl FnOnce(&[A; W]) -> R,
) -> Option<(Seen<'t, A>, R)> {
    let was = cells[0].load(Ordering::Acquire);
    if was & 1 != 0 {
        return None;
    }
    let what = read(cells);
    // Not sooner than the loads before it, as they acquire.
    (cells[0].load(Ordering::Relaxed) == was).then_some((Seen { seqlock: &cells[0], was }, what))
}

#[inline]
fn is_name(words: &[u64; NARROW], key: &Key) -> bool {
    let [_, parent, head, one, two, three, four, _] = *words;
    parent == key.parent && head & !KIND == key.head && [one, two, three, four] == key.name
}

/// [`is_of`] for an entry that may be written meanwhile.
#[inline]
fn is_cell_of<A: Atomic<u64>, const W: usize>(cells: &[A; W], generation: Generation, ino: u64) -> bool {
    cells[1].load(Ordering::Acquire) == ino && cells[2].load(Ordering::Acquire) as u32 == generation.number()
}

/// Whether an entry, of whatever kind, is one of this generation.
#[inline]
fn is_in<const W: usize>(words: &[u64; W], generation: Generation) -> bool {
    words[2] as u32 == generation.number()
}

/// Whether an entry that is found by a node id is this one's.
#[inline]
fn is_of<const W: usize>(words: &[u64; W], generation: Generation, ino: u64) -> bool {
    words[1] == ino && is_in(words, generation)
}

/// The length of a name in an entry's head.
#[inline]
fn name_len(head: u64) -> usize {
    ((head & !KIND) >> 32) as usize
}

/// Whether an entry says that a directory is complete: those that say where one is have a name, and may stand beside it.
#[inline]
fn is_mark_of(words: &[u64; NARROW], generation: Generation, ino: u64) -> bool {
    is_of(words, generation, ino) && name_len(words[2]) == 0
}

/// Whether an entry says where a directory is.
#[inline]
fn is_parent_of(words: &[u64; NARROW], generation: Generation, ino: u64) -> bool {
    is_of(words, generation, ino) && name_len(words[2]) != 0
}

fn halves(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Word of the entry of attributes: the extended ones that are not there.
const ABSENT_XATTRS: usize = 13;

/// Attributes as an entry, all but its first word.
fn pack(generation: Generation, attr: &Attr, absent: AbsentXattrs) -> [u64; WIDE] {
    let [atime, mtime, ctime] = attr.times;
    let mut words = [0; WIDE];
    words[ABSENT_XATTRS] = absent.to_word();
    words[1..ABSENT_XATTRS].copy_from_slice(&[
        attr.ino,
        u64::from(generation.number()),
        attr.size,
        attr.blocks,
        atime.sec.cast_unsigned(),
        mtime.sec.cast_unsigned(),
        ctime.sec.cast_unsigned(),
        halves(atime.nsec as u32, mtime.nsec as u32),
        halves(ctime.nsec as u32, attr.mode),
        halves(attr.nlink, attr.uid),
        halves(attr.gid, attr.rdev),
        u64::from(attr.blksize),
    ]);
    words
}

/// The attributes in an entry.
#[inline(always)]
fn unpack<A: Atomic<u64>>(cells: &[A; WIDE]) -> Attr {
    let words: [u64; ABSENT_XATTRS] = std::array::from_fn(|at| cells[at].load(Ordering::Acquire));
    let low = |at: usize| words[at] as u32;
    let high = |at: usize| (words[at] >> 32) as u32;
    let time = |at: usize, nsec: u32| Time { sec: words[at].cast_signed(), nsec: nsec.into() };
    Attr {
        ino: words[1],
        size: words[3],
        blocks: words[4],
        times: [time(5, low(8)), time(6, high(8)), time(7, low(9))],
        mode: high(9),
        nlink: low(10),
        uid: high(10),
        gid: low(11),
        rdev: high(11),
        blksize: low(12),
    }
}

/// The extended attributes that an entry of attributes says not to be there.
#[inline(always)]
fn unpack_absent<A: Atomic<u64>>(cells: &[A; WIDE]) -> AbsentXattrs {
    AbsentXattrs::from_word(cells[ABSENT_XATTRS].load(Ordering::Acquire))
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;
