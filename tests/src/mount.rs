//! A directory mounted with the `finesse` command, or a file system in memory.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use tempfile::TempDir;

use crate::account::Account;
use crate::build;
use crate::wait::eventually;

/// How a mount is made.
#[derive(Clone, Debug, Default)]
pub struct Options<'o> {
    /// Further arguments of `finesse mount` or `finesse-memfs`.
    pub arguments: &'o [&'o str],
    /// Logs the kernel's requests, for [`Mount::kernel_requests`].
    pub count_kernel_requests: bool,
    /// What the command is started with: `prlimit`, `setpriv` and their arguments.
    pub wrapper: &'o [&'o str],
}

/// A mounted directory. Dropping it unmounts and ends the daemon, in a panic too, and says what the daemon had
/// logged in that case.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    pid: Pid,
    daemon: OwnedFd,
    log: PathBuf,
    _state: TempDir,
}

impl Mount {
    /// Mounts `source` at `mountpoint`.
    ///
    /// # Panics
    /// The command fails; its error is in the panic's message.
    pub fn new(source: &Path, mountpoint: &Path, options: &Options<'_>) -> Self {
        Self::start(&[build::command().as_os_str(), "mount".as_ref()], &[source, mountpoint], options)
    }

    /// Mounts an empty file system in memory at `mountpoint`.
    ///
    /// # Panics
    /// As [`Mount::new`].
    pub fn of_memory(mountpoint: &Path, options: &Options<'_>) -> Self {
        Self::start(&[build::memory().as_os_str()], &[mountpoint], options)
    }

    /// Runs a command that returns when the mount is ready. The mount point is the last of the places.
    fn start(command: &[&OsStr], places: &[&Path], options: &Options<'_>) -> Self {
        let state = tempfile::Builder::new().prefix("finesse-log-").tempdir().unwrap();
        std::fs::set_permissions(state.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let log = state.path().join("log");
        let filter = if options.count_kernel_requests { "warn,fuser::request=debug" } else { "warn" };
        let mut line: Vec<&OsStr> = options.wrapper.iter().map(OsStr::new).collect();
        line.extend(command);
        line.extend(["--log", filter, "--log-file"].map(OsStr::new));
        line.push(log.as_os_str());
        line.extend(options.arguments.iter().map(OsStr::new));
        line.extend(places.iter().map(|place| place.as_os_str()));
        let mountpoint = *places.last().expect("a mount point");
        let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
        assert!(output.status.success(), "{line:?}: {}", text(&output.stderr));
        let mut this = Self {
            mountpoint: mountpoint.to_owned(),
            pid: rustix::process::getpid(),
            // Until the daemon is known: an error on the way must unmount, and end nobody.
            daemon: rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap(),
            log,
            _state: state,
        };
        let pid = this.account().pid;
        this.daemon = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        this.pid = pid;
        this
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// What the daemon says of itself and its clients.
    pub fn account(&self) -> Account {
        Account::of(&self.mountpoint)
    }

    /// How often the kernel has asked for an operation, by its name in the log (`LOOKUP`, `UNLINK` …).
    ///
    /// Needs [`Options::count_kernel_requests`].
    pub fn kernel_requests(&self) -> std::collections::BTreeMap<String, u64> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut counts = std::collections::BTreeMap::new();
        for line in log.lines() {
            // … FUSE( 12) ino 0x0000000000000001 OPENDIR flags …
            let operation = line.split_once(" ino 0x").and_then(|(_, rest)| rest.split(' ').nth(1));
            if let Some(operation) = operation {
                *counts.entry(operation.to_owned()).or_default() += 1;
            }
        }
        counts
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        rustix::process::pidfd_send_signal(&self.daemon, signal).expect("the daemon lives");
    }

    /// Stops the daemon until it gets [`Signal::CONT`], and waits until none of its threads goes on.
    ///
    /// # Panics
    /// They go on.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        eventually("all threads of the daemon are stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon lives");
            tasks.flatten().all(|task| {
                let stat = std::fs::read_to_string(task.path().join("stat"));
                stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|state| state.starts_with('T')))
            })
        });
    }

    /// Waits until the daemon has ended; whether it did in time.
    pub fn ended(&self, patience: Duration) -> bool {
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
        let mut poll = [PollFd::new(&self.daemon, PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&patience)).is_ok_and(|ready| ready == 1)
    }

    /// Unmounts with the command.
    ///
    /// # Panics
    /// The mount is busy or the daemon does not end.
    pub fn unmount(self) {
        let mut output = None;
        eventually("the mount is not busy", || {
            // Whoever looks at all mounts of the machine may be inside for a moment.
            let said = Command::new(build::command()).arg("umount").arg(&self.mountpoint).output().unwrap();
            let busy = text(&said.stderr).contains("it is in use");
            output = Some(said);
            !busy
        });
        let output = output.expect("it was tried");
        assert!(output.status.success(), "finesse umount: {}", text(&output.stderr));
        assert!(self.ended(crate::wait::PATIENCE), "the daemon of an unmounted file system lives on");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<_> =
                log.lines().filter(|line| !line.contains("fuser::request")).rev().take(20).collect();
            for line in last.iter().rev() {
                eprintln!("daemon of {}: {line}", self.mountpoint.display());
            }
        }
        unmount(&self.mountpoint);
        if self.pid != rustix::process::getpid() && !self.ended(Duration::from_secs(5)) {
            // Fails when it has ended just now.
            let _ = rustix::process::pidfd_send_signal(&self.daemon, Signal::KILL);
        }
    }
}

/// Detaches a mount, if it is one.
pub fn unmount(mountpoint: &Path) {
    if rustix::mount::unmount(mountpoint, UnmountFlags::DETACH) == Err(Errno::PERM) {
        // An ordinary user. Fails when it is unmounted already.
        let _ = Command::new("fusermount3").args(["-u", "-z", "-q"]).arg(mountpoint).status();
    }
}

/// A program's output as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a program said on both streams, for messages.
pub fn said(output: &Output) -> String {
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}
