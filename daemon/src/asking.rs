//! Calling the file system: from both roads at once, or by turns.

use std::ops::Deref;

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

/// A file system that both roads call.
pub(crate) struct Called<FS> {
    fs: FS,
    /// Held while a method is called, if no other may be called meanwhile.
    turns: Option<ReentrantMutex<()>>,
}

impl<FS> Called<FS> {
    /// `by_turns`: only one method at a time.
    pub(crate) fn new(fs: FS, by_turns: bool) -> Self {
        Self { fs, turns: by_turns.then(|| ReentrantMutex::new(())) }
    }

    /// The file system says that its methods may be called at the same time.
    pub(crate) fn call_at_once(&mut self) {
        self.turns = None;
    }

    /// The file system, for one call. What it answers is not to be waited for before this is dropped: it may answer from another
    /// method.
    pub(crate) fn ask(&self) -> Asking<'_, FS> {
        // Again by the same thread if a method answers, and the answer makes inodes be forgotten.
        Asking { fs: &self.fs, _turn: self.turns.as_ref().map(ReentrantMutex::lock) }
    }

    /// For somebody who has it alone.
    pub(crate) fn get_mut(&mut self) -> &mut FS {
        &mut self.fs
    }
}

/// The right to call a method.
pub(crate) struct Asking<'a, FS> {
    fs: &'a FS,
    _turn: Option<ReentrantMutexGuard<'a, ()>>,
}

impl<FS> Deref for Asking<'_, FS> {
    type Target = FS;

    fn deref(&self) -> &FS {
        self.fs
    }
}
