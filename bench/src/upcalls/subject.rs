//! The file systems that are compared.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use finesse_ipc::client::Client;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{Daemon, eventually};
use crate::{Outcome, screen};

/// A file system that shows a directory at another place.
#[derive(Debug)]
pub(super) enum Subject {
    /// Finesse.
    Finesse {
        name: &'static str,
        /// The command; ours if it is not said.
        program: Option<PathBuf>,
        /// A client is connected, and does nothing.
        client: bool,
    },
    /// bindfs, with these options.
    Bindfs { name: &'static str, options: &'static str },
}

/// A mount; it ends on drop, too.
pub(super) enum Mounted {
    Finesse(Daemon, Option<Box<Client>>),
    Bindfs(Bindfs),
}

impl Subject {
    /// Those that this machine has.
    pub(super) fn all(before: Option<&Path>) -> Vec<Self> {
        let ours = |name, program: Option<&Path>, client| Self::Finesse {
            name,
            program: program.map(Path::to_owned),
            client,
        };
        let mut all = vec![ours("finesse", None, false), ours("finesse, client", None, true)];
        if before.is_some() {
            all.extend([ours("before", before, false), ours("before, client", before, true)]);
        }
        let installed = Command::new("bindfs").arg("--version").stdout(Stdio::null()).status();
        if installed.is_ok_and(|status| status.success()) {
            all.extend([
                Self::Bindfs { name: "bindfs", options: "fsname=bench" },
                Self::Bindfs {
                    name: "bindfs, long",
                    options: "entry_timeout=86400,attr_timeout=86400,negative_timeout=86400,kernel_cache",
                },
            ]);
        } else {
            screen::say("bindfs is not installed, and not compared with");
        }
        all
    }

    /// Its name in reports.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Finesse { name, .. } | Self::Bindfs { name, .. } => name,
        }
    }

    /// Whether clients can connect to it, and none is yet.
    pub(super) fn takes_clients(&self) -> bool {
        matches!(self, Self::Finesse { client: false, .. })
    }

    /// Mounts `source` at `mountpoint`, and waits until it is ready.
    pub(super) fn mount(&self, source: &Path, mountpoint: &Path) -> Outcome<Mounted> {
        match self {
            Self::Finesse { program, client, .. } => {
                let daemon = match program {
                    Some(program) => Daemon::start_with(program, source, mountpoint)?,
                    None => Daemon::start(source, mountpoint)?,
                };
                let mut mounted = Mounted::Finesse(daemon, None);
                if *client {
                    mounted.connect()?;
                }
                Ok(mounted)
            }
            Self::Bindfs { options, .. } => Bindfs::start(source, mountpoint, options).map(Mounted::Bindfs),
        }
    }
}

impl Mounted {
    /// Connects a client, which does nothing.
    pub(super) fn connect(&mut self) -> Outcome {
        if let Self::Finesse(daemon, client) = self {
            let connected = Client::connect(daemon.socket(), "finesse-bench", 3);
            let connected = connected.map_err(|error| format!("cannot connect to the daemon: {error}"))?;
            *client = Some(Box::new(connected));
        }
        Ok(())
    }

    /// Lets the client go, and waits until the daemon has noticed.
    pub(super) fn disconnect(&mut self) -> Outcome {
        if let Self::Finesse(daemon, client) = self {
            drop(client.take());
            daemon.report_at_rest()?;
        }
        Ok(())
    }

    /// Unmounts.
    pub(super) fn stop(self) -> Outcome {
        match self {
            Self::Finesse(daemon, client) => {
                drop(client);
                daemon.stop()
            }
            Self::Bindfs(bindfs) => {
                drop(bindfs);
                Ok(())
            }
        }
    }
}

/// A mount by bindfs; it ends on drop.
#[derive(Debug)]
pub(super) struct Bindfs {
    child: Child,
    mountpoint: PathBuf,
}

impl Bindfs {
    fn start(source: &Path, mountpoint: &Path, options: &str) -> Outcome<Self> {
        let device = || std::fs::metadata(mountpoint).map(|metadata| metadata.dev());
        let before = device().map_err(|error| format!("{}: {error}", mountpoint.display()))?;
        let child = Command::new("bindfs")
            .args(["-f", "-o", options])
            .args([source, mountpoint])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("bindfs: {error}"))?;
        let mut bindfs = Self { child, mountpoint: mountpoint.to_owned() };
        eventually("bindfs", || {
            screen::go_on()?;
            if let Some(status) = bindfs.child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("bindfs failed ({status})"));
            }
            Ok(device().is_ok_and(|device| device != before))
        })?;
        Ok(bindfs)
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only if it has just ended.
            let _ = kill_process(pid, Signal::TERM);
        }
        let child = &mut self.child;
        let ended = eventually("the end of bindfs", || {
            Ok(child.try_wait().map_err(|error| error.to_string())?.is_some())
        });
        if let Err(failure) = ended {
            eprintln!("finesse-bench: {failure}");
            // Last resorts; what matters is that the process is gone.
            let _ = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_build_is_compared_with_if_it_is_named() {
        let named = |before| {
            let all = Subject::all(before);
            all.iter().filter(|subject| subject.name().starts_with("before")).count()
        };
        assert_eq!((named(None), named(Some(Path::new("/finesse")))), (0, 2));
    }
}
