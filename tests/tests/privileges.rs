//! What changes a file takes its set-user-ID and set-group-ID bits and its capabilities away, unless the one who does it may
//! keep them: the same on all roads.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use finesse_tests::build;
use finesse_tests::mount::{Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::uring::Offer;
use rustix::fs::{XattrFlags, setxattr};

/// Who changes files: a name, and how setpriv(1) makes such a user.
const USERS: [(&str, &[&str]); 6] = [
    ("root", &["setpriv"]),
    ("root without CAP_FSETID", &["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"]),
    ("owner", &["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups"]),
    ("stranger", &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]),
    (
        "member by a supplementary group only",
        &["setpriv", "--reuid=1002", "--regid=1002", "--groups=1002,2000"],
    ),
    (
        "stranger with CAP_FSETID",
        &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=+fsetid",
            "--ambient-caps=+fsetid",
        ],
    ),
];

const MODES: [&str; 6] = ["0777", "4777", "2777", "6777", "2767", "6767"];

/// Changes files, each of which is named after the change, and prints what is left of their privileges.
const CHANGES: &str = r#"
import errno, mmap, os, sys
page = mmap.mmap(-1, 4096)
page.write(b"y" * 4096)
source = os.open("source-of-copies", os.O_RDONLY)
def by_fd(flags, change):
    def run(path):
        fd = os.open(path, flags)
        try: change(fd)
        finally: os.close(fd)
    return run
def again(fd):
    # What the kernel found out at the first write must not hold for the second.
    os.write(fd, b"x")
    os.fchmod(fd, 0o6777)
    os.write(fd, b"y")
def mapped(fd):
    with mmap.mmap(fd, 4096) as m: m[0:1] = b"m"
W, RW = os.O_WRONLY, os.O_RDWR
changes = {
    "nothing": by_fd(RW, lambda fd: os.read(fd, 10)),
    "write": by_fd(W, lambda fd: os.write(fd, b"x")),
    "write nothing": by_fd(W, lambda fd: os.write(fd, b"")),
    "pwrite": by_fd(RW, lambda fd: os.pwrite(fd, b"x", 5000)),
    "writev": by_fd(RW, lambda fd: os.writev(fd, [b"x", b"y"])),
    "write twice": by_fd(W, lambda fd: (os.write(fd, b"x"), os.write(fd, b"y"))),
    "append": by_fd(W | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "direct": by_fd(W | os.O_DIRECT, lambda fd: os.writev(fd, [page])),
    "mapped": by_fd(RW, mapped),
    "truncate": lambda path: os.truncate(path, 100),
    "truncate to its length": lambda path: os.truncate(path, 8192),
    "ftruncate": by_fd(W, lambda fd: os.ftruncate(fd, 100)),
    "O_TRUNC": by_fd(W | os.O_TRUNC, lambda fd: None),
    "O_CREAT and O_TRUNC": by_fd(W | os.O_CREAT | os.O_TRUNC, lambda fd: None),
    "fallocate": by_fd(W, lambda fd: os.posix_fallocate(fd, 0, 10000)),
    "copy_file_range": by_fd(W, lambda fd: os.copy_file_range(source, fd, 100, 0, 0)),
    "sendfile": by_fd(W, lambda fd: os.sendfile(fd, source, 0, 100)),
    "chown": lambda path: os.chown(path, -1, os.getegid()),
    "chown to whom it belongs": lambda path: os.chown(path, -1, -1),
    "fchown to whom it belongs": by_fd(RW, lambda fd: os.fchown(fd, -1, -1)),
    "chown after a write": by_fd(W, lambda fd: (os.write(fd, b"x"), os.fchown(fd, -1, -1))),
    "utime": lambda path: os.utime(path),
    "chmod in between": by_fd(W, again),
}
def capabilities(path):
    try: return len(os.getxattr(path, "security.capability"))
    except OSError as e: return errno.errorcode[e.errno]
for mode in sys.argv[1:]:
    for name, change in changes.items():
        path = f"{mode}/{name}"
        try: change(path); result = "ok"
        except OSError as e: result = errno.errorcode[e.errno]
        # What was written to memory the kernel hands to the daemon later, whose write takes capabilities away.
        left = "" if name == "mapped" else capabilities(path)
        print(f"{path}: {result} {os.stat(path).st_mode:o} {left}")
"#;

/// The names in [`CHANGES`].
fn changes() -> Vec<&'static str> {
    let lines = CHANGES.lines().filter_map(|line| line.strip_prefix("    \"")?.split_once("\": "));
    lines.map(|(name, _)| name).collect()
}

fn fill(root: &Path) {
    fs::write(root.join("source-of-copies"), [b'c'; 4096]).unwrap();
    // CAP_SETUID, permitted and effective (`struct vfs_cap_data`, version 2).
    let capability: Vec<u8> =
        [0x0200_0001u32, 1 << 7, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    for mode in MODES {
        let directory = root.join(mode);
        fs::create_dir(&directory).unwrap();
        for name in changes() {
            let file = directory.join(name);
            fs::write(&file, [b'z'; 8192]).unwrap();
            chown(&file, Some(1001), Some(2000)).unwrap();
            setxattr(&file, "security.capability", &capability, XattrFlags::empty()).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(u32::from_str_radix(mode, 8).unwrap()))
                .unwrap();
        }
    }
}

fn left(place: &Place, finesse: &Path, wrapper: &[&str]) -> BTreeSet<String> {
    let mut command = place.command_as(finesse, wrapper, "/usr/bin/python3");
    let output = command.args(["-c", CHANGES]).args(MODES).output().unwrap();
    assert!(output.status.success(), "{wrapper:?} on the {}: {}", place.road(), said(&output));
    let lines: BTreeSet<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), MODES.len() * changes().len(), "{}", said(&output));
    lines
}

/// Compares the roads, on mounts with these arguments.
fn compare(arguments: &[&str]) {
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    let mut failures = Vec::new();
    for (user, wrapper) in USERS {
        let options = Options { arguments, ..Options::default() };
        // Each by itself: what they change stays changed.
        let places = Place::on_all_roads(&options, fill);
        let [native, kernel, bypass] = places.each_ref().map(|place| left(place, &finesse, wrapper));
        for (road, found) in [(Road::Kernel, kernel), (Road::Bypass, bypass)] {
            for line in native.symmetric_difference(&found) {
                let sign = if native.contains(line) { "native" } else { "here  " };
                failures.push(format!("{user} on the {road}: {sign} {line}"));
            }
        }
    }
    assert!(failures.is_empty(), "{arguments:?}: {} lines differ\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_a_change_takes_away_of_files_that_the_kernel_serves() {
    if needs::root("what_a_change_takes_away_of_files_that_the_kernel_serves") {
        compare(&[]);
    }
}

#[test]
fn what_a_change_takes_away_of_files_that_the_daemon_serves() {
    if needs::root("what_a_change_takes_away_of_files_that_the_daemon_serves") {
        compare(&["-o", "grant=never"]);
    }
}

#[test]
fn what_a_change_takes_away_of_files_that_change_by_the_mount_alone() {
    if needs::root("what_a_change_takes_away_of_files_that_change_by_the_mount_alone") {
        compare(&["-o", "cache=always,grant=large"]);
    }
}

#[test]
fn what_a_change_takes_away_through_io_uring() {
    if let Some(_offer) = Offer::set(true, "what_a_change_takes_away_through_io_uring") {
        compare(&["-o", "transport=uring,grant=large"]);
    }
}

/// Changes of the mode on one road count for what was opened on the other.
#[test]
fn a_writer_takes_away_what_was_given_on_the_other_road() {
    const WRITER: &str = r#"
import os, sys
fd = os.open("file", os.O_RDWR)
# The first write has the kernel find that there is nothing to take away.
os.write(fd, b"1")
print(flush=True)
input()
{"write": lambda: os.write(fd, b"2"),
 "allocate": lambda: os.posix_fallocate(fd, 0, 100000),
 "copy": lambda: os.copy_file_range(fd, fd, 4, 0, 4)}[sys.argv[1]]()
"#;
    let test = "a_writer_takes_away_what_was_given_on_the_other_road";
    if !needs::root(test) {
        return;
    }
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    for arguments in [&[][..], &["-o", "grant=never"], &["-o", "cache=always"]] {
        for change in ["write", "allocate", "copy"] {
            let options = Options { arguments, ..Options::default() };
            let place = Place::new(Road::Bypass, &options, |root| {
                fs::write(root.join("file"), "contents").unwrap();
                fs::set_permissions(root.join("file"), PermissionsExt::from_mode(0o777)).unwrap();
            });
            // Looking at the mount would have the kernel look, too.
            let mode = || fs::metadata(place.source().join("file")).unwrap().mode() & 0o7777;
            let mut writer = place.command_on(Road::Kernel, "setpriv");
            writer.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"]);
            writer.args([WRITER, change]);
            let mut writer = Conversation::start(writer);
            writer.hear();
            let chmod = place.command_as(&finesse, &[], "chmod").args(["6777", "file"]).output().unwrap();
            assert!(chmod.status.success(), "{}", said(&chmod));
            assert_eq!(mode(), 0o6777, "{arguments:?}, {change}");
            writer.end();
            assert_eq!(mode(), 0o777, "{arguments:?}, {change}");
        }
    }
}

/// A program that says a line when it waits, and goes on when it is told to.
struct Conversation(std::process::Child);

impl Conversation {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn hear(&mut self) {
        self.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }

    fn end(mut self) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

/// As natively, the kernel finds out once that there is nothing to take away, not before each write.
#[test]
fn writing_asks_for_no_attribute_each_time() {
    const WRITES: u64 = 200;
    let test = "writing_asks_for_no_attribute_each_time";
    if !needs::root(test) {
        return;
    }
    for arguments in [&[][..], &["-o", "grant=never"]] {
        let options = Options { arguments, count_kernel_requests: true, ..Options::default() };
        let mut place = Place::new(Road::Kernel, &options, |root| fs::write(root.join("file"), "").unwrap());
        let file = File::options().write(true).open(place.path().join("file")).unwrap();
        for i in 0..WRITES {
            file.write_all_at(&[7; 4096], i * 4096).unwrap();
        }
        drop(file);
        let requests = place.mount().kernel_requests();
        let asked = requests.get("GETXATTR").copied().unwrap_or(0);
        assert!(asked <= 5, "{arguments:?}: {requests:?}");
        assert_eq!(fs::metadata(place.source().join("file")).unwrap().len(), WRITES * 4096);
        place.unmount();
    }
}
