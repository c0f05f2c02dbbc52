//! Where the trees lie: a directory of our own, checked for space before and removed afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

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
    _private: Option<Private>,
    directory: TempDir,
}

/// A file system of our own; it ends on drop.
#[derive(Debug)]
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(errno) = rustix::mount::unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("finesse-bench: cannot unmount {}: {errno}", self.0.display());
        }
    }
}

/// The word that stands for a private tmpfs instead of a directory.
pub(crate) const TMPFS: &str = "tmpfs";
/// The word that stands for a private ext4, in a file below [`DISK`].
pub(crate) const EXT4: &str = "ext4";
/// Where files that stand for disks lie: what is meant to be large and need not be in memory.
const DISK: &str = "/var/tmp";
/// What ext4 keeps for itself, its journal above all, in bytes.
const EXT4_OWN: u64 = 512 << 20;

impl Place {
    /// A place in `backing`, or on a file system of its own if that is [`TMPFS`] or [`EXT4`].
    ///
    /// # Errors
    /// There is not enough space, inodes or memory, and how much there would have to be.
    pub(crate) fn new(backing: &Path, need: Need) -> Outcome<Self> {
        let parent = match backing.to_str() {
            Some(TMPFS) => std::env::temp_dir(),
            Some(EXT4) => PathBuf::from(DISK),
            _ => backing.to_owned(),
        };
        let directory = tempfile::Builder::new()
            .prefix("finesse-bench-")
            .tempdir_in(&parent)
            .map_err(|error| format!("--backing {}: {error}", parent.display()))?;
        std::fs::create_dir(directory.path().join("mnt")).map_err(|error| error.to_string())?;
        let place = directory.path().join("backing");
        std::fs::create_dir(&place).map_err(|error| error.to_string())?;
        let private = match backing.to_str() {
            Some(TMPFS) => Some(mount_tmpfs(&place, need)?),
            Some(EXT4) => Some(mount_ext4(&directory.path().join("disk"), &place, need)?),
            _ => None,
        };
        let place = Self { _private: private, directory };
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
        rustix::fs::statfs(self.backing()).is_ok_and(|statfs| statfs.f_type as u64 == TMPFS_MAGIC)
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

fn mount_tmpfs(at: &Path, need: Need) -> Outcome<Private> {
    memory_suffices(need)?;
    // The directory above is private. This one is the mount's root, and what not everybody may search is not in the table.
    let options =
        format!("mode=755,size={},nr_inodes={}", need.bytes().saturating_add(RESERVE), need.inodes + 1024);
    let options = std::ffi::CString::new(options).map_err(|error| error.to_string())?;
    rustix::mount::mount("finesse-bench", at, "tmpfs", MountFlags::empty(), &*options).map_err(|errno| {
        format!("--backing tmpfs: {errno}; only root can mount one, give a directory instead")
    })?;
    Ok(Private(at.to_owned()))
}

/// An ext4 in a sparse file, whose loop device goes when it is unmounted.
fn mount_ext4(disk: &Path, at: &Path, need: Need) -> Outcome<Private> {
    let failed = |error: std::io::Error| format!("{}: {error}", disk.display());
    // A twentieth more for the maps of what is in use.
    let size = need.bytes().saturating_add(need.bytes() / 20).saturating_add(EXT4_OWN);
    let parent = disk.parent().unwrap_or(disk);
    let free = rustix::fs::statvfs(parent).map_err(|errno| failed(errno.into()))?;
    let free = free.f_bavail.saturating_mul(free.f_frsize);
    if free < size {
        return Err(format!(
            "--backing ext4: {} has {} free, {} are needed",
            parent.display(),
            mib(free),
            mib(size)
        ));
    }
    std::fs::File::create_new(disk).and_then(|file| file.set_len(size)).map_err(failed)?;
    // Nothing is left to the kernel for later, which would be at work while something is measured.
    let inodes = (need.inodes + 1024).to_string();
    let make =
        ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-N", &inodes];
    run("mkfs.ext4", |command| command.args(make).arg(disk))?;
    run("mount", |command| command.args(["-t", "ext4", "-o", "loop"]).args([disk, at]))?;
    Ok(Private(at.to_owned()))
}

fn run(program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> Outcome {
    let mut command = Command::new(program);
    // What only root uses may not be in the path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = arguments(&mut command).env("PATH", path).output();
    let output = output.map_err(|error| format!("--backing ext4: {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().lines().last().unwrap_or("it says nothing");
    Err(format!("--backing ext4: {program}: {said}; only root can mount one, give a directory instead"))
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
