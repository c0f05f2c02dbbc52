//! A Finesse mount for one measurement, and programs that run on a road.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use finesse_ipc::status::{Report, ask, socket_of};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Outcome, screen};

/// How many calls the kernel serves before a program connects.
pub(crate) const CONNECT_AFTER: &str = match finesse_ipc::environment::CONNECT_AFTER.to_str() {
    Ok(name) => name,
    Err(_) => panic!("names are ASCII"),
};

/// How a program reaches its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Road {
    /// In the backing directory: no FUSE at all.
    Native,
    /// On the mount, through the kernel.
    Kernel,
    /// On the mount, preloaded.
    Bypass,
}

impl Road {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 3] = [Self::Native, Self::Kernel, Self::Bypass];

    /// The name in tables and reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Kernel => "kernel",
            Self::Bypass => "bypass",
        }
    }
}

/// How long a daemon may take to start, to answer, to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often we look whether something has happened.
const LOOK: Duration = Duration::from_millis(5);

/// A program of this package or the `finesse` command: beside this executable.
pub(crate) fn program(name: &str) -> Outcome<PathBuf> {
    let executable = std::env::current_exe().map_err(|error| format!("/proc/self/exe: {error}"))?;
    let beside = executable.parent().unwrap_or(Path::new("/"));
    let found = [beside.join(name), beside.join("..").join(name)].into_iter().find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is not beside {}; build it with: make", executable.display()))
}

/// Waits for a condition.
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> Outcome<bool>) -> Outcome {
    within(PATIENCE, what, condition)
}

/// Waits for a condition, so long at most.
pub(crate) fn within(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Outcome<bool>,
) -> Outcome {
    let deadline = Instant::now() + patience;
    while !condition()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {} s", patience.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A mount and its daemon; both end on drop.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    mountpoint: PathBuf,
    socket: Vec<u8>,
}

impl Daemon {
    /// Mounts `source` at `mountpoint` with the longest caching, and waits until it is ready.
    pub(crate) fn start(source: &Path, mountpoint: &Path) -> Outcome<Self> {
        Self::start_with(&program("finesse")?, source, mountpoint)
    }

    /// As [`start`](Self::start), by a `finesse` command of another build.
    pub(crate) fn start_with(finesse: &Path, source: &Path, mountpoint: &Path) -> Outcome<Self> {
        Self::launch(finesse, source, mountpoint, &[])
    }

    /// As [`start`](Self::start), with mount options.
    pub(crate) fn start_as(source: &Path, mountpoint: &Path, options: &[&str]) -> Outcome<Self> {
        Self::launch(&program("finesse")?, source, mountpoint, options)
    }

    fn launch(finesse: &Path, source: &Path, mountpoint: &Path, options: &[&str]) -> Outcome<Self> {
        let child = Command::new(finesse)
            .args(["mount", "--foreground", "--cache=always"])
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args([source, mountpoint])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Ctrl-C is ours: we end the daemon when everything that uses it has ended.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("finesse mount: {error}"))?;
        let mut daemon = Self { child, mountpoint: mountpoint.to_owned(), socket: Vec::new() };
        eventually("finesse mount", || {
            screen::go_on()?;
            if let Some(status) = daemon.child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("finesse mount failed ({status})"));
            }
            daemon.socket = socket_of(&daemon.mountpoint).unwrap_or_default();
            Ok(!daemon.socket.is_empty())
        })?;
        Ok(daemon)
    }

    /// The name of its socket.
    pub(crate) fn socket(&self) -> &[u8] {
        &self.socket
    }

    /// Where it is mounted.
    pub(crate) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    /// What it reports.
    pub(crate) fn report(&self) -> Outcome<Report> {
        ask(&self.socket, PATIENCE)
            .map_err(|error| format!("status of {}: {error}", self.mountpoint.display()))
    }

    /// What it reports when all clients have left, so that their counts are complete.
    pub(crate) fn report_at_rest(&self) -> Outcome<Report> {
        let mut report = self.report()?;
        eventually("the clients' leaving", || {
            report = self.report()?;
            Ok(report.mount.clients == 0)
        })?;
        Ok(report)
    }

    /// Unmounts and waits for the daemon's end.
    pub(crate) fn stop(mut self) -> Outcome {
        self.end()
    }

    fn end(&mut self) -> Outcome {
        let Some(pid) = self.pid() else { return Ok(()) };
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return Ok(());
        }
        // Fails only if it has just ended.
        let _ = kill_process(pid, Signal::TERM);
        let child = &mut self.child;
        let ended = eventually("the daemon's end", || {
            Ok(child.try_wait().map_err(|error| error.to_string())?.is_some())
        });
        if ended.is_err() {
            let umount =
                Command::new(program("finesse")?).args(["umount", "--force"]).arg(&self.mountpoint).status();
            // Both are last resorts; what matters is that the process is gone.
            drop(umount);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        ended
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            eprintln!("finesse-bench: {failure}");
        }
    }
}

/// A command that runs `program` on a road.
pub(crate) fn command(road: Road, program: &Path) -> Outcome<Command> {
    if road != Road::Bypass {
        return Ok(Command::new(program));
    }
    let mut command = Command::new(self::program("finesse")?);
    command.args(["run", "--quiet", "--"]).arg(program);
    Ok(command)
}

/// The program that is measured, on a road. On the bypass it connects with its first call: what calls cost is asked, not whether it
/// pays to connect.
pub(crate) fn calls(road: Road) -> Outcome<Command> {
    let mut command = command(road, &program("finesse-bench-calls")?)?;
    command.env(CONNECT_AFTER, "0");
    Ok(command)
}

/// Runs a command and hands every line that it writes to `line`; ends it, and all that it started, if the user wants to
/// stop.
///
/// # Errors
/// It fails, with what it wrote to standard error.
pub(crate) fn run(mut command: Command, mut line: impl FnMut(&str)) -> Outcome {
    let what = format!("{command:?}");
    let failed = |why: String| format!("{what}: {why}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it starts is in the group, too, and nothing may be left that uses a mount.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (sender, receiver) = mpsc::channel();
    let reader = child.stdout.take().map(|out| {
        std::thread::spawn(move || {
            for text in BufReader::new(out).lines().map_while(Result::ok) {
                // Nobody listens any more after an interruption.
                let _ = sender.send(text);
            }
        })
    });
    let errors = child.stderr.take().map(|err| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(err).read_to_string(&mut text);
            text
        })
    });
    let outcome = loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
        }
        if let Err(interrupted) = screen::go_on() {
            // Fails only if all of it has just ended.
            let _ = group.map(|group| kill_process_group(group, Signal::KILL));
            break Err(interrupted);
        }
    };
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    // It has nothing left to say.
    drop(reader.map(std::thread::JoinHandle::join));
    outcome?;
    screen::go_on()?;
    if status.success() {
        return Ok(());
    }
    Err(failed(format!("{status}: {}", errors.trim().lines().last().unwrap_or("it says nothing"))))
}
