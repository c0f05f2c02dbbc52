//! Control messages over the daemon's Unix socket (`SOCK_SEQPACKET`, abstract name).
//!
//! Every message is an envelope of eight fixed bytes (a mark and [`VERSION`]) and a bincode body of at most
//! [`MESSAGE_MAX`] bytes. The envelope never changes, so that two versions can tell each other apart; bodies
//! are only read between equals. Neither side allocates for the messages that a client exchanges, because a
//! client may connect inside a signal handler.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::counters::Counts;

/// Version of everything in this crate that both sides must share: envelope bodies, layout, frames.
pub const VERSION: u32 = 11;
/// The extended attribute of a mount's root that names the daemon's socket.
pub const SOCKET_XATTR: &std::ffi::CStr = c"system.finesse";
/// Longest message, envelope included, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;
/// Longest message that a client that only attaches ever sees.
pub const SMALL_MESSAGE_MAX: usize = 256;

const MARK: [u8; 4] = *b"FNSS";
const ENVELOPE: usize = 8;

/// What a client tells the daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask<'a> {
    /// "I am a preloaded program and want a segment."
    Attach {
        /// The program's name, for `finesse status`.
        program: &'a str,
    },
    /// Carries a directory's descriptor: "make its node id usable as a base", or that of a file that was opened in a directory that was lent: "grant
    /// me one like it"; the answer comes in the slot.
    Prove {
        /// The slot that waits for the answer.
        slot: u32,
    },
    /// "How is the mount?" Answered by [`Answer::Mount`], [`Answer::Client`] …, [`Answer::End`].
    Status,
}

/// What the daemon tells a client.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Carries the segment's memfd, the doorbell's pipe, the daemon's process ([`Welcome::pulls`]), and the memfd of the mount's metadata table,
    /// if it has one.
    Welcome(Welcome),
    /// The connection is refused; the client stays on the kernel road.
    Refused(Refusal),
    /// Carries the descriptor granted to the `open` in a slot.
    Grant {
        /// The slot.
        slot: u32,
    },
    /// Status: the mount.
    Mount(MountStatus),
    /// Status: one client.
    Client(ClientStatus),
    /// Status: one program on the kernel road.
    Sender(SenderStatus),
    /// Status: that was all.
    End,
}

/// What an accepted client must know.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// `st_dev` of the mount, major and minor.
    pub dev: (u32, u32),
    /// Whether a granted descriptor's own attributes, device and inode number aside, are the file's.
    pub backing_attrs: bool,
    /// The name, in the mount's root, of the hidden directory through which open files become kernel descriptors
    /// ([`HiddenName`]); all zero if the mount has none, and then nothing is opened virtually.
    pub hidden: HiddenName,
    /// Others compute on the machine's CPUs: who yields gets them back late.
    pub busy: bool,
    /// A pidfd of the daemon comes along, out of which the client may presumably take what it is granted.
    pub pulls: bool,
}

/// The name of the hidden directory, in ASCII, padded with zeros. It is in no listing; a lookup of it in the
/// mount's root, which the kernel road answers, finds a directory that anybody may search and write, in which
/// [`PLACEHOLDER`] names a regular file that nobody can open but with `O_PATH`, and one-time names
/// ([`crate::frame::Op::Promote`]) can be opened once.
pub type HiddenName = [u8; 32];
/// The regular file in the hidden directory that `O_PATH` descriptors stand on: what escapes the hooks fails
/// there (`EBADF`, `ENOTDIR`) and reaches no other data.
pub const PLACEHOLDER: &str = "file";

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Mounted without `allow_other`: only the owner may use the mount (`fuse_allow_current_process`).
    #[error("the mount serves only the user who mounted it (mount with -o allow_other to share it)")]
    NotOwner,
    /// The client lives in another user namespace: its credentials mean something else there.
    #[error("the program runs in another user namespace than the daemon")]
    UserNamespace,
    /// The client sees other mounts than the daemon, or another root directory: what is hidden there it shall not reach.
    #[error("the program runs in another mount namespace, or with another root directory, than the daemon")]
    MountNamespace,
    /// The client has some of the capabilities over files without the others, or without being root: the file
    /// system could not act as it.
    #[error("the program has capabilities over files that the daemon cannot act by")]
    Capabilities,
    /// The daemon cannot serve another client: memory, descriptors.
    #[error("the daemon has no room for another client (open files, memory)")]
    Resources,
    /// The client speaks another version.
    #[error("the program's preload library is of another version than the daemon")]
    Version,
}

/// One mount, for `finesse status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// The daemon's process id.
    pub pid: u32,
    /// Version of the daemon's package.
    pub daemon_version: String,
    /// The file system, as it names itself.
    pub file_system: String,
    /// Clients connected at this moment.
    pub clients: u64,
    /// Clients that have ever connected.
    pub clients_ever: u64,
    /// Inodes that the file system or the engine holds something for.
    pub known_inodes: u64,
    /// Resident memory of the daemon in bytes.
    pub resident_bytes: u64,
    /// Sum over all clients, past and present.
    pub counts: Counts,
    /// How the kernel's requests come.
    pub transport: Transport,
    /// What the kernel asked the daemon.
    pub requests: Requests,
    /// What the kernel answered for files without extended attributes.
    pub xattr_answers: Saved,
    /// The policy, if there is one.
    pub policy: Option<PolicyStatus>,
    /// What became of deferred unlinks, if there are any.
    pub deferred: Option<DeferredStatus>,
}

/// Unlinks that are acknowledged before they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeferredStatus {
    /// Acknowledged, and not done yet.
    pub waiting: u64,
    /// Done.
    pub done: u64,
    /// Refused by the source: the names are there again.
    pub failed: u64,
}

/// How the kernel's requests come to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// By reading /dev/fuse.
    Classic,
    /// Through io_uring.
    Uring,
}

impl Transport {
    /// As the mount option is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Uring => "uring",
        }
    }
}

/// A mount's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// How many rules it has.
    pub rules: u64,
    /// Requests that the daemon denied.
    pub denied: u64,
    /// How walks through directories are checked that the kernel knows.
    pub walks: Walks,
}

/// How walks through directories are checked that the kernel knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Walks {
    /// They need not be: everybody may search every directory.
    Free,
    /// By the kernel itself; how many it denied.
    Checked(u64),
    /// By the daemon, which is asked for every name; why not by the kernel.
    Requested(String),
}

/// Requests that the kernel was spared, as it knew the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Saved {
    /// Nobody wanted that.
    #[default]
    Unwanted,
    /// It cannot be done; why.
    Impossible(String),
    /// How many, since the mount was made.
    Requests(u64),
}

/// Requests by operation, as FUSE names it (`LOOKUP`).
pub type Operations = Vec<(String, u64)>;

/// What the kernel asked a daemon, counted in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Requests {
    /// Nobody wanted them counted.
    #[default]
    Unwanted,
    /// They cannot be counted; why.
    Uncounted(String),
    /// Since the mount was made.
    Counted(Operations),
}

/// A program for which the kernel asked the daemon, for `finesse status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SenderStatus {
    /// Process id in the first process name space; 0 for what the kernel sent later than it was asked for.
    pub pid: u32,
    /// Name of the thread that asked last.
    pub command: String,
    /// What for.
    pub requests: Operations,
}

/// One client, for `finesse status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Process id, in the daemon's namespace.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Program name as the client gave it.
    pub program: String,
    /// What it counted.
    pub counts: Counts,
}

/// Why a message could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side speaks another version.
    #[error(
        "protocol version mismatch: this side speaks {VERSION}, the other side {0}; use the library and the daemon of one release"
    )]
    Version(u32),
    /// The other side sent something that is no message of this protocol.
    #[error("malformed message")]
    Malformed,
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] Errno),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MESSAGE_MAX>()
}

/// Encodes a message into `buffer` and returns its length.
///
/// # Errors
/// [`Error::Malformed`] if it does not fit.
pub fn encode(message: &impl Serialize, buffer: &mut [u8]) -> Result<usize, Error> {
    let (envelope, body) = buffer.split_at_mut_checked(ENVELOPE).ok_or(Error::Malformed)?;
    envelope[..4].copy_from_slice(&MARK);
    envelope[4..].copy_from_slice(&VERSION.to_le_bytes());
    let len = bincode::serde::encode_into_slice(message, body, config()).map_err(|_| Error::Malformed)?;
    Ok(ENVELOPE + len)
}

/// Decodes a message that was received whole.
///
/// # Errors
/// [`Error::Version`], [`Error::Malformed`], or [`Error::Closed`] for an empty message (end of stream).
pub fn decode<'m, T: Deserialize<'m>>(message: &'m [u8]) -> Result<T, Error> {
    if message.is_empty() {
        return Err(Error::Closed);
    }
    let (envelope, body) = message.split_first_chunk::<ENVELOPE>().ok_or(Error::Malformed)?;
    let [m0, m1, m2, m3, v0, v1, v2, v3] = *envelope;
    if [m0, m1, m2, m3] != MARK {
        return Err(Error::Malformed);
    }
    match u32::from_le_bytes([v0, v1, v2, v3]) {
        VERSION => {}
        other => return Err(Error::Version(other)),
    }
    match bincode::serde::borrow_decode_from_slice(body, config()) {
        Ok((value, used)) if used == body.len() => Ok(value),
        _ => Err(Error::Malformed),
    }
}

/// Descriptors that a message carries at most.
const FDS_MAX: usize = 4;

/// Sends a message with up to four descriptors; retries when interrupted.
///
/// # Errors
/// [`Error::Closed`] if the other side is gone, [`Error::Malformed`] if the message is too long, otherwise
/// [`Error::Socket`] (`EAGAIN` on a non-blocking socket that is full).
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let mut small = [0; SMALL_MESSAGE_MAX];
    if let Ok(len) = encode(message, &mut small) {
        return send_bytes(socket, &small[..len], fds);
    }
    let mut large = vec![0; MESSAGE_MAX];
    let len = encode(message, &mut large)?;
    send_bytes(socket, &large[..len], fds)
}

fn send_bytes(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::Malformed);
        }
        match rustix::net::sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Error::Closed),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Receives one message into `buffer`, with up to four descriptors (close-on-exec); surplus ones are closed.
///
/// # Errors
/// [`Error::Closed`] at the end of the stream; [`Error::Malformed`] for a message longer than the buffer;
/// [`Error::Socket`] otherwise (`EAGAIN` with `MSG_DONTWAIT`).
pub fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> Result<(&[u8], [Option<OwnedFd>; FDS_MAX]), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut fds = [const { None }; FDS_MAX];
    let (len, truncated) = loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let iov = &mut [IoSliceMut::new(buffer)];
        match rustix::net::recvmsg(&socket, iov, &mut control, flags | RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                for ancillary in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                        for (place, fd) in fds.iter_mut().zip(received) {
                            *place = Some(fd);
                        }
                    }
                }
                break (message.bytes, message.flags.contains(rustix::net::ReturnFlags::TRUNC));
            }
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET | Errno::NOTCONN) => return Err(Error::Closed),
            Err(errno) => return Err(errno.into()),
        }
    };
    match (len, truncated) {
        (0, _) => Err(Error::Closed),
        (_, true) => Err(Error::Malformed),
        (len, false) => Ok((&buffer[..len], fds)),
    }
}

fn address(name: &[u8]) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new_abstract_name(name)
}

/// Daemon: listens on an abstract socket name.
///
/// # Errors
/// What `socket`, `bind` or `listen` answer (`EADDRINUSE`).
pub fn listen(name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &address(name)?)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}

/// Client: connects to an abstract socket name.
///
/// # Errors
/// What `socket` or `connect` answer (`ECONNREFUSED` if no daemon listens, `EAGAIN` if it does not
/// accept).
pub fn connect(name: &[u8]) -> Result<OwnedFd, Errno> {
    // Not blocking while it connects: if the daemon does not accept, EAGAIN says so at once.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = address(name)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(()) => break,
        }
    }
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap()
    }

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (a, b) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let sent = [file.as_fd(), a.as_fd(), file.as_fd(), b.as_fd()];
        for count in 0..=FDS_MAX {
            send(&a, &Ask::Attach { program: "ls" }, &sent[..count]).unwrap();
            let mut buffer = [0; SMALL_MESSAGE_MAX];
            let (bytes, fds) = receive(&b, &mut buffer, RecvFlags::empty()).unwrap();
            assert!(matches!(decode(bytes), Ok(Ask::Attach { program: "ls" })));
            assert_eq!(fds.iter().flatten().count(), count);
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut buffer = [0; 64];
        let len = encode(&Ask::Status, &mut buffer).unwrap();
        buffer[4] = VERSION as u8 + 1;
        let error = decode::<Ask>(&buffer[..len]).unwrap_err();
        assert!(matches!(error, Error::Version(other) if other == VERSION + 1));
        let said = format!("this side speaks {VERSION}, the other side {}", VERSION + 1);
        assert!(error.to_string().contains(&said));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(decode::<Ask>(b""), Err(Error::Closed)));
        assert!(matches!(decode::<Ask>(b"GET / HTTP/1.1"), Err(Error::Malformed)));
        let mut buffer = [0xff; 64];
        let len = encode(&Ask::Status, &mut buffer).unwrap();
        assert!(matches!(decode::<Ask>(&buffer[..len + 1]), Err(Error::Malformed)), "trailing bytes");
        buffer[ENVELOPE] = 200;
        assert!(matches!(decode::<Ask>(&buffer[..len]), Err(Error::Malformed)));
    }

    #[test]
    fn the_end_of_the_stream_is_an_error_of_its_own() {
        let (a, b) = pair();
        drop(a);
        assert!(matches!(receive(&b, &mut [0; 8], RecvFlags::empty()), Err(Error::Closed)));
        assert!(matches!(send(&b, &Ask::Status, &[]), Err(Error::Closed)));
    }
}
