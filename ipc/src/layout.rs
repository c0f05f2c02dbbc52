//! Where everything lies inside a client's segment.
//!
//! ```text
//! 0                Header   (magic, version, bitmap, worker words, counters)
//! HEADER_SIZE      Slot × SLOTS        (state word, request, reply)
//! PATHS_OFFSET     two path buffers per slot
//! DATA_OFFSET      one data buffer per slot
//! ```
//!
//! Paths and data take memory only when touched, so an idle client costs a few pages.
//! Everything shared is an atomic, so that the two sides may race without undefined behaviour: frames and
//! paths are copied word by word (relaxed) and ordered by the ring's bitmap and state words.

use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::counters::Counters;
use crate::frame::{REPLY_HEAD, REQUEST_HEAD, Reply, Request};

/// Marks a segment of ours ("FINESSE1", little endian).
pub const MAGIC: u64 = u64::from_le_bytes(*b"FINESSE1");
/// Slots per client: one bit each in the submission bitmap.
pub const SLOTS: usize = 64;
/// Bytes of one path buffer.
pub const PATH_BYTES: usize = 4096;
/// Bytes of one data buffer: the largest transfer in one round trip. Only what is used takes memory.
pub const DATA_BYTES: usize = 1024 * 1024;

/// The first page of a segment.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`crate::handshake::VERSION`].
    pub version: AtomicU32,
    /// Not 0 if the client takes what it is granted out of the daemon ([`crate::frame::REPLY_HELD`]). The client alone writes.
    pub pulls: AtomicU32,
    /// The submission bitmap: the one word of the header that every operation writes.
    pub submitted: Line<AtomicU64>,
    /// What every operation reads and hardly any writes.
    pub notices: Line<Notices>,
    /// What the client counts.
    pub counters: Counters,
}

/// What the daemon lets the client know.
#[repr(C)]
pub struct Notices {
    /// [`crate::ring::AWAKE`] or [`crate::ring::ASLEEP`]: whether a worker looks at the bitmap.
    pub worker: AtomicU32,
    /// The CPU on which the worker that last served this client runs.
    pub worker_cpu: AtomicU32,
    /// Changes whenever the daemon's mount table does in what decides where a client's paths lead (FUSE mounts, and others at,
    /// above or below this one); the client then looks at its own again.
    pub mount_generation: AtomicU64,
    /// Set when the connection has ended: the client stays on the kernel road from then on.
    pub closed: AtomicU32,
}

/// One slot: a request and its reply. The first cache line is all that an operation without attributes needs.
#[repr(C, align(64))]
pub struct Slot {
    /// State word, also the futex word; see [`crate::ring`].
    pub state: AtomicU32,
    /// The CPU on which the client submitted.
    pub cpu: AtomicU32,
    /// The first words of the [`Reply`].
    pub reply_head: [AtomicU64; REPLY_HEAD / 8],
    /// The first words of the [`Request`].
    pub request_head: [AtomicU64; REQUEST_HEAD / 8],
    /// The rest of the request.
    pub request_tail: Line<[AtomicU64; (size_of::<Request>() - REQUEST_HEAD) / 8]>,
    /// The rest of the reply.
    pub reply_body: Line<[AtomicU64; (size_of::<Reply>() - REPLY_HEAD) / 8]>,
}

/// Keeps a word, or a few, away from its neighbours' cache lines.
#[repr(C, align(64))]
pub struct Line<T>(pub T);

impl<T> std::ops::Deref for Line<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Bytes reserved for the header.
pub const HEADER_SIZE: usize = 4096;
/// Where the path buffers begin.
pub const PATHS_OFFSET: usize = (HEADER_SIZE + SLOTS * size_of::<Slot>()).next_multiple_of(4096);
/// Where the data buffers begin.
pub const DATA_OFFSET: usize = PATHS_OFFSET + SLOTS * 2 * PATH_BYTES;
/// Size of a client's segment in bytes.
pub const SEGMENT_BYTES: usize = DATA_OFFSET + SLOTS * DATA_BYTES;

const _: () = {
    assert!(size_of::<Header>() <= HEADER_SIZE);
    assert!(size_of::<Slot>() == 256 && std::mem::offset_of!(Slot, request_tail) == 64);
    assert!(SLOTS == u64::BITS as usize);
    assert!(PATH_BYTES > crate::frame::PATH_MAX && PATH_BYTES.is_multiple_of(8));
    assert!(SEGMENT_BYTES.is_multiple_of(4096));
};
