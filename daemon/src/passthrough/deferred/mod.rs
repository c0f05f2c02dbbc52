//! Unlinks that are acknowledged first and done later.
//!
//! An unlink of the bypass is acknowledged once it is known that the name is there and may be removed ([`listing`]), and the [`journal`]
//! says so. From then on the name is hidden; [`workers`] remove it from the source. Whoever comes by something that is not done yet has it
//! done at once: the name itself, its inode, the attributes or the removal of its directory, the file system's free space. So nothing but
//! a look at the source can tell a deferred unlink from another.
//!
//! Not deferred is what comes by the kernel road, where an unlink costs a request of the kernel's in any case, and what could be
//! noticed in time by nobody here: a file of which a client has had a descriptor of the source's, and whatever is
//! not certain to succeed.
//!
//! *Races.* Whoever changes a name by itself announces it ([`Change`]) before it looks whether the name waits; an unlink that is about to be
//! deferred looks for such announcements once it counts as waiting, under the lock of the directory. So one of the two sees the other.
//! The same goes for directories whose permissions change, or that are removed ([`Hold`]).

#![deny(unsafe_code)]

mod journal;
mod known;
mod listing;
mod recovery;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hashbrown::{HashMap, HashSet};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{Access, AtFlags, CWD, StatxAttributes, accessat, fstatvfs, readlinkat, statx, unlinkat};
use rustix::io::{Errno, Result};
use rustix::time::ClockId;

use self::journal::{Birth, Filling, Full, Identity, Journal, Locator, Owner, Place, Target, fits};
use self::known::{Known, Names};
use self::listing::Looks;
use super::inodes::{ProcPath, stat_at, stat_of};
use super::{PassthroughFs, Rights, attributes, credentials, sys};
use crate::{Notifier, Request, Road, mutant};

pub(super) use self::recovery::finish_left;
pub use self::recovery::{Leftover, finish_leftovers, leftovers};

/// So many directories may be kept in which nothing waits.
const IDLE_DIRECTORIES: usize = 1024;
/// Of so many descriptors that the daemon may have, one may be of a directory in which something waits.
const DESCRIPTORS: u64 = 4;
/// Fewest and most such directories at a time.
const DIRECTORIES: std::ops::RangeInclusive<u64> = 64..=65_536;
/// Files with grants above which every file counts as one.
const GRANTS_MAX: usize = 1_000_000;
/// One of so many blocks, or inodes, of the source must be free, for nobody to miss what is freed later.
const LEAST_FREE: u64 = 16;
/// How often that is looked at.
const SPACE_LOOK: u64 = 100_000_000;

/// What became of deferred unlinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeferredCounts {
    /// Acknowledged, and not done yet.
    pub waiting: u64,
    /// Done.
    pub done: u64,
    /// The source has refused them, and the names are there again.
    pub failed: u64,
}

/// A caller who may remove names from the directory.
struct Caller {
    identity: Identity,
    until: u64,
    filling: Option<Filling>,
}

#[derive(Default)]
struct Block {
    /// May still get records.
    open: bool,
    /// Records that are not done.
    left: u32,
    /// Who goes through its records.
    users: u32,
}

#[derive(Default)]
struct Inner {
    names: Names,
    looks: Looks,
    waiting: usize,
    listers: usize,
    blocks: HashMap<u32, Block>,
    callers: Vec<Caller>,
    /// Whoever has it looks for another one of the same directory.
    retired: bool,
}

struct Directory {
    id: u64,
    fd: Arc<OwnedFd>,
    inode: u64,
    locator: Locator,
    inner: Mutex<Inner>,
    settled: Condvar,
}

/// Directories in which something waits, or may.
#[derive(Default)]
struct Directories {
    known: HashMap<u64, Arc<Directory>>,
    /// With so many it is looked in which of them nothing waits.
    tidied_at: usize,
}

/// What is about to change.
#[derive(Default)]
struct Announced {
    names: Vec<(u64, Box<[u8]>)>,
    /// Directories; 0 for all.
    held: Vec<u64>,
}

struct Shared {
    journal: Journal,
    can_switch: bool,
    ttl: u64,
    root: Arc<OwnedFd>,
    directories: Mutex<Directories>,
    /// Most of them.
    most_directories: usize,
    /// Nodes of files whose names wait: directory and record. In order: files are mostly removed as they were made, so that what is looked up is beside what
    /// was looked up before, and in the caches.
    inodes: Mutex<BTreeMap<u64, (u64, Place)>>,
    announced: Mutex<Announced>,
    /// How many announcements there are.
    announcements: AtomicUsize,
    /// Directories with lists, the oldest first, and how many there are.
    lists: Mutex<VecDeque<Arc<Directory>>>,
    list_count: AtomicUsize,
    /// About how much memory the lists take.
    listed: AtomicUsize,
    /// Names that were looked at to be acknowledged.
    looked_at: AtomicU64,
    granted: Mutex<HashSet<u64>>,
    waiting: AtomicUsize,
    acknowledged: AtomicU64,
    /// Removals that were tried, counted before anybody hears that nothing waits.
    tried: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    ended: AtomicBool,
    room_looked_at: AtomicU64,
    has_room: AtomicBool,
    notifier: OnceLock<Notifier>,
    queue: Mutex<workers::Queue>,
    work: Condvar,
    idle: Condvar,
}

/// The deferred unlinks of one mount.
pub(super) struct Deferred {
    shared: Arc<Shared>,
    workers: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

/// Ends the deferral of a mount's unlinks, whatever becomes of the mount.
#[derive(Clone)]
pub struct Drain(Arc<Shared>);

impl std::fmt::Debug for Drain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drain").finish_non_exhaustive()
    }
}

impl Drain {
    /// Does everything that was acknowledged, defers nothing any more, and removes the journal.
    pub fn finish(&self) {
        self.0.finish();
    }

    /// Whom to tell that a name is there again.
    pub fn set_notifier(&self, notifier: Notifier) {
        // A session has one.
        let _ = self.0.notifier.set(notifier);
    }
}

/// What is to be done with an unlink.
enum Verdict {
    Taken,
    AtOnce,
    Full,
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

impl Deferred {
    /// Unlinks of the source at `path`.
    ///
    /// # Errors
    /// There is no place for the journal.
    pub(super) fn new(path: &Path, root: &Arc<OwnedFd>, ttl: Duration) -> Result<Self> {
        let stat = stat_of(root)?;
        let device = super::ids::device_number(&stat);
        Ok(Self::with(Journal::create(path, device, stat.stx_ino)?, root, ttl))
    }

    fn with(journal: Journal, root: &Arc<OwnedFd>, ttl: Duration) -> Self {
        let most_directories =
            (sys::open_files_limit() / DESCRIPTORS).clamp(*DIRECTORIES.start(), *DIRECTORIES.end());
        let shared = Arc::new(Shared {
            journal,
            can_switch: credentials::can_switch(),
            ttl: u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX),
            root: Arc::clone(root),
            directories: Mutex::default(),
            most_directories: usize::try_from(most_directories).unwrap_or(usize::MAX),
            inodes: Mutex::default(),
            announced: Mutex::default(),
            announcements: AtomicUsize::new(0),
            lists: Mutex::default(),
            list_count: AtomicUsize::new(0),
            listed: AtomicUsize::new(0),
            looked_at: AtomicU64::new(0),
            granted: Mutex::default(),
            waiting: AtomicUsize::new(0),
            acknowledged: AtomicU64::new(0),
            tried: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            room_looked_at: AtomicU64::new(0),
            has_room: AtomicBool::new(false),
            notifier: OnceLock::new(),
            queue: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        let workers = workers::start(&shared);
        Self { shared, workers: Mutex::new(workers) }
    }

    pub(super) fn drain(&self) -> Drain {
        Drain(Arc::clone(&self.shared))
    }

    pub(super) fn counts(&self) -> DeferredCounts {
        let shared = &self.shared;
        DeferredCounts {
            waiting: shared.waiting.load(Ordering::SeqCst) as u64,
            done: shared.done.load(Ordering::Relaxed),
            failed: shared.failed.load(Ordering::Relaxed),
        }
    }

    /// How many names were looked at to be acknowledged, rather than known.
    #[cfg(test)]
    pub(super) fn looked_at(&self) -> u64 {
        self.shared.looked_at.load(Ordering::Relaxed)
    }

    /// From now on the file's removal is not deferred: a client gets a descriptor of the source's file, which shows by itself how many
    /// links it has, or the file may become one that cannot be removed. To be said before it is settled.
    pub(super) fn keeps(&self, node: u64) {
        let mut granted = self.shared.granted.lock();
        if granted.len() < GRANTS_MAX {
            granted.insert(node);
        }
    }

    /// Everything that waits is done.
    pub(super) fn settle_all(&self) {
        self.shared.settle_all();
    }

    /// Whether something waited, and is done.
    pub(super) fn settled_something(&self) -> bool {
        let waited = self.shared.waiting.load(Ordering::SeqCst) > 0;
        if waited {
            self.shared.settle_all();
        }
        waited
    }

    /// How many removals have been tried: what was looked at before one more of them may have changed.
    pub(super) fn moment(&self) -> u64 {
        self.shared.tried.load(Ordering::SeqCst)
    }

    /// If the inode's name waits, or names in it, they are removed. The thread may act as somebody else afterwards.
    pub(super) fn settle_inode(&self, node: u64) {
        let shared = &self.shared;
        if shared.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        shared.settle_directory(node);
        let Some((directory, record)) = shared.inodes.lock().get(&node).copied() else { return };
        let Some(directory) = shared.known(directory) else { return };
        let mut name = Vec::new();
        {
            let inner = directory.inner.lock();
            // It may be done meanwhile, and the block given back or another's.
            if !inner.blocks.contains_key(&record.block) {
                return;
            }
            shared.journal.read(record, &mut name);
            let waits = |known| matches!(known, Known::Waits { place, node: other } if place == record && other == node);
            if !inner.names.get(&name).is_some_and(waits) {
                return;
            }
        }
        shared.settle_name(&directory, &name);
    }

    /// If the name waits, it is removed. The thread may act as somebody else afterwards.
    pub(super) fn settle_name(&self, directory: u64, name: &OsStr) {
        if self.shared.waiting.load(Ordering::SeqCst) > 0
            && let Some(directory) = self.shared.known(directory)
        {
            self.shared.settle_name(&directory, name.as_bytes());
        }
    }

    /// A name is about to change by other means. To be called before the thread takes the caller's identity.
    pub(super) fn changes(&self, directory: u64, name: &OsStr) -> Change<'_> {
        let name: Box<[u8]> = name.as_bytes().into();
        self.shared.announce(|announced| announced.names.push((directory, name.clone())));
        if let Some(known) = self.shared.known(directory) {
            self.shared.settle_name(&known, &name);
            known.inner.lock().names.forget(&name, |known| known == Known::Done);
        }
        Change { shared: &self.shared, directory, name }
    }

    /// A directory's permissions are about to change, or it is about to go: nothing waits in it, and nothing is deferred
    /// there meanwhile.
    pub(super) fn hold(&self, directory: u64) -> Hold<'_> {
        self.shared.announce(|announced| announced.held.push(directory));
        self.shared.settle_directory(directory);
        Hold { shared: &self.shared, directory }
    }

    /// As [`hold`](Self::hold), for all directories.
    pub(super) fn hold_all(&self) -> Hold<'_> {
        self.shared.announce(|announced| announced.held.push(0));
        self.shared.settle_all();
        Hold { shared: &self.shared, directory: 0 }
    }

    /// Somebody lists a directory; `None` if nothing can be hidden in it.
    pub(super) fn lists(&self, directory: u64) -> Option<Listing> {
        loop {
            let directory = self.shared.known(directory)?;
            let mut inner = directory.inner.lock();
            if !inner.retired {
                inner.listers += 1;
                drop(inner);
                return Some(Listing { directory });
            }
        }
    }

    /// Defers an unlink, if that can be done so that nobody notices. The thread acts as the caller.
    pub(super) fn take(
        &self,
        fs: &PassthroughFs,
        req: &Request,
        parent: u64,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
    ) -> bool {
        let shared = &self.shared;
        if req.road() != Road::Bypass || shared.ended.load(Ordering::SeqCst) || !fs.ids.is_beside_root(parent)
        {
            return false;
        }
        let await_room = || shared.await_room() && fs.act(req, Rights::Checked).is_ok();
        let directory = match shared.directory(fs, parent, dir) {
            Err(Full) if await_room() => shared.directory(fs, parent, dir),
            directory => directory,
        };
        let Ok(Some(directory)) = directory else { return false };
        loop {
            match shared.try_take(fs, req, &directory, name) {
                Verdict::Taken => return true,
                Verdict::AtOnce => return false,
                Verdict::Full if await_room() => {}
                Verdict::Full => return false,
            }
        }
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        self.shared.finish();
        for worker in self.workers.get_mut().drain(..) {
            if worker.join().is_err() {
                tracing::error!("a thread that removes files panicked");
            }
        }
    }
}

/// See [`Deferred::changes`].
pub(super) struct Change<'d> {
    shared: &'d Shared,
    directory: u64,
    name: Box<[u8]>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let shared = self.shared;
        // What was listed before the change, or meanwhile, is not believed, and nobody believes it before this is over.
        if shared.list_count.load(Ordering::SeqCst) > 0
            && !mutant::leaves_out("deferred: changes")
            && let Some(directory) = shared.known(self.directory)
        {
            shared.forget_listed(&directory, &mut directory.inner.lock(), &self.name);
        }
        shared.withdraw(|announced| {
            let same =
                |(directory, name): &(u64, Box<[u8]>)| *directory == self.directory && *name == self.name;
            if let Some(index) = announced.names.iter().position(same) {
                announced.names.swap_remove(index);
            }
        });
    }
}

/// See [`Deferred::hold`].
pub(super) struct Hold<'d> {
    shared: &'d Shared,
    directory: u64,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let changed = match self.directory {
            0 => None,
            id => self.shared.known(id),
        };
        if let Some(directory) = changed {
            let mut inner = directory.inner.lock();
            inner.callers.iter_mut().for_each(|caller| caller.until = 0);
            self.shared.end_list(&directory, &mut inner);
        }
        // It may have gone, and its descriptor would keep it.
        self.shared.put_away(self.directory);
        self.shared.withdraw(|announced| {
            if let Some(index) = announced.held.iter().position(|id| *id == self.directory) {
                announced.held.swap_remove(index);
            }
        });
    }
}

/// See [`Deferred::lists`].
pub(super) struct Listing {
    directory: Arc<Directory>,
}

impl Listing {
    /// Whether the name has been removed.
    pub(super) fn hides(&self, name: &OsStr) -> bool {
        self.directory.inner.lock().names.hides(name.as_bytes())
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        let mut inner = self.directory.inner.lock();
        inner.listers -= 1;
        if inner.listers == 0 {
            inner.names.retain(|known| known != Known::Done);
        }
    }
}

impl Shared {
    fn known(&self, id: u64) -> Option<Arc<Directory>> {
        self.directories.lock().known.get(&id).cloned()
    }

    /// The state of a directory, if something may be deferred in it.
    ///
    /// # Errors
    /// [`Full`]: something waits in as many directories as there may be.
    fn directory(
        &self,
        fs: &PassthroughFs,
        id: u64,
        fd: &Arc<OwnedFd>,
    ) -> std::result::Result<Option<Arc<Directory>>, Full> {
        let mut directories = self.directories.lock();
        if let Some(directory) = directories.known.get(&id) {
            if Arc::ptr_eq(&directory.fd, fd) {
                return Ok(Some(Arc::clone(directory)));
            }
            // Opened anew, or another one of that number.
            if !self.retire(directory) {
                return Ok(None);
            }
        }
        let most = self.most_directories;
        let Directories { known, tidied_at } = &mut *directories;
        if known.len() >= (*tidied_at).max(IDLE_DIRECTORIES).min(most) {
            known.retain(|_, directory| !self.retire(directory));
            *tidied_at = known.len() * 2;
            if known.len() >= most {
                return Err(Full);
            }
        }
        let Some(directory) = self.state_of(fs, id, fd).map(Arc::new) else { return Ok(None) };
        known.insert(id, Arc::clone(&directory));
        Ok(Some(directory))
    }

    /// A directory in which nothing waits yet.
    fn state_of(&self, fs: &PassthroughFs, id: u64, fd: &Arc<OwnedFd>) -> Option<Directory> {
        let inode = stat_of(fd).ok()?.stx_ino;
        let locator = if fs.ids.has_handles(id) {
            let handle = sys::name_to_handle(fd, c"").ok()?;
            Locator::Handle { kind: handle.kind(), bytes: handle.bytes().to_vec() }
        } else {
            Locator::Path(self.path_of(fd)?)
        };
        Some(Directory {
            id,
            fd: Arc::clone(fd),
            inode,
            locator,
            inner: Mutex::default(),
            settled: Condvar::new(),
        })
    }

    /// The path of a directory below the source.
    fn path_of(&self, fd: &OwnedFd) -> Option<Vec<u8>> {
        let path = |fd: &OwnedFd| readlinkat(CWD, ProcPath::of(fd).as_c_str(), Vec::new());
        let (root, path) = (path(&self.root).ok()?, path(fd).ok()?);
        let (root, path) = (root.as_bytes(), path.as_bytes());
        if path == root {
            return Some(b".".to_vec());
        }
        let below = path.strip_prefix(root)?;
        let below = if root.ends_with(b"/") { below } else { below.strip_prefix(b"/")? };
        Some(below.to_vec())
    }

    /// Whether the source has so much room that nobody can miss what is not free yet.
    fn has_room(&self, now: u64) -> bool {
        if now.saturating_sub(self.room_looked_at.load(Ordering::Relaxed)) >= SPACE_LOOK {
            self.room_looked_at.store(now, Ordering::Relaxed);
            let room = fstatvfs(&self.root).is_ok_and(|fs| {
                fs.f_bavail >= fs.f_blocks / LEAST_FREE && fs.f_favail >= fs.f_files / LEAST_FREE
            });
            self.has_room.store(room, Ordering::Relaxed);
        }
        self.has_room.load(Ordering::Relaxed)
    }

    /// Whether nothing waits in a directory; then nothing will in this state of it.
    fn retire(&self, directory: &Directory) -> bool {
        let mut inner = directory.inner.lock();
        let unused = inner.waiting == 0 && inner.listers == 0 && inner.blocks.is_empty();
        if unused {
            inner.retired = true;
            self.end_list(directory, &mut inner);
        }
        unused
    }

    /// Forgets a directory if nothing waits in it.
    fn put_away(&self, id: u64) {
        let mut directories = self.directories.lock();
        if directories.known.get(&id).is_some_and(|directory| self.retire(directory)) {
            directories.known.remove(&id);
        }
    }

    fn announce(&self, announcement: impl FnOnce(&mut Announced)) {
        // Before whoever announces it looks at anything.
        self.announcements.fetch_add(1, Ordering::SeqCst);
        announcement(&mut self.announced.lock());
    }

    fn withdraw(&self, announcement: impl FnOnce(&mut Announced)) {
        announcement(&mut self.announced.lock());
        self.announcements.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the name, or its directory, is about to change.
    fn is_announced(&self, directory: u64, name: &[u8]) -> bool {
        if self.announcements.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let announced = self.announced.lock();
        announced.names.iter().any(|(id, busy)| *id == directory && **busy == *name)
            || announced.held.iter().any(|id| *id == directory || *id == 0)
    }

    fn is_kept(&self, node: u64) -> bool {
        let granted = self.granted.lock();
        granted.len() >= GRANTS_MAX || granted.contains(&node)
    }

    fn try_take(
        &self,
        fs: &PassthroughFs,
        req: &Request,
        directory: &Arc<Directory>,
        name: &OsStr,
    ) -> Verdict {
        let Some(client) = req.credentials() else { return Verdict::AtOnce };
        let now = now();
        if !self.has_room(now) {
            return Verdict::AtOnce;
        }
        let mut guard = directory.inner.lock();
        let inner = &mut *guard;
        if inner.retired {
            return Verdict::AtOnce;
        }
        let same = |caller: &Caller| {
            let identity = &caller.identity;
            identity.uid == client.uid && identity.gid == client.gid && identity.groups == client.groups
        };
        let known = inner.callers.iter().position(same);
        let caller = match known {
            Some(index) if inner.callers[index].until > now => index,
            known => {
                if !may_remove(directory, client.uid) {
                    return Verdict::AtOnce;
                }
                let identity = Identity { uid: client.uid, gid: client.gid, groups: client.groups.clone() };
                let until = now.saturating_add(self.ttl);
                match known {
                    Some(index) => {
                        inner.callers[index].until = until;
                        index
                    }
                    None if !fits(&directory.owner(&identity)) => return Verdict::AtOnce,
                    None => {
                        inner.callers.push(Caller { identity, until, filling: None });
                        inner.callers.len() - 1
                    }
                }
            }
        };
        self.check_list(directory, inner, now);
        let mut known = inner.names.get(name.as_bytes());
        if known.is_none() {
            match self.list_on(fs, req, directory, inner, now) {
                Ok(true) => known = inner.names.get(name.as_bytes()),
                Ok(false) => {}
                Err(_) => return Verdict::AtOnce,
            }
        }
        let (node, target) = match known {
            Some(Known::Waits { .. } | Known::Done) => return Verdict::AtOnce,
            Some(Known::Listed(inode)) => {
                let Ok(node) = fs.ids.beside(directory.id, inode) else { return Verdict::AtOnce };
                (node, Target { inode, birth: Birth::Before(inner.looks.latest()) })
            }
            None => {
                self.looked_at.fetch_add(1, Ordering::Relaxed);
                let Ok(stat) = stat_at(&directory.fd, name) else { return Verdict::AtOnce };
                let fixed = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
                if attributes::is_directory(&stat) || stat.stx_attributes.intersects(fixed) {
                    return Verdict::AtOnce;
                }
                let Ok(Ok(node)) = fs.ids.of(&stat) else { return Verdict::AtOnce };
                if !fs.ids.is_beside_root(node) {
                    return Verdict::AtOnce;
                }
                let born = attributes::born(&stat);
                inner.looks.saw(born);
                (node, Target { inode: stat.stx_ino, birth: Birth::At(born) })
            }
        };
        // It counts before it is looked whether somebody is about to change the name, the directory or the file.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let verdict = self.record(directory, inner, caller, name.as_bytes(), node, target);
        match verdict {
            Verdict::Taken => {
                self.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Verdict::AtOnce | Verdict::Full => self.one_less_waits(),
        }
        verdict
    }

    fn record(
        &self,
        directory: &Arc<Directory>,
        inner: &mut Inner,
        caller: usize,
        name: &[u8],
        node: u64,
        target: Target,
    ) -> Verdict {
        let mut inodes = self.inodes.lock();
        let btree_map::Entry::Vacant(entry) = inodes.entry(node) else { return Verdict::AtOnce };
        if self.is_announced(directory.id, name) || self.is_kept(node) || self.ended.load(Ordering::SeqCst) {
            return Verdict::AtOnce;
        }
        let Ok(place) = self.add(directory, inner, caller, name, target) else { return Verdict::Full };
        entry.insert((directory.id, place));
        drop(inodes);
        if matches!(inner.names.set(name, Known::Waits { place, node }), Some(Known::Listed(_))) {
            inner.looks.used();
            self.end_used_up(directory, inner);
        }
        inner.waiting += 1;
        Verdict::Taken
    }

    fn one_less_waits(&self) {
        if self.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            let _queue = self.queue.lock();
            self.idle.notify_all();
        }
    }

    /// Writes a record, into a further block if need be.
    fn add(
        &self,
        directory: &Arc<Directory>,
        inner: &mut Inner,
        caller: usize,
        name: &[u8],
        target: Target,
    ) -> std::result::Result<Place, Full> {
        let Inner { callers, blocks, .. } = inner;
        let caller = &mut callers[caller];
        if let Some(filling) = &mut caller.filling {
            if let Ok(place) = self.journal.add(filling, name, target) {
                blocks.entry(place.block).or_default().left += 1;
                return Ok(place);
            }
            let full = filling.block;
            caller.filling = None;
            if let Some(block) = blocks.get_mut(&full) {
                block.open = false;
            }
            self.end_if_over(blocks, full);
        }
        let mut filling = self.journal.begin(&directory.owner(&caller.identity))?;
        let place = self.journal.add(&mut filling, name, target)?;
        caller.filling = Some(filling);
        blocks.insert(filling.block, Block { open: true, left: 1, users: 0 });
        self.enqueue(filling.block, directory);
        Ok(place)
    }

    fn end_if_over(&self, blocks: &mut HashMap<u32, Block>, block: u32) {
        if blocks.get(&block).is_some_and(|over| !over.open && over.left == 0 && over.users == 0) {
            blocks.remove(&block);
            self.journal.end(block);
            self.has_freed();
        }
    }

    /// Removes a name that waits, or waits until somebody else has.
    fn settle_name(&self, directory: &Arc<Directory>, name: &[u8]) {
        let mut inner = directory.inner.lock();
        let Some(Known::Waits { place: mine, .. }) = inner.names.get(name) else { return };
        if self.journal.take(mine) {
            let owner = self.journal.owner(mine.block);
            drop(inner);
            self.perform(directory, owner.as_ref(), mine, &mut Vec::new());
            return;
        }
        let waits = |inner: &Inner| matches!(inner.names.get(name), Some(Known::Waits { place, .. }) if place == mine);
        while waits(&inner) {
            directory.settled.wait(&mut inner);
        }
    }

    fn settle_directory(&self, id: u64) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let Some(directory) = self.known(id) else { return };
        loop {
            let blocks: Vec<u32> = directory.inner.lock().blocks.keys().copied().collect();
            for block in blocks {
                self.go_through(block, &directory, || false);
            }
            let mut inner = directory.inner.lock();
            if inner.waiting == 0 {
                return;
            }
            // Others are at it.
            directory.settled.wait_for(&mut inner, Duration::from_millis(10));
        }
    }

    /// Removes what the records of a block name, until `pauses`; whether all were looked at.
    fn go_through(&self, block: u32, directory: &Arc<Directory>, mut pauses: impl FnMut() -> bool) -> bool {
        {
            let mut inner = directory.inner.lock();
            let Some(known) = inner.blocks.get_mut(&block) else { return true };
            known.open = false;
            known.users += 1;
            for caller in &mut inner.callers {
                if caller.filling.is_some_and(|filling| filling.block == block) {
                    caller.filling = None;
                }
            }
        }
        let owner = self.journal.owner(block);
        let mut whole = true;
        let mut name = Vec::new();
        for (index, (place, open)) in self.journal.records(block).enumerate() {
            if index % workers::LOOKS_AFTER == workers::LOOKS_AFTER - 1 && pauses() {
                whole = false;
                break;
            }
            if open && self.journal.take(place) {
                self.perform(directory, owner.as_ref(), place, &mut name);
            }
        }
        let mut inner = directory.inner.lock();
        if let Some(known) = inner.blocks.get_mut(&block) {
            known.users -= 1;
        }
        self.end_if_over(&mut inner.blocks, block);
        whole
    }

    /// Does what a record says that this thread has taken.
    fn perform(&self, directory: &Arc<Directory>, owner: Option<&Owner>, place: Place, name: &mut Vec<u8>) {
        let target = self.journal.read(place, name);
        let removed = match owner {
            Some(owner) => assume(self.can_switch, &owner.identity)
                .map_err(Failure::Refused)
                .and_then(|()| remove(&*directory.fd, OsStr::from_bytes(name), target)),
            None => Err(Failure::Refused(Errno::IO)),
        };
        self.over(directory, place, name, removed);
    }

    fn over(
        &self,
        directory: &Arc<Directory>,
        place: Place,
        name: &[u8],
        removed: std::result::Result<(), Failure>,
    ) {
        self.tried.fetch_add(1, Ordering::SeqCst);
        let mut inner = directory.inner.lock();
        self.journal.done(place);
        let known = match inner.listers > 0 && removed.is_ok() {
            true => inner.names.set(name, Known::Done),
            false => inner.names.forget(name, |_| true),
        };
        if let Some(Known::Waits { node, .. }) = known {
            self.inodes.lock().remove(&node);
        }
        if removed.is_err() {
            // Perhaps others cannot be removed, either.
            self.avoid_list(directory, &mut inner);
        }
        if let Some(block) = inner.blocks.get_mut(&place.block) {
            block.left -= 1;
        }
        inner.waiting -= 1;
        self.end_if_over(&mut inner.blocks, place.block);
        drop(inner);
        match removed {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let shown = String::from_utf8_lossy(name);
                tracing::error!("{shown:?} is there again, although its removal was acknowledged: {failure}");
                if let Some(notifier) = self.notifier.get() {
                    // The kernel may never have heard of it.
                    let parent = crate::INodeNo(directory.id);
                    let _ = notifier.inval_entry(parent, OsStr::from_bytes(name));
                    // Without an entry that drops no listing (`fuse_reverse_inval_entry`).
                    let _ = notifier.inval_inode(parent, 0, 0);
                }
            }
        }
        directory.settled.notify_all();
        self.one_less_waits();
    }

    /// Does everything, and defers nothing any more.
    fn finish(&self) {
        let first = !self.ended.swap(true, Ordering::SeqCst);
        self.settle_all();
        if first {
            // Under the locks of directories nothing is recorded once they have seen that it has ended.
            let directories: Vec<_> = self.directories.lock().known.values().cloned().collect();
            directories.iter().for_each(|directory| drop(directory.inner.lock()));
            self.settle_all();
            // The thread may act as whoever had something removed, and the journal is the daemon's.
            if let Err(errno) = credentials::become_daemon() {
                tracing::error!("cannot act as the daemon: {errno}");
            }
            self.journal.remove();
            self.stop();
        }
    }
}

impl Directory {
    fn owner(&self, identity: &Identity) -> Owner {
        Owner { inode: self.inode, locator: self.locator.clone(), identity: identity.clone() }
    }
}

/// Why an acknowledged unlink was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Refused(Errno),
    #[error("somebody has put another file there")]
    Replaced,
}

fn assume(can_switch: bool, identity: &Identity) -> Result<()> {
    if can_switch { credentials::assume(identity.uid, identity.gid, &identity.groups) } else { Ok(()) }
}

/// Removes a name if it still stands for the same file. What is gone is done.
fn remove(dir: impl AsFd, name: &OsStr, target: Target) -> std::result::Result<(), Failure> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = match statx(&dir, name, flags, attributes::WANTED) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat.map_err(Failure::Refused)?,
    };
    let born = attributes::born(&stat);
    let same = match target.birth {
        Birth::At(then) => born == then,
        Birth::Before(latest) => born <= latest,
    };
    if stat.stx_ino != target.inode || !same {
        return Err(Failure::Replaced);
    }
    match unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        unlinked => unlinked.map_err(Failure::Refused),
    }
}

/// Whether the thread's user may remove any name from a directory, whoever owns the file.
fn may_remove(directory: &Directory, uid: u32) -> bool {
    let path = ProcPath::of(&directory.fd);
    let may = accessat(CWD, path.as_c_str(), Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok();
    let Ok(stat) = stat_of(&directory.fd) else { return false };
    let sticky = u32::from(stat.stx_mode) & libc::S_ISVTX != 0;
    may && stat.stx_nlink > 0
        && !stat.stx_attributes.contains(StatxAttributes::APPEND)
        && (!sticky || uid == 0 || uid == stat.stx_uid)
}
