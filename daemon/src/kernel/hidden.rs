//! The hidden directory of a mount: how a file that the daemon keeps open for a bypass client becomes a descriptor of
//! the kernel's ([`finesse_ipc::handshake::HiddenName`]).
//!
//! It exists for the kernel only; the file system knows nothing of it, and no listing shows it. What is in it:
//! - [`PLACEHOLDER`], which nobody can open but with `O_PATH`;
//! - one-time names. `open` with `O_CREAT` of such a name arrives as a `CREATE` request, and is answered with the file's
//!   own inode and with the handle that the file system gave when the file was opened. So no permission is checked
//!   again, and a file without any name will do. The kernel releases the handle in the end.
//!
//! The kernel counts the inode in that answer as a reference, of which the file system has not heard. So the engine's
//! own reference to the inode is kept until the kernel gives one up, which then is not passed on
//! ([`Hidden::swallow`]). The name is dropped from the kernel's cache at once: a dentry would keep the inode, and with
//! it an unlinked file, until memory runs short.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use hashbrown::HashMap;
use parking_lot::Mutex;
use rustix::rand::{GetRandomFlags, getrandom};

use finesse_ipc::handshake::{HiddenName, PLACEHOLDER};

use crate::coherence::Coherence;
use crate::engine::cache::Inode;
use crate::engine::files::OpenFile;
use crate::engine::handles::Handles;

/// The node id of the directory.
pub(crate) const DIRECTORY: INodeNo = INodeNo(u64::MAX - 1);
/// The node id of [`PLACEHOLDER`].
const FILE: INodeNo = INodeNo(u64::MAX - 2);

/// For how long the kernel may remember the directory and the placeholder, which never change.
pub(crate) const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// A one-time name.
pub(crate) type Token = [u8; 32];

/// Whether a node is the hidden directory or the placeholder.
pub(crate) fn owns(ino: INodeNo) -> bool {
    ino == DIRECTORY || ino == FILE
}

/// What waits for being opened under a one-time name.
struct Ticket {
    file: Weak<OpenFile>,
    /// The file's number, in the table of its client.
    number: u32,
    handles: Weak<Handles>,
}

/// Makes the kernel forget one-time names that have been used: never in a thread that serves the kernel, because the
/// kernel holds the directory's lock until its request is answered.
struct Janitor {
    names: Sender<Token>,
    thread: JoinHandle<()>,
}

/// The hidden directory of one mount.
pub(crate) struct Hidden {
    name: HiddenName,
    tickets: Mutex<HashMap<Token, Ticket>>,
    /// Inodes that the kernel has one reference more to than the file system knows of.
    adopted: Mutex<HashMap<u64, Vec<Arc<Inode>>>>,
    adopted_count: AtomicUsize,
    janitor: Mutex<Option<Janitor>>,
}

fn random_name() -> Option<Token> {
    let mut random = [0u8; 16];
    getrandom(&mut random, GetRandomFlags::empty()).ok().filter(|len| *len == random.len())?;
    let mut name = Token::default();
    for (pair, byte) in name.chunks_exact_mut(2).zip(random) {
        pair.copy_from_slice(&[byte >> 4, byte & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
    }
    Some(name)
}

impl Hidden {
    /// A directory of a random name. Without randomness there is none.
    pub(crate) fn new() -> Self {
        const PREFIX: &[u8] = b".finesse-";
        let mut name = HiddenName::default();
        if let Some(random) = random_name() {
            name[..PREFIX.len()].copy_from_slice(PREFIX);
            // One zero stays at the end.
            let rest = name.len() - PREFIX.len() - 1;
            name[PREFIX.len()..][..rest].copy_from_slice(&random[..rest]);
        }
        Self {
            name,
            tickets: Mutex::default(),
            adopted: Mutex::default(),
            adopted_count: AtomicUsize::new(0),
            janitor: Mutex::default(),
        }
    }

    /// Its name in the mount's root; all zero if there is none.
    pub(crate) fn name(&self) -> HiddenName {
        self.name
    }

    /// Whether it exists.
    pub(crate) fn exists(&self) -> bool {
        self.name[0] != 0
    }

    /// What a name in `parent` leads to, if that is here.
    pub(crate) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Option<FileAttr> {
        let name = name.as_bytes();
        match parent {
            INodeNo::ROOT if self.exists() && self.name.strip_prefix(name) == Some(&[0; 1][..]) => {
                Some(attr(DIRECTORY))
            }
            DIRECTORY if name == PLACEHOLDER.as_bytes() => Some(attr(FILE)),
            _ => None,
        }
    }

    // --- One-time names ---

    /// A one-time name for an open file. It is good until the file is closed, or [revoked](Self::revoke).
    pub(crate) fn invite(&self, file: &Arc<OpenFile>, number: u32, handles: &Arc<Handles>) -> Option<Token> {
        let token = random_name()?;
        let ticket = Ticket { file: Arc::downgrade(file), number, handles: Arc::downgrade(handles) };
        self.tickets.lock().insert(token, ticket);
        Some(token)
    }

    /// The name leads to nothing any more.
    pub(crate) fn revoke(&self, token: &Token) {
        self.tickets.lock().remove(token);
    }

    /// The file that a one-time name stands for. The name goes on to lead to it.
    pub(crate) fn invited(&self, name: &OsStr) -> Option<(Token, Arc<OpenFile>)> {
        let token = Token::try_from(name.as_bytes()).ok()?;
        let file = self.tickets.lock().get(&token)?.file.upgrade()?;
        Some((token, file))
    }

    /// Uses up a one-time name: the kernel gets the file, unless it has got it already, and the client's number means
    /// nothing any more. Whether that happened.
    pub(crate) fn hand_over(&self, token: &Token, file: &Arc<OpenFile>) -> bool {
        let Some(ticket) = self.tickets.lock().remove(token) else { return false };
        if !file.hand_over() {
            return false;
        }
        // Counted before it is listed, so that who sees a count of zero has nothing to look for.
        self.adopted_count.fetch_add(1, Ordering::SeqCst);
        self.adopted.lock().entry(file.inode().ino).or_default().push(Arc::clone(file.inode()));
        if let Some(handles) = ticket.handles.upgrade() {
            drop(handles.remove(ticket.number.into()));
        }
        true
    }

    /// The kernel gives up `count` references to an inode: how many of them the file system shall hear of.
    pub(crate) fn swallow(&self, ino: INodeNo, count: u64) -> u64 {
        if self.adopted_count.load(Ordering::SeqCst) == 0 {
            return count;
        }
        // Dropped outside the lock: that gives up the engine's own reference.
        let mut ours = Vec::new();
        let mut adopted = self.adopted.lock();
        if let Some(inodes) = adopted.get_mut(&ino.0) {
            let kept = inodes.len().saturating_sub(usize::try_from(count).unwrap_or(usize::MAX));
            ours = inodes.split_off(kept);
            if inodes.is_empty() {
                adopted.remove(&ino.0);
            }
        }
        drop(adopted);
        self.adopted_count.fetch_sub(ours.len(), Ordering::SeqCst);
        count - ours.len() as u64
    }

    // --- Used names ---

    /// Makes the kernel forget a used name, soon.
    pub(crate) fn drop_name(&self, token: Token, coherence: &Arc<Coherence>) {
        let mut janitor = self.janitor.lock();
        if janitor.is_none() {
            let (names, used) = channel::<Token>();
            let coherence = Arc::clone(coherence);
            let work = move || {
                for token in used {
                    coherence.drop_name(DIRECTORY.0, &token);
                }
            };
            match std::thread::Builder::new().name("hidden-names".into()).spawn(work) {
                Ok(thread) => *janitor = Some(Janitor { names, thread }),
                Err(error) => {
                    tracing::warn!(%error, "the kernel will remember a used name until memory runs short");
                    return;
                }
            }
        }
        if let Some(janitor) = &*janitor {
            // The receiver lives as long as this sender.
            let _ = janitor.names.send(token);
        }
    }

    /// The bypass has ended: nothing here will be opened any more.
    pub(crate) fn end(&self) {
        self.tickets.lock().clear();
        let Some(Janitor { names, thread }) = self.janitor.lock().take() else { return };
        drop(names);
        if thread.join().is_err() {
            tracing::error!("the thread that drops used names panicked");
        }
    }
}

/// The attributes of what is hidden: a directory that all may search and make names in, and a file that nobody may open.
pub(crate) fn attr(ino: INodeNo) -> FileAttr {
    let directory = ino == DIRECTORY;
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o1777 } else { 0 },
        nlink: if directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_found_by_its_whole_name_in_the_root_alone() {
        let hidden = Hidden::new();
        let name = hidden.name();
        let len = name.iter().position(|byte| *byte == 0).unwrap();
        assert!(len > 20 && name[len..].iter().all(|byte| *byte == 0));
        let find =
            |parent, bytes: &[u8]| hidden.lookup(parent, OsStr::from_bytes(bytes)).map(|attr| attr.ino);
        assert_eq!(find(INodeNo::ROOT, &name[..len]), Some(DIRECTORY));
        assert_eq!(find(INodeNo::ROOT, &name[..len - 1]), None);
        assert_eq!(find(INodeNo(2), &name[..len]), None);
        assert_eq!(find(DIRECTORY, b"file"), Some(FILE));
        assert_eq!(find(INodeNo::ROOT, b"file"), None);
    }

    #[test]
    fn one_time_names_do_not_repeat() {
        let names: std::collections::HashSet<_> = (0..1000).map(|_| random_name().unwrap()).collect();
        assert_eq!(names.len(), 1000);
    }
}
