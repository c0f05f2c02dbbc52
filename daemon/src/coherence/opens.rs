//! Who has which file open: the kernel, and how it reads and writes it, and the daemon for bypass clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::FopenFlags;
use parking_lot::Mutex;

use super::names::Stands;
use super::{Coherence, Creation, Key, shard};

/// The open files of one inode: the kernel's, and those that the daemon keeps for bypass clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opens {
    /// How many the kernel has.
    pub(super) total: u32,
    /// Since it had none, some were opened in cached mode: the page cache may hold contents.
    pub(crate) cached: bool,
    /// Since it had none, some were opened for direct input and output. The page cache holds what is mapped.
    pub(crate) direct: bool,
    /// Since it had none, some were opened with kernel passthrough.
    pub(crate) passthrough: bool,
    /// Some of those can write, which nobody hears of.
    pub(super) writes_unseen: bool,
    /// The page cache may hold contents from before, which the kernel is allowed to keep: it hears of every change.
    pub(super) kept: bool,
    /// Some that can write were opened otherwise: mapped, they can have changed pages that the file system has not
    /// got yet.
    pub(crate) writer: bool,
    /// Some of the writers were opened in cached mode, so the kernel decides by itself where the file ends.
    pub(crate) cached_writer: bool,
    /// While the kernel had writers, the bypass changed the file, so its end is not where the kernel thinks.
    pub(super) resized: bool,
    /// Since it had none, some were opened to be executed: nobody may write (`deny_write_access`).
    pub(crate) executed: bool,
    /// How many files bypass clients have open virtually.
    pub(super) virtuals: u32,
    /// How many of them can write.
    pub(crate) virtual_writers: u32,
}

impl Opens {
    /// Whether the page cache may hold contents.
    pub(super) fn paged(self) -> bool {
        self.cached || self.direct || self.kept
    }

    /// The kernel's last file is closed.
    fn kernel_closed(&mut self) {
        let Self { virtuals, virtual_writers, kept, .. } = *self;
        *self = Self { virtuals, virtual_writers, kept, ..Self::default() };
    }

    /// Whether the file can be opened virtually besides.
    fn gets_on_with_virtuals(self) -> bool {
        !self.cached_writer && !self.passthrough
    }

    /// Nobody has it open, or is about to have; pages may be left.
    pub(super) fn is_closed(self) -> bool {
        Self { kept: false, ..self } == Self::default()
    }

    /// Nobody has it open, and no page is left.
    pub(super) fn is_over(self) -> bool {
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
pub(super) struct OpenInode {
    pub(super) opens: Opens,
    pub(super) turn: Option<Turn>,
    /// The directories in which the kernel has created it since, and perhaps has not got the answer yet.
    pub(super) created_in: Vec<u64>,
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

impl Coherence {
    /// Whether the kernel holds a reference to an inode, but no open file of it.
    pub(super) fn is_closed_in_kernel(&self, ino: u64) -> bool {
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
        if (passthrough || access.writes)
            && let Some(cache) = self.cache()
        {
            // Also what is changed through a mapping of the page cache: who opens the backing file by himself would miss it.
            cache.unseen(ino);
        }
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

    /// A file is about to be opened virtually. From here on the kernel opens it for writing only in a way that keeps
    /// both roads' writes apart. `None` if the kernel has it open already for writing through its page cache, where it may
    /// have contents, and a notion of the file's end, that nobody else sees; or with passthrough, which then goes for
    /// every open file of the inode, also for what a virtual descriptor is to become.
    pub(crate) fn open_virtually(self: &Arc<Self>, ino: u64, writes: bool) -> Option<VirtualOpen> {
        let mut shard = shard(&self.opens, ino).lock();
        let open = shard.entry(ino).or_default();
        if !open.opens.gets_on_with_virtuals() {
            return None;
        }
        open.opens.virtuals += 1;
        open.opens.virtual_writers += u32::from(writes);
        let turn = Arc::clone(open.turn.get_or_insert_default());
        Some(VirtualOpen { coherence: Arc::clone(self), ino, writes, turn })
    }

    /// The kernel is about to open a file by a name at which the bypass may just be making it.
    pub(crate) fn opens_by_name(&self, key: Option<Key>, ino: u64) {
        if let Some(key) = key {
            let reserve = |ino, creation| self.reserve(ino, creation);
            self.names.sends(key, Stands::Inode(ino), &reserve);
        }
    }

    /// A file that is being made will be open virtually, or granted: from here on the kernel opens it accordingly. Whether that
    /// must be [taken back](Self::unreserve): not if it is granted, or if the kernel has opened it otherwise already.
    pub(super) fn reserve(&self, ino: u64, creation: Creation) -> bool {
        if creation == Creation::Granted {
            // With passthrough the kernel gets on with that, and only so do mappings of its own show what is written there.
            self.reserve_granted_write(ino);
            return false;
        }
        let mut shard = shard(&self.opens, ino).lock();
        let opens = &mut shard.entry(ino).or_default().opens;
        let gets_on = opens.gets_on_with_virtuals();
        opens.virtuals += u32::from(gets_on);
        gets_on
    }

    /// Inodes need not be reserved any more.
    pub(super) fn unreserve(&self, inodes: &[u64]) {
        inodes.iter().for_each(|ino| self.close_virtually(*ino, false));
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

    /// Whose turn it is to write at the end of a file that the kernel has open directly. `None` if no bypass client can
    /// write to it, as long as the kernel has it open.
    pub(crate) fn append_turn(&self, ino: u64) -> Option<Turn> {
        let mut shard = shard(&self.opens, ino).lock();
        let open = shard.get_mut(&ino).filter(|open| !open.opens.cached_writer)?;
        Some(Arc::clone(open.turn.get_or_insert_default()))
    }

    /// Whether the kernel may be wrong about where a file ends that it has open: bypass clients write to it, or have.
    /// Asked in one's turn: a client may begin to write at any time.
    pub(crate) fn moves_end(&self, ino: u64) -> bool {
        let opens = self.kernel_opens(ino);
        opens.virtual_writers > 0 || opens.resized
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
