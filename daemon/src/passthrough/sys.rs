//! The system calls that rustix does not offer, one safe function each. All the `unsafe` of the passthrough
//! file system is here.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

/// The longest file handle that the kernel hands out (`MAX_HANDLE_SZ`), in bytes.
pub(super) const MAX_HANDLE: usize = 128;

/// A file handle as name_to_handle_at(2) returns it: names an inode of one file system for as long as the
/// inode lives, and never another one that reuses its number.
#[derive(Clone)]
#[repr(C)]
pub(super) struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_HANDLE],
}

impl RawHandle {
    /// Puts a handle together from its parts; `None` if it is longer than the kernel allows.
    pub(super) fn new(kind: i32, bytes: &[u8]) -> Option<Self> {
        let mut handle = Self { len: u32::try_from(bytes.len()).ok()?, kind, bytes: [0; MAX_HANDLE] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    /// The file system's own handle type.
    pub(super) fn kind(&self) -> i32 {
        self.kind
    }

    /// The opaque bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..(self.len as usize).min(MAX_HANDLE)]
    }
}

fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result >= 0 { Ok(result) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// name_to_handle_at(2) of `name` in `dir`, not following a symbolic link; of `dir` itself if `name` is empty.
pub(super) fn name_to_handle(dir: impl AsFd, name: &CStr) -> Result<RawHandle> {
    let mut handle = RawHandle { len: MAX_HANDLE as u32, kind: 0, bytes: [0; MAX_HANDLE] };
    let mut mount = 0_i32;
    let flags = if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `handle` has the layout of `struct file_handle` with room for the `len` bytes that it announces;
    // `name` is NUL-terminated; every pointer outlives the call, which keeps none.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            &raw mut handle,
            &raw mut mount,
            flags,
        )
    })?;
    Ok(handle)
}

/// listxattrat(2), which Linux has since 6.13 and libc has not: how many bytes the list of extended attributes of `name` in `dir` takes,
/// not following a symbolic link.
pub(super) fn list_xattrs_at(dir: impl AsFd, name: &CStr) -> Result<usize> {
    const SYS_LISTXATTRAT: libc::c_long = 465;
    let nowhere = std::ptr::null_mut::<u8>();
    // SAFETY: `name` is NUL-terminated and outlives the call; with a size of 0 nothing is written.
    let length = check(unsafe {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        libc::syscall(SYS_LISTXATTRAT, dir.as_fd().as_raw_fd(), name.as_ptr(), flags, nowhere, 0_usize)
    })?;
    Ok(length as usize)
}

/// Takes a read lease (fcntl(2)) on a file that is open to read, which is given back when that is closed.
///
/// # Errors
/// `EAGAIN` if somebody can write to the file; `EACCES` if it is another user's and the caller has not `CAP_LEASE`; `EINVAL` if the file system has
/// no leases.
pub(super) fn take_read_lease(file: impl AsFd) -> Result<()> {
    /// Which libc does not have.
    const F_SETSIG: i32 = 10;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: these commands take numbers.
    unsafe {
        // Who breaks it has the holder told by SIGIO, which would end the process: this signal is ignored by default.
        check(libc::fcntl(fd, F_SETSIG, libc::SIGURG).into())?;
        check(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK).into())?;
    }
    Ok(())
}

/// open_by_handle_at(2). Needs `CAP_DAC_READ_SEARCH`, so never while acting as another user.
pub(super) fn open_by_handle(mount: impl AsFd, handle: &RawHandle, flags: OFlags) -> Result<OwnedFd> {
    let mut handle = handle.clone();
    // SAFETY: `handle` is a `struct file_handle` whose `len` is within its buffer (`RawHandle::new`,
    // `name_to_handle`), and outlives the call.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_fd().as_raw_fd(),
            &raw mut handle,
            (flags | OFlags::CLOEXEC).bits(),
        )
    })?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// truncate(2): checks write permission as the calling thread's file system user.
pub(super) fn truncate(path: &CStr, size: i64) -> Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(libc::c_long::from(unsafe { libc::truncate(path.as_ptr(), size) })).map(drop)
}

/// setfsuid(2) for the calling thread.
///
/// # Errors
/// `EPERM` if the kernel did not accept the identity: the call itself reports nothing.
pub(super) fn set_fs_uid(uid: u32) -> Result<()> {
    set_fs_id(libc::SYS_setfsuid, uid)
}

/// setfsgid(2) for the calling thread; errors as for [`set_fs_uid`].
pub(super) fn set_fs_gid(gid: u32) -> Result<()> {
    set_fs_id(libc::SYS_setfsgid, gid)
}

fn set_fs_id(call: libc::c_long, id: u32) -> Result<()> {
    // SAFETY: both calls take one integer and change the credentials of the calling thread only. An invalid
    // identity (-1) changes nothing and returns the current one.
    let current = unsafe {
        libc::syscall(call, id);
        libc::syscall(call, u32::MAX)
    };
    if current as u32 == id { Ok(()) } else { Err(Errno::PERM) }
}

/// Gives the calling thread an umask, a root and a working directory of its own (`unshare(CLONE_FS)`).
///
/// # Errors
/// `ENOMEM`; `EPERM` if seccomp(2) forbids it.
pub(super) fn unshare_umask() -> Result<()> {
    // SAFETY: only another descriptor table could be one that others miss something in.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// What to do with an open-file-description lock (fcntl(2), `F_OFD_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileLock {
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(super) kind: i32,
    /// The first byte.
    pub(super) start: u64,
    /// The last byte, inclusive; `i64::MAX` for "to the end, however far that grows".
    pub(super) end: u64,
}

impl FileLock {
    /// A lock for writing on every byte.
    pub(super) const WHOLE: Self = Self { kind: libc::F_WRLCK, start: 0, end: i64::MAX as u64 };

    /// Whether it is about every byte.
    pub(super) fn is_whole(self) -> bool {
        (self.start, self.end) == (Self::WHOLE.start, Self::WHOLE.end)
    }

    fn to_flock(self) -> Result<libc::flock> {
        let start = i64::try_from(self.start).map_err(|_| Errno::INVAL)?;
        let end = i64::try_from(self.end).unwrap_or(i64::MAX);
        let length = match end {
            i64::MAX => 0,
            end if end < start => return Err(Errno::INVAL),
            end => end - start + 1,
        };
        Ok(libc::flock {
            l_type: i16::try_from(self.kind).map_err(|_| Errno::INVAL)?,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: length,
            l_pid: 0,
        })
    }
}

/// `F_OFD_SETLK`.
///
/// # Errors
/// `EAGAIN` if another owner holds a conflicting lock; `EBADF` if the descriptor's access mode does not allow
/// that kind of lock.
pub(super) fn set_lock(fd: impl AsFd, lock: FileLock) -> Result<()> {
    let flock = lock.to_flock()?;
    // SAFETY: `flock` is initialised, with `l_pid` 0 as `F_OFD_SETLK` demands, and outlives the call.
    check(libc::c_long::from(unsafe {
        libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const flock)
    }))
    .map(drop)
}

/// `F_OFD_GETLK`: the lock that is in the way of `lock` and the process that holds it (-1: not a process but an
/// open file description), or `None`.
pub(super) fn get_lock(fd: impl AsFd, lock: FileLock) -> Result<Option<(FileLock, i32)>> {
    let mut flock = lock.to_flock()?;
    // SAFETY: `flock` is initialised, writable, and outlives the call.
    check(libc::c_long::from(unsafe {
        libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut flock)
    }))?;
    if i32::from(flock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    let end = if flock.l_len == 0 { i64::MAX } else { flock.l_start + flock.l_len - 1 };
    let found = FileLock { kind: i32::from(flock.l_type), start: flock.l_start as u64, end: end as u64 };
    Ok(Some((found, flock.l_pid)))
}

/// An ioctl(2) that is known to exchange at most `data.len()` bytes through its argument.
///
/// `request` must be one of the commands in [`super::ioctl`], whose argument is a plain structure of
/// no more than [`IOCTL_ROOM`] bytes without pointers.
pub(super) fn ioctl_plain(fd: impl AsFd, request: u32, data: &mut [u8; IOCTL_ROOM]) -> Result<i32> {
    // SAFETY: the caller passes only commands whose argument is a pointer-free structure that fits into
    // `data`, which is writable and outlives the call.
    let result =
        unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::c_ulong::from(request), data.as_mut_ptr()) };
    check(libc::c_long::from(result)).map(|value| value as i32)
}

/// The size of the buffer behind [`ioctl_plain`], in bytes.
pub(super) const IOCTL_ROOM: usize = 64;

/// Whether the calling thread has capability number `number` in its effective set (capget(2)).
pub(super) fn has_capability(number: u32) -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let mut header = Header { version: 0x2008_0522, pid: 0 };
    let mut sets = MaybeUninit::<[[u32; 3]; 2]>::zeroed();
    // SAFETY: version 3 of the interface fills two structures of three words; both buffers are writable and
    // outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    // SAFETY: zero is a valid value of every word, whether or not the kernel overwrote it.
    let sets = unsafe { sets.assume_init() };
    done == 0 && sets.get(number as usize / 32).is_some_and(|set| set[0] & (1 << (number % 32)) != 0)
}

/// The process's limit of open files (`RLIMIT_NOFILE`, soft).
pub(super) fn open_files_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How a mount is that is lent: nothing is written to it, not even times of last access, and nobody gets rights or devices by it.
pub(super) const LENT: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOATIME;

/// Gives a mount these attributes, `MOUNT_ATTR_NOATIME` among them, and takes it out of its peer group (mount_setattr(2)).
pub(super) fn restrict_mount(mount: impl AsFd, attributes: u64) -> Result<()> {
    let wanted = libc::mount_attr {
        attr_set: attributes,
        attr_clr: libc::MOUNT_ATTR__ATIME,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is NUL-terminated, and `wanted` is the structure of the size that is given; both outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// close(2), with the error that `OwnedFd`'s drop hides.
pub(super) fn close(fd: OwnedFd) -> Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is ours alone and is given up here.
    check(libc::c_long::from(unsafe { libc::close(fd.into_raw_fd()) })).map(drop)
}

/// Whether a file system is one of those whose files have no `flush` method, which is called when a descriptor is closed: so
/// closing one does nothing else, and never fails.
pub(super) fn closes_quietly(fs: &rustix::fs::StatFs) -> bool {
    const QUIET: [i64; 5] = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
        RAMFS_MAGIC,
    ];
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    QUIET.contains(&fs.f_type)
}

/// A file's contents, mapped, as words that others may have mapped too.
pub(super) struct SharedWords {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping is made of atomics only and stays until drop, whatever thread uses it.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps `words` words from the beginning of a file, which may have fewer: those beyond its end must not be touched.
    pub(super) fn map(file: impl AsFd, words: usize) -> Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { mmap(std::ptr::null_mut(), words * 8, access, MapFlags::SHARED, file, 0)? };
        NonNull::new(base.cast()).map(|base| Self { base, words }).ok_or(Errno::NOMEM)
    }

    /// `count` words from number `first` on.
    ///
    /// # Panics
    /// They are not all mapped.
    pub(super) fn get(&self, first: usize, count: usize) -> &[AtomicU64] {
        assert!(first + count <= self.words, "beyond the mapping");
        // SAFETY: the range is inside the mapping, which is page-aligned and lives as long as self; atomics are valid for any bytes.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(first), count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: exactly our own mapping, to which no reference outlives self.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}
