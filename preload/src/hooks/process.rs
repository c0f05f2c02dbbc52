//! Functions that change what the process is: forks, credentials, name spaces, the file mode creation mask.

use std::ffi::{c_int, c_long, c_uint, c_ulong, c_void};

use libc::{gid_t, mode_t, pid_t, uid_t};

use super::{fail, hook};
use crate::connection;
use crate::dirstreams::{self, Before};
use crate::files;
use crate::process::{self, CWD, FDS};
use crate::sys::{self, Out, PathArg, Text, Word};
use crate::vforks;

/// The process has other credentials after a success: what is open on its connections becomes the kernel's before.
fn credentials(next: impl FnOnce() -> c_int) -> c_int {
    dirstreams::settle(Before::Process);
    files::promote_what_can_be();
    let result = next();
    if result == 0 {
        connection::credentials_changed();
    }
    result
}

/// The thread has other credentials after a system call of its own; the process has if it is its only thread.
pub(super) fn credentials_of_this_thread(next: impl FnOnce() -> Word) -> Word {
    dirstreams::settle(Before::Process);
    files::promote_what_can_be();
    let result = next();
    if result.0 == 0 {
        match sys::is_single_threaded() {
            true => connection::credentials_changed(),
            false => process::switch_off(),
        }
    }
    result
}

/// The process is somewhere else after a success: neither its paths nor its users mean what they mean to the daemon.
pub(super) fn elsewhere(next: impl FnOnce() -> c_int) -> c_int {
    dirstreams::settle(Before::Process);
    files::promote_what_can_be();
    let result = next();
    if result == 0 {
        process::switch_off();
    }
    result
}

hook! {
    fn [umask](mask: mode_t) -> mode_t, next => process::set_mask(mask, || next(mask));

    fn [setuid](uid: uid_t) -> c_int, next => credentials(|| next(uid));
    fn [setgid](gid: gid_t) -> c_int, next => credentials(|| next(gid));
    fn [seteuid](uid: uid_t) -> c_int, next => credentials(|| next(uid));
    fn [setegid](gid: gid_t) -> c_int, next => credentials(|| next(gid));
    fn [setreuid](real: uid_t, effective: uid_t) -> c_int, next => credentials(|| next(real, effective));
    fn [setregid](real: gid_t, effective: gid_t) -> c_int, next => credentials(|| next(real, effective));
    fn [setresuid](real: uid_t, effective: uid_t, saved: uid_t) -> c_int, next =>
        credentials(|| next(real, effective, saved));
    fn [setresgid](real: gid_t, effective: gid_t, saved: gid_t) -> c_int, next =>
        credentials(|| next(real, effective, saved));
    fn [setgroups](count: usize, groups: *const gid_t) -> c_int, next => credentials(|| next(count, groups));
    fn [initgroups](user: PathArg, group: gid_t) -> c_int, next => credentials(|| next(user, group));
    fn [capset](header: *mut c_void, data: *const c_void) -> c_int, next => credentials(|| next(header, data));
    // Per thread, and unknown to whoever looks at a socket's peer.
    fn [setfsuid](uid: uid_t) -> c_int, next => {
        files::promote_what_can_be();
        process::switch_off();
        next(uid)
    };
    fn [setfsgid](gid: gid_t) -> c_int, next => {
        files::promote_what_can_be();
        process::switch_off();
        next(gid)
    };

    // A filter of system calls knows nothing of those that the bypass needs.
    fn [prctl](option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int, next => {
        if option == libc::PR_SET_SECCOMP {
            files::promote_what_can_be();
            process::switch_off();
        }
        next(option, a, b, c, d)
    };
    fn [setrlimit, setrlimit64](resource: c_uint, limit: *const c_void) -> c_int, next => {
        let result = next(resource, limit);
        files::limits_changed();
        result
    };
    fn [prlimit, prlimit64](pid: pid_t, resource: c_uint, limit: *const c_void, before: *mut c_void) -> c_int, next => {
        let result = next(pid, resource, limit, before);
        files::limits_changed();
        result
    };

    fn [chroot](path: PathArg) -> c_int, next => elsewhere(|| next(path));
    fn [unshare](flags: c_int) -> c_int, next => elsewhere(|| next(flags));
    fn [setns](fd: c_int, kind: c_int) -> c_int, next => elsewhere(|| next(fd, kind));
}

/// libc has duplicated a descriptor onto 0, 1 and 2 by calls of its own.
fn standard_streams_replaced() {
    for fd in 0..3 {
        FDS.clear(fd);
    }
}

hook! {
    // Forks, enters the root directory and opens /dev/null, all by calls of its own; only the child returns.
    fn [daemon](stay: c_int, keep: c_int) -> c_int, next => {
        let result = next(stay, keep);
        CWD.changed();
        standard_streams_replaced();
        result
    };
    fn [login_tty](fd: c_int) -> c_int, next => {
        let result = next(fd);
        if result == 0 {
            FDS.clear(fd);
            standard_streams_replaced();
        }
        result
    };
    fn [forkpty](terminal: Out<c_int>, name: Text, modes: *const c_void, size: *const c_void) -> pid_t, next => {
        let child = next(terminal, name, modes, size);
        if child == 0 {
            standard_streams_replaced();
        }
        child
    };
}

/// Before `vfork`: 0, or -1 and errno.
extern "C" fn before_vfork() -> c_int {
    vforks::before().map_or_else(fail, |()| 0)
}

/// After `vfork`, in the parent, with the system call's result: the function's.
extern "C" fn after_vfork(result: c_long) -> pid_t {
    vforks::after();
    match result {
        0.. => result as pid_t,
        error => fail(-error as c_int),
    }
}

/// Defines a function that makes a child which shares our memory ([`vforks`]) and goes on in this one's caller: nothing may lie on the
/// stack meanwhile, not even where to return to.
macro_rules! vfork {
    ($($name:ident)*) => {
        $(
            /// The function of this name of libc.
            ///
            /// # Safety
            /// As there.
            #[cfg(target_arch = "x86_64")]
            #[unsafe(naked)]
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub(crate) unsafe extern "C-unwind" fn $name() -> pid_t {
                std::arch::naked_asm!(
                    // The return address and eight bytes: the stack is aligned for calls.
                    "sub rsp, 8",
                    "call {before}",
                    "add rsp, 8",
                    "test eax, eax",
                    "jnz 2f",
                    // The system call leaves this register alone, in both.
                    "pop rdi",
                    "mov eax, {vfork}",
                    "syscall",
                    "push rdi",
                    "test rax, rax",
                    "jz 2f",
                    "sub rsp, 8",
                    "mov rdi, rax",
                    "call {after}",
                    "add rsp, 8",
                    "2:",
                    "ret",
                    before = sym before_vfork,
                    vfork = const libc::SYS_vfork,
                    after = sym after_vfork,
                )
            }

            /// The function of this name of libc.
            ///
            /// # Safety
            /// As there.
            #[cfg(target_arch = "aarch64")]
            #[unsafe(naked)]
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub(crate) unsafe extern "C-unwind" fn $name() -> pid_t {
                std::arch::naked_asm!(
                    "stp x29, x30, [sp, #-16]!",
                    "bl {before}",
                    "ldp x29, x30, [sp], #16",
                    "cbnz w0, 2f",
                    // clone(CLONE_VM | CLONE_VFORK | SIGCHLD, the same stack); all other registers stay, in both.
                    "mov x0, #{flags}",
                    "mov x1, xzr",
                    "mov x8, #{clone}",
                    "svc #0",
                    "cbz x0, 2f",
                    "stp x29, x30, [sp, #-16]!",
                    "bl {after}",
                    "ldp x29, x30, [sp], #16",
                    "2:",
                    "ret",
                    before = sym before_vfork,
                    flags = const libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                    clone = const libc::SYS_clone,
                    after = sym after_vfork,
                )
            }
        )*
    };
}

vfork! { vfork __vfork }

/// Threads that may be cancelled at any instruction need hooks that put that off: only at a call can the frames of this
/// library be unwound, anywhere else its personality routine ends the process.
///
/// # Safety
/// As the function of this name of libc.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C-unwind" fn pthread_setcanceltype(kind: c_int, before: *mut c_int) -> c_int {
    if kind == PTHREAD_CANCEL_ASYNCHRONOUS {
        sys::expect_cancellation_anywhere();
    }
    // SAFETY: the program's own arguments.
    unsafe { crate::next::pthread_setcanceltype(kind, before) }
}

/// Defines the functions that leave frames behind without unwinding them.
macro_rules! jump {
    ($($name:ident)*) => {
        $(
            /// The function of this name of libc.
            ///
            /// # Safety
            /// As there.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub(crate) unsafe extern "C-unwind" fn $name(place: *mut c_void, value: c_int) -> c_int {
                finesse_ipc::jumps::happen();
                // SAFETY: the program's own arguments. It does not return.
                unsafe { crate::next::$name(place, value) }
            }
        )*
    };
}

jump! { longjmp _longjmp siglongjmp __longjmp_chk }

const PTHREAD_CANCEL_ASYNCHRONOUS: c_int = 1;
