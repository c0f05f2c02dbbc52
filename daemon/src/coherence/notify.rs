//! What the kernel is told: notifications, which it answers at once, or once it has a directory's lock.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use log::warn;
use rustix::io::Errno;

use super::{Coherence, shard};
use crate::mutant;

/// `FUSE_NOTIFY_INVAL_INODE` of `enum fuse_notify_code`.
const NOTIFY_INVAL_INODE: i32 = 2;
/// `FUSE_NOTIFY_INVAL_ENTRY`.
const NOTIFY_INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`, Linux 6.2; older kernels take no notice and drop the name.
const EXPIRE_ONLY: u32 = 1;
/// `NAME_MAX`: no engine serves a longer name.
const NAME_MAX: usize = 255;
/// `FUSE_NOTIFY_STORE`.
const NOTIFY_STORE: i32 = 4;
/// `FUSE_NOTIFY_INC_EPOCH`, Linux 6.16.
pub(super) const NOTIFY_INC_EPOCH: i32 = 8;
/// Size of `struct fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;
/// The longest body of a notification that is sent from here.
const NOTIFICATION_MAX: usize = 16 + NAME_MAX + 1;

impl Coherence {
    /// Writes one notification. Whether the kernel knows what it is about.
    pub(super) fn notify(&self, code: i32, body: &[u8]) -> Result<bool, Errno> {
        let Some(device) = self.device.lock().clone() else { return Err(Errno::NOTCONN) };
        let mut message = [0u8; OUT_HEADER + NOTIFICATION_MAX];
        let len = OUT_HEADER + body.len();
        message[OUT_HEADER..len].copy_from_slice(body);
        send(&device, code, &mut message[..len])
    }

    /// `fuse_reverse_inval_inode`: drops the attributes; with `offset >= 0` the pages from there on, too.
    pub(super) fn inval_inode(&self, ino: u64, offset: i64, len: i64) -> Result<bool, Errno> {
        let mut body = [0u8; 24];
        body[0..8].copy_from_slice(&ino.to_ne_bytes());
        body[8..16].copy_from_slice(&offset.to_ne_bytes());
        body[16..24].copy_from_slice(&len.to_ne_bytes());
        self.notify(NOTIFY_INVAL_INODE, &body)
    }

    /// The kernel is to ask for an inode's attributes again. Waits for nothing of the kernel's, so that a request of
    /// its own may be under way.
    pub(crate) fn forget_attributes_of(&self, ino: u64) {
        // What cannot be told is logged; without a kernel there is nobody to tell.
        let _ = self.inval_inode(ino, -1, 0).map_err(gone);
    }

    /// Drops a name, and leaves its inode alone (`fuse_reverse_inval_entry`). Waits for the directory's lock. Whether the
    /// kernel had the name.
    pub(crate) fn drop_name(&self, parent: u64, name: &[u8]) -> bool {
        self.inval_entry(parent, name, 0)
    }

    /// Lets a name expire: the kernel is to ask before it uses it again. Waits as [`drop_name`](Self::drop_name) does. A
    /// kernel that is about to get an answer to that very question takes the name for good then.
    pub(super) fn expire_name(&self, parent: u64, name: &[u8]) -> bool {
        self.inval_entry(parent, name, EXPIRE_ONLY)
    }

    fn inval_entry(&self, parent: u64, name: &[u8], flags: u32) -> bool {
        let mut body = [0u8; NOTIFICATION_MAX];
        let len = 16 + name.len().min(NAME_MAX) + 1;
        body[0..8].copy_from_slice(&parent.to_ne_bytes());
        body[8..12].copy_from_slice(&(name.len() as u32).to_ne_bytes());
        body[12..16].copy_from_slice(&flags.to_ne_bytes());
        body[16..len - 1].copy_from_slice(&name[..len - 17]);
        self.notify(NOTIFY_INVAL_ENTRY, &body[..len]).unwrap_or_else(|error| {
            gone(error);
            false
        })
    }

    /// Waits until the kernel's requests that make something in a directory, or list it, have got their answers: by
    /// its lock.
    pub(super) fn await_directory(&self, directory: u64) {
        // No directory has this name.
        self.drop_name(directory, b".");
    }

    /// The bypass has changed what a directory lists. To be called before the change is answered: drops what the kernel's
    /// page cache holds of it.
    pub(crate) fn changed_listing(&self, directory: u64) {
        let Some(held) = self.listings.held(directory) else { return };
        if mutant::leaves_out("bypass: listings") {
            return;
        }
        // An answer from before the change would enter the cache after the notification.
        self.await_directory(directory);
        self.forget_listing(directory);
        self.listings.told(directory, held);
    }

    /// Drops what the kernel's page cache holds of a directory's listing. Its answers that are under way may enter it after
    /// that.
    pub(super) fn forget_listing(&self, directory: u64) {
        // What cannot be told is logged; without a kernel there is nobody to tell.
        let _ = self.inval_inode(directory, 0, 0).map_err(gone);
    }

    /// The bypass has changed the contents or the size of an inode. To be called before the change is
    /// answered: drops what the kernel's page cache holds of it. `longer` is where the file ends, in bytes, if that has made it
    /// longer without writing: so the last byte is zero.
    ///
    /// # Errors
    /// The kernel's, a closed session excepted. The contents that an open file shows may then be old.
    pub(crate) fn bypass_changed_data(&self, ino: u64, longer: Option<u64>) -> io::Result<()> {
        if !self.bypass_resizes(ino) {
            return Ok(());
        }
        if let Some(last) = longer.and_then(|end| end.checked_sub(1)) {
            self.lengthen(ino, last, 0);
        }
        self.drop_pages(ino, 0, 0)
    }

    /// As [`bypass_changed_data`](Self::bypass_changed_data), for `data` that was written at `offset`.
    ///
    /// # Errors
    /// As for it.
    pub(crate) fn bypass_wrote(&self, ino: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let (Some(last), true) = (data.last(), self.bypass_resizes(ino)) else { return Ok(()) };
        self.lengthen(ino, offset.saturating_add(data.len() as u64 - 1), *last);
        self.drop_pages(ino, offset, data.len() as u64)
    }

    /// The bypass has perhaps changed the size of an inode; whether the kernel may hold pages of it.
    fn bypass_resizes(&self, ino: u64) -> bool {
        shard(&self.opens, ino).lock().get_mut(&ino).is_some_and(|open| {
            open.opens.resized |= open.opens.writer;
            open.opens.paged()
        })
    }

    /// A file reaches at least to this byte: tells the kernel so (`fuse_notify_store` moves `i_size` on). It may ignore the
    /// size in the answer to what it asks meanwhile: notifications count up the version that `fuse_change_attributes` compares.
    fn lengthen(&self, ino: u64, position: u64, last: u8) {
        let mut body = [0u8; 25];
        body[0..8].copy_from_slice(&ino.to_ne_bytes());
        body[8..16].copy_from_slice(&position.to_ne_bytes());
        body[16..20].copy_from_slice(&1u32.to_ne_bytes());
        body[24] = last;
        // What cannot be told is logged; the attributes are asked for again in any case.
        let _ = self.notify(NOTIFY_STORE, &body).map_err(gone);
    }

    /// The bypass is about to read, or to write to, a part of a file: makes the kernel write out what programs have
    /// changed there through mappings (`fuse_launder_folio`).
    ///
    /// # Errors
    /// As for [`bypass_changed_data`](Self::bypass_changed_data).
    pub(crate) fn bypass_uses_data(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        if !self.kernel_opens(ino).writer {
            return Ok(());
        }
        self.drop_pages(ino, offset, len)
    }

    fn drop_pages(&self, ino: u64, offset: u64, len: u64) -> io::Result<()> {
        let whole = i64::try_from(offset).ok().zip(i64::try_from(len).ok());
        let (offset, len) = whole.unwrap_or((0, 0));
        match self.inval_inode(ino, offset, len) {
            Err(error) if !gone(error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Writes a notification, the header of which is still to be filled in. Whether the kernel knows what it is about.
pub(super) fn send(device: &OwnedFd, code: i32, message: &mut [u8]) -> Result<bool, Errno> {
    let len = message.len() as u32;
    message[0..4].copy_from_slice(&len.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    loop {
        match rustix::io::write(device.as_fd(), message) {
            Ok(_) => return Ok(true),
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the error says that there is no kernel to talk to any more; other errors are logged.
pub(super) fn gone(error: Errno) -> bool {
    if matches!(error, Errno::NODEV | Errno::NOTCONN | Errno::BADF) {
        return true;
    }
    warn!("the kernel refused an invalidation: {error}");
    false
}
