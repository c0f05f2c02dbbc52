//! The BPF programs of one mount, if somebody wanted them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

pub use finesse_ebpf::no_xattrs::Absent;
use finesse_ebpf::no_xattrs::NoXattrs;
use finesse_ebpf::requests::Requests;
use finesse_ebpf::{Error, Types};
use finesse_ipc::handshake;
use log::warn;
use parking_lot::{Mutex, RwLock};

use crate::mutant;

/// How many senders a report names.
const SENDERS: usize = 16;

/// What is attached, and why the rest is not.
#[derive(Debug, Default)]
pub(crate) struct Bpf {
    requests: Mutex<Option<Result<Requests, String>>>,
    xattrs: Mutex<Option<Result<XattrFree, String>>>,
}

/// Files without extended attributes, for which the kernel answers `ENODATA` to getxattr(2) without asking. A file system that
/// gets this ([`Filesystem::xattr_free`](crate::Filesystem::xattr_free)) and drops it does not want it.
#[derive(Clone, Debug)]
pub struct XattrFree(Arc<RwLock<Option<Attached>>>);

#[derive(Debug)]
struct Attached {
    programs: NoXattrs,
    /// Files that may get attributes without anybody hearing of it.
    unseen: Mutex<HashSet<u64>>,
}

impl XattrFree {
    /// Looks at a file, and lets the kernel answer for it during `lifetime` if it lacks attributes, unless one of the other
    /// methods is called meanwhile. Only for what `look` finds after the call began.
    pub fn learn(&self, ino: u64, lifetime: Duration, look: impl FnOnce() -> Absent) {
        let attached = self.0.read();
        if let Some(Attached { programs, unseen }) = &*attached {
            programs.learn(ino, lifetime, || match unseen.lock().contains(&ino) {
                true => Absent::default(),
                false => look(),
            });
        }
    }

    /// A file's attributes have changed: to be called after the change and before anybody is told of it.
    pub fn changed(&self, ino: u64) {
        if mutant::leaves_out("bpf: attributes") {
            return;
        }
        if let Some(attached) = &*self.0.read() {
            attached.programs.forget(ino);
        }
    }

    /// From here on a file's attributes may change at any time, because a descriptor of it was given away.
    pub fn changes_unseen(&self, ino: u64) {
        if let Some(attached) = &*self.0.read() {
            attached.unseen.lock().insert(ino);
            attached.programs.forget(ino);
        }
    }
}

impl Bpf {
    /// Attaches what can be had for the mount with this device number. `obstacle` says why the kernel may not answer in the
    /// file system's place, if so. `offer` is given what the file system may want.
    pub(crate) fn attach(&self, device: (u32, u32), obstacle: Option<&str>, offer: impl FnOnce(XattrFree)) {
        let types = Types::read();
        let types = types.as_ref().map_err(ToString::to_string);
        let requests = types.clone().and_then(|types| Requests::attach(types, device).map_err(text));
        if let Err(why) = &requests {
            warn!("the kernel's requests are not counted: {why}");
        }
        *self.requests.lock() = Some(requests);
        let programs = match obstacle {
            None => types.and_then(|types| NoXattrs::attach(types, device).map_err(text)),
            Some(obstacle) => Err(obstacle.to_owned()),
        };
        let files = programs.map(|programs| {
            XattrFree(Arc::new(RwLock::new(Some(Attached { programs, unseen: Mutex::default() }))))
        });
        match &files {
            Ok(files) => offer(files.clone()),
            Err(why) => warn!("the kernel does not answer for files without extended attributes: {why}"),
        }
        *self.xattrs.lock() = Some(match files {
            Ok(files) if Arc::strong_count(&files.0) == 1 => {
                Err("the file system has no use for it".to_owned())
            }
            files => files,
        });
    }

    /// Detaches everything.
    pub(crate) fn detach(&self) {
        *self.requests.lock() = None;
        if let Some(Ok(files)) = self.xattrs.lock().take() {
            *files.0.write() = None;
        }
    }

    /// How often the kernel has answered for a file without extended attributes.
    pub(crate) fn xattr_answers(&self) -> handshake::Saved {
        match self.xattrs.lock().as_ref() {
            None => handshake::Saved::Unwanted,
            Some(Err(why)) => handshake::Saved::Impossible(why.clone()),
            Some(Ok(files)) => handshake::Saved::Requests(
                files.0.read().as_ref().map_or(0, |attached| attached.programs.answers()),
            ),
        }
    }

    /// What the kernel has asked, and for whom: those who asked most.
    pub(crate) fn requests(&self) -> (handshake::Requests, Vec<handshake::SenderStatus>) {
        let uncounted = |why: String| (handshake::Requests::Uncounted(why), Vec::new());
        let requests = self.requests.lock();
        let counted = match requests.as_ref() {
            None => return Default::default(),
            Some(Err(why)) => return uncounted(why.clone()),
            Some(Ok(counted)) => counted,
        };
        let (sums, mut senders) = match counted.by_opcode().and_then(|sums| Ok((sums, counted.senders()?))) {
            Ok(counted) => counted,
            Err(error) => return uncounted(error.to_string()),
        };
        senders.sort_by_cached_key(|sender| std::cmp::Reverse(sender.requests.values().sum::<u64>()));
        senders.truncate(SENDERS);
        let senders = senders.into_iter().map(|sender| handshake::SenderStatus {
            pid: sender.process,
            command: sender.command,
            requests: named(sender.requests),
        });
        (handshake::Requests::Counted(named(sums)), senders.collect())
    }
}

fn text(error: Error) -> String {
    error.to_string()
}

fn named(requests: impl IntoIterator<Item = (u32, u64)>) -> handshake::Operations {
    requests.into_iter().map(|(opcode, count)| (operation(opcode), count)).collect()
}

/// The name of `enum fuse_opcode`, as fuser logs it.
fn operation(opcode: u32) -> String {
    let name = match opcode {
        1 => "LOOKUP",
        3 => "GETATTR",
        4 => "SETATTR",
        5 => "READLINK",
        6 => "SYMLINK",
        8 => "MKNOD",
        9 => "MKDIR",
        10 => "UNLINK",
        11 => "RMDIR",
        12 => "RENAME",
        13 => "LINK",
        14 => "OPEN",
        15 => "READ",
        16 => "WRITE",
        17 => "STATFS",
        18 => "RELEASE",
        20 => "FSYNC",
        21 => "SETXATTR",
        22 => "GETXATTR",
        23 => "LISTXATTR",
        24 => "REMOVEXATTR",
        25 => "FLUSH",
        26 => "INIT",
        27 => "OPENDIR",
        28 => "READDIR",
        29 => "RELEASEDIR",
        30 => "FSYNCDIR",
        31 => "GETLK",
        32 => "SETLK",
        33 => "SETLKW",
        34 => "ACCESS",
        35 => "CREATE",
        37 => "BMAP",
        38 => "DESTROY",
        39 => "IOCTL",
        40 => "POLL",
        43 => "FALLOCATE",
        44 => "READDIRPLUS",
        45 => "RENAME2",
        46 => "LSEEK",
        47 => "COPY_FILE_RANGE",
        48 => "SETUPMAPPING",
        49 => "REMOVEMAPPING",
        50 => "SYNCFS",
        51 => "TMPFILE",
        52 => "STATX",
        _ => return format!("OPERATION-{opcode}"),
    };
    name.to_owned()
}
