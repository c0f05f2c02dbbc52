//! The mounts that may be ours and the connections to their daemons.
//!
//! The first calls whose paths fall on a mount are left to the kernel; with a later one, or as soon as a directory is to be
//! listed, a thread connects, while the others use the kernel.
//! Connections are shared by all threads. Whoever wants to end one (credentials changed, daemon gone, its
//! descriptor's number is wanted) must be alone with it; until then the kernel serves.

#![allow(unsafe_code)]

mod kept;
mod lent;
mod listing;

use std::ffi::CStr;
use std::os::fd::{AsFd, RawFd};
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering,
};

use finesse_ipc::client::Client;
use finesse_ipc::environment::{self, MOUNT_PATH_MAX, SOCKET_MAX};
use finesse_ipc::frame::Fallback;
use finesse_ipc::handshake;
use finesse_ipc::jumps::Beginning;
use finesse_ipc::table::InDirectory;
use rustix::fs::OFlags;
use rustix::process::Resource;

use self::kept::Kept;
use self::lent::Library;
use self::listing::{Listing, list_from_hints, list_from_kernel};
use crate::attr::MountFacts;
use crate::fds::Kind;
use crate::locks::Beside;
use crate::mounts::{self, MOUNTS};
use crate::process::{self, FDS};
use crate::sys::{self, Identity, Object, Pages};

/// Where the numbers of our own descriptors begin: above what programs expect to own.
const FIRST_FD: RawFd = 700;
/// Below this limit of open files, the numbers begin this far from its end.
const SMALL_LIMIT: u64 = 1024;
const RESERVED: u64 = 20;
/// Below this limit of open files, two descriptors are too much to take.
const NOFILE_MIN: u64 = 64;
/// Below this limit of address space, a segment is too much to take.
const ADDRESS_SPACE_MIN: u64 = 32 * finesse_ipc::layout::SEGMENT_BYTES as u64;

/// [`Mount::users`]: somebody is alone with the connection, or wants to be.
const ALONE: u32 = 1 << 31;

/// Nothing is known; the place may be used for another mount.
const FREE: u32 = 0;
/// A mount that may be ours.
const CANDIDATE: u32 = 1;
/// Some thread connects.
const CONNECTING: u32 = 2;
/// Connected.
const ATTACHED: u32 = 3;
/// The connection is to be dropped, and another one made.
const RETIRED: u32 = 4;
/// The connection is to be dropped, and no other one made.
const DEAD: u32 = 5;
/// The daemon refused, or is gone: the kernel serves this mount.
const REFUSED: u32 = 6;
/// Not a mount of ours.
const FOREIGN: u32 = 7;

/// A mount that may be ours, and the connection to its daemon.
pub(crate) struct Mount {
    state: AtomicU32,
    users: AtomicU32,
    client: AtomicPtr<Client>,
    /// Number of the connection, unique in the process; what was proven on another one is not proven.
    connection: AtomicU32,
    /// The daemon's mount generation that the table of paths is good for.
    generation: AtomicU64,
    dev: AtomicU64,
    mount_id: AtomicU64,
    mask: AtomicU32,
    attributes_mask: AtomicU64,
    /// `f_flags`; negative if not asked for yet.
    statfs_flags: AtomicI64,
    /// Real and effective ids were equal when the connection was made.
    same_ids: AtomicBool,
    /// The connection's descriptors; -1 if there is none.
    own: [AtomicI32; 3],
    /// Calls that the kernel has served because the process had not connected yet; [`NO_MORE`] when it has, or must.
    unconnected: AtomicU32,
    /// The last file that was opened was opened virtually.
    opens_virtually: AtomicBool,
    /// The hidden directory, which the mount's path need not lead to for ever.
    hidden: Kept,
    /// What virtual descriptors are duplicates of.
    placeholder: Kept,
    /// Directories in which files are opened without asking.
    lent: Library,
    socket: [AtomicU8; SOCKET_MAX],
    socket_len: AtomicU32,
    /// The generation that came with the hint in the environment.
    hinted: AtomicU64,
}

/// [`Mount::unconnected`]: a call is no reason to wait any more.
const NO_MORE: u32 = u32::MAX;
/// No generation was handed down.
const NOT_HINTED: u64 = u64::MAX;

impl Mount {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            users: AtomicU32::new(0),
            client: AtomicPtr::new(std::ptr::null_mut()),
            connection: AtomicU32::new(0),
            generation: AtomicU64::new(0),
            dev: AtomicU64::new(0),
            mount_id: AtomicU64::new(0),
            mask: AtomicU32::new(0),
            attributes_mask: AtomicU64::new(0),
            statfs_flags: AtomicI64::new(-1),
            same_ids: AtomicBool::new(false),
            own: [const { AtomicI32::new(-1) }; 3],
            unconnected: AtomicU32::new(0),
            opens_virtually: AtomicBool::new(false),
            hidden: Kept::new(),
            placeholder: Kept::new(),
            lent: Library::new(),
            socket: [const { AtomicU8::new(0) }; SOCKET_MAX],
            socket_len: AtomicU32::new(0),
            hinted: AtomicU64::new(NOT_HINTED),
        }
    }

    /// Tries to be alone with the connection, and does something then. No signal handler may come in between: it might have
    /// to wait for that ([`enter_again`]).
    fn alone<R>(&self, f: impl FnOnce() -> R) -> Option<R> {
        sys::without_signals(|| {
            self.users.compare_exchange(0, ALONE, Ordering::AcqRel, Ordering::Relaxed).ok()?;
            let result = f();
            self.users.fetch_sub(ALONE, Ordering::Release);
            Some(result)
        })
    }

    /// Gives up the hidden directory and what is in it, and what was lent.
    fn drop_hidden(&self) {
        self.lent.give_up();
        self.placeholder.give_up();
        self.hidden.give_up();
    }

    /// Whether a process that has not connected yet had better leave this call to the kernel: connecting costs as much
    /// as many calls, and most programs make few.
    fn is_too_early(&self) -> bool {
        let limit = CONNECT_AFTER.load(Ordering::Relaxed);
        let count = |calls: u32| (calls < limit).then_some(calls.saturating_add(1));
        self.unconnected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Protects the connection's descriptors from the program.
    fn protect(&self, fds: [Option<RawFd>; 3]) {
        for (own, fd) in self.own.iter().zip(fds.into_iter().flatten()) {
            own.store(fd, Ordering::Relaxed);
            FDS.set(fd, Kind::Own);
        }
    }

    /// No longer protects them: they are about to be closed or moved, through the hooked `close` too.
    fn unprotect(&self) {
        for own in &self.own {
            FDS.clear(own.swap(-1, Ordering::Relaxed));
        }
    }

    /// Drops a retired or dead connection if nobody uses it.
    fn reclaim(&self) {
        self.alone(|| {
            self.unprotect();
            self.drop_hidden();
            drop(take(self.client.swap(std::ptr::null_mut(), Ordering::AcqRel)));
            let _ = self.change(RETIRED, CANDIDATE) || self.change(DEAD, REFUSED);
        });
    }
}

/// Takes a client out of the place that `attach` put it in.
fn take(client: *mut Client) -> Option<Client> {
    if client.is_null() {
        return None;
    }
    // SAFETY: the pointer comes from `Pages::leak` and was swapped out of its mount by a caller that is
    // alone with it, so nobody else reads the value or the page again.
    unsafe {
        let value = client.read();
        let _ = rustix::mm::munmap(client.cast(), size_of::<Client>().next_multiple_of(4096));
        Some(value)
    }
}

static TABLE: mounts::Table = mounts::Table::new();
static ALL: [Mount; MOUNTS] = [const { Mount::new() }; MOUNTS];
/// Connections made so far; numbers begin with 1.
static CONNECTIONS: AtomicU32 = AtomicU32::new(0);
/// Counts changes of credentials, so that a connection made during one is not used.
static CREDENTIALS: AtomicU32 = AtomicU32::new(0);
/// How many calls on a mount the kernel serves before the process connects.
static CONNECT_AFTER: AtomicU32 = AtomicU32::new(environment::CONNECT_AFTER_DEFAULT);
static COMPLAINS: AtomicBool = AtomicBool::new(false);
/// The list of mounts came from the environment and has not been compared with the kernel's.
static HINTED: AtomicBool = AtomicBool::new(false);

/// The table of mount paths.
#[inline]
pub(crate) fn table() -> &'static mounts::Table {
    &TABLE
}

/// A connection in use; it stays as long as this value does.
pub(crate) struct Guard {
    mount: &'static Mount,
    index: usize,
    client: &'static Client,
    forks: u32,
}

impl Guard {
    /// The connection.
    #[inline]
    pub(crate) fn client(&self) -> &Client {
        self.client
    }

    /// The mount's number in this process.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// The connection's number.
    pub(crate) fn connection(&self) -> u32 {
        self.mount.connection.load(Ordering::Relaxed)
    }

    /// What the kernel says about the mount.
    pub(crate) fn facts(&self) -> MountFacts {
        facts(self.mount)
    }

    /// Whether `access` and `faccessat(AT_EACCESS)` mean the same for this process.
    pub(crate) fn has_same_ids(&self) -> bool {
        self.mount.same_ids.load(Ordering::Relaxed)
    }

    /// Whether an object was reached through this mount.
    pub(crate) fn holds(&self, identity: &Identity) -> bool {
        let facts = self.facts();
        identity.dev == facts.dev && identity.mount_id == facts.mount_id
    }

    /// `f_flags` as the kernel reports it; asks the kernel once.
    pub(crate) fn statfs_flags(&self) -> Option<i64> {
        let known = self.mount.statfs_flags.load(Ordering::Relaxed);
        if known >= 0 {
            return Some(known);
        }
        let mut buffer = [0; MOUNT_PATH_MAX + 1];
        if !TABLE.path_of(self.index, &mut buffer) {
            return None;
        }
        let flags = rustix::fs::statfs(CStr::from_bytes_until_nul(&buffer).ok()?).ok()?.f_flags;
        self.mount.statfs_flags.store(flags, Ordering::Relaxed);
        Some(flags)
    }

    /// Whether files can be opened virtually.
    pub(crate) fn has_virtual(&self) -> bool {
        self.client.welcome().hidden.first().is_some_and(|first| *first != 0)
    }

    /// Whether a file that is opened next will probably be opened virtually.
    pub(crate) fn opens_virtually(&self) -> bool {
        self.mount.opens_virtually.load(Ordering::Relaxed)
    }

    /// How the last file was opened.
    pub(crate) fn opened_virtually(&self, virtually: bool) {
        if self.opens_virtually() != virtually {
            self.mount.opens_virtually.store(virtually, Ordering::Relaxed);
        }
    }

    /// A duplicate of the placeholder, at the lowest free number: what a virtual descriptor is.
    ///
    /// # Errors
    /// `EMFILE`; another errno if the mount has none.
    pub(crate) fn virtual_number(&self, closes_by_exec: bool) -> Result<RawFd, i32> {
        let kept = &self.mount.placeholder;
        loop {
            let now = kept.now();
            let Some(placeholder) = now.fd() else {
                self.keep_placeholder()?;
                continue;
            };
            let number = sys::duplicate(placeholder, closes_by_exec);
            if kept.now() == now {
                return number;
            }
            // It was moved or given up in between, and this may be a duplicate of what has its number now.
            if let Ok(number) = number {
                sys::close(number);
            }
        }
    }

    /// Opens the placeholder, unless it is open.
    pub(crate) fn keep_placeholder(&self) -> Result<(), i32> {
        let kept = &self.mount.placeholder;
        let now = kept.now();
        if now.fd().is_some() {
            return Ok(());
        }
        let low = self.open_hidden(handshake::PLACEHOLDER.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW)?;
        kept.keep(now, low, self.client.first_fd())
    }

    /// Opens a path of the directory `base` to read, if that was lent, or the directory in which the path ends.
    pub(crate) fn open_lent(&self, base: u64, path: &CStr, place: InDirectory, flags: i32) -> Option<Beside> {
        self.mount.lent.open(self.client, (base, path), place, flags)
    }

    /// Gives up the placeholder, so that a number is free for a moment; whether there was one.
    pub(crate) fn spare_number(&self) -> bool {
        self.mount.placeholder.give_up()
    }

    /// Opens a name in the mount's hidden directory. That is kept open with the first one: what is open goes on when the mount's
    /// path leads elsewhere.
    ///
    /// # Errors
    /// `EMFILE`, and what the kernel says of the mount.
    pub(crate) fn open_hidden(&self, name: &[u8], flags: OFlags) -> Result<sys::Hidden, i32> {
        let kept = &self.mount.hidden;
        loop {
            let now = kept.now();
            let Some(directory) = now.fd().and_then(sys::borrow) else {
                let mut path = [0; HIDDEN_PATH];
                let path = self.hidden_path(&mut path).ok_or(libc::ENOENT)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                let low = sys::try_open_hidden(rustix::fs::CWD, path, flags)?;
                kept.keep(now, low, self.client.first_fd())?;
                continue;
            };
            let mut path = [0; HIDDEN_NAME];
            path.get_mut(..name.len()).ok_or(libc::ENAMETOOLONG)?.copy_from_slice(name);
            let path = CStr::from_bytes_until_nul(&path).map_err(|_| libc::ENAMETOOLONG)?;
            return sys::try_open_hidden(directory, path, flags);
        }
    }

    /// The path of the mount's hidden directory.
    fn hidden_path<'b>(&self, buffer: &'b mut [u8; HIDDEN_PATH]) -> Option<&'b CStr> {
        let mut root = [0; MOUNT_PATH_MAX + 1];
        if !TABLE.path_of(self.index, &mut root) {
            return None;
        }
        let root = CStr::from_bytes_until_nul(&root).ok()?.to_bytes();
        let hidden = &self.client.welcome().hidden;
        let hidden = hidden.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
        let mut len = 0;
        for part in [root, b"/", hidden, b"\0"] {
            buffer.get_mut(len..)?.get_mut(..part.len())?.copy_from_slice(part);
            len += part.len();
        }
        CStr::from_bytes_with_nul(buffer.get(..len)?).ok()
    }

    /// The connection is of no use any more: whoever comes next drops it.
    pub(crate) fn is_lost(&self) {
        self.mount.change(ATTACHED, DEAD);
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        // A child that was forked meanwhile has begun to count anew.
        if self.forks == process::forks() {
            self.mount.users.fetch_sub(1, Ordering::Release);
        }
    }
}

/// What came of the wish to use a connection.
pub(crate) enum Entry {
    /// It may be used.
    Inside(Guard),
    /// The mount table had changed; the paths of mounts have been listed anew and are to be looked at again.
    Relisted,
    /// The kernel serves the call.
    Outside,
}

/// Uses the connection to the mount that an object is known to be on, and makes it if need be; `None` sends the call
/// to the kernel.
#[inline]
pub(crate) fn enter(index: usize) -> Option<Guard> {
    for attempt in Attempt::ALL {
        match try_enter(index, attempt) {
            Entry::Inside(guard) => return Some(guard),
            Entry::Relisted => {}
            Entry::Outside => return None,
        }
    }
    None
}

/// As [`enter`], for what the kernel cannot serve: connects with the first call.
pub(crate) fn enter_at_once(index: usize) -> Option<Guard> {
    connect_now(index);
    enter(index)
}

/// The next call on a mount connects, however few there have been.
pub(crate) fn connect_now(index: usize) {
    if let Some(mount) = ALL.get(index)
        && mount.unconnected.load(Ordering::Relaxed) != NO_MORE
    {
        mount.unconnected.store(NO_MORE, Ordering::Relaxed);
    }
}

/// Whether no mount waits for a call that is worth connecting.
pub(crate) fn is_connected_to_all() -> bool {
    ALL.iter().all(|mount| {
        mount.state.load(Ordering::Relaxed) != CANDIDATE
            || mount.unconnected.load(Ordering::Relaxed) == NO_MORE
    })
}

/// How long to wait for another thread that makes the list of paths anew, in pauses (about a second).
const TABLE_PATIENCE: u32 = 5000;
/// Room for the path of a mount's hidden directory.
const HIDDEN_PATH: usize = MOUNT_PATH_MAX + 128;
/// Room for a name there.
const HIDDEN_NAME: usize = 256;

/// Uses a connection on which something is open; `None` if it has ended. Unlike [`enter`] it asks neither for the paths of
/// mounts nor whether the bypass is on, because nobody else can serve what is open.
pub(crate) fn enter_again(index: usize, connection: u32) -> Option<Guard> {
    let mount = ALL.get(index)?;
    let mut turn = 0;
    loop {
        let forks = process::forks();
        if mount.users.fetch_add(1, Ordering::AcqRel) & ALONE == 0 {
            // SAFETY: as in `try_enter`: nobody takes the client away while we are counted, in whatever state.
            let client = unsafe { mount.client.load(Ordering::Acquire).as_ref() };
            if let Some(client) = client
                && mount.connection.load(Ordering::Relaxed) == connection
                && !client.is_closed()
            {
                return Some(Guard { mount, index, client, forks });
            }
            mount.users.fetch_sub(1, Ordering::Release);
            return None;
        }
        mount.users.fetch_sub(1, Ordering::Release);
        sys::pause(turn);
        turn = turn.saturating_add(1);
    }
}

/// Takes back what calls of this thread's hold that it has left by a jump. In a signal handler on a stack of its own nobody can
/// tell which calls those are.
pub(crate) fn reclaim(call: &Beginning) {
    if sys::is_on_signal_stack() {
        return;
    }
    call.each_outlived(|client, slot| {
        let connected =
            ALL.iter().enumerate().filter(|(_, mount)| !mount.client.load(Ordering::Relaxed).is_null());
        let mut guards = connected
            .filter_map(|(index, mount)| enter_again(index, mount.connection.load(Ordering::Relaxed)));
        // If its connection has ended, it has ended with it.
        guards
            .find(|guard| guard.client().number() == client)
            .is_none_or(|guard| guard.client().take_back(slot))
    });
}

/// How often the mount table may change under a call before the kernel serves it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    Early,
    Last,
}

impl Attempt {
    pub(crate) const ALL: [Self; 5] = [Self::Early, Self::Early, Self::Early, Self::Early, Self::Last];
}

/// Uses a connection that is as good as it was when it was last used; `None` if more must be done to find out ([`try_enter`]).
#[inline(always)]
pub(crate) fn enter_now(index: usize) -> Option<Guard> {
    let mount = ALL.get(index)?;
    if !process::is_on() || mount.state.load(Ordering::Acquire) != ATTACHED {
        return None;
    }
    let forks = process::forks();
    if mount.users.fetch_add(1, Ordering::AcqRel) & ALONE == 0
        && mount.state.load(Ordering::Acquire) == ATTACHED
        // SAFETY: an attached mount has a client, which is taken away only by somebody who is alone, which nobody
        // is while we are counted among the users.
        && let Some(client) = unsafe { mount.client.load(Ordering::Acquire).as_ref() }
    {
        let guard = Guard { mount, index, client, forks };
        let good =
            !client.is_closed() && client.mount_generation() == mount.generation.load(Ordering::Relaxed);
        return good.then_some(guard);
    }
    mount.users.fetch_sub(1, Ordering::Release);
    None
}

/// Uses the connection to the mount that the table of paths has named.
#[inline]
pub(crate) fn try_enter(index: usize, attempt: Attempt) -> Entry {
    if !process::is_on() {
        return Entry::Outside;
    }
    let Some(mount) = ALL.get(index) else { return Entry::Outside };
    if mount.state.load(Ordering::Acquire) != ATTACHED && !prepare(index, mount) {
        return Entry::Outside;
    }
    let forks = process::forks();
    if mount.users.fetch_add(1, Ordering::AcqRel) & ALONE != 0
        || mount.state.load(Ordering::Acquire) != ATTACHED
    {
        mount.users.fetch_sub(1, Ordering::Release);
        return Entry::Outside;
    }
    // SAFETY: an attached mount has a client, which is taken away only by somebody who is alone, which nobody
    // is while we are counted among the users.
    let client = unsafe { mount.client.load(Ordering::Acquire).as_ref() };
    let Some(client) = client else {
        mount.users.fetch_sub(1, Ordering::Release);
        return Entry::Outside;
    };
    let guard = Guard { mount, index, client, forks };
    if client.is_closed() {
        guard.is_lost();
        return Entry::Outside;
    }
    let generation = client.mount_generation();
    if generation != mount.generation.load(Ordering::Relaxed) {
        return relist(guard, generation, attempt);
    }
    Entry::Inside(guard)
}

/// The daemon has told of another generation of the mount table than the paths are good for.
#[cold]
fn relist(guard: Guard, generation: u64, attempt: Attempt) -> Entry {
    let listed = match list_from_kernel() {
        Listing::Done => {
            guard.mount.generation.store(generation, Ordering::Relaxed);
            guard.mount.statfs_flags.store(-1, Ordering::Relaxed);
            true
        }
        Listing::Others => (0..TABLE_PATIENCE).any(|turn| {
            sys::pause(turn);
            !TABLE.is_being_replaced()
        }),
        Listing::Failed => false,
    };
    if listed && attempt == Attempt::Early {
        return Entry::Relisted;
    }
    guard.client.counters().fell_back(Fallback::MountsChanged);
    Entry::Outside
}

/// The mount with a device number, if it may be ours.
pub(crate) fn by_dev(dev: (u32, u32)) -> Option<usize> {
    ALL.iter().position(|mount| {
        mount.dev.load(Ordering::Relaxed) == pack(dev)
            && matches!(mount.state.load(Ordering::Acquire), CANDIDATE | CONNECTING | ATTACHED | RETIRED)
    })
}

/// Gives up every descriptor of all connections that can be had again; whether there was one.
pub(crate) fn spare_numbers() -> bool {
    // All are to be given up.
    ALL.iter().fold(false, |any, mount| any | mount.placeholder.give_up() | mount.lent.give_up())
}

/// What the kernel says about the mount with a device number: that takes being connected to it.
pub(crate) fn facts_of(dev: (u32, u32)) -> Option<MountFacts> {
    let mut of_dev = ALL.iter().enumerate().filter(|(_, mount)| {
        mount.dev.load(Ordering::Relaxed) == pack(dev) && mount.state.load(Ordering::Relaxed) != FREE
    });
    of_dev.find_map(|(index, mount)| match mount.state.load(Ordering::Relaxed) {
        ATTACHED => Some(facts(mount)),
        _ => enter_at_once(index).map(|guard| guard.facts()),
    })
}

fn facts(mount: &Mount) -> MountFacts {
    MountFacts {
        dev: unpack(mount.dev.load(Ordering::Relaxed)),
        mount_id: mount.mount_id.load(Ordering::Relaxed),
        mask: mount.mask.load(Ordering::Relaxed),
        attributes_mask: mount.attributes_mask.load(Ordering::Relaxed),
    }
}

fn pack((major, minor): (u32, u32)) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

fn unpack(dev: u64) -> (u32, u32) {
    ((dev >> 32) as u32, dev as u32)
}

/// Brings a mount that is not attached as far as possible; whether it is attached then.
#[cold]
fn prepare(index: usize, mount: &'static Mount) -> bool {
    if matches!(mount.state.load(Ordering::Acquire), RETIRED | DEAD) {
        mount.reclaim();
    }
    if mount.state.load(Ordering::Acquire) != CANDIDATE
        || mount.is_too_early()
        || !mount.change(CANDIDATE, CONNECTING)
    {
        return false;
    }
    let credentials = CREDENTIALS.load(Ordering::Acquire);
    // A handler that does not return (`siglongjmp`) would leave the mount connecting for ever.
    let state = sys::without_signals(|| {
        let state = attach(index, mount);
        mount.change(CONNECTING, state);
        state
    });
    // A mount that was made anew since the list was made has another device or another daemon.
    if matches!(state, FOREIGN | REFUSED) && HINTED.swap(false, Ordering::Relaxed) {
        mount.socket_len.store(0, Ordering::Relaxed);
        mount.change(state, CANDIDATE);
        let _ = list_from_kernel();
    }
    if credentials != CREDENTIALS.load(Ordering::Acquire) {
        let _ = mount.change(ATTACHED, RETIRED) || mount.change(REFUSED, CANDIDATE);
    }
    mount.state.load(Ordering::Acquire) == ATTACHED
}

/// Connects, and returns the state to be in then.
fn attach(index: usize, mount: &'static Mount) -> u32 {
    let mut buffer = [0; MOUNT_PATH_MAX + 1];
    if !TABLE.path_of(index, &mut buffer) {
        return CANDIDATE;
    }
    let Ok(path) = CStr::from_bytes_until_nul(&buffer) else { return FOREIGN };
    if !has_room() {
        return REFUSED;
    }
    let dev = unpack(mount.dev.load(Ordering::Relaxed));
    let Some(identity) = sys::identify(Object::Path(path)).filter(|it| it.is_mount_root && it.dev == dev)
    else {
        return FOREIGN;
    };
    let mut socket = [0; SOCKET_MAX];
    let mut len = mount.socket_len.load(Ordering::Relaxed) as usize;
    for (place, byte) in socket.iter_mut().zip(&mount.socket) {
        *place = byte.load(Ordering::Relaxed);
    }
    let hearsay = len != 0;
    if !hearsay {
        match rustix::fs::getxattr(path, handshake::SOCKET_XATTR, &mut socket) {
            Ok(found) if found > 0 => len = found,
            _ => return FOREIGN,
        }
    }
    let Some(socket) = socket.get(..len) else { return FOREIGN };
    let show = path.to_str().unwrap_or("(a path that is not UTF-8)");
    let client = match Client::connect(socket, sys::program_name(), first_fd()) {
        Ok(client) => client,
        Err(error) => {
            complain(format_args!("{show} is served through the kernel: {error}"));
            return REFUSED;
        }
    };
    // A name from the environment may be a dead daemon's, which anybody can listen on now; one that the mount itself
    // tells is as good as the mount.
    let trusted = || {
        let daemon = sys::peer_user(client.as_fd());
        daemon.is_some_and(|uid| uid == 0 || uid == rustix::process::geteuid().as_raw())
    };
    if hearsay && !trusted() {
        complain(format_args!(
            "{show} is served through the kernel: another user listens in its daemon's place"
        ));
        return REFUSED;
    }
    if client.welcome().dev != dev {
        complain(format_args!("{show} is served through the kernel: its daemon serves another mount"));
        return REFUSED;
    }
    // Without a hint nobody knows whether the list is older than what the daemon tells: it is made again.
    let generation = mount.hinted.swap(NOT_HINTED, Ordering::Relaxed);
    mount.generation.store(generation, Ordering::Relaxed);
    mount.mount_id.store(identity.mount_id, Ordering::Relaxed);
    mount.mask.store(identity.mask, Ordering::Relaxed);
    mount.attributes_mask.store(identity.attributes_mask, Ordering::Relaxed);
    mount.connection.store(CONNECTIONS.fetch_add(1, Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    mount.same_ids.store(has_same_ids(), Ordering::Relaxed);
    let calls = Some(mount.unconnected.swap(NO_MORE, Ordering::Relaxed)).filter(|calls| *calls != NO_MORE);
    client.counters().fell_back_before(Fallback::NotConnected, calls.unwrap_or(0).into());
    let fds = client.fds();
    let Some(client) = Pages::new(size_of::<Client>()).and_then(|pages| pages.leak(client)) else {
        return REFUSED;
    };
    mount.protect(fds);
    mount.client.store(client, Ordering::Release);
    ATTACHED
}

fn has_same_ids() -> bool {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    getuid() == geteuid() && getgid() == getegid()
}

/// Where the numbers of our own descriptors begin.
fn first_fd() -> RawFd {
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(limit) if limit < SMALL_LIMIT => limit.saturating_sub(RESERVED).max(3) as RawFd,
        _ => FIRST_FD,
    }
}

/// Whether the limit of descriptors is the usual one or higher.
fn has_many_numbers() -> bool {
    rustix::process::getrlimit(Resource::Nofile).current.is_none_or(|limit| limit >= SMALL_LIMIT)
}

/// Whether limits leave room for a connection beside what the program counts on: natively it has every descriptor below the
/// limit for itself, and all of its address space.
fn has_room() -> bool {
    let at_least =
        |resource, least| rustix::process::getrlimit(resource).current.is_none_or(|now| now >= least);
    at_least(Resource::Nofile, NOFILE_MIN) && at_least(Resource::As, ADDRESS_SPACE_MIN)
}

fn complain(message: std::fmt::Arguments<'_>) {
    if COMPLAINS.load(Ordering::Relaxed) {
        sys::complain(message);
    }
}

/// The process's credentials have changed: connections made with the old ones are not used again.
pub(crate) fn credentials_changed() {
    CREDENTIALS.fetch_add(1, Ordering::AcqRel);
    for mount in &ALL {
        if mount.change(ATTACHED, RETIRED) {
            mount.reclaim();
        } else {
            mount.change(REFUSED, CANDIDATE);
        }
    }
}

/// Drops all connections, for good.
pub(crate) fn end() {
    for mount in &ALL {
        if mount.change(ATTACHED, DEAD) {
            mount.reclaim();
        }
    }
}

/// In a forked child, before anything else of ours: the connections are the parent's. Closes the copies of their
/// descriptors; new ones are made when needed.
pub(crate) fn after_fork() {
    TABLE.after_fork();
    for mount in &ALL {
        let client = mount.client.swap(std::ptr::null_mut(), Ordering::AcqRel);
        let users = mount.users.swap(0, Ordering::AcqRel);
        // SAFETY: null or a client that this child alone knows: no other thread came along.
        if let Some(reference) = unsafe { client.as_ref() } {
            mount.unprotect();
            mount.drop_hidden();
            if users == 0 {
                if let Some(client) = take(client) {
                    client.forget();
                }
            } else {
                // Perhaps only other threads used it, perhaps the call that a signal handler interrupted to
                // fork: it may go on with the client, so that stays.
                reference.abandon();
            }
        }
        // Most children execute another program soon.
        mount.unconnected.store(0, Ordering::Relaxed);
        match mount.state.load(Ordering::Acquire) {
            ATTACHED | RETIRED | CONNECTING => mount.state.store(CANDIDATE, Ordering::Release),
            DEAD => mount.state.store(REFUSED, Ordering::Release),
            _ => {}
        }
    }
}

/// Makes room for the program at one of our own descriptors' numbers: moves ours elsewhere.
///
/// # Errors
/// `EBUSY` if it is in use this very moment (which `dup2` may answer on Linux), `EMFILE` if there is no other
/// number.
pub(crate) fn vacate(fd: RawFd) -> Result<(), i32> {
    let holds = |kept: &Kept| kept.now().fd() == Some(fd);
    if let Some(mount) = ALL.iter().find(|mount| holds(&mount.placeholder)) {
        return mount.placeholder.leave(fd);
    }
    if let Some(left) = ALL.iter().find_map(|mount| mount.lent.leave(fd)) {
        return left;
    }
    let is_its = |mount: &&Mount| {
        holds(&mount.hidden) || mount.own.iter().any(|own| own.load(Ordering::Relaxed) == fd)
    };
    let Some(mount) = ALL.iter().find(is_its) else { return Ok(()) };
    let moved = mount.alone(|| {
        if holds(&mount.hidden) {
            // Files are made in it: nobody may take another directory for it.
            return mount.hidden.leave(fd);
        }
        // SAFETY: null or attached, and nobody else uses it while we are alone.
        let Some(client) = (unsafe { mount.client.load(Ordering::Acquire).as_mut() }) else { return Ok(()) };
        mount.unprotect();
        let moved = client.vacate(fd).map_err(|errno| errno.raw_os_error());
        mount.protect(client.fds());
        moved
    });
    moved.unwrap_or(Err(libc::EBUSY))
}

/// Learns the mounts when the process starts: from the environment, or else from the kernel.
pub(crate) fn start(environment: sys::Strings) {
    COMPLAINS.store(environment.value(environment::DEBUG).is_some(), Ordering::Relaxed);
    let calls = environment::connect_after(environment.value(environment::CONNECT_AFTER));
    CONNECT_AFTER.store(calls, Ordering::Relaxed);
    match environment.value(environment::MOUNTS) {
        Some(value) => {
            HINTED.store(true, Ordering::Relaxed);
            list_from_hints(value);
        }
        None => _ = list_from_kernel(),
    }
}

/// Whether a descriptor is the library's, which the program must not touch.
#[inline]
pub(crate) fn is_own(fd: RawFd) -> bool {
    fd >= 3 && FDS.is_own(fd)
}
