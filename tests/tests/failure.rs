//! What happens when one side dies, and what is left behind: nothing hangs, errors are clear, nothing leaks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use finesse_tests::mount::{Options, unmount};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::{PATIENCE, eventually};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;

fn place() -> Place {
    Place::new(Road::Bypass, &Options::default(), |root| {
        for number in 0..50 {
            fs::write(root.join(format!("f{number}")), "contents").unwrap();
        }
    })
}

/// A preloaded Python program that runs until it ends by itself or is dropped.
struct Program(Child);

impl Program {
    fn start(place: &Place, script: &str) -> Self {
        Self::start_in(place.path(), place, script)
    }

    fn start_in(directory: &Path, place: &Place, script: &str) -> Self {
        let mut command = place.command("/usr/bin/python3");
        command.current_dir(directory).args(["-uc", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Reads its output up to the end of a line.
    fn line(&mut self) -> String {
        let mut line = String::new();
        // One byte at a time: nothing beyond the line is consumed.
        let stdout = self.0.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, stdout).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for its end and returns the rest of its output.
    fn finish(&mut self) -> String {
        let start = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < PATIENCE, "a program hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut rest = String::new();
        self.0.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
        rest.trim_end().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What clients cost a daemon.
struct Held {
    descriptors: usize,
    /// Segments of clients that it maps.
    segments: usize,
    /// Names in /dev/shm, where nothing should ever be.
    names: usize,
}

fn held(pid: u32) -> Held {
    let names = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().file_name());
    Held {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        segments: fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().matches("finesse-client").count(),
        names: names.filter(|name| name.to_string_lossy().contains("finesse-client")).count(),
    }
}

impl Held {
    /// Whether it is not more than it was. Less it may be: other tests' `finesse run` asks each mount whether it
    /// takes programs, and may have been connected at that moment.
    fn within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.segments <= before.segments
            && self.names <= before.names
    }
}

/// What a daemon's threads have run, in nanoseconds.
fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_thread = |path: &Path| -> Option<u64> {
        // A thread may just have ended.
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| of_thread(&thread.unwrap().path())).sum())
}

const WORK: &str = "
import os, errno
print('ready')
n = 0
while True:
    try: os.stat(f'f{n % 50}'); os.open(f'f{n % 50}', os.O_RDONLY) if n == 0 else None
    except OSError as e: print(errno.errorcode[e.errno]); break
    n += 1
try: open('f1').read(); print('opened')
except OSError as e: print(errno.errorcode[e.errno])
try: os.unlink('f2'); print('removed')
except OSError as e: print(errno.errorcode[e.errno])
";

#[test]
fn a_daemon_killed_under_a_working_client_leaves_clear_errors() {
    let place = place();
    let mut programs: Vec<_> = (0..4).map(|_| Program::start(&place, WORK)).collect();
    for program in &mut programs {
        assert_eq!(program.line(), "ready");
    }
    eventually("all take the bypass", || place.mount().account().clients >= programs.len());
    place.mount().signal(Signal::KILL);
    for program in &mut programs {
        assert_eq!(program.finish(), "ENOTCONN\nENOTCONN\nENOTCONN");
    }
    assert!(place.source().join("f2").exists());
}

#[test]
fn a_daemon_killed_under_a_waiting_client_does_not_hang_it() {
    let place = place();
    let mut program = Program::start(
        &place,
        "
import os, errno, sys
os.stat('f0')
print('ready')
sys.stdin.readline()
print('asking')
try: print(os.stat('f1').st_size)
except OSError as e: print(errno.errorcode[e.errno])
",
    );
    assert_eq!(program.line(), "ready");
    // A daemon that is stopped answers nobody.
    place.mount().stop();
    std::io::Write::write_all(program.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    assert_eq!(program.line(), "asking");
    eventually("the program sleeps, waiting for the daemon", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", program.0.id())).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('S')
    });
    place.mount().signal(Signal::KILL);
    assert_eq!(program.finish(), "ENOTCONN");
}

/// Mounts come and go on a machine all the time.
#[test]
fn mounts_elsewhere_send_no_call_to_the_kernel() {
    if !needs::root("mounts_elsewhere_send_no_call_to_the_kernel") {
        return;
    }
    let place = place();
    let elsewhere = tempfile::tempdir().unwrap();
    let before = place.mount().account();
    let script = "
import os, sys
def work():
    n = 0
    while not stop or n < 100:
        os.stat(f'f{n % 50}'); os.stat(os.path.abspath(f'f{n % 50}')); n += 1
import threading
stop = False
threads = [threading.Thread(target=work) for _ in range(3)]
os.stat('f0')
for thread in threads: thread.start()
print('ready')
sys.stdin.readline()
stop = True
for thread in threads: thread.join()
";
    let mut program = Program::start(&place, script);
    assert_eq!(program.line(), "ready");
    for _ in 0..30 {
        rustix::mount::mount("tmpfs", elsewhere.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        unmount(elsewhere.path());
    }
    // These programs may use; the list of mounts is made anew.
    for _ in 0..3 {
        self::place().unmount();
    }
    std::io::Write::write_all(program.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    assert_eq!(program.finish(), "");
    let calls = place.mount().account().since(&before);
    assert!(calls.answered.get("stat").is_some_and(|count| *count >= 600), "{calls:?}");
    assert_eq!(calls.to_kernel, BTreeMap::new(), "{calls:?}");
}

/// What a preloaded program sees is what is mounted, at its path and above it.
#[test]
fn a_mount_that_covers_a_path_is_seen_at_once() {
    if !needs::root("a_mount_that_covers_a_path_is_seen_at_once") {
        return;
    }
    let place = place();
    let home = place.path().parent().unwrap().to_owned();
    let mut program = Program::start_in(
        Path::new("/"),
        &place,
        &format!(
            "
import os, sys
path = '{}/f0'
for line in sys.stdin: print(os.path.exists(path))
",
            place.path().display()
        ),
    );
    let mut asks = || {
        std::io::Write::write_all(program.0.stdin.as_mut().unwrap(), b"?\n").unwrap();
        program.line()
    };
    assert_eq!(asks(), "True");
    let mount =
        |path: &Path| rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
    for covered in [place.path(), &home] {
        mount(covered);
        eventually("it is covered", || asks() == "False");
        rustix::mount::unmount(covered, UnmountFlags::DETACH).unwrap();
        eventually("it is not covered any more", || asks() == "True");
    }
}

#[test]
fn clients_killed_in_the_middle_of_their_work_leave_nothing() {
    let place = place();
    let pid = place.mount().pid();
    // The daemon has opened what it keeps.
    assert!(place.bash("", "ls -l; cat f0").status.success());
    eventually("the first clients are gone", || place.mount().account().clients == 0);
    let before = held(pid);
    for round in 0..5 {
        let mut programs: Vec<_> = (0..8)
            .map(|number| {
                Program::start(
                    &place,
                    &format!(
                        "
import os
print('ready')
held = []
while True:
    for n in range(50):
        name = f'new-{round}-{number}-{{n}}'
        with open(name, 'w') as f: f.write('x')
        os.rename(name, name + 'x'); os.stat(name + 'x'); os.unlink(name + 'x'); os.mkdir(name); os.rmdir(name)
        if len(held) < 20: held.append(open('f0'))
"
                    ),
                )
            })
            .collect();
        for program in &mut programs {
            assert_eq!(program.line(), "ready");
        }
        eventually("all take the bypass", || place.mount().account().clients >= programs.len());
        if round == 0 {
            // All of them are waiting for an answer when they die.
            place.mount().stop();
        }
        for program in &mut programs {
            program.0.kill().unwrap();
        }
        if round == 0 {
            place.mount().signal(Signal::CONT);
        }
        drop(programs);
        eventually("the clients are forgotten", || place.mount().account().clients == 0);
    }
    // The daemon may keep a directory open that is known.
    assert!(place.bash("", "rm -rf new-*").status.success());
    eventually("nothing is left of them", || held(pid).within(&before));
    assert!(place.bash("", "ls | wc -l").status.success(), "the daemon serves on");
}

#[test]
fn two_hundred_programs_come_and_go_and_leave_nothing() {
    let place = place();
    let pid = place.mount().pid();
    assert!(place.bash("", "cat f0").status.success());
    eventually("the first clients are gone", || place.mount().account().clients == 0);
    let before = held(pid);
    let earlier = place.mount().account().clients_ever;
    let output = place.bash("", "for n in $(seq 200); do cat f$((n % 50)) > /dev/null || exit 1; done");
    assert!(output.status.success());
    assert!(place.mount().account().clients_ever - earlier >= 200, "each of them connected");
    eventually("nothing is left of them", || {
        place.mount().account().clients == 0 && held(pid).within(&before)
    });
}

#[test]
fn a_daemon_with_idle_clients_uses_no_cpu() {
    let place = place();
    let mut programs: Vec<_> = (0..20)
        .map(|_| {
            Program::start(&place, "import os, sys\nos.stat('f0')\nprint('ready')\nsys.stdin.readline()")
        })
        .collect();
    for program in &mut programs {
        assert_eq!(program.line(), "ready");
    }
    // `finesse run` itself connects for a moment, to see whether the mount would take the program.
    eventually("these are the clients", || place.mount().account().clients == programs.len());
    let pid = place.mount().pid();
    eventually("an idle second costs less than 5 ms", || {
        let before = cpu_time(pid);
        std::thread::sleep(Duration::from_secs(1));
        cpu_time(pid) - before < Duration::from_millis(5)
    });
    for program in &programs {
        let own = fs::read_to_string(format!("/proc/{}/schedstat", program.0.id())).unwrap();
        let before: u64 = own.split(' ').next().unwrap().parse().unwrap();
        assert!(before < 5_000_000_000, "an idle client spins: {before} ns");
    }
}

#[test]
fn a_mount_that_ends_under_its_clients_leaves_them_to_the_kernel() {
    let mut place = place();
    let mut program = Program::start(
        &place,
        "
import os, sys
print(os.stat('f0').st_size); p = os.path.abspath('f0'); os.chdir('/')
sys.stdin.readline()
print(os.path.exists(p))
",
    );
    assert_eq!(program.line(), "8");
    // Its working directory must be elsewhere for the unmount to succeed.
    eventually("the program has left the mount", || {
        fs::read_link(format!("/proc/{}/cwd", program.0.id())).unwrap() == Path::new("/")
    });
    place.unmount();
    std::io::Write::write_all(program.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    assert_eq!(program.finish(), "False");
}

/// Whoever looks at mounts asks each whose it is.
#[test]
fn mounts_that_hang_keep_nobody_waiting_who_does_not_use_them() {
    let hung: Vec<_> = (0..4).map(|_| place()).collect();
    let healthy = place();
    let before = hung[0].mount().account();
    for place in &hung {
        place.mount().stop();
    }
    // Each of them for itself would take three seconds, here and there.
    let start = Instant::now();
    healthy.mount().account();
    let file = hung[0].path().join("f0");
    let script = format!(
        "
import os, sys
print('ready')
sys.stdin.readline()
print(os.stat('{}').st_size)
",
        file.display()
    );
    let mut program = Program::start_in(Path::new("/"), &hung[0], &script);
    let line = program.line();
    let elapsed = start.elapsed();
    for place in &hung {
        place.mount().signal(Signal::CONT);
    }
    assert_eq!(line, "ready");
    assert!(elapsed < Duration::from_secs(9), "{elapsed:?}");
    std::io::Write::write_all(program.0.stdin.as_mut().unwrap(), b"go\n").unwrap();
    assert_eq!(program.finish(), "8");
    let calls = hung[0].mount().account().since(&before);
    assert!(calls.answered.contains_key("stat"), "the mount was taken when it answered: {calls:?}");
}
