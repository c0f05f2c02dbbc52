//! What daemons have left that were killed: finds it, and finishes it in the name of those who had asked.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat, openat2};
use rustix::io::{Errno, Result};

use super::super::inodes::INSIDE;
use super::journal::{Left, Locator, Owner, left};
use super::{assume, credentials, remove, stat_of, sys};

/// Unlinks that a daemon had acknowledged and not done when it was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The file that says which.
    pub journal: PathBuf,
    /// The directory that the daemon had mounted.
    pub source: PathBuf,
    /// How many.
    pub unlinks: u64,
}

impl From<&Left> for Leftover {
    fn from(left: &Left) -> Self {
        Self { journal: left.journal.path().to_owned(), source: left.source.clone(), unlinks: left.count() }
    }
}

/// What daemons of this user have left. Empty if all of them live or have ended as they should.
pub fn leftovers() -> Vec<Leftover> {
    left().iter().map(Leftover::from).collect()
}

/// Finishes what was left of any source that is still there; what is not, with the reason.
pub fn finish_leftovers() -> Vec<(Leftover, std::io::Error)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |left: &Left| {
        let finished = openat(CWD, &left.source, flags, Mode::empty()).and_then(|root| finish(left, &root));
        finished.err().map(|errno| (left.into(), errno.into()))
    };
    left().iter().filter_map(failed).collect()
}

/// Finishes what was left of a source that is about to be mounted.
pub(in super::super) fn finish_left(root: &OwnedFd) {
    for left in left() {
        // Another source's.
        if let Err(errno) = finish(&left, root)
            && errno != Errno::XDEV
        {
            tracing::warn!("{}: {errno}", left.journal.path().display());
        }
    }
}

/// `root` must be the source, open for reading where directories were recorded by handle.
///
/// # Errors
/// `EXDEV` if it is another directory.
fn finish(left: &Left, root: &OwnedFd) -> Result<()> {
    let stat = stat_of(root)?;
    if (super::super::ids::device_number(&stat), stat.stx_ino) != (left.device, left.inode) {
        return Err(Errno::XDEV);
    }
    let journal = &left.journal;
    let (mut done, mut failed) = (0_u64, 0_u64);
    for block in journal.blocks() {
        let Some(owner) = journal.owner(block) else { continue };
        let directory = find(root, left.device, &owner);
        let mut name = Vec::new();
        for (place, open) in journal.records(block) {
            if !open {
                continue;
            }
            let target = journal.read(place, &mut name);
            let removed = match &directory {
                // It went with all that was in it.
                Err(Errno::STALE | Errno::NOENT) => Ok(()),
                Err(errno) => Err(super::Failure::Refused(*errno)),
                Ok(directory) => assume(credentials::can_switch(), &owner.identity)
                    .map_err(super::Failure::Refused)
                    .and_then(|()| remove(directory, OsStr::from_bytes(&name), target)),
            };
            match removed {
                Ok(()) => done += 1,
                Err(failure) => {
                    failed += 1;
                    let name = String::from_utf8_lossy(&name);
                    tracing::error!("{name:?} stays, although its removal was acknowledged: {failure}");
                }
            }
            // Taken by whoever died, perhaps.
            journal.done(place);
        }
        credentials::become_daemon()?;
    }
    journal.remove();
    tracing::warn!("finished {done} unlinks of a daemon that was killed; {failed} failed");
    Ok(())
}

/// The directory of a block, as the daemon.
fn find(root: &OwnedFd, device: (u32, u32), owner: &Owner) -> Result<OwnedFd> {
    credentials::become_daemon()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match &owner.locator {
        Locator::Handle { kind, bytes } => {
            let handle = sys::RawHandle::new(*kind, bytes).ok_or(Errno::STALE)?;
            sys::open_by_handle(root, &handle, flags)?
        }
        Locator::Path(path) => openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), INSIDE)?,
    };
    let stat = stat_of(&directory)?;
    let same = super::super::ids::device_number(&stat) == device && stat.stx_ino == owner.inode;
    if same { Ok(directory) } else { Err(Errno::STALE) }
}
