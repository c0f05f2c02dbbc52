//! The threads that do what was deferred.
//!
//! While unlinks keep coming, who acknowledges them and who asks for them are to have the CPUs; so most workers begin when none has come
//! for a moment, when there is no room for more, or when somebody waits. Each has a directory to itself, if there are enough: the kernel removes one name
//! of a directory at a time.

#![deny(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Directory, Shared};

/// Without further unlinks for so long, the workers begin. A shorter pause may be one of the machine's: two workers that begin for its sake would be in the
/// way of both who ask and who answer.
const QUIET: Duration = Duration::from_millis(4);
/// So few within that time are none.
const FEW: u64 = 100;
/// Nor are so few while a worker removes as many as it does between two looks ([`LOOKS_AFTER`]).
const FEW_MEANWHILE: u64 = 4;
/// After so many records a worker looks whether unlinks come again.
pub(super) const LOOKS_AFTER: usize = 32;
/// Most workers.
const WORKERS_MAX: usize = 8;
/// When there was no room, unlinks wait until one of so many parts of what is in use is free.
const RELIEF: u32 = 16;
/// Among so many directories that were last begun, one is looked for that has got a further block.
const RECENT: usize = 8;

/// Blocks of one directory that nobody goes through yet. A directory that is gone has had all of them done.
struct Task {
    directory: Weak<Directory>,
    blocks: VecDeque<u32>,
}

/// What is to be done.
#[derive(Default)]
pub(super) struct Queue {
    tasks: VecDeque<Task>,
    /// All workers may go on.
    released: bool,
    /// How many wait for everything to be done.
    urgent: usize,
    /// So many blocks are to be given back until there is room again.
    lacking: u32,
    /// How often there was.
    reliefs: u64,
    /// What had been acknowledged at the last look.
    looked: u64,
    stopping: bool,
}

/// Starts the workers.
pub(super) fn start(shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = cpus.min(WORKERS_MAX);
    // The first two CPUs are for those who ask and answer.
    let free = cpus.saturating_sub(2);
    let worker = |index: usize| {
        let shared = Arc::clone(shared);
        let run = move || shared.work(index, index < free);
        let worker = std::thread::Builder::new().name("unlinks".to_owned()).spawn(run);
        worker.inspect_err(|error| tracing::warn!("a thread less removes files: {error}")).ok()
    };
    (0..workers).filter_map(worker).collect()
}

impl Shared {
    fn work(&self, index: usize, always: bool) {
        loop {
            let task = {
                let mut queue = self.queue.lock();
                loop {
                    let may = always || queue.released || queue.urgent > 0 || queue.lacking > 0;
                    if may && let Some(task) = queue.tasks.pop_front() {
                        break task;
                    }
                    if queue.stopping {
                        return;
                    }
                    if queue.tasks.is_empty() || index > 0 {
                        queue.released &= !queue.tasks.is_empty();
                        self.work.wait(&mut queue);
                        continue;
                    }
                    // The first one looks whether unlinks still come.
                    if !self.work.wait_for(&mut queue, QUIET).timed_out() {
                        continue;
                    }
                    let acknowledged = self.acknowledged.load(Ordering::Relaxed);
                    if acknowledged - std::mem::replace(&mut queue.looked, acknowledged) <= FEW {
                        queue.released = true;
                        self.work.notify_all();
                    }
                }
            };
            let mut before = self.acknowledged.load(Ordering::Relaxed);
            let pauses = || {
                let acknowledged = self.acknowledged.load(Ordering::Relaxed);
                let come = acknowledged - std::mem::replace(&mut before, acknowledged);
                if always || come <= FEW_MEANWHILE {
                    return false;
                }
                let mut queue = self.queue.lock();
                let pauses = queue.urgent == 0 && queue.lacking == 0;
                queue.released &= !pauses;
                pauses
            };
            self.advance(task, pauses);
        }
    }

    /// Goes through blocks until `pauses`; those that are left are the next.
    fn advance(&self, mut task: Task, mut pauses: impl FnMut() -> bool) {
        let Some(directory) = task.directory.upgrade() else { return };
        while let Some(block) = task.blocks.pop_front() {
            if !self.go_through(block, &directory, &mut pauses) {
                task.blocks.push_front(block);
                self.queue.lock().tasks.push_front(task);
                // The others may have seen nothing to be done.
                self.work.notify_all();
                return;
            }
        }
    }

    /// A block has been begun.
    pub(super) fn enqueue(&self, block: u32, directory: &Arc<Directory>) {
        let mut queue = self.queue.lock();
        let first = queue.tasks.is_empty();
        let mut recent = queue.tasks.iter_mut().rev().take(RECENT);
        match recent.find(|task| std::ptr::eq(task.directory.as_ptr(), Arc::as_ptr(directory))) {
            Some(task) => task.blocks.push_back(block),
            None => {
                queue.tasks.push_back(Task { directory: Arc::downgrade(directory), blocks: [block].into() });
            }
        }
        drop(queue);
        if first {
            self.work.notify_all();
        }
    }

    /// A block has been given back.
    pub(super) fn has_freed(&self) {
        let mut queue = self.queue.lock();
        if queue.lacking > 0 {
            queue.lacking -= 1;
            if queue.lacking == 0 {
                queue.reliefs += 1;
                self.idle.notify_all();
            }
        }
    }

    /// Waits until a part of what is in use is free again; whether something may be.
    pub(super) fn await_room(&self) -> bool {
        let mut queue = self.queue.lock();
        if self.waiting.load(Ordering::SeqCst) == 0 {
            // Nothing that will be given back: no memory is left.
            return false;
        }
        if queue.lacking == 0 {
            queue.lacking = self.journal.used_blocks().div_ceil(RELIEF).max(1);
        }
        let before = queue.reliefs;
        self.work.notify_all();
        while queue.reliefs == before && self.waiting.load(Ordering::SeqCst) > 0 {
            self.idle.wait_for(&mut queue, Duration::from_millis(100));
        }
        if queue.reliefs == before {
            queue.lacking = 0;
        }
        !queue.stopping
    }

    /// Everything that waits is done.
    pub(super) fn settle_all(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        queue.urgent += 1;
        self.work.notify_all();
        while self.waiting.load(Ordering::SeqCst) > 0 {
            match queue.tasks.pop_front() {
                Some(task) => {
                    drop(queue);
                    self.advance(task, || false);
                    queue = self.queue.lock();
                }
                None => {
                    self.idle.wait_for(&mut queue, Duration::from_millis(10));
                }
            }
        }
        queue.urgent -= 1;
        drop(queue);
        self.journal.shrink();
    }

    /// The workers end.
    pub(super) fn stop(&self) {
        self.queue.lock().stopping = true;
        self.work.notify_all();
        self.idle.notify_all();
    }
}
