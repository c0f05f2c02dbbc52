//! The messages of the FUSE protocol as they lie in a ring's entry (`include/uapi/linux/fuse.h`, version 7.40 and later).
//!
//! Names are the kernel's without their prefix: [`CreateIn`] is `struct fuse_create_in`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, TimeOrNow};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `enum fuse_opcode`, as far as it is served.
pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const GETLK: u32 = 31;
    pub(crate) const SETLK: u32 = 32;
    pub(crate) const SETLKW: u32 = 33;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const BMAP: u32 = 37;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;

    /// As fuser writes it into its log.
    pub(crate) fn name(opcode: u32) -> Option<&'static str> {
        Some(match opcode {
            LOOKUP => "LOOKUP",
            GETATTR => "GETATTR",
            SETATTR => "SETATTR",
            READLINK => "READLINK",
            SYMLINK => "SYMLINK",
            MKNOD => "MKNOD",
            MKDIR => "MKDIR",
            UNLINK => "UNLINK",
            RMDIR => "RMDIR",
            RENAME => "RENAME",
            LINK => "LINK",
            OPEN => "OPEN",
            READ => "READ",
            WRITE => "WRITE",
            STATFS => "STATFS",
            RELEASE => "RELEASE",
            FSYNC => "FSYNC",
            SETXATTR => "SETXATTR",
            GETXATTR => "GETXATTR",
            LISTXATTR => "LISTXATTR",
            REMOVEXATTR => "REMOVEXATTR",
            FLUSH => "FLUSH",
            OPENDIR => "OPENDIR",
            READDIR => "READDIR",
            RELEASEDIR => "RELEASEDIR",
            FSYNCDIR => "FSYNCDIR",
            GETLK => "GETLK",
            SETLK | SETLKW => "SETLK",
            ACCESS => "ACCESS",
            CREATE => "CREATE",
            BMAP => "BMAP",
            IOCTL => "IOCTL",
            POLL => "POLL",
            FALLOCATE => "FALLOCATE",
            READDIRPLUS => "READDIRPLUS",
            RENAME2 => "RENAME2",
            LSEEK => "LSEEK",
            COPY_FILE_RANGE => "COPY_FILE_RANGE",
            _ => return None,
        })
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
        pub(crate) struct $name { $(pub(crate) $field: $type),* }
    )*};
}

requests! {
    InHeader { len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, extlen: u32 }
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `struct fuse_uring_ent_in_out`
    EntInOut { flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64 }
    /// `struct fuse_uring_cmd_req`
    CmdReq { flags: u64, commit_id: u64, qid: u16, padding: [u8; 6] }
    GetattrIn { flags: u32, dummy: u32, fh: u64 }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: i64, mtime: i64, ctime: i64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { newdir: u64 }
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    LinkIn { oldnodeid: u64 }
    OpenIn { flags: i32, open_flags: u32 }
    CreateIn { flags: i32, mode: u32, umask: u32, open_flags: u32 }
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: i32, padding: u32,
    }
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: i32, padding: u32,
    }
    ReleaseIn { fh: u64, flags: i32, release_flags: u32, lock_owner: u64 }
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// Without `FUSE_SETXATTR_EXT` no longer than this.
    SetxattrIn { size: u32, flags: i32 }
    GetxattrIn { size: u32, padding: u32 }
    FileLock { start: u64, end: u64, typ: i32, pid: u32 }
    LkIn { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32 }
    AccessIn { mask: i32, padding: u32 }
    BmapIn { block: u64, blocksize: u32, padding: u32 }
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    PollIn { fh: u64, kh: u64, flags: u32, events: u32 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: i32, padding: u32 }
    LseekIn { fh: u64, offset: i64, whence: i32, padding: u32 }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    Attr {
        ino: u64, size: u64, blocks: u64, atime: i64, mtime: i64, ctime: i64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    /// The name follows.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

impl SetattrIn {
    const MODE: u32 = 1;
    const UID: u32 = 1 << 1;
    const GID: u32 = 1 << 2;
    const SIZE: u32 = 1 << 3;
    const ATIME: u32 = 1 << 4;
    const MTIME: u32 = 1 << 5;
    const FH: u32 = 1 << 6;
    const ATIME_NOW: u32 = 1 << 7;
    const MTIME_NOW: u32 = 1 << 8;
    const CTIME: u32 = 1 << 10;

    fn given<T>(&self, flag: u32, value: T) -> Option<T> {
        (self.valid & flag != 0).then_some(value)
    }

    pub(super) fn mode(&self) -> Option<u32> {
        self.given(Self::MODE, self.mode)
    }

    pub(super) fn uid(&self) -> Option<u32> {
        self.given(Self::UID, self.uid)
    }

    pub(super) fn gid(&self) -> Option<u32> {
        self.given(Self::GID, self.gid)
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.given(Self::SIZE, self.size)
    }

    pub(super) fn fh(&self) -> Option<FileHandle> {
        self.given(Self::FH, FileHandle(self.fh))
    }

    pub(super) fn atime(&self) -> Option<TimeOrNow> {
        let now = self.valid & Self::ATIME_NOW != 0;
        self.given(Self::ATIME, time_or_now(now, self.atime, self.atimensec))
    }

    pub(super) fn mtime(&self) -> Option<TimeOrNow> {
        let now = self.valid & Self::MTIME_NOW != 0;
        self.given(Self::MTIME, time_or_now(now, self.mtime, self.mtimensec))
    }

    pub(super) fn ctime(&self) -> Option<SystemTime> {
        self.given(Self::CTIME, time(self.ctime, self.ctimensec))
    }
}

fn time_or_now(now: bool, seconds: i64, nanoseconds: u32) -> TimeOrNow {
    if now { TimeOrNow::Now } else { TimeOrNow::SpecificTime(time(seconds, nanoseconds)) }
}

/// A time since the epoch; what no clock shows is the epoch.
fn time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(UNIX_EPOCH)
}

/// Seconds, rounded down, and nanoseconds since the epoch.
fn since_epoch(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN + 1, |seconds| -seconds);
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanoseconds => (seconds - 1, 1_000_000_000 - nanoseconds),
            }
        }
    }
}

fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

impl From<&FileAttr> for Attr {
    fn from(attr: &FileAttr) -> Self {
        let ((atime, atimensec), (mtime, mtimensec)) = (since_epoch(attr.atime), since_epoch(attr.mtime));
        let (ctime, ctimensec) = since_epoch(attr.ctime);
        Self {
            ino: attr.ino.0,
            size: attr.size,
            blocks: attr.blocks,
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            mode: type_bits(attr.kind) | u32::from(attr.perm),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: attr.blksize,
            // `FUSE_ATTR_*`, which fuser knows as little.
            flags: 0,
        }
    }
}

impl EntryOut {
    pub(crate) fn new(
        nodeid: INodeNo,
        attr: &FileAttr,
        generation: Generation,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> Self {
        Self {
            nodeid: nodeid.0,
            generation: generation.0,
            entry_valid: entry_ttl.as_secs(),
            attr_valid: attr_ttl.as_secs(),
            entry_valid_nsec: entry_ttl.subsec_nanos(),
            attr_valid_nsec: attr_ttl.subsec_nanos(),
            attr: attr.into(),
        }
    }
}

impl AttrOut {
    pub(crate) fn new(attr: &FileAttr, ttl: Duration) -> Self {
        Self { attr_valid: ttl.as_secs(), attr_valid_nsec: ttl.subsec_nanos(), dummy: 0, attr: attr.into() }
    }
}

impl OpenOut {
    pub(crate) fn new(fh: FileHandle, flags: FopenFlags, backing: u32) -> Self {
        Self { fh: fh.0, open_flags: flags.bits(), backing_id: backing.cast_signed() }
    }
}

impl Dirent {
    pub(crate) fn new(ino: INodeNo, offset: u64, kind: FileType, name: usize) -> Self {
        Self { ino: ino.0, off: offset, namelen: name as u32, kind: type_bits(kind) >> 12 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_of_the_kernel_header() {
        // `FUSE_COMPAT_*` aside, sizeof of the structures in C.
        for (size, expected) in [
            (size_of::<InHeader>(), 40),
            (size_of::<EntInOut>(), 32),
            (size_of::<CmdReq>(), 24),
            (size_of::<SetattrIn>(), 88),
            (size_of::<ReadIn>(), 40),
            (size_of::<LkIn>(), 48),
            (size_of::<Attr>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<Dirent>(), 24),
            (size_of::<CopyFileRangeIn>(), 56),
        ] {
            assert_eq!(size, expected);
        }
    }

    #[test]
    fn times_before_the_epoch_survive_both_ways() {
        for (seconds, nanoseconds) in [(0, 0), (-1, 500_000_000), (-7, 0), (1_700_000_000, 1)] {
            assert_eq!(since_epoch(time(seconds, nanoseconds)), (seconds, nanoseconds));
        }
    }
}
