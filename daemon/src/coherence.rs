//! What keeps the two roads telling the same story.
//!
//! While a bypass client is connected the kernel gets every answer with a lifetime of zero, so that nothing it
//! might remember can be overtaken by a change that it did not see. [`Coherence`] owns that gate, knows what
//! the kernel may still hold from before, and makes it forget when the first client connects. In the other
//! direction every change that arrives through the kernel is reported to the bypass' cache ([`Invalidate`])
//! before the kernel gets its reply.
//!
//! Two rules keep this free of deadlocks. No notification is sent to the kernel while a lock is held that a
//! request of the kernel's may need, because the kernel answers a notification only once it has the inode's
//! locks, which a request in flight may hold. And nothing here calls the file system.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{FileAttr, FileType, FopenFlags};
use hashbrown::{HashMap, HashSet};
use log::{debug, warn};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use rustix::io::Errno;

use crate::kernel::below;

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
/// `NAME_MAX`: no engine serves a longer name.
const NAME_MAX: usize = 255;
/// `FUSE_NOTIFY_INC_EPOCH`, Linux 6.16.
const NOTIFY_INC_EPOCH: i32 = 8;
/// Size of `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// The longest body of a notification that is sent from here.
const NOTIFICATION_MAX: usize = 16 + NAME_MAX + 1;

/// Kernel threads rarely exceed this; a power of two.
const GATES: usize = 16;
/// Shards of the inode tables; a power of two.
const SHARDS: usize = 64;

/// The longest lifetime of a name while the kernel cannot be told to drop all names at once.
const ENTRY_TTL_WITHOUT_EPOCH: Duration = Duration::from_secs(1);
/// A program that has been woken by a reply stores what the reply said only once it runs. The kernel counts
/// the lifetime from then, and a notification that comes earlier misses it. So the first client waits until
/// the last reply with a lifetime is this old.
const SETTLE: Duration = Duration::from_millis(20);
/// How much longer than computed here a lifetime may last in the kernel, which rounds up to its clock tick.
const SLACK: Duration = Duration::from_millis(100);
/// How long a client waits for directory pages under construction.
const PAGE_WAIT: Duration = Duration::from_secs(10);
/// How long the first client waits for names to expire that the kernel cannot be made to drop.
const NAME_WAIT: Duration = Duration::from_secs(2);
/// Above this many inodes with writable grants every regular file counts as one.
const GRANT_LIMIT: usize = 1_000_000;

/// Why a client may not be served by the bypass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Names that the kernel holds for long could only be dropped together with a mount on one of them.
    #[error(
        "the kernel remembers names for {}s more, and cannot be made to forget them without unmounting {}; \
         unmount that, or mount with shorter lifetimes",
        left.as_secs(), below.display()
    )]
    MountBelow {
        /// The mount.
        below: PathBuf,
        /// When the last name expires.
        left: Duration,
    },
    /// The kernel took `FUSE_NOTIFY_INC_EPOCH` when the file system was mounted and refuses it today.
    #[error("the kernel refuses to forget names: {0}")]
    Kernel(#[from] io::Error),
}

#[repr(align(128))]
#[derive(Debug, Default)]
struct Padded<T>(T);

/// What is known of an inode that the kernel holds a reference to.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The kernel's lookup count; `u32::MAX` never goes down again.
    nlookup: u32,
    /// When its attributes have expired in the kernel, in tenths of a second; `u32::MAX` is never.
    attr_until: u32,
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
        self.cached || self.direct
    }

    /// The kernel's last file is closed. Whether the bypass has none either.
    fn kernel_closed(&mut self) -> bool {
        *self = Self { virtuals: self.virtuals, virtual_writers: self.virtual_writers, ..Self::default() };
        self.virtuals == 0
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
    /// Whether bypass clients are connected. Copies, so that kernel threads do not share a cache line; a
    /// reply holds its thread's copy for reading until it is sent.
    active: [Padded<RwLock<bool>>; GATES],
    /// The connected clients. Held during the whole transition from none to one, so that the second waits for
    /// what the first does; no request of the kernel's takes it.
    clients: Mutex<usize>,
    device: Mutex<Option<Arc<OwnedFd>>>,
    disconnected: AtomicBool,
    mountpoint: OnceLock<PathBuf>,
    /// The kernel takes `FUSE_NOTIFY_INC_EPOCH`.
    epochs: AtomicBool,
    start: Instant,
    /// When the last name that was sent with a lifetime expires, in milliseconds since `start`.
    entries_until: AtomicU64,
    /// The same for attributes.
    attrs_until: AtomicU64,
    /// When the last reply with a lifetime was made, in milliseconds since `start`.
    last_lifetime: AtomicU64,
    /// `readdirplus` replies that contain lifetimes and are not sent yet.
    pages: Mutex<usize>,
    pages_sent: Condvar,
    known: Shards<HashMap<u64, Known>>,
    opens: Shards<HashMap<u64, OpenInode>>,
    /// How many inodes the kernel writes to unseen.
    written_unseen: AtomicUsize,
    /// How many it reads, or writes to, unseen.
    used_unseen: AtomicUsize,
    granted: Shards<HashSet<u64>>,
    granted_count: AtomicUsize,
    cache: OnceLock<Arc<dyn Invalidate>>,
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

/// Which copy of the gate the calling thread uses.
fn own_gate() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) & (GATES - 1));
    OWN.with(|own| *own)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Coherence {
    /// The state of a mount that is about to begin: nothing known but the root, no client.
    pub(crate) fn new() -> Self {
        let coherence = Self {
            active: Default::default(),
            clients: Mutex::new(0),
            device: Mutex::new(None),
            disconnected: AtomicBool::new(false),
            mountpoint: OnceLock::new(),
            epochs: AtomicBool::new(false),
            start: Instant::now(),
            entries_until: AtomicU64::new(0),
            attrs_until: AtomicU64::new(0),
            last_lifetime: AtomicU64::new(0),
            pages: Mutex::new(0),
            pages_sent: Condvar::new(),
            known: shards(),
            opens: shards(),
            written_unseen: AtomicUsize::new(0),
            used_unseen: AtomicUsize::new(0),
            granted: shards(),
            granted_count: AtomicUsize::new(0),
            cache: OnceLock::new(),
        };
        // The kernel holds the root from the mount to the unmount, without a lookup.
        let root = Known { nlookup: u32::MAX, attr_until: 0 };
        shard(&coherence.known, 1).lock().insert(1, root);
        coherence
    }

    /// Notifications go to this /dev/fuse descriptor from now on. Finds out whether the kernel knows epochs.
    pub(crate) fn attach(&self, device: OwnedFd, mountpoint: Option<PathBuf>) {
        if let Some(mountpoint) = mountpoint {
            self.mountpoint.get_or_init(|| mountpoint);
        }
        *self.device.lock() = Some(Arc::new(device));
        // Harmless: a young mount has no names that could be dropped.
        let known = match self.notify(NOTIFY_INC_EPOCH, &[]) {
            Ok(()) => true,
            Err(error) => {
                debug!("this kernel cannot drop all names at once ({error}); names live 1 s at most");
                false
            }
        };
        self.epochs.store(known, Ordering::Relaxed);
    }

    /// The session is over: no more notifications, and the descriptor may close.
    pub(crate) fn detach(&self) {
        *self.device.lock() = None;
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

    /// Reports changes on the kernel road to `cache`. The first call counts.
    pub(crate) fn set_cache(&self, cache: Arc<dyn Invalidate>) {
        if self.cache.set(cache).is_err() {
            warn!("the bypass' cache was set twice; the first one stays");
        }
    }

    /// The bypass' cache, if there is a bypass.
    #[inline]
    pub(crate) fn cache(&self) -> Option<&dyn Invalidate> {
        self.cache.get().map(|cache| &**cache)
    }

    // --- The gate ---

    /// Opened by every reply that may contain lifetimes, and held until the reply is with the kernel.
    pub(crate) fn gate(&self) -> Gate<'_> {
        Gate { coherence: self, active: self.active[own_gate()].0.read() }
    }

    fn set_active(&self, active: bool) {
        for gate in &self.active {
            // Waits for the replies that are on their way.
            *gate.0.write() = active;
        }
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }

    /// A bypass client has connected. Returns once the kernel has forgotten, or been told to forget, all that
    /// it could answer without asking; only then may the client be served. Usually that takes microseconds,
    /// right after kernel requests 20 ms, and up to 2 s where the kernel's names must expire by themselves.
    ///
    /// # Errors
    /// The client must not be served, and must not be counted out by
    /// [`bypass_disconnected`](Self::bypass_disconnected).
    pub(crate) fn bypass_connected(&self) -> Result<(), Refusal> {
        let mut clients = self.clients.lock();
        if *clients == 0 {
            self.set_active(true);
            if let Err(refusal) = self.forget_lifetimes() {
                self.set_active(false);
                return Err(refusal);
            }
        }
        *clients += 1;
        Ok(())
    }

    /// A bypass client has gone. After the last one, answers to the kernel have lifetimes again.
    pub(crate) fn bypass_disconnected(&self) {
        let mut clients = self.clients.lock();
        *clients = clients.saturating_sub(1);
        if *clients == 0 {
            self.set_active(false);
        }
    }

    /// Makes the kernel forget every name and attribute that it got with a lifetime. The gate is closed.
    fn forget_lifetimes(&self) -> Result<(), Refusal> {
        self.wait_for_pages();
        let last = self.last_lifetime.load(Ordering::Relaxed);
        if last != 0 {
            self.sleep_until(last.saturating_add(millis(SETTLE)));
        }
        self.forget_names()?;
        self.forget_attributes();
        Ok(())
    }

    fn sleep_until(&self, until: u64) {
        let left = until.saturating_sub(self.now());
        if left != 0 {
            std::thread::sleep(Duration::from_millis(left));
        }
    }

    /// Every name at once by an epoch (`fuse_notify_inc_epoch`), unless all have expired or will soon.
    fn forget_names(&self) -> Result<(), Refusal> {
        let until = self.entries_until.load(Ordering::Relaxed);
        let left = until.saturating_sub(self.now());
        if left == 0 {
            return Ok(());
        }
        if !self.epochs.load(Ordering::Relaxed) {
            // At most `ENTRY_TTL_WITHOUT_EPOCH` and some slack.
            self.sleep_until(until);
            return Ok(());
        }
        // A name of an old epoch is dropped by `d_invalidate`, which unmounts what is mounted on it or below
        // it, where a name that has expired would be looked up again and stay. Mounts in other mount name
        // spaces suffer too, but cannot be seen from here.
        if let Some(below) = self.mount_below() {
            if left > millis(NAME_WAIT) {
                return Err(Refusal::MountBelow { below, left: Duration::from_millis(left) });
            }
            self.sleep_until(until);
            return Ok(());
        }
        match self.notify(NOTIFY_INC_EPOCH, &[]) {
            Err(error) if !gone(error) => Err(Refusal::Kernel(error.into())),
            _ => Ok(()),
        }
    }

    fn mount_below(&self) -> Option<PathBuf> {
        let mountpoint = self.mountpoint.get()?;
        match std::fs::read("/proc/self/mountinfo") {
            Ok(table) => below::first_below(&table, mountpoint),
            Err(error) => {
                warn!("cannot look for mounts below {}: {error}", mountpoint.display());
                None
            }
        }
    }

    /// Inode by inode: attributes that have not expired, and the pages of files that are open through the
    /// page cache.
    fn forget_attributes(&self) {
        // Collected shard by shard, because no lock may be held during a notification.
        let now = self.now();
        if self.attrs_until.load(Ordering::Relaxed) > now {
            for shard in &self.known {
                let live: Vec<u64> = shard
                    .0
                    .lock()
                    .iter()
                    .filter(|(_, known)| {
                        u64::from(known.attr_until) * 100 > now || known.attr_until == u32::MAX
                    })
                    .map(|(ino, _)| *ino)
                    .collect();
                for ino in live {
                    if self.inval_inode(ino, -1, 0).is_err_and(gone) {
                        return;
                    }
                }
            }
        }
        for shard in &self.opens {
            let cached: Vec<u64> =
                shard.0.lock().iter().filter(|(_, open)| open.opens.cached).map(|(ino, _)| *ino).collect();
            for ino in cached {
                if self.inval_inode(ino, 0, 0).is_err_and(gone) {
                    return;
                }
            }
        }
    }

    fn wait_for_pages(&self) {
        let deadline = Instant::now() + PAGE_WAIT;
        let mut pages = self.pages.lock();
        while *pages != 0 {
            if self.pages_sent.wait_until(&mut pages, deadline).timed_out() {
                warn!("{} readdirplus replies are older than {PAGE_WAIT:?}; not waiting for them", *pages);
                return;
            }
        }
    }

    // --- Notifications ---

    /// Writes one notification. `ENOENT` (the kernel does not know the inode) is success.
    fn notify(&self, code: i32, body: &[u8]) -> Result<(), Errno> {
        let Some(device) = self.device.lock().clone() else { return Err(Errno::NOTCONN) };
        let mut message = [0u8; OUT_HEADER + NOTIFICATION_MAX];
        let len = OUT_HEADER + body.len();
        message[0..4].copy_from_slice(&(len as u32).to_ne_bytes());
        message[4..8].copy_from_slice(&code.to_ne_bytes());
        message[OUT_HEADER..len].copy_from_slice(body);
        loop {
            match rustix::io::write(device.as_fd(), &message[..len]) {
                Ok(_) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// `fuse_reverse_inval_inode`: drops the attributes; with `offset >= 0` the pages from there on, too.
    fn inval_inode(&self, ino: u64, offset: i64, len: i64) -> Result<(), Errno> {
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

    /// Drops a name, and leaves its inode alone (`fuse_reverse_inval_entry`).
    pub(crate) fn drop_name(&self, parent: u64, name: &[u8]) {
        let mut body = [0u8; NOTIFICATION_MAX];
        let len = 16 + name.len().min(NAME_MAX) + 1;
        body[0..8].copy_from_slice(&parent.to_ne_bytes());
        body[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        body[16..len - 1].copy_from_slice(&name[..len - 17]);
        if let Err(error) = self.notify(NOTIFY_INVAL_ENTRY, &body[..len]) {
            gone(error);
        }
    }

    /// The bypass has changed the contents or the size of an inode. To be called before the change is
    /// answered: drops what the kernel's page cache holds of it.
    ///
    /// # Errors
    /// The kernel's, a closed session excepted. The contents that an open file shows may then be old.
    pub(crate) fn bypass_changed_data(&self, ino: u64) -> io::Result<()> {
        self.bypass_wrote(ino, 0, 0)
    }

    /// As [`bypass_changed_data`](Self::bypass_changed_data), for `len` bytes at `offset`; `len` 0 is to the end.
    ///
    /// # Errors
    /// As for it.
    pub(crate) fn bypass_wrote(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        let opens = match shard(&self.opens, ino).lock().get_mut(&ino) {
            Some(open) => {
                open.opens.resized |= open.opens.writer;
                open.opens
            }
            None => return Ok(()),
        };
        if !opens.paged() {
            return Ok(());
        }
        self.drop_pages(ino, offset, len)
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

    /// The bypass has taken a name away from an inode. If the kernel knows the inode, its dentry of that name would
    /// hold it for as long as nobody asks for the name: a removed file would keep its space.
    pub(crate) fn bypass_removed_name(&self, parent: u64, name: &OsStr, ino: u64) {
        if self.kernel_knows(ino) {
            // The notification waits for the directory's lock. Whoever has it waits for the threads of the kernel road, not
            // for this one.
            self.drop_name(parent, name.as_encoded_bytes());
        }
    }

    // --- What the kernel holds ---

    fn looked_up(&self, ino: u64, attr_until: u32) {
        let mut known = shard(&self.known, ino).lock();
        let known = known.entry(ino).or_insert(Known { nlookup: 0, attr_until: 0 });
        known.nlookup = known.nlookup.saturating_add(1);
        known.attr_until = known.attr_until.max(attr_until);
    }

    /// The kernel has given up `count` references.
    pub(crate) fn forgotten(&self, ino: u64, count: u64) {
        let mut shard = shard(&self.known, ino).lock();
        let Some(known) = shard.get_mut(&ino) else { return };
        if known.nlookup == u32::MAX {
            return;
        }
        known.nlookup = known.nlookup.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        if known.nlookup == 0 {
            shard.remove(&ino);
            if shard.capacity() > 1024 && shard.len() < shard.capacity() / 8 {
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
        }
    }

    /// How many inodes the kernel holds references to.
    pub(crate) fn known_inodes(&self) -> usize {
        self.known.iter().map(|shard| shard.0.lock().len()).sum()
    }

    /// Whether the kernel holds a reference to an inode.
    pub(crate) fn kernel_knows(&self, ino: u64) -> bool {
        shard(&self.known, ino).lock().contains_key(&ino)
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
        if self.is_used_unseen(ino)
            && let Some(cache) = self.cache()
        {
            match self.is_written_unseen(ino) {
                true => cache.attr(ino),
                false => cache.atime(ino),
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
                if open.opens.kernel_closed() {
                    shard.remove(&ino);
                }
            }
        }
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
            if open.opens.virtuals == 0 && open.opens.total == 0 {
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

    // --- Writable grants ---

    /// A client gets, or may get at any time, a writable descriptor of the backing file: from now on the
    /// file's size, times and contents change unseen.
    pub(crate) fn note_granted_write(&self, ino: u64) {
        if self.granted_count.load(Ordering::Relaxed) >= GRANT_LIMIT {
            return;
        }
        if shard(&self.granted, ino).lock().insert(ino) {
            let count = self.granted_count.fetch_add(1, Ordering::Relaxed) + 1;
            if count == GRANT_LIMIT {
                debug!("{GRANT_LIMIT} files have writable grants; all regular files count as such now");
            }
        }
    }

    /// Whether a regular file may change unseen. Meaningless for other kinds of file.
    pub(crate) fn is_granted_write(&self, ino: u64) -> bool {
        match self.granted_count.load(Ordering::Relaxed) {
            0 => false,
            GRANT_LIMIT.. => true,
            _ => shard(&self.granted, ino).lock().contains(&ino),
        }
    }
}

/// A reply's view of the gate. As long as it exists no client's connection completes.
pub(crate) struct Gate<'a> {
    coherence: &'a Coherence,
    active: RwLockReadGuard<'a, bool>,
}

impl Gate<'_> {
    /// The lifetimes to send with an entry, attributes first; counts the kernel's reference.
    pub(crate) fn entry(
        &self,
        attr: &FileAttr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> (Duration, Duration) {
        let lifetimes = self.lifetimes(attr, attr_ttl, entry_ttl);
        if attr.ino.0 != 0 {
            self.coherence.looked_up(attr.ino.0, tenths(self.note_attr(lifetimes.0)));
        }
        self.note_entry(lifetimes.1);
        lifetimes
    }

    /// The lifetimes to send with an entry, without counting anything.
    pub(crate) fn lifetimes(
        &self,
        attr: &FileAttr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> (Duration, Duration) {
        if *self.active {
            return (Duration::ZERO, Duration::ZERO);
        }
        let entry_ttl = if self.coherence.epochs.load(Ordering::Relaxed) {
            entry_ttl
        } else {
            entry_ttl.min(ENTRY_TTL_WITHOUT_EPOCH)
        };
        (self.attr_ttl(attr.ino.0, attr, attr_ttl), entry_ttl)
    }

    /// The lifetime to send with the attributes of `ino`.
    pub(crate) fn attr(&self, ino: u64, attr: &FileAttr, ttl: Duration) -> Duration {
        if *self.active {
            return Duration::ZERO;
        }
        let ttl = self.attr_ttl(ino, attr, ttl);
        let until = self.note_attr(ttl);
        if until != 0
            && let Some(known) = shard(&self.coherence.known, ino).lock().get_mut(&ino)
        {
            known.attr_until = known.attr_until.max(tenths(until));
        }
        ttl
    }

    /// Notes an entry of a `readdirplus` that is about to be sent with these lifetimes.
    pub(crate) fn page_entry(&self, ino: u64, lifetimes: (Duration, Duration)) {
        self.coherence.looked_up(ino, tenths(self.note_attr(lifetimes.0)));
        self.note_entry(lifetimes.1);
    }

    fn attr_ttl(&self, ino: u64, attr: &FileAttr, ttl: Duration) -> Duration {
        if attr.kind == FileType::RegularFile && self.coherence.is_granted_write(ino) {
            Duration::ZERO
        } else {
            ttl
        }
    }

    fn note_attr(&self, ttl: Duration) -> u64 {
        self.note(ttl, &self.coherence.attrs_until)
    }

    fn note_entry(&self, ttl: Duration) {
        self.note(ttl, &self.coherence.entries_until);
    }

    /// Remembers a lifetime's end; 0 if there is none.
    fn note(&self, ttl: Duration, horizon: &AtomicU64) -> u64 {
        if ttl.is_zero() {
            return 0;
        }
        let now = self.coherence.now().max(1);
        let until = now.saturating_add(millis(ttl)).saturating_add(millis(SLACK));
        // Relaxed suffices: who reads these has taken the gate for writing, which orders them.
        if horizon.load(Ordering::Relaxed) < until {
            horizon.fetch_max(until, Ordering::Relaxed);
        }
        self.coherence.last_lifetime.fetch_max(now, Ordering::Relaxed);
        until
    }

    /// The flags for a file that the kernel opens, and whether it may be served from its backing file by itself. Counts
    /// it.
    pub(crate) fn open_file(
        &self,
        ino: u64,
        mut flags: FopenFlags,
        passthrough: bool,
        access: Access,
    ) -> (FopenFlags, bool) {
        // Decided and counted at once: who opens the file virtually, or has it granted, sees this one or is seen.
        let mut shard = shard(&self.coherence.opens, ino).lock();
        let opens = &mut shard.entry(ino).or_default().opens;
        // The kernel serves all of an inode's open files from its backing file, or none: it fails opens that contradict
        // each other (`fuse_file_io_open`). What is open virtually may become the kernel's, and is served here then.
        let passthrough = passthrough && !opens.paged() && opens.virtuals == 0;
        // The page cache of a writer would hide what it writes through mappings, and where the file ends.
        let apart = (access.writes && opens.virtuals > 0) || (access.appends && *self.active);
        if !passthrough && apart {
            flags.insert(FopenFlags::FOPEN_DIRECT_IO);
        }
        let (flags, mode) = self.open_flags(ino, flags, passthrough);
        self.coherence.count_open(opens, mode, access);
        (flags, passthrough)
    }

    /// The flags to open with, and the mode that they mean.
    pub(crate) fn open_flags(
        &self,
        ino: u64,
        mut flags: FopenFlags,
        passthrough: bool,
    ) -> (FopenFlags, OpenMode) {
        if passthrough {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            return (flags, OpenMode::Passthrough);
        }
        if self.coherence.is_granted_write(ino) {
            flags.insert(FopenFlags::FOPEN_DIRECT_IO);
        }
        flags.remove(FopenFlags::FOPEN_CACHE_DIR);
        if *self.active || flags.contains(FopenFlags::FOPEN_DIRECT_IO) {
            flags.remove(FopenFlags::FOPEN_KEEP_CACHE);
        }
        let mode =
            if flags.contains(FopenFlags::FOPEN_DIRECT_IO) { OpenMode::Direct } else { OpenMode::Cached };
        (flags, mode)
    }
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

/// Whether the error says that there is no kernel to talk to any more; other errors are logged.
fn gone(error: Errno) -> bool {
    if matches!(error, Errno::NODEV | Errno::NOTCONN | Errno::BADF) {
        return true;
    }
    warn!("the kernel refused an invalidation: {error}");
    false
}

fn tenths(millis: u64) -> u32 {
    u32::try_from(millis.div_ceil(100)).unwrap_or(u32::MAX)
}

/// A `readdirplus` reply that contains lifetimes already but is not sent: as long as it exists no first
/// client's connection completes.
#[derive(Debug)]
pub(crate) struct Page(Arc<Coherence>);

impl Page {
    /// To be called while a gate is open.
    pub(crate) fn new(coherence: &Arc<Coherence>) -> Self {
        *coherence.pages.lock() += 1;
        Self(Arc::clone(coherence))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        *self.0.pages.lock() -= 1;
        self.0.pages_sent.notify_all();
    }
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

    /// Whether `connect` in another thread returns only after `release`.
    fn connects_only_after(coherence: &Coherence, release: impl FnOnce()) {
        let connected = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                coherence.bypass_connected().unwrap();
                connected.store(true, Ordering::SeqCst);
            });
            let until = Instant::now() + Duration::from_millis(50);
            while Instant::now() < until {
                assert!(!connected.load(Ordering::SeqCst));
                std::thread::yield_now();
            }
            release();
        });
        assert!(connected.load(Ordering::SeqCst));
    }

    #[test]
    fn lifetimes_are_sent_only_while_no_client_is_connected() {
        let coherence = Coherence::new();
        coherence.epochs.store(true, Ordering::Relaxed);
        assert_eq!(coherence.gate().lifetimes(&file(2), HOUR, HOUR), (HOUR, HOUR));
        coherence.bypass_connected().unwrap();
        coherence.bypass_connected().unwrap();
        coherence.bypass_disconnected();
        assert_eq!(coherence.gate().entry(&file(2), HOUR, HOUR), (Duration::ZERO, Duration::ZERO));
        assert_eq!(coherence.gate().attr(2, &file(2), HOUR), Duration::ZERO);
        coherence.bypass_disconnected();
        assert_eq!(coherence.gate().attr(2, &file(2), HOUR), HOUR);
    }

    #[test]
    fn names_live_a_second_at_most_in_a_kernel_without_epochs() {
        let coherence = Coherence::new();
        let (attr, entry) = coherence.gate().lifetimes(&file(2), HOUR, HOUR);
        assert_eq!((attr, entry), (HOUR, Duration::from_secs(1)));
    }

    #[test]
    fn without_epochs_the_first_client_waits_until_all_names_have_expired() {
        let coherence = Coherence::new();
        let ttl = Duration::from_millis(30);
        let sent = Instant::now();
        coherence.gate().entry(&file(2), Duration::ZERO, ttl);
        coherence.bypass_connected().unwrap();
        assert!(sent.elapsed() >= ttl);
    }

    #[test]
    fn no_client_connects_while_a_reply_is_being_sent() {
        let coherence = Coherence::new();
        let gate = coherence.gate();
        connects_only_after(&coherence, || drop(gate));
    }

    #[test]
    fn no_client_connects_while_a_directory_page_with_lifetimes_is_being_made() {
        let coherence = Arc::new(Coherence::new());
        let page = Page::new(&coherence);
        connects_only_after(&coherence, || drop(page));
    }

    #[test]
    fn a_lifetime_without_end_does_not_overflow() {
        let coherence = Coherence::new();
        coherence.epochs.store(true, Ordering::Relaxed);
        coherence.gate().entry(&file(2), Duration::MAX, Duration::MAX);
        assert_eq!(shard(&coherence.known, 2).lock()[&2].attr_until, u32::MAX);
        assert_eq!(coherence.entries_until.load(Ordering::Relaxed), u64::MAX);
    }

    #[test]
    fn the_kernel_knows_an_inode_until_it_has_given_up_every_reference() {
        let coherence = Coherence::new();
        assert!(coherence.kernel_knows(1), "the root is known from the start");
        assert!(!coherence.kernel_knows(7));
        coherence.gate().entry(&file(7), HOUR, HOUR);
        coherence.gate().page_entry(7, (HOUR, HOUR));
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
        coherence.gate().entry(&file(0), HOUR, HOUR);
        assert!(!coherence.kernel_knows(0));
    }

    #[test]
    fn forgotten_inodes_give_their_memory_back() {
        let coherence = Coherence::new();
        for ino in 2..1_000_000 {
            coherence.gate().entry(&file(ino), Duration::ZERO, Duration::ZERO);
        }
        for ino in 2..1_000_000 {
            coherence.forgotten(ino, 1);
        }
        let room: usize = coherence.known.iter().map(|shard| shard.0.lock().capacity()).sum();
        assert!(room < 200_000, "{room}");
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
        let gate = coherence.gate();
        assert_eq!(gate.attr(8, &file(8), HOUR), Duration::ZERO);
        assert_eq!(gate.attr(9, &file(9), HOUR), HOUR);
        let (flags, mode) = gate.open_flags(8, FopenFlags::FOPEN_KEEP_CACHE, false);
        assert_eq!((flags, mode), (FopenFlags::FOPEN_DIRECT_IO, OpenMode::Direct));
        assert_eq!(
            gate.open_flags(8, FopenFlags::empty(), true),
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
            let opened = coherence.gate().open_file(5, FopenFlags::empty(), passthrough, access);
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
    fn files_are_appended_to_directly_while_a_client_is_connected() {
        let coherence = Coherence::new();
        let appends = Access::of(libc::O_WRONLY | libc::O_APPEND);
        assert_eq!(Access::of(libc::O_RDONLY | libc::O_APPEND), READS);
        let direct = |ino| {
            let opened = coherence.gate().open_file(ino, FopenFlags::empty(), false, appends).0;
            opened.contains(FopenFlags::FOPEN_DIRECT_IO)
        };
        assert!(!direct(5));
        coherence.bypass_connected().unwrap();
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
        coherence.bypass_wrote(5, 0, 1).unwrap();
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
        let gate = coherence.gate();
        assert_eq!(gate.attr(2, &file(2), HOUR), Duration::ZERO);
        assert_eq!(gate.attr(3, &attr(3, FileType::Directory), HOUR), HOUR);
    }

    #[test]
    fn what_an_open_may_keep_depends_on_the_clients() {
        let coherence = Coherence::new();
        let all = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        assert_eq!(coherence.gate().open_flags(2, all, false).0, FopenFlags::FOPEN_KEEP_CACHE);
        coherence.bypass_connected().unwrap();
        assert_eq!(coherence.gate().open_flags(2, all, false).0, FopenFlags::empty());
    }
}
