//! Unlinks of names that are known by listing: as those of names that are looked at, whatever happens to the names meanwhile.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::atomic::AtomicBool;

use rustix::fs::IFlags;

use super::super::ids::ROOT;
use super::super::tests::{Mirror, become_root, caller, mirror_in, needs_root, root};
use super::super::{CachePolicy, Grants, Options};
use super::listing::{LISTS_MAX, LOOKS, MEMORY_MAX, NAMES_MAX};
use super::*;
use crate::RenameFlags;

/// Enough unlinks for the directory to be listed, whatever order it has.
const BEFORE: usize = 100;

fn options() -> Options {
    Options {
        cache: CachePolicy::Always,
        grants: Grants::Never,
        deferred_unlinks: true,
        ..Options::default()
    }
}

/// On a memory file system and on the disk's, by handle and by name.
fn mirrors() -> impl Iterator<Item = Mirror> {
    [("/dev/shm", true), ("/tmp", true), ("/dev/shm", false)]
        .into_iter()
        .map(|(place, file_handles)| mirror_in(place, Options { file_handles, ..options() }))
}

fn fill(mirror: &Mirror, directory: &str, files: usize) -> u64 {
    become_root();
    fs::create_dir(mirror.path(directory)).unwrap();
    for file in 0..files {
        fs::write(mirror.path(&format!("{directory}/f{file}")), file.to_string()).unwrap();
    }
    mirror.id(directory)
}

fn unlink(mirror: &Mirror, directory: u64, files: std::ops::Range<usize>) {
    for file in files {
        mirror.unlink(&root(), directory, &format!("f{file}")).unwrap();
    }
}

fn deferred(mirror: &Mirror) -> &Deferred {
    mirror.fs.deferred.as_ref().unwrap()
}

fn looked_at(mirror: &Mirror) -> u64 {
    deferred(mirror).looked_at()
}

/// Has everything done, and says what is left in a directory.
fn left(mirror: &Mirror, directory: &str) -> Vec<String> {
    deferred(mirror).settle_all();
    become_root();
    let entries = fs::read_dir(mirror.path(directory)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn failed(mirror: &Mirror) -> u64 {
    deferred(mirror).counts().failed
}

/// A directory of 1000 files that is listed, and of which the first [`BEFORE`] are gone.
fn listed(mirror: &Mirror) -> u64 {
    let directory = fill(mirror, "d", 1000);
    unlink(mirror, directory, 0..BEFORE);
    let known = deferred(mirror).shared.known(directory).unwrap();
    // To its end, by which every name is listed.
    for file in 0..1000 {
        let name = format!("absent{file}");
        if known.inner.lock().names.get(b"f999").is_some() {
            break;
        }
        assert_eq!(mirror.unlink(&root(), directory, &name).unwrap_err(), libc::ENOENT);
    }
    directory
}

/// That an unlink of the name makes no look.
fn is_listed(mirror: &Mirror, directory: u64, name: &str) -> bool {
    let known = deferred(mirror).shared.known(directory).unwrap();
    matches!(known.inner.lock().names.get(name.as_bytes()), Some(Known::Listed(_)))
}

#[test]
fn a_directory_that_is_looked_up_is_as_after_all_that_was_acknowledged() {
    for mirror in mirrors() {
        let directory = fill(&mirror, "d", 1000);
        for file in 0..300 {
            unlink(&mirror, directory, file..file + 1);
            let entry = mirror.fs.lookup_entry(&root(), ROOT, OsStr::new("d")).unwrap();
            let now = stat_of(fs::File::open(mirror.path("d")).unwrap()).unwrap();
            let changed = entry.attr.ctime.duration_since(std::time::UNIX_EPOCH).unwrap();
            let expected = (now.stx_size, now.stx_ctime.tv_sec.cast_unsigned(), now.stx_ctime.tv_nsec);
            assert_eq!(
                (entry.attr.size, changed.as_secs(), changed.subsec_nanos()),
                expected,
                "after {file}"
            );
        }
    }
}

#[test]
fn a_directory_that_was_removed_is_not_kept() {
    for mirror in mirrors() {
        for directory in 0..20 {
            let name = format!("d{directory}");
            let id = fill(&mirror, &name, 30);
            unlink(&mirror, id, 0..30);
            mirror.rmdir(&root(), ROOT, &name).unwrap();
        }
        assert_eq!(deferred(&mirror).shared.directories.lock().known.len(), 0);
        assert_eq!((failed(&mirror), deferred(&mirror).counts().waiting), (0, 0));
    }
}

#[test]
fn directories_in_which_nothing_waits_make_room() {
    let mirror = mirror_in("/dev/shm", options());
    for directory in 0..IDLE_DIRECTORIES + 10 {
        let id = fill(&mirror, &format!("d{directory}"), 1);
        unlink(&mirror, id, 0..1);
        deferred(&mirror).settle_all();
    }
    let known = deferred(&mirror).shared.directories.lock().known.len();
    assert!(known <= 10, "{known}");
}

#[test]
fn names_known_by_listing_are_not_looked_at() {
    for mirror in mirrors() {
        let directory = fill(&mirror, "d", 1000);
        unlink(&mirror, directory, 0..1000);
        let looks = looked_at(&mirror);
        assert!((LOOKS as u64..100).contains(&looks), "{looks} looks");
        assert!(left(&mirror, "d").is_empty());
        assert_eq!((failed(&mirror), deferred(&mirror).counts().done), (0, 1000));
        // And the same directory again.
        become_root();
        (0..1000).for_each(|file| fs::write(mirror.path(&format!("d/f{file}")), "").unwrap());
        unlink(&mirror, directory, 0..1000);
        assert!(looked_at(&mirror) < looks + 100);
        assert!(left(&mirror, "d").is_empty());
    }
}

#[test]
fn nothing_is_believed_without_a_time_to_live() {
    let mirror = mirror_in("/dev/shm", Options { cache: CachePolicy::Never, ..options() });
    let directory = fill(&mirror, "d", 300);
    unlink(&mirror, directory, 0..300);
    assert_eq!(looked_at(&mirror), 300);
    assert!(left(&mirror, "d").is_empty());
}

#[test]
fn a_list_is_not_believed_longer_than_anything_else() {
    let mirror = mirror_in("/dev/shm", Options { cache: CachePolicy::Auto, ..options() });
    let directory = listed(&mirror);
    assert!(is_listed(&mirror, directory, "f999"));
    std::thread::sleep(CachePolicy::Auto.ttl() + Duration::from_millis(20));
    become_root();
    fs::remove_file(mirror.path("d/f999")).unwrap();
    assert_eq!(mirror.unlink(&root(), directory, "f999").unwrap_err(), libc::ENOENT);
}

#[test]
fn names_that_change_after_the_listing_are_looked_at() {
    for mirror in mirrors() {
        let directory = listed(&mirror);
        // Removed and made again.
        mirror.unlink(&root(), directory, "f500").unwrap();
        assert_eq!(mirror.unlink(&root(), directory, "f500").unwrap_err(), libc::ENOENT);
        mirror.create(&root(), directory, "f500", 0o644, libc::O_WRONLY).unwrap();
        assert!(!is_listed(&mirror, directory, "f500"));
        let looks = looked_at(&mirror);
        mirror.unlink(&root(), directory, "f500").unwrap();
        assert_eq!(looked_at(&mirror), looks + 1);
        assert_eq!(mirror.unlink(&root(), directory, "f500").unwrap_err(), libc::ENOENT);
        // Replaced, while it was listed, and moved away.
        assert!(is_listed(&mirror, directory, "f600") && is_listed(&mirror, directory, "f601"));
        mirror.rename((directory, "f600"), (directory, "f601"), RenameFlags::empty()).unwrap();
        assert_eq!(mirror.unlink(&root(), directory, "f600").unwrap_err(), libc::ENOENT);
        become_root();
        assert_eq!(fs::read(mirror.path("d/f601")).unwrap(), b"600");
        mirror.unlink(&root(), directory, "f601").unwrap();
        // Exchanged.
        mirror.rename((directory, "f700"), (directory, "f701"), RenameFlags::RENAME_EXCHANGE).unwrap();
        mirror.unlink(&root(), directory, "f700").unwrap();
        deferred(&mirror).settle_all();
        become_root();
        assert_eq!(fs::read(mirror.path("d/f701")).unwrap(), b"700");
        // Replaced from elsewhere, and with something else.
        fs::write(mirror.path("new"), "new").unwrap();
        mirror.rename((ROOT, "new"), (directory, "f800"), RenameFlags::empty()).unwrap();
        mirror.unlink(&root(), directory, "f800").unwrap();
        mirror.unlink(&root(), directory, "f801").unwrap();
        mirror.fs.make_directory(&root(), directory, OsStr::new("f801"), 0o755, 0).unwrap();
        assert_eq!(mirror.unlink(&root(), directory, "f801").unwrap_err(), libc::EISDIR);

        let left = left(&mirror, "d");
        for gone in ["f500", "f600", "f601", "f700", "f800"] {
            assert!(!left.iter().any(|name| name == gone), "{gone} is there");
        }
        assert_eq!(left.len(), 1000 - BEFORE - 5);
        assert_eq!(failed(&mirror), 0);
    }
}

#[test]
fn files_with_other_names_lose_one_at_once() {
    for mirror in mirrors() {
        become_root();
        fs::create_dir(mirror.path("l")).unwrap();
        let directory = listed(&mirror);
        let other = mirror.id("l");
        let file = mirror.id("d/f900");
        mirror.fs.make_link(&root(), file, other, OsStr::new("link")).unwrap();
        assert!(is_listed(&mirror, directory, "f900"), "another name takes nothing from this one");
        assert_eq!(mirror.getattr(file).unwrap().nlink, 2);
        mirror.unlink(&root(), directory, "f900").unwrap();
        assert_eq!(mirror.getattr(file).unwrap().nlink, 1);
        // Two names of a file in one list, both removed.
        become_root();
        fs::create_dir(mirror.path("two")).unwrap();
        for file in 0..200 {
            fs::write(mirror.path(&format!("two/f{file}")), "").unwrap();
            fs::hard_link(mirror.path(&format!("two/f{file}")), mirror.path(&format!("two/g{file}")))
                .unwrap();
        }
        let two = mirror.id("two");
        for file in 0..200 {
            mirror.unlink(&root(), two, &format!("f{file}")).unwrap();
            mirror.unlink(&root(), two, &format!("g{file}")).unwrap();
        }
        assert!(left(&mirror, "two").is_empty());
        assert_eq!(failed(&mirror), 0);
    }
}

/// Who has a descriptor of the source's file sees how many links it has.
#[test]
fn files_that_clients_have_are_removed_at_once() {
    let mirror = mirror_in("/dev/shm", Options { grants: Grants::Always, ..options() });
    let directory = listed(&mirror);
    let file = mirror.id("d/f900");
    mirror.open(&root(), file, libc::O_RDONLY).unwrap();
    assert!(is_listed(&mirror, directory, "f900"));
    mirror.unlink(&root(), directory, "f900").unwrap();
    become_root();
    assert!(!mirror.path("d/f900").exists());
}

#[test]
fn who_may_remove_is_asked_again_after_a_change_of_permissions() {
    if !needs_root("who_may_remove_is_asked_again_after_a_change_of_permissions") {
        return;
    }
    let mirror = mirror_in("/dev/shm", options());
    let directory = fill(&mirror, "d", 1000);
    chown(mirror.path("d"), Some(4001), Some(4001)).unwrap();
    fs::set_permissions(mirror.path("d"), fs::Permissions::from_mode(0o755)).unwrap();
    let (alice, bob) = (caller(4001, 4001, &[]), caller(4002, 4002, &[]));
    (0..100).for_each(|file| mirror.unlink(&alice, directory, &format!("f{file}")).unwrap());
    // What alice knows is not bob's to use.
    assert_eq!(mirror.unlink(&bob, directory, "f500").unwrap_err(), libc::EACCES);
    mirror.chmod(&alice, directory, 0o555).unwrap();
    assert_eq!(mirror.unlink(&alice, directory, "f500").unwrap_err(), libc::EACCES);
    mirror.chmod(&alice, directory, 0o1777).unwrap();
    assert_eq!(mirror.unlink(&bob, directory, "f500").unwrap_err(), libc::EPERM);
    (100..1000).for_each(|file| mirror.unlink(&alice, directory, &format!("f{file}")).unwrap());
    assert!(left(&mirror, "d").is_empty());
    assert_eq!(failed(&mirror), 0);
}

#[test]
fn lists_are_bounded() {
    let mirror = mirror_in("/dev/shm", options());
    // One directory's names.
    let directory = fill(&mirror, "large", 2 * NAMES_MAX);
    let order: Vec<_> = fs::read_dir(mirror.path("large")).unwrap().map(|entry| entry.unwrap()).collect();
    for name in order.iter().map(|entry| entry.file_name()) {
        mirror.unlink(&root(), directory, name.to_str().unwrap()).unwrap();
    }
    let looks = looked_at(&mirror);
    assert!(looks < 200, "{looks} looks: it is listed again when the list is used up");
    assert!(left(&mirror, "large").is_empty());
    // How many there are.
    let shared = &deferred(&mirror).shared;
    for directory in 0..LISTS_MAX + 10 {
        let id = fill(&mirror, &format!("d{directory}"), 60);
        unlink(&mirror, id, 0..40);
        assert!(shared.list_count.load(Ordering::SeqCst) <= LISTS_MAX);
        assert_eq!(shared.lists.lock().len(), shared.list_count.load(Ordering::SeqCst));
    }
    for directory in 0..LISTS_MAX + 10 {
        unlink(&mirror, mirror.id(&format!("d{directory}")), 40..60);
        assert!(left(&mirror, &format!("d{directory}")).is_empty());
    }
    // And all of them together.
    let mut most = 0;
    for directory in 0..10 {
        let id = fill(&mirror, &format!("m{directory}"), 1900);
        unlink(&mirror, id, 0..200);
        most = most.max(shared.listed.load(Ordering::Relaxed));
    }
    assert!((MEMORY_MAX / 2..MEMORY_MAX + (256 << 10)).contains(&most), "{most} bytes");
    for directory in 0..10 {
        unlink(&mirror, mirror.id(&format!("m{directory}")), 200..1900);
        assert!(left(&mirror, &format!("m{directory}")).is_empty());
    }
    assert_eq!(failed(&mirror), 0);
}

/// What a listing does not tell: the name comes back, and then it is looked at.
#[test]
fn a_file_that_cannot_be_removed_comes_back() {
    if !needs_root("a_file_that_cannot_be_removed_comes_back") {
        return;
    }
    let mirror = mirror_in("/tmp", options());
    let directory = listed(&mirror);
    let file = fs::File::open(mirror.path("d/f900")).unwrap();
    let fixed = |flags| rustix::fs::ioctl_setflags(&file, flags);
    let flags = rustix::fs::ioctl_getflags(&file).unwrap();
    fixed(flags | IFlags::IMMUTABLE).unwrap();
    let first = mirror.unlink(&root(), directory, "f900");
    deferred(&mirror).settle_all();
    let (failed, there) = (failed(&mirror), mirror.lookup(&root(), directory, "f900").is_ok());
    let again = mirror.unlink(&root(), directory, "f900");
    let other = mirror.unlink(&root(), directory, "f901");
    become_root();
    fixed(flags).unwrap();
    assert_eq!((first, failed, there, again, other), (Ok(()), 1, true, Err(libc::EPERM), Ok(())));
}

/// Unlinks beside creations, renames and links of the same names: what is acknowledged is done, which only names that were rightly
/// believed can be.
#[test]
fn names_that_change_meanwhile_are_not_mistaken() {
    const NAMES: usize = 400;
    for mirror in mirrors() {
        let directory = fill(&mirror, "d", NAMES);
        let over = AtomicBool::new(false);
        let over = &over;
        let mirror = &mirror;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut at = 0;
                while !over.load(Ordering::Relaxed) {
                    at = (at * 5 + 3) % NAMES;
                    let _ = mirror.unlink(&root(), directory, &format!("f{at}"));
                }
                become_root();
            });
            scope.spawn(move || {
                let start = std::time::Instant::now();
                let mut round = 0_usize;
                while start.elapsed() < Duration::from_millis(700) {
                    round += 1;
                    let name = |which: usize| format!("f{}", (round * 7 + which) % NAMES);
                    match round % 3 {
                        0 => {
                            let _ = mirror.rename(
                                (directory, &name(0)),
                                (directory, &name(1)),
                                RenameFlags::empty(),
                            );
                        }
                        _ => {
                            let _ = mirror.create(&root(), directory, &name(0), 0o644, libc::O_WRONLY);
                        }
                    }
                }
                over.store(true, Ordering::Relaxed);
                become_root();
            });
        });
        let left = left(mirror, "d");
        assert_eq!(failed(mirror), 0, "acknowledged and not done, of {:?}", deferred(mirror).counts());
        let shown = mirror.list(directory, 4096).len() - 2;
        assert_eq!(shown, left.len());
    }
}

/// A daemon that was killed has recorded when the directory was listed at the latest; what was born later stays.
#[test]
fn leftovers_are_told_from_later_files_by_the_time_of_the_listing() {
    let source = tempfile::tempdir_in("/dev/shm").unwrap();
    let names = ["old", "new", "other"];
    for name in names {
        fs::write(source.path().join(name), name).unwrap();
    }
    become_root();
    let sourcefd = fs::File::open(source.path()).unwrap();
    let directory = OwnedFd::from(sourcefd);
    let stat = stat_of(&directory).unwrap();
    let journal =
        Journal::create(source.path(), super::super::ids::device_number(&stat), stat.stx_ino).unwrap();
    let owner =
        Owner { inode: stat.stx_ino, locator: Locator::Path(b".".to_vec()), identity: Identity::default() };
    let mut filling = journal.begin(&owner).unwrap();
    for name in names {
        let stat = stat_at(&directory, OsStr::new(name)).unwrap();
        let born = attributes::born(&stat);
        let (inode, latest) = match name {
            "old" => (stat.stx_ino, born),
            // The number is used again, by a file that was made after the listing.
            "new" => (stat.stx_ino, born - 1),
            _ => (stat.stx_ino + 1_000_000, born + 1),
        };
        let target = Target { inode, birth: Birth::Before(latest) };
        journal.add(&mut filling, name.as_bytes(), target).unwrap();
    }
    let path = journal.path().to_owned();
    // As if it had been killed.
    drop(journal);
    assert!(path.exists());
    finish_left(&directory);
    assert!(!path.exists());
    let there: Vec<_> = names.iter().filter(|name| source.path().join(name).exists()).collect();
    assert_eq!(there, [&"new", &"other"]);
}
