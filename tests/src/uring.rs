//! The kernel's offer of FUSE over io_uring, which is one for the whole machine.

use std::fs::{self, File};

use rustix::fs::{FlockOperation, flock};

use crate::needs;

/// Locked (flock(2)) by whoever has changed it.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// The parameter has one value until this is dropped, and then the former again. Mounts are asked about it when they are made.
#[derive(Debug)]
pub struct Offer {
    before: String,
    /// Closed last.
    _turn: File,
}

impl Offer {
    /// Has the kernel offer it, or not. `None`, after saying so, if this kernel has no such thing or it is not ours to switch.
    ///
    /// # Panics
    /// The lock cannot be had, or the parameter not be read.
    pub fn set(offered: bool, test: &str) -> Option<Self> {
        if !needs::root(test) {
            return None;
        }
        let turn = match File::open(PARAMETER) {
            Ok(turn) => turn,
            Err(error) => {
                needs::skipped(test, &format!("{PARAMETER}: {error}"));
                return None;
            }
        };
        flock(&turn, FlockOperation::LockExclusive).unwrap();
        let before = fs::read_to_string(PARAMETER).unwrap();
        // From here on it is put back.
        let offer = Self { before, _turn: turn };
        if let Err(error) = fs::write(PARAMETER, if offered { "Y" } else { "N" }) {
            needs::skipped(test, &format!("{PARAMETER}: {error}"));
            return None;
        }
        Some(offer)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // Fails where setting it has failed.
        let _ = fs::write(PARAMETER, self.before.trim_end());
    }
}
