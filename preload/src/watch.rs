//! What the program watches: the daemon is told before the kernel, so that what a watcher hears of is done by the kernel
//! from then on, also for other programs.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use finesse_ipc::frame::{Fallback, Op, Request};

use crate::connection;
use crate::process;
use crate::sys::{self, PathArg};

/// How often a connection that is busy with itself is tried again.
const ATTEMPTS: u32 = 1000;

/// A watch that the daemon knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Announced {
    mount: u32,
    connection: u32,
    ino: u64,
}

/// What is to be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Object,
    Mount,
}

/// Sends the daemon an operation about an inode; `None` if there is no daemon to hear it.
fn tell(op: Op, dev: (u32, u32), ino: u64, what: What) -> Option<Announced> {
    let request = Request { base: ino, mode: u32::from(what == What::Mount), ..Request::default() };
    for _ in 0..ATTEMPTS {
        if let Some(mount) = connection::enter_at_once(connection::by_dev(dev)?) {
            match mount.client().call(op, &request, &[], &[]) {
                Ok(_) => {
                    mount.client().counters().served(op);
                    return Some(Announced {
                        mount: mount.index() as u32,
                        connection: mount.connection(),
                        ino,
                    });
                }
                Err(Fallback::Disconnected) => return None,
                Err(_) => {}
            }
        }
        sys::yield_now();
    }
    None
}

fn announce(dirfd: RawFd, path: &PathArg, follow: bool, what: What) -> Option<Announced> {
    if connection::table().is_empty() || !process::is_on() {
        return None;
    }
    let identity = sys::look(dirfd, path, follow)?;
    tell(Op::Watch, identity.dev, identity.ino, what)
}

fn take_back(watch: Announced) {
    let Some(mount) = connection::enter(watch.mount as usize) else { return };
    // The watches of another connection have ended with it.
    if mount.connection() == watch.connection {
        let request = Request { base: watch.ino, ..Request::default() };
        if mount.client().call(Op::Unwatch, &request, &[], &[]).is_ok() {
            mount.client().counters().served(Op::Unwatch);
        }
    }
}

/// `inotify_add_watch`: `next` makes the kernel watch.
pub(crate) fn add(inotify: RawFd, path: &PathArg, mask: u32, next: impl FnOnce() -> i32) -> i32 {
    let announced = announce(libc::AT_FDCWD, path, mask & libc::IN_DONT_FOLLOW == 0, What::Object);
    let number = next();
    let Some(watch) = announced else { return number };
    let errno = sys::errno();
    match number {
        // As nobody watches, unless it was watched before.
        ..0 => take_back(watch),
        _ => match KNOWN.put(key(inotify, number), watch) {
            // The same once more: one of the two is enough.
            Some(before) if before == watch => take_back(before),
            // Perhaps of an instance that had this number before and lives on elsewhere.
            _ => {}
        },
    }
    sys::set_errno(errno);
    number
}

/// `inotify_rm_watch`: the watch ends for all who have the instance.
pub(crate) fn remove(inotify: RawFd, number: i32, next: impl FnOnce() -> i32) -> i32 {
    let result = next();
    if result == 0
        && let Some(watch) = KNOWN.take(key(inotify, number))
    {
        take_back(watch);
    }
    result
}

/// `fanotify_mark`. What is marked stays announced while the process lives.
pub(crate) fn mark(flags: u32, dirfd: RawFd, path: &PathArg, next: impl FnOnce() -> i32) -> i32 {
    if flags & libc::FAN_MARK_ADD != 0 {
        let what = match flags & (libc::FAN_MARK_MOUNT | libc::FAN_MARK_FILESYSTEM) {
            0 => What::Object,
            _ => What::Mount,
        };
        let _ = announce(dirfd, path, flags & libc::FAN_MARK_DONT_FOLLOW == 0, what);
    }
    next()
}

fn key(inotify: RawFd, number: i32) -> u64 {
    u64::from(inotify.cast_unsigned()) << 32 | u64::from(number.cast_unsigned())
}

/// Watches that can be taken back: those that find no room last as long as the connection.
static KNOWN: Known = Known([const { Entry::new() }; 256]);

struct Entry {
    key: AtomicU64,
    mount: AtomicU32,
    connection: AtomicU32,
    ino: AtomicU64,
}

/// [`Entry::key`]: nothing. Watches are numbered from 1.
const FREE: u64 = 0;
/// [`Entry::key`]: being written or read.
const BUSY: u64 = u64::MAX;

impl Entry {
    const fn new() -> Self {
        Self {
            key: AtomicU64::new(FREE),
            mount: AtomicU32::new(0),
            connection: AtomicU32::new(0),
            ino: AtomicU64::new(0),
        }
    }

    fn claim(&self, key: u64) -> bool {
        self.key.compare_exchange(key, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn get(&self) -> Announced {
        Announced {
            mount: self.mount.load(Ordering::Relaxed),
            connection: self.connection.load(Ordering::Relaxed),
            ino: self.ino.load(Ordering::Relaxed),
        }
    }

    fn set(&self, key: u64, watch: Announced) {
        self.mount.store(watch.mount, Ordering::Relaxed);
        self.connection.store(watch.connection, Ordering::Relaxed);
        self.ino.store(watch.ino, Ordering::Relaxed);
        self.key.store(key, Ordering::Release);
    }
}

struct Known([Entry; 256]);

impl Known {
    /// Remembers a watch; what was known by this key before.
    fn put(&self, key: u64, watch: Announced) -> Option<Announced> {
        if let Some(entry) = self.0.iter().find(|entry| entry.claim(key)) {
            let before = entry.get();
            entry.set(key, watch);
            return Some(before);
        }
        if let Some(entry) = self.0.iter().find(|entry| entry.claim(FREE)) {
            entry.set(key, watch);
        }
        None
    }

    fn take(&self, key: u64) -> Option<Announced> {
        let entry = self.0.iter().find(|entry| entry.claim(key))?;
        let watch = entry.get();
        entry.key.store(FREE, Ordering::Release);
        Some(watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_known_by_instance_and_number() {
        let known = Known([const { Entry::new() }; 256]);
        let watch = |ino| Announced { mount: 1, connection: 2, ino };
        assert_eq!(known.put(key(5, 1), watch(10)), None);
        assert_eq!(known.put(key(5, 2), watch(11)), None);
        assert_eq!(known.put(key(6, 1), watch(12)), None);
        assert_eq!(known.put(key(5, 1), watch(13)), Some(watch(10)));
        assert_eq!(known.take(key(5, 1)), Some(watch(13)));
        assert_eq!((known.take(key(5, 1)), known.take(key(6, 1))), (None, Some(watch(12))));
        for number in 1..=300 {
            known.put(key(9, number), watch(1));
        }
        assert_eq!(known.take(key(9, 300)), None, "no room");
    }
}
