//! Objects of ours that the program holds by their address: memory that is never given back, so that an address tells
//! safely whether it is one of them, and a lock that fails instead of blocking for ever.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::event::Timespec;
use rustix::thread::futex;
use zerocopy::FromZeros;

use super::{Pages, errno_location};

/// Objects per chunk of memory: one bit each of a word.
const PER_CHUNK: usize = 64;
/// Most chunks.
const CHUNKS: usize = 256;
/// How long a waiter sleeps before it looks again by itself.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Objects of one type; at most [`PER_CHUNK`] × [`CHUNKS`] are in use at once.
pub(crate) struct Arena<T: 'static> {
    chunks: [AtomicPtr<Chunk<T>>; CHUNKS],
}

#[repr(C)]
struct Chunk<T> {
    /// Bit *n*: item *n* is in use.
    used: AtomicU64,
    items: [Locked<T>; PER_CHUNK],
}

/// What an address is.
pub(crate) enum Found<T: 'static> {
    /// An object in use.
    Object(&'static Locked<T>),
    /// In our memory, but no object in use.
    Dead,
    /// Nothing of ours.
    Foreign,
}

impl<T: FromZeros + 'static> Arena<T> {
    /// An arena that has no memory yet.
    pub(crate) const fn new() -> Self {
        Self { chunks: [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS] }
    }

    fn chunks(&self) -> impl Iterator<Item = &'static Chunk<T>> {
        // SAFETY: null or a chunk that `grow` has leaked.
        self.chunks.iter().map_while(|chunk| unsafe { chunk.load(Ordering::Acquire).as_ref() })
    }

    /// Takes an object that nobody uses, as it was left; `None` if there is no more memory.
    pub(crate) fn claim(&self) -> Option<&'static Locked<T>> {
        self.chunks().find_map(Chunk::claim).or_else(|| self.grow())
    }

    #[cold]
    fn grow(&self) -> Option<&'static Locked<T>> {
        let place = self.chunks.iter().find(|chunk| chunk.load(Ordering::Acquire).is_null())?;
        let pages = Pages::new(size_of::<Chunk<T>>())?;
        // A huge page would be cleared whole for the first object. Without the advice it costs time only.
        // SAFETY: the range is our own mapping; the advice changes nothing that can be seen.
        let _ = unsafe {
            rustix::mm::madvise(pages.start.as_ptr().cast(), pages.len, rustix::mm::Advice::LinuxNoHugepage)
        };
        let chunk = pages.start.cast::<Chunk<T>>().as_ptr();
        if place.compare_exchange(std::ptr::null_mut(), chunk, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            std::mem::forget(pages);
        }
        // Ours, or that of whoever came first.
        self.chunks().find_map(Chunk::claim)
    }

    /// Finds the object at an address.
    #[inline]
    pub(crate) fn find(&self, address: usize) -> Found<T> {
        for chunk in self.chunks() {
            let start = (&raw const chunk.items).addr();
            let Some(offset) =
                address.checked_sub(start).filter(|offset| *offset < size_of_val(&chunk.items))
            else {
                continue;
            };
            let index = offset / size_of::<Locked<T>>();
            let is_object =
                offset % size_of::<Locked<T>>() == 0 && chunk.used.load(Ordering::Acquire) & 1 << index != 0;
            return match chunk.items.get(index) {
                Some(object) if is_object => Found::Object(object),
                _ => Found::Dead,
            };
        }
        Found::Foreign
    }

    /// Gives an object back. It must not be used by anybody any more.
    pub(crate) fn release(&self, object: &'static Locked<T>) {
        for chunk in self.chunks() {
            if let Some(index) = chunk.items.iter().position(|item| std::ptr::eq(item, object)) {
                chunk.used.fetch_and(!(1 << index), Ordering::Release);
            }
        }
    }

    /// The objects in use.
    pub(crate) fn claimed(&self) -> impl Iterator<Item = &'static Locked<T>> {
        self.chunks().flat_map(|chunk| {
            let used = chunk.used.load(Ordering::Acquire);
            chunk
                .items
                .iter()
                .enumerate()
                .filter(move |(index, _)| used & 1 << index != 0)
                .map(|(_, item)| item)
        })
    }
}

impl<T> Chunk<T> {
    /// Takes the first object that nobody uses: its memory is the likeliest to be touched already.
    fn claim(&self) -> Option<&Locked<T>> {
        let mut used = self.used.load(Ordering::Relaxed);
        while used != u64::MAX {
            let index = (!used).trailing_zeros();
            used = self.used.fetch_or(1 << index, Ordering::AcqRel);
            if used & 1 << index == 0 {
                return self.items.get(index as usize);
            }
        }
        None
    }
}

/// A value behind a lock. All zeroes is a free lock.
pub(crate) struct Locked<T> {
    /// The holder, by the address of its errno; 0 if there is none.
    owner: AtomicU64,
    waiting: AtomicU32,
    /// Changes when a holder with waiters lets go.
    turn: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the lock only.
unsafe impl<T: Send> Sync for Locked<T> {}

fn me() -> u64 {
    errno_location().addr() as u64
}

impl<T> Locked<T> {
    /// Waits for the value, at most for so many looks at the lock, a few milliseconds each. `None` if that was in vain,
    /// or if this very thread has it: a signal handler that interrupted the holder.
    pub(crate) fn lock(&self, looks: u32) -> Option<Guard<'_, T>> {
        let me = me();
        for _ in 0..=looks {
            let turn = self.turn.load(Ordering::Acquire);
            match self.owner.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Guard(self)),
                Err(owner) if owner == me => return None,
                Err(_) => {
                    self.waiting.fetch_add(1, Ordering::AcqRel);
                    // Whatever comes of it, the lock is looked at again.
                    let _ = futex::wait(&self.turn, futex::Flags::PRIVATE, turn, Some(&LOOK_AGAIN));
                    self.waiting.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
        None
    }

    /// Takes the lock away from this thread itself, which will not come back to where it was locked.
    pub(crate) fn seize(&self) {
        let _ = self.owner.compare_exchange(me(), 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// In a forked child, which is alone: frees a lock that another thread of the parent held; whether there was one.
    pub(crate) fn free_after_fork(&self) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        let another = owner != 0 && owner != me();
        if another {
            self.owner.store(0, Ordering::Release);
        }
        self.waiting.store(0, Ordering::Relaxed);
        another
    }
}

/// The locked value.
pub(crate) struct Guard<'l, T>(&'l Locked<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard's owner holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and the guard is borrowed exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.0.owner.store(0, Ordering::Release);
        if self.0.waiting.load(Ordering::Acquire) != 0 {
            self.0.turn.fetch_add(1, Ordering::Release);
            // Fails only for addresses that are not mapped.
            let _ = futex::wake(&self.0.turn, futex::Flags::PRIVATE, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(FromZeros)]
    struct Large {
        count: u64,
        _rest: [u64; 1000],
    }

    #[test]
    fn addresses_are_told_apart() {
        static ARENA: Arena<Large> = Arena::new();
        assert!(matches!(ARENA.find(0), Found::Foreign));
        let objects: Vec<_> = (0..200).map(|_| ARENA.claim().unwrap()).collect();
        let address = |object: &Locked<Large>| (&raw const *object).addr();
        for object in &objects {
            assert!(
                matches!(ARENA.find(address(object)), Found::Object(found) if std::ptr::eq(found, *object))
            );
            assert!(matches!(ARENA.find(address(object) + 8), Found::Dead));
        }
        assert!(matches!(ARENA.find((&raw const objects).addr()), Found::Foreign));
        assert_eq!(ARENA.claimed().count(), 200);
        ARENA.release(objects[3]);
        assert!(matches!(ARENA.find(address(objects[3])), Found::Dead));
        assert!(std::ptr::eq(ARENA.claim().unwrap(), objects[3]), "used again at once");
    }

    #[test]
    fn a_lock_excludes_threads_and_fails_for_its_own() {
        static ARENA: Arena<Large> = Arena::new();
        let object = ARENA.claim().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        object.lock(u32::MAX).unwrap().count += 1;
                    }
                });
            }
        });
        let guard = object.lock(0).unwrap();
        assert_eq!(guard.count, 20_000);
        assert!(object.lock(u32::MAX).is_none(), "held by this very thread");
        std::thread::scope(|scope| drop(scope.spawn(|| assert!(object.lock(1).is_none(), "patience ends"))));
    }
}
