//! A client's end of the road: connect, submit, wait, take what was granted.
//!
//! Used inside hooks, so nothing here allocates, locks, or calls a libc function that can be interposed;
//! everything may be interrupted by a signal handler that enters again (it simply claims another slot).
//! A client belongs to the process that connected: after a fork the child must forget it
//! ([`Client::forget`]) and connect anew.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};
use rustix::thread::{SecureComputingMode, futex, secure_computing_mode};

use crate::counters::Counters;
use crate::frame::{BY_SOCKET, Fallback, Op, Outcome, PATH_MAX, REPLY_GRANT, REPLY_HELD, Reply, Request};
use crate::handshake::{self, Answer, Ask, Error, Refusal, SMALL_MESSAGE_MAX, Welcome};
use crate::jumps;
use crate::layout::SLOTS;
use crate::ring;
use crate::segment::{Segment, TableMap};
use crate::table::Table;

/// How long a connection attempt may take before the client stays on the kernel road. Generous: the daemon may
/// have to invalidate what the kernel caches first.
const CONNECT_TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How often a sleeping client looks whether its daemon still lives.
const LIVENESS_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: LIVENESS_TIME.as_nanos() as i64 };
const LIVENESS_TIME: Duration = Duration::from_millis(50);
/// Upper bound of the spin phase, in iterations of `pause`: about [`SPIN_MAX_TIME`] on current x86.
const SPIN_MAX: u32 = 1600;
/// A little more than sleeping and being woken costs.
const SPIN_MAX_TIME: Duration = Duration::from_micros(40);
/// Lower bound, so that a fast operation after slow ones is noticed.
const SPIN_MIN: u32 = 16;
/// Turns of the yield phase.
const YIELDS: u32 = 24;
/// Who gets the CPU back later than this from a yield has given it to a task that computes, which runs to the end of its time
/// slice. Who sleeps instead goes first when it is woken.
const SLICE: Duration = Duration::from_micros(200);
/// For how many waits after that nobody yields, at first and at most: twice as many each time, and half as many when yielding
/// has helped.
const UNYIELDING: std::ops::RangeInclusive<u32> = 32..=4096;
/// How many operations may be under way that nobody waits for. Their slots are looked at when there are so many: whoever looks
/// takes the answers' cache lines away from the daemon.
const UNATTENDED_MAX: u32 = 8;
/// How often [`Client::settle`] looks: other threads may send ever more.
const SETTLE_TURNS: u32 = 10_000;
/// Who finds no free slot sleeps once in so many turns.
const YIELDS_PER_PAUSE: u32 = 64;
/// For how long.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// How often all slots are seen in use by calls that wait, before that counts: some may be about to be freed, or marked as such
/// that nobody waits for, by threads that have no CPU.
const FULL: u32 = 64;
/// Bytes of a directory's entry, roughly: `struct linux_dirent64` and a name of ten bytes or so.
const ENTRY: u32 = 32;
const NO_GRANT: i32 = -1;
/// The kernel had no room for the descriptor in this process.
const NO_ROOM: i32 = -2;

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The daemon refused.
    #[error("{0}")]
    Refused(Refusal),
    /// Messages could not be exchanged, or the versions differ.
    #[error("{0}")]
    Handshake(#[from] Error),
    /// A system call failed.
    #[error("{0}")]
    System(#[from] Errno),
}

/// Whether this process may take descriptors out of another one. (Its own filter of system calls might end it for trying.)
fn may_take_from(process: &OwnedFd) -> bool {
    // No descriptor has this number: whoever may take some is told so.
    matches!(secure_computing_mode(), Ok(SecureComputingMode::Disabled))
        && matches!(pidfd_getfd(process, RawFd::MAX, PidfdGetfdFlags::empty()), Err(Errno::BADF))
}

/// Tells a process's clients apart, for [`jumps`].
static CLIENTS: AtomicU32 = AtomicU32::new(0);

/// A connection to a mount's daemon.
pub struct Client {
    segment: Segment,
    table: Option<TableMap>,
    socket: OwnedFd,
    bell: OwnedFd,
    /// The daemon's process, if this one may take descriptors out of it, as who may trace it (`PTRACE_MODE_ATTACH_REALCREDS`).
    daemon: Option<OwnedFd>,
    welcome: Welcome,
    /// Bit *n*: slot *n* is in use by some thread of this process.
    used: AtomicU64,
    /// How long to spin for each kind of operation, in iterations; adapts to what was observed.
    patience: [AtomicU32; Op::ALL.len()],
    yields: Yields,
    /// Its number for [`jumps`].
    number: u32,
    /// Bit *n*, only good if jumps are expected: the operation of slot *n* was submitted.
    submitted: AtomicU64,
    /// Bit *n*, likewise: the descriptor that the reply in slot *n* grants was taken.
    took_grant: AtomicU64,
    /// Bit *n*: nobody waits for the answer in slot *n*, which is free when it has come.
    unattended: AtomicU64,
    /// Descriptors received by another thread than the one they are for.
    grants: [AtomicI32; SLOTS],
    /// Where this client's descriptors may be numbered from.
    first_fd: RawFd,
    /// How many attributes had been asked for when a directory was last listed.
    stats_before: AtomicU64,
    /// How many bytes of entries were listed then.
    listed: AtomicU32,
}

impl Client {
    /// Connects to the daemon that listens on an abstract socket name.
    ///
    /// The three descriptors that a client keeps (and protects) are numbered from `first_fd`, out of the way of
    /// programs that count on low numbers.
    ///
    /// # Errors
    /// See [`ConnectError`]; the caller stays on the kernel road.
    pub fn connect(name: &[u8], program: &str, first_fd: RawFd) -> Result<Self, ConnectError> {
        let low = handshake::connect(name)?;
        let socket = rustix::io::fcntl_dupfd_cloexec(&low, first_fd)?;
        drop(low);
        handshake::send(&socket, &Ask::Attach { program }, &[])?;
        let mut poll = [PollFd::new(&socket, PollFlags::IN)];
        loop {
            match rustix::event::poll(&mut poll, Some(&CONNECT_TIMEOUT)) {
                Ok(0) => return Err(Errno::TIMEDOUT.into()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut buffer = [0; SMALL_MESSAGE_MAX];
        let (bytes, fds) = handshake::receive(&socket, &mut buffer, RecvFlags::empty())?;
        let welcome = match handshake::decode(bytes)? {
            Answer::Welcome(welcome) => welcome,
            Answer::Refused(refusal) => return Err(ConnectError::Refused(refusal)),
            _ => return Err(Error::Malformed.into()),
        };
        let [Some(memory), Some(bell), third, fourth] = fds else { return Err(Error::Malformed.into()) };
        let (daemon, table) = if welcome.pulls { (third, fourth) } else { (None, third) };
        let segment = Segment::open(&memory)?;
        let daemon = daemon
            .filter(may_take_from)
            .and_then(|daemon| rustix::io::fcntl_dupfd_cloexec(daemon, first_fd).ok());
        segment.header().pulls.store(daemon.is_some().into(), Ordering::Relaxed);
        // Without room for it, or with one of no use, every call is a round trip.
        let table = table.and_then(|table| TableMap::open(&table).ok());
        Ok(Self {
            segment,
            table,
            bell: rustix::io::fcntl_dupfd_cloexec(&bell, first_fd)?,
            daemon,
            socket,
            welcome,
            used: AtomicU64::new(0),
            patience: [const { AtomicU32::new(SPIN_MAX) }; Op::ALL.len()],
            yields: Yields::new(welcome.busy),
            number: CLIENTS.fetch_add(1, Ordering::Relaxed),
            submitted: AtomicU64::new(0),
            took_grant: AtomicU64::new(0),
            unattended: AtomicU64::new(0),
            grants: [const { AtomicI32::new(NO_GRANT) }; SLOTS],
            first_fd,
            stats_before: AtomicU64::new(0),
            listed: AtomicU32::new(0),
        })
    }

    /// What the daemon said at the beginning.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The mount's metadata table, if it has one.
    #[inline]
    pub fn table(&self) -> Option<Table<'_, AtomicU64>> {
        self.table.as_ref()?.table()
    }

    /// What this client counts.
    pub fn counters(&self) -> &Counters {
        &self.segment.header().counters
    }

    /// Changes whenever the daemon's mount table does.
    #[inline]
    pub fn mount_generation(&self) -> u64 {
        self.segment.header().notices.mount_generation.load(Ordering::Acquire)
    }

    /// Whether the daemon has ended the connection or is gone.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.segment.header().notices.closed.load(Ordering::Relaxed) != 0
    }

    /// Whether a program that lists a directory probably asks for the attributes of what is in it: it has done so for most of what
    /// it listed last (as `FUSE_READDIRPLUS_AUTO`).
    pub fn wants_attrs(&self) -> bool {
        let listed = self.listed.load(Ordering::Relaxed) / ENTRY;
        let asked = self.asked().wrapping_sub(self.stats_before.load(Ordering::Relaxed));
        listed > 0 && asked >= u64::from(listed / 2)
    }

    /// So many bytes of entries were listed.
    pub fn has_listed(&self, bytes: usize) {
        if bytes > 0 {
            self.stats_before.store(self.asked(), Ordering::Relaxed);
            self.listed.store(bytes as u32, Ordering::Relaxed);
        }
    }

    fn asked(&self) -> u64 {
        self.counters().count(Op::Stat)
    }

    /// The descriptors that the program must not close: socket, doorbell, and the daemon's process.
    pub fn fds(&self) -> [Option<RawFd>; 3] {
        [Some(&self.socket), Some(&self.bell), self.daemon.as_ref()].map(|fd| fd.map(AsRawFd::as_raw_fd))
    }

    /// The number that this client's descriptors were asked to start from.
    pub fn first_fd(&self) -> RawFd {
        self.first_fd
    }

    /// The doorbell: for tests that play a hostile client.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The raw segment: for tests that play a hostile client.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// One round trip. Fills in the lengths, submits, waits, and returns the slot with its reply.
    ///
    /// # Errors
    /// The reason to ask the kernel instead: [`Fallback::BadPath`] (a path longer than [`PATH_MAX`]),
    /// [`Fallback::NoSlot`], [`Fallback::Disconnected`].
    #[inline]
    pub fn call(&self, op: Op, request: &Request, path: &[u8], path2: &[u8]) -> Result<Call<'_>, Fallback> {
        self.call_with(op, request, path, path2, |_| ())
    }

    /// As [`Client::call`], for operations that send data: `fill` writes it into the data buffer.
    ///
    /// # Errors
    /// As for [`Client::call`].
    #[inline]
    pub fn call_with(
        &self,
        op: Op,
        request: &Request,
        path: &[u8],
        path2: &[u8],
        fill: impl FnOnce(&mut Data<'_>),
    ) -> Result<Call<'_>, Fallback> {
        let prepared = self.prepare()?;
        fill(&mut Data { segment: &self.segment, slot: prepared.slot, len: 0 });
        prepared.submit(op, request, path, path2)
    }

    /// Claims a slot, so that its data buffer can be filled before the operation is submitted.
    ///
    /// # Errors
    /// [`Fallback::NoSlot`], [`Fallback::Disconnected`].
    #[inline]
    pub fn prepare(&self) -> Result<Prepared<'_>, Fallback> {
        Ok(Prepared { client: self, slot: self.claim()? })
    }

    #[inline]
    fn submit(
        &self,
        slot: u32,
        op: Op,
        request: &Request,
        path: &[u8],
        path2: &[u8],
    ) -> Result<Call<'_>, Fallback> {
        let request = Request { op: op as u32, len: path.len() as u32, len2: path2.len() as u32, ..*request };
        self.segment.write_request(slot, &request);
        self.segment.write_path(slot, 0, path);
        if !path2.is_empty() {
            self.segment.write_path(slot, 1, path2);
        }
        let (rung, cpu) = self.hand_in(slot);
        // A worker that must first wake up, or runs where we do, is not worth spinning for.
        let spin = !rung && self.segment.header().notices.worker_cpu.load(Ordering::Relaxed) != cpu;
        self.wait(slot, op, spin)
    }

    /// Submits what a slot holds; whether the doorbell was rung, and the CPU.
    fn hand_in(&self, slot: u32) -> (bool, u32) {
        let cpu = rustix::thread::sched_getcpu() as u32;
        let header = self.segment.header();
        let words = self.segment.slot(slot);
        words.cpu.store(cpu, Ordering::Relaxed);
        ring::prepare(&words.state);
        self.note(&self.submitted, slot);
        let rung = ring::submit(&*header.submitted, &header.notices.worker, slot);
        if rung {
            self.ring_bell();
        }
        (rung, cpu)
    }

    /// Submits an operation without a path whose answer nobody needs, and does not wait for it. It is served at some time after that,
    /// in no order with what is submitted later.
    ///
    /// # Errors
    /// [`Fallback::NoSlot`] also if too many such operations are under way, or most slots are in use: the caller waits for its own, then.
    pub fn send(&self, op: Op, request: &Request) -> Result<(), Fallback> {
        if self.unattended.load(Ordering::Relaxed).count_ones() >= UNATTENDED_MAX {
            self.reap();
            if self.unattended.load(Ordering::Relaxed).count_ones() >= UNATTENDED_MAX {
                return Err(Fallback::NoSlot);
            }
        }
        if self.used.load(Ordering::Relaxed).count_ones() > SLOTS as u32 / 2 {
            return Err(Fallback::NoSlot);
        }
        let slot = self.claim()?;
        self.submit_unattended(slot, op, request);
        Ok(())
    }

    fn submit_unattended(&self, slot: u32, op: Op, request: &Request) {
        self.segment.write_request(slot, &Request { op: op as u32, len: 0, len2: 0, ..*request });
        self.hand_in(slot);
        if jumps::are_expected() {
            // From here on it is not this call's. (If that was left by a jump just before, `take_back` waits for the answer.)
            jumps::used(self.number, slot);
        }
        // Release: whoever finds it here finds its state no older than `hand_in` has set it.
        self.unattended.fetch_or(1 << slot, Ordering::Release);
    }

    /// Waits a little for what was [sent](Self::send) before: for whoever could tell that it is not done yet.
    pub fn settle(&self) {
        for _ in 0..SETTLE_TURNS {
            self.reap();
            if self.unattended.load(Ordering::Relaxed) == 0 || self.is_closed() {
                return;
            }
            rustix::thread::sched_yield();
        }
    }

    /// Frees the slots that nobody waits for and whose answers have come.
    fn reap(&self) {
        let mut left = self.unattended.load(Ordering::Acquire);
        while left != 0 {
            let slot = left.trailing_zeros();
            left &= left - 1;
            let state = &self.segment.slot(slot).state;
            if !ring::is_done(state) {
                continue;
            }
            // Of several threads, one takes the mark away.
            if self.unattended.fetch_and(!(1 << slot), Ordering::AcqRel) & (1 << slot) == 0 {
                continue;
            }
            // Between the look and that, another may have freed the slot, and a third have sent something in it.
            if ring::is_done(state) {
                self.used.fetch_and(!(1 << slot), Ordering::Release);
            } else {
                self.unattended.fetch_or(1 << slot, Ordering::Release);
            }
        }
    }

    /// Proves a directory by its descriptor and returns its node id, usable as a base from then on.
    ///
    /// # Errors
    /// As for [`Client::call`]; [`Fallback::UnknownBase`] if it is no directory of this mount.
    pub fn prove(&self, directory: BorrowedFd<'_>) -> Result<u64, Fallback> {
        let call = self.show(directory)?;
        match call.reply.outcome() {
            Outcome::Ok => Ok(call.reply.to_attr().ino),
            _ => Err(Fallback::UnknownBase),
        }
    }

    /// Exchanges the descriptor of a file that was opened in a directory that was lent for one that the daemon grants, by which what belongs to the
    /// file can be changed.
    ///
    /// # Errors
    /// As for [`Client::call`]; [`Fallback::NotGranted`] if the daemon has none, or this process no room for it.
    pub fn exchange(&self, file: BorrowedFd<'_>) -> Result<OwnedFd, Fallback> {
        let call = self.show(file)?;
        match call.reply.flags & REPLY_GRANT {
            0 => Err(Fallback::NotGranted),
            _ => call.take_grant(),
        }
    }

    /// Sends a descriptor to the daemon.
    fn show(&self, descriptor: BorrowedFd<'_>) -> Result<Call<'_>, Fallback> {
        let slot = self.claim()?;
        ring::prepare(&self.segment.slot(slot).state);
        self.note(&self.submitted, slot);
        if handshake::send(&self.socket, &Ask::Prove { slot }, &[descriptor]).is_err() {
            self.release(slot);
            return Err(Fallback::Disconnected);
        }
        self.wait(slot, Op::ProveDir, false)
    }

    /// Forgets a connection that belongs to the parent process: closes this process's copies of its
    /// descriptors, unmaps the metadata table, and leaves the segment's mapping alone, which a child does not have.
    pub fn forget(self) {
        let mut this = ManuallyDrop::new(self);
        this.close_copies();
        drop(this.table.take());
    }

    /// Like [`Client::forget`], for a child that may have been forked in the middle of a call: the call ends,
    /// and this value stays valid, with every further call answered by [`Fallback::Disconnected`].
    pub fn abandon(&self) {
        // A failure leaves what a plain fork would leave: an interrupted call that cannot go on.
        let _ = self.segment.stand_in();
        self.close_copies();
    }

    /// Closes a forked child's copies of the descriptors. There may be none: the kernel copies descriptors before it copies memory
    /// (`copy_process`), and this connection may have been made by another thread in between.
    fn close_copies(&self) {
        for fd in self.fds().into_iter().flatten() {
            // SAFETY: all are this process's copies, and neither a forgotten nor an abandoned client uses them again: `wait` and `pull`
            // look at the closed mark before they look at them.
            #[allow(unsafe_code)]
            let _ = unsafe { rustix::io::try_close(fd) };
        }
    }

    /// Gives up the number of one of its descriptors, because the program wants it: moves it elsewhere.
    ///
    /// # Errors
    /// `EMFILE` if there is no other number left.
    pub fn vacate(&mut self, fd: RawFd) -> Result<(), Errno> {
        for own in [&mut self.socket, &mut self.bell].into_iter().chain(&mut self.daemon) {
            if own.as_raw_fd() == fd {
                *own = rustix::io::fcntl_dupfd_cloexec(&*own, self.first_fd)?;
            }
        }
        Ok(())
    }

    fn claim(&self) -> Result<u32, Fallback> {
        if self.is_closed() {
            return Err(Fallback::Disconnected);
        }
        let mut used = self.used.load(Ordering::Relaxed);
        let (mut turns, mut full) = (0, 0);
        loop {
            if used == u64::MAX {
                self.reap();
                used = self.used.load(Ordering::Relaxed);
            }
            if used == u64::MAX {
                // What nobody waits for takes no slot from anybody who does.
                // (Nor does somebody who is about to say of his slot that it is such a one: look again.)
                full += u32::from(self.unattended.load(Ordering::Relaxed) == 0);
                if turns == SETTLE_TURNS || full == FULL || self.is_closed() {
                    return Err(Fallback::NoSlot);
                }
                turns += 1;
                if turns.is_multiple_of(YIELDS_PER_PAUSE) {
                    // Those who yield to each other may keep the daemon waiting for a CPU.
                    let _ = rustix::thread::nanosleep(&PAUSE);
                } else {
                    rustix::thread::sched_yield();
                }
                continue;
            }
            let slot = (!used).trailing_zeros();
            // Acquire: pairs with the release of the thread that used the slot before.
            used = self.used.fetch_or(1 << slot, Ordering::Acquire);
            if used & (1 << slot) == 0 {
                if jumps::are_expected() {
                    self.submitted.fetch_and(!(1 << slot), Ordering::Relaxed);
                    self.took_grant.fetch_and(!(1 << slot), Ordering::Relaxed);
                    jumps::uses(self.number, slot);
                }
                return Ok(slot);
            }
        }
    }

    fn release(&self, slot: u32) {
        if jumps::are_expected() {
            jumps::used(self.number, slot);
        }
        self.used.fetch_and(!(1 << slot), Ordering::Release);
    }

    /// Its number, for [`Client::take_back`].
    pub fn number(&self) -> u32 {
        self.number
    }

    fn note(&self, bits: &AtomicU64, slot: u32) {
        if jumps::are_expected() {
            bits.fetch_or(1 << slot, Ordering::Relaxed);
        }
    }

    /// Takes back a slot of a call that was left by a jump ([`jumps::Beginning::each_outlived`]); `false` if something may
    /// still come for it. A descriptor that was granted is closed.
    pub fn take_back(&self, slot: u32) -> bool {
        let bit = 1 << slot;
        if self.unattended.load(Ordering::Relaxed) & bit != 0 {
            // It is free once it is answered.
            return true;
        }
        if self.submitted.load(Ordering::Relaxed) & bit != 0 {
            if !ring::is_done(&self.segment.slot(slot).state) {
                return false;
            }
            let flags = self.segment.read_reply(slot).flags;
            if flags & REPLY_HELD != 0 {
                self.submit_unattended(slot, Op::Taken, &Request::default());
                return true;
            }
            if flags & REPLY_GRANT != 0 && self.took_grant.load(Ordering::Relaxed) & bit == 0 {
                while self.receive_grant() == Ok(true) {}
                if self.granted(slot).is_none() {
                    // Another thread is about to hand it over.
                    return false;
                }
            }
        }
        self.release(slot);
        true
    }

    fn ring_bell(&self) {
        // It never blocks. If it is full, it rings already, or the daemon is gone, which the wait finds out.
        let _ = rustix::io::write(&self.bell, &[1]);
    }

    fn wait(&self, slot: u32, op: Op, spin: bool) -> Result<Call<'_>, Fallback> {
        let state = &self.segment.slot(slot).state;
        let patience = &self.patience[op as usize];
        if spin {
            let turns = patience.load(Ordering::Relaxed);
            for _ in 0..turns {
                if ring::is_done(state) {
                    if turns < SPIN_MAX {
                        patience.store((turns * 2).min(SPIN_MAX), Ordering::Relaxed);
                    }
                    return Ok(self.answered(slot));
                }
                std::hint::spin_loop();
            }
            patience.store((turns / 2).max(SPIN_MIN), Ordering::Relaxed);
        }
        let mut yielded = Duration::ZERO;
        for _ in 0..self.yields.turns() {
            if ring::is_done(state) {
                // Nobody had use for the CPU, and a spinning client would have seen the answer sooner.
                if spin && yielded < SPIN_MAX_TIME {
                    let turns = patience.load(Ordering::Relaxed);
                    patience.store((turns * 4).min(SPIN_MAX), Ordering::Relaxed);
                }
                self.yields.helped();
                return Ok(self.answered(slot));
            }
            let took = self.yields.once();
            if took >= SLICE {
                break;
            }
            yielded += took;
        }
        let mut checked = None;
        while ring::declare_sleep(state) {
            if self.is_closed() {
                return Err(Fallback::Disconnected);
            }
            let since: Instant = *checked.get_or_insert_with(Instant::now);
            let woken = futex::wait(state, futex::Flags::empty(), ring::SLEEPING, Some(&LIVENESS_CHECK));
            // Signals that come more often than that must not keep it from being found out.
            if woken != Err(Errno::TIMEDOUT) && since.elapsed() < LIVENESS_TIME {
                continue;
            }
            checked = None;
            if self.hung_up() {
                self.segment.header().notices.closed.store(1, Ordering::Relaxed);
                // The slot stays claimed: a daemon that is only slow may still write into it.
                return Err(Fallback::Disconnected);
            }
            // Whoever was to ring for all may have been left by a jump.
            self.ring_bell();
        }
        Ok(self.answered(slot))
    }

    fn answered(&self, slot: u32) -> Call<'_> {
        let reply = self.segment.read_reply(slot);
        let rest = if reply.flags & REPLY_HELD != 0 { Rest::Held } else { Rest::Nothing };
        Call { client: self, slot, rest: Cell::new(rest), reply }
    }

    /// Whether the daemon closed its end.
    fn hung_up(&self) -> bool {
        let mut poll = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut poll, Some(&now)), Ok(ready) if ready > 0)
            && poll[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
    }

    /// Takes a descriptor that the daemon holds for a slot, by this number, and waits until it is closed there: from then on the program's are all there are,
    /// so that nothing of it outlasts them (`ETXTBSY`, locks, leases).
    ///
    /// # Errors
    /// As [`Call::take_grant`]; after [`Fallback::Disconnected`] the slot is to be left alone.
    fn pull(&self, slot: u32, number: RawFd) -> Result<OwnedFd, Fallback> {
        if self.is_closed() {
            return Err(Fallback::Disconnected);
        }
        let pulled = match &self.daemon {
            Some(daemon) => pidfd_getfd(daemon, number, PidfdGetfdFlags::empty()),
            None => Err(Errno::PERM),
        };
        let flags = match pulled {
            Ok(_) | Err(Errno::MFILE) => 0,
            // This thread may not any more: others will not try.
            Err(_) => {
                self.segment.header().pulls.store(0, Ordering::Relaxed);
                BY_SOCKET
            }
        };
        let told = self.submit(slot, Op::Taken, &Request { flags, ..Request::default() }, &[], &[]);
        // The slot is the call's that was granted it. Only with the answer it is certain that the number was still that descriptor's.
        let told = ManuallyDrop::new(told?);
        match (told.reply.outcome(), pulled) {
            (Outcome::Ok, Ok(granted)) => Ok(granted),
            (Outcome::Ok, Err(_)) if flags == BY_SOCKET => self.take_grant(slot),
            _ => Err(Fallback::NotGranted),
        }
    }

    /// Receives the descriptor granted to `slot`, whose message is in the socket or in another thread's hands.
    fn take_grant(&self, slot: u32) -> Result<OwnedFd, Fallback> {
        loop {
            if let Some(granted) = self.granted(slot) {
                return granted;
            }
            // Sent before the slot was completed: if it is not there, another thread has it and will hand it over.
            if !self.receive_grant()? {
                rustix::thread::sched_yield();
            }
        }
    }

    /// What has arrived for a slot: the descriptor, or that there was no room for it.
    fn granted(&self, slot: u32) -> Option<Result<OwnedFd, Fallback>> {
        let fd = self.grants[slot as usize].swap(NO_GRANT, Ordering::AcqRel);
        if fd == NO_GRANT {
            return None;
        }
        self.note(&self.took_grant, slot);
        if fd == NO_ROOM {
            return Some(Err(Fallback::NotGranted));
        }
        // SAFETY: whoever put it there gave up its ownership.
        #[allow(unsafe_code)]
        Some(Ok(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Receives a descriptor for whatever slot; whether there was one.
    fn receive_grant(&self) -> Result<bool, Fallback> {
        let mut buffer = [0; SMALL_MESSAGE_MAX];
        match handshake::receive(&self.socket, &mut buffer, RecvFlags::DONTWAIT) {
            // Without a descriptor: EMFILE, the kernel drops what it cannot install (`scm_detach_fds`).
            Ok((bytes, [fd, None, None, None])) => match handshake::decode(bytes) {
                Ok(Answer::Grant { slot }) if (slot as usize) < SLOTS => {
                    let fd = fd.map_or(NO_ROOM, IntoRawFd::into_raw_fd);
                    self.grants[slot as usize].store(fd, Ordering::Release);
                    Ok(true)
                }
                _ => Err(Fallback::Disconnected),
            },
            Err(Error::Socket(Errno::AGAIN)) => Ok(false),
            _ => Err(Fallback::Disconnected),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether to offer the CPU to others while an answer is awaited: it gets the worker to run, unless somebody else computes.
#[derive(Debug)]
struct Yields {
    /// Waits in which nobody yields, from now on.
    without: AtomicU32,
    /// How many they were the last time.
    last: AtomicU32,
}

impl Yields {
    /// Of a new client, on a machine that is `busy` or not: programs that live shortly need not all find that out.
    const fn new(busy: bool) -> Self {
        let without = if busy { *UNYIELDING.start() } else { 0 };
        Self { without: AtomicU32::new(without), last: AtomicU32::new(without) }
    }

    /// How often to yield at most in one wait. Several threads may overwrite each other's count; it need not be exact.
    fn turns(&self) -> u32 {
        match self.without.load(Ordering::Relaxed) {
            0 => YIELDS,
            left => {
                self.without.store(left - 1, Ordering::Relaxed);
                0
            }
        }
    }

    /// Yields, and tells how long it took to get the CPU back.
    fn once(&self) -> Duration {
        let start = Instant::now();
        rustix::thread::sched_yield();
        let took = start.elapsed();
        if took >= SLICE {
            self.harmed();
        }
        took
    }

    fn harmed(&self) {
        let next = self.last.load(Ordering::Relaxed) * 2;
        let next = next.clamp(*UNYIELDING.start(), *UNYIELDING.end());
        self.last.store(next, Ordering::Relaxed);
        self.without.store(next, Ordering::Relaxed);
    }

    fn helped(&self) {
        let last = self.last.load(Ordering::Relaxed);
        if last != 0 {
            self.last.store(last / 2, Ordering::Relaxed);
        }
    }
}

/// The data buffer of a slot that is being filled.
pub struct Data<'c> {
    segment: &'c Segment,
    slot: u32,
    len: usize,
}

impl Data<'_> {
    /// Appends bytes; what exceeds [`crate::layout::DATA_BYTES`] in all is cut off.
    pub fn append(&mut self, bytes: &[u8]) {
        self.segment.write_data_at(self.slot, self.len, bytes);
        self.len += bytes.len();
    }
}

/// A slot that nothing has been submitted in; free again when dropped.
pub struct Prepared<'c> {
    client: &'c Client,
    slot: u32,
}

impl<'c> Prepared<'c> {
    /// Where the data buffer begins, [`crate::layout::DATA_BYTES`] long.
    pub fn data_start(&self) -> *mut u8 {
        self.client.segment.data_start(self.slot)
    }

    /// The data buffer, to be filled.
    pub fn data(&mut self) -> Data<'c> {
        Data { segment: &self.client.segment, slot: self.slot, len: 0 }
    }

    /// Submits the operation and waits, as [`Client::call`].
    ///
    /// # Errors
    /// As for [`Client::call`].
    #[inline]
    pub fn submit(self, op: Op, request: &Request, path: &[u8], path2: &[u8]) -> Result<Call<'c>, Fallback> {
        if path.len() > PATH_MAX || path2.len() > PATH_MAX {
            return Err(Fallback::BadPath);
        }
        // From here on the slot belongs to the operation, even if that never ends.
        let this = ManuallyDrop::new(self);
        this.client.submit(this.slot, op, request, path, path2)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        self.client.release(self.slot);
    }
}

/// What is left of a call that was answered.
#[derive(Clone, Copy, Debug)]
enum Rest {
    Nothing,
    /// The daemon holds a descriptor that the reply grants.
    Held,
    /// Something may still come for the slot.
    Pending,
}

/// A slot that holds a reply; free again when dropped.
pub struct Call<'c> {
    client: &'c Client,
    slot: u32,
    rest: Cell<Rest>,
    /// The reply.
    pub reply: Reply,
}

impl Call<'_> {
    /// Copies the reply's data into `out` and returns the part that was written.
    pub fn data<'b>(&self, out: &'b mut [u8]) -> &'b [u8] {
        let len = out.len().min(self.reply.len as usize);
        self.client.segment.read_data(self.slot, &mut out[..len])
    }

    /// Copies the reply's data from byte `offset` on into `out` and returns the part that was written.
    pub fn data_at<'b>(&self, offset: usize, out: &'b mut [u8]) -> &'b [u8] {
        let len = out.len().min((self.reply.len as usize).saturating_sub(offset));
        self.client.segment.read_data_at(self.slot, offset, &mut out[..len])
    }

    /// Where the reply's data begins, for the kernel to copy from.
    pub fn data_start(&self) -> *const u8 {
        self.client.segment.data_start(self.slot)
    }

    /// Takes the descriptor that the reply grants ([`crate::frame::REPLY_GRANT`]); it is close-on-exec.
    ///
    /// # Errors
    /// [`Fallback::NotGranted`] if this process has no room for another descriptor,
    /// [`Fallback::Disconnected`] if the daemon is gone.
    pub fn take_grant(&self) -> Result<OwnedFd, Fallback> {
        let Rest::Held = self.rest.replace(Rest::Nothing) else { return self.client.take_grant(self.slot) };
        let pulled = self.client.pull(self.slot, self.reply.descriptor());
        if matches!(pulled, Err(Fallback::Disconnected)) {
            self.rest.set(Rest::Pending);
        }
        pulled
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        match self.rest.get() {
            Rest::Nothing => self.client.release(self.slot),
            Rest::Held => self.client.submit_unattended(self.slot, Op::Taken, &Request::default()),
            Rest::Pending => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_yields_for_a_while_to_those_who_compute() {
        let yields = Yields::new(false);
        yields.helped();
        assert_eq!(yields.turns(), YIELDS);
        for expected in [32, 64, 128] {
            yields.harmed();
            assert!((0..expected).all(|_| yields.turns() == 0));
            assert_eq!(yields.turns(), YIELDS, "after {expected}");
        }
        (0..100).for_each(|_| yields.harmed());
        assert_eq!(yields.without.load(Ordering::Relaxed), *UNYIELDING.end());
        (0..100).for_each(|_| yields.helped());
        yields.harmed();
        assert_eq!(yields.without.load(Ordering::Relaxed), *UNYIELDING.start());
        let busy = Yields::new(true);
        assert!((0..32).all(|_| busy.turns() == 0) && busy.turns() == YIELDS);
    }
}
