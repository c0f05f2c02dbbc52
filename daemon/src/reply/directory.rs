//! Replies that list a directory.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, FileAttr, FileType, Generation, INodeNo};

use super::{Kernel, Out, Page, To};
use crate::answer::{self, Answer, Dirent, DirentPlus, Entry, Listing};
use crate::bpf::Absent;
use crate::coherence::Coherence;
use crate::kernel::hooks::Hooks;

/// Size of `struct fuse_dirent` without the name.
const DIRENT: usize = 24;

/// Counts a listing's bytes as FUSE lays it out, so that a page has the same length on both roads.
#[derive(Debug)]
struct Room {
    left: usize,
    full: bool,
}

impl Room {
    fn new(size: usize) -> Self {
        Self { left: size, full: false }
    }

    /// Takes the room of one entry; false if it does not fit.
    fn take(&mut self, fixed: usize, name: &OsStr) -> bool {
        match self.left.checked_sub((fixed + name.len()).next_multiple_of(8)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.full = true;
                false
            }
        }
    }
}

/// The answer of `readdir`.
#[derive(Debug)]
pub struct ReplyDirectory {
    to: To<Out<fuser::ReplyDirectory, Page>, Listing<Dirent>>,
    entries: Vec<Dirent>,
    room: Room,
}

impl ReplyDirectory {
    pub(crate) fn kernel(reply: Out<fuser::ReplyDirectory, Page>, hooks: Hooks) -> Self {
        Self { to: To::Kernel(Kernel { hooks, reply }), entries: Vec::new(), room: Room::new(0) }
    }

    /// A reply to the caller of at most `size` bytes, counted as FUSE would lay the page out.
    pub(crate) fn local(size: usize) -> (Self, Answer<Listing<Dirent>>) {
        let (sender, answer) = answer::channel();
        (Self { to: To::Local(sender), entries: Vec::new(), room: Room::new(size) }, answer)
    }

    /// Adds an entry. `offset` is where a later call is to continue after it. True means that the page is
    /// full and the entry was not added.
    #[must_use]
    pub fn add<T: AsRef<OsStr>>(&mut self, ino: INodeNo, offset: u64, kind: FileType, name: T) -> bool {
        match &mut self.to {
            To::Kernel(kernel) => kernel.reply.add(ino, offset, kind, name),
            To::Local(_) => {
                let name = name.as_ref();
                let fits = self.room.take(DIRENT, name);
                if fits {
                    self.entries.push(Dirent { ino, offset, kind, name: name.to_owned() });
                }
                !fits
            }
        }
    }

    /// Answers with the entries added.
    pub fn ok(self) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.ok(),
            To::Local(sender) => sender.send(Ok(Listing { entries: self.entries, full: self.room.full })),
        }
    }

    /// Answers with an error.
    pub fn error(self, err: Errno) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.error(err),
            To::Local(sender) => sender.send(Err(err)),
        }
    }
}

/// What a page that is not sent yet tells the kernel of: counted as the kernel's already, so that a change that comes
/// before the page is sent finds it.
#[derive(Debug)]
struct Told {
    coherence: Arc<Coherence>,
    children: Vec<u64>,
}

impl Drop for Told {
    /// The page was not sent.
    fn drop(&mut self) {
        for ino in &self.children {
            self.coherence.forgotten(*ino, 1);
        }
    }
}

/// The answer of `readdirplus`.
#[derive(Debug)]
pub struct ReplyDirectoryPlus {
    to: To<Out<fuser::ReplyDirectoryPlus, Page>, Listing<DirentPlus>>,
    entries: Vec<DirentPlus>,
    room: Room,
    /// For the kernel.
    told: Option<Told>,
}

impl ReplyDirectoryPlus {
    pub(crate) fn kernel(reply: Out<fuser::ReplyDirectoryPlus, Page>, hooks: Hooks) -> Self {
        let told = Some(Told { coherence: Arc::clone(&hooks.coherence), children: Vec::new() });
        Self { to: To::Kernel(Kernel { hooks, reply }), entries: Vec::new(), room: Room::new(0), told }
    }

    /// A reply to the caller of at most `size` bytes, counted as FUSE would lay the page out without attributes: the caller shows
    /// its program none.
    pub(crate) fn local(size: usize) -> (Self, Answer<Listing<DirentPlus>>) {
        let (sender, answer) = answer::channel();
        (Self { to: To::Local(sender), entries: Vec::new(), room: Room::new(size), told: None }, answer)
    }

    /// Adds an entry. `offset` is where a later call is to continue after it. True means that the page is
    /// full and the entry was not added. Each entry added but `.` and `..` counts as a lookup of `attr.ino`.
    pub fn add<T: AsRef<OsStr>>(
        &mut self,
        ino: INodeNo,
        offset: u64,
        name: T,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
    ) -> bool {
        self.add_knowing((ino, offset, name.as_ref()), ttl, attr, generation, None)
    }

    /// As [`add`](Self::add); the entry's file has no extended attributes, if `no_xattrs` tells of them. See
    /// [`ReplyXattr::has_none`](super::ReplyXattr::has_none).
    pub fn add_knowing(
        &mut self,
        (ino, offset, name): (INodeNo, u64, &OsStr),
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        no_xattrs: Option<Absent>,
    ) -> bool {
        match &mut self.to {
            To::Kernel(kernel) => {
                let hooks = &kernel.hooks;
                // `fuse_direntplus_link` takes neither a reference nor attributes of these.
                let linked = name != "." && name != ".." && attr.ino.0 != 0;
                if !linked {
                    return kernel.reply.add(ino, offset, name, &Duration::ZERO, attr, generation);
                }
                let (attr_ttl, entry_ttl) = hooks.listed(name, attr, *ttl);
                // fuser's object takes one lifetime for both.
                let full = kernel.reply.add(ino, offset, name, &attr_ttl.min(entry_ttl), attr, generation);
                match &mut self.told {
                    Some(told) if !full => told.children.push(attr.ino.0),
                    _ => hooks.coherence.forgotten(attr.ino.0, 1),
                }
                full
            }
            To::Local(_) => {
                let fits = self.room.take(DIRENT, name);
                if fits {
                    let (attr_ttl, entry_ttl) = (*ttl, *ttl);
                    let entry = Entry { attr: *attr, generation, attr_ttl, entry_ttl, no_xattrs };
                    self.entries.push(DirentPlus { offset, name: name.to_owned(), entry });
                }
                !fits
            }
        }
    }

    /// Answers with the entries added.
    pub fn ok(self) {
        match self.to {
            To::Kernel(kernel) => {
                // Before the reply, because the kernel may forget a child as soon as it has it.
                if let Some(mut told) = self.told {
                    told.children.clear();
                }
                kernel.settle().1.ok();
            }
            To::Local(sender) => sender.send(Ok(Listing { entries: self.entries, full: self.room.full })),
        }
    }

    /// Answers with an error.
    pub fn error(self, err: Errno) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.error(err),
            To::Local(sender) => sender.send(Err(err)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_page_is_full_when_fuse_would_say_so() {
        // Two entries of 24 + 3 bytes, each rounded up to 32.
        let (mut reply, answer) = ReplyDirectory::local(64);
        assert!(!reply.add(INodeNo(1), 1, FileType::Directory, "one"));
        assert!(!reply.add(INodeNo(2), 2, FileType::RegularFile, "two"));
        assert!(reply.add(INodeNo(3), 3, FileType::RegularFile, "three"));
        reply.ok();
        let page = answer.wait().unwrap();
        let names: Vec<_> = page.entries.into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["one", "two"]);
        assert!(page.full);
    }
}
