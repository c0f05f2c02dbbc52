//! How a [`PassthroughFs`](super::PassthroughFs) behaves, and why there may be none.

#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials;
use crate::Bypass;
use crate::policy::Policy;

/// For how long the kernel and the bypass may rely on what they were told about the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePolicy {
    /// Not at all: every path lookup and every `stat` asks the source.
    Never,
    /// For a second, because others may change the source, too. Also names that do not exist.
    #[default]
    Auto,
    /// For a day: nobody else changes the source while it is mounted. File contents and listings are kept, too.
    Always,
}

impl CachePolicy {
    /// The time to live of names and attributes.
    pub const fn ttl(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What a program on the bypass that opens a file gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Grants {
    /// A descriptor of the source's file, at once: reading and writing need the daemon no more.
    #[default]
    Always,
    /// A virtual descriptor, which becomes one of the source's file when large transfers make that worth it. Cheaper to
    /// open, for programs that open many small files.
    Large,
    /// Never more than a virtual descriptor, or one of the mount's: nothing of the source leaves the daemon. With
    /// [`CachePolicy::Always`], locks are on the mount's files only.
    Never,
}

/// How a [`PassthroughFs`](super::PassthroughFs) behaves.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// For how long answers may be cached.
    pub cache: CachePolicy,
    /// Whether programs on the bypass get descriptors of the source's files.
    pub grants: Grants,
    /// Let the kernel read and write backing files by itself where it can (Linux 6.9 or later, as root).
    pub kernel_passthrough: bool,
    /// The mount has `default_permissions`: the kernel has checked what comes over the kernel road.
    pub kernel_checked: bool,
    /// The one user who is served over the bypass if the daemon cannot act as others.
    pub owner_uid: u32,
    /// How many directories may be held open to be at hand. Less if the process may not open four times as many
    /// files.
    pub open_directories: usize,
    /// Directories, relative to the root, whose changes are made through the kernel.
    pub left_to_kernel: Vec<PathBuf>,
    /// Who may do what where, besides what the source's own permissions say.
    pub policy: Option<Arc<Policy>>,
    /// Unlinks of the bypass are acknowledged once they are recorded in memory that survives the daemon, and done later.
    pub deferred_unlinks: bool,
    /// Size in bytes of the metadata table ([`Bypass::table`]).
    pub table: usize,
    /// Where it will be mounted, as an absolute path without symbolic links. Without it programs on the bypass ask for each file that they
    /// open ([`Filesystem::lends`](crate::Filesystem::lends)).
    pub mountpoint: Option<PathBuf>,
    /// Find inodes again by file handle where that works. Off: by name, as it is for ordinary users.
    pub file_handles: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: CachePolicy::Auto,
            grants: Grants::Always,
            kernel_passthrough: true,
            kernel_checked: true,
            owner_uid: credentials::daemon_uid(),
            open_directories: 4096,
            left_to_kernel: Vec::new(),
            policy: None,
            deferred_unlinks: false,
            table: Bypass::TABLE,
            mountpoint: None,
            file_handles: true,
        }
    }
}

/// Why a directory cannot be mirrored.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be opened.
    #[error("cannot open the source directory {path}: {error}; give an existing directory that you may read")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What open(2) said.
        error: io::Error,
    },
    /// It is something else.
    #[error("the source {path} is not a directory; give a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Its attributes cannot be read.
    #[error(
        "cannot read the attributes of the source directory {path}: {error}; is its file system healthy?"
    )]
    Stat {
        /// The directory.
        path: PathBuf,
        /// What statx(2) said.
        error: io::Error,
    },
    /// There is no place for the journal of deferred unlinks.
    #[error(
        "cannot keep deferred unlinks in /dev/shm: {error}; mount a tmpfs there, or do without -o unlink=deferred"
    )]
    NoJournal {
        /// What was said of the file.
        error: io::Error,
    },
    /// `/proc` is missing.
    #[error("cannot reach open files through /proc/self/fd: {error}; mount /proc (mount -t proc proc /proc)")]
    NoProc {
        /// What was said of `/proc/self/fd`.
        error: io::Error,
    },
}

impl From<SourceError> for io::Error {
    fn from(error: SourceError) -> Self {
        let kind = match &error {
            SourceError::Open { error, .. }
            | SourceError::Stat { error, .. }
            | SourceError::NoJournal { error }
            | SourceError::NoProc { error } => error.kind(),
            SourceError::NotADirectory { .. } => io::ErrorKind::NotADirectory,
        };
        io::Error::new(kind, error)
    }
}
