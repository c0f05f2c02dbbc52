//! The metadata table: what preloaded programs look up without a round trip, and that it is right.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use finesse_tests::build;
use finesse_tests::mount::Options;
use finesse_tests::needs;
use finesse_tests::python::Python;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::{PATIENCE, eventually};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

/// A preloaded program that does what it is told.
struct Looker(Python);

/// What it may be told: a call and its arguments.
const CALLS: &str = r"
def stat(path, follow=True):
    s = os.stat(path, follow_symlinks=follow)
    return f'{s.st_mode:o} {s.st_nlink} {s.st_uid} {s.st_size} {s.st_mtime_ns}'
def lstat(path):
    return stat(path, False)
def exists(path):
    return str(os.access(path, os.F_OK))
def read(path):
    with open(path) as file:
        return file.read()
def xattr(path, name, follow=True):
    return os.getxattr(path, name, follow_symlinks=follow).hex() or 'empty'
def lxattr(path, name):
    return xattr(path, name, False)
def list(path):
    return str(len(os.listdir(path)))
def xattrs(path):
    return ' '.join(os.listxattr(path)) or 'none'
def do_set(path):
    os.setxattr(path, 'user.x', b'value')
def do_fset(path):
    fd = os.open(path, os.O_RDONLY)
    os.setxattr(fd, 'user.x', b'value')
    os.close(fd)
def do_fremove(path):
    fd = os.open(path, os.O_RDONLY)
    os.removexattr(fd, 'user.x')
    os.close(fd)
import fcntl, mmap, signal, time
def lend(fd):
    # The child keeps it until its input ends.
    global child, child_ends
    ours, child_ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(child_ends)
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    os.close(fd)
def end():
    os.close(child_ends)
    os.waitpid(child, 0)
def map(fd):
    global mapping
    mapping = mmap.mmap(fd, 8)
    os.close(fd)
def unmap():
    mapping.close()
def lease(fd):
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    time.sleep(0.05)
    return leased(fd)
def leased(fd):
    return str(fcntl.fcntl(fd, fcntl.F_GETLEASE))
def do(call, *arguments):
    call = globals().get(call) or getattr(os, call)
    return call(*[int(argument[1:], 8) if argument.startswith('%') else argument for argument in arguments])
";

impl Looker {
    fn new(place: &Place, wrapper: &[&str]) -> Self {
        let mut command = place.command_as(&build::command(), wrapper, "/usr/bin/python3");
        command.current_dir("/");
        Self(Python::start(command, CALLS))
    }

    fn does(&mut self, order: &str) -> String {
        self.0.says(&format!("do(*{order:?}.split(' '))"))
    }

    /// The same on a file of the mount.
    fn looks(&mut self, call: &str, place: &Place, path: &str) -> String {
        self.does(&format!("{call} {}", place.path().join(path).display()))
    }

    /// Looks often enough for the answer to be in the table, and returns it.
    fn learns(&mut self, call: &str, place: &Place, path: &str) -> String {
        let first = self.looks(call, place, path);
        for _ in 0..3 {
            assert_eq!(self.looks(call, place, path), first, "{call} {path}");
        }
        first
    }
}

const ALWAYS: Options<'static> =
    Options { arguments: &["--cache=always"], count_kernel_requests: false, wrapper: &[] };
const NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
const ROOT: &[&str] = &["setpriv"];

fn fill(root: &Path) {
    fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    for directory in ["d/sub", "e", "private"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("d/f"), "four").unwrap();
    fs::write(root.join("d/sub/f"), "below").unwrap();
    symlink("f", root.join("d/l")).unwrap();
    fs::set_permissions(root.join("private"), PermissionsExt::from_mode(0o700)).unwrap();
    fs::write(root.join("private/f"), "hidden").unwrap();
}

fn place() -> Place {
    Place::new(Road::Bypass, &ALWAYS, fill)
}

/// How many calls the table has answered while something was done.
fn from_table(place: &Place, f: impl FnOnce()) -> u64 {
    let before = place.mount().account();
    f();
    let calls = place.mount().account().since(&before);
    assert!(calls.to_kernel.is_empty(), "{calls:?}");
    calls.from_table.values().sum()
}

#[test]
fn what_has_been_looked_at_is_looked_up_without_a_round_trip() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    for (call, path) in [
        ("stat", "d/f"),
        ("stat", "d/sub/f"),
        ("stat", "d/sub"),
        ("lstat", "d/l"),
        ("readlink", "d/l"),
        ("readlink", "d/f"),
        ("readlink", "d/sub"),
        ("readlink", "."),
        ("exists", "d/f"),
        ("stat", "absent"),
        ("lstat", "d/absent/below"),
        ("exists", "d/absent"),
        ("read", "d/absent"),
        ("stat", "./d/./f"),
        ("read", "./d/absent"),
        ("stat", "."),
    ] {
        let native = {
            let mut native = looker.does(&format!("{call} {}", place.source().join(path).display()));
            if path == "." && native.starts_with('4') {
                // The mount's directory is shown as the source's.
                native = looker.looks(call, &place, path);
            }
            native
        };
        assert_eq!(looker.learns(call, &place, path), native, "{call} {path}");
        let hits = from_table(&place, || (0..10).for_each(|_| drop(looker.looks(call, &place, path))));
        assert_eq!(hits, 10, "{call} {path}");
    }
}

#[test]
fn what_a_program_has_made_is_looked_up_without_a_round_trip() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    // So that everybody is known to be able to search it.
    looker.looks("stat", &place, "d/f");
    assert_eq!(looker.looks("mkdir", &place, "d/made"), "None");
    assert_eq!(from_table(&place, || assert_eq!(looker.looks("exists", &place, "d/made"), "True")), 1);
    let target = looker.does(&format!("symlink f {}", place.path().join("d/link").display()));
    assert_eq!(target, "None");
    assert_eq!(
        from_table(&place, || assert!(looker.looks("lstat", &place, "d/link").starts_with("120777 1"))),
        1
    );
    let new = looker.looks("lstat", &place, "d/link");
    assert_eq!(new, looker.does(&format!("lstat {}", place.source().join("d/link").display())));
    // What is gone again is gone.
    assert_eq!(looker.looks("unlink", &place, "d/link"), "None");
    assert_eq!(looker.looks("lstat", &place, "d/link"), "ENOENT");
    assert_eq!(looker.looks("rmdir", &place, "d/made"), "None");
    assert_eq!(looker.looks("exists", &place, "d/made"), "False");
}

#[test]
fn paths_from_a_working_directory_are_looked_up() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    looker.looks("chdir", &place, "d/sub");
    for _ in 0..3 {
        looker.does("stat f");
    }
    assert_eq!(from_table(&place, || drop(looker.does("stat f"))), 1);
    fs::write(place.path().join("d/sub/f"), "longer than before").unwrap();
    assert_eq!(looker.does("stat f").split(' ').nth(3), Some("18"));
}

#[test]
fn paths_through_parents_are_looked_up_and_lead_where_the_directory_is() {
    for road in [Road::Kernel, Road::Bypass] {
        let place = place();
        fs::write(place.source().join("e/f"), "of e").unwrap();
        let mut looker = Looker::new(&place, ROOT);
        assert_eq!(looker.looks("chdir", &place, "d/sub"), "None");
        let here = |looker: &mut Looker, directory: &str| {
            for (call, path, from_there) in [
                ("stat", "../f", "../f"),
                ("exists", "../absent", "../absent"),
                ("lstat", ".././l", "../l"),
                ("stat", "../../e/f", "../../e/f"),
                ("stat", "../../d/../d/f", "../../d/f"),
            ] {
                let native = place.source().join(directory).join(from_there);
                let expected = looker.does(&format!("{call} {}", native.display()));
                for _ in 0..3 {
                    assert_eq!(looker.does(&format!("{call} {path}")), expected, "{path} in {directory}");
                }
                let hits =
                    from_table(&place, || assert_eq!(looker.does(&format!("{call} {path}")), expected));
                assert_eq!(hits, 1, "{call} {path} in {directory}, on the {road}");
            }
        };
        here(&mut looker, "d/sub");
        let mut changer = Looker({
            let mut command = place.command_on(road, "/usr/bin/python3");
            command.current_dir("/");
            Python::start(command, CALLS)
        });
        let mount = place.path().display();
        let mut moves = |from: &str, to: &str| {
            assert_eq!(changer.does(&format!("rename {mount}/{from} {mount}/{to}")), "None", "on the {road}");
        };
        moves("d/sub", "e/sub");
        assert!(looker.does("stat ../f").contains(" 4 "), "of e");
        assert_eq!(looker.does("lstat ../l"), "ENOENT");
        // Whoever looks the name up tells where it is.
        looker.looks("stat", &place, "e/sub");
        here(&mut looker, "e/sub");
        // What is above it moves.
        moves("e", "d/e");
        assert_eq!(looker.does("stat ../../e/sub/f"), looker.does("stat f"));
        assert_eq!(looker.does("lstat ../../l"), looker.looks("lstat", &place, "d/l"));
        moves("d/e", "e");
        // It is gone: what it was in is there all the same.
        fs::remove_file(place.path().join("e/sub/f")).unwrap();
        fs::remove_dir(place.path().join("e/sub")).unwrap();
        let of_e = looker.looks("stat", &place, "e/f");
        assert_eq!((looker.does("stat ../f"), looker.does("stat f")), (of_e, "ENOENT".to_owned()));
    }
}

#[test]
fn what_is_mounted_above_a_working_directory_is_seen_by_way_of_parents() {
    if !needs::root("what_is_mounted_above_a_working_directory_is_seen_by_way_of_parents") {
        return;
    }
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    assert_eq!(looker.looks("chdir", &place, "d/sub"), "None");
    let paths = ["../f", "../../e", "../sub/../l"];
    let mut all = |expected: [&str; 3]| {
        eventually("what is mounted there is seen", || {
            paths.map(|path| looker.does(&format!("exists {path}"))) == expected
        });
    };
    (0..3).for_each(|_| all(["True", "True", "True"]));
    let (root, directory) = (place.path().to_owned(), place.path().join("d"));
    for (covered, expected) in [(&directory, ["False", "True", "False"]), (&root, ["True", "False", "True"])]
    {
        mount("tmpfs", covered, "tmpfs", MountFlags::empty(), None).unwrap();
        all(expected);
        unmount(covered, UnmountFlags::DETACH).unwrap();
        (0..3).for_each(|_| all(["True", "True", "True"]));
    }
}

#[test]
fn what_was_listed_is_looked_up_again_once_the_table_has_begun_anew() {
    let place = place();
    let (mut looker, mut inside) = (Looker::new(&place, ROOT), Looker::new(&place, ROOT));
    assert_eq!(inside.looks("chdir", &place, "d/sub"), "None");
    let looks = [("stat", "d/f"), ("stat", "d/sub/f")];
    for round in 0..3 {
        // Before anybody comes that way from the root.
        let native = looker.does(&format!("stat {}", place.source().join("d/sub/f").display()));
        (0..2).for_each(|_| assert_eq!(inside.does("stat f"), native));
        assert_eq!(from_table(&place, || assert_eq!(inside.does("stat f"), native)), 1, "round {round}");
        for (call, path) in looks {
            looker.learns(call, &place, path);
            let hits = from_table(&place, || drop(looker.looks(call, &place, path)));
            assert_eq!(hits, 1, "{path} in round {round}");
        }
        // When it was last accessed has changed, so the attributes are not known.
        for directory in ["d", "d/sub"] {
            let list = format!("list {}", place.path().join(directory).display());
            assert!(looker.does(&list).parse::<usize>().is_ok(), "{list}");
        }
        // A directory that is closed ends all that is in the table.
        let mode = if round % 2 == 0 { "%700" } else { "%755" };
        looker.looks("stat", &place, "e");
        let close = format!("chmod {} {mode}", place.path().join("e").display());
        assert_eq!(looker.does(&close), "None");
    }
}

/// What is done by one road, and what to look at then.
const CHANGES: [(&str, &str); 20] = [
    ("truncate d/f %7", "d/f"),
    ("chmod d/f %600", "d/f"),
    ("unlink d/f", "d/f"),
    ("mkdir d/f", "d/f"),
    ("rmdir d/f", "d/f"),
    ("symlink nowhere d/f", "d/f"),
    ("rename d/f d/g", "d/f"),
    ("unlink d/g", "d/g"),
    ("mknod d/f", "d/f"),
    ("link d/f d/g", "d/f"),
    ("chmod d/g %640", "d/f"),
    ("unlink d/g", "d/f"),
    ("rename d/f e/f", "e/f"),
    ("mknod d/f", "d/f"),
    ("replace d/f e/f", "e/f"),
    ("rename d/sub e/sub", "d/sub/f"),
    ("rename e/sub d/sub", "d/sub/f"),
    ("rename d e/d", "d/sub/f"),
    ("rename e/d d", "d/sub/f"),
    ("utime d/sub/f", "d/sub/f"),
];

#[test]
fn whatever_changes_on_either_road_is_seen_at_once() {
    for road in [Road::Kernel, Road::Bypass] {
        let place = place();
        let mut looker = Looker::new(&place, ROOT);
        let mut changer = match road {
            Road::Bypass => Looker::new(&place, ROOT),
            _ => {
                let mut command = place.command_on(Road::Kernel, "/usr/bin/python3");
                command.current_dir("/");
                Looker(Python::start(command, CALLS))
            }
        };
        let (mount, source) = (place.path().display(), place.source().display());
        for (change, path) in CHANGES {
            for call in ["lstat", "exists", "readlink"] {
                looker.learns(call, &place, path);
            }
            let paths = change.split(' ').map(|word| match word {
                call @ ("truncate" | "chmod" | "unlink" | "mkdir" | "rmdir" | "symlink" | "rename"
                | "mknod" | "link" | "replace" | "utime" | "nowhere") => call.to_owned(),
                number if number.starts_with('%') => number.to_owned(),
                path => format!("{mount}/{path}"),
            });
            let order = paths.collect::<Vec<_>>().join(" ");
            let done = changer.does(&order);
            assert_eq!(done, "None", "{change} on the {road}");
            for call in ["lstat", "exists", "readlink"] {
                let seen = looker.looks(call, &place, path);
                let native = looker.does(&format!("{call} {source}/{path}"));
                assert_eq!(seen, native, "{call} {path} after {change} on the {road}");
            }
        }
        let hits = place.mount().account().from_table.values().sum::<u64>();
        assert!(hits > 100, "{hits} looked up");
    }
}

/// Extended attributes that programs ask every file for, and how.
const ASKED: [(&str, &str); 5] = [
    ("xattr", "system.posix_acl_access"),
    ("xattr", "system.posix_acl_default"),
    ("lxattr", "security.selinux"),
    ("xattr", "security.capability"),
    ("xattrs", ""),
];

fn asks(looker: &mut Looker, call: &str, name: &str, path: &Path) -> String {
    looker.does(format!("{call} {} {name}", path.display()).trim_end())
}

#[test]
fn what_has_no_extended_attributes_is_not_asked_for_them() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    // The first question, whatever for, answers all others.
    looker.looks("stat", &place, "d/f");
    asks(&mut looker, "lxattr", "security.selinux", &place.path().join("d/f"));
    for (call, name) in ASKED {
        let native = asks(&mut looker, call, name, &place.source().join("d/f"));
        let hits = from_table(&place, || {
            assert_eq!(asks(&mut looker, call, name, &place.path().join("d/f")), native, "{call} {name}");
        });
        assert_eq!(hits, 1, "{call} {name}");
    }
    // Those of users are not for everybody, and a link's other errors are its own.
    assert_eq!(
        from_table(&place, || drop(asks(&mut looker, "xattr", "user.x", &place.path().join("d/f")))),
        0
    );
    for path in ["d/l", "d/sub", "d/absent", "d/f"] {
        for (call, name) in [
            ("lxattr", "system.posix_acl_access"),
            ("lxattr", "user.x"),
            ("xattr", "user.x"),
            ("xattr", "security."),
        ]
        .into_iter()
        .chain(ASKED)
        {
            let native = asks(&mut looker, call, name, &place.source().join(path));
            for _ in 0..3 {
                let seen = asks(&mut looker, call, name, &place.path().join(path));
                assert_eq!(seen, native, "{call} {name} of {path}");
            }
        }
    }
}

#[test]
fn extended_attributes_are_seen_as_soon_as_they_are_there() {
    if !needs::root("extended_attributes_are_seen_as_soon_as_they_are_there") {
        return;
    }
    let place = place();
    let mut lookers = [Looker::new(&place, ROOT), Looker::new(&place, NOBODY)];
    let mut writer = Looker::new(&place, ROOT);
    let mount = place.path().to_owned();
    let list = list_without_nobody();
    let set = |path: &str, name: &str, value: &[u8]| {
        setxattr(mount.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    let remove = |path: &str, name: &str| removexattr(mount.join(path), name).unwrap();
    let (file, directory) = (mount.join("d/f"), mount.join("d/sub"));
    type Do<'d> = &'d dyn Fn(&mut Looker);
    let ways: [(&str, &Path, Do<'_>, Do<'_>); 6] = [
        ("an access control list", &file, &|_| set("d/f", "system.posix_acl_access", &list), &|_| {
            remove("d/f", "system.posix_acl_access")
        }),
        ("a default list", &directory, &|_| set("d/sub", "system.posix_acl_default", &list), &|_| {
            remove("d/sub", "system.posix_acl_default")
        }),
        ("a label", &file, &|_| set("d/f", "security.selinux", b"some"), &|_| {
            remove("d/f", "security.selinux")
        }),
        ("an administrator's", &file, &|_| set("d/f", "trusted.x", b"value"), &|_| {
            remove("d/f", "trusted.x")
        }),
        (
            "a user's on the bypass",
            &file,
            &|writer| assert_eq!(writer.does(&format!("do_set {}", file.display())), "None"),
            &|writer| assert_eq!(writer.does(&format!("removexattr {} user.x", file.display())), "None"),
        ),
        (
            "a user's by descriptor on the bypass",
            &file,
            &|writer| assert_eq!(writer.does(&format!("do_fset {}", file.display())), "None"),
            &|writer| assert_eq!(writer.does(&format!("do_fremove {}", file.display())), "None"),
        ),
    ];
    for (way, path, set, remove) in ways {
        let native = place.source().join(path.strip_prefix(&mount).unwrap());
        for (moment, change) in [("was set", set), ("was removed", remove)] {
            // What one of them is answered, the other one may find in the table.
            for order in [[0, 1], [1, 0], [0, 1]] {
                for who in order {
                    for (call, name) in ASKED {
                        let native = asks(&mut lookers[who], call, name, &native);
                        let seen = asks(&mut lookers[who], call, name, path);
                        assert_eq!(seen, native, "{call} {name} before {way} {moment}");
                    }
                }
            }
            let hits = from_table(&place, || {
                for looker in &mut lookers {
                    asks(looker, "lxattr", "security.selinux", path);
                }
            });
            assert_eq!(hits, if moment == "was set" { 2 } else { 0 }, "before {way} {moment}");
            change(&mut writer);
            for order in [[1, 0], [0, 1]] {
                for who in order {
                    for (call, name) in ASKED {
                        let native = asks(&mut lookers[who], call, name, &native);
                        let seen = asks(&mut lookers[who], call, name, path);
                        assert_eq!(seen, native, "{call} {name} after {way} {moment}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_in_a_private_directory_is_in_the_table() {
    if !needs::root("nothing_in_a_private_directory_is_in_the_table") {
        return;
    }
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    looker.learns("stat", &place, "private/f");
    looker.learns("stat", &place, "private/absent");
    let hits = from_table(&place, || drop(looker.looks("stat", &place, "private/f")));
    assert_eq!(hits, 0);
    // Nor what is moved there.
    looker.learns("stat", &place, "d/sub/f");
    assert_eq!(from_table(&place, || drop(looker.looks("stat", &place, "d/sub/f"))), 1);
    fs::rename(place.path().join("d"), place.path().join("private/d")).unwrap();
    looker.learns("stat", &place, "private/d/sub/f");
    assert_eq!(from_table(&place, || drop(looker.looks("stat", &place, "private/d/sub/f"))), 0);
}

/// An access control list that lets everybody in but user 65534 (`struct posix_acl_xattr_header` and `_entry`).
fn list_without_nobody() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 7u16, u32::MAX),
        (0x02, 0, 65534),
        (0x04, 7, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 7, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn a_directory_that_is_closed_hides_its_names_at_once() {
    if !needs::root("a_directory_that_is_closed_hides_its_names_at_once") {
        return;
    }
    let place = place();
    let mut stranger = Looker::new(&place, NOBODY);
    let mut root = Looker::new(&place, ROOT);
    let (mount, private) = (place.path(), place.path().join("private"));
    let mode = |mode: u32| fs::set_permissions(mount.join("d"), PermissionsExt::from_mode(mode)).unwrap();
    type Do<'d> = &'d dyn Fn(&mut Looker);
    let ways: [(&str, Do<'_>, Do<'_>); 4] = [
        ("chmod on the kernel road", &|_| mode(0o700), &|_| mode(0o755)),
        (
            "chmod on the bypass",
            &|root| drop(root.does(&format!("chmod {}/d %750", mount.display()))),
            &|root| drop(root.does(&format!("chmod {}/d %755", mount.display()))),
        ),
        (
            "an access control list",
            &|_| {
                let list = list_without_nobody();
                setxattr(mount.join("d"), "system.posix_acl_access", &list, XattrFlags::empty()).unwrap();
            },
            &|_| removexattr(mount.join("d"), "system.posix_acl_access").unwrap(),
        ),
        ("a move", &|_| fs::rename(mount.join("d"), private.join("d")).unwrap(), &|_| {
            fs::rename(private.join("d"), mount.join("d")).unwrap()
        }),
    ];
    for (way, close, open) in ways {
        for call in ["stat", "exists"] {
            for path in ["d/f", "d/sub/f", "d/sub/absent"] {
                stranger.learns(call, &place, path);
                root.learns(call, &place, path);
            }
        }
        let before = stranger.looks("stat", &place, "d/sub/f");
        assert_eq!(from_table(&place, || drop(stranger.looks("stat", &place, "d/sub/f"))), 1, "{way}");
        close(&mut root);
        let closed = if way == "a move" { "ENOENT" } else { "EACCES" };
        for path in ["d/f", "d/sub/f", "d/sub/absent"] {
            assert_eq!(stranger.learns("stat", &place, path), closed, "{path} after {way}");
            assert_eq!(stranger.learns("exists", &place, path), "False", "{path} after {way}");
        }
        if way != "a move" {
            assert_eq!(root.learns("stat", &place, "d/sub/f"), before, "{way}");
            assert_eq!(stranger.looks("stat", &place, "d/sub/f"), closed, "{way}, after root has looked");
        }
        open(&mut root);
        assert_eq!(stranger.learns("stat", &place, "d/sub/f"), before, "after {way} was taken back");
    }
}

#[test]
fn files_that_are_written_and_read_unseen_show_how_they_are() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    looker.learns("stat", &place, "d/f");
    // The kernel has it, perhaps with passthrough.
    let mut file = fs::OpenOptions::new().append(true).open(place.path().join("d/f")).unwrap();
    for len in 5..10 {
        file.write_all(b".").unwrap();
        assert_eq!(looker.looks("stat", &place, "d/f").split(' ').nth(3).unwrap(), len.to_string());
    }
    drop(file);
    // A client has a descriptor of the source's.
    let mut writer = Looker::new(&place, ROOT);
    let fd = writer.does(&format!("open {} %2002", place.path().join("d/f").display()));
    looker.learns("stat", &place, "d/f");
    writer.does(&format!("ftruncate %{:o} %144", fd.parse::<u32>().expect("a descriptor")));
    assert_eq!(looker.looks("stat", &place, "d/f").split(' ').nth(3), Some("100"));
}

#[test]
fn a_file_that_was_written_is_looked_up_again_when_nobody_can_write_to_it() {
    let place = place();
    let (mut looker, mut writer) = (Looker::new(&place, ROOT), Looker::new(&place, ROOT));
    looker.looks("stat", &place, "d/f");
    let path = place.path().join("d/new");
    let size =
        |looker: &mut Looker| looker.looks("stat", &place, "d/new").split(' ').nth(3).map(str::to_owned);
    let is_from_table = |looker: &mut Looker| {
        // A file in use is not asked about all the time.
        std::thread::sleep(std::time::Duration::from_millis(30));
        looker.looks("stat", &place, "d/new");
        from_table(&place, || drop(looker.looks("stat", &place, "d/new"))) == 1
    };
    let open = |writer: &mut Looker, flags: &str| {
        let fd = writer.does(&format!("open {} {flags}", path.display()));
        format!("%{:o}", fd.parse::<u32>().expect("a descriptor"))
    };
    // Open, then only mapped.
    let fd = open(&mut writer, "%102");
    assert!(!is_from_table(&mut looker));
    assert_eq!(writer.does(&format!("ftruncate {fd} %12")), "None");
    assert_eq!(size(&mut looker).as_deref(), Some("10"));
    assert_eq!(writer.does(&format!("map {fd}")), "None");
    assert!(!is_from_table(&mut looker), "it is mapped");
    assert_eq!(writer.does("unmap"), "None");
    assert!(is_from_table(&mut looker));
    // Another process has it last.
    let fd = open(&mut writer, "%2");
    assert_eq!(writer.does(&format!("lend {fd}")), "None");
    assert!(!is_from_table(&mut looker), "a child has it");
    assert_eq!(writer.does("end"), "None");
    assert!(is_from_table(&mut looker));
    assert_eq!(size(&mut looker).as_deref(), Some("10"));
    // Whoever opens it next is noticed.
    let fd = open(&mut writer, "%2001");
    assert_eq!(writer.does(&format!("ftruncate {fd} %17")), "None");
    assert_eq!(size(&mut looker).as_deref(), Some("15"));
    assert_eq!(writer.does(&format!("ftruncate {fd} %20")), "None");
    assert_eq!(size(&mut looker).as_deref(), Some("16"));
    assert_eq!(writer.does(&format!("close {fd}")), "None");
    assert!(is_from_table(&mut looker));
    assert_eq!(size(&mut looker).as_deref(), Some("16"));
    // So it is for those who come by the kernel.
    fs::write(&path, "more").unwrap();
    assert_eq!(size(&mut looker).as_deref(), Some("4"));
}

#[test]
fn looking_at_a_file_leaves_leases_alone() {
    let place = place();
    let (mut looker, mut holder) = (Looker::new(&place, ROOT), Looker::new(&place, ROOT));
    let [leased, other] = ["d/f", "d/sub/f"].map(|path| place.path().join(path));
    let open = |holder: &mut Looker, path: &Path| {
        let fd = holder.does(&format!("open {} %2002", path.display()));
        format!("%{:o}", fd.parse::<u32>().expect("a descriptor"))
    };
    let fd = open(&mut holder, &leased);
    assert_eq!(holder.does(&format!("lease {fd}")), "1");
    let also = open(&mut holder, &other);
    assert_eq!(holder.does(&format!("close {also}")), "None");
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(11));
        looker.looks("stat", &place, "d/f");
        looker.looks("stat", &place, "d/sub/f");
    }
    assert_eq!(holder.does(&format!("leased {fd}")), "1");
}

#[test]
fn what_others_change_in_the_source_is_seen_when_its_time_is_over() {
    let options = Options { arguments: &["--cache=auto"], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, fill);
    let mut looker = Looker::new(&place, ROOT);
    let hits = from_table(&place, || drop(looker.learns("stat", &place, "d/absent")));
    assert!(hits > 0, "it is in the table for a second");
    fs::write(place.source().join("d/absent"), "").unwrap();
    eventually("the new name is seen", || looker.looks("stat", &place, "d/absent") != "ENOENT");
}

#[test]
fn a_table_without_lifetimes_or_size_is_none() {
    for arguments in [["--cache=never", "-o", "rw"], ["--cache=always", "-o", "table=0"]] {
        let options = Options { arguments: &arguments, ..Options::default() };
        let place = Place::new(Road::Bypass, &options, fill);
        let mut looker = Looker::new(&place, ROOT);
        assert_eq!(from_table(&place, || drop(looker.learns("stat", &place, "d/f"))), 0, "{arguments:?}");
    }
}

#[test]
fn a_small_table_forgets_and_stays_right() {
    let options = Options { arguments: &["--cache=always", "-o", "table=1M"], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, |root| {
        fill(root);
        for number in 0..20_000 {
            fs::write(root.join(format!("e/{number}")), vec![0; number % 7]).unwrap();
        }
    });
    let mut looker = Looker::new(&place, ROOT);
    for round in 0..2 {
        for number in (0..20_000).step_by(3) {
            let size = looker.looks("stat", &place, &format!("e/{number}"));
            assert_eq!(
                size.split(' ').nth(3).unwrap(),
                (number % 7).to_string(),
                "{number} in round {round}"
            );
        }
    }
    assert_eq!(looker.learns("stat", &place, "e/absent"), "ENOENT");
    // What had to make room is there again once it was asked for, be it a file or that there is none.
    let absent =
        |looker: &mut Looker, number: u32| looker.looks("stat", &place, &format!("e/absent{number}"));
    for number in 0..20_000 {
        assert_eq!(absent(&mut looker, number), "ENOENT");
    }
    let again = (0..200).filter(|number| {
        absent(&mut looker, *number);
        from_table(&place, || drop(absent(&mut looker, *number))) == 1
    });
    assert!(again.count() > 190);
}

#[test]
fn a_listing_with_attributes_knows_those_of_files_that_were_written_before() {
    const DIRECTORIES: u64 = 20;
    const FILES: u64 = 25;
    let place = place();
    let write = r"
import os, sys
for directory in range(int(sys.argv[2])):
    os.mkdir(f'{sys.argv[1]}/{directory}')
    for number in range(int(sys.argv[3])):
        with open(f'{sys.argv[1]}/{directory}/{number}', 'w') as file: file.write('x' * 6000)";
    let mut command = place.command("/usr/bin/python3");
    command.args(["-c", write]).arg(place.path().join("e")).args([DIRECTORIES, FILES].map(|n| n.to_string()));
    assert!(command.status().unwrap().success());
    let before = place.mount().account();
    let mut command = place.command("/usr/bin/find");
    let output = command.arg(place.path().join("e")).args(["-type", "f", "-size", "+5k"]).output().unwrap();
    let found = output.stdout.iter().filter(|byte| **byte == b'\n').count() as u64;
    assert_eq!(found, DIRECTORIES * FILES);
    // That the attributes are wanted shows in the first directories.
    let calls = place.mount().account().since(&before);
    let asked = calls.answered["stat"] - calls.from_table["stat"];
    assert!(asked < found / 4, "{calls:?}");
}

/// Makes, renames and removes files below `d` while another program lists everything below `e`, and looks after each step.
const CHANGE_WHILE_LISTED: &str = r"
import os, subprocess, sys
top = sys.argv[1]
find = subprocess.Popen(['find', f'{top}/e', '-size', '+9'], stdout=subprocess.DEVNULL)
def is_there(path):
    try:
        os.stat(path)
        return True
    except FileNotFoundError:
        return False
rounds = 0
while find.poll() is None:
    one, two = f'{top}/d/one{rounds % 7}', f'{top}/d/two{rounds % 5}'
    seen = [is_there(one)]
    os.close(os.open(one, os.O_CREAT | os.O_WRONLY))
    seen += [is_there(one), is_there(two)]
    os.rename(one, two)
    seen += [is_there(one), is_there(two)]
    os.unlink(two)
    seen += [is_there(two)]
    assert seen == [False, True, False, False, True, False], (rounds, seen)
    rounds += 1
assert find.returncode == 0 and rounds > 50, rounds";

#[test]
fn changes_are_seen_at_once_while_the_table_grows() {
    const FILES: u64 = 15_000;
    let place = Place::new(Road::Bypass, &ALWAYS, |root| {
        fill(root);
        for number in 0..FILES {
            fs::write(root.join(format!("e/{number}")), "").unwrap();
        }
    });
    let mut command = place.command("/usr/bin/python3");
    command.args(["-c", CHANGE_WHILE_LISTED]).arg(place.path());
    assert!(command.status().unwrap().success());
    // What was there before it grew is there still, and a table that has not grown has no room for a quarter of them.
    let mut command = place.command("/usr/bin/find");
    command.arg(place.path().join("e")).args(["-newermt", "2100-01-01"]);
    let before = place.mount().account();
    assert!(command.status().unwrap().success());
    let calls = place.mount().account().since(&before);
    assert!(calls.from_table["stat"] > FILES * 9 / 10, "{calls:?}");
}

#[test]
fn nobody_believes_the_table_of_a_daemon_that_is_gone() {
    let place = place();
    let mut looker = Looker::new(&place, ROOT);
    let before = looker.learns("stat", &place, "d/f");
    assert!(before.starts_with("100"), "{before}");
    place.mount().signal(Signal::KILL);
    assert!(place.mount().ended(PATIENCE));
    assert_eq!(looker.looks("stat", &place, "d/f"), "ENOTCONN");
}

#[test]
fn a_forked_child_looks_up_by_itself() {
    let place = place();
    let script = r"
import os, sys
path = sys.argv[1]
for _ in range(4): os.stat(path)
if os.fork() == 0:
    sizes = {os.stat(path).st_size for _ in range(10)}
    open(sys.argv[2], 'w').close()
    os._exit(0 if sizes == {4} and os.access(sys.argv[2], os.F_OK) else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))";
    let mut command = place.command("/usr/bin/python3");
    let paths = ["d/f", "d/new"].map(|path| place.path().join(path));
    command.args(["-c", script]).args(paths);
    let hits = from_table(&place, || assert!(command.status().unwrap().success()));
    assert!(hits >= 10, "{hits}");
}

/// Directories with files, for programs that walk.
fn tree() -> Place {
    Place::new(Road::Bypass, &ALWAYS, |root| {
        fill(root);
        for directory in 0..40 {
            let directory = root.join(format!("e/{directory:02}"));
            fs::create_dir(&directory).unwrap();
            for file in 0..25 {
                fs::write(directory.join(format!("file{file}")), vec![0; file]).unwrap();
            }
        }
    })
}

/// Lists everything below `e` and asks for all attributes.
const WALK: &str = r"
import os, sys
count = size = 0
for top, directories, files in os.walk(sys.argv[1]):
    directories.sort()
    for name in files:
        size += os.lstat(os.path.join(top, name)).st_size
        count += 1
print(count, size)";

fn walk(place: &Place) {
    let mut command = place.command("/usr/bin/python3");
    let output = command.args(["-c", WALK]).arg(place.path().join("e")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "1000 12000");
}

#[test]
fn a_program_that_asks_for_attributes_of_what_it_lists_gets_them_with_the_listing() {
    let place = tree();
    let before = place.mount().account();
    walk(&place);
    let calls = place.mount().account().since(&before);
    let (all, looked_up) = (calls.answered["stat"], calls.from_table["stat"]);
    assert!(all - looked_up < 200, "{looked_up} of {all} without a round trip");
}

#[test]
fn listings_tell_those_who_ask_which_files_have_no_extended_attributes() {
    let place = tree();
    let before = place.mount().account();
    let mut command = place.command("/usr/bin/ls");
    let output = command.arg("-lR").arg(place.path().join("e")).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains("file")).count(),
        1000
    );
    let calls = place.mount().account().since(&before);
    let (all, looked_up) = (calls.answered["getxattr"], calls.from_table["getxattr"]);
    assert!(all >= 2000 && all - looked_up < 200, "{looked_up} of {all} without a round trip");
}

#[test]
fn what_a_listing_with_attributes_did_not_show_does_not_exist_until_it_is_made() {
    for road in [Road::Kernel, Road::Bypass] {
        let place = tree();
        walk(&place);
        let mut looker = Looker::new(&place, ROOT);
        looker.looks("stat", &place, ".");
        for name in ["absent", "b"] {
            let path = format!("e/30/{name}");
            let hits = from_table(&place, || assert_eq!(looker.looks("lstat", &place, &path), "ENOENT"));
            assert_eq!(hits, 1, "{path} was never looked up");
            let made = place.path().join(&path);
            match road {
                Road::Bypass => assert_eq!(looker.does(&format!("mkdir {}", made.display())), "None"),
                _ => fs::create_dir(&made).unwrap(),
            }
            assert!(looker.looks("lstat", &place, &path).starts_with('4'), "{path} on the {road}");
            walk_again(&place);
        }
        // What leaves the table is not absent.
        let moved = |name: &str| place.path().join("e").join(name);
        fs::rename(moved("31/file7"), moved("32/moved")).unwrap();
        assert!(looker.looks("lstat", &place, "e/32/moved").starts_with("100"));
        assert_eq!(looker.looks("lstat", &place, "e/31/file7"), "ENOENT");
        assert!(looker.looks("lstat", &place, "e/31/file8").starts_with("100"));
    }
}

fn walk_again(place: &Place) {
    let mut command = place.command("/usr/bin/python3");
    assert!(command.args(["-c", WALK]).arg(place.path().join("e")).output().unwrap().status.success());
}
