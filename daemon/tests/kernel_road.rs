//! A small file system, mounted and used through the kernel. Needs /dev/fuse and the right to mount; without
//! them the tests fail, saying so.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use finesse::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Road, TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(60);

/// What the test sees of the file system from outside.
#[derive(Default)]
struct Seen {
    initialised: AtomicBool,
    destroyed: AtomicBool,
    lookups: AtomicU32,
}

/// A flat directory of files in memory. Reads of `slow` are answered by another thread; lookups of `dropped`
/// are not answered at all.
struct Flat {
    seen: Arc<Seen>,
    files: Mutex<BTreeMap<OsString, (u64, Vec<u8>)>>,
    later: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Flat {
    fn new(seen: &Arc<Seen>) -> Self {
        let (later, work) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        thread::spawn(move || work.into_iter().for_each(|job| job()));
        Self { seen: Arc::clone(seen), files: Mutex::default(), later }
    }

    fn contents(&self, ino: INodeNo) -> Option<(OsString, Vec<u8>)> {
        let files = self.files.lock().unwrap();
        files.iter().find(|(_, file)| file.0 == ino.0).map(|(name, file)| (name.clone(), file.1.clone()))
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        match ino {
            INodeNo::ROOT => Some(attr(1, FileType::Directory, 0)),
            _ => self.contents(ino).map(|(_, data)| attr(ino.0, FileType::RegularFile, data.len() as u64)),
        }
    }
}

fn attr(ino: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Flat {
    fn init(&mut self, _req: &Request, _config: &mut KernelConfig) -> io::Result<()> {
        self.seen.initialised.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn destroy(&mut self) {
        self.seen.destroyed.store(true, Ordering::SeqCst);
    }

    fn lookup(&self, req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        assert_eq!((req.road(), req.groups()), (Road::Kernel, None));
        self.seen.lookups.fetch_add(1, Ordering::SeqCst);
        if name == "dropped" {
            return;
        }
        let found = self.files.lock().unwrap().get(name).map(|file| (file.0, file.1.len() as u64));
        match found {
            Some((ino, size)) => reply.entry(&TTL, &attr(ino, FileType::RegularFile, size), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if let Some(size) = size {
            let mut files = self.files.lock().unwrap();
            if let Some(file) = files.values_mut().find(|file| file.0 == ino.0) {
                file.1.resize(size as usize, 0);
            }
        }
        match self.attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // What a file system without `open` answers: opening needs no call.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut files = self.files.lock().unwrap();
        let ino = 2 + files.len() as u64;
        files.insert(name.to_owned(), (ino, Vec::new()));
        let attr = attr(ino, FileType::RegularFile, 0);
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some((name, data)) = self.contents(ino) else { return reply.error(Errno::ENOENT) };
        let from = data.len().min(offset as usize);
        let to = data.len().min(from + size as usize);
        if name == "slow" {
            self.later.send(Box::new(move || reply.data(&data[from..to]))).unwrap();
        } else {
            reply.data(&data[from..to]);
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut files = self.files.lock().unwrap();
        let Some(file) = files.values_mut().find(|file| file.0 == ino.0) else {
            return reply.error(Errno::ENOENT);
        };
        let end = offset as usize + data.len();
        file.1.resize(file.1.len().max(end), 0);
        file.1[offset as usize..end].copy_from_slice(data);
        reply.written(data.len() as u32);
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.files.lock().unwrap().remove(name) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let files = self.files.lock().unwrap();
        for (index, (name, file)) in files.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(file.0), index as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}

struct Mounted {
    session: BackgroundSession,
    seen: Arc<Seen>,
    dir: tempfile::TempDir,
}

fn mount() -> Mounted {
    let seen = Arc::new(Seen::default());
    let dir = tempfile::Builder::new().prefix("finesse-kernel-road-").tempdir().unwrap();
    let session = finesse::spawn_mount2(Flat::new(&seen), dir.path(), &Config::default())
        .expect("cannot mount: this test needs /dev/fuse and root or fusermount3");
    Mounted { session, seen, dir }
}

#[test]
fn a_file_written_is_read_back_listed_and_removed() {
    let Mounted { dir, session, .. } = mount();
    let path = dir.path().join("file");
    fs::write(&path, b"contents").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"contents");
    assert_eq!(fs::metadata(&path).unwrap().size(), 8);
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    session.umount_and_join().unwrap();
}

#[test]
fn a_reply_may_come_later_from_another_thread() {
    let Mounted { dir, session, .. } = mount();
    let path = dir.path().join("slow");
    fs::File::create(&path).unwrap().write_all(b"patience").unwrap();
    let mut text = String::new();
    fs::File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "patience");
    session.umount_and_join().unwrap();
}

#[test]
fn a_reply_that_is_dropped_is_an_input_output_error() {
    let Mounted { dir, session, .. } = mount();
    let error = fs::metadata(dir.path().join("dropped")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    session.umount_and_join().unwrap();
}

#[test]
fn the_kernel_keeps_names_for_their_lifetime() {
    let Mounted { dir, seen, session } = mount();
    let path = dir.path().join("file");
    fs::write(&path, b"").unwrap();
    fs::metadata(&path).unwrap();
    let before = seen.lookups.load(Ordering::SeqCst);
    for _ in 0..10 {
        fs::metadata(&path).unwrap();
    }
    assert_eq!(seen.lookups.load(Ordering::SeqCst), before);
    session.umount_and_join().unwrap();
}

#[test]
fn a_file_system_is_initialised_before_the_mount_is_ready_and_destroyed_after_the_unmount() {
    let Mounted { dir: _dir, seen, session } = mount();
    assert!(seen.initialised.load(Ordering::SeqCst));
    assert!(!seen.destroyed.load(Ordering::SeqCst));
    session.umount_and_join().unwrap();
    assert!(seen.destroyed.load(Ordering::SeqCst));
}

#[test]
fn dropping_the_background_session_unmounts() {
    let Mounted { dir, seen, session } = mount();
    let device = fs::metadata(dir.path()).unwrap().dev();
    assert_ne!(device, fs::metadata(dir.path().parent().unwrap()).unwrap().dev());
    drop(session);
    assert_ne!(device, fs::metadata(dir.path()).unwrap().dev());
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !seen.destroyed.load(Ordering::SeqCst) {
        assert!(std::time::Instant::now() < deadline, "the session did not end");
        thread::yield_now();
    }
}

#[test]
fn an_unmount_from_outside_ends_the_session() {
    let Mounted { dir, seen, session } = mount();
    let status = std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(status.success());
    session.join().unwrap();
    assert!(seen.destroyed.load(Ordering::SeqCst));
}

#[test]
fn what_is_mounted_in_the_place_of_an_unmounted_file_system_stays() {
    if !finesse_tests::needs::root("what_is_mounted_in_the_place_of_an_unmounted_file_system_stays") {
        return;
    }
    for _ in 0..10 {
        let Mounted { dir, seen, session } = mount();
        rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::empty()).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(c"none", dir.path(), c"tmpfs", flags, None).unwrap();
        let device = fs::metadata(dir.path()).unwrap().dev();
        session.join().unwrap();
        assert!(seen.destroyed.load(Ordering::SeqCst));
        // Where fuser's session goes on, it unmounts within microseconds of the file system's end.
        thread::sleep(Duration::from_millis(20));
        let after = fs::metadata(dir.path()).unwrap().dev();
        let _ = rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH);
        assert_eq!(device, after);
    }
}

#[test]
fn changes_that_the_file_system_reports_reach_the_kernel() {
    let Mounted { dir, seen, session } = mount();
    let path = dir.path().join("file");
    fs::write(&path, b"").unwrap();
    fs::metadata(&path).unwrap();
    let before = seen.lookups.load(Ordering::SeqCst);
    session.notifier().inval_entry(INodeNo::ROOT, OsStr::new("file")).unwrap();
    fs::metadata(&path).unwrap();
    assert_eq!(seen.lookups.load(Ordering::SeqCst), before + 1);
    session.umount_and_join().unwrap();
}
