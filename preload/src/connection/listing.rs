//! Which mounts there are: from the environment, or from the kernel.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use finesse_ipc::environment::{self, Hint, MOUNT_PATH_MAX, SOCKET_MAX};
use rustix::fs::OFlags;

use super::{ALL, CANDIDATE, DEAD, FOREIGN, FREE, Mount, NOT_HINTED, REFUSED, TABLE, pack};
use crate::mounts::{self, Writer};
use crate::sys::{self, Pages};

/// Longest mountinfo that is read.
const MOUNTINFO_MAX: usize = 16 << 20;
/// Room for one path of mountinfo.
const MOUNTINFO_PATH: usize = 4096;

/// Lists the mounts that the environment names.
pub(super) fn list_from_hints(value: &[u8]) {
    let Some(mut writer) = TABLE.replace() else { return };
    let mut buffer = [0; MOUNT_PATH_MAX];
    for hint in environment::hints(value) {
        if let Hint::Mount { dev, generation, socket, path } = hint
            && let Some(path) = environment::unescape(path, &mut buffer)
            && path.first() == Some(&b'/')
            && let Some((index, mount)) = place_for(dev)
        {
            let mut name = [0; SOCKET_MAX];
            let name = environment::unhex(socket, &mut name).unwrap_or(&[]);
            for (place, byte) in mount.socket.iter().zip(name) {
                place.store(*byte, Ordering::Relaxed);
            }
            mount.socket_len.store(name.len() as u32, Ordering::Relaxed);
            mount.hinted.store(generation, Ordering::Relaxed);
            writer.mount(path, index);
        }
    }
    for hint in environment::hints(value) {
        if let Hint::Excluded(path) = hint
            && let Some(path) = environment::unescape(path, &mut buffer)
        {
            writer.exclude(path);
        }
    }
    writer.commit();
}

/// What came of the wish to list the paths of mounts anew.
pub(super) enum Listing {
    Done,
    /// Another thread does it.
    Others,
    /// It could not be done: the list is as old as it was.
    Failed,
}

/// Reads `/proc/self/mountinfo` and makes a new list of paths. No signal handler may come in between: it might have to wait for
/// that ([`relist`](super::relist)).
#[cold]
pub(super) fn list_from_kernel() -> Listing {
    sys::without_signals(|| {
        let Some(writer) = TABLE.replace() else { return Listing::Others };
        let mut size = 64 << 10;
        while size <= MOUNTINFO_MAX {
            let Some(mut pages) = Pages::new(size + MOUNTINFO_PATH) else { break };
            let (text, path) = pages.bytes().split_at_mut(size);
            match read_mountinfo(text) {
                None => break,
                Some(len) if len == text.len() => size *= 2,
                Some(len) => {
                    list(writer, text.get(..len).unwrap_or(&[]), path);
                    return Listing::Done;
                }
            }
        }
        Listing::Failed
    })
}

/// Fills the buffer, as far as there is text.
fn read_mountinfo(buffer: &mut [u8]) -> Option<usize> {
    let open = || sys::open_hidden(c"/proc/self/mountinfo", OFlags::RDONLY);
    // The program may have all numbers: some of ours can be had again.
    let file = open().or_else(|| if super::spare_numbers() { open() } else { None })?;
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(file.fd()?, rest) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(len)
}

fn list(mut writer: Writer<'_>, mountinfo: &[u8], buffer: &mut [u8]) {
    for mounted in mounts::mounted(mountinfo) {
        let may_be_ours = mounted.is_fuse && mounted.is_whole;
        // Most machines have no FUSE mount at all.
        if (!may_be_ours && writer.is_empty()) || (may_be_ours && mounts::is_hidden(mountinfo, &mounted)) {
            continue;
        }
        let Some(path) = mounts::unmangle(mounted.path, buffer) else { continue };
        let place = if may_be_ours { place_for(mounted.dev) } else { None };
        match place {
            Some((index, _)) if !writer.contains(index) => {
                writer.mount(path, index);
            }
            // A file system that is reached through several mounts is ours through the first, because they differ in
            // `stx_mnt_id`. The later of two mounts at one path is the one that is seen.
            _ => writer.cover(path),
        }
    }
    if !writer.is_empty() {
        for mounted in mounts::mounted(mountinfo) {
            if let Some(path) = mounts::unmangle(mounted.path, buffer) {
                writer.exclude(path);
            }
        }
    }
    // Mounts that are gone make room for others.
    for (index, mount) in ALL.iter().enumerate() {
        if !writer.contains(index) {
            let _ = [CANDIDATE, REFUSED, FOREIGN].into_iter().any(|state| mount.change(state, FREE));
        }
    }
    writer.commit();
}

/// The place of the mount with a device number: its own, or a free one.
fn place_for(dev: (u32, u32)) -> Option<(usize, &'static Mount)> {
    let state = |mount: &Mount| mount.state.load(Ordering::Acquire);
    let known = ALL.iter().enumerate().find(|(_, mount)| {
        state(mount) != FREE && state(mount) != DEAD && mount.dev.load(Ordering::Relaxed) == pack(dev)
    });
    if known.is_some() {
        return known;
    }
    let free = ALL.iter().enumerate().find(|(_, mount)| state(mount) == FREE)?;
    free.1.dev.store(pack(dev), Ordering::Relaxed);
    free.1.socket_len.store(0, Ordering::Relaxed);
    free.1.hinted.store(NOT_HINTED, Ordering::Relaxed);
    free.1.statfs_flags.store(-1, Ordering::Relaxed);
    free.1.unconnected.store(0, Ordering::Relaxed);
    free.1.state.store(CANDIDATE, Ordering::Release);
    Some(free)
}
