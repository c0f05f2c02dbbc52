//! Opening files: granted, virtual, or by the kernel.

use std::ffi::OsStr;
use std::sync::Arc;

use finesse_ebpf::rules::Operations;
use fuser::{FileHandle, FileType, FopenFlags, INodeNo, OpenFlags};

use crate::answer::{Created, Opened};
use crate::coherence::{Creation, PendingGrant, VirtualOpen};
use crate::engine::cache::{Inode, Known};
use crate::engine::files::OpenFile;
use crate::engine::handles::Handle;
use crate::engine::permission::{READ, WRITE};
use crate::engine::serve::{Call, Changes, Output, Served};
use crate::engine::walk::{Last, Node};
use crate::engine::{Checks, Engine, Stop, fail, kernel, policy};
use crate::filesystem::Filesystem;
use crate::reply::{ReplyCreate, ReplyEmpty, ReplyOpen};
use crate::request::Request;
use finesse_ipc::frame::{self, Attr, Fallback, Reply};

/// What becomes of a file's backing descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Giving {
    /// It is granted at once.
    AtOnce,
    /// The file is opened virtually, and granted when the client asks for it.
    OnRequest,
    /// It stays here.
    Never,
}

/// How a client has a file open that was created for it.
enum Held {
    /// By a descriptor of the backing file.
    Granted,
    /// Virtually.
    Virtually(VirtualOpen),
    /// Not at all: the kernel has opened it already in a way that does not get on with that, by another name.
    Not,
}

/// How often a name is looked at that others make and remove.
const LOOKS: u32 = 16;

impl<FS: Filesystem> Engine<FS> {
    fn giving(&self) -> Giving {
        match (self.grants(), self.bypass.grants_on_request) {
            (true, false) => Giving::AtOnce,
            (true, true) => Giving::OnRequest,
            (false, _) => Giving::Never,
        }
    }

    fn can_open_virtually(&self, call: &Call<'_>) -> bool {
        self.core.hidden.exists() && call.context.handles.has_room()
    }

    pub(super) fn open(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let flags = call.frame.flags as i32;
        let unsupported = libc::O_PATH | libc::O_DIRECTORY | (libc::O_TMPFILE & !libc::O_DIRECTORY);
        let truncates_unwritable = flags & libc::O_TRUNC != 0 && flags & libc::O_ACCMODE == libc::O_RDONLY;
        if flags & unsupported != 0 || flags & libc::O_ACCMODE == libc::O_ACCMODE || truncates_unwritable {
            return kernel(Fallback::Unsupported);
        }
        let giving = match self.giving() {
            Giving::OnRequest if call.frame.base2 == frame::NOT_VIRTUAL => Giving::AtOnce,
            Giving::Never if call.frame.base2 == frame::NOT_VIRTUAL => return kernel(Fallback::NotGranted),
            giving => giving,
        };
        if giving != Giving::AtOnce {
            if self.core.read_only || !self.can_open_virtually(call) {
                return kernel(Fallback::NotGranted);
            }
            if flags & libc::O_DIRECT != 0 {
                // What the backing demands of buffers, the data of a slot does not keep.
                return kernel(Fallback::Unsupported);
            }
        }
        let call = &Call {
            request: match giving {
                Giving::AtOnce => self.request(call.context).taking_file(),
                _ => self.request(call.context),
            },
            ..*call
        };
        let exclusive = flags & (libc::O_CREAT | libc::O_EXCL) == libc::O_CREAT | libc::O_EXCL;
        let follow = flags & libc::O_NOFOLLOW == 0 && !exclusive;
        if flags & libc::O_CREAT != 0 && call.path.last() == Some(&b'/') {
            return kernel(Fallback::KernelByChoice);
        }
        if flags & libc::O_CREAT != 0
            && let Some(created) = self.create_at_once(call, exclusive, giving, output)?
        {
            return Ok(created);
        }
        for _ in 0..LOOKS {
            let last = self.last(call.context, &call.request, call.frame.base, call.path, follow);
            if let Err(Stop::Errno(libc::ENOENT | libc::ENOTDIR)) = last
                && flags & libc::O_CREAT != 0
            {
                // Or EISDIR, if a link's text ends with a slash (`open_last_lookups`).
                return kernel(Fallback::KernelByChoice);
            }
            match last? {
                Last::There(_) if exclusive => return fail(libc::EEXIST),
                Last::There(node) => {
                    let opened = self.open_existing(call, &node, giving, output)?;
                    if flags & libc::O_ACCMODE == libc::O_RDONLY {
                        self.publish_opened(call, &node);
                    }
                    return Ok(opened);
                }
                Last::Missing(directory, name) if flags & libc::O_CREAT != 0 => {
                    match self.create(call, &directory, &name, flags, giving, output) {
                        // Somebody else has made it meanwhile.
                        Err(Stop::Errno(libc::EEXIST)) if !exclusive => {}
                        created => return created,
                    }
                }
                Last::Missing(..) => return fail(libc::ENOENT),
            }
        }
        kernel(Fallback::KernelByChoice)
    }

    /// Whether the name exists is not looked up before where the file system finds it, and everything that comes before it in order, by
    /// itself: it is asked for `O_EXCL`. `None` if the name has to be looked up, or is known.
    fn create_at_once(
        &self,
        call: &Call<'_>,
        exclusive: bool,
        giving: Giving,
        output: &mut Output,
    ) -> Result<Option<Reply>, Stop> {
        if self.judges_types() || self.core.guard.is_some() || !self.covered.is_empty() {
            return Ok(None);
        }
        let parent = match self.parent_of(call) {
            Err(Stop::Errno(libc::ENOENT | libc::ENOTDIR)) => return kernel(Fallback::KernelByChoice),
            Err(_) if !exclusive => return Ok(None),
            parent => parent?,
        };
        let is_known = match self.cache.lookup(&parent.directory, parent.name) {
            Known::Inode(..) => true,
            // Nothing needs to be looked up.
            Known::Nothing(_) => !exclusive,
            Known::Unknown => false,
        };
        if is_known || self.core.read_only && !exclusive {
            return Ok(None);
        }
        let flags = call.frame.flags as i32 | libc::O_EXCL;
        match self.create(call, &parent.directory, parent.name, flags, giving, output) {
            Err(Stop::Errno(libc::EEXIST)) if !exclusive => Ok(None),
            created => created.map(Some),
        }
    }

    fn open_existing(&self, call: &Call<'_>, node: &Node, giving: Giving, output: &mut Output) -> Served {
        let flags = call.frame.flags as i32;
        match node.inode.kind {
            FileType::RegularFile => {}
            FileType::Directory => return kernel(Fallback::OpenDirectory),
            FileType::Symlink => return fail(libc::ELOOP),
            _ => return kernel(Fallback::OpenSpecial),
        }
        if flags & libc::O_CREAT != 0 {
            self.may_open_shared(call)?;
        }
        let mask = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => READ,
            libc::O_WRONLY => WRITE,
            _ => READ | WRITE,
        };
        // A descriptor of the source's file can be opened again (/proc/PID/fd), in any mode, past this mount.
        let operations =
            policy::asked(FileType::RegularFile, if giving == Giving::Never { mask } else { READ | WRITE });
        self.permit(call.context, &node.inode, operations)?;
        self.may(call.context, &call.request, &node.inode, mask)?;
        if self.checks == Checks::Engine && flags & libc::O_NOATIME != 0 {
            return kernel(Fallback::KernelByChoice);
        }
        if giving == Giving::AtOnce
            && self.known_attr(&node.inode).is_some_and(|attr| has_set_id(attr.perm.into()))
        {
            return kernel(Fallback::NotGranted);
        }
        let writes = mask & WRITE != 0;
        if writes && self.core.coherence.kernel_opens(node.inode.ino).executed {
            // ETXTBSY, if it still is.
            return kernel(Fallback::KernelHasItOpen);
        }
        let mut pending = None;
        let open = match giving {
            Giving::AtOnce if writes => {
                pending = Some(self.before_writable_grant(&node.inode)?);
                None
            }
            Giving::AtOnce if self.core.coherence.kernel_opens(node.inode.ino).writer => {
                // It may have changed, through a mapping, what the backing file has not got yet.
                return kernel(Fallback::KernelHasItOpen);
            }
            Giving::AtOnce => None,
            Giving::OnRequest | Giving::Never => Some(self.virtual_open(&node.inode, writes)?),
        };
        let ino = INodeNo(node.inode.ino);
        let passed = flags & !(libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC);
        let (reply, answer) = ReplyOpen::local();
        // To cut a file takes a handle.
        let with_handle = (flags & libc::O_TRUNC != 0).then(|| self.request(call.context));
        let request = with_handle.as_ref().unwrap_or(&call.request);
        self.core.fs.ask().open(request, ino, OpenFlags(passed), reply);
        let opened = match answer.wait() {
            // `fc->no_open`
            Err(errno) if errno.code() == libc::ENOSYS && open.is_some() => {
                Opened::handle(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE)
            }
            opened => opened?,
        };
        let mut opening = Opening { engine: self, request, ino, flags: passed, opened: Some(opened) };
        let has_backing = open.is_some() || opening.find_backing();
        drop(pending);
        if open.is_none() && (!has_backing || opening.is_set_id(&node.inode)?) {
            return kernel(Fallback::NotGranted);
        }
        if flags & libc::O_TRUNC != 0 {
            let fh = opening.fh();
            self.shed_privileges(call, &node.inode, fh)?;
            self.settle_mappings(&node.inode, 0, 0);
            self.setattr(&call.request, &node.inode, Changes { size: Some(0), fh, ..Changes::default() })?;
            self.data_changed(&node.inode, None);
        }
        match open {
            None => self.grant(&node.inode, opening, output),
            Some(_) if opening.is_unseekable() => kernel(Fallback::Unsupported),
            Some(open) => self.open_virtually(call, node.inode.clone(), opening, open, giving),
        }
    }

    /// In a sticky directory that others may write, `O_CREAT` of an existing file is judged by a system-wide
    /// setting (`may_create_in_sticky`).
    fn may_open_shared(&self, call: &Call<'_>) -> Result<(), Stop> {
        let parent = self.parent_of(call)?;
        let mode = u32::from(self.attr(&call.request, &parent.directory)?.perm);
        if mode & libc::S_ISVTX != 0 && mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 {
            return kernel(Fallback::KernelByChoice);
        }
        Ok(())
    }

    fn create(
        &self,
        call: &Call<'_>,
        directory: &Arc<Inode>,
        name: &OsStr,
        flags: i32,
        giving: Giving,
        output: &mut Output,
    ) -> Served {
        if self.core.read_only {
            return kernel(Fallback::KernelByChoice);
        }
        if giving == Giving::AtOnce && !self.can_open_virtually(call) {
            // What comes without a backing file, which only the file system's answer tells, is opened virtually.
            return kernel(Fallback::NotGranted);
        }
        self.permit(call.context, directory, Operations::CREATE)?;
        if giving != Giving::Never {
            self.permit_grant_of(call.context, directory, name)?;
        }
        self.may_create(call.context, &call.request, directory)?;
        let flags = flags & !libc::O_NOCTTY;
        let mode = self.masked(call, directory)? & 0o7777 | libc::S_IFREG;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let creation = match giving {
            Giving::AtOnce => writes.then_some(Creation::Granted),
            Giving::OnRequest | Giving::Never => Some(Creation::Virtual),
        };
        let changing = self.cache.creating(directory, name, creation);
        let mark = self.cache.mark();
        let (reply, answer) = ReplyCreate::local();
        let above = INodeNo(directory.ino);
        self.core.fs.ask().create(&call.request, above, name, mode, call.frame.umask, flags, reply);
        // Before the change ends, up to which the kernel heeds that the file is being made.
        let held = |Created { entry, opened }| {
            let (opening, held) = self.hold(call, entry.attr.ino, flags, opened, giving);
            (entry, opening, held)
        };
        let created = answer.wait().map(held);
        // The negative entry that led here is no more; the directory's times have changed.
        let mark = self.cache.made(changing, directory, &created, mark);
        let (entry, opening, held) = created?;
        let Some(node) = self.learned(directory, name, &entry, mark) else { return fail(libc::EIO) };
        // It has one name, so nothing stands against it.
        self.place_inode(directory, name, &node)?;
        match held {
            Held::Granted => {
                if writes {
                    self.cache.forget_attr(&node.inode);
                }
                self.grant(&node.inode, opening, output)
            }
            Held::Virtually(open) => {
                let is_the_kernels = call.frame.base2 == frame::NOT_VIRTUAL
                    || flags & libc::O_DIRECT != 0
                    || opening.is_unseekable();
                let mut reply = self.open_virtually(call, node.inode, opening, open, giving)?;
                reply.flags |= if is_the_kernels { frame::REPLY_KERNELS } else { 0 };
                Ok(reply)
            }
            // It stays: others may have found it, and written to it.
            Held::Not => kernel(Fallback::KernelHasItOpen),
        }
    }

    /// Notes how a client has a file open that the file system has just created.
    fn hold<'a>(
        &'a self,
        call: &'a Call<'_>,
        ino: INodeNo,
        flags: i32,
        opened: Opened,
        giving: Giving,
    ) -> (Opening<'a, FS>, Held) {
        let mut opening = Opening { engine: self, request: &call.request, ino, flags, opened: Some(opened) };
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        if giving == Giving::AtOnce && opening.find_backing() {
            if writes {
                // Whoever opens it through the kernel from here on finds it granted.
                self.core.coherence.note_granted_write(ino.0);
            }
            return (opening, Held::Granted);
        }
        let open = self.core.coherence.open_virtually(ino.0, writes);
        (opening, open.map_or(Held::Not, Held::Virtually))
    }

    /// From here on the inode's size, times and contents change unseen.
    pub(super) fn before_writable_grant(&self, inode: &Inode) -> Result<PendingGrant<'_>, Stop> {
        let pending = self.core.coherence.grants_write(inode.ino);
        self.cache.forget_attr(inode);
        if self.core.coherence.kernel_opens(inode.ino).cached {
            return kernel(Fallback::KernelHasItOpen);
        }
        Ok(pending)
    }

    /// Whether the file has a set-user-ID or set-group-ID bit: executed through a granted descriptor, it would not know
    /// of the mount's `nosuid`.
    pub(super) fn is_set_id(&self, request: &Request, inode: &Inode) -> Result<bool, Stop> {
        Ok(has_set_id(self.attr(request, inode)?.perm.into()))
    }

    fn virtual_open(&self, inode: &Inode, writes: bool) -> Result<VirtualOpen, Stop> {
        let open = self.core.coherence.open_virtually(inode.ino, writes);
        open.ok_or(Stop::Kernel(Fallback::KernelHasItOpen))
    }

    fn grant(&self, inode: &Inode, mut opening: Opening<'_, FS>, output: &mut Output) -> Served {
        // A writable one has been noted.
        if opening.flags & libc::O_ACCMODE == libc::O_RDONLY {
            self.core.coherence.note_granted_read(inode.ino);
        }
        output.grant = opening.opened.as_mut().and_then(|opened| opened.backing.take());
        Ok(Reply::attr(Attr { ino: inode.ino, ..Attr::default() }))
    }

    fn open_virtually(
        &self,
        call: &Call<'_>,
        inode: Arc<Inode>,
        mut opening: Opening<'_, FS>,
        open: VirtualOpen,
        giving: Giving,
    ) -> Served {
        let Some(mut opened) = opening.opened.take() else { return fail(libc::EIO) };
        if giving == Giving::Never {
            (opened.backing, opened.grantable) = (None, false);
        }
        let attr = Attr { ino: inode.ino, ..Attr::default() };
        let grantable = opened.backing.is_some() || opened.grantable;
        let writes = call.frame.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
        let is_quiet = !writes && opened.flags.contains(FopenFlags::FOPEN_NOFLUSH);
        let keeper = self.core.clone();
        let credentials = call.context.credentials.clone();
        let file = OpenFile::new(inode, opened, call.frame.flags as i32, open, keeper, credentials);
        let number = call.context.handles.insert(Handle::File(Arc::new(file)));
        let mut reply = Reply::with_file(attr, number);
        if grantable {
            reply.flags |= frame::REPLY_GRANTABLE;
        }
        if is_quiet {
            reply.flags |= frame::REPLY_QUIET;
        }
        Ok(reply)
    }
}

fn has_set_id(mode: u32) -> bool {
    mode & (libc::S_ISUID | libc::S_ISGID) != 0
}

/// A file that the file system has opened. Released again, unless it becomes a virtual descriptor: what was granted lives
/// on its own.
struct Opening<'a, FS: Filesystem> {
    engine: &'a Engine<FS>,
    request: &'a Request,
    ino: INodeNo,
    flags: i32,
    opened: Option<Opened>,
}

impl<FS: Filesystem> Opening<'_, FS> {
    /// Sees to it that the descriptor to grant is there, if there is one.
    fn find_backing(&mut self) -> bool {
        let Some(opened) = &mut self.opened else { return false };
        if opened.grantable && opened.backing.is_none() {
            let given = self.engine.core.fs.ask().grant(self.request, self.ino, opened.fh);
            let failed = |error: &std::io::Error| tracing::warn!(%error, "no descriptor for a backing file");
            opened.backing = given.inspect_err(failed).ok();
        }
        opened.backing.is_some()
    }

    /// Whether the file has a set-user-ID or set-group-ID bit.
    fn is_set_id(&self, inode: &Inode) -> Result<bool, Stop> {
        match self.opened.as_ref().and_then(|opened| opened.mode) {
            Some(mode) => Ok(has_set_id(mode)),
            None => self.engine.is_set_id(self.request, inode),
        }
    }

    /// Whether it has no offset, or none that can be set.
    fn is_unseekable(&self) -> bool {
        let unseekable = FopenFlags::FOPEN_NONSEEKABLE | FopenFlags::FOPEN_STREAM;
        self.opened.as_ref().is_some_and(|opened| opened.flags.intersects(unseekable))
    }

    fn fh(&self) -> Option<FileHandle> {
        self.opened.as_ref().map(|opened| opened.fh)
    }
}

impl<FS: Filesystem> Drop for Opening<'_, FS> {
    fn drop(&mut self) {
        let Some(opened) = self.opened.take().filter(|opened| !opened.is_released) else { return };
        let (reply, answer) = ReplyEmpty::local();
        let flags = OpenFlags(self.flags);
        self.engine.core.fs.ask().release(self.request, self.ino, opened.fh, flags, None, false, reply);
        // Errors of release reach nobody in the kernel either.
        let _ = answer.wait();
    }
}
