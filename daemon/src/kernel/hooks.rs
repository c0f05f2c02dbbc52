//! What must happen when a reply goes to the kernel, beyond sending it.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::coherence::{Access, Coherence};

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
    /// Names, boxed because only mutations pay for them.
    Names(Box<Names>),
}

/// Names that a request makes, removes or replaces.
#[derive(Debug)]
pub(crate) struct Names {
    first: (u64, Box<OsStr>),
    second: Option<(u64, Box<OsStr>)>,
    /// An inode whose link count changes without being reached by one of the names.
    child: Option<u64>,
}

impl Effect {
    /// One name in `parent` changes.
    pub(crate) fn name(parent: u64, name: &OsStr) -> Self {
        Self::Names(Box::new(Names { first: (parent, name.into()), second: None, child: None }))
    }

    /// Two names change.
    pub(crate) fn names(parent: u64, name: &OsStr, newparent: u64, newname: &OsStr) -> Self {
        Self::Names(Box::new(Names {
            first: (parent, name.into()),
            second: Some((newparent, newname.into())),
            child: None,
        }))
    }

    /// A name for the inode `child` is added.
    pub(crate) fn link(parent: u64, name: &OsStr, child: u64) -> Self {
        Self::Names(Box::new(Names { first: (parent, name.into()), second: None, child: Some(child) }))
    }

    fn run(self, coherence: &Coherence) {
        if let Self::Unforeseen(ino) = self {
            coherence.forget_attributes_of(ino);
        }
        let Some(cache) = coherence.cache() else { return };
        match self {
            Self::None => {}
            Self::Atime(ino) => cache.atime(ino),
            Self::Unforeseen(ino) => cache.attr(ino),
            Self::Attr(ino) => cache.attr(ino),
            Self::Names(names) => {
                for (parent, name) in std::iter::once(&names.first).chain(&names.second) {
                    cache.entry(*parent, name);
                    cache.attr(*parent);
                }
                if let Some(child) = names.child {
                    cache.attr(child);
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
    /// What can be done with a file that the request opens.
    pub(crate) access: Access,
    /// Whether a file that is there already is an error.
    pub(crate) exclusive: bool,
    effect: Effect,
}

impl Hooks {
    pub(crate) fn new(coherence: Arc<Coherence>, ino: u64, effect: Effect) -> Self {
        Self { coherence, ino, access: Access::default(), exclusive: false, effect }
    }

    /// Notes the flags that a file is opened with.
    pub(crate) fn opens(mut self, flags: i32) -> Self {
        self.access = Access::of(flags);
        self.exclusive = flags & libc::O_EXCL != 0;
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
