//! Who may do what, as the kernel would decide (`generic_permission`, `may_delete`, `setattr_prepare`).

use finesse_ebpf::rules::Operations;
use fuser::{AccessFlags, Errno, FileAttr, FileType, INodeNo};

use crate::engine::cache::{Inode, Instant};
use crate::engine::{Checks, Context, Engine, Stop, fail, kernel};
use crate::filesystem::Filesystem;
use crate::processes::CAP_FSETID;
use crate::reply::ReplyEmpty;
use crate::request::{Credentials, Request};
use finesse_ipc::frame::Fallback;

/// `MAY_EXEC`: execute a file, search a directory.
pub(crate) const EXEC: u32 = 1;
/// `MAY_WRITE`.
pub(crate) const WRITE: u32 = 2;
/// `MAY_READ`.
pub(crate) const READ: u32 = 4;

const CAP_CHOWN: u64 = 1 << 0;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const CAP_FOWNER: u64 = 1 << 3;

impl Credentials {
    fn capable(&self, capability: u64) -> bool {
        self.caps & capability != 0
    }

    /// Whether the caller is in a group (`in_group_p`).
    pub(crate) fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether the caller owns the file or may act as if (`inode_owner_or_capable`).
    pub(crate) fn owns(&self, attr: &FileAttr) -> bool {
        self.uid == attr.uid || self.capable(CAP_FOWNER)
    }

    /// Whether the caller may give the file this owner (`chown_ok`).
    pub(crate) fn may_chown(&self, attr: &FileAttr, uid: u32) -> bool {
        (self.uid == attr.uid && uid == attr.uid) || self.capable(CAP_CHOWN)
    }

    /// Whether the caller may give the file this group (`chgrp_ok`).
    pub(crate) fn may_chgrp(&self, attr: &FileAttr, gid: u32) -> bool {
        (self.uid == attr.uid && (gid == attr.gid || self.in_group(gid))) || self.capable(CAP_CHOWN)
    }

    /// Whether a set-group-ID bit survives a change of mode by the caller.
    pub(crate) fn keeps_setgid(&self, gid: u32) -> bool {
        self.in_group(gid) || self.capable(CAP_FSETID)
    }

    /// Whether set-user-ID and set-group-ID bits survive a change of the contents by the caller
    /// (`setattr_should_drop_suidgid`).
    pub(crate) fn keeps_privileges(&self) -> bool {
        self.capable(CAP_FSETID)
    }

    /// Whether the caller searches every directory (`generic_permission` for a directory).
    pub(crate) fn searches_all(&self) -> bool {
        self.capable(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH)
    }

    /// `generic_permission`, without access control lists.
    pub(crate) fn may(&self, attr: &FileAttr, mask: u32) -> bool {
        let mode = u32::from(attr.perm);
        let granted = if self.uid == attr.uid {
            mode >> 6
        } else if self.in_group(attr.gid) {
            mode >> 3
        } else {
            mode
        };
        if granted & mask == mask {
            return true;
        }
        if attr.kind == FileType::Directory {
            return self.capable(CAP_DAC_OVERRIDE)
                || (mask & WRITE == 0 && self.capable(CAP_DAC_READ_SEARCH));
        }
        if mask == READ && self.capable(CAP_DAC_READ_SEARCH) {
            return true;
        }
        // Root executes only what somebody may execute.
        (mask & EXEC == 0 || mode & 0o111 != 0) && self.capable(CAP_DAC_OVERRIDE)
    }
}

impl<FS: Filesystem> Engine<FS> {
    /// Whether the caller may search a directory on its way.
    pub(crate) fn may_search(
        &self,
        context: &Context,
        request: &Request,
        directory: &Inode,
    ) -> Result<(), Stop> {
        self.permit(context, directory, Operations::SEARCH)?;
        match self.checks {
            Checks::FileSystem => Ok(()),
            _ if context.credentials.searches_all() => Ok(()),
            Checks::Engine => self.may(context, request, directory, EXEC),
            Checks::Caller => self.caller_may_search(context, request, directory),
        }
    }

    /// Asks the file system once per directory and client, and believes it for as long as the directory's
    /// attributes are good.
    fn caller_may_search(&self, context: &Context, request: &Request, directory: &Inode) -> Result<(), Stop> {
        let version = directory.version();
        let known = context.searchable.lock().get(&directory.instance).copied();
        if known.is_some_and(|(then, expiry)| then == version && expiry > Instant::now()) {
            return Ok(());
        }
        self.ask_access(request, directory.ino, EXEC)?;
        self.attr(request, directory)?;
        let mut searchable = context.searchable.lock();
        if searchable.len() >= super::BASES_MAX {
            searchable.clear();
        }
        searchable.insert(directory.instance, (version, directory.attr_expiry()));
        Ok(())
    }

    /// The file system's own answer to access(2).
    pub(crate) fn ask_access(&self, request: &Request, ino: u64, mask: u32) -> Result<(), Stop> {
        let (reply, answer) = ReplyEmpty::local();
        self.core.fs.ask().access(request, INodeNo(ino), AccessFlags::from_bits_retain(mask as i32), reply);
        match answer.wait() {
            Ok(()) => Ok(()),
            // `fuse_access`: a file system without access() allows everything.
            Err(errno) if errno.code() == Errno::ENOSYS.code() => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Checks a mask on an inode by mode bits, where that is the engine's part.
    pub(crate) fn may(
        &self,
        context: &Context,
        request: &Request,
        inode: &Inode,
        mask: u32,
    ) -> Result<(), Stop> {
        if self.checks != Checks::Engine {
            return Ok(());
        }
        let attr = self.attr(request, inode)?;
        if context.credentials.may(&attr, mask) { Ok(()) } else { fail(libc::EACCES) }
    }

    /// Whether the caller may make a name in a directory (`may_create`).
    pub(crate) fn may_create(
        &self,
        context: &Context,
        request: &Request,
        directory: &Inode,
    ) -> Result<(), Stop> {
        if directory.is_dead() {
            return fail(libc::ENOENT);
        }
        self.may(context, request, directory, WRITE | EXEC)
    }

    /// Whether the caller may remove a child from a directory (`may_delete`).
    pub(crate) fn may_delete(
        &self,
        context: &Context,
        request: &Request,
        directory: &Inode,
        child: &Inode,
    ) -> Result<(), Stop> {
        if self.checks != Checks::Engine {
            return Ok(());
        }
        self.may(context, request, directory, WRITE | EXEC)?;
        let credentials = &context.credentials;
        let above = self.attr(request, directory)?;
        // `check_sticky`
        if u32::from(above.perm) & libc::S_ISVTX != 0
            && above.uid != credentials.uid
            && !credentials.owns(&self.attr(request, child)?)
        {
            return fail(libc::EPERM);
        }
        Ok(())
    }

    /// Whether following a symbolic link is beyond doubt: in a sticky directory that all may write, the
    /// kernel's `may_follow_link` decides by a system-wide setting.
    pub(crate) fn may_follow(
        &self,
        context: &Context,
        request: &Request,
        directory: &Inode,
    ) -> Result<(), Stop> {
        let attr = self.attr(request, directory)?;
        let shared = libc::S_ISVTX | libc::S_IWOTH;
        if u32::from(attr.perm) & shared == shared && attr.uid != context.credentials.uid {
            return kernel(Fallback::KernelByChoice);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn attr(kind: FileType, perm: u16, uid: u32, gid: u32) -> FileAttr {
        let epoch = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(2),
            size: 0,
            blocks: 0,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            kind,
            perm,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32], caps: u64) -> Credentials {
        Credentials { uid, gid, groups: groups.into(), pid: 1, caps }
    }

    #[test]
    fn the_first_matching_class_decides() {
        let file = attr(FileType::RegularFile, 0o074, 10, 20);
        assert!(!user(10, 20, &[], 0).may(&file, READ), "the owner, although group and others may");
        assert!(user(11, 20, &[], 0).may(&file, READ | WRITE | EXEC), "by group");
        assert!(user(11, 21, &[20], 0).may(&file, WRITE), "by supplementary group");
        assert!(user(11, 21, &[], 0).may(&file, READ) && !user(11, 21, &[], 0).may(&file, WRITE), "others");
    }

    #[test]
    fn capabilities_override_as_in_generic_permission() {
        let root = user(0, 0, &[], u64::MAX);
        let data = attr(FileType::RegularFile, 0o600, 10, 20);
        assert!(root.may(&data, READ | WRITE) && !root.may(&data, EXEC), "nobody may execute it");
        assert!(root.may(&attr(FileType::RegularFile, 0o100, 10, 20), EXEC));
        let directory = attr(FileType::Directory, 0, 10, 20);
        assert!(root.may(&directory, READ | WRITE | EXEC));
        let reader = user(5, 5, &[], CAP_DAC_READ_SEARCH);
        assert!(reader.may(&directory, READ | EXEC) && !reader.may(&directory, WRITE));
        assert!(reader.may(&data, READ) && !reader.may(&data, READ | WRITE));
        assert!(!user(0, 0, &[], 0).may(&data, READ), "root without capabilities is nobody special");
    }

    #[test]
    fn ownership_changes_follow_chown_ok_and_chgrp_ok() {
        let file = attr(FileType::RegularFile, 0o644, 10, 20);
        let owner = user(10, 10, &[30], 0);
        assert!(owner.may_chown(&file, 10) && !owner.may_chown(&file, 11));
        assert!(owner.may_chgrp(&file, 30) && owner.may_chgrp(&file, 20) && !owner.may_chgrp(&file, 31));
        assert!(!user(11, 20, &[30], 0).may_chgrp(&file, 30), "not the owner");
        assert!(user(11, 11, &[], CAP_CHOWN).may_chown(&file, 99));
    }
}
