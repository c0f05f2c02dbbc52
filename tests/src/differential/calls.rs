//! The calls that scripts are made of: for each its weight, its arguments, and its C text.
//!
//! The same text is compiled into the performer, with arguments from the script, and printed in listings, with the
//! arguments written out.

use libc::c_int;

/// Values with their C names.
type Symbols = &'static [(&'static str, i64)];

/// What an argument can be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// One of the process's descriptor slots.
    Slot,
    /// A slot, or the working directory.
    At,
    /// One of the slots for streams of directories or mappings.
    Side,
    /// A path.
    Name,
    /// What a symbolic link says.
    Target,
    /// An extended attribute.
    Attribute,
    /// What a stream is opened for.
    Stream,
    /// One of these.
    Of(Symbols),
    /// One of the first, and any of the second.
    Flags(Symbols, Symbols),
    /// A file's mode.
    Mode,
    /// Bytes to move.
    Size,
    /// A few bytes.
    Few,
    /// A place in a file.
    Offset,
    /// A place in a file, relative to another.
    Delta,
    /// What written bytes are made of.
    Seed,
    /// A time of [`T`](../performer.c).
    Time,
    /// A user or group; -1 changes nothing.
    Id,
}

macro_rules! symbols {
    ($($name:ident)|* $(|)?) => { &[$((stringify!($name), libc::$name as i64)),*] };
}

/// Some names that begin with `R` are absolute, `X` stands for a long name and `P` for a long path, as in the
/// performer; others begin with a colon.
const NAMES: &[&str] = &[
    ":a",
    ":b",
    ":c",
    ":d",
    ":d/a",
    ":d/c",
    ":e",
    ":d/e",
    ":l",
    ":m",
    ":n",
    ":h",
    ":d/e/x",
    ":m/a",
    ":a",
    ":b",
    ":c",
    ":a",
    ":b",
    ":c",
    ":n",
    ":d/a",
    ":d/n",
    ":e/a",
    ":e/n",
    ":.",
    ":..",
    ":./a",
    ":d/../a",
    ":d/.",
    ":d/..",
    ":a/",
    ":d/",
    ":l/",
    ":m/",
    ":c/",
    ":n/",
    ":e/",
    ":gone",
    ":gone/",
    ":gone/x",
    ":loop",
    ":loop/x",
    ":",
    ":a/x",
    ":a/.",
    ":d//a",
    ":out",
    ":out/f",
    ":out/../outside/f",
    ":out/n",
    "R/a",
    "R/d",
    "R/c",
    "R/d/../b",
    "R/",
    "R/n",
    ":absolute",
    ":absolute/a",
    ":../w/a",
    ":../w/c",
    "X255",
    "X256",
    "P4095",
    "P4096",
    ":m/../a",
    ":l2",
    ":d/up/a",
    ":d/up",
    ":e",
    ":d/e",
    ":e/e",
    ":nothing/x",
    ":m/e",
    ":m/e/x",
];

const TARGETS: &[&str] =
    &[":a", ":d", ":n", ":../a", ":loop2", "R/b", "R/d", ":d/", ":.", ":..", "X255", ":out/f", ":l", ":"];

const ATTRIBUTES: &[&str] = &[
    ":user.a",
    ":user.b",
    ":user.c",
    ":user.",
    ":user",
    ":trusted.a",
    ":system.posix_acl_access",
    ":security.a",
    ":nowhere.a",
    ":",
    "X256",
];

const STREAMS: &[&str] = &[":w", ":r", ":a", ":r+", ":w+", ":a+", ":wx", ":re"];

const SIZES: &[i64] = &[
    5, 0, 1, 100, 4095, 4096, 4097, 512, 1000, 65535, 65536, 65537, 3, 7, 4096, 8192, 131_072, 10, 1_048_575,
    1_048_576, 1_048_577, 3_145_728,
];
const FEW: &[i64] = &[5, 0, 1, 10, 100, 2, 3, 4096, 64];
const OFFSETS: &[i64] =
    &[0, 1, 5, 4096, 100, 4095, 4097, 10_000, 65_536, 1_048_576, 3_000_000, 0, 2, 3, -1, 4_194_304];
const DELTAS: &[i64] = &[0, 1, -1, 5, -5, 4096, 100_000, -100_000];
const MODES: &[i64] = &[
    0o644, 0o666, 0o600, 0o755, 0o777, 0o700, 0o000, 0o444, 0o400, 0o200, 0o222, 0o4755, 0o2755, 0o6777,
    0o1777, 0o2644, 0o2777, 0o4711, 0o555, 0o711,
];
const TIMES: &[i64] = &[1000, 2000, -1, -2, 1, 0, 999_999_999];
const IDS: &[i64] = &[0, 65534, -1, 1000, 65533, 100];

impl Kind {
    /// The argument that a random number stands for; smaller numbers stand for simpler ones.
    pub fn value(self, raw: u16) -> Value {
        let number = usize::from(raw);
        let of = |list: &[i64]| Value::Number(list[number % list.len()]);
        let named = |list: &[&str]| Value::Text(list[number % list.len()].to_owned());
        match self {
            Self::Slot => Value::Number((number % 4) as i64),
            // The working directory as often as the slots together.
            Self::At => Value::Number(if number % 8 < 4 { -1 } else { (number % 4) as i64 }),
            Self::Side => Value::Number((number % 2) as i64),
            Self::Name => named(NAMES),
            Self::Target => named(TARGETS),
            Self::Attribute => named(ATTRIBUTES),
            Self::Stream => named(STREAMS),
            Self::Of(symbols) => Value::Number(symbols[number % symbols.len()].1),
            Self::Flags(one, any) => {
                let base = one[number % one.len()].1;
                let rest = number / one.len();
                // Two or three at most, most often none or one.
                let chosen = any.iter().enumerate().filter(|(index, _)| {
                    let (first, second, third) =
                        (rest % (2 * any.len()), rest / 7 % (3 * any.len()), rest / 3 % (5 * any.len()));
                    rest != 0 && [first, second, third].contains(index)
                });
                Value::Number(chosen.fold(base, |flags, (_, (_, flag))| flags | flag))
            }
            Self::Mode => of(MODES),
            Self::Size => of(SIZES),
            Self::Few => of(FEW),
            Self::Offset => of(OFFSETS),
            Self::Delta => of(DELTAS),
            Self::Seed => Value::Number((number % 100) as i64 + 1),
            Self::Time => of(TIMES),
            Self::Id => of(IDS),
        }
    }

    /// Whether it is a string.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Name | Self::Target | Self::Attribute | Self::Stream)
    }

    /// An argument as C writes it.
    pub fn listed(self, value: &Value) -> String {
        match (self, value) {
            (_, Value::Text(text)) => listed_name(text),
            (Self::Of(symbols), Value::Number(number)) => symbols
                .iter()
                .find_map(|(name, value)| (value == number).then(|| (*name).to_owned()))
                .unwrap_or_else(|| number.to_string()),
            (Self::Flags(one, any), Value::Number(number)) => {
                let mut left = *number;
                let mut words = Vec::new();
                // The widest first: some flags hold others.
                let mut all: Vec<_> = any.iter().chain(one).filter(|(_, flag)| *flag != 0).collect();
                all.sort_by_key(|(_, flag)| std::cmp::Reverse(flag.count_ones()));
                for (name, flag) in all {
                    if left & flag == *flag {
                        left &= !flag;
                        words.push(*name);
                    }
                }
                if words.is_empty() {
                    words.extend(one.iter().filter(|(_, flag)| *flag == 0).map(|(name, _)| *name).take(1));
                }
                let mut text = words.join(" | ");
                if left != 0 || text.is_empty() {
                    text = format!("{number:#o}");
                }
                text
            }
            (Self::Mode, Value::Number(mode)) => format!("0{mode:o}"),
            (_, Value::Number(number)) => number.to_string(),
        }
    }
}

fn listed_name(token: &str) -> String {
    let (kind, rest) = token.split_at(1);
    match kind {
        ":" => format!("\"{rest}\""),
        "R" => format!("R(\"{rest}\")"),
        kind => format!("{kind}({rest})"),
    }
}

/// One argument of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// A name in the script's form.
    Text(String),
}

/// A kind of call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name in scripts.
    pub name: &'static str,
    /// How often it occurs, relative to others.
    pub weight: usize,
    /// Its arguments.
    pub arguments: &'static [Kind],
    /// What it is in C; `$0` is the first argument.
    pub text: &'static str,
}

const ACCESS: Symbols = symbols!(O_RDWR | O_RDONLY | O_WRONLY);
const OPEN: Symbols = symbols!(
    O_CREAT
        | O_EXCL
        | O_TRUNC
        | O_APPEND
        | O_NOFOLLOW
        | O_DIRECTORY
        | O_PATH
        | O_CLOEXEC
        | O_NONBLOCK
        | O_NOATIME
        | O_SYNC
        | O_DSYNC
        | O_DIRECT
        | O_TMPFILE
);
const CREATE: Symbols = &[
    ("O_RDWR | O_CREAT", (libc::O_RDWR | libc::O_CREAT) as i64),
    ("O_WRONLY | O_CREAT", (libc::O_WRONLY | libc::O_CREAT) as i64),
    ("O_RDWR | O_CREAT | O_APPEND", (libc::O_RDWR | libc::O_CREAT | libc::O_APPEND) as i64),
    ("O_RDONLY | O_CREAT", libc::O_CREAT as i64),
];
const DIRECTORY: Symbols = &[
    ("O_RDONLY | O_DIRECTORY", libc::O_DIRECTORY as i64),
    ("O_PATH", libc::O_PATH as i64),
    ("O_RDONLY", 0),
    ("O_PATH | O_DIRECTORY", (libc::O_PATH | libc::O_DIRECTORY) as i64),
];
const NO_FLAGS: Symbols = &[("0", 0)];
const AT: Symbols = symbols!(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | AT_NO_AUTOMOUNT);
const AT_LINK: Symbols = symbols!(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH);
const AT_NOFOLLOW: Symbols = symbols!(AT_SYMLINK_NOFOLLOW);
const AT_EACCESS: Symbols = symbols!(AT_EACCESS | AT_SYMLINK_NOFOLLOW);
const AT_REMOVE: Symbols = &[
    ("0", 0),
    ("AT_REMOVEDIR", libc::AT_REMOVEDIR as i64),
    ("AT_SYMLINK_NOFOLLOW", libc::AT_SYMLINK_NOFOLLOW as i64),
];
const RENAME: Symbols =
    &[("0", 0), ("1 /* RENAME_NOREPLACE */", 1), ("2 /* RENAME_EXCHANGE */", 2), ("3", 3), ("8", 8)];
const WHENCE: Symbols = symbols!(SEEK_SET | SEEK_CUR | SEEK_END | SEEK_DATA | SEEK_HOLE);
const SET_FLAGS: Symbols = symbols!(O_APPEND | O_NONBLOCK | O_NOATIME);
const XATTR: Symbols = symbols!(XATTR_CREATE | XATTR_REPLACE);
const NODE: Symbols = symbols!(S_IFIFO | S_IFREG | S_IFCHR | S_IFSOCK | S_IFDIR);
const FALLOCATE: Symbols = symbols!(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
const PROTECTION: Symbols = &[
    ("PROT_READ | PROT_WRITE", (libc::PROT_READ | libc::PROT_WRITE) as i64),
    ("PROT_READ", libc::PROT_READ as i64),
];
const MAP: Symbols = symbols!(MAP_SHARED | MAP_PRIVATE);
const MSYNC: Symbols = symbols!(MS_SYNC | MS_ASYNC | MS_INVALIDATE);
const FLOCK: Symbols = &[
    ("LOCK_EX | LOCK_NB", (libc::LOCK_EX | libc::LOCK_NB) as i64),
    ("LOCK_SH | LOCK_NB", (libc::LOCK_SH | libc::LOCK_NB) as i64),
    ("LOCK_UN", libc::LOCK_UN as i64),
];
const LOCK_COMMAND: Symbols = symbols!(F_SETLK | F_GETLK | F_OFD_SETLK | F_OFD_GETLK);
const LOCK_TYPE: Symbols = symbols!(F_WRLCK | F_RDLCK | F_UNLCK);
const ACCESSES: Symbols = &[
    ("F_OK", 0),
    ("R_OK", 4),
    ("W_OK", 2),
    ("X_OK", 1),
    ("R_OK | W_OK", 6),
    ("R_OK | W_OK | X_OK", 7),
    ("8", 8),
];
const RWF: Symbols = &[
    ("0", 0),
    ("RWF_DSYNC", 2),
    ("RWF_SYNC", 4),
    ("RWF_APPEND", 16),
    ("RWF_NOWAIT", 8),
    ("RWF_HIPRI", 1),
    ("0x4000", 0x4000),
];
const RWF_READ: Symbols = &[("0", 0), ("RWF_HIPRI", 1), ("0x4000", 0x4000)];
const CLOEXEC: Symbols = &[("0", 0), ("FD_CLOEXEC", 1)];
const DUP3: Symbols = &[("0", 0), ("O_CLOEXEC", libc::O_CLOEXEC as i64), ("O_APPEND", libc::O_APPEND as i64)];
const STATX: Symbols = &[
    ("STATX_BASIC_STATS", 0x7ff),
    ("STATX_SIZE", 0x200),
    ("STATX_MODE", 2),
    ("STATX_MTIME | STATX_NLINK", 0x44),
];
// Not `_PC_LINK_MAX`: glibc's `__statfs_link_max` knows ext4's by its type, and no FUSE file system's.
const PATHCONF: Symbols =
    &[("_PC_NAME_MAX", 3), ("_PC_PATH_MAX", 4), ("_PC_CHOWN_RESTRICTED", 6), ("_PC_NO_TRUNC", 7)];
const ADVICE: Symbols = symbols!(POSIX_FADV_NORMAL | POSIX_FADV_WILLNEED | POSIX_FADV_DONTNEED);
const TEMPLATE: Symbols = &[("0", 0), ("1", 1), ("2", 2)];
const MASK: Symbols = &[("022", 0o22), ("0", 0), ("077", 0o77), ("0777", 0o777), ("027", 0o27)];
const DIE: Symbols = &[("0 /* _exit */", 0), ("1 /* SIGKILL */", 1)];
const HIGH: Symbols = &[("60", 60), ("61", 61), ("62", 62)];

const fn call(name: &'static str, weight: usize, arguments: &'static [Kind], text: &'static str) -> Call {
    Call { name, weight, arguments, text }
}

use Kind::{
    At, Attribute, Delta, Few, Flags, Id, Mode, Name, Of, Offset, Seed, Side, Size, Slot, Stream, Target,
    Time,
};

/// Every kind of call.
pub const CALLS: &[Call] = &[
    call("create", 40, &[Slot, Name, Flags(CREATE, OPEN), Mode], "keep($0, open($1, $2, (mode_t)$3))"),
    call("open", 30, &[Slot, Name, Flags(ACCESS, OPEN), Mode], "keep($0, open($1, $2, (mode_t)$3))"),
    call(
        "openat",
        20,
        &[Slot, At, Name, Flags(CREATE, OPEN), Mode],
        "keep($0, openat(AT($1), $2, $3, (mode_t)$4))",
    ),
    call("open-directory", 15, &[Slot, Name, Flags(DIRECTORY, OPEN)], "keep($0, open($1, $2))"),
    call("creat", 5, &[Slot, Name, Mode], "keep($0, creat($1, (mode_t)$2))"),
    call("close", 12, &[Slot], "release($0)"),
    call("read", 15, &[Slot, Size], "got(read(d[$0], B, $1))"),
    call("write", 25, &[Slot, Seed, Size], "write(d[$0], fill($1, $2), $2)"),
    call("pread", 12, &[Slot, Size, Offset], "got(pread(d[$0], B, $1, $2))"),
    call("pwrite", 15, &[Slot, Seed, Size, Offset], "pwrite(d[$0], fill($1, $2), $2, $3)"),
    call("readv", 6, &[Slot, Few, Size], "got(readv(d[$0], V($1, $2), 2))"),
    call("writev", 8, &[Slot, Seed, Few, Size], "(fill($1, $2 + $3), writev(d[$0], V($2, $3), 2))"),
    call("preadv2", 6, &[Slot, Few, Size, Offset, Of(RWF_READ)], "got(preadv2(d[$0], V($1, $2), 2, $3, $4))"),
    call(
        "pwritev2",
        8,
        &[Slot, Seed, Few, Size, Offset, Of(RWF)],
        "(fill($1, $2 + $3), pwritev2(d[$0], V($2, $3), 2, $4, $5))",
    ),
    call("preadv", 3, &[Slot, Few, Size, Offset], "got(preadv(d[$0], V($1, $2), 2, $3))"),
    call(
        "pwritev",
        3,
        &[Slot, Seed, Few, Size, Offset],
        "(fill($1, $2 + $3), pwritev(d[$0], V($2, $3), 2, $4))",
    ),
    call("lseek", 14, &[Slot, Offset, Of(WHENCE)], "seek(d[$0], $1, $2)"),
    call("lseek-relative", 5, &[Slot, Delta, Of(WHENCE)], "seek(d[$0], $1, $2)"),
    call("ftruncate", 8, &[Slot, Offset], "ftruncate(d[$0], $1)"),
    call("truncate", 8, &[Name, Offset], "truncate($0, $1)"),
    call("fstat", 14, &[Slot], "attributes(fstat(d[$0], &s), &s)"),
    call("stat", 16, &[Name], "attributes(stat($0, &s), &s)"),
    call("lstat", 12, &[Name], "attributes(lstat($0, &s), &s)"),
    call("fstatat", 10, &[At, Name, Flags(NO_FLAGS, AT)], "attributes(fstatat(AT($0), $1, &s, $2), &s)"),
    call(
        "statx",
        8,
        &[At, Name, Flags(NO_FLAGS, AT), Of(STATX)],
        "attributes_x(statx(AT($0), $1, $2, $3, &x), &x, $3)",
    ),
    call("same", 10, &[Slot, Name], "same(d[$0], $1)"),
    call("access", 6, &[Name, Of(ACCESSES)], "access($0, $1)"),
    call(
        "faccessat",
        6,
        &[At, Name, Of(ACCESSES), Flags(NO_FLAGS, AT_EACCESS)],
        "faccessat(AT($0), $1, $2, $3)",
    ),
    call("euidaccess", 2, &[Name, Of(ACCESSES)], "euidaccess($0, $1)"),
    call("mkdir", 12, &[Name, Mode], "mkdir($0, (mode_t)$1)"),
    call("mkdirat", 6, &[At, Name, Mode], "mkdirat(AT($0), $1, (mode_t)$2)"),
    call("rmdir", 8, &[Name], "rmdir($0)"),
    call("unlink", 14, &[Name], "unlink($0)"),
    call("unlinkat", 8, &[At, Name, Of(AT_REMOVE)], "unlinkat(AT($0), $1, $2)"),
    call("remove", 4, &[Name], "remove($0)"),
    call("rename", 16, &[Name, Name], "rename($0, $1)"),
    call("renameat", 5, &[At, Name, At, Name], "renameat(AT($0), $1, AT($2), $3)"),
    call("renameat2", 9, &[At, Name, At, Name, Of(RENAME)], "renameat2(AT($0), $1, AT($2), $3, $4)"),
    call("link", 8, &[Name, Name], "link($0, $1)"),
    call("linkat", 6, &[At, Name, At, Name, Flags(NO_FLAGS, AT_LINK)], "linkat(AT($0), $1, AT($2), $3, $4)"),
    call("symlink", 8, &[Target, Name], "symlink($0, $1)"),
    call("symlinkat", 4, &[Target, At, Name], "symlinkat($0, AT($1), $2)"),
    call("readlink", 6, &[Name], "text(readlink($0, clean(), 4096))"),
    call("readlinkat", 4, &[At, Name], "text(readlinkat(AT($0), $1, clean(), 4096))"),
    call("chmod", 10, &[Name, Mode], "chmod($0, (mode_t)$1)"),
    call("fchmod", 6, &[Slot, Mode], "fchmod(d[$0], (mode_t)$1)"),
    call(
        "fchmodat",
        4,
        &[At, Name, Mode, Flags(NO_FLAGS, AT_NOFOLLOW)],
        "fchmodat(AT($0), $1, (mode_t)$2, $3)",
    ),
    call("chown", 7, &[Name, Id, Id], "chown($0, $1, $2)"),
    call("lchown", 4, &[Name, Id, Id], "lchown($0, $1, $2)"),
    call("fchown", 5, &[Slot, Id, Id], "fchown(d[$0], $1, $2)"),
    call("fchownat", 4, &[At, Name, Id, Id, Flags(NO_FLAGS, AT)], "fchownat(AT($0), $1, $2, $3, $4)"),
    call(
        "utimensat",
        12,
        &[At, Name, Time, Time, Flags(NO_FLAGS, AT_NOFOLLOW)],
        "utimensat(AT($0), $1, T($2, $3), $4)",
    ),
    call("futimens", 10, &[Slot, Time, Time], "futimens(d[$0], T($1, $2))"),
    call("utimes-now", 2, &[Name], "utimes($0, NULL)"),
    call(
        "setxattr",
        7,
        &[Name, Attribute, Seed, Few, Flags(NO_FLAGS, XATTR)],
        "setxattr($0, $1, fill($2, $3), $3, $4)",
    ),
    call(
        "lsetxattr",
        3,
        &[Name, Attribute, Seed, Few, Flags(NO_FLAGS, XATTR)],
        "lsetxattr($0, $1, fill($2, $3), $3, $4)",
    ),
    call(
        "fsetxattr",
        4,
        &[Slot, Attribute, Seed, Few, Flags(NO_FLAGS, XATTR)],
        "fsetxattr(d[$0], $1, fill($2, $3), $3, $4)",
    ),
    call("getxattr", 5, &[Name, Attribute, Few], "got(getxattr($0, $1, clean(), $2))"),
    call("lgetxattr", 2, &[Name, Attribute, Few], "got(lgetxattr($0, $1, clean(), $2))"),
    call("fgetxattr", 4, &[Slot, Attribute, Few], "got(fgetxattr(d[$0], $1, clean(), $2))"),
    call("listxattr", 4, &[Name], "names(listxattr($0, clean(), 4096))"),
    call("llistxattr", 2, &[Name], "names(llistxattr($0, clean(), 4096))"),
    call("flistxattr", 3, &[Slot], "names(flistxattr(d[$0], clean(), 4096))"),
    call("removexattr", 3, &[Name, Attribute], "removexattr($0, $1)"),
    call("lremovexattr", 1, &[Name, Attribute], "lremovexattr($0, $1)"),
    call("fremovexattr", 2, &[Slot, Attribute], "fremovexattr(d[$0], $1)"),
    call("list", 12, &[Name], "list($0)"),
    call("opendir", 6, &[Side, Name], "opened(D[$0] = opendir($1))"),
    call("fdopendir", 3, &[Side, Slot], "opened(D[$0] = fdopendir(dup(d[$1])))"),
    call("readdir", 8, &[Side], "entries(D[$0])"),
    call("readdir-some", 5, &[Side, Few], "some(D[$0], $1)"),
    call("rewinddir", 4, &[Side], "D[$0] ? (rewinddir(D[$0]), 0) : -2"),
    call("seekdir", 3, &[Side], "again(D[$0])"),
    call("closedir", 4, &[Side], "shut(&D[$0])"),
    call("dup", 5, &[Slot, Slot], "keep($0, dup(d[$1]))"),
    call("dup2", 4, &[Slot, Slot], "dup2(d[$0], d[$1]) < 0 ? -1 : 0"),
    call("dup2-high", 3, &[Slot, Slot, Of(HIGH)], "keep($0, dup2(d[$1], $2))"),
    call("dup3", 3, &[Slot, Slot, Of(HIGH), Of(DUP3)], "keep($0, dup3(d[$1], $2, $3))"),
    call("fcntl-dupfd", 3, &[Slot, Slot, Few], "keep($0, fcntl(d[$1], F_DUPFD, $2))"),
    call("fcntl-dupfd-cloexec", 2, &[Slot, Slot], "keep($0, fcntl(d[$1], F_DUPFD_CLOEXEC, 0))"),
    call("fcntl-getfl", 6, &[Slot], "flags(fcntl(d[$0], F_GETFL))"),
    call("fcntl-setfl", 6, &[Slot, Flags(NO_FLAGS, SET_FLAGS)], "fcntl(d[$0], F_SETFL, $1)"),
    call("fcntl-getfd", 3, &[Slot], "fcntl(d[$0], F_GETFD)"),
    call("fcntl-setfd", 3, &[Slot, Of(CLOEXEC)], "fcntl(d[$0], F_SETFD, $1)"),
    call("chdir", 3, &[Name], "chdir($0)"),
    call("chdir-back", 3, &[], "chdir(R(\"\"))"),
    call("fchdir", 2, &[Slot], "fchdir(d[$0])"),
    call("getcwd", 4, &[], "word(getcwd(B, 4096))"),
    call("umask", 4, &[Of(MASK)], "umask($0)"),
    call(
        "mmap",
        7,
        &[Side, Size, Of(PROTECTION), Of(MAP), Slot, Of(&[("0", 0), ("4096", 4096)])],
        "map($0, $1, $2, $3, d[$4], $5)",
    ),
    call("map-write", 7, &[Side, Few, Few, Seed], "touch($0, $1, $2, $3)"),
    call("map-read", 6, &[Side, Few, Few], "touch($0, $1, $2, 0)"),
    call("msync", 3, &[Side, Of(MSYNC)], "sync_map($0, $1)"),
    call("munmap", 3, &[Side], "unmap($0)"),
    call("sendfile", 4, &[Slot, Slot, Offset, Size], "sendfile(d[$0], d[$1], offset_at($2), $3)"),
    call(
        "copy_file_range",
        4,
        &[Slot, Slot, Offset, Size],
        "copy_file_range(d[$1], NULL, d[$0], offset_at($2), $3, 0)",
    ),
    call("fallocate", 6, &[Slot, Flags(NO_FLAGS, FALLOCATE), Offset, Size], "fallocate(d[$0], $1, $2, $3)"),
    call("posix_fallocate", 2, &[Slot, Offset, Size], "posix_fallocate(d[$0], $1, $2)"),
    call("posix_fadvise", 2, &[Slot, Offset, Size, Of(ADVICE)], "posix_fadvise(d[$0], $1, $2, $3)"),
    call("fsync", 3, &[Slot], "fsync(d[$0])"),
    call("fdatasync", 3, &[Slot], "fdatasync(d[$0])"),
    call("flock", 6, &[Slot, Of(FLOCK)], "flock(d[$0], $1)"),
    call("fcntl-lock", 12, &[Slot, Of(LOCK_COMMAND), Of(LOCK_TYPE), Few, Few], "lock(d[$0], $1, $2, $3, $4)"),
    call("statvfs", 2, &[Name], "fs(statvfs($0, &v), &v)"),
    call("fstatvfs", 2, &[Slot], "fs(fstatvfs(d[$0], &v), &v)"),
    call("pathconf", 2, &[Name, Of(PATHCONF)], "limit(pathconf($0, $1))"),
    call("fpathconf", 1, &[Slot, Of(PATHCONF)], "limit(fpathconf(d[$0], $1))"),
    call("mkstemp", 3, &[Of(TEMPLATE)], "temporary(W(\"tXXXXXX\"), $0)"),
    call("mkstemp-in", 2, &[Of(TEMPLATE)], "temporary(W(R(\"/d/tXXXXXX\")), $0)"),
    call("realpath", 5, &[Name], "word(realpath($0, B))"),
    call("print", 6, &[Name, Stream, Seed], "print($0, $1, $2)"),
    call("freopen", 3, &[Name, Name, Stream], "reopen($0, $1, $2)"),
    call("fgets", 4, &[Name], "lines($0)"),
    call("copy", 4, &[Name, Name], "copy($0, $1)"),
    call("nftw", 3, &[Name], "walk($0)"),
    call("mkfifo", 1, &[Name, Mode], "mkfifo($0, (mode_t)$1)"),
    call("mknodat", 1, &[At, Name, Of(NODE), Mode], "mknodat(AT($0), $1, (mode_t)($2 | $3), makedev(1, 3))"),
    call("bind", 2, &[Name], "bind_to($0)"),
    call("send", 2, &[Slot], "sent(d[$0])"),
    call("seteuid", 3, &[Of(&[("0", 0), ("65534", 65534)])], "seteuid($0)"),
    call("close_range", 1, &[], "close_range(60, 70, 0)"),
    call("proc-open", 2, &[Slot, Of(ACCESS)], "reopened(\"/proc/self/fd\", d[$0], $1)"),
    call("dev-open", 1, &[Slot, Of(ACCESS)], "reopened(\"/dev/fd\", d[$0], $1)"),
    call("proc-stat", 2, &[Slot], "named(d[$0])"),
    call("fork", 5, &[Of(NO_FLAGS)], "become($0)"),
    call("exec", 4, &[], "renew()"),
    call("die", 3, &[Of(DIE)], "die($0)"),
];

/// A call by its name.
pub fn by_name(name: &str) -> Option<usize> {
    CALLS.iter().position(|call| call.name == name)
}

/// A call's text with its arguments in place.
pub fn substituted(call: &Call, argument: impl Fn(usize) -> String) -> String {
    let mut text = call.text.to_owned();
    for index in 0..call.arguments.len() {
        text = text.replace(&format!("${index}"), &argument(index));
    }
    text
}

/// Whether opening what a call can make may wait for somebody.
pub fn makes_fifo(call: &Call, arguments: &[Value]) -> bool {
    call.name == "mkfifo"
        || (call.name == "mknodat" && arguments.get(2) == Some(&Value::Number(i64::from(libc::S_IFIFO))))
}

/// Calls that open by themselves, and would wait for a FIFO's other end.
pub fn may_wait(call: &Call) -> bool {
    ["print", "freopen", "fgets", "copy"].contains(&call.name)
}

/// Calls with open flags: where those are.
pub fn open_flags(call: &Call) -> Option<usize> {
    match call.name {
        "create" | "open" | "open-directory" => Some(2),
        "openat" => Some(3),
        _ => None,
    }
}

/// The flag that keeps an open from waiting.
pub const NONBLOCK: c_int = libc::O_NONBLOCK;
