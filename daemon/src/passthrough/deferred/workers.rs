//! The threads that do what was deferred.
//!
//! While unlinks keep coming, who acknowledges them and who asks for them are to have the CPUs; so most workers begin when none has come
//! for a moment, when the journal is full, or when somebody waits.

#![deny(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Directory, Shared};

/// Without further unlinks for so long, the workers begin.
const QUIET: Duration = Duration::from_millis(1);
/// So few within that time are none.
const FEW: u64 = 50;
/// Nor are so few while a worker removes as many as it does between two looks ([`LOOKS_AFTER`]).
const FEW_MEANWHILE: u64 = 4;
/// After so many records a worker looks whether unlinks come again.
pub(super) const LOOKS_AFTER: usize = 32;
/// Most workers.
const WORKERS_MAX: usize = 8;
/// When the journal was full, unlinks wait until one of so many blocks is free.
const RELIEF: u32 = 16;

/// What is to be done.
#[derive(Default)]
pub(super) struct Queue {
    blocks: VecDeque<(u32, Arc<Directory>)>,
    /// All workers may go on.
    released: bool,
    /// How many wait for everything to be done.
    urgent: usize,
    /// No block is left.
    full: bool,
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
            let (block, directory) = {
                let mut queue = self.queue.lock();
                loop {
                    let may = always || queue.released || queue.urgent > 0 || queue.full;
                    if may && let Some(job) = queue.blocks.pop_front() {
                        break job;
                    }
                    if queue.stopping {
                        return;
                    }
                    if queue.blocks.is_empty() || index > 0 {
                        queue.released &= !queue.blocks.is_empty();
                        self.work.wait(&mut queue);
                        continue;
                    }
                    // The first one looks whether unlinks still come.
                    self.work.wait_for(&mut queue, QUIET);
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
                let pauses = queue.urgent == 0 && !queue.full;
                queue.released &= !pauses;
                pauses
            };
            if !self.go_through(block, &directory, pauses) {
                self.queue.lock().blocks.push_front((block, directory));
            }
        }
    }

    /// A block has been begun.
    pub(super) fn enqueue(&self, block: u32, directory: &Arc<Directory>) {
        let mut queue = self.queue.lock();
        queue.blocks.push_back((block, Arc::clone(directory)));
        let first = queue.blocks.len() == 1;
        drop(queue);
        if first {
            self.work.notify_all();
        }
    }

    /// A block has been given back.
    pub(super) fn has_freed(&self) {
        let mut queue = self.queue.lock();
        if queue.full && self.journal.free_blocks() >= self.journal.most_blocks() / RELIEF {
            queue.full = false;
            self.idle.notify_all();
        }
    }

    /// Waits until the journal has room again; whether it has.
    pub(super) fn await_room(&self) -> bool {
        let mut queue = self.queue.lock();
        if self.waiting.load(Ordering::SeqCst) == 0 {
            // Nothing that will be given back: no memory is left.
            return false;
        }
        queue.full = true;
        self.work.notify_all();
        while queue.full && self.waiting.load(Ordering::SeqCst) > 0 {
            self.idle.wait_for(&mut queue, Duration::from_millis(100));
        }
        queue.full = false;
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
            match queue.blocks.pop_front() {
                Some((block, directory)) => {
                    drop(queue);
                    self.go_through(block, &directory, || false);
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
