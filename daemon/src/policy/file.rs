//! The text of a policy: one rule a line. finesse-policy(5) describes it.

use std::path::PathBuf;

use finesse_ebpf::rules::{Operations, Rule, Who};

/// `NAME_MAX`.
const NAME_MAX: usize = 255;

/// What operations are called.
const OPERATIONS: [(&str, Operations); 8] = [
    ("nothing", Operations::NOTHING),
    ("search", Operations::SEARCH),
    ("list", Operations::LIST),
    ("read", Operations::READ),
    ("write", Operations::WRITE),
    ("create", Operations::CREATE),
    ("remove", Operations::REMOVE),
    ("all", Operations::ALL),
];

/// What is wrong with a policy's text.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {what}", file.display())]
pub struct Error {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1 on.
    pub line: usize,
    /// What is wrong there, and what to do.
    pub what: String,
}

/// Finds the ids of users and groups by their names.
pub trait Names {
    /// A user's id.
    fn user(&self, name: &str) -> Option<u32>;
    /// A group's id.
    fn group(&self, name: &str) -> Option<u32>;
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'t> {
    /// Where it stands, from 1 on.
    pub(super) number: usize,
    /// The names that lead from the root to the directory.
    pub(super) path: Vec<&'t [u8]>,
    /// Each directory in it is meant, rather than itself.
    pub(super) each: bool,
    pub(super) rule: Rule,
}

/// Reads all lines.
///
/// # Errors
/// The number of the first line that is wrong, and what is wrong.
pub(super) fn parse<'t>(text: &'t [u8], names: &dyn Names) -> Result<Vec<Line<'t>>, (usize, String)> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    let mut number = 0;
    for line in text.split(|byte| *byte == b'\n') {
        number += 1;
        let line = line.trim_ascii();
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let (path, each, rule) = parse_line(line, names).map_err(|what| (number, what))?;
        let earlier = lines.iter().find(|other| {
            let counts_first = other.rule.who == rule.who || other.rule.who == Who::Everyone;
            counts_first && (&other.path, other.each) == (&path, each)
        });
        if let Some(earlier) = earlier {
            let what = format!(
                "this rule can never count, because line {} does for the same subtree; remove it, or put it before that line",
                earlier.number
            );
            return Err((number, what));
        }
        lines.push(Line { number, path, each, rule });
    }
    match lines.is_empty() {
        true => Err((number, "no rule; a line is WHO OPERATIONS SUBTREE".to_owned())),
        false => Ok(lines),
    }
}

fn parse_line<'t>(line: &'t [u8], names: &dyn Names) -> Result<(Vec<&'t [u8]>, bool, Rule), String> {
    let (who, rest) = word(line);
    let (allowed, subtree) = word(rest);
    if subtree.is_empty() {
        return Err("incomplete; a line is WHO OPERATIONS SUBTREE".to_owned());
    }
    let rule = Rule { who: parse_who(text(who)?, names)?, allowed: parse_operations(text(allowed)?)? };
    let (path, each) = parse_subtree(subtree)?;
    Ok((path, each, rule))
}

/// The first word, and what follows it and blanks.
fn word(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

fn text(word: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(word).map_err(|_| format!("{}: not UTF-8", String::from_utf8_lossy(word)))
}

fn parse_who(word: &str, names: &dyn Names) -> Result<Who, String> {
    let unknown = |kind: &str, name: &str| {
        format!("{word}: there is no {kind} {name}; give a number, or add the {kind}")
    };
    // The kernel has no such id (`uid_valid`).
    let id = |name: &str| match name.parse() {
        Ok(u32::MAX) => None,
        Ok(id) if name.bytes().all(|byte| byte.is_ascii_digit()) => Some(id),
        _ => None,
    };
    match word.split_once(':') {
        None if word == "everyone" => Ok(Who::Everyone),
        Some(("user", name)) if !name.is_empty() => {
            id(name).or_else(|| names.user(name)).map(Who::User).ok_or_else(|| unknown("user", name))
        }
        Some(("group", name)) if !name.is_empty() => {
            id(name).or_else(|| names.group(name)).map(Who::Group).ok_or_else(|| unknown("group", name))
        }
        _ => Err(format!("{word}: nobody is called that; write everyone, user:NAME or group:NAME")),
    }
}

fn parse_operations(word: &str) -> Result<Operations, String> {
    let mut operations = Operations::NOTHING;
    for name in word.split(',') {
        let known = OPERATIONS.iter().find(|(known, _)| *known == name);
        let Some((_, operation)) = known else {
            let list = OPERATIONS.map(|(name, _)| name).join(", ");
            return Err(format!("{name:?}: no such operation; known are {list}, separated by commas"));
        };
        if matches!(*operation, Operations::NOTHING | Operations::ALL) && word != name {
            return Err(format!("{word}: {name} stands alone"));
        }
        operations = operations | *operation;
    }
    Ok(operations)
}

fn parse_subtree(subtree: &[u8]) -> Result<(Vec<&[u8]>, bool), String> {
    let shown = String::from_utf8_lossy(subtree);
    let Some(below) = subtree.strip_prefix(b"/") else {
        return Err(format!("{shown}: a subtree begins with a slash, which is the root of the mount"));
    };
    let below = below.strip_suffix(b"/").unwrap_or(below);
    let mut path: Vec<&[u8]> = match below {
        b"" => Vec::new(),
        below => below.split(|byte| *byte == b'/').collect(),
    };
    let each = path.last() == Some(&&b"*"[..]);
    if each {
        path.pop();
    }
    for name in &path {
        match *name {
            b"" => return Err(format!("{shown}: two slashes after one another; write one")),
            b"." | b".." => return Err(format!("{shown}: write the path without . and ..")),
            name if name.contains(&b'*') => {
                return Err(format!("{shown}: * stands alone, as the last name"));
            }
            name if name.contains(&0) || name.len() > NAME_MAX => {
                return Err(format!("{shown}: no file can have that name"));
            }
            _ => {}
        }
    }
    Ok((path, each))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Some users and groups.
    pub(crate) struct Few;

    impl Names for Few {
        fn user(&self, name: &str) -> Option<u32> {
            (name == "mail").then_some(8)
        }

        fn group(&self, name: &str) -> Option<u32> {
            (name == "media").then_some(30)
        }
    }

    fn only(line: &str) -> Result<(Vec<String>, bool, Rule), String> {
        let lines = parse(line.as_bytes(), &Few).map_err(|(_, what)| what)?;
        let names = lines[0].path.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok((names, lines[0].each, lines[0].rule))
    }

    #[test]
    fn a_line_says_who_may_do_what_where() {
        let rule = |who, allowed| Rule { who, allowed };
        let search_and_list = Operations::SEARCH | Operations::LIST;
        for (line, path, each, expected) in [
            ("everyone nothing /", &[][..], false, rule(Who::Everyone, Operations::NOTHING)),
            ("user:8 all /a", &["a"], false, rule(Who::User(8), Operations::ALL)),
            ("user:mail all /a/", &["a"], false, rule(Who::User(8), Operations::ALL)),
            (
                "\tgroup:media  search,list /a b/c ",
                &["a b", "c"],
                false,
                rule(Who::Group(30), search_and_list),
            ),
            ("group:0 write /a/*", &["a"], true, rule(Who::Group(0), Operations::WRITE)),
            ("everyone read /*", &[], true, rule(Who::Everyone, Operations::READ)),
        ] {
            let path = path.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(only(line), Ok((path, each, expected)), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("everyone all /{}", "x".repeat(256));
        for (line, begins) in [
            ("everyone", "incomplete"),
            ("everyone all", "incomplete"),
            ("all everyone /", "all: nobody is called that"),
            ("user: all /", "user:: nobody"),
            ("user:nobody-here all /", "user:nobody-here: there is no user nobody-here"),
            ("user:-1 all /", "user:-1: there is no user -1"),
            ("user:4294967295 all /", "user:4294967295: there is no user"),
            ("group:4294967296 all /", "group:4294967296: there is no group"),
            ("everyone read,all /", "read,all: all stands alone"),
            ("everyone nothing,read /", "nothing,read: nothing stands alone"),
            ("everyone reed /", "\"reed\": no such operation"),
            ("everyone read, /", "\"\": no such operation"),
            ("everyone all a", "a: a subtree begins with a slash"),
            ("everyone all /a//b", "/a//b: two slashes"),
            ("everyone all /a/../b", "/a/../b: write the path without"),
            ("everyone all /a/*/b", "/a/*/b: * stands alone"),
            ("everyone all /a*", "/a*: * stands alone"),
            (&long, "/xxx"),
            ("# nothing else", "no rule"),
        ] {
            let what = only(line).unwrap_err();
            assert!(what.starts_with(begins), "{line}: {what}");
        }
    }

    #[test]
    fn a_rule_that_can_never_count_is_an_error_and_its_line_is_told() {
        for (text, line) in [
            ("user:1 all /a\n\nuser:1 read /a/", 3),
            ("everyone all /a\nuser:1 read /a", 2),
            ("everyone all /a/*\n#\n#\nuser:1 read /a/*", 4),
        ] {
            let (number, what) = parse(text.as_bytes(), &Few).unwrap_err();
            assert_eq!(number, line, "{what}");
            assert!(what.contains("line 1 does for the same subtree"), "{what}");
        }
        let different = "user:1 all /a\ngroup:1 all /a\neveryone all /a\nuser:1 all /a/*\nuser:1 all /b";
        assert_eq!(parse(different.as_bytes(), &Few).unwrap().len(), 5);
    }
}
