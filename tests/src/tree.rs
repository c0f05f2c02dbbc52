//! What is in a directory, in a form that can be compared.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Whether modification times count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// They must agree.
    Compared,
    /// They depend on when a program ran.
    Ignored,
}

/// Everything below a directory: relative path → what is there, in words.
pub type Tree = BTreeMap<PathBuf, String>;

/// Reads a tree. The root itself is `""`.
///
/// # Panics
/// Something cannot be read: the reader is root.
pub fn read(root: &Path, times: Times) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let metadata = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if metadata.is_dir() {
            let entries =
                std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            pending.extend(entries.map(|entry| relative.join(entry.unwrap().file_name())));
        }
        tree.insert(relative, describe(&path, &metadata, times));
    }
    tree
}

fn describe(path: &Path, metadata: &std::fs::Metadata, times: Times) -> String {
    let kind = metadata.file_type();
    let mut text =
        format!("{:o} {}:{} {} links", metadata.mode(), metadata.uid(), metadata.gid(), metadata.nlink());
    // Writing to a string does not fail.
    let _ = if kind.is_file() {
        let contents = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(contents.len() as u64, metadata.len(), "{}: st_size and what is read", path.display());
        let mut hasher = DefaultHasher::new();
        hasher.write(&contents);
        write!(text, " file of {} bytes, hash {:016x}", metadata.len(), hasher.finish())
    } else if kind.is_symlink() {
        write!(text, " link to {}", std::fs::read_link(path).unwrap().display())
    } else if kind.is_dir() {
        write!(text, " directory")
    } else if kind.is_fifo() || kind.is_socket() {
        write!(text, " fifo or socket")
    } else {
        write!(text, " device {:#x}", metadata.rdev())
    };
    if times == Times::Compared {
        let _ = write!(text, ", modified {}.{:09}", metadata.mtime(), metadata.mtime_nsec());
    }
    for (name, value) in extended_attributes(path) {
        let _ = write!(text, ", {}={}", name.display(), value.escape_ascii());
    }
    text
}

fn extended_attributes(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    use std::os::unix::ffi::OsStringExt;
    let mut names = vec![0; 1 << 16];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => return Vec::new(),
        Err(errno) => panic!("llistxattr {}: {errno}", path.display()),
    };
    let mut found: Vec<_> = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsString::from_vec(name.to_vec());
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, name.as_os_str(), &mut value)
                .unwrap_or_else(|errno| panic!("lgetxattr {} {}: {errno}", path.display(), name.display()));
            value.truncate(len);
            (name, value)
        })
        .collect();
    found.sort();
    found
}

/// How two trees differ, at most the first twenty differences; empty if they do not.
pub fn difference(expected: &Tree, found: &Tree) -> String {
    let mut lines = Vec::new();
    for (path, expected) in expected {
        match found.get(path) {
            None => lines.push(format!("{}: missing, expected {expected}", path.display())),
            Some(found) if found != expected => {
                lines.push(format!("{}:\n  expected {expected}\n  found    {found}", path.display()));
            }
            Some(_) => {}
        }
    }
    for (path, found) in found {
        if !expected.contains_key(path) {
            lines.push(format!("{}: unexpected {found}", path.display()));
        }
    }
    lines.truncate(20);
    lines.join("\n")
}
