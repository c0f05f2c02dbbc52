//! Answers, in the kernel, for files that have no extended attributes.

use std::time::Duration;

use crate::{Error, Types};

/// Which extended attributes a file is known not to have, by the first part of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// `user.*`
    pub user: bool,
    /// `security.*`
    pub security: bool,
    /// `trusted.*`
    pub trusted: bool,
    /// `system.posix_acl_access` and `system.posix_acl_default`
    pub acl: bool,
}

impl Absent {
    /// As `bpf/no_xattrs.bpf.c` has them.
    #[cfg(programs)]
    fn bits(self) -> u64 {
        let Self { user, security, trusted, acl } = self;
        [user, security, trusted, acl].iter().rev().fold(0, |bits, &bit| bits << 1 | u64::from(bit))
    }
}

/// Security programs that answer `ENODATA` to getxattr(2) for files of one mount that are known to have no such
/// attributes, where FUSE would ask the daemon every time. Detached when dropped.
#[derive(Debug)]
pub struct NoXattrs {
    #[cfg(programs)]
    loaded: std::sync::Mutex<Loaded>,
}

#[cfg(programs)]
#[derive(Debug)]
struct Loaded {
    /// Holds the links.
    object: aya::Ebpf,
    files: aya::maps::HashMap<aya::maps::MapData, u64, [u64; 2]>,
    /// How often a file has got attributes.
    changes: u64,
}

#[cfg(not(programs))]
impl NoXattrs {
    /// Attaches the programs to the mount with this device number (major, minor).
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn attach(_types: &Types, _device: (u32, u32)) -> Result<Self, Error> {
        Err(Error::NotBuilt)
    }

    /// Does nothing.
    pub fn learn(&self, _ino: u64, _lifetime: Duration, _look: impl FnOnce() -> Absent) {}

    /// Does nothing.
    pub fn forget(&self, _ino: u64) {}

    /// None.
    pub fn answers(&self) -> u64 {
        0
    }
}

#[cfg(programs)]
impl NoXattrs {
    /// Attaches the programs to the mount with this device number (major, minor).
    ///
    /// # Errors
    /// No privilege, or a kernel without BPF security programs.
    pub fn attach(types: &Types, device: (u32, u32)) -> Result<Self, Error> {
        use aya::programs::Lsm;

        let types = &types.known;
        let device = crate::kernel_device(device);
        let mut object = aya::EbpfLoader::new()
            .btf(Some(types))
            .override_global("device", &device, true)
            .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/no_xattrs.o")))?;
        for (program, hook) in [("getxattr", "inode_getxattr"), ("get_acl", "inode_get_acl")] {
            let program: &mut Lsm = object.program_mut(program).expect("the object has it").try_into()?;
            program.load(hook, types)?;
            program.attach()?;
        }
        let files = object.take_map("files").expect("the object has it").try_into()?;
        Ok(Self { loaded: std::sync::Mutex::new(Loaded { object, files, changes: 0 }) })
    }

    /// Looks at a file, and lets the kernel answer for it during `lifetime` if it lacks attributes, unless
    /// [`forget`](Self::forget) was called meanwhile, for whichever file.
    ///
    /// The file must have been found before, so that whoever gives it attributes from here on calls `forget`.
    pub fn learn(&self, ino: u64, lifetime: Duration, look: impl FnOnce() -> Absent) {
        let before = self.loaded().changes;
        let kinds = look().bits();
        let until = uptime().saturating_add(lifetime).as_nanos() as u64;
        let mut loaded = self.loaded();
        // An entry may be there, of an earlier file with this inode number.
        let kinds = if loaded.changes == before { kinds } else { 0 };
        // If the kernel has no memory for it, it goes on asking.
        let _ = match kinds {
            0 => loaded.files.remove(&ino),
            kinds => loaded.files.insert(ino, [until, kinds], 0),
        };
    }

    /// A file has got an attribute, or may have: to be called after that and before anybody is told of it.
    pub fn forget(&self, ino: u64) {
        let mut loaded = self.loaded();
        loaded.changes += 1;
        // It may not be there.
        let _ = loaded.files.remove(&ino);
    }

    /// How often the kernel has answered instead of asking.
    pub fn answers(&self) -> u64 {
        let loaded = self.loaded();
        let counts = loaded.object.map("answers").and_then(|map| aya::maps::Array::try_from(map).ok());
        counts.and_then(|counts: aya::maps::Array<_, u64>| counts.get(&0, 0).ok()).unwrap_or(0)
    }

    fn loaded(&self) -> std::sync::MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// `bpf_ktime_get_ns`
#[cfg(programs)]
fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Not negative, and nanoseconds are below a second.
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
