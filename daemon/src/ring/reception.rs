//! What may block, away from the control thread: admitting clients (the kernel's caches may have to be emptied
//! first), reports for `finesse status`, and learning what is mounted below.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use finesse_ipc::handshake::{self, Answer, ClientStatus, MountStatus, Refusal, Welcome};
use finesse_ipc::segment::Segment;

use crate::engine::Context;
use crate::request::Credentials;
use crate::ring::peer::{Past, Peer};
use crate::ring::pool::Pool;
use crate::ring::{Service, introduction, mounts, sys, watchers};

/// When to look whether anybody holds the watches of clients that are gone: soon after one has left, and ever less often
/// while somebody does.
#[derive(Default)]
struct Sweeps(Option<(Instant, Duration)>);

impl Sweeps {
    const SOON: Duration = Duration::from_secs(1);
    const SELDOM: Duration = Duration::from_secs(30);

    /// A client has left. Its last operation may still be under way.
    fn begin(&mut self) {
        let soon = Instant::now() + Self::SOON;
        let next = self.0.map_or(soon, |(next, _)| next.min(soon));
        self.0 = Some((next, Self::SOON));
    }

    /// How long to wait for something else to do; without end if there is nothing to look for.
    fn pause(&self) -> Option<Duration> {
        self.0.map(|(next, _)| next.saturating_duration_since(Instant::now()))
    }

    fn done(&mut self, some_left: bool) {
        self.0 = match self.0 {
            Some((_, pause)) if some_left => {
                let pause = (pause * 2).min(Self::SELDOM);
                Some((Instant::now() + pause, pause))
            }
            _ => None,
        };
    }
}

/// How long a report waits for those who are leaving, in milliseconds.
const LEAVING_PATIENCE: u32 = 100;

/// What the control thread hands over.
pub(crate) enum Job {
    /// A program wants to attach.
    Attach(OwnedFd, String),
    /// Somebody wants a report.
    Report(OwnedFd),
    /// The mount table has changed.
    MountsChanged,
    /// A client is leaving.
    Parted,
}

/// The reception's thread.
pub(crate) struct Reception {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) past: Arc<Past>,
    /// Admitted peers go to the control thread, which watches their sockets.
    pub(crate) admitted: Sender<Arc<Peer>>,
    /// Wakes the control thread.
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) tokens: AtomicU64,
    /// This process, for clients to take what they are granted out of.
    pub(crate) process: Option<OwnedFd>,
    /// How often the mount table has changed in what matters to clients.
    pub(crate) mounts: AtomicU64,
}

impl Reception {
    /// Works until the control thread hangs up.
    pub(crate) fn run(&self, jobs: &Receiver<Job>) {
        let mut mattered = self.learn_mounts();
        let mut sweeps = Sweeps::default();
        loop {
            let job = match sweeps.pause() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => jobs.recv_timeout(pause),
            };
            let job = match job {
                Ok(job) => job,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    sweeps.done(self.sweep());
                    continue;
                }
            };
            match job {
                Job::Parted => sweeps.begin(),
                Job::Attach(socket, program) => {
                    if let Err((socket, refusal)) = self.attach(socket, program) {
                        tracing::info!("a client was refused: {refusal}");
                        // It may have gone away meanwhile.
                        let _ = handshake::send(&socket, &Answer::Refused(refusal), &[]);
                    }
                }
                Job::Report(socket) => {
                    let uid = sys::peer(&socket).map(|asker| asker.uid);
                    if !uid.is_ok_and(|uid| uid == 0 || self.service.admits(uid)) {
                        let _ = handshake::send(&socket, &Answer::Refused(Refusal::NotOwner), &[]);
                        continue;
                    }
                    if let Err(error) = self.report(&socket) {
                        tracing::info!(%error, "a status report was not delivered");
                    }
                }
                Job::MountsChanged => {
                    let matter = self.learn_mounts();
                    if matter.is_some() && matter == mattered {
                        continue;
                    }
                    mattered = matter;
                    let generation = self.mounts.fetch_add(1, Ordering::Relaxed) + 1;
                    for peer in self.pool.peers() {
                        peer.tell_mounts(generation);
                    }
                }
            }
        }
    }

    /// Forgets the watches that nobody holds any more; whether some are left whose clients are gone.
    fn sweep(&self) -> bool {
        if self.service.has_orphaned_watches()
            && let Ok(dev) = super::device(&*self.service)
        {
            self.service.keep_watches(&watchers::held(dev));
        }
        self.service.has_orphaned_watches()
    }

    fn attach(&self, socket: OwnedFd, program: String) -> Result<(), (OwnedFd, Refusal)> {
        let credentials = match introduction::credentials(&socket, &*self.service) {
            Ok(credentials) => credentials,
            Err(refusal) => return Err((socket, refusal)),
        };
        let present = self.pool.peers();
        let own = present.iter().filter(|peer| peer.uid() == credentials.uid).count();
        // Every client takes two descriptors, and those that it has not fetched yet, which the kernel road needs, too.
        let most =
            rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20) / 4;
        if present.len() as u64 >= most || (credentials.uid != 0 && own as u64 >= most / 4) {
            tracing::warn!(uid = credentials.uid, "a client was refused: too many are connected");
            return Err((socket, Refusal::Resources));
        }
        let prepared = super::device(&*self.service).and_then(|dev| {
            let (segment, memory) = Segment::create()?;
            let [bell, rope] = sys::doorbell()?;
            Ok((dev, segment, memory, bell, rope))
        });
        let (dev, segment, memory, bell, rope) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::warn!(%error, "a client could not be given a segment");
                return Err((socket, Refusal::Resources));
            }
        };
        let process = self.process.as_ref().filter(|_| may_trace_us(&credentials));
        self.service.connected();
        // From here on the peer's drop tells the service that it is gone.
        let peer = Arc::new(Peer::new(
            self.tokens.fetch_add(1, Ordering::Relaxed),
            program,
            (socket, bell),
            segment,
            Context::new(credentials),
            (self.service.clone(), self.past.clone()),
            dev,
        ));
        peer.tell_mounts(self.mounts.load(Ordering::Relaxed));
        if let Err(error) = self.pool.add(peer.clone()) {
            tracing::warn!(%error, "a client's doorbell could not be watched");
            peer.close();
            return Ok(());
        }
        let welcome = Answer::Welcome(Welcome {
            dev,
            backing_attrs: self.service.grants(),
            hidden: self.service.hidden(),
            busy: self.pool.is_crowded(),
            pulls: process.is_some(),
        });
        let mut fds = vec![memory.as_fd(), rope.as_fd()];
        fds.extend(process.map(AsFd::as_fd));
        fds.extend(self.service.table());
        if handshake::send(&peer.socket, &welcome, &fds).is_err() {
            self.pool.remove(&peer);
            return Ok(());
        }
        if self.admitted.send(peer).is_ok() {
            let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    fn report(&self, socket: &OwnedFd) -> Result<(), handshake::Error> {
        // A reader that does not read must not hold up the reception for long.
        let timeout = Some(Duration::from_secs(2));
        rustix::net::sockopt::set_socket_timeout(socket, rustix::net::sockopt::Timeout::Send, timeout)?;
        rustix::io::ioctl_fionbio(socket, false)?;
        // A client that is no longer watched may have its last operation under way, and is in no count before that is done.
        let mut present = self.past.present.load(Ordering::Acquire);
        let mut peers = self.pool.peers();
        for _ in 0..LEAVING_PATIENCE {
            if present <= peers.len() as u64 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            present = self.past.present.load(Ordering::Acquire);
            peers = self.pool.peers();
        }
        let mut counts = self.past.counts.lock().clone();
        let clients: Vec<ClientStatus> = peers
            .iter()
            .map(|peer| ClientStatus {
                pid: peer.pid(),
                uid: peer.uid(),
                program: peer.program.clone(),
                counts: peer.counts(),
            })
            .collect();
        for client in &clients {
            counts.add(&client.counts);
        }
        let (requests, senders) = self.service.bpf().requests();
        let mount = MountStatus {
            pid: std::process::id(),
            daemon_version: env!("CARGO_PKG_VERSION").into(),
            file_system: self.service.name().into(),
            clients: present.max(clients.len() as u64),
            clients_ever: self.past.clients.load(Ordering::Relaxed),
            known_inodes: self.service.known_inodes(),
            resident_bytes: resident_bytes(),
            counts,
            transport: self.service.transport(),
            requests,
            xattr_answers: self.service.bpf().xattr_answers(),
            policy: self.service.policy(),
            deferred: self.service.deferred(),
        };
        handshake::send(socket, &Answer::Mount(mount), &[])?;
        for client in clients {
            handshake::send(socket, &Answer::Client(client), &[])?;
        }
        for sender in senders {
            handshake::send(socket, &Answer::Sender(sender), &[])?;
        }
        handshake::send(socket, &Answer::End, &[])
    }

    /// Learns what is mounted below, and returns what matters to clients; `None` if that is not known.
    fn learn_mounts(&self) -> Option<Vec<u8>> {
        let mountpoint = self.service.mountpoint()?;
        match std::fs::read("/proc/self/mountinfo") {
            Ok(mountinfo) => {
                self.service.set_covered(&mounts::below(&mountinfo, mountpoint));
                Some(mounts::that_matter(&mountinfo, mountpoint))
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read /proc/self/mountinfo; mounts below go unseen");
                self.service.ask_what_is_lent();
                None
            }
        }
    }
}

/// Whether a client may presumably trace this process. Of the others, who try in vain, a security module would make a note.
fn may_trace_us(credentials: &Credentials) -> bool {
    const CAP_SYS_PTRACE: u64 = 1 << 19;
    // With Yama, only those that this process has started, or that may trace everybody.
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    credentials.caps & CAP_SYS_PTRACE != 0
        || credentials.uid == rustix::process::geteuid().as_raw()
            && scope.map_or(true, |scope| scope.trim() == "0")
}

/// The daemon's resident memory (`VmRSS`); 0 if /proc does not say.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
