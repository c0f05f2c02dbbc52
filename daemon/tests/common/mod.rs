//! A tiny file system, mounted, and a bypass client for it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use finesse::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    ReplyAttr, ReplyEmpty, ReplyEntry, Request,
};
use finesse_ipc::client::{Client, ConnectError};

const TTL: Duration = Duration::from_secs(1);

/// How long a lookup of `slow` takes.
pub const SLOW: Duration = Duration::from_millis(1500);

/// One directory with `hello.txt` (13 bytes); `slow` does not exist, which takes its time to find out;
/// unlinking anything works.
pub struct Hello;

fn attr(ino: u64) -> FileAttr {
    let directory = ino == 1;
    FileAttr {
        ino: INodeNo(ino),
        size: if directory { 0 } else { 13 },
        blocks: 1,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for Hello {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("hello.txt") => reply.entry(&TTL, &attr(2), Generation(0)),
            Some("slow") => {
                std::thread::sleep(SLOW);
                reply.error(Errno::ENOENT);
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino.0));
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A mounted [`Hello`]; unmounted on drop.
pub struct Mount {
    session: Option<BackgroundSession>,
    /// One mount at a time: some tests count what the whole process has or uses.
    _alone: MutexGuard<'static, ()>,
    directory: tempfile::TempDir,
}

/// Mounts [`Hello`]. Panics, saying so, where FUSE cannot be used.
pub fn hello(name: &str) -> Mount {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::Builder::new().prefix(&format!("finesse-{name}-")).tempdir().unwrap();
    let mut config = Config::default();
    config.n_threads = Some(2);
    let session = finesse::spawn_mount(Hello, directory.path(), &config)
        .expect("these tests need /dev/fuse and the right to mount");
    Mount { session: Some(session), _alone: alone, directory }
}

#[allow(dead_code)]
impl Mount {
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The abstract name of the mount's socket.
    pub fn socket(&self) -> Vec<u8> {
        let mut name = vec![0; 256];
        let len =
            rustix::fs::getxattr(self.directory.path(), finesse_ipc::handshake::SOCKET_XATTR, &mut name)
                .expect("the mount's root names the socket");
        name.truncate(len);
        name
    }

    pub fn try_client(&self) -> Result<Client, ConnectError> {
        Client::connect(&self.socket(), "test", 100)
    }

    pub fn client(&self) -> Client {
        self.try_client().expect("the bypass accepts its owner")
    }

    /// Unmounts and ends the daemon's part.
    pub fn end(&mut self) {
        if let Some(session) = self.session.take() {
            // Whoever looks at all mounts of the machine may be inside for a moment.
            finesse_tests::mount::unmount(self.directory.path());
            session.join().expect("the session ends with its mount");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.end();
    }
}
