//! The BPF programs of one mount, if somebody wanted them.

use finesse_ebpf::requests::Requests;
use finesse_ipc::handshake;
use log::warn;
use parking_lot::Mutex;

/// How many senders a report names.
const SENDERS: usize = 16;

/// What is attached, and why the rest is not.
#[derive(Debug, Default)]
pub(crate) struct Bpf {
    requests: Mutex<Option<Result<Requests, String>>>,
}

impl Bpf {
    /// Attaches what can be had for the mount with this device number.
    pub(crate) fn attach(&self, device: (u32, u32)) {
        let requests = Requests::attach(device).map_err(|error| {
            warn!("the kernel's requests are not counted: {error}");
            error.to_string()
        });
        *self.requests.lock() = Some(requests);
    }

    /// Detaches everything.
    pub(crate) fn detach(&self) {
        *self.requests.lock() = None;
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
