//! A copy of the source's mount, whose directories are lent to programs, so that they open files to read by themselves.
//!
//! The copy is detached: nobody finds it by a path, and it goes when the last descriptor does. It is read-only, devices and set-user-ID bits
//! are without effect in it, and it changes no time of last access. What is opened in it would show a path that begins at its root, as if it were
//! the machine's. So it is mounted in a detached tmpfs, at the path where the file system itself is mounted: what /proc/PID/fd and /proc/PID/maps show
//! leads to the file, through the mount.
//!
//! Nobody who is lent a directory can change or copy these mounts, unless he could mount and unmount here anyway. Whoever is root of a user namespace
//! of his own may do both with the root of a detached tree, and with all of it if it was made by fsmount(2), as that belongs to no mount
//! namespace (`seq_origin` in `struct mnt_namespace`). So the tmpfs is mounted on the root of a tree that was copied from this one, which is
//! out of reach: `..` of the tmpfs's root is itself.
//!
//! Mounts below the source are not copied, as somebody may change them at any time: with any, nothing is lent.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, StatxFlags, fcntl_getfl, fcntl_setfl, mkdirat, openat,
    statx,
};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount,
    fsopen, move_mount, open_tree,
};

use super::inodes::{ProcPath, stat_of};
use super::nodes::{Kind, Way};
use super::{CachePolicy, Grants, Options, PassthroughFs, ROOT, attributes, credentials, sys};
use crate::Lending;
use crate::ring::mounts;

/// The copy.
pub(super) struct SourceCopy {
    /// Its root, on the copied mount.
    root: OwnedFd,
    /// What everything is mounted on, and ends with.
    _base: OwnedFd,
    /// The copied mount's id (`stx_mnt_id`).
    mount_id: u64,
}

impl SourceCopy {
    /// Copies the mount of the directory `source`; `None` if nothing is to be lent. `mountpoint` is where the file system will be mounted.
    pub(super) fn of(source: &OwnedFd, options: &Options, has_handles: bool) -> Option<Self> {
        let mountpoint = options.mountpoint.as_deref()?;
        // Who had a file is to be known of deferred unlinks; under a policy, who has it, too. Without lifetimes there is no table.
        let is_wanted = has_handles
            && options.grants != Grants::Never
            && options.cache != CachePolicy::Never
            && options.policy.is_none()
            && !options.deferred_unlinks;
        if !is_wanted {
            return None;
        }
        Self::new(source, mountpoint)
            .inspect_err(|error| {
                tracing::info!(%error, "programs do not open files of the source by themselves: its mount cannot be copied");
            })
            .ok()
    }

    fn new(source: &OwnedFd, mountpoint: &Path) -> Result<Self> {
        let empty = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&empty)?;
        let place = fsmount(&empty, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = mountpoint.strip_prefix("/").map_err(|_| Errno::INVAL)?;
        let mut above = path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>();
        above.reverse();
        for directory in above {
            mkdirat(&place, directory, Mode::from_raw_mode(0o755))?;
        }
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let [base, copy] = [open_tree(source, "", flags)?, open_tree(source, "", flags)?];
        for mount in [&base, &place, &copy] {
            sys::restrict_mount(mount, sys::LENT)?;
        }
        let empty_paths = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&place, "", &base, "", empty_paths)?;
        move_mount(&copy, "", &place, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        // File handles are opened on the mount of a descriptor that can read.
        let root = openat(&copy, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mount_id = statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
        Ok(Self { root, _base: base, mount_id })
    }
}

/// What may be lent of the source's mount as it is now.
fn may_be_lent(source: &OwnedFd) -> Lending {
    match rustix::fs::fstatvfs(source).map(|found| found.f_flag) {
        Ok(_) if !is_whole(source) => Lending::Nothing,
        Ok(flags) if flags.contains(StatVfsMountFlags::NOATIME) => Lending::Everything,
        Ok(flags) if flags.contains(StatVfsMountFlags::RELATIME) => Lending::Unchanged,
        // Every read changes a time.
        _ => Lending::Nothing,
    }
}

/// Whether nothing is mounted below the source.
fn is_whole(source: &OwnedFd) -> bool {
    let path = rustix::fs::readlinkat(CWD, ProcPath::of(source).as_c_str(), Vec::new());
    let (Ok(path), Ok(mountinfo)) = (path, std::fs::read("/proc/self/mountinfo")) else { return false };
    mounts::below(&mountinfo, Path::new(OsStr::from_bytes(path.as_bytes()))).is_empty()
}

/// Tries whether programs could open files of a directory by themselves ([`Filesystem::lends`](crate::Filesystem::lends)).
///
/// # Errors
/// The directory cannot be opened (`ENOENT`, `EACCES`, `ENOTDIR`), or its mount cannot be copied: `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` before
/// Linux 6.15.
pub fn try_to_lend(source: &Path) -> io::Result<Lending> {
    let root = openat(CWD, source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    SourceCopy::new(&root, Path::new("/mnt"))?;
    Ok(may_be_lent(&root))
}

impl PassthroughFs {
    /// What may be lent at this moment.
    pub(super) fn what_is_lent(&self) -> Lending {
        self.copy.as_ref().map_or(Lending::Nothing, |_| may_be_lent(&self.root))
    }

    /// A descriptor of a directory in the copy.
    pub(super) fn lend_directory(&self, id: u64) -> Result<OwnedFd> {
        let copy = self.copy.as_ref().ok_or(Errno::NOTSUP)?;
        credentials::become_daemon()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if id == ROOT {
            return self.with_spare_descriptors(|| openat(&copy.root, ".", flags, Mode::empty()));
        }
        let Some((Way::Handle(handle), Kind::Directory)) = self.nodes.way(id) else {
            return Err(Errno::NOTSUP);
        };
        let (_, number) =
            self.ids.resolve(id).filter(|_| self.ids.is_beside_root(id)).ok_or(Errno::NOTSUP)?;
        let directory = self.with_spare_descriptors(|| sys::open_by_handle(&copy.root, &handle, flags))?;
        match stat_of(&directory)?.stx_ino == number {
            true => Ok(directory),
            false => Err(Errno::STALE),
        }
    }

    /// A descriptor like one that was opened in the copy, on the source's own mount. The file may have been removed since.
    pub(super) fn exchange_file(&self, file: BorrowedFd<'_>) -> Result<OwnedFd> {
        let copy = self.copy.as_ref().ok_or(Errno::NOTSUP)?;
        // It may be anything, of a file system that does not answer.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(file, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
        let opened = fcntl_getfl(file)?;
        let is_lent = stat.stx_mnt_id == copy.mount_id
            && attributes::is_regular(&stat)
            && u32::from(stat.stx_mode) & (libc::S_ISUID | libc::S_ISGID) == 0
            && opened & (OFlags::ACCMODE | OFlags::PATH) == OFlags::RDONLY;
        let (device, _) = self.ids.resolve(ROOT).filter(|_| is_lent).ok_or(Errno::ACCESS)?;
        let handle = sys::name_to_handle(file, c"")?;
        let careful = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let granted = self.open_handle(&device, &handle, careful)?;
        if stat_of(&granted)?.stx_ino != stat.stx_ino {
            return Err(Errno::STALE);
        }
        fcntl_setfl(&granted, opened)?;
        self.xattrs_change_unseen(self.ids.beside(ROOT, stat.stx_ino)?);
        Ok(granted)
    }
}
