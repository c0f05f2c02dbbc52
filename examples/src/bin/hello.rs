//! A directory with two files that cannot be changed: the least that a file system needs.
//!
//! It is written for `fuser`, word for word; Cargo.toml says that `fuser` is Finesse.
//!
//! ```text
//! finesse-hello /mnt/hello &
//! cat /mnt/hello/greeting          through the kernel
//! finesse run ls -l /mnt/hello     what names and attributes are asked for, through shared memory
//! umount /mnt/hello
//! ```

use std::ffi::OsStr;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, Request,
};

/// How long answers hold: nothing ever changes.
const TTL: Duration = Duration::from_secs(3600);

/// Names and contents; the first has inode number 2, as 1 is the root directory's.
const FILES: [(&str, &str); 2] = [("greeting", "Hello, world!\n"), ("answer", "42\n")];
const FIRST: u64 = 2;

struct Hello;

fn contents(ino: INodeNo) -> Option<&'static str> {
    let index = usize::try_from(ino.0.checked_sub(FIRST)?).ok()?;
    FILES.get(index).map(|(_, contents)| *contents)
}

fn attr(ino: INodeNo) -> Option<FileAttr> {
    let (kind, perm, nlink, size) = match contents(ino) {
        Some(contents) => (FileType::RegularFile, 0o444, 1, contents.len() as u64),
        None if ino == INodeNo::ROOT => (FileType::Directory, 0o555, 2, 0),
        None => return None,
    };
    let (time, blksize) = (UNIX_EPOCH, 4096);
    let (atime, mtime, ctime, crtime) = (time, time, time, time);
    let (blocks, uid, gid, rdev, flags) = (size.div_ceil(512), 0, 0, 0, 0);
    Some(FileAttr {
        ino,
        size,
        blocks,
        atime,
        mtime,
        ctime,
        crtime,
        kind,
        perm,
        nlink,
        uid,
        gid,
        rdev,
        blksize,
        flags,
    })
}

impl Filesystem for Hello {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let index = FILES.iter().position(|(file, _)| parent == INodeNo::ROOT && name == *file);
        match index.and_then(|index| attr(INodeNo(FIRST + index as u64))) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match attr(ino) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
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
        let Some(contents) = contents(ino) else { return reply.error(Errno::EISDIR) };
        let rest = usize::try_from(offset).ok().and_then(|offset| contents.as_bytes().get(offset..));
        let rest = rest.unwrap_or_default();
        reply.data(&rest[..rest.len().min(size as usize)]);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [(1, FileType::Directory, "."), (1, FileType::Directory, "..")];
        let files = (FIRST..).zip(FILES).map(|(ino, (name, _))| (ino, FileType::RegularFile, name));
        // An entry's offset is where the next call goes on.
        for (next, (ino, kind, name)) in (1..).zip(dots.into_iter().chain(files)).skip(offset as usize) {
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> ExitCode {
    let Some(mountpoint) = std::env::args_os().nth(1) else {
        eprintln!("usage: finesse-hello MOUNTPOINT");
        return ExitCode::from(2);
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("hello".to_owned())];
    match fuser::mount(Hello, &mountpoint, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("finesse-hello: {}: {error}", mountpoint.display());
            ExitCode::FAILURE
        }
    }
}
