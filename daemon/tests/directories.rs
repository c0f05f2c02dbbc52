//! Directories through the ring, driven by `finesse_ipc::client` on a mounted in-memory file system, and compared with
//! what the kernel lists of the same mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use finesse::{
    BackgroundSession, Bypass, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, MountOption, OpenFlags, ReplyAttr, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, Request,
};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{self, Op, Outcome, REPLY_END, ROOT};

const TTL: Duration = Duration::from_secs(1);

/// What the file system was asked, and how it is to behave.
#[derive(Default)]
struct Book {
    /// Handles that are open, and how often each was released.
    released: Mutex<BTreeMap<u64, u32>>,
    opened: AtomicU64,
    synced: AtomicU64,
    /// `readdir` answers at most this many entries at once; 0 is no limit.
    page: AtomicU64,
    /// `opendir` and `readdir` are not implemented.
    plain: AtomicBool,
    /// Names beside the usual ones.
    more: Mutex<Vec<String>>,
    /// `readdir` calls.
    reads: AtomicU64,
    /// `releasedir` waits while this is set.
    slow_release: Mutex<bool>,
    quick: Condvar,
    /// Lookups owed.
    references: AtomicU64,
}

impl Book {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = [".", "..", "one", "two", "link"].map(String::from).into();
        names.extend(self.more.lock().unwrap().iter().cloned());
        names
    }

    fn open(&self) -> usize {
        self.released.lock().unwrap().values().filter(|count| **count == 0).count()
    }
}

/// A root with `sub` (an empty directory), and a listing of names that may be anything.
struct Fs(Arc<Book>, bool);

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
        perm: 0o755,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

const SUB: u64 = 2;

fn kind_of(name: &str) -> (u64, FileType) {
    match name {
        "." | ".." => (1, FileType::Directory),
        "link" => (12, FileType::Symlink),
        "sub" => (SUB, FileType::Directory),
        name => (100 + name.len() as u64, FileType::RegularFile),
    }
}

impl Filesystem for Fs {
    fn bypass(&self) -> Bypass {
        Bypass::new().with_keeps_listings(self.1)
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_str().unwrap();
        let there = self.0.names().iter().any(|known| known == name) || name == "sub";
        match there && parent == INodeNo::ROOT {
            true => {
                let (ino, kind) = kind_of(name);
                reply.entry(&TTL, &attr(ino, kind), Generation(0));
            }
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let kind = if ino.0 <= SUB { FileType::Directory } else { FileType::RegularFile };
        reply.attr(&TTL, &attr(ino.0, kind));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = name.to_str().unwrap().to_owned();
        let (ino, kind) = kind_of(&name);
        self.0.more.lock().unwrap().push(name);
        self.0.references.fetch_add(1, Ordering::SeqCst);
        reply.entry(&TTL, &attr(ino, kind), Generation(0));
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.ok();
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        if ino.0 >= 100 {
            self.0.references.fetch_sub(lookups, Ordering::SeqCst);
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.0.plain.load(Ordering::SeqCst) {
            return reply.error(Errno::ENOSYS);
        }
        let fh = self.0.opened.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.released.lock().unwrap().insert(fh, 0);
        // That the kernel may keep a listing says nothing of the next time.
        reply.opened(FileHandle(fh), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if self.0.plain.load(Ordering::SeqCst) {
            assert_eq!(fh, FileHandle(0));
            return reply.error(Errno::ENOSYS);
        }
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        let names = if ino.0 == SUB { vec![".".into(), "..".into()] } else { self.0.names() };
        let page = match self.0.page.load(Ordering::SeqCst) {
            0 => usize::MAX,
            page => page as usize,
        };
        for (index, name) in names.iter().enumerate().skip(offset as usize).take(page) {
            let (ino, kind) = kind_of(name);
            if reply.add(INodeNo(ino), index as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (index, name) in self.0.names().iter().enumerate().skip(offset as usize) {
            let (ino, kind) = kind_of(name);
            if reply.add(INodeNo(ino), index as u64 + 1, name, &TTL, &attr(ino, kind), Generation(0)) {
                break;
            }
            if ino >= 100 {
                self.0.references.fetch_add(1, Ordering::SeqCst);
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let mut slow = self.0.slow_release.lock().unwrap();
        while *slow {
            slow = self.0.quick.wait(slow).unwrap();
        }
        if fh.0 != 0 {
            *self.0.released.lock().unwrap().get_mut(&fh.0).expect("released without having been opened") +=
                1;
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _data: bool, reply: ReplyEmpty) {
        self.0.synced.fetch_add(1, Ordering::SeqCst);
        reply.ok();
    }
}

struct Mount {
    session: Option<BackgroundSession>,
    book: Arc<Book>,
    directory: tempfile::TempDir,
}

fn mount(name: &str) -> Mount {
    mount_as(name, false)
}

/// Mounts it; listings may be kept, and the kernel checks who may read them, or neither.
fn mount_as(name: &str, keeps: bool) -> Mount {
    let directory = tempfile::Builder::new().prefix(&format!("finesse-{name}-")).tempdir().unwrap();
    let book = Arc::new(Book::default());
    let mut config = Config::default();
    config.n_threads = Some(2);
    config.mount_options = if keeps { vec![MountOption::DefaultPermissions] } else { Vec::new() };
    let session = finesse::spawn_mount(Fs(book.clone(), keeps), directory.path(), &config)
        .expect("these tests need /dev/fuse and the right to mount");
    Mount { session: Some(session), book, directory }
}

impl Mount {
    fn client(&self) -> Client {
        let mut name = vec![0; 256];
        let len =
            rustix::fs::getxattr(self.directory.path(), finesse_ipc::handshake::SOCKET_XATTR, &mut name)
                .unwrap();
        Client::connect(&name[..len], "test", 100).expect("the bypass accepts its owner")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A failed test must not wait for itself.
        *self.book.slow_release.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = false;
        self.book.quick.notify_all();
        if let Some(session) = self.session.take() {
            // Whoever looks at all mounts of the machine may be inside for a moment.
            finesse_tests::mount::unmount(self.directory.path());
            session.join().expect("the session ends with its mount");
        }
    }
}

/// Waits for a condition that must come true.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    ino: u64,
    offset: u64,
    kind: u8,
    name: Vec<u8>,
}

fn parse(mut bytes: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let len = usize::from(u16::from_ne_bytes(bytes[16..18].try_into().unwrap()));
        assert!(len.is_multiple_of(8) && len <= bytes.len(), "record of {len} bytes");
        let name = &bytes[19..len];
        let end = name.iter().position(|byte| *byte == 0).expect("a name ends with a NUL");
        entries.push(Entry {
            ino: u64::from_ne_bytes(bytes[..8].try_into().unwrap()),
            offset: u64::from_ne_bytes(bytes[8..16].try_into().unwrap()),
            kind: bytes[18],
            name: name[..end].to_vec(),
        });
        bytes = &bytes[len..];
    }
    entries
}

fn open(client: &Client, base: u64, path: &str, flags: i32) -> Result<(u64, u64), Outcome> {
    let request = frame::Request { base, flags: flags as u32, ..frame::Request::default() };
    let call = client.call(Op::OpenDir, &request, path.as_bytes(), b"").unwrap();
    match call.reply.outcome() {
        Outcome::Ok => {
            assert!(call.reply.flags & frame::REPLY_VIRTUAL != 0);
            Ok((u64::from(call.reply.file()), call.reply.to_attr().ino))
        }
        other => Err(other),
    }
}

fn read(client: &Client, directory: u64, offset: u64, size: u32) -> Result<(Vec<Entry>, bool), Outcome> {
    let request = frame::Request { base: directory, base2: offset, mode: size, ..frame::Request::default() };
    let call = client.call(Op::ReadDir, &request, b"", b"").unwrap();
    match call.reply.outcome() {
        Outcome::Ok => {
            let mut bytes = vec![0; size as usize];
            Ok((parse(call.data(&mut bytes)), call.reply.flags & REPLY_END != 0))
        }
        other => Err(other),
    }
}

fn close(client: &Client, directory: u64) -> Outcome {
    let request = frame::Request { base: directory, ..frame::Request::default() };
    client.call(Op::Close, &request, b"", b"").unwrap().reply.outcome()
}

fn read_all(client: &Client, directory: u64, size: u32) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    loop {
        let offset = all.last().map_or(0, |entry| entry.offset);
        let (page, end) = read(client, directory, offset, size).unwrap();
        let nothing = page.is_empty();
        assert!(end || !nothing, "an empty page is the end");
        all.extend(page);
        if end {
            return all;
        }
    }
}

/// What getdents64(2) lists.
fn kernel_lists(path: &std::path::Path) -> Vec<Entry> {
    let directory = std::fs::File::open(path).unwrap();
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut raw = rustix::fs::RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    let mut entries = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        entries.push(Entry {
            ino: entry.ino(),
            offset: entry.next_entry_cookie(),
            kind: match entry.file_type() {
                rustix::fs::FileType::Directory => libc::DT_DIR,
                rustix::fs::FileType::RegularFile => libc::DT_REG,
                rustix::fs::FileType::Symlink => libc::DT_LNK,
                other => panic!("{other:?}"),
            },
            name: entry.file_name().to_bytes().to_vec(),
        });
    }
    entries
}

#[test]
fn a_listing_is_what_the_kernel_lists_whatever_the_size_of_its_pages() {
    let mount = mount("same");
    let client = mount.client();
    *mount.book.more.lock().unwrap() = (0..2000).map(|n| "x".repeat(n % 255 + 1) + &n.to_string()).collect();
    mount.book.more.lock().unwrap().retain(|name| name.len() <= 255);
    let expected = kernel_lists(mount.directory.path());
    assert!(expected.len() > 1900);
    let (directory, ino) = open(&client, ROOT, ".", 0).unwrap();
    assert_eq!(ino, ROOT);
    for page in [0, 1, 7] {
        mount.book.page.store(page, Ordering::SeqCst);
        for size in [300, 4096, 32768, u32::MAX] {
            let size = size.min(1 << 20);
            assert_eq!(read_all(&client, directory, size), expected, "{size} bytes, pages of {page}");
        }
    }
    let (middle, _) = read(&client, directory, 1000, 4096).unwrap();
    assert_eq!(middle[..], expected[1000..1000 + middle.len()], "from the middle");
    assert_eq!(close(&client, directory), Outcome::Ok);
}

#[test]
fn the_end_is_told_with_the_last_entries_and_again_when_asked_behind_them() {
    let mount = mount("end");
    let client = mount.client();
    let (directory, _) = open(&client, ROOT, "sub", 0).unwrap();
    let (entries, end) = read(&client, directory, 0, 32768).unwrap();
    assert_eq!((entries.len(), end), (2, true));
    assert_eq!(read(&client, directory, 2, 32768).unwrap(), (vec![], true));
    assert_eq!(read(&client, directory, 0, 8), Err(Outcome::Errno(libc::EINVAL)), "no room for any entry");
    assert_eq!(read(&client, directory, 0, 0), Err(Outcome::Errno(libc::EINVAL)));
}

/// Opens a directory and reads its first page: what was read, and its number, if it is still open.
fn open_and_read(
    client: &Client,
    path: &str,
    (offset, size, flags): (u64, u32, u32),
) -> Result<(Vec<Entry>, Option<u64>), Outcome> {
    let request =
        frame::Request { base: ROOT, base2: offset, mode: size, flags, ..frame::Request::default() };
    let call = client.call(Op::OpenDir, &request, path.as_bytes(), b"").unwrap();
    match call.reply.outcome() {
        Outcome::Ok => {
            let is_open = call.reply.flags & frame::REPLY_VIRTUAL != 0;
            assert_ne!(is_open, call.reply.flags & REPLY_END != 0);
            let mut bytes = vec![0; size as usize];
            Ok((parse(call.data(&mut bytes)), is_open.then(|| call.reply.file().into())))
        }
        other => Err(other),
    }
}

#[test]
fn a_directory_that_is_opened_and_read_at_once_stays_open_unless_that_was_all() {
    let mount = mount("at-once");
    let client = mount.client();
    let all = kernel_lists(mount.directory.path());
    let opened = || mount.book.opened.load(Ordering::SeqCst);
    // The kernel has opened it, too, and lets go of it when it likes.
    let before = opened();
    let opened_since = || {
        eventually("what is closed is released", || mount.book.open() == 0);
        opened() - before
    };
    for flags in [0, frame::LIST_ATTRS] {
        assert_eq!(open_and_read(&client, ".", (0, 32768, flags)), Ok((all.clone(), None)));
    }
    assert_eq!(opened_since(), 2);
    let (first, number) = open_and_read(&client, ".", (0, 64, 0)).unwrap();
    let number = number.expect("there is more");
    assert_eq!(first[..], all[..first.len()]);
    let (rest, end) = read(&client, number, first.last().unwrap().offset, 32768).unwrap();
    assert_eq!((&rest[..], end), (&all[first.len()..], true));
    assert_eq!(close(&client, number), Outcome::Ok);
    assert_eq!(opened_since(), 3);
    let behind = all.last().unwrap().offset;
    assert_eq!(open_and_read(&client, ".", (behind, 32768, 0)), Ok((vec![], None)));
    // What cannot be read is not left open, either.
    assert_eq!(open_and_read(&client, ".", (0, 8, 0)), Err(Outcome::Errno(libc::EINVAL)));
    assert_eq!(open_and_read(&client, "none", (0, 4096, 0)), Err(Outcome::Errno(libc::ENOENT)));
    assert!(matches!(open_and_read(&client, ".", (0, 4096, 1 << 30)), Err(Outcome::Kernel(_))));
    assert_eq!(opened_since(), 5);
}

#[test]
fn what_is_added_behind_the_position_is_found_and_what_was_listed_does_not_come_again() {
    let mount = mount("change");
    let client = mount.client();
    mount.book.page.store(2, Ordering::SeqCst);
    let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
    let (all, end) = read(&client, directory, 0, 32768).unwrap();
    assert!(end);
    let last = all.last().unwrap().offset;
    mount.book.more.lock().unwrap().push("late".into());
    let (more, end) = read(&client, directory, last, 32768).unwrap();
    assert!(end);
    assert_eq!(more.iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), [b"late"]);
}

#[test]
fn a_listing_is_kept_until_something_changes_if_the_file_system_allows_it() {
    let asks = mount("asked");
    for _ in 0..2 {
        let client = asks.client();
        let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
        read_all(&client, directory, 32768);
        assert_eq!(close(&client, directory), Outcome::Ok);
    }
    assert_eq!((asks.book.reads.load(Ordering::SeqCst), asks.book.opened.load(Ordering::SeqCst)), (4, 2));

    let mount = mount_as("kept", true);
    let (book, client) = (&mount.book, mount.client());
    let list = |size: u32| {
        let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
        let names: Vec<_> = read_all(&client, directory, size).into_iter().map(|entry| entry.name).collect();
        assert_eq!(close(&client, directory), Outcome::Ok);
        names
    };
    // How often the file system is asked for a listing, and opens the directory.
    let asked = |size: u32| {
        let count = || (book.reads.load(Ordering::SeqCst), book.opened.load(Ordering::SeqCst));
        let before = count();
        let names = list(size);
        assert!(names.iter().map(|name| name.escape_ascii().to_string()).eq(book.names()), "{names:?}");
        (count().0 - before.0, count().1 - before.1)
    };
    let often = asked(32768);
    assert_eq!(often, (2, 1), "the entries, and that there are no more");
    assert_eq!(asked(32768), (0, 0));
    assert_eq!(asked(40), (0, 0), "in pages of an entry");

    let change_here = |name: &str| {
        let request = frame::Request { base: ROOT, mode: libc::S_IFREG | 0o644, ..frame::Request::default() };
        let call = client.call(Op::Mknod, &request, name.as_bytes(), b"").unwrap();
        assert_eq!(call.reply.outcome(), Outcome::Ok);
    };
    change_here("here");
    assert_eq!(asked(32768), often);
    let path = std::ffi::CString::new(mount.directory.path().join("there").to_str().unwrap()).unwrap();
    // SAFETY: a string that ends.
    assert_eq!(unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o644, 0) }, 0);
    let by_entry = (book.names().len() as u64 + 1, 1);
    assert_eq!(asked(40), by_entry);
    assert_eq!(asked(40), (0, 0), "also if it was not read at once");
    // But only what was read without a gap, and without a change in between.
    for changes in [false, true] {
        change_here(if changes { "before" } else { "once more" });
        let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
        let (first, _) = read(&client, directory, 0, 40).unwrap();
        let (second, _) = read(&client, directory, first.last().unwrap().offset, 40).unwrap();
        let offset = if changes { first.last().unwrap().offset } else { second.last().unwrap().offset };
        if changes {
            change_here("in between");
        } else {
            let (again, _) = read(&client, directory, 0, 40).unwrap();
            assert_eq!(again[0].name, first[0].name);
        }
        let (_, end) = read(&client, directory, offset, 32768).unwrap();
        assert!(end);
        assert_eq!(close(&client, directory), Outcome::Ok);
        assert_eq!(asked(32768), often, "changes: {changes}");
        assert_eq!(asked(32768), (0, 0));
    }
    change_here("at last");
    assert_eq!(asked(32768), often);
    let notifier = mount.session.as_ref().unwrap().notifier();
    book.more.lock().unwrap().push("told".into());
    notifier.inval_inode(INodeNo::ROOT, 0, 0).unwrap();
    assert_eq!(asked(32768), often);

    // Nobody knows what a position means that no entry has.
    let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
    let opened = book.opened.load(Ordering::SeqCst);
    assert_eq!(read(&client, directory, 1 << 40, 32768).unwrap(), (vec![], true));
    assert_eq!(book.opened.load(Ordering::SeqCst), opened + 1, "only now");
    assert_eq!(read(&client, directory, 0, 8), Err(Outcome::Errno(libc::EINVAL)), "no room for any entry");
    assert_eq!(close(&client, directory), Outcome::Ok);

    assert_eq!(book.open(), 0, "what was opened is released");
}

#[test]
fn a_directory_that_was_opened_is_a_base_and_can_be_opened_by_itself() {
    let mount = mount("base");
    let client = mount.client();
    assert!(matches!(open(&client, SUB, "", libc::AT_EMPTY_PATH), Err(Outcome::Kernel(_))), "not proven");
    let (first, ino) = open(&client, ROOT, "sub/", 0).unwrap();
    assert_eq!(ino, SUB);
    let (second, ino) = open(&client, SUB, "", libc::AT_EMPTY_PATH).unwrap();
    assert_eq!(ino, SUB);
    assert_ne!(first, second);
    assert_eq!(close(&client, first), Outcome::Ok);
    assert_eq!(read_all(&client, second, 4096).len(), 2, "the other one stays open");
    assert_eq!(close(&client, second), Outcome::Ok);
}

#[test]
fn errors_are_those_of_open_with_o_directory() {
    let mount = mount("errors");
    let client = mount.client();
    for (path, flags, errno) in [
        ("nothing", 0, libc::ENOENT),
        ("one", 0, libc::ENOTDIR),
        ("one/", 0, libc::ENOTDIR),
        ("sub/x", 0, libc::ENOENT),
        ("link", libc::O_NOFOLLOW, libc::ENOTDIR),
    ] {
        assert_eq!(open(&client, ROOT, path, flags), Err(Outcome::Errno(errno)), "{path}");
        let how = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::from_bits_retain(flags as u32);
        let by_kernel = rustix::fs::open(mount.directory.path().join(path), how, rustix::fs::Mode::empty());
        assert_eq!(by_kernel.unwrap_err().raw_os_error(), errno, "{path} by the kernel");
    }
    for number in [0, 77, u64::MAX] {
        assert_eq!(read(&client, number, 0, 4096), Err(Outcome::Errno(libc::EBADF)));
        assert_eq!(close(&client, number), Outcome::Errno(libc::EBADF));
    }
}

#[test]
fn names_that_are_none_end_a_listing_with_eio_as_in_the_kernel() {
    let mount = mount("broken");
    let client = mount.client();
    *mount.book.more.lock().unwrap() = vec!["a/b".into(), "after".into()];
    let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
    let (before, end) = read(&client, directory, 0, 4096).unwrap();
    assert_eq!((before.len(), end), (5, false));
    let behind = before.last().unwrap().offset;
    assert_eq!(read(&client, directory, behind, 4096), Err(Outcome::Errno(libc::EIO)));
    let listed: Result<Vec<_>, _> = std::fs::read_dir(mount.directory.path()).unwrap().collect();
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_file_system_that_only_lists_with_attributes_is_listed_and_owed_nothing_in_the_end() {
    let mount = mount("plus");
    mount.book.plain.store(true, Ordering::SeqCst);
    let client = mount.client();
    let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
    let entries = read_all(&client, directory, 4096);
    let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names, [&b"."[..], b"..", b"one", b"two", b"link"]);
    assert_eq!(entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [4, 4, 8, 8, 10]);
    assert!(mount.book.references.load(Ordering::SeqCst) > 0);
    assert_eq!(close(&client, directory), Outcome::Ok);
    let book = mount.book.clone();
    drop(client);
    drop(mount);
    // Unmounting ends all references; nothing may be given back twice, which would wrap around.
    assert!(book.references.load(Ordering::SeqCst) < 1000);
}

#[test]
fn every_directory_is_released_once_whoever_goes_first() {
    let mount = mount("release");
    let client = mount.client();
    let numbers: Vec<u64> = (0..100).map(|_| open(&client, ROOT, "sub", 0).unwrap().0).collect();
    assert_eq!(mount.book.open(), 100);
    for number in &numbers[..40] {
        assert_eq!(close(&client, *number), Outcome::Ok);
        assert_eq!(close(&client, *number), Outcome::Errno(libc::EBADF), "closed twice");
    }
    assert_eq!(mount.book.open(), 60);
    let other = mount.client();
    let (own, _) = open(&other, ROOT, "sub", 0).unwrap();
    assert_eq!(close(&client, own + 50), Outcome::Ok, "a number of the client's own");
    assert_eq!(read_all(&other, own, 4096).len(), 2, "clients do not see each other's");
    drop(client);
    eventually("a departed client's directories are released", || mount.book.open() == 1);
    let book = mount.book.clone();
    drop(mount);
    assert_eq!(book.open(), 0, "the end of the mount releases the rest");
    assert!(book.released.lock().unwrap().values().all(|count| *count == 1));
}

#[test]
fn a_slow_release_of_a_departed_clients_directory_holds_up_nobody() {
    let mount = mount("slow");
    let leaving = mount.client();
    open(&leaving, ROOT, "sub", 0).unwrap();
    *mount.book.slow_release.lock().unwrap() = true;
    drop(leaving);
    // Connecting needs the control thread and the reception; listing needs the workers.
    for _ in 0..20 {
        let client = mount.client();
        let (directory, _) = open(&client, ROOT, "sub", 0).unwrap();
        assert_eq!(read_all(&client, directory, 4096).len(), 2);
    }
    assert_eq!(mount.book.open(), 21);
    *mount.book.slow_release.lock().unwrap() = false;
    mount.book.quick.notify_all();
    eventually("all are released", || mount.book.open() == 0);
}

#[test]
fn closing_while_others_read_releases_after_the_last_of_them() {
    let mount = mount("race");
    let client = mount.client();
    mount.book.more.lock().unwrap().extend((0..200).map(|n| format!("name-{n}")));
    for _ in 0..50 {
        let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| match read(&client, directory, 0, 32768) {
                    Ok((entries, _)) => assert_eq!(entries.len(), 205),
                    Err(outcome) => assert_eq!(outcome, Outcome::Errno(libc::EBADF)),
                });
            }
            scope.spawn(|| assert_eq!(close(&client, directory), Outcome::Ok));
        });
        assert_eq!(mount.book.open(), 0);
    }
    assert!(mount.book.released.lock().unwrap().values().all(|count| *count == 1));
}

#[test]
fn a_removed_directory_lists_nothing_though_the_file_system_would() {
    let mount = mount("removed");
    let client = mount.client();
    let (directory, _) = open(&client, ROOT, "sub", 0).unwrap();
    assert_eq!(read_all(&client, directory, 4096).len(), 2);
    let request = frame::Request { base: ROOT, ..frame::Request::default() };
    assert_eq!(client.call(Op::Rmdir, &request, b"sub", b"").unwrap().reply.outcome(), Outcome::Ok);
    assert_eq!(read(&client, directory, 0, 4096), Err(Outcome::Errno(libc::ENOENT)));
    assert_eq!(close(&client, directory), Outcome::Ok);
}

#[test]
fn synchronising_a_directory_reaches_the_file_system() {
    let mount = mount("sync");
    let client = mount.client();
    let (directory, _) = open(&client, ROOT, ".", 0).unwrap();
    let request = frame::Request { base: directory, ..frame::Request::default() };
    let outcome = client.call(Op::Sync, &request, b"", b"").unwrap().reply.outcome();
    assert_eq!((outcome, mount.book.synced.load(Ordering::SeqCst)), (Outcome::Ok, 1));
}
