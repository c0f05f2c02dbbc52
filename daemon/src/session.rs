//! Sessions: mounting a file system, serving it, unmounting it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle};

use finesse_ipc::handshake::Transport as InUse;
use fuser::{Config, INodeNo, MountOption, PollHandle, SessionACL};
use log::warn;
use parking_lot::Mutex;

use crate::asking::Called;
use crate::bpf::Bpf;
use crate::coherence::Coherence;
use crate::filesystem::Filesystem;
use crate::kernel::adapter::{Adapter, Ended, Initialised};
use crate::kernel::hidden::Hidden;
use crate::kernel::uring::{self, Transport, UringSlot};
use crate::policy::guard::Guard;
use crate::ring;

/// Where a session's bypass lives while it runs. Whoever takes it out stops it, and who comes later waits for
/// that.
pub(crate) type RingSlot = Arc<Mutex<Option<ring::Server>>>;

/// What the two roads of one mount share.
pub(crate) struct Core<FS: Filesystem> {
    /// The file system.
    pub(crate) fs: Arc<Called<FS>>,
    /// What keeps the roads coherent.
    pub(crate) coherence: Arc<Coherence>,
    /// Where it is mounted, as an absolute path without symbolic links; `None` if somebody else mounted it.
    pub(crate) mountpoint: Option<PathBuf>,
    /// Whose requests are accepted, besides the owner's.
    pub(crate) acl: SessionACL,
    /// The effective user that mounted it.
    pub(crate) owner: u32,
    /// Permissions are checked by mode bits before the file system is asked.
    pub(crate) default_permissions: bool,
    /// Mounted read-only.
    pub(crate) read_only: bool,
    /// Mounted so that nothing on it can be executed.
    pub(crate) no_exec: bool,
    /// How open files of bypass clients become the kernel's.
    pub(crate) hidden: Hidden,
    /// Help in the kernel.
    pub(crate) bpf: Bpf,
    /// Enforces the file system's policy, if it has one.
    pub(crate) guard: Option<Arc<Guard>>,
    rendezvous: OnceLock<Vec<u8>>,
    transport: OnceLock<InUse>,
}

impl<FS: Filesystem> Core<FS> {
    fn new(fs: FS, mountpoint: Option<PathBuf>, acl: SessionACL, config: &Config) -> Self {
        let has = |flag: &MountOption, name: &str| {
            config.mount_options.iter().any(|option| {
                option == flag
                    || matches!(option, MountOption::CUSTOM(text) if text.split(',').any(|one| one == name))
            })
        };
        Self {
            guard: fs.policy().map(|policy| Arc::new(Guard::new(policy))),
            fs: Arc::new(Called::new(fs, config.n_threads.unwrap_or(1) == 1)),
            coherence: Arc::new(Coherence::new()),
            mountpoint,
            acl,
            owner: rustix::process::geteuid().as_raw(),
            default_permissions: has(&MountOption::DefaultPermissions, "default_permissions"),
            read_only: has(&MountOption::RO, "ro"),
            no_exec: has(&MountOption::NoExec, "noexec"),
            hidden: Hidden::new(),
            bpf: Bpf::default(),
            rendezvous: OnceLock::new(),
            transport: OnceLock::new(),
        }
    }

    /// Sets the value of the attribute `system.finesse` of the mount's root, by which programs find the
    /// bypass. The first call counts. Without it the file system is asked, as for any attribute.
    pub(crate) fn set_rendezvous(&self, value: Vec<u8>) {
        if self.rendezvous.set(value).is_err() {
            warn!("the rendezvous attribute was set twice; the first value stays");
        }
    }

    /// How the kernel's requests come.
    pub(crate) fn transport(&self) -> InUse {
        self.transport.get().copied().unwrap_or(InUse::Classic)
    }

    pub(crate) fn rendezvous(&self) -> Option<&[u8]> {
        self.rendezvous.get().map(Vec::as_slice)
    }
}

fn stop(ring: &RingSlot) {
    drop(ring.lock().take());
}

/// A mounted file system, ready to be served.
///
/// The bypass serves from the moment the session exists; the kernel's requests wait for
/// [`run`](Self::run) or [`spawn`](Self::spawn). Dropping the session unmounts the file system.
#[derive(Debug)]
pub struct Session<FS: Filesystem> {
    inner: fuser::Session<Adapter<FS>>,
    coherence: Arc<Coherence>,
    ring: RingSlot,
    ended: Ended,
}

impl<FS: Filesystem> Session<FS> {
    /// Mounts `filesystem` at `mountpoint` and initialises it.
    ///
    /// A bypass that cannot be set up is logged and done without.
    ///
    /// # Errors
    /// Options that contradict each other, a mount that fails, or the error of
    /// [`Filesystem::init`].
    pub fn new<P: AsRef<Path>>(filesystem: FS, mountpoint: P, options: &Config) -> io::Result<Session<FS>> {
        Self::with_transport(filesystem, mountpoint, options, Transport::default())
    }

    /// As [`new`](Self::new), with a say in how the kernel's requests come.
    ///
    /// # Errors
    /// As for it; `Unsupported` if there are no rings where [`Transport::Uring`] asks for them.
    pub fn with_transport<P: AsRef<Path>>(
        filesystem: FS,
        mountpoint: P,
        options: &Config,
        transport: Transport,
    ) -> io::Result<Session<FS>> {
        let mountpoint = mountpoint.as_ref();
        let core = Core::new(filesystem, Some(mountpoint.canonicalize()?), options.acl, options);
        let connect = |adapter| fuser::Session::new(adapter, mountpoint, options);
        let (session, core) = Self::start(core, transport, connect)?;
        if let Some(guard) = &core.guard {
            guard.attach(ring::device_at(mountpoint)?);
        }
        match ring::Server::start(core) {
            Ok(server) => *session.ring.lock() = Some(server),
            Err(error) => warn!("no bypass for {}, only the kernel's road: {error}", mountpoint.display()),
        }
        Ok(session)
    }

    /// Serves a FUSE connection that somebody else has mounted or will mount: `fd` is an open /dev/fuse.
    /// Waits for the kernel's `INIT`. There is no bypass, because the place of the mount is unknown.
    ///
    /// # Errors
    /// A connection that ends before it began, or the error of [`Filesystem::init`].
    pub fn from_fd(filesystem: FS, fd: OwnedFd, acl: SessionACL, config: Config) -> io::Result<Self> {
        let core = Core::new(filesystem, None, acl, &config);
        let connect = |adapter| fuser::Session::from_fd(adapter, fd, acl, config);
        Ok(Self::start(core, Transport::default(), connect)?.0)
    }

    fn start(
        core: Core<FS>,
        transport: Transport,
        connect: impl FnOnce(Adapter<FS>) -> io::Result<fuser::Session<Adapter<FS>>>,
    ) -> io::Result<(Self, Arc<Core<FS>>)> {
        let coherence = Arc::clone(&core.coherence);
        let (ring, rings) = (RingSlot::default(), UringSlot::default());
        let (handoff, initialised) = mpsc::channel();
        let ended = Ended::default();
        let adapter =
            Adapter::new(core, transport, handoff, Arc::clone(&rings), Arc::clone(&ring), Arc::clone(&ended));
        let inner = connect(adapter)?;
        let Initialised { operations, uring } = initialised
            .try_recv()
            .map_err(|_| io::Error::other("the kernel accepted the session without initialising it"))?;
        let core = operations.shared();
        coherence.attach(inner.as_fd().try_clone_to_owned()?, core.mountpoint.clone());
        let mut in_use = InUse::Classic;
        if let Some(agreed) = uring {
            match uring::start(operations, inner.as_fd().try_clone_to_owned()?, agreed) {
                Ok(started) => {
                    *rings.lock() = Some(started);
                    in_use = InUse::Uring;
                }
                Err(error) if transport == Transport::Uring => return Err(error),
                Err(error) => warn!("requests come through the device, not through rings: {error}"),
            }
        }
        // Set here alone.
        let _ = core.transport.set(in_use);
        Ok((Self { inner, coherence, ring, ended }, core))
    }

    /// A mounted session without a ring, and what a ring would get.
    #[cfg(test)]
    pub(crate) fn without_bypass(
        filesystem: FS,
        mountpoint: &Path,
        options: &Config,
    ) -> io::Result<(Self, std::sync::Weak<Core<FS>>)> {
        let core = Core::new(filesystem, Some(mountpoint.canonicalize()?), options.acl, options);
        let connect = |adapter| fuser::Session::new(adapter, mountpoint, options);
        let (session, core) = Self::start(core, Transport::default(), connect)?;
        Ok((session, Arc::downgrade(&core)))
    }

    /// Loads BPF programs that help with programs on the kernel's road: they count its requests, for `finesse status`, and answer
    /// for files without extended attributes ([`Filesystem::xattr_free`]).
    /// They are detached when the bypass ends, and with this process. What cannot be had is logged and done without.
    ///
    /// # Errors
    /// There is no bypass, or the mount cannot be looked at.
    pub fn attach_bpf(&self) -> io::Result<()> {
        match &*self.ring.lock() {
            Some(server) => server.attach_bpf(),
            None => Err(io::Error::other("a mount without a bypass has no BPF programs")),
        }
    }

    /// Serves in a background thread.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub fn spawn(mut self) -> io::Result<BackgroundSession> {
        let notifier = self.notifier();
        let mount = MountGuard { unmounter: self.unmount_callable() };
        let guard = thread::Builder::new().name("finesse".to_owned()).spawn(move || self.run())?;
        Ok(BackgroundSession { guard, notifier, mount })
    }

    /// Serves the kernel's requests until the file system is unmounted.
    ///
    /// # Errors
    /// The first error of a serving thread.
    pub fn run(self) -> io::Result<()> {
        let (end, ended) = mpsc::channel();
        // Set here alone, and `self` runs once.
        let _ = self.ended.set(end.clone());
        let inner = self.inner;
        // In a thread of its own, which stays if somebody else has unmounted the file system (`Adapter::destroy`).
        thread::Builder::new().name("finesse-session".to_owned()).spawn(move || {
            // Nobody hears it if the adapter has told.
            let _ = end.send(inner.run());
        })?;
        // Without a sender the thread has panicked.
        ended
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that serves the file system panicked")))
    }

    /// Unmounts the file system, unless that has happened. The bypass ends first, whether or not the unmount
    /// succeeds.
    ///
    /// # Errors
    /// Those of umount(2).
    pub fn unmount(&mut self) -> io::Result<()> {
        self.unmount_callable().unmount()
    }

    /// An object that any thread can unmount the file system with.
    pub fn unmount_callable(&mut self) -> SessionUnmounter {
        SessionUnmounter {
            inner: self.inner.unmount_callable(),
            ring: Arc::clone(&self.ring),
            coherence: Arc::clone(&self.coherence),
        }
    }

    /// An object that the file system can tell of changes through which nobody asked for.
    pub fn notifier(&self) -> Notifier {
        Notifier { inner: self.inner.notifier(), coherence: Arc::clone(&self.coherence) }
    }
}

impl<FS: Filesystem> AsFd for Session<FS> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// Unmounts a session's file system from any thread.
#[derive(Debug)]
pub struct SessionUnmounter {
    inner: fuser::SessionUnmounter,
    ring: RingSlot,
    coherence: Arc<Coherence>,
}

impl SessionUnmounter {
    /// Unmounts the file system, unless that has happened. The bypass ends first, whether or not the unmount
    /// succeeds.
    ///
    /// # Errors
    /// Those of umount(2).
    pub fn unmount(&mut self) -> io::Result<()> {
        stop(&self.ring);
        // fuser would unmount whatever is mounted in its place by now.
        if self.coherence.is_disconnected() { Ok(()) } else { self.inner.unmount() }
    }
}

/// Unmounts when dropped.
#[derive(Debug)]
struct MountGuard {
    unmounter: SessionUnmounter,
}

impl Drop for MountGuard {
    fn drop(&mut self) {
        if let Err(error) = self.unmounter.unmount() {
            warn!("cannot unmount: {error}");
        }
    }
}

/// A session that is served in the background. Dropping it unmounts the file system.
#[derive(Debug)]
pub struct BackgroundSession {
    /// The serving thread.
    pub guard: JoinHandle<io::Result<()>>,
    notifier: Notifier,
    mount: MountGuard,
}

impl BackgroundSession {
    /// Unmounts the file system and waits for the end of the session.
    ///
    /// # Errors
    /// Those of umount(2), in which case the session goes on in the background, and those of
    /// [`join`](Self::join).
    pub fn umount_and_join(mut self) -> io::Result<()> {
        self.mount.unmounter.unmount()?;
        self.join()
    }

    /// An object that the file system can tell of changes through which nobody asked for.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Waits until somebody unmounts the file system.
    ///
    /// # Errors
    /// That of [`Session::run`]; a panic of the file system.
    pub fn join(self) -> io::Result<()> {
        self.guard.join().map_err(|_| io::Error::other("the thread that serves the file system panicked"))?
    }
}

/// Tells the kernel, and the bypass' cache, what changed without a request.
#[derive(Clone, Debug)]
pub struct Notifier {
    inner: fuser::Notifier,
    coherence: Arc<Coherence>,
}

impl Notifier {
    /// A pending poll may have become ready.
    ///
    /// # Errors
    /// The kernel's.
    pub fn poll(&self, kh: PollHandle) -> io::Result<()> {
        self.inner.poll(kh)
    }

    /// What `name` in `parent` stands for has changed.
    ///
    /// # Errors
    /// The kernel's; a name that is too long for a message.
    pub fn inval_entry(&self, parent: INodeNo, name: &OsStr) -> io::Result<()> {
        if let Some(cache) = self.coherence.cache() {
            cache.entry(parent.0, name);
        }
        self.inner.inval_entry(parent, name)
    }

    /// An inode's attributes have changed, and its contents from `offset` on for `len` bytes; `len` 0 is to
    /// the end, a negative `offset` means the attributes only.
    ///
    /// # Errors
    /// The kernel's.
    pub fn inval_inode(&self, ino: INodeNo, offset: i64, len: i64) -> io::Result<()> {
        if let Some(cache) = self.coherence.cache() {
            cache.attr(ino.0);
        }
        self.inner.inval_inode(ino, offset, len)
    }

    /// Puts contents into the kernel's page cache.
    ///
    /// # Errors
    /// The kernel's; more data than fit into a message.
    pub fn store(&self, ino: INodeNo, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(cache) = self.coherence.cache() {
            cache.attr(ino.0);
        }
        self.inner.store(ino, offset, data)
    }

    /// `name` in `parent`, which stood for `child`, has been removed. Who watches the directory (inotify) is
    /// told.
    ///
    /// # Errors
    /// The kernel's; a name that is too long for a message.
    pub fn delete(&self, parent: INodeNo, child: INodeNo, name: &OsStr) -> io::Result<()> {
        if let Some(cache) = self.coherence.cache() {
            cache.entry(parent.0, name);
            cache.attr(parent.0);
            cache.attr(child.0);
        }
        self.inner.delete(parent, child, name)
    }
}

/// Mounts a file system and serves it until it is unmounted.
///
/// # Errors
/// Those of [`Session::new`] and [`Session::run`].
pub fn mount<FS: Filesystem, P: AsRef<Path>>(
    filesystem: FS,
    mountpoint: P,
    options: &Config,
) -> io::Result<()> {
    Session::new(filesystem, mountpoint, options)?.run()
}

/// Another name for [`mount`].
///
/// # Errors
/// Those of [`mount`].
pub fn mount2<FS: Filesystem, P: AsRef<Path>>(
    filesystem: FS,
    mountpoint: P,
    options: &Config,
) -> io::Result<()> {
    mount(filesystem, mountpoint, options)
}

/// Mounts a file system and serves it in the background, until the result is dropped.
///
/// # Errors
/// Those of [`Session::new`] and [`Session::spawn`].
pub fn spawn_mount<'a, FS: Filesystem + Send + 'static + 'a, P: AsRef<Path>>(
    filesystem: FS,
    mountpoint: P,
    options: &Config,
) -> io::Result<BackgroundSession> {
    Session::new(filesystem, mountpoint, options)?.spawn()
}

/// Another name for [`spawn_mount`].
///
/// # Errors
/// Those of [`spawn_mount`].
pub fn spawn_mount2<'a, FS: Filesystem + Send + 'static + 'a, P: AsRef<Path>>(
    filesystem: FS,
    mountpoint: P,
    options: &Config,
) -> io::Result<BackgroundSession> {
    spawn_mount(filesystem, mountpoint, options)
}
