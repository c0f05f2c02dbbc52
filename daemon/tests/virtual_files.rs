//! Open files that the daemon keeps for bypass clients: driven by `finesse_ipc::client` as the preload library does, and
//! by ordinary system calls on the same mount. Needs root and /dev/fuse.

#[allow(unreachable_pub, dead_code)]
mod memory;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::Ordering;

use finesse::passthrough::{Grants, Options, PassthroughFs};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{
    BY_FILE, Fallback, Op, Outcome, PROMOTED, REPLY_GRANT, REPLY_GRANTABLE, ROOT, Request, Time,
};
use finesse_ipc::handshake::PLACEHOLDER;
use memory::client::{Result, Virtual, hidden, open, open_hidden, outcome, try_open};
use memory::{Fs, Memory, Mount, eventually};

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
