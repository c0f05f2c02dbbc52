//! What a file system keeps of a poll, to say later that something is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use fuser::PollHandle;

use crate::kernel::uring;

/// A [handle](PollHandle) to a pending poll and the way to its kernel.
#[derive(Clone)]
pub struct PollNotifier {
    handle: PollHandle,
    way: Way,
}

#[derive(Clone)]
enum Way {
    Device(fuser::PollNotifier),
    /// Notifications go by the device also where requests come by rings.
    Ring(Weak<OwnedFd>),
}

impl PollNotifier {
    /// For a poll that came by a ring.
    pub(crate) fn of_ring(handle: PollHandle, device: Weak<OwnedFd>) -> Self {
        Self { handle, way: Way::Ring(device) }
    }

    /// The handle.
    pub fn handle(&self) -> PollHandle {
        self.handle
    }

    /// The file is ready to be polled again.
    ///
    /// # Errors
    /// The kernel's; `ENOTCONN` if the session has ended.
    pub fn notify(self) -> io::Result<()> {
        match self.way {
            Way::Device(notifier) => notifier.notify(),
            Way::Ring(device) => uring::notify_poll(&device, self.handle),
        }
    }
}

impl From<fuser::PollNotifier> for PollNotifier {
    fn from(notifier: fuser::PollNotifier) -> Self {
        Self { handle: notifier.handle(), way: Way::Device(notifier) }
    }
}

impl std::fmt::Debug for PollNotifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PollHandle").field(&self.handle).finish()
    }
}
