//! Open file descriptions that live in the daemon, and who uses them.
//!
//! A virtual descriptor is a duplicate of a placeholder: an `O_PATH` descriptor of a hidden regular file of the mount. So
//! its number is taken as the kernel takes numbers, and whatever reaches the kernel with it fails there (`EBADF`,
//! `ENOTDIR`). The descriptor table says which description it stands for, and this table counts the descriptors of each and the
//! calls that are using it.
//!
//! A call *pins* the description that it uses. What must not meet any other call — promotion, a transfer in several
//! pieces — waits until it is the only one, and the others wait meanwhile. A signal handler cannot wait for the call that it
//! interrupted: a thread's own pins are not waited for, and a handler that waits says how many pins lie below it.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use finesse_ipc::frame::{Fallback, Op, Outcome, Request};

use crate::connection::{self, Guard};
use crate::fds::{KNOWN, Kind, Virtual};
use crate::process::{self, FDS};
use crate::sys;

/// [`Description::state`]: calls that use it.
const USER: u64 = 1;
const USERS: u64 = (1 << 14) - 1;
/// Descriptors that stand for it.
const DESCRIPTOR: u64 = 1 << 14;
const DESCRIPTORS: u64 = ((1 << 16) - 1) << 14;
/// One call is alone with it, or wants to be.
const ALONE: u64 = 1 << 30;
/// The place is in use.
const LIVE: u64 = 1 << 31;
const GENERATION: u32 = 32;

/// How long somebody who wants to be alone waits for others, in pauses (about a second). Longer waits only those who
/// never go on: calls that a signal handler has left by a jump.
const PATIENCE: u32 = 5000;

/// An open file description in a daemon.
struct Description {
    state: AtomicU64,
    /// The mount's number in this process, and its connection's.
    mount: AtomicU32,
    connection: AtomicU32,
    /// Its number there.
    file: AtomicU32,
    /// What `F_GETFL` answers.
    flags: AtomicU32,
    /// Nobody need wait for the answer when it is closed.
    quiet: AtomicBool,
    /// Transfers until it is worth asking for a granted descriptor; [`NEVER`] if there is none.
    until_grant: AtomicU32,
    ino: AtomicU64,
    /// Pins below signal handlers that wait for whoever is alone.
    stuck: AtomicU32,
}

/// The description cannot be granted.
const NEVER: u32 = u32::MAX;
/// Transfers after which a descriptor of its own pays.
const TRANSFERS: u32 = 16;
/// A transfer of this size pays for it at once.
const LARGE: usize = 128 << 10;

static ALL: [Description; KNOWN] = [const {
    Description {
        state: AtomicU64::new(0),
        mount: AtomicU32::new(0),
        connection: AtomicU32::new(0),
        file: AtomicU32::new(0),
        flags: AtomicU32::new(0),
        quiet: AtomicBool::new(false),
        until_grant: AtomicU32::new(0),
        ino: AtomicU64::new(0),
        stuck: AtomicU32::new(0),
    }
}; KNOWN];
/// Where to look for a free place.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// Descriptions there are.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Forks and the like that are being made: nothing may be virtual meanwhile.
static GATES: AtomicU32 = AtomicU32::new(0);

const PINS_MAX: usize = 32;

thread_local! {
    /// What this thread's calls have pinned: the outer ones first, which a signal handler has interrupted.
    static PINS: [Cell<u16>; PINS_MAX] = const { [const { Cell::new(0) }; PINS_MAX] };
    static PINNED: Cell<usize> = const { Cell::new(0) };
}

/// This thread's pins of a description.
fn own_pins(index: u16) -> u64 {
    PINS.with(|pins| pins.iter().take(PINNED.get()).filter(|pin| pin.get() == index).count() as u64)
}

fn place(index: u16) -> &'static Description {
    // An index is one of the table: it came from `create`.
    &ALL[usize::from(index)]
}

const _: () = assert!(KNOWN == 1 << 16);

/// Whether there is any virtual descriptor.
#[inline]
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::SeqCst) != 0
}

/// What a new description is.
pub(crate) struct Opened {
    pub(crate) file: u32,
    pub(crate) ino: u64,
    /// Those of `open`.
    pub(crate) flags: i32,
    pub(crate) is_grantable: bool,
    pub(crate) is_quiet: bool,
    /// It must not stay virtual.
    pub(crate) is_the_kernels: bool,
}

/// Makes the placeholder `fd` stand for a file that was opened on a connection; `false` if there is no room.
pub(crate) fn create(fd: RawFd, mount: &Guard, opened: &Opened) -> bool {
    let from = NEXT.fetch_add(1, Ordering::Relaxed);
    let found = (0..KNOWN as u32).find_map(|turn| {
        let index = from.wrapping_add(turn) as u16;
        let state = place(index).state.load(Ordering::Relaxed);
        if state & (LIVE | USERS) != 0 {
            return None;
        }
        let generation = ((state >> GENERATION) as u32).wrapping_add(1);
        // Alone until the fields are there.
        let live = u64::from(generation) << GENERATION | LIVE | ALONE | DESCRIPTOR;
        let taken = place(index).state.compare_exchange(state, live, Ordering::AcqRel, Ordering::Relaxed);
        taken.is_ok().then_some(Virtual { index, generation })
    });
    let Some(token) = found else { return false };
    let this = place(token.index);
    let kept = !(libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY | libc::O_TRUNC | libc::O_CLOEXEC);
    this.mount.store(mount.index() as u32, Ordering::Relaxed);
    this.connection.store(mount.connection(), Ordering::Relaxed);
    this.file.store(opened.file, Ordering::Relaxed);
    this.flags.store((opened.flags & kept | O_LARGEFILE) as u32, Ordering::Relaxed);
    this.quiet.store(opened.is_quiet, Ordering::Relaxed);
    this.until_grant.store(if opened.is_grantable { TRANSFERS } else { NEVER }, Ordering::Relaxed);
    this.ino.store(opened.ino, Ordering::Relaxed);
    this.stuck.store(0, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::SeqCst);
    this.state.fetch_and(!ALONE, Ordering::AcqRel);
    if FDS.set(fd, Kind::Virtual(token)) {
        return true;
    }
    this.die();
    false
}

/// `O_LARGEFILE` as the kernel sets it for every 64-bit program; libc's constant is 0 there.
const O_LARGEFILE: i32 = 0o100_000;

impl Description {
    /// The place is free.
    fn die(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            // Calls that still have it pinned find out when they look again.
            let dead = state & !(LIVE | ALONE | DESCRIPTORS);
            match self.state.compare_exchange_weak(state, dead, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => break,
                Err(found) => state = found,
            }
        }
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Somebody else is alone with a description: try again when it is over.
#[derive(Debug)]
pub(crate) struct Again;

/// A description in use by a call.
pub(crate) struct Pin {
    token: Virtual,
}

/// What became of a description with the last pin.
enum Left {
    Lives,
    /// Nothing stands for it any more: the one who left must close it.
    Orphaned,
}

impl Pin {
    fn this(&self) -> &'static Description {
        place(self.token.index)
    }

    /// What it was pinned by.
    pub(crate) fn token(&self) -> Virtual {
        self.token
    }

    /// Whether it still is what it was when it was pinned.
    pub(crate) fn is_live(&self) -> bool {
        let state = self.this().state.load(Ordering::Acquire);
        state & LIVE != 0 && (state >> GENERATION) as u32 == self.token.generation
    }

    /// Its number in the daemon.
    pub(crate) fn file(&self) -> u32 {
        self.this().file.load(Ordering::Relaxed)
    }

    /// Its inode number.
    pub(crate) fn ino(&self) -> u64 {
        self.this().ino.load(Ordering::Relaxed)
    }

    /// Access mode and status flags.
    pub(crate) fn flags(&self) -> i32 {
        self.this().flags.load(Ordering::Relaxed) as i32
    }

    /// The status flags have changed.
    pub(crate) fn set_flags(&self, flags: i32) {
        self.this().flags.store(flags as u32, Ordering::Relaxed);
    }

    /// Counts a transfer; whether a granted descriptor would pay.
    pub(crate) fn pays(&self, len: usize) -> bool {
        let left = self.this().until_grant.load(Ordering::Relaxed);
        if left == NEVER {
            return false;
        }
        self.this().until_grant.store(left.saturating_sub(1), Ordering::Relaxed);
        left == 0 || len >= LARGE
    }

    /// It is granted to nobody.
    pub(crate) fn stays(&self) {
        self.this().until_grant.store(NEVER, Ordering::Relaxed);
    }

    /// The connection that it is open on; `None` if that has ended.
    pub(crate) fn connection(&self) -> Option<Guard> {
        let this = self.this();
        connection::enter_again(
            this.mount.load(Ordering::Relaxed) as usize,
            this.connection.load(Ordering::Relaxed),
        )
    }

    /// Another descriptor stands for it; `false` if it has been promoted meanwhile, or there are too many.
    pub(crate) fn add_descriptor(&self) -> bool {
        let state = &self.this().state;
        let mut now = state.load(Ordering::Relaxed);
        loop {
            let is_full = now & DESCRIPTORS == DESCRIPTORS;
            if now & LIVE == 0 || (now >> GENERATION) as u32 != self.token.generation || is_full {
                return false;
            }
            match state.compare_exchange_weak(now, now + DESCRIPTOR, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => now = found,
            }
        }
    }

    /// One descriptor less, which has been taken out of the table.
    pub(crate) fn drop_descriptor(&self) {
        if self.is_live() {
            self.this().state.fetch_sub(DESCRIPTOR, Ordering::AcqRel);
        }
    }

    fn leave(&self) -> Left {
        forget_pin();
        let state = &self.this().state;
        let mut now = state.load(Ordering::Relaxed);
        loop {
            // In a forked child there is nothing to leave.
            if (now >> GENERATION) as u32 != self.token.generation || now & USERS == 0 {
                return Left::Lives;
            }
            let left = now - USER;
            let is_orphaned = left & LIVE != 0 && left & (USERS | DESCRIPTORS | ALONE) == 0;
            let next = if is_orphaned { left | ALONE } else { left };
            match state.compare_exchange_weak(now, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if is_orphaned => return Left::Orphaned,
                Ok(_) => return Left::Lives,
                Err(found) => now = found,
            }
        }
    }

    /// Leaves, and closes the description if nothing stands for it any more: what `close` answers.
    pub(crate) fn finish(self) -> Result<(), i32> {
        let this = std::mem::ManuallyDrop::new(self);
        this.leave_and_close()
    }

    fn leave_and_close(&self) -> Result<(), i32> {
        match self.leave() {
            Left::Lives => Ok(()),
            Left::Orphaned => {
                let closed = self.close_in_daemon();
                self.this().die();
                closed
            }
        }
    }

    fn close_in_daemon(&self) -> Result<(), i32> {
        let Some(mount) = self.connection() else { return Err(libc::ENOTCONN) };
        let request = Request { base: self.file().into(), ..Request::default() };
        if self.this().quiet.load(Ordering::Relaxed) && mount.client().send(Op::Close, &request).is_ok() {
            mount.client().counters().served(Op::Close);
            return Ok(());
        }
        match ask(&mount, Op::Close, &request) {
            Ok(call) => {
                mount.client().counters().served(Op::Close);
                match call.reply.outcome() {
                    Outcome::Errno(errno) => Err(errno),
                    _ => Ok(()),
                }
            }
            Err(_) => Err(libc::ENOTCONN),
        }
    }

    /// Does something while no other call uses the description, with this thread's signals blocked.
    ///
    /// # Errors
    /// Somebody else is alone with it.
    pub(crate) fn alone<R>(&self, f: impl FnOnce() -> R) -> Result<R, Again> {
        sys::without_signals(|| {
            let state = &self.this().state;
            let before = state.fetch_or(ALONE, Ordering::AcqRel);
            if before & ALONE != 0 {
                return Err(Again);
            }
            let own = own_pins(self.token.index);
            for turn in 0..PATIENCE {
                let stuck = u64::from(self.this().stuck.load(Ordering::Acquire));
                if state.load(Ordering::Acquire) & USERS <= own + stuck {
                    break;
                }
                sys::pause(turn);
            }
            if !self.is_live() {
                // Promoted since it was pinned; nobody looks at the mark of a dead place.
                state.fetch_and(!ALONE, Ordering::AcqRel);
                return Err(Again);
            }
            let result = f();
            state.fetch_and(!ALONE, Ordering::AcqRel);
            Ok(result)
        })
    }

    /// The kernel has taken the description over: nothing stands for it. Only for whoever is alone with it.
    pub(crate) fn end(&self) {
        self.this().die();
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = self.leave_and_close();
    }
}

/// One round trip; waits for a slot, because nobody else can serve.
pub(crate) fn ask<'g>(
    mount: &'g Guard,
    op: Op,
    request: &Request,
) -> Result<finesse_ipc::client::Call<'g>, Fallback> {
    let mut turn = 0;
    loop {
        match mount.client().call(op, request, &[], &[]) {
            Err(Fallback::NoSlot) => sys::pause(turn),
            answer => {
                if matches!(answer, Err(Fallback::Disconnected)) {
                    mount.is_lost();
                }
                return answer;
            }
        }
        turn = turn.saturating_add(1);
    }
}

/// Notes a pin of this thread's, before it is made: a signal handler that comes in between then waits for less, not longer.
fn note_pin(index: u16) {
    let depth = PINNED.get();
    PINNED.set(depth + 1);
    PINS.with(|pins| {
        if let Some(pin) = pins.get(depth) {
            pin.set(index);
        }
    });
}

fn forget_pin() {
    PINNED.set(PINNED.get().saturating_sub(1));
}

fn try_pin(token: Virtual) -> Result<Pin, Option<Again>> {
    note_pin(token.index);
    let pinned = try_count(token);
    if pinned.is_err() {
        forget_pin();
    }
    pinned
}

fn try_count(token: Virtual) -> Result<Pin, Option<Again>> {
    let state = &place(token.index).state;
    let mut now = state.load(Ordering::Acquire);
    loop {
        if now & LIVE == 0 || (now >> GENERATION) as u32 != token.generation {
            return Err(None);
        }
        if now & ALONE != 0 || now & USERS == USERS {
            return Err(Some(Again));
        }
        match state.compare_exchange_weak(now, now + USER, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return Ok(Pin { token }),
            Err(found) => now = found,
        }
    }
}

/// Pins the description that a descriptor stands for; `None` if it is not virtual.
#[inline]
pub(crate) fn pin(fd: RawFd) -> Option<Pin> {
    match FDS.get(fd) {
        Kind::Virtual(_) => pin_virtual(fd),
        _ => None,
    }
}

fn pin_virtual(fd: RawFd) -> Option<Pin> {
    // In a child that was forked past the hooks, the numbers are the parent's.
    process::notice_fork();
    let mut turn = 0;
    while let Kind::Virtual(token) = FDS.get(fd) {
        match try_pin(token) {
            Ok(pin) if FDS.get(fd) == Kind::Virtual(token) => return Some(pin),
            Ok(pin) => drop(pin),
            Err(None) => sys::pause(turn),
            Err(Some(Again)) => wait(token, turn),
        }
        turn = turn.saturating_add(1);
    }
    None
}

/// Waits a little for whoever is alone with a description, who need not wait for the calls below this one.
fn wait(token: Virtual, turn: u32) {
    let own = own_pins(token.index) as u32;
    let stuck = &place(token.index).stuck;
    if own != 0 {
        stuck.fetch_add(own, Ordering::AcqRel);
    }
    sys::pause(turn);
    if own != 0 {
        stuck.fetch_sub(own, Ordering::AcqRel);
    }
}

/// From here on whatever is opened becomes the kernel's at once.
pub(crate) fn close_gate() {
    GATES.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// Takes one [`close_gate`] back.
pub(crate) fn open_gate() {
    // A child begins without gates.
    let _ = GATES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |gates| gates.checked_sub(1));
}

/// Whether descriptors may be virtual at this moment.
pub(crate) fn gate_is_open() -> bool {
    // Whoever closes the gate looks at the table afterwards: either they find what we have just put there, or we find the
    // gate closed.
    fence(Ordering::SeqCst);
    GATES.load(Ordering::SeqCst) == 0
}

/// In a forked child: the descriptions are the parent's, and nothing here stands for them.
pub(crate) fn after_fork() {
    GATES.store(0, Ordering::Relaxed);
    if !any() {
        return;
    }
    for (fd, token) in FDS.virtuals(0) {
        FDS.take(fd, token);
    }
    for this in &ALL {
        let state = this.state.load(Ordering::Relaxed);
        if state & LIVE != 0 {
            this.state.store(state & !((1 << GENERATION) - 1), Ordering::Relaxed);
        }
    }
    COUNT.store(0, Ordering::SeqCst);
}
