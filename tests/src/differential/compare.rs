//! What must agree.

use super::calls::{CALLS, Value};
use super::script::{Script, Step};
use super::site::{Outcome, Roads};

/// A difference between a native directory and any FUSE file system, which the kernel makes before it asks anybody.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// Whether a step differs in this way: the steps up to it and what they say on the kernel road, what it says natively or
    /// preloaded, and what on the kernel road.
    pub applies: fn(&[(&Step, &str)], &str, &str) -> bool,
    /// Whether what comes after it differs, too: a script is compared with the native directory up to it.
    pub lasts: bool,
    /// The kernel function that decides.
    pub because: &'static str,
}

/// All of them.
pub const EXCUSES: &[Excuse] = &[
    Excuse {
        applies: |before, native, fuse| {
            let [native, fuse] = [native, fuse].map(without_atime);
            let recent = native.1 == Some("recent") || fuse.1 == Some("recent");
            native.0 == fuse.0 && recent && before.iter().any(|(step, _)| reads(step))
        },
        lasts: false,
        because: "`fuse_iget` sets `S_NOATIME`, so a file was last accessed when the file system was last asked for \
                  contents. `filemap_read` asks for none behind the end of the file and for none that are in the page \
                  cache, `generic_file_mmap` for none either, `force_page_cache_readahead` asks before anybody reads, and \
                  `fuse_passthrough_open` keeps the flags of the open, whatever F_SETFL says later",
    },
    Excuse {
        applies: |before, native, fuse| {
            let step = last(before);
            let asks = name(step) == "fcntl-lock" && number(step, 1) == i64::from(libc::F_OFD_GETLK);
            let whose =
                |said: &str| said.rsplit_once(' ').map(|(rest, whose)| (rest.to_owned(), whose.to_owned()));
            match (asks, whose(native), whose(fuse)) {
                (true, Some((one, _)), Some((two, whose))) => one == two && whose == "description",
                _ => false,
            }
        },
        lasts: false,
        because: "`fuse_getlk` leaves `FL_OFDLCK` of the question in the answer, and `locks_translate_pid` tells no \
                  process then",
    },
    Excuse {
        applies: |_, native, fuse| [native, fuse].iter().all(|said| said.ends_with(" in a directory")),
        lasts: true,
        because: "what the end of a directory is, each file system says (`ext4_dir_llseek`: 2^63-1); for FUSE it is the \
                  directory's size (`generic_file_llseek`)",
    },
    Excuse {
        applies: |before, _, fuse| {
            fuse.starts_with("-1 ESTALE")
                && before.iter().any(|(step, said)| said.starts_with('0') && opens_with(step, libc::O_PATH))
                && before.iter().any(|(step, said)| *said == "0" && removes(step))
        },
        lasts: true,
        because: "`do_o_path` opens nothing of the file system's, and the passthrough keeps no descriptor of what nobody \
                  has open: what is removed is gone (`fuse_do_getattr`)",
    },
    Excuse {
        applies: |before, _, fuse| fuse == "-1 EOPNOTSUPP" && opens_with(last(before), libc::O_TMPFILE),
        lasts: true,
        because: "`fuse_tmpfile` asks with FUSE_TMPFILE, which fuser does not know (ENOSYS)",
    },
    Excuse {
        applies: |before, _, fuse| {
            let step = last(before);
            let waits_not = name(step) == "pwritev2" && number(step, 5) & i64::from(libc::RWF_NOWAIT) != 0;
            waits_not && fuse == "-1 EOPNOTSUPP"
        },
        lasts: true,
        because: "`kiocb_set_rw_flags` wants `FMODE_NOWAIT`, which no file of FUSE has",
    },
    Excuse {
        applies: |before, native, fuse| [native, fuse].contains(&"-1 EINVAL") && directly(before),
        lasts: true,
        because: "what O_DIRECT demands of offsets, lengths and buffers, each file system says (`iomap_dio_bio_iter`); \
                  `fuse_direct_io` and `fuse_cache_read_iter` demand nothing, and `fuse_passthrough_open` keeps the flag, \
                  whatever F_SETFL says later",
    },
];

/// Differences between the kernel road and preloaded programs that the README tells. A script is compared up to the first.
pub const LIMITS: &[Excuse] = &[
    Excuse {
        applies: |before, preloaded, _| {
            let step = last(before);
            name(step) == "linkat"
                && step.arguments[1] == Value::Text(":".to_owned())
                && number(step, 4) & i64::from(libc::AT_EMPTY_PATH) != 0
                && ["-1 EXDEV", "-1 ENOENT"].contains(&preloaded)
        },
        lasts: true,
        because: "`vfs_link`: a granted descriptor is one of the source's file system, and (`path_init`) the daemon has opened it",
    },
    Excuse {
        applies: |before, preloaded, by_kernel| {
            let [one, other] = [preloaded, by_kernel].map(without_atime);
            let recent = one.1 == Some("recent") || other.1 == Some("recent");
            let read_nothing = |said: &str| said == "0" || said.starts_with("0 ");
            one.0 == other.0 && recent && before.iter().any(|(step, said)| reads(step) && read_nothing(said))
        },
        lasts: false,
        because: "`filemap_read` asks for nothing behind the end of a file. Without clients the kernel reads an empty file by \
                  `fuse_passthrough_read_iter`; while a client has it open without a grant, by `fuse_cache_read_iter`",
    },
    Excuse {
        applies: |before, preloaded, by_kernel| {
            let locks = |step: &Step| ["fcntl-lock", "lockf"].contains(&name(step));
            [preloaded, by_kernel].iter().all(|said| said.starts_with("0 as "))
                && before.iter().any(|(step, said)| locks(step) && said.starts_with('0'))
        },
        lasts: false,
        because: "`locks_remove_posix`: whoever closes a descriptor of a file ends the process's locks on it, so one that a promotion \
                  leaves over keeps its number",
    },
    Excuse {
        applies: |before, preloaded, by_kernel| {
            by_kernel == "-1 EINVAL" && preloaded != by_kernel && directly(before)
        },
        lasts: true,
        because: "`fuse_direct_io` does not demand what the source demands of offsets, lengths and buffers, and \
                  `fuse_file_io_open` lets no file have a backing that is open without one",
    },
];

fn name(step: &Step) -> &'static str {
    CALLS[step.call].name
}

fn number(step: &Step, argument: usize) -> i64 {
    match step.arguments.get(argument) {
        Some(Value::Number(number)) => *number,
        _ => 0,
    }
}

fn last<'s>(before: &[(&'s Step, &str)]) -> &'s Step {
    before.last().expect("the step itself").0
}

/// What is told of a file without when it was last accessed, and that.
fn without_atime(said: &str) -> (String, Option<&str>) {
    let atime = said.split(' ').find_map(|word| word.strip_prefix("a="));
    let rest: Vec<&str> = said.split(' ').filter(|word| !word.starts_with("a=")).collect();
    (rest.join(" "), atime)
}

/// Whether it reads files, or may.
fn reads(step: &Step) -> bool {
    const READING: &str = "read pread readv preadv preadv2 fgets copy print freopen mmap map-read map-write sendfile \
         copy_file_range posix_fadvise list opendir fdopendir readdir readdir-some rewinddir seekdir nftw";
    READING.split(' ').any(|reading| reading == name(step))
}

/// Whether it reads files, or writes to them, through descriptors.
fn moves_data(step: &Step) -> bool {
    reads(step) || ["write", "pwrite", "writev", "pwritev", "pwritev2"].contains(&name(step))
}

/// Whether it moves data where something may have been opened with `O_DIRECT`.
fn directly(before: &[(&Step, &str)]) -> bool {
    let is_direct = |said: &str, step| said.starts_with('0') && opens_with(step, libc::O_DIRECT);
    moves_data(last(before)) && before.iter().any(|(step, said)| is_direct(said, step))
}

/// Whether it opens something with these flags, and nothing less.
fn opens_with(step: &Step, flags: i32) -> bool {
    super::calls::open_flags(&CALLS[step.call])
        .is_some_and(|argument| number(step, argument) & i64::from(flags) == i64::from(flags))
}

fn removes(step: &Step) -> bool {
    ["unlink", "unlinkat", "remove", "rmdir", "rename", "renameat", "renameat2"].contains(&name(step))
}

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

/// Compares the kernel road with the native directory, and the others with the kernel road. Where the first two differ by
/// an excuse, preloaded programs may do what is native, too: the kernel's FUSE is not in their way. Without a native directory
/// they may wherever an excuse applies.
pub fn compare(script: &Script, outcomes: &[Outcome]) -> Option<Difference> {
    let [natives @ .., kernel, bypass, mixed] = outcomes else { unreachable!("{} roads", Roads::ALL.len()) };
    let native = natives.first().unwrap_or(kernel);
    let of = |outcome: &Outcome, index: usize| match outcome.results.get(index) {
        Some(said) => said.clone(),
        None => "nothing".to_owned(),
    };
    let differ = |step, roads: (Roads, Roads), said: (String, String)| Some(Difference { step, roads, said });
    let steps = outcomes.iter().map(|outcome| outcome.results.len()).max().unwrap_or_default();
    // Whether the native directory is out of the comparison.
    let mut apart = natives.is_empty();
    for index in 0..steps {
        let (natively, by_kernel) = (of(native, index), of(kernel, index));
        let excuse = |list: &'static [Excuse], said: &str| {
            list.iter().find(|excuse| excuse.holds(script, kernel, index, said, &by_kernel))
        };
        if !apart && natively != by_kernel {
            match excuse(EXCUSES, &natively) {
                Some(excuse) => apart = excuse.lasts,
                None => return differ(Some(index), (Roads::Native, Roads::Kernel), (natively, by_kernel)),
            }
        }
        for (roads, outcome) in [(Roads::Bypass, bypass), (Roads::Mixed, mixed)] {
            let said = of(outcome, index);
            if said == by_kernel {
                continue;
            }
            let found = match apart || said == natively {
                true => excuse(EXCUSES, &said),
                false => None,
            };
            match found.or_else(|| excuse(LIMITS, &said)) {
                Some(excuse) if excuse.lasts => return None,
                Some(_) => {}
                None => return differ(Some(index), (Roads::Kernel, roads), (by_kernel, said)),
            }
        }
    }
    for (roads, outcome) in [(Roads::Kernel, kernel), (Roads::Bypass, bypass), (Roads::Mixed, mixed)] {
        let (measure, expected) = match apart {
            true => (Roads::Kernel, kernel),
            false => (Roads::Native, native),
        };
        for (left, right) in [
            (&expected.tree, &outcome.tree),
            (&expected.source, &outcome.source),
            (&outcome.source, &outcome.tree),
        ] {
            if left != right {
                return differ(None, (measure, roads), lines_that_differ(left, right));
            }
        }
    }
    None
}

impl Excuse {
    fn holds(&self, script: &Script, kernel: &Outcome, index: usize, said: &str, by_kernel: &str) -> bool {
        let steps = script.steps.iter().zip(kernel.results.iter().map(String::as_str));
        let before: Vec<_> = steps.take(index + 1).collect();
        before.len() == index + 1 && (self.applies)(&before, said, by_kernel)
    }
}

fn lines_that_differ(one: &str, two: &str) -> (String, String) {
    let only = |one: &str, two: &str| {
        let lines: Vec<_> = one.lines().filter(|line| !two.lines().any(|other| other == *line)).collect();
        format!("afterwards {}", lines.join("; "))
    };
    (only(one, two), only(two, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0 100666 0:0 size=5 a=500000.0 m=500000.0";
    const RECENT: &str = "0 100666 0:0 size=5 a=recent m=500000.0";

    fn compared(steps: &str, said: [&[&str]; 4]) -> Option<(Option<usize>, Roads)> {
        let script = Script::parse(&format!("ordinary=00 preloaded=10\n{steps}"));
        let outcomes = said.map(|said| Outcome {
            results: said.iter().map(|said| (*said).to_owned()).collect(),
            tree: String::new(),
            source: String::new(),
        });
        compare(&script, &outcomes).map(|difference| (difference.step, difference.roads.1))
    }

    #[test]
    fn a_difference_is_found_on_every_road() {
        let steps = "0 stat :a\n0 rmdir :a";
        let (usual, odd) = (&[OLD, "-1 ENOTDIR"][..], &[OLD, "0"][..]);
        assert_eq!(compared(steps, [usual; 4]), None);
        assert_eq!(compared(steps, [odd, usual, usual, usual]), Some((Some(1), Roads::Kernel)));
        assert_eq!(compared(steps, [usual, usual, odd, usual]), Some((Some(1), Roads::Bypass)));
        assert_eq!(compared(steps, [usual, usual, usual, odd]), Some((Some(1), Roads::Mixed)));
        assert_eq!(compared(steps, [usual, usual, usual, &[OLD]]), Some((Some(1), Roads::Mixed)));
    }

    #[test]
    fn the_time_of_access_of_an_empty_file_may_differ_after_reading() {
        let nothing = (&["0 0", RECENT][..], &["0 0", OLD][..]);
        let something = (&["5 f00", RECENT][..], &["5 f00", OLD][..]);
        let read = "0 read 0 5\n0 fstat 0";
        assert_eq!(compared(read, [nothing.0, nothing.0, nothing.0, nothing.1]), None);
        let last = Some((Some(1), Roads::Mixed));
        assert_eq!(compared(read, [something.0, something.0, something.0, something.1]), last);
        assert_eq!(compared("0 lstat :a\n0 fstat 0", [nothing.0, nothing.0, nothing.0, nothing.1]), last);
    }

    #[test]
    fn a_time_of_access_may_differ_from_the_native_one_after_reading_alone() {
        let read = "0 read 0 5\n0 fstat 0";
        let (old, recent, other) =
            (&["5 f00", OLD][..], &["5 f00", RECENT][..], &["5 f00", "0 100666 0:0"][..]);
        assert_eq!(compared(read, [recent, old, old, recent]), None);
        assert_eq!(compared(read, [recent, old, other, old]), Some((Some(1), Roads::Bypass)));
        assert_eq!(compared(read, [recent, recent, old, recent]), Some((Some(1), Roads::Bypass)));
        let unread = "0 lstat :a\n0 fstat 0";
        assert_eq!(compared(unread, [recent, old, old, old]), Some((Some(1), Roads::Kernel)));
    }

    #[test]
    fn after_an_excuse_that_lasts_the_roads_are_compared_with_each_other() {
        let steps = "0 lseek 0 0 2\n0 stat :a";
        let end = "9223372036854775807 in a directory";
        let (native, kernel) = (&[end, "0"][..], &["4096 in a directory", "1"][..]);
        assert_eq!(compared(steps, [native, kernel, kernel, kernel]), None);
        let odd = &["4096 in a directory", "0"][..];
        assert_eq!(compared(steps, [native, kernel, kernel, odd]), Some((Some(1), Roads::Mixed)));
    }
}
