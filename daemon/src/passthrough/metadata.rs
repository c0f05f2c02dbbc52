//! The operations on attributes.

#![deny(unsafe_code)]

use rustix::fs::{AtFlags, CWD, Gid, Mode, StatVfs, Timestamps, Uid, chmodat, chownat, fstatvfs, utimensat};
use rustix::io::{Errno, Result};

use super::inodes::{Inode, stat_of};
use super::privileges::Keeping;
use super::{PassthroughFs, Rights, attributes, sys};
use crate::{FileAttr, FileHandle, Request, Road, TimeOrNow};

const SET_ID_BITS: u32 = libc::S_ISUID | libc::S_ISGID;

/// What `setattr` shall change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

impl Changes {
    fn are_none(&self) -> bool {
        let Self { mode, uid, gid, size, atime, mtime } = self;
        mode.or(*uid).or(*gid).is_none() && size.is_none() && atime.or(*mtime).is_none()
    }
}

impl PassthroughFs {
    fn inode_or_file(&self, id: u64, fh: Option<FileHandle>) -> Result<Inode> {
        match fh.map(|fh| self.files.get(fh)) {
            Some(Ok(file)) if file.id == id => Ok(Inode::open(file)),
            _ => self.inode(id),
        }
    }

    pub(super) fn get_attributes(&self, id: u64, fh: Option<FileHandle>) -> Result<FileAttr> {
        self.settle(id);
        Ok(attributes::of(&self.inode_or_file(id, fh)?.attributes()?, id))
    }

    pub(super) fn set_attributes(
        &self,
        req: &Request,
        id: u64,
        fh: Option<FileHandle>,
        changes: Changes,
    ) -> Result<FileAttr> {
        self.settle(id);
        let _hold = self.deferred.as_ref().map(|deferred| deferred.hold(id));
        let inode = self.inode_or_file(id, fh)?;
        if req.road() == Road::Kernel && changes.are_none() {
            self.set_nothing(req, id, &inode)?;
            return Ok(attributes::of(&stat_of(&inode)?, id));
        }
        let rights = match changes.mode {
            Some(mode) if req.road() == Road::Kernel && self.only_drops_set_id(&inode, mode, &changes)? => {
                Rights::Daemon
            }
            _ => Rights::Checked,
        };
        self.act(req, rights)?;
        let path = inode.path();
        if changes.uid.is_some() || changes.gid.is_some() {
            self.change_owner(req, &inode, rights, &changes)?;
        }
        if let Some(mode) = changes.mode {
            chmodat(CWD, path.as_c_str(), Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        if let Some(size) = changes.size {
            match inode.as_open_file() {
                Some(file) if file.writable => rustix::fs::ftruncate(file, size)?,
                _ => {
                    sys::truncate(path.as_c_str(), i64::try_from(size).map_err(|_| Errno::FBIG)?)?;
                }
            }
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: attributes::timespec(changes.atime),
                last_modification: attributes::timespec(changes.mtime),
            };
            utimensat(&inode, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        if req.road() == Road::Kernel && changes.size.is_some() {
            self.shed_set_id(req, &inode, Keeping::Unknown)?;
        }
        Ok(attributes::of(&stat_of(&inode)?, id))
    }

    pub(super) fn change_owner(
        &self,
        req: &Request,
        inode: &Inode,
        rights: Rights,
        changes: &Changes,
    ) -> Result<()> {
        let uid = changes.uid.map(|uid| valid(uid).map(Uid::from_raw)).transpose()?;
        let gid = changes.gid.map(|gid| valid(gid).map(Gid::from_raw)).transpose()?;
        let loses = req.road() == Road::Kernel && self.loses_set_gid_to_owner(req, inode)?;
        self.act(req, rights)?;
        chownat(inode, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        if loses {
            let mode = u32::from(stat_of(inode)?.stx_mode) & 0o7777 & !libc::S_ISGID;
            chmodat(CWD, inode.path().as_c_str(), Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Whether the mode change is one that the kernel makes on its own before a write, a truncation or a change
    /// of owner (`file_remove_privs`): it comes in the name of the writer, who need not own the file.
    fn only_drops_set_id(&self, inode: &Inode, mode: u32, changes: &Changes) -> Result<bool> {
        if self.options.kernel_checked || changes.uid.is_some() || changes.gid.is_some() {
            return Ok(false);
        }
        let current = u32::from(inode.attributes()?.stx_mode) & 0o7777;
        let wanted = mode & 0o7777;
        Ok(current & SET_ID_BITS != 0
            && wanted != current
            && wanted | SET_ID_BITS == current | SET_ID_BITS
            && wanted & !current == 0)
    }

    pub(super) fn read_link(&self, id: u64) -> Result<Vec<u8>> {
        self.settle(id);
        let inode = self.inode(id)?;
        let target =
            rustix::fs::readlinkat(&inode, c"", Vec::with_capacity(256)).map_err(|errno| match errno {
                // What Linux says of an `O_PATH` descriptor of anything but a symbolic link.
                Errno::NOENT => Errno::INVAL,
                other => other,
            })?;
        Ok(target.into_bytes())
    }

    pub(super) fn file_system(&self, id: u64) -> Result<StatVfs> {
        if let Some(deferred) = &self.deferred {
            deferred.settle_all();
        }
        fstatvfs(self.inode(id)?)
    }
}

fn valid(id: u32) -> Result<u32> {
    if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) }
}
