//! The names of a directory of which something is known: one table, so that an unlink looks its name up once, whatever becomes of it.
//!
//! The names lie one after the other in one piece of memory, because a directory may have a million.

#![deny(unsafe_code)]

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::journal::Place;

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Found in the directory, and no directory itself: the inode that it stood for then.
    Listed(u64),
    /// Its removal waits.
    Waits {
        /// The record.
        place: Place,
        /// The file's node.
        node: u64,
    },
    /// Removed while somebody lists the directory, who may have read the name before.
    Done,
}

struct Name {
    at: u32,
    length: u8,
    known: Known,
}

/// About how much memory a name takes besides its bytes.
pub(super) const OVERHEAD: usize = 2 * size_of::<Name>();
/// So many bytes of names that are gone are not worth the trouble.
const LITTLE: usize = 4096;

/// The table.
#[derive(Default)]
pub(super) struct Names {
    table: HashTable<Name>,
    bytes: Vec<u8>,
    /// How many of the bytes are of names that are gone.
    gone: usize,
    hasher: DefaultHashBuilder,
}

fn bytes_of<'b>(bytes: &'b [u8], name: &Name) -> &'b [u8] {
    let at = name.at as usize;
    &bytes[at..at + usize::from(name.length)]
}

impl Names {
    /// What is known of the name.
    pub(super) fn get(&self, name: &[u8]) -> Option<Known> {
        let hash = self.hasher.hash_one(name);
        let found = self.table.find(hash, |entry| bytes_of(&self.bytes, entry) == name)?;
        Some(found.known)
    }

    /// Whether the name is not to be shown.
    pub(super) fn hides(&self, name: &[u8]) -> bool {
        matches!(self.get(name), Some(Known::Waits { .. } | Known::Done))
    }

    /// Notes what is known of the name, and returns what was; `None` also if there is no room for it.
    pub(super) fn set(&mut self, name: &[u8], known: Known) -> Option<Known> {
        let Self { table, bytes, hasher, .. } = self;
        let (Ok(length), Ok(at)) = (u8::try_from(name.len()), u32::try_from(bytes.len())) else {
            return None;
        };
        let hash = hasher.hash_one(name);
        let same = |entry: &Name| bytes_of(bytes, entry) == name;
        match table.entry(hash, same, |entry| hasher.hash_one(bytes_of(bytes, entry))) {
            Entry::Occupied(mut entry) => Some(std::mem::replace(&mut entry.get_mut().known, known)),
            Entry::Vacant(entry) => {
                entry.insert(Name { at, length, known });
                bytes.extend_from_slice(name);
                None
            }
        }
    }

    /// Notes that the name was found in the directory, unless something is known of it; whether nothing was.
    pub(super) fn list(&mut self, name: &[u8], inode: u64) -> bool {
        self.get(name).is_none() && self.set(name, Known::Listed(inode)).is_none()
    }

    /// Forgets the name if `which` says so of what is known of it, which is returned then.
    pub(super) fn forget(&mut self, name: &[u8], which: impl FnOnce(Known) -> bool) -> Option<Known> {
        let Self { table, bytes, hasher, .. } = self;
        let same = |entry: &Name| bytes_of(bytes, entry) == name;
        let entry = table.find_entry(hasher.hash_one(name), same).ok()?;
        let known = entry.get().known;
        if !which(known) {
            return None;
        }
        entry.remove();
        self.gone += name.len();
        self.tidy();
        Some(known)
    }

    /// Forgets all but those of which `keep` says so.
    pub(super) fn retain(&mut self, keep: impl Fn(Known) -> bool) {
        let gone = &mut self.gone;
        self.table.retain(|entry| {
            let kept = keep(entry.known);
            *gone += usize::from(entry.length) * usize::from(!kept);
            kept
        });
        self.tidy();
    }

    /// Gives memory back, if much of it is of names that are gone.
    fn tidy(&mut self) {
        let Self { table, bytes, hasher, gone } = self;
        if *gone < LITTLE || *gone < bytes.len() / 2 {
            return;
        }
        let mut left = Vec::with_capacity(bytes.len() - *gone);
        for entry in table.iter_mut() {
            let at = left.len() as u32;
            left.extend_from_slice(bytes_of(bytes, entry));
            entry.at = at;
        }
        *bytes = left;
        *gone = 0;
        if table.len() < table.capacity() / 8 {
            table.shrink_to(table.len() * 2, |entry| hasher.hash_one(bytes_of(bytes, entry)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_state_at_a_time() {
        let mut names = Names::default();
        assert!(names.list(b"a", 7) && !names.list(b"a", 8));
        assert_eq!(names.get(b"a"), Some(Known::Listed(7)));
        assert!(!names.hides(b"a"));
        let waits = Known::Waits { place: Place { block: 1, word: 2 }, node: 7 };
        assert_eq!(names.set(b"a", waits), Some(Known::Listed(7)));
        assert!(names.hides(b"a") && !names.list(b"a", 9));
        assert_eq!(names.forget(b"a", |known| matches!(known, Known::Listed(_))), None);
        assert_eq!(names.forget(b"a", |_| true), Some(waits));
        assert_eq!(names.get(b"a"), None);
    }

    #[test]
    fn memory_of_names_that_are_gone_is_used_again() {
        let mut names = Names::default();
        for round in 0..100 {
            for name in 0..1000 {
                assert!(names.list(format!("name-{round}-{name}").as_bytes(), name));
            }
            for name in 0..990 {
                let name = format!("name-{round}-{name}");
                assert!(names.forget(name.as_bytes(), |_| true).is_some(), "{name}");
            }
        }
        assert_eq!(names.table.len(), 1000);
        assert!(names.bytes.len() < 60_000, "{}", names.bytes.len());
        for round in 0..100 {
            for name in 990..1000 {
                let found = names.get(format!("name-{round}-{name}").as_bytes());
                assert_eq!(found, Some(Known::Listed(name)), "{round}");
            }
        }
        names.retain(|_| false);
        assert!(names.bytes.capacity() <= LITTLE && names.table.capacity() < 100);
    }
}
