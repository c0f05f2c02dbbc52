//! The passthrough file system on real mounts, through the kernel: what programs see must be what they would see
//! on the source. Needs root, /dev/fuse and setpriv(1); without them the tests fail, saying so.
//!
//! The daemon runs in a process of its own (this binary again), as it does in life: its umask, its limit of open
//! files and its threads' identities are not those of the test.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use finesse::passthrough::{CachePolicy, Options, PassthroughFs};
use finesse::{Config, MountOption, SessionACL};
use rustix::fs::{CWD, Mode, RenameFlags, renameat_with};

/// How a mount under test is made.
#[derive(Clone, Copy, Debug)]
struct Setup {
    kernel_checked: bool,
    kernel_passthrough: bool,
    file_handles: bool,
    cache: &'static str,
    open_files: u64,
}

const USUAL: Setup = Setup {
    kernel_checked: true,
    kernel_passthrough: true,
    file_handles: true,
    cache: "auto",
    open_files: 1000,
};

const SETUPS: [Setup; 4] = [
    USUAL,
    Setup { kernel_passthrough: false, ..USUAL },
    Setup { file_handles: false, cache: "never", ..USUAL },
    Setup { kernel_checked: false, kernel_passthrough: false, cache: "never", ..USUAL },
];

/// A source, a daemon that mirrors it, and the mount.
struct Mount {
    daemon: Child,
    base: tempfile::TempDir,
}

impl Mount {
    fn new(place: &str, setup: Setup) -> Self {
        let base = tempfile::Builder::new().prefix("finesse-passmount-").tempdir_in(place).unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["source", "mount", "native"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        let mut daemon = this_binary("daemon_process")
            .env("PASS_BASE", base.path())
            .env(
                "PASS_SETUP",
                format!(
                    "{} {} {} {} {}",
                    setup.kernel_checked,
                    setup.kernel_passthrough,
                    setup.file_handles,
                    setup.cache,
                    setup.open_files
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = BufReader::new(daemon.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .any(|line| line.ends_with("MOUNTED"));
        assert!(ready, "the daemon did not mount: these tests need root and /dev/fuse");
        Self { daemon, base }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.base.path().join("mount").join(name)
    }

    fn source(&self, name: &str) -> PathBuf {
        self.base.path().join("source").join(name)
    }

    fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.id())).unwrap().count()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(self.daemon.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.daemon.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A mount that is still in use, because a test failed on the way.
        let _ = Command::new("umount").arg("-l").arg(self.base.path().join("mount")).status();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// This test binary again, to run one of the helper processes below.
fn this_binary(helper: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", helper, "--ignored", "--nocapture", "--test-threads=1"]);
    command
}

#[test]
#[ignore = "not a test: the daemon of the others"]
fn daemon_process() {
    let (Some(base), Ok(setup)) = (std::env::var_os("PASS_BASE"), std::env::var("PASS_SETUP")) else {
        return;
    };
    let base = PathBuf::from(base);
    let words: Vec<&str> = setup.split(' ').collect();
    let [checked, passthrough, handles, cache, open_files] = words[..] else { panic!("{setup}") };
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = open_files.parse().ok();
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    rustix::process::umask(Mode::empty());

    let mut options = Options::default();
    options.kernel_checked = checked == "true";
    options.kernel_passthrough = passthrough == "true";
    options.file_handles = handles == "true";
    options.cache = match cache {
        "never" => CachePolicy::Never,
        "always" => CachePolicy::Always,
        _ => CachePolicy::Auto,
    };
    let file_system = PassthroughFs::new(&base.join("source"), options).unwrap();
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    config.mount_options = vec![MountOption::FSName("finesse-passthrough-test".into()), MountOption::Suid];
    if checked == "true" {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    let session = finesse::spawn_mount(file_system, base.join("mount"), &config).unwrap();
    println!("\nMOUNTED");
    io::stdout().flush().unwrap();
    let _ = io::stdin().read(&mut [0]);
    drop(session);
    std::process::exit(0);
}

/// Runs a shell script as another user.
fn as_user(uid: u32, groups: &str, script: &str) -> (bool, String) {
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={groups}") };
    let output = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}"), groups])
        .args(["sh", "-c", script])
        .output()
        .expect("these tests need setpriv(1)");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.trim().to_owned())
}

type Outcome = Result<String, i32>;

fn told<T: ToString>(result: io::Result<T>) -> Outcome {
    result.map(|value| value.to_string()).map_err(|error| error.raw_os_error().unwrap_or(-1))
}

fn done(result: io::Result<()>) -> Outcome {
    told(result.map(|()| "done"))
}

fn move_with(base: &Path, from: &str, to: &str, flags: RenameFlags) -> Outcome {
    done(renameat_with(CWD, base.join(from), CWD, base.join(to), flags).map_err(Into::into))
}

fn permissions(path: PathBuf) -> Outcome {
    told(fs::symlink_metadata(path).map(|found| format!("{:o} {}", found.mode(), found.nlink())))
}

/// An operation's name, and what it does below a directory.
type Operation = (&'static str, fn(&Path) -> Outcome);

/// The operations, in an order that matters.
fn operations() -> Vec<Operation> {
    vec![
        ("mkdir", |base| done(fs::create_dir(base.join("d")))),
        ("mkdir again", |base| done(fs::create_dir(base.join("d")))),
        ("mkdir deep", |base| done(fs::create_dir_all(base.join("d/e/f")))),
        ("mkdir nowhere", |base| done(fs::create_dir(base.join("x/y")))),
        ("write", |base| done(fs::write(base.join("d/file"), b"0123456789"))),
        ("read", |base| told(fs::read_to_string(base.join("d/file")))),
        ("read dir", |base| told(fs::read_to_string(base.join("d")))),
        ("read none", |base| told(fs::read_to_string(base.join("none")))),
        ("file as dir", |base| told(fs::read_to_string(base.join("d/file/x")))),
        ("long name", |base| done(fs::write(base.join("n".repeat(255)), b""))),
        ("too long name", |base| done(fs::write(base.join("n".repeat(256)), b""))),
        ("create new", |base| told(File::create_new(base.join("d/file")).map(|_| ""))),
        ("append", |base| {
            let mut file = OpenOptions::new().append(true).open(base.join("d/file")).unwrap();
            file.write_all(b"abc").unwrap();
            told(fs::read_to_string(base.join("d/file")))
        }),
        ("truncate on open", |base| {
            File::create(base.join("d/short")).unwrap().write_all(b"long contents").unwrap();
            File::create(base.join("d/short")).unwrap().write_all(b"s").unwrap();
            told(fs::read_to_string(base.join("d/short")))
        }),
        ("set_len", |base| {
            let file = OpenOptions::new().write(true).open(base.join("d/short")).unwrap();
            file.set_len(5000).unwrap();
            file.set_len(3).unwrap();
            told(file.metadata().map(|found| found.len()))
        }),
        ("truncate", |base| {
            done(
                rustix::fs::open(base.join("d/short"), rustix::fs::OFlags::RDONLY, Mode::empty())
                    .and_then(|file| rustix::fs::ftruncate(file, 1))
                    .map_err(Into::into),
            )
        }),
        ("chmod", |base| {
            fs::set_permissions(base.join("d/file"), fs::Permissions::from_mode(0o6751)).unwrap();
            permissions(base.join("d/file"))
        }),
        ("chown keeps nothing set-id", |base| {
            chown(base.join("d/file"), Some(4001), Some(4002)).unwrap();
            told(fs::metadata(base.join("d/file")).map(|f| format!("{:o} {} {}", f.mode(), f.uid(), f.gid())))
        }),
        ("utimes", |base| {
            let file = OpenOptions::new().write(true).open(base.join("d/file")).unwrap();
            let time = std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
            file.set_modified(time).unwrap();
            told(file.metadata().map(|found| format!("{} {}", found.mtime(), found.mtime_nsec())))
        }),
        ("hard link", |base| {
            fs::hard_link(base.join("d/file"), base.join("hard")).unwrap();
            permissions(base.join("hard"))
        }),
        ("hard link to dir", |base| done(fs::hard_link(base.join("d"), base.join("hd")))),
        ("hard link there", |base| done(fs::hard_link(base.join("d/file"), base.join("hard")))),
        ("symlink", |base| {
            symlink("d/file", base.join("sym")).unwrap();
            told(fs::read_link(base.join("sym")).map(|target| target.display().to_string()))
        }),
        ("through symlink", |base| told(fs::read_to_string(base.join("sym")))),
        ("lchown", |base| {
            std::os::unix::fs::lchown(base.join("sym"), Some(4003), None).unwrap();
            told(fs::symlink_metadata(base.join("sym")).map(|found| found.uid()))
        }),
        ("symlink loop", |base| {
            symlink("loop", base.join("loop")).unwrap();
            told(fs::read_to_string(base.join("loop")))
        }),
        ("fifo", |base| {
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(CWD, base.join("fifo"), kind, Mode::from_raw_mode(0o640), 0).unwrap();
            told(fs::metadata(base.join("fifo")).map(|found| found.file_type().is_fifo()))
        }),
        ("device", |base| {
            let kind = rustix::fs::FileType::CharacterDevice;
            let device = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, base.join("null"), kind, Mode::from_raw_mode(0o666), device).unwrap();
            told(fs::metadata(base.join("null")).map(|found| found.rdev()))
        }),
        ("unlink dir", |base| done(fs::remove_file(base.join("d")))),
        ("rmdir full", |base| done(fs::remove_dir(base.join("d")))),
        ("rmdir file", |base| done(fs::remove_dir(base.join("d/file")))),
        ("rename onto full dir", |base| {
            fs::create_dir(base.join("r")).unwrap();
            done(fs::rename(base.join("r"), base.join("d")))
        }),
        ("rename file onto dir", |base| done(fs::rename(base.join("hard"), base.join("r")))),
        ("rename into itself", |base| done(fs::rename(base.join("d"), base.join("d/e/f/g")))),
        ("rename noreplace", |base| move_with(base, "hard", "sym", RenameFlags::NOREPLACE)),
        ("rename exchange", |base| {
            move_with(base, "hard", "r", RenameFlags::EXCHANGE).unwrap();
            permissions(base.join("r"))
        }),
        ("exchange with none", |base| move_with(base, "r", "none", RenameFlags::EXCHANGE)),
        ("whiteout", |base| {
            fs::write(base.join("w"), b"").unwrap();
            move_with(base, "w", "w2", RenameFlags::WHITEOUT)?;
            told(fs::symlink_metadata(base.join("w")).map(|f| format!("{} {:o}", f.rdev(), f.mode())))
        }),
        ("rename over", |base| {
            fs::rename(base.join("r"), base.join("d/file")).unwrap();
            told(fs::read_to_string(base.join("d/file")))
        }),
        ("rename dir", |base| {
            fs::rename(base.join("d"), base.join("moved")).unwrap();
            told(fs::read_to_string(base.join("moved/file")))
        }),
        ("sparse", |base| {
            let file = File::create_new(base.join("sparse")).unwrap();
            file.write_all_at(b"x", 1 << 20).unwrap();
            let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap();
            let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
            let beyond = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 30)).unwrap_err();
            let blocks = file.metadata().unwrap().blocks();
            Ok(format!("{hole} {data} {beyond} {blocks}"))
        }),
        ("fallocate", |base| {
            let file = OpenOptions::new().write(true).open(base.join("sparse")).unwrap();
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            let punch = rustix::fs::FallocateFlags::PUNCH_HOLE;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 2 << 20).unwrap();
            rustix::fs::fallocate(&file, keep | punch, 0, 1 << 20).unwrap();
            told(file.metadata().map(|found| format!("{} {}", found.len(), found.blocks())))
        }),
        ("copy_file_range", |base| {
            fs::write(base.join("from"), b"0123456789").unwrap();
            let copied = fs::copy(base.join("from"), base.join("to")).unwrap();
            Ok(format!("{copied} {}", fs::read_to_string(base.join("to")).unwrap()))
        }),
        ("user attribute", |base| {
            rustix::fs::setxattr(base.join("from"), "user.a", b"value", rustix::fs::XattrFlags::CREATE)
                .map_err(|errno| errno.raw_os_error())?;
            let mut value = [0; 100];
            let size = rustix::fs::getxattr(base.join("from"), "user.a", &mut value).unwrap();
            let list = rustix::fs::listxattr(base.join("from"), &mut [0; 100]).unwrap();
            Ok(format!("{} {list}", String::from_utf8_lossy(&value[..size])))
        }),
        ("attribute of symlink", |base| {
            let flags = rustix::fs::XattrFlags::empty();
            done(rustix::fs::lsetxattr(base.join("sym"), "user.a", b"v", flags).map_err(Into::into))
        }),
        ("no attribute", |base| {
            let mut value = [0; 100];
            told(rustix::fs::getxattr(base.join("from"), "user.none", &mut value).map_err(io::Error::from))
        }),
        ("deleted but open", |base| {
            let mut file =
                File::options().read(true).write(true).create_new(true).open(base.join("gone")).unwrap();
            file.write_all(b"still here").unwrap();
            fs::remove_file(base.join("gone")).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            file.set_len(3).unwrap();
            let found = file.metadata().unwrap();
            Ok(format!("{text} {} {} {:o}", found.nlink(), found.len(), found.mode()))
        }),
        ("removed cwd", |base| {
            fs::create_dir(base.join("cwd")).unwrap();
            let dir = File::open(base.join("cwd")).unwrap();
            fs::remove_dir(base.join("cwd")).unwrap();
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
            let made = rustix::fs::openat(&dir, "f", flags, Mode::from_raw_mode(0o600));
            told(made.map(|_| "").map_err(io::Error::from))
        }),
        ("O_DIRECT", |base| {
            const SIZE: usize = 8192;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .custom_flags(libc::O_DIRECT)
                .open(base.join("direct"));
            let file = match file {
                Ok(file) => file,
                Err(error) => return told(Err::<&str, _>(error)),
            };
            let mut buffer = vec![7_u8; SIZE + 4096];
            let aligned = buffer.as_ptr().align_offset(4096);
            file.write_all_at(&buffer[aligned..aligned + SIZE], 0).unwrap();
            buffer.fill(0);
            let count = file.read_at(&mut buffer[aligned..aligned + SIZE], 0).unwrap();
            Ok(format!("{count} {}", buffer[aligned..aligned + SIZE].iter().all(|byte| *byte == 7)))
        }),
        ("statfs", |base| {
            let found = rustix::fs::statvfs(base).unwrap();
            Ok(format!("{} {} {}", found.f_bsize, found.f_frsize, found.f_namemax))
        }),
        ("list", |base| {
            let names: BTreeSet<_> = fs::read_dir(base)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            Ok(format!("{names:?}"))
        }),
        ("remove all", |base| {
            fs::remove_dir_all(base.join("moved")).unwrap();
            done(fs::metadata(base.join("moved")).map(drop))
        }),
    ]
}

#[test]
fn every_operation_ends_as_it_does_on_the_source() {
    if !finesse_tests::needs::root("every_operation_ends_as_it_does_on_the_source") {
        return;
    }
    for place in ["/dev/shm", "/tmp"] {
        for setup in SETUPS {
            let mount = Mount::new(place, setup);
            let native = mount.base.path().join("native");
            for (name, operation) in operations() {
                let expected = operation(&native);
                let got = operation(&mount.at(""));
                assert_eq!(got, expected, "{name} in {place}, {setup:?}");
            }
            assert!(mount.open_descriptors() < 300);
        }
    }
}

#[test]
fn a_hundred_thousand_files_under_a_limit_of_a_thousand_descriptors() {
    if !finesse_tests::needs::root("a_hundred_thousand_files_under_a_limit_of_a_thousand_descriptors") {
        return;
    }
    const DIRS: usize = 1000;
    const FILES: usize = 100;
    for file_handles in [true, false] {
        let mount = Mount::new("/dev/shm", Setup { file_handles, cache: "always", ..USUAL });
        for dir in 0..DIRS {
            let path = mount.source(&format!("d{dir}"));
            fs::create_dir(&path).unwrap();
            for file in 0..FILES {
                File::create_new(path.join(format!("f{file}"))).unwrap();
            }
        }
        let mut seen = 0;
        for dir in fs::read_dir(mount.at("")).unwrap() {
            for file in fs::read_dir(dir.unwrap().path()).unwrap() {
                let found = file.unwrap().metadata().unwrap();
                assert!(found.is_file());
                seen += 1;
            }
        }
        assert_eq!(seen, DIRS * FILES);
        let open = mount.open_descriptors();
        assert!(open < 400, "{open} open descriptors");
        for dir in (0..DIRS).step_by(10) {
            fs::write(mount.at(&format!("d{dir}/f7")), b"written").unwrap();
        }
        fs::remove_dir_all(mount.at("d0")).unwrap();
        assert!(!mount.source("d0").exists());
        assert_eq!(fs::read(mount.source("d10/f7")).unwrap(), b"written");
    }
}

#[test]
fn other_users_may_do_what_the_source_lets_them() {
    if !finesse_tests::needs::root("other_users_may_do_what_the_source_lets_them") {
        return;
    }
    for setup in SETUPS {
        let mount = Mount::new("/tmp", setup);
        let top = mount.at("");
        fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(mount.at("team")).unwrap();
        chown(mount.at("team"), Some(0), Some(4100)).unwrap();
        fs::set_permissions(mount.at("team"), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::create_dir(mount.at("open")).unwrap();
        fs::set_permissions(mount.at("open"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(mount.at("secret"), b"secret").unwrap();
        fs::set_permissions(mount.at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        let run = |uid, groups, script: &str| {
            as_user(uid, groups, &format!("umask 022; cd {} && {script}", top.display()))
        };
        let refused = |uid, groups, script: &str| {
            let (ok, text) = run(uid, groups, script);
            assert!(!ok, "{script} as {uid}, {setup:?}");
            let denied = text.contains("Permission denied") || text.contains("not permitted");
            assert!(denied, "{script} as {uid}, {setup:?}: {text}");
        };
        let allowed = |uid, groups, script: &str| {
            let (ok, text) = run(uid, groups, script);
            assert!(ok, "{script} as {uid}, {setup:?}: {text}");
            text
        };
        refused(4001, "", "cat secret");
        refused(4001, "", "echo > new");
        refused(4001, "", "mkdir team/x");
        let made =
            allowed(4001, "4100", "mkdir team/x && echo hi > team/f && stat -c '%u %g %a' team/x team/f");
        assert_eq!(made, "4001 4100 2755\n4001 4100 644", "{setup:?}");
        allowed(4001, "", "echo one > open/one && ln -s one open/sym && mkfifo open/fifo");
        refused(4002, "", "rm -f open/one");
        refused(4002, "", "mv open/one open/two");
        refused(4002, "", "chmod 777 open/one");
        refused(4002, "", "chown 4002 open/one");
        refused(4002, "", "touch -d 2001-01-01 open/one");
        refused(4001, "", "mknod open/dev c 1 3");
        let owned = allowed(4001, "", "chmod 640 open/one && touch open/one && stat -c '%u %g %a' open/one");
        assert_eq!(owned, "4001 4001 640");
        assert_eq!(allowed(4001, "4100", "chgrp 4100 open/one && stat -c %g open/one"), "4100");
        allowed(4002, "4100", "cat open/one");
        refused(4003, "", "cat open/one");
        allowed(4001, "", "rm open/one");
        assert_eq!(fs::metadata(mount.source("team/f")).unwrap().uid(), 4001);

        // A program that may be run but not read.
        fs::copy("/bin/true", mount.source("run")).unwrap();
        fs::set_permissions(mount.source("run"), fs::Permissions::from_mode(0o711)).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        allowed(4001, "", "./run");
        refused(4001, "", "cat run");
    }
}

#[test]
fn a_write_by_somebody_else_takes_the_set_user_id_bit_away() {
    if !finesse_tests::needs::root("a_write_by_somebody_else_takes_the_set_user_id_bit_away") {
        return;
    }
    for setup in SETUPS {
        let mount = Mount::new("/tmp", setup);
        let script = |name: &str| format!("echo x >> {}", mount.at(name).display());
        for (name, write) in [("append", ">>"), ("truncate", ">")] {
            fs::write(mount.at(name), b"contents").unwrap();
            fs::set_permissions(mount.at(name), fs::Permissions::from_mode(0o6777)).unwrap();
            let (ok, text) = as_user(4001, "", &script(name).replace(">>", write));
            assert!(ok, "{name}, {setup:?}: {text}");
            let mode = fs::metadata(mount.source(name)).unwrap().mode() & 0o7777;
            assert_eq!(mode, 0o777, "{name}, {setup:?}");
        }
    }
}

#[test]
fn acls_decide_and_are_inherited() {
    if !finesse_tests::needs::root("acls_decide_and_are_inherited") {
        return;
    }
    // acl(5): user rwx, user 4001 rw-, group ---, mask rw-, other ---.
    let acl = |entries: &[(u16, u16, u32)]| {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    let none = u32::MAX;
    let named = acl(&[(0x01, 7, none), (0x02, 6, 4001), (0x04, 0, none), (0x10, 6, none), (0x20, 0, none)]);
    let inherited = acl(&[(0x01, 7, none), (0x04, 7, none), (0x20, 5, none)]);
    let flags = rustix::fs::XattrFlags::empty();
    let mount = Mount::new("/tmp", USUAL);
    fs::set_permissions(mount.at(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(mount.at("f"), b"for 4001").unwrap();
    rustix::fs::setxattr(mount.at("f"), "system.posix_acl_access", &named, flags).unwrap();
    let read = |uid| as_user(uid, "", &format!("cat {}", mount.at("f").display()));
    assert_eq!(read(4001), (true, "for 4001".to_owned()));
    assert!(!read(4002).0);
    let mut value = [0; 200];
    let size = rustix::fs::getxattr(mount.source("f"), "system.posix_acl_access", &mut value).unwrap();
    assert_eq!(value[..size], named);

    fs::create_dir(mount.at("d")).unwrap();
    rustix::fs::setxattr(mount.at("d"), "system.posix_acl_default", &inherited, flags).unwrap();
    let script = |dir: &str| {
        format!("umask 077; cd {} && mkdir {dir}/made && stat -c %a {dir}/made", mount.at("").display())
    };
    assert_eq!(as_user(0, "", &script("d")), (true, "775".to_owned()));
    assert_eq!(as_user(0, "", &script(".")), (true, "700".to_owned()));
}

/// What a second process is to do with a lock; see [`locker`].
fn locker(kind: &str, path: &Path) -> Command {
    let mut command = this_binary("lock_process");
    command.env("PASS_LOCK", kind).env("PASS_FILE", path).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[test]
#[ignore = "not a test: a second process that locks a file"]
fn lock_process() {
    use rustix::fs::{FlockOperation, fcntl_lock, flock};
    let (Ok(kind), Some(path)) = (std::env::var("PASS_LOCK"), std::env::var_os("PASS_FILE")) else { return };
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let result = match &*kind {
        "posix" => fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
        "posix wait" => fcntl_lock(&file, FlockOperation::LockExclusive),
        "flock" => flock(&file, FlockOperation::NonBlockingLockExclusive),
        "flock wait" => flock(&file, FlockOperation::LockExclusive),
        other => panic!("{other}"),
    };
    println!("\nLOCK {}", result.map_or_else(|errno| errno.raw_os_error(), |()| 0));
    io::stdout().flush().unwrap();
    let _ = io::stdin().read(&mut [0]);
    // Before the test runner prints its summary, for which nobody waits.
    std::process::exit(0);
}

/// Starts a process that locks, and waits for what became of it: 0 or an errno.
fn try_lock(kind: &str, path: &Path) -> (Child, i32) {
    let mut child = locker(kind, path).spawn().unwrap();
    let outcome = outcome(&mut child);
    (child, outcome)
}

fn outcome(child: &mut Child) -> i32 {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("LOCK ").map(|errno| errno.parse().unwrap()))
        .expect("an outcome")
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn locks_exclude_on_the_mount_and_between_mount_and_source() {
    if !finesse_tests::needs::root("locks_exclude_on_the_mount_and_between_mount_and_source") {
        return;
    }
    for setup in [USUAL, SETUPS[1]] {
        let mount = Mount::new("/tmp", setup);
        fs::write(mount.at("f"), b"").unwrap();
        let (on_mount, on_source) = (mount.at("f"), mount.source("f"));
        for kind in ["posix", "flock"] {
            let other = if kind == "posix" { "flock" } else { "posix" };
            let (holder, outcome) = try_lock(kind, &on_mount);
            assert_eq!(outcome, 0, "{kind}");
            for place in [&on_mount, &on_source] {
                let (second, outcome) = try_lock(kind, place);
                assert_eq!(outcome, libc::EAGAIN, "{kind} on {}", place.display());
                end(second);
                let (second, outcome) = try_lock(other, place);
                assert_eq!(outcome, 0, "{other} beside {kind} on {}", place.display());
                end(second);
            }
            end(holder);
            // The kernel tells of the end of an flock, that is of an open file, a little later.
            let start = Instant::now();
            let holder = loop {
                let (holder, outcome) = try_lock(kind, &on_source);
                if outcome == 0 {
                    break holder;
                }
                end(holder);
                let waits = kind == "flock" && start.elapsed() < Duration::from_secs(10);
                assert!(waits, "{kind} was not released with its process: {outcome}");
            };
            let (second, outcome) = try_lock(kind, &on_mount);
            assert_eq!(outcome, libc::EAGAIN, "{kind} held on the source");
            end(second);
            end(holder);
        }
    }
}

#[test]
fn a_lock_of_an_open_file_ends_with_it_and_not_with_its_process_other_files() {
    if !finesse_tests::needs::root("a_lock_of_an_open_file_ends_with_it_and_not_with_its_process_other_files")
    {
        return;
    }
    let mount = Mount::new("/tmp", USUAL);
    fs::write(mount.at("f"), b"contents").unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
    let lock = |file: &File| {
        // SAFETY: all-zero is a valid `flock`.
        let mut range: libc::flock = unsafe { std::mem::zeroed() };
        range.l_type = libc::F_WRLCK as i16;
        // SAFETY: the command takes a pointer to a `flock`, which lives through the call.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error()) }
    };
    let (holder, other) = (open(), open());
    lock(&holder).unwrap();
    assert_eq!(lock(&other), Err(Some(libc::EAGAIN)));
    drop(open());
    assert_eq!(lock(&other), Err(Some(libc::EAGAIN)), "the lock is not the process's");
    drop(holder);
    // The kernel does not wait for the daemon when the last descriptor is closed.
    let deadline = Instant::now() + Duration::from_secs(20);
    while lock(&other).is_err() {
        assert!(Instant::now() < deadline, "the lock outlived its file");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_program_that_waits_for_a_lock_gets_it_or_can_be_killed() {
    if !finesse_tests::needs::root("a_program_that_waits_for_a_lock_gets_it_or_can_be_killed") {
        return;
    }
    let mount = Mount::new("/tmp", USUAL);
    fs::write(mount.at("f"), b"").unwrap();
    for kind in ["posix", "flock"] {
        let (holder, outcome_of_holder) = try_lock(kind, &mount.at("f"));
        assert_eq!(outcome_of_holder, 0);
        let mut waiting = locker(&format!("{kind} wait"), &mount.at("f")).spawn().unwrap();
        let mut doomed = locker(&format!("{kind} wait"), &mount.at("f")).spawn().unwrap();
        // Both are known to wait once the kernel has them inside the locking call.
        let number = if kind == "flock" { libc::SYS_flock } else { libc::SYS_fcntl };
        for child in [&waiting, &doomed] {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !is_inside(child.id(), number) {
                assert!(Instant::now() < deadline, "{kind}: never waited");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        doomed.kill().unwrap();
        doomed.wait().unwrap();
        assert!(waiting.try_wait().unwrap().is_none());
        end(holder);
        assert_eq!(outcome(&mut waiting), 0, "{kind}");
        end(waiting);
    }
}

/// Whether some thread of the process is inside the system call.
fn is_inside(pid: u32, number: i64) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.filter_map(Result::ok).any(|thread| {
        fs::read_to_string(thread.path().join("syscall"))
            .is_ok_and(|text| text.split(' ').next() == Some(&number.to_string()))
    })
}

#[test]
fn what_is_written_through_a_mapping_arrives() {
    if !finesse_tests::needs::root("what_is_written_through_a_mapping_arrives") {
        return;
    }
    for setup in SETUPS {
        let mount = Mount::new("/tmp", setup);
        fs::write(mount.at("f"), vec![b'a'; 8192]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(mount.at("f")).unwrap();
        // SAFETY: a fresh shared mapping of 8192 bytes of a file of that size that nobody truncates; it is
        // written to and unmapped once.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let fd = file.as_fd().as_raw_fd();
            let map = libc::mmap(std::ptr::null_mut(), 8192, protection, libc::MAP_SHARED, fd, 0);
            assert_ne!(map, libc::MAP_FAILED, "{setup:?}");
            assert_eq!(*map.cast::<u8>().add(4096), b'a');
            *map.cast::<u8>().add(4096) = b'b';
            assert_eq!(libc::msync(map, 8192, libc::MS_SYNC), 0);
            libc::munmap(map, 8192);
        }
        assert_eq!(fs::read(mount.source("f")).unwrap()[4096], b'b', "{setup:?}");
    }
}

#[test]
fn a_directory_can_be_emptied_while_it_is_read() {
    if !finesse_tests::needs::root("a_directory_can_be_emptied_while_it_is_read") {
        return;
    }
    for setup in SETUPS {
        let mount = Mount::new("/tmp", setup);
        for n in 0..3000 {
            fs::write(mount.source(&format!("file-{n}")), b"").unwrap();
        }
        let mut removed = 0;
        for entry in fs::read_dir(mount.at("")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
            removed += 1;
        }
        assert_eq!(removed, 3000, "{setup:?}");
        assert_eq!(fs::read_dir(mount.source("")).unwrap().count(), 0);
    }
}

#[test]
fn another_file_system_below_the_source_is_part_of_the_mount() {
    if !finesse_tests::needs::root("another_file_system_below_the_source_is_part_of_the_mount") {
        return;
    }
    let mount = Mount::new("/tmp", USUAL);
    fs::create_dir(mount.source("other")).unwrap();
    let below = mount.source("other");
    let made = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&below).status().unwrap();
    assert!(made.success(), "cannot mount a tmpfs");
    let result = std::panic::catch_unwind(|| {
        fs::create_dir_all(mount.at("other/a/b")).unwrap();
        fs::write(mount.at("other/a/b/f"), b"over there").unwrap();
        assert_eq!(fs::read(below.join("a/b/f")).unwrap(), b"over there");
        let across = fs::rename(mount.at("other/a"), mount.at("a")).unwrap_err();
        assert_eq!(across.raw_os_error(), Some(libc::EXDEV));
        let mut inodes = BTreeSet::new();
        for name in ["", "other", "other/a", "other/a/b", "other/a/b/f"] {
            assert!(inodes.insert(fs::metadata(mount.at(name)).unwrap().ino()), "{name}");
        }
        fs::remove_dir_all(mount.at("other/a")).unwrap();
    });
    let gone = Command::new("umount").arg("-l").arg(&below).status().unwrap();
    assert!(gone.success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
