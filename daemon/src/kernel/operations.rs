//! What each request of the kernel does, however it arrives: the file system's method, and around it the hooks, the policy
//! and the marks that keep the roads coherent.
//!
//! Requests arrive through fuser ([`adapter`](super::adapter)) or through rings ([`uring`](super::uring)); neither knows more than
//! how to read a request and where its answer goes ([`Out`]).

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use finesse_ebpf::rules::Operations as Permitted;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FileType, FopenFlags, Generation,
    INodeNo, IoctlFlags, LockOwner, OpenFlags, PollEvents, PollFlags, RenameFlags, TimeOrNow, WriteFlags,
};

use super::hidden::{self, DIRECTORY};
use super::hooks::{Effect, Hooks};
use crate::answer;
use crate::asking::{Asking, Called};
use crate::coherence::{Access, Turn};
use crate::engine::serve::without_privileges;
use crate::filesystem::Filesystem;
use crate::policy::guard::Naming;
use crate::reply::{
    Out, Page, PollNotifier, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};
use crate::request::Request;
use crate::session::Core;

/// The extended attribute of the mount's root by which programs find the bypass.
const RENDEZVOUS: &str = "system.finesse";
/// A command of ioctl(2) has an argument that the kernel reads (`_IOC_WRITE`).
const IOC_WRITE: u32 = 1 << 30;

/// Serves the kernel's requests.
pub(crate) struct Operations<FS: Filesystem> {
    core: Arc<Core<FS>>,
    /// The file system is known to have `create`, or to have it not.
    creates: OnceLock<bool>,
}

#[allow(clippy::too_many_arguments)]
impl<FS: Filesystem> Operations<FS> {
    pub(crate) fn new(core: Core<FS>) -> Self {
        Self { core: Arc::new(core), creates: OnceLock::new() }
    }

    /// What the roads share, to be kept.
    pub(crate) fn shared(&self) -> Arc<Core<FS>> {
        Arc::clone(&self.core)
    }

    /// The file system, if nobody else holds it, not even weakly.
    pub(crate) fn sole(self: &mut Arc<Self>) -> Option<&mut Called<FS>> {
        let this = Arc::get_mut(self)?;
        Arc::get_mut(&mut Arc::get_mut(&mut this.core)?.fs)
    }

    /// The file system has `create`.
    pub(crate) fn creates(&self) {
        let _ = self.creates.set(true);
    }

    pub(crate) fn core(&self) -> &Core<FS> {
        &self.core
    }

    fn hooks(&self, ino: INodeNo) -> Hooks {
        Hooks::new(Arc::clone(&self.core().coherence), ino.0, Effect::None)
    }

    /// Hooks for a request that changes something. What it changes matters only if there is a bypass.
    fn changes(&self, ino: INodeNo, effect: impl FnOnce() -> Effect) -> Hooks {
        let effect = if self.core().coherence.cache().is_some() { effect() } else { Effect::None };
        Hooks::new(Arc::clone(&self.core().coherence), ino.0, effect)
    }

    /// What a name stands for, which the kernel does not tell when it moves it.
    fn inode_of(&self, req: &Request, parent: INodeNo, name: &OsStr) -> Option<(u64, FileType)> {
        let (reply, answer) = ReplyEntry::local();
        self.fs().lookup(req, parent, name, reply);
        let attr = answer.wait().ok().map(|entry| entry.attr).filter(|attr| attr.ino.0 != 0)?;
        self.fs().forget(req, attr.ino, 1);
        Some((attr.ino.0, attr.kind))
    }

    fn changes_attr(&self, ino: INodeNo) -> Hooks {
        self.changes(ino, || Effect::Attr(ino.0))
    }

    fn changes_unforeseen(&self, ino: INodeNo) -> Hooks {
        Hooks::new(Arc::clone(&self.core().coherence), ino.0, Effect::Unforeseen(ino.0))
    }

    /// An access control list also changes the mode, which the kernel expects only if it knows of such lists
    /// (`fuse_set_acl`).
    fn changes_xattr(&self, ino: INodeNo, name: &OsStr) -> Hooks {
        match is_acl(name) {
            true => Hooks::new(Arc::clone(&self.core().coherence), ino.0, Effect::Acl(ino.0)),
            false => self.changes_attr(ino),
        }
    }

    /// Hooks for a request that reads a directory.
    fn reads_directory(&self, directory: INodeNo) -> Hooks {
        self.core().coherence.kernel_lists(directory.0);
        self.changes(directory, || Effect::Atime(directory.0))
    }

    fn changes_name(&self, parent: INodeNo, name: &OsStr) -> Hooks {
        self.changes(parent, || Effect::name(parent.0, name))
    }

    /// Hooks for a request that makes a name and is answered with what stands there.
    fn makes_name(&self, parent: INodeNo, name: &OsStr) -> Hooks {
        self.changes_name(parent, name).names(parent.0, name).tells(self.naming(parent, name))
    }

    /// What the policy says of a name that the kernel is told of.
    fn naming(&self, parent: INodeNo, name: &OsStr) -> Option<Naming> {
        self.core().guard.as_ref().map(|guard| guard.naming(parent.0, name))
    }

    /// Whether the policy lets the caller do this to an inode.
    fn permit(&self, req: &Request, ino: INodeNo, operations: Permitted) -> Result<(), Errno> {
        match &self.core().guard {
            Some(guard) => guard.check(req, ino, operations),
            None => Ok(()),
        }
    }

    fn permit_rename(
        &self,
        req: &Request,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
    ) -> Result<(), Errno> {
        let Some(guard) = &self.core().guard else { return Ok(()) };
        // Whether something is replaced, or the two are exchanged, only the file system knows for sure.
        let both = Permitted::SEARCH | Permitted::CREATE | Permitted::REMOVE;
        guard.check(req, from.0, both)?;
        guard.check(req, to.0, both)?;
        guard.check_move(from, to)
    }

    fn permit_link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let Some(guard) = &self.core().guard else { return Ok(()) };
        guard.check(req, parent, Permitted::SEARCH | Permitted::CREATE)?;
        guard.check_link(ino, parent, name)
    }

    fn fs(&self) -> Asking<'_, FS> {
        let core = self.core();
        if let Some(cache) = core.coherence.cache() {
            cache.pay();
        }
        core.fs.ask()
    }

    /// A file's attributes, asked for within another request.
    fn attr_of(&self, req: &Request, ino: INodeNo, fh: FileHandle) -> Result<answer::Attr, Errno> {
        let (reply, answer) = ReplyAttr::local();
        self.fs().getattr(req, ino, Some(fh), reply);
        answer.wait()
    }

    /// Takes set-user-ID and set-group-ID bits away before a direct write: that the kernel leaves to the file system
    /// (`fuse_direct_io`), which need not know that a file is open for direct output, because of a client. Says whether there
    /// were any. A file system that acts as the caller has its backing do it.
    fn shed_privileges(&self, req: &Request, ino: INodeNo, fh: FileHandle) -> Result<bool, Errno> {
        let attr = self.attr_of(req, ino, fh)?.attr;
        if self.fs().bypass().acts_as_caller {
            return Ok(u32::from(attr.perm) & (libc::S_ISUID | libc::S_ISGID) != 0);
        }
        let Some(mode) = without_privileges(&attr) else { return Ok(false) };
        let (reply, answer) = ReplyAttr::local();
        let (mode, fh) = (Some(mode), Some(fh));
        self.fs()
            .setattr(req, ino, mode, None, None, None, None, None, None, fh, None, None, None, None, reply);
        answer.wait().map(|_| true)
    }

    /// `CREATE` for a file system that is not known to have `create`.
    ///
    /// If the kernel were told so (`fc->no_create`), it would never again create a file by one request, and open files
    /// could not be handed to it ([`hidden`]). So what it would do instead is done here: `mknod` and `open`.
    #[allow(clippy::too_many_arguments)]
    fn create_or_make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        if self.creates.get().is_none() {
            let (local, answer) = ReplyCreate::local();
            self.fs().create(req, parent, name, mode, umask, flags, local);
            let created = answer.wait();
            let implemented = created.as_ref().err() != Some(&Errno::ENOSYS);
            // Several may find out at once, and find the same.
            let _ = self.creates.set(implemented);
            match created {
                Ok(answer::Created { entry, opened }) => {
                    return reply.created(
                        &entry.entry_ttl,
                        &entry.attr,
                        entry.generation,
                        opened.fh,
                        opened.flags - FopenFlags::FOPEN_PASSTHROUGH,
                    );
                }
                Err(error) if implemented => return reply.error(error),
                Err(_) => {}
            }
        }
        let (local, answer) = ReplyEntry::local();
        self.fs().mknod(req, parent, name, mode, umask, 0, local);
        let entry = match answer.wait() {
            Ok(entry) => entry,
            // `vfs_create` of a file system that cannot.
            Err(Errno::ENOSYS) => return reply.error(Errno::EACCES),
            Err(error) => return reply.error(error),
        };
        let (local, answer) = ReplyOpen::local();
        let once = libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC;
        self.fs().open(req, entry.attr.ino, OpenFlags(flags & !once), local);
        let (fh, open_flags) = match answer.wait() {
            Ok(opened) => (opened.fh, opened.flags - FopenFlags::FOPEN_PASSTHROUGH),
            // `fc->no_open`
            Err(Errno::ENOSYS) => (FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => {
                self.fs().forget(req, entry.attr.ino, 1);
                return reply.error(error);
            }
        };
        reply.created(&entry.entry_ttl, &entry.attr, entry.generation, fh, open_flags);
    }

    /// `CREATE` in the hidden directory: the kernel gets a file that a bypass client has open virtually.
    fn promote(&self, req: &Request, name: &OsStr, flags: i32, reply: Out<fuser::ReplyCreate>) {
        let Some((token, file)) = self.core().hidden.invited(name) else { return reply.error(Errno::EACCES) };
        // The kernel goes by these flags from now on: they must allow no more than the file was opened for.
        if flags & libc::O_ACCMODE != file.flags() & libc::O_ACCMODE {
            return reply.error(Errno::EACCES);
        }
        let (inode, fh) = (Arc::clone(file.inode()), file.fh());
        let naming = match (&self.core().guard, inode.label.last()) {
            (None, _) => None,
            (Some(guard), Some(label)) => Some(guard.naming_at(label)),
            // Where nobody knows which rules apply, none would.
            (Some(_), None) => return reply.error(Errno::EACCES),
        };
        let attr = match self.attr_of(req, INodeNo(inode.ino), fh) {
            Ok(answer) => answer.attr,
            Err(error) => return reply.error(error),
        };
        if !self.core().hidden.hand_over(&token, &file) {
            return reply.error(Errno::EACCES);
        }
        let hooks = self.hooks(DIRECTORY).opens(flags).tells(naming);
        let open_flags = file.kernel_flags();
        let reply = ReplyCreate::kernel(reply, hooks);
        reply.created(&Duration::ZERO, &attr, Generation(inode.generation()), fh, open_flags);
        self.core().hidden.drop_name(token, &self.core().coherence);
    }

    /// A write to the end of a file that bypass clients may write to, too: if they do, only the file system knows where
    /// it ends, and the kernel's `offset` is ignored. The kernel has the file open for direct input and output then, so
    /// no page of its cache is meant.
    #[allow(clippy::too_many_arguments)]
    fn append(
        &self,
        turn: &Turn,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
    ) -> Result<u32, Errno> {
        let _turn = turn.lock();
        let moves = self.core().coherence.moves_end(ino.0);
        let end = if moves { self.attr_of(req, ino, fh)?.attr.size } else { offset };
        let (reply, answer) = ReplyWrite::local();
        self.fs().write(req, ino, fh, end, data, write_flags, flags, lock_owner, reply);
        answer.wait()
    }

    pub(crate) fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: Out<fuser::ReplyEntry>) {
        if let Some(attr) = self.core().hidden.lookup(parent, name) {
            return reply.entry(&hidden::LIFETIME, &attr, Generation(0));
        }
        if parent == DIRECTORY {
            // Also of a one-time name: only creating it leads to the file.
            return reply.error(Errno::ENOENT);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH) {
            return reply.error(error);
        }
        if self.core().guard.is_some() && (name == "." || name == "..") {
            // Asked for on behalf of file handles (`fuse_get_dentry`), of which nobody knows which rules apply.
            return reply.error(Errno::ESTALE);
        }
        let hooks = self.hooks(parent).names(parent.0, name).tells(self.naming(parent, name));
        self.fs().lookup(req, parent, name, ReplyEntry::kernel(reply, hooks));
    }

    pub(crate) fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        if hidden::owns(ino) {
            return;
        }
        self.core().coherence.forgotten(ino.0, nlookup);
        if let Some(guard) = &self.core().guard {
            guard.forget(ino.0, || self.core().coherence.kernel_knows(ino.0));
        }
        match self.core().hidden.swallow(ino, nlookup) {
            0 => {}
            nlookup => self.fs().forget(req, ino, nlookup),
        }
    }

    pub(crate) fn getattr(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: Option<FileHandle>,
        reply: Out<fuser::ReplyAttr>,
    ) {
        if hidden::owns(ino) {
            return reply.attr(&hidden::LIFETIME, &hidden::attr(ino));
        }
        let coherence = &self.core().coherence;
        // Before the answer's mark is taken.
        if coherence.is_granted_write(ino.0) {
            coherence.review_grants(ino.0, || self.fs().settled_attr(ino).is_none());
        }
        self.fs().getattr(req, ino, fh, ReplyAttr::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn setattr(
        &self,
        req: &Request,
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
        reply: Out<fuser::ReplyAttr>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EPERM);
        }
        // With a handle it is ftruncate(2), which the descriptor allows.
        if fh.is_none()
            && let Err(error) = self.permit(req, ino, Permitted::WRITE)
        {
            return reply.error(error);
        }
        let hooks = match mode.is_some_and(closes) {
            true => self.changes(ino, || Effect::Closed(ino.0)),
            false => self.changes_attr(ino),
        };
        let reply = ReplyAttr::kernel(reply, hooks.unversioned());
        self.fs().setattr(
            req, ino, mode, uid, gid, size, atime, mtime, ctime, fh, crtime, chgtime, bkuptime, flags, reply,
        );
    }

    pub(crate) fn readlink(&self, req: &Request, ino: INodeNo, reply: Out<fuser::ReplyData>) {
        self.fs().readlink(req, ino, ReplyData::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: Out<fuser::ReplyEntry>,
    ) {
        if hidden::owns(parent) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::CREATE) {
            return reply.error(error);
        }
        let reply = ReplyEntry::kernel(reply, self.makes_name(parent, name).unversioned());
        self.fs().mknod(req, parent, name, mode, umask, rdev, reply);
    }

    pub(crate) fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: Out<fuser::ReplyEntry>,
    ) {
        if hidden::owns(parent) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::CREATE) {
            return reply.error(error);
        }
        let reply = ReplyEntry::kernel(reply, self.makes_name(parent, name).unversioned());
        self.fs().mkdir(req, parent, name, mode, umask, reply);
    }

    pub(crate) fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: Out<fuser::ReplyEmpty>) {
        if hidden::owns(parent) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::REMOVE) {
            return reply.error(error);
        }
        let reply = ReplyEmpty::kernel(reply, self.changes_name(parent, name));
        self.fs().unlink(req, parent, name, reply);
    }

    pub(crate) fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: Out<fuser::ReplyEmpty>) {
        if hidden::owns(parent) || self.core().hidden.lookup(parent, name).is_some() {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::REMOVE) {
            return reply.error(error);
        }
        let reply = ReplyEmpty::kernel(reply, self.changes_name(parent, name));
        self.fs().rmdir(req, parent, name, reply);
    }

    pub(crate) fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: Out<fuser::ReplyEntry>,
    ) {
        if hidden::owns(parent) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::CREATE) {
            return reply.error(error);
        }
        let reply = ReplyEntry::kernel(reply, self.makes_name(parent, link_name).unversioned());
        self.fs().symlink(req, parent, link_name, target, reply);
    }

    pub(crate) fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        let is_hidden =
            |parent, name| hidden::owns(parent) || self.core().hidden.lookup(parent, name).is_some();
        if is_hidden(parent, name) || is_hidden(newparent, newname) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit_rename(req, (parent, name), (newparent, newname)) {
            return reply.error(error);
        }
        let exchanges = flags.contains(RenameFlags::RENAME_EXCHANGE);
        let coherence = &self.core().coherence;
        // Nobody else asks when it was moved, or lists what is above it.
        let matters = coherence.has_clients() || (parent != newparent && coherence.kernel_keeps_listings());
        let moved = [
            matters.then(|| self.inode_of(req, parent, name)).flatten(),
            (matters && exchanges).then(|| self.inode_of(req, newparent, newname)).flatten(),
        ];
        let directory = !matters
            || moved[0].is_none_or(|(_, kind)| kind == FileType::Directory)
            || (exchanges && moved[1].is_none_or(|(_, kind)| kind == FileType::Directory));
        let moved = moved.map(|moved| moved.map(|(ino, _)| ino));
        let hooks =
            self.changes(parent, || Effect::names(parent.0, name, newparent.0, newname, moved, directory));
        // What is moved keeps its lifetime (`d_move`), which no answer gives to the new name.
        self.core().coherence.kernel_moves_to(newparent.0, newname);
        if exchanges {
            self.core().coherence.kernel_moves_to(parent.0, name);
        }
        let reply = ReplyEmpty::kernel(reply, hooks);
        self.fs().rename(req, parent, name, newparent, newname, flags, reply);
    }

    pub(crate) fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: Out<fuser::ReplyEntry>,
    ) {
        if hidden::owns(ino) || hidden::owns(newparent) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit_link(req, ino, newparent, newname) {
            return reply.error(error);
        }
        let hooks = self.changes(ino, || Effect::link(newparent.0, newname, ino.0));
        let hooks = hooks.names(newparent.0, newname).tells(self.naming(newparent, newname)).unversioned();
        self.fs().link(req, ino, newparent, newname, ReplyEntry::kernel(reply, hooks));
    }

    pub(crate) fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: Out<fuser::ReplyOpen>) {
        if hidden::owns(ino) {
            return reply.error(Errno::EACCES);
        }
        if let Err(error) = self.permit(req, ino, opening(flags)) {
            return reply.error(error);
        }
        if Access::of(flags.0).executes && self.core().coherence.kernel_opens(ino.0).virtual_writers > 0 {
            // `deny_write_access`, for those that the kernel does not know.
            return reply.error(Errno::ETXTBSY);
        }
        let hooks = if flags.0 & libc::O_TRUNC != 0 { self.changes_attr(ino) } else { self.hooks(ino) };
        self.fs().open(req, ino, flags, ReplyOpen::kernel(reply, hooks.opens(flags.0)));
    }

    pub(crate) fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: Out<fuser::ReplyData>,
    ) {
        let hooks = self.changes(ino, || Effect::Atime(ino.0));
        let reply = ReplyData::kernel(reply, hooks);
        self.fs().read(req, ino, fh, offset, size, flags, lock_owner, reply);
    }

    pub(crate) fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: Out<fuser::ReplyWrite>,
    ) {
        let shed = match write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            true => self.shed_privileges(req, ino, fh),
            false => Ok(false),
        };
        // Then the file system need not look again.
        let write_flags = match shed {
            Ok(false) => write_flags - WriteFlags::FUSE_WRITE_KILL_SUIDGID,
            _ => write_flags,
        };
        let appends = flags.0 & libc::O_APPEND != 0;
        // The kernel does not expect that the mode changes.
        let unforeseen = appends || !matches!(shed, Ok(false));
        let hooks = if unforeseen { self.changes_unforeseen(ino) } else { self.changes_attr(ino) };
        let reply = ReplyWrite::kernel(reply, hooks);
        if let Err(error) = shed {
            return reply.error(error);
        }
        if appends
            && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE)
            && let Some(turn) = self.core().coherence.append_turn(ino.0)
        {
            let written = self.append(&turn, req, ino, fh, offset, data, write_flags, flags, lock_owner);
            return match written {
                Ok(count) => reply.written(count),
                Err(error) => reply.error(error),
            };
        }
        self.fs().write(req, ino, fh, offset, data, write_flags, flags, lock_owner, reply);
    }

    pub(crate) fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        self.fs().flush(req, ino, fh, lock_owner, ReplyEmpty::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        flush: bool,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        self.core().coherence.released(ino.0);
        let reply = ReplyEmpty::kernel(reply, self.hooks(ino));
        self.fs().release(req, ino, fh, flags, lock_owner, flush, reply);
    }

    pub(crate) fn fsync(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        self.fs().fsync(req, ino, fh, datasync, ReplyEmpty::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn opendir(
        &self,
        req: &Request,
        ino: INodeNo,
        flags: OpenFlags,
        reply: Out<fuser::ReplyOpen>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EACCES);
        }
        if let Err(error) = self.permit(req, ino, Permitted::LIST) {
            return reply.error(error);
        }
        let reply = ReplyOpen::kernel(reply, self.hooks(ino).opens_directory(self.core().guard.is_some()));
        self.fs().opendir(req, ino, flags, reply);
    }

    pub(crate) fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: Out<fuser::ReplyDirectory, Page>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EACCES);
        }
        let reply = ReplyDirectory::kernel(reply, self.reads_directory(ino));
        self.fs().readdir(req, ino, fh, offset, reply);
    }

    pub(crate) fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: Out<fuser::ReplyDirectoryPlus, Page>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EACCES);
        }
        let hooks = self.reads_directory(ino).lists(self.core().guard.as_ref());
        let reply = ReplyDirectoryPlus::kernel(reply, hooks);
        self.fs().readdirplus(req, ino, fh, offset, reply);
    }

    pub(crate) fn releasedir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        self.fs().releasedir(req, ino, fh, flags, ReplyEmpty::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn fsyncdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EACCES);
        }
        self.fs().fsyncdir(req, ino, fh, datasync, ReplyEmpty::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn statfs(&self, req: &Request, ino: INodeNo, reply: Out<fuser::ReplyStatfs>) {
        let ino = if hidden::owns(ino) { INodeNo::ROOT } else { ino };
        self.fs().statfs(req, ino, ReplyStatfs::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        position: u32,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, ino, Permitted::WRITE) {
            return reply.error(error);
        }
        let reply = ReplyEmpty::kernel(reply, self.changes_xattr(ino, name));
        self.fs().setxattr(req, ino, name, value, flags, position, reply);
    }

    pub(crate) fn getxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: Out<fuser::ReplyXattr>,
    ) {
        if ino == INodeNo::ROOT
            && name == RENDEZVOUS
            && let Some(value) = self.core().rendezvous()
        {
            return match u32::try_from(value.len()) {
                Ok(len) if size == 0 => reply.size(len),
                Ok(len) if len <= size => reply.data(value),
                _ => reply.error(Errno::ERANGE),
            };
        }
        if hidden::owns(ino) {
            // Of any other error `__fuse_get_acl` would make one of the call: to all but root, whom `acl_permission_check`
            // knows as the owner, nothing in the directory could be opened.
            return reply.error(Errno::ENODATA);
        }
        if is_acl(name) {
            self.core().coherence.asked_for_acl(ino.0);
        }
        // What users keep there is read like contents (`xattr_permission`).
        if name.as_encoded_bytes().starts_with(b"user.")
            && let Err(error) = self.permit(req, ino, Permitted::READ)
        {
            return reply.error(error);
        }
        self.fs().getxattr(req, ino, name, size, ReplyXattr::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: Out<fuser::ReplyXattr>) {
        if hidden::owns(ino) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.fs().listxattr(req, ino, size, ReplyXattr::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn removexattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::EPERM);
        }
        if let Err(error) = self.permit(req, ino, Permitted::WRITE) {
            return reply.error(error);
        }
        let reply = ReplyEmpty::kernel(reply, self.changes_xattr(ino, name));
        self.fs().removexattr(req, ino, name, reply);
    }

    pub(crate) fn access(
        &self,
        req: &Request,
        ino: INodeNo,
        mask: AccessFlags,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        if hidden::owns(ino) {
            return if ino == DIRECTORY { reply.ok() } else { reply.error(Errno::EACCES) };
        }
        self.fs().access(req, ino, mask, ReplyEmpty::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: Out<fuser::ReplyCreate>,
    ) {
        if parent == DIRECTORY {
            return self.promote(req, name, flags, reply);
        }
        if let Err(error) = self.permit(req, parent, Permitted::SEARCH | Permitted::CREATE) {
            return reply.error(error);
        }
        let reply = ReplyCreate::kernel(reply, self.makes_name(parent, name).opens(flags));
        if self.creates.get() != Some(&true) {
            return self.create_or_make(req, parent, name, mode, umask, flags, reply);
        }
        self.fs().create(req, parent, name, mode, umask, flags, reply);
    }

    pub(crate) fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: Out<fuser::ReplyLock>,
    ) {
        let reply = ReplyLock::kernel(reply, self.hooks(ino));
        self.fs().getlk(req, ino, fh, lock_owner, start, end, typ, pid, reply);
    }

    pub(crate) fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        let reply = ReplyEmpty::kernel(reply, self.hooks(ino));
        self.fs().setlk(req, ino, fh, lock_owner, start, end, typ, pid, sleep, reply);
    }

    pub(crate) fn bmap(
        &self,
        req: &Request,
        ino: INodeNo,
        blocksize: u32,
        idx: u64,
        reply: Out<fuser::ReplyBmap>,
    ) {
        self.fs().bmap(req, ino, blocksize, idx, ReplyBmap::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: Out<fuser::ReplyIoctl>,
    ) {
        if hidden::owns(ino) {
            return reply.error(Errno::ENOTTY);
        }
        if cmd & IOC_WRITE != 0
            && let Err(error) = self.permit(req, ino, Permitted::WRITE)
        {
            return reply.error(error);
        }
        // What an ioctl changes is the file system's secret; `FS_IOC_SETFLAGS` changes attributes.
        let reply = ReplyIoctl::kernel(reply, self.changes_attr(ino));
        self.fs().ioctl(req, ino, fh, flags, cmd, in_data, out_size, reply);
    }

    pub(crate) fn poll(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        ph: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: Out<fuser::ReplyPoll>,
    ) {
        let reply = ReplyPoll::kernel(reply, self.hooks(ino));
        self.fs().poll(req, ino, fh, ph, events, flags, reply);
    }

    pub(crate) fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: Out<fuser::ReplyEmpty>,
    ) {
        let reply = ReplyEmpty::kernel(reply, self.changes_attr(ino));
        self.fs().fallocate(req, ino, fh, offset, length, mode, reply);
    }

    pub(crate) fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: Out<fuser::ReplyLseek>,
    ) {
        self.fs().lseek(req, ino, fh, offset, whence, ReplyLseek::kernel(reply, self.hooks(ino)));
    }

    pub(crate) fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: Out<fuser::ReplyWrite>,
    ) {
        let reply = ReplyWrite::kernel(reply, self.changes_attr(ino_out));
        self.fs()
            .copy_file_range(req, ino_in, fh_in, offset_in, ino_out, fh_out, offset_out, len, flags, reply);
    }
}

/// Whether a mode, of which the kernel sends the type, too (`chmod_common`), keeps somebody from searching a directory.
fn closes(mode: u32) -> bool {
    matches!(mode & libc::S_IFMT, libc::S_IFDIR | 0) && mode & 0o111 != 0o111
}

/// Whether an extended attribute is an access control list.
fn is_acl(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"system.posix_acl_")
}

/// What opening a file with these flags asks of a policy.
fn opening(flags: OpenFlags) -> Permitted {
    let access = match flags.0 & libc::O_ACCMODE {
        libc::O_RDONLY => Permitted::READ,
        libc::O_WRONLY => Permitted::WRITE,
        _ => Permitted::READ | Permitted::WRITE,
    };
    if flags.0 & libc::O_TRUNC == 0 { access } else { access | Permitted::WRITE }
}
