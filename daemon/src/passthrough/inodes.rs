//! From node ids to descriptors and back: how an operation finds the inode that it is about, and how an inode that an
//! operation found becomes known.

#![deny(unsafe_code)]

use std::ffi::{CStr, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, statx};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use super::handles::OpenFile;
use super::ids::{Device, ROOT, UnknownDevice, device_number};
use super::nodes::{Birth, Kind, Location, Way};
use super::{PassthroughFs, attributes, credentials, leases, sys};

/// How many directories that are only known by name may lie between an inode and one whose descriptor is at hand.
const DEEPEST: usize = 2048;

/// No magic links, and nothing outside the directory that is named.
pub(super) const INSIDE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// A descriptor of an inode, good for everything that an `O_PATH` descriptor is good for.
pub(super) struct Inode {
    way: Descriptor,
    /// Its attributes, if it had to be opened for the purpose.
    pub(super) stat: Option<Box<Statx>>,
}

enum Descriptor {
    Shared(Arc<OwnedFd>),
    Own(OwnedFd),
    Open(Arc<OpenFile>),
}

impl Inode {
    pub(super) fn shared(fd: Arc<OwnedFd>) -> Self {
        Self { way: Descriptor::Shared(fd), stat: None }
    }

    pub(super) fn open(file: Arc<OpenFile>) -> Self {
        Self { way: Descriptor::Open(file), stat: None }
    }

    /// The open file behind it, if it is one.
    pub(super) fn as_open_file(&self) -> Option<&OpenFile> {
        match &self.way {
            Descriptor::Open(file) => Some(file),
            Descriptor::Shared(_) | Descriptor::Own(_) => None,
        }
    }

    /// The descriptor, if it is one of the directories that are kept.
    pub(super) fn directory(&self) -> Option<&Arc<OwnedFd>> {
        match &self.way {
            Descriptor::Shared(fd) => Some(fd),
            Descriptor::Own(_) | Descriptor::Open(_) => None,
        }
    }

    /// What statx(2) says about it.
    pub(super) fn attributes(&self) -> Result<Statx> {
        match &self.stat {
            Some(stat) => Ok(**stat),
            None => stat_of(self),
        }
    }

    /// A path to the inode itself, for calls that take no `O_PATH` descriptor. A magic link leads to the
    /// inode without a look at its type, so this works for symbolic links and special files, too.
    pub(super) fn path(&self) -> ProcPath {
        ProcPath::of(self)
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Descriptor::Shared(fd) => fd.as_fd(),
            Descriptor::Own(fd) => fd.as_fd(),
            Descriptor::Open(file) => file.as_fd(),
        }
    }
}

/// `/proc/self/fd/N`.
pub(super) struct ProcPath([u8; 32]);

impl ProcPath {
    pub(super) fn of(fd: impl AsFd) -> Self {
        let mut path = [0; 32];
        // Cannot fail: the longest number has ten digits.
        let _ = write!(&mut path[..31], "/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        Self(path)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

/// statx(2) of a name in a directory; a symbolic link is not followed.
pub(super) fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Statx> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, attributes::WANTED)
}

/// statx(2) of a descriptor.
pub(super) fn stat_of(fd: impl AsFd) -> Result<Statx> {
    statx(fd, c"", AtFlags::EMPTY_PATH, attributes::WANTED)
}

/// Refuses what cannot be a name in a directory. Nothing that names another directory may reach the backing.
pub(super) fn check_name(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        b"" => Err(Errno::NOENT),
        b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') || bytes.contains(&0) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

impl PassthroughFs {
    /// A descriptor of node `id`. May leave the thread acting as the daemon.
    ///
    /// # Errors
    /// `ESTALE` if the inode is gone, or cannot be found any more.
    pub(super) fn inode(&self, id: u64) -> Result<Inode> {
        self.inode_at_depth(id, 0)
    }

    fn inode_at_depth(&self, id: u64, depth: usize) -> Result<Inode> {
        if id == ROOT {
            return Ok(Inode::shared(Arc::clone(&self.root)));
        }
        if let Some(fd) = self.directories.get(id) {
            return Ok(Inode::shared(fd));
        }
        match self.reopen(id, depth) {
            Err(Errno::STALE | Errno::NOENT | Errno::NOTDIR) => {
                self.open_inodes.any(id).map(Inode::open).ok_or(Errno::STALE)
            }
            other => other,
        }
    }

    fn reopen(&self, id: u64, depth: usize) -> Result<Inode> {
        let (way, kind) = self.nodes.way(id).ok_or(Errno::STALE)?;
        let (device, number) = self.ids.resolve(id).ok_or(Errno::STALE)?;
        let path_only = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match &way {
            Way::Handle(handle) => {
                let opened = self.open_handle(&device, handle, path_only);
                if opened.as_ref().err() == Some(&Errno::STALE) {
                    self.nodes.mark_stale(id);
                }
                opened?
            }
            Way::Name { parent, name } => {
                if depth > DEEPEST {
                    return Err(Errno::STALE);
                }
                let dir = self.inode_at_depth(*parent, depth + 1)?;
                credentials::become_daemon()?;
                let open = || rustix::fs::openat2(&dir, &**name, path_only, Mode::empty(), INSIDE);
                self.with_spare_descriptors(open)?
            }
        };
        // A handle was taken by name, and the name may have changed hands between that and the statx(2) before
        // it; a name may have changed hands at any time.
        let stat = stat_of(&fd)?;
        if (device_number(&stat), stat.stx_ino) != (device.number, number) {
            self.nodes.mark_stale(id);
            return Err(Errno::STALE);
        }
        let stat = Some(Box::new(stat));
        if kind == Kind::Directory {
            let fd = Arc::new(fd);
            self.directories.insert(id, &fd);
            return Ok(Inode { way: Descriptor::Shared(fd), stat });
        }
        Ok(Inode { way: Descriptor::Own(fd), stat })
    }

    /// Opens a file handle, as the daemon.
    pub(super) fn open_handle(
        &self,
        device: &Device,
        handle: &sys::RawHandle,
        flags: OFlags,
    ) -> Result<OwnedFd> {
        let mount = device.handles.as_ref().ok_or(Errno::STALE)?;
        credentials::become_daemon()?;
        self.with_spare_descriptors(|| sys::open_by_handle(mount, handle, flags))
    }

    /// Runs something that opens a descriptor, and again without cached ones if there are too many, or if a lease was in its
    /// way.
    pub(super) fn with_spare_descriptors<T>(&self, open: impl Fn() -> Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.directories.clear();
                self.hot.clear();
                open()
            }
            Err(Errno::AGAIN) => leases::past_leases(open),
            other => other,
        }
    }

    /// Takes a reference to the inode that `stat` says is `name` in `dir`, node `parent`. Returns its node
    /// id and generation.
    pub(super) fn remember(
        &self,
        parent: u64,
        dir: impl AsFd,
        name: &OsStr,
        stat: &Statx,
        created: bool,
    ) -> Result<(u64, u64)> {
        let id = match self.ids.of(stat) {
            Ok(id) => id?,
            Err(UnknownDevice) => {
                self.ids.add_device(self.device_of(&dir, name, stat)?)?;
                self.ids.of(stat).map_err(|UnknownDevice| Errno::STALE)??
            }
        };
        self.refer(id, parent, dir, name, name, stat, created)
    }

    /// As [`remember`](Self::remember), for a file that was just opened as `name` in node `parent`.
    pub(super) fn remember_open(
        &self,
        parent: u64,
        fd: impl AsFd,
        name: &OsStr,
        stat: &Statx,
        created: bool,
    ) -> Result<(u64, u64)> {
        let id = match self.ids.of(stat) {
            Ok(id) => id?,
            Err(UnknownDevice) => return Err(Errno::STALE),
        };
        self.refer(id, parent, fd, OsStr::new(""), name, stat, created)
    }

    /// `relative` names the inode from `base`; `name` is its name in the directory `parent`.
    #[allow(clippy::too_many_arguments)]
    fn refer(
        &self,
        id: u64,
        parent: u64,
        base: impl AsFd,
        relative: &OsStr,
        name: &OsStr,
        stat: &Statx,
        created: bool,
    ) -> Result<(u64, u64)> {
        if id == ROOT {
            return Ok((ROOT, 0));
        }
        let by_handle = self.ids.has_handles(id);
        let by_name = || Location::Name { parent, name: name.as_bytes().into() };
        let locate = || {
            if !by_handle {
                return Ok(by_name());
            }
            match relative.into_with_c_str(|name| sys::name_to_handle(&base, name)) {
                Ok(handle) => Ok(Location::Handle { kind: handle.kind(), bytes: handle.bytes().into() }),
                Err(Errno::OPNOTSUPP | Errno::OVERFLOW) => Ok(by_name()),
                Err(errno) => Err(errno),
            }
        };
        let kind = match () {
            () if attributes::is_directory(stat) => Kind::Directory,
            () if attributes::is_regular(stat) => Kind::Regular,
            () => Kind::Other,
        };
        let birth = Birth { born: attributes::born(stat), kind, created };
        let generation = self.nodes.refer(id, birth, !by_handle, locate)?;
        // Nothing can be answered for what is neither (`xattr_permission`, `vfs_get_acl`).
        if kind != Kind::Other {
            self.learn_xattrs(id, base, relative, stat);
        }
        Ok((id, generation))
    }

    /// Finds out about the file system that `name` in `dir` is on.
    fn device_of(&self, dir: impl AsFd, name: &OsStr, stat: &Statx) -> Result<Device> {
        let mut device = Device { number: device_number(stat), handles: None };
        // Only the root of a mount can tell, and only a directory can serve as the anchor of handles. A file
        // that is mounted on a file is found by name.
        if self.may_use_handles && attributes::is_directory(stat) {
            credentials::become_daemon()?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let anchor = rustix::fs::openat2(dir, name, flags, Mode::empty(), INSIDE)?;
            if device_number(&stat_of(&anchor)?) == device.number {
                device.handles = usable_handles(anchor);
            }
        }
        Ok(device)
    }
}

/// `anchor`, if file handles can be made and opened on its file system.
pub(super) fn usable_handles(anchor: OwnedFd) -> Option<Arc<OwnedFd>> {
    let handle = sys::name_to_handle(&anchor, c"").ok()?;
    let again = sys::open_by_handle(&anchor, &handle, OFlags::PATH).ok()?;
    let (one, other) = (stat_of(&anchor).ok()?, stat_of(&again).ok()?);
    (one.stx_ino == other.stx_ino).then(|| Arc::new(anchor))
}
