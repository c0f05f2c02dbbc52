//! What the kernel asks a mount's daemon, counted where it is sent, by operation and sender.

use std::collections::BTreeMap;

use crate::{Error, Types};

/// Who made the kernel ask for what, how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The process in the first process name space; 0 for what waited in the kernel's background queue until the daemon
    /// made room.
    pub process: u32,
    /// The name of the thread that asked last (`/proc/PID/comm`); empty for process 0.
    pub command: String,
    /// Requests by operation code.
    pub requests: BTreeMap<u32, u64>,
}

/// A program at the kernel's tracepoint `fuse_request_send`, detached when dropped.
#[derive(Debug)]
pub struct Requests {
    #[cfg(programs)]
    object: aya::Ebpf,
}

#[cfg(not(programs))]
impl Requests {
    /// Counts the requests to the mount with this device number (major, minor), whose daemon is this process.
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn attach(_types: &Types, _device: (u32, u32)) -> Result<Self, Error> {
        Err(Error::NotBuilt)
    }

    /// The sums by operation code.
    ///
    /// # Errors
    /// None.
    pub fn by_opcode(&self) -> Result<BTreeMap<u32, u64>, Error> {
        Ok(BTreeMap::new())
    }

    /// Those who sent most recently.
    ///
    /// # Errors
    /// None.
    pub fn senders(&self) -> Result<Vec<Sender>, Error> {
        Ok(Vec::new())
    }
}

#[cfg(programs)]
mod loaded {
    use aya::EbpfLoader;
    use aya::maps::{Array, HashMap, MapData};
    use aya::programs::BtfTracePoint;

    use super::{BTreeMap, Error, Requests, Sender, Types};

    /// `struct sender` of `bpf/requests.bpf.c`: process, operation code.
    type Key = [u32; 2];
    /// `struct sent`: requests, and 16 bytes of command.
    type Value = [u64; 3];

    impl Requests {
        /// Counts the requests to the mount with this device number (major, minor), whose daemon is this process.
        ///
        /// # Errors
        /// No privilege, or a kernel without the tracepoint (Linux 6.11).
        pub fn attach(types: &Types, device: (u32, u32)) -> Result<Self, Error> {
            let (device, daemon) = (crate::kernel_device(device), std::process::id());
            let types = &types.known;
            let mut object = EbpfLoader::new()
                .btf(Some(types))
                .override_global("device", &device, true)
                .override_global("daemon", &daemon, true)
                .load(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/requests.o")))?;
            let program = object.program_mut("count").expect("the object has it");
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load("fuse_request_send", types)?;
            program.attach()?;
            Ok(Self { object })
        }

        /// The sums by operation code.
        ///
        /// # Errors
        /// The kernel's.
        pub fn by_opcode(&self) -> Result<BTreeMap<u32, u64>, Error> {
            let sums: Array<&MapData, u64> = self.map("by_opcode").try_into()?;
            let mut counts = BTreeMap::new();
            for (opcode, requests) in sums.iter().enumerate() {
                let requests = requests?;
                if requests > 0 {
                    counts.insert(opcode as u32, requests);
                }
            }
            Ok(counts)
        }

        /// Those who sent most recently: a few thousand.
        ///
        /// # Errors
        /// The kernel's.
        pub fn senders(&self) -> Result<Vec<Sender>, Error> {
            let sent: HashMap<&MapData, Key, Value> = self.map("by_sender").try_into()?;
            let mut senders: BTreeMap<u32, Sender> = BTreeMap::new();
            for entry in sent.iter() {
                let ([process, opcode], [requests, name @ ..]) = entry?;
                let sender = senders.entry(process).or_insert_with(|| Sender {
                    process,
                    command: command(name),
                    requests: BTreeMap::new(),
                });
                sender.requests.insert(opcode, requests);
            }
            Ok(senders.into_values().collect())
        }

        fn map(&self, name: &str) -> &aya::maps::Map {
            self.object.map(name).expect("the object has it")
        }
    }

    /// The text up to the first zero byte.
    fn command(words: [u64; 2]) -> String {
        let bytes = words.map(u64::to_ne_bytes).concat();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}
