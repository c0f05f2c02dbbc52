//! Functions that the ring does not serve: a virtual descriptor becomes the kernel's first ([`crate::files`]).

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};

use libc::{off_t, pid_t, size_t};

use super::{fail, hook};
use crate::calls::{Road, names_descriptor};
use crate::changes;
use crate::copies;
use crate::dirstreams;
use crate::files;
use crate::locks;
use crate::next::{self, Stream};
use crate::process::FDS;
use crate::sys::{Aio, Aios, FdSet, Message, Out, PathArg, PollFds};
use crate::vforks;
use crate::virtuals;

/// Whether the library has not started yet.
fn early() -> bool {
    next::is_early()
}

/// Makes a descriptor the kernel's and goes on; fails if that fails.
#[inline]
pub(super) fn with<R: From<i8>>(fd: c_int, next: impl FnOnce() -> R) -> R {
    match files::kernel::<()>(fd) {
        Road::Bypass(Err(errno)) => fail(errno),
        _ => next(),
    }
}

#[inline]
fn with_both<R: From<i8>>(one: c_int, other: c_int, next: impl FnOnce() -> R) -> R {
    with(one, || with(other, next))
}

/// The same for as many descriptors as a call is about.
#[inline]
fn with_all<R: From<i8>, I: Iterator<Item = c_int>>(fds: impl FnOnce() -> I, next: impl FnOnce() -> R) -> R {
    if virtuals::any() {
        for fd in fds() {
            if let Road::Bypass(Err(errno)) = files::kernel::<()>(fd) {
                return fail(errno);
            }
        }
    }
    next()
}

/// A function whose result is a pointer: what it answers if the descriptor cannot be the kernel's.
#[inline]
fn with_or<R>(fd: c_int, failed: R, next: impl FnOnce() -> R) -> R {
    match files::kernel::<()>(fd) {
        Road::Bypass(Err(errno)) => {
            crate::sys::set_errno(errno);
            failed
        }
        _ => next(),
    }
}

/// A function whose result is 0 or the errno.
#[inline]
fn with_errno(fd: c_int, next: impl FnOnce() -> c_int) -> c_int {
    match files::kernel::<()>(fd) {
        Road::Bypass(Err(errno)) => errno,
        _ => next(),
    }
}

/// What a descriptor with an empty path means: the file itself.
#[inline]
pub(super) fn itself<R: From<i8>>(dirfd: c_int, path: &PathArg, flags: c_int, next: impl FnOnce() -> R) -> R {
    match flags & libc::AT_EMPTY_PATH != 0 && FDS.is_virtual(dirfd) && names_descriptor(path) {
        true => with(dirfd, next),
        false => next(),
    }
}

hook! {
    fn [mmap, mmap64](
        start: *mut c_void, len: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void, next =>
        match early() {
            true => crate::sys::raw_mmap(start, len, protection, flags, fd, offset),
            false => with_or(fd, libc::MAP_FAILED, || next(start, len, protection, flags, fd, offset)),
        };

    fn [sendfile, sendfile64](out: c_int, from: c_int, offset: *mut off_t, count: size_t) -> isize, next =>
        with_both(out, from, || next(out, from, offset, count));
    fn [splice](
        from: c_int, from_offset: *mut off_t, to: c_int, to_offset: *mut off_t, len: size_t, flags: c_uint
    ) -> isize, next =>
        with_both(from, to, || next(from, from_offset, to, to_offset, len, flags));
    fn [tee](from: c_int, to: c_int, len: size_t, flags: c_uint) -> isize, next =>
        with_both(from, to, || next(from, to, len, flags));
    fn [vmsplice](fd: c_int, buffers: *const c_void, count: size_t, flags: c_uint) -> isize, next =>
        with(fd, || next(fd, buffers, count, flags));
    fn [copy_file_range](
        from: c_int, from_offset: Out<off_t>, to: c_int, to_offset: Out<off_t>, len: size_t, flags: c_uint
    ) -> isize, next =>
        with_both(from, to, || {
            copies::range((from, from_offset), (to, to_offset), len, || {
                next(from, from_offset, to, to_offset, len, flags)
            })
        });

    fn [ioctl](fd: c_int, request: c_ulong, argument: c_ulong) -> c_int, next =>
        with(fd, || changes::despite_lending(fd, |result| *result == -1, |fd| next(fd, request, argument)));
    fn [flock](fd: c_int, operation: c_int) -> c_int, next => with(fd, || next(fd, operation));
    fn [lockf, lockf64](fd: c_int, command: c_int, len: off_t) -> c_int, next => {
        with(fd, || {
            locks::taken(fd);
            next(fd, command, len)
        })
    };
    fn [syncfs](fd: c_int) -> c_int, next => with(fd, || next(fd));
    fn [name_to_handle_at](
        dirfd: c_int, path: PathArg, handle: *mut c_void, mount: *mut c_int, flags: c_int
    ) -> c_int, next =>
        itself(dirfd, &path, flags, || next(dirfd, path, handle, mount, flags));

    fn [poll, __poll](fds: PollFds, count: c_ulong, timeout: c_int) -> c_int, next =>
        with_all(|| fds.fds(count), || next(fds, count, timeout));
    fn [__poll_chk](fds: PollFds, count: c_ulong, timeout: c_int, room: size_t) -> c_int, next =>
        with_all(|| fds.fds(count), || next(fds, count, timeout, room));
    fn [ppoll](fds: PollFds, count: c_ulong, timeout: *const c_void, mask: *const c_void) -> c_int, next =>
        with_all(|| fds.fds(count), || next(fds, count, timeout, mask));
    fn [__ppoll_chk](
        fds: PollFds, count: c_ulong, timeout: *const c_void, mask: *const c_void, room: size_t
    ) -> c_int, next =>
        with_all(|| fds.fds(count), || next(fds, count, timeout, mask, room));
    fn [select, __select](count: c_int, reads: FdSet, writes: FdSet, others: FdSet, timeout: *mut c_void) -> c_int, next =>
        with_all(
            || reads.fds(count).chain(writes.fds(count)).chain(others.fds(count)),
            || next(count, reads, writes, others, timeout),
        );
    fn [pselect](
        count: c_int, reads: FdSet, writes: FdSet, others: FdSet, timeout: *const c_void, mask: *const c_void
    ) -> c_int, next =>
        with_all(
            || reads.fds(count).chain(writes.fds(count)).chain(others.fds(count)),
            || next(count, reads, writes, others, timeout, mask),
        );
    fn [epoll_ctl](epoll: c_int, operation: c_int, fd: c_int, event: *mut c_void) -> c_int, next =>
        with_both(epoll, fd, || next(epoll, operation, fd, event));

    fn [sendmsg](fd: c_int, message: Message, flags: c_int) -> isize, next =>
        with(fd, || with_all(|| message.fds(), || next(fd, message, flags)));
    fn [sendmmsg](fd: c_int, messages: Message, count: c_uint, flags: c_int) -> c_int, next =>
        with(fd, || {
            with_all(|| messages.several(count).flat_map(Message::fds), || next(fd, messages, count, flags))
        });

    fn [aio_read, aio_read64](block: Aio) -> c_int, next => with(block.fd(), || next(block));
    fn [aio_write, aio_write64](block: Aio) -> c_int, next => with(block.fd(), || next(block));
    fn [aio_fsync, aio_fsync64](operation: c_int, block: Aio) -> c_int, next =>
        with(block.fd(), || next(operation, block));
    fn [lio_listio, lio_listio64](mode: c_int, blocks: Aios, count: c_int, event: *mut c_void) -> c_int, next =>
        with_all(|| blocks.fds(count), || next(mode, blocks, count, event));

    // libc's streams read and write without calling anything that is hooked.
    fn [fdopen, _IO_fdopen](fd: c_int, mode: PathArg) -> *mut Stream, next =>
        with_or(fd, std::ptr::null_mut(), || next(fd, mode));
    fn [vdprintf](fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, next =>
        with(fd, || next(fd, format, arguments));
    fn [__vdprintf_chk](fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int, next =>
        with(fd, || next(fd, flag, format, arguments));

    // What others share with us from here on.
    fn [fork, __fork]() -> pid_t, next => forking(next);
    fn [_Fork]() -> pid_t, next => forking(next);
    fn [clone, __clone](
        run: *const c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void,
        tls: *mut c_void, child: *mut c_void
    ) -> c_int, next =>
        match flags & (VFORK | SHARED) {
            VFORK => vforks::around(|| next(run, stack, flags, argument, parent, tls, child)).unwrap_or_else(fail),
            others if others & libc::CLONE_FILES == 0 =>
                forking(|| next(run, stack, flags, argument, parent, tls, child)),
            _ => next(run, stack, flags, argument, parent, tls, child),
        };
    fn [system](command: PathArg) -> c_int, next => forking(|| next(command));
    fn [popen, _IO_popen](command: PathArg, mode: PathArg) -> *mut Stream, next => {
        let made = sharing(|| next(command, mode));
        made.unwrap_or_else(|errno| {
            crate::sys::set_errno(errno);
            std::ptr::null_mut()
        })
    };
}

/// `clone`'s flags by which it makes a child that shares our memory, while we wait.
const VFORK: c_int = libc::CLONE_VM | libc::CLONE_VFORK;
/// Those by which it shares more that we know of, or has no thread's storage or process number in common with us by which
/// [`vforks`] knows it.
const SHARED: c_int = libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SETTLS | libc::CLONE_NEWPID;

// A regular file is none of these; by which errno that shows, and after which other errors, the kernel knows.
hook! {
    fn [bind](fd: c_int, address: *const c_void, len: c_uint) -> c_int, next => with(fd, || next(fd, address, len));
    fn [connect, __connect](fd: c_int, address: *const c_void, len: c_uint) -> c_int, next =>
        with(fd, || next(fd, address, len));
    fn [listen](fd: c_int, backlog: c_int) -> c_int, next => with(fd, || next(fd, backlog));
    fn [accept](fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int, next =>
        with(fd, || next(fd, address, len));
    fn [accept4](fd: c_int, address: *mut c_void, len: *mut c_uint, flags: c_int) -> c_int, next =>
        with(fd, || next(fd, address, len, flags));
    fn [shutdown](fd: c_int, how: c_int) -> c_int, next => with(fd, || next(fd, how));
    fn [send, __send](fd: c_int, data: *const c_void, len: size_t, flags: c_int) -> isize, next =>
        with(fd, || next(fd, data, len, flags));
    fn [sendto](
        fd: c_int, data: *const c_void, len: size_t, flags: c_int, address: *const c_void, address_len: c_uint
    ) -> isize, next =>
        with(fd, || next(fd, data, len, flags, address, address_len));
    fn [recv](fd: c_int, out: *mut c_void, len: size_t, flags: c_int) -> isize, next =>
        with(fd, || next(fd, out, len, flags));
    fn [__recv_chk](fd: c_int, out: *mut c_void, len: size_t, room: size_t, flags: c_int) -> isize, next =>
        with(fd, || next(fd, out, len, room, flags));
    fn [recvfrom](
        fd: c_int, out: *mut c_void, len: size_t, flags: c_int, address: *mut c_void, address_len: *mut c_uint
    ) -> isize, next =>
        with(fd, || next(fd, out, len, flags, address, address_len));
    fn [__recvfrom_chk](
        fd: c_int, out: *mut c_void, len: size_t, room: size_t, flags: c_int, address: *mut c_void,
        address_len: *mut c_uint
    ) -> isize, next =>
        with(fd, || next(fd, out, len, room, flags, address, address_len));
    fn [recvmsg](fd: c_int, message: *mut c_void, flags: c_int) -> isize, next =>
        with(fd, || next(fd, message, flags));
    fn [recvmmsg](
        fd: c_int, messages: *mut c_void, count: c_uint, flags: c_int, timeout: *mut c_void
    ) -> c_int, next =>
        with(fd, || next(fd, messages, count, flags, timeout));
    fn [getsockname](fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int, next =>
        with(fd, || next(fd, address, len));
    fn [getpeername](fd: c_int, address: *mut c_void, len: *mut c_uint) -> c_int, next =>
        with(fd, || next(fd, address, len));
    fn [getsockopt](
        fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut c_uint
    ) -> c_int, next =>
        with(fd, || next(fd, level, name, value, len));
    fn [setsockopt](
        fd: c_int, level: c_int, name: c_int, value: *const c_void, len: c_uint
    ) -> c_int, next =>
        with(fd, || next(fd, level, name, value, len));
    fn [sockatmark](fd: c_int) -> c_int, next => with(fd, || next(fd));

    fn [ttyname](fd: c_int) -> *mut c_char, next => with_or(fd, std::ptr::null_mut(), || next(fd));
    fn [ptsname](fd: c_int) -> *mut c_char, next => with_or(fd, std::ptr::null_mut(), || next(fd));
    fn [ttyname_r](fd: c_int, out: *mut c_char, len: size_t) -> c_int, next =>
        with_errno(fd, || next(fd, out, len));
    fn [__ttyname_r_chk](fd: c_int, out: *mut c_char, len: size_t, room: size_t) -> c_int, next =>
        with_errno(fd, || next(fd, out, len, room));
    fn [ptsname_r](fd: c_int, out: *mut c_char, len: size_t) -> c_int, next =>
        with_errno(fd, || next(fd, out, len));
    fn [__ptsname_r_chk](fd: c_int, out: *mut c_char, len: size_t, room: size_t) -> c_int, next =>
        with_errno(fd, || next(fd, out, len, room));
    fn [grantpt](fd: c_int) -> c_int, next => with(fd, || next(fd));
    fn [unlockpt](fd: c_int) -> c_int, next => with(fd, || next(fd));
    fn [tcsetattr](fd: c_int, when: c_int, attributes: *const c_void) -> c_int, next =>
        with(fd, || next(fd, when, attributes));
    fn [tcsendbreak](fd: c_int, duration: c_int) -> c_int, next => with(fd, || next(fd, duration));
    fn [tcdrain](fd: c_int) -> c_int, next => with(fd, || next(fd));
    fn [tcflush](fd: c_int, which: c_int) -> c_int, next => with(fd, || next(fd, which));
    fn [tcflow](fd: c_int, action: c_int) -> c_int, next => with(fd, || next(fd, action));
    fn [tcgetpgrp](fd: c_int) -> pid_t, next => with(fd, || next(fd));
    fn [tcsetpgrp](fd: c_int, group: pid_t) -> c_int, next => with(fd, || next(fd, group));
    fn [tcgetsid](fd: c_int) -> pid_t, next => with(fd, || next(fd));

    fn [epoll_wait](epoll: c_int, events: *mut c_void, count: c_int, timeout: c_int) -> c_int, next =>
        with(epoll, || next(epoll, events, count, timeout));
    fn [epoll_pwait](
        epoll: c_int, events: *mut c_void, count: c_int, timeout: c_int, mask: *const c_void
    ) -> c_int, next =>
        with(epoll, || next(epoll, events, count, timeout, mask));
    fn [epoll_pwait2](
        epoll: c_int, events: *mut c_void, count: c_int, timeout: *const c_void, mask: *const c_void
    ) -> c_int, next =>
        with(epoll, || next(epoll, events, count, timeout, mask));
    fn [signalfd](fd: c_int, mask: *const c_void, flags: c_int) -> c_int, next => with(fd, || next(fd, mask, flags));
    fn [timerfd_settime](fd: c_int, flags: c_int, new: *const c_void, old: *mut c_void) -> c_int, next =>
        with(fd, || next(fd, flags, new, old));
    fn [timerfd_gettime](fd: c_int, now: *mut c_void) -> c_int, next => with(fd, || next(fd, now));
    fn [eventfd_read](fd: c_int, value: *mut u64) -> c_int, next => with(fd, || next(fd, value));
    fn [eventfd_write](fd: c_int, value: u64) -> c_int, next => with(fd, || next(fd, value));
    fn [getdirentries, getdirentries64](
        fd: c_int, out: *mut c_char, len: size_t, position: *mut off_t
    ) -> isize, next => {
        dirstreams::used_directly(fd);
        with(fd, || next(fd, out, len, position))
    };
    fn [open_by_handle_at](mount: c_int, handle: *mut c_void, flags: c_int) -> c_int, next =>
        with(mount, || next(mount, handle, flags));
}

/// Runs what makes another process, which shares descriptions with this one: they are the kernel's before, and nothing becomes
/// virtual meanwhile.
///
/// # Errors
/// A description could not be promoted.
pub(super) fn sharing<R>(run: impl FnOnce() -> R) -> Result<R, c_int> {
    struct Gate;
    impl Drop for Gate {
        fn drop(&mut self) {
            virtuals::open_gate();
        }
    }
    virtuals::close_gate();
    let _gate = Gate;
    files::promote_all()?;
    Ok(run())
}

pub(super) fn forking<R: From<i8>>(run: impl FnOnce() -> R) -> R {
    sharing(run).unwrap_or_else(fail)
}

/// Before `dprintf`: the next definition's address.
extern "C-unwind" fn before_dprintf(fd: c_int) -> *const c_void {
    let _: Road<()> = files::kernel(fd);
    next::dprintf_address()
}

/// Before `__dprintf_chk`: the next definition's address.
extern "C-unwind" fn before_dprintf_chk(fd: c_int) -> *const c_void {
    let _: Road<()> = files::kernel(fd);
    next::dprintf_chk_address()
}

/// Defines a function with a variable number of arguments that is preceded by another and then jumps to libc's. (Where that has
/// failed, the placeholder is written to, which fails with `EBADF`.)
macro_rules! precede {
    ($name:ident by $before:path) => {
        /// The function of this name of libc.
        ///
        /// # Safety
        /// As there.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C-unwind" fn $name(fd: c_int) -> c_int {
            // System V ABI: all registers that can carry arguments, and al, the number of vector registers.
            std::arch::naked_asm!(
                "push rdi",
                "push rsi",
                "push rdx",
                "push rcx",
                "push r8",
                "push r9",
                "push rax",
                "sub rsp, 128",
                "movups [rsp], xmm0",
                "movups [rsp + 16], xmm1",
                "movups [rsp + 32], xmm2",
                "movups [rsp + 48], xmm3",
                "movups [rsp + 64], xmm4",
                "movups [rsp + 80], xmm5",
                "movups [rsp + 96], xmm6",
                "movups [rsp + 112], xmm7",
                // The return address, seven words and 128 bytes: the stack is aligned for the call.
                "call {before}",
                "mov r11, rax",
                "movups xmm0, [rsp]",
                "movups xmm1, [rsp + 16]",
                "movups xmm2, [rsp + 32]",
                "movups xmm3, [rsp + 48]",
                "movups xmm4, [rsp + 64]",
                "movups xmm5, [rsp + 80]",
                "movups xmm6, [rsp + 96]",
                "movups xmm7, [rsp + 112]",
                "add rsp, 128",
                "pop rax",
                "pop r9",
                "pop r8",
                "pop rcx",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "jmp r11",
                before = sym $before,
            )
        }

        /// The function of this name of libc.
        ///
        /// # Safety
        /// As there.
        #[cfg(target_arch = "aarch64")]
        #[unsafe(naked)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C-unwind" fn $name(fd: c_int) -> c_int {
            // AAPCS64: x0 to x7, v0 to v7, and the return address.
            std::arch::naked_asm!(
                "sub sp, sp, #208",
                "stp x0, x1, [sp]",
                "stp x2, x3, [sp, #16]",
                "stp x4, x5, [sp, #32]",
                "stp x6, x7, [sp, #48]",
                "stp q0, q1, [sp, #64]",
                "stp q2, q3, [sp, #96]",
                "stp q4, q5, [sp, #128]",
                "stp q6, q7, [sp, #160]",
                "str x30, [sp, #192]",
                "bl {before}",
                "mov x16, x0",
                "ldp x0, x1, [sp]",
                "ldp x2, x3, [sp, #16]",
                "ldp x4, x5, [sp, #32]",
                "ldp x6, x7, [sp, #48]",
                "ldp q0, q1, [sp, #64]",
                "ldp q2, q3, [sp, #96]",
                "ldp q4, q5, [sp, #128]",
                "ldp q6, q7, [sp, #160]",
                "ldr x30, [sp, #192]",
                "add sp, sp, #208",
                "br x16",
                before = sym $before,
            )
        }
    };
}

precede!(dprintf by before_dprintf);
precede!(__dprintf_chk by before_dprintf_chk);
