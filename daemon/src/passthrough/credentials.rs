//! Acting as the caller: file system user, group and supplementary groups of the calling *thread*.
//!
//! The backing file system decides what a caller may do, so operations run under its identity. Switching is
//! lazy: a thread keeps the identity of its last operation, and every operation states the one that it needs
//! ([`assume`], [`become_daemon`]) before its first system call. The two ends of that bargain are here: nothing
//! is switched when the identity already fits, and a thread whose identity is not known (it may have inherited
//! a foreign one from the thread that started it) is always switched.
//!
//! Only raw system calls, because glibc's `setgroups` would change every thread of the process. Losing user 0
//! as file system user drops the file-related capabilities of the thread (`CAP_FS_SET`, see `cap_task_fix_setuid`
//! in the kernel) and regaining it restores them, which is exactly what acting as an ordinary user means.

#![deny(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Result;
use rustix::process::{Gid, getegid, geteuid, getgroups};
use rustix::thread::set_thread_groups;

use super::sys;

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;

struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// The identity that the process itself runs under.
fn daemon() -> &'static Identity {
    static DAEMON: OnceLock<Identity> = OnceLock::new();
    DAEMON.get_or_init(|| Identity {
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        groups: getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect(),
    })
}

thread_local! {
    static CURRENT: RefCell<Option<Identity>> = const { RefCell::new(None) };
    /// The thread's umask, if that is its own.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whether this process can act as other users at all: root, with the capabilities to change identities.
pub(super) fn can_switch() -> bool {
    static CAN_SWITCH: OnceLock<bool> = OnceLock::new();
    *CAN_SWITCH.get_or_init(|| {
        daemon().uid == 0 && sys::has_capability(CAP_SETUID) && sys::has_capability(CAP_SETGID)
    })
}

/// The user that the daemon runs as.
pub(super) fn daemon_uid() -> u32 {
    daemon().uid
}

/// Makes the calling thread act as the daemon itself, which it always does if it cannot act as others.
///
/// # Errors
/// `EPERM` if the kernel refuses, which it does not to a thread that could leave that identity.
pub(super) fn become_daemon() -> Result<()> {
    if !can_switch() {
        return Ok(());
    }
    let daemon = daemon();
    switch(daemon.uid, daemon.gid, &daemon.groups)
}

/// Makes the calling thread act as the given user.
///
/// User 0 keeps the daemon's supplementary groups: its rights do not come from groups.
///
/// # Errors
/// `EPERM` if the kernel does not know that user or group; the thread's identity is then unknown and set
/// afresh by the next operation.
pub(super) fn assume(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let daemon = daemon();
    let groups = if uid == daemon.uid { &daemon.groups } else { groups };
    switch(uid, gid, groups)
}

fn switch(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    CURRENT.with_borrow_mut(|current| {
        // Taken out: an error on the way leaves the identity unknown.
        let known = current.take();
        let mut identity = match known {
            Some(known) if known.uid == uid && known.gid == gid && known.groups == groups => {
                *current = Some(known);
                return Ok(());
            }
            Some(mut known) => {
                if known.groups != groups {
                    set_groups(groups)?;
                    known.groups.clear();
                    known.groups.extend_from_slice(groups);
                }
                known
            }
            None => {
                set_groups(groups)?;
                Identity { uid: u32::MAX, gid: u32::MAX, groups: groups.to_vec() }
            }
        };
        if identity.gid != gid {
            sys::set_fs_gid(gid)?;
            identity.gid = gid;
        }
        if identity.uid != uid {
            sys::set_fs_uid(uid)?;
            identity.uid = uid;
        }
        *current = Some(identity);
        Ok(())
    })
}

fn set_groups(groups: &[u32]) -> Result<()> {
    let groups: Vec<Gid> = groups.iter().copied().filter_map(gid).collect();
    set_thread_groups(&groups)
}

fn gid(raw: u32) -> Option<Gid> {
    (raw != u32::MAX).then(|| Gid::from_raw(raw))
}

/// Has the kernel apply the caller's umask to what the calling thread makes next, which it does unless the directory has a default ACL. The thread has an umask, a
/// root and a working directory of its own from then on (nothing here depends on the latter).
///
/// # Errors
/// `ENOMEM`, `EPERM` (seccomp(2)): the umask is the process' still.
pub(super) fn set_umask(umask: u32) -> Result<()> {
    UMASK.with(|known| {
        if known.get() == Some(umask) {
            return Ok(());
        }
        if known.get().is_none() {
            sys::unshare_umask()?;
        }
        rustix::process::umask(Mode::from_bits_truncate(umask));
        known.set(Some(umask));
        Ok(())
    })
}

/// The supplementary groups of a thread that waits for us inside a system call, from `/proc/PID/status`; FUSE
/// requests do not carry them.
///
/// `None` if the thread cannot be seen (pid 0, another PID name space), is in more groups than are read (several hundred), or is not
/// the one that asked: the file system user must match.
pub(crate) fn groups_of(pid: u32, uid: u32) -> Option<Vec<u32>> {
    if pid == 0 {
        return None;
    }
    let mut text = [0; 4096];
    let length = read_status(pid, &mut text).or_else(|| {
        // With `hidepid` only the daemon itself may look.
        become_daemon().ok()?;
        read_status(pid, &mut text)
    })?;
    // What does not fit is not known, also the rest of the last line.
    let whole = text[..length].iter().rposition(|byte| *byte == b'\n')?;
    let text = std::str::from_utf8(&text[..whole]).ok()?;
    let fields = |key| text.lines().find_map(|line| line.strip_prefix(key)).map(str::split_ascii_whitespace);
    let file_system_user = fields("Uid:")?.nth(3)?.parse::<u32>().ok()?;
    if file_system_user != uid {
        return None;
    }
    fields("Groups:")?.map(|group| group.parse().ok()).collect()
}

fn read_status(pid: u32, text: &mut [u8]) -> Option<usize> {
    let path = format!("/proc/{pid}/status");
    let fd = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut file = std::fs::File::from(fd);
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]).ok()? {
            0 => break,
            more => length += more,
        }
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_started_while_acting_as_another_user_finds_its_way_back() {
        if !can_switch() {
            eprintln!("needs root: cannot act as other users");
            return;
        }
        let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = |key: &str| status().lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        become_daemon().unwrap();
        let before = (line("Uid:"), line("Gid:"), line("CapEff:"));
        assume(4711, 4712, &[4713, 4714]).unwrap();
        assert!(line("Uid:").ends_with("\t4711"));
        assert!(line("Gid:").ends_with("\t4712"));
        assert!(line("Groups:").contains("4713 4714"));
        assert_ne!(line("CapEff:"), before.2);
        let inherited = std::thread::spawn(move || {
            let foreign = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            become_daemon().unwrap();
            (foreign, std::fs::read_to_string("/proc/thread-self/status").unwrap())
        });
        let (foreign, own) = inherited.join().unwrap();
        assert!(foreign.lines().any(|line| line.starts_with("Uid:") && line.ends_with("\t4711")));
        assert!(own.lines().any(|line| line == before.0));
        become_daemon().unwrap();
        assert_eq!((line("Uid:"), line("Gid:"), line("CapEff:")), before);
    }

    #[test]
    fn groups_are_those_of_the_thread_that_asked() {
        let own = groups_of(std::process::id(), geteuid().as_raw());
        let expected: Vec<u32> = getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        assert_eq!(own, Some(expected));
        assert_eq!(groups_of(std::process::id(), geteuid().as_raw() + 1), None);
        assert_eq!(groups_of(0, 0), None);
    }
}
