//! Who asks: the request that every method of [`Filesystem`](crate::Filesystem) gets.

use std::sync::Arc;

use fuser::RequestId;

/// The road by which a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Road {
    /// Through the kernel, as a FUSE message.
    Kernel,
    /// From a preloaded program, past the kernel.
    Bypass,
}

/// The credentials of a program that is connected to the bypass, as the kernel vouched for them when it
/// connected (`SO_PEERCRED`, `SO_PEERGROUPS`, `/proc/PID/status`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Box<[u32]>,
    /// The process, in the daemon's PID name space.
    pub pid: u32,
    /// The effective capabilities: bit *n* is capability number *n* of capabilities(7).
    pub caps: u64,
}

/// Says that a request [takes the backing file](Request::takes_file).
#[derive(Clone, Copy, Debug)]
pub struct TakesFile(());

/// The parameters that all requests share.
#[derive(Debug)]
pub struct Request {
    unique: RequestId,
    uid: u32,
    gid: u32,
    pid: u32,
    client: Option<Arc<Credentials>>,
    takes_file: bool,
}

impl Request {
    /// A request of a bypass client.
    pub(crate) fn for_client(unique: RequestId, client: Arc<Credentials>) -> Self {
        Self {
            unique,
            uid: client.uid,
            gid: client.gid,
            pid: client.pid,
            client: Some(client),
            takes_file: false,
        }
    }

    /// A request of the kernel.
    pub(crate) fn of_kernel(unique: RequestId, uid: u32, gid: u32, pid: u32) -> Self {
        Self { unique, uid, gid, pid, client: None, takes_file: false }
    }

    /// The same request; the file that it opens is granted at once.
    pub(crate) fn taking_file(self) -> Self {
        Self { takes_file: true, ..self }
    }

    /// Whether a program is to get the backing file of what is opened or created, so that nobody needs a handle:
    /// [`ReplyOpen::given`](crate::ReplyOpen::given), [`ReplyCreate::given`](crate::ReplyCreate::given).
    #[inline]
    pub fn takes_file(&self) -> Option<TakesFile> {
        self.takes_file.then_some(TakesFile(()))
    }

    /// Identifies the request among those in flight on its road.
    #[inline]
    pub fn unique(&self) -> RequestId {
        self.unique
    }

    /// The caller's file system user ID.
    #[inline]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// The caller's file system group ID.
    #[inline]
    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// The caller's process (on the kernel road: thread) ID; 0 for requests that the kernel makes on its own
    /// and for callers outside the daemon's PID name space.
    #[inline]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The caller's supplementary groups. `None` on the kernel road, because FUSE requests do not carry them.
    #[inline]
    pub fn groups(&self) -> Option<&[u32]> {
        self.client.as_ref().map(|client| &*client.groups)
    }

    /// All that is known of a bypass client. `None` on the kernel road.
    #[inline]
    pub fn credentials(&self) -> Option<&Credentials> {
        self.client.as_deref()
    }

    /// The road by which the request came.
    #[inline]
    pub fn road(&self) -> Road {
        if self.client.is_some() { Road::Bypass } else { Road::Kernel }
    }
}

impl From<&fuser::Request> for Request {
    fn from(request: &fuser::Request) -> Self {
        Self::of_kernel(request.unique(), request.uid(), request.gid(), request.pid())
    }
}
