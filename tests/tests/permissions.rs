//! Who may do what is the same on all roads: each user meets the same errno for each call, natively, through
//! the kernel and through the bypass.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use finesse_tests::build;
use finesse_tests::mount::{Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use rustix::fs::{XattrFlags, setxattr};

/// A user, as setpriv(1) makes one.
struct User {
    name: &'static str,
    setpriv: &'static [&'static str],
    /// Whether the daemon takes such a user as a client. Who has some of root's capabilities only stays on the
    /// kernel road: no file system could act as him.
    bypasses: bool,
}

const USERS: [User; 5] = [
    User { name: "root", setpriv: &["setpriv"], bypasses: true },
    User {
        name: "owner",
        setpriv: &["setpriv", "--reuid=1001", "--regid=1001", "--clear-groups"],
        bypasses: true,
    },
    User {
        name: "stranger",
        setpriv: &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        bypasses: true,
    },
    User {
        name: "member by a supplementary group only",
        setpriv: &["setpriv", "--reuid=1002", "--regid=1002", "--groups=1002,2000"],
        bypasses: true,
    },
    User {
        name: "root without capabilities",
        setpriv: &["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"],
        bypasses: false,
    },
];

const NAMED_USER: u32 = 65534;

/// A POSIX ACL as the kernel takes it (`struct posix_acl_xattr_header` and `_entry`, version 2): owner, one
/// named user, group, mask, others.
fn acl(owner: u16, named: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, owner, NOBODY),
        (0x02, named, NAMED_USER),
        (0x04, group, NOBODY),
        (0x10, mask, NOBODY),
        (0x20, others, NOBODY),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Directories by mode, each with the same files: the user 1001 and the group 2000 own everything.
fn fill(root: &Path) {
    fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    let own = |path: &Path, mode: u32| {
        chown(path, Some(1001), Some(2000)).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    let make = |name: &str| {
        let directory = root.join(name);
        fs::create_dir(&directory).unwrap();
        for mode in ["644", "640", "600", "060", "006", "000", "755", "444", "222", "4755"] {
            let file = directory.join(mode);
            fs::write(&file, "contents").unwrap();
            own(&file, u32::from_str_radix(mode, 8).unwrap());
        }
        fs::create_dir(directory.join("empty")).unwrap();
        own(&directory.join("empty"), 0o755);
        symlink("644", directory.join("link")).unwrap();
        // One file of another user's, for sticky directories.
        fs::write(directory.join("foreign"), "").unwrap();
        chown(directory.join("foreign"), Some(1002), Some(1002)).unwrap();
        directory
    };
    for mode in ["0755", "0770", "0700", "0750", "0711", "0733", "1777", "2775", "0555", "0077", "0707"] {
        own(&make(mode), u32::from_str_radix(mode, 8).unwrap());
    }
    for (name, access) in [
        ("acl-grants-user", acl(7, 7, 0, 7, 0)),
        ("acl-denies-user", acl(7, 0, 7, 7, 7)),
        ("acl-mask-limits-user", acl(7, 7, 7, 1, 1)),
    ] {
        let directory = make(name);
        own(&directory, 0o770);
        setxattr(&directory, "system.posix_acl_access", &access, XattrFlags::empty())
            .expect("the directory for temporary files supports ACLs");
    }
    let directory = make("acl-of-a-file");
    own(&directory, 0o755);
    setxattr(directory.join("600"), "system.posix_acl_access", &acl(6, 4, 0, 6, 0), XattrFlags::empty())
        .unwrap();
    let directory = make("acl-by-default");
    own(&directory, 0o777);
    setxattr(&directory, "system.posix_acl_default", &acl(7, 6, 5, 7, 0), XattrFlags::empty()).unwrap();
}

/// Tries everything in every directory and prints a line per call: the errno's name, or what was seen. What a
/// call changed is undone, so that the next user meets the same.
const ATTEMPTS: &str = r#"
import os, errno, stat
os.umask(0o027)
def attempt(name, call, undo=None):
    try:
        result = call()
        print(name, "ok" if result is None else result)
        if undo: undo()
    except OSError as e: print(name, errno.errorcode[e.errno])
def opened(path, flags, mode=0o666):
    fd = os.open(path, flags, mode)
    s = os.fstat(fd); os.close(fd)
    return f"{s.st_mode:o} {s.st_gid}"
def seen(path):
    s = os.lstat(path)
    return f"{s.st_mode:o} {s.st_uid} {s.st_gid} {s.st_nlink}"
for d in sorted(os.listdir(".")):
    a = lambda name, *rest: attempt(f"{d} {name}", *rest)
    j = lambda name: f"{d}/{name}"
    a("list", lambda: len(os.listdir(d)))
    a("chdir", lambda: os.chdir(d), lambda: os.chdir(".."))
    a("list names", lambda: sorted(x.name for x in os.scandir(d) if x.is_file())[:2])
    for f in ["644", "640", "600", "060", "006", "000", "755", "444", "222", "4755", "nothing", "empty", "link"]:
        p = j(f)
        a(f"stat {f}", lambda: seen(p))
        a(f"read {f}", lambda: opened(p, os.O_RDONLY))
        a(f"write {f}", lambda: opened(p, os.O_WRONLY))
        a(f"append {f}", lambda: opened(p, os.O_WRONLY | os.O_APPEND))
        for m in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK):
            a(f"access {m} {f}", lambda: os.access(p, m))
            a(f"eaccess {m} {f}", lambda: os.access(p, m, effective_ids=True))
    f = j("644")
    a("chmod", lambda: os.chmod(f, 0o644))
    a("chmod setgid", lambda: (os.chmod(f, 0o2745), seen(f))[1], lambda: os.chmod(f, 0o644))
    a("chown to itself", lambda: os.chown(f, 1001, 2000))
    a("chown group", lambda: os.chown(f, -1, 2000))
    a("chown own group", lambda: (os.chown(f, -1, os.getegid()), seen(f))[1], lambda: (os.chown(f, -1, 2000), os.chmod(f, 0o644)))
    a("chown away", lambda: os.chown(f, 5, -1), lambda: os.chown(f, 1001, -1))
    a("touch now", lambda: os.utime(f))
    a("touch then", lambda: os.utime(f, (5, 5)))
    a("truncate", lambda: os.truncate(j("755"), 8))
    a("truncate 222", lambda: os.truncate(j("222"), 8))
    a("readlink", lambda: os.readlink(j("link")))
    a("create", lambda: opened(j("c"), os.O_CREAT | os.O_EXCL | os.O_WRONLY), lambda: os.unlink(j("c")))
    a("create readonly", lambda: opened(j("c"), os.O_CREAT | os.O_RDWR, 0o400), lambda: os.unlink(j("c")))
    a("create existing", lambda: opened(j("600"), os.O_CREAT | os.O_RDWR))
    a("create exclusively", lambda: opened(j("600"), os.O_CREAT | os.O_EXCL | os.O_RDWR))
    a("mkdir", lambda: (os.mkdir(j("m"), 0o777), seen(j("m")))[1], lambda: os.rmdir(j("m")))
    a("mkdir existing", lambda: os.mkdir(j("empty")))
    a("mkfifo", lambda: (os.mkfifo(j("p"), 0o666), seen(j("p")))[1], lambda: os.unlink(j("p")))
    a("mknod", lambda: os.mknod(j("n"), stat.S_IFCHR | 0o600, os.makedev(1, 3)), lambda: os.unlink(j("n")))
    a("symlink", lambda: (os.symlink("x", j("s")), seen(j("s")))[1], lambda: os.unlink(j("s")))
    a("link", lambda: os.link(f, j("l")), lambda: os.unlink(j("l")))
    a("link 600", lambda: os.link(j("600"), j("l")), lambda: os.unlink(j("l")))
    a("rename", lambda: os.rename(f, j("r")), lambda: os.rename(j("r"), f))
    a("rename foreign", lambda: os.rename(j("foreign"), j("r")), lambda: os.rename(j("r"), j("foreign")))
    a("rename directory", lambda: os.rename(j("empty"), j("r")), lambda: os.rename(j("r"), j("empty")))
    a("rename out", lambda: os.rename(f, "1777/out"), lambda: os.rename("1777/out", f))
    a("unlink nothing", lambda: os.unlink(j("nothing")))
    a("unlink directory", lambda: os.unlink(j("empty")))
    a("rmdir file", lambda: os.rmdir(f))
    a("rmdir nothing", lambda: os.rmdir(j("nothing")))
    a("setxattr", lambda: os.setxattr(f, "user.k", b"v"), lambda: os.removexattr(f, "user.k"))
    a("setxattr 600", lambda: os.setxattr(j("600"), "user.k", b"v"), lambda: os.removexattr(j("600"), "user.k"))
    a("deep", lambda: os.stat(j("empty/../644/x")))
    a("through a file", lambda: os.stat(j("600/x")))
    a("dir_fd", lambda: (lambda fd: (os.stat("644", dir_fd=fd).st_size, os.close(fd))[0])(os.open(d, os.O_RDONLY)))
    a("O_PATH", lambda: (lambda fd: (os.stat("644", dir_fd=fd).st_size, os.close(fd))[0])(os.open(d, os.O_PATH)))
    # What is removed for good comes last, and each user removes what is his name's.
    a("remove foreign", lambda: os.unlink(j("foreign")), lambda: None)
"#;

/// Runs the attempts of a user and returns a line per call: what was tried, and its result.
fn attempts(place: &Place, finesse: &Path, user: &User) -> BTreeSet<String> {
    let output =
        place.command_as(finesse, user.setpriv, "/usr/bin/python3").args(["-c", ATTEMPTS]).output().unwrap();
    assert!(output.status.success(), "{} on the {}: {}", user.name, place.road(), said(&output));
    let lines: BTreeSet<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    assert!(lines.len() > 1000, "{} calls", lines.len());
    lines
}

#[test]
fn each_user_meets_the_same_verdicts_on_all_roads() {
    if !needs::root("each_user_meets_the_same_verdicts_on_all_roads") {
        return;
    }
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    let mut failures = Vec::new();
    for user in &USERS {
        // Fresh places for each user: what one of them could remove, the next one must find.
        let places = Place::on_all_roads(&Options::default(), fill);
        let [native, kernel, bypass] = places.each_ref().map(|place| attempts(place, &finesse, user));
        for (road, found) in [(Road::Kernel, kernel), (Road::Bypass, bypass)] {
            for line in native.symmetric_difference(&found) {
                let sign = if native.contains(line) { "native" } else { "here  " };
                failures.push(format!("{} on the {road}: {sign} {line}", user.name));
            }
        }
        let account = places[2].mount().account();
        let answered: u64 = account.answered.values().sum();
        assert_eq!(answered > 500, user.bypasses, "{}: {account:?}", user.name);
    }
    assert!(failures.is_empty(), "{} lines differ\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn an_owner_only_mount_refuses_others_on_both_roads() {
    if !needs::root("an_owner_only_mount_refuses_others_on_both_roads") {
        return;
    }
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    let options = Options { arguments: &["-o", "owner_only"], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, |root| fs::write(root.join("file"), "contents").unwrap());
    let file = place.path().join("file");
    let stranger = USERS[2].setpriv;
    for road in [Road::Kernel, Road::Bypass] {
        let mut command = Command::new(stranger[0]);
        command.args(&stranger[1..]).current_dir("/");
        if road == Road::Bypass {
            command.arg(&finesse).args(["run", "--"]);
        }
        let output = command.arg("stat").arg(&file).output().unwrap();
        assert!(!output.status.success(), "{road}");
        assert!(text(&output.stderr).contains("Permission denied"), "{road}: {}", said(&output));
    }
    assert!(place.bash("", "cat file").status.success(), "the owner may");
    // Not even with the socket's name, which the owner's programs pass on.
    let name = finesse_ipc::status::socket_of(place.path()).unwrap();
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new(stranger[0])
        .args(&stranger[1..])
        .args(["/usr/bin/python3", "-c", CONNECT, &name])
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(text(&output.stdout).trim(), "no descriptors");
}

/// Asks a daemon to attach, as the preload library does, and tells whether it sent descriptors.
const CONNECT: &str = r#"
import socket, sys, struct
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(10)
s.connect(b"\0" + bytes.fromhex(sys.argv[1]))
# Envelope, variant 0, the program's name.
s.send(b"FNSS" + struct.pack("<I", 1) + bytes([0, 4]) + b"evil")
data, ancillary, flags, address = s.recvmsg(256, 256)
print("descriptors" if ancillary else "no descriptors")
"#;

#[test]
fn what_a_user_creates_is_his_on_all_roads() {
    if !needs::root("what_a_user_creates_is_his_on_all_roads") {
        return;
    }
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    let script = "umask 022; mkdir -p d/e && echo x > d/f && ln -s f d/l && ln d/f d/h && mkfifo d/p && cp -r d d2 && \
                  install -m 4711 d/f d/g && (umask 077; echo y > d/private) && mktemp -p . file-XXXX >/dev/null && \
                  touch in-setgid/f && mkdir in-setgid/d && touch in-setgid/d/f";
    let mut expected = None;
    for place in Place::on_all_roads(&Options::default(), |root| {
        fs::set_permissions(root, PermissionsExt::from_mode(0o777)).unwrap();
        fs::create_dir(root.join("in-setgid")).unwrap();
        chown(root.join("in-setgid"), Some(0), Some(2000)).unwrap();
        fs::set_permissions(root.join("in-setgid"), PermissionsExt::from_mode(0o2777)).unwrap();
    }) {
        let mut outputs = Vec::new();
        for user in [1, 2, 3].map(|user| &USERS[user]) {
            let directory = format!("of-{}", user.setpriv[1].trim_start_matches("--reuid="));
            let script = format!(
                "mkdir {directory} && cd {directory} && ln -s ../in-setgid/ . && {script} && rm -rf in-setgid/*"
            );
            let output =
                place.command_as(&finesse, user.setpriv, "bash").args(["-c", &script]).output().unwrap();
            assert!(output.status.success(), "{} on the {}: {}", user.name, place.road(), said(&output));
            outputs.push(
                place
                    .bash(
                        &directory,
                        "find . -not -name 'file-*' -printf '%p %y %m %U %G %n\\n' | sort; ls | wc -l",
                    )
                    .stdout,
            );
        }
        match &expected {
            None => expected = Some(outputs),
            Some(expected) => {
                for (here, native) in outputs.iter().zip(expected) {
                    assert_eq!(text(here), text(native), "{}", place.road());
                }
            }
        }
    }
}

#[test]
fn a_read_only_mount_changes_nothing_on_either_road() {
    if !needs::root("a_read_only_mount_changes_nothing_on_either_road") {
        return;
    }
    let options = Options { arguments: &["-o", "ro"], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, |root| fs::write(root.join("file"), "contents").unwrap());
    let script = "touch new; echo x > file; echo x >> file; rm file; mv file x; mkdir d; ln -s a b; ln file c; chmod 600 file; \
                  truncate -s 0 file; rmdir nothing; cat file; test -w file; echo $?";
    let bypass = place.bash("", script);
    let kernel = Command::new("bash")
        .args(["-c", script])
        .env("LC_ALL", "C")
        .current_dir(place.path())
        .output()
        .unwrap();
    assert_eq!(place.neutral(&bypass.stderr), place.neutral(&kernel.stderr));
    assert_eq!(text(&bypass.stdout), text(&kernel.stdout));
    assert!(text(&bypass.stderr).lines().count() >= 10, "{}", text(&bypass.stderr));
    assert_eq!(fs::read(place.source().join("file")).unwrap(), b"contents");
    assert_eq!(fs::read_dir(place.source()).unwrap().count(), 1);
}
