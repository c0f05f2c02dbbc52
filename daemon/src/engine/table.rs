//! What clients look up by themselves: the mount's metadata table, as the engine fills it ([`finesse_ipc::table`]).
//!
//! *Who may read it.* Every client reads all of it. So a name is published only if everybody may search every directory above it:
//! that is established for each directory on the way from the root, and holds for one generation of the table
//! ([`Inode::is_open`]). Whatever may close a directory begins a new generation: a mode without all search bits, an access control
//! list, a move to a directory that is not known to be open, something mounted below.
//!
//! *What is right stays right* by the same rules as in the [`cache`](super::cache), and at the same places: every change is counted
//! after the file system has changed, then taken out of the table, then answered. What has been asked for before
//! is not published after.
//!
//! *Attributes* are found by the node id, which a walk has from a name. What can change without that the node id is known is not
//! published: attributes of files with several names. A file whose only name goes is found no more; if its node id is another
//! file's then, that one's attributes take the place of its before its name is published.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use finesse_ipc::frame::{Attr, PATH_MAX, ROOT};
use finesse_ipc::segment::TableMap;
use finesse_ipc::table::{AbsentXattrs, Expiry, Generation, Kind, Lending, Table};
use fuser::{FileAttr, FileType, INodeNo};
use rustix::io::Errno;

use crate::answer;
use crate::coherence::unread_for;
use crate::engine::cache::{Inode, Instant};
use crate::engine::serve::to_frame;
use crate::engine::walk::Node;
use crate::engine::{Checks, Engine};
use crate::filesystem::Filesystem;
use crate::mutant;
use crate::reply::ReplyXattr;

/// The metadata table of one mount.
pub(crate) struct Published {
    map: Arc<TableMap>,
    memory: OwnedFd,
    /// Something has been published, so that there may be something to take out.
    any: AtomicBool,
    /// How many times the table could grow when it was put into huge pages last.
    settled: AtomicU32,
    /// Counts, for some directories each, what has changed in them, and what has left the table although it may be right.
    turnover: [AtomicUsize; STRIPES],
}

/// How often it is tried to put all of a table into huge pages that has grown.
const COLLAPSES: u32 = 20;
/// Counts of [`Published::turnover`]; a power of two.
const STRIPES: usize = 64;

/// A generation of the table. Some directories are open to everybody, in all generations between which nothing was taken out because it
/// might be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Era(Generation);

/// The era in which a directory was found to be open to everybody, or closed to somebody.
#[derive(Debug, Default)]
pub(crate) struct Openness(AtomicU64);

impl Openness {
    /// Somebody may not search it.
    const CLOSED: u32 = 1;
    /// It was tried in vain to find out.
    const UNCLEAR: u32 = 2;
    /// Everybody may.
    const OPEN: u32 = 3;
    /// How often it is tried in an era: what changes meanwhile is in the way.
    const TRIES: u32 = 4;

    /// Never 0, which says that nothing is known. In the upper half is how often it was tried.
    fn word(era: Era, state: u32) -> u32 {
        era.0.era() << 2 | state
    }

    fn is(&self, era: Era, state: u32) -> bool {
        self.0.load(Ordering::Acquire) as u32 == Self::word(era, state)
    }

    /// Whether it was found out.
    fn is_known(&self, era: Era) -> bool {
        self.is_open(era) || self.is_closed(era)
    }

    /// Whether everybody may search it and all above it.
    pub(crate) fn is_open(&self, era: Era) -> bool {
        self.is(era, Self::OPEN)
    }

    /// Whether it was found that somebody may not.
    pub(crate) fn is_closed(&self, era: Era) -> bool {
        self.is(era, Self::CLOSED)
    }

    /// Everybody may, or somebody may not.
    pub(crate) fn set(&self, era: Era, open: bool) {
        let state = if open { Self::OPEN } else { Self::CLOSED };
        self.0.store(Self::word(era, state).into(), Ordering::Release);
    }

    /// Whether it is worth trying to find out, which counts as tried then.
    fn try_in(&self, era: Era) -> bool {
        let (known, unclear) = (self.0.load(Ordering::Acquire), Self::word(era, Self::UNCLEAR));
        let tries = match known as u32 {
            word if word == unclear => (known >> 32) as u32,
            word if word == 0 || word >> 2 != unclear >> 2 => 0,
            _ => return false,
        };
        let tried = u64::from(tries + 1) << 32 | u64::from(unclear);
        tries < Self::TRIES
            && self.0.compare_exchange(known, tried, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// What a name stands for, as the table has it.
pub(crate) fn kind_of(kind: FileType) -> Kind {
    match kind {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

impl Published {
    /// An empty table of so many bytes; `None` if it cannot be had.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        let mut seed = [0; 8];
        let created = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
            .and_then(|_| TableMap::create(bytes, u64::from_ne_bytes(seed)));
        match created {
            Ok((map, memory)) => {
                let turnover = [const { AtomicUsize::new(0) }; STRIPES];
                let growths = map.table()?.generation().growths();
                let (any, settled) = (AtomicBool::new(false), AtomicU32::new(growths));
                Some(Self { map: Arc::new(map), memory, any, settled, turnover })
            }
            Err(error) => {
                tracing::warn!(%error, "no metadata table: every lookup on the bypass is a round trip");
                None
            }
        }
    }

    /// What clients map.
    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The calling thread keeps it: it is believed until that ends.
    pub(crate) fn keep(&self) {
        if let Err(error) = self.map.keep() {
            tracing::warn!(%error, "nobody would hear of the daemon's death: the metadata table is not used");
        }
    }

    /// Nobody is to believe it any more.
    pub(crate) fn end(&self) {
        if let Some(table) = self.map.table() {
            table.keep(0);
        }
    }

    fn table(&self) -> Option<Table<'_, AtomicU64>> {
        self.map.table()
    }

    /// The present era.
    pub(crate) fn era(&self) -> Era {
        Era(self.table().map(|table| table.generation()).unwrap_or_default())
    }

    /// Takes everything out. The change must have been counted.
    pub(crate) fn renew(&self) {
        if !mutant::leaves_out("table: generation")
            && let Some(table) = self.table()
        {
            table.renew();
        }
    }

    /// Says what clients may open by themselves.
    pub(crate) fn lend(&self, lending: Lending) {
        if let Some(table) = self.table() {
            table.lend(lending);
        }
    }

    /// What clients may open by themselves.
    pub(crate) fn lending(&self) -> Lending {
        self.table().map(|table| table.lending()).unwrap_or_default()
    }

    /// Whether a name is in the table.
    pub(crate) fn holds(&self, era: Era, parent: u64, name: &OsStr) -> bool {
        let Some(table) = self.table() else { return true };
        // One that is too long never will be.
        table.key(era.0, parent, name.as_bytes()).is_none_or(|key| table.holds(&key))
    }

    /// Publishes what a name stands for: nothing, or an inode. `is_current` reads and modifies the count of changes.
    pub(crate) fn name(
        &self,
        era: Era,
        parent: u64,
        name: &OsStr,
        child: Option<(u64, FileType)>,
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) -> bool {
        let Some(table) = self.table() else { return false };
        let Some(key) = table.key(era.0, parent, name.as_bytes()) else { return false };
        let stands_for = child.map_or((0, Kind::Absent), |(ino, kind)| (ino, kind_of(kind)));
        self.any.store(true, Ordering::Release);
        mutant::lingers("table: mark");
        let published =
            table.publish_name(&key, stands_for, expiry, |parent| self.departs(era, parent), is_current);
        if let Some(now) = table.is_crowded() {
            table.grow(now, |parent| self.departs(Era(now), parent));
        }
        let growths = table.generation().growths();
        if growths < self.settled.load(Ordering::Relaxed) {
            self.settle(growths);
        }
        published
    }

    /// Puts a table that has grown into huge pages, in a thread of its own.
    #[cold]
    fn settle(&self, growths: u32) {
        if self.settled.fetch_min(growths, Ordering::Relaxed) <= growths {
            return;
        }
        let map = Arc::downgrade(&self.map);
        let collapse = move || {
            let Some(mut pages) = map.upgrade().map(|map| map.huge_pages_in_use()) else { return };
            for _ in 0..COLLAPSES {
                // Whoever fills it is in the way.
                std::thread::sleep(Duration::from_millis(100));
                // When the mount has ended, so has this.
                let Some(map) = map.upgrade() else { return };
                pages.retain(|page| match map.collapse(*page) {
                    Ok(()) => false,
                    Err(Errno::AGAIN) => true,
                    Err(error) => {
                        tracing::debug!(%error, page, "a part of the metadata table stays in small pages");
                        false
                    }
                });
                if pages.is_empty() {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("table-pages".into()).spawn(collapse) {
            tracing::debug!(%error, "the metadata table stays in small pages");
        }
    }

    /// Publishes in which directory one may be that everybody may search, unless that is in the table.
    pub(crate) fn parent(&self, era: Era, parent: u64, name: &OsStr, directory: u64) {
        if let Some(table) = self.table()
            && let Some(key) = table.key(era.0, parent, name.as_bytes())
            && !table.holds_parent(&key, directory)
        {
            table.publish_parent(&key, directory);
        }
    }

    fn turnover(&self, directory: u64) -> &AtomicUsize {
        &self.turnover[(directory.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize & (STRIPES - 1)]
    }

    /// How often something has changed in a directory, or left it: to be taken before it is read.
    pub(crate) fn turnovers(&self, directory: u64) -> usize {
        self.turnover(directory).load(Ordering::Acquire)
    }

    /// Marks a directory complete all of whose names were published since [`turnovers`](Self::turnovers) was taken.
    pub(crate) fn complete(&self, era: Era, directory: u64, expiry: Expiry, since: usize) {
        if let Some(table) = self.table() {
            table.mark(era.0, directory, expiry, || {
                self.turnover(directory).fetch_add(0, Ordering::AcqRel) == since
                    || mutant::leaves_out("table: turnover")
            });
        }
    }

    /// Whether a directory is marked complete.
    pub(crate) fn is_complete(&self, era: Era, directory: u64) -> bool {
        self.table().is_some_and(|table| table.is_marked(era.0, directory))
    }

    /// A name of a directory leaves, and may be right.
    fn departs(&self, era: Era, directory: u64) {
        self.turnover(directory).fetch_add(1, Ordering::AcqRel);
        if !mutant::leaves_out("table: marks")
            && let Some(table) = self.table()
        {
            table.unmark(era.0, directory);
        }
    }

    /// Publishes attributes, and which extended ones are not there.
    pub(crate) fn attr(
        &self,
        era: Era,
        attr: &Attr,
        absent: AbsentXattrs,
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) {
        let Some(table) = self.table() else { return };
        self.any.store(true, Ordering::Release);
        table.publish_attr(era.0, attr, absent, expiry, is_current);
    }

    /// Publishes a symbolic link's target.
    pub(crate) fn link(
        &self,
        era: Era,
        ino: u64,
        target: &[u8],
        expiry: Expiry,
        is_current: impl FnOnce() -> bool,
    ) {
        let Some(table) = self.table() else { return };
        self.any.store(true, Ordering::Release);
        table.publish_link(era.0, ino, target, expiry, is_current);
    }

    /// A name has changed, which has been counted.
    pub(crate) fn name_changed(&self, parent: u64, name: &OsStr) {
        if !self.any.load(Ordering::Acquire) || mutant::leaves_out("table: names") {
            return;
        }
        let Some(table) = self.table() else { return };
        table.change(|generation| {
            self.departs(Era(generation), parent);
            if let Some(key) = table.key(generation, parent, name.as_bytes()) {
                table.take_name(&key, |_| ());
            }
        });
    }

    /// An inode's attributes have changed, which has been counted.
    pub(crate) fn attr_changed(&self, ino: u64) {
        if !self.any.load(Ordering::Acquire) || mutant::leaves_out("table: attributes") {
            return;
        }
        if let Some(table) = self.table() {
            table.change(|generation| {
                table.take_attr(generation, ino);
            });
        }
    }

    /// What was known of the target of a node id is not known to be right.
    pub(crate) fn forget_link(&self, ino: u64) {
        if self.any.load(Ordering::Acquire)
            && let Some(table) = self.table()
        {
            table.change(|generation| {
                table.take_link(generation, ino);
            });
        }
    }

    /// What was known of a node id is not known to be right.
    pub(crate) fn forget(&self, ino: u64) {
        if self.any.load(Ordering::Acquire)
            && let Some(table) = self.table()
        {
            table.change(|generation| {
                table.take_attr(generation, ino);
            });
        }
    }
}

/// The access control list of a directory.
const ACCESS_LIST: &str = "system.posix_acl_access";

impl<FS: Filesystem> Engine<FS> {
    /// What clients map to look names up by themselves.
    pub(crate) fn table(&self) -> Option<&Published> {
        self.cache.table()
    }

    /// Finds out whether everybody may search the root.
    pub(super) fn open_root(&self) {
        let Some(table) = self.cache.table() else { return };
        let era = table.era();
        let root = &self.root;
        if root.openness.is_known(era) {
            return;
        }
        if self.known_attr(root).is_some_and(|attr| attr.perm & 0o111 != 0o111) {
            return;
        }
        let mark = self.cache.mark();
        let context = Self::daemons_own();
        if let Ok(attr) = self.fresh_attr(&self.request(&context), root) {
            self.open_directory(era, root, &attr, mark);
            if root.openness.is_open(era) {
                self.publish_attr(table, era, root, &attr, root.attr_expiry(), mark);
            }
        }
    }

    /// Finds out whether everybody may search a directory whose attributes were asked for at `mark`, and that is in one that
    /// everybody may search.
    fn open_directory(&self, era: Era, directory: &Inode, attr: &FileAttr, mark: u64) {
        let openness = &directory.openness;
        if attr.perm & 0o111 != 0o111 || openness.is_known(era) {
            return;
        }
        let listed = self.checks == Checks::Caller && self.has_access_list(directory.ino);
        // Who closes it counts that before the era ends, so that this is not noted for the next one.
        if self.cache.is_current(mark) {
            openness.set(era, !listed);
        }
    }

    /// Whether a directory has an access control list, by which somebody may be kept from searching it.
    fn has_access_list(&self, ino: u64) -> bool {
        let context = Self::daemons_own();
        let (reply, answer) = ReplyXattr::local();
        self.core.fs.ask().getxattr(&self.request(&context), INodeNo(ino), OsStr::new(ACCESS_LIST), 0, reply);
        match answer.wait() {
            Ok(answer::Xattr::Nothing(..)) => false,
            Ok(answer::Xattr::Size(_) | answer::Xattr::Data(_)) => true,
            Err(errno) => !matches!(errno.code(), libc::ENODATA | libc::EOPNOTSUPP | libc::ENOSYS),
        }
    }

    /// As [`publish`](Self::publish) for an entry of a listing; when its name ends, if it is in the table.
    pub(super) fn publish_listed(
        &self,
        era: Era,
        directory: &Inode,
        name: &OsStr,
        entry: &answer::Entry,
        inode: &Arc<Inode>,
        mark: u64,
    ) -> Option<Expiry> {
        let table = self.cache.table()?;
        let now = Instant::now();
        let expiry = now.after(entry.entry_ttl);
        self.publish_inode(table, era, inode, Some((&entry.attr, now.after(entry.attr_ttl))), mark)?;
        let is_current = || self.cache.is_current(mark);
        let child = Some((inode.ino, inode.kind));
        let is_good = expiry > Instant::EXPIRED;
        let published = is_good && table.name(era, directory.ino, name, child, expiry.expiry(), is_current);
        published.then_some(expiry.expiry())
    }

    /// The era, if what is in a directory may be published.
    pub(super) fn era_of(&self, directory: &Inode) -> Option<Era> {
        let era = self.cache.table()?.era();
        directory.openness.is_open(era).then_some(era)
    }

    /// Publishes in which directory one may be, from which somebody goes up: most are never left that way.
    pub(super) fn publish_parent(&self, directory: &Inode) {
        if let (Some(table), Some(era)) = (self.cache.table(), self.era_of(directory))
            && let Some(known) = directory.parent_name()
            && let Some(parent) = self.cache.known(known.directory)
            && parent.openness.is_open(era)
            && !self.is_covered(parent.ino)
        {
            table.parent(era, known.directory, &known.name, directory.ino);
        }
    }

    /// Publishes what the file system has answered about a name at `mark`; the era in which everybody may know it.
    pub(super) fn publish(
        &self,
        directory: &Inode,
        name: &OsStr,
        entry: &answer::Entry,
        inode: Option<&Arc<Inode>>,
        mark: u64,
    ) -> Option<Era> {
        let table = self.cache.table()?;
        let era = table.era();
        if !directory.openness.is_open(era) {
            return None;
        }
        let now = Instant::now();
        let expiry = now.after(entry.entry_ttl);
        if let Some(inode) = inode {
            self.publish_inode(table, era, inode, Some((&entry.attr, now.after(entry.attr_ttl))), mark)?;
        }
        if expiry > Instant::EXPIRED {
            let child = inode.map(|inode| (inode.ino, inode.kind));
            table.name(era, directory.ino, name, child, expiry.expiry(), || self.cache.is_current(mark));
        }
        Some(era)
    }

    /// Publishes a name that was remembered at `mark`, unless it is in the table.
    pub(super) fn publish_known(
        &self,
        directory: &Inode,
        name: &OsStr,
        inode: &Arc<Inode>,
        expiry: Instant,
        mark: u64,
    ) -> Option<Era> {
        let table = self.cache.table()?;
        let era = table.era();
        if !directory.openness.is_open(era) {
            return None;
        }
        let is_settled = inode.kind != FileType::Directory || inode.openness.is_known(era);
        if is_settled && table.holds(era, directory.ino, name) {
            return Some(era);
        }
        let attr = match inode.attr(&self.cache) {
            // Whoever lists a directory changes when it was last accessed, and few ask for that.
            None if !is_settled && inode.may_be_open() => {
                self.fresh_attr(&self.request(&Self::daemons_own()), inode).ok()
            }
            attr => attr,
        };
        self.publish_inode(table, era, inode, attr.as_ref().map(|attr| (attr, inode.attr_expiry())), mark)?;
        let child = Some((inode.ino, inode.kind));
        table.name(era, directory.ino, name, child, expiry.expiry(), || self.cache.is_current(mark));
        Some(era)
    }

    /// Publishes that a name does not exist, as was remembered at `mark`, unless it is in the table: an entry may have made room, or a new
    /// generation have begun.
    pub(super) fn publish_known_absent(&self, directory: &Inode, name: &OsStr, expiry: Instant, mark: u64) {
        if let (Some(table), Some(era)) = (self.cache.table(), self.era_of(directory))
            && !table.holds(era, directory.ino, name)
        {
            table.name(era, directory.ino, name, None, expiry.expiry(), || self.cache.is_current(mark));
        }
    }

    /// Publishes an inode before its name: its attributes, as far as they are known, take the place of whatever had its node id
    /// before. `None` if nobody is to find it.
    pub(super) fn publish_inode(
        &self,
        table: &Published,
        era: Era,
        inode: &Inode,
        attr: Option<(&FileAttr, Instant)>,
        mark: u64,
    ) -> Option<()> {
        if self.is_covered(inode.ino) {
            return None;
        }
        match attr {
            Some((attr, expiry)) => self.publish_attr(table, era, inode, attr, expiry, mark),
            None => table.forget(inode.ino),
        }
        if inode.kind == FileType::Symlink {
            table.forget_link(inode.ino);
        }
        if let (FileType::Directory, Some((attr, _))) = (inode.kind, attr) {
            self.open_directory(era, inode, attr, mark);
        }
        Some(())
    }

    /// Publishes attributes of an inode that everybody may know.
    fn publish_attr(
        &self,
        table: &Published,
        era: Era,
        inode: &Inode,
        attr: &FileAttr,
        mut expiry: Instant,
        mark: u64,
    ) {
        let has_names = attr.nlink > 1 && inode.kind != FileType::Directory;
        let mut good = expiry > Instant::EXPIRED
            && !has_names
            && !self.changes_unseen(inode)
            && !self.is_missed_by_lending(inode);
        if good && self.may_be_read_unseen(inode) {
            match unread_for(attr, SystemTime::now()) {
                Some(left) => expiry = expiry.min(Instant::now().after(left)),
                None => good = false,
            }
        }
        match good {
            true => {
                let is_current = || self.cache.is_current(mark);
                // By a descriptor of the source's attributes can be set unseen.
                let absent = match self.core.coherence.is_granted(inode.ino) {
                    true => AbsentXattrs::default(),
                    false => self.absent_for_all(inode.absent_xattrs()),
                };
                table.attr(era, &to_frame(attr), absent, expiry.expiry(), is_current);
            }
            false => table.forget(inode.ino),
        }
    }

    /// Publishes attributes that were asked for at `mark`, or remembered then, of what a walk has found.
    pub(super) fn publish_found(&self, node: &Node, attr: &FileAttr, mark: u64) {
        if let (Some(table), Some(era)) = (self.cache.table(), node.public)
            && era == table.era()
        {
            self.publish_attr(table, era, &node.inode, attr, node.inode.attr_expiry(), mark);
        }
    }

    /// Publishes the target of a symbolic link that a walk has found.
    pub(super) fn publish_target(&self, node: &Node, target: &[u8], mark: u64) {
        if let (Some(table), Some(era)) = (self.cache.table(), node.public)
            && era == table.era()
        {
            let expiry = node.inode.attr_expiry();
            if expiry > Instant::EXPIRED {
                table.link(era, node.inode.ino, target, expiry.expiry(), || self.cache.is_current(mark));
            }
        }
    }

    /// A client has proven a directory by its descriptor, which is at this path below the root: walks there, to find out whether
    /// everybody may, and by which name.
    pub(crate) fn open_base(&self, ino: u64, path: Option<&[u8]>) {
        let Some(path) = path.filter(|path| !path.is_empty()) else { return };
        let base = self.cache.borrowed(ino);
        let is_open = self.cache.table().is_none_or(|table| base.openness.is_open(table.era()));
        if !is_open || base.parent_name().is_none() {
            let context = Self::daemons_own();
            // What cannot be walked to is not published.
            let _ = self.resolve(&context, &self.request(&context), ROOT, path, false);
        }
    }

    /// A client's path begins in a directory: finds out whether everybody may search it, if another era has begun.
    pub(super) fn reopen_base(&self, base: &Inode) {
        let Some(era) = self.cache.table().map(Published::era) else { return };
        if base.openness.try_in(era)
            && let Some(path) = self.path_of(base)
        {
            let context = Self::daemons_own();
            let _ = self.resolve(&context, &self.request(&context), ROOT, &path, false);
        }
    }

    /// The path below the root by whose names a directory was found last.
    fn path_of(&self, directory: &Inode) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut above = directory.parent_name()?;
        while above.directory != ROOT {
            let parent = self.cache.known(above.directory)?;
            names.push(std::mem::replace(&mut above, parent.parent_name()?));
            if names.len() > PATH_MAX / 2 {
                // They lead in a circle, if one was moved into the other meanwhile.
                return None;
            }
        }
        names.push(above);
        let names: Vec<_> = names.iter().rev().map(|above| above.name.as_bytes()).collect();
        Some(names.join(&b'/'))
    }
}
