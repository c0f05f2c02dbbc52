//! The next definition of every hooked symbol, usually libc's: one table, filled as functions are called ([`behind`]).
//!
//! Why not the `redhook` crate, whose job this is: its hooks catch unwinding, so a thread that is cancelled
//! inside `open` (glibc unwinds its stack) aborts the process; it resolves lazily under a `std::sync::Once`,
//! which deadlocks when a signal handler enters it again; it cannot ask for a symbol version; and a symbol
//! that this libc lacks is a panic. ARCHITECTURE.md has the reproduction.
//!
//! Here, every function may unwind (`C-unwind`), is looked up without a lock, whoever calls it first, and has a raw system call
//! behind it in case this libc has no such function.
//! Variadic functions (`open`, `openat`, `fcntl`, `prctl`, `syscall`) are declared with their optional arguments fixed: on
//! x86-64 and AArch64 Linux a variadic integer travels in the same register, or place on the stack, as a named one,
//! and an argument that the caller did not pass is only a register or a word with any content, which nothing looks at.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use libc::{AT_EACCESS, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_NOFOLLOW, gid_t, mode_t, off_t, pid_t, uid_t};

use crate::behind::{self, Found};
use crate::sys::{self, Aio, Aios, Data, FdSet, Iovecs, Message, Out, PathArg, PollFds, Text, Vector, Word};

/// A symbol. Its texts lie in it, as pointers to them would be relocated in each program that starts: those of all symbols take several pages.
struct Symbol {
    /// With its NUL, and more of them.
    name: [u8; 40],
    /// Of functions that exist in several versions: the one that programs are linked against today. A plain
    /// `dlsym(RTLD_NEXT)` may answer with the oldest. Otherwise NULs only.
    version: [u8; 16],
    hash: u32,
}

/// Where a symbol's next definition is; null until looked up, [`MISSING`] if there is none.
struct Place(AtomicPtr<c_void>);

/// Marks a symbol that this libc does not have.
static MISSING: u8 = 0;

/// A text in room of a fixed size, which must be enough for one NUL more.
const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let text = text.as_bytes();
    assert!(text.len() < N);
    let mut at = 0;
    while at < text.len() {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}

fn text(bytes: &[u8]) -> &CStr {
    CStr::from_bytes_until_nul(bytes).unwrap_or_default()
}

impl Symbol {
    const fn new(name: &str, version: &str) -> Self {
        Self { name: padded(name), version: padded(version), hash: behind::hash(name.as_bytes()) }
    }

    #[cold]
    #[inline(never)]
    fn look_up(&self, place: &Place) -> *mut c_void {
        let address = match behind::find(text(&self.name), self.hash) {
            Found::At(address) => address,
            Found::Nowhere | Found::Unclear => self.ask(),
        };
        place.0.store(address, Ordering::Relaxed);
        address
    }

    /// Asks the dynamic linker.
    fn ask(&self) -> *mut c_void {
        let mut address = std::ptr::null_mut();
        // SAFETY: names and versions are C strings; RTLD_NEXT is meant for callers that are loaded objects,
        // which this library is. Two threads that race find the same address.
        unsafe {
            let (name, version) = (text(&self.name), text(&self.version));
            if !version.is_empty() {
                address = libc::dlvsym(libc::RTLD_NEXT, name.as_ptr(), version.as_ptr());
            }
            if address.is_null() {
                address = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
            }
        }
        if address.is_null() { (&raw const MISSING).cast_mut().cast() } else { address }
    }
}

impl Place {
    /// The address of the next definition, if there is one.
    #[inline]
    fn get(&self, symbol: &Symbol) -> Option<*mut c_void> {
        let address = self.0.load(Ordering::Relaxed);
        let address = if address.is_null() { symbol.look_up(self) } else { address };
        (!std::ptr::eq(address.cast(), &raw const MISSING)).then_some(address)
    }
}

macro_rules! version {
    () => {
        ""
    };
    ($version:literal) => {
        $version
    };
}

macro_rules! table {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $(, $version:literal)?; else $missing:expr;)*) => {
        mod symbols {
            use std::ptr::null_mut;
            use std::sync::atomic::AtomicPtr;

            use super::{Place, Symbol, c_void};

            $(
                #[allow(non_snake_case)]
                pub(super) mod $name {
                    use super::*;

                    pub(in super::super) static SYMBOL: Symbol =
                        Symbol::new(stringify!($name), version!($($version)?));
                    static PLACE: Place = Place(AtomicPtr::new(null_mut()));

                    /// The address of the next definition, if there is one.
                    #[inline]
                    pub(in super::super) fn get() -> Option<*mut c_void> {
                        PLACE.get(&SYMBOL)
                    }
                }
            )*
        }

        /// Does something with every symbol.
        #[cfg(test)]
        fn for_each(mut act: impl FnMut(&Symbol)) {
            $(act(&symbols::$name::SYMBOL);)*
        }

        /// Looks every symbol up.
        fn look_all_up() {
            $(symbols::$name::get();)*
        }

        $(
            /// Calls the next definition of the function of this name.
            // Those with any number of arguments are reached by their addresses.
            #[allow(dead_code)]
            ///
            /// # Safety
            /// As for the C function.
            #[allow(non_snake_case)]
            pub(crate) unsafe extern "C-unwind" fn $name($($arg: $ty),*) -> $ret {
                match symbols::$name::get() {
                    Some(address) => {
                        // SAFETY: the symbol of this name has this signature: it is POSIX's or glibc's.
                        let next = unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn($($ty),*) -> $ret>(address)
                        };
                        // SAFETY: our caller keeps the C function's contract.
                        unsafe { next($($arg),*) }
                    }
                    None => $missing,
                }
            }
        )*
    };
}

/// The system call that a function is a wrapper of: by the next `syscall`, as ours would look for the function again.
macro_rules! raw {
    ($number:ident $(, $arg:expr)*) => {
        match symbols::syscall::get() {
            Some(address) => {
                // SAFETY: libc's `syscall`, which is variadic.
                let next = unsafe {
                    std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_long, ...) -> c_long>(address)
                };
                // SAFETY: the system call of this number takes these arguments; the kernel checks pointers.
                unsafe { next(libc::$number $(, $arg)*) as _ }
            }
            None => {
                sys::set_errno(libc::ENOSYS);
                -1 as _
            }
        }
    };
}

/// Whoever asks for a jump cannot go on without it.
fn no_jump() -> c_int {
    std::process::abort()
}

/// Fails with `ENOSYS`.
fn no_symbol<T: From<i8>>() -> T {
    sys::set_errno(libc::ENOSYS);
    T::from(-1)
}

/// Fails with `ENOSYS`.
fn no_pointer<T>() -> *mut T {
    sys::set_errno(libc::ENOSYS);
    std::ptr::null_mut()
}

/// Fails with `ENOSYS`.
fn no_text() -> Text {
    sys::set_errno(libc::ENOSYS);
    Text::NULL
}

/// Whether looking a symbol up takes nothing of the dynamic linker's.
static RESOLVED: AtomicBool = AtomicBool::new(false);

/// Whether looking a symbol up could be what allocates memory, and so calls the function that is looked up: another library's
/// allocator begins before our constructor.
pub(crate) fn is_early() -> bool {
    !RESOLVED.load(Ordering::Relaxed)
}

/// Sees to it that no hook has to ask the dynamic linker: `dlsym` takes locks and may allocate.
pub(crate) fn prepare() {
    if !behind::note() {
        look_all_up();
    }
    RESOLVED.store(true, Ordering::Relaxed);
}

/// `FILE`, which only libc looks into.
pub(crate) type Stream = c_void;
/// glibc's `glob_t`, which is `glob64_t` on 64-bit Linux.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Glob {
    paths: [usize; 3],
    pub(crate) flags: c_int,
    /// The functions that read directories and attributes: `closedir`, `readdir`, `opendir`, `lstat`, `stat`.
    pub(crate) functions: [*const c_void; 5],
}

/// `struct dirent`, whose old and new names are one on 64-bit Linux.
pub(crate) type Entry = *mut libc::dirent64;
/// `scandir`'s filter.
pub(crate) type Filter = Option<unsafe extern "C-unwind" fn(*const libc::dirent64) -> c_int>;
/// `scandir`'s order.
pub(crate) type Compare = Option<unsafe extern "C-unwind" fn(*const c_void, *const c_void) -> c_int>;
/// Old and new names of `struct stat` are one on 64-bit Linux.
pub(crate) type StatOut = Out<libc::stat>;

table! {
    fn open(path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, flags, mode);
    fn open64(path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, flags, mode);
    fn __open(path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, flags, mode);
    fn __open64(path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, flags, mode);
    fn openat(dirfd: c_int, path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, dirfd, path, flags, mode);
    fn openat64(dirfd: c_int, path: PathArg, flags: c_int, mode: c_uint) -> c_int;
        else raw!(SYS_openat, dirfd, path, flags, mode);
    fn creat(path: PathArg, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode);
    fn creat64(path: PathArg, mode: c_uint) -> c_int;
        else raw!(SYS_openat, AT_FDCWD, path, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, mode);
    fn __open_2(path: PathArg, flags: c_int) -> c_int; else raw!(SYS_openat, AT_FDCWD, path, flags, 0);
    fn __open64_2(path: PathArg, flags: c_int) -> c_int; else raw!(SYS_openat, AT_FDCWD, path, flags, 0);
    fn __openat_2(dirfd: c_int, path: PathArg, flags: c_int) -> c_int;
        else raw!(SYS_openat, dirfd, path, flags, 0);
    fn __openat64_2(dirfd: c_int, path: PathArg, flags: c_int) -> c_int;
        else raw!(SYS_openat, dirfd, path, flags, 0);

    fn close(fd: c_int) -> c_int; else raw!(SYS_close, fd);
    fn __close(fd: c_int) -> c_int; else raw!(SYS_close, fd);
    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
        else raw!(SYS_close_range, first, last, flags);
    fn dup(fd: c_int) -> c_int; else raw!(SYS_dup, fd);
    fn dup2(from: c_int, to: c_int) -> c_int; else sys::dup2(from, to);
    fn __dup2(from: c_int, to: c_int) -> c_int; else sys::dup2(from, to);
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int; else raw!(SYS_dup3, from, to, flags);
    fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int; else raw!(SYS_fcntl, fd, command, argument);
    fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int; else raw!(SYS_fcntl, fd, command, argument);

    fn __fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int; else raw!(SYS_fcntl, fd, command, argument);

    fn stat(path: PathArg, out: StatOut) -> c_int; else raw!(SYS_newfstatat, AT_FDCWD, path, out, 0);
    fn stat64(path: PathArg, out: StatOut) -> c_int; else raw!(SYS_newfstatat, AT_FDCWD, path, out, 0);
    fn lstat(path: PathArg, out: StatOut) -> c_int;
        else raw!(SYS_newfstatat, AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
    fn lstat64(path: PathArg, out: StatOut) -> c_int;
        else raw!(SYS_newfstatat, AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW);
    fn fstat(fd: c_int, out: StatOut) -> c_int; else raw!(SYS_fstat, fd, out);
    fn fstat64(fd: c_int, out: StatOut) -> c_int; else raw!(SYS_fstat, fd, out);
    fn fstatat(dirfd: c_int, path: PathArg, out: StatOut, flags: c_int) -> c_int;
        else raw!(SYS_newfstatat, dirfd, path, out, flags);
    fn fstatat64(dirfd: c_int, path: PathArg, out: StatOut, flags: c_int) -> c_int;
        else raw!(SYS_newfstatat, dirfd, path, out, flags);
    fn statx(dirfd: c_int, path: PathArg, flags: c_int, mask: c_uint, out: Out<libc::statx>) -> c_int;
        else raw!(SYS_statx, dirfd, path, flags, mask, out);
    fn __xstat(version: c_int, path: PathArg, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, AT_FDCWD, path, out, 0) };
    fn __xstat64(version: c_int, path: PathArg, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, AT_FDCWD, path, out, 0) };
    fn __lxstat(version: c_int, path: PathArg, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW) };
    fn __lxstat64(version: c_int, path: PathArg, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW) };
    fn __fxstat(version: c_int, fd: c_int, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_fstat, fd, out) };
    fn __fxstat64(version: c_int, fd: c_int, out: StatOut) -> c_int;
        else { let _ = version; raw!(SYS_fstat, fd, out) };
    fn __fxstatat(version: c_int, dirfd: c_int, path: PathArg, out: StatOut, flags: c_int) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, dirfd, path, out, flags) };
    fn __fxstatat64(version: c_int, dirfd: c_int, path: PathArg, out: StatOut, flags: c_int) -> c_int;
        else { let _ = version; raw!(SYS_newfstatat, dirfd, path, out, flags) };
    fn statfs(path: PathArg, out: Out<libc::statfs64>) -> c_int; else raw!(SYS_statfs, path, out);
    fn __statfs(path: PathArg, out: Out<libc::statfs64>) -> c_int; else raw!(SYS_statfs, path, out);
    fn statfs64(path: PathArg, out: Out<libc::statfs64>) -> c_int; else raw!(SYS_statfs, path, out);
    fn statvfs(path: PathArg, out: Out<libc::statvfs>) -> c_int;
        else { let _ = (path, out); no_symbol() };
    fn statvfs64(path: PathArg, out: Out<libc::statvfs>) -> c_int;
        else { let _ = (path, out); no_symbol() };
    fn pathconf(path: PathArg, name: c_int) -> c_long; else { let _ = (path, name); no_symbol() };
    fn fpathconf(fd: c_int, name: c_int) -> c_long; else { let _ = (fd, name); no_symbol() };
    fn fstatfs(fd: c_int, out: Out<libc::statfs64>) -> c_int; else raw!(SYS_fstatfs, fd, out);
    fn fstatfs64(fd: c_int, out: Out<libc::statfs64>) -> c_int; else raw!(SYS_fstatfs, fd, out);
    fn fstatvfs(fd: c_int, out: Out<libc::statvfs>) -> c_int;
        else { let _ = (fd, out); no_symbol() };
    fn fstatvfs64(fd: c_int, out: Out<libc::statvfs>) -> c_int;
        else { let _ = (fd, out); no_symbol() };

    fn access(path: PathArg, mode: c_int) -> c_int; else raw!(SYS_faccessat, AT_FDCWD, path, mode);
    fn faccessat(dirfd: c_int, path: PathArg, mode: c_int, flags: c_int) -> c_int;
        else raw!(SYS_faccessat2, dirfd, path, mode, flags);
    fn eaccess(path: PathArg, mode: c_int) -> c_int; else raw!(SYS_faccessat2, AT_FDCWD, path, mode, AT_EACCESS);
    fn euidaccess(path: PathArg, mode: c_int) -> c_int;
        else raw!(SYS_faccessat2, AT_FDCWD, path, mode, AT_EACCESS);
    fn unlink(path: PathArg) -> c_int; else raw!(SYS_unlinkat, AT_FDCWD, path, 0);
    fn unlinkat(dirfd: c_int, path: PathArg, flags: c_int) -> c_int; else raw!(SYS_unlinkat, dirfd, path, flags);
    fn remove(path: PathArg) -> c_int; else { let _ = path; no_symbol() };
    fn rmdir(path: PathArg) -> c_int; else raw!(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
    fn rename(old: PathArg, new: PathArg) -> c_int; else raw!(SYS_renameat2, AT_FDCWD, old, AT_FDCWD, new, 0);
    fn renameat(olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg) -> c_int;
        else raw!(SYS_renameat2, olddirfd, old, newdirfd, new, 0);
    fn renameat2(olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg, flags: c_uint) -> c_int;
        else raw!(SYS_renameat2, olddirfd, old, newdirfd, new, flags);
    fn mkdir(path: PathArg, mode: mode_t) -> c_int; else raw!(SYS_mkdirat, AT_FDCWD, path, mode);
    fn mkdirat(dirfd: c_int, path: PathArg, mode: mode_t) -> c_int; else raw!(SYS_mkdirat, dirfd, path, mode);
    fn mkfifo(path: PathArg, mode: mode_t) -> c_int;
        else raw!(SYS_mknodat, AT_FDCWD, path, libc::S_IFIFO | mode, 0);
    fn mkfifoat(dirfd: c_int, path: PathArg, mode: mode_t) -> c_int;
        else raw!(SYS_mknodat, dirfd, path, libc::S_IFIFO | mode, 0);
    fn mknod(path: PathArg, mode: mode_t, dev: libc::dev_t) -> c_int;
        else raw!(SYS_mknodat, AT_FDCWD, path, mode, dev);
    fn mknodat(dirfd: c_int, path: PathArg, mode: mode_t, dev: libc::dev_t) -> c_int;
        else raw!(SYS_mknodat, dirfd, path, mode, dev);
    fn __xmknod(version: c_int, path: PathArg, mode: mode_t, dev: Vector<libc::dev_t, 1>) -> c_int;
        else { let _ = (version, path, mode, dev); no_symbol() };
    fn __xmknodat(version: c_int, dirfd: c_int, path: PathArg, mode: mode_t, dev: Vector<libc::dev_t, 1>) -> c_int;
        else { let _ = (version, dirfd, path, mode, dev); no_symbol() };
    fn link(old: PathArg, new: PathArg) -> c_int; else raw!(SYS_linkat, AT_FDCWD, old, AT_FDCWD, new, 0);
    fn linkat(olddirfd: c_int, old: PathArg, newdirfd: c_int, new: PathArg, flags: c_int) -> c_int;
        else raw!(SYS_linkat, olddirfd, old, newdirfd, new, flags);
    fn symlink(target: PathArg, path: PathArg) -> c_int; else raw!(SYS_symlinkat, target, AT_FDCWD, path);
    fn symlinkat(target: PathArg, dirfd: c_int, path: PathArg) -> c_int;
        else raw!(SYS_symlinkat, target, dirfd, path);
    fn readlink(path: PathArg, out: Data, size: usize) -> isize; else raw!(SYS_readlinkat, AT_FDCWD, path, out, size);
    fn readlinkat(dirfd: c_int, path: PathArg, out: Data, size: usize) -> isize;
        else raw!(SYS_readlinkat, dirfd, path, out, size);
    fn __readlink_chk(path: PathArg, out: Data, size: usize, room: usize) -> isize;
        else { let _ = room; raw!(SYS_readlinkat, AT_FDCWD, path, out, size) };
    fn __readlinkat_chk(dirfd: c_int, path: PathArg, out: Data, size: usize, room: usize) -> isize;
        else { let _ = room; raw!(SYS_readlinkat, dirfd, path, out, size) };

    fn getxattr(path: PathArg, name: PathArg, out: Data, size: usize) -> isize;
        else raw!(SYS_getxattr, path, name, out, size);
    fn lgetxattr(path: PathArg, name: PathArg, out: Data, size: usize) -> isize;
        else raw!(SYS_lgetxattr, path, name, out, size);
    fn listxattr(path: PathArg, out: Data, size: usize) -> isize; else raw!(SYS_listxattr, path, out, size);
    fn llistxattr(path: PathArg, out: Data, size: usize) -> isize; else raw!(SYS_llistxattr, path, out, size);

    fn setxattr(path: PathArg, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int;
        else raw!(SYS_setxattr, path, name, value, size, flags);
    fn lsetxattr(path: PathArg, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int;
        else raw!(SYS_lsetxattr, path, name, value, size, flags);
    fn removexattr(path: PathArg, name: PathArg) -> c_int; else raw!(SYS_removexattr, path, name);
    fn lremovexattr(path: PathArg, name: PathArg) -> c_int; else raw!(SYS_lremovexattr, path, name);

    fn lchmod(path: PathArg, mode: mode_t) -> c_int; else { let _ = (path, mode); no_symbol() };
    fn chmod(path: PathArg, mode: mode_t) -> c_int; else raw!(SYS_fchmodat, AT_FDCWD, path, mode);
    fn fchmodat(dirfd: c_int, path: PathArg, mode: mode_t, flags: c_int) -> c_int;
        else { if flags == 0 { raw!(SYS_fchmodat, dirfd, path, mode) } else { no_symbol() } };
    fn chown(path: PathArg, uid: uid_t, gid: gid_t) -> c_int; else raw!(SYS_fchownat, AT_FDCWD, path, uid, gid, 0);
    fn lchown(path: PathArg, uid: uid_t, gid: gid_t) -> c_int;
        else raw!(SYS_fchownat, AT_FDCWD, path, uid, gid, AT_SYMLINK_NOFOLLOW);
    fn fchownat(dirfd: c_int, path: PathArg, uid: uid_t, gid: gid_t, flags: c_int) -> c_int;
        else raw!(SYS_fchownat, dirfd, path, uid, gid, flags);
    fn truncate(path: PathArg, size: off_t) -> c_int; else raw!(SYS_truncate, path, size);
    fn truncate64(path: PathArg, size: off_t) -> c_int; else raw!(SYS_truncate, path, size);
    fn utime(path: PathArg, times: Vector<libc::utimbuf, 1>) -> c_int;
        else { let _ = (path, times); no_symbol() };
    fn utimes(path: PathArg, times: Vector<libc::timeval, 2>) -> c_int;
        else { let _ = (path, times); no_symbol() };
    fn lutimes(path: PathArg, times: Vector<libc::timeval, 2>) -> c_int;
        else { let _ = (path, times); no_symbol() };
    fn futimesat(dirfd: c_int, path: PathArg, times: Vector<libc::timeval, 2>) -> c_int;
        else { let _ = (dirfd, path, times); no_symbol() };
    fn utimensat(dirfd: c_int, path: PathArg, times: Vector<libc::timespec, 2>, flags: c_int) -> c_int;
        else raw!(SYS_utimensat, dirfd, path, times, flags);
    fn fchmod(fd: c_int, mode: mode_t) -> c_int; else raw!(SYS_fchmod, fd, mode);
    fn fchown(fd: c_int, uid: uid_t, gid: gid_t) -> c_int; else raw!(SYS_fchown, fd, uid, gid);
    fn futimens(fd: c_int, times: Vector<libc::timespec, 2>) -> c_int;
        else raw!(SYS_utimensat, fd, std::ptr::null::<c_char>(), times, 0);
    fn futimes(fd: c_int, times: Vector<libc::timeval, 2>) -> c_int;
        else { let _ = (fd, times); no_symbol() };
    fn fsetxattr(fd: c_int, name: PathArg, value: Data, size: usize, flags: c_int) -> c_int;
        else raw!(SYS_fsetxattr, fd, name, value, size, flags);
    fn fremovexattr(fd: c_int, name: PathArg) -> c_int; else raw!(SYS_fremovexattr, fd, name);

    fn read(fd: c_int, out: Data, len: usize) -> isize;
        else raw!(SYS_read, fd, out, len);
    fn __read(fd: c_int, out: Data, len: usize) -> isize;
        else raw!(SYS_read, fd, out, len);
    fn pread(fd: c_int, out: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pread64, fd, out, len, offset);
    fn pread64(fd: c_int, out: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pread64, fd, out, len, offset);
    fn __pread64(fd: c_int, out: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pread64, fd, out, len, offset);
    fn write(fd: c_int, data: Data, len: usize) -> isize;
        else raw!(SYS_write, fd, data, len);
    fn __write(fd: c_int, data: Data, len: usize) -> isize;
        else raw!(SYS_write, fd, data, len);
    fn pwrite(fd: c_int, data: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pwrite64, fd, data, len, offset);
    fn pwrite64(fd: c_int, data: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pwrite64, fd, data, len, offset);
    fn __pwrite64(fd: c_int, data: Data, len: usize, offset: off_t) -> isize;
        else raw!(SYS_pwrite64, fd, data, len, offset);
    fn __read_chk(fd: c_int, out: Data, len: usize, room: usize) -> isize;
        else { let _ = (fd, out, len, room); no_symbol() };
    fn __pread_chk(fd: c_int, out: Data, len: usize, offset: off_t, room: usize) -> isize;
        else { let _ = (fd, out, len, offset, room); no_symbol() };
    fn __pread64_chk(fd: c_int, out: Data, len: usize, offset: off_t, room: usize) -> isize;
        else { let _ = (fd, out, len, offset, room); no_symbol() };
    fn readv(fd: c_int, out: Iovecs, count: c_int) -> isize;
        else raw!(SYS_readv, fd, out, count);
    fn writev(fd: c_int, data: Iovecs, count: c_int) -> isize;
        else raw!(SYS_writev, fd, data, count);
    fn preadv(fd: c_int, out: Iovecs, count: c_int, offset: off_t) -> isize;
        else raw!(SYS_preadv, fd, out, count, offset, 0);
    fn preadv64(fd: c_int, out: Iovecs, count: c_int, offset: off_t) -> isize;
        else raw!(SYS_preadv, fd, out, count, offset, 0);
    fn pwritev(fd: c_int, data: Iovecs, count: c_int, offset: off_t) -> isize;
        else raw!(SYS_pwritev, fd, data, count, offset, 0);
    fn pwritev64(fd: c_int, data: Iovecs, count: c_int, offset: off_t) -> isize;
        else raw!(SYS_pwritev, fd, data, count, offset, 0);
    fn preadv2(fd: c_int, out: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize;
        else raw!(SYS_preadv2, fd, out, count, offset, 0, flags);
    fn preadv64v2(fd: c_int, out: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize;
        else raw!(SYS_preadv2, fd, out, count, offset, 0, flags);
    fn pwritev2(fd: c_int, data: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize;
        else raw!(SYS_pwritev2, fd, data, count, offset, 0, flags);
    fn pwritev64v2(fd: c_int, data: Iovecs, count: c_int, offset: off_t, flags: c_int) -> isize;
        else raw!(SYS_pwritev2, fd, data, count, offset, 0, flags);
    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
        else raw!(SYS_lseek, fd, offset, whence);
    fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t;
        else raw!(SYS_lseek, fd, offset, whence);
    fn __lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t;
        else raw!(SYS_lseek, fd, offset, whence);
    fn ftruncate(fd: c_int, size: off_t) -> c_int;
        else raw!(SYS_ftruncate, fd, size);
    fn ftruncate64(fd: c_int, size: off_t) -> c_int;
        else raw!(SYS_ftruncate, fd, size);
    fn fsync(fd: c_int) -> c_int;
        else raw!(SYS_fsync, fd);
    fn fdatasync(fd: c_int) -> c_int;
        else raw!(SYS_fdatasync, fd);
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int;
        else raw!(SYS_fallocate, fd, mode, offset, len);
    fn fallocate64(fd: c_int, mode: c_int, offset: off_t, len: off_t) -> c_int;
        else raw!(SYS_fallocate, fd, mode, offset, len);
    fn posix_fallocate(fd: c_int, offset: off_t, len: off_t) -> c_int;
        else { let _ = (fd, offset, len); libc::ENOSYS };
    fn posix_fallocate64(fd: c_int, offset: off_t, len: off_t) -> c_int;
        else { let _ = (fd, offset, len); libc::ENOSYS };
    fn posix_fadvise(fd: c_int, offset: off_t, len: off_t, advice: c_int) -> c_int;
        else { let _ = (fd, offset, len, advice); libc::ENOSYS };
    fn posix_fadvise64(fd: c_int, offset: off_t, len: off_t, advice: c_int) -> c_int;
        else { let _ = (fd, offset, len, advice); libc::ENOSYS };
    fn sync_file_range(fd: c_int, offset: off_t, len: off_t, flags: c_uint) -> c_int;
        else raw!(SYS_sync_file_range, fd, offset, len, flags);
    fn readahead(fd: c_int, offset: off_t, len: usize) -> isize;
        else raw!(SYS_readahead, fd, offset, len);
    fn isatty(fd: c_int) -> c_int;
        else { let _ = fd; sys::set_errno(libc::ENOSYS); 0 };
    fn tcgetattr(fd: c_int, out: *mut c_void) -> c_int;
        else { let _ = (fd, out); no_symbol() };
    fn fgetxattr(fd: c_int, name: PathArg, out: Data, size: usize) -> isize;
        else raw!(SYS_fgetxattr, fd, name, out, size);
    fn flistxattr(fd: c_int, out: Data, size: usize) -> isize;
        else raw!(SYS_flistxattr, fd, out, size);

    fn mmap(
        start: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void;
        else sys::raw_mmap(start, len, protection, flags, fd, offset);
    fn mmap64(
        start: *mut c_void, len: usize, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void;
        else sys::raw_mmap(start, len, protection, flags, fd, offset);
    fn sendfile(out: c_int, from: c_int, offset: *mut off_t, count: usize) -> isize;
        else raw!(SYS_sendfile, out, from, offset, count);
    fn sendfile64(out: c_int, from: c_int, offset: *mut off_t, count: usize) -> isize;
        else raw!(SYS_sendfile, out, from, offset, count);
    fn splice(from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: usize, flags: c_uint) -> isize;
        else raw!(SYS_splice, from, from_offset, to, to_offset, len, flags);
    fn tee(from: c_int, to: c_int, len: usize, flags: c_uint) -> isize;
        else raw!(SYS_tee, from, to, len, flags);
    fn vmsplice(fd: c_int, buffers: *const c_void, count: usize, flags: c_uint) -> isize;
        else raw!(SYS_vmsplice, fd, buffers, count, flags);
    fn copy_file_range(from: c_int, from_offset: Out<off_t>, to: c_int, to_offset: Out<off_t>, len: usize, flags: c_uint) -> isize;
        else raw!(SYS_copy_file_range, from, from_offset, to, to_offset, len, flags);
    fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
        else raw!(SYS_ioctl, fd, request, argument);
    fn flock(fd: c_int, operation: c_int) -> c_int;
        else raw!(SYS_flock, fd, operation);
    fn lockf(fd: c_int, command: c_int, len: off_t) -> c_int;
        else { let _ = (fd, command, len); no_symbol() };
    fn lockf64(fd: c_int, command: c_int, len: off_t) -> c_int;
        else { let _ = (fd, command, len); no_symbol() };
    fn syncfs(fd: c_int) -> c_int;
        else raw!(SYS_syncfs, fd);
    fn name_to_handle_at(dirfd: c_int, path: PathArg, handle: *mut c_void, mount: *mut c_int, flags: c_int) -> c_int;
        else raw!(SYS_name_to_handle_at, dirfd, path, handle, mount, flags);
    fn poll(fds: PollFds, count: c_ulong, timeout: c_int) -> c_int;
        else { let _ = (fds, count, timeout); no_symbol() };
    fn __poll(fds: PollFds, count: c_ulong, timeout: c_int) -> c_int;
        else { let _ = (fds, count, timeout); no_symbol() };
    fn __poll_chk(fds: PollFds, count: c_ulong, timeout: c_int, room: usize) -> c_int;
        else { let _ = (fds, count, timeout, room); no_symbol() };
    fn ppoll(fds: PollFds, count: c_ulong, timeout: *const c_void, mask: *const c_void) -> c_int;
        else { let _ = (fds, count, timeout, mask); no_symbol() };
    fn __ppoll_chk(fds: PollFds, count: c_ulong, timeout: *const c_void, mask: *const c_void, room: usize) -> c_int;
        else { let _ = (fds, count, timeout, mask, room); no_symbol() };
    fn select(count: c_int, reads: FdSet, writes: FdSet, others: FdSet, timeout: *mut c_void) -> c_int;
        else { let _ = (count, reads, writes, others, timeout); no_symbol() };
    fn __select(count: c_int, reads: FdSet, writes: FdSet, others: FdSet, timeout: *mut c_void) -> c_int;
        else { let _ = (count, reads, writes, others, timeout); no_symbol() };
    fn pselect(count: c_int, reads: FdSet, writes: FdSet, others: FdSet, timeout: *const c_void, mask: *const c_void) -> c_int;
        else { let _ = (count, reads, writes, others, timeout, mask); no_symbol() };
    fn epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut c_void) -> c_int;
        else raw!(SYS_epoll_ctl, epoll, operation, fd, event);
    fn sendmsg(fd: c_int, message: Message, flags: c_int) -> isize;
        else raw!(SYS_sendmsg, fd, message, flags);
    fn sendmmsg(fd: c_int, messages: Message, count: c_uint, flags: c_int) -> c_int;
        else raw!(SYS_sendmmsg, fd, messages, count, flags);
    fn aio_read(block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = block; no_symbol() };
    fn aio_read64(block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = block; no_symbol() };
    fn aio_write(block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = block; no_symbol() };
    fn aio_write64(block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = block; no_symbol() };
    fn aio_fsync(operation: c_int, block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = (operation, block); no_symbol() };
    fn aio_fsync64(operation: c_int, block: Aio) -> c_int, "GLIBC_2.34";
        else { let _ = (operation, block); no_symbol() };
    fn lio_listio(mode: c_int, blocks: Aios, count: c_int, event: *mut c_void) -> c_int, "GLIBC_2.34";
        else { let _ = (mode, blocks, count, event); no_symbol() };
    fn lio_listio64(mode: c_int, blocks: Aios, count: c_int, event: *mut c_void) -> c_int, "GLIBC_2.34";
        else { let _ = (mode, blocks, count, event); no_symbol() };
    fn fdopen(fd: c_int, mode: PathArg) -> *mut Stream;
        else { let _ = (fd, mode); no_pointer() };
    fn _IO_fdopen(fd: c_int, mode: PathArg) -> *mut Stream;
        else { let _ = (fd, mode); no_pointer() };
    fn bind(fd: c_int, address: *const c_void, len: c_uint) -> c_int; else raw!(SYS_bind, fd, address, len);
    fn connect(fd: c_int, address: *const c_void, len: c_uint) -> c_int; else raw!(SYS_connect, fd, address, len);
    fn __connect(fd: c_int, address: *const c_void, len: c_uint) -> c_int; else raw!(SYS_connect, fd, address, len);
    fn listen(fd: c_int, backlog: c_int) -> c_int; else raw!(SYS_listen, fd, backlog);
    fn accept(fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int; else raw!(SYS_accept, fd, address, len);
    fn accept4(fd: c_int, address: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int;
        else raw!(SYS_accept4, fd, address, len, flags);
    fn shutdown(fd: c_int, how: c_int) -> c_int; else raw!(SYS_shutdown, fd, how);
    fn send(fd: c_int, data: *const c_void, len: usize, flags: c_int) -> isize;
        else raw!(SYS_sendto, fd, data, len, flags, 0, 0);
    fn __send(fd: c_int, data: *const c_void, len: usize, flags: c_int) -> isize;
        else raw!(SYS_sendto, fd, data, len, flags, 0, 0);
    fn sendto(
        fd: c_int, data: *const c_void, len: usize, flags: c_int, address: *const c_void, address_len: c_uint
    ) -> isize;
        else raw!(SYS_sendto, fd, data, len, flags, address, address_len);
    fn recv(fd: c_int, out: *mut c_void, len: usize, flags: c_int) -> isize;
        else raw!(SYS_recvfrom, fd, out, len, flags, 0, 0);
    fn __recv_chk(fd: c_int, out: *mut c_void, len: usize, room: usize, flags: c_int) -> isize;
        else { let _ = room; raw!(SYS_recvfrom, fd, out, len, flags, 0, 0) };
    fn recvfrom(
        fd: c_int, out: *mut c_void, len: usize, flags: c_int, address: *mut c_void, address_len: *mut c_uint
    ) -> isize;
        else raw!(SYS_recvfrom, fd, out, len, flags, address, address_len);
    fn __recvfrom_chk(
        fd: c_int, out: *mut c_void, len: usize, room: usize, flags: c_int, address: *mut c_void,
        address_len: *mut c_uint
    ) -> isize;
        else { let _ = room; raw!(SYS_recvfrom, fd, out, len, flags, address, address_len) };
    fn recvmsg(fd: c_int, message: *mut c_void, flags: c_int) -> isize; else raw!(SYS_recvmsg, fd, message, flags);
    fn recvmmsg(fd: c_int, messages: *mut c_void, count: c_uint, flags: c_int, timeout: *mut c_void) -> c_int;
        else raw!(SYS_recvmmsg, fd, messages, count, flags, timeout);
    fn getsockname(fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int;
        else raw!(SYS_getsockname, fd, address, len);
    fn getpeername(fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int;
        else raw!(SYS_getpeername, fd, address, len);
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut c_uint) -> c_int;
        else raw!(SYS_getsockopt, fd, level, name, value, len);
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: c_uint) -> c_int;
        else raw!(SYS_setsockopt, fd, level, name, value, len);
    fn sockatmark(fd: c_int) -> c_int; else { let _ = fd; no_symbol() };
    fn ttyname(fd: c_int) -> *mut c_char; else { let _ = fd; no_pointer() };
    fn ptsname(fd: c_int) -> *mut c_char; else { let _ = fd; no_pointer() };
    fn ttyname_r(fd: c_int, out: *mut c_char, len: usize) -> c_int; else { let _ = (fd, out, len); libc::ENOSYS };
    fn __ttyname_r_chk(fd: c_int, out: *mut c_char, len: usize, room: usize) -> c_int;
        else { let _ = (fd, out, len, room); libc::ENOSYS };
    fn ptsname_r(fd: c_int, out: *mut c_char, len: usize) -> c_int; else { let _ = (fd, out, len); libc::ENOSYS };
    fn __ptsname_r_chk(fd: c_int, out: *mut c_char, len: usize, room: usize) -> c_int;
        else { let _ = (fd, out, len, room); libc::ENOSYS };
    fn grantpt(fd: c_int) -> c_int; else { let _ = fd; no_symbol() };
    fn unlockpt(fd: c_int) -> c_int; else { let _ = fd; no_symbol() };
    fn tcsetattr(fd: c_int, when: c_int, attributes: *const c_void) -> c_int;
        else { let _ = (fd, when, attributes); no_symbol() };
    fn tcsendbreak(fd: c_int, duration: c_int) -> c_int; else { let _ = (fd, duration); no_symbol() };
    fn tcdrain(fd: c_int) -> c_int; else { let _ = fd; no_symbol() };
    fn tcflush(fd: c_int, which: c_int) -> c_int; else { let _ = (fd, which); no_symbol() };
    fn tcflow(fd: c_int, action: c_int) -> c_int; else { let _ = (fd, action); no_symbol() };
    fn tcgetpgrp(fd: c_int) -> pid_t; else { let _ = fd; no_symbol() };
    fn tcsetpgrp(fd: c_int, group: pid_t) -> c_int; else { let _ = (fd, group); no_symbol() };
    fn tcgetsid(fd: c_int) -> pid_t; else { let _ = fd; no_symbol() };
    fn epoll_wait(epoll: c_int, events: *mut c_void, count: c_int, timeout: c_int) -> c_int;
        else raw!(SYS_epoll_pwait, epoll, events, count, timeout, 0, 8);
    fn epoll_pwait(epoll: c_int, events: *mut c_void, count: c_int, timeout: c_int, mask: *const c_void) -> c_int;
        else raw!(SYS_epoll_pwait, epoll, events, count, timeout, mask, 8);
    fn epoll_pwait2(
        epoll: c_int, events: *mut c_void, count: c_int, timeout: *const c_void, mask: *const c_void
    ) -> c_int;
        else raw!(SYS_epoll_pwait2, epoll, events, count, timeout, mask, 8);
    fn signalfd(fd: c_int, mask: *const c_void, flags: c_int) -> c_int; else raw!(SYS_signalfd4, fd, mask, 8, flags);
    fn timerfd_settime(fd: c_int, flags: c_int, new: *const c_void, old: *mut c_void) -> c_int;
        else raw!(SYS_timerfd_settime, fd, flags, new, old);
    fn timerfd_gettime(fd: c_int, now: *mut c_void) -> c_int; else raw!(SYS_timerfd_gettime, fd, now);
    fn eventfd_read(fd: c_int, value: *mut u64) -> c_int; else { let _ = (fd, value); no_symbol() };
    fn eventfd_write(fd: c_int, value: u64) -> c_int; else { let _ = (fd, value); no_symbol() };
    fn getdirentries(fd: c_int, out: *mut c_char, len: usize, position: *mut off_t) -> isize;
        else { let _ = (fd, out, len, position); no_symbol() };
    fn getdirentries64(fd: c_int, out: *mut c_char, len: usize, position: *mut off_t) -> isize;
        else { let _ = (fd, out, len, position); no_symbol() };
    fn open_by_handle_at(mount: c_int, handle: *mut c_void, flags: c_int) -> c_int;
        else raw!(SYS_open_by_handle_at, mount, handle, flags);

    fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
        else { let _ = (fd, format, arguments); no_symbol() };
    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
        else { let _ = (fd, flag, format, arguments); no_symbol() };
    // These two are variadic, and reached only by their addresses.
    fn dprintf(fd: c_int, format: *const c_char) -> c_int;
        else { let _ = (fd, format); no_symbol() };
    fn __dprintf_chk(fd: c_int, flag: c_int) -> c_int;
        else { let _ = (fd, flag); no_symbol() };

    fn chdir(path: PathArg) -> c_int; else raw!(SYS_chdir, path);
    fn fchdir(fd: c_int) -> c_int; else raw!(SYS_fchdir, fd);
    fn opendir(path: PathArg) -> *mut libc::DIR; else { let _ = path; no_pointer() };
    fn fdopendir(fd: c_int) -> *mut libc::DIR; else { let _ = fd; no_pointer() };
    fn readdir(directory: *mut libc::DIR) -> Entry; else { let _ = directory; no_pointer() };
    fn readdir64(directory: *mut libc::DIR) -> Entry; else { let _ = directory; no_pointer() };
    fn readdir_r(directory: *mut libc::DIR, entry: Entry, result: *mut Entry) -> c_int;
        else { let _ = (directory, entry, result); libc::ENOSYS };
    fn readdir64_r(directory: *mut libc::DIR, entry: Entry, result: *mut Entry) -> c_int;
        else { let _ = (directory, entry, result); libc::ENOSYS };
    fn rewinddir(directory: *mut libc::DIR) -> (); else { let _ = directory; };
    fn seekdir(directory: *mut libc::DIR, position: c_long) -> (); else { let _ = (directory, position); };
    fn telldir(directory: *mut libc::DIR) -> c_long; else { let _ = directory; no_symbol() };
    fn dirfd(directory: *mut libc::DIR) -> c_int; else { let _ = directory; no_symbol() };
    fn closedir(directory: *mut libc::DIR) -> c_int; else { let _ = directory; no_symbol() };
    fn scandir(path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare) -> c_int;
        else { let _ = (path, list, filter, compare); no_symbol() };
    fn scandir64(path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare) -> c_int;
        else { let _ = (path, list, filter, compare); no_symbol() };
    fn scandirat(dirfd: c_int, path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare) -> c_int;
        else { let _ = (dirfd, path, list, filter, compare); no_symbol() };
    fn scandirat64(dirfd: c_int, path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare) -> c_int;
        else { let _ = (dirfd, path, list, filter, compare); no_symbol() };
    fn getdents64(fd: c_int, out: Data, size: usize) -> isize; else raw!(SYS_getdents64, fd, out, size);
    fn fts_read(tree: *mut c_void) -> *mut c_void; else { let _ = tree; no_pointer() };
    fn fts64_read(tree: *mut c_void) -> *mut c_void; else { let _ = tree; no_pointer() };
    fn fts_children(tree: *mut c_void, options: c_int) -> *mut c_void;
        else { let _ = (tree, options); no_pointer() };
    fn fts64_children(tree: *mut c_void, options: c_int) -> *mut c_void;
        else { let _ = (tree, options); no_pointer() };
    fn fts_close(tree: *mut c_void) -> c_int; else { let _ = tree; no_symbol() };
    fn fts64_close(tree: *mut c_void) -> c_int; else { let _ = tree; no_symbol() };
    fn nftw(path: PathArg, visit: *const c_void, descriptors: c_int, flags: c_int) -> c_int, "GLIBC_2.3.3";
        else { let _ = (path, visit, descriptors, flags); no_symbol() };
    fn nftw64(path: PathArg, visit: *const c_void, descriptors: c_int, flags: c_int) -> c_int, "GLIBC_2.3.3";
        else { let _ = (path, visit, descriptors, flags); no_symbol() };

    fn fopen(path: PathArg, mode: PathArg) -> *mut Stream; else { let _ = (path, mode); no_pointer() };
    fn fopen64(path: PathArg, mode: PathArg) -> *mut Stream; else { let _ = (path, mode); no_pointer() };
    fn _IO_fopen(path: PathArg, mode: PathArg) -> *mut Stream; else { let _ = (path, mode); no_pointer() };
    fn freopen(path: PathArg, mode: PathArg, stream: *mut Stream) -> *mut Stream;
        else { let _ = (path, mode, stream); no_pointer() };
    fn freopen64(path: PathArg, mode: PathArg, stream: *mut Stream) -> *mut Stream;
        else { let _ = (path, mode, stream); no_pointer() };
    fn fclose(stream: *mut Stream) -> c_int; else { let _ = stream; no_symbol() };
    fn _IO_fclose(stream: *mut Stream) -> c_int; else { let _ = stream; no_symbol() };

    fn mkstemp(template: Text) -> c_int; else { let _ = template; no_symbol() };
    fn mkstemp64(template: Text) -> c_int; else { let _ = template; no_symbol() };
    fn mkostemp(template: Text, flags: c_int) -> c_int; else { let _ = (template, flags); no_symbol() };
    fn mkostemp64(template: Text, flags: c_int) -> c_int; else { let _ = (template, flags); no_symbol() };
    fn mkstemps(template: Text, suffix: c_int) -> c_int; else { let _ = (template, suffix); no_symbol() };
    fn mkstemps64(template: Text, suffix: c_int) -> c_int; else { let _ = (template, suffix); no_symbol() };
    fn mkostemps(template: Text, suffix: c_int, flags: c_int) -> c_int;
        else { let _ = (template, suffix, flags); no_symbol() };
    fn mkostemps64(template: Text, suffix: c_int, flags: c_int) -> c_int;
        else { let _ = (template, suffix, flags); no_symbol() };
    fn mkdtemp(template: Text) -> Text; else { let _ = template; no_text() };
    fn realpath(path: PathArg, resolved: Text) -> Text, "GLIBC_2.3";
        else { let _ = (path, resolved); no_text() };
    fn __realpath_chk(path: PathArg, resolved: Text, room: usize) -> Text;
        else { let _ = (path, resolved, room); no_text() };
    fn canonicalize_file_name(path: PathArg) -> Text; else { let _ = path; no_text() };
    fn glob(pattern: PathArg, flags: c_int, error: *const c_void, out: Out<Glob>) -> c_int, "GLIBC_2.27";
        else { let _ = (pattern, flags, error, out); no_symbol() };
    fn glob64(pattern: PathArg, flags: c_int, error: *const c_void, out: Out<Glob>) -> c_int, "GLIBC_2.27";
        else { let _ = (pattern, flags, error, out); no_symbol() };
    fn syscall(number: Word, a: Word, b: Word, c: Word, d: Word, e: Word, f: Word) -> Word;
        else { let _ = (number, a, b, c, d, e, f); sys::set_errno(libc::ENOSYS); Word(-1) };

    fn inotify_add_watch(inotify: c_int, path: PathArg, mask: u32) -> c_int;
        else raw!(SYS_inotify_add_watch, inotify, path, mask);
    fn inotify_rm_watch(inotify: c_int, number: c_int) -> c_int; else raw!(SYS_inotify_rm_watch, inotify, number);
    fn fanotify_mark(fanotify: c_int, flags: c_uint, mask: u64, dirfd: c_int, path: PathArg) -> c_int;
        else raw!(SYS_fanotify_mark, fanotify, flags, mask, dirfd, path);
    fn fork() -> pid_t; else no_symbol();
    fn __fork() -> pid_t;
        else no_symbol();
    fn _Fork() -> pid_t;
        else no_symbol();
    fn clone(run: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int;
        else { let _ = (run, stack, flags, argument, parent, tls, child); no_symbol() };
    fn __clone(run: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int;
        else { let _ = (run, stack, flags, argument, parent, tls, child); no_symbol() };
    fn system(command: PathArg) -> c_int;
        else { let _ = command; no_symbol() };
    fn popen(command: PathArg, mode: PathArg) -> *mut Stream;
        else { let _ = (command, mode); no_pointer() };
    fn _IO_popen(command: PathArg, mode: PathArg) -> *mut Stream;
        else { let _ = (command, mode); no_pointer() };
    fn setrlimit(resource: c_uint, limit: *const c_void) -> c_int;
        else raw!(SYS_setrlimit, resource, limit);
    fn setrlimit64(resource: c_uint, limit: *const c_void) -> c_int;
        else raw!(SYS_setrlimit, resource, limit);
    fn prlimit(pid: pid_t, resource: c_uint, limit: *const c_void, before: *mut c_void) -> c_int;
        else raw!(SYS_prlimit64, pid, resource, limit, before);
    fn prlimit64(pid: pid_t, resource: c_uint, limit: *const c_void, before: *mut c_void) -> c_int;
        else raw!(SYS_prlimit64, pid, resource, limit, before);
    fn daemon(stay: c_int, keep: c_int) -> c_int; else { let _ = (stay, keep); no_symbol() };
    fn login_tty(fd: c_int) -> c_int; else { let _ = fd; no_symbol() };
    fn forkpty(terminal: Out<c_int>, name: Text, modes: *const c_void, size: *const c_void) -> pid_t;
        else { let _ = (terminal, name, modes, size); no_symbol() };
    fn umask(mask: mode_t) -> mode_t; else raw!(SYS_umask, mask);
    fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int; else { let _ = (kind, before); libc::ENOSYS };
    fn longjmp(place: *mut c_void, value: c_int) -> c_int; else { let _ = (place, value); no_jump() };
    fn _longjmp(place: *mut c_void, value: c_int) -> c_int; else { let _ = (place, value); no_jump() };
    fn siglongjmp(place: *mut c_void, value: c_int) -> c_int; else { let _ = (place, value); no_jump() };
    fn __longjmp_chk(place: *mut c_void, value: c_int) -> c_int; else { let _ = (place, value); no_jump() };
    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
        else { let _ = (option, a, b, c, d); no_symbol() };
    fn execve(path: PathArg, argv: sys::Strings, envp: sys::Strings) -> c_int; else raw!(SYS_execve, path, argv, envp);
    fn execvpe(file: PathArg, argv: sys::Strings, envp: sys::Strings) -> c_int;
        else { let _ = (file, argv, envp); no_symbol() };
    fn fexecve(fd: c_int, argv: sys::Strings, envp: sys::Strings) -> c_int;
        else raw!(SYS_execveat, fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
    fn execveat(dirfd: c_int, path: PathArg, argv: sys::Strings, envp: sys::Strings, flags: c_int) -> c_int;
        else raw!(SYS_execveat, dirfd, path, argv, envp, flags);
    fn posix_spawn(
        pid: *mut pid_t, path: PathArg, actions: *const c_void, attributes: *const c_void,
        argv: sys::Strings, envp: sys::Strings
    ) -> c_int, "GLIBC_2.15";
        else { let _ = (pid, path, actions, attributes, argv, envp); libc::ENOSYS };
    fn posix_spawnp(
        pid: *mut pid_t, file: PathArg, actions: *const c_void, attributes: *const c_void,
        argv: sys::Strings, envp: sys::Strings
    ) -> c_int, "GLIBC_2.15";
        else { let _ = (pid, file, actions, attributes, argv, envp); libc::ENOSYS };

    fn setuid(uid: uid_t) -> c_int; else raw!(SYS_setuid, uid);
    fn setgid(gid: gid_t) -> c_int; else raw!(SYS_setgid, gid);
    fn seteuid(uid: uid_t) -> c_int; else raw!(SYS_setresuid, -1, uid, -1);
    fn setegid(gid: gid_t) -> c_int; else raw!(SYS_setresgid, -1, gid, -1);
    fn setreuid(real: uid_t, effective: uid_t) -> c_int; else raw!(SYS_setreuid, real, effective);
    fn setregid(real: gid_t, effective: gid_t) -> c_int; else raw!(SYS_setregid, real, effective);
    fn setresuid(real: uid_t, effective: uid_t, saved: uid_t) -> c_int;
        else raw!(SYS_setresuid, real, effective, saved);
    fn setresgid(real: gid_t, effective: gid_t, saved: gid_t) -> c_int;
        else raw!(SYS_setresgid, real, effective, saved);
    fn setgroups(count: usize, groups: *const gid_t) -> c_int; else raw!(SYS_setgroups, count, groups);
    fn initgroups(user: PathArg, group: gid_t) -> c_int; else { let _ = (user, group); no_symbol() };
    fn capset(header: *mut c_void, data: *const c_void) -> c_int; else raw!(SYS_capset, header, data);
    fn setfsuid(uid: uid_t) -> c_int; else raw!(SYS_setfsuid, uid);
    fn setfsgid(gid: gid_t) -> c_int; else raw!(SYS_setfsgid, gid);
    fn chroot(path: PathArg) -> c_int; else raw!(SYS_chroot, path);
    fn unshare(flags: c_int) -> c_int; else raw!(SYS_unshare, flags);
    fn setns(fd: c_int, kind: c_int) -> c_int; else raw!(SYS_setns, fd, kind);
}

/// Fails with `ENOSYS`.
extern "C" fn no_dprintf() -> c_int {
    no_symbol()
}

/// The next `dprintf`, to be jumped to with the arguments that only it knows.
pub(crate) fn dprintf_address() -> *const c_void {
    symbols::dprintf::get().map_or(no_dprintf as *const () as *const c_void, <*mut c_void>::cast_const)
}

/// The next `__dprintf_chk`.
pub(crate) fn dprintf_chk_address() -> *const c_void {
    symbols::__dprintf_chk::get().map_or(no_dprintf as *const () as *const c_void, <*mut c_void>::cast_const)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_the_one_that_the_dynamic_linker_finds_in_todays_version() {
        assert!(behind::note());
        let (mut missing, mut all) = (0, 0);
        for_each(|symbol| {
            all += 1;
            match behind::find(text(&symbol.name), symbol.hash) {
                Found::At(address) => assert_eq!(address, symbol.ask(), "{:?}", text(&symbol.name)),
                Found::Nowhere => {
                    assert!(
                        std::ptr::eq(symbol.ask().cast(), &raw const MISSING),
                        "{:?}",
                        text(&symbol.name)
                    );
                    missing += 1;
                }
                Found::Unclear => panic!("{:?}", text(&symbol.name)),
            }
        });
        assert!(missing < all / 10, "{missing} of {all} are missing");
    }
}
