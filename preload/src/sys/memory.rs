//! The program's memory, where a bad pointer must be `EFAULT` and not the end of the program.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::arguments::Data;
use super::{errno, set_errno};

/// The end of the program's heap (`brk`) when the library started.
static HEAP: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Remembers where the heap begins.
pub(crate) fn learn_heap() {
    HEAP.store(program_break(), Ordering::Relaxed);
}

fn program_break() -> usize {
    // SAFETY: an increment of zero changes nothing; glibc answers from a variable.
    unsafe { libc::sbrk(0) }.addr()
}

/// Whether memory is surely there and writable: on the first thread's stack or on the heap. Anything else may be, too,
/// but only the kernel knows.
fn is_sound(start: usize, len: usize) -> bool {
    unsafe extern "C" {
        static __libc_stack_end: *const u8;
    }
    let Some(end) = start.checked_add(len) else { return false };
    let here = (&raw const end).addr();
    // SAFETY: the dynamic linker's variable, written before any code of ours ran.
    let stack_end = unsafe { (&raw const __libc_stack_end).read() }.addr();
    (start > here && end <= stack_end) || (start >= HEAP.load(Ordering::Relaxed) && end <= program_break())
}

/// The kernel copies nothing between a process and itself for us (a seccomp filter forbids it).
static UNCHECKED: AtomicBool = AtomicBool::new(false);

/// Most buffers of a `readv` or `writev` that are served without the kernel.
pub(crate) const BUFFERS_MAX: usize = 32;

/// The program's buffers of one transfer. Like [`PathArg`], only ever made of arguments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers<'b>(&'b [libc::iovec]);

/// The place for a transfer's list of buffers.
pub(crate) type Places = [libc::iovec; BUFFERS_MAX];

/// A list without buffers.
pub(crate) const NO_PLACES: Places =
    [const { libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 } }; BUFFERS_MAX];

impl Data {
    /// The buffer as the only one of a transfer.
    pub(crate) fn buffer(self, len: usize) -> libc::iovec {
        libc::iovec { iov_base: self.0.cast(), iov_len: len }
    }
}

/// An array of buffers that a program passes to `readv` or `writev`.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Iovecs(*const libc::iovec);

impl Iovecs {
    /// Copies the array. `None` if it is too long for us or can only be judged by the kernel.
    pub(crate) fn get(self, count: c_int, places: &mut Places) -> Option<Buffers<'_>> {
        let places = places.get_mut(..usize::try_from(count).ok()?)?;
        let len = size_of_val(places);
        if len > 0 && copy_in(self.0.cast(), places.as_mut_ptr().cast(), len) != len {
            return None;
        }
        Some(Buffers(places))
    }
}

impl<'b> Buffers<'b> {
    /// One buffer.
    pub(crate) fn one(buffer: &'b libc::iovec) -> Self {
        Self(std::slice::from_ref(buffer))
    }

    /// Bytes in all; `None` if one of the lengths is not one (`import_iovec`: `EINVAL`).
    pub(crate) fn total(self) -> Option<usize> {
        self.0.iter().try_fold(0_usize, |total, buffer| {
            total.checked_add(buffer.iov_len).filter(|total| isize::try_from(*total).is_ok())
        })
    }

    /// Calls `copy` for each buffer's part of the transfer's bytes `skip..skip + len`, with the position in the part, until
    /// it copies less than it should; the number of bytes copied.
    fn each(
        self,
        mut skip: usize,
        len: usize,
        mut copy: impl FnMut(*mut u8, usize, usize) -> usize,
    ) -> usize {
        let mut done = 0;
        for buffer in self.0 {
            if skip >= buffer.iov_len {
                skip -= buffer.iov_len;
                continue;
            }
            let part = (buffer.iov_len - skip).min(len - done);
            let start = buffer.iov_base.cast::<u8>().wrapping_add(skip);
            let copied = if part == 0 { 0 } else { copy(start, done, part) };
            done += copied;
            skip = 0;
            if copied < part || done == len {
                break;
            }
        }
        done
    }

    /// Fills the bytes `skip..skip + len` from memory of ours; the number that could be written.
    pub(crate) fn fill(self, skip: usize, from: *const u8, len: usize) -> usize {
        self.each(skip, len, |start, done, part| copy_out(from.wrapping_add(done), start, part))
    }

    /// Copies the bytes `skip..skip + len` to memory of ours; the number that could be read.
    pub(crate) fn take(self, skip: usize, to: *mut u8, len: usize) -> usize {
        self.each(skip, len, |start, done, part| copy_in(start, to.wrapping_add(done), part))
    }
}

/// Copies from memory of ours to the program's; the number of bytes that could be written.
fn copy_out(from: *const u8, to: *mut u8, len: usize) -> usize {
    if is_sound(to.addr(), len) {
        // SAFETY: callers pass memory of ours, or of a segment, of this length; the rest by `is_sound`. What the daemon
        // changes meanwhile is read as some bytes, which is all that a buffer of the program's promises.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        return len;
    }
    let local = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: to.cast(), iov_len: len };
    // SAFETY: the kernel checks the addresses.
    let copied =
        || unsafe { libc::process_vm_writev(this_process(), &raw const local, 1, &raw const remote, 1, 0) };
    checked(copied).unwrap_or_else(|| {
        // SAFETY: as above; the program's pointer has to be trusted.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        len
    })
}

/// Copies from the program's memory to ours; the number of bytes that could be read.
fn copy_in(from: *const u8, to: *mut u8, len: usize) -> usize {
    if is_sound(from.addr(), len) {
        // SAFETY: callers pass memory of ours, or of a segment, of this length; the rest by `is_sound`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        return len;
    }
    let local = libc::iovec { iov_base: to.cast(), iov_len: len };
    let remote = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len };
    // SAFETY: the kernel checks the addresses.
    let copied =
        || unsafe { libc::process_vm_readv(this_process(), &raw const local, 1, &raw const remote, 1, 0) };
    checked(copied).unwrap_or_else(|| {
        // SAFETY: as above; the program's pointer has to be trusted.
        unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        len
    })
}

/// The number of this process.
pub(crate) fn this_process() -> libc::pid_t {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Bytes that the kernel copied; `None` if it copies nothing for this process.
fn checked(copy: impl FnOnce() -> isize) -> Option<usize> {
    if UNCHECKED.load(Ordering::Relaxed) {
        return None;
    }
    let before = errno();
    let copied = copy();
    let failure = errno();
    set_errno(before);
    match usize::try_from(copied) {
        Ok(copied) => Some(copied),
        Err(_) if matches!(failure, libc::ENOSYS | libc::EPERM) => {
            UNCHECKED.store(true, Ordering::Relaxed);
            None
        }
        Err(_) => Some(0),
    }
}

/// Copies a plain value out of the program's memory; `None` for a bad pointer.
fn look_at<T: Copy>(place: *const T) -> Option<T> {
    let mut value = std::mem::MaybeUninit::<T>::uninit();
    let copied = copy_in(place.cast(), value.as_mut_ptr().cast(), size_of::<T>());
    // SAFETY: all of its bytes have been copied from a value of this type.
    (copied == size_of::<T>()).then(|| unsafe { value.assume_init() })
}

/// An array of `pollfd` that a program passes. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct PollFds(*const libc::pollfd);

impl PollFds {
    /// The descriptors, as far as they can be read.
    pub(crate) fn fds(self, count: u64) -> impl Iterator<Item = RawFd> {
        (0..count as usize).map_while(move |index| Some(look_at(self.0.wrapping_add(index))?.fd))
    }
}

/// A `fd_set` that a program passes, or null. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct FdSet(*const u64);

impl FdSet {
    /// The descriptors below `count` that are in the set.
    pub(crate) fn fds(self, count: c_int) -> impl Iterator<Item = RawFd> {
        let words = if self.0.is_null() { 0 } else { count.max(0) };
        (0..words)
            .step_by(64)
            .map_while(move |first| {
                let word = look_at(self.0.wrapping_add(first as usize / 64))?;
                Some(
                    (0..64.min(words - first))
                        .filter(move |bit| word >> bit & 1 != 0)
                        .map(move |bit| first + bit),
                )
            })
            .flatten()
    }
}

/// A message that a program sends. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Message(*const libc::msghdr);

impl Message {
    /// The descriptors that travel with it.
    pub(crate) fn fds(self) -> impl Iterator<Item = RawFd> {
        let control = look_at(self.0).map_or((std::ptr::null(), 0), |message| {
            (message.msg_control.cast::<u8>().cast_const(), message.msg_controllen)
        });
        let mut offset = 0_usize;
        std::iter::from_fn(move || {
            let (start, len) = control;
            let end = offset.checked_add(size_of::<libc::cmsghdr>()).filter(|end| *end <= len)?;
            let header: libc::cmsghdr = look_at(start.wrapping_add(offset).cast())?;
            let next = offset.checked_add(header.cmsg_len).filter(|next| *next >= end && *next <= len)?;
            offset = next.next_multiple_of(align_of::<libc::cmsghdr>());
            let carries = header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS;
            let count = if carries { (next - end) / size_of::<RawFd>() } else { 0 };
            let first = start.wrapping_add(end).cast::<RawFd>();
            Some((0..count).filter_map(move |index| look_at(first.wrapping_add(index))))
        })
        .flatten()
    }

    /// The messages of `sendmmsg`.
    pub(crate) fn several(self, count: u32) -> impl Iterator<Item = Self> {
        let first = self.0.cast::<libc::mmsghdr>();
        (0..count as usize).map(move |index| Self(first.wrapping_add(index).cast()))
    }
}

/// A control block of asynchronous I/O. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Aio(*const libc::aiocb);

impl Aio {
    /// The descriptor that it is about.
    pub(crate) fn fd(self) -> RawFd {
        look_at(self.0.cast::<c_int>()).unwrap_or(-1)
    }
}

/// An array of control blocks. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Aios(*const Aio);

impl Aios {
    /// The descriptors that they are about.
    pub(crate) fn fds(self, count: c_int) -> impl Iterator<Item = RawFd> {
        (0..count.max(0) as usize)
            .map_while(move |index| look_at(self.0.wrapping_add(index)))
            .filter(|one| !one.0.is_null())
            .map(Aio::fd)
    }
}
