//! Arguments of hooked functions, as the program passed them: pointers of which nothing is known.

use std::ffi::{CStr, c_char, c_int, c_long};
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::Pages;

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
pub(crate) struct PathArg(pub(super) *const c_char);

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

/// The last bytes of a string.
#[inline]
pub(crate) fn end_of(string: &CStr, len: usize) -> Option<&CStr> {
    let bytes = string.to_bytes_with_nul();
    let end = bytes.get(bytes.len().checked_sub(len + 1)?..)?;
    // SAFETY: the end of a C string, with its only NUL.
    Some(unsafe { CStr::from_bytes_with_nul_unchecked(end) })
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

    /// A suffix, and how many bytes come before it.
    #[inline]
    pub(crate) fn text_from(self, rest: Self) -> (usize, &'p CStr) {
        (rest.start.addr().get() - self.start.addr().get(), rest.text())
    }

    /// The path.
    #[inline]
    pub(crate) fn text(self) -> &'p CStr {
        // SAFETY: `start` is the beginning or a suffix of a C string that lives for 'p.
        unsafe { CStr::from_ptr(self.start.as_ptr().cast()) }
    }

    /// The path's bytes.
    #[inline]
    pub(crate) fn bytes(self) -> &'p [u8] {
        self.text().to_bytes()
    }
}

/// A structure of C that is made of integers, with private padding perhaps: only zeroed memory can begin it.
///
/// # Safety
/// Zeros must be a value.
pub(crate) unsafe trait Plain: Sized {
    /// The value of which `fill` makes what it is to be from zeros.
    #[inline(always)]
    fn filled(fill: impl FnOnce(&mut Self)) -> Self {
        // SAFETY: the trait's contract.
        let mut value = unsafe { std::mem::zeroed() };
        fill(&mut value);
        value
    }
}

// SAFETY: integers only.
unsafe impl Plain for libc::stat {}
// SAFETY: as above.
unsafe impl Plain for libc::statx {}
// SAFETY: as above.
unsafe impl Plain for libc::statfs64 {}
// SAFETY: as above.
unsafe impl Plain for libc::statvfs {}

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

    /// Whether a result cannot be [filled in](Self::fill) there: the pointer looks bad, or is not aligned, which only the kernel
    /// does not mind.
    #[inline]
    pub(crate) fn is_unusual(self) -> bool {
        self.is_suspicious() || !self.0.is_aligned()
    }

    /// Makes the result there, of zeros. Does nothing where that [cannot be](Self::is_unusual).
    #[inline(always)]
    pub(crate) fn fill(self, fill: impl FnOnce(&mut T))
    where
        T: Plain,
    {
        if !self.is_unusual() {
            // SAFETY: the hooked function's contract: a place for a T, which nobody else uses meanwhile; zeros are a T (`Plain`).
            unsafe {
                self.0.write_bytes(0, 1);
                fill(&mut *self.0);
            }
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
pub(crate) struct Data(pub(super) *mut u8);

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

    /// Of a path.
    pub(crate) fn of(path: PathArg) -> Self {
        Self(path.0.expose_provenance() as c_long)
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
pub(crate) struct EnvString(pub(super) *const c_char);

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
