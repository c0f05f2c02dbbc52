//! `glob`: libc's own, which reads directories and attributes without calling their functions unless it is told which
//! to call.

use std::ffi::{c_int, c_void};

use libc::AT_FDCWD;

use super::hook;
use crate::next::Glob;
use crate::route;
use crate::sys::{Out, PathArg};

/// The program brings functions of its own.
const GLOB_ALTDIRFUNC: c_int = 1 << 9;

/// The functions that a program's own calls reach: the linker finds our hooks, or those of a library before this one.
fn functions() -> [*const c_void; 5] {
    [
        libc::closedir as *const c_void,
        libc::readdir64 as *const c_void,
        libc::opendir as *const c_void,
        libc::lstat64 as *const c_void,
        libc::stat64 as *const c_void,
    ]
}

fn expand(pattern: PathArg, flags: c_int, out: Out<Glob>, next: impl FnOnce(c_int) -> c_int) -> c_int {
    // A pattern that is not on a mount up to there may yet lead to one: by the kernel.
    if flags & GLOB_ALTDIRFUNC != 0 || out.is_suspicious() || route::locate(AT_FDCWD, &pattern).is_none() {
        return next(flags);
    }
    let mut before = [std::ptr::null(); 5];
    out.update(|glob| before = std::mem::replace(&mut glob.functions, functions()));
    let result = next(flags | GLOB_ALTDIRFUNC);
    out.update(|glob| {
        glob.functions = before;
        glob.flags &= !GLOB_ALTDIRFUNC;
    });
    result
}

hook! {
    fn [glob, glob64](pattern: PathArg, flags: c_int, error: *const c_void, out: Out<Glob>) -> c_int, next =>
        expand(pattern, flags, out, |flags| next(pattern, flags, error, out));
}
