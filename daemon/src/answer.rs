//! What a file system answers, as plain values, and the one-shot channel that carries an answer to the
//! bypass.
//!
//! A reply object whose answer stays in this process holds a [`Sender`]; whoever asked holds the [`Answer`].
//! Nearly always the reply has been sent before the file system's method returns, so that case costs one small
//! allocation and no wait; a reply sent later, from any thread, wakes the waiter.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, PollEvents};
use log::warn;
use parking_lot::{Condvar, Mutex};

use crate::bpf::Absent;

/// A directory entry: the answer of `lookup` and of everything that makes a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The child's attributes. `attr.ino` 0 says "no such name", for `entry_ttl`, as in FUSE.
    pub(crate) attr: FileAttr,
    /// Tells apart two files that had the same inode number at different times.
    pub(crate) generation: Generation,
    /// How long the attributes may be cached.
    pub(crate) attr_ttl: Duration,
    /// How long the name may be cached.
    pub(crate) entry_ttl: Duration,
    /// It has no extended attributes at all; `None` if that is not known.
    pub(crate) no_xattrs: Option<Absent>,
}

/// A file's attributes: the answer of `getattr` and `setattr`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attr {
    /// The attributes.
    pub(crate) attr: FileAttr,
    /// How long they may be cached.
    pub(crate) ttl: Duration,
}

/// An open file or directory.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The file system's handle, to be given back in every later call and to `release`.
    pub(crate) fh: FileHandle,
    /// The file system has given the backing file away and has nothing open: the handle means nothing.
    pub(crate) is_released: bool,
    /// How the file system wants input and output to be done.
    pub(crate) flags: FopenFlags,
    /// The backing file, if the file system opened with a [`BackingId`](crate::BackingId) made on this road.
    pub(crate) backing: Option<OwnedFd>,
    /// The file system gives a descriptor when it is asked for ([`grant`](crate::Filesystem::grant)).
    pub(crate) grantable: bool,
    /// The type and permission bits that the backing file had when it was opened, if they are known.
    pub(crate) mode: Option<u32>,
}

impl Opened {
    /// A handle that no backing file is known of.
    pub(crate) fn handle(fh: FileHandle, flags: FopenFlags) -> Self {
        Self { fh, is_released: false, flags, backing: None, grantable: false, mode: None }
    }

    /// A backing file that is the asker's from now on.
    pub(crate) fn given(backing: OwnedFd, mode: u32) -> Self {
        Self {
            is_released: true,
            backing: Some(backing),
            mode: Some(mode),
            ..Self::handle(FileHandle(0), FopenFlags::empty())
        }
    }
}

/// A file that was created and opened.
#[derive(Debug)]
pub(crate) struct Created {
    /// The new name.
    pub(crate) entry: Entry,
    /// The open file.
    pub(crate) opened: Opened,
}

/// The answer of `statfs`; fields as in `struct fuse_kstatfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statfs {
    /// Size in units of `frsize` bytes.
    pub(crate) blocks: u64,
    /// Free blocks.
    pub(crate) bfree: u64,
    /// Free blocks for ordinary users.
    pub(crate) bavail: u64,
    /// Inodes.
    pub(crate) files: u64,
    /// Free inodes.
    pub(crate) ffree: u64,
    /// Preferred transfer size in bytes.
    pub(crate) bsize: u32,
    /// Longest name in bytes.
    pub(crate) namelen: u32,
    /// Unit of `blocks`, in bytes.
    pub(crate) frsize: u32,
}

/// The answer of `getlk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// First byte.
    pub(crate) start: u64,
    /// Last byte.
    pub(crate) end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(crate) typ: i32,
    /// The holder.
    pub(crate) pid: u32,
}

/// The answer of `ioctl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ioctl {
    /// What the system call returns.
    pub(crate) result: i32,
    /// The bytes to copy out.
    pub(crate) data: Vec<u8>,
}

/// The answer of `getxattr` and `listxattr`.
#[derive(Clone, Debug)]
pub(crate) enum Xattr {
    /// How many bytes the value has.
    Size(u32),
    /// The value.
    Data(Vec<u8>),
    /// The file has none at all: nothing is listed, or it is an error.
    Nothing(Result<(), Errno>, Absent),
}

/// A page of a directory: the answer of `readdir` and `readdirplus`.
#[derive(Clone, Debug)]
pub(crate) struct Listing<E> {
    /// The entries.
    pub(crate) entries: Vec<E>,
    /// There is a further entry, which did not fit.
    pub(crate) full: bool,
}

/// One entry of `readdir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dirent {
    /// The inode number as `d_ino` reports it.
    pub(crate) ino: INodeNo,
    /// Where the next call continues after this entry.
    pub(crate) offset: u64,
    /// The file type.
    pub(crate) kind: FileType,
    /// The name.
    pub(crate) name: OsString,
}

/// One entry of `readdirplus`. Like a `lookup`, it counts as a reference to the child, `.` and `..` excepted.
#[derive(Clone, Debug)]
pub(crate) struct DirentPlus {
    /// Where the next call continues after this entry.
    pub(crate) offset: u64,
    /// The name.
    pub(crate) name: OsString,
    /// What a lookup of the name would answer.
    pub(crate) entry: Entry,
}

/// The answer of `poll`.
pub(crate) type Ready = PollEvents;

enum State<T> {
    Waiting,
    Answered(Result<T, Errno>),
}

struct Shared<T> {
    state: Mutex<State<T>>,
    answered: Condvar,
}

/// The end of a local answer that the file system holds, inside a reply object.
pub(crate) struct Sender<T> {
    shared: Option<Arc<Shared<T>>>,
}

/// The end of a local answer that the asker holds.
pub(crate) struct Answer<T> {
    shared: Arc<Shared<T>>,
}

/// A new pair of ends.
pub(crate) fn channel<T>() -> (Sender<T>, Answer<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Waiting), answered: Condvar::new() });
    (Sender { shared: Some(Arc::clone(&shared)) }, Answer { shared })
}

impl<T> Sender<T> {
    /// Answers and wakes the asker if it sleeps already.
    pub(crate) fn send(mut self, answer: Result<T, Errno>) {
        self.put(answer);
    }

    fn put(&mut self, answer: Result<T, Errno>) {
        if let Some(shared) = self.shared.take() {
            *shared.state.lock() = State::Answered(answer);
            // A load of one word when nobody sleeps.
            shared.answered.notify_one();
        }
    }
}

impl<T> Drop for Sender<T> {
    /// A file system that drops its reply has failed at the request: the program must not hang.
    fn drop(&mut self) {
        if self.shared.is_some() {
            warn!("a reply was dropped without an answer; answering EIO");
            self.put(Err(Errno::EIO));
        }
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> Answer<T> {
    /// The answer, waiting for it if need be.
    ///
    /// # Errors
    /// What the file system answered; `EIO` if it dropped the reply.
    pub(crate) fn wait(mut self) -> Result<T, Errno> {
        // The sender is gone: no one else can see the state, so no lock is needed.
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            return take(shared.state.get_mut()).unwrap_or(Err(Errno::EIO));
        }
        let mut state = self.shared.state.lock();
        loop {
            if let Some(answer) = take(&mut state) {
                return answer;
            }
            self.shared.answered.wait(&mut state);
        }
    }
}

fn take<T>(state: &mut State<T>) -> Option<Result<T, Errno>> {
    match std::mem::replace(state, State::Waiting) {
        State::Answered(answer) => Some(answer),
        State::Waiting => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn an_answer_sent_before_the_wait_is_received() {
        let (sender, answer) = channel();
        sender.send(Ok(7));
        assert_eq!(answer.wait(), Ok(7));
    }

    #[test]
    fn an_error_is_received_unchanged() {
        let (sender, answer) = channel::<()>();
        sender.send(Err(Errno::ENOTEMPTY));
        assert_eq!(answer.wait(), Err(Errno::ENOTEMPTY));
    }

    #[test]
    fn an_answer_from_another_thread_wakes_the_asker() {
        for _ in 0..200 {
            let (sender, answer) = channel();
            let thread = thread::spawn(move || sender.send(Ok("late")));
            assert_eq!(answer.wait(), Ok("late"));
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_reply_dropped_unanswered_is_eio_at_once_and_later() {
        let (sender, answer) = channel::<u8>();
        drop(sender);
        assert_eq!(answer.wait(), Err(Errno::EIO));

        let (sender, answer) = channel::<u8>();
        let thread = thread::spawn(move || drop(sender));
        assert_eq!(answer.wait(), Err(Errno::EIO));
        thread.join().unwrap();
    }
}
