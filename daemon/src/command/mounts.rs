//! The mount table, and which of its mounts are Finesse's.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use finesse_ipc::status::{NoReport, Report, ask, socket_of};

use super::{Failure, Outcome, plain};

/// The type under which `finesse mount` appears in the mount table.
pub(crate) const SUBTYPE: &str = "finesse";
/// How long mounts may take to say whether they are ours, and a daemon to report.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// One line of `/proc/self/mountinfo`, as far as it concerns us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Device number of the file system.
    pub(crate) dev: (u32, u32),
    /// Which of its directories is mounted; `/` unless it is a bind mount.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) mountpoint: PathBuf,
    /// File system type, with its subtype.
    pub(crate) kind: String,
    /// What is mounted, as the file system says.
    pub(crate) source: String,
}

impl Entry {
    /// Whether it is a FUSE file system, ours or another's.
    pub(crate) fn is_fuse(&self) -> bool {
        self.kind == "fuse" || self.kind.starts_with("fuse.")
    }
}

/// The mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn table() -> Outcome<Vec<Entry>> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read(path)
        .map_err(|error| Failure::new(format!("cannot read {path}: {}; is /proc mounted?", plain(&error))))?;
    Ok(parse(&text))
}

/// The mount that is visible at exactly this path.
pub(crate) fn at(mountpoint: &Path) -> Outcome<Option<Entry>> {
    Ok(table()?.into_iter().rfind(|entry| entry.mountpoint == mountpoint))
}

fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// Fields as `show_mountinfo` writes them: `36 35 98:0 /root /mountpoint options tags… - type source options`.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let (root, mountpoint) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Entry {
        dev: (major.parse().ok()?, minor.parse().ok()?),
        root: root.into(),
        mountpoint: mountpoint.into(),
        kind: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: unescape(rest.next()?).to_string_lossy().into_owned(),
    })
}

/// Undoes `mangle_path`: space, tab, newline, backslash and `#` appear as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if let (b'\\', Some((digits @ [b'0'..=b'3', b'0'..=b'7', b'0'..=b'7'], tail))) =
            (byte, tail.split_first_chunk::<3>())
        {
            bytes.push(digits.iter().fold(0, |value, digit| value * 8 + (digit - b'0')));
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    OsString::from_vec(bytes)
}

/// Whether a mount is Finesse's, and where its daemon listens.
#[derive(Debug)]
pub(crate) enum Owner {
    /// Ours: the name of its daemon's abstract socket.
    Finesse(Vec<u8>),
    /// Ours by its type, but it cannot be asked: its daemon is gone, or it is another user's.
    Dead(io::Error),
    /// Nobody has answered so far.
    Hung,
    /// Some other file system's.
    Other,
}

impl Entry {
    /// Whether it says of itself that it is ours. A file system on the library has a type of its own.
    fn is_ours_by_type(&self) -> bool {
        self.kind.strip_prefix("fuse.") == Some(SUBTYPE)
    }

    fn owner(&self, answer: io::Result<Vec<u8>>) -> Owner {
        match answer {
            Ok(name) if !name.is_empty() => Owner::Finesse(name),
            Err(error) if self.is_ours_by_type() => Owner::Dead(error),
            _ => Owner::Other,
        }
    }
}

/// Asks those FUSE mounts whose they are that are visible (of several at one path the last) and wanted. The questions go to their
/// daemons, which may hang, so each is asked by a thread of its own, and those that are silent after `patience` are left behind.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn asked(wanted: impl Fn(&Entry) -> bool, patience: Duration) -> Outcome<Vec<(Entry, Owner)>> {
    let end = Instant::now() + patience;
    let table = table()?;
    let mut asked = Vec::new();
    let (sender, answers) = mpsc::channel();
    for (index, entry) in table.iter().enumerate() {
        let hidden = table[index + 1..].iter().any(|later| later.mountpoint == entry.mountpoint);
        if hidden || !entry.is_fuse() || !wanted(entry) {
            continue;
        }
        let (sender, path, number) = (sender.clone(), entry.mountpoint.clone(), asked.len());
        asked.push((entry.clone(), Owner::Hung));
        std::thread::spawn(move || {
            // Fails when nobody waits any more.
            let _ = sender.send((number, socket_of(&path)));
        });
    }
    drop(sender);
    while let Ok((number, answer)) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) {
        let (entry, owner) = &mut asked[number];
        *owner = entry.owner(answer);
    }
    Ok(asked)
}

/// What `job` returns, unless that takes longer than `patience`.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Fails when nobody waits any more.
        let _ = sender.send(job());
    });
    receiver.recv_timeout(patience).ok()
}

/// A Finesse mount and what is known of it.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its line of the mount table.
    pub(crate) entry: Entry,
    /// Where its daemon listens, or why that cannot be told.
    pub(crate) socket: Result<Vec<u8>, String>,
}

impl Found {
    /// Asks the daemon for its report.
    pub(crate) fn report(&self) -> Result<Report, String> {
        let socket = self.socket.as_ref().map_err(Clone::clone)?;
        ask(socket, PATIENCE).map_err(|error: NoReport| error.to_string())
    }
}

/// The Finesse mounts that are visible and wanted.
pub(crate) fn ours(wanted: impl Fn(&Entry) -> bool) -> Outcome<Vec<Found>> {
    let mut found = Vec::new();
    for (entry, owner) in asked(wanted, PATIENCE)? {
        let at = entry.mountpoint.display();
        let socket = match owner {
            Owner::Finesse(socket) => Ok(socket),
            Owner::Dead(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err("only the user who mounted it may look".to_owned())
            }
            Owner::Dead(error) => Err(format!(
                "the daemon is gone ({}); clear the mount with: finesse umount --force {at}",
                plain(&error)
            )),
            Owner::Hung if entry.is_ours_by_type() => {
                Err(format!("the daemon does not answer; end it, or: finesse umount --force {at}"))
            }
            Owner::Hung | Owner::Other => continue,
        };
        found.push(Found { entry, socket });
    }
    Ok(found)
}

/// The absolute path of a mount point without touching what is mounted there: only the directories above it
/// are resolved.
///
/// # Errors
/// A parent directory does not exist.
pub(crate) fn resolve(path: &Path) -> Outcome<PathBuf> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::new(format!("{}: {}", path.display(), plain(&error))))?;
    // A trailing `.`, `..` or nothing leaves no name to keep apart.
    let ends_in_name = !path.as_os_str().as_bytes().ends_with(b"/..") && path.as_os_str() != "..";
    let (Some(parent), Some(name), true) = (absolute.parent(), absolute.file_name(), ends_in_name) else {
        return absolute
            .canonicalize()
            .map_err(|error| Failure::new(format!("{}: {}", path.display(), plain(&error))));
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| Failure::new(format!("{}: {}", parent.display(), plain(&error))))?;
    Ok(parent.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes_and_tags() {
        let line = br"36 35 0:52 / /mnt/a\040b\134 rw,nosuid shared:5 master:1 - fuse.finesse /srv/x\011y rw";
        let entries = parse(line);
        assert_eq!(
            entries,
            [Entry {
                dev: (0, 52),
                root: "/".into(),
                mountpoint: "/mnt/a b\\".into(),
                kind: "fuse.finesse".into(),
                source: "/srv/x\ty".into(),
            }]
        );
        assert!(entries[0].is_fuse());
    }

    #[test]
    fn lines_that_are_no_mounts_are_left_out() {
        assert!(parse(b"\n36 35\nnonsense here too - x\n").is_empty());
    }

    #[test]
    fn fuse_control_and_block_mounts_are_not_fuse() {
        for kind in ["fusectl", "fuseblk", "ext4"] {
            let line = format!("1 2 0:3 / /x rw - {kind} none rw");
            assert!(!parse(line.as_bytes())[0].is_fuse(), "{kind}");
        }
    }

    #[test]
    fn the_last_component_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("link")).unwrap();
        let resolved = resolve(&dir.path().join("link")).unwrap();
        assert_eq!(resolved, dir.path().canonicalize().unwrap().join("link"));
        assert!(resolve(&dir.path().join("absent/x")).is_err());
    }

    #[test]
    fn a_job_that_takes_too_long_is_left_behind() {
        assert_eq!(within(Duration::from_secs(10), || 5), Some(5));
        let (_keep, receiver) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(5), move || receiver.recv()), None);
    }
}
