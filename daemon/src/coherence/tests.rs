//! What [`Coherence`] decides, without a kernel.

use std::time::UNIX_EPOCH;

use fuser::INodeNo;

use super::grants::GRANT_LIMIT;
use super::opens::OpenMode;
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn attr(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file(ino: u64) -> FileAttr {
    attr(ino, FileType::RegularFile)
}

/// Sends the kernel an answer to a lookup of `name` in the root, which it asked for at `mark`.
fn answer(coherence: &Coherence, name: &str, attr: &FileAttr, mark: u64) -> (Duration, Duration) {
    let answer = Answer { attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: true, created: false };
    coherence.entry(Some(coherence.key(1, OsStr::new(name))), &answer, mark)
}

fn sent(coherence: &Coherence, attr: &FileAttr) -> (Duration, Duration) {
    answer(coherence, &attr.ino.0.to_string(), attr, coherence.mark())
}

fn change(coherence: &Coherence, name: &str) -> bool {
    let changing = coherence.changing(1, OsStr::new(name), false);
    let known = changing.is_known();
    changing.changed(false, None);
    known
}

#[test]
fn an_answer_that_was_asked_for_before_a_change_gets_no_lifetime() {
    let coherence = Coherence::new();
    let mark = coherence.mark();
    assert_eq!(answer(&coherence, "a", &file(2), mark), (HOUR, HOUR));
    coherence.changed_attr(2);
    assert_eq!(answer(&coherence, "a", &file(2), mark), (Duration::ZERO, HOUR));
    assert_eq!(coherence.attr(2, &file(2), HOUR, mark), Duration::ZERO);
    assert_eq!(coherence.attr(2, &file(2), HOUR, coherence.mark()), HOUR);
    assert!(change(&coherence, "a"));
    assert_eq!(answer(&coherence, "a", &file(2), mark), (Duration::ZERO, Duration::ZERO));
    assert_eq!(answer(&coherence, "a", &file(2), coherence.mark()), (HOUR, HOUR));
}

#[test]
fn attributes_of_which_the_kernel_keeps_no_version_get_no_lifetime() {
    let coherence = Coherence::new();
    let attr = file(2);
    let answer = Answer { attr: &attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: false, created: false };
    assert_eq!(coherence.entry(None, &answer, coherence.mark()), (Duration::ZERO, HOUR));
}

#[test]
fn who_changes_a_name_is_told_whether_the_kernel_may_know_its_inode() {
    let coherence = Coherence::new();
    assert!(!change(&coherence, "a"));
    sent(&coherence, &file(2));
    assert!(!change(&coherence, "a") && change(&coherence, "2"));
    coherence.kernel_moves_to(1, OsStr::new("b"));
    assert!(change(&coherence, "b"));
    let two_links = FileAttr { nlink: 2, ..file(3) };
    sent(&coherence, &two_links);
    assert!(change(&coherence, "any"), "it may be the other name");
}

#[test]
fn names_that_do_not_fit_make_every_change_ask_and_get_no_lifetime() {
    let coherence = Coherence::with_room(20);
    let nothing = file(0);
    let mut number = 0;
    let refused = loop {
        number += 1;
        let name = number.to_string();
        if answer(&coherence, &name, &nothing, coherence.mark()).1.is_zero() {
            break name;
        }
    };
    assert!(change(&coherence, &refused) && change(&coherence, "any"));
}

#[test]
fn a_name_to_which_the_kernel_has_moved_something_without_room_is_dropped_whatever_takes_its_place() {
    let coherence = Coherence::with_room(0);
    let (kernel, device) = rustix::pipe::pipe().unwrap();
    coherence.attach(device, None);
    coherence.kernel_moves_to(1, OsStr::new("a"));
    for known_to_the_kernel in [false, true] {
        coherence.changing(1, OsStr::new("a"), true).changed(known_to_the_kernel, None);
    }
    coherence.detach();
    let mut told = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(kernel), &mut told).unwrap();
    let mut codes = Vec::new();
    while let [a, b, c, d, e, f, g, h, ..] = told[..] {
        codes.push(u32::from_ne_bytes([e, f, g, h]));
        told.drain(..u32::from_ne_bytes([a, b, c, d]) as usize);
    }
    // FUSE_NOTIFY_INVAL_ENTRY. What comes before finds out what the kernel can do.
    assert_eq!(codes[codes.len() - 2..], [3, 3]);
    assert_eq!(codes.iter().filter(|code| **code == 3).count(), 2);
}

#[test]
fn an_access_control_list_makes_the_kernel_hear_of_the_next_change() {
    let coherence = Coherence::new();
    let holds = |ino| shard(&coherence.inodes, ino).lock().known[&ino].attrs != 0;
    coherence.asked_for_acl(1);
    assert!(holds(1));
    coherence.changed_attr(1);
    assert!(!holds(1));
}

#[test]
fn the_kernel_knows_an_inode_until_it_has_given_up_every_reference() {
    let coherence = Coherence::new();
    assert!(coherence.kernel_knows(1), "the root is known from the start");
    assert!(!coherence.kernel_knows(7));
    sent(&coherence, &file(7));
    sent(&coherence, &file(7));
    coherence.forgotten(7, 1);
    assert!(coherence.kernel_knows(7));
    coherence.forgotten(7, 1);
    assert!(!coherence.kernel_knows(7));
    coherence.forgotten(7, 1);
    coherence.forgotten(1, u64::MAX);
    assert!(coherence.kernel_knows(1));
}

#[test]
fn a_name_that_does_not_exist_is_no_reference() {
    let coherence = Coherence::new();
    sent(&coherence, &file(0));
    assert!(!coherence.kernel_knows(0));
}

#[test]
fn what_was_sent_long_ago_is_told_from_what_may_be_on_its_way() {
    let mut inodes = Inodes { answers: u32::MAX - 1, noted: u32::MAX - 1, ..Inodes::default() };
    inodes.noted_before = inodes.noted;
    let early = inodes.next_answer();
    let start = inodes.noted_at.unwrap();
    let late = inodes.next_answer();
    assert!(!inodes.is_old(early, start) && !inodes.is_old(late, start + ARRIVAL));
    assert!(inodes.is_old(early, start + 2 * ARRIVAL) && inodes.is_old(late, start + 2 * ARRIVAL));
    // As if all that had been long ago.
    inodes.noted_at = start.checked_sub(ARRIVAL);
    let next = inodes.next_answer();
    let now = inodes.noted_at.unwrap();
    assert!(!inodes.is_old(early, now) && !inodes.is_old(next, now));
    assert!(inodes.is_old(late, now + ARRIVAL) && !inodes.is_old(next, now + ARRIVAL));
    inodes.noted_at = now.checked_sub(ARRIVAL);
    let last = inodes.next_answer();
    assert!(inodes.is_old(late, inodes.noted_at.unwrap()) && !inodes.is_old(next, inodes.noted_at.unwrap()));
    assert!(!inodes.is_old(last, inodes.noted_at.unwrap() + ARRIVAL));
}

#[test]
fn forgotten_inodes_give_their_memory_back() {
    let coherence = Coherence::new();
    for ino in 2..1_000_000 {
        let attr = file(ino);
        let answer = Answer { attr: &attr, attr_ttl: HOUR, entry_ttl: HOUR, versioned: true, created: false };
        coherence.entry(None, &answer, 0);
    }
    for ino in 2..1_000_000 {
        coherence.forgotten(ino, 1);
    }
    let room: usize = coherence.inodes.iter().map(|shard| shard.0.lock().known.capacity()).sum();
    assert!(room < 500_000, "{room}");
}

#[test]
fn an_inode_is_open_until_every_open_is_released() {
    let coherence = Coherence::new();
    coherence.opened(5, OpenMode::Direct, true);
    coherence.opened(5, OpenMode::Cached, true);
    assert!(coherence.kernel_opens(5).cached && !coherence.kernel_opens(5).passthrough);
    coherence.released(5);
    assert!(coherence.kernel_has_open(5));
    coherence.released(5);
    assert!(!coherence.kernel_has_open(5));
    coherence.opened(5, OpenMode::Passthrough, false);
    assert!(!coherence.kernel_opens(5).cached && coherence.kernel_opens(5).passthrough);
    assert!(coherence.is_used_unseen(5) && !coherence.is_written_unseen(5));
    coherence.opened(5, OpenMode::Passthrough, true);
    coherence.released(5);
    assert!(coherence.is_written_unseen(5), "which of the two was released is not known");
    coherence.released(5);
    assert!(!coherence.is_used_unseen(5) && !coherence.is_written_unseen(5));
}

#[test]
fn a_writable_grant_ends_the_lifetimes_of_that_regular_file_alone() {
    let coherence = Coherence::new();
    coherence.note_granted_write(8);
    assert_eq!(sent(&coherence, &file(8)).0, Duration::ZERO);
    assert_eq!(coherence.attr(8, &file(8), HOUR, coherence.mark()), Duration::ZERO);
    assert_eq!(sent(&coherence, &file(9)).0, HOUR);
    let (flags, mode) = coherence.open_flags(8, FopenFlags::FOPEN_KEEP_CACHE, false);
    assert_eq!((flags, mode), (FopenFlags::FOPEN_DIRECT_IO, OpenMode::Direct));
    assert_eq!(
        coherence.open_flags(8, FopenFlags::empty(), true),
        (FopenFlags::empty(), OpenMode::Passthrough)
    );
}

#[test]
fn what_was_granted_for_writing_is_believed_again_when_nobody_can_write_to_it() {
    let coherence = Coherence::new();
    let patiently = || std::thread::sleep(Duration::from_millis(20));
    let review = |ino, can_be_written| {
        let mut asked = false;
        coherence.review_grants(ino, || {
            asked = true;
            can_be_written
        });
        asked
    };
    let read = FileAttr { atime: SystemTime::now(), ..file(8) };
    let believed = |attr: &FileAttr| sent(&coherence, attr).0 == HOUR;
    assert!(!review(8, false), "it was not granted");
    coherence.note_granted_write(8);
    assert!(review(8, true) && !believed(&read));
    assert!(!review(8, false), "it was asked just now");
    patiently();
    assert!(review(8, false) && believed(&file(8)));
    assert!(!review(8, false));
    coherence.note_granted_read(8);
    assert!(!review(8, false) && believed(&read) && !believed(&file(8)), "it may be read unseen");
    // Not while a descriptor is being made, or the file is being created.
    let pending = coherence.grants_write(8);
    assert!(!review(8, false));
    drop(pending);
    assert!(review(8, false) && believed(&read) && !believed(&file(8)));
    coherence.reserve_granted_write(9);
    assert!(!review(9, false));
    coherence.note_granted_write(9);
    assert!(review(9, false) && !coherence.is_granted(9));
    // Not if another one was granted meanwhile.
    coherence.note_granted_write(9);
    coherence.review_grants(9, || {
        coherence.note_granted_write(9);
        false
    });
    assert!(coherence.is_granted_write(9));
    patiently();
    coherence.review_grants(9, || {
        drop(coherence.grants_write(9));
        false
    });
    assert!(coherence.is_granted_write(9));
    patiently();
    // Not while the kernel has it open.
    coherence.opened(9, OpenMode::Direct, false);
    assert!(!review(9, false) && coherence.is_granted_write(9));
    coherence.released(9);
    patiently();
    coherence.review_grants(9, || {
        coherence.opened(9, OpenMode::Direct, false);
        false
    });
    assert!(coherence.is_granted_write(9));
    coherence.released(9);
    patiently();
    // An answer that was asked for before gets no lifetime.
    let mark = coherence.mark();
    assert!(review(9, false));
    assert_eq!(answer(&coherence, "9", &file(9), mark).0, Duration::ZERO);
    assert_eq!(sent(&coherence, &file(9)).0, HOUR);
}

const READS: Access = Access { writes: false, appends: false, executes: false };
const WRITES: Access = Access { writes: true, appends: false, executes: false };

#[test]
fn a_file_is_opened_virtually_unless_the_kernel_writes_to_it_where_nobody_sees() {
    let coherence = Arc::new(Coherence::new());
    let opens = |mode, writes| {
        coherence.opened(5, mode, writes);
        let virtually = coherence.open_virtually(5, false).is_some();
        coherence.released(5);
        virtually
    };
    assert!(opens(OpenMode::Cached, false) && opens(OpenMode::Direct, true));
    assert!(!opens(OpenMode::Cached, true) && !opens(OpenMode::Passthrough, false));
    assert!(opens(OpenMode::Direct, true), "what the kernel has closed does not count");
    assert!(coherence.opens.iter().all(|shard| shard.0.lock().is_empty()));
}

#[test]
fn while_a_file_is_open_virtually_the_kernel_writes_to_it_directly_and_never_to_its_backing_file() {
    let coherence = Arc::new(Coherence::new());
    let flags = |access, passthrough| {
        let opened = coherence.open_file(5, FopenFlags::empty(), passthrough, access, None);
        coherence.released(5);
        opened
    };
    assert_eq!(flags(WRITES, false), (FopenFlags::empty(), false));
    assert_eq!(flags(WRITES, true), (FopenFlags::empty(), true));
    let open = coherence.open_virtually(5, false);
    assert_eq!(flags(WRITES, true), (FopenFlags::FOPEN_DIRECT_IO, false));
    assert_eq!(flags(READS, true), (FopenFlags::empty(), false));
    drop(open);
    assert_eq!(flags(WRITES, true), (FopenFlags::empty(), true));
    coherence.opened(5, OpenMode::Cached, false);
    assert!(!flags(READS, true).1, "the kernel would fail the open");
    coherence.released(5);
}

#[test]
fn the_page_cache_serves_what_nobody_may_change_unseen() {
    let coherence = Coherence::new();
    coherence.opened(4, OpenMode::Passthrough, false);
    assert!(!coherence.may_read_pages(4), "the kernel would fail the open");
    coherence.note_granted_write(5);
    assert!(!coherence.may_read_pages(5));
    assert!(coherence.may_read_pages(6));
    assert!(coherence.kernel_opens(6).cached, "who grants it sees that");
    assert_eq!(coherence.open_file(6, FopenFlags::empty(), true, READS, None), (FopenFlags::empty(), false));
}

#[test]
fn files_are_appended_to_directly_while_a_client_is_connected() {
    let coherence = Coherence::new();
    let appends = Access::of(libc::O_WRONLY | libc::O_APPEND);
    assert_eq!(Access::of(libc::O_RDONLY | libc::O_APPEND), READS);
    let direct = |ino| {
        let opened = coherence.open_file(ino, FopenFlags::empty(), false, appends, None).0;
        opened.contains(FopenFlags::FOPEN_DIRECT_IO)
    };
    assert!(!direct(5));
    coherence.bypass_connected();
    assert!(direct(6));
}

#[test]
fn the_kernel_is_not_asked_for_a_files_end_that_the_bypass_moves() {
    let coherence = Arc::new(Coherence::new());
    coherence.opened(5, OpenMode::Direct, true);
    coherence.opened(6, OpenMode::Direct, true);
    let turn = coherence.append_turn(5).unwrap();
    assert!(!coherence.moves_end(5));
    let reader = coherence.open_virtually(5, false).unwrap();
    assert!(!coherence.moves_end(5));
    let writer = coherence.open_virtually(5, true).unwrap();
    assert!(Arc::ptr_eq(&turn, writer.turn()), "they take turns, whoever came first");
    assert!(coherence.moves_end(5));
    drop((reader, writer));
    assert!(!coherence.moves_end(5), "nothing was written");
    coherence.bypass_wrote(5, 0, b"x").unwrap();
    assert!(coherence.moves_end(5) && !coherence.moves_end(6));
    coherence.released(5);
    coherence.opened(5, OpenMode::Direct, true);
    assert!(!coherence.moves_end(5), "who opens it anew knows where it ends");
    // Nobody else writes to what the kernel writes to through its page cache.
    coherence.opened(7, OpenMode::Cached, true);
    assert!(coherence.append_turn(7).is_none() && coherence.open_virtually(7, true).is_none());
}

#[test]
fn very_many_writable_grants_stand_for_every_regular_file() {
    let coherence = Coherence::new();
    for ino in 0..GRANT_LIMIT as u64 {
        coherence.note_granted_write(1_000 + ino);
    }
    assert_eq!(sent(&coherence, &file(2)).0, Duration::ZERO);
    assert_eq!(sent(&coherence, &attr(3, FileType::Directory)).0, HOUR);
}

#[test]
fn reading_changes_a_time_of_access_that_is_old_or_before_the_last_change() {
    let at = |hours: u64| UNIX_EPOCH + Duration::from_secs(hours * 3600);
    let changed = |accessed, modified, status| {
        let attr = FileAttr { atime: at(accessed), mtime: at(modified), ctime: at(status), ..file(2) };
        reading_changes_atime(&attr, at(100))
    };
    assert!(!changed(99, 98, 97));
    assert!(changed(98, 98, 97), "read as late as written");
    assert!(changed(98, 97, 98));
    assert!(changed(76, 1, 1), "a day ago");
    assert!(!changed(77, 1, 1));
    assert!(!changed(101, 1, 1), "in the future");
}

#[test]
fn when_a_file_was_accessed_that_is_read_unseen_is_asked_until_reading_changes_it_no_more() {
    let coherence = Coherence::new();
    let unread = file(2);
    let read = FileAttr { atime: SystemTime::now(), ..unread };
    assert_eq!(sent(&coherence, &unread).0, HOUR);
    coherence.note_granted_read(2);
    assert_eq!(shard(&coherence.inodes, 2).lock().known[&2].attrs, 0, "the kernel was told");
    assert_eq!(sent(&coherence, &unread).0, Duration::ZERO);
    assert_eq!(sent(&coherence, &read).0, HOUR);
}

#[test]
fn pages_that_the_kernel_may_keep_are_dropped_after_a_change_until_it_forgets_the_file() {
    let coherence = Coherence::new();
    let keep = FopenFlags::FOPEN_KEEP_CACHE;
    sent(&coherence, &file(2));
    assert_eq!(coherence.open_file(2, keep, false, READS, None), (FopenFlags::empty(), false));
    coherence.released(2);
    assert!(coherence.kernel_opens(2).paged() && !coherence.kernel_opens(2).cached);
    assert_eq!(coherence.open_file(2, keep, false, READS, None), (keep, false));
    coherence.released(2);
    coherence.forgotten(2, 1);
    assert!(!coherence.kernel_opens(2).paged());
    coherence.open_file(3, FopenFlags::empty(), false, READS, None);
    coherence.released(3);
    assert!(!coherence.kernel_opens(3).paged(), "the next open drops them");
    let next = coherence.open_file(3, keep, false, READS, None);
    assert_eq!(next, (FopenFlags::empty(), false), "whatever the file system says");
    coherence.released(3);
    assert!(coherence.kernel_opens(3).paged());
}
