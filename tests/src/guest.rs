//! A guest machine with another kernel: QEMU, emulated in software, that runs one program and ends.
//!
//! Its clock counts instructions (`-icount`), one a nanosecond, and jumps while the machine is idle: what is measured
//! there does not depend on how busy the host is, and no wait is too short because of it.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::mount::text;
use crate::road::CONNECT_AFTER;
use crate::{build, needs};

const QEMU: &str = "qemu-system-x86_64";
/// One program, linked statically, for what the first process needs.
const BUSYBOX: &str = "/bin/busybox";
/// Where the guest has the workspace's own programs.
const PROGRAMS: &str = "/finesse";
/// What the guest's first process says last.
const STATUS: &str = "finesse-guest: exit ";
/// Set in guests.
const INSIDE: &str = "FINESSE_GUEST";
/// Longest run of a guest, in real time.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Whether this process runs in a guest, whose kernel can do all that is asked of it.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the tests of the calling program, but for those of its module `guests`, in a guest with Debian's kernel of a series, where
/// they must pass and may skip nothing. `test` is what a message about a missing kernel calls them.
///
/// # Panics
/// They do not all pass.
pub fn all_pass(series: &str, test: &str, host_programs: &[&str]) {
    // No guest within a guest.
    if inside() {
        return;
    }
    let Some(kernel) = Kernel::of_series(series, test) else { return };
    let this = std::env::current_exe().expect("/proc is mounted");
    let (printed, status) =
        kernel.run(&this, &["--test-threads=1", "--nocapture", "--skip", "guests::"], host_programs);
    for line in printed.lines().filter(|line| line.starts_with("test ") || line.contains("instructions")) {
        println!("Linux {series}: {line}");
    }
    assert_eq!(status, 0, "{printed}");
    assert!(printed.contains("\ntest result: ok. ") && !printed.contains("\nskipped: "), "{printed}");
}

/// A kernel to run guests with.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: PathBuf,
    modules: &'static str,
}

impl Kernel {
    /// Debian's kernel of a series (`6.12`), if it has been fetched and there is an emulator; otherwise says that `test` is
    /// skipped.
    pub fn of_series(series: &str, test: &str) -> Option<Self> {
        let image = build::target().join("vm").join(format!("linux-{series}"));
        let missing = [(image.as_path(), "make vm"), (Path::new(BUSYBOX), "the package busybox-static")];
        for (file, source) in missing {
            if !file.is_file() {
                needs::skipped(test, &format!("needs {}, from {source}", file.display()));
                return None;
            }
        }
        if Command::new(QEMU).arg("--version").stdout(Stdio::null()).status().is_err() {
            needs::skipped(test, &format!("needs {QEMU}, from the package qemu-system-x86"));
            return None;
        }
        Some(Self { image, modules: "landlock,lockdown,yama,bpf" })
    }

    /// With these security modules, rather than with all that are used.
    pub fn with_modules(self, modules: &'static str) -> Self {
        Self { modules, ..self }
    }

    /// Starts a guest that runs `program` with arguments as root, with the workspace's programs ([`build::directory`]) and
    /// some of the host's, by their names in /usr/bin or by their paths: the guest has all of them in /usr/bin. Returns what
    /// it printed and its exit status.
    ///
    /// # Panics
    /// The guest does not end, or ends without saying how the program did: the message has what its kernel said last.
    pub fn run(&self, program: &Path, arguments: &[&str], host_programs: &[&str]) -> (String, i32) {
        let place = tempfile::Builder::new().prefix("finesse-guest-").tempdir().unwrap();
        let initramfs = initramfs(&place, program, arguments, host_programs).unwrap();
        let console = place.path().join("console");
        let output = Command::new("timeout")
            .args(["--kill-after=5", &PATIENCE.as_secs().to_string(), QEMU])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "1536", "-icount", "shift=0,sleep=off"])
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial"])
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio", "-kernel"])
            .arg(&self.image)
            .arg("-initrd")
            .arg(&initramfs)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1 mitigations=off lsm={}", self.modules))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let printed = text(&output.stdout).replace('\r', "");
        let status = printed.rsplit_once(STATUS).and_then(|(_, status)| status.trim_end().parse().ok());
        let Some(status) = status else {
            let console = text(&std::fs::read(&console).unwrap_or_default());
            panic!(
                "the guest did not end well ({}):\n{printed}\n{console}{}",
                output.status,
                text(&output.stderr)
            )
        };
        (printed, status)
    }
}

/// The guest's only file system.
fn initramfs(place: &TempDir, program: &Path, arguments: &[&str], host: &[&str]) -> io::Result<PathBuf> {
    let root = place.path().join("root");
    let ours = root.join(PROGRAMS.trim_start_matches('/'));
    for directory in [&ours, &root.join("bin"), &root.join("usr/bin"), &root.join("etc")] {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    std::fs::copy(build::workspace().join("tests/vm/init"), root.join("init"))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let mut libraries = BTreeSet::new();
    for file in [build::COMMAND, build::LIBRARY].map(|name| build::directory().join(name)) {
        stripped(&file, &ours)?;
        libraries.extend(libraries_of(&file)?);
    }
    stripped(program, &ours)?;
    libraries.extend(libraries_of(program)?);
    for name in host {
        let found = Path::new("/usr/bin").join(name);
        let copy = root.join("usr/bin").join(found.file_name().expect("a program has a name"));
        std::fs::copy(&found, copy)?;
        libraries.extend(libraries_of(&found)?);
    }
    for library in libraries {
        let copy = root.join(library.strip_prefix("/").expect("ldd prints absolute paths"));
        std::fs::create_dir_all(copy.parent().expect("it has a directory"))?;
        std::fs::copy(&library, copy)?;
    }
    let name = program.file_name().expect("a program has a name").to_string_lossy();
    let mut script =
        format!("export FINESSE_TEST_BIN={PROGRAMS} {INSIDE}=1 {CONNECT_AFTER}=0\nexec {PROGRAMS}/{name}");
    for argument in arguments {
        // Writing to a string does not fail.
        let _ = write!(script, " '{argument}'");
    }
    std::fs::write(root.join("run"), script)?;
    let archive = place.path().join("initramfs");
    let pack = format!("find . | {BUSYBOX} cpio -o -H newc >'{}'", archive.display());
    let packed = Command::new("sh").args(["-c", &pack]).current_dir(&root).output()?;
    assert!(packed.status.success(), "cpio: {}", text(&packed.stderr));
    Ok(archive)
}

/// Copies a program without what only a debugger reads: the guest unpacks all that is in the archive.
fn stripped(file: &Path, directory: &Path) -> io::Result<()> {
    let copy = directory.join(file.file_name().expect("a program has a name"));
    let status = Command::new("strip").arg("-o").arg(copy).arg(file).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("strip {}: {status}", file.display())))
    }
}

/// The shared objects that a program is linked with, its interpreter among them.
fn libraries_of(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    // …libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…), and /lib64/ld-linux-x86-64.so.2 (0x…)
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text(&output.stdout).lines().filter_map(path).collect())
}
