//! What happens to a process in its life (forks, new programs, other credentials, signals, cancellation, limits) ends alike on all
//! roads: same output, same status, same files. The programs are in `programs/`; they check their own calls, too.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use finesse_tests::account::Calls;
use finesse_tests::build;
use finesse_tests::mount::{Options, text};
use finesse_tests::needs;
use finesse_tests::road::{CONNECT_AFTER, Place, Road};
use finesse_tests::tree::{self, Times};

/// Compiles one of `programs/`, once.
fn compile(compiler: &str, flags: &[&str], source: &str, name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("process_life");
    fs::create_dir_all(&directory).unwrap();
    let program = directory.join(name);
    let unfinished = directory.join(format!("{name}.{}", std::process::id()));
    let output = Command::new(compiler)
        .args(["-O1", "-w", "-pthread", "-o"])
        .arg(&unfinished)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(source))
        .args(flags)
        .output()
        .unwrap_or_else(|error| panic!("{compiler} (make deps installs it): {error}"));
    assert!(output.status.success(), "{source}: {}", text(&output.stderr));
    fs::rename(unfinished, &program).unwrap();
    program
}

macro_rules! programs {
    ($($name:ident = $compiler:literal $flags:expr, $source:literal;)*) => {
        $(fn $name() -> &'static str {
            static PROGRAM: OnceLock<String> = OnceLock::new();
            PROGRAM.get_or_init(|| {
                compile($compiler, $flags, $source, stringify!($name)).into_os_string().into_string().unwrap()
            })
        })*
    };
}

programs! {
    start = "cc" &[], "start.c";
    start_static = "cc" &["-static"], "start.c";
    start_sanitized = "cc" &["-fsanitize=address"], "start.c";
    numbers = "cc" &[], "numbers.c";
    interruptions = "cc" &[], "interruptions.c";
    credentials = "cc" &[], "credentials.c";
    life_cycle = "c++" &["-ldl"], "life_cycle.cc";
    life_cycle_sanitized = "c++" &["-ldl", "-fsanitize=address", "-static-libasan"], "life_cycle.cc";
    plugin = "cc" &["-shared", "-fPIC"], "plugin.c";
}

fn fill(root: &Path) {
    fs::create_dir(root.join("sub")).unwrap();
    let executable = |name: &str, contents: &[u8]| {
        fs::write(root.join(name), contents).unwrap();
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    };
    fs::write(root.join("f1"), "contents").unwrap();
    fs::write(root.join("sub/f2"), "contents!").unwrap();
    fs::write(root.join("f3"), "3").unwrap();
    executable("program", &fs::read(start()).unwrap());
    executable("script", b"#!/bin/sh\necho script: \"$@\"\ncat f1; echo; exit 4\n");
    executable("broken", b"#!/proc/nonexistent\n");
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
        for (name, uid, gid) in [("root", 0, 0), ("owner", 1001, 1001), ("group", 1002, 2000)] {
            let (directory, file) = (root.join(name), root.join(format!("{name}-file")));
            fs::create_dir(&directory).unwrap();
            for (path, mode) in [(directory.join("file"), 0o640), (file, 0o640), (directory, 0o770)] {
                if mode == 0o640 {
                    fs::write(&path, format!("{name}\n")).unwrap();
                }
                fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
    }
}

/// A program that is run on all roads.
struct Case<'c> {
    line: &'c [&'c str],
    /// The least number of its calls that are answered through shared memory on the bypass.
    answered: u64,
    environment: &'c [(&'c str, &'c str)],
}

impl<'c> Case<'c> {
    fn new(line: &'c [&'c str], answered: u64) -> Self {
        Self { line, answered, environment: &[] }
    }

    fn run(&self, place: &Place) -> Output {
        // Nothing here may hang the tests.
        let wrapper = ["timeout", "--kill-after=10", "400"];
        let mut command = place.command_as(&build::command(), &wrapper, self.line[0]);
        command.args(&self.line[1..]).envs(self.environment.iter().copied());
        command.output().unwrap()
    }

    /// Runs it on all roads, compares, and returns what was counted on the bypass.
    fn agrees(&self) -> Calls {
        let mut native = None;
        let mut calls = Calls::default();
        for road in Road::ALL {
            let place = Place::new(road, &Options::default(), fill);
            let before = (road == Road::Bypass).then(|| place.mount().account());
            let output = self.run(&place);
            let said = format!("{}{}", place.neutral(&output.stdout), place.neutral(&output.stderr));
            let seen = (output.status, said, tree::read(place.source(), Times::Ignored));
            if let Some(before) = before {
                calls = place.mount().account().since(&before);
            }
            match &native {
                None => native = Some(seen),
                Some(native) => {
                    assert_eq!(seen.1, native.1, "{road}: {:?}", self.line);
                    assert_eq!(seen, *native, "{road}: {:?}", self.line);
                }
            }
        }
        let answered = calls.total_answered();
        assert!(answered >= self.answered, "{:?}: {answered} calls were bypassed: {calls:?}", self.line);
        calls
    }
}

fn agrees(line: &[&str], answered: u64) -> Calls {
    Case::new(line, answered).agrees()
}

// --- starting processes and programs ---

#[test]
fn threads_fork_while_others_work() {
    agrees(&[start(), "threads"], 300);
}

#[test]
fn a_child_works_without_descriptors_that_its_memory_knows() {
    agrees(&[start(), "lacking"], 15);
}

#[test]
fn vforked_children_execute_and_exit() {
    agrees(&[start(), "vfork"], 10);
}

#[test]
fn what_a_vforked_child_changes_is_its_own() {
    agrees(&[start(), "vfork-changes"], 40);
}

#[test]
fn vforked_children_hand_descriptors_on() {
    agrees(&[start(), "vfork-hands-on"], 15);
}

#[test]
fn vforked_children_list_directories_and_use_all_numbers() {
    agrees(&[start(), "vfork-lists"], 2000);
}

#[test]
fn children_of_vforked_children_go_their_way() {
    agrees(&[start(), "vfork-in-vfork"], 30);
}

#[test]
fn threads_and_signal_handlers_work_while_children_are_vforked() {
    agrees(&[start(), "vfork-among-others"], 300);
}

#[test]
fn spawned_programs_get_what_their_file_actions_ask_for() {
    agrees(&[start(), "spawn"], 20);
}

#[test]
fn programs_with_an_environment_of_their_own_use_the_bypass() {
    agrees(&[start(), "environments"], 80);
}

#[test]
fn a_failed_exec_leaves_everything_as_it_was() {
    agrees(&[start(), "failed"], 30);
}

#[test]
fn a_daemon_closes_everything_and_goes_on() {
    agrees(&[start(), "daemon"], 8);
}

#[test]
fn scripts_of_other_languages_start_processes() {
    for (line, answered) in [
        (
            &["bash", "-c", "exec 3<>f1 4<f1 9>out 8>&9; read -n 3 -u 3 x; echo \"$x\" >&9; echo two >&8; cat <&4; \
              exec 3>&- 9>&-; cat out; (exec 5<out; cat <&5) | cat; echo -n three >&8; exec 8>&-; wc -c < out; \
              exec 0<f1; read y; echo $y; exec > >(cat); echo $(< out); exec 1>&-; wait"][..],
            4,
        ),
        (
            &["/usr/bin/python3", "-c", "
import os, subprocess, threading, multiprocessing, sys
def child(n):
    for i in range(20):
        with open(f'p{n}-{i}', 'w') as f: f.write('x' * i)
        os.rename(f'p{n}-{i}', f'q{n}-{i}')
    return sum(os.stat(f'q{n}-{i}').st_size for i in range(20))
if __name__ == '__main__':
    f = open('f1')
    f.read(3)
    print(subprocess.run(['cat'], stdin=f, capture_output=True, close_fds=True, cwd='sub').stdout)
    print(subprocess.run(['cat', 'f2'], capture_output=True, cwd='sub', env={'PATH': os.environ['PATH']}).stdout)
    print(subprocess.run(['cat', 'f1'], capture_output=True, preexec_fn=lambda: os.chdir('.')).stdout)
    with multiprocessing.get_context('fork').Pool(3) as pool: print(pool.map(child, range(4)))
    threads = [threading.Thread(target=lambda: subprocess.run(['cat', 'f1'], stdout=subprocess.DEVNULL)) for _ in range(4)]
    [t.start() for t in threads]; [t.join() for t in threads]
    os.closerange(3, 1024)
    print(sorted(os.listdir('.'))[:5], os.stat('f1').st_size, flush=True)
    os._exit(0)
"],
            100,
        ),
    ] {
        agrees(line, answered);
    }
}

#[test]
fn statically_linked_programs_use_the_kernel_road() {
    let mut answers = Vec::new();
    for road in Road::ALL {
        let place = Place::new(road, &Options::default(), fill);
        // Started by a preloaded shell; `finesse run` itself would say that the program stays on the kernel road.
        let output = place.bash("", &format!("{} threads; cat f1", start_static()));
        answers.push((output.status, text(&output.stdout), text(&output.stderr)));
    }
    assert!(answers[0].0.success() && answers[0].1.contains("children: 0"), "{answers:?}");
    assert_eq!(answers[1], answers[0]);
    assert_eq!(answers[2], answers[0]);
}

// --- connecting ---

/// Whether the library is connected, which has descriptors of high numbers then.
const CONNECTED: &str = "import os; print(any(int(n) > 600 for n in os.listdir('/proc/self/fd')))";

/// What a script in Python says on the bypass, as users run it, whether it is connected then, and the calls that it took.
fn as_users_run(script: &str) -> (String, bool, Calls) {
    let place = Place::new(Road::Bypass, &Options::default(), |root| {
        for number in 0..40 {
            fs::write(root.join(format!("f{number}")), "x").unwrap();
        }
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/g"), "deep").unwrap();
    });
    let before = place.mount().account();
    let mut command = place.command("/usr/bin/python3");
    let output = command.env_remove(CONNECT_AFTER).args(["-c", &format!("{script}\n{CONNECTED}")]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let (said, connected) = said.trim_end().rsplit_once('\n').expect("two lines");
    (said.to_owned(), connected == "True", place.mount().account().since(&before))
}

#[test]
fn a_program_that_makes_few_calls_does_not_connect() {
    let (said, connected, calls) =
        as_users_run("import os\nprint([os.stat(f'f{n}').st_size for n in range(8)])");
    assert_eq!((said.as_str(), connected), ("[1, 1, 1, 1, 1, 1, 1, 1]", false), "{calls:?}");
    assert!(calls.answered.is_empty() && calls.to_kernel.is_empty(), "{calls:?}");
}

#[test]
fn statx_of_an_inherited_descriptor_tells_the_mount() {
    let child = format!(
        "
import ctypes, sys
def mount_of(fd, path, flags):
    found = ctypes.create_string_buffer(256)
    assert ctypes.CDLL(None).statx(fd, path, flags, 0x1fff, found) == 0
    return int.from_bytes(found[144:152], 'little')
by_descriptor = mount_of(int(sys.argv[1]), b'', 0x1000)
print(by_descriptor != 0, by_descriptor == mount_of(-100, b'.', 0))
{CONNECTED}"
    );
    // It connects, so that it is granted the file.
    let script = format!(
        "
import os
for n in range(40): os.stat(f'f{{n}}')
fd = os.open('f0', os.O_RDONLY)
os.set_inheritable(fd, True)
os.execv('/usr/bin/python3', ['python3', '-c', {child:?}, str(fd)])"
    );
    let (said, connected, calls) = as_users_run(&script);
    assert_eq!((said.as_str(), connected), ("True True", true), "{calls:?}");
}

#[test]
fn a_program_connects_once_that_pays_and_says_so() {
    let (said, connected, calls) = as_users_run(
        "
import os
sub = os.open('sub', os.O_RDONLY | os.O_DIRECTORY)
early = os.open('f0', os.O_RDWR)
for n in range(60): assert os.stat(f'f{n % 40}').st_size == 1
# What was opened and entered before it connected is what it was.
late = os.open('f0', os.O_RDWR)
os.write(early, b'early')
print(os.read(late, 9).decode(), os.fstat(late).st_size, end=' ')
g = os.open('g', os.O_RDONLY, dir_fd=sub)
print(os.read(g, 9).decode(), end=' ')
os.fchdir(sub)
print(os.stat('g').st_size, os.path.samestat(os.fstat(g), os.stat('g')), os.getcwd().endswith('/sub'))
",
    );
    assert_eq!((said.as_str(), connected), ("early 5 deep 4 True True", true), "{calls:?}");
    assert_eq!(calls.to_kernel.get("not-connected"), Some(&16), "{calls:?}");
    assert!(calls.answered.get("stat").is_some_and(|count| *count >= 40), "{calls:?}");
}

#[test]
fn a_program_that_lists_a_directory_connects_at_once() {
    for script in [
        "import os; print(len(os.listdir('.')))",
        "import os; print(len(os.listdir(os.getcwd())))",
        "import os; print(len(os.listdir(os.open('.', os.O_RDONLY))))",
        "import os; name = os.path.basename(os.getcwd()); os.chdir('..'); print(len(os.listdir(name)))",
    ] {
        let (said, connected, calls) = as_users_run(script);
        assert_eq!((said.as_str(), connected), ("41", true), "{script}: {calls:?}");
        assert!(calls.answered.contains_key("opendir"), "{script}: {calls:?}");
    }
}

// --- descriptors by number ---

#[test]
fn loops_that_close_everything_close_what_is_the_programs() {
    agrees(&[numbers(), "close-all"], 50);
}

#[test]
fn every_number_can_be_taken_by_the_program() {
    agrees(&[numbers(), "fixed"], 50);
}

#[test]
fn a_full_descriptor_table_creates_and_truncates_nothing() {
    agrees(&[numbers(), "limit"], 20);
    // With so low a limit from the start, the program needs every number itself.
    agrees(&[numbers(), "limited"], 0);
}

// --- libraries ---

#[test]
fn plugins_and_static_objects_work_when_they_come_and_go() {
    agrees(&[life_cycle(), "plugins", plugin()], 50);
}

#[test]
fn exceptions_pass_through_hooks() {
    agrees(&[life_cycle(), "exceptions"], 100);
    let environment = &[("ASAN_OPTIONS", "detect_leaks=0")][..];
    Case { environment, ..Case::new(&[life_cycle_sanitized(), "exceptions"], 100) }.agrees();
}

/// The one file that a pattern below the directories of libraries names.
fn library(name: &str) -> String {
    let mut pending = vec![PathBuf::from("/usr/lib")];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name() == name {
                return entry.path().into_os_string().into_string().unwrap();
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.path().components().count() < 6 {
                pending.push(entry.path());
            }
        }
    }
    panic!("{name} is not installed (make deps installs it)");
}

/// Beside libfaketime no thread forks while others work: it holds a mutex during `stat`, and does not see to forks, so that its
/// child may find that mutex locked for good, with or without a mount.
#[test]
fn other_preloaded_libraries_work_beside() {
    let others =
        [(library("libjemalloc.so.2"), "threads", 300), (library("libfaketimeMT.so.1"), "spawn", 100)];
    for (other, mode, answered) in others {
        for order in ["$OTHER:$LD_PRELOAD", "$LD_PRELOAD:$OTHER"] {
            let script = format!(
                "export LD_PRELOAD={order}; {0} {mode} && {0} environments && date +%Y | tr 3-9 x",
                start()
            );
            let environment = &[("OTHER", &*other), ("FAKETIME", "2001-02-03 04:05:06")][..];
            let line = ["bash", "-c", &script];
            Case { environment, ..Case::new(&line, answered) }.agrees();
        }
    }
}

#[test]
fn the_address_sanitizer_works_beside() {
    let environment = &[("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0")][..];
    Case { environment, ..Case::new(&[start_sanitized(), "threads"], 300) }.agrees();
    Case { environment, ..Case::new(&[start_sanitized(), "spawn"], 20) }.agrees();
}

// --- interruptions ---

#[test]
fn signal_handlers_do_file_calls_in_the_middle_of_others() {
    agrees(&[interruptions(), "signals", "5"], 500);
    agrees(&[interruptions(), "alternate", "3"], 500);
}

#[test]
fn jumps_out_of_calls_leave_a_program_that_works() {
    let calls = agrees(&[interruptions(), "jump"], 50);
    // Each of 300 calls had a slot, of which there are 64.
    assert_eq!(calls.to_kernel.get("no-slot"), None, "{calls:?}");
}

#[test]
fn threads_are_cancelled_where_they_would_be_natively() {
    agrees(&[interruptions(), "cancel"], 100);
    agrees(&[life_cycle(), "cancel"], 20);
}

#[test]
fn a_thousand_threads_share_a_connection() {
    agrees(&[interruptions(), "threads", "1000"], 100);
}

#[test]
fn calls_fit_on_the_smallest_stacks() {
    agrees(&[interruptions(), "stacks"], 5);
}

// --- credentials and surroundings ---

#[test]
fn changed_credentials_decide_from_the_next_call_on() {
    if needs::root("changed_credentials_decide_from_the_next_call_on") {
        agrees(&[credentials(), "ids"], 200);
    }
}

#[test]
fn a_set_user_id_program_starts_without_the_library() {
    if !needs::root("a_set_user_id_program_starts_without_the_library") {
        return;
    }
    let home = tempfile::Builder::new().prefix("finesse-setuid-").tempdir().unwrap();
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = home.path().join("privileged");
    fs::copy(credentials(), &program).unwrap();
    chown(&program, Some(1001), Some(1001)).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o6755)).unwrap();
    let users = build::for_all_users();
    let mut answers = Vec::new();
    for road in Road::ALL {
        let place = Place::new(road, &Options::default(), fill);
        let wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let script = format!("cat f1; {} who; cat f1; id -u", program.display());
        let mut command = place.command_as(&users.path().join(build::COMMAND), &wrapper, "bash");
        let output = command.args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{road}: {}", text(&output.stderr));
        answers.push((text(&output.stdout), text(&output.stderr)));
    }
    assert!(answers[0].0.starts_with("contents1001.1001\nwho: 13 "), "{answers:?}");
    assert_eq!(answers[1], answers[0]);
    assert_eq!(answers[2], answers[0]);
}

#[test]
fn a_mask_that_several_threads_set_is_the_kernels() {
    agrees(&[credentials(), "masks"], 5);
}

#[test]
fn a_program_goes_on_without_proc() {
    if needs::root("a_program_goes_on_without_proc") {
        agrees(&[credentials(), "no-proc"], 0);
    }
}

#[test]
fn a_program_that_forbids_itself_system_calls_is_not_killed_by_the_librarys() {
    agrees(&[credentials(), "sandbox"], 1);
    agrees(&[credentials(), "raw-sandbox"], 1);
}

#[test]
fn a_program_with_little_memory_has_it_for_itself() {
    for megabytes in ["64", "100", "300"] {
        agrees(&[credentials(), "memory", megabytes], 0);
    }
}
