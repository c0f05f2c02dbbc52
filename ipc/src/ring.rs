//! The state machine that hands a slot from a client to a worker and back, and the doorbell.
//!
//! Everything here is generic over its atomics, so that `loom` runs the very code that runs in shared
//! memory (`RUSTFLAGS="--cfg loom" cargo test -p finesse-ipc --release`).
//!
//! A client submits slot *n* by setting bit *n* of the submission bitmap; a worker claims it by clearing the
//! bit. The slot's state word tells the client when the reply is there, and the worker whether the client
//! sleeps on it. Nothing a client writes into these words can harm the daemon: a bit is only a bit, and any
//! state other than [`SLEEPING`] means "nobody to wake".

use std::sync::atomic::Ordering;

/// The client owns the slot or waits for it, awake.
pub const PENDING: u32 = 0;
/// The client sleeps on the state word; the worker must wake it.
pub const SLEEPING: u32 = 1;
/// The reply is in the slot.
pub const DONE: u32 = 2;

/// Some worker looks at the client's bitmap.
pub const AWAKE: u32 = 0;
/// No worker looks: the client must ring the doorbell.
pub const ASLEEP: u32 = 1;

/// The operations on an atomic word that the ring needs; implemented by std's atomics and, in tests, loom's.
pub trait Atomic<T> {
    /// Loads the value.
    fn load(&self, order: Ordering) -> T;
    /// Stores a value.
    fn store(&self, value: T, order: Ordering);
    /// Stores a value and returns the one before.
    fn swap(&self, value: T, order: Ordering) -> T;
    /// Replaces `current` by `new`; on failure returns what was there.
    fn compare_exchange(&self, current: T, new: T, ok: Ordering, err: Ordering) -> Result<T, T>;
    /// Sets bits and returns the value before.
    fn fetch_or(&self, bits: T, order: Ordering) -> T;
    /// Keeps only `bits` and returns the value before.
    fn fetch_and(&self, bits: T, order: Ordering) -> T;
}

macro_rules! atomic {
    ($atomic:ty, $value:ty) => {
        impl Atomic<$value> for $atomic {
            #[inline]
            fn load(&self, order: Ordering) -> $value {
                <$atomic>::load(self, order)
            }
            #[inline]
            fn store(&self, value: $value, order: Ordering) {
                <$atomic>::store(self, value, order)
            }
            #[inline]
            fn swap(&self, value: $value, order: Ordering) -> $value {
                <$atomic>::swap(self, value, order)
            }
            #[inline]
            fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                ok: Ordering,
                err: Ordering,
            ) -> Result<$value, $value> {
                <$atomic>::compare_exchange(self, current, new, ok, err)
            }
            #[inline]
            fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                <$atomic>::fetch_or(self, bits, order)
            }
            #[inline]
            fn fetch_and(&self, bits: $value, order: Ordering) -> $value {
                <$atomic>::fetch_and(self, bits, order)
            }
        }
    };
}

atomic!(std::sync::atomic::AtomicU32, u32);
atomic!(std::sync::atomic::AtomicU64, u64);
#[cfg(all(loom, test))]
atomic!(loom::sync::atomic::AtomicU32, u32);
#[cfg(all(loom, test))]
atomic!(loom::sync::atomic::AtomicU64, u64);

/// Client: submits `slot` (< 64) and returns whether the doorbell must be rung.
///
/// The request must be written and the slot's state be [`PENDING`] before. Together with [`fall_asleep`]: either
/// the worker sees the bit, or the client sees that the worker sleeps, because both read and modify the bitmap,
/// and whoever comes second sees all that the first did before.
#[inline]
pub fn submit(bitmap: &impl Atomic<u64>, worker: &impl Atomic<u32>, slot: u32) -> bool {
    bitmap.fetch_or(1 << slot, Ordering::AcqRel);
    worker.load(Ordering::Relaxed) == ASLEEP && worker.swap(AWAKE, Ordering::AcqRel) == ASLEEP
}

/// Worker: claims the lowest submitted slot, if any.
///
/// Several workers may look at one bitmap: each submitted bit is claimed exactly once.
#[inline]
pub fn claim(bitmap: &impl Atomic<u64>) -> Option<u32> {
    let mut bits = bitmap.load(Ordering::Relaxed);
    while bits != 0 {
        let slot = bits.trailing_zeros();
        // Acquire: what the client wrote into the slot before submitting is visible to the claimer.
        let before = bitmap.fetch_and(!(1 << slot), Ordering::Acquire);
        if before & (1 << slot) != 0 {
            return Some(slot);
        }
        bits = before & !(1 << slot);
    }
    None
}

/// Worker: declares that nobody looks at the bitmap any more; `false` if something was submitted meanwhile,
/// and then the declaration is withdrawn.
#[inline]
pub fn fall_asleep(bitmap: &impl Atomic<u64>, worker: &impl Atomic<u32>) -> bool {
    worker.store(ASLEEP, Ordering::Relaxed);
    // Reads and modifies, although there is nothing to modify: see `submit`.
    if bitmap.fetch_or(0, Ordering::AcqRel) == 0 {
        return true;
    }
    worker.store(AWAKE, Ordering::Relaxed);
    false
}

/// Client: makes a slot it has claimed ready for a new request.
#[inline]
pub fn prepare(state: &impl Atomic<u32>) {
    // Relaxed: submitting the slot orders it.
    state.store(PENDING, Ordering::Relaxed);
}

/// Client: whether the reply is there; if so, everything the worker wrote before is visible.
#[inline]
pub fn is_done(state: &impl Atomic<u32>) -> bool {
    state.load(Ordering::Acquire) == DONE
}

/// Client: declares that it is about to sleep on the state word; `false` if the reply came first.
#[inline]
pub fn declare_sleep(state: &impl Atomic<u32>) -> bool {
    match state.compare_exchange(PENDING, SLEEPING, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(found) => found == SLEEPING,
    }
}

/// Worker: publishes the reply; returns whether the client sleeps and must be woken.
#[inline]
pub fn complete(state: &impl Atomic<u32>) -> bool {
    state.swap(DONE, Ordering::AcqRel) == SLEEPING
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    #[test]
    fn a_slot_is_claimed_once_and_lowest_first() {
        let (bitmap, worker) = (AtomicU64::new(0), AtomicU32::new(AWAKE));
        for slot in [63, 0, 17] {
            assert!(!submit(&bitmap, &worker, slot));
        }
        assert_eq!(
            [claim(&bitmap), claim(&bitmap), claim(&bitmap), claim(&bitmap)],
            [Some(0), Some(17), Some(63), None]
        );
    }

    #[test]
    fn only_the_first_submission_rings_a_sleeping_worker() {
        let (bitmap, worker) = (AtomicU64::new(0), AtomicU32::new(AWAKE));
        assert!(fall_asleep(&bitmap, &worker));
        assert!(submit(&bitmap, &worker, 1));
        assert!(!submit(&bitmap, &worker, 2));
    }

    #[test]
    fn a_worker_does_not_fall_asleep_over_a_submission() {
        let (bitmap, worker) = (AtomicU64::new(0), AtomicU32::new(AWAKE));
        submit(&bitmap, &worker, 5);
        assert!(!fall_asleep(&bitmap, &worker));
        assert_eq!(worker.into_inner(), AWAKE);
    }

    #[test]
    fn a_declared_sleeper_is_woken_and_others_are_not() {
        let state = AtomicU32::new(PENDING);
        assert!(!complete(&state));
        assert!(is_done(&state) && !declare_sleep(&state));
        prepare(&state);
        assert!(declare_sleep(&state) && declare_sleep(&state));
        assert!(complete(&state));
    }
}

#[cfg(all(test, loom))]
#[allow(unsafe_code)]
mod models {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, AtomicU64};
    use loom::thread;

    use super::*;

    struct Shared {
        bitmap: AtomicU64,
        worker: AtomicU32,
        bell: AtomicU32,
        state: [AtomicU32; 2],
        frame: [UnsafeCell<u32>; 2],
    }

    impl Shared {
        fn new(worker: u32) -> Arc<Self> {
            Arc::new(Self {
                bitmap: AtomicU64::new(0),
                worker: AtomicU32::new(worker),
                bell: AtomicU32::new(0),
                state: [AtomicU32::new(PENDING), AtomicU32::new(PENDING)],
                frame: [UnsafeCell::new(0), UnsafeCell::new(0)],
            })
        }

        fn send(&self, slot: usize, value: u32) {
            prepare(&self.state[slot]);
            self.frame[slot].with_mut(|frame| {
                // SAFETY: loom checks that the slot is ours alone between prepare and submit.
                unsafe { *frame = value }
            });
            if submit(&self.bitmap, &self.worker, slot as u32) {
                self.bell.store(1, Ordering::SeqCst);
            }
        }

        /// Serves one claimed slot by doubling its frame.
        fn serve(&self, slot: u32) -> bool {
            let slot = slot as usize;
            self.frame[slot].with_mut(|frame| {
                // SAFETY: loom checks that a claimed slot is ours alone until it is completed.
                unsafe { *frame *= 2 }
            });
            complete(&self.state[slot])
        }

        fn answer(&self, slot: usize) -> u32 {
            self.frame[slot].with(|frame| {
                // SAFETY: loom checks that the slot is the client's again once it is done.
                unsafe { *frame }
            })
        }
    }

    #[test]
    fn a_request_and_its_reply_are_seen_whole() {
        loom::model(|| {
            let shared = Shared::new(AWAKE);
            let worker = thread::spawn({
                let shared = shared.clone();
                move || {
                    while claim(&shared.bitmap).map(|slot| shared.serve(slot)).is_none() {
                        thread::yield_now();
                    }
                }
            });
            shared.send(0, 21);
            while !is_done(&shared.state[0]) {
                thread::yield_now();
            }
            assert_eq!(shared.answer(0), 42);
            worker.join().unwrap();
        });
    }

    #[test]
    fn two_workers_claim_a_slot_once() {
        loom::model(|| {
            let shared = Shared::new(AWAKE);
            shared.send(0, 1);
            shared.send(1, 2);
            let other = thread::spawn({
                let shared = shared.clone();
                move || claim(&shared.bitmap).map(|slot| shared.serve(slot)).is_some() as u32
            });
            let mut served = 0;
            while let Some(slot) = claim(&shared.bitmap) {
                shared.serve(slot);
                served += 1;
            }
            assert_eq!(served + other.join().unwrap(), 2);
            assert_eq!((shared.answer(0), shared.answer(1)), (2, 4));
        });
    }

    /// A submission is never lost: a worker that falls asleep has either seen it or is rung.
    #[test]
    fn no_submission_is_lost_by_a_worker_that_falls_asleep() {
        loom::model(|| {
            let shared = Shared::new(AWAKE);
            let client = thread::spawn({
                let shared = shared.clone();
                move || shared.send(0, 1)
            });
            let slept = fall_asleep(&shared.bitmap, &shared.worker);
            client.join().unwrap();
            if slept {
                assert_eq!(shared.bell.load(Ordering::SeqCst), 1, "asleep and not rung");
            } else {
                assert_eq!(claim(&shared.bitmap), Some(0));
            }
        });
    }

    /// A client that declares itself asleep is woken, or sees the reply before it sleeps.
    #[test]
    fn no_sleeping_client_is_forgotten() {
        loom::model(|| {
            let shared = Shared::new(AWAKE);
            shared.send(0, 1);
            let worker = thread::spawn({
                let shared = shared.clone();
                move || claim(&shared.bitmap).is_some_and(|slot| shared.serve(slot))
            });
            let sleeps = declare_sleep(&shared.state[0]);
            let woken = worker.join().unwrap();
            assert_eq!(sleeps, woken, "a sleeper must be woken, and only a sleeper");
            assert!(is_done(&shared.state[0]));
            assert_eq!(shared.answer(0), 2);
        });
    }
}
