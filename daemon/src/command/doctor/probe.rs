//! A file system with one file, mounted for a moment to see what the kernel's FUSE offers.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use finesse::{
    BackingId, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request, spawn_mount2,
};

/// What the kernel offers.
#[derive(Debug)]
pub(super) struct Offer {
    /// The protocol version.
    pub(super) version: (u32, u32),
    /// Whether it offers FUSE over io_uring.
    pub(super) uring: bool,
    /// Whether it offers passthrough.
    pub(super) passthrough_offered: bool,
    /// Whether a file that was opened on a backing file could be read.
    pub(super) passthrough: io::Result<()>,
}

#[derive(Debug, Default)]
struct Seen {
    version: (u32, u32),
    offered: Option<InitFlags>,
    open: Option<io::Result<BackingId>>,
}

struct Probe {
    backing: File,
    seen: Arc<Mutex<Seen>>,
}

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "file";
const CONTENTS: &[u8] = b"from the backing file";
const TTL: Duration = Duration::from_secs(1);

impl Probe {
    fn with<T>(&self, act: impl FnOnce(&mut Seen) -> T) -> T {
        act(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, perm, size) = match ino {
        FILE => (FileType::RegularFile, 0o444, CONTENTS.len() as u64),
        _ => (FileType::Directory, 0o755, 0),
    };
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size,
        blocks: 1,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Probe {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let (offered, version) = (config.capabilities(), config.kernel_abi());
        self.with(|seen| {
            seen.offered = Some(offered);
            seen.version = (version.0, version.1);
        });
        // Not offered: then opening the backing file fails, which is what we want to know.
        if config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() {
            let _ = config.set_max_stack_depth(1);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match reply.open_backing(&self.backing) {
            Ok(id) => {
                reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &id);
                self.with(|seen| seen.open = Some(Ok(id)));
            }
            Err(error) => {
                self.with(|seen| seen.open = Some(Err(error)));
                reply.error(Errno::EIO);
            }
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.with(|seen| seen.open = None);
        reply.ok();
    }
}

/// Mounts, looks, unmounts.
///
/// # Errors
/// The mount cannot be made.
pub(super) fn mount() -> io::Result<Offer> {
    let directory = Scratch::new()?;
    let backing = directory.0.join("backing");
    let mountpoint = directory.0.join("mount");
    std::fs::write(&backing, CONTENTS)?;
    std::fs::create_dir(&mountpoint)?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let probe = Probe { backing: File::open(&backing)?, seen: Arc::clone(&seen) };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("finesse-doctor".to_owned())];
    let session = spawn_mount2(probe, &mountpoint, &config)?;
    let read = std::fs::read(mountpoint.join(NAME));
    let unmounted = session.umount_and_join();
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let passthrough = match (seen.open.take(), read) {
        (Some(Err(refused)), _) => Err(refused),
        (_, Ok(contents)) if contents == CONTENTS => Ok(()),
        (_, Ok(_)) => Err(io::Error::other("a backing file was registered, but not read from")),
        (_, Err(error)) => Err(error),
    };
    unmounted?;
    let offered = seen.offered.unwrap_or(InitFlags::empty());
    Ok(Offer {
        version: seen.version,
        uring: offered.contains(InitFlags::FUSE_OVER_IO_URING),
        passthrough_offered: offered.contains(InitFlags::FUSE_PASSTHROUGH),
        passthrough,
    })
}

/// A private directory, removed on drop.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let place = std::env::temp_dir().canonicalize()?;
        for attempt in 0u32.. {
            let path = place.join(format!("finesse-doctor-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("a name is free before the numbers end")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // One by one: were something still mounted there, it must not be deleted through the mount.
        let _ = std::fs::remove_file(self.0.join("backing"));
        let _ = std::fs::remove_dir(self.0.join("mount"));
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_mount_tells_what_the_kernel_offers_and_is_gone_afterwards() {
        match super::mount() {
            Ok(offer) => assert!(offer.version >= (7, 31), "{offer:?}"),
            Err(error) => eprintln!("skipped: cannot mount here: {error}"),
        }
        let own = format!("finesse-doctor-{}", std::process::id());
        // Another test may have its probe mounted at this moment.
        let start = std::time::Instant::now();
        while std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&own) {
            assert!(start.elapsed().as_secs() < 10, "a probe stays mounted");
            std::thread::yield_now();
        }
    }
}
