//! Puts what serves the kernel's requests behind fuser's trait.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, RenameFlags, TimeOrNow, WriteFlags,
};
use log::{error, warn};

use super::operations::Operations;
use super::uring::{self, Transport, UringSlot};
use crate::filesystem::Filesystem;
use crate::session::{Core, RingSlot};

/// How long the end of the session waits for others that still use the file system.
const LAST_USER_WAIT: Duration = Duration::from_secs(10);

/// Who is to be told of the end of a session whose mount was gone already: set once the session runs in a thread of
/// its own, which need not come back.
pub(crate) type Ended = Arc<OnceLock<mpsc::Sender<io::Result<()>>>>;

/// Receives the kernel's requests and hands them on, each with the hooks that its reply needs.
pub(crate) struct Adapter<FS: Filesystem> {
    /// Taken out at the end.
    operations: Option<Arc<Operations<FS>>>,
    /// Where they go when the file system is initialised. Until then they must have one owner, so that
    /// `init` can have the file system to itself.
    handoff: mpsc::Sender<Initialised<FS>>,
    transport: Transport,
    uring: UringSlot,
    ring: RingSlot,
    ended: Ended,
}

/// What there is once the file system is initialised.
pub(crate) struct Initialised<FS: Filesystem> {
    pub(crate) operations: Arc<Operations<FS>>,
    /// What the kernel was told to expect of rings, unless it shall only use its device.
    pub(crate) uring: Option<uring::Agreed>,
}

impl<FS: Filesystem> Adapter<FS> {
    pub(crate) fn new(
        core: Core<FS>,
        transport: Transport,
        handoff: mpsc::Sender<Initialised<FS>>,
        uring: UringSlot,
        ring: RingSlot,
        ended: Ended,
    ) -> Self {
        let operations = Some(Arc::new(Operations::new(core)));
        Self { operations, handoff, transport, uring, ring, ended }
    }

    fn operations(&self) -> &Operations<FS> {
        self.operations.as_deref().expect("fuser calls nothing after destroy")
    }
}

impl<FS: Filesystem> fuser::Filesystem for Adapter<FS> {
    fn init(&mut self, req: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        let fs = self.operations.as_mut().and_then(Operations::sole);
        let fs = fs.ok_or_else(|| io::Error::other("the file system is in use already"))?;
        fs.get_mut().init(&req.into(), config)?;
        let bypass = fs.get_mut().bypass();
        if bypass.calls_at_once {
            fs.call_at_once();
        }
        if bypass.grants {
            // It can create, as it has backing files.
            self.operations().creates();
        }
        // Files that bypass clients have open, or that the kernel has open to append to, are opened for direct input and
        // output, which must not keep programs from mapping them. Kernels before 6.6 have no such thing.
        let mappable = InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        if config.capabilities().contains(mappable) && config.add_capabilities(mappable).is_err() {
            warn!("the kernel took back that files open for direct input and output can be mapped");
        }
        let uring = uring::agree(self.transport, config)?;
        if let Some(operations) = &self.operations {
            // The second is of the first release that has both this and the lock on directories that are moved.
            let opens_itself = InitFlags::FUSE_NO_OPENDIR_SUPPORT | InitFlags::FUSE_HAS_RESEND;
            operations.core().coherence.kernel_can(config.capabilities().contains(opens_itself));
            // Fails only if the session was given up, and then nobody needs it.
            let _ = self.handoff.send(Initialised { operations: Arc::clone(operations), uring });
        }
        Ok(())
    }

    fn destroy(&mut self) {
        // The ring's workers call the file system; they must be gone first.
        drop(self.ring.lock().take());
        let Some(mut operations) = self.operations.take() else { return };
        let unmounted = operations.core().coherence.is_disconnected();
        operations.core().coherence.detach();
        // So do the kernel's rings' workers.
        drop(self.uring.lock().take());
        let deadline = Instant::now() + LAST_USER_WAIT;
        loop {
            if let Some(fs) = Operations::sole(&mut operations) {
                fs.get_mut().destroy();
                break;
            }
            if Instant::now() >= deadline {
                error!(
                    "the file system is still in use {LAST_USER_WAIT:?} after the unmount; not destroying it"
                );
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(operations);
        if unmounted && self.ended.get().is_some_and(|ended| ended.send(Ok(())).is_ok()) {
            // When this thread goes on, fuser unmounts what is mounted at the place: it takes a connection that is
            // gone for one that is there (`is_mounted`). By then that can be another mount. So it does not go on, and its
            // stack is what that costs.
            loop {
                std::thread::park();
            }
        }
    }

    fn lookup(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        self.operations().lookup(&req.into(), parent, name, reply.into());
    }

    // fuser's default for `batch_forget` calls this for each inode; its argument's type has no public name, so
    // it cannot be overridden.
    fn forget(&self, req: &fuser::Request, ino: INodeNo, nlookup: u64) {
        self.operations().forget(&req.into(), ino, nlookup);
    }

    fn getattr(&self, req: &fuser::Request, ino: INodeNo, fh: Option<FileHandle>, reply: fuser::ReplyAttr) {
        self.operations().getattr(&req.into(), ino, fh, reply.into());
    }

    fn setattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        crtime: Option<SystemTime>,
        chgtime: Option<SystemTime>,
        bkuptime: Option<SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        self.operations().setattr(
            &req.into(),
            ino,
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
            fh,
            crtime,
            chgtime,
            bkuptime,
            flags,
            reply.into(),
        );
    }

    fn readlink(&self, req: &fuser::Request, ino: INodeNo, reply: fuser::ReplyData) {
        self.operations().readlink(&req.into(), ino, reply.into());
    }

    fn mknod(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: fuser::ReplyEntry,
    ) {
        self.operations().mknod(&req.into(), parent, name, mode, umask, rdev, reply.into());
    }

    fn mkdir(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: fuser::ReplyEntry,
    ) {
        self.operations().mkdir(&req.into(), parent, name, mode, umask, reply.into());
    }

    fn unlink(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        self.operations().unlink(&req.into(), parent, name, reply.into());
    }

    fn rmdir(&self, req: &fuser::Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        self.operations().rmdir(&req.into(), parent, name, reply.into());
    }

    fn symlink(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: fuser::ReplyEntry,
    ) {
        self.operations().symlink(&req.into(), parent, link_name, target, reply.into());
    }

    fn rename(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().rename(&req.into(), parent, name, newparent, newname, flags, reply.into());
    }

    fn link(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: fuser::ReplyEntry,
    ) {
        self.operations().link(&req.into(), ino, newparent, newname, reply.into());
    }

    fn open(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: fuser::ReplyOpen) {
        self.operations().open(&req.into(), ino, flags, reply.into());
    }

    fn read(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        self.operations().read(&req.into(), ino, fh, offset, size, flags, lock_owner, reply.into());
    }

    fn write(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        self.operations().write(
            &req.into(),
            ino,
            fh,
            offset,
            data,
            write_flags,
            flags,
            lock_owner,
            reply.into(),
        );
    }

    fn flush(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().flush(&req.into(), ino, fh, lock_owner, reply.into());
    }

    fn release(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        flush: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().release(&req.into(), ino, fh, flags, lock_owner, flush, reply.into());
    }

    fn fsync(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().fsync(&req.into(), ino, fh, datasync, reply.into());
    }

    fn opendir(&self, req: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: fuser::ReplyOpen) {
        self.operations().opendir(&req.into(), ino, flags, reply.into());
    }

    fn readdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: fuser::ReplyDirectory,
    ) {
        self.operations().readdir(&req.into(), ino, fh, offset, reply.into());
    }

    fn readdirplus(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: fuser::ReplyDirectoryPlus,
    ) {
        self.operations().readdirplus(&req.into(), ino, fh, offset, reply.into());
    }

    fn releasedir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().releasedir(&req.into(), ino, fh, flags, reply.into());
    }

    fn fsyncdir(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().fsyncdir(&req.into(), ino, fh, datasync, reply.into());
    }

    fn statfs(&self, req: &fuser::Request, ino: INodeNo, reply: fuser::ReplyStatfs) {
        self.operations().statfs(&req.into(), ino, reply.into());
    }

    fn setxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().setxattr(&req.into(), ino, name, value, flags, position, reply.into());
    }

    fn getxattr(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: fuser::ReplyXattr,
    ) {
        self.operations().getxattr(&req.into(), ino, name, size, reply.into());
    }

    fn listxattr(&self, req: &fuser::Request, ino: INodeNo, size: u32, reply: fuser::ReplyXattr) {
        self.operations().listxattr(&req.into(), ino, size, reply.into());
    }

    fn removexattr(&self, req: &fuser::Request, ino: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        self.operations().removexattr(&req.into(), ino, name, reply.into());
    }

    fn access(&self, req: &fuser::Request, ino: INodeNo, mask: AccessFlags, reply: fuser::ReplyEmpty) {
        self.operations().access(&req.into(), ino, mask, reply.into());
    }

    fn create(
        &self,
        req: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: fuser::ReplyCreate,
    ) {
        self.operations().create(&req.into(), parent, name, mode, umask, flags, reply.into());
    }

    fn getlk(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: fuser::ReplyLock,
    ) {
        self.operations().getlk(&req.into(), ino, fh, lock_owner, start, end, typ, pid, reply.into());
    }

    fn setlk(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().setlk(&req.into(), ino, fh, lock_owner, start, end, typ, pid, sleep, reply.into());
    }

    fn bmap(&self, req: &fuser::Request, ino: INodeNo, blocksize: u32, idx: u64, reply: fuser::ReplyBmap) {
        self.operations().bmap(&req.into(), ino, blocksize, idx, reply.into());
    }

    fn ioctl(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        self.operations().ioctl(&req.into(), ino, fh, flags, cmd, in_data, out_size, reply.into());
    }

    fn poll(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: fuser::PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        self.operations().poll(&req.into(), ino, fh, ph.into(), events, flags, reply.into());
    }

    fn fallocate(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: fuser::ReplyEmpty,
    ) {
        self.operations().fallocate(&req.into(), ino, fh, offset, length, mode, reply.into());
    }

    fn lseek(
        &self,
        req: &fuser::Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: fuser::ReplyLseek,
    ) {
        self.operations().lseek(&req.into(), ino, fh, offset, whence, reply.into());
    }

    fn copy_file_range(
        &self,
        req: &fuser::Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        self.operations().copy_file_range(
            &req.into(),
            ino_in,
            fh_in,
            offset_in,
            ino_out,
            fh_out,
            offset_out,
            len,
            flags,
            reply.into(),
        );
    }
}

impl<FS: Filesystem> std::fmt::Debug for Adapter<FS> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter")
            .field("mountpoint", &self.operations.as_ref().map(|operations| &operations.core().mountpoint))
            .finish_non_exhaustive()
    }
}

impl<FS: Filesystem> Drop for Adapter<FS> {
    /// A session that ends in a panic of one of its threads is not destroyed; the ring must end even so.
    fn drop(&mut self) {
        if self.ring.lock().take().is_some() {
            warn!("the session ended without destroying its file system");
        }
        if let Some(operations) = &self.operations {
            operations.core().coherence.detach();
        }
        drop(self.uring.lock().take());
    }
}
