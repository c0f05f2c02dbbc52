//! `copy_file_range` between a granted descriptor and one of the kernel's on the same mount. Natively both are of one file system;
//! here the first is the source's, so that `vfs_copy_file_range` answers `EXDEV`, and the bytes are moved by hand.

#![forbid(unsafe_code)]

use std::os::fd::{BorrowedFd, RawFd};

use libc::off_t;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::calls;
use crate::sys::{self, Out};

/// As many bytes as one call of the kernel's moves (`MAX_RW_COUNT`).
const AT_MOST: usize = 0x7fff_f000;
/// Bytes moved at once, on the stack, which may be a signal handler's.
const PIECE: usize = 4 << 10;

/// Where the bytes come from, or go to.
struct End {
    fd: BorrowedFd<'static>,
    /// Device and inode number, on the mount.
    file: (u64, u64),
    /// The caller's; without one the descriptor's own is used.
    given: Option<Out<off_t>>,
    at: u64,
}

impl End {
    fn new((fd, offset): (RawFd, Out<off_t>)) -> Result<Self, Errno> {
        let borrowed = sys::borrow(fd).ok_or(Errno::BADF)?;
        let file = match calls::granted_inode(fd) {
            Some(file) => file,
            None => rustix::fs::fstat(borrowed).map(|stat| (stat.st_dev, stat.st_ino))?,
        };
        let given = (!offset.is_null()).then_some(offset);
        let at = match given.map(Out::get) {
            Some(at) => at.ok_or(Errno::FAULT)?.cast_unsigned(),
            None => rustix::fs::tell(borrowed)?,
        };
        Ok(Self { fd: borrowed, file, given, at })
    }

    /// The next call goes on here. (Like the kernel, without regard to others that move the same offset.)
    fn advance(&self, count: usize) -> Result<(), Errno> {
        let at = self.at + count as u64;
        match self.given {
            Some(offset) => offset.put(at.cast_signed()),
            None => drop(rustix::fs::seek(self.fd, SeekFrom::Start(at))?),
        }
        Ok(())
    }
}

/// Whether the kernel took two descriptors of one mount for ones of two file systems.
fn crosses(from: RawFd, to: RawFd) -> bool {
    let device = |fd| match calls::granted(fd) {
        Some((dev, _)) => Some((dev, true)),
        None => Some((rustix::fs::fstat(sys::borrow(fd)?).ok()?.st_dev, false)),
    };
    match (device(from), device(to)) {
        (Some((one, one_is_granted)), Some((other, other_is_granted))) => {
            one == other && one_is_granted != other_is_granted
        }
        _ => false,
    }
}

/// `copy_file_range`: by the kernel, or by hand where that has refused. It has looked at access modes and kinds of files before.
pub(crate) fn range(
    from: (RawFd, Out<off_t>),
    to: (RawFd, Out<off_t>),
    len: usize,
    next: impl FnOnce() -> isize,
) -> isize {
    let result = next();
    if result >= 0 || sys::errno() != libc::EXDEV || !crosses(from.0, to.0) {
        return result;
    }
    copy(from, to, len).map_or_else(
        |errno| {
            sys::set_errno(errno.raw_os_error());
            -1
        },
        usize::cast_signed,
    )
}

/// Copies up to `len` bytes; answers their number, 0 at the end of the file. In a frame of its own, which other copies do without.
#[cold]
#[inline(never)]
fn copy(from: (RawFd, Out<off_t>), to: (RawFd, Out<off_t>), len: usize) -> Result<usize, Errno> {
    let (from, to) = (End::new(from)?, End::new(to)?);
    // In the order of `generic_copy_file_checks`, which looks for overlaps in what is there to be copied.
    if from.at.checked_add(len as u64).is_none() || to.at.checked_add(len as u64).is_none() {
        return Err(Errno::OVERFLOW);
    }
    if from.at > i64::MAX as u64 || to.at > i64::MAX as u64 {
        return Err(Errno::INVAL);
    }
    let size = rustix::fs::fstat(from.fd)?.st_size.cast_unsigned();
    let len = (len as u64).min(size.saturating_sub(from.at)).min(AT_MOST as u64) as usize;
    if from.file == to.file && from.at < to.at + len as u64 && to.at < from.at + len as u64 {
        return Err(Errno::INVAL);
    }
    let mut piece = [0_u8; PIECE];
    let mut copied = 0;
    let ended = loop {
        let Some(wanted) = piece.get_mut(..PIECE.min(len - copied)) else { break Ok(()) };
        let moved = rustix::io::pread(from.fd, &mut *wanted, from.at + copied as u64).and_then(|read| {
            rustix::io::pwrite(to.fd, wanted.get(..read).unwrap_or_default(), to.at + copied as u64)
        });
        match moved {
            Ok(0) => break Ok(()),
            Ok(moved) => copied += moved,
            Err(errno) => break Err(errno),
        }
    };
    match ended {
        Err(errno) if copied == 0 => Err(errno),
        _ => {
            from.advance(copied)?;
            to.advance(copied)?;
            Ok(copied)
        }
    }
}
