//! Who may do what where (`-o policy=FILE`): the same on both roads, enforced by the daemon alone here, and together with a BPF
//! program in guests with kernels that load one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use finesse_ebpf::rules::Operations;
use finesse_tests::build;
use finesse_tests::guest;
use finesse_tests::mount::{Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::TempDir;

/// A place with a policy, on both roads: `place.command_on`.
struct Guarded {
    place: Place,
    _policy: TempDir,
}

impl Guarded {
    fn new(policy: &str, options: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy");
        fs::write(&file, policy).unwrap();
        let policy = format!("policy={}", file.display());
        let arguments: Vec<_> = ["-o", &policy].into_iter().chain(options.iter().copied()).collect();
        let options = Options { arguments: &arguments, ..Options::default() };
        Self { place: Place::new(Road::Kernel, &options, fill), _policy: directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Runs a shell script as a user, in a directory.
    fn run(&self, road: Road, user: &User, directory: &Path, script: &str) -> String {
        let user = [&["setpriv"], user.setpriv].concat();
        let mut command = Command::new(user[0]);
        command.args(&user[1..]);
        if road == Road::Bypass {
            command.arg(build::command()).args(["run", "--"]);
        }
        finesse_tests::road::environment(&mut command);
        let output = command.args(["bash", "-c", script]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        text(&output.stdout) + &text(&output.stderr)
    }
}

struct User {
    name: &'static str,
    setpriv: &'static [&'static str],
}

const fn user(name: &'static str, setpriv: &'static [&'static str]) -> User {
    User { name, setpriv }
}

const ROOT: User = user("root", &["--clear-groups"]);
const ONE: User = user("one", &["--reuid=1001", "--regid=1001", "--clear-groups"]);
const TWO: User = user("two", &["--reuid=1002", "--regid=1002", "--clear-groups"]);
const MEMBER: User = user("member", &["--reuid=1003", "--regid=1003", "--groups=7,2000"]);
const STRANGER: User = user("stranger", &["--reuid=65534", "--regid=65534", "--clear-groups"]);

fn open_to_all(path: &Path) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
}

fn directory(path: &Path) {
    fs::create_dir_all(path).unwrap();
    open_to_all(path);
}

fn file(path: &Path) {
    fs::write(path, "contents\n").unwrap();
    open_to_all(path);
}

/// What is tried, in a directory, with what it needs. `$me` is a name that nobody else uses.
const ATTEMPTS: [(&str, &str, Operations); 14] = {
    const SEARCH: Operations = Operations::SEARCH;
    const fn and(other: Operations) -> Operations {
        SEARCH.and(other)
    }
    let move_ = Operations::CREATE.and(Operations::REMOVE);
    [
        ("see", "stat -c %s f", SEARCH),
        ("see below", "stat -c %s d/g", SEARCH),
        ("list", "ls .", Operations::LIST),
        ("read", "read -r line <f", and(Operations::READ)),
        ("read below", "read -r line <d/g", and(Operations::READ)),
        ("execute", "./script", and(Operations::READ)),
        ("append", ": >>f", and(Operations::WRITE)),
        ("truncate", ": >t", and(Operations::WRITE)),
        ("chmod", "chmod 600 own-$me", and(Operations::WRITE)),
        ("create", ": >new-$me", and(Operations::CREATE)),
        ("mkdir", "mkdir newdir-$me", and(Operations::CREATE)),
        ("link", "ln f link-$me", and(Operations::CREATE)),
        ("unlink", "unlink old-$me", and(Operations::REMOVE)),
        ("rename", "mv old2-$me renamed-$me", and(move_)),
    ]
};

const ROADS: [Road; 2] = [Road::Kernel, Road::Bypass];

/// A directory in which everybody may do everything, as far as the files' permissions are concerned.
fn fill(path: &Path, users: &[&User]) {
    directory(path);
    directory(&path.join("d"));
    for name in ["f", "t", "d/g"] {
        file(&path.join(name));
    }
    fs::write(path.join("script"), "#!/bin/sh\n").unwrap();
    open_to_all(&path.join("script"));
    for user in users {
        let id = user.setpriv[0].strip_prefix("--reuid=").map_or(0, |id| id.parse().unwrap());
        for road in ROADS.map(|road| format!("{road:?}")) {
            for kind in ["own", "old", "old2"] {
                let name = path.join(format!("{kind}-{}-{road}", user.name));
                file(&name);
                chown(&name, Some(id), None).unwrap();
            }
        }
    }
}

/// Tries everything in a directory.
fn attempts(guarded: &Guarded, road: Road, user: &User, directory: &str) -> BTreeMap<&'static str, String> {
    let mut script = format!("me={}-{road:?}\n", user.name);
    for (name, command, _) in ATTEMPTS {
        // Each by its path: that the caller was in the directory before must not matter.
        let command = match name {
            "list" => format!("ls {directory}"),
            _ => format!("cd {directory} && {{ {command}; }}"),
        };
        script += &format!(
            "said=$( ({command}) 2>&1 >/dev/null) && echo '{name}: ok' || echo \"{name}: ${{said##*: }}\"\n"
        );
    }
    let printed = guarded.run(road, user, guarded.place.path(), &script);
    let outcome = |(name, _, _): &(&'static str, _, _)| {
        let said = printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        (*name, said.unwrap_or_else(|| panic!("{name}: {printed}")).to_owned())
    };
    ATTEMPTS.iter().map(outcome).collect()
}

#[test]
fn each_user_may_do_what_the_rules_say_and_no_more_on_both_roads() {
    if !needs::root("policy") {
        return;
    }
    let users = [&ROOT, &ONE, &TWO, &MEMBER, &STRANGER];
    let policy = "user:1001 all /data/private\n\
                  group:2000 search,create,remove /data/private\n\
                  user:1002 search,list,read /data/private\n\
                  user:1002 search,list,write /data/*\n\
                  everyone nothing /data/*\n\
                  everyone search,list /data\n";
    let guarded = Guarded::new(policy, &[], |source| {
        directory(&source.join("data"));
        for name in ["data/private", "data/other", "free"] {
            fill(&source.join(name), &users);
        }
    });
    let outer = Operations::SEARCH | Operations::LIST;
    let (read, write) = (outer | Operations::READ, outer | Operations::WRITE);
    let add = Operations::SEARCH | Operations::CREATE | Operations::REMOVE;
    let nothing = Operations::NOTHING;
    let verdicts = [
        (&ONE, [Operations::ALL, nothing]),
        (&TWO, [read, write]),
        (&MEMBER, [add, nothing]),
        (&ROOT, [nothing, nothing]),
        (&STRANGER, [nothing, nothing]),
    ];
    // An emulated machine takes seconds for each.
    let tried = if guest::inside() { 2 } else { verdicts.len() };
    for (user, [private, other]) in verdicts.into_iter().take(tried) {
        for road in ROADS {
            let places = [("data/private", private), ("data/other", other), ("free", Operations::ALL)];
            for (place, allowed) in places {
                let seen = attempts(&guarded, road, user, place);
                for (name, _, needed) in ATTEMPTS {
                    let expected = if allowed.contain(needed) { "ok" } else { "Permission denied" };
                    assert_eq!(seen[name], expected, "{road}: {} of {place} by {}", name, user.name);
                }
            }
        }
    }
    let account = guarded.place.mount().account();
    assert!(account.to_kernel["policy"] > 0, "{:?}", account.to_kernel);
    for call in ["stat", "open", "unlink", "rename", "mkdir", "chmod"] {
        assert!(account.answered.contains_key(call), "{call}: {:?}", account.answered);
    }
}

/// Only root may search `p`, in which `d` is.
fn private() -> Guarded {
    Guarded::new("user:0 all /p\neveryone nothing /p\n", &["-o", "cache=always"], |source| {
        fill(&source.join("p"), &[]);
        fill(&source.join("q"), &[]);
    })
}

#[test]
fn what_one_user_has_looked_up_another_does_not_find() {
    if !needs::root("policy") {
        return;
    }
    let guarded = private();
    for road in ROADS {
        for _ in 0..2 {
            for (user, place, seen) in [(&ROOT, "p", true), (&STRANGER, "p", false), (&STRANGER, "q", true)] {
                let script = format!("for name in f d d/g; do stat -c %s {place}/$name 2>&1 || :; done");
                let printed = guarded.run(road, user, guarded.place.path(), &script);
                let denied = printed.matches("Permission denied").count();
                assert_eq!(denied, if seen { 0 } else { 3 }, "{road}, {}: {printed}", user.name);
            }
        }
    }
}

#[test]
fn a_mount_of_a_part_and_a_directory_that_one_is_in_obey_the_same_rules() {
    if !needs::root("policy") {
        return;
    }
    let guarded = private();
    let elsewhere = tempfile::tempdir().unwrap();
    open_to_all(elsewhere.path());
    mount_bind(guarded.path("p/d"), elsewhere.path()).unwrap();
    let see = |road, user: &User| {
        // By a path to the bind mount, and from a working directory that was entered as root.
        let path = elsewhere.path().join("g");
        let bound = guarded.run(road, user, Path::new("/"), &format!("stat {} 2>&1 || :", path.display()));
        let inside = guarded.run(road, user, &guarded.path("p/d"), "stat g 2>&1 || :");
        [bound, inside].map(|printed| !printed.contains("Permission denied"))
    };
    let seen = ROADS.map(|road| (see(road, &ROOT), see(road, &STRANGER)));
    unmount(elsewhere.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!(seen, [([true; 2], [false; 2]); 2]);
}

#[test]
fn nothing_leaves_its_subtree_but_as_a_copy() {
    if !needs::root("policy") {
        return;
    }
    let guarded = private();
    let across = |from: &str, to: &str| {
        let renamed = fs::rename(guarded.path(from), guarded.path(to));
        renamed.map_err(|error| error.raw_os_error())
    };
    let beyond = Err(Some(libc::EXDEV));
    for (from, to, expected) in [
        ("p/f", "q/f2", beyond),
        ("q/f", "p/f2", beyond),
        ("p/d", "q/d2", beyond),
        ("p", "p2", beyond),
        ("q/d", "p/d2", beyond),
        ("p/f", "p/d/f", Ok(())),
        ("q", "q2", Ok(())),
        ("q2", "q", Ok(())),
    ] {
        assert_eq!(across(from, to), expected, "{from} to {to}");
    }
    for road in ROADS {
        let printed =
            guarded.run(road, &ROOT, guarded.place.path(), "ln q/f p/link 2>&1 || ln p/t q/link 2>&1 || :");
        assert_eq!(printed.matches("Invalid cross-device link").count(), 2, "{road}: {printed}");
        let before = fs::File::open(guarded.place.source().join("q/t")).unwrap();
        let script = format!("mv q/t p/moved-{road:?} && mv p/moved-{road:?} q/t");
        guarded.run(road, &ROOT, guarded.place.path(), &script);
        assert_eq!(before.metadata().unwrap().nlink(), 0, "{road}: what is there is a copy");
        assert_eq!(fs::read(guarded.path("q/t")).unwrap(), b"contents\n");
    }
}

#[test]
fn a_file_with_names_in_two_subtrees_is_for_those_who_may_use_both() {
    if !needs::root("policy") {
        return;
    }
    let policy = "user:1001 all /p\nuser:0 all /p\neveryone search /p\n\
                  user:1002 all /q\nuser:0 all /q\neveryone search /q\n";
    let guarded = Guarded::new(policy, &[], |source| {
        fill(&source.join("p"), &[]);
        fill(&source.join("q"), &[]);
        fs::hard_link(source.join("p/f"), source.join("q/same")).unwrap();
    });
    for road in ROADS {
        for (user, path, allowed) in [
            (&ROOT, "p/f", true),
            (&ROOT, "q/same", true),
            (&ONE, "p/f", false),
            (&TWO, "q/same", false),
            (&ROOT, "p/f", true),
            (&ONE, "p/t", true),
            (&ONE, "q/t", false),
        ] {
            let script = format!("stat p/f q/same >/dev/null; read -r line <{path} || :");
            let printed = guarded.run(road, user, guarded.place.path(), &script);
            assert_eq!(!printed.contains("Permission denied"), allowed, "{road}, {}: {printed}", user.name);
        }
    }
}

#[test]
fn a_descriptor_allows_no_more_when_it_is_opened_again() {
    if !needs::root("policy") {
        return;
    }
    for grant in ["grant=always", "grant=large", "grant=never"] {
        let guarded = Guarded::new("user:1002 search,read /p\n", &["-o", grant], |source| {
            fill(&source.join("p"), &[]);
        });
        for road in ROADS {
            // The child finds the descriptor as the kernel has it, whatever it was before.
            let script = "exec 3<p/f; bash -c ': >>/proc/self/fd/3' 2>&1; read -r line <&3; echo $line";
            let printed = guarded.run(road, &TWO, guarded.place.path(), script);
            assert!(printed.contains("Permission denied"), "{grant}, {road}: {printed}");
            assert!(printed.ends_with("contents\n"), "{grant}, {road}: {printed}");
            let printed = guarded.run(road, &ONE, guarded.place.path(), script);
            assert_eq!(printed, "contents\n", "{grant}, {road}");
        }
    }
}

#[test]
fn a_wrong_policy_refuses_the_mount_and_says_where() {
    let home = tempfile::tempdir().unwrap();
    let [source, mountpoint] = ["src", "mnt"].map(|name| home.path().join(name));
    for directory in [&source, &mountpoint] {
        fs::create_dir(directory).unwrap();
    }
    std::os::unix::fs::symlink("real", source.join("link")).unwrap();
    let file = home.path().join("policy");
    for (text, expected) in [
        ("everyone all /\n\neveryone sing /a\n", "policy:3: \"sing\": no such operation"),
        ("everyone all /link/x\n", "/link is a symbolic link"),
        ("", "policy:1: no rule"),
    ] {
        fs::write(&file, text).unwrap();
        let output = Command::new(build::command())
            .args(["mount", "-o", &format!("policy={}", file.display())])
            .args([&source, &mountpoint])
            .output()
            .unwrap();
        assert!(!output.status.success() && said(&output).contains(expected), "{}", said(&output));
    }
}

/// The tests above, in guests.
mod guests {
    use super::*;

    /// What the tests start, besides Finesse's own.
    const PROGRAMS: &[&str] = &["bash", "chmod", "ln", "ls", "mkdir", "mv", "setpriv", "stat", "unlink"];

    #[test]
    fn all_pass_on_linux_6_12() {
        guest::all_pass("6.12", "policy", PROGRAMS);
    }

    #[test]
    fn all_pass_on_linux_7_0() {
        guest::all_pass("7.0", "policy", PROGRAMS);
    }
}
