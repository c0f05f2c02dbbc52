//! The trait that a file system implements.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finesse_ipc::table::Lending;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FopenFlags, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, RenameFlags, TimeOrNow,
    WriteFlags,
};
use log::warn;

use crate::bpf::XattrFree;
use crate::policy::Policy;
use crate::reply::{
    PollNotifier, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr,
};
use crate::request::Request;

/// One inode of a [`Filesystem::batch_forget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgetOne {
    nodeid: INodeNo,
    nlookup: u64,
}

impl ForgetOne {
    /// Forget `nlookup` references to `nodeid`.
    pub fn new(nodeid: INodeNo, nlookup: u64) -> Self {
        Self { nodeid, nlookup }
    }

    /// The inode.
    pub fn nodeid(&self) -> INodeNo {
        self.nodeid
    }

    /// How many references are given up.
    pub fn nlookup(&self) -> u64 {
        self.nlookup
    }
}

/// What the bypass may assume of a file system beyond what every FUSE file system promises.
///
/// All that could go wrong is off by default, which is right for any file system that was written for fuser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bypass {
    /// The descriptor behind a [`BackingId`](crate::BackingId) may be handed to the program that opened the
    /// file, and the open file be released at once. Off: the file system relies on `release` being the last
    /// that is heard of an open file. Locks on such a descriptor are locks on the backing file; so `setlk` and `getlk` must be about
    /// that, too, and `FUSE_POSIX_LOCKS` and `FUSE_FLOCK_LOCKS` be asked for, or programs on the two roads do not exclude each other.
    pub grants: bool,
    /// Files are opened virtually even so, and a descriptor is handed out ([`Filesystem::grant`]) only when the program asks for it because that
    /// pays: opening becomes cheaper, reading and writing much dearer.
    pub grants_on_request: bool,
    /// The backing file's attributes, `st_dev` and `st_ino` aside, are the file's.
    pub backing_attrs: bool,
    /// `unlink`, `rmdir`, `rename`, `link` and the creating operations answer `EISDIR`, `ENOTDIR`, `ENOTEMPTY`
    /// and `EEXIST` by themselves, as Linux would, so that no lookup is needed before them.
    pub checks_types: bool,
    /// The file system decides every permission itself, as the caller that [`Request`] names (user, group,
    /// supplementary groups).
    pub acts_as_caller: bool,
    /// The creating operations apply the umask themselves, as under `FUSE_DONT_MASK`, because something else (a
    /// default ACL) may take its place.
    pub applies_umask: bool,
    /// `readdir` lists, but for `.` and `..`, every name that `lookup` finds, written in the same way: none is hidden, made on demand, or
    /// found in upper case, too. Then what is not in a directory that was listed is known not to exist.
    pub lists_all: bool,
    /// What a directory lists changes only by requests, or is told of by a [`Notifier`](crate::Notifier), and whoever may read it gets the same. Then a
    /// listing is kept for as long as nothing changes, and neither `opendir` nor `readdir` need be called to list the directory again.
    pub keeps_listings: bool,
    /// Methods may be called at the same time even if the session has one thread ([`Config::n_threads`](crate::Config)), as fuser's have by default. Otherwise
    /// a file system that was written for one thread is asked by turns, whichever road the requests come by.
    pub calls_at_once: bool,
    /// Size in bytes of the mount's metadata table, in which programs look names and attributes up by themselves, for as long as the
    /// times to live allow: [`Bypass::TABLE`] by default, 0 for none. It takes memory only where it is used: up to 220 bytes for a
    /// name with its attributes.
    pub table: usize,
}

impl Default for Bypass {
    fn default() -> Self {
        Self::new()
    }
}

impl Bypass {
    /// Default size of a metadata table: room for a million names and attributes.
    pub const TABLE: usize = 256 << 20;

    /// Nothing assumed.
    pub const fn new() -> Self {
        Self {
            grants: false,
            grants_on_request: false,
            backing_attrs: false,
            checks_types: false,
            acts_as_caller: false,
            applies_umask: false,
            lists_all: false,
            keeps_listings: false,
            calls_at_once: false,
            table: Self::TABLE,
        }
    }

    /// Sets [`grants`](Self::grants).
    #[must_use]
    pub const fn with_grants(mut self, yes: bool) -> Self {
        self.grants = yes;
        self
    }

    /// Sets [`grants_on_request`](Self::grants_on_request).
    #[must_use]
    pub const fn with_grants_on_request(mut self, yes: bool) -> Self {
        self.grants_on_request = yes;
        self
    }

    /// Sets [`backing_attrs`](Self::backing_attrs).
    #[must_use]
    pub const fn with_backing_attrs(mut self, yes: bool) -> Self {
        self.backing_attrs = yes;
        self
    }

    /// Sets [`checks_types`](Self::checks_types).
    #[must_use]
    pub const fn with_checks_types(mut self, yes: bool) -> Self {
        self.checks_types = yes;
        self
    }

    /// Sets [`acts_as_caller`](Self::acts_as_caller).
    #[must_use]
    pub const fn with_acts_as_caller(mut self, yes: bool) -> Self {
        self.acts_as_caller = yes;
        self
    }

    /// Sets [`lists_all`](Self::lists_all).
    #[must_use]
    pub const fn with_lists_all(mut self, yes: bool) -> Self {
        self.lists_all = yes;
        self
    }

    /// Sets [`keeps_listings`](Self::keeps_listings).
    #[must_use]
    pub const fn with_keeps_listings(mut self, yes: bool) -> Self {
        self.keeps_listings = yes;
        self
    }

    /// Sets [`calls_at_once`](Self::calls_at_once).
    #[must_use]
    pub const fn with_calls_at_once(mut self, yes: bool) -> Self {
        self.calls_at_once = yes;
        self
    }

    /// Sets [`table`](Self::table).
    #[must_use]
    pub const fn with_table(mut self, bytes: usize) -> Self {
        self.table = bytes;
        self
    }

    /// Sets [`applies_umask`](Self::applies_umask).
    #[must_use]
    pub const fn with_applies_umask(mut self, yes: bool) -> Self {
        self.applies_umask = yes;
        self
    }
}

/// Logs that a method has no implementation, with the arguments that identify the request.
macro_rules! missing {
    ($method:literal, $($name:literal = $value:expr),+) => {
        warn!(concat!("no implementation of ", $method, "(", $($name, " = {:?} ",)+ ")"), $($value),+)
    };
}

/// A file system.
///
/// Method for method the trait of fuser 0.18, plus [`bypass`](Self::bypass) and [`grant`](Self::grant). Methods are called on behalf of both roads, the kernel's requests
/// and those of preloaded programs: by several threads at once if the session has several ([`Config::n_threads`](crate::Config)), and one after
/// the other if it has one and the file system does not say that [it does not mind](Bypass::calls_at_once). Each
/// gets a reply object and must answer through it exactly once, either before it returns or later from any
/// thread. The methods and their arguments mirror libfuse's `fuse_lowlevel_ops`.
///
/// Unless noted otherwise a default logs a warning and answers `ENOSYS`.
#[allow(clippy::too_many_arguments)]
pub trait Filesystem: Send + Sync + 'static {
    /// What the bypass may assume of this file system. Asked once, after [`init`](Self::init).
    fn bypass(&self) -> Bypass {
        Bypass::default()
    }

    /// Directories, relative to the root, below which every change is to be made through the kernel, so that whoever watches
    /// there hears of it. Asked once, with [`bypass`](Self::bypass).
    fn left_to_kernel(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Rules that are enforced on both roads before this file system is asked. Asked once, before anything else.
    fn policy(&self) -> Option<Arc<Policy>> {
        None
    }

    /// The kernel can answer for files without extended attributes, where it would otherwise ask every time. A file system that
    /// knows its files' attributes keeps `files` and tells of them: it is asked at most once, after [`init`](Self::init).
    /// The default drops it.
    fn xattr_free(&self, _files: XattrFree) {}

    /// The attributes of a file that nobody can write to, and how long they may be cached: nobody has the backing file open to write, or
    /// mapped so, be it by a descriptor that was [granted](Self::grant) or otherwise. `None` if somebody may, which is the default: then what
    /// [`getattr`](Self::getattr) answers is good for one answer only. Asked of files that were granted for writing, when their
    /// attributes are wanted, at most a hundred times a second.
    fn settled_attr(&self, _ino: INodeNo) -> Option<(FileAttr, Duration)> {
        None
    }

    /// A descriptor of the backing file of a file that was opened by [`ReplyOpen::opened_grantable`] or
    /// [`ReplyCreate::created_grantable`], for the program that has it open. The offset and the flags of its open file description are the
    /// program's from then on: here it may be read and written by offset at most. Only asked if [`Bypass::grants`] is set.
    ///
    /// # Errors
    /// Whatever they are, the program has the file without one. The default is `ENOSYS`.
    fn grant(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle) -> io::Result<OwnedFd> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Which files programs on the bypass may open to read by themselves, in directories of the backing file system that they are
    /// [lent](Self::lend): that takes no round trip, and as long as natively. Only asked where files are granted ([`Bypass::grants`],
    /// [`Bypass::backing_attrs`]), when the bypass begins and whenever mounts have changed. The default is none.
    ///
    /// Whoever lends promises for every regular file that has one name: its node id is its inode number in the backing file system, which is
    /// one device; whatever is changed by this file system is there before it is answered; and the permissions there are the file's.
    fn lends(&self) -> Lending {
        Lending::Nothing
    }

    /// An `O_PATH` descriptor of the backing directory of `ino`, for a program that has reached it. What is opened in it
    /// must be on a mount that nobody can write to, execute with other rights, or use devices of, and that does not
    /// change times of last access; and nobody may get from it to a directory outside of this file system. Only asked if
    /// something [is lent](Self::lends).
    ///
    /// # Errors
    /// Whatever they are, the program goes on asking for each file. The default is `ENOSYS`.
    fn lend(&self, _req: &Request, _ino: INodeNo) -> io::Result<OwnedFd> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// A descriptor of the backing file, as [`grant`](Self::grant) gives it, for one that a program has opened in a directory that it was [lent](Self::lend), and
    /// through which it cannot change mode, owner, times or extended attributes. `file` is what a program has sent: it may be anything.
    ///
    /// # Errors
    /// If it is no file that was opened so; the program gets `EROFS` then. The default is `ENOSYS`.
    fn exchange(&self, _req: &Request, _file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    /// Called once, before any other method, while the connection to the kernel is set up through `config`.
    ///
    /// # Errors
    /// An error ends the session; its errno reaches the kernel.
    fn init(&mut self, _req: &Request, _config: &mut KernelConfig) -> io::Result<()> {
        Ok(())
    }

    /// Called once, after every other method has returned.
    fn destroy(&mut self) {}

    /// What became of unlinks that were acknowledged before they were done, for `finesse status`; `None` if none are.
    fn deferred_unlinks(&self) -> Option<crate::passthrough::DeferredCounts> {
        None
    }

    /// Finds `name` in the directory `parent` and takes a reference to what it names.
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        missing!("lookup", "parent" = parent, "name" = name);
        reply.error(Errno::ENOSYS);
    }

    /// Gives up `nlookup` references. There is one reference for every answered lookup, for every name made
    /// (`create`, `mknod`, `mkdir`, `symlink`, `link`) and for every entry of a `readdirplus`. References
    /// that are left at the unmount need not be given up one by one. The default does nothing.
    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    /// Gives up references to many inodes. The default calls [`forget`](Self::forget) for each.
    ///
    /// Only the bypass calls this; fuser hands on what the kernel forgets one by one.
    fn batch_forget(&self, req: &Request, nodes: &[ForgetOne]) {
        for node in nodes {
            self.forget(req, node.nodeid(), node.nlookup());
        }
    }

    /// The attributes of `ino`; `fh` is given if the caller asked through an open file.
    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        missing!("getattr", "ino" = ino, "fh" = fh);
        reply.error(Errno::ENOSYS);
    }

    /// Changes those attributes that are given: mode, owner, size (truncate), times.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        missing!(
            "setattr",
            "ino" = ino,
            "mode" = mode,
            "uid" = uid,
            "gid" = gid,
            "size" = size,
            "fh" = fh,
            "flags" = flags
        );
        reply.error(Errno::ENOSYS);
    }

    /// The target of a symbolic link.
    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        missing!("readlink", "ino" = ino);
        reply.error(Errno::ENOSYS);
    }

    /// Makes a regular file, device, FIFO or socket, and takes a reference to it. The kernel has applied
    /// `umask` to `mode` already unless `FUSE_DONT_MASK` was negotiated.
    fn mknod(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        missing!("mknod", "parent" = parent, "name" = name, "mode" = mode, "umask" = umask, "rdev" = rdev);
        reply.error(Errno::ENOSYS);
    }

    /// Makes a directory and takes a reference to it.
    fn mkdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        missing!("mkdir", "parent" = parent, "name" = name, "mode" = mode, "umask" = umask);
        reply.error(Errno::ENOSYS);
    }

    /// Removes a name that is not a directory.
    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        missing!("unlink", "parent" = parent, "name" = name);
        reply.error(Errno::ENOSYS);
    }

    /// Removes an empty directory.
    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        missing!("rmdir", "parent" = parent, "name" = name);
        reply.error(Errno::ENOSYS);
    }

    /// Makes a symbolic link and takes a reference to it. The default answers `EPERM`, as a file system
    /// without symbolic links does.
    fn symlink(&self, _req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        missing!("symlink", "parent" = parent, "link_name" = link_name, "target" = target);
        reply.error(Errno::EPERM);
    }

    /// Renames; `flags` as in renameat2(2).
    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        missing!(
            "rename",
            "parent" = parent,
            "name" = name,
            "newparent" = newparent,
            "newname" = newname,
            "flags" = flags
        );
        reply.error(Errno::ENOSYS);
    }

    /// Makes a hard link and takes a reference to the inode. The default answers `EPERM`, as a file system
    /// without hard links does.
    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        missing!("link", "ino" = ino, "newparent" = newparent, "newname" = newname);
        reply.error(Errno::EPERM);
    }

    /// Opens a file. `flags` are those of open(2) without `O_CREAT`, `O_EXCL`, `O_NOCTTY` and, unless
    /// `FUSE_ATOMIC_O_TRUNC` was negotiated, `O_TRUNC`. The handle in the answer comes back in every later
    /// call on the open file. The default opens everything with handle 0.
    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    /// Reads `size` bytes at `offset`; fewer only at the end of the file, unless it was opened with
    /// `FOPEN_DIRECT_IO`. The program sees what is missing before the end as zeros.
    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        missing!(
            "read",
            "ino" = ino,
            "fh" = fh,
            "offset" = offset,
            "size" = size,
            "flags" = flags,
            "lock_owner" = lock_owner
        );
        reply.error(Errno::ENOSYS);
    }

    /// Writes all of `data` at `offset`; less only on a file that was opened with `FOPEN_DIRECT_IO`. With
    /// `FUSE_WRITE_CACHE` in `write_flags` the data come from the page cache, and the caller may be another
    /// than the writer.
    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        missing!(
            "write",
            "ino" = ino,
            "fh" = fh,
            "offset" = offset,
            "data.len()" = data.len(),
            "write_flags" = write_flags,
            "flags" = flags,
            "lock_owner" = lock_owner
        );
        reply.error(Errno::ENOSYS);
    }

    /// Called at each close(2) of a descriptor of an open file, so any number of times per open. What it
    /// answers is what close(2) returns. Locks that belong to `lock_owner` end here.
    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        missing!("flush", "ino" = ino, "fh" = fh, "lock_owner" = lock_owner);
        reply.error(Errno::ENOSYS);
    }

    /// Called once per open, when the last descriptor and the last mapping of the open file are gone. No
    /// program sees the answer. The default succeeds.
    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// Makes the file's contents durable, and unless `datasync` its attributes too.
    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        missing!("fsync", "ino" = ino, "fh" = fh, "datasync" = datasync);
        reply.error(Errno::ENOSYS);
    }

    /// Opens a directory. The default opens everything with handle 0.
    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    /// Lists a directory from `offset` on: 0, or what an earlier entry gave as its offset. An answer without
    /// entries is the end.
    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        missing!("readdir", "ino" = ino, "fh" = fh, "offset" = offset);
        reply.error(Errno::ENOSYS);
    }

    /// [`readdir`](Self::readdir) and [`lookup`](Self::lookup) of every entry in one. Called only if
    /// `FUSE_DO_READDIRPLUS` was negotiated.
    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        missing!("readdirplus", "ino" = ino, "fh" = fh, "offset" = offset);
        reply.error(Errno::ENOSYS);
    }

    /// Called once per `opendir`, at the end. The default succeeds.
    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// Makes a directory's entries durable, and unless `datasync` its attributes too.
    fn fsyncdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        missing!("fsyncdir", "ino" = ino, "fh" = fh, "datasync" = datasync);
        reply.error(Errno::ENOSYS);
    }

    /// Size and free space. The default reports a file system of size 0.
    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, 512, 255, 0);
    }

    /// Sets an extended attribute; `flags` as in setxattr(2). `position` is 0 on Linux.
    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        _value: &[u8],
        flags: i32,
        position: u32,
        reply: ReplyEmpty,
    ) {
        missing!("setxattr", "ino" = ino, "name" = name, "flags" = flags, "position" = position);
        reply.error(Errno::ENOSYS);
    }

    /// An extended attribute's value: its length if `size` is 0, else the value, or `ERANGE` if it is longer
    /// than `size`.
    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        missing!("getxattr", "ino" = ino, "name" = name, "size" = size);
        reply.error(Errno::ENOSYS);
    }

    /// The names of all extended attributes, each ended by a zero byte; `size` as in
    /// [`getxattr`](Self::getxattr).
    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        missing!("listxattr", "ino" = ino, "size" = size);
        reply.error(Errno::ENOSYS);
    }

    /// Removes an extended attribute.
    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        missing!("removexattr", "ino" = ino, "name" = name);
        reply.error(Errno::ENOSYS);
    }

    /// Answers access(2). Not called with the mount option `default_permissions`.
    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        missing!("access", "ino" = ino, "mask" = mask);
        reply.error(Errno::ENOSYS);
    }

    /// Makes a regular file unless it exists, opens it, and takes a reference to it. `flags` are those of
    /// open(2). A file system that answers `ENOSYS` gets `mknod` and `open` instead; one that answers `EEXIST` without
    /// `O_EXCL` gets `lookup` and `open`.
    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        missing!("create", "parent" = parent, "name" = name, "mode" = mode, "umask" = umask, "flags" = flags);
        reply.error(Errno::ENOSYS);
    }

    /// Tells which lock, if any, stands in the way of the one described.
    fn getlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        missing!(
            "getlk",
            "ino" = ino,
            "fh" = fh,
            "lock_owner" = lock_owner,
            "start" = start,
            "end" = end,
            "typ" = typ,
            "pid" = pid
        );
        reply.error(Errno::ENOSYS);
    }

    /// Takes, changes or gives up a record lock, waiting for it if `sleep`. Without an implementation the
    /// kernel keeps the locks of this machine by itself.
    fn setlk(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        missing!(
            "setlk",
            "ino" = ino,
            "fh" = fh,
            "lock_owner" = lock_owner,
            "start" = start,
            "end" = end,
            "typ" = typ,
            "pid" = pid,
            "sleep" = sleep
        );
        reply.error(Errno::ENOSYS);
    }

    /// Where block `idx` of the file, in units of `blocksize` bytes, lies on the device. Only for mounts with
    /// the option `blkdev`.
    fn bmap(&self, _req: &Request, ino: INodeNo, blocksize: u32, idx: u64, reply: ReplyBmap) {
        missing!("bmap", "ino" = ino, "blocksize" = blocksize, "idx" = idx);
        reply.error(Errno::ENOSYS);
    }

    /// An ioctl(2) whose argument has the size that its number says.
    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        missing!(
            "ioctl",
            "ino" = ino,
            "fh" = fh,
            "flags" = flags,
            "cmd" = cmd,
            "in_data.len()" = in_data.len(),
            "out_size" = out_size
        );
        reply.error(Errno::ENOSYS);
    }

    /// Which of `events` are there. If `flags` ask for it, `ph` is to be notified when that changes.
    fn poll(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        missing!("poll", "ino" = ino, "fh" = fh, "ph" = ph, "events" = events, "flags" = flags);
        reply.error(Errno::ENOSYS);
    }

    /// Reserves or frees space; `mode` as in fallocate(2).
    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        missing!("fallocate", "ino" = ino, "fh" = fh, "offset" = offset, "length" = length, "mode" = mode);
        reply.error(Errno::ENOSYS);
    }

    /// Finds the next data or hole; `whence` is `SEEK_DATA` or `SEEK_HOLE`.
    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        missing!("lseek", "ino" = ino, "fh" = fh, "offset" = offset, "whence" = whence);
        reply.error(Errno::ENOSYS);
    }

    /// Copies between two open files, as copy_file_range(2) does.
    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        missing!(
            "copy_file_range",
            "ino_in" = ino_in,
            "fh_in" = fh_in,
            "offset_in" = offset_in,
            "ino_out" = ino_out,
            "fh_out" = fh_out,
            "offset_out" = offset_out,
            "len" = len,
            "flags" = flags
        );
        reply.error(Errno::ENOSYS);
    }
}
