//! Rules that say who may do what in which part of a file system, enforced on both roads before the file system is asked.
//!
//! | module | does |
//! | --- | --- |
//! | [`file`] | reads a policy's text |
//! | [`guard`] | enforces the policy of one mount |
//!
//! Where an inode is decides which rules apply, and an inode has one place for as long as it lives: what would move it to a place
//! with other rules fails with `EXDEV`, as between file systems.

mod file;
pub(crate) mod guard;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use finesse_ebpf::rules::{Operations, Rule, Rules};
use hashbrown::HashMap;

use file::Line;
pub use file::{Error, Names};

/// Most rules of all places together, each counted wherever it applies.
const RULES_MAX: usize = 1 << 16;

/// A place in a policy: which rules apply to an inode, and which to what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Label(u32);

impl Label {
    /// The root's.
    pub(crate) const ROOT: Self = Self(0);
}

/// A place in the tree of all directories that the rules name.
#[derive(Debug)]
struct Place {
    /// Whose rules apply.
    zone: u32,
    children: HashMap<Box<[u8]>, Label>,
    /// Where any other directory in it is.
    each: Option<Label>,
    /// Where everything else in it is.
    below: Label,
}

/// Who may do what in which part of a file system.
#[derive(Debug)]
pub struct Policy {
    places: Vec<Place>,
    rules: Rules,
    lines: usize,
    /// The directories that rules name.
    subtrees: Vec<PathBuf>,
}

/// A place while the tree is built.
#[derive(Default)]
struct Sprout<'t> {
    children: Vec<(&'t [u8], Sprout<'t>)>,
    each: Option<Vec<Rule>>,
    own: Vec<Rule>,
}

impl<'t> Sprout<'t> {
    fn add(&mut self, line: &Line<'t>) {
        let mut place = self;
        for name in &line.path {
            let index = place.children.iter().position(|(other, _)| other == name).unwrap_or_else(|| {
                place.children.push((name, Sprout::default()));
                place.children.len() - 1
            });
            place = &mut place.children[index].1;
        }
        if line.each { place.each.get_or_insert_default() } else { &mut place.own }.push(line.rule);
    }
}

impl Policy {
    /// Reads a policy's text; `file` is what messages call it.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &[u8], file: &Path, names: &dyn Names) -> Result<Self, Error> {
        let wrong = |(line, what)| Error { file: file.to_owned(), line, what };
        let lines = file::parse(text, names).map_err(wrong)?;
        let mut root = Sprout::default();
        for line in &lines {
            root.add(line);
        }
        let mut builder =
            Builder { places: Vec::new(), zones: vec![root.own.clone()], rules: root.own.len() };
        builder.grow(&root, 0);
        if builder.rules > RULES_MAX {
            let what =
                format!("more than {RULES_MAX} rules, counted in each subtree where they apply; nest fewer");
            return Err(wrong((lines.last().map_or(1, |line| line.number), what)));
        }
        let path = |line: &Line<'_>| line.path.iter().map(|name| OsStr::from_bytes(name)).collect();
        Ok(Self {
            places: builder.places,
            rules: Rules::new(&builder.zones),
            lines: lines.len(),
            subtrees: lines.iter().map(path).collect(),
        })
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Never: a text without rules is an error.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// The directories that the rules name, relative to the root.
    pub fn subtrees(&self) -> &[PathBuf] {
        &self.subtrees
    }

    /// Whether a caller's way through the file system depends on who he is.
    pub(crate) fn limits_walks(&self) -> bool {
        self.places.iter().any(|place| !self.rules.always(place.zone).contain(Operations::SEARCH))
    }

    fn place(&self, label: Label) -> &Place {
        &self.places[label.0 as usize]
    }

    /// Where the things are that no rule names, nor leads to: most of a file system.
    fn elsewhere(&self) -> Label {
        self.place(Label::ROOT).below
    }

    /// Where a name in a directory is.
    pub(crate) fn step(&self, directory: Label, name: &OsStr) -> Label {
        let place = self.place(directory);
        // Most directories are on the way to none.
        match place.children.is_empty() {
            true => place.each.unwrap_or(place.below),
            false => match place.children.get(name.as_bytes()) {
                Some(child) => *child,
                None => place.each.unwrap_or(place.below),
            },
        }
    }

    /// Whether what has one name may have the other: the same rules apply to it and all below, and to finding it.
    pub(crate) fn may_move(&self, from: (Label, &OsStr), to: (Label, &OsStr)) -> bool {
        self.step(from.0, from.1) == self.step(to.0, to.1) && self.place(from.0).zone == self.place(to.0).zone
    }

    /// What everybody may do at a place.
    fn always(&self, label: Label) -> Operations {
        self.rules.always(self.place(label).zone)
    }
}

struct Builder {
    places: Vec<Place>,
    /// The rules of each zone, those of the innermost subtree first.
    zones: Vec<Vec<Rule>>,
    /// In all zones. Beyond the limit no more are added.
    rules: usize,
}

impl Builder {
    /// Adds a place whose zone is made already, and all below it.
    fn grow(&mut self, sprout: &Sprout<'_>, zone: u32) -> Label {
        let own = self.add(zone);
        if sprout.children.is_empty() && sprout.each.is_none() {
            return own;
        }
        let below = self.add(zone);
        // What rules name by itself, those for each directory apply to as well.
        let each_zone = self.zone(sprout.each.as_deref().unwrap_or_default(), zone);
        let each = sprout.each.is_some().then(|| self.add(each_zone));
        let children = sprout.children.iter().map(|(name, child)| {
            let zone = self.zone(&child.own, each_zone);
            ((*name).into(), self.grow(child, zone))
        });
        let children = children.collect();
        let place = &mut self.places[own.0 as usize];
        (place.children, place.each, place.below) = (children, each, below);
        own
    }

    /// A place that leads to no other.
    fn add(&mut self, zone: u32) -> Label {
        let label = Label(self.places.len() as u32);
        self.places.push(Place { zone, children: HashMap::new(), each: None, below: label });
        label
    }

    /// The zone where `own` come before the rules of the zone outside.
    fn zone(&mut self, own: &[Rule], outside: u32) -> u32 {
        if own.is_empty() {
            return outside;
        }
        let outer = &self.zones[outside as usize];
        self.rules += own.len() + outer.len();
        if self.rules > RULES_MAX {
            return outside;
        }
        self.zones.push(own.iter().chain(outer).copied().collect());
        (self.zones.len() - 1) as u32
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), Path::new("policy"), &file::tests::Few).unwrap()
    }

    fn label(policy: &Policy, path: &str) -> Label {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.fold(Label::ROOT, |label, name| policy.step(label, OsStr::new(name)))
    }

    fn allowed(policy: &Policy, user: u32, path: &str) -> Operations {
        policy.rules.allowed(policy.place(label(policy, path)).zone, user, || Some([]))
    }

    #[test]
    fn the_innermost_subtree_with_a_rule_for_the_caller_decides() {
        let policy = policy(
            "everyone search,list /\n\
             user:1 all /a/b\n\
             user:2 read /a\n\
             everyone write /a/b/c\n\
             user:3 nothing /a/*\n\
             user:4 create /d/e/f",
        );
        let (outer, all) = (Operations::SEARCH | Operations::LIST, Operations::ALL);
        for (user, path, expected) in [
            (1, "", outer),
            (1, "a", outer),
            (1, "a/b", all),
            (1, "a/b/x/y", all),
            (1, "a/b/c", Operations::WRITE),
            (1, "a/b/c/d", Operations::WRITE),
            (1, "a/x", outer),
            (2, "a", Operations::READ),
            (2, "a/b/x", Operations::READ),
            (3, "a", outer),
            (3, "a/b", Operations::NOTHING),
            (3, "a/b/x", Operations::NOTHING),
            (3, "a/x/y/z", Operations::NOTHING),
            (3, "a/b/c", Operations::WRITE),
            (4, "d/e", outer),
            (4, "d/e/f/g", Operations::CREATE),
            (4, "d/f", outer),
        ] {
            assert_eq!(allowed(&policy, user, path), expected, "user {user} at /{path}");
        }
    }

    #[test]
    fn places_differ_where_the_rules_do_or_where_they_lead_to_rules() {
        let policy = policy("everyone all /a/b\neveryone nothing /c/*");
        let same = |one, other| label(&policy, one) == label(&policy, other);
        assert!(same("x", "y/z"));
        assert!(same("a/x", "a/y/z"));
        assert!(same("a/b/x", "a/b/y/z"));
        assert!(same("c/x", "c/y"));
        assert!(!same("a", "x"), "renamed, it would not lead to the rule any more");
        assert!(!same("a/b", "a/c"));
        assert!(!same("c/x", "x"));
        assert_eq!(label(&policy, "x"), policy.elsewhere());
    }

    #[test]
    fn walks_are_limited_where_somebody_may_not_search() {
        assert!(!policy("everyone search,list /a").limits_walks());
        assert!(policy("user:1 list /a").limits_walks());
        assert!(policy("user:1 all /a\ngroup:1 nothing /a/*").limits_walks());
    }

    #[test]
    fn a_wrong_line_is_told_with_the_files_name() {
        let error = Policy::parse(b"\neveryone sing /", Path::new("/etc/p"), &file::tests::Few).unwrap_err();
        assert!(error.to_string().starts_with("/etc/p:2: \"sing\": no such operation"), "{error}");
    }

    #[test]
    fn rules_that_multiply_by_nesting_are_limited() {
        let mut text = String::new();
        let mut path = String::new();
        for depth in 0..400 {
            path.push_str("/d");
            text.push_str(&format!("user:{depth} all {path}\n"));
        }
        let error = Policy::parse(text.as_bytes(), Path::new("p"), &file::tests::Few).unwrap_err();
        assert!(error.what.starts_with("more than 65536 rules"), "{error}");
    }
}
