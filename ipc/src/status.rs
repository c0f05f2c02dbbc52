//! Asking a mount's daemon how it does.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::handshake::{
    self, Answer, Ask, ClientStatus, Error, MESSAGE_MAX, MountStatus, Refusal, SOCKET_XATTR, SenderStatus,
};

/// Longest name of an abstract socket (`sun_path` without its leading zero byte).
const NAME_MAX: usize = 107;

/// What a daemon says about its mount.
#[derive(Clone, Debug)]
pub struct Report {
    /// The mount.
    pub mount: MountStatus,
    /// Its clients, connected at this moment.
    pub clients: Vec<ClientStatus>,
    /// Programs for which the kernel asked the daemon, those that asked most first; not all of them.
    pub senders: Vec<SenderStatus>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum NoReport {
    /// The daemon refused: only the mount's owner and root may ask.
    #[error("{0}")]
    Refused(Refusal),
    /// Messages could not be exchanged, or the versions differ.
    #[error("{0}")]
    Handshake(#[from] Error),
    /// The daemon did not answer in time.
    #[error("the daemon does not answer")]
    Silent,
    /// The socket could not be reached.
    #[error("cannot connect to the daemon: {0}")]
    System(#[from] Errno),
}

/// The name of the abstract socket of the daemon that serves the mount at `mountpoint`.
///
/// This asks the mount itself, so it waits as long as its daemon does.
///
/// # Errors
/// `ENODATA`, `EOPNOTSUPP` or `ENOSYS` for a file system that is not Finesse's; `ENOTCONN` for a mount whose
/// daemon is gone.
pub fn socket_of(mountpoint: &Path) -> io::Result<Vec<u8>> {
    let mut name = vec![0; NAME_MAX];
    let len = rustix::fs::getxattr(mountpoint, SOCKET_XATTR, &mut name)?;
    name.truncate(len);
    Ok(name)
}

/// Asks the daemon that listens on an abstract socket name, waiting at most `patience` in all.
///
/// # Errors
/// See [`NoReport`].
pub fn ask(socket: &[u8], patience: Duration) -> Result<Report, NoReport> {
    let deadline = Instant::now() + patience;
    let socket = handshake::connect(socket)?;
    handshake::send(&socket, &Ask::Status, &[])?;
    let mut buffer = vec![0; MESSAGE_MAX];
    let (mut mount, mut clients, mut senders) = (None, Vec::new(), Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(NoReport::Silent),
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        let (bytes, _) = handshake::receive(&socket, &mut buffer, RecvFlags::empty())?;
        match handshake::decode(bytes)? {
            Answer::Mount(status) => mount = Some(status),
            Answer::Client(client) => clients.push(client),
            Answer::Sender(sender) => senders.push(sender),
            Answer::Refused(refusal) => return Err(NoReport::Refused(refusal)),
            Answer::End => break,
            Answer::Welcome(_) | Answer::Grant { .. } => return Err(Error::Malformed.into()),
        }
    }
    mount.map(|mount| Report { mount, clients, senders }).ok_or(NoReport::Handshake(Error::Malformed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counts;

    fn daemon(name: &'static [u8], answers: Vec<Answer>) -> std::thread::JoinHandle<()> {
        let listener = handshake::listen(name).unwrap();
        std::thread::spawn(move || {
            rustix::event::poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
            let socket = rustix::net::accept(&listener).unwrap();
            let mut buffer = [0; 64];
            let (bytes, _) = handshake::receive(&socket, &mut buffer, RecvFlags::empty()).unwrap();
            assert!(matches!(handshake::decode(bytes), Ok(Ask::Status)));
            for answer in answers {
                handshake::send(&socket, &answer, &[]).unwrap();
            }
            // Until the asker hangs up.
            let _ = handshake::receive(&socket, &mut buffer, RecvFlags::empty());
        })
    }

    fn mount() -> Answer {
        Answer::Mount(MountStatus {
            pid: 7,
            daemon_version: "1".into(),
            file_system: "test".into(),
            clients: 1,
            clients_ever: 2,
            known_inodes: 3,
            resident_bytes: 4,
            transport: handshake::Transport::Classic,
            counts: Counts::default(),
            requests: handshake::Requests::Unwanted,
            xattr_answers: handshake::Saved::Unwanted,
            policy: None,
            deferred: None,
        })
    }

    #[test]
    fn a_report_is_everything_up_to_the_end() {
        let client = ClientStatus { pid: 9, uid: 0, program: "ls".into(), counts: Counts::default() };
        let thread = daemon(b"finesse-test-status", vec![mount(), Answer::Client(client), Answer::End]);
        let report = ask(b"finesse-test-status", Duration::from_secs(10)).unwrap();
        assert_eq!((report.mount.pid, report.clients.len()), (7, 1));
        thread.join().unwrap();
    }

    #[test]
    fn a_silent_daemon_is_not_waited_for_longer_than_asked() {
        let thread = daemon(b"finesse-test-silent", vec![mount()]);
        let error = ask(b"finesse-test-silent", Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, NoReport::Silent));
        thread.join().unwrap();
    }

    #[test]
    fn a_directory_of_another_file_system_names_no_socket() {
        assert!(socket_of(Path::new("/proc")).is_err());
    }
}
