//! Rules that the kernel itself checks, for what it does without asking a daemon: walking through directories that it knows.

use crate::rules::Rules;
use crate::{Error, Types};

/// A security program that checks who may search and list the directories of one mount. Detached when dropped.
#[derive(Debug)]
pub struct Walks {
    #[cfg(programs)]
    loaded: loaded::Loaded,
}

#[cfg(not(programs))]
impl Walks {
    /// Attaches the program to the mount with this device number (major, minor).
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn attach(_types: &Types, _device: (u32, u32), _rules: &Rules) -> Result<Self, Error> {
        Err(Error::NotBuilt)
    }

    /// Does nothing, and says so.
    pub fn guard(&self, _ino: u64, _zone: u32) -> bool {
        false
    }

    /// Does nothing.
    pub fn release(&self, _ino: u64) {}

    /// None.
    pub fn denials(&self) -> u64 {
        0
    }
}

#[cfg(programs)]
mod loaded {
    use std::sync::{Mutex, PoisonError};

    use aya::Ebpf;
    use aya::maps::{Array, HashMap, MapData};
    use aya::programs::Lsm;

    use super::{Error, Rules, Types, Walks};

    /// As `bpf/walks.bpf.c` has them.
    const DENIALS: u32 = 0;
    const CALLED: u32 = 1;

    #[derive(Debug)]
    pub(super) struct Loaded {
        /// Holds the link.
        object: Ebpf,
        directories: Mutex<HashMap<MapData, u64, u32>>,
    }

    impl Walks {
        /// Attaches the program to the mount with this device number (major, minor). No directory is guarded at first.
        ///
        /// # Errors
        /// No privilege, or a kernel without BPF security programs, or that does not call them.
        pub fn attach(types: &Types, device: (u32, u32), rules: &Rules) -> Result<Self, Error> {
            let (device, types) = (crate::kernel_device(device), &types.known);
            let (zones, named) = rules.tables();
            let mut object = aya::EbpfLoader::new()
                .btf(Some(types))
                .override_global("device", &device, true)
                .map_max_entries("zones", zones.len().max(1) as u32)
                .map_max_entries("named", named.len().max(1) as u32)
                .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/walks.o")))?;
            let mut table: Array<_, [u32; 3]> =
                object.map_mut("zones").expect("the object has it").try_into()?;
            for (number, zone) in zones.into_iter().enumerate() {
                table.set(number as u32, zone, 0)?;
            }
            let mut table: HashMap<_, [u32; 3], [u32; 2]> =
                object.map_mut("named").expect("the object has it").try_into()?;
            for (caller, first) in named {
                table.insert(caller, first, 0)?;
            }
            let program: &mut Lsm = object.program_mut("walk").expect("the object has it").try_into()?;
            program.load("inode_permission", types)?;
            program.attach()?;
            let directories = object.take_map("directories").expect("the object has it").try_into()?;
            let walks = Self { loaded: Loaded { object, directories: Mutex::new(directories) } };
            // A walk through the root directory, which a path without a name would not be.
            let _ = rustix::fs::stat("/.");
            if walks.count(CALLED) == 0 {
                return Err(Error::Uncalled);
            }
            Ok(walks)
        }

        /// From here on the rules of a zone apply to a directory. False if the kernel has no room for it: they do not.
        pub fn guard(&self, ino: u64, zone: u32) -> bool {
            self.directories().insert(ino, zone, 0).is_ok()
        }

        /// From here on no rule applies to a directory.
        pub fn release(&self, ino: u64) {
            // It may not be there.
            let _ = self.directories().remove(&ino);
        }

        /// How often something was denied.
        pub fn denials(&self) -> u64 {
            self.count(DENIALS)
        }

        fn count(&self, which: u32) -> u64 {
            let counts = self.loaded.object.map("counts").and_then(|map| Array::try_from(map).ok());
            counts.and_then(|counts: Array<_, u64>| counts.get(&which, 0).ok()).unwrap_or(0)
        }

        fn directories(&self) -> std::sync::MutexGuard<'_, HashMap<MapData, u64, u32>> {
            self.loaded.directories.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
