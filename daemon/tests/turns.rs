//! A file system that was written for one thread is called by one at a time, on both roads. Needs /dev/fuse and the right to
//! mount.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use finesse::{
    Bypass, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, ReplyAttr,
    ReplyEntry, Request,
};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, Outcome, ROOT, Request as Frame};

/// One file, which is looked up and asked for its attributes anew each time.
#[derive(Default)]
struct Counting {
    calls_at_once: bool,
    inside: Arc<AtomicUsize>,
    /// How many were inside at the same time, at most.
    most: Arc<AtomicUsize>,
}

impl Counting {
    fn stay(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, perm) =
        if ino == INodeNo::ROOT { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for Counting {
    fn bypass(&self) -> Bypass {
        Bypass::new().with_calls_at_once(self.calls_at_once)
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.stay();
        match name.to_str() {
            Some("file") => reply.entry(&Duration::ZERO, &attr(INodeNo(2)), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.stay();
        reply.attr(&Duration::ZERO, &attr(ino));
    }
}

/// How many calls a file system gets at the same time when two programs on each road want something of it.
fn most_at_once(threads: Option<usize>, calls_at_once: bool) -> usize {
    let file_system = Counting { calls_at_once, ..Counting::default() };
    let most = file_system.most.clone();
    let directory = tempfile::Builder::new().prefix("finesse-turns-").tempdir().unwrap();
    let mut config = Config::default();
    config.n_threads = threads;
    let session = finesse::spawn_mount(file_system, directory.path(), &config)
        .expect("these tests need /dev/fuse and the right to mount");
    let mut socket = vec![0; 256];
    let len = rustix::fs::getxattr(directory.path(), finesse_ipc::handshake::SOCKET_XATTR, &mut socket)
        .expect("the mount's root names the socket");
    let socket = &socket[..len];
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let client = Client::connect(socket, "test", 100).expect("the bypass accepts its owner");
                let request = Frame { base: ROOT, ..Frame::default() };
                for _ in 0..50 {
                    let call = client.call(Op::Stat, &request, b"file", b"").unwrap();
                    assert_eq!(call.reply.outcome(), Outcome::Ok);
                }
            });
            scope.spawn(|| {
                for _ in 0..50 {
                    std::fs::metadata(directory.path().join("file")).unwrap();
                }
            });
        }
    });
    session.umount_and_join().unwrap();
    most.load(Ordering::SeqCst)
}

#[test]
fn a_file_system_with_one_thread_is_called_by_turns() {
    assert_eq!(most_at_once(None, false), 1);
    assert_eq!(most_at_once(Some(1), false), 1);
}

#[test]
fn one_that_does_not_mind_is_called_at_once() {
    for (threads, calls_at_once) in [(None, true), (Some(2), false)] {
        let most = most_at_once(threads, calls_at_once);
        assert!(most > 1, "with {threads:?} threads: {most}");
    }
}
