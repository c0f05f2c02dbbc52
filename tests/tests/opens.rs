//! Files that the daemon opens for programs on the bypass, keeps open for a moment and shares among those who read them: nobody
//! can tell that from files that are opened one by one.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use finesse_tests::build;
use finesse_tests::mount::{Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::tree::{self, Times};
use finesse_tests::wait;

/// Without a table nothing is opened without asking the daemon.
const LARGE: &[&str] = &["--cache=always", "-o", "grant=large,table=0"];
const WITH_TABLE: &[&str] = &["--cache=always", "-o", "grant=large"];
const NEVER: &[&str] = &["--cache=always", "-o", "grant=never"];

fn options<'o>(arguments: &'o [&'o str]) -> Options<'o> {
    Options { arguments, ..Options::default() }
}

fn bypass(arguments: &[&str], fill: impl Fn(&Path)) -> Place {
    Place::new(Road::Bypass, &options(arguments), fill)
}

/// What a Python script says on each road, which must be the same, as must be the files that it leaves.
fn agrees(arguments: &[&str], script: &str, fill: impl Fn(&Path)) {
    let mut native = None;
    for road in Road::ALL {
        let place = Place::new(road, &options(arguments), &fill);
        let output = place.command("python3").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "on the {road}: {}", said(&output));
        let found = (place.neutral(&output.stdout), tree::read(place.source(), Times::Ignored));
        assert!(!found.0.is_empty());
        match &native {
            None => native = Some(found),
            Some(native) => assert_eq!(*native, found, "on the {road} with {arguments:?}"),
        }
    }
}

/// How many descriptors of a source's file the daemon has.
fn held(place: &Place, name: &str) -> usize {
    let file = place.source().join(name);
    fs::read_dir(format!("/proc/{}/fd", place.mount().pid()))
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with(&*file.to_string_lossy()))
        .count()
}

/// A Python program that does one thing after the other, each when it is told to, and says what came of it.
struct Reader {
    _finesse: tempfile::TempDir,
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Reader {
    fn new(place: &Place, wrapper: &[&str]) -> Self {
        const SCRIPT: &str = r"
import sys
for line in sys.stdin:
    try:
        with open(line.strip(), 'rb', buffering=0) as file:
            print(file.read().decode(), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
";
        let finesse = build::for_all_users();
        let mut child = place
            .command_as(&finesse.path().join(build::COMMAND), wrapper, "/usr/bin/python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { _finesse: finesse, child, answers }
    }

    /// Opens a file, reads and closes it: what is in it, or the errno.
    fn reads(&mut self, name: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{name}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Ends at the end of its input.
        let _ = self.child.wait();
    }
}

fn errno(errno: i32) -> String {
    errno.to_string()
}

#[test]
fn what_was_read_stays_open_for_a_moment_and_is_shared() {
    let place = bypass(LARGE, |root| fs::write(root.join("file"), "contents").unwrap());
    let mut readers = [(); 2].map(|()| Reader::new(&place, &[]));
    let start = Instant::now();
    let mut shared = false;
    while !shared && start.elapsed() < Duration::from_secs(20) {
        for reader in &mut readers {
            assert_eq!(reader.reads("file"), "contents");
        }
        // Opened four times in all, but never by more than one descriptor.
        let held = held(&place, "file");
        assert!(held <= 1, "{held}");
        shared = held == 1;
    }
    assert!(shared);
    wait::eventually("it is closed", || held(&place, "file") == 0);
    assert_eq!(readers[0].reads("file"), "contents");
    fs::write(place.source().join("other"), "").unwrap();
    let output = place.command("rm").arg("file").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(readers[0].reads("file"), errno(libc::ENOENT));
    wait::eventually("its blocks are freed", || held(&place, "file") == 0);
}

#[test]
fn nobody_reads_what_only_others_may_though_it_is_open() {
    if !needs::root("nobody_reads_what_only_others_may_though_it_is_open") {
        return;
    }
    const OWNER: &[&str] = &["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups"];
    const STRANGER: &[&str] = &["setpriv", "--reuid=1003", "--regid=1003", "--clear-groups"];
    const MEMBER: &[&str] = &["setpriv", "--reuid=1002", "--regid=1002", "--groups=1002,2000"];
    const NO_MEMBER: &[&str] = &["setpriv", "--reuid=1002", "--regid=1002", "--groups=1002"];
    for arguments in [LARGE, WITH_TABLE, NEVER, &["--cache=auto", "-o", "grant=large"]] {
        let place = bypass(arguments, |root| {
            fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
            let file = root.join("file");
            fs::write(&file, "contents").unwrap();
            chown(&file, Some(1001), Some(2000)).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        });
        let file = place.source().join("file");
        // Only then a change can be told from another one.
        wait::eventually("the file was changed more than a second ago", || {
            use std::os::unix::fs::MetadataExt;
            let changed = fs::metadata(&file).unwrap().ctime().cast_unsigned();
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() > changed + 2
        });
        let mut root = Reader::new(&place, &[]);
        let mut users = [OWNER, STRANGER, MEMBER, NO_MEMBER].map(|user| Reader::new(&place, user));
        let denied = errno(libc::EACCES);
        let mut expect = |expected: [&str; 4], when: &str| {
            assert_eq!(root.reads("file"), "contents", "root, {when}, {arguments:?}");
            for _ in 0..3 {
                let found = [0, 1, 2, 3].map(|user| users[user].reads("file"));
                assert_eq!(found, expected, "{when}, {arguments:?}");
            }
        };
        expect(["contents", &denied, "contents", &denied], "at first");
        let command = |line: &[&str]| {
            let output = place.command(line[0]).args(&line[1..]).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        };
        command(&["chmod", "600", "file"]);
        expect(["contents", &denied, &denied, &denied], "after chmod on the bypass");
        command(&["chmod", "604", "file"]);
        expect(["contents", "contents", &denied, "contents"], "after chmod for others");
        let output = place.command_on(Road::Kernel, "chmod").args(["000", "file"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        expect([&denied, &denied, &denied, &denied], "after chmod on the kernel road");
        command(&["chmod", "400", "file"]);
        expect(["contents", &denied, &denied, &denied], "after chmod for the owner");
        command(&["chown", "1003", "file"]);
        expect([&denied, "contents", &denied, &denied], "after chown");
    }
}

#[test]
fn permissions_that_change_in_the_source_hold_at_once() {
    if !needs::root("permissions_that_change_in_the_source_hold_at_once") {
        return;
    }
    let user: &[&str] = &["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups"];
    for arguments in [&["--cache=auto", "-o", "grant=large"], &["--cache=never", "-o", "grant=large"]] {
        let place = bypass(arguments, |root| {
            fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
            fs::write(root.join("file"), "contents").unwrap();
        });
        let file = place.source().join("file");
        let mut reader = Reader::new(&place, user);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            for mode in [0o644, 0o600] {
                fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
                let expected = if mode == 0o644 { "contents".to_owned() } else { errno(libc::EACCES) };
                for _ in 0..20 {
                    assert_eq!(reader.reads("file"), expected, "{mode:o} {arguments:?}");
                }
            }
        }
    }
}

#[test]
fn what_takes_the_place_of_an_open_file_is_what_is_opened() {
    for arguments in [LARGE, WITH_TABLE, NEVER, &["--cache=never", "-o", "grant=large"]] {
        let place = bypass(arguments, |root| fs::write(root.join("file"), "0").unwrap());
        let mut reader = Reader::new(&place, &[]);
        assert_eq!(reader.reads("file"), "0");
        for round in 1..50 {
            let script = match round % 4 {
                0 => format!("rm file && printf %s {round} > file"),
                1 => format!("printf %s {round} > new && mv new file"),
                2 => format!("printf %s {round} > file"),
                _ => format!("printf %s {round} > new && ln -f new file && rm new"),
            };
            let road = if round % 8 < 4 { Road::Bypass } else { Road::Kernel };
            let output = place.command_on(road, "sh").args(["-c", &script]).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            assert_eq!(reader.reads("file"), round.to_string(), "{script} on the {road}, {arguments:?}");
        }
    }
}

#[test]
fn what_is_removed_or_replaced_in_the_source_is_not_read_for_longer_than_its_name_is_good() {
    let place = bypass(&["--cache=never", "-o", "grant=large"], |_| ());
    let file = place.source().join("file");
    let mut reader = Reader::new(&place, &[]);
    for round in 0..50 {
        let new = place.source().join("new");
        fs::write(&new, round.to_string()).unwrap();
        fs::rename(&new, &file).unwrap();
        assert_eq!(reader.reads("file"), round.to_string());
        assert_eq!(reader.reads("file"), round.to_string());
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(reader.reads("file"), errno(libc::ENOENT));

    let place = bypass(&["--cache=auto", "-o", "grant=large"], |_| ());
    let file = place.source().join("file");
    let mut reader = Reader::new(&place, &[]);
    let opens = || place.mount().account().answered.get("open").copied().unwrap_or(0);
    // Each round takes as long as the name's absence is good.
    for round in 0..10 {
        fs::write(&file, round.to_string()).unwrap();
        wait::eventually("the new file is there", || reader.reads("file") == round.to_string());
        fs::remove_file(&file).unwrap();
        let before = opens();
        let found = reader.reads("file");
        // What the daemon finds removed it leaves to the kernel, whose name of it may be good for a while.
        let is_left = opens() == before;
        assert!(found == errno(libc::ENOENT) || is_left, "a removed file is not opened: {found}");
    }
}

#[test]
fn each_reader_has_an_offset_of_his_own() {
    const SCRIPT: &str = r"
import fcntl, mmap, os
def sum(data): return (len(data), data[:4].hex(), data[-4:].hex())
one = os.open('large', os.O_RDONLY)
two = os.open('large', os.O_RDONLY)
print(sum(os.read(one, 10)))
print(sum(os.read(two, 300000)))
three = os.open('large', os.O_RDONLY)
print(sum(os.read(one, 1000)), sum(os.read(two, 1000)), sum(os.read(three, 1000)))
print(os.lseek(one, 0, os.SEEK_CUR), os.lseek(two, 0, os.SEEK_CUR), os.lseek(three, 0, os.SEEK_CUR))
print(sum(mmap.mmap(one, 4096, prot=mmap.PROT_READ)[:]))
print([fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (one, two, three)])
for number in range(100):
    print(sum(os.read(one, 100)), sum(os.read(three, 50)), os.lseek(one, 0, os.SEEK_CUR))
fcntl.fcntl(two, fcntl.F_SETFL, os.O_NONBLOCK)
print([fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (one, two, three)])
os.close(two)
if os.fork() == 0:
    os.read(one, 7)
    os._exit(0)
os.wait()
print(os.lseek(one, 0, os.SEEK_CUR), os.lseek(three, 0, os.SEEK_CUR))
";
    for arguments in [LARGE, WITH_TABLE, NEVER] {
        agrees(arguments, SCRIPT, |root| {
            let bytes: Vec<u8> = (0..1_000_000u32).flat_map(|word| word.to_le_bytes()).collect();
            fs::write(root.join("large"), bytes).unwrap();
        });
    }
}

#[test]
fn locks_belong_to_one_open_file_though_its_descriptor_is_shared() {
    const SCRIPT: &str = r"
import fcntl, os
def lock(fd, how):
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        return 'taken'
    except OSError as error:
        return error.errno
for number in range(5):
    os.close(os.open('file', os.O_RDONLY))
one = os.open('file', os.O_RDONLY)
two = os.open('file', os.O_RDONLY)
print(lock(one, fcntl.LOCK_EX), lock(two, fcntl.LOCK_EX), lock(two, fcntl.LOCK_SH))
three = os.open('file', os.O_RDONLY)
print(lock(three, fcntl.LOCK_SH), lock(one, fcntl.LOCK_SH), lock(three, fcntl.LOCK_SH), lock(two, fcntl.LOCK_EX))
os.close(one)
print(lock(two, fcntl.LOCK_EX))
";
    for arguments in [LARGE, WITH_TABLE, NEVER, &["--cache=auto", "-o", "grant=never"]] {
        agrees(arguments, SCRIPT, |root| fs::write(root.join("file"), "contents").unwrap());
    }
}

#[test]
fn a_file_that_was_read_and_closed_can_be_leased_for_writing() {
    const SCRIPT: &str = r"
import fcntl, os
for number in range(50):
    os.close(os.open('file', os.O_RDONLY))
    fd = os.open('file', os.O_RDWR)
    os.pread(fd, 1, 0)
    print(fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK), fcntl.fcntl(fd, fcntl.F_GETLEASE))
    os.close(fd)
";
    agrees(LARGE, SCRIPT, |root| fs::write(root.join("file"), "contents").unwrap());
}

#[test]
fn exclusive_creation_fails_for_the_same_reasons_on_all_roads() {
    if !needs::root("exclusive_creation_fails_for_the_same_reasons_on_all_roads") {
        return;
    }
    const SCRIPT: &str = r"
import os
def make(path, flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o666):
    try:
        fd = os.open(path, flags, mode)
        os.write(fd, b'data')
        os.close(fd)
        return oct(os.stat(path).st_mode)
    except OSError as error:
        return error.errno
os.umask(0o027)
for path in ['new', 'new', 'file', 'directory', 'directory/', 'file/', 'dangling', 'link', 'absent/new', 'file/new',
             'directory/new', 'directory/../other', 'dangling/new', 'n' * 255, 'n' * 256, '.', '..', '']:
    print(path, make(path))
print(make('more', os.O_RDWR | os.O_CREAT | os.O_TRUNC), make('more', os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
print(make('special', mode=0o4755), make('read', os.O_RDONLY | os.O_CREAT | os.O_EXCL))
os.unlink('new')
print(make('new'), make('new'))
print([make('appended', os.O_WRONLY | os.O_CREAT | os.O_APPEND) for number in range(3)], os.stat('appended').st_size)
os.setgroups([])
os.setgid(1001)
os.setuid(1001)
print([make(path) for path in ['denied', 'file', 'closed/new', 'closed/file', 'own/new', 'own/new']])
";
    for arguments in [LARGE, WITH_TABLE, NEVER, &["--cache=auto"]] {
        agrees(arguments, SCRIPT, |root| {
            fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
            for directory in ["directory", "closed", "own"] {
                fs::create_dir(root.join(directory)).unwrap();
            }
            fs::write(root.join("file"), "").unwrap();
            fs::write(root.join("closed/file"), "").unwrap();
            fs::set_permissions(root.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
            chown(root.join("own"), Some(1001), Some(1001)).unwrap();
            std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
            std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        });
    }
}

#[test]
fn what_was_written_and_closed_can_be_executed_and_seen_on_the_other_road_at_once() {
    let place = bypass(LARGE, |_| ());
    const SCRIPT: &str = r"
import os, shutil, subprocess, sys
for number in range(60):
    with open('program', 'wb') as file, open('/bin/true', 'rb') as true:
        shutil.copyfileobj(true, file)
    os.chmod('program', 0o755)
    subprocess.run(['./program'], check=True)
    os.unlink('program')
print('executed')
";
    let output = place.command("python3").args(["-c", SCRIPT]).output().unwrap();
    assert_eq!(
        (text(&output.stdout).trim(), output.status.success()),
        ("executed", true),
        "{}",
        said(&output)
    );
    let mut writer = Reader::new(&place, &[]);
    for round in 1..40 {
        let data = "x".repeat(round * 100);
        let script = format!("printf %s {data} > file");
        let output = place.command("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        // By the kernel, which has looked at it before.
        assert_eq!(fs::metadata(place.path().join("file")).unwrap().len(), data.len() as u64);
        assert_eq!(fs::read_to_string(place.path().join("file")).unwrap(), data);
        assert_eq!(writer.reads("file"), data);
    }
}

#[test]
fn closes_that_nobody_waits_for_leave_nothing_behind() {
    const FILES: usize = 3000;
    let place = bypass(LARGE, |root| {
        for number in 0..FILES {
            fs::write(root.join(format!("file{number}")), "contents").unwrap();
        }
    });
    const SCRIPT: &str = r"
import os, signal, sys, threading
def reads(first):
    for number in list(range(first, 3000, 7)) * 3:
        fd = os.open('file%d' % number, os.O_RDONLY)
        assert os.read(fd, 100) == b'contents'
        os.close(fd)
threads = [threading.Thread(target=reads, args=(first,)) for first in range(7)]
for thread in threads: thread.start()
for thread in threads: thread.join()
# All slots are there again: as many calls as there are slots would not be, if any were lost.
threads = [threading.Thread(target=reads, args=(first,)) for first in range(60)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for number in range(200):
    os.close(os.open('file%d' % number, os.O_RDONLY))
print('done', flush=True)
if sys.argv[1] == 'dies':
    os.close(os.open('file0', os.O_RDONLY))
    os.kill(os.getpid(), signal.SIGKILL)
";
    for how in ["ends", "dies"] {
        let before = place.mount().account();
        let output = place.command("python3").args(["-c", SCRIPT, how]).output().unwrap();
        assert_eq!(text(&output.stdout).trim(), "done", "{}", said(&output));
        let calls = place.mount().account().since(&before);
        assert!(!calls.to_kernel.contains_key("no-slot"), "{calls:?}");
        assert!(calls.answered["close"] >= FILES as u64 * 6, "{calls:?}");
        wait::eventually("everything is closed", || held(&place, "file") == 0);
    }
}

#[test]
fn a_daemon_with_few_descriptors_keeps_few_open() {
    let options = Options { wrapper: &["prlimit", "--nofile=256:256"], ..options(LARGE) };
    let place = Place::new(Road::Bypass, &options, |root| {
        for number in 0..2000 {
            fs::write(root.join(format!("file{number}")), "contents").unwrap();
        }
    });
    const SCRIPT: &str = r"
import os
for number in list(range(2000)) * 2:
    fd = os.open('file%d' % number, os.O_RDONLY)
    assert os.read(fd, 100) == b'contents'
    os.close(fd)
kept = [os.open('file%d' % number, os.O_RDONLY) for number in range(100)]
print(all(os.read(fd, 100) == b'contents' for fd in kept))
";
    let output = place.command("python3").args(["-c", SCRIPT]).output().unwrap();
    assert_eq!(text(&output.stdout).trim(), "True", "{}", said(&output));
    assert!(held(&place, "file") <= 256 / 4 + 100);
}
