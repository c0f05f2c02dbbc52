//! The edge to C and to the kernel: the types of hooked functions' arguments, errno, the environment, memory,
//! and the raw system calls that decisions need.
//!
//! Nothing here allocates, locks, or calls a libc function that is hooked.

#![allow(unsafe_code)]

pub(crate) mod arena;

use std::ffi::{CStr, c_char, c_int, c_long};
use std::fmt::{self, Write};
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Whether an address is one that only the kernel should look at: null and its neighbourhood, the kernel's half,
/// and what lies between 2 and 4 GiB, where programs keep nothing but deliberately bad pointers. (A program that does keep
/// something there loses speed only.) The kernel answers `EFAULT` where we would crash.
#[inline]
fn is_suspicious(address: usize) -> bool {
    !(0x1_0000..1 << 47).contains(&address) || (0x8000_0000..0x1_0000_0000).contains(&address)
}

/// A path argument as the program passed it: a C string, or a pointer that only the kernel can judge.
///
/// Values come into being in two ways: as an argument of a hooked function, whose own contract then holds, which says that
/// the string is not changed or freed during the call; and as a string of ours that outlives its use ([`with_path`]).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct PathArg(*const c_char);

impl PathArg {
    /// No path.
    pub(crate) const NULL: Self = Self(std::ptr::null());

    /// The path, unless the pointer is null or looks bad.
    #[inline]
    pub(crate) fn get(&self) -> Option<CPath<'_>> {
        if is_suspicious(self.0.addr()) {
            return None;
        }
        NonNull::new(self.0.cast_mut()).map(|start| CPath { start: start.cast(), string: PhantomData })
    }

    /// Whether the pointer is null.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

/// Runs `f` with a path of ours in the shape of a program's.
pub(crate) fn with_path<R>(path: &CStr, f: impl FnOnce(&PathArg) -> R) -> R {
    f(&PathArg(path.as_ptr()))
}

/// A C string in the program's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CPath<'p> {
    start: NonNull<u8>,
    string: PhantomData<&'p CStr>,
}

impl<'p> CPath<'p> {
    /// A path of our own.
    #[cfg(test)]
    pub(crate) fn new(path: &'p CStr) -> Self {
        // A CStr's pointer is never null.
        Self { start: NonNull::from(path).cast(), string: PhantomData }
    }

    /// The first byte; 0 if the path is empty.
    #[inline]
    pub(crate) fn first(self) -> u8 {
        // SAFETY: a C string has at least its NUL.
        unsafe { self.start.read() }
    }

    /// What follows a prefix, if the path begins with it. Looks at no byte beyond the first difference.
    #[inline]
    pub(crate) fn strip(self, prefix: impl Iterator<Item = u8>) -> Option<Self> {
        let mut rest = self.start;
        for byte in prefix {
            // SAFETY: all bytes before `rest` were equal to bytes of a prefix that has no NUL, so the string
            // goes on at least to `rest`.
            if byte == 0 || unsafe { rest.read() } != byte {
                return None;
            }
            // SAFETY: the byte just read was not the NUL, so the string goes on behind it.
            rest = unsafe { rest.add(1) };
        }
        Some(Self { start: rest, ..self })
    }

    /// The length of the path of which `rest` is a suffix.
    pub(crate) fn len_with(self, rest: Self) -> usize {
        rest.start.addr().get() - self.start.addr().get() + rest.bytes().len()
    }

    /// The path's bytes.
    #[inline]
    pub(crate) fn bytes(self) -> &'p [u8] {
        // SAFETY: `start` is the beginning or a suffix of a C string that lives for 'p.
        unsafe { CStr::from_ptr(self.start.as_ptr().cast()) }.to_bytes()
    }
}

/// Where a hooked function shall put its result. Like [`PathArg`], only ever an argument.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Whether the kernel should judge the pointer.
    #[inline]
    pub(crate) fn is_suspicious(self) -> bool {
        is_suspicious(self.0.addr())
    }

    /// Whether there is no place.
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// What the program has put there; `None` if the pointer looks bad.
    pub(crate) fn get(self) -> Option<T>
    where
        T: Copy,
    {
        // SAFETY: the hooked function's contract: a place that holds a T.
        (!self.is_suspicious()).then(|| unsafe { self.0.read_unaligned() })
    }

    /// Stores the result. Does nothing if the pointer looks bad.
    #[inline]
    pub(crate) fn put(self, value: T) {
        if !self.is_suspicious() {
            // SAFETY: the hooked function's contract: a place for a T. Unaligned, because x86 programs get
            // away with it.
            unsafe { self.0.write_unaligned(value) }
        }
    }

    /// Looks at what the kernel has put there.
    pub(crate) fn look(self, look: impl FnOnce(&T)) {
        if !self.is_suspicious() {
            // SAFETY: the next function has just filled it in, successfully.
            look(&unsafe { self.0.read_unaligned() });
        }
    }

    /// Changes what the kernel has put there.
    pub(crate) fn update(self, change: impl FnOnce(&mut T)) {
        if !self.is_suspicious() {
            // SAFETY: the next function has just filled it in, successfully.
            let mut value = unsafe { self.0.read_unaligned() };
            change(&mut value);
            self.put(value);
        }
    }
}

/// A C string that a hooked function writes into. Like [`PathArg`], only ever an argument.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Text(*mut c_char);

impl Clone for Text {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Text {}

impl Text {
    /// No string: what functions that answer one fail with.
    pub(crate) const NULL: Self = Self(std::ptr::null_mut());

    /// A copy of a string in memory from `malloc`, as `strdup` makes it; null without memory, and `malloc` sets errno.
    pub(crate) fn duplicate(text: &CStr) -> Self {
        // SAFETY: a C string; the copy is the program's to free.
        Self(unsafe { libc::strdup(text.as_ptr()) })
    }

    /// Whether the pointer is null.
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Whether the kernel, or a fault, should judge the pointer.
    pub(crate) fn is_suspicious(self) -> bool {
        is_suspicious(self.0.addr())
    }

    /// The string as a path.
    pub(crate) fn as_path(self) -> PathArg {
        PathArg(self.0)
    }

    /// The string's bytes, to be changed in place; `None` for a pointer that looks bad.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        if self.is_suspicious() {
            return None;
        }
        // SAFETY: the hooked function's contract: a string that it may write to, and nobody else uses meanwhile.
        Some(unsafe { std::slice::from_raw_parts_mut(self.0.cast(), CStr::from_ptr(self.0).count_bytes()) })
    }

    /// Puts a string there, for which the hooked function's contract asks for room.
    pub(crate) fn put(self, text: &CStr) {
        if !self.is_suspicious() {
            let bytes = text.to_bytes_with_nul();
            // SAFETY: the contract; `text` is ours and does not overlap the program's buffer.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), bytes.len()) };
        }
    }
}

/// A buffer of bytes. Like [`PathArg`], only ever an argument.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Data(*mut u8);

impl Data {
    /// The buffer, of which `len` bytes shall be filled; `None` if only the kernel can judge it.
    pub(crate) fn get(&mut self, len: usize) -> Option<&mut [u8]> {
        if is_suspicious(self.0.addr()) || len == 0 || len > isize::MAX as usize {
            return None;
        }
        // SAFETY: the hooked function's contract: room for `len` bytes, ours alone during the call. Bytes are
        // valid whatever they hold, and the slice is only written to.
        Some(unsafe { std::slice::from_raw_parts_mut(self.0, len) })
    }

    /// The `len` bytes that the program passes in the buffer; `None` if only the kernel can judge it.
    pub(crate) fn contents(&self, len: usize) -> Option<&[u8]> {
        if len == 0 {
            return Some(&[]);
        }
        if is_suspicious(self.0.addr()) || len > isize::MAX as usize {
            return None;
        }
        // SAFETY: the hooked function's contract: `len` initialised bytes that nobody changes during the call.
        Some(unsafe { std::slice::from_raw_parts(self.0, len) })
    }
}

/// Runs `f` with a buffer of ours in the shape of a program's.
pub(crate) fn with_data<R>(buffer: &mut [u8], f: impl FnOnce(Data) -> R) -> R {
    f(Data(buffer.as_mut_ptr()))
}

/// An argument or a result of `syscall`, whose meaning depends on the call.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Word(pub(crate) c_long);

impl From<i8> for Word {
    fn from(value: i8) -> Self {
        Self(value.into())
    }
}

impl Word {
    /// As an `int`.
    pub(crate) fn int(self) -> c_int {
        self.0 as c_int
    }

    /// As an `unsigned int`.
    pub(crate) fn unsigned(self) -> u32 {
        self.0 as u32
    }

    /// As a `size_t`.
    pub(crate) fn size(self) -> usize {
        self.0 as usize
    }

    /// As a path. The program called a system call that takes one there.
    pub(crate) fn path(self) -> PathArg {
        PathArg(std::ptr::with_exposed_provenance(self.size()))
    }

    /// As a buffer.
    pub(crate) fn data(self) -> Data {
        Data(std::ptr::with_exposed_provenance_mut(self.size()))
    }

    /// As a place for a result.
    pub(crate) fn out<T>(self) -> Out<T> {
        Out(std::ptr::with_exposed_provenance_mut(self.size()))
    }

    /// As an array.
    pub(crate) fn vector<T, const N: usize>(self) -> Vector<T, N> {
        Vector(std::ptr::with_exposed_provenance(self.size()))
    }
}

/// An array of values to read, or null. Like [`PathArg`], only ever an argument.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Vector<T, const N: usize>(*const [T; N]);

impl<T, const N: usize> Clone for Vector<T, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, const N: usize> Copy for Vector<T, N> {}

impl<T, const N: usize> Vector<T, N> {
    /// The values: `Ok(None)` for null, `Err` for a pointer that only the kernel can judge.
    pub(crate) fn get(self) -> Result<Option<[T; N]>, Suspicious> {
        if self.0.is_null() {
            return Ok(None);
        }
        if is_suspicious(self.0.addr()) {
            return Err(Suspicious);
        }
        // SAFETY: the hooked function's contract: an array of N plain values.
        Ok(Some(unsafe { self.0.read_unaligned() }))
    }
}

/// A pointer that only the kernel can judge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspicious;

/// A null-terminated array of C strings: arguments or an environment. Like [`PathArg`], only ever an argument
/// (or the process's own `environ`).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Strings(*const *const c_char);

impl Strings {
    /// The process's environment.
    pub(crate) fn environ() -> Self {
        // SAFETY: reading the pointer; a program that changes its environment meanwhile races with every
        // reader of it, libc's own included.
        Self(unsafe { (&raw const libc::environ).read().cast() })
    }

    /// An array in memory of ours.
    pub(crate) fn from_pages(pages: &Pages) -> Self {
        Self(pages.start.as_ptr().cast_const().cast())
    }

    /// Whether only the kernel can judge the pointer.
    pub(crate) fn is_suspicious(self) -> bool {
        is_suspicious(self.0.addr())
    }

    /// Whether there is no array: to Linux, an empty one.
    pub(crate) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The array behind the terminating null of this one (`execle` passes its environment there).
    pub(crate) fn behind(self) -> Self {
        let mut end = self.0;
        // SAFETY: the array is terminated by a null, and by `execle`'s contract one more pointer follows.
        unsafe {
            while !end.read().is_null() {
                end = end.add(1);
            }
            Self(end.add(1).read().cast())
        }
    }

    /// The strings, as pointers that may be put into another array.
    pub(crate) fn iter(self) -> impl Iterator<Item = EnvString> {
        let mut next = self.0;
        std::iter::from_fn(move || {
            if is_suspicious(next.addr()) {
                return None;
            }
            // SAFETY: the array is terminated by a null, where the iteration ends.
            let string = unsafe { next.read() };
            if string.is_null() {
                return None;
            }
            // SAFETY: not the terminator, so the array goes on.
            next = unsafe { next.add(1) };
            Some(EnvString(string))
        })
    }

    /// Finds `NAME=value` and returns the value.
    pub(crate) fn value(self, name: &CStr) -> Option<&'static [u8]> {
        self.iter().find_map(|string| string.value(name))
    }

    /// Removes `NAME=…` in place.
    pub(crate) fn remove(self, name: &CStr) {
        let mut write = self.0.cast_mut();
        let mut read = self.0;
        if is_suspicious(read.addr()) {
            return;
        }
        // SAFETY: the process's own environment, before any of its code runs; `write` never overtakes `read`,
        // which ends at the terminator.
        unsafe {
            loop {
                let string = read.read();
                if string.is_null() {
                    write.write(string);
                    return;
                }
                if EnvString(string).value(name).is_none() {
                    write.write(string);
                    write = write.add(1);
                }
                read = read.add(1);
            }
        }
    }
}

/// One string of an environment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EnvString(*const c_char);

impl EnvString {
    /// The value, if this is `NAME=value`.
    pub(crate) fn value(self, name: &CStr) -> Option<&'static [u8]> {
        if is_suspicious(self.0.addr()) {
            return None;
        }
        // SAFETY: environments hold C strings. 'static is longer than a program that changes its environment
        // grants; callers use it at once, or at start when the string is the kernel's.
        let string = unsafe { CStr::from_ptr(self.0) }.to_bytes();
        string.strip_prefix(name.to_bytes())?.strip_prefix(b"=")
    }
}

#[cfg(test)]
impl From<&'static CStr> for EnvString {
    fn from(string: &'static CStr) -> Self {
        Self(string.as_ptr())
    }
}

#[cfg(test)]
impl EnvString {
    pub(crate) fn text(self) -> String {
        // SAFETY: tests put C strings in.
        unsafe { CStr::from_ptr(self.0) }.to_str().unwrap().to_owned()
    }
}

/// Where the thread's errno is.
fn errno_location() -> *mut c_int {
    // SAFETY: always answers the calling thread's own location.
    unsafe { libc::__errno_location() }
}

/// The thread's errno.
pub(crate) fn errno() -> c_int {
    // SAFETY: the location is the calling thread's own.
    unsafe { errno_location().read() }
}

/// Sets the thread's errno.
#[inline]
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: as above.
    unsafe { errno_location().write(errno) }
}

/// Anonymous memory from the kernel; zeroed; given back on drop.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// At least `len` bytes; `None` if the kernel has none.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let len = len.max(1).checked_next_multiple_of(4096)?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        Some(Self { start: NonNull::new(start.ok()?.cast())?, len })
    }

    /// The memory.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own mapping of `len` initialised bytes; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Puts a pointer to `string` at position `index` of the array of pointers that this memory is.
    pub(crate) fn put_pointer(&mut self, index: usize, string: Option<EnvString>) -> bool {
        let Some(end) = index.checked_add(1).and_then(|count| count.checked_mul(size_of::<usize>())) else {
            return false;
        };
        if end > self.len {
            return false;
        }
        let pointer = string.map_or(std::ptr::null(), |EnvString(string)| string);
        // SAFETY: in bounds by the check above, and aligned because the mapping is.
        unsafe { self.start.cast::<*const c_char>().add(index).write(pointer) };
        true
    }

    /// The string that begins at `offset`: a NUL follows somewhere, because fresh memory is zeroed and the last
    /// byte of ours is never written.
    pub(crate) fn string(&self, offset: usize) -> Option<EnvString> {
        // SAFETY: in bounds.
        (offset < self.len).then(|| EnvString(unsafe { self.start.add(offset) }.as_ptr().cast()))
    }

    /// Moves a value into the memory, for good; `None` if it does not fit.
    pub(crate) fn leak<T>(self, value: T) -> Option<&'static mut T> {
        if size_of::<T>() > self.len || align_of::<T>() > 4096 {
            return None;
        }
        let place = self.start.cast::<T>();
        std::mem::forget(self);
        // SAFETY: room and alignment were checked; the memory is never given back, so 'static holds.
        unsafe {
            place.write(value);
            Some(&mut *place.as_ptr())
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping; borrows of it end before self does, and pointers put into an environment
        // are only used by an exec that has failed by now.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A word that reads as zero in a forked child, however it was forked; 1 once set.
pub(crate) struct ForkMark(AtomicPtr<AtomicU32>);

impl ForkMark {
    /// A mark that does not work yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Makes the page (`MADV_WIPEONFORK`, Linux 4.14). Without it, only `fork` itself is noticed, by its handler.
    pub(crate) fn start(&self) {
        let Some(pages) = Pages::new(1) else { return };
        // SAFETY: the range is our own mapping; the advice changes only what a fork inherits.
        let wiped = unsafe {
            rustix::mm::madvise(pages.start.as_ptr().cast(), pages.len, rustix::mm::Advice::LinuxWipeOnFork)
        };
        if wiped.is_ok()
            && let Some(mark) = pages.leak(AtomicU32::new(1))
        {
            self.0.store(mark, Ordering::Release);
        }
    }

    /// The word, if there is one.
    #[inline]
    pub(crate) fn get(&self) -> Option<&AtomicU32> {
        // SAFETY: null or the leaked page of `start`.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

/// A descriptor number as rustix wants it; `None` for numbers that cannot be one.
#[inline]
pub(crate) fn borrow(fd: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: the program passed the number for a call on it; if it is closed meanwhile, the kernel answers
    // EBADF or acts on what took its place, exactly as without us.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// What tells directories and files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `st_dev`, major and minor.
    pub(crate) dev: (u32, u32),
    /// `st_ino`.
    pub(crate) ino: u64,
    /// Whether it is a directory.
    pub(crate) is_directory: bool,
    /// The mount it was reached through.
    pub(crate) mount_id: u64,
    /// Whether it is the root of that mount.
    pub(crate) is_mount_root: bool,
    /// `stx_mask` as the kernel answers it.
    pub(crate) mask: u32,
    /// `stx_attributes_mask`.
    pub(crate) attributes_mask: u64,
}

/// What is to be identified.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object<'o> {
    /// A path.
    Path(&'o CStr),
    /// A descriptor.
    Fd(RawFd),
    /// The current directory.
    Cwd,
}

/// Identifies an object without asking a remote file system.
pub(crate) fn identify(object: Object<'_>) -> Option<Identity> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = match object {
        Object::Path(path) => rustix::fs::statx(CWD, path, flags, mask),
        Object::Fd(fd) => rustix::fs::statx(borrow(fd)?, c"", flags | AtFlags::EMPTY_PATH, mask),
        Object::Cwd => rustix::fs::statx(CWD, c".", flags, mask),
    }
    .ok()?;
    Some(Identity::from(found))
}

impl From<rustix::fs::Statx> for Identity {
    fn from(found: rustix::fs::Statx) -> Self {
        Self {
            dev: (found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
            is_directory: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
            mount_id: found.stx_mnt_id,
            is_mount_root: found.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
            mask: found.stx_mask,
            attributes_mask: found.stx_attributes_mask.bits(),
        }
    }
}

/// Identifies what a path of the program's leads to; without a path, what its descriptor is.
pub(crate) fn look(dirfd: RawFd, path: &PathArg, follow: bool) -> Option<Identity> {
    if path.is_null() {
        return identify(if dirfd == libc::AT_FDCWD { Object::Cwd } else { Object::Fd(dirfd) });
    }
    path.get()?;
    let mut flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    flags.set(AtFlags::SYMLINK_NOFOLLOW, !follow);
    // SAFETY: as for every argument of a hooked function: a C string, and a bad one was left to the kernel above.
    let path = unsafe { CStr::from_ptr(path.0) };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = match dirfd {
        libc::AT_FDCWD => rustix::fs::statx(CWD, path, flags, mask),
        _ => rustix::fs::statx(borrow(dirfd)?, path, flags, mask),
    };
    found.ok().map(Identity::from)
}

/// Lets others run.
pub(crate) fn yield_now() {
    rustix::thread::sched_yield();
}

/// Opens a file for reading, out of the program's sight; closed on drop by [`Hidden`].
pub(crate) fn open_hidden(path: &CStr, flags: OFlags) -> Option<Hidden> {
    try_open_hidden(CWD, path, flags).ok()
}

/// As [`open_hidden`] relative to a directory, with the errno.
pub(crate) fn try_open_hidden(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> Result<Hidden, c_int> {
    // A mode only for files that are created, which none is that exists already.
    let fd = rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    fd.map(|fd| Hidden(Some(fd))).map_err(|errno| errno.raw_os_error())
}

/// A descriptor that is closed by the system call itself and not through the hooked `close`.
#[derive(Debug)]
pub(crate) struct Hidden(Option<OwnedFd>);

impl Hidden {
    /// The descriptor.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.0.as_ref().map(AsFd::as_fd)
    }
}

impl Hidden {
    /// A descriptor that is ours to close.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }

    /// The descriptor, for somebody else to close.
    pub(crate) fn into_fd(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take() {
            close(std::os::fd::IntoRawFd::into_raw_fd(fd));
        }
    }
}

/// Reads a symbolic link by the system call itself: how many bytes, at most `buffer.len()`.
pub(crate) fn read_link(path: &CStr, buffer: &mut [u8]) -> Result<usize, c_int> {
    rustix::fs::readlinkat_raw(CWD, path, buffer).map_err(|errno| errno.raw_os_error())
}

/// Whether there is something at a path, as the effective user sees it.
pub(crate) fn exists(path: &CStr) -> Result<(), c_int> {
    // SAFETY: a C string; the function writes nothing.
    match unsafe {
        crate::next::faccessat(libc::AT_FDCWD, PathArg(path.as_ptr()), libc::F_OK, libc::AT_EACCESS)
    } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Closes a descriptor that is ours to close, by the system call itself. In a forked child it may not be open: see
/// [`is_open`].
pub(crate) fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: callers pass a descriptor that they own and never use again.
        let _ = unsafe { rustix::io::try_close(fd) };
    }
}

/// Whether a descriptor is open. In a forked child some are not that were open when its memory was copied: the kernel copies
/// descriptors first (`copy_process`), and other threads may have opened more in between.
pub(crate) fn is_open(fd: RawFd) -> bool {
    borrow(fd).is_some_and(|fd| rustix::io::fcntl_getfd(fd).is_ok())
}

/// Closes a descriptor of the program's by the system call itself.
pub(crate) fn try_close(fd: RawFd) -> Result<(), c_int> {
    let before = errno();
    // SAFETY: the kernel checks the number; the program asked for it to be closed.
    match unsafe { libc::syscall(libc::SYS_close, fd) } {
        0 => Ok(()),
        _ => Err(take_errno(before)),
    }
}

/// The thread's errno, and puts back the one from before.
fn take_errno(before: c_int) -> c_int {
    let failed = errno();
    set_errno(before);
    failed
}

/// Opens a directory as opendir(3) does; the path ends with a NUL.
pub(crate) fn open_directory(dirfd: RawFd, path: &[u8]) -> Result<RawFd, c_int> {
    let path = CStr::from_bytes_until_nul(path).map_err(|_| libc::ENAMETOOLONG)?;
    let dirfd = match dirfd {
        libc::AT_FDCWD => CWD,
        fd => borrow(fd).ok_or(libc::EBADF)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dirfd, path, flags, Mode::empty())
        .map(std::os::fd::IntoRawFd::into_raw_fd)
        .map_err(|errno| errno.raw_os_error())
}

/// `getdents64`; the number of bytes.
pub(crate) fn read_directory(fd: RawFd, out: &mut [u8]) -> Result<usize, c_int> {
    let before = errno();
    // SAFETY: the kernel writes at most the length that is passed.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, fd, out.as_mut_ptr(), out.len()) };
    usize::try_from(len).map_err(|_| take_errno(before))
}

/// `dup2` in terms of `dup3`, which every architecture has.
pub(crate) fn dup2(from: RawFd, to: RawFd) -> c_int {
    if from == to {
        return match borrow(from).map(rustix::io::fcntl_getfd) {
            Some(Ok(_)) => to,
            _ => {
                set_errno(libc::EBADF);
                -1
            }
        };
    }
    // SAFETY: the kernel checks both numbers.
    unsafe {
        crate::next::syscall(
            Word(libc::SYS_dup3),
            Word(from.into()),
            Word(to.into()),
            Word(0),
            Word(0),
            Word(0),
            Word(0),
        )
        .int()
    }
}

/// Blocks every signal of this thread while `f` runs.
pub(crate) fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are live locals of libc's own type; the mask is this thread's.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

/// The program has let a thread be cancelled at any instruction.
static CANCELLED_ANYWHERE: AtomicBool = AtomicBool::new(false);

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

/// Some thread may be cancelled at any instruction from now on.
pub(crate) fn expect_cancellation_anywhere() {
    CANCELLED_ANYWHERE.store(true, Ordering::Relaxed);
}

/// Whether hooks need care because of how they may be left: by cancellation, or by jumps.
#[inline]
pub(crate) fn is_hard_to_leave() -> bool {
    may_be_cancelled_anywhere() || finesse_ipc::jumps::are_expected()
}

/// Whether this thread runs on the stack that it has set aside for signal handlers.
pub(crate) fn is_on_signal_stack() -> bool {
    // SAFETY: a live local of libc's own type.
    unsafe {
        let mut stack = std::mem::zeroed::<libc::stack_t>();
        libc::sigaltstack(std::ptr::null(), &raw mut stack) != 0 || stack.ss_flags & libc::SS_ONSTACK != 0
    }
}

/// Whether a thread of this program may be cancelled at any instruction.
#[inline]
pub(crate) fn may_be_cancelled_anywhere() -> bool {
    CANCELLED_ANYWHERE.load(Ordering::Relaxed)
}

/// From here on this thread is cancelled at cancellation points only. Returns what held before.
pub(crate) fn defer_cancellation() -> c_int {
    let mut before = 0;
    // SAFETY: writes the calling thread's own type of cancellation to a live local.
    unsafe { crate::next::pthread_setcanceltype(0, &raw mut before) };
    before
}

/// Undoes [`defer_cancellation`]; may not return.
pub(crate) fn restore_cancellation(before: c_int) {
    // SAFETY: as above; a null pointer is allowed.
    unsafe { crate::next::pthread_setcanceltype(before, std::ptr::null_mut()) };
}

/// A cancellation point, as the function that is hooked is one; may not return.
#[inline]
pub(crate) fn test_cancellation() {
    // SAFETY: may be called anywhere; unwinds, which the declaration allows.
    unsafe { pthread_testcancel() }
}

/// Whether the process could have one descriptor more.
pub(crate) fn has_free_number(any: BorrowedFd<'_>) -> bool {
    match rustix::io::fcntl_dupfd_cloexec(any, 0) {
        Ok(number) => {
            close(std::os::fd::IntoRawFd::into_raw_fd(number));
            true
        }
        Err(errno) => errno != rustix::io::Errno::MFILE,
    }
}

/// The user at the other end of a socket.
pub(crate) fn peer_user(socket: BorrowedFd<'_>) -> Option<u32> {
    use std::os::fd::AsRawFd;
    // Not rustix, whose type cannot hold the process id 0 of a process in another name space.
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both are live locals of the types that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(peer.uid)
}

/// Whether libc knows the process to have one thread only (glibc 2.32).
pub(crate) fn is_single_threaded() -> bool {
    unsafe extern "C" {
        static __libc_single_threaded: c_char;
    }
    // SAFETY: libc's own variable, which it writes while there is one thread, or to say that there are more.
    unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
}

/// The program's name, at most 100 bytes of it, for `finesse status`.
pub(crate) fn program_name() -> &'static str {
    unsafe extern "C" {
        static program_invocation_short_name: *const c_char;
    }
    // SAFETY: libc's own variable; null or a C string that lives as long as the process.
    let name = unsafe {
        let name = (&raw const program_invocation_short_name).read();
        if name.is_null() { c"" } else { CStr::from_ptr(name) }
    };
    let name = name.to_bytes();
    let name = name.get(..100).unwrap_or(name);
    match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(error) => {
            name.get(..error.valid_up_to()).map_or("", |valid| std::str::from_utf8(valid).unwrap_or(""))
        }
    }
}

/// The file that this library was loaded from, as the dynamic linker names it.
pub(crate) fn library_path() -> Option<&'static [u8]> {
    // SAFETY: the address is one of this library's own; the linker's strings live as long as the library.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        let found = libc::dladdr(library_path as *const () as *const libc::c_void, &raw mut info);
        (found != 0 && !info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname).to_bytes())
    }
}

/// Runs functions around every `fork`, libc's own forks included: before it, and afterwards in the parent and in the child.
pub(crate) fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> c_int;
    }
    // SAFETY: the handlers live as long as the library. ENOMEM means that only the fork mark is left.
    unsafe { pthread_atfork(Some(before), Some(parent), Some(child)) };
}

/// Descriptor of a stream, with errno kept; -1 if it has none.
pub(crate) fn fileno(stream: *mut crate::next::Stream) -> RawFd {
    let before = errno();
    // SAFETY: a hooked function's own stream argument, used before or after libc does with it.
    let fd = if stream.is_null() { -1 } else { unsafe { libc::fileno(stream.cast()) } };
    set_errno(before);
    fd
}

/// A stream on a descriptor.
pub(crate) fn fdopen(fd: RawFd, mode: &CStr) -> *mut crate::next::Stream {
    // SAFETY: the descriptor is open and ours.
    unsafe { libc::fdopen(fd, mode.as_ptr()).cast() }
}

/// Descriptor of a directory stream of libc's; -1 if it has none.
pub(crate) fn dirfd(directory: *mut libc::DIR) -> RawFd {
    // SAFETY: a hooked function's own argument.
    if directory.is_null() { -1 } else { unsafe { crate::next::dirfd(directory) } }
}

/// A line on standard error, at most 500 bytes, in one write.
pub(crate) fn complain(message: fmt::Arguments<'_>) {
    struct Line([u8; 500], usize);
    impl Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                if let Some(place) = self.0.get_mut(self.1) {
                    *place = byte;
                    self.1 += 1;
                }
            }
            Ok(())
        }
    }
    let mut line = Line([b'\n'; 500], 0);
    let _ = write!(line, "finesse: {message}");
    let end = (line.1 + 1).min(line.0.len());
    if let (Some(fd), Some(text)) = (borrow(2), line.0.get(..end)) {
        let _ = rustix::io::write(fd, text);
    }
}

/// The current directory's path; its length.
pub(crate) fn current_directory(buffer: &mut [u8]) -> Option<usize> {
    let (start, room) = (buffer.as_mut_ptr().expose_provenance(), buffer.len());
    let [start, room] = [start, room].map(|word| Word(word as c_long));
    // SAFETY: the kernel writes at most the length that is passed.
    let len = unsafe {
        crate::next::syscall(Word(libc::SYS_getcwd), start, room, Word(0), Word(0), Word(0), Word(0)).0
    };
    // With the NUL. "(unreachable)" is no path.
    let len = usize::try_from(len).ok()?.checked_sub(1)?;
    (buffer.first() == Some(&b'/')).then_some(len)
}

// --- the program's memory, where a bad pointer must be `EFAULT` and not the end of the program ---

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

fn this_process() -> libc::pid_t {
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

/// Duplicates a descriptor onto a number, by the system call itself.
pub(crate) fn replace(from: RawFd, to: RawFd, close_on_exec: bool) -> bool {
    use rustix::io::DupFlags;
    let flags = if close_on_exec { DupFlags::CLOEXEC } else { DupFlags::empty() };
    let Some(from) = borrow(from).filter(|_| to >= 0) else { return false };
    // SAFETY: callers own the number: it is the placeholder of a description that they are alone with. It is not closed
    // here.
    let mut number = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(to) });
    rustix::io::dup3(from, &mut number, flags).is_ok()
}

/// Acts upon a cancellation of this thread, as libc does where a function may wait; may not return.
pub(crate) fn cancellation_point() {
    unsafe extern "C-unwind" {
        fn pthread_testcancel();
    }
    // SAFETY: nothing is held here that unwinding would not give back.
    unsafe { pthread_testcancel() }
}

/// A little time for another thread.
pub(crate) fn pause(turn: u32) {
    if turn < 64 {
        rustix::thread::sched_yield();
    } else {
        let time = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 200_000 };
        let _ = rustix::thread::nanosleep(&time);
    }
}

/// Duplicates a descriptor to the lowest free number, out of the hooks' sight.
pub(crate) fn duplicate(fd: RawFd) -> Result<RawFd, c_int> {
    let fd = borrow(fd).ok_or(libc::EBADF)?;
    rustix::io::dup(fd).map(std::os::fd::IntoRawFd::into_raw_fd).map_err(|errno| errno.raw_os_error())
}

/// `mmap`, by the system call itself.
pub(crate) fn raw_mmap(
    start: *mut libc::c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: RawFd,
    offset: libc::off_t,
) -> *mut libc::c_void {
    let (protection, flags_) = (protection.cast_unsigned(), flags.cast_unsigned());
    let (protection, kind) = (ProtFlags::from_bits_retain(protection), MapFlags::from_bits_retain(flags_));
    // SAFETY: the program's own arguments, passed on to the function that it meant.
    let mapped = unsafe {
        match borrow(fd).filter(|_| flags & libc::MAP_ANONYMOUS == 0) {
            Some(fd) => rustix::mm::mmap(start, len, protection, kind, fd, offset.cast_unsigned()),
            None if flags & libc::MAP_ANONYMOUS == 0 => Err(rustix::io::Errno::BADF),
            None => rustix::mm::mmap_anonymous(start, len, protection, kind),
        }
    };
    mapped.unwrap_or_else(|errno| {
        set_errno(errno.raw_os_error());
        libc::MAP_FAILED
    })
}
