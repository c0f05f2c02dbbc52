//! What a client counts, in its own segment: calls served by round trip and from the metadata table, by operation, and calls left
//! to the kernel, by reason. The client alone writes; the daemon reads for `finesse status`.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::frame::{Fallback, Op};

const OPS: usize = 64;
const REASONS: usize = 32;
/// Where calls are counted that were served from the table.
const TABLE: usize = OPS + REASONS;
const CELLS: usize = TABLE + OPS;

/// Counters in shared memory: operations in the first part, reasons to fall back in the second, and in the third operations that
/// the table answered.
#[repr(C, align(64))]
pub struct Counters {
    cells: [AtomicU64; CELLS],
}

const _: () = assert!(Op::ALL.len() <= OPS && Fallback::ALL.len() <= REASONS);

impl Counters {
    /// Counts a call that was served by a round trip.
    #[inline]
    pub fn served(&self, op: Op) {
        self.cells[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that was served from the metadata table, without a round trip. Of what two threads count at the same moment one may be
    /// lost: a locked instruction would be a tenth of the call.
    #[inline]
    pub fn looked_up(&self, op: Op) {
        let cell = &self.cells[TABLE + op as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Counts a call that was left to the kernel.
    #[inline]
    pub fn fell_back(&self, reason: Fallback) {
        self.fell_back_before(reason, 1);
    }

    /// Counts calls that were left to the kernel before there were counters.
    pub fn fell_back_before(&self, reason: Fallback, calls: u64) {
        self.cells[OPS + reason as usize].fetch_add(calls, Ordering::Relaxed);
    }

    /// How many calls were served without the kernel, by this operation.
    pub fn count(&self, op: Op) -> u64 {
        let read = |cell: usize| self.cells[cell].load(Ordering::Relaxed);
        read(op as usize).wrapping_add(read(TABLE + op as usize))
    }

    /// The counts at this moment.
    pub fn snapshot(&self) -> Counts {
        let read = |cell: usize| self.cells[cell].load(Ordering::Relaxed);
        Counts {
            served: (0..Op::ALL.len()).map(|op| read(op).saturating_add(read(TABLE + op))).collect(),
            looked_up: (0..Op::ALL.len()).map(|op| read(TABLE + op)).collect(),
            fell_back: (0..Fallback::ALL.len()).map(|reason| read(OPS + reason)).collect(),
        }
    }
}

/// A copy of a client's counters, or a sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    served: Vec<u64>,
    looked_up: Vec<u64>,
    fell_back: Vec<u64>,
}

impl Counts {
    /// Adds another's counts. Saturates: a client may write anything into its segment.
    pub fn add(&mut self, other: &Self) {
        let sum = |mine: &mut Vec<u64>, theirs: &[u64]| {
            mine.resize(mine.len().max(theirs.len()), 0);
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine = mine.saturating_add(*theirs);
            }
        };
        sum(&mut self.served, &other.served);
        sum(&mut self.looked_up, &other.looked_up);
        sum(&mut self.fell_back, &other.fell_back);
    }

    /// Calls served without the kernel, by round trip or from the metadata table, by operation, without those that are zero.
    pub fn served(&self) -> impl Iterator<Item = (Op, u64)> {
        Op::ALL.iter().copied().zip(self.served.iter().copied()).filter(|(_, count)| *count > 0)
    }

    /// Those of them that were served from the metadata table, by operation, without those that are zero.
    pub fn looked_up(&self) -> impl Iterator<Item = (Op, u64)> {
        Op::ALL.iter().copied().zip(self.looked_up.iter().copied()).filter(|(_, count)| *count > 0)
    }

    /// Calls left to the kernel, by reason, without those that are zero.
    pub fn fell_back(&self) -> impl Iterator<Item = (Fallback, u64)> {
        Fallback::ALL.iter().copied().zip(self.fell_back.iter().copied()).filter(|(_, count)| *count > 0)
    }

    /// All calls served without the kernel, by round trip or from the metadata table.
    pub fn total_served(&self) -> u64 {
        self.served.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// All calls served from the metadata table.
    pub fn total_looked_up(&self) -> u64 {
        self.looked_up.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// All calls left to the kernel.
    pub fn total_fell_back(&self) -> u64 {
        self.fell_back.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}
