//! Open files and directories. A file handle (`fh`) is the number of the backing descriptor, which is unique
//! for as long as it is open.

#![deny(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, Result};

use crate::{BackingId, FileHandle, LockOwner};

const SHARDS: usize = 16;

/// An open regular file.
pub(super) struct OpenFile {
    fd: OwnedFd,
    /// The node.
    pub(super) id: u64,
    /// Whether `fd` may be written to.
    pub(super) writable: bool,
    /// Whether `fd` writes at the end of the file, wherever it is told to write (`O_APPEND`).
    appends: AtomicBool,
    /// Whether it was opened on the kernel road.
    pub(super) kernel: bool,
    /// Whether the kernel serves it from `fd` by itself.
    pub(super) passthrough: bool,
    /// Whether flock(2) locks were taken on `fd`.
    pub(super) flocked: AtomicBool,
    /// Who has taken byte-range locks through this file and has not closed it since: at its end, the file itself, which
    /// owns open-file-description locks.
    pub(super) lockers: Mutex<Vec<LockOwner>>,
}

impl OpenFile {
    /// An open file of node `id`.
    pub(super) fn new(fd: OwnedFd, id: u64, writable: bool, appends: bool) -> Self {
        Self {
            fd,
            id,
            writable,
            appends: AtomicBool::new(appends),
            kernel: false,
            passthrough: false,
            flocked: AtomicBool::new(false),
            lockers: Mutex::default(),
        }
    }

    /// `F_SETFL` has taken `O_APPEND` away of what the program has, of which only its next write tells.
    pub(super) fn append_no_more(&self) -> Result<()> {
        if self.appends.load(Ordering::Relaxed) {
            fcntl_setfl(&self.fd, fcntl_getfl(&self.fd)? - OFlags::APPEND)?;
            self.appends.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An open directory.
pub(super) struct OpenDirectory {
    fd: OwnedFd,
    /// The node.
    pub(super) id: u64,
    /// Where the next getdents64(2) on `fd` starts. Readers of one directory stream take turns.
    pub(super) position: Mutex<u64>,
}

impl OpenDirectory {
    /// An open directory of node `id`, at its beginning.
    pub(super) fn new(fd: OwnedFd, id: u64) -> Self {
        Self { fd, id, position: Mutex::new(0) }
    }
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

type Shard<T> = RwLock<HashMap<i32, Arc<T>>>;

/// A table of what is open.
pub(super) struct Handles<T> {
    shards: Box<[Shard<T>]>,
}

impl<T: AsFd> Handles<T> {
    /// Nothing open.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    fn shard(&self, fd: i32) -> &Shard<T> {
        &self.shards[fd as usize % SHARDS]
    }

    /// Adds an open object; the answer is its file handle.
    pub(super) fn insert(&self, object: &Arc<T>) -> FileHandle {
        let fd = (**object).as_fd().as_raw_fd();
        self.shard(fd).write().insert(fd, Arc::clone(object));
        FileHandle(fd as u64)
    }

    /// The object behind a file handle.
    ///
    /// # Errors
    /// `EBADF` for a file handle that was never given out or is released.
    pub(super) fn get(&self, fh: FileHandle) -> Result<Arc<T>> {
        let fd = i32::try_from(fh.0).map_err(|_| Errno::BADF)?;
        self.shard(fd).read().get(&fd).cloned().ok_or(Errno::BADF)
    }

    /// Takes the object out. It closes when the last operation that uses it ends.
    pub(super) fn remove(&self, fh: FileHandle) -> Option<Arc<T>> {
        let fd = i32::try_from(fh.0).ok()?;
        self.shard(fd).write().remove(&fd)
    }
}

/// What the open files of one inode share.
#[derive(Default)]
struct OpenInode {
    files: Vec<Arc<OpenFile>>,
    /// The kernel demands that all passthrough opens of an inode name the same backing file
    /// (`fuse_inode_uncached_io_start`), and that an inode is not served both ways at once.
    backing: Option<Arc<BackingId>>,
}

/// The open files by inode.
pub(super) struct OpenInodes {
    shards: Box<[Mutex<HashMap<u64, OpenInode>>]>,
}

impl OpenInodes {
    /// Nothing open.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, OpenInode>> {
        &self.shards[id as usize % SHARDS]
    }

    /// Adds an open file that the daemon serves, or that was handed to a bypass client.
    pub(super) fn add(&self, file: OpenFile) -> Arc<OpenFile> {
        let file = Arc::new(file);
        self.shard(file.id).lock().entry(file.id).or_default().files.push(Arc::clone(&file));
        file
    }

    /// Adds a file that the kernel opens, through passthrough if all of the inode's other kernel opens are. `register`
    /// makes the backing file known to the kernel; if it cannot, the file is served by the daemon.
    pub(super) fn add_for_kernel(
        &self,
        mut file: OpenFile,
        register: impl FnOnce(BorrowedFd<'_>) -> Option<BackingId>,
    ) -> (Arc<OpenFile>, Option<Arc<BackingId>>) {
        let mut shard = self.shard(file.id).lock();
        let inode = shard.entry(file.id).or_default();
        if inode.backing.is_none() && !inode.files.iter().any(|file| file.kernel) {
            inode.backing = register(file.as_fd()).map(Arc::new);
        }
        file.kernel = true;
        file.passthrough = inode.backing.is_some();
        let file = Arc::new(file);
        inode.files.push(Arc::clone(&file));
        (file, inode.backing.clone())
    }

    /// Removes an open file.
    pub(super) fn remove(&self, file: &Arc<OpenFile>) {
        let mut shard = self.shard(file.id).lock();
        let Some(inode) = shard.get_mut(&file.id) else { return };
        inode.files.retain(|other| !Arc::ptr_eq(other, file));
        let passthrough_left = inode.files.iter().any(|file| file.passthrough);
        let backing = if passthrough_left { None } else { inode.backing.take() };
        if inode.files.is_empty() {
            shard.remove(&file.id);
        }
        drop(shard);
        drop(backing);
    }

    /// Some open file of the inode: the way to an inode that has lost its last name, or whose name is not known
    /// any more.
    pub(super) fn any(&self, id: u64) -> Option<Arc<OpenFile>> {
        let shard = self.shard(id).lock();
        let files = &shard.get(&id)?.files;
        files.iter().find(|file| file.writable).or_else(|| files.first()).cloned()
    }
}
