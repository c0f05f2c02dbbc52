//! The frames that travel through a slot: what a client asks and what the daemon answers.
//!
//! Operations are path-shaped: a base directory (by node id), a path relative to it, and arguments; one round
//! trip serves one system call, however deep the path. Frames are plain old data; every bit pattern is a valid
//! frame, and [`Op::from_u32`] is the only place where a number becomes an operation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Longest path that a slot carries, in bytes, without a terminating NUL (`PATH_MAX` counts the NUL).
pub const PATH_MAX: usize = 4095;

/// Node id of a mount's root directory (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every variant, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The variant of a number that came through shared memory; `None` if there is none.
            pub fn from_u32(number: u32) -> Option<Self> {
                Self::ALL.get(number as usize).copied()
            }

            /// The name under which it is counted and shown.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

numbered! {
    /// What a client can ask for. Arguments are fields of [`Request`]; `path` is the first path, relative to
    /// `base`; `path2` the second. *By path or file* means: with [`BY_FILE`] in `flags`, `base` is the number of
    /// an open file instead, and `path` is empty.
    Op {
        /// Nothing: an empty round trip.
        Noop = "noop",
        /// Attributes, by path or file; `flags`: `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`, `AT_STATX_FORCE_SYNC`.
        /// Answers [`Attr`].
        Stat = "stat",
        /// `mode`: `F_OK` or `R_OK|W_OK|X_OK`; `flags`: `AT_EACCESS`, `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`.
        Access = "access",
        /// `flags`: `O_*`; `mode`, `umask` for `O_CREAT`. Answers [`Attr`] and either a granted descriptor
        /// ([`REPLY_GRANT`]) or the number of an open file description in the daemon ([`REPLY_VIRTUAL`]); if `base2` is
        /// [`NOT_VIRTUAL`], that only of a file that was created ([`REPLY_KERNELS`]).
        Open = "open",
        /// Removes a name that is no directory.
        Unlink = "unlink",
        /// Removes an empty directory.
        Rmdir = "rmdir",
        /// `base`/`path` to `base2`/`path2`; `flags`: `RENAME_*`.
        Rename = "rename",
        /// `mode`, `umask`.
        Mkdir = "mkdir",
        /// `mode`, `umask`, `size` = device number (as `dev_t`).
        Mknod = "mknod",
        /// `base`/`path` (existing) to `base2`/`path2` (new name); `flags`: `AT_SYMLINK_FOLLOW`.
        Link = "link",
        /// Creates `base`/`path`; the target is `path2`.
        Symlink = "symlink",
        /// Answers the target in the data buffer, truncated to `size` bytes.
        Readlink = "readlink",
        /// `mode`; `flags`: `AT_SYMLINK_NOFOLLOW`. By path or file.
        Chmod = "chmod",
        /// `uid`, `gid` (`u32::MAX` = unchanged); `flags`: `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`. By path or file.
        Chown = "chown",
        /// `size` in bytes. By path or file (which must be open for writing).
        Truncate = "truncate",
        /// `times`: access, modification; nanoseconds may be `UTIME_NOW`, `UTIME_OMIT`; `flags` as for chmod. By
        /// path or file.
        Utimens = "utimens",
        /// Answers [`Statfs`]. By path or file.
        Statfs = "statfs",
        /// Resolves a directory, following links, and makes its node id usable as a base on this connection.
        /// Answers [`Attr`].
        ResolveDir = "resolve-dir",
        /// Sent by control message with a directory's descriptor, never through the bitmap: makes its node id
        /// usable as a base. Answers [`Attr`] with only `ino` set. Or with that of a file that was opened in a directory that was lent: answers a
        /// granted descriptor of it ([`REPLY_GRANT`]).
        ProveDir = "prove-dir",
        /// The client has changed the attributes of the file `base` through a granted descriptor: they are to be
        /// asked for again. Needs no permission, as forgetting betrays nothing.
        Changed = "changed",
        /// The extended attribute `path2`; `flags` as for `Stat`. By path or file. Answers the value in the data buffer, at most
        /// `size` bytes; for `size` 0 its length only.
        Getxattr = "getxattr",
        /// The names of extended attributes, each with a NUL; otherwise as `Getxattr`.
        Listxattr = "listxattr",
        /// Sets the extended attribute `path2` to the `mode` bytes of the data buffer; `size`: `XATTR_*`; `flags`:
        /// `AT_SYMLINK_NOFOLLOW`. By path or file.
        Setxattr = "setxattr",
        /// Removes the extended attribute `path2`; `flags`: `AT_SYMLINK_NOFOLLOW`. By path or file.
        Removexattr = "removexattr",
        /// Reads `mode` bytes, at most [`crate::layout::DATA_BYTES`], of the open file `base`, at offset `base2`, or for
        /// [`OWN_OFFSET`] at the description's offset, which moves on by what was read. Answers the bytes in the data
        /// buffer.
        Read = "read",
        /// Writes the `mode` bytes of the data buffer to the open file `base`, at `base2` as for `Read`; with `O_APPEND`
        /// in the description's flags always at the end (as Linux does for `pwrite`, too). `flags`: `RWF_*`. Answers
        /// [`Reply::number`], the bytes written, and in `len` nothing.
        Write = "write",
        /// `lseek` of the open file or directory `base`: `base2` the offset (an `i64`), `mode` the whence. Answers
        /// [`Reply::number`], the new offset.
        Seek = "seek",
        /// `fsync` of the open file or directory `base`; `mode` 1 for `fdatasync`.
        Sync = "sync",
        /// `fallocate` of the open file `base`: `mode`, offset `base2`, `size` bytes.
        Allocate = "allocate",
        /// `F_SETFL` of the open file `base`: `flags` are the new `O_APPEND`, `O_NONBLOCK`, `O_NOATIME`, `O_DIRECT`.
        SetFlags = "set-flags",
        /// Gives up the open file or directory `base`: `flush`, then the last reference is gone. Answers what `flush`
        /// answered; of a directory nothing that anybody need wait for.
        Close = "close",
        /// Makes a kernel descriptor of the open file `base`, offset and flags as they are: answers a granted descriptor
        /// ([`REPLY_GRANT`]), or in the data buffer a one-time name below [`crate::handshake::Welcome::hidden`]
        /// that `open` with `O_CREAT` and the description's flags turns into the file itself, and in
        /// [`Reply::number`] the offset to set. The description is the kernel's from then on: `base` is gone as by
        /// `Close`, without `flush`, once the name has been opened, or the client has said (`mode` [`PROMOTED`]) that the
        /// descriptor has arrived.
        Promote = "promote",
        /// Opens the directory `base`/`path` (`flags`: `O_NOFOLLOW`, `AT_EMPTY_PATH` for `base` itself) for reading it
        /// through the ring, and makes its node id usable as a base on this connection. Answers [`Attr`] with only
        /// `ino` set and the number of the open directory ([`REPLY_VIRTUAL`]). If `mode` is not 0, it reads at once as
        /// [`Op::ReadDir`] does, with [`LIST_ATTRS`] besides; at the end of the directory ([`REPLY_END`]) it is not open
        /// any more, and has no number.
        OpenDir = "opendir",
        /// Reads entries of the open directory `base`, at most `mode` bytes, from position `base2` (0 is the
        /// beginning, otherwise a `d_off`); with [`LIST_ATTRS`] in `flags` their attributes are of use, too. Answers records of `struct linux_dirent64` in the data buffer, with
        /// [`REPLY_END`] if the file system had no more at this moment; no record at the end.
        ReadDir = "readdir",
        /// The client is about to watch the inode `base` (inotify, fanotify), or with `mode` 1 everything on the mount:
        /// calls that a watcher would hear of are left to the kernel ([`Fallback::Watched`]) once this is answered. Needs no
        /// permission, as it betrays nothing.
        Watch = "watch",
        /// Takes back one `Watch` of the inode `base`.
        Unwatch = "unwatch",
        /// Lends the directory `base`/`path` (`flags`: `AT_EMPTY_PATH` for `base` itself): answers [`Attr`] with only `ino` set and a granted descriptor ([`REPLY_GRANT`], `O_PATH`) of
        /// it in a read-only copy of the backing file system's tree, in which the client may open files by itself as long as the
        /// table says so ([`crate::table::Lending`]).
        Lend = "lend",
        /// In the slot of a reply that has [`REPLY_HELD`]: the daemon may close the descriptor. With [`BY_SOCKET`] in `flags` the client cannot
        /// take it: answers [`REPLY_GRANT`], and it comes over the socket. [`Fallback::NotGranted`] if the slot holds none.
        Taken = "taken",
    }
}

/// [`Request::flags`] of the operations that work by path or file: `base` is the number of an open file. No
/// `AT_*` or `O_*` flag has this bit.
pub const BY_FILE: u32 = 1 << 31;
/// [`Request::flags`] of [`Op::ReadDir`], and of an [`Op::OpenDir`] that reads: the program probably asks for the attributes of what it lists.
pub const LIST_ATTRS: u32 = 1;
/// [`Request::base2`] of [`Op::Read`] and [`Op::Write`]: at the open file description's own offset.
pub const OWN_OFFSET: u64 = u64::MAX;

numbered! {
    /// Why a call that concerned a Finesse mount was left to the kernel.
    Fallback {
        /// Descriptors of directories come from the kernel (`open` with `O_DIRECTORY`); or more directories are open than
        /// the ring keeps.
        OpenDirectory = "open-directory",
        /// Fifos, devices and sockets are opened by the kernel.
        OpenSpecial = "open-special",
        /// The file system gives no backing descriptor for this file.
        NotGranted = "not-granted",
        /// The kernel has the file open and may cache its pages.
        KernelHasItOpen = "kernel-has-it-open",
        /// The path leaves the mount: an absolute link, or `..` above its root.
        LeavesMount = "leaves-mount",
        /// The path crosses another mount below this one.
        CrossesMount = "crosses-mount",
        /// `..` of a directory whose parent the engine does not know.
        UnknownParent = "unknown-parent",
        /// The base directory is not known on this connection.
        UnknownBase = "unknown-base",
        /// A flag or argument that the bypass does not serve.
        Unsupported = "unsupported",
        /// An operation that the file system does not implement; the kernel decides what that means.
        NotImplemented = "not-implemented",
        /// A pointer or a path that only the kernel can judge (`EFAULT`, `ENAMETOOLONG`, empty).
        BadPath = "bad-path",
        /// All slots were in use.
        NoSlot = "no-slot",
        /// The daemon is gone or ended the connection.
        Disconnected = "disconnected",
        /// The process had not connected yet: the kernel serves its first calls
        /// ([`crate::environment::CONNECT_AFTER`]).
        NotConnected = "not-connected",
        /// The kernel's answer is wanted for what it does besides: executing, watching, locking.
        KernelByChoice = "kernel-by-choice",
        /// The mount table has just changed: the paths of mounts are read anew during this call.
        MountsChanged = "mounts-changed",
        /// Somebody watches the file or its directory: the kernel tells watchers what it does itself.
        Watched = "watched",
        /// The file is on a subtree whose changes the mount's options leave to the kernel.
        KernelSubtree = "kernel-subtree",
        /// The mount's policy does not allow it to the caller, or the kernel has to say what that means.
        Policy = "policy",
    }
}

/// A point in time: seconds since the epoch and nanoseconds (or `UTIME_NOW`, `UTIME_OMIT` in a request).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Time {
    /// Seconds since the epoch; may be negative.
    pub sec: i64,
    /// Nanoseconds, 0 ..= 999 999 999, or a `UTIME_*` value.
    pub nsec: i64,
}

/// What a client asks. The meaning of each field depends on the [`Op`]. The first [`REQUEST_HEAD`] bytes
/// travel always, the rest only where [`Op::has_tail`] says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// An [`Op`].
    pub op: u32,
    /// `O_*`, `AT_*` or `RENAME_*` flags.
    pub flags: u32,
    /// Node id of the directory that `path` is relative to.
    pub base: u64,
    /// Node id of the directory that `path2` is relative to.
    pub base2: u64,
    /// Length of the first path in bytes, at most [`PATH_MAX`].
    pub len: u32,
    /// Length of the second path in bytes, at most [`PATH_MAX`].
    pub len2: u32,
    /// Permission bits, file type bits, or access mask.
    pub mode: u32,
    /// The caller's file mode creation mask.
    pub umask: u32,
    /// A size in bytes, or a device number.
    pub size: u64,
    /// New owner.
    pub uid: u32,
    /// New group.
    pub gid: u32,
    /// Access and modification time.
    pub times: [Time; 2],
}

/// Bytes of a [`Request`] that travel with every operation.
pub const REQUEST_HEAD: usize = std::mem::offset_of!(Request, size);
/// Bytes of a [`Reply`] that travel with every operation.
pub const REPLY_HEAD: usize = std::mem::offset_of!(Reply, body);

impl Op {
    /// Whether the operation's arguments go beyond [`REQUEST_HEAD`].
    #[inline]
    pub fn has_tail(number: u32) -> bool {
        const TAIL: u64 = 1 << Op::Mknod as u32
            | 1 << Op::Readlink as u32
            | 1 << Op::Chown as u32
            | 1 << Op::Truncate as u32
            | 1 << Op::Utimens as u32
            | 1 << Op::Getxattr as u32
            | 1 << Op::Listxattr as u32
            | 1 << Op::Setxattr as u32
            | 1 << Op::Allocate as u32;
        number < 64 && TAIL & (1 << number) != 0
    }
}

/// The fields of `struct stat`, as the mount reports them (`st_dev` aside).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Attr {
    /// Inode number, which is also the node id.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Last access, modification and status change.
    pub times: [Time; 3],
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding (`new_encode_dev`).
    pub rdev: u32,
    /// Preferred block size in bytes.
    pub blksize: u32,
}

/// The fields of `struct statfs` that a file system decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Statfs {
    /// Blocks in all, in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred transfer size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Fundamental block size in bytes.
    pub frsize: u32,
    /// Zero.
    pub pad: u32,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call succeeded.
    Ok,
    /// The call failed with this errno, which the program shall see.
    Errno(i32),
    /// The kernel must serve the call.
    Kernel(Fallback),
}

/// [`Reply::flags`]: a granted descriptor was sent over the socket, tagged with the slot's number, unless there is [`REPLY_HELD`], too.
pub const REPLY_GRANT: u32 = 1;
/// [`Reply::flags`], beside [`REPLY_GRANT`]: the daemon holds the descriptor, by the number [`Reply::descriptor`], for the client to take it out
/// (pidfd_getfd(2)), until the slot is used again, mostly for [`Op::Taken`].
pub const REPLY_HELD: u32 = 128;
/// [`Request::flags`] of [`Op::Taken`].
pub const BY_SOCKET: u32 = 1;
/// [`Reply::flags`]: attributes or statistics follow the head.
pub const REPLY_BODY: u32 = 2;
/// [`Reply::flags`]: the reply carries the number of an open file or directory, [`Reply::file`].
pub const REPLY_VIRTUAL: u32 = 4;
/// [`Reply::flags`], beside [`REPLY_VIRTUAL`]: [`Op::Promote`] would answer with a granted descriptor, so that
/// large or many transfers are worth it.
pub const REPLY_GRANTABLE: u32 = 8;
/// [`Request::base2`] of [`Op::Open`]: only a kernel descriptor will do.
pub const NOT_VIRTUAL: u64 = 1;
/// [`Reply::flags`], beside [`REPLY_VIRTUAL`]: the file was created, and only a kernel descriptor of it will do, so that
/// [`Op::Promote`] comes next.
pub const REPLY_KERNELS: u32 = 64;
/// [`Request::mode`] of [`Op::Promote`]: the granted descriptor has arrived, and the file's number ends.
pub const PROMOTED: u32 = 1;
/// [`Request::mode`] of [`Op::Promote`]: only a granted descriptor is of use, to transfer more cheaply; otherwise `EAGAIN`.
pub const IF_GRANTED: u32 = 2;
/// [`Reply::flags`] of [`Op::ReadDir`]: no entry follows those in the data buffer.
pub const REPLY_END: u32 = 16;

/// [`Reply::flags`], beside [`REPLY_VIRTUAL`]: nobody need wait for the answer to [`Op::Close`], as closing the file does nothing that a
/// program could notice, and cannot fail.
pub const REPLY_QUIET: u32 = 32;

const BODY: usize = size_of::<Attr>() / 8;

/// What the daemon answers.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reply {
    outcome: u32,
    value: u32,
    /// `REPLY_*` flags.
    pub flags: u32,
    /// Bytes in the data buffer.
    pub len: u32,
    body: [u64; BODY],
}

const OUTCOME_OK: u32 = 0;
const OUTCOME_ERRNO: u32 = 1;
const OUTCOME_KERNEL: u32 = 2;

impl Reply {
    /// A success without a body.
    pub fn ok() -> Self {
        Self::default()
    }

    /// A failure that the program shall see.
    pub fn errno(errno: i32) -> Self {
        Self { outcome: OUTCOME_ERRNO, value: errno as u32, ..Self::default() }
    }

    /// "Ask the kernel."
    pub fn kernel(reason: Fallback) -> Self {
        Self { outcome: OUTCOME_KERNEL, value: reason as u32, ..Self::default() }
    }

    /// A success with `len` bytes in the data buffer.
    pub fn data(len: u32) -> Self {
        Self { len, ..Self::default() }
    }

    /// A success with attributes.
    pub fn attr(attr: Attr) -> Self {
        let mut reply = Self { flags: REPLY_BODY, ..Self::default() };
        reply.body.as_mut_bytes().copy_from_slice(attr.as_bytes());
        reply
    }

    /// A success with file system statistics.
    pub fn statfs(statfs: Statfs) -> Self {
        let mut reply = Self { flags: REPLY_BODY, ..Self::default() };
        reply.body.as_mut_bytes()[..size_of::<Statfs>()].copy_from_slice(statfs.as_bytes());
        reply
    }

    /// A success with a number: bytes written, an offset.
    pub fn with_number(number: u64) -> Self {
        let mut reply = Self { flags: REPLY_BODY, ..Self::default() };
        reply.body[0] = number;
        reply
    }

    /// The number of a reply that carries one.
    pub fn number(&self) -> u64 {
        self.body[0]
    }

    /// A success with attributes and the number of an open file.
    pub fn with_file(attr: Attr, file: u32) -> Self {
        let reply = Self::attr(attr);
        Self { value: file, flags: reply.flags | REPLY_VIRTUAL, ..reply }
    }

    /// The number of an open file on this connection, in a reply with [`REPLY_VIRTUAL`].
    pub fn file(&self) -> u32 {
        self.value
    }

    /// The same reply, with a descriptor that is sent over the socket.
    pub fn granting(self) -> Self {
        Self { flags: self.flags | REPLY_GRANT, ..self }
    }

    /// The same reply, with a descriptor that the daemon holds.
    pub fn holding(self, descriptor: i32) -> Self {
        Self { value: descriptor as u32, flags: self.flags | REPLY_GRANT | REPLY_HELD, ..self }
    }

    /// The daemon's number of the descriptor, in a reply with [`REPLY_HELD`].
    pub fn descriptor(&self) -> i32 {
        self.value as i32
    }

    /// How the request ended. Numbers the client does not know mean "ask the kernel".
    pub fn outcome(&self) -> Outcome {
        match self.outcome {
            OUTCOME_OK => Outcome::Ok,
            OUTCOME_ERRNO => Outcome::Errno(self.value as i32),
            _ => Outcome::Kernel(Fallback::from_u32(self.value).unwrap_or(Fallback::Unsupported)),
        }
    }

    /// The attributes of a reply that carries them.
    pub fn to_attr(&self) -> Attr {
        zerocopy::transmute!(self.body)
    }

    /// The statistics of a reply that carries them.
    pub fn to_statfs(&self) -> Statfs {
        Statfs::read_from_prefix(self.body.as_bytes()).map(|(statfs, _)| statfs).unwrap_or_default()
    }
}

/// Encodes a device number as the kernel does in its 32-bit form (`new_encode_dev`).
pub fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Splits a device number in the kernel's 32-bit form into major and minor (`new_decode_dev`).
pub fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

const _: () = {
    assert!(size_of::<Request>().is_multiple_of(8) && REQUEST_HEAD.is_multiple_of(8));
    assert!(size_of::<Reply>().is_multiple_of(8) && REPLY_HEAD.is_multiple_of(8));
    assert!(Op::ALL.len() <= 64);
    assert!(size_of::<Statfs>() <= BODY * 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_keep_what_was_put_in() {
        let file = Reply::with_file(Attr { ino: 3, ..Attr::default() }, 7);
        assert_eq!((file.file(), file.to_attr().ino, file.outcome()), (7, 3, Outcome::Ok));
        assert_eq!(Reply::with_number(u64::MAX).number(), u64::MAX);
        let attr = Attr { ino: 7, size: 9, mode: 0o100644, blksize: 4096, ..Attr::default() };
        assert_eq!(Reply::attr(attr).to_attr(), attr);
        let statfs = Statfs { blocks: 1, frsize: 512, namelen: 255, ..Statfs::default() };
        assert_eq!(Reply::statfs(statfs).to_statfs(), statfs);
        assert_eq!(Reply::errno(libc::ENOENT).outcome(), Outcome::Errno(libc::ENOENT));
        assert_eq!(Reply::kernel(Fallback::LeavesMount).outcome(), Outcome::Kernel(Fallback::LeavesMount));
    }

    #[test]
    fn a_reply_from_a_newer_daemon_sends_the_call_to_the_kernel() {
        let reply = Reply { outcome: 99, value: 99, ..Reply::default() };
        assert_eq!(reply.outcome(), Outcome::Kernel(Fallback::Unsupported));
    }

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (0xfff, 0xf_ffff)] {
            assert_eq!(decode_dev(encode_dev(major, minor)), (major, minor));
        }
    }

    #[test]
    fn numbers_and_variants_agree() {
        for (number, op) in Op::ALL.iter().enumerate() {
            assert_eq!(Op::from_u32(number as u32), Some(*op));
        }
        assert_eq!(Op::from_u32(Op::ALL.len() as u32), None);
    }
}
