//! What may happen between publishers and those who change something, in every order that the memory model allows.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::*;

/// One set of each kind would do; this is the smallest table that has them.
const WORDS: usize = HEADER + NAMES_PER_RARE * (SET_NARROW + SET_WIDE) + SET_WIDE + SET_NARROW;

struct Shared {
    words: Vec<AtomicU64>,
    /// Counts changes, as the daemon does.
    changes: AtomicU64,
    shape: Shape,
}

impl Shared {
    /// A table that can grow once, to so many sets of names and to four of marks, of which it uses a quarter before; of the others it has none.
    fn growing(names: usize) -> Arc<Self> {
        let sets = |start, count| Sets { start, count };
        let marks = HEADER_WORDS + names * SET_NARROW;
        let shape = Shape {
            names: sets(HEADER_WORDS, names),
            attrs: sets(HEADER_WORDS, 0),
            links: sets(HEADER_WORDS, 0),
            marks: sets(marks, 4),
            seed: 1,
        };
        Self::of(shape, marks + 4 * SET_NARROW, Generation::first(1))
    }

    fn of(shape: Shape, words: usize, generation: Generation) -> Arc<Self> {
        let words: Vec<_> = (0..words).map(|_| AtomicU64::new(0)).collect();
        words[GENERATION_AT].store(generation.0, Ordering::Relaxed);
        words[HOLDER_AT].store(1, Ordering::Relaxed);
        Arc::new(Self { words, changes: AtomicU64::new(0), shape })
    }

    fn new() -> Arc<Self> {
        // Words that no test here uses must not be atomics of loom's: there are too many. So tables of models have one
        // set of each kind, one behind the other.
        let sets = |start| Sets { start, count: 1 };
        let shape = Shape {
            names: sets(HEADER_WORDS),
            attrs: sets(HEADER_WORDS + SET_NARROW),
            links: sets(HEADER_WORDS),
            marks: sets(HEADER_WORDS + SET_NARROW + SET_WIDE),
            seed: 1,
        };
        Self::of(shape, MODEL_WORDS, Generation::first(0))
    }

    fn table(&self) -> Table<'_, AtomicU64> {
        Table::again(&self.words, self.shape)
    }

    /// Counts a change, as is done before anything is taken out.
    fn change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn is_current(&self, mark: u64) -> bool {
        self.changes.fetch_add(0, Ordering::AcqRel) == mark
    }
}

/// Words of a header as far as models use it.
const HEADER_WORDS: usize = 4 * LINE;
const MODEL_WORDS: usize = HEADER_WORDS + 2 * SET_NARROW + SET_WIDE;

const _: () = assert!(MODEL_WORDS < WORDS);

fn probe(shared: &Shared, name: &[u8]) -> Walked<Kind> {
    shared.table().probe(1, name, &mut Clock::default())
}

fn limited(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(f);
}

/// A lookup that was answered before a name was made is published while that is acknowledged: nobody who comes after finds
/// the name absent.
#[test]
fn what_changes_while_it_is_published_is_not_seen_after_the_change() {
    limited(|| {
        let shared = Shared::new();
        let mark = shared.changes.load(Ordering::Acquire);
        let publisher = thread::spawn({
            let shared = shared.clone();
            move || {
                let table = shared.table();
                let key = table.key(Generation::first(0), 1, b"n").unwrap();
                let is_current = || shared.is_current(mark);
                table.publish_name(&key, (0, Kind::Absent), Expiry::NEVER, |_| (), is_current);
            }
        });
        let table = shared.table();
        shared.change();
        table.take_name(&table.key(Generation::first(0), 1, b"n").unwrap(), |_| ());
        assert_ne!(probe(&shared, b"n"), Walked::Absent, "the change is acknowledged here");
        publisher.join().unwrap();
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
    });
}

/// A name leaves a complete directory for want of room: nobody takes that for its absence.
#[test]
fn a_name_that_leaves_a_complete_directory_is_not_absent() {
    limited(|| {
        let shared = Shared::new();
        let departures = Arc::new(AtomicU64::new(0));
        let table = shared.table();
        let key = table.key(Generation::first(0), 1, b"n").unwrap();
        table.publish_name(&key, (3, Kind::Other), Expiry::NEVER, |_| (), || true);
        let leaver = thread::spawn({
            let (shared, departures) = (shared.clone(), departures.clone());
            move || {
                let table = shared.table();
                let key = table.key(Generation::first(0), 1, b"n").unwrap();
                // As eviction does: told before it goes.
                table.take_name(&key, |parent| {
                    departures.fetch_add(1, Ordering::AcqRel);
                    table.unmark(Generation::first(0), parent);
                });
            }
        });
        let before = departures.load(Ordering::Acquire);
        if table.holds(&key) {
            table.mark(Generation::first(0), 1, Expiry::NEVER, || {
                departures.fetch_add(0, Ordering::AcqRel) == before
            });
        }
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
        leaver.join().unwrap();
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
    });
}

/// A reader, in a thread of its own, beside whatever `write` does; what it finds must be one of these. It is made to find each of them
/// in some order.
fn read_beside(
    write: fn(&Table<'_, AtomicU64>),
    read: fn(&Shared) -> Option<(Kind, u64)>,
    allowed: &'static [Option<(Kind, u64)>],
) {
    let seen = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashSet::new()));
    let all = seen.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 10_000;
    builder.check(move || {
        let shared = Shared::new();
        publish(&shared.table(), b"n", (3, Kind::Other));
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared)
        });
        write(&shared.table());
        let found = reader.join().unwrap();
        assert!(allowed.contains(&found), "{found:?}");
        seen.lock().unwrap().insert(found.map(|(_, child)| child));
    });
    assert_eq!(all.lock().unwrap().len(), allowed.len(), "some order was not tried");
}

fn publish(table: &Table<'_, AtomicU64>, name: &[u8], (child, kind): (u64, Kind)) {
    let key = table.key(table.generation(), 1, name).unwrap();
    table.publish_name(&key, (child, kind), Expiry::NEVER, |_| (), || true);
}

fn look_up(shared: &Shared) -> Option<(Kind, u64)> {
    let table = shared.table();
    match table.find_name(&table.key(table.generation(), 1, b"n").unwrap()) {
        Looked::Found(_, found) => Some(found),
        Looked::Missing | Looked::Unclear => None,
    }
}

/// What a name stands for changes: a reader sees the one or the other, or nothing certain.
#[test]
fn an_entry_is_read_as_it_was_at_one_moment() {
    let write = |table: &Table<'_, AtomicU64>| publish(table, b"n", (4, Kind::Directory));
    read_beside(write, look_up, &[None, Some((Kind::Other, 3)), Some((Kind::Directory, 4))]);
}

/// An entry makes room for one of a new generation, in the same place: a reader takes neither for the other.
#[test]
fn an_entry_of_another_generation_is_not_taken_for_its_successor() {
    let write = |table: &Table<'_, AtomicU64>| {
        table.renew();
        publish(table, b"n", (4, Kind::Directory));
    };
    read_beside(write, look_up, &[None, Some((Kind::Other, 3)), Some((Kind::Directory, 4))]);
}

/// A name goes to make room in a new generation, while a reader of the earlier one knows that its directory was complete: it does
/// not take that for its absence.
#[test]
fn a_name_that_makes_room_for_a_new_generation_is_not_absent() {
    let write = |table: &Table<'_, AtomicU64>| {
        table.mark(table.generation(), 1, Expiry::NEVER, || true);
        table.renew();
        publish(table, b"n", (3, Kind::Other));
    };
    let read = |shared: &Shared| match probe(shared, b"n") {
        Walked::Absent => Some((Kind::Absent, 0)),
        Walked::Found(kind) => Some((kind, 3)),
        Walked::Unclear => None,
    };
    read_beside(write, read, &[None, Some((Kind::Other, 3))]);
}

/// A directory moves away before a name is made where it was: nobody finds that name from there.
#[test]
fn what_is_made_where_a_directory_was_is_not_found_by_way_of_its_parent() {
    limited(|| {
        let shared = Shared::new();
        let table = shared.table();
        publish(&table, b"n", (3, Kind::Directory));
        publish(&table, b"x", (0, Kind::Absent));
        table.publish_parent(&table.key(table.generation(), 1, b"n").unwrap(), 3);
        let reader = thread::spawn({
            let shared = shared.clone();
            move || shared.table().probe(3, b"../x", &mut Clock::default())
        });
        table.take_name(&table.key(table.generation(), 1, b"n").unwrap(), |_| ());
        publish(&table, b"x", (4, Kind::Other));
        let found = reader.join().unwrap();
        assert!(matches!(found, Walked::Absent | Walked::Unclear), "{found:?}");
    });
}

fn grow(shared: &Shared) {
    let table = shared.table();
    let generation = table.generation();
    // As the daemon: what has left is counted.
    table.grow(generation, |parent| {
        shared.change();
        table.unmark(generation, parent);
    });
}

/// The table grows beside whatever `meanwhile` does and sees.
fn while_it_grows(
    preemptions: usize,
    fill: fn(&Table<'_, AtomicU64>),
    meanwhile: impl Fn(&Shared) + Copy + Sync + Send + 'static,
    afterwards: impl Fn(&Shared) + Copy + Sync + Send + 'static,
) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 50_000;
    builder.check(move || {
        let shared = Shared::growing(4);
        fill(&shared.table());
        let grower = thread::spawn({
            let shared = shared.clone();
            move || grow(&shared)
        });
        meanwhile(&shared);
        grower.join().unwrap();
        assert!(!shared.table().generation().is_moving());
        afterwards(&shared);
    });
}

fn fill_and_mark(table: &Table<'_, AtomicU64>) {
    publish(table, b"n", (3, Kind::Other));
    table.mark(table.generation(), 1, Expiry::NEVER, || true);
}

/// A name is removed while the table grows: it is not found afterwards.
#[test]
fn what_is_removed_while_the_table_grows_is_not_found() {
    let remove = |shared: &Shared| {
        shared.change();
        let table = shared.table();
        table.change(|generation| {
            table.take_name(&table.key(generation, 1, b"n").unwrap(), |_| ());
        });
        assert_eq!(look_up(shared), None);
    };
    while_it_grows(
        2,
        |table| publish(table, b"n", (3, Kind::Other)),
        remove,
        |shared| assert_eq!(look_up(shared), None),
    );
}

/// A name is made in a complete directory while the table grows: nobody takes it for absent afterwards.
#[test]
fn what_is_made_while_the_table_grows_is_not_absent() {
    let make = |shared: &Shared| {
        shared.change();
        let table = shared.table();
        table.change(|generation| {
            table.unmark(generation, 1);
        });
        assert_ne!(probe(shared, b"n"), Walked::Absent);
    };
    let mark = |table: &Table<'_, AtomicU64>| {
        table.mark(table.generation(), 1, Expiry::NEVER, || true);
    };
    while_it_grows(2, mark, make, |shared| assert_ne!(probe(shared, b"n"), Walked::Absent));
}

/// A name of a complete directory moves: it is found or not, but never absent.
#[test]
fn a_name_that_moves_is_not_absent() {
    let read = |shared: &Shared| assert_ne!(probe(shared, b"n"), Walked::Absent);
    while_it_grows(2, fill_and_mark, read, |shared| assert_ne!(probe(shared, b"n"), Walked::Absent));
}

/// A name makes room, by somebody who began before the table grew: what says that its directory is complete goes, too.
#[test]
fn a_name_that_makes_room_before_the_table_grows_is_not_absent() {
    const NAMES: [&[u8]; WAYS] = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"n"];
    let fill = |table: &Table<'_, AtomicU64>| {
        NAMES.iter().for_each(|name| publish(table, name, (3, Kind::Other)));
        table.mark(table.generation(), 1, Expiry::NEVER, || true);
    };
    let evict = |shared: &Shared| {
        let table = shared.table();
        let generation = table.generation();
        let unmark = |parent| {
            table.unmark(generation, parent);
        };
        let key = table.key(generation, 2, b"h").unwrap();
        table.publish_name(&key, (4, Kind::Other), Expiry::NEVER, unmark, || true);
    };
    while_it_grows(1, fill, evict, |shared| {
        NAMES.iter().for_each(|name| assert_ne!(probe(shared, name), Walked::Absent, "{name:?}"));
    });
}

/// Everything is taken out while the table grows, by somebody who publishes a name then and marks its directory complete.
#[test]
fn a_name_published_anew_while_the_table_grows_is_not_absent() {
    // The name lies where something is moved away, the mark does not.
    let parent = |table: &Table<'_, AtomicU64>| {
        let place = |hash: u64| ((hash >> 32) * 4) >> 32;
        let after = Generation::of(4, 0, 1);
        let fits = |parent: &u64| {
            let key = table.key(after, *parent, b"n").unwrap();
            place(key.hash) == 0 && place(table.hash_of(after, *parent)) != 0
        };
        (1..).find(fits).unwrap()
    };
    let anew = move |shared: &Shared| {
        let table = shared.table();
        table.renew();
        let (generation, parent) = (table.generation(), parent(&table));
        let key = table.key(generation, parent, b"n").unwrap();
        let unmark = |parent| {
            table.unmark(generation, parent);
        };
        if table.publish_name(&key, (3, Kind::Other), Expiry::NEVER, unmark, || true) {
            table.mark(generation, parent, Expiry::NEVER, || true);
        }
    };
    let afterwards = move |shared: &Shared| {
        let table = shared.table();
        assert_ne!(table.probe(parent(&table), b"n", &mut Clock::default()), Walked::Absent);
    };
    while_it_grows(2, |_| (), anew, afterwards);
}

/// There is no room for a name when the table grows, while somebody who has begun before marks its directory complete.
#[test]
fn a_name_without_room_is_not_absent() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(1);
    builder.max_branches = 100_000;
    builder.check(move || {
        // It uses two sets before: what was in the second goes to five of the nine, each of which may get some from the first, too.
        let shared = Shared::growing(9);
        let table = shared.table();
        let now = table.generation();
        // Five of each set that meet in the fifth.
        let place = |hash: u64, sets: u64| ((hash >> 32) * sets) >> 32;
        let of_set = |set: u64| {
            let names = (0u32..).map(|number| number.to_string()).filter(move |name| {
                let hash = table.key(now, 1, name.as_bytes()).unwrap().hash;
                place(hash, 9) == 4 && place(hash, 2) == set
            });
            names.take(5)
        };
        let names: Vec<_> = of_set(0).chain(of_set(1)).collect();
        names.iter().for_each(|name| publish(&table, name.as_bytes(), (3, Kind::Other)));
        let grower = thread::spawn({
            let shared = shared.clone();
            move || grow(&shared)
        });
        // All were published in this generation, and none has left as far as is counted.
        table.mark(now, 1, Expiry::NEVER, || shared.is_current(0));
        grower.join().unwrap();
        names.iter().for_each(|name| assert_ne!(probe(&shared, name.as_bytes()), Walked::Absent));
    });
}
