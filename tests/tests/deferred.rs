//! Unlinks that are acknowledged before they are done (`-o unlink=deferred`): nobody can tell, whatever he looks at, and none is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use finesse_tests::build;
use finesse_tests::mount::{Mount, Options, said, unmount};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;
use rustix::process::Signal;
use serde_json::Value;

const DEFERRED: &[&str] = &["-o", "unlink=deferred"];
const DEFERRED_ALWAYS: &[&str] = &["--cache=always", "-o", "unlink=deferred"];

fn options(arguments: &'static [&'static str]) -> Options<'static> {
    Options { arguments, ..Options::default() }
}

/// A mount with so many files in each of so many directories.
fn place(arguments: &'static [&'static str], directories: usize, files: usize) -> Place {
    Place::new(Road::Bypass, &options(arguments), |root| fill(root, directories, files))
}

fn fill(root: &Path, directories: usize, files: usize) {
    for directory in 0..directories {
        let directory = root.join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..files {
            fs::write(directory.join(format!("f{file}")), "contents").unwrap();
        }
    }
}

fn run(place: &Place, road: Road, script: &str) -> String {
    let output = place.command_on(road, "/usr/bin/python3").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{road}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn unlinks(place: &Place) -> Value {
    let output =
        Command::new(build::command()).args(["status", "--json"]).arg(place.path()).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    status[0]["deferred_unlinks"].clone()
}

/// The daemon's journal, among what it has open.
fn journal(place: &Place) -> PathBuf {
    let open = fs::read_dir(format!("/proc/{}/fd", place.mount().pid())).unwrap();
    let mut files = open.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    files
        .find(|file| file.starts_with("/dev/shm/") && file.to_string_lossy().contains("finesse-unlink."))
        .unwrap()
}

/// The names are gone on both roads, in whatever way one looks, while the source still has most of the files.
#[test]
fn a_deferred_unlink_shows_nowhere_but_on_the_source() {
    if !needs::root("a_deferred_unlink_shows_nowhere_but_on_the_source") {
        return;
    }
    for arguments in [DEFERRED, DEFERRED_ALWAYS, &["--cache=never", "-o", "unlink=deferred"]] {
        let place = place(arguments, 1, 400);
        let (mount, other) = (place.path().display(), place.path().display());
        let script = format!(
            r#"
import os, errno, subprocess, sys
d = "{mount}/d0"
stream = os.scandir(d)
before = os.stat(d)
for n in range(300): os.unlink(f"{{d}}/f{{n}}")
def fails(what, number, *arguments):
    try: what(*arguments)
    except OSError as error: assert error.errno == number, (what, error)
    else: raise AssertionError(f"{{what}} of a removed name")
fails(os.stat, errno.ENOENT, f"{{d}}/f0")
fails(os.open, errno.ENOENT, f"{{d}}/f1", os.O_RDONLY)
fails(os.unlink, errno.ENOENT, f"{{d}}/f2")
fails(os.rename, errno.ENOENT, f"{{d}}/f3", f"{{d}}/x")
fails(os.link, errno.ENOENT, f"{{d}}/f4", f"{{d}}/x")
os.close(os.open(f"{{d}}/f5", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
os.mkdir(f"{{d}}/f6")
os.symlink("f399", f"{{d}}/f7")
os.rename(f"{{d}}/f399", f"{{d}}/f8")
os.link(f"{{d}}/f398", f"{{d}}/f9")
left = {{f"f{{n}}" for n in range(300, 399)}} | {{"f5", "f6", "f7", "f8", "f9"}}
assert set(os.listdir(d)) == left, set(os.listdir(d)) ^ left
other = subprocess.run(["/usr/bin/env", "-u", "LD_PRELOAD", "ls", "{other}/d0"], stdout=subprocess.PIPE, text=True)
assert set(other.stdout.split()) == left
# Opened before, and not read yet.
assert {{entry.name for entry in stream}} == left
after = os.stat(d)
assert after.st_mtime_ns > before.st_mtime_ns
fails(os.rmdir, errno.ENOTEMPTY, d)
fails(os.unlink, errno.EISDIR, f"{{d}}/f6")
fails(os.rmdir, errno.ENOTDIR, f"{{d}}/f5")
"#
        );
        run(&place, Road::Bypass, &script);
        let counts = unlinks(&place);
        assert_eq!(counts["failed"], 0, "{counts}");
        assert!(counts["done"].as_u64() >= Some(290), "they were not deferred: {counts}");
    }
}

/// What a program has open, or knows by another name, changes at once.
#[test]
fn other_names_and_open_files_show_the_removal_at_once() {
    if !needs::root("other_names_and_open_files_show_the_removal_at_once") {
        return;
    }
    for (road, grant) in [(Road::Bypass, "always"), (Road::Bypass, "never"), (Road::Kernel, "always")] {
        let arguments = ["--cache=always", "-o", &format!("unlink=deferred,grant={grant}")];
        let options = Options { arguments: &arguments, ..Options::default() };
        let place = Place::new(Road::Bypass, &options, |root| {
            fill(root, 1, 50);
            for n in 0..50 {
                fs::hard_link(root.join(format!("d0/f{n}")), root.join(format!("l{n}"))).unwrap();
                fs::write(root.join(format!("o{n}")), "open").unwrap();
            }
        });
        let mount = place.path().display();
        // The one that looks goes by `road`, the one that removes by the bypass.
        let looker = format!(
            r#"
import os, sys
files = [os.open(f"{mount}/o{{n}}", os.O_RDWR) for n in range(50)]
names = [os.stat(f"{mount}/l{{n}}") for n in range(50)]
assert all(name.st_nlink == 2 for name in names)
print("ready", flush=True)
sys.stdin.readline()
for n in range(50):
    assert os.fstat(files[n]).st_nlink == 0, ("open", n)
    assert os.read(files[n], 9) == b"open"
    now = os.stat(f"{mount}/l{{n}}")
    assert now.st_nlink == 1 and now.st_ctime_ns > names[n].st_ctime_ns, ("link", n, now)
print("right")
"#
        );
        let mut command = place.command_on(road, "/usr/bin/python3");
        let mut child =
            command.args(["-c", &looker]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        let script = format!(
            "import os\nfor n in range(50):\n  os.unlink(f'{mount}/o{{n}}')\n  os.unlink(f'{mount}/d0/f{{n}}')"
        );
        run(&place, Road::Bypass, &script);
        drop(child.stdin.take());
        line.clear();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(child.wait().unwrap().success() && line == "right\n", "{road}, grant={grant}: {line}");
    }
}

/// rmdir(2), a change of permissions, and fsync(2) of the directory come after what was acknowledged before.
#[test]
fn what_depends_on_the_removal_waits_for_it() {
    if !needs::root("what_depends_on_the_removal_waits_for_it") {
        return;
    }
    let place = place(DEFERRED_ALWAYS, 4, 300);
    let (mount, source) = (place.path().display(), place.source().display());
    let script = format!(
        r#"
import os
for d in range(4):
    for n in range(300): os.unlink(f"{mount}/d{{d}}/f{{n}}")
    if d == 0: os.rmdir(f"{mount}/d0"); assert not os.path.exists("{source}/d0")
    if d == 1:
        os.chmod(f"{mount}/d1", 0o500)
        assert not os.listdir("{source}/d1")
    if d == 2:
        fd = os.open(f"{mount}/d2", os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        assert not os.listdir("{source}/d2")
    if d == 3:
        os.statvfs("{mount}")
        assert not os.listdir("{source}/d3")
"#
    );
    run(&place, Road::Bypass, &script);
    assert_eq!(unlinks(&place)["failed"], 0);
}

/// What cannot be foreseen comes back, and is said.
#[test]
fn a_name_that_somebody_else_has_replaced_comes_back() {
    if !needs::root("a_name_that_somebody_else_has_replaced_comes_back") {
        return;
    }
    let place = place(DEFERRED_ALWAYS, 1, 2000);
    let (mount, source) = (place.path().display(), place.source().display());
    let script = format!(
        r#"
import os
with open("{source}/new", "w") as new: new.write("another")
for n in range(2000): os.unlink(f"{mount}/d0/f{{n}}")
os.rename("{source}/new", "{source}/d0/f1999")
"#
    );
    run(&place, Road::Bypass, &script);
    eventually("all is done", || unlinks(&place)["waiting"] == 0);
    // Whether it had been removed before it was replaced, or not, the other's file stays.
    assert_eq!(fs::read_to_string(place.source().join("d0/f1999")).unwrap(), "another");
    assert_eq!(fs::read_dir(place.source().join("d0")).unwrap().count(), 1);
    let shown = run(&place, Road::Bypass, &format!("print(open('{mount}/d0/f1999').read())"));
    if unlinks(&place)["failed"] == 1 {
        assert_eq!(shown, "another\n");
        assert!(place.mount().log().contains("f1999"), "{}", place.mount().log());
    }
}

/// A daemon is killed with thousands waiting, most of which it knew by listing: the next one finishes them, and nothing else.
#[test]
fn a_killed_daemon_loses_no_acknowledged_unlink() {
    if !needs::root("a_killed_daemon_loses_no_acknowledged_unlink") {
        return;
    }
    let mut unfinished = 0;
    for finisher in ["mount", "umount"] {
        let home = tempfile::tempdir().unwrap();
        let (source, mountpoint) = (home.path().join("source"), home.path().join("mount"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&mountpoint).unwrap();
        fill(&source, 20, 1000);
        let mount = Mount::new(&source, &mountpoint, &options(DEFERRED_ALWAYS));
        let script = format!(
            "import os, signal\nfor d in range(20):\n  for n in range(0, 1000, 2): os.unlink(f'{0}/d{{d}}/f{{n}}')\nos.kill({1}, signal.SIGKILL)",
            mountpoint.display(),
            mount.pid()
        );
        let output = Command::new(build::command())
            .args(["run", "--", "/usr/bin/python3", "-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert!(mount.ended(finesse_tests::wait::PATIENCE));
        let count = || -> usize {
            (0..20).map(|d| fs::read_dir(source.join(format!("d{d}"))).unwrap().count()).sum()
        };
        unfinished += count() - 10_000;
        // Somebody else has put a file where one was to be removed.
        fs::write(home.path().join("new"), "new").unwrap();
        fs::rename(home.path().join("new"), source.join("d19/f998")).unwrap();
        if finisher == "mount" {
            unmount(&mountpoint);
            let again = Mount::new(&source, &mountpoint, &Options::default());
            assert_eq!(count(), 10_001, "{}", again.log());
            again.unmount();
        } else {
            let output =
                Command::new(build::command()).args(["umount", "--force"]).arg(&mountpoint).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
        }
        assert_eq!(count(), 10_001, "{finisher}");
        for d in 0..20 {
            for n in (1..1000).step_by(2) {
                assert!(source.join(format!("d{d}/f{n}")).exists(), "d{d}/f{n} is gone");
            }
        }
        assert_eq!(fs::read_to_string(source.join("d19/f998")).unwrap(), "new");
        drop(mount);
    }
    assert!(unfinished > 0, "nothing was left to be finished");
}

/// The end of a mount is the end of the journal.
#[test]
fn an_unmount_leaves_nothing_behind() {
    if !needs::root("an_unmount_leaves_nothing_behind") {
        return;
    }
    for by_signal in [false, true] {
        let mut place = place(DEFERRED, 3, 1000);
        let journal = journal(&place);
        assert!(journal.exists());
        let mount = place.path().display();
        let script = format!(
            "import os\nfor d in range(3):\n  for n in range(1000): os.unlink(f'{mount}/d{{d}}/f{{n}}')"
        );
        run(&place, Road::Bypass, &script);
        if by_signal {
            place.mount().signal(Signal::TERM);
            assert!(place.mount().ended(finesse_tests::wait::PATIENCE));
        } else {
            place.unmount();
        }
        for d in 0..3 {
            assert_eq!(fs::read_dir(place.source().join(format!("d{d}"))).unwrap().count(), 0);
        }
        assert!(!journal.exists(), "{}", journal.display());
    }
}
