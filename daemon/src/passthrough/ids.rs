//! Node ids: which number a backing inode has on the mount.
//!
//! fuser takes the node id of a reply from its `st_ino`, so one number serves as both. For the source's own
//! device it is the backing inode number, with the source directory's number and 1 (`FUSE_ROOT_ID`)
//! exchanged. Inodes of other file systems below the source carry the index of their device in the upper 16
//! bits. Inode numbers too large for that (2^48 and more) get numbers from a table.

#![deny(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::RwLock;
use rustix::fs::Statx;
use rustix::io::{Errno, Result};

/// The node id of the mount's root.
pub(super) const ROOT: u64 = 1;
const INODE_BITS: u32 = 48;
const INODE_MASK: u64 = (1 << INODE_BITS) - 1;
/// The device index of the numbers that come from the table.
const LARGE: u64 = 0xffff;

/// A file system below the source.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// `st_dev`, as (major, minor).
    pub(super) number: (u32, u32),
    /// A readable descriptor on it, as open_by_handle_at(2) wants it. `None`: file handles do not work there.
    pub(super) handles: Option<Arc<OwnedFd>>,
}

#[derive(Default)]
struct Large {
    ids: HashMap<(u16, u64), u64>,
    inodes: Vec<(u16, u64)>,
}

/// The mapping between backing inodes and node ids.
pub(super) struct Ids {
    root_inode: u64,
    root_device: Device,
    others: RwLock<Vec<Device>>,
    large: RwLock<Large>,
}

/// The device that an inode is on is not known yet; see [`Ids::add_device`].
#[derive(Debug)]
pub(super) struct UnknownDevice;

/// `st_dev` of a statx(2) result.
pub(super) fn device_number(stat: &Statx) -> (u32, u32) {
    (stat.stx_dev_major, stat.stx_dev_minor)
}

impl Ids {
    /// A mapping for a source directory that is inode `root_inode` of `root_device`.
    pub(super) fn new(root_inode: u64, root_device: Device) -> Self {
        Self { root_inode, root_device, others: RwLock::default(), large: RwLock::default() }
    }

    /// The node id of the inode that `stat` describes.
    pub(super) fn of(&self, stat: &Statx) -> std::result::Result<Result<u64>, UnknownDevice> {
        let number = device_number(stat);
        if number == self.root_device.number {
            return Ok(self.compose(0, stat.stx_ino));
        }
        let others = self.others.read();
        let index = others.iter().position(|device| device.number == number).ok_or(UnknownDevice)?;
        Ok(self.compose(index as u16 + 1, stat.stx_ino))
    }

    /// The node id of inode `ino` on the same device as node `sibling`: for the entries of a directory.
    pub(super) fn beside(&self, sibling: u64, ino: u64) -> Result<u64> {
        self.compose(self.device_index(sibling), ino)
    }

    /// The device of a node, and its inode number there.
    pub(super) fn resolve(&self, id: u64) -> Option<(Device, u64)> {
        let (index, ino) = self.split(id)?;
        let device = match index {
            0 => self.root_device.clone(),
            index => self.others.read().get(usize::from(index) - 1)?.clone(),
        };
        Some((device, ino))
    }

    /// Whether file handles work on the device of node `id`.
    pub(super) fn has_handles(&self, id: u64) -> bool {
        match self.device_index(id) {
            0 => self.root_device.handles.is_some(),
            index => {
                self.others.read().get(usize::from(index) - 1).is_some_and(|device| device.handles.is_some())
            }
        }
    }

    /// Adds a file system, unless another thread did meanwhile.
    ///
    /// # Errors
    /// `EOVERFLOW` if more than 65 534 file systems were seen below the source.
    pub(super) fn add_device(&self, device: Device) -> Result<()> {
        let mut others = self.others.write();
        if others.iter().any(|known| known.number == device.number) {
            return Ok(());
        }
        if others.len() as u64 + 1 >= LARGE {
            return Err(Errno::OVERFLOW);
        }
        others.push(device);
        Ok(())
    }

    /// Whether a node is on the root's device.
    pub(super) fn is_beside_root(&self, id: u64) -> bool {
        self.device_index(id) == 0
    }

    fn device_index(&self, id: u64) -> u16 {
        self.split(id).map_or(0, |(index, _)| index)
    }

    fn split(&self, id: u64) -> Option<(u16, u64)> {
        let (index, ino) = (id >> INODE_BITS, id & INODE_MASK);
        match index {
            0 => Some((0, self.swap_root(ino))),
            LARGE => self.large.read().inodes.get(ino as usize).copied(),
            index => Some((index as u16, ino)),
        }
    }

    fn compose(&self, index: u16, ino: u64) -> Result<u64> {
        if ino > INODE_MASK || (index != 0 && ino == 0) {
            return self.large_id(index, ino);
        }
        Ok(if index == 0 { self.swap_root(ino) } else { u64::from(index) << INODE_BITS | ino })
    }

    /// Exchanges the source's inode number and 1. Its own inverse.
    fn swap_root(&self, ino: u64) -> u64 {
        if ino == self.root_inode {
            ROOT
        } else if ino == ROOT {
            self.root_inode
        } else {
            ino
        }
    }

    fn large_id(&self, index: u16, ino: u64) -> Result<u64> {
        if index == 0 && ino == self.root_inode {
            return Ok(ROOT);
        }
        if let Some(id) = self.large.read().ids.get(&(index, ino)) {
            return Ok(*id);
        }
        let mut large = self.large.write();
        if let Some(id) = large.ids.get(&(index, ino)) {
            return Ok(*id);
        }
        let next = large.inodes.len() as u64;
        if next > INODE_MASK {
            return Err(Errno::OVERFLOW);
        }
        let id = LARGE << INODE_BITS | next;
        large.inodes.push((index, ino));
        large.ids.insert((index, ino), id);
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(root_inode: u64) -> Ids {
        let ids = Ids::new(root_inode, Device { number: (8, 1), handles: None });
        ids.add_device(Device { number: (8, 2), handles: None }).unwrap();
        ids
    }

    #[test]
    fn every_inode_has_one_id_and_every_id_one_inode() {
        let cases = [
            (100, 0, 100),
            (100, 0, 1),
            (100, 0, 2),
            (100, 1, 1),
            (100, 1, 100),
            (100, 0, 1 << 48),
            (100, 1, u64::MAX),
            (1, 0, 1),
            (1, 0, 2),
            (1 << 60, 0, 1 << 60),
            (1 << 60, 0, 7),
        ];
        for (root, device, inode) in cases {
            let ids = ids(root);
            let id = ids.compose(device, inode).unwrap();
            let back = if id == ROOT { (0, root) } else { ids.split(id).unwrap() };
            assert_eq!(back, (device, inode), "root {root}, device {device}, inode {inode}");
            assert_eq!(ids.compose(device, inode).unwrap(), id);
            assert_eq!(id == ROOT, device == 0 && inode == root);
        }
    }

    #[test]
    fn inodes_of_different_devices_never_share_an_id() {
        let ids = ids(50);
        let mut seen = std::collections::HashSet::new();
        for device in [0, 1] {
            for inode in [1, 2, 50, 51, INODE_MASK, INODE_MASK + 1] {
                assert!(seen.insert(ids.compose(device, inode).unwrap()));
            }
        }
    }
}
