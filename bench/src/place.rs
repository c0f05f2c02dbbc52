//! Where the trees lie: a directory of our own, checked for space before and removed afterwards.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::{Outcome, machine};

/// What a tree needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Files and directories.
    pub(crate) inodes: u64,
    /// Contents, in bytes per file.
    pub(crate) size: u64,
}

/// A page of tmpfs, a block of most file systems, in bytes.
const BLOCK: u64 = 4096;
/// What an inode and its dentry take in memory, or an inode on disk, in bytes, rounded up.
const INODE: u64 = 1024;
/// Memory that is left for everything else, the daemon included, in bytes.
const RESERVE: u64 = 1 << 30;
/// Memory that daemon and kernel use for each inode while it is known on a mount, in bytes, rounded up.
const KNOWN: u64 = 256;

impl Need {
    fn bytes(&self) -> u64 {
        self.inodes.saturating_mul(self.size.next_multiple_of(BLOCK).saturating_add(INODE))
    }
}

/// A private directory for backing trees and a mount point; removed on drop, with everything in it.
#[derive(Debug)]
pub(crate) struct Place {
    // Dropped in this order: what is mounted in the directory before the directory.
    tmpfs: Option<Tmpfs>,
    directory: TempDir,
}

#[derive(Debug)]
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("finesse-bench: cannot unmount {}: {errno}", self.0.display());
        }
    }
}

/// The word that stands for a private tmpfs instead of a directory.
pub(crate) const TMPFS: &str = "tmpfs";

impl Place {
    /// A place in `backing`, or on a tmpfs of its own if that is [`TMPFS`].
    ///
    /// # Errors
    /// There is not enough space, inodes or memory, and how much there would have to be.
    pub(crate) fn new(backing: &Path, need: Need) -> Outcome<Self> {
        let private = backing == Path::new(TMPFS);
        let parent = if private { std::env::temp_dir() } else { backing.to_owned() };
        let directory = tempfile::Builder::new()
            .prefix("finesse-bench-")
            .tempdir_in(&parent)
            .map_err(|error| format!("--backing {}: {error}", parent.display()))?;
        std::fs::create_dir(directory.path().join("mnt")).map_err(|error| error.to_string())?;
        let place = directory.path().join("backing");
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        let mut tmpfs = None;
        if private {
            memory_suffices(need)?;
            let options = format!(
                "mode=700,size={},nr_inodes={}",
                need.bytes().saturating_add(RESERVE),
                need.inodes + 1024
            );
            let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
            rustix::mount::mount("finesse-bench", &place, "tmpfs", MountFlags::empty(), &*options).map_err(
                |errno| {
                    format!("--backing tmpfs: {errno}; only root can mount one, give a directory instead")
                },
            )?;
            tmpfs = Some(Tmpfs(place.clone()));
        }
        let place = Self { tmpfs, directory };
        place.suffices(need)?;
        Ok(place)
    }

    /// Where native trees lie, and what is mounted.
    pub(crate) fn backing(&self) -> PathBuf {
        self.directory.path().join("backing")
    }

    /// Where it is mounted.
    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Whether trees lie in memory.
    pub(crate) fn is_tmpfs(&self) -> bool {
        /// linux/magic.h
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        self.tmpfs.is_some()
            || rustix::fs::statfs(self.backing()).is_ok_and(|statfs| statfs.f_type as u64 == TMPFS_MAGIC)
    }

    fn suffices(&self, need: Need) -> Outcome {
        let backing = self.backing();
        let statvfs =
            rustix::fs::statvfs(&backing).map_err(|errno| format!("{}: {errno}", backing.display()))?;
        let (free, wanted) = (statvfs.f_bavail.saturating_mul(statvfs.f_frsize), need.bytes());
        // Not every file system counts its inodes.
        if statvfs.f_files > 0 && statvfs.f_favail < need.inodes {
            return Err(format!(
                "{} has {} free inodes, {} are needed; use fewer --files, or another --backing (root: tmpfs)",
                backing.display(),
                statvfs.f_favail,
                need.inodes
            ));
        }
        if free < wanted {
            return Err(format!(
                "{} has {} free, {} are needed; use fewer --files, a smaller --size or another --backing",
                backing.display(),
                mib(free),
                mib(wanted)
            ));
        }
        if self.is_tmpfs() { memory_suffices(need) } else { Ok(()) }
    }
}

fn memory_suffices(need: Need) -> Outcome {
    let wanted = need.bytes().saturating_add(need.inodes.saturating_mul(KNOWN)).saturating_add(RESERVE);
    match machine::meminfo("MemAvailable") {
        Some(available) if available < wanted => Err(format!(
            "{} of memory are available, {} are needed on tmpfs; use fewer --files, a smaller --size, or a \
             --backing directory on a disk",
            mib(available),
            mib(wanted)
        )),
        _ => Ok(()),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_does_not_fit_is_refused_with_both_figures() {
        let dir = tempfile::tempdir().unwrap();
        let error = Place::new(dir.path(), Need { inodes: 1 << 40, size: 1 << 20 }).unwrap_err();
        assert!(error.contains("are needed"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_place_removes_itself() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), Need { inodes: 10, size: 1 }).unwrap();
        std::fs::write(place.backing().join("file"), "x").unwrap();
        drop(place);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
