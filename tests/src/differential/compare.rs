//! What must agree.

use super::calls::CALLS;
use super::script::Script;
use super::site::{Outcome, Roads};

/// A difference between a native directory and any FUSE file system, which the kernel makes before it asks anybody.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// The calls, by their names in the table.
    pub calls: &'static [&'static str],
    /// What the call says natively begins with this.
    pub native: &'static str,
    /// What it says on FUSE begins with this.
    pub fuse: &'static str,
    /// The kernel function that decides.
    pub because: &'static str,
}

/// All of them. A script is compared with the native directory up to the first.
pub const EXCUSES: &[Excuse] = &[];

/// How two outcomes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step, if it was one.
    pub step: Option<usize>,
    /// Where.
    pub roads: (Roads, Roads),
    /// What was said here and there.
    pub said: (String, String),
}

/// Compares what two roads did.
pub fn compare(script: &Script, expected: (Roads, &Outcome), found: (Roads, &Outcome)) -> Option<Difference> {
    let (one, two) = (expected.1, found.1);
    let roads = (expected.0, found.0);
    let of = |list: &[String], index: usize| list.get(index).cloned().unwrap_or_else(|| "nothing".to_owned());
    for index in 0..one.results.len().max(two.results.len()) {
        let said = (of(&one.results, index), of(&two.results, index));
        if said.0 == said.1 {
            continue;
        }
        if roads.0 == Roads::Native && excused(script, index, &said) {
            return None;
        }
        return Some(Difference { step: Some(index), roads, said });
    }
    for (left, right) in [(&one.tree, &two.tree), (&one.source, &two.source), (&two.source, &two.tree)] {
        if left != right {
            return Some(Difference { step: None, roads, said: lines_that_differ(left, right) });
        }
    }
    None
}

fn excused(script: &Script, index: usize, said: &(String, String)) -> bool {
    let Some(step) = script.steps.get(index) else { return false };
    let name = CALLS[step.call].name;
    EXCUSES.iter().any(|excuse| {
        excuse.calls.contains(&name) && said.0.starts_with(excuse.native) && said.1.starts_with(excuse.fuse)
    })
}

fn lines_that_differ(one: &str, two: &str) -> (String, String) {
    let only = |one: &str, two: &str| {
        let lines: Vec<_> = one.lines().filter(|line| !two.lines().any(|other| other == *line)).collect();
        format!("afterwards {}", lines.join("; "))
    };
    (only(one, two), only(two, one))
}
