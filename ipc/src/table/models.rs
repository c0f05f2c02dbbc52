//! What may happen between readers, publishers and those who change something, in every order that the memory model allows.

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
        let words: Vec<_> = (0..MODEL_WORDS).map(|_| AtomicU64::new(0)).collect();
        words[GENERATION_AT].store(1, Ordering::Relaxed);
        words[HOLDER_AT].store(1, Ordering::Relaxed);
        Arc::new(Self { words, changes: AtomicU64::new(0), shape })
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
const HEADER_WORDS: usize = 3 * LINE;
const MODEL_WORDS: usize = HEADER_WORDS + 2 * SET_NARROW + SET_WIDE;

const _: () = assert!(MODEL_WORDS < WORDS);

fn probe(shared: &Shared, name: &[u8]) -> Walked<Kind> {
    shared.table().probe(1, name, &mut Clock::default())
}

/// Attributes all of whose fields tell which version they are.
fn version(number: u64) -> Attr {
    Attr {
        ino: 3,
        size: number,
        blocks: number,
        nlink: number as u32,
        blksize: number as u32,
        ..Attr::default()
    }
}

fn limited(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(f);
}

#[test]
fn attributes_are_seen_whole() {
    limited(|| {
        let shared = Shared::new();
        shared.table().publish_attr(1, &version(1), Expiry::NEVER, || true);
        let writer = thread::spawn({
            let shared = shared.clone();
            move || shared.table().publish_attr(1, &version(2), Expiry::NEVER, || true)
        });
        if let Looked::Found(entry) = shared.table().find_attr(1, 3) {
            let seen = unpack(&entry.words);
            assert!(seen == version(1) || seen == version(2), "{seen:?}");
        }
        writer.join().unwrap();
    });
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
                let key = table.key(1, 1, b"n").unwrap();
                let is_current = || shared.is_current(mark);
                table.publish_name(&key, (0, Kind::Absent), Expiry::NEVER, |_| (), is_current);
            }
        });
        let table = shared.table();
        shared.change();
        table.take_name(&table.key(1, 1, b"n").unwrap(), |_| ());
        assert_ne!(probe(&shared, b"n"), Walked::Absent, "the change is acknowledged here");
        publisher.join().unwrap();
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
    });
}

/// As above, for a third party that hears of the change's acknowledgement.
#[test]
fn whoever_hears_of_a_change_sees_it() {
    limited(|| {
        let shared = Shared::new();
        let acknowledged = Arc::new(AtomicU64::new(0));
        let table = shared.table();
        table.publish_name(
            &table.key(1, 1, b"n").unwrap(),
            (0, Kind::Absent),
            Expiry::NEVER,
            |_| (),
            || true,
        );
        let mutator = thread::spawn({
            let (shared, acknowledged) = (shared.clone(), acknowledged.clone());
            move || {
                let table = shared.table();
                shared.change();
                table.take_name(&table.key(1, 1, b"n").unwrap(), |_| ());
                acknowledged.store(1, Ordering::Release);
            }
        });
        let heard = acknowledged.load(Ordering::Acquire) == 1;
        let seen = probe(&shared, b"n");
        assert!(!heard || seen != Walked::Absent);
        mutator.join().unwrap();
    });
}

/// A file is removed and its node id given to another one: nobody gets the other one's attributes by the first one's name.
#[test]
fn a_name_leads_to_no_other_files_attributes() {
    limited(|| {
        let shared = Shared::new();
        let table = shared.table();
        table.publish_attr(1, &version(1), Expiry::NEVER, || true);
        table.publish_name(&table.key(1, 1, b"n").unwrap(), (3, Kind::Other), Expiry::NEVER, |_| (), || true);
        let mutator = thread::spawn({
            let shared = shared.clone();
            move || {
                let table = shared.table();
                shared.change();
                table.take_name(&table.key(1, 1, b"n").unwrap(), |_| ());
                table.publish_attr(1, &version(2), Expiry::NEVER, || true);
            }
        });
        match table.stat(1, b"n", false, &mut Clock::default()) {
            Walked::Found(attr) => assert_eq!(attr, version(1)),
            Walked::Absent => panic!("nothing said so"),
            Walked::Unclear => {}
        }
        mutator.join().unwrap();
    });
}

/// A name leaves a complete directory for want of room: nobody takes that for its absence.
#[test]
fn a_name_that_leaves_a_complete_directory_is_not_absent() {
    limited(|| {
        let shared = Shared::new();
        let departures = Arc::new(AtomicU64::new(0));
        let table = shared.table();
        let key = table.key(1, 1, b"n").unwrap();
        table.publish_name(&key, (3, Kind::Other), Expiry::NEVER, |_| (), || true);
        let leaver = thread::spawn({
            let (shared, departures) = (shared.clone(), departures.clone());
            move || {
                let table = shared.table();
                let key = table.key(1, 1, b"n").unwrap();
                // As eviction does: told before it goes.
                table.take_name(&key, |parent| {
                    departures.fetch_add(1, Ordering::AcqRel);
                    table.unmark(1, parent);
                });
            }
        });
        let before = departures.load(Ordering::Acquire);
        if table.holds(&key) {
            table.mark(1, 1, Expiry::NEVER, || departures.fetch_add(0, Ordering::AcqRel) == before);
        }
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
        leaver.join().unwrap();
        assert_ne!(probe(&shared, b"n"), Walked::Absent);
    });
}
