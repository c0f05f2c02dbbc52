//! `fopen`'s mode string.

#![forbid(unsafe_code)]

use std::ffi::CStr;

/// The `open` flags that a mode means, as glibc reads it (`_IO_new_file_fopen`); `None` for modes that are invalid or
/// choose a character encoding, which libc alone must handle.
pub(crate) fn flags_of(mode: &[u8]) -> Option<i32> {
    let (kind, options) = mode.split_first()?;
    let (mut access, mut flags) = match kind {
        b'r' => (libc::O_RDONLY, 0),
        b'w' => (libc::O_WRONLY, libc::O_CREAT | libc::O_TRUNC),
        b'a' => (libc::O_WRONLY, libc::O_CREAT | libc::O_APPEND),
        _ => return None,
    };
    if options.contains(&b',') {
        return None;
    }
    // glibc looks at no more than six.
    for option in options.iter().take(6) {
        match option {
            b'+' => access = libc::O_RDWR,
            b'x' => flags |= libc::O_EXCL,
            b'e' => flags |= libc::O_CLOEXEC,
            _ => {}
        }
    }
    Some(access | flags)
}

/// The mode in which `fdopen` makes the same stream of a descriptor that was opened with these flags. Not the program's own
/// string: `fdopen` looks at fewer letters than `fopen`.
pub(crate) fn mode_of(flags: i32) -> &'static CStr {
    match (flags & libc::O_ACCMODE, flags & libc::O_APPEND != 0) {
        (libc::O_RDONLY, _) => c"r",
        (libc::O_WRONLY, false) => c"w",
        (libc::O_WRONLY, true) => c"a",
        (_, false) => c"r+",
        (_, true) => c"a+",
    }
}

#[cfg(test)]
mod tests {
    use libc::{O_APPEND, O_CLOEXEC, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

    use super::*;

    #[test]
    fn modes_mean_what_they_mean_to_glibc() {
        for (mode, flags) in [
            ("r", Some(O_RDONLY)),
            ("rb", Some(O_RDONLY)),
            ("r+", Some(O_RDWR)),
            ("rb+e", Some(O_RDWR | O_CLOEXEC)),
            ("w", Some(O_WRONLY | O_CREAT | O_TRUNC)),
            ("wx", Some(O_WRONLY | O_CREAT | O_TRUNC | O_EXCL)),
            ("w+bx", Some(O_RDWR | O_CREAT | O_TRUNC | O_EXCL)),
            ("a", Some(O_WRONLY | O_CREAT | O_APPEND)),
            ("a+", Some(O_RDWR | O_CREAT | O_APPEND)),
            ("rmc", Some(O_RDONLY)),
            ("r,ccs=UTF-8", None),
            ("", None),
            ("q", None),
            ("+r", None),
            ("rrrrrr+", Some(O_RDWR)),
            ("rrrrrrr+", Some(O_RDONLY)),
        ] {
            assert_eq!(flags_of(mode.as_bytes()), flags, "{mode}");
        }
    }

    #[test]
    fn a_stream_on_a_descriptor_reads_and_writes_as_it_was_opened() {
        for mode in ["r", "r+", "w", "a", "a+"] {
            let flags = flags_of(mode.as_bytes()).unwrap();
            assert_eq!(mode_of(flags).to_str(), Ok(mode));
        }
        assert_eq!(mode_of(flags_of(b"w+").unwrap()), c"r+", "truncated already");
    }
}
