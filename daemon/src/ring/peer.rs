//! One client, as the daemon sees it.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use finesse_ipc::counters::Counts;
use finesse_ipc::frame::{Attr, BY_SOCKET, Fallback, Op, PATH_MAX, Reply};
use finesse_ipc::handshake::{self, Answer};
use finesse_ipc::layout::DATA_BYTES;
use finesse_ipc::ring;
use finesse_ipc::segment::{PathBuffer, Segment};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::thread::futex;

use crate::engine::Context;
use crate::engine::serve::{Asked, Malformed, Output};
use crate::ring::{Service, watchers};

/// Sums over clients that are gone.
#[derive(Default)]
pub(crate) struct Past {
    /// What they counted.
    pub(crate) counts: Mutex<Counts>,
    /// How many clients there ever were.
    pub(crate) clients: AtomicU64,
    /// How many there are whose counts are not in the sum yet.
    pub(crate) present: AtomicU64,
}

/// A connected client. Dropped when its connection has ended and its last operation is done.
pub(crate) struct Peer {
    /// Identifies it in both epoll sets.
    pub(crate) token: u64,
    /// Its name for itself.
    pub(crate) program: String,
    /// The socket: receives proofs, sends grants.
    pub(crate) socket: OwnedFd,
    /// The doorbell.
    pub(crate) bell: OwnedFd,
    context: Context,
    segment: Segment,
    service: Arc<dyn Service>,
    past: Arc<Past>,
    /// `st_dev` of the mount, which a proven directory must be on.
    dev: (u32, u32),
    /// Slots that are being served.
    running: AtomicU64,
    /// Slots that wait for a proof, and the descriptors.
    proofs_waiting: AtomicU64,
    proofs: Mutex<HashMap<u32, OwnedFd>>,
    /// Slots whose replies grant a descriptor that is held here, and the descriptors.
    holding: AtomicU64,
    held: Mutex<HashMap<u32, OwnedFd>>,
    gone: AtomicBool,
    /// In the pool's list of peers that are looked at.
    pub(crate) hot: AtomicBool,
    /// Scans since something was last submitted.
    pub(crate) quiet: AtomicU32,
}

/// What a worker keeps between requests: room for paths, so that no request clears pages on the stack.
#[derive(Default)]
pub(crate) struct Workspace {
    path: PathBuffer,
    path2: PathBuffer,
    data: Vec<u8>,
}

/// Why a connection is ended by the daemon.
#[derive(Debug, thiserror::Error)]
enum Misconduct {
    #[error("slot {0} was submitted while it was being served")]
    Resubmitted(u32),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("does not receive what it was granted")]
    Deaf,
}

impl Peer {
    /// A client that has been admitted.
    pub(crate) fn new(
        token: u64,
        program: String,
        (socket, bell): (OwnedFd, OwnedFd),
        segment: Segment,
        context: Context,
        (service, past): (Arc<dyn Service>, Arc<Past>),
        dev: (u32, u32),
    ) -> Self {
        past.clients.fetch_add(1, Ordering::Relaxed);
        past.present.fetch_add(1, Ordering::Relaxed);
        Self {
            token,
            program,
            socket,
            bell,
            context,
            segment,
            service,
            past,
            dev,
            running: AtomicU64::new(0),
            proofs_waiting: AtomicU64::new(0),
            proofs: Mutex::default(),
            holding: AtomicU64::new(0),
            held: Mutex::default(),
            gone: AtomicBool::new(false),
            hot: AtomicBool::new(false),
            quiet: AtomicU32::new(0),
        }
    }

    /// The process, as the kernel named it when it connected.
    pub(crate) fn pid(&self) -> u32 {
        self.context.credentials.pid
    }

    /// The user.
    pub(crate) fn uid(&self) -> u32 {
        self.context.credentials.uid
    }

    /// What the client has counted so far.
    pub(crate) fn counts(&self) -> Counts {
        self.segment.header().counters.snapshot()
    }

    /// Tells the generation of the daemon's mount table.
    pub(crate) fn tell_mounts(&self, generation: u64) {
        self.segment.header().notices.mount_generation.store(generation, Ordering::Release);
    }

    /// Ends the connection: the client goes on through the kernel.
    pub(crate) fn close(&self) {
        self.gone.store(true, Ordering::Release);
        self.segment.header().notices.closed.store(1, Ordering::Release);
        // Wakes a client that waits for a reply, by hanging up; the control thread sees it, too.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Whether the connection has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Takes a directory's descriptor for the slot that waits for its proof, and submits the slot on the
    /// client's behalf.
    pub(crate) fn take_proof(&self, slot: u32, directory: OwnedFd) {
        if slot < u64::BITS && self.proofs_waiting.load(Ordering::Acquire) & (1 << slot) == 0 {
            self.proofs.lock().insert(slot, directory);
            self.proofs_waiting.fetch_or(1 << slot, Ordering::Release);
            let header = self.segment.header();
            if ring::submit(&*header.submitted, &header.notices.worker, slot) {
                let _ = rustix::io::write(&self.bell, &[1]);
            }
        }
    }

    /// Whether something is submitted.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.segment.header().submitted.load(Ordering::Relaxed) != 0
    }

    /// Declares that nobody looks at the bitmap any more; `false` if there is something in it.
    pub(crate) fn fall_asleep(&self) -> bool {
        let header = self.segment.header();
        ring::fall_asleep(&*header.submitted, &header.notices.worker)
    }

    /// Somebody looks at the bitmap.
    pub(crate) fn wake(&self) {
        self.segment.header().notices.worker.store(ring::AWAKE, Ordering::SeqCst);
    }

    /// Claims a submitted slot.
    #[inline]
    pub(crate) fn claim(&self) -> Option<u32> {
        ring::claim(&*self.segment.header().submitted)
    }

    /// Serves a claimed slot, and returns the CPU on which the client submitted it.
    pub(crate) fn serve(&self, slot: u32, cpu: u32, workspace: &mut Workspace) -> u32 {
        self.segment.prefetch(slot);
        let header = self.segment.header();
        if header.notices.worker_cpu.load(Ordering::Relaxed) != cpu {
            header.notices.worker_cpu.store(cpu, Ordering::Relaxed);
        }
        let client_cpu = self.segment.slot(slot).cpu.load(Ordering::Relaxed);
        if let Err(misconduct) = self.try_serve(slot, workspace) {
            tracing::warn!(
                pid = self.pid(),
                uid = self.uid(),
                program = self.program,
                "a client broke the protocol and was disconnected: {misconduct}"
            );
            self.close();
        }
        client_cpu
    }

    fn try_serve(&self, slot: u32, workspace: &mut Workspace) -> Result<(), Misconduct> {
        let bit = 1 << slot;
        if self.running.fetch_or(bit, Ordering::Acquire) & bit != 0 {
            return Err(Misconduct::Resubmitted(slot));
        }
        let served = self.answer(slot, workspace);
        self.running.fetch_and(!bit, Ordering::Release);
        let reply = served?;
        self.segment.write_reply(slot, &reply);
        let state = &self.segment.slot(slot).state;
        if ring::complete(state) {
            // Fails only for addresses that are not mapped, and this one is.
            let _ = futex::wake(state, futex::Flags::empty(), 1);
        }
        Ok(())
    }

    fn answer(&self, slot: u32, workspace: &mut Workspace) -> Result<Reply, Misconduct> {
        // Whoever uses the slot again has what it held, or has been left by a jump.
        let held = self.take_held(slot);
        if self.proofs_waiting.load(Ordering::Acquire) & (1 << slot) != 0 {
            return self.prove(slot);
        }
        let frame = self.segment.read_request(slot);
        for len in [frame.len, frame.len2] {
            if len as usize > PATH_MAX {
                return Err(Malformed::Length(len).into());
            }
        }
        let op = Op::from_u32(frame.op);
        if op == Some(Op::Taken) {
            return match held {
                None => Ok(Reply::kernel(Fallback::NotGranted)),
                Some(descriptor) if frame.flags & BY_SOCKET != 0 => {
                    self.send_grant(slot, &descriptor, Reply::ok())
                }
                Some(_) => Ok(Reply::ok()),
            };
        }
        drop(held);
        let sent = match op {
            Some(Op::Write | Op::Setxattr) if frame.mode as usize > DATA_BYTES => {
                return Err(Malformed::Length(frame.mode).into());
            }
            Some(Op::Write | Op::Setxattr) => frame.mode as usize,
            _ => 0,
        };
        workspace.data.resize(sent, 0);
        let asked = Asked {
            context: &self.context,
            frame: &frame,
            path: self.segment.read_path(slot, 0, frame.len, &mut workspace.path),
            path2: self.segment.read_path(slot, 1, frame.len2, &mut workspace.path2),
            data: self.segment.read_data(slot, &mut workspace.data),
        };
        if asked.path.contains(&0) || asked.path2.contains(&0) {
            return Ok(Reply::kernel(Fallback::BadPath));
        }
        let mut output = Output::default();
        let serve = AssertUnwindSafe(|| self.service.serve(&asked, &mut output));
        let reply = match std::panic::catch_unwind(serve) {
            Ok(served) => served?,
            // The file system's fault, not the client's, and no reason to let it or others wait for ever.
            Err(_) => {
                tracing::error!("the file system panicked; its caller gets EIO");
                return Ok(Reply::errno(libc::EIO));
            }
        };
        if !output.data.is_empty() {
            self.segment.write_data(slot, &output.data);
        }
        match output.grant {
            Some(descriptor) => self.grant(slot, descriptor, reply),
            None => Ok(reply),
        }
    }

    /// Grants a descriptor: most clients take it out of this process, which takes a fifth of the time that a socket does.
    fn grant(&self, slot: u32, descriptor: OwnedFd, reply: Reply) -> Result<Reply, Misconduct> {
        if self.segment.header().pulls.load(Ordering::Relaxed) == 0 {
            return self.send_grant(slot, &descriptor, reply);
        }
        let reply = reply.holding(descriptor.as_raw_fd());
        self.held.lock().insert(slot, descriptor);
        self.holding.fetch_or(1 << slot, Ordering::Release);
        Ok(reply)
    }

    fn send_grant(&self, slot: u32, descriptor: &OwnedFd, reply: Reply) -> Result<Reply, Misconduct> {
        handshake::send(&self.socket, &Answer::Grant { slot }, &[descriptor.as_fd()])
            .map_err(|_| Misconduct::Deaf)?;
        Ok(reply.granting())
    }

    fn take_held(&self, slot: u32) -> Option<OwnedFd> {
        if self.holding.load(Ordering::Acquire) & (1 << slot) == 0 {
            return None;
        }
        self.holding.fetch_and(!(1 << slot), Ordering::Release);
        self.held.lock().remove(&slot)
    }

    fn prove(&self, slot: u32) -> Result<Reply, Misconduct> {
        let descriptor = self.proofs.lock().remove(&slot);
        self.proofs_waiting.fetch_and(!(1 << slot), Ordering::Release);
        let Some(descriptor) = descriptor else { return Ok(Reply::kernel(Fallback::UnknownBase)) };
        // Without synchronisation: the daemon must not ask itself through the kernel.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&descriptor, c"", flags, StatxFlags::INO | StatxFlags::TYPE);
        let Ok(stat) = stat else { return Ok(Reply::kernel(Fallback::UnknownBase)) };
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR if (stat.stx_dev_major, stat.stx_dev_minor) == self.dev => {
                let path = self.service.mountpoint().and_then(|root| watchers::path_below(&descriptor, root));
                self.service.prove(&self.context, stat.stx_ino, path.as_deref());
                Ok(Reply::attr(Attr { ino: stat.stx_ino, ..Attr::default() }))
            }
            libc::S_IFREG => match self.service.exchange(&self.context, descriptor.as_fd()) {
                Some(granted) => self.grant(slot, granted, Reply::ok()),
                None => Ok(Reply::kernel(Fallback::NotGranted)),
            },
            _ => Ok(Reply::kernel(Fallback::UnknownBase)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.past.counts.lock().add(&self.counts());
        // Release: who reads that nobody is present finds all counts in the sum.
        self.past.present.fetch_sub(1, Ordering::Release);
        let held = std::mem::take(self.held.get_mut());
        self.service.departed(&self.context, held.into_values().collect());
        self.service.disconnected();
    }
}
