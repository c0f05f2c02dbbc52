//! Open files that the daemon keeps for bypass clients: driven by `finesse_ipc::client` as the preload library does, and
//! by ordinary system calls on the same mount. Needs root and /dev/fuse.

#[allow(unreachable_pub)]
mod memory;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;

use finesse::passthrough::{Grants, Options, PassthroughFs};
use finesse_ipc::client::{Call, Client};
use finesse_ipc::frame::{
    BY_FILE, Fallback, NOT_VIRTUAL, OWN_OFFSET, Op, Outcome, PROMOTED, REPLY_GRANT, REPLY_GRANTABLE,
    REPLY_KERNELS, REPLY_VIRTUAL, ROOT, Request, Time,
};
use finesse_ipc::handshake::PLACEHOLDER;
use memory::{Fs, Memory, Mount, eventually};

/// What a system call returns: a number and bytes, or an errno.
type Result = std::result::Result<(u64, Vec<u8>), i32>;

/// An open file on a connection, as the preload library would have it.
struct Virtual<'c> {
    client: &'c Client,
    number: u64,
    flags: u32,
}

fn outcome<'c>(call: std::result::Result<Call<'c>, Fallback>) -> std::result::Result<Call<'c>, Outcome> {
    let call = call.unwrap_or_else(|reason| panic!("no round trip: {reason:?}"));
    match call.reply.outcome() {
        Outcome::Ok => Ok(call),
        other => Err(other),
    }
}

fn try_open<'c>(
    client: &'c Client,
    name: &str,
    flags: i32,
    mode: u32,
) -> std::result::Result<Virtual<'c>, Outcome> {
    let request = Request { base: ROOT, flags: flags as u32, mode, ..Request::default() };
    let call = outcome(client.call(Op::Open, &request, name.as_bytes(), b""))?;
    assert_eq!(call.reply.flags & (REPLY_VIRTUAL | REPLY_GRANT), REPLY_VIRTUAL, "{name}");
    assert_ne!(call.reply.to_attr().ino, 0);
    Ok(Virtual { client, number: call.reply.file().into(), flags: call.reply.flags })
}

/// Opens a file that can be opened virtually, once the kernel has told of the last close of what it had open.
fn open<'c>(client: &'c Client, name: &str, flags: i32) -> Virtual<'c> {
    let mut file = None;
    eventually("the kernel lets go of it", || match try_open(client, name, flags, 0o644) {
        Ok(opened) => {
            file = Some(opened);
            true
        }
        Err(Outcome::Kernel(Fallback::KernelHasItOpen)) => false,
        Err(error) => panic!("{name}: {error:?}"),
    });
    file.unwrap()
}

impl Virtual<'_> {
    fn ask(&self, op: Op, request: Request, path2: &[u8], data: &[u8]) -> Result {
        let request = Request { base: self.number, ..request };
        let call = self.client.call_with(op, &request, b"", path2, |buffer| buffer.append(data));
        match outcome(call) {
            Ok(call) => {
                let mut bytes = vec![0; call.reply.len as usize];
                let len = call.data(&mut bytes).len();
                bytes.truncate(len);
                Ok((call.reply.number(), bytes))
            }
            Err(Outcome::Errno(errno)) => Err(errno),
            Err(other) => panic!("{op:?}: {other:?}"),
        }
    }

    fn read_at(&self, at: u64, len: u32) -> std::result::Result<Vec<u8>, i32> {
        let request = Request { base2: at, mode: len, ..Request::default() };
        self.ask(Op::Read, request, b"", b"").map(|(_, bytes)| bytes)
    }

    fn read(&self, len: u32) -> std::result::Result<Vec<u8>, i32> {
        self.read_at(OWN_OFFSET, len)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> std::result::Result<u64, i32> {
        let request = Request { base2: at, mode: data.len() as u32, ..Request::default() };
        self.ask(Op::Write, request, b"", data).map(|(number, _)| number)
    }

    fn write(&self, data: &[u8]) -> std::result::Result<u64, i32> {
        self.write_at(OWN_OFFSET, data)
    }

    fn seek(&self, to: i64, whence: i32) -> std::result::Result<u64, i32> {
        let request = Request { base2: to as u64, mode: whence as u32, ..Request::default() };
        self.ask(Op::Seek, request, b"", b"").map(|(number, _)| number)
    }

    fn truncate(&self, size: i64) -> std::result::Result<(), i32> {
        let request = Request { size: size as u64, flags: BY_FILE, ..Request::default() };
        self.ask(Op::Truncate, request, b"", b"").map(drop)
    }

    fn allocate(&self, mode: i32, offset: i64, len: i64) -> std::result::Result<(), i32> {
        let request =
            Request { mode: mode as u32, base2: offset as u64, size: len as u64, ..Request::default() };
        self.ask(Op::Allocate, request, b"", b"").map(drop)
    }

    fn set_flags(&self, flags: i32) -> std::result::Result<(), i32> {
        self.ask(Op::SetFlags, Request { flags: flags as u32, ..Request::default() }, b"", b"").map(drop)
    }

    fn close(&self) -> std::result::Result<(), i32> {
        self.ask(Op::Close, Request::default(), b"", b"").map(drop)
    }

    fn stat(&self) -> finesse_ipc::frame::Attr {
        let request = Request { base: self.number, flags: BY_FILE, ..Request::default() };
        outcome(self.client.call(Op::Stat, &request, b"", b"")).unwrap().reply.to_attr()
    }

    /// The one-time name and the offset.
    fn promote(&self) -> std::result::Result<(String, u64), i32> {
        let (offset, name) = self.ask(Op::Promote, Request::default(), b"", b"")?;
        Ok((String::from_utf8(name).unwrap(), offset))
    }

    /// A kernel descriptor, made as the preload library makes it.
    fn promoted(&self, mount: &Path, flags: i32) -> std::io::Result<File> {
        let (name, offset) = self.promote().map_err(std::io::Error::from_raw_os_error)?;
        let mut file = open_hidden(self.client, mount, &name, flags)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }
}

fn hidden(client: &Client) -> String {
    let name = client.welcome().hidden;
    let len = name.iter().position(|byte| *byte == 0).unwrap();
    std::str::from_utf8(&name[..len]).unwrap().to_owned()
}

fn open_hidden(client: &Client, mount: &Path, name: &str, flags: i32) -> std::io::Result<File> {
    let path = mount.join(hidden(client)).join(name);
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let flags = flags | libc::O_CREAT | libc::O_CLOEXEC;
    // SAFETY: the path is a string with a NUL.
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn errno_of<T>(result: std::io::Result<T>) -> i32 {
    result.err().expect("it fails").raw_os_error().unwrap()
}

/// A call on an open file.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read(u32),
    ReadAt(u64, u32),
    Write(&'static [u8]),
    WriteAt(u64, &'static [u8]),
    Seek(i64, i32),
    Truncate(i64),
    Allocate(i32, i64, i64),
    SetFlags(i32),
    Sync,
    Size,
}

fn checked(value: i64) -> std::result::Result<u64, i32> {
    u64::try_from(value).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap())
}

impl Step {
    /// By the system call, on a native file.
    #[allow(clippy::cast_possible_wrap)]
    fn native(self, file: &File) -> Result {
        let fd = file.as_raw_fd();
        let mut buffer = vec![0u8; 1 << 16];
        let number = |value| checked(value).map(|number| (number, Vec::new()));
        // SAFETY: the descriptor is open, and buffers are as long as is said, in each case.
        unsafe {
            match self {
                Self::Read(len) => {
                    let len = checked(libc::read(fd, buffer.as_mut_ptr().cast(), len as usize) as i64)?;
                    Ok((0, buffer[..len as usize].to_vec()))
                }
                Self::ReadAt(at, len) => {
                    let read = libc::pread(fd, buffer.as_mut_ptr().cast(), len as usize, at as i64);
                    let len = checked(read as i64)?;
                    Ok((0, buffer[..len as usize].to_vec()))
                }
                Self::Write(data) => number(libc::write(fd, data.as_ptr().cast(), data.len()) as i64),
                Self::WriteAt(at, data) => {
                    number(libc::pwrite(fd, data.as_ptr().cast(), data.len(), at as i64) as i64)
                }
                Self::Seek(to, whence) => number(libc::lseek(fd, to, whence)),
                Self::Truncate(size) => number(libc::ftruncate(fd, size).into()),
                Self::Allocate(mode, offset, len) => number(libc::fallocate(fd, mode, offset, len).into()),
                Self::SetFlags(flags) => number(libc::fcntl(fd, libc::F_SETFL, flags).into()),
                Self::Sync => number(libc::fsync(fd).into()),
                Self::Size => Ok((file.metadata().unwrap().size(), Vec::new())),
            }
        }
    }

    /// Through the ring.
    fn bypass(self, file: &Virtual<'_>) -> Result {
        let bytes = |data: std::result::Result<Vec<u8>, i32>| data.map(|data| (0, data));
        let number = |number: std::result::Result<u64, i32>| number.map(|number| (number, Vec::new()));
        let none = |done: std::result::Result<(), i32>| done.map(|()| (0, Vec::new()));
        match self {
            Self::Read(len) => bytes(file.read(len)),
            Self::ReadAt(at, len) => bytes(file.read_at(at, len)),
            Self::Write(data) => number(file.write(data)),
            Self::WriteAt(at, data) => number(file.write_at(at, data)),
            Self::Seek(to, whence) => number(file.seek(to, whence)),
            Self::Truncate(size) => none(file.truncate(size)),
            Self::Allocate(mode, offset, len) => none(file.allocate(mode, offset, len)),
            Self::SetFlags(flags) => none(file.set_flags(flags)),
            Self::Sync => file.ask(Op::Sync, Request::default(), b"", b"").map(|_| (0, Vec::new())),
            Self::Size => Ok((file.stat().size, Vec::new())),
        }
    }
}

/// Most of what a file can be asked, with arguments at and over their bounds.
fn steps() -> Vec<Step> {
    use Step::{Allocate, Read, ReadAt, Seek, SetFlags, Size, Sync, Truncate, Write, WriteAt};
    let max = i64::MAX;
    let far = max as u64;
    let mut steps = vec![
        Read(10),
        Write(b"hello, world"),
        Read(10),
        Seek(0, libc::SEEK_SET),
        Read(5),
        Seek(2, libc::SEEK_CUR),
        Read(100),
        Read(100),
        Read(0),
        Write(b""),
        ReadAt(7, 3),
        ReadAt(12, 3),
        ReadAt(1000, 3),
        ReadAt(far, 1),
        ReadAt(far - 1, 1),
        ReadAt(far + 1, 1),
        WriteAt(far, b"x"),
        WriteAt(far + 1, b"x"),
        WriteAt(5, b"-"),
        WriteAt(20, b"beyond"),
        Size,
        Seek(0, libc::SEEK_CUR),
        Seek(-3, libc::SEEK_END),
        Read(10),
        Seek(-100, libc::SEEK_END),
        Seek(-1, libc::SEEK_SET),
        Seek(-1000, libc::SEEK_CUR),
        Seek(max, libc::SEEK_END),
        Seek(max, libc::SEEK_CUR),
        Seek(0, 99),
        Seek(-1, libc::SEEK_DATA),
        Seek(max, libc::SEEK_DATA),
        Seek(max, libc::SEEK_HOLE),
        Seek(3, libc::SEEK_DATA),
        Seek(3, libc::SEEK_HOLE),
        Seek(0, libc::SEEK_CUR),
        Seek(4, libc::SEEK_SET),
        Write(b"****"),
        ReadAt(0, 100),
        Truncate(6),
        Size,
        Truncate(-1),
        Seek(0, libc::SEEK_CUR),
        Read(10),
        Write(b"tail"),
        ReadAt(0, 100),
        Truncate(40),
        Size,
        Allocate(0, 0, 50),
        Size,
        Allocate(0, 0, 0),
        Allocate(0, -1, 5),
        Allocate(0, 5, -1),
        Allocate(0, max, 5),
        Allocate(1 << 20, 0, 5),
        Allocate(libc::FALLOC_FL_PUNCH_HOLE, 0, 5),
        Allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 3),
        ReadAt(0, 100),
        Allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 5000),
        Size,
        Sync,
        SetFlags(libc::O_APPEND),
        Seek(0, libc::SEEK_SET),
        Write(b"end"),
        Seek(0, libc::SEEK_CUR),
        WriteAt(0, b"END"),
        Seek(0, libc::SEEK_CUR),
        Size,
        SetFlags(0),
        WriteAt(0, b"start"),
        ReadAt(0, 100),
        Truncate(0),
        Size,
        Seek(0, libc::SEEK_END),
    ];
    // In pieces that straddle what came before.
    steps.extend((0..50).map(|turn| WriteAt(turn * 37 % 500, b"0123456789abcdef")));
    steps.push(ReadAt(0, 2000));
    steps
}

#[test]
fn every_operation_answers_as_on_a_native_file() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let native = tempfile::tempdir().unwrap();
    for flags in [
        libc::O_RDWR,
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR | libc::O_APPEND,
        libc::O_WRONLY | libc::O_APPEND,
        libc::O_RDWR | libc::O_SYNC,
    ] {
        let path = native.path().join("file");
        std::fs::write(&path, b"what was there").unwrap();
        let here = OpenOptions::new()
            .read(flags & libc::O_ACCMODE != libc::O_WRONLY)
            .write(flags & libc::O_ACCMODE != libc::O_RDONLY)
            .custom_flags(flags & !libc::O_ACCMODE)
            .open(&path)
            .unwrap();
        std::fs::write(mount.path().join("file"), b"what was there").unwrap();
        let there = open(&client, "file", flags);
        for (index, step) in steps().into_iter().enumerate() {
            let (native, bypass) = (step.native(&here), step.bypass(&there));
            assert_eq!(bypass, native, "step {index} with {flags:#o}: {step:?}");
        }
        assert_eq!(memory.contents("file"), std::fs::read(&path).unwrap());
        there.close().unwrap();
        assert_eq!(there.read(1), Err(libc::EBADF));
        assert_eq!(there.close(), Err(libc::EBADF));
    }
    assert!(memory.syncs.load(Ordering::SeqCst) >= 6);
    mount.end();
    assert_eq!(memory.open_handles(), 0);
    memory.assert_sound();
}

#[test]
fn attributes_of_an_open_file_are_seen_and_changed_though_it_has_no_name() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    assert_eq!(
        try_open(&client, "file", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o644).err(),
        Some(Outcome::Errno(libc::EEXIST))
    );
    std::fs::remove_file(mount.path().join("file")).unwrap();
    assert_eq!(try_open(&client, "file", libc::O_RDONLY, 0).err(), Some(Outcome::Errno(libc::ENOENT)));
    file.write(b"1234").unwrap();
    let by_file = Request { flags: BY_FILE, ..Request::default() };
    file.ask(Op::Chmod, Request { mode: 0o640, ..by_file }, b"", b"").unwrap();
    file.ask(Op::Chown, Request { uid: 7, gid: 8, ..by_file }, b"", b"").unwrap();
    let times = [Time { sec: 1, nsec: 2 }, Time { sec: 3, nsec: 4 }];
    file.ask(Op::Utimens, Request { times, ..by_file }, b"", b"").unwrap();
    let attr = file.stat();
    assert_eq!((attr.mode & 0o7777, attr.uid, attr.gid, attr.nlink, attr.size), (0o640, 7, 8, 0, 4));
    assert_eq!(attr.times[..2], times);
    let statfs = Request { base: file.number, ..by_file };
    assert_eq!(outcome(client.call(Op::Statfs, &statfs, b"", b"")).unwrap().reply.to_statfs().blocks, 1000);
    file.close().unwrap();
    eventually("nothing is left of it", || memory.nodes() == 0 && memory.open_handles() == 0);
    mount.end();
    memory.assert_sound();
}

#[test]
fn extended_attributes_of_an_open_file_are_those_of_its_names() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT);
    let by_file = Request { flags: BY_FILE, ..Request::default() };
    let get = |name: &[u8], size| file.ask(Op::Getxattr, Request { size, ..by_file }, name, b"");
    let set = |name: &[u8], value: &[u8], how: i32| {
        let request = Request { mode: value.len() as u32, size: how as u64, ..by_file };
        file.ask(Op::Setxattr, request, name, value).map(drop)
    };
    assert_eq!(get(b"user.one", 100), Err(libc::ENODATA));
    set(b"user.one", b"value", 0).unwrap();
    assert_eq!(set(b"user.one", b"other", libc::XATTR_CREATE), Err(libc::EEXIST));
    assert_eq!(set(b"user.two", b"other", libc::XATTR_REPLACE), Err(libc::ENODATA));
    assert_eq!(set(b"user.one", b"", 8), Err(libc::EINVAL));
    assert_eq!(get(b"user.one", 100).unwrap().1, b"value");
    assert_eq!(get(b"user.one", 2), Err(libc::ERANGE));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(mount.path().join("file"), "user.one", &mut value).unwrap();
    assert_eq!(&value[..len], b"value", "the kernel's road sees it");
    let list = file.ask(Op::Listxattr, Request { size: 100, ..by_file }, b"", b"").unwrap().1;
    assert_eq!(list, b"user.one\0");
    file.ask(Op::Removexattr, by_file, b"user.one", b"").unwrap();
    assert_eq!(file.ask(Op::Removexattr, by_file, b"user.one", b""), Err(libc::ENODATA));
    let others = Request { base: file.number, mode: 1, ..by_file };
    let call = client.call_with(Op::Setxattr, &others, b"", b"trusted.one", |data| data.append(b"x"));
    assert_eq!(call.unwrap().reply.outcome(), Outcome::Kernel(Fallback::KernelByChoice));
    file.close().unwrap();
    mount.end();
}

#[test]
fn each_open_has_an_offset_of_its_own() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let (one, two) = (mount.client(), mount.client());
    let first = open(&one, "file", libc::O_RDWR | libc::O_CREAT);
    first.write(b"abcdef").unwrap();
    let second = open(&one, "file", libc::O_RDONLY);
    let third = open(&two, "file", libc::O_RDWR);
    assert_eq!(second.read(2).unwrap(), b"ab");
    assert_eq!(third.read(3).unwrap(), b"abc");
    assert_eq!(second.read(2).unwrap(), b"cd");
    third.write(b"DEF").unwrap();
    assert_eq!(second.read(2).unwrap(), b"EF");
    // One client's numbers are not another's.
    let stolen = Virtual { client: &two, number: 1000, flags: 0 };
    assert_eq!(stolen.read(1), Err(libc::EBADF));
    mount.end();
    memory.assert_sound();
}

#[test]
fn threads_that_share_an_offset_read_every_byte_once() {
    const LEN: usize = 40_000;
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let content: Vec<u8> = (0..LEN).flat_map(|index| (index as u32).to_ne_bytes()).collect();
    std::fs::write(mount.path().join("file"), content).unwrap();
    let file = open(&client, "file", libc::O_RDONLY);
    let mut seen: Vec<u32> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    loop {
                        let bytes = file.read(64).unwrap();
                        if bytes.is_empty() {
                            return seen;
                        }
                        let words =
                            bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
                        seen.extend(words);
                    }
                })
            })
            .collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..LEN as u32));
    mount.end();
}

#[test]
fn closing_says_what_the_file_system_says_and_releases_once() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT);
    memory.full_at_flush.store(true, Ordering::SeqCst);
    assert_eq!(file.close(), Err(libc::EDQUOT));
    assert_eq!(memory.open_handles(), 0, "it is closed even so");
    memory.assert_sound();
    mount.end();
}

#[test]
fn a_client_that_goes_leaves_no_file_open_and_keeps_nobody_waiting() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let (going, staying) = (mount.client(), mount.client());
    for index in 0..100 {
        open(&going, &format!("file{index}"), libc::O_RDWR | libc::O_CREAT);
    }
    assert_eq!(memory.open_handles(), 100);
    memory.hold_flush.store(true, Ordering::SeqCst);
    drop(going);
    // Nothing of the dead client's is released before the file system goes on.
    for _ in 0..100 {
        let file = open(&staying, "file0", libc::O_RDWR);
        file.write(b"x").unwrap();
    }
    drop(mount.client());
    assert_eq!(memory.open_handles(), 200, "others are served meanwhile");
    memory.hold_flush.store(false, Ordering::SeqCst);
    eventually("the dead client's files are released", || memory.open_handles() == 100);
    drop(staying);
    eventually("all are released", || memory.open_handles() == 0);
    assert_eq!(memory.flushes(), vec![1; 200], "each was closed once");
    mount.end();
    memory.assert_sound();
}

#[test]
fn an_unmount_releases_what_clients_have_open() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    for index in 0..20 {
        open(&client, &format!("file{index}"), libc::O_RDWR | libc::O_CREAT);
    }
    let asked = open(&client, "file1", libc::O_RDWR);
    asked.promote().unwrap();
    mount.end();
    assert_eq!(memory.open_handles(), 0);
    memory.assert_sound();
}

#[test]
fn a_client_cannot_have_files_without_end() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    std::fs::write(mount.path().join("file"), b"x").unwrap();
    let mut last = open(&client, "file", libc::O_RDONLY);
    let mut count = 1;
    let refusal = loop {
        match try_open(&client, "file", libc::O_RDONLY, 0) {
            Ok(file) => last = file,
            Err(refusal) => break refusal,
        }
        count += 1;
        assert!(count <= 100_000);
    };
    assert!(matches!(refusal, Outcome::Kernel(_)) && count >= 10_000, "{refusal:?} after {count}");
    last.close().unwrap();
    open(&client, "file", libc::O_RDONLY);
    drop(client);
    eventually("all are released", || memory.open_handles() == 0);
    mount.end();
    memory.assert_sound();
}

// --- promotion ---

/// Opens in every way, promotes, and looks at what came of it. As the calling thread's user.
fn promotes_all_kinds(memory: &Memory, mount: &Mount, client: &Client, prefix: &str) {
    let name = |what: &str| format!("{prefix}-{what}");
    let path = |what: &str| mount.path().join(name(what));

    // Read and written at an offset.
    let file = open(client, &name("plain"), libc::O_RDWR | libc::O_CREAT);
    file.write(b"0123456789").unwrap();
    file.seek(4, libc::SEEK_SET).unwrap();
    let mut promoted = file.promoted(mount.path(), libc::O_RDWR).unwrap();
    let mut two = [0; 2];
    promoted.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"45");
    promoted.write_all(b"xy").unwrap();
    assert_eq!(std::fs::read(path("plain")).unwrap(), b"012345xy89");
    assert_eq!(promoted.metadata().unwrap().ino(), std::fs::metadata(path("plain")).unwrap().ino());
    assert_eq!(file.read(1), Err(libc::EBADF), "the number is the kernel's no more ours");
    assert_eq!(file.promote().err(), Some(libc::EBADF));
    drop(promoted);

    // Without a name.
    let file = open(client, &name("gone"), libc::O_RDWR | libc::O_CREAT);
    file.write(b"unlinked").unwrap();
    std::fs::remove_file(path("gone")).unwrap();
    let mut promoted = file.promoted(mount.path(), libc::O_RDWR).unwrap();
    promoted.rewind().unwrap();
    let mut text = String::new();
    promoted.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), promoted.metadata().unwrap().nlink()), ("unlinked", 0));
    let before = memory.nodes();
    drop(promoted);
    eventually("the file without a name is gone", || memory.nodes() == before - 1);

    // Created so that nobody may open it for writing again.
    let file =
        try_open(client, &name("sealed"), libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o444).ok().unwrap();
    let mut promoted = file.promoted(mount.path(), libc::O_RDWR).unwrap();
    promoted.write_all(b"sealed").unwrap();
    drop(promoted);
    assert_eq!(std::fs::read(path("sealed")).unwrap(), b"sealed");

    // Read-only, and for nobody any more.
    let file = open(client, &name("sealed"), libc::O_RDONLY);
    std::fs::set_permissions(path("sealed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (token, _) = file.promote().unwrap();
    for flags in [libc::O_RDWR, libc::O_WRONLY] {
        let refused = open_hidden(client, mount.path(), &token, flags);
        assert_eq!(errno_of(refused), libc::EACCES, "more than it was opened for");
    }
    let mut promoted = file.promoted(mount.path(), libc::O_RDONLY).unwrap();
    let mut text = String::new();
    promoted.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), errno_of(promoted.write(b"x"))), ("sealed", libc::EBADF));
    let again = open_hidden(client, mount.path(), &token, libc::O_RDONLY);
    assert_eq!(errno_of(again), libc::EACCES, "a name is good once");
    drop(promoted);

    // Appended to.
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let file = open(client, &name("log"), flags | libc::O_CREAT);
    file.write(b"one ").unwrap();
    let mut promoted = file.promoted(mount.path(), flags).unwrap();
    let other = open(client, &name("log"), flags);
    promoted.write_all(b"two ").unwrap();
    other.write(b"three ").unwrap();
    promoted.write_all(b"four").unwrap();
    assert_eq!(std::fs::read(path("log")).unwrap(), b"one two three four");
    other.close().unwrap();
}

#[test]
fn any_open_file_becomes_the_kernels_with_its_offset_and_nothing_checked_again() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    promotes_all_kinds(&memory, &mount, &client, "root");
    // A thread of another user: credentials belong to threads.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (uid, gid) = (65534 as libc::uid_t, 65534 as libc::gid_t);
            // SAFETY: changes the credentials of this thread, and no memory.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, gid, gid, gid), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, uid, uid, uid), 0);
            }
            let own = mount.client();
            promotes_all_kinds(&memory, &mount, &own, "user");
        });
    });
    drop(client);
    eventually("all are released", || memory.open_handles() == 0);
    mount.end();
    memory.assert_sound();
}

#[test]
fn the_hidden_directory_shows_nothing_and_lets_nobody_do_anything_else() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let directory = mount.path().join(hidden(&client));
    assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 0, "in no listing");
    assert_eq!(std::fs::metadata(&directory).unwrap().mode(), libc::S_IFDIR | 0o1777);
    assert_eq!(errno_of(std::fs::read_dir(&directory)), libc::EACCES);
    let placeholder = directory.join(PLACEHOLDER);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&placeholder).unwrap();
    assert_eq!(errno_of((&file).read(&mut [0])), libc::EBADF);
    assert_eq!(file.metadata().unwrap().mode(), libc::S_IFREG);
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_CREAT] {
        let refused = open_hidden(&client, mount.path(), PLACEHOLDER, flags);
        assert_eq!(errno_of(refused), libc::EACCES);
    }
    assert_eq!(errno_of(open_hidden(&client, mount.path(), &"0".repeat(32), libc::O_RDWR)), libc::EACCES);
    let other = directory.join("other");
    assert_eq!(errno_of(std::fs::create_dir(&other)), libc::EPERM);
    assert_eq!(errno_of(std::os::unix::fs::symlink("x", &other)), libc::EPERM);
    assert_eq!(errno_of(std::fs::remove_file(&placeholder)), libc::EPERM);
    assert_eq!(errno_of(std::fs::rename(&placeholder, mount.path().join("mine"))), libc::EPERM);
    assert_eq!(errno_of(std::fs::hard_link(&placeholder, mount.path().join("mine"))), libc::EPERM);
    assert_eq!(
        errno_of(std::fs::set_permissions(&placeholder, std::fs::Permissions::from_mode(0o777))),
        libc::EPERM
    );
    assert_eq!(errno_of(std::fs::remove_dir(&directory)), libc::EPERM);
    std::fs::write(mount.path().join("mine"), b"").unwrap();
    let name = hidden(&client);
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    let root = File::open(mount.path()).unwrap();
    let renamed = rustix::fs::renameat_with(&root, "mine", &root, name.as_str(), flags);
    assert_eq!(renamed.unwrap_err().raw_os_error(), libc::EPERM);
    drop((root, file));
    mount.end();
}

#[test]
fn a_file_system_that_cannot_create_can_promote_even_so() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    memory.cannot_create.store(true, Ordering::SeqCst);
    let path = |name: &str| mount.path().join(name);
    // By `mknod` and `open`, as the kernel does when it has been told.
    for name in ["one", "two"] {
        std::fs::write(path(name), b"made").unwrap();
    }
    let create = Request { base: ROOT, flags: (libc::O_RDWR | libc::O_CREAT) as u32, ..Request::default() };
    let call = client.call(Op::Open, &create, b"three", b"").unwrap();
    assert_eq!(call.reply.outcome(), Outcome::Kernel(Fallback::NotImplemented));
    drop(call);
    memory.cannot_make.store(true, Ordering::SeqCst);
    for name in ["four", "five"] {
        std::fs::write(path(name), b"not made").unwrap_err();
    }
    let file = open(&client, "one", libc::O_RDWR);
    let mut promoted = file.promoted(mount.path(), libc::O_RDWR).unwrap();
    let mut text = String::new();
    promoted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "made");
    drop((promoted, client));
    eventually("all are released", || memory.open_handles() == 0);
    mount.end();
    memory.assert_sound();
}

#[test]
fn a_file_that_another_makes_between_lookup_and_creation_is_opened_like_any_other() {
    for cannot_create in [false, true] {
        let memory = Memory::new();
        memory.cannot_create.store(cannot_create, Ordering::SeqCst);
        let mount = Mount::new(Fs(memory.clone()));
        let client = mount.client();
        let path = mount.path().join("file");
        std::fs::write(&path, b"made").unwrap();
        let late = || memory.late.store(true, Ordering::SeqCst);
        let create = || File::options().read(true).write(true).create(true).clone();
        late();
        let mut text = String::new();
        create().open(&path).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "made");
        late();
        assert_eq!(errno_of(create().create_new(true).open(&path)), libc::EEXIST);
        if !cannot_create {
            late();
            let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT);
            assert_eq!(file.read(10).unwrap(), b"made");
            late();
            let exclusive = try_open(&client, "file", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o644);
            assert_eq!(exclusive.err(), Some(Outcome::Errno(libc::EEXIST)));
        }
        drop(client);
        mount.end();
        memory.assert_sound();
    }
}

#[test]
fn a_name_asked_for_twice_is_the_same_and_ends_with_the_file() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT);
    let (name, _) = file.promote().unwrap();
    file.write(b"it lives on until then").unwrap();
    assert_eq!(file.promote().unwrap(), (name.clone(), 22));
    file.close().unwrap();
    assert_eq!(errno_of(open_hidden(&client, mount.path(), &name, libc::O_RDWR)), libc::EACCES);
    let file = open(&client, "file", libc::O_RDWR);
    let (name, _) = file.promote().unwrap();
    drop(client);
    eventually("it is released", || memory.open_handles() == 0);
    let client = mount.client();
    assert_eq!(errno_of(open_hidden(&client, mount.path(), &name, libc::O_RDWR)), libc::EACCES);
    drop(client);
    mount.end();
    memory.assert_sound();
}

#[test]
fn a_promotion_raced_by_the_clients_end_releases_the_file_once() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let (mut won, mut lost) = (0, 0);
    for turn in 0..200 {
        let client = mount.client();
        let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT);
        let (name, _) = file.promote().unwrap();
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| open_hidden(&client, mount.path(), &name, libc::O_RDWR));
            if turn % 2 == 0 {
                std::thread::yield_now();
            }
            rustix::net::shutdown(client.as_fd(), rustix::net::Shutdown::Both).unwrap();
            opening.join().unwrap()
        });
        match opened {
            Ok(file) => {
                won += 1;
                file.write_all_at(b"mine", 0).unwrap();
            }
            Err(error) => {
                lost += 1;
                assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            }
        }
    }
    eprintln!("{won} promotions came first, {lost} came too late");
    eventually("all are released", || memory.open_handles() == 0);
    mount.end();
    memory.assert_sound();
}

// --- both roads ---

#[test]
fn what_one_road_writes_the_other_reads() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let path = mount.path().join("file");
    std::fs::write(&path, vec![b'.'; 10_000]).unwrap();
    let cached = File::open(&path).unwrap();
    let byte = |file: &File, at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        byte[0]
    };
    assert_eq!(byte(&cached, 5000), b'.');
    let here = open(&client, "file", libc::O_RDWR);
    let there = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for turn in b'a'..=b'z' {
        here.write_at(5000, &[turn]).unwrap();
        assert_eq!((byte(&cached, 5000), byte(&there, 5000)), (turn, turn));
        there.write_all_at(&[turn], 5001).unwrap();
        assert_eq!(here.read_at(5000, 2).unwrap(), [turn, turn]);
        here.truncate(5001).unwrap();
        assert_eq!(there.metadata().unwrap().len(), 5001);
        assert_eq!(cached.read_at(&mut [0; 9], 5001).unwrap(), 0);
        there.set_len(9000).unwrap();
        assert_eq!((here.stat().size, here.seek(0, libc::SEEK_END)), (9000, Ok(9000)));
        assert_eq!(byte(&cached, 8000), 0);
    }
    drop((cached, there));
    mount.end();
}

struct Map(*mut u8);

impl Map {
    fn new(file: &File, writes: bool) -> Self {
        let protection = libc::PROT_READ | if writes { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping, where the kernel likes.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(map.cast())
    }

    fn get(&self, at: usize) -> u8 {
        assert!(at < 4096);
        // SAFETY: within the mapping, and within the file.
        unsafe { self.0.add(at).read_volatile() }
    }

    fn set(&self, at: usize, byte: u8) {
        assert!(at < 4096);
        // SAFETY: within the mapping, and within the file.
        unsafe { self.0.add(at).write_volatile(byte) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

#[test]
fn mappings_show_what_the_bypass_writes_and_the_other_way_round() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let path = mount.path().join("file");
    std::fs::write(&path, vec![b'.'; 4096]).unwrap();
    let here = open(&client, "file", libc::O_RDWR);
    let there = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let (writer, reader) = (Map::new(&there, true), Map::new(&File::open(&path).unwrap(), false));
    for turn in b'a'..=b'z' {
        writer.set(10, turn);
        assert_eq!(here.read_at(10, 1).unwrap(), [turn], "no msync, no close");
        here.write_at(11, &[turn]).unwrap();
        assert_eq!((writer.get(11), reader.get(11)), (turn, turn));
        assert_eq!((writer.get(10), reader.get(10)), (turn, turn), "the bypass lost nothing of the page");
    }
    // What was promoted is mapped like any other.
    let other = open(&client, "file", libc::O_RDONLY);
    let promoted = here.promoted(mount.path(), libc::O_RDWR).unwrap();
    let map = Map::new(&promoted, true);
    map.set(20, b'!');
    assert_eq!((writer.get(20), other.read_at(20, 1).unwrap()), (b'!', vec![b'!']));
    // What a mapping has changed is not written out behind the back of a truncation.
    let file = open(&client, "file", libc::O_RDWR);
    writer.set(3000, b'!');
    file.truncate(100).unwrap();
    file.truncate(4096).unwrap();
    assert_eq!(file.read_at(2999, 3).unwrap(), [0; 3]);
    drop((map, writer, reader, promoted, there));
    mount.end();
    memory.assert_sound();
}

#[test]
fn a_file_that_the_kernel_may_have_unwritten_pages_of_is_left_to_it() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let path = mount.path().join("file");
    let there = File::create(&path).unwrap();
    for flags in [libc::O_RDONLY, libc::O_RDWR] {
        let refused = try_open(&client, "file", flags, 0).err();
        assert_eq!(refused, Some(Outcome::Kernel(Fallback::KernelHasItOpen)));
    }
    let truncate = Request { base: ROOT, ..Request::default() };
    let call = client.call(Op::Truncate, &truncate, b"file", b"").unwrap();
    assert_eq!(call.reply.outcome(), Outcome::Kernel(Fallback::KernelHasItOpen));
    drop(call);
    drop(there);
    // The kernel tells of a close a little later.
    eventually("it is the bypass' again", || try_open(&client, "file", libc::O_RDWR, 0).is_ok());
    assert_eq!(memory.open_handles(), 1, "what was refused was not opened");
    mount.end();
}

#[test]
fn a_file_that_the_kernel_opens_while_a_client_creates_it_is_one_and_the_same() {
    for promises_grants in [false, true] {
        let memory = Memory::new();
        memory.promises_grants.store(promises_grants, Ordering::SeqCst);
        let mount = Mount::new(Fs(memory.clone()));
        let path = mount.path().join("new");
        let client = mount.client();
        memory.hold_create.store(true, Ordering::SeqCst);
        let exclusively = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        std::thread::scope(|scope| {
            let creator = scope.spawn(|| try_open(&client, "new", exclusively, 0o644));
            eventually("it is made", || memory.nodes() == 1);
            // For writing, through the page cache, if nobody stood against it.
            let kernel =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
            kernel.write_all_at(b"kernel", 0).unwrap();
            memory.hold_create.store(false, Ordering::SeqCst);
            let file = creator.join().unwrap().expect("it is opened, and not taken back");
            assert_eq!(file.read_at(0, 100).unwrap(), b"kernel");
            file.write_at(6, b" client").unwrap();
            let mut text = [0; 20];
            assert_eq!(kernel.read_at(&mut text, 0).unwrap(), 13);
            assert_eq!(&text[..13], b"kernel client");
            file.close().unwrap();
        });
        assert_eq!(memory.contents("new"), b"kernel client");
        // Nothing is reserved any more: the kernel may read and write it as it likes, unless it counts as granted.
        eventually("the page cache serves it", || {
            let kernel = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            kernel.write_all_at(b"K", 0).unwrap();
            let refused = try_open(&client, "new", libc::O_RDWR, 0).err();
            promises_grants || matches!(refused, Some(Outcome::Kernel(Fallback::KernelHasItOpen)))
        });
        mount.end();
    }
}

#[test]
fn what_is_created_and_must_be_the_kernels_is_promoted_and_not_taken_back() {
    let memory = Memory::new();
    memory.promises_grants.store(true, Ordering::SeqCst);
    let mount = Mount::new(Fs(memory.clone()));
    let client = mount.client();
    let exclusively = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    for (name, flags, base2, streams) in [
        ("wanted", exclusively, NOT_VIRTUAL, false),
        ("direct", exclusively | libc::O_DIRECT, 0, false),
        ("stream", exclusively, 0, true),
        ("ordinary", exclusively, 0, false),
    ] {
        memory.creates_streams.store(streams, Ordering::SeqCst);
        let request = Request { base: ROOT, base2, flags: flags as u32, mode: 0o644, ..Request::default() };
        let call = outcome(client.call(Op::Open, &request, name.as_bytes(), b"")).unwrap_or_else(|other| {
            panic!("{name}: {other:?}");
        });
        let kernels = if name == "ordinary" { 0 } else { REPLY_KERNELS };
        assert_eq!(call.reply.flags & (REPLY_VIRTUAL | REPLY_KERNELS), REPLY_VIRTUAL | kernels, "{name}");
        let file = Virtual { client: &client, number: call.reply.file().into(), flags: call.reply.flags };
        drop(call);
        let (token, offset) = file.promote().unwrap();
        let mut promoted = open_hidden(&client, mount.path(), &token, flags).unwrap();
        assert_eq!(offset, 0);
        assert_eq!(promoted.stream_position().is_err(), streams, "{name}");
        promoted.write_all(&[7; 4096]).unwrap();
        assert_eq!(memory.contents(name).len(), 4096);
    }
    mount.end();
}

#[test]
fn who_opens_a_file_while_the_kernel_appends_to_it_appends_behind() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let path = mount.path().join("log");
    let client = mount.client();
    open(&client, "log", libc::O_RDWR | libc::O_CREAT).close().unwrap();
    let mut kernel = OpenOptions::new().append(true).open(&path).unwrap();
    memory.hold_writes.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| kernel.write_all(b"kernel|").unwrap());
        eventually("the kernel's write is under way", || memory.writes.load(Ordering::SeqCst) == 1);
        // Nobody had the file open on the bypass when it began.
        scope.spawn(|| open(&client, "log", libc::O_WRONLY | libc::O_APPEND).write(b"client").unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        let begun = memory.writes.load(Ordering::SeqCst);
        // Before anything can fail, or the threads would never end.
        memory.hold_writes.store(false, Ordering::SeqCst);
        assert_eq!(begun, 1, "it waits for its turn");
    });
    assert_eq!(memory.contents("log"), b"kernel|client");
    drop(kernel);
    mount.end();
}

#[test]
fn writers_on_both_roads_append_without_overwriting_each_other() {
    const RECORDS: usize = 500;
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let path = mount.path().join("log");
    let record = |who: char, index: usize| format!("{who}{index:06}|");
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let (one, two) = (mount.client(), mount.client());
    open(&one, "log", libc::O_RDWR | libc::O_CREAT).close().unwrap();
    // One that the kernel has, one of each client, and one that is promoted.
    let mut kernel = OpenOptions::new().append(true).open(&path).unwrap();
    let mut promoted = open(&one, "log", flags).promoted(mount.path(), flags).unwrap();
    let clients = [('a', &one), ('b', &two)];
    std::thread::scope(|scope| {
        for (who, client) in clients {
            scope.spawn(move || {
                let file = open(client, "log", flags);
                for index in 0..RECORDS {
                    assert_eq!(file.write(record(who, index).as_bytes()), Ok(8));
                    assert!(file.seek(0, libc::SEEK_CUR).unwrap() >= 8 * (index as u64 + 1));
                }
                file.close().unwrap();
            });
        }
        for (who, file) in [('k', &mut kernel), ('p', &mut promoted)] {
            scope.spawn(move || {
                for index in 0..RECORDS {
                    file.write_all(record(who, index).as_bytes()).unwrap();
                }
            });
        }
    });
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.len(), 4 * RECORDS * 8);
    for who in ['a', 'b', 'k', 'p'] {
        let own: String = text.split_inclusive('|').filter(|record| record.starts_with(who)).collect();
        let expected: String = (0..RECORDS).map(|index| record(who, index)).collect();
        assert_eq!(own, expected, "{who}");
    }
    // The kernel finds the end even when nobody has the file open virtually any more.
    let late = open(&one, "log", flags);
    late.write(b"late").unwrap();
    late.close().unwrap();
    kernel.write_all(b"last").unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("|latelast"));
    drop((kernel, promoted));
    mount.end();
}

#[test]
fn writing_takes_privileges_away_unless_the_writer_may_keep_them() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let path = mount.path().join("program");
    std::fs::write(&path, b"#!/bin/sh\n").unwrap();
    let give = || {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o6777)).unwrap();
        memory.set_xattr("program", "security.capability", b"x");
    };
    let mode = || std::fs::metadata(&path).unwrap().mode() & 0o7777;
    let root = mount.client();
    let change_all_ways = |client: &Client, kept: u32| {
        let file = open(client, "program", libc::O_RDWR);
        let changes: [(&str, &dyn Fn()); 5] = [
            ("write", &|| assert_eq!(file.write(b"x"), Ok(1))),
            ("write again", &|| assert_eq!(file.write(b"x"), Ok(1))),
            ("truncate", &|| file.truncate(5).unwrap()),
            ("allocate", &|| file.allocate(0, 0, 50).unwrap()),
            ("open", &|| open(client, "program", libc::O_RDWR | libc::O_TRUNC).close().unwrap()),
        ];
        for (what, change) in changes {
            give();
            change();
            assert_eq!(mode(), kept, "{what}");
            assert_eq!(memory.xattrs("program"), Vec::<String>::new(), "{what}");
        }
        give();
        assert_eq!(file.write(b""), Ok(0));
        assert_eq!(mode(), 0o6777, "nothing was written");
        file.close().unwrap();
    };
    change_all_ways(&root, 0o6777);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (uid, none) = (65534 as libc::uid_t, u32::MAX);
            // SAFETY: changes the credentials of this thread, and no memory. The saved and real user stay root's.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setresuid, none, uid, none), 0);
            }
            let user = mount.client();
            // SAFETY: as above.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setresuid, none, 0, none), 0);
            }
            change_all_ways(&user, 0o777);
        });
    });
    mount.end();
}

#[test]
fn permissions_are_checked_when_a_file_is_opened_and_not_later() {
    let memory = Memory::new();
    let mount = Mount::new(Fs(memory.clone()));
    let path = mount.path().join("secret");
    std::fs::write(&path, b"secret").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: changes the credentials of this thread, and no memory.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setresuid, u32::MAX, 65534, u32::MAX), 0);
            }
            let user = mount.client();
            // SAFETY: as above.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setresuid, u32::MAX, 0, u32::MAX), 0);
            }
            for flags in [libc::O_RDWR, libc::O_WRONLY, libc::O_WRONLY | libc::O_TRUNC] {
                let refused = try_open(&user, "secret", flags, 0).err();
                assert_eq!(refused, Some(Outcome::Errno(libc::EACCES)));
            }
            let file = open(&user, "secret", libc::O_RDONLY);
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
            assert_eq!(file.read(10).unwrap(), b"secret");
            let refused = try_open(&user, "secret", libc::O_RDONLY, 0).err();
            assert_eq!(refused, Some(Outcome::Errno(libc::EACCES)));
            let chmod = Request { base: file.number, mode: 0o777, flags: BY_FILE, ..Request::default() };
            let call = user.call(Op::Chmod, &chmod, b"", b"").unwrap();
            assert_eq!(call.reply.outcome(), Outcome::Errno(libc::EPERM));
        });
    });
    assert_eq!(memory.contents("secret"), b"secret");
    mount.end();
}

// --- the passthrough file system ---

fn passthrough(grants: Grants) -> (tempfile::TempDir, Mount) {
    let source = tempfile::tempdir().unwrap();
    std::fs::set_permissions(source.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut options = Options::default();
    options.grants = grants;
    let fs = PassthroughFs::new(source.path(), options).unwrap();
    (source, Mount::new(fs))
}

#[test]
fn a_grant_on_request_has_the_offset_and_the_flags_of_the_open_file() {
    let (source, mount) = passthrough(Grants::Large);
    let client = mount.client();
    assert!(client.welcome().backing_attrs);
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_APPEND] {
        let file = open(&client, "file", flags | libc::O_CREAT | libc::O_TRUNC);
        assert_ne!(file.flags & REPLY_GRANTABLE, 0);
        file.write(b"0123456789").unwrap();
        file.seek(3, libc::SEEK_SET).unwrap();
        // Whatever it was opened with.
        file.set_flags(libc::O_APPEND).unwrap();
        file.write(b"end").unwrap();
        file.set_flags(libc::O_NONBLOCK).unwrap();
        file.write_at(0, b"AB").unwrap();
        file.seek(3, libc::SEEK_SET).unwrap();
        let call =
            client.call(Op::Promote, &Request { base: file.number, ..Request::default() }, b"", b"").unwrap();
        assert_ne!(call.reply.flags & REPLY_GRANT, 0, "{:?}", call.reply.outcome());
        // A client that has no number for it goes on as before, and may ask again.
        drop(call.take_grant().unwrap());
        drop(call);
        assert_eq!(file.read(1).unwrap(), b"3");
        file.seek(3, libc::SEEK_SET).unwrap();
        let call =
            client.call(Op::Promote, &Request { base: file.number, ..Request::default() }, b"", b"").unwrap();
        let mut granted = File::from(call.take_grant().unwrap());
        drop(call);
        file.ask(Op::Promote, Request { mode: PROMOTED, ..Request::default() }, b"", b"").unwrap();
        let status = rustix::fs::fcntl_getfl(&granted).unwrap();
        let told = rustix::fs::OFlags::APPEND | rustix::fs::OFlags::NONBLOCK;
        assert_eq!(status & told, rustix::fs::OFlags::NONBLOCK);
        granted.write_all(b"xyz").unwrap();
        assert_eq!(std::fs::read(source.path().join("file")).unwrap(), b"AB2xyz6789end");
        assert_eq!(file.read(1), Err(libc::EBADF));
        let meta = std::fs::metadata(source.path().join("file")).unwrap();
        assert_eq!(granted.metadata().unwrap().ino(), meta.ino());
    }
    // Executed, it would not know of the mount's flags.
    std::fs::set_permissions(source.path().join("file"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let file = open(&client, "file", libc::O_RDONLY);
    let mut promoted = file.promoted(mount.path(), libc::O_RDONLY).unwrap();
    let mut text = String::new();
    promoted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "AB2xyz6789end");
    drop(promoted);
    mount.end();
}

#[test]
fn without_grants_the_source_is_read_and_written_all_the_same() {
    let (source, mount) = passthrough(Grants::Never);
    let client = mount.client();
    assert!(!client.welcome().backing_attrs);
    let file = open(&client, "file", libc::O_RDWR | libc::O_CREAT | libc::O_APPEND);
    assert_eq!(file.flags & REPLY_GRANTABLE, 0);
    file.write(b"0123456789").unwrap();
    std::fs::remove_file(source.path().join("file")).unwrap();
    let mut promoted = file.promoted(mount.path(), libc::O_RDWR | libc::O_APPEND).unwrap();
    promoted.write_all(b"abc").unwrap();
    promoted.rewind().unwrap();
    let mut text = String::new();
    promoted.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), promoted.metadata().unwrap().nlink()), ("0123456789abc", 0));
    drop(promoted);

    // Steps of the differential list that need no other file system than this one.
    let native = tempfile::tempdir_in(source.path().parent().unwrap()).unwrap();
    let here =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(native.path().join("n"));
    let (here, there) = (here.unwrap(), open(&client, "n", libc::O_RDWR | libc::O_CREAT));
    for (index, step) in steps().into_iter().enumerate() {
        let (native, bypass) = (step.native(&here), step.bypass(&there));
        assert_eq!(bypass, native, "step {index}: {step:?}");
    }
    there.close().unwrap();
    mount.end();
}

#[test]
fn the_kernel_serves_a_source_file_in_one_way_at_a_time() {
    // What is promoted of a file that cannot be granted, and the kernel's passthrough, on one inode.
    let (source, mount) = passthrough(Grants::Large);
    let client = mount.client();
    let path = mount.path().join("file");
    std::fs::write(source.path().join("file"), b"0123456789").unwrap();
    std::fs::set_permissions(source.path().join("file"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let text = |file: &File| {
        let mut bytes = [0; 10];
        file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes.into()).unwrap()
    };
    let kernel_first = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let refused = try_open(&client, "file", libc::O_RDWR, 0).err();
    assert_eq!(refused, Some(Outcome::Kernel(Fallback::KernelHasItOpen)));
    drop(kernel_first);
    let virtually = open(&client, "file", libc::O_RDWR);
    let kernel_between = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let promoted = virtually.promoted(mount.path(), libc::O_RDWR).unwrap();
    kernel_between.write_all_at(b"xy", 8).unwrap();
    let kernel_last = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    promoted.write_all_at(b"AB", 0).unwrap();
    kernel_last.write_all_at(b"CD", 2).unwrap();
    assert_eq!((text(&promoted), text(&kernel_last)), ("ABCD4567xy".into(), "ABCD4567xy".into()));
    assert_eq!(std::fs::read(source.path().join("file")).unwrap(), b"ABCD4567xy");
    drop((promoted, kernel_between, kernel_last));
    mount.end();
}
