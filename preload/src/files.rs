//! What is done with virtual descriptors: by the daemon, where a round trip serves it, and otherwise by the kernel, after
//! *promotion*: the description becomes a kernel one with the same offset and flags, and takes the placeholders' numbers.
//!
//! Functions answer [`Road::Kernel`] for every descriptor that is not virtual, or no longer.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use finesse_ipc::client::Call;
use finesse_ipc::frame::{
    BY_FILE, Fallback, IF_GRANTED, OWN_OFFSET, Op, Outcome, PROMOTED, REPLY_GRANT, Request, Statfs, Time,
};
use finesse_ipc::layout::DATA_BYTES;
use rustix::fs::OFlags;
use rustix::process::Resource;

use crate::attr;
use crate::calls::{Found, Road, Times};
use crate::connection::Guard;
use crate::fds::Kind;
use crate::locks;
use crate::process::FDS;
use crate::sys::{self, Buffers, Data, PathArg};
use crate::virtuals::{self, Pin};

/// What the daemon says about a call by number.
enum Step<T> {
    /// The program's result.
    Done(Result<T, i32>),
    /// Only the kernel can serve it: the description must be promoted.
    Kernel,
    /// The description is another one's by now, or a transfer in several pieces is going on: look again.
    Again,
}

/// Serves a call on a virtual descriptor.
#[inline]
fn on<T>(fd: RawFd, serve: impl Fn(&Pin) -> Step<T>) -> Road<T> {
    while let Some(pin) = virtuals::pin(fd) {
        match serve(&pin) {
            Step::Done(result) => return Road::Bypass(result),
            Step::Again => sys::pause(0),
            Step::Kernel => match promote_pinned(&pin, NEEDED) {
                Ok(()) => return Road::Kernel,
                Err(Unpromoted::Again) => sys::pause(0),
                Err(Unpromoted::Errno(errno)) => return Road::Bypass(Err(errno)),
            },
        }
    }
    Road::Kernel
}

/// One round trip for a pinned description.
fn ask<T>(pin: &Pin, op: Op, request: Request, read: impl FnOnce(&Guard, &Call<'_>) -> T) -> Step<T> {
    let Some(mount) = pin.connection() else { return Step::Done(Err(libc::ENOTCONN)) };
    let request = Request { base: pin.file().into(), ..request };
    let answer = virtuals::ask(&mount, op, &request);
    judge(pin, &mount, op, answer, read)
}

fn judge<T>(
    pin: &Pin,
    mount: &Guard,
    op: Op,
    answer: Result<Call<'_>, Fallback>,
    read: impl FnOnce(&Guard, &Call<'_>) -> T,
) -> Step<T> {
    let counters = mount.client().counters();
    match answer {
        Ok(call) => match call.reply.outcome() {
            Outcome::Ok => {
                counters.served(op);
                Step::Done(Ok(read(mount, &call)))
            }
            // Promoted by somebody who could not wait for this call.
            Outcome::Errno(libc::EBADF) if !pin.is_live() => Step::Again,
            Outcome::Errno(errno) => {
                counters.served(op);
                Step::Done(Err(errno))
            }
            Outcome::Kernel(reason) => {
                counters.fell_back(reason);
                Step::Kernel
            }
        },
        Err(Fallback::Disconnected) => {
            mount.is_lost();
            Step::Done(Err(libc::ENOTCONN))
        }
        Err(reason) => {
            counters.fell_back(reason);
            Step::Kernel
        }
    }
}

/// Flags of a request about an open file itself.
const FILE: Request = Request {
    op: 0,
    flags: BY_FILE,
    base: 0,
    base2: 0,
    len: 0,
    len2: 0,
    mode: 0,
    umask: 0,
    size: 0,
    uid: 0,
    gid: 0,
    times: [Time { sec: 0, nsec: 0 }; 2],
};

// --- transfers ---

/// `MAX_RW_COUNT`: more is never transferred by one call.
const TRANSFER_MAX: usize = 0x7fff_f000;

/// Where a transfer takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// At the description's own offset, which moves on.
    Own,
    /// At this one.
    Offset(u64),
}

impl At {
    /// Of `pread` and its relatives; `None` for a negative one.
    pub(crate) fn given(offset: i64) -> Option<Self> {
        u64::try_from(offset).ok().map(Self::Offset)
    }

    fn plus(self, done: usize) -> u64 {
        match self {
            Self::Own => OWN_OFFSET,
            Self::Offset(offset) => offset.saturating_add(done as u64),
        }
    }
}

/// How a piece of a transfer went.
enum Piece {
    /// This many bytes; fewer than asked for end the transfer.
    Bytes(usize),
    Error(i32),
    Kernel,
    Again,
}

/// `read` and its relatives; the number of bytes.
pub(crate) fn read(fd: RawFd, at: At, buffers: Buffers<'_>) -> Road<usize> {
    transfer(fd, at, buffers, libc::O_WRONLY, read_piece)
}

/// `write` and its relatives; the number of bytes.
pub(crate) fn write(fd: RawFd, at: At, buffers: Buffers<'_>) -> Road<usize> {
    transfer(fd, at, buffers, libc::O_RDONLY, |pin, at, buffers, done, len| {
        if size_limit().is_some() {
            // `generic_write_check_limits` cuts the write, or sends SIGXFSZ.
            return Piece::Kernel;
        }
        write_piece(pin, at, buffers, done, len)
    })
}

/// Moves data in pieces of what one round trip carries. Several pieces at the description's own offset are one
/// transfer to all others who use it (`fdget_pos`).
fn transfer(
    fd: RawFd,
    at: At,
    buffers: Buffers<'_>,
    wrong_mode: i32,
    piece: impl Fn(&Pin, u64, Buffers<'_>, usize, usize) -> Piece,
) -> Road<usize> {
    on(fd, |pin| {
        if pin.flags() & libc::O_ACCMODE == wrong_mode {
            return Step::Done(Err(libc::EBADF));
        }
        let Some(total) = buffers.total() else { return Step::Kernel };
        let total = total.min(TRANSFER_MAX);
        if pin.pays(total) {
            return match promote_pinned(pin, IF_GRANTED) {
                Ok(()) | Err(Unpromoted::Again) => Step::Again,
                Err(Unpromoted::Errno(_)) => {
                    pin.stays();
                    Step::Again
                }
            };
        }
        let moves = |pin: &Pin| {
            let mut done = 0;
            loop {
                let len = (total - done).min(DATA_BYTES);
                match piece(pin, at.plus(done), buffers, done, len) {
                    Piece::Bytes(bytes) => {
                        done += bytes;
                        if bytes < len || done == total {
                            return Step::Done(Ok(done));
                        }
                    }
                    // What has been moved has been moved.
                    _ if done > 0 => return Step::Done(Ok(done)),
                    Piece::Error(errno) => return Step::Done(Err(errno)),
                    Piece::Kernel => return Step::Kernel,
                    Piece::Again => return Step::Again,
                }
            }
        };
        let in_one = total <= DATA_BYTES || (at != At::Own && pin.flags() & libc::O_APPEND == 0);
        if in_one { moves(pin) } else { pin.alone(|| moves(pin)).unwrap_or(Step::Again) }
    })
}

fn read_piece(pin: &Pin, at: u64, buffers: Buffers<'_>, done: usize, len: usize) -> Piece {
    let request = Request { base2: at, mode: len as u32, ..Request::default() };
    let step = ask(pin, Op::Read, request, |_, call| {
        let found = len.min(call.reply.len as usize);
        (found, buffers.fill(done, call.data_start(), found))
    });
    match step {
        Step::Done(Ok((found, filled))) => {
            if filled < found && at == OWN_OFFSET {
                // The offset moves by what the program got.
                let back = (found - filled) as i64;
                let request = Request {
                    base2: back.wrapping_neg().cast_unsigned(),
                    mode: libc::SEEK_CUR as u32,
                    ..Request::default()
                };
                let _ = ask(pin, Op::Seek, request, |_, _| ());
            }
            if filled == 0 && found > 0 { Piece::Error(libc::EFAULT) } else { Piece::Bytes(filled) }
        }
        Step::Done(Err(errno)) => Piece::Error(errno),
        Step::Kernel => Piece::Kernel,
        Step::Again => Piece::Again,
    }
}

fn write_piece(pin: &Pin, at: u64, buffers: Buffers<'_>, done: usize, len: usize) -> Piece {
    let Some(mount) = pin.connection() else { return Piece::Error(libc::ENOTCONN) };
    let mut turn = 0;
    let prepared = loop {
        match mount.client().prepare() {
            Ok(prepared) => break Ok(prepared),
            Err(Fallback::NoSlot) => sys::pause(turn),
            Err(reason) => break Err(reason),
        }
        turn = turn.saturating_add(1);
    };
    let answer = match prepared {
        Ok(prepared) => {
            let taken = buffers.take(done, prepared.data_start(), len);
            if taken == 0 && len > 0 {
                return Piece::Error(libc::EFAULT);
            }
            let request =
                Request { base: pin.file().into(), base2: at, mode: taken as u32, ..Request::default() };
            prepared.submit(Op::Write, &request, &[], &[])
        }
        Err(reason) => Err(reason),
    };
    match judge(pin, &mount, Op::Write, answer, |_, call| call.reply.number()) {
        Step::Done(Ok(written)) => Piece::Bytes((written as usize).min(len)),
        Step::Done(Err(errno)) => Piece::Error(errno),
        Step::Kernel => Piece::Kernel,
        Step::Again => Piece::Again,
    }
}

/// What is known of `RLIMIT_FSIZE`; [`UNKNOWN_LIMIT`] until looked at.
static SIZE_LIMIT: AtomicU64 = AtomicU64::new(UNKNOWN_LIMIT);
const UNKNOWN_LIMIT: u64 = u64::MAX;
const NO_LIMIT: u64 = u64::MAX - 1;

/// The limit of files' sizes, if there is one.
fn size_limit() -> Option<u64> {
    let known = SIZE_LIMIT.load(Ordering::Relaxed);
    let limit = match known {
        UNKNOWN_LIMIT => {
            let limit = rustix::process::getrlimit(Resource::Fsize).current.unwrap_or(NO_LIMIT);
            SIZE_LIMIT.store(limit.min(NO_LIMIT), Ordering::Relaxed);
            limit
        }
        limit => limit,
    };
    (limit < NO_LIMIT).then_some(limit)
}

/// The program has changed its limits.
pub(crate) fn limits_changed() {
    SIZE_LIMIT.store(UNKNOWN_LIMIT, Ordering::Relaxed);
}

// --- position, size, durability ---

/// `lseek`; the new offset.
pub(crate) fn seek(fd: RawFd, offset: i64, whence: i32) -> Road<i64> {
    on(fd, |pin| {
        let Ok(mode @ 0..=4) = u32::try_from(whence) else { return Step::Done(Err(libc::EINVAL)) };
        let request = Request { base2: offset.cast_unsigned(), mode, ..Request::default() };
        ask(pin, Op::Seek, request, |_, call| call.reply.number().cast_signed())
    })
}

/// `ftruncate`.
pub(crate) fn truncate(fd: RawFd, size: i64) -> Road<()> {
    on(fd, |pin| match u64::try_from(size) {
        Err(_) => Step::Done(Err(libc::EINVAL)),
        // Beyond the limit, the kernel also sends SIGXFSZ.
        Ok(_) if size_limit().is_some() => Step::Kernel,
        Ok(size) => ask(pin, Op::Truncate, Request { size, ..FILE }, |_, _| ()),
    })
}

/// `fsync`, `fdatasync`.
pub(crate) fn sync(fd: RawFd, data_only: bool) -> Road<()> {
    on(fd, |pin| ask(pin, Op::Sync, Request { mode: data_only.into(), ..Request::default() }, |_, _| ()))
}

/// `fallocate`.
pub(crate) fn allocate(fd: RawFd, mode: i32, offset: i64, len: i64) -> Road<()> {
    on(fd, |pin| match (u64::try_from(offset), u64::try_from(len)) {
        (Ok(offset), Ok(size @ 1..)) if size_limit().is_none() => {
            let request = Request { mode: mode.cast_unsigned(), base2: offset, size, ..Request::default() };
            ask(pin, Op::Allocate, request, |_, _| ())
        }
        (Ok(_), Ok(1..)) => Step::Kernel,
        // `vfs_fallocate`, before it looks at anything else.
        _ => Step::Done(Err(libc::EINVAL)),
    })
}

/// `posix_fallocate`, which fills in zeros itself where the file system cannot.
pub(crate) fn reserve(fd: RawFd, offset: i64, len: i64) -> Road<()> {
    match allocate(fd, 0, offset, len) {
        Road::Bypass(Err(libc::EOPNOTSUPP)) => kernel(fd),
        road => road,
    }
}

/// `posix_fadvise`, `readahead`, `sync_file_range`: there are no pages of the kernel's to care for.
pub(crate) fn advise(fd: RawFd, is_valid: bool) -> Road<()> {
    on(fd, |_| Step::Done(if is_valid { Ok(()) } else { Err(libc::EINVAL) }))
}

/// `readahead`, which asks for a file that can be read.
pub(crate) fn read_ahead(fd: RawFd) -> Road<()> {
    on(fd, |pin| match pin.flags() & libc::O_ACCMODE {
        libc::O_WRONLY => Step::Done(Err(libc::EBADF)),
        _ => Step::Done(Ok(())),
    })
}

/// `isatty`, `tcgetattr`: a regular file is none.
pub(crate) fn terminal(fd: RawFd) -> Road<()> {
    on(fd, |_| Step::Done(Err(libc::ENOTTY)))
}

// --- attributes ---

/// `fstat` and its relatives.
pub(crate) fn stat(fd: RawFd) -> Road<Found> {
    on(fd, |pin| {
        ask(pin, Op::Stat, FILE, |mount, call| Found { attr: call.reply.to_attr(), mount: mount.facts() })
    })
}

/// `fstatfs`, `fstatvfs`.
pub(crate) fn statfs(fd: RawFd) -> Road<(Statfs, i64)> {
    on(fd, |pin| {
        let flags = pin.connection().and_then(|mount| mount.statfs_flags());
        match flags {
            Some(flags) => ask(pin, Op::Statfs, FILE, |_, call| (call.reply.to_statfs(), flags)),
            None => Step::Kernel,
        }
    })
}

/// `fchmod`.
pub(crate) fn chmod(fd: RawFd, mode: u32) -> Road<()> {
    on(fd, |pin| ask(pin, Op::Chmod, Request { mode: mode & 0o7777, ..FILE }, |_, _| ()))
}

/// `fchown`.
pub(crate) fn chown(fd: RawFd, uid: u32, gid: u32) -> Road<()> {
    on(fd, |pin| ask(pin, Op::Chown, Request { uid, gid, ..FILE }, |_, _| ()))
}

/// `futimens` and its relatives.
pub(crate) fn utimens(fd: RawFd, times: &Times) -> Road<()> {
    on(fd, |pin| match *times {
        Times::Set(times) => ask(pin, Op::Utimens, Request { times, ..FILE }, |_, _| ()),
        Times::Unclear => Step::Kernel,
    })
}

/// `fgetxattr` for a name, `flistxattr` for none; the number of bytes.
pub(crate) fn xattr(fd: RawFd, name: Option<&PathArg>, out: Data, size: usize) -> Road<usize> {
    let buffer = out.buffer(size);
    on(fd, |pin| {
        let (op, name) = match name.map(PathArg::get) {
            None => (Op::Listxattr, &[][..]),
            Some(Some(name)) => (Op::Getxattr, name.bytes()),
            Some(None) => return Step::Kernel,
        };
        let Some(mount) = pin.connection() else { return Step::Done(Err(libc::ENOTCONN)) };
        let request = Request { base: pin.file().into(), size: size as u64, ..FILE };
        let answer = mount.client().call(op, &request, &[], name);
        let step = judge(pin, &mount, op, answer, |_, call| {
            let len = call.reply.len as usize;
            let wanted = if size == 0 { 0 } else { len };
            (len, Buffers::one(&buffer).fill(0, call.data_start(), wanted) == wanted)
        });
        match step {
            Step::Done(Ok((len, true))) => Step::Done(Ok(len)),
            Step::Done(Ok((_, false))) => Step::Done(Err(libc::EFAULT)),
            Step::Done(Err(errno)) => Step::Done(Err(errno)),
            Step::Kernel => Step::Kernel,
            Step::Again => Step::Again,
        }
    })
}

/// Longest value and longest name of an extended attribute; the kernel refuses what is longer.
const VALUE_MAX: usize = 65_536;
const NAME_MAX: usize = 255;

/// `fsetxattr`.
pub(crate) fn set_xattr(fd: RawFd, name: &PathArg, value: Data, size: usize, flags: i32) -> Road<()> {
    let buffer = value.buffer(size);
    on(fd, |pin| {
        let Some(name) = name.get().map(|name| name.bytes()) else { return Step::Kernel };
        if size > VALUE_MAX || name.is_empty() || name.len() > NAME_MAX {
            return Step::Kernel;
        }
        let Some(mount) = pin.connection() else { return Step::Done(Err(libc::ENOTCONN)) };
        let answer = mount.client().prepare().and_then(|prepared| {
            if Buffers::one(&buffer).take(0, prepared.data_start(), size) != size {
                return Err(Fallback::BadPath);
            }
            let request = Request {
                base: pin.file().into(),
                mode: size as u32,
                size: u64::from(flags.cast_unsigned()),
                ..FILE
            };
            prepared.submit(Op::Setxattr, &request, &[], name)
        });
        judge(pin, &mount, Op::Setxattr, answer, |_, _| ())
    })
}

/// `fremovexattr`.
pub(crate) fn remove_xattr(fd: RawFd, name: &PathArg) -> Road<()> {
    on(fd, |pin| {
        let Some(name) = name.get().map(|name| name.bytes()) else { return Step::Kernel };
        if name.is_empty() || name.len() > NAME_MAX {
            return Step::Kernel;
        }
        let Some(mount) = pin.connection() else { return Step::Done(Err(libc::ENOTCONN)) };
        let request = Request { base: pin.file().into(), ..FILE };
        let answer = mount.client().call(Op::Removexattr, &request, &[], name);
        judge(pin, &mount, Op::Removexattr, answer, |_, _| ())
    })
}

// --- descriptors ---

/// `F_GETFL`.
pub(crate) fn status_flags(fd: RawFd) -> Road<i32> {
    on(fd, |pin| Step::Done(Ok(pin.flags())))
}

/// `F_SETFL`.
pub(crate) fn set_status_flags(fd: RawFd, flags: i32) -> Road<()> {
    const CHANGEABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_NOATIME | libc::O_DIRECT;
    on(fd, |pin| {
        let flags = flags & CHANGEABLE;
        let request = Request { flags: flags.cast_unsigned(), ..Request::default() };
        ask(pin, Op::SetFlags, request, |_, _| pin.set_flags(pin.flags() & !CHANGEABLE | flags))
    })
}

/// `close`; as libc's, it always frees the number.
pub(crate) fn close(fd: RawFd) -> Road<()> {
    end_locks(fd);
    while let Some(pin) = virtuals::pin(fd) {
        // Otherwise another thread closes it as well.
        if FDS.take(fd, pin.token()) {
            sys::close(fd);
            pin.drop_descriptor();
            return Road::Bypass(pin.finish());
        }
    }
    Road::Kernel
}

/// A descriptor is about to be closed: the kernel's it must be for that, if POSIX locks end with it. (What cannot be
/// promoted is closed all the same.)
fn end_locks(fd: RawFd) {
    if ends_locks(fd) {
        let _: Road<()> = kernel(fd);
    }
    locks::closing(fd);
}

fn ends_locks(fd: RawFd) -> bool {
    virtuals::pin(fd).is_some_and(|pin| locks::may_be_on(pin.ino()))
}

/// Makes a duplicate of a descriptor, by `next`; `next` answers the number, or -1 and errno.
pub(crate) fn duplicate(fd: RawFd, next: impl Fn() -> RawFd) -> RawFd {
    let Some(pin) = virtuals::pin(fd) else { return next() };
    let number = next();
    if number < 0 {
        return number;
    }
    match adopt(&pin, number) {
        Adopted::Virtual => number,
        Adopted::Promote => {
            drop(pin);
            renew(fd, number, &next)
        }
    }
}

enum Adopted {
    Virtual,
    /// It cannot be virtual.
    Promote,
}

/// A duplicate of a pinned description's placeholder stands for it, too.
fn adopt(pin: &Pin, number: RawFd) -> Adopted {
    // A gate that closes now waits for the pin.
    if number > LAST_OF_STDIO && virtuals::gate_is_open() && pin.add_descriptor() {
        if FDS.set(number, Kind::Virtual(pin.token())) {
            return Adopted::Virtual;
        }
        pin.drop_descriptor();
    }
    Adopted::Promote
}

/// libc's streams use these numbers without calling anything that is hooked.
pub(crate) const LAST_OF_STDIO: RawFd = 2;

/// A duplicate that cannot be virtual: makes it again, of the promoted descriptor.
fn renew(fd: RawFd, number: RawFd, next: impl Fn() -> RawFd) -> RawFd {
    sys::close(number);
    match kernel::<()>(fd) {
        Road::Bypass(Err(errno)) => {
            sys::set_errno(errno);
            -1
        }
        _ => {
            let number = next();
            if number >= 0 {
                FDS.copy(fd, number);
            }
            number
        }
    }
}

/// Runs `dup2` or `dup3` of different numbers; `next` answers the number, or -1 and errno.
pub(crate) fn duplicate_onto(from: RawFd, to: RawFd, next: impl Fn() -> RawFd) -> RawFd {
    if to <= LAST_OF_STDIO
        && let Road::Bypass(Err(errno)) = kernel::<()>(from)
    {
        sys::set_errno(errno);
        return -1;
    }
    end_locks(to);
    loop {
        let pin = virtuals::pin(from);
        let over = virtuals::pin(to);
        let before = FDS.get(to);
        match (&over, before) {
            (Some(over), _) if !FDS.take(to, over.token()) => continue,
            (None, Kind::Virtual(_)) => continue,
            (None, _) => FDS.clear(to),
            _ => {}
        }
        let number = next();
        if number < 0 {
            // Nothing was closed.
            FDS.set(to, before);
            return number;
        }
        let adopted = pin.as_ref().map(|pin| adopt(pin, number));
        if let Some(over) = over {
            over.drop_descriptor();
            // Errors of what is closed by the way are lost, as the kernel loses them.
            let _ = over.finish();
        }
        match adopted {
            None => FDS.copy(from, number),
            Some(Adopted::Virtual) => {}
            Some(Adopted::Promote) => {
                drop(pin);
                if let Road::Bypass(Err(errno)) = kernel::<()>(from) {
                    sys::close(number);
                    sys::set_errno(errno);
                    return -1;
                }
                let number = next();
                if number >= 0 {
                    FDS.copy(from, number);
                }
                return number;
            }
        }
        return number;
    }
}

/// A file has been opened on a connection: its virtual descriptor, for which `number` may have been made already.
///
/// # Errors
/// `EMFILE` and what promotion fails by: then the file is closed again.
pub(crate) fn opened(mount: &Guard, opened: &virtuals::Opened, number: Option<RawFd>) -> Result<RawFd, i32> {
    let closes_by_exec = opened.flags & libc::O_CLOEXEC != 0;
    let number = match number.map_or_else(|| mount.virtual_number(closes_by_exec), Ok) {
        Ok(number) => number,
        Err(errno) => {
            close_again(mount, opened.file);
            return Err(errno);
        }
    };
    if !virtuals::create(number, mount, opened) {
        // Too many, or a number that the table does not know.
        sys::close(number);
        close_again(mount, opened.file);
        return Err(libc::EMFILE);
    }
    if opened.is_the_kernels {
        if let Road::Bypass(Err(errno)) = kernel::<()>(number) {
            let _: Road<()> = close(number);
            return Err(errno);
        }
    } else if number <= LAST_OF_STDIO || !virtuals::gate_is_open() {
        // A failure leaves a virtual descriptor, which only libc's own streams cannot use.
        let _ = kernel::<()>(number);
    }
    Ok(number)
}

fn close_again(mount: &Guard, file: u32) {
    let _ = virtuals::ask(mount, Op::Close, &Request { base: file.into(), ..Request::default() });
}

// --- promotion ---

/// Why a description stays virtual.
enum Unpromoted {
    /// Somebody else is alone with it.
    Again,
    Errno(i32),
}

/// Makes a descriptor the kernel's if it is virtual, because of what is about to be done with it.
#[inline]
pub(crate) fn kernel<T>(fd: RawFd) -> Road<T> {
    on(fd, |_| Step::Kernel)
}

/// Makes all virtual descriptors the kernel's.
///
/// # Errors
/// The first errno; the others have been promoted all the same.
pub(crate) fn promote_all() -> Result<(), i32> {
    promote_some(|_| true)
}

/// Makes those virtual descriptors the kernel's that a new program gets, or that end locks when it starts.
///
/// # Errors
/// As [`promote_all`].
pub(crate) fn promote_inherited() -> Result<(), i32> {
    promote_some(|fd| {
        let flags = sys::borrow(fd).map(rustix::io::fcntl_getfd);
        !matches!(flags, Some(Ok(flags)) if flags.contains(rustix::io::FdFlags::CLOEXEC)) || ends_locks(fd)
    })
}

fn promote_some(wanted: impl Fn(RawFd) -> bool) -> Result<(), i32> {
    let mut result = Ok(());
    if virtuals::any() {
        for (fd, _) in FDS.virtuals(0) {
            if wanted(fd)
                && let Road::Bypass(Err(errno)) = kernel::<()>(fd)
                // What is lost is lost in a child and after an exec, too.
                && errno != libc::ENOTCONN
            {
                result = result.and(Err(errno));
            }
        }
    }
    result
}

/// As [`promote_all`], for forks that cannot fail.
pub(crate) fn promote_what_can_be() {
    let _ = promote_all();
}

/// A kernel descriptor must be had, whichever.
const NEEDED: u32 = 0;

fn promote_pinned(pin: &Pin, mode: u32) -> Result<(), Unpromoted> {
    pin.alone(|| promote_alone(pin, mode)).unwrap_or(Err(Unpromoted::Again))
}

/// Makes a kernel description of one that nobody else uses at this moment.
fn promote_alone(pin: &Pin, mode: u32) -> Result<(), Unpromoted> {
    let promoted = take_over(pin, mode).map_err(Unpromoted::Errno)?;
    let Some(fd) = promoted.file.fd() else { return Err(Unpromoted::Errno(libc::EBADF)) };
    for (number, token) in FDS.virtuals(0) {
        if token != pin.token() {
            continue;
        }
        let flags = sys::borrow(number).and_then(|number| rustix::io::fcntl_getfd(number).ok());
        let Some(flags) = flags else {
            // Closed behind our back: nobody has this number.
            FDS.take(number, token);
            continue;
        };
        let is_closed_by_exec = flags.contains(rustix::io::FdFlags::CLOEXEC);
        sys::replace(std::os::fd::AsRawFd::as_raw_fd(&fd), number, is_closed_by_exec);
        // Only then others find it: until here they wait.
        FDS.set(number, promoted.kind);
    }
    locks::keep(promoted.file, pin.ino());
    if let Some(mount) = pin.connection() {
        // If it was spared: without it, the next file would need two numbers.
        let _ = mount.keep_placeholder();
    }
    pin.end();
    Ok(())
}

/// What a description has become.
struct Promoted {
    file: sys::Hidden,
    kind: Kind,
}

/// Promotion needs a number for a moment. A program that has used up all of its own lends it ours.
fn take_over(pin: &Pin, mode: u32) -> Result<Promoted, i32> {
    let mount = pin.connection().ok_or(libc::ENOTCONN)?;
    match take_over_once(pin, &mount, mode) {
        Err(libc::EMFILE) if mount.spare_number() => take_over_once(pin, &mount, mode),
        promoted => promoted,
    }
}

fn take_over_once(pin: &Pin, mount: &Guard, mode: u32) -> Result<Promoted, i32> {
    // A file that was closed would stand against a lease, for example, if it was open in the daemon still.
    mount.client().settle();
    let request = Request { base: pin.file().into(), mode, ..Request::default() };
    let call = virtuals::ask(mount, Op::Promote, &request).map_err(|_| libc::ENOTCONN)?;
    match call.reply.outcome() {
        Outcome::Ok => {}
        Outcome::Errno(errno) => return Err(errno),
        Outcome::Kernel(_) => return Err(libc::EIO),
    }
    if call.reply.flags & REPLY_GRANT != 0 {
        let file = match call.take_grant() {
            Ok(file) => sys::Hidden::new(file),
            Err(Fallback::NotGranted) => return Err(libc::EMFILE),
            Err(_) => return Err(libc::ENOTCONN),
        };
        // Until here it could have gone wrong. Whoever waits for a slot must not hold another.
        drop(call);
        let taken = Request { mode: PROMOTED, ..request };
        virtuals::ask(mount, Op::Promote, &taken).map_err(|_| libc::ENOTCONN)?;
        mount.client().counters().served(Op::Promote);
        let nofollow = pin.flags() & libc::O_NOFOLLOW != 0;
        let kind = Kind::Granted { dev: attr::dev_t(mount.facts().dev), ino: pin.ino(), nofollow };
        return Ok(Promoted { file, kind });
    }
    let mut name = [0; NAME_MAX];
    let flags = OFlags::from_bits_retain(pin.flags().cast_unsigned()) | OFlags::CREATE;
    let file = mount.open_hidden(call.data(&mut name), flags)?;
    // A stream, which has no offset, is at its beginning.
    if let (Some(fd), offset @ 1..) = (file.fd(), call.reply.number()) {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(offset)).map_err(|errno| errno.raw_os_error())?;
    }
    mount.client().counters().served(Op::Promote);
    Ok(Promoted { file, kind: Kind::Other })
}

/// Promotes what a path names: `/proc/self/fd/N`, `/dev/fd/N`, `/dev/stdin` and their like lead to the descriptor's file.
pub(crate) fn named_by(path: &[u8]) {
    if is_about_descriptors(path) {
        promote_what_can_be();
    }
}

/// The descriptor of this process that a path stands for.
pub(crate) fn descriptor_at(path: &[u8]) -> Option<RawFd> {
    const DIRECTORIES: [&[u8]; 3] = [b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/"];
    match path {
        b"/dev/stdin" => Some(0),
        b"/dev/stdout" => Some(1),
        b"/dev/stderr" => Some(2),
        _ => {
            if let Some(digits) = DIRECTORIES.iter().find_map(|directory| path.strip_prefix(*directory)) {
                return descriptor(digits);
            }
            let path = path.strip_prefix(b"/proc/")?;
            let end = path.iter().position(|byte| *byte == b'/')?;
            let digits = path.get(end..)?.strip_prefix(b"/fd/")?;
            let is_own = descriptor(path.get(..end)?)? == rustix::process::getpid().as_raw_pid();
            if is_own { descriptor(digits) } else { None }
        }
    }
}

/// The number that a name in a directory of descriptors, or of processes, is (`name_to_int`).
pub(crate) fn descriptor(name: &[u8]) -> Option<RawFd> {
    let is_number = name.iter().all(u8::is_ascii_digit) && (name.first() != Some(&b'0') || name.len() == 1);
    if is_number { std::str::from_utf8(name).ok()?.parse().ok() } else { None }
}

fn is_about_descriptors(path: &[u8]) -> bool {
    path.starts_with(b"/proc/") || path.starts_with(b"/dev/fd") || path.starts_with(b"/dev/std")
}
