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
mod grants;
mod listings;
mod names;
mod notify;
mod opens;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use fuser::{FileAttr, FileType, FopenFlags};
use hashbrown::HashMap;
use log::{debug, warn};
use parking_lot::Mutex;

use self::expired::Expired;
use self::listings::Listings;
use self::names::{Entered, Known as KnownName, Names, Stands};
use crate::kernel::below;
use crate::mutant;

use self::notify::{NOTIFY_INC_EPOCH, gone};
use self::opens::OpenInode;

use self::grants::Grants;
pub(crate) use self::grants::{PendingGrant, reading_changes_atime, unread_for};
pub(crate) use self::names::{Creation, Key};
pub(crate) use self::opens::{Access, Turn, VirtualOpen};

/// The bypass' cache, as the kernel road sees it.
pub(crate) trait Invalidate: Send + Sync {
    /// Forget the name `name` in the directory `parent`, known or known not to exist, and the attributes of
    /// the inode that it named.
    fn entry(&self, parent: u64, name: &OsStr);
    /// Forget the attributes of an inode.
    fn attr(&self, ino: u64);
    /// Forget the time of last access of an inode.
    fn atime(&self, ino: u64);
    /// An inode is read, or written to, unseen from here on, which has been noted.
    fn unseen(&self, ino: u64);
    /// Not everybody may search a directory, or perhaps this inode is one, any more; or something is mounted on one. `None` for one
    /// that is not known.
    fn closed(&self, ino: Option<u64>);
    /// What may be a directory has been moved to another directory.
    fn moved_to(&self, directory: u64);
    /// Give up the references to inodes that were forgotten so far. The other methods do not, because they are called
    /// while the file system answers, perhaps under locks that its `forget` takes.
    fn pay(&self);
}

/// Shards of the inode tables; a power of two.
const SHARDS: usize = 256;

/// How long a notification about an inode is repeated that the kernel was sent but does not find yet.
const ARRIVAL: Duration = Duration::from_secs(5);
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
    /// The kernel can open directories without asking.
    can_open_directories: AtomicBool,
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
    grants: Grants,
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
            can_open_directories: AtomicBool::new(false),
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
            grants: Grants::new(),
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
        let reserve = |ino, creation| self.reserve(ino, creation);
        let mut entered = self.names.enter(key, stands, mark, &reserve);
        if entered == Entered::Full {
            self.names_lost.store(true, Ordering::SeqCst);
            if self.start_over() {
                entered = self.names.enter(key, stands, mark, &reserve);
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
        self.begin(parent, name, |key, ticket| self.names.begin(key, ticket, expects))
    }

    /// The bypass is about to create a file and to open it. Until the change has ended, whatever the kernel opens of what it
    /// finds by this name gets on with that.
    pub(crate) fn creating<'a>(
        &'a self,
        parent: u64,
        name: &'a OsStr,
        creation: Option<Creation>,
    ) -> Changing<'a> {
        self.begin(parent, name, |key, ticket| match creation {
            Some(creation) => self.names.create(key, ticket, creation),
            None => self.names.begin(key, ticket, false),
        })
    }

    fn begin<'a>(
        &'a self,
        parent: u64,
        name: &'a OsStr,
        note: impl FnOnce(Key, u64) -> Option<bool>,
    ) -> Changing<'a> {
        let (key, ticket) = (self.key(parent, name), self.tickets.fetch_add(1, Ordering::Relaxed));
        let links = self.links.load(Ordering::SeqCst);
        let named = note(key, ticket).unwrap_or_else(|| {
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
            self.names.forgotten(key, age);
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

    /// The flags for a directory that the kernel opens.
    pub(crate) fn open_directory(&self, ino: u64, mut flags: FopenFlags) -> FopenFlags {
        if flags.contains(FopenFlags::FOPEN_CACHE_DIR) && !self.listings.opens(ino) {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
        }
        flags
    }

    /// What the kernel offers: whether it opens directories without asking if it is told so, and holds the lock of those that it
    /// moves.
    pub(crate) fn kernel_can(&self, open_directories_itself: bool) {
        self.can_open_directories.store(open_directories_itself, Ordering::Relaxed);
    }

    /// The file system says that directories need not be opened. Whether the kernel may be told so: from then on it opens
    /// them without asking.
    pub(crate) fn directories_need_no_open(&self) -> bool {
        let can = self.can_open_directories.load(Ordering::Relaxed);
        if can {
            self.listings.opens_no_more();
        }
        can
    }

    /// The kernel reads a directory. To be called before the file system is asked.
    pub(crate) fn kernel_lists(&self, directory: u64) {
        self.listings.reads(directory);
    }

    /// Whether the kernel may have listings of directories in its page cache.
    pub(crate) fn kernel_keeps_listings(&self) -> bool {
        self.listings.any()
    }

    /// The kernel has moved an inode. To be called before it is answered.
    pub(crate) fn kernel_moved(&self, ino: u64) {
        if !mutant::leaves_out("kernel road: moved listings") && self.listings.moved(ino) {
            // Nobody reads it meanwhile: the kernel holds its lock until it is answered (`vfs_rename`).
            self.forget_listing(ino);
        }
    }
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
    /// knows. `stood_for` is the inode that it stood for before, if that is known. The inode, if any, that the kernel got by this name
    /// meanwhile; its attributes are forgotten.
    pub(crate) fn changed(mut self, keeps: bool, stood_for: Option<(u64, FileType)>) -> Option<u64> {
        let coherence = self.coherence;
        self.over = true;
        let known = coherence.names.end(self.key, self.ticket, Some(coherence.tick()), keeps);
        coherence.unreserve(&known.reserved);
        // Also of a name that stands for what the kernel knows: the kernel knows that by another name. And of one that the filter has
        // lost: the kernel asks before it uses it, but who is there, or has it open, has its path (`d_path`).
        let lost = coherence.moves_lost.load(Ordering::SeqCst)
            || !known.named
                && coherence.names_lost.load(Ordering::SeqCst)
                && stood_for.is_some_and(|(ino, _)| coherence.kernel_knows(ino));
        let named = (known.named || lost) && !mutant::leaves_out("bypass: names");
        if named {
            let file = stood_for.filter(|(_, kind)| *kind != FileType::Directory && !keeps && !lost);
            self.tell(&known, file.map(|(ino, _)| ino), keeps);
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
    fn tell(&self, known: &KnownName, file: Option<u64>, keeps: bool) {
        let (coherence, name) = (self.coherence, self.name.as_encoded_bytes());
        // Of a name that was sent once no other answer is on its way. Who has the file open is to see that it is gone
        // (`d_path`).
        let expires =
            |ino: &u64| known.once && coherence.expired.are_swept() && coherence.is_closed_in_kernel(*ino);
        match file.filter(expires) {
            Some(ino) => {
                if coherence.expire_name(self.parent, name) {
                    coherence.names.expired(self.key);
                    coherence.expired.expired(ino, self.key, known.age);
                }
            }
            None => {
                // One that is not in the filter may be entered meanwhile, by an answer that is on its way.
                if coherence.drop_name(self.parent, name) && !keeps && known.named {
                    coherence.names.dropped(self.key, known.age);
                }
            }
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if !self.over {
            let known = self.coherence.names.end(self.key, self.ticket, None, false);
            self.coherence.unreserve(&known.reserved);
        }
    }
}

/// The running kernel's version.
fn kernel_version() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests;
