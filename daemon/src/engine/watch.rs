//! Whom the kernel must tell of changes: what is watched by inotify and fanotify, and the subtrees that the mount's options leave
//! to the kernel.
//!
//! The kernel tells watchers of what it does itself and of nothing else. So calls that a watcher would hear of are left to it:
//! those on a watched inode, and on names in a watched directory, by whichever client.
//!
//! *From when on.* A watch holds for the calls that begin after it was announced; those that had begun before are waited for
//! ([`Watches::settle`]), so that whoever looks at a directory after he has watched it sees what happened unheard.
//!
//! *Until when.* A client takes its watches back one by one, or they end with it; but the notification instance may live
//! on in the program that it executed, in children, with whoever was sent its descriptor. So the watches of a client
//! that has gone become *orphans*, which stay until nobody on this machine holds such a watch any more, as /proc/PID/fdinfo
//! tells.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fuser::INodeNo;
use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;

use crate::engine::serve::Call;
use crate::engine::walk::Place;
use crate::engine::{Context, Engine};
use crate::filesystem::Filesystem;
use finesse_ipc::frame::{BY_FILE, Fallback, Op, ROOT};

/// Beyond this many watched inodes, everything counts as watched.
const INODES_MAX: usize = 1 << 20;
/// How long an announcement waits for operations that began before it.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Workers rarely exceed this; a power of two.
const STRIPES: usize = 16;

/// What a client watches: how many watches of each inode, and of the mount as a whole.
#[derive(Debug, Default)]
pub(crate) struct Own {
    inodes: HashMap<u64, u32>,
    everything: u32,
}

/// What somebody on this machine watches, as /proc tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Inodes of the mount.
    pub(crate) inodes: HashSet<u64>,
    /// The mount as a whole.
    pub(crate) everything: bool,
}

#[derive(Default)]
struct State {
    inodes: HashMap<u64, u32>,
    everything: u32,
    orphans: Held,
}

impl State {
    fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.everything == 0 && !self.has_orphans()
    }

    fn has_orphans(&self) -> bool {
        self.orphans.everything || !self.orphans.inodes.is_empty()
    }
}

#[repr(align(128))]
#[derive(Default)]
struct Stripe([AtomicUsize; 2]);

/// The watches of one mount.
pub(crate) struct Watches {
    /// Whether anything is watched.
    any: AtomicBool,
    state: Mutex<State>,
    /// Operations that a watcher may hear of and that are under way, by the parity of `epoch` when they began.
    flights: [Stripe; STRIPES],
    epoch: AtomicUsize,
    settling: Mutex<()>,
}

/// An operation under way.
pub(crate) struct Flight<'w>(&'w AtomicUsize);

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) & (STRIPES - 1));
    OWN.with(|own| *own)
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            any: AtomicBool::new(false),
            state: Mutex::default(),
            flights: std::array::from_fn(|_| Stripe::default()),
            epoch: AtomicUsize::new(0),
            settling: Mutex::default(),
        }
    }
}

impl Watches {
    /// An operation begins: from here on it heeds what is watched.
    #[inline]
    pub(crate) fn begin(&self) -> Flight<'_> {
        let flights = &self.flights[own_stripe()].0[self.epoch.load(Ordering::SeqCst) & 1];
        flights.fetch_add(1, Ordering::SeqCst);
        Flight(flights)
    }

    /// Whether anything is watched.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        // After `begin`, in one order with an announcement that counts the operations under way after it.
        self.any.load(Ordering::SeqCst)
    }

    fn change<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = f(&mut state);
        self.any.store(!state.is_empty(), Ordering::SeqCst);
        result
    }

    /// A client announces a watch, of everything if of no inode. Returns once it holds.
    pub(crate) fn watch(&self, own: &Mutex<Own>, ino: Option<u64>) {
        self.change(|state| {
            let mut own = own.lock();
            match ino {
                Some(ino) if own.inodes.len() < INODES_MAX && state.inodes.len() < INODES_MAX => {
                    *own.inodes.entry(ino).or_default() += 1;
                    *state.inodes.entry(ino).or_default() += 1;
                }
                _ => {
                    own.everything += 1;
                    state.everything += 1;
                }
            }
        });
        self.settle();
    }

    /// A client takes back one watch of an inode.
    pub(crate) fn unwatch(&self, own: &Mutex<Own>, ino: u64) {
        self.change(|state| {
            if take_one(&mut own.lock().inodes, ino) {
                take_one(&mut state.inodes, ino);
            }
        });
    }

    /// A client has gone: its watches are nobody's until [`Watches::keep`].
    pub(crate) fn orphan(&self, own: &Mutex<Own>) {
        let own = std::mem::take(&mut *own.lock());
        if own.everything == 0 && own.inodes.is_empty() {
            return;
        }
        self.change(|state| {
            for (ino, count) in own.inodes {
                for _ in 0..count {
                    take_one(&mut state.inodes, ino);
                }
                state.orphans.inodes.insert(ino);
            }
            state.everything -= own.everything;
            state.orphans.everything |= own.everything > 0;
        });
    }

    /// Whether there are watches of clients that have gone.
    pub(crate) fn has_orphans(&self) -> bool {
        self.any() && self.state.lock().has_orphans()
    }

    /// Of the orphans, keeps those that somebody holds.
    pub(crate) fn keep(&self, held: &Held) {
        self.change(|state| {
            state.orphans.inodes.retain(|ino| held.inodes.contains(ino));
            state.orphans.everything &= held.everything;
        });
    }

    /// Whether a watcher would hear of something that concerns one of these inodes.
    fn concerns(&self, inodes: impl IntoIterator<Item = u64>) -> bool {
        let state = self.state.lock();
        state.everything > 0
            || state.orphans.everything
            || inodes
                .into_iter()
                .any(|ino| state.inodes.contains_key(&ino) || state.orphans.inodes.contains(&ino))
    }

    /// Waits for the operations that began before the last change: they may not have heeded it.
    fn settle(&self) {
        let _alone = self.settling.lock();
        let before = self.epoch.fetch_add(1, Ordering::SeqCst) & 1;
        let deadline = Instant::now() + SETTLE_MAX;
        // One that has read the old parity and is counted only later finds the change.
        while self.flights.iter().any(|stripe| stripe.0[before].load(Ordering::SeqCst) != 0) {
            if Instant::now() > deadline {
                tracing::warn!("an operation that began before a watch takes long; not waiting for it");
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn take_one(counts: &mut HashMap<u64, u32>, ino: u64) -> bool {
    let Some(count) = counts.get_mut(&ino) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(&ino);
    }
    true
}

/// What watchers hear of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// That something was opened or read.
    Use,
    Change,
}

fn heard(call: &Call<'_>, op: Op) -> Heard {
    match op {
        Op::Open => {
            let flags = call.frame.flags as i32;
            match flags & libc::O_ACCMODE == libc::O_RDONLY && flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
                true => Heard::Use,
                false => Heard::Change,
            }
        }
        Op::Read | Op::OpenDir | Op::ReadDir => Heard::Use,
        Op::Unlink
        | Op::Rmdir
        | Op::Rename
        | Op::Mkdir
        | Op::Mknod
        | Op::Link
        | Op::Symlink
        | Op::Chmod
        | Op::Chown
        | Op::Truncate
        | Op::Utimens
        | Op::Setxattr
        | Op::Removexattr
        | Op::Write
        | Op::Allocate => Heard::Change,
        _ => Heard::Nothing,
    }
}

impl<FS: Filesystem> Engine<FS> {
    /// Holds off announcements of watches during an operation of which a watcher might hear; says why the kernel must do it, if
    /// a watcher would.
    pub(super) fn heed_watchers(&self, call: &Call<'_>, op: Op) -> (Option<Flight<'_>>, Option<Fallback>) {
        let heard = heard(call, op);
        if heard == Heard::Nothing {
            return (None, None);
        }
        let flight = self.watches.begin();
        let reason = match self.watches.any() || !self.subtrees.is_empty() {
            true => self.left_to_kernel(call, op, heard),
            false => None,
        };
        (Some(flight), reason)
    }

    #[cold]
    fn left_to_kernel(&self, call: &Call<'_>, op: Op, heard: Heard) -> Option<Fallback> {
        if call.frame.flags & BY_FILE != 0 || matches!(op, Op::Read | Op::Write | Op::Allocate) {
            let ino = self.file(call).ok()?.inode().ino;
            return self.watches.concerns([ino]).then_some(Fallback::Watched);
        }
        if op == Op::ReadDir {
            // Whoever opened it before is not heard; the kernel knows nothing of an open directory of ours.
            return None;
        }
        let flags = call.frame.flags as i32;
        let follow = match op {
            Op::Open => {
                let exclusive = libc::O_CREAT | libc::O_EXCL;
                flags & libc::O_NOFOLLOW == 0 && flags & exclusive != exclusive
            }
            Op::OpenDir => flags & libc::O_NOFOLLOW == 0,
            Op::Link => flags & libc::AT_SYMLINK_FOLLOW != 0,
            Op::Unlink | Op::Rmdir | Op::Rename | Op::Mkdir | Op::Mknod | Op::Symlink => false,
            _ => flags & libc::AT_SYMLINK_NOFOLLOW == 0,
        };
        let second = matches!(op, Op::Rename | Op::Link).then_some((call.frame.base2, call.path2, false));
        for (base, path, follow) in [Some((call.frame.base, call.path, follow)), second].into_iter().flatten()
        {
            // What fails is heard by nobody.
            let Ok(place) = self.place(call.context, &call.request, base, path, follow) else { continue };
            if self.watches.any() && self.is_watched(&place) {
                return Some(Fallback::Watched);
            }
            if heard == Heard::Change && self.is_in_subtree(call.context, &place) {
                return Some(Fallback::KernelSubtree);
            }
        }
        None
    }

    fn is_watched(&self, place: &Place) -> bool {
        match &place.directory {
            // The directory of what is named by itself (`.`, a descriptor) only the kernel knows.
            None => true,
            Some(directory) => {
                let inode = place.inode.as_ref().map(|inode| inode.ino);
                self.watches.concerns([directory.ino].into_iter().chain(inode))
            }
        }
    }

    /// Whether the walk came through, or began in, a directory whose changes the kernel makes.
    pub(super) fn is_in_subtree(&self, context: &Context, place: &Place) -> bool {
        if self.subtrees.is_empty() {
            return false;
        }
        if place.base == ROOT && self.subtrees.iter().any(Vec::is_empty) {
            return true;
        }
        // Looked for anew each time: they may be made, moved and replaced. Their names are cached like others.
        let daemon = Self::daemons_own();
        let request = self.request(&daemon);
        let tops: HashSet<u64> = self
            .subtrees
            .iter()
            .filter_map(|path| self.resolve(&daemon, &request, ROOT, path, true).ok())
            .map(|node| node.inode.ino)
            .collect();
        context.inside.lock().contains(&place.base)
            || place
                .through
                .iter()
                .chain(&place.directory)
                .chain(&place.inode)
                .any(|inode| tops.contains(&inode.ino))
    }

    /// A client has proven a directory by its descriptor, which is at this path below the root.
    pub(crate) fn proven_at(&self, context: &Context, ino: u64, path: Option<&[u8]>) {
        if self.subtrees.is_empty() {
            return;
        }
        let is_below = |top: &Vec<u8>, path: &[u8]| {
            top.is_empty()
                || path.strip_prefix(&**top).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
        };
        // Of one whose path is not known, nothing is known.
        let inside = path.is_none_or(|path| self.subtrees.iter().any(|top| is_below(top, path)));
        self.remember_base(context, ino, inside);
    }

    pub(super) fn remember_base(&self, context: &Context, ino: u64, inside: bool) {
        match inside {
            true => drop(context.inside.lock().insert(ino)),
            false => drop(context.inside.lock().remove(&ino)),
        }
    }

    /// `Op::Watch` and `Op::Unwatch`.
    pub(super) fn announce(&self, call: &Call<'_>, op: Op) {
        let ino = (call.frame.mode == 0).then_some(INodeNo(call.frame.base).0);
        match (op, ino) {
            (Op::Watch, ino) => self.watches.watch(&call.context.watched, ino),
            (_, Some(ino)) => self.watches.unwatch(&call.context.watched, ino),
            (_, None) => {}
        }
        self.tell_what_is_lent();
    }

    /// A client has gone.
    pub(super) fn orphan_watches(&self, context: &Context) {
        self.watches.orphan(&context.watched);
        self.tell_what_is_lent();
    }

    /// Of the watches of clients that have gone, keeps those that somebody holds.
    pub(crate) fn keep_watches(&self, held: &Held) {
        self.watches.keep(held);
        self.tell_what_is_lent();
    }

    /// The watches of the mount.
    pub(crate) fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Whether an open file must not be given away as a descriptor of the backing file, through which nobody is told.
    pub(super) fn is_file_watched(&self, ino: u64) -> bool {
        self.watches.any() && self.watches.concerns([ino])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_are_counted_and_taken_back() {
        let watches = Watches::default();
        let (one, other) = (Mutex::default(), Mutex::default());
        assert!(!watches.any());
        watches.watch(&one, Some(7));
        watches.watch(&other, Some(7));
        watches.unwatch(&one, 7);
        watches.unwatch(&one, 7);
        assert!(watches.any() && watches.concerns([1, 7]) && !watches.concerns([1, 8]));
        watches.unwatch(&other, 7);
        assert!(!watches.any());
        watches.watch(&one, None);
        assert!(watches.concerns([8]));
    }

    #[test]
    fn the_watches_of_a_client_that_has_gone_stay_while_somebody_holds_them() {
        let watches = Watches::default();
        let own = Mutex::default();
        for ino in [7, 7, 8] {
            watches.watch(&own, Some(ino));
        }
        watches.orphan(&own);
        assert!(watches.has_orphans() && watches.concerns([7]) && watches.concerns([8]));
        watches.keep(&Held { inodes: [8].into_iter().collect(), everything: false });
        assert!(!watches.concerns([7]) && watches.concerns([8]));
        watches.keep(&Held::default());
        assert!(!watches.any() && !watches.has_orphans());
    }

    #[test]
    fn an_announcement_waits_for_what_began_before_it() {
        let watches = Watches::default();
        let flight = watches.begin();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                watches.watch(&Mutex::default(), Some(1));
                done.store(true, Ordering::SeqCst);
            });
            while !watches.any() {
                std::thread::yield_now();
            }
            // What begins meanwhile changes nothing about that.
            let later: Vec<_> = (0..100).map(|_| watches.begin()).collect();
            drop(later);
            assert!(!done.load(Ordering::SeqCst));
            drop(flight);
        });
        assert!(done.load(Ordering::SeqCst));
    }
}
