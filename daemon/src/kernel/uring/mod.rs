//! FUSE over io_uring (Linux 6.14, `fs/fuse/dev_uring.c`): the kernel puts a request into memory of this process and takes
//! the answer from there; one system call hands over an answer and waits for the next request.
//!
//! There is a queue for each CPU, which gets what programs ask for on that CPU. Each queue has threads that stay on its CPU,
//! so that handing over a request wakes nobody elsewhere. A thread has a ring of its own with one entry in it, and
//! is not asked for anything while it serves a request; the kernel takes the entry that came back last
//! (`fuse_uring_ent_avail`), so a thread that is at it goes on and the others sleep. Whenever all threads of a queue are at it, another is
//! started, so that neither a file system that takes its time nor a lock that is waited for keeps others waiting. Linux 6.18 does not
//! give a request that waits already to an entry that is registered then (`fuse_uring_do_register`), only to one whose request was
//! answered; so a new thread first has the kernel send a request that means nothing ([`nudge`]), and answers it.
//!
//! Requests that no program waits for (`FORGET`), `INTERRUPT`, and what this process tells the kernel go by the device, which fuser
//! reads in any case.

#![deny(unsafe_code)]

pub(crate) mod abi;
mod dispatch;
pub(crate) mod entry;
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{InitFlags, KernelConfig, PollHandle};
use log::{debug, error, info, warn};
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use self::entry::{Entry, Message};
use self::sys::Ring;
use super::operations::Operations;
use crate::filesystem::Filesystem;

pub(crate) use self::sys::Registered;

/// Where a session's rings live while it runs.
pub(crate) type UringSlot = Arc<Mutex<Option<Box<dyn Rings>>>>;

/// The longest request or answer, in bytes: what the kernel sends at most unless told otherwise (`FUSE_DEFAULT_MAX_PAGES_LIMIT`).
const LONGEST: u32 = 1 << 20;
/// The most threads of one queue.
const THREADS: usize = 1024;
/// How long the end of a session waits for requests that are being served.
const LAST_REQUEST_WAIT: Duration = Duration::from_secs(10);

/// How the kernel's requests are to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// Through rings if the kernel offers them.
    Auto,
    /// Through the device.
    #[default]
    Classic,
    /// Through rings; without them there is no session.
    Uring,
}

/// What the kernel was told when it was answered that there will be rings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    /// How much an entry must hold besides its header, in bytes.
    payload: usize,
}

/// Decides on the transport, and prepares the answer to `INIT`.
///
/// # Errors
/// Rings are wanted, and cannot be had.
pub(crate) fn agree(transport: Transport, config: &mut KernelConfig) -> io::Result<Option<Agreed>> {
    let must = match transport {
        Transport::Classic => return Ok(None),
        Transport::Auto => false,
        Transport::Uring => true,
    };
    let obstacle = if config.capabilities().contains(InitFlags::FUSE_OVER_IO_URING) {
        Ring::probe().err().map(|error| format!("io_uring: {error}"))
    } else {
        Some("the kernel does not offer FUSE over io_uring (/sys/module/fuse/parameters/enable_uring)".into())
    };
    if let Some(obstacle) = obstacle {
        debug!("requests come through the device: {obstacle}");
        return if must { Err(io::Error::new(io::ErrorKind::Unsupported, obstacle)) } else { Ok(None) };
    }
    // What is larger than the kernel sends is not asked for, as each entry must hold it.
    let wanted = config.set_max_write(LONGEST).unwrap_or(LONGEST);
    let max_write = wanted.min(LONGEST);
    let _ = config.set_max_write(max_write);
    // `max_pages` is the larger of both.
    let readahead = config.set_max_readahead(1).unwrap_or(LONGEST);
    let _ = config.set_max_readahead(readahead);
    let payload = max_write.max(readahead).max(8192).next_multiple_of(4096) as usize;
    match config.add_capabilities(InitFlags::FUSE_OVER_IO_URING) {
        Ok(()) => Ok(Some(Agreed { payload })),
        Err(_) => Ok(None),
    }
}

/// Tells the kernel that something it polls is ready (`FUSE_NOTIFY_POLL`).
///
/// # Errors
/// The kernel's; `ENOTCONN` if the session has ended.
pub(crate) fn notify_poll(device: &Weak<OwnedFd>, handle: PollHandle) -> io::Result<()> {
    let device = device.upgrade().ok_or(io::ErrorKind::NotConnected)?;
    let mut message = [0; 24];
    message[0..4].copy_from_slice(&24u32.to_ne_bytes());
    message[4..8].copy_from_slice(&1i32.to_ne_bytes());
    message[16..24].copy_from_slice(&handle.0.to_ne_bytes());
    rustix::io::write(device.as_fd(), &message)?;
    Ok(())
}

/// Has the kernel send a request that means nothing, `NOTIFY_REPLY`, on the calling thread's CPU: it asks for nothing of a file's pages
/// (`FUSE_NOTIFY_RETRIEVE`), which no file system needs to know of.
///
/// # Errors
/// The kernel's: `ENOENT` if it does not know the node id, `EINVAL` if that is no regular file's; `ENODEV` or `ENOTCONN` once
/// the session has ended.
fn nudge(device: &OwnedFd, node: u64) -> io::Result<()> {
    const RETRIEVE: i32 = 5;
    /// Even, as that of any request, and out of reach of the kernel's own numbers, which count up from 0.
    const UNIQUE: u64 = 1 << 63;
    let mut message = [0; 48];
    message[0..4].copy_from_slice(&48u32.to_ne_bytes());
    message[4..8].copy_from_slice(&RETRIEVE.to_ne_bytes());
    message[16..24].copy_from_slice(&UNIQUE.to_ne_bytes());
    message[24..32].copy_from_slice(&node.to_ne_bytes());
    rustix::io::write(device.as_fd(), &message)?;
    Ok(())
}

/// Node ids of files that were used last, which the kernel knows, most probably.
#[derive(Debug, Default)]
struct Used {
    nodes: [AtomicU64; USED],
    count: AtomicUsize,
}

/// How many node ids [`Used`] remembers.
const USED: usize = 8;

impl Used {
    /// Notes what a request is about, if that is a file in most cases.
    fn note(&self, header: &abi::InHeader) {
        use abi::opcode::{OPEN, SETLK, SETLKW};
        if matches!(header.opcode, OPEN | SETLK | SETLKW) {
            let place = self.count.fetch_add(1, Ordering::Relaxed) % USED;
            self.nodes[place].store(header.nodeid, Ordering::Relaxed);
        }
    }

    fn each(&self) -> impl Iterator<Item = u64> {
        let last = self.count.load(Ordering::Relaxed);
        let places = (1..=USED).map(move |back| last.wrapping_sub(back) % USED);
        places.map(|place| self.nodes[place].load(Ordering::Relaxed)).filter(|node| *node != 0)
    }
}

/// The rings of a session, whatever its file system. Dropping them ends their threads and waits for them.
pub(crate) trait Rings: Send {}

/// One CPU's queue.
#[derive(Debug, Default)]
struct Queue {
    /// Threads that wait for a request.
    idle: AtomicUsize,
    /// Threads that there are.
    threads: AtomicUsize,
    /// A thread is being started.
    growing: AtomicBool,
    used: Used,
}

/// The threads that have not ended.
#[derive(Debug, Default)]
struct Living {
    count: Mutex<usize>,
    fewer: Condvar,
}

struct Shared<FS: Filesystem> {
    operations: Arc<Operations<FS>>,
    device: Arc<OwnedFd>,
    /// Readable once the threads shall end.
    quit: OwnedFd,
    payload: usize,
    queues: Box<[Queue]>,
    /// Asks for another thread of a queue. The thread that starts them has never acted as anybody else.
    wanted: Mutex<mpsc::Sender<u16>>,
    /// Those to be woken at the end.
    entries: Mutex<Vec<Weak<Entry>>>,
    living: Arc<Living>,
}

struct Server<FS: Filesystem> {
    shared: Option<Arc<Shared<FS>>>,
}

/// Starts serving the kernel's requests through rings.
///
/// # Errors
/// The kernel refuses; it uses the device then.
pub(crate) fn start<FS: Filesystem>(
    operations: Arc<Operations<FS>>,
    device: OwnedFd,
    agreed: Agreed,
) -> io::Result<Box<dyn Rings>> {
    let device = Arc::new(device);
    let started = try_start(operations, &device, agreed);
    if started.is_err() {
        // Or the kernel would wait for the rings, and programs for the kernel (`fuse_block_alloc`).
        match Ring::new(device.as_fd(), device.as_fd()) {
            Ok(mut ring) => ring.give_up(),
            Err(error) => error!("the kernel waits for rings that cannot be had: {error}"),
        }
    }
    started
}

fn try_start<FS: Filesystem>(
    operations: Arc<Operations<FS>>,
    device: &Arc<OwnedFd>,
    agreed: Agreed,
) -> io::Result<Box<dyn Rings>> {
    let cpus = possible_cpus()?;
    let (wanted, asked) = mpsc::channel();
    let shared = Arc::new(Shared {
        operations,
        device: Arc::clone(device),
        quit: eventfd(0, EventfdFlags::CLOEXEC)?,
        payload: agreed.payload,
        queues: (0..cpus).map(|_| Queue::default()).collect(),
        wanted: Mutex::new(wanted),
        entries: Mutex::default(),
        living: Arc::default(),
    });
    let server = Server { shared: Some(Arc::clone(&shared)) };
    let (ready, registered) = mpsc::channel();
    for queue in 0..cpus {
        Shared::spawn(&shared, queue, Some(ready.clone()))?;
    }
    drop(ready);
    // Each says how it went, unless it panics.
    let registered: Vec<io::Result<()>> = registered.iter().collect();
    registered.into_iter().collect::<io::Result<Vec<()>>>()?;
    let weak = Arc::downgrade(&shared);
    thread::Builder::new().name("finesse-uring".to_owned()).spawn(move || {
        // Until the last who could ask is gone.
        for queue in asked {
            let Some(shared) = weak.upgrade() else { break };
            if let Err(error) = Shared::spawn(&shared, queue, None) {
                warn!("no further thread for CPU {queue}'s requests: {error}");
                shared.queues[usize::from(queue)].growing.store(false, Ordering::Release);
            }
        }
    })?;
    info!("requests come through rings of {cpus} CPUs");
    Ok(Box::new(server))
}

/// How many CPUs there can be: the kernel has a queue for each (`num_possible_cpus`).
fn possible_cpus() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    cpus_in(&text).ok_or_else(|| io::Error::other(format!("/sys/devices/system/cpu/possible: {text:?}")))
}

/// How many numbers a list like `0-3,8` has.
fn cpus_in(list: &str) -> Option<u16> {
    list.trim().split(',').try_fold(0u16, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

impl<FS: Filesystem> Shared<FS> {
    /// Starts a thread of a queue, which says whether its entry is registered.
    fn spawn(this: &Arc<Self>, queue: u16, ready: Option<mpsc::Sender<io::Result<()>>>) -> io::Result<()> {
        let (shared, living) = (Arc::clone(this), Arc::clone(&this.living));
        *living.count.lock() += 1;
        let body = move || {
            let living = Arc::clone(&shared.living);
            if let Err(error) = catch_unwind(AssertUnwindSafe(|| shared.work(queue, ready))).unwrap_or(Ok(()))
            {
                warn!("a ring of CPU {queue}: {error}");
            }
            drop(shared);
            leave(&living);
        };
        let spawned = thread::Builder::new().name(format!("finesse-cpu{queue}")).spawn(body);
        spawned.map(drop).inspect_err(|_| leave(&living))
    }

    fn work(&self, number: u16, ready: Option<mpsc::Sender<io::Result<()>>>) -> io::Result<()> {
        let queue = &self.queues[usize::from(number)];
        let registered = sys::pin(number).and_then(|()| self.register(number));
        if registered.is_ok() {
            queue.threads.fetch_add(1, Ordering::Relaxed);
            queue.idle.fetch_add(1, Ordering::AcqRel);
        }
        match ready {
            Some(ready) => {
                let told = registered.as_ref().map(drop);
                // Whoever started the session waits for it.
                let _ = ready.send(told.map_err(|error| io::Error::new(error.kind(), error.to_string())));
            }
            None => {
                // Before the first request comes, with which the next thread may have to be asked for.
                queue.growing.store(false, Ordering::Release);
                if registered.is_ok() && !queue.used.each().any(|node| nudge(&self.device, node).is_ok()) {
                    debug!("CPU {number}: what waits goes on waiting until a request is answered");
                }
            }
        }
        // The entry goes last: the kernel may use its memory while there is the ring.
        let (entry, mut ring) = registered?;
        let mut message = Message::new();
        loop {
            if let Err(error) = ring.next() {
                debug!("CPU {number}: {error}");
                return match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::NotConnected | io::ErrorKind::ConnectionAborted, _)
                    | (_, Some(libc::ECANCELED)) => Ok(()),
                    _ => Err(error),
                };
            }
            entry.receive(&mut message, dispatch::stays);
            queue.used.note(&message.header);
            let idle = queue.idle.fetch_sub(1, Ordering::AcqRel) - 1;
            // What means nothing keeps no thread.
            if idle == 0 && message.header.opcode != abi::opcode::NOTIFY_REPLY {
                self.grow(number, queue);
            }
            let unique = message.header.unique;
            let served =
                catch_unwind(AssertUnwindSafe(|| dispatch::serve(&self.operations, &entry, &message)));
            if served.is_err() {
                error!("a request made the file system panic; it was answered with EIO");
            }
            if !entry.finish(unique) {
                return Ok(());
            }
            queue.idle.fetch_add(1, Ordering::AcqRel);
            ring.commit(number, unique);
        }
    }

    fn register(&self, number: u16) -> io::Result<(Arc<Entry>, Ring)> {
        let entry = Arc::new(Entry::new(self.payload, Arc::downgrade(&self.device))?);
        let mut ring = Ring::new(self.device.as_fd(), self.quit.as_fd())?;
        ring.register(number, entry.area())?;
        self.entries.lock().push(Arc::downgrade(&entry));
        Ok((entry, ring))
    }

    /// Nobody waits for this queue's requests: has another thread started.
    #[cold]
    fn grow(&self, number: u16, queue: &Queue) {
        if queue.threads.load(Ordering::Relaxed) >= THREADS {
            warn!("CPU {number}: {THREADS} requests are being served; the next one waits");
            return;
        }
        if !queue.growing.swap(true, Ordering::AcqRel) {
            // Fails at the end of the session, when there will be no further request.
            let _ = self.wanted.lock().send(number);
        }
    }
}

/// A thread has ended, or was not started.
fn leave(living: &Living) {
    *living.count.lock() -= 1;
    living.fewer.notify_all();
}

impl<FS: Filesystem> Rings for Server<FS> {}

impl<FS: Filesystem> Drop for Server<FS> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else { return };
        let living = Arc::clone(&shared.living);
        if let Err(error) = rustix::io::write(&shared.quit, &1u64.to_ne_bytes()) {
            warn!("threads of the rings cannot be told of the end: {error}");
        }
        for entry in shared.entries.lock().drain(..).filter_map(|entry| entry.upgrade()) {
            entry.end();
        }
        drop(shared);
        let deadline = Instant::now() + LAST_REQUEST_WAIT;
        let mut count = living.count.lock();
        while *count > 0 {
            if living.fewer.wait_until(&mut count, deadline).timed_out() {
                warn!("{} requests are still being served after the end of the session", *count);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_in_any_list() {
        for (list, count) in [("0\n", Some(1)), ("0-3\n", Some(4)), ("0-3,8,10-11", Some(7)), ("", None)] {
            assert_eq!(cpus_in(list), count, "{list:?}");
        }
        assert!(possible_cpus().unwrap() > 0);
    }
}
