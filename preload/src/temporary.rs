//! Names of temporary files, as libc makes them up (`__gen_tempname`).

#![forbid(unsafe_code)]

use std::time::UNIX_EPOCH;

/// What of a template is replaced.
const PLACE: &[u8] = b"XXXXXX";
const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
/// So many names libc tries.
pub(crate) const ATTEMPTS: u32 = 62 * 62 * 62;

/// Finds the six places of a template, in front of a suffix of so many bytes; `None` (`EINVAL`) if they are not there.
pub(crate) fn place(template: &mut [u8], suffix: i32) -> Option<&mut [u8]> {
    let suffix = usize::try_from(suffix).ok()?;
    let end = template.len().checked_sub(suffix)?;
    let place = template.get_mut(end.checked_sub(PLACE.len())?..end)?;
    (place == PLACE).then_some(place)
}

/// Puts a name there that nobody can guess.
pub(crate) fn make_up(place: &mut [u8]) {
    let mut number = random();
    for letter in place {
        *letter = LETTERS[(number % 62) as usize];
        number /= 62;
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_ne_bytes(bytes),
        // Soon after the machine's start: O_EXCL keeps it safe, and another name is tried.
        _ => UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_six_letters_before_the_suffix() {
        for (template, suffix, found) in [
            ("/tmp/aXXXXXX", 0, true),
            ("XXXXXX", 0, true),
            ("aXXXXXX.c", 2, true),
            ("aXXXXXX.c", 0, false),
            ("aXXXXXX.c", 1, false),
            ("XXXXX", 0, false),
            ("XXXXXX", 1, false),
            ("XXXXXX", -1, false),
            ("XXXXXX", i32::MAX, false),
            ("", 0, false),
        ] {
            let mut text = template.as_bytes().to_vec();
            assert_eq!(place(&mut text, suffix).is_some(), found, "{template} {suffix}");
        }
    }

    #[test]
    fn names_are_made_of_letters_and_digits_and_differ() {
        let mut names = std::collections::HashSet::new();
        for _ in 0..100 {
            let mut name = *b"XXXXXX";
            make_up(&mut name);
            assert!(name.iter().all(u8::is_ascii_alphanumeric));
            names.insert(name);
        }
        assert!(names.len() > 90);
    }
}
