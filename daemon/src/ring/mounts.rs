//! What is mounted below our mount, from /proc/self/mountinfo.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The mount points below `mountpoint`, relative to it.
pub(crate) fn below(mountinfo: &[u8], mountpoint: &Path) -> Vec<Vec<u8>> {
    let prefix = mountpoint.as_os_str().as_bytes();
    mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter_map(|path| {
            let rest = path.strip_prefix(prefix)?.strip_prefix(b"/")?;
            (!rest.is_empty()).then(|| rest.to_vec())
        })
        .collect()
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash (`seq_path`).
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_listed() {
        let mountinfo = b"22 1 0:1 / / rw - ext4 /dev/a rw\n\
            30 22 0:40 / /mnt/a rw - fuse.finesse x rw\n\
            31 30 0:41 / /mnt/a/in\\040side/b rw - tmpfs t rw\n\
            32 22 0:42 / /mnt/ab rw - tmpfs t rw\n";
        assert_eq!(below(mountinfo, Path::new("/mnt/a")), [b"in side/b".to_vec()]);
        assert!(below(mountinfo, Path::new("/mnt/ab")).is_empty());
    }
}
