//! What the library knows about its process: whether it is on, whether it was forked, the file mode creation mask, and
//! the files that an earlier program in this process was granted.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use finesse_ipc::environment::{self, GrantedFile};
use rustix::fs::OFlags;

use crate::connection;
use crate::dirstreams::{self, Before};
use crate::fds::{Cwd, Kind, Table};
use crate::files;
use crate::locks;
use crate::sys::{self, ForkMark, Strings};
use crate::vforks;
use crate::virtuals;

/// The process's descriptors.
pub(crate) static FDS: Table = Table::new();
/// The process's current directory.
pub(crate) static CWD: Cwd = Cwd::new();

static ON: AtomicBool = AtomicBool::new(false);
static FORKS: AtomicU32 = AtomicU32::new(0);
static MARK: ForkMark = ForkMark::new();
/// The file mode creation mask, or [`UNKNOWN_MASK`], below a count of its changes.
static MASK: AtomicU32 = AtomicU32::new(UNKNOWN_MASK);
static INHERITED: Inherited = Inherited::new();
/// The mounts handed down to this process do not hold for those it starts: it is in another namespace.
static MOVED: AtomicBool = AtomicBool::new(false);

const UNKNOWN_MASK: u32 = 0xffff;
/// One change of the mask.
const MASK_CHANGE: u32 = 0x1_0000;
/// [`ForkMark`]: the process has found out that it is what it was.
const KNOWN: u32 = 1;
/// [`ForkMark`]: a forked child is being put in order.
const BUSY: u32 = 2;

/// Starts the library: called by its constructor, before the program.
pub(crate) fn start(environment: Strings) {
    if let Some(value) = environment.value(environment::DESCRIPTORS) {
        INHERITED.learn(value);
        environment.remove(environment::DESCRIPTORS);
    }
    MARK.start();
    sys::learn_heap();
    sys::at_fork(forking, forked_from, forked);
    connection::start(environment);
    ON.store(true, Ordering::Release);
}

/// Whether the bypass may be used. Puts a forked child in order first.
#[inline]
pub(crate) fn is_on() -> bool {
    if !ON.load(Ordering::Acquire) {
        return false;
    }
    match MARK.get() {
        Some(mark) if mark.load(Ordering::Relaxed) != KNOWN => put_child_in_order(mark),
        _ => true,
    }
}

/// Puts a forked child in order.
#[inline]
pub(crate) fn notice_fork() {
    if let Some(mark) = MARK.get()
        && mark.load(Ordering::Relaxed) != KNOWN
    {
        put_child_in_order(mark);
    }
}

/// Switches the bypass off for good: the process's idea of paths and of users is no longer the daemon's.
pub(crate) fn switch_off() {
    dirstreams::settle(Before::Process);
    ON.store(false, Ordering::Release);
    MOVED.store(true, Ordering::Release);
    connection::end();
}

/// Whether what was handed down about mounts must not be handed on.
pub(crate) fn has_moved() -> bool {
    MOVED.load(Ordering::Relaxed)
}

/// How often this process descends from a fork since the library was loaded.
#[inline]
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// `fork`'s handler, before it: what the child shares with us must be the kernel's.
extern "C" fn forking() {
    if vforks::is_child() {
        return;
    }
    dirstreams::settle(Before::Process);
    virtuals::close_gate();
    files::promote_what_can_be();
}

/// `fork`'s handler, in the parent.
extern "C" fn forked_from() {
    if !vforks::is_child() {
        virtuals::open_gate();
    }
}

/// `fork`'s handler, in the child.
extern "C" fn forked() {
    match MARK.get() {
        Some(mark) => drop(put_child_in_order(mark)),
        None => after_fork(),
    }
}

#[cold]
fn put_child_in_order(mark: &AtomicU32) -> bool {
    match mark.compare_exchange(0, BUSY, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            after_fork();
            mark.store(KNOWN, Ordering::Release);
            true
        }
        Err(state) => state == KNOWN,
    }
}

fn after_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    CWD.after_fork();
    virtuals::after_fork();
    if vforks::after_fork() {
        connection::after_fork();
    } else {
        // What we know of descriptors, ours among them, is not true of this process: nothing is closed or protected by it.
        ON.store(false, Ordering::Release);
        FDS.clear_all();
    }
    dirstreams::after_fork();
    locks::after_fork();
    // Their numbers are free: what gets them next need not come to our knowledge (`pipe`).
    for (fd, ..) in FDS.granted().filter(|(fd, ..)| !sys::is_open(*fd)) {
        FDS.clear(fd);
    }
}

/// The program sets the mask by calling `set`, and gets the old one.
pub(crate) fn set_mask(mask: u32, set: impl FnOnce() -> u32) -> u32 {
    mask_is(None);
    let before = set();
    // Of several threads that set it, the one that reports last need not be the one that the kernel heard last.
    mask_is(sys::is_single_threaded().then_some(mask & 0o777));
    before
}

/// Counts a change, so that what another thread is about to learn counts as old.
fn mask_is(mask: Option<u32>) {
    let changed =
        |word: u32| Some((word & !UNKNOWN_MASK).wrapping_add(MASK_CHANGE) | mask.unwrap_or(UNKNOWN_MASK));
    // Always succeeds.
    let _ = MASK.fetch_update(Ordering::AcqRel, Ordering::Acquire, changed);
}

/// The file mode creation mask; `None` if it cannot be found out.
pub(crate) fn mask() -> Option<u32> {
    let word = MASK.load(Ordering::Acquire);
    match word & UNKNOWN_MASK {
        UNKNOWN_MASK => {
            let mask = read_mask()?;
            // Unless the program has set it meanwhile: then both were in force during this call.
            let learned = word & !UNKNOWN_MASK | mask;
            let _ = MASK.compare_exchange(word, learned, Ordering::AcqRel, Ordering::Relaxed);
            Some(mask)
        }
        mask => Some(mask),
    }
}

/// The mask cannot be read without setting it, which no other thread and no signal handler may see.
#[cold]
fn read_mask() -> Option<u32> {
    use rustix::fs::Mode;
    if sys::is_single_threaded() {
        return Some(sys::without_signals(|| {
            let mask = rustix::process::umask(Mode::empty());
            rustix::process::umask(mask);
            mask.bits()
        }));
    }
    let file = sys::open_hidden(c"/proc/self/status", OFlags::RDONLY)?;
    let mut buffer = [0; 512];
    let len = rustix::io::read(file.fd()?, &mut buffer).ok()?;
    parse_mask(buffer.get(..len)?)
}

/// Finds `Umask:` in `/proc/self/status`; it is the second line.
fn parse_mask(status: &[u8]) -> Option<u32> {
    let digits = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Umask:"))?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?.trim(), 8).ok()
}

/// Whether descriptors that nobody has looked at may be granted ones of an earlier program.
#[inline]
pub(crate) fn has_inherited() -> bool {
    INHERITED.count.load(Ordering::Relaxed) != 0
}

/// What the mount calls a file that an earlier program was granted.
pub(crate) fn adopt(fd: RawFd, backing_dev: u64, backing_ino: u64) -> Option<(u64, u64)> {
    if FDS.get(fd) != Kind::Unknown {
        return None;
    }
    let found =
        INHERITED.files().find(|file| (file.backing_dev, file.backing_ino) == (backing_dev, backing_ino));
    let kind =
        found.map_or(Kind::Other, |file| Kind::Granted { dev: file.dev, ino: file.ino, nofollow: false });
    FDS.set(fd, kind);
    found.map(|file| (file.dev, file.ino))
}

/// The files that earlier programs were granted; they are handed on.
pub(crate) fn inherited() -> impl Iterator<Item = GrantedFile> {
    INHERITED.files()
}

/// Most files that are handed on.
pub(crate) const INHERITED_MAX: usize = 64;

struct Inherited {
    count: AtomicU32,
    files: [[AtomicU64; 4]; INHERITED_MAX],
}

impl Inherited {
    const fn new() -> Self {
        Self { count: AtomicU32::new(0), files: [const { [const { AtomicU64::new(0) }; 4] }; INHERITED_MAX] }
    }

    fn learn(&self, value: &[u8]) {
        let mut count = 0;
        for (place, file) in self.files.iter().zip(GrantedFile::parse_all(value)) {
            let words = [file.backing_dev, file.backing_ino, file.dev, file.ino];
            for (cell, word) in place.iter().zip(words) {
                cell.store(word, Ordering::Relaxed);
            }
            count += 1;
        }
        self.count.store(count, Ordering::Release);
    }

    fn files(&self) -> impl Iterator<Item = GrantedFile> {
        let count = self.count.load(Ordering::Acquire) as usize;
        self.files.iter().take(count).map(|[backing_dev, backing_ino, dev, ino]| {
            let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
            GrantedFile {
                backing_dev: get(backing_dev),
                backing_ino: get(backing_ino),
                dev: get(dev),
                ino: get(ino),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_found_in_proc() {
        assert_eq!(parse_mask(b"Name:\tUmask: \nUmask:\t0027\nState:\tR\n"), Some(0o27));
        assert_eq!(parse_mask(b"Name:\tx\n"), None);
    }

    #[test]
    fn an_inherited_file_is_recognised_once_and_others_are_not() {
        let file = GrantedFile { backing_dev: 5, backing_ino: 6, dev: 61, ino: 7 };
        let mut text = [0; 128];
        let len = file.write(&mut text).unwrap();
        INHERITED.learn(&text[..len]);
        assert_eq!(adopt(3001, 5, 6), Some((61, 7)));
        assert_eq!(FDS.get(3001), Kind::Granted { dev: 61, ino: 7, nofollow: false });
        assert_eq!(adopt(3002, 5, 9), None);
        assert_eq!(FDS.get(3002), Kind::Other);
        assert_eq!(adopt(3002, 5, 6), None, "the process's own");
    }
}
