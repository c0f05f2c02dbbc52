//! The file systems that are compared.

use std::path::{Path, PathBuf};

use finesse_ipc::client::Client;

use crate::bindfs::Bindfs;
use crate::daemon::Daemon;
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
