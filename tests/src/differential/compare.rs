//! What must agree.

use super::calls::{CALLS, Value};
use super::script::{Script, Step};
use super::site::{Outcome, Roads};

/// A difference between a native directory and any FUSE file system, which the kernel makes before it asks anybody.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// Whether a step differs in this way: the steps up to it, what it says natively, and on the kernel road.
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
                && before.iter().any(|(step, said)| *said == "0" && opens_path(step))
                && before.iter().any(|(step, said)| *said == "0" && removes(step))
        },
        lasts: true,
        because: "`do_o_path` opens nothing of the file system's, and the passthrough keeps no descriptor of what nobody \
                  has open: what is removed is gone (`fuse_do_getattr`)",
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
    const READING: &[&str] = &[
        "read",
        "pread",
        "readv",
        "preadv",
        "preadv2",
        "fgets",
        "copy",
        "print",
        "freopen",
        "mmap",
        "map-read",
        "map-write",
        "sendfile",
        "copy_file_range",
        "posix_fadvise",
        "list",
        "opendir",
        "fdopendir",
        "readdir",
        "readdir-some",
        "rewinddir",
        "seekdir",
        "nftw",
    ];
    READING.contains(&name(step))
}

fn opens_path(step: &Step) -> bool {
    super::calls::open_flags(&CALLS[step.call])
        .is_some_and(|argument| number(step, argument) & i64::from(libc::O_PATH) != 0)
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
/// an excuse, preloaded programs may say what either says: they reach what is native without the kernel's FUSE.
pub fn compare(script: &Script, outcomes: &[Outcome]) -> Option<Difference> {
    let [native, kernel, bypass, mixed] = outcomes else { unreachable!("{} roads", Roads::ALL.len()) };
    let of = |outcome: &Outcome, index: usize| match outcome.results.get(index) {
        Some(said) => said.clone(),
        None => "nothing".to_owned(),
    };
    let differ = |step, roads: (Roads, Roads), said: (String, String)| Some(Difference { step, roads, said });
    let steps = outcomes.iter().map(|outcome| outcome.results.len()).max().unwrap_or_default();
    let mut apart = false;
    for index in 0..steps {
        let expected = (of(native, index), of(kernel, index));
        let mut excused = apart;
        if expected.0 != expected.1 && !apart {
            match EXCUSES.iter().find(|excuse| excuse.holds(script, kernel, index, &expected)) {
                Some(excuse) => (excused, apart) = (true, excuse.lasts),
                None => return differ(Some(index), (Roads::Native, Roads::Kernel), expected),
            }
        }
        for (roads, outcome) in [(Roads::Bypass, bypass), (Roads::Mixed, mixed)] {
            let said = of(outcome, index);
            if said != expected.1 && !(excused && said == expected.0) {
                return differ(Some(index), (Roads::Kernel, roads), (expected.1, said));
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
    fn holds(&self, script: &Script, kernel: &Outcome, index: usize, said: &(String, String)) -> bool {
        let before: Vec<_> = script
            .steps
            .iter()
            .zip(&kernel.results)
            .take(index + 1)
            .map(|(step, said)| (step, said.as_str()))
            .collect();
        before.len() == index + 1 && (self.applies)(&before, &said.0, &said.1)
    }
}

fn lines_that_differ(one: &str, two: &str) -> (String, String) {
    let only = |one: &str, two: &str| {
        let lines: Vec<_> = one.lines().filter(|line| !two.lines().any(|other| other == *line)).collect();
        format!("afterwards {}", lines.join("; "))
    };
    (only(one, two), only(two, one))
}
