//! Children that use this process's memory until they execute a program or end (`vfork`), while the thread that made them waits.
//!
//! Such a child has descriptors, a current directory and a mask of its own, but only our tables, which tell of its
//! parent's. So in it each hook calls the next definition at once: the kernel serves, and nothing is noted. Before it begins,
//! what is virtual becomes the kernel's, as before a fork, and what it may hand on to a program is written down.
//!
//! Whether a hook runs in such a child shows in the thread's own storage, which the child shares, and in the process's
//! number, which it does not: a signal handler that runs in the parent, just before or after, is no child.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::dirstreams::{self, Before};
use crate::exec;
use crate::files;
use crate::sys::{self, Pages};
use crate::virtuals;

/// How many threads of this process are making such children, or wait for them.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// What a thread and the child that runs on its stack know of each other.
struct Here {
    /// The thread's process; 0 if it makes no child.
    parent: Cell<libc::pid_t>,
    /// How often it has begun: a signal handler may make a child while one is being made.
    depth: Cell<u32>,
    /// The granted files that the child may hand on, as a variable's value.
    granted: Cell<Option<Pages>>,
    /// The environment that the child has made for the program that it executes.
    environment: Cell<Option<Pages>>,
}

thread_local! {
    // Without a destructor, which would have to be registered.
    static HERE: ManuallyDrop<Here> = const {
        ManuallyDrop::new(Here {
            parent: Cell::new(0),
            depth: Cell::new(0),
            granted: Cell::new(None),
            environment: Cell::new(None),
        })
    };
}

/// Whether any thread waits for such a child.
#[inline]
pub(crate) fn are_under_way() -> bool {
    UNDER_WAY.load(Ordering::Relaxed) != 0
}

/// Whether this is such a child, or was forked by one.
#[inline]
pub(crate) fn is_child() -> bool {
    are_under_way() && is_child_of_this_thread()
}

#[cold]
fn is_child_of_this_thread() -> bool {
    let parent = HERE.with(|here| here.parent.get());
    parent != 0 && parent != sys::this_process()
}

/// Before the child is made. [`after`] follows in the parent, whatever comes of it.
///
/// # Errors
/// A description could not be promoted: there must be no child.
pub(crate) fn before() -> Result<(), i32> {
    if is_child() {
        return Ok(());
    }
    dirstreams::settle(Before::Process);
    virtuals::close_gate();
    if let Err(errno) = files::promote_all() {
        virtuals::open_gate();
        return Err(errno);
    }
    let granted = exec::handed_to_a_child();
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    HERE.with(|here| {
        here.granted.set(granted);
        here.depth.set(here.depth.get() + 1);
        here.parent.set(sys::this_process());
    });
    Ok(())
}

/// In the parent, when the child has executed a program or ended, or there is none.
pub(crate) fn after() {
    if is_child() {
        return;
    }
    HERE.with(|here| {
        let depth = here.depth.get() - 1;
        here.depth.set(depth);
        if depth == 0 {
            here.parent.set(0);
            here.granted.set(None);
        }
        here.environment.set(None);
    });
    UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    virtuals::open_gate();
}

/// Runs what makes such a child and returns in the parent alone.
///
/// # Errors
/// As [`before`].
pub(crate) fn around<R>(run: impl FnOnce() -> R) -> Result<R, i32> {
    before()?;
    let result = run();
    after();
    Ok(result)
}

/// In a forked child, by whose number no thread waits for anything; `false` if it was forked by such a child: then our
/// tables tell of neither.
pub(crate) fn after_fork() -> bool {
    let is_known = !is_child();
    if is_known {
        UNDER_WAY.store(0, Ordering::SeqCst);
    }
    is_known
}

/// In the child: calls `read` with the granted files that it may hand on.
pub(crate) fn with_granted<R>(read: impl FnOnce(&[u8]) -> R) -> R {
    HERE.with(|here| {
        let mut pages = here.granted.take();
        let result = read(pages.as_mut().map_or(&[], |pages| pages.bytes()));
        here.granted.set(pages);
        result
    })
}

/// In the child: runs what executes a program. If that succeeds, the parent gives the environment's memory back.
pub(crate) fn executing<R>(environment: Pages, run: impl FnOnce() -> R) -> R {
    HERE.with(|here| {
        here.environment.set(Some(environment));
        let result = run();
        here.environment.set(None);
        result
    })
}
