//! What must happen when a reply goes to the kernel, beyond sending it.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use fuser::FileAttr;

use crate::coherence::{Access, Answer, Coherence, Key};
use crate::policy::guard::{Guard, Naming};

/// What a request changes, so that the bypass forgets what it knew of it.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Nothing that anyone caches.
    None,
    /// An inode's time of last access.
    Atime(u64),
    /// An inode's attributes (or extended attributes).
    Attr(u64),
    /// An inode's attributes, in a way that the kernel does not foresee: it is to ask for them again.
    Unforeseen(u64),
    /// An inode's mode: if it is a directory, somebody may not search it any more.
    Closed(u64),
    /// An inode's access control list.
    Acl(u64),
    /// Names, boxed because only mutations pay for them.
    Names(Box<Names>),
}

/// Names that a request makes, removes or replaces.
#[derive(Debug)]
pub(crate) struct Names {
    first: (u64, Box<OsStr>),
    second: Option<(u64, Box<OsStr>)>,
    /// Inodes that are not found by the names, and change: how many names they have, or when that was.
    children: [Option<u64>; 2],
    /// A directory may be moved from one to the other.
    moves_directory: bool,
}

impl Effect {
    /// One name in `parent` changes.
    pub(crate) fn name(parent: u64, name: &OsStr) -> Self {
        Self::Names(Box::new(Names {
            first: (parent, name.into()),
            second: None,
            children: [None; 2],
            moves_directory: false,
        }))
    }

    /// Two names change, and what is moved, which may be a directory.
    pub(crate) fn names(
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        moved: [Option<u64>; 2],
        directory: bool,
    ) -> Self {
        Self::Names(Box::new(Names {
            first: (parent, name.into()),
            second: Some((newparent, newname.into())),
            children: moved,
            moves_directory: directory && parent != newparent,
        }))
    }

    /// A name for the inode `child` is added.
    pub(crate) fn link(parent: u64, name: &OsStr, child: u64) -> Self {
        Self::Names(Box::new(Names {
            first: (parent, name.into()),
            second: None,
            children: [Some(child), None],
            moves_directory: false,
        }))
    }

    fn run(self, coherence: &Coherence) {
        if let Self::Unforeseen(ino) | Self::Acl(ino) = self {
            coherence.forget_attributes_of(ino);
        }
        if matches!(self, Self::None) {
            return;
        }
        let Some(cache) = coherence.cache() else { return };
        match self {
            Self::None => {}
            Self::Atime(ino) => cache.atime(ino),
            Self::Unforeseen(ino) => cache.attr(ino),
            Self::Acl(ino) => {
                cache.attr(ino);
                cache.closed(Some(ino));
            }
            Self::Closed(ino) => {
                cache.attr(ino);
                cache.closed(Some(ino));
                coherence.kernel_changed_attr(ino);
            }
            Self::Attr(ino) => {
                cache.attr(ino);
                coherence.kernel_changed_attr(ino);
            }
            Self::Names(names) => {
                for (parent, name) in std::iter::once(&names.first).chain(&names.second) {
                    cache.entry(*parent, name);
                    cache.attr(*parent);
                    coherence.kernel_changed_attr(*parent);
                    if names.moves_directory {
                        // The two may be exchanged.
                        cache.moved_to(*parent);
                    }
                }
                for child in names.children.into_iter().flatten() {
                    cache.attr(child);
                    coherence.kernel_changed_attr(child);
                    coherence.kernel_moved(child);
                }
            }
        }
    }
}

/// The hooks of one reply. The effect runs exactly once, after the file system has acted and before the
/// kernel hears of it: when the reply is sent, or when it is dropped unanswered.
#[derive(Debug)]
pub(crate) struct Hooks {
    pub(crate) coherence: Arc<Coherence>,
    /// The inode that the request is about.
    pub(crate) ino: u64,
    /// What [`Coherence::mark`] said when the request arrived.
    pub(crate) mark: u64,
    /// The name that the request asks for or makes.
    pub(crate) key: Option<Key>,
    /// The kernel keeps the version of the attributes that it asks for by the request.
    pub(crate) versioned: bool,
    /// What can be done with a file that the request opens.
    pub(crate) access: Access,
    /// Whether the request opens a directory.
    pub(crate) directory: bool,
    /// Whether the kernel must ask each time that a directory is opened, because of a policy.
    pub(crate) asks_always: bool,
    /// Whether a file that is there already is an error.
    pub(crate) exclusive: bool,
    /// What the policy says of a name that the kernel is told of.
    naming: Option<Naming>,
    /// The same, if it is told of all names in a directory.
    guard: Option<Arc<Guard>>,
    effect: Effect,
}

impl Hooks {
    pub(crate) fn new(coherence: Arc<Coherence>, ino: u64, effect: Effect) -> Self {
        let mark = coherence.mark();
        let access = Access::default();
        Self {
            coherence,
            ino,
            mark,
            key: None,
            versioned: true,
            access,
            directory: false,
            asks_always: false,
            exclusive: false,
            naming: None,
            guard: None,
            effect,
        }
    }

    /// The answer is about this name.
    pub(crate) fn names(mut self, parent: u64, name: &OsStr) -> Self {
        self.key = Some(self.coherence.key(parent, name));
        self
    }

    /// The kernel takes the attributes in the answer as they are (`fuse_do_setattr`, `create_new_entry`).
    pub(crate) fn unversioned(mut self) -> Self {
        self.versioned = false;
        self
    }

    /// Notes the flags that a file is opened with.
    pub(crate) fn opens(mut self, flags: i32) -> Self {
        self.access = Access::of(flags);
        self.exclusive = flags & libc::O_EXCL != 0;
        self
    }

    /// A directory is opened; `asks_always`: the kernel must ask each time.
    pub(crate) fn opens_directory(mut self, asks_always: bool) -> Self {
        self.directory = true;
        self.asks_always = asks_always;
        self
    }

    /// The lifetimes to send with the entry that the request asks for, attributes first; counts the kernel's reference.
    pub(crate) fn entry(
        &self,
        attr: &FileAttr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> (Duration, Duration) {
        self.told(self.key, self.naming.as_ref(), attr, attr_ttl, entry_ttl)
    }

    /// As [`entry`](Self::entry), for one of the names in the directory that the request lists.
    pub(crate) fn listed(&self, name: &OsStr, attr: &FileAttr, ttl: Duration) -> (Duration, Duration) {
        let key = self.coherence.key(self.ino, name);
        let naming = self.guard.as_ref().map(|guard| guard.naming(self.ino, name));
        self.told(Some(key), naming.as_ref(), attr, ttl, ttl)
    }

    fn told(
        &self,
        key: Option<Key>,
        naming: Option<&Naming>,
        attr: &FileAttr,
        attr_ttl: Duration,
        entry_ttl: Duration,
    ) -> (Duration, Duration) {
        let entry_ttl = naming.map_or(entry_ttl, |naming| naming.lifetime(entry_ttl));
        let answer =
            Answer { attr, attr_ttl, entry_ttl, versioned: self.versioned, created: self.access.writes };
        let lifetimes = self.coherence.entry(key, &answer, self.mark);
        if let Some(naming) = naming {
            naming.tell(attr);
        }
        lifetimes
    }

    /// The lifetime to send with attributes.
    pub(crate) fn attr(&self, attr: &FileAttr, ttl: Duration) -> Duration {
        if !self.versioned {
            return Duration::ZERO;
        }
        self.coherence.attr(self.ino, attr, ttl, self.mark)
    }

    /// The reply tells the kernel of a name.
    pub(crate) fn tells(mut self, naming: Option<Naming>) -> Self {
        self.naming = naming;
        self
    }

    /// The reply tells the kernel of the names in the directory that it is about.
    pub(crate) fn lists(mut self, guard: Option<&Arc<Guard>>) -> Self {
        self.guard = guard.cloned();
        self
    }

    /// Runs the effect unless that has happened. Failed requests run it too: a file system over a network
    /// may have acted before it failed.
    pub(crate) fn settle(&mut self) {
        std::mem::replace(&mut self.effect, Effect::None).run(&self.coherence);
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.settle();
    }
}
