//! What the benchmark shares with the program that it measures: names of files and summaries of samples.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io::{Cursor, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// A tree of two levels: `files` files spread evenly, in order, over `dirs` directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Directories, at least one.
    pub dirs: u64,
    /// Files in all.
    pub files: u64,
}

impl Shape {
    /// Files per directory; the last directories may have fewer.
    pub fn per_dir(&self) -> u64 {
        self.files.div_ceil(self.dirs.max(1)).max(1)
    }

    /// The files of one directory.
    pub fn files_of(&self, dir: u64) -> std::ops::Range<u64> {
        let first = (dir * self.per_dir()).min(self.files);
        first..(first + self.per_dir()).min(self.files)
    }
}

/// The path of a file or directory below a root, composed in a buffer of its own: no allocation per name.
#[derive(Debug)]
pub struct PathWriter {
    bytes: Vec<u8>,
    root: usize,
}

impl PathWriter {
    /// Paths below `root`.
    pub fn new(root: &Path) -> Self {
        let mut bytes = root.as_os_str().as_bytes().to_vec();
        let root = bytes.len();
        bytes.resize(root + 64, 0);
        Self { bytes, root }
    }

    /// The path of a directory.
    pub fn dir(&mut self, dir: u64) -> &Path {
        self.write(format_args!("/d{dir:06}"))
    }

    /// The path of a file.
    pub fn file(&mut self, dir: u64, file: u64) -> &Path {
        self.write(format_args!("/d{dir:06}/f{file:08}"))
    }

    fn write(&mut self, name: std::fmt::Arguments<'_>) -> &Path {
        let mut rest = Cursor::new(&mut self.bytes[self.root..]);
        rest.write_fmt(name).expect("two numbers of at most 20 digits fit");
        let len = rest.position() as usize;
        Path::new(OsStr::from_bytes(&self.bytes[..self.root + len]))
    }
}

/// Samples of one kind of operation, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Half of the samples are not longer.
    pub p50: f64,
    /// 99 of 100 samples are not longer.
    pub p99: f64,
}

impl Summary {
    /// Summarises samples; what reading the clock costs is taken off each.
    pub fn of(samples: &mut [u64], clock: u64) -> Self {
        samples.sort_unstable();
        let at = |permille: usize| match samples.len() {
            0 => 0.0,
            len => samples[(len * permille / 1000).min(len - 1)].saturating_sub(clock) as f64,
        };
        Self { p50: at(500), p99: at(990) }
    }
}

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// What reading the clock twice in a row shows, in nanoseconds: the part of every sample that is not the
/// operation.
pub fn clock_cost() -> u64 {
    let mut samples: Vec<u64> = (0..10_000).map(|_| nanos(|| ())).collect();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

/// How long `operation` takes, in nanoseconds, clock included.
pub fn nanos<T>(operation: impl FnOnce() -> T) -> u64 {
    let start = std::time::Instant::now();
    std::hint::black_box(operation());
    as_nanos(start.elapsed())
}

/// A duration in whole nanoseconds.
pub fn as_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_one_directory() {
        for (dirs, files) in [(1, 1), (3, 10), (10, 3), (7, 7), (1000, 4_000_000)] {
            let shape = Shape { dirs, files };
            let mut next = 0;
            for dir in 0..dirs {
                let range = shape.files_of(dir);
                assert_eq!(range.start, next, "{shape:?}");
                next = range.end;
            }
            assert_eq!(next, files, "{shape:?}");
        }
    }

    #[test]
    fn paths_are_composed_below_the_root() {
        let mut writer = PathWriter::new(Path::new("/mnt"));
        assert_eq!(writer.file(7, 4_000_000), Path::new("/mnt/d000007/f04000000"));
        assert_eq!(writer.dir(7), Path::new("/mnt/d000007"));
        assert!(writer.file(u64::MAX, u64::MAX).as_os_str().len() < 64);
    }

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
        let mut samples: Vec<u64> = (1..=1000).rev().collect();
        assert_eq!(Summary::of(&mut samples, 1), Summary { p50: 500.0, p99: 990.0 });
        assert_eq!(Summary::of(&mut [], 1), Summary::default());
    }
}
