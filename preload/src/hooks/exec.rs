//! Functions that start programs.

use std::ffi::{c_int, c_void};

use libc::pid_t;

use super::promote::{itself, sharing};
use super::{fail, hook};
use crate::exec::{Start, with_environment};
use crate::files;
use crate::next;
use crate::sys::{PathArg, Strings};
use crate::vforks;

/// Replaces the program: it gets the descriptors that are not close-on-exec, which are the kernel's then.
fn exec(environment: Strings, run: impl FnOnce(Strings) -> c_int) -> c_int {
    if vforks::is_child() {
        return with_environment(environment, Start::Vfork, run);
    }
    match files::promote_inherited() {
        Ok(()) => with_environment(environment, Start::Exec, run),
        Err(errno) => fail(errno),
    }
}

/// Starts a program, which may get any descriptor; answers the errno.
fn spawn(environment: Strings, run: impl FnOnce(Strings) -> c_int) -> c_int {
    if vforks::is_child() {
        return with_environment(environment, Start::Vfork, run);
    }
    sharing(|| with_environment(environment, Start::Spawn, run)).unwrap_or_else(|errno| errno)
}

hook! {
    in any process;
    fn [execve](path: PathArg, argv: Strings, envp: Strings) -> c_int, next =>
        exec(envp, |envp| next(path, argv, envp));
    fn [execvpe](file: PathArg, argv: Strings, envp: Strings) -> c_int, next =>
        exec(envp, |envp| next(file, argv, envp));
    fn [fexecve](fd: c_int, argv: Strings, envp: Strings) -> c_int, next =>
        itself(fd, &PathArg::NULL, libc::AT_EMPTY_PATH, || exec(envp, |envp| next(fd, argv, envp)));
    fn [execveat](dirfd: c_int, path: PathArg, argv: Strings, envp: Strings, flags: c_int) -> c_int, next =>
        itself(dirfd, &path, flags, || exec(envp, |envp| next(dirfd, path, argv, envp, flags)));
    fn [posix_spawn](
        pid: *mut pid_t, path: PathArg, actions: *const c_void, attributes: *const c_void, argv: Strings, envp: Strings
    ) -> c_int, next =>
        spawn(envp, |envp| next(pid, path, actions, attributes, argv, envp));
    fn [posix_spawnp](
        pid: *mut pid_t, file: PathArg, actions: *const c_void, attributes: *const c_void, argv: Strings, envp: Strings
    ) -> c_int, next =>
        spawn(envp, |envp| next(pid, file, actions, attributes, argv, envp));
}

/// `execv`, which passes the process's own environment.
///
/// # Safety
/// As the function of this name of libc.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C-unwind" fn execv(path: PathArg, argv: Strings) -> c_int {
    exec(Strings::environ(), |envp| {
        // SAFETY: the program's own arguments, and an environment.
        unsafe { next::execve(path, argv, envp) }
    })
}

/// `execvp`, which passes the process's own environment.
///
/// # Safety
/// As the function of this name of libc.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C-unwind" fn execvp(file: PathArg, argv: Strings) -> c_int {
    exec(Strings::environ(), |envp| {
        // SAFETY: the program's own arguments, and an environment.
        unsafe { next::execvpe(file, argv, envp) }
    })
}

/// `execle`: the environment follows the arguments.
unsafe extern "C-unwind" fn execve_behind(path: PathArg, argv: Strings) -> c_int {
    exec(argv.behind(), |envp| {
        // SAFETY: the program's own arguments, and an environment.
        unsafe { next::execve(path, argv, envp) }
    })
}

/// Defines a function with a variable number of arguments in terms of one that takes them as an array.
///
/// Stable Rust cannot define variadic functions. It need not: the arguments that came in registers are put on
/// the stack in front of those that came there, and then they are an array already, with the null that ends it.
macro_rules! gather {
    ($name:ident => $target:path) => {
        /// The function of this name of libc.
        ///
        /// # Safety
        /// As there.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(naked)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C-unwind" fn $name(path: PathArg, first: PathArg) -> c_int {
            // System V ABI: rdi, rsi, rdx, rcx, r8, r9, then the stack above the return address.
            std::arch::naked_asm!(
                "pop r11",
                "push r9",
                "push r8",
                "push rcx",
                "push rdx",
                "push rsi",
                "mov rsi, rsp",
                // Five words and this one: the stack is aligned for the call.
                "push r11",
                "call {target}",
                "pop r11",
                "add rsp, 40",
                "push r11",
                "ret",
                target = sym $target,
            )
        }

        /// The function of this name of libc.
        ///
        /// # Safety
        /// As there.
        #[cfg(target_arch = "aarch64")]
        #[unsafe(naked)]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C-unwind" fn $name(path: PathArg, first: PathArg) -> c_int {
            // AAPCS64: x0 to x7, then the stack.
            std::arch::naked_asm!(
                "sub sp, sp, #64",
                "stp x30, x1, [sp]",
                "stp x2, x3, [sp, #16]",
                "stp x4, x5, [sp, #32]",
                "stp x6, x7, [sp, #48]",
                "add x1, sp, #8",
                "bl {target}",
                "ldr x30, [sp]",
                "add sp, sp, #64",
                "ret",
                target = sym $target,
            )
        }
    };
}

gather!(execl => execv);
gather!(execlp => execvp);
gather!(execle => execve_behind);
