//! What is mounted below our mount, and which mounts matter to our clients, from /proc/self/mountinfo.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What is mounted below a FUSE mount at `directory`: the mount points relative to it, the empty one for the mount's root itself.
pub(crate) fn below(mountinfo: &[u8], directory: &Path) -> Vec<Vec<u8>> {
    let prefix = directory.as_os_str().as_bytes();
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    let lines = || mountinfo.split(|byte| *byte == b'\n').filter_map(Line::parse);
    let is_ours = |line: &Line<'_>| line.is_fuse() && line.path == prefix;
    lines()
        .filter_map(|line| match line.path.strip_prefix(prefix)? {
            [] => lines().any(|other| is_ours(&other) && other.id == line.parent).then(Vec::new),
            rest => rest.strip_prefix(b"/").filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec),
        })
        .collect()
}

/// A line of mountinfo, as far as it is of interest.
struct Line<'l> {
    id: &'l [u8],
    parent: &'l [u8],
    path: Vec<u8>,
    kind: Option<&'l [u8]>,
}

impl<'l> Line<'l> {
    fn parse(line: &'l [u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, parent) = (fields.next()?, fields.next()?);
        let path = unescape(fields.nth(2)?);
        Some(Self { id, parent, path, kind: fields.skip_while(|field| *field != b"-").nth(1) })
    }

    /// Also "fuseblk" and "fuse.finesse".
    fn is_fuse(&self) -> bool {
        self.kind.is_none_or(|kind| kind.starts_with(b"fuse"))
    }
}

/// The lines that decide which paths of a client's lead where: those of FUSE mounts, which it may use, and of whatever is mounted
/// at, below or above `mountpoint`.
pub(crate) fn that_matter(mountinfo: &[u8], mountpoint: &Path) -> Vec<u8> {
    let ours = mountpoint.as_os_str().as_bytes();
    let is_within = |path: &[u8], other: &[u8]| {
        path.strip_prefix(other).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    };
    let lines = mountinfo.split_inclusive(|byte| *byte == b'\n').filter(|line| {
        let Some(line) = Line::parse(line) else { return true };
        line.is_fuse() || is_within(&line.path, ours) || is_within(ours, &line.path)
    });
    lines.flatten().copied().collect()
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
    fn mounts_elsewhere_do_not_matter_unless_they_may_be_used() {
        let ours = b"30 22 0:40 / /mnt/a rw - fuse.finesse x rw\n";
        let matters = |line: &[u8]| {
            let mountinfo = [line, ours].concat();
            let found = that_matter(&mountinfo, Path::new("/mnt/a"));
            assert!(found == mountinfo || found == ours);
            found == mountinfo
        };
        for path in ["/mnt/a", "/mnt", "/mnt/a/x/y"] {
            assert!(matters(format!("31 22 0:41 / {path} rw - tmpfs t rw\n").as_bytes()), "{path}");
        }
        for path in ["/mnt/ab", "/mn", "/tmp/mnt/a", "/mnt/b/a"] {
            assert!(!matters(format!("31 22 0:41 / {path} rw - tmpfs t rw\n").as_bytes()), "{path}");
            assert!(matters(format!("31 22 0:41 / {path} rw shared:1 - fuse.x t rw\n").as_bytes()), "{path}");
        }
    }

    #[test]
    fn only_mounts_below_are_listed() {
        let mountinfo = b"22 1 0:1 / / rw - ext4 /dev/a rw\n\
            30 22 0:40 / /mnt/a rw - fuse.finesse x rw\n\
            31 30 0:41 / /mnt/a/in\\040side/b rw - tmpfs t rw\n\
            32 22 0:42 / /mnt/ab rw - tmpfs t rw\n";
        assert_eq!(below(mountinfo, Path::new("/mnt/a")), [b"in side/b".to_vec()]);
        assert!(below(mountinfo, Path::new("/mnt/ab")).is_empty());
        let all: [&[u8]; 3] = [b"mnt/a", b"mnt/a/in side/b", b"mnt/ab"];
        assert_eq!(below(mountinfo, Path::new("/")), all, "not itself");
    }

    #[test]
    fn what_is_mounted_on_the_root_is_listed_and_what_the_root_is_mounted_on_is_not() {
        let at =
            |id: u32, parent: u32, kind: &str| format!("{id} {parent} 0:{id} / /mnt/a rw - {kind} x rw\n");
        let (ours, before, after) = (at(30, 25, "fuse.finesse"), at(25, 22, "tmpfs"), at(31, 30, "tmpfs"));
        let below = |mountinfo: String| below(mountinfo.as_bytes(), Path::new("/mnt/a"));
        assert!(below(format!("{before}{ours}")).is_empty());
        assert_eq!(below(format!("{before}{ours}{after}")), [b""]);
    }
}
