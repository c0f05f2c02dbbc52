//! A copy of the source's mount, whose directories are lent to programs, so that they open files to read by themselves.
//!
//! The copy is detached: nobody finds it by a path, and it goes when the last descriptor does. It is read-only, devices and set-user-ID bits
//! are without effect in it, and it changes no time of last access. What is opened in it would show a path that begins at its root, as if it were
//! the machine's. So it is mounted in a detached tmpfs, at the path where the file system itself is mounted: what /proc/PID/fd and /proc/PID/maps show
//! leads to the file, through the mount.
//!
//! Mounts below the source are not copied, as somebody may change them at any time: with any, nothing is lent.

#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, mkdirat, openat};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsmount,
    fsopen, move_mount, open_tree,
};

use super::inodes::{ProcPath, stat_of};
use super::nodes::{Kind, Way};
use super::{CachePolicy, Grants, Options, PassthroughFs, ROOT, credentials, sys};
use crate::Lending;
use crate::ring::mounts;

/// The copy.
pub(super) struct SourceCopy {
    /// Its root, on the copied mount.
    root: OwnedFd,
    /// What it is mounted in, which ends with this.
    _place: OwnedFd,
    /// What may be lent as long as nothing is mounted below the source.
    lends: Lending,
}

impl SourceCopy {
    /// Copies the mount of the directory `source`; `None` if nothing is to be lent. `mountpoint` is where the file system will be mounted.
    pub(super) fn of(source: &OwnedFd, options: &Options, can_switch: bool) -> Option<Self> {
        let mountpoint = options.mountpoint.as_deref()?;
        // Who had a file is to be known of deferred unlinks; under a policy, who has it, too. Without lifetimes there is no table.
        let is_wanted = can_switch
            && options.grants != Grants::Never
            && options.cache != CachePolicy::Never
            && options.policy.is_none()
            && !options.deferred_unlinks;
        if !is_wanted {
            return None;
        }
        let lends = match rustix::fs::fstatvfs(source).ok()?.f_flag {
            flags if flags.contains(StatVfsMountFlags::NOATIME) => Lending::Everything,
            flags if flags.contains(StatVfsMountFlags::RELATIME) => Lending::Unchanged,
            // Every read changes a time.
            _ => return None,
        };
        Self::mount(source, mountpoint, lends)
            .inspect_err(|error| {
                tracing::info!(%error, "programs do not open files of the source by themselves: its mount cannot be copied");
            })
            .ok()
    }

    fn mount(source: &OwnedFd, mountpoint: &Path, lends: Lending) -> Result<Self> {
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
        let copy = open_tree(source, "", flags)?;
        sys::restrict_mount(&copy, sys::LENT)?;
        move_mount(&copy, "", &place, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        sys::restrict_mount(&place, sys::LENT)?;
        // File handles are opened on the mount of a descriptor that can read.
        let root = openat(&copy, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { root, _place: place, lends })
    }
}

impl PassthroughFs {
    /// What may be lent at this moment.
    pub(super) fn what_is_lent(&self) -> Lending {
        let Some(copy) = &self.copy else { return Lending::Nothing };
        let is_whole = || {
            let source = rustix::fs::readlinkat(CWD, ProcPath::of(&self.root).as_c_str(), Vec::new()).ok()?;
            let mountinfo = std::fs::read("/proc/self/mountinfo").ok()?;
            let source = Path::new(OsStr::from_bytes(source.as_bytes()));
            Some(mounts::below(&mountinfo, source).is_empty())
        };
        if is_whole() == Some(true) { copy.lends } else { Lending::Nothing }
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
}
