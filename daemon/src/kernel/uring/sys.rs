//! Memory that the kernel shares, the rings, and two calls of the device. All the `unsafe` of the kernel road's rings is here.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Weak;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use log::warn;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::{FromZeros, IntoBytes};

use super::abi::CmdReq;

/// Where things are in `struct fuse_uring_req_header`.
pub(super) const HEADER_OP: usize = 128;
pub(super) const HEADER_ENT: usize = 256;
const HEADER: usize = 288;
/// The two `struct iovec` that describe an entry lie behind its header.
const VECTORS: usize = 512;
/// The payload begins on the second page.
const PAYLOAD: usize = 4096;

/// The ring's files.
const DEVICE: u32 = 0;
const QUIT: u32 = 1;
/// `enum fuse_uring_cmd`
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;

/// The memory of one entry: its header and its payload. Pages that no request has touched take none.
#[derive(Debug)]
pub(super) struct Area {
    start: NonNull<u8>,
    payload: usize,
}

// SAFETY: the memory belongs to the value. That its parts are not used by two at a time is kept by `Entry`: the worker reads and
// writes it between a request's arrival and its commitment; the one `Ticket` of the request writes the payload only
// before the answer is delivered under the entry's lock, and only if nobody reads it (`Ticket::room`).
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    pub(super) fn new(payload: usize) -> io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping, placed by the kernel, touches no other memory.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAYLOAD + payload,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, payload })
    }

    pub(super) fn payload_size(&self) -> usize {
        self.payload
    }

    /// Copies a part of the header.
    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= HEADER);
        // SAFETY: within the first page of the mapping; nobody writes it now (see `Send`).
        unsafe { self.start.add(at).as_ptr().copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
    }

    /// Writes a part of the header.
    pub(super) fn write(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= HEADER);
        // SAFETY: as for `read`; the worker alone writes the header.
        unsafe { self.start.add(at).as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    /// Copies the beginning of the payload.
    pub(super) fn read_payload(&self, into: &mut [u8]) {
        into.copy_from_slice(self.payload(into.len()));
    }

    /// The beginning of the payload, for as long as the request is served.
    pub(super) fn payload(&self, len: usize) -> &[u8] {
        assert!(len <= self.payload);
        // SAFETY: within the mapping, which is initialised (zeros at first); the kernel writes it only before a request
        // arrives, and no `Ticket` writes it while the request is read in place (`Ticket::room`).
        unsafe { std::slice::from_raw_parts(self.start.add(PAYLOAD).as_ptr(), len) }
    }

    /// Writes a part of the payload.
    pub(super) fn write_payload(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.payload);
        // SAFETY: within the mapping; whoever answers is the only one to use the payload (see `Send`).
        unsafe { self.start.add(PAYLOAD + at).as_ptr().copy_from_nonoverlapping(from.as_ptr(), from.len()) }
    }

    /// The address of the vectors that describe the area.
    fn vectors(&self) -> u64 {
        let vectors = [
            libc::iovec { iov_base: self.start.as_ptr().cast(), iov_len: HEADER },
            libc::iovec {
                // SAFETY: within the mapping.
                iov_base: unsafe { self.start.add(PAYLOAD) }.as_ptr().cast(),
                iov_len: self.payload,
            },
        ];
        // SAFETY: within the first page, behind the header, aligned to 8 bytes; no one else uses that part.
        unsafe { self.start.add(VECTORS).cast::<[libc::iovec; 2]>().write(vectors) };
        self.start.as_ptr() as u64 + VECTORS as u64
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`. The kernel uses it only within system calls of the worker, which holds the
        // entry until its ring is closed.
        if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), PAYLOAD + self.payload) } {
            warn!("memory of a ring is lost: {error}");
        }
    }
}

/// An io_uring on which commands of one FUSE connection are sent, by the thread that made it.
pub(super) struct Ring {
    ring: IoUring<squeue::Entry128>,
    /// Completions that came with the registration.
    early: Vec<cqueue::Entry>,
}

impl Ring {
    /// Entries of the submission queue: one command is under way at a time, and what waits for the end.
    const SIZE: u32 = 2;

    /// A ring for commands on `device`. Once `quit` is readable, waiting for a request ends.
    pub(super) fn new(device: BorrowedFd<'_>, quit: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = Self::build()?;
        ring.submitter().register_files(&[device.as_raw_fd(), quit.as_raw_fd()])?;
        Ok(Self { ring, early: Vec::new() })
    }

    /// Whether rings can be had at all.
    pub(super) fn probe() -> io::Result<()> {
        Self::build().map(drop)
    }

    fn build() -> io::Result<IoUring<squeue::Entry128>> {
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().build(Self::SIZE)
    }

    /// Puts an entry into a queue.
    ///
    /// # Errors
    /// The kernel's, if it refuses.
    pub(super) fn register(&mut self, queue: u16, area: &Area) -> io::Result<()> {
        let mut command = command(REGISTER, queue, 0, Some(area.vectors()));
        // The number of vectors, for which the crate has no method: `len` of `struct io_uring_sqe`, at byte 24.
        // SAFETY: `Entry128` is the kernel's submission entry of 128 bytes (`repr(C)`), and any number is valid there.
        unsafe { (&raw mut command).cast::<u8>().add(24).cast::<u32>().write_unaligned(2) };
        self.push(&command);
        let quit = opcode::PollAdd::new(types::Fixed(QUIT), libc::POLLIN as u32).build();
        self.push(&quit.user_data(QUIT.into()).into());
        self.ring.submit()?;
        // What is refused is so at once. What else there is already is for `next`.
        self.early.extend(self.ring.completion());
        let refused =
            self.early.iter().find(|done| done.user_data() == u64::from(DEVICE) && done.result() < 0);
        refused.map_or(Ok(()), |refused| Err(io::Error::from_raw_os_error(-refused.result())))
    }

    /// Has the kernel do without rings on this connection: any registration that fails does that (`fuse_uring_cmd`).
    pub(super) fn give_up(&mut self) {
        self.push(&command(REGISTER, u16::MAX, 0, None));
        if let Err(error) = self.ring.submit() {
            warn!("cannot tell the kernel that there are no rings: {error}");
        }
    }

    /// The request in `entry` is answered; the next one may come.
    pub(super) fn commit(&mut self, queue: u16, unique: u64) {
        self.push(&command(COMMIT_AND_FETCH, queue, unique, None));
    }

    fn push(&mut self, command: &squeue::Entry128) {
        // SAFETY: what the command points to (an entry's area) lives as long as the worker, which closes the ring first.
        if unsafe { self.ring.submission().push(command) }.is_err() {
            // Each command is submitted before the next is made.
            unreachable!("the submission queue is full");
        }
    }

    /// Submits what there is and waits for the next request.
    ///
    /// # Errors
    /// `ENOTCONN` or another if there will be none.
    pub(super) fn next(&mut self) -> io::Result<()> {
        loop {
            if let Some(completed) = self.early.pop().or_else(|| self.ring.completion().next()) {
                return match completed.result() {
                    _ if completed.user_data() == u64::from(QUIT) => Err(io::ErrorKind::NotConnected.into()),
                    result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
                    _ => Ok(()),
                };
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn command(operation: u32, queue: u16, unique: u64, address: Option<u64>) -> squeue::Entry128 {
    let request = CmdReq { qid: queue, commit_id: unique, ..CmdReq::new_zeroed() };
    let mut bytes = [0; 80];
    bytes[..size_of::<CmdReq>()].copy_from_slice(request.as_bytes());
    opcode::UringCmd80::new(types::Fixed(DEVICE), operation).cmd(bytes).addr(address).build()
}

/// Keeps the calling thread on one CPU, unless that is offline: no program asks for anything there.
///
/// # Errors
/// The CPU is not this process's to use (`cpuset`).
pub(super) fn pin(cpu: u16) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    if usize::from(cpu) >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::Error::other(format!(
            "CPU {cpu}: only {} are known",
            rustix::thread::CpuSet::MAX_CPU
        )));
    }
    set.set(cpu.into());
    let Err(error) = rustix::thread::sched_setaffinity(None, &set) else { return Ok(()) };
    // A CPU that cannot be switched off has no such file.
    match std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/online")) {
        Ok(online) if online.trim() == "0" => Ok(()),
        _ if !std::path::Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}")).exists() => Ok(()),
        _ => Err(io::Error::other(format!("may not run on CPU {cpu}: {error}"))),
    }
}

/// A backing file that is registered with the kernel, until this is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    id: u32,
    device: Weak<OwnedFd>,
}

impl Registered {
    /// Registers `fd`.
    ///
    /// # Errors
    /// Those of `FUSE_DEV_IOC_BACKING_OPEN`; `ENOTCONN` if the session has ended.
    pub(crate) fn open(device: &Weak<OwnedFd>, fd: BorrowedFd<'_>) -> io::Result<Self> {
        let connected = device.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Self { id: fuser::BackingId::create_raw(&*connected, fd)?, device: device.clone() })
    }

    /// Takes over an ID that is open.
    pub(crate) fn wrap(device: &Weak<OwnedFd>, id: u32) -> Self {
        Self { id, device: device.clone() }
    }

    /// The kernel's number.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The number, which is the caller's to close.
    pub(crate) fn into_raw(mut self) -> u32 {
        self.device = Weak::new();
        self.id
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        /// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`
        const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;
        let Some(device) = self.device.upgrade() else { return };
        // SAFETY: the command reads one `uint32_t`, which outlives the call.
        if unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BACKING_CLOSE, &raw const self.id) } < 0 {
            warn!("cannot close a backing file: {}", io::Error::last_os_error());
        }
    }
}
