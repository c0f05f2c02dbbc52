//! What becomes of every function that libc exports: the scope of this library, in one table.
//!
//! [`SURFACE`] holds the functions that have to do with files, with descriptors, or with what both depend on; [`UNRELATED`]
//! the rest, in groups. `tests/surface.rs` compares both with the C library of the machine and with what this
//! library exports, so that a function that libc gains, or that a change here forgets, fails a test; and it
//! compares `SURFACE.md`, the table as text, with [`markdown`].

#![forbid(unsafe_code)]

use std::fmt::Write;

/// What the library does with a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Hooked, and served through shared memory where the file is on a mount and the daemon can answer.
    Bypassed,
    /// Hooked, and served by the kernel: the library notes what the call does to descriptors, directories or the
    /// process, or corrects what the kernel says of a granted file.
    Followed,
    /// Hooked, and served by the kernel once a virtual descriptor has become one of the kernel's.
    Promotes,
    /// Not hooked: libc and the kernel serve it.
    Kernel,
}

impl Scope {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Bypassed, Self::Followed, Self::Promotes, Self::Kernel];

    /// Whether the library defines the function.
    pub fn is_hooked(self) -> bool {
        self != Self::Kernel
    }

    /// Heading and meaning.
    fn title(self) -> &'static str {
        match self {
            Self::Bypassed => "Served through shared memory",
            Self::Followed => "Followed: the kernel serves it, the library notes what it does",
            Self::Promotes => "Promotes: the kernel serves it, with a kernel descriptor",
            Self::Kernel => "Left to libc and the kernel",
        }
    }
}

/// Functions with one story.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What becomes of them.
    pub scope: Scope,
    /// What they do.
    pub what: &'static str,
    /// Why that becomes of them, where that needs a reason.
    pub why: &'static str,
    names: &'static str,
}

/// Functions that have nothing to do with files.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they do.
    pub what: &'static str,
    names: &'static str,
}

/// A name in the table. One that ends in `?` is not exported by every glibc from 2.28 on, on every machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The symbol; in a [`Group`], a `*` at its end stands for any characters.
    pub symbol: &'static str,
    /// Whether every libc has it.
    pub everywhere: bool,
}

fn names(list: &'static str) -> impl Iterator<Item = Name> {
    list.split_ascii_whitespace().map(|name| match name.strip_suffix('?') {
        Some(symbol) => Name { symbol, everywhere: false },
        None => Name { symbol: name, everywhere: true },
    })
}

impl Entry {
    /// The functions.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        names(self.names)
    }
}

impl Group {
    /// The functions.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        names(self.names)
    }
}

impl Name {
    /// Whether this name, with a `*` for any characters, is that of a symbol.
    pub fn covers(&self, symbol: &str) -> bool {
        match self.symbol.strip_suffix('*') {
            Some(prefix) => symbol.starts_with(prefix),
            None => self.symbol == symbol,
        }
    }
}

const fn bypassed(what: &'static str, why: &'static str, names: &'static str) -> Entry {
    Entry { scope: Scope::Bypassed, what, why, names }
}

const fn followed(what: &'static str, why: &'static str, names: &'static str) -> Entry {
    Entry { scope: Scope::Followed, what, why, names }
}

const fn promotes(what: &'static str, why: &'static str, names: &'static str) -> Entry {
    Entry { scope: Scope::Promotes, what, why, names }
}

const fn kernel(what: &'static str, why: &'static str, names: &'static str) -> Entry {
    Entry { scope: Scope::Kernel, what, why, names }
}

const fn group(what: &'static str, names: &'static str) -> Group {
    Group { what, names }
}

/// Every function of libc that has to do with files.
pub const SURFACE: &[Entry] = &[
    bypassed(
        "open a file",
        "directories, fifos and devices, O_PATH and O_TMPFILE are opened by the kernel",
        "open open64 openat openat64 creat creat64 __open_2 __open64_2 __openat_2 __openat64_2 __open? __open64?",
    ),
    bypassed(
        "open a stream",
        "the file is opened past the kernel, unless the mode chooses a character set (`ccs=`), and libc gets its descriptor",
        "fopen fopen64 _IO_fopen?",
    ),
    bypassed(
        "make a temporary file or directory",
        "libc makes up the name and opens it by itself; the library does the same by its own calls",
        "mkstemp mkstemp64 mkostemp mkostemp64 mkstemps mkstemps64 mkostemps mkostemps64 mkdtemp",
    ),
    bypassed(
        "resolve a path",
        "libc asks the kernel about every prefix; the library asks the daemon where a prefix is on a mount",
        "realpath __realpath_chk canonicalize_file_name",
    ),
    bypassed(
        "attributes of a path",
        "",
        "stat? stat64? lstat? lstat64? fstatat? fstatat64? statx __xstat __xstat64 __lxstat __lxstat64 __fxstatat __fxstatat64",
    ),
    bypassed(
        "attributes of a descriptor",
        "directories are asked for through shared memory; for granted files the kernel answers and the \
         library puts the mount's device and inode number in",
        "fstat? fstat64? __fxstat __fxstat64",
    ),
    bypassed(
        "attributes of a file system",
        "of a descriptor only if it was granted",
        "statfs statfs64 statvfs statvfs64 fstatfs fstatfs64 fstatvfs fstatvfs64 __statfs?",
    ),
    bypassed("permission to access", "", "access eaccess euidaccess faccessat"),
    bypassed("read a symbolic link", "", "readlink readlinkat __readlink_chk __readlinkat_chk"),
    bypassed(
        "extended attributes of a path",
        "",
        "getxattr lgetxattr listxattr llistxattr setxattr lsetxattr removexattr lremovexattr",
    ),
    bypassed("remove a name", "", "unlink unlinkat rmdir remove"),
    bypassed("rename", "", "rename renameat renameat2"),
    bypassed("make a link", "", "link linkat symlink symlinkat"),
    bypassed(
        "make a directory, a fifo, a node",
        "",
        "mkdir mkdirat mkfifo mkfifoat mknod mknodat __xmknod __xmknodat",
    ),
    bypassed(
        "change attributes of a path",
        "",
        "chmod lchmod fchmodat chown lchown fchownat truncate truncate64 utime utimes lutimes futimesat utimensat",
    ),
    bypassed(
        "open and read a directory",
        "the stream has no descriptor until `dirfd` asks for one; libc's own functions serve streams that the kernel opened",
        "opendir fdopendir readdir readdir64 readdir_r readdir64_r rewinddir seekdir telldir dirfd closedir scandir \
         scandir64 scandirat scandirat64",
    ),
    bypassed(
        "expand a pattern",
        "libc's own `glob`, which reads directories and attributes by functions of the library (`GLOB_ALTDIRFUNC`) \
         unless the program brings its own",
        "glob glob64",
    ),
    bypassed(
        "any system call by its number",
        "those with paths are served as the functions of their names; those that close and duplicate descriptors or \
         change the process are followed; all others are passed on",
        "syscall",
    ),
    bypassed(
        "read and write",
        "a virtual descriptor; a granted one is the backing file's own, and all others the kernel's",
        "read write pread pread64 pwrite pwrite64 readv writev preadv preadv64 pwritev pwritev64 preadv2 \
         preadv64v2 pwritev2 pwritev64v2 __read? __write? __pread64? __pwrite64? __read_chk __pread_chk \
         __pread64_chk lseek lseek64 __lseek?",
    ),
    bypassed(
        "size, storage, advice, durability of an open file",
        "as for reading",
        "ftruncate ftruncate64 fallocate fallocate64 posix_fallocate posix_fallocate64 posix_fadvise \
         posix_fadvise64 readahead sync_file_range fsync fdatasync",
    ),
    bypassed("extended attributes of a descriptor, read", "as for reading", "fgetxattr flistxattr"),
    bypassed(
        "change attributes of a descriptor",
        "of a virtual one; a granted file is changed behind the daemon's back, which is told",
        "fchmod fchown futimens futimes fsetxattr fremovexattr",
    ),
    bypassed("whether it is a terminal", "a virtual descriptor is none", "isatty tcgetattr"),
    promotes("copy between descriptors", "", "sendfile sendfile64 splice tee vmsplice copy_file_range"),
    promotes("map a file", "", "mmap mmap64"),
    promotes(
        "lock a file",
        "locks are the kernel's, so that they exclude whoever comes by either road",
        "flock lockf lockf64",
    ),
    promotes("device control", "", "ioctl"),
    promotes(
        "wait for descriptors",
        "a regular file is always ready, but only the kernel can wait for others beside it",
        "poll ppoll __poll? __poll_chk __ppoll_chk select __select? pselect epoll_ctl epoll_wait epoll_pwait \
         epoll_pwait2?",
    ),
    promotes(
        "asynchronous reads and writes",
        "libc's threads do them by calls of their own",
        "aio_read aio_read64 aio_write aio_write64 aio_fsync aio_fsync64 lio_listio lio_listio64",
    ),
    promotes("synchronise the file system of a descriptor", "", "syncfs"),
    promotes("file handles", "", "name_to_handle_at open_by_handle_at"),
    promotes(
        "sockets, terminals, timers, events, signals",
        "a regular file is none; the kernel, or libc, says so",
        "bind connect __connect? listen accept accept4 shutdown send __send? sendto recv __recv_chk recvfrom __recvfrom_chk \
         recvmsg recvmmsg getsockname getpeername getsockopt setsockopt sockatmark ttyname ttyname_r __ttyname_r_chk \
         ptsname ptsname_r __ptsname_r_chk grantpt unlockpt tcsetattr tcsendbreak tcdrain tcflush tcflow tcgetpgrp tcsetpgrp \
         tcgetsid signalfd timerfd_settime timerfd_gettime eventfd_read eventfd_write",
    ),
    promotes(
        "read a directory's descriptor at a position",
        "a stream on it goes on where that leads",
        "getdirentries getdirentries64",
    ),
    promotes("pass descriptors to other processes", "", "sendmsg sendmmsg"),
    promotes(
        "make a stream of a descriptor, print to one",
        "libc reads and writes by calls of its own",
        "fdopen _IO_fdopen? dprintf __dprintf_chk vdprintf __vdprintf_chk",
    ),
    promotes(
        "fork",
        "both processes share what is open; the child finds out by a page that it gets empty",
        "fork __fork? _Fork? clone __clone?",
    ),
    promotes("start a shell", "libc forks by calls of its own", "system popen _IO_popen?"),
    followed(
        "limits of a descriptor",
        "of a granted file those of the mount, not of the backing",
        "fpathconf",
    ),
    followed(
        "open a stream again",
        "libc keeps the stream's descriptor number, and its state, by itself; the kernel opens the file",
        "freopen freopen64",
    ),
    followed("close a stream", "", "fclose _IO_fclose?"),
    followed(
        "duplicate and close descriptors",
        "the library's own descriptors are out of the program's reach",
        "close dup dup2 dup3 fcntl fcntl64? close_range? closefrom? __close? __dup2? __fcntl?",
    ),
    followed("change the current directory", "", "chdir fchdir"),
    followed("read a directory's descriptor", "a stream on it goes on where that leads", "getdents64?"),
    followed(
        "walk a tree",
        "libc reads the tree by calls of its own, and with FTW_CHDIR, or without FTS_NOCHDIR, changes the current \
         directory in between; exact copies of these functions would be as large as this library",
        "nftw nftw64 fts_read fts64_read? fts_children fts64_children? fts_close fts64_close?",
    ),
    followed(
        "start a program",
        "the environment keeps the library, the mounts and what was granted",
        "execve execv execvp execvpe execl execlp execle fexecve execveat? posix_spawn posix_spawnp",
    ),
    followed(
        "fork without copying",
        "a child that shares our memory has no tables of its own: until it executes a program, the kernel serves it",
        "vfork __vfork?",
    ),
    followed(
        "become a daemon, take a terminal",
        "libc forks, changes directory and duplicates descriptors by calls of its own",
        "daemon login_tty forkpty",
    ),
    followed(
        "change limits",
        "that of files' sizes is looked at again",
        "setrlimit setrlimit64? prlimit prlimit64",
    ),
    followed("the file mode creation mask", "", "umask"),
    followed(
        "watch for changes",
        "the kernel tells what it does itself; the daemon is told, so that calls of which a watcher hears are left to the kernel",
        "inotify_add_watch inotify_rm_watch fanotify_mark",
    ),
    followed(
        "forbid system calls",
        "a filter (`PR_SET_SECCOMP`) would meet the library's own calls: it is switched off before",
        "prctl",
    ),
    followed(
        "cancel threads at any instruction",
        "hooks put it off while they run: their frames can be unwound at calls only",
        "pthread_setcanceltype",
    ),
    followed(
        "jump",
        "what a call that a signal handler has left by a jump holds of the shared memory, the thread's next call gives back",
        "longjmp _longjmp siglongjmp __longjmp_chk",
    ),
    followed(
        "change credentials",
        "the process connects anew, with its new credentials; per-thread ones switch the library off",
        "setuid setgid seteuid setegid setreuid setregid setresuid setresgid setgroups initgroups capset setfsuid setfsgid",
    ),
    followed(
        "leave the process's name spaces",
        "paths mean something else afterwards: the library is switched off",
        "chroot unshare setns",
    ),
    kernel(
        "synchronise file systems",
        "the kernel writes back what it caches of the backing files, and asks the daemon for the rest",
        "sync",
    ),
    kernel("what is mapped", "the kernel's", "mremap msync munmap remap_file_pages llseek?"),
    kernel(
        "terminals",
        "the kernel's",
        "ttyslot gtty? stty? vhangup getpt posix_openpt openpty ctermid getpass revoke isastream fattach fdetach getmsg? \
         getpmsg? putmsg? putpmsg?",
    ),
    kernel("make an epoll instance", "", "epoll_create epoll_create1"),
    kernel(
        "asynchronous reads and writes that have begun",
        "libc's threads do them by calls of their own",
        "aio_cancel aio_cancel64 aio_error aio_error64 aio_return aio_return64 aio_suspend aio_suspend64 aio_init",
    ),
    kernel("order a directory", "no file is touched", "alphasort alphasort64 versionsort versionsort64"),
    kernel(
        "walk a tree without changing the current directory",
        "libc reads the tree by calls of its own",
        "ftw ftw64 fts_open fts64_open? fts_set fts64_set?",
    ),
    kernel(
        "the current directory's path",
        "one system call, which asks no file system",
        "getcwd __getcwd_chk getwd __getwd_chk get_current_dir_name",
    ),
    kernel("limits of a path", "what is not constant libc asks of `statfs`, rarely", "pathconf"),
    kernel(
        "names for temporary files",
        "a look-up or two, of names that do not exist and, `mktemp` aside, in the system's directory",
        "mktemp tmpnam tmpnam_r tempnam",
    ),
    kernel("temporary files without a name", "O_TMPFILE in the system's directory", "tmpfile tmpfile64"),
    kernel(
        "expand words",
        "libc globs, and starts shells, by calls of its own",
        "wordexp wordfree globfree globfree64 glob_pattern_p fnmatch",
    ),
    kernel("make an instance that watches", "", "inotify_init inotify_init1 fanotify_init"),
    kernel("wait for a shell", "", "pclose _IO_proc_open? _IO_proc_close?"),
    kernel(
        "descriptions of what a spawned program gets",
        "no file is touched",
        "posix_spawn_file_actions_* posix_spawnattr_*",
    ),
    kernel(
        "load a library",
        "the dynamic linker maps it by calls of its own",
        "dlopen dlmopen dlclose uselib?",
    ),
    kernel(
        "streams",
        "libc reads and writes by calls of its own; a granted descriptor is the backing file's own",
        "fileno fileno_unlocked fcloseall fopencookie fmemopen open_memstream open_wmemstream fflush \
         fflush_unlocked fread fread_unlocked __fread_chk __fread_unlocked_chk fwrite fwrite_unlocked fgetc fgetc_unlocked getc \
         getc_unlocked getchar getchar_unlocked fgets fgets_unlocked __fgets_chk __fgets_unlocked_chk gets __gets_chk fputc \
         fputc_unlocked putc putc_unlocked putchar putchar_unlocked fputs fputs_unlocked puts ungetc fgetwc \
         fgetwc_unlocked getwc getwc_unlocked getwchar getwchar_unlocked fgetws fgetws_unlocked __fgetws_chk \
         __fgetws_unlocked_chk fputwc fputwc_unlocked putwc putwc_unlocked putwchar putwchar_unlocked fputws \
         fputws_unlocked ungetwc getw putw getdelim __getdelim getline fprintf __fprintf_chk printf __printf_chk vfprintf \
         __vfprintf_chk vprintf __vprintf_chk fwprintf __fwprintf_chk \
         wprintf __wprintf_chk vfwprintf __vfwprintf_chk vwprintf __vwprintf_chk fscanf scanf vfscanf vscanf __vfscanf? fwscanf \
         wscanf vfwscanf vwscanf __isoc99_fscanf __isoc99_scanf __isoc99_vfscanf __isoc99_vscanf \
         __isoc99_fwscanf __isoc99_wscanf __isoc99_vfwscanf __isoc99_vwscanf fseek fseeko fseeko64 ftell ftello \
         ftello64 rewind fgetpos fgetpos64 fsetpos fsetpos64 setbuf setbuffer setlinebuf setvbuf feof \
         feof_unlocked ferror ferror_unlocked clearerr clearerr_unlocked flockfile ftrylockfile funlockfile fwide perror \
         psignal psiginfo __fbufsize __flbf __fpending __fpurge __freadable __freading __fsetlocking __fwritable \
         __fwriting _flushlbf __overflow __uflow __underflow __woverflow __wuflow __wunderflow stdin stdout stderr _IO_* \
         error error_at_line err errx verr verrx warn warnx vwarn vwarnx fmtmsg",
    ),
    kernel(
        "descriptors that are no files of a file system",
        "the kernel's",
        "pipe pipe2 __pipe? eventfd timerfd_create memfd_create shm_open shm_unlink mq_open __mq_open_2 mq_close mq_getattr mq_setattr mq_notify mq_send mq_receive \
         mq_timedsend mq_timedreceive mq_unlink sem_open sem_close sem_unlink pidfd_open? pidfd_getfd? \
         pidfd_send_signal? isfdtype",
    ),
    kernel(
        "make sockets",
        "the kernel's; names in a file system are made and looked up by it",
        "socket __socket? socketpair bindresvport __cmsg_nxthdr",
    ),
    kernel(
        "mount, swap, quotas, accounting",
        "the mount table is read anew when it changes",
        "mount umount umount2 pivot_root swapon swapoff quotactl acct fsopen? fsconfig? fsmount? fspick? \
         move_mount? open_tree? mount_setattr? nfsservctl? sysfs? ustat?",
    ),
    kernel(
        "the system's own files",
        "libc reads and writes users, groups, mounts, terminals, logins, locales, messages by calls of its own",
        "setmntent __setmntent? getmntent getmntent_r __getmntent_r? addmntent endmntent __endmntent? hasmntopt getfsent getfsfile getfsspec setfsent \
         endfsent getttyent getttynam setttyent endttyent getusershell setusershell endusershell getpw getpwent \
         getpwent_r getpwnam getpwnam_r getpwuid getpwuid_r setpwent endpwent putpwent fgetpwent fgetpwent_r getgrent \
         getgrent_r getgrnam getgrnam_r getgrgid getgrgid_r setgrent endgrent putgrent fgetgrent fgetgrent_r \
         getgrouplist getspent getspent_r getspnam getspnam_r setspent endspent putspent sgetspent sgetspent_r \
         fgetspent fgetspent_r lckpwdf ulckpwdf getsgent getsgent_r getsgnam getsgnam_r setsgent endsgent \
         putsgent sgetsgent sgetsgent_r fgetsgent fgetsgent_r getutent getutent_r getutid getutid_r getutline getutline_r \
         getutmp getutmpx getutxent getutxid getutxline pututline pututxline setutent setutxent endutent endutxent \
         utmpname utmpxname updwtmp updwtmpx login logout logwtmp getlogin getlogin_r __getlogin_r_chk setlogin cuserid \
         catopen catclose catgets gethostid sethostid getloadavg get_nprocs get_nprocs_conf \
         get_phys_pages get_avphys_pages ftok mtrace muntrace",
    ),
    kernel("never implemented on Linux", "they fail with ENOSYS", "chflags fchflags"),
];

/// Every other function of libc.
pub const UNRELATED: &[Group] = &[
    group(
        "threads, locks, what a debugger knows of them",
        "pthread_* __pthread_* _pthread_* mtx_* cnd_* thrd_* tss_* call_once",
    ),
    group(
        "strings and memory",
        "__xpg_strerror_r str* __str* mem* __mem* __bzero __explicit_bzero_chk __ffs __rawmemchr __stpcpy __stpcpy_chk \
         __stpcpy_small __stpncpy __stpncpy_chk __xpg_basename a64l atof atoi atol atoll basename bcmp bcopy \
         bzero dirname explicit_bzero ffs ffsl ffsll index l64a rawmemchr rindex rpmatch stpcpy stpncpy swab",
    ),
    group(
        "characters, wide characters, conversion",
        "is* __is* wcs* __wcs* wmem* __wmem* tow* __tow* mb* __mb* __ctype32_b \
         __ctype32_tolower __ctype32_toupper __ctype_b __ctype_b_loc __ctype_get_mb_cur_max __ctype_tolower \
         __ctype_tolower_loc __ctype_toupper __ctype_toupper_loc __toascii_l __tolower_l __toupper_l \
         __wcpcpy_chk __wcpncpy_chk __wcrtomb_chk __wctomb_chk __wctrans_l __wctype_l _tolower _toupper btowc \
         c16rtomb c32rtomb c8rtomb iconv iconv_close iconv_open toascii tolower tolower_l toupper toupper_l \
         wcpcpy wcpncpy wcrtomb wctob wctomb wctrans wctrans_l wctype wctype_l wcwidth",
    ),
    group(
        "formatting into memory",
        "__asprintf __asprintf_chk __obstack_printf_chk __obstack_vprintf_chk __printf_fp __snprintf_chk \
         __sprintf_chk __swprintf_chk __vasprintf_chk __vsnprintf __vsnprintf_chk __vsprintf_chk __vsscanf \
         __vswprintf_chk asprintf obstack_printf obstack_vprintf parse_printf_format printf_size \
         printf_size_info register_printf_function register_printf_modifier register_printf_specifier \
         register_printf_type snprintf sprintf sscanf swprintf swscanf vasprintf vsnprintf vsprintf vsscanf \
         vswprintf vswscanf",
    ),
    group(
        "memory",
        "malloc* __malloc_* __libc_* obstack_* _obstack* mall* pkey_* mlock* munlock* arc4random* \
         __after_morecore_hook __curbrk __default_morecore __free_hook __morecore __realloc_hook __sbrk \
         aligned_alloc brk calloc cfree free madvise mcheck mcheck_check_all mcheck_pedantic mincore mprobe \
         mprotect posix_madvise posix_memalign process_madvise process_mrelease process_vm_readv \
         process_vm_writev pvalloc realloc reallocarray sbrk sstk tr_break valloc",
    ),
    group(
        "numbers, sorting, searching, random numbers",
        "__finite __finitef __finitel __fpu_control __signbit __signbitf __signbitl abs bsearch copysign \
         copysignf copysignl div drand48 drand48_r ecvt ecvt_r erand48 erand48_r fcvt fcvt_r finite finitef \
         finitel frexp frexpf frexpl gcvt getentropy getrandom hcreate hcreate_r hdestroy hdestroy_r hsearch \
         hsearch_r imaxabs imaxdiv initstate initstate_r insque jrand48 jrand48_r labs lcong48 lcong48_r \
         ldexp ldexpf ldexpl ldiv lfind llabs lldiv lrand48 lrand48_r lsearch modf modff modfl mrand48 \
         mrand48_r nrand48 nrand48_r qecvt qecvt_r qfcvt qfcvt_r qgcvt qsort qsort_r rand rand_r random \
         random_r remque scalbn scalbnf scalbnl seed48 seed48_r setstate setstate_r srand srand48 srand48_r \
         srandom srandom_r tdelete tdestroy tfind tsearch twalk twalk_r",
    ),
    group(
        "regular expressions, arguments, vectors of arguments",
        "re_* reg* argp_* argz_* __argz_* envz_* opt* __posix_getopt advance getopt getopt_long \
         getopt_long_only getsubopt loc1 loc2 locs step",
    ),
    group(
        "messages and locales",
        "__dcgettext __dgettext __duplocale __freelocale __newlocale __nl_langinfo_l __uselocale \
         _libc_intl_domainname _nl_default_dirname _nl_domain_bindings _nl_msg_cat_cntr \
         bind_textdomain_codeset bindtextdomain dcgettext dcngettext dgettext dngettext duplocale freelocale \
         gettext localeconv newlocale ngettext nl_langinfo nl_langinfo_l setlocale textdomain uselocale",
    ),
    group(
        "time",
        "clock* timer_* time* __adjtimex __daylight __gettimeofday __gmtime_r __nanosleep __timezone __tzname \
         adjtime adjtimex alarm asctime asctime_r ctime ctime_r daylight difftime dysize ftime getdate \
         getdate_err getdate_r getitimer gettimeofday gmtime gmtime_r localtime localtime_r mktime nanosleep \
         ntp_adjtime ntp_gettime ntp_gettimex rtime setitimer settimeofday sleep stime tzname tzset ualarm \
         usleep",
    ),
    group(
        "signals, jumps, contexts",
        "sig* __sig* __sysv_signal __xpg_sigpause _setjmp bsd_signal getcontext \
         gsignal kill killpg makecontext pause raise setcontext setjmp ssignal swapcontext \
         sysv_signal tgkill",
    ),
    group(
        "processes, identities, limits, scheduling",
        "sched_* __sched_* _Exit __arch_prctl __bsd_getpgrp __cxa_at_quick_exit __cxa_atexit \
         __cxa_finalize __cxa_thread_atexit_impl __environ __getauxval __getgroups_chk __getpgid __getpid \
         __register_atfork __secure_getenv __setpgid __wait __waitpid _environ _exit abort arch_prctl capget \
         clearenv environ exit getauxval getcpu getdtablesize getegid getenv geteuid getgid getgroups getpgid \
         getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrlimit64 getrusage getsid gettid \
         getuid group_member nice on_exit personality ptrace putenv quick_exit secure_getenv setenv \
         setpgid setpgrp setpriority setsid ulimit unsetenv vlimit vtimes wait3 wait4 \
         wait waitid waitpid",
    ),
    group(
        "the system's name, configuration, modules, clocks of the machine",
        "sysctl __sysctl __confstr_chk __fentry__ __getdomainname_chk __gethostname_chk __getpagesize \
         __sysconf __syslog_chk __vsyslog_chk __x86_get_cpuid_feature_leaf _sys_errlist _sys_nerr \
         _sys_siglist bdflush closelog confstr create_module delete_module get_kernel_syms getdomainname \
         gethostname getpagesize gnu_dev_major gnu_dev_makedev gnu_dev_minor gnu_get_libc_release \
         gnu_get_libc_version init_module ioperm iopl klogctl modify_ldt openlog query_module reboot \
         setdomainname sethostname setlogmask sys_errlist sys_nerr sys_sigabbrev sys_siglist sysconf sysinfo \
         syslog uname vsyslog",
    ),
    group(
        "errors, assertions, traces, profiles, linking",
        "dl* _dl_* __cyg_* __assert __assert_fail __assert_perror_fail __backtrace __backtrace_symbols \
         __backtrace_symbols_fd __chk_fail __errno_location __fdelt_chk __fdelt_warn __monstartup \
         __profile_frequency __progname __progname_full __stack_chk_fail _mcleanup _mcount addseverity \
         backtrace backtrace_symbols backtrace_symbols_fd error_message_count error_one_per_line \
         error_print_progname mcount moncontrol monstartup profil program_invocation_name \
         program_invocation_short_name sprofil",
    ),
    group("terminal speeds", "cf*"),
    group(
        "names and addresses of the network",
        "xdr* svc* clnt* pmap_* inet_* inet6_* in6addr_* ether_* if_* ns_* res_* __res_* __rpc_* rpc_* dn_* \
         __dn_* gai_* __nss_* rexec* rcmd* __rcmd* ruser* iruserok* rresvport* netname2* key_* __key_* auth* \
         xprt_* __check_rhosts_file __h_errno_location __ivaliduser _authenticate _null_auth _res _res_hconf \
         _rpc_dtablesize _seterr_reply callrpc cbc_crypt des_setparity ecb_crypt endaliasent endhostent \
         endnetent endnetgrent endprotoent endrpcent endservent freeaddrinfo freeifaddrs get_myaddress \
         getaddrinfo getaddrinfo_a getaliasbyname getaliasbyname_r getaliasent getaliasent_r gethostbyaddr \
         gethostbyaddr_r gethostbyname gethostbyname2 gethostbyname2_r gethostbyname_r gethostent \
         gethostent_r getifaddrs getipv4sourcefilter getnameinfo getnetbyaddr getnetbyaddr_r getnetbyname \
         getnetbyname_r getnetent getnetent_r getnetgrent getnetgrent_r getnetname getprotobyname \
         getprotobyname_r getprotobynumber getprotobynumber_r getprotoent getprotoent_r getpublickey \
         getrpcbyname getrpcbyname_r getrpcbynumber getrpcbynumber_r getrpcent getrpcent_r getrpcport \
         getsecretkey getservbyname getservbyname_r getservbyport getservbyport_r getservent getservent_r \
         getsourcefilter h_errlist h_nerr herror host2netname hstrerror htonl htons innetgr ntohl ntohs \
         passwd2des setaliasent sethostent setipv4sourcefilter setnetent setnetgrent setprotoent setrpcent \
         setservent setsourcefilter user2netname xdecrypt xencrypt",
    ),
    group("System V messages, semaphores and shared memory; POSIX semaphores", "msg* sem* shm*"),
];

/// The table as text.
pub fn markdown() -> String {
    let mut text = String::from(
        "# What becomes of libc's functions\n\n\
         This is the table of `src/surface.rs` as text; `FINESSE_BLESS=1 cargo test -p finesse-preload --test surface` \
         writes it. Functions that are not in it have nothing to do with files.\n",
    );
    for scope in Scope::ALL {
        let entries: Vec<_> = SURFACE.iter().filter(|entry| entry.scope == scope).collect();
        if entries.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = write!(text, "\n## {}\n\n| to | functions | |\n| --- | --- | --- |\n", scope.title());
        for entry in entries {
            let functions: Vec<_> = entry.names().map(|name| format!("`{}`", name.symbol)).collect();
            let _ = writeln!(text, "| {} | {} | {} |", entry.what, functions.join(" "), entry.why);
        }
    }
    text
}
