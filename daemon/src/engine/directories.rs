//! Open directories: `getdents64` and its relatives, as `fuse_readdir` serves them.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use finesse_ebpf::rules::Operations;
use fuser::{FileHandle, FileType, INodeNo, OpenFlags};

use crate::engine::cache::Inode;
use crate::engine::files::flush;
use crate::engine::handles::Handle;
use crate::engine::listings::{Gathering, regular_files};
use crate::engine::permission::READ;
use crate::engine::serve::{Call, Output, Served};
use crate::engine::table::Era;
use crate::engine::{Checks, Context, Engine, Stop, fail, kernel};
use crate::filesystem::Filesystem;
use crate::reply::{ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen};
use crate::request::Request;
use crate::session::Core;
use finesse_ipc::frame::{self, Attr, Fallback, Reply};
use finesse_ipc::layout::DATA_BYTES;
use finesse_ipc::table::Expiry;
use parking_lot::Mutex;

/// How opendir(3) opens: what the file system is told.
const FLAGS: OpenFlags = OpenFlags(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NONBLOCK);
/// `struct linux_dirent64` without the name.
const RECORD: usize = 19;
/// Longest name that the kernel takes from a file system (`FUSE_NAME_MAX`).
const NAME_MAX: usize = 1024;

/// A directory that a client lists. Whoever lets go of it last releases it.
pub(crate) struct OpenDirectory {
    inode: Arc<Inode>,
    /// Once the file system has opened it: what it lists may be known.
    fh: OnceLock<FileHandle>,
    sweep: Mutex<Option<Sweep>>,
    gathering: Mutex<Option<Gathering>>,
}

impl OpenDirectory {
    fn new(inode: Arc<Inode>) -> Self {
        Self { inode, fh: OnceLock::new(), sweep: Mutex::default(), gathering: Mutex::default() }
    }
}

/// A listing with attributes, from the beginning of the directory on, of which every name is in the metadata table.
#[derive(Clone, Copy, Debug)]
struct Sweep {
    era: Era,
    /// What [`Published::turnovers`] said before.
    ///
    /// [`Published::turnovers`]: crate::engine::table::Published::turnovers
    turnovers: usize,
    /// Where it goes on.
    next: u64,
    /// When the first of the names ends.
    expiry: Expiry,
}

/// A directory in use.
struct Using<'a, FS: Filesystem> {
    core: &'a Core<FS>,
    request: &'a Request,
    directory: Option<Arc<OpenDirectory>>,
}

impl<FS: Filesystem> Using<'_, FS> {
    fn directory(&self) -> Result<&OpenDirectory, Stop> {
        self.directory.as_deref().ok_or(Stop::Errno(libc::EBADF))
    }

    /// The file system's handle: it opens the directory now, if it has not before.
    fn fh(&self) -> Result<FileHandle, Stop> {
        let directory = self.directory()?;
        if let Some(fh) = directory.fh.get() {
            return Ok(*fh);
        }
        let ino = INodeNo(directory.inode.ino);
        let (reply, answer) = ReplyOpen::local();
        self.core.fs.ask().opendir(self.request, ino, FLAGS, reply);
        let fh = match answer.wait() {
            Ok(opened) => opened.fh,
            // `fc->no_opendir`
            Err(errno) if errno.code() == libc::ENOSYS => FileHandle(0),
            Err(errno) => return Err(errno.into()),
        };
        // Of two that open it at once, one is released again.
        let kept = *directory.fh.get_or_init(|| fh);
        if kept != fh {
            release(self.core, self.request, ino, fh);
        }
        Ok(kept)
    }
}

fn release<FS: Filesystem>(core: &Core<FS>, request: &Request, ino: INodeNo, fh: FileHandle) {
    let (reply, answer) = ReplyEmpty::local();
    core.fs.ask().releasedir(request, ino, fh, FLAGS, reply);
    // Errors of release reach nobody in the kernel either.
    let _ = answer.wait();
}

impl<FS: Filesystem> Drop for Using<'_, FS> {
    fn drop(&mut self) {
        if let Some(OpenDirectory { inode, fh, .. }) = self.directory.take().and_then(Arc::into_inner)
            && let Some(fh) = fh.into_inner()
        {
            release(self.core, self.request, INodeNo(inode.ino), fh);
        }
    }
}

/// What was read of a directory: records as getdents64(2) shows them.
struct Records<'o> {
    bytes: &'o mut Vec<u8>,
    /// Where to go on.
    next: u64,
    /// The file system has answered something that is no name.
    broken: bool,
}

impl Records<'_> {
    /// Adds an entry as `filldir64` does, unless `parse_dirfile` would refuse it.
    fn push(&mut self, ino: INodeNo, offset: u64, kind: FileType, name: &OsStr) {
        let name = name.as_bytes();
        self.broken |=
            name.is_empty() || name.len() > NAME_MAX || name.iter().any(|byte| matches!(byte, b'/' | 0));
        if self.broken {
            return;
        }
        let len = (RECORD + name.len() + 1).next_multiple_of(8);
        let end = self.bytes.len() + len;
        self.bytes.extend_from_slice(&ino.0.to_ne_bytes());
        self.bytes.extend_from_slice(&offset.to_ne_bytes());
        self.bytes.extend_from_slice(&(len as u16).to_ne_bytes());
        self.bytes.push(entry_type(kind));
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        self.next = offset;
    }
}

/// `d_type`.
fn entry_type(kind: FileType) -> u8 {
    match kind {
        FileType::NamedPipe => libc::DT_FIFO,
        FileType::CharDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Directory => libc::DT_DIR,
        FileType::RegularFile => libc::DT_REG,
        FileType::Symlink => libc::DT_LNK,
        FileType::Socket => libc::DT_SOCK,
    }
}

impl<FS: Filesystem> Engine<FS> {
    /// `open` with `O_DIRECTORY`, and the first page, if it is asked for.
    pub(super) fn open_dir(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let flags = call.frame.flags;
        let reads = call.frame.mode != 0;
        let known =
            (libc::AT_EMPTY_PATH | libc::O_NOFOLLOW) as u32 | if reads { frame::LIST_ATTRS } else { 0 };
        if flags & !known != 0 {
            return kernel(Fallback::Unsupported);
        }
        let inode = if call.path.is_empty() && flags & libc::AT_EMPTY_PATH as u32 != 0 {
            self.base(call.context, call.frame.base)?
        } else {
            let follow = flags & libc::O_NOFOLLOW as u32 == 0;
            self.resolve(call.context, &call.request, call.frame.base, call.path, follow)?.inode
        };
        if inode.kind != FileType::Directory {
            return fail(libc::ENOTDIR);
        }
        self.permit(call.context, &inode, Operations::LIST)?;
        self.may(call.context, &call.request, &inode, READ)?;
        if !call.context.handles.has_room() {
            return kernel(Fallback::OpenDirectory);
        }
        let directory = Arc::new(OpenDirectory::new(Arc::clone(&inode)));
        let using =
            Using { core: &self.core, request: &call.request, directory: Some(Arc::clone(&directory)) };
        // Where the file system judges who may list it, it is asked; otherwise perhaps never.
        let is_allowed = match self.checks {
            Checks::Engine => true,
            Checks::Caller => call.context.credentials.searches_all(),
            Checks::FileSystem => false,
        };
        if !is_allowed || self.cache.listings().get(&inode).is_none() {
            using.fh()?;
        }
        let attr = Attr { ino: inode.ino, ..Attr::default() };
        call.context.allow_base(inode);
        let opened = || Reply::with_file(attr, call.context.handles.insert(Handle::Directory(directory)));
        if !reads {
            return Ok(opened());
        }
        let page = self.read_page(call, &using, output)?;
        let mut reply = if page.flags & frame::REPLY_END != 0 { Reply::attr(attr) } else { opened() };
        reply.len = page.len;
        reply.flags |= page.flags;
        Ok(reply)
    }

    /// The open directory that a call is about.
    fn using<'a>(&'a self, call: &'a Call<'_>) -> Result<Using<'a, FS>, Stop> {
        match call.context.handles.get(call.frame.base) {
            Some(Handle::Directory(directory)) => {
                Ok(Using { core: &self.core, request: &call.request, directory: Some(directory) })
            }
            Some(Handle::File(_)) => fail(libc::ENOTDIR),
            None => fail(libc::EBADF),
        }
    }

    /// `getdents64` at a position.
    pub(super) fn read_dir(&self, call: &Call<'_>, output: &mut Output) -> Served {
        self.read_page(call, &self.using(call)?, output)
    }

    /// Asks the file system on until the page is full or there is no more, so that a small directory needs no second call
    /// to find its end.
    fn read_page(&self, call: &Call<'_>, using: &Using<'_, FS>, output: &mut Output) -> Served {
        let directory = using.directory()?;
        let inode = &directory.inode;
        if inode.is_dead() {
            // `iterate_dir` (`IS_DEADDIR`), whatever the file system would say.
            return fail(libc::ENOENT);
        }
        let (size, position) = ((call.frame.mode as usize).min(DATA_BYTES), call.frame.base2);
        let era = match call.frame.flags & frame::LIST_ATTRS {
            0 => None,
            _ => self.era_of(inode),
        };
        if let Some(listed) = self.read_kept(inode, position, size, era, output) {
            self.review_listed(era, &output.data, None);
            return listed;
        }
        let fh = using.fh()?;
        let mark = self.cache.mark();
        let kept_atime = self.keeps_atime(inode);
        let mut records = Records { bytes: &mut output.data, next: position, broken: false };
        let mut ended = false;
        let mut sweep = self.begin_sweep(directory, era, position);
        loop {
            let before = records.bytes.len();
            let room = size.saturating_sub(before);
            let full = match self.list(call, inode, fh, room, (era, &mut sweep), &mut records) {
                Ok(full) => full,
                // What was read so far is the answer; the error comes again.
                Err(_) if before > 0 => break,
                Err(stop) => return Err(stop),
            };
            let nothing = records.bytes.len() == before;
            if records.broken || full {
                break;
            }
            if nothing {
                ended = true;
                break;
            }
        }
        let (broken, next) = (records.broken, records.next);
        if let (Some(sweep), false) = (sweep, broken) {
            match (ended, self.table()) {
                (true, Some(table)) => {
                    table.complete(sweep.era, inode.ino, sweep.expiry, sweep.turnovers);
                }
                _ => *directory.sweep.lock() = Some(Sweep { next, ..sweep }),
            }
        }
        let mut gathering = directory.gathering.lock().take();
        if self.bypass.keeps_listings && !broken {
            let next = (!ended).then_some(next);
            gathering = self.gather(gathering, inode, (position, next), &output.data, mark);
        }
        // What was known before is what the kernel may have. What is known now was so before, too, or is what reading has made of it.
        if !(kept_atime && self.keeps_atime(inode)) {
            let before = self.cache.forget_atime(inode);
            // By nobody else.
            gathering = gathering.filter(|gathering| gathering.mark == before);
            gathering.iter_mut().for_each(|gathering| gathering.mark += 1);
        }
        self.review_listed(era, &output.data, gathering.as_mut());
        *directory.gathering.lock() = gathering;
        if output.data.is_empty() && !ended {
            // No room for a single entry, or the first one is none.
            return fail(if broken { libc::EIO } else { libc::EINVAL });
        }
        let mut reply = Reply::data(output.data.len() as u32);
        if ended {
            reply.flags |= frame::REPLY_END;
        }
        Ok(reply)
    }

    /// The attributes of what is listed are probably wanted: finds out which of the files that were granted for writing have no writers any
    /// more, so that theirs are in the table, too. For each alone, when somebody asks for it, that would take a round trip more.
    fn review_listed(&self, era: Option<Era>, records: &[u8], mut gathering: Option<&mut Gathering>) {
        let (Some(era), Some(table)) = (era, self.table()) else { return };
        let granted = |ino: &u64| self.core.coherence.is_granted_write(*ino);
        for inode in regular_files(records).filter(granted).filter_map(|ino| self.cache.known(ino)) {
            let before = self.cache.mark();
            if let Some((attr, mark)) = self.review_grants(&inode, before) {
                self.publish_inode(table, era, &inode, Some((&attr, inode.attr_expiry())), mark);
                // Nobody else has counted anything.
                gathering.iter_mut().filter(|gathering| gathering.mark == before).for_each(|gathering| {
                    gathering.mark = mark;
                });
            }
        }
    }

    /// Adds what was read of a directory, between two positions, to what was read before; nothing is behind the last page, which completes a
    /// listing to be kept. `mark` was before the file system was asked.
    fn gather(
        &self,
        gathered: Option<Gathering>,
        directory: &Inode,
        (position, next): (u64, Option<u64>),
        page: &[u8],
        mark: u64,
    ) -> Option<Gathering> {
        let gathered = match (position, next) {
            (0, None) => {
                self.cache.keep_listing(directory, page, mark);
                return None;
            }
            (0, Some(_)) => self.cache.listings().gather(mark),
            _ => gathered.filter(|gathered| gathered.goes_on_at(position))?,
        };
        let gathering = gathered.with(page, next.unwrap_or_default())?;
        if next.is_none() {
            self.cache.keep_listing(directory, gathering.records(), gathering.mark);
            return None;
        }
        Some(gathering)
    }

    /// Reads a directory of which is known what it lists. `None` if that is not known, or if the attributes that are wanted besides
    /// are to be had from the file system.
    fn read_kept(
        &self,
        directory: &Inode,
        position: u64,
        size: usize,
        era: Option<Era>,
        output: &mut Output,
    ) -> Option<Served> {
        let listing = self.cache.listings().get(directory)?;
        if let (0, Some(era), Some(table)) = (position, era, self.table())
            && !table.is_complete(era, directory.ino)
        {
            // Of a few that were evicted the program will ask.
            let (mut found, mut sampled) = (0, 0);
            for name in listing.sample() {
                sampled += 1;
                found += u32::from(table.holds(era, directory.ino, name));
            }
            if found * 4 < sampled * 3 {
                return None;
            }
        }
        let (page, ended) = listing.page(position, size)?;
        if page.is_empty() && !ended {
            return Some(fail(libc::EINVAL));
        }
        output.data.extend_from_slice(page);
        let mut reply = Reply::data(page.len() as u32);
        reply.flags |= if ended { frame::REPLY_END } else { 0 };
        Some(Ok(reply))
    }

    /// The sweep that a listing from a position begins, or goes on with.
    fn begin_sweep(&self, directory: &OpenDirectory, era: Option<Era>, position: u64) -> Option<Sweep> {
        let kept = directory.sweep.lock().take();
        let (era, table) = (era?, self.table()?);
        match position {
            _ if !self.bypass.lists_all => None,
            0 => {
                let turnovers = table.turnovers(directory.inode.ino);
                Some(Sweep { era, turnovers, next: 0, expiry: Expiry::NEVER })
            }
            _ => kept.filter(|sweep| sweep.next == position && sweep.era == era),
        }
    }

    /// One `readdir`, with attributes if they can be published in an era; whether an entry did not fit.
    fn list(
        &self,
        call: &Call<'_>,
        directory: &Arc<Inode>,
        fh: FileHandle,
        room: usize,
        (era, sweep): (Option<Era>, &mut Option<Sweep>),
        records: &mut Records<'_>,
    ) -> Result<bool, Stop> {
        let ino = INodeNo(directory.ino);
        let plus = era.is_some() && !self.lacks_plus.load(Ordering::Relaxed);
        if !plus && !self.lists_plus.load(Ordering::Relaxed) {
            *sweep = None;
            let (reply, answer) = ReplyDirectory::local(room);
            self.core.fs.ask().readdir(&call.request, ino, fh, records.next, reply);
            match answer.wait() {
                Ok(page) => {
                    for entry in page.entries {
                        records.push(entry.ino, entry.offset, entry.kind, &entry.name);
                    }
                    return Ok(page.full);
                }
                Err(errno) if errno.code() == libc::ENOSYS => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mark = self.cache.mark();
        let (reply, answer) = ReplyDirectoryPlus::local(room);
        self.core.fs.ask().readdirplus(&call.request, ino, fh, records.next, reply);
        let page = match answer.wait() {
            Err(errno) if errno.code() == libc::ENOSYS && plus => {
                self.lacks_plus.store(true, Ordering::Relaxed);
                return self.list(call, directory, fh, room, (None, sweep), records);
            }
            page => page?,
        };
        if !plus {
            // It has no other way.
            self.lists_plus.store(true, Ordering::Relaxed);
        }
        for entry in page.entries {
            let attr = &entry.entry.attr;
            records.push(attr.ino, entry.offset, attr.kind, &entry.name);
            // `fuse_direntplus_link`: no reference comes with these.
            if entry.name == "." || entry.name == ".." {
                continue;
            }
            if attr.ino.0 == 0 {
                *sweep = None;
                continue;
            }
            let published = match era {
                Some(era) => {
                    let inode = self.cache.learn(directory, &entry.name, &entry.entry, mark);
                    inode.and_then(|inode| {
                        self.publish_listed(era, directory, &entry.name, &entry.entry, &inode, mark)
                    })
                }
                None => {
                    drop(self.learned(directory, &entry.name, &entry.entry, mark));
                    None
                }
            };
            *sweep = match (*sweep, published) {
                (Some(sweep), Some(expiry)) => Some(Sweep { expiry: sweep.expiry.min(expiry), ..sweep }),
                _ => None,
            };
        }
        Ok(page.full)
    }

    /// `lseek` of a directory: the client keeps its position, so there is nothing to be set here.
    pub(super) fn seek(&self, call: &Call<'_>) -> Served {
        let offset = call.frame.base2 as i64;
        self.using(call)?;
        match call.frame.mode as i32 {
            libc::SEEK_SET if offset >= 0 => Ok(Reply::with_number(offset as u64)),
            libc::SEEK_SET => fail(libc::EINVAL),
            _ => kernel(Fallback::Unsupported),
        }
    }

    /// `fsync` of a directory.
    pub(super) fn sync(&self, call: &Call<'_>) -> Served {
        let using = self.using(call)?;
        let (ino, fh) = (INodeNo(using.directory()?.inode.ino), using.fh()?);
        let (reply, answer) = ReplyEmpty::local();
        self.core.fs.ask().fsyncdir(&call.request, ino, fh, call.frame.mode == 1, reply);
        match answer.wait() {
            // `fc->no_fsyncdir`
            Err(errno) if errno.code() == libc::ENOSYS => Ok(Reply::ok()),
            Err(errno) => Err(errno.into()),
            Ok(()) => Ok(Reply::ok()),
        }
    }

    /// Gives a number up.
    pub(super) fn close(&self, call: &Call<'_>) -> Served {
        match call.context.handles.remove(call.frame.base) {
            Some(Handle::Directory(directory)) => {
                drop(Using { core: &self.core, request: &call.request, directory: Some(directory) });
                Ok(Reply::ok())
            }
            Some(Handle::File(file)) => self.close_file(&call.request, &file),
            None => fail(libc::EBADF),
        }
    }

    /// A client is gone, and no operation of it is under way: lets go of what it had open, and closes what was held for it, in a thread of its own,
    /// as whoever notices must not wait for the file system.
    pub(crate) fn departed(&self, context: &Context, held: Vec<OwnedFd>) {
        self.orphan_watches(context);
        let open = context.handles.take_all();
        if open.is_empty() && held.is_empty() {
            return;
        }
        let (core, request) = (self.core.clone(), self.request(context));
        self.closers.run(move || {
            drop(held);
            for handle in open {
                match handle {
                    Handle::Directory(directory) => {
                        drop(Using { core: &core, request: &request, directory: Some(directory) });
                    }
                    Handle::File(file) => {
                        // As if each had been closed; nobody is left to hear of an error.
                        let _ = flush(&core.fs, &request, &file);
                    }
                }
            }
        });
    }
}
