//! System calls that rustix has no safe function for: the command's only `unsafe`.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Pid;

/// fork(2): `None` in the child, the child's id in the parent.
///
/// # Errors
/// `EDEADLK` if this process has other threads, whose locks the child could wait for without end; otherwise
/// what fork answers (`EAGAIN`, `ENOMEM`).
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    // SAFETY: this is the process's only thread, so the child's copy of memory is as consistent as ours.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// `name_to_handle_at` and `open_by_handle_at` on a directory: whether its files can be found again without
/// a path and without a descriptor kept open for each.
///
/// # Errors
/// What the two calls answer: `EOPNOTSUPP` from a file system without handles, `EPERM` without
/// `CAP_DAC_READ_SEARCH`.
pub(crate) fn reopen_by_handle(directory: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        bytes: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    // SAFETY: integers and byte arrays only, for which zeroes are valid.
    let mut handle: Handle = unsafe { std::mem::zeroed() };
    handle.head.handle_bytes = libc::MAX_HANDLE_SZ as u32;
    let mut mount = 0;
    let directory = directory.as_fd().as_raw_fd();
    // SAFETY: the path is a C string, `handle` has the room that `handle_bytes` declares, directly behind the
    // head, and both outlive the call.
    let named = unsafe {
        libc::name_to_handle_at(
            directory,
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if named != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the handle is the one that the kernel filled in.
    let fd = unsafe { libc::open_by_handle_at(directory, (&raw mut handle).cast(), libc::O_PATH) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A user's id by his name (`getpwnam_r`).
pub(crate) fn user_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        // SAFETY: integers and pointers only, for which zeroes are valid.
        let (mut entry, mut found) = (unsafe { std::mem::zeroed::<libc::passwd>() }, ptr::null_mut());
        // SAFETY: the name is a C string, `room` is as long as told, and all outlive the call.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), &raw mut entry, room.as_mut_ptr(), room.len(), &raw mut found)
        };
        (error, (!found.is_null()).then_some(entry.pw_uid))
    })
}

/// A group's id by its name (`getgrnam_r`).
pub(crate) fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    with_room(|room| {
        // SAFETY: integers and pointers only, for which zeroes are valid.
        let (mut entry, mut found) = (unsafe { std::mem::zeroed::<libc::group>() }, ptr::null_mut());
        // SAFETY: the name is a C string, `room` is as long as told, and all outlive the call.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), &raw mut entry, room.as_mut_ptr(), room.len(), &raw mut found)
        };
        (error, (!found.is_null()).then_some(entry.gr_gid))
    })
}

/// Calls with more and more room for an entry's texts (a group's members) until that does not fail with `ERANGE`.
fn with_room(mut call: impl FnMut(&mut [libc::c_char]) -> (i32, Option<u32>)) -> Option<u32> {
    const ROOM_MAX: usize = 1 << 24;
    let mut room = vec![0; 1024];
    loop {
        match call(&mut room) {
            (libc::ERANGE, _) if room.len() < ROOM_MAX => room.resize(room.len() * 4, 0),
            (_, id) => return id,
        }
    }
}

/// What to load as a BPF program that does nothing (`union bpf_attr`, `BPF_PROG_LOAD`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BpfProgram {
    /// `BPF_PROG_TYPE_*`.
    pub(crate) kind: u32,
    /// `BPF_TRACE_*` and so on; 0 for most.
    pub(crate) attach: u32,
    /// The type in the kernel's BTF that it attaches to; 0 for most.
    pub(crate) btf_id: u32,
}

/// Loads a BPF program that returns 0, and drops it again.
///
/// # Errors
/// What bpf(2) answers: `EPERM` without `CAP_BPF` (and `CAP_PERFMON`) or where the kernel forbids it,
/// `EINVAL` for a type it does not know, `ENOSYS` without BPF.
pub(crate) fn load_bpf(program: BpfProgram) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    /// Up to `attach_btf_id`, as in include/uapi/linux/bpf.h.
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u64; 2],
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
        prog_btf_fd: u32,
        func_info_rec_size: u32,
        func_info: u64,
        func_info_cnt: u32,
        line_info_rec_size: u32,
        line_info: u64,
        line_info_cnt: u32,
        attach_btf_id: u32,
        attach_prog_fd: u64,
    }
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let license: &CStr = c"GPL";
    let attr = Attr {
        prog_type: program.kind,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        expected_attach_type: program.attach,
        attach_btf_id: program.btf_id,
        ..Attr::default()
    };
    // SAFETY: `attr` is laid out as the kernel reads it, its size is passed along, and what it points to
    // outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<Attr>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}
