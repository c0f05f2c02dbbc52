//! `libfinesse_preload.so`: takes the path calls of unmodified programs past the kernel, to the daemon of the
//! Finesse mount that they concern.
//!
//! The library is an accelerator, never a requirement: whatever it does not serve goes to the next definition
//! of the function, usually libc's, and the kernel serves it from the same file system.
//!
//! # Scope
//!
//! What becomes of each function of libc is said in one table, [`surface`], which tests compare with the C library of the
//! machine; `SURFACE.md` is the table as text. In short:
//!
//! *Served by a round trip through shared memory*, if the path is on a mount and the daemon can answer: every function that
//! opens, finds, makes, changes or removes a file by its path, in all its variants, and what libc makes of them without
//! calling them: `fopen`, `mkstemp`, `realpath`, `glob`; directory streams. `syscall` takes the road of the function that a number means.
//!
//! So is everything by a *virtual descriptor*, one whose file the daemon keeps open because the file system grants no
//! descriptor of its own (or not yet): reads, writes, positions, attributes, flags, durability, duplicates. Where only the kernel
//! can serve (mapping, locks, copying, waiting, other processes, libc's own streams), the descriptor is *promoted* first: it
//! becomes a kernel descriptor with the same offset and flags, and so do its duplicates.
//!
//! *Followed*, because other calls depend on it: descriptors of directories and of granted files, the current directory, the file mode
//! creation mask, credentials, forks.
//!
//! *Kept up* across `exec` and `posix_spawn`: the library itself, the list of mounts, what was granted.
//!
//! *Early calls*: connecting takes as long as the kernel takes for dozens of calls, and most programs make few. So the kernel serves
//! the first 16 of a process on a mount (`FINESSE_CONNECT_AFTER` in the environment), counted as `not-connected` once it connects.
//! Who opens a directory stream connects at once: many calls will follow, and what the kernel has listed it knows, so that each
//! change of it would have to be told to it.
//!
//! *Left to the kernel*: everything by a granted descriptor, which is the backing file's own; opening directories by `open`,
//! listing them by `getdents64`; paths that reach a mount
//! through a symbolic link from outside, through `//`, `/./` or `/../` before the mount's path, or through a bind
//! mount of a part of it; programs that make system calls without libc; statically linked and setuid programs.
//!
//! *Known limits.* The child of a `vfork` is served by the kernel until it executes a program: what it changes by a granted descriptor (`fchmod`)
//! the daemon is not told. A directory's descriptor that is closed by a system call of the program's own,
//! not through libc, and whose number then becomes another directory's in the same way, is mistaken for the first
//! one. A granted descriptor that another process receives over a socket tells of the backing file there.
//! The descriptor of a directory stream (`dirfd`) is opened when it is asked for: if the directory has been moved or
//! removed since `opendir`, or can no longer be reached, there is none.
//! Moving a directory above a mount point is not noticed before the mount table changes. If a signal handler leaves a call
//! by `siglongjmp`, the connection that it used cannot be moved (`dup2` onto its number is `EBUSY`) or made anew for other
//! credentials (the kernel serves); promoting a virtual descriptor that it used takes a second longer; if the handler ran
//! on a stack of its own, or it was the process's first jump, the call's slot is lost, of 64. A virtual descriptor is unknown to
//! whoever makes system calls without libc (`EBADF`), and `dup2` of one onto the number of one of libc's streams beyond standard error leaves that stream without
//! a file. What it has written is with the file system at once, but its end is noticed a moment after the process's.
//!
//! *Switched off* for good is the library in a process that changes its root directory or one of its name spaces, that has
//! threads with credentials of their own (`setfsuid`, raw `setresuid`), or that forbids itself system calls (seccomp(2)).
//! It does not connect where limits leave little room: fewer than 64 open files, less than 2 GiB of address space.
//!
//! # Rules inside hooks
//!
//! No allocation, no lock that blocks, no hooked function, no panic: a hook may run in a signal handler, in a forked child of a
//! program with threads, before `main`, or while the thread is being cancelled.
//!
//! | module | decides | acts |
//! | --- | --- | --- |
//! | `hooks` | | the hooked functions |
//! | `calls` | what can be asked of the daemon | |
//! | `route` | which paths are ours | proves directories |
//! | `mounts` | which paths are on which mount | |
//! | `connection` | when to connect, when to give up | mounts and connections |
//! | `fds` | what a descriptor, the current directory is | |
//! | `virtuals` | who uses an open file, who must wait | |
//! | `files` | what is asked of the daemon by descriptor | promotes |
//! | `locks` | which closing ends locks | |
//! | `copies` | what the kernel takes for two file systems | moves the bytes |
//! | `dirstreams` | which road a directory stream is on | opens, reads, closes them |
//! | `process` | whether the library is on | fork, mask, what was inherited |
//! | `vforks` | whether this is a child that shares our memory | |
//! | `exec` | what environment a program gets | |
//! | `attr`, `streams`, `temporary` | shapes of answers, modes of `fopen`, names of temporary files | |
//! | `watch` | what the daemon must know of watches | |
//! | `realpath` | what a path leads to | asks for each prefix |
//! | `surface` | what becomes of every function | |
//! | `next`, `behind` | | the next definitions |
//! | `unwind` | | loads the unwinder |
//! | `sys` | | the edge to C and the kernel |

#![deny(unsafe_code)]

mod attr;
mod behind;
mod calls;
mod changes;
mod connection;
mod copies;
mod dirstreams;
mod exec;
mod fds;
mod files;
#[allow(unsafe_code)]
mod hooks;
mod listing;
mod locks;
mod mounts;
mod next;
mod process;
mod realpath;
mod route;
mod streams;
pub mod surface;
mod sys;
mod temporary;
#[cfg(all(not(test), target_arch = "x86_64"))]
mod unwind;
mod vforks;
mod virtuals;
mod watch;

/// Runs before the program, and before hooks do anything but pass calls on.
extern "C" fn start() {
    next::prepare();
    let environment = sys::Strings::environ();
    exec::start(environment);
    process::start(environment);
}

/// The dynamic linker calls it.
#[cfg(not(test))]
#[used]
#[allow(unsafe_code)]
// SAFETY: the section holds pointers to functions of this type.
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

#[cfg(test)]
const _: extern "C" fn() = start;
