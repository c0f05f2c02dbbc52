//! Open file descriptions of bypass clients, and what is done with them by number: `vfs_read`, `vfs_write`, `vfs_llseek`
//! and their like for a FUSE mount.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use fuser::{FileAttr, FileHandle, FopenFlags, INodeNo, LockOwner, OpenFlags, RequestId, WriteFlags};
use parking_lot::Mutex;
use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, fcntl_setfl};

use crate::answer::{Opened, Xattr};
use crate::asking::Called;
use crate::coherence::VirtualOpen;
use crate::engine::cache::Inode;
use crate::engine::handles::Handle;
use crate::engine::serve::{Call, Changes, Output, Served, without_privileges};
use crate::engine::{Checks, Engine, Stop, fail, kernel};
use crate::filesystem::Filesystem;
use crate::kernel::hidden::{Hidden, Token};
use crate::mutant;
use crate::reply::{ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite, ReplyXattr};
use crate::request::{Credentials, Request};
use crate::session::Core;
use finesse_ipc::frame::{self, Attr, Fallback, OWN_OFFSET, Reply};
use finesse_ipc::layout::DATA_BYTES;

/// What `F_SETFL` changes without asking anyone (`SETFL_MASK`).
const CHANGEABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME;
/// The `RWF_*` flags of a write that are served.
const WRITE_FLAGS: i32 = libc::RWF_SYNC | libc::RWF_DSYNC | libc::RWF_APPEND | RWF_NOAPPEND;
const RWF_NOAPPEND: i32 = 0x20;
/// `fallocate` modes that FUSE hands on (`fuse_file_fallocate`).
const FALLOCATE_MODES: i32 =
    libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
/// No version of an inode's attributes.
const NEVER: u64 = u64::MAX;

/// What an open file needs of its mount at its end.
pub(crate) trait Keeper: Send + Sync {
    /// The last descriptor is gone.
    fn release(&self, request: &Request, ino: INodeNo, fh: FileHandle, flags: OpenFlags);
    /// How it becomes the kernel's.
    fn hidden(&self) -> &Hidden;
}

impl<FS: Filesystem> Keeper for Core<FS> {
    fn release(&self, request: &Request, ino: INodeNo, fh: FileHandle, flags: OpenFlags) {
        let (reply, answer) = ReplyEmpty::local();
        self.fs.ask().release(request, ino, fh, flags, None, false, reply);
        // Errors of release reach nobody in the kernel either.
        let _ = answer.wait();
    }

    fn hidden(&self) -> &Hidden {
        &self.hidden
    }
}

/// An open file description in the daemon. Dropping the last reference releases it, unless the kernel does that.
pub(crate) struct OpenFile {
    inode: Arc<Inode>,
    fh: FileHandle,
    kernel_flags: FopenFlags,
    /// Access mode and status flags, as `F_GETFL` has them.
    flags: AtomicI32,
    /// Held during reads and writes that move it (`f_pos_lock`).
    offset: Mutex<u64>,
    /// What can be granted.
    backing: Option<OwnedFd>,
    /// The file system gives it when it is asked.
    grantable: bool,
    /// Closing it says nothing.
    quiet: bool,
    /// Until the kernel has it.
    open: Mutex<Option<VirtualOpen>>,
    /// The version of the inode's attributes in which nothing is left that a write takes away.
    shed: AtomicU64,
    handed_over: AtomicBool,
    token: Mutex<Option<Token>>,
    keeper: Arc<dyn Keeper>,
    credentials: Arc<Credentials>,
}

impl OpenFile {
    pub(super) fn new(
        inode: Arc<Inode>,
        opened: Opened,
        flags: i32,
        open: VirtualOpen,
        keeper: Arc<dyn Keeper>,
        credentials: Arc<Credentials>,
    ) -> Self {
        let once = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC;
        Self {
            inode,
            fh: opened.fh,
            // That it need not be told of a close was said of this road.
            kernel_flags: opened.flags
                - FopenFlags::FOPEN_KEEP_CACHE
                - FopenFlags::FOPEN_PASSTHROUGH
                - FopenFlags::FOPEN_NOFLUSH,
            flags: AtomicI32::new(flags & !once),
            offset: Mutex::new(0),
            backing: opened.backing,
            grantable: opened.grantable,
            quiet: opened.flags.contains(FopenFlags::FOPEN_NOFLUSH),
            open: Mutex::new(Some(open)),
            shed: AtomicU64::new(NEVER),
            handed_over: AtomicBool::new(false),
            token: Mutex::new(None),
            keeper,
            credentials,
        }
    }

    /// Its inode.
    pub(crate) fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// The file system's handle.
    pub(crate) fn fh(&self) -> FileHandle {
        self.fh
    }

    /// Access mode and status flags.
    pub(crate) fn flags(&self) -> i32 {
        self.flags.load(Ordering::Relaxed)
    }

    /// What the kernel is told of it.
    pub(crate) fn kernel_flags(&self) -> FopenFlags {
        self.kernel_flags
    }

    /// From here on the kernel has it and will release it; false if that is so already.
    pub(crate) fn hand_over(&self) -> bool {
        let first = !self.handed_over.swap(true, Ordering::AcqRel);
        if first {
            drop(self.open.lock().take());
        }
        first
    }

    fn reads(&self) -> bool {
        self.flags() & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn writes(&self) -> bool {
        self.flags() & libc::O_ACCMODE != libc::O_RDONLY
    }

    fn open_flags(&self) -> OpenFlags {
        OpenFlags(self.flags())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(token) = self.token.get_mut().take() {
            self.keeper.hidden().revoke(&token);
        }
        if !*self.handed_over.get_mut() {
            let request = Request::for_client(RequestId(0), self.credentials.clone());
            self.keeper.release(&request, INodeNo(self.inode.ino), self.fh, OpenFlags(*self.flags.get_mut()));
        }
    }
}

/// An error of an operation on an open file, which the kernel would show the program as it is.
fn shown(errno: fuser::Errno) -> Stop {
    Stop::Errno(errno.code())
}

/// `ksys_pread64` and its like look at the position before they look at the file.
fn positive(position: u64) -> Result<(), Stop> {
    if position == OWN_OFFSET || i64::try_from(position).is_ok() { Ok(()) } else { fail(libc::EINVAL) }
}

/// `rw_verify_area`: whether `len` bytes at a position can exist.
fn verify(position: u64, len: usize) -> Result<(), Stop> {
    let end = i64::try_from(position).ok().and_then(|at| at.checked_add(i64::try_from(len).ok()?));
    if end.is_some() { Ok(()) } else { fail(libc::EINVAL) }
}

/// What closing the last descriptor asks the file system (`fuse_flush`).
pub(super) fn flush<FS: Filesystem>(fs: &Called<FS>, request: &Request, file: &OpenFile) -> Result<(), Stop> {
    if file.quiet {
        return Ok(());
    }
    let (reply, answer) = ReplyEmpty::local();
    // Nobody has a lock through this file.
    fs.ask().flush(request, INodeNo(file.inode.ino), file.fh, LockOwner(0), reply);
    match answer.wait() {
        // `fc->no_flush`
        Err(errno) if errno.code() == libc::ENOSYS => Ok(()),
        flushed => flushed.map_err(shown),
    }
}

impl<FS: Filesystem> Engine<FS> {
    /// The open file that a call is about.
    pub(super) fn file(&self, call: &Call<'_>) -> Result<Arc<OpenFile>, Stop> {
        match call.context.handles.get(call.frame.base) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Directory(_)) => fail(libc::EISDIR),
            None => fail(libc::EBADF),
        }
    }

    /// Attributes as `fuse_update_attributes` gets them: remembered ones while they are good, or else the open file's.
    pub(super) fn file_attr(&self, request: &Request, file: &OpenFile) -> Result<FileAttr, Stop> {
        match self.known_attr(&file.inode) {
            Some(attr) => Ok(attr),
            None => self.fresh_file_attr(request, file),
        }
    }

    /// The open file's attributes, from the file system.
    pub(super) fn fresh_file_attr(&self, request: &Request, file: &OpenFile) -> Result<FileAttr, Stop> {
        let mark = self.cache.mark();
        let (reply, answer) = ReplyAttr::local();
        self.core.fs.ask().getattr(request, INodeNo(file.inode.ino), Some(file.fh), reply);
        let answer = answer.wait().map_err(shown)?;
        self.cache.learn_attr(&file.inode, &answer, mark);
        Ok(answer.attr)
    }

    // --- reading ---

    pub(super) fn read(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let file = self.file(call)?;
        positive(call.frame.base2)?;
        if !file.reads() {
            return fail(libc::EBADF);
        }
        let len = (call.frame.mode as usize).min(DATA_BYTES);
        output.data = if call.frame.base2 == OWN_OFFSET {
            let mut offset = file.offset.lock();
            let data = self.read_at(call, &file, *offset, len)?;
            *offset += data.len() as u64;
            data
        } else {
            self.read_at(call, &file, call.frame.base2, len)?
        };
        Ok(Reply::data(output.data.len() as u32))
    }

    fn read_at(&self, call: &Call<'_>, file: &OpenFile, at: u64, len: usize) -> Result<Vec<u8>, Stop> {
        verify(at, len)?;
        if len == 0 {
            return Ok(Vec::new());
        }
        self.settle_mappings(&file.inode, at, len);
        let keeps_atime = || file.flags() & libc::O_NOATIME != 0 || self.keeps_atime(&file.inode);
        let kept_atime = keeps_atime();
        let (reply, answer) = ReplyData::local();
        let ino = INodeNo(file.inode.ino);
        self.core.fs.ask().read(&call.request, ino, file.fh, at, len as u32, file.open_flags(), None, reply);
        let mut data = answer.wait().map_err(shown)?;
        data.truncate(len);
        // As for directories: what the kernel may have is what was known before.
        if !(kept_atime && keeps_atime()) {
            self.cache.forget_atime(&file.inode);
        }
        Ok(data)
    }

    /// Makes sure that the file system has what others have changed through mappings, before a part of a file is used;
    /// `len` 0 is to the end.
    pub(super) fn settle_mappings(&self, inode: &Inode, at: u64, len: usize) {
        if mutant::leaves_out("bypass: mapped pages") {
            return;
        }
        if let Err(error) = self.core.coherence.bypass_uses_data(inode.ino, at, len as u64) {
            tracing::warn!(ino = inode.ino, %error, "the kernel did not write out what is mapped of a file");
        }
    }

    // --- writing ---

    pub(super) fn write(&self, call: &Call<'_>) -> Served {
        let file = self.file(call)?;
        positive(call.frame.base2)?;
        if !file.writes() {
            return fail(libc::EBADF);
        }
        let how = call.frame.flags as i32;
        if how & !WRITE_FLAGS != 0 {
            return kernel(Fallback::Unsupported);
        }
        if how & (libc::RWF_APPEND | RWF_NOAPPEND) == libc::RWF_APPEND | RWF_NOAPPEND {
            return fail(libc::EINVAL);
        }
        let written = if call.frame.base2 == OWN_OFFSET {
            let mut offset = file.offset.lock();
            let (at, written) = self.write_at(call, &file, *offset)?;
            *offset = at + written;
            written
        } else {
            self.write_at(call, &file, call.frame.base2)?.1
        };
        Ok(Reply::with_number(written))
    }

    /// Writes at a position, or at the end; where it was written, and how much.
    fn write_at(&self, call: &Call<'_>, file: &OpenFile, at: u64) -> Result<(u64, u64), Stop> {
        let (data, how, flags) = (call.data, call.frame.flags as i32, file.flags());
        verify(at, data.len())?;
        if data.is_empty() {
            return Ok((at, 0));
        }
        let appends = how & libc::RWF_APPEND != 0 || (flags & libc::O_APPEND != 0 && how & RWF_NOAPPEND == 0);
        self.shed_once(call, file)?;
        self.settle_mappings(&file.inode, at, data.len());
        let flags = if appends { flags | libc::O_APPEND } else { flags & !libc::O_APPEND };
        let done = self.write_in_turn(call, file, at, flags);
        self.changed_by_write(file);
        let (at, written) = done?;
        if mutant::leaves_out("bypass: pages") {
            return Ok((at, written));
        }
        let written_data = data.get(..written as usize).unwrap_or(data);
        if let Err(error) = self.core.coherence.bypass_wrote(file.inode.ino, at, written_data) {
            tracing::warn!(ino = file.inode.ino, %error, "the kernel did not drop its pages of a changed file");
        }
        // `generic_write_sync`
        let full = flags & libc::O_SYNC == libc::O_SYNC || how & libc::RWF_SYNC != 0;
        if full || flags & libc::O_DSYNC != 0 || how & libc::RWF_DSYNC != 0 {
            self.sync_file(&call.request, file, !full)?;
        }
        Ok((at, written))
    }

    /// One writer at a time, as under the inode's lock, on either road where it matters: the end of the file may not move
    /// between finding and using it.
    fn write_in_turn(
        &self,
        call: &Call<'_>,
        file: &OpenFile,
        at: u64,
        flags: i32,
    ) -> Result<(u64, u64), Stop> {
        let turn = file.open.lock().as_ref().map(|open| Arc::clone(open.turn()));
        // The kernel has it: so does whoever writes from here on.
        let Some(turn) = turn else { return fail(libc::EBADF) };
        let _turn = turn.lock();
        let mut at = at;
        if flags & libc::O_APPEND != 0 {
            at = self.fresh_file_attr(&call.request, file)?.size;
            // `generic_write_check_limits`
            if i64::try_from(at).ok().and_then(|at| at.checked_add(call.data.len() as i64)).is_none() {
                return fail(libc::EFBIG);
            }
        }
        let (reply, answer) = ReplyWrite::local();
        let (ino, none) = (INodeNo(file.inode.ino), WriteFlags::empty());
        let flags = OpenFlags(flags);
        self.core.fs.ask().write(&call.request, ino, file.fh, at, call.data, none, flags, None, reply);
        let written = answer.wait().map_err(shown)?;
        // `fuse_send_write_pages`
        if written as usize > call.data.len() { fail(libc::EIO) } else { Ok((at, written.into())) }
    }

    /// The file was written to: its attributes have changed, but no privileges have come back.
    fn changed_by_write(&self, file: &OpenFile) {
        let before = file.shed.load(Ordering::Relaxed);
        self.cache.forget_attr(&file.inode);
        // Unless somebody else has changed them as well.
        if before != NEVER && file.inode.version() == before + 1 {
            file.shed.store(before + 1, Ordering::Relaxed);
        }
    }

    /// `file_remove_privs`, unless nothing has changed since the last time.
    fn shed_once(&self, call: &Call<'_>, file: &OpenFile) -> Result<(), Stop> {
        let version = file.inode.version();
        if self.checks == Checks::Caller || file.shed.load(Ordering::Relaxed) == version {
            return Ok(());
        }
        self.shed_privileges(call, &file.inode, Some(file.fh))?;
        // What was taken away is a change, too: then the next time finds nothing.
        file.shed.store(version, Ordering::Relaxed);
        Ok(())
    }

    /// Takes away what a change of the contents takes away of a file: set-user-ID and set-group-ID bits, unless the caller
    /// may keep them, and file capabilities. A file system that acts as the caller has its backing do that.
    pub(super) fn shed_privileges(
        &self,
        call: &Call<'_>,
        inode: &Arc<Inode>,
        fh: Option<FileHandle>,
    ) -> Result<(), Stop> {
        if self.checks == Checks::Caller {
            return Ok(());
        }
        let ino = INodeNo(inode.ino);
        if !call.context.credentials.keeps_privileges() {
            let attr = match inode.attr(&self.cache) {
                Some(attr) => attr,
                None => {
                    let (reply, answer) = ReplyAttr::local();
                    self.core.fs.ask().getattr(&call.request, ino, fh, reply);
                    answer.wait().map_err(shown)?.attr
                }
            };
            if let Some(mode) = without_privileges(&attr) {
                self.setattr(&call.request, inode, Changes { mode: Some(mode), ..Changes::default() })?;
            }
        }
        if self.no_xattrs.load(Ordering::Relaxed) {
            return Ok(());
        }
        let name = OsStr::new("security.capability");
        let (reply, answer) = ReplyXattr::local();
        self.core.fs.ask().getxattr(&call.request, ino, name, 0, reply);
        match answer.wait() {
            Ok(Xattr::Size(1..)) => {
                let (reply, answer) = ReplyEmpty::local();
                self.core.fs.ask().removexattr(&call.request, ino, name, reply);
                let removed = answer.wait();
                self.cache.forget_attr(inode);
                removed.map_err(shown)
            }
            Err(errno) if errno.code() == libc::ENOSYS => {
                self.no_xattrs.store(true, Ordering::Relaxed);
                Ok(())
            }
            // `cap_inode_need_killpriv`: what cannot be read is not there.
            _ => Ok(()),
        }
    }

    /// `ftruncate`.
    pub(super) fn truncate_file(&self, call: &Call<'_>) -> Served {
        let file = self.file(call)?;
        // `do_ftruncate`
        if !file.writes() || call.frame.size > i64::MAX as u64 {
            return fail(libc::EINVAL);
        }
        self.shed_once(call, &file)?;
        self.settle_mappings(&file.inode, 0, 0);
        let turn = file.open.lock().as_ref().map(|open| Arc::clone(open.turn()));
        let Some(turn) = turn else { return fail(libc::EBADF) };
        let size = call.frame.size;
        let changes = Changes { size: Some(size), fh: Some(file.fh), ..Changes::default() };
        let turn = turn.lock();
        let before = self.file_attr(&call.request, &file)?.size;
        let changed = self.ask_setattr(&call.request, &file.inode, changes);
        drop(turn);
        self.cache.forget_attr(&file.inode);
        self.data_changed(&file.inode, (changed.is_ok() && size > before).then_some(size));
        changed.map(|()| Reply::ok())
    }

    /// `fallocate`.
    pub(super) fn allocate(&self, call: &Call<'_>) -> Served {
        let file = self.file(call)?;
        let (mode, offset, len) = (call.frame.mode as i32, call.frame.base2, call.frame.size);
        // `vfs_fallocate`
        let (Ok(start), Ok(count @ 1..)) = (i64::try_from(offset), i64::try_from(len)) else {
            return fail(libc::EINVAL);
        };
        let punches = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let both = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & !FALLOCATE_MODES != 0
            || (punches && mode & libc::FALLOC_FL_KEEP_SIZE == 0)
            || mode & both == both
        {
            return fail(libc::EOPNOTSUPP);
        }
        if !file.writes() {
            return fail(libc::EBADF);
        }
        if start.checked_add(count).is_none() {
            return fail(libc::EFBIG);
        }
        self.shed_once(call, &file)?;
        self.settle_mappings(&file.inode, 0, 0);
        let turn = file.open.lock().as_ref().map(|open| Arc::clone(open.turn()));
        let Some(turn) = turn else { return fail(libc::EBADF) };
        let (reply, answer) = ReplyEmpty::local();
        let turn = turn.lock();
        let before = self.file_attr(&call.request, &file)?.size;
        self.core.fs.ask().fallocate(
            &call.request,
            INodeNo(file.inode.ino),
            file.fh,
            offset,
            len,
            mode,
            reply,
        );
        let done = answer.wait();
        drop(turn);
        self.changed_by_write(&file);
        let lengthens = done.is_ok() && mode & libc::FALLOC_FL_KEEP_SIZE == 0;
        self.data_changed(&file.inode, offset.checked_add(len).filter(|end| lengthens && *end > before));
        match done {
            // `fc->no_fallocate`
            Err(errno) if errno.code() == libc::ENOSYS => fail(libc::EOPNOTSUPP),
            done => done.map(|()| Reply::ok()).map_err(shown),
        }
    }

    // --- position and flags ---

    /// `fuse_file_llseek`.
    pub(super) fn seek_file(&self, call: &Call<'_>, file: &OpenFile) -> Served {
        let (by, whence) = (call.frame.base2 as i64, call.frame.mode as i32);
        let mut position = file.offset.lock();
        let target = match whence {
            libc::SEEK_SET => Some(by),
            libc::SEEK_CUR => i64::try_from(*position).ok().and_then(|at| at.checked_add(by)),
            libc::SEEK_END => {
                let size = self.fresh_file_attr(&call.request, file)?.size;
                i64::try_from(size).ok().and_then(|size| size.checked_add(by))
            }
            libc::SEEK_DATA | libc::SEEK_HOLE => Some(self.seek_extent(call, file, by, whence)?),
            _ => None,
        };
        // `vfs_setpos`
        match target.and_then(|target| u64::try_from(target).ok()) {
            Some(target) => {
                *position = target;
                Ok(Reply::with_number(target))
            }
            None => fail(libc::EINVAL),
        }
    }

    fn seek_extent(&self, call: &Call<'_>, file: &OpenFile, from: i64, whence: i32) -> Result<i64, Stop> {
        let (reply, answer) = ReplyLseek::local();
        self.core.fs.ask().lseek(&call.request, INodeNo(file.inode.ino), file.fh, from, whence, reply);
        match answer.wait() {
            // `fc->no_lseek`: one extent, and a hole at the end (`generic_file_llseek`).
            Err(errno) if errno.code() == libc::ENOSYS => {
                let size = self.fresh_file_attr(&call.request, file)?.size as i64;
                match whence {
                    _ if from < 0 || from >= size => fail(libc::ENXIO),
                    libc::SEEK_DATA => Ok(from),
                    _ => Ok(size),
                }
            }
            answer => answer.map_err(shown),
        }
    }

    /// `F_SETFL`.
    pub(super) fn set_flags(&self, call: &Call<'_>) -> Served {
        let file = self.file(call)?;
        let wanted = call.frame.flags as i32;
        if wanted & (libc::O_DIRECT | libc::O_ASYNC) != 0 {
            return kernel(Fallback::Unsupported);
        }
        let flags = file.flags();
        if wanted & !flags & libc::O_NOATIME != 0 {
            // `setfl`
            let attr = self.file_attr(&call.request, &file)?;
            if !call.context.credentials.owns(&attr) {
                return fail(libc::EPERM);
            }
        }
        let merge = |flags| Some(flags & !CHANGEABLE | wanted & CHANGEABLE);
        // Never fails, as the closure always gives a value.
        let _ = file.flags.fetch_update(Ordering::Relaxed, Ordering::Relaxed, merge);
        Ok(Reply::ok())
    }

    // --- durability and the end ---

    pub(super) fn sync_file(&self, request: &Request, file: &OpenFile, data_only: bool) -> Result<(), Stop> {
        let (reply, answer) = ReplyEmpty::local();
        self.core.fs.ask().fsync(request, INodeNo(file.inode.ino), file.fh, data_only, reply);
        match answer.wait() {
            // `fc->no_fsync`
            Err(errno) if errno.code() == libc::ENOSYS => Ok(()),
            synced => synced.map_err(shown),
        }
    }

    /// `close` of the last descriptor (`filp_flush`); the release comes when the last operation is done.
    pub(super) fn close_file(&self, request: &Request, file: &OpenFile) -> Served {
        flush(&self.core.fs, request, file).map(|()| Reply::ok())
    }

    // --- promotion ---

    /// Makes a kernel descriptor of an open file. Until the client has it, the file stays what it is.
    pub(super) fn promote(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let file = self.file(call)?;
        if call.frame.mode == frame::PROMOTED {
            drop(call.context.handles.remove(call.frame.base));
            return Ok(Reply::ok());
        }
        let offset = *file.offset.lock();
        let if_granted = call.frame.mode == frame::IF_GRANTED;
        // What the kernel has open for direct input and output it may have mapped: that has pages, which would not show what is written
        // by a granted descriptor. What is written here they do.
        if if_granted && file.writes() && self.core.coherence.kernel_opens(file.inode.ino).direct {
            return fail(libc::EAGAIN);
        }
        if let Some(backing) = self.backing_to_grant(call, &file, offset)? {
            output.grant = Some(backing);
            return Ok(Reply::attr(Attr { ino: file.inode.ino, ..Attr::default() }));
        }
        if if_granted {
            return fail(libc::EAGAIN);
        }
        let mut token = file.token.lock();
        let name = match *token {
            // Asked again, because the first attempt failed.
            Some(name) => name,
            None => {
                let number = call.frame.base as u32;
                match self.core.hidden.invite(&file, number, &call.context.handles) {
                    Some(name) => *token.insert(name),
                    None => return fail(libc::EIO),
                }
            }
        };
        output.data = name.to_vec();
        let mut reply = Reply::with_number(offset);
        reply.len = name.len() as u32;
        Ok(reply)
    }

    /// A duplicate of the backing descriptor, with the description's offset and flags, if it may be given away.
    fn backing_to_grant(
        &self,
        call: &Call<'_>,
        file: &OpenFile,
        offset: u64,
    ) -> Result<Option<OwnedFd>, Stop> {
        if (file.backing.is_none() && !file.grantable)
            || self.is_file_watched(file.inode.ino)
            || self.is_set_id(&call.request, &file.inode)?
        {
            return Ok(None);
        }
        let _pending = match file.writes().then(|| self.before_writable_grant(&file.inode)).transpose() {
            Ok(pending) => pending,
            Err(_) => return Ok(None),
        };
        let backing = match &file.backing {
            Some(backing) => backing.try_clone(),
            None => self.core.fs.ask().grant(&call.request, INodeNo(file.inode.ino), file.fh),
        };
        if !file.writes() {
            self.core.coherence.note_granted_read(file.inode.ino);
        }
        let flags = OFlags::from_bits_retain((file.flags() & CHANGEABLE) as u32);
        let kept = OFlags::from_bits_retain(CHANGEABLE as u32);
        let set = backing.and_then(|backing| {
            let now = fcntl_getfl(&backing)?;
            if now & kept != flags {
                fcntl_setfl(&backing, (now - kept) | flags)?;
            }
            rustix::fs::seek(&backing, SeekFrom::Start(offset))?;
            Ok(backing)
        });
        match set {
            Ok(backing) => Ok(Some(backing)),
            Err(error) => {
                tracing::warn!(%error, "a backing descriptor could not be given away");
                Ok(None)
            }
        }
    }
}
