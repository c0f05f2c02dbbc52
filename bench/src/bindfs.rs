//! bindfs, which shows a directory at another place by libfuse.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::eventually;
use crate::{Outcome, screen};

/// A mount by bindfs; it ends on drop.
#[derive(Debug)]
pub(crate) struct Bindfs {
    child: Child,
    mountpoint: PathBuf,
}

impl Bindfs {
    /// Options that let the kernel cache everything for long.
    pub(crate) const LONG: &str =
        "entry_timeout=86400,attr_timeout=86400,negative_timeout=86400,kernel_cache";

    /// Whether this machine has it.
    pub(crate) fn is_installed() -> bool {
        let version =
            Command::new("bindfs").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }

    /// Mounts `source` at `mountpoint`, and waits until it is ready.
    pub(crate) fn start(source: &Path, mountpoint: &Path, options: &str) -> Outcome<Self> {
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

    /// Its process.
    pub(crate) fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
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
