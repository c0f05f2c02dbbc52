//! What `finesse status --json` says of a mount.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rustix::process::Pid;
use serde_json::Value;

use crate::{build, mount};

/// The reason under which opening a directory is counted; it is the kernel's by design.
pub const OPEN_DIRECTORY: &str = "open-directory";
/// The reason for calls during which somebody mounted or unmounted something, as other tests do.
const MOUNTS_CHANGED: &str = "mounts-changed";

/// A daemon's account of itself.
#[derive(Clone, Debug)]
pub struct Account {
    /// The daemon.
    pub pid: Pid,
    /// Clients connected at this moment.
    pub clients: usize,
    /// Clients that have ever connected.
    pub clients_ever: u64,
    /// Inodes that the daemon holds something for.
    pub known_inodes: u64,
    /// How the kernel's requests come: `classic` or `uring`.
    pub transport: String,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Calls answered through shared memory, by operation.
    pub answered: BTreeMap<String, u64>,
    /// Those of them that the metadata table answered.
    pub from_table: BTreeMap<String, u64>,
    /// Calls left to the kernel, by reason.
    pub to_kernel: BTreeMap<String, u64>,
}

impl Account {
    /// Asks the daemon of the mount at `mountpoint`.
    ///
    /// # Panics
    /// The command fails or says something else.
    pub fn of(mountpoint: &Path) -> Self {
        let output =
            Command::new(build::command()).args(["status", "--json"]).arg(mountpoint).output().unwrap();
        assert!(output.status.success(), "finesse status: {}", mount::said(&output));
        let list: Value = serde_json::from_slice(&output.stdout).expect("status is JSON");
        let status = &list[0];
        let number = |name: &str| {
            status[name].as_u64().unwrap_or_else(|| panic!("status has no number {name}: {status}"))
        };
        let counts = |name: &str| {
            let counts = status[name].as_object().expect("counts are an object");
            counts.iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect()
        };
        Self {
            pid: Pid::from_raw(number("pid") as i32).expect("the daemon has a process id"),
            clients: status["clients"].as_array().expect("clients are a list").len(),
            clients_ever: number("clients_ever"),
            known_inodes: number("known_inodes"),
            transport: status["transport"].as_str().expect("status names the transport").to_owned(),
            resident_bytes: number("resident_bytes"),
            answered: counts("answered"),
            from_table: counts("from_table"),
            to_kernel: counts("to_kernel"),
        }
    }

    /// What was counted since an earlier account.
    pub fn since(&self, earlier: &Self) -> Calls {
        let less = |later: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>| {
            let less =
                later.iter().map(|(name, count)| (name.clone(), count - earlier.get(name).unwrap_or(&0)));
            less.filter(|(_, count)| *count > 0).collect()
        };
        Calls {
            answered: less(&self.answered, &earlier.answered),
            from_table: less(&self.from_table, &earlier.from_table),
            to_kernel: less(&self.to_kernel, &earlier.to_kernel),
        }
    }
}

/// Calls of preloaded programs on a mount.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    /// Answered through shared memory, by operation.
    pub answered: BTreeMap<String, u64>,
    /// Those of them that the metadata table answered.
    pub from_table: BTreeMap<String, u64>,
    /// Left to the kernel, by reason.
    pub to_kernel: BTreeMap<String, u64>,
}

impl Calls {
    /// Calls answered through shared memory.
    pub fn total_answered(&self) -> u64 {
        self.answered.values().sum()
    }

    /// The share that was answered through shared memory, in percent, aside from directories' opening and from what is owed
    /// to the mounts of others.
    pub fn bypassed(&self) -> f64 {
        let left: u64 = self
            .to_kernel
            .iter()
            .filter(|(reason, _)| ![OPEN_DIRECTORY, MOUNTS_CHANGED].contains(&reason.as_str()))
            .map(|(_, count)| count)
            .sum();
        let answered = self.total_answered();
        answered as f64 * 100.0 / (answered + left).max(1) as f64
    }
}
