//! What the process's descriptors and its current directory are: ours, a directory on a mount of ours, or
//! nothing to do with us.
//!
//! An entry is cleared before its descriptor is closed, so that it can never describe the number's next
//! owner. Descriptors that libc opens or receives without calling a hooked function are unknown until they are
//! looked at.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crate::mounts::{Prefix, Version};

/// Descriptors below this number are known; a system that allows more serves those through the kernel.
pub(crate) const KNOWN: usize = 65_536;

/// For the inode number of a file that is granted: the one that the descriptor itself shows.
pub(crate) const ITS_OWN: u64 = 0;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody has looked.
    Unknown,
    /// Nothing of ours.
    Other,
    /// A directory on a mount of ours.
    Directory(Directory),
    /// The current directory, on no mount of ours.
    Outside(Outside),
    /// A backing descriptor that the daemon granted: the mount's device and the inode number there.
    Granted {
        /// `st_dev` of the mount.
        dev: u64,
        /// `st_ino` on the mount, or [`ITS_OWN`].
        ino: u64,
        /// Whether it was opened with `O_NOFOLLOW`, which the daemon's own flags do not show.
        nofollow: bool,
    },
    /// A connection's own, which the program must not touch.
    Own,
    /// One that a promotion has left over, and that stays open for the sake of locks: see [`crate::locks`].
    Kept {
        /// `st_ino` on the mount.
        ino: u64,
    },
    /// A placeholder, which stands for an open file description in the daemon.
    Virtual(Virtual),
}

/// One use of a place in [`crate::virtuals`]' table of open file descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Virtual {
    /// The place.
    pub(crate) index: u16,
    /// How often the place has been used.
    pub(crate) generation: u32,
}

/// A directory on no mount of ours, as a list of mounts has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outside {
    /// Mounts that are below it.
    pub(crate) below: Option<Prefix>,
    /// The list.
    pub(crate) version: Version,
}

/// A directory on a mount of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Index of the mount.
    pub(crate) mount: usize,
    /// Its node id.
    pub(crate) node: u64,
    /// The connection on which the daemon has accepted the node id as a base; 0 if none.
    pub(crate) proven: u32,
}

/// A [`Kind`] in two words: kind (8 bits), mount (8), version (16), connection (32); and the inode. For a granted
/// file the upper half is `st_dev`, of which Linux uses 32 bits, and the bit above the kind says `O_NOFOLLOW`; for a virtual descriptor, the place is in the
/// bits of mount and version, and the generation in those of the connection. For the current directory outside of all mounts, which path of the list
/// begins with its own is in the bits of the mount, the length in those of the connection, zero if no mount is below it, and the list's version takes
/// the place of the inode.
struct Entry {
    word: AtomicU64,
    ino: AtomicU64,
}

const UNKNOWN: u64 = 0;
const OTHER: u64 = 1;
const DIRECTORY: u64 = 2;
const GRANTED: u64 = 3;
const OWN: u64 = 4;
const VIRTUAL: u64 = 5;
const KEPT: u64 = 6;
const OUTSIDE: u64 = 7;
const KIND: u64 = 0xff;
/// The version of the current directory's entry, counted up by every change.
const VERSION_STEP: u64 = 1 << 16;
const VERSION: u64 = 0xffff << 16;

fn encode(kind: Kind) -> (u64, u64) {
    match kind {
        Kind::Unknown => (UNKNOWN, 0),
        Kind::Other => (OTHER, 0),
        Kind::Directory(Directory { mount, node, proven }) => {
            (DIRECTORY | (mount as u64 & 0xff) << 8 | u64::from(proven) << 32, node)
        }
        Kind::Outside(Outside { below, version }) => {
            let (entry, len) = below.map_or((0, 0), |prefix| (prefix.entry, prefix.len));
            (OUTSIDE | (entry as u64 & 0xff) << 8 | u64::from(len) << 32, u64::from(version.0))
        }
        Kind::Granted { dev, ino, nofollow } => {
            (GRANTED | u64::from(nofollow) << 8 | (dev & 0xffff_ffff) << 32, ino)
        }
        Kind::Own => (OWN, 0),
        Kind::Kept { ino } => (KEPT, ino),
        Kind::Virtual(Virtual { index, generation }) => {
            (VIRTUAL | u64::from(index) << 8 | u64::from(generation) << 32, 0)
        }
    }
}

fn decode(word: u64, ino: u64) -> Kind {
    match word & KIND {
        OTHER => Kind::Other,
        DIRECTORY => Kind::Directory(Directory {
            mount: (word >> 8 & 0xff) as usize,
            node: ino,
            proven: (word >> 32) as u32,
        }),
        OUTSIDE => {
            let prefix = Prefix { entry: (word >> 8 & 0xff) as usize, len: (word >> 32) as u32 };
            Kind::Outside(Outside {
                below: Some(prefix).filter(|prefix| prefix.len != 0),
                version: Version(ino as u32),
            })
        }
        GRANTED => Kind::Granted { dev: word >> 32, ino, nofollow: word >> 8 & 1 != 0 },
        OWN => Kind::Own,
        KEPT => Kind::Kept { ino },
        VIRTUAL => Kind::Virtual(Virtual { index: (word >> 8) as u16, generation: (word >> 32) as u32 }),
        _ => Kind::Unknown,
    }
}

/// The table of descriptors. Pages of it that are never touched take no memory.
pub(crate) struct Table {
    entries: [Entry; KNOWN],
    /// No granted, virtual, kept or own descriptor has this number or a greater one. (Not the highest, which would be -1 at first: all
    /// zeroes, the table takes no room in the library's file.)
    end: AtomicI32,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self {
            entries: [const { Entry { word: AtomicU64::new(0), ino: AtomicU64::new(0) } }; KNOWN],
            end: AtomicI32::new(0),
        }
    }

    fn entry(&self, fd: RawFd) -> Option<&Entry> {
        self.entries.get(usize::try_from(fd).ok()?)
    }

    /// What a descriptor is; numbers beyond the table are other's.
    #[inline]
    pub(crate) fn get(&self, fd: RawFd) -> Kind {
        let Some(entry) = self.entry(fd) else { return Kind::Other };
        let word = entry.word.load(Ordering::Acquire);
        if word == UNKNOWN { Kind::Unknown } else { decode(word, entry.ino.load(Ordering::Relaxed)) }
    }

    /// Whether a descriptor is virtual.
    #[inline]
    pub(crate) fn is_virtual(&self, fd: RawFd) -> bool {
        self.entry(fd).is_some_and(|entry| entry.word.load(Ordering::Relaxed) & KIND == VIRTUAL)
    }

    /// Says what a descriptor is; `false` if its number is beyond the table.
    pub(crate) fn set(&self, fd: RawFd, kind: Kind) -> bool {
        let Some(entry) = self.entry(fd) else { return false };
        if matches!(kind, Kind::Granted { .. } | Kind::Own | Kind::Kept { .. } | Kind::Virtual(_)) {
            // Nearly always it is there already, which a locked instruction need not say again.
            if self.end.load(Ordering::SeqCst) <= fd {
                self.end.fetch_max(fd + 1, Ordering::SeqCst);
            }
        }
        let (word, ino) = encode(kind);
        // A reader between the two stores sees an unknown descriptor.
        entry.word.store(UNKNOWN, Ordering::Relaxed);
        entry.ino.store(ino, Ordering::Release);
        entry.word.store(word, Ordering::Release);
        true
    }

    /// Forgets what a descriptor is, because it is about to be closed. Does not touch memory unnecessarily.
    #[inline]
    pub(crate) fn clear(&self, fd: RawFd) {
        if let Some(entry) = self.entry(fd)
            && entry.word.load(Ordering::Relaxed) != UNKNOWN
        {
            entry.word.store(UNKNOWN, Ordering::Release);
        }
    }

    /// Forgets what all descriptors are.
    pub(crate) fn clear_all(&self) {
        (0..self.end.load(Ordering::Relaxed)).for_each(|fd| self.clear(fd));
    }

    /// The virtual descriptor of this number ends; `false` if it is another one's, or none, by now.
    pub(crate) fn take(&self, fd: RawFd, token: Virtual) -> bool {
        let (word, _) = encode(Kind::Virtual(token));
        self.entry(fd).is_some_and(|entry| {
            entry.word.compare_exchange(word, UNKNOWN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Makes `to` what `from` is. (Virtual descriptors are counted: see [`crate::virtuals`].)
    pub(crate) fn copy(&self, from: RawFd, to: RawFd) {
        match self.get(from) {
            Kind::Unknown | Kind::Own | Kind::Kept { .. } | Kind::Virtual(_) => self.clear(to),
            kind => {
                self.set(to, kind);
            }
        }
    }

    /// The granted descriptors.
    pub(crate) fn granted(&self) -> impl Iterator<Item = (RawFd, u64, u64)> {
        (0..self.end.load(Ordering::Relaxed)).filter_map(|fd| match self.get(fd) {
            Kind::Granted { dev, ino, .. } => Some((fd, dev, ino)),
            _ => None,
        })
    }

    /// The virtual descriptors, from a number upwards.
    pub(crate) fn virtuals(&self, first: RawFd) -> impl Iterator<Item = (RawFd, Virtual)> {
        (first.max(0)..self.end.load(Ordering::SeqCst)).filter_map(|fd| match self.get(fd) {
            Kind::Virtual(token) => Some((fd, token)),
            _ => None,
        })
    }

    /// The descriptors of files with locks that promotions have left over, and their inode numbers.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (RawFd, u64)> {
        (0..self.end.load(Ordering::Relaxed)).filter_map(|fd| match self.get(fd) {
            Kind::Kept { ino } => Some((fd, ino)),
            _ => None,
        })
    }

    /// The kept descriptor of this number is the caller's to close; `false` if it is another one's, or none, by now.
    pub(crate) fn take_kept(&self, fd: RawFd) -> bool {
        self.entry(fd).is_some_and(|entry| {
            entry.word.compare_exchange(KEPT, UNKNOWN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Whether a descriptor is the library's, which the program must not touch.
    #[inline]
    pub(crate) fn is_own(&self, fd: RawFd) -> bool {
        matches!(self.get(fd), Kind::Own | Kind::Kept { .. })
    }

    /// The library's own descriptors, from a number upwards.
    pub(crate) fn own(&self, first: RawFd) -> impl Iterator<Item = RawFd> {
        (first.max(0)..self.end.load(Ordering::Relaxed)).filter(|fd| self.is_own(*fd))
    }

    /// The highest number that is of interest.
    pub(crate) fn end(&self) -> RawFd {
        KNOWN as RawFd
    }
}

/// What the current directory is. Unlike a descriptor it can be changed by one thread while another uses it, so
/// it has a version, and a description is only stored if the directory has not changed since it was begun.
pub(crate) struct Cwd {
    entry: Entry,
    storing: AtomicBool,
    suspended: AtomicI32,
}

/// Keeps the current directory unknown while it lives.
pub(crate) struct Suspended<'c>(&'c Cwd);

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.0.changed();
        self.0.suspended.fetch_sub(1, Ordering::Release);
    }
}

/// The state of the current directory at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u64);

impl Cwd {
    pub(crate) const fn new() -> Self {
        Self {
            entry: Entry { word: AtomicU64::new(0), ino: AtomicU64::new(0) },
            storing: AtomicBool::new(false),
            suspended: AtomicI32::new(0),
        }
    }

    /// What the current directory is, and the moment for which that holds.
    #[inline]
    pub(crate) fn get(&self) -> (Kind, Moment) {
        let word = self.entry.word.load(Ordering::Acquire);
        let ino = self.entry.ino.load(Ordering::Acquire);
        let kind = match self.entry.word.load(Ordering::Relaxed) == word {
            true => decode(word, ino),
            false => Kind::Unknown,
        };
        (kind, Moment(word))
    }

    /// The current directory has changed.
    pub(crate) fn changed(&self) {
        let mut word = self.entry.word.load(Ordering::Relaxed);
        loop {
            let unknown = (word.wrapping_add(VERSION_STEP)) & VERSION | UNKNOWN;
            match self.entry.word.compare_exchange_weak(word, unknown, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => word = found,
            }
        }
    }

    /// Stores what the current directory was at a moment, if it still is the same one.
    pub(crate) fn set(&self, moment: Moment, kind: Kind) {
        if self.suspended.load(Ordering::Acquire) != 0 || self.storing.swap(true, Ordering::Acquire) {
            return;
        }
        let (word, ino) = encode(kind);
        let unknown = (moment.0 & VERSION).wrapping_add(VERSION_STEP) & VERSION;
        // First unknown, then the inode, then the kind: a reader never pairs one's kind with another's inode.
        let begun =
            self.entry.word.compare_exchange(moment.0, unknown, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if begun {
            self.entry.ino.store(ino, Ordering::Release);
            let _ = self.entry.word.compare_exchange(
                unknown,
                word | unknown.wrapping_add(VERSION_STEP) & VERSION,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
        self.storing.store(false, Ordering::Release);
    }

    /// libc is going to change the directory by itself: nothing is stored until that is over.
    pub(crate) fn suspend(&self) -> Suspended<'_> {
        self.suspended.fetch_add(1, Ordering::AcqRel);
        self.changed();
        Suspended(self)
    }

    /// In a forked child: another thread of the parent may have been storing.
    pub(crate) fn after_fork(&self) {
        self.changed();
        self.storing.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TABLE: Table = Table::new();

    const DIRECTORY: Kind = Kind::Directory(Directory { mount: 63, node: u64::MAX, proven: u32::MAX });
    const GRANTED: Kind = Kind::Granted { dev: 0xfff0_00ff, ino: 77, nofollow: true };
    const TOKEN: Virtual = Virtual { index: u16::MAX, generation: 0x8000_0001 };
    const VIRTUAL: Kind = Kind::Virtual(TOKEN);
    const OUTSIDE: Kind = Kind::Outside(Outside { below: None, version: Version(u32::MAX) });
    const ABOVE: Kind =
        Kind::Outside(Outside { below: Some(Prefix { entry: 255, len: u32::MAX }), version: Version(1) });

    #[test]
    fn descriptors_are_remembered_copied_and_forgotten() {
        for kind in [DIRECTORY, GRANTED, Kind::Other, Kind::Own, VIRTUAL, OUTSIDE, ABOVE] {
            assert!(TABLE.set(1000, kind));
            assert_eq!(TABLE.get(1000), kind);
        }
        TABLE.set(1000, GRANTED);
        TABLE.copy(1000, 1001);
        TABLE.clear(1000);
        assert_eq!((TABLE.get(1000), TABLE.get(1001)), (Kind::Unknown, GRANTED));
        assert!(TABLE.granted().any(|granted| granted == (1001, 0xfff0_00ff, 77)));
        TABLE.copy(1000, 1001);
        assert_eq!(TABLE.get(1001), Kind::Unknown);
    }

    #[test]
    fn a_virtual_descriptor_is_taken_once_and_never_copied() {
        TABLE.set(3000, VIRTUAL);
        TABLE.copy(3000, 3001);
        assert_eq!(TABLE.get(3001), Kind::Unknown);
        assert!(TABLE.virtuals(2990).any(|found| found == (3000, TOKEN)));
        assert!(!TABLE.take(3000, Virtual { generation: 1, ..TOKEN }));
        assert!(TABLE.take(3000, TOKEN) && !TABLE.take(3000, TOKEN));
    }

    #[test]
    fn numbers_beyond_the_table_are_nobodys() {
        for fd in [-1, -100, KNOWN as RawFd, RawFd::MAX] {
            assert!(!TABLE.set(fd, GRANTED));
            assert_eq!(TABLE.get(fd), Kind::Other);
            TABLE.clear(fd);
        }
    }

    #[test]
    fn own_descriptors_are_not_passed_on_by_a_copy() {
        TABLE.set(2000, Kind::Own);
        TABLE.copy(2000, 2001);
        assert_eq!(TABLE.get(2001), Kind::Unknown);
        assert!(TABLE.own(1500).any(|fd| fd == 2000) && !TABLE.own(2001).any(|fd| fd == 2000));
    }

    #[test]
    fn a_description_of_an_earlier_current_directory_is_not_stored() {
        let cwd = Cwd::new();
        let (_, before) = cwd.get();
        cwd.changed();
        cwd.set(before, DIRECTORY);
        assert_eq!(cwd.get().0, Kind::Unknown);
        cwd.set(cwd.get().1, DIRECTORY);
        assert_eq!(cwd.get().0, DIRECTORY);
        cwd.changed();
        assert_eq!(cwd.get().0, Kind::Unknown);
    }

    #[test]
    fn readers_never_mix_two_directories() {
        let cwd = Cwd::new();
        std::thread::scope(|scope| {
            for mount in 0..2 {
                let cwd = &cwd;
                scope.spawn(move || {
                    for node in 0..50_000 {
                        cwd.changed();
                        cwd.set(
                            cwd.get().1,
                            Kind::Directory(Directory { mount, node: node * 2 + mount as u64, proven: 0 }),
                        );
                    }
                });
            }
            for _ in 0..100_000 {
                if let Kind::Directory(Directory { mount, node, .. }) = cwd.get().0 {
                    assert_eq!(node % 2, mount as u64);
                }
            }
        });
    }
}
