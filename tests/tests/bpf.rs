//! BPF programs that help with unmodified programs, for real: on this machine as far as its kernel loads them, and in
//! guests with other kernels, where nothing may be skipped.

use std::fs;
use std::path::Path;
use std::process::Command;

use aya::programs::loaded_programs;
use finesse_tests::build;
use finesse_tests::guest::{self, Kernel};
use finesse_tests::mount::{Mount, Options, said};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;
use rustix::process::Signal;
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

fn mounted(fill: impl FnOnce(&Path)) -> Place {
    Place::new(Road::Kernel, &Options { arguments: &["-o", "bpf"], ..Options::default() }, fill)
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
    let place = mounted(|source| {
        for number in 0..50 {
            fs::write(source.join(format!("f{number}")), "x").unwrap();
        }
    });
    let other = mounted(|source| fs::write(source.join("f"), "x").unwrap());
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
    let (mut unmounted, killed) = (mounted(|_| {}), mounted(|_| {}));
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

/// The tests above, in guests.
mod guests {
    use super::*;

    /// What the tests start, besides Finesse's own.
    const PROGRAMS: &[&str] = &["ls"];

    fn all_pass_on(series: &str) {
        // No guest within a guest.
        if guest::inside() {
            return;
        }
        let Some(kernel) = Kernel::of_series(series, "bpf") else { return };
        let this = std::env::current_exe().unwrap();
        let (printed, status) = kernel.run(&this, &["--test-threads=1", "--skip", "guests::"], PROGRAMS);
        for line in printed.lines().filter(|line| line.starts_with("test ")) {
            println!("Linux {series}: {line}");
        }
        assert_eq!(status, 0, "{printed}");
        assert!(printed.contains("\ntest result: ok. ") && !printed.contains("\nskipped: "), "{printed}");
    }

    #[test]
    fn all_pass_on_linux_6_12() {
        all_pass_on("6.12");
    }

    #[test]
    fn all_pass_on_linux_7_0() {
        all_pass_on("7.0");
    }
}
