//! A library for file systems in user space that two roads lead to: the kernel's FUSE, and a shared-memory
//! road past the kernel for programs that run with the Finesse preload library.
//!
//! The interface is that of the crate `fuser`, version 0.18: a file system written for it becomes a Finesse
//! file system by renaming the dependency,
//!
//! ```toml
//! fuser = { package = "finesse", version = "0.1" }
//! ```
//!
//! and a recompilation. [`Filesystem`], [`Request`], the reply objects and the session types are this crate's
//! own, with fuser's names and signatures; plain value types are fuser's and re-exported.

mod answer;
mod asking;
mod bpf;
mod coherence;
mod engine;
mod filesystem;
mod kernel;
mod mutant;
pub mod passthrough;
pub mod policy;
mod processes;
mod reply;
mod request;
mod ring;
mod session;

pub use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    PollEvents, PollFlags, PollHandle, RenameFlags, RequestId, SessionACL, TimeOrNow, Version, WriteFlags,
    consts,
};

pub use finesse_ipc::table::Lending;

pub use crate::bpf::{Absent, XattrFree};
pub use crate::filesystem::{Bypass, Filesystem, ForgetOne};
pub use crate::kernel::uring::Transport;
pub use crate::reply::{
    BackingId, PollNotifier, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};
pub use crate::request::{Credentials, Request, Road, TakesFile};
pub use crate::session::{
    BackgroundSession, Notifier, Session, SessionUnmounter, mount, mount2, spawn_mount, spawn_mount2,
};
