//! Backing files: what a file system opens a file on, so that data need not pass through it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::fcntl_dupfd_cloexec;

use super::Out;
use crate::kernel::uring::Registered;

/// A backing file that opens may be answered with, on either road.
///
/// Made by `open_backing` of [`ReplyOpen`](crate::ReplyOpen) and [`ReplyCreate`](crate::ReplyCreate). Keep it
/// as long as a file that was opened with it is open, and use the same one for all opens of an inode that
/// overlap: the kernel requires both.
///
/// On the kernel road it is an ID that the kernel gave (`FUSE_DEV_IOC_BACKING_OPEN`), closed when this is
/// dropped. On the bypass it is a duplicate of the descriptor. One made on the bypass is registered with the
/// kernel at its first use on the kernel road; one made on the kernel road works on the bypass, but the program
/// is then served by the kernel.
#[derive(Debug)]
pub struct BackingId {
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    Kernel(KernelId),
    /// `kernel` is the registration, made when it is first needed.
    Local {
        fd: OwnedFd,
        kernel: OnceLock<KernelId>,
    },
    /// An ID wrapped on the bypass, where there is no connection to the kernel at hand.
    Raw {
        id: u32,
        kernel: OnceLock<KernelId>,
    },
}

impl BackingId {
    /// Registers `fd` on the FUSE connection `fuse_dev` and returns the kernel's ID for it, which is the
    /// caller's to close.
    ///
    /// # Errors
    /// Those of `FUSE_DEV_IOC_BACKING_OPEN`: `EPERM` without `CAP_SYS_ADMIN` or without
    /// `FUSE_PASSTHROUGH`, `EBADF`, `ELOOP` if the backing file system is stacked too high.
    pub fn create_raw(fuse_dev: impl AsFd, fd: impl AsFd) -> io::Result<u32> {
        fuser::BackingId::create_raw(fuse_dev, fd)
    }

    /// The kernel's ID, which is the caller's to close from here on. 0, which is never a kernel's ID, for one
    /// that was made on the bypass and not used on the kernel road.
    pub fn into_raw(self) -> u32 {
        match self.origin {
            Origin::Kernel(id) => id.into_raw(),
            Origin::Local { kernel, .. } => kernel.into_inner().map_or(0, KernelId::into_raw),
            Origin::Raw { id, kernel } => kernel.into_inner().map_or(id, KernelId::into_raw),
        }
    }

    pub(super) fn from_kernel(id: KernelId) -> Self {
        Self { origin: Origin::Kernel(id) }
    }

    pub(super) fn from_fd(fd: impl AsFd) -> io::Result<Self> {
        let fd = fcntl_dupfd_cloexec(fd, 0)?;
        Ok(Self { origin: Origin::Local { fd, kernel: OnceLock::new() } })
    }

    pub(super) fn from_raw(id: u32) -> Self {
        Self { origin: Origin::Raw { id, kernel: OnceLock::new() } }
    }

    /// A descriptor for a bypass client, if there is one to give.
    pub(super) fn duplicate(&self) -> Option<OwnedFd> {
        match &self.origin {
            Origin::Local { fd, .. } => fcntl_dupfd_cloexec(fd, 0)
                .inspect_err(|error| log::warn!("no descriptor for a backing file: {error}"))
                .ok(),
            Origin::Kernel(_) | Origin::Raw { .. } => None,
        }
    }

    /// The kernel's ID, made through `kernel` if there is none yet.
    pub(super) fn for_kernel(&self, maker: &impl KernelBacking) -> io::Result<&KernelId> {
        match &self.origin {
            Origin::Kernel(id) => Ok(id),
            Origin::Local { fd, kernel } => match kernel.get() {
                Some(id) => Ok(id),
                // Of two that race, one registration is dropped again at once.
                None => {
                    let id = maker.open(fd.as_fd())?;
                    Ok(kernel.get_or_init(|| id))
                }
            },
            Origin::Raw { id, kernel } => Ok(kernel.get_or_init(|| maker.wrap(*id))),
        }
    }
}

/// A registration with the kernel, which ends when this is dropped.
#[derive(Debug)]
pub(crate) enum KernelId {
    /// Made by fuser.
    Device(fuser::BackingId),
    /// Made for a request that came by a ring.
    Ring(Registered),
}

impl KernelId {
    fn into_raw(self) -> u32 {
        match self {
            Self::Device(id) => id.into_raw(),
            Self::Ring(id) => id.into_raw(),
        }
    }
}

/// The reply objects that can register a backing file.
pub(super) trait KernelBacking {
    fn open(&self, fd: BorrowedFd<'_>) -> io::Result<KernelId>;
    fn wrap(&self, id: u32) -> KernelId;
}

macro_rules! kernel_backing {
    ($reply:ty) => {
        impl KernelBacking for Out<$reply> {
            fn open(&self, fd: BorrowedFd<'_>) -> io::Result<KernelId> {
                match self {
                    Self::Device(reply) => reply.open_backing(fd).map(KernelId::Device),
                    Self::Ring(ticket) => Registered::open(ticket.device(), fd).map(KernelId::Ring),
                }
            }

            fn wrap(&self, id: u32) -> KernelId {
                match self {
                    // SAFETY: an ID gets here only through `wrap_backing` of our own reply objects, whose caller
                    // vouched that it is open, belongs to this session, and stays open as long as the wrapper,
                    // which owns it from then on; it is wrapped here once only (`OnceLock`, `kernel` reply).
                    Self::Device(reply) => KernelId::Device(unsafe { reply.wrap_backing(id) }),
                    Self::Ring(ticket) => KernelId::Ring(Registered::wrap(ticket.device(), id)),
                }
            }
        }
    };
}
kernel_backing!(fuser::ReplyOpen);
kernel_backing!(fuser::ReplyCreate);
