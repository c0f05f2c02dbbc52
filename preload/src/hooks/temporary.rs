//! Functions that make temporary files and directories: libc opens them without calling `open`.

use std::ffi::c_int;

use libc::{AT_FDCWD, O_ACCMODE, O_CREAT, O_EXCL, O_RDWR};

use super::open::open_at;
use super::{fail, hook, take};
use crate::next;
use crate::sys::{self, PathArg, Text};
use crate::temporary::{self, ATTEMPTS};
use crate::{calls, route};

/// Tries names until `make` does not find one taken; errno is kept where that succeeds.
fn try_names(mut template: Text, suffix: c_int, mut make: impl FnMut(PathArg) -> c_int) -> c_int {
    let before = sys::errno();
    let path = template.as_path();
    // Where the six letters are does not change; what they are does.
    if template.bytes_mut().and_then(|text| temporary::place(text, suffix)).is_none() {
        return fail(libc::EINVAL);
    }
    for _ in 0..ATTEMPTS {
        if let Some(text) = template.bytes_mut() {
            let end = text.len() - suffix as usize;
            temporary::make_up(&mut text[end - 6..end]);
        }
        let made = make(path);
        if made >= 0 {
            sys::set_errno(before);
            return made;
        }
        if sys::errno() != libc::EEXIST {
            return made;
        }
    }
    fail(libc::EEXIST)
}

fn file(template: Text, suffix: c_int, flags: c_int, next: impl FnOnce() -> c_int) -> c_int {
    if route::locate(AT_FDCWD, &template.as_path()).is_none() {
        return next();
    }
    let flags = (flags & !O_ACCMODE) | O_RDWR | O_CREAT | O_EXCL;
    try_names(template, suffix, |path| {
        open_at(AT_FDCWD, path, flags, 0o600, |flags| {
            // SAFETY: the program's own path.
            unsafe { next::open(path, flags, 0o600) }
        })
    })
}

hook! {
    fn [mkstemp, mkstemp64](template: Text) -> c_int, next => file(template, 0, 0, || next(template));
    fn [mkostemp, mkostemp64](template: Text, flags: c_int) -> c_int, next =>
        file(template, 0, flags, || next(template, flags));
    fn [mkstemps, mkstemps64](template: Text, suffix: c_int) -> c_int, next =>
        file(template, suffix, 0, || next(template, suffix));
    fn [mkostemps, mkostemps64](template: Text, suffix: c_int, flags: c_int) -> c_int, next =>
        file(template, suffix, flags, || next(template, suffix, flags));

    fn [mkdtemp](template: Text) -> Text, next => {
        if route::locate(AT_FDCWD, &template.as_path()).is_none() {
            return next(template);
        }
        let made = try_names(template, 0, |path| {
            take(calls::mkdir(AT_FDCWD, &path, 0o700), || {
                // SAFETY: the program's own path.
                unsafe { next::mkdir(path, 0o700) }
            })
        });
        if made == 0 { template } else { Text::NULL }
    };
}
