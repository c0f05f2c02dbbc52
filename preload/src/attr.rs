//! What the daemon answers, in the shapes that programs expect: `struct stat`, `statx`, `statfs`, `statvfs`.
//!
//! The kernel's FUSE client is the model (`fuse_fillattr`, `convert_fuse_statfs`, `cp_statx`): a program must
//! not be able to tell the roads apart.

use finesse_ipc::frame::{Attr, Statfs, Time, decode_dev};
use finesse_ipc::table::Lending;

use crate::fds::ITS_OWN;
use crate::sys::Plain;

/// `FUSE_SUPER_MAGIC`.
const FUSE_MAGIC: i64 = 0x6573_5546;
/// `ST_VALID`: the kernel says that it filled in the flags; not for programs.
const ST_VALID: i64 = 0x20;
/// `statx` requests that the bypass cannot fill in and the kernel can: the unique mount id.
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// What the kernel reports of a mount besides what its file system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountFacts {
    /// `st_dev`, major and minor.
    pub(crate) dev: (u32, u32),
    /// `stx_mnt_id`.
    pub(crate) mount_id: u64,
    /// `stx_mask` of an ordinary `statx`.
    pub(crate) mask: u32,
    /// `stx_attributes_mask` of an ordinary `statx`.
    pub(crate) attributes_mask: u64,
}

/// Whether a `statx` with this mask can be answered from [`Attr`] and [`MountFacts`].
pub(crate) fn can_fill(mask: u32) -> bool {
    mask & (STATX_MNT_ID_UNIQUE | libc::STATX__RESERVED as u32) == 0
}

/// A device number as programs know it.
pub(crate) fn dev_t((major, minor): (u32, u32)) -> u64 {
    libc::makedev(major, minor)
}

/// After this time reading a file changes when it was last accessed in any case (`relatime_need_update`), in seconds.
const ATIME_LASTS: i64 = 24 * 60 * 60;

/// Whether a file with these attributes may be opened in a directory that was lent: a regular one of the backing file system's own device
/// (others' node ids have a number in the upper 16 bits), without bits that give rights when it is executed.
#[inline(always)]
pub(crate) fn is_lent(attr: &Attr, lending: Lending) -> bool {
    let is_plain =
        attr.mode & (libc::S_IFMT | libc::S_ISUID | libc::S_ISGID) == libc::S_IFREG && attr.ino >> 48 == 0;
    is_plain && (lending == Lending::Everything || !reading_changes_atime(attr))
}

/// Whether reading a file changes when it was last accessed, on a file system that is mounted with `relatime`.
#[inline(always)]
fn reading_changes_atime(attr: &Attr) -> bool {
    let [atime, mtime, ctime] = attr.times.map(|time| (time.sec, time.nsec));
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec;
    atime <= mtime || atime <= ctime || now.saturating_sub(atime.0) >= ATIME_LASTS
}

/// The block size that FUSE reports: a power of two (`fuse_fillattr`).
fn block_size(blksize: u32) -> u32 {
    blksize.checked_ilog2().map_or(4096, |bits| 1 << bits)
}

/// `struct stat`, as `stat` fills it in.
pub(crate) fn stat(attr: &Attr, mount: &MountFacts) -> libc::stat {
    libc::stat::filled(|stat| fill_stat(stat, attr, mount))
}

/// Fills in a `struct stat` of zeros.
#[inline(always)]
pub(crate) fn fill_stat(stat: &mut libc::stat, attr: &Attr, mount: &MountFacts) {
    let [atime, mtime, ctime] = attr.times;
    let (rdev_major, rdev_minor) = decode_dev(attr.rdev);
    stat.st_dev = dev_t(mount.dev);
    stat.st_ino = attr.ino;
    stat.st_mode = attr.mode;
    stat.st_nlink = attr.nlink.into();
    stat.st_uid = attr.uid;
    stat.st_gid = attr.gid;
    stat.st_rdev = libc::makedev(rdev_major, rdev_minor);
    stat.st_size = attr.size as i64;
    stat.st_blksize = block_size(attr.blksize).into();
    stat.st_blocks = attr.blocks as i64;
    (stat.st_atime, stat.st_atime_nsec) = (atime.sec, atime.nsec);
    (stat.st_mtime, stat.st_mtime_nsec) = (mtime.sec, mtime.nsec);
    (stat.st_ctime, stat.st_ctime_nsec) = (ctime.sec, ctime.nsec);
}

/// `struct statx`, as `statx` fills it in.
pub(crate) fn statx(attr: &Attr, mount: &MountFacts) -> libc::statx {
    libc::statx::filled(|statx| fill_statx(statx, attr, mount))
}

/// Fills in a `struct statx` of zeros.
#[inline(always)]
pub(crate) fn fill_statx(statx: &mut libc::statx, attr: &Attr, mount: &MountFacts) {
    let (rdev_major, rdev_minor) = decode_dev(attr.rdev);
    let is_root = attr.ino == finesse_ipc::frame::ROOT;
    statx.stx_mask = mount.mask;
    statx.stx_attributes = if is_root { libc::STATX_ATTR_MOUNT_ROOT as u64 } else { 0 };
    statx.stx_attributes_mask = mount.attributes_mask;
    statx.stx_blksize = block_size(attr.blksize);
    statx.stx_nlink = attr.nlink;
    statx.stx_uid = attr.uid;
    statx.stx_gid = attr.gid;
    statx.stx_mode = attr.mode as u16;
    statx.stx_ino = attr.ino;
    statx.stx_size = attr.size;
    statx.stx_blocks = attr.blocks;
    let times = [&mut statx.stx_atime, &mut statx.stx_mtime, &mut statx.stx_ctime];
    for (out, Time { sec, nsec }) in times.into_iter().zip(attr.times) {
        (out.tv_sec, out.tv_nsec) = (sec, nsec as u32);
    }
    (statx.stx_rdev_major, statx.stx_rdev_minor) = (rdev_major, rdev_minor);
    (statx.stx_dev_major, statx.stx_dev_minor) = mount.dev;
    statx.stx_mnt_id = mount.mount_id;
}

/// Makes the `struct stat` of a backing file the one of the file on the mount.
pub(crate) fn rename_stat(stat: &mut libc::stat, dev: u64, ino: u64) {
    stat.st_dev = dev;
    if ino != ITS_OWN {
        stat.st_ino = ino;
    }
}

/// Makes the `struct statx` of a backing file the one of the file on the mount, which FUSE gives no creation
/// time, no attributes and no alignment.
pub(crate) fn rename_statx(statx: &mut libc::statx, dev: u64, ino: u64, mount: Option<&MountFacts>) {
    let basic = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    let mut clean = libc::statx::filled(|_| {});
    clean.stx_mask = statx.stx_mask & mount.map_or(libc::STATX_BASIC_STATS, |mount| mount.mask & basic);
    clean.stx_attributes_mask = mount.map_or(0, |mount| mount.attributes_mask);
    clean.stx_mnt_id = mount.map_or(0, |mount| mount.mount_id);
    clean.stx_blksize = statx.stx_blksize;
    clean.stx_nlink = statx.stx_nlink;
    clean.stx_uid = statx.stx_uid;
    clean.stx_gid = statx.stx_gid;
    clean.stx_mode = statx.stx_mode;
    clean.stx_ino = if ino == ITS_OWN { statx.stx_ino } else { ino };
    clean.stx_size = statx.stx_size;
    clean.stx_blocks = statx.stx_blocks;
    clean.stx_atime = statx.stx_atime;
    clean.stx_mtime = statx.stx_mtime;
    clean.stx_ctime = statx.stx_ctime;
    clean.stx_rdev_major = statx.stx_rdev_major;
    clean.stx_rdev_minor = statx.stx_rdev_minor;
    clean.stx_dev_major = libc::major(dev);
    clean.stx_dev_minor = libc::minor(dev);
    *statx = clean;
}

/// `struct statfs` (on 64-bit Linux the same as `statfs64`, whose flags have a name); `flags` is `f_flags` as the kernel reports it for the mount.
pub(crate) fn statfs(statfs: &Statfs, flags: i64) -> libc::statfs64 {
    libc::statfs64::filled(|out| {
        out.f_type = FUSE_MAGIC;
        out.f_bsize = statfs.bsize.into();
        out.f_blocks = statfs.blocks;
        out.f_bfree = statfs.bfree;
        out.f_bavail = statfs.bavail;
        out.f_files = statfs.files;
        out.f_ffree = statfs.ffree;
        out.f_namelen = statfs.namelen.into();
        // `statfs_by_dentry`: an unset fragment size is the block size.
        out.f_frsize = if statfs.frsize == 0 { statfs.bsize } else { statfs.frsize }.into();
        out.f_flags = flags;
    })
}

/// `struct statvfs`, as glibc makes it from `struct statfs` (`__internal_statvfs`).
pub(crate) fn statvfs(statfs: &Statfs, flags: i64) -> libc::statvfs {
    libc::statvfs::filled(|out| {
        out.f_bsize = statfs.bsize.into();
        out.f_frsize = if statfs.frsize == 0 { statfs.bsize } else { statfs.frsize }.into();
        out.f_blocks = statfs.blocks;
        out.f_bfree = statfs.bfree;
        out.f_bavail = statfs.bavail;
        out.f_files = statfs.files;
        out.f_ffree = statfs.ffree;
        out.f_favail = statfs.ffree;
        out.f_namemax = statfs.namelen.into();
        out.f_flag = (flags & !ST_VALID) as u64;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNT: MountFacts =
        MountFacts { dev: (0, 61), mount_id: 99, mask: 0x17ff, attributes_mask: 0x20_3000 };

    #[test]
    fn block_sizes_are_rounded_down_to_a_power_of_two() {
        for (given, reported) in [(0, 4096), (1, 1), (4096, 4096), (5000, 4096), (1 << 20, 1 << 20)] {
            assert_eq!(block_size(given), reported);
        }
    }

    #[test]
    fn stat_and_statx_tell_the_same() {
        let attr = Attr {
            ino: 7,
            size: 10,
            blocks: 8,
            mode: libc::S_IFCHR | 0o640,
            nlink: 2,
            rdev: finesse_ipc::frame::encode_dev(5, 300),
            times: [Time { sec: -1, nsec: 5 }, Time { sec: 2, nsec: 6 }, Time { sec: 3, nsec: 7 }],
            ..Attr::default()
        };
        let (old, new) = (stat(&attr, &MOUNT), statx(&attr, &MOUNT));
        assert_eq!((old.st_ino, old.st_size, old.st_nlink), (new.stx_ino, 10, u64::from(new.stx_nlink)));
        assert_eq!((libc::major(old.st_rdev), libc::minor(old.st_rdev)), (5, 300));
        assert_eq!((new.stx_rdev_major, new.stx_rdev_minor), (5, 300));
        assert_eq!((old.st_atime, old.st_atime_nsec), (-1, 5));
        assert_eq!((new.stx_mtime.tv_sec, new.stx_mtime.tv_nsec), (2, 6));
        assert_eq!((new.stx_mnt_id, new.stx_attributes), (99, 0));
    }

    #[test]
    fn the_mounts_root_is_marked() {
        let root = statx(&Attr { ino: 1, ..Attr::default() }, &MOUNT);
        assert_eq!(root.stx_attributes, libc::STATX_ATTR_MOUNT_ROOT as u64);
    }

    #[test]
    fn a_granted_file_shows_nothing_of_its_backing() {
        let mut file = statx(&Attr { ino: 4711, size: 5, ..Attr::default() }, &MOUNT);
        file.stx_mask |= libc::STATX_BTIME | libc::STATX_DIOALIGN;
        file.stx_btime.tv_sec = 5;
        file.stx_attributes = libc::STATX_ATTR_COMPRESSED as u64;
        rename_statx(&mut file, dev_t((0, 77)), 42, Some(&MOUNT));
        assert_eq!((file.stx_ino, file.stx_dev_minor, file.stx_size), (42, 77, 5));
        assert_eq!((file.stx_mask, file.stx_btime.tv_sec, file.stx_attributes), (0x17ff, 0, 0));
    }
}
