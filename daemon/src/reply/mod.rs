//! The objects through which a file system answers.
//!
//! Names and methods are those of fuser 0.18. Each object knows where its answer goes: to the kernel, past the hooks that
//! keep the roads coherent and through fuser's own reply object or into the ring that the request came by ([`Out`]), or to
//! the bypass in this process.
//! A reply that is dropped without an answer answers `EIO`.

mod backing;
mod directory;
mod open;
mod out;
mod poll;

use std::time::Duration;

use fuser::{Errno, FileAttr, Generation, PollEvents};

use crate::answer::{self, Attr, Entry, Ioctl, Lock, Sender, Statfs, Xattr};
use crate::bpf::Absent;
use crate::kernel::hooks::Hooks;

pub use backing::BackingId;
pub use directory::{ReplyDirectory, ReplyDirectoryPlus};
pub use open::{ReplyCreate, ReplyOpen};
pub(crate) use out::{Out, Page};
pub use poll::PollNotifier;

/// Where an answer goes.
pub(crate) enum To<K, T> {
    Kernel(Kernel<K>),
    Local(Sender<T>),
}

impl<K, T> std::fmt::Debug for To<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            To::Kernel(_) => "Kernel",
            To::Local(_) => "Local",
        })
    }
}

/// A reply to the kernel. The order of the fields matters: when the object is dropped unanswered, the hooks
/// act before fuser's object answers `EIO`.
pub(crate) struct Kernel<K> {
    hooks: Hooks,
    reply: K,
}

impl<K> Kernel<K> {
    /// Lets the hooks act, for the reply is about to be sent.
    fn settle(self) -> (Hooks, K) {
        let Kernel { mut hooks, reply } = self;
        hooks.settle();
        (hooks, reply)
    }
}

/// What all reply objects have: the two ways to make one, and the answer `error`.
macro_rules! reply {
    ($(#[$doc:meta])* $name:ident => $answer:ty) => {
        $crate::reply::reply! { $(#[$doc])* $name => $answer, errors of its own }

        impl $name {
            /// Answers with an error.
            pub fn error(self, err: fuser::Errno) {
                match self.to {
                    $crate::reply::To::Kernel(kernel) => kernel.settle().1.error(err),
                    $crate::reply::To::Local(sender) => sender.send(Err(err)),
                }
            }
        }
    };
    ($(#[$doc:meta])* $name:ident => $answer:ty, errors of its own) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            to: $crate::reply::To<$crate::reply::Out<fuser::$name>, $answer>,
        }

        impl $name {
            /// A reply to the kernel.
            pub(crate) fn kernel(
                reply: $crate::reply::Out<fuser::$name>,
                hooks: $crate::kernel::hooks::Hooks,
            ) -> Self {
                Self { to: $crate::reply::To::Kernel($crate::reply::Kernel { hooks, reply }) }
            }

            /// A reply to the caller, and where to wait for it.
            #[allow(dead_code)]
            pub(crate) fn local() -> (Self, $crate::answer::Answer<$answer>) {
                let (sender, answer) = $crate::answer::channel();
                (Self { to: $crate::reply::To::Local(sender) }, answer)
            }
        }
    };
}
pub(crate) use reply;

reply! {
    /// The answer of requests that return nothing.
    ReplyEmpty => ()
}

impl ReplyEmpty {
    /// Answers with success.
    pub fn ok(self) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.ok(),
            To::Local(sender) => sender.send(Ok(())),
        }
    }
}

reply! {
    /// The answer of `read` and `readlink`.
    ReplyData => Vec<u8>
}

impl ReplyData {
    /// Answers with bytes.
    pub fn data(self, data: &[u8]) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.data(data),
            To::Local(sender) => sender.send(Ok(data.to_vec())),
        }
    }
}

reply! {
    /// The answer of `lookup` and of the requests that make a name.
    ReplyEntry => Entry
}

impl ReplyEntry {
    /// Answers with an entry that may be cached for `ttl`, name and attributes alike.
    pub fn entry(self, ttl: &Duration, attr: &FileAttr, generation: Generation) {
        self.entry_with_ttls(ttl, ttl, attr, generation);
    }

    /// Answers with an entry whose attributes may be cached for `attr_ttl` and whose name for `entry_ttl`.
    /// With `attr.ino` 0 the answer is that the name does not exist, which may be cached for `entry_ttl`.
    pub fn entry_with_ttls(
        self,
        attr_ttl: &Duration,
        entry_ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
    ) {
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let (attr_ttl, entry_ttl) = hooks.entry(attr, *attr_ttl, *entry_ttl);
                reply.entry_with_ttls(&attr_ttl, &entry_ttl, attr, generation);
            }
            To::Local(sender) => {
                let (attr_ttl, entry_ttl) = (*attr_ttl, *entry_ttl);
                sender.send(Ok(Entry { attr: *attr, generation, attr_ttl, entry_ttl, no_xattrs: None }));
            }
        }
    }
}

reply! {
    /// The answer of `getattr` and `setattr`.
    ReplyAttr => Attr
}

impl ReplyAttr {
    /// Answers with attributes that may be cached for `ttl`.
    pub fn attr(self, ttl: &Duration, attr: &FileAttr) {
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let ttl = hooks.attr(attr, *ttl);
                reply.attr(&ttl, attr);
            }
            To::Local(sender) => sender.send(Ok(Attr { attr: *attr, ttl: *ttl })),
        }
    }
}

reply! {
    /// The answer of `write` and `copy_file_range`.
    ReplyWrite => u32
}

impl ReplyWrite {
    /// Answers with the number of bytes written.
    pub fn written(self, size: u32) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.written(size),
            To::Local(sender) => sender.send(Ok(size)),
        }
    }
}

reply! {
    /// The answer of `statfs`.
    ReplyStatfs => Statfs
}

impl ReplyStatfs {
    /// Answers with sizes; `blocks`, `bfree` and `bavail` count units of `frsize` bytes.
    #[allow(clippy::too_many_arguments)]
    pub fn statfs(
        self,
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
    ) {
        match self.to {
            To::Kernel(kernel) => {
                kernel.settle().1.statfs(blocks, bfree, bavail, files, ffree, bsize, namelen, frsize);
            }
            To::Local(sender) => {
                sender.send(Ok(Statfs { blocks, bfree, bavail, files, ffree, bsize, namelen, frsize }));
            }
        }
    }
}

reply! {
    /// The answer of `getlk`.
    ReplyLock => Lock
}

impl ReplyLock {
    /// Answers with the lock that stands in the way, or with type `F_UNLCK`.
    pub fn locked(self, start: u64, end: u64, typ: i32, pid: u32) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.locked(start, end, typ, pid),
            To::Local(sender) => sender.send(Ok(Lock { start, end, typ, pid })),
        }
    }
}

reply! {
    /// The answer of `bmap`.
    ReplyBmap => u64
}

impl ReplyBmap {
    /// Answers with a block's place on the device.
    pub fn bmap(self, block: u64) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.bmap(block),
            To::Local(sender) => sender.send(Ok(block)),
        }
    }
}

reply! {
    /// The answer of `ioctl`.
    ReplyIoctl => Ioctl
}

impl ReplyIoctl {
    /// Answers with what ioctl(2) returns and the bytes that it copies out.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.ioctl(result, data),
            To::Local(sender) => sender.send(Ok(Ioctl { result, data: data.to_vec() })),
        }
    }
}

reply! {
    /// The answer of `poll`.
    ReplyPoll => answer::Ready
}

impl ReplyPoll {
    /// Answers with the events that are there.
    pub fn poll(self, revents: PollEvents) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.poll(revents),
            To::Local(sender) => sender.send(Ok(revents)),
        }
    }
}

reply! {
    /// The answer of `getxattr` and `listxattr`.
    ReplyXattr => Xattr, errors of its own
}

impl ReplyXattr {
    /// Answers with an error.
    ///
    /// If the kernel got `ENOSYS` it would never again ask for any extended attribute (`fc->no_getxattr`), and
    /// programs could not find the bypass; what they see of `EOPNOTSUPP` is the same.
    pub fn error(self, err: Errno) {
        match self.to {
            To::Kernel(kernel) => {
                let (hooks, reply) = kernel.settle();
                let hide = err == Errno::ENOSYS && hooks.coherence.cache().is_some();
                reply.error(if hide { Errno::EOPNOTSUPP } else { err });
            }
            To::Local(sender) => sender.send(Err(err)),
        }
    }

    /// Answers a request of size 0 with the value's length.
    pub fn size(self, size: u32) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.size(size),
            To::Local(sender) => sender.send(Ok(Xattr::Size(size))),
        }
    }

    /// Answers with the value.
    pub fn data(self, data: &[u8]) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.data(data),
            To::Local(sender) => sender.send(Ok(Xattr::Data(data.to_vec()))),
        }
    }

    /// Answers `ENODATA` to `getxattr`, and tells that the file has no extended attributes at all: of those in `absent` the bypass
    /// then knows what others would be answered.
    pub fn has_none(self, absent: Absent) {
        match self.to {
            To::Kernel(_) => self.error(Errno::NO_XATTR),
            To::Local(sender) => sender.send(Ok(Xattr::Nothing(Err(Errno::NO_XATTR), absent))),
        }
    }

    /// As [`has_none`](Self::has_none), for `listxattr` with this size: nothing is listed.
    pub fn lists_none(self, size: u32, absent: Absent) {
        match self.to {
            To::Kernel(_) if size == 0 => self.size(0),
            To::Kernel(_) => self.data(&[]),
            To::Local(sender) => sender.send(Ok(Xattr::Nothing(Ok(()), absent))),
        }
    }
}

reply! {
    /// The answer of `lseek`.
    ReplyLseek => i64
}

impl ReplyLseek {
    /// Answers with the offset found.
    pub fn offset(self, offset: i64) {
        match self.to {
            To::Kernel(kernel) => kernel.settle().1.offset(offset),
            To::Local(sender) => sender.send(Ok(offset)),
        }
    }
}
