//! The engine: serves path-shaped requests of bypass clients by calling the file system's trait methods, with
//! the results, errnos and side effects that the kernel would have given the same caller.
//!
//! | module | does |
//! | --- | --- |
//! | [`cache`] | inodes, dentries and attributes, for as long as the file system allows |
//! | [`permission`] | who may do what, as the kernel would decide |
//! | [`policy`] | what the mount's policy says of it |
//! | [`walk`] | from (base, path) to an inode or a parent and a name |
//! | [`handles`] | what a client has open, by number |
//! | [`table`] | what of that clients look up by themselves |
//! | [`lending`] | directories in which clients open files by themselves |
//! | [`open`] | opening files: granted, virtual, or by the kernel |
//! | [`files`] | open files that the daemon keeps for clients |
//! | [`directories`] | open directories: listing them, letting go of them |
//! | [`listings`] | what directories list, kept between two readings |
//! | [`watch`] | which calls are the kernel's because somebody watches |
//! | [`serve`] | one method per operation |
//!
//! The engine never blocks a client on another: it holds no lock while it calls the file system, but for two that the
//! kernel holds, too: those who use an open file's offset, and those who write to one file, take turns.

pub(crate) mod cache;
mod directories;
pub(crate) mod files;
pub(crate) mod handles;
mod lending;
mod listings;
mod open;
mod permission;
mod policy;
pub(crate) mod serve;
pub(crate) mod table;
mod walk;
pub(crate) mod watch;

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::RequestId;
use hashbrown::{HashMap, HashSet};
use parking_lot::{Mutex, RwLock};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};

use crate::coherence::Invalidate;
use crate::engine::cache::{Cache, Inode};
use crate::engine::handles::{Closers, Handles};
use crate::filesystem::{Bypass, Filesystem};
use crate::policy::Label;
use crate::request::{Credentials, Request};
use crate::ring::mounts;
use crate::session::Core;
use finesse_ipc::frame::{Fallback, ROOT, Reply};
use finesse_ipc::table::Lending;

/// Why an operation stops: the program shall see an errno, or the kernel shall serve the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The call fails.
    Errno(i32),
    /// The kernel serves it.
    Kernel(Fallback),
}

impl From<fuser::Errno> for Stop {
    fn from(errno: fuser::Errno) -> Self {
        match errno.code() {
            // The kernel remembers that an operation is not implemented and knows what to do without it.
            libc::ENOSYS => Self::Kernel(Fallback::NotImplemented),
            // A base whose inode is gone: the kernel knows whether the program sees ENOENT or ESTALE.
            libc::ESTALE => Self::Kernel(Fallback::UnknownBase),
            code => Self::Errno(code),
        }
    }
}

impl From<Stop> for Reply {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Errno(errno) => Self::errno(errno),
            Stop::Kernel(reason) => Self::kernel(reason),
        }
    }
}

/// The kernel decides.
pub(crate) fn kernel<T>(reason: Fallback) -> Result<T, Stop> {
    Err(Stop::Kernel(reason))
}

/// The call fails.
pub(crate) fn fail<T>(errno: i32) -> Result<T, Stop> {
    Err(Stop::Errno(errno))
}

/// Who decides about permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    /// The engine, by mode bits, as the kernel does under `default_permissions`.
    Engine,
    /// The file system, at every operation, acting as the caller.
    Caller,
    /// The file system, if it wants to: FUSE without `default_permissions`, where the kernel checks nothing
    /// but what `access` answers (`fuse_permission`).
    FileSystem,
}

/// Most base directories that one client may have proven; beyond it the client must prove them again.
const BASES_MAX: usize = 4096;

/// What the engine keeps for one client.
pub(crate) struct Context {
    /// Who the client is.
    pub(crate) credentials: Arc<Credentials>,
    /// Directories whose node ids the client may use as bases.
    bases: Mutex<HashMap<u64, Arc<Inode>>>,
    /// Directories that the client may search, by cache instance: attribute version and expiry of the verdict.
    searchable: Mutex<HashMap<u64, (u64, cache::Instant)>>,
    /// What the client has open.
    handles: Arc<Handles>,
    /// What the client watches.
    watched: Mutex<watch::Own>,
    /// Of the base directories, those below a directory whose changes the kernel makes.
    inside: Mutex<HashSet<u64>>,
    /// Walks on below what is mounted on a directory: for the daemon's own questions.
    sees_below: bool,
}

impl Context {
    /// A client that has proven nothing yet: it may use the root only.
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self {
            credentials: Arc::new(credentials),
            bases: Mutex::default(),
            searchable: Mutex::default(),
            handles: Arc::default(),
            watched: Mutex::default(),
            inside: Mutex::default(),
            sees_below: false,
        }
    }

    fn allow_base(&self, directory: Arc<Inode>) {
        // Dropped after the lock: the last reference to an inode pays its forgets to the file system.
        let mut surplus = HashMap::new();
        let mut bases = self.bases.lock();
        if bases.len() >= BASES_MAX {
            surplus = std::mem::take(&mut *bases);
            self.inside.lock().clear();
        }
        bases.insert(directory.ino, directory);
        drop(bases);
        drop(surplus);
    }
}

/// Inodes on which something else is mounted. Nearly always there are none, which costs a load to find out.
#[derive(Default)]
struct Covered {
    any: AtomicBool,
    inodes: RwLock<HashSet<u64>>,
}

impl Covered {
    fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    fn contains(&self, ino: u64) -> bool {
        !self.is_empty() && self.inodes.read().contains(&ino)
    }

    /// Whether they are others than before.
    fn replace(&self, inodes: HashSet<u64>) -> bool {
        let mut now = self.inodes.write();
        let differ = *now != inodes;
        self.any.store(!inodes.is_empty(), Ordering::Release);
        *now = inodes;
        differ
    }
}

/// The engine of one mount.
pub(crate) struct Engine<FS: Filesystem> {
    core: Arc<Core<FS>>,
    cache: Arc<Cache>,
    bypass: Bypass,
    checks: Checks,
    root: Arc<Inode>,
    /// A security module that labels files is on: it answers for `security.*` in the file system's place.
    security_modules: bool,
    /// Inodes on which something else is mounted, in the daemon's mount namespace.
    covered: Covered,
    /// The mount table, to be polled, and whether it named something below our mount when it last changed.
    mounts: Option<OwnedFd>,
    below: Mutex<bool>,
    /// The file system lists directories by `readdirplus` only.
    lists_plus: AtomicBool,
    /// It has no `readdirplus`.
    lacks_plus: AtomicBool,
    /// The file system has no extended attributes.
    no_xattrs: AtomicBool,
    /// Threads that let go of what departed clients had open.
    closers: Closers,
    /// What is watched.
    watches: watch::Watches,
    /// Directories whose changes the kernel makes: paths below the root.
    subtrees: Vec<Vec<u8>>,
    /// What the file system lends.
    lends: Mutex<Lending>,
}

impl<FS: Filesystem> Engine<FS> {
    /// An engine over a mounted file system. Installs its cache as the one that kernel-road changes
    /// invalidate.
    pub(crate) fn new(core: Arc<Core<FS>>) -> Self {
        let bypass = core.fs.ask().bypass();
        // Under a policy, not everybody may know what is there.
        let wanted = bypass.table != 0 && core.guard.is_none();
        let table = wanted.then(|| table::Published::new(bypass.table)).flatten();
        let cache = Arc::new(Cache::new(&core.fs, &core.coherence, table));
        core.coherence.set_cache(&cache);
        let checks = match (bypass.acts_as_caller, core.default_permissions) {
            (true, _) => Checks::Caller,
            (false, true) => Checks::Engine,
            (false, false) => Checks::FileSystem,
        };
        let root = cache.borrowed(ROOT);
        root.label.set(Label::ROOT, true);
        let subtrees = core.fs.ask().left_to_kernel();
        let subtrees = subtrees.into_iter().map(|path| path.into_os_string().into_vec()).collect();
        let labels = ["/sys/fs/selinux/enforce", "/sys/fs/smackfs/load2"];
        let security_modules = labels.iter().any(|file| std::path::Path::new(file).exists());
        Self {
            core,
            cache,
            bypass,
            checks,
            root,
            security_modules,
            covered: Covered::default(),
            mounts: rustix::fs::open("/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .ok(),
            below: Mutex::default(),
            lists_plus: AtomicBool::new(false),
            lacks_plus: AtomicBool::new(false),
            no_xattrs: AtomicBool::new(false),
            closers: Closers::default(),
            watches: watch::Watches::default(),
            subtrees,
            lends: Mutex::default(),
        }
    }

    /// What both roads share.
    pub(crate) fn core(&self) -> &Core<FS> {
        &self.core
    }

    /// Lets go of the file system, which the kernel road would otherwise keep through the cache, after everything that
    /// clients had open was released.
    pub(crate) fn end(&self) {
        self.closers.join();
        self.core.hidden.end();
        self.cache.end();
    }

    /// Inodes that the engine's cache holds.
    pub(crate) fn cached_inodes(&self) -> usize {
        self.cache.inodes()
    }

    /// Whether the file system decides permissions by acting as the caller.
    pub(crate) fn acts_as_caller(&self) -> bool {
        self.checks == Checks::Caller
    }

    /// Whether opens may be answered with a backing descriptor. It knows nothing of this mount's flags: on a mount
    /// that is read-only, or that nothing may be executed on, it could do more than one of the kernel's.
    pub(crate) fn grants(&self) -> bool {
        let unrestricted = !self.core.read_only && !self.core.no_exec;
        self.bypass.grants && self.bypass.backing_attrs && unrestricted
    }

    /// Replaces the set of covered directories. `paths` are relative to the root, in bytes; an empty one is the root.
    ///
    /// Directories that cannot be resolved are left out: a path that the engine cannot walk, it cannot cross.
    pub(crate) fn set_covered<'p>(&self, paths: impl Iterator<Item = &'p [u8]>) {
        let context = Self::daemons_own();
        let request = self.request(&context);
        let number = |path: &[u8]| match path {
            b"" => Some(ROOT),
            path => Some(self.resolve(&context, &request, ROOT, path, true).ok()?.inode.ino),
        };
        let resolved: HashSet<u64> = paths.filter_map(number).collect();
        if self.covered.replace(resolved) {
            // What a covered name stands for is not what is seen there.
            self.cache.closed(None);
        }
        self.ask_what_is_lent();
    }

    /// The daemon asks for itself.
    fn daemons_own() -> Context {
        let root =
            Credentials { uid: 0, gid: 0, groups: Box::default(), pid: std::process::id(), caps: u64::MAX };
        Context { sees_below: true, ..Context::new(root) }
    }

    /// Whether something is mounted below our mount that came after the engine was made: the set of covered directories
    /// follows the mount table a little later.
    fn mounts_are_below(&self) -> bool {
        let (Some(mounts), Some(mountpoint)) = (&self.mounts, &self.core.mountpoint) else { return true };
        let mut below = self.below.lock();
        let mut poll = [PollFd::new(mounts, PollFlags::PRI)];
        // `mounts_poll` tells each open file of a change once.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if rustix::event::poll(&mut poll, Some(&now)) != Ok(0) {
            let table = std::fs::read("/proc/self/mountinfo");
            *below = table.is_err() || table.is_ok_and(|table| !mounts::below(&table, mountpoint).is_empty());
        }
        *below
    }

    fn is_covered(&self, ino: u64) -> bool {
        self.covered.contains(ino)
    }

    /// Makes a directory, shown to be the client's by its descriptor, usable as a base.
    pub(crate) fn prove(&self, context: &Context, ino: u64) {
        let inode = if ino == self.root.ino { self.root.clone() } else { self.cache.borrowed(ino) };
        if inode.lookups() == 0 && ino != self.root.ino {
            // A reference of our own, so that the id stays this directory's. File systems that cannot look up
            // "." (only those meant for NFS export can) rely on the kernel's reference.
            let request = self.request(context);
            let (reply, answer) = crate::ReplyEntry::local();
            self.core.fs.ask().lookup(&request, fuser::INodeNo(ino), std::ffi::OsStr::new("."), reply);
            match answer.wait() {
                Ok(entry) if entry.attr.ino.0 == ino => inode.referenced(),
                Ok(entry) if entry.attr.ino.0 != 0 => {
                    self.core.fs.ask().forget(&request, entry.attr.ino, 1);
                }
                _ => {}
            }
        }
        if let Some(guard) = &self.core.guard
            && inode.label.get().is_none()
            && let Some(label) = guard.label(ino)
        {
            // The kernel knows it: the client has its descriptor.
            inode.label.set(label, true);
        }
        context.allow_base(inode);
    }

    fn request(&self, context: &Context) -> Request {
        Request::for_client(RequestId(0), context.credentials.clone())
    }
}
