//! The node table: what is remembered of every inode that the kernel or the bypass holds a reference to.
//!
//! An entry takes 40 bytes and no descriptor. It says how to find the inode again: by file handle, or, where
//! handles do not work, by the parent's node id and the name.

#![deny(unsafe_code)]

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;

use super::sys::RawHandle;

const SHARDS: usize = 64;
const INLINE_HANDLE: usize = 13;
/// The two bits of [`Node::references`] that hold the [`Kind`].
const KIND_SHIFT: u32 = 62;
const COUNT: u64 = (1 << KIND_SHIFT) - 1;

/// What is worth knowing of an inode's type before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A symbolic link, a device, a FIFO or a socket.
    Other,
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
}

impl Kind {
    fn bits(self) -> u64 {
        (self as u64) << KIND_SHIFT
    }

    fn of(references: u64) -> Self {
        match references >> KIND_SHIFT {
            1 => Self::Directory,
            2 => Self::Regular,
            _ => Self::Other,
        }
    }
}

/// How an inode is found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// By a file handle on the node's own device.
    Handle {
        /// The handle's type.
        kind: i32,
        /// Its bytes.
        bytes: Box<[u8]>,
    },
    /// By a name in a directory. Only as good as the last lookup, so whoever uses it verifies the inode.
    Name {
        /// The directory's node id.
        parent: u64,
        /// The name in it.
        name: Box<[u8]>,
    },
}

/// [`Location`], packed into 16 bytes for the handles of ext4, tmpfs and XFS.
enum Packed {
    Handle {
        len: u8,
        kind: u8,
        bytes: [u8; INLINE_HANDLE],
    },
    Far(Box<Location>),
    /// Not found that way any more.
    Stale,
}

const _: () = assert!(size_of::<Packed>() == 16);
const _: () = assert!(size_of::<Node>() == 40);

impl From<Location> for Packed {
    fn from(location: Location) -> Self {
        match location {
            Location::Handle { kind, bytes } if bytes.len() <= INLINE_HANDLE && (0..256).contains(&kind) => {
                let mut inline = [0; INLINE_HANDLE];
                inline[..bytes.len()].copy_from_slice(&bytes);
                Packed::Handle { len: bytes.len() as u8, kind: kind as u8, bytes: inline }
            }
            far => Packed::Far(Box::new(far)),
        }
    }
}

/// A way to the inode that needs no lock: see [`Nodes::way`].
pub(super) enum Way {
    /// Open this handle on the node's device.
    Handle(RawHandle),
    /// Open this name in this directory and verify what it is.
    Name {
        /// The directory's node id.
        parent: u64,
        /// The name in it.
        name: Box<[u8]>,
    },
}

struct Node {
    id: u64,
    /// The lookup count, and the [`Kind`].
    references: u64,
    /// When the inode was born, in nanoseconds since the epoch: tells an inode from a later one that reuses its
    /// number. 0: the file system does not say.
    born: i64,
    location: Packed,
}

impl Node {
    fn generation(&self) -> u64 {
        match &self.location {
            Packed::Handle { len, kind, bytes } => fold(u64::from(*kind), &bytes[..usize::from(*len)]),
            Packed::Far(far) => match &**far {
                Location::Handle { kind, bytes } => fold(*kind as u64, bytes),
                Location::Name { .. } => mix(self.born as u64),
            },
            Packed::Stale => mix(self.born as u64),
        }
    }

    /// Whether the entry is known to be the inode born at `born`, without asking the file system.
    fn is_born(&self, born: i64) -> bool {
        born != 0 && self.born == born && !matches!(self.location, Packed::Stale)
    }
}

/// A finalising mix (that of splitmix64): node ids are mostly consecutive.
fn mix(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}

/// A hash of a file handle, for use as FUSE's generation number.
fn fold(seed: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mix(seed.wrapping_add(1)), |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(hash ^ u64::from_ne_bytes(word))
    })
}

/// What is known of an inode when it is looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    /// See [`Node::born`].
    pub(super) born: i64,
    /// Its type.
    pub(super) kind: Kind,
    /// Whether this very call created it, so that whatever is known of its number is about an earlier inode.
    pub(super) created: bool,
}

/// The node table.
pub(super) struct Nodes {
    shards: Box<[Mutex<HashTable<Node>>]>,
}

impl Nodes {
    /// An empty table.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, id: u64) -> (&Mutex<HashTable<Node>>, u64) {
        let hash = mix(id);
        // hashbrown indexes with the low bits and tags with the top seven.
        (&self.shards[(hash >> 40) as usize % SHARDS], hash)
    }

    /// Takes a reference to the inode `id`, which `locate` finds again if the table does not already know it.
    /// `locate` runs without any lock. Returns the inode's generation.
    pub(super) fn refer<E>(
        &self,
        id: u64,
        birth: Birth,
        names_move: bool,
        locate: impl FnOnce() -> Result<Location, E>,
    ) -> Result<u64, E> {
        let (shard, hash) = self.shard(id);
        if !birth.created && !names_move {
            let mut table = shard.lock();
            if let Some(node) = table.find_mut(hash, |node| node.id == id)
                && node.is_born(birth.born)
            {
                node.references += 1;
                return Ok(node.generation());
            }
        }
        let location = Packed::from(locate()?);
        let kind = birth.kind.bits();
        let mut table = shard.lock();
        Ok(match table.entry(hash, |node| node.id == id, |node| mix(node.id)) {
            Entry::Occupied(mut entry) => {
                let node = entry.get_mut();
                node.location = location;
                node.born = birth.born;
                node.references = ((node.references & COUNT) + 1) | kind;
                node.generation()
            }
            Entry::Vacant(entry) => {
                let node = Node { id, references: 1 | kind, born: birth.born, location };
                entry.insert(node).get().generation()
            }
        })
    }

    /// The generation of an inode that a reference is held to, and its type.
    pub(super) fn generation(&self, id: u64) -> Option<(u64, Kind)> {
        let (shard, hash) = self.shard(id);
        let table = shard.lock();
        let node = table.find(hash, |node| node.id == id)?;
        let is_stale = matches!(node.location, Packed::Stale);
        (!is_stale).then(|| (node.generation(), Kind::of(node.references)))
    }

    /// Gives back `count` references. Returns what the table forgot by that.
    pub(super) fn forget(&self, id: u64, count: u64) -> Option<Kind> {
        let (shard, hash) = self.shard(id);
        let mut table = shard.lock();
        let Ok(mut entry) = table.find_entry(hash, |node| node.id == id) else { return None };
        let node = entry.get_mut();
        let kind = Kind::of(node.references);
        let left = (node.references & COUNT).saturating_sub(count);
        node.references = left | kind.bits();
        if left != 0 {
            return None;
        }
        let (node, _) = entry.remove();
        // A table that once held millions of inodes must not keep their room for ever.
        if table.len() >= 64 && table.len() < table.capacity() / 8 {
            let room = table.len() * 2;
            table.shrink_to(room, |node| mix(node.id));
        }
        drop(table);
        // The location's memory goes back outside the lock.
        drop(node.location);
        Some(kind)
    }

    /// How to reach an inode, and its type. `None` if nobody holds a reference to it, or if it
    /// is stale.
    pub(super) fn way(&self, id: u64) -> Option<(Way, Kind)> {
        let (shard, hash) = self.shard(id);
        let table = shard.lock();
        let node = table.find(hash, |node| node.id == id)?;
        let way = match &node.location {
            Packed::Handle { len, kind, bytes } => {
                Way::Handle(RawHandle::new(i32::from(*kind), &bytes[..usize::from(*len)])?)
            }
            Packed::Stale => return None,
            Packed::Far(far) => match &**far {
                Location::Handle { kind, bytes } => Way::Handle(RawHandle::new(*kind, bytes)?),
                Location::Name { parent, name } => Way::Name { parent: *parent, name: name.clone() },
            },
        };
        Some((way, Kind::of(node.references)))
    }

    /// Records that what is known about how to reach `id` does not lead there any more, so that the next lookup
    /// finds out again.
    pub(super) fn mark_stale(&self, id: u64) {
        let (shard, hash) = self.shard(id);
        if let Some(node) = shard.lock().find_mut(hash, |node| node.id == id) {
            node.location = Packed::Stale;
        }
    }

    /// Records that `id`, if known at all, is reached by another name from here on.
    pub(super) fn moved(&self, id: u64, parent: u64, name: &[u8]) {
        let (shard, hash) = self.shard(id);
        if let Some(node) = shard.lock().find_mut(hash, |node| node.id == id) {
            node.location = Packed::Far(Box::new(Location::Name { parent, name: name.into() }));
        }
    }

    /// How many inodes are known.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// About how much memory the table takes, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let table = shard.lock();
                let far: usize = table
                    .iter()
                    .map(|node| match &node.location {
                        Packed::Far(far) => {
                            size_of::<Location>()
                                + match &**far {
                                    Location::Handle { bytes, .. } => bytes.len(),
                                    Location::Name { name, .. } => name.len(),
                                }
                        }
                        Packed::Handle { .. } | Packed::Stale => 0,
                    })
                    .sum();
                table.allocation_size() + far
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn handle(bytes: &[u8]) -> Result<Location, Infallible> {
        Ok(Location::Handle { kind: 1, bytes: bytes.into() })
    }

    fn file(born: i64) -> Birth {
        Birth { born, kind: Kind::Regular, created: false }
    }

    #[test]
    fn a_known_inode_is_not_located_again() {
        let nodes = Nodes::new();
        let first = nodes.refer(7, file(5), false, || handle(b"12345678")).unwrap();
        let again =
            nodes.refer(7, file(5), false, || -> Result<_, Infallible> { panic!("located") }).unwrap();
        assert_eq!(first, again);
        assert_eq!(nodes.forget(7, 1), None);
        assert_eq!(nodes.len(), 1);
        nodes.forget(7, 1);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn a_reused_inode_number_gets_another_generation() {
        let nodes = Nodes::new();
        let first = nodes.refer(7, file(5), false, || handle(b"12345678")).unwrap();
        let second = nodes.refer(7, file(6), false, || handle(b"12345679")).unwrap();
        assert_ne!(first, second);
        let created = Birth { created: true, ..file(6) };
        let third = nodes.refer(7, created, false, || handle(b"12345680")).unwrap();
        assert_ne!(second, third);
        nodes.forget(7, 3);
        assert_eq!(nodes.len(), 0);
    }

    #[test]
    fn a_stale_inode_is_located_again() {
        let nodes = Nodes::new();
        nodes.refer(7, file(5), false, || handle(b"old")).unwrap();
        nodes.mark_stale(7);
        assert!(nodes.way(7).is_none());
        nodes.refer(7, file(5), false, || handle(b"new")).unwrap();
        let Some((Way::Handle(raw), Kind::Regular)) = nodes.way(7) else { panic!("no handle") };
        assert_eq!(raw.bytes(), b"new");
    }

    #[test]
    fn long_handles_and_names_are_kept_whole() {
        let nodes = Nodes::new();
        let long = [9; 40];
        nodes.refer(7, file(5), false, || handle(&long)).unwrap();
        let Some((Way::Handle(raw), _)) = nodes.way(7) else { panic!("no handle") };
        assert_eq!((raw.kind(), raw.bytes()), (1, &long[..]));
        nodes.moved(7, 3, b"name");
        let Some((Way::Name { parent, name }, _)) = nodes.way(7) else { panic!("no name") };
        assert_eq!((parent, &*name), (3, &b"name"[..]));
    }

    #[test]
    fn forgetting_gives_memory_back() {
        let nodes = Nodes::new();
        for id in 0..200_000 {
            nodes.refer(id, file(5), false, || handle(b"12345678")).unwrap();
        }
        let full = nodes.memory();
        assert!(full / 200_000 < 100, "{} bytes per inode", full / 200_000);
        for id in 0..200_000 {
            nodes.forget(id, 1);
        }
        assert_eq!(nodes.len(), 0);
        assert!(nodes.memory() < full / 8);
    }
}
