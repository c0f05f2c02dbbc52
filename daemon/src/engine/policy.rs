//! What the policy says of what a client asks for. The engine never refuses: the kernel road says what a rule that forbids
//! something means for the call, and which error comes first.

use std::ffi::OsStr;

use finesse_ebpf::rules::Operations;
use fuser::FileType;

use crate::engine::cache::Inode;
use crate::engine::permission::{EXEC, READ, WRITE};
use crate::engine::walk::{Node, Parent};
use crate::engine::{Context, Engine, Stop, kernel};
use crate::filesystem::Filesystem;
use finesse_ipc::frame::Fallback;

/// What `access` asks for.
pub(super) fn asked(kind: FileType, mask: u32) -> Operations {
    let [read, write, execute] = match kind {
        FileType::Directory => {
            [Operations::LIST, Operations::CREATE | Operations::REMOVE, Operations::SEARCH]
        }
        FileType::RegularFile => [Operations::READ, Operations::WRITE, Operations::READ],
        // What is read and written there is not the file system's.
        _ => return Operations::NOTHING,
    };
    [(READ, read), (WRITE, write), (EXEC, execute)]
        .into_iter()
        .filter(|(bit, _)| mask & bit != 0)
        .fold(Operations::NOTHING, |all, (_, operations)| all | operations)
}

impl<FS: Filesystem> Engine<FS> {
    /// Whether the policy lets the client do this to an inode.
    pub(super) fn permit(
        &self,
        context: &Context,
        inode: &Inode,
        operations: Operations,
    ) -> Result<(), Stop> {
        let Some(guard) = &self.core.guard else { return Ok(()) };
        let permitted =
            inode.label.get().is_some_and(|label| guard.permits(&context.credentials, label, operations));
        // The daemon asks for itself.
        if permitted || context.sees_below { Ok(()) } else { kernel(Fallback::Policy) }
    }

    /// Whether the policy lets the client have a descriptor of the source's file for what is made under a name: that can be
    /// opened again (/proc/PID/fd), in any mode, past this mount.
    pub(super) fn permit_grant_of(
        &self,
        context: &Context,
        directory: &Inode,
        name: &OsStr,
    ) -> Result<(), Stop> {
        let Some(guard) = &self.core.guard else { return Ok(()) };
        let both = Operations::READ | Operations::WRITE;
        let place = directory.label.get().map(|directory| guard.policy().step(directory, name));
        match place.is_some_and(|label| guard.permits(&context.credentials, label, both)) {
            true => Ok(()),
            false => kernel(Fallback::Policy),
        }
    }

    /// Whether what one name stands for may have the other: other rules must not apply there.
    pub(super) fn permit_move(&self, from: &Parent<'_>, to: &Parent<'_>) -> Result<(), Stop> {
        let Some(guard) = &self.core.guard else { return Ok(()) };
        match (from.directory.label.get(), to.directory.label.get()) {
            (Some(directory), Some(other))
                if guard.policy().may_move((directory, from.name), (other, to.name)) =>
            {
                Ok(())
            }
            _ => kernel(Fallback::Policy),
        }
    }

    /// Whether an inode may have another name.
    pub(super) fn permit_link(&self, inode: &Inode, to: &Parent<'_>) -> Result<(), Stop> {
        let Some(guard) = &self.core.guard else { return Ok(()) };
        let place = to.directory.label.get().map(|directory| guard.policy().step(directory, to.name));
        match inode.label.get() {
            Some(label) if Some(label) == place => Ok(()),
            _ => kernel(Fallback::Policy),
        }
    }

    /// Notes where an inode is that was found under a name. Of a file with several names only the kernel road knows which of them
    /// were used: it is asked what the policy says.
    pub(super) fn place_inode(&self, directory: &Inode, name: &OsStr, node: &Node) -> Result<(), Stop> {
        let Some(guard) = &self.core.guard else { return Ok(()) };
        let Some(above) = directory.label.get() else { return kernel(Fallback::Policy) };
        let label = guard.policy().step(above, name);
        let inode = &node.inode;
        match node.attr {
            Some(attr) => inode.label.set(label, inode.kind == FileType::Directory || attr.nlink <= 1),
            // Known by a name: by this one, or it has several.
            None if inode.label.last() == Some(label) => {}
            None => inode.label.set(label, inode.kind == FileType::Directory),
        }
        Ok(())
    }
}
