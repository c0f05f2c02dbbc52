//! `realpath`, as glibc does it (`realpath_stk`): component by component, asking of each prefix whether it is a link.

#![forbid(unsafe_code)]

use std::ffi::CStr;

use libc::{AT_EACCESS, AT_FDCWD};

use crate::calls::{self, Road};
use crate::{route, sys};

/// Room for a path. Longer ones are left to libc: its stack is not ours to use.
const ROOM: usize = 1024;
/// Links that are followed (`__eloop_threshold`).
const LINKS_MAX: u32 = 40;
/// What makes the kernel say whether the path before it is a directory.
const DIRECTORY_SUFFIX: &[u8] = b"/\0";

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved<'r> {
    /// The path.
    Whole(&'r CStr),
    /// An errno, and how far it came.
    Failed(i32, &'r CStr),
}

/// A path that becomes longer than [`ROOM`], or begins in a directory that has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclear;

/// What the walk asks of the file systems.
pub(crate) trait Files {
    /// The target of a link, in the buffer: its length, or an errno.
    fn read_link(&self, path: &CStr, target: &mut [u8]) -> Result<usize, i32>;
    /// Whether there is something at a path, or why not.
    fn exists(&self, path: &CStr) -> Result<(), i32>;
    /// The current directory's path; its length.
    fn current_directory(&self, path: &mut [u8]) -> Option<usize>;
}

/// The file systems as a program sees them: past the kernel where they are ours.
pub(crate) struct Real;

impl Files for Real {
    fn read_link(&self, path: &CStr, target: &mut [u8]) -> Result<usize, i32> {
        let room = target.len();
        let road = sys::with_path(path, |path| {
            sys::with_data(target, |target| calls::readlink(AT_FDCWD, path, target, room))
        });
        match road {
            Road::Bypass(answer) => answer,
            Road::Kernel => sys::read_link(path, target),
        }
    }

    fn exists(&self, path: &CStr) -> Result<(), i32> {
        match sys::with_path(path, |path| calls::access(AT_FDCWD, path, libc::F_OK, AT_EACCESS)) {
            Road::Bypass(answer) => answer,
            Road::Kernel => sys::exists(path),
        }
    }

    fn current_directory(&self, path: &mut [u8]) -> Option<usize> {
        sys::current_directory(path)
    }
}

/// Whether a path is worth it: on a mount of ours, and not there by the link of a descriptor.
pub(crate) fn is_ours(path: &sys::PathArg) -> bool {
    route::locate(AT_FDCWD, path).is_some_and(|target| !target.is_by_descriptor())
}

/// A resolution: the path so far, and what is to come.
pub(crate) struct Resolution {
    done: [u8; ROOM],
    len: usize,
    rest: [u8; ROOM],
    rest_len: usize,
}

impl Resolution {
    /// A resolution that has not begun.
    pub(crate) fn new() -> Self {
        Self { done: [0; ROOM], len: 0, rest: [0; ROOM], rest_len: 0 }
    }

    /// Resolves a path that is not empty.
    pub(crate) fn run(&mut self, files: &impl Files, path: &[u8]) -> Result<Resolved<'_>, Unclear> {
        self.rest.get_mut(..path.len()).ok_or(Unclear)?.copy_from_slice(path);
        self.rest_len = path.len();
        if path.first() == Some(&b'/') {
            self.done[0] = b'/';
            self.len = 1;
        } else {
            self.len = files.current_directory(&mut self.done).ok_or(Unclear)?;
        }
        let failure = self.walk(files)?;
        if failure.is_none() && self.len > 1 && self.ends_with_slash() {
            self.len -= 1;
        }
        *self.done.get_mut(self.len).ok_or(Unclear)? = 0;
        let path = CStr::from_bytes_until_nul(&self.done).map_err(|_| Unclear)?;
        Ok(match failure {
            None => Resolved::Whole(path),
            Some(errno) => Resolved::Failed(errno, path),
        })
    }

    fn ends_with_slash(&self) -> bool {
        self.len > 0 && self.done[self.len - 1] == b'/'
    }

    /// Back to the directory that holds the last component; the root is its own.
    fn up(&mut self) {
        if self.len > 1 {
            self.len -= 1;
            while self.len > 0 && !self.ends_with_slash() {
                self.len -= 1;
            }
        }
    }

    /// The path so far with something behind it, as a C string.
    fn with_suffix(&mut self, suffix: &[u8]) -> Result<&CStr, Unclear> {
        let end = self.len + suffix.len();
        self.done.get_mut(self.len..end).ok_or(Unclear)?.copy_from_slice(suffix);
        CStr::from_bytes_with_nul(&self.done[..end]).map_err(|_| Unclear)
    }

    /// Walks to the end: `Some(errno)` if that failed.
    fn walk(&mut self, files: &impl Files) -> Result<Option<i32>, Unclear> {
        let mut links = 0;
        let mut at = 0;
        loop {
            let rest = &self.rest[..self.rest_len];
            let begin = at + rest[at..].iter().take_while(|byte| **byte == b'/').count();
            let end = begin + rest[begin..].iter().take_while(|byte| **byte != b'/').count();
            at = end;
            match &rest[begin..end] {
                b"" => return Ok(None),
                b"." => continue,
                b".." => {
                    self.up();
                    continue;
                }
                component => {
                    let slash = usize::from(!self.ends_with_slash());
                    let (from, to) = (self.len + slash, self.len + slash + component.len());
                    let place = self.done.get_mut(from..to).ok_or(Unclear)?;
                    place.copy_from_slice(component);
                    if slash == 1 {
                        self.done[self.len] = b'/';
                    }
                    self.len = to;
                }
            }
            let mut target = [0; ROOM];
            match files.read_link(self.with_suffix(b"\0")?, &mut target) {
                Ok(len) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(Some(libc::ELOOP));
                    }
                    self.follow(target.get(..len).filter(|_| len < ROOM).ok_or(Unclear)?, at)?;
                    at = 0;
                }
                Err(errno) if asks_for_directory(&self.rest[at..self.rest_len]) => {
                    // Only what is no link at all may be a directory; anything else fails here as well.
                    let _ = errno;
                    if let Err(errno) = files.exists(self.with_suffix(DIRECTORY_SUFFIX)?) {
                        return Ok(Some(errno));
                    }
                }
                Err(libc::EINVAL) => {}
                Err(errno) => return Ok(Some(errno)),
            }
        }
    }

    /// Puts a link's target in front of what follows the link at `at`.
    fn follow(&mut self, target: &[u8], at: usize) -> Result<(), Unclear> {
        let left = self.rest_len - at;
        let len = target.len() + left;
        if len > ROOM {
            return Err(Unclear);
        }
        self.rest.copy_within(at..self.rest_len, target.len());
        self.rest[..target.len()].copy_from_slice(target);
        self.rest_len = len;
        if target.first() == Some(&b'/') {
            self.len = 1;
        } else {
            self.up();
        }
        Ok(())
    }
}

/// Whether what follows a component demands that it is a directory, and nothing behind would notice if it were not
/// (`suffix_requires_dir_check`): a slash at the end, `.` at the end, `..` anywhere.
fn asks_for_directory(mut suffix: &[u8]) -> bool {
    while suffix.first() == Some(&b'/') {
        while let [b'/', rest @ ..] = suffix {
            suffix = rest;
        }
        match suffix {
            [] | [b'.'] | [b'.', b'.'] | [b'.', b'.', b'/', ..] => return true,
            [b'.', rest @ ..] => suffix = rest,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Paths of directories (no target) and links; what is not there does not exist.
    struct Fake(BTreeMap<&'static str, Option<&'static str>>);

    impl Files for Fake {
        fn read_link(&self, path: &CStr, target: &mut [u8]) -> Result<usize, i32> {
            match self.0.get(path.to_str().unwrap()) {
                None => Err(libc::ENOENT),
                Some(None) => Err(libc::EINVAL),
                Some(Some(link)) => {
                    target[..link.len()].copy_from_slice(link.as_bytes());
                    Ok(link.len())
                }
            }
        }

        fn exists(&self, path: &CStr) -> Result<(), i32> {
            let path = path.to_str().unwrap().strip_suffix("/").unwrap();
            self.0.get(path).map(|_| ()).ok_or(libc::ENOENT)
        }

        fn current_directory(&self, path: &mut [u8]) -> Option<usize> {
            path[..2].copy_from_slice(b"/a");
            Some(2)
        }
    }

    fn resolve(path: &str) -> Result<String, (i32, String)> {
        let fake = Fake(BTreeMap::from([
            ("/a", None),
            ("/a/b", None),
            ("/a/up", Some("..")),
            ("/a/abs", Some("/a//b/")),
            ("/a/loop", Some("loop")),
            ("/a/gone", Some("b/nothing")),
        ]));
        match Resolution::new().run(&fake, path.as_bytes()).unwrap() {
            Resolved::Whole(path) => Ok(path.to_str().unwrap().to_owned()),
            Resolved::Failed(errno, path) => Err((errno, path.to_str().unwrap().to_owned())),
        }
    }

    #[test]
    fn paths_are_resolved_as_far_as_they_exist() {
        for (path, resolved) in [
            ("/", Ok("/")),
            ("//a///b/.", Ok("/a/b")),
            ("b", Ok("/a/b")),
            ("..", Ok("/")),
            ("../../..", Ok("/")),
            ("/a/up", Ok("/")),
            ("/a/up/a/abs", Ok("/a/b")),
            ("abs/../b/", Ok("/a/b")),
            ("c/d", Err((libc::ENOENT, "/a/c"))),
            ("/c/..", Err((libc::ENOENT, "/c"))),
            ("gone", Err((libc::ENOENT, "/a/b/nothing"))),
            ("loop", Err((libc::ELOOP, "/a/loop"))),
        ] {
            let resolved = resolved.map(str::to_owned).map_err(|(errno, path)| (errno, path.to_owned()));
            assert_eq!(resolve(path), resolved, "{path}");
        }
    }

    #[test]
    fn what_is_too_long_is_left_to_libc() {
        let fake = Fake(BTreeMap::new());
        assert_eq!(Resolution::new().run(&fake, &[b'a'; ROOM + 1]), Err(Unclear));
        assert_eq!(
            Resolution::new().run(&fake, &[b'a'; ROOM - 1]),
            Err(Unclear),
            "with the directory before it"
        );
    }

    #[test]
    fn suffixes_that_ask_for_a_directory() {
        for (suffix, asks) in [
            ("", false),
            ("/", true),
            ("//", true),
            ("/.", true),
            ("/..", true),
            ("/../x", true),
            ("/x", false),
            ("/./x", false),
            ("/././", true),
            ("/...", false),
            ("/.x", false),
        ] {
            assert_eq!(asks_for_directory(suffix.as_bytes()), asks, "{suffix}");
        }
    }
}
