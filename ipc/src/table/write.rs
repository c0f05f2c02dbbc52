//! The writer's side: the daemon publishes entries and takes them out. Its threads exclude each other by the lock of a set, which
//! lies in the set, as clients cannot write to it.

use std::sync::atomic::Ordering;

use super::{
    AbsentXattrs, CLOCK, EVICTED_AT, Expiry, FULL, GENERATION_AT, Generation, HOLDER_AT, KIND_SHIFT, Key,
    Kind, LENDING_AT, LINE, LOCK, Lending, MAGIC, MAGIC_AT, MOVED_MAX, NARROW, SAMPLES, SEED_AT,
    SETS_PER_EVICTION, Sets, Shape, TARGET_MAX, Table, VERSION_AT, WAYS, WIDE, is_in, is_mark_of, is_name,
    is_of, is_parent_of, name_len, pack, tag,
};
use crate::frame::Attr;
use crate::ring::Atomic;

/// Where an entry belongs: the generation, the sets, and its hash.
type Place = (Generation, Sets, u64);

/// Lets whoever writes get on.
fn pause() {
    #[cfg(all(loom, test))]
    loom::thread::yield_now();
    #[cfg(not(all(loom, test)))]
    std::hint::spin_loop();
}

/// How often a writer looks for a set's lock before it lets others run: whoever has it does next to nothing under it.
const SPINS: u32 = 200;

/// How long somebody waits who takes something out while the table grows, before he looks again.
#[cfg(not(all(loom, test)))]
const MOVING_PAUSE: std::time::Duration = std::time::Duration::from_micros(200);

/// A set, locked.
struct Locked<'t, A: Atomic<u64>>(&'t [A]);

impl<'t, A: Atomic<u64>> Locked<'t, A> {
    fn new(set: &'t [A]) -> Self {
        let mut turn = 0u32;
        while set[LOCK].compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            turn += 1;
            if turn.is_multiple_of(SPINS) {
                #[cfg(not(all(loom, test)))]
                rustix::thread::sched_yield();
            }
            pause();
        }
        Self(set)
    }

    fn tag(&self, way: usize) -> u32 {
        (self.0[way / 2].load(Ordering::Relaxed) >> (32 * (way % 2))) as u32
    }

    fn set_tag(&self, way: usize, tag: u32) {
        let (cell, shift) = (&self.0[way / 2], 32 * (way % 2));
        let others = cell.load(Ordering::Relaxed) & !(0xffff_ffff << shift);
        cell.store(others | u64::from(tag) << shift, Ordering::Release);
    }

    fn cells(&self, way: usize, words: usize) -> &'t [A] {
        &self.0[LINE + way * words..][..words]
    }

    fn words<const W: usize>(&self, way: usize) -> [u64; W] {
        let mut words = [0; W];
        for (word, cell) in words.iter_mut().zip(self.cells(way, W)) {
            *word = cell.load(Ordering::Relaxed);
        }
        words
    }

    /// Where the entry is.
    fn way_of<const W: usize>(&self, tag: u32, is_it: impl Fn(&[u64; W]) -> bool) -> Option<usize> {
        (0..WAYS).find(|way| self.tag(*way) == tag && is_it(&self.words(*way)))
    }

    /// The entry that goes to make room: the first from the clock's hand on that was not used since it last came by.
    fn victim(&self) -> usize {
        let word = self.0[CLOCK].load(Ordering::Relaxed);
        let (mut hand, mut used) = (word as usize % WAYS, word >> 8 & 0xff);
        let way = loop {
            let way = hand;
            hand = (hand + 1) % WAYS;
            if used & 1 << way == 0 {
                break way;
            }
            used &= !(1 << way);
        };
        self.0[CLOCK].store(hand as u64 | used << 8, Ordering::Relaxed);
        way
    }

    fn is_used(&self, way: usize, used: bool) {
        let bit = 1 << (8 + way);
        let word = self.0[CLOCK].load(Ordering::Relaxed);
        self.0[CLOCK].store(if used { word | bit } else { word & !bit }, Ordering::Relaxed);
    }

    /// Begins to write to an entry; the sequence number to end with.
    fn open(&self, way: usize) -> u64 {
        let seqlock = &self.0[LINE + way * ((self.0.len() - LINE) / WAYS)];
        let number = seqlock.load(Ordering::Relaxed) & 0xffff_ffff;
        seqlock.store(number | 1, Ordering::Relaxed);
        ((number | 1) + 1) & 0xffff_ffff
    }

    /// Writes all of an [open](Self::open) entry but its first word.
    fn store<const W: usize>(&self, way: usize, words: &[u64; W]) {
        for (cell, word) in self.cells(way, W).iter().zip(words).skip(1) {
            cell.store(*word, Ordering::Release);
        }
    }

    /// Ends to write to an entry, with the sequence number for that.
    fn end<const W: usize>(&self, way: usize, words: &[u64; W], number: u64) {
        let expiry = words[0] & !0xffff_ffff;
        self.cells(way, W)[0].store(number | expiry, Ordering::Release);
    }

    /// Writes an entry that nobody has used.
    fn fill<const W: usize>(&self, way: usize, tag: u32, words: &[u64; W]) {
        let number = self.open(way);
        self.set_tag(way, tag);
        self.store(way, words);
        self.end(way, words, number);
        self.is_used(way, false);
    }

    /// Takes an entry out that is [open](Self::open).
    fn kill(&self, way: usize, words: usize, number: u64) {
        let cells = self.cells(way, words);
        cells[1].store(0, Ordering::Release);
        cells[0].store(number, Ordering::Release);
        self.set_tag(way, 0);
        self.is_used(way, false);
    }
}

impl<A: Atomic<u64>> Drop for Locked<'_, A> {
    fn drop(&mut self) {
        self.0[LOCK].store(0, Ordering::Release);
    }
}

impl<'t, A: Atomic<u64>> Table<'t, A> {
    /// Makes words that are all 0 a table, of generation 1, that nobody keeps yet.
    pub fn format(words: &'t [A], version: u32, seed: u64) -> Option<Self> {
        let first = Generation::first(Shape::of(words.len() * 8, seed).growths());
        for (at, value) in [(VERSION_AT, u64::from(version)), (SEED_AT, seed), (GENERATION_AT, first.0)] {
            words.get(at)?.store(value, Ordering::Relaxed);
        }
        words.get(MAGIC_AT)?.store(MAGIC, Ordering::Release);
        Self::new(words, version)
    }

    /// A thread keeps the table, or with 0 nobody does any more: then no client believes it.
    pub fn keep(&self, thread: u32) {
        self.words[HOLDER_AT].store(thread.into(), Ordering::Release);
    }

    /// Says what clients may open by themselves from here on.
    pub fn lend(&self, lending: Lending) {
        self.words[LENDING_AT].store(lending as u64, Ordering::Release);
    }

    /// Takes everything out at once. What is counted as changed must have been counted before. After 2^27 times the table ends.
    pub fn renew(&self) {
        let mut now = self.generation();
        loop {
            let Some(next) = now.renewed() else { return self.keep(0) };
            match self.begin(now, next) {
                Ok(()) => return,
                Err(found) => now = found,
            }
        }
    }

    /// Begins a generation after `now`, unless another one has begun already, which is answered then.
    fn begin(&self, now: Generation, next: Generation) -> Result<(), Generation> {
        let cell = &self.words[GENERATION_AT];
        cell.compare_exchange(now.0, next.0, Ordering::AcqRel, Ordering::Acquire).map_err(Generation)?;
        self.words[EVICTED_AT].store(0, Ordering::Relaxed);
        Ok(())
    }

    /// An entry went for want of room.
    fn evicted(&self) {
        // Some may be lost, which does no harm.
        let before = self.words[EVICTED_AT].load(Ordering::Relaxed);
        self.words[EVICTED_AT].store(before + 1, Ordering::Relaxed);
    }

    /// The present generation if it should [`grow`](Self::grow): entries have made room for others, and that because there are many of
    /// them. A few find their set full long before, and take turns there.
    pub fn is_crowded(&self) -> Option<Generation> {
        let generation = self.generation();
        let evicted = &self.words[EVICTED_AT];
        let many = self.shape.names.used(generation) as u64 / SETS_PER_EVICTION;
        if generation.growths() == 0 || evicted.load(Ordering::Relaxed) <= many {
            return None;
        }
        evicted.store(0, Ordering::Relaxed);
        let Shape { names, attrs, links, marks, .. } = self.shape;
        let is_full = self.is_full::<NARROW>(names, generation)
            || self.is_full::<WIDE>(attrs, generation)
            || self.is_full::<WIDE>(links, generation)
            || self.is_full::<NARROW>(marks, generation);
        is_full.then_some(generation)
    }

    /// Whether more than [`FULL`] entries are in the average set, as far as some of them tell.
    fn is_full<const W: usize>(&self, sets: Sets, generation: Generation) -> bool {
        let (used, size) = (sets.used(generation), LINE + WAYS * W);
        let step = used.div_ceil(SAMPLES).max(1);
        let set = |index| Locked::new(&self.words[sets.start + index * size..][..size]);
        let held = |set: Locked<'_, A>| {
            let is_held = |way: &usize| set.tag(*way) != 0 && is_in(&set.words::<W>(*way), generation);
            (0..WAYS).filter(is_held).count()
        };
        let (sampled, held) = (0..used)
            .step_by(step)
            .map(set)
            .fold((0, 0), |(sampled, sum), set| (sampled + 1, sum + held(set)));
        held > sampled * FULL
    }

    /// Uses more sets from here on, if there are more and this is the present generation still, and moves what is in the table there, unless that is
    /// [more](MOVED_MAX) than others should wait for. Meanwhile readers find nothing in it, nothing can be published, and
    /// whoever takes something out ([`change`](Self::change)) waits. `leaving` is told the directory of a name for which there is no room, as by
    /// [`publish_name`](Self::publish_name). Nobody may hold a set's lock who calls this.
    pub fn grow(&self, now: Generation, leaving: impl Fn(u64)) {
        let Some((moving, next)) = now.growing() else { return };
        let used: usize = self.used_bytes_of(now).iter().map(ExactSizeIterator::len).sum();
        // If it fails, another generation has begun anyway.
        if used > MOVED_MAX {
            let _ = self.begin(now, next);
            return;
        }
        if self.begin(now, moving).is_err() {
            return;
        }
        let Shape { names, attrs, links, marks, .. } = self.shape;
        let hash_of = |ino| self.hash_of(next, ino);
        let hash_of_name = |words: &[u64; NARROW]| {
            let [_, parent, head, name @ .., _] = *words;
            self.key_again(next, parent, name_len(head), name).hash
        };
        // Whoever publishes a name, and has begun before, takes back that its directory is complete, if another name makes room for it: so names come first.
        self.move_all(names, (now, next), hash_of_name, |words: &[u64; NARROW]| leaving(words[1]));
        self.move_all(attrs, (now, next), |words: &[u64; WIDE]| hash_of(words[1]), |_| ());
        self.move_all(links, (now, next), |words: &[u64; WIDE]| hash_of(words[1]), |_| ());
        let hash_of_mark = |words: &[u64; NARROW]| match name_len(words[2]) {
            0 => hash_of(words[1]),
            _ => self.hash_of_parent(next, words[1]),
        };
        self.move_all(marks, (now, next), hash_of_mark, |_| ());
        // Otherwise everything was taken out meanwhile.
        let _ = self.begin(moving, next);
    }

    /// Moves all entries of one kind from a generation to the next one; `lost` hears of those for which there is no room.
    fn move_all<const W: usize>(
        &self,
        sets: Sets,
        (from, to): (Generation, Generation),
        hash_of: impl Fn(&[u64; W]) -> u64,
        lost: impl Fn(&[u64; W]),
    ) {
        let size = LINE + WAYS * W;
        // What was in a set goes behind it, where all was moved before; in the first one, what it held is held here.
        for index in (0..sets.used(from)).rev() {
            let mut entries = [None; WAYS];
            {
                let set = Locked::new(&self.words[sets.start + index * size..][..size]);
                for (way, entry) in entries.iter_mut().enumerate().filter(|(way, _)| set.tag(*way) != 0) {
                    let words = set.words::<W>(way);
                    // Everything was taken out meanwhile, and this has been published since.
                    if words[2] as u32 > from.number() {
                        continue;
                    }
                    *entry = is_in(&words, from).then_some(words);
                    let number = set.open(way);
                    set.kill(way, W, number);
                }
            }
            for mut words in entries.into_iter().flatten() {
                words[2] = words[2] & !0xffff_ffff | u64::from(to.number());
                let hash = hash_of(&words);
                let set = Locked::new(self.set(to, sets, hash, size));
                match (0..WAYS).find(|way| set.tag(*way) == 0) {
                    Some(way) => set.fill(way, tag(hash), &words),
                    None => {
                        drop(set);
                        lost(&words);
                    }
                }
            }
        }
    }

    /// Takes something out, in whatever generation it is: `take_out` is called for the present one, and again if the table has grown meanwhile.
    pub fn change(&self, mut take_out: impl FnMut(Generation)) {
        loop {
            let now = self.generation();
            if !now.is_moving() {
                take_out(now);
                if self.generation() == now {
                    return;
                }
            }
            pause();
            #[cfg(not(all(loom, test)))]
            std::thread::sleep(MOVING_PAUSE);
        }
    }

    /// Publishes an entry of the present generation whose first word has the expiry, unless `is_current` says, once it can be found, that something has
    /// changed. `leaving` hears of an entry that goes without having become wrong, before it does.
    fn publish<const W: usize>(
        &self,
        (generation, sets, hash): Place,
        words: &[u64; W],
        is_it: impl Fn(&[u64; W]) -> bool,
        leaving: impl Fn(&[u64; W]),
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let set = Locked::new(self.set(generation, sets, hash, LINE + WAYS * W));
        if self.generation() != generation || generation.is_moving() {
            return false;
        }
        let tag = tag(hash);
        let known = set.way_of(tag, is_it);
        // Of another generation, which is over, as nothing was published here meanwhile.
        let is_free = |way: &usize| set.tag(*way) == 0 || !is_in(&set.words::<W>(*way), generation);
        let free = || (0..WAYS).find(is_free);
        let (way, evicts) = match known.or_else(free) {
            Some(way) => (way, false),
            None => (set.victim(), true),
        };
        let number = set.open(way);
        if evicts {
            leaving(&set.words(way));
            self.evicted();
        }
        set.set_tag(way, tag);
        let before = known.map(|way| set.words::<W>(way));
        set.store(way, words);
        if !is_current() {
            if let Some(before) = before {
                leaving(&before);
            }
            set.kill(way, W, number);
            return false;
        }
        set.end(way, words, number);
        set.is_used(way, known.is_some());
        true
    }

    /// Takes an entry out, if it is there; `leaving` hears of it before.
    fn take<const W: usize>(
        &self,
        (generation, sets, hash): Place,
        is_it: impl Fn(&[u64; W]) -> bool,
        leaving: impl FnOnce(&[u64; W]),
    ) -> bool {
        let (set, tag) = (self.set(generation, sets, hash, LINE + WAYS * W), tag(hash));
        let has_tag = |cell: &A| {
            let tags = cell.load(Ordering::Acquire);
            tags as u32 == tag || (tags >> 32) as u32 == tag
        };
        // What is published from here on is published by somebody who finds the change counted.
        if !set[..WAYS / 2].iter().any(has_tag) {
            return false;
        }
        let set = Locked::new(set);
        let Some(way) = set.way_of(tag, is_it) else { return false };
        let number = set.open(way);
        leaving(&set.words(way));
        set.kill(way, W, number);
        true
    }

    /// Publishes what a name stands for: the node id, 0 if it does not exist. `is_current` must read and modify the count of changes;
    /// `leaving` is told the directory of a name that goes although it may be right, before it goes, and may
    /// [unmark](Self::unmark) it.
    ///
    /// Whether it is published.
    pub fn publish_name(
        &self,
        key: &Key,
        (child, kind): (u64, Kind),
        expiry: Expiry,
        leaving: impl Fn(u64),
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let [one, two, three, four] = key.name;
        let head = key.head | (kind as u64) << KIND_SHIFT;
        let words = [u64::from(expiry.0) << 32, key.parent, head, one, two, three, four, child];
        let leaving = |words: &[u64; NARROW]| leaving(words[1]);
        self.publish(
            (key.generation, self.shape.names, key.hash),
            &words,
            |words| is_name(words, key),
            leaving,
            is_current,
        )
    }

    /// Publishes attributes, and which extended ones are not there. `is_current` as for [`publish_name`](Self::publish_name).
    pub fn publish_attr(
        &self,
        generation: Generation,
        attr: &Attr,
        absent: AbsentXattrs,
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let mut words = pack(generation, attr, absent);
        words[0] = u64::from(expiry.0) << 32;
        let (hash, is_it) =
            (self.hash_of(generation, attr.ino), |words: &[u64; WIDE]| is_of(words, generation, attr.ino));
        self.publish((generation, self.shape.attrs, hash), &words, is_it, |_| (), is_current)
    }

    /// Publishes a symbolic link's target, if it is no longer than [`TARGET_MAX`].
    pub fn publish_link(
        &self,
        generation: Generation,
        ino: u64,
        target: &[u8],
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let mut bytes = [0; TARGET_MAX];
        let Some(place) = bytes.get_mut(..target.len()) else { return false };
        place.copy_from_slice(target);
        let mut words = [0; WIDE];
        words[0] = u64::from(expiry.0) << 32;
        words[1] = ino;
        words[2] = u64::from(generation.number()) | (target.len() as u64) << 32;
        for (word, chunk) in words[3..].iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*chunk);
        }
        let (hash, is_it) =
            (self.hash_of(generation, ino), |words: &[u64; WIDE]| is_of(words, generation, ino));
        self.publish((generation, self.shape.links, hash), &words, is_it, |_| (), is_current)
    }

    /// Marks a directory complete: a name that is not in the table does not exist in it. `is_current` must also read and modify a
    /// count of the names that have left.
    pub fn mark(
        &self,
        generation: Generation,
        ino: u64,
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let words = [u64::from(expiry.0) << 32, ino, u64::from(generation.number()), 0, 0, 0, 0, 0];
        let (hash, is_it) =
            (self.hash_of(generation, ino), |words: &[u64; NARROW]| is_mark_of(words, generation, ino));
        self.publish((generation, self.shape.marks, hash), &words, is_it, |_| (), is_current)
    }

    /// Says in which directory one is, perhaps, that everybody may search: the one that this name is in. A walk believes it only if the
    /// name is in the table and stands for the directory, so it need not be taken out when that changes.
    pub fn publish_parent(&self, key: &Key, directory: u64) -> bool {
        let generation = key.generation;
        let [one, two, three, four] = key.name;
        let expiry = u64::from(Expiry::NEVER.0) << 32;
        let words = [expiry, directory, key.head, key.parent, one, two, three, four];
        let hash = self.hash_of_parent(generation, directory);
        let is_it = |words: &[u64; NARROW]| is_parent_of(words, generation, directory);
        self.publish((generation, self.shape.marks, hash), &words, is_it, |_| (), || true)
    }

    /// Takes a name out. With `leaving` as for [`publish_name`](Self::publish_name), unless it is certain that the name is gone.
    pub fn take_name(&self, key: &Key, leaving: impl FnOnce(u64)) -> bool {
        self.take(
            (key.generation, self.shape.names, key.hash),
            |words| is_name(words, key),
            |words| leaving(words[1]),
        )
    }

    /// Takes attributes out.
    pub fn take_attr(&self, generation: Generation, ino: u64) -> bool {
        let hash = self.hash_of(generation, ino);
        self.take(
            (generation, self.shape.attrs, hash),
            |words: &[u64; WIDE]| is_of(words, generation, ino),
            |_| (),
        )
    }

    /// Takes a symbolic link's target out.
    pub fn take_link(&self, generation: Generation, ino: u64) -> bool {
        let hash = self.hash_of(generation, ino);
        self.take(
            (generation, self.shape.links, hash),
            |words: &[u64; WIDE]| is_of(words, generation, ino),
            |_| (),
        )
    }

    /// Takes back that a directory is complete.
    pub fn unmark(&self, generation: Generation, ino: u64) -> bool {
        let hash = self.hash_of(generation, ino);
        self.take(
            (generation, self.shape.marks, hash),
            |words: &[u64; NARROW]| is_mark_of(words, generation, ino),
            |_| (),
        )
    }
}
