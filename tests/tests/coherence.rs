//! Preloaded and unmodified processes on one mount always see the same: what a call has changed on one road,
//! the next call on the other road sees.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use finesse_tests::mount::Options;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;

/// A preloaded process that does what it is told, one line at a time.
struct Preloaded {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// Answers a line per command: its result, or the errno's name. `see` tells everything that a name shows.
const HELPER: &str = r#"
import errno, mmap, os, sys
held, maps = {}, {}
def see(path):
    try: s = os.lstat(path)
    except FileNotFoundError: return "nothing"
    kind = s.st_mode >> 12
    text = f"{s.st_mode:o} {s.st_nlink} {s.st_mtime_ns}"
    if kind == 8:
        with open(path, "rb") as f: return f"{text} {s.st_size} {f.read().hex()}"
    if kind == 10: return f"{text} {os.readlink(path)}"
    return f"{text} {','.join(sorted(os.listdir(path)))}"
def write(path, data):
    with open(path, "w") as f: f.write(data)
def append(path, data):
    with open(path, "a") as f: f.write(data)
def storm(directory, count):
    for number in range(int(count)):
        one, two = f"{directory}/{number % 7}", f"{directory}/{number % 5}.moved"
        for step in (lambda: write(one, "1"), lambda: os.rename(one, two), lambda: os.link(two, one),
                     lambda: os.unlink(two), lambda: os.chmod(one, 0o600 + number % 8), lambda: os.unlink(one),
                     lambda: os.mkdir(two), lambda: os.rmdir(two)):
            try: step()
            except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError): pass
def hold(path, flags):
    held[path] = os.open(path, {"r": os.O_RDONLY, "a": os.O_RDWR | os.O_APPEND | os.O_CREAT, "w": os.O_RDWR}[flags], 0o600)
commands = {
    "see": see, "write": write, "append": append, "truncate": lambda p, n: os.truncate(p, int(n)),
    "rename": os.rename, "unlink": os.unlink, "chmod": lambda p, m: os.chmod(p, int(m, 8)),
    "mkdir": os.mkdir, "rmdir": os.rmdir, "symlink": os.symlink, "link": os.link,
    "utime": lambda p, s: os.utime(p, (int(s), int(s))),
    "storm": storm, "hold": hold, "put": lambda p, data: os.write(held[p], data.encode()) and None,
    "cut": lambda p, n: os.ftruncate(held[p], int(n)), "fchmod": lambda p, m: os.fchmod(held[p], int(m, 8)),
    "futime": lambda p, s: os.utime(held[p], (int(s), int(s))),
    "drop": lambda p: os.close(held.pop(p)), "set": lambda p, data: os.pwrite(held[p], data.encode(), 0) and None,
    "map": lambda p: maps.update({p: mmap.mmap(os.open(p, os.O_RDWR), 4096)}),
    "mapped": lambda p, n: maps[p][:int(n)].decode(),
    "chdir": os.chdir, "above": lambda: os.stat("..").st_ino, "links": lambda p: os.lstat(p).st_nlink,
}
for line in sys.stdin:
    command, *arguments = line.rstrip("\n").split("\t")
    try: answer = commands[command](*arguments)
    except OSError as e: answer = errno.errorcode[e.errno]
    print("ok" if answer is None else answer, flush=True)
"#;

impl Preloaded {
    fn new(place: &Place) -> Self {
        Self::on(Road::Bypass, place)
    }

    /// One that takes this road.
    fn on(road: Road, place: &Place) -> Self {
        let mut child = place
            .command_on(road, "/usr/bin/python3")
            .args(["-c", HELPER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn ask(&mut self, words: &[&str]) -> String {
        writeln!(self.stdin, "{}", words.join("\t")).expect("the helper lives");
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the helper ended at {words:?}");
        line.truncate(line.len() - 1);
        line
    }

    fn tell(&mut self, words: &[&str]) {
        assert_eq!(self.ask(words), "ok", "{words:?}");
    }
}

impl Drop for Preloaded {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the helper's `see` tells, seen through the kernel.
fn see(path: &Path) -> String {
    let Ok(metadata) = path.symlink_metadata() else { return "nothing".to_owned() };
    let modified = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
    let text = format!("{:o} {} {modified}", metadata.mode(), metadata.nlink());
    if metadata.is_file() {
        let mut contents = String::new();
        for byte in fs::read(path).unwrap() {
            contents += &format!("{byte:02x}");
        }
        format!("{text} {} {contents}", metadata.len())
    } else if metadata.is_symlink() {
        format!("{text} {}", fs::read_link(path).unwrap().display())
    } else {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        format!("{text} {}", names.join(","))
    }
}

fn one_mount() -> Place {
    // The longest trust in caches that the command offers: what is not invalidated stays for long.
    Place::new(Road::Bypass, &Options { arguments: &["--cache=always"], ..Options::default() }, |_| {})
}

/// One change of some name.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write,
    Append,
    Truncate,
    Rename,
    Unlink,
    Chmod,
    Mkdir,
    Rmdir,
    Symlink,
    Link,
    Utime,
}

/// Over and over, everything is made, changed, replaced and removed.
const CHANGES: [Change; 15] = [
    Change::Write,
    Change::Append,
    Change::Chmod,
    Change::Truncate,
    Change::Link,
    Change::Unlink,
    Change::Rename,
    Change::Utime,
    Change::Write,
    Change::Append,
    Change::Unlink,
    Change::Mkdir,
    Change::Rmdir,
    Change::Symlink,
    Change::Unlink,
];

fn through_the_kernel(change: Change, path: &Path, other: &Path, number: usize) {
    let contents = format!("kernel {number}");
    match change {
        Change::Write => fs::write(path, contents),
        Change::Append => OpenOptions::new()
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(contents.as_bytes())),
        Change::Truncate => OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(3)),
        Change::Rename => fs::rename(other, path),
        Change::Unlink => fs::remove_file(path),
        Change::Chmod => fs::set_permissions(path, PermissionsExt::from_mode(0o600 + number as u32 % 64)),
        Change::Mkdir => fs::create_dir(path),
        Change::Rmdir => fs::remove_dir(path),
        Change::Symlink => symlink(contents, path),
        Change::Link => fs::hard_link(path, other),
        Change::Utime => File::open(path).and_then(|file| {
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(number as u64))
        }),
    }
    .unwrap_or_else(|error| panic!("{change:?} through the kernel, step {number}: {error}"));
}

fn through_the_bypass(helper: &mut Preloaded, change: Change, path: &str, other: &str, number: usize) {
    let contents = format!("bypass {number}");
    let mode = format!("{:o}", 0o600 + number % 64);
    let seconds = number.to_string();
    let words: &[&str] = match change {
        Change::Write => &["write", path, &contents],
        Change::Append => &["append", path, &contents],
        Change::Truncate => &["truncate", path, "3"],
        Change::Rename => &["rename", other, path],
        Change::Unlink => &["unlink", path],
        Change::Chmod => &["chmod", path, &mode],
        Change::Mkdir => &["mkdir", path],
        Change::Rmdir => &["rmdir", path],
        Change::Symlink => &["symlink", &contents, path],
        Change::Link => &["link", path, other],
        Change::Utime => &["utime", path, &seconds],
    };
    helper.tell(words);
}

#[test]
fn each_road_sees_the_others_changes_at_once() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let (path, other) = (place.path().join("x"), place.path().join("y"));
    let (name, other_name) = (path.to_str().unwrap(), other.to_str().unwrap());
    // An odd number of steps, so that each change is made by the kernel road in one round, by the bypass in the
    // next.
    const { assert!(CHANGES.len() % 2 == 1) };
    for (number, change) in CHANGES.iter().cycle().take(2600).enumerate() {
        if number % 2 == 0 {
            through_the_kernel(*change, &path, &other, number);
        } else {
            through_the_bypass(&mut helper, *change, name, other_name, number);
        }
        for (path, name) in [(&path, name), (&other, other_name), (&place.path().to_owned(), ".")] {
            // The road that did not make the change looks first.
            let (kernel, bypass) = if number % 2 == 0 {
                let bypass = helper.ask(&["see", name]);
                (see(path), bypass)
            } else {
                (see(path), helper.ask(&["see", name]))
            };
            let truth = match name {
                "." => see(place.source()),
                _ => see(&place.source().join(path.file_name().unwrap())),
            };
            assert_eq!((&kernel, &bypass), (&truth, &truth), "step {number}, {change:?}, {name}");
        }
    }
    let account = place.mount().account();
    let answered: u64 = account.answered.values().sum();
    assert!(answered > 5000, "the helper took the bypass: {account:?}");
}

#[test]
fn what_is_written_through_a_granted_descriptor_is_seen_at_once() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let path = place.path().join("log");
    let name = path.to_str().unwrap();
    helper.tell(&["hold", name, "a"]);
    let mut reader = File::open(&path).unwrap();
    let mut expected = String::new();
    for number in 0..300 {
        let line = format!("line {number} ");
        helper.tell(&["put", name, &line]);
        expected += &line;
        assert_eq!(path.metadata().unwrap().len(), expected.len() as u64, "stat, step {number}");
        assert_eq!(reader.metadata().unwrap().len(), expected.len() as u64, "fstat, step {number}");
        let mut tail = String::new();
        reader.read_to_string(&mut tail).unwrap();
        assert_eq!(tail, line, "an open file reads on, step {number}");
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "read, step {number}");
        // And the other way: the kernel road appends, the granted descriptor's owner sees it.
        let line = format!("kernel {number} ");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(line.as_bytes()).unwrap();
        expected += &line;
        reader.seek(std::io::SeekFrom::End(0)).unwrap();
        let seen = helper.ask(&["see", name]);
        assert_eq!(seen, see(&path), "step {number}");
    }
    helper.tell(&["cut", name, "5"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "line ");
    helper.tell(&["drop", name]);
    helper.tell(&["append", name, "after"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "line after");
}

#[test]
fn attributes_changed_through_a_granted_descriptor_are_seen_at_once() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let path = place.path().join("file");
    let name = path.to_str().unwrap();
    fs::write(&path, "contents").unwrap();
    helper.tell(&["hold", name, "r"]);
    for number in 0..200u32 {
        let mode = 0o600 + number % 64;
        // Both roads have just looked.
        assert_eq!(helper.ask(&["see", name]), see(&path));
        helper.tell(&["fchmod", name, &format!("{mode:o}")]);
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode, "the kernel road");
        assert_eq!(helper.ask(&["see", name]), see(&path), "the bypass");
        helper.tell(&["futime", name, &number.to_string()]);
        assert_eq!(path.metadata().unwrap().mtime(), i64::from(number), "the kernel road");
        assert_eq!(helper.ask(&["see", name]), see(&path), "the bypass");
    }
}

#[test]
fn names_that_did_not_exist_are_found_once_they_do() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    for number in 0..300 {
        let path = place.path().join(format!("f{number}"));
        let name = path.to_str().unwrap();
        assert_eq!(helper.ask(&["see", name]), "nothing");
        assert_eq!(see(&path), "nothing");
        if number % 2 == 0 {
            OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path).unwrap();
        } else {
            helper.tell(&["write", name, ""]);
        }
        assert_ne!(helper.ask(&["see", name]), "nothing");
        assert_eq!(helper.ask(&["see", name]), see(&path));
        let error = OpenOptions::new().write(true).create_new(true).open(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    }
}

#[test]
fn a_renamed_directory_is_found_by_its_new_name_only() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let at = |name: &str| place.path().join(name);
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    fs::create_dir_all(at("d0/e")).unwrap();
    fs::write(at("d0/e/f"), "inside").unwrap();
    for number in 0..200 {
        let (old, new) = (at(&format!("d{number}")), at(&format!("d{}", number + 1)));
        let (old_file, new_file) = (old.join("e/f"), new.join("e/f"));
        assert_eq!(helper.ask(&["see", &text(&old_file)]), see(&old_file));
        if number % 2 == 0 {
            fs::rename(&old, &new).unwrap();
        } else {
            helper.tell(&["rename", &text(&old), &text(&new)]);
        }
        assert_eq!(helper.ask(&["see", &text(&old_file)]), "nothing");
        assert_eq!(see(&old_file), "nothing");
        assert_eq!(helper.ask(&["see", &text(&new_file)]), see(&new_file));
        assert_ne!(see(&new_file), "nothing");
    }
}

#[test]
fn what_the_kernel_road_writes_is_seen_by_a_bypass_that_only_looked() {
    let place =
        Place::new(Road::Bypass, &Options { arguments: &["--cache=always"], ..Options::default() }, |root| {
            fs::write(root.join("log"), "").unwrap()
        });
    let mut helper = Preloaded::new(&place);
    let path = place.path().join("log");
    let name = path.to_str().unwrap();
    let mut held = OpenOptions::new().append(true).open(&path).unwrap();
    for number in 0..100 {
        assert_eq!(helper.ask(&["see", name]), see(&path), "step {number}");
        // A file that stays open, and one that is opened anew.
        held.write_all(b"held ").unwrap();
        assert_eq!(helper.ask(&["see", name]), see(&path), "held open, step {number}");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"anew ").unwrap();
        assert_eq!(helper.ask(&["see", name]), see(&path), "opened anew, step {number}");
        held.set_permissions(PermissionsExt::from_mode(0o600 + number % 64)).unwrap();
        assert_eq!(helper.ask(&["see", name]), see(&path), "permissions, step {number}");
        if number % 10 == 9 {
            held.set_len(u64::from(number)).unwrap();
            assert_eq!(helper.ask(&["see", name]), see(&path), "length, step {number}");
        }
    }
    let account = place.mount().account();
    assert!(account.answered["stat"] > 200, "{account:?}");
}

#[test]
fn the_directory_above_is_where_another_road_has_moved_it() {
    for policy in ["--cache=never", "--cache=always"] {
        let place =
            Place::new(Road::Bypass, &Options { arguments: &[policy], ..Options::default() }, |root| {
                fs::create_dir_all(root.join("a/d")).unwrap();
                fs::create_dir(root.join("b")).unwrap();
            });
        let mut helper = Preloaded::new(&place);
        let at = |name: &str| place.path().join(name);
        helper.tell(&["chdir", at("a/d").to_str().unwrap()]);
        let inode = |name: &str| fs::metadata(at(name)).unwrap().ino().to_string();
        for number in 0..50 {
            let (here, there) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
            assert_eq!(helper.ask(&["above"]), inode(here), "{policy}, step {number}");
            fs::rename(at(here).join("d"), at(there).join("d")).unwrap();
            assert_eq!(helper.ask(&["above"]), inode(there), "{policy}, moved, step {number}");
        }
    }
}

#[test]
fn a_link_removed_on_the_other_road_is_not_counted_any_more() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let (one, other) = (place.path().join("one"), place.path().join("other"));
    fs::write(&one, "").unwrap();
    for number in 0..50 {
        fs::hard_link(&one, &other).unwrap();
        assert_eq!(helper.ask(&["links", one.to_str().unwrap()]), "2", "step {number}");
        fs::remove_file(&other).unwrap();
        assert_eq!(helper.ask(&["links", one.to_str().unwrap()]), "1", "removed, step {number}");
    }
}

#[test]
fn an_open_file_tells_what_the_other_road_did_to_its_names() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let names = ["one", "two", "three"].map(|name| place.path().join(name).to_str().unwrap().to_owned());
    let [one, two, three] = names.each_ref().map(String::as_str);
    for number in 0..50 {
        fs::write(one, "contents").unwrap();
        let by_path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(one).unwrap();
        let file = File::open(one).unwrap();
        let links = || (file.metadata().unwrap().nlink(), by_path.metadata().unwrap().nlink());
        assert_eq!(links(), (1, 1), "step {number}");
        helper.tell(&["rename", one, two]);
        let changed = file.metadata().unwrap().ctime_nsec();
        helper.tell(&["link", two, three]);
        assert_eq!(links(), (2, 2), "linked, step {number}");
        assert_ne!(file.metadata().unwrap().ctime_nsec(), changed, "step {number}");
        helper.tell(&["unlink", two]);
        assert_eq!(links(), (1, 1), "one removed, step {number}");
        helper.tell(&["unlink", three]);
        assert_eq!(links(), (0, 0), "both removed, step {number}");
    }
}

#[test]
fn files_that_the_other_road_removes_are_gone_at_once_and_given_up_soon() {
    const FILES: u64 = 2000;
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let path = |number: u64| place.path().join(format!("f{number}"));
    for number in 0..FILES {
        fs::write(path(number), "x").unwrap();
    }
    for number in 0..FILES {
        assert_eq!(path(number).metadata().unwrap().len(), 1);
    }
    let known = || place.mount().account().known_inodes;
    assert!(known() >= FILES, "{}", known());
    let open = File::open(path(0)).unwrap();
    for number in 0..FILES {
        helper.tell(&["unlink", path(number).to_str().unwrap()]);
        assert_eq!(see(&path(number)), "nothing");
    }
    let name = fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap();
    assert!(name.to_str().unwrap().ends_with("f0 (deleted)"), "{}", name.display());
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    eventually("the kernel has given up what nobody has open", || known() < 10);
    assert_eq!(fs::read(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap(), b"x");
}

/// Notifications wait for locks that the kernel's requests hold, which wait for the daemon.
#[test]
fn both_roads_can_work_in_one_directory_at_once() {
    let place = one_mount();
    let directory = place.path().join("shared");
    fs::create_dir(&directory).unwrap();
    let mut helper = Preloaded::new(&place);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for own in ["a", "b", "c"] {
            let (directory, done) = (&directory, &done);
            scope.spawn(move || {
                let own = directory.join(own);
                while !done.load(Ordering::SeqCst) {
                    for number in 0..7 {
                        // Whatever is there at the moment.
                        let _ = fs::metadata(directory.join(number.to_string()));
                        let _ = fs::read(directory.join(format!("{number}.moved")));
                    }
                    fs::write(&own, "own").unwrap();
                    assert!(fs::read_dir(directory).unwrap().count() > 0);
                    fs::rename(&own, own.with_extension("moved")).unwrap();
                    assert_eq!(fs::metadata(own.with_extension("moved")).unwrap().len(), 3);
                    fs::remove_file(own.with_extension("moved")).unwrap();
                    let _ = fs::remove_file(directory.join("3"));
                }
            });
        }
        helper.tell(&["storm", directory.to_str().unwrap(), "1000"]);
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(see(&directory), see(&place.source().join("shared")));
}

#[test]
fn what_is_mounted_below_stays_whatever_a_program_tries_to_do_to_its_place() {
    if !finesse_tests::needs::root("what_is_mounted_below_stays_whatever_a_program_tries_to_do_to_its_place")
    {
        return;
    }
    let place = one_mount();
    let below = place.path().join("below");
    fs::create_dir(&below).unwrap();
    let mounting = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&below).status();
    assert!(mounting.unwrap().success(), "this test must be allowed to mount");
    let device = fs::metadata(&below).unwrap().dev();
    let mut helper = Preloaded::new(&place);
    let name = below.to_str().unwrap();
    assert_eq!(helper.ask(&["mkdir", name]), "EEXIST");
    assert_eq!(helper.ask(&["rmdir", name]), "EBUSY");
    assert_eq!(helper.ask(&["unlink", name]), "EISDIR");
    assert_eq!(helper.ask(&["rename", name, &format!("{name}.moved")]), "EBUSY");
    assert_eq!(fs::metadata(&below).unwrap().dev(), device);
    drop(helper);
    finesse_tests::mount::unmount(&below);
}

#[test]
fn a_directory_made_again_under_its_name_can_be_used() {
    let place = one_mount();
    let mut helper = Preloaded::new(&place);
    let (lock, inside) = (place.path().join("lock"), place.path().join("lock/pid"));
    let (lock_name, inside_name) = (lock.to_str().unwrap(), inside.to_str().unwrap());
    for number in 0..300 {
        helper.tell(&["mkdir", lock_name]);
        helper.tell(&["write", inside_name, "1"]);
        assert_eq!(helper.ask(&["see", inside_name]), see(&inside), "step {number}");
        if number % 2 == 0 {
            fs::remove_file(&inside).unwrap();
            fs::remove_dir(&lock).unwrap();
        } else {
            helper.tell(&["unlink", inside_name]);
            helper.tell(&["rmdir", lock_name]);
        }
        assert_eq!(helper.ask(&["see", lock_name]), "nothing", "step {number}");
    }
}

/// Appends until it is told to stop, and says how long the file is at least.
const GROW: &str = "
import os, select, sys
fd = os.open('grows', os.O_WRONLY | os.O_APPEND)
size = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for turn in range(4): size += os.write(fd, b'x' * 700)
    print(size, flush=True)
";

/// The kernel ignores the size in an answer that a notification has overtaken: of a file that grows all the time, any.
#[test]
fn what_grows_on_the_bypass_can_be_read_to_its_end_through_the_kernel() {
    for place in [
        Place::new(
            Road::Bypass,
            &Options { arguments: &["-o", "grant=never"], ..Options::default() },
            |_| (),
        ),
        Place::of_memory(Road::Bypass, &Options::default()),
    ] {
        let path = place.path().join("grows");
        fs::write(&path, "").unwrap();
        let file = File::open(&path).unwrap();
        let mut command = place.command("/usr/bin/python3");
        let command = command.args(["-c", GROW]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut writer = command.spawn().unwrap();
        let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
        for turn in 0..1500 {
            let size: u64 = said.next().unwrap().unwrap().parse().unwrap();
            let mut byte = [0];
            let read = file.read_at(&mut byte, size - 1).unwrap();
            assert_eq!((read, byte), (1, *b"x"), "byte {size} in turn {turn}");
        }
        drop(writer.stdin.take());
        said.for_each(drop);
        assert!(writer.wait().unwrap().success());
        let calls = place.mount().account();
        assert!(calls.answered.get("write").is_some_and(|count| *count >= 6000), "{calls:?}");
    }
}

/// A file that the kernel has open for direct input and output, because it was open on the bypass before, and mapped, is not granted for
/// writing, however often it is written to.
#[test]
fn a_mapping_shows_whatever_is_written_on_the_bypass() {
    for arguments in [&["--cache=always", "-o", "grant=large"], &["--cache=auto", "-o", "grant=large"]] {
        let place = Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |root| {
            fs::write(root.join("file"), [b'-'; 4096]).unwrap();
        });
        let (mut writer, mut other) = (Preloaded::new(&place), Preloaded::on(Road::Kernel, &place));
        let file = place.path().join("file");
        let name = file.to_str().unwrap();
        writer.tell(&["hold", name, "w"]);
        other.tell(&["map", name]);
        for number in 100..160 {
            let text = number.to_string();
            writer.tell(&["set", name, &text]);
            assert_eq!(other.ask(&["mapped", name, "3"]), text, "{arguments:?}");
        }
    }
}

#[test]
fn a_descriptor_opened_on_a_read_only_mount_changes_nothing() {
    let place =
        Place::new(Road::Bypass, &Options { arguments: &["-o", "ro"], ..Options::default() }, |root| {
            fs::write(root.join("file"), "as it was").unwrap();
            fs::set_permissions(root.join("file"), PermissionsExt::from_mode(0o644)).unwrap();
        });
    let mut helper = Preloaded::new(&place);
    let file = place.path().join("file");
    let name = file.to_str().unwrap();
    helper.tell(&["hold", name, "r"]);
    assert_eq!(helper.ask(&["fchmod", name, "600"]), "EROFS");
    assert_eq!(helper.ask(&["futime", name, "1"]), "EROFS");
    assert_eq!(fs::metadata(place.source().join("file")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn what_a_program_is_in_or_has_open_is_seen_removed_after_the_kernel_was_made_to_forget_all_names() {
    let crowded = Options {
        arguments: &["--cache=always"],
        // No release has this: the filter of names that the kernel knows is full at once, and is started over.
        wrapper: &["env", "FINESSE_MUTANT=room for names"],
        ..Options::default()
    };
    let place = Place::new(Road::Bypass, &crowded, |root| {
        fs::create_dir(root.join("directory")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        fs::create_dir(root.join("many")).unwrap();
        for number in 0..2000 {
            fs::write(root.join(format!("many/{number}")), "").unwrap();
        }
    });
    let file = File::open(place.path().join("file")).unwrap();
    let directory = File::open(place.path().join("directory")).unwrap();
    for number in 0..2000 {
        fs::metadata(place.path().join(format!("many/{number}"))).unwrap();
    }
    for (program, name, open) in [("rmdir", "directory", &directory), ("unlink", "file", &file)] {
        assert!(place.command(program).arg(name).status().unwrap().success());
        let shown = fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap();
        assert!(shown.to_str().unwrap().ends_with(&format!("/{name} (deleted)")), "{}", shown.display());
    }
}
