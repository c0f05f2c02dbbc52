//! The edge to C and to the kernel: the types of hooked functions' arguments, errno, the environment, memory,
//! and the raw system calls that decisions need.
//!
//! Nothing here allocates, locks, or calls a libc function that is hooked.

#![allow(unsafe_code)]

pub(crate) mod arena;
mod arguments;
mod memory;

use std::ffi::{CStr, c_char, c_int, c_long};
use std::fmt::{self, Write};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mm::{MapFlags, ProtFlags};

pub(crate) use self::arguments::*;
pub(crate) use self::memory::*;

/// Where the thread's errno is.
fn errno_location() -> *mut c_int {
    // SAFETY: always answers the calling thread's own location.
    unsafe { libc::__errno_location() }
}

/// The thread's errno.
pub(crate) fn errno() -> c_int {
    // SAFETY: the location is the calling thread's own.
    unsafe { errno_location().read() }
}

/// Sets the thread's errno.
#[inline]
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: as above.
    unsafe { errno_location().write(errno) }
}

/// Anonymous memory from the kernel; zeroed; given back on drop.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// At least `len` bytes; `None` if the kernel has none.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let len = len.max(1).checked_next_multiple_of(4096)?;
        // SAFETY: a new private mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        Some(Self { start: NonNull::new(start.ok()?.cast())?, len })
    }

    /// The memory.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: our own mapping of `len` initialised bytes; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Puts a pointer to `string` at position `index` of the array of pointers that this memory is.
    pub(crate) fn put_pointer(&mut self, index: usize, string: Option<EnvString>) -> bool {
        let Some(end) = index.checked_add(1).and_then(|count| count.checked_mul(size_of::<usize>())) else {
            return false;
        };
        if end > self.len {
            return false;
        }
        let pointer = string.map_or(std::ptr::null(), |EnvString(string)| string);
        // SAFETY: in bounds by the check above, and aligned because the mapping is.
        unsafe { self.start.cast::<*const c_char>().add(index).write(pointer) };
        true
    }

    /// The string that begins at `offset`: a NUL follows somewhere, because fresh memory is zeroed and the last
    /// byte of ours is never written.
    pub(crate) fn string(&self, offset: usize) -> Option<EnvString> {
        // SAFETY: in bounds.
        (offset < self.len).then(|| EnvString(unsafe { self.start.add(offset) }.as_ptr().cast()))
    }

    /// Moves a value into the memory, for good; `None` if it does not fit.
    pub(crate) fn leak<T>(self, value: T) -> Option<&'static mut T> {
        if size_of::<T>() > self.len || align_of::<T>() > 4096 {
            return None;
        }
        let place = self.start.cast::<T>();
        std::mem::forget(self);
        // SAFETY: room and alignment were checked; the memory is never given back, so 'static holds.
        unsafe {
            place.write(value);
            Some(&mut *place.as_ptr())
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: our own mapping; borrows of it end before self does, and pointers put into an environment
        // are only used by an exec that has failed by now.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// A word that reads as zero in a forked child, however it was forked; 1 once set.
pub(crate) struct ForkMark(AtomicPtr<AtomicU32>);

impl ForkMark {
    /// A mark that does not work yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Makes the page (`MADV_WIPEONFORK`, Linux 4.14). Without it, only `fork` itself is noticed, by its handler.
    pub(crate) fn start(&self) {
        let Some(pages) = Pages::new(1) else { return };
        // SAFETY: the range is our own mapping; the advice changes only what a fork inherits.
        let wiped = unsafe {
            rustix::mm::madvise(pages.start.as_ptr().cast(), pages.len, rustix::mm::Advice::LinuxWipeOnFork)
        };
        if wiped.is_ok()
            && let Some(mark) = pages.leak(AtomicU32::new(1))
        {
            self.0.store(mark, Ordering::Release);
        }
    }

    /// The word, if there is one.
    #[inline]
    pub(crate) fn get(&self) -> Option<&AtomicU32> {
        // SAFETY: null or the leaked page of `start`.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}

/// A descriptor number as rustix wants it; `None` for numbers that cannot be one.
#[inline]
pub(crate) fn borrow(fd: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: the program passed the number for a call on it; if it is closed meanwhile, the kernel answers
    // EBADF or acts on what took its place, exactly as without us.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// What tells directories and files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `st_dev`, major and minor.
    pub(crate) dev: (u32, u32),
    /// `st_ino`.
    pub(crate) ino: u64,
    /// Whether it is a directory.
    pub(crate) is_directory: bool,
    /// The mount it was reached through.
    pub(crate) mount_id: u64,
    /// Whether it is the root of that mount.
    pub(crate) is_mount_root: bool,
    /// `stx_mask` as the kernel answers it.
    pub(crate) mask: u32,
    /// `stx_attributes_mask`.
    pub(crate) attributes_mask: u64,
}

/// What is to be identified.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Object<'o> {
    /// A path.
    Path(&'o CStr),
    /// A descriptor.
    Fd(RawFd),
    /// The current directory.
    Cwd,
}

/// Identifies an object without asking a remote file system.
pub(crate) fn identify(object: Object<'_>) -> Option<Identity> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = match object {
        Object::Path(path) => rustix::fs::statx(CWD, path, flags, mask),
        Object::Fd(fd) => rustix::fs::statx(borrow(fd)?, c"", flags | AtFlags::EMPTY_PATH, mask),
        Object::Cwd => rustix::fs::statx(CWD, c".", flags, mask),
    }
    .ok()?;
    Some(Identity::from(found))
}

impl From<rustix::fs::Statx> for Identity {
    fn from(found: rustix::fs::Statx) -> Self {
        Self {
            dev: (found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
            is_directory: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
            mount_id: found.stx_mnt_id,
            is_mount_root: found.stx_attributes.bits() & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
            mask: found.stx_mask,
            attributes_mask: found.stx_attributes_mask.bits(),
        }
    }
}

/// Identifies what a path of the program's leads to; without a path, what its descriptor is.
pub(crate) fn look(dirfd: RawFd, path: &PathArg, follow: bool) -> Option<Identity> {
    if path.is_null() {
        return identify(if dirfd == libc::AT_FDCWD { Object::Cwd } else { Object::Fd(dirfd) });
    }
    path.get()?;
    let mut flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    flags.set(AtFlags::SYMLINK_NOFOLLOW, !follow);
    // SAFETY: as for every argument of a hooked function: a C string, and a bad one was left to the kernel above.
    let path = unsafe { CStr::from_ptr(path.0) };
    let mask = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let found = match dirfd {
        libc::AT_FDCWD => rustix::fs::statx(CWD, path, flags, mask),
        _ => rustix::fs::statx(borrow(dirfd)?, path, flags, mask),
    };
    found.ok().map(Identity::from)
}

/// Lets others run.
pub(crate) fn yield_now() {
    rustix::thread::sched_yield();
}

/// Opens a file for reading, out of the program's sight; closed on drop by [`Hidden`].
pub(crate) fn open_hidden(path: &CStr, flags: OFlags) -> Option<Hidden> {
    try_open_hidden(CWD, path, flags).ok()
}

/// As [`open_hidden`] relative to a directory, with the errno.
pub(crate) fn try_open_hidden(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> Result<Hidden, c_int> {
    // A mode only for files that are created, which none is that exists already.
    let fd = rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    fd.map(|fd| Hidden(Some(fd))).map_err(|errno| errno.raw_os_error())
}

/// A descriptor that is closed by the system call itself and not through the hooked `close`.
#[derive(Debug)]
pub(crate) struct Hidden(Option<OwnedFd>);

impl Hidden {
    /// The descriptor.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.0.as_ref().map(AsFd::as_fd)
    }
}

impl Hidden {
    /// A descriptor that is ours to close.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }

    /// The descriptor, for somebody else to close.
    pub(crate) fn into_fd(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

/// A descriptor that nobody else closes any more.
pub(crate) fn take(fd: RawFd) -> Hidden {
    // SAFETY: callers have taken it out of the table of descriptors, where it was the library's.
    Hidden::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take() {
            close(std::os::fd::IntoRawFd::into_raw_fd(fd));
        }
    }
}

/// Reads a symbolic link by the system call itself: how many bytes, at most `buffer.len()`.
pub(crate) fn read_link(path: &CStr, buffer: &mut [u8]) -> Result<usize, c_int> {
    rustix::fs::readlinkat_raw(CWD, path, buffer).map_err(|errno| errno.raw_os_error())
}

/// Whether there is something at a path, as the effective user sees it.
pub(crate) fn exists(path: &CStr) -> Result<(), c_int> {
    // SAFETY: a C string; the function writes nothing.
    match unsafe {
        crate::next::faccessat(libc::AT_FDCWD, PathArg(path.as_ptr()), libc::F_OK, libc::AT_EACCESS)
    } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Closes a descriptor that is ours to close, by the system call itself. In a forked child it may not be open: see
/// [`is_open`].
pub(crate) fn close(fd: RawFd) {
    if fd >= 0 {
        // SAFETY: callers pass a descriptor that they own and never use again.
        let _ = unsafe { rustix::io::try_close(fd) };
    }
}

/// Whether a descriptor is open. In a forked child some are not that were open when its memory was copied: the kernel copies
/// descriptors first (`copy_process`), and other threads may have opened more in between.
pub(crate) fn is_open(fd: RawFd) -> bool {
    borrow(fd).is_some_and(|fd| rustix::io::fcntl_getfd(fd).is_ok())
}

/// Closes a descriptor of the program's by the system call itself.
pub(crate) fn try_close(fd: RawFd) -> Result<(), c_int> {
    let before = errno();
    // SAFETY: the kernel checks the number; the program asked for it to be closed.
    match unsafe { libc::syscall(libc::SYS_close, fd) } {
        0 => Ok(()),
        _ => Err(take_errno(before)),
    }
}

/// The thread's errno, and puts back the one from before.
fn take_errno(before: c_int) -> c_int {
    let failed = errno();
    set_errno(before);
    failed
}

/// Opens a directory as opendir(3) does; the path ends with a NUL.
pub(crate) fn open_directory(dirfd: RawFd, path: &[u8]) -> Result<RawFd, c_int> {
    let path = CStr::from_bytes_until_nul(path).map_err(|_| libc::ENAMETOOLONG)?;
    let dirfd = match dirfd {
        libc::AT_FDCWD => CWD,
        fd => borrow(fd).ok_or(libc::EBADF)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dirfd, path, flags, Mode::empty())
        .map(std::os::fd::IntoRawFd::into_raw_fd)
        .map_err(|errno| errno.raw_os_error())
}

/// `getdents64`; the number of bytes.
pub(crate) fn read_directory(fd: RawFd, out: &mut [u8]) -> Result<usize, c_int> {
    let before = errno();
    // SAFETY: the kernel writes at most the length that is passed.
    let len = unsafe { libc::syscall(libc::SYS_getdents64, fd, out.as_mut_ptr(), out.len()) };
    usize::try_from(len).map_err(|_| take_errno(before))
}

/// `dup2` in terms of `dup3`, which every architecture has.
pub(crate) fn dup2(from: RawFd, to: RawFd) -> c_int {
    if from == to {
        return match borrow(from).map(rustix::io::fcntl_getfd) {
            Some(Ok(_)) => to,
            _ => {
                set_errno(libc::EBADF);
                -1
            }
        };
    }
    // SAFETY: the kernel checks both numbers.
    unsafe {
        crate::next::syscall(
            Word(libc::SYS_dup3),
            Word(from.into()),
            Word(to.into()),
            Word(0),
            Word(0),
            Word(0),
            Word(0),
        )
        .int()
    }
}

/// Blocks every signal of this thread while `f` runs.
pub(crate) fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: both sets are live locals of libc's own type; the mask is this thread's.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = f();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}

/// The program has let a thread be cancelled at any instruction.
static CANCELLED_ANYWHERE: AtomicBool = AtomicBool::new(false);

unsafe extern "C-unwind" {
    fn pthread_testcancel();
}

/// Some thread may be cancelled at any instruction from now on.
pub(crate) fn expect_cancellation_anywhere() {
    CANCELLED_ANYWHERE.store(true, Ordering::Relaxed);
}

/// Whether hooks need care because of how they may be left: by cancellation, or by jumps.
#[inline]
pub(crate) fn is_hard_to_leave() -> bool {
    may_be_cancelled_anywhere() || finesse_ipc::jumps::are_expected()
}

/// Whether this thread runs on the stack that it has set aside for signal handlers.
pub(crate) fn is_on_signal_stack() -> bool {
    // SAFETY: a live local of libc's own type.
    unsafe {
        let mut stack = std::mem::zeroed::<libc::stack_t>();
        libc::sigaltstack(std::ptr::null(), &raw mut stack) != 0 || stack.ss_flags & libc::SS_ONSTACK != 0
    }
}

/// Whether a thread of this program may be cancelled at any instruction.
#[inline]
pub(crate) fn may_be_cancelled_anywhere() -> bool {
    CANCELLED_ANYWHERE.load(Ordering::Relaxed)
}

/// From here on this thread is cancelled at cancellation points only. Returns what held before.
pub(crate) fn defer_cancellation() -> c_int {
    let mut before = 0;
    // SAFETY: writes the calling thread's own type of cancellation to a live local.
    unsafe { crate::next::pthread_setcanceltype(0, &raw mut before) };
    before
}

/// Undoes [`defer_cancellation`]; may not return.
pub(crate) fn restore_cancellation(before: c_int) {
    // SAFETY: as above; a null pointer is allowed.
    unsafe { crate::next::pthread_setcanceltype(before, std::ptr::null_mut()) };
}

/// A cancellation point, as the function that is hooked is one; may not return.
#[inline]
pub(crate) fn test_cancellation() {
    // SAFETY: may be called anywhere; unwinds, which the declaration allows.
    unsafe { pthread_testcancel() }
}

/// Whether the process could have one descriptor more.
pub(crate) fn has_free_number(any: BorrowedFd<'_>) -> bool {
    match rustix::io::fcntl_dupfd_cloexec(any, 0) {
        Ok(number) => {
            close(std::os::fd::IntoRawFd::into_raw_fd(number));
            true
        }
        Err(errno) => errno != rustix::io::Errno::MFILE,
    }
}

/// The user at the other end of a socket.
pub(crate) fn peer_user(socket: BorrowedFd<'_>) -> Option<u32> {
    use std::os::fd::AsRawFd;
    // Not rustix, whose type cannot hold the process id 0 of a process in another name space.
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both are live locals of the types that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0).then_some(peer.uid)
}

/// Whether libc knows the process to have one thread only (glibc 2.32).
pub(crate) fn is_single_threaded() -> bool {
    unsafe extern "C" {
        static __libc_single_threaded: c_char;
    }
    // SAFETY: libc's own variable, which it writes while there is one thread, or to say that there are more.
    unsafe { (&raw const __libc_single_threaded).read_volatile() != 0 }
}

/// The program's name, at most 100 bytes of it, for `finesse status`.
pub(crate) fn program_name() -> &'static str {
    unsafe extern "C" {
        static program_invocation_short_name: *const c_char;
    }
    // SAFETY: libc's own variable; null or a C string that lives as long as the process.
    let name = unsafe {
        let name = (&raw const program_invocation_short_name).read();
        if name.is_null() { c"" } else { CStr::from_ptr(name) }
    };
    let name = name.to_bytes();
    let name = name.get(..100).unwrap_or(name);
    match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(error) => {
            name.get(..error.valid_up_to()).map_or("", |valid| std::str::from_utf8(valid).unwrap_or(""))
        }
    }
}

/// The file that this library was loaded from, as the dynamic linker names it.
pub(crate) fn library_path() -> Option<&'static [u8]> {
    // SAFETY: the address is one of this library's own; the linker's strings live as long as the library.
    unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        let found = libc::dladdr(library_path as *const () as *const libc::c_void, &raw mut info);
        (found != 0 && !info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname).to_bytes())
    }
}

/// Runs functions around every `fork`, libc's own forks included: before it, and afterwards in the parent and in the child.
pub(crate) fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    unsafe extern "C" {
        fn pthread_atfork(
            prepare: Option<extern "C" fn()>,
            parent: Option<extern "C" fn()>,
            child: Option<extern "C" fn()>,
        ) -> c_int;
    }
    // SAFETY: the handlers live as long as the library. ENOMEM means that only the fork mark is left.
    unsafe { pthread_atfork(Some(before), Some(parent), Some(child)) };
}

/// Descriptor of a stream, with errno kept; -1 if it has none.
pub(crate) fn fileno(stream: *mut crate::next::Stream) -> RawFd {
    let before = errno();
    // SAFETY: a hooked function's own stream argument, used before or after libc does with it.
    let fd = if stream.is_null() { -1 } else { unsafe { libc::fileno(stream.cast()) } };
    set_errno(before);
    fd
}

/// A stream on a descriptor.
pub(crate) fn fdopen(fd: RawFd, mode: &CStr) -> *mut crate::next::Stream {
    // SAFETY: the descriptor is open and ours.
    unsafe { libc::fdopen(fd, mode.as_ptr()).cast() }
}

/// Descriptor of a directory stream of libc's; -1 if it has none.
pub(crate) fn dirfd(directory: *mut libc::DIR) -> RawFd {
    // SAFETY: a hooked function's own argument.
    if directory.is_null() { -1 } else { unsafe { crate::next::dirfd(directory) } }
}

/// A line on standard error, at most 500 bytes, in one write.
pub(crate) fn complain(message: fmt::Arguments<'_>) {
    struct Line([u8; 500], usize);
    impl Write for Line {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                if let Some(place) = self.0.get_mut(self.1) {
                    *place = byte;
                    self.1 += 1;
                }
            }
            Ok(())
        }
    }
    let mut line = Line([b'\n'; 500], 0);
    let _ = write!(line, "finesse: {message}");
    let end = (line.1 + 1).min(line.0.len());
    if let (Some(fd), Some(text)) = (borrow(2), line.0.get(..end)) {
        let _ = rustix::io::write(fd, text);
    }
}

/// The current directory's path; its length. Leaves errno alone.
pub(crate) fn current_directory(buffer: &mut [u8]) -> Option<usize> {
    let (start, room) = (buffer.as_mut_ptr().expose_provenance(), buffer.len());
    let [start, room] = [start, room].map(|word| Word(word as c_long));
    let before = errno();
    // SAFETY: the kernel writes at most the length that is passed.
    let len = unsafe {
        crate::next::syscall(Word(libc::SYS_getcwd), start, room, Word(0), Word(0), Word(0), Word(0)).0
    };
    if len < 0 {
        take_errno(before);
        return None;
    }
    // With the NUL. "(unreachable)" is no path.
    let len = usize::try_from(len).ok()?.checked_sub(1)?;
    (buffer.first() == Some(&b'/')).then_some(len)
}

/// Duplicates a descriptor onto a number, by the system call itself.
pub(crate) fn replace(from: RawFd, to: RawFd, close_on_exec: bool) -> bool {
    use rustix::io::DupFlags;
    let flags = if close_on_exec { DupFlags::CLOEXEC } else { DupFlags::empty() };
    let Some(from) = borrow(from).filter(|_| to >= 0) else { return false };
    // SAFETY: callers own the number: it is the placeholder of a description that they are alone with. It is not closed
    // here.
    let mut number = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(to) });
    rustix::io::dup3(from, &mut number, flags).is_ok()
}

/// Acts upon a cancellation of this thread, as libc does where a function may wait; may not return.
pub(crate) fn cancellation_point() {
    unsafe extern "C-unwind" {
        fn pthread_testcancel();
    }
    // SAFETY: nothing is held here that unwinding would not give back.
    unsafe { pthread_testcancel() }
}

/// A little time for another thread.
pub(crate) fn pause(turn: u32) {
    if turn < 64 {
        rustix::thread::sched_yield();
    } else {
        let time = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 200_000 };
        let _ = rustix::thread::nanosleep(&time);
    }
}

/// Duplicates a descriptor to the lowest free number, out of the hooks' sight.
pub(crate) fn duplicate(fd: RawFd, closes_by_exec: bool) -> Result<RawFd, c_int> {
    let fd = borrow(fd).ok_or(libc::EBADF)?;
    let made = if closes_by_exec { rustix::io::fcntl_dupfd_cloexec(fd, 0) } else { rustix::io::dup(fd) };
    made.map(std::os::fd::IntoRawFd::into_raw_fd).map_err(|errno| errno.raw_os_error())
}

/// `mmap`, by the system call itself.
pub(crate) fn raw_mmap(
    start: *mut libc::c_void,
    len: usize,
    protection: c_int,
    flags: c_int,
    fd: RawFd,
    offset: libc::off_t,
) -> *mut libc::c_void {
    let (protection, flags_) = (protection.cast_unsigned(), flags.cast_unsigned());
    let (protection, kind) = (ProtFlags::from_bits_retain(protection), MapFlags::from_bits_retain(flags_));
    // SAFETY: the program's own arguments, passed on to the function that it meant.
    let mapped = unsafe {
        match borrow(fd).filter(|_| flags & libc::MAP_ANONYMOUS == 0) {
            Some(fd) => rustix::mm::mmap(start, len, protection, kind, fd, offset.cast_unsigned()),
            None if flags & libc::MAP_ANONYMOUS == 0 => Err(rustix::io::Errno::BADF),
            None => rustix::mm::mmap_anonymous(start, len, protection, kind),
        }
    };
    mapped.unwrap_or_else(|errno| {
        set_errno(errno.raw_os_error());
        libc::MAP_FAILED
    })
}
