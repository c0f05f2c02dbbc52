//! One method per operation: what the system call of that name does in the kernel, for a FUSE mount.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finesse_ebpf::rules::Operations;
use fuser::{FileAttr, FileHandle, FileType, INodeNo, RenameFlags, TimeOrNow};

use crate::answer::{self, Answer};
use crate::coherence::Invalidate;
use crate::engine::cache::{Changing, Inode};
use crate::engine::permission::{EXEC, READ, WRITE};
use crate::engine::walk::{Node, Parent};
use crate::engine::{Checks, Context, Engine, Stop, fail, kernel, policy};
use crate::filesystem::Filesystem;
use crate::mutant;
use crate::reply::{ReplyAttr, ReplyEmpty, ReplyEntry, ReplyStatfs, ReplyXattr};
use crate::request::Request;
use finesse_ipc::frame::{self, Attr, BY_FILE, Fallback, Op, Reply, Statfs, Time};
use finesse_ipc::table::AbsentXattrs;

/// What goes to the client besides the reply.
#[derive(Default)]
pub(crate) struct Output {
    /// For the data buffer.
    pub(crate) data: Vec<u8>,
    /// A granted descriptor.
    pub(crate) grant: Option<OwnedFd>,
}

/// A request that no client of this version sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// No such operation.
    #[error("unknown operation {0}")]
    Operation(u32),
    /// A path longer than a slot holds.
    #[error("path of {0} bytes")]
    Length(u32),
}

/// One request on its way: the caller, the frame and the paths, copied out of shared memory.
pub(crate) struct Asked<'a> {
    /// The caller.
    pub(crate) context: &'a Context,
    /// The frame.
    pub(crate) frame: &'a frame::Request,
    /// The first path.
    pub(crate) path: &'a [u8],
    /// The second path.
    pub(crate) path2: &'a [u8],
    /// What the client put into the data buffer, for operations that send data.
    pub(crate) data: &'a [u8],
}

/// An operation with its FUSE request.
pub(super) struct Call<'a> {
    pub(super) context: &'a Context,
    pub(super) request: Request,
    pub(super) frame: &'a frame::Request,
    pub(super) path: &'a [u8],
    pub(super) path2: &'a [u8],
    pub(super) data: &'a [u8],
}

pub(super) type Served = Result<Reply, Stop>;

impl<FS: Filesystem> Engine<FS> {
    /// Serves one request.
    ///
    /// # Errors
    /// A request that no honest client sends; its connection is to be ended.
    pub(crate) fn serve(&self, asked: &Asked<'_>, output: &mut Output) -> Result<Reply, Malformed> {
        let op = Op::from_u32(asked.frame.op).ok_or(Malformed::Operation(asked.frame.op))?;
        self.cache.pay();
        let call = Call {
            context: asked.context,
            request: self.request(asked.context),
            frame: asked.frame,
            path: asked.path,
            path2: asked.path2,
            data: asked.data,
        };
        let changes = !matches!(
            op,
            Op::Noop
                | Op::Stat
                | Op::Access
                | Op::Readlink
                | Op::Statfs
                | Op::ResolveDir
                | Op::Open
                | Op::Changed
                | Op::Getxattr
                | Op::Listxattr
                | Op::OpenDir
                | Op::ReadDir
                | Op::Seek
                | Op::Sync
                | Op::Close
                | Op::Watch
                | Op::Unwatch
                | Op::Lend
        );
        if changes && self.core.read_only {
            return Ok(Reply::kernel(Fallback::KernelByChoice));
        }
        let (_flight, left) = self.heed_watchers(&call, op);
        if let Some(reason) = left {
            return Ok(Reply::kernel(reason));
        }
        let served = match op {
            Op::Noop => Ok(Reply::ok()),
            Op::Stat => self.stat(&call),
            Op::Access => self.access(&call),
            Op::Open => self.open(&call, output),
            Op::Unlink => self.remove(&call, false),
            Op::Rmdir => self.remove(&call, true),
            Op::Rename => self.rename(&call),
            Op::Mkdir | Op::Mknod | Op::Symlink => self.make(&call, op),
            Op::Link => self.link(&call),
            Op::Readlink => self.read_link(&call, output),
            Op::Chmod => self.chmod(&call),
            Op::Chown => self.chown(&call),
            Op::Truncate => self.truncate(&call),
            Op::Utimens => self.utimens(&call),
            Op::Statfs => self.statfs(&call),
            Op::ResolveDir => self.resolve_dir(&call),
            Op::Getxattr | Op::Listxattr => self.xattr(&call, op, output),
            Op::Changed => {
                self.cache.forget_attr_of(call.frame.base);
                Ok(Reply::ok())
            }
            Op::OpenDir => self.open_dir(&call, output),
            Op::ReadDir => self.read_dir(&call, output),
            Op::Seek => match self.file(&call) {
                Ok(file) => self.seek_file(&call, &file),
                Err(_) => self.seek(&call),
            },
            Op::Sync => match self.file(&call) {
                Ok(file) => self.sync_file(&call.request, &file, call.frame.mode == 1).map(|()| Reply::ok()),
                Err(_) => self.sync(&call),
            },
            Op::Close => self.close(&call),
            Op::Setxattr | Op::Removexattr => self.change_xattr(&call, op),
            Op::Read => self.read(&call, output),
            Op::Write => self.write(&call),
            Op::Allocate => self.allocate(&call),
            Op::SetFlags => self.set_flags(&call),
            Op::Promote => self.promote(&call, output),
            Op::Watch | Op::Unwatch => {
                self.announce(&call, op);
                Ok(Reply::ok())
            }
            Op::Lend => self.lend(&call, output),
            Op::ProveDir | Op::Taken => return Err(Malformed::Operation(asked.frame.op)),
        };
        Ok(served.unwrap_or_else(Reply::from))
    }

    pub(super) fn target(&self, call: &Call<'_>) -> Result<Node, Stop> {
        if call.frame.flags & BY_FILE != 0 {
            return Ok(Node { inode: self.file(call)?.inode().clone(), attr: None, public: None });
        }
        let follow = call.frame.flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0;
        if call.path.is_empty() && call.frame.flags & libc::AT_EMPTY_PATH as u32 != 0 {
            let inode = self.base(call.context, call.frame.base)?;
            return Ok(Node { inode, attr: None, public: None });
        }
        self.resolve(call.context, &call.request, call.frame.base, call.path, follow)
    }

    pub(super) fn parent_of<'a>(&self, call: &Call<'a>) -> Result<Parent<'a>, Stop> {
        self.parent(call.context, &call.request, call.frame.base, call.path)
    }

    fn stat(&self, call: &Call<'_>) -> Served {
        if call.frame.flags & BY_FILE != 0 {
            let file = self.file(call)?;
            let attr = match call.frame.flags & libc::AT_STATX_FORCE_SYNC as u32 {
                0 => self.file_attr(&call.request, &file)?,
                _ => self.fresh_file_attr(&call.request, &file)?,
            };
            return Ok(Reply::attr(to_frame(&attr)));
        }
        let node = self.target(call)?;
        let attr = match node.attr {
            Some(attr) => attr,
            None if call.frame.flags & libc::AT_STATX_FORCE_SYNC as u32 != 0 => {
                self.fresh_attr(&call.request, &node.inode)?
            }
            None => {
                let (attr, mark) = self.attr_to_publish(&call.request, &node.inode)?;
                self.publish_found(&node, &attr, mark);
                attr
            }
        };
        Ok(Reply::attr(to_frame(&attr)))
    }

    fn resolve_dir(&self, call: &Call<'_>) -> Served {
        let place = self.place(call.context, &call.request, call.frame.base, call.path, true)?;
        let inside = self.is_in_subtree(call.context, &place);
        let Some(inode) = place.inode else { return fail(libc::ENOENT) };
        if inode.kind != FileType::Directory {
            return fail(libc::ENOTDIR);
        }
        let ino = inode.ino;
        call.context.allow_base(inode);
        self.remember_base(call.context, ino, inside);
        Ok(Reply::attr(Attr { ino, ..Attr::default() }))
    }

    fn access(&self, call: &Call<'_>) -> Served {
        let mask = call.frame.mode;
        if mask & !(READ | WRITE | EXEC) != 0 {
            return kernel(Fallback::Unsupported);
        }
        let node = self.target(call)?;
        if mask == 0 {
            return Ok(Reply::ok());
        }
        self.permit(call.context, &node.inode, policy::asked(node.inode.kind, mask))?;
        let by_mount_flags = (mask & WRITE != 0 && self.core.read_only)
            || (mask & EXEC != 0 && self.core.no_exec && node.inode.kind == FileType::RegularFile);
        if by_mount_flags {
            return kernel(Fallback::KernelByChoice);
        }
        match self.checks {
            Checks::Engine => self.may(call.context, &call.request, &node.inode, mask)?,
            Checks::Caller | Checks::FileSystem => self.ask_access(&call.request, node.inode.ino, mask)?,
        }
        Ok(Reply::ok())
    }

    // --- names ---

    fn remove(&self, call: &Call<'_>, directory: bool) -> Served {
        let parent = self.parent_of(call)?;
        if parent.trailing_slash && !directory {
            return kernel(Fallback::KernelByChoice);
        }
        self.permit(call.context, &parent.directory, Operations::REMOVE)?;
        let changing = self.cache.changing(&parent.directory, parent.name);
        // The child matters if the file system does not check its type, if permissions depend on it, if
        // something may be mounted on it, or if it, or another name of it, may be cached.
        let must_know = self.judges_types() || !self.covered.is_empty() || changing.needs_inode();
        let mut child = None;
        if must_know {
            let there = self.child(call.context, &call.request, &parent.directory, parent.name)?;
            let Some(there) = there else { return fail(libc::ENOENT) };
            self.may_delete(call.context, &call.request, &parent.directory, &there.inode)?;
            match (there.inode.kind, directory) {
                _ if !self.judges_types() => {}
                (FileType::Directory, false) => return fail(libc::EISDIR),
                (FileType::Directory, true) | (_, false) => {}
                (_, true) => return fail(libc::ENOTDIR),
            }
            if directory && self.is_in_the_kernel(&there) && self.mounts_are_below() {
                // Perhaps a mount point: the kernel knows every one of those, and answers EBUSY.
                return kernel(Fallback::CrossesMount);
            }
            child = Some(there.inode);
        }
        let (reply, answer) = ReplyEmpty::local();
        let ino = INodeNo(parent.directory.ino);
        match directory {
            false => self.core.fs.ask().unlink(&call.request, ino, parent.name, reply),
            true => self.core.fs.ask().rmdir(&call.request, ino, parent.name, reply),
        }
        let cached = self.removed(changing, &parent.directory, answer, child.as_ref())?;
        if let (Some(child), true) = (child.or(cached), directory) {
            child.bury();
        }
        Ok(Reply::ok())
    }

    /// Whether it is a directory that the kernel knows: somebody may be in it, or below it, or have mounted something there.
    fn is_in_the_kernel(&self, child: &Node) -> bool {
        child.inode.kind == FileType::Directory
            && self.core.coherence.kernel_knows(child.inode.ino)
            && !mutant::leaves_out("bypass: directories in the kernel")
    }

    /// Waits for a removal and forgets the name, whatever came of it.
    pub(super) fn removed(
        &self,
        changing: Changing<'_>,
        directory: &Inode,
        answer: Answer<()>,
        child: Option<&Arc<Inode>>,
    ) -> Result<Option<Arc<Inode>>, Stop> {
        let removed = answer.wait();
        let settled = changing.settle(&removed, child, false);
        // Of a directory only times and size change, about which no permission is decided.
        self.cache.forget_times(directory);
        removed?;
        Ok(settled.cached)
    }

    fn rename(&self, call: &Call<'_>) -> Served {
        let flags = call.frame.flags;
        if !matches!(flags, 0 | libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) {
            // Whiteouts need CAP_MKNOD; what is unknown, and both at once, is EINVAL.
            return kernel(Fallback::KernelByChoice);
        }
        let from = self.parent_of(call)?;
        let to = self.parent(call.context, &call.request, call.frame.base2, call.path2)?;
        if from.trailing_slash || to.trailing_slash {
            return kernel(Fallback::KernelByChoice);
        }
        for parent in [&from, &to] {
            self.permit(call.context, &parent.directory, Operations::CREATE | Operations::REMOVE)?;
        }
        self.permit_move(&from, &to)?;
        let exchanges = flags & libc::RENAME_EXCHANGE != 0;
        let leaving = match exchanges {
            true => self.cache.moving_to(&from.directory, from.name),
            false => self.cache.changing(&from.directory, from.name),
        };
        let entering = self.cache.moving_to(&to.directory, to.name);
        let must_know = self.judges_types()
            || !self.covered.is_empty()
            || leaving.needs_inode()
            || entering.needs_inode();
        let (mut moved, mut replaced) = (None, None);
        if must_know {
            let source = self.child(call.context, &call.request, &from.directory, from.name)?;
            let target = self.child(call.context, &call.request, &to.directory, to.name)?;
            // Whoever is in a directory learns its path from the kernel, which only moves names itself.
            if [&source, &target].into_iter().flatten().any(|node| self.is_in_the_kernel(node)) {
                return kernel(Fallback::KernelByChoice);
            }
            let Some(source) = source else { return fail(libc::ENOENT) };
            let judged = self.may_rename(call, &from, &source, &to, target.as_ref());
            let nodes = [Some(&source), target.as_ref()];
            if let Err(Stop::Errno(_)) = judged
                && nodes.into_iter().flatten().any(|node| node.inode.kind == FileType::Directory)
            {
                // That one is above the other comes first (`lock_rename`: EINVAL, ENOTEMPTY).
                return kernel(Fallback::KernelByChoice);
            }
            judged?;
            replaced = target.map(|target| target.inode);
            moved = Some(source.inode);
        }
        let (reply, answer) = ReplyEmpty::local();
        self.core.fs.ask().rename(
            &call.request,
            INodeNo(from.directory.ino),
            from.name,
            INodeNo(to.directory.ino),
            to.name,
            RenameFlags::from_bits_retain(flags),
            reply,
        );
        let renamed = answer.wait();
        let in_the_kernel = |inode: Option<&Arc<Inode>>| {
            inode.is_some_and(|inode| self.core.coherence.kernel_knows(inode.ino))
        };
        let returns = exchanges && in_the_kernel(replaced.as_ref());
        let left = leaving.settle(&renamed, moved.as_ref(), returns);
        let followed = left.told.is_some() || in_the_kernel(moved.as_ref());
        let target = entering.settle(&renamed, replaced.as_ref(), followed).cached.or(replaced);
        for directory in [&from.directory, &to.directory] {
            self.cache.forget_attr(directory);
        }
        let may_be_directory =
            |inode: Option<&Arc<Inode>>| inode.is_none_or(|inode| inode.kind == FileType::Directory);
        if from.directory.ino != to.directory.ino {
            if may_be_directory(moved.as_ref().or(left.cached.as_ref())) {
                self.cache.moved_to(to.directory.ino);
            }
            if exchanges && may_be_directory(target.as_ref()) {
                self.cache.moved_to(from.directory.ino);
            }
        }
        renamed?;
        if let (Some(target), false) = (&target, exchanges)
            && target.kind == FileType::Directory
        {
            // An empty directory that the moved one has replaced.
            target.bury();
        }
        Ok(Reply::ok())
    }

    /// Whether a wrong type is the engine's to answer. It is not for a file system that judges permissions and types
    /// itself: those come first (`may_delete`).
    pub(super) fn judges_types(&self) -> bool {
        !self.bypass.checks_types || self.checks == Checks::Engine
    }

    /// `vfs_rename`'s checks.
    fn may_rename(
        &self,
        call: &Call<'_>,
        from: &Parent<'_>,
        source: &Node,
        to: &Parent<'_>,
        target: Option<&Node>,
    ) -> Result<(), Stop> {
        let flags = call.frame.flags;
        let is_directory = |node: &Node| node.inode.kind == FileType::Directory;
        if !self.bypass.checks_types && (is_directory(source) || flags & libc::RENAME_EXCHANGE != 0) {
            // Whether one directory is above the other is known to the kernel (`lock_rename`).
            return kernel(Fallback::KernelByChoice);
        }
        if flags & libc::RENAME_NOREPLACE != 0 && target.is_some() && self.judges_types() {
            return fail(libc::EEXIST);
        }
        if target.is_some_and(|target| Arc::ptr_eq(&target.inode, &source.inode)) {
            return kernel(Fallback::KernelByChoice);
        }
        self.may_delete(call.context, &call.request, &from.directory, &source.inode)?;
        match target {
            None => self.may_create(call.context, &call.request, &to.directory)?,
            Some(target) => {
                self.may_delete(call.context, &call.request, &to.directory, &target.inode)?;
                match (is_directory(source), is_directory(target)) {
                    _ if flags & libc::RENAME_EXCHANGE != 0 || !self.judges_types() => {}
                    (true, false) => return fail(libc::ENOTDIR),
                    (false, true) => return fail(libc::EISDIR),
                    _ => {}
                }
            }
        }
        if self.checks == Checks::Engine && is_directory(source) && from.directory.ino != to.directory.ino {
            // `..` of the moved directory changes.
            self.may(call.context, &call.request, &source.inode, WRITE)?;
        }
        Ok(())
    }

    fn make(&self, call: &Call<'_>, op: Op) -> Served {
        let kind = call.frame.mode & libc::S_IFMT;
        if op == Op::Mknod && !matches!(kind, 0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) {
            // Device nodes ask for CAP_MKNOD; the rest is EPERM or EINVAL.
            return kernel(Fallback::KernelByChoice);
        }
        let parent = self.parent_of(call)?;
        if parent.trailing_slash && op != Op::Mkdir {
            return kernel(Fallback::KernelByChoice);
        }
        self.permit(call.context, &parent.directory, Operations::CREATE)?;
        self.may_make(call, &parent)?;
        let mode = self.masked(call, &parent.directory)?;
        let changing = self.cache.changing(&parent.directory, parent.name);
        let (reply, answer) = ReplyEntry::local();
        let mark = self.cache.mark();
        let (fs, request, directory) = (&self.core.fs, &call.request, INodeNo(parent.directory.ino));
        match op {
            Op::Mkdir => {
                let mode = mode & 0o1777 | libc::S_IFDIR;
                fs.ask().mkdir(request, directory, parent.name, mode, call.frame.umask, reply);
            }
            Op::Mknod => {
                let kind = if kind == 0 { libc::S_IFREG } else { kind };
                let mode = mode & 0o7777 | kind;
                fs.ask().mknod(request, directory, parent.name, mode, call.frame.umask, 0, reply);
            }
            _ => {
                if call.path2.is_empty() {
                    return fail(libc::ENOENT);
                }
                let target = Path::new(OsStr::from_bytes(call.path2));
                fs.ask().symlink(request, directory, parent.name, target, reply);
            }
        }
        self.made(&parent, changing, answer, mark)
    }

    /// The mode that a new inode asks for: masked, unless the file system does it.
    pub(super) fn masked(&self, call: &Call<'_>, directory: &Inode) -> Result<u32, Stop> {
        let umask = if self.bypass.applies_umask { 0 } else { call.frame.umask };
        let mode = call.frame.mode & !umask;
        let executable_as_group = libc::S_ISGID | libc::S_IXGRP;
        if self.checks == Checks::Caller || mode & executable_as_group != executable_as_group {
            return Ok(mode);
        }
        // `mode_strip_sgid`: the file will be of the directory's group, which must be the caller's, too.
        let above = self.attr(&call.request, directory)?;
        let inherits = u32::from(above.perm) & libc::S_ISGID != 0;
        let keeps = !inherits || call.context.credentials.keeps_setgid(above.gid);
        Ok(if keeps { mode } else { mode & !libc::S_ISGID })
    }

    /// The new name must not exist, and the caller may make it (`filename_create`, `may_create`).
    fn may_make(&self, call: &Call<'_>, parent: &Parent<'_>) -> Result<(), Stop> {
        if self.judges_types() {
            let there = self.child(call.context, &call.request, &parent.directory, parent.name)?;
            if there.is_some() {
                return fail(libc::EEXIST);
            }
        }
        self.may_create(call.context, &call.request, &parent.directory)
    }

    fn made(
        &self,
        parent: &Parent<'_>,
        changing: Changing<'_>,
        answer: Answer<answer::Entry>,
        mark: u64,
    ) -> Served {
        let made = answer.wait();
        let mark = self.cache.made(changing, &parent.directory, &made, mark);
        // Takes over the reference.
        match self.learned(&parent.directory, parent.name, &made?, mark) {
            Some(_) => Ok(Reply::ok()),
            None => fail(libc::EIO),
        }
    }

    fn link(&self, call: &Call<'_>) -> Served {
        let follow = call.frame.flags & libc::AT_SYMLINK_FOLLOW as u32 != 0;
        let source = self.resolve(call.context, &call.request, call.frame.base, call.path, follow)?;
        let parent = self.parent(call.context, &call.request, call.frame.base2, call.path2)?;
        if parent.trailing_slash || source.inode.kind == FileType::Directory {
            return kernel(Fallback::KernelByChoice);
        }
        self.permit(call.context, &parent.directory, Operations::CREATE)?;
        self.permit_link(&source.inode, &parent)?;
        if self.checks != Checks::Caller {
            // `may_linkat`: beyond the owner it depends on a system-wide setting.
            let attr = self.attr(&call.request, &source.inode)?;
            if !call.context.credentials.owns(&attr) {
                return kernel(Fallback::KernelByChoice);
            }
        }
        self.may_make(call, &parent)?;
        let changing = self.cache.changing(&parent.directory, parent.name);
        let (reply, answer) = ReplyEntry::local();
        let mark = self.cache.mark();
        let (old, directory) = (INodeNo(source.inode.ino), INodeNo(parent.directory.ino));
        self.core.fs.ask().link(&call.request, old, directory, parent.name, reply);
        let served = self.made(&parent, changing, answer, mark);
        self.cache.forget_attr(&source.inode);
        served
    }

    fn read_link(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let node = self.resolve(call.context, &call.request, call.frame.base, call.path, false)?;
        let mark = self.cache.mark();
        let mut target = self.link_target(&call.request, &node.inode)?;
        self.publish_target(&node, &target, mark);
        target.truncate(call.frame.size.min(finesse_ipc::layout::DATA_BYTES as u64) as usize);
        let reply = Reply::data(target.len() as u32);
        output.data = target;
        Ok(reply)
    }

    /// Reads of extended attributes. Which of them a caller may read the kernel decides by name (`xattr_permission`),
    /// so beyond those of users only names that neither a capability nor a security module guards are served, and only
    /// where the file system asks the backing's kernel as the caller.
    fn xattr(&self, call: &Call<'_>, op: Op, output: &mut Output) -> Served {
        let name = OsStr::from_bytes(call.path2);
        let is_users = is_users(call.path2);
        if op == Op::Getxattr && !is_users && !self.is_for_all(call.path2) {
            return kernel(Fallback::KernelByChoice);
        }
        let mark = self.cache.mark();
        let node = self.target(call)?;
        if op == Op::Getxattr && is_users {
            self.permit(call.context, &node.inode, Operations::READ)?;
            self.may_use_xattr(call, &node.inode, READ)?;
        }
        let room = call.frame.size.min(finesse_ipc::layout::DATA_BYTES as u64) as u32;
        let (reply, answer) = ReplyXattr::local();
        let ino = INodeNo(node.inode.ino);
        match op {
            Op::Listxattr => self.core.fs.ask().listxattr(&call.request, ino, room, reply),
            _ => self.core.fs.ask().getxattr(&call.request, ino, name, room, reply),
        }
        match answer.wait().map_err(xattr_error)? {
            answer::Xattr::Size(size) => Ok(Reply::data(size)),
            answer::Xattr::Data(data) if data.len() > room as usize => fail(libc::ERANGE),
            answer::Xattr::Data(data) => {
                let reply = Reply::data(data.len() as u32);
                output.data = data;
                Ok(reply)
            }
            answer::Xattr::Nothing(answer, absent) => {
                self.cache.learn_absent_xattrs(&node.inode, absent, mark);
                if node.public.is_some()
                    && let Ok((attr, mark)) = self.attr_to_publish(&call.request, &node.inode)
                {
                    self.publish_found(&node, &attr, mark);
                }
                answer.map(|()| Reply::data(0)).map_err(xattr_error)
            }
        }
    }

    /// Whether everybody may read an extended attribute of this name who can look up the file, and finds the same.
    fn is_for_all(&self, name: &[u8]) -> bool {
        let AbsentXattrs { acl, security, .. } = self.for_all();
        (acl && name.starts_with(b"system.posix_acl_")) || (security && name.starts_with(b"security."))
    }

    /// Of which extended attributes clients may know that a file has none.
    pub(super) fn absent_for_all(&self, absent: AbsentXattrs) -> AbsentXattrs {
        let AbsentXattrs { any, acl, security } = self.for_all();
        AbsentXattrs { any: any && absent.any, acl: acl && absent.acl, security: security && absent.security }
    }

    /// Which extended attributes everybody finds alike. Security modules guard theirs, and add them to lists.
    fn for_all(&self) -> AbsentXattrs {
        let acl = self.checks == Checks::Caller;
        let security = acl && !self.security_modules;
        AbsentXattrs { any: security, acl, security }
    }

    /// Sets or removes an extended attribute of a user's. Others need capabilities, or are cached by the kernel.
    fn change_xattr(&self, call: &Call<'_>, op: Op) -> Served {
        let (name, flags) = (OsStr::from_bytes(call.path2), call.frame.size as i32);
        if !is_users(call.path2) || call.data.len() > XATTR_SIZE_MAX {
            return kernel(Fallback::KernelByChoice);
        }
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return fail(libc::EINVAL);
        }
        let node = self.target(call)?;
        self.permit(call.context, &node.inode, Operations::WRITE)?;
        self.may_use_xattr(call, &node.inode, WRITE)?;
        let (reply, answer) = ReplyEmpty::local();
        let ino = INodeNo(node.inode.ino);
        match op {
            Op::Setxattr => {
                self.core.fs.ask().setxattr(&call.request, ino, name, call.data, flags, 0, reply);
            }
            _ => self.core.fs.ask().removexattr(&call.request, ino, name, reply),
        }
        let changed = answer.wait();
        self.cache.forget_attr(&node.inode);
        changed.map(|()| Reply::ok()).map_err(xattr_error)
    }

    /// `xattr_permission` for attributes of users.
    fn may_use_xattr(&self, call: &Call<'_>, inode: &Inode, mask: u32) -> Result<(), Stop> {
        match inode.kind {
            FileType::RegularFile => {}
            // In a sticky one, only the owner may write.
            FileType::Directory if mask == READ => {}
            _ => return kernel(Fallback::KernelByChoice),
        }
        self.may(call.context, &call.request, inode, mask)
    }

    // --- attributes ---

    pub(super) fn setattr(&self, request: &Request, inode: &Inode, changes: Changes) -> Result<(), Stop> {
        let changed = self.ask_setattr(request, inode, changes);
        self.cache.forget_attr(inode);
        changed
    }

    /// As [`setattr`](Self::setattr); it is left to the caller to forget the attributes.
    pub(super) fn ask_setattr(&self, request: &Request, inode: &Inode, changes: Changes) -> Result<(), Stop> {
        let (reply, answer) = ReplyAttr::local();
        self.core.fs.ask().setattr(
            request,
            INodeNo(inode.ino),
            changes.mode,
            changes.uid,
            changes.gid,
            changes.size,
            changes.atime,
            changes.mtime,
            None,
            changes.fh,
            None,
            None,
            None,
            None,
            reply,
        );
        answer.wait()?;
        Ok(())
    }

    /// The contents have changed, or the size: `longer` is where the file ends if it has become longer by a hole.
    pub(super) fn data_changed(&self, inode: &Inode, longer: Option<u64>) {
        if mutant::leaves_out("bypass: pages") {
            return;
        }
        if let Err(error) = self.core.coherence.bypass_changed_data(inode.ino, longer) {
            tracing::warn!(ino = inode.ino, %error, "the kernel did not drop its pages of a changed file");
        }
    }

    fn chmod(&self, call: &Call<'_>) -> Served {
        let node = self.target(call)?;
        if node.inode.kind == FileType::Symlink {
            return kernel(Fallback::KernelByChoice);
        }
        self.permit(call.context, &node.inode, Operations::WRITE)?;
        let mut mode = call.frame.mode & 0o7777;
        let gives_set_id = mode & (libc::S_ISUID | libc::S_ISGID) != 0;
        // Whose writes take such bits away the kernel decides by itself, if it has heard of them.
        let kernel_must_hear =
            || gives_set_id && self.core.coherence.kernel_opens(node.inode.ino).passthrough;
        if kernel_must_hear() {
            return kernel(Fallback::KernelHasItOpen);
        }
        let attr = self.attr(&call.request, &node.inode)?;
        if self.checks == Checks::Engine {
            let credentials = &call.context.credentials;
            if !credentials.owns(&attr) {
                return fail(libc::EPERM);
            }
            if !credentials.keeps_setgid(attr.gid) {
                mode &= !libc::S_ISGID;
            }
        }
        let changes = Changes { mode: Some(mode | type_bits(attr.kind)), ..Changes::default() };
        let changed = self.setattr(&call.request, &node.inode, changes);
        if node.inode.kind == FileType::Directory && mode & 0o111 != 0o111 {
            self.cache.closed(Some(node.inode.ino));
        }
        changed?;
        if kernel_must_hear() {
            // It has opened the file meanwhile. Once more does no harm.
            return kernel(Fallback::KernelHasItOpen);
        }
        Ok(Reply::ok())
    }

    fn chown(&self, call: &Call<'_>) -> Served {
        let given = |id: u32| (id != u32::MAX).then_some(id);
        let (uid, gid) = (given(call.frame.uid), given(call.frame.gid));
        if uid.is_none() && gid.is_none() {
            return kernel(Fallback::KernelByChoice);
        }
        let node = self.target(call)?;
        self.permit(call.context, &node.inode, Operations::WRITE)?;
        let mut mode = None;
        if self.checks != Checks::Caller {
            let attr = self.attr(&call.request, &node.inode)?;
            if self.checks == Checks::Engine {
                let credentials = &call.context.credentials;
                if uid.is_some_and(|uid| !credentials.may_chown(&attr, uid))
                    || gid.is_some_and(|gid| !credentials.may_chgrp(&attr, gid))
                {
                    return fail(libc::EPERM);
                }
            }
            mode = without_privileges(&attr);
        }
        self.setattr(&call.request, &node.inode, Changes { mode, uid, gid, ..Changes::default() })?;
        Ok(Reply::ok())
    }

    fn truncate(&self, call: &Call<'_>) -> Served {
        if call.frame.flags & BY_FILE != 0 {
            return self.truncate_file(call);
        }
        let node = self.target(call)?;
        match node.inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return fail(libc::EISDIR),
            _ => return fail(libc::EINVAL),
        }
        if call.frame.size > i64::MAX as u64 {
            return fail(libc::EINVAL);
        }
        self.permit(call.context, &node.inode, Operations::WRITE)?;
        self.may(call.context, &call.request, &node.inode, WRITE)?;
        let opens = self.core.coherence.kernel_opens(node.inode.ino);
        if opens.cached_writer || opens.executed {
            // A writer appends where it thinks that the file ends. A program's file is ETXTBSY.
            return kernel(Fallback::KernelHasItOpen);
        }
        self.shed_privileges(call, &node.inode, None)?;
        self.settle_mappings(&node.inode, 0, 0);
        let before = self.attr(&call.request, &node.inode)?.size;
        let size = call.frame.size;
        self.setattr(&call.request, &node.inode, Changes { size: Some(size), ..Changes::default() })?;
        self.data_changed(&node.inode, (size > before).then_some(size));
        Ok(Reply::ok())
    }

    fn utimens(&self, call: &Call<'_>) -> Served {
        let [atime, mtime] = call.frame.times.map(to_time);
        let (Ok(atime), Ok(mtime)) = (atime, mtime) else { return fail(libc::EINVAL) };
        if atime.is_none() && mtime.is_none() {
            // The kernel does not even look at the path then.
            return kernel(Fallback::KernelByChoice);
        }
        let node = self.target(call)?;
        self.permit(call.context, &node.inode, Operations::WRITE)?;
        if self.checks == Checks::Engine {
            let attr = self.attr(&call.request, &node.inode)?;
            let both_now = matches!((atime, mtime), (Some(TimeOrNow::Now), Some(TimeOrNow::Now)));
            if !call.context.credentials.owns(&attr) {
                if !both_now {
                    return fail(libc::EPERM);
                }
                self.may(call.context, &call.request, &node.inode, WRITE)?;
            }
        }
        self.setattr(&call.request, &node.inode, Changes { atime, mtime, ..Changes::default() })?;
        Ok(Reply::ok())
    }

    fn statfs(&self, call: &Call<'_>) -> Served {
        let node = self.target(call)?;
        let (reply, answer) = ReplyStatfs::local();
        self.core.fs.ask().statfs(&call.request, INodeNo(node.inode.ino), reply);
        let answer = answer.wait()?;
        Ok(Reply::statfs(Statfs {
            blocks: answer.blocks,
            bfree: answer.bfree,
            bavail: answer.bavail,
            files: answer.files,
            ffree: answer.ffree,
            bsize: answer.bsize,
            namelen: answer.namelen,
            // `convert_fuse_statfs` takes it as it is; `statfs_by_dentry` fills a zero in.
            frsize: if answer.frsize == 0 { answer.bsize } else { answer.frsize },
            pad: 0,
        }))
    }
}

/// Longest value of an extended attribute.
const XATTR_SIZE_MAX: usize = 65_536;

/// Whether an extended attribute is one that users keep for themselves.
fn is_users(name: &[u8]) -> bool {
    let prefix = b"user.";
    name.starts_with(prefix) && name.len() > prefix.len() && name.len() <= 255
}

/// `fc->no_setxattr` and its like.
fn xattr_error(errno: fuser::Errno) -> Stop {
    match errno.code() {
        libc::ENOSYS => Stop::Errno(libc::EOPNOTSUPP),
        _ => errno.into(),
    }
}

/// Arguments of `setattr`.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
    pub(super) fh: Option<FileHandle>,
}

/// The mode without the bits that a change of owner, size or contents takes away (`fuse_setattr` without
/// `FUSE_HANDLE_KILLPRIV`); `None` if there are none.
pub(crate) fn without_privileges(attr: &FileAttr) -> Option<u32> {
    if attr.kind != FileType::RegularFile {
        return None;
    }
    let mode = u32::from(attr.perm);
    let mut kept = mode & !libc::S_ISUID;
    if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP {
        kept &= !libc::S_ISGID;
    }
    (kept != mode).then_some(kept | libc::S_IFREG)
}

/// What a request's time means; `None` is "leave it".
fn to_time(time: Time) -> Result<Option<TimeOrNow>, ()> {
    match time.nsec {
        libc::UTIME_NOW => Ok(Some(TimeOrNow::Now)),
        libc::UTIME_OMIT => Ok(None),
        nsec @ 0..1_000_000_000 => {
            let seconds = Duration::from_secs(time.sec.unsigned_abs());
            let whole = match time.sec {
                0.. => UNIX_EPOCH.checked_add(seconds),
                _ => UNIX_EPOCH.checked_sub(seconds),
            };
            let time = whole.and_then(|whole| whole.checked_add(Duration::from_nanos(nsec as u64)));
            time.map(|time| Some(TimeOrNow::SpecificTime(time))).ok_or(())
        }
        _ => Err(()),
    }
}

fn from_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos().into() },
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => Time { sec: -(before.as_secs() as i64), nsec: 0 },
                nanos => Time { sec: -(before.as_secs() as i64) - 1, nsec: 1_000_000_000 - i64::from(nanos) },
            }
        }
    }
}

fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Attributes as `fuse_fillattr` would report them.
pub(super) fn to_frame(attr: &FileAttr) -> Attr {
    Attr {
        ino: attr.ino.0,
        size: attr.size,
        blocks: attr.blocks,
        times: [from_time(attr.atime), from_time(attr.mtime), from_time(attr.ctime)],
        mode: type_bits(attr.kind) | u32::from(attr.perm) & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_on_both_sides_of_the_epoch() {
        for time in [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-62_135_596_800, 7)] {
            let time = Time { sec: time.0, nsec: time.1 };
            let Ok(Some(TimeOrNow::SpecificTime(system))) = to_time(time) else { panic!("{time:?}") };
            assert_eq!(from_time(system), time);
        }
    }

    #[test]
    fn special_times_are_told_apart() {
        let nsec = |nsec| to_time(Time { sec: 0, nsec });
        assert!(matches!(nsec(libc::UTIME_NOW), Ok(Some(TimeOrNow::Now))));
        assert!(matches!(nsec(libc::UTIME_OMIT), Ok(None)));
        assert!(nsec(1_000_000_000).is_err() && nsec(-1).is_err());
    }
}
