//! Lending directories of the backing file system, in which clients open files to read by themselves: no round trip, and no descriptor to
//! pass.
//!
//! A client does so only for what the metadata table shows it to be a regular file that everybody may look up, with one name and its attributes
//! known. Whatever cannot be seen there it asks for. The backing file system is what both roads show, so what is
//! opened in it is what an open by the daemon would find.
//!
//! Nothing is lent while somebody watches the mount, as nobody would tell him that a file was opened or read, or while something is mounted on a
//! directory of ours, below which a client would find what is hidden there.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::SystemTime;

use finesse_ipc::frame::{Attr, Fallback, Reply};
use finesse_ipc::table::Lending;
use fuser::{FileType, INodeNo};

use crate::coherence::{Invalidate, reading_changes_atime};
use crate::engine::cache::Inode;
use crate::engine::serve::{Call, Output, Served};
use crate::engine::table::Published;
use crate::engine::walk::Node;
use crate::engine::{Context, Engine, kernel};
use crate::filesystem::Filesystem;

impl<FS: Filesystem> Engine<FS> {
    /// Mounts may have changed: asks the file system anew what it lends.
    pub(crate) fn ask_what_is_lent(&self) {
        if self.table().is_none() || !self.grants() {
            return;
        }
        let lends = self.core.fs.ask().lends();
        let before = std::mem::replace(&mut *self.lends.lock(), lends);
        if before == Lending::Nothing && lends != Lending::Nothing {
            // Nobody has asked of what is in the table whether lending would miss something.
            self.cache.closed(None);
        }
        self.tell_what_is_lent();
    }

    /// Tells clients what they may open by themselves from here on.
    pub(crate) fn tell_what_is_lent(&self) {
        let Some(table) = self.table() else { return };
        // Whoever changes what decides here tells afterwards: the last one sees everything.
        let lends = self.lends.lock();
        let held_back = self.watches.any() || !self.covered.is_empty();
        table.lend(if held_back { Lending::Nothing } else { *lends });
    }

    fn is_lending(&self) -> bool {
        self.table().is_some_and(|table| table.lending() != Lending::Nothing)
    }

    /// Whether the kernel may have contents of a file that are not in the backing file yet. That files are not lent now may be over while the
    /// attributes are in the table.
    pub(super) fn is_missed_by_lending(&self, inode: &Inode) -> bool {
        inode.kind == FileType::RegularFile
            && *self.lends.lock() != Lending::Nothing
            && self.core.coherence.kernel_opens(inode.ino).writer
    }

    /// Whether reading a file is known not to change when it was last accessed: what lends says by which rule that goes.
    pub(super) fn keeps_atime(&self, inode: &Inode) -> bool {
        match self.table().map(Published::lending) {
            Some(Lending::Everything) => true,
            Some(Lending::Unchanged) => {
                self.known_attr(inode).is_some_and(|attr| !reading_changes_atime(&attr, SystemTime::now()))
            }
            Some(Lending::Nothing) | None => false,
        }
    }

    pub(super) fn lend(&self, call: &Call<'_>, output: &mut Output) -> Served {
        let directory = self.target(call)?.inode;
        if !self.is_lending() || directory.kind != FileType::Directory {
            return kernel(Fallback::NotGranted);
        }
        let lent = self.core.fs.ask().lend(&call.request, INodeNo(directory.ino));
        match lent {
            Ok(lent) => output.grant = Some(lent),
            Err(error) => {
                tracing::debug!(%error, ino = directory.ino, "a directory cannot be lent");
                return kernel(Fallback::NotGranted);
            }
        }
        Ok(Reply::attr(Attr { ino: directory.ino, ..Attr::default() }))
    }

    /// Grants a descriptor for one of a file that a client has opened in a directory that was lent, at whatever time.
    pub(crate) fn exchange(&self, context: &Context, file: BorrowedFd<'_>) -> Option<OwnedFd> {
        let granted = self.core.fs.ask().exchange(&self.request(context), file);
        granted.inspect_err(|error| tracing::debug!(%error, "a file that was lent is not granted")).ok()
    }

    /// A file was opened to read: with its attributes in the table, whoever opens it next need not ask.
    pub(super) fn publish_opened(&self, call: &Call<'_>, node: &Node) {
        if !self.is_lending() || node.public.is_none() {
            return;
        }
        // Whether it can be opened does not depend on it.
        if let Ok((attr, mark)) = self.attr_to_publish(&call.request, &node.inode) {
            self.publish_found(node, &attr, mark);
        }
    }
}
