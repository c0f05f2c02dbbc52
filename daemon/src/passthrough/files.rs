//! The operations on open files, and opening them.

#![deny(unsafe_code)]

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, ResolveFlags, SeekFrom, Statx, fcntl_setfl, openat, openat2,
};
use rustix::io::{Errno, ReadWriteFlags, Result};

use super::handles::OpenFile;
use super::hot::Reader;
use super::inodes::{INSIDE, Inode, check_name, stat_of};
use super::names::Entry;
use super::nodes::{Kind, Way};
use super::privileges::Keeping;
use super::{Acting, CachePolicy, Grants, PassthroughFs, Rights, attributes, credentials};
use crate::{BackingId, FileHandle, Generation, Request, Road, TakesFile};

/// What `open` may carry over to the backing. Creation and truncation are requests of their own.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::NONBLOCK)
    .union(OFlags::DIRECT)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME)
    .union(OFlags::LARGEFILE);

/// `FMODE_EXEC`, which the kernel leaves in the flags of a file that it opens to execute it.
const OPEN_TO_EXECUTE: i32 = 0x20;

/// The largest count that a FUSE reply can carry for a copy, in whole pages as the kernel's own limit
/// (`MAX_RW_COUNT`).
const LONGEST_COPY: u64 = 0x7fff_f000;

/// The longest file of which the kernel's page cache is to hold a copy, in bytes. What is longer would be held twice.
const LONGEST_KEPT: u64 = 16 << 20;

/// A file that was opened: what the reply is made of.
pub(super) struct Opened {
    pub(super) file: OpenFile,
    /// What is known of it, if its descriptor can stand for it, on the kernel's side or the client's: if it is a regular file.
    pub(super) regular: Option<Regular>,
}

/// A regular file when it was opened.
#[derive(Clone, Copy)]
pub(super) struct Regular {
    length: u64,
    /// Its type and permission bits; `None` if it was not looked at.
    pub(super) mode: Option<u32>,
}

impl Regular {
    fn of(stat: &Statx) -> Self {
        Self { length: stat.stx_size, mode: Some(stat.stx_mode.into()) }
    }
}

/// The flags for the backing. On the kernel road the daemon reads and writes for the program, from buffers that are
/// not aligned as `O_DIRECT` wants them, and where it wants them; a file that the kernel serves by itself goes by the program's own
/// flags.
fn backing_flags(road: Road, flags: i32) -> OFlags {
    let flags = OFlags::from_bits_retain(flags as u32) & OPEN_FLAGS;
    let flags = match road {
        Road::Kernel => flags - OFlags::DIRECT - OFlags::NONBLOCK - OFlags::APPEND,
        Road::Bypass => flags,
    };
    flags | OFlags::CLOEXEC
}

pub(super) fn is_writable(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl PassthroughFs {
    pub(super) fn open_file(&self, req: &Request, id: u64, flags: i32) -> Result<Opened> {
        // Before it is settled, so that its removal is not deferred after that.
        self.grants(req, id);
        self.settle(id);
        let wanted = backing_flags(req.road(), flags);
        // Before the check of the file's type, nothing may block: it could have become a FIFO.
        let careful = wanted | OFlags::NONBLOCK;
        let settle = |fd: &OwnedFd| match req.road() {
            Road::Bypass if careful != wanted => fcntl_setfl(fd, wanted - OFlags::CLOEXEC),
            _ => Ok(()),
        };
        let opened = |fd, regular: Option<Regular>| Opened {
            file: OpenFile::new(fd, id, is_writable(flags), wanted.contains(OFlags::APPEND)),
            regular,
        };

        // Only reads, in no special way: the descriptor may be shared.
        let shares =
            self.hot.keeps() && req.road() == Road::Bypass && wanted - OFlags::LARGEFILE == OFlags::CLOEXEC;
        let generation = shares.then(|| self.nodes.generation(id)).flatten();
        let generation =
            generation.filter(|(_, kind)| *kind == Kind::Regular).map(|(generation, _)| generation);
        if let Some(shared) = generation.and_then(|generation| self.opened_already(req, id, generation)) {
            return Ok(shared);
        }
        // What has been removed from the source is found as long as somebody has it open, but not by the name that led here.
        let has_a_name = |stat: &Statx| match req.road() {
            Road::Bypass if stat.stx_nlink == 0 => Err(Errno::STALE),
            _ => Ok(()),
        };
        let to_read = |fd: OwnedFd, stat: &Statx, reader: Option<Reader>| match (generation, reader) {
            (Some(generation), Some(reader)) => {
                // That reads would not block means nothing for regular files, and nobody else sees this descriptor's flags.
                let fd = Arc::new(fd);
                self.hot.keep(id, generation, &fd, reader);
                Ok(Opened { file: OpenFile::sharing(fd, id), regular: Some(Regular::of(stat)) })
            }
            _ => {
                settle(&fd)?;
                Ok(opened(fd, Some(Regular::of(stat))))
            }
        };

        let rights = if req.road() == Road::Kernel && flags & OPEN_TO_EXECUTE != 0 {
            self.check_execute(req, id)?;
            Rights::Daemon
        } else {
            Rights::Checked
        };
        if self.act(req, rights)? == Acting::Root
            && let Some((Way::Handle(handle), Kind::Regular)) = self.nodes.way(id)
            && let Some((device, number)) = self.ids.resolve(id)
            && let Ok(fd) = self.open_handle(&device, &handle, careful)
        {
            let stat = stat_of(&fd)?;
            has_a_name(&stat)?;
            if stat.stx_ino == number && attributes::is_regular(&stat) {
                return to_read(fd, &stat, Some(Reader::Root));
            }
        }

        let inode = self.inode(id)?;
        let stat = inode.attributes()?;
        has_a_name(&stat)?;
        if !attributes::is_regular(&stat) {
            // The kernel opens devices, FIFOs and sockets by itself, and directories by `opendir`. To open one
            // here could block, or do things to a device.
            let fd = openat(CWD, inode.path().as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return Ok(opened(fd, None));
        }
        let acting = self.act(req, rights)?;
        let path = inode.path();
        let fd = self.with_spare_descriptors(|| openat(CWD, path.as_c_str(), careful, Mode::empty()))?;
        let reader = match acting {
            _ if generation.is_none() || !self.can_switch => None,
            Acting::Root => Some(Reader::Root),
            Acting::User => Reader::user(req.uid(), req.gid(), req.groups().unwrap_or_default(), &stat),
        };
        to_read(fd, &stat, reader)
    }

    /// A file that the caller has opened to read before, if he still may, and if it still has a name.
    fn opened_already(&self, req: &Request, id: u64, generation: u64) -> Option<Opened> {
        let groups = req.groups().unwrap_or_default();
        let shared = self.hot.get(id, generation, req.uid(), req.gid(), groups)?;
        let mut regular = Regular { length: 0, mode: None };
        // Of what only the mount changes, the last name's end is the end of the node.
        if self.options.cache != CachePolicy::Always || shared.reader != Reader::Root {
            let stat = stat_of(&*shared.fd).ok()?;
            if stat.stx_nlink == 0 || !shared.reader.is_still_allowed(&stat) {
                self.hot.remove(id);
                return None;
            }
            regular = Regular::of(&stat);
        }
        Some(Opened { file: OpenFile::sharing(shared.fd, id), regular: Some(regular) })
    }

    /// What was opened, if it is a regular file for a program that takes it: the descriptor and the mode.
    pub(super) fn gives(
        &self,
        req: &Request,
        opened: Opened,
    ) -> std::result::Result<(TakesFile, OwnedFd, u32), Opened> {
        let takes = req.takes_file().filter(|_| self.options.grants != Grants::Never);
        let mode = opened.regular.and_then(|regular| regular.mode);
        let (Some(takes), Some(mode)) = (takes, mode) else { return Err(opened) };
        let id = opened.file.id;
        match opened.file.into_own() {
            Ok(fd) => {
                // The program may want a lease, which it would not get while another has the file open.
                self.hot.remove(id);
                Ok((takes, fd, mode))
            }
            Err(file) => Err(Opened { file, ..opened }),
        }
    }

    /// A descriptor of an open file for a program, which it may do with as it likes.
    pub(super) fn give(&self, id: u64, fh: FileHandle) -> Result<OwnedFd> {
        let file = self.files.get(fh)?;
        let given = self.with_spare_descriptors(|| file.for_others())?;
        // The program may want a lease, which it would not get while another has the file open.
        self.hot.remove(id);
        Ok(given)
    }

    /// Whether closing a file on the source does nothing but close it: its file system has no `flush`, which some use to
    /// write what was written to the file, and to tell of errors. (The methods of these are known, `struct file_operations`.)
    pub(super) fn closes_quietly(&self, id: u64) -> bool {
        self.source_closes_quietly && self.ids.is_beside_root(id)
    }

    /// Executing takes execute permission, not read permission.
    fn check_execute(&self, req: &Request, id: u64) -> Result<()> {
        if self.options.kernel_checked {
            return Ok(());
        }
        self.check_access(req, id, libc::X_OK)
    }

    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        check_name(name)?;
        let _change = self.deferred.as_ref().map(|deferred| deferred.changes(parent, name));
        let dir = self.inode(parent)?;
        self.act(req, Rights::Caller)?;
        let wanted = backing_flags(req.road(), flags);
        let creation = match req.road() {
            Road::Kernel => {
                OFlags::NONBLOCK | OFlags::from_bits_retain(flags as u32) & (OFlags::EXCL | OFlags::TRUNC)
            }
            // If somebody else was faster, the caller looks again. What is made here need not be handled with care.
            Road::Bypass => OFlags::EXCL,
        };
        let careful = wanted | OFlags::CREATE | creation;
        let mode = self.masked(&dir, mode, umask);
        // Not O_NOFOLLOW, which would show in the flags of a granted descriptor.
        let resolve = INSIDE | ResolveFlags::NO_SYMLINKS;
        let open = || self.with_spare_descriptors(|| openat2(&dir, name, careful, mode, resolve));
        let fd = self.with_room(|| self.act(req, Rights::Caller), open)?;
        let stat = stat_of(&fd)?;
        if !attributes::is_regular(&stat) {
            // Somebody else was faster, with something that is not opened here. The caller looks again.
            return Err(Errno::STALE);
        }
        let (id, generation) = self.remember_open(parent, &fd, name, &stat, true)?;
        // While the name changes nobody defers its removal.
        self.grants(req, id);
        let entry = Entry { attr: attributes::of(&stat, id), generation: Generation(generation) };
        Ok((
            entry,
            Opened {
                file: OpenFile::new(fd, id, is_writable(flags), wanted.contains(OFlags::APPEND)),
                regular: Some(Regular::of(&stat)),
            },
        ))
    }

    /// Adds a file that was opened on the kernel road. `register` makes a backing file known to the kernel, unless its page
    /// cache is to serve it.
    pub(super) fn serve_kernel(
        &self,
        opened: Opened,
        from_pages: bool,
        register: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> std::io::Result<BackingId>,
    ) -> (FileHandle, Option<Arc<BackingId>>) {
        let regular = opened.regular.is_some();
        let (file, backing) = self.open_inodes.add_for_kernel(opened.file, |fd| {
            if from_pages || !regular || !self.kernel_serves_data.load(Ordering::Relaxed) {
                return None;
            }
            // The kernel reads and writes it with the rights of who registers it, whoever has it open (`backing_file_write_iter`):
            // with those of an ordinary user, what others write would take set-user-ID bits away. What the caller's own writes
            // take away the kernel has done before (`file_remove_privs`).
            let registered = credentials::become_daemon().map_err(Into::into).and_then(|()| register(fd));
            registered.inspect_err(|error| self.passthrough_failed(error)).ok()
        });
        (self.files.insert(&file), backing)
    }

    /// Whether the kernel's page cache is to serve a file, rather than its backing file. Both read at the same speed,
    /// once it is there; but whatever is read from the backing file, the kernel asks for the time of last access
    /// (`fuse_file_accessed`), and for the backing file at every open.
    pub(super) fn is_worth_keeping(&self, opened: &Opened, flags: i32) -> bool {
        self.options.cache == CachePolicy::Always
            && !is_writable(flags)
            && flags & (libc::O_DIRECT | libc::O_APPEND) == 0
            && opened.regular.is_some_and(|regular| regular.length <= LONGEST_KEPT)
    }

    /// Decides whether kernel passthrough is worth another try.
    fn passthrough_failed(&self, error: &std::io::Error) {
        let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR];
        if error.raw_os_error().is_some_and(|errno| passing.contains(&errno)) {
            return;
        }
        if self.kernel_serves_data.swap(false, Ordering::Relaxed) {
            tracing::info!(
                %error,
                "the kernel does not serve the files of this source by itself; their data goes through the daemon"
            );
        }
    }

    pub(super) fn release_file(&self, fh: FileHandle) {
        if let Some(file) = self.files.remove(fh) {
            self.open_inodes.remove(&file);
            self.locks.ended(&file);
        }
    }

    /// pread(2) until `size` bytes or the end of the file.
    pub(super) fn read_file<T>(
        &self,
        req: &Request,
        fh: FileHandle,
        offset: u64,
        size: u32,
        answer: impl FnOnce(Result<&[u8]>) -> T,
    ) -> T {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        /// What a thread keeps between reads, in bytes: the largest read of the kernel's page cache by default.
        const KEPT: usize = 1 << 20;
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let result = self.fill(req, fh, offset, &mut buffer[..size]);
            let answered = answer(result.map(|length| &buffer[..length]));
            if buffer.len() > KEPT {
                buffer.truncate(KEPT);
                buffer.shrink_to_fit();
            }
            answered
        })
    }

    fn fill(&self, req: &Request, fh: FileHandle, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.files.get(fh)?;
        self.act(req, Rights::Checked)?;
        let mut length = 0;
        while length < buffer.len() {
            match rustix::io::pread(&*file, &mut buffer[length..], offset + length as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(Errno::INTR) => {}
                Err(_) if length > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(length)
    }

    /// pwrite(2) of all of `data`, or of as much as there is room for, at `offset`, or at the end of the file, wherever that
    /// is, if it `appends`. `sheds`: the kernel leaves it to us to take set-user-ID bits away.
    pub(super) fn write_file(
        &self,
        req: &Request,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        appends: bool,
        sheds: bool,
    ) -> Result<u32> {
        let file = self.files.get(fh)?;
        if !appends {
            file.append_no_more()?;
        }
        if sheds {
            self.shed_set_id(req, &Inode::open(Arc::clone(&file)), Keeping::Refused)?;
        }
        self.act(req, Rights::Checked)?;
        let flags = if appends { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
        let mut written = 0;
        while written < data.len() {
            let rest = [IoSlice::new(&data[written..])];
            let write = || rustix::io::pwritev2(&*file, &rest, offset + written as u64, flags);
            match self.with_room(|| self.act(req, Rights::Checked), write) {
                Ok(0) => break,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(written as u32)
    }

    /// What a close(2) of one of several descriptors reports: some file systems only say then that a write
    /// failed.
    pub(super) fn flush_file(&self, fh: FileHandle) -> Result<()> {
        let file = self.files.get(fh)?;
        if self.closes_quietly(file.id) {
            return Ok(());
        }
        let copy = rustix::io::fcntl_dupfd_cloexec(&*file, 0)?;
        super::sys::close(copy)
    }

    pub(super) fn sync(&self, fd: impl AsFd, data_only: bool) -> Result<()> {
        if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
    }

    /// Takes set-user-ID bits away for a change of which the kernel does not say that it does: it may not know of them.
    fn before_change(&self, req: &Request, file: &Arc<OpenFile>) -> Result<()> {
        match req.road() {
            Road::Kernel => self.shed_set_id(req, &Inode::open(Arc::clone(file)), Keeping::Unknown),
            Road::Bypass => Ok(()),
        }
    }

    pub(super) fn allocate(
        &self,
        req: &Request,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<()> {
        let file = self.files.get(fh)?;
        self.before_change(req, &file)?;
        self.act(req, Rights::Checked)?;
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        self.with_room(
            || self.act(req, Rights::Checked),
            || rustix::fs::fallocate(&*file, mode, offset, length),
        )
    }

    pub(super) fn seek(&self, fh: FileHandle, offset: i64, whence: i32) -> Result<i64> {
        let file = self.files.get(fh)?;
        let from = match whence {
            libc::SEEK_SET => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::INVAL)?),
            libc::SEEK_END => SeekFrom::End(offset),
            // A negative offset is ENXIO, as generic_file_llseek has it.
            libc::SEEK_DATA => SeekFrom::Data(u64::try_from(offset).map_err(|_| Errno::NXIO)?),
            libc::SEEK_HOLE => SeekFrom::Hole(u64::try_from(offset).map_err(|_| Errno::NXIO)?),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&*file, from).map(|offset| offset as i64)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn copy_range(
        &self,
        req: &Request,
        fh_in: FileHandle,
        mut offset_in: u64,
        fh_out: FileHandle,
        mut offset_out: u64,
        length: u64,
        flags: u64,
    ) -> Result<u32> {
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.files.get(fh_in)?, self.files.get(fh_out)?);
        self.before_change(req, &to)?;
        self.act(req, Rights::Checked)?;
        let length = length.min(LONGEST_COPY) as usize;
        let copy =
            || rustix::fs::copy_file_range(&*from, Some(&mut offset_in), &*to, Some(&mut offset_out), length);
        self.with_room(|| self.act(req, Rights::Checked), copy).map(|copied| copied as u32)
    }

    /// access(2), as the caller.
    pub(super) fn check_access(&self, req: &Request, id: u64, mask: i32) -> Result<()> {
        if !matches!(self.nodes.way(id), Some((_, Kind::Directory))) {
            self.settle(id);
        }
        let inode = self.inode(id)?;
        self.act(req, Rights::Caller)?;
        let access = rustix::fs::Access::from_bits(mask as u32).ok_or(Errno::INVAL)?;
        // AT_EACCESS: what counts is the thread's file system user, not the real user of the daemon.
        rustix::fs::accessat(CWD, inode.path().as_c_str(), access, AtFlags::EACCESS)
    }
}
