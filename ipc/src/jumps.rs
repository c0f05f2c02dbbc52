//! Calls that a thread has left by a jump out of a signal handler (`siglongjmp`), and the slots that they hold for ever.
//!
//! Nobody is told that such a call is over. But from the first jump of a process on, each call says where on the stack it begins. On
//! one stack, a call that begins at the place of another one, or above it, has outlived that: the frames of whoever
//! is interrupted lie above those of the signal's handler.
//!
//! A signal handler may come in between any two steps here, make calls of its own, and jump. Then a slot may stay lost, but none
//! is taken from a call that goes on.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// Some thread has jumped.
static EXPECTED: AtomicBool = AtomicBool::new(false);

/// A slot in use by a call of this thread's.
struct Held {
    /// Where the call begins; 0 if this is nobody's.
    place: Cell<usize>,
    client: Cell<u32>,
    /// [`NONE`] as long as that is not said.
    slot: Cell<u32>,
}

const NONE: u32 = u32::MAX;

thread_local! {
    /// Where the innermost call begins; 0 if no call has said so.
    static BEGINNING: Cell<usize> = const { Cell::new(0) };
    /// What finds no room here is not taken back.
    static HELD: [Held; 16] =
        const { [const { Held { place: Cell::new(0), client: Cell::new(0), slot: Cell::new(NONE) } }; 16] };
}

/// Frames on one stack are no farther apart than this (the usual limit of a stack).
const STACK: usize = 8 << 20;

/// Somebody jumps: from here on calls say where they begin.
pub fn happen() {
    EXPECTED.store(true, Ordering::Relaxed);
}

/// Whether calls are to say where they begin.
#[inline]
pub fn are_expected() -> bool {
    EXPECTED.load(Ordering::Relaxed)
}

/// A call, for as long as this value lives.
#[derive(Debug)]
pub struct Beginning {
    place: usize,
    /// Where the call that this one interrupts begins; 0 if it interrupts none.
    outer: usize,
}

impl Beginning {
    /// A call begins at this address of the stack: all of its frames are below.
    pub fn at(place: usize) -> Self {
        // What lies below was left by a jump.
        let outer = Some(BEGINNING.replace(place)).filter(|outer| *outer > place).unwrap_or(0);
        Self { place, outer }
    }

    fn outlives(&self, place: usize) -> bool {
        place != 0 && place <= self.place && self.place - place < STACK
    }

    /// Whether this thread has left calls with slots, if it is on the stack that they were on.
    pub fn has_outlived_any(&self) -> bool {
        HELD.with(|held| held.iter().any(|held| self.outlives(held.place.get())))
    }

    /// Calls `take_back` for each slot of a call that this one has outlived, with the client's number; where it
    /// answers `false`, it is called again another time.
    pub fn each_outlived(&self, mut take_back: impl FnMut(u32, u32) -> bool) {
        HELD.with(|held| {
            for held in held.iter().filter(|held| self.outlives(held.place.get())) {
                if held.slot.get() == NONE || take_back(held.client.get(), held.slot.get()) {
                    held.clear();
                }
            }
        });
    }
}

impl Drop for Beginning {
    fn drop(&mut self) {
        BEGINNING.set(self.outer);
    }
}

impl Held {
    fn clear(&self) {
        self.slot.set(NONE);
        self.place.set(0);
    }
}

/// This thread's innermost call uses a slot of a client.
pub(crate) fn uses(client: u32, slot: u32) {
    let place = BEGINNING.get();
    if place == 0 {
        return;
    }
    HELD.with(|held| {
        if let Some(held) = held.iter().find(|held| held.place.get() == 0) {
            // From here on the place is not a signal handler's any more.
            held.place.set(place);
            held.client.set(client);
            held.slot.set(slot);
        }
    });
}

/// Takes [`uses`] back.
pub(crate) fn used(client: u32, slot: u32) {
    HELD.with(|held| {
        let is_it = |held: &&Held| held.slot.get() == slot && held.client.get() == client;
        if let Some(held) = held.iter().find(is_it) {
            held.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outlived(call: &Beginning, answer: bool) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        call.each_outlived(|client, slot| {
            found.push((client, slot));
            answer
        });
        found
    }

    #[test]
    fn a_call_outlives_those_that_began_below_it() {
        let outer = Beginning::at(0x7fff_0000);
        uses(1, 5);
        let inner = Beginning::at(0x7ffe_0000);
        uses(1, 6);
        uses(2, 5);
        used(2, 5);
        let deeper = Beginning::at(0x7ffd_0000);
        assert!(!deeper.has_outlived_any());
        assert_eq!(outlived(&deeper, true), []);
        std::mem::forget((inner, deeper));
        let next = Beginning::at(0x7ffe_0000);
        assert!(next.has_outlived_any());
        assert_eq!(outlived(&next, false), [(1, 6)], "not yet");
        assert_eq!(outlived(&next, true), [(1, 6)]);
        assert!(!next.has_outlived_any());
        let elsewhere = Beginning::at(0x7f00_0000_0000);
        assert!(!elsewhere.has_outlived_any(), "on another stack");
        drop((elsewhere, next));
        assert_eq!(outlived(&outer, true), [(1, 5)]);
    }

    #[test]
    fn what_finds_no_room_is_forgotten() {
        let call = Beginning::at(0x7fff_0000);
        (0..20).for_each(|slot| uses(1, slot));
        (10..20).for_each(|slot| used(1, slot));
        assert_eq!(outlived(&call, true).len(), 10);
    }
}
