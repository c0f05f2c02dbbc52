//! What rustix does not wrap, and the doorbell: this module holds the ring's `unsafe` code.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The process that connected, as it was then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Process id in our name space; 0 if it has none there.
    pub(crate) pid: u32,
    /// Effective user.
    pub(crate) uid: u32,
    /// Effective group.
    pub(crate) gid: u32,
}

/// Who connected (`SO_PEERCRED`). Not rustix's function, whose type cannot hold the process id 0.
///
/// # Errors
/// What getsockopt(2) answers.
pub(crate) fn peer(socket: impl AsFd) -> Result<Peer, Errno> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both are live locals of the types that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut bytes,
        )
    };
    match (result, std::io::Error::last_os_error().raw_os_error()) {
        (0, _) => Ok(Peer { pid: peer.pid.unsigned_abs(), uid: peer.uid, gid: peer.gid }),
        (_, errno) => Err(Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))),
    }
}

/// The supplementary groups of the process that connected, as they were then (`SO_PEERGROUPS`).
///
/// # Errors
/// What getsockopt(2) answers.
pub(crate) fn peer_groups(socket: impl AsFd) -> Result<Box<[u32]>, Errno> {
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let mut bytes = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is valid for `bytes` bytes, and the kernel writes no more than it is told.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut bytes,
            )
        };
        let count = bytes as usize / size_of::<u32>();
        match (result, std::io::Error::last_os_error().raw_os_error()) {
            (0, _) => {
                groups.truncate(count);
                return Ok(groups.into());
            }
            // The kernel has said how many there are.
            (_, Some(libc::ERANGE)) if count > groups.len() => groups.resize(count, 0),
            (_, errno) => return Err(Errno::from_raw_os_error(errno.unwrap_or(libc::EIO))),
        }
    }
}

/// What a doorbell holds, where pages are no larger: rings beyond that fail, without blocking.
const DOORBELL_BYTES: usize = 4096;
/// The same where they are largest, in reads.
const DOORBELL_READS: usize = 16;

/// A doorbell, for either side: a pipe, because its writers tell the scheduler that they are about to sleep
/// (`wake_up_interruptible_sync_poll`), unlike an eventfd's. Each side can read and write, so that the end of the other is no
/// SIGPIPE, and has flags of its own, so that neither can make the other block.
///
/// # Errors
/// `EMFILE`, `ENFILE`, what open(2) answers of `/proc/self/fd`.
pub(crate) fn doorbell() -> Result<[OwnedFd; 2], Errno> {
    let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Who rings once for every call that waits does not fill it.
    let _ = rustix::pipe::fcntl_setpipe_size(&reader, DOORBELL_BYTES);
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let open = || {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path.as_str(), flags, rustix::fs::Mode::empty())
    };
    Ok([open()?, open()?])
}

/// Takes all rings of a doorbell. What is left in a full pipe's page would keep it full.
pub(crate) fn quiet(bell: &OwnedFd) {
    let mut rings = [0; DOORBELL_BYTES];
    let full = |()| rustix::io::read(bell, &mut rings) == Ok(DOORBELL_BYTES);
    let _ = [(); DOORBELL_READS].into_iter().all(full);
}

/// CPUs of the machine that are on; 1 if the C library does not know.
pub(crate) fn cpus() -> usize {
    // SAFETY: reads a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}
