//! The file of `finesse mount -o policy=FILE`.

use std::path::{Path, PathBuf};

use finesse::policy::{Names, Policy};

use super::{Failure, Outcome, plain, sys};

/// Users and groups of this machine.
struct Machine;

impl Names for Machine {
    fn user(&self, name: &str) -> Option<u32> {
        sys::user_id(name)
    }

    fn group(&self, name: &str) -> Option<u32> {
        sys::group_id(name)
    }
}

/// Reads a policy.
///
/// # Errors
/// The file cannot be read, or what is wrong with it, with the number of the line.
pub(crate) fn read(file: &Path) -> Outcome<Policy> {
    let text = std::fs::read(file)
        .map_err(|error| Failure::new(format!("-o policy={}: {}", file.display(), plain(&error))))?;
    Policy::parse(&text, file, &Machine).map_err(|error| Failure::new(format!("policy {error}")))
}

/// Refuses rules that would never apply, because their subtree lies behind a symbolic link of the source.
///
/// # Errors
/// Names the link.
pub(crate) fn look_for_links(policy: &Policy, source: &Path) -> Outcome {
    for subtree in policy.subtrees() {
        let mut path = PathBuf::new();
        for name in subtree {
            path.push(name);
            // What does not exist may be made later.
            if source.join(&path).symlink_metadata().is_ok_and(|found| found.is_symlink()) {
                return Err(Failure::new(format!(
                    "policy: no rule for /{} would ever apply, because /{} is a symbolic link; name the directory that it leads to",
                    subtree.display(),
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), Path::new("p"), &Machine).unwrap()
    }

    #[test]
    fn users_and_groups_are_found_by_name() {
        assert_eq!((Machine.user("root"), Machine.group("root")), (Some(0), Some(0)));
        assert_eq!((Machine.user("no such user"), Machine.group("no such group")), (None, None));
        assert_eq!((Machine.user("a\0b"), Machine.group("a\0b")), (None, None));
    }

    #[test]
    fn a_file_that_is_not_there_or_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy");
        let refusal = || read(&file).unwrap_err().to_string();
        assert!(refusal().ends_with("policy: No such file or directory"), "{}", refusal());
        std::fs::write(&file, "everyone all /a\neveryone most /b\n").unwrap();
        assert!(refusal().contains("/policy:2: \"most\": no such operation"), "{}", refusal());
    }

    #[test]
    fn subtrees_behind_symbolic_links_are_refused() {
        let source = tempfile::tempdir().unwrap();
        std::fs::create_dir(source.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", source.path().join("link")).unwrap();
        assert!(look_for_links(&policy("everyone all /real/later/x"), source.path()).is_ok());
        let refusal = look_for_links(&policy("everyone all /link/x"), source.path()).unwrap_err().to_string();
        assert!(refusal.contains("/link is a symbolic link"), "{refusal}");
    }

    #[test]
    fn the_example_of_the_manual_is_a_policy() {
        let page = crate::command::man::POLICY;
        let example = page.split(".EX\n").nth(1).and_then(|rest| rest.split(".EE").next()).unwrap();
        let rules = example.replace("\\-", "-");
        let rules = rules.replace("media", "root").replace("user:backup", "user:0");
        assert_eq!(policy(&rules).len(), 5);
    }
}
