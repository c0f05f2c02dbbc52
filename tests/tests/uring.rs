//! The kernel road through FUSE over io_uring: chosen where it is offered, and no worse than the device in what may go wrong.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use finesse_tests::build;
use finesse_tests::mount::{self, Options, said};
use finesse_tests::road::{Place, Road};
use finesse_tests::uring::Offer;
use finesse_tests::wait::{PATIENCE, eventually};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

fn place(arguments: &[&str]) -> Place {
    Place::new(Road::Kernel, &Options { arguments, ..Options::default() }, |root| {
        for number in 0..50 {
            fs::write(root.join(format!("f{number}")), "contents").unwrap();
        }
    })
}

/// A mount with rings, while the kernel offers them to new mounts.
fn ringed(test: &str) -> Option<(Place, Offer)> {
    let offer = Offer::set(true, test)?;
    let place = place(&["-o", "transport=uring"]);
    assert_eq!(place.mount().account().transport, "uring");
    Some((place, offer))
}

/// A shell script that says a line when it is ready.
fn script(place: &Place, text: &str) -> Child {
    let mut command = place.command("bash");
    command.args(["-c", text]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Waits for its end; whether that came in time.
fn ends(child: &mut Child) -> bool {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn rings_are_used_where_the_kernel_offers_them_and_the_device_elsewhere() {
    let test = "rings_are_used_where_the_kernel_offers_them_and_the_device_elsewhere";
    for (offered, option, transport) in [
        (true, "transport=auto", Some("uring")),
        (true, "transport=uring", Some("uring")),
        (true, "transport=classic", Some("classic")),
        (false, "transport=auto", Some("classic")),
        (false, "transport=classic", Some("classic")),
        (false, "transport=uring", None),
    ] {
        let Some(_offer) = Offer::set(offered, test) else { return };
        let Some(transport) = transport else {
            let home = tempfile::tempdir().unwrap();
            let output = Command::new(build::command())
                .args(["mount", "-o", option, "/usr"])
                .arg(home.path())
                .output()
                .unwrap();
            assert!(!output.status.success(), "{}", said(&output));
            assert!(said(&output).contains("enable_uring"), "{}", said(&output));
            continue;
        };
        let place = place(&["-o", option]);
        assert_eq!(place.mount().account().transport, transport, "offered: {offered}, {option}");
        assert_eq!(fs::read(place.path().join("f7")).unwrap(), b"contents");
    }
}

#[test]
fn data_of_every_length_goes_through_rings() {
    let Some((place, _offer)) = ringed("data_of_every_length_goes_through_rings") else { return };
    let direct = self::place(&["-o", "transport=uring", "--no-kernel-passthrough"]);
    for place in [&place, &direct] {
        for len in [0, 1, 255, 256, 257, 4095, 4097, 131_072, 1 << 20, (1 << 20) + 1, 3 << 20] {
            let data: Vec<u8> = (0..len).map(|at: usize| (at / 7) as u8).collect();
            let file = place.path().join("data");
            fs::write(&file, &data).unwrap();
            assert!(fs::read(&file).unwrap() == data, "{len} bytes");
            assert!(fs::read(place.source().join("data")).unwrap() == data, "{len} bytes in the source");
        }
        let target = "t".repeat(4000);
        std::os::unix::fs::symlink(&target, place.path().join("link")).unwrap();
        assert_eq!(fs::read_link(place.path().join("link")).unwrap(), Path::new(&target));
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 52);
    }
}

#[test]
fn a_lock_that_many_wait_for_on_one_cpu_is_given_to_all_of_them() {
    let test = "a_lock_that_many_wait_for_on_one_cpu_is_given_to_all_of_them";
    let Some((place, _offer)) = ringed(test) else { return };
    // All on one CPU, so that they share a queue.
    const WAITERS: usize = 60;
    let mut holder = script(&place, "taskset -c 0 flock f0 bash -c 'echo held; read go'");
    assert_eq!(line(&mut holder), "held");
    let waiting = format!(
        "for n in $(seq {WAITERS}); do taskset -c 0 flock f0 true & done; echo started; wait; echo all"
    );
    let mut waiters = script(&place, &waiting);
    assert_eq!(line(&mut waiters), "started");
    eventually("all wait for the lock", || {
        let threads = fs::read_dir(format!("/proc/{}/task", place.mount().pid())).unwrap().count();
        threads > WAITERS
    });
    // Nor do they hold up anybody else.
    let others = place.bash(
        "",
        "for n in $(seq 100); do taskset -c 0 cp f1 copy && taskset -c 0 cmp f1 copy || exit 1; done",
    );
    assert!(others.status.success(), "{}", said(&others));
    drop(holder.stdin.take());
    assert_eq!(line(&mut waiters), "all");
    assert!(ends(&mut waiters) && ends(&mut holder));
}

#[test]
fn those_who_wait_for_a_lock_can_be_killed() {
    let Some((place, _offer)) = ringed("those_who_wait_for_a_lock_can_be_killed") else { return };
    let mut holder = script(&place, "exec flock f0 bash -c 'echo held; read go'");
    assert_eq!(line(&mut holder), "held");
    let mut waiter = script(&place, "echo ready; exec flock f0 true");
    assert_eq!(line(&mut waiter), "ready");
    std::thread::sleep(Duration::from_millis(200));
    waiter.kill().unwrap();
    assert!(ends(&mut waiter), "a program that waits for a lock cannot be killed");
    drop(holder.stdin.take());
    assert!(ends(&mut holder));
    assert!(place.bash("", "flock -w 20 f0 true").status.success(), "the lock stayed");
}

/// Programs that use the mount all the time until they get an error, and say which.
fn busy(place: &Place) -> Vec<Child> {
    let text = "echo ready; while stat -c %n f1 && cat f2 && mv f3 f3.$$ && mv f3.$$ f3 || [ -e f1 ]; do :; done \
                >/dev/null 2>&1; echo over";
    let mut programs: Vec<_> = (0..8).map(|_| script(place, text)).collect();
    for program in &mut programs {
        assert_eq!(line(program), "ready");
    }
    std::thread::sleep(Duration::from_millis(300));
    programs
}

fn all_end(programs: Vec<Child>) {
    for mut program in programs {
        assert!(ends(&mut program), "a program hangs");
        assert_eq!(line(&mut program), "over");
    }
}

#[test]
fn a_daemon_that_is_killed_leaves_nobody_waiting() {
    let Some((place, _offer)) = ringed("a_daemon_that_is_killed_leaves_nobody_waiting") else { return };
    let programs = busy(&place);
    place.mount().signal(Signal::KILL);
    assert!(place.mount().ended(PATIENCE), "the daemon cannot be killed");
    all_end(programs);
    let error = fs::metadata(place.path().join("f1")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()), "{error}");
    mount::unmount(place.path());
}

#[test]
fn a_forced_unmount_under_load_ends_the_daemon_and_leaves_nobody_waiting() {
    let test = "a_forced_unmount_under_load_ends_the_daemon_and_leaves_nobody_waiting";
    let Some((place, _offer)) = ringed(test) else { return };
    let programs = busy(&place);
    // Aborts the connection (`fuse_umount_begin`), whether or not the mount can go.
    let _ = rustix::mount::unmount(place.path(), UnmountFlags::FORCE);
    mount::unmount(place.path());
    all_end(programs);
    assert!(place.mount().ended(PATIENCE), "the daemon lives on");
}

#[test]
fn an_unmount_ends_all_threads_at_once() {
    let Some((mut place, _offer)) = ringed("an_unmount_ends_all_threads_at_once") else { return };
    assert!(place.bash("", "cat f* >/dev/null; ls -l >/dev/null").status.success());
    let start = Instant::now();
    place.unmount();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[test]
fn an_idle_daemon_uses_no_cpu() {
    let Some((place, _offer)) = ringed("an_idle_daemon_uses_no_cpu") else { return };
    assert!(place.bash("", "cat f* >/dev/null").status.success());
    let time = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", place.mount().pid())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = time();
    std::thread::sleep(Duration::from_secs(2));
    let used = time() - before;
    assert!(used <= 2, "{used} ticks in two seconds");
}

#[test]
fn an_idle_ring_takes_little_memory() {
    let Some((place, _offer)) = ringed("an_idle_ring_takes_little_memory") else { return };
    let other = self::place(&["-o", "transport=classic"]);
    let [rings, device] = [&place, &other].map(|place| place.mount().account().resident_bytes);
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert!(rings < device + (cpus + 4) * (256 << 10), "{rings} bytes, without rings {device}");
}
