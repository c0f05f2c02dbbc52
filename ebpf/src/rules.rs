//! Who may do what where: the table that decides, here and in `bpf/walks.bpf.c`, by the same steps.
//!
//! A file system is divided into *zones*, numbered from 0. Each has a list of rules, of which the first that matches the caller
//! counts; if none does, everything is allowed.

use std::collections::HashMap;
use std::ops::BitOr;

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations(u32);

impl Operations {
    /// None.
    pub const NOTHING: Self = Self(0);
    /// Finding a name in a directory.
    pub const SEARCH: Self = Self(1);
    /// Reading a directory's names.
    pub const LIST: Self = Self(1 << 1);
    /// Opening a file for reading, or to execute it.
    pub const READ: Self = Self(1 << 2);
    /// Opening a file for writing; changing the length or the attributes of anything.
    pub const WRITE: Self = Self(1 << 3);
    /// Making a name in a directory.
    pub const CREATE: Self = Self(1 << 4);
    /// Taking a name out of a directory.
    pub const REMOVE: Self = Self(1 << 5);
    /// All of them.
    pub const ALL: Self = Self((1 << 6) - 1);

    /// Both sets.
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Whether all of `others` are in this set.
    pub const fn contain(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// As `bpf/walks.bpf.c` has them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set with these bits; others are dropped.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }
}

impl BitOr for Operations {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

/// Whom a rule is for. Callers are known by the ids by which the kernel checks access to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Every caller.
    Everyone,
    /// One user, by id.
    User(u32),
    /// The members of a group, by id.
    Group(u32),
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is for.
    pub who: Who,
    /// The operations that are allowed; all others are not.
    pub allowed: Operations,
}

/// The first rule of a zone for somebody.
#[derive(Clone, Copy, Debug)]
struct First {
    /// Its place in the zone's list.
    position: u32,
    allowed: Operations,
}

/// No rule.
const NONE: First = First { position: u32::MAX, allowed: Operations::ALL };

#[derive(Clone, Debug)]
struct Zone {
    everyone: First,
    /// The position of the first rule for a group: what comes before it needs no look at the caller's groups.
    groups_from: u32,
    /// What no caller is denied.
    always: Operations,
}

/// The zones of a file system and their rules.
#[derive(Clone, Debug)]
pub struct Rules {
    zones: Vec<Zone>,
    named: HashMap<(u32, Who), First>,
}

impl Rules {
    /// Rules for as many zones as there are lists, each in the order of precedence.
    pub fn new(zones: &[Vec<Rule>]) -> Self {
        let mut rules = Self { zones: Vec::with_capacity(zones.len()), named: HashMap::new() };
        for (number, list) in zones.iter().enumerate() {
            let mut zone = Zone { everyone: NONE, groups_from: NONE.position, always: Operations::ALL };
            for (position, rule) in list.iter().enumerate() {
                let first = First { position: position as u32, allowed: rule.allowed };
                zone.always = Operations(zone.always.0 & rule.allowed.0);
                match rule.who {
                    Who::Everyone => {
                        zone.everyone = first;
                        // No later rule can count.
                        break;
                    }
                    Who::Group(_) if zone.groups_from == NONE.position => zone.groups_from = first.position,
                    Who::Group(_) | Who::User(_) => {}
                }
                rules.named.entry((number as u32, rule.who)).or_insert(first);
            }
            rules.zones.push(zone);
        }
        rules
    }

    /// What a caller may do in a zone. `groups` is asked for only if they matter: all groups that the caller is in, or `None` if
    /// that cannot be known, and then he may do nothing.
    ///
    /// # Panics
    /// There is no such zone.
    pub fn allowed<G: IntoIterator<Item = u32>>(
        &self,
        zone: u32,
        user: u32,
        groups: impl FnOnce() -> Option<G>,
    ) -> Operations {
        let Zone { everyone, groups_from, .. } = self.zones[zone as usize];
        let earlier = |first: First, who| match self.named.get(&(zone, who)) {
            Some(other) if other.position < first.position => *other,
            _ => first,
        };
        let mut first = earlier(everyone, Who::User(user));
        if groups_from < first.position {
            let Some(groups) = groups() else { return Operations::NOTHING };
            first = groups.into_iter().fold(first, |first, group| earlier(first, Who::Group(group)));
        }
        first.allowed
    }

    /// As `bpf/walks.bpf.c` has them: the zones (`struct zone`), and callers (`struct caller`) with their rules (`struct first`).
    #[cfg(programs)]
    #[allow(clippy::type_complexity)]
    pub(crate) fn tables(&self) -> (Vec<[u32; 3]>, Vec<([u32; 3], [u32; 2])>) {
        let zone = |zone: &Zone| [zone.everyone.position, zone.everyone.allowed.0, zone.groups_from];
        let named = self.named.iter().filter_map(|((zone, who), first)| {
            let (kind, id) = match who {
                Who::Everyone => return None,
                Who::User(id) => (1, *id),
                Who::Group(id) => (2, *id),
            };
            Some(([*zone, kind, id], [first.position, first.allowed.0]))
        });
        (self.zones.iter().map(zone).collect(), named.collect())
    }

    /// What everybody may do in a zone.
    ///
    /// # Panics
    /// There is no such zone.
    pub fn always(&self, zone: u32) -> Operations {
        self.zones[zone as usize].always
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(who: Who, allowed: Operations) -> Rule {
        Rule { who, allowed }
    }

    fn allowed(rules: &Rules, user: u32, groups: &[u32]) -> Operations {
        rules.allowed(0, user, || Some(groups.iter().copied()))
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let (read, list) = (Operations::READ, Operations::LIST);
        let rules = Rules::new(&[vec![
            rule(Who::Group(5), read),
            rule(Who::User(1), list),
            rule(Who::Group(6), Operations::WRITE),
            rule(Who::Everyone, Operations::NOTHING),
            rule(Who::User(9), Operations::ALL),
        ]]);
        for (user, groups, expected) in [
            (1, &[][..], list),
            (1, &[6], list),
            (1, &[7, 5, 6], read),
            (2, &[6, 5], read),
            (2, &[6], Operations::WRITE),
            (2, &[7], Operations::NOTHING),
            (9, &[], Operations::NOTHING),
        ] {
            assert_eq!(allowed(&rules, user, groups), expected, "user {user}, groups {groups:?}");
        }
        assert_eq!(rules.always(0), Operations::NOTHING);
    }

    #[test]
    fn without_a_rule_everything_is_allowed() {
        let rules = Rules::new(&[vec![rule(Who::User(1), Operations::LIST)], vec![]]);
        assert_eq!(allowed(&rules, 2, &[1]), Operations::ALL);
        assert_eq!(rules.always(0), Operations::LIST);
        assert_eq!(rules.always(1), Operations::ALL);
    }

    #[test]
    fn whose_groups_are_unknown_may_do_nothing_where_they_matter() {
        let rules = Rules::new(&[vec![
            rule(Who::User(1), Operations::LIST),
            rule(Who::Group(5), Operations::ALL),
            rule(Who::User(2), Operations::ALL),
        ]]);
        let unknown = |user| rules.allowed(0, user, || None::<[u32; 0]>);
        assert_eq!(unknown(1), Operations::LIST, "decided before groups matter");
        assert_eq!(unknown(2), Operations::NOTHING);
    }
}
