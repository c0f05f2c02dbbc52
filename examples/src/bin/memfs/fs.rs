//! The file system: every method decides in a function with a `Result`, and replies at its edge, when it holds no lock.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Bypass, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::RwLock;

use crate::contents::{Contents, PAGE, Space, end};
use crate::tree::{Body, Directory, FIRST_PLACE, Inode, NAME, Tree};

/// How long answers hold. Nothing changes behind the back of the two roads, so it could be for ever.
const TTL: Duration = Duration::from_secs(1);
/// The only generation: numbers of inodes are never used twice.
const GENERATION: Generation = Generation(0);

/// What the kernel may do with open files: keep their contents when they are closed, because nothing changes behind its
/// back, and not ask when a descriptor is closed, because that ends no lock here and finds no error.
const KEPT: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);
/// And with open directories: keep what they list.
const LISTING_KEPT: FopenFlags = FopenFlags::FOPEN_CACHE_DIR.union(FopenFlags::FOPEN_KEEP_CACHE);

/// A file system in memory.
pub(crate) struct MemFs {
    tree: RwLock<Tree>,
    space: Arc<Space>,
}

/// Whether the caller may see and change `trusted.*` (`xattr_permission` asks for CAP_SYS_ADMIN).
fn is_administrator(req: &Request) -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    req.credentials().map_or(req.uid() == 0, |credentials| credentials.caps & CAP_SYS_ADMIN != 0)
}

/// The name spaces that there are. Access control lists are not, so that mode bits are all there is to check.
fn known_xattr(name: &OsStr) -> Result<(), Errno> {
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    match spaces.iter().find_map(|space| name.as_bytes().strip_prefix(*space)) {
        Some(b"") => Err(Errno::EINVAL),
        Some(_) => Ok(()),
        None => Err(Errno::EOPNOTSUPP),
    }
}

fn reply_xattr(reply: ReplyXattr, value: Result<Vec<u8>, Errno>, size: u32) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

impl MemFs {
    /// An empty one for `size` bytes of contents, whose root directory belongs to `owner`.
    pub(crate) fn new(size: u64, (uid, gid): (u32, u32)) -> Self {
        Self { tree: RwLock::new(Tree::new(uid, gid, 0o755)), space: Arc::new(Space::new(size)) }
    }

    /// Does something with one inode, while others do the same with others.
    fn with<T>(&self, ino: INodeNo, act: impl FnOnce(&mut Inode) -> Result<T, Errno>) -> Result<T, Errno> {
        act(&mut *self.tree.read().inode(ino)?)
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        body: Body,
        mut perm: u32,
        rdev: u32,
    ) -> Result<FileAttr, Errno> {
        let mut tree = self.tree.write();
        tree.vacant(parent, name)?;
        let mut gid = req.gid();
        let above = tree.inode(parent)?;
        if above.perm & libc::S_ISGID != 0 {
            // `inode_init_owner`
            gid = above.gid;
            if matches!(body, Body::Directory(_)) {
                perm |= libc::S_ISGID;
            }
        }
        drop(above);
        let inode = tree.make(body, perm, req.uid(), gid, rdev);
        tree.add(parent, name, inode)
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let tree = self.tree.read();
        let mut inode = tree.inode(tree.child(parent, name)?)?;
        inode.lookups += 1;
        Ok(inode.attr())
    }

    fn allocate(&self, ino: INodeNo, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let range = offset..end(offset, length)?;
        self.with(ino, |inode| {
            let contents = inode.contents()?;
            match mode & !libc::FALLOC_FL_KEEP_SIZE {
                0 => contents.allocate(range.clone())?,
                libc::FALLOC_FL_PUNCH_HOLE => contents.clear(range.clone()),
                libc::FALLOC_FL_ZERO_RANGE => {
                    contents.clear(range.clone());
                    contents.allocate(range.clone())?;
                }
                _ => return Err(Errno::EOPNOTSUPP),
            }
            if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
                let size = contents.size().max(range.end);
                contents.resize(size);
            }
            inode.modified();
            Ok(())
        })
    }

    fn put(&self, ino: INodeNo, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        self.with(ino, |inode| {
            let written = inode.contents()?.write(offset, data)?;
            inode.modified();
            Ok(written as u32)
        })
    }

    fn get(&self, ino: INodeNo, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
        self.with(ino, |inode| {
            let data = inode.contents()?.read(offset, len);
            inode.accessed();
            Ok(data)
        })
    }
}

impl Filesystem for MemFs {
    fn bypass(&self) -> Bypass {
        // `Tree::rename` and `Tree::remove` look at types themselves. Nobody else changes anything.
        Bypass::new().with_checks_types(true).with_keeps_listings(true).with_calls_at_once(true)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(reply, self.find(parent, name));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let forgotten = self.with(ino, |inode| {
            inode.lookups = inode.lookups.saturating_sub(nlookup);
            Ok(inode.lookups == 0 && inode.nlink == 0)
        });
        if forgotten == Ok(true) {
            self.tree.write().reclaim(ino);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(ino, |inode| Ok(inode.attr())) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = SystemTime::now();
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now,
        };
        let changed = self.with(ino, |inode| {
            if let Some(size) = size {
                inode.contents()?.resize(end(size, 0)?);
                inode.mtime = now;
            }
            inode.perm = mode.map_or(inode.perm, |mode| mode & 0o7777);
            inode.uid = uid.unwrap_or(inode.uid);
            inode.gid = gid.unwrap_or(inode.gid);
            inode.atime = atime.map_or(inode.atime, time);
            inode.mtime = mtime.map_or(inode.mtime, time);
            inode.ctime = now;
            Ok(inode.attr())
        });
        match changed {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self.with(ino, |inode| {
            let Body::Symlink(target) = &inode.body else { return Err(Errno::EINVAL) };
            let target = target.clone();
            inode.accessed();
            Ok(target)
        });
        match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let body = match mode & libc::S_IFMT {
            libc::S_IFREG => Body::File(Contents::new(self.space.clone())),
            libc::S_IFIFO => Body::Special(FileType::NamedPipe),
            libc::S_IFSOCK => Body::Special(FileType::Socket),
            libc::S_IFCHR => Body::Special(FileType::CharDevice),
            libc::S_IFBLK => Body::Special(FileType::BlockDevice),
            _ => return reply.error(Errno::EINVAL),
        };
        reply_entry(reply, self.make(req, parent, name, body, mode, rdev));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let body = Body::Directory(Directory::new(parent));
        reply_entry(reply, self.make(req, parent, name, body, mode, 0));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.tree.write().remove(parent, name, false);
        reply_empty(reply, removed);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.tree.write().remove(parent, name, true);
        reply_empty(reply, removed);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let body = Body::Symlink(target.as_os_str().as_bytes().into());
        reply_entry(reply, self.make(req, parent, link_name, body, 0o777, 0));
    }

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
        let renamed = self.tree.write().rename((parent, name), (newparent, newname), flags.bits());
        reply_empty(reply, renamed);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let linked = (|| {
            let mut tree = self.tree.write();
            tree.vacant(newparent, newname)?;
            match &*tree.inode(ino)? {
                Inode { body: Body::Directory(_), .. } => return Err(Errno::EPERM),
                // `vfs_link`: what has been removed does not come back.
                Inode { nlink: 0, .. } => return Err(Errno::ENOENT),
                _ => {}
            }
            tree.link(newparent, newname, ino)?;
            let mut inode = tree.inode(ino)?;
            inode.lookups += 1;
            Ok(inode.attr())
        })();
        reply_entry(reply, linked);
    }

    // Open files have no state of their own: they all have the same handle.

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let body = Body::File(Contents::new(self.space.clone()));
        match self.make(req, parent, name, body, mode, 0) {
            Ok(attr) => reply.created(&TTL, &attr, GENERATION, FileHandle(0), KEPT),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.with(ino, |_| Ok(())) {
            Ok(()) => reply.opened(FileHandle(0), KEPT),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), LISTING_KEPT);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.get(ino, offset, size.into()) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.put(ino, offset, data) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, self.allocate(ino, offset, length, mode));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = self.with(ino, |inode| match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA | libc::SEEK_HOLE) => {
                inode.contents()?.seek(offset, whence == libc::SEEK_DATA)
            }
            (Err(_), _) => Err(Errno::ENXIO),
            _ => Err(Errno::EINVAL),
        });
        match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // A part is a success, too; more than this would hold up others.
        let data = self.get(ino_in, offset_in, len.min(256 * PAGE));
        match data.and_then(|data| self.put(ino_out, offset_out, &data)) {
            Ok(copied) => reply.written(copied),
            Err(errno) => reply.error(errno),
        }
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.with(ino, |inode| {
            let directory = inode.directory()?;
            let dots = [(1, ".", ino), (2, "..", directory.parent)];
            // An entry's offset is its own place: the next call goes on behind it.
            let full = dots
                .into_iter()
                .any(|(place, name, ino)| place > offset && reply.add(ino, place, FileType::Directory, name));
            let rest = directory.entries.range(offset.saturating_add(1).max(FIRST_PLACE)..);
            if !full {
                for (place, (name, ino, kind)) in rest {
                    if reply.add(*ino, *place, *kind, name) {
                        break;
                    }
                }
            }
            inode.accessed();
            Ok(())
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (total, free) = (self.space.total, self.space.free());
        // As many inodes as pages, by way of a number: nothing limits them.
        let files = total.max(self.tree.read().count());
        let unused = files - self.tree.read().count().min(files);
        reply.statfs(total, free, free, files, unused, PAGE as u32, NAME as u32, PAGE as u32);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let set =
            known_xattr(name).and_then(|()| self.with(ino, |inode| inode.set_xattr(name, value, flags)));
        reply_empty(reply, set);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value =
            known_xattr(name).and_then(|()| self.with(ino, |inode| Ok(inode.xattr(name)?.to_owned())));
        reply_xattr(reply, value, size);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let all = is_administrator(req);
        let names = self.with(ino, |inode| {
            let visible = inode.xattr_names().filter(|name| all || !name.as_bytes().starts_with(b"trusted."));
            Ok(visible.flat_map(|name| [name.as_bytes(), b"\0"]).collect::<Vec<_>>().concat())
        });
        reply_xattr(reply, names, size);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = known_xattr(name).and_then(|()| self.with(ino, |inode| inode.remove_xattr(name)));
        reply_empty(reply, removed);
    }
}
