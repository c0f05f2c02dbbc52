//! Functions that watch files and directories.

use std::ffi::{c_int, c_uint};

use super::hook;
use super::promote::with;
use crate::sys::PathArg;
use crate::watch;

hook! {
    fn [inotify_add_watch](inotify: c_int, path: PathArg, mask: u32) -> c_int, next =>
        with(inotify, || watch::add(inotify, &path, mask, || next(inotify, path, mask)));
    fn [inotify_rm_watch](inotify: c_int, number: c_int) -> c_int, next =>
        with(inotify, || watch::remove(inotify, number, || next(inotify, number)));
    fn [fanotify_mark](fanotify: c_int, flags: c_uint, mask: u64, dirfd: c_int, path: PathArg) -> c_int, next =>
        with(fanotify, || watch::mark(flags, dirfd, &path, || next(fanotify, flags, mask, dirfd, path)));
}
