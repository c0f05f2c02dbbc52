//! A file that the daemon keeps open behaves as one that the kernel keeps open: C programs do everything with descriptors, and
//! get the same natively, on the kernel road and on the bypass. There the daemon says that reads and writes came to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use finesse_tests::account::Calls;
use finesse_tests::mount::{Options, said};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::tree::{self, Times};
use tempfile::TempDir;

/// Files are opened virtually, and never granted.
const NEVER: &[&str] = &["-o", "grant=never"];
/// Files are opened virtually, and granted when that pays.
const LARGE: &[&str] = &["-o", "grant=large"];

/// The programs, compiled once: optimised and fortified, so that they call the checked variants.
fn program(name: &str) -> PathBuf {
    static PROGRAMS: OnceLock<TempDir> = OnceLock::new();
    let directory = PROGRAMS.get_or_init(|| {
        let directory = tempfile::Builder::new().prefix("finesse-descriptors-").tempdir().unwrap();
        for name in ["descriptors", "description"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name);
            let output = Command::new("cc")
                .args(["-O2", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-w", "-pthread", "-o"])
                .arg(directory.path().join(name))
                .arg(source.with_extension("c"))
                .arg("-lrt")
                .output()
                .expect("a C compiler");
            assert!(output.status.success(), "{}", said(&output));
        }
        directory
    });
    directory.path().join(name)
}

/// Runs something on a place, and what the daemon counted meanwhile.
fn counted(place: &Place, run: impl FnOnce() -> Output) -> (Output, Calls) {
    let before = place.mount().account();
    let output = run();
    assert!(output.status.success(), "{}: {}", place.road(), said(&output));
    (output, place.mount().account().since(&before))
}

fn assert_served(calls: &Calls, operations: &[&str]) {
    for operation in operations {
        assert!(calls.answered.contains_key(*operation), "no {operation} in {calls:?}");
    }
}

/// Runs until the daemon has served these operations. Only if somebody has mounted something meanwhile, so that the kernel
/// served a call, they may be missing.
fn serves(operations: &[&str], run: impl Fn() -> Calls) {
    for _ in 0..50 {
        let calls = run();
        let is_disturbed = calls.to_kernel.contains_key("mounts-changed");
        if !is_disturbed || operations.iter().all(|operation| calls.answered.contains_key(*operation)) {
            return assert_served(&calls, operations);
        }
    }
    panic!("not one run of fifty without a mount meanwhile");
}

/// A part of `descriptors.c` does the same natively and on a mount, by either road.
fn agrees(arguments: &[&str], part: &str, operations: &[&str]) {
    // A file that is granted after a few transfers leaves little to count.
    let operations = if arguments == NEVER { operations } else { &["open"] };
    serves(operations, || agrees_once(arguments, part));
}

fn agrees_once(arguments: &[&str], part: &str) -> Calls {
    let program = program("descriptors");
    let mut bypassed = Calls::default();
    let mut native: Option<(String, _)> = None;
    for road in Road::ALL {
        let place = Place::new(road, &Options { arguments, ..Options::default() }, |_| ());
        let run = || place.command(&program).arg(part).output().unwrap();
        let (output, calls) = match road {
            Road::Bypass => counted(&place, run),
            _ => (run(), Calls::default()),
        };
        assert!(output.status.success(), "{part} on the {road}: {}", said(&output));
        let found = (place.neutral(&output.stdout), tree::read(place.source(), Times::Ignored));
        match &native {
            None => {
                assert!(found.0.lines().count() > 5, "{}", found.0);
                native = Some(found);
            }
            Some(native) => {
                assert_eq!(native.0, found.0, "{part} on the {road} with {arguments:?}");
                assert_eq!(native.1, found.1, "files after {part} on the {road} with {arguments:?}");
            }
        }
        bypassed = calls;
    }
    bypassed
}

macro_rules! parts {
    ($($name:ident: $part:literal, $operations:expr;)*) => {
        $(
            #[test]
            fn $name() {
                for arguments in [NEVER, LARGE] {
                    agrees(arguments, $part, $operations);
                }
            }
        )*
    };
}

parts! {
    reads_and_writes_move_the_same_bytes_to_the_same_places: "transfers", &["open", "read", "write", "seek"];
    access_modes_and_flags_mean_what_they_mean_natively: "modes", &["open", "write", "set-flags", "close"];
    attributes_by_descriptor_are_the_files: "attributes",
        &["stat", "chmod", "chown", "utimens", "truncate", "allocate", "sync", "getxattr", "setxattr", "removexattr"];
    what_is_no_terminal_or_directory_says_so: "not_for_files", &["open", "promote"];
    what_is_no_socket_timer_or_watch_says_so: "neither", &["open", "promote"];
    streams_are_what_they_are_natively: "streams", &["open", "write"];
    duplicates_share_offset_and_flags_before_and_after_promotion: "duplicates", &["read", "promote", "close"];
    what_the_ring_does_not_serve_is_promoted_with_its_offset: "by_the_kernel", &["write", "promote"];
    copies_go_between_descriptors_of_both_roads: "copies", &["open", "promote"];
    processes_share_what_is_open: "children", &["write", "promote"];
    files_without_a_name_stay_what_they_are: "unlinked", &["write", "unlink", "promote"];
    bad_pointers_fail_and_leave_the_offset: "bad_memory", &["read", "write"];
    limits_of_size_and_number_hold: "limits", &["open", "write"];
    locks_last_until_the_program_closes_a_descriptor: "locked", &["open", "promote"];
}

/// The flags that the daemon has opened a granted file with are not all of the program's.
#[test]
fn flags_of_granted_files_are_those_they_were_opened_with() {
    agrees(&[], "modes", &["open"]);
}

/// A stream of libc's needs a descriptor of the kernel's. It gets that by one opening: what can be granted is, and the kernel opens
/// the rest.
#[test]
fn a_stream_is_opened_once() {
    for (arguments, served) in [(NEVER, &[][..]), (LARGE, &["open"])] {
        let options = Options { arguments, count_kernel_requests: true, ..Options::default() };
        serves(served, || {
            let place =
                Place::new(Road::Bypass, &options, |root| fs::write(root.join("file"), "text").unwrap());
            // `sed` reads its files as streams.
            let script = "for n in 1 2 3 4 5; do sed -n p file; done";
            let (output, calls) = counted(&place, || place.bash("", script));
            assert_eq!(output.stdout, b"texttexttexttexttext");
            let requests = place.mount().kernel_requests();
            let asked = |name: &str| requests.get(name).copied().unwrap_or(0);
            assert_eq!((calls.answered.get("promote"), asked("CREATE")), (None, 0), "{calls:?} {requests:?}");
            let granted = calls.answered.get("open").copied().unwrap_or(0);
            assert_eq!(granted + asked("OPEN"), 5, "{calls:?} {requests:?}");
            calls
        });
    }
}

/// A test of `description.c` holds.
fn holds(arguments: &[&str], what: &str, operations: &[&str]) {
    let program = program("description");
    serves(operations, || {
        let place = Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |_| ());
        let (output, calls) = counted(&place, || place.command(&program).arg(what).output().unwrap());
        assert_eq!(String::from_utf8_lossy(&output.stdout), "held\n", "{what}: {}", said(&output));
        calls
    });
}

#[test]
fn threads_that_share_an_offset_read_every_record_once() {
    holds(NEVER, "records", &["read"]);
}

#[test]
fn promotion_in_the_middle_of_reads_loses_and_repeats_nothing() {
    holds(NEVER, "promoted", &["read", "promote"]);
    holds(LARGE, "promoted", &["promote"]);
}

#[test]
fn large_transfers_of_several_threads_do_not_mix() {
    holds(NEVER, "large", &["read", "write"]);
    holds(LARGE, "large", &["promote"]);
}

#[test]
fn forks_in_a_program_with_threads_share_what_is_open() {
    holds(NEVER, "forks", &["read", "write", "promote"]);
    holds(LARGE, "forks", &["open", "promote"]);
}

#[test]
fn a_signal_handler_may_use_what_it_interrupts() {
    holds(NEVER, "handler", &["read", "write", "promote"]);
}

#[test]
fn a_program_at_its_limit_of_open_files_loses_none() {
    holds(NEVER, "numbers", &["read", "write", "promote"]);
    holds(LARGE, "numbers", &["open", "promote"]);
}

#[test]
fn what_is_open_outlives_a_lazy_unmount() {
    if !needs::root("what_is_open_outlives_a_lazy_unmount") {
        return;
    }
    for arguments in [NEVER, LARGE] {
        let place = Place::new(Road::Bypass, &Options { arguments, ..Options::default() }, |_| ());
        let output = place.command(program("description")).arg("detached").output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "held\n", "{}", said(&output));
        assert_eq!(fs::read(place.source().join("detached")).unwrap(), b"0123456end");
    }
}

#[test]
fn shells_redirect_as_they_do_natively() {
    let script = "exec 3>three 4<>four 5>>five
        echo a >&3; echo b >&4; echo c >&5; echo d >one; echo e >>one; cat <one; cat <<<here
        echo f 1>&3 2>&4; ls nothing 2>errors; wc -c <errors | tr -d ' '
        exec 6<one; read -r line <&6; echo \"$line\"; cat <&6; exec 6<&-
        (echo in a child >&3); echo after it >&3; { cat; echo; } <one >two
        exec 3>&- 4<&- 5>&-; cat three four five two; while read -r line; do echo \"<$line>\"; done <three
        echo x | tee four | cat; cat <(cat one) ; printf '%s\\n' {1..2000} >many; sort -rn many | head -3; tail -n 2 many";
    for arguments in [NEVER, LARGE] {
        let mut native = None;
        for road in Road::ALL {
            let place = Place::new(road, &Options { arguments, ..Options::default() }, |_| ());
            let output = place.bash(".", script);
            assert!(output.status.success(), "{road}: {}", said(&output));
            let found = (place.neutral(&output.stdout), tree::read(place.source(), Times::Ignored));
            let native = native.get_or_insert_with(|| found.clone());
            assert_eq!(*native, found, "{road} with {arguments:?}");
        }
    }
}

/// What files are lost with the daemon stays lost, and says so; the program goes on.
#[test]
fn files_of_a_daemon_that_is_gone_say_so_and_can_be_closed() {
    let place = Place::new(Road::Bypass, &Options { arguments: NEVER, ..Options::default() }, |_| ());
    let script = "import os, signal, sys, time
fd = os.open('file', os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, b'text')
os.kill(int(sys.argv[1]), signal.SIGKILL)
errno = 0
while not errno:
    try:
        os.pwrite(fd, b'more', 0)
        time.sleep(0.01)
    except OSError as error:
        errno = error.errno
print(os.strerror(errno))
try:
    os.close(fd)
except OSError as error:
    print('close:', error.strerror)
try:
    os.fstat(fd)
except OSError as error:
    print(error.strerror)
pid = os.fork()
if pid == 0:
    os._exit(0)
print(os.waitpid(pid, 0)[1])
";
    let output =
        place.command("python3").args(["-c", script, &place.mount().pid().to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("Transport endpoint is not connected"), "{}", said(&output));
    // As `fuse_flush` fails there.
    assert_eq!(lines.next(), Some("close: Transport endpoint is not connected"), "{text}");
    assert_eq!(lines.next(), Some("Bad file descriptor"), "{text}");
    assert_eq!(lines.next(), Some("0"), "{text}");
}
