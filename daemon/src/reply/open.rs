//! Replies that open a file.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use fuser::{Errno, FileAttr, FileHandle, FopenFlags, Generation};
use log::warn;

use super::backing::{BackingId, KernelBacking};
use super::{To, reply};
use crate::answer::{Created, Entry, Opened};
use crate::kernel::hooks::Hooks;
use crate::request::TakesFile;

reply! {
    /// The answer of `open` and `opendir`.
    ReplyOpen => Opened, errors of its own
}

reply! {
    /// The answer of `create`.
    ReplyCreate => Created, errors of its own
}

/// The flags that go to the kernel, after what they mean has been noted, and whether the kernel may serve the backing file
/// by itself.
fn kernel_flags(hooks: &Hooks, flags: FopenFlags, pass: bool) -> (FopenFlags, bool) {
    if hooks.directory {
        return (hooks.coherence.open_directory(hooks.ino, flags), false);
    }
    hooks.coherence.open_file(hooks.ino, flags, pass, hooks.access, None)
}

impl ReplyOpen {
    /// Answers with an error. `ENOSYS` says that opening needs no call: the open succeeds with handle 0.
    ///
    /// Of files the kernel is told just that success, because after `ENOSYS` it would neither report opens any more
    /// nor ever drop a file's pages (`fc->no_open`), and the bypass could not tell what it holds. Of directories it is told
    /// `ENOSYS`, if it is recent enough (Linux 6.9) and there is no policy to ask: it reports when it lists them.
    pub fn error(self, err: Errno) {
        match self.to {
            To::Kernel(kernel)
                if err == Errno::ENOSYS
                    && kernel.hooks.directory
                    && !kernel.hooks.asks_always
                    && kernel.hooks.coherence.directories_need_no_open() =>
            {
                kernel.settle().1.error(err);
            }
            To::Kernel(kernel) if err == Errno::ENOSYS => {
                // As the kernel does by itself then (`fuse_file_open`).
                let listing =
                    if kernel.hooks.directory { FopenFlags::FOPEN_CACHE_DIR } else { FopenFlags::empty() };
                let to = To::Kernel(kernel);
                Self { to }.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | listing);
            }
            To::Kernel(kernel) => kernel.settle().1.error(err),
            To::Local(sender) => sender.send(Err(err)),
        }
    }

    /// Answers with a handle.
    ///
    /// # Panics
    /// If `flags` contain `FOPEN_PASSTHROUGH`, which is
    /// [`opened_passthrough`](Self::opened_passthrough)'s to set.
    pub fn opened(self, fh: FileHandle, flags: FopenFlags) {
        assert!(!flags.contains(FopenFlags::FOPEN_PASSTHROUGH), "FOPEN_PASSTHROUGH without a backing file");
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let (flags, _) = kernel_flags(&hooks, flags, false);
                reply.opened(fh, flags);
            }
            To::Local(sender) => sender.send(Ok(Opened::handle(fh, flags))),
        }
    }

    /// Gives the backing file to the program, as the request [takes](crate::Request::takes_file) it: there is no handle, and no
    /// `release`. `mode`: the file's type and permission bits, as in `st_mode`.
    pub fn given(self, _: TakesFile, backing: OwnedFd, mode: u32) {
        match self.to {
            // Another request took it.
            To::Kernel(_) => self.error(Errno::EIO),
            To::Local(sender) => sender.send(Ok(Opened::given(backing, mode))),
        }
    }

    /// As [`opened`](Self::opened). On the bypass, the file system gives a descriptor of the backing file to the program when it is
    /// asked to, by [`grant`](crate::Filesystem::grant).
    ///
    /// # Panics
    /// As [`opened`](Self::opened).
    pub fn opened_grantable(self, fh: FileHandle, flags: FopenFlags) {
        assert!(!flags.contains(FopenFlags::FOPEN_PASSTHROUGH), "FOPEN_PASSTHROUGH without a backing file");
        match self.to {
            To::Kernel(_) => self.opened(fh, flags),
            To::Local(sender) => sender.send(Ok(Opened { grantable: true, ..Opened::handle(fh, flags) })),
        }
    }

    /// Whether the kernel's page cache may serve a file that is opened for reading. If so, the answer is
    /// [`opened`](Self::opened).
    pub(crate) fn may_read_pages(&self) -> bool {
        match &self.to {
            To::Kernel(kernel) => kernel.hooks.coherence.may_read_pages(kernel.hooks.ino),
            To::Local(_) => false,
        }
    }

    /// Registers a backing file, to be given to [`opened_passthrough`](Self::opened_passthrough).
    ///
    /// # Errors
    /// On the kernel road those of [`BackingId::create_raw`]; on the bypass those of duplicating a descriptor.
    pub fn open_backing(&self, fd: impl AsFd) -> io::Result<BackingId> {
        match &self.to {
            To::Kernel(kernel) => kernel.reply.open(fd.as_fd()).map(BackingId::from_kernel),
            To::Local(_) => BackingId::from_fd(fd),
        }
    }

    /// Takes over an ID that [`BackingId::create_raw`] or [`BackingId::into_raw`] returned. On the bypass the
    /// result carries no descriptor, and the ID is closed only if it comes to be used on the kernel road.
    ///
    /// # Safety
    /// The ID is open, belongs to this session, and is closed by nobody else while the result lives.
    pub unsafe fn wrap_backing(&self, id: u32) -> BackingId {
        match &self.to {
            To::Kernel(kernel) => BackingId::from_kernel(kernel.reply.wrap(id)),
            To::Local(_) => BackingId::from_raw(id),
        }
    }

    /// Answers with a handle whose reads and writes go to the backing file.
    pub fn opened_passthrough(self, fh: FileHandle, flags: FopenFlags, backing_id: &BackingId) {
        let flags = flags - FopenFlags::FOPEN_PASSTHROUGH;
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let backing = backing_id.for_kernel(&reply);
                let (flags, pass) = kernel_flags(&hooks, flags, backing.is_ok());
                match backing {
                    Ok(backing) if pass => reply.opened_passthrough(fh, flags, backing),
                    Ok(_) => reply.opened(fh, flags),
                    // As the file system itself would have done, had it registered the file on this road.
                    Err(error) => {
                        warn!("no passthrough for inode {}: {error}", hooks.ino);
                        reply.opened(fh, flags);
                    }
                }
            }
            To::Local(sender) => {
                let backing = backing_id.duplicate();
                sender.send(Ok(Opened { backing, ..Opened::handle(fh, flags) }));
            }
        }
    }
}

impl ReplyCreate {
    /// Answers with an error. `EEXIST` says that the file has come to be since it was looked up.
    ///
    /// Programs on the bypass make names that the kernel has just found missing. Unless the open is exclusive, the kernel is
    /// told `ESTALE`, upon which it looks again and opens what is there (`do_filp_open`); `EEXIST` it would pass on.
    pub fn error(self, err: Errno) {
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                reply.error(if err == Errno::EEXIST && !hooks.exclusive { Errno::ESTALE } else { err });
            }
            To::Local(sender) => sender.send(Err(err)),
        }
    }

    /// Answers with an entry that may be cached for `ttl`, and a handle.
    ///
    /// # Panics
    /// If `flags` contain `FOPEN_PASSTHROUGH`, which is
    /// [`created_passthrough`](Self::created_passthrough)'s to set.
    pub fn created(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
    ) {
        assert!(!flags.contains(FopenFlags::FOPEN_PASSTHROUGH), "FOPEN_PASSTHROUGH without a backing file");
        self.answer((ttl, attr, generation), fh, flags, None, false);
    }

    /// As [`created`](Self::created), and what [`ReplyOpen::opened_grantable`] says.
    ///
    /// # Panics
    /// As [`created`](Self::created).
    pub fn created_grantable(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
    ) {
        assert!(!flags.contains(FopenFlags::FOPEN_PASSTHROUGH), "FOPEN_PASSTHROUGH without a backing file");
        self.answer((ttl, attr, generation), fh, flags, None, true);
    }

    /// Registers a backing file, to be given to [`created_passthrough`](Self::created_passthrough).
    ///
    /// # Errors
    /// As [`ReplyOpen::open_backing`].
    pub fn open_backing(&self, fd: impl AsFd) -> io::Result<BackingId> {
        match &self.to {
            To::Kernel(kernel) => kernel.reply.open(fd.as_fd()).map(BackingId::from_kernel),
            To::Local(_) => BackingId::from_fd(fd),
        }
    }

    /// As [`ReplyOpen::wrap_backing`].
    ///
    /// # Safety
    /// The ID is open, belongs to this session, and is closed by nobody else while the result lives.
    pub unsafe fn wrap_backing(&self, id: u32) -> BackingId {
        match &self.to {
            To::Kernel(kernel) => BackingId::from_kernel(kernel.reply.wrap(id)),
            To::Local(_) => BackingId::from_raw(id),
        }
    }

    /// Answers with an entry and a handle whose reads and writes go to the backing file.
    pub fn created_passthrough(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
        backing_id: &BackingId,
    ) {
        let flags = flags - FopenFlags::FOPEN_PASSTHROUGH;
        self.answer((ttl, attr, generation), fh, flags, Some(backing_id), false);
    }

    /// As [`ReplyOpen::given`].
    pub fn given(
        self,
        _: TakesFile,
        (ttl, attr, generation): (&Duration, &FileAttr, Generation),
        backing: OwnedFd,
        mode: u32,
    ) {
        match self.to {
            To::Kernel(_) => self.error(Errno::EIO),
            To::Local(sender) => sender.send(Ok(Created {
                entry: local_entry(ttl, attr, generation),
                opened: Opened::given(backing, mode),
            })),
        }
    }

    fn answer(
        self,
        (ttl, attr, generation): (&Duration, &FileAttr, Generation),
        fh: FileHandle,
        flags: FopenFlags,
        backing_id: Option<&BackingId>,
        grantable: bool,
    ) {
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let backing = backing_id.and_then(|id| {
                    id.for_kernel(&reply)
                        .inspect_err(|error| warn!("no passthrough for inode {}: {error}", attr.ino.0))
                        .ok()
                });
                hooks.coherence.opens_by_name(hooks.key, attr.ino.0);
                let parent = Some(hooks.ino);
                let (flags, pass) =
                    hooks.coherence.open_file(attr.ino.0, flags, backing.is_some(), hooks.access, parent);
                // One lifetime for both, as the message format of fuser's object has it: the shorter.
                let (attr_ttl, entry_ttl) = hooks.entry(attr, *ttl, *ttl);
                let ttl = attr_ttl.min(entry_ttl);
                match backing.filter(|_| pass) {
                    Some(backing) => reply.created_passthrough(&ttl, attr, generation, fh, flags, backing),
                    None => reply.created(&ttl, attr, generation, fh, flags),
                }
            }
            To::Local(sender) => {
                let backing = backing_id.and_then(BackingId::duplicate);
                let opened = Opened { backing, grantable, ..Opened::handle(fh, flags) };
                sender.send(Ok(Created { entry: local_entry(ttl, attr, generation), opened }));
            }
        }
    }
}

fn local_entry(ttl: &Duration, attr: &FileAttr, generation: Generation) -> Entry {
    Entry { attr: *attr, generation, attr_ttl: *ttl, entry_ttl: *ttl, no_xattrs: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use fuser::Errno;

    #[test]
    fn on_the_bypass_a_backing_file_reaches_the_asker_as_a_descriptor_of_its_own() {
        let file = tempfile::tempfile().unwrap();
        let (reply, answer) = ReplyOpen::local();
        let id = reply.open_backing(&file).unwrap();
        reply.opened_passthrough(FileHandle(3), FopenFlags::FOPEN_PASSTHROUGH, &id);
        drop(id);
        let opened = answer.wait().unwrap();
        assert_eq!(opened.fh, FileHandle(3));
        let given = File::from(opened.backing.unwrap()).metadata().unwrap();
        assert_eq!(given.ino(), file.metadata().unwrap().ino());
    }

    #[test]
    fn a_wrapped_backing_id_has_no_descriptor_for_the_bypass_and_keeps_its_number() {
        let (reply, answer) = ReplyOpen::local();
        // SAFETY: the ID is never used on a kernel road, where alone it means anything.
        let id = unsafe { reply.wrap_backing(77) };
        reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &id);
        assert!(answer.wait().unwrap().backing.is_none());
        assert_eq!(id.into_raw(), 77);
    }

    #[test]
    #[should_panic(expected = "FOPEN_PASSTHROUGH")]
    fn passthrough_cannot_be_asked_for_without_a_backing_file() {
        ReplyOpen::local().0.opened(FileHandle(0), FopenFlags::FOPEN_PASSTHROUGH);
    }

    #[test]
    fn the_asker_sees_that_opens_are_not_implemented() {
        let (reply, answer) = ReplyOpen::local();
        reply.error(Errno::ENOSYS);
        assert_eq!(answer.wait().unwrap_err(), Errno::ENOSYS);
    }
}
