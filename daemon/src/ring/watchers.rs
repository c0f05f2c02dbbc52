//! Who watches the mount, as /proc tells of the notification instances that processes hold (`inotify_fdinfo`,
//! `fanotify_fdinfo`).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::engine::watch::Held;

/// What the processes that this one may look at watch on the mount with a device number. What another user's
/// process holds, an ordinary user's daemon cannot see, and takes for nothing.
pub(crate) fn held(dev: (u32, u32)) -> Held {
    let mut held = Held::default();
    let Ok(processes) = fs::read_dir("/proc") else { return held };
    for process in processes.flatten() {
        let is_process = process.file_name().as_bytes().iter().all(u8::is_ascii_digit);
        // Processes and descriptors may be gone meanwhile.
        if let (true, Ok(descriptors)) = (is_process, fs::read_dir(process.path().join("fd"))) {
            for descriptor in descriptors.flatten() {
                let Ok(target) = fs::read_link(descriptor.path()) else { continue };
                if matches!(target.as_os_str().as_bytes(), b"anon_inode:inotify" | b"anon_inode:[fanotify]")
                    && let Ok(info) =
                        fs::read_to_string(process.path().join("fdinfo").join(descriptor.file_name()))
                {
                    learn(&info, dev, &mut held);
                }
            }
        }
    }
    held
}

fn learn(info: &str, (major, minor): (u32, u32), held: &mut Held) {
    // The kernel's own number, not the one of stat(2).
    let dev = u64::from(major) << 20 | u64::from(minor);
    for line in info.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let field = |name: &str| {
            let value = words.clone().find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| u64::from_str_radix(value, 16).ok())
        };
        let (ino, sdev, mount) = (field("ino"), field("sdev"), field("mnt_id"));
        match (kind, ino, sdev, mount) {
            (Some("inotify" | "fanotify"), Some(ino), Some(sdev), _) if sdev == dev => {
                held.inodes.insert(ino);
            }
            // A mark of a file system, or of a mount, which may be ours.
            (Some("fanotify"), None, Some(sdev), _) if sdev == dev => held.everything = true,
            (Some("fanotify"), None, None, Some(_)) => held.everything = true,
            _ => {}
        }
    }
}

/// Where an open directory is below the mount's root; `None` if it is not known to be there.
pub(crate) fn path_below(directory: &OwnedFd, root: &Path) -> Option<Vec<u8>> {
    // The kernel knows the path without asking the file system (`d_path`).
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()?;
    Some(path.strip_prefix(root).ok()?.as_os_str().as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_on_the_mount_are_told_from_others() {
        let mut held = Held::default();
        learn(
            "pos:\t0\nflags:\t00\nmnt_id:\t17\nino:\t1038\n\
             inotify wd:2 ino:1f sdev:27 mask:fff ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:01\n\
             inotify wd:1 ino:7 sdev:800001 mask:fff ignored_mask:0\n\
             fanotify ino:20 sdev:27 mflags:0 mask:3b ignored_mask:0\n",
            (0, 0x27),
            &mut held,
        );
        assert_eq!(held, Held { inodes: [0x1f, 0x20].into_iter().collect(), everything: false });
        for line in ["fanotify sdev:27 mflags:0 mask:3b", "fanotify mnt_id:3c mflags:0 mask:3b"] {
            let mut held = Held::default();
            learn(line, (0, 0x27), &mut held);
            assert!(held.everything, "{line}");
        }
    }

    #[test]
    fn what_a_process_watches_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let inotify = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
        let flags = rustix::fs::inotify::WatchFlags::CREATE;
        rustix::fs::inotify::add_watch(&inotify, directory.path(), flags).unwrap();
        let stat = rustix::fs::stat(directory.path()).unwrap();
        let dev = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        assert!(held(dev).inodes.contains(&stat.st_ino));
        drop(inotify);
        assert!(!held(dev).inodes.contains(&stat.st_ino));
    }
}
