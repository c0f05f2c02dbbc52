//! The operations on extended attributes, and who is told that a file has none.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rustix::fs::{Mode, OFlags, Statx, XattrFlags, openat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;
use rustix::time::ClockId;

use super::ids::device_number;
use super::inodes::{ProcPath, stat_of};
use super::{Grants, PassthroughFs, Rights, attributes, sys};
use crate::{Absent, FileType, Request, Road, XattrFree};

/// The longest value of an extended attribute (`XATTR_SIZE_MAX`) and list of names (`XATTR_LIST_MAX`), in bytes.
const LONGEST_XATTR: u32 = 65536;

const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The capabilities that a program gets by a file.
const CAPABILITY: &str = "security.capability";

/// Whoever asks for extended attributes asks for those of many files: so long after somebody asked, in seconds, listings tell which files
/// have none.
const WANTED_FOR: i64 = 2;

/// An answer about extended attributes: the length alone was asked for, or the bytes.
pub(super) enum Xattr {
    Size(u32),
    Data(Vec<u8>),
    /// There are none at all.
    Nothing(Absent),
}

/// What is known of extended attributes in general.
pub(super) struct Xattrs {
    /// For which names a regular file or directory of the source's own file system answers `ENODATA` if it has none: where the file system
    /// has no such attributes, the errno is another.
    absent: Absent,
    /// By which the kernel answers for files that have none.
    pub(super) kernels: OnceLock<XattrFree>,
    /// When a client has asked last for something that is not there, by the coarse monotonic clock, in seconds.
    asked: AtomicI64,
    /// The kernel cannot list those of a name (before Linux 6.13).
    lists_not_by_name: AtomicBool,
}

impl Xattrs {
    /// As the directory that is shown answers.
    pub(super) fn of(root: impl AsFd) -> Self {
        let root = ProcPath::of(&root);
        let can = |name: &str| {
            matches!(rustix::fs::getxattr_query(root.as_c_str(), name), Ok(_) | Err(Errno::NODATA))
        };
        Self {
            absent: Absent {
                user: can("user.finesse"),
                security: can("security.finesse"),
                trusted: can("trusted.finesse"),
                acl: can("system.posix_acl_access"),
            },
            kernels: OnceLock::new(),
            asked: AtomicI64::new(i64::MIN),
            lists_not_by_name: AtomicBool::new(false),
        }
    }
}

fn seconds() -> i64 {
    rustix::time::clock_gettime(ClockId::MonotonicCoarse).tv_sec
}

impl PassthroughFs {
    pub(super) fn get_xattr(&self, req: &Request, id: u64, name: &OsStr, size: u32) -> Result<Xattr> {
        self.settle(id);
        let inode = self.inode(id)?;
        self.act(req, Rights::Checked)?;
        let path = inode.path();
        let value = match size {
            0 => rustix::fs::getxattr_query(path.as_c_str(), name).map(|size| Xattr::Size(size as u32)),
            size => xattr_data(size, |buffer| rustix::fs::getxattr(path.as_c_str(), name, buffer))
                .map(Xattr::Data),
        };
        // The engine asks, too: in a program's name for capabilities, before it writes, in its own for lists of directories.
        let is_programs =
            || req.road() == Road::Bypass && name != CAPABILITY && req.pid() != std::process::id();
        if value.as_ref().err() != Some(&Errno::NODATA) || !is_programs() {
            return value;
        }
        match rustix::fs::listxattr_query(path.as_c_str()) {
            Ok(0) => self.nothing_from(req, id, &inode.attributes()?).map_or(value, Ok),
            _ => value,
        }
    }

    pub(super) fn list_xattr(&self, req: &Request, id: u64, size: u32) -> Result<Xattr> {
        self.settle(id);
        let inode = self.inode(id)?;
        self.act(req, Rights::Checked)?;
        let path = inode.path();
        let read = |size| xattr_data(size, |buffer| rustix::fs::listxattr(path.as_c_str(), buffer));
        let (told, has_none) = match (req.uid(), size) {
            (0, 0) => {
                let size = rustix::fs::listxattr_query(path.as_c_str())?;
                (Xattr::Size(size as u32), size == 0)
            }
            (0, size) => {
                let names = read(size)?;
                let has_none = names.is_empty();
                (Xattr::Data(names), has_none)
            }
            _ => {
                let names = read(LONGEST_XATTR)?;
                (list_for_users(&names, size)?, names.is_empty())
            }
        };
        let nothing = if has_none { self.nothing_from(req, id, &inode.attributes()?) } else { None };
        Ok(nothing.unwrap_or(told))
    }

    /// The answer for a file that has no extended attributes, if it is known what others are answered.
    fn nothing_from(&self, req: &Request, id: u64, stat: &Statx) -> Option<Xattr> {
        if req.road() == Road::Bypass {
            self.xattrs.asked.store(seconds(), Ordering::Relaxed);
        }
        self.absent_from(id, stat).map(Xattr::Nothing)
    }

    /// For which names getxattr(2) answers `ENODATA`, of a file that has no extended attributes. `None` if that is not known.
    fn absent_from(&self, id: u64, stat: &Statx) -> Option<Absent> {
        if !self.ids.is_beside_root(id) {
            return None;
        }
        let absent = self.xattrs.absent;
        match attributes::of(stat, id).kind {
            FileType::RegularFile | FileType::Directory => Some(absent),
            // `EPERM` for those of users, and `EOPNOTSUPP` for access control lists (`vfs_get_acl`).
            FileType::Symlink => Some(Absent { user: false, acl: false, ..absent }),
            _ => None,
        }
    }

    /// Whether clients want to know by listings which files have no extended attributes.
    pub(super) fn lists_xattrs(&self, req: &Request) -> bool {
        req.road() == Road::Bypass
            && seconds().saturating_sub(self.xattrs.asked.load(Ordering::Relaxed)) <= WANTED_FOR
    }

    /// Of an entry of a directory, whose attributes were just read: what it is known not to have, if it has no extended attributes.
    pub(super) fn absent_at(
        &self,
        id: u64,
        directory: impl AsFd,
        name: &OsStr,
        stat: &Statx,
    ) -> Option<Absent> {
        let absent = self.absent_from(id, stat)?;
        // What cannot be looked at may have some.
        (self.list_of(&directory, name) == Ok(0)).then_some(absent)
    }

    /// How long the list of extended attributes of a name in a directory is, in bytes.
    fn list_of(&self, directory: impl AsFd, name: &OsStr) -> Result<usize> {
        let lacks = &self.xattrs.lists_not_by_name;
        if !lacks.load(Ordering::Relaxed) {
            match name.into_with_c_str(|name| sys::list_xattrs_at(&directory, name)) {
                Err(Errno::NOSYS) => lacks.store(true, Ordering::Relaxed),
                listed => return listed,
            }
        }
        let file = openat(directory, name, PATH_ONLY, Mode::empty())?;
        rustix::fs::listxattr_query(ProcPath::of(&file).as_c_str())
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
        if let Some(files) = self.xattrs.kernels.get() {
            files.changed(id);
        }
        result
    }

    /// Lets the kernel answer for a regular file or directory, `relative` to `base`, if it has no extended attributes.
    pub(super) fn learn_xattrs(&self, id: u64, base: impl AsFd, relative: &OsStr, stat: &Statx) {
        let Some(files) = self.xattrs.kernels.get() else { return };
        if !self.ids.is_beside_root(id) {
            return;
        }
        let has_none = || {
            if relative.is_empty() {
                return Ok(rustix::fs::listxattr_query(ProcPath::of(&base).as_c_str())? == 0);
            }
            // The name may stand for another file by now.
            let file = openat(&base, relative, PATH_ONLY, Mode::empty())?;
            let found = stat_of(&file)?;
            let same = found.stx_ino == stat.stx_ino && device_number(&found) == device_number(stat);
            Ok::<_, Errno>(same && rustix::fs::listxattr_query(ProcPath::of(&file).as_c_str())? == 0)
        };
        // What cannot be looked at may have some.
        files.learn(id, self.ttl, || {
            if has_none().unwrap_or(false) { self.xattrs.absent } else { Absent::default() }
        });
    }

    /// A file is opened for a client. If it gets a descriptor of the source's file, attributes can change by that.
    pub(super) fn xattrs_change_unseen(&self, id: u64) {
        if let Some(files) = self.xattrs.kernels.get()
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
        let rights = if req.road() == Road::Kernel && name == CAPABILITY {
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

/// What an ordinary user is told of these names: only those who administrate the system are told of `trusted.*`
/// (`simple_xattr_list`), which the daemon may be and the caller not.
fn list_for_users(names: &[u8], size: u32) -> Result<Xattr> {
    let told = names
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| !name.starts_with(b"trusted."))
        .collect::<Vec<_>>()
        .concat();
    match size as usize {
        0 => Ok(Xattr::Size(told.len() as u32)),
        size if size < told.len() => Err(Errno::RANGE),
        _ => Ok(Xattr::Data(told)),
    }
}

fn xattr_data(size: u32, read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; size.min(LONGEST_XATTR) as usize];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}
