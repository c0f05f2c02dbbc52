//! What a client has open, by number.

use std::sync::Arc;
use std::thread::JoinHandle;

use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::engine::directories::OpenDirectory;
use crate::engine::files::OpenFile;

/// Most files and directories that one client may have open; more are opened by the kernel, whose limits hold there.
const OPEN_MAX: usize = 65_536;

/// Something that a client has open.
#[derive(Clone)]
pub(crate) enum Handle {
    /// A directory that is being listed.
    Directory(Arc<OpenDirectory>),
    /// A regular file.
    File(Arc<OpenFile>),
}

#[derive(Default)]
struct Table {
    open: HashMap<u32, Handle>,
    next: u32,
}

/// The table of one client's open files and directories.
#[derive(Default)]
pub(crate) struct Handles(Mutex<Table>);

impl Handles {
    /// Whether another one may be opened.
    pub(crate) fn has_room(&self) -> bool {
        self.0.lock().open.len() < OPEN_MAX
    }

    /// Gives a number to what was opened. A number is used again as late as possible: a client that closes one twice closes
    /// nothing else.
    pub(crate) fn insert(&self, handle: Handle) -> u32 {
        let mut table = self.0.lock();
        loop {
            table.next = table.next.wrapping_add(1);
            let number = table.next;
            if !table.open.contains_key(&number) {
                table.open.insert(number, handle);
                return number;
            }
        }
    }

    /// What a number stands for.
    pub(crate) fn get(&self, number: u64) -> Option<Handle> {
        self.0.lock().open.get(&u32::try_from(number).ok()?).cloned()
    }

    /// Takes what a number stands for out of the table.
    pub(crate) fn remove(&self, number: u64) -> Option<Handle> {
        self.0.lock().open.remove(&u32::try_from(number).ok()?)
    }

    /// Takes everything out of the table.
    pub(crate) fn take_all(&self) -> Vec<Handle> {
        std::mem::take(&mut self.0.lock().open).into_values().collect()
    }
}

/// Threads that let go of what departed clients had open: a file system may take its time for that.
#[derive(Default)]
pub(crate) struct Closers(Mutex<Vec<JoinHandle<()>>>);

impl Closers {
    /// Runs `close` in a thread of its own.
    pub(crate) fn run(&self, close: impl FnOnce() + Send + 'static) {
        match std::thread::Builder::new().name("ring-closer".into()).spawn(close) {
            Ok(thread) => {
                let mut threads = self.0.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(error) => tracing::error!(%error, "what a client had open could not be released"),
        }
    }

    /// Waits for all of them.
    pub(crate) fn join(&self) {
        let threads = std::mem::take(&mut *self.0.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the file system panicked while a departed client's files were released");
            }
        }
    }
}
