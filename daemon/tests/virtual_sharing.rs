//! Files that bypass clients have open in the daemon and programs on the kernel road use at the same time. Needs root and
//! /dev/fuse.

#[allow(unreachable_pub, dead_code)]
mod memory;

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::atomic::Ordering;

use finesse_ipc::client::Client;
use finesse_ipc::frame::{
    BY_FILE, Fallback, NOT_VIRTUAL, Op, Outcome, REPLY_KERNELS, REPLY_VIRTUAL, ROOT, Request,
};
use memory::client::{Virtual, open, open_hidden, outcome, try_open};
use memory::map::Map;
use memory::{Fs, Memory, Mount, eventually};

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
