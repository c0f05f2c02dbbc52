//! The bypass on a real mount, driven by `finesse_ipc::client` as the preload library does.

#[allow(unreachable_pub)]
mod common;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use finesse_ipc::client::Client;
use finesse_ipc::frame::{Fallback, Op, Outcome, ROOT, Request};
use finesse_ipc::handshake::{self, Answer, Ask, MountStatus, SMALL_MESSAGE_MAX};
use finesse_ipc::ring;
use rustix::net::RecvFlags;

fn at_root() -> Request {
    Request { base: ROOT, ..Request::default() }
}

fn stat(client: &Client, name: &str) -> Outcome {
    client
        .call(Op::Stat, &at_root(), name.as_bytes(), b"")
        .map_or_else(Outcome::Kernel, |call| call.reply.outcome())
}

fn status(mount: &common::Mount) -> MountStatus {
    let socket = handshake::connect(&mount.socket()).unwrap();
    handshake::send(&socket, &Ask::Status, &[]).unwrap();
    let mut buffer = vec![0; handshake::MESSAGE_MAX];
    let (bytes, _) = handshake::receive(&socket, &mut buffer, RecvFlags::empty()).unwrap();
    match handshake::decode(bytes).unwrap() {
        Answer::Mount(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Waits for a condition that must come true, for at most ten seconds.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_round_trip_reaches_the_file_system() {
    let mount = common::hello("noop");
    let client = mount.client();
    for _ in 0..10_000 {
        let call = client.call(Op::Noop, &Request::default(), b"", b"").unwrap();
        assert_eq!(call.reply.outcome(), Outcome::Ok);
    }
    let call = client.call(Op::Stat, &at_root(), b"hello.txt", b"").unwrap();
    assert_eq!((call.reply.outcome(), call.reply.to_attr().size), (Outcome::Ok, 13));
    assert_eq!(stat(&client, "nothing"), Outcome::Errno(libc::ENOENT));
    assert_eq!(stat(&client, "hello.txt/x"), Outcome::Errno(libc::ENOTDIR));
    assert_eq!(stat(&client, "../x"), Outcome::Kernel(Fallback::LeavesMount));
}

#[test]
fn a_slow_operation_of_one_client_does_not_stall_another_nor_itself() {
    let mount = common::hello("slow");
    let (slow, quick) = (mount.client(), mount.client());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(stat(&slow, "slow"), Outcome::Errno(libc::ENOENT)));
        }
        // All eight are inside the file system: more than there are workers at the start.
        eventually("eight operations are under way", || {
            slow.segment().header().submitted.load(Ordering::SeqCst) == 0
        });
        let start = Instant::now();
        for client in [&quick, &slow] {
            for _ in 0..1000 {
                assert_eq!(stat(client, "hello.txt"), Outcome::Ok);
            }
        }
        assert!(start.elapsed() < common::SLOW / 2, "2000 operations took {:?}", start.elapsed());
    });
}

#[test]
fn many_threads_share_a_client() {
    let mount = common::hello("threads");
    let client = mount.client();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(stat(&client, "hello.txt"), Outcome::Ok);
                    assert_eq!(stat(&client, "nothing"), Outcome::Errno(libc::ENOENT));
                }
            });
        }
    });
}

#[test]
fn garbage_in_a_segment_ends_that_client_and_no_other() {
    let mount = common::hello("garbage");
    let honest = mount.client();
    // Frames and bitmaps from a fixed generator (xorshift), so that a failure can be repeated.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200 {
        let hostile = mount.client();
        let segment = hostile.segment();
        for _ in 0..50 {
            let slot = (random() % 64) as u32;
            let bytes: Vec<u8> = (0..512).flat_map(|_| random().to_ne_bytes()).collect();
            segment.write_path(slot, 0, &bytes);
            segment.write_path(slot, 1, &bytes);
            for word in segment.slot(slot).request_head.iter() {
                word.store(random(), Ordering::SeqCst);
            }
            segment.slot(slot).state.store(random() as u32, Ordering::SeqCst);
            let header = segment.header();
            header.submitted.store(random(), Ordering::SeqCst);
            if ring::submit(&*header.submitted, &header.notices.worker, slot) {
                rustix::io::write(hostile.bell(), &1u64.to_ne_bytes()).unwrap();
            }
        }
        eventually("the hostile client is disconnected", || hostile.is_closed());
        assert_eq!(stat(&hostile, "hello.txt"), Outcome::Kernel(Fallback::Disconnected));
        assert_eq!(stat(&honest, "hello.txt"), Outcome::Ok, "the daemon serves on");
    }
}

#[test]
fn valid_requests_with_random_arguments_harm_nobody() {
    let mount = common::hello("random");
    let (odd, honest) = (mount.client(), mount.client());
    let paths: [&[u8]; 9] =
        [b"", b".", b"..", b"hello.txt", b"hello.txt/", b"//", b"nothing/x", &[b'x'; 300], b"a\0b"];
    for op in Op::ALL.iter().filter(|op| **op != Op::ProveDir) {
        for (index, path) in paths.iter().enumerate() {
            for flags in [0, u32::MAX, 0x1000, 0x40, 0x241] {
                let request = Request { base: 1, base2: index as u64, flags, ..Request::default() };
                let call = odd.call(*op, &request, path, paths[paths.len() - 1 - index]);
                assert!(call.is_ok(), "{op:?} {path:?} {flags:#x}");
            }
        }
    }
    assert_eq!(stat(&honest, "hello.txt"), Outcome::Ok);
}

#[test]
fn only_proven_directories_are_bases() {
    let mount = common::hello("bases");
    let client = mount.client();
    let request = Request { base: 77, ..Request::default() };
    let call = client.call(Op::Stat, &request, b"hello.txt", b"").unwrap();
    assert_eq!(call.reply.outcome(), Outcome::Kernel(Fallback::UnknownBase));
    drop(call);
    let own = std::fs::File::open(mount.path()).unwrap();
    assert_eq!(client.prove(own.as_fd()), Ok(ROOT));
    let foreign = std::fs::File::open("/tmp").unwrap();
    assert_eq!(client.prove(foreign.as_fd()), Err(Fallback::UnknownBase));
}

#[test]
fn a_client_of_another_version_is_told_so() {
    let mount = common::hello("version");
    let socket = handshake::connect(&mount.socket()).unwrap();
    let mut message = [0; 64];
    let len = handshake::encode(&Ask::Attach { program: "old" }, &mut message).unwrap();
    message[4..8].copy_from_slice(&999u32.to_le_bytes());
    rustix::net::send(&socket, &message[..len], rustix::net::SendFlags::empty()).unwrap();
    let mut buffer = [0; SMALL_MESSAGE_MAX];
    let (bytes, _) = handshake::receive(&socket, &mut buffer, RecvFlags::empty()).unwrap();
    let answer = handshake::decode(bytes).unwrap();
    assert!(matches!(answer, Answer::Refused(handshake::Refusal::Version)), "{answer:?}");
}

/// A jump out of a call, by a signal handler, can leave the daemon asleep although nobody rings any more. Whoever waits
/// next notices, however often signals come.
#[test]
fn a_call_is_answered_although_another_did_not_ring_and_signals_never_cease() {
    extern "C" fn nothing(_: libc::c_int) {}
    let mount = common::hello("unrung");
    let client = mount.client();
    let notice = &client.segment().header().notices.worker;
    // SAFETY: the handler does nothing, and is installed with an empty mask and without `SA_RESTART`.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    for _ in 0..3 {
        eventually("the daemon sleeps", || notice.load(Ordering::SeqCst) == ring::ASLEEP);
        notice.store(ring::AWAKE, Ordering::SeqCst);
        // SAFETY: no preconditions.
        let waiting = unsafe { libc::pthread_self() };
        let answered = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let start = Instant::now();
                while !answered.load(Ordering::SeqCst) && start.elapsed() < Duration::from_secs(10) {
                    // SAFETY: the thread lives as long as the scope.
                    unsafe { libc::pthread_kill(waiting, libc::SIGUSR1) };
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let start = Instant::now();
            assert_eq!(stat(&client, "nothing"), Outcome::Errno(libc::ENOENT));
            answered.store(true, Ordering::SeqCst);
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        });
    }
}

#[test]
fn a_client_that_dies_in_the_middle_of_an_operation_leaves_nothing() {
    let mount = common::hello("death");
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let client = mount.client();
    std::thread::scope(|scope| {
        scope.spawn(|| stat(&client, "slow"));
        eventually("the operation is under way", || {
            client.segment().header().submitted.load(Ordering::SeqCst) == 0
        });
        rustix::net::shutdown(client.as_fd(), rustix::net::Shutdown::Both).unwrap();
    });
    drop(client);
    eventually("the client is forgotten", || status(&mount).clients == 0);
    eventually("its descriptors are closed", || {
        std::fs::read_dir("/proc/self/fd").unwrap().count() <= before
    });
}

#[test]
fn a_daemon_that_ends_under_a_waiting_client_sends_it_to_the_kernel() {
    let mut mount = common::hello("end");
    let client = mount.client();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let start = Instant::now();
            (stat(&client, "slow"), start.elapsed())
        });
        eventually("the operation is under way", || {
            client.segment().header().submitted.load(Ordering::SeqCst) == 0
        });
        mount.end();
        let (outcome, waited) = waiting.join().unwrap();
        assert!(matches!(outcome, Outcome::Kernel(Fallback::Disconnected) | Outcome::Errno(libc::ENOENT)));
        assert!(waited < common::SLOW + Duration::from_secs(1), "{waited:?}");
    });
    assert_eq!(stat(&client, "hello.txt"), Outcome::Kernel(Fallback::Disconnected));
}

#[test]
fn a_thousand_clients_come_and_go_and_leave_nothing() {
    let mount = common::hello("thousand");
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("finesse-client").count();
    let before = (count(), maps());
    for _ in 0..10 {
        let clients: Vec<_> = (0..100).map(|_| mount.client()).collect();
        for client in &clients {
            assert_eq!(stat(client, "hello.txt"), Outcome::Ok);
        }
        // A client that has left is counted until its last operation is done.
        eventually("those of the last round are forgotten", || status(&mount).clients == 100);
    }
    eventually("all are forgotten", || status(&mount).clients == 0);
    // Not more: what the mount's start had open for a moment may be closed by now.
    eventually("nothing is left", || count() <= before.0 && maps() <= before.1);
    assert_eq!(status(&mount).clients_ever, 1000);
}

#[test]
fn an_idle_daemon_uses_no_cpu() {
    let mount = common::hello("idle");
    let client = mount.client();
    assert_eq!(stat(&client, "hello.txt"), Outcome::Ok);
    // The tests of this file may run side by side: only threads of this mount's ring would burn CPU here, and
    // this process has no others that run on their own.
    let used = || {
        let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
    };
    eventually("an idle second costs less than 5 ms", || {
        let before = used();
        std::thread::sleep(Duration::from_secs(1));
        used() - before < Duration::from_millis(5)
    });
}
