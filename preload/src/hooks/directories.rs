//! Functions that change the current directory.

use std::ffi::{c_int, c_void};

use libc::AT_FDCWD;

use super::hook;
use crate::process::{CWD, FDS};
use crate::route;
use crate::sys::{self, PathArg};

/// Runs a libc function that may change the current directory behind our back, and is not always left by
/// returning.
fn wandering<R>(next: impl FnOnce() -> R) -> R {
    struct Afterwards;
    impl Drop for Afterwards {
        fn drop(&mut self) {
            CWD.changed();
        }
    }
    let _afterwards = Afterwards;
    next()
}

hook! {
    fn [chdir](path: PathArg) -> c_int, next => {
        let target = route::locate(AT_FDCWD, &path);
        let result = next(path);
        if result == 0 {
            route::entered(target.as_ref());
        }
        result
    };
    fn [fchdir](fd: c_int) -> c_int, next => {
        let result = next(fd);
        if result == 0 {
            route::entered_fd(fd);
        }
        result
    };
    fn [closedir](directory: *mut libc::DIR) -> c_int, next => {
        FDS.clear(sys::dirfd(directory));
        next(directory)
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
                let _suspended = CWD.suspend();
                next(path, visit, descriptors, flags)
            }
        };
}

/// `nftw`'s flag, the same on all of Linux.
const FTW_CHDIR: c_int = 4;
