//! The last step of an answer to the kernel: through fuser's reply object, or into the entry of the ring that the request
//! came by.
//!
//! Methods are those of fuser's objects, and so is what they send.

use std::ffi::OsStr;
use std::time::Duration;

use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, PollEvents};
use log::warn;
use zerocopy::IntoBytes;

use super::backing::KernelId;
use crate::kernel::uring::abi;
use crate::kernel::uring::entry::Ticket;

/// Where an answer to the kernel goes.
#[derive(Debug)]
pub(crate) enum Out<K, R = Ticket> {
    /// Through fuser, to the device.
    Device(K),
    /// Into a ring.
    Ring(R),
}

impl<K, R> From<K> for Out<K, R> {
    fn from(reply: K) -> Self {
        Self::Device(reply)
    }
}

macro_rules! errors {
    ($($reply:ident),*) => {$(
        impl Out<fuser::$reply> {
            pub(crate) fn error(self, err: Errno) {
                match self {
                    Self::Device(reply) => reply.error(err),
                    Self::Ring(ticket) => ticket.error(err),
                }
            }
        }
    )*};
}
errors!(
    ReplyEmpty,
    ReplyData,
    ReplyEntry,
    ReplyAttr,
    ReplyWrite,
    ReplyStatfs,
    ReplyLock,
    ReplyBmap,
    ReplyIoctl,
    ReplyPoll,
    ReplyXattr,
    ReplyLseek,
    ReplyOpen,
    ReplyCreate
);

impl Out<fuser::ReplyEmpty> {
    pub(crate) fn ok(self) {
        match self {
            Self::Device(reply) => reply.ok(),
            Self::Ring(ticket) => ticket.send(&[]),
        }
    }
}

impl Out<fuser::ReplyData> {
    pub(crate) fn data(self, data: &[u8]) {
        match self {
            Self::Device(reply) => reply.data(data),
            Self::Ring(ticket) => ticket.send(&[data]),
        }
    }
}

impl Out<fuser::ReplyEntry> {
    pub(crate) fn entry(self, ttl: &Duration, attr: &FileAttr, generation: Generation) {
        self.entry_with_ttls(ttl, ttl, attr, generation);
    }

    pub(crate) fn entry_with_ttls(
        self,
        attr_ttl: &Duration,
        entry_ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
    ) {
        match self {
            Self::Device(reply) => reply.entry_with_ttls(attr_ttl, entry_ttl, attr, generation),
            Self::Ring(ticket) => {
                let entry = abi::EntryOut::new(attr.ino, attr, generation, *attr_ttl, *entry_ttl);
                ticket.send(&[entry.as_bytes()]);
            }
        }
    }
}

impl Out<fuser::ReplyAttr> {
    pub(crate) fn attr(self, ttl: &Duration, attr: &FileAttr) {
        match self {
            Self::Device(reply) => reply.attr(ttl, attr),
            Self::Ring(ticket) => ticket.send(&[abi::AttrOut::new(attr, *ttl).as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyWrite> {
    pub(crate) fn written(self, size: u32) {
        match self {
            Self::Device(reply) => reply.written(size),
            Self::Ring(ticket) => ticket.send(&[[size, 0].as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyStatfs> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn statfs(
        self,
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
    ) {
        match self {
            Self::Device(reply) => {
                reply.statfs(blocks, bfree, bavail, files, ffree, bsize, namelen, frsize);
            }
            Self::Ring(ticket) => {
                // struct fuse_kstatfs
                let counts = [blocks, bfree, bavail, files, ffree];
                let rest = [bsize, namelen, frsize, 0, 0, 0, 0, 0, 0, 0];
                ticket.send(&[counts.as_bytes(), rest.as_bytes()]);
            }
        }
    }
}

impl Out<fuser::ReplyLock> {
    pub(crate) fn locked(self, start: u64, end: u64, typ: i32, pid: u32) {
        match self {
            Self::Device(reply) => reply.locked(start, end, typ, pid),
            Self::Ring(ticket) => ticket.send(&[abi::FileLock { start, end, typ, pid }.as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyBmap> {
    pub(crate) fn bmap(self, block: u64) {
        match self {
            Self::Device(reply) => reply.bmap(block),
            Self::Ring(ticket) => ticket.send(&[block.as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyIoctl> {
    pub(crate) fn ioctl(self, result: i32, data: &[u8]) {
        match self {
            Self::Device(reply) => reply.ioctl(result, data),
            Self::Ring(ticket) => {
                // struct fuse_ioctl_out; the numbers of vectors mean something to unrestricted commands only.
                ticket.send(&[[result, 0, 1, 1].as_bytes(), data]);
            }
        }
    }
}

impl Out<fuser::ReplyPoll> {
    pub(crate) fn poll(self, revents: PollEvents) {
        match self {
            Self::Device(reply) => reply.poll(revents),
            Self::Ring(ticket) => ticket.send(&[[revents.bits(), 0].as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyXattr> {
    pub(crate) fn size(self, size: u32) {
        match self {
            Self::Device(reply) => reply.size(size),
            Self::Ring(ticket) => ticket.send(&[[size, 0].as_bytes()]),
        }
    }

    pub(crate) fn data(self, data: &[u8]) {
        match self {
            Self::Device(reply) => reply.data(data),
            Self::Ring(ticket) => ticket.send(&[data]),
        }
    }
}

impl Out<fuser::ReplyLseek> {
    pub(crate) fn offset(self, offset: i64) {
        match self {
            Self::Device(reply) => reply.offset(offset),
            Self::Ring(ticket) => ticket.send(&[offset.as_bytes()]),
        }
    }
}

impl Out<fuser::ReplyOpen> {
    pub(crate) fn opened(self, fh: FileHandle, flags: FopenFlags) {
        match self {
            Self::Device(reply) => reply.opened(fh, flags),
            Self::Ring(ticket) => ticket.send(&[abi::OpenOut::new(fh, flags, 0).as_bytes()]),
        }
    }

    pub(crate) fn opened_passthrough(self, fh: FileHandle, flags: FopenFlags, backing: &KernelId) {
        match (self, backing) {
            (Self::Device(reply), KernelId::Device(id)) => reply.opened_passthrough(fh, flags, id),
            (Self::Ring(ticket), KernelId::Ring(id)) => {
                let flags = flags | FopenFlags::FOPEN_PASSTHROUGH;
                ticket.send(&[abi::OpenOut::new(fh, flags, id.id()).as_bytes()]);
            }
            (reply, _) => {
                elsewhere();
                reply.opened(fh, flags);
            }
        }
    }
}

/// A session gets such requests by one transport only (`fuse_block_alloc`).
fn elsewhere() {
    warn!("no passthrough: the backing file was registered by another transport");
}

impl Out<fuser::ReplyCreate> {
    pub(crate) fn created(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
    ) {
        match self {
            Self::Device(reply) => reply.created(ttl, attr, generation, fh, flags),
            Self::Ring(ticket) => created(ticket, *ttl, attr, generation, abi::OpenOut::new(fh, flags, 0)),
        }
    }

    pub(crate) fn created_passthrough(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        fh: FileHandle,
        flags: FopenFlags,
        backing: &KernelId,
    ) {
        match (self, backing) {
            (Self::Device(reply), KernelId::Device(id)) => {
                reply.created_passthrough(ttl, attr, generation, fh, flags, id);
            }
            (Self::Ring(ticket), KernelId::Ring(id)) => {
                let open = abi::OpenOut::new(fh, flags | FopenFlags::FOPEN_PASSTHROUGH, id.id());
                created(ticket, *ttl, attr, generation, open);
            }
            (reply, _) => {
                elsewhere();
                reply.created(ttl, attr, generation, fh, flags);
            }
        }
    }
}

fn created(ticket: Ticket, ttl: Duration, attr: &FileAttr, generation: Generation, open: abi::OpenOut) {
    let entry = abi::EntryOut::new(attr.ino, attr, generation, ttl, ttl);
    ticket.send(&[entry.as_bytes(), open.as_bytes()]);
}

/// A page of a directory that goes into a ring.
#[derive(Debug)]
pub(crate) struct Page {
    ticket: Ticket,
    size: usize,
    entries: Vec<u8>,
}

impl Page {
    /// An empty page of at most `size` bytes.
    pub(crate) fn new(ticket: Ticket, size: usize) -> Self {
        Self { ticket, size, entries: Vec::new() }
    }

    /// True if it does not fit.
    fn push(&mut self, fixed: &[u8], name: &[u8]) -> bool {
        let end = self.entries.len() + (fixed.len() + name.len()).next_multiple_of(8);
        if end > self.size {
            return true;
        }
        self.entries.extend_from_slice(fixed);
        self.entries.extend_from_slice(name);
        self.entries.resize(end, 0);
        false
    }

    fn ok(self) {
        self.ticket.send(&[&self.entries]);
    }
}

impl Out<fuser::ReplyDirectory, Page> {
    #[must_use]
    pub(crate) fn add<T: AsRef<OsStr>>(
        &mut self,
        ino: INodeNo,
        offset: u64,
        kind: FileType,
        name: T,
    ) -> bool {
        match self {
            Self::Device(reply) => reply.add(ino, offset, kind, name),
            Self::Ring(page) => {
                let name = name.as_ref().as_encoded_bytes();
                let dirent = abi::Dirent::new(ino, offset, kind, name.len());
                page.push(dirent.as_bytes(), name)
            }
        }
    }

    pub(crate) fn ok(self) {
        match self {
            Self::Device(reply) => reply.ok(),
            Self::Ring(page) => page.ok(),
        }
    }

    pub(crate) fn error(self, err: Errno) {
        match self {
            Self::Device(reply) => reply.error(err),
            Self::Ring(page) => page.ticket.error(err),
        }
    }
}

impl Out<fuser::ReplyDirectoryPlus, Page> {
    #[must_use]
    pub(crate) fn add<T: AsRef<OsStr>>(
        &mut self,
        ino: INodeNo,
        offset: u64,
        name: T,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
    ) -> bool {
        match self {
            Self::Device(reply) => reply.add(ino, offset, name, ttl, attr, generation),
            Self::Ring(page) => {
                let name = name.as_ref().as_encoded_bytes();
                let entry = abi::EntryOut::new(attr.ino, attr, generation, *ttl, *ttl);
                // As fuser, which takes the number from the attributes.
                let dirent = abi::Dirent::new(attr.ino, offset, attr.kind, name.len());
                let mut fixed = [0; size_of::<abi::EntryOut>() + size_of::<abi::Dirent>()];
                fixed[..size_of::<abi::EntryOut>()].copy_from_slice(entry.as_bytes());
                fixed[size_of::<abi::EntryOut>()..].copy_from_slice(dirent.as_bytes());
                page.push(&fixed, name)
            }
        }
    }

    pub(crate) fn ok(self) {
        match self {
            Self::Device(reply) => reply.ok(),
            Self::Ring(page) => page.ok(),
        }
    }

    pub(crate) fn error(self, err: Errno) {
        match self {
            Self::Device(reply) => reply.error(err),
            Self::Ring(page) => page.ticket.error(err),
        }
    }
}
