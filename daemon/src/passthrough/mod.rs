//! The passthrough file system: a mount that mirrors a directory.
//!
//! - *Inodes* are not held open. [`nodes`] keeps a file handle (or a name) of each, so millions of inodes can be
//!   known under a limit of a few thousand descriptors; [`directories`] keeps descriptors of the directories in
//!   use.
//! - *Permissions* are the backing's. Requests of the bypass run as their caller. So do those of the kernel, unless the
//!   mount has `default_permissions`: then the kernel has checked them, and only what creates inodes
//!   runs as the caller ([`Rights`]). An ordinary user's daemon acts as itself for everybody it serves.
//! - *Data* of regular files does not pass through here where it need not: the kernel gets the backing file
//!   (`FUSE_PASSTHROUGH`), and a bypass client gets a descriptor of its own.
//!
//! The caller's umask is left to the backing, which knows of default ACLs: a thread that makes something has an umask of its own from then on (and a
//! working directory), with the caller's in it. Where a thread cannot have one, the process's counts, which must be 0 for that
//! ([`PassthroughFs::new`] leaves it alone).

#![deny(unsafe_code)]

mod attributes;
mod credentials;
mod deadlocks;
mod deferred;
mod directories;
mod files;
mod handles;
mod hot;
mod ids;
mod inodes;
mod ioctl;
mod leases;
mod lending;
mod locks;
mod metadata;
mod names;
mod negotiation;
mod nodes;
mod options;
mod privileges;
mod streams;
mod sys;
#[cfg(test)]
mod tests;
mod xattrs;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat};

pub(crate) use self::credentials::groups_of;
use self::deferred::Deferred;
pub use self::deferred::{DeferredCounts, Drain, Leftover, finish_leftovers, leftovers};
use self::directories::Directories;
use self::handles::{Handles, OpenDirectory, OpenFile, OpenInodes};
use self::hot::Hot;
use self::ids::{Device, Ids, ROOT};
use self::lending::SourceCopy;
pub use self::lending::try_to_lend;
use self::locks::{Caller, Locks};
use self::metadata::Changes;
use self::nodes::{Kind, Nodes};
pub use self::options::{CachePolicy, Grants, Options, SourceError};
use self::streams::Listed;
use self::sys::FileLock;
use self::xattrs::{Xattr, Xattrs};
use crate::policy::Policy;
use crate::{
    Absent, AccessFlags, BsdFileFlags, Bypass, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    ForgetOne, Generation, INodeNo, IoctlFlags, KernelConfig, Lending, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Road,
    TimeOrNow, WriteFlags, XattrFree,
};

/// Files that stay open for a moment after they were read, at most.
const HOT_FILES: usize = 4096;
/// Types of file system (`f_type`) that list every name that they find, in the way that it is written: ext4, XFS, Btrfs, tmpfs, F2FS,
/// OverlayFS, bcachefs.
const LIST_ALL: [i64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0xf2f5_2010, 0x794c_7630, 0xca45_1a4e];

/// Who an operation runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    /// The caller, whichever road it came by: for what makes inodes, which will belong to it.
    Caller,
    /// The caller, unless the kernel has checked already what it may do.
    Checked,
    /// The daemon: for what the kernel does on its own, only in the caller's name.
    Daemon,
}

/// Who a thread acts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acting {
    /// User 0 with all its capabilities.
    Root,
    /// An ordinary user.
    User,
}

/// A mirror of a directory; see the [module documentation](self).
pub struct PassthroughFs {
    root: Arc<OwnedFd>,
    ids: Ids,
    nodes: Nodes,
    directories: Directories,
    files: Handles<OpenFile>,
    streams: Handles<OpenDirectory>,
    /// Directories that the kernel lists without having opened them.
    listed: Listed,
    /// The kernel need not open directories.
    lists_unopened: AtomicBool,
    open_inodes: OpenInodes,
    /// Whether the file system of the source has no `flush`.
    source_closes_quietly: bool,
    /// Empty where files are granted at once: then the daemon reads none.
    hot: Hot,
    locks: Locks,
    options: Options,
    ttl: Duration,
    can_switch: bool,
    may_use_handles: bool,
    /// Names are found as they are written, and all that are found are listed.
    lists_all: bool,
    /// Whether `FUSE_PASSTHROUGH` was negotiated, and has not failed since.
    kernel_serves_data: AtomicBool,
    /// Set if the kernel can answer for files without extended attributes.
    xattrs: Xattrs,
    /// Unlinks that are done later, if there are any.
    deferred: Option<Deferred>,
    /// Of which directories are lent to programs, if any are.
    copy: Option<SourceCopy>,
}

impl std::fmt::Debug for PassthroughFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassthroughFs")
            .field("options", &self.options)
            .field("can_switch", &self.can_switch)
            .field("file_handles", &self.uses_file_handles())
            .finish_non_exhaustive()
    }
}

impl PassthroughFs {
    /// A mirror of the directory `source`, which may be mounted over later: it stays open.
    ///
    /// Changes nothing outside the new object; in particular the process's umask, which the caller sets to 0 before it
    /// serves requests, for threads that cannot have one of their own (seccomp(2) without `unshare`).
    ///
    /// # Errors
    /// A [`SourceError`] inside of an [`io::Error`], which displays as what failed, on what, and what to do.
    pub fn new(source: &Path, options: Options) -> io::Result<Self> {
        Ok(Self::open(source, options)?)
    }

    fn open(source: &Path, options: Options) -> Result<Self, SourceError> {
        let path = || source.to_owned();
        let open = |flags| openat(CWD, source, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = open(OFlags::PATH).map_err(|errno| match errno {
            rustix::io::Errno::NOTDIR if source.exists() => SourceError::NotADirectory { path: path() },
            errno => SourceError::Open { path: path(), error: errno.into() },
        })?;
        let stat = inodes::stat_of(&root)
            .map_err(|errno| SourceError::Stat { path: path(), error: errno.into() })?;
        rustix::fs::stat(inodes::ProcPath::of(&root).as_c_str())
            .map_err(|errno| SourceError::NoProc { error: errno.into() })?;

        let can_switch = credentials::can_switch();
        let may_use_handles = options.file_handles && can_switch;
        let anchor = open(OFlags::RDONLY).ok().filter(|_| may_use_handles);
        let device =
            Device { number: ids::device_number(&stat), handles: anchor.and_then(inodes::usable_handles) };
        let root = Arc::new(root);
        deferred::finish_left(device.handles.as_ref().unwrap_or(&root));
        let deferred = match options.deferred_unlinks {
            true => Some(
                Deferred::new(source, &root, options.cache.ttl())
                    .map_err(|errno| SourceError::NoJournal { error: errno.into() })?,
            ),
            false => None,
        };
        let lists_all = rustix::fs::fstatfs(&root).is_ok_and(|found| LIST_ALL.contains(&found.f_type));
        let room = usize::try_from(sys::open_files_limit() / 4).unwrap_or(usize::MAX);
        let source_closes_quietly = rustix::fs::fstatfs(&root).is_ok_and(|fs| sys::closes_quietly(&fs));
        let xattrs = Xattrs::of(&root);
        let copy = SourceCopy::of(&root, &options, device.handles.is_some());
        Ok(Self {
            root,
            ids: Ids::new(stat.stx_ino, device),
            nodes: Nodes::new(),
            directories: Directories::new(options.open_directories.min(room)),
            files: Handles::new(),
            streams: Handles::new(),
            listed: Listed::default(),
            lists_unopened: AtomicBool::new(false),
            open_inodes: OpenInodes::new(),
            source_closes_quietly,
            hot: Hot::new(if can_switch && options.grants != Grants::Always {
                room.min(HOT_FILES)
            } else {
                0
            }),
            locks: Locks::new(),
            ttl: options.cache.ttl(),
            options,
            can_switch,
            may_use_handles,
            lists_all,
            kernel_serves_data: AtomicBool::new(false),
            xattrs,
            deferred,
            copy,
        })
    }

    /// How many inodes the kernel and the bypass hold references to.
    pub fn known_inodes(&self) -> usize {
        self.nodes.len()
    }

    /// About how much memory each known inode takes, in bytes. 0 if none is known.
    ///
    /// Looks at every known inode: for reports, not for loops.
    pub fn bytes_per_inode(&self) -> usize {
        self.nodes.memory().checked_div(self.nodes.len()).unwrap_or(0)
    }

    /// Whether inodes of the source's own file system are found again by file handle, rather than by name.
    pub fn uses_file_handles(&self) -> bool {
        self.ids.has_handles(ROOT)
    }

    /// By which whoever ends the mount has deferred unlinks done; `None` if none are deferred.
    pub fn drain(&self) -> Option<Drain> {
        self.deferred.as_ref().map(Deferred::drain)
    }

    /// Whether the daemon acts as each caller, rather than as one user for all.
    pub fn acts_as_callers(&self) -> bool {
        self.can_switch
    }

    /// Makes the calling thread act with the rights that the request has.
    fn act(&self, req: &Request, rights: Rights) -> rustix::io::Result<Acting> {
        if !self.can_switch {
            return self.act_as_owner(req);
        }
        let as_daemon = match (req.road(), rights) {
            (_, Rights::Daemon) => true,
            (Road::Kernel, Rights::Checked) => self.options.kernel_checked,
            _ => false,
        };
        if as_daemon {
            credentials::become_daemon()?;
            return Ok(Acting::Root);
        }
        match (req.uid(), req.groups()) {
            (0, _) => credentials::assume(0, req.gid(), &[])?,
            (uid, Some(groups)) => credentials::assume(uid, req.gid(), groups)?,
            (uid, None) => {
                let groups = groups_of(req.pid(), uid).unwrap_or_default();
                credentials::assume(uid, req.gid(), &groups)?;
            }
        }
        Ok(if req.uid() == 0 { Acting::Root } else { Acting::User })
    }

    /// For a daemon that cannot act as others: the kernel lets only the mount's owner in, unless told otherwise, so the
    /// bypass lets nobody else in either.
    fn act_as_owner(&self, req: &Request) -> rustix::io::Result<Acting> {
        match req.road() {
            Road::Bypass if req.uid() != self.options.owner_uid => Err(rustix::io::Errno::ACCESS),
            _ => Ok(Acting::User),
        }
    }

    /// A client gets a descriptor of the source's file, if it gets any.
    fn grants(&self, req: &Request, id: u64) {
        if let Some(deferred) = &self.deferred
            && req.road() == Road::Bypass
            && self.options.grants != Grants::Never
        {
            deferred.keeps(id);
        }
    }

    /// Has the inode's name removed if that waits, and the names in it. May leave the thread acting as somebody else.
    fn settle(&self, id: u64) {
        if let Some(deferred) = &self.deferred {
            deferred.settle_inode(id);
        }
    }

    /// Runs something that takes room, and again once everything is gone that was removed. `act` gives the thread its rights
    /// back.
    fn with_room<T>(
        &self,
        act: impl Fn() -> rustix::io::Result<Acting>,
        mut make: impl FnMut() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match (make(), &self.deferred) {
            (Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT), Some(deferred))
                if deferred.settled_something() =>
            {
                act()?;
                make()
            }
            (made, _) => made,
        }
    }

    fn forget_node(&self, id: u64, count: u64) {
        if id == ROOT {
            return;
        }
        match self.nodes.forget(id, count) {
            Some(Kind::Directory) => self.directories.remove(id),
            Some(Kind::Regular) => self.hot.remove(id),
            Some(Kind::Other) | None => {}
        }
    }

    fn reply_entry(&self, reply: ReplyEntry, result: rustix::io::Result<names::Entry>) {
        match result {
            Ok(entry) => reply.entry(&self.ttl, &entry.attr, entry.generation),
            Err(error) => reply.error(errno(error)),
        }
    }

    /// What the kernel may keep of a file that is opened with these flags.
    fn open_flags(&self, flags: i32) -> FopenFlags {
        let mut kept = FopenFlags::empty();
        if self.options.cache == CachePolicy::Always {
            kept |= FopenFlags::FOPEN_KEEP_CACHE;
        }
        // Closing it means nothing here then: it ends no lock, and there is no error to hear of.
        if self.locks_stay_in_the_kernel() && !files::is_writable(flags) {
            kept |= FopenFlags::FOPEN_NOFLUSH;
        }
        kept
    }

    /// Of a file that is opened for a bypass client, who has no locks through it: whether closing it need not be heard of first.
    fn quiet_flags(&self, id: u64) -> FopenFlags {
        if self.closes_quietly(id) { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() }
    }

    /// Whether locks are the kernel's own, on the mount's files: nobody has descriptors of the source's files, and nobody
    /// else uses the source.
    fn locks_stay_in_the_kernel(&self) -> bool {
        self.options.grants == Grants::Never && self.options.cache == CachePolicy::Always
    }
}

/// Whether a file opened with these flags is written at its end.
fn appends(flags: i32) -> bool {
    flags & libc::O_APPEND != 0
}

/// How the kernel reads and writes a file that it opens with these flags. To append, it would compute the place from what
/// it believes the length to be, which others may have changed; and with passthrough it goes on appending after
/// `F_SETFL` has taken the flag away (`backing_file_open` copies it). So that goes through the daemon, uncached.
fn io_flags(flags: i32) -> FopenFlags {
    if appends(flags) { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
}

/// A backing error, as the reply has it.
fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn reply_empty(reply: ReplyEmpty, result: rustix::io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_attr(reply: ReplyAttr, ttl: &Duration, result: rustix::io::Result<crate::FileAttr>) {
    match result {
        Ok(attr) => reply.attr(ttl, &attr),
        Err(error) => reply.error(errno(error)),
    }
}

fn reply_written(reply: ReplyWrite, result: rustix::io::Result<u32>) {
    match result {
        Ok(count) => reply.written(count),
        Err(error) => reply.error(errno(error)),
    }
}

/// `nothing` answers that there are none.
fn reply_xattr(
    reply: ReplyXattr,
    result: rustix::io::Result<Xattr>,
    nothing: impl FnOnce(ReplyXattr, Absent),
) {
    match result {
        Ok(Xattr::Size(size)) => reply.size(size),
        Ok(Xattr::Data(data)) => reply.data(&data),
        Ok(Xattr::Nothing(absent)) => nothing(reply, absent),
        Err(error) => reply.error(errno(error)),
    }
}

impl Filesystem for PassthroughFs {
    fn bypass(&self) -> Bypass {
        Bypass::new()
            .with_grants(self.options.grants != Grants::Never)
            .with_grants_on_request(self.options.grants == Grants::Large)
            .with_backing_attrs(true)
            .with_checks_types(true)
            .with_acts_as_caller(true)
            .with_applies_umask(true)
            .with_lists_all(self.lists_all)
            .with_calls_at_once(true)
            // A removal that is deferred may fail, and the name comes back.
            .with_keeps_listings(self.options.cache == CachePolicy::Always && self.deferred.is_none())
            // With a lifetime of zero there would be nothing in it.
            .with_table(if self.ttl.is_zero() { 0 } else { self.options.table })
    }

    fn xattr_free(&self, files: XattrFree) {
        // With a lifetime of zero nothing may be known of the source.
        if !self.ttl.is_zero() {
            // The engine offers it once.
            let _ = self.xattrs.kernels.set(files);
        }
    }

    fn deferred_unlinks(&self) -> Option<DeferredCounts> {
        self.deferred.as_ref().map(Deferred::counts)
    }

    fn destroy(&mut self) {
        // Ends when everything is done.
        self.deferred = None;
    }

    fn left_to_kernel(&self) -> Vec<PathBuf> {
        self.options.left_to_kernel.clone()
    }

    fn lends(&self) -> Lending {
        self.what_is_lent()
    }

    fn lend(&self, _req: &Request, ino: INodeNo) -> io::Result<OwnedFd> {
        Ok(self.lend_directory(ino.0)?)
    }

    fn exchange(&self, _req: &Request, file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        Ok(self.exchange_file(file)?)
    }

    fn policy(&self) -> Option<Arc<Policy>> {
        self.options.policy.clone()
    }

    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.negotiate(config);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.lookup_entry(req, parent.0, name) {
            Err(rustix::io::Errno::NOENT) if self.options.cache != CachePolicy::Never => {
                reply.entry(&self.ttl, &attributes::nothing(), Generation(0));
            }
            result => self.reply_entry(reply, result),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.forget_node(ino.0, nlookup);
    }

    fn batch_forget(&self, _req: &Request, nodes: &[ForgetOne]) {
        for node in nodes {
            self.forget_node(node.nodeid().0, node.nlookup());
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, &self.ttl, self.get_attributes(ino.0, fh));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes { mode, uid, gid, size, atime, mtime };
        reply_attr(reply, &self.ttl, self.set_attributes(req, ino.0, fh, changes));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.read_link(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.reply_entry(reply, self.make_node(req, parent.0, name, mode, umask, rdev));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.reply_entry(reply, self.make_directory(req, parent.0, name, mode, umask));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.remove(req, parent.0, name, AtFlags::empty()));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.remove(req, parent.0, name, AtFlags::REMOVEDIR));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.reply_entry(reply, self.make_symlink(req, parent.0, link_name, target));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.move_entry(req, parent.0, name, newparent.0, newname, flags.bits()));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.reply_entry(reply, self.make_link(req, ino.0, newparent.0, newname));
    }

    fn settled_attr(&self, ino: INodeNo) -> Option<(crate::FileAttr, Duration)> {
        // What cannot be looked at may have writers.
        let attr = self.attr_without_writers(ino.0).ok().flatten()?;
        Some((attr, self.ttl))
    }

    fn grant(&self, _req: &Request, ino: INodeNo, fh: FileHandle) -> io::Result<OwnedFd> {
        Ok(self.give(ino.0, fh)?)
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let opened = match self.open_file(req, ino.0, flags.0) {
            Ok(opened) => opened,
            Err(error) => return reply.error(errno(error)),
        };
        if req.road() == Road::Kernel {
            let direct = io_flags(flags.0);
            let from_pages = self.is_worth_keeping(&opened, flags.0) && reply.may_read_pages();
            let (fh, backing) = self.serve_kernel(opened, from_pages, |fd| reply.open_backing(fd));
            return match backing {
                Some(backing) => reply.opened_passthrough(fh, direct, &backing),
                None => reply.opened(fh, self.open_flags(flags.0) | direct),
            };
        }
        self.xattrs_change_unseen(ino.0);
        let opened = match self.gives(req, opened) {
            Ok((takes, backing, mode)) => return reply.given(takes, backing, mode),
            Err(opened) => opened,
        };
        let regular = opened.regular.is_some();
        let file = self.open_inodes.add(opened.file);
        let fh = self.files.insert(&file);
        let flags = self.open_flags(flags.0) | self.quiet_flags(ino.0);
        match regular && self.options.grants != Grants::Never {
            true => reply.opened_grantable(fh, flags),
            false => reply.opened(fh, flags),
        }
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_file(req, fh, offset, size, |result| match result {
            Ok(data) => reply.data(data),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let sheds = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        reply_written(reply, self.write_file(req, fh, offset, data, appends(flags.0), sheds));
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.locks.closed(ino.0, self.files.get(fh).ok().as_deref(), lock_owner);
        reply_empty(reply, self.flush_file(fh));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(owner) = lock_owner {
            self.locks.release(ino.0, owner);
        }
        self.release_file(fh);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        reply_empty(reply, self.files.get(fh).and_then(|file| self.sync(&*file, datasync)));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if req.road() == Road::Kernel && self.lists_unopened.load(Ordering::Relaxed) {
            return reply.error(Errno::ENOSYS);
        }
        let kept = match self.options.cache {
            CachePolicy::Always => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            CachePolicy::Never | CachePolicy::Auto => FopenFlags::empty(),
        };
        match self.open_stream(req, ino.0) {
            Ok(fh) => reply.opened(fh, kept),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.list(req, ino.0, fh, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        match self.list_plus(req, ino.0, fh, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        drop(self.streams.remove(fh));
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.settle(ino.0);
        reply_empty(reply, self.stream(req, ino.0, fh).and_then(|stream| self.sync(&*stream, datasync)));
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.file_system(ino.0) {
            Ok(fs) => reply.statfs(
                fs.f_blocks,
                fs.f_bfree,
                fs.f_bavail,
                fs.f_files,
                fs.f_ffree,
                fs.f_bsize as u32,
                fs.f_namemax as u32,
                fs.f_frsize as u32,
            ),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.set_xattr(req, ino.0, name, value, flags));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, self.get_xattr(req, ino.0, name, size), ReplyXattr::has_none);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let nothing = |reply: ReplyXattr, absent| reply.lists_none(size, absent);
        reply_xattr(reply, self.list_xattr(req, ino.0, size), nothing);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(reply, self.remove_xattr(req, ino.0, name));
    }

    fn access(&self, req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        reply_empty(reply, self.check_access(req, ino.0, mask.bits()));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (entry, opened) = match self.create_file(req, parent.0, name, mode, umask, flags) {
            Ok(created) => created,
            Err(error) => return reply.error(errno(error)),
        };
        let (attr, generation) = (&entry.attr, entry.generation);
        if req.road() == Road::Kernel {
            let direct = io_flags(flags);
            let (fh, backing) = self.serve_kernel(opened, false, |fd| reply.open_backing(fd));
            return match backing {
                Some(backing) => {
                    reply.created_passthrough(&self.ttl, attr, generation, fh, direct, &backing);
                }
                None => reply.created(&self.ttl, attr, generation, fh, self.open_flags(flags) | direct),
            };
        }
        self.xattrs_change_unseen(attr.ino.0);
        let opened = match self.gives(req, opened) {
            Ok((takes, backing, mode)) => {
                return reply.given(takes, (&self.ttl, attr, generation), backing, mode);
            }
            Err(opened) => opened,
        };
        let file = self.open_inodes.add(opened.file);
        let fh = self.files.insert(&file);
        let flags = self.open_flags(flags) | self.quiet_flags(attr.ino.0);
        match self.options.grants != Grants::Never {
            true => reply.created_grantable(&self.ttl, attr, generation, fh, flags),
            false => reply.created(&self.ttl, attr, generation, fh, flags),
        }
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let found = self
            .files
            .get(fh)
            .and_then(|file| self.locks.test(&file, lock_owner, FileLock { kind: typ, start, end }));
        match found {
            Ok(Some((lock, pid))) => reply.locked(lock.start, lock.end, lock.kind, pid),
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, pid),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn setlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let file = match self.files.get(fh) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let lock = FileLock { kind: typ, start, end };
        self.locks.set(file, lock_owner, Caller { pid, tid: req.pid() }, lock, sleep, reply);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        match self.control(req, ino.0, fh, cmd, in_data, out_size) {
            Ok((result, data)) => reply.ioctl(result, &data),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.allocate(req, fh, offset, length, mode));
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(fh, offset, whence) {
            Ok(offset) => reply.offset(offset),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let result = self.copy_range(req, fh_in, offset_in, fh_out, offset_out, len, flags.bits());
        reply_written(reply, result);
    }
}
