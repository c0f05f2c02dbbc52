//! The control thread: accepts connections, reads what clients say on their sockets, notices departures and
//! changes of the mount table. It never blocks and never calls the file system.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use finesse_ipc::handshake::{self, Answer, Ask, Error, Refusal};
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::ring::Service;
use crate::ring::peer::{Past, Peer};
use crate::ring::pool::Pool;
use crate::ring::reception::{Job, Reception};

/// Connections that have not said what they want. More are not kept waiting: the oldest is dropped.
const STRANGERS_MAX: usize = 256;

/// Messages of one client, or connections, that are taken before others get their turn.
const MESSAGES_AT_ONCE: usize = 16;

const LISTENER: u64 = 0;
const WAKE: u64 = 1;
const MOUNTS: u64 = 2;
/// Tokens of connections begin here.
const FIRST_TOKEN: u64 = 16;
/// Tokens of strangers have this bit, so that they never meet a peer's.
const STRANGER: u64 = 1 << 63;

/// The running control thread.
pub(crate) struct Control {
    stopping: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    pool: Arc<Pool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Control {
    /// Starts the ring's threads.
    ///
    /// # Errors
    /// What the kernel answers when descriptors or threads run out.
    pub(crate) fn start(listener: OwnedFd, service: Arc<dyn Service>) -> std::io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&poll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let mounts =
            rustix::fs::open("/proc/self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        epoll::add(&poll, &mounts, EventData::new_u64(MOUNTS), EventFlags::PRI | EventFlags::ERR)?;
        let pool = Pool::start()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (jobs, inbox) = channel();
        let (admitted, newcomers) = channel();
        let keeper = service.clone();
        let reception = Reception {
            service,
            pool: pool.clone(),
            past: Arc::new(Past::default()),
            admitted,
            wake: wake.clone(),
            tokens: AtomicU64::new(FIRST_TOKEN),
            process: pidfd_open(getpid(), PidfdFlags::empty()).ok(),
            mounts: AtomicU64::new(0),
        };
        let desk = Desk {
            poll,
            listener,
            // Given up for a moment when descriptors have run out, to turn a caller away.
            reserve: rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok(),
            _mounts: mounts,
            wake: wake.clone(),
            pool: pool.clone(),
            jobs,
            newcomers,
            strangers: HashMap::new(),
            peers: HashMap::new(),
            next_stranger: 0,
            stopping: stopping.clone(),
        };
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(body)
        };
        let threads = vec![
            spawn("ring-reception", Box::new(move || reception.run(&inbox)))?,
            // Of the daemon's threads this one lives the longest.
            spawn(
                "ring-control",
                Box::new(move || {
                    keeper.keep_table();
                    drop(keeper);
                    desk.run();
                }),
            )?,
        ];
        Ok(Self { stopping, wake, pool, threads: Mutex::new(threads) })
    }

    /// Ends everything: clients are told to go on through the kernel.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a control thread of the bypass panicked");
            }
        }
        self.pool.stop();
    }
}

struct Desk {
    poll: OwnedFd,
    listener: OwnedFd,
    reserve: Option<OwnedFd>,
    _mounts: OwnedFd,
    wake: Arc<OwnedFd>,
    pool: Arc<Pool>,
    jobs: Sender<Job>,
    newcomers: Receiver<Arc<Peer>>,
    /// Connections that have not said yet what they want.
    strangers: HashMap<u64, OwnedFd>,
    peers: HashMap<u64, Arc<Peer>>,
    next_stranger: u64,
    stopping: Arc<AtomicBool>,
}

impl Desk {
    fn run(mut self) {
        let mut events = Vec::with_capacity(64);
        while !self.stopping.load(Ordering::SeqCst) {
            events.clear();
            match epoll::wait(&self.poll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the bypass cannot wait for clients and ends");
                    break;
                }
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    WAKE => {
                        let _ = rustix::io::read(&*self.wake, &mut [0u8; 8]);
                    }
                    MOUNTS => self.hand_over(Job::MountsChanged),
                    token if token & STRANGER != 0 => self.introduce(token),
                    token => self.hear(token),
                }
            }
            while let Ok(peer) = self.newcomers.try_recv() {
                self.watch(peer);
            }
        }
        for peer in self.pool.peers() {
            peer.close();
        }
    }

    fn hand_over(&self, job: Job) {
        // The reception lives as long as this sender.
        let _ = self.jobs.send(job);
    }

    fn accept(&mut self) {
        for _ in 0..MESSAGES_AT_ONCE {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => self.admit_stranger(socket),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) => {
                    if !self.turn_away() {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    return;
                }
            }
        }
    }

    /// No descriptor is left: answers one caller with the reserve's, so that it does not wait for nothing and
    /// the listener does not stay readable. False if there is nobody any more.
    fn turn_away(&mut self) -> bool {
        drop(self.reserve.take());
        let answered = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC).map(|socket| {
            let _ = handshake::send(&socket, &Answer::Refused(Refusal::Resources), &[]);
        });
        self.reserve = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        tracing::warn!("a client was refused: no file descriptors left");
        answered.is_ok()
    }

    fn admit_stranger(&mut self, socket: OwnedFd) {
        if self.strangers.len() >= STRANGERS_MAX {
            let oldest = self.strangers.keys().min().copied();
            drop(oldest.and_then(|token| self.strangers.remove(&token)));
        }
        let token = STRANGER | self.next_stranger;
        self.next_stranger += 1;
        let flags = EventFlags::IN | EventFlags::RDHUP;
        match epoll::add(&self.poll, &socket, EventData::new_u64(token), flags) {
            Ok(()) => drop(self.strangers.insert(token, socket)),
            Err(error) => tracing::warn!(%error, "a connection could not be watched"),
        }
    }

    /// A stranger says what it wants, or leaves.
    fn introduce(&mut self, token: u64) {
        let Some(socket) = self.strangers.get(&token) else { return };
        let mut buffer = [0; 1024];
        let heard = match handshake::receive(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Err(Error::Socket(Errno::AGAIN)) => return,
            Ok((bytes, [None, None, None, None])) => handshake::decode::<Ask<'_>>(bytes),
            Ok((_, surplus)) => {
                // To close one may block for as long as its sender likes.
                let _ = std::thread::Builder::new().spawn(move || drop(surplus));
                Err(Error::Malformed)
            }
            Err(error) => Err(error),
        };
        let Some(socket) = self.strangers.remove(&token) else { return };
        let _ = epoll::delete(&self.poll, &socket);
        match heard {
            Ok(Ask::Attach { program }) => self.hand_over(Job::Attach(socket, program.to_owned())),
            Ok(Ask::Status) => self.hand_over(Job::Report(socket)),
            Err(Error::Version(version)) => {
                tracing::warn!("a client was refused: {}", Error::Version(version));
                let _ = handshake::send(&socket, &Answer::Refused(Refusal::Version), &[]);
            }
            Err(Error::Closed) => {}
            Ok(Ask::Prove { .. }) | Err(_) => {
                tracing::warn!("a connection did not introduce itself and was closed")
            }
        }
    }

    fn watch(&mut self, peer: Arc<Peer>) {
        let flags = EventFlags::IN | EventFlags::RDHUP;
        match epoll::add(&self.poll, &peer.socket, EventData::new_u64(peer.token), flags) {
            Ok(()) => drop(self.peers.insert(peer.token, peer)),
            Err(error) => {
                tracing::warn!(%error, "a client could not be watched");
                peer.close();
                self.pool.remove(&peer);
            }
        }
    }

    /// A peer sends a proof, or leaves.
    fn hear(&mut self, token: u64) {
        let Some(peer) = self.peers.get(&token).cloned() else { return };
        let mut buffer = [0; 256];
        // What is left is reported again: nobody is heard at the expense of others.
        for _ in 0..MESSAGES_AT_ONCE {
            match handshake::receive(&peer.socket, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((bytes, [Some(directory), None, None, None])) => match handshake::decode(bytes) {
                    Ok(Ask::Prove { slot }) => peer.take_proof(slot, directory),
                    _ => return self.part(token, &peer),
                },
                Err(Error::Socket(Errno::AGAIN)) if !peer.is_gone() => return,
                Ok(_) => {
                    tracing::warn!(pid = peer.pid(), "a client sent what is no message and was disconnected");
                    return self.part(token, &peer);
                }
                Err(_) => return self.part(token, &peer),
            }
        }
    }

    fn part(&mut self, token: u64, peer: &Peer) {
        let _ = epoll::delete(&self.poll, &peer.socket);
        self.peers.remove(&token);
        self.hand_over(Job::Parted);
        peer.close();
        self.pool.remove(peer);
    }
}
