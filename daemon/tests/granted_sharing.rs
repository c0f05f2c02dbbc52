//! Files that bypass clients hold backing descriptors of and programs on the kernel road use at the same time. Needs root
//! and /dev/fuse.

#[allow(unreachable_pub, dead_code)]
mod memory;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use finesse::passthrough::{CachePolicy, Options, PassthroughFs};
use finesse::{
    BsdFileFlags, Bypass, FileHandle, Filesystem, INodeNo, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Road, TimeOrNow,
    WriteFlags,
};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, REPLY_GRANT, ROOT, Request as Frame};
use memory::client::outcome;
use memory::map::Map;
use memory::{Mount, eventually};

/// The passthrough file system, whose creations for the bypass take as long as a test wants.
struct SlowToCreate {
    passthrough: PassthroughFs,
    holds: Arc<AtomicBool>,
}

impl Filesystem for SlowToCreate {
    fn bypass(&self) -> Bypass {
        self.passthrough.bypass()
    }

    fn init(&mut self, req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.passthrough.init(req, config)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.passthrough.lookup(req, parent, name, reply);
    }

    fn forget(&self, req: &Request, ino: INodeNo, nlookup: u64) {
        self.passthrough.forget(req, ino, nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.passthrough.getattr(req, ino, fh, reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<std::time::SystemTime>,
        fh: Option<FileHandle>,
        crtime: Option<std::time::SystemTime>,
        chgtime: Option<std::time::SystemTime>,
        bkuptime: Option<std::time::SystemTime>,
        flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.passthrough.setattr(
            req, ino, mode, uid, gid, size, atime, mtime, ctime, fh, crtime, chgtime, bkuptime, flags, reply,
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.passthrough.create(req, parent, name, mode, umask, flags, reply);
        if req.road() == Road::Bypass {
            // The daemon reads the answer when this returns.
            eventually("`create` may return", || !self.holds.load(Ordering::SeqCst));
        }
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.passthrough.open(req, ino, flags, reply);
    }

    fn grant(&self, req: &Request, ino: INodeNo, fh: FileHandle) -> io::Result<OwnedFd> {
        self.passthrough.grant(req, ino, fh)
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.passthrough.read(req, ino, fh, offset, size, flags, owner, reply);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.passthrough.write(req, ino, fh, offset, data, write_flags, flags, owner, reply);
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.passthrough.flush(req, ino, fh, owner, reply);
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        self.passthrough.release(req, ino, fh, flags, owner, flush, reply);
    }
}

/// Creates a file on the bypass, and takes the descriptor that is granted.
fn create(client: &Client, name: &str) -> File {
    let flags = (libc::O_RDWR | libc::O_CREAT) as u32;
    let request = Frame { base: ROOT, flags, mode: 0o644, ..Frame::default() };
    let call = outcome(client.call(Op::Open, &request, name.as_bytes(), b"")).unwrap();
    assert_ne!(call.reply.flags & REPLY_GRANT, 0, "{name}");
    File::from(call.take_grant().unwrap())
}

#[test]
fn what_the_kernel_maps_of_a_file_that_is_being_created_and_granted_is_the_file() {
    let source = tempfile::Builder::new().prefix("finesse-granted-").tempdir().unwrap();
    let mut options = Options::default();
    options.cache = CachePolicy::Always;
    let holds = Arc::new(AtomicBool::new(false));
    let passthrough = PassthroughFs::new(source.path(), options).unwrap();
    let mount = Mount::new(SlowToCreate { passthrough, holds: holds.clone() });
    let client = mount.client();
    // The kernel creates it, too, or finds it and opens it.
    for (name, creates) in [("created", true), ("opened", false)] {
        holds.store(true, Ordering::SeqCst);
        let (kernel, granted) = std::thread::scope(|scope| {
            let creator = scope.spawn(|| create(&client, name));
            eventually("it is made", || source.path().join(name).exists());
            let mut how = OpenOptions::new();
            let kernel = how.read(true).write(true).create(creates).open(mount.path().join(name));
            holds.store(false, Ordering::SeqCst);
            (kernel.unwrap(), creator.join().unwrap())
        });
        kernel.set_len(4096).unwrap();
        let (there, here) = (Map::new(&kernel, true), Map::new(&granted, true));
        for turn in b'a'..=b'z' {
            there.set(10, turn);
            here.set(11, turn);
            assert_eq!((here.get(10), there.get(11)), (turn, turn), "{name}");
            granted.write_all_at(&[turn], 12).unwrap();
            kernel.write_all_at(&[turn], 13).unwrap();
            assert_eq!((there.get(12), here.get(13)), (turn, turn), "{name}");
            let mut text = [0; 4];
            kernel.read_exact_at(&mut text, 10).unwrap();
            assert_eq!(text, [turn; 4], "{name}");
        }
    }
    drop(client);
    mount.end();
}
