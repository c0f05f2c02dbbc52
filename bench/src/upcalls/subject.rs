//! The file systems that are compared.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::bindfs::Bindfs;
use crate::daemon::{self, Daemon};
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
    /// The daemon, its command, and the client.
    Finesse(Daemon, PathBuf, Option<Idle>),
    Bindfs(Bindfs),
}

/// A shell on the bypass that has looked at the mount and does nothing more. It ends on drop.
#[derive(Debug)]
pub(super) struct Idle(Child);

impl Idle {
    /// Starts it, by a `finesse` command of the daemon's build: builds may differ in their protocols.
    fn start(finesse: &Path, mountpoint: &Path) -> Outcome<Self> {
        let shell = Command::new(finesse)
            .args(["run", "--", "sh", "-c", "test -e \"$1\" && echo connected && read line", "sh"])
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut idle = Self(shell.map_err(|error| format!("finesse run: {error}"))?);
        let mut line = String::new();
        if let Some(stdout) = idle.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| format!("finesse run: {error}"))?;
        }
        let clients = clients(finesse, mountpoint)?;
        if line != "connected\n" || clients != 1 {
            return Err(format!("{}: {clients} clients are connected rather than one", mountpoint.display()));
        }
        Ok(idle)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many clients a mount has, as the command of its daemon's build says.
fn clients(finesse: &Path, mountpoint: &Path) -> Outcome<usize> {
    let status = Command::new(finesse).args(["status", "--json"]).arg(mountpoint).output();
    let status = status.map_err(|error| format!("finesse status: {error}"))?;
    let mounts: Value = serde_json::from_slice(&status.stdout)
        .map_err(|error| format!("finesse status: {error}: {}", String::from_utf8_lossy(&status.stderr)))?;
    let clients = mounts[0]["clients"].as_array().ok_or("finesse status tells nothing of clients")?;
    Ok(clients.len())
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
        if Bindfs::is_installed() {
            all.extend([
                Self::Bindfs { name: "bindfs", options: "fsname=bench" },
                Self::Bindfs { name: "bindfs, long", options: Bindfs::LONG },
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
                let program = program.clone().map_or_else(|| daemon::program("finesse"), Ok)?;
                let daemon = Daemon::start_with(&program, &[], source, mountpoint)?;
                let mut mounted = Mounted::Finesse(daemon, program, None);
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
        if let Self::Finesse(daemon, program, idle) = self {
            *idle = Some(Idle::start(program, daemon.mountpoint())?);
        }
        Ok(())
    }

    /// Lets the client go, and waits until the daemon has noticed.
    pub(super) fn disconnect(&mut self) -> Outcome {
        if let Self::Finesse(daemon, program, idle) = self {
            drop(idle.take());
            daemon::eventually("the client's leaving", || Ok(clients(program, daemon.mountpoint())? == 0))?;
        }
        Ok(())
    }

    /// Unmounts.
    pub(super) fn stop(self) -> Outcome {
        match self {
            Self::Finesse(daemon, _, idle) => {
                drop(idle);
                daemon.stop()
            }
            Self::Bindfs(bindfs) => {
                drop(bindfs);
                Ok(())
            }
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
