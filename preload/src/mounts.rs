//! Which paths are on which mount: the table of mount paths, and where it comes from.
//!
//! The table is read by every hooked call with an absolute path, or a relative one that may lead into a mount, also in signal handlers, and replaced when mounts change that
//! matter. There are two lists: whoever makes a new one fills the one that nobody reads. So no reader ever waits, or finds
//! nothing meanwhile; one that was overtaken looks again.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence};

use finesse_ipc::environment::MOUNT_PATH_MAX;

use crate::sys::CPath;

/// Mounts that may be ours.
pub(crate) const MOUNTS: usize = 64;
/// Paths in the table: mounts that may be ours, and others below them.
const PATHS: usize = 256;
/// Bytes for all paths together.
const ARENA: usize = 32 * 1024;
/// [`Entry::mount`] of a path that is not ours though it lies below one that is.
const EXCLUDED: u32 = u32::MAX;

/// One mounted path.
struct Entry {
    offset: AtomicU32,
    len: AtomicU32,
    mount: AtomicU32,
}

impl Entry {
    const fn new() -> Self {
        Self { offset: AtomicU32::new(0), len: AtomicU32::new(0), mount: AtomicU32::new(0) }
    }
}

/// Mounted paths, the longest first, so that the first that matches decides.
struct List {
    count: AtomicU32,
    entries: [Entry; PATHS],
    used: AtomicU32,
    arena: [AtomicU8; ARENA],
}

impl List {
    const fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
            entries: [const { Entry::new() }; PATHS],
            used: AtomicU32::new(0),
            arena: [const { AtomicU8::new(0) }; ARENA],
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().take(self.count.load(Ordering::Relaxed) as usize)
    }

    fn bytes(&self, entry: &Entry) -> &[AtomicU8] {
        let offset = entry.offset.load(Ordering::Relaxed) as usize;
        let len = entry.len.load(Ordering::Relaxed) as usize;
        self.arena.get(offset..).and_then(|rest| rest.get(..len)).unwrap_or(&[])
    }

    /// The mount that a path falls on, and the rest of the path without leading slashes. The path is absolute, or goes on where the
    /// prefix ends.
    #[inline]
    fn find<'p>(&self, prefix: &[AtomicU8], path: CPath<'p>) -> Option<(usize, CPath<'p>)> {
        for entry in self.entries() {
            let Some((before, bytes)) = self.bytes(entry).split_at_checked(prefix.len()) else { continue };
            let bytes = bytes.iter().map(|byte| byte.load(Ordering::Relaxed));
            let Some(mut rest) = path.strip(bytes) else { continue };
            if !matches!(rest.first(), 0 | b'/') || !is_same(before, prefix) {
                continue;
            }
            let mount = entry.mount.load(Ordering::Relaxed);
            if mount == EXCLUDED {
                return None;
            }
            while let Some(shorter) = rest.strip(std::iter::once(b'/')) {
                rest = shorter;
            }
            return Some((mount as usize, rest));
        }
        None
    }

    /// What the paths of mounts below a directory begin with.
    fn prefix(&self, directory: &[u8]) -> Option<Prefix> {
        let len = match directory {
            [] => return None,
            b"/" => 0,
            longer => longer.len(),
        };
        let is_below = |bytes: &[AtomicU8]| {
            let bytes = bytes.iter().map(|byte| byte.load(Ordering::Relaxed));
            bytes.take(len + 1).eq(directory.iter().take(len).copied().chain(*b"/"))
        };
        let mut entries = self.entries();
        let entry = entries.position(|entry| {
            entry.mount.load(Ordering::Relaxed) != EXCLUDED && is_below(self.bytes(entry))
        })?;
        Some(Prefix { entry, len: u32::try_from(len + 1).ok()? })
    }

    fn path_of(&self, mount: usize, buffer: &mut [u8; MOUNT_PATH_MAX + 1]) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.find(|entry| entry.mount.load(Ordering::Relaxed) == mount as u32) else {
            return false;
        };
        let bytes = self.bytes(entry);
        if bytes.len() > MOUNT_PATH_MAX {
            return false;
        }
        buffer.fill(0);
        for (place, byte) in buffer.iter_mut().zip(bytes) {
            *place = byte.load(Ordering::Relaxed);
        }
        if bytes.is_empty() {
            buffer[0] = b'/';
        }
        true
    }
}

/// The list of mounted paths, and room for the next one.
pub(crate) struct Table {
    /// How often the list has been replaced. Its lowest bit says which of the two it is.
    version: AtomicU32,
    /// Somebody fills the other one.
    is_replaced: AtomicBool,
    lists: [List; 2],
}

/// One list of the table's: what was found in it holds as long as [`Table::is_current`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) u32);

/// What the path of a mount, and those of others perhaps, begin with: the path of a directory and a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// Which path of the list; below 256.
    pub(crate) entry: usize,
    /// With the slash, in bytes.
    pub(crate) len: u32,
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            is_replaced: AtomicBool::new(false),
            lists: [const { List::new() }; 2],
        }
    }

    fn list(&self, version: u32) -> &List {
        // Indexed by one bit.
        &self.lists[version as usize & 1]
    }

    /// Reads the list; again, if it was replaced meanwhile.
    #[inline]
    fn read<R>(&self, read: impl Fn(&List) -> R) -> (R, Version) {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let result = read(self.list(version));
            fence(Ordering::Acquire);
            // Only whoever replaces the next list writes to this one.
            if self.version.load(Ordering::Relaxed) == version {
                return (result, Version(version));
            }
        }
    }

    /// The mount that an absolute path falls on, the rest of the path without leading slashes, and the list that says so.
    #[inline]
    pub(crate) fn find<'p>(&self, path: CPath<'p>) -> Option<(usize, CPath<'p>, Version)> {
        if self.is_empty() {
            return None;
        }
        let (found, version) = self.read(|list| list.find(&[], path));
        found.map(|(mount, rest)| (mount, rest, version))
    }

    /// What the paths of mounts below a directory begin with, if there are any, and the list that says so. The directory's own
    /// path is absolute and has no links in it.
    pub(crate) fn prefix(&self, directory: &[u8]) -> (Option<Prefix>, Version) {
        self.read(|list| list.prefix(directory))
    }

    /// As [`find`](Self::find), for a path that is relative to a directory above mounts. Links in it, and what leads up, are followed by nobody
    /// here. `None` also if the prefix is not of the current list.
    pub(crate) fn find_below<'p>(
        &self,
        prefix: Prefix,
        of: Version,
        path: CPath<'p>,
    ) -> Option<(usize, CPath<'p>, Version)> {
        let mut path = path;
        while let Some(mut rest) = path.strip(b"./".iter().copied()) {
            while let Some(shorter) = rest.strip(std::iter::once(b'/')) {
                rest = shorter;
            }
            path = rest;
        }
        let (found, version) = self.read(|list| {
            let entry = list.entries.get(prefix.entry)?;
            list.find(list.bytes(entry).get(..prefix.len as usize)?, path)
        });
        found.filter(|_| version == of).map(|(mount, rest)| (mount, rest, version))
    }

    /// Whether a list has not been replaced.
    #[inline]
    pub(crate) fn is_current(&self, version: Version) -> bool {
        self.version.load(Ordering::Acquire) == version.0
    }

    /// Copies the path of a mount, with a NUL behind it.
    pub(crate) fn path_of(&self, mount: usize, buffer: &mut [u8; MOUNT_PATH_MAX + 1]) -> bool {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let found = self.list(version).path_of(mount, buffer);
            fence(Ordering::Acquire);
            if self.version.load(Ordering::Relaxed) == version {
                return found;
            }
        }
    }

    /// Whether there is any path.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list(self.version.load(Ordering::Relaxed)).count.load(Ordering::Relaxed) == 0
    }

    /// Whether somebody replaces the list at this moment.
    pub(crate) fn is_being_replaced(&self) -> bool {
        self.is_replaced.load(Ordering::Acquire)
    }

    /// Begins to replace the list; `None` if somebody else does.
    pub(crate) fn replace(&self) -> Option<Writer<'_>> {
        if self.is_replaced.swap(true, Ordering::Acquire) {
            return None;
        }
        let version = self.version.load(Ordering::Relaxed);
        let list = self.list(version.wrapping_add(1));
        // Readers of the list that was current before see, with any of the writes below, that it is not any more.
        fence(Ordering::Release);
        list.count.store(0, Ordering::Relaxed);
        list.used.store(0, Ordering::Relaxed);
        Some(Writer { table: self, list, version })
    }

    /// In a forked child: nobody replaces the list, whoever did so in the parent.
    pub(crate) fn after_fork(&self) {
        self.is_replaced.store(false, Ordering::Release);
    }
}

/// Makes a new list, which replaces the other one by [`Writer::commit`].
pub(crate) struct Writer<'t> {
    table: &'t Table,
    list: &'t List,
    version: u32,
}

impl Writer<'_> {
    /// Adds a mount that may be ours, at a path without trailing slashes; a later one at the same path covers
    /// an earlier one.
    pub(crate) fn mount(&mut self, path: &[u8], mount: usize) -> bool {
        self.put(path, mount as u32)
    }

    /// Says that another mount covers the path of one in the list.
    pub(crate) fn cover(&mut self, path: &[u8]) {
        if let Some(entry) = self.same(path) {
            entry.mount.store(EXCLUDED, Ordering::Relaxed);
        }
    }

    /// Adds the path of another mount, if it is below one in the list. If there is no room for it, the mounts above it
    /// are given up: the kernel serves them.
    pub(crate) fn exclude(&mut self, path: &[u8]) {
        if self.same(path).is_none() && self.is_above(path) && !self.put(path, EXCLUDED) {
            for entry in self.list.entries() {
                if is_below(path, self.list.bytes(entry)) {
                    entry.mount.store(EXCLUDED, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether a mount is in the list already.
    pub(crate) fn contains(&self, mount: usize) -> bool {
        self.list.entries().any(|entry| entry.mount.load(Ordering::Relaxed) == mount as u32)
    }

    /// Whether the list is still empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.count.load(Ordering::Relaxed) == 0
    }

    /// Puts the list in the other one's place.
    pub(crate) fn commit(self) {
        self.table.version.store(self.version.wrapping_add(1), Ordering::Release);
    }

    /// The entry of exactly this path.
    fn same(&self, path: &[u8]) -> Option<&Entry> {
        let path = if path == b"/" { b"" } else { path };
        self.list.entries().find(|entry| {
            let bytes = self.list.bytes(entry);
            bytes.len() == path.len() && is_below(path, bytes)
        })
    }

    /// Whether a path is at or below one in the list.
    fn is_above(&self, path: &[u8]) -> bool {
        self.list.entries().any(|entry| is_below(path, self.list.bytes(entry)))
    }

    fn put(&mut self, path: &[u8], mount: u32) -> bool {
        let list = self.list;
        // The root directory is the empty prefix, so that what follows a prefix always begins with a slash.
        let path = if path == b"/" { b"" } else { path };
        let count = list.count.load(Ordering::Relaxed) as usize;
        if let Some(entry) = self.same(path) {
            entry.mount.store(mount, Ordering::Relaxed);
            return true;
        }
        let used = list.used.load(Ordering::Relaxed) as usize;
        let room = list.arena.get(used..).and_then(|rest| rest.get(..path.len()));
        let (Some(entry), Some(room), true) = (list.entries.get(count), room, path.len() <= MOUNT_PATH_MAX)
        else {
            return false;
        };
        for (place, byte) in room.iter().zip(path) {
            place.store(*byte, Ordering::Relaxed);
        }
        entry.offset.store(used as u32, Ordering::Relaxed);
        entry.len.store(path.len() as u32, Ordering::Relaxed);
        entry.mount.store(mount, Ordering::Relaxed);
        list.used.store((used + path.len()) as u32, Ordering::Relaxed);
        list.count.store(count as u32 + 1, Ordering::Relaxed);
        // Insertion sort, by descending length.
        for index in (1..=count).rev() {
            let (Some(above), Some(entry)) = (list.entries.get(index - 1), list.entries.get(index)) else {
                break;
            };
            if above.len.load(Ordering::Relaxed) >= entry.len.load(Ordering::Relaxed) {
                break;
            }
            for (a, b) in
                [(&above.offset, &entry.offset), (&above.len, &entry.len), (&above.mount, &entry.mount)]
            {
                b.store(a.swap(b.load(Ordering::Relaxed), Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        true
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.table.is_replaced.store(false, Ordering::Release);
    }
}

fn is_same(one: &[AtomicU8], other: &[AtomicU8]) -> bool {
    one.iter().zip(other).all(|(one, other)| one.load(Ordering::Relaxed) == other.load(Ordering::Relaxed))
}

fn is_below(path: &[u8], prefix: &[AtomicU8]) -> bool {
    path.len() >= prefix.len()
        && path.iter().zip(prefix).all(|(byte, other)| *byte == other.load(Ordering::Relaxed))
        && matches!(path.get(prefix.len()), None | Some(b'/'))
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mounted<'l> {
    pub(crate) id: u32,
    /// What it is mounted on.
    pub(crate) parent: u32,
    /// `st_dev`, major and minor.
    pub(crate) dev: (u32, u32),
    /// Where, with octal escapes.
    pub(crate) path: &'l [u8],
    /// Whether its type is FUSE's.
    pub(crate) is_fuse: bool,
    /// Whether it shows the file system from its root, which a bind mount of a directory does not.
    pub(crate) is_whole: bool,
}

/// The lines of mountinfo, in order; lines that make no sense are left out.
pub(crate) fn mounted(mountinfo: &[u8]) -> impl Iterator<Item = Mounted<'_>> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [OPTIONAL…] - TYPE SOURCE SUPER-OPTIONS
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next()?;
        let parent = fields.next()?;
        let dev = fields.next()?;
        let root = fields.next()?;
        let path = fields.next()?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let colon = dev.iter().position(|byte| *byte == b':')?;
        let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse().ok();
        Some(Mounted {
            id: number(id)?,
            parent: number(parent)?,
            dev: (number(dev.get(..colon)?)?, number(dev.get(colon + 1..)?)?),
            path,
            is_whole: root == b"/",
            is_fuse: kind == b"fuse" || kind.starts_with(b"fuse.") || kind == b"fuseblk",
        })
    })
}

/// Whether no path leads to a mount: another one covers its place, or a directory above that, or hides what it is mounted on.
pub(crate) fn is_hidden(mountinfo: &[u8], mount: &Mounted<'_>) -> bool {
    /// Mounts upon mounts; beyond that something is wrong.
    const DEPTH: usize = 64;
    let (mut this, mut upon) = (*mount, mount.id);
    for _ in 0..DEPTH {
        let mut below = None;
        for other in mounted(mountinfo).filter(|other| other.id != this.id && other.id != upon) {
            let is_upon = other.parent == this.id && other.path == this.path;
            let is_beside = other.parent == this.parent
                && this.path.strip_prefix(other.path).is_some_and(|rest| rest.first() == Some(&b'/'));
            if is_upon || is_beside {
                return true;
            }
            if other.id == this.parent {
                below = Some(other);
            }
        }
        let Some(below) = below else { return false };
        (this, upon) = (below, this.id);
    }
    true
}

/// Undoes mountinfo's escapes (`mangle_path`: a backslash and three octal digits).
pub(crate) fn unmangle<'b>(mangled: &[u8], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let mut len = 0;
    let mut rest = mangled;
    while let Some((byte, tail)) = rest.split_first() {
        let octal = |digit: &u8| (b'0'..=b'7').contains(digit).then(|| u32::from(digit - b'0'));
        let (byte, tail) = match (byte, tail) {
            (b'\\', [a, b, c, tail @ ..]) => {
                (u8::try_from(octal(a)? << 6 | octal(b)? << 3 | octal(c)?).ok()?, tail)
            }
            (b'\\', _) => return None,
            _ => (*byte, tail),
        };
        *buffer.get_mut(len)? = byte;
        len += 1;
        rest = tail;
    }
    buffer.get(..len)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn table(mounts: &[(&str, Option<usize>)]) -> Box<Table> {
        let table = Box::new(Table::new());
        let mut writer = table.replace().unwrap();
        for (path, mount) in mounts {
            match mount {
                Some(mount) => assert!(writer.mount(path.as_bytes(), *mount)),
                None => writer.exclude(path.as_bytes()),
            }
        }
        writer.commit();
        table
    }

    fn find(table: &Table, path: &str) -> Option<(usize, String)> {
        let path = CString::new(path).unwrap();
        let (mount, rest, _) = table.find(CPath::new(&path))?;
        Some((mount, String::from_utf8(rest.bytes().to_vec()).unwrap()))
    }

    #[test]
    fn a_mount_matches_at_component_boundaries_only() {
        let table = table(&[("/mnt/a", Some(3))]);
        for (path, rest) in [
            ("/mnt/a", Some("")),
            ("/mnt/a/", Some("")),
            ("/mnt/a//x/", Some("x/")),
            ("/mnt/a/x/../y", Some("x/../y")),
            ("/mnt/ab", None),
            ("/mnt", None),
            ("/", None),
            ("", None),
            ("mnt/a/x", None),
        ] {
            assert_eq!(find(&table, path), rest.map(|rest| (3, rest.to_owned())), "{path}");
        }
    }

    #[test]
    fn the_deepest_mount_decides() {
        let table =
            table(&[("/m", Some(0)), ("/m/sub/deep", Some(1)), ("/m/sub", None), ("/elsewhere", None)]);
        assert_eq!(find(&table, "/m/x"), Some((0, "x".into())));
        assert_eq!(find(&table, "/m/sub/x"), None);
        assert_eq!(find(&table, "/m/subx"), Some((0, "subx".into())));
        assert_eq!(find(&table, "/m/sub/deep/x"), Some((1, "x".into())));
    }

    #[test]
    fn a_later_mount_at_the_same_path_covers_the_earlier_one() {
        let covered = table(&[("/m", Some(0))]);
        let mut writer = covered.replace().unwrap();
        writer.mount(b"/m", 0);
        writer.cover(b"/m");
        writer.commit();
        assert_eq!(find(&covered, "/m/x"), None);
        assert_eq!(find(&table(&[("/m", Some(0)), ("/m", Some(1))]), "/m/x"), Some((1, "x".into())));
    }

    #[test]
    fn a_mount_may_be_the_root_directory() {
        let table = table(&[("/", Some(0)), ("/proc", None)]);
        assert_eq!(find(&table, "/etc/passwd"), Some((0, "etc/passwd".into())));
        assert_eq!(find(&table, "/"), Some((0, String::new())));
        assert_eq!(find(&table, "/proc/self"), None);
    }

    #[test]
    fn relative_paths_are_found_from_directories_above_mounts() {
        let mounts = [
            ("/w/a/m", Some(0)),
            ("/w/a/m/sub", None),
            ("/w/b/m", Some(1)),
            ("/w/a/other", Some(2)),
            ("/v/a/m", Some(3)),
            ("/top", Some(4)),
            // One mount at two places.
            ("/w/much/longer", Some(0)),
        ];
        let table = table(&mounts);
        let find = |directory: &str, path: &str| {
            let (prefix, of) = table.prefix(directory.as_bytes());
            let path = CString::new(path).unwrap();
            let (mount, rest, _) = table.find_below(prefix?, of, CPath::new(&path))?;
            Some((mount, rest.text().to_str().unwrap().to_owned()))
        };
        let found = |mount, rest: &str| Some((mount, rest.to_owned()));
        assert_eq!(find("/w/a", "m/x"), found(0, "x"));
        assert_eq!(find("/w/b", "m/x"), found(1, "x"));
        assert_eq!(find("/v/a", "m//x/"), found(3, "x/"));
        assert_eq!(find("/w", "a/m"), found(0, ""));
        assert_eq!(find("/", "w/b/m/x"), found(1, "x"));
        assert_eq!(find("/", "top/x"), found(4, "x"));
        assert_eq!(find("/w/a", "././/m/./x"), found(0, "./x"));
        assert_eq!(find("/w/a", "other"), found(2, ""));
        assert_eq!(find("/w", "much/longer/x"), found(0, "x"));
        for (directory, path) in [
            ("/w/a", "m/sub/x"),
            ("/w/a", "mm/x"),
            ("/w/a", "/w/a/m/x"),
            ("/w/a", "b/m/x"),
            ("/w/a", "ch/longer/x"),
            ("/w/a", "../a/m/x"),
            ("/w/a", ".m/x"),
            ("/w/a", ""),
            ("/w/a", "."),
            ("/w/a/m", "x"),
            ("/w/a/", "m/x"),
            ("/w/c", "m/x"),
            ("/to", "p/x"),
            ("", "w/a/m/x"),
        ] {
            assert_eq!(find(directory, path), None, "{path} from {directory}");
        }
    }

    #[test]
    fn what_was_found_of_a_directory_does_not_hold_for_the_next_list() {
        let table = table(&[("/w/a/m", Some(0))]);
        let (prefix, of) = table.prefix(b"/w/a");
        let path = CString::new("m/x").unwrap();
        assert!(table.find_below(prefix.unwrap(), of, CPath::new(&path)).is_some());
        let mut writer = table.replace().unwrap();
        writer.mount(b"/w/b/m", 0);
        writer.commit();
        assert!(table.find_below(prefix.unwrap(), of, CPath::new(&path)).is_none());
    }

    #[test]
    fn a_mount_whose_exclusions_do_not_fit_is_given_up() {
        let table = Box::new(Table::new());
        let mut writer = table.replace().unwrap();
        assert!(writer.mount(b"/m", 0) && writer.mount(b"/n", 1));
        for number in 0..PATHS {
            writer.exclude(format!("/m/{number}").as_bytes());
        }
        writer.commit();
        assert_eq!(find(&table, "/m/x"), None);
        assert_eq!(find(&table, "/n/x"), Some((1, "x".into())));
    }

    #[test]
    fn whoever_reads_during_a_replacement_finds_what_was_there_before() {
        let table = table(&[("/m", Some(0))]);
        let found = || find(&table, "/m/x");
        let path = CString::new("/m/x").unwrap();
        let (.., version) = table.find(CPath::new(&path)).unwrap();
        let mut writer = table.replace().unwrap();
        assert!(table.replace().is_none() && table.is_being_replaced());
        writer.mount(b"/n", 1);
        assert_eq!(found(), Some((0, "x".into())));
        assert!(table.is_current(version));
        writer.commit();
        assert!(!table.is_current(version) && !table.is_being_replaced());
        assert_eq!((found(), find(&table, "/n/x")), (None, Some((1, "x".into()))));
        let mut path = [0; MOUNT_PATH_MAX + 1];
        assert!(!table.path_of(0, &mut path) && table.path_of(1, &mut path) && path.starts_with(b"/n\0"));
        // Given up: everything stays.
        drop(table.replace());
        assert_eq!(find(&table, "/n/x"), Some((1, "x".into())));
    }

    #[test]
    fn a_mount_below_a_path_that_another_covers_is_hidden() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 0:51 / /a/m rw - fuse f rw\n\
            3 1 0:52 / /a rw - tmpfs t rw\n\
            4 3 0:53 / /a/m rw - fuse f rw\n\
            5 1 0:54 / /b rw - tmpfs t rw\n\
            6 5 0:55 / /b/c rw - tmpfs t rw\n\
            7 6 0:56 / /b/c/m rw - fuse f rw\n\
            8 5 0:57 / /b/cc rw - fuse f rw\n\
            9 8 0:58 / /b/cc rw - tmpfs t rw\n";
        let hidden = |text: &[u8]| -> Vec<u32> {
            mounted(text).filter(|line| is_hidden(text, line)).map(|line| line.id).collect()
        };
        assert_eq!(hidden(text), [2, 8]);
        let text = [&text[..], b"10 5 0:59 / /b rw - tmpfs t rw\n"].concat();
        assert_eq!(hidden(&text), [2, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn mountinfo_is_understood() {
        let text = b"29 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
            61 29 0:52 / /mnt/with\\040space rw,nosuid shared:5 master:1 - fuse.finesse /src rw,user_id=0\n\
            62 61 0:53 /part /mnt/b rw - fuseblk /dev/sdb rw\n\
            63 61 0:54 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n\
            garbage\n";
        let lines: Vec<_> = mounted(text).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines.iter().map(|line| line.is_fuse).collect::<Vec<_>>(), [false, true, true, false]);
        assert!(lines[1].is_whole && !lines[2].is_whole);
        assert_eq!(lines[1].dev, (0, 52));
        let mut buffer = [0; 64];
        assert_eq!(unmangle(lines[1].path, &mut buffer), Some(b"/mnt/with space".as_slice()));
    }

    #[test]
    fn malformed_escapes_are_refused() {
        for path in [&b"/a\\04"[..], b"/a\\9", b"/a\\999", b"/a\\777", b"/toolong"] {
            assert_eq!(unmangle(path, &mut [0; 5]), None);
        }
    }
}
