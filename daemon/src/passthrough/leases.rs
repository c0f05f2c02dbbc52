//! Whether anybody can write to a file of the source.
//!
//! The kernel says so by what it allows of leases (fcntl(2), `check_conflicting_open`): a read lease is for a file that nobody has open to
//! write. One is taken, and given back at once. Whoever would break it in between, to open the file for writing or to cut it, waits. Who may
//! not wait gets `EAGAIN`: of the daemon's own threads, none of which may, those that get it open again ([`past_leases`]).
//!
//! Opening a file to read breaks others' write leases, which looking at it should not do. So as long as anybody else is known to have a lease, of
//! whatever file, nothing is found out.

#![deny(unsafe_code)]

use std::io::Read;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};

use super::inodes::stat_of;
use super::nodes::{Kind, Way};
use super::{PassthroughFs, attributes, credentials, sys};
use crate::FileAttr;

/// How long it counts that nobody else had a lease. No shorter than looking takes a twentieth of.
const GOOD_FOR: Duration = Duration::from_millis(4);

/// Held while this process has a lease.
static TURN: Mutex<()> = Mutex::new(());
/// Whether others have leases, and for how long that counts.
static OTHERS: Mutex<Option<(bool, Instant)>> = Mutex::new(None);

/// How much of the kernel's list of locks is read, in bytes, about 60 for each: anybody can make it long. In a longer one there may be some.
const LOCKS_MAX: u64 = 1 << 18;

/// How often, and how far apart, is tried what another daemon's lease may be in the way of.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_micros(50);

/// Opens again what a lease was in the way of, which may have been one of those that are given back at once.
pub(super) fn past_leases<T>(open: impl Fn() -> Result<T>) -> Result<T> {
    let _turn = TURN.lock();
    for _ in 1..TRIES {
        match open() {
            Err(Errno::AGAIN) => std::thread::sleep(PAUSE),
            opened => return opened,
        }
    }
    open()
}

/// Whether others have leases. `None` if somebody else is just finding out.
fn others_have_some() -> Option<bool> {
    let mut others = OTHERS.try_lock()?;
    let now = Instant::now();
    if let Some((have_some, good_until)) = *others
        && now < good_until
    {
        return Some(have_some);
    }
    let have_some = leases_of_others().unwrap_or(true);
    *others = Some((have_some, now + GOOD_FOR.max(now.elapsed() * 20)));
    Some(have_some)
}

/// Whether the kernel lists leases (proc_locks(5)) that are not this process's.
fn leases_of_others() -> std::io::Result<bool> {
    let mut listed = String::new();
    std::fs::File::open("/proc/locks")?.take(LOCKS_MAX).read_to_string(&mut listed)?;
    if listed.len() as u64 == LOCKS_MAX {
        return Ok(true);
    }
    let own = std::process::id().to_string();
    // `1: LEASE  ACTIVE    READ 4711 08:01:12345 0 EOF`
    let is_others = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().is_some_and(|kind| matches!(kind, "LEASE" | "DELEG")) && words.nth(2) != Some(&own)
    };
    Ok(listed.lines().any(is_others))
}

impl PassthroughFs {
    /// The attributes of a file, if nobody can write to it, as far as that can be found out without waiting.
    pub(super) fn attr_without_writers(&self, id: u64) -> Result<Option<FileAttr>> {
        // With a lifetime of zero nothing is believed in any case.
        if self.ttl.is_zero() {
            return Ok(None);
        }
        let Some((way, Kind::Regular)) = self.nodes.way(id) else { return Ok(None) };
        let (device, number) = self.ids.resolve(id).ok_or(Errno::STALE)?;
        if others_have_some() != Some(false) {
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOATIME;
        let inode = if matches!(way, Way::Handle(_)) { None } else { Some(self.inode(id)?) };
        credentials::become_daemon()?;
        let file = match (&way, &device.handles, inode) {
            (Way::Handle(handle), Some(mount), _) => sys::open_by_handle(mount, handle, flags)?,
            (_, _, Some(inode)) => openat(CWD, inode.path().as_c_str(), flags, Mode::empty())?,
            _ => return Err(Errno::STALE),
        };
        let stat = {
            let Some(_turn) = TURN.try_lock() else { return Ok(None) };
            // Nobody can write to the file before the lease is given back, with the descriptor.
            let file = file;
            sys::take_read_lease(&file)?;
            stat_of(&file)?
        };
        Ok((stat.stx_ino == number).then(|| attributes::of(&stat, id)))
    }
}
