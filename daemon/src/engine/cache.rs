//! Inodes, dentries and attributes that the engine remembers, for as long as the file system said.
//!
//! The contract is the one that the kernel's caches keep (`fuse_dentry_revalidate`, `fuse_update_get_attr`): a
//! name is good until its entry TTL runs out, attributes until theirs, and whatever either road changes is
//! dropped before the change is acknowledged.
//!
//! *What keeps a stale answer out.* A lookup that is under way while something changes may carry the state from
//! before. So every change bumps [`Cache::changes`] after the file system has changed and before the reply
//! leaves, and an answer is only remembered if the count is still what it was before the file system was asked.
//!
//! *References.* Every successful lookup owes the file system one forget. An [`Inode`] counts what it owes and
//! pays when it is dropped: when no dentry, no walk and no client's base holds it any more. Dentries are keyed
//! by their parent's *instance*, not by its number, so names of a directory that is gone can never be taken for
//! those of a later one with the same number.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hash};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use finesse_ipc::frame::ROOT;
use finesse_ipc::table::{AbsentXattrs, Expiry};
use fuser::{FileAttr, FileType, INodeNo};
use hashbrown::{DefaultHashBuilder, HashMap};
use parking_lot::{Mutex, RwLock};
use rustix::time::ClockId;

use crate::answer;
use crate::asking::Called;
use crate::bpf::Absent;
use crate::coherence::{self, Coherence, Creation, Invalidate};
use crate::engine::listings::Listings;
use crate::engine::table::{Openness, Published};
use crate::filesystem::Filesystem;
use crate::mutant;
use crate::policy::guard::LabelCell;
use crate::request::{Credentials, Request};

const SHARDS: usize = 64;
/// Dentries per shard, beyond which a part is dropped: 262 144 in all.
const DENTRIES_PER_SHARD: usize = 4096;

/// A point in time by the coarse monotonic clock, in nanoseconds; a TTL may end up to 4 ms late by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(u64);

impl Instant {
    /// The present.
    #[inline]
    pub(crate) fn now() -> Self {
        let now = rustix::time::clock_gettime(ClockId::MonotonicCoarse);
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The past, whenever it is.
    pub(crate) const EXPIRED: Self = Self(0);
    /// No time at all.
    const NEVER: Self = Self(u64::MAX);
    /// What lasts so long has no end here, so that nobody who finds it needs to look at a clock.
    const FOR_GOOD: Duration = Duration::from_secs(24 * 60 * 60);

    /// The same as the metadata table has it.
    pub(crate) fn expiry(self) -> Expiry {
        if self == Self::NEVER { Expiry::NEVER } else { Expiry::at(self.0) }
    }

    pub(crate) fn after(self, ttl: Duration) -> Self {
        if ttl.is_zero() {
            return Self::EXPIRED;
        }
        if ttl >= Self::FOR_GOOD {
            return Self::NEVER;
        }
        Self(self.0.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// What an inode's attributes are known to be.
struct Attributes {
    attr: Option<FileAttr>,
    /// Extended attributes that are not there; good for as long as the others.
    absent: AbsentXattrs,
    expiry: Instant,
    /// The count of [`Cache::unlinks`] when they were learned.
    unlinks: u64,
}

/// Pays the forgets that a dropped inode owes.
trait Owed: Send + Sync {
    fn forget(&self, ino: u64, lookups: u64);
}

struct Payer<FS>(Arc<Called<FS>>, Arc<Credentials>);

impl<FS: Filesystem> Owed for Payer<FS> {
    fn forget(&self, ino: u64, lookups: u64) {
        let request = Request::for_client(fuser::RequestId(0), self.1.clone());
        self.0.ask().forget(&request, INodeNo(ino), lookups);
    }
}

/// A directory, by its number, and a name in it.
pub(crate) struct ParentName {
    pub(crate) directory: u64,
    pub(crate) name: Box<OsStr>,
}

/// One inode that the engine knows.
pub(crate) struct Inode {
    /// Node id, which is also the inode number.
    pub(crate) ino: u64,
    /// Unique among all inodes that this cache ever held.
    pub(crate) instance: u64,
    /// Type; never changes.
    pub(crate) kind: FileType,
    generation: AtomicU64,
    lookups: AtomicU64,
    /// Removed from the file system: nothing can be found in it.
    dead: AtomicBool,
    /// Bumped when the attributes change.
    version: AtomicU64,
    /// How many cached names stand for it.
    names: AtomicUsize,
    /// Where it is, as far as a policy is concerned.
    pub(crate) label: LabelCell,
    /// Of a directory, whether everybody may search it and all above it.
    pub(crate) openness: Openness,
    /// Of a directory, where it was found last.
    parent: Mutex<Option<Arc<ParentName>>>,
    attributes: Mutex<Attributes>,
    owner: Weak<Shared>,
}

impl Inode {
    /// References that this inode owes the file system.
    pub(crate) fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// The generation that the file system gave it.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// One more lookup was answered with this inode.
    pub(crate) fn referenced(&self) {
        self.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the directory was removed.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// The directory was removed.
    pub(crate) fn bury(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Where a directory was when somebody last came to know it by a name. It may have moved since.
    pub(crate) fn parent_name(&self) -> Option<Arc<ParentName>> {
        self.parent.lock().clone()
    }

    /// Nobody finds it there any more.
    pub(crate) fn lost(&self) {
        *self.parent.lock() = None;
    }

    fn found_at(&self, directory: u64, name: &OsStr) {
        if self.kind != FileType::Directory || self.ino == ROOT {
            return;
        }
        let mut parent = self.parent.lock();
        if !parent.as_ref().is_some_and(|known| known.directory == directory && *known.name == *name) {
            *parent = Some(Arc::new(ParentName { directory, name: name.into() }));
        }
    }

    /// Changes whenever the attributes may have.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Attributes that are still good.
    pub(crate) fn attr(&self, cache: &Cache) -> Option<FileAttr> {
        let attributes = self.attributes.lock();
        let current = attributes.expiry > Instant::now();
        attributes.attr.filter(|attr| {
            let one_name = attr.nlink <= 1 || attr.kind == FileType::Directory;
            // Whoever changes its only name finds it by that. The root has none.
            let is_found = one_name && (self.ino == ROOT || self.names.load(Ordering::Acquire) > 0);
            current && (is_found || attributes.unlinks == cache.unlinks.load(Ordering::Acquire))
        })
    }

    /// Whether everybody may search a directory by its mode, as far as is known: attributes that are too old may say that somebody may not.
    pub(crate) fn may_be_open(&self) -> bool {
        self.attributes.lock().attr.is_none_or(|attr| attr.perm & 0o111 == 0o111)
    }

    /// When the attributes stop being good.
    pub(crate) fn attr_expiry(&self) -> Instant {
        self.attributes.lock().expiry
    }

    /// Extended attributes that are known not to be there, if the [attributes](Self::attr) are good, or have become known again
    /// since the mark was taken to publish both.
    pub(crate) fn absent_xattrs(&self) -> AbsentXattrs {
        self.attributes.lock().absent
    }

    /// Forgets the attributes because of the time of last access, which decides about no permission.
    fn accessed(&self) {
        self.attributes.lock().expiry = Instant::EXPIRED;
    }

    /// Forgets the attributes.
    pub(crate) fn changed(&self) {
        if mutant::leaves_out("cache: attributes") {
            return;
        }
        let mut attributes = self.attributes.lock();
        self.version.fetch_add(1, Ordering::AcqRel);
        if !mutant::leaves_out("cache: extended attributes") {
            attributes.absent = AbsentXattrs::default();
        }
        attributes.expiry = Instant::EXPIRED;
        // Nor does it say anything about the mode.
        attributes.attr = None;
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let Some(shared) = self.owner.upgrade() else { return };
        let mut inodes = shared.inodes[shard_of(self.ino)].lock();
        // Unless another instance has taken the number meanwhile.
        if inodes.get(&self.ino).is_some_and(|known| known.strong_count() == 0) {
            inodes.remove(&self.ino);
        }
        drop(inodes);
        let lookups = *self.lookups.get_mut();
        if lookups > 0
            && let Some(owed) = &*shared.owed.read()
        {
            owed.forget(self.ino, lookups);
        }
    }
}

/// A name in a directory.
#[derive(Hash, PartialEq, Eq)]
struct Key {
    directory: u64,
    name: Box<[u8]>,
}

#[derive(Hash)]
struct KeyRef<'n> {
    directory: u64,
    name: &'n [u8],
}

impl hashbrown::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.directory == key.directory && self.name == Borrow::<[u8]>::borrow(&key.name)
    }
}

struct Dentry {
    /// `None`: the name does not exist.
    inode: Option<Arc<Inode>>,
    expiry: Instant,
}

impl Dentry {
    /// It is in the cache no more. To be called under the lock of its shard, as [`Inode::names`] counts what is there.
    fn removed(self) -> Self {
        if let Some(inode) = &self.inode {
            inode.names.fetch_sub(1, Ordering::AcqRel);
        }
        self
    }
}

struct Shared {
    inodes: [Mutex<HashMap<u64, Weak<Inode>>>; SHARDS],
    /// `None` once the bypass has ended: the file system is to be destroyed then, and owed nothing.
    owed: RwLock<Option<Box<dyn Owed>>>,
    /// Inodes that were let go of while the file system was answering; see [`Invalidate::pay`].
    parting: Mutex<Vec<Inode>>,
    /// There are some.
    parts: AtomicBool,
}

impl Shared {
    /// Lets go of an inode. If this was the last reference to it, its forgets are paid later.
    fn part(&self, inode: Arc<Inode>) {
        if let Some(inode) = Arc::into_inner(inode) {
            self.parting.lock().push(inode);
            self.parts.store(true, Ordering::Release);
        }
    }
}

/// What a cached name says.
pub(crate) enum Known {
    /// The name leads to this inode, until then.
    Inode(Arc<Inode>, Instant),
    /// The name does not exist, until then.
    Nothing(Instant),
    /// Ask the file system.
    Unknown,
}

/// The cache of one mount.
///
/// What a client changes it forgets here, and what the kernel's caches hold of that goes with it: by
/// [`forget_attr`](Self::forget_attr) and its like, and by [`changing`](Self::changing).
pub(crate) struct Cache {
    shared: Arc<Shared>,
    coherence: Arc<Coherence>,
    /// What clients look up by themselves.
    table: Option<Published>,
    listings: Listings,
    dentries: [Mutex<HashMap<Key, Dentry, DefaultHashBuilder>>; SHARDS],
    /// Randomly seeded, so that nobody can choose names that collide.
    hasher: DefaultHashBuilder,
    instances: AtomicU64,
    changes: AtomicU64,
    /// How often a name has changed whose inode was not known: it may have been another link of a cached inode.
    unlinks: AtomicU64,
    /// Inodes that were seen with several links, since the cache was made: while there are none, removing a
    /// name that is not cached cannot change what is cached.
    hard_links: AtomicUsize,
}

fn shard_of(ino: u64) -> usize {
    // Node ids are often consecutive: the multiplier spreads them (Fibonacci hashing).
    (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

impl Cache {
    /// An empty cache over a file system.
    pub(crate) fn new<FS: Filesystem>(
        fs: &Arc<Called<FS>>,
        coherence: &Arc<Coherence>,
        table: Option<Published>,
    ) -> Self {
        let daemon =
            Credentials { uid: 0, gid: 0, groups: Box::default(), pid: std::process::id(), caps: u64::MAX };
        let hasher = DefaultHashBuilder::default();
        Self {
            coherence: Arc::clone(coherence),
            table,
            listings: Listings::default(),
            shared: Arc::new(Shared {
                inodes: std::array::from_fn(|_| Mutex::default()),
                owed: RwLock::new(Some(Box::new(Payer(fs.clone(), Arc::new(daemon))))),
                parting: Mutex::default(),
                parts: AtomicBool::new(false),
            }),
            dentries: std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))),
            hasher,
            instances: AtomicU64::new(1),
            changes: AtomicU64::new(0),
            unlinks: AtomicU64::new(0),
            hard_links: AtomicUsize::new(0),
        }
    }

    /// A mark to take before the file system is asked: what it answers may be remembered only if nothing
    /// changed since.
    pub(crate) fn mark(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    fn unchanged_since(&self, mark: u64) -> bool {
        self.changes.load(Ordering::SeqCst) == mark || mutant::leaves_out("cache: mark")
    }

    /// As [`unchanged_since`](Self::unchanged_since), for what can be found in the metadata table from here on: either the answer
    /// is no, or whoever counts a change later finds it there, as both modify the count.
    pub(crate) fn is_current(&self, mark: u64) -> bool {
        self.changes.fetch_add(0, Ordering::SeqCst) == mark || mutant::leaves_out("table: mark")
    }

    /// The mount's metadata table.
    pub(crate) fn table(&self) -> Option<&Published> {
        self.table.as_ref()
    }

    /// What directories list.
    pub(crate) fn listings(&self) -> &Listings {
        &self.listings
    }

    /// Keeps all that a directory lists, for which the file system was asked at `mark`.
    pub(crate) fn keep_listing(&self, directory: &Inode, records: &[u8], mark: u64) {
        self.listings.keep(directory, records, || self.unchanged_since(mark));
    }

    /// Something changed: what lookups under way bring may be old. What the count was before.
    fn bump(&self) -> u64 {
        self.changes.fetch_add(1, Ordering::SeqCst)
    }

    /// Lets go of the file system.
    pub(crate) fn end(&self) {
        if let Some(table) = &self.table {
            table.end();
        }
        *self.shared.owed.write() = None;
    }

    /// How many inodes are held.
    pub(crate) fn inodes(&self) -> usize {
        self.shared.inodes.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Whether an inode with several links may be cached.
    pub(crate) fn may_hold_hard_links(&self) -> bool {
        self.hard_links.load(Ordering::Relaxed) > 0
    }

    fn dentry_shard(&self, key: &KeyRef<'_>) -> &Mutex<HashMap<Key, Dentry, DefaultHashBuilder>> {
        &self.dentries[(self.hasher.hash_one(key) >> 40) as usize % SHARDS]
    }

    /// The inode that has a number, if it is held.
    pub(crate) fn known(&self, ino: u64) -> Option<Arc<Inode>> {
        self.shared.inodes[shard_of(ino)].lock().get(&ino).and_then(Weak::upgrade)
    }

    fn new_inode(&self, ino: u64, kind: FileType, generation: u64, lookups: u64) -> Arc<Inode> {
        Arc::new(Inode {
            ino,
            instance: self.instances.fetch_add(1, Ordering::Relaxed),
            kind,
            generation: AtomicU64::new(generation),
            lookups: AtomicU64::new(lookups),
            dead: AtomicBool::new(false),
            names: AtomicUsize::new(0),
            label: LabelCell::unknown(),
            openness: Openness::default(),
            parent: Mutex::default(),
            version: AtomicU64::new(0),
            attributes: Mutex::new(Attributes {
                attr: None,
                absent: AbsentXattrs::default(),
                expiry: Instant::EXPIRED,
                unlinks: 0,
            }),
            owner: Arc::downgrade(&self.shared),
        })
    }

    /// A directory known by its number only; it owes no forget (the kernel or the mount itself holds it).
    pub(crate) fn borrowed(&self, ino: u64) -> Arc<Inode> {
        // Outlives the lock: dropping an inode takes the lock of its shard.
        let known;
        let mut inodes = self.shared.inodes[shard_of(ino)].lock();
        known = inodes.get(&ino).and_then(Weak::upgrade);
        match known {
            Some(inode) if !inode.is_dead() => inode,
            _ => {
                let inode = self.new_inode(ino, FileType::Directory, 0, 0);
                inodes.insert(ino, Arc::downgrade(&inode));
                drop(inodes);
                inode
            }
        }
    }

    /// What is known of a name.
    pub(crate) fn lookup(&self, directory: &Inode, name: &OsStr) -> Known {
        let key = KeyRef { directory: directory.instance, name: name.as_bytes() };
        let shard = self.dentry_shard(&key).lock();
        match shard.get(&key) {
            Some(dentry) if dentry.expiry > Instant::now() => match &dentry.inode {
                Some(inode) => Known::Inode(inode.clone(), dentry.expiry),
                None => Known::Nothing(dentry.expiry),
            },
            _ => Known::Unknown,
        }
    }

    /// Takes over what a lookup, or an operation that makes a name, answered: one reference, the attributes,
    /// and the name, as far as they may be remembered.
    ///
    /// Returns `None` for a negative entry.
    pub(crate) fn learn(
        &self,
        directory: &Arc<Inode>,
        name: &OsStr,
        entry: &answer::Entry,
        mark: u64,
    ) -> Option<Arc<Inode>> {
        mutant::lingers("cache: mark");
        let now = Instant::now();
        let ino = entry.attr.ino.0;
        if ino == 0 {
            self.remember(directory, name, None, now.after(entry.entry_ttl), mark);
            return None;
        }
        let inode = self.adopt(entry);
        inode.found_at(directory.ino, name);
        let absent = entry.no_xattrs.map(absent_xattrs);
        self.remember_attr(&inode, (&entry.attr, absent), now.after(entry.attr_ttl), mark);
        self.remember(directory, name, Some(inode.clone()), now.after(entry.entry_ttl), mark);
        Some(inode)
    }

    /// The inode of an entry, with one more reference owed.
    fn adopt(&self, entry: &answer::Entry) -> Arc<Inode> {
        let (ino, generation) = (entry.attr.ino.0, entry.generation.0);
        // Outlives the lock: dropping an inode takes the lock of its shard.
        let stale;
        let mut inodes = self.shared.inodes[shard_of(ino)].lock();
        if let Some(inode) = inodes.get(&ino).and_then(Weak::upgrade) {
            let same = match inode.generation.load(Ordering::Relaxed) {
                0 => {
                    inode.generation.store(generation, Ordering::Relaxed);
                    true
                }
                known => known == generation,
            };
            // As fuse_stale_inode: another generation or type is another file with the same number.
            // A directory that was taken for removed, although it had been made anew meanwhile, starts afresh.
            if same && inode.kind == entry.attr.kind && !inode.is_dead() {
                inode.referenced();
                return inode;
            }
            inode.bury();
            stale = inode;
            let _ = &stale;
        }
        let inode = self.new_inode(ino, entry.attr.kind, generation, 1);
        inodes.insert(ino, Arc::downgrade(&inode));
        drop(inodes);
        inode
    }

    /// Remembers attributes that the file system gave for `ttl`, unless something changed since `mark`.
    pub(crate) fn learn_attr(&self, inode: &Inode, answer: &answer::Attr, mark: u64) {
        self.remember_attr(inode, (&answer.attr, None), Instant::now().after(answer.ttl), mark);
    }

    fn remember_attr(
        &self,
        inode: &Inode,
        (attr, absent): (&FileAttr, Option<AbsentXattrs>),
        expiry: Instant,
        mark: u64,
    ) {
        if attr.nlink > 1 && attr.kind != FileType::Directory {
            self.hard_links.fetch_add(1, Ordering::Relaxed);
        }
        let mut attributes = inode.attributes.lock();
        // Under the lock: a change bumps the count before it takes the lock to forget the attributes.
        if self.unchanged_since(mark) {
            let unlinks = self.unlinks.load(Ordering::Acquire);
            let absent = absent.unwrap_or_else(|| match expiry == Instant::NEVER {
                true => attributes.absent,
                // What has a lifetime does not outlive it because the rest was asked for again.
                false => AbsentXattrs::default(),
            });
            *attributes = Attributes { attr: Some(*attr), absent, expiry, unlinks };
        }
    }

    /// Remembers which extended attributes are not there, for which the file system was asked at `mark`.
    pub(crate) fn learn_absent_xattrs(&self, inode: &Inode, absent: Absent, mark: u64) {
        let mut attributes = inode.attributes.lock();
        if self.unchanged_since(mark) {
            attributes.absent = absent_xattrs(absent);
        }
    }

    fn remember(
        &self,
        directory: &Inode,
        name: &OsStr,
        inode: Option<Arc<Inode>>,
        expiry: Instant,
        mark: u64,
    ) {
        if expiry == Instant::EXPIRED {
            return;
        }
        let reference = KeyRef { directory: directory.instance, name: name.as_bytes() };
        let mut shard = self.dentry_shard(&reference).lock();
        if !self.unchanged_since(mark) {
            return;
        }
        let surplus = make_room(&mut shard);
        let key = Key { directory: reference.directory, name: reference.name.into() };
        if let Some(inode) = &inode {
            inode.names.fetch_add(1, Ordering::AcqRel);
        }
        let before = shard.insert(key, Dentry { inode, expiry }).map(Dentry::removed);
        // Inodes are dropped outside the lock: they pay their forgets to the file system then.
        drop(shard);
        drop((before, surplus));
    }

    /// A client is about to change a name. To be called before the file system is asked, and before it is decided whether
    /// the change [needs to know](Changing::needs_inode) what the name stands for.
    pub(crate) fn changing<'c>(&'c self, directory: &'c Inode, name: &'c OsStr) -> Changing<'c> {
        let kernel = self.coherence.changing(directory.ino, name, false);
        Changing { cache: self, directory, name, kernel }
    }

    /// As [`changing`](Self::changing), for a name at which a file is created and opened.
    pub(crate) fn creating<'c>(
        &'c self,
        directory: &'c Inode,
        name: &'c OsStr,
        creation: Option<Creation>,
    ) -> Changing<'c> {
        let kernel = self.coherence.creating(directory.ino, name, creation);
        Changing { cache: self, directory, name, kernel }
    }

    /// As [`changing`](Self::changing), for a name to which something is moved.
    pub(crate) fn moving_to<'c>(&'c self, directory: &'c Inode, name: &'c OsStr) -> Changing<'c> {
        let kernel = self.coherence.changing(directory.ino, name, true);
        Changing { cache: self, directory, name, kernel }
    }

    /// Forgets a name and its inode's attributes, and returns the inode.
    fn forget_name(&self, directory: &Inode, name: &OsStr) -> (Option<Arc<Inode>>, u64) {
        let (inode, counted) = self.take_name(directory, name);
        if inode.is_none() && !mutant::leaves_out("cache: hard links") {
            self.unlinks.fetch_add(1, Ordering::AcqRel);
        }
        (inode, counted)
    }

    /// The inode, and what the count of changes was before.
    fn take_name(&self, directory: &Inode, name: &OsStr) -> (Option<Arc<Inode>>, u64) {
        let counted = self.bump();
        self.listings.forget(directory.ino);
        let key = KeyRef { directory: directory.instance, name: name.as_bytes() };
        if mutant::leaves_out("cache: names") {
            return (None, counted);
        }
        let removed = self.dentry_shard(&key).lock().remove(&key).map(Dentry::removed);
        let inode = removed.and_then(|dentry| dentry.inode);
        if let Some(table) = &self.table {
            table.name_changed(directory.ino, name);
        }
        if let Some(inode) = &inode {
            inode.changed();
            self.publishes_no_more(inode.ino);
        }
        (inode, counted)
    }

    /// The attributes of an inode have changed, which has been counted.
    fn publishes_no_more(&self, ino: u64) {
        if let Some(table) = &self.table {
            table.attr_changed(ino);
        }
    }

    /// From here on an inode is read, or written to, where nobody sees it, which has been noted.
    pub(crate) fn is_used_unseen(&self, ino: u64) {
        if self.table.is_some() {
            self.bump();
            self.publishes_no_more(ino);
        }
    }

    /// A client has read an inode: its time of last access may have changed (`fuse_invalidate_atime`). What the count of changes was
    /// before.
    pub(crate) fn forget_atime(&self, inode: &Inode) -> u64 {
        let before = self.bump();
        inode.accessed();
        self.publishes_no_more(inode.ino);
        self.coherence.changed_attr(inode.ino);
        before
    }

    /// A client has changed what is in a directory, and so its times, but nothing that decides about permissions.
    pub(crate) fn forget_times(&self, directory: &Inode) {
        self.forget_atime(directory);
    }

    /// A client has changed an inode's attributes, or may have. What the count of changes was before.
    pub(crate) fn forget_attr(&self, inode: &Inode) -> u64 {
        let counted = self.bump();
        if inode.kind == FileType::Directory {
            self.listings.forget(inode.ino);
        }
        inode.changed();
        self.publishes_no_more(inode.ino);
        self.coherence.changed_attr(inode.ino);
        counted
    }

    /// A client has made a name, for which the file system was asked at `mark`: [settles](Changing::settle) that, and forgets the
    /// directory's attributes. The mark at which what the file system has answered is known: a later one, if nothing else has
    /// changed since then.
    pub(crate) fn made<T>(
        &self,
        changing: Changing<'_>,
        directory: &Inode,
        answer: &Result<T, fuser::Errno>,
        mark: u64,
    ) -> u64 {
        let settled = changing.settle(answer, None, false);
        let counted = self.forget_attr(directory);
        match settled.counted {
            Some(first) if first == mark && counted == mark + 1 => mark + 2,
            _ => mark,
        }
    }

    /// As [`forget_attr`](Self::forget_attr), for an inode that is known by its number only.
    pub(crate) fn forget_attr_of(&self, ino: u64) {
        self.attr(ino);
        self.coherence.changed_attr(ino);
    }
}

/// A name that a client is about to change. Dropped, it says that the file system was not asked.
#[must_use]
pub(crate) struct Changing<'c> {
    cache: &'c Cache,
    directory: &'c Inode,
    name: &'c OsStr,
    kernel: coherence::Changing<'c>,
}

impl Changing<'_> {
    /// Whether what the name stands for must be known if the name is taken from it: it, or another name of it, may be
    /// cached, here or by the kernel.
    pub(crate) fn needs_inode(&self) -> bool {
        self.cache.may_hold_hard_links() || self.kernel.is_known()
    }

    /// The file system has answered: forgets the name, and the attributes of its inode and of `child`, which the name stood
    /// for. `in_the_kernel` says that the kernel knows what the name stands for from now on.
    pub(crate) fn settle<T>(
        self,
        answer: &Result<T, fuser::Errno>,
        child: Option<&Arc<Inode>>,
        in_the_kernel: bool,
    ) -> Settled {
        let (cached, counted) = self.cache.forget_name(self.directory, self.name);
        let error = answer.as_ref().err();
        if error.is_some_and(|errno| is_refusal(*errno)) {
            return Settled { cached, told: None, counted: None };
        }
        // Before the name goes, and with it perhaps the inode: the kernel could only say then that it has none, and whether it
        // never had or is about to let go, its FORGET tells.
        for inode in cached.iter().chain(child) {
            self.cache.forget_attr(inode);
            // A removed directory lists nothing, and one that was moved has another one above it.
            self.cache.coherence.changed_listing(inode.ino);
        }
        let stood_for = child.or(cached.as_ref());
        let stood_for = stood_for.map(|inode| (inode.ino, inode.kind));
        let told = self.kernel.changed(in_the_kernel || error.is_some(), stood_for);
        if let Some(ino) = told {
            self.cache.attr(ino);
        }
        let alone = cached.is_none() && child.is_none() && told.is_none();
        Settled { cached, told, counted: alone.then_some(counted) }
    }
}

/// What was found out about a name that has changed.
pub(crate) struct Settled {
    /// Its inode, if the name was cached.
    pub(crate) cached: Option<Arc<Inode>>,
    /// The inode that the kernel got by this name while it changed.
    pub(crate) told: Option<u64>,
    /// What the count of changes was before, if this was counted once.
    counted: Option<u64>,
}

/// Whether an error says for sure that no name has changed. A file system over a network may have acted before it failed.
fn is_refusal(errno: fuser::Errno) -> bool {
    matches!(
        errno.code(),
        libc::EACCES
            | libc::EBUSY
            | libc::EEXIST
            | libc::EINVAL
            | libc::EISDIR
            | libc::ELOOP
            | libc::EMLINK
            | libc::ENAMETOOLONG
            | libc::ENOENT
            | libc::ENOSYS
            | libc::ENOTDIR
            | libc::ENOTEMPTY
            | libc::EPERM
            | libc::EROFS
            | libc::EXDEV
    )
}

/// What a file system says of a file without extended attributes, for the metadata table.
fn absent_xattrs(Absent { security, acl, .. }: Absent) -> AbsentXattrs {
    AbsentXattrs { any: true, acl, security }
}

/// Drops what has expired, and if that is not enough about half of the rest, from a full shard.
fn make_room(shard: &mut HashMap<Key, Dentry, DefaultHashBuilder>) -> Vec<(Key, Dentry)> {
    if shard.len() < DENTRIES_PER_SHARD {
        return Vec::new();
    }
    let now = Instant::now();
    let removed = |(key, dentry): (Key, Dentry)| (key, dentry.removed());
    let mut dropped: Vec<_> = shard.extract_if(|_, dentry| dentry.expiry <= now).map(removed).collect();
    if shard.len() > DENTRIES_PER_SHARD / 2 {
        let mut odd = false;
        let half = shard.extract_if(|_, _| {
            odd = !odd;
            odd
        });
        dropped.extend(half.map(removed));
    }
    dropped
}

impl Invalidate for Cache {
    fn entry(&self, parent: u64, name: &OsStr) {
        if mutant::leaves_out("kernel road: names") {
            return;
        }
        match self.known(parent) {
            Some(directory) => {
                if let Some(inode) = self.forget_name(&directory, name).0 {
                    self.shared.part(inode);
                }
                self.shared.part(directory);
            }
            None => {
                self.bump();
                self.listings.forget(parent);
                self.unlinks.fetch_add(1, Ordering::AcqRel);
                if let Some(table) = &self.table {
                    table.name_changed(parent, name);
                }
            }
        }
    }

    fn attr(&self, ino: u64) {
        if mutant::leaves_out("kernel road: attributes") {
            return;
        }
        match self.known(ino) {
            Some(inode) => {
                self.bump();
                inode.changed();
                self.shared.part(inode);
            }
            None => {
                self.bump();
            }
        }
        self.listings.forget(ino);
        self.publishes_no_more(ino);
    }

    fn atime(&self, ino: u64) {
        match self.known(ino) {
            Some(inode) => {
                self.bump();
                inode.accessed();
                self.shared.part(inode);
            }
            None => {
                self.bump();
            }
        }
        self.publishes_no_more(ino);
    }

    fn unseen(&self, ino: u64) {
        self.is_used_unseen(ino);
    }

    fn closed(&self, ino: Option<u64>) {
        let Some(table) = &self.table else { return };
        if let Some(inode) = ino.and_then(|ino| self.known(ino)) {
            let is_directory = inode.kind == FileType::Directory;
            self.shared.part(inode);
            if !is_directory {
                return;
            }
        }
        self.bump();
        table.renew();
    }

    fn moved_to(&self, directory: u64) {
        // It lists another `..`, and is perhaps known by its number only.
        self.bump();
        self.listings.forget_all();
        let Some(table) = &self.table else { return };
        let known = self.known(directory);
        let open = known.as_ref().is_some_and(|directory| directory.openness.is_open(table.era()));
        if let Some(known) = known {
            self.shared.part(known);
        }
        if !open {
            self.closed(None);
        }
    }

    fn pay(&self) {
        if self.shared.parts.load(Ordering::Relaxed) && self.shared.parts.swap(false, Ordering::AcqRel) {
            // Dropped after the lock.
            let parted = std::mem::take(&mut *self.shared.parting.lock());
            drop(parted);
        }
    }
}
