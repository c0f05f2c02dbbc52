//! Set-user-ID and set-group-ID bits of files that are changed on the kernel road.
//!
//! The kernel leaves it to us to take them away (`FUSE_HANDLE_KILLPRIV_V2`). If it did that by itself, each write(2) would ask the
//! daemon for the attribute that holds a file's capabilities; so it remembers that there is nothing to take away
//! (`SB_NOSEC`). File capabilities it still takes away by a request for that, and so does the backing file system.

#![deny(unsafe_code)]

use rustix::fs::{AtFlags, CWD, Mode, Statx, chmodat, chownat};
use rustix::io::Result;

use super::inodes::Inode;
use super::metadata::Changes;
use super::{PassthroughFs, Rights, attributes, groups_of, sys};
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
    /// A `SETATTR` of the kernel that names no change: it leaves out what it leaves to us (`fuse_setattr`).
    pub(super) fn set_nothing(&self, req: &Request, id: u64, inode: &Inode) -> Result<()> {
        // It is about to write. Whoever may do that may take the bits away, and who may not has not opened the file.
        if self.open_inodes.is_written(id) && !self.changes_owner(req) {
            return self.shed_set_id(req, inode, Keeping::Unknown);
        }
        self.keep_owner(req, inode)
    }

    /// `chown(-1, -1)`. That it may be made nobody has checked.
    fn keep_owner(&self, req: &Request, inode: &Inode) -> Result<()> {
        let mode = u32::from(inode.attributes()?.stx_mode);
        self.act(req, Rights::Daemon)?;
        // Where there is nothing to lose, anybody may.
        let keeps =
            mode & (SET_ID_BITS | libc::S_IXGRP) == libc::S_ISGID && processes::holds(req.pid(), CAP_FSETID);
        let rights = if keeps { Rights::Daemon } else { Rights::Caller };
        self.change_owner(req, inode, rights, &Changes::default())
    }

    /// The kernel takes capabilities away. It does so for a `chown(-1, -1)` before it asks for that, of which it has not checked
    /// whether it may be made: natively that fails first, if there are set-user-ID bits, too. Whether that was it, and is done.
    pub(super) fn loses_capabilities_to_owner(&self, req: &Request, inode: &Inode) -> Result<bool> {
        let is_it = has_set_id(&inode.attributes()?) && self.changes_owner(req);
        if is_it {
            self.keep_owner(req, inode)?;
        }
        Ok(is_it)
    }

    /// Whether the caller waits for a change of owner.
    fn changes_owner(&self, req: &Request) -> bool {
        /// Of 32-bit programs (x86 and Arm); no calls of others that write.
        const COMPAT: [i64; 7] = [95, 182, 198, 207, 212, 298, 325];
        #[cfg(target_arch = "x86_64")]
        const CALLS: [i64; 4] = [libc::SYS_chown, libc::SYS_lchown, libc::SYS_fchown, libc::SYS_fchownat];
        #[cfg(not(target_arch = "x86_64"))]
        const CALLS: [i64; 2] = [libc::SYS_fchown, libc::SYS_fchownat];
        self.act(req, Rights::Daemon).is_ok()
            && processes::system_call(req.pid(), processes::number_of_call)
                .is_some_and(|number| CALLS.contains(&number) || COMPAT.contains(&number))
    }

    /// Takes the bits away that the caller's change of the contents takes away (`setattr_should_drop_suidgid`). The thread
    /// may act as the daemon afterwards.
    pub(super) fn shed_set_id(&self, req: &Request, inode: &Inode, keeping: Keeping) -> Result<()> {
        debug_assert_eq!(req.road(), Road::Kernel, "on the bypass the backing sees who the caller is");
        if !has_set_id(&inode.attributes()?) {
            return Ok(());
        }
        self.act(req, Rights::Daemon)?;
        // What a daemon writes that may not keep them itself takes them away.
        if !sys::has_capability(CAP_FSETID.trailing_zeros()) {
            return Ok(());
        }
        if keeping == Keeping::Unknown && processes::holds(req.pid(), CAP_FSETID) {
            return Ok(());
        }
        take_away(inode)?;
        let stat = inode.attributes()?;
        let mode = u32::from(stat.stx_mode) & 0o7777;
        let mut kept = mode & !libc::S_ISUID;
        // Without the permission to execute it is another bit by the same name (mandatory locking).
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

/// A change of owner to the same one, which takes away what it does of any regular file at once, whoever else changes its mode
/// meanwhile (`chown_common`), unless the file system leaves that to others (NFS).
fn take_away(inode: &Inode) -> Result<()> {
    chownat(inode, c"", None, None, AtFlags::EMPTY_PATH)
}

fn has_set_id(stat: &Statx) -> bool {
    u32::from(stat.stx_mode) & SET_ID_BITS != 0 && attributes::is_regular(stat)
}

/// Whether the caller, who waits for us, is in the file's group.
fn is_in_group(req: &Request, stat: &Statx) -> bool {
    req.gid() == stat.stx_gid
        || groups_of(req.pid(), req.uid()).is_some_and(|groups| groups.contains(&stat.stx_gid))
}
