//! File locks of preloaded and of unmodified programs exclude each other. Scripts say what two actors (`programs/locks.c`) do
//! and what each must see; they hold natively, and for every pair of roads on every kind of mount.
//!
//! `FINESSE_LONG=1` makes two programs write to databases for ten minutes rather than ten seconds.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use finesse_tests::mount::{Mount, Options, said};
use finesse_tests::road::{self, Place, Road};
use finesse_tests::wait::{PATIENCE, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The kinds of mount: a file system in memory has no lock operations.
const MEMORY: &[&str] = &["memory"];
const MOUNTS: [&[&str]; 5] = [
    &["-o", "grant=always"],
    &["-o", "grant=large"],
    &["-o", "grant=never"],
    // Locks stay in the kernel.
    &["--cache=always", "-o", "grant=never"],
    MEMORY,
];

/// The roads of `a` and `b` on one mount.
const PAIRS: [[Road; 2]; 4] = [
    [Road::Kernel, Road::Kernel],
    [Road::Kernel, Road::Bypass],
    [Road::Bypass, Road::Kernel],
    [Road::Bypass, Road::Bypass],
];

/// The actors' program, compiled once.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<TempDir> = OnceLock::new();
    let directory = PROGRAM.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("finesse-locks-").tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/locks.c");
        let program = directory.path().join("locks");
        let output =
            Command::new("cc").args(["-O2", "-o"]).arg(program).arg(source).output().expect("a C compiler");
        assert!(output.status.success(), "{}", said(&output));
        directory
    });
    directory.path().join("locks")
}

/// One that does as it is told.
struct Actor {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Actor {
    fn new(place: &Place, road: Road) -> Self {
        let command = match road {
            Road::Bypass => place.command(program()),
            _ => Command::new(program()),
        };
        Self::at(command, place.path())
    }

    fn at(mut command: Command, directory: &Path) -> Self {
        road::environment(&mut command);
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let orders = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { process, orders, answers }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn begin(&mut self, order: &str) {
        writeln!(self.orders, "{order}").unwrap();
    }

    fn answer(&self) -> String {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => "nothing".into(),
            Err(RecvTimeoutError::Disconnected) => "ended".into(),
        }
    }

    /// What it answers while it should wait for a lock: nothing, once it sleeps in the call. (That it sleeps on the way to an
    /// answer, too, makes this wait a little longer, which never fails a program that is right.)
    fn waits(&self) -> String {
        let path = format!("/proc/{}/syscall", self.pid());
        let in_lock = || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let number = text.split(' ').next().and_then(|word| word.parse().ok());
            matches!(number, Some(libc::SYS_fcntl | libc::SYS_flock))
        };
        let mut early = None;
        eventually("an actor waits for a lock", || {
            early = self.answers.try_recv().ok();
            early.is_some() || in_lock()
        });
        let early = early.or_else(|| self.answers.recv_timeout(Duration::from_millis(30)).ok());
        early.unwrap_or_else(|| "waits".into())
    }

    fn ask(&mut self, order: &str) -> String {
        self.begin(order);
        self.answer()
    }

    fn gets(&mut self, order: &str) -> String {
        eventually(order, || self.ask(order) == "ok");
        "ok".into()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid().cast_signed()).unwrap(), signal).unwrap();
    }

    fn die(&mut self) -> String {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        "ok".into()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Plays a script with two actors. A line is `ACTOR ORDER = ANSWER`, where the order may also be `starts ORDER`, whose answer
/// comes later, `waits` for "it waits for a lock", `then` for the answer of what it started, `gets ORDER` for an order that succeeds
/// sooner or later, `signal` and `dies`. In answers,
/// `$a` and `$b` are the actors' processes, and `|` separates what may be.
fn play(place: &Place, roads: [Road; 2], script: &str) -> Result<(), String> {
    let mut actors = actors(place, roads);
    let pids = actors.each_ref().map(Actor::pid);
    for (number, line) in script.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (who, rest) = line.split_once(' ').unwrap();
        let (order, expected) = rest.rsplit_once(" = ").unwrap_or((rest, "ok"));
        let actor = &mut actors[usize::from(who == "b")];
        let answer = match order.split_once(' ').unwrap_or((order, "")) {
            ("starts", order) => {
                actor.begin(order);
                continue;
            }
            ("waits", _) => actor.waits(),
            ("then", _) => actor.answer(),
            ("signal", _) => {
                actor.signal(Signal::USR1);
                continue;
            }
            ("dies", _) => actor.die(),
            // Of a descriptor that is closed, the kernel tells the daemon afterwards (`fuse_file_put`).
            ("gets", order) => actor.gets(order),
            _ => actor.ask(order),
        };
        // What the daemon has locked for an unmodified program belongs to nobody that the kernel could name.
        let told = |holder: usize| match (roads[usize::from(who == "b")], roads[holder]) {
            (Road::Bypass, Road::Kernel) if answer.ends_with(" -1") => "-1".into(),
            _ => pids[holder].to_string(),
        };
        let expected = expected.replace("$a", &told(0)).replace("$b", &told(1));
        if !expected.split('|').any(|expected| expected == answer) {
            return Err(format!("line {number}: {line}: {answer}"));
        }
    }
    Ok(())
}

/// Does something natively, and with every pair of roads on every kind of mount.
fn each_place(mut act: impl FnMut(&Place, [Road; 2]) -> Result<(), String>) {
    let mut failures = Vec::new();
    let mut check = |place: &Place, roads: [Road; 2], mount: &[&str]| {
        std::fs::write(place.path().join("file"), "0123456789").unwrap();
        if let Err(failure) = act(place, roads) {
            failures.push(format!("a: {}, b: {}, {mount:?}: {failure}", roads[0], roads[1]));
        }
        std::fs::remove_file(place.path().join("file")).unwrap();
    };
    check(&Place::new(Road::Native, &Options::default(), |_| ()), [Road::Native; 2], &[]);
    for arguments in MOUNTS {
        let place = match arguments {
            MEMORY => Place::of_memory(Road::Bypass, &Options::default()),
            _ => Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |_| ()),
        };
        for roads in PAIRS {
            check(&place, roads, arguments);
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn actors(place: &Place, roads: [Road; 2]) -> [Actor; 2] {
    roads.map(|road| Actor::new(place, road))
}

/// Scripts hold natively and everywhere else.
fn hold(scripts: &[(&str, String)]) {
    for (about, script) in scripts {
        each_place(|place, roads| {
            play(place, roads, script).map_err(|failure| format!("{about}, {failure}"))
        });
    }
}

const FAMILIES: [&str; 3] = ["posix", "ofd", "flock"];

/// A script for each kind of lock, whose name is in the place of `LOCK`.
fn each(families: &[&'static str], script: &str) -> Vec<(&'static str, String)> {
    families.iter().map(|family| (*family, script.replace("LOCK", family))).collect()
}

#[test]
fn locks_exclude_each_other() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         b lock 1 LOCK w 0 0 = EAGAIN
         b lock 1 LOCK r 0 0 = EAGAIN
         a lock 1 LOCK w 0 0
         a lock 1 LOCK r 0 0
         b lock 1 LOCK r 0 0
         a lock 1 LOCK u 0 0
         a lock 1 LOCK w 0 0 = EAGAIN
         b lock 1 LOCK w 0 0
         a lock 1 LOCK r 0 0 = EAGAIN
         b lock 1 LOCK u 0 0
         a lock 1 LOCK w 0 0",
    ));
}

#[test]
fn locks_of_two_kinds_meet_as_they_do_natively() {
    hold(&[(
        "kinds",
        "a open 1 file rw
         b open 1 file rw
         a lock 1 posix w 0 0
         b lock 1 ofd w 0 0 = EAGAIN
         b lock 1 flock w 0 0
         a lock 1 posix u 0 0
         b lock 1 ofd w 0 0
         a lock 1 posix w 0 0 = EAGAIN
         a lock 1 flock w 0 0 = EAGAIN
         b lock 1 flock u 0 0
         a lock 1 flock w 0 0
         a lock 1 posix w 0 0 = EAGAIN"
            .into(),
    )]);
}

#[test]
fn ranges_are_split_and_joined() {
    hold(&each(
        &["posix", "ofd"],
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 100
         b lock 1 LOCK w 100 10
         b lock 1 LOCK w 99 1 = EAGAIN
         a lock 1 LOCK u 40 20
         b lock 1 LOCK w 40 20
         b lock 1 LOCK w 39 1 = EAGAIN
         b lock 1 LOCK r 60 1 = EAGAIN
         a lock 1 LOCK r 60 20
         b lock 1 LOCK r 60 20
         b lock 1 LOCK w 60 20 = EAGAIN
         a lock 1 LOCK w 60 20 = EAGAIN
         b lock 1 LOCK u 60 20
         a lock 1 LOCK w 60 20
         b lock 1 LOCK u 0 0
         a lock 1 LOCK w 30 60
         b lock 1 LOCK w 40 10 = EAGAIN
         a lock 1 LOCK u 0 0
         b lock 1 LOCK w 1000 0
         a lock 1 LOCK w 999999 1 = EAGAIN
         a lock 1 LOCK w 0 1000",
    ));
}

#[test]
fn who_waits_gets_the_lock_when_it_is_free() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         b starts wait 1 LOCK w 0 0
         b waits = waits
         a lock 1 LOCK u 0 0
         b then
         a lock 1 LOCK w 0 0 = EAGAIN
         a starts wait 1 LOCK r 0 0
         a waits = waits
         b lock 1 LOCK r 0 0
         a then
         b starts wait 1 LOCK w 0 0
         b waits = waits
         a close 1
         b then
         a open 1 file rw
         a lock 1 LOCK r 0 0 = EAGAIN",
    ));
}

#[test]
fn signals_end_the_waiting_or_restart_it() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         b handle interrupt
         b starts wait 1 LOCK w 0 0
         b waits = waits
         b signal
         b then = EINTR
         b handle restart
         b starts wait 1 LOCK w 0 0
         b waits = waits
         b signal
         b waits = waits
         a lock 1 LOCK u 0 0
         b then
         a lock 1 LOCK w 0 0 = EAGAIN",
    ));
}

#[test]
fn locks_end_with_their_process() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         b starts wait 1 LOCK w 0 0
         b waits = waits
         a dies
         b then",
    ));
}

#[test]
fn who_dies_waiting_gets_nothing() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         b starts wait 1 LOCK w 0 0
         b waits = waits
         b dies
         a lock 1 LOCK u 0 0
         a close 1
         a open 1 file rw
         a gets lock 1 LOCK w 0 0",
    ));
}

#[test]
fn posix_locks_end_when_any_descriptor_of_the_file_is_closed() {
    hold(&[(
        "close",
        "a open 1 file rw
         b open 1 file rw
         a open 2 file r
         a dup 1 3
         a lock 1 posix w 0 0
         b lock 1 posix w 0 0 = EAGAIN
         a close 3
         b lock 1 posix w 0 0
         b lock 1 posix u 0 0
         a lock 1 posix w 0 0
         b lock 1 posix w 0 0 = EAGAIN
         a close 2
         b lock 1 posix w 0 0
         b lock 1 posix u 0 0
         a open 2 file rw
         a lock 1 posix w 0 10
         a lock 2 posix w 10 10
         a lock 2 posix u 5 1
         b lock 1 posix w 5 1
         b lock 1 posix w 4 1 = EAGAIN
         b lock 1 posix w 10 1 = EAGAIN
         a close 2
         b lock 1 posix w 0 0
         b lock 1 posix u 0 0
         a open 2 file r
         a open 3 file r
         a lock 1 posix w 0 0
         a onto 2 3
         b lock 1 posix w 0 0"
            .into(),
    )]);
}

#[test]
fn other_locks_end_with_their_description() {
    hold(&each(
        &["ofd", "flock"],
        "a open 1 file rw
         b open 1 file rw
         a open 2 file r
         a dup 1 3
         a lock 1 LOCK w 0 0
         a lock 2 LOCK r 0 0 = EAGAIN
         a close 2
         a close 3
         b lock 1 LOCK w 0 0 = EAGAIN
         a dup 1 3
         a close 1
         b lock 1 LOCK w 0 0 = EAGAIN
         a close 3
         b gets lock 1 LOCK w 0 0",
    ));
}

#[test]
fn forked_children_share_descriptions_and_not_posix_locks() {
    let posix = each(
        &["posix"],
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         a child lock 1 LOCK w 0 0 = EAGAIN
         b lock 1 LOCK w 0 0 = EAGAIN
         a hold
         a close 1
         b lock 1 LOCK w 0 0
         a unhold",
    );
    let others = each(
        &["ofd", "flock"],
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         a child lock 1 LOCK w 0 0
         b lock 1 LOCK w 0 0 = EAGAIN
         a hold
         a close 1
         b lock 1 LOCK w 0 0 = EAGAIN
         b starts wait 1 LOCK w 0 0
         b waits = waits
         a unhold
         b then
         a open 1 file rw
         b lock 1 LOCK u 0 0
         a lock 1 LOCK w 0 0
         a child lock 1 LOCK u 0 0
         b lock 1 LOCK w 0 0",
    );
    hold(&[posix, others].concat());
}

#[test]
fn locks_survive_exec() {
    hold(&each(
        &FAMILIES,
        "a open 1 file rw
         b open 1 file rw
         a lock 1 LOCK w 0 0
         a exec
         b lock 1 LOCK w 0 0 = EAGAIN
         a lock 1 LOCK r 0 0
         b lock 1 LOCK r 0 0
         b lock 1 LOCK u 0 0
         a close 1
         b gets lock 1 LOCK w 0 0",
    ));
}

#[test]
fn the_lock_in_the_way_is_told() {
    hold(&[
        (
            "posix",
            "a open 1 file rw
             b open 1 file rw
             a test 1 posix w 0 0 = free
             a lock 1 posix w 3 4
             a test 1 posix w 0 0 = free
             b test 1 posix w 0 0 = w 3 4 $a
             b test 1 posix r 6 1 = w 3 4 $a
             b test 1 posix w 7 1 = free
             b lock 1 posix r 100 0
             a test 1 posix r 0 0 = free
             a test 1 posix w 50 0 = r 100 0 $b
             b test 1 posix w 0 0 = w 3 4 $a"
                .into(),
        ),
        (
            "ofd",
            "a open 1 file rw
             b open 1 file rw
             a lock 1 ofd w 3 4
             b test 1 ofd w 0 0 = w 3 4 -1
             b test 1 posix r 0 0 = w 3 4 -1|w 3 4 0"
                .into(),
        ),
    ]);
}

/// Natively it is who comes last. Between the roads, whoever waits in the daemon.
#[test]
fn one_of_two_that_wait_for_each_other_is_told_so() {
    each_place(|place, roads| {
        let mut actors = actors(place, roads);
        for (number, actor) in actors.iter_mut().enumerate() {
            assert_eq!(actor.ask("open 1 file rw"), "ok");
            assert_eq!(actor.ask(&format!("lock 1 posix w {number} 1")), "ok");
        }
        actors[0].begin("wait 1 posix w 1 1");
        assert_eq!(actors[0].waits(), "waits");
        actors[1].begin("wait 1 posix w 0 1");
        let mut first = None;
        eventually("one is told", || {
            first = (0..2).find_map(|who| Some((who, actors[who].answers.try_recv().ok()?)));
            first.is_some()
        });
        let (who, answer) = first.unwrap();
        assert_eq!(answer, "EDEADLK");
        if roads == [Road::Native; 2] {
            assert_eq!(who, 1);
        }
        assert_eq!(actors[who].ask("lock 1 posix u 0 0"), "ok");
        assert_eq!(actors[1 - who].answer(), "ok");
        Ok(())
    });
}

#[test]
fn circles_of_open_files_are_no_deadlocks() {
    each_place(|place, roads| {
        let mut actors = actors(place, roads);
        for (number, actor) in actors.iter_mut().enumerate() {
            assert_eq!(actor.ask("open 1 file rw"), "ok");
            assert_eq!(actor.ask(&format!("lock 1 ofd w {number} 1")), "ok");
        }
        for (number, actor) in actors.iter_mut().enumerate() {
            actor.begin(&format!("wait 1 ofd w {} 1", 1 - number));
            assert_eq!(actor.waits(), "waits");
        }
        Ok(())
    });
}

#[test]
fn errors_are_the_kernels() {
    hold(&[(
        "errors",
        "a open 1 file r
         a open 2 file w
         a lock 1 posix w 0 0 = EBADF
         a lock 2 posix r 0 0 = EBADF
         a lock 1 ofd w 0 0 = EBADF
         a lock 2 ofd r 0 0 = EBADF
         a lock 1 flock w 0 0
         a lock 2 flock r 0 0 = EAGAIN
         a raw 1 0 0 -1 0 = EINVAL
         a raw 1 0 0 5 -6 = EINVAL
         a raw 1 0 0 5 -5
         a raw 1 9 0 0 0 = EINVAL
         a raw 1 0 7 0 0 = EINVAL
         a raw 2 1 2 0 1
         b open 1 file rw
         b lock 1 posix w 10 1 = EAGAIN
         b lock 1 posix w 9 1
         a lock 9 posix r 0 0 = EBADF
         a lock 9 flock r 0 0 = EBADF"
            .into(),
    )]);
}

#[test]
fn lockf_locks_from_the_offset() {
    hold(&[(
        "lockf",
        "a open 1 file rw
         b open 1 file rw
         a write 1 abc
         a lockf 1 tlock 4
         b lock 1 posix w 0 3
         b lock 1 posix w 3 1 = EAGAIN
         b lockf 1 test 3
         b lockf 1 test 4 = EACCES
         b lock 1 posix w 7 0
         a lockf 1 test 5 = EACCES
         a lockf 1 tlock 5 = EAGAIN|EACCES
         b starts lockf 1 lock 0
         b waits = waits
         a lockf 1 ulock 0
         b then"
            .into(),
    )]);
}

/// What the daemon holds for a program goes with the daemon. A granted descriptor is the source's, and its locks stay.
#[test]
fn locks_in_the_daemon_end_with_it() {
    for (arguments, road, stays) in [
        (MOUNTS[0], Road::Kernel, false),
        (MOUNTS[0], Road::Bypass, true),
        (MOUNTS[2], Road::Kernel, false),
        (MOUNTS[2], Road::Bypass, false),
    ] {
        for family in FAMILIES {
            let place = Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |root| {
                std::fs::write(root.join("file"), "").unwrap();
            });
            let lock = format!("lock 1 {family} w 0 0");
            let mut locker = Actor::new(&place, road);
            let mut waiter = Actor::new(&place, Road::Kernel);
            let mut outsider = Actor::at(Command::new(program()), place.source());
            for actor in [&mut locker, &mut waiter, &mut outsider] {
                assert_eq!(actor.ask("open 1 file rw"), "ok");
            }
            assert_eq!(locker.ask(&lock), "ok");
            assert_eq!(outsider.ask(&lock), "EAGAIN", "{arguments:?} {road} {family}");
            waiter.begin(&lock.replacen("lock", "wait", 1));
            assert_eq!(waiter.waits(), "waits");
            place.mount().signal(Signal::KILL);
            assert!(place.mount().ended(PATIENCE));
            let told = waiter.answer();
            assert!(["ECONNABORTED", "ENOTCONN"].contains(&&*told), "{told}");
            if family == "flock" && road == Road::Kernel {
                // Where the kernel serves the file by itself, it keeps the daemon's description, and so the lock, until the
                // dead mount is unmounted (`fuse_backing_files_free`).
                locker.die();
                waiter.die();
                finesse_tests::mount::unmount(place.path());
            } else if stays {
                assert_eq!(outsider.ask(&lock), "EAGAIN", "{arguments:?} {road} {family}");
                locker.die();
            } else {
                assert_eq!(locker.ask(&lock), "ENOTCONN", "{arguments:?} {road} {family}");
            }
            assert_eq!(outsider.gets(&lock), "ok");
        }
    }
}

/// One that writes to a database (`programs/writer.py`).
struct Writer {
    process: Child,
    committed: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Writer {
    fn start(place: &Place, road: Road, journal: &str) -> Self {
        let mut command = match road {
            Road::Bypass => place.command("/usr/bin/python3"),
            _ => Command::new("/usr/bin/python3"),
        };
        road::environment(&mut command);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/writer.py");
        command.arg(script).args([&road.to_string(), journal]).current_dir(place.path());
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let committed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&committed);
        let reader = std::thread::spawn(move || {
            for line in output.lines() {
                counter.store(line.unwrap().parse().unwrap(), Ordering::Relaxed);
            }
        });
        Self { process, committed, reader }
    }

    fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// What it does at this moment: its state, and the system call that it is in.
    fn state(&self) -> String {
        let process = Path::new("/proc").join(self.process.id().to_string());
        let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
        let call = std::fs::read_to_string(process.join("syscall")).unwrap_or_default();
        format!("{} {call}", stat.rsplit(") ").next().unwrap_or("").get(..1).unwrap_or(""))
    }

    /// Waits until all of them have committed something, for which they wait for each other at SQLite's leisure.
    fn wait_for(writers: &[&Self]) {
        let start = Instant::now();
        while !writers.iter().all(|writer| writer.committed() >= 2) {
            let states: Vec<_> = writers.iter().map(|writer| (writer.committed(), writer.state())).collect();
            let ended = states.iter().any(|(_, state)| state.starts_with('Z'));
            assert!(start.elapsed() < 6 * PATIENCE && !ended, "one does not write: {states:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Tells it to end: how many transactions it has committed, and what it has said besides.
    fn finish(mut self) -> (u64, String) {
        drop(self.process.stdin.take());
        let output = self.process.wait_with_output().unwrap();
        self.reader.join().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        (self.committed.load(Ordering::Relaxed), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// What a database in the source holds: the transactions of each road, and of both as they have counted them themselves.
fn transactions(place: &Place) -> [u64; 3] {
    let count = |road: Road| {
        // Numbered from 0 without a gap.
        format!(
            "select case when count(*) = coalesce(max(number), -1) + 1 then count(*) end from written where who = '{road}'"
        )
    };
    let queries = format!(
        "pragma integrity_check; {}; {}; select number from total",
        count(Road::Bypass),
        count(Road::Kernel)
    );
    let output = Command::new("sqlite3").arg(place.source().join("db")).arg(queries).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("ok"), "{}", said(&output));
    let numbers: Vec<u64> = lines.map(|line| line.parse().unwrap_or_else(|_| panic!("{text}"))).collect();
    numbers.try_into().unwrap()
}

/// Journals and mounts. In WAL mode the files must be granted, as SQLite changes one of them through mappings of several programs.
const DATABASES: [(&str, &[&str]); 4] =
    [("wal", MOUNTS[0]), ("delete", MOUNTS[0]), ("delete", MOUNTS[1]), ("delete", MOUNTS[2])];

/// In all: for ten seconds, or ten minutes with `FINESSE_LONG=1`.
fn database_time() -> Duration {
    let long = std::env::var_os("FINESSE_LONG").is_some_and(|long| long == "1");
    Duration::from_secs(if long { 600 } else { 10 })
}

#[test]
fn a_database_written_on_both_roads_loses_nothing() {
    let time = database_time() / u32::try_from(DATABASES.len()).unwrap();
    for (journal, arguments) in DATABASES {
        let place = Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |_| ());
        let writers = [Road::Bypass, Road::Kernel].map(|road| Writer::start(&place, road, journal));
        let start = Instant::now();
        Writer::wait_for(&writers.each_ref());
        std::thread::sleep(time.saturating_sub(start.elapsed()));
        let [bypass, kernel] = writers.map(|writer| {
            let (committed, errors) = writer.finish();
            assert_eq!(errors, "", "{journal} {arguments:?}");
            committed
        });
        println!("{journal} {arguments:?}: {bypass} transactions on the bypass, {kernel} on the kernel road");
        assert_eq!(transactions(&place), [bypass, kernel, bypass + kernel], "{journal} {arguments:?}");
    }
}

#[test]
fn a_database_survives_the_daemon() {
    for (journal, arguments) in DATABASES {
        let options = Options { arguments, ..Options::default() };
        let place = Place::new(Road::Bypass, &options, |_| ());
        let writers = [Road::Bypass, Road::Kernel].map(|road| Writer::start(&place, road, journal));
        Writer::wait_for(&writers.each_ref());
        place.mount().signal(Signal::KILL);
        assert!(place.mount().ended(PATIENCE));
        finesse_tests::mount::unmount(place.path());
        let again = Mount::new(place.source(), place.path(), &options);
        // A writer whose descriptors are the source's may go on, and then must still exclude those on the new mount.
        let third = Writer::start(&place, Road::Native, journal);
        Writer::wait_for(&[&third]);
        let [bypass, kernel] = writers.map(|writer| writer.finish().0);
        let (third, errors) = third.finish();
        assert_eq!(errors, "", "{journal} {arguments:?}");
        let found = transactions(&place);
        // The last one may have been committed without an answer.
        assert!(
            (bypass..=bypass + 1).contains(&found[0]),
            "{bypass} {kernel} {found:?} {journal} {arguments:?}"
        );
        assert!(
            (kernel..=kernel + 1).contains(&found[1]),
            "{bypass} {kernel} {found:?} {journal} {arguments:?}"
        );
        assert_eq!(found[2], found[0] + found[1] + third, "{journal} {arguments:?}");
        drop(again);
    }
}
