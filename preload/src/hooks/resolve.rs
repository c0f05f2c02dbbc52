//! `realpath` and its relatives: libc asks the kernel about every prefix, without calling `readlink`.

use libc::PATH_MAX;

use super::hook;
use crate::realpath::{self, Real, Resolution, Resolved};
use crate::sys::{self, PathArg, Text};

fn resolve(path: PathArg, resolved: Text, next: impl FnOnce() -> Text) -> Text {
    if !realpath::is_ours(&path) || (!resolved.is_null() && resolved.is_suspicious()) {
        return next();
    }
    let Some(text) = path.get() else { return next() };
    let before = sys::errno();
    let mut resolution = Resolution::new();
    match resolution.run(&Real, text.bytes()) {
        Ok(Resolved::Whole(found)) => {
            sys::set_errno(before);
            if resolved.is_null() {
                return Text::duplicate(found);
            }
            resolved.put(found);
            resolved
        }
        Ok(Resolved::Failed(errno, found)) => {
            // How far it came: glibc tells callers that brought a buffer, for these errors.
            if matches!(errno, libc::ENOENT | libc::EACCES) {
                resolved.put(found);
            }
            sys::set_errno(errno);
            Text::NULL
        }
        Err(_) => {
            sys::set_errno(before);
            next()
        }
    }
}

hook! {
    fn [realpath](path: PathArg, resolved: Text) -> Text, next => resolve(path, resolved, || next(path, resolved));
    // Fortified: glibc aborts the program if the buffer is too small for any path.
    fn [__realpath_chk](path: PathArg, resolved: Text, room: usize) -> Text, next =>
        match room < PATH_MAX as usize {
            true => next(path, resolved, room),
            false => resolve(path, resolved, || next(path, resolved, room)),
        };
    fn [canonicalize_file_name](path: PathArg) -> Text, next => resolve(path, Text::NULL, || next(path));
}
