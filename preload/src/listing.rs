//! Calls that list directories: what a directory stream asks the daemon.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use finesse_ipc::client::Call;
use finesse_ipc::frame::{Fallback, LIST_ATTRS, Op, Outcome, REPLY_END, Request};
use libc::AT_EMPTY_PATH;

use crate::calls::{Road, absent, serve_or_look_up};
use crate::connection::{self, Guard};
use crate::dirstreams::Opened;
use crate::process;
use crate::route;
use crate::sys::PathArg;

fn opened_directory(mount: &Guard, call: &Call<'_>) -> Opened {
    opened_on(mount, call.reply.to_attr().ino, Some(call.reply.file()))
}

fn opened_on(mount: &Guard, node: u64, number: Option<u32>) -> Opened {
    let facts = mount.facts();
    Opened {
        mount: mount.index(),
        connection: mount.connection(),
        forks: process::forks(),
        is_open: number.is_some(),
        number: number.unwrap_or(0),
        dev: [facts.dev.0, facts.dev.1],
        node,
    }
}

/// `opendir`.
pub(crate) fn open_directory(dirfd: RawFd, path: &PathArg) -> Road<Opened> {
    serve_or_look_up(Op::OpenDir, (dirfd, path), Request::default(), absent, opened_directory)
}

/// `fdopendir`: the daemon opens the directory when something is read, as the kernel has said that it may be.
pub(crate) fn open_descriptor(fd: RawFd) -> Road<Opened> {
    match route::directory_of(fd) {
        Some((directory, mount)) => Road::Bypass(Ok(opened_on(&mount, directory.node, None))),
        None => Road::Kernel,
    }
}

/// What came of reading an open directory.
pub(crate) enum Page {
    /// So many bytes were read; whether there are no more entries.
    Read { len: usize, ended: bool },
    /// The errno.
    Failed(i32),
    /// The directory is not open there (any more), or the kernel must read it.
    Gone,
}

/// The connection on which a directory is open, if there still is that one.
fn connection_of(opened: &Opened) -> Option<Guard> {
    // A connection may be busy with itself for a moment, because the mount table has changed for instance.
    const ATTEMPTS: u32 = 20;
    if !process::is_on() || opened.forks != process::forks() {
        return None;
    }
    for _ in 0..ATTEMPTS {
        if let Some(mount) = connection::enter(opened.mount) {
            return (mount.connection() == opened.connection).then_some(mount);
        }
        rustix::thread::sched_yield();
    }
    None
}

/// `getdents64` of an open directory; opens it, if it is not open.
pub(crate) fn read_directory(opened: &mut Opened, position: u64, out: &mut [u8]) -> Page {
    let Some(mount) = connection_of(opened) else { return Page::Gone };
    let client = mount.client();
    let attrs = if client.wants_attrs() { LIST_ATTRS } else { 0 };
    let (op, base, flags) = match opened.is_open {
        true => (Op::ReadDir, opened.number.into(), attrs),
        false => (Op::OpenDir, opened.node, attrs | AT_EMPTY_PATH as u32),
    };
    let request = Request { base, base2: position, mode: out.len() as u32, flags, ..Request::default() };
    let counters = client.counters();
    match client.call(op, &request, &[], &[]) {
        Ok(call) => match call.reply.outcome() {
            Outcome::Ok => {
                counters.served(op);
                let len = call.data(out).len();
                client.has_listed(len);
                let ended = call.reply.flags & REPLY_END != 0;
                if op == Op::OpenDir && !ended {
                    (opened.is_open, opened.number) = (true, call.reply.file());
                }
                Page::Read { len, ended }
            }
            // The kernel has opened it: what the daemon says to a second opening does not count.
            Outcome::Errno(_) if op == Op::OpenDir => {
                counters.fell_back(Fallback::OpenDirectory);
                Page::Gone
            }
            Outcome::Errno(errno) => {
                counters.served(op);
                Page::Failed(errno)
            }
            Outcome::Kernel(reason) => {
                counters.fell_back(reason);
                Page::Gone
            }
        },
        Err(reason) => {
            counters.fell_back(reason);
            Page::Gone
        }
    }
}

/// Gives an open directory back, because there is no room for the stream: the kernel opens it.
pub(crate) fn decline_directory(opened: &Opened) {
    close_directory(opened);
    if let Some(mount) = connection_of(opened) {
        mount.client().counters().fell_back(Fallback::OpenDirectory);
    }
}

/// Gives an open directory back, if the connection is still there: otherwise the daemon has done it by itself.
pub(crate) fn close_directory(opened: &Opened) {
    if !opened.is_open {
        return;
    }
    let Some(mount) = connection_of(opened) else { return };
    let request = Request { base: opened.number.into(), ..Request::default() };
    // The kernel does not wait until the file system has released a directory, either (`fuse_release_common`).
    if mount.client().send(Op::Close, &request).is_ok() {
        mount.client().counters().served(Op::Close);
        return;
    }
    for _ in 0..64 {
        match mount.client().call(Op::Close, &request, &[], &[]) {
            // Other threads use all slots.
            Err(Fallback::NoSlot) => rustix::thread::sched_yield(),
            Err(_) => return,
            Ok(_) => {
                mount.client().counters().served(Op::Close);
                return;
            }
        }
    }
}
