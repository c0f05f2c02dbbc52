//! The file system called as the bypass calls it, on a memory file system and on the disk's, with file handles and
//! with names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_getfl};

use super::*;
use crate::answer::{self, Created, Dirent, Entry, Opened};
use crate::{Credentials, FileAttr, FileType, OpenFlags, RequestId};

/// Calls a method with a local reply and waits for the answer.
macro_rules! ask {
    ($fs:expr, $method:ident ( $($argument:expr),* ), $reply:ident) => {{
        let (reply, answer) = $reply::local();
        $fs.$method($($argument,)* reply);
        answer.wait().map_err(|errno| errno.code())
    }};
}

pub(super) type Answer<T> = Result<T, i32>;

pub(super) struct Mirror {
    pub(super) fs: PassthroughFs,
    source: tempfile::TempDir,
    label: String,
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // The directory is removed next.
        become_root();
    }
}

fn options() -> Options {
    Options { cache: CachePolicy::Never, ..Options::default() }
}

pub(super) fn mirror_in(place: &str, options: Options) -> Mirror {
    let source = tempfile::Builder::new().prefix("finesse-pass-").tempdir_in(place).unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let label = format!(
        "{place}, file handles: {}, deferred unlinks: {}",
        options.file_handles, options.deferred_unlinks
    );
    rustix::process::umask(Mode::empty());
    Mirror { fs: PassthroughFs::new(source.path(), options).unwrap(), source, label }
}

/// Every combination of backing and way to find inodes.
fn mirrors() -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    for place in ["/dev/shm", "/tmp"] {
        for file_handles in [true, false] {
            for deferred_unlinks in [false, true] {
                mirrors.push(mirror_in(place, Options { file_handles, deferred_unlinks, ..options() }));
            }
        }
    }
    mirrors
}

pub(super) fn caller(uid: u32, gid: u32, groups: &[u32]) -> Request {
    let caps = if uid == 0 { u64::MAX } else { 0 };
    let client = Credentials { uid, gid, groups: groups.into(), pid: std::process::id(), caps };
    Request::for_client(RequestId(1), Arc::new(client))
}

pub(super) fn root() -> Request {
    caller(credentials::daemon_uid(), rustix::process::getegid().as_raw(), &[])
}

/// For what the test does on the source itself: the file system leaves a thread as its last operation needed
/// it.
pub(super) fn become_root() {
    credentials::become_daemon().unwrap();
}

pub(super) fn needs_root(what: &str) -> bool {
    let able = credentials::can_switch();
    if !able {
        eprintln!("needs root: {what}");
    }
    able
}

impl Mirror {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.source.path().join(name)
    }

    pub(super) fn lookup(&self, req: &Request, parent: u64, name: &str) -> Answer<FileAttr> {
        ask!(self.fs, lookup(req, INodeNo(parent), OsStr::new(name)), ReplyEntry)
            .map(|entry: Entry| entry.attr)
    }

    pub(super) fn id(&self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |parent, name| self.lookup(&root(), parent, name).unwrap().ino.0)
    }

    pub(super) fn getattr(&self, id: u64) -> Answer<FileAttr> {
        ask!(self.fs, getattr(&root(), INodeNo(id), None), ReplyAttr).map(|answer| answer.attr)
    }

    pub(super) fn open(&self, req: &Request, id: u64, flags: i32) -> Answer<Opened> {
        ask!(self.fs, open(req, INodeNo(id), OpenFlags(flags)), ReplyOpen)
    }

    pub(super) fn create(
        &self,
        req: &Request,
        parent: u64,
        name: &str,
        mode: u32,
        flags: i32,
    ) -> Answer<Created> {
        ask!(self.fs, create(req, INodeNo(parent), OsStr::new(name), mode, 0, flags), ReplyCreate)
    }

    fn mkdir(&self, req: &Request, parent: u64, name: &str, mode: u32, umask: u32) -> Answer<FileAttr> {
        ask!(self.fs, mkdir(req, INodeNo(parent), OsStr::new(name), mode, umask), ReplyEntry)
            .map(|entry: Entry| entry.attr)
    }

    pub(super) fn unlink(&self, req: &Request, parent: u64, name: &str) -> Answer<()> {
        ask!(self.fs, unlink(req, INodeNo(parent), OsStr::new(name)), ReplyEmpty)
    }

    pub(super) fn rmdir(&self, req: &Request, parent: u64, name: &str) -> Answer<()> {
        ask!(self.fs, rmdir(req, INodeNo(parent), OsStr::new(name)), ReplyEmpty)
    }

    pub(super) fn rename(&self, from: (u64, &str), to: (u64, &str), flags: RenameFlags) -> Answer<()> {
        ask!(
            self.fs,
            rename(&root(), INodeNo(from.0), OsStr::new(from.1), INodeNo(to.0), OsStr::new(to.1), flags),
            ReplyEmpty
        )
    }

    fn write(&self, req: &Request, fh: FileHandle, offset: u64, data: &[u8]) -> Answer<u32> {
        let flags = (WriteFlags::empty(), OpenFlags(0), None);
        ask!(self.fs, write(req, INodeNo(0), fh, offset, data, flags.0, flags.1, flags.2), ReplyWrite)
    }

    fn read(&self, fh: FileHandle, offset: u64, size: u32) -> Answer<Vec<u8>> {
        ask!(self.fs, read(&root(), INodeNo(0), fh, offset, size, OpenFlags(0), None), ReplyData)
    }

    fn release(&self, id: u64, fh: FileHandle) {
        ask!(self.fs, release(&root(), INodeNo(id), fh, OpenFlags(0), None, false), ReplyEmpty).unwrap();
    }

    pub(super) fn chmod(&self, req: &Request, id: u64, mode: u32) -> Answer<FileAttr> {
        ask!(
            self.fs,
            setattr(
                req,
                INodeNo(id),
                Some(mode),
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None,
                None
            ),
            ReplyAttr
        )
        .map(|answer| answer.attr)
    }

    /// All entries, read through replies of `size` bytes.
    pub(super) fn list(&self, id: u64, size: usize) -> Vec<Dirent> {
        let fh = ask!(self.fs, opendir(&root(), INodeNo(id), OpenFlags(0)), ReplyOpen).unwrap().fh;
        let mut all: Vec<Dirent> = Vec::new();
        loop {
            let (reply, answer) = ReplyDirectory::local(size);
            let offset = all.last().map_or(0, |entry| entry.offset);
            self.fs.readdir(&root(), INodeNo(id), fh, offset, reply);
            let more = answer.wait().unwrap().entries;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        ask!(self.fs, releasedir(&root(), INodeNo(id), fh, OpenFlags(0)), ReplyEmpty).unwrap();
        all
    }
}

fn errno_of<T>(result: io::Result<T>) -> Answer<T> {
    result.map_err(|error| error.raw_os_error().unwrap_or(0))
}

#[test]
fn a_source_that_is_no_directory_is_refused_with_advice() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = PassthroughFs::new(file.path(), Options::default()).unwrap_err();
    assert!(error.to_string().contains("is not a directory"), "{error}");
    assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
    let error = PassthroughFs::new(Path::new("/proc/nonexistent"), Options::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn inode_numbers_are_the_backings_own_and_the_root_is_1() {
    for mirror in mirrors() {
        fs::create_dir(mirror.path("d")).unwrap();
        fs::write(mirror.path("d/f"), b"hello").unwrap();
        assert_eq!(mirror.getattr(ROOT).unwrap().ino.0, ROOT);
        for name in ["d", "d/f"] {
            let id = mirror.id(name);
            let native = fs::metadata(mirror.path(name)).unwrap();
            assert_eq!(id, native.ino(), "{}", mirror.label);
            let attr = mirror.getattr(id).unwrap();
            assert_eq!((attr.ino.0, attr.size, attr.nlink), (id, native.size(), native.nlink() as u32));
            assert_eq!(u32::from(attr.perm), native.mode() & 0o7777);
            assert_eq!(attr.mtime, native.modified().unwrap());
        }
        let listed: BTreeSet<(String, u64)> = mirror
            .list(mirror.id("d"), 4096)
            .into_iter()
            .map(|entry| (entry.name.into_string().unwrap(), entry.ino.0))
            .collect();
        let expected = [(".", mirror.id("d")), ("..", ROOT), ("f", mirror.id("d/f"))];
        assert_eq!(listed, expected.map(|(name, id)| (name.to_owned(), id)).into(), "{}", mirror.label);
    }
}

#[test]
fn a_missing_name_is_enoent_or_a_negative_entry_as_the_policy_says() {
    let never = mirror_in("/dev/shm", options());
    assert_eq!(never.lookup(&root(), ROOT, "none").unwrap_err(), libc::ENOENT);
    let auto = mirror_in("/dev/shm", Options::default());
    assert_eq!(auto.lookup(&root(), ROOT, "none").unwrap().ino.0, 0);
}

#[test]
fn names_that_lead_elsewhere_never_reach_the_backing() {
    for mirror in mirrors() {
        for name in ["..", ".", "a/b", "../x"] {
            assert_eq!(mirror.lookup(&root(), ROOT, name).unwrap_err(), libc::EINVAL, "{name}");
            assert_eq!(mirror.unlink(&root(), ROOT, name).unwrap_err(), libc::EINVAL, "{name}");
        }
        let long = "x".repeat(256);
        assert_eq!(mirror.lookup(&root(), ROOT, &long).unwrap_err(), libc::ENAMETOOLONG);
    }
}

#[test]
fn errors_are_those_of_the_same_call_on_the_source() {
    for mirror in mirrors() {
        let native = tempfile::tempdir_in(mirror.source.path().parent().unwrap()).unwrap();
        for base in [mirror.source.path(), native.path()] {
            fs::create_dir_all(base.join("full/sub")).unwrap();
            fs::create_dir(base.join("empty")).unwrap();
            fs::write(base.join("file"), b"").unwrap();
        }
        let at = |name: &str| native.path().join(name);
        let me = root();
        let cases: Vec<(&str, Answer<()>, Answer<()>)> = vec![
            ("unlink dir", mirror.unlink(&me, ROOT, "full"), errno_of(fs::remove_file(at("full")))),
            ("unlink none", mirror.unlink(&me, ROOT, "none"), errno_of(fs::remove_file(at("none")))),
            ("rmdir full", mirror.rmdir(&me, ROOT, "full"), errno_of(fs::remove_dir(at("full")))),
            ("rmdir file", mirror.rmdir(&me, ROOT, "file"), errno_of(fs::remove_dir(at("file")))),
            (
                "mkdir there",
                mirror.mkdir(&me, ROOT, "file", 0o755, 0).map(drop),
                errno_of(fs::create_dir(at("file"))),
            ),
            (
                "rename none",
                mirror.rename((ROOT, "none"), (ROOT, "x"), RenameFlags::empty()),
                errno_of(fs::rename(at("none"), at("x"))),
            ),
            (
                "rename onto full",
                mirror.rename((ROOT, "empty"), (ROOT, "full"), RenameFlags::empty()),
                errno_of(fs::rename(at("empty"), at("full"))),
            ),
            (
                "rename file onto dir",
                mirror.rename((ROOT, "file"), (ROOT, "empty"), RenameFlags::empty()),
                errno_of(fs::rename(at("file"), at("empty"))),
            ),
            (
                "lookup in file",
                mirror.lookup(&me, mirror.id("file"), "x").map(drop),
                errno_of(fs::metadata(at("file/x")).map(drop)),
            ),
            ("unlink file", mirror.unlink(&me, ROOT, "file"), errno_of(fs::remove_file(at("file")))),
            ("rmdir empty", mirror.rmdir(&me, ROOT, "empty"), errno_of(fs::remove_dir(at("empty")))),
        ];
        for (case, ours, natives) in cases {
            assert_eq!(ours, natives, "{case} on {}", mirror.label);
        }
    }
}

#[test]
fn what_is_created_has_the_type_and_mode_that_was_asked_for() {
    for mirror in mirrors() {
        let made = |name: &str, mode| {
            ask!(mirror.fs, mknod(&root(), INodeNo(ROOT), OsStr::new(name), mode, 0o022, 0), ReplyEntry)
                .unwrap()
                .attr
        };
        assert_eq!(made("fifo", libc::S_IFIFO | 0o666).kind, FileType::NamedPipe);
        assert_eq!(made("sock", libc::S_IFSOCK | 0o777).perm, 0o755);
        assert_eq!(made("file", libc::S_IFREG | 0o4755).perm, 0o4755);
        assert!(fs::metadata(mirror.path("fifo")).unwrap().file_type().is_fifo());
        assert_eq!(mirror.mkdir(&root(), ROOT, "dir", 0o1777, 0o022).unwrap().perm, 0o1755);
        let link = ask!(
            mirror.fs,
            symlink(&root(), INodeNo(ROOT), OsStr::new("link"), Path::new("to/nowhere")),
            ReplyEntry
        )
        .unwrap();
        assert_eq!(link.attr.kind, FileType::Symlink);
        let target = ask!(mirror.fs, readlink(&root(), link.attr.ino), ReplyData).unwrap();
        assert_eq!(target, b"to/nowhere");
        let no_link = ask!(mirror.fs, readlink(&root(), INodeNo(mirror.id("file"))), ReplyData);
        assert_eq!(no_link.unwrap_err(), libc::EINVAL);
        let hard = ask!(
            mirror.fs,
            link(&root(), INodeNo(mirror.id("file")), INodeNo(ROOT), OsStr::new("hard")),
            ReplyEntry
        )
        .unwrap();
        assert_eq!((hard.attr.ino.0, hard.attr.nlink), (mirror.id("file"), 2));
    }
}

#[test]
fn a_granted_descriptor_has_the_access_mode_and_flags_of_its_open() {
    for mirror in mirrors() {
        fs::write(mirror.path("f"), b"contents").unwrap();
        let id = mirror.id("f");
        for flags in [
            libc::O_RDONLY,
            libc::O_WRONLY | libc::O_APPEND,
            libc::O_RDWR,
            libc::O_RDWR | libc::O_NONBLOCK | libc::O_SYNC,
        ] {
            let opened = mirror.open(&root(), id, flags | libc::O_LARGEFILE).unwrap();
            assert!(opened.grantable);
            let grant: OwnedFd = mirror.fs.grant(&root(), INodeNo(id), opened.fh).unwrap();
            let got = fcntl_getfl(&grant).unwrap() - OFlags::LARGEFILE;
            assert_eq!(got.bits() as i32, flags, "{}", mirror.label);
            mirror.release(id, opened.fh);
        }
        fs::create_dir(mirror.path("d")).unwrap();
        let dir = mirror.id("d");
        assert!(!mirror.open(&root(), dir, libc::O_RDONLY).unwrap().grantable);
        let fifo = ask!(
            mirror.fs,
            mknod(&root(), INodeNo(ROOT), OsStr::new("p"), libc::S_IFIFO | 0o666, 0, 0),
            ReplyEntry
        )
        .unwrap();
        // Must not block for want of a writer.
        assert!(!mirror.open(&root(), fifo.attr.ino.0, libc::O_RDONLY).unwrap().grantable);
        let created = mirror.create(&root(), ROOT, "new", 0o640, libc::O_RDWR | libc::O_EXCL).unwrap();
        let new = created.entry.attr.ino;
        let grant = mirror.fs.grant(&root(), new, created.opened.fh).unwrap();
        assert_eq!((fcntl_getfl(&grant).unwrap() - OFlags::LARGEFILE).bits() as i32, libc::O_RDWR);
        let again = mirror.create(&root(), ROOT, "new", 0o640, libc::O_RDWR | libc::O_EXCL);
        assert_eq!(again.unwrap_err(), libc::EEXIST);
    }
}

#[test]
fn a_deleted_file_that_is_open_is_still_there() {
    for mirror in mirrors() {
        let created = mirror.create(&root(), ROOT, "f", 0o600, libc::O_RDWR).unwrap();
        let (id, fh) = (created.entry.attr.ino.0, created.opened.fh);
        mirror.write(&root(), fh, 0, b"still here").unwrap();
        mirror.unlink(&root(), ROOT, "f").unwrap();
        assert_eq!(mirror.read(fh, 0, 100).unwrap(), b"still here", "{}", mirror.label);
        let attr = mirror.getattr(id).unwrap();
        assert_eq!((attr.size, attr.nlink), (10, 0), "{}", mirror.label);
        assert_eq!(mirror.chmod(&root(), id, 0o644).unwrap().perm, 0o644);
        mirror.release(id, fh);
        assert_eq!(mirror.getattr(id).unwrap_err(), libc::ESTALE, "{}", mirror.label);
        assert_eq!(mirror.read(fh, 0, 100).unwrap_err(), libc::EBADF);
    }
}

#[test]
fn inodes_are_found_again_after_their_directories_moved() {
    for mirror in mirrors() {
        fs::create_dir_all(mirror.path("a/b/c")).unwrap();
        fs::create_dir(mirror.path("z")).unwrap();
        fs::write(mirror.path("a/b/c/f"), b"x").unwrap();
        let (a, f) = (mirror.id("a"), mirror.id("a/b/c/f"));
        let z = mirror.id("z");
        mirror.rename((a, "b"), (z, "moved"), RenameFlags::empty()).unwrap();
        mirror.fs.directories.clear();
        assert_eq!(mirror.getattr(f).unwrap().size, 1, "{}", mirror.label);
        mirror.rename((ROOT, "a"), (ROOT, "z"), RenameFlags::RENAME_EXCHANGE).unwrap();
        mirror.fs.directories.clear();
        assert_eq!(mirror.getattr(f).unwrap().size, 1, "{}", mirror.label);
        let there = mirror.rename((ROOT, "a"), (ROOT, "z"), RenameFlags::RENAME_NOREPLACE);
        assert_eq!(there.unwrap_err(), libc::EEXIST);
    }
}

#[test]
fn an_inode_that_took_over_a_name_is_never_mistaken_for_its_predecessor() {
    for mirror in mirrors() {
        fs::write(mirror.path("f"), b"old").unwrap();
        let old = ask!(mirror.fs, lookup(&root(), INodeNo(ROOT), OsStr::new("f")), ReplyEntry).unwrap();
        fs::remove_file(mirror.path("f")).unwrap();
        fs::write(mirror.path("f"), b"newer").unwrap();
        // By then the old inode is gone; whether its number was used again is up to the backing.
        let stale = mirror.getattr(old.attr.ino.0);
        assert!(stale == Err(libc::ESTALE) || stale.unwrap().size == 5, "{}", mirror.label);
        let new = ask!(mirror.fs, lookup(&root(), INodeNo(ROOT), OsStr::new("f")), ReplyEntry).unwrap();
        assert_eq!(mirror.getattr(new.attr.ino.0).unwrap().size, 5, "{}", mirror.label);
    }
}

#[test]
fn created_inodes_of_the_same_number_differ_in_generation() {
    if !needs_root("file handles") {
        return;
    }
    let mirror = mirror_in("/tmp", options());
    let mut seen = BTreeSet::new();
    for _ in 0..20 {
        let created = mirror.create(&root(), ROOT, "f", 0o600, libc::O_RDWR).unwrap();
        let number = created.entry.attr.ino.0;
        assert!(seen.insert((number, created.entry.generation.0)), "inode {number}");
        mirror.release(number, created.opened.fh);
        mirror.unlink(&root(), ROOT, "f").unwrap();
    }
}

#[test]
fn a_listing_in_small_pieces_is_complete_and_has_nothing_twice() {
    for mirror in mirrors() {
        let names: BTreeSet<String> = (0..500).map(|n| format!("file-{n:04}")).collect();
        for name in &names {
            fs::write(mirror.path(name), b"").unwrap();
        }
        for size in [200, 4096, 1 << 20] {
            let entries = mirror.list(ROOT, size);
            assert_eq!(entries.len(), names.len() + 2, "{size} bytes, {}", mirror.label);
            let listed: BTreeSet<String> =
                entries.into_iter().map(|entry| entry.name.into_string().unwrap()).collect();
            assert!(listed.is_superset(&names));
        }
        let known = mirror.fs.known_inodes();
        let fh = ask!(mirror.fs, opendir(&root(), INodeNo(ROOT), OpenFlags(0)), ReplyOpen).unwrap().fh;
        let mut entries = Vec::new();
        let mut offset = 0;
        loop {
            let (reply, answer) = ReplyDirectoryPlus::local(4096);
            mirror.fs.readdirplus(&root(), INodeNo(ROOT), fh, offset, reply);
            let more = answer.wait().unwrap().entries;
            let Some(last) = more.last() else { break };
            offset = last.offset;
            entries.extend(more);
        }
        assert_eq!(entries.len(), names.len() + 2);
        assert_eq!(mirror.fs.known_inodes(), known + names.len());
        for entry in entries.iter().filter(|entry| entry.name != "." && entry.name != "..") {
            mirror.fs.forget(&root(), entry.entry.attr.ino, 1);
        }
        assert_eq!(mirror.fs.known_inodes(), known, "an entry that did not fit kept its reference");
    }
}

#[test]
fn what_a_caller_may_do_is_what_its_user_and_groups_may_do() {
    if !needs_root("acting as other users") {
        return;
    }
    for mirror in mirrors() {
        let (alice, bob) = (caller(4001, 4001, &[]), caller(4002, 4002, &[4100]));
        become_root();
        fs::create_dir(mirror.path("private")).unwrap();
        fs::set_permissions(mirror.path("private"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(mirror.path("private/f"), b"secret").unwrap();
        let private = mirror.id("private");
        let secret = mirror.id("private/f");
        assert_eq!(mirror.lookup(&alice, private, "f").unwrap_err(), libc::EACCES, "{}", mirror.label);
        assert_eq!(mirror.unlink(&alice, private, "f").unwrap_err(), libc::EACCES);
        assert_eq!(mirror.mkdir(&alice, private, "x", 0o755, 0).unwrap_err(), libc::EACCES);
        assert_eq!(mirror.chmod(&alice, secret, 0o777).unwrap_err(), libc::EPERM);
        become_root();
        fs::set_permissions(mirror.path("private/f"), fs::Permissions::from_mode(0o640)).unwrap();
        chown(mirror.path("private/f"), Some(0), Some(4100)).unwrap();
        assert_eq!(mirror.open(&alice, secret, libc::O_RDONLY).unwrap_err(), libc::EACCES);
        let opened = mirror.open(&bob, secret, libc::O_RDONLY).unwrap();
        mirror.release(secret, opened.fh);
        assert_eq!(mirror.open(&bob, secret, libc::O_RDWR).unwrap_err(), libc::EACCES);
        // And the thread is root's again as soon as root asks.
        assert!(mirror.lookup(&root(), private, "f").is_ok());

        become_root();
        fs::create_dir(mirror.path("shared")).unwrap();
        chown(mirror.path("shared"), Some(0), Some(4100)).unwrap();
        fs::set_permissions(mirror.path("shared"), fs::Permissions::from_mode(0o2777)).unwrap();
        let shared = mirror.id("shared");
        let made = mirror.mkdir(&alice, shared, "d", 0o755, 0).unwrap();
        assert_eq!((made.uid, made.gid, made.perm), (4001, 4100, 0o2755), "{}", mirror.label);
        let created = mirror.create(&alice, shared, "f", 0o644, libc::O_RDWR).unwrap();
        assert_eq!((created.entry.attr.uid, created.entry.attr.gid), (4001, 4100));
        let root_made = mirror.create(&caller(0, 77, &[]), ROOT, "g", 0o644, libc::O_RDWR).unwrap();
        assert_eq!((root_made.entry.attr.uid, root_made.entry.attr.gid), (0, 77));
        // Sticky: only the owner removes.
        become_root();
        fs::set_permissions(mirror.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(mirror.unlink(&bob, shared, "f").unwrap_err(), libc::EPERM);
        mirror.unlink(&alice, shared, "f").unwrap();
    }
}

#[test]
fn a_write_by_somebody_else_takes_the_set_user_id_bit_away() {
    if !needs_root("acting as other users") {
        return;
    }
    for mirror in mirrors() {
        let alice = caller(4001, 4001, &[]);
        become_root();
        fs::write(mirror.path("f"), b"x").unwrap();
        fs::set_permissions(mirror.path("f"), fs::Permissions::from_mode(0o6777)).unwrap();
        let id = mirror.id("f");
        let opened = mirror.open(&root(), id, libc::O_RDWR).unwrap();
        mirror.write(&root(), opened.fh, 0, b"y").unwrap();
        assert_eq!(mirror.getattr(id).unwrap().perm, 0o6777, "root keeps it: {}", mirror.label);
        mirror.write(&alice, opened.fh, 0, b"y").unwrap();
        assert_eq!(mirror.getattr(id).unwrap().perm, 0o777, "{}", mirror.label);
    }
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    for mirror in mirrors() {
        // Version 2; user rwx, group rwx, mask rwx, other r-x, as acl(5) numbers them.
        let entries: [(u16, u16); 4] = [(0x01, 7), (0x04, 7), (0x10, 7), (0x20, 5)];
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions) in entries {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(u32::MAX.to_le_bytes());
        }
        let id = mirror.mkdir(&root(), ROOT, "d", 0o755, 0).unwrap().ino;
        let name = OsStr::new("system.posix_acl_default");
        ask!(mirror.fs, setxattr(&root(), id, name, &acl, 0, 0), ReplyEmpty).unwrap();
        let inside = mirror.mkdir(&root(), id.0, "inside", 0o777, 0o077).unwrap();
        assert_eq!(inside.perm, 0o775, "{}", mirror.label);
        let outside = mirror.mkdir(&root(), ROOT, "outside", 0o777, 0o077).unwrap();
        assert_eq!(outside.perm, 0o700, "{}", mirror.label);
    }
}

#[test]
fn extended_attributes_of_every_kind_of_inode() {
    if !needs_root("trusted attributes") {
        return;
    }
    for mirror in mirrors() {
        fs::write(mirror.path("f"), b"").unwrap();
        std::os::unix::fs::symlink("nowhere", mirror.path("l")).unwrap();
        rustix::fs::mknodat(CWD, mirror.path("p"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        for name in ["f", "l", "p"] {
            let id = INodeNo(mirror.id(name));
            let key = OsStr::new("trusted.finesse");
            ask!(mirror.fs, setxattr(&root(), id, key, b"value", 0, 0), ReplyEmpty).unwrap();
            let get = |size| match ask!(mirror.fs, getxattr(&root(), id, key, size), ReplyXattr) {
                Ok(answer::Xattr::Nothing(answer, _)) => {
                    answer.map(|()| Vec::new()).map_err(|errno| errno.code())
                }
                Ok(answer::Xattr::Size(size)) => Ok(vec![0; size as usize]),
                Ok(answer::Xattr::Data(data)) => Ok(data),
                Err(errno) => Err(errno),
            };
            assert_eq!(get(0).unwrap().len(), 5, "{name} on {}", mirror.label);
            assert_eq!(get(5).unwrap(), b"value");
            assert_eq!(get(4).unwrap_err(), libc::ERANGE);
            let list = ask!(mirror.fs, listxattr(&root(), id, 1000), ReplyXattr).unwrap();
            assert!(matches!(list, answer::Xattr::Data(names) if names == b"trusted.finesse\0"));
            // Others are not told of it: the length is asked for, and so no list is the answer.
            let length = ask!(mirror.fs, listxattr(&caller(65534, 65534, &[]), id, 0), ReplyXattr).unwrap();
            assert!(matches!(length, answer::Xattr::Size(0)), "{name}: {length:?}");
            let create = libc::XATTR_CREATE;
            let again = ask!(mirror.fs, setxattr(&root(), id, key, b"v", create, 0), ReplyEmpty);
            assert_eq!(again.unwrap_err(), libc::EEXIST);
            ask!(mirror.fs, removexattr(&root(), id, key), ReplyEmpty).unwrap();
            assert_eq!(get(5).unwrap_err(), libc::ENODATA);
            let length = ask!(mirror.fs, listxattr(&caller(65534, 65534, &[]), id, 0), ReplyXattr).unwrap();
            let nothing = match name {
                "p" => matches!(length, answer::Xattr::Size(0)),
                _ => matches!(length, answer::Xattr::Nothing(Ok(()), _)),
            };
            assert!(nothing, "{name}: {length:?}");
        }
    }
}

#[test]
fn holes_are_found_and_ranges_are_copied() {
    for mirror in mirrors() {
        let created = mirror.create(&root(), ROOT, "f", 0o600, libc::O_RDWR).unwrap();
        let (id, fh) = (created.entry.attr.ino, created.opened.fh);
        mirror.write(&root(), fh, 1 << 20, b"data").unwrap();
        let seek = |offset, whence| ask!(mirror.fs, lseek(&root(), id, fh, offset, whence), ReplyLseek);
        assert_eq!(seek(0, libc::SEEK_DATA).unwrap(), 1 << 20, "{}", mirror.label);
        assert_eq!(seek(0, libc::SEEK_HOLE).unwrap(), 0);
        assert_eq!(seek(1 << 30, libc::SEEK_DATA).unwrap_err(), libc::ENXIO);
        let out = mirror.create(&root(), ROOT, "g", 0o600, libc::O_RDWR).unwrap();
        let copied = ask!(
            mirror.fs,
            copy_file_range(
                &root(),
                id,
                fh,
                1 << 20,
                out.entry.attr.ino,
                out.opened.fh,
                3,
                100,
                CopyFileRangeFlags::empty()
            ),
            ReplyWrite
        );
        assert_eq!(copied.unwrap(), 4);
        assert_eq!(mirror.read(out.opened.fh, 0, 100).unwrap(), b"\0\0\0data");
        ask!(mirror.fs, fallocate(&root(), id, fh, 0, 8192, libc::FALLOC_FL_KEEP_SIZE), ReplyEmpty).unwrap();
        assert_eq!(mirror.getattr(id.0).unwrap().size, (1 << 20) + 4);
    }
}

#[test]
fn only_known_commands_are_passed_to_ioctl() {
    let mirror = mirror_in("/tmp", options());
    let created = mirror.create(&root(), ROOT, "f", 0o600, libc::O_RDWR).unwrap();
    let (id, fh) = (created.entry.attr.ino, created.opened.fh);
    let control = |request: u32, input: &[u8], room| {
        ask!(mirror.fs, ioctl(&root(), id, fh, IoctlFlags::empty(), request, input, room), ReplyIoctl)
    };
    // FIONREAD and FITRIM.
    assert_eq!(control(0x541b, &[], 4).unwrap_err(), libc::ENOTTY);
    assert_eq!(control(0xc018_5879, &[0; 24], 24).unwrap_err(), libc::ENOTTY);
    let flags = control(0x8008_6601, &[], 8).unwrap();
    assert_eq!((flags.result, flags.data.len()), (0, 8));
    const NODUMP: u8 = 0x40;
    let mut wanted = flags.data.clone();
    wanted[0] |= NODUMP;
    control(0x4008_6602, &wanted, 0).unwrap();
    assert_eq!(control(0x8008_6601, &[], 8).unwrap().data[0] & NODUMP, NODUMP);
}

#[test]
fn locks_of_different_owners_exclude_each_other_and_end_with_a_flush() {
    for mirror in mirrors() {
        let created = mirror.create(&root(), ROOT, "f", 0o600, libc::O_RDWR).unwrap();
        let (id, fh) = (created.entry.attr.ino, created.opened.fh);
        let (one, two) = (LockOwner(1), LockOwner(2));
        let set = |owner, start, end, kind| {
            ask!(
                mirror.fs,
                setlk(&root(), id, fh, owner, start, end, kind, owner.0 as u32, false),
                ReplyEmpty
            )
        };
        let test = |owner, start, end, kind| {
            ask!(mirror.fs, getlk(&root(), id, fh, owner, start, end, kind, 0), ReplyLock).unwrap()
        };
        set(one, 10, 19, libc::F_WRLCK).unwrap();
        set(one, 15, 29, libc::F_WRLCK).unwrap();
        assert_eq!(set(two, 19, 19, libc::F_RDLCK).unwrap_err(), libc::EAGAIN, "{}", mirror.label);
        set(two, 30, i64::MAX as u64, libc::F_WRLCK).unwrap();
        let found = test(two, 0, 12, libc::F_RDLCK);
        assert_eq!((found.start, found.end, found.typ, found.pid), (10, 29, libc::F_WRLCK, 1));
        assert_eq!(test(one, 0, 29, libc::F_WRLCK).typ, libc::F_UNLCK);
        // Programs that use the source itself are kept out, too.
        let outside = fs::File::options().write(true).open(mirror.path("f")).unwrap();
        let lock = FileLock { kind: libc::F_WRLCK, start: 0, end: 100 };
        assert_eq!(sys::set_lock(outside.as_fd(), lock), Err(rustix::io::Errno::AGAIN));

        // A request that waits is answered when the lock is free.
        let (reply, answer) = ReplyEmpty::local();
        mirror.fs.setlk(&root(), id, fh, two, 0, 29, libc::F_WRLCK, 2, true, reply);
        ask!(mirror.fs, flush(&root(), id, fh, one), ReplyEmpty).unwrap();
        answer.wait().unwrap();
        assert_eq!(set(one, 10, 10, libc::F_WRLCK).unwrap_err(), libc::EAGAIN);
        ask!(mirror.fs, flush(&root(), id, fh, two), ReplyEmpty).unwrap();
        sys::set_lock(outside.as_fd(), lock).unwrap();
    }
}

#[test]
fn many_inodes_are_known_without_holding_them_open() {
    for file_handles in [true, false] {
        let mirror =
            mirror_in("/dev/shm", Options { file_handles, open_directories: 32, ..Options::default() });
        for dir in 0..200 {
            let path = mirror.path(&format!("d{dir}"));
            fs::create_dir(&path).unwrap();
            for file in 0..50 {
                fs::write(path.join(format!("f{file}")), b"").unwrap();
            }
        }
        let mut ids = Vec::new();
        for dir in 0..200 {
            let parent = mirror.id(&format!("d{dir}"));
            for file in 0..50 {
                ids.push(mirror.lookup(&root(), parent, &format!("f{file}")).unwrap().ino.0);
            }
        }
        assert_eq!(mirror.fs.known_inodes(), 200 * 51);
        assert!(mirror.fs.bytes_per_inode() < 250, "{}", mirror.fs.bytes_per_inode());
        let source = mirror.source.path().canonicalize().unwrap();
        let open = fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.starts_with(&source))
            .count();
        assert!(open <= 34, "{open} descriptors");
        for id in ids {
            assert!(mirror.getattr(id).is_ok());
        }
    }
}

#[test]
fn a_daemon_that_cannot_act_as_others_serves_only_its_owner() {
    let mut mirror = mirror_in("/dev/shm", options());
    mirror.fs.can_switch = false;
    mirror.fs.options.owner_uid = 4001;
    let (owner, other) = (caller(4001, 4001, &[]), caller(4002, 4002, &[]));
    fs::write(mirror.path("f"), b"").unwrap();
    assert!(mirror.lookup(&owner, ROOT, "f").is_ok());
    assert_eq!(mirror.lookup(&other, ROOT, "f").unwrap_err(), libc::EACCES);
    assert_eq!(mirror.unlink(&other, ROOT, "f").unwrap_err(), libc::EACCES);
}

#[test]
fn closing_is_not_reported_of_files_that_are_read_where_it_ends_no_lock() {
    let unreported = |grants, cache, flags| {
        let mirror = mirror_in("/tmp", Options { grants, cache, ..Options::default() });
        mirror.fs.open_flags(flags).contains(FopenFlags::FOPEN_NOFLUSH)
    };
    assert!(unreported(Grants::Never, CachePolicy::Always, libc::O_RDONLY));
    assert!(!unreported(Grants::Never, CachePolicy::Always, libc::O_RDWR), "a write may fail late");
    assert!(!unreported(Grants::Never, CachePolicy::Auto, libc::O_RDONLY), "others may lock the source");
    assert!(!unreported(Grants::Large, CachePolicy::Always, libc::O_RDONLY), "clients lock the source");
}
