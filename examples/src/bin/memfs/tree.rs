//! Inodes, and the names that lead to them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo};
use parking_lot::{Mutex, MutexGuard};

use crate::contents::{Contents, PAGE};

/// Most names of an inode, and most subdirectories of a directory.
const LINKS: u32 = 65_000;
/// Longest name in bytes.
pub(crate) const NAME: usize = 255;
/// Bytes that an inode's extended attributes may take, names and values.
const XATTRS: usize = 128 << 10;

/// What an inode is.
pub(crate) enum Body {
    File(Contents),
    Directory(Directory),
    Symlink(Box<[u8]>),
    /// A FIFO, socket or device: the kernel does the rest.
    Special(FileType),
}

/// Names in the order in which they were made. The place of a name never changes, so a listing that goes on
/// after a place neither misses nor repeats what was there all the time.
pub(crate) struct Directory {
    pub(crate) parent: INodeNo,
    places: HashMap<Arc<OsStr>, u64>,
    pub(crate) entries: BTreeMap<u64, (Arc<OsStr>, INodeNo, FileType)>,
    next: u64,
}

/// Places of `.` and `..` come before all others.
pub(crate) const FIRST_PLACE: u64 = 3;

/// One inode.
pub(crate) struct Inode {
    pub(crate) ino: INodeNo,
    pub(crate) body: Body,
    /// Permission bits.
    pub(crate) perm: u32,
    /// Names, and for a directory its subdirectories; 0 is removed.
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) atime: SystemTime,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
    crtime: SystemTime,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// References that the kernel and the bypass hold (`forget`). Whoever has the file open has one.
    pub(crate) lookups: u64,
}

impl Inode {
    pub(crate) fn kind(&self) -> FileType {
        match self.body {
            Body::File(_) => FileType::RegularFile,
            Body::Directory(_) => FileType::Directory,
            Body::Symlink(_) => FileType::Symlink,
            Body::Special(kind) => kind,
        }
    }

    pub(crate) fn attr(&self) -> FileAttr {
        let (size, pages) = match &self.body {
            Body::File(contents) => (contents.size(), contents.pages()),
            Body::Symlink(target) => (target.len() as u64, 0),
            Body::Directory(directory) => (directory.entries.len() as u64 * 32, 0),
            Body::Special(_) => (0, 0),
        };
        FileAttr {
            ino: self.ino,
            size,
            blocks: pages * (PAGE / 512),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
            kind: self.kind(),
            perm: self.perm as u16,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: PAGE as u32,
            flags: 0,
        }
    }

    /// Contents, or names, have changed.
    pub(crate) fn modified(&mut self) {
        self.mtime = SystemTime::now();
        self.ctime = self.mtime;
    }

    /// What was read is noted as by a mount with `relatime`: once after every change, and once a day.
    pub(crate) fn accessed(&mut self) {
        let now = SystemTime::now();
        let day_ago = now - Duration::from_secs(24 * 60 * 60);
        if self.atime <= self.mtime || self.atime <= self.ctime || self.atime <= day_ago {
            self.atime = now;
        }
    }

    pub(crate) fn directory(&mut self) -> Result<&mut Directory, Errno> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn contents(&mut self) -> Result<&mut Contents, Errno> {
        match &mut self.body {
            Body::File(contents) => Ok(contents),
            Body::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn xattr(&self, name: &OsStr) -> Result<&[u8], Errno> {
        self.xattrs.get(name).map(Vec::as_slice).ok_or(Errno::NO_XATTR)
    }

    pub(crate) fn xattr_names(&self) -> impl Iterator<Item = &OsStr> {
        self.xattrs.keys().map(OsString::as_os_str)
    }

    pub(crate) fn set_xattr(&mut self, name: &OsStr, value: &[u8], flags: i32) -> Result<(), Errno> {
        match self.xattrs.contains_key(name) {
            true if flags & libc::XATTR_CREATE != 0 => return Err(Errno::EEXIST),
            false if flags & libc::XATTR_REPLACE != 0 => return Err(Errno::NO_XATTR),
            _ => {}
        }
        let others = self.xattrs.iter().filter(|(other, _)| *other != name);
        let taken: usize = others.map(|(name, value)| name.len() + value.len()).sum();
        if taken + name.len() + value.len() > XATTRS {
            return Err(Errno::ENOSPC);
        }
        self.xattrs.insert(name.to_owned(), value.to_owned());
        self.ctime = SystemTime::now();
        Ok(())
    }

    pub(crate) fn remove_xattr(&mut self, name: &OsStr) -> Result<(), Errno> {
        self.xattrs.remove(name).ok_or(Errno::NO_XATTR)?;
        self.ctime = SystemTime::now();
        Ok(())
    }
}

impl Directory {
    pub(crate) fn new(parent: INodeNo) -> Self {
        Self { parent, places: HashMap::new(), entries: BTreeMap::new(), next: FIRST_PLACE }
    }

    pub(crate) fn get(&self, name: &OsStr) -> Option<INodeNo> {
        self.places.get(name).map(|place| self.entries[place].1)
    }

    fn insert(&mut self, name: &OsStr, ino: INodeNo, kind: FileType) {
        let name: Arc<OsStr> = name.into();
        self.places.insert(name.clone(), self.next);
        self.entries.insert(self.next, (name, ino, kind));
        self.next += 1;
    }

    fn remove(&mut self, name: &OsStr) {
        if let Some(place) = self.places.remove(name) {
            self.entries.remove(&place);
        }
    }
}

/// All inodes. Who holds the tree for writing is alone; the others look at one inode at a time.
pub(crate) struct Tree {
    inodes: HashMap<u64, Mutex<Inode>>,
    next: u64,
}

impl Tree {
    /// A root directory, which is its own parent and is never forgotten.
    pub(crate) fn new(uid: u32, gid: u32, perm: u32) -> Self {
        let mut tree = Self { inodes: HashMap::new(), next: INodeNo::ROOT.0 };
        let root = tree.make(Body::Directory(Directory::new(INodeNo::ROOT)), perm, uid, gid, 0);
        tree.inodes.insert(root.ino.0, Mutex::new(root));
        tree
    }

    pub(crate) fn count(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// An inode without a name. Numbers are never used twice, so that the generation has nothing to tell.
    pub(crate) fn make(&mut self, body: Body, perm: u32, uid: u32, gid: u32, rdev: u32) -> Inode {
        let ino = INodeNo(self.next);
        self.next += 1;
        let now = SystemTime::now();
        let nlink = if matches!(body, Body::Directory(_)) { 2 } else { 0 };
        let xattrs = BTreeMap::new();
        let (atime, mtime, ctime, crtime) = (now, now, now, now);
        let perm = perm & 0o7777;
        Inode { ino, body, perm, nlink, uid, gid, rdev, atime, mtime, ctime, crtime, xattrs, lookups: 0 }
    }

    /// An inode, locked. `ESTALE` is for those that should have stayed references away.
    pub(crate) fn inode(&self, ino: INodeNo) -> Result<MutexGuard<'_, Inode>, Errno> {
        self.inodes.get(&ino.0).map(Mutex::lock).ok_or(Errno::ESTALE)
    }

    pub(crate) fn child(&self, parent: INodeNo, name: &OsStr) -> Result<INodeNo, Errno> {
        if name.len() > NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut parent = self.inode(parent)?;
        let above = parent.directory()?;
        match name.as_encoded_bytes() {
            b"." => Ok(parent.ino),
            b".." => Ok(above.parent),
            _ => above.get(name).ok_or(Errno::ENOENT),
        }
    }

    /// Whether a new name may be made, apart from permissions.
    pub(crate) fn vacant(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        match self.child(parent, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(errno) if errno.code() != Errno::ENOENT.code() => Err(errno),
            // A removed directory that somebody is still in.
            Err(_) if self.inode(parent)?.nlink == 0 => Err(Errno::ENOENT),
            Err(_) => Ok(()),
        }
    }

    /// Gives a new inode its first name and its first reference.
    pub(crate) fn add(&mut self, parent: INodeNo, name: &OsStr, mut inode: Inode) -> Result<FileAttr, Errno> {
        let (ino, is_directory) = (inode.ino, inode.kind() == FileType::Directory);
        inode.lookups = 1;
        if is_directory {
            // The name's; `link` counts it again.
            inode.nlink -= 1;
        }
        self.inodes.insert(ino.0, Mutex::new(inode));
        if let Err(errno) = self.link(parent, name, ino) {
            self.inodes.remove(&ino.0);
            return Err(errno);
        }
        Ok(self.inode(ino)?.attr())
    }

    /// Gives an inode a name more.
    pub(crate) fn link(&mut self, parent: INodeNo, name: &OsStr, ino: INodeNo) -> Result<(), Errno> {
        let kind = {
            let mut inode = self.inode(ino)?;
            if inode.nlink >= LINKS {
                return Err(Errno::EMLINK);
            }
            inode.nlink += 1;
            inode.ctime = SystemTime::now();
            inode.kind()
        };
        let mut above = self.inode(parent)?;
        let full = kind == FileType::Directory && above.nlink >= LINKS;
        match above.directory() {
            Ok(directory) if !full => directory.insert(name, ino, kind),
            refused => {
                let errno = refused.err().unwrap_or(Errno::EMLINK);
                drop(above);
                self.inode(ino)?.nlink -= 1;
                return Err(errno);
            }
        }
        above.nlink += u32::from(kind == FileType::Directory);
        above.modified();
        drop(above);
        if let Ok(directory) = self.inode(ino)?.directory() {
            directory.parent = parent;
        }
        Ok(())
    }

    /// Takes a name away from an inode.
    fn unlink(&mut self, parent: INodeNo, name: &OsStr, ino: INodeNo) -> Result<(), Errno> {
        let is_directory = {
            let mut inode = self.inode(ino)?;
            inode.nlink -= 1;
            inode.ctime = SystemTime::now();
            inode.kind() == FileType::Directory
        };
        let mut above = self.inode(parent)?;
        above.directory()?.remove(name);
        above.nlink -= u32::from(is_directory);
        above.modified();
        Ok(())
    }

    /// Takes a name away for good: of a file, or of an empty directory.
    pub(crate) fn remove(&mut self, parent: INodeNo, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let ino = self.child(parent, name)?;
        {
            let mut inode = self.inode(ino)?;
            match (inode.directory(), directory) {
                (Ok(_), false) => return Err(Errno::EISDIR),
                (Err(_), true) => return Err(Errno::ENOTDIR),
                (Ok(inside), true) if !inside.entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
        }
        self.unlink(parent, name, ino)?;
        if directory {
            // Nothing is left of its own `.` either.
            self.inode(ino)?.nlink = 0;
        }
        self.reclaim(ino);
        Ok(())
    }

    /// renameat2(2), without what the kernel and the engine have judged: permissions.
    pub(crate) fn rename(
        &mut self,
        (from, name): (INodeNo, &OsStr),
        (to, newname): (INodeNo, &OsStr),
        flags: u32,
    ) -> Result<(), Errno> {
        let moved = self.child(from, name)?;
        let target = match self.vacant(to, newname) {
            Ok(()) => None,
            Err(errno) if errno.code() == Errno::EEXIST.code() => Some(self.child(to, newname)?),
            Err(errno) => return Err(errno),
        };
        let exchange = match flags {
            0 => false,
            libc::RENAME_NOREPLACE if target.is_some() => return Err(Errno::EEXIST),
            libc::RENAME_NOREPLACE => false,
            libc::RENAME_EXCHANGE if target.is_none() => return Err(Errno::ENOENT),
            libc::RENAME_EXCHANGE => true,
            _ => return Err(Errno::EINVAL),
        };
        if target == Some(moved) {
            return Ok(());
        }
        if self.contains(moved, to)? {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target
            && self.contains(target, from)?
        {
            return Err(if exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        let is_directory = |ino| Ok::<_, Errno>(self.inode(ino)?.kind() == FileType::Directory);
        let directory = is_directory(moved)?;
        let onto_directory = target.is_some_and(|target| is_directory(target) == Ok(true));
        let full = |ino| Ok::<_, Errno>(self.inode(ino)?.nlink >= LINKS);
        if from != to
            && ((directory && !onto_directory && full(to)?)
                || (exchange && onto_directory && !directory && full(from)?))
        {
            return Err(Errno::EMLINK);
        }
        // From here on only `remove` can fail, and it does so before anything has happened.
        match target {
            Some(target) if exchange => {
                self.unlink(to, newname, target)?;
                self.unlink(from, name, moved)?;
                self.link(from, name, target)?;
            }
            Some(_) => {
                self.remove(to, newname, directory)?;
                self.unlink(from, name, moved)?;
            }
            None => self.unlink(from, name, moved)?,
        }
        self.link(to, newname, moved)
    }

    /// Whether `ino` is `below` or a directory above it.
    fn contains(&self, ino: INodeNo, mut below: INodeNo) -> Result<bool, Errno> {
        while below != ino && below != INodeNo::ROOT {
            below = self.inode(below)?.directory()?.parent;
        }
        Ok(below == ino)
    }

    /// Lets go of an inode that nothing leads to any more.
    pub(crate) fn reclaim(&mut self, ino: INodeNo) {
        let gone = |inode: MutexGuard<'_, Inode>| inode.nlink == 0 && inode.lookups == 0;
        if self.inode(ino).is_ok_and(gone) {
            self.inodes.remove(&ino.0);
        }
    }
}
