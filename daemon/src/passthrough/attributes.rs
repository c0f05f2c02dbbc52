//! From statx(2) to what FUSE calls attributes, and the few other translations between the two.

#![deny(unsafe_code)]

use std::time::{Duration, SystemTime};

use rustix::fs::{Statx, StatxFlags, StatxTimestamp, Timespec, UTIME_NOW, UTIME_OMIT};

use crate::{FileAttr, FileType, INodeNo, TimeOrNow};

/// What every attribute reply needs, and the birth time, which tells inodes of the same number apart.
pub(super) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// The attributes of node `id`.
pub(super) fn of(stat: &Statx, id: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: time(stat.stx_atime),
        mtime: time(stat.stx_mtime),
        ctime: time(stat.stx_ctime),
        crtime: time(stat.stx_btime),
        kind: kind(u32::from(stat.stx_mode)),
        perm: stat.stx_mode & 0o7777,
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
        flags: 0,
    }
}

/// The attributes of an entry reply that says "there is no such name": inode 0, the rest unused.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// When the inode was born, in nanoseconds; 0 if the file system does not say.
pub(super) fn born(stat: &Statx) -> i64 {
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return 0;
    }
    let time = stat.stx_btime;
    time.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(i64::from(time.tv_nsec))
}

/// Whether a statx(2) result is about a directory.
pub(super) fn is_directory(stat: &Statx) -> bool {
    u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR
}

/// Whether a statx(2) result is about a regular file.
pub(super) fn is_regular(stat: &Statx) -> bool {
    u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG
}

fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// The file type of a directory entry; `None` for `DT_UNKNOWN`.
pub(super) fn entry_kind(kind: rustix::fs::FileType) -> Option<FileType> {
    use rustix::fs::FileType as Entry;
    Some(match kind {
        Entry::RegularFile => FileType::RegularFile,
        Entry::Directory => FileType::Directory,
        Entry::Symlink => FileType::Symlink,
        Entry::Fifo => FileType::NamedPipe,
        Entry::Socket => FileType::Socket,
        Entry::CharacterDevice => FileType::CharDevice,
        Entry::BlockDevice => FileType::BlockDevice,
        Entry::Unknown => return None,
    })
}

fn time(stamp: StatxTimestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(stamp.tv_nsec));
    let seconds = Duration::from_secs(stamp.tv_sec.unsigned_abs());
    let whole = if stamp.tv_sec >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    };
    whole.and_then(|time| time.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// One of the two times of utimensat(2).
pub(super) fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let special = |nanos| Timespec { tv_sec: 0, tv_nsec: nanos };
    match time {
        None => special(UTIME_OMIT),
        Some(TimeOrNow::Now) => special(UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => {
                Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) }
            }
            Err(before) => {
                let before = before.duration();
                let seconds = -(before.as_secs() as i64);
                match i64::from(before.subsec_nanos()) {
                    0 => Timespec { tv_sec: seconds, tv_nsec: 0 },
                    nanos => Timespec { tv_sec: seconds - 1, tv_nsec: 1_000_000_000 - nanos },
                }
            }
        },
    }
}

/// A device number as FUSE carries it (`new_encode_dev` in the kernel).
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_device`], as mknod(2) wants it.
pub(super) fn decode_device(device: u32) -> u64 {
    rustix::fs::makedev((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (8, 256), (259, 0xf_ffff), (0xfff, 1)] {
            let device = decode_device(encode_device(major, minor));
            assert_eq!((rustix::fs::major(device), rustix::fs::minor(device)), (major, minor));
        }
    }

    #[test]
    fn times_before_the_epoch_keep_their_fraction() {
        let time = SystemTime::UNIX_EPOCH - Duration::new(1, 200_000_000);
        let spec = timespec(Some(TimeOrNow::SpecificTime(time)));
        assert_eq!((spec.tv_sec, spec.tv_nsec), (-2, 800_000_000));
    }
}
