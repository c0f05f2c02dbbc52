use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicU64;

use super::*;
use crate::frame::PATH_MAX;

const VERSION: u32 = 7;

fn words(bytes: usize) -> Vec<AtomicU64> {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

fn kept(words: &[AtomicU64]) -> Table<'_, AtomicU64> {
    let table = Table::format(words, VERSION, 4711).unwrap();
    table.keep(1);
    table
}

fn publish(table: &Table<'_, AtomicU64>, parent: u64, name: &str, child: u64, kind: Kind) -> bool {
    let key = table.key(table.generation(), parent, name.as_bytes()).unwrap();
    let unmark = |parent| drop_mark(table, parent);
    let published = table.publish_name(&key, (child, kind), Expiry::NEVER, unmark, || true);
    if let Some(now) = table.is_crowded() {
        table.grow(now, unmark);
    }
    published
}

fn grow(table: &Table<'_, AtomicU64>) {
    table.grow(table.generation(), |parent| drop_mark(table, parent));
}

fn drop_mark(table: &Table<'_, AtomicU64>, directory: u64) {
    table.unmark(table.generation(), directory);
}

fn publish_attr(table: &Table<'_, AtomicU64>, ino: u64) -> bool {
    table.publish_attr(table.generation(), &attr(ino), AbsentXattrs::default(), Expiry::NEVER, || true)
}

fn attr(ino: u64) -> Attr {
    let time = |sec| Time { sec, nsec: 999_999_999 };
    Attr {
        ino,
        size: u64::MAX - ino,
        blocks: 9,
        times: [time(-1), time(i64::MAX), time(7)],
        mode: libc::S_IFREG | 0o644,
        nlink: 1,
        uid: u32::MAX - 1,
        gid: 5,
        rdev: 6,
        blksize: 4096,
    }
}

fn stat(table: &Table<'_, AtomicU64>, path: &str) -> Walked<Attr> {
    table.stat(1, path.as_bytes(), false, &mut Clock::default(), |attr| *attr)
}

#[test]
fn attributes_come_back_as_they_were() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    assert!(publish_attr(&table, 3));
    assert!(publish(&table, 1, "a", 3, Kind::Other));
    assert_eq!(stat(&table, "a"), Walked::Found(attr(3)));
    assert_eq!(stat(&table, "b"), Walked::Unclear);
}

#[test]
fn absent_extended_attributes_come_back_with_the_attributes_they_were_learnt_with() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let absent = AbsentXattrs { any: true, acl: false, security: true };
    let look = |path: &str| table.absent_xattrs(1, path.as_bytes(), false, &mut Clock::default());
    publish(&table, 1, "a", 3, Kind::Other);
    assert_eq!(look("a"), Walked::Unclear);
    assert!(table.publish_attr(table.generation(), &attr(3), absent, Expiry::NEVER, || true));
    assert_eq!((look("a"), stat(&table, "a")), (Walked::Found(absent), Walked::Found(attr(3))));
    assert_eq!(absent.answer(None), Some(Ok(0)));
    assert_eq!(absent.answer(Some(b"security.selinux")), Some(Err(libc::ENODATA)));
    // Of these nothing is known.
    for name in ["system.posix_acl_access", "user.security.x", "security.", "security", "trusted.x", ""] {
        assert_eq!(absent.answer(Some(name.as_bytes())), None, "{name}");
    }
    let acl = AbsentXattrs { acl: true, ..AbsentXattrs::default() };
    assert_eq!(acl.answer(Some(b"system.posix_acl_access")), Some(Err(libc::ENODATA)));
    assert_eq!(acl.answer(Some(b"system.posix_acl_default")), Some(Err(libc::ENODATA)));
    assert_eq!((acl.answer(Some(b"security.selinux")), acl.answer(None)), (None, None));
    assert!(table.publish_attr(table.generation(), &attr(3), acl, Expiry::NEVER, || true));
    assert_eq!(look("a"), Walked::Found(acl));
}

fn publish_parent(table: &Table<'_, AtomicU64>, parent: u64, name: &str, directory: u64) -> bool {
    let key = table.key(table.generation(), parent, name.as_bytes()).unwrap();
    table.publish_parent(&key, directory)
}

#[test]
fn parents_are_found_by_the_names_that_lead_back() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let longest = "n".repeat(NAME_MAX);
    publish(&table, 1, &longest, 2, Kind::Directory);
    publish(&table, 2, "eight..8", 3, Kind::Directory);
    publish(&table, 1, "f", 4, Kind::Other);
    publish_attr(&table, 4);
    let from = |base: u64, path: &str| {
        table.stat(base, path.as_bytes(), false, &mut Clock::default(), |attr| attr.ino)
    };
    assert_eq!(from(2, "../f"), Walked::Unclear, "nobody said where it is");
    assert!(publish_parent(&table, 1, &longest, 2) && publish_parent(&table, 2, "eight..8", 3));
    assert!(!table.is_marked(table.generation(), 2), "that is no mark");
    assert!(table.mark(table.generation(), 2, Expiry::NEVER, || true));
    let key = |parent: u64, name: &str| table.key(table.generation(), parent, name.as_bytes()).unwrap();
    assert!(table.holds_parent(&key(1, &longest), 2) && !table.holds_parent(&key(1, &longest), 3));
    for other in [key(2, &longest), key(1, &longest[1..]), key(1, "eight..8")] {
        assert!(!table.holds_parent(&other, 2));
    }
    let inside = format!("{longest}/eight..8/../../f");
    for (base, path) in [(2, "../f"), (3, "../../f"), (3, ".././/..//f"), (1, inside.as_str())] {
        assert_eq!(from(base, path), Walked::Found(4), "{base} {path}");
    }
    assert_eq!(from(3, "../nothing"), Walked::Absent, "in a complete directory");
    for (base, path) in [(2, ".."), (2, "../"), (2, "../../f"), (1, "../f"), (4, "../f")] {
        assert_eq!(from(base, path), Walked::Unclear, "{base} {path}");
    }
    assert!(table.unmark(table.generation(), 2) && table.holds_parent(&key(1, &longest), 2));

    // The name ends, or stands for something else.
    let ends = Expiry::at(5 << 24);
    table.publish_name(&key(1, &longest), (2, Kind::Directory), ends, |_| (), || true);
    let at = |time| table.stat(3, b"../../f", false, &mut Clock::at(time), |attr| attr.ino);
    assert_eq!((at(4 << 24), at(5 << 24)), (Walked::Found(4), Walked::Unclear));
    for (child, kind) in [(7, Kind::Directory), (0, Kind::Absent)] {
        publish(&table, 1, &longest, child, kind);
        assert_eq!(from(3, "../../f"), Walked::Unclear);
    }
    publish(&table, 1, &longest, 2, Kind::Directory);
    assert_eq!(from(3, "../../f"), Walked::Found(4));
    table.take_name(&key(1, &longest), |_| ());
    assert_eq!(from(3, "../../f"), Walked::Unclear);

    // It has moved.
    publish(&table, 1, "moved", 3, Kind::Directory);
    assert!(publish_parent(&table, 1, "moved", 3));
    assert_eq!(from(3, "../f"), Walked::Found(4));
    table.renew();
    assert!(!table.holds_parent(&key(1, "moved"), 3));
}

#[test]
fn paths_are_walked_and_what_is_unusual_is_left() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    publish(&table, 1, "d", 2, Kind::Directory);
    publish(&table, 2, "f", 3, Kind::Other);
    publish(&table, 2, "l", 4, Kind::Symlink);
    publish(&table, 2, "no", 0, Kind::Absent);
    for ino in 1..=4 {
        publish_attr(&table, ino);
    }
    for (path, found) in [
        ("d", Walked::Found(attr(2))),
        ("d/f", Walked::Found(attr(3))),
        ("d//f", Walked::Found(attr(3))),
        ("d/l", Walked::Found(attr(4))),
        (".", Walked::Found(attr(1))),
        ("d/no", Walked::Absent),
        ("d/no/more", Walked::Absent),
        ("./d/f", Walked::Found(attr(3))),
        ("././/d/./f", Walked::Found(attr(3))),
        ("./d/no", Walked::Absent),
        ("d/no/./more", Walked::Absent),
        ("d/f/./x", Walked::Unclear),
        ("d/f/.", Walked::Unclear),
        ("./", Walked::Unclear),
        ("./.", Walked::Unclear),
        ("./../d", Walked::Unclear),
        ("d/f/x", Walked::Unclear),
        ("d/l/x", Walked::Unclear),
        ("d/", Walked::Unclear),
        ("d/.", Walked::Unclear),
        ("d/../d/f", Walked::Unclear),
        ("d/unknown", Walked::Unclear),
        ("", Walked::Unclear),
        ("/d", Walked::Unclear),
    ] {
        assert_eq!(stat(&table, path), found, "{path}");
    }
    let longest = "./".repeat(PATH_MAX / 2) + "d";
    assert_eq!((longest.len(), stat(&table, &longest)), (PATH_MAX, Walked::Found(attr(2))));
    // ENAMETOOLONG
    for path in ["./".repeat(PATH_MAX / 2) + "/d", "d".to_owned() + &"/".repeat(PATH_MAX - 1) + "f"] {
        assert_eq!((path.len(), stat(&table, &path)), (PATH_MAX + 1, Walked::Unclear));
    }
    assert_eq!(
        table.stat(1, b"d/l", true, &mut Clock::default(), |attr| *attr),
        Walked::Unclear,
        "a link to follow"
    );
    assert_eq!(
        table.stat(2, b"f", true, &mut Clock::default(), |attr| *attr),
        Walked::Found(attr(3)),
        "from a base"
    );
    assert_eq!(table.probe(1, b"d/l", &mut Clock::default()), Walked::Found(Kind::Symlink));
}

#[test]
fn names_are_told_apart_up_to_the_longest() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let longest = "n".repeat(NAME_MAX);
    assert!(table.key(table.generation(), 1, longest.as_bytes()).is_some());
    assert!(
        table.key(table.generation(), 1, format!("{longest}n").as_bytes()).is_none()
            && table.key(table.generation(), 1, b"").is_none()
    );
    publish(&table, 1, &longest, 3, Kind::Other);
    publish(&table, 1, &longest[1..], 0, Kind::Absent);
    let probe = |path: &str| table.probe(1, path.as_bytes(), &mut Clock::default());
    assert_eq!(probe(&longest), Walked::Found(Kind::Other));
    assert_eq!(probe(&longest[1..]), Walked::Absent);
    assert_eq!(probe(&longest[2..]), Walked::Unclear);
    // A zero byte is no padding.
    assert_eq!(probe(&format!("{}\0", &longest[1..])), Walked::Unclear);
}

#[test]
fn what_is_taken_out_is_unclear_and_only_that() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    publish(&table, 1, "a", 2, Kind::Other);
    publish(&table, 1, "b", 2, Kind::Other);
    publish_attr(&table, 2);
    assert!(table.take_name(&table.key(table.generation(), 1, b"a").unwrap(), |_| ()));
    assert!(!table.take_name(&table.key(table.generation(), 1, b"a").unwrap(), |_| ()), "it is gone");
    assert_eq!((stat(&table, "a"), stat(&table, "b")), (Walked::Unclear, Walked::Found(attr(2))));
    assert!(table.take_attr(table.generation(), 2));
    assert_eq!(stat(&table, "b"), Walked::Unclear);
    assert_eq!(table.probe(1, b"b", &mut Clock::default()), Walked::Found(Kind::Other));
}

#[test]
fn entries_end_at_their_time() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let key = table.key(table.generation(), 1, b"a").unwrap();
    table.publish_name(&key, (0, Kind::Absent), Expiry::at(10_000_000_000), |_| (), || true);
    let at = |now| table.probe(1, b"a", &mut Clock::at(now));
    assert_eq!(at(9_900_000_000), Walked::Absent);
    assert_eq!(at(10_000_000_000), Walked::Unclear);
    table.publish_name(&key, (0, Kind::Absent), Expiry::NEVER, |_| (), || true);
    assert_eq!(at(u64::MAX), Walked::Absent);
    assert!(Expiry::at(u64::MAX) < Expiry::NEVER);
}

#[test]
fn a_new_generation_is_empty_and_a_table_that_nobody_keeps_is_not_believed() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    publish(&table, 1, "a", 0, Kind::Absent);
    assert_eq!(stat(&table, "a"), Walked::Absent);
    table.renew();
    assert_eq!(stat(&table, "a"), Walked::Unclear);
    publish(&table, 1, "a", 0, Kind::Absent);
    assert_eq!(stat(&table, "a"), Walked::Absent);
    // What the kernel leaves when the thread has died (FUTEX_OWNER_DIED).
    words[HOLDER_AT].store(0x4000_0000, Ordering::Relaxed);
    assert_eq!(stat(&table, "a"), Walked::Unclear);
}

#[test]
fn what_has_changed_meanwhile_is_not_published_and_nothing_is_left() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let key = table.key(table.generation(), 1, b"a").unwrap();
    assert!(!table.publish_name(&key, (0, Kind::Absent), Expiry::NEVER, |_| (), || false));
    assert_eq!(stat(&table, "a"), Walked::Unclear);
    // Also what was there before, which may be right: somebody must hear of that.
    publish(&table, 1, "a", 0, Kind::Absent);
    let left = Cell::new(0);
    assert!(!table.publish_name(&key, (9, Kind::Other), Expiry::NEVER, |parent| left.set(parent), || false));
    assert_eq!((stat(&table, "a"), left.get()), (Walked::Unclear, 1));
    assert!(
        !table.publish_attr(table.generation(), &attr(2), AbsentXattrs::default(), Expiry::NEVER, || false)
            && !table.take_attr(table.generation(), 2)
    );
}

#[test]
fn a_full_set_drops_what_was_not_published_again_and_says_so() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    let mut names: Vec<String> = Vec::new();
    let first = table.key(table.generation(), 1, b"first").unwrap();
    let set = |key: &Key| table.set(key.generation, table.shape.names, key.hash, SET_NARROW).as_ptr();
    for number in 0.. {
        let name = format!("n{number}");
        if set(&table.key(table.generation(), 1, name.as_bytes()).unwrap()) == set(&first) {
            names.push(name);
        }
        if names.len() == 3 * WAYS {
            break;
        }
    }
    let left = RefCell::new(Vec::new());
    let publish = |name: &str| {
        let key = table.key(table.generation(), 1, name.as_bytes()).unwrap();
        table.publish_name(
            &key,
            (0, Kind::Absent),
            Expiry::NEVER,
            |parent| left.borrow_mut().push(parent),
            || true,
        )
    };
    for name in &names {
        // One that is published again and again stays.
        assert!(publish("first") && publish("first") && publish(name));
        assert!(table.holds(&first));
    }
    let held = names
        .iter()
        .filter(|name| table.holds(&table.key(table.generation(), 1, name.as_bytes()).unwrap()))
        .count();
    assert_eq!((held, left.borrow().len()), (WAYS - 1, names.len() - (WAYS - 1)));
    assert!(left.borrow().iter().all(|parent| *parent == 1));
}

#[test]
fn a_name_that_is_not_in_a_complete_directory_does_not_exist() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    publish(&table, 1, "a", 3, Kind::Other);
    assert_eq!(stat(&table, "b"), Walked::Unclear);
    assert!(table.mark(table.generation(), 1, Expiry::NEVER, || true));
    assert_eq!((stat(&table, "b"), stat(&table, "b/c")), (Walked::Absent, Walked::Absent));
    assert_eq!(table.probe(1, b"a", &mut Clock::default()), Walked::Found(Kind::Other));
    assert_eq!(table.probe(3, b"b", &mut Clock::default()), Walked::Unclear, "another directory");
    table.unmark(table.generation(), 1);
    assert_eq!(stat(&table, "b"), Walked::Unclear);
}

#[test]
fn targets_come_back_if_they_are_short() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    publish(&table, 1, "l", 3, Kind::Symlink);
    let read = |buffer: &mut [u8; TARGET_MAX]| match table.read_link(1, b"l", buffer, &mut Clock::default()) {
        Walked::Found(target) => target.map(<[u8]>::to_vec),
        _ => None,
    };
    let longest = vec![b'x'; TARGET_MAX];
    for target in [&b"t"[..], &longest] {
        assert!(table.publish_link(table.generation(), 3, target, Expiry::NEVER, || true));
        assert_eq!(read(&mut [0; TARGET_MAX]).as_deref(), Some(target));
    }
    assert!(!table.publish_link(table.generation(), 3, &[b'x'; TARGET_MAX + 1], Expiry::NEVER, || true));
    table.take_link(table.generation(), 3);
    assert_eq!(read(&mut [0; TARGET_MAX]), None);
    publish(&table, 1, "f", 4, Kind::Other);
    publish(&table, 1, "d", 5, Kind::Directory);
    for name in [&b"f"[..], b"d"] {
        let read =
            table.read_link(1, name, &mut [0; TARGET_MAX], &mut Clock::default()) == Walked::Found(None);
        assert!(read, "it is no link");
    }
}

#[test]
fn half_a_million_names_and_attributes_fit_the_default_size() {
    let words = words(256 << 20);
    let table = kept(&words);
    for ino in 2..500_002u64 {
        publish(&table, ino / 100, &format!("name{ino}"), ino, Kind::Other);
        publish_attr(&table, ino);
    }
    let found = |ino: &u64| {
        let walked =
            table
                .stat(ino / 100, format!("name{ino}").as_bytes(), false, &mut Clock::default(), |attr| *attr);
        walked == Walked::Found(attr(*ino))
    };
    let found = (2..500_002u64).filter(found).count();
    assert!(found > 493_000, "{found}");
}

#[test]
fn few_names_lie_in_few_pages_and_more_make_it_grow() {
    let words = words(16 << 20);
    let table = kept(&words);
    let used =
        || words.chunks(512).filter(|page| page.iter().any(|word| word.load(Ordering::Relaxed) != 0)).count();
    let publish_all = |count: u64| {
        for ino in 2..2 + count {
            publish(&table, 1, &format!("name{ino}"), ino, Kind::Other);
            publish_attr(&table, ino);
        }
    };
    let found = |count: u64| {
        (2..2 + count).filter(|ino| stat(&table, &format!("name{ino}")) == Walked::Found(attr(*ino))).count()
            as u64
    };
    publish_all(1000);
    assert_eq!((found(1000), table.generation()), (1000, Generation::first(2)));
    assert!(used() < 256, "{} pages", used());
    publish_all(20_000);
    let grown = table.generation();
    assert!(grown.growths() == 0 && grown.era() == 0 && !grown.is_moving(), "{grown:?}");
    assert!(found(20_000) > 19_800, "{}", found(20_000));
    // It cannot become larger than it is: there is room for 70 000.
    publish_all(200_000);
    let held = found(200_000);
    assert!(held > 50_000, "{held}");
    table.renew();
    assert_eq!((table.generation().growths(), table.generation().era(), found(10)), (0, 1, 0));
}

#[test]
fn names_that_take_turns_in_full_sets_do_not_make_it_grow() {
    let words = words(64 << 20);
    let table = kept(&words);
    let count = 20_000u64;
    let publish_all = || {
        let names = (2..2 + count).map(|ino| (ino, format!("name{ino}")));
        names.filter(|(ino, name)| stat(&table, name) != Walked::Found(attr(*ino))).fold(
            0,
            |new, (ino, name)| {
                publish(&table, 1, &name, ino, Kind::Other);
                publish_attr(&table, ino);
                new + 1
            },
        )
    };
    publish_all();
    let settled = table.generation();
    let turns: Vec<u64> = (0..200).map(|_| publish_all()).collect();
    let sum: u64 = turns.iter().sum();
    // As many as made it grow while it was filled.
    assert!(sum > 5000 && turns.iter().all(|turns| *turns < count / 50), "{turns:?}");
    assert_eq!((table.generation(), settled.growths()), (settled, 1));
}

#[test]
fn everything_moves_when_it_grows_and_is_what_it_was() {
    // Also where one size is no multiple of the other.
    for bytes in [16 << 20, (16 << 20) + (2 << 20) + 4096 * 7] {
        let words = words(bytes);
        let table = kept(&words);
        assert!(table.generation().growths() >= 2, "{:?}", table.generation());
        let expiry = |ino: u64| if ino.is_multiple_of(2) { Expiry::NEVER } else { Expiry::at(ino << 40) };
        let target = |ino: u64| format!("target of {ino}");
        for ino in 2..1500u64 {
            let kind = if ino.is_multiple_of(3) { Kind::Symlink } else { Kind::Directory };
            let key = table.key(table.generation(), ino / 10, format!("name{ino}").as_bytes()).unwrap();
            assert!(table.publish_name(&key, (ino, kind), expiry(ino), |_| (), || true));
            assert!(publish_attr(&table, ino));
            match kind {
                Kind::Symlink => drop(table.publish_link(
                    table.generation(),
                    ino,
                    target(ino).as_bytes(),
                    expiry(ino),
                    || true,
                )),
                _ => {
                    table.mark(table.generation(), ino, expiry(ino), || true);
                    table.publish_parent(&key, ino);
                }
            }
        }
        // What is there is what is found afterwards, of each kind.
        let found = |ino: u64| {
            let generation = table.generation();
            let key = table.key(generation, ino / 10, format!("name{ino}").as_bytes()).unwrap();
            let name = match table.find_name(&key) {
                Looked::Found(seen, found) => Some((seen.expiry(), found)),
                Looked::Missing | Looked::Unclear => None,
            };
            let attr = match table.find_attr(generation, ino, unpack) {
                Looked::Found(seen, attr) => Some((seen.expiry(), attr)),
                Looked::Missing | Looked::Unclear => None,
            };
            let link = match table.find_link(generation, ino) {
                Looked::Found(seen, words) => Some((seen.expiry(), words[3..].to_vec())),
                Looked::Missing | Looked::Unclear => None,
            };
            let mark = match table.find_mark(generation, ino) {
                Looked::Found(seen, ()) => Some(seen.expiry()),
                Looked::Missing | Looked::Unclear => None,
            };
            (name, attr, link, mark, table.holds_parent(&key, ino))
        };
        let before: Vec<_> = (2..1500).map(found).collect();
        let names = before.iter().filter(|found| found.0.is_some()).count();
        let links = before.iter().filter(|found| found.2.is_some()).count();
        let marks = before.iter().filter(|found| found.3.is_some()).count();
        let parents = before.iter().filter(|found| found.4).count();
        assert!(
            names > 1400 && links > 300 && marks > 200 && parents > 200,
            "{names} {links} {marks} {parents}"
        );
        for _ in 0..2 {
            let growths = table.generation().growths();
            grow(&table);
            assert_eq!(table.generation().growths(), growths - 1);
            for (ino, before) in (2..).zip(&before) {
                assert_eq!(found(ino), *before, "{ino}");
            }
        }
    }
}

#[test]
fn what_is_more_than_others_should_wait_for_is_left_behind() {
    let words = words(512 << 20);
    let table = kept(&words);
    let mut kept_by_growth = Vec::new();
    while table.generation().growths() > 0 {
        publish(&table, 1, "a", 3, Kind::Other);
        let before = table.generation();
        grow(&table);
        let after = table.generation();
        assert_eq!((after.growths(), after.era(), after.is_moving()), (before.growths() - 1, 0, false));
        kept_by_growth.push(table.holds(&table.key(after, 1, b"a").unwrap()));
    }
    // From 2, 8, 32 and 128 MiB.
    assert_eq!(kept_by_growth, [true, true, true, false]);
    // Nobody grows it twice for the same reason.
    let words = self::words(16 << 20);
    let (table, now) = (kept(&words), kept(&words).generation());
    table.grow(now, |_| ());
    table.grow(now, |_| ());
    assert_eq!(table.generation().growths(), now.growths() - 1);
}

#[test]
fn what_is_taken_out_while_it_grows_is_taken_out_where_it_has_gone() {
    let words = words(16 << 20);
    let table = kept(&words);
    publish_attr(&table, 3);
    publish(&table, 1, "a", 3, Kind::Other);
    table.mark(table.generation(), 1, Expiry::NEVER, || true);
    let mut rounds = 0;
    table.change(|generation| {
        if rounds == 0 {
            // By somebody else, before anything is taken out in the generation that was there.
            grow(&table);
        }
        rounds += 1;
        table.take_name(&table.key(generation, 1, b"a").unwrap(), |_| ());
        table.unmark(generation, 1);
    });
    assert_eq!(
        (rounds, stat(&table, "a"), table.is_marked(table.generation(), 1)),
        (2, Walked::Unclear, false)
    );
}

#[test]
fn what_was_on_its_way_when_everything_was_taken_out_is_never_found() {
    let words = words(16 << 20);
    let table = kept(&words);
    let (moving, next) = table.generation().growing().unwrap();
    let renewed = moving.renewed().unwrap();
    assert!(renewed.number() > next.number() && !renewed.is_moving());
    assert_eq!((renewed.era(), renewed.growths()), (next.era() + 1, next.growths()));
    assert!(moving.growing().is_none() && moving.is_moving() && !next.is_moving());
    // Nothing is published meanwhile, and nothing found.
    publish(&table, 1, "a", 0, Kind::Absent);
    words[GENERATION_AT].store(moving.0, Ordering::Relaxed);
    assert!(!publish(&table, 1, "b", 0, Kind::Absent) && !publish_attr(&table, 3));
    assert_eq!((stat(&table, "a"), stat(&table, "b")), (Walked::Unclear, Walked::Unclear));
}

#[test]
fn a_table_ends_with_its_last_generation() {
    let words = words(BYTES_MIN);
    let table = kept(&words);
    words[GENERATION_AT].store(u64::from(Generation::LAST - 2), Ordering::Relaxed);
    table.renew();
    publish(&table, 1, "a", 0, Kind::Absent);
    assert_eq!(stat(&table, "a"), Walked::Absent);
    table.renew();
    assert_eq!(stat(&table, "a"), Walked::Unclear);
    assert!(!table.is_kept());
}

#[test]
fn a_table_of_another_version_is_none() {
    let words = words(BYTES_MIN);
    assert!(Table::new(&words[..], VERSION).is_none());
    kept(&words);
    assert!(Table::new(&words[..], VERSION).is_some() && Table::new(&words[..], VERSION + 1).is_none());
}
