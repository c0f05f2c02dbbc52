//! Whether anybody can write to a file of the source.
//!
//! The kernel says so by what it allows of leases (fcntl(2), `check_conflicting_open`): a read lease is for a file that nobody has open to
//! write. One is taken, and given back at once. Whoever would break it in between, to open the file for writing or to cut it, waits; of the
//! daemon's own threads, which must not wait, those that find it in their way open again ([`Leases::turn`]).
//!
//! Opening a file to read breaks others' write leases, which looking at it must not do. So as long as anybody else has a lease, of
//! whatever file, nothing is found out.

#![deny(unsafe_code)]

use std::io::Read;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};

use super::inodes::stat_of;
use super::nodes::{Kind, Way};
use super::{PassthroughFs, credentials, sys};

/// How long it counts that nobody else had a lease. No shorter than looking takes a twentieth of.
const GOOD_FOR: Duration = Duration::from_millis(4);

/// What is known of leases.
#[derive(Default)]
pub(super) struct Leases {
    /// Held while there is one of the daemon's.
    turn: Mutex<()>,
    others: Mutex<Option<Others>>,
}

/// Whether others have leases.
struct Others {
    have_some: bool,
    good_until: Instant,
}

impl Leases {
    /// Waits until no lease of the daemon's stands in the way, and keeps others from being taken.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    fn others_have_some(&self) -> bool {
        let mut others = self.others.lock();
        let now = Instant::now();
        match &*others {
            Some(known) if now < known.good_until => known.have_some,
            _ => {
                let have_some = leases_of_others().unwrap_or(true);
                let good_for = GOOD_FOR.max(now.elapsed() * 20);
                *others = Some(Others { have_some, good_until: now + good_for });
                have_some
            }
        }
    }
}

/// Whether the kernel lists leases (proc_locks(5)) that are not this process's.
fn leases_of_others() -> std::io::Result<bool> {
    let mut listed = String::new();
    std::fs::File::open("/proc/locks")?.read_to_string(&mut listed)?;
    let own = std::process::id().to_string();
    // `1: LEASE  ACTIVE    READ 4711 08:01:12345 0 EOF`
    let is_others = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().is_some_and(|kind| matches!(kind, "LEASE" | "DELEG")) && words.nth(2) != Some(&own)
    };
    Ok(listed.lines().any(is_others))
}

impl PassthroughFs {
    /// Whether somebody can write to a file.
    pub(super) fn has_writers(&self, id: u64) -> Result<bool> {
        let Some((way, Kind::Regular)) = self.nodes.way(id) else { return Ok(true) };
        let (device, number) = self.ids.resolve(id).ok_or(Errno::STALE)?;
        if self.leases.others_have_some() {
            return Ok(true);
        }
        // With what it would have to wait for it is none of ours.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOATIME;
        let inode = if matches!(way, Way::Handle(_)) { None } else { Some(self.inode(id)?) };
        credentials::become_daemon()?;
        let _turn = self.leases.turn();
        let file = match (&way, &device.handles, inode) {
            (Way::Handle(handle), Some(mount), _) => sys::open_by_handle(mount, handle, flags)?,
            (_, _, Some(inode)) => openat(CWD, inode.path().as_c_str(), flags, Mode::empty())?,
            _ => return Err(Errno::STALE),
        };
        if stat_of(&file)?.stx_ino != number {
            return Err(Errno::STALE);
        }
        match sys::try_read_lease(&file) {
            Ok(()) => Ok(false),
            Err(Errno::AGAIN) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}
