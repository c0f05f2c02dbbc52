//! The unwinder, loaded when something unwinds.
//!
//! Rust's standard library needs libgcc_s, in which the functions are that unwind stacks, and so would everything that is preloaded with
//! this library. But what is loaded into every program should be little: libgcc_s alone is a quarter of what preloading costs on a virtual
//! machine, as its constructor asks which CPU this is, which the hypervisor answers. Nothing of ours unwinds by itself. When a
//! thread is cancelled, libc loads libgcc_s, and the frames of hooks ask it what they are; that finds it then.
//!
//! So the functions are defined here, for this library only (hidden symbols), and jump to those of libgcc_s. What a later standard library may
//! need beyond them makes libgcc_s one of this library's own again.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

macro_rules! functions {
    ($($name:literal),* $(,)?) => {
        const NAMES: &[&CStr] = &[$(
            match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a literal has no NUL"),
            }
        ),*];

        // Each jumps, with its arguments and its caller's frame as they are, to where its slot says, once that says something.
        std::arch::global_asm!(
            ".pushsection .text.finesse_unwind,\"ax\",@progbits",
            ".set finesse_unwind_at, 0",
            $(
                concat!(".globl ", $name),
                concat!(".hidden ", $name),
                concat!(".type ", $name, ", @function"),
                concat!($name, ":"),
                "mov r11, [rip + {slots} + finesse_unwind_at]",
                "test r11, r11",
                "jnz 2f",
                // The arguments, and an aligned stack.
                "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9", "push rax",
                "call {load}",
                "pop rax", "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
                "mov r11, [rip + {slots} + finesse_unwind_at]",
                "2: jmp r11",
                concat!(".size ", $name, ", . - ", $name),
                ".set finesse_unwind_at, finesse_unwind_at + 8",
            )*
            ".popsection",
            slots = sym SLOTS,
            load = sym load,
        );
    };
}

functions!(
    "_Unwind_Backtrace",
    "_Unwind_DeleteException",
    "_Unwind_FindEnclosingFunction",
    "_Unwind_GetCFA",
    "_Unwind_GetDataRelBase",
    "_Unwind_GetIP",
    "_Unwind_GetIPInfo",
    "_Unwind_GetLanguageSpecificData",
    "_Unwind_GetRegionStart",
    "_Unwind_GetTextRelBase",
    "_Unwind_RaiseException",
    "_Unwind_Resume",
    "_Unwind_SetGR",
    "_Unwind_SetIP",
);

static SLOTS: [AtomicPtr<c_void>; NAMES.len()] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; NAMES.len()];

const LACKS: &str = "libfinesse_preload.so: libgcc_s.so.1 must be installed for threads to be cancelled\n";

/// As libc does to cancel a thread, and with as little room for failure.
extern "C" fn load() {
    const FLAGS: c_int = libc::RTLD_NOW | libc::RTLD_LOCAL;
    // SAFETY: a C string; libgcc_s may be loaded at any time.
    let library = unsafe { libc::dlopen(c"libgcc_s.so.1".as_ptr(), FLAGS) };
    for (slot, name) in SLOTS.iter().zip(NAMES) {
        let mut address = library;
        if !library.is_null() {
            // SAFETY: a library that is never closed, and a C string.
            address = unsafe { libc::dlsym(library, name.as_ptr()) };
        }
        if address.is_null() {
            // SAFETY: a number and a text.
            unsafe { libc::write(libc::STDERR_FILENO, LACKS.as_ptr().cast(), LACKS.len()) };
            std::process::abort();
        }
        slot.store(address, Ordering::Relaxed);
    }
}
