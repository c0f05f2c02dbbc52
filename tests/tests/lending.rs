//! Directories of the source are lent to preloaded programs, which open files to read by themselves: that is as good as any open.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use finesse_tests::build;
use finesse_tests::mount::Options;
use finesse_tests::needs;
use finesse_tests::python::Python;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;

/// What a program does with files. `there` is where they are.
const CALLS: &str = r"
import array, ctypes, fcntl, mmap, os, sys
def opened(path, flags=os.O_RDONLY):
    return os.open(path, flags | os.O_CLOEXEC)
def read(path, dir_fd=None):
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)
def stat(fd):
    s = os.stat(fd)
    return (s.st_dev, s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns)
def with_open(path, use, flags=os.O_RDONLY):
    fd = opened(path, flags)
    try:
        return use(fd)
    finally:
        os.close(fd)
def mapped(fd):
    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        return memory[:].decode()
def child(fd):
    os.set_inheritable(fd, True)
    script = f'import os; s = os.fstat({fd}); print(s.st_dev, s.st_ino, os.read({fd}, 100).decode())'
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(write_end, 1)
        os.execv('/usr/bin/python3', ['python3', '-c', script])
    os.close(write_end)
    said = os.fdopen(read_end).read().strip()
    os.waitpid(pid, 0)
    return said
libc = ctypes.CDLL(None, use_errno=True)
libc.fopen.restype = libc.freopen.restype = ctypes.c_void_p
def by_number(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
    return result
def stream(name, *arguments):
    opened = getattr(libc, name)(*arguments)
    if not opened:
        raise OSError(ctypes.get_errno(), '')
    return ctypes.c_void_p(opened)
def full(use):
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    try:
        return use()
    finally:
        for fd in taken:
            os.close(fd)
def descriptors():
    return len(os.listdir('/proc/self/fd'))
def written(opened, text):
    libc.fputs(text, opened)
    return libc.fclose(opened)
";

const ALWAYS: Options<'static> =
    Options { arguments: &["--cache=always"], count_kernel_requests: false, wrapper: &[] };
const NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const ROOT: &[&str] = &["setpriv"];

fn fill(root: &Path) {
    fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir_all(root.join("d/sub")).unwrap();
    fs::write(root.join("d/f"), "four").unwrap();
    fs::write(root.join("d/g"), "gggg").unwrap();
    fs::write(root.join("d/sub/f"), "below").unwrap();
}

fn place() -> Place {
    Place::new(Road::Bypass, &ALWAYS, fill)
}

fn python(place: &Place, wrapper: &[&str]) -> Python {
    Python::start(place.command_as(&build::command(), wrapper, "/usr/bin/python3"), CALLS)
}

/// How many opens the daemon has answered while something was done, and how many nobody asked it for.
fn opens(place: &Place, f: impl FnOnce()) -> (u64, u64) {
    let before = place.mount().account();
    f();
    let calls = place.mount().account().since(&before);
    let of = |calls: &std::collections::BTreeMap<String, u64>| calls.get("open").copied().unwrap_or(0);
    (of(&calls.answered) - of(&calls.from_table), of(&calls.from_table))
}

/// Has a file read until it is opened without asking.
fn learn(place: &Place, program: &mut Python, path: &str) {
    // Its time of last access, then its attributes; then the directory.
    for _ in 0..8 {
        program.says(&format!("read({path:?})"));
    }
    let asked = opens(place, || drop(program.says(&format!("read({path:?})"))));
    assert_eq!(asked, (0, 1), "{path}");
}

/// Whether files are opened without asking after they were opened many times.
fn is_lent(place: &Place, path: &str) -> bool {
    let mut program = python(place, ROOT);
    for _ in 0..8 {
        assert!(!program.says(&format!("read({path:?})")).starts_with('E'), "{path}");
    }
    opens(place, || drop(program.says(&format!("read({path:?})")))).1 == 1
}

#[test]
fn what_is_opened_without_asking_is_as_what_the_daemon_opens() {
    if !needs::root("what_is_opened_without_asking_is_as_what_the_daemon_opens") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    let (here, file) = (place.path().display(), place.path().join("d/f").display().to_string());
    // From the root, the current directory, and an open one.
    for path in ["d/f", &file, "./d/f"] {
        learn(&place, &mut program, path);
    }
    program.says("globals().update(d = os.open('d', os.O_RDONLY | os.O_DIRECTORY))");
    for _ in 0..8 {
        assert_eq!(program.says("read('f', d)"), "four");
    }
    assert_eq!(opens(&place, || assert_eq!(program.says("read('f', d)"), "four")), (0, 1));

    learn(&place, &mut program, "d/f");
    let asked = opens(&place, || {
        let shown = program.says("with_open('d/f', lambda fd: os.readlink(f'/proc/self/fd/{fd}'))");
        assert_eq!(shown, file, "the path that the kernel shows");
        assert_eq!(program.says("with_open('d/f', stat) == stat('d/f')"), "True");
        assert_eq!(program.says("with_open('d/f', mapped)"), "four");
        let flags = "with_open('d/f', lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000)";
        assert_eq!(program.says(flags), "0");
        let nofollow = "with_open('d/f', lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOFOLLOW, os.O_NOFOLLOW) == os.O_NOFOLLOW";
        assert_eq!(program.says(nofollow), "True");
        assert_eq!(
            program.says("with_open('d/f', lambda fd: os.fstatvfs(fd).f_flag) == os.statvfs('d/f').f_flag"),
            "True"
        );
    });
    assert_eq!(asked.0, 0);
    assert!(asked.1 >= 6, "{asked:?}");
    assert_eq!(program.says("with_open('d/f', lambda fd: child(fd))"), {
        let stat = fs::metadata(place.path().join("d/f")).unwrap();
        format!("{} {} four", stat.dev(), stat.ino())
    });
    assert_eq!(program.says("os.path.exists('d/absent') or read('d/absent')"), "ENOENT", "{here}");
}

#[test]
fn what_has_changed_by_either_road_is_seen_at_once() {
    if !needs::root("what_has_changed_by_either_road_is_seen_at_once") {
        return;
    }
    let place = place();
    let mut program = python(&place, NOBODY);
    let mut other = python(&place, ROOT);
    fs::write(place.path().join("d/o"), "oooo").unwrap();
    for (round, by_other) in [false, true].into_iter().enumerate() {
        // By the kernel, or by another preloaded program.
        let mut change = |expression: &str| match by_other {
            true => assert_eq!(other.says(expression), "None", "{expression}"),
            false => {
                let mut command = place.command_on(Road::Kernel, "/usr/bin/python3");
                let script = format!("import os; os.chdir({:?}); {expression}", place.path());
                assert!(command.args(["-c", &script]).status().unwrap().success(), "{expression}");
            }
        };
        for path in ["d/f", "d/sub/f"] {
            learn(&place, &mut program, path);
        }
        change("os.chmod('d/f', 0o600)");
        assert_eq!(program.says("read('d/f')"), "EACCES", "round {round}");
        change("os.chmod('d/f', 0o644)");
        learn(&place, &mut program, "d/f");
        change("os.truncate('d/f', 2)");
        assert_eq!(program.says("read('d/f')"), "fo");
        change("os.truncate('d/f', 4)");
        learn(&place, &mut program, "d/f");
        change("os.rename('d/o', 'd/f')");
        assert_eq!(program.says("read('d/f')"), "oooo");
        learn(&place, &mut program, "d/f");
        change("os.unlink('d/f')");
        assert_eq!(program.says("read('d/f')"), "ENOENT");
        change("os.mkdir('d/f')");
        assert_eq!(program.says("read('d/f')"), "EISDIR");
        change("os.rmdir('d/f')");
        change("os.symlink('g', 'd/f')");
        assert_eq!(program.says("read('d/f')"), "gggg");
        change("os.unlink('d/f')");
        change("os.rename('d/sub', 'd/moved')");
        assert_eq!(program.says("read('d/sub/f')"), "ENOENT");
        assert_eq!(program.says("read('d/moved/f')"), "below");
        learn(&place, &mut program, "d/moved/f");
        change("os.chmod('d/moved', 0o700)");
        assert_eq!(program.says("read('d/moved/f')"), "EACCES");
        change("os.chmod('d/moved', 0o755)");
        change("os.rename('d/moved', 'd/sub')");
        fs::write(place.path().join("d/f"), "four").unwrap();
        fs::write(place.path().join("d/o"), "oooo").unwrap();
    }
}

#[test]
fn attributes_are_changed_by_such_a_descriptor_as_by_any() {
    if !needs::root("attributes_are_changed_by_such_a_descriptor_as_by_any") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    let (empty, fchownat, utimensat, fchmodat2) =
        (libc::AT_EMPTY_PATH, libc::SYS_fchownat, libc::SYS_utimensat, libc::SYS_fchmodat2);
    let after = |program: &mut Python, change: &str, look: &str| {
        learn(&place, program, "d/f");
        let changed = program.says(&format!("with_open('d/f', lambda fd: {change})"));
        assert!(!changed.starts_with('E'), "{change}: {changed}");
        program.says(&format!("(lambda s: {look})(os.stat('d/f'))"))
    };
    assert_eq!(after(&mut program, "os.fchmod(fd, 0o640)", "oct(s.st_mode & 0o777)"), "0o640");
    assert_eq!(after(&mut program, "os.fchown(fd, 7, 8)", "(s.st_uid, s.st_gid)"), "(7, 8)");
    assert_eq!(after(&mut program, "os.utime(fd, (5, 6))", "(s.st_atime, s.st_mtime)"), "(5.0, 6.0)");
    let times = after(&mut program, "os.utime(fd)", "s.st_atime == s.st_mtime and s.st_mtime > 6");
    assert_eq!(times, "True");
    let xattr = "os.setxattr(fd, 'user.x', b'1') or os.getxattr('d/f', 'user.x')";
    assert_eq!(after(&mut program, xattr, "os.getxattr('d/f', 'user.x')"), "b'1'");
    assert_eq!(after(&mut program, "os.removexattr(fd, 'user.x')", "os.listxattr('d/f')"), "[]");
    for (call, look, result) in [
        (format!("by_number({fchownat}, fd, b'', 9, 9, {empty})"), "s.st_uid", "9"),
        (
            format!("by_number({utimensat}, fd, b'', (ctypes.c_long * 4)(3, 0, 4, 0), {empty})"),
            "s.st_mtime",
            "4.0",
        ),
        (
            format!("by_number({utimensat}, fd, None, (ctypes.c_long * 4)(3, 0, 5, 0), 0)"),
            "s.st_mtime",
            "5.0",
        ),
        (format!("by_number({fchmodat2}, fd, b'', 0o604, {empty})"), "oct(s.st_mode & 0o777)", "0o604"),
        (format!("by_number({}, fd, 0o606)", libc::SYS_fchmod), "oct(s.st_mode & 0o777)", "0o606"),
    ] {
        assert_eq!(after(&mut program, &call, look), result, "{call}");
    }
    // FS_IOC_GETFLAGS, FS_IOC_SETFLAGS: FS_NODUMP_FL.
    let flags = "fcntl.ioctl(fd, 0x40086602, (64).to_bytes(8, 'little')) and None";
    let got = "with_open('d/f', lambda fd: fcntl.ioctl(fd, 0x80086601, bytes(8))[0] & 64)";
    assert_eq!(after(&mut program, flags, got), "64");
    // Also of what has been removed.
    fs::write(place.path().join("gone"), "gone").unwrap();
    learn(&place, &mut program, "gone");
    let gone = "with_open('gone', lambda fd: (os.unlink('gone'), os.fchmod(fd, 0o621), os.fstat(fd).st_mode & 0o777, os.fstat(fd).st_nlink))";
    assert_eq!(program.says(gone), "(None, None, 401, 0)");
    // By /proc, a file can be opened again, to write.
    for path in ["/proc/self/fd/", "/dev/fd/"] {
        let change = format!("with_open(f'{path}{{fd}}', lambda fd: os.write(fd, b'FOUR'), os.O_RDWR)");
        assert_eq!(after(&mut program, &change, "read('d/f')"), "FOUR");
        let cut =
            format!("with_open(f'{path}{{fd}}', lambda fd: os.write(fd, b'cut!'), os.O_WRONLY | os.O_TRUNC)");
        assert_eq!(after(&mut program, &cut, "read('d/f')"), "cut!");
    }
    // By such a path everything else can be changed as well.
    let here = "f'/proc/self/fd/{fd}'";
    for (change, look, result) in [
        ("os.chmod(@, 0o601)", "oct(s.st_mode & 0o777)", "0o601"),
        ("os.chown(@, 3, 4)", "(s.st_uid, s.st_gid)", "(3, 4)"),
        ("os.utime(@, (7, 8))", "(s.st_atime, s.st_mtime)", "(7.0, 8.0)"),
        ("os.setxattr(@, 'user.y', b'2')", "os.getxattr('d/f', 'user.y')", "b'2'"),
        ("os.removexattr(@, 'user.y')", "os.listxattr('d/f')", "[]"),
        ("os.truncate(@, 3)", "s.st_size", "3"),
        (&format!("by_number({}, @.encode(), 0o605)", libc::SYS_chmod), "oct(s.st_mode & 0o777)", "0o605"),
        (
            &format!("by_number({}, {}, @.encode(), 0o607)", libc::SYS_fchmodat, libc::AT_FDCWD),
            "oct(s.st_mode & 0o777)",
            "0o607",
        ),
        ("with_open(@, lambda fd: None, os.O_RDONLY | os.O_TRUNC)", "s.st_size", "0"),
        ("written(stream('fopen', @.encode(), b'r+'), b'again')", "read('d/f')", "again"),
        ("written(stream('fopen', @.encode(), b'a'), b'!')", "read('d/f')", "again!"),
        ("os.chmod(@, 0o644)", "oct(s.st_mode & 0o777)", "0o644"),
    ] {
        assert_eq!(after(&mut program, &change.replace('@', here), look), result, "{change}");
    }
    let reopened = "written(stream('freopen', None, b'r+', stream('fopen', b'd/f', b'r')), b'FOUR')";
    assert_eq!(after(&mut program, reopened, "read('d/f')"), "FOURn!");
    let removed = "with_open('gone', lambda fd: (os.unlink('gone'), with_open(f'/proc/self/fd/{fd}', lambda again: stat(again) == stat(fd) and os.write(again, b'GO'), os.O_RDWR), os.pread(fd, 9, 0)))";
    fs::write(place.path().join("gone"), "gone").unwrap();
    learn(&place, &mut program, "gone");
    assert_eq!(program.says(removed), "(None, 2, b'GOne')");
    let access = "os.access(@, os.W_OK | os.R_OK)".replace('@', here);
    assert_eq!(after(&mut program, &format!("{access} or os.abort()"), "True"), "True");
    let own = "os.chmod(f'/proc/{os.getpid()}/fd/{fd}', 0o602)";
    assert_eq!(after(&mut program, own, "oct(s.st_mode & 0o777)"), "0o602");
    // No number is needed for it, either.
    let full = "full(lambda: os.fchmod(fd, 0o603))";
    assert_eq!(after(&mut program, full, "oct(s.st_mode & 0o777)"), "0o603");
    assert_eq!(after(&mut program, "os.fchmod(fd, 0o644)", "oct(s.st_mode & 0o777)"), "0o644");
    // What natively cannot be changed cannot be changed here.
    learn(&place, &mut program, "d/f");
    assert_eq!(program.says("with_open('d/f', lambda fd: os.write(fd, b'x'))"), "EBADF");
    assert_eq!(program.says("with_open('d/f', lambda fd: os.ftruncate(fd, 0))"), "EINVAL");
    let mut other = python(&place, NOBODY);
    learn(&place, &mut other, "d/g");
    assert_eq!(other.says("with_open('d/g', lambda fd: os.fchmod(fd, 0o666))"), "EPERM");
    for (call, errno) in [
        ("os.chmod(@, 0o666)", "EPERM"),
        ("os.truncate(@, 0)", "EACCES"),
        ("with_open(@, stat, os.O_RDWR)", "EACCES"),
        ("with_open(@, stat, os.O_WRONLY | os.O_TRUNC)", "EACCES"),
        ("stream('fopen', @.encode(), b'r+')", "EACCES"),
        ("stream('freopen', None, b'r+', stream('fopen', b'd/g', b'r'))", "EACCES"),
    ] {
        let call = format!("with_open('d/g', lambda fd: {})", call.replace('@', here));
        assert_eq!(other.says(&call), errno, "{call}");
    }
}

#[test]
fn reading_a_file_changes_its_time_of_last_access_as_natively() {
    if !needs::root("reading_a_file_changes_its_time_of_last_access_as_natively") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    let atime = |program: &mut Python| program.says("os.stat('d/f').st_atime_ns");
    learn(&place, &mut program, "d/f");
    let before = atime(&mut program);
    for _ in 0..3 {
        program.says("read('d/f')");
    }
    assert_eq!(atime(&mut program), before, "it was read since it was changed");
    // Whoever only opens it has not read it, however often.
    program.says("os.utime('d/f', ns=(1000, 2000))");
    for _ in 0..10 {
        program.says("with_open('d/f', lambda fd: None)");
    }
    assert_eq!(atime(&mut program), "1000");
    assert_eq!(fs::metadata(place.source().join("d/f")).unwrap().atime_nsec(), 1000);
    program.says("read('d/f')");
    assert_ne!(atime(&mut program), "1000");
    let on_source = fs::metadata(place.source().join("d/f")).unwrap();
    let ns = on_source.atime() * 1_000_000_000 + on_source.atime_nsec();
    assert_eq!(atime(&mut program), ns.to_string());
    learn(&place, &mut program, "d/f");
    // A day later it changes again.
    program.says("(lambda s: os.utime('d/f', ns=(s.st_mtime_ns - 90000 * 10**9, s.st_mtime_ns - 95000 * 10**9)))(os.stat('d/f'))");
    let before = atime(&mut program);
    program.says("read('d/f')");
    assert_ne!(atime(&mut program), before);
}

#[test]
fn some_files_are_never_opened_without_asking() {
    if !needs::root("some_files_are_never_opened_without_asking") {
        return;
    }
    let place = Place::new(Road::Bypass, &ALWAYS, |root| {
        fill(root);
        for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755)] {
            fs::write(root.join(name), name).unwrap();
            fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        fs::hard_link(root.join("d/g"), root.join("second")).unwrap();
        fs::create_dir(root.join("private")).unwrap();
        fs::set_permissions(root.join("private"), PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(root.join("private/f"), "hidden").unwrap();
    });
    for path in ["suid", "sgid", "second", "private/f"] {
        assert!(!is_lent(&place, path), "{path}");
    }
    assert!(is_lent(&place, "d/f"));
    let mut other = python(&place, NOBODY);
    learn(&place, &mut other, "d/f");
    assert_eq!(other.says("read('private/f')"), "EACCES");
}

#[test]
fn nothing_is_lent_where_somebody_is_to_hear_of_it_or_the_mount_allows_less() {
    if !needs::root("nothing_is_lent_where_somebody_is_to_hear_of_it_or_the_mount_allows_less") {
        return;
    }
    for options in [
        &["--cache=always", "-o", "ro"][..],
        &["--cache=always", "-o", "noexec"],
        &["--cache=always", "-o", "grant=never"],
        &["--cache=always", "-o", "unlink=deferred"],
        &["--cache=never"],
    ] {
        let place = Place::new(Road::Bypass, &Options { arguments: options, ..Options::default() }, fill);
        assert!(!is_lent(&place, "d/f"), "{options:?}");
    }
    for options in [&["--cache=auto"][..], &["--cache=always", "-o", "grant=large"]] {
        let place = Place::new(Road::Bypass, &Options { arguments: options, ..Options::default() }, fill);
        assert!(is_lent(&place, "d/f"), "{options:?}");
    }
}

#[test]
fn watchers_hear_of_what_is_opened_and_read() {
    if !needs::root("watchers_hear_of_what_is_opened_and_read") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    learn(&place, &mut program, "d/f");
    let mut watcher = python(&place, ROOT);
    let watch = "globals().update(libc = ctypes.CDLL(None), i = ctypes.CDLL(None).inotify_init1(os.O_NONBLOCK), w = 0)";
    assert_eq!(watcher.says(watch), "None");
    // IN_OPEN, IN_ACCESS and IN_CLOSE_NOWRITE.
    assert_eq!(
        watcher.says("globals().update(w = libc.inotify_add_watch(i, b'd/f', 0x20 | 0x1 | 0x10))"),
        "None"
    );
    assert_eq!(program.says("read('d/f')"), "four");
    let heard =
        watcher.says("(lambda events: [events[at] for at in range(4, len(events), 16)])(os.read(i, 4096))");
    assert_eq!(heard, "[32, 1, 16]");
    // Nobody listens any more.
    assert_eq!(watcher.says("libc.inotify_rm_watch(i, w)"), "0");
    eventually("files are lent again", || opens(&place, || drop(program.says("read('d/f')"))).1 == 1);
}

#[test]
fn what_is_mounted_below_the_mount_or_its_source_is_what_is_opened() {
    if !needs::root("what_is_mounted_below_the_mount_or_its_source_is_what_is_opened") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    for root in [place.path(), place.source()] {
        learn(&place, &mut program, "d/sub/f");
        let directory = root.join("d/sub");
        let mount = |arguments: &[&str]| {
            let done =
                std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&directory).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        mount(&["mount", "-t", "tmpfs", "none"]);
        fs::write(directory.join("f"), "mounted").unwrap();
        // What the source shows under the mount's nose is looked up again when it has ended.
        let seen = || place.source().join("d/sub/f").exists();
        assert!(seen());
        if root == place.path() {
            // The daemon hears of it when the kernel has mounted it.
            eventually("it is seen", || program.says("read('d/sub/f')") == "mounted");
        }
        let asked = || opens(&place, || drop(python(&place, ROOT).says("[read('d/f') for _ in range(9)]")));
        eventually("nothing is lent", || asked().1 == 0);
        mount(&["umount"]);
        eventually("files are lent again", || asked().1 > 0);
    }
}

#[test]
fn nobody_gets_further_by_what_was_lent() {
    if !needs::root("nobody_gets_further_by_what_was_lent") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    learn(&place, &mut program, "d/f");
    let descriptors = format!("/proc/{}/fd", program.pid());
    let number_of = |path: &Path| path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap();
    let lent = || {
        let mut all = lent_to(&descriptors, place.path());
        all.retain(|path| number_of(path) >= 700);
        all
    };
    let directory = lent().first().expect("a directory was lent").clone();
    let written = fs::write(directory.join("d/f"), "x").unwrap_err();
    assert_eq!(written.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::remove_file(directory.join("d/f")).unwrap_err().raw_os_error(), Some(libc::EROFS));
    // Above it is nothing but the way to it.
    let mut above = directory.join("..");
    for name in place.path().ancestors().map(|path| path.file_name()).take_while(Option::is_some) {
        let names: Vec<_> = fs::read_dir(&above).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(names, [name.unwrap()], "{}", above.display());
        above.push("..");
    }
    let root = fs::metadata(&above).unwrap();
    assert_eq!(root.ino(), fs::metadata(above.join("..")).unwrap().ino(), "the root of what was lent");
    // The program itself does not have it.
    let number = directory.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(program.says(&format!("os.close({number})")), "EBADF");
    // It makes room where the program wants its number.
    assert_eq!(program.says(&format!("os.dup2(0, {number})")), number);
    learn(&place, &mut program, "d/f");
    assert_eq!(program.says(&format!("os.close({number})")), "None");
    learn(&place, &mut program, "d/f");
    // When the mount has gone, nothing keeps the source in use once the program has noticed.
    assert!(!lent().is_empty());
    program.says("os.chdir('/')");
    let path = place.path().to_owned();
    let mut place = place;
    place.unmount();
    eventually("what was lent is given back", || {
        program.says(&format!("os.path.exists({:?})", path.join("d/f")));
        lent_to(&descriptors, &path).is_empty()
    });
}

/// What somebody could do with a directory that was lent, in namespaces of his own: each must fail.
const BREAK: &str = r"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE = 1
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
lent = os.open(sys.argv[1], os.O_PATH)
above = [lent]
for _ in range(40):
    above.append(os.open('..', os.O_PATH, dir_fd=above[-1]))
def tried(what, number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    print(what, errno.errorcode[ctypes.get_errno()] if result < 0 else 'done')
    return result
# MOUNT_ATTR_RDONLY, NOSUID and NODEV off.
less = (ctypes.c_uint64 * 4)(0, 7, 0, 0)
if sys.argv[2] == 'unshare':
    assert libc.unshare(0x10000000 | 0x20000) == 0
for name, fd in ('directory', above[0]), ('way', above[1]), ('root', above[-1]):
    tried(f'{name}: change', SYS_MOUNT_SETATTR, fd, b'', AT_EMPTY_PATH, less, 32)
    tried(f'{name}: change all', SYS_MOUNT_SETATTR, fd, b'', AT_EMPTY_PATH | AT_RECURSIVE, less, 32)
    tried(f'{name}: move', SYS_MOVE_MOUNT, fd, b'', AT_FDCWD, b'/tmp', 4)
    for flags in OPEN_TREE_CLONE, OPEN_TREE_CLONE | AT_RECURSIVE:
        copy = tried(f'{name}: copy', SYS_OPEN_TREE, fd, b'', AT_EMPTY_PATH | flags)
        if copy >= 0:
            tried(f'{name}: change copy', SYS_MOUNT_SETATTR, copy, b'', AT_EMPTY_PATH | AT_RECURSIVE, less, 32)
    tried(f'{name}: unmount', 166, f'/proc/self/fd/{fd}'.encode(), 2)
    tried(f'{name}: mount', 165, b'none', f'/proc/self/fd/{fd}'.encode(), b'tmpfs', 0, None)
";

#[test]
fn nobody_changes_or_copies_the_mounts_that_were_lent() {
    if !needs::root("nobody_changes_or_copies_the_mounts_that_were_lent") {
        return;
    }
    let place = place();
    let mut program = python(&place, ROOT);
    learn(&place, &mut program, "d/f");
    let descriptors = format!("/proc/{}/fd", program.pid());
    let lent = lent_to(&descriptors, place.path());
    let lent = lent.iter().find(|path| path.join("d").exists()).expect("a directory was lent");
    let tries = |wrapper: &[&str]| {
        let mut command = std::process::Command::new("/usr/bin/python3");
        command.args(["-c", BREAK]).arg(lent).args(wrapper);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let said = tries(&["unshare"]);
    assert_eq!(said.lines().count(), 21, "{said}");
    for line in said.lines() {
        assert!(line.ends_with(" EINVAL") || line.ends_with(" EPERM"), "{line}");
    }
    // It is the namespace that stands against it: the daemon's root may copy what it may unmount.
    assert!(tries(&["stay"]).contains("directory: copy done"));
    assert_eq!(fs::write(lent.join("d/f"), "x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(program.says("read('d/f')"), "four");
}

/// The descriptors, below /proc, that lead to a mount.
fn lent_to(descriptors: &str, path: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(descriptors).unwrap().flatten().map(|entry| entry.path());
    all.filter(|entry| fs::read_link(entry).is_ok_and(|target| target == path)).collect()
}

#[test]
fn locks_on_such_descriptors_are_everybodys() {
    if !needs::root("locks_on_such_descriptors_are_everybodys") {
        return;
    }
    let place = place();
    let (mut program, mut other) = (python(&place, ROOT), python(&place, ROOT));
    let mut unmodified = Python::start(place.command_on(Road::Kernel, "/usr/bin/python3"), CALLS);
    learn(&place, &mut program, "d/f");
    learn(&place, &mut other, "d/f");
    program.says("globals().update(fd = opened('d/f'))");
    assert_eq!(program.says("fcntl.flock(fd, fcntl.LOCK_EX)"), "None");
    for by in [&mut other, &mut unmodified] {
        let lock = "with_open('d/f', lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))";
        assert_eq!(by.says(lock), "EAGAIN");
    }
    assert_eq!(program.says("fcntl.flock(fd, fcntl.LOCK_UN) or fcntl.lockf(fd, fcntl.LOCK_SH)"), "None");
    for by in [&mut other, &mut unmodified] {
        let lock = "with_open('d/f', lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), os.O_RDWR)";
        assert_eq!(by.says(lock), "EAGAIN");
    }
    // What the library opens and closes besides does not.
    assert_eq!(program.says("os.fchmod(fd, 0o640) or os.chmod(f'/proc/self/fd/{fd}', 0o644)"), "None");
    let before: usize = program.says("descriptors()").parse().unwrap();
    let often = "[os.fchmod(fd, 0o640 + n % 2) for n in range(50)] and os.fchmod(fd, 0o644)";
    assert_eq!(program.says(often), "None");
    let after: usize = program.says("descriptors()").parse().unwrap();
    assert!(after <= before + 1, "{before} descriptors, then {after}");
    for by in [&mut other, &mut unmodified] {
        let lock = "with_open('d/f', lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), os.O_RDWR)";
        assert_eq!(by.says(lock), "EAGAIN");
    }
    // Closing any descriptor of the file ends the lock.
    assert_eq!(program.says("with_open('d/f', lambda fd: None)"), "None");
    for by in [&mut other, &mut unmodified] {
        let lock = "with_open('d/f', lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), os.O_RDWR)";
        eventually("the lock has ended", || by.says(lock) == "None");
    }
}
