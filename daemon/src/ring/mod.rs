//! The shared-memory road's end in the daemon.
//!
//! | module | does |
//! | --- | --- |
//! | [`control`] | accepts connections, notices departures and changes of the mount table; never blocks |
//! | [`reception`] | what may block: admits clients, answers `finesse status`, learns what is mounted below |
//! | [`peer`] | one client, as the daemon sees it |
//! | [`pool`] | the workers: who looks at which bitmap, who sleeps, who is woken |
//! | [`watchers`] | who watches the mount, by the kernel's word |
//! | [`introduction`] | who a connecting process is, by the kernel's word |
//!
//! Nothing here knows the type of the file system: [`Service`] is the engine, seen from the ring.

mod control;
mod introduction;
pub(crate) mod mounts;
mod peer;
mod pool;
mod reception;
mod sys;
mod watchers;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use finesse_ipc::frame::Reply;
use finesse_ipc::handshake::{self, PolicyStatus};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use crate::bpf::Bpf;
use crate::engine::serve::{Asked, Malformed, Output};
use crate::engine::watch::Held;
use crate::engine::{Context, Engine};
use crate::filesystem::Filesystem;
use crate::session::Core;

/// What the ring needs of an engine.
pub(crate) trait Service: Send + Sync + 'static {
    /// Serves one request.
    fn serve(&self, asked: &Asked<'_>, output: &mut Output) -> Result<Reply, Malformed>;
    /// Makes a directory usable as a base.
    ///
    /// `path` is where it is below the mount's root, if that is known.
    fn prove(&self, context: &Context, ino: u64, path: Option<&[u8]>);
    /// A granted descriptor for one of a file that a client has opened in a directory that was lent.
    fn exchange(&self, context: &Context, file: BorrowedFd<'_>) -> Option<OwnedFd>;
    /// The mount's metadata table, for clients to map.
    fn table(&self) -> Option<BorrowedFd<'_>>;
    /// The calling thread keeps the table: it is believed until that ends.
    fn keep_table(&self);
    /// Whether there are watches of clients that are gone.
    fn has_orphaned_watches(&self) -> bool;
    /// Forgets those of them that nobody holds.
    fn keep_watches(&self, held: &Held);
    /// Sets the directories below which other file systems are mounted.
    fn set_covered(&self, paths: &[Vec<u8>]);
    /// Something may have been mounted, nobody knows where.
    fn ask_what_is_lent(&self);
    /// A client is about to be served.
    fn connected(&self);
    /// A client is gone: lets go of what it had open, and of what was granted to it and is still here. Does not block.
    fn departed(&self, context: &Context, held: Vec<OwnedFd>);
    /// A client is gone.
    fn disconnected(&self);
    /// Whether a user may use the mount (`fuse_allow_current_process`).
    fn admits(&self, uid: u32) -> bool;
    /// Whether the file system decides permissions by acting as the caller.
    fn acts_as_caller(&self) -> bool;
    /// Whether opens may be granted a backing descriptor whose attributes are the file's.
    fn grants(&self) -> bool;
    /// The name of the directory through which open files become the kernel's.
    fn hidden(&self) -> handshake::HiddenName;
    /// Where the file system is mounted.
    fn mountpoint(&self) -> Option<&std::path::Path>;
    /// The file system's type.
    fn name(&self) -> &'static str;
    /// Help in the kernel.
    fn bpf(&self) -> &Bpf;
    /// Attaches it to the mount with this device number.
    fn attach_bpf(&self, device: (u32, u32));
    /// How the kernel's requests come.
    fn transport(&self) -> handshake::Transport;
    /// The mount's policy.
    fn policy(&self) -> Option<PolicyStatus>;
    /// What became of deferred unlinks.
    fn deferred(&self) -> Option<handshake::DeferredStatus>;
    /// The bypass has ended.
    fn end(&self);
    /// Inodes that the kernel or the engine holds.
    fn known_inodes(&self) -> u64;
}

impl<FS: Filesystem> Service for Engine<FS> {
    fn serve(&self, asked: &Asked<'_>, output: &mut Output) -> Result<Reply, Malformed> {
        Engine::serve(self, asked, output)
    }

    fn prove(&self, context: &Context, ino: u64, path: Option<&[u8]>) {
        Engine::prove(self, context, ino);
        self.open_base(ino, path);
        self.proven_at(context, ino, path);
    }

    fn exchange(&self, context: &Context, file: BorrowedFd<'_>) -> Option<OwnedFd> {
        Engine::exchange(self, context, file)
    }

    fn table(&self) -> Option<BorrowedFd<'_>> {
        Engine::table(self).map(|table| table.memory())
    }

    fn keep_table(&self) {
        if let Some(table) = Engine::table(self) {
            table.keep();
        }
    }

    fn has_orphaned_watches(&self) -> bool {
        self.watches().has_orphans()
    }

    fn keep_watches(&self, held: &Held) {
        Engine::keep_watches(self, held);
    }

    fn set_covered(&self, paths: &[Vec<u8>]) {
        Engine::set_covered(self, paths.iter().map(Vec::as_slice));
    }

    fn ask_what_is_lent(&self) {
        Engine::ask_what_is_lent(self);
    }

    fn connected(&self) {
        self.core().coherence.bypass_connected();
    }

    fn departed(&self, context: &Context, held: Vec<OwnedFd>) {
        Engine::departed(self, context, held);
    }

    fn disconnected(&self) {
        self.core().coherence.bypass_disconnected();
    }

    fn admits(&self, uid: u32) -> bool {
        use fuser::SessionACL;
        match self.core().acl {
            SessionACL::All => true,
            SessionACL::RootAndOwner => uid == 0 || uid == self.core().owner,
            SessionACL::Owner => uid == self.core().owner,
        }
    }

    fn acts_as_caller(&self) -> bool {
        Engine::acts_as_caller(self)
    }

    fn grants(&self) -> bool {
        Engine::grants(self)
    }

    fn hidden(&self) -> handshake::HiddenName {
        self.core().hidden.name()
    }

    fn mountpoint(&self) -> Option<&std::path::Path> {
        self.core().mountpoint.as_deref()
    }

    fn name(&self) -> &'static str {
        std::any::type_name::<FS>()
    }

    fn bpf(&self) -> &Bpf {
        &self.core().bpf
    }

    fn attach_bpf(&self, device: (u32, u32)) {
        let core = self.core();
        // Where the kernel answers without asking, nothing asks whether the caller may know.
        let obstacle = match (&core.guard, core.acl) {
            (Some(_), _) => Some("the mount's policy may not let everybody ask"),
            (None, fuser::SessionACL::All) => None,
            (None, _) => Some("the mount is not shared with all users"),
        };
        core.bpf.attach(device, obstacle, |files| core.fs.ask().xattr_free(files));
    }

    fn transport(&self) -> handshake::Transport {
        self.core().transport()
    }

    fn deferred(&self) -> Option<handshake::DeferredStatus> {
        let counts = self.core().fs.ask().deferred_unlinks()?;
        Some(handshake::DeferredStatus { waiting: counts.waiting, done: counts.done, failed: counts.failed })
    }

    fn policy(&self) -> Option<PolicyStatus> {
        self.core().guard.as_ref().map(|guard| guard.status())
    }

    fn end(&self) {
        self.core().bpf.detach();
        Engine::end(self);
    }

    fn known_inodes(&self) -> u64 {
        (self.core().coherence.known_inodes()).max(self.cached_inodes()) as u64
    }
}

/// The server of one mount's bypass clients. Dropping it ends it: clients go on through the kernel.
pub(crate) struct Server {
    control: control::Control,
    service: Arc<dyn Service>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on an abstract socket of a random name, which the mount's root tells whoever can reach it.
    ///
    /// # Errors
    /// What the kernel answers when descriptors or threads run out.
    pub(crate) fn start<FS: Filesystem>(core: Arc<Core<FS>>) -> io::Result<Self> {
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name: String =
            "finesse/".chars().chain(random.iter().flat_map(|byte| hex(*byte))).collect::<String>();
        let listener = handshake::listen(name.as_bytes())?;
        let service: Arc<dyn Service> = Arc::new(Engine::new(core.clone()));
        let control = control::Control::start(listener, service.clone())?;
        core.set_rendezvous(name.into_bytes());
        Ok(Self { control, service })
    }

    /// Attaches the BPF programs that can be had.
    ///
    /// # Errors
    /// The mount cannot be looked at.
    pub(crate) fn attach_bpf(&self) -> io::Result<()> {
        self.service.attach_bpf(device(&*self.service)?);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.stop();
        self.service.end();
    }
}

/// `st_dev` of the mount.
fn device(service: &dyn Service) -> Result<(u32, u32), Errno> {
    device_at(service.mountpoint().ok_or(Errno::NODEV)?)
}

/// `st_dev` of what is mounted at a place.
///
/// # Errors
/// The kernel's.
pub(crate) fn device_at(mountpoint: &std::path::Path) -> Result<(u32, u32), Errno> {
    // Without synchronisation: the daemon must not ask itself through the kernel.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, mountpoint, flags, StatxFlags::INO)?;
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

fn hex(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
}
