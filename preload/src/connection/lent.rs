//! Directories that the daemon has lent: in them files are opened to read without asking it.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, Outcome, REPLY_GRANT, ROOT, Request};
use finesse_ipc::table::InDirectory;
use rustix::fs::{Mode, OFlags};

use super::kept::{Kept, Now};
use crate::locks::Beside;
use crate::sys;

/// A directory in which paths begin is borrowed when so many files, and one more, could have been opened in it in a row.
const WORTH: u32 = 3;
/// One in which paths end spares the kernel some names for each file, of which so many are what borrowing it costs.
const WORTH_NEAR: u32 = 300;
/// How many more could have been opened until one is asked for again that was refused.
const REFUSED: u32 = 1000;

/// A directory that was lent, and the one that may take its place.
struct Lent {
    /// Its node id.
    node: AtomicU64,
    fd: Kept,
    /// The directory that was last missing, and how often in a row.
    missing: AtomicU64,
    misses: AtomicU32,
}

impl Lent {
    const fn new() -> Self {
        Self {
            node: AtomicU64::new(0),
            fd: Kept::new(),
            missing: AtomicU64::new(0),
            misses: AtomicU32::new(0),
        }
    }

    /// Whether a directory was missed so often that it is to be borrowed.
    fn is_worth(&self, directory: u64, worth: u32) -> bool {
        // Of what threads count at the same moment some may be lost.
        if self.missing.load(Ordering::Relaxed) != directory {
            self.missing.store(directory, Ordering::Relaxed);
            self.misses.store(1, Ordering::Relaxed);
            return false;
        }
        let misses = self.misses.load(Ordering::Relaxed);
        self.misses.store(misses.wrapping_add(1), Ordering::Relaxed);
        misses % REFUSED == worth
    }

    /// Its descriptor at this moment, if it is this directory.
    #[inline]
    fn of(&self, directory: u64) -> Option<(&Self, Now, RawFd)> {
        // In this order: whoever makes it another one changes the descriptor before the number.
        let now = self.fd.now();
        let fd = now.fd().filter(|_| self.node.load(Ordering::Acquire) == directory)?;
        Some((self, now, fd))
    }

    /// Becomes another one.
    fn replace(&self, base: u64, directory: sys::Hidden, client: &Client) {
        self.fd.give_up();
        let since = self.fd.now();
        self.node.store(base, Ordering::Release);
        // Without a number for it, the daemon goes on being asked.
        let _ = self.fd.keep(since, directory, client.first_fd());
    }
}

/// Those of one connection.
pub(super) struct Library {
    /// The mount's root.
    root: Lent,
    /// Another directory in which paths begin: mostly the current one.
    other: Lent,
    /// One in which many paths end.
    near: Lent,
    /// Somebody borrows. Whoever never returns from that (`siglongjmp`) leaves the connection with what there is.
    borrowing: AtomicBool,
}

impl Library {
    pub(super) const fn new() -> Self {
        Self { root: Lent::new(), other: Lent::new(), near: Lent::new(), borrowing: AtomicBool::new(false) }
    }

    fn all(&self) -> [&Lent; 3] {
        [&self.root, &self.other, &self.near]
    }

    /// Gives everything back; whether there was something.
    pub(super) fn give_up(&self) -> bool {
        let mut any = false;
        for lent in self.all() {
            any |= lent.fd.give_up();
            lent.misses.store(0, Ordering::Relaxed);
        }
        self.borrowing.store(false, Ordering::Relaxed);
        any
    }

    /// If this is one of its descriptors, moves it elsewhere.
    pub(super) fn leave(&self, fd: RawFd) -> Option<Result<(), i32>> {
        let lent = self.all().into_iter().find(|lent| lent.fd.now().fd() == Some(fd))?;
        Some(lent.fd.leave(fd))
    }

    /// Opens a path to read that begins in the directory `base` and ends in another one; `None` if the daemon has to be asked.
    #[inline]
    pub(super) fn open(
        &self,
        client: &Client,
        (base, path): (u64, &CStr),
        place: InDirectory,
        flags: i32,
    ) -> Option<Beside> {
        let (lent, now, directory, path) = match self.near.of(place.directory) {
            Some((lent, now, fd)) => (lent, now, fd, sys::end_of(path, place.name)?),
            None => {
                let lent = if base == ROOT { &self.root } else { &self.other };
                let Some((_, now, fd)) = lent.of(base) else {
                    self.miss(lent, client, (base, &[]), base, WORTH);
                    return None;
                };
                if place.directory != base {
                    let above = path.to_bytes().get(..path.count_bytes() - place.name)?;
                    self.miss(&self.near, client, (base, above), place.directory, WORTH_NEAR);
                }
                (lent, now, fd, path)
            }
        };
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let file = rustix::fs::openat(sys::borrow(directory)?, path, flags, Mode::empty()).ok()?;
        let file = Beside::new(sys::Hidden::new(file));
        // Otherwise it may have been opened in whatever has that number now.
        if lent.fd.now() == now { Some(file) } else { None }
    }

    /// The directory `node`, at a path of `base`, is not at hand.
    #[inline]
    fn miss(&self, lent: &Lent, client: &Client, path: (u64, &[u8]), node: u64, worth: u32) {
        if lent.is_worth(node, worth) {
            self.fetch(lent, client, path, node);
        }
    }

    #[cold]
    fn fetch(&self, lent: &Lent, client: &Client, path: (u64, &[u8]), node: u64) {
        // Where numbers are few, they are the program's.
        if super::has_many_numbers() && !self.borrowing.swap(true, Ordering::Acquire) {
            if let Some(directory) = borrow(client, path, node) {
                lent.replace(node, directory, client);
            }
            self.borrowing.store(false, Ordering::Release);
        }
    }
}

/// Borrows a directory from the daemon, if the path leads to it.
fn borrow(client: &Client, (base, path): (u64, &[u8]), node: u64) -> Option<sys::Hidden> {
    let flags = if path.is_empty() { libc::AT_EMPTY_PATH as u32 } else { 0 };
    let call = client.call(Op::Lend, &Request { base, flags, ..Request::default() }, path, &[]).ok()?;
    if call.reply.outcome() != Outcome::Ok || call.reply.flags & REPLY_GRANT == 0 {
        return None;
    }
    // Taken in any case: otherwise the next one in this slot would be given it.
    let directory = sys::Hidden::new(call.take_grant().ok()?);
    (call.reply.to_attr().ino == node).then_some(directory)
}
