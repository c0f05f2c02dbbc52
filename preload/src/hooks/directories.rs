//! Functions that list directories, and those that change the current one.

use std::ffi::{c_int, c_long, c_void};

use libc::{AT_FDCWD, DIR};

use super::{fail, hook};
use crate::calls::Road;
use crate::dirstreams::{self, Before, NAME_ROOM, Stream, Whose};
use crate::next::{Compare, Entry, Filter};
use crate::process::{CWD, FDS};
use crate::route;
use crate::sys::{self, Data, PathArg};
use crate::vforks;

/// Runs a libc function that may change the current directory behind our back, and is not always left by
/// returning.
fn wandering<R>(next: impl FnOnce() -> R) -> R {
    struct Afterwards;
    impl Drop for Afterwards {
        fn drop(&mut self) {
            CWD.changed();
        }
    }
    dirstreams::settle(Before::Directory);
    let _afterwards = Afterwards;
    next()
}

/// A null pointer and errno.
#[cold]
fn no<T>(errno: c_int) -> *mut T {
    sys::set_errno(errno);
    std::ptr::null_mut()
}

fn take(road: Road<&'static Stream>, next: impl FnOnce() -> *mut DIR) -> *mut DIR {
    match road {
        Road::Bypass(Ok(stream)) => dirstreams::pointer(stream),
        Road::Bypass(Err(errno)) => no(errno),
        Road::Kernel => next(),
    }
}

/// Does something with a stream that is ours; libc does it with its own.
#[inline]
fn with<T>(
    directory: *mut DIR,
    ours: impl FnOnce(&'static Stream) -> T,
    closed: impl FnOnce() -> T,
    next: impl FnOnce() -> T,
) -> T {
    match dirstreams::whose(directory) {
        Whose::Libc => next(),
        Whose::Ours(stream) => ours(stream),
        Whose::Closed => closed(),
    }
}

fn read(directory: *mut DIR, next: impl FnOnce() -> Entry) -> Entry {
    let ours = |stream| match dirstreams::read(stream) {
        Ok(entry) => entry.unwrap_or(std::ptr::null_mut()),
        Err(errno) => no(errno),
    };
    with(directory, ours, || no(libc::EBADF), next)
}

/// Where a `struct dirent`'s name begins.
const NAME: usize = std::mem::offset_of!(libc::dirent64, d_name);

fn read_into(directory: *mut DIR, place: Entry, result: *mut Entry, next: impl FnOnce() -> c_int) -> c_int {
    let ours = |stream| {
        let read = dirstreams::read_into(stream, |entry, name| {
            // SAFETY: the entry is a whole record in the stream's memory, and the program's place is a `struct dirent`, which
            // holds a name of this length.
            unsafe {
                let len = match usize::from((*entry).d_reclen) {
                    len if len <= NAME + NAME_ROOM => len,
                    // Fits without what it is padded with.
                    _ => NAME + name + 1,
                };
                std::ptr::copy_nonoverlapping(entry.cast::<u8>(), place.cast(), len);
                (*place).d_reclen = len as u16;
            }
        });
        // SAFETY: the function's contract: a place for the pointer.
        unsafe { result.write(if let Ok(true) = read { place } else { std::ptr::null_mut() }) };
        read.err().unwrap_or(0)
    };
    with(directory, ours, || libc::EBADF, next)
}

fn seek(directory: *mut DIR, position: u64, next: impl FnOnce()) {
    // The function has no way to report anything.
    let ours = |stream| {
        let _ = dirstreams::seek(stream, position);
    };
    with(directory, ours, || (), next);
}

/// What `scandir` has found: an array and entries from `malloc`, because the program frees them. Goes back if the
/// program's filter is left by unwinding.
struct Found {
    stream: &'static Stream,
    entries: *mut Entry,
    count: usize,
    room: usize,
}

impl Found {
    /// Adds a copy of an entry; `false` if there is no memory.
    fn push(&mut self, entry: Entry) -> bool {
        // SAFETY: `entries` is null or an array of `room` pointers from `realloc`, the first `count` of which are set; the
        // entry is a whole record in the stream's memory.
        unsafe {
            if self.count == self.room {
                let room = (self.room * 2).max(10);
                let grown = libc::realloc(self.entries.cast(), room * size_of::<Entry>());
                if grown.is_null() {
                    return false;
                }
                self.entries = grown.cast();
                self.room = room;
            }
            let len = usize::from((*entry).d_reclen);
            let copy = libc::malloc(len);
            if copy.is_null() {
                return false;
            }
            std::ptr::copy_nonoverlapping(entry.cast::<u8>(), copy.cast(), len);
            self.entries.add(self.count).write(copy.cast());
        }
        self.count += 1;
        true
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        let before = sys::errno();
        // Nobody is told of an error.
        let _ = dirstreams::close(self.stream);
        // SAFETY: as in `push`; nobody else has seen the array.
        unsafe {
            for index in 0..self.count {
                libc::free(self.entries.add(index).read().cast());
            }
            libc::free(self.entries.cast());
        }
        sys::set_errno(before);
    }
}

/// `scandir` as in glibc (`__scandir_tail`): filter and order run with errno 0.
fn scan(
    (dirfd, path): (c_int, PathArg),
    list: *mut *mut Entry,
    filter: Filter,
    compare: Compare,
    next: impl FnOnce() -> c_int,
) -> c_int {
    let stream = match dirstreams::open(dirfd, &path) {
        Road::Kernel => return next(),
        Road::Bypass(Err(errno)) => return fail(errno),
        Road::Bypass(Ok(stream)) => stream,
    };
    let before = sys::errno();
    let mut found = Found { stream, entries: std::ptr::null_mut(), count: 0, room: 0 };
    loop {
        let entry = match dirstreams::read(stream) {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(errno) => {
                drop(found);
                return fail(errno);
            }
        };
        if let Some(filter) = filter {
            sys::set_errno(0);
            // SAFETY: the program's own function, called as it expects.
            if unsafe { filter(entry) } == 0 {
                continue;
            }
        }
        if !found.push(entry) {
            drop(found);
            return fail(libc::ENOMEM);
        }
    }
    if let (Some(compare), 1..) = (compare, found.count) {
        sys::set_errno(0);
        // SAFETY: the array has so many elements of this size; the order is the program's own.
        unsafe { sort(found.entries.cast(), found.count, size_of::<Entry>(), compare) };
    }
    let count = found.count as c_int;
    // SAFETY: the function's contract: a place for the array, which is the program's from here on.
    unsafe { list.write(std::mem::replace(&mut found.entries, std::ptr::null_mut())) };
    found.count = 0;
    drop(found);
    sys::set_errno(before);
    count
}

unsafe extern "C-unwind" {
    /// libc's, whose order may unwind.
    #[link_name = "qsort"]
    fn sort(
        base: *mut c_void,
        count: usize,
        size: usize,
        compare: unsafe extern "C-unwind" fn(*const c_void, *const c_void) -> c_int,
    );
}

hook! {
    fn [opendir](path: PathArg) -> *mut DIR, next => take(dirstreams::open(AT_FDCWD, &path), || next(path));
    fn [fdopendir](fd: c_int) -> *mut DIR, next => take(dirstreams::from_descriptor(fd), || next(fd));
}

// A stream of ours libc does not know, whoever calls.
hook! {
    in any process;
    fn [readdir, readdir64](directory: *mut DIR) -> Entry, next => read(directory, || next(directory));
    fn [readdir_r, readdir64_r](directory: *mut DIR, entry: Entry, result: *mut Entry) -> c_int, next =>
        read_into(directory, entry, result, || next(directory, entry, result));
    fn [rewinddir](directory: *mut DIR) -> (), next => seek(directory, 0, || next(directory));
    fn [seekdir](directory: *mut DIR, position: c_long) -> (), next =>
        seek(directory, position as u64, || next(directory, position));
    fn [telldir](directory: *mut DIR) -> c_long, next => with(
        directory,
        |stream| dirstreams::tell(stream).map_or_else(fail_long, |position| position as c_long),
        || fail_long(libc::EBADF),
        || next(directory),
    );
    fn [dirfd](directory: *mut DIR) -> c_int, next => with(
        directory,
        |stream| dirstreams::descriptor(stream).unwrap_or_else(fail),
        || fail(libc::EBADF),
        || next(directory),
    );
    fn [closedir](directory: *mut DIR) -> c_int, next => with(
        directory,
        |stream| dirstreams::close(stream).map_or_else(fail, |()| 0),
        || fail(libc::EBADF),
        || {
            if !vforks::is_child() {
                FDS.clear(sys::dirfd(directory));
            }
            next(directory)
        },
    );
}

hook! {
    fn [scandir, scandir64](path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare) -> c_int, next =>
        scan((AT_FDCWD, path), list, filter, compare, || next(path, list, filter, compare));
    fn [scandirat, scandirat64](
        dirfd: c_int, path: PathArg, list: *mut *mut Entry, filter: Filter, compare: Compare
    ) -> c_int, next => scan((dirfd, path), list, filter, compare, || next(dirfd, path, list, filter, compare));
    fn [getdents64](fd: c_int, out: Data, size: usize) -> isize, next => {
        dirstreams::used_directly(fd);
        next(fd, out, size)
    };
}

fn fail_long(errno: c_int) -> c_long {
    fail(errno)
}

hook! {
    fn [chdir](path: PathArg) -> c_int, next => {
        dirstreams::settle(Before::Directory);
        let target = route::locate(AT_FDCWD, &path);
        let result = next(path);
        if result == 0 {
            route::entered(target.as_ref());
        }
        result
    };
    fn [fchdir](fd: c_int) -> c_int, next => {
        dirstreams::settle(Before::Directory);
        let result = next(fd);
        if result == 0 {
            route::entered_fd(fd);
        }
        result
    };
    fn [fts_read, fts64_read](tree: *mut c_void) -> *mut c_void, next => wandering(|| next(tree));
    fn [fts_children, fts64_children](tree: *mut c_void, options: c_int) -> *mut c_void, next =>
        wandering(|| next(tree, options));
    fn [fts_close, fts64_close](tree: *mut c_void) -> c_int, next => wandering(|| next(tree));
    // With FTW_CHDIR, the visitor runs in directories that libc has entered by itself.
    fn [nftw, nftw64](path: PathArg, visit: *const c_void, descriptors: c_int, flags: c_int) -> c_int, next =>
        match flags & FTW_CHDIR {
            0 => next(path, visit, descriptors, flags),
            _ => {
                dirstreams::settle(Before::Directory);
                let _suspended = CWD.suspend();
                next(path, visit, descriptors, flags)
            }
        };
}

/// `nftw`'s flag, the same on all of Linux.
const FTW_CHDIR: c_int = 4;
