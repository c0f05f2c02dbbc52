//! The client's walk: from a directory and a path to attributes, or to the certainty that nothing is there. It allocates nothing,
//! takes no lock and makes no system call.
//!
//! Each step is checked once the next one is done: what a name stands for was still that when the next name was looked
//! up in it, so that a directory that was replaced, or removed and its number given to another one, leads nowhere.

use super::{
    AbsentXattrs, Expiry, Generation, Kind, Looked, Seen, TARGET_MAX, Table, WIDE, unpack, unpack_absent,
};
use crate::frame::{Attr, PATH_MAX};
use crate::ring::Atomic;

/// The coarse monotonic clock, read once at most, and only if an entry has an end.
#[derive(Debug, Default)]
pub struct Clock(Option<Expiry>);

impl Clock {
    #[inline]
    fn is_past(&mut self, expiry: Expiry) -> bool {
        if expiry == Expiry::NEVER {
            return false;
        }
        let now = *self.0.get_or_insert_with(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
            Expiry::at(now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned())
        });
        now >= expiry
    }

    /// A clock that stands still at a time in nanoseconds.
    #[cfg(all(test, not(loom)))]
    pub(super) fn at(nanoseconds: u64) -> Self {
        Self(Some(Expiry::at(nanoseconds)))
    }
}

/// Where a walk has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked<T> {
    /// There.
    Found(T),
    /// Nothing is there (`ENOENT`).
    Absent,
    /// The daemon must be asked.
    Unclear,
}

/// The last name of a path, in the table.
struct Last<'t, A> {
    seen: Seen<'t, A>,
    kind: Kind,
    ino: u64,
    place: InDirectory,
}

/// Where a path ends: in a directory, at a name that takes so many bytes at the end of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InDirectory {
    /// The directory's node id.
    pub directory: u64,
    /// Length of the name in bytes.
    pub name: usize,
}

/// Splits the first component off a path, and the slashes behind it.
#[inline]
fn split_first(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let (first, rest) = path.split_at(end);
    let next = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
    (first, &rest[next..])
}

impl<'t, A: Atomic<u64>> Table<'t, A> {
    /// Makes something of the attributes of what a path leads to from the directory `base`; a last symbolic link is followed if `follow`.
    #[inline(always)]
    pub fn stat<T>(
        &self,
        base: u64,
        path: &[u8],
        follow: bool,
        clock: &mut Clock,
        found: impl FnOnce(&Attr) -> T,
    ) -> Walked<T> {
        match self.about(base, path, follow, clock, unpack) {
            Walked::Found(attr) => Walked::Found(found(&attr)),
            Walked::Absent => Walked::Absent,
            Walked::Unclear => Walked::Unclear,
        }
    }

    /// Which extended attributes are known not to be there, of what a path leads to as in [`stat`](Self::stat).
    pub fn absent_xattrs(
        &self,
        base: u64,
        path: &[u8],
        follow: bool,
        clock: &mut Clock,
    ) -> Walked<AbsentXattrs> {
        self.about(base, path, follow, clock, unpack_absent)
    }

    /// What `read` makes of the entry of attributes of what a path leads to.
    #[inline(always)]
    fn about<R>(
        &self,
        base: u64,
        path: &[u8],
        follow: bool,
        clock: &mut Clock,
        read: impl Fn(&[A; WIDE]) -> R,
    ) -> Walked<R> {
        if !self.is_kept() {
            return Walked::Unclear;
        }
        let generation = self.generation();
        let (ino, name) = if path == b"." && base == crate::frame::ROOT {
            // It has no name that could change.
            (base, None)
        } else {
            match self.end(generation, base, path, follow, clock) {
                Walked::Found(last) => (last.ino, Some(last.seen)),
                Walked::Absent => return Walked::Absent,
                Walked::Unclear => return Walked::Unclear,
            }
        };
        match self.find_attr(generation, ino, read) {
            Looked::Found(seen, what)
                if !clock.is_past(seen.expiry()) && name.is_none_or(|name| name.is_unchanged()) =>
            {
                Walked::Found(what)
            }
            _ => Walked::Unclear,
        }
    }

    /// Does something by the path of what has the attributes that are wanted; what comes of it is good only if nobody has changed in between what the
    /// path leads to, as far as is known here.
    #[inline(always)]
    pub fn by_path<T>(
        &self,
        base: u64,
        path: &[u8],
        clock: &mut Clock,
        is_wanted: impl FnOnce(&Attr) -> bool,
        act: impl FnOnce(InDirectory) -> Option<T>,
    ) -> Walked<T> {
        if !self.is_kept() {
            return Walked::Unclear;
        }
        let generation = self.generation();
        let last = match self.end(generation, base, path, true, clock) {
            Walked::Found(last) => last,
            Walked::Absent => return Walked::Absent,
            Walked::Unclear => return Walked::Unclear,
        };
        let Looked::Found(seen, attr) = self.find_attr(generation, last.ino, unpack) else {
            return Walked::Unclear;
        };
        if !is_wanted(&attr) || clock.is_past(seen.expiry()) || !last.seen.is_unchanged() {
            return Walked::Unclear;
        }
        match act(last.place) {
            Some(done) if last.seen.is_unchanged() && seen.is_unchanged() && self.is_kept() => {
                Walked::Found(done)
            }
            _ => Walked::Unclear,
        }
    }

    /// The last name of a path, if there is something.
    #[inline(always)]
    fn end(
        &self,
        generation: Generation,
        base: u64,
        path: &[u8],
        follow: bool,
        clock: &mut Clock,
    ) -> Walked<Last<'t, A>> {
        match self.last(generation, base, path, clock) {
            Walked::Found(Last { kind: Kind::Absent, .. }) => Walked::Absent,
            Walked::Found(Last { kind: Kind::Symlink, .. }) if follow => Walked::Unclear,
            walked => walked,
        }
    }

    /// What kind of thing a path leads to, without following a last symbolic link.
    #[inline]
    pub fn probe(&self, base: u64, path: &[u8], clock: &mut Clock) -> Walked<Kind> {
        if !self.is_kept() {
            return Walked::Unclear;
        }
        match self.last(self.generation(), base, path, clock) {
            Walked::Found(Last { kind: Kind::Absent, .. }) | Walked::Absent => Walked::Absent,
            Walked::Found(last) => Walked::Found(last.kind),
            Walked::Unclear => Walked::Unclear,
        }
    }

    /// The target of the symbolic link that a path leads to, copied into `buffer`; `None` of what is no link.
    pub fn read_link<'b>(
        &self,
        base: u64,
        path: &[u8],
        buffer: &'b mut [u8; TARGET_MAX],
        clock: &mut Clock,
    ) -> Walked<Option<&'b [u8]>> {
        if !self.is_kept() {
            return Walked::Unclear;
        }
        let generation = self.generation();
        let last = match self.last(generation, base, path, clock) {
            Walked::Found(last) => last,
            Walked::Absent => return Walked::Absent,
            Walked::Unclear => return Walked::Unclear,
        };
        match last.kind {
            Kind::Absent => return Walked::Absent,
            Kind::Symlink => {}
            Kind::Directory | Kind::Other => return Walked::Found(None),
        }
        let Looked::Found(seen, link) = self.find_link(generation, last.ino) else { return Walked::Unclear };
        if clock.is_past(seen.expiry()) || !last.seen.is_unchanged() {
            return Walked::Unclear;
        }
        for (place, word) in buffer.as_chunks_mut::<8>().0.iter_mut().zip(&link[3..]) {
            *place = word.to_le_bytes();
        }
        match buffer.get(..(link[2] >> 32) as usize) {
            Some(target) => Walked::Found(Some(target)),
            None => Walked::Unclear,
        }
    }

    /// The last name of a path.
    #[inline(always)]
    fn last(&self, generation: Generation, base: u64, path: &[u8], clock: &mut Clock) -> Walked<Last<'t, A>> {
        if matches!(path.first(), None | Some(b'/')) || path.last() == Some(&b'/') || path.len() > PATH_MAX {
            return Walked::Unclear;
        }
        let (mut directory, mut rest) = (base, path);
        let mut above: Option<Seen<'t, A>> = None;
        loop {
            let (name, after) = split_first(rest);
            if matches!(name, b"." | b"..") {
                if after.is_empty() {
                    return Walked::Unclear;
                }
                // Compilers look for files in `./include` and `../include`.
                if name == b".." {
                    let Some((seen, parent)) = self.parent(generation, directory, clock) else {
                        return Walked::Unclear;
                    };
                    if above.is_some_and(|above| !above.is_unchanged()) {
                        return Walked::Unclear;
                    }
                    (directory, above) = (parent, Some(seen));
                }
                rest = after;
                continue;
            }
            let looked = match self.key(generation, directory, name) {
                Some(key) => self.find_name(&key),
                None => return Walked::Unclear,
            };
            let known = match looked {
                Looked::Found(seen, what) if !clock.is_past(seen.expiry()) => Some((seen, what)),
                Looked::Missing if self.is_complete(generation, directory, name, clock) => None,
                _ => return Walked::Unclear,
            };
            if above.is_some_and(|above| !above.is_unchanged()) {
                return Walked::Unclear;
            }
            let Some((seen, (kind, ino))) = known else { return Walked::Absent };
            if after.is_empty() {
                return Walked::Found(Last {
                    seen,
                    kind,
                    ino,
                    place: InDirectory { directory, name: name.len() },
                });
            }
            match kind {
                Kind::Directory => {}
                Kind::Absent => return Walked::Absent,
                Kind::Symlink | Kind::Other => return Walked::Unclear,
            }
            directory = ino;
            above = Some(seen);
            rest = after;
        }
    }

    /// The directory that one is in which everybody may search, with the name that says so.
    #[inline(never)]
    fn parent(
        &self,
        generation: Generation,
        directory: u64,
        clock: &mut Clock,
    ) -> Option<(Seen<'t, A>, u64)> {
        let Looked::Found(_, key) = self.find_parent(generation, directory) else { return None };
        match self.find_name(&key) {
            Looked::Found(seen, (Kind::Directory, ino))
                if ino == directory && !clock.is_past(seen.expiry()) =>
            {
                Some((seen, key.parent))
            }
            _ => None,
        }
    }

    /// Whether a name that was not found does not exist: the directory is complete, and the name is still not there.
    #[cold]
    fn is_complete(&self, generation: Generation, directory: u64, name: &[u8], clock: &mut Clock) -> bool {
        let Looked::Found(mark, ()) = self.find_mark(generation, directory) else { return false };
        if clock.is_past(mark.expiry()) {
            return false;
        }
        let Some(key) = self.key(generation, directory, name) else { return false };
        // Entries of an earlier generation make room without a word.
        matches!(self.find_name(&key), Looked::Missing)
            && mark.is_unchanged()
            && self.generation() == generation
    }
}
