//! Reads a request from a ring and has it served.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use fuser::{
    AccessFlags, CopyFileRangeFlags, Errno, FileHandle, INodeNo, IoctlFlags, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollHandle, RenameFlags, RequestId, SessionACL, WriteFlags,
};
use log::debug;
use zerocopy::FromBytes;

use super::abi::{self, opcode};
use super::entry::{Entry, Message, Ticket};
use crate::filesystem::Filesystem;
use crate::kernel::operations::Operations;
use crate::reply::{Out, Page, PollNotifier};
use crate::request::Request;

/// `FUSE_READ_LOCKOWNER` and `FUSE_WRITE_LOCKOWNER`
const LOCK_OWNER: u32 = 1 << 1;
/// `FUSE_GETATTR_FH`
const GETATTR_FH: u32 = 1;
/// `FUSE_RELEASE_FLUSH`
const RELEASE_FLUSH: u32 = 1;
/// `FUSE_RELEASE_FLOCK_UNLOCK`
const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FUSE_FSYNC_FDATASYNC`
const FSYNC_FDATASYNC: u32 = 1;

/// Whether what a request carries is used where it lies: data to be written, which nothing long answers.
pub(super) fn stays(header: &abi::InHeader) -> bool {
    header.opcode == opcode::WRITE
}

/// Takes strings and data from what follows a message's header.
struct Rest<'m>(&'m [u8]);

impl<'m> Rest<'m> {
    fn name(&mut self) -> Result<&'m OsStr, Errno> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::EIO)?;
        let (name, rest) = (&self.0[..len], &self.0[len + 1..]);
        self.0 = rest;
        Ok(OsStr::from_bytes(name))
    }

    fn data(&self, len: u32) -> Result<&'m [u8], Errno> {
        self.0.get(..len as usize).ok_or(Errno::EIO)
    }
}

/// Offsets and lengths are what `off_t` can say.
fn off_t(value: u64) -> Result<u64, Errno> {
    if value <= i64::MAX as u64 { Ok(value) } else { Err(Errno::EINVAL) }
}

/// What a user other than the mount's owner may ask for in any case: that the kernel sends it on nobody's behalf.
fn is_of_the_kernel(operation: u32) -> bool {
    use opcode::*;
    matches!(operation, READ | READDIR | WRITE | FSYNC | FSYNCDIR | RELEASE | RELEASEDIR | READDIRPLUS)
}

/// Has a request served. Its answer may come later.
pub(super) fn serve<FS: Filesystem>(operations: &Operations<FS>, entry: &Arc<Entry>, message: &Message) {
    let header = &message.header;
    if let Some(name) = opcode::name(header.opcode) {
        // Where fuser logs its own.
        debug!(target: "fuser::request", "FUSE({:3}) ino {:#018x} {name}", header.unique, header.nodeid);
    }
    let core = operations.core();
    let allowed = match core.acl {
        SessionACL::All => true,
        SessionACL::RootAndOwner => header.uid == core.owner || header.uid == 0,
        SessionACL::Owner => header.uid == core.owner,
    };
    let ticket = Ticket::new(Arc::clone(entry), !stays(header));
    if header.opcode == opcode::NOTIFY_REPLY {
        return ticket.send(&[]);
    }
    let mut ticket = Some(ticket);
    let result = match allowed || is_of_the_kernel(header.opcode) {
        true => operate(operations, entry, message, &mut ticket),
        false => Err(Errno::EACCES),
    };
    if let (Err(error), Some(ticket)) = (result, ticket) {
        ticket.error(error);
    }
}

/// The operation proper. On an error the ticket is left, unless the file system has it.
fn operate<FS: Filesystem>(
    operations: &Operations<FS>,
    entry: &Arc<Entry>,
    message: &Message,
    ticket: &mut Option<Ticket>,
) -> Result<(), Errno> {
    use opcode::*;
    let header = &message.header;
    let ino = INodeNo(header.nodeid);
    let req = &Request::of_kernel(RequestId(header.unique), header.uid, header.gid, header.pid);
    let mut rest = Rest(&message.rest);
    macro_rules! argument {
        ($type:ident) => {
            abi::$type::read_from_prefix(&message.op).map_err(|_| Errno::EIO)?.0
        };
    }
    // Last of all, as whatever is wrong with the request is answered with it.
    macro_rules! reply {
        () => {
            Out::Ring(ticket.take().expect("used once"))
        };
    }
    match header.opcode {
        LOOKUP => operations.lookup(req, ino, rest.name()?, reply!()),
        GETATTR => {
            let arg = argument!(GetattrIn);
            let fh = (arg.flags & GETATTR_FH != 0).then_some(FileHandle(arg.fh));
            operations.getattr(req, ino, fh, reply!());
        }
        SETATTR => {
            let arg = argument!(SetattrIn);
            operations.setattr(
                req,
                ino,
                arg.mode(),
                arg.uid(),
                arg.gid(),
                arg.size(),
                arg.atime(),
                arg.mtime(),
                arg.ctime(),
                arg.fh(),
                None,
                None,
                None,
                None,
                reply!(),
            );
        }
        READLINK => operations.readlink(req, ino, reply!()),
        SYMLINK => {
            let (name, target) = (rest.name()?, rest.name()?);
            operations.symlink(req, ino, name, Path::new(target), reply!());
        }
        MKNOD => {
            let arg = argument!(MknodIn);
            operations.mknod(req, ino, rest.name()?, arg.mode, arg.umask, arg.rdev, reply!());
        }
        MKDIR => {
            let arg = argument!(MkdirIn);
            operations.mkdir(req, ino, rest.name()?, arg.mode, arg.umask, reply!());
        }
        UNLINK => operations.unlink(req, ino, rest.name()?, reply!()),
        RMDIR => operations.rmdir(req, ino, rest.name()?, reply!()),
        RENAME => {
            let newparent = INodeNo(argument!(RenameIn).newdir);
            let (name, newname) = (rest.name()?, rest.name()?);
            operations.rename(req, ino, name, newparent, newname, RenameFlags::empty(), reply!());
        }
        RENAME2 => {
            let arg = argument!(Rename2In);
            let (name, newname) = (rest.name()?, rest.name()?);
            let flags = RenameFlags::from_bits_retain(arg.flags);
            operations.rename(req, ino, name, INodeNo(arg.newdir), newname, flags, reply!());
        }
        LINK => {
            let arg = argument!(LinkIn);
            operations.link(req, INodeNo(arg.oldnodeid), ino, rest.name()?, reply!());
        }
        OPEN => operations.open(req, ino, OpenFlags(argument!(OpenIn).flags), reply!()),
        OPENDIR => operations.opendir(req, ino, OpenFlags(argument!(OpenIn).flags), reply!()),
        READ => {
            let arg = argument!(ReadIn);
            let owner = (arg.read_flags & LOCK_OWNER != 0).then_some(LockOwner(arg.lock_owner));
            let (fh, offset) = (FileHandle(arg.fh), off_t(arg.offset)?);
            operations.read(req, ino, fh, offset, arg.size, OpenFlags(arg.flags), owner, reply!());
        }
        WRITE => {
            let arg = argument!(WriteIn);
            let owner = (arg.write_flags & LOCK_OWNER != 0).then_some(LockOwner(arg.lock_owner));
            let (fh, offset) = (FileHandle(arg.fh), off_t(arg.offset)?);
            let data = Rest(entry.data(message.len)).data(arg.size)?;
            let how = WriteFlags::from_bits_retain(arg.write_flags);
            operations.write(req, ino, fh, offset, data, how, OpenFlags(arg.flags), owner, reply!());
        }
        STATFS => operations.statfs(req, ino, reply!()),
        RELEASE | RELEASEDIR => {
            let arg = argument!(ReleaseIn);
            let (fh, flags) = (FileHandle(arg.fh), OpenFlags(arg.flags));
            if header.opcode == RELEASEDIR {
                operations.releasedir(req, ino, fh, flags, reply!());
            } else {
                let unlocks = arg.release_flags & RELEASE_FLOCK_UNLOCK != 0;
                let owner = unlocks.then_some(LockOwner(arg.lock_owner));
                let flush = arg.release_flags & RELEASE_FLUSH != 0;
                operations.release(req, ino, fh, flags, owner, flush, reply!());
            }
        }
        FSYNC | FSYNCDIR => {
            let arg = argument!(FsyncIn);
            let (fh, datasync) = (FileHandle(arg.fh), arg.fsync_flags & FSYNC_FDATASYNC != 0);
            if header.opcode == FSYNCDIR {
                operations.fsyncdir(req, ino, fh, datasync, reply!());
            } else {
                operations.fsync(req, ino, fh, datasync, reply!());
            }
        }
        SETXATTR => {
            let arg = argument!(SetxattrIn);
            let (name, value) = (rest.name()?, rest.data(arg.size)?);
            operations.setxattr(req, ino, name, value, arg.flags, 0, reply!());
        }
        GETXATTR => operations.getxattr(req, ino, rest.name()?, argument!(GetxattrIn).size, reply!()),
        LISTXATTR => operations.listxattr(req, ino, argument!(GetxattrIn).size, reply!()),
        REMOVEXATTR => operations.removexattr(req, ino, rest.name()?, reply!()),
        FLUSH => {
            let arg = argument!(FlushIn);
            operations.flush(req, ino, FileHandle(arg.fh), LockOwner(arg.lock_owner), reply!());
        }
        READDIR => {
            let arg = argument!(ReadIn);
            let page = Page::new(ticket.take().expect("used once"), arg.size as usize);
            operations.readdir(req, ino, FileHandle(arg.fh), arg.offset, Out::Ring(page));
        }
        READDIRPLUS => {
            let arg = argument!(ReadIn);
            let page = Page::new(ticket.take().expect("used once"), arg.size as usize);
            operations.readdirplus(req, ino, FileHandle(arg.fh), arg.offset, Out::Ring(page));
        }
        GETLK => {
            let (arg, lock) = (argument!(LkIn), argument!(LkIn).lk);
            let (fh, owner) = (FileHandle(arg.fh), LockOwner(arg.owner));
            operations.getlk(req, ino, fh, owner, lock.start, lock.end, lock.typ, lock.pid, reply!());
        }
        SETLK | SETLKW => {
            let (arg, lock) = (argument!(LkIn), argument!(LkIn).lk);
            let (fh, owner, waits) = (FileHandle(arg.fh), LockOwner(arg.owner), header.opcode == SETLKW);
            operations.setlk(req, ino, fh, owner, lock.start, lock.end, lock.typ, lock.pid, waits, reply!());
        }
        ACCESS => {
            let mask = AccessFlags::from_bits_retain(argument!(AccessIn).mask);
            operations.access(req, ino, mask, reply!());
        }
        CREATE => {
            let arg = argument!(CreateIn);
            operations.create(req, ino, rest.name()?, arg.mode, arg.umask, arg.flags, reply!());
        }
        BMAP => {
            let arg = argument!(BmapIn);
            operations.bmap(req, ino, arg.blocksize, arg.block, reply!());
        }
        IOCTL => {
            let arg = argument!(IoctlIn);
            let flags = IoctlFlags::from_bits_retain(arg.flags);
            if flags.contains(IoctlFlags::FUSE_IOCTL_UNRESTRICTED) {
                return Err(Errno::ENOSYS);
            }
            let (fh, data) = (FileHandle(arg.fh), rest.data(arg.in_size)?);
            operations.ioctl(req, ino, fh, flags, arg.cmd, data, arg.out_size, reply!());
        }
        POLL => {
            let arg = argument!(PollIn);
            let device = ticket.as_ref().expect("not used yet").device().clone();
            let notifier = PollNotifier::of_ring(PollHandle(arg.kh), device);
            let events = PollEvents::from_bits_retain(arg.events);
            let flags = PollFlags::from_bits_retain(arg.flags);
            operations.poll(req, ino, FileHandle(arg.fh), notifier, events, flags, reply!());
        }
        FALLOCATE => {
            let arg = argument!(FallocateIn);
            let (offset, length) = (off_t(arg.offset)?, off_t(arg.length)?);
            operations.fallocate(req, ino, FileHandle(arg.fh), offset, length, arg.mode, reply!());
        }
        LSEEK => {
            let arg = argument!(LseekIn);
            operations.lseek(req, ino, FileHandle(arg.fh), arg.offset, arg.whence, reply!());
        }
        COPY_FILE_RANGE => {
            let arg = argument!(CopyFileRangeIn);
            let (from, to) = (off_t(arg.off_in)?, off_t(arg.off_out)?);
            operations.copy_file_range(
                req,
                ino,
                FileHandle(arg.fh_in),
                from,
                INodeNo(arg.nodeid_out),
                FileHandle(arg.fh_out),
                to,
                arg.len,
                CopyFileRangeFlags::from_bits_retain(arg.flags),
                reply!(),
            );
        }
        // Upon which the kernel does without it.
        _ => return Err(Errno::ENOSYS),
    }
    Ok(())
}
