//! The kernel's caches and the bypass' clients, on real mounts. They need /dev/fuse and the right to mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::coherence::{Coherence, Invalidate};
use crate::session::Core;
use crate::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request, Session,
};

const TTL: Duration = Duration::from_secs(3600);
const FILE: u64 = 2;
const DIR: u64 = 3;
const OTHER: u64 = 4;

/// What the file system was asked, and what it answers.
#[derive(Default)]
struct Script {
    lookups: AtomicU32,
    getattrs: AtomicU32,
    size: AtomicU64,
    /// The size that attributes tell, if not 0.
    told: AtomicU64,
    byte: AtomicU32,
    other: AtomicBool,
    /// The kernel may keep listings.
    keeps: AtomicBool,
    lists: AtomicU32,
}

/// The root holds a file `file` of `size` times `byte`, a directory `dir`, and sometimes another, `other`.
struct Scripted(Arc<Script>);

impl Scripted {
    fn attr(&self, ino: u64) -> FileAttr {
        let file = ino == FILE;
        let size = match self.0.told.load(Ordering::SeqCst) {
            0 => self.0.size.load(Ordering::SeqCst),
            told => told,
        };
        FileAttr {
            ino: INodeNo(ino),
            size: if file { size } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Scripted {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_DO_READDIRPLUS)
            .map_err(|_| io::Error::other("this kernel has no READDIRPLUS"))
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let keeps = self.0.keeps.load(Ordering::SeqCst);
        let kept = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), if keeps { kept } else { FopenFlags::empty() });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.0.lists.fetch_add(1, Ordering::SeqCst);
        if offset == 0 {
            let full = reply.add(INodeNo(FILE), 1, "file", &TTL, &self.attr(FILE), Generation(0));
            assert!(!full);
            if self.0.other.load(Ordering::SeqCst) {
                let full = reply.add(INodeNo(OTHER), 2, "other", &TTL, &self.attr(OTHER), Generation(0));
                assert!(!full);
            }
        }
        reply.ok();
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookups.fetch_add(1, Ordering::SeqCst);
        let ino = match name.to_str() {
            Some("file") => FILE,
            Some("dir") => DIR,
            Some("other") if self.0.other.load(Ordering::SeqCst) => OTHER,
            // No such name, and for long.
            _ => 0,
        };
        reply.entry(&TTL, &self.attr(ino), Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattrs.fetch_add(1, Ordering::SeqCst);
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = self.0.size.load(Ordering::SeqCst).min(u64::from(size));
        reply.data(&vec![self.0.byte.load(Ordering::SeqCst) as u8; size as usize]);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

struct Mounted {
    script: Arc<Script>,
    core: Weak<Core<Scripted>>,
    coherence: Arc<Coherence>,
    session: BackgroundSession,
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Self {
        let script = Arc::new(Script::default());
        script.size.store(10, Ordering::SeqCst);
        let dir = tempfile::Builder::new().prefix("finesse-coherence-").tempdir().unwrap();
        let (session, core) =
            Session::without_bypass(Scripted(Arc::clone(&script)), dir.path(), &Config::default())
                .expect("cannot mount: this test needs /dev/fuse and root or fusermount3");
        let coherence = Arc::clone(&core.upgrade().unwrap().coherence);
        Self { script, core, coherence, session: session.spawn().unwrap(), dir }
    }

    /// How many names the root lists.
    fn names(&self) -> usize {
        fs::read_dir(self.dir.path()).unwrap().count()
    }

    fn size(&self) -> u64 {
        fs::metadata(self.dir.path().join("file")).unwrap().size()
    }

    /// How many lookups reach the file system when `act` runs.
    fn lookups(&self, act: impl FnOnce()) -> u32 {
        let before = self.script.lookups.load(Ordering::SeqCst);
        act();
        self.script.lookups.load(Ordering::SeqCst) - before
    }

    fn end(self) {
        // The file system is destroyed only when nobody can reach it any more.
        drop(self.core);
        // Whoever looks at all mounts of the machine may be inside for a moment.
        finesse_tests::mount::unmount(self.dir.path());
        self.session.join().unwrap();
    }
}

/// The bypass changes what a name in the root stands for.
fn change(mounted: &Mounted, name: &str) {
    mounted.coherence.changing(1, OsStr::new(name), false).changed(false, None);
}

#[test]
fn what_the_bypass_changes_the_kernel_asks_for_again_and_only_that() {
    let mounted = Mounted::new();
    mounted.coherence.bypass_connected();
    assert_eq!(mounted.size(), 10);
    mounted.script.size.store(20, Ordering::SeqCst);
    assert_eq!(mounted.size(), 10, "the kernel was told that it may remember");
    mounted.coherence.changed_attr(DIR);
    change(&mounted, "dir");
    assert_eq!(mounted.size(), 10, "another one has changed");
    mounted.coherence.changed_attr(FILE);
    assert_eq!(mounted.lookups(|| assert_eq!(mounted.size(), 20)), 0, "the name is still good");
    change(&mounted, "file");
    assert_eq!(mounted.lookups(|| assert_eq!(mounted.size(), 20)), 1);
    assert_eq!(mounted.lookups(|| assert_eq!(mounted.size(), 20)), 0, "and is good again");
    mounted.coherence.bypass_disconnected();
    mounted.end();
}

#[test]
fn the_kernel_forgets_that_something_does_not_exist() {
    let mounted = Mounted::new();
    let look = || assert!(!mounted.dir.path().join("absent").exists());
    look();
    assert_eq!(mounted.lookups(look), 0);
    change(&mounted, "absent");
    assert_eq!(mounted.lookups(look), 1);
    assert_eq!(mounted.lookups(look), 0);
    mounted.end();
}

#[test]
fn open_files_show_fresh_attributes() {
    let mounted = Mounted::new();
    let file = File::open(mounted.dir.path().join("file")).unwrap();
    assert_eq!(file.metadata().unwrap().size(), 10);
    mounted.script.size.store(12, Ordering::SeqCst);
    assert_eq!(file.metadata().unwrap().size(), 10);
    mounted.coherence.changed_attr(FILE);
    assert_eq!(file.metadata().unwrap().size(), 12);
    drop(file);
    mounted.end();
}

#[test]
fn files_show_fresh_contents_whether_they_are_open_or_not() {
    let mounted = Mounted::new();
    let set = |byte: u8| mounted.script.byte.store(u32::from(byte), Ordering::SeqCst);
    let open = || File::open(mounted.dir.path().join("file")).unwrap();
    let first = |file: &File| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        byte[0]
    };
    set(b'a');
    let file = open();
    assert_eq!(first(&file), b'a');
    set(b'b');
    assert_eq!(first(&file), b'a', "the page cache serves open files");
    mounted.coherence.bypass_changed_data(FILE, None).unwrap();
    assert_eq!(first(&file), b'b');
    assert!(mounted.coherence.kernel_has_open(FILE) && mounted.coherence.kernel_knows(FILE));
    drop(file);
    // The kernel reports the close a little later, when it has closed.
    while mounted.coherence.kernel_has_open(FILE) {
        std::thread::yield_now();
    }
    set(b'c');
    assert_eq!(first(&open()), b'b', "the file system lets the kernel keep pages");
    mounted.coherence.bypass_changed_data(FILE, None).unwrap();
    assert_eq!(first(&open()), b'c');
    mounted.end();
}

#[test]
fn a_file_reaches_as_far_as_the_bypass_has_made_it_whatever_the_kernel_is_told_of_its_size() {
    let mounted = Mounted::new();
    let file = File::open(mounted.dir.path().join("file")).unwrap();
    let read = |at: u64| file.read_at(&mut [0], at).unwrap();
    assert_eq!((read(9), read(10)), (1, 0));
    mounted.script.size.store(20, Ordering::SeqCst);
    // As if notifications overtook all answers.
    mounted.script.told.store(10, Ordering::SeqCst);
    mounted.coherence.bypass_changed_data(FILE, None).unwrap();
    assert_eq!(read(19), 0, "the kernel asks, and is told of an earlier end");
    mounted.coherence.bypass_changed_data(FILE, Some(20)).unwrap();
    assert_eq!((read(19), read(20)), (1, 0));
    drop(file);
    mounted.end();
}

#[test]
fn what_a_listing_told_the_kernel_is_forgotten_too() {
    let mounted = Mounted::new();
    assert_eq!(mounted.names(), 1);
    assert!(mounted.coherence.kernel_knows(FILE));
    assert_eq!(mounted.lookups(|| assert_eq!(mounted.size(), 10)), 0, "the listing told the kernel");
    mounted.script.size.store(20, Ordering::SeqCst);
    change(&mounted, "file");
    mounted.coherence.changed_attr(FILE);
    assert_eq!(mounted.lookups(|| assert_eq!(mounted.size(), 20)), 1);
    mounted.end();
}

#[test]
fn a_listing_that_the_kernel_keeps_is_read_anew_when_the_bypass_has_changed_it() {
    let mounted = Mounted::new();
    mounted.script.keeps.store(true, Ordering::SeqCst);
    let stop = AtomicBool::new(false);
    let lists = || mounted.script.lists.load(Ordering::SeqCst);
    assert_eq!(mounted.names(), 1);
    let asked = lists();
    assert_eq!(mounted.names(), 1);
    assert_eq!(lists(), asked, "the kernel has it");
    change(&mounted, "absent");
    assert_eq!(mounted.names(), 1);
    assert!(lists() > asked);
    std::thread::scope(|scope| {
        // Listings from before a change that are under way while it is told.
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                mounted.names();
            }
        });
        for round in 0..1_000 {
            mounted.script.other.store(round % 2 == 0, Ordering::SeqCst);
            change(&mounted, "other");
            assert_eq!(mounted.names(), 1 + usize::from(round % 2 == 0));
        }
        stop.store(true, Ordering::SeqCst);
    });
    mounted.end();
}

/// An answer that carries the old state is on its way, or is still being made, while the bypass changes what it is about.
#[test]
fn no_answer_under_way_outlives_a_change() {
    let mounted = Mounted::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let path = mounted.dir.path().join("file");
                let file = File::open(&path).unwrap();
                let other = mounted.dir.path().join("other");
                while !stop.load(Ordering::SeqCst) {
                    fs::metadata(&path).unwrap();
                    file.metadata().unwrap();
                    let _ = other.exists();
                    fs::read_dir(mounted.dir.path()).unwrap().count();
                }
            });
        }
        for size in 100..2_100 {
            mounted.script.size.store(size, Ordering::SeqCst);
            mounted.coherence.changed_attr(FILE);
            assert_eq!(mounted.size(), size);
            mounted.script.other.store(size % 2 == 0, Ordering::SeqCst);
            change(&mounted, "other");
            assert_eq!(mounted.dir.path().join("other").exists(), size % 2 == 0);
            if size % 3 == 0 {
                change(&mounted, "file");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    mounted.end();
}

#[test]
fn programs_find_the_bypass_though_the_file_system_has_no_attributes() {
    let mounted = Mounted::new();
    // What any program does first; a file system without attributes answers ENOSYS.
    let get = |name: &str, buffer: &mut [u8]| rustix::fs::getxattr(mounted.dir.path(), name, buffer);
    let noted = Arc::new(Noted::default());
    mounted.coherence.set_cache(&noted);
    assert_eq!(get("user.any", &mut [0; 64]), Err(rustix::io::Errno::OPNOTSUPP));
    assert_eq!(get("system.finesse", &mut [0; 64]), Err(rustix::io::Errno::OPNOTSUPP));
    mounted.core.upgrade().unwrap().set_rendezvous(b"socket".to_vec());
    assert_eq!(rustix::fs::getxattr_query(mounted.dir.path(), "system.finesse"), Ok(6));
    assert_eq!(get("system.finesse", &mut [0; 3]), Err(rustix::io::Errno::RANGE));
    let mut value = [0; 64];
    assert_eq!(get("system.finesse", &mut value), Ok(6));
    assert_eq!(&value[..6], b"socket");
    mounted.end();
}

#[test]
fn a_regular_file_with_a_writable_grant_has_no_lifetime() {
    let mounted = Mounted::new();
    mounted.coherence.note_granted_write(FILE);
    mounted.size();
    mounted.script.size.store(20, Ordering::SeqCst);
    assert_eq!(mounted.size(), 20);
    mounted.script.byte.store(u32::from(b'a'), Ordering::SeqCst);
    let file = File::open(mounted.dir.path().join("file")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    mounted.script.byte.store(u32::from(b'b'), Ordering::SeqCst);
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(&byte, b"b", "an open after the grant must not use the page cache");
    drop(file);
    mounted.end();
}

/// Notes what it is told.
#[derive(Default)]
struct Noted(Mutex<Vec<String>>);

impl Invalidate for Noted {
    fn entry(&self, parent: u64, name: &OsStr) {
        self.0.lock().push(format!("{parent}/{}", name.display()));
    }

    fn attr(&self, ino: u64) {
        self.0.lock().push(format!("{ino}"));
    }

    fn atime(&self, ino: u64) {
        self.0.lock().push(format!("read {ino}"));
    }

    fn unseen(&self, _: u64) {}

    fn closed(&self, _: Option<u64>) {}

    fn moved_to(&self, _: u64) {}

    fn pay(&self) {}
}

#[test]
fn the_bypass_cache_hears_of_a_change_before_the_program_goes_on() {
    let mounted = Mounted::new();
    let noted = Arc::new(Noted::default());
    mounted.coherence.set_cache(&noted);
    let error = fs::remove_file(mounted.dir.path().join("file")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(*noted.0.lock(), ["1/file", "1"], "failed requests may have acted, too");

    noted.0.lock().clear();
    mounted.session.notifier().inval_entry(INodeNo::ROOT, OsStr::new("dir")).unwrap();
    mounted.session.notifier().inval_inode(INodeNo(FILE), 0, 0).unwrap();
    assert_eq!(*noted.0.lock(), ["1/dir", "2"]);
    mounted.end();
}
