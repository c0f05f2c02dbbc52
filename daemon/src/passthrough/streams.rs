//! Open directories. Offsets are the backing's own (`d_off`), so telldir, seekdir and changes between two reads
//! work as they do there.

#![deny(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek};
use rustix::io::{Errno, Result};

use super::handles::OpenDirectory;
use super::ids::ROOT;
use super::inodes::stat_at;
use super::{PassthroughFs, Rights, attributes};
use crate::{
    FileAttr, FileHandle, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, Request, Road,
};

/// How much is read from the backing at a time, in bytes: about as much as the kernel asks for.
const CHUNK: usize = 8192;

/// No position that getdents64(2) knows: the next read seeks.
const LOST: u64 = u64::MAX;

/// An entry as the backing has it.
struct Entry<'a> {
    id: u64,
    kind: FileType,
    name: &'a OsStr,
    next: u64,
}

/// What became of an entry that was offered.
enum Offer {
    Taken,
    Full,
}

/// How many streams stay open that the kernel reads without having opened a directory.
const LISTED: usize = 64;

/// Streams of directories that the kernel lists without having opened them, each at the position where somebody goes on to read, the
/// latest last. To open one anew for each request would have some file systems (overlayfs) read it from the beginning each time,
/// and count its names anew.
#[derive(Default)]
pub(super) struct Listed(Mutex<VecDeque<(u64, Arc<OpenDirectory>)>>);

impl Listed {
    /// Takes out the stream that goes on at an offset.
    fn take(&self, id: u64, offset: u64) -> Option<Arc<OpenDirectory>> {
        let mut listed = self.0.lock();
        let place = listed.iter().rposition(|(next, stream)| *next == offset && stream.id == id)?;
        listed.remove(place).map(|(_, stream)| stream)
    }

    fn keep(&self, next: u64, stream: Arc<OpenDirectory>) {
        let mut listed = self.0.lock();
        let left = if listed.len() == LISTED { listed.pop_front() } else { None };
        listed.push_back((next, stream));
        drop(listed);
        drop(left);
    }
}

/// Whether the kernel reads a directory that it has not opened.
fn is_unopened(req: &Request, fh: FileHandle) -> bool {
    fh.0 == 0 && req.road() == Road::Kernel
}

impl PassthroughFs {
    fn open_directory(&self, req: &Request, id: u64) -> Result<Arc<OpenDirectory>> {
        let inode = self.inode(id)?;
        self.act(req, Rights::Checked)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let path = inode.path();
        let fd = self.with_spare_descriptors(|| openat(CWD, path.as_c_str(), flags, Mode::empty()))?;
        Ok(Arc::new(OpenDirectory::new(fd, id)))
    }

    pub(super) fn open_stream(&self, req: &Request, id: u64) -> Result<FileHandle> {
        Ok(self.streams.insert(&self.open_directory(req, id)?))
    }

    /// An open directory: `fh`, or, if the kernel has none, one that is opened.
    pub(super) fn stream(&self, req: &Request, id: u64, fh: FileHandle) -> Result<Arc<OpenDirectory>> {
        match is_unopened(req, fh) {
            true => self.open_directory(req, id),
            false => self.streams.get(fh),
        }
    }

    /// Offers entries from `offset` on until one is not taken or there are no more.
    fn read_stream(
        &self,
        req: &Request,
        id: u64,
        fh: FileHandle,
        offset: u64,
        offer: impl FnMut(&OpenDirectory, &Entry<'_>) -> Result<Offer>,
    ) -> Result<()> {
        if !is_unopened(req, fh) {
            return self.read_from(req, &*self.streams.get(fh)?, offset, offer).map(|_| ());
        }
        // At the beginning it is as if it had just been opened.
        let kept = if offset == 0 { None } else { self.listed.take(id, offset) };
        let stream = kept.map_or_else(|| self.open_directory(req, id), Ok)?;
        if let Some(next) = self.read_from(req, &stream, offset, offer)? {
            self.listed.keep(next, stream);
        }
        Ok(())
    }

    /// Offers entries from `offset` on until one is not taken or there are no more; where to go on, if one was taken.
    fn read_from(
        &self,
        req: &Request,
        stream: &OpenDirectory,
        offset: u64,
        mut offer: impl FnMut(&OpenDirectory, &Entry<'_>) -> Result<Offer>,
    ) -> Result<Option<u64>> {
        self.act(req, Rights::Checked)?;
        let mut position = stream.position.lock();
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        // Before it is read: what is removed from then on stays hidden to the end.
        let listing = self.deferred.as_ref().and_then(|deferred| deferred.lists(stream.id));
        if *position != offset {
            if *position == 0 {
                // `ext4_dx_readdir` takes the beginning for the end ever after if the first thing that it is asked for is
                // the end. What comes of this read comes again.
                let _ = RawDir::new(stream, &mut buffer).next();
            }
            *position = LOST;
            seek(stream, SeekFrom::Start(offset))?;
        }
        let mut entries = RawDir::new(stream, &mut buffer);
        // Any early way out leaves entries behind in the buffer.
        *position = LOST;
        let mut last = offset;
        let mut taken = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                // What was read so far is the answer; the error comes again.
                Err(_) if taken => return Ok(Some(last)),
                Err(Errno::NOENT) => break,
                other => other?,
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let kind = attributes::entry_kind(entry.file_type());
            let next = entry.next_entry_cookie();
            if listing.as_ref().is_some_and(|listing| listing.hides(name)) {
                last = next;
                continue;
            }
            let id = self.entry_id(stream.id, name, entry.ino())?;
            let kind = match kind {
                Some(kind) => kind,
                None => {
                    stat_at(stream, name).map_or(FileType::RegularFile, |stat| attributes::of(&stat, id).kind)
                }
            };
            match offer(stream, &Entry { id, kind, name, next }) {
                Ok(Offer::Taken) => taken = true,
                Ok(Offer::Full) => return Ok(taken.then_some(last)),
                Err(_) if taken => return Ok(Some(last)),
                Err(errno) => return Err(errno),
            }
            last = next;
        }
        *position = last;
        Ok(taken.then_some(last))
    }

    /// The node id of an entry. The root has no parent within the mount.
    fn entry_id(&self, dir: u64, name: &OsStr, ino: u64) -> Result<u64> {
        if dir == ROOT && name == ".." { Ok(ROOT) } else { self.ids.beside(dir, ino) }
    }

    pub(super) fn list(
        &self,
        req: &Request,
        id: u64,
        fh: FileHandle,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<()> {
        self.read_stream(req, id, fh, offset, |_, entry| {
            let full = reply.add(INodeNo(entry.id), entry.next, entry.kind, entry.name);
            Ok(if full { Offer::Full } else { Offer::Taken })
        })
    }

    pub(super) fn list_plus(
        &self,
        req: &Request,
        id: u64,
        fh: FileHandle,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<()> {
        let ttl = self.ttl;
        let lists_xattrs = self.lists_xattrs(req);
        let mut add = |entry: &Entry<'_>, attr: &FileAttr, generation, no_xattrs| {
            let place = (attr.ino, entry.next, entry.name);
            match reply.add_knowing(place, &ttl, attr, Generation(generation), no_xattrs) {
                true => Offer::Full,
                false => Offer::Taken,
            }
        };
        self.read_stream(req, id, fh, offset, |stream, entry| {
            let unreferenced = |id| FileAttr { ino: INodeNo(id), kind: entry.kind, ..attributes::nothing() };
            if entry.name == "." || entry.name == ".." {
                // The kernel takes no reference for these two (`fuse_direntplus_link`).
                return Ok(add(entry, &unreferenced(entry.id), 0, None));
            }
            let stat = match self.settled_stat(req, stream, entry.name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => return Ok(Offer::Taken),
                Err(_) => return Ok(add(entry, &unreferenced(0), 0, None)),
            };
            let (id, generation) = match self.remember(stream.id, stream, entry.name, &stat, false) {
                Ok(known) => known,
                Err(Errno::NOENT) => return Ok(Offer::Taken),
                Err(errno) => return Err(errno),
            };
            let no_xattrs = if lists_xattrs { self.absent_at(id, stream, entry.name, &stat) } else { None };
            let offered = add(entry, &attributes::of(&stat, id), generation, no_xattrs);
            if matches!(offered, Offer::Full) {
                self.forget_node(id, 1);
            }
            Ok(offered)
        })
    }
}
