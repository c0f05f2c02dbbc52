//! The operations on attributes and extended attributes.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, StatVfs, Statx, Timestamps, Uid, XattrFlags, chmodat, chownat, fstatvfs,
    openat, utimensat,
};
use rustix::io::{Errno, Result};

use super::ids::device_number;
use super::inodes::{Inode, ProcPath, stat_of};
use super::privileges::Keeping;
use super::{Grants, PassthroughFs, Rights, attributes, sys};
use crate::{Absent, FileAttr, FileHandle, Request, Road, TimeOrNow};

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`) and list of names (`XATTR_LIST_MAX`), in bytes.
const LONGEST_XATTR: u32 = 65536;

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

/// An answer about extended attributes: the length alone was asked for, or the bytes.
pub(super) enum Xattr {
    Size(u32),
    Data(Vec<u8>),
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

    pub(super) fn get_xattr(&self, req: &Request, id: u64, name: &OsStr, size: u32) -> Result<Xattr> {
        self.settle(id);
        let inode = self.inode(id)?;
        self.act(req, Rights::Checked)?;
        let path = inode.path();
        match size {
            0 => rustix::fs::getxattr_query(path.as_c_str(), name).map(|size| Xattr::Size(size as u32)),
            size => xattr_data(size, |buffer| rustix::fs::getxattr(path.as_c_str(), name, buffer)),
        }
    }

    pub(super) fn list_xattr(&self, req: &Request, id: u64, size: u32) -> Result<Xattr> {
        self.settle(id);
        let inode = self.inode(id)?;
        self.act(req, Rights::Checked)?;
        let path = inode.path();
        let names = match size {
            // Only those who administrate the system are told of `trusted.*` (`simple_xattr_list`), which the daemon
            // may be and the caller not.
            _ if req.uid() != 0 => {
                let Xattr::Data(names) =
                    xattr_data(LONGEST_XATTR, |buffer| rustix::fs::listxattr(path.as_c_str(), buffer))?
                else {
                    return Err(Errno::IO);
                };
                let told = names
                    .split_inclusive(|byte| *byte == 0)
                    .filter(|name| !name.starts_with(b"trusted."))
                    .collect::<Vec<_>>()
                    .concat();
                match size as usize {
                    0 => Xattr::Size(told.len() as u32),
                    size if size < told.len() => return Err(Errno::RANGE),
                    _ => Xattr::Data(told),
                }
            }
            0 => Xattr::Size(rustix::fs::listxattr_query(path.as_c_str())? as u32),
            size => xattr_data(size, |buffer| rustix::fs::listxattr(path.as_c_str(), buffer))?,
        };
        Ok(names)
    }

    pub(super) fn set_xattr(
        &self,
        req: &Request,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        self.settle(id);
        let _hold = self.deferred.as_ref().map(|deferred| deferred.hold(id));
        let inode = self.inode(id)?;
        // A change of an ACL also takes away the set-group-ID bit, unless the owner is a member of the group; only the
        // backing can tell, and only of the caller (`posix_acl_update_mode`).
        let rights = if name.as_encoded_bytes().starts_with(b"system.posix_acl_") {
            Rights::Caller
        } else {
            Rights::Checked
        };
        self.act(req, rights)?;
        let flags = XattrFlags::from_bits(flags as u32).ok_or(Errno::INVAL)?;
        let path = inode.path();
        let set = || rustix::fs::setxattr(path.as_c_str(), name, value, flags);
        let result = self.with_room(|| self.act(req, rights), set);
        if let Some((files, _)) = self.xattr_free.get() {
            files.changed(id);
        }
        result
    }

    /// Which attributes a file of the source's file system lacks if it has none: where the file system has none at all, the
    /// errno is another.
    pub(super) fn absent_xattrs(&self) -> Absent {
        let root = ProcPath::of(&self.root);
        let can = |name: &str| {
            matches!(rustix::fs::getxattr_query(root.as_c_str(), name), Ok(_) | Err(Errno::NODATA))
        };
        Absent {
            user: can("user.finesse"),
            security: can("security.finesse"),
            trusted: can("trusted.finesse"),
            acl: can("system.posix_acl_access"),
        }
    }

    /// Lets the kernel answer for a regular file or directory, `relative` to `base`, if it has no extended attributes.
    pub(super) fn learn_xattrs(&self, id: u64, base: impl AsFd, relative: &OsStr, stat: &Statx) {
        let Some((files, absent)) = self.xattr_free.get() else { return };
        if !self.ids.is_beside_root(id) {
            return;
        }
        let has_none = || {
            if relative.is_empty() {
                return Ok(rustix::fs::listxattr_query(ProcPath::of(&base).as_c_str())? == 0);
            }
            // The name may stand for another file by now.
            let file =
                openat(&base, relative, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            let found = stat_of(&file)?;
            let same = found.stx_ino == stat.stx_ino && device_number(&found) == device_number(stat);
            Ok::<_, Errno>(same && rustix::fs::listxattr_query(ProcPath::of(&file).as_c_str())? == 0)
        };
        // What cannot be looked at may have some.
        files.learn(id, self.ttl, || if has_none().unwrap_or(false) { *absent } else { Absent::default() });
    }

    /// A file is opened for a client. If it gets a descriptor of the source's file, attributes can change by that.
    pub(super) fn xattrs_change_unseen(&self, id: u64) {
        if let Some((files, _)) = self.xattr_free.get()
            && self.options.grants != Grants::Never
        {
            files.changes_unseen(id);
        }
    }

    pub(super) fn remove_xattr(&self, req: &Request, id: u64, name: &OsStr) -> Result<()> {
        self.settle(id);
        let _hold = self.deferred.as_ref().map(|deferred| deferred.hold(id));
        let inode = self.inode(id)?;
        // The kernel takes a file's capabilities away in the name of whoever writes to it
        // (`cap_inode_killpriv`); it has checked those who ask for it themselves (`cap_inode_removexattr`).
        let rights = if req.road() == Road::Kernel && name == "security.capability" {
            if self.loses_capabilities_to_owner(req, &inode)? {
                return Ok(());
            }
            Rights::Daemon
        } else {
            Rights::Checked
        };
        self.act(req, rights)?;
        rustix::fs::removexattr(inode.path().as_c_str(), name)
    }
}

fn valid(id: u32) -> Result<u32> {
    if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) }
}

fn xattr_data(size: u32, read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Xattr> {
    let mut buffer = vec![0; size.min(LONGEST_XATTR) as usize];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(Xattr::Data(buffer))
}
