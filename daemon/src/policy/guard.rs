//! Enforces the policy of one mount.
//!
//! On the kernel road every request is checked when it arrives, as its caller. Walks through names that the kernel has cached
//! are no requests; so where not everybody may search, either a BPF program checks those in the kernel ([`Walks`]), or names get no
//! lifetime.
//!
//! Requests name inodes by number, so what the kernel was told of each is kept, as far as it is not everywhere the same.
//! The bypass walks paths by itself and knows where it is. It never refuses: what a rule forbids, it leaves to the kernel road.

use std::ffi::OsStr;
use std::iter;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use finesse_ebpf::Types;
use finesse_ebpf::rules::Operations;
use finesse_ebpf::walks::Walks;
use finesse_ipc::handshake::{self, PolicyStatus};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use hashbrown::HashMap;
use log::info;
use parking_lot::Mutex;

use super::{Label, Policy};
use crate::passthrough::groups_of;
use crate::request::{Credentials, Request};

/// Parts of the table of inodes; a power of two.
const SHARDS: usize = 64;

/// What the kernel checks in a directory, if it can.
const CHECKED_BY_WALKS: Operations =
    Operations::SEARCH.and(Operations::LIST).and(Operations::CREATE).and(Operations::REMOVE);

/// What is known of an inode that the kernel knows.
#[derive(Clone, Copy, Debug)]
struct Known {
    label: Label,
    /// The kernel checks who walks through it.
    walked: bool,
}

/// Where the inodes are that the kernel knows. What is missing is elsewhere ([`Policy::elsewhere`]).
#[derive(Debug, Default)]
struct Told {
    known: HashMap<u64, Known>,
    /// Files that have names at several places, which were there before the mount was.
    several: HashMap<u64, Vec<Label>>,
}

/// The policy of one mount, and what is needed to enforce it.
#[derive(Debug)]
pub(crate) struct Guard {
    policy: Arc<Policy>,
    told: Box<[Mutex<Told>]>,
    denied: AtomicU64,
    /// The kernel's part, or why it has none.
    walks: OnceLock<Result<Walks, String>>,
}

/// The label of an inode that is labelled after it was made.
#[derive(Debug)]
pub(crate) struct LabelCell(AtomicU32);

impl LabelCell {
    /// None.
    const UNKNOWN: u32 = u32::MAX;
    /// Other names of the inode may have other labels.
    const ONE_OF_SEVERAL: u32 = 1 << 31;

    /// No label.
    pub(crate) const fn unknown() -> Self {
        Self(AtomicU32::new(Self::UNKNOWN))
    }

    /// The label, if it is known to be the only one.
    pub(crate) fn get(&self) -> Option<Label> {
        let label = self.0.load(Ordering::Acquire);
        (label & Self::ONE_OF_SEVERAL == 0).then_some(Label(label))
    }

    /// The label that the inode had by the last name that was used.
    pub(crate) fn last(&self) -> Option<Label> {
        let label = self.0.load(Ordering::Acquire);
        (label != Self::UNKNOWN).then_some(Label(label & !Self::ONE_OF_SEVERAL))
    }

    /// The inode has been found, by its only name or by one that may have others.
    pub(crate) fn set(&self, label: Label, only: bool) {
        self.0.store(if only { label.0 } else { label.0 | Self::ONE_OF_SEVERAL }, Ordering::Release);
    }
}

/// What a reply tells the kernel of a name.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    guard: Arc<Guard>,
    label: Label,
    /// The kernel may remember the name.
    lasts: bool,
}

impl Naming {
    /// How long the kernel may remember the name, at most.
    pub(crate) fn lifetime(&self, ttl: Duration) -> Duration {
        if self.lasts { ttl } else { Duration::ZERO }
    }

    /// The kernel is about to be told of this inode, by the name, and was counted as knowing it.
    pub(crate) fn tell(&self, attr: &FileAttr) {
        self.guard.tell(self.label, attr);
    }
}

impl Guard {
    /// Nothing is known to the kernel but the root.
    pub(crate) fn new(policy: Arc<Policy>) -> Self {
        let guard = Self {
            policy,
            told: iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            denied: AtomicU64::new(0),
            walks: OnceLock::new(),
        };
        let root = Known { label: Label::ROOT, walked: false };
        guard.shard(INodeNo::ROOT.0).lock().known.insert(INodeNo::ROOT.0, root);
        guard
    }

    /// Lets the kernel check who walks through directories, if it can and that depends on who it is, so that names may last.
    /// Detached with this value. The first call counts, if nothing but the root is known to the kernel yet.
    pub(crate) fn attach(&self, device: (u32, u32)) {
        if !self.policy.limits_walks() {
            return;
        }
        let attached = Types::read().and_then(|types| Walks::attach(&types, device, &self.policy.rules));
        let attached = attached.map_err(|error| error.to_string());
        if let Err(why) = &attached {
            info!("the kernel asks for every step of a walk where a policy applies: {why}");
        }
        if self.walks.set(attached).is_ok() {
            let mut root = self.shard(INodeNo::ROOT.0).lock();
            let walked = self.guard_walks(INodeNo::ROOT.0, Label::ROOT);
            root.known.insert(INodeNo::ROOT.0, Known { label: Label::ROOT, walked });
        }
    }

    /// Has the kernel check who walks through a directory. False if it does not.
    fn guard_walks(&self, ino: u64, label: Label) -> bool {
        let Some(Ok(walks)) = self.walks.get() else { return false };
        !self.policy.always(label).contain(CHECKED_BY_WALKS)
            && walks.guard(ino, self.policy.place(label).zone)
    }

    fn release_walks(&self, ino: u64) {
        if let Some(Ok(walks)) = self.walks.get() {
            walks.release(ino);
        }
    }

    /// For `finesse status`.
    pub(crate) fn status(&self) -> PolicyStatus {
        PolicyStatus {
            rules: self.policy.len() as u64,
            denied: self.denied.load(Ordering::Relaxed),
            walks: match self.walks.get() {
                None => handshake::Walks::Free,
                Some(Ok(walks)) => handshake::Walks::Checked(walks.denials()),
                Some(Err(why)) => handshake::Walks::Requested(why.clone()),
            },
        }
    }

    fn shard(&self, ino: u64) -> &Mutex<Told> {
        // Fibonacci hashing: inode numbers are often consecutive.
        &self.told[(ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % SHARDS]
    }

    /// The policy.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    // --- What the kernel knows ---

    /// Where an inode is that the kernel knows; `None` if it has several places.
    pub(crate) fn label(&self, ino: u64) -> Option<Label> {
        let told = self.shard(ino).lock();
        match told.several.contains_key(&ino) {
            true => None,
            false => Some(told.known.get(&ino).map_or(self.policy.elsewhere(), |known| known.label)),
        }
    }

    /// A directory that the kernel knows. It has one place.
    fn directory(&self, ino: u64) -> Known {
        let elsewhere = Known { label: self.policy.elsewhere(), walked: false };
        self.shard(ino).lock().known.get(&ino).copied().unwrap_or(elsewhere)
    }

    /// Whether the kernel may remember the names in a directory.
    fn lasts(&self, directory: Known) -> bool {
        directory.walked || self.policy.always(directory.label).contain(Operations::SEARCH)
    }

    /// For the reply to a request about a name in a directory that the kernel knows.
    pub(crate) fn naming(self: &Arc<Self>, parent: u64, name: &OsStr) -> Naming {
        let directory = self.directory(parent);
        let (label, lasts) = (self.policy.step(directory.label, name), self.lasts(directory));
        Naming { guard: Arc::clone(self), label, lasts }
    }

    /// For a reply that tells the kernel of an inode that a client has open, by a name that is good once.
    pub(crate) fn naming_at(self: &Arc<Self>, label: Label) -> Naming {
        Naming { guard: Arc::clone(self), label, lasts: false }
    }

    fn tell(&self, label: Label, attr: &FileAttr) {
        let ino = attr.ino.0;
        if ino == 0 {
            return;
        }
        let is_directory = attr.kind == FileType::Directory;
        let has_names = attr.nlink > 1 && !is_directory;
        let Told { known, several } = &mut *self.shard(ino).lock();
        let before = known.get(&ino).copied();
        match before {
            Some(before)
                if before.label == label
                    && (is_directory || !before.walked)
                    && (has_names || !several.contains_key(&ino)) =>
            {
                return;
            }
            Some(before) if before.label != label && has_names && !before.walked => {
                let places = several.entry(ino).or_insert_with(|| vec![before.label]);
                if !places.contains(&label) {
                    places.push(label);
                }
                return;
            }
            // Another file with this number, or somebody has moved it on the source.
            Some(before) if before.walked => self.release_walks(ino),
            _ => {}
        }
        several.remove(&ino);
        let walked = is_directory && self.guard_walks(ino, label);
        match walked || has_names || label != self.policy.elsewhere() {
            true => drop(known.insert(ino, Known { label, walked })),
            false => drop(known.remove(&ino)),
        }
    }

    /// The kernel has given up references to an inode. `still_known` says whether it has others: whoever tells it of the
    /// inode counts that first, so nothing is forgotten that has just been told.
    pub(crate) fn forget(&self, ino: u64, still_known: impl FnOnce() -> bool) {
        let mut told = self.shard(ino).lock();
        let Some(known) = told.known.get(&ino).copied() else { return };
        if !still_known() {
            told.known.remove(&ino);
            told.several.remove(&ino);
            if known.walked {
                self.release_walks(ino);
            }
        }
    }

    // --- The kernel road ---

    /// Whether the caller of a request may do this to an inode.
    ///
    /// # Errors
    /// `EACCES`.
    pub(crate) fn check(&self, request: &Request, ino: INodeNo, operations: Operations) -> Result<(), Errno> {
        let told = self.shard(ino.0).lock();
        let allowed = match told.several.get(&ino.0) {
            None => {
                let label = told.known.get(&ino.0).map_or(self.policy.elsewhere(), |known| known.label);
                // Reading about groups takes its time.
                drop(told);
                self.allows(request, label, operations)
            }
            Some(labels) => {
                let labels = labels.clone();
                drop(told);
                labels.into_iter().all(|label| self.allows(request, label, operations))
            }
        };
        if allowed {
            return Ok(());
        }
        self.denied.fetch_add(1, Ordering::Relaxed);
        Err(Errno::EACCES)
    }

    fn allows(&self, request: &Request, label: Label, operations: Operations) -> bool {
        self.policy.always(label).contain(operations) || {
            let groups = || Some(groups_of(request.pid(), request.uid())?.into_iter().chain([request.gid()]));
            let zone = self.policy.place(label).zone;
            self.policy.rules.allowed(zone, request.uid(), groups).contain(operations)
        }
    }

    /// Whether what has one name may have the other, of directories that the kernel knows.
    ///
    /// # Errors
    /// `EXDEV`: other rules would apply.
    pub(crate) fn check_move(&self, from: (INodeNo, &OsStr), to: (INodeNo, &OsStr)) -> Result<(), Errno> {
        let [directory, other] = [from.0, to.0].map(|parent| self.directory(parent.0));
        // A name that is moved takes its lifetime along (`d_move`).
        let alike = self.lasts(directory) == self.lasts(other);
        if alike && self.policy.may_move((directory.label, from.1), (other.label, to.1)) {
            Ok(())
        } else {
            Err(Errno::EXDEV)
        }
    }

    /// Whether an inode may have another name, in a directory that the kernel knows.
    ///
    /// # Errors
    /// `EXDEV`: other rules would apply.
    pub(crate) fn check_link(&self, ino: INodeNo, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let place = self.label(parent.0).map(|directory| self.policy.step(directory, name));
        if self.label(ino.0).is_some_and(|label| Some(label) == place) { Ok(()) } else { Err(Errno::EXDEV) }
    }

    // --- The bypass ---

    /// Whether a client may do this at a place.
    pub(crate) fn permits(&self, client: &Credentials, label: Label, operations: Operations) -> bool {
        self.policy.always(label).contain(operations) || {
            let groups = || Some(client.groups.iter().copied().chain([client.gid]));
            let zone = self.policy.place(label).zone;
            self.policy.rules.allowed(zone, client.uid, groups).contain(operations)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::policy;

    fn guard(text: &str) -> Arc<Guard> {
        Arc::new(Guard::new(Arc::new(policy(text))))
    }

    fn attr(ino: u64, kind: FileType, nlink: u32) -> FileAttr {
        FileAttr { kind, nlink, ..crate::kernel::hidden::attr(INodeNo(ino)) }
    }

    fn tell(guard: &Arc<Guard>, parent: u64, name: &str, attr: &FileAttr) {
        guard.naming(parent, OsStr::new(name)).tell(attr);
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn names_last_where_everybody_may_search() {
        let guard = guard("everyone search /a\nuser:1 list /b");
        for (ino, name) in [(10, "a"), (11, "b"), (12, "c")] {
            assert_eq!(guard.naming(1, OsStr::new(name)).lifetime(SECOND), SECOND);
            tell(&guard, 1, name, &attr(ino, FileType::Directory, 2));
        }
        tell(&guard, 11, "below", &attr(13, FileType::Directory, 2));
        for (ino, lifetime) in [(10, SECOND), (11, Duration::ZERO), (12, SECOND), (13, Duration::ZERO)] {
            assert_eq!(guard.naming(ino, OsStr::new("x")).lifetime(SECOND), lifetime, "{ino}");
        }
    }

    #[test]
    fn inodes_are_where_they_were_found_until_the_kernel_forgets_them() {
        let guard = guard("everyone search /a");
        let elsewhere = guard.policy.elsewhere();
        tell(&guard, 1, "a", &attr(10, FileType::Directory, 2));
        tell(&guard, 10, "f", &attr(11, FileType::RegularFile, 1));
        let inside = guard.label(11).unwrap();
        assert_ne!(inside, elsewhere);
        guard.forget(11, || true);
        assert_eq!(guard.label(11), Some(inside));
        guard.forget(11, || false);
        assert_eq!(guard.label(11), Some(elsewhere));
        // The number is used again.
        tell(&guard, 10, "f", &attr(11, FileType::RegularFile, 1));
        tell(&guard, 1, "g", &attr(11, FileType::RegularFile, 1));
        assert_eq!(guard.label(11), Some(elsewhere));
        assert_eq!(guard.told.iter().map(|shard| shard.lock().known.len()).sum::<usize>(), 2);
    }

    #[test]
    fn a_file_with_names_at_several_places_has_none_of_its_own() {
        let guard = guard("everyone search /a");
        tell(&guard, 1, "a", &attr(10, FileType::Directory, 2));
        let file = attr(11, FileType::RegularFile, 2);
        tell(&guard, 1, "f", &file);
        assert!(guard.label(11).is_some());
        tell(&guard, 10, "f", &file);
        tell(&guard, 1, "f", &file);
        assert_eq!(guard.label(11), None);
        assert_eq!(guard.check_link(INodeNo(11), INodeNo(1), OsStr::new("g")), Err(Errno::EXDEV));
        tell(&guard, 1, "f", &attr(11, FileType::RegularFile, 1));
        assert_eq!(guard.label(11), Some(guard.policy.elsewhere()), "the other name is gone");
    }

    #[test]
    fn nothing_moves_to_where_other_rules_apply() {
        let guard = guard("everyone search /a/b");
        let name = OsStr::new;
        tell(&guard, 1, "a", &attr(10, FileType::Directory, 2));
        tell(&guard, 10, "b", &attr(11, FileType::Directory, 2));
        tell(&guard, 1, "f", &attr(12, FileType::RegularFile, 1));
        let (root, a, b) = (INodeNo(1), INodeNo(10), INodeNo(11));
        assert_eq!(guard.check_move((root, name("f")), (root, name("g"))), Ok(()));
        assert_eq!(guard.check_move((b, name("f")), (b, name("g"))), Ok(()));
        assert_eq!(guard.check_move((root, name("f")), (b, name("f"))), Err(Errno::EXDEV));
        assert_eq!(guard.check_move((b, name("f")), (root, name("f"))), Err(Errno::EXDEV));
        assert_eq!(guard.check_move((a, name("b")), (a, name("c"))), Err(Errno::EXDEV));
        assert_eq!(guard.check_move((root, name("a")), (root, name("c"))), Err(Errno::EXDEV));
        assert_eq!(guard.check_link(INodeNo(12), root, name("g")), Ok(()));
        assert_eq!(guard.check_link(INodeNo(12), b, name("g")), Err(Errno::EXDEV));
    }
}
