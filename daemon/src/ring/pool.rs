//! The workers.
//!
//! A *hot* peer is one whose bitmap is looked at. While there is traffic at least one worker scans all hot
//! peers, and claims bits one at a time, so any number of workers can scan side by side. When nothing has come
//! for a while the last scanner declares to every peer that nobody looks, and sleeps in epoll until a doorbell
//! rings.
//!
//! *Nobody stalls anybody.* A worker that is inside the file system scans nothing. If that lasts, the
//! supervisor finds submitted work that nobody looks at and wakes, or starts, another worker.
//!
//! *Who else computes.* A worker that scans while others want its CPU uses up the time that it is due, and is missing when
//! work comes. So if workers have to wait for CPUs for too long, they scan only shortly for some time, and sleep: who is woken
//! goes before those who compute.
//!
//! *Where to run.* Two tasks that talk through memory must not share a CPU while another one has nothing to do, but the
//! scheduler likes to put there who wakes whom. A worker that finds itself on its client's CPU moves away. If all are
//! taken, sharing is best: while one of both sleeps the other runs, and nobody else is disturbed, or waited for. So the
//! doorbell is one that tells the scheduler that who rings is about to sleep, and a worker on its client's CPU does not scan
//! in vain.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::ring::peer::{Peer, Workspace};
use crate::ring::sys;

/// Workers that are always there.
const WORKERS: usize = 2;
/// Most workers: as many operations can be stuck in the file system at once before others wait.
const WORKERS_MAX: usize = 512;
/// How long a worker scans in vain before it sleeps, while work usually comes within that time.
const SPIN: Duration = Duration::from_micros(100);
/// The same while work usually comes later: about as long as it takes to fall asleep.
const SHORT_SPIN: Duration = Duration::from_micros(5);
/// Scans in vain before the clock is asked.
const SCANS_PER_LOOK: u32 = 32;
/// Scans in vain after which a peer is no longer looked at, while others are busy.
const QUIET_SCANS: u32 = 1 << 14;
/// How often the supervisor looks for work that nobody looks at.
const SUPERVISION: Duration = Duration::from_millis(1);
/// How long a surplus worker stays without work.
const SURPLUS_STAYS: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Moving to another CPU costs some ten microseconds: not more often than this.
const MOVE_PAUSE: Duration = Duration::from_millis(1);
/// How often a worker that scans looks how long it had to wait for a CPU.
const CROWD_LOOK: Duration = Duration::from_millis(10);
/// Less time on CPUs, or waiting for them, says nothing.
const CROWD_LEAST: Duration = Duration::from_millis(2);
/// Which part of its time a worker waits for a CPU, if others compute: one of so many.
const CROWD_PART: u32 = 4;
/// For how long workers scan only shortly then, at first and at most: twice as long each time.
const CROWDED: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(1280);
/// The token of [`Pool::alarm`].
const ALARM: u64 = 0;

/// Whether others compute on our CPUs, so that it is better to sleep than to scan.
#[derive(Debug, Default)]
struct Crowd(Mutex<Crowding>);

#[derive(Debug, Default)]
struct Crowding {
    until: Option<Instant>,
    lasts: Duration,
}

impl Crowd {
    fn is_there(&self, now: Instant) -> bool {
        self.0.lock().until.is_some_and(|until| now < until)
    }

    /// A worker has run, or waited for a CPU, for so long.
    fn look(&self, now: Instant, ran: Duration, waited: Duration) {
        let mut crowding = self.0.lock();
        if waited * CROWD_PART > ran + waited {
            crowding.lasts = (crowding.lasts * 2).clamp(*CROWDED.start(), *CROWDED.end());
            crowding.until = Some(now + crowding.lasts);
        } else {
            *crowding = Crowding::default();
        }
    }
}

/// How long the calling thread has run, and has waited for a CPU (`/proc/thread-self/schedstat`); `None` where the kernel does
/// not count that.
fn run_times() -> Option<(Duration, Duration)> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let mut times = text.split(' ').map(|time| time.parse().map(Duration::from_nanos));
    Some((times.next()?.ok()?, times.next()?.ok()?))
}

/// How many tasks run or want to, on the whole machine (`/proc/loadavg`).
fn runnable() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').nth(3)?.split('/').next()?.parse().ok()
}

/// The workers and what they look at.
pub(crate) struct Pool {
    doorbells: OwnedFd,
    /// Rung by the supervisor and at the end; a semaphore, so that one ring wakes one worker.
    alarm: OwnedFd,
    peers: RwLock<HashMap<u64, Arc<Peer>>>,
    hot: RwLock<Vec<Arc<Peer>>>,
    hot_changes: AtomicU64,
    /// Workers that scan at this moment, not those inside an operation.
    scanning: AtomicUsize,
    /// Workers that may spin in vain: so many that clients keep CPUs to run on.
    spinners_max: usize,
    /// Of the machine, whoever may use them.
    cpus: usize,
    /// How sure it is that work comes within [`SPIN`]: 0 ..= [`SURE`].
    confidence: AtomicUsize,
    crowd: Crowd,
    threads: Mutex<Vec<JoinHandle<()>>>,
    alive: AtomicUsize,
    parked: AtomicUsize,
    stopping: AtomicBool,
    supervised: Mutex<bool>,
    supervision: Condvar,
}

const SURE: usize = 16;

impl Pool {
    /// Starts the workers.
    pub(crate) fn start() -> std::io::Result<Arc<Self>> {
        let doorbells = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE)?;
        epoll::add(&doorbells, &alarm, EventData::new_u64(ALARM), EventFlags::IN)?;
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        let pool = Arc::new(Self {
            doorbells,
            alarm,
            peers: RwLock::default(),
            hot: RwLock::default(),
            hot_changes: AtomicU64::new(0),
            scanning: AtomicUsize::new(0),
            // On one CPU a spinning worker only keeps its clients from running.
            spinners_max: cpus / 2,
            cpus: sys::cpus(),
            confidence: AtomicUsize::new(SURE),
            crowd: Crowd::default(),
            threads: Mutex::default(),
            alive: AtomicUsize::new(0),
            parked: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            supervised: Mutex::new(false),
            supervision: Condvar::new(),
        });
        for _ in 0..WORKERS {
            pool.hire()?;
        }
        let supervisor = pool.clone();
        let thread = std::thread::Builder::new()
            .name("ring-supervisor".into())
            .spawn(move || supervisor.supervise())?;
        pool.threads.lock().push(thread);
        Ok(pool)
    }

    fn hire(self: &Arc<Self>) -> std::io::Result<()> {
        let pool = self.clone();
        self.alive.fetch_add(1, Ordering::SeqCst);
        let hired =
            std::thread::Builder::new().name("ring-worker".into()).spawn(move || Worker::new(pool).run());
        match hired {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                self.alive.fetch_sub(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Ends all workers; operations that are under way finish first.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        *self.supervised.lock() = true;
        self.supervision.notify_all();
        self.ring_alarm(WORKERS_MAX as u64);
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker of the bypass panicked");
            }
        }
        self.hot.write().clear();
        self.peers.write().clear();
    }

    /// Whether others compute on our CPUs.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowd.is_there(Instant::now())
    }

    fn ring_alarm(&self, times: u64) {
        // Cannot fail but for a full counter, which wakes everybody as well.
        let _ = rustix::io::write(&self.alarm, &times.to_ne_bytes());
    }

    /// Looks after a new peer's doorbell.
    ///
    /// # Errors
    /// What epoll answers (`ENOSPC`, `ENOMEM`).
    pub(crate) fn add(&self, peer: Arc<Peer>) -> Result<(), Errno> {
        // Edge-triggered: one ring wakes one worker. Level-triggered, it would wake one after the other until
        // the first has read the bell.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.doorbells, &peer.bell, EventData::new_u64(peer.token), flags)?;
        self.peers.write().insert(peer.token, peer);
        Ok(())
    }

    /// Forgets a peer whose connection has ended.
    pub(crate) fn remove(&self, peer: &Peer) {
        // The descriptor is registered, so this cannot fail.
        let _ = epoll::delete(&self.doorbells, &peer.bell);
        let known = self.peers.write().remove(&peer.token);
        let cooled = self.cool(peer, |_| true);
        drop((known, cooled));
    }

    /// All peers.
    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.read().values().cloned().collect()
    }

    /// Stops looking at a peer if it agrees.
    fn cool(&self, peer: &Peer, agrees: impl FnOnce(&Peer) -> bool) -> Option<Arc<Peer>> {
        let mut hot = self.hot.write();
        let index = hot.iter().position(|hot| hot.token == peer.token)?;
        if !agrees(&hot[index]) {
            return None;
        }
        let cooled = hot.swap_remove(index);
        cooled.hot.store(false, Ordering::Relaxed);
        self.hot_changes.fetch_add(1, Ordering::Release);
        Some(cooled)
    }

    fn heat(&self, token: u64) {
        let Some(peer) = self.peers.read().get(&token).cloned() else { return };
        sys::quiet(&peer.bell);
        peer.wake();
        peer.quiet.store(0, Ordering::Relaxed);
        // Under the lock, as peers are only told that nobody looks under it.
        let mut hot = self.hot.write();
        if peer.hot.swap(true, Ordering::Relaxed) {
            return;
        }
        let first = hot.is_empty();
        hot.push(peer);
        self.hot_changes.fetch_add(1, Ordering::Release);
        drop(hot);
        if first {
            *self.supervised.lock() = true;
            self.supervision.notify_one();
        }
    }

    /// Declares to all hot peers that nobody looks; `false` if one of them has work.
    fn all_asleep(&self) -> bool {
        let mut cooled = Vec::new();
        let mut hot = self.hot.write();
        hot.retain(|peer| {
            let keep = !peer.fall_asleep();
            if !keep {
                peer.hot.store(false, Ordering::Relaxed);
                cooled.push(peer.clone());
            }
            keep
        });
        self.hot_changes.fetch_add(1, Ordering::Release);
        let idle = hot.is_empty();
        drop(hot);
        idle
    }

    fn supervise(self: &Arc<Self>) {
        let mut stuck = false;
        while !self.stopping.load(Ordering::SeqCst) {
            let mut supervised = self.supervised.lock();
            while !*supervised {
                self.supervision.wait(&mut supervised);
            }
            drop(supervised);
            std::thread::sleep(SUPERVISION);
            let was_stuck = std::mem::replace(&mut stuck, false);
            if self.scanning.load(Ordering::SeqCst) == 0 {
                let hot = self.hot.read();
                if hot.is_empty() {
                    drop(hot);
                    let mut supervised = self.supervised.lock();
                    // Under the lock: whoever heats the first peer afterwards sets it again.
                    *supervised = !self.hot.read().is_empty() || self.stopping.load(Ordering::SeqCst);
                } else {
                    let waits = hot.iter().any(|peer| peer.has_work());
                    drop(hot);
                    // An operation that merely met a look is no reason to start a thread.
                    stuck = true;
                    if was_stuck {
                        self.reinforce(waits);
                    }
                }
            }
        }
    }

    /// All workers are inside operations, or wait for doorbells. Sees to it that one waits for doorbells, and
    /// that what is submitted already is looked at.
    fn reinforce(self: &Arc<Self>, waits: bool) {
        if self.parked.load(Ordering::SeqCst) == 0 {
            if self.alive.load(Ordering::SeqCst) >= WORKERS_MAX {
                return;
            }
            if let Err(error) = self.hire() {
                tracing::warn!(%error, "no further worker could be started");
                return;
            }
        }
        if waits {
            self.ring_alarm(1);
        }
    }
}

struct Worker {
    pool: Arc<Pool>,
    workspace: Workspace,
    hot: Vec<Arc<Peer>>,
    hot_changes: u64,
    moved: Option<Instant>,
    /// The client of the last operation ran on our CPU.
    shares: bool,
    /// Operations in a row whose client ran on our CPU.
    crowded: u32,
    /// How long this thread had run, and waited for a CPU, when what came after was not judged yet.
    run_times: Option<(Duration, Duration)>,
    /// When to look at that again: it takes system calls.
    look_at: Instant,
}

impl Worker {
    fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            workspace: Workspace::default(),
            hot: Vec::new(),
            hot_changes: u64::MAX,
            moved: None,
            shares: false,
            crowded: 0,
            run_times: None,
            look_at: Instant::now(),
        }
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(16);
        let mut slept = Instant::now();
        while !self.pool.stopping.load(Ordering::SeqCst) {
            self.pool.parked.fetch_add(1, Ordering::SeqCst);
            events.clear();
            // Of surplus workers those go that wait last.
            let is_surplus = self.pool.alive.load(Ordering::SeqCst) > WORKERS;
            let stays = is_surplus.then_some(&SURPLUS_STAYS);
            let woken = epoll::wait(&self.pool.doorbells, spare_capacity(&mut events), stays);
            self.pool.parked.fetch_sub(1, Ordering::SeqCst);
            match woken {
                Ok(0) if self.may_leave() => return,
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "a worker of the bypass cannot wait for doorbells");
                    break;
                }
            }
            if slept.elapsed() < SPIN {
                // It would have been worth scanning on.
                self.adjust(2);
            }
            for event in &events {
                match event.data.u64() {
                    ALARM => {
                        let _ = rustix::io::read(&self.pool.alarm, &mut [0u8; 8]);
                    }
                    token => self.pool.heat(token),
                }
            }
            self.pool.scanning.fetch_add(1, Ordering::SeqCst);
            self.scan();
            // Not to keep a client that leaves.
            self.hot.clear();
            self.hot_changes = u64::MAX;
            slept = Instant::now();
        }
        self.pool.alive.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether this worker is surplus; if so it no longer counts. Decided and counted at once, as several may ask
    /// together.
    fn may_leave(&self) -> bool {
        let fewer = |alive| (alive > WORKERS).then(|| alive - 1);
        self.pool.alive.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer).is_ok()
    }

    fn adjust(&self, by: isize) {
        let confidence = &self.pool.confidence;
        let now = confidence.load(Ordering::Relaxed);
        confidence.store(now.saturating_add_signed(by).min(SURE), Ordering::Relaxed);
    }

    /// Serves until there is nothing to do; returns with this worker no longer counted among the scanners.
    fn scan(&mut self) {
        let mut idle = 0u32;
        let mut since = None;
        loop {
            if self.pool.stopping.load(Ordering::Relaxed) {
                self.pool.scanning.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            if self.serve_all() {
                if since.take().is_some() {
                    self.adjust(1);
                }
                idle = 0;
                continue;
            }
            idle += 1;
            if !idle.is_multiple_of(SCANS_PER_LOOK) && !self.shares {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            let since = *since.get_or_insert(now);
            let sure = self.pool.confidence.load(Ordering::Relaxed) > 0;
            let spin = match sure {
                _ if self.shares => Duration::ZERO,
                _ if self.is_crowded(now) => SHORT_SPIN,
                true => SPIN,
                false => SHORT_SPIN,
            };
            let scanning = self.pool.scanning.load(Ordering::Relaxed);
            if scanning <= self.pool.spinners_max && now - since < spin {
                continue;
            }
            if scanning <= self.pool.spinners_max && !self.shares {
                self.adjust(-1);
            }
            // Before the peers are told: one that submits now either is seen by the last look or rings.
            if self.pool.scanning.fetch_sub(1, Ordering::SeqCst) > 1 || self.pool.all_asleep() {
                return;
            }
            self.pool.scanning.fetch_add(1, Ordering::SeqCst);
            idle = 0;
        }
    }

    /// Whether others compute on our CPUs.
    fn is_crowded(&mut self, now: Instant) -> bool {
        if self.pool.crowd.is_there(now) {
            self.run_times = None;
            return true;
        }
        if now < self.look_at {
            return false;
        }
        self.look_at = now + CROWD_LOOK;
        let Some((ran, waited)) = run_times() else { return false };
        if let Some((ran_before, waited_before)) = self.run_times {
            let (ran, waited) = (ran.saturating_sub(ran_before), waited.saturating_sub(waited_before));
            if ran + waited < CROWD_LEAST {
                return false;
            }
            self.pool.crowd.look(now, ran, waited);
        }
        self.run_times = Some((ran, waited));
        false
    }

    /// Looks once at every hot peer; whether anything was served.
    fn serve_all(&mut self) -> bool {
        let changes = self.pool.hot_changes.load(Ordering::Acquire);
        if changes != self.hot_changes {
            self.hot_changes = changes;
            self.hot.clone_from(&self.pool.hot.read());
        }
        let mut served = false;
        let mut quiet = None;
        for index in 0..self.hot.len() {
            let Some(slot) = self.hot[index].claim() else {
                let scans = &self.hot[index].quiet;
                // Scanners may overwrite each other's count; it need not be exact.
                let count = scans.load(Ordering::Relaxed) + 1;
                scans.store(count, Ordering::Relaxed);
                if count >= QUIET_SCANS {
                    quiet = Some(index);
                }
                continue;
            };
            served = true;
            self.serve(index, slot);
        }
        if let Some(index) = quiet.filter(|_| self.hot.len() > 1) {
            let peer = self.hot[index].clone();
            peer.quiet.store(0, Ordering::Relaxed);
            drop(self.pool.cool(&peer, Peer::fall_asleep));
        }
        served
    }

    fn serve(&mut self, index: usize, slot: u32) {
        let peer = &self.hot[index];
        peer.quiet.store(0, Ordering::Relaxed);
        let cpu = rustix::thread::sched_getcpu() as u32;
        self.pool.scanning.fetch_sub(1, Ordering::SeqCst);
        let client_cpu = peer.serve(slot, cpu, &mut self.workspace);
        self.pool.scanning.fetch_add(1, Ordering::SeqCst);
        if peer.is_gone() {
            self.pool.remove(&peer.clone());
        }
        self.shares = client_cpu == cpu;
        if self.shares {
            self.crowded += 1;
            if self.crowded >= 2
                && self.moved.is_none_or(|moved| moved.elapsed() > MOVE_PAUSE)
                && !self.pool.crowd.is_there(Instant::now())
            {
                self.move_away(cpu);
            }
        } else {
            self.crowded = 0;
        }
    }

    /// Leaves a CPU for one that has nothing to do, if there is any, without being bound to it.
    fn move_away(&mut self, cpu: u32) {
        self.moved = Some(Instant::now());
        self.crowded = 0;
        // Ourselves and the client take one.
        if runnable().is_some_and(|runnable| runnable > self.pool.cpus) {
            return;
        }
        let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
        let mut others = allowed;
        others.unset(cpu as usize);
        if others.count() > 0 && cpu < CpuSet::MAX_CPU as u32 {
            // The kernel moves the thread before the first call returns.
            let moved = rustix::thread::sched_setaffinity(None, &others);
            let released = rustix::thread::sched_setaffinity(None, &allowed);
            if let Err(error) = moved.and(released) {
                tracing::debug!(%error, "a worker could not change its CPU");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_wait_for_cpus_make_it_a_crowd_for_longer_each_time() {
        let crowd = Crowd::default();
        let start = Instant::now();
        let millis = Duration::from_millis;
        crowd.look(start, millis(10), millis(1));
        assert!(!crowd.is_there(start));
        for lasts in [10, 20, 40] {
            crowd.look(start, millis(5), millis(5));
            assert!(crowd.is_there(start + millis(lasts - 1)) && !crowd.is_there(start + millis(lasts)));
        }
        (0..100).for_each(|_| crowd.look(start, millis(5), millis(5)));
        assert!(!crowd.is_there(start + *CROWDED.end()));
        crowd.look(start, millis(10), millis(1));
        assert!(!crowd.is_there(start));
        crowd.look(start, millis(5), millis(5));
        assert!(!crowd.is_there(start + *CROWDED.start()), "as the first time");
    }

    #[test]
    fn who_runs_is_counted() {
        assert!(runnable().expect("this kernel counts them") >= 1 && sys::cpus() >= 1);
    }

    #[test]
    fn threads_run_and_wait() {
        let (ran, _) = run_times().expect("this kernel counts it");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {}
        assert!(run_times().unwrap().0 > ran);
    }
}
