//! Mounts on directories of ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`, as far as it matters here.
struct Line<'a> {
    id: &'a str,
    parent: &'a str,
    device: &'a str,
    path: PathBuf,
}

/// Where other file systems are mounted on directories of the one at `mountpoint`: the first such place, in
/// this process' mount name space. `table` is the contents of `/proc/self/mountinfo`.
pub(crate) fn first_below(table: &[u8], mountpoint: &Path) -> Option<PathBuf> {
    let lines: Vec<Line<'_>> = table.split(|byte| *byte == b'\n').filter_map(parse).collect();
    // Of mounts stacked on one place the last is the visible one.
    let device = lines.iter().rfind(|line| line.path == mountpoint)?.device;
    lines
        .iter()
        // Bind mounts of ours have our device and are parents as well.
        .find(|line| lines.iter().any(|other| other.id == line.parent && other.device == device))
        .map(|line| line.path.clone())
}

/// See proc_pid_mountinfo(5).
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (id, parent, device) = (text()?, text()?, text()?);
    let path = fields.nth(1)?;
    Some(Line { id, parent, device, path: PathBuf::from(unescape(path)) })
}

/// `mangle_path` writes space, tab, newline and backslash as three octal digits.
fn unescape(mut field: &[u8]) -> OsString {
    let mut path = Vec::with_capacity(field.len());
    while let Some((&first, rest)) = field.split_first() {
        let code = (first == b'\\')
            .then(|| rest.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(code);
                field = &rest[3..];
            }
            None => {
                path.push(first);
                field = rest;
            }
        }
    }
    OsString::from_vec(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 0:20 / / rw - ext4 /dev/vda rw\n\
        30 22 0:41 / /mnt/a\\040b rw,nosuid - fuse finesse rw\n\
        31 22 0:42 / /mnt/c rw - fuse finesse rw\n\
        32 31 0:43 / /mnt/c/d/e rw - tmpfs none rw\n\
        33 22 0:42 /x /mnt/bind rw - fuse finesse rw\n";

    #[test]
    fn a_mount_on_a_directory_of_ours_is_found() {
        assert_eq!(first_below(TABLE, Path::new("/mnt/c")), Some("/mnt/c/d/e".into()));
    }

    #[test]
    fn a_mount_without_any_below_is_clear_even_with_a_space_in_its_path() {
        assert_eq!(first_below(TABLE, Path::new("/mnt/a b")), None);
    }

    #[test]
    fn a_mount_reached_through_a_bind_mount_counts() {
        let table = [TABLE, b"34 33 0:44 / /mnt/bind/y rw - tmpfs none rw\n"].concat();
        let table =
            String::from_utf8(table).unwrap().replace("32 31 0:43 / /mnt/c/d/e rw - tmpfs none rw\n", "");
        assert_eq!(first_below(table.as_bytes(), Path::new("/mnt/c")), Some("/mnt/bind/y".into()));
    }

    #[test]
    fn an_unknown_place_has_nothing_below() {
        assert_eq!(first_below(TABLE, Path::new("/nowhere")), None);
    }
}
