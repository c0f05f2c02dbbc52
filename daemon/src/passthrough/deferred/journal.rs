//! The record of what was acknowledged and is not done: a file in shared memory that outlives the daemon.
//!
//! A *block* of 4 KiB belongs to one directory and one caller, and says how to find the one and act as the other; its *records* are
//! names. A record counts once the block's counter includes it, which is stored last; so a daemon that is killed leaves whole records or
//! none. What is in the file is words ([`SharedWords`]), and nobody but the file's owner can open it.
//!
//! The file grows by extents, whose memory is taken when the file grows (fallocate(2)), because a page that cannot be
//! had later would be `SIGBUS`; it shrinks when everything is done.

#![deny(unsafe_code)]

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, openat};
use rustix::io::{Errno, Result};

use super::super::sys::SharedWords;

/// Where journals are: in memory, and so gone with the machine's next start, as is what they are about.
const PLACE: &str = "/dev/shm";
const PREFIX: &str = "finesse-unlink.";

/// Words of a block.
const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = BLOCK as u64 * 8;
/// By how many blocks the file grows.
const EXTENT: u32 = 256;
/// Most blocks: 64 MiB, or about two million short names.
const BLOCKS: u32 = 16_384;
/// What a block is left with so that one more name fits, whatever its length: the record's head and 255 bytes.
const LONGEST_RECORD: usize = RECORD_HEAD + 255_usize.div_ceil(8);

/// `FNSUNLK` and the layout's version.
const MAGIC: u64 = u64::from_be_bytes(*b"FNSUNLK\x01");

// Of the file's first block.
const H_MAGIC: usize = 0;
const H_DEVICE: usize = 1;
const H_INODE: usize = 2;
const H_LENGTH: usize = 3;
const H_SOURCE: usize = 4;

// Of every other.
const COUNT: usize = 0;
const DIRECTORY: usize = 1;
const USER: usize = 2;
/// Groups, the kind of the locator, and its length in bytes.
const SHAPE: usize = 3;
const HANDLE_KIND: usize = 4;
const VARIABLE: usize = 5;

// Of a record: state, length of the name and kind of birth; inode; birth; name.
const RECORD_HEAD: usize = 3;
const STATE: u64 = 0xff;
const WAITS: u64 = 0;
const RUNS: u64 = 1;
const DONE: u64 = 2;
const EXACT: u64 = 1 << 32;

/// Most supplementary groups that a block tells of.
const GROUPS_MAX: usize = 256;
/// Longest path that a block tells of, in bytes.
const PATH_MAX: usize = 2048;

/// How a directory is found again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Locator {
    /// By file handle, on the source's device.
    Handle {
        /// The handle's type.
        kind: i32,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// By its path below the source.
    Path(Vec<u8>),
}

/// Whose rights count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Box<[u32]>,
}

/// What all records of a block share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The directory's inode number.
    pub(super) inode: u64,
    pub(super) locator: Locator,
    pub(super) identity: Identity,
}

/// Which file a name stood for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// Its inode number, on the directory's device.
    pub(super) inode: u64,
    pub(super) birth: Birth,
}

/// When a file was born, in nanoseconds since the epoch: tells it from a later one that reuses its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Birth {
    /// Then; 0: the file system does not say.
    At(i64),
    /// Then at the latest.
    Before(i64),
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u32,
    pub(super) word: u16,
}

/// A block that is filled, and where it is free.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filling {
    pub(super) block: u32,
    word: u16,
    count: u32,
}

/// No more blocks: as many as there may be are in use, or no memory is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug, Default)]
struct Room {
    free: Vec<u32>,
    /// How many blocks the file has.
    blocks: u32,
}

/// A journal.
pub(super) struct Journal {
    words: SharedWords,
    file: OwnedFd,
    path: PathBuf,
    room: Mutex<Room>,
    most: u32,
}

impl Journal {
    /// A journal for the source at `source`, locked for as long as this process has it.
    pub(super) fn create(source: &Path, device: (u32, u32), inode: u64) -> Result<Self> {
        Self::create_in(Path::new(PLACE), source, device, inode, BLOCKS)
    }

    pub(super) fn create_in(
        place: &Path,
        source: &Path,
        device: (u32, u32),
        inode: u64,
        most: u32,
    ) -> Result<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let path = place.join(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
        // Before it says what it is, so that nobody takes it for one that was left.
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let words = SharedWords::map(&file, (most as usize + 1) * BLOCK)?;
        let journal = Self { words, file, path, room: Mutex::default(), most };
        journal.grow(&mut journal.room.lock())?;
        let header = journal.words.get(0, BLOCK);
        let source = source.as_os_str().as_bytes();
        let source = &source[..source.len().min((BLOCK - H_SOURCE) * 8)];
        header[H_DEVICE].store(u64::from(device.0) << 32 | u64::from(device.1), Ordering::Relaxed);
        header[H_INODE].store(inode, Ordering::Relaxed);
        header[H_LENGTH].store(source.len() as u64, Ordering::Relaxed);
        write_bytes(&header[H_SOURCE..], source);
        header[H_MAGIC].store(MAGIC, Ordering::Release);
        Ok(journal)
    }

    /// Adds blocks, and the memory that they take.
    fn grow(&self, room: &mut Room) -> Result<()> {
        let blocks = (room.blocks + EXTENT).min(self.most);
        let (from, to) = (u64::from(room.blocks + 1), u64::from(blocks + 1));
        let from = if room.blocks == 0 { 0 } else { from };
        rustix::fs::fallocate(
            &self.file,
            FallocateFlags::empty(),
            from * BLOCK_BYTES,
            (to - from) * BLOCK_BYTES,
        )?;
        room.free.extend((room.blocks + 1..=blocks).rev());
        room.blocks = blocks;
        Ok(())
    }

    fn block(&self, block: u32) -> &[AtomicU64] {
        self.words.get(block as usize * BLOCK, BLOCK)
    }

    /// A block for the directory and the caller.
    ///
    /// # Errors
    /// [`Full`]; also if the owner cannot be told in a block, which [`fits`] says before.
    pub(super) fn begin(&self, owner: &Owner) -> std::result::Result<Filling, Full> {
        let mut room = self.room.lock();
        if room.free.is_empty() && room.blocks < self.most && self.grow(&mut room).is_err() {
            return Err(Full);
        }
        let block = room.free.pop().ok_or(Full)?;
        drop(room);
        let words = self.block(block);
        words[COUNT].store(0, Ordering::Relaxed);
        words[DIRECTORY].store(owner.inode, Ordering::Relaxed);
        let identity = &owner.identity;
        words[USER].store(u64::from(identity.uid) << 32 | u64::from(identity.gid), Ordering::Relaxed);
        let (is_path, kind, bytes) = match &owner.locator {
            Locator::Handle { kind, bytes } => (0, *kind, bytes),
            Locator::Path(path) => (1, 0, path),
        };
        let shape = (identity.groups.len() as u64) << 32 | is_path << 16 | bytes.len() as u64;
        words[SHAPE].store(shape, Ordering::Relaxed);
        words[HANDLE_KIND].store(u64::from(kind.cast_unsigned()), Ordering::Relaxed);
        let mut word = VARIABLE;
        for pair in identity.groups.chunks(2) {
            let high = pair.get(1).copied().unwrap_or_default();
            words[word].store(u64::from(high) << 32 | u64::from(pair[0]), Ordering::Relaxed);
            word += 1;
        }
        write_bytes(&words[word..], bytes);
        word += bytes.len().div_ceil(8);
        Ok(Filling { block, word: word as u16, count: 0 })
    }

    /// Gives a block back of which every record is done.
    pub(super) fn end(&self, block: u32) {
        self.block(block)[COUNT].store(0, Ordering::Release);
        self.room.lock().free.push(block);
    }

    /// Adds a record to a block. It counts at once.
    ///
    /// # Errors
    /// [`Full`] if it does not fit any more.
    pub(super) fn add(
        &self,
        filling: &mut Filling,
        name: &[u8],
        target: Target,
    ) -> std::result::Result<Place, Full> {
        let word = usize::from(filling.word);
        let length = RECORD_HEAD + name.len().div_ceil(8);
        if word + length > BLOCK {
            return Err(Full);
        }
        let words = self.block(filling.block);
        let (exact, birth) = match target.birth {
            Birth::At(at) => (EXACT, at),
            Birth::Before(latest) => (0, latest),
        };
        words[word].store(WAITS | (name.len() as u64) << 8 | exact, Ordering::Relaxed);
        words[word + 1].store(target.inode, Ordering::Relaxed);
        words[word + 2].store(birth.cast_unsigned(), Ordering::Relaxed);
        write_bytes(&words[word + RECORD_HEAD..], name);
        filling.count += 1;
        filling.word = (word + length) as u16;
        words[COUNT].store(u64::from(filling.count), Ordering::Release);
        Ok(Place { block: filling.block, word: word as u16 })
    }

    /// Takes a record, to do it; whether nobody else has.
    pub(super) fn take(&self, place: Place) -> bool {
        let head = &self.block(place.block)[usize::from(place.word)];
        let waits = head.load(Ordering::Acquire);
        waits & STATE == WAITS
            && head.compare_exchange(waits, waits | RUNS, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A record that was taken is done, however it ended.
    pub(super) fn done(&self, place: Place) {
        let head = &self.block(place.block)[usize::from(place.word)];
        let runs = head.load(Ordering::Relaxed);
        head.store(runs & !STATE | DONE, Ordering::Release);
    }

    /// What the record says: the name, put into `name`, and what it stood for.
    pub(super) fn read(&self, place: Place, name: &mut Vec<u8>) -> Target {
        let words = &self.block(place.block)[usize::from(place.word)..];
        let head = words[0].load(Ordering::Relaxed);
        read_bytes(&words[RECORD_HEAD..], name_length(head), name);
        let birth = words[2].load(Ordering::Relaxed).cast_signed();
        let birth = if head & EXACT != 0 { Birth::At(birth) } else { Birth::Before(birth) };
        Target { inode: words[1].load(Ordering::Relaxed), birth }
    }

    /// The records of a block, in the order in which they were added, as far as they count.
    pub(super) fn records(&self, block: u32) -> Records<'_> {
        let words = self.block(block);
        let count = words[COUNT].load(Ordering::Acquire);
        let shape = words[SHAPE].load(Ordering::Relaxed);
        let groups = (shape >> 32) as usize;
        let locator = (shape & 0xffff) as usize;
        let word = VARIABLE + groups.div_ceil(2) + locator.div_ceil(8);
        Records { words, block, word, left: count.min(BLOCK as u64) }
    }

    /// What the records of a block share; `None` if the block says nothing.
    pub(super) fn owner(&self, block: u32) -> Option<Owner> {
        let words = self.block(block);
        if words[COUNT].load(Ordering::Acquire) == 0 {
            return None;
        }
        let shape = words[SHAPE].load(Ordering::Relaxed);
        let (groups, is_path, length) = ((shape >> 32) as usize, shape >> 16 & 1 == 1, shape as u16);
        let user = words[USER].load(Ordering::Relaxed);
        if groups > GROUPS_MAX || usize::from(length) > PATH_MAX {
            return None;
        }
        let pairs = words[VARIABLE..VARIABLE + groups.div_ceil(2)].iter();
        let pairs = pairs.flat_map(|pair| {
            let pair = pair.load(Ordering::Relaxed);
            [pair as u32, (pair >> 32) as u32]
        });
        let groups: Box<[u32]> = pairs.take(groups).collect();
        let mut bytes = Vec::new();
        read_bytes(&words[VARIABLE + groups.len().div_ceil(2)..], length.into(), &mut bytes);
        let kind = (words[HANDLE_KIND].load(Ordering::Relaxed) as u32).cast_signed();
        Some(Owner {
            inode: words[DIRECTORY].load(Ordering::Relaxed),
            locator: if is_path { Locator::Path(bytes) } else { Locator::Handle { kind, bytes } },
            identity: Identity { uid: (user >> 32) as u32, gid: user as u32, groups },
        })
    }

    /// How many blocks have been begun and not been given back.
    pub(super) fn used_blocks(&self) -> u32 {
        let room = self.room.lock();
        room.blocks - room.free.len() as u32
    }

    /// Gives memory back if nothing is in use.
    pub(super) fn shrink(&self) {
        let mut room = self.room.lock();
        let least = EXTENT.min(self.most);
        if room.blocks <= least || room.free.len() < room.blocks as usize {
            return;
        }
        // Nobody touches a free block, and none is begun while the room is locked.
        if rustix::fs::ftruncate(&self.file, u64::from(least + 1) * BLOCK_BYTES).is_ok() {
            *room = Room { free: (1..=least).rev().collect(), blocks: least };
        }
    }

    /// All blocks of the file.
    pub(super) fn blocks(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.room.lock().blocks
    }

    /// Removes the file. What is in it is of no further use.
    pub(super) fn remove(&self) {
        if let Err(error) = rustix::fs::unlink(&self.path) {
            tracing::warn!("{}: {error}; remove it", self.path.display());
        }
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether a block can tell of a directory that is found like that and of a caller in so many groups, and of one name besides.
pub(super) fn fits(owner: &Owner) -> bool {
    let bytes = match &owner.locator {
        Locator::Handle { bytes, .. } | Locator::Path(bytes) => bytes.len(),
    };
    let groups = owner.identity.groups.len();
    groups <= GROUPS_MAX
        && bytes <= PATH_MAX
        && VARIABLE + groups.div_ceil(2) + bytes.div_ceil(8) + LONGEST_RECORD <= BLOCK
}

fn name_length(head: u64) -> usize {
    (head >> 8 & 0xff) as usize
}

fn write_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut padded = [0; 8];
        padded[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(padded), Ordering::Relaxed);
    }
}

fn read_bytes(words: &[AtomicU64], length: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    for word in words.iter().take(length.div_ceil(8)) {
        bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
    }
    bytes.truncate(length);
}

/// See [`Journal::records`].
pub(super) struct Records<'j> {
    words: &'j [AtomicU64],
    block: u32,
    word: usize,
    left: u64,
}

impl Iterator for Records<'_> {
    /// Where it is, and whether it is not done.
    type Item = (Place, bool);

    fn next(&mut self) -> Option<(Place, bool)> {
        self.left = self.left.checked_sub(1)?;
        let head = self.words.get(self.word)?.load(Ordering::Relaxed);
        let end = self.word + RECORD_HEAD + name_length(head).div_ceil(8);
        if end > BLOCK {
            return None;
        }
        let place = Place { block: self.block, word: self.word as u16 };
        self.word = end;
        Some((place, head & STATE != DONE))
    }
}

/// A journal whose daemon is gone.
pub(super) struct Left {
    pub(super) journal: Journal,
    /// The source's device and inode number.
    pub(super) device: (u32, u32),
    pub(super) inode: u64,
    /// Where the source was.
    pub(super) source: PathBuf,
}

impl Left {
    /// How many unlinks are not done.
    pub(super) fn count(&self) -> u64 {
        let blocks = self.journal.blocks();
        blocks.map(|block| self.journal.records(block).filter(|(_, open)| *open).count() as u64).sum()
    }
}

/// The journals that daemons of this user have left. Nobody else's is looked at, whoever asks.
pub(super) fn left() -> Vec<Left> {
    left_in(Path::new(PLACE))
}

pub(super) fn left_in(place: &Path) -> Vec<Left> {
    let Ok(entries) = std::fs::read_dir(place) else { return Vec::new() };
    let journals =
        entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()));
    journals.filter_map(|entry| adopt(&entry.path()).ok().flatten()).collect()
}

/// Opens a journal, unless its daemon lives, or it is not this user's own.
fn adopt(path: &Path) -> Result<Option<Left>> {
    let file = openat(CWD, path, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    // Anybody may put a file there, so what it says counts only if nobody else can have written it.
    let is_own = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_uid == rustix::process::geteuid().as_raw()
        && stat.st_mode & 0o7777 == 0o600
        && stat.st_nlink == 1;
    let blocks = stat.st_size.cast_unsigned() / BLOCK_BYTES;
    if !is_own || blocks == 0 || blocks > u64::from(BLOCKS) + 1 {
        return Ok(None);
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let words = SharedWords::map(&file, blocks as usize * BLOCK)?;
    let header = words.get(0, BLOCK);
    if header[H_MAGIC].load(Ordering::Acquire) != MAGIC {
        return Ok(None);
    }
    let device = header[H_DEVICE].load(Ordering::Relaxed);
    let inode = header[H_INODE].load(Ordering::Relaxed);
    let length = header[H_LENGTH].load(Ordering::Relaxed).min((BLOCK - H_SOURCE) as u64 * 8);
    let mut source = Vec::new();
    read_bytes(&header[H_SOURCE..], length as usize, &mut source);
    let most = blocks as u32 - 1;
    let room = Mutex::new(Room { free: Vec::new(), blocks: most });
    Ok(Some(Left {
        journal: Journal { words, file, path: path.to_owned(), room, most },
        device: ((device >> 32) as u32, device as u32),
        inode,
        source: OsString::from_vec(source).into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(groups: &[u32]) -> Owner {
        Owner {
            inode: 7,
            locator: Locator::Handle { kind: 1, bytes: b"123456789".to_vec() },
            identity: Identity { uid: 1000, gid: 100, groups: groups.into() },
        }
    }

    fn target(inode: u64) -> Target {
        Target { inode, birth: Birth::Before(1 << 60) }
    }

    fn journal(place: &Path, most: u32) -> Journal {
        Journal::create_in(place, Path::new("/srv/data"), (8, 1), 42, most).unwrap()
    }

    /// As if its daemon had been killed: the file stays, and nobody has it.
    fn killed(journal: Journal) {
        drop(journal);
    }

    #[test]
    fn what_was_recorded_is_found_by_the_next_daemon() {
        let place = tempfile::tempdir().unwrap();
        let dead = journal(place.path(), 16);
        let mut filling = dead.begin(&owner(&[5, 6, 7])).unwrap();
        let first = dead.add(&mut filling, b"a", target(1)).unwrap();
        let exact = Target { inode: 2, birth: Birth::At(99) };
        dead.add(&mut filling, &[b'x'; 255], exact).unwrap();
        let third = dead.add(&mut filling, b"running", target(3)).unwrap();
        assert!(dead.take(first) && !dead.take(first) && dead.take(third));
        dead.done(first);
        assert!(left_in(place.path()).is_empty(), "its daemon lives");
        killed(dead);

        let found = left_in(place.path());
        let [left] = &found[..] else { panic!("{} journals", found.len()) };
        assert_eq!((left.device, left.inode, left.source.as_path()), ((8, 1), 42, Path::new("/srv/data")));
        assert_eq!(left.count(), 2);
        let journal = &left.journal;
        let blocks: Vec<_> = journal.blocks().filter(|block| journal.owner(*block).is_some()).collect();
        let [block] = blocks[..] else { panic!("{blocks:?}") };
        assert_eq!(journal.owner(block), Some(owner(&[5, 6, 7])));
        let mut name = Vec::new();
        let open: Vec<_> = journal
            .records(block)
            .filter(|(_, open)| *open)
            .map(|(place, _)| (journal.read(place, &mut name), name.clone()))
            .collect();
        assert_eq!(open, [(exact, vec![b'x'; 255]), (target(3), b"running".to_vec())]);
        journal.remove();
        assert!(left_in(place.path()).is_empty());
    }

    #[test]
    fn a_path_finds_a_directory_where_handles_do_not() {
        let place = tempfile::tempdir().unwrap();
        let journal = journal(place.path(), 4);
        let by_path = Owner { locator: Locator::Path(b"some/where".to_vec()), ..owner(&[]) };
        let mut filling = journal.begin(&by_path).unwrap();
        journal.add(&mut filling, b"n", target(1)).unwrap();
        assert_eq!(journal.owner(filling.block), Some(by_path));
    }

    #[test]
    fn blocks_are_bounded_and_used_again() {
        let place = tempfile::tempdir().unwrap();
        let journal = journal(place.path(), 3);
        let mut blocks = Vec::new();
        while let Ok(mut filling) = journal.begin(&owner(&[])) {
            while journal.add(&mut filling, b"some-name", target(1)).is_ok() {}
            blocks.push(filling.block);
        }
        assert_eq!((blocks.len(), journal.used_blocks()), (3, 3));
        assert!(journal.records(blocks[0]).count() > 90);
        journal.end(blocks[1]);
        assert_eq!(journal.owner(blocks[1]), None);
        assert_eq!(journal.begin(&owner(&[])).unwrap().block, blocks[1]);
    }

    #[test]
    fn memory_is_given_back_when_nothing_is_in_use() {
        let place = tempfile::tempdir().unwrap();
        let journal = journal(place.path(), BLOCKS);
        let length = || std::fs::metadata(journal.path()).unwrap().len();
        let small = length();
        let many: Vec<_> = (0..EXTENT * 3).map(|_| journal.begin(&owner(&[])).unwrap().block).collect();
        assert!(length() > 2 * small);
        journal.shrink();
        assert!(length() > 2 * small, "still in use");
        many.into_iter().for_each(|block| journal.end(block));
        journal.shrink();
        assert_eq!(length(), small);
        assert_eq!(journal.used_blocks(), 0);
    }

    #[test]
    fn files_that_others_may_have_written_are_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let dead = journal(place.path(), 4);
        let path = dead.path().to_owned();
        let mut filling = dead.begin(&owner(&[])).unwrap();
        dead.add(&mut filling, b"a", target(1)).unwrap();
        killed(dead);
        let as_mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            left_in(place.path()).len()
        };
        assert_eq!((as_mode(0o666), as_mode(0o620), as_mode(0o600)), (0, 0, 1));
        std::fs::hard_link(&path, place.path().join("other")).unwrap();
        assert_eq!(as_mode(0o600), 0);
    }

    #[test]
    fn a_journal_of_garbage_ends_nobody() {
        let place = tempfile::tempdir().unwrap();
        let dead = journal(place.path(), 4);
        let mut filling = dead.begin(&owner(&[])).unwrap();
        dead.add(&mut filling, b"a", target(1)).unwrap();
        for word in dead.block(filling.block) {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        killed(dead);
        let found = left_in(place.path());
        assert_eq!(found[0].journal.owner(filling.block), None);
        assert!(found[0].count() <= BLOCK as u64);
    }

    #[test]
    fn owners_that_leave_no_room_for_a_name_are_refused() {
        assert!(fits(&owner(&[1; GROUPS_MAX])));
        assert!(!fits(&owner(&[1; GROUPS_MAX + 1])));
        let path = |length| Owner { locator: Locator::Path(vec![b'p'; length]), ..owner(&[]) };
        assert!(fits(&path(PATH_MAX)) && !fits(&path(PATH_MAX + 1)));
    }
}
