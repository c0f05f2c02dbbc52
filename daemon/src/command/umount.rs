//! `finesse umount`.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use finesse::passthrough::finish_leftovers;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::mounts::{self, Entry, PATIENCE, within};
use super::{Failure, Outcome, plain};

/// Unmount a Finesse file system. Its daemon then ends by itself.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  finesse umount /mnt/data
  finesse umount --lazy /mnt/data      it is in use: detach it, the daemon ends with its last user
  finesse umount --force /mnt/data     it hangs or its daemon is dead: give up all pending calls")]
pub(crate) struct Umount {
    /// Where it is mounted.
    mountpoint: PathBuf,
    /// Detach the mount even if it is in use.
    #[arg(short, long)]
    lazy: bool,
    /// Abort the connection to the daemon, then detach the mount: cures a mount that hangs. Calls that wait
    /// for it fail.
    #[arg(short, long)]
    force: bool,
}

impl Umount {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        let (mountpoint, entry) = find(&self.mountpoint)?;
        if !entry.is_fuse() {
            return Err(Failure::new(format!(
                "{} is a mount of type {}, not a FUSE file system; use: umount {0}",
                mountpoint.display(),
                entry.kind
            )));
        }
        if !self.force {
            // Asked for its free space, the daemon does what it has deferred first. One that hangs is not waited for.
            let asked = mountpoint.clone();
            let _ = within(PATIENCE, move || rustix::fs::statfs(&asked));
        }
        if !(self.force && force(&mountpoint, &entry)?) {
            unmount(&mountpoint, self.lazy || self.force)?;
        }
        for (left, error) in finish_leftovers() {
            eprintln!(
                "finesse: {} unlinks in {} that a daemon had acknowledged are not done: {}; to leave them so, remove {}",
                left.unlinks,
                left.source.display(),
                plain(&error),
                left.journal.display()
            );
        }
        Ok(())
    }
}

/// The mount at a path, which may also be a symbolic link to a mount point.
fn find(path: &Path) -> Outcome<(PathBuf, Entry)> {
    let literal = mounts::resolve(path)?;
    if let Some(entry) = mounts::at(&literal)? {
        return Ok((literal, entry));
    }
    let not_mounted =
        || Failure::new(format!("{}: not a mount point; `finesse status` lists the mounts", path.display()));
    let followed = within(PATIENCE, move || literal.canonicalize());
    let followed = followed.and_then(Result::ok).ok_or_else(not_mounted)?;
    match mounts::at(&followed)? {
        Some(entry) => Ok((followed, entry)),
        None => Err(not_mounted()),
    }
}

/// Unmounts, as root by itself, otherwise with fusermount3.
///
/// # Errors
/// Says who uses the mount if it is busy.
pub(crate) fn unmount(mountpoint: &Path, lazy: bool) -> Outcome {
    let failed = |why: String| Err(Failure::new(format!("cannot unmount {}: {why}", mountpoint.display())));
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => failed(busy(mountpoint)),
        Err(Errno::PERM) => match fusermount(mountpoint, lazy) {
            Ok(()) => Ok(()),
            Err(why) if why.contains("busy") => failed(busy(mountpoint)),
            Err(why) => failed(why),
        },
        Err(errno) => failed(plain(&errno.into())),
    }
}

fn fusermount(mountpoint: &Path, lazy: bool) -> Result<(), String> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("an ordinary user needs fusermount3; install the package fuse3".to_owned())
        }
        Err(error) => Err(format!("fusermount3: {}", plain(&error))),
    }
}

/// Ends the connection to the daemon, so that every call that waits for it fails (`fuse_abort_conn`); returns
/// whether that has unmounted it, too. For root a forced unmount does it (`fuse_umount_begin`); it goes on to
/// fail if somebody uses the mount. For the mount's owner there is a file.
fn force(mountpoint: &Path, entry: &Entry) -> Outcome<bool> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => abort(entry).map(|()| false),
        Err(Errno::BUSY) => Ok(false),
        Err(errno) => {
            Err(Failure::new(format!("cannot unmount {}: {}", mountpoint.display(), plain(&errno.into()))))
        }
    }
}

fn abort(entry: &Entry) -> Outcome {
    let control = PathBuf::from("/sys/fs/fuse/connections");
    let file = control.join(entry.dev.1.to_string()).join("abort");
    std::fs::write(&file, "1").map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => format!(
                "; as root: mount -t fusectl none {}, or end the daemon (`finesse status` shows it)",
                control.display()
            ),
            io::ErrorKind::PermissionDenied => "; only root and the mount's owner may".to_owned(),
            _ => String::new(),
        };
        Failure::new(format!("cannot abort the connection: {}: {}{hint}", file.display(), plain(&error)))
    })
}

fn busy(mountpoint: &Path) -> String {
    let mut why = "it is in use".to_owned();
    let users = users(mountpoint);
    for (index, (pid, name, how)) in users.iter().take(5).enumerate() {
        let before = if index == 0 { " by" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(why, "{before} {name} ({how}, process {pid})");
    }
    if users.len() > 5 {
        let _ = write!(why, " and {} more", users.len() - 5);
    }
    why + "; end them, or: finesse umount --lazy " + &mountpoint.to_string_lossy()
}

/// Processes that have their working directory, root, program or an open file on the mount, as far as this
/// user may see. Only links in `/proc` are read, so that a mount that hangs is not asked.
fn users(mountpoint: &Path) -> Vec<(u32, String, &'static str)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let on_mount = |link: &Path| std::fs::read_link(link).is_ok_and(|path| path.starts_with(mountpoint));
    let how = |process: &Path| {
        [("cwd", "working directory"), ("root", "root directory"), ("exe", "program")]
            .into_iter()
            .find_map(|(link, how)| on_mount(&process.join(link)).then_some(how))
            .or_else(|| {
                let mut files = std::fs::read_dir(process.join("fd")).ok()?.flatten();
                files.any(|file| on_mount(&file.path())).then_some("open file")
            })
    };
    let of_process = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let how = how(&entry.path())?;
        let name = std::fs::read(entry.path().join("comm")).unwrap_or_default();
        Some((pid, OsStr::to_string_lossy(os_str(name.trim_ascii_end())).into_owned(), how))
    };
    processes.flatten().filter_map(of_process).collect()
}

fn os_str(bytes: &[u8]) -> &OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_of_a_directory_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let _open = std::fs::File::create(path.join("file")).unwrap();
        let users = users(&path);
        assert!(users.iter().any(|(pid, _, how)| *pid == std::process::id() && *how == "open file"));
    }

    #[test]
    fn what_is_not_mounted_is_not_unmounted() {
        let dir = tempfile::tempdir().unwrap();
        let error = find(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("not a mount point; `finesse status` lists the mounts"), "{error}");
    }
}
