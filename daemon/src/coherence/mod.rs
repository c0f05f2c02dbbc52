//! What keeps the two roads telling the same story.
//!
//! *What the kernel caches.* Every answer to the kernel passes here, so [`Coherence`] knows what the kernel may hold:
//! [names], in a compact filter, and for each inode whether its attributes were sent with a lifetime. A change on the
//! bypass that concerns any of it makes the kernel forget that, before the change is acknowledged; any other change costs
//! nothing. In the other direction every change that arrives through the kernel is reported to the bypass' cache
//! ([`Invalidate`]) before the kernel gets its reply.
//!
//! *Answers on their way.* An answer may carry what was true before a change, and arrive after the kernel was told to
//! forget. Three things keep that out:
//! - an answer that is sent after the change was noted gets no lifetime (the clock, see [names]);
//! - names are entered under the lock of their directory, which a notification about a name waits for
//!   (`fuse_reverse_inval_entry`). Only a name that is looked up again is not (`fuse_dentry_revalidate`), but the
//!   notification takes the old entry out of the cache whatever the answer says;
//! - attributes carry the version that they were asked at, and a notification about an inode makes a new one, so
//!   the kernel ignores those that come later (`fuse_change_attributes`). An inode that it does not find may be on its way:
//!   it is told again until it does. Answers of which it keeps no version (`setattr`, and what makes a name) get no
//!   lifetime for attributes, but `create`: there the lock of the directory is waited for.
//!
//! Two rules keep this free of deadlocks. No notification is sent to the kernel while a lock is held that a
//! request of the kernel's may need, nor, but for those that wait for nothing, in a thread that serves the kernel,
//! because the kernel answers a notification only once it has the directory's lock, which a request in flight may hold. And
//! nothing here calls the file system.

mod expired;
mod listings;
mod names;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use fuser::{FileAttr, FileType, FopenFlags};
use hashbrown::{HashMap, HashSet};
use log::{debug, warn};
use parking_lot::Mutex;
use rustix::io::Errno;

use self::expired::Expired;
use self::listings::Listings;
use self::names::{Entered, Known as KnownName, Names, Stands};
use crate::kernel::below;
use crate::mutant;

pub(crate) use self::names::Key;

/// The bypass' cache, as the kernel road sees it.
pub(crate) trait Invalidate: Send + Sync {
    /// Forget the name `name` in the directory `parent`, known or known not to exist, and the attributes of
    /// the inode that it named.
    fn entry(&self, parent: u64, name: &OsStr);
    /// Forget the attributes of an inode.
    fn attr(&self, ino: u64);
    /// Forget the time of last access of an inode.
    fn atime(&self, ino: u64);
    /// Give up the references to inodes that were forgotten so far. The other methods do not, because they are called
    /// while the file system answers, perhaps under locks that its `forget` takes.
    fn pay(&self);
}

/// `FUSE_NOTIFY_INVAL_INODE` of `enum fuse_notify_code`.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`.
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`, Linux 6.2; older kernels take no notice and drop the name.
const EXPIRE_ONLY: u32 = 1;
/// `NAME_MAX`: no engine serves a longer name.
const NAME_MAX: usize = 255;
/// `FUSE_NOTIFY_STORE`.
const NOTIFY_STORE: i32 = 4;
/// `FUSE_NOTIFY_INC_EPOCH`, Linux 6.16.
const NOTIFY_INC_EPOCH: i32 = 8;
/// Size of `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// The longest body of a notification that is sent from here.
const NOTIFICATION_MAX: usize = 16 + NAME_MAX + 1;

/// Shards of the inode tables; a power of two.
const SHARDS: usize = 256;

/// How long a notification about an inode is repeated that the kernel was sent but does not find yet.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Above this many inodes with writable grants every regular file counts as one.
const GRANT_LIMIT: usize = 1_000_000;
/// From this version on the kernel answers that it does not find a name of which it knows that nothing is there, and goes
/// on knowing it (`start_removing_dentry`).
const KEEPS_ABSENT_NAMES: (u32, u32) = (6, 19);

#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// What is known of an inode that the kernel holds a reference to.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The kernel's lookup count; `u32::MAX` never goes down again.
    nlookup: u32,
    /// The number of the last answer by which it may have cached attributes; 0 if it has none.
    attrs: u32,
}

/// Some of the inodes that the kernel knows.
#[derive(Debug, Default)]
struct Inodes {
    known: HashMap<u64, Known>,
    /// The number of the last change of attributes.
    changed: u64,
    /// The last number given to an answer.
    answers: u32,
    /// When the last number was noted: at most every [`ARRIVAL`], as long as there are answers.
    noted_at: Option<Instant>,
    /// The last number at that time.
    noted: u32,
    /// The last number when one was noted before that.
    noted_before: u32,
}

impl Inodes {
    /// A number for an answer; a wrap-around takes longer than any notification.
    fn next_answer(&mut self) -> u32 {
        let now = Instant::now();
        if self.noted_at.is_none_or(|noted_at| now - noted_at >= ARRIVAL) {
            self.noted_before = self.noted;
            self.noted = self.answers;
            self.noted_at = Some(now);
        }
        self.answers = self.answers.wrapping_add(1).max(1);
        self.answers
    }

    /// Whether the answer of this number was certainly sent [`ARRIVAL`] ago or earlier.
    fn is_old(&self, number: u32, now: Instant) -> bool {
        let is_up_to = |last: u32| number.wrapping_sub(last).cast_signed() <= 0;
        match self.noted_at.map(|noted_at| now - noted_at) {
            // Answers that came later than that would have made another note.
            Some(since) if since >= 2 * ARRIVAL => true,
            Some(since) if since >= ARRIVAL => is_up_to(self.noted),
            _ => is_up_to(self.noted_before),
        }
    }
}

/// An answer about a name, as the file system gave it.
pub(crate) struct Answer<'a> {
    /// The attributes; inode 0 says that the name does not exist.
    pub(crate) attr: &'a FileAttr,
    /// For how long they may be cached.
    pub(crate) attr_ttl: Duration,
    /// For how long the name may be cached.
    pub(crate) entry_ttl: Duration,
    /// The kernel ignores the attributes if it is told meanwhile that they have changed.
    pub(crate) versioned: bool,
    /// It creates the file and opens it: what it will write there it knows.
    pub(crate) created: bool,
}

/// The open files of one inode: the kernel's, and those that the daemon keeps for bypass clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opens {
    /// How many the kernel has.
    total: u32,
    /// Since it had none, some were opened in cached mode: the page cache may hold contents.
    pub(crate) cached: bool,
    /// Since it had none, some were opened for direct input and output. The page cache holds what is mapped.
    direct: bool,
    /// Since it had none, some were opened with kernel passthrough.
    pub(crate) passthrough: bool,
    /// Some of those can write, which nobody hears of.
    writes_unseen: bool,
    /// The page cache may hold contents from before, which the kernel is allowed to keep: it hears of every change.
    kept: bool,
    /// Some that can write were opened otherwise: mapped, they can have changed pages that the file system has not
    /// got yet.
    writer: bool,
    /// Some of the writers were opened in cached mode, so the kernel decides by itself where the file ends.
    pub(crate) cached_writer: bool,
    /// While the kernel had writers, the bypass changed the file, so its end is not where the kernel thinks.
    resized: bool,
    /// Since it had none, some were opened to be executed: nobody may write (`deny_write_access`).
    pub(crate) executed: bool,
    /// How many files bypass clients have open virtually.
    virtuals: u32,
    /// How many of them can write.
    pub(crate) virtual_writers: u32,
}

impl Opens {
    /// Whether the page cache may hold contents.
    fn paged(self) -> bool {
        self.cached || self.direct || self.kept
    }

    /// The kernel's last file is closed.
    fn kernel_closed(&mut self) {
        let Self { virtuals, virtual_writers, kept, .. } = *self;
        *self = Self { virtuals, virtual_writers, kept, ..Self::default() };
    }

    /// Nobody has it open, and no page is left.
    fn is_over(self) -> bool {
        self.total == 0 && self.virtuals == 0 && !self.kept
    }
}

/// What can be done with a file that the kernel opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// It can be written to.
    pub(crate) writes: bool,
    /// Writes go to its end.
    pub(crate) appends: bool,
    /// It is executed.
    pub(crate) executes: bool,
}

/// `__FMODE_EXEC` among the flags of an open: the caller is execve(2) (`do_open_execat`).
const FMODE_EXEC: i32 = 0x20;

impl Access {
    /// What the flags of open(2) allow.
    pub(crate) fn of(flags: i32) -> Self {
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        Self { writes, appends: writes && flags & libc::O_APPEND != 0, executes: flags & FMODE_EXEC != 0 }
    }
}

/// Those who write to one inode take turns where the end of the file decides: held while the file system is asked,
/// never while the kernel is told something.
pub(crate) type Turn = Arc<Mutex<()>>;

/// The open files of one inode, and who writes.
#[derive(Debug, Default)]
struct OpenInode {
    opens: Opens,
    turn: Option<Turn>,
    /// The directories in which the kernel has created it since, and perhaps has not got the answer yet.
    created_in: Vec<u64>,
}

/// How the kernel does input and output on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// Through the page cache.
    Cached,
    /// Every read and write is a request.
    Direct,
    /// On the backing file.
    Passthrough,
}

type Shards<T> = Box<[Padded<Mutex<T>>]>;

/// The state that both roads of one mount share. See the module's description.
pub(crate) struct Coherence {
    /// The connected bypass clients.
    clients: AtomicUsize,
    /// Counts the changes on the bypass.
    clock: AtomicU64,
    /// Counts those that begin.
    tickets: AtomicU64,
    names: Names,
    expired: Expired,
    listings: Listings,
    /// The kernel may know inodes by names that are not in the filter.
    names_lost: AtomicBool,
    /// The kernel may know names that are not in the filter, and need not ask again soon: what was moved there keeps its
    /// lifetime (`d_move`).
    moves_lost: AtomicBool,
    /// The kernel was sent a file with several links.
    links: AtomicBool,
    device: Mutex<Option<Arc<OwnedFd>>>,
    disconnected: AtomicBool,
    mountpoint: OnceLock<PathBuf>,
    /// The kernel takes `FUSE_NOTIFY_INC_EPOCH`.
    epochs: AtomicBool,
    /// The kernel may cache that a name does not exist.
    absent_names: bool,
    inodes: Shards<Inodes>,
    opens: Shards<HashMap<u64, OpenInode>>,
    /// How many inodes the kernel writes to unseen.
    written_unseen: AtomicUsize,
    /// How many it reads, or writes to, unseen.
    used_unseen: AtomicUsize,
    /// What was granted for writing.
    granted: Shards<HashSet<u64>>,
    granted_count: AtomicUsize,
    /// What was granted for reading alone, too.
    read: Shards<HashSet<u64>>,
    read_count: AtomicUsize,
    /// Weak, because the cache reports here what the bypass changes.
    cache: OnceLock<Weak<dyn Invalidate>>,
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coherence").finish_non_exhaustive()
    }
}

fn shards<T: Default>() -> Shards<T> {
    (0..SHARDS).map(|_| Padded::default()).collect()
}

/// Consecutive inode numbers go to different shards.
fn shard<T>(shards: &Shards<T>, ino: u64) -> &Mutex<T> {
    let hash = ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    &shards[hash as usize & (SHARDS - 1)].0
}

impl Coherence {
    /// The state of a mount that is about to begin: nothing known but the root, no client.
    pub(crate) fn new() -> Self {
        Self::with_room(if mutant::leaves_out("room for names") { 1 } else { names::ROOM })
    }

    /// As [`new`](Self::new), with room for so many names in each shard of the filter.
    fn with_room(room: usize) -> Self {
        let coherence = Self {
            clients: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            tickets: AtomicU64::new(0),
            names: Names::new(room),
            expired: Expired::new(),
            listings: Listings::new(),
            names_lost: AtomicBool::new(false),
            moves_lost: AtomicBool::new(false),
            links: AtomicBool::new(false),
            device: Mutex::new(None),
            disconnected: AtomicBool::new(false),
            mountpoint: OnceLock::new(),
            epochs: AtomicBool::new(false),
            absent_names: kernel_version().is_none_or(|version| version < KEEPS_ABSENT_NAMES)
                && !mutant::leaves_out("absent names"),
            inodes: shards(),
            opens: shards(),
            written_unseen: AtomicUsize::new(0),
            used_unseen: AtomicUsize::new(0),
            granted: shards(),
            granted_count: AtomicUsize::new(0),
            read: shards(),
            read_count: AtomicUsize::new(0),
            cache: OnceLock::new(),
        };
        // The kernel holds the root from the mount to the unmount, without a lookup.
        let root = Known { nlookup: u32::MAX, attrs: 0 };
        shard(&coherence.inodes, 1).lock().known.insert(1, root);
        coherence
    }

    /// Notifications go to this /dev/fuse descriptor from now on. Finds out whether the kernel knows epochs.
    pub(crate) fn attach(&self, device: OwnedFd, mountpoint: Option<PathBuf>) {
        if let Some(mountpoint) = mountpoint {
            self.mountpoint.get_or_init(|| mountpoint);
        }
        let device = Arc::new(device);
        self.expired.attach(&Arc::downgrade(&device));
        *self.device.lock() = Some(device);
        // Harmless: a young mount has no names that could be dropped.
        let known = match self.notify(NOTIFY_INC_EPOCH, &[]) {
            Ok(_) => !mutant::leaves_out("epochs"),
            Err(error) => {
                debug!("this kernel cannot drop all names at once: {error}");
                false
            }
        };
        self.epochs.store(known, Ordering::Relaxed);
    }

    /// The session is over: no more notifications, and the descriptor may close.
    pub(crate) fn detach(&self) {
        *self.device.lock() = None;
        self.expired.detach();
    }

    /// Whether the kernel has ended the connection: the file system is unmounted. Known after
    /// [`detach`](Self::detach) only if it was asked before.
    pub(crate) fn is_disconnected(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        if let Some(device) = self.device.lock().clone() {
            let mut poll = [PollFd::new(&device, PollFlags::empty())];
            // `fuse_dev_poll` answers EPOLLERR once the connection is gone.
            if rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
                && poll[0].revents().contains(PollFlags::ERR)
            {
                self.disconnected.store(true, Ordering::Release);
            }
        }
        self.disconnected.load(Ordering::Acquire)
    }

    /// Reports changes on the kernel road to `cache`, for as long as it exists. The first call counts.
    pub(crate) fn set_cache(&self, cache: &Arc<impl Invalidate + 'static>) {
        let cache: Weak<dyn Invalidate> = Arc::downgrade(cache) as _;
        if self.cache.set(cache).is_err() {
            warn!("the bypass' cache was set twice; the first one stays");
        }
    }

    /// The bypass' cache, if there is a bypass.
    #[inline]
    pub(crate) fn cache(&self) -> Option<Arc<dyn Invalidate>> {
        self.cache.get().and_then(Weak::upgrade)
    }

    /// A bypass client has connected.
    pub(crate) fn bypass_connected(&self) {
        self.clients.fetch_add(1, Ordering::SeqCst);
    }

    /// A bypass client has gone.
    pub(crate) fn bypass_disconnected(&self) {
        self.clients.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether bypass clients are connected.
    pub(crate) fn has_clients(&self) -> bool {
        self.clients.load(Ordering::SeqCst) > 0
    }

    // --- What the kernel is sent ---

    /// To be taken when a request of the kernel's arrives, before the file system is asked.
    pub(crate) fn mark(&self) -> u64 {
        if mutant::leaves_out("answers: mark") { u64::MAX } else { self.clock.load(Ordering::SeqCst) }
    }

    /// How the filter knows a name.
    pub(crate) fn key(&self, parent: u64, name: &OsStr) -> Key {
        self.names.key(parent, name)
    }

    /// The lifetimes to send with an answer to a request that arrived at `mark`, attributes first. Counts the kernel's
    /// reference, and notes what it will know. `key` is `None` for a name that the bypass cannot change.
    pub(crate) fn entry(&self, key: Option<Key>, answer: &Answer<'_>, mark: u64) -> (Duration, Duration) {
        mutant::lingers("answers: mark");
        let Answer { attr, attr_ttl, entry_ttl, versioned, created } = *answer;
        let there = attr.ino.0 != 0;
        if !there && (entry_ttl.is_zero() || !self.absent_names) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let stands = if there { Stands::Inode(attr.ino.0) } else { Stands::Nothing };
        let current = key.is_none_or(|key| self.enter(key, stands, mark) == Entered::Current);
        let entry_ttl = if current { entry_ttl } else { Duration::ZERO };
        if !there {
            return (Duration::ZERO, entry_ttl);
        }
        let unseen = !created && self.is_written_unseen(attr.ino.0);
        let attr_ttl =
            self.lifetime(attr.ino.0, attr, if versioned && !unseen { attr_ttl } else { Duration::ZERO });
        let mut inodes = shard(&self.inodes, attr.ino.0).lock();
        let overtaken = inodes.changed > mark;
        let attr_ttl = if overtaken { Duration::ZERO } else { attr_ttl };
        let number = inodes.next_answer();
        let known = inodes.known.entry(attr.ino.0).or_default();
        known.nlookup = known.nlookup.saturating_add(1);
        if !attr_ttl.is_zero() {
            known.attrs = number;
        }
        (attr_ttl, entry_ttl)
    }

    /// The lifetime to send with the attributes of `ino` that were asked for at `mark`.
    pub(crate) fn attr(&self, ino: u64, attr: &FileAttr, ttl: Duration, mark: u64) -> Duration {
        mutant::lingers("answers: mark");
        let ttl = self.lifetime(ino, attr, ttl);
        if ttl.is_zero() || self.is_written_unseen(ino) {
            return Duration::ZERO;
        }
        let mut inodes = shard(&self.inodes, ino).lock();
        let number = inodes.next_answer();
        let overtaken = inodes.changed > mark;
        match inodes.known.get_mut(&ino) {
            Some(known) if !overtaken => {
                known.attrs = number;
                ttl
            }
            _ => Duration::ZERO,
        }
    }

    /// The kernel asks for an access control list, which it caches whatever it is told (`get_cached_acl`): a change of the
    /// attributes is to be told.
    pub(crate) fn asked_for_acl(&self, ino: u64) {
        let mut inodes = shard(&self.inodes, ino).lock();
        let number = inodes.next_answer();
        if let Some(known) = inodes.known.get_mut(&ino) {
            known.attrs = number;
        }
    }

    /// The kernel is about to move something to a name, by which it goes on to know it.
    pub(crate) fn kernel_moves_to(&self, parent: u64, name: &OsStr) {
        if mutant::leaves_out("kernel road: moves") {
            return;
        }
        if self.enter(self.key(parent, name), Stands::Some, u64::MAX) == Entered::Full {
            self.moves_lost.store(true, Ordering::SeqCst);
        }
    }

    /// Enters a name, and makes room for it if the kernel forgets others at once.
    fn enter(&self, key: Key, stands: Stands, mark: u64) -> Entered {
        let mut entered = self.names.enter(key, stands, mark);
        if entered == Entered::Full {
            self.names_lost.store(true, Ordering::SeqCst);
            if self.start_over() {
                entered = self.names.enter(key, stands, mark);
            }
        }
        entered
    }

    /// Makes the kernel forget all names at once, if it can (`fuse_notify_inc_epoch`). This waits for nothing.
    fn start_over(&self) -> bool {
        // A name of an old epoch is dropped by `d_invalidate`, which unmounts what is mounted on it or below it. Mounts in
        // other mount name spaces suffer too, but cannot be seen from here.
        if !self.epochs.load(Ordering::Relaxed) || self.mount_below() {
            return false;
        }
        self.names.start_over(|| {
            let forgotten = self.notify(NOTIFY_INC_EPOCH, &[]).is_ok();
            if forgotten {
                self.moves_lost.store(false, Ordering::SeqCst);
            }
            forgotten
        })
    }

    fn mount_below(&self) -> bool {
        let Some(mountpoint) = self.mountpoint.get() else { return true };
        match std::fs::read("/proc/self/mountinfo") {
            Ok(table) => below::first_below(&table, mountpoint).is_some(),
            Err(error) => {
                warn!("cannot look for mounts below {}: {error}", mountpoint.display());
                true
            }
        }
    }

    /// The lifetime of attributes that the kernel is to be sent, unless a bypass client changes them unseen.
    fn lifetime(&self, ino: u64, attr: &FileAttr, ttl: Duration) -> Duration {
        if attr.kind == FileType::Directory {
            return ttl;
        }
        if attr.nlink > 1 && !self.links.load(Ordering::Relaxed) {
            self.links.store(true, Ordering::SeqCst);
        }
        let unseen = attr.kind == FileType::RegularFile
            && (self.is_granted_write(ino)
                || (self.is_granted(ino) && reading_changes_atime(attr, SystemTime::now())));
        if unseen { Duration::ZERO } else { ttl }
    }

    // --- What the bypass changes ---

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The bypass is about to change a name. With `expects` it may put something there that the kernel knows.
    pub(crate) fn changing<'a>(&'a self, parent: u64, name: &'a OsStr, expects: bool) -> Changing<'a> {
        let (key, ticket) = (self.key(parent, name), self.tickets.fetch_add(1, Ordering::Relaxed));
        let links = self.links.load(Ordering::SeqCst);
        let named = self.names.begin(key, ticket, expects).unwrap_or_else(|| {
            self.names_lost.store(true, Ordering::SeqCst);
            self.moves_lost.store(true, Ordering::SeqCst);
            false
        });
        let known = named || links || self.names_lost.load(Ordering::SeqCst);
        Changing { coherence: self, parent, name, key, ticket, known, links, over: false }
    }

    /// The bypass has changed an inode's attributes: the kernel forgets them, if it has any. To be called before the
    /// change is answered.
    pub(crate) fn changed_attr(&self, ino: u64) {
        let now = self.tick();
        let mut inodes = shard(&self.inodes, ino).lock();
        inodes.changed = inodes.changed.max(now);
        let held = inodes.known.get(&ino).map_or(0, |known| known.attrs);
        drop(inodes);
        if held != 0 && !mutant::leaves_out("bypass: attributes") {
            self.forget_attributes(ino, held);
        }
    }

    /// A request of the kernel's own has changed an inode's attributes. Then the kernel asks for them again
    /// (`fuse_dir_changed`, `fuse_update_ctime`), but makes no new version: what it asked for before, and hears of later, it
    /// would take for good. To be called before the request is answered; waits for nothing.
    pub(crate) fn kernel_changed_attr(&self, ino: u64) {
        let now = self.tick();
        let mut inodes = shard(&self.inodes, ino).lock();
        inodes.changed = inodes.changed.max(now);
        let held = inodes.known.get(&ino).map_or(0, |known| known.attrs);
        drop(inodes);
        if held != 0 && !mutant::leaves_out("kernel road: versions") {
            self.forget_attributes_of(ino);
            self.forgot_attributes(ino, held);
        }
    }

    /// Makes the kernel forget the attributes that it was sent with the answer of this number.
    fn forget_attributes(&self, ino: u64, held: u32) {
        let created_in = shard(&self.opens, ino).lock().get(&ino).map(|open| open.created_in.clone());
        created_in.into_iter().flatten().for_each(|directory| self.await_directory(directory));
        let mut pause = Duration::from_micros(20);
        let deadline = Instant::now() + ARRIVAL;
        loop {
            match self.inval_inode(ino, -1, 0) {
                Ok(true) => break,
                Err(error) => {
                    gone(error);
                    break;
                }
                Ok(false) => {}
            }
            // Either the kernel is about to let go of the inode, or the program that asked for it has not run yet; or the kernel
            // found that the number has become another file's, and finds the old one no more (`fuse_make_bad`).
            let inodes = shard(&self.inodes, ino).lock();
            let now = Instant::now();
            match inodes.known.get(&ino).map_or(0, |known| known.attrs) {
                0 => return,
                sent if now >= deadline || inodes.is_old(sent, now) => break,
                _ => drop(inodes),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        self.forgot_attributes(ino, held);
    }

    /// The kernel has forgotten the attributes that it was sent with the answer of this number.
    fn forgot_attributes(&self, ino: u64, held: u32) {
        let mut inodes = shard(&self.inodes, ino).lock();
        if let Some(known) = inodes.known.get_mut(&ino)
            && known.attrs == held
        {
            known.attrs = 0;
        }
    }

    /// Makes the kernel forget all attributes, inode by inode.
    fn forget_all_attributes(&self) {
        for shard in &self.inodes {
            // Collected first, because no lock may be held during a notification.
            let held: Vec<(u64, u32)> =
                shard.0.lock().known.iter().map(|(ino, known)| (*ino, known.attrs)).collect();
            for (ino, held) in held.into_iter().filter(|(_, held)| *held != 0) {
                self.forget_attributes(ino, held);
            }
        }
    }

    // --- Notifications ---

    /// Writes one notification. Whether the kernel knows what it is about.
    fn notify(&self, code: i32, body: &[u8]) -> Result<bool, Errno> {
        let Some(device) = self.device.lock().clone() else { return Err(Errno::NOTCONN) };
        let mut message = [0u8; OUT_HEADER + NOTIFICATION_MAX];
        let len = OUT_HEADER + body.len();
        message[OUT_HEADER..len].copy_from_slice(body);
        send(&device, code, &mut message[..len])
    }

    /// `fuse_reverse_inval_inode`: drops the attributes; with `offset >= 0` the pages from there on, too.
    fn inval_inode(&self, ino: u64, offset: i64, len: i64) -> Result<bool, Errno> {
        let mut body = [0u8; 24];
        body[0..8].copy_from_slice(&ino.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..24].copy_from_slice(&len.to_ne_bytes());
        self.notify(NOTIFY_INVAL_INODE, &body)
    }

    /// The kernel is to ask for an inode's attributes again. Waits for nothing of the kernel's, so that a request of
    /// its own may be under way.
    pub(crate) fn forget_attributes_of(&self, ino: u64) {
        // What cannot be told is logged; without a kernel there is nobody to tell.
        let _ = self.inval_inode(ino, -1, 0).map_err(gone);
    }

    /// Drops a name, and leaves its inode alone (`fuse_reverse_inval_entry`). Waits for the directory's lock. Whether the
    /// kernel had the name.
    pub(crate) fn drop_name(&self, parent: u64, name: &[u8]) -> bool {
        self.inval_entry(parent, name, 0)
    }

    /// Lets a name expire: the kernel is to ask before it uses it again. Waits as [`drop_name`](Self::drop_name) does. A
    /// kernel that is about to get an answer to that very question takes the name for good then.
    fn expire_name(&self, parent: u64, name: &[u8]) -> bool {
        self.inval_entry(parent, name, EXPIRE_ONLY)
    }

    fn inval_entry(&self, parent: u64, name: &[u8], flags: u32) -> bool {
        let mut body = [0u8; NOTIFICATION_MAX];
        let len = 16 + name.len().min(NAME_MAX) + 1;
        body[0..8].copy_from_slice(&parent.to_ne_bytes());
        body[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        body[12..16].copy_from_slice(&flags.to_ne_bytes());
        body[16..len - 1].copy_from_slice(&name[..len - 17]);
        self.notify(NOTIFY_INVAL_ENTRY, &body[..len]).unwrap_or_else(|error| {
            gone(error);
            false
        })
    }

    /// Waits until the kernel's requests that make something in a directory, or list it, have got their answers: by
    /// its lock.
    fn await_directory(&self, directory: u64) {
        // No directory has this name.
        self.drop_name(directory, b".");
    }

    /// The bypass has changed what a directory lists. To be called before the change is answered: drops what the kernel's
    /// page cache holds of it.
    pub(crate) fn changed_listing(&self, directory: u64) {
        let Some(held) = self.listings.held(directory) else { return };
        if mutant::leaves_out("bypass: listings") {
            return;
        }
        // An answer from before the change would enter the cache after the notification.
        self.await_directory(directory);
        // What cannot be told is logged; without a kernel there is nobody to tell.
        let _ = self.inval_inode(directory, 0, 0).map_err(gone);
        self.listings.told(directory, held);
    }

    /// The bypass has changed the contents or the size of an inode. To be called before the change is
    /// answered: drops what the kernel's page cache holds of it.
    ///
    /// # Errors
    /// The kernel's, a closed session excepted. The contents that an open file shows may then be old.
    pub(crate) fn bypass_changed_data(&self, ino: u64) -> io::Result<()> {
        if !self.bypass_resizes(ino) {
            return Ok(());
        }
        self.drop_pages(ino, 0, 0)
    }

    /// As [`bypass_changed_data`](Self::bypass_changed_data), for `data` that was written at `offset`.
    ///
    /// # Errors
    /// As for it.
    pub(crate) fn bypass_wrote(&self, ino: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let (Some(last), true) = (data.last(), self.bypass_resizes(ino)) else { return Ok(()) };
        self.lengthen(ino, offset.saturating_add(data.len() as u64 - 1), *last);
        self.drop_pages(ino, offset, data.len() as u64)
    }

    /// The bypass has perhaps changed the size of an inode; whether the kernel may hold pages of it.
    fn bypass_resizes(&self, ino: u64) -> bool {
        shard(&self.opens, ino).lock().get_mut(&ino).is_some_and(|open| {
            open.opens.resized |= open.opens.writer;
            open.opens.paged()
        })
    }

    /// A file reaches at least to this byte: tells the kernel so (`fuse_notify_store` moves `i_size` on). It may ignore the
    /// size in the answer to what it asks meanwhile: notifications count up the version that `fuse_change_attributes` compares.
    fn lengthen(&self, ino: u64, position: u64, last: u8) {
        let mut body = [0u8; 25];
        body[0..8].copy_from_slice(&ino.to_ne_bytes());
        body[8..16].copy_from_slice(&position.to_ne_bytes());
        body[16..20].copy_from_slice(&1u32.to_ne_bytes());
        body[24] = last;
        // What cannot be told is logged; the attributes are asked for again in any case.
        let _ = self.notify(NOTIFY_STORE, &body).map_err(gone);
    }

    /// The bypass is about to read, or to write to, a part of a file: makes the kernel write out what programs have
    /// changed there through mappings (`fuse_launder_folio`).
    ///
    /// # Errors
    /// As for [`bypass_changed_data`](Self::bypass_changed_data).
    pub(crate) fn bypass_uses_data(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        if !self.kernel_opens(ino).writer {
            return Ok(());
        }
        self.drop_pages(ino, offset, len)
    }

    fn drop_pages(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        let whole = i64::try_from(offset).ok().zip(i64::try_from(len).ok());
        let (offset, len) = whole.unwrap_or((0, 0));
        match self.inval_inode(ino, offset, len) {
            Err(error) if !gone(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    // --- What the kernel holds ---

    /// The kernel has given up `count` references.
    pub(crate) fn forgotten(&self, ino: u64, count: u64) {
        let mut inodes = shard(&self.inodes, ino).lock();
        let Some(known) = inodes.known.get_mut(&ino) else { return };
        if known.nlookup == u32::MAX {
            return;
        }
        known.nlookup = known.nlookup.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        if known.nlookup != 0 {
            return;
        }
        let known = &mut inodes.known;
        known.remove(&ino);
        if known.capacity() > 1024 && known.len() < known.capacity() / 8 {
            let room = known.len() * 2;
            known.shrink_to(room);
        }
        drop(inodes);
        // Its pages have gone with it, and its names.
        self.listings.forget(ino);
        if let Some((key, age)) = self.expired.forget(ino) {
            self.names.dropped(key, age);
        }
        let mut opens = shard(&self.opens, ino).lock();
        if let Some(open) = opens.get_mut(&ino) {
            open.opens.kept = false;
            if open.opens.is_over() {
                opens.remove(&ino);
            }
        }
    }

    /// How many inodes the kernel holds references to.
    pub(crate) fn known_inodes(&self) -> usize {
        self.inodes.iter().map(|shard| shard.0.lock().known.len()).sum()
    }

    /// Whether the kernel holds a reference to an inode.
    pub(crate) fn kernel_knows(&self, ino: u64) -> bool {
        shard(&self.inodes, ino).lock().known.contains_key(&ino)
    }

    /// Whether the kernel holds a reference to an inode, but no open file of it.
    fn is_closed_in_kernel(&self, ino: u64) -> bool {
        self.kernel_opens(ino).total == 0 && self.kernel_knows(ino)
    }

    /// The kernel gets to know of an open file.
    #[cfg(test)]
    pub(crate) fn opened(&self, ino: u64, mode: OpenMode, writes: bool) {
        let mut shard = shard(&self.opens, ino).lock();
        let access = Access { writes, ..Access::default() };
        self.count_open(&mut shard.entry(ino).or_default().opens, mode, access);
    }

    fn count_open(&self, opens: &mut Opens, mode: OpenMode, access: Access) {
        opens.total = opens.total.saturating_add(1);
        opens.executed |= access.executes;
        match mode {
            OpenMode::Cached => {
                opens.cached = true;
                opens.cached_writer |= access.writes;
                opens.writer |= access.writes;
            }
            OpenMode::Direct => {
                opens.direct = true;
                opens.writer |= access.writes;
            }
            OpenMode::Passthrough => {
                if !opens.passthrough {
                    opens.passthrough = true;
                    self.used_unseen.fetch_add(1, Ordering::Relaxed);
                }
                if access.writes && !opens.writes_unseen {
                    opens.writes_unseen = true;
                    self.written_unseen.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// The kernel has released an open file.
    pub(crate) fn released(&self, ino: u64) {
        // The last unseen write, or read, is done. What the bypass learned before must go while the file still counts as
        // changing unseen, so that nobody uses it in between.
        if self.is_used_unseen(ino) {
            let written = self.is_written_unseen(ino);
            match self.cache() {
                Some(cache) if written => cache.attr(ino),
                Some(cache) => cache.atime(ino),
                None => {}
            }
            if written {
                self.forget_attributes_of(ino);
            }
        }
        let mut shard = shard(&self.opens, ino).lock();
        if let Some(open) = shard.get_mut(&ino) {
            open.opens.total = open.opens.total.saturating_sub(1);
            if open.opens.total == 0 {
                if open.opens.writes_unseen {
                    self.written_unseen.fetch_sub(1, Ordering::Relaxed);
                }
                if open.opens.passthrough {
                    self.used_unseen.fetch_sub(1, Ordering::Relaxed);
                }
                open.opens.kernel_closed();
                open.created_in.clear();
                if open.opens.is_over() {
                    shard.remove(&ino);
                }
            }
        }
    }

    /// The flags for a file that the kernel opens, and whether it may be served from its backing file by itself. Counts
    /// it. `created_in` is the directory, if the kernel creates the file by the same request.
    pub(crate) fn open_file(
        &self,
        ino: u64,
        mut flags: FopenFlags,
        passthrough: bool,
        access: Access,
        created_in: Option<u64>,
    ) -> (FopenFlags, bool) {
        // Decided and counted at once: who opens the file virtually, or has it granted, sees this one or is seen.
        let mut shard = shard(&self.opens, ino).lock();
        let open = shard.entry(ino).or_default();
        if let Some(directory) = created_in.filter(|directory| !open.created_in.contains(directory)) {
            open.created_in.push(directory);
        }
        let opens = &mut open.opens;
        // The kernel serves all of an inode's open files from its backing file, or none: it fails opens that contradict
        // each other (`fuse_file_io_open`). What is open virtually may become the kernel's, and is served here then.
        let passthrough = passthrough && !opens.cached && !opens.direct && opens.virtuals == 0;
        // The page cache of a writer would hide what it writes through mappings, and where the file ends.
        let apart = (access.writes && opens.virtuals > 0) || (access.appends && self.has_clients());
        if !passthrough && apart {
            flags.insert(FopenFlags::FOPEN_DIRECT_IO);
        }
        let (mut flags, mode) = self.open_flags(ino, flags, passthrough);
        if flags.contains(FopenFlags::FOPEN_KEEP_CACHE) && !opens.kept {
            // There may be pages from opens that were to keep none, and of changes since then the kernel was told nothing: it
            // keeps what comes from now on.
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
            opens.kept = true;
        }
        self.count_open(opens, mode, access);
        drop(shard);
        if passthrough && access.writes && created_in.is_none() {
            // From now on it is to ask: what is written through mappings it does not notice.
            self.forget_attributes_of(ino);
        }
        (flags, passthrough)
    }

    /// Whether the kernel's page cache may serve a file that the kernel opens to read. If so, it has to, and the file is not
    /// granted for writing from here on.
    pub(crate) fn may_read_pages(&self, ino: u64) -> bool {
        let mut shard = shard(&self.opens, ino).lock();
        // Under the lock: who grants it for writing notes that first, and looks here then.
        if self.is_granted_write(ino) {
            return false;
        }
        let opens = &mut shard.entry(ino).or_default().opens;
        opens.cached |= !opens.passthrough;
        opens.cached
    }

    /// The flags for a directory that the kernel opens.
    pub(crate) fn open_directory(&self, ino: u64, mut flags: FopenFlags) -> FopenFlags {
        if flags.contains(FopenFlags::FOPEN_CACHE_DIR) && !self.listings.opens(ino) {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
        }
        flags
    }

    /// The kernel reads an open directory. To be called before the file system is asked.
    pub(crate) fn kernel_lists(&self, directory: u64) {
        self.listings.reads(directory);
    }

    /// Whether the kernel may have listings of directories in its page cache.
    pub(crate) fn kernel_keeps_listings(&self) -> bool {
        self.listings.any()
    }

    /// The kernel has moved an inode. To be called before it is answered.
    pub(crate) fn kernel_moved(&self, ino: u64) {
        if !mutant::leaves_out("kernel road: moved listings") {
            self.listings.moved(ino);
        }
    }

    /// The flags to open with, and the mode that they mean.
    pub(crate) fn open_flags(
        &self,
        ino: u64,
        mut flags: FopenFlags,
        passthrough: bool,
    ) -> (FopenFlags, OpenMode) {
        if passthrough {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
            return (flags, OpenMode::Passthrough);
        }
        if self.is_granted_write(ino) {
            flags.insert(FopenFlags::FOPEN_DIRECT_IO);
        }
        if flags.contains(FopenFlags::FOPEN_DIRECT_IO) {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
            return (flags, OpenMode::Direct);
        }
        (flags, OpenMode::Cached)
    }

    // --- Virtual descriptors ---

    /// A file is about to be opened virtually. From here on the kernel opens it for writing only in a way that keeps
    /// both roads' writes apart. `None` if the kernel has it open already for writing through its page cache, where it may
    /// have contents, and a notion of the file's end, that nobody else sees; or with passthrough, which then goes for
    /// every open file of the inode, also for what a virtual descriptor is to become.
    pub(crate) fn open_virtually(self: &Arc<Self>, ino: u64, writes: bool) -> Option<VirtualOpen> {
        let mut shard = shard(&self.opens, ino).lock();
        let open = shard.entry(ino).or_default();
        if open.opens.cached_writer || open.opens.passthrough {
            return None;
        }
        open.opens.virtuals += 1;
        open.opens.virtual_writers += u32::from(writes);
        let turn = Arc::clone(open.turn.get_or_insert_default());
        Some(VirtualOpen { coherence: Arc::clone(self), ino, writes, turn })
    }

    fn close_virtually(&self, ino: u64, writes: bool) {
        let mut shard = shard(&self.opens, ino).lock();
        if let Some(open) = shard.get_mut(&ino) {
            open.opens.virtuals -= 1;
            open.opens.virtual_writers -= u32::from(writes);
            if open.opens.is_over() {
                shard.remove(&ino);
            }
        }
    }

    /// Whose turn it is to write at the end of a file that the kernel has open, if the kernel may be wrong about where
    /// that is: bypass clients write to it, or have.
    pub(crate) fn append_turn(&self, ino: u64) -> Option<Turn> {
        let mut shard = shard(&self.opens, ino).lock();
        let open = shard.get_mut(&ino)?;
        let moves = open.opens.virtual_writers > 0 || open.opens.resized;
        moves.then(|| Arc::clone(open.turn.get_or_insert_default()))
    }

    /// Whether the kernel has the file open in a way that changes it unseen: for writing, with passthrough.
    pub(crate) fn is_written_unseen(&self, ino: u64) -> bool {
        self.written_unseen.load(Ordering::Relaxed) != 0 && self.kernel_opens(ino).writes_unseen
    }

    /// Whether the kernel has the file open in a way that reads it unseen: with passthrough.
    pub(crate) fn is_used_unseen(&self, ino: u64) -> bool {
        self.used_unseen.load(Ordering::Relaxed) != 0 && self.kernel_opens(ino).passthrough
    }

    /// The kernel's open files of an inode. An open that the program's death cut short may be counted for
    /// ever, which costs an unneeded notification.
    pub(crate) fn kernel_opens(&self, ino: u64) -> Opens {
        shard(&self.opens, ino).lock().get(&ino).map(|open| open.opens).unwrap_or_default()
    }

    /// Whether the kernel has an inode open.
    #[cfg(test)]
    pub(crate) fn kernel_has_open(&self, ino: u64) -> bool {
        self.kernel_opens(ino).total != 0
    }

    // --- Grants ---

    /// A client gets, or may get at any time, a writable descriptor of the backing file: from now on the
    /// file's size, times and contents change unseen.
    pub(crate) fn note_granted_write(&self, ino: u64) {
        note(&self.granted, &self.granted_count, ino);
    }

    /// Whether a regular file may change unseen. Meaningless for other kinds of file.
    pub(crate) fn is_granted_write(&self, ino: u64) -> bool {
        is_noted(&self.granted, &self.granted_count, ino)
    }

    /// Whether a file may be read unseen, as it was [granted](Self::note_granted).
    pub(crate) fn is_granted(&self, ino: u64) -> bool {
        is_noted(&self.read, &self.read_count, ino)
    }

    /// A client gets a descriptor of the backing file: from now on it may be read unseen.
    pub(crate) fn note_granted(&self, ino: u64) {
        if note(&self.read, &self.read_count, ino) {
            self.changed_attr(ino);
        }
    }
}

/// Notes an inode; whether it was not noted before.
fn note(noted: &Shards<HashSet<u64>>, count: &AtomicUsize, ino: u64) -> bool {
    if count.load(Ordering::Relaxed) >= GRANT_LIMIT || !shard(noted, ino).lock().insert(ino) {
        return false;
    }
    if count.fetch_add(1, Ordering::Relaxed) + 1 == GRANT_LIMIT {
        debug!("{GRANT_LIMIT} files have grants; all regular files count as such now");
    }
    true
}

fn is_noted(noted: &Shards<HashSet<u64>>, count: &AtomicUsize, ino: u64) -> bool {
    match count.load(Ordering::Relaxed) {
        0 => false,
        GRANT_LIMIT.. => true,
        _ => shard(noted, ino).lock().contains(&ino),
    }
}

/// After this time reading a file changes when it was last accessed in any case (`relatime_need_update`).
const ATIME_LASTS: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether reading a file changes when it was last accessed, as file systems are mounted by default, with `relatime`
/// (`relatime_need_update`).
pub(crate) fn reading_changes_atime(attr: &FileAttr, now: SystemTime) -> bool {
    attr.atime <= attr.mtime
        || attr.atime <= attr.ctime
        || now.duration_since(attr.atime).is_ok_and(|age| age >= ATIME_LASTS)
}

/// A name that the bypass is about to change, from before the file system is asked until the answer is there.
/// Dropping it says that nothing has changed.
#[must_use]
pub(crate) struct Changing<'a> {
    coherence: &'a Coherence,
    parent: u64,
    name: &'a OsStr,
    key: Key,
    ticket: u64,
    known: bool,
    /// What [`Coherence::links`] was at the beginning.
    links: bool,
    over: bool,
}

impl Changing<'_> {
    /// Whether the kernel may know what the name stands for. Then the change must tell of that inode, too, if the name is
    /// taken from it.
    pub(crate) fn is_known(&self) -> bool {
        self.known && !mutant::leaves_out("bypass: inodes of names")
    }

    /// The name has changed: the kernel forgets it, if it has it. With `keeps` it may stand for an inode that the kernel
    /// knows. `file` is what it stood for before, if that is known and no directory. The inode, if any, that the kernel got by this name
    /// meanwhile; its attributes are forgotten.
    pub(crate) fn changed(mut self, keeps: bool, file: Option<u64>) -> Option<u64> {
        let coherence = self.coherence;
        self.over = true;
        let known = coherence.names.end(self.key, self.ticket, Some(coherence.tick()), keeps);
        // What the kernel has moved to a name for us is there.
        let lost = !keeps && coherence.moves_lost.load(Ordering::SeqCst);
        let named = (known.named || lost) && !mutant::leaves_out("bypass: names");
        if named {
            self.tell(known, file.filter(|_| !keeps && !lost), keeps);
        }
        coherence.changed_listing(self.parent);
        let told = match known.sent {
            Stands::Inode(ino) => Some(ino),
            Stands::Some | Stands::Nothing => None,
        };
        if let Some(ino) = told {
            coherence.changed_attr(ino);
            coherence.changed_listing(ino);
        }
        let by_another_name = coherence.links.load(Ordering::SeqCst) != self.links;
        if (by_another_name && !self.known) || known.sent == Stands::Some {
            // It has got to know the inode meanwhile, or may have: which one, nobody has asked. Hardly ever happens.
            coherence.forget_all_attributes();
        }
        told
    }

    /// Makes the kernel forget the name, which stood for `file`.
    fn tell(&self, known: KnownName, file: Option<u64>, keeps: bool) {
        let (coherence, name) = (self.coherence, self.name.as_encoded_bytes());
        // Of a name that was sent once no other answer is on its way. Who has the file open is to see that it is gone
        // (`d_path`).
        let expires =
            |ino: &u64| known.once && coherence.expired.are_swept() && coherence.is_closed_in_kernel(*ino);
        match file.filter(expires) {
            Some(ino) => {
                if coherence.expire_name(self.parent, name) {
                    coherence.expired.expired(ino, self.key, known.age);
                }
            }
            None => {
                if coherence.drop_name(self.parent, name) && !keeps {
                    coherence.names.dropped(self.key, known.age);
                }
            }
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.coherence.names.end(self.key, self.ticket, None, false);
        }
    }
}

/// The running kernel's version.
fn kernel_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A file that a bypass client has open virtually, for as long as this exists.
#[derive(Debug)]
pub(crate) struct VirtualOpen {
    coherence: Arc<Coherence>,
    ino: u64,
    writes: bool,
    turn: Turn,
}

impl VirtualOpen {
    /// Whose turn it is to write.
    pub(crate) fn turn(&self) -> &Turn {
        &self.turn
    }
}

impl Drop for VirtualOpen {
    fn drop(&mut self) {
        self.coherence.close_virtually(self.ino, self.writes);
    }
}

/// Writes a notification, the header of which is still to be filled in. Whether the kernel knows what it is about.
fn send(device: &OwnedFd, code: i32, message: &mut [u8]) -> Result<bool, Errno> {
    let len = message.len() as u32;
    message[0..4].copy_from_slice(&len.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    loop {
        match rustix::io::write(device.as_fd(), message) {
            Ok(_) => return Ok(true),
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the error says that there is no kernel to talk to any more; other errors are logged.
fn gone(error: Errno) -> bool {
    if matches!(error, Errno::NODEV | Errno::NOTCONN | Errno::BADF) {
        return true;
    }
    warn!("the kernel refused an invalidation: {error}");
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    use fuser::INodeNo;

    const HOUR: Duration = Duration::from_secs(3600);

    fn attr(ino: u64, kind: FileType) -> FileAttr {
        FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn file(ino: u64) -> FileAttr {
        attr(ino, FileType::RegularFile)
    }

    /// Sends the kernel an answer to a lookup of `name` in the root, which it asked for at `mark`.
    fn answer(coherence: &Coherence, name: &str, attr: &FileAttr, mark: u64) -> (Duration, Duration) {
        let answer = Answer { attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: true, created: false };
        coherence.entry(Some(coherence.key(1, OsStr::new(name))), &answer, mark)
    }

    fn sent(coherence: &Coherence, attr: &FileAttr) -> (Duration, Duration) {
        answer(coherence, &attr.ino.0.to_string(), attr, coherence.mark())
    }

    fn change(coherence: &Coherence, name: &str) -> bool {
        let changing = coherence.changing(1, OsStr::new(name), false);
        let known = changing.is_known();
        changing.changed(false, None);
        known
    }

    #[test]
    fn an_answer_that_was_asked_for_before_a_change_gets_no_lifetime() {
        let coherence = Coherence::new();
        let mark = coherence.mark();
        assert_eq!(answer(&coherence, "a", &file(2), mark), (HOUR, HOUR));
        coherence.changed_attr(2);
        assert_eq!(answer(&coherence, "a", &file(2), mark), (Duration::ZERO, HOUR));
        assert_eq!(coherence.attr(2, &file(2), HOUR, mark), Duration::ZERO);
        assert_eq!(coherence.attr(2, &file(2), HOUR, coherence.mark()), HOUR);
        assert!(change(&coherence, "a"));
        assert_eq!(answer(&coherence, "a", &file(2), mark), (Duration::ZERO, Duration::ZERO));
        assert_eq!(answer(&coherence, "a", &file(2), coherence.mark()), (HOUR, HOUR));
    }

    #[test]
    fn attributes_of_which_the_kernel_keeps_no_version_get_no_lifetime() {
        let coherence = Coherence::new();
        let attr = file(2);
        let answer =
            Answer { attr: &attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: false, created: false };
        assert_eq!(coherence.entry(None, &answer, coherence.mark()), (Duration::ZERO, HOUR));
    }

    #[test]
    fn who_changes_a_name_is_told_whether_the_kernel_may_know_its_inode() {
        let coherence = Coherence::new();
        assert!(!change(&coherence, "a"));
        sent(&coherence, &file(2));
        assert!(!change(&coherence, "a") && change(&coherence, "2"));
        coherence.kernel_moves_to(1, OsStr::new("b"));
        assert!(change(&coherence, "b"));
        let two_links = FileAttr { nlink: 2, ..file(3) };
        sent(&coherence, &two_links);
        assert!(change(&coherence, "any"), "it may be the other name");
    }

    #[test]
    fn names_that_do_not_fit_make_every_change_ask_and_get_no_lifetime() {
        let coherence = Coherence::with_room(20);
        let nothing = file(0);
        let mut number = 0;
        let refused = loop {
            number += 1;
            let name = number.to_string();
            if answer(&coherence, &name, &nothing, coherence.mark()).1.is_zero() {
                break name;
            }
        };
        assert!(change(&coherence, &refused) && change(&coherence, "any"));
    }

    #[test]
    fn an_access_control_list_makes_the_kernel_hear_of_the_next_change() {
        let coherence = Coherence::new();
        let holds = |ino| shard(&coherence.inodes, ino).lock().known[&ino].attrs != 0;
        coherence.asked_for_acl(1);
        assert!(holds(1));
        coherence.changed_attr(1);
        assert!(!holds(1));
    }

    #[test]
    fn the_kernel_knows_an_inode_until_it_has_given_up_every_reference() {
        let coherence = Coherence::new();
        assert!(coherence.kernel_knows(1), "the root is known from the start");
        assert!(!coherence.kernel_knows(7));
        sent(&coherence, &file(7));
        sent(&coherence, &file(7));
        coherence.forgotten(7, 1);
        assert!(coherence.kernel_knows(7));
        coherence.forgotten(7, 1);
        assert!(!coherence.kernel_knows(7));
        coherence.forgotten(7, 1);
        coherence.forgotten(1, u64::MAX);
        assert!(coherence.kernel_knows(1));
    }

    #[test]
    fn a_name_that_does_not_exist_is_no_reference() {
        let coherence = Coherence::new();
        sent(&coherence, &file(0));
        assert!(!coherence.kernel_knows(0));
    }

    #[test]
    fn what_was_sent_long_ago_is_told_from_what_may_be_on_its_way() {
        let mut inodes = Inodes { answers: u32::MAX - 1, noted: u32::MAX - 1, ..Inodes::default() };
        inodes.noted_before = inodes.noted;
        let early = inodes.next_answer();
        let start = inodes.noted_at.unwrap();
        let late = inodes.next_answer();
        assert!(!inodes.is_old(early, start) && !inodes.is_old(late, start + ARRIVAL));
        assert!(inodes.is_old(early, start + 2 * ARRIVAL) && inodes.is_old(late, start + 2 * ARRIVAL));
        // As if all that had been long ago.
        inodes.noted_at = start.checked_sub(ARRIVAL);
        let next = inodes.next_answer();
        let now = inodes.noted_at.unwrap();
        assert!(!inodes.is_old(early, now) && !inodes.is_old(next, now));
        assert!(inodes.is_old(late, now + ARRIVAL) && !inodes.is_old(next, now + ARRIVAL));
        inodes.noted_at = now.checked_sub(ARRIVAL);
        let last = inodes.next_answer();
        assert!(
            inodes.is_old(late, inodes.noted_at.unwrap()) && !inodes.is_old(next, inodes.noted_at.unwrap())
        );
        assert!(!inodes.is_old(last, inodes.noted_at.unwrap() + ARRIVAL));
    }

    #[test]
    fn forgotten_inodes_give_their_memory_back() {
        let coherence = Coherence::new();
        for ino in 2..1_000_000 {
            let attr = file(ino);
            let answer =
                Answer { attr: &attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: true, created: false };
            coherence.entry(None, &answer, 0);
        }
        for ino in 2..1_000_000 {
            coherence.forgotten(ino, 1);
        }
        let room: usize = coherence.inodes.iter().map(|shard| shard.0.lock().known.capacity()).sum();
        assert!(room < 500_000, "{room}");
    }

    #[test]
    fn an_inode_is_open_until_every_open_is_released() {
        let coherence = Coherence::new();
        coherence.opened(5, OpenMode::Direct, true);
        coherence.opened(5, OpenMode::Cached, true);
        assert!(coherence.kernel_opens(5).cached && !coherence.kernel_opens(5).passthrough);
        coherence.released(5);
        assert!(coherence.kernel_has_open(5));
        coherence.released(5);
        assert!(!coherence.kernel_has_open(5));
        coherence.opened(5, OpenMode::Passthrough, false);
        assert!(!coherence.kernel_opens(5).cached && coherence.kernel_opens(5).passthrough);
        assert!(coherence.is_used_unseen(5) && !coherence.is_written_unseen(5));
        coherence.opened(5, OpenMode::Passthrough, true);
        coherence.released(5);
        assert!(coherence.is_written_unseen(5), "which of the two was released is not known");
        coherence.released(5);
        assert!(!coherence.is_used_unseen(5) && !coherence.is_written_unseen(5));
    }

    #[test]
    fn a_writable_grant_ends_the_lifetimes_of_that_regular_file_alone() {
        let coherence = Coherence::new();
        coherence.note_granted_write(8);
        assert_eq!(sent(&coherence, &file(8)).0, Duration::ZERO);
        assert_eq!(coherence.attr(8, &file(8), HOUR, coherence.mark()), Duration::ZERO);
        assert_eq!(sent(&coherence, &file(9)).0, HOUR);
        let (flags, mode) = coherence.open_flags(8, FopenFlags::FOPEN_KEEP_CACHE, false);
        assert_eq!((flags, mode), (FopenFlags::FOPEN_DIRECT_IO, OpenMode::Direct));
        assert_eq!(
            coherence.open_flags(8, FopenFlags::empty(), true),
            (FopenFlags::empty(), OpenMode::Passthrough)
        );
    }

    const READS: Access = Access { writes: false, appends: false, executes: false };
    const WRITES: Access = Access { writes: true, appends: false, executes: false };

    #[test]
    fn a_file_is_opened_virtually_unless_the_kernel_writes_to_it_where_nobody_sees() {
        let coherence = Arc::new(Coherence::new());
        let opens = |mode, writes| {
            coherence.opened(5, mode, writes);
            let virtually = coherence.open_virtually(5, false).is_some();
            coherence.released(5);
            virtually
        };
        assert!(opens(OpenMode::Cached, false) && opens(OpenMode::Direct, true));
        assert!(!opens(OpenMode::Cached, true) && !opens(OpenMode::Passthrough, false));
        assert!(opens(OpenMode::Direct, true), "what the kernel has closed does not count");
        assert!(coherence.opens.iter().all(|shard| shard.0.lock().is_empty()));
    }

    #[test]
    fn while_a_file_is_open_virtually_the_kernel_writes_to_it_directly_and_never_to_its_backing_file() {
        let coherence = Arc::new(Coherence::new());
        let flags = |access, passthrough| {
            let opened = coherence.open_file(5, FopenFlags::empty(), passthrough, access, None);
            coherence.released(5);
            opened
        };
        assert_eq!(flags(WRITES, false), (FopenFlags::empty(), false));
        assert_eq!(flags(WRITES, true), (FopenFlags::empty(), true));
        let open = coherence.open_virtually(5, false);
        assert_eq!(flags(WRITES, true), (FopenFlags::FOPEN_DIRECT_IO, false));
        assert_eq!(flags(READS, true), (FopenFlags::empty(), false));
        drop(open);
        assert_eq!(flags(WRITES, true), (FopenFlags::empty(), true));
        coherence.opened(5, OpenMode::Cached, false);
        assert!(!flags(READS, true).1, "the kernel would fail the open");
        coherence.released(5);
    }

    #[test]
    fn the_page_cache_serves_what_nobody_may_change_unseen() {
        let coherence = Coherence::new();
        coherence.opened(4, OpenMode::Passthrough, false);
        assert!(!coherence.may_read_pages(4), "the kernel would fail the open");
        coherence.note_granted_write(5);
        assert!(!coherence.may_read_pages(5));
        assert!(coherence.may_read_pages(6));
        assert!(coherence.kernel_opens(6).cached, "who grants it sees that");
        assert_eq!(
            coherence.open_file(6, FopenFlags::empty(), true, READS, None),
            (FopenFlags::empty(), false)
        );
    }

    #[test]
    fn files_are_appended_to_directly_while_a_client_is_connected() {
        let coherence = Coherence::new();
        let appends = Access::of(libc::O_WRONLY | libc::O_APPEND);
        assert_eq!(Access::of(libc::O_RDONLY | libc::O_APPEND), READS);
        let direct = |ino| {
            let opened = coherence.open_file(ino, FopenFlags::empty(), false, appends, None).0;
            opened.contains(FopenFlags::FOPEN_DIRECT_IO)
        };
        assert!(!direct(5));
        coherence.bypass_connected();
        assert!(direct(6));
    }

    #[test]
    fn the_kernel_is_not_asked_for_a_files_end_that_the_bypass_moves() {
        let coherence = Arc::new(Coherence::new());
        coherence.opened(5, OpenMode::Direct, true);
        coherence.opened(6, OpenMode::Direct, true);
        assert!(coherence.append_turn(5).is_none());
        let reader = coherence.open_virtually(5, false).unwrap();
        assert!(coherence.append_turn(5).is_none());
        let writer = coherence.open_virtually(5, true).unwrap();
        assert!(Arc::ptr_eq(&coherence.append_turn(5).unwrap(), writer.turn()), "they take turns");
        drop((reader, writer));
        assert!(coherence.append_turn(5).is_none(), "nothing was written");
        coherence.bypass_wrote(5, 0, b"x").unwrap();
        assert!(coherence.append_turn(5).is_some() && coherence.append_turn(6).is_none());
        coherence.released(5);
        coherence.opened(5, OpenMode::Direct, true);
        assert!(coherence.append_turn(5).is_none(), "who opens it anew knows where it ends");
    }

    #[test]
    fn very_many_writable_grants_stand_for_every_regular_file() {
        let coherence = Coherence::new();
        for ino in 0..GRANT_LIMIT as u64 {
            coherence.note_granted_write(1_000 + ino);
        }
        assert_eq!(sent(&coherence, &file(2)).0, Duration::ZERO);
        assert_eq!(sent(&coherence, &attr(3, FileType::Directory)).0, HOUR);
    }

    #[test]
    fn reading_changes_a_time_of_access_that_is_old_or_before_the_last_change() {
        let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
        let changed = |accessed, modified, status| {
            let attr = FileAttr { atime: at(accessed), mtime: at(modified), ctime: at(status), ..file(2) };
            reading_changes_atime(&attr, at(100))
        };
        assert!(!changed(99, 98, 97));
        assert!(changed(98, 98, 97), "read as late as written");
        assert!(changed(98, 97, 98));
        assert!(changed(76, 1, 1), "a day ago");
        assert!(!changed(77, 1, 1));
        assert!(!changed(101, 1, 1), "in the future");
    }

    #[test]
    fn when_a_file_was_accessed_that_is_read_unseen_is_asked_until_reading_changes_it_no_more() {
        let coherence = Coherence::new();
        let unread = file(2);
        let read = FileAttr { atime: SystemTime::now(), ..unread };
        assert_eq!(sent(&coherence, &unread).0, HOUR);
        coherence.note_granted(2);
        assert_eq!(shard(&coherence.inodes, 2).lock().known[&2].attrs, 0, "the kernel was told");
        assert_eq!(sent(&coherence, &unread).0, Duration::ZERO);
        assert_eq!(sent(&coherence, &read).0, HOUR);
    }

    #[test]
    fn pages_that_the_kernel_may_keep_are_dropped_after_a_change_until_it_forgets_the_file() {
        let coherence = Coherence::new();
        let keep = FopenFlags::FOPEN_KEEP_CACHE;
        sent(&coherence, &file(2));
        assert_eq!(coherence.open_file(2, keep, false, READS, None), (FopenFlags::empty(), false));
        coherence.released(2);
        assert!(coherence.kernel_opens(2).paged() && !coherence.kernel_opens(2).cached);
        assert_eq!(coherence.open_file(2, keep, false, READS, None), (keep, false));
        coherence.released(2);
        coherence.forgotten(2, 1);
        assert!(!coherence.kernel_opens(2).paged());
        coherence.open_file(3, FopenFlags::empty(), false, READS, None);
        coherence.released(3);
        assert!(!coherence.kernel_opens(3).paged(), "the next open drops them");
        let next = coherence.open_file(3, keep, false, READS, None);
        assert_eq!(next, (FopenFlags::empty(), false), "whatever the file system says");
        coherence.released(3);
        assert!(coherence.kernel_opens(3).paged());
    }
}
