//! The operations on names: what makes, finds, moves and removes directory entries.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, Statx, linkat, mkdirat, mknodat, renameat_with, symlinkat,
    unlinkat,
};
use rustix::io::{Errno, Result};

use super::deferred::{Change, Hold};
use super::inodes::{Inode, check_name, stat_at};
use super::{PassthroughFs, Rights, attributes, credentials};
use crate::{FileAttr, Generation, Request};

/// An inode that an operation answers with: one reference to it was taken.
pub(super) struct Entry {
    pub(super) attr: FileAttr,
    pub(super) generation: Generation,
}

impl PassthroughFs {
    /// The directory `parent`, and the thread acting with the rights that the request calls for.
    fn parent(&self, req: &Request, parent: u64, name: &OsStr, rights: Rights) -> Result<Inode> {
        check_name(name)?;
        let dir = self.inode(parent)?;
        self.act(req, rights)?;
        Ok(dir)
    }

    /// Announces the change of a name. To be done before the thread acts as the caller.
    fn changes(&self, parent: u64, name: &OsStr) -> Option<Change<'_>> {
        self.deferred.as_ref().map(|deferred| deferred.changes(parent, name))
    }

    /// Looks at a name, so that its attributes are those after all that was acknowledged before. The thread acts as the caller of
    /// `req`, with checked rights, before and afterwards.
    pub(super) fn settled_stat(&self, req: &Request, dir: impl AsFd, name: &OsStr) -> Result<Statx> {
        let Some(deferred) = &self.deferred else { return stat_at(&dir, name) };
        let before = deferred.moment();
        let stat = stat_at(&dir, name)?;
        if let Ok(Ok(id)) = self.ids.of(&stat) {
            deferred.settle_inode(id);
        }
        self.act(req, Rights::Checked)?;
        if deferred.moment() == before { Ok(stat) } else { stat_at(&dir, name) }
    }

    /// Keeps unlinks from being deferred in the directory `name`, if it is one.
    fn hold_named(&self, dir: &Inode, name: &OsStr) -> Option<Hold<'_>> {
        let deferred = self.deferred.as_ref()?;
        let stat = stat_at(dir, name).ok().filter(attributes::is_directory)?;
        let Ok(Ok(id)) = self.ids.of(&stat) else { return None };
        Some(deferred.hold(id))
    }

    fn entry(&self, parent: u64, dir: impl AsFd, name: &OsStr, stat: &Statx, created: bool) -> Result<Entry> {
        let (id, generation) = self.remember(parent, dir, name, stat, created)?;
        Ok(Entry { attr: attributes::of(stat, id), generation: Generation(generation) })
    }

    pub(super) fn lookup_entry(&self, req: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        if let Some(deferred) = &self.deferred {
            deferred.settle_name(parent, name);
        }
        let dir = self.parent(req, parent, name, Rights::Checked)?;
        let stat = self.settled_stat(req, &dir, name)?;
        self.entry(parent, &dir, name, &stat, false)
    }

    fn created_entry(&self, parent: u64, dir: &Inode, name: &OsStr) -> Result<Entry> {
        let stat = stat_at(dir, name)?;
        self.entry(parent, dir, name, &stat, true)
    }

    /// The mode that a new inode in `dir` asks for. A default ACL of the directory takes the place of the umask
    /// (`posix_acl_create`). The backing applies either; where the thread cannot have an umask of its own, the process' is 0.
    pub(super) fn masked(&self, dir: &Inode, mode: u32, umask: u32) -> Mode {
        let wanted = mode & 0o7777;
        let is_to_be_made =
            credentials::set_umask(umask).is_ok() || wanted & umask == 0 || has_default_acl(dir);
        Mode::from_raw_mode(if is_to_be_made { wanted } else { wanted & !umask })
    }

    pub(super) fn make_node(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
    ) -> Result<Entry> {
        let _change = self.changes(parent, name);
        let dir = self.parent(req, parent, name, Rights::Caller)?;
        let permissions = self.masked(&dir, mode, umask);
        let kind = FileType::from_raw_mode(mode);
        let kind = if kind == FileType::Unknown { FileType::RegularFile } else { kind };
        let device = attributes::decode_device(device);
        self.with_room(|| self.act(req, Rights::Caller), || mknodat(&dir, name, kind, permissions, device))?;
        self.created_entry(parent, &dir, name)
    }

    pub(super) fn make_directory(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let _change = self.changes(parent, name);
        let dir = self.parent(req, parent, name, Rights::Caller)?;
        let mode = self.masked(&dir, mode, umask);
        self.with_room(|| self.act(req, Rights::Caller), || mkdirat(&dir, name, mode))?;
        self.created_entry(parent, &dir, name)
    }

    pub(super) fn make_symlink(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        target: &Path,
    ) -> Result<Entry> {
        let _change = self.changes(parent, name);
        let dir = self.parent(req, parent, name, Rights::Caller)?;
        self.with_room(|| self.act(req, Rights::Caller), || symlinkat(target, &dir, name))?;
        self.created_entry(parent, &dir, name)
    }

    pub(super) fn make_link(
        &self,
        req: &Request,
        id: u64,
        new_parent: u64,
        new_name: &OsStr,
    ) -> Result<Entry> {
        check_name(new_name)?;
        let _change = self.changes(new_parent, new_name);
        self.settle(id);
        let inode = self.inode(id)?;
        let dir = self.inode(new_parent)?;
        self.act(req, Rights::Checked)?;
        let path = inode.path();
        self.with_room(
            || self.act(req, Rights::Checked),
            || linkat(CWD, path.as_c_str(), &dir, new_name, AtFlags::SYMLINK_FOLLOW),
        )?;
        let stat = stat_at(&dir, new_name)?;
        self.entry(new_parent, &dir, new_name, &stat, false)
    }

    /// unlink(2) and rmdir(2). Nothing to update: an inode that was reached by the name answers `ESTALE`
    /// or is found through an open file, and one that has other names is looked up again by one of them.
    pub(super) fn remove(&self, req: &Request, parent: u64, name: &OsStr, flags: AtFlags) -> Result<()> {
        let dir = self.parent(req, parent, name, Rights::Checked)?;
        let directory = flags.contains(AtFlags::REMOVEDIR);
        if let (Some(deferred), Some(fd), false) = (&self.deferred, dir.directory(), directory)
            && deferred.take(self, req, parent, fd, name)
        {
            return Ok(());
        }
        let _change = self.changes(parent, name);
        let _hold = if directory { self.hold_named(&dir, name) } else { None };
        if directory {
            self.keep_directory(&dir, name);
        }
        if directory || self.deferred.is_some() {
            self.act(req, Rights::Checked)?;
        }
        unlinkat(&dir, name, flags)
    }

    /// Takes a descriptor of a directory that is about to be removed, if it is known: who works in it goes on to see an empty
    /// one, in which nothing can be made. May leave the thread acting as the daemon.
    fn keep_directory(&self, dir: &Inode, name: &OsStr) {
        if let Ok(stat) = stat_at(dir, name)
            && attributes::is_directory(&stat)
            && let Ok(Ok(id)) = self.ids.of(&stat)
        {
            // Not known, or not found: then nobody misses it, or it is gone already.
            let _ = self.inode(id);
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn move_entry(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        let _changes = (self.changes(parent, name), self.changes(new_parent, new_name));
        let from = self.inode(parent)?;
        let to = self.inode(new_parent)?;
        // A directory that is replaced must be empty, and one that is recorded by its path must keep it.
        let _replaced = self.hold_named(&to, new_name);
        let _paths = match &self.deferred {
            Some(deferred) if !self.ids.has_handles(parent) => Some(deferred.hold_all()),
            _ => None,
        };
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        // A whiteout is an inode, too, and belongs to whoever made it.
        let rights = if flags.contains(RenameFlags::WHITEOUT) { Rights::Caller } else { Rights::Checked };
        self.act(req, rights)?;
        if !flags.intersects(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE) {
            self.keep_directory(&to, new_name);
            self.act(req, rights)?;
        }
        self.with_room(|| self.act(req, rights), || renameat_with(&from, name, &to, new_name, flags))?;
        if !self.ids.has_handles(new_parent) {
            self.follow_move(new_parent, &to, new_name);
            if flags.contains(RenameFlags::EXCHANGE) {
                self.follow_move(parent, &from, name);
            }
        }
        Ok(())
    }

    /// Notes the new name of an inode that is found by name. If that cannot be found out, the next use of the
    /// inode does.
    fn follow_move(&self, parent: u64, dir: &Inode, name: &OsStr) {
        if let Ok(stat) = stat_at(dir, name)
            && let Ok(Ok(id)) = self.ids.of(&stat)
        {
            self.nodes.moved(id, parent, name.as_bytes());
        }
    }
}

fn has_default_acl(dir: &Inode) -> bool {
    rustix::fs::getxattr_query(dir.path().as_c_str(), c"system.posix_acl_default").is_ok()
}
