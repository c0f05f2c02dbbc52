//! What watchers (inotify, fanotify) hear of changes: on the kernel road everything, as natively; of changes on the bypass
//! everything if the watcher is preloaded, or if the mount leaves the subtree to the kernel.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use finesse_tests::mount::{Options, said};
use finesse_tests::needs;
use finesse_tests::road::{self, Place, Road};
use finesse_tests::wait::eventually;

fn fill(root: &Path) {
    for directory in ["d", "e"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    for file in ["d/a", "d/b", "e/o"] {
        fs::write(root.join(file), "contents").unwrap();
    }
}

fn mounted(options: &[&str]) -> Place {
    Place::new(Road::Bypass, &Options { arguments: options, ..Options::default() }, fill)
}

/// A program in a place, preloaded or not.
fn command(place: &Place, preloaded: bool, program: &str) -> Command {
    if preloaded {
        return place.command(program);
    }
    let mut command = Command::new(program);
    command.current_dir(place.path()).stdin(Stdio::null());
    road::environment(&mut command);
    command
}

/// A program that runs beside the test; killed at the end.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of everything that a watcher of `d` hears of.
const CHANGES: &str = "
    cat d/a; echo x > d/c; echo y >> d/b; mv d/c d/f; mv d/f e/f; mv e/o d/o; chmod 600 d/b; ln d/b d/h; ln -s x d/l; rm d/a
    mkdir d/k; rmdir d/k; mkfifo d/p; truncate -s 9 d/b; touch d/b; chown $(id -u) d/b; ls d; setfattr -n user.x -v 1 d/b; cp d/b d/m
    (cd d; echo z > r; rm r); (cd e; mv f ../d/f; echo q > ../d/f); rm -r d/f d/h; echo end > d/end";

/// The events of [`CHANGES`], as inotifywait writes them.
fn events(place: &Place, watcher_preloaded: bool, changer_preloaded: bool) -> Vec<String> {
    let mut watcher = command(place, watcher_preloaded, "inotifywait");
    watcher.args(["-m", "--format", "%e %f", "d"]).stderr(Stdio::piped());
    let mut watcher = Running::start(watcher);
    let stderr = watcher.child.stderr.take().unwrap();
    let established = BufReader::new(stderr).lines().any(|line| line.unwrap().contains("established"));
    assert!(established, "inotifywait did not begin");
    let output = command(place, changer_preloaded, "bash").args(["-ec", CHANGES]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mut events: Vec<String> = Vec::new();
    loop {
        let event = watcher.line();
        assert!(!event.is_empty(), "inotifywait has ended: {events:?}");
        let last = event == "CLOSE_WRITE,CLOSE end";
        // The kernel merges an event with an equal one that nobody has read yet. FUSE reads to the end of a directory
        // once more than others.
        if events.last() != Some(&event) && !event.starts_with("ACCESS,ISDIR") {
            events.push(event);
        }
        if last {
            return events;
        }
    }
}

fn native_events() -> Vec<String> {
    let native = events(&Place::new(Road::Native, &Options::default(), fill), false, false);
    assert!(native.len() > 40, "{native:?}");
    native
}

#[test]
fn a_preloaded_watcher_hears_what_it_would_hear_natively() {
    let native = native_events();
    for changer_preloaded in [true, false] {
        let place = mounted(&[]);
        let before = place.mount().account();
        assert_eq!(events(&place, true, changer_preloaded), native, "changer preloaded: {changer_preloaded}");
        let calls = place.mount().account().since(&before);
        assert!(calls.answered.contains_key("watch"), "{calls:?}");
        assert_eq!(calls.to_kernel.contains_key("watched"), changer_preloaded, "{calls:?}");
        assert!(!changer_preloaded || calls.answered.contains_key("stat"), "{calls:?}");
    }
}

#[test]
fn a_watcher_that_is_not_preloaded_hears_of_the_kernel_road_and_of_subtrees_left_to_the_kernel() {
    let native = native_events();
    assert_eq!(events(&mounted(&[]), false, false), native);
    let place = mounted(&["-o", "kernel=d"]);
    let before = place.mount().account();
    let changes = |events: Vec<String>| -> Vec<String> {
        let is_use =
            |event: &String| ["OPEN", "ACCESS", "CLOSE_NOWRITE"].iter().any(|kind| event.starts_with(kind));
        let mut changes: Vec<_> = events.into_iter().filter(|event| !is_use(event)).collect();
        // What was between two equal ones may not have been heard.
        changes.dedup();
        changes
    };
    assert_eq!(changes(events(&place, false, true)), changes(native));
    let calls = place.mount().account().since(&before);
    assert!(calls.to_kernel.contains_key("kernel-subtree"), "{calls:?}");
    let output = place.bash("e", "echo x > y; mv y z; rm z");
    assert!(output.status.success(), "{}", said(&output));
    let beside = place.mount().account().since(&before);
    assert_eq!(beside.to_kernel.get("kernel-subtree"), calls.to_kernel.get("kernel-subtree"), "{beside:?}");
    assert!(beside.answered.get("unlink") > calls.answered.get("unlink"), "{beside:?}");
}

#[test]
fn a_subtree_left_to_the_kernel_may_be_made_later_and_be_entered() {
    let place = mounted(&["-o", "kernel=spool/in"]);
    let counted = |script: &str| {
        let before = place.mount().account();
        let output = place.bash("", script);
        assert!(output.status.success(), "{}", said(&output));
        place.mount().account().since(&before).to_kernel.get("kernel-subtree").copied().unwrap_or(0)
    };
    assert_eq!(counted("mkdir -p spool/x; mkdir e/in; echo > e/in/f; rm e/in/f"), 0);
    assert_eq!(counted("mkdir spool/in"), 0);
    assert!(counted("mkdir -p spool/in/deep; echo > spool/in/deep/f; rm spool/in/deep/f") >= 3);
    assert!(counted("cd spool/in/deep && mkdir k && rmdir k") >= 2);
    assert!(counted("cd spool/in && cd deep && exec 5<. && cd / && cd ~- && mkdir k") >= 1);
    assert_eq!(counted("mv spool/x e/x; echo > e/x/f; rm e/x/f"), 0);
}

/// A watcher in Python, in terms of libc's own functions.
const WATCHER: &str = "
import ctypes, os, select, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def watch(fd, path, mask=0xfff): return check(libc.inotify_add_watch(fd, path.encode(), mask))
def heard(fd):
    names = []
    while 'end' not in names and select.select([fd], [], [], 20)[0]:
        data = os.read(fd, 65536)
        while data:
            _, mask, _, size = struct.unpack('iIII', data[:16])
            names.append(data[16:16 + size].rstrip(b'\\0').decode())
            data = data[16 + size:]
    return ' '.join(dict.fromkeys(names))
def say(text): print(text, flush=True)
";

fn watcher(place: &Place, script: &str) -> Running {
    let mut command = place.command("/usr/bin/python3");
    command.args(["-c", &format!("{WATCHER}{script}")]);
    Running::start(command)
}

/// How many calls of a preloaded shell's were left to the kernel because of watchers.
fn left_to_watchers(place: &Place, script: &str) -> u64 {
    let before = place.mount().account();
    let output = place.bash("", script);
    assert!(output.status.success(), "{}", said(&output));
    place.mount().account().since(&before).to_kernel.get("watched").copied().unwrap_or(0)
}

#[test]
fn a_watch_that_is_taken_back_ends_at_once() {
    let place = mounted(&[]);
    let mut watcher = watcher(
        &place,
        "
fd = libc.inotify_init()
one, other = watch(fd, 'd'), watch(fd, 'e')
watch(fd, 'd', 0x100)
say('watching')
sys.stdin.readline()
check(libc.inotify_rm_watch(fd, one))
say('taken back')
sys.stdin.readline()
",
    );
    assert_eq!(watcher.line(), "watching");
    assert!(left_to_watchers(&place, "echo > d/x; rm d/x") >= 2);
    watcher.tell("go on");
    assert_eq!(watcher.line(), "taken back");
    assert_eq!(left_to_watchers(&place, "echo > d/x; rm d/x"), 0);
    assert!(left_to_watchers(&place, "echo > e/x; rm e/x") >= 2);
    drop(watcher);
    // Nobody holds it any more: the daemon looks for that in its own time.
    eventually("the watch has ended with its process", || {
        left_to_watchers(&place, "echo > e/x; rm e/x") == 0
    });
}

#[test]
fn a_watch_outlives_the_program_that_made_it() {
    let place = mounted(&[]);
    // The first program executes another one, which is not preloaded; then its child is left alone with the instance.
    let script = "
fd = libc.inotify_init()
watch(fd, 'd')
os.set_inheritable(fd, True)
rest = '''
import sys, os
''' + open('/proc/self/cmdline').read().split('\\0')[2].split('# --')[0] + f'''
if os.fork():
    say('left')
    os._exit(0)
sys.stdin.readline()
say(heard({fd}))
'''
os.environ.clear()
libc.execve(b'/usr/bin/env', (ctypes.c_char_p * 8)(b'env', b'-u', b'LD_PRELOAD', b'/usr/bin/python3', b'-c', rest.encode(), None), None)
say('not executed')
";
    let mut command = place.command("/usr/bin/python3");
    command.args(["-c", &format!("{WATCHER}# --{script}")]);
    let mut watcher = Running::start(command);
    assert_eq!(watcher.line(), "left");
    // When it has found that nobody holds a later program's watch, the daemon has also looked who holds the first one's.
    let mut later = self::watcher(&place, "fd = libc.inotify_init(); watch(fd, 'e'); say('watching')");
    assert_eq!(later.line(), "watching");
    drop(later);
    eventually("the later watch has ended", || left_to_watchers(&place, "echo > e/x; rm e/x") == 0);
    assert!(left_to_watchers(&place, "echo > d/x; rm d/x; echo > d/end") >= 3);
    watcher.tell("go on");
    assert_eq!(watcher.line(), "x end");
}

#[test]
fn marks_of_a_whole_mount_leave_everything_to_the_kernel() {
    let name = "marks_of_a_whole_mount_leave_everything_to_the_kernel";
    if !needs::root(name) {
        return;
    }
    let place = mounted(&[]);
    let mut watcher = watcher(
        &place,
        "
fd = libc.fanotify_init(0, 0)
if fd < 0: say('no fanotify'); sys.exit()
check(libc.fanotify_mark(fd, 0x11, ctypes.c_uint64(0x2 | 0x8 | 0x20), -100, b'd'))
say('watching')
sys.stdin.readline()
names = set()
while select.select([fd], [], [], 20)[0] and 'e/end' not in names:
    data = os.read(fd, 4096)
    while data:
        size, _, _, _, mask, file, _ = struct.unpack('=IBBHQii', data[:24])
        names.add('/'.join(os.readlink(f'/proc/self/fd/{file}').split('/')[-2:]))
        os.close(file)
        data = data[size:]
say(' '.join(sorted(names)))
",
    );
    match &*watcher.line() {
        "watching" => {}
        "no fanotify" => return needs::skipped(name, "this kernel has no fanotify"),
        other => panic!("{other}"),
    }
    assert!(left_to_watchers(&place, "cat d/a; echo > e/o; echo > e/end") >= 3);
    watcher.tell("go on");
    assert_eq!(watcher.line(), "d/a e/end e/o");
}

#[test]
fn several_watchers_at_once_lose_nothing_while_others_change() {
    let place = mounted(&[]);
    let mut changer = place.command("bash");
    changer.args(["-c", "while read go; do for n in {1..400}; do : > d/n$n; done; echo made; done"]);
    let mut changer = Running::start(changer);
    for _ in 0..3 {
        // Whoever looks after he has begun to watch finds each file, or hears of it.
        let mut watcher = watcher(
            &place,
            "
sys.stdin.readline()
fd = libc.inotify_init()
watch(fd, 'd', 0x100)
there = set(os.listdir('d'))
say('watching')
sys.stdin.readline()
open('d/end', 'w').close()
names = set(heard(fd).split())
os.unlink('d/end')
say(sorted({f'n{n}' for n in range(1, 401)} - there - names))
",
        );
        changer.tell("go");
        watcher.tell("go");
        assert_eq!(watcher.line(), "watching");
        assert_eq!(changer.line(), "made");
        watcher.tell("go on");
        assert_eq!(watcher.line(), "[]");
        fs::read_dir(place.source().join("d")).unwrap().for_each(|entry| {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with('n') {
                fs::remove_file(entry.path()).unwrap();
            }
        });
    }
}
