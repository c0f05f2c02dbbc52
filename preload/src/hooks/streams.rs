//! Streams of stdio: libc opens their files without calling `open`.

use std::ffi::c_int;

use libc::AT_FDCWD;

use super::hook;
use crate::calls::{self, Opening, Wanted};
use crate::changes;
use crate::fds::Kind;
use crate::locks;
use crate::next::Stream;
use crate::process::FDS;
use crate::streams::{flags_of, mode_of};
use crate::sys::{self, PathArg};

/// Permissions of files that `fopen` creates, before the mask.
const MODE: u32 = 0o666;

fn open(path: PathArg, mode: PathArg, next: impl FnOnce() -> *mut Stream) -> *mut Stream {
    sys::test_cancellation();
    let Some(flags) = mode.get().and_then(|mode| flags_of(mode.bytes())) else { return next() };
    // libc reads and writes by calls of its own.
    match calls::open_as(Wanted::Kernels, AT_FDCWD, &path, flags, MODE) {
        Opening::Done(opened) => stream_of(opened, flags),
        Opening::Kernel(..) => {
            let stream = next();
            if stream.is_null() && sys::errno() == libc::EROFS {
                return stream_of(changes::open_despite_lending(&path, flags), flags);
            }
            calls::opened(sys::fileno(stream), flags, None);
            stream
        }
    }
}

fn stream_of(opened: Result<c_int, c_int>, flags: c_int) -> *mut Stream {
    let fd = match opened {
        Ok(fd) => fd,
        Err(errno) => {
            sys::set_errno(errno);
            return std::ptr::null_mut();
        }
    };
    // As `_IO_new_file_fopen` does, and `fdopen` only if it has to set the flag itself.
    if flags & (libc::O_APPEND | libc::O_ACCMODE) == libc::O_APPEND | libc::O_WRONLY
        && let Some(fd) = sys::borrow(fd)
    {
        let _ = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0));
    }
    let stream = sys::fdopen(fd, mode_of(flags));
    if stream.is_null() {
        FDS.clear(fd);
        sys::close(fd);
    }
    stream
}

hook! {
    fn [fopen, fopen64, _IO_fopen](path: PathArg, mode: PathArg) -> *mut Stream, next =>
        open(path, mode, || next(path, mode));
    // Keeps the stream's descriptor number, which is libc's own affair: the kernel opens the file.
    fn [freopen, freopen64](path: PathArg, mode: PathArg, stream: *mut Stream) -> *mut Stream, next => {
        calls::by_choice(&path);
        locks::closing(sys::fileno(stream));
        let writes = || mode.get().and_then(|mode| flags_of(mode.bytes())) != Some(libc::O_RDONLY);
        if path.is_null() && writes() {
            changes::prepare_to_write(sys::fileno(stream));
        }
        let before = FDS.get(sys::fileno(stream));
        FDS.clear(sys::fileno(stream));
        let stream = next(path, mode, stream);
        match before {
            // Only the mode changes: libc opens /proc/self/fd/N, which is the backing file.
            Kind::Granted { .. } if path.is_null() => drop(FDS.set(sys::fileno(stream), before)),
            _ => calls::opened(sys::fileno(stream), 0, None),
        }
        stream
    };
    fn [fclose, _IO_fclose](stream: *mut Stream) -> c_int, next => {
        locks::closing(sys::fileno(stream));
        FDS.clear(sys::fileno(stream));
        next(stream)
    };
}
