//! Set-user-ID and set-group-ID bits of files that are changed on the kernel road.
//!
//! The kernel leaves it to us to take them away (`FUSE_HANDLE_KILLPRIV_V2`). If it did that by itself, each write(2) would ask the
//! daemon for the attribute that holds a file's capabilities; so it remembers that there is nothing to take away
//! (`SB_NOSEC`). File capabilities it still takes away by a request for that, and so does the backing file system.

#![deny(unsafe_code)]

use rustix::fs::{AtFlags, CWD, Mode, Statx, chmodat};
use rustix::io::Result;

use super::inodes::Inode;
use super::{PassthroughFs, Rights, attributes, groups_of};
use crate::processes::{self, CAP_FSETID};
use crate::{Request, Road};

const SET_ID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;

/// What is known of the caller's right to keep the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeping {
    /// It lacks `CAP_FSETID`: so the kernel says.
    Refused,
    /// Nothing: fuser does not pass on `FATTR_KILL_SUIDGID`, and the request that comes before a write comes also if it is
    /// only capabilities that the kernel takes away.
    Unknown,
}

impl PassthroughFs {
    /// Takes the bits away that the caller's change of the contents takes away (`setattr_should_drop_suidgid`). The thread
    /// may act as the daemon afterwards.
    pub(super) fn shed_set_id(&self, req: &Request, inode: &Inode, keeping: Keeping) -> Result<()> {
        debug_assert_eq!(req.road(), Road::Kernel, "on the bypass the backing sees who the caller is");
        let stat = inode.attributes()?;
        let mode = u32::from(stat.stx_mode) & 0o7777;
        if mode & SET_ID_BITS == 0 || !attributes::is_regular(&stat) {
            return Ok(());
        }
        self.act(req, Rights::Daemon)?;
        if keeping == Keeping::Unknown && processes::holds(req.pid(), CAP_FSETID) {
            return Ok(());
        }
        let mut kept = mode & !libc::S_ISUID;
        if mode & libc::S_IXGRP != 0 || !is_in_group(req, &stat) {
            kept &= !libc::S_ISGID;
        }
        if kept != mode {
            chmodat(CWD, inode.path().as_c_str(), Mode::from_raw_mode(kept), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Whether a change of owner takes the set-group-ID bit away though nobody may execute the file as its group: then it
    /// is another bit by the same name (mandatory locking), which who may set it may keep (`setattr_should_drop_sgid`). All
    /// else the backing takes away whoever makes the change.
    pub(super) fn loses_set_gid_to_owner(&self, req: &Request, inode: &Inode) -> Result<bool> {
        let stat = inode.attributes()?;
        if u32::from(stat.stx_mode) & (libc::S_ISGID | libc::S_IXGRP) != libc::S_ISGID
            || !attributes::is_regular(&stat)
        {
            return Ok(false);
        }
        self.act(req, Rights::Daemon)?;
        Ok(!processes::holds(req.pid(), CAP_FSETID) && !is_in_group(req, &stat))
    }
}

/// Whether the caller, who waits for us, is in the file's group.
fn is_in_group(req: &Request, stat: &Statx) -> bool {
    req.gid() == stat.stx_gid
        || groups_of(req.pid(), req.uid()).is_some_and(|groups| groups.contains(&stat.stx_gid))
}
