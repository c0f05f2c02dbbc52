//! Shared memory: the sealed memfds of a client's segment and of a mount's metadata table, their mappings, and safe access to
//! what lies inside.
//!
//! This module holds the crate's `unsafe` code. Everything it hands out is a reference to atomics, so neither
//! side can break the other's memory safety, whatever it writes.

#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use zerocopy::FromZeros;

use crate::frame::{Op, REPLY_BODY, REPLY_HEAD, REQUEST_HEAD, Reply, Request};
use crate::handshake::VERSION;
use crate::layout::{
    DATA_BYTES, DATA_OFFSET, HEADER_SIZE, Header, MAGIC, PATH_BYTES, PATHS_OFFSET, SEGMENT_BYTES, SLOTS, Slot,
};
use crate::table::{self, Table};

/// A mapping of a client's segment; unmapped on drop.
pub struct Segment {
    base: NonNull<u8>,
}

// SAFETY: the mapping is shared memory made of atomics only, valid from any thread until drop.
unsafe impl Send for Segment {}
// SAFETY: as above; every access goes through atomics.
unsafe impl Sync for Segment {}

impl Segment {
    /// Daemon: creates a segment and the descriptor to pass to the client, sealed against any change of size,
    /// so that neither side can be made to touch memory beyond its end.
    ///
    /// # Errors
    /// What `memfd_create`, `ftruncate`, `fcntl(F_ADD_SEALS)` or `mmap` answer (`EMFILE`, `ENOMEM`).
    pub fn create() -> Result<(Self, OwnedFd)> {
        let fd =
            rustix::fs::memfd_create(c"finesse-client", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, SEGMENT_BYTES as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let segment = Self::map(&fd)?;
        let header = segment.header();
        header.version.store(VERSION, Ordering::Relaxed);
        header.notices.worker.store(crate::ring::ASLEEP, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok((segment, fd))
    }

    /// Client: maps a segment that a daemon passed. Children do not inherit the mapping (`MADV_DONTFORK`).
    ///
    /// # Errors
    /// `EPROTO` if the descriptor is not a sealed segment of this version; otherwise what the kernel answers.
    pub fn open(fd: impl AsFd) -> Result<Self> {
        let sealed = SealFlags::SHRINK | SealFlags::GROW;
        if !rustix::fs::fcntl_get_seals(&fd)?.contains(sealed)
            || rustix::fs::fstat(&fd)?.st_size != SEGMENT_BYTES as i64
        {
            return Err(Errno::PROTO);
        }
        let segment = Self::map(&fd)?;
        // SAFETY: the range is exactly our own mapping; the advice changes only what a fork inherits.
        unsafe { rustix::mm::madvise(segment.base.as_ptr().cast(), SEGMENT_BYTES, Advice::LinuxDontFork)? };
        let header = segment.header();
        if header.magic.load(Ordering::Acquire) != MAGIC || header.version.load(Ordering::Relaxed) != VERSION
        {
            return Err(Errno::PROTO);
        }
        Ok(segment)
    }

    /// In a forked child, which did not inherit the mapping: puts a private, closed segment in its place, so that
    /// a call which the fork interrupted (from a signal handler) ends instead of touching unmapped memory.
    ///
    /// # Errors
    /// What `mmap` answers; `EEXIST` if the child has used the addresses for something else.
    pub fn stand_in(&self) -> Result<()> {
        // SAFETY: MAP_FIXED_NOREPLACE touches nothing that is mapped; the range is the one this value stands for.
        unsafe {
            rustix::mm::mmap_anonymous(
                self.base.as_ptr().cast(),
                SEGMENT_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE | MapFlags::NORESERVE,
            )?
        };
        self.header().notices.closed.store(1, Ordering::Release);
        Ok(())
    }

    fn map(fd: impl AsFd) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the memfd is
        // sealed against shrinking, so every byte of it stays backed.
        let base = unsafe {
            rustix::mm::mmap(
                null_mut(),
                SEGMENT_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        NonNull::new(base.cast()).map(|base| Self { base }).ok_or(Errno::NOMEM)
    }

    /// The header.
    #[inline]
    pub fn header(&self) -> &Header {
        // SAFETY: the mapping is page-aligned, at least HEADER_SIZE bytes long, lives as long as self, and
        // Header is made of atomics, valid for any bytes.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// Slot `index` (< [`SLOTS`]).
    #[inline]
    pub fn slot(&self, index: u32) -> &Slot {
        let index = index as usize % SLOTS;
        // SAFETY: the index is in bounds, the layout is checked at compile time (64-byte alignment), and Slot
        // is made of atomics.
        unsafe { self.base.add(HEADER_SIZE + index * size_of::<Slot>()).cast::<Slot>().as_ref() }
    }

    fn words(&self, offset: usize, bytes: usize) -> &[AtomicU64] {
        debug_assert!(offset.is_multiple_of(8) && offset + bytes <= SEGMENT_BYTES);
        // SAFETY: callers pass an 8-aligned range inside the mapping (the constants of `layout`); atomics are
        // valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.base.add(offset).cast::<AtomicU64>().as_ptr(), bytes / 8) }
    }

    fn path_words(&self, slot: u32, which: usize) -> &[AtomicU64] {
        self.words(PATHS_OFFSET + (slot as usize % SLOTS * 2 + which % 2) * PATH_BYTES, PATH_BYTES)
    }

    fn data_words(&self, slot: u32) -> &[AtomicU64] {
        self.words(DATA_OFFSET + slot as usize % SLOTS * DATA_BYTES, DATA_BYTES)
    }

    /// Daemon: fetches what a claimed slot's request lies in, all at once instead of one after the other.
    #[inline]
    pub fn prefetch(&self, slot: u32) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let path: *const AtomicU64 = self.path_words(slot, 0).as_ptr();
            let slot: *const Slot = self.slot(slot);
            // SAFETY: a prefetch has no effect but on caches, whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(slot.cast());
                _mm_prefetch::<_MM_HINT_T0>(path.cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = slot;
    }

    /// Writes path `which` (0 or 1) of a slot; at most [`PATH_BYTES`] bytes are written.
    pub fn write_path(&self, slot: u32, which: usize, path: &[u8]) {
        store_bytes(self.path_words(slot, which), path);
    }

    /// Copies path `which` out of a slot: the bytes as they were at one moment each, once.
    pub fn read_path<'b>(&self, slot: u32, which: usize, len: u32, buffer: &'b mut PathBuffer) -> &'b [u8] {
        let len = (len as usize).min(PATH_BYTES);
        load_bytes(self.path_words(slot, which), &mut buffer.0[..len])
    }

    /// Writes the data buffer of a slot from byte `offset` on: the pieces of a vector. What does not fit is cut off.
    pub fn write_data_at(&self, slot: u32, offset: usize, data: &[u8]) {
        let words = self.data_words(slot);
        let (first, within) = (offset / 8, offset % 8);
        let (head, data) = data.split_at(data.len().min((8 - within) % 8));
        let mut next = first;
        if within != 0 {
            let Some(cell) = words.get(first) else { return };
            let mut word = cell.load(Ordering::Relaxed).to_ne_bytes();
            word[within..within + head.len()].copy_from_slice(head);
            cell.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            next += 1;
        }
        if let Some(words) = words.get(next..) {
            store_bytes(words, data);
        }
    }

    /// Copies from byte `offset` of the data buffer of a slot on; returns the part of `out` that lies within it.
    pub fn read_data_at<'b>(&self, slot: u32, offset: usize, out: &'b mut [u8]) -> &'b [u8] {
        let len = out.len().min(DATA_BYTES.saturating_sub(offset));
        let out = &mut out[..len];
        let words = self.data_words(slot);
        let (first, within) = (offset / 8, offset % 8);
        let (head, rest) = out.split_at_mut(len.min((8 - within) % 8));
        let mut next = first;
        if within != 0 {
            if let Some(cell) = words.get(first) {
                let word = cell.load(Ordering::Relaxed).to_ne_bytes();
                head.copy_from_slice(&word[within..within + head.len()]);
            }
            next += 1;
        }
        if let Some(words) = words.get(next..) {
            load_bytes(words, rest);
        }
        out
    }

    /// Where the data buffer of a slot begins, [`DATA_BYTES`] long: for the kernel to copy to and from.
    pub fn data_start(&self, slot: u32) -> *mut u8 {
        self.data_words(slot).as_ptr().cast_mut().cast()
    }

    /// Writes the data buffer of a slot; at most [`DATA_BYTES`] bytes are written.
    pub fn write_data(&self, slot: u32, data: &[u8]) {
        store_bytes(self.data_words(slot), data);
    }

    /// Copies `out.len()` bytes, at most [`DATA_BYTES`], from the data buffer of a slot.
    pub fn read_data<'b>(&self, slot: u32, out: &'b mut [u8]) -> &'b [u8] {
        let len = out.len().min(DATA_BYTES);
        load_bytes(self.data_words(slot), &mut out[..len])
    }

    /// Client: writes a request.
    #[inline]
    pub fn write_request(&self, slot: u32, request: &Request) {
        let words: [u64; size_of::<Request>() / 8] = zerocopy::transmute!(*request);
        let slot = self.slot(slot);
        store(&slot.request_head, &words);
        if Op::has_tail(request.op) {
            store(&*slot.request_tail, &words[REQUEST_HEAD / 8..]);
        }
    }

    /// Daemon: copies a request out, once.
    #[inline]
    pub fn read_request(&self, slot: u32) -> Request {
        let mut words = [0; size_of::<Request>() / 8];
        let slot = self.slot(slot);
        load(&slot.request_head, &mut words);
        let head: Request = zerocopy::transmute!(words);
        if Op::has_tail(head.op) {
            load(&*slot.request_tail, &mut words[REQUEST_HEAD / 8..]);
        }
        zerocopy::transmute!(words)
    }

    /// Daemon: writes a reply.
    #[inline]
    pub fn write_reply(&self, slot: u32, reply: &Reply) {
        let words: [u64; size_of::<Reply>() / 8] = zerocopy::transmute!(*reply);
        let slot = self.slot(slot);
        store(&slot.reply_head, &words);
        if reply.flags & REPLY_BODY != 0 {
            store(&*slot.reply_body, &words[REPLY_HEAD / 8..]);
        }
    }

    /// Client: copies a reply out.
    #[inline]
    pub fn read_reply(&self, slot: u32) -> Reply {
        let mut words = [0; size_of::<Reply>() / 8];
        let slot = self.slot(slot);
        load(&slot.reply_head, &mut words);
        let head: Reply = zerocopy::transmute!(words);
        if head.flags & REPLY_BODY == 0 {
            return head;
        }
        load(&*slot.reply_body, &mut words[REPLY_HEAD / 8..]);
        zerocopy::transmute!(words)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping, and no reference to it outlives self.
        // Nothing sensible can be done when it fails.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), SEGMENT_BYTES) };
    }
}

/// A mapping of a mount's metadata table ([`crate::table`]); unmapped on drop. Forked children inherit it.
pub struct TableMap {
    base: NonNull<u8>,
    bytes: usize,
    shape: Option<table::Shape>,
}

// SAFETY: the mapping is shared memory made of atomics only, valid from any thread until drop.
unsafe impl Send for TableMap {}
// SAFETY: as above; every access goes through atomics.
unsafe impl Sync for TableMap {}

impl std::fmt::Debug for TableMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableMap").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl TableMap {
    /// Daemon: creates a table of so many bytes, and the descriptor to pass to clients. Its size is sealed, and so is its contents
    /// for everybody but this mapping (`F_SEAL_FUTURE_WRITE`). It takes memory only where it is used.
    ///
    /// # Errors
    /// What `memfd_create`, `ftruncate`, `fcntl(F_ADD_SEALS)` or `mmap` answer; `EINVAL` before Linux 5.1, which has no such
    /// seal, and for a size that is no table's.
    pub fn create(bytes: usize, seed: u64) -> Result<(Self, OwnedFd)> {
        if !(table::BYTES_MIN..=table::BYTES_MAX).contains(&bytes) {
            return Err(Errno::INVAL);
        }
        let bytes = bytes.next_multiple_of(4096);
        let fd = rustix::fs::memfd_create(c"finesse-table", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, bytes as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)?;
        let base = map_table(&fd, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        let mut this = Self { base, bytes, shape: None };
        rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        this.shape = Table::format(this.words(), VERSION, seed).map(|table| table.shape());
        Ok((this, fd))
    }

    /// Client: maps a table that a daemon passed.
    ///
    /// # Errors
    /// `EPROTO` if the descriptor is no table of this version; otherwise what the kernel answers (`ENOMEM` under a limit).
    pub fn open(fd: impl AsFd) -> Result<Self> {
        let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
        let bytes = usize::try_from(rustix::fs::fstat(&fd)?.st_size).map_err(|_| Errno::PROTO)?;
        if !rustix::fs::fcntl_get_seals(&fd)?.contains(sealed) || bytes < table::BYTES_MIN {
            return Err(Errno::PROTO);
        }
        let mut this = Self { base: map_table(&fd, bytes, ProtFlags::READ)?, bytes, shape: None };
        let shape = Table::new(this.words(), VERSION).map(|table| table.shape());
        this.shape = Some(shape.ok_or(Errno::PROTO)?);
        Ok(this)
    }

    /// Daemon: the huge pages, by their numbers, of which the table uses at least a half.
    pub fn huge_pages_in_use(&self) -> Vec<usize> {
        let Some(table) = self.table() else { return Vec::new() };
        let is_used = |page: &usize| {
            let (start, end) = (page * HUGE_PAGE, (page + 1) * HUGE_PAGE);
            let common = |used: Range<usize>| used.end.min(end).saturating_sub(used.start.max(start));
            table.used_bytes().map(common).into_iter().sum::<usize>() >= HUGE_PAGE / 2
        };
        (0..self.bytes / HUGE_PAGE).filter(is_used).collect()
    }

    /// Daemon: makes what lies in a huge page of this number one page. Memory is taken for all of it, so this is for a table that is about to
    /// fill.
    ///
    /// A program that looks much up takes a page fault for each small page that it touches, which costs many more than looking up, and
    /// most programs do not live long. Takes some milliseconds, while others go on.
    ///
    /// # Errors
    /// What `madvise(MADV_COLLAPSE)` answers: `EAGAIN` if others are just using a page there, so that it is worth trying again; `ENOMEM` or
    /// `EBUSY` if there is no memory, `EINVAL` before Linux 6.1, where huge pages are denied, and for a page that is not in the table.
    pub fn collapse(&self, page: usize) -> Result<()> {
        let start = page.checked_mul(HUGE_PAGE).filter(|start| *start < self.bytes).ok_or(Errno::INVAL)?;
        if self.bytes - start < HUGE_PAGE {
            return Err(Errno::INVAL);
        }
        // What holds no page at all is refused.
        self.words()[start / size_of::<u64>()].load(Ordering::Relaxed);
        // SAFETY: the range is within our own mapping, whose contents stay as they are.
        match unsafe { libc::madvise(self.base.as_ptr().add(start).cast(), HUGE_PAGE, MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, so many bytes long, lives as long as self, and cannot shrink; atomics are valid
        // for any bytes. Loads of a word are allowed on a mapping that is read-only, and a client does nothing else.
        unsafe { std::slice::from_raw_parts(self.base.cast::<AtomicU64>().as_ptr(), self.bytes / 8) }
    }

    /// The table.
    #[inline]
    pub fn table(&self) -> Option<Table<'_, AtomicU64>> {
        Some(Table::again(self.words(), self.shape?))
    }

    /// Daemon: the calling thread keeps the table from here on. Clients believe it until [`Table::keep`] with 0, or until the thread
    /// ends, however it does: the kernel tells that in the word itself (`exit_robust_list`).
    ///
    /// Takes the thread's list of robust futexes, so that it must use no robust mutex of libc's. Costs each caller a few bytes for
    /// good.
    ///
    /// # Errors
    /// What `set_robust_list` answers.
    pub fn keep(&self) -> Result<()> {
        let word = self.words()[table::HOLDER_AT].as_ptr();
        // The list has one entry, in memory of our own; the futex is elsewhere, where clients can read it.
        let list = Box::leak(Box::new(RobustList {
            next: null_mut(),
            offset: 0,
            pending: null_mut(),
            entry: null_mut(),
        }));
        let head: *mut RobustList = list;
        // SAFETY: `list` is leaked, so it is valid for as long as the thread; the fields are in bounds.
        unsafe {
            let entry = &raw mut (*head).entry;
            (*head).next = entry.cast();
            (*head).entry = head.cast();
            (*head).offset = word.addr().wrapping_sub(entry.addr()) as libc::c_long;
            let len = std::mem::offset_of!(RobustList, entry);
            if libc::syscall(libc::SYS_set_robust_list, head, len) != 0 {
                return Err(last_errno());
            }
        }
        if let Some(table) = self.table() {
            table.keep(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
        }
        Ok(())
    }
}

impl Drop for TableMap {
    fn drop(&mut self) {
        // SAFETY: the range is our own mapping, and no reference to it outlives self.
        // Nothing sensible can be done when it fails.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// `struct robust_list_head`, and the one entry of its list.
#[repr(C)]
struct RobustList {
    next: *mut libc::c_void,
    offset: libc::c_long,
    pending: *mut libc::c_void,
    entry: *mut libc::c_void,
}

/// What a page-table entry of the level above the last one maps, on x86-64 and on most others.
const HUGE_PAGE: usize = 2 << 20;
/// `madvise` advice of Linux 6.1 and later, which neither `libc` nor `rustix` names.
const MADV_COLLAPSE: libc::c_int = 25;

fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Maps a table so that its [huge pages](TableMap::collapse) can be mapped as such, if addresses permit.
fn map_table(fd: impl AsFd, bytes: usize, protection: ProtFlags) -> Result<NonNull<u8>> {
    let map = |hint: usize| {
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice, which prefers the hint where nothing is, touches no memory of ours; the
        // memfd is sealed against shrinking, so every byte of it stays backed.
        unsafe { rustix::mm::mmap(std::ptr::without_provenance_mut(hint), bytes, protection, flags, &fd, 0) }
    };
    let mut base = map(0)?;
    let over = base.addr() % HUGE_PAGE;
    if over != 0 && bytes >= HUGE_PAGE {
        // SAFETY: this is our own mapping, and there is no reference to it.
        unsafe { rustix::mm::munmap(base, bytes)? };
        // The kernel gives away the highest addresses that are free, so it goes on below.
        base = map(base.addr() - over)?;
    }
    NonNull::new(base.cast()).ok_or(Errno::NOMEM)
}

/// Room for one path on the way out of a segment.
pub struct PathBuffer([u8; PATH_BYTES]);

impl Default for PathBuffer {
    fn default() -> Self {
        Self(FromZeros::new_zeroed())
    }
}

#[inline]
fn store(cells: &[AtomicU64], words: &[u64]) {
    for (cell, word) in cells.iter().zip(words) {
        cell.store(*word, Ordering::Relaxed);
    }
}

#[inline]
fn load(cells: &[AtomicU64], words: &mut [u64]) {
    for (cell, word) in cells.iter().zip(words) {
        *word = cell.load(Ordering::Relaxed);
    }
}

fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (cell, chunk) in words.iter().zip(whole) {
        cell.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
    if let (false, Some(cell)) = (rest.is_empty(), words.get(whole.len())) {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        cell.store(u64::from_ne_bytes(last), Ordering::Relaxed);
    }
}

fn load_bytes<'b>(words: &[AtomicU64], out: &'b mut [u8]) -> &'b [u8] {
    let (whole, rest) = out.as_chunks_mut::<8>();
    let count = whole.len();
    for (cell, chunk) in words.iter().zip(whole) {
        *chunk = cell.load(Ordering::Relaxed).to_ne_bytes();
    }
    if let (false, Some(cell)) = (rest.is_empty(), words.get(count)) {
        rest.copy_from_slice(&cell.load(Ordering::Relaxed).to_ne_bytes()[..rest.len()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_see_one_memory() {
        let (daemon, fd) = Segment::create().unwrap();
        let client = Segment::open(&fd).unwrap();
        let request = Request { op: 3, base: 1, len: 11, ..Request::default() };
        client.write_request(63, &request);
        client.write_path(63, 1, b"hello world");
        assert_eq!(daemon.read_request(63), request);
        assert_eq!(daemon.read_path(63, 1, 11, &mut PathBuffer::default()), b"hello world");
        daemon.write_reply(63, &Reply::errno(2));
        assert_eq!(client.read_reply(63).outcome(), crate::frame::Outcome::Errno(2));
        daemon.write_data(0, b"target");
        assert_eq!(client.read_data(0, &mut [0; 6]), b"target");
    }

    #[test]
    fn pieces_of_any_alignment_lie_one_behind_the_other() {
        let (segment, _fd) = Segment::create().unwrap();
        let text: Vec<u8> = (0..200).collect();
        for cut in [1, 3, 7, 8, 9, 64, 199] {
            segment.write_data(5, &[0xff; 208]);
            let mut offset = 0;
            for piece in text.chunks(cut) {
                segment.write_data_at(5, offset, piece);
                offset += piece.len();
            }
            assert_eq!(segment.read_data(5, &mut [0; 200]), text, "pieces of {cut} bytes");
            let mut read = Vec::new();
            for piece in text.chunks(cut) {
                let mut out = vec![0; piece.len()];
                assert_eq!(segment.read_data_at(5, read.len(), &mut out).len(), piece.len());
                read.extend(out);
            }
            assert_eq!(read, text, "pieces of {cut} bytes");
        }
        assert_eq!(segment.read_data_at(5, DATA_BYTES - 3, &mut [0; 8]).len(), 3);
        segment.write_data_at(5, DATA_BYTES - 3, &[1; 8]);
        segment.write_data_at(5, DATA_BYTES + 3, &[1; 8]);
    }

    /// The bytes of a mapping that begins here that are in huge pages.
    fn in_huge_pages(map: &TableMap) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begin = format!("{:x}-", map.base.addr());
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&begin));
        let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    }

    #[test]
    fn what_is_put_into_huge_pages_stays_what_it_was_on_both_sides() {
        let (daemon, fd) = TableMap::create(9 << 20, 1).unwrap();
        let client = TableMap::open(&fd).unwrap();
        let (ours, theirs) = (daemon.table().unwrap(), client.table().unwrap());
        ours.keep(1);
        let generation = ours.generation();
        while ours.generation().growths() > 0 {
            ours.grow(ours.generation(), |_| ());
        }
        assert_ne!(ours.generation(), generation);
        let key = ours.key(ours.generation(), 1, b"name").unwrap();
        ours.publish_name(&key, (2, table::Kind::Other), table::Expiry::NEVER, |_| (), || true);
        let collapse = |page: usize| {
            let mut tries = (0..100).map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(10));
                daemon.collapse(page)
            });
            tries.find(|tried| *tried != Err(Errno::AGAIN)).unwrap_or(Err(Errno::AGAIN))
        };
        // The last part of a huge page remains as it is.
        assert_eq!(daemon.huge_pages_in_use(), [0, 1, 2, 3]);
        assert_eq!((daemon.collapse(4), daemon.collapse(usize::MAX)), (Err(Errno::INVAL), Err(Errno::INVAL)));
        let collapsed = daemon.huge_pages_in_use().into_iter().try_for_each(collapse);
        let found = theirs.probe(1, b"name", &mut table::Clock::default());
        assert_eq!(found, table::Walked::Found(table::Kind::Other));
        match collapsed {
            Ok(()) => {
                assert_eq!(in_huge_pages(&daemon), 8 << 20);
                client.words().iter().step_by(512).for_each(|word| _ = word.load(Ordering::Relaxed));
                assert_eq!(in_huge_pages(&client), 8 << 20);
            }
            Err(Errno::NOMEM | Errno::BUSY) => println!("skipped: this machine has no huge pages to give"),
            Err(error) => {
                panic!("{error}: Linux 6.1 or later, and shmem_enabled other than deny, are needed")
            }
        }
    }

    #[test]
    fn lengths_beyond_the_buffers_are_cut() {
        let (segment, _fd) = Segment::create().unwrap();
        assert_eq!(segment.read_path(0, 0, u32::MAX, &mut PathBuffer::default()).len(), PATH_BYTES);
        segment.write_path(0, 0, &[1; PATH_BYTES + 9]);
        assert_eq!(segment.read_path(0, 1, 8, &mut PathBuffer::default()), [0; 8]);
    }

    #[test]
    fn a_segment_cannot_be_resized_and_anything_else_is_refused() {
        let (_segment, fd) = Segment::create().unwrap();
        assert_eq!(rustix::fs::ftruncate(&fd, 1), Err(Errno::PERM));
        let other = rustix::fs::memfd_create(c"other", MemfdFlags::CLOEXEC).unwrap();
        assert!(Segment::open(&other).is_err());
    }
}
