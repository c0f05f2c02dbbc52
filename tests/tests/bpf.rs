//! BPF programs that help with unmodified programs, for real: on this machine as far as its kernel loads them, and in
//! guests with other kernels, where nothing may be skipped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::loaded_programs;
use finesse_ebpf::no_xattrs::{Absent, NoXattrs};
use finesse_ebpf::rules::{Operations, Rule, Rules, Who};
use finesse_ebpf::walks::Walks;
use finesse_ebpf::{Error, Types};
use finesse_tests::build;
use finesse_tests::guest::{self, Kernel};
use finesse_tests::mount::{self, Mount, Options, said};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::fs::{Access, Mode, OFlags, XattrFlags, access, open};
use rustix::io::Errno;
use rustix::process::{Gid, Signal, Uid};
use serde_json::Value;

/// Whether the machine can do something, by what `finesse doctor` finds. If not, says so, and fails where it must.
fn can(finding: &str, test: &str) -> bool {
    let output = Command::new(build::command()).args(["doctor", "--json"]).output().unwrap();
    let findings: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    let found = findings.as_array().unwrap().iter().find(|one| one["name"] == finding);
    let found = found.unwrap_or_else(|| panic!("doctor says nothing of {finding}"));
    let can = found["on"] == true;
    if !can {
        assert!(!guest::inside(), "{finding}: {found}");
        needs::skipped(test, &format!("{finding}: {}", found["detail"]));
    }
    can
}

fn mounted(arguments: &[&str], fill: impl FnOnce(&Path)) -> Place {
    Place::new(Road::Kernel, &Options { arguments, ..Options::default() }, fill)
}

/// What `finesse status` says of a mount.
fn status(mount: &Mount) -> Value {
    let output =
        Command::new(build::command()).args(["status", "--json"]).arg(mount.path()).output().unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    list[0].clone()
}

#[test]
fn requests_of_unmodified_programs_are_counted_by_operation_and_program() {
    if !needs::root("bpf") || !can("BPF typed tracepoints", "bpf") {
        return;
    }
    let place = mounted(&["-o", "bpf"], |source| {
        for number in 0..50 {
            fs::write(source.join(format!("f{number}")), "x").unwrap();
        }
    });
    let other = mounted(&["-o", "bpf"], |source| fs::write(source.join("f"), "x").unwrap());
    let before = status(place.mount());
    assert!(before["requests"]["error"].is_null(), "{}", before["requests"]);
    let listed = Command::new("ls").arg("-l").arg(place.path()).output().unwrap();
    assert!(listed.status.success(), "{}", said(&listed));
    for number in 0..50 {
        fs::read(place.path().join(format!("f{number}"))).unwrap();
    }
    let after = status(place.mount());
    let count = |status: &Value, name: &str| status["requests"][name].as_u64().unwrap_or(0);
    // A page cache or a passthrough may save READ, but nothing saves OPEN; `ls` opened the directory.
    assert_eq!(count(&after, "OPEN") - count(&before, "OPEN"), 50, "{}", after["requests"]);
    assert!(count(&after, "OPENDIR") > count(&before, "OPENDIR"), "{}", after["requests"]);
    let senders = after["senders"].as_array().unwrap();
    let of = |pid: u64| senders.iter().find(|sender| sender["pid"] == pid).map(|sender| &sender["requests"]);
    let own = of(std::process::id().into()).unwrap_or_else(|| panic!("{senders:?}"));
    assert!(own["OPEN"].as_u64() >= Some(50), "{own}");
    assert!(senders.iter().any(|sender| sender["command"] == "ls"), "{senders:?}");
    // The neighbour has not been asked for any of this.
    assert_eq!(count(&status(other.mount()), "OPEN"), 0);
}

/// The programs that a process holds, by the kernel's number.
fn programs_of(pid: u32) -> Vec<u32> {
    let fds = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap().flatten();
    let texts = fds.filter_map(|fd| fs::read_to_string(fd.path()).ok());
    let number =
        |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    texts.filter_map(number).collect()
}

fn loaded(ids: &[u32]) -> usize {
    loaded_programs().flatten().filter(|program| ids.contains(&program.id())).count()
}

#[test]
fn nothing_stays_loaded_after_unmount_or_death() {
    if !needs::root("bpf") || !can("BPF typed tracepoints", "bpf") {
        return;
    }
    let (mut unmounted, killed) = (mounted(&["-o", "bpf"], |_| {}), mounted(&["-o", "bpf"], |_| {}));
    let programs = [&unmounted, &killed].map(|place| programs_of(place.mount().pid()));
    for programs in &programs {
        assert!(loaded(programs) > 0, "{programs:?}");
    }
    unmounted.unmount();
    killed.mount().signal(Signal::KILL);
    for programs in &programs {
        eventually("the programs are gone", || loaded(programs) == 0);
    }
}

/// Requests about extended attributes, as the kernel counted them, but for those of who counts: `finesse status` finds the
/// daemon by an attribute.
fn xattr_requests(place: &Place) -> u64 {
    let status = status(place.mount());
    let senders =
        status["senders"].as_array().unwrap().iter().filter(|sender| sender["command"] != "finesse");
    let of = |sender: &Value, name: &str| sender["requests"][name].as_u64().unwrap_or(0);
    senders.map(|sender| of(sender, "GETXATTR") + of(sender, "LISTXATTR")).sum()
}

/// A source with `count` files below `d`, and one file with attributes of its own.
fn with_and_without(source: &Path, count: usize) {
    fs::create_dir(source.join("d")).unwrap();
    for number in 0..count {
        fs::write(source.join(format!("d/f{number}")), "x").unwrap();
    }
    fs::write(source.join("with"), "x").unwrap();
    set(&source.join("with"), "user.colour", b"red").unwrap();
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 100];
    rustix::fs::getxattr(path, name, &mut value[..]).map(|len| value[..len].to_vec())
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty())
}

fn remove(path: &Path, name: &str) -> Result<(), Errno> {
    rustix::fs::removexattr(path, name)
}

/// Nobody but the tests changes the source.
const ALWAYS: &[&str] = &["-o", "bpf,cache=always"];

#[test]
fn the_kernel_answers_for_files_without_attributes() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    let place = mounted(ALWAYS, |source| with_and_without(source, 20));
    let (source, mount) = (place.source(), place.path());
    let names = [
        "user.colour",
        "security.selinux",
        "trusted.overlay",
        "system.posix_acl_access",
        "system.other",
        "none",
    ];
    for name in names {
        for file in ["d", "d/f1", "with"] {
            assert_eq!(get(&mount.join(file), name), get(&source.join(file), name), "{name} of {file}");
        }
    }
    assert_eq!(get(&mount.join("with"), "user.colour").unwrap(), b"red");
    let before = xattr_requests(&place);
    for script in ["ls -lR d", "tar cf - --acls --selinux d | cat >/dev/null"] {
        let ran = place.bash(".", &format!("set -o pipefail; {script}"));
        assert!(ran.status.success(), "{}", said(&ran));
        assert_eq!(xattr_requests(&place), before, "{script}");
    }
    assert!(status(place.mount())["xattr_answers"].as_u64() >= Some(20));
}

#[test]
fn an_attribute_is_seen_from_the_moment_it_is_set_on_either_road() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    let place = mounted(ALWAYS, |source| with_and_without(source, 4));
    let file = |number: usize| place.path().join(format!("d/f{number}"));
    for number in 0..4 {
        assert_eq!(get(&file(number), "user.colour"), Err(Errno::NODATA));
    }
    set(&file(0), "user.colour", b"blue").unwrap();
    assert_eq!(get(&file(0), "user.colour").unwrap(), b"blue");
    let bypass = Command::new(build::command())
        .args(["run", "setfattr", "-n", "user.colour", "-v", "green"])
        .arg(file(1))
        .output()
        .unwrap();
    assert!(bypass.status.success(), "{}", said(&bypass));
    assert!(place.mount().account().answered.contains_key("setxattr"));
    assert_eq!(get(&file(1), "user.colour").unwrap(), b"green");
    remove(&file(1), "user.colour").unwrap();
    assert_eq!(get(&file(1), "user.colour"), Err(Errno::NODATA));
    // An access control list by its own name, and what a directory hands down to what is made in it.
    let listed = place.bash(".", "setfacl -m u:1:r d/f2 && getfacl -c d/f2 && setfacl -d -m u:2:rw d && touch d/new && getfacl -c d/new");
    let text = mount::text(&listed.stdout);
    assert!(
        listed.status.success() && text.contains("user:1:r--") && text.contains("user:2:rw-"),
        "{}",
        said(&listed)
    );
    // The others are what they were.
    assert_eq!(get(&file(3), "user.colour"), Err(Errno::NODATA));
}

#[test]
fn no_attribute_is_missed_while_files_are_looked_up_again() {
    // It drops the machine's caches all the time.
    if !guest::inside() {
        return;
    }
    let place = mounted(ALWAYS, |source| with_and_without(source, 4));
    let directory = place.path().join("d");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                for entry in fs::read_dir(&directory).unwrap() {
                    entry.unwrap().metadata().unwrap();
                }
            }
        });
        // No panic before the other thread is told to end.
        let wrong = (0..300).find_map(|round| {
            let file = directory.join(format!("f{}", round % 4));
            let name = "user.colour";
            let told = (get(&file, name), set(&file, name, b"blue"), get(&file, name), remove(&file, name));
            (told != (Err(Errno::NODATA), Ok(()), Ok(b"blue".to_vec()), Ok(()))).then_some((round, told))
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(wrong, None);
    });
    assert!(status(place.mount())["xattr_answers"].as_u64() > Some(0));
}

#[test]
fn what_is_learned_while_something_changes_or_for_no_time_is_not_answered() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    // The programs know nothing of FUSE: any file system shows what they answer.
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("file");
    fs::write(&path, "x").unwrap();
    set(&path, "user.colour", b"red").unwrap();
    let stat = rustix::fs::stat(&path).unwrap();
    let (device, ino) = ((rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)), stat.st_ino);
    let files = NoXattrs::attach(&Types::read().unwrap(), device).unwrap();
    let user = Absent { user: true, ..Absent::default() };
    let (real, absent) = (Ok(b"red".to_vec()), Err(Errno::NODATA));
    let hour = Duration::from_secs(3600);

    files.learn(ino, hour, || user);
    assert_eq!(get(&path, "user.colour"), absent, "the programs answer what they are told");
    assert_eq!(get(&path, "security.colour"), Err(Errno::NODATA));
    assert_eq!(files.answers(), 1, "other names are left to the file system");
    files.forget(ino);
    assert_eq!(get(&path, "user.colour"), real);
    files.learn(ino, Duration::ZERO, || user);
    assert_eq!(get(&path, "user.colour"), real, "it has expired");
    files.learn(ino, hour, || {
        files.forget(ino + 1);
        user
    });
    assert_eq!(get(&path, "user.colour"), real, "something has changed since it was looked at");
    files.learn(ino, hour, || user);
    files.learn(ino, hour, Absent::default);
    assert_eq!(get(&path, "user.colour"), real, "it has attributes by now");
    files.learn(ino, hour, || user);
    files.learn(ino, hour, || {
        files.forget(ino + 1);
        Absent::default()
    });
    assert_eq!(get(&path, "user.colour"), real, "it has attributes by now, whatever else has changed");
    files.learn(ino, hour, || user);
    drop(files);
    // The kernel may take its time (`bpf_link_put`).
    eventually("nobody answers any more", || get(&path, "user.colour") == real);
}

#[test]
fn a_descriptor_of_the_source_keeps_the_kernel_from_answering() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    let place = mounted(ALWAYS, |source| with_and_without(source, 1));
    let file = place.path().join("d/f0");
    assert_eq!(get(&file, "user.colour"), Err(Errno::NODATA));
    // By a path that leads to the source's file itself: neither the library nor the daemon has a part in this.
    let script = "exec 3<d/f0 && setfattr -n user.colour -v red /proc/self/fd/3";
    let changed = Command::new(build::command())
        .args(["run", "bash", "-c", script])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(changed.status.success(), "{}", said(&changed));
    assert!(place.mount().account().answered.contains_key("open"));
    assert_eq!(get(&file, "user.colour").unwrap(), b"red");
}

/// What something costs in a guest, a nanosecond for each instruction: the median, because the guest's only CPU also frees what
/// earlier tests have loaded.
fn cost(mut step: impl FnMut()) -> Duration {
    (0..10).for_each(|_| step());
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Why the bypass does not have the kernel compare generations in `inode_permission`, but tells it what has changed.
#[test]
fn a_program_in_each_step_of_a_walk_is_paid_for_on_every_file_system() {
    // Elsewhere nobody counts instructions.
    if !guest::inside() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a/b/c/f");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "").unwrap();
    let stat = || cost(|| assert!(rustix::fs::stat(&path).is_ok()));
    let without = stat();
    // Of another device, so it finds nothing to do.
    let walks = Walks::attach(&Types::read().unwrap(), (0, 1), &Rules::new(&[Vec::new()])).unwrap();
    let with = stat();
    drop(walks);
    println!("instructions: a stat {}, with the program {}", without.as_nanos(), with.as_nanos());
    assert!(with > without && with < without * 2, "{with:?}, {without:?}");
}

#[test]
fn an_answer_costs_less_than_two_fifths_of_a_request() {
    // Elsewhere nobody counts instructions.
    if !guest::inside() {
        return;
    }
    let place = mounted(ALWAYS, |source| with_and_without(source, 1));
    let cost = |file: &str| {
        let path = place.path().join(file);
        cost(|| assert!(get(&path, "user.none").is_err()))
    };
    // The file with an attribute is asked for every time.
    let (request, answer) = (cost("with"), cost("d/f0"));
    println!("instructions: a request {}, an answer {}", request.as_nanos(), answer.as_nanos());
    assert!(answer * 5 <= request * 2, "{answer:?}, {request:?}");
}

/// What somebody can do with a directory in which a file `f` is, by its permissions everything.
fn tried(directory: &Path, user: u32, groups: &[u32]) -> Operations {
    let become_caller = || {
        let ids: Vec<_> = groups.iter().map(|id| Gid::from_raw(*id)).collect();
        rustix::thread::set_thread_groups(&ids).unwrap();
        // The first is his own.
        rustix::thread::set_thread_res_gid(ids[0], ids[0], ids[0]).unwrap();
        let user = Uid::from_raw(user);
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    };
    let allowed = |outcome: Result<(), Errno>, operations| match outcome {
        Ok(()) => operations,
        Err(Errno::ACCESS) => Operations::NOTHING,
        Err(other) => panic!("{other}"),
    };
    let attempt = || {
        become_caller();
        let list = open(directory, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(drop);
        let both = Operations::CREATE | Operations::REMOVE;
        allowed(rustix::fs::stat(directory.join("f")).map(drop), Operations::SEARCH)
            | allowed(list, Operations::LIST)
            | allowed(access(directory, Access::WRITE_OK), both)
    };
    // Credentials are a thread's.
    thread::scope(|scope| scope.spawn(attempt).join().unwrap())
}

#[test]
fn the_kernel_decides_by_a_policy_as_the_daemon_does() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    const ZONES: usize = 3;
    // The program knows nothing of FUSE: any file system shows what it allows.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let directories: Vec<_> = (0..ZONES).map(|zone| place.path().join(zone.to_string())).collect();
    for directory in &directories {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
        fs::write(directory.join("f"), "").unwrap();
    }
    let stat = rustix::fs::stat(place.path()).unwrap();
    let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let types = Types::read().unwrap();

    let who = prop_oneof![Just(Who::Everyone), (0u32..4).prop_map(Who::User), (0u32..6).prop_map(Who::Group)];
    let rule = (who, 0u32..64).prop_map(|(who, bits)| Rule { who, allowed: Operations::from_bits(bits) });
    let zones = prop::collection::vec(prop::collection::vec(rule, 0..6), ZONES);
    let groups = prop::collection::vec(prop_oneof![0u32..6, 100u32..200], 1..40);
    let callers = prop::collection::vec((0u32..4, groups), 12);
    let mut denials = 0;
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    for _ in 0..16 {
        let (zones, callers) = (&zones, &callers).new_tree(&mut runner).unwrap().current();
        let rules = Rules::new(&zones);
        let walks = Walks::attach(&types, device, &rules).unwrap();
        for (zone, directory) in directories.iter().enumerate() {
            let ino = rustix::fs::stat(directory).unwrap().st_ino;
            assert!(walks.guard(ino, zone as u32));
            for (user, groups) in &callers {
                let allowed = rules.allowed(zone as u32, *user, || Some(groups.iter().copied()));
                let told = [Operations::SEARCH, Operations::LIST, Operations::CREATE | Operations::REMOVE]
                    .into_iter()
                    .filter(|operations| allowed.contain(*operations))
                    .fold(Operations::NOTHING, |all, operations| all | operations);
                assert_eq!(tried(directory, *user, groups), told, "{user} {groups:?} {:?}", zones[zone]);
            }
            walks.release(ino);
            let all = Operations::SEARCH | Operations::LIST | Operations::CREATE | Operations::REMOVE;
            assert_eq!(tried(directory, 1, &[1]), all, "no rule any more");
        }
        denials += walks.denials();
    }
    assert!(denials > 100, "{denials}");
}

/// Runs in a guest of its own.
const UNCALLED: &str = "a_program_that_is_loaded_but_not_called_is_refused";

#[test]
fn a_program_that_is_loaded_but_not_called_is_refused() {
    if !guest::inside() || fs::read_to_string("/sys/kernel/security/lsm").unwrap().contains("bpf") {
        return;
    }
    let attached = Walks::attach(&Types::read().unwrap(), (0, 1), &Rules::new(&[Vec::new()]));
    assert!(matches!(attached, Err(Error::Uncalled)), "{attached:?}");
    println!("it was refused");
}

#[test]
fn a_policy_is_enforced_in_the_kernel_while_the_mount_lasts() {
    if !needs::root("bpf") || !can("BPF security programs", "bpf") {
        return;
    }
    let policy = tempfile::NamedTempFile::new().unwrap();
    fs::write(policy.path(), "user:0 all /p\neveryone nothing /p\n").unwrap();
    let options = format!("bpf,cache=always,policy={}", policy.path().display());
    let mount = || {
        mounted(&["-o", &options], |source| {
            fs::create_dir_all(source.join("p/d")).unwrap();
            fs::write(source.join("p/d/f"), "x").unwrap();
        })
    };
    let (mut place, killed) = (mount(), mount());
    let walks = |place: &Place| status(place.mount())["policy"]["walks"].clone();
    assert_eq!(walks(&place)["checked_by"], "kernel", "{}", walks(&place));
    let asked = |place: &Place| status(place.mount())["requests"]["LOOKUP"].as_u64();
    let file = place.path().join("p/d/f");
    fs::metadata(&file).unwrap();
    let before = asked(&place);
    for _ in 0..10 {
        fs::metadata(&file).unwrap();
        let other = thread::scope(|scope| {
            let look = || {
                let user = Uid::from_raw(1);
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                rustix::fs::stat(&file).map(drop)
            };
            scope.spawn(look).join().unwrap()
        });
        assert_eq!(other, Err(Errno::ACCESS));
    }
    assert_eq!(asked(&place), before, "names last, though not everybody may search");
    assert_eq!(walks(&place)["denied"], 10);
    let programs = [&place, &killed].map(|place| programs_of(place.mount().pid()));
    place.unmount();
    killed.mount().signal(Signal::KILL);
    for programs in &programs {
        eventually("the programs are gone", || loaded(programs) == 0);
    }
}

/// The tests above, in guests.
mod guests {
    use super::*;

    /// What the tests start, besides Finesse's own.
    const PROGRAMS: &[&str] = &["bash", "getfacl", "ls", "setfacl", "setfattr", "tar", "touch"];

    #[test]
    fn programs_that_the_kernel_does_not_call_are_refused() {
        if guest::inside() {
            return;
        }
        let Some(kernel) = Kernel::of_series("6.12", "bpf") else { return };
        let this = std::env::current_exe().unwrap();
        let arguments = ["--exact", UNCALLED, "--nocapture"];
        let (printed, status) = kernel.with_modules("landlock").run(&this, &arguments, &[]);
        assert!(status == 0 && printed.contains("it was refused"), "{printed}");
    }

    #[test]
    fn all_pass_on_linux_6_12() {
        guest::all_pass("6.12", "bpf", PROGRAMS);
    }

    #[test]
    fn all_pass_on_linux_7_0() {
        guest::all_pass("7.0", "bpf", PROGRAMS);
    }
}
