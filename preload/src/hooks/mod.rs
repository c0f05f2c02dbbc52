//! The hooked functions: each asks [`crate::calls`] for the road and takes it.
//!
//! A hook is a C function of the same name and signature as libc's; the dynamic linker finds it first because
//! the library is preloaded. It may be left by unwinding (thread cancellation, C++ exceptions), but only out of the next
//! definition: nothing of ours panics.

#![cfg_attr(test, allow(dead_code))]

use std::ffi::c_int;

use finesse_ipc::jumps::{self, Beginning};

use crate::calls::Road;
use crate::connection;
use crate::sys;

mod attributes;
mod descriptors;
mod directories;
mod exec;
mod glob;
mod io;
mod names;
mod open;
mod process;
mod promote;
mod resolve;
mod stat;
mod streams;
mod system_call;
mod temporary;
mod watch;

/// Defines hooks: `fn [name, alias, …](arguments) -> result, next => body`. In the body, `next` calls the next
/// definition of the same name. A child that shares our memory ([`crate::vforks`]) calls that at once, except by
/// hooks after `in any process;`.
macro_rules! hook {
    (in any process; $($rest:tt)*) => { $crate::hooks::hook!(@all [process] $($rest)*); };
    (fn $($rest:tt)*) => { $crate::hooks::hook!(@all [] fn $($rest)*); };
    (@all $process:tt $(fn [$($name:ident),+] $arguments:tt -> $result:ty, $next:ident => $body:expr;)*) => {
        $($($crate::hooks::hook!(@one $process $name $arguments [$result, $next, $body]);)+)*
    };
    (@in_child [] $served:expr, $next:expr) => { $next };
    (@in_child [process] $served:expr, $next:expr) => { $served };
    (@one $process:tt $name:ident ($($argument:ident: $type:ty),*) [$result:ty, $next:ident, $body:expr]) => {
        /// The function of this name of libc.
        ///
        /// # Safety
        /// As there.
        // Unit tests call libc's own.
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[allow(non_snake_case)]
        pub(crate) unsafe extern "C-unwind" fn $name($($argument: $type),*) -> $result {
            // In a function of its own: this one can be unwound at any instruction, as it has nothing to clean up.
            #[inline(never)]
            fn served($($argument: $type),*) -> $result {
                let $next = |$($argument: $type),*| -> $result {
                    // SAFETY: the program's arguments, passed on to the function that it meant; where one was
                    // replaced, by one that fulfils the same contract.
                    unsafe { $crate::next::$name($($argument),*) }
                };
                $body
            }
            if $crate::sys::is_hard_to_leave() || $crate::vforks::are_under_way() {
                // What is noted of a thread is its parent's there.
                if $crate::vforks::is_child() {
                    // SAFETY: the program's own arguments.
                    return $crate::hooks::hook!(@in_child $process served($($argument),*), unsafe {
                        $crate::next::$name($($argument),*)
                    });
                }
                return $crate::hooks::guarded(|| served($($argument),*));
            }
            served($($argument),*)
        }
    };
}
pub(crate) use hook;

/// Runs a hook in a program whose threads may be cancelled at any instruction, or jump out of signal handlers (or have
/// children that share our memory, where this is none).
#[cold]
#[inline(never)]
fn guarded<R>(serve: impl FnOnce() -> R) -> R {
    let before = sys::may_be_cancelled_anywhere().then(sys::defer_cancellation);
    let call = jumps::are_expected().then(|| {
        let here = 0_u8;
        let call = Beginning::at((&raw const here).addr());
        if call.has_outlived_any() {
            connection::reclaim(&call);
        }
        call
    });
    let result = serve();
    drop(call);
    if let Some(before) = before {
        sys::restore_cancellation(before);
    }
    result
}

/// Takes a call's road: 0, or -1 and errno.
#[inline]
fn take(road: Road<()>, next: impl FnOnce() -> c_int) -> c_int {
    take_with(road, |()| 0, next)
}

/// Takes a call's road; `served` makes the function's result of what was answered.
#[inline]
fn take_with<T, R: From<i8>>(road: Road<T>, served: impl FnOnce(T) -> R, next: impl FnOnce() -> R) -> R {
    match road {
        Road::Bypass(Ok(answer)) => served(answer),
        Road::Bypass(Err(errno)) => fail(errno),
        Road::Kernel => next(),
    }
}

/// -1 and errno.
#[cold]
fn fail<R: From<i8>>(errno: c_int) -> R {
    sys::set_errno(errno);
    R::from(-1)
}
