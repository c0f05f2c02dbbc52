//! Open files and directories. A file handle (`fh`) is the number of the backing descriptor, which is unique
//! for as long as it is open, or a number beyond all descriptors for an open file that shares one.

#![deny(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashMap;
use parking_lot::{Mutex, RwLock};
use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, fcntl_setfl, openat};
use rustix::io::{Errno, Result};

use super::credentials;
use super::inodes::ProcPath;
use crate::{BackingId, FileHandle, LockOwner};

const SHARDS: usize = 16;

/// The descriptor of an open file.
enum Descriptor {
    /// Its own.
    Own(OwnedFd),
    /// Shared with others who read the file, until it needs one of its own.
    Shared { fd: Arc<OwnedFd>, number: u64, own: OnceLock<OwnedFd> },
}

/// An open regular file.
pub(super) struct OpenFile {
    fd: Descriptor,
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
        Self::with(Descriptor::Own(fd), id, writable, appends)
    }

    /// An open file of node `id` that is read by a descriptor that others read by as well, each at offsets of their own.
    pub(super) fn sharing(fd: Arc<OwnedFd>, id: u64) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(FIRST_SHARED);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self::with(Descriptor::Shared { fd, number, own: OnceLock::new() }, id, false, false)
    }

    fn with(fd: Descriptor, id: u64, writable: bool, appends: bool) -> Self {
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

    /// A descriptor whose open file description nobody else uses: for what belongs to that, such as locks.
    ///
    /// # Errors
    /// Those of opening the file again.
    pub(super) fn own(&self) -> Result<BorrowedFd<'_>> {
        match &self.fd {
            Descriptor::Own(fd) => Ok(fd.as_fd()),
            Descriptor::Shared { own, .. } => match own.get() {
                Some(fd) => Ok(fd.as_fd()),
                // Of two that race, one is closed again at once.
                None => {
                    let again = self.again()?;
                    Ok(own.get_or_init(|| again).as_fd())
                }
            },
        }
    }

    /// Its descriptor, if it is its own.
    ///
    /// # Errors
    /// The file itself, if it reads by a descriptor that others read by as well.
    pub(super) fn into_own(self) -> std::result::Result<OwnedFd, Self> {
        match self.fd {
            Descriptor::Own(fd) => Ok(fd),
            fd => Err(Self { fd, ..self }),
        }
    }

    /// A descriptor for somebody else to have: with an open file description that is used here by offset at most.
    ///
    /// # Errors
    /// Those of opening the file again, or of duplicating a descriptor.
    pub(super) fn for_others(&self) -> Result<OwnedFd> {
        match &self.fd {
            Descriptor::Own(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
            Descriptor::Shared { .. } => self.again(),
        }
    }

    /// Opens the file that a shared descriptor reads once more. Whoever has opened it was allowed to.
    fn again(&self) -> Result<OwnedFd> {
        credentials::become_daemon()?;
        openat(CWD, ProcPath::of(self).as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// `F_SETFL` has taken `O_APPEND` away of what the program has, of which only its next write tells.
    pub(super) fn append_no_more(&self) -> Result<()> {
        if self.appends.load(Ordering::Relaxed) {
            fcntl_setfl(self, fcntl_getfl(self)? - OFlags::APPEND)?;
            self.appends.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Descriptor::Own(fd) => fd.as_fd(),
            Descriptor::Shared { fd, own, .. } => own.get().map_or(fd.as_fd(), OwnedFd::as_fd),
        }
    }
}

impl Open for OpenFile {
    fn number(&self) -> u64 {
        match &self.fd {
            Descriptor::Own(fd) => fd.as_raw_fd() as u64,
            Descriptor::Shared { number, .. } => *number,
        }
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

impl Open for OpenDirectory {
    fn number(&self) -> u64 {
        self.fd.as_raw_fd() as u64
    }
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// No descriptor has this number, or a greater one.
const FIRST_SHARED: u64 = 1 << 32;

/// Something open.
pub(super) trait Open {
    /// Its file handle.
    fn number(&self) -> u64;
}

type Shard<T> = RwLock<HashMap<u64, Arc<T>>>;

/// A table of what is open.
pub(super) struct Handles<T> {
    shards: Box<[Shard<T>]>,
}

impl<T: Open> Handles<T> {
    /// Nothing open.
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    fn shard(&self, number: u64) -> &Shard<T> {
        &self.shards[number as usize % SHARDS]
    }

    /// Adds an open object; the answer is its file handle.
    pub(super) fn insert(&self, object: &Arc<T>) -> FileHandle {
        let number = object.number();
        self.shard(number).write().insert(number, Arc::clone(object));
        FileHandle(number)
    }

    /// The object behind a file handle.
    ///
    /// # Errors
    /// `EBADF` for a file handle that was never given out or is released.
    pub(super) fn get(&self, fh: FileHandle) -> Result<Arc<T>> {
        self.shard(fh.0).read().get(&fh.0).cloned().ok_or(Errno::BADF)
    }

    /// Takes the object out. It closes when the last operation that uses it ends.
    pub(super) fn remove(&self, fh: FileHandle) -> Option<Arc<T>> {
        self.shard(fh.0).write().remove(&fh.0)
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

    /// Whether somebody has the inode open for writing.
    pub(super) fn is_written(&self, id: u64) -> bool {
        let shard = self.shard(id).lock();
        shard.get(&id).is_some_and(|inode| inode.files.iter().any(|file| file.writable))
    }

    /// Some open file of the inode: the way to an inode that has lost its last name, or whose name is not known
    /// any more.
    pub(super) fn any(&self, id: u64) -> Option<Arc<OpenFile>> {
        let shard = self.shard(id).lock();
        let files = &shard.get(&id)?.files;
        files.iter().find(|file| file.writable).or_else(|| files.first()).cloned()
    }
}
