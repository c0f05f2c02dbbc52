//! Who a connecting process is: by the kernel's word, never by its own.

use std::fs;
use std::os::fd::OwnedFd;

use finesse_ipc::handshake::Refusal;

use crate::processes::{effective_capabilities, shares};
use crate::request::Credentials;
use crate::ring::{Service, sys};

/// Reads the credentials of a socket's other end, and decides whether it may use the mount.
///
/// # Errors
/// Why it may not.
pub(crate) fn credentials(socket: &OwnedFd, service: &dyn Service) -> Result<Credentials, Refusal> {
    let unreadable = |_| Refusal::UserNamespace;
    let sys::Peer { pid, uid, gid } = sys::peer(socket).map_err(unreadable)?;
    if !service.admits(uid) {
        return Err(Refusal::NotOwner);
    }
    // In a process id name space that is not below ours, which cannot be looked into.
    if pid == 0 {
        return Err(Refusal::UserNamespace);
    }
    let groups = sys::peer_groups(socket).map_err(unreadable)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| Refusal::UserNamespace)?;
    if !shares(pid, "ns/user") {
        return Err(Refusal::UserNamespace);
    }
    // Whoever sees other mounts than we, or a part of the tree, may have been shut out of what we would serve: by a mount on
    // top of it, by a bind mount of a part, by chroot(2).
    if !shares(pid, "ns/mnt") || !shares(pid, "root") {
        return Err(Refusal::MountNamespace);
    }
    let caps = effective_capabilities(&status);
    // Acting as a user means to have the capabilities that come with the user ID (`cap_emulate_setxuid`).
    let held = caps & FILE_CAPABILITIES;
    if service.acts_as_caller() && held != if uid == 0 { FILE_CAPABILITIES } else { 0 } {
        return Err(Refusal::Capabilities);
    }
    // The process may have handed its socket on and executed a privileged program since it connected, so what
    // /proc says may take a connection away but never give capabilities to other users than root.
    let caps = if uid == 0 { caps } else { 0 };
    Ok(Credentials { uid, gid, groups, pid, caps })
}

/// Capabilities that decide about files: `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER`,
/// `CAP_FSETID`.
const FILE_CAPABILITIES: u64 = 0b1_1111;
