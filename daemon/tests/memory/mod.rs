//! A small file system in memory that gives no backing descriptors, notes what it is asked, and fails the test if a
//! handle is released twice or a reference given up that nobody had.

pub mod client;
pub mod map;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use finesse::{
    BackgroundSession, BsdFileFlags, Bypass, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Road,
    SessionACL, TimeOrNow, WriteFlags,
};
use finesse_ipc::client::Client;
use parking_lot::Mutex;

const TTL: Duration = Duration::from_secs(60);

struct Node {
    attr: FileAttr,
    data: Vec<u8>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// References that somebody holds.
    lookups: u64,
    /// Handles that are open.
    opens: u64,
}

#[derive(Default)]
struct State {
    names: BTreeMap<OsString, u64>,
    nodes: BTreeMap<u64, Node>,
    /// How often each handle was flushed, and whether it was released.
    handles: BTreeMap<u64, (u64, bool)>,
    /// What went wrong, if anything.
    broken: Vec<String>,
    next: u64,
}

/// What the test sees of the file system.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
    /// `read` calls.
    pub reads: AtomicU64,
    /// `write` calls that have begun.
    pub writes: AtomicU64,
    /// `write` does not write as long as this is set.
    pub hold_writes: AtomicBool,
    /// `fsync` calls.
    pub syncs: AtomicU64,
    /// `flush` answers EDQUOT.
    pub full_at_flush: AtomicBool,
    /// `flush` does not answer as long as this is set.
    pub hold_flush: AtomicBool,
    /// `create` of a bypass client does not answer as long as this is set.
    pub hold_create: AtomicBool,
    /// It promises backing descriptors, and gives none.
    pub promises_grants: AtomicBool,
    /// What it creates is a stream.
    pub creates_streams: AtomicBool,
    /// `create` is not implemented.
    pub cannot_create: AtomicBool,
    /// `mknod` is not implemented.
    pub cannot_make: AtomicBool,
    /// Lookups find nothing until somebody makes a name: as if all names came to be just then.
    pub late: AtomicBool,
}

fn attr(ino: u64, kind: FileType, mode: u32, req: Option<&Request>) -> FileAttr {
    let now = SystemTime::now();
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: UNIX_EPOCH,
        kind,
        perm: (mode & 0o7777) as u16,
        nlink: 1,
        uid: req.map_or(0, Request::uid),
        gid: req.map_or(0, Request::gid),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Memory {
    pub fn new() -> Arc<Self> {
        let memory = Self::default();
        memory.state.lock().next = 1;
        Arc::new(memory)
    }

    /// Handles that are open.
    pub fn open_handles(&self) -> usize {
        self.state.lock().handles.values().filter(|(_, released)| !released).count()
    }

    /// How often every handle that ever was has been flushed.
    pub fn flushes(&self) -> Vec<u64> {
        self.state.lock().handles.values().map(|(flushes, _)| *flushes).collect()
    }

    /// Files that take memory.
    pub fn nodes(&self) -> usize {
        self.state.lock().nodes.len()
    }

    pub fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock();
        state.nodes[&state.names[OsStr::new(name)]].data.clone()
    }

    pub fn xattrs(&self, name: &str) -> Vec<String> {
        let state = self.state.lock();
        let node = &state.nodes[&state.names[OsStr::new(name)]];
        node.xattrs.keys().map(|name| name.to_str().unwrap().to_owned()).collect()
    }

    /// Gives a file an attribute that only root could.
    pub fn set_xattr(&self, name: &str, xattr: &str, value: &[u8]) {
        let mut state = self.state.lock();
        let ino = state.names[OsStr::new(name)];
        state.nodes.get_mut(&ino).unwrap().xattrs.insert(xattr.into(), value.into());
    }

    /// Nothing was released twice, and no reference given up that was not there.
    pub fn assert_sound(&self) {
        assert_eq!(self.state.lock().broken, Vec::<String>::new());
    }
}

impl State {
    fn open(&mut self, ino: u64) -> FileHandle {
        self.nodes.get_mut(&ino).unwrap().opens += 1;
        self.next += 1;
        self.handles.insert(self.next, (0, false));
        FileHandle(self.next)
    }

    /// An inode without name, reference and handle is gone.
    fn collect(&mut self, ino: u64) {
        let Some(node) = self.nodes.get(&ino) else { return };
        if node.attr.nlink == 0 && node.lookups == 0 && node.opens == 0 {
            self.nodes.remove(&ino);
        }
    }

    fn make(&mut self, req: &Request, name: &OsStr, mode: u32) -> Result<FileAttr, Errno> {
        if self.names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.next += 1;
        let attr = attr(self.next, FileType::RegularFile, mode, Some(req));
        self.names.insert(name.into(), self.next);
        let node = Node { attr, data: Vec::new(), xattrs: BTreeMap::new(), lookups: 1, opens: 0 };
        self.nodes.insert(self.next, node);
        Ok(attr)
    }
}

/// The file system of a [`Memory`].
pub struct Fs(pub Arc<Memory>);

impl Filesystem for Fs {
    fn bypass(&self) -> Bypass {
        let promises = self.0.promises_grants.load(Ordering::SeqCst);
        Bypass::new().with_grants(promises).with_backing_attrs(promises)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.state.lock();
        let is_there = parent == INodeNo::ROOT && !self.0.late.load(Ordering::SeqCst);
        match state.names.get(name).copied().filter(|_| is_there) {
            Some(ino) => {
                let node = state.nodes.get_mut(&ino).unwrap();
                node.lookups += 1;
                reply.entry(&TTL, &node.attr, Generation(ino));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let mut state = self.0.state.lock();
        match state.nodes.get_mut(&ino.0) {
            Some(node) if node.lookups >= nlookup => node.lookups -= nlookup,
            Some(node) => {
                let complaint = format!("{nlookup} references of {} to {ino:?} forgotten", node.lookups);
                state.broken.push(complaint);
            }
            None if ino == INodeNo::ROOT => {}
            None => state.broken.push(format!("{ino:?} forgotten, which was gone")),
        }
        state.collect(ino.0);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attr(1, FileType::Directory, 0o777, None));
        }
        match self.0.state.lock().nodes.get(&ino.0) {
            Some(node) => reply.attr(&TTL, &node.attr),
            None => reply.error(Errno::ESTALE),
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
        let mut state = self.0.state.lock();
        let Some(node) = state.nodes.get_mut(&ino.0) else { return reply.error(Errno::ESTALE) };
        if let Some(size) = size {
            if size > 1 << 30 {
                return reply.error(Errno::EFBIG);
            }
            node.data.resize(size as usize, 0);
            node.attr.size = size;
            node.attr.mtime = SystemTime::now();
        }
        node.attr.perm = mode.map_or(node.attr.perm, |mode| (mode & 0o7777) as u16);
        node.attr.uid = uid.unwrap_or(node.attr.uid);
        node.attr.gid = gid.unwrap_or(node.attr.gid);
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        };
        node.attr.atime = atime.map_or(node.attr.atime, time);
        node.attr.mtime = mtime.map_or(node.attr.mtime, time);
        node.attr.ctime = SystemTime::now();
        reply.attr(&TTL, &node.attr);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.state.lock();
        match state.names.remove(name) {
            Some(ino) => {
                state.nodes.get_mut(&ino).unwrap().attr.nlink = 0;
                state.collect(ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        if self.0.cannot_create.load(Ordering::SeqCst) {
            return reply.error(Errno::ENOSYS);
        }
        self.0.late.store(false, Ordering::SeqCst);
        let mut state = self.0.state.lock();
        let made = state.make(req, name, mode).map(|attr| (attr, state.open(attr.ino.0)));
        drop(state);
        if req.road() == Road::Bypass {
            eventually("`create` may answer", || !self.0.hold_create.load(Ordering::SeqCst));
        }
        match made {
            Ok((attr, fh)) => {
                let streams = self.0.creates_streams.load(Ordering::SeqCst);
                let flags = if streams { FopenFlags::FOPEN_STREAM } else { FopenFlags::empty() };
                reply.created(&TTL, &attr, Generation(attr.ino.0), fh, flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        if self.0.cannot_make.load(Ordering::SeqCst) {
            return reply.error(Errno::ENOSYS);
        }
        self.0.late.store(false, Ordering::SeqCst);
        match self.0.state.lock().make(req, name, mode) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(attr.ino.0)),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let mut state = self.0.state.lock();
        if !state.nodes.contains_key(&ino.0) {
            return reply.error(Errno::ESTALE);
        }
        let fh = state.open(ino.0);
        reply.opened(fh, FopenFlags::empty());
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
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let state = self.0.state.lock();
        let data = &state.nodes[&ino.0].data;
        let start = (offset as usize).min(data.len());
        reply.data(&data[start..data.len().min(start + size as usize)]);
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
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        while self.0.hold_writes.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut state = self.0.state.lock();
        let node = state.nodes.get_mut(&ino.0).unwrap();
        if offset > 1 << 30 {
            return reply.error(Errno::EFBIG);
        }
        let (start, end) = (offset as usize, offset as usize + data.len());
        if node.data.len() < end {
            node.data.resize(end, 0);
        }
        node.data[start..end].copy_from_slice(data);
        node.attr.size = node.data.len() as u64;
        node.attr.mtime = SystemTime::now();
        node.attr.ctime = node.attr.mtime;
        reply.written(data.len() as u32);
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        while self.0.hold_flush.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.0.state.lock().handles.get_mut(&fh.0).unwrap().0 += 1;
        match self.0.full_at_flush.load(Ordering::SeqCst) {
            true => reply.error(Errno::from_i32(libc::EDQUOT)),
            false => reply.ok(),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.state.lock();
        if std::mem::replace(&mut state.handles.get_mut(&fh.0).unwrap().1, true) {
            state.broken.push(format!("{fh:?} released twice"));
        }
        match state.nodes.get_mut(&ino.0) {
            Some(node) => node.opens -= 1,
            None => state.broken.push(format!("{ino:?} was gone when it was released")),
        }
        state.collect(ino.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.syncs.fetch_add(1, Ordering::SeqCst);
        reply.ok();
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
        let mut state = self.0.state.lock();
        let node = state.nodes.get_mut(&ino.0).unwrap();
        let end = (offset + length) as usize;
        if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
            let (start, end) = ((offset as usize).min(node.data.len()), end.min(node.data.len()));
            node.data[start..end].fill(0);
        } else if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && node.data.len() < end {
            node.data.resize(end, 0);
            node.attr.size = end as u64;
        }
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.0.state.lock();
        for (index, (name, ino)) in state.names.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), index as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1000, 500, 400, 100, 50, 4096, 255, 4096);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let state = self.0.state.lock();
        match state.nodes.get(&ino.0).and_then(|node| node.xattrs.get(name)) {
            Some(value) if size == 0 => reply.size(value.len() as u32),
            Some(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Some(value) => reply.data(value),
            None => reply.error(Errno::from_i32(libc::ENODATA)),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let state = self.0.state.lock();
        let names = state.nodes[&ino.0].xattrs.keys();
        let list: Vec<u8> = names.flat_map(|name| [name.as_encoded_bytes(), b"\0"].concat()).collect();
        match size as usize {
            0 => reply.size(list.len() as u32),
            size if size < list.len() => reply.error(Errno::ERANGE),
            _ => reply.data(&list),
        }
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
        let mut state = self.0.state.lock();
        let xattrs = &mut state.nodes.get_mut(&ino.0).unwrap().xattrs;
        match (flags, xattrs.contains_key(name)) {
            (libc::XATTR_CREATE, true) => reply.error(Errno::EEXIST),
            (libc::XATTR_REPLACE, false) => reply.error(Errno::from_i32(libc::ENODATA)),
            _ => {
                xattrs.insert(name.into(), value.into());
                reply.ok();
            }
        }
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.0.state.lock().nodes.get_mut(&ino.0).unwrap().xattrs.remove(name) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::from_i32(libc::ENODATA)),
        }
    }
}

/// A mount of a [`Memory`], or of another file system; unmounted on drop.
pub struct Mount {
    session: Option<BackgroundSession>,
    directory: tempfile::TempDir,
}

impl Mount {
    /// Mounts for all users, with the kernel checking permissions.
    pub fn new<FS: Filesystem>(fs: FS) -> Self {
        let directory = tempfile::Builder::new().prefix("finesse-virtual-").tempdir().unwrap();
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.mount_options = vec![MountOption::DefaultPermissions];
        config.n_threads = Some(4);
        let session = finesse::spawn_mount(fs, directory.path(), &config)
            .expect("these tests need /dev/fuse and the right to mount for all users");
        Self { session: Some(session), directory }
    }

    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub fn client(&self) -> Client {
        let mut name = vec![0; 256];
        let len = rustix::fs::getxattr(self.path(), finesse_ipc::handshake::SOCKET_XATTR, &mut name)
            .expect("the mount's root names the socket");
        Client::connect(&name[..len], "test", 100).expect("the bypass accepts everybody")
    }

    /// Unmounts, so that everything is released. Others may look at the mount for a moment.
    pub fn end(mut self) {
        let flags = rustix::mount::UnmountFlags::empty();
        eventually("nobody uses the mount", || match rustix::mount::unmount(self.path(), flags) {
            Err(rustix::io::Errno::BUSY) => false,
            unmounted => {
                unmounted.expect("unmount");
                true
            }
        });
        self.session.take().unwrap().join().expect("the session ends with the mount");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            drop(session.umount_and_join());
        }
    }
}

/// Waits for a condition that must come true.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
